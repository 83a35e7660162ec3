//! What arrives when nothing fails: every byte and header, once, soon, whoever shares the work.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::wire::{Fixture, envelope, envelope_with, json_with, numbered};
use crate::support::{Agent, Answer, Counts, Redis, SOON, Sink, eventually, eventually_eq, ms};

#[test]
fn what_aca_py_wrote_arrives_bit_by_bit_with_its_headers() {
    let redis = Redis::start();
    let sink = Sink::new(|_| Answer::ok());
    let fixtures = Fixture::all();
    assert!(fixtures.len() >= 16);
    let path = |fixture: &Fixture| format!("/in/{}?a=b%20c", fixture.name);
    redis.push_all(fixtures.iter().map(|f| f.addressed_to(&(sink.url() + &path(f)))));
    let _agent = Agent::start(&redis, &[]);
    redis.wait_empty(SOON);

    let requests = sink.requests();
    assert_eq!(requests.len(), fixtures.len());
    for fixture in fixtures {
        let request = requests.iter().find(|r| r.target == path(&fixture));
        let request = request.unwrap_or_else(|| panic!("{} did not arrive", fixture.name));
        assert_eq!(request.method, "POST");
        assert!(request.body == fixture.payload, "{}: another payload", fixture.name);
        for (name, value) in &fixture.headers {
            assert_eq!(request.header(name), Some(value.as_str()), "{}: {name}", fixture.name);
        }
        assert_eq!(request.header("host"), Some(sink.address().to_string().as_str()));
        assert_eq!(request.header("content-length"), Some(request.body.len().to_string().as_str()));
    }
}

#[test]
fn what_aca_py_of_today_wrote_arrives_beside_what_it_once_wrote() {
    let redis = Redis::start();
    let sink = Sink::new(|_| Answer::ok());
    let (today, once) = (Fixture::today(), Fixture::all());
    assert!(today.len() >= 27 && once.len() >= 16);
    let path = |fixture: &Fixture| format!("/in/{}?a=b%20c", fixture.name);
    // By turns, and one of each as somebody else may write JSON.
    let both = today.iter().zip(once.iter().cycle()).flat_map(|(one, other)| [one, other]);
    redis.push_all(both.map(|f| f.addressed_to(&(sink.url() + &path(f)))));
    let odd = format!(r#" {{"headers":null,"x":[{{}}],"payload":"\/w\n==","service":{{"url":"{}/odd"}}}}"#, sink.url());
    redis.push(odd.as_bytes());
    let _agent = Agent::start(&redis, &[]);
    redis.wait_empty(SOON);

    let requests = sink.requests();
    assert_eq!(requests.len(), 2 * today.len() + 1);
    assert!(requests.iter().any(|request| request.target == "/odd" && request.body == b"\xff"));
    for fixture in today.iter().chain(&once) {
        let request = requests.iter().find(|r| r.target == path(fixture));
        let request = request.unwrap_or_else(|| panic!("{} did not arrive", fixture.name));
        assert_eq!(request.method, "POST");
        assert!(request.body == fixture.payload, "{}: another payload", fixture.name);
        for (name, value) in &fixture.headers {
            assert_eq!(request.header(name), Some(value.as_str()), "{}: {name}", fixture.name);
        }
        let is_webhook = fixture.name.starts_with("agent-webhook");
        assert_eq!(fixture.headers.iter().any(|(name, _)| name == "Content-Type"), !is_webhook);
        let n = request.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("content-type")).count();
        assert_eq!(n, 1, "{}: {:?}", fixture.name, request.headers);
        if is_webhook {
            assert_eq!(request.header("content-type"), Some("application/json"), "{}", fixture.name);
        }
    }
}

#[test]
fn what_names_no_content_type_is_json_by_its_first_byte_or_just_bytes() {
    let redis = Redis::start();
    let sink = Sink::new(|_| Answer::ok());
    for (n, write) in [envelope_with, json_with].into_iter().enumerate() {
        for (body, path) in [("{\"a\": 1}", "json"), ("[]", "json"), ("plain", "bytes"), ("", "bytes")] {
            redis.push(&write(
                &format!("{}/{path}{n}", sink.url()),
                &[("x-api-key", "k"), ("X-Wallet-Id", "w")],
                body.as_bytes(),
            ));
        }
    }
    let _agent = Agent::start(&redis, &[]);
    redis.wait_empty(SOON);
    let requests = sink.requests();
    assert_eq!(requests.len(), 8);
    for request in requests {
        let expected =
            if request.target.starts_with("/json") { "application/json" } else { "application/octet-stream" };
        assert_eq!(request.header("content-type"), Some(expected), "{}", request.target);
        assert_eq!((request.header("x-api-key"), request.header("x-wallet-id")), (Some("k"), Some("w")));
    }
}

#[test]
fn a_message_already_queued_and_one_of_another_prefix_are_told_apart() {
    let redis = Redis::start();
    let sink = Sink::new(|_| Answer::ok());
    let mut client = redis.client();
    redis.push(&envelope(&sink.url(), b"of acapy"));
    let theirs = envelope(&sink.url(), b"of mine");
    redis::cmd("RPUSH").arg("mine.outbound_transport").arg(theirs).exec(&mut client).unwrap();
    let _agent = Agent::start_at(&redis.url(), &["-oqp", "mine"]);
    eventually_eq("the one of its prefix arrives", SOON, vec!["of mine".to_string()], || sink.delivered());
    let _other = Agent::start_at(&redis.url(), &[]);
    eventually_eq("then the other's", SOON, 2, || sink.n_delivered());
    redis.wait_empty(SOON);
}

#[test]
fn framing_headers_of_the_envelope_are_not_sent() {
    let redis = Redis::start();
    let sink = Sink::new(|_| Answer::ok());
    let headers = [
        ("Host", "elsewhere.example"),
        ("Content-Length", "3"),
        ("Transfer-Encoding", "chunked"),
        ("Connection", "X-Gone, close"),
        ("Keep-Alive", "timeout=1"),
        ("TE", "trailers"),
        ("Trailer", "X-After"),
        ("Upgrade", "h2c"),
        ("Expect", "100-continue"),
        ("Proxy-Authorization", "Basic eA=="),
        ("Proxy-Connection", "close"),
        ("Content-Type", "text/plain"),
        ("X-Trace", "kept"),
    ];
    redis.push(&envelope_with(&sink.url(), &headers, b"longer than three"));
    let _agent = Agent::start(&redis, &[]);
    redis.wait_empty(SOON);

    let request = &sink.requests()[0];
    assert_eq!(request.body, b"longer than three");
    assert_eq!(request.header("host"), Some(sink.address().to_string().as_str()));
    assert_eq!(request.header("content-length"), Some("17"));
    assert_eq!(request.header("content-type"), Some("text/plain"));
    assert_eq!(request.header("x-trace"), Some("kept"));
    for (name, value) in headers.iter().filter(|(n, _)| !n.starts_with(['H', 'C', 'X'])) {
        assert_ne!(request.header(name), Some(*value), "{name} was sent");
    }
    assert_ne!(request.header("connection"), Some("X-Gone, close"));
    for name in ["host", "content-length", "content-type"] {
        let n = request.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).count();
        assert_eq!(n, 1, "{name} was sent {n} times: {:?}", request.headers);
    }
}

#[test]
fn names_of_headers_keep_the_spelling_that_was_pushed() {
    let redis = Redis::start();
    let sink = Sink::new(|_| Answer::ok());
    let headers = [
        ("content-TYPE", "application/ssi-agent-wire"),
        ("X-TRACE-Id", "1"),
        ("x-lower", "2"),
        ("X-Trace-ID", "3"),
        ("AUTHORIZATION", "Bearer x"),
    ];
    redis.push(&envelope_with(&sink.url(), &headers, b"x"));
    let _agent = Agent::start(&redis, &["--id-header", "X-message-ID"]);
    redis.wait_empty(SOON);
    let sent = &sink.requests()[0].headers;
    for (name, value) in headers {
        assert!(sent.contains(&(name.to_string(), value.to_string())), "{name}: {sent:?}");
    }
    assert!(sent.iter().any(|(name, _)| name == "X-message-ID"), "{sent:?}");
}

#[test]
fn a_message_with_hundreds_of_headers_costs_no_more_than_its_size() {
    let redis = Redis::start();
    let sink = Sink::new(|_| Answer::ok());
    let names: Vec<String> = (0..900).map(|n| format!("X-{n}")).collect();
    let headers: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "v")).collect();
    redis.push(&envelope_with(&sink.url(), &headers, b"x"));
    let _agent = Agent::start(&redis, &[]);
    redis.wait_empty(SOON);
    let request = &sink.requests()[0];
    assert_eq!((request.header("X-0"), request.header("X-899")), (Some("v"), Some("v")));
}

#[test]
fn a_hundred_identical_messages_all_arrive_through_refusals() {
    let redis = Redis::start();
    let n = AtomicUsize::new(0);
    // Every second request is refused, so that at most a few refusals come in a row.
    let mut sink = Sink::new(move |_| match n.fetch_add(1, Ordering::SeqCst) {
        n if n < 200 && n % 2 == 0 => Answer::status(500),
        _ => Answer::ok(),
    });
    sink.stop();
    let message = envelope(&sink.url(), b"the same");
    redis.push_all(vec![message; 100]);
    let _agent = Agent::start(&redis, &["--retry-first", "200ms", "--retry-max", "1s"]);
    eventually("all are put off, refused", SOON, || {
        let counts = redis.counts();
        counts.queue == 0 && counts.retry + counts.waiting >= 90
    });
    sink.start();
    redis.wait_empty(ms(60_000));
    assert_eq!(sink.n_delivered(), 100);
    assert!(sink.requests().iter().all(|r| r.body == b"the same"));
}

#[test]
fn two_agents_share_one_queue() {
    let redis = Redis::start();
    let sink = Sink::origins(8, |_| Answer::ok().after(ms(20)));
    let urls = sink.urls();
    let message = |i: usize| envelope(&urls[i % 8], format!("message {i}").as_bytes());
    let options = ["--workers", "8", "--in-flight", "32"];
    let _one = Agent::start(&redis, &options);
    let _two = Agent::start(&redis, &options);
    redis.push_all((0..800).map(message));
    let mut shared = false;
    eventually_eq("all are delivered", ms(60_000), Counts::default(), || {
        shared |= redis.holders().len() == 2;
        redis.counts()
    });
    assert!(shared, "never had both something in flight");
    let copies = sink.copies();
    assert_eq!(copies.len(), 800);
    assert!(copies.values().all(|n| *n == 1), "some arrived twice: {copies:?}");
    redis.check_invariant();
}

#[test]
fn a_push_to_an_idle_agent_arrives_at_once() {
    arrives_at_once(&Redis::start(), &[]);
}

#[test]
fn a_push_arrives_at_once_on_a_server_before_6_2() {
    // Without BLMOVE the agent waits with BRPOPLPUSH.
    arrives_at_once(&Redis::with(&["rename-command BLMOVE \"\""]), &[]);
}

#[test]
fn a_push_arrives_at_once_with_pop_blpop() {
    arrives_at_once(&Redis::start(), &["--pop", "blpop"]);
}

/// Half of the pushes to an agent that waits arrive within a time that polling could not reach.
fn arrives_at_once(redis: &Redis, options: &[&str]) {
    let sink = Sink::new(|_| Answer::ok());
    let _agent = Agent::start(redis, options);
    let mut delays = Vec::new();
    for i in 0..31 {
        // Spread over the half second that a wait lasts at most; not a wait for anything.
        thread::sleep(ms(7 * (i % 5) + 13));
        let pushed = Instant::now();
        redis.push(&envelope(&sink.url(), format!("message {i}").as_bytes()));
        eventually_eq("it arrives", SOON, i as usize + 1, || sink.n_requests());
        delays.push(sink.requests()[i as usize].at - pushed);
    }
    redis.wait_empty(SOON);
    delays.sort();
    assert!(delays[15] < ms(100), "half of them took longer than {:?}", delays[15]);
    assert_eq!(sink.copies().len(), 31);
}

#[test]
fn pop_blpop_delivers_a_backlog_and_bytes_as_they_are() {
    let redis = Redis::start();
    let sink = Sink::new(|_| Answer::ok());
    let _agent = Agent::start(&redis, &["--pop", "blpop"]);
    redis.push_all(numbered(&sink.url(), 300));
    redis.push(b"\xffnot an envelope\n");
    let one_dead = Counts { dead: 1, messages: 1, ..Counts::default() };
    eventually_eq("only the bad one is left", SOON, one_dead, || redis.counts());
    assert_eq!(redis.dead()[0].bytes, b"\xffnot an envelope\n");
    assert_eq!((sink.n_delivered(), sink.copies().len()), (300, 300));
    redis.check_invariant();
}

#[test]
fn a_huge_message_passes_among_small_ones() {
    let redis = Redis::start();
    let sink = Sink::new(|_| Answer::ok());
    let huge: Vec<u8> = (0..5_000_000_u32).map(|i| (i.wrapping_mul(i) >> 7) as u8).collect();
    redis.push_all(numbered(&sink.url(), 30));
    redis.push(&envelope(&(sink.url() + "/huge"), &huge));
    redis.push(&envelope(&(sink.url() + "/huge"), &huge));
    redis.push_all(numbered(&sink.url(), 30));
    // Each is larger than what one claim takes otherwise, and only one fits in memory.
    let _agent = Agent::start(&redis, &["--in-flight-bytes", "6MiB"]);
    redis.wait_empty(SOON);
    let requests = sink.requests();
    let (large, small): (Vec<_>, Vec<_>) = requests.iter().partition(|r| r.target == "/huge");
    assert_eq!((large.len(), small.len()), (2, 60));
    assert!(large.iter().all(|r| r.body == huge));
}

#[test]
fn the_id_header_is_the_same_at_every_attempt() {
    let redis = Redis::start();
    let seen = std::sync::Mutex::new(BTreeSet::new());
    let sink = Sink::new(move |request| match seen.lock().unwrap().insert(request.text()) {
        true => Answer::status(500),
        false => Answer::ok(),
    });
    redis.push_all(numbered(&sink.url(), 5));
    let options = ["--retry-first", "100ms", "--id-header", "X-Message-Id"];
    let mut agent = Agent::start(&redis, &options);
    redis.wait_empty(SOON);
    let requests = sink.requests();
    assert_eq!(requests.len(), 10);
    let ids: BTreeSet<_> =
        requests.iter().map(|r| (r.text(), r.header("x-message-id").expect("the id is sent").to_string())).collect();
    assert_eq!(ids.len(), 5, "the id of a message changed: {ids:?}");
    assert_eq!(ids.iter().map(|(_, id)| id).collect::<BTreeSet<_>>().len(), 5);

    agent.term();
    assert_eq!(agent.wait_exit(SOON), Some(0));
    let _agent = Agent::start(&redis, &[]);
    redis.push(&envelope(&sink.url(), b"message 0"));
    redis.wait_empty(SOON);
    assert_eq!(sink.requests()[10].header("x-message-id"), None, "the header is off by default");
}

#[test]
fn connections_are_used_again_whatever_the_answer_holds() {
    let redis = Redis::start();
    let sink = Sink::new(|_| Answer::ok().body(vec![b'x'; 5000]));
    redis.push_all(numbered(&sink.url(), 100));
    let options = ["--workers", "1", "--endpoint-concurrency", "1"];
    let _agent = Agent::start(&redis, &options);
    redis.wait_empty(SOON);
    let connections: BTreeSet<_> = sink.requests().iter().map(|r| r.connection).collect();
    assert!(connections.len() <= 3, "100 messages took {} connections", connections.len());
}

#[test]
fn an_answer_without_end_counts_and_costs_its_connection_only() {
    let redis = Redis::start();
    let sink = Sink::new(|_| Answer::ok().body(vec![b'x'; 3 << 20]));
    redis.push_all(numbered(&sink.url(), 10));
    let _agent = Agent::start(&redis, &[]);
    redis.wait_empty(SOON);
    assert_eq!((sink.n_requests(), sink.copies().len()), (10, 10));
}

#[test]
fn redirects_307_and_308_are_followed_with_method_and_body() {
    let redis = Redis::start();
    let home = Sink::new(|_| Answer::ok());
    let there = home.url() + "/home";
    let sink = Sink::new(move |request| {
        let status = if request.target == "/307" { 307 } else { 308 };
        Answer::status(status).header("Location", &there)
    });
    redis.push(&envelope(&(sink.url() + "/307"), b"one"));
    redis.push(&envelope(&(sink.url() + "/308"), b"two"));
    let _agent = Agent::start(&redis, &[]);
    redis.wait_empty(SOON);
    let requests = home.requests();
    assert_eq!(requests.len(), 2);
    for request in requests {
        assert_eq!((request.method.as_str(), request.target.as_str()), ("POST", "/home"));
        assert!([b"one", b"two"].contains(&request.body.as_slice().try_into().unwrap()));
        assert_eq!(request.header("content-type"), Some("application/ssi-agent-wire"));
    }
}

#[test]
fn what_one_origin_sends_is_begun_in_the_order_of_the_queue() {
    let redis = Redis::start();
    let sink = Sink::new(|_| Answer::ok());
    redis.push_all(numbered(&sink.url(), 50));
    let _agent = Agent::start(&redis, &["--workers", "1", "--endpoint-concurrency", "1"]);
    redis.wait_empty(SOON);
    let expected: Vec<_> = (0..50).map(|i| format!("message {i}")).collect();
    assert_eq!(sink.delivered(), expected);
}

#[test]
fn a_backlog_for_many_origins_is_delivered_once_each() {
    let redis = Redis::start();
    let sink = Sink::origins(20, |_| Answer::status(204));
    for url in sink.urls() {
        redis.push_all((0..100).map(|i| envelope(&url, format!("{url} {i}").as_bytes())));
    }
    let _agent = Agent::start(&redis, &[]);
    redis.wait_empty(Duration::from_secs(60));
    assert_eq!((sink.n_delivered(), sink.copies().len()), (2000, 2000));
}
