//! What must not be shown, and to whom: credentials and payloads in the log, in what the commands
//! print, and to origins that they were not meant for; and texts of strangers on a terminal.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use crate::support::wire::{envelope_with, json_with};
use crate::support::{Agent, Answer, Counts, Redis, SOON, Sink, eventually, eventually_eq, run_to_end};

const SECRET_HEADERS: [(&str, &str); 7] = [
    ("x-api-key", "HUSHKEY"),
    ("X-Auth-Token", "HUSHTOKEN"),
    ("x-wallet-id", "HUSHWALLET"),
    ("Authorization", "Bearer HUSHBEARER"),
    ("Cookie", "sid=HUSHCOOKIE"),
    ("X-Amz-Signature", "HUSHSIGNATURE"),
    ("X-Session", "HUSHSESSION"),
];

#[test]
fn no_credential_query_or_payload_is_in_the_log_whatever_is_asked_for() {
    let redis = Redis::start();
    let elsewhere = Sink::new(|_| Answer::ok());
    let there = elsewhere.url().replace("http://", "http://someone:HUSHLOCATION@") + "/there?code=HUSHHOP";
    let sink = Sink::new(move |request| {
        let status = match request.target.split('?').next() {
            Some("/PATH-SEEN/delivered") => 200,
            Some("/PATH-SEEN/dead") => 410,
            Some("/PATH-SEEN/elsewhere") => return Answer::status(307).header("Location", &there),
            _ => 500,
        };
        Answer::status(status).header("Set-Cookie", "HUSHANSWERCOOKIE").body("HUSHANSWER")
    });
    let mut headers = SECRET_HEADERS.to_vec();
    headers.push(("Content-Type", "application/ssi-agent-wire"));
    let pushed = |endpoint: &str| envelope_with(endpoint, &headers, b"HUSHPAYLOAD");
    // As JSON too: whole, and so that it cannot be read.
    let json = json_with(&format!("{}/PATH-SEEN/dead?code=HUSHQUERY", sink.url()), &headers, b"HUSHPAYLOAD");
    redis.push(&json);
    redis.push(&[&json[..], b"HUSH"].concat());
    redis.push(&json_with(&sink.url(), &[("x-api-key", "HUSHKEY\r\n")], b"HUSHPAYLOAD"));
    for path in ["delivered", "dead", "elsewhere", "put-off"] {
        redis.push(&pushed(&format!("{}/PATH-SEEN/{path}?code=HUSHQUERY", sink.url())));
    }
    // User and password in the endpoint; endpoints that cannot be read; nobody there.
    let with_user = sink.url().replace("http://", "http://user:HUSHPASSWORD@");
    redis.push(&envelope_with(&format!("{with_user}/PATH-SEEN/dead?code=HUSHQUERY"), &[], b"HUSHPAYLOAD"));
    for endpoint in [
        "http://user:HUSHPASSWORD@host:port/?code=HUSHQUERY",
        "http://host:port/?code=HUSHQUERY",
        "host/?code=HUSHQUERY",
        "ftp://host/?code=HUSHQUERY",
        "http://127.0.0.1:1/?code=HUSHQUERY",
    ] {
        redis.push(&pushed(endpoint));
    }
    let mut command = Agent::command();
    command.args(["run", "-oq", &redis.url(), "--id-header", "X-Message-Id", "--retry-first", "60s"]);
    command.env("RUST_LOG", "trace,acapy_deliver=trace,ureq=trace,ureq_proto=trace,rustls=trace,redis=trace");
    let agent = Agent::spawn(command);
    eventually("all have been attempted", SOON, || {
        let counts = redis.counts();
        counts.queue == 0 && counts.inflight == 0 && counts.dead == 9 && counts.messages == 11
    });
    let log = agent.log();
    assert!(log.contains("DEBUG") && log.contains("/PATH-SEEN/dead"), "{log}");
    let letters: String = redis.dead().into_iter().chain(redis.put_off()).map(|held| held.history + "\n").collect();
    assert!(letters.contains("410 Gone") && letters.contains("not a URL"), "{letters}");
    for (what, text) in [("the log", log), ("the reasons", letters)] {
        assert!(!text.contains("HUSH"), "{what}: {:?}", text.lines().find(|line| line.contains("HUSH")));
    }
}

#[test]
fn a_redirect_takes_to_another_origin_nothing_but_the_body_its_kind_and_the_id() {
    let redis = Redis::start();
    let elsewhere = Sink::new(|_| Answer::ok());
    let there = elsewhere.url() + "/there";
    let sink = Sink::new(move |request| match request.target.as_str() {
        "/elsewhere" => Answer::status(307).header("Location", &there),
        "/here" => Answer::status(308).header("Location", "/still-here"),
        _ => Answer::ok(),
    });
    let mut headers = SECRET_HEADERS.to_vec();
    headers.extend([("Content-Type", "application/ssi-agent-wire"), ("X-Plain", "HUSHPLAIN")]);
    for path in ["/elsewhere", "/here"] {
        redis.push(&envelope_with(&(sink.url() + path), &headers, b"body"));
    }
    let _agent = Agent::start(&redis, &["--id-header", "X-Message-Id"]);
    redis.wait_empty(SOON);

    let requests = elsewhere.requests();
    assert_eq!((requests.len(), requests[0].text().as_str()), (1, "body"));
    let mut names: Vec<_> = requests[0].headers.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
    names.sort();
    let connection = ["accept", "content-length", "host", "user-agent"];
    names.retain(|name| !connection.contains(&name.as_str()));
    assert_eq!(names, ["content-type", "x-message-id"], "{:?}", requests[0].headers);
    assert_eq!(requests[0].header("content-type"), Some("application/ssi-agent-wire"));

    // Within its origin it keeps all.
    let requests = sink.requests();
    let still_here = requests.iter().find(|request| request.target == "/still-here").unwrap();
    for (name, value) in headers {
        assert_eq!(still_here.header(name), Some(value), "{name}");
    }
}

#[test]
fn dead_letters_are_shown_without_credentials_and_exported_whole() {
    for is_json in [false, true] {
        shown_without_credentials_and_exported_whole(is_json);
    }
}

fn shown_without_credentials_and_exported_whole(is_json: bool) {
    let write = if is_json { json_with } else { envelope_with };
    let redis = Redis::start();
    let sink = Sink::new(|_| Answer::status(410));
    let mut headers = SECRET_HEADERS.to_vec();
    headers.push(("X-Plain", "seen"));
    let bytes = write(&(sink.url() + "/path?code=HUSHQUERY"), &headers, b"x");
    redis.push(&bytes);
    let agent = Agent::start(&redis, &[]);
    eventually_eq("it is dead", SOON, Counts { dead: 1, messages: 1, ..Counts::default() }, || redis.counts());
    drop(agent);
    let id = redis.dead()[0].id.clone();
    let url = redis.url();
    let run = |args: &[&str]| {
        let output = run_to_end(&[&["dead"], args, &["-oq", &url]].concat());
        assert_eq!(output.status.code(), Some(0), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let list = run(&["list"]);
    assert!(list.contains("/path?***") && !list.contains("HUSH"), "{list}");
    for args in [&["show", &id][..], &["show", &id, "--json"], &["list", "--json"], &["export"]] {
        let shown = run(args);
        // What is where it was sent to is for whoever looks into it, and needs all of it.
        assert!(!shown.replace("HUSHQUERY", "").contains("HUSH"), "{args:?}: {shown}");
        if args != ["list", "--json"] {
            assert!(shown.contains("seen") && shown.contains("***"), "{args:?}: {shown}");
        }
    }
    let line: serde_json::Value = serde_json::from_str(&run(&["export"])).unwrap();
    let raw = BASE64_STANDARD.decode(line["raw"].as_str().expect("the bytes, where not all is shown")).unwrap();
    assert!(raw == bytes, "the export does not hold the bytes that were pushed");
}

#[test]
fn a_word_before_the_host_of_a_url_is_not_repeated_for_it_may_be_a_password() {
    for args in [
        &["run", "-oq", "redis://HUSHPW@host:port"][..],
        &["run", "-oq", "redis://HUSHPW@host:1", "redis://HUSHPW@host:1"],
        &["redis://HUSHPW@host:1"],
        &["status", "-oq", "http://HUSHPW@host:1"],
    ] {
        let output = run_to_end(args);
        let words = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{words}");
        assert!(!words.contains("HUSH"), "{args:?}: {words}");
    }
}

#[test]
fn what_a_stranger_wrote_cannot_move_the_cursor_or_turn_the_text() {
    // A server that is no Redis of ours, and says so in a way that a terminal would act upon.
    const EVIL: &str = "\u{1b}]0;title\u{7}\u{1b}[2J\u{9b}31mred\u{202e}turned\u{2028}line";
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut bytes = [0; 65536];
                while let Ok(n @ 1..) = stream.read(&mut bytes) {
                    let n_commands = bytes[..n].split(|byte| *byte == b'\n').filter(|line| line.starts_with(b"*"));
                    let answers = format!("-NOPERM {EVIL}\r\n").repeat(n_commands.count());
                    if stream.write_all(answers.as_bytes()).is_err() {
                        return;
                    }
                }
            });
        }
    });
    let moves =
        |character: char| character != '\n' && (character.is_control() || "\u{202e}\u{2028}".contains(character));
    for args in [
        &["status"][..],
        &["dead", "list"],
        &["dead", "show", "1"],
        &["dead", "replay", "--all"],
        &["enqueue", "--endpoint", "http://127.0.0.1:1/", "--text", "x"],
        &["check"],
        &["run"],
    ] {
        let output = run_to_end(&[args, &["-oq", &url]].concat());
        let words = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {words}");
        assert!(words.contains("\\u{1b}") && words.contains("\\u{202e}"), "{args:?}: {words:?}");
        assert!(!words.contains(moves), "{args:?}: {words:?}");
    }

    // The same in a dead letter: as text, and as JSON.
    let redis = Redis::start();
    let pushed =
        envelope_with("http://127.0.0.1:1/", &[("X-Text", "\u{202e}turned\u{2028}\u{2066}"), ("bad\n", "")], b"");
    redis.push(&pushed);
    let good = envelope_with("http://127.0.0.1:1/", &[("X-Text", "\u{202e}turned\u{2028}\u{2066}")], b"");
    redis.push(&good);
    let _agent = Agent::start(&redis, &["--retry-first", "100ms", "--retry-max", "100ms", "--give-up-after", "200ms"]);
    eventually_eq("both are dead", SOON, 2, || redis.counts().dead);
    let ids: Vec<_> = redis.dead().into_iter().filter(|held| held.bytes == good).map(|held| held.id).collect();
    for args in [&["export"][..], &["show", &ids[0]], &["show", &ids[0], "--json"]] {
        let words = String::from_utf8(run_to_end(&[&["dead"], args, &["-oq", &redis.url()]].concat()).stdout).unwrap();
        assert!(words.contains("turned") && !words.contains(['\u{202e}', '\u{2028}', '\u{2066}']), "{words:?}");
    }
}
