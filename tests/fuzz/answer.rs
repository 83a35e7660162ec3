//! Fuzz target: any bytes as what a recipient answers, through a real socket and the real poster.
//!
//! What must hold: no panic; an end within the time allowed; a status that was in the bytes; a wait
//! within its bounds; and above all that what comes after an answer on the same connection is never
//! taken for the answer to the next message, for then a message could pass for delivered that is not.
//!
//! The first byte of an input says whether the recipient closes the connection after its answer
//! (odd) or keeps it (even) and answers 204 to whatever is asked on it next.

#![no_main]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, LazyLock, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use acapy_deliver::internals::guard::Guard;
use acapy_deliver::internals::policy::{self, Attempt, Outcome, Retry};
use acapy_deliver::internals::delivery::{Options, Poster};
use acapy_deliver::queue::History;

/// An attempt that waits for more than it gets costs this much.
const TIMEOUT: Duration = Duration::from_millis(60);
const PAYLOAD: &[u8] = b"{\"protected\":\"...\"}";
const NEXT: &[u8] = b"HTTP/1.1 204 No Content\r\n\r\n";

struct Setting {
    poster: Poster,
    address: SocketAddr,
    answer: Arc<Mutex<Arc<Vec<u8>>>>,
}

static SETTING: LazyLock<Setting> = LazyLock::new(|| {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let answer = Arc::new(Mutex::new(Arc::new(Vec::new())));
    let current = answer.clone();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = current.lock().unwrap().clone();
            thread::spawn(move || serve(stream, &answer));
        }
    });
    // Wherever an answer redirects to, nothing goes beyond this machine.
    let nets = |texts: &[&str]| texts.iter().map(|net| net.parse().unwrap()).collect::<Vec<_>>();
    let guard = Guard::new(&nets(&["loopback"]), &nets(&["0.0.0.0/0", "::/0"]), &[]);
    let options = Options { connect_timeout: TIMEOUT, timeout: TIMEOUT, workers: 4, guard, ..Options::default() };
    Setting { poster: Poster::new(options).unwrap(), address, answer }
});

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some((first, answer)) = input.split_first() else { return };
    if names_another_host(answer) {
        return;
    }
    let setting = &*SETTING;
    *setting.answer.lock().unwrap() = Arc::new(input.to_vec());
    let url = format!("http://{}/", setting.address).parse().unwrap();
    let attempt = attempt(&setting.poster, &url);
    if let Attempt::Answered { status, .. } = &attempt {
        let digits = status.to_string();
        let is_there = answer.windows(3).any(|window| window == digits.as_bytes());
        assert!(is_there || *status == 204, "status {status} is not in {:?}", String::from_utf8_lossy(answer));
    }
    if first % 2 == 0 {
        let next = self::attempt(&setting.poster, &format!("http://{}/next", setting.address).parse().unwrap());
        match &next {
            Attempt::Answered { status: 204, .. } | Attempt::Failed { .. } => {}
            other => panic!("after {:?} the next message got {other:?}", String::from_utf8_lossy(answer)),
        }
    }
    setting.poster.close_idle();
});

fn attempt(poster: &Poster, url: &ureq::http::Uri) -> Attempt {
    let begun = Instant::now();
    let attempt = poster.post(url, std::iter::empty(), PAYLOAD, None);
    // A second try on a fresh connection, and a machine that is busy.
    assert!(begun.elapsed() < Duration::from_secs(5), "an attempt took {:?}", begun.elapsed());
    match &attempt {
        Attempt::Answered { retry_after: Some(wait), .. } => {
            assert!(*wait >= Duration::from_secs(1) && *wait <= policy::MESSAGE_BACKOFF_MAX, "waits {wait:?}");
        }
        Attempt::Failed { error, .. } => assert!(error.len() < 1000, "an error of {} bytes", error.len()),
        _ => {}
    }
    let outcome = policy::judge(&attempt, &History::default(), &Retry::default());
    let is_success = matches!(&attempt, Attempt::Answered { status: 200..=299, .. });
    assert_eq!(outcome == Outcome::Delivered, is_success);
    let _ = policy::parse_retry_after("", SystemTime::now());
    attempt
}

/// Answers the first request with the bytes; later ones, and those for `/next`, with 204.
fn serve(mut stream: TcpStream, input: &[u8]) {
    let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
    let (mut seen, mut bytes, mut is_first) = (Vec::new(), [0; 4096], true);
    while let Ok(n @ 1..) = stream.read(&mut bytes) {
        seen.extend(&bytes[..n]);
        if !seen.ends_with(PAYLOAD) {
            continue;
        }
        let is_next = seen.starts_with(b"POST /next ");
        seen.clear();
        let answer = if is_first && !is_next { &input[1..] } else { NEXT };
        if stream.write_all(answer).is_err() {
            return;
        }
        if is_first && input[0] % 2 == 1 {
            let _ = stream.shutdown(Shutdown::Write);
        }
        is_first = false;
    }
}

/// A redirect to a name would ask the machine's resolver for it.
fn names_another_host(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer).to_ascii_lowercase();
    let mut rest = text.as_str();
    while let Some(at) = rest.find("location:") {
        rest = &rest[at + "location:".len()..];
        let value = rest.trim_start_matches([' ', '\t']);
        if !value.starts_with('/') || value.starts_with("//") {
            return true;
        }
    }
    false
}
