//! A bad path is not its origin, and a redirect is no way round a lane: what strangers who choose
//! the path of an endpoint can do to the others of the same origin.

use std::collections::HashMap;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::wire::envelope;
use crate::support::{Agent, Answer, Redis, SOON, Sink, eventually, ms};

const LONG: Duration = Duration::from_secs(60);

/// A recipient that answers 200 at once on all paths but those that begin with `/bad`.
fn recipient(bad: Answer) -> Sink {
    Sink::new(move |request| if request.target.starts_with("/bad") { bad.clone() } else { Answer::ok() })
}

fn bad_answers() -> [(&'static str, Answer); 4] {
    [
        ("closes", Answer::Cut),
        ("hangs", Answer::Hang),
        ("503", Answer::status(503)),
        ("429", Answer::status(429).header("Retry-After", "3600")),
    ]
}

/// Twenty deliveries prove the lane; then bad messages, and good ones every 200 ms. Returns how late the good
/// ones were, the latest last; one that did not come in time is as late as it was waited for.
fn good_beside_bad(what: &str, bad: &Answer, n_bad_first: usize, bad_between: bool) -> Vec<Duration> {
    const N: usize = 40;
    let (redis, sink) = (Redis::start(), recipient(bad.clone()));
    let _agent = Agent::start(&redis, &["--timeout", "5s"]);
    for n in 0..20 {
        redis.push(&envelope(&format!("{}/good", sink.url()), format!("proof {n}").as_bytes()));
    }
    eventually("the lane is proven", SOON, || sink.n_delivered() == 20);
    for n in 0..n_bad_first {
        redis.push(&envelope(&format!("{}/bad/{n}", sink.url()), b"bad"));
    }
    let mut pushed = Vec::new();
    for n in 0..N {
        if bad_between {
            redis.push(&envelope(&format!("{}/bad/between/{n}", sink.url()), b"bad"));
        }
        pushed.push(Instant::now());
        redis.push(&envelope(&format!("{}/good/{n}", sink.url()), format!("good {n}").as_bytes()));
        thread::sleep(ms(200));
    }
    let mut late: Vec<Duration> = Vec::new();
    let arrived = || -> HashMap<String, Instant> {
        sink.requests().iter().filter(|r| r.status == Some(200)).map(|r| (r.text(), r.at)).collect()
    };
    let until = Instant::now() + Duration::from_secs(10);
    while arrived().len() < 20 + N && Instant::now() < until {
        thread::sleep(ms(50));
    }
    let arrived = arrived();
    for (n, pushed) in pushed.iter().enumerate() {
        let at = arrived.get(&format!("good {n}")).copied().unwrap_or_else(Instant::now);
        late.push(at.saturating_duration_since(*pushed));
    }
    late.sort();
    redis.check_invariant();
    println!("{what}: p50 {:?}, p90 {:?}, latest {:?}", late[N / 2], late[N * 9 / 10], late[N - 1]);
    late
}

/// All kinds at once, each with a Redis, a recipient and an agent of its own.
fn check_good_beside_bad(n_bad_first: usize, bad_between: bool) {
    thread::scope(|scope| {
        for (what, bad) in bad_answers() {
            scope.spawn(move || {
                let late = good_beside_bad(what, &bad, n_bad_first, bad_between);
                let in_time = late.iter().filter(|late| **late < Duration::from_secs(10)).count();
                assert!(in_time + 1 >= late.len(), "{what}: {in_time} of {} within 10 s", late.len());
            });
        }
    });
}

#[test]
fn one_message_to_a_bad_path_does_not_hold_up_the_good_ones_of_its_origin() {
    check_good_beside_bad(1, false);
}

#[test]
fn ten_bad_paths_do_not_hold_up_the_good_ones_of_their_origin() {
    check_good_beside_bad(10, false);
}

#[test]
fn a_new_bad_path_in_every_second_message_does_not_hold_up_the_good_ones() {
    check_good_beside_bad(0, true);
}

#[test]
fn what_never_failed_itself_does_not_die_of_age_and_what_did_does() {
    let redis = Redis::start();
    let mut sink = Sink::new(|_| Answer::ok());
    sink.stop();
    let options = ["--retry-first", "300ms", "--retry-max", "1s", "--give-up-after", "4s"];
    let agent = Agent::start(&redis, &options);
    redis.push(&envelope(&sink.url(), b"first"));
    agent.wait_log("is down");
    // These wait behind it for longer than messages live.
    let n = 12;
    for i in 0..n {
        redis.push(&envelope(&sink.url(), format!("behind {i}").as_bytes()));
    }
    eventually("each has been attempted, and ended", LONG, || redis.counts().dead == n + 1);
    for letter in redis.dead() {
        let attempts: u32 = letter.history.split(' ').next().unwrap().parse().unwrap();
        assert!(attempts >= 1, "died unattempted: {}", letter.history);
        assert!(letter.history.contains("gave up after 4s: "), "{}", letter.history);
    }
    redis.check_invariant();
}

#[test]
fn a_message_with_a_failure_of_its_own_ends_by_its_age_while_its_endpoint_is_down() {
    let redis = Redis::start();
    let mut sink = Sink::new(|request| match request.target.as_str() {
        "/bad" => Answer::status(500),
        _ => Answer::ok(),
    });
    let options = ["--retry-first", "500ms", "--retry-max", "30s", "--give-up-after", "5s"];
    let _agent = Agent::start(&redis, &options);
    redis.push(&envelope(&format!("{}/bad", sink.url()), b"bad"));
    eventually("it has failed by itself", SOON, || redis.counts().retry == 1);
    let begun = Instant::now();
    sink.stop();
    redis.push(&envelope(&sink.url(), b"another"));
    eventually("it is dead", LONG, || {
        redis.dead().iter().any(|letter| letter.history.contains("gave up after 5s: 500"))
    });
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
}

#[test]
fn redirects_go_neither_round_the_limit_of_an_endpoint_nor_round_its_being_down() {
    let redis = Redis::start();
    let victim = Sink::new(|_| Answer::status(503));
    let target = format!("{}/victim", victim.url());
    let redirecting = {
        let target = target.clone();
        Sink::origins(32, move |_| Answer::status(307).header("Location", &target))
    };
    let agent = Agent::start(&redis, &["--retry-first", "2s"]);
    redis.push(&envelope(&victim.url(), b"its own"));
    agent.wait_log("is down");
    let before = victim.n_requests();
    for url in redirecting.urls() {
        redis.push(&envelope(&url, b"x"));
    }
    eventually("all were redirected", SOON, || redirecting.n_requests() >= 32);
    eventually("all are put off", SOON, || redis.counts().retry >= 32);
    assert!(victim.n_requests() <= before + 2, "{} requests to one that is down", victim.n_requests() - before);
    // The blame is the victim's: nobody else is down.
    let log = agent.log();
    let downs: Vec<&str> = log.lines().filter(|line| line.contains("is down")).collect();
    assert!(downs.len() <= 1 || downs.iter().all(|line| line.contains(&victim.url())), "{downs:?}");
    victim.behave(|_| Answer::ok());
    redis.wait_empty(LONG);
    assert_eq!(victim.copies().values().sum::<usize>(), 33);
}
