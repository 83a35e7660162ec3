//! One bad endpoint delays nobody else: what the lanes come to, seen from outside. Their rules
//! one by one, in simulated time, are tested beside them; figures come from `scripts/lane-figures`.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::support::wire::{envelope, numbered};
use crate::support::{Agent, Answer, Redis, SOON, Sink, eventually, ms};

const LONG: Duration = Duration::from_secs(60);

#[test]
fn endpoints_that_never_answer_delay_nobody_else_and_get_no_more_than_their_schedule() {
    let redis = Redis::start();
    let hanging = Sink::origins(40, |_| Answer::Hang);
    let healthy = Sink::new(|_| Answer::ok());
    for i in 0..1000 {
        redis.push(&envelope(&hanging.urls()[i % 40], b"x"));
    }
    redis.push_all(numbered(&healthy.url(), 2000));
    let _agent = Agent::start(&redis, &[]);
    eventually("the healthy one has all", SOON, || healthy.n_delivered() == 2000);
    // Within the 30 s of a timeout each had one attempt at most.
    assert!(hanging.n_requests() <= 40, "{} attempts", hanging.n_requests());
    redis.check_invariant();
}

#[test]
fn a_dead_endpoint_gets_the_attempts_of_its_backoff_however_many_wait_for_it() {
    let redis = Redis::start();
    let mut dead = Sink::new(|_| Answer::ok());
    dead.stop();
    let url = dead.url();
    redis.push_all(numbered(&url, 3000));
    let begun = Instant::now();
    let agent = Agent::spawn({
        let mut command = Agent::command();
        let redis_url = redis.url();
        command.args(["-oq", &redis_url, "--retry-first", "1s"]).env("RUST_LOG", "debug");
        command
    });
    eventually("all wait", SOON, || redis.counts().waiting == 3000);
    let attempts = || agent.log().lines().filter(|line| line.contains(": later: ")).count();
    eventually("it has been tried again, and again", LONG, || attempts() >= 3);
    // Begun at 0, 1, 3, 7, 15, 31 s, each a fifth sooner or later.
    let schedule = (begun.elapsed().as_secs_f64() / 0.8 + 1.0).log2().floor() as usize + 1;
    assert!(attempts() <= schedule, "{} attempts in {:?}", attempts(), begun.elapsed());
    let downs = agent.log().lines().filter(|line| line.contains("is down")).count();
    assert_eq!(downs, 1, "said once");
    redis.check_invariant();
    dead.start();
    redis.wait_empty(LONG);
    agent.wait_log("is back");
    assert_eq!(dead.copies().len(), 3000);
    assert_eq!(dead.copies().values().sum::<usize>(), 3000, "none came twice");
}

#[test]
fn when_an_endpoint_is_back_all_that_waited_goes_out_as_fast_as_it_answers_and_oldest_first() {
    let redis = Redis::start();
    let mut sink = Sink::new(|_| Answer::ok().after(ms(5)));
    sink.stop();
    redis.push_all(numbered(&sink.url(), 1500));
    let _agent = Agent::start(&redis, &["--retry-first", "300ms", "--retry-max", "300ms"]);
    eventually("all wait", SOON, || redis.counts().waiting >= 1499);
    sink.start();
    redis.wait_empty(LONG);
    let order: Vec<usize> =
        sink.delivered().iter().map(|body| body.trim_start_matches("message ").parse().unwrap()).collect();
    // Up to eight at once: a message is never more than a few places from its own, a thread
    // that does not get its turn for some milliseconds included. But for the probe: in every second try it is the newest.
    let (at, number) = order.iter().enumerate().skip(1).max_by_key(|(at, number)| at.abs_diff(**number)).unwrap();
    let around = &order[at.saturating_sub(20)..order.len().min(at + 5)];
    assert!(at.abs_diff(*number) <= 60, "{number} came at {at}: {around:?}");
    let first = sink.requests().first().unwrap().at;
    let took = sink.requests().last().unwrap().at - first;
    assert!(took < Duration::from_secs(20), "{took:?}");
}

#[test]
fn an_endpoint_that_takes_four_at_a_time_is_not_closed_for_saying_so() {
    let redis = Redis::start();
    let busy = Arc::new(AtomicUsize::new(0));
    let sink = {
        let busy = busy.clone();
        Sink::new(move |_| {
            if busy.fetch_add(1, Ordering::SeqCst) >= 4 {
                busy.fetch_sub(1, Ordering::SeqCst);
                return Answer::status(503);
            }
            std::thread::sleep(ms(20));
            busy.fetch_sub(1, Ordering::SeqCst);
            Answer::ok()
        })
    };
    redis.push_all(numbered(&sink.url(), 600));
    let agent = Agent::start(&redis, &[]);
    redis.wait_empty(LONG);
    assert!(!agent.log().contains("is down"), "{}", agent.log());
}

#[test]
fn one_message_in_ten_that_the_endpoint_cannot_take_does_not_close_it() {
    let redis = Redis::start();
    let sink = Sink::new(|request| if request.text().ends_with('7') { Answer::status(500) } else { Answer::ok() });
    redis.push_all(numbered(&sink.url(), 1000));
    let agent = Agent::start(&redis, &[]);
    eventually("the good ones are delivered", SOON, || sink.n_delivered() == 900);
    eventually("the bad ones are put off, each by itself", SOON, || redis.counts().retry == 100);
    assert!(!agent.log().contains("is down"));
    redis.check_invariant();
}

#[test]
fn two_workers_and_eight_in_flight_starve_nobody() {
    let redis = Redis::start();
    let sink = Sink::origins(20, |_| Answer::ok());
    let mut dead = Sink::origins(10, |_| Answer::ok());
    dead.stop();
    for i in 0..400 {
        redis.push(&envelope(&sink.urls()[i % 20], format!("{i}").as_bytes()));
        redis.push(&envelope(&dead.urls()[i % 10], b"never"));
    }
    let _agent = Agent::start(&redis, &["--workers", "2", "--in-flight", "8"]);
    eventually("the healthy ones have all", LONG, || sink.n_delivered() == 400);
    eventually("the rest waits", LONG, || redis.counts().waiting >= 399);
    redis.check_invariant();
}

#[test]
fn a_message_in_flight_in_five_agents_that_died_is_dead_and_those_beside_it_are_not() {
    let redis = Redis::start();
    let poison = Arc::new(Mutex::new(false));
    let sink = {
        let poison = poison.clone();
        Sink::new(move |request| {
            if request.text() == "poison" {
                *poison.lock().unwrap() = true;
                return Answer::Hang;
            }
            // They are in flight with it at first, and then again.
            Answer::ok().after(ms(300))
        })
    };
    redis.push(&envelope(&sink.url(), b"poison"));
    redis.push_all(numbered(&sink.url(), 12));
    for _ in 0..5 {
        *poison.lock().unwrap() = false;
        // A lane whose prober died is left alone for an attempt at most, if the message does not come back sooner.
        let mut agent = Agent::start(&redis, &["--lease", "3s", "--workers", "4", "--timeout", "20s"]);
        eventually("it kills the agent", LONG, || *poison.lock().unwrap());
        agent.kill9();
    }
    let agent = Agent::start(&redis, &["--lease", "3s", "--workers", "4"]);
    eventually("it is dead", LONG, || redis.counts().dead == 1);
    redis.wait_empty_but_dead(LONG);
    assert!(redis.dead()[0].history.contains("in flight in 5 agents that died"), "{:?}", redis.dead());
    assert_eq!(sink.copies().len(), 12, "the innocent arrived");
    drop(agent);
}

#[test]
fn four_agents_make_as_many_attempts_at_a_dead_endpoint_as_one() {
    let redis = Redis::start();
    let sink = Sink::new(|_| Answer::status(503));
    redis.push_all(numbered(&sink.url(), 50));
    let mut agents: Vec<Agent> = vec![Agent::start(&redis, &["--retry-first", "500ms", "--lease", "3s"])];
    // The one that has failed is on a backoff of its own, so that others are tried as well.
    eventually("it is known to be down", SOON, || redis.counts().waiting == 49 && redis.counts().retry == 1);
    for _ in 0..3 {
        agents.push(Agent::start(&redis, &["--retry-first", "500ms", "--lease", "3s"]));
    }
    let begun = Instant::now();
    let mut pushed = 0;
    while begun.elapsed() < ms(8000) {
        redis.push(&envelope(&sink.url(), b"one more"));
        pushed += 1;
        std::thread::sleep(ms(100));
    }
    // One agent alone makes them at 0, 0.5, 1.5, 3.5, 7.5 s.
    let attempts = sink.n_requests();
    assert!((4..=8).contains(&attempts), "{attempts} attempts by four agents, with {} messages", 50 + pushed);
    redis.check_invariant();
}
