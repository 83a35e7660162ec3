//! Who has the workers: slow endpoints, many that failed, many that are new, and what agents died of.
//! Figures for these come from `scripts/lane-figures`; here are smaller ones with wide bounds.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::wire::{envelope, numbered};
use crate::support::{Agent, Answer, Redis, SOON, Sink, eventually, ms};

const LONG: Duration = Duration::from_secs(60);

#[test]
fn slow_endpoints_do_not_take_every_worker_from_a_fast_one() {
    let redis = Redis::start();
    let is_slow = Arc::new(AtomicBool::new(false));
    let slow = {
        let is_slow = is_slow.clone();
        Sink::origins(
            16,
            move |_| if is_slow.load(Ordering::SeqCst) { Answer::ok().after(ms(15_000)) } else { Answer::ok() },
        )
    };
    let fast = Sink::new(|_| Answer::ok());
    let _agent = Agent::start(&redis, &["--workers", "16"]);
    redis.push_all(numbered(&fast.url(), 20));
    for url in slow.urls() {
        redis.push(&envelope(&url, b"fast so far"));
    }
    eventually("all are proven", SOON, || fast.n_delivered() == 20 && slow.n_delivered() == 16);
    is_slow.store(true, Ordering::SeqCst);
    for url in slow.urls() {
        redis.push(&envelope(&url, b"slow"));
    }
    eventually("as many as may be are under way", SOON, || slow.n_requests() >= 16 + 8);
    let begun = Instant::now();
    redis.push_all((0..40).map(|n| envelope(&fast.url(), format!("beside {n}").as_bytes())));
    eventually("the fast one has all", SOON, || fast.n_delivered() == 60);
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    assert_eq!(slow.n_requests(), 16 + 8, "half of the workers");
}

#[test]
fn an_endpoint_that_is_well_again_is_tried_though_proven_ones_keep_all_workers_busy() {
    let redis = Redis::start();
    let busy = Sink::origins(5, |_| Answer::ok().after(ms(300)));
    let failed_once = AtomicBool::new(false);
    let well =
        Sink::new(move |_| if failed_once.swap(true, Ordering::SeqCst) { Answer::ok() } else { Answer::status(503) });
    let _agent = Agent::start(&redis, &["--workers", "8", "--in-flight", "64", "--retry-first", "2s"]);
    redis.push(&envelope(&well.url(), b"x"));
    eventually("it has failed", SOON, || well.n_requests() == 1);
    let failed = Instant::now();
    let urls = busy.urls();
    redis.push_all((0..3000).map(|n| envelope(&urls[n % 5], format!("{n}").as_bytes())));
    eventually("it is tried again", LONG, || well.n_requests() == 2);
    assert!(failed.elapsed() < Duration::from_secs(8), "tried after {:?}", failed.elapsed());
    assert!(busy.n_delivered() < 2900, "they were busy all the while");
}

#[test]
fn an_endpoint_that_is_well_again_is_tried_though_black_holes_arrive() {
    let redis = Redis::start();
    let holes = Sink::origins(150, |_| Answer::Hang);
    let failed_once = AtomicBool::new(false);
    let well =
        Sink::new(move |_| if failed_once.swap(true, Ordering::SeqCst) { Answer::ok() } else { Answer::status(503) });
    let options = ["--workers", "16", "--timeout", "5s", "--connect-timeout", "1s", "--retry-first", "2s"];
    let _agent = Agent::start(&redis, &options);
    for url in &holes.urls()[..100] {
        redis.push(&envelope(url, b"never"));
    }
    redis.push(&envelope(&well.url(), b"x"));
    eventually("it has failed", LONG, || well.n_requests() == 1);
    let failed = Instant::now();
    for url in &holes.urls()[100..] {
        redis.push(&envelope(url, b"never"));
        thread::sleep(ms(20));
    }
    eventually("it is tried again", LONG, || well.n_requests() == 2);
    // Twice its backoff, and what a busy machine needs.
    assert!(failed.elapsed() < Duration::from_secs(8), "tried after {:?}", failed.elapsed());
}

#[test]
fn many_endpoints_that_were_down_together_are_all_served_soon_after_they_are_due() {
    let redis = Redis::start();
    let mut sink = Sink::origins(400, |_| Answer::ok());
    sink.stop();
    let options = ["--workers", "16", "--retry-first", "2s"];
    let _agent = Agent::start(&redis, &options);
    for url in sink.urls() {
        redis.push(&envelope(&url, b"x"));
    }
    eventually("all have failed", LONG, || redis.counts().waiting == 400);
    sink.start();
    let begun = Instant::now();
    eventually("all are served", LONG, || sink.n_delivered() == 400);
    // At four a second, as many as may be probed at once, it would take 100 s.
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
}

#[test]
fn after_two_deaths_what_was_in_flight_and_never_attempted_is_out_soon_though_one_recipient_hangs() {
    let redis = Redis::start();
    let hang = Arc::new(AtomicBool::new(true));
    let sink = {
        let hang = hang.clone();
        // At first all are slow, so that both agents die with as much in flight as there is; then one of ten hangs.
        Sink::origins(10, move |request| match request.origin.ip().to_string() {
            _ if hang.load(Ordering::SeqCst) => Answer::Hang,
            _ if request.text() == "hangs" => Answer::Hang,
            _ => Answer::ok().after(ms(20)),
        })
    };
    let urls = sink.urls();
    for n in 0..1000 {
        let body = if n % 10 == 9 { "hangs".to_string() } else { format!("good {n}") };
        redis.push(&envelope(&urls[n % 10], body.as_bytes()));
    }
    for _ in 0..2 {
        let mut agent = Agent::start(&redis, &["--lease", "3s", "--timeout", "30s"]);
        eventually("it has what it can hold", SOON, || redis.counts().inflight >= 900);
        agent.kill9();
    }
    hang.store(false, Ordering::SeqCst);
    let _agent = Agent::start(&redis, &["--lease", "3s", "--timeout", "30s"]);
    let arrived = || sink.delivered().iter().filter(|body| body.starts_with("good")).count();
    eventually("all that can be delivered is", LONG, || arrived() == 900);
    redis.check_invariant();
}
