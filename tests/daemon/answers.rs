//! Recipients that answer oddly: what counts as an answer, to which message, and how long it is
//! waited for. The recipients are written by hand, byte by byte; every kind of answer, one by one,
//! is tested in `tests/library/recipients.rs`.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::wire::{envelope, envelope_with, numbered};
use crate::support::{Agent, Redis, SOON, TempDir, eventually};

/// A recipient that gives each connection, with its number from 0, to a function in its own thread.
struct Recipient {
    address: SocketAddr,
    stopped: Arc<AtomicBool>,
}

impl Recipient {
    fn new(serve: impl Fn(TcpStream, usize) + Send + Sync + 'static) -> Recipient {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let recipient = Recipient { address: listener.local_addr().unwrap(), stopped: Arc::default() };
        let (stopped, serve) = (recipient.stopped.clone(), Arc::new(serve));
        thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let serve = serve.clone();
                thread::spawn(move || serve(stream.unwrap(), number));
            }
        });
        recipient
    }

    fn url(&self) -> String {
        format!("http://{}/", self.address)
    }
}

impl Drop for Recipient {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
    }
}

/// The body of the next request; `None` when the connection ends before it.
fn read_request(stream: &mut impl Read) -> Option<Vec<u8>> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    stream.read_exact(&mut body).ok()?;
    Some(body)
}

#[test]
fn a_message_counts_as_delivered_at_its_status_however_slowly_the_body_follows() {
    let redis = Redis::start();
    let recipient = Recipient::new(|mut stream, _| {
        if read_request(&mut stream).is_some() {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n").unwrap();
            while stream.write_all(b"x").is_ok() {
                thread::sleep(Duration::from_millis(20));
            }
        }
    });
    redis.push_all(numbered(&recipient.url(), 5));
    let _agent = Agent::start(&redis, &["--endpoint-concurrency", "1"]);
    redis.wait_empty(SOON);
    assert_eq!(redis.counts().dead, 0);
}

#[test]
fn no_message_is_delivered_by_an_answer_that_came_before_it_was_asked_for() {
    let redis = Redis::start();
    let (dir, config) = authority("localhost");
    let answered = Arc::new(Mutex::new(Vec::new()));
    let (noted, n_unanswered) = (answered.clone(), Arc::new(AtomicUsize::new(0)));
    let unanswered = n_unanswered.clone();
    let recipient = Recipient::new(move |stream, number| {
        let conn = rustls::ServerConnection::new(config.clone()).unwrap();
        let mut stream = rustls::StreamOwned::new(conn, stream);
        let mut answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX: ".to_vec();
        if number == 0 {
            // As much as is read at once, and answers to three requests more.
            answer.resize(8188, b'x');
            answer.extend(b"\r\n\r\n");
            answer.extend(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".repeat(3));
        } else {
            answer.extend(b"y\r\n\r\n");
        }
        let mut n = 0;
        while let Some(body) = read_request(&mut stream) {
            if number == 0 && n > 0 {
                unanswered.fetch_add(1, Ordering::SeqCst);
            } else {
                noted.lock().unwrap().push(String::from_utf8(body).unwrap());
                if stream.write_all(&answer).is_err() {
                    return;
                }
            }
            n += 1;
        }
    });
    let url = format!("https://localhost:{}/", recipient.address.port());
    redis.push_all(numbered(&url, 4));
    let ca_file = dir.path().join("ca.pem").display().to_string();
    let _agent = Agent::start(&redis, &["--ca-file", &ca_file, "--endpoint-concurrency", "1"]);
    redis.wait_empty(SOON);
    let mut answered = answered.lock().unwrap().clone();
    answered.sort();
    assert_eq!(answered, ["message 0", "message 1", "message 2", "message 3"]);
    assert_eq!(n_unanswered.load(Ordering::SeqCst), 0);
}

/// The bodies of requests, and when they had come.
type Seen = Arc<Mutex<Vec<(String, Instant)>>>;

/// Answers the first request on each connection; reads the second, waits, and closes without a word.
fn closing_at_the_second(after: Duration) -> (Recipient, Seen) {
    let seen = Seen::default();
    let noted = seen.clone();
    let recipient = Recipient::new(move |mut stream, _| {
        for is_answered in [true, false] {
            let Some(body) = read_request(&mut stream) else { return };
            noted.lock().unwrap().push((String::from_utf8(body).unwrap(), Instant::now()));
            if is_answered {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
            } else {
                thread::sleep(after);
            }
        }
    });
    (recipient, seen)
}

fn watched(redis: &Redis, options: &[&str]) -> Agent {
    let mut command = Agent::command();
    command.args(["-oq", &redis.url(), "--status-addr", "127.0.0.1:0"]).args(options).env("RUST_LOG", "debug");
    Agent::spawn(command)
}

/// How often the agent says that it sent a request once more within its attempt.
fn repeated(agent: &Agent) -> u64 {
    agent.wait_log("status is served at http://");
    let log = agent.log();
    let address = log.split("served at http://").nth(1).unwrap().split('/').next().unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap();
    let value = page.lines().find_map(|line| line.strip_prefix("acapy_deliver_repeated_total "));
    value.expect("the counter is on the page").parse().unwrap()
}

#[test]
fn a_message_that_was_read_before_its_connection_closed_comes_again_only_after_its_backoff() {
    let redis = Redis::start();
    let (recipient, seen) = closing_at_the_second(Duration::from_millis(500));
    redis.push_all(numbered(&recipient.url(), 2));
    let agent = watched(&redis, &["--retry-first", "3s", "--endpoint-concurrency", "1"]);
    redis.wait_empty(SOON);
    let copies: Vec<Instant> =
        seen.lock().unwrap().iter().filter(|(body, _)| body == "message 1").map(|(_, at)| *at).collect();
    assert_eq!(copies.len(), 2);
    // Half a second of work, and 3 s that may be a fifth less.
    let apart = copies[1] - copies[0];
    assert!(apart >= Duration::from_millis(2800), "the second copy came after {apart:?}");
    assert_eq!(repeated(&agent), 0);
}

#[test]
fn a_request_under_which_an_idle_connection_closed_is_sent_once_more_counted_and_logged() {
    let redis = Redis::start();
    let (recipient, seen) = closing_at_the_second(Duration::ZERO);
    // On a machine that is busy a close may come too late, and is a failed attempt then.
    redis.push_all(numbered(&recipient.url(), 20));
    let agent = watched(&redis, &["--retry-first", "100ms", "--endpoint-concurrency", "1"]);
    redis.wait_empty(SOON);
    let n = repeated(&agent);
    let log = agent.log();
    let n_lines = log.lines().filter(|line| line.contains("sent once more on a new one")).count();
    let n_failed = log.lines().filter(|line| line.contains(": later: ")).count();
    assert!(n >= 1, "{n_failed} failed");
    assert_eq!(n_lines as u64, n);
    assert_eq!(seen.lock().unwrap().len() as u64, 20 + n + n_failed as u64);
}

#[test]
fn a_status_counts_though_the_headers_around_it_cannot_be_read() {
    let redis = Redis::start();
    let n_requests = Arc::new(AtomicUsize::new(0));
    let counter = n_requests.clone();
    let recipient = Recipient::new(move |mut stream, _| {
        while read_request(&mut stream).is_some() {
            let answer = match counter.fetch_add(1, Ordering::SeqCst) % 4 {
                0 => "HTTP/1.1 100 Continue\r\nX: y\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_string(),
                1 => format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: y\r\n".repeat(200)),
                2 => "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nok".to_string(),
                _ => "HTTP/1.1 200 OK\r\nno header\r\n\r\n".to_string(),
            };
            if stream.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    });
    redis.push_all(numbered(&recipient.url(), 40));
    let _agent = Agent::start(&redis, &[]);
    redis.wait_empty(SOON);
    assert_eq!(n_requests.load(Ordering::SeqCst), 40, "none came twice");
}

#[test]
fn a_recipient_that_refuses_a_large_message_without_reading_it_is_heard_at_once() {
    let redis = Redis::start();
    let recipient = Recipient::new(|mut stream, _| {
        let mut part = [0; 64 * 1024];
        let n = stream.read(&mut part).unwrap();
        let small = part[..n].ends_with(b"small");
        let answer: &[u8] = match small {
            true => b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            false => b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n",
        };
        stream.write_all(answer).unwrap();
        if !small {
            // Neither read on nor closed before the test has ended.
            thread::sleep(SOON);
        }
    });
    redis.push(&envelope(&recipient.url(), &vec![b'x'; 16 << 20]));
    let agent = Agent::start(&redis, &[]);
    eventually("the large one is dead", Duration::from_secs(10), || redis.counts().dead == 1);
    let letter = &redis.dead()[0];
    assert!(letter.history.contains("413 Payload Too Large"), "{}", letter.history);
    redis.push(&envelope(&recipient.url(), b"small"));
    redis.wait_empty_but_dead(SOON);
    assert!(!agent.log().contains("is down"), "its lane stayed open");
}

#[test]
fn a_header_that_cannot_be_sent_costs_its_message_alone() {
    let redis = Redis::start();
    let n_requests = Arc::new(AtomicUsize::new(0));
    let counter = n_requests.clone();
    let recipient = Recipient::new(move |mut stream, _| {
        while read_request(&mut stream).is_some() {
            counter.fetch_add(1, Ordering::SeqCst);
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
        }
    });
    redis.push(&envelope_with(&recipient.url(), &[("Authorization", "Bearer caf\u{e9}")], b"x"));
    redis.push_all(numbered(&recipient.url(), 5));
    let agent = Agent::start(&redis, &[]);
    redis.wait_empty_but_dead(SOON);
    assert_eq!(n_requests.load(Ordering::SeqCst), 5);
    let letter = &redis.dead()[0];
    assert!(letter.history.contains("header Authorization has byte 0xc3"), "{}", letter.history);
    assert!(!agent.log().contains("is down"), "its lane stayed open");
}

/// A certificate for this name, and a directory with the one of its authority in `ca.pem`.
fn authority(name: &str) -> (TempDir, Arc<rustls::ServerConfig>) {
    let dir = TempDir::new("authority");
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new([]).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    std::fs::write(dir.path().join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
    let issuer = rcgen::Issuer::new(params, key);
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new([name.to_string()]).unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der());
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key.into())
        .unwrap();
    (dir, Arc::new(config))
}
