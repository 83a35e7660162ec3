//! Whom TLS trusts: the roots that are bundled with the binary, those of the system, or both, towards
//! recipients, proxies and Redis alike.
//!
//! The bundled ones age with the binary, those of the system are missing in an empty root directory, so
//! both is the default and neither has to be there. The system's are where OpenSSL looks for them, or
//! where `SSL_CERT_FILE` and `SSL_CERT_DIR` say.

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustls::RootCertStore;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// How long roots are used before they are read again.
pub const READ_EVERY: Duration = Duration::from_secs(3600);

/// Which roots are trusted, beside those of an option's own file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Roots {
    /// Bundled and system's, as far as there are any.
    #[default]
    Both,
    /// Those in the binary.
    Bundled,
    /// Those of the system; there must be some.
    System,
}

/// Roots that were read, and where they come from.
pub struct Loaded {
    /// Each once.
    pub store: Arc<RootCertStore>,
    n_bundled: usize,
    n_system: usize,
    n_new: usize,
    n_added: Option<usize>,
    /// What of the system's could not be read, for people.
    pub trouble: Option<String>,
}

impl Roots {
    /// Reads them, and those of `--ca-file`.
    ///
    /// # Errors
    ///
    /// If that file cannot be used, or there are no roots of the system where they alone are wanted.
    pub fn load(self, ca_file: Option<&Path>) -> Result<Loaded, String> {
        let mut store = RootCertStore::empty();
        if self != Roots::System {
            store.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        }
        let n_bundled = store.len();
        let (mut n_system, mut trouble) = (0, None);
        if self != Roots::Bundled {
            let found = rustls_native_certs::load_native_certs();
            let mut system = RootCertStore::empty();
            (n_system, _) = system.add_parsable_certificates(found.certs);
            trouble = found.errors.first().map(|error| format!("not all roots of the system can be read: {error}"));
            let known: HashSet<(Vec<u8>, Vec<u8>)> = store.roots.iter().map(identity).collect();
            store.extend(system.roots.into_iter().filter(|root| !known.contains(&identity(root))));
        }
        if store.is_empty() {
            let why = trouble.as_deref().unwrap_or("none were found");
            return Err(format!(
                "option '--roots': there are no roots of the system ({why}); install ca-certificates, \
                 name them by SSL_CERT_FILE or SSL_CERT_DIR, or say '--roots both'"
            ));
        }
        let n_new = store.len() - n_bundled;
        let n_added = match ca_file {
            Some(path) => Some(
                add_file(&mut store, path).map_err(|why| format!("option '--ca-file': {}: {why}", path.display()))?,
            ),
            None => None,
        };
        Ok(Loaded { store: Arc::new(store), n_bundled, n_system, n_new, n_added, trouble })
    }
}

/// How many of each, for people.
impl fmt::Display for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bundled, {} of the system", self.n_bundled, self.n_system)?;
        if self.n_bundled > 0 && self.n_system > 0 {
            write!(f, " ({} of them not bundled)", self.n_new)?;
        }
        match self.n_added {
            Some(n) => write!(f, ", {n} of '--ca-file'"),
            None => Ok(()),
        }
    }
}

/// One name and key may stand in several certificates.
fn identity(root: &rustls::pki_types::TrustAnchor<'_>) -> (Vec<u8>, Vec<u8>) {
    (root.subject.to_vec(), root.subject_public_key_info.to_vec())
}

/// Adds all certificates of a PEM file; how many they are.
///
/// # Errors
///
/// If one cannot be used, or there are none.
pub fn add_file(store: &mut RootCertStore, path: &Path) -> Result<usize, String> {
    let certificates = CertificateDer::pem_file_iter(path).map_err(|error| spell_pem_error(&error))?;
    let mut n_added = 0;
    for certificate in certificates {
        let certificate = certificate.map_err(|error| spell_pem_error(&error))?;
        store.add(certificate).map_err(|error| {
            let nth = n_added + 1;
            format!("certificate {nth} cannot be used: {error}")
        })?;
        n_added += 1;
    }
    if n_added == 0 {
        return Err("holds no PEM certificate".to_string());
    }
    Ok(n_added)
}

/// A certificate with those that lead to its root, and its key: who we are. The error names which of the
/// two options, certificate first, cannot be followed.
pub(crate) fn read_identity(files: &(PathBuf, PathBuf), options: [&str; 2]) -> Result<Identity, String> {
    let (certificate_file, key_file) = files;
    let cannot = |why| format!("option '{}': {}: {why}", options[0], certificate_file.display());
    let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(certificate_file).and_then(Iterator::collect);
    let chain = chain.map_err(|error| cannot(spell_pem_error(&error)))?;
    if chain.is_empty() {
        return Err(cannot("holds no PEM certificate".to_string()));
    }
    let key = PrivateKeyDer::from_pem_file(key_file).map_err(|error| {
        let why = match error {
            pem::Error::NoItemsFound => "holds no PEM private key".to_string(),
            error => spell_pem_error(&error),
        };
        format!("option '{}': {}: {why}", options[1], key_file.display())
    })?;
    Ok((chain, key))
}

/// What is shown to who asks who we are.
pub(crate) type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// Said where certificate and key are of different pairs.
pub(crate) fn unfit(options: [&str; 2], error: &rustls::Error) -> String {
    format!("options '{}' and '{}': the two do not fit together: {error}", options[0], options[1])
}

fn spell_pem_error(error: &pem::Error) -> String {
    match error {
        pem::Error::Io(error) => error.to_string(),
        error => format!("is not PEM: {error:?}"),
    }
}

/// Roots that are read again after an hour, for connections that are opened now and then. Clones are the same.
#[derive(Clone, Default)]
pub struct Kept {
    roots: Roots,
    read: Arc<Mutex<Option<Read>>>,
}

/// When they were read, and what they are.
type Read = (Instant, Arc<RootCertStore>);

impl Kept {
    /// Nothing is read yet.
    pub fn new(roots: Roots) -> Kept {
        Kept { roots, read: Arc::default() }
    }

    /// As of the last hour.
    ///
    /// # Errors
    ///
    /// As [`Roots::load`], if there are none of an earlier hour.
    pub fn store(&self) -> Result<Arc<RootCertStore>, String> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        match &*read {
            Some((at, store)) if at.elapsed() < READ_EVERY => Ok(store.clone()),
            earlier => match (self.roots.load(None), earlier) {
                (Ok(loaded), _) => Ok(read.insert((Instant::now(), loaded.store)).1.clone()),
                (Err(_), Some((_, store))) => Ok(store.clone()),
                (Err(why), None) => Err(why),
            },
        }
    }
}
