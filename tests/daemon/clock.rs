//! A Redis whose clock is set forwards or back; and what takes long while the lease must be renewed.

use std::collections::BTreeSet;

use crate::support::wire::{envelope, numbered};
use crate::support::{Agent, Answer, Redis, SOON, Sink, eventually, eventually_eq, ms, run_to_end};

#[test]
fn after_a_step_back_of_redis_nothing_waits_for_as_long_as_the_step() {
    step_back("+3d");
}

#[test]
fn after_a_step_back_that_is_no_longer_than_a_delay_may_be_nothing_waits_either() {
    step_back("+20m");
}

fn step_back(ahead: &str) {
    let mut redis = Redis::with_clock(ahead);
    let mut sink = Sink::new(|_| Answer::ok());
    sink.stop();
    let options = ["--lease", "3s", "--retry-first", "1s"];
    let agent = Agent::start(&redis, &options);
    redis.push_all(numbered(&sink.url(), 5));
    eventually_eq("all wait for the endpoint", SOON, 5, || redis.counts().waiting);
    // One on a backoff of its own as well.
    let fussy = Sink::new(|_| Answer::status(500));
    redis.push(&envelope(&fussy.url(), b"own"));
    eventually_eq("one is on the retry schedule", SOON, 1, || redis.counts().retry);

    sink.start();
    fussy.behave(|_| Answer::ok());
    redis.set_clock("+0");
    redis.push(&envelope(&sink.url(), b"new"));
    redis.wait_empty(ms(30_000));
    assert_eq!((sink.n_delivered(), fussy.n_delivered()), (6, 1));
    agent.wait_log("was set back by");
    agent.wait_log("they are due now");
}

#[test]
fn an_agent_that_starts_after_a_step_back_lets_nothing_wait_for_it_either() {
    let mut redis = Redis::with_clock("+20m");
    let sink = Sink::new(|_| Answer::status(500));
    let options = ["--lease", "3s", "--retry-first", "2s"];
    let mut agent = Agent::start(&redis, &options);
    redis.push(&envelope(&sink.url(), b"own"));
    eventually_eq("it is on the retry schedule", SOON, 1, || redis.counts().retry);
    agent.term();
    assert_eq!(agent.wait_exit(SOON), Some(0));
    sink.behave(|_| Answer::ok());
    redis.set_clock("+0");
    let agent = Agent::start(&redis, &options);
    redis.wait_empty(ms(30_000));
    agent.wait_log("was set back by");
    assert_eq!(sink.n_delivered(), 1);
}

#[test]
fn check_says_that_something_is_due_absurdly_late() {
    let redis = Redis::start();
    let say = || {
        let output = run_to_end(&["check", "-oq", &redis.url()]);
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    redis.push(&envelope("http://127.0.0.1:1/", b"x"));
    let mut agent = Agent::start(&redis, &[]);
    eventually_eq("it waits", SOON, 1, || redis.counts().waiting);
    agent.kill9();
    assert!(!say().1.contains("later than"), "{}", say().1);
    let origin = "http://127.0.0.1:1";
    let late = 1000 * (std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() + 30 * 86_400);
    redis::cmd("ZADD").arg(redis.key("lanes")).arg(late).arg(origin).exec(&mut redis.client()).unwrap();
    let (code, said) = say();
    assert!(said.lines().any(|line| line.starts_with("mend") && line.contains("later than")), "{said}");
    assert_ne!(code, Some(0));
}

#[test]
fn a_clock_that_was_ahead_for_a_moment_buries_and_removes_nothing() {
    let mut redis = Redis::with_clock("+0");
    let sink = Sink::new(|request| match request.text() {
        text if text.starts_with("dies") => Answer::status(410),
        text if text.starts_with("own") => Answer::status(500),
        _ => Answer::status(503),
    });
    let options =
        ["--lease", "3s", "--retry-first", "1s", "--retry-max", "2s", "--keep-dead", "168h", "--workers", "8"];
    let agent = Agent::start(&redis, &options);
    redis.push_all((0..3).map(|i| envelope(&sink.url(), format!("dies {i}").as_bytes())));
    eventually_eq("three are dead", SOON, 3, || redis.counts().dead);
    redis.push_all((0..3).map(|i| envelope(&sink.url(), format!("own {i}").as_bytes())));
    eventually_eq("three are on the retry schedule", SOON, 3, || redis.counts().retry + redis.counts().waiting);
    redis.push_all(numbered(&sink.url(), 5));
    eventually_eq("all others wait for the endpoint", SOON, 8, || redis.counts().retry + redis.counts().waiting);

    redis.set_clock("+8d");
    let before = sink.n_requests();
    agent.wait_log("was set forwards by 19");
    // Some are attempted again, and fail again, while the clock is ahead; dead letters are looked for once a
    // minute, and at every start.
    eventually("some fail again", ms(40_000), || sink.n_requests() >= before + 5);
    let other = Agent::start(&redis, &options);
    other.wait_log("ahead of this machine's");
    redis.set_clock("+0");
    agent.wait_log("was set back by 19");
    let counts = redis.counts();
    assert_eq!((counts.dead, counts.messages), (3, 11), "{:?}", redis.dead());
    sink.behave(|_| Answer::ok());
    redis.wait_empty_but_dead(ms(40_000));
    assert_eq!(redis.counts().dead, 3, "{:?}", redis.dead());
}

#[test]
fn a_redis_that_lost_its_data_and_is_behind_gives_out_no_number_that_an_agent_has_seen() {
    let mut redis = Redis::with_clock("+0");
    let sink = Sink::new(|_| Answer::ok().after(ms(3000)));
    let _agent = Agent::start(&redis, &["--lease", "3s"]);
    redis.push_all(numbered(&sink.url(), 1));
    eventually_eq("one is being attempted", SOON, 1, || sink.n_requests());
    let ids: Vec<u64> =
        redis::cmd("ZRANGE").arg(redis.key("inflight")).arg(0).arg(-1).query(&mut redis.client()).unwrap();
    // As a replica that had none of it and whose clock is behind, when it becomes the master.
    redis.set_clock("-90s");
    redis::cmd("FLUSHALL").exec(&mut redis.client()).unwrap();
    eventually_eq("the agent joins again", SOON, 1, || redis.agents().len());
    assert!(redis.agents()[0].parse::<u64>().unwrap() > ids[0], "{:?} after {ids:?}", redis.agents());
    sink.behave(|_| Answer::Hang);
    redis.push(&envelope(&sink.url(), b"new"));
    let given = || -> Vec<u64> {
        redis::cmd("ZRANGE").arg(redis.key("inflight")).arg(0).arg(-1).query(&mut redis.client()).unwrap()
    };
    eventually("the new one is claimed", SOON, || given().iter().any(|id| !ids.contains(id)));
    assert!(given().iter().all(|id| *id >= ids[0]), "{:?} after {ids:?}", given());
}

#[test]
fn removing_a_great_many_dead_letters_costs_no_beat_and_holds_up_no_settlement() {
    let redis = Redis::with(&["appendonly no"]);
    let sink = Sink::new(|_| Answer::ok());
    let other = Agent::start(&redis, &["--lease", "3s"]);
    many_dead(&redis);
    let agent = Agent::start(&redis, &["--lease", "3s", "--keep-dead", "168h"]);
    let registered = || redis.agents().into_iter().collect::<BTreeSet<_>>();
    let before = registered();
    eventually("it begins to remove them", SOON, || redis.counts().dead < MANY);
    redis.push_all(numbered(&sink.url(), 50));
    eventually("the messages are delivered and settled", SOON, || {
        sink.n_delivered() == 50 && redis.counts().inflight == 0
    });
    assert!(redis.counts().dead > 0, "they waited until all of it was removed");
    redis.wait_empty(ms(60_000));
    assert_eq!(registered(), before, "one was taken for dead");
    agent.wait_log(&format!("{MANY} dead messages older than 168h 0m removed for good"));
    let said = other.complaints().into_iter().find(|line| line.contains("is dead"));
    assert_eq!(said, None);
}

/// Dead letters.
const MANY: usize = 300_000;

/// As if so many messages had died eight days ago.
fn many_dead(redis: &Redis) {
    let fill = "local died = redis.call('TIME')[1] * 1000 - 8 * 86400000
        for i = tonumber(ARGV[1]) + 1, tonumber(ARGV[1]) + tonumber(ARGV[2]) do
          local id = string.format('%016.0f', 1000000000000 + i)
          redis.call('HSET', KEYS[1], id, 'x')
          redis.call('HSET', KEYS[2], id, string.format('1 0 %.0f down', died))
          redis.call('ZADD', KEYS[3], died, id)
        end";
    // A script of more than a few seconds would stop everybody else.
    for from in (0..MANY).step_by(10_000) {
        let mut fill = redis::cmd("EVAL").arg(fill).arg(3).to_owned();
        for name in ["messages", "history", "dead"] {
            fill.arg(redis.key(name));
        }
        fill.arg(from).arg(10_000).exec(&mut redis.client()).unwrap();
    }
}
