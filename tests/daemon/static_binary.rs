//! The static binary as `scripts/build-static` makes it, in a root directory that holds nothing else
//! but `/etc/resolv.conf`, `/etc/hosts` and a CA certificate: it starts, finds Redis and recipients
//! by name through a real DNS server, and delivers over http and https.
//!
//! The first run builds it, which takes minutes; later ones find it built.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::support::{Agent, Answer, Redis, SOON, Sink, TempDir, eventually, wire};

/// What the binary may weigh, in bytes: 5 MiB. It was 4,330,648 when this was written.
const MOST: u64 = 5 << 20;

fn build() -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/build-static");
    let output = Command::new(script).stdin(Stdio::null()).output().expect("scripts/build-static can be run");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "scripts/build-static: {said}");
    let path = PathBuf::from(String::from_utf8(output.stdout).unwrap().trim());
    assert!(path.is_file(), "{path:?}: {said}");
    path
}

#[test]
fn the_static_binary_delivers_from_an_empty_root_directory() {
    let binary = build();
    let size = fs::metadata(&binary).unwrap().len();
    assert!(size < MOST, "{size} bytes");
    if fs::metadata("/proc/self").unwrap().uid() == 0 {
        return deliver_from_an_empty_root(&binary);
    }
    // Port 53 and chroot are for root: so become root of namespaces of one's own, and run there.
    let inside = format!(
        "ip link set lo up && exec '{}' --exact --include-ignored --nocapture inside_namespaces",
        std::env::current_exe().unwrap().display()
    );
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "sh", "-c", &inside])
        .env("STATIC_BINARY", &binary)
        .output()
        .expect("unshare is part of every Debian");
    let said = [output.stdout, output.stderr].concat();
    assert!(
        output.status.success(),
        "as root, or where user namespaces are allowed: {}",
        String::from_utf8_lossy(&said)
    );
}

#[test]
#[ignore = "the test above runs it, as root of a namespace"]
fn inside_namespaces() {
    deliver_from_an_empty_root(Path::new(&std::env::var_os("STATIC_BINARY").expect("set by the test above")));
}

fn deliver_from_an_empty_root(binary: &Path) {
    let redis = Redis::start();
    let sink = Sink::new(|_| Answer::ok());
    let root = TempDir::new("root");
    let secure = TlsRecipient::start("secure.test", &root.path().join("ca.pem"));
    let (redis_host, redis_port) = host_and_port(&redis.address());
    let (sink_host, sink_port) = host_and_port(&sink.address().to_string());
    let secure_host = *secure.address.ip();
    let dns = dns(vec![("redis.test", redis_host), ("recipient.test", sink_host), ("secure.test", secure_host)]);

    fs::copy(binary, root.path().join("acapy-deliver")).unwrap();
    fs::create_dir(root.path().join("etc")).unwrap();
    fs::write(root.path().join("etc/resolv.conf"), format!("nameserver {dns}\noptions timeout:2 attempts:5\n"))
        .unwrap();
    fs::write(root.path().join("etc/hosts"), format!("{sink_host} by-hosts.test\n")).unwrap();

    let version = Command::new("chroot").arg(root.path()).args(["/acapy-deliver", "--version"]).output().unwrap();
    let said = String::from_utf8_lossy(&version.stdout);
    assert!(version.status.success() && said.contains(env!("CARGO_PKG_VERSION")), "{version:?}");

    // There are no roots of a system there, which is no trouble beside the bundled ones.
    let queue = format!("redis://redis.test:{redis_port}");
    let checked = Command::new("chroot")
        .arg(root.path())
        .args(["/acapy-deliver", "check", "-oq", &queue])
        .env_remove("SSL_CERT_FILE")
        .env_remove("SSL_CERT_DIR")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&checked.stdout);
    let roots: Vec<&str> = said.lines().filter(|line| line.contains("roots")).collect();
    assert_eq!(roots.len(), 1, "{said}");
    let n_bundled =
        roots[0].strip_prefix("ok    roots         ").and_then(|words| words.strip_suffix(" bundled, 0 of the system"));
    assert!(n_bundled.is_some_and(|n| n.parse::<usize>().is_ok_and(|n| n > 100)), "{said}");

    redis.push(&wire::envelope(&format!("http://recipient.test:{sink_port}/"), b"through DNS"));
    redis.push(&wire::envelope(&format!("http://by-hosts.test:{sink_port}/"), b"through /etc/hosts"));
    redis.push(&wire::envelope(&format!("https://secure.test:{}/", secure.address.port()), b"through TLS"));
    redis.push(&wire::envelope("http://nowhere.test/", b"to nobody"));
    let mut command = Command::new("chroot");
    command.arg(root.path()).arg("/acapy-deliver").env_clear().args([
        "-oq",
        &queue,
        "--ca-file",
        "/ca.pem",
        "--status-addr",
        "127.0.0.1:0",
    ]);
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    let mut agent = Agent::spawn(command);
    eventually("two arrive over http", SOON, || sink.n_delivered() == 2);
    eventually("one arrives over https", SOON, || secure.requests.load(Ordering::SeqCst) == 1);
    agent.wait_log("http://nowhere.test:80 is down");
    eventually("what has no address waits", SOON, || {
        let counts = redis.counts();
        (counts.messages, counts.waiting) == (1, 1)
    });
    let log = agent.log();
    assert!(log.contains("status is served at"), "{log}");
    // No roots of a system are no trouble beside the bundled ones.
    assert!(!log.contains("roots"), "{log}");
    agent.term();
    assert_eq!(agent.wait_exit(SOON), Some(0));
}

fn host_and_port(address: &str) -> (Ipv4Addr, u16) {
    let address: SocketAddr = address.parse().unwrap();
    match address.ip() {
        IpAddr::V4(host) => (host, address.port()),
        IpAddr::V6(host) => panic!("the fixtures listen on IPv4, not {host}"),
    }
}

/// A name server on port 53 of a loopback address of its own, for as long as the tests run: it
/// knows the IPv4 addresses of these names, and that there are no others.
fn dns(names: Vec<(&'static str, Ipv4Addr)>) -> Ipv4Addr {
    let low = std::process::id() & 0xffff;
    let address = Ipv4Addr::new(127, 53, (low >> 8) as u8, low as u8);
    let socket = UdpSocket::bind((address, 53)).expect("port 53 of a loopback address is free, and we are root");
    thread::spawn(move || {
        let mut question = [0; 512];
        while let Ok((n, asker)) = socket.recv_from(&mut question) {
            if let Some(answer) = answer(&question[..n], &names) {
                let _ = socket.send_to(&answer, asker);
            }
        }
    });
    address
}

/// The header (12 bytes), the question as it came, and one address if there is one.
fn answer(query: &[u8], names: &[(&str, Ipv4Addr)]) -> Option<Vec<u8>> {
    let (mut name, mut at) = (String::new(), 12);
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        let label = query.get(at..at + length)?;
        name = format!("{name}{}{}", if name.is_empty() { "" } else { "." }, String::from_utf8_lossy(label));
        at += length;
    }
    let end = at + 4;
    let is_a = query.get(at..at + 2)? == [0, 1];
    let known = names.iter().find(|(known, _)| name.eq_ignore_ascii_case(known));
    let found = known.filter(|_| is_a);
    let code = if known.is_some() { 0 } else { 3 }; // no error, or no such name
    let mut answer = query.get(..2)?.to_vec();
    answer.extend([0x81, 0x80 | code, 0, 1, 0, u8::from(found.is_some()), 0, 0, 0, 0]);
    answer.extend(query.get(12..end)?);
    if let Some((_, address)) = found {
        // The name is that of the question; an address of the Internet, good for a minute.
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(address.octets());
    }
    Some(answer)
}

/// An https recipient that answers 200 and closes; lives as long as the tests.
struct TlsRecipient {
    address: std::net::SocketAddrV4,
    requests: Arc<AtomicUsize>,
}

impl TlsRecipient {
    /// With a certificate for this name, of an authority whose own certificate it writes.
    fn start(name: &str, ca_file: &Path) -> TlsRecipient {
        let mut ca = CertificateParams::new([]).unwrap();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_key = KeyPair::generate().unwrap();
        fs::write(ca_file, ca.self_signed(&ca_key).unwrap().pem()).unwrap();
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([name.to_string()]).unwrap();
        let certificate = params.signed_by(&key, &Issuer::new(ca, ca_key)).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config = ServerConfig::builder().with_no_client_auth();
        let config = Arc::new(config.with_single_cert(vec![certificate.der().clone()], key).unwrap());

        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let SocketAddr::V4(address) = listener.local_addr().unwrap() else { unreachable!("bound to IPv4") };
        let requests = Arc::new(AtomicUsize::new(0));
        let counted = requests.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let _ = stream.set_read_timeout(Some(SOON));
                let mut stream = StreamOwned::new(ServerConnection::new(config.clone()).unwrap(), stream);
                let (mut request, mut chunk) = (Vec::new(), [0; 4096]);
                while !request.ends_with(b"through TLS") {
                    match stream.read(&mut chunk) {
                        Ok(n) if n > 0 => request.extend(&chunk[..n]),
                        _ => break,
                    }
                }
                if request.starts_with(b"POST / HTTP/1.1\r\n") && request.ends_with(b"through TLS") {
                    counted.fetch_add(1, Ordering::SeqCst);
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
                    stream.conn.send_close_notify();
                    let _ = stream.flush();
                }
            }
        });
        TlsRecipient { address, requests }
    }
}
