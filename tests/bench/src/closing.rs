//! A recipient that takes one message on a connection and ends it: a POST or one over WebSocket, plain or by
//! TLS, whichever comes, so that both ways are measured against the same. As many threads as
//! connections it may serve at once, each of which accepts for itself.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::ground::TempDir;
use crate::load::origin;

const THREADS: usize = 128;
/// Sessions that may be resumed: more than there are origins times connections at once.
const SESSIONS: usize = 10_000;

/// At every address of this machine, until the process ends.
pub struct Closing {
    dir: TempDir,
    pub plain: u16,
    pub tls: u16,
}

impl Closing {
    /// With a certificate for so many origins.
    pub fn start(origins: usize) -> Closing {
        let dir = TempDir::new("closing");
        let names: Vec<String> = (0..origins).map(|n| origin(n).to_string()).collect();
        let made = rcgen::generate_simple_self_signed(names).expect("a certificate can be made");
        std::fs::write(dir.path().join("cert.pem"), made.cert.pem()).expect("the directory can be written to");
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has them")
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key.into())
            .expect("key and certificate fit");
        config.session_storage = rustls::server::ServerSessionMemoryCache::new(SESSIONS);
        let config = Arc::new(config);
        let plain = listen(|mut stream| serve(&mut stream));
        let tls = listen(move |stream| {
            let conn = ServerConnection::new(config.clone()).map_err(io::Error::other)?;
            let mut stream = StreamOwned::new(conn, stream);
            serve(&mut stream)?;
            stream.conn.send_close_notify();
            stream.flush()
        });
        Closing { dir, plain, tls }
    }

    /// The root that its certificate leads to: itself.
    pub fn ca_file(&self) -> PathBuf {
        self.dir.path().join("cert.pem")
    }
}

fn listen(serve: impl Fn(TcpStream) -> io::Result<()> + Clone + Send + 'static) -> u16 {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("there are sockets");
    socket.bind(&std::net::SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)).into()).expect("there are ports");
    socket.listen(4096).expect("it is bound");
    let listener = TcpListener::from(socket);
    for _ in 0..THREADS {
        let (listener, serve) = (listener.try_clone().expect("there are descriptors"), serve.clone());
        thread::spawn(move || {
            loop {
                if let Ok((stream, _)) = listener.accept() {
                    let _ = stream.set_nodelay(true);
                    // What breaks is the agent's to see.
                    let _ = serve(stream);
                }
            }
        });
    }
    listener.local_addr().expect("it is bound").port()
}

/// One message, and the end.
fn serve(stream: &mut (impl Read + Write)) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(8192);
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        more(stream, &mut bytes)?;
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    bytes.drain(..end);
    let value = |name: &str| {
        let line = head.lines().find(|line| line.len() > name.len() && line[..name.len()].eq_ignore_ascii_case(name));
        line.map(|line| line[name.len()..].trim())
    };
    let Some(key) = value("Sec-WebSocket-Key:") else {
        let length: usize = value("Content-Length:").and_then(|text| text.parse().ok()).unwrap_or(0);
        while bytes.len() < length {
            more(stream, &mut bytes)?;
        }
        return stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    };
    let text = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let accept = BASE64_STANDARD.encode(ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes()));
    let answer = format!(
        "HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    stream.write_all(answer.as_bytes())?;
    // The message's frame, of 126 bytes to 64 kB, and the close frame of eight.
    let length = loop {
        match bytes[..] {
            [_, short, high, low, ..] if short & 127 == 126 => break 8 + (usize::from(high) << 8 | usize::from(low)),
            [_, _, _, _, ..] => return Err(io::Error::other("a frame of another size")),
            _ => more(stream, &mut bytes)?,
        }
    };
    while bytes.len() < length + 8 {
        more(stream, &mut bytes)?;
    }
    stream.write_all(&[0x88, 2, 3, 0xe8])
}

fn more(stream: &mut impl Read, bytes: &mut Vec<u8>) -> io::Result<()> {
    let mut piece = [0; 8192];
    match stream.read(&mut piece)? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        amount => {
            bytes.extend_from_slice(&piece[..amount]);
            Ok(())
        }
    }
}
