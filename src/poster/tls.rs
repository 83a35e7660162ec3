//! Whom we trust and who we are, read at the start and again every hour, and the words for why we do
//! not trust someone.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use rustls::{AlertDescription, CertificateError, ClientConfig, PeerIncompatible, RootCertStore};

use crate::roots::{Identity, Loaded, Roots, read_identity, unfit};

/// Where certificate and key are given.
const OPTIONS: [&str; 2] = ["--client-cert-file", "--client-key-file"];

/// Where all of it is read from.
#[derive(Clone, Debug, Default)]
pub(super) struct Sources {
    pub(super) roots: Roots,
    pub(super) ca_file: Option<PathBuf>,
    /// Certificate and key to show to endpoints that ask; never to a proxy.
    pub(super) client: Option<(PathBuf, PathBuf)>,
}

/// What was read; new connections take what is newest, and those that are open keep what they have.
pub(super) struct Trust {
    sources: Sources,
    endpoints: RwLock<Arc<ClientConfig>>,
    proxies: RwLock<Arc<ClientConfig>>,
    seen: Mutex<Seen>,
}

/// What the settings were made of, to see whether anything has changed.
struct Seen {
    store: Arc<RootCertStore>,
    client: Option<Identity>,
}

impl Trust {
    /// The error names the option that cannot be followed. Also what was read.
    pub(super) fn read(sources: Sources) -> Result<(Trust, Loaded), String> {
        let (seen, loaded) = Seen::read(&sources)?;
        let (endpoints, proxies) = seen.settings()?;
        let trust =
            Trust { sources, endpoints: RwLock::new(endpoints), proxies: RwLock::new(proxies), seen: Mutex::new(seen) };
        Ok((trust, loaded))
    }

    /// Reads everything again; what it is now, if anything has changed. Settings that have not changed stay,
    /// since sessions are resumed within the same settings only. After an error, too, all stays as it was.
    pub(super) fn renew(&self) -> Result<Option<Loaded>, String> {
        let (seen, loaded) = Seen::read(&self.sources)?;
        let mut last = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if *last == seen {
            return Ok(None);
        }
        let (endpoints, proxies) = seen.settings()?;
        *self.endpoints.write().unwrap_or_else(PoisonError::into_inner) = endpoints;
        *self.proxies.write().unwrap_or_else(PoisonError::into_inner) = proxies;
        *last = seen;
        Ok(Some(loaded))
    }

    /// Towards recipients.
    pub(super) fn of_endpoints(&self) -> Arc<ClientConfig> {
        self.endpoints.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Towards proxies.
    pub(super) fn of_proxies(&self) -> Arc<ClientConfig> {
        self.proxies.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Seen {
    fn read(sources: &Sources) -> Result<(Seen, Loaded), String> {
        let loaded = sources.roots.load(sources.ca_file.as_deref())?;
        let client = sources.client.as_ref().map(|files| read_identity(files, OPTIONS)).transpose()?;
        Ok((Seen { store: loaded.store.clone(), client }, loaded))
    }

    /// TLS 1.2 and 1.3, towards endpoints and towards proxies.
    fn settings(&self) -> Result<(Arc<ClientConfig>, Arc<ClientConfig>), String> {
        let builder = || {
            ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .map(|builder| builder.with_root_certificates(self.store.clone()))
                .map_err(|error| format!("TLS: {error}"))
        };
        let nobody = Arc::new(builder()?.with_no_client_auth());
        let Some((chain, key)) = &self.client else { return Ok((nobody.clone(), nobody)) };
        let client = builder()?.with_client_auth_cert(chain.clone(), key.clone_key());
        let client = client.map_err(|error| unfit(OPTIONS, &error))?;
        Ok((Arc::new(client), nobody))
    }
}

impl PartialEq for Seen {
    fn eq(&self, other: &Seen) -> bool {
        self.store.roots == other.store.roots && self.client == other.client
    }
}

/// For people, without what the other side may have put into it at length.
pub(super) fn spell_tls_error(error: &rustls::Error) -> String {
    use rustls::Error as Tls;
    match error {
        Tls::InvalidCertificate(error) => spell_certificate_error(error),
        Tls::PeerIncompatible(
            PeerIncompatible::ServerDoesNotSupportTls12Or13 | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig,
        )
        | Tls::AlertReceived(AlertDescription::ProtocolVersion) => {
            "no common protocol version (1.2 and 1.3 are offered)".to_string()
        }
        Tls::PeerIncompatible(_) | Tls::AlertReceived(AlertDescription::HandshakeFailure) => {
            "no common cipher or other parameter".to_string()
        }
        Tls::AlertReceived(alert) => format!("the recipient refused: {alert:?}"),
        Tls::InvalidMessage(_) => "what came is not TLS".to_string(),
        Tls::NoCertificatesPresented => "no certificate presented".to_string(),
        error => error.to_string().chars().take(120).collect(),
    }
}

fn spell_certificate_error(error: &CertificateError) -> String {
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "certificate expired".to_string(),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "certificate not valid yet".to_string()
        }
        CertificateError::NotValidForNameContext { expected, .. } => {
            format!("certificate not valid for name {}", expected.to_str())
        }
        CertificateError::NotValidForName => "certificate not valid for this name".to_string(),
        CertificateError::UnknownIssuer => "certificate from an unknown issuer ('--ca-file' adds one)".to_string(),
        error => {
            let words: String = format!("{error:?}").chars().take(80).collect();
            format!("certificate not acceptable: {words}")
        }
    }
}
