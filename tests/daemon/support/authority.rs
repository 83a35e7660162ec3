//! Certificates of one test, and a Redis that has them.

#![allow(dead_code)] // only some tests need one

use std::fs;
use std::net::{IpAddr, TcpListener};
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use super::{Redis, TempDir};

/// An authority of one test, with its certificate in a file.
pub struct Authority {
    dir: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    #[allow(clippy::new_without_default)] // a fixture, and no value
    pub fn new() -> Authority {
        let dir = TempDir::new("authority");
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        fs::write(dir.path().join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        Authority { dir, issuer: Issuer::new(params, key) }
    }

    /// The directory of its files.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Its own certificate.
    pub fn file(&self) -> String {
        self.dir.path().join("ca.pem").display().to_string()
    }

    /// A certificate for these names and its key, in files.
    pub fn certify(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> (PathBuf, PathBuf) {
        let mut params = CertificateParams::new(names.iter().map(|name| name.to_string()).collect::<Vec<_>>()).unwrap();
        // OpenSSL takes a certificate for self-signed that has its issuer's name.
        params.distinguished_name.push(DnType::CommonName, "not the authority");
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let (file, key_file) = (self.dir.path().join("server.pem"), self.dir.path().join("server.key"));
        fs::write(&file, certificate.pem()).unwrap();
        fs::write(&key_file, key.serialize_pem()).unwrap();
        (file, key_file)
    }

    /// Has a Redis speak TLS on a port of its own, with this certificate; its address.
    pub fn serve_tls(&self, redis: &Redis, (certificate, key): (PathBuf, PathBuf), clients: &str) -> String {
        let host: IpAddr = redis.address().split(':').next().unwrap().parse().unwrap();
        let port = TcpListener::bind((host, 0)).unwrap().local_addr().unwrap().port();
        let text = |path: &Path| path.display().to_string();
        let settings = [
            ("tls-auth-clients", clients.to_string()),
            ("tls-ca-cert-file", self.file()),
            ("tls-key-file", text(&key)),
            ("tls-cert-file", text(&certificate)),
            ("tls-port", port.to_string()),
        ];
        // In one step: a certificate without its key is refused.
        let mut command = redis::cmd("CONFIG");
        command.arg("SET");
        for (name, value) in settings {
            command.arg(name).arg(value);
        }
        command.exec(&mut redis.client()).expect("this redis-server was built with TLS");
        format!("{host}:{port}")
    }
}
