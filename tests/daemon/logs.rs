//! `--log-format json`: every line that an agent writes is one object, whatever happens, and has its fields.

use std::process::{Command, Output};

use serde_json::Value;

use crate::support::{Agent, Answer, Redis, SOON, Sink, eventually, run_to_end, wire};

/// Every line, read; it panics at one that is not as it should be.
#[track_caller]
fn read(log: &str) -> Vec<Value> {
    let read = |line: &str| {
        let value: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(!line.chars().any(char::is_control) && !line.contains('\u{202e}'), "{line:?}");
        let (time, level) = (value["time"].as_str().unwrap_or_default(), value["level"].as_str().unwrap_or_default());
        assert!(time.len() == 24 && time.ends_with('Z') && humantime::parse_rfc3339(time).is_ok(), "{line}");
        assert!(["error", "warn", "info", "debug", "trace"].contains(&level), "{line}");
        assert!(value["message"].is_string(), "{line}");
        value
    };
    log.lines().map(read).collect()
}

/// The first line whose message contains this.
#[track_caller]
fn line<'a>(lines: &'a [Value], message: &str) -> &'a Value {
    let found = lines.iter().find(|line| line["message"].as_str().is_some_and(|text| text.contains(message)));
    found.unwrap_or_else(|| panic!("no {message:?} in {lines:#?}"))
}

fn says(agent: &Agent, message: &str) -> bool {
    read(&agent.log()).iter().any(|line| line["message"].as_str().is_some_and(|text| text.contains(message)))
}

#[test]
fn every_line_is_an_object_with_the_fields_it_has() {
    let mut redis = Redis::start();
    let sink = Sink::new(|request| match request.target.as_str() {
        "/gone" => Answer::status(410),
        "/busy" => Answer::status(500),
        "/moved" => Answer::status(307).header("Location", "http://\"},{\u{e9}.example/"),
        _ => Answer::ok(),
    });
    let mut command = Agent::command();
    command.args(["run", "-oq", &redis.url(), "--log-format", "json", "--retry-first", "1s"]).env("RUST_LOG", "debug");
    let mut agent = Agent::start_as(&redis, command);
    let origin = sink.url().trim_end_matches('/').to_string();
    redis.push(&wire::envelope(&format!("{origin}/"), b"x"));
    for path in ["gone", "busy", "moved", "\u{202e}\"},{\"level\":\"none"] {
        redis.push(&wire::envelope(&format!("{origin}/{path}"), b"x"));
    }
    redis.push(&wire::envelope("http://127.0.0.1:1/", b"x"));
    redis.push(&wire::envelope("goph\u{202e}er://\"},{\n\u{1b}[31m/", b"x"));
    redis.push(b"\"},{ is no envelope \xff");
    for message in ["delivered to", "later: 500", "is dead: 410", "127.0.0.1:1 is down", "is dead: undecodable"] {
        eventually(&format!("it says {message:?}"), SOON, || says(&agent, message));
    }
    redis.kill9();
    eventually("it misses Redis", SOON, || says(&agent, "Redis cannot be used"));
    redis.restart();
    eventually("it has Redis again", SOON, || says(&agent, "Redis can be used again"));
    agent.hang_up();
    eventually("it reads again", SOON, || says(&agent, "SIGHUP"));
    agent.term();
    assert_eq!(agent.wait_exit(SOON), Some(0));

    let lines = read(&agent.log());
    let delivered = line(&lines, "delivered to");
    assert_eq!(delivered["level"], "debug");
    assert_eq!((delivered["origin"].as_str(), delivered["attempts"].as_u64()), (Some(&*origin), Some(1)));
    let id = delivered["id"].as_str().unwrap();
    assert!(id.len() == 16 && delivered["message"].as_str().unwrap().contains(id), "{delivered}");
    let later = line(&lines, "later: 500");
    assert_eq!((later["attempts"].as_u64(), later["error"].as_str()), (Some(1), Some("500 Internal Server Error")));
    let dead = line(&lines, "is dead: 410");
    assert_eq!((dead["level"].as_str(), dead["error"].as_str()), (Some("warn"), Some("410 Gone")));
    assert_eq!((dead["origin"].as_str(), dead["attempts"].as_u64()), (Some(&*origin), Some(1)));
    let down = line(&lines, "127.0.0.1:1 is down");
    assert_eq!((down["origin"].as_str(), down["failures"].as_u64()), (Some("http://127.0.0.1:1"), Some(1)));
    assert!(down["error"].as_str().unwrap().contains("refused"), "{down}");
    let unread = line(&lines, "is dead: undecodable");
    assert!(unread["id"].is_string() && unread.get("origin").is_none() && unread.get("attempts").is_none(), "{unread}");
    assert!(line(&lines, "Redis cannot be used")["error"].is_string());
    assert!(line(&lines, "stopped after").get("error").is_none());
}

#[test]
fn what_ends_a_start_is_an_object_too() {
    let redis = Redis::with(&["requirepass sesame"]);
    let said = |output: &Output, code: i32, expected: &str| {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{text}");
        let lines = read(&text);
        let last = lines.last().unwrap();
        assert_eq!(last["level"], "error", "{text}");
        assert!(last["message"].as_str().unwrap().contains(expected), "{text}");
        assert!(output.stdout.is_empty());
    };
    let url = redis.url();
    said(&run_to_end(&["run", "-oq", &url, "--log-format", "json", "--workers", "\u{202e}\"no"]), 2, "--workers");
    said(
        &run_to_end(&["run", "--log-format", "json", "-oq", &redis.url_with_password("wrong")]),
        1,
        "refused the user name or password",
    );
    let mut command = Agent::command();
    command.args(["run", "-oq", &url, "--nonsense"]).env("ACAPY_DELIVER_LOG_FORMAT", "json");
    said(&output_of(command), 2, "--nonsense");
    // The other formats stay as they are.
    let plain = run_to_end(&["run", "-oq", &url, "--workers", "no"]);
    assert!(plain.stderr.starts_with(b"acapy-deliver: option '--workers'"), "{plain:?}");
}

fn output_of(mut command: Command) -> Output {
    command.output().expect("the binary can be started")
}
