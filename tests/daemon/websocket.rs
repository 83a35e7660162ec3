//! What goes over ws: to sinks, and to recipients that others wrote, which `scripts/peers` installs.
//! How handshakes and frames may go wrong is tested in `tests/library/recipients`.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::support::wire::{envelope, envelope_with, json_with, numbered};
use crate::support::{Agent, Answer, Redis, SOON, Sink, eventually, eventually_eq};

/// Sizes at which the head of a frame changes, and a large one.
const SIZES: [usize; 7] = [0, 1, 125, 126, 65_535, 65_536, 5_000_000];

fn payload(size: usize) -> Vec<u8> {
    (0..size).map(|n| (n * 7 % 251) as u8).collect()
}

#[test]
fn messages_of_both_formats_and_all_sizes_arrive_bit_by_bit_with_their_headers() {
    let redis = Redis::start();
    let sink = Sink::new(|_| Answer::ok());
    let url = format!("{}/inbox?to=you", sink.ws_url());
    let headers = [("Content-Type", "application/didcomm-envelope-enc"), ("x-api-key", "k"), ("Upgrade", "h2c")];
    for size in SIZES {
        redis.push(&envelope_with(&url, &headers, &payload(size)));
        redis.push(&json_with(&url, &headers, &payload(size)));
    }
    let agent = Agent::start(&redis, &[]);
    redis.wait_empty(SOON);
    let requests = sink.requests();
    let mut sizes: Vec<_> = requests.iter().map(|request| request.body.len()).collect();
    sizes.sort();
    assert_eq!(sizes, SIZES.iter().flat_map(|size| [*size; 2]).collect::<Vec<_>>());
    for request in &requests {
        assert!(request.body == payload(request.body.len()), "{} bytes", request.body.len());
        assert_eq!((request.method.as_str(), request.target.as_str()), ("WEBSOCKET", "/inbox?to=you"));
        assert_eq!(request.header("content-type"), Some("application/didcomm-envelope-enc"));
        assert_eq!(request.header("x-api-key"), Some("k"));
        assert_eq!(request.header("upgrade"), Some("websocket"));
    }
    let mut connections: Vec<_> = requests.iter().map(|request| request.connection).collect();
    connections.sort();
    connections.dedup();
    assert_eq!(connections.len(), requests.len(), "a connection for each");
    assert!(agent.complaints().is_empty(), "{:#?}", agent.complaints());
}

#[test]
fn ws_and_http_of_the_same_port_are_lanes_of_their_own() {
    let redis = Redis::start();
    let sink = Sink::new(|request| if request.method == "WEBSOCKET" { Answer::ok() } else { Answer::Cut });
    redis.push(&envelope(&sink.url(), b"http"));
    let agent = Agent::start(&redis, &["--retry-first", "10m"]);
    agent.wait_log(&format!("{} is down", sink.url()));
    redis.push_all(numbered(&sink.ws_url(), 20));
    eventually_eq("all of ws are delivered, and those of http wait", SOON, 20, || sink.n_delivered());
    eventually("nothing else is left", SOON, || redis.counts().messages == 1);
}

#[test]
fn a_close_of_the_message_is_its_end_and_one_of_the_endpoint_is_not() {
    let redis = Redis::start();
    let n = AtomicUsize::new(0);
    let sink = Sink::new(move |request| match request.target.as_str() {
        "/never" => Answer::status(410),
        "/busy" if n.fetch_add(1, Ordering::SeqCst) == 0 => Answer::status(503),
        "/half" if n.fetch_add(1, Ordering::SeqCst) == 2 => Answer::BreakOff,
        _ => Answer::ok(),
    });
    redis.push(&envelope(&format!("{}/never", sink.ws_url()), b"never"));
    let agent = Agent::start(&redis, &["--retry-first", "200ms"]);
    eventually_eq("it is dead", SOON, 1, || redis.dead().len());
    let history = &redis.dead()[0].history;
    assert!(history.contains("closed with 1008 (policy violation)"), "{history}");
    redis.push(&envelope(&format!("{}/busy", sink.ws_url()), b"busy"));
    redis.wait_empty_but_dead(SOON);
    redis.push(&envelope(&format!("{}/half", sink.ws_url()), b"half"));
    redis.wait_empty_but_dead(SOON);
    let n_of = |body: &str| sink.requests().iter().filter(|request| request.text() == body).count();
    assert_eq!((n_of("never"), n_of("busy"), n_of("half")), (1, 2, 2));
    drop(agent);
}

#[test]
fn an_agent_killed_in_mid_attempt_loses_nothing() {
    let redis = Redis::start();
    let sink = Sink::new(|_| Answer::Hang);
    redis.push_all(numbered(&sink.ws_url(), 50));
    let mut agent = Agent::start(&redis, &["--lease", "5s", "--endpoint-concurrency", "8"]);
    eventually("an attempt is under way", SOON, || sink.n_requests() >= 1);
    agent.kill9();
    sink.behave(|_| Answer::ok());
    let _agent = Agent::start(&redis, &["--lease", "5s"]);
    redis.wait_empty(SOON);
    let copies = sink.copies();
    assert_eq!(copies.len(), 50);
    assert!(copies.values().all(|n| *n == 1), "{copies:?}");
}

#[test]
fn strict_order_holds_over_ws_too() {
    let redis = Redis::start();
    let n = AtomicUsize::new(0);
    let sink = Sink::new(move |_| match n.fetch_add(1, Ordering::SeqCst) {
        3 => Answer::Cut,
        7 => Answer::status(503),
        _ => Answer::ok(),
    });
    redis.push_all(numbered(&sink.ws_url(), 12));
    let _agent = Agent::start(&redis, &["--ordered", "--retry-first", "100ms"]);
    redis.wait_empty(SOON);
    assert_eq!(sink.delivered(), (0..12).map(|n| format!("message {n}")).collect::<Vec<_>>());
}

/// A recipient that others wrote; killed on drop.
struct Peer {
    child: Child,
    port: u16,
    said: Arc<Mutex<Vec<String>>>,
}

impl Peer {
    fn start(language: &str) -> Peer {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let installed = root.join("target/peers/current");
        assert!(installed.join("done").exists(), "there is no {}: run scripts/peers first", installed.display());
        let mut command = match language {
            "Python" => {
                let mut command = Command::new("python3");
                command.arg(root.join("tests/peers/recipient.py")).env("PYTHONPATH", installed.join("python"));
                command
            }
            _ => {
                let mut command = Command::new("node");
                command.arg(root.join("tests/peers/recipient.js"));
                command.env("NODE_PATH", installed.join("node/node_modules"));
                command
            }
        };
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap_or_else(|error| {
                panic!("a recipient in {language} cannot be started: {error}; run scripts/peers")
            });
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let first = lines.next().and_then(Result::ok).unwrap_or_else(|| panic!("{language} ended; see above"));
        let port = first.strip_prefix("port ").unwrap().parse().unwrap();
        let said = Arc::new(Mutex::new(Vec::new()));
        let noted = said.clone();
        thread::spawn(move || lines.map_while(Result::ok).for_each(|line| noted.lock().unwrap().push(line)));
        Peer { child, port, said }
    }

    /// How often each line was said.
    fn said(&self) -> BTreeMap<String, usize> {
        let mut lines = BTreeMap::new();
        for line in self.said.lock().unwrap().iter() {
            *lines.entry(line.clone()).or_default() += 1;
        }
        lines
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn line_of(payload: &[u8], key: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, payload);
    let hash: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("binary {} {hash} {key}", payload.len())
}

#[test]
fn pythons_websockets_gets_every_message_bit_by_bit_and_once() {
    let redis = Redis::start();
    let _peer = is_served("Python", &redis);
}

#[test]
fn nodes_ws_gets_every_message_bit_by_bit_and_once_and_is_killed_before_its_close_frame() {
    let redis = Redis::start();
    let (mut agent, peer) = is_served("Node", &redis);
    let url = format!("ws://127.0.0.1:{}/inbox", peer.port);
    // It hands on a message before it reads what follows, unlike Python's, which answers a close frame first.
    redis.push(&json_with(&url, &[], b"die"));
    eventually("it has taken the message and ended", SOON, || peer.said().contains_key(&line_of(b"die", "undefined")));
    eventually("the message is still on record", SOON, || {
        let counts = redis.counts();
        counts.retry + counts.waiting == 1
    });
    agent.term();
    assert_eq!(agent.wait_exit(SOON), Some(0));
    redis.check_invariant();
}

/// Gets all sizes.
fn is_served(language: &str, redis: &Redis) -> (Agent, Peer) {
    let peer = Peer::start(language);
    let url = format!("ws://127.0.0.1:{}/inbox", peer.port);
    redis.push_all(SIZES.map(|size| json_with(&url, &[("x-api-key", "secret")], &payload(size))));
    let agent = Agent::start(redis, &["--retry-first", "10s"]);
    redis.wait_empty(SOON);
    let expected: BTreeMap<_, _> = SIZES.iter().map(|size| (line_of(&payload(*size), "secret"), 1)).collect();
    eventually_eq("each has arrived once", SOON, expected, || peer.said());
    (agent, peer)
}
