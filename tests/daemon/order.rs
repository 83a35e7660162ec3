//! `--ordered`: strictly one at a time and in the order of the queue, per origin, whatever fails.

use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::support::wire::envelope;
use crate::support::{Agent, Answer, Redis, Request, Sink, eventually, ms};

/// Ordered mode takes a round trip for each message, and the tests run beside others.
const LONG: Duration = Duration::from_secs(60);

const QUICK: [&str; 9] =
    ["--ordered", "--retry-first", "60ms", "--retry-max", "200ms", "--lease", "3s", "--workers", "16"];

/// Pushes `n` messages round robin over the origins; each body is its number within its origin.
fn push_round_robin(redis: &Redis, urls: &[String], from: usize, n: usize) {
    let messages = (from..from + n).flat_map(|i| urls.iter().map(move |url| (i, url)));
    redis.push_all(messages.map(|(i, url)| envelope(url, format!("{i:06}").as_bytes())));
}

/// By origin, every request in order.
fn by_origin(sink: &Sink) -> BTreeMap<SocketAddr, Vec<Arc<Request>>> {
    let mut origins: BTreeMap<SocketAddr, Vec<Arc<Request>>> = BTreeMap::new();
    for request in sink.requests() {
        origins.entry(request.origin).or_default().push(request);
    }
    origins
}

fn is_delivered(request: &Request) -> bool {
    request.status.is_some_and(|status| (200..300).contains(&status))
}

/// No message is attempted for the first time before all older ones of its origin were delivered.
#[track_caller]
fn assert_in_order(sink: &Sink, n: usize) {
    for (origin, requests) in by_origin(sink) {
        let mut delivered = 0;
        for request in &requests {
            let number: usize = request.text().parse().unwrap();
            assert!(number <= delivered, "{origin}: {number} was attempted before {delivered} was delivered");
            if is_delivered(request) && number == delivered {
                delivered += 1;
            }
        }
        assert_eq!(delivered, n, "{origin}: not all arrived");
    }
}

/// Fails every message once, in ways that differ: by status, by silence, by a cut connection.
fn failing_once(request: &Request, seen: &Mutex<HashMap<(SocketAddr, Vec<u8>), usize>>) -> Answer {
    let mut seen = seen.lock().unwrap();
    let n = seen.entry((request.origin, request.body.clone())).or_default();
    *n += 1;
    let number: usize = request.text().parse().unwrap();
    match (*n, number % 5) {
        (1, 0) => Answer::status(500),
        (1, 1) => Answer::status(503),
        (1, 2) => Answer::Cut,
        (1, 3) => Answer::status(404),
        _ => Answer::ok(),
    }
}

fn sink_failing_once(origins: usize) -> Sink {
    let seen = Mutex::new(HashMap::new());
    Sink::origins(origins, move |request| failing_once(request, &seen))
}

#[test]
fn ordered_keeps_the_order_of_each_origin_through_failures() {
    let redis = Redis::start();
    let sink = sink_failing_once(3);
    push_round_robin(&redis, &sink.urls(), 0, 40);
    let _agent = Agent::start(&redis, &QUICK);
    redis.wait_empty(LONG);
    assert_in_order(&sink, 40);
    redis.check_invariant();
}

#[test]
fn ordered_one_failing_origin_does_not_hold_up_the_others() {
    let redis = Redis::start();
    let sink = Sink::origins(2, |_| Answer::ok());
    let dead = sink.addresses()[0];
    sink.behave(move |request| if request.origin == dead { Answer::status(503) } else { Answer::ok() });
    push_round_robin(&redis, &sink.urls(), 0, 200);
    let begun = Instant::now();
    let _agent = Agent::start(&redis, &["--ordered"]);
    eventually("the healthy one has all", LONG, || sink.n_delivered() == 200);
    assert!(begun.elapsed() < Duration::from_secs(20));
    assert!(by_origin(&sink)[&dead].len() <= 3, "one try, and few after 5 s and more");
    eventually("the rest waits", LONG, || redis.counts().waiting >= 199);
    redis.check_invariant();
}

#[test]
fn ordered_keeps_the_order_through_kill_9_and_restart() {
    let redis = Redis::start();
    let sink = sink_failing_once(3);
    push_round_robin(&redis, &sink.urls(), 0, 60);
    for round in 1..=3 {
        let mut agent = Agent::start(&redis, &QUICK);
        eventually("some more are delivered", LONG, || sink.n_delivered() >= round * 30);
        agent.kill9();
    }
    let _agent = Agent::start(&redis, &QUICK);
    redis.wait_empty(LONG);
    assert_in_order(&sink, 60);
}

#[test]
fn ordered_keeps_the_order_through_clean_restarts() {
    let redis = Redis::start();
    let seen = Mutex::new(HashMap::new());
    let sink = Sink::origins(3, move |request| match failing_once(request, &seen) {
        Answer::Reply(reply) => Answer::Reply(reply).after(ms(5)),
        other => other,
    });
    push_round_robin(&redis, &sink.urls(), 0, 80);
    for round in 1..=3 {
        let mut agent = Agent::start(&redis, &QUICK);
        eventually("some more are delivered", LONG, || sink.n_delivered() >= round * 30);
        agent.term();
        assert_eq!(agent.wait_exit(Duration::from_secs(9)), Some(0));
        assert_eq!(redis.counts().inflight, 0);
        redis.check_invariant();
    }
    let _agent = Agent::start(&redis, &QUICK);
    redis.wait_empty(LONG);
    assert_in_order(&sink, 80);
}

#[test]
fn ordered_a_second_agent_stands_by_and_takes_over_within_a_lease_and_a_little() {
    let redis = Redis::start();
    let sink = Sink::origins(2, |_| Answer::ok().after(ms(20)));
    let mut first = Agent::start(&redis, &QUICK);
    let second = Agent::start(&redis, &QUICK);
    second.wait_log("standing by");
    push_round_robin(&redis, &sink.urls(), 0, 100);
    eventually("the first delivers", LONG, || sink.n_requests() >= 20);
    assert_eq!(redis.holders().len(), 1, "only one agent has messages in flight");
    first.kill9();
    let killed = Instant::now();
    second.wait_log("taking over");
    assert!(killed.elapsed() < Duration::from_secs(10), "took over after {:?}", killed.elapsed());
    redis.wait_empty(LONG);
    assert_in_order(&sink, 100);
    // The one that comes back is the standby now.
    let third = Agent::start(&redis, &QUICK);
    third.wait_log("standing by");
}

#[test]
fn a_queue_can_be_switched_from_one_mode_to_the_other_and_back() {
    let redis = Redis::start();
    let sink = Sink::origins(2, |_| Answer::status(503));
    let urls = sink.urls();
    let default = ["--retry-first", "60ms", "--retry-max", "200ms", "--lease", "3s"];
    push_round_robin(&redis, &urls, 0, 30);
    // The default mode leaves messages in all places: on the retry schedule, waiting, and in the queue.
    sink.behave(|request| match request.text().parse::<usize>().unwrap() % 3 {
        0 => Answer::status(500),
        1 => Answer::Cut,
        _ => Answer::status(503),
    });
    let mut agent = Agent::start(&redis, &default);
    eventually("some wait", LONG, || redis.counts().waiting + redis.counts().retry >= 60);
    agent.kill9();
    assert_eq!(sink.n_delivered(), 0);
    let before = sink.n_requests();
    sink.behave(|_| Answer::ok());
    let mut agent = Agent::start(&redis, &QUICK);
    eventually("the first are delivered", LONG, || sink.n_delivered() >= 10);
    for requests in by_origin(&sink).values() {
        let delivered: Vec<String> = requests.iter().filter(|r| is_delivered(r)).map(|r| r.text()).collect();
        assert!(delivered.is_sorted(), "{delivered:?}");
    }
    assert!(sink.n_requests() > before);
    agent.term();
    assert_eq!(agent.wait_exit(Duration::from_secs(9)), Some(0));
    let _agent = Agent::start(&redis, &default);
    redis.wait_empty(LONG);
    let copies = sink.copies();
    assert_eq!(copies.len(), 30);
    redis.check_invariant();
}

#[test]
fn blpop_and_ordered_contradict_each_other() {
    let out = crate::support::run_to_end(&["--ordered", "--pop", "blpop", "-oq", "redis://127.0.0.1:1"]);
    assert_eq!(out.status.code(), Some(2));
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(said.contains("--pop") && said.contains("--ordered"), "{said}");
}

#[test]
fn ordered_keeps_the_order_of_more_origins_than_an_agent_remembers() {
    const N: usize = 11_000;
    let redis = Redis::start();
    // One listener on every loopback address: an origin for each address.
    let mut sink = Sink::at(Ipv4Addr::UNSPECIFIED, 0, |_| Answer::ok());
    let port = sink.address().port();
    sink.stop();
    let urls: Vec<String> = (0..N).map(|n| format!("http://127.77.{}.{}:{port}", n / 250, n % 250 + 1)).collect();
    let options = ["--ordered", "--retry-first", "8s", "--lease", "3s"];
    let mut agent = Agent::start(&redis, &options);
    redis.push_all(urls.iter().enumerate().map(|(n, url)| envelope(url, format!("{n} first").as_bytes())));
    eventually("the first of each waits", LONG, || redis.counts().waiting == N);
    agent.kill9();
    let _agent = Agent::start(&redis, &options);
    eventually("what was in flight is taken back", LONG, || redis.agents().len() == 1);
    sink.start();
    redis.push_all(urls.iter().enumerate().map(|(n, url)| envelope(url, format!("{n} second").as_bytes())));
    redis.wait_empty(LONG * 2);
    let mut begun = vec![false; N];
    let mut n_out_of_order = 0;
    for body in sink.delivered() {
        let (n, which) = body.split_once(' ').unwrap();
        let n: usize = n.parse().unwrap();
        n_out_of_order += usize::from(which == "second" && !begun[n]);
        begun[n] = true;
    }
    assert_eq!((n_out_of_order, begun.iter().filter(|begun| **begun).count()), (0, N));
}
