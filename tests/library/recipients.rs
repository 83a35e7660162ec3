//! Recipients as they may be: slow, broken, hostile. Each costs one attempt,
//! bounded in time and memory, and is put into the right words. Real sockets and
//! real TLS; the servers are written by hand, byte by byte. Those of HTTP are here, and beside them
//! those of WebSocket.

mod websocket;

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use acapy_deliver::internals::delivery::Proxies;
use acapy_deliver::internals::delivery::{Options, Poster};
use acapy_deliver::internals::guard::Guard;
use acapy_deliver::internals::policy::{Attempt, Failure};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
const PAYLOAD: &[u8] = b"{\"protected\":\"...\"}";

/// Far more than any attempt of these tests may take, with a machine that is busy.
const BOUND: Duration = Duration::from_secs(10);

// ---- the recipients' side

/// A server that gives each connection, with its number from 0, to a function of its own thread.
struct Server {
    addr: SocketAddr,
    n_accepted: Arc<AtomicUsize>,
    stopped: Arc<AtomicBool>,
}

impl Server {
    fn start(serve: impl Fn(TcpStream, usize) + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server =
            Server { addr: listener.local_addr().unwrap(), n_accepted: Arc::default(), stopped: Arc::default() };
        let (n_accepted, stopped) = (server.n_accepted.clone(), server.stopped.clone());
        let serve = Arc::new(serve);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(SeqCst) {
                    return;
                }
                let number = n_accepted.fetch_add(1, SeqCst);
                let serve = serve.clone();
                std::thread::spawn(move || serve(stream.unwrap(), number));
            }
        });
        server
    }

    /// Answers every request on every connection with these bytes.
    fn answering(answer: impl AsRef<[u8]> + Send + Sync + 'static) -> Server {
        Server::start(move |mut stream, _| {
            while read_request(&mut stream).is_some() {
                if stream.write_all(answer.as_ref()).is_err() {
                    return;
                }
            }
        })
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }

    fn n_accepted(&self) -> usize {
        self.n_accepted.load(SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopped.store(true, SeqCst);
        let _ = TcpStream::connect(self.addr);
    }
}

struct Received {
    line: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Received {
    fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(n, _)| n == name);
        let value = found.next().map(|(_, value)| value.as_str());
        assert!(found.next().is_none(), "more than one {name}");
        value
    }
}

/// `None` when the connection ends before a whole request.
fn read_request(stream: &mut impl Read) -> Option<Received> {
    let head = read_head(stream)?;
    let mut lines = head.trim_end().split("\r\n");
    let line = lines.next()?.to_string();
    let headers: Vec<(String, String)> = lines
        .map(|line| line.split_once(": ").unwrap())
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_string()))
        .collect();
    let length =
        headers.iter().find(|(name, _)| name == "content-length").map_or(0, |(_, value)| value.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    Some(Received { line, headers, body })
}

fn read_head(stream: &mut impl Read) -> Option<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => return None,
        }
    }
    Some(String::from_utf8(head).unwrap())
}

/// Closes with RST in place of FIN.
fn reset(stream: TcpStream) {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
}

/// Writes the same again and again until the other side has had enough; returns how much it took.
fn flood(stream: &mut (impl Write + ?Sized), bytes: &[u8]) -> usize {
    let block = bytes.repeat(8192_usize.div_ceil(bytes.len()));
    let mut total = 0;
    while total < 1 << 30 {
        match stream.write(&block) {
            Ok(amount) => total += amount,
            Err(_) => break,
        }
    }
    total
}

/// Writes the same again and again, slowly, until the other side is gone.
fn trickle(stream: &mut TcpStream, bytes: &[u8]) {
    for _ in 0..1000 {
        if stream.write_all(bytes).is_err() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

// ---- our side

fn options() -> Options {
    Options {
        connect_timeout: Duration::from_secs(5),
        timeout: Duration::from_secs(5),
        workers: 8,
        ..Options::default()
    }
}

/// For recipients that can be waited out only.
fn impatient() -> Poster {
    Poster::new(Options {
        connect_timeout: Duration::from_millis(400),
        timeout: Duration::from_millis(500),
        ..options()
    })
    .unwrap()
}

fn poster() -> Poster {
    Poster::new(options()).unwrap()
}

fn post(poster: &Poster, url: &str) -> Attempt {
    post_with(poster, url, &[("Content-Type", "application/didcomm-envelope-enc")], PAYLOAD)
}

fn post_with(poster: &Poster, url: &str, headers: &[(&str, &str)], payload: &[u8]) -> Attempt {
    let headers = headers.iter().map(|(name, value)| (*name, value.as_bytes()));
    let started = Instant::now();
    let attempt = poster.post(&url.parse().unwrap(), headers, payload, None);
    let took = started.elapsed();
    assert!(took < BOUND, "{took:?} for {attempt:?}");
    attempt
}

#[track_caller]
fn assert_status(attempt: Attempt, expected: u16) {
    match attempt {
        Attempt::Answered { status, note: None, .. } if status == expected => {}
        other => panic!("expected status {expected}, got {other:?}"),
    }
}

#[track_caller]
fn assert_note(attempt: Attempt, expected: u16, words: &str) {
    match attempt {
        Attempt::Answered { status, note: Some(note), .. } if status == expected && note.contains(words) => {}
        other => panic!("expected status {expected} with '{words}', got {other:?}"),
    }
}

#[track_caller]
fn assert_failed(attempt: Attempt, expected: Failure, words: &str) {
    match attempt {
        Attempt::Failed { failure, error } if failure == expected && error.contains(words) => {}
        other => panic!("expected {expected:?} with '{words}', got {other:?}"),
    }
}

#[track_caller]
fn assert_refused(attempt: Attempt, words: &str) {
    match attempt {
        Attempt::Refused { reason } if reason.contains(words) => {}
        other => panic!("expected a refusal with '{words}', got {other:?}"),
    }
}

// ---- what is sent

#[test]
fn request_is_sent_exactly_and_without_headers_of_the_connection() {
    let (send, received) = mpsc::channel();
    let server = Server::start(move |mut stream, _| {
        while let Some(request) = read_request(&mut stream) {
            send.send(request).unwrap();
            stream.write_all(OK).unwrap();
        }
    });
    let poster = Poster::new(Options { id_header: "X-Message-Id".parse().ok(), ..options() }).unwrap();
    let headers = [
        ("Content-Type", "application/ssi-agent-wire"),
        ("X-Twice", "one"),
        ("X-Twice", "two"),
        ("X-Odd", "a\u{e9}"),
        ("Host", "elsewhere.example"),
        ("Content-Length", "3"),
        ("Transfer-Encoding", "chunked"),
        ("Connection", "close"),
        ("Keep-Alive", "timeout=1"),
        ("TE", "trailers"),
        ("Trailer", "X"),
        ("Upgrade", "h2c"),
        ("Expect", "100-continue"),
        ("Proxy-Authorization", "Basic x"),
    ];
    let uri = server.url("/inbox?x=1").parse().unwrap();
    let id = "0000000000000042";
    let as_bytes = headers.iter().map(|(n, v)| (*n, v.as_bytes()));
    assert_status(poster.post(&uri, as_bytes, PAYLOAD, Some(id)), 200);

    let request = received.recv().unwrap();
    assert_eq!(request.line, "POST /inbox?x=1 HTTP/1.1");
    assert_eq!(request.body, PAYLOAD);
    let mut sent = request.headers.clone();
    sent.sort();
    let agent = concat!("acapy-deliver/", env!("CARGO_PKG_VERSION"));
    let host = server.addr.to_string();
    let length = PAYLOAD.len().to_string();
    let mut expected = [
        ("accept", "*/*"),
        ("content-length", &length),
        ("content-type", "application/ssi-agent-wire"),
        ("host", &host),
        ("user-agent", agent),
        ("x-message-id", id),
        ("x-odd", "a\u{e9}"),
        ("x-twice", "one"),
        ("x-twice", "two"),
    ]
    .map(|(name, value)| (name.to_string(), value.to_string()))
    .to_vec();
    expected.sort();
    assert_eq!(sent, expected);

    let own = [("User-Agent", "other/1"), ("Accept", "text/plain")];
    assert_status(post_with(&poster, &server.url("/"), &own, b""), 200);
    let request = received.recv().unwrap();
    assert_eq!(request.header("user-agent"), Some("other/1"));
    assert_eq!(request.header("accept"), Some("text/plain"));
    assert_eq!(request.header("content-length"), Some("0"));
    assert_eq!(request.header("x-message-id"), None);
}

#[test]
fn large_payloads_and_headers_arrive_whole() {
    let (send, received) = mpsc::channel();
    let server = Server::start(move |mut stream, _| {
        while let Some(request) = read_request(&mut stream) {
            send.send(request).unwrap();
            stream.write_all(OK).unwrap();
        }
    });
    let poster = poster();
    for size in [0, 1, 8 * 1024, 40_000, 3_000_000] {
        for header_size in [1, 7_000, 9_000, 30_000] {
            let payload: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
            let value = "v".repeat(header_size);
            let headers = [("X-A", "a"), ("X-Long", &value), ("X-Z", "z")];
            assert_status(post_with(&poster, &server.url("/"), &headers, &payload), 200);
            let request = received.recv().unwrap();
            assert_eq!(request.header("x-long"), Some(value.as_str()));
            assert!(request.body == payload, "payload of {size}");
        }
    }
    assert_eq!(server.n_accepted(), 1);
    let value = "v".repeat(40_000);
    let attempt = post_with(&poster, &server.url("/"), &[("X-Long", &value)], PAYLOAD);
    assert_refused(attempt, "a header is over 32 kB");
}

#[test]
fn what_http_does_not_allow_is_refused_and_not_sent() {
    let server = Server::answering(OK);
    for (name, value) in [("X Y", "v"), ("X", "a\r\nInjected: yes"), ("", "v"), ("X", "\0")] {
        let attempt = post_with(&poster(), &server.url("/"), &[(name, value)], PAYLOAD);
        assert_refused(attempt, "not allowed by HTTP");
    }
    assert_eq!(server.n_accepted(), 0);
}

#[test]
fn header_that_cannot_be_sent_is_the_messages_own_fault_and_nothing_is_sent() {
    let server = Server::answering(OK);
    for name in ["Authorization", "authorization"] {
        let attempt = post_with(&poster(), &server.url("/"), &[(name, "Bearer caf\u{e9}")], PAYLOAD);
        assert_refused(attempt, "header authorization");
    }
    assert_eq!(server.n_accepted(), 0);
}

// ---- answers

#[test]
fn statuses_and_retry_after_come_back() {
    let poster = poster();
    for status in [200, 202, 204, 304, 400, 404, 410, 413, 500, 599] {
        let answer = format!("HTTP/1.1 {status} Whatever\r\nContent-Length: 0\r\n\r\n");
        let server = Server::answering(answer);
        assert_status(post(&poster, &server.url("/")), status);
    }
    let server = Server::answering("HTTP/1.1 503 Busy\r\nRetry-After: 7\r\nContent-Length: 4\r\n\r\nbusy");
    let expected = Attempt::Answered { status: 503, retry_after: Some(Duration::from_secs(7)), note: None };
    assert_eq!(post(&poster, &server.url("/")), expected);
}

#[test]
fn interim_answers_are_passed_over() {
    let server = Server::answering(
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n\
         HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n",
    );
    assert_status(post(&poster(), &server.url("/")), 202);
}

#[test]
fn endless_body_counts_by_its_status_and_is_cut_off() {
    for head in [
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
    ] {
        let (send, taken) = mpsc::channel();
        let server = Server::start(move |mut stream, _| {
            read_request(&mut stream);
            stream.write_all(head.as_bytes()).unwrap();
            let _ = send.send(flood(&mut stream, b"4\r\nabcd\r\n"));
        });
        assert_status(post(&poster(), &server.url("/")), 200);
        // What the kernel's buffers hold, and not what a reader of it all would take.
        let taken = taken.recv_timeout(BOUND).unwrap();
        assert!(taken < 32 << 20, "{taken} bytes taken");
    }
}

#[test]
fn trickled_body_counts_by_its_status_within_the_deadline() {
    let server = Server::start(|mut stream, _| {
        read_request(&mut stream);
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n";
        stream.write_all(head).unwrap();
        trickle(&mut stream, b"x");
    });
    let started = Instant::now();
    assert_status(post(&impatient(), &server.url("/")), 200);
    assert!(started.elapsed() < Duration::from_secs(3));
}

#[test]
fn body_that_does_not_come_is_not_waited_for_once_the_status_is_known() {
    let patient = Options { connect_timeout: Duration::from_secs(60), timeout: Duration::from_secs(60), ..options() };
    let poster = Poster::new(patient).unwrap();
    for head in [
        "HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\n\r\n",
    ] {
        for bytes in ["", "1\r\nx\r\n"] {
            let server = Server::start(move |mut stream, _| {
                read_request(&mut stream);
                stream.write_all(head.as_bytes()).unwrap();
                trickle(&mut stream, bytes.as_bytes());
                let _ = stream.read(&mut [0]);
            });
            let started = Instant::now();
            assert_status(post(&poster, &server.url("/")), 200);
            let took = started.elapsed();
            assert!(took < Duration::from_secs(3), "{took:?} for {head:?} and {bytes:?}");
            assert_eq!(poster.n_idle(), 0);
        }
    }
}

#[test]
fn body_that_comes_a_moment_after_its_status_is_read_and_the_connection_used_again() {
    let server = Server::start(|mut stream, _| {
        while read_request(&mut stream).is_some() {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n").unwrap();
            std::thread::sleep(Duration::from_millis(20));
            if stream.write_all(b"hello").is_err() {
                return;
            }
        }
    });
    let poster = poster();
    for _ in 0..10 {
        assert_status(post(&poster, &server.url("/")), 200);
    }
    // Not one only: a machine that is busy may be late by a quarter of a second.
    assert!(server.n_accepted() <= 5, "{}", server.n_accepted());
}

#[test]
fn trickled_headers_end_at_the_deadline() {
    let server = Server::start(|mut stream, _| {
        read_request(&mut stream);
        stream.write_all(b"HTTP/1.1 200 OK\r\nX: ").unwrap();
        trickle(&mut stream, b"x");
    });
    let started = Instant::now();
    let attempt = post(&impatient(), &server.url("/"));
    assert_failed(attempt, Failure::Timeout, "no answer within 500ms (127.0.0.1:");
    assert!(started.elapsed() < Duration::from_secs(3));
}

#[test]
fn silence_ends_at_the_deadline() {
    let server = Server::start(|mut stream, _| {
        read_request(&mut stream);
        let _ = stream.read(&mut [0]);
    });
    let started = Instant::now();
    let attempt = post(&impatient(), &server.url("/"));
    assert_failed(attempt, Failure::Timeout, "no answer within 500ms");
    let took = started.elapsed();
    assert!(took >= Duration::from_millis(490), "{took:?}");
    assert!(took < Duration::from_secs(3), "{took:?}");
}

#[test]
fn recipient_that_does_not_read_ends_at_the_deadline() {
    let payload = vec![b'x'; 32 << 20];
    let nothing = Server::start(|stream, _| {
        std::thread::sleep(Duration::from_secs(3));
        drop(stream);
    });
    let little = Server::start(|mut stream, _| {
        let mut few = [0; 2000];
        for _ in 0..300 {
            if stream.read(&mut few).is_err() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    });
    for server in [nothing, little] {
        let started = Instant::now();
        let attempt = post_with(&impatient(), &server.url("/"), &[], &payload);
        assert_failed(attempt, Failure::Timeout, "no answer within 500ms");
        assert!(started.elapsed() < Duration::from_secs(2));
    }
}

#[test]
fn headers_without_end_are_bounded() {
    for (first, again) in [("", "X-Filler: aaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n"), ("X: ", "a")] {
        let (send, taken) = mpsc::channel();
        let server = Server::start(move |mut stream, _| {
            read_request(&mut stream);
            let head = format!("HTTP/1.1 200 OK\r\n{first}");
            stream.write_all(head.as_bytes()).unwrap();
            let _ = send.send(flood(&mut stream, again.as_bytes()));
        });
        match post(&poster(), &server.url("/")) {
            Attempt::Answered { status: 200, note: Some(note), .. } => {
                let known = ["over 64 kB", "too many headers"];
                assert!(known.iter().any(|words| note.contains(words)), "{note}");
            }
            other => panic!("{other:?}"),
        }
        let taken = taken.recv_timeout(BOUND).unwrap();
        assert!(taken < 32 << 20, "{taken} bytes taken");
    }
}

#[test]
fn headers_of_many_kilobytes_are_still_read() {
    let value = "v".repeat(60_000);
    let server = Server::answering(format!("HTTP/1.1 200 OK\r\nX: {value}\r\nContent-Length: 0\r\n\r\n"));
    let poster = poster();
    for _ in 0..3 {
        assert_status(post(&poster, &server.url("/")), 200);
    }
    assert_eq!(server.n_accepted(), 1);
}

#[test]
fn flood_of_interim_answers_is_bounded() {
    for interim in ["HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 103 Early Hints\r\nA: b\r\n\r\n"] {
        let (send, taken) = mpsc::channel();
        let server = Server::start(move |mut stream, _| {
            read_request(&mut stream);
            let _ = send.send(flood(&mut stream, interim.as_bytes()));
        });
        let attempt = post(&poster(), &server.url("/"));
        assert_failed(attempt, Failure::Broken, "answer has no end within 512 kB");
        let taken = taken.recv_timeout(BOUND).unwrap();
        assert!(taken < 32 << 20, "{taken} bytes taken");
    }
}

#[test]
fn garbage_is_not_an_answer() {
    for garbage in [
        &b"SSH-2.0-OpenSSH_9.2\r\n"[..],
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 000 Zero\r\n\r\n",
        b"HTTP/3.7 200 OK\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nbad header line\r\n\r\n",
        b"<html>hello</html>\r\n\r\n",
    ] {
        let server = Server::start(move |mut stream, _| {
            read_request(&mut stream);
            stream.write_all(garbage).unwrap();
        });
        assert_failed(post(&poster(), &server.url("/")), Failure::Broken, "answer is not valid HTTP");
    }
}

#[test]
fn answer_with_a_status_and_unreadable_headers_counts_by_its_status() {
    let many = format!("HTTP/1.1 202 Accepted\r\n{}\r\n", "X: y\r\n".repeat(200));
    for (answer, status, words) in [
        ("HTTP/1.1 200 OK\r\nbad header line\r\n\r\n", 200, "header"),
        ("HTTP/1.1 200 OK\r\nContent-Length: nonsense\r\n\r\n", 200, "content-length"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok", 200, "content-length"),
        ("HTTP/1.0 204 No Content\r\nX\0: y\r\n\r\n", 204, "header"),
        (&many, 202, "too many headers"),
        ("HTTP/1.1 410 Gone\r\nbad header line\r\n\r\n", 410, "header"),
        ("HTTP/1.1 307 There\r\nLocation: /x\r\nbad header line\r\n\r\n", 307, "header"),
        ("HTTP/1.1 100 Continue\r\nX: y\r\n\r\nHTTP/1.1 500 Oops\r\nbad header line\r\n\r\n", 500, "header"),
    ] {
        let server = Server::answering(answer.to_string());
        let poster = poster();
        for n in 1..=2 {
            assert_note(post(&poster, &server.url("/")), status, words);
            assert_eq!((server.n_accepted(), poster.n_idle()), (n, 0), "{answer}");
        }
    }
}

#[test]
fn status_line_that_is_not_whole_is_no_answer() {
    for answer in ["HTTP/1.1 200 OK", "HTTP/1.1 20", "HTTP/1.1 200 OK\r\nX: y\r\n"] {
        let server = Server::start(move |mut stream, _| {
            read_request(&mut stream);
            stream.write_all(answer.as_bytes()).unwrap();
        });
        assert_failed(post(&poster(), &server.url("/")), Failure::Broken, "connection closed before an answer");
    }
}

#[test]
fn interim_answers_may_have_headers_and_come_at_any_time() {
    let server = Server::start(|mut stream, _| {
        while read_request(&mut stream).is_some() {
            for part in [
                "HTTP/1.1 100 Continue\r\nX: y\r\n\r\n",
                "HTTP/1.1 100 Continue\r\nContent-Length: 5\r\n",
                "\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\n",
                "Content-Length: 0\r\n\r\n",
            ] {
                stream.write_all(part.as_bytes()).unwrap();
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    });
    let poster = poster();
    for _ in 0..3 {
        assert_status(post(&poster, &server.url("/")), 200);
    }
    assert_eq!(server.n_accepted(), 1);
}

#[test]
fn compressed_bomb_is_not_unpacked() {
    let server = Server::start(|mut stream, _| {
        let request = read_request(&mut stream).unwrap();
        assert_eq!(request.header("accept-encoding"), None);
        let head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 60000\r\n\r\n";
        stream.write_all(head).unwrap();
        // The start of a gzip stream, and then what would be read only if it were unpacked.
        stream.write_all(b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03").unwrap();
        stream.write_all(&[0; 59_990]).unwrap();
        read_request(&mut stream).expect("a second request on the same connection");
        stream.write_all(OK).unwrap();
    });
    let poster = poster();
    assert_status(post(&poster, &server.url("/")), 200);
    assert_status(post(&poster, &server.url("/")), 200);
    assert_eq!(server.n_accepted(), 1);
}

#[test]
fn wrong_lengths_count_by_their_status_and_spoil_no_other_answer() {
    for answer in [
        // Too long: the rest must not be the next answer.
        &b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 500 Not yours\r\n\r\n"[..],
        // Too short.
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\nok",
        // Chunks that are none.
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nok\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\nok\r\n",
        // A body where none can be.
        b"HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\nok",
    ] {
        let status = if answer.starts_with(b"HTTP/1.1 204") { 204 } else { 200 };
        let server = Server::start(move |mut stream, number| {
            read_request(&mut stream);
            if number == 0 {
                stream.write_all(answer).unwrap();
                stream.shutdown(Shutdown::Write).unwrap();
                let _ = stream.read(&mut [0]);
            } else {
                stream.write_all(OK).unwrap();
            }
        });
        let poster = poster();
        let words = String::from_utf8_lossy(answer);
        let attempt = post(&poster, &server.url("/"));
        assert!(matches!(attempt, Attempt::Answered { status: s, .. } if s == status), "{words}: {attempt:?}");
        let attempt = post(&poster, &server.url("/"));
        assert!(matches!(attempt, Attempt::Answered { status: 200, .. }), "after {words}: {attempt:?}");
        assert_eq!(server.n_accepted(), 2, "{words}");
    }
}

#[test]
fn two_framings_at_once_spoil_no_other_answer() {
    let server = Server::start(|mut stream, number| {
        read_request(&mut stream);
        let answer: &[u8] = match number {
            0 => {
                b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n\
                  0\r\n\r\nHTTP/1.1 500 Not yours\r\nContent-Length: 0\r\n\r\n"
            }
            _ => OK,
        };
        stream.write_all(answer).unwrap();
    });
    let poster = poster();
    match post(&poster, &server.url("/")) {
        Attempt::Answered { status: 200, .. } => {}
        Attempt::Failed { failure: Failure::Broken, .. } => {}
        other => panic!("{other:?}"),
    }
    assert_status(post(&poster, &server.url("/")), 200);
}

#[test]
fn answer_given_before_the_request_is_read_is_heard() {
    let server = Server::start(|mut stream, _| {
        read_head(&mut stream);
        let answer = b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n";
        stream.write_all(answer).unwrap();
        // Closing with unread input resets the connection.
    });
    let payload = vec![b'x'; 16 << 20];
    let poster = poster();
    for _ in 0..3 {
        assert_status(post_with(&poster, &server.url("/"), &[], &payload), 413);
    }
    assert_eq!(server.n_accepted(), 3);
}

/// Reads no more than a request's head, says this, and neither reads on nor closes.
fn refuse_unread(stream: &mut (impl Read + Write), answer: &[u8]) {
    read_head(stream);
    stream.write_all(answer).unwrap();
    stream.flush().unwrap();
    // Until the test has ended, or nearly: the test's payload does not fit into any buffer.
    std::thread::sleep(Duration::from_secs(4));
}

const TOO_LARGE: &[u8] = b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n";

#[test]
fn answer_of_a_recipient_that_neither_reads_on_nor_closes_is_heard() {
    let payload = vec![b'x'; 32 << 20];
    let plain = Server::start(|mut stream, _| refuse_unread(&mut stream, TOO_LARGE));
    let started = Instant::now();
    assert_status(post_with(&poster(), &plain.url("/"), &[], &payload), 413);
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());

    let ca = Ca::new();
    let secure = ca.server(ca.certificate(&["localhost"], None), |stream| refuse_unread(stream, TOO_LARGE));
    let started = Instant::now();
    assert_status(post_with(&ca.poster(), &tls_url(&secure), &[], &payload), 413);
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());

    let (send, _asked) = mpsc::channel();
    let proxy = proxy_to(plain.addr, send);
    let poster = Poster::new(Options { proxies: proxies(&proxy.url("")), ..options() }).unwrap();
    let started = Instant::now();
    assert_status(post_with(&poster, "http://inside.example/", &[], &payload), 413);
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());

    // In a tunnel, and in one inside TLS.
    let (send, _asked) = mpsc::channel();
    let proxy = proxy_to(secure.addr, send);
    let secure_proxy = secure_proxy(&ca, secure.addr, Arc::default());
    for url in [proxy.url(""), format!("https://localhost:{}", secure_proxy.addr.port())] {
        let options = Options { proxies: proxies(&url), ca_file: Some(ca.file.clone()), ..options() };
        let poster = Poster::new(options).unwrap();
        let started = Instant::now();
        assert_status(post_with(&poster, &tls_url(&secure), &[], &payload), 413);
        assert!(started.elapsed() < Duration::from_secs(3), "through {url}: {:?}", started.elapsed());
    }
}

/// Says something, pauses longer than it is waited before it is looked for an
/// answer, reads the whole payload, and says the rest.
fn pause(stream: &mut (impl Read + Write), first: &str, rest: &str) {
    let head = read_head(stream).unwrap();
    stream.write_all(first.as_bytes()).unwrap();
    stream.flush().unwrap();
    std::thread::sleep(Duration::from_millis(700));
    let line = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; line.unwrap().parse().unwrap()];
    stream.read_exact(&mut body).expect("the whole payload comes");
    stream.write_all(rest.as_bytes()).unwrap();
    stream.flush().unwrap();
    let _ = stream.read(&mut [0]);
}

#[test]
fn recipient_that_pauses_after_an_answer_that_is_no_refusal_gets_the_whole_payload() {
    let payload = vec![b'x'; 32 << 20];
    let ca = Ca::new();
    for (first, rest) in [
        (
            "HTTP/1.1 100 Continue\r\nX: y\r\n\r\nHTTP/1.1 1",
            "02 Processing\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        ),
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no", "k"),
        ("HTTP/1.1 200 OK\r\nX: ", "y\r\nContent-Length: 0\r\n\r\n"),
    ] {
        let (done, whole) = mpsc::channel();
        let done_by_tls = done.clone();
        let plain = Server::start(move |mut stream, _| {
            pause(&mut stream, first, rest);
            done.send(()).unwrap();
        });
        let poster = poster();
        assert_status(post_with(&poster, &plain.url("/"), &[], &payload), 200);
        poster.close_idle();
        let secure = ca.server(ca.certificate(&["localhost"], None), move |stream| {
            pause(stream, first, rest);
            done_by_tls.send(()).unwrap();
        });
        let poster = ca.poster();
        assert_status(post_with(&poster, &tls_url(&secure), &[], &payload), 200);
        poster.close_idle();
        let mut n_posted = 2;
        // One is enough of what encrypts everything twice.
        if rest == "k" {
            let proxy = secure_proxy(&ca, secure.addr, Arc::default());
            let proxies = proxies(&format!("https://localhost:{}", proxy.addr.port()));
            let poster = Poster::new(Options { proxies, ca_file: Some(ca.file.clone()), ..options() }).unwrap();
            assert_status(post_with(&poster, &tls_url(&secure), &[], &payload), 200);
            n_posted += 1;
        }
        for _ in 0..n_posted {
            whole.recv_timeout(BOUND).expect("the whole payload came");
        }
    }
}

#[test]
fn resets_at_each_stage_are_told_apart_from_answers() {
    let at_once = Server::start(|stream, _| reset(stream));
    let in_request = Server::start(|mut stream, _| {
        let _ = stream.read(&mut [0; 10]);
        reset(stream);
    });
    let after_request = Server::start(|mut stream, _| {
        read_request(&mut stream);
        reset(stream);
    });
    for server in [at_once, in_request, after_request] {
        let attempt = post(&poster(), &server.url("/"));
        let Attempt::Failed { failure, error } = attempt else {
            panic!("{attempt:?}");
        };
        assert!(matches!(failure, Failure::Broken | Failure::Connect), "{error}");
        assert!(error.contains("before an answer") || error.contains("connection reset"), "{error}");
        assert_eq!(server.n_accepted(), 1, "a fresh connection is not tried twice");
    }
    let in_headers = Server::start(|mut stream, _| {
        read_request(&mut stream);
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Le").unwrap();
    });
    let attempt = post(&poster(), &in_headers.url("/"));
    assert_failed(attempt, Failure::Broken, "connection closed before an answer");
    let in_body = Server::start(|mut stream, _| {
        read_request(&mut stream);
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this";
        stream.write_all(answer).unwrap();
        // Not before the answer has been taken in, or the reset overtakes it.
        std::thread::sleep(Duration::from_millis(200));
        reset(stream);
    });
    assert_status(post(&poster(), &in_body.url("/")), 200);
}

// ---- connections

#[test]
fn connections_are_used_again() {
    for answer in [
        OK,
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\noops",
        b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n",
    ] {
        let server = Server::answering(answer);
        let poster = poster();
        for _ in 0..20 {
            let attempt = post(&poster, &server.url("/"));
            assert!(matches!(attempt, Attempt::Answered { .. }), "{attempt:?}");
        }
        let words = String::from_utf8_lossy(answer);
        assert_eq!(server.n_accepted(), 1, "{words}");
        assert_eq!(poster.n_idle(), 1, "{words}");
        poster.close_idle();
        assert_eq!(poster.n_idle(), 0);
        post(&poster, &server.url("/"));
        assert_eq!(server.n_accepted(), 2, "{words}");
    }
}

#[test]
fn connections_that_may_not_be_used_again_are_not() {
    for answer in [
        &b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"[..],
        b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
    ] {
        let server = Server::answering(answer);
        let poster = poster();
        for n in 1..=3 {
            let attempt = post(&poster, &server.url("/"));
            assert!(matches!(attempt, Attempt::Answered { .. }), "{attempt:?}");
            assert_eq!(server.n_accepted(), n);
            assert_eq!(poster.n_idle(), 0);
        }
    }
}

#[test]
fn many_workers_share_as_many_connections_as_they_need() {
    let server = Server::answering(OK);
    let poster = poster();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..50 {
                    assert_status(post(&poster, &server.url("/")), 200);
                }
            });
        }
    });
    assert!(server.n_accepted() <= 8, "{}", server.n_accepted());
    assert!(poster.n_idle() <= 8);
}

/// A close counts as an idle connection's only if it comes at once, which a busy
/// machine may miss: a scenario is played until the poster sent a request once more.
fn until_the_close_comes_in_time(scenario: impl Fn() -> (Poster, Attempt)) -> Attempt {
    let played = (0..20).find_map(|_| Some(scenario()).filter(|(poster, _)| poster.repeated().load(SeqCst) == 1));
    played.expect("a close within 100 ms").1
}

#[test]
fn idle_connection_closed_under_our_request_is_tried_again_once_on_a_fresh_one() {
    for by_reset in [false, true] {
        let attempt = until_the_close_comes_in_time(|| {
            let server = Server::start(move |mut stream, number| {
                read_request(&mut stream);
                stream.write_all(OK).unwrap();
                // The second request of the first connection meets a closing door.
                if read_request(&mut stream).is_some() && number > 0 {
                    stream.write_all(OK).unwrap();
                }
                if by_reset {
                    reset(stream);
                }
            });
            let poster = poster();
            assert_status(post(&poster, &server.url("/")), 200);
            let attempt = post(&poster, &server.url("/"));
            assert_eq!(server.n_accepted() as u64, 1 + poster.repeated().load(SeqCst));
            (poster, attempt)
        });
        assert_status(attempt, 200);
    }
    let attempt = until_the_close_comes_in_time(|| {
        let never_again = Server::start(|mut stream, number| {
            read_request(&mut stream);
            if number == 0 {
                stream.write_all(OK).unwrap();
                read_request(&mut stream);
            }
        });
        let poster = poster();
        assert_status(post(&poster, &never_again.url("/")), 200);
        let attempt = post(&poster, &never_again.url("/"));
        assert_eq!(never_again.n_accepted() as u64, 1 + poster.repeated().load(SeqCst));
        (poster, attempt)
    });
    assert_failed(attempt, Failure::Broken, "connection closed before an answer");
}

/// Answers one request a connection; what it does with a second is the caller's.
fn closing_at_the_second(after: Duration, by_reset: bool, bodies: mpsc::Sender<Vec<u8>>) -> Server {
    Server::start(move |mut stream, _| {
        let Some(request) = read_request(&mut stream) else { return };
        bodies.send(request.body).unwrap();
        stream.write_all(OK).unwrap();
        if let Some(request) = read_request(&mut stream) {
            bodies.send(request.body).unwrap();
            std::thread::sleep(after);
            if by_reset {
                reset(stream);
            }
        }
    })
}

#[test]
fn request_that_was_worked_on_before_its_connection_closed_is_not_sent_again_at_once() {
    for by_reset in [false, true] {
        let (send, bodies) = mpsc::channel();
        let server = closing_at_the_second(Duration::from_millis(300), by_reset, send);
        let poster = poster();
        assert_status(post(&poster, &server.url("/")), 200);
        assert_failed(post(&poster, &server.url("/")), Failure::Broken, "before an answer");
        assert_eq!(server.n_accepted(), 1);
        assert_eq!(bodies.try_iter().count(), 2);
        assert_eq!(poster.repeated().load(SeqCst), 0);
    }
}

#[test]
fn request_that_could_not_be_written_whole_is_sent_again_however_late_its_connection_closed() {
    let server = Server::start(|mut stream, number| {
        read_request(&mut stream);
        stream.write_all(OK).unwrap();
        if number > 0 {
            read_request(&mut stream);
            return stream.write_all(OK).unwrap();
        }
        read_head(&mut stream);
        std::thread::sleep(Duration::from_millis(300));
    });
    let poster = poster();
    let payload = vec![b'x'; 16 << 20];
    assert_status(post(&poster, &server.url("/")), 200);
    assert_status(post_with(&poster, &server.url("/"), &[], &payload), 200);
    assert_eq!(server.n_accepted(), 2);
    assert_eq!(poster.repeated().load(SeqCst), 1);
}

#[test]
fn request_is_sent_once_more_at_most_in_an_attempt_of_several_hops() {
    let attempt = until_the_close_comes_in_time(|| {
        let (send, bodies) = mpsc::channel();
        let target = closing_at_the_second(Duration::ZERO, false, send);
        let location = target.url("/");
        // Closes under the second request of its first connection, and leads elsewhere on its second.
        let server = Server::start(move |mut stream, number| {
            read_request(&mut stream);
            if number == 0 {
                stream.write_all(OK).unwrap();
                read_request(&mut stream);
            } else {
                let answer = format!("HTTP/1.1 307 There\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n");
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        let poster = poster();
        assert_status(post(&poster, &server.url("/")), 200);
        assert_status(post(&poster, &target.url("/")), 200);
        let attempt = post(&poster, &server.url("/"));
        let n_repeated = poster.repeated().load(SeqCst) as usize;
        assert_eq!((server.n_accepted(), target.n_accepted()), (1 + n_repeated, 1));
        assert_eq!(bodies.try_iter().count(), 1 + n_repeated);
        (poster, attempt)
    });
    assert_failed(attempt, Failure::Broken, "before an answer");
}

#[test]
fn what_comes_unasked_on_an_idle_connection_is_no_answer() {
    let (said, heard) = mpsc::channel();
    let (go, wait) = mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    let server = Server::start(move |mut stream, number| {
        read_request(&mut stream);
        stream.write_all(OK).unwrap();
        if number == 0 {
            wait.lock().unwrap().recv().unwrap();
            let unasked = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n";
            stream.write_all(unasked).unwrap();
            said.send(()).unwrap();
            let _ = read_request(&mut stream);
        }
    });
    let poster = poster();
    assert_status(post(&poster, &server.url("/")), 200);
    go.send(()).unwrap();
    heard.recv_timeout(BOUND).unwrap();
    assert_status(post(&poster, &server.url("/")), 200);
    assert_eq!(server.n_accepted(), 2);
}

#[test]
fn idle_connections_grow_old() {
    let server = Server::answering(OK);
    let poster = Poster::new(Options { idle_age: Duration::from_millis(1), ..options() }).unwrap();
    assert_status(post(&poster, &server.url("/")), 200);
    let deadline = Instant::now() + BOUND;
    while poster.n_idle() > 0 {
        assert!(Instant::now() < deadline);
        poster.tidy();
    }
    assert_status(post(&poster, &server.url("/")), 200);
    assert_eq!(server.n_accepted(), 2);
}

#[test]
fn refused_connection_names_the_address() {
    let addr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let attempt = post(&poster(), &format!("http://user:secret@{addr}/"));
    assert_failed(attempt.clone(), Failure::Connect, &format!("connection refused ({addr})"));
    assert!(!format!("{attempt:?}").contains("secret"));
}

#[test]
fn full_backlog_ends_at_the_connect_timeout() {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    socket.bind(&any.into()).unwrap();
    socket.listen(0).unwrap();
    let addr = socket.local_addr().unwrap().as_socket().unwrap();
    let mut waiting = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&addr, Duration::from_millis(300)) {
        waiting.push(stream);
        assert!(waiting.len() < 100);
    }
    let started = Instant::now();
    let attempt = post(&impatient(), &format!("http://{addr}/"));
    let words = format!("no connection within 400ms ({addr})");
    assert_failed(attempt, Failure::Connect, &words);
    assert!(started.elapsed() < Duration::from_secs(2));
}

#[test]
fn unknown_host_has_no_address() {
    let attempt = post(&poster(), "http://no-such-host.invalid/");
    assert_failed(attempt, Failure::Resolve, "no-such-host.invalid");
}

// ---- redirects

#[test]
fn redirects_307_and_308_keep_method_headers_and_body() {
    let (send, received) = mpsc::channel();
    let target = Server::start(move |mut stream, _| {
        while let Some(request) = read_request(&mut stream) {
            send.send(request).unwrap();
            stream.write_all(OK).unwrap();
        }
    });
    let poster = poster();
    for status in [307, 308] {
        let location = target.url("/moved?to=here");
        let server = Server::answering(format!(
            "HTTP/1.1 {status} Moved\r\nLocation: {location}\r\nContent-Length: 5\r\n\r\nthere"
        ));
        let headers =
            [("Content-Type", "application/ssi-agent-wire"), ("Authorization", "Bearer secret"), ("Cookie", "secret")];
        let attempt = post_with(&poster, &server.url("/"), &headers, PAYLOAD);
        assert_status(attempt, 200);
        let request = received.recv().unwrap();
        assert_eq!(request.line, "POST /moved?to=here HTTP/1.1");
        assert_eq!(request.body, PAYLOAD);
        let content_type = request.header("content-type");
        assert_eq!(content_type, Some("application/ssi-agent-wire"));
        assert_eq!(request.header("host"), Some(target.addr.to_string().as_str()));
        assert_eq!(request.header("authorization"), None);
        assert_eq!(request.header("cookie"), None);
    }
    assert_eq!(target.n_accepted(), 1);
}

#[test]
fn redirect_within_an_origin_keeps_its_authorization() {
    let server = Server::start(|mut stream, _| {
        while let Some(request) = read_request(&mut stream) {
            assert_eq!(request.header("authorization"), Some("Bearer secret"));
            let answer: &[u8] = match request.line.as_str() {
                "POST /old/x HTTP/1.1" => b"HTTP/1.1 307 Moved\r\nLocation: ../new\r\nContent-Length: 0\r\n\r\n",
                "POST /new HTTP/1.1" => OK,
                line => panic!("{line}"),
            };
            stream.write_all(answer).unwrap();
        }
    });
    let headers = [("Authorization", "Bearer secret")];
    let attempt = post_with(&poster(), &server.url("/old/x"), &headers, PAYLOAD);
    assert_status(attempt, 200);
    assert_eq!(server.n_accepted(), 1);
}

#[test]
fn redirect_loop_ends() {
    let n_requests = Arc::new(AtomicUsize::new(0));
    let counter = n_requests.clone();
    let server = Server::start(move |mut stream, _| {
        while read_request(&mut stream).is_some() {
            counter.fetch_add(1, SeqCst);
            let answer = b"HTTP/1.1 307 Again\r\nLocation: /\r\nContent-Length: 0\r\n\r\n";
            stream.write_all(answer).unwrap();
        }
    });
    assert_note(post(&poster(), &server.url("/")), 307, "more than 5 redirects");
    assert_eq!(n_requests.load(SeqCst), 6);
}

#[test]
fn slow_redirects_share_one_deadline() {
    let server = Server::start(|mut stream, _| {
        while read_request(&mut stream).is_some() {
            std::thread::sleep(Duration::from_millis(200));
            let answer = b"HTTP/1.1 308 Again\r\nLocation: /\r\nContent-Length: 0\r\n\r\n";
            if stream.write_all(answer).is_err() {
                return;
            }
        }
    });
    let started = Instant::now();
    let attempt = post(&impatient(), &server.url("/"));
    assert_failed(attempt, Failure::Timeout, "no answer within 500ms");
    assert!(started.elapsed() < Duration::from_millis(1100));
}

#[test]
fn other_redirects_are_not_followed() {
    let target = Server::answering(OK);
    let poster = poster();
    for status in [300, 301, 302, 303, 305] {
        let location = target.url("/");
        let server = Server::answering(format!(
            "HTTP/1.1 {status} Elsewhere\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n"
        ));
        let attempt = post(&poster, &server.url("/"));
        assert_note(attempt, status, "only redirects 307 and 308 are followed");
    }
    for (location, words) in [
        ("", "without a location"),
        ("Location: ftp://x.example/\r\n", "another scheme"),
        ("Location: http://[\r\n", "unreadable"),
        ("Location: caf\u{e9}:\u{e9}\r\n", "unreadable"),
    ] {
        let server = Server::answering(format!("HTTP/1.1 307 Elsewhere\r\n{location}Content-Length: 0\r\n\r\n"));
        assert_note(post(&poster, &server.url("/")), 307, words);
    }
    assert_eq!(target.n_accepted(), 0);
}

// ---- the address policy

#[test]
fn addresses_are_refused_also_behind_names_and_redirects() {
    let server = Server::answering(OK);
    let port = server.addr.port();
    let guard = Guard::new(&[], &["loopback".parse().unwrap()], &[]);
    let strict = Poster::new(Options { guard, ..options() }).unwrap();
    for host in ["127.0.0.1", "[::ffff:127.0.0.1]"] {
        let attempt = post(&strict, &format!("http://{host}:{port}/"));
        assert_refused(attempt, "is refused by '--deny-net loopback'");
    }
    // Names may stand for something else tomorrow; an envelope's odd numbers are literals by then.
    for host in ["localhost", "0x7f.1", "2130706433"] {
        let attempt = post(&strict, &format!("http://{host}:{port}/"));
        assert_failed(attempt, Failure::Denied, "is refused by '--deny-net loopback'");
    }
    assert_eq!(server.n_accepted(), 0);

    let attempt = post(&poster(), "http://169.254.169.254/latest/meta-data");
    assert_refused(attempt, "address 169.254.169.254 is link-local");
    let server =
        Server::answering("HTTP/1.1 307 Elsewhere\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n");
    let attempt = post(&poster(), &server.url("/"));
    assert_refused(attempt, "address 169.254.169.254 is link-local");
}

// ---- through a proxy

/// The proxy at this URL, for everything.
fn proxies(url: &str) -> Proxies {
    Proxies::from_variables(|name| (name == "ALL_PROXY").then(|| url.to_string())).unwrap()
}

/// A proxy that leads every host to `target`, and passes plain requests on as they are.
fn proxy_to(target: SocketAddr, asked: mpsc::Sender<String>) -> Server {
    Server::start(move |mut stream, _| {
        let Some(head) = read_head(&mut stream) else {
            return;
        };
        let mut upstream = TcpStream::connect(target).unwrap();
        match head.starts_with("CONNECT ") {
            true => stream.write_all(b"HTTP/1.1 200 Connected\r\n\r\n").unwrap(),
            false => upstream.write_all(head.as_bytes()).unwrap(),
        }
        let _ = asked.send(head);
        let (mut back, mut to_client) = (upstream.try_clone().unwrap(), stream.try_clone().unwrap());
        std::thread::spawn(move || {
            let _ = io::copy(&mut back, &mut to_client);
            let _ = to_client.shutdown(Shutdown::Both);
        });
        let _ = io::copy(&mut stream, &mut upstream);
        let _ = upstream.shutdown(Shutdown::Both);
    })
}

#[test]
fn proxy_is_used_and_decides_about_names() {
    let server = Server::answering(OK);
    let (send, asked) = mpsc::channel();
    let proxy = proxy_to(server.addr, send);
    let url = format!("http://user:secret@{}", proxy.addr);
    let guard = Guard::new(&[], &["loopback".parse().unwrap()], &[]);
    let poster = Poster::new(Options { proxies: proxies(&url), guard, ..options() }).unwrap();
    for _ in 0..5 {
        assert_status(post(&poster, "http://inside.example:8020/x"), 200);
    }
    let head = asked.recv().unwrap();
    assert!(head.starts_with("POST http://inside.example:8020/x HTTP/1.1\r\n"), "{head}");
    assert!(head.contains("\r\nproxy-authorization: Basic dXNlcjpzZWNyZXQ=\r\n"), "{head}");
    assert!(head.contains("\r\nhost: inside.example:8020\r\n"), "{head}");
    assert_eq!((proxy.n_accepted(), server.n_accepted()), (1, 1));
    assert_status(post(&poster, "http://other.example/x"), 200);
    assert_eq!((proxy.n_accepted(), server.n_accepted()), (2, 2));

    let refusing = Server::answering("HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n");
    let poster = Poster::new(Options { proxies: proxies(&refusing.url("")), ..options() }).unwrap();
    let attempt = post(&poster, "https://other.example/x");
    assert_failed(attempt, Failure::Connect, "answered 403 to CONNECT (other.example:443)");
    // Without TLS it may be the recipient's word or the proxy's.
    assert_status(post(&poster, "http://other.example/x"), 403);
    // What a proxy says before its answer is passed over.
    let slow = Server::answering("HTTP/1.1 100 Continue\r\nX: y\r\n\r\nHTTP/1.1 502 No\r\n\r\n");
    let poster = Poster::new(Options { proxies: proxies(&slow.url("")), ..options() }).unwrap();
    let attempt = post(&poster, "https://other.example/x");
    assert_failed(attempt, Failure::Connect, "answered 502 to CONNECT (other.example:443)");
    let closing = Server::start(|mut stream, _| drop(read_head(&mut stream)));
    let poster = Poster::new(Options { proxies: proxies(&closing.url("")), ..options() }).unwrap();
    let words = format!("before an answer (other.example:80) through proxy {}", closing.addr);
    assert_failed(post(&poster, "http://other.example/x"), Failure::Broken, &words);
    let refusing = Server::answering("HTTP/1.1 407 Who are you\r\nContent-Length: 0\r\n\r\n");
    let poster = Poster::new(Options { proxies: proxies(&refusing.url("")), ..options() }).unwrap();
    for url in ["http://other.example/x", "https://other.example/x"] {
        assert_failed(
            post(&poster, url),
            Failure::Connect,
            "wants a user and password (407): write them into ALL_PROXY",
        );
    }
}

#[test]
fn addresses_are_judged_through_a_proxy_too_in_all_spellings_and_behind_redirects() {
    let location = Arc::new(Mutex::new(String::new()));
    let told = location.clone();
    let server = Server::start(move |mut stream, _| {
        while read_request(&mut stream).is_some() {
            let location = told.lock().unwrap().clone();
            let answer = format!("HTTP/1.1 307 There\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n");
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    let own = "127.9.9.9:7201".parse().unwrap();
    for (deny, own, port, words) in [
        (vec!["loopback".parse().unwrap()], vec![], 80, "is refused by '--deny-net loopback'"),
        (vec![], vec![(own, "Redis")], 7201, "is the agent's own Redis"),
    ] {
        let (send, asked) = mpsc::channel();
        let proxy = proxy_to(server.addr, send);
        let guard = Guard::new(&[], &deny, &own);
        let proxies = proxies(&proxy.url(""));
        let poster = Poster::new(Options { proxies, guard, ..options() }).unwrap();
        for host in ["127.9.9.9", "0x7f.0x9.0x9.9", "0177.9.2313", "2131298569", "127.9.9.9.", "[::ffff:127.9.9.9]"] {
            let url = format!("http://{host}:{port}/");
            assert_refused(post(&poster, &url), words);
            *location.lock().unwrap() = url;
            assert_refused(post(&poster, "http://inside.example/"), words);
            let mut heads = asked.try_iter();
            let other = heads.find(|head| !head.starts_with("POST http://inside.example/ "));
            assert_eq!(other, None, "the proxy was asked for {host}");
        }
    }
}

#[test]
fn one_tunnel_serves_any_number_of_answers() {
    let body = "b".repeat(60_000);
    let length = body.len();
    let server = Server::answering(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}"));
    let (send, _asked) = mpsc::channel();
    let proxy = proxy_to(server.addr, send);
    let poster = Poster::new(Options { proxies: proxies(&proxy.url("")), ..options() }).unwrap();
    for _ in 0..20 {
        assert_status(post(&poster, "http://inside.example/"), 200);
    }
    assert_eq!(proxy.n_accepted(), 1);
}

#[test]
fn tls_runs_through_a_proxy() {
    let ca = Ca::new();
    let server = ca.server(ca.certificate(&["inside.example"], None), |stream| {
        while read_request(stream).is_some() {
            stream.write_all(OK).unwrap();
        }
    });
    let (send, _asked) = mpsc::channel();
    let proxy = proxy_to(server.addr, send);
    let poster =
        Poster::new(Options { proxies: proxies(&proxy.url("")), ca_file: Some(ca.file.clone()), ..options() }).unwrap();
    for _ in 0..5 {
        assert_status(post(&poster, "https://inside.example/"), 200);
    }
    assert_eq!((proxy.n_accepted(), server.n_accepted()), (1, 1));
}

/// A proxy that speaks TLS as `localhost`, and leads all tunnels to `target`. It notes what it is asked.
fn secure_proxy(ca: &Ca, target: SocketAddr, heads: Arc<Mutex<Vec<String>>>) -> Server {
    ca.server(ca.certificate(&["localhost"], None), move |stream| {
        let Some(head) = read_head(stream) else { return };
        let is_tunnel = head.starts_with("CONNECT ");
        heads.lock().unwrap().push(head);
        if !is_tunnel {
            let mut body = vec![0; PAYLOAD.len()];
            stream.read_exact(&mut body).unwrap();
            stream.write_all(OK).unwrap();
            let _ = stream.read(&mut [0]);
            return;
        }
        stream.write_all(b"HTTP/1.1 200 Connected\r\n\r\n").unwrap();
        stream.flush().unwrap();
        let mut upstream = TcpStream::connect(target).unwrap();
        upstream.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
        stream.sock.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
        let mut buffer = [0; 16 * 1024];
        let waits = |error: &io::Error| matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
        // To look what comes back takes a while when nothing does: after some pieces, or when no more come.
        let mut pieces = 0;
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => return,
                Ok(amount) => {
                    if upstream.write_all(&buffer[..amount]).is_err() {
                        return;
                    }
                    pieces += 1;
                    if pieces % 32 > 0 {
                        continue;
                    }
                }
                Err(error) if waits(&error) => {}
                Err(_) => return,
            }
            match upstream.read(&mut buffer) {
                Ok(0) => return,
                Ok(amount) => stream.write_all(&buffer[..amount]).and_then(|()| stream.flush()).unwrap(),
                Err(error) if waits(&error) => {}
                Err(_) => return,
            }
        }
    })
}

#[test]
fn a_proxy_may_itself_speak_tls_for_plain_and_secure_endpoints() {
    let ca = Ca::new();
    let secure = ca.server(ca.certificate(&["inside.example"], None), |stream| {
        while read_request(stream).is_some() {
            stream.write_all(OK).unwrap();
        }
    });
    let target = secure.addr;
    let heads = Arc::new(Mutex::new(Vec::new()));
    let proxy = secure_proxy(&ca, target, heads.clone());
    let url = format!("https://user:p%40ss@localhost:{}", proxy.addr.port());
    let poster = Poster::new(Options { proxies: proxies(&url), ca_file: Some(ca.file.clone()), ..options() }).unwrap();
    assert_status(post(&poster, "http://inside.example/plain"), 200);
    for _ in 0..3 {
        assert_status(post(&poster, "https://inside.example/secure"), 200);
    }
    assert_eq!(secure.n_accepted(), 1);
    let heads = heads.lock().unwrap().clone();
    assert!(heads[0].starts_with("POST http://inside.example/plain HTTP/1.1\r\n"), "{heads:?}");
    assert!(heads[1].starts_with("CONNECT inside.example:443 HTTP/1.1\r\n"), "{heads:?}");
    assert!(
        heads.iter().all(|head| head.to_lowercase().contains("proxy-authorization: basic dxnlcjpwqhnz\r\n")),
        "{heads:?}"
    );
    // Whom nobody vouches for is not even spoken to.
    let stranger = Poster::new(Options { proxies: proxies(&url), ..options() }).unwrap();
    for url in ["http://inside.example/", "https://inside.example/"] {
        assert_failed(post(&stranger, url), Failure::Tls, "TLS: certificate from an unknown issuer");
    }
}

#[test]
fn names_do_not_go_through_a_proxy_where_that_is_not_wanted() {
    let server = Server::answering(OK);
    let (send, asked) = mpsc::channel();
    let proxy = proxy_to(server.addr, send);
    let variables = |name: &str| match name {
        "http_proxy" => Some(proxy.url("")),
        "no_proxy" => Some(".inside.example localhost".to_string()),
        _ => None,
    };
    let guard = Guard::new(&[], &[], &[]).proxy_resolves(false);
    let proxies = Proxies::from_variables(variables).unwrap();
    let poster = Poster::new(Options { proxies, guard, ..options() }).unwrap();
    assert_refused(post(&poster, "http://outside.example/"), "'--proxy-resolves no'");
    // Addresses can be judged, and what needs no proxy is looked up here.
    assert_status(post(&poster, "http://127.0.0.1:9/"), 200);
    assert_status(post(&poster, &format!("http://localhost:{}/", server.addr.port())), 200);
    assert_eq!(asked.try_iter().count(), 1);
}

// ---- TLS

/// A certificate authority of our own, and the file that names it.
struct Ca {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    file: PathBuf,
}

type ServerTls = rustls::StreamOwned<rustls::ServerConnection, TcpStream>;

impl Ca {
    fn new() -> Ca {
        static N: AtomicUsize = AtomicUsize::new(0);
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        let n = N.fetch_add(1, SeqCst);
        let name = format!("acapy-deliver-ca-{}-{n}.pem", std::process::id());
        let file = std::env::temp_dir().join(name);
        std::fs::write(&file, certificate.pem()).unwrap();
        Ca { issuer: rcgen::Issuer::new(params, key), file }
    }

    /// For these names; valid until the first day of the given year.
    fn certificate(&self, names: &[&str], until: Option<i32>) -> rustls::ServerConfig {
        self.certificate_with(names, until, rustls::ALL_VERSIONS)
    }

    fn certificate_with(
        &self,
        names: &[&str],
        until: Option<i32>,
        versions: &[&'static rustls::SupportedProtocolVersion],
    ) -> rustls::ServerConfig {
        let key = rcgen::KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
        let mut params = rcgen::CertificateParams::new(names).unwrap();
        params.not_before = rcgen::date_time_ymd(2000, 1, 1);
        params.not_after = rcgen::date_time_ymd(until.unwrap_or(2090), 1, 1);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key.into())
            .unwrap()
    }

    fn server(&self, config: rustls::ServerConfig, serve: impl Fn(&mut ServerTls) + Send + Sync + 'static) -> Server {
        let config = Arc::new(config);
        Server::start(move |stream, _| {
            let conn = rustls::ServerConnection::new(config.clone()).unwrap();
            let mut stream = rustls::StreamOwned::new(conn, stream);
            serve(&mut stream);
            stream.conn.send_close_notify();
            let _ = stream.flush();
        })
    }

    fn poster(&self) -> Poster {
        Poster::new(Options { ca_file: Some(self.file.clone()), ..options() }).unwrap()
    }
}

impl Drop for Ca {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.file);
    }
}

fn serve_tls(stream: &mut ServerTls) {
    while read_request(stream).is_some() {
        if stream.write_all(OK).is_err() {
            return;
        }
    }
}

fn tls_url(server: &Server) -> String {
    format!("https://localhost:{}/", server.addr.port())
}

#[test]
fn tls_with_an_authority_of_our_own_delivers_and_is_used_again() {
    let ca = Ca::new();
    let server = ca.server(ca.certificate(&["localhost"], None), serve_tls);
    let poster = ca.poster();
    let payload = vec![b'x'; 300_000];
    for _ in 0..5 {
        assert_status(post(&poster, &tls_url(&server)), 200);
        assert_status(post_with(&poster, &tls_url(&server), &[], &payload), 200);
    }
    assert_eq!(server.n_accepted(), 1);
}

#[test]
fn tls_connection_closed_while_idle_is_replaced() {
    let ca = Ca::new();
    let server = ca.server(ca.certificate(&["localhost"], None), |stream| {
        read_request(stream);
        stream.write_all(OK).unwrap();
    });
    let poster = ca.poster();
    for n in 1..=3 {
        assert_status(post(&poster, &tls_url(&server)), 200);
        assert_eq!(server.n_accepted(), n);
    }
}

#[test]
fn distrust_is_put_into_words() {
    let ca = Ca::new();
    let place = |server: &Server| format!("(localhost:{})", server.addr.port());

    let expired = ca.server(ca.certificate(&["localhost"], Some(2020)), serve_tls);
    let attempt = post(&ca.poster(), &tls_url(&expired));
    let words = format!("TLS: certificate expired {}", place(&expired));
    assert_failed(attempt, Failure::Tls, &words);

    let other_name = ca.server(ca.certificate(&["other.example"], None), serve_tls);
    let attempt = post(&ca.poster(), &tls_url(&other_name));
    assert_failed(attempt, Failure::Tls, "TLS: certificate not valid for name localhost");

    let good = ca.server(ca.certificate(&["localhost"], None), serve_tls);
    let attempt = post(&poster(), &tls_url(&good));
    assert_failed(attempt, Failure::Tls, "TLS: certificate from an unknown issuer ('--ca-file'");
}

#[test]
fn recipients_that_cannot_do_tls_are_put_into_words() {
    let ca = Ca::new();
    // What a server of TLS 1.0 only answers: a fatal alert 70, protocol version.
    let too_old = Server::start(|mut stream, _| {
        let _ = stream.read(&mut [0; 2000]);
        stream.write_all(&[21, 3, 1, 0, 2, 2, 70]).unwrap();
        let _ = stream.read(&mut [0]);
    });
    let attempt = post(&ca.poster(), &tls_url(&too_old));
    assert_failed(attempt, Failure::Tls, "TLS: no common protocol version");

    let plain = Server::start(|mut stream, _| {
        let _ = stream.read(&mut [0; 2000]);
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        let _ = stream.read(&mut [0]);
    });
    let attempt = post(&ca.poster(), &tls_url(&plain));
    assert_failed(attempt, Failure::Tls, "TLS: what came is not TLS");

    let closes = Server::start(|mut stream, _| {
        let _ = stream.read(&mut [0; 2000]);
    });
    let attempt = post(&ca.poster(), &tls_url(&closes));
    assert_failed(attempt, Failure::Tls, "TLS: connection closed before agreement");
}

#[test]
fn hanging_handshake_ends_at_the_connect_timeout() {
    let silent = Server::start(|mut stream, _| {
        let mut bytes = [0; 2000];
        while matches!(stream.read(&mut bytes), Ok(n) if n > 0) {}
    });
    let slow = Server::start(|mut stream, _| trickle(&mut stream, &[22]));
    for server in [silent, slow] {
        let started = Instant::now();
        match post(&impatient(), &tls_url(&server)) {
            Attempt::Failed { failure: Failure::Tls, error } => assert!(error.starts_with("TLS: "), "{error}"),
            other => panic!("{other:?}"),
        }
        assert!(started.elapsed() < Duration::from_secs(2));
    }
}

#[test]
fn redirect_from_https_to_http_is_not_followed() {
    let ca = Ca::new();
    let plain = Server::answering(OK);
    let location = plain.url("/");
    let server = ca.server(ca.certificate(&["localhost"], None), move |stream| {
        while read_request(stream).is_some() {
            let answer = format!("HTTP/1.1 308 Down\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n");
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    let attempt = post(&ca.poster(), &tls_url(&server));
    assert_note(attempt, 308, "redirect from https to http");
    assert_eq!(plain.n_accepted(), 0);
}

#[test]
fn redirect_from_http_to_https_is_followed() {
    let ca = Ca::new();
    let secure = ca.server(ca.certificate(&["localhost"], None), serve_tls);
    let location = tls_url(&secure);
    let server = Server::answering(format!("HTTP/1.1 308 Up\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n"));
    assert_status(post(&ca.poster(), &server.url("/")), 200);
}

#[test]
fn tls_truncated_in_the_headers_is_broken_and_in_the_body_counts() {
    let ca = Ca::new();
    for (answer, delivered) in [
        ("HTTP/1.1 200 OK\r\nContent-Le", false),
        ("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfew", true),
        ("HTTP/1.1 200 OK\r\n\r\nuntil closed", true),
    ] {
        let server = ca.server(ca.certificate(&["localhost"], None), move |stream| {
            read_request(stream);
            stream.write_all(answer.as_bytes()).unwrap();
            stream.flush().unwrap();
            // Without the TLS way of saying goodbye.
            let _ = stream.sock.shutdown(Shutdown::Both);
        });
        let attempt = post(&ca.poster(), &tls_url(&server));
        if delivered {
            assert_status(attempt, 200);
        } else {
            assert_failed(attempt, Failure::Broken, "connection closed before an answer");
        }
    }
}

// ---- answers that were not given to this request

/// How a recipient sends what it has to say after its first answer.
#[derive(Clone, Copy, Debug)]
enum Forged {
    SameRecord,
    NextRecord,
    /// The record's beginning before the next request, its end after it.
    TwoParts,
}

/// Of this many bytes, as the buffer is that answers are read into.
fn answer_of(size: usize, with_body: bool) -> Vec<u8> {
    let empty = |n: usize| format!("HTTP/1.1 200 OK\r\nContent-Length: {n:05}\r\nX: ").into_bytes();
    let mut answer = empty(0);
    if with_body {
        let n = size - answer.len() - 4;
        answer = empty(n);
        answer.extend(b"\r\n\r\n");
        answer.resize(size, b'b');
    } else {
        answer.resize(size - 4, b'v');
        answer.extend(b"\r\n\r\n");
    }
    answer
}

/// Sends its answer and the forged one; a second connection gets an honest 503.
fn forge(stream: &mut ServerTls, is_first: bool, answer: &[u8], forged: Forged) {
    const FORGED: &[u8] = b"HTTP/1.1 200 Never asked\r\nContent-Length: 0\r\n\r\n";
    let Some(_) = read_request(stream) else { return };
    if !is_first {
        stream.write_all(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n").unwrap();
        return;
    }
    let mut records = Vec::new();
    match forged {
        Forged::SameRecord => stream.conn.writer().write_all(&[answer, FORGED].concat()).unwrap(),
        Forged::NextRecord | Forged::TwoParts => {
            stream.conn.writer().write_all(answer).unwrap();
            stream.conn.writer().write_all(FORGED).unwrap();
        }
    }
    while stream.conn.wants_write() {
        stream.conn.write_tls(&mut records).unwrap();
    }
    let now = match forged {
        Forged::TwoParts => records.len() - 20,
        _ => records.len(),
    };
    stream.sock.write_all(&records[..now]).unwrap();
    if read_request(stream).is_some() {
        let _ = stream.sock.write_all(&records[now..]);
        let _ = read_request(stream);
    }
}

#[test]
fn what_tls_holds_already_is_no_answer_to_the_next_request() {
    let versions: [&[&rustls::SupportedProtocolVersion]; 2] = [&[&rustls::version::TLS12], &[&rustls::version::TLS13]];
    let ca = Ca::new();
    for version in versions {
        for through_proxy in [false, true] {
            for size in [60, 4096, 8191, 8192, 8193, 16384 - 60] {
                for with_body in [false, true] {
                    for forged in [Forged::SameRecord, Forged::NextRecord, Forged::TwoParts] {
                        let config = ca.certificate_with(&["localhost", "inside.example"], None, version);
                        let n = AtomicUsize::new(0);
                        let server = ca.server(config, move |stream| {
                            let is_first = n.fetch_add(1, SeqCst) == 0;
                            forge(stream, is_first, &answer_of(size, with_body), forged);
                        });
                        let (send, _asked) = mpsc::channel();
                        let proxy = through_proxy.then(|| proxy_to(server.addr, send));
                        let poster = Poster::new(Options {
                            proxies: proxy.as_ref().map(|proxy| proxies(&proxy.url(""))).unwrap_or_default(),
                            ca_file: Some(ca.file.clone()),
                            ..options()
                        })
                        .unwrap();
                        let url = match through_proxy {
                            true => "https://inside.example/".to_string(),
                            false => tls_url(&server),
                        };
                        assert_status(post(&poster, &url), 200);
                        let second = post(&poster, &url);
                        assert!(
                            matches!(second, Attempt::Answered { status: 503, .. }),
                            "{version:?}, proxy {through_proxy}, {size} bytes, body {with_body}, {forged:?}: {second:?}"
                        );
                        assert_eq!(server.n_accepted(), 2);
                    }
                }
            }
        }
    }
}

#[test]
fn what_a_plain_connection_or_one_to_a_proxy_holds_already_is_no_answer_to_the_next_request() {
    for through_proxy in [false, true] {
        for size in [60, 8191, 8192, 8193, 16384] {
            let server = Server::start(move |mut stream, number| {
                read_request(&mut stream);
                match number {
                    0 => {
                        let forged = b"HTTP/1.1 200 Never asked\r\nContent-Length: 0\r\n\r\n";
                        let _ = stream.write_all(&[&answer_of(size, true), &forged[..]].concat());
                        let _ = read_request(&mut stream);
                    }
                    _ => stream.write_all(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n").unwrap(),
                }
            });
            // Proxy and recipient in one, so that nothing comes late.
            let proxies = if through_proxy { proxies(&server.url("")) } else { Proxies::default() };
            let poster = Poster::new(Options { proxies, ..options() }).unwrap();
            let url = match through_proxy {
                true => "http://inside.example/".to_string(),
                false => server.url("/"),
            };
            assert_status(post(&poster, &url), 200);
            assert_status(post(&poster, &url), 503);
            assert_eq!(server.n_accepted(), 2, "proxy {through_proxy}, {size} bytes");
        }
    }
}

#[test]
fn what_a_proxy_says_after_its_own_answer_is_nobodys() {
    let proxy = Server::start(|mut stream, _| {
        read_head(&mut stream);
        let _ = stream.write_all(b"HTTP/1.1 200 Connected\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        let _ = read_request(&mut stream);
    });
    let poster = Poster::new(Options { proxies: proxies(&proxy.url("")), ..options() }).unwrap();
    let attempt = post(&poster, "https://inside.example/");
    assert_failed(attempt, Failure::Connect, "followed by what nobody asked for (inside.example:443)");
}

#[test]
fn roots_are_read_again_and_what_is_open_stays_open() {
    let (old, new) = (Ca::new(), Ca::new());
    let serve = |stream: &mut ServerTls| {
        while read_request(stream).is_some() {
            stream.write_all(OK).unwrap();
        }
    };
    let first = old.server(old.certificate(&["localhost"], None), serve);
    let second = old.server(old.certificate(&["localhost"], None), serve);
    let third = new.server(new.certificate(&["localhost"], None), serve);
    let file = std::env::temp_dir().join(format!("acapy-deliver-renewed-{}.pem", std::process::id()));
    std::fs::copy(&old.file, &file).unwrap();
    let poster = Poster::new(Options { ca_file: Some(file.clone()), ..options() }).unwrap();
    assert!(poster.roots().0.ends_with(", 1 of '--ca-file'"), "{:?}", poster.roots());
    assert_status(post(&poster, &tls_url(&first)), 200);
    assert_failed(post(&poster, &tls_url(&third)), Failure::Tls, "TLS: certificate ");
    assert_eq!(poster.renew_trust(), Ok(None));

    std::fs::copy(&new.file, &file).unwrap();
    assert_failed(post(&poster, &tls_url(&third)), Failure::Tls, "TLS: certificate ");
    assert!(matches!(poster.renew_trust(), Ok(Some(_))));
    assert_status(post(&poster, &tls_url(&third)), 200);
    assert_failed(post(&poster, &tls_url(&second)), Failure::Tls, "TLS: certificate ");
    assert_status(post(&poster, &tls_url(&first)), 200);
    assert_eq!(first.n_accepted(), 1, "the connection that was open was given up");

    // What cannot be read changes nothing.
    std::fs::remove_file(&file).unwrap();
    assert!(poster.renew_trust().unwrap_err().starts_with("option '--ca-file'"));
    assert_status(post(&poster, &tls_url(&third)), 200);
}

#[test]
fn a_client_certificate_is_shown_to_endpoints_that_ask_for_one() {
    let ca = Ca::new();
    let directory = std::env::temp_dir();
    let files = ["cert", "key", "expired", "encrypted"]
        .map(|kind| directory.join(format!("acapy-deliver-client-{kind}-{}", std::process::id())));
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["agent.example".to_string()]).unwrap();
    std::fs::write(&files[0], params.signed_by(&key, &ca.issuer).unwrap().pem()).unwrap();
    std::fs::write(&files[1], key.serialize_pem()).unwrap();
    params.not_after = rcgen::date_time_ymd(2021, 1, 1);
    std::fs::write(&files[2], params.signed_by(&key, &ca.issuer).unwrap().pem()).unwrap();
    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    std::fs::write(&files[3], encrypted).unwrap();

    let mut asked_by = rustls::RootCertStore::empty();
    let pem = std::fs::read(&ca.file).unwrap();
    use rustls::pki_types::pem::PemObject;
    asked_by.add(rustls::pki_types::CertificateDer::from_pem_slice(&pem).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(asked_by), provider.clone());
    let server_key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["localhost".to_string()]).unwrap();
    let certificate = params.signed_by(&server_key, &ca.issuer).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(
            vec![certificate.der().clone()],
            rustls::pki_types::PrivatePkcs8KeyDer::from(server_key.serialize_der()).into(),
        )
        .unwrap();
    let server = ca.server(config, |stream| {
        while read_request(stream).is_some() {
            stream.write_all(OK).unwrap();
        }
    });
    let with = |client_certificate: Option<(PathBuf, PathBuf)>| {
        Poster::new(Options { ca_file: Some(ca.file.clone()), client_certificate, ..options() })
    };
    let [certificate_file, key_file, expired, encrypted] = files.clone();
    assert_status(post(&with(Some((certificate_file.clone(), key_file.clone()))).unwrap(), &tls_url(&server)), 200);
    // It is read again: another takes its place for new connections, and what cannot be used none.
    let renewed = directory.join(format!("acapy-deliver-client-renewed-{}", std::process::id()));
    std::fs::copy(&certificate_file, &renewed).unwrap();
    let poster = with(Some((renewed.clone(), key_file.clone()))).unwrap();
    assert_status(post(&poster, &tls_url(&server)), 200);
    std::fs::copy(&expired, &renewed).unwrap();
    assert!(matches!(poster.renew_trust(), Ok(Some(_))));
    assert_status(post(&poster, &tls_url(&server)), 200);
    std::fs::copy(&ca.file, &renewed).unwrap();
    let error = poster.renew_trust().unwrap_err();
    assert!(error.ends_with("the key is not that of the certificate"), "{error}");
    poster.close_idle();
    assert_failed(post(&poster, &tls_url(&server)), Failure::Tls, "was refused: it has expired");
    let _ = std::fs::remove_file(renewed);
    let none = post(&with(None).unwrap(), &tls_url(&server));
    assert_failed(none, Failure::Tls, "a client certificate is wanted ('--client-cert-file')");
    let expired = post(&with(Some((expired, key_file.clone()))).unwrap(), &tls_url(&server));
    assert_failed(expired, Failure::Tls, "the certificate of '--client-cert-file' was refused: it has expired");
    for (pair, words) in [
        ((key_file.clone(), key_file.clone()), "option '--client-cert-file': "),
        ((certificate_file.clone(), certificate_file.clone()), "option '--client-key-file': "),
        (
            (certificate_file, encrypted.clone()),
            &format!("option '--client-key-file': {}: is enc", encrypted.display()),
        ),
        ((ca.file.clone(), key_file), "options '--client-cert-file' and '--client-key-file': the key is not that of"),
    ] {
        let error = with(Some(pair)).unwrap_err();
        assert!(error.starts_with(words), "{error}");
    }
    for file in files {
        let _ = std::fs::remove_file(file);
    }
}
