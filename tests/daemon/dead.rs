//! What becomes a dead letter, with which reason and bytes, and what must not.

use std::collections::BTreeSet;

use crate::support::wire::{envelope, envelope_with, json_with, numbered};
use crate::support::{Agent, Answer, Counts, Held, Redis, SOON, Sink, eventually, eventually_eq, ms};

/// Answers with the status that the path names, such as `/410`.
fn sink_of_statuses() -> Sink {
    Sink::new(|request| match request.target.trim_start_matches('/').parse() {
        Ok(status) => Answer::status(status),
        Err(_) => Answer::ok(),
    })
}

fn only_dead(n: usize) -> Counts {
    Counts { dead: n, messages: n, ..Counts::default() }
}

#[test]
fn undecodable_messages_are_dead_untouched_while_the_good_around_them_arrive() {
    let redis = Redis::start();
    let sink = Sink::new(|_| Answer::ok());
    let good = numbered(&sink.url(), 40);
    let mut truncated = envelope(&sink.url(), b"truncated");
    truncated.pop();
    let mut longer = envelope(&sink.url(), b"longer");
    longer.push(0xc0);
    let bad: Vec<Vec<u8>> = vec![
        b"".to_vec(),
        b"\0\r\n\xff\xfe".to_vec(),
        b"{\"headers\": {}, \"endpoint\": \"http://a/\", \"payload\": \"json\"}".to_vec(),
        vec![0xc1],
        // An array and a map that claim to have four thousand million members.
        vec![0xdd, 0xff, 0xff, 0xff, 0xff],
        vec![0xdf, 0xff, 0xff, 0xff, 0xff],
        // No endpoint, no payload.
        b"\x81\xa7payload\xc4\x01x".to_vec(),
        b"\x81\xa8endpoint\xa9http://a/".to_vec(),
        b"\x82\xa8endpoint\xc4\x08http://\xff\xa7payload\xc4\x01x".to_vec(),
        truncated,
        longer,
        vec![b'x'; 300_000],
    ];
    for (i, good) in good.iter().enumerate() {
        redis.push(good);
        redis.push_all(bad.get(i));
    }
    let agent = Agent::start(&redis, &[]);
    eventually_eq("only the bad ones are left", SOON, only_dead(bad.len()), || redis.counts());
    assert_eq!((sink.n_requests(), sink.copies().len()), (40, 40));

    let dead = redis.dead();
    let bytes: BTreeSet<_> = dead.iter().map(|letter| letter.bytes.clone()).collect();
    assert_eq!(bytes, bad.into_iter().collect(), "the bytes were changed");
    for letter in &dead {
        let reason = letter.history.chars().filter(|c| c.is_ascii_alphabetic()).count();
        assert!(reason >= 8, "no reason with {:?}", letter.history);
    }
    redis.check_invariant();
    assert!(agent.complaints().len() <= dead.len(), "{:#?}", agent.complaints());
}

#[test]
fn endpoints_that_cannot_be_posted_to_are_dead_and_the_reason_says_why() {
    let redis = Redis::start();
    let cases = [
        ("irc://127.0.0.1/", "irc"),
        ("ftp://127.0.0.1/", "ftp"),
        ("didcomm:transport/queue", "didcomm"),
        ("not a url", "url"),
        ("/path/only", "url"),
        ("http://", "url"),
        ("", ""),
    ];
    redis.push_all(cases.map(|(endpoint, _)| envelope(endpoint, b"x")));
    let _agent = Agent::start(&redis, &[]);
    eventually_eq("all are dead", SOON, only_dead(cases.len()), || redis.counts());
    let dead = redis.dead();
    for (endpoint, says) in cases {
        let letter = dead.iter().find(|letter| letter.bytes == envelope(endpoint, b"x"));
        let history = letter.expect("the bytes are as pushed").history.to_lowercase();
        assert!(history.contains(says), "{endpoint:?}: {history}");
    }
}

#[test]
fn what_is_no_deliverers_business_is_dead_at_once_and_an_operator_understands_why() {
    let redis = Redis::start();
    let mediator = include_bytes!("../fixtures/today/real-mediator-mode.json");
    let fetches = "the recipient fetches its messages by itself";
    let cases = [
        (mediator.to_vec(), "mediator mode"),
        (json_with("didcomm:transport/queue", &[], b"{}"), fetches),
        (envelope("didcomm:transport/queue", b"{}"), fetches),
        (json_with("", &[], b"{}"), "endpoint is empty"),
        (envelope("", b"{}"), "endpoint is empty"),
        (json_with("ftp://127.0.0.1/", &[], b"{}"), "scheme ftp, only http, https, ws and wss"),
        (json_with("mailto:a@b.example", &[], b"{}"), "scheme mailto, only http, https, ws and wss"),
        (br#"{"service": {"url": "http://127.0.0.1:1/"}, "payload": "!!!!"}"#.to_vec(), "payload is not base64"),
        (br#"{"service": {"url": "http://127.0.0.1:1/"}, "payload": "e30="#.to_vec(), "truncated"),
        ([&b"{\"x\": "[..], &b"[".repeat(1_000_000)].concat(), "truncated"),
    ];
    redis.push_all(cases.iter().map(|(bytes, _)| bytes));
    let mut agent = Agent::start(&redis, &[]);
    eventually_eq("all are dead", SOON, only_dead(cases.len()), || redis.counts());
    let dead = redis.dead();
    for (bytes, says) in cases {
        let letter = dead.iter().find(|letter| letter.bytes == bytes).expect("the bytes are as pushed");
        assert!(letter.history.contains(says), "{says}: {}", letter.history);
    }
    assert!(agent.is_running());
    redis.check_invariant();
}

#[test]
fn headers_that_http_does_not_allow_are_dead_and_nothing_is_sent() {
    let redis = Redis::start();
    let sink = Sink::new(|_| Answer::ok());
    let cases = [
        ("X-Split", "a\r\nX-Smuggled: b"),
        ("X-Line", "a\nb"),
        ("X-Nul", "a\0b"),
        ("X Space", "a"),
        ("X-Colon:", "a"),
        ("", "a"),
    ];
    redis.push_all(cases.map(|header| envelope_with(&sink.url(), &[header], b"x")));
    let _agent = Agent::start(&redis, &[]);
    eventually_eq("all are dead", SOON, only_dead(cases.len()), || redis.counts());
    for letter in redis.dead() {
        assert!(letter.history.contains("header"), "{}", letter.history);
    }
    assert_eq!(sink.n_requests(), 0);
}

#[test]
fn final_statuses_make_a_dead_letter_after_one_attempt() {
    let redis = Redis::start();
    let sink = sink_of_statuses();
    let finals = [400, 405, 410, 411, 413, 414, 415, 422, 431, 501, 505];
    redis.push_all(finals.map(|status| envelope(&format!("{}/{status}", sink.url()), b"x")));
    let mut agent = Agent::start(&redis, &["--retry-first", "100ms"]);
    eventually_eq("all are dead", SOON, only_dead(finals.len()), || redis.counts());
    redis.check_invariant();
    let dead = redis.dead();
    for status in finals.map(|status| status.to_string()) {
        let n = dead.iter().filter(|letter| letter.history.contains(&status)).count();
        assert!(n >= 1, "no dead letter names {status}: {dead:?}");
    }

    // Nor does a new agent try them again, while it does deliver.
    agent.term();
    assert_eq!(agent.wait_exit(SOON), Some(0));
    let _agent = Agent::start(&redis, &[]);
    redis.push(&envelope(&sink.url(), b"good"));
    eventually_eq("the good one arrives", SOON, 1, || sink.n_delivered());
    assert_eq!(sink.n_requests(), finals.len() + 1);
    assert_eq!(redis.dead(), dead);
}

#[test]
fn a_redirect_302_is_not_a_delivery() {
    let redis = Redis::start();
    let elsewhere = Sink::new(|_| Answer::ok());
    let there = elsewhere.url();
    let sink = Sink::new(move |_| Answer::status(302).header("Location", &there));
    redis.push(&envelope(&sink.url(), b"x"));
    let _agent = Agent::start(&redis, &["--retry-first", "100ms"]);
    eventually("it is attempted again", SOON, || sink.n_requests() >= 2);
    assert_eq!(elsewhere.n_requests(), 0);
    eventually("it is kept", SOON, || redis.put_off().len() == 1);
    assert!(redis.put_off()[0].history.contains("302"));
    redis.check_invariant();
}

#[test]
fn redirects_in_a_circle_end_as_a_failed_attempt() {
    let redis = Redis::start();
    let sink = Sink::new(|_| Answer::status(307).header("Location", "/again"));
    redis.push(&envelope(&sink.url(), b"x"));
    let _agent = Agent::start(&redis, &["--retry-first", "60s"]);
    eventually("it is put off", SOON, || redis.put_off().len() == 1);
    assert!((2..=6).contains(&sink.n_requests()), "{} requests", sink.n_requests());
}

#[test]
fn what_is_not_final_is_not_dead() {
    let redis = Redis::start();
    let later = [301, 401, 403, 404, 408, 425, 429, 500, 502, 503, 504, 507];
    // An origin each, so that none waits behind another.
    let sinks: Vec<_> = later.iter().map(|_| sink_of_statuses()).collect();
    for (status, sink) in later.iter().zip(&sinks) {
        redis.push(&envelope(&format!("{}/{status}", sink.url()), b"x"));
    }
    let _agent = Agent::start(&redis, &["--retry-first", "60s"]);
    eventually("all are put off", SOON, || redis.put_off().len() == later.len());
    assert_eq!(redis.counts().dead, 0);
    let put_off = redis.put_off();
    for status in later.map(|status| status.to_string()) {
        let named = |held: &Held| held.history.contains(&status);
        assert!(put_off.iter().any(named), "no record of {status}: {put_off:?}");
    }
    redis.check_invariant();
}

#[test]
fn a_message_too_old_is_dead_with_its_last_error() {
    let redis = Redis::start();
    let sink = Sink::new(|_| Answer::status(500));
    redis.push(&envelope(&sink.url(), b"x"));
    let options = ["--retry-first", "200ms", "--retry-max", "400ms", "--give-up-after", "1s"];
    let _agent = Agent::start(&redis, &options);
    eventually_eq("it is dead", SOON, only_dead(1), || redis.counts());
    let history = redis.dead()[0].history.clone();
    assert!(history.contains("500"), "the last error is not in {history:?}");
    let requests = sink.requests();
    assert!(requests.len() >= 3, "only {} attempts", requests.len());
    let lasted = requests.last().unwrap().at - requests[0].at;
    assert!(lasted >= ms(600), "given up after {lasted:?}");
}

#[test]
fn endpoints_that_are_no_clean_url_are_dead_and_nobody_else_gets_their_messages() {
    let redis = Redis::start();
    let sink = Sink::new(|_| Answer::ok());
    let address = sink.address();
    let bad = [
        (format!("http://good.example\\@{address}/"), "a backslash"),
        (format!("http:\\\\{address}\\"), "a backslash"),
        (format!("http://{address}/a b"), "a blank"),
        (format!(" http://{address}/"), "a blank"),
        (format!("ht\ttp://{address}/"), "a control character"),
        (format!("http://{address}/\n"), "a control character"),
        (format!("http:///{address}/"), "two slashes"),
        (format!("http:{address}/"), "two slashes"),
    ];
    redis.push_all(bad.iter().map(|(endpoint, _)| envelope(endpoint, b"x")));
    let _agent = Agent::start(&redis, &[]);
    eventually_eq("all are dead", SOON, only_dead(bad.len()), || redis.counts());
    assert_eq!(sink.n_requests(), 0);
    let mut reasons: Vec<String> = redis.dead().into_iter().map(|letter| letter.history).collect();
    for (endpoint, words) in &bad {
        let at = reasons.iter().position(|reason| reason.contains(words));
        let reason = reasons.remove(at.unwrap_or_else(|| panic!("{endpoint:?} has no reason: {reasons:?}")));
        assert!(!reason.contains(|c: char| c.is_control() && c != '\n'), "{reason:?}");
    }
}

#[test]
fn without_tls_nothing_is_delivered_where_https_is_wanted_but_to_networks_that_are_allowed() {
    let redis = Redis::start();
    let sink = Sink::new(|_| Answer::ok());
    redis.push(&envelope(&sink.url(), b"1"));
    let mut agent = Agent::start(&redis, &["--https-only"]);
    eventually_eq("it is dead", SOON, only_dead(1), || redis.counts());
    assert_eq!(sink.n_requests(), 0);
    let reason = &redis.dead()[0].history;
    assert!(reason.contains("'--https-only'") && reason.contains("'--allow-net'"), "{reason}");
    agent.term();
    assert_eq!(agent.wait_exit(SOON), Some(0));

    let network = format!("{}/32", sink.address().ip());
    let _agent = Agent::start(&redis, &["--https-only", "--allow-net", &network]);
    redis.push(&envelope(&sink.url(), b"2"));
    redis.push(&envelope("http://127.0.0.1:9/", b"3"));
    eventually_eq("the one beside the network is dead", SOON, only_dead(2), || redis.counts());
    assert_eq!(sink.delivered(), ["2"]);
}
