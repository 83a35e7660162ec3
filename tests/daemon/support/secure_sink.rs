//! A recipient that speaks TLS, with a certificate that nobody vouches for but itself.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::{TempDir, ms};

/// Counts what it is sent, payloads that end with "secret". To `/slow` it answers after a while, to
/// `/close` as the last on its connection.
pub struct SecureSink {
    pub address: SocketAddr,
    requests: Arc<AtomicUsize>,
    connections: Arc<AtomicUsize>,
    dir: TempDir,
}

impl SecureSink {
    /// With a certificate for the host of this address.
    pub fn start(address: &str) -> SecureSink {
        let host = address.split(':').next().unwrap_or_default();
        SecureSink::start_as(address, vec![host.to_string()])
    }

    /// With a certificate for these hosts.
    pub fn start_as(address: &str, hosts: Vec<String>) -> SecureSink {
        let listener = TcpListener::bind(address).unwrap_or_else(|error| panic!("{address}: {error}; be root"));
        let address = listener.local_addr().unwrap();
        let dir = TempDir::new("secure-sink");
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(hosts).unwrap().self_signed(&key).unwrap();
        fs::write(dir.path().join("ca.pem"), certificate.pem()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config = config.with_no_client_auth().with_single_cert(vec![certificate.der().clone()], key).unwrap();
        let config = Arc::new(config);
        let (requests, connections) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let sink = SecureSink { address, requests: requests.clone(), connections: connections.clone(), dir };
        thread::spawn(move || {
            for stream in listener.incoming() {
                let conn = ServerConnection::new(config.clone()).unwrap();
                let stream = StreamOwned::new(conn, stream.unwrap());
                connections.fetch_add(1, Ordering::SeqCst);
                let requests = requests.clone();
                thread::spawn(move || serve(stream, &requests));
            }
        });
        sink
    }

    /// Its certificate, in a file.
    pub fn ca_file(&self) -> String {
        self.dir.path().join("ca.pem").display().to_string()
    }

    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    /// How many were made to it, trusted or not.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

fn serve(mut stream: StreamOwned<ServerConnection, TcpStream>, requests: &AtomicUsize) {
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(amount @ 1..) = stream.read(&mut buffer) {
        text.extend_from_slice(&buffer[..amount]);
        if !text.ends_with(b"secret") {
            continue;
        }
        if text.starts_with(b"POST /slow ") {
            thread::sleep(ms(1_000));
        }
        let is_last = text.starts_with(b"POST /close ");
        let last = if is_last { "Connection: close\r\n" } else { "" };
        requests.fetch_add(1, Ordering::SeqCst);
        text.clear();
        let _ = write!(stream, "HTTP/1.1 200 OK\r\n{last}Content-Length: 0\r\n\r\n");
        let _ = stream.flush();
        if is_last {
            stream.conn.send_close_notify();
            let _ = stream.flush();
            return;
        }
    }
}
