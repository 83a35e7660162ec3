//! Fuzz target: any bytes as what a recipient sends after the handshake, through a real socket and the
//! real poster.
//!
//! What must hold: no panic; an end within the time allowed; and the same close, or none, as a reader sees that
//! is written another way. Above all nothing passes for delivered that was not closed without
//! complaint after the message.
//!
//! The first byte of an input says whether the recipient stays silent behind the rest (a multiple of eight)
//! or ends the connection, and whether it sends it behind its answer to the handshake at once (bit 1) or
//! when it has read the message.

#![no_main]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, LazyLock, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use acapy_deliver::internals::policy::{self, Attempt, Failure, Outcome, Retry};
use acapy_deliver::internals::delivery::{Options, Poster};
use acapy_deliver::queue::History;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

/// An attempt that waits for more than it gets costs this much.
const TIMEOUT: Duration = Duration::from_millis(60);
const PAYLOAD: &[u8] = b"{\"protected\":\"...\"}";
/// Our frames: the message's head, mask and payload, and the close frame with its mask and code.
const SENT: usize = 2 + 4 + PAYLOAD.len() + 2 + 4 + 2;

struct Setting {
    poster: Poster,
    address: SocketAddr,
    input: Arc<Mutex<Arc<Vec<u8>>>>,
}

static SETTING: LazyLock<Setting> = LazyLock::new(|| {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let input = Arc::new(Mutex::new(Arc::new(Vec::new())));
    let current = input.clone();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let input = current.lock().unwrap().clone();
            thread::spawn(move || serve(stream, &input));
        }
    });
    let options = Options { connect_timeout: TIMEOUT, timeout: TIMEOUT, workers: 4, ..Options::default() };
    Setting { poster: Poster::new(options).unwrap(), address, input }
});

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some((first, said)) = input.split_first() else { return };
    let setting = &*SETTING;
    *setting.input.lock().unwrap() = Arc::new(input.to_vec());
    let url = format!("ws://{}/", setting.address).parse().unwrap();
    let begun = Instant::now();
    let attempt = setting.poster.post(&url, std::iter::empty(), PAYLOAD, None);
    assert!(begun.elapsed() < Duration::from_secs(5), "an attempt took {:?}", begun.elapsed());
    let is_early = first & 2 != 0;
    let outcome = policy::judge(&attempt, &History::default(), &Retry::default());
    match (&attempt, read(said)) {
        (Attempt::Closed { code, reason, sent }, Said::Close(expected)) => {
            assert_eq!(*code, expected);
            assert!(reason.len() <= 3 * 125, "a reason of {} bytes", reason.len());
            assert!(*sent || is_early, "it was read before the message was sent");
            let is_taken = *sent && matches!(code, None | Some(1000));
            assert_eq!(outcome == Outcome::Delivered, is_taken);
        }
        // A machine that is busy may be too late for anything.
        (Attempt::Failed { failure: Failure::Timeout | Failure::Connect, .. }, _) => {}
        (Attempt::Failed { error, .. }, Said::Nonsense) => {
            assert!(error.contains("what came is not WebSocket"), "{error}");
        }
        (Attempt::Failed { error, .. }, Said::Nothing) => assert!(error.contains("connection ended"), "{error}"),
        (attempt, said) => panic!("{said:?} came to {attempt:?}"),
    }
    assert!(outcome != Outcome::Delivered || matches!(attempt, Attempt::Closed { .. }));
});

#[derive(Debug)]
enum Said {
    Close(Option<u16>),
    Nonsense,
    Nothing,
}

/// The first thing said that matters, read from the whole at once.
fn read(mut bytes: &[u8]) -> Said {
    while let [first, second, rest @ ..] = bytes {
        let is_control = first & 8 != 0;
        let known = [0x80, 0x81, 0x82, 0x88, 0x89, 0x8a, 0, 1, 2];
        let short = usize::from(second & 127);
        if !known.contains(first) || (is_control && short > 125) {
            return Said::Nonsense;
        }
        let n = [0, 2, 8][usize::from(short >= 126) + usize::from(short == 127)];
        if rest.len() < n {
            return Said::Nothing;
        }
        let wide = rest[..n].iter().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
        let length = if n == 0 { short as u64 } else { wide };
        if length > i64::MAX as u64 {
            return Said::Nonsense;
        }
        if second & 128 != 0 {
            // It is known to be masked when its mask is there.
            return if rest.len() < n + 4 { Said::Nothing } else { Said::Nonsense };
        }
        let rest = &rest[n..];
        if length > rest.len() as u64 {
            return Said::Nothing;
        }
        let (payload, rest) = rest.split_at(length as usize);
        match (first & 15, payload) {
            (8, []) => return Said::Close(None),
            (8, [_]) => return Said::Nonsense,
            (8, [high, low, ..]) => return Said::Close(Some(u16::from(*high) << 8 | u16::from(*low))),
            _ => bytes = rest,
        }
    }
    Said::Nothing
}

fn serve(mut stream: TcpStream, input: &[u8]) {
    let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
    let _ = stream.set_nodelay(true);
    let (mut seen, mut bytes) = (Vec::new(), [0; 4096]);
    let end = loop {
        if let Some(at) = seen.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        match stream.read(&mut bytes) {
            Ok(n @ 1..) => seen.extend(&bytes[..n]),
            _ => return,
        }
    };
    let head = String::from_utf8_lossy(&seen[..end]).into_owned();
    let key = head.split("Sec-WebSocket-Key: ").nth(1).and_then(|rest| rest.split("\r\n").next()).unwrap();
    let text = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let accept = BASE64_STANDARD.encode(ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes()));
    let mut answer = format!(
        "HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
    )
    .into_bytes();
    let is_early = input[0] & 2 != 0;
    if is_early {
        answer.extend(&input[1..]);
    }
    if stream.write_all(&answer).is_err() {
        return;
    }
    seen.drain(..end);
    if !is_early {
        while seen.len() < SENT {
            match stream.read(&mut bytes) {
                Ok(n @ 1..) => seen.extend(&bytes[..n]),
                _ => return,
            }
        }
        if stream.write_all(&input[1..]).is_err() {
            return;
        }
    }
    if input[0] % 8 != 0 {
        let _ = stream.shutdown(Shutdown::Write);
    }
    while let Ok(1..) = stream.read(&mut bytes) {}
}
