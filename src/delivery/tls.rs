//! Whom we trust and who we are, read at the start and again every hour, and the words for why we do
//! not trust someone.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use rustls::{AlertDescription, CertificateError, ClientConfig, PeerIncompatible};

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
    roots: Loaded,
    client: Option<Identity>,
}

impl Trust {
    /// The error names the option that cannot be followed.
    pub(super) fn read(sources: Sources) -> Result<Trust, String> {
        let seen = Seen { roots: sources.roots.load(sources.ca_file.as_deref())?, client: sources.client()? };
        let (endpoints, proxies) = seen.settings()?;
        Ok(Trust { sources, endpoints: RwLock::new(endpoints), proxies: RwLock::new(proxies), seen: Mutex::new(seen) })
    }

    /// How many roots of each kind there are, and what of them could not be read.
    pub(super) fn roots(&self) -> (String, Option<String>) {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        (seen.roots.to_string(), seen.roots.trouble.clone())
    }

    /// Reads everything again; what it is now, if anything has changed. Settings that have not changed stay,
    /// since sessions are resumed within the same settings only. After an error, too, all stays as it was.
    pub(super) fn renew(&self) -> Result<Option<String>, String> {
        let mut last = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let roots = self.sources.roots.load_again(self.sources.ca_file.as_deref(), &last.roots)?;
        let seen = Seen { roots, client: self.sources.client()? };
        if *last == seen {
            return Ok(None);
        }
        let (endpoints, proxies) = seen.settings()?;
        *self.endpoints.write().unwrap_or_else(PoisonError::into_inner) = endpoints;
        *self.proxies.write().unwrap_or_else(PoisonError::into_inner) = proxies;
        *last = seen;
        Ok(Some(last.roots.to_string()))
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

impl Sources {
    fn client(&self) -> Result<Option<Identity>, String> {
        self.client.as_ref().map(|files| read_identity(files, OPTIONS)).transpose()
    }
}

impl Seen {
    /// TLS 1.2 and 1.3, towards endpoints and towards proxies.
    fn settings(&self) -> Result<(Arc<ClientConfig>, Arc<ClientConfig>), String> {
        let builder = || {
            ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .map(|builder| builder.with_root_certificates(self.roots.store.clone()))
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
        self.roots.store.roots == other.roots.store.roots && self.client == other.client
    }
}

/// The TLS error inside an I/O error, where rustls puts it.
pub(super) fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
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
        Tls::PeerIncompatible(_) => "no common cipher or other parameter".to_string(),
        Tls::AlertReceived(alert) => spell_alert(*alert),
        Tls::InvalidMessage(_) => "what came is not TLS".to_string(),
        Tls::NoCertificatesPresented => "no certificate presented".to_string(),
        error => error.to_string().chars().take(120).collect(),
    }
}

/// What the other side says of us.
fn spell_alert(alert: AlertDescription) -> String {
    let why = match alert {
        AlertDescription::HandshakeFailure => {
            return "no common cipher or other parameter, or a client certificate is wanted ('--client-cert-file')"
                .to_string();
        }
        AlertDescription::CertificateRequired | AlertDescription::NoCertificate => {
            return "a client certificate is wanted ('--client-cert-file')".to_string();
        }
        AlertDescription::CertificateExpired => "it has expired",
        AlertDescription::CertificateRevoked => "it is revoked",
        AlertDescription::UnknownCA => "its authority is unknown there",
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateUnknown => "it is not acceptable there",
        alert => return format!("the recipient refused: {alert:?}"),
    };
    format!("the certificate of '--client-cert-file' was refused: {why}")
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
        CertificateError::BadSignature => "certificate not signed by the issuer that it names".to_string(),
        // Known by its words alone: the type is not ours to name.
        error => match format!("{error:?}") {
            words if words.contains("CaUsedAsEndEntity") => {
                "certificate is an authority's (CA:TRUE), which cannot be a server's too".to_string()
            }
            words => format!("certificate not acceptable: {}", words.chars().take(80).collect::<String>()),
        },
    }
}
