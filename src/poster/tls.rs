//! Whom we trust, built once, and the words for why we do not trust someone.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{self, PemObject};
use rustls::{AlertDescription, CertificateError, ClientConfig, PeerIncompatible, RootCertStore};

/// TLS 1.2 and 1.3 with the bundled roots, and those of `--ca-file` as well.
pub(super) fn client_config(ca_file: Option<&Path>) -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    if let Some(path) = ca_file {
        add_roots(&mut roots, path).map_err(|why| format!("option '--ca-file': {}: {why}", path.display()))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS: {error}"))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

fn add_roots(roots: &mut RootCertStore, path: &Path) -> Result<(), String> {
    let certificates = CertificateDer::pem_file_iter(path).map_err(|e| spell_pem_error(&e))?;
    let mut n_added = 0;
    for certificate in certificates {
        let certificate = certificate.map_err(|e| spell_pem_error(&e))?;
        roots.add(certificate).map_err(|error| {
            let nth = n_added + 1;
            format!("certificate {nth} cannot be used: {error}")
        })?;
        n_added += 1;
    }
    if n_added == 0 {
        return Err("holds no PEM certificate".to_string());
    }
    Ok(())
}

fn spell_pem_error(error: &pem::Error) -> String {
    match error {
        pem::Error::Io(error) => error.to_string(),
        error => format!("is not PEM: {error:?}"),
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
