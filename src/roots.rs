//! Whom TLS trusts: the roots that are bundled with the binary, those of the system, or both, towards
//! recipients, proxies and Redis alike.
//!
//! The bundled ones age with the binary, those of the system are missing in an empty root directory, so
//! both is the default and neither has to be there. The system's are where OpenSSL looks for them, or
//! where `SSL_CERT_FILE` and `SSL_CERT_DIR` say.
//!
//! They are read again now and then. What then cannot be read, and could before, takes no root away: a
//! file may be replaced at that moment.

use std::collections::HashSet;
use std::env;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustls::RootCertStore;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// How long roots are used towards recipients before they are read again.
pub const READ_EVERY: Duration = Duration::from_secs(3600);

/// The same towards Redis, where they are needed for each connection, and for no other time.
const READ_FOR_REDIS: Duration = Duration::from_secs(60);

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
            let n_odd;
            (n_system, n_odd) = system.add_parsable_certificates(found.certs);
            let places = places();
            let why = match found.errors.first() {
                Some(error) => Some(spell_error(error)),
                None if n_odd > 0 => Some(format!("{n_odd} of them are no certificates that can be used")),
                None if names_empty_file() => Some("that file holds no PEM certificate".to_string()),
                None if n_system == 0 && !places.is_empty() => Some("there is no PEM certificate".to_string()),
                None => None,
            };
            trouble = why.map(|why| format!("not all roots of the system can be read{places}: {why}"));
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

    /// Reads them again.
    ///
    /// # Errors
    ///
    /// As [`Roots::load`], and if something of the system's cannot be read, or is gone, that could be before.
    pub fn load_again(self, ca_file: Option<&Path>, before: &Loaded) -> Result<Loaded, String> {
        let loaded = self.load(ca_file)?;
        match &loaded.trouble {
            Some(trouble) if before.trouble.as_ref() != Some(trouble) => Err(trouble.clone()),
            None if loaded.n_system == 0 && before.n_system > 0 => {
                Err("the roots of the system are not found any more".to_string())
            }
            _ => Ok(loaded),
        }
    }
}

/// Where the environment says that the system's are, for people; nothing if it does not.
fn places() -> String {
    let named = ["SSL_CERT_FILE", "SSL_CERT_DIR"].map(|name| {
        let place = env::var_os(name)?;
        Some(format!("{name} is '{}'", place.display()))
    });
    match named.into_iter().flatten().collect::<Vec<_>>() {
        none if none.is_empty() => String::new(),
        some => format!(" ({})", some.join(", ")),
    }
}

/// Whether `SSL_CERT_FILE` names a file without any certificate, which is no error beside a good directory.
fn names_empty_file() -> bool {
    let Some(path) = env::var_os("SSL_CERT_FILE") else { return false };
    CertificateDer::pem_file_iter(path).is_ok_and(|mut certificates| certificates.next().is_none())
}

fn spell_error(error: &rustls_native_certs::Error) -> String {
    use rustls_native_certs::ErrorKind;
    match &error.kind {
        ErrorKind::Io { inner, path } => format!("{}: {inner}", path.display()),
        ErrorKind::Pem(error) => format!("a file {}", spell_pem_error(error)),
        _ => error.to_string(),
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
            pem::Error::NoItemsFound if is_encrypted(key_file) => "is encrypted: decrypt it".to_string(),
            pem::Error::NoItemsFound => "holds no PEM private key".to_string(),
            error => spell_pem_error(&error),
        };
        format!("option '{}': {}: {why}", options[1], key_file.display())
    })?;
    Ok((chain, key))
}

/// What is shown to who asks who we are.
pub(crate) type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn is_encrypted(key_file: &Path) -> bool {
    fs::read_to_string(key_file).is_ok_and(|text| text.contains("ENCRYPTED"))
}

/// Said where certificate and key cannot be used together.
pub(crate) fn unfit([certificate, key]: [&str; 2], error: &rustls::Error) -> String {
    match error {
        rustls::Error::InconsistentKeys(_) => {
            format!("options '{certificate}' and '{key}': the key is not that of the certificate")
        }
        rustls::Error::InvalidCertificate(error) if format!("{error:?}").contains("UnsupportedCertVersion") => {
            format!("option '{certificate}': the certificate is of an old version, X.509 v3 is needed")
        }
        rustls::Error::InvalidCertificate(_) => format!("option '{certificate}': {error}"),
        _ => format!("option '{key}': no key that can be used (RSA, P-256, P-384 and Ed25519 can)"),
    }
}

fn spell_pem_error(error: &pem::Error) -> String {
    let why = match error {
        pem::Error::Io(error) => return error.to_string(),
        pem::Error::MissingSectionEnd { .. } => "a part of it has no end".to_string(),
        pem::Error::IllegalSectionStart { .. } => "a part of it has no right beginning".to_string(),
        pem::Error::Base64Decode(_) => "a part of it is not base64".to_string(),
        error => format!("{error:?}"),
    };
    format!("is not PEM: {why}")
}

/// Roots that are read again after a while, for connections that are opened now and then. Clones are the same.
#[derive(Clone, Default)]
pub struct Kept {
    roots: Roots,
    read: Arc<Mutex<Option<Read>>>,
}

/// When they were read last, and what they are.
type Read = (Instant, Loaded);

impl Kept {
    /// Nothing is read yet.
    pub fn new(roots: Roots) -> Kept {
        Kept { roots, read: Arc::default() }
    }

    /// As of the last minute.
    ///
    /// # Errors
    ///
    /// As [`Roots::load`], if there are none from before.
    pub fn store(&self) -> Result<Arc<RootCertStore>, String> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let loaded = match read.take() {
            Some((at, loaded)) if at.elapsed() < READ_FOR_REDIS => {
                return Ok(read.insert((at, loaded)).1.store.clone());
            }
            Some((_, before)) => self.roots.load_again(None, &before).unwrap_or(before),
            None => self.roots.load(None)?,
        };
        Ok(read.insert((Instant::now(), loaded)).1.store.clone())
    }
}
