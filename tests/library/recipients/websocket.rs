//! The same over WebSocket: what is sent, what counts as taken, and recipients that do as they please.

use std::collections::VecDeque;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::*;

const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// A frame of ours, unmasked.
#[derive(PartialEq, Eq)]
struct Frame {
    /// With the bit that says that it is the last.
    first: u8,
    payload: Vec<u8>,
}

/// What a recipient does once it has taken the connection.
trait Side: Read + Write + Send {}
impl<S: Read + Write + Send> Side for S {}

/// The other end of a WebSocket.
struct Peer<'a> {
    stream: &'a mut dyn Side,
    head: Received,
}

impl<'a> Peer<'a> {
    /// Reads the request, and answers nothing yet.
    fn read(stream: &'a mut dyn Side) -> Option<Peer<'a>> {
        let mut reader = &mut *stream;
        let head = read_request(&mut reader)?;
        Some(Peer { stream, head })
    }

    /// Takes the handshake.
    fn open(stream: &'a mut dyn Side) -> Option<Peer<'a>> {
        let peer = Peer::read(stream)?;
        let answer = peer.answer();
        peer.stream.write_all(answer.as_bytes()).ok()?;
        Some(peer)
    }

    /// The right answer.
    fn answer(&self) -> String {
        let key = self.head.header("sec-websocket-key").expect("there is a key");
        let text = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
        let digest = ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
        let accept = BASE64_STANDARD.encode(digest);
        format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\n\
             Sec-WebSocket-Accept: {accept}\r\n\r\n"
        )
    }

    /// `None` at the end of the connection.
    fn frame(&mut self) -> Option<Frame> {
        let mut two = [0; 2];
        self.stream.read_exact(&mut two).ok()?;
        assert_eq!(two[1] & 0x80, 0x80, "every frame of ours is masked");
        let length = match two[1] & 0x7f {
            126 => {
                let mut length = [0; 2];
                self.stream.read_exact(&mut length).ok()?;
                u64::from(u16::from_be_bytes(length))
            }
            127 => {
                let mut length = [0; 8];
                self.stream.read_exact(&mut length).ok()?;
                u64::from_be_bytes(length)
            }
            short => u64::from(short),
        };
        let mut mask = [0; 4];
        self.stream.read_exact(&mut mask).ok()?;
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        self.stream.read_exact(&mut payload).ok()?;
        // In steps of four, for the large ones take long enough.
        let (fours, rest) = payload.as_chunks_mut();
        fours.iter_mut().for_each(|four| *four = (u32::from_ne_bytes(*four) ^ u32::from_ne_bytes(mask)).to_ne_bytes());
        rest.iter_mut().zip(mask).for_each(|(byte, key)| *byte ^= key);
        Some(Frame { first: two[0], payload })
    }

    fn say(&mut self, opcode: u8, payload: &[u8]) {
        let _ = self.stream.write_all(&frame(opcode, payload));
    }

    fn close(&mut self, code: u16, reason: &[u8]) {
        self.say(CLOSE, &[&code.to_be_bytes(), reason].concat());
    }

    /// Reads message and close frame.
    fn take(&mut self) -> Option<Vec<u8>> {
        let message = self.frame()?;
        assert_eq!(message.first, 0x80 | BINARY, "one whole binary frame");
        let close = self.frame()?;
        assert_eq!((close.first, close.payload.as_slice()), (0x80 | CLOSE, &[3, 0xe8][..]), "close 1000");
        Some(message.payload)
    }

    /// Until the other side is gone.
    fn wait(&mut self) {
        while matches!(self.stream.read(&mut [0; 4096]), Ok(1..)) {}
    }
}

fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x80 | opcode];
    match payload.len() {
        length @ 0..126 => bytes.push(length as u8),
        length @ 126..0x1_0000 => {
            bytes.push(126);
            bytes.extend((length as u16).to_be_bytes());
        }
        length => {
            bytes.push(127);
            bytes.extend((length as u64).to_be_bytes());
        }
    }
    bytes.extend(payload);
    bytes
}

/// Gives each connection, once its handshake is done, to a function.
fn opened(serve: impl Fn(Peer) + Send + Sync + 'static) -> Server {
    Server::start(move |mut stream, _| {
        if let Some(peer) = Peer::open(&mut stream) {
            serve(peer);
        }
    })
}

/// Takes each message, and then does this.
fn taken(then: impl Fn(&mut Peer) + Send + Sync + 'static) -> Server {
    opened(move |mut peer| {
        if peer.take().is_some() {
            then(&mut peer);
        }
    })
}

fn ws(server: &Server) -> String {
    server.url("/inbox").replace("http://", "ws://")
}

fn closed(code: impl Into<Option<u16>>, reason: &str, sent: bool) -> Attempt {
    Attempt::Closed { code: code.into(), reason: reason.to_string(), sent }
}

#[track_caller]
fn assert_unopened(attempt: Attempt, expected: u16, words: &str) {
    match attempt {
        Attempt::Unopened { status, note, .. }
            if status == expected && note.as_deref().unwrap_or("").contains(words) => {}
        other => panic!("expected status {expected} with '{words}', got {other:?}"),
    }
}

const MAYBE: &str = ": the message may have arrived (127.0.0.1:";

/// For what takes long on a machine that is busy.
fn patient(ca: Option<&Ca>) -> Poster {
    let ca_file = ca.map(|ca| ca.file.clone());
    Poster::new(Options { timeout: Duration::from_secs(60), ca_file, ..options() }).unwrap()
}

/// For recipients that can be waited out only, once they have taken the handshake.
fn waiting() -> Poster {
    Poster::new(Options { timeout: Duration::from_secs(3), ..options() }).unwrap()
}

/// Without a bound of the test's own.
fn post_at_leisure(poster: &Poster, url: &str, payload: &[u8]) -> Attempt {
    poster.post(&url.parse().unwrap(), std::iter::empty(), payload, None)
}

/// More than any buffers on the way hold.
const LARGE: usize = 30_000_000;

// ---- what is sent

/// Sizes at which the head of a frame changes, and a large one.
const SIZES: [usize; 7] = [0, 1, 125, 126, 65_535, 65_536, 5_000_000];

fn payload(size: usize) -> Vec<u8> {
    (0..size).map(|n| (n % 251) as u8).collect()
}

#[test]
fn messages_of_all_sizes_arrive_bit_by_bit() {
    let (send, arrived) = mpsc::channel();
    let send = Mutex::new(send);
    let server = opened(move |mut peer| {
        send.lock().unwrap().send(peer.take().expect("it comes whole")).unwrap();
        peer.close(1000, b"");
        peer.wait();
    });
    for size in SIZES {
        let sent = payload(size);
        assert_eq!(post_at_leisure(&patient(None), &ws(&server), &sent), closed(1000, "", true), "{size} bytes");
        assert!(arrived.recv().unwrap() == sent, "{size} bytes");
    }
    assert_eq!(server.n_accepted(), SIZES.len(), "a connection for each");
}

#[test]
fn so_they_do_through_tls_whose_sessions_are_resumed() {
    let ca = Ca::new();
    let (send, arrived) = mpsc::channel();
    let send = Mutex::new(send);
    let server = ca.server(ca.certificate(&["localhost"], None), move |stream| {
        let mut peer = Peer::open(stream).unwrap();
        let message = peer.take().expect("it comes whole");
        peer.close(1000, b"");
        peer.wait();
        send.lock().unwrap().send((message, stream.conn.handshake_kind())).unwrap();
    });
    let poster = patient(Some(&ca));
    let url = tls_url(&server).replace("https", "wss");
    for (n, size) in SIZES.into_iter().enumerate() {
        let sent = payload(size);
        assert_eq!(post_at_leisure(&poster, &url, &sent), closed(1000, "", true), "{size} bytes");
        let (message, kind) = arrived.recv().unwrap();
        assert!(message == sent, "{size} bytes");
        assert_eq!(kind == Some(rustls::HandshakeKind::Resumed), n > 0, "{kind:?}");
    }
}

#[test]
fn the_handshake_carries_the_headers_of_the_message_and_none_of_a_connection() {
    let heads = Arc::new(Mutex::new(VecDeque::new()));
    let seen = heads.clone();
    let server = Server::start(move |mut stream, _| {
        let mut peer = Peer::open(&mut stream).unwrap();
        let head = std::mem::replace(&mut peer.head, Received { line: String::new(), headers: vec![], body: vec![] });
        seen.lock().unwrap().push_back(head);
        peer.take().unwrap();
        peer.close(1000, b"");
        peer.wait();
    });
    let poster = Poster::new(Options { id_header: "X-Message-Id".parse().ok(), ..options() }).unwrap();
    let headers = [
        ("Content-Type", "application/didcomm-envelope-enc"),
        ("x-api-key", "secret"),
        ("X-Twice", "one"),
        ("X-Twice", "two"),
        ("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAA=="),
        ("sec-websocket-extensions", "permessage-deflate"),
        ("Sec-WebSocket-Protocol", "chat"),
        ("Upgrade", "h2c"),
        ("connection", "close"),
        ("Host", "elsewhere.example"),
        ("Content-Length", "17"),
        ("Transfer-Encoding", "chunked"),
        ("Keep-Alive", "timeout=5"),
        ("TE", "trailers"),
        ("Expect", "100-continue"),
        ("Proxy-Authorization", "Basic eDp5"),
        ("x-message-id", "forged"),
    ];
    let headers = headers.map(|(name, value)| (name, value.as_bytes()));
    let url = format!("{}?to=you", ws(&server)).parse().unwrap();
    let attempt = poster.post(&url, headers.into_iter(), PAYLOAD, Some("0000000000000007"));
    assert_eq!(attempt, closed(1000, "", true));
    let head = heads.lock().unwrap().pop_front().unwrap();
    assert_eq!(head.line, "GET /inbox?to=you HTTP/1.1");
    let key = head.header("sec-websocket-key").unwrap().to_string();
    assert_eq!(BASE64_STANDARD.decode(&key).unwrap().len(), 16);
    let host = server.addr.to_string();
    let agent = concat!("acapy-deliver/", env!("CARGO_PKG_VERSION"));
    let expected = [
        ("host", host.as_str()),
        ("upgrade", "websocket"),
        ("connection", "Upgrade"),
        ("sec-websocket-key", &key),
        ("sec-websocket-version", "13"),
        ("content-type", "application/didcomm-envelope-enc"),
        ("x-api-key", "secret"),
        ("x-twice", "one"),
        ("x-twice", "two"),
        ("X-Message-Id", "0000000000000007"),
        ("user-agent", agent),
    ];
    let expected: Vec<_> =
        expected.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.to_string())).collect();
    assert_eq!(head.headers, expected);

    // Another key for each, and a header that breaks out of its line is never sent.
    post_with(&poster, &ws(&server), &[("User-Agent", "mine")], PAYLOAD);
    let head = heads.lock().unwrap().pop_front().unwrap();
    assert_ne!(head.header("sec-websocket-key"), Some(key.as_str()));
    assert_eq!(head.header("user-agent"), Some("mine"));
    let attempt = post_with(&poster, &ws(&server), &[("X", "a\r\nEvil: b")], PAYLOAD);
    assert_refused(attempt, "header \"X\" is not allowed by HTTP");
    assert_eq!(server.n_accepted(), 2);
}

// ---- what counts as taken

#[test]
fn the_code_of_a_close_comes_back() {
    for (code, reason, expected) in [
        (1000, "", ""),
        (1000, "bye", "bye"),
        (1009, "at most 4 MiB", "at most 4 MiB"),
        (1001, "", ""),
        (1011, "oops\u{1b}[2J\n", "oops\\u{1b}[2J"),
        (4999, "é", "é"),
        (7, "", ""),
    ] {
        let server = taken(move |peer| {
            peer.close(code, reason.as_bytes());
            peer.wait();
        });
        assert_eq!(post(&poster(), &ws(&server)), closed(code, expected, true));
    }
    // Whatever follows it, and whatever its reason is.
    let server = taken(|peer| {
        peer.close(1000, b"\xff\xfe");
        flood(peer.stream, b"more");
    });
    assert_eq!(post(&poster(), &ws(&server)), closed(1000, "\u{fffd}\u{fffd}", true));
}

#[test]
fn a_close_of_the_recipients_own_counts_once_it_has_the_message() {
    // As Credo does: it closes when it has read a message, without a code, and without waiting for ours.
    let server = opened(|mut peer| {
        assert_eq!(peer.frame().unwrap().payload, PAYLOAD);
        peer.say(CLOSE, b"");
        peer.wait();
    });
    assert_eq!(post(&poster(), &ws(&server)), closed(None, "", true));
}

#[test]
fn a_close_that_came_before_the_message_was_sent_is_no_delivery() {
    // Behind the handshake at once.
    for (code, sent) in [(None, false), (Some(1000), false), (Some(1008), false)] {
        let server = Server::start(move |mut stream, _| {
            let mut peer = Peer::read(&mut stream).unwrap();
            let code = code.map(u16::to_be_bytes);
            let close = frame(CLOSE, code.as_ref().map_or(&[][..], |code| code));
            let answer = [peer.answer().as_bytes(), &close].concat();
            peer.stream.write_all(&answer).unwrap();
            peer.wait();
        });
        assert_eq!(post(&poster(), &ws(&server)), closed(code, "", sent));
    }
    // In the middle of a large one, with and without reading on; then with a reset, as ACA-Py does.
    for (code, how) in [(1000, "reads on"), (1009, "reads on"), (1009, "stops"), (1009, "resets")] {
        let server = Server::start(move |mut stream, _| {
            let mut peer = Peer::open(&mut stream).unwrap();
            peer.stream.read_exact(&mut [0; 1000]).unwrap();
            peer.close(code, b"too big");
            match how {
                "reads on" => peer.wait(),
                "resets" => reset(stream),
                _ => std::thread::sleep(Duration::from_secs(60)),
            }
        });
        let attempt = post_at_leisure(&patient(None), &ws(&server), &vec![7; LARGE]);
        assert_eq!(attempt, closed(code, "too big", false), "{how}");
    }
}

#[test]
fn no_close_frame_is_no_delivery_and_it_is_said_that_it_may_have_arrived() {
    let ended = format!("connection ended without a close frame{MAYBE}");
    let server = taken(|_| {});
    assert_failed(post(&poster(), &ws(&server)), Failure::Broken, &ended);
    // What was not read makes an end a reset.
    let server = opened(|_| {});
    assert_failed(post(&poster(), &ws(&server)), Failure::Broken, &ended);
    let server = Server::start(|mut stream, _| {
        if Peer::open(&mut stream).and_then(|mut peer| peer.take()).is_some() {
            reset(stream);
        }
    });
    assert_failed(post(&poster(), &ws(&server)), Failure::Broken, &ended);
    // Half a close frame.
    let server = taken(|peer| peer.stream.write_all(&[0x88, 2, 3]).unwrap());
    assert_failed(post(&poster(), &ws(&server)), Failure::Broken, &ended);

    let silent = format!("no close frame within 3s{MAYBE}");
    let server = taken(|peer| peer.wait());
    assert_failed(post(&waiting(), &ws(&server)), Failure::Timeout, &silent);
}

#[test]
fn tls_that_ends_without_notice_is_no_close_frame() {
    let ca = Ca::new();
    let config = Arc::new(ca.certificate(&["localhost"], None));
    for with_close in [false, true] {
        let config = config.clone();
        let server = Server::start(move |stream, _| {
            let conn = rustls::ServerConnection::new(config.clone()).unwrap();
            let mut stream = rustls::StreamOwned::new(conn, stream);
            let mut peer = Peer::open(&mut stream).unwrap();
            peer.take().unwrap();
            if with_close {
                peer.close(1000, b"");
            }
        });
        let attempt = post(&ca.poster(), &tls_url(&server).replace("https", "wss"));
        match with_close {
            false => assert_failed(attempt, Failure::Broken, "connection ended without a close frame: the message may"),
            true => assert_eq!(attempt, closed(1000, "", true)),
        }
    }
}

#[test]
fn pings_are_answered_and_data_is_passed_over_while_the_close_is_waited_for() {
    let (send, pongs) = mpsc::channel();
    let send = Mutex::new(send);
    let server = opened(move |mut peer| {
        peer.say(PING, b"first");
        peer.take().unwrap();
        for n in 0..3 {
            peer.say(BINARY, &vec![0x88; 100_000 * n]);
            peer.stream.write_all(&[0x01, 3, b'a', b'b', b'c']).unwrap();
            peer.say(PING, &[n as u8; 125]);
            peer.stream.write_all(&[0x80, 1, b'd']).unwrap();
            // One of before the message may be answered behind it.
            let mut pong = peer.frame().unwrap();
            if pong.payload == b"first" {
                pong = peer.frame().unwrap();
            }
            send.lock().unwrap().send(pong).unwrap();
        }
        peer.say(PONG, b"unasked");
        peer.close(1000, b"");
        peer.wait();
    });
    assert_eq!(post(&poster(), &ws(&server)), closed(1000, "", true));
    for n in 0..3 {
        let pong = pongs.recv().unwrap();
        assert!(pong == Frame { first: 0x80 | PONG, payload: vec![n; 125] });
    }
}

#[test]
fn who_is_slow_to_end_the_connection_after_its_close_is_not_waited_for() {
    let server = taken(|peer| {
        peer.close(1000, b"");
        peer.wait();
        std::thread::sleep(Duration::from_secs(1));
    });
    let started = Instant::now();
    assert_eq!(post(&poster(), &ws(&server)), closed(1000, "", true));
    assert!(started.elapsed() >= Duration::from_millis(200), "the recipient ends it first, if it does soon");
}

// ---- handshakes

#[test]
fn statuses_of_a_handshake_come_back_and_none_of_them_delivers() {
    for status in [200, 204, 400, 401, 404, 426, 500, 503] {
        let server = Server::answering(format!("HTTP/1.1 {status} So\r\nContent-Length: 0\r\nRetry-After: 7\r\n\r\n"));
        let expected = Attempt::Unopened { status, retry_after: Some(Duration::from_secs(7)), note: None };
        assert_eq!(post(&poster(), &ws(&server)), expected);
    }
    // A recipient of HTTP alone.
    let server = Server::answering(OK);
    assert_unopened(post(&poster(), &ws(&server)), 200, "");
    // Whatever follows a status; and what comes before it.
    let server = Server::answering("HTTP/1.1 410 Gone\r\nbad header line\r\n\r\n");
    assert_unopened(post(&poster(), &ws(&server)), 410, "the answer's headers cannot be read");
    let server =
        Server::answering("HTTP/1.1 103 Hints\r\nX: y\r\n\r\nHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 410 Gone\r\n\r\n");
    assert_unopened(post(&poster(), &ws(&server)), 410, "");
    for status in [301, 302, 303] {
        let server = Server::answering(format!("HTTP/1.1 {status} So\r\nLocation: /x\r\n\r\n"));
        assert_unopened(post(&poster(), &ws(&server)), status, "only redirects 307 and 308 are followed");
    }
}

#[test]
fn an_answer_101_that_opens_no_websocket_is_none() {
    for (change, words) in [
        (("Accept: ", "Accept: x"), "with a wrong 'Sec-WebSocket-Accept'"),
        (("Sec-WebSocket-Accept", "X"), "with a wrong 'Sec-WebSocket-Accept'"),
        (("Upgrade: WebSocket", "Upgrade: h2c"), "without 'Upgrade: websocket' and 'Connection: Upgrade'"),
        (("Upgrade: WebSocket\r\n", ""), "without 'Upgrade: websocket'"),
        (("keep-alive, Upgrade", "close"), "without 'Upgrade: websocket'"),
        (("\r\n\r\n", "\r\nSec-WebSocket-Protocol: x\r\n\r\n"), "with a subprotocol or an extension that was not"),
        (("\r\n\r\n", "\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"), "with a subprotocol or an"),
    ] {
        let server = Server::start(move |mut stream, _| {
            let mut peer = Peer::read(&mut stream).unwrap();
            let answer = peer.answer().replacen(change.0, change.1, 1);
            peer.stream.write_all(answer.as_bytes()).unwrap();
            assert!(peer.frame().is_none(), "nothing is sent to it");
        });
        assert_failed(post(&poster(), &ws(&server)), Failure::Broken, &format!("no WebSocket: answer 101 {words}"));
    }
}

#[test]
fn handshakes_are_redirected_with_the_rules_of_http() {
    let (send, heads) = mpsc::channel();
    let send = Mutex::new(send);
    let target = opened(move |mut peer| {
        let authorization = peer.head.header("authorization").map(str::to_string);
        send.lock().unwrap().send((peer.head.line.clone(), authorization, peer.take().unwrap())).unwrap();
        peer.close(1000, b"");
        peer.wait();
    });
    let headers = [("Content-Type", "x/y"), ("Authorization", "Basic eDp5")];
    for (status, location) in [(307, ws(&target)), (308, target.url("/inbox"))] {
        let answer = format!("HTTP/1.1 {status} So\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n");
        let server = Server::answering(answer);
        let mut entered = Vec::new();
        let attempt = poster().post_through(
            &ws(&server).parse().unwrap(),
            headers.map(|(name, value)| (name, value.as_bytes())).into_iter(),
            PAYLOAD,
            None,
            &mut |origin| {
                entered.push(origin.to_string());
                Ok(())
            },
        );
        assert_eq!(attempt, closed(1000, "", true));
        assert_eq!(heads.recv().unwrap(), ("GET /inbox HTTP/1.1".to_string(), None, PAYLOAD.to_vec()));
        assert_eq!(entered, [format!("ws://{}", target.addr)]);
    }
    let within = Server::start(|mut stream, n| {
        let mut peer = Peer::read(&mut stream).unwrap();
        assert_eq!(peer.head.header("authorization"), Some("Basic eDp5"));
        let answer = match n {
            0 => "HTTP/1.1 307 There\r\nLocation: /there\r\n\r\n".to_string(),
            _ => peer.answer(),
        };
        peer.stream.write_all(answer.as_bytes()).unwrap();
        if n == 1 {
            peer.take().unwrap();
            peer.close(1000, b"");
            peer.wait();
        }
    });
    assert_eq!(post_with(&poster(), &ws(&within), &headers, PAYLOAD), closed(1000, "", true));

    for (location, words) in [
        ("/again", "more than 5 redirects"),
        ("ftp://a.example/", "redirect to another scheme than ws and wss"),
        ("ws://[::1/", "redirect to an unreadable location"),
        ("\u{1}", "redirect to an unreadable location"),
    ] {
        let server = Server::answering(format!("HTTP/1.1 308 So\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n"));
        match post(&poster(), &ws(&server)) {
            // What is no header at all is so.
            Attempt::Unopened { status: 308, note: Some(note), .. } => {
                assert!(note.contains(words) || note.contains("cannot be read"), "{note}");
            }
            other => panic!("{other:?}"),
        }
    }
    let server = Server::answering("HTTP/1.1 308 So\r\n\r\n");
    assert_unopened(post(&poster(), &ws(&server)), 308, "redirect without a location");
    // From one way to the other neither.
    let server = Server::answering("HTTP/1.1 308 So\r\nLocation: ws://a.example/\r\nContent-Length: 0\r\n\r\n");
    assert_note(post(&poster(), &server.url("/")), 308, "redirect to another scheme than http and https");
    let ca = Ca::new();
    let secure = ca.server(ca.certificate(&["localhost"], None), move |stream| {
        let peer = Peer::read(stream).unwrap();
        let answer = b"HTTP/1.1 307 So\r\nLocation: ws://localhost/\r\nContent-Length: 0\r\n\r\n";
        peer.stream.write_all(answer).unwrap();
    });
    let attempt = post(&ca.poster(), &tls_url(&secure).replace("https", "wss"));
    assert_unopened(attempt, 307, "redirect from wss to ws");
}

#[test]
fn websockets_go_through_proxies_by_a_tunnel() {
    let ca = Ca::new();
    let secure = ca.server(ca.certificate(&["inside.example"], None), |stream| {
        let mut peer = Peer::open(stream).unwrap();
        peer.take().unwrap();
        peer.close(1000, b"");
        peer.wait();
    });
    let plain = taken(|peer| {
        peer.close(1000, b"");
        peer.wait();
    });
    for (target, url, asked_for) in [
        (&plain, "ws://inside.example/x", "CONNECT inside.example:80 HTTP/1.1\r\n"),
        (&secure, "wss://inside.example/x", "CONNECT inside.example:443 HTTP/1.1\r\n"),
    ] {
        let (send, asked) = mpsc::channel();
        let proxy = proxy_to(target.addr, send);
        let proxies = proxies(&proxy.url("").replace("http://", "http://user:secret@"));
        let poster = Poster::new(Options { proxies, ca_file: Some(ca.file.clone()), ..options() }).unwrap();
        assert_eq!(post(&poster, url), closed(1000, "", true));
        let head = asked.recv().unwrap();
        assert!(head.starts_with(asked_for), "{head}");
        assert!(head.contains("Proxy-Authorization: Basic dXNlcjpzZWNyZXQ=\r\n"), "{head}");
    }
    let refusing = Server::answering("HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n");
    let poster = Poster::new(Options { proxies: proxies(&refusing.url("")), ..options() }).unwrap();
    let attempt = post(&poster, "ws://other.example/x");
    assert_failed(attempt, Failure::Connect, "answered 403 to CONNECT (other.example:80)");
}

#[test]
fn ws_is_held_to_the_same_rules_of_addresses_and_tls() {
    let server = taken(|peer| peer.close(1000, b""));
    let guarded = |guard| Poster::new(Options { guard, ..options() }).unwrap();
    let denied = guarded(Guard::new(&[], &["loopback".parse().unwrap()], &[]));
    assert_refused(post(&denied, &ws(&server)), "is refused by '--deny-net loopback'");
    let own = guarded(Guard::new(&[], &[], &[(server.addr, "Redis")]));
    assert_refused(post(&own, &ws(&server)), "is the agent's own Redis");
    let strict = guarded(Guard::new(&[], &[], &[]).https_only(true));
    assert_refused(post(&strict, &ws(&server)), "'--https-only' refuses");
    assert_eq!(server.n_accepted(), 0);
    let strict = guarded(Guard::new(&["127.0.0.0/8".parse().unwrap()], &[], &[]).https_only(true));
    assert_eq!(post(&strict, &ws(&server)), closed(1000, "", true));

    let ca = Ca::new();
    let secure = ca.server(ca.certificate(&["localhost"], None), |stream| drop(Peer::open(stream)));
    let url = tls_url(&secure).replace("https", "wss");
    assert_failed(post(&poster(), &url), Failure::Tls, "certificate from an unknown issuer");
    let talker = Server::start(|mut stream, _| drop(stream.write_all(b"220 ready for mail\r\n")));
    assert_failed(post(&poster(), &format!("wss://{}/", talker.addr)), Failure::Tls, "what came is not TLS");
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert_failed(post(&poster(), &format!("ws://{closed}/")), Failure::Connect, "connection refused");
}

// ---- recipients that attack

#[test]
fn handshakes_that_do_not_end_end_at_the_deadline_or_the_bound() {
    let server = Server::start(|mut stream, _| {
        let _ = read_head(&mut stream);
        trickle(&mut stream, b"HTTP/1.1 101 Switching Protocols\r\nX: ");
    });
    assert_failed(post(&impatient(), &ws(&server)), Failure::Timeout, "no answer within 500ms");
    let server = Server::start(|mut stream, _| {
        let _ = read_head(&mut stream);
        let _ = stream.read(&mut [0]);
    });
    assert_failed(post(&impatient(), &ws(&server)), Failure::Timeout, "no answer within 500ms");
    let server = Server::start(|_, _| {});
    assert_failed(post(&poster(), &ws(&server)), Failure::Broken, "connection");

    // What begins as no answer does is not waited for.
    let server = Server::start(|mut stream, _| {
        let _ = read_head(&mut stream);
        let _ = stream.write_all(b"SSH-2.0");
        let _ = stream.read(&mut [0]);
    });
    assert_failed(post(&poster(), &ws(&server)), Failure::Broken, "answer is not valid HTTP");

    for (begin, endless, words) in [
        ("HTTP/1.1 101 Switching Protocols\r\nX: ", &b"x"[..], "answer is not valid HTTP: they are over 64 kB"),
        ("HTTP/1.1 101 Switching Protocols\r\n", b"X: y\r\n", "answer is not valid HTTP: too many headers"),
        ("", b"HTTP/1.1 103 Hints\r\n\r\n", "answer has no end within 512 kB"),
        ("", b"\0", "answer is not valid HTTP"),
        ("", b"\n", "answer is not valid HTTP"),
        ("SSH-2.0-x\r\n", b"x", "answer is not valid HTTP"),
    ] {
        let (send, took) = mpsc::channel();
        let send = Mutex::new(send);
        let server = Server::start(move |mut stream, _| {
            let _ = read_head(&mut stream);
            let _ = stream.write_all(begin.as_bytes());
            let _ = send.lock().unwrap().send(flood(&mut stream, endless));
        });
        assert_failed(post(&poster(), &ws(&server)), Failure::Broken, words);
        let took = took.recv().unwrap();
        assert!(took < 16 << 20, "took {took} bytes");
    }
}

#[test]
fn an_answer_to_a_handshake_is_heard_while_the_request_is_not_read() {
    let server = Server::start(|mut stream, _| {
        stream.write_all(b"HTTP/1.1 431 Too much\r\n\r\n").unwrap();
        std::thread::sleep(Duration::from_secs(60));
    });
    let value = vec![b'v'; LARGE];
    let headers = [("X", value.as_slice())].into_iter();
    assert_unopened(patient(None).post(&ws(&server).parse().unwrap(), headers, PAYLOAD, None), 431, "");
}

#[test]
fn frames_that_may_not_be_end_the_attempt() {
    let masked = [0x82, 0x81, 1, 2, 3, 4, 5].to_vec();
    let huge = [&[0x82, 127][..], &(1_u64 << 63).to_be_bytes(), &[0; 100]].concat();
    let long_reason = frame(CLOSE, &[b"\x03\xe8", &vec![b'r'; 100_000][..]].concat());
    for (bytes, words) in [
        (masked, "a masked frame"),
        (huge, "a frame of 2^63 bytes or more"),
        (long_reason, "a control frame of over 125 bytes"),
        (vec![0xc2, 0], "a frame with reserved bits set"),
        (vec![0x8f, 0], "a frame of an unknown kind"),
        (vec![0x09, 0], "a control frame in fragments"),
        (vec![0x88, 1, 3], "a close frame with half a code"),
        (b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), "a frame with reserved bits set"),
    ] {
        let sent = bytes.clone();
        let server = taken(move |peer| {
            let _ = peer.stream.write_all(&sent);
            peer.wait();
        });
        let attempt = post(&poster(), &ws(&server));
        assert_failed(attempt, Failure::Broken, &format!("what came is not WebSocket: {words}{MAYBE}"));
    }
}

#[test]
fn what_has_no_end_is_bounded() {
    let ping = frame(PING, &[7; 125]);
    let large = [&[0x82, 127][..], &(1_u64 << 62).to_be_bytes()].concat();
    for (begin, endless) in [
        (vec![], vec![0x00, 1, 7]),          // fragments
        (vec![], frame(BINARY, &[7; 1000])), // messages
        (large, vec![7]),                    // a message of 2^62 bytes
        (vec![], vec![0x8a, 0]),             // pongs
        (vec![], ping),                      // pings, whose answers nobody reads
    ] {
        let (send, took) = mpsc::channel();
        let send = Mutex::new(send);
        let server = taken(move |peer| {
            let _ = peer.stream.write_all(&begin);
            let _ = send.lock().unwrap().send(flood(peer.stream, &endless));
        });
        match post(&waiting(), &ws(&server)) {
            Attempt::Failed { failure: Failure::Broken, error } => {
                assert!(error.contains(&format!("no close frame within 4 MB{MAYBE}")), "{error}");
            }
            // Neither side reads what the other sends, until the time is over.
            Attempt::Failed { failure: Failure::Timeout, error } => assert!(error.contains(MAYBE), "{error}"),
            other => panic!("{other:?}"),
        }
        let took = took.recv().unwrap();
        assert!(took < 32 << 20, "took {took} bytes");
    }
}

#[test]
fn who_never_reads_ends_at_the_deadline() {
    let server = Server::start(|mut stream, _| {
        drop(Peer::open(&mut stream));
        std::thread::sleep(Duration::from_secs(60));
    });
    let attempt = post_at_leisure(&waiting(), &ws(&server), &vec![7; LARGE]);
    assert_failed(attempt, Failure::Timeout, "the message was not taken whole within 3s");
}

#[test]
fn who_ends_in_the_middle_of_the_message_has_not_got_it() {
    for with_reset in [false, true] {
        let server = Server::start(move |mut stream, _| {
            Peer::open(&mut stream).unwrap().stream.read_exact(&mut [0; 1000]).unwrap();
            if with_reset {
                reset(stream);
            }
        });
        let attempt = post_at_leisure(&patient(None), &ws(&server), &vec![7; LARGE]);
        assert_failed(attempt, Failure::Broken, "connection ended before the whole message was sent (127.0.0.1:");
    }
}
