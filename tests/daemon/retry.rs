//! What is attempted again, when, and when no more. The options make the schedule short.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::support::wire::{envelope, numbered};
use crate::support::{Agent, Answer, Held, Redis, Request, SOON, Sink, eventually, eventually_eq, ms, run_to_end};

/// A sink that answers the first request with each body as `first` says, and later ones with 200.
fn sink_that_first(first: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Sink {
    let seen = Mutex::new(BTreeMap::<Vec<u8>, usize>::new());
    Sink::new(move |request| {
        let mut seen = seen.lock().unwrap();
        let n = seen.entry(request.body.clone()).or_default();
        *n += 1;
        if *n == 1 { first(request) } else { Answer::ok() }
    })
}

#[test]
fn refused_connection_is_retried_later() {
    let redis = Redis::start();
    let mut sink = Sink::new(|_| Answer::ok());
    sink.stop();
    redis.push_all(numbered(&sink.url(), 3));
    let _agent = Agent::start(&redis, &["--retry-first", "300ms"]);
    eventually("all are put off", SOON, || redis.put_off().len() == 3);
    let put_off = redis.put_off();
    let refused = |held: &Held| held.history.to_lowercase().contains("refused");
    assert!(put_off.iter().any(refused), "no error that tells of it: {put_off:?}");
    sink.start();
    redis.wait_empty(SOON);
    assert_eq!(sink.copies().values().sum::<usize>(), 3);
    assert_eq!(sink.copies().len(), 3);
}

#[test]
fn temporary_statuses_are_attempted_again_until_delivered() {
    let redis = Redis::start();
    let sink = sink_that_first(|request| Answer::status(request.text().parse().unwrap()));
    let statuses = ["500", "502", "503", "504", "429", "408", "425", "404", "401", "507"];
    redis.push_all(statuses.map(|status| envelope(&sink.url(), status.as_bytes())));
    let _agent = Agent::start(&redis, &["--retry-first", "100ms", "--retry-max", "1s"]);
    redis.wait_empty(SOON);
    let mut delivered = sink.delivered();
    delivered.sort();
    let mut expected = statuses.map(str::to_string);
    expected.sort();
    assert_eq!(delivered, expected);
    assert!(sink.n_requests() >= 20);
}

#[test]
fn cut_connections_are_attempted_again() {
    let redis = Redis::start();
    let sink = sink_that_first(|request| match request.text().as_str() {
        "message 0" => Answer::Cut,
        _ => Answer::BreakOff,
    });
    sink.cut_on_accept(true);
    redis.push_all(numbered(&sink.url(), 2));
    let _agent = Agent::start(&redis, &["--retry-first", "100ms", "--retry-max", "1s"]);
    eventually("both are put off", SOON, || redis.put_off().len() == 2);
    sink.cut_on_accept(false);
    redis.wait_empty(SOON);
    assert_eq!(sink.copies().values().collect::<Vec<_>>(), [&1, &1]);
    assert_eq!(sink.n_requests(), 4);
}

#[test]
fn a_recipient_that_never_answers_costs_one_timeout() {
    let redis = Redis::start();
    let sink = sink_that_first(|_| Answer::Hang);
    redis.push_all(numbered(&sink.url(), 2));
    let options = ["--connect-timeout", "300ms", "--timeout", "400ms", "--retry-first", "100ms"];
    let _agent = Agent::start(&redis, &options);
    redis.wait_empty(SOON);
    assert_eq!(sink.copies().values().collect::<Vec<_>>(), [&1, &1]);
}

#[test]
fn retry_after_is_respected() {
    for status in [429, 503, 500] {
        let redis = Redis::start();
        let sink = sink_that_first(move |_| Answer::status(status).header("Retry-After", "2"));
        redis.push(&envelope(&sink.url(), b"x"));
        let _agent = Agent::start(&redis, &["--retry-first", "100ms", "--retry-max", "10m"]);
        redis.wait_empty(SOON);
        let gap = gaps(&sink)[0];
        assert!(gap >= ms(1950), "after {status} with Retry-After 2 s: again after {gap:?}");
    }
}

#[test]
fn the_backoff_grows() {
    let redis = Redis::start();
    let sink = Sink::new(|_| Answer::status(500));
    redis.push(&envelope(&sink.url(), b"x"));
    let _agent = Agent::start(&redis, &["--retry-first", "200ms"]);
    eventually("five attempts", SOON, || sink.n_requests() >= 5);
    let gaps = gaps(&sink);
    // 200, 400, 800, 1600 ms, each a fifth more or less.
    assert!(gaps[0] >= ms(150), "{gaps:?}");
    assert!(gaps[3] >= ms(1200), "{gaps:?}");
}

#[test]
fn the_backoff_of_an_endpoint_grows_no_further_than_retry_max() {
    let redis = Redis::start();
    let sink = Sink::new(|_| Answer::status(503));
    redis.push(&envelope(&sink.url(), b"x"));
    let _agent = Agent::start(&redis, &["--retry-first", "100ms", "--retry-max", "200ms"]);
    let started = Instant::now();
    // Doubling from 100 ms, the twelfth would come after more than three minutes.
    eventually("twelve attempts", SOON, || sink.n_requests() >= 12);
    assert!(started.elapsed() >= ms(1000), "twelve attempts in {:?}", started.elapsed());
}

#[test]
fn attempts_are_counted_over_a_restart() {
    let redis = Redis::start();
    let sink = Sink::new(|_| Answer::status(500));
    redis.push(&envelope(&sink.url(), b"x"));
    let options = ["--retry-first", "200ms"];
    let mut agent = Agent::start(&redis, &options);
    eventually("three attempts", SOON, || sink.n_requests() >= 3);
    eventually("settled", SOON, || redis.put_off().len() == 1);
    agent.term();
    assert_eq!(agent.wait_exit(SOON), Some(0));
    let _agent = Agent::start(&redis, &options);
    eventually("five attempts", SOON, || sink.n_requests() >= 5);
    // The one after the fourth attempt is 1600 ms, where a new count would begin at 200.
    assert!(gaps(&sink)[3] >= ms(1200), "{:?}", gaps(&sink));
}

#[test]
fn healthy_recipients_are_served_while_others_fail() {
    let redis = Redis::start();
    let hanging = Sink::new(|_| Answer::Hang);
    let failing = Sink::new(|_| Answer::status(503));
    let mut refusing = Sink::new(|_| Answer::ok());
    refusing.stop();
    let healthy = Sink::new(|_| Answer::ok());
    for i in 0..50 {
        for sink in [&hanging, &failing, &refusing, &healthy] {
            redis.push(&envelope(&sink.url(), format!("message {i}").as_bytes()));
        }
    }
    let _agent = Agent::start(&redis, &["--timeout", "20s"]);
    eventually_eq("the healthy one has all", Duration::from_secs(15), 50, || healthy.n_delivered());
    assert_eq!(healthy.copies().len(), 50);
    redis.check_invariant();
}

#[test]
fn no_more_attempts_are_made_than_were_asked_for_and_others_count_among_them() {
    let redis = Redis::start();
    let sink = Sink::new(|_| Answer::status(500).after(ms(20)));
    let hanging = Sink::new(|_| Answer::Cut);
    redis.push(&envelope(&format!("{}/new", sink.url()), b"x"));
    // Put back by the plugin's deliverer after its second attempt.
    let back =
        format!(r#"{{"service": {{"url": "{}/back"}}, "headers": {{}}, "payload": "eA==", "retries": 2}}"#, sink.url());
    redis.push(back.as_bytes());
    redis.push(&envelope(&format!("{}/cut", hanging.url()), b"x"));
    let options = ["--attempts", "3", "--retry-first", "50ms", "--retry-max", "100ms"];
    let mut agent = Agent::start(&redis, &options[..]);
    eventually_eq("all are dead", SOON, 3, || redis.counts().dead);
    let n = |target: &str| sink.requests().iter().filter(|request| request.target == target).count();
    assert_eq!((n("/new"), n("/back"), hanging.n_requests()), (3, 1, 3));
    for letter in redis.dead() {
        assert!(letter.history.contains("gave up after 3 attempts: "), "{}", letter.history);
    }
    assert_eq!(redis.dead().iter().filter(|letter| letter.history.contains("500 Internal Server Error")).count(), 2);

    // Who is replayed begins anew.
    agent.term();
    assert_eq!(agent.wait_exit(SOON), Some(0));
    let output = run_to_end(&["dead", "replay", "--all", "--reason", "500", "-oq", &redis.url()]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let _agent = Agent::start(&redis, &options);
    eventually_eq("they are dead again", SOON, 3, || redis.counts().dead);
    // Whatever the other service has written into the message itself.
    assert_eq!((n("/new"), n("/back")), (6, 4));
}

/// The times between the requests of a sink.
fn gaps(sink: &Sink) -> Vec<Duration> {
    let requests = sink.requests();
    requests.windows(2).map(|pair| pair[1].at - pair[0].at).collect()
}

#[test]
fn a_count_of_attempts_ends_at_the_largest_number_and_does_not_begin_again() {
    let redis = Redis::start();
    let sink = Sink::new(|_| Answer::status(500));
    // One key more than ACA-Py's three, as another program left it.
    let mut bytes = envelope(&sink.url(), b"x");
    bytes[0] = 0x84;
    bytes.extend(b"\xa7retries\xce\xff\xff\xff\xff");
    redis.push(&bytes);
    let mut agent = Agent::start(&redis, &["--retry-first", "100ms"]);
    eventually("it is attempted again", SOON, || sink.n_requests() >= 2);
    eventually("that is recorded", SOON, || redis.put_off().iter().any(|held| held.history.starts_with("4294967295 ")));
    assert!(agent.is_running());
}
