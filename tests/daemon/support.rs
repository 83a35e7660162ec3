//! The fixtures of the black-box tests: a private [`Redis`], a [`Sink`] that plays the recipients,
//! an [`Agent`] that runs the real binary, and [`eventually`] in place of sleeps.
//!
//! All of them listen on a loopback address of their own (`127.x.y.z`), so that tests run in
//! parallel and a port that one has closed for a while is not taken by another. All end what they
//! started when dropped, and when a test fails they print what they saw: the daemon's log, the
//! requests, the counts in Redis. They leave to the tests what is right and wrong.

mod agent;
mod authority;
mod cluster;
mod redis_server;
mod secure_sink;
mod sentinels;
mod sink;
mod websocket;
pub mod wire;

use std::fmt::Debug;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};
use std::{fs, thread};

pub use agent::{Agent, run_to_end};
#[allow(unused_imports)] // as below
pub use authority::Authority;
#[allow(unused_imports)] // only some tests need one
pub use cluster::{Cluster, Pusher};
pub use redis_server::{Counts, Held, Redis};
pub use secure_sink::SecureSink;
#[allow(unused_imports)] // as above
pub use sentinels::{Sentinels, guarded_url};
pub use sink::{Answer, Request, Sink};

/// Waits until the condition holds, looking every few milliseconds; panics with `what` after `timeout`.
#[track_caller]
pub fn eventually(what: &str, timeout: Duration, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + timeout;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {timeout:?}: {what}");
        thread::sleep(LOOK);
    }
}

/// Waits until `actual` gives what is expected; a failure shows both.
#[track_caller]
pub fn eventually_eq<T: PartialEq + Debug>(what: &str, timeout: Duration, expected: T, mut actual: impl FnMut() -> T) {
    let deadline = Instant::now() + timeout;
    loop {
        let seen = actual();
        if seen == expected {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "not within {timeout:?}: {what}\n  expected: {expected:?}\n    actual: {seen:?}"
        );
        thread::sleep(LOOK);
    }
}

/// Between two looks at a condition: short beside every bound here, long beside the look itself.
const LOOK: Duration = Duration::from_millis(5);

/// A generous bound for what should take milliseconds, on a machine busy with other tests.
pub const SOON: Duration = Duration::from_secs(20);

/// For commands that call cargo: what it tells a test of its package makes the build scripts of dependencies run again.
/// Everything would be compiled anew, and the binary replaced under other tests.
#[allow(dead_code)] // Not every binary of tests calls cargo.
pub fn forget_package(command: &mut Command) {
    let of_package = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_CRATE_", "CARGO_BIN_", "CARGO_PRIMARY_"];
    for (name, _) in std::env::vars_os() {
        if of_package.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
            command.env_remove(&name);
        }
    }
}

/// A duration in milliseconds, as the tests write it most.
pub fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// A loopback address that no other fixture of this machine's test runs is likely to use: the
/// process's number and a counter, in 127.128.0.0/9.
fn own_address() -> Ipv4Addr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed) % 1000;
    let low = (std::process::id() & 0x1fff) << 10 | n;
    Ipv4Addr::from(0x7f80_0000 | low)
}

/// Tells a thread beside the test to stop when it goes, be it by a panic: a scope waits for its threads.
pub struct StopAtEnd<'a>(pub &'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A directory that goes when it is dropped.
pub struct TempDir(PathBuf);

impl TempDir {
    pub fn new(name: &str) -> TempDir {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("acapy-deliver-{name}-{}-{n}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).expect("a temporary directory can be made");
        TempDir(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn a_redis_killed_and_restarted_keeps_what_was_pushed() {
        let mut redis = Redis::start();
        let url = redis.url();
        redis.push(b"one");
        redis.kill9();
        assert!(redis.try_client().is_err());
        redis.restart();
        assert_eq!(redis.url(), url);
        redis.push(b"two");
        assert_eq!(redis.counts(), Counts { queue: 2, ..Counts::default() });
        redis.check_invariant();
    }

    #[test]
    fn a_redis_takes_further_configuration() {
        let redis = Redis::with(&["requirepass secret", "rename-command BLMOVE \"\""]);
        assert!(redis.url().contains(":secret@"));
        let blmove = redis::cmd("BLMOVE").arg(&["a", "b", "LEFT", "LEFT", "0.1"]).query::<()>(&mut redis.client());
        assert!(blmove.unwrap_err().to_string().contains("unknown command"));
    }

    #[test]
    fn the_invariant_is_seen_to_be_broken() {
        let redis = Redis::start();
        let broken_by = |commands: &[&[&str]], says: &str| {
            let mut client = redis.client();
            redis.check_invariant();
            for command in commands {
                let key = redis.key(command[1]);
                redis::cmd(command[0]).arg(key).arg(&command[2..]).exec(&mut client).unwrap();
            }
            let error = redis.invariant().unwrap_err();
            assert!(error.contains(says), "{commands:?} gives: {error}");
            redis::cmd("FLUSHALL").exec(&mut client).unwrap();
        };
        let message: &[&str] = &["HSET", "messages", "0000000000000001", "x"];
        let retry: &[&str] = &["ZADD", "retry", "5", "0000000000000001"];
        broken_by(&[message], "in no place");
        broken_by(&[retry], "not in messages");
        broken_by(&[message, retry, &["ZADD", "dead", "1", "0000000000000001"]], "in two places");
        broken_by(&[message, &["ZADD", "waiting", "0", "http://a:1\n0000000000000001"]], "lanes");
        broken_by(&[&["ZADD", "lanes", "1", "http://a:1"]], "lanes");
        broken_by(&[&["HSET", "history", "0000000000000001", "x"]], "still in history");
    }

    #[test]
    fn a_sink_records_requests_and_keeps_connections() {
        let sink = Sink::new(|request| match request.target.as_str() {
            "/first" => Answer::status(503).header("Retry-After", "7").body("busy"),
            _ => Answer::ok(),
        });
        let mut stream = TcpStream::connect(sink.address()).unwrap();
        let mut answer = [0; 512];
        stream.write_all(b"POST /first HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc").unwrap();
        let n = stream.read(&mut answer).unwrap();
        let text = String::from_utf8_lossy(&answer[..n]).into_owned();
        assert!(text.starts_with("HTTP/1.1 503 "), "{text}");
        assert!(text.contains("Retry-After: 7\r\n") && text.ends_with("\r\n\r\nbusy"), "{text}");
        stream
            .write_all(b"POST /second HTTP/1.1\r\nX: y\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nde\r\n1;x=y\r\nf\r\n0\r\n\r\n")
            .unwrap();
        let n = stream.read(&mut answer).unwrap();
        assert!(answer[..n].starts_with(b"HTTP/1.1 200 "));

        let requests = sink.requests();
        assert_eq!(requests.len(), 2);
        assert_eq!((requests[0].body.as_slice(), requests[0].status), (&b"abc"[..], Some(503)));
        assert_eq!((requests[1].body.as_slice(), requests[1].status), (&b"def"[..], Some(200)));
        assert_eq!(requests[1].header("x"), Some("y"));
        assert_eq!(requests[0].connection, requests[1].connection);
        assert_eq!(sink.n_delivered(), 1);
    }

    #[test]
    fn a_sink_cuts_hangs_stops_and_comes_back_on_its_port() {
        let mut sink = Sink::new(|request| match request.target.as_str() {
            "/cut" => Answer::Cut,
            "/half" => Answer::BreakOff,
            _ => Answer::Hang,
        });
        let ask = |target: &str| {
            let mut stream = TcpStream::connect(sink.address()).unwrap();
            write!(stream, "POST {target} HTTP/1.1\r\nContent-Length: 0\r\n\r\n").unwrap();
            stream
        };
        let mut answer = Vec::new();
        let _ = ask("/cut").read_to_end(&mut answer);
        assert!(answer.is_empty());
        let _ = ask("/half").read_to_end(&mut answer);
        assert!(answer.starts_with(b"HTTP/1.1 200") && answer.len() < 60, "{answer:?}");

        let mut hanging = ask("/hang");
        eventually_eq("the third request arrives", SOON, 3, || sink.requests().len());
        sink.stop();
        answer.clear();
        let _ = hanging.read_to_end(&mut answer);
        assert!(answer.is_empty());
        assert!(TcpStream::connect(sink.address()).is_err());

        sink.start();
        sink.cut_on_accept(true);
        let mut stream = TcpStream::connect(sink.address()).unwrap();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.is_empty());
        sink.cut_on_accept(false);
        sink.behave(|_| Answer::ok().after(ms(30)));
        let asked = Instant::now();
        let mut stream = TcpStream::connect(sink.address()).unwrap();
        stream.write_all(b"POST / HTTP/1.0\r\nContent-Length: 0\r\n\r\n").unwrap();
        stream.read_to_end(&mut answer).unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 200") && asked.elapsed() >= ms(30));
    }

    #[test]
    fn a_sink_has_as_many_origins_as_wanted() {
        let sink = Sink::origins(3, |_| Answer::ok());
        let urls = sink.urls();
        assert_eq!(urls.len(), 3);
        for address in sink.addresses() {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(b"POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n").unwrap();
        }
        eventually_eq("each origin has its request", SOON, 3, || {
            let mut origins: Vec<_> = sink.requests().iter().map(|r| r.origin).collect();
            origins.sort();
            origins.dedup();
            origins.len()
        });
    }
}
