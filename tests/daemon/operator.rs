//! What people type: `check`, `status`, `dead`, `enqueue`, `listen`, wrong options, `--help`.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Instant;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;

use crate::support::wire::{envelope, envelope_with, json_with};
use crate::support::{Agent, Answer, Redis, SOON, Sink, eventually, eventually_eq, ms, run_to_end};

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
fn a_listener_takes_websockets_and_closes_them_as_it_is_told() {
    let redis = Redis::start();
    let _agent = Agent::start(&redis, &["--retry-first", "300ms", "--retry-max", "500ms"]);
    let send = |address: &str, path: &str, text: &str| {
        let url = format!("ws://{address}/{path}");
        assert_code(&run_to_end(&["enqueue", "-oq", &redis.url(), "--endpoint", &url, "--text", text]), 0);
    };
    let mut listener = Listener::start(&["listen", "127.0.0.1:0", "--count", "2"]);
    send(&listener.address, "inbox", "how are you");
    listener.wait_for("WebSocket /inbox 11 bytes");
    listener.wait_for("how are you");
    send(&listener.address, "inbox", &"x".repeat(70_000));
    listener.wait_for("WebSocket /inbox 70000 bytes");
    redis.wait_empty(SOON);
    crate::support::eventually("it ends after two messages", SOON, || listener.ended());

    let closing = Listener::start(&["listen", "127.0.0.1:0", "--close", "1009"]);
    send(&closing.address, "large", "x");
    crate::support::eventually_eq("it is dead", SOON, 1, || redis.dead().len());
    assert!(redis.dead()[0].history.contains("closed with 1009 (too big)"));

    let refusing = Listener::start(&["listen", "127.0.0.1:0", "--status", "404"]);
    send(&refusing.address, "refused", "x");
    refusing.wait_for("GET /refused");
    let address = refusing.address.clone();
    let asked = format!("ws://{address}/");
    assert_checked(&redis.url(), &["--endpoint", &asked], 1, "mend", &["opens no WebSocket: 404 Not Found"]);
    drop(refusing);
    let good = Listener::start(&["listen", &address]);
    good.wait_for("WebSocket /refused 1 bytes");
    redis.wait_empty_but_dead(SOON);
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
    for command in ["run", "enqueue", "listen", "check", "status", "dead"] {
        let output = run_to_end(&[command, "--help"]);
        assert_code(&output, 0);
        assert!(stdout(&output).contains("acapy-deliver"), "{command}");
    }
    let output = run_to_end(&["--version"]);
    assert_code(&output, 0);
    assert!(stdout(&output).contains(env!("CARGO_PKG_VERSION")));
}

/// What a command printed, a JSON object a line.
#[track_caller]
fn json_lines(output: &Output) -> Vec<Value> {
    let read = |line: &str| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in: {line}"));
    stdout(output).lines().map(read).collect()
}

/// Runs `dead` with these arguments on this Redis.
#[track_caller]
fn dead(redis: &Redis, action: &str, args: &[&str]) -> Output {
    let url = redis.url();
    run_to_end(&[&["dead", action, "-oq", &url], args].concat())
}

/// Dead letters as an agent leaves them, made at once: id, bytes, history. All died in the same
/// hundred milliseconds, so that times alone do not tell them apart.
fn bury(redis: &Redis, letters: impl Iterator<Item = (u64, Vec<u8>, String)>) {
    let mut client = redis.client();
    let letters: Vec<_> = letters.collect();
    for letters in letters.chunks(5000) {
        let mut pipe = redis::pipe();
        for (id, bytes, history) in letters {
            let id = format!("{id:016}");
            pipe.cmd("HSET").arg(redis.key("messages")).arg(&id).arg(bytes).ignore();
            pipe.cmd("HSET").arg(redis.key("history")).arg(&id).arg(history).ignore();
            let died = 1_700_000_000_000 + id.parse::<u64>().unwrap() % 100;
            pipe.cmd("ZADD").arg(redis.key("dead")).arg(died).arg(&id).ignore();
        }
        pipe.exec(&mut client).unwrap();
    }
}

/// A recipient that answers 410 to all but `/good`, a Redis, and three letters that died of it and one
/// that cannot be read.
fn four_dead() -> (Redis, Sink) {
    let redis = Redis::start();
    let sink = Sink::new(|request| match request.target.as_str() {
        "/busy" => Answer::status(422),
        _ => Answer::status(410),
    });
    redis.push_all([
        envelope_with(&format!("{}/a", sink.url()), &[("X-A", "1")], b"first"),
        envelope_with(&format!("{}/a", sink.url()), &[("X-A", "2")], b"second"),
        envelope_with(&format!("{}/busy", sink.url()), &[], b"third"),
        b"no envelope".to_vec(),
    ]);
    let mut agent = Agent::start(&redis, &[]);
    eventually("all are dead", SOON, || redis.counts().dead == 4);
    agent.term();
    assert_eq!(agent.wait_exit(SOON), Some(0));
    (redis, sink)
}

#[test]
fn dead_letters_are_listed_and_filtered() {
    let (redis, sink) = four_dead();
    let output = dead(&redis, "list", &[]);
    assert_code(&output, 0);
    let text = stdout(&output);
    assert_eq!(text.lines().count(), 5, "{text}");
    for letter in redis.dead() {
        let line = text.lines().find(|line| line.starts_with(&letter.id)).expect("a line each");
        let reason = letter.history.splitn(4, ' ').nth(3).unwrap();
        assert!(line.contains(reason) && line.contains(" ago "), "{line}");
    }

    let listed = json_lines(&dead(&redis, "list", &["--json"]));
    let ids: Vec<_> = listed.iter().map(|letter| letter["id"].as_str().unwrap().to_string()).collect();
    assert_eq!(ids, redis.dead().into_iter().map(|letter| letter.id).collect::<Vec<_>>());
    assert_eq!(listed.iter().filter(|letter| letter["endpoint"].is_null()).count(), 1);

    let n = |args: &[&str]| json_lines(&dead(&redis, "list", &[args, &["--json"]].concat())).len();
    let (a, all) = (format!("{}/a", sink.url()), sink.url());
    assert_eq!(n(&["--endpoint", &all]), 3);
    assert_eq!(n(&["--endpoint", &a]), 2);
    assert_eq!(n(&["--endpoint", &a, "--limit", "1"]), 1);
    assert_eq!(n(&["--endpoint", &a[1..]]), 0, "an endpoint has to begin so");
    assert_eq!(n(&["--reason", "422"]), 1);
    assert_eq!(n(&["--reason", "422", "--endpoint", &a]), 0);
    assert_eq!(n(&["--reason", "undecodable"]), 1);
    let cut = dead(&redis, "list", &["--limit", "2"]);
    assert!(stderr(&cut).contains("of 4"), "{}", stderr(&cut));

    let none = dead(&redis, "list", &["--reason", "never"]);
    assert_code(&none, 1);
    assert!(stdout(&none).is_empty() && stderr(&none).contains("'never'"), "{}", stderr(&none));
    assert_code(&dead(&redis, "drop", &[]), 2);
    assert_code(&dead(&redis, "show", &[]), 2);
}

#[test]
fn a_replayed_message_is_delivered_as_if_it_were_new() {
    let (redis, sink) = four_dead();
    let _agent = Agent::start(&redis, &[]);
    sink.behave(|_| Answer::ok());
    let ids: Vec<_> = redis.dead().into_iter().map(|letter| letter.id).collect();
    let listed = json_lines(&dead(&redis, "list", &["--json", "--reason", "422"]));
    let third = listed[0]["id"].as_str().unwrap();
    let output = dead(&redis, "replay", &[third, "17"]);
    assert_code(&output, 1);
    assert!(stdout(&output).contains("replayed: 1 message"), "{}", stdout(&output));
    assert!(stderr(&output).contains("0000000000000017") && !stderr(&output).contains(third), "{}", stderr(&output));
    eventually("it is delivered", SOON, || sink.delivered() == ["third"]);
    eventually("it is gone", SOON, || redis.counts().messages == 3);
    assert_code(&dead(&redis, "show", &[third]), 1);

    // What cannot be read dies again; that it does so at once does not keep the command from its end.
    let output = dead(&redis, "replay", &["--all"]);
    assert_code(&output, 0);
    assert!(stdout(&output).contains("replayed: 3 messages"), "{}", stdout(&output));
    eventually("all but one are delivered", SOON, || redis.counts().messages == 1 && redis.counts().dead == 1);
    assert_eq!(sink.n_delivered(), 3);
    assert!(ids.contains(&redis.dead()[0].id), "it has another id");
    redis.check_invariant();
}

#[test]
fn only_dead_letters_that_were_meant_are_dropped() {
    let (redis, sink) = four_dead();
    let alive = envelope_with(&sink.url(), &[], b"alive");
    redis.push(&alive);
    let (counts, first) = (redis.counts(), redis.dead()[0].id.clone());
    for (action, which, says) in [
        ("drop", "--reason=410", "would be dropped: 2 messages"),
        ("drop", first.as_str(), "would be dropped: 1 message"),
        ("replay", "--all", "would be replayed: 4 messages"),
    ] {
        let which = which.split('=').chain(["--dry-run"]).collect::<Vec<_>>();
        let output = dead(&redis, action, &which);
        assert_code(&output, 0);
        assert!(stdout(&output).contains(says), "{which:?}: {}", stdout(&output));
        assert_eq!(redis.counts(), counts, "{which:?}");
    }
    assert_code(&dead(&redis, "drop", &["--reason", "never", "--dry-run"]), 1);
    assert_code(&dead(&redis, "drop", &["17", "--dry-run"]), 1);
    let output = dead(&redis, "drop", &["--reason", "410", "--limit", "1"]);
    assert_code(&output, 0);
    assert!(stdout(&output).contains("dropped: 1 message"));
    redis.check_invariant();
    let first = redis.dead()[0].id.clone();
    assert_code(&dead(&redis, "drop", &[&first, &first]), 0);
    assert_code(&dead(&redis, "drop", &[&first]), 1);
    assert_eq!(redis.counts().dead, 2);
    assert_code(&dead(&redis, "drop", &["--all", "--endpoint", "http://elsewhere"]), 1);
    assert_code(&dead(&redis, "drop", &["--all"]), 0);
    assert_code(&dead(&redis, "drop", &["--all"]), 1);
    assert_eq!((redis.counts().dead, redis.counts().messages, redis.counts().queue), (0, 0, 1));
    redis.check_invariant();
}

#[test]
fn an_export_holds_every_byte_and_shows_no_password() {
    let redis = Redis::start();
    let payload: Vec<u8> = (0..=255).cycle().take(70_000).collect();
    let endpoint = "http://127.0.0.1:1/\u{e9}\"<&>";
    let pushed = vec![
        envelope_with(endpoint, &[("X-A", "b\"c\\"), ("Content-Type", "x/y")], b"\0\xff"),
        envelope_with("http://127.0.0.1:1/", &[], b""),
        envelope_with("http://127.0.0.1:1/", &[("A", "b")], &payload[..255]),
        envelope_with("http://127.0.0.1:1/", &[("A", "b")], &payload[..256]),
        envelope_with("http://127.0.0.1:1/", &[("A", "b")], &payload),
        envelope_with("http://user:hush@127.0.0.1:1/", &[("A", "b")], b"x"),
        envelope_with("http://127.0.0.1:1/", &[("Authorization", "Bearer hush")], b"x"),
        envelope_with("http://127.0.0.1:1/", &[("Twice", "1"), ("twice", "2")], b"x"),
        envelope_with("http://127.0.0.1:1/", &[("Host", "left out")], b"x"),
        b"".to_vec(),
        b"no envelope \xff".to_vec(),
        json_with("http://127.0.0.1:1/", &[("A", "b")], &payload),
        json_with("http://127.0.0.1:1/", &[], b""),
        json_with("http://127.0.0.1:1/", &[("x-api-key", "hush")], b"x"),
        br#"{"service": {"url": "http://127.0.0.1:1/"}, "headers": {}, "payload": "", "retries": 1}"#.to_vec(),
    ];
    let letters = pushed.iter().enumerate();
    bury(&redis, letters.map(|(n, bytes)| (n as u64, bytes.clone(), "3 1 1600000000000 why \"so\"\n".to_string())));
    let output = dead(&redis, "export", &[]);
    assert_code(&output, 0);
    assert!(!stdout(&output).contains("hush"));
    let lines = json_lines(&output);
    assert_eq!(lines.len(), pushed.len());
    let mut n_with_raw = 0;
    for (line, pushed) in lines.iter().zip(&pushed) {
        let decode = |name: &str| BASE64_STANDARD.decode(line[name].as_str().unwrap()).unwrap();
        let bytes = if line["raw"].is_string() {
            n_with_raw += 1;
            decode("raw")
        } else {
            // serde_json's maps are sorted by name, and these headers are pushed in either order.
            let headers: Vec<_> = line["headers"].as_object().unwrap().iter().collect();
            let headers: Vec<_> = headers.iter().map(|(k, v)| (k.as_str(), v.as_str().unwrap())).collect();
            let endpoint = line["endpoint"].as_str().unwrap();
            let reversed: Vec<_> = headers.iter().rev().copied().collect();
            let write = if line["format"] == "json" { json_with } else { envelope_with };
            let again = write(endpoint, &headers, &decode("payload"));
            if again == *pushed { again } else { write(endpoint, &reversed, &decode("payload")) }
        };
        assert!(bytes == *pushed, "{line}");
        assert_eq!((line["attempts"].as_u64(), line["reason"].as_str()), (Some(3), Some("why \"so\"\n")));
        assert_eq!(line["size"].as_u64(), Some(pushed.len() as u64));
        assert!(line["died"].as_str().unwrap().starts_with("2023-11-14T22:13:20."), "{line}");
    }
    assert_eq!(n_with_raw, 8, "only where the rest is not all");
}

#[test]
fn showing_a_dead_letter_shows_no_password_and_its_payload_only_when_asked() {
    let redis = Redis::start();
    let headers = [("X-Plain", "seen"), ("authorization", "Bearer hush")];
    bury(
        &redis,
        [(
            41,
            envelope_with("http://u:hush@127.0.0.1:1/p", &headers, b"raw \0 payload"),
            "2 0 1600000000000 410 Gone".to_string(),
        )]
        .into_iter(),
    );
    let output = dead(&redis, "show", &["41"]);
    assert_code(&output, 0);
    let text = stdout(&output);
    for part in [
        "0000000000000041",
        "http://127.0.0.1:1/p",
        "410 Gone",
        "X-Plain: seen",
        "13 bytes",
        "2023-11-14T22:13:20.041Z",
    ] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
    assert!(!text.contains("hush") && !text.contains("raw") && !text.contains('\u{1b}'), "{text}");

    let output = dead(&redis, "show", &["41", "--payload"]);
    assert_eq!(output.stdout, b"raw \0 payload");
    assert!(stderr(&output).contains("410 Gone") && !stderr(&output).contains("hush"));
    let shown = &json_lines(&dead(&redis, "show", &["41", "--json", "--payload"]))[0];
    assert_eq!(BASE64_STANDARD.decode(shown["payload"].as_str().unwrap()).unwrap(), b"raw \0 payload");
    assert_eq!(shown["headers"]["authorization"], "***");
    assert!(json_lines(&dead(&redis, "show", &["41", "--json"]))[0]["payload"].is_null());
    let output = dead(&redis, "show", &["42"]);
    assert_code(&output, 1);
    assert!(stderr(&output).contains("no message 0000000000000042"));
}

#[test]
fn a_hundred_thousand_dead_letters_are_looked_through_in_little_memory() {
    const N: u64 = 100_000;
    let redis = Redis::with(&["appendonly no"]);
    let payload = vec![b'p'; 1500];
    let bytes = envelope_with("http://127.0.0.1:1/", &[], &payload);
    let reason = |n: u64| if n.is_multiple_of(4) { "410 Gone" } else { "422 Unprocessable Entity" };
    bury(&redis, (0..N).map(|n| (n, bytes.clone(), format!("1 1 1600000000000 {}", reason(n)))));

    let began = Instant::now();
    assert_eq!(json_lines(&dead(&redis, "list", &["--limit", "7", "--json"])).len(), 7);
    assert!(began.elapsed() < ms(5000), "listing seven took {:?}", began.elapsed());
    let status = &json_lines(&run_to_end(&["status", "-oq", &redis.url(), "--json"]))[0];
    assert_eq!(status["dead"]["messages"], N);
    assert_eq!(status["dead"]["by_reason"][0]["messages"], N / 4 * 3);

    let mut command = Agent::command();
    command.args(["dead", "export", "-oq", &redis.url()]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut ids = std::collections::BTreeSet::new();
    for line in lines.by_ref().take(N as usize - 100) {
        ids.insert(line.unwrap()[7..23].to_string());
    }
    let memory = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let peak = memory.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("its peak");
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    ids.extend(lines.map(|line| line.unwrap()[7..23].to_string()));
    assert!(child.wait().unwrap().success());
    assert_eq!(ids.len() as u64, N, "each is exported once");
    assert!(peak < 48 << 10, "{peak} kB for 150 MB of dead letters");

    // Dropping while walking passes over none. The bound of the other tests is short for so many
    // round trips on a busy machine.
    let dead = |redis: &Redis, action: &str, args: &[&str]| {
        Agent::command().args(["dead", action, "-oq", &redis.url()]).args(args).output().unwrap()
    };
    let output = dead(&redis, "drop", &["--all", "--reason", "410", "--limit", "20000"]);
    assert!(stdout(&output).contains("dropped: 20000 messages"), "{}", stdout(&output));
    let output = dead(&redis, "drop", &["--all", "--reason", "410"]);
    assert!(stdout(&output).contains("dropped: 5000 messages"), "{}", stdout(&output));
    let output = dead(&redis, "replay", &["--all", "--reason", "422"]);
    assert!(stdout(&output).contains("replayed: 75000 messages"), "{}", stdout(&output));
    assert_eq!((redis.counts().retry, redis.counts().messages), (75_000, 75_000));
    redis.check_invariant();
}

#[test]
fn status_counts_what_is_where() {
    let redis = Redis::start();
    let mut client = redis.client();
    let (seconds, _): (u64, u64) = redis::cmd("TIME").query(&mut client).unwrap();
    let now = seconds * 1000;
    let id = |n: u64| format!("{:016}", now * 1000 - n * 60_000_000);
    let mut pipe = redis::pipe();
    let mut n = 0;
    let mut message = |pipe: &mut redis::Pipeline, endpoint: &str| {
        n += 1;
        pipe.cmd("HSET").arg(redis.key("messages")).arg(id(n)).arg(envelope_with(endpoint, &[], b"x")).ignore();
        id(n)
    };
    let (alive, expired, unknown) = (id(1000), id(1001), id(1002));
    for (agent, lease, holds) in
        [(&alive, Some(now + 100_000), 2), (&expired, Some(now - 50_000), 1), (&unknown, None, 3)]
    {
        if let Some(lease) = lease {
            pipe.cmd("ZADD").arg(redis.key("agents")).arg(lease).arg(agent).ignore();
        }
        for _ in 0..holds {
            let id = message(&mut pipe, "http://a:1/");
            pipe.cmd("ZADD").arg(redis.key("inflight")).arg(agent).arg(id).ignore();
        }
    }
    for (origin, waits, score) in [("http://down:80", 4, (now + 200_000) as i64), ("http://new:80", 2, -(now as i64))] {
        for _ in 0..waits {
            let id = message(&mut pipe, origin);
            pipe.cmd("ZADD").arg(redis.key("waiting")).arg(0).arg(format!("{origin}\n{id}")).ignore();
        }
        pipe.cmd("ZADD").arg(redis.key("lanes")).arg(score).arg(origin).ignore();
    }
    pipe.cmd("HSET").arg(redis.key("failures")).arg("http://down:80").arg("7 connection refused").ignore();
    for due in [now - 5_000, now + 400_000] {
        let id = message(&mut pipe, "http://u:hush@flaky/");
        pipe.cmd("ZADD").arg(redis.key("retry")).arg(due).arg(&id).ignore();
        pipe.cmd("HSET").arg(redis.key("history")).arg(&id).arg(format!("4 4 {now} 500 Internal")).ignore();
    }
    pipe.exec(&mut client).unwrap();
    bury(&redis, (1..=3).map(|n| (n, b"x".to_vec(), "0 0 1600000000000 undecodable".to_string())));
    redis.push(b"queued");
    redis.check_invariant();

    let output = run_to_end(&["status", "-oq", &redis.url(), "--json"]);
    assert_code(&output, 0);
    let status = &json_lines(&output)[0];
    assert_eq!(status["queue"], redis.queue_key());
    assert_eq!(status["queued"]["messages"], 1);
    assert_eq!(status["in_flight"]["messages"], 6);
    let agents = status["in_flight"]["by_agent"].as_array().unwrap();
    let seen = |agent: &str| {
        agents
            .iter()
            .find(|one| one["agent"] == agent)
            .map(|one| (one["lease"].as_str().unwrap(), one["messages"].as_u64().unwrap()))
    };
    assert_eq!(agents.len(), 3);
    assert_eq!(
        (seen(&alive), seen(&expired), seen(&unknown)),
        (Some(("alive", 2)), Some(("expired", 1)), Some(("none", 3)))
    );
    let waiting = &status["waiting"];
    assert_eq!((waiting["messages"].as_u64(), waiting["endpoints"].as_u64()), (Some(6), Some(2)));
    let down = &waiting["by_endpoint"][0];
    assert_eq!((down["endpoint"].as_str(), down["messages"].as_u64()), (Some("http://down:80"), Some(4)));
    assert_eq!(
        (down["failures_in_a_row"].as_u64(), down["last_error"].as_str()),
        (Some(7), Some("connection refused"))
    );
    assert!(down["next_try"].is_string() && waiting["by_endpoint"][1]["next_try"].is_null());
    let retry = &status["retry"];
    assert_eq!((retry["messages"].as_u64(), retry["due"].as_u64()), (Some(2), Some(1)));
    assert_eq!(retry["by_endpoint"][0]["endpoint"], "http://flaky:80");
    assert_eq!(
        (retry["by_endpoint"][0]["messages"].as_u64(), retry["by_endpoint"][0]["most_attempts"].as_u64()),
        (Some(2), Some(4))
    );
    assert_eq!(status["dead"]["messages"], 3);
    assert_eq!(
        (status["dead"]["by_reason"][0]["messages"].as_u64(), status["dead"]["by_reason"][0]["reason"].as_str()),
        (Some(3), Some("undecodable"))
    );

    let output = run_to_end(&["status", "-oq", &redis.url(), "--limit", "1"]);
    assert_code(&output, 0);
    let text = stdout(&output);
    for part in ["connection refused", "and 1 more endpoint", "and 2 more agents", "1 due now"] {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
    assert!(!text.contains("hush") && !text.contains("http://new:80"), "{text}");
    let text = stdout(&run_to_end(&["status", "-oq", &redis.url()]));
    assert!(text.contains("not registered") && text.contains("expired 5") && text.contains("alive, ends in"), "{text}");
    assert_code(&run_to_end(&["status", "-oq", "redis://127.0.0.1:1"]), 1);
}

/// Runs `check` on this URL; its lines, of which one begins with `verdict` and names all of `parts`.
#[track_caller]
fn assert_checked(url: &str, args: &[&str], code: i32, verdict: &str, parts: &[&str]) {
    let output = run_to_end(&[&["check", "-oq", url], args].concat());
    assert_code(&output, code);
    let text = stdout(&output);
    let named = |line: &str| line.starts_with(verdict) && parts.iter().all(|part| line.contains(part));
    assert!(text.lines().any(named), "no {verdict} line with {parts:?} in:\n{text}");
    if code == 0 {
        assert!(!text.contains("\nmend") && !text.starts_with("mend"), "{text}");
    }
}

#[test]
fn check_says_how_to_mend_each_thing() {
    let redis = Redis::with(&["appendonly no", "maxmemory 50mb", "maxmemory-policy allkeys-lru"]);
    assert_checked(&redis.url(), &[], 1, "mend", &["persistence", "appendonly yes"]);
    assert_checked(&redis.url(), &[], 1, "mend", &["memory", "maxmemory-policy noeviction"]);

    let redis = Redis::start();
    redis::cmd("SET").arg(redis.key("messages")).arg("x").exec(&mut redis.client()).unwrap();
    assert_checked(&redis.url(), &[], 1, "mend", &["keys", &redis.key("messages"), "string", "hash"]);
    redis::cmd("DEL").arg(redis.key("messages")).exec(&mut redis.client()).unwrap();
    redis::cmd("HSET").arg(redis.key("messages")).arg(&["0000000000000001", "x"]).exec(&mut redis.client()).unwrap();
    assert_checked(&redis.url(), &[], 1, "mend", &["counts", "1 recorded"]);
    redis::cmd("FLUSHALL").exec(&mut redis.client()).unwrap();
    assert_checked(&redis.url(), &[], 0, "ok", &["agents", "none"]);
    let _agent = Agent::start(&redis, &[]);
    assert_checked(&redis.url(), &[], 0, "ok", &["agents", "1 agent at work", &redis.agents()[0]]);
}

#[test]
fn check_looks_at_what_a_failover_may_lose_and_the_setting_that_bounds_it() {
    let (master, replica) = (Redis::start(), Redis::start());
    let address = master.address().replace(':', " ");
    let follow: Vec<&str> = address.split(' ').collect();
    redis::cmd("REPLICAOF").arg(follow).exec(&mut replica.client()).unwrap();
    eventually("it follows", SOON, || replica.info("replication", "master_link_status").is_ok_and(|link| link == "up"));
    assert_checked(
        &master.url(),
        &[],
        0,
        "note",
        &["replicas", "loses what no replica has", "min-replicas-to-write 1"],
    );
    redis::cmd("CONFIG").arg(&["SET", "min-replicas-to-write", "1"]).exec(&mut master.client()).unwrap();
    assert_checked(&master.url(), &[], 0, "ok", &["replicas", "1; without 1 it takes no pushes"]);
    assert_checked(&replica.url(), &[], 1, "mend", &["role", "this is a replica", &master.address()]);
}

#[test]
fn where_a_provider_refuses_to_tell_that_is_said_and_nothing_claimed() {
    let refuses = |command: &str| format!("rename-command {command} \"\"");
    let (config, client, info) = (refuses("CONFIG"), refuses("CLIENT"), refuses("INFO"));
    let redis = Redis::with(&["appendonly no", &config, &client]);
    assert_checked(&redis.url(), &[], 0, "note", &["persistence", "CONFIG is refused", "ask who runs it"]);
    let sink = Sink::new(|_| Answer::ok());
    let agent = Agent::start(&redis, &[]);
    agent.wait_log("CONFIG is refused");
    for n in 1..=3 {
        redis.push(&envelope(&sink.url(), b"x"));
        eventually("it arrives", SOON, || sink.n_delivered() == n);
    }
    assert!(!agent.log().contains("no persistence") && agent.complaints().len() == 1, "{}", agent.log());

    let redis = Redis::with(&[&config, &client, &info]);
    assert_checked(&redis.url(), &[], 0, "note", &["server", "INFO is refused", "persistence"]);
    let agent = Agent::start(&redis, &[]);
    agent.wait_log("INFO does not tell of persistence");
    redis.push(&envelope(&sink.url(), b"x"));
    eventually("it arrives", SOON, || sink.n_delivered() == 4);
}

#[test]
fn check_names_what_an_account_may_not_do() {
    let redis = Redis::start();
    let account = |rules: &[&str]| {
        redis::cmd("ACL")
            .arg(&["SETUSER", "agent", "reset", "on", ">hush"])
            .arg(rules)
            .exec(&mut redis.client())
            .unwrap();
        redis.url().replace("redis://", "redis://agent:hush@")
    };
    let queue = format!("~{}", redis.queue_key());
    let beside = format!("~{}*", redis.key(""));
    let url = account(&["+@all", "-zadd", "-ltrim", "-hset", &queue, &beside]);
    assert_checked(&url, &[], 1, "mend", &["permissions", "'agent'", "+ltrim", "+zadd", "+hset"]);
    let url = account(&["+@all", &queue]);
    assert_checked(&url, &[], 1, "mend", &["permissions", &beside]);
    let url = account(&["+@all", "-zlexcount", &queue, &beside]);
    assert_checked(&url, &[], 0, "note", &["permissions", "'status'", "ZLEXCOUNT"]);
    let url = account(&["+@all", "-info", &queue, &beside]);
    assert_checked(&url, &[], 0, "note", &["server", "+info"]);
    let url = account(&["+@all", &queue, &beside]);
    assert_checked(&url, &[], 0, "ok", &["permissions"]);
    let output = run_to_end(&["check", "-oq", &url]);
    assert!(!stdout(&output).contains("hush"));
}

/// Each version of Redis is told apart by what it says itself: `scripts/compat` runs this on all of them.
#[test]
fn what_a_version_has_not_yet_is_said_at_the_start_and_by_check() {
    let redis = Redis::with(&["requirepass secret"]);
    let version = redis.info("server", "redis_version").unwrap();
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().unwrap());
    let version = (numbers.next().unwrap(), numbers.next().unwrap());
    let url = redis.url().replace("//:", "//default:");
    let check = run_to_end(&["check", "-oq", &url]);
    let (mut agent, ordered) = (Agent::start_at(&url, &[]), Agent::start_at(&url, &["--queue", "o", "--ordered"]));
    let sink = Sink::new(|_| Answer::ok());
    redis.push(&envelope(&sink.url(), b"x"));
    eventually_eq("it arrives", SOON, 1, || sink.n_delivered());
    redis.wait_empty(SOON);
    for (since, at_start, by_check) in [
        ((6, 2), "has no BLMOVE (6.2): BRPOPLPUSH waits", "has no BLMOVE (6.2)"),
        ((6, 0), "waits whole seconds (fractions: 6.0)", "waits whole seconds (fractions: 6.0)"),
        ((6, 0), "knows no users (6.0)", "knows no users (6.0)"),
    ] {
        if version < since {
            agent.wait_log(at_start);
        }
        assert_eq!(stdout(&check).contains(by_check), version < since, "{version:?}: {}", stdout(&check));
        assert_eq!(agent.log().contains(at_start), version < since, "{version:?}: {}", agent.log());
    }
    if version < (6, 2) {
        ordered.wait_log("the queue is asked ten times a second");
    }
    agent.term();
    assert_eq!(agent.wait_exit(SOON), Some(0));
}

#[test]
fn check_says_how_an_agent_waits_on_an_old_server() {
    let redis = Redis::with(&["rename-command BLMOVE \"\""]);
    assert_checked(&redis.url(), &[], 0, "note", &["wait", "BRPOPLPUSH"]);
    assert_checked(&redis.url(), &["--ordered"], 0, "note", &["wait", "asking"]);
    assert_checked(&redis.url(), &["--pop", "blpop"], 0, "note", &["wait", "can lose"]);
    let redis = Redis::with(&["rename-command ZADD \"\""]);
    assert_checked(&redis.url(), &[], 1, "mend", &["permissions", "ZADD", "rename-command"]);
}

#[test]
fn check_changes_nothing_in_a_queue_that_is_full_of_messages() {
    let redis = Redis::start();
    redis.push_all((0..50).map(|n| format!("message {n}")));
    bury(&redis, (1..=50).map(|n| (n, b"x".to_vec(), "0 0 1600000000000 undecodable".to_string())));
    let digest = || redis::cmd("DEBUG").arg("DIGEST").query::<String>(&mut redis.client()).unwrap();
    let redis_may_debug = redis::cmd("DEBUG").arg("DIGEST").query::<String>(&mut redis.client()).is_ok();
    let dump = || {
        let keys: Vec<String> = redis::cmd("KEYS").arg("*").query(&mut redis.client()).unwrap();
        let dump = |key: String| redis::cmd("DUMP").arg(&key).query::<Vec<u8>>(&mut redis.client()).unwrap();
        let mut keys: Vec<_> = keys.into_iter().map(|key| (key.clone(), dump(key))).collect();
        keys.sort();
        keys
    };
    let (before, digest_before) = (dump(), redis_may_debug.then(digest));
    assert_checked(&redis.url(), &["--ordered"], 0, "ok", &["counts", "50 queued", "50 dead"]);
    assert_checked(&redis.url(), &["--pop", "blpop"], 0, "ok", &["counts", "50 queued", "50 dead"]);
    assert!(dump() == before && redis_may_debug.then(digest) == digest_before);
}

#[test]
fn check_says_how_long_dead_letters_are_kept() {
    let redis = Redis::start();
    assert_checked(&redis.url(), &[], 0, "ok", &["dead letters", "30 days", "--keep-dead"]);
    assert_checked(&redis.url(), &["--keep-dead", "36h"], 0, "ok", &["dead letters", "36h"]);
    assert_checked(&redis.url(), &["--keep-dead", "forever"], 0, "note", &["dead letters", "for ever"]);
}

#[test]
fn check_tries_a_recipient_without_sending_it_anything() {
    let redis = Redis::start();
    let mut sink = Sink::new(|_| Answer::ok());
    let url = sink.url();
    let ip = sink.address().ip().to_string();
    assert_checked(&redis.url(), &["--endpoint", &url], 0, "ok", &["endpoint", "takes a connection"]);
    assert_checked(
        &redis.url(),
        &["--endpoint", &url, "--deny-net", "loopback"],
        1,
        "mend",
        &["endpoint", &ip, "--deny-net loopback"],
    );
    let meta = ["--endpoint", "http://169.254.169.254/"];
    assert_checked(&redis.url(), &meta, 1, "mend", &["endpoint", "link-local"]);
    let own = format!("http://{}/", redis.address());
    assert_checked(&redis.url(), &["--endpoint", &own], 1, "mend", &["endpoint", "own Redis"]);
    assert_checked(&redis.url(), &["--endpoint", "ftp://a/"], 1, "mend", &["endpoint", "ftp"]);
    assert_checked(
        &redis.url(),
        &["--endpoint", "http://no-such-host.invalid/"],
        1,
        "mend",
        &["endpoint", "no-such-host.invalid"],
    );
    let https = url.replace("http:", "https:");
    let quick = ["--endpoint", &https, "--connect-timeout", "300ms"];
    assert_checked(&redis.url(), &quick, 1, "mend", &["endpoint", "TLS"]);
    // To ws it makes a handshake, and no message.
    let opens = ["endpoint", "opens a WebSocket; no message was sent"];
    assert_checked(&redis.url(), &["--endpoint", &sink.ws_url()], 0, "ok", &opens);
    let wss = sink.ws_url().replace("ws:", "wss:");
    let quick = ["--endpoint", &wss, "--connect-timeout", "300ms"];
    assert_checked(&redis.url(), &quick, 1, "mend", &["endpoint", "TLS"]);
    assert_eq!(sink.n_requests(), 0);
    sink.stop();
    assert_checked(&redis.url(), &["--endpoint", &url], 1, "mend", &["endpoint", "refused"]);
    // That Redis is away does not keep it from the recipient.
    sink.start();
    assert_checked("redis://127.0.0.1:1", &["--endpoint", &url], 1, "ok", &["endpoint", "takes a connection"]);
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
