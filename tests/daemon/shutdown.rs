//! An agent that ends or freezes: what it holds is finished, given back, or taken back by another.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::wire::{envelope, numbered};
use crate::support::{Agent, Answer, Counts, Redis, SOON, Sink, eventually, eventually_eq, ms};

/// Every message arrived at least once, and none more often than this.
#[track_caller]
fn assert_all_arrived(sink: &Sink, n: usize, at_most: usize) {
    let copies = sink.copies();
    let missing: Vec<_> = (0..n).map(|i| format!("message {i}")).filter(|m| !copies.contains_key(m)).collect();
    assert!(missing.is_empty(), "{} lost: {missing:?}", missing.len());
    let often: BTreeMap<_, _> = copies.into_iter().filter(|(_, n)| *n > at_most).collect();
    assert!(often.is_empty(), "arrived more than {at_most} times: {often:?}");
}

#[test]
fn sigterm_under_load_leaves_nothing_in_flight_and_ends_with_0() {
    ends_in_good_order(Agent::term);
}

#[test]
fn ctrl_c_ends_it_in_the_same_way() {
    ends_in_good_order(Agent::interrupt);
}

fn ends_in_good_order(signal: fn(&Agent)) {
    let redis = Redis::start();
    let sink = Sink::origins(4, |_| Answer::ok().after(ms(50)));
    let urls = sink.urls();
    redis.push_all((0..2000).map(|i| envelope(&urls[i % 4], format!("message {i}").as_bytes())));
    let mut agent = Agent::start(&redis, &["--workers", "16"]);
    eventually("some are delivered", SOON, || sink.n_requests() >= 50);
    signal(&agent);
    let asked = Instant::now();
    assert_eq!(agent.wait_exit(ms(9_000)), Some(0));
    assert!(asked.elapsed() < ms(6_000), "it took {:?}", asked.elapsed());

    let counts = redis.counts();
    assert_eq!(counts.inflight, 0, "left in flight: {counts:?}");
    assert_eq!(redis.agents(), Vec::<String>::new(), "it left without saying so");
    redis.check_invariant();
    let remain = counts.queue + counts.waiting + counts.retry;
    assert_eq!(sink.n_requests() + remain, 2000, "{counts:?}");
    assert!(remain > 100, "it did not end under load: {counts:?}");

    sink.behave(|_| Answer::ok());
    let _agent = Agent::start(&redis, &[]);
    redis.wait_empty(SOON);
    // It finished what it had begun, so nothing was cut off and nothing comes twice.
    assert_all_arrived(&sink, 2000, 1);
}

#[test]
fn past_the_drain_timeout_it_gives_back_and_ends() {
    let redis = Redis::start();
    let sink = Sink::new(|_| Answer::Hang);
    redis.push_all(numbered(&sink.url(), 20));
    let mut agent = Agent::start(&redis, &["--drain-timeout", "1s", "--retry-first", "3s"]);
    eventually("an attempt hangs", SOON, || sink.n_requests() >= 1);
    agent.term();
    let asked = Instant::now();
    assert_eq!(agent.wait_exit(SOON), Some(0));
    let took = asked.elapsed();
    assert!(took >= ms(900) && took < ms(3_500), "a drain of 1 s took {took:?}");
    let counts = redis.counts();
    assert_eq!((counts.inflight, counts.dead), (0, 0));
    assert_eq!(counts.queue + counts.retry + counts.waiting, 20);
    redis.check_invariant();

    // What was cut off may have arrived: its second copy does not come at once.
    let cut_off = sink.requests()[0].text();
    sink.behave(|_| Answer::ok());
    let ended = Instant::now();
    let _agent = Agent::start(&redis, &["--retry-first", "3s"]);
    redis.wait_empty(SOON);
    assert_all_arrived(&sink, 20, 1);
    let requests = sink.requests();
    let again = requests.iter().filter(|r| r.text() == cut_off).nth(1).unwrap().at - ended;
    assert!(again >= ms(1_500), "its second copy came {again:?} after the end");
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let redis = Redis::start();
    let sink = Sink::new(|_| Answer::Hang);
    redis.push_all(numbered(&sink.url(), 20));
    let options = ["--timeout", "100s", "--drain-timeout", "90s"];
    let mut agent = Agent::start(&redis, &options);
    eventually("an attempt hangs", SOON, || sink.n_requests() >= 1);
    // Two signals sent together may arrive as one; so they are sent until it ends, which is
    // before the drain's 90 s only if the second is understood.
    eventually("it ends", SOON, || {
        if agent.is_running() {
            agent.term();
            thread::sleep(ms(50));
        }
        !agent.is_running()
    });
    assert_eq!(agent.wait_exit(SOON), Some(0));
    let counts = redis.counts();
    assert_eq!((counts.inflight, counts.dead), (0, 0), "{counts:?}");
    assert_eq!(counts.queue + counts.retry + counts.waiting, 20, "{counts:?}");
    redis.check_invariant();
}

#[test]
fn an_idle_agent_ends_quickly() {
    let redis = Redis::start();
    let mut agent = Agent::start(&redis, &[]);
    agent.term();
    // A wait in Redis lasts half a second at most.
    assert_eq!(agent.wait_exit(ms(3_000)), Some(0));
    assert_eq!(redis.agents(), Vec::<String>::new());
}

#[test]
fn killed_in_mid_delivery_everything_arrives_within_the_lease() {
    let redis = Redis::start();
    let sink = Sink::origins(4, |_| Answer::ok().after(ms(30)));
    let urls = sink.urls();
    redis.push_all((0..600).map(|i| envelope(&urls[i % 4], format!("message {i}").as_bytes())));
    let options = ["--lease", "3s", "--timeout", "5s", "--retry-first", "500ms"];
    let mut agent = Agent::start(&redis, &options);
    eventually("it is in the middle", SOON, || sink.n_requests() >= 100);
    agent.kill9();
    redis.check_invariant();
    let counts = redis.counts();
    assert!(counts.inflight > 0, "nothing was in flight: {counts:?}");

    let _agent = Agent::start(&redis, &options);
    // The lease, three looks at it, and the deliveries.
    redis.wait_empty(ms(15_000));
    assert_all_arrived(&sink, 600, 2);
    let twice = sink.copies().values().filter(|n| **n == 2).count();
    assert!(twice <= counts.inflight, "{twice} twice, {} were in flight", counts.inflight);
}

#[test]
fn killed_again_and_again_it_loses_nothing() {
    let redis = Redis::start();
    let sink = Sink::origins(4, |_| Answer::ok().after(ms(5)));
    let urls = sink.urls();
    redis.push_all((0..1000).map(|i| envelope(&urls[i % 4], format!("message {i}").as_bytes())));
    let options = ["--lease", "3s", "--timeout", "5s", "--in-flight", "64", "--workers", "8"];
    for round in 1..=4 {
        let mut agent = Agent::start(&redis, &options);
        eventually("some more arrive", SOON, || sink.n_requests() >= 50 * round);
        agent.kill9();
        redis.check_invariant();
    }
    let _agent = Agent::start(&redis, &options);
    redis.wait_empty(SOON);
    assert_all_arrived(&sink, 1000, 5);
}

#[test]
fn frozen_for_longer_than_its_lease_it_loses_nothing_and_works_on() {
    let redis = Redis::start();
    let sink = Sink::origins(4, |_| Answer::ok().after(ms(30)));
    let urls = sink.urls();
    redis.push_all((0..600).map(|i| envelope(&urls[i % 4], format!("message {i}").as_bytes())));
    // A lane whose probe died with its agent is left alone for a whole attempt, so that is short.
    let options = ["--lease", "3s", "--timeout", "5s", "--retry-first", "500ms", "--in-flight", "128"];
    let mut frozen = Agent::start(&redis, &options);
    eventually("it is in the middle", SOON, || sink.n_requests() >= 50);
    frozen.freeze();
    let mut other = Agent::start(&redis, &options);
    eventually_eq("the other takes all over", ms(30_000), Counts::default(), || redis.counts());
    frozen.thaw();
    eventually("it registers again", SOON, || redis.agents().len() == 2);
    redis.wait_empty(SOON);
    assert_all_arrived(&sink, 600, 2);

    other.term();
    assert_eq!(other.wait_exit(SOON), Some(0));
    redis.push(&envelope(&sink.url(), b"afterwards"));
    redis.wait_empty(SOON);
    assert_eq!(sink.copies().get("afterwards"), Some(&1));
    assert!(frozen.is_running());
}

#[test]
fn an_agent_alone_that_was_frozen_goes_on() {
    let redis = Redis::start();
    let sink = Sink::new(|_| Answer::ok().after(ms(20)));
    redis.push_all(numbered(&sink.url(), 300));
    let mut agent = Agent::start(&redis, &["--lease", "3s", "--workers", "4"]);
    eventually("it is in the middle", SOON, || sink.n_requests() >= 20);
    agent.freeze();
    // The length of the freeze is what is tested: longer than the lease.
    thread::sleep(Duration::from_secs(5));
    agent.thaw();
    redis.wait_empty(ms(30_000));
    assert_all_arrived(&sink, 300, 2);
    assert!(agent.is_running());
}

#[test]
fn frozen_with_all_workers_busy_and_little_room_it_delivers_again() {
    // Proven endpoints whose windows together are wider than there is room, and every worker at one
    // that does not answer for as long as the agent is frozen, taken for dead, and back.
    let redis = Redis::start();
    let sink = Sink::origins(10, |_| Answer::ok().after(ms(20)));
    let urls = sink.urls();
    let push = |name: &str, n: usize| {
        redis.push_all((0..n).map(|i| envelope(&urls[i % 10], format!("{name} {i}").as_bytes())));
    };
    let options = ["--lease", "3s", "--timeout", "100s", "--workers", "8", "--in-flight", "64"];
    let mut frozen = Agent::start(&redis, &options);
    push("first", 2400);
    redis.wait_empty(SOON);
    let (held, answers) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let (n_held, may_answer) = (held.clone(), answers.clone());
    sink.behave(move |_| {
        n_held.fetch_add(1, Ordering::SeqCst);
        let deadline = Instant::now() + Duration::from_secs(90);
        while !may_answer.load(Ordering::SeqCst) && Instant::now() < deadline {
            thread::sleep(ms(5));
        }
        Answer::ok()
    });
    push("held", 400);
    eventually("every worker is at one that hangs", SOON, || held.load(Ordering::SeqCst) >= 8);
    frozen.freeze();
    let mut other = Agent::start(&redis, &["--lease", "3s", "--workers", "1", "--in-flight", "2"]);
    eventually_eq("the frozen one is taken for dead", SOON, 1, || redis.agents().len());
    let others = redis.agents();
    other.kill9();
    frozen.thaw();
    eventually("it takes all over", SOON, || redis.agents().len() == 1 && redis.agents() != others);
    answers.store(true, Ordering::SeqCst);
    redis.wait_empty(ms(40_000));
    assert!(frozen.is_running());
    let copies = sink.copies();
    let missing = (0..400).filter(|i| !copies.contains_key(&format!("held {i}"))).count();
    assert_eq!(missing, 0, "are lost");
}

/// An agent holds 190 messages of one slow endpoint, is out of the world for longer than its lease while
/// another delivers them, and is back. Returns how often each message arrived, in the order of arrival.
fn out_of_the_world_past_its_lease(options: &[&str], answered_after: Duration) -> Vec<String> {
    let redis = Redis::start();
    let sink = Sink::new(|_| Answer::ok());
    let options = [options, &["--lease", "3s", "--timeout", "60s"]].concat();
    let mut first = Agent::start(&redis, &options);
    redis.push(&envelope(&sink.url(), b"first"));
    redis.wait_empty(SOON);
    sink.behave(move |_| Answer::ok().after(answered_after));
    redis.push_all(numbered(&sink.url(), 200));
    eventually_eq("it holds all of them", SOON, 200, || redis.counts().inflight);
    let begun = sink.n_requests();
    first.freeze();
    sink.behave(|_| Answer::ok());
    let _other = Agent::start(&redis, &options);
    eventually("the other delivers all of them", SOON, || redis.counts().messages == 0);
    let n = sink.n_requests();
    first.thaw();
    eventually_eq("it registers again", SOON, 2, || redis.agents().len());
    redis.push(&envelope(&sink.url(), b"last"));
    redis.wait_empty(SOON);
    first.term();
    assert_eq!(first.wait_exit(SOON), Some(0));
    let arrived: Vec<String> = sink.requests().iter().map(|request| request.text()).collect();
    assert_eq!(arrived[n..], ["last"], "of {} that it held, {begun} of them begun", 200);
    arrived
}

#[test]
fn back_after_its_lease_it_sends_nothing_that_another_has_delivered() {
    // What is under way when it is frozen ends only when it is long back.
    out_of_the_world_past_its_lease(&["--workers", "8"], Duration::from_secs(20));
}

#[test]
fn in_order_back_after_its_lease_it_sends_nothing_old_behind_what_is_new() {
    // The one under way has been answered when it is back: so the next one could go out.
    let arrived = out_of_the_world_past_its_lease(&["--ordered"], Duration::from_secs(2));
    let mut numbers: Vec<usize> =
        arrived.iter().filter_map(|text| text.strip_prefix("message ")?.parse().ok()).collect();
    assert!(numbers.is_sorted(), "out of order: {numbers:?}");
    numbers.dedup();
    assert_eq!(numbers, (0..200).collect::<Vec<_>>());
}

#[test]
fn agents_of_different_leases_leave_each_other_alive() {
    let redis = Redis::start();
    let sink = Sink::new(|_| Answer::ok());
    // A few dozen of its beats without the other's changing, if only its own lease counted.
    let long = Agent::start(&redis, &["--lease", "60s"]);
    let short = Agent::start(&redis, &["--lease", "3s"]);
    let registered = redis.agents();
    redis.push(&envelope(&sink.url(), b"first"));
    redis.wait_empty(SOON);
    sink.behave(|_| Answer::ok().after(Duration::from_secs(12)));
    redis.push_all(numbered(&sink.url(), 4));
    redis.wait_empty(ms(60_000));
    assert_eq!(redis.agents(), registered);
    assert_all_arrived(&sink, 4, 1);
    for agent in [&long, &short] {
        assert_eq!(agent.complaints(), Vec::<String>::new());
    }
}
