//! What people type: `enqueue`, `listen`, `check`, wrong options, `--help`.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use crate::support::wire::envelope_with;
use crate::support::{Agent, Answer, Redis, SOON, Sink, ms, run_to_end};

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Asserts the exit code; a failure shows what was said.
#[track_caller]
fn assert_code(output: &Output, code: i32) {
    let (out, err) = (stdout(output), stderr(output));
    assert_eq!(output.status.code(), Some(code), "standard output: {out}\nstandard error: {err}");
}

#[test]
fn enqueue_pushes_the_bytes_that_aca_py_would() {
    let redis = Redis::start();
    let dir = crate::support::TempDir::new("enqueue");
    let file = dir.path().join("payload");
    let payload: Vec<u8> = (0..=255).cycle().take(70_000).collect();
    std::fs::write(&file, &payload).unwrap();
    let endpoint = "http://127.0.0.1:1/path";
    let output = run_to_end(&[
        "enqueue",
        "-oq",
        &redis.url(),
        "--endpoint",
        endpoint,
        "--header",
        "Content-Type: application/octet-stream",
        "--header",
        "X-Other: a: b",
        file.to_str().unwrap(),
    ]);
    assert_code(&output, 0);
    let pushed: Vec<Vec<u8>> =
        redis::cmd("LRANGE").arg(redis.queue_key()).arg(&["0", "-1"]).query(&mut redis.client()).unwrap();
    let headers = [("Content-Type", "application/octet-stream"), ("X-Other", "a: b")];
    assert_eq!(pushed.len(), 1);
    assert!(pushed[0] == envelope_with(endpoint, &headers, &payload), "other bytes");
}

#[test]
fn what_is_enqueued_reaches_a_listener_through_the_agent() {
    let redis = Redis::start();
    let listener = Listener::start(&["listen", "127.0.0.1:0"]);
    let url = format!("http://{}/inbox", listener.address);
    let _agent = Agent::start(&redis, &[]);
    let text = "how are you today";
    let args = ["enqueue", "-oq", &redis.url(), "--endpoint", &url, "--text", text];
    assert_code(&run_to_end(&args), 0);
    listener.wait_for("/inbox");
    listener.wait_for(text);
    redis.wait_empty(SOON);
}

#[test]
fn a_listener_that_plays_a_bad_recipient_is_tried_again() {
    let redis = Redis::start();
    let mut listener = Listener::start(&["listen", "127.0.0.1:0", "--status", "503", "--count", "1"]);
    let url = format!("http://{}/bad", listener.address);
    let _agent = Agent::start(&redis, &["--retry-first", "300ms", "--retry-max", "500ms"]);
    let args = ["enqueue", "-oq", &redis.url(), "--endpoint", &url, "--text", "x"];
    assert_code(&run_to_end(&args), 0);
    listener.wait_for("/bad");
    crate::support::eventually("it ends after one request", SOON, || listener.ended());
    let good = Listener::start(&["listen", &listener.address, "--delay", "50ms"]);
    good.wait_for("/bad");
    redis.wait_empty(SOON);
}

#[test]
fn check_passes_on_a_redis_that_is_well_set_up() {
    let redis = Redis::start();
    let output = run_to_end(&["check", "-oq", &redis.url()]);
    assert_code(&output, 0);
    assert!(!stdout(&output).trim().is_empty());
    assert_eq!(redis.agents(), Vec::<String>::new(), "it left an agent behind");
    let keys: Vec<String> = redis::cmd("KEYS").arg("*").query(&mut redis.client()).unwrap();
    assert_eq!(keys, Vec::<String>::new(), "it left keys behind");
}

#[test]
fn check_names_what_would_lose_messages() {
    let redis = Redis::with(&["appendonly no", "maxmemory 50mb", "maxmemory-policy allkeys-lru"]);
    let said = run_to_end(&["check", "-oq", &redis.url()]);
    let said = stdout(&said) + &stderr(&said);
    for setting in ["appendonly", "maxmemory-policy"] {
        assert!(said.contains(setting), "{setting} is not named in: {said}");
    }
}

#[test]
fn check_fails_where_no_agent_could_work() {
    let mut redis = Redis::with(&["requirepass the-right-one"]);
    let url = redis.url_with_password("the-wrong-one");
    let output = run_to_end(&["check", "-oq", &url]);
    assert_code(&output, 1);
    let said = stdout(&output) + &stderr(&output);
    assert!(said.to_lowercase().contains("password") && !said.contains("the-wrong-one"), "{said}");

    redis.kill9();
    let output = run_to_end(&["check", "-oq", &redis.url()]);
    assert_code(&output, 1);
    let said = stdout(&output) + &stderr(&output);
    assert!(said.contains(&redis.address()) && !said.contains("the-right-one"), "{said}");
}

#[test]
fn wrong_usage_ends_with_2_and_names_what_is_wrong() {
    let url = "redis://127.0.0.1:1";
    let cases: &[(&[&str], &str)] = &[
        (&["run", "-oq", url, "--worker", "5"], "--worker"),
        (&["run", "-oq", url, "--workers", "none"], "--workers"),
        (&["run", "-oq", url, "--workers", "0"], "--workers"),
        (&["run", "-oq", url, "--timeout", "5"], "--timeout"),
        (&["run", "-oq", url, "--connect-timeout", "10s", "--timeout", "5s"], "--connect-timeout"),
        (&["run", "-oq", url, "--workers", "4", "--endpoint-concurrency", "5"], "--endpoint-concurrency"),
        (&["run", "-oq", url, "--in-flight-bytes", "many"], "--in-flight-bytes"),
        (&["run", "-oq", url, "--pop", "lpop"], "--pop"),
        (&["run", "-oq", url, "--retry-first", "--ordered"], "--retry-first"),
        (&["run", "-oq", "http://127.0.0.1", "--ordered"], "--outbound-queue"),
        (&["run", "-oq", url, "-oqc", "kafka"], "--outbound-queue-class"),
        (&["run"], "--outbound-queue"),
        (&["run", "-oq", url, "more"], "more"),
        (&["fly"], "fly"),
        (&["enqueue", "-oq", url, "--text", "x"], "--endpoint"),
        (&["listen", "--status", "99"], "--status"),
    ];
    for (args, named) in cases {
        let output = run_to_end(args);
        assert_code(&output, 2);
        let error = stderr(&output);
        assert!(error.contains(named), "{args:?}: {named} is not named in: {error}");
        assert!(error.lines().count() <= 3, "{args:?} takes many lines: {error}");
    }
}

#[test]
fn aca_pys_own_names_and_variables_work() {
    let redis = Redis::start();
    let sink = Sink::new(|_| Answer::ok());
    let message = crate::support::wire::envelope(&sink.url(), b"x");
    redis::cmd("RPUSH").arg("p.outbound_transport").arg(message).exec(&mut redis.client()).unwrap();
    let mut command = Agent::command();
    command
        .env("ACAPY_OUTBOUND_TRANSPORT_QUEUE", redis.url())
        .env("ACAPY_OUTBOUND_TRANSPORT_QUEUE_PREFIX", "p")
        .env(
            "ACAPY_OUTBOUND_TRANSPORT_QUEUE_CLASS",
            "aries_cloudagent.transport.outbound.queue.redis.RedisOutboundQueue",
        )
        .env("ACAPY_DELIVER_WORKERS", "3");
    let mut agent = Agent::spawn(command);
    crate::support::eventually("it arrives", SOON, || sink.n_delivered() == 1);
    agent.term();
    assert_eq!(agent.wait_exit(SOON), Some(0));

    let mut command = Agent::command();
    command.env("ACAPY_OUTBOUND_TRANSPORT_QUEUE", redis.url()).env("ACAPY_DELIVER_WORKERS", "few");
    let mut agent = Agent::spawn(command);
    assert_eq!(agent.wait_exit(SOON), Some(2));
    assert!(agent.log().contains("ACAPY_DELIVER_WORKERS"), "{}", agent.log());
}

#[test]
fn help_and_version_are_printed() {
    for command in ["run", "enqueue", "listen", "check"] {
        let output = run_to_end(&[command, "--help"]);
        assert_code(&output, 0);
        assert!(stdout(&output).contains("acapy-deliver"), "{command}");
    }
    let output = run_to_end(&["--version"]);
    assert_code(&output, 0);
    assert!(stdout(&output).contains(env!("CARGO_PKG_VERSION")));
}

/// `acapy-deliver listen`, whose output is read as it comes; killed on drop.
struct Listener {
    child: Child,
    address: String,
    lines: Receiver<String>,
}

impl Listener {
    fn start(args: &[&str]) -> Listener {
        let mut command: Command = Agent::command();
        command.args(args).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let first = lines.recv_timeout(SOON).expect("its first line says where it listens");
        let address = first.find("127.0.0.1:").map(|at| &first[at..]).expect("an address");
        let end = address[10..].find(|c: char| !c.is_ascii_digit()).map_or(address.len(), |n| 10 + n);
        let address = address[..end].to_string();
        Listener { child, address, lines }
    }

    #[track_caller]
    fn wait_for(&self, text: &str) {
        let mut seen = Vec::new();
        crate::support::eventually(&format!("the listener shows {text:?}"), SOON, || {
            seen.extend(self.lines.recv_timeout(ms(1)));
            seen.iter().any(|line| line.contains(text))
        });
    }

    fn ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
