//! The operator's hands: endpoints paused, resumed and tried, what is put off tried now, what waits dropped; while
//! agents are at work, die and start, and Redis too.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::wire::{envelope, numbered};
use crate::support::{Agent, Answer, Cluster, Redis, SOON, Sink, eventually, eventually_eq, ms, run_to_end};

/// All agents go by an order so soon after the command that gave it has ended.
const OBEYED: Duration = Duration::from_secs(1);
/// Nothing that failed is tried by itself as long as a test runs.
const PATIENT: [&str; 4] = ["--retry-first", "1h", "--retry-max", "1h"];

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs a command on a queue; a failure shows what was said.
#[track_caller]
fn command(url: &str, words: &[&str], code: i32) -> Output {
    let output = run_to_end(&[words, &["-oq", url]].concat());
    let (out, err) = (stdout(&output), stderr(&output));
    assert_eq!(output.status.code(), Some(code), "{words:?}: standard output: {out}\nstandard error: {err}");
    output
}

#[track_caller]
fn status(redis: &Redis) -> Value {
    serde_json::from_slice(&command(&redis.url(), &["status", "--json"], 0).stdout).unwrap()
}

#[track_caller]
fn lines(redis: &Redis, words: &[&str]) -> Vec<Value> {
    let output = command(&redis.url(), words, 0);
    stdout(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Every key as Redis would write it down.
fn dump(redis: &Redis) -> BTreeMap<String, Vec<u8>> {
    let mut client = redis.client();
    let keys: Vec<String> = redis::cmd("KEYS").arg("*").query(&mut client).unwrap();
    keys.into_iter().map(|key| (key.clone(), redis::cmd("DUMP").arg(key).query(&mut client).unwrap())).collect()
}

/// What arrived there, and when.
fn arrived(sink: &Sink, n: usize) -> Vec<Instant> {
    let requests = sink.requests();
    requests.iter().filter(|request| request.origin == sink.addresses()[n]).map(|request| request.at).collect()
}

#[test]
fn a_paused_endpoint_is_left_alone_by_all_agents_within_a_second_whatever_restarts() {
    let mut redis = Redis::with(&["appendonly yes", "appendfsync always"]);
    let sink = Arc::new(Sink::origins(2, |_| Answer::ok().after(ms(30))));
    let urls = sink.urls();
    let options = ["--workers", "8", "--endpoint-concurrency", "3", "--in-flight", "64", "--lease", "3s"];
    let mut agents = [Agent::start(&redis, &options), Agent::start(&redis, &options)];
    // More than both can deliver: their memory is full, and they claim when there is room.
    redis.push_all((0..3000).map(|n| envelope(&urls[n % 2], format!("{n}").as_bytes())));
    eventually("it is delivered to both", SOON, || (0..2).all(|n| arrived(&sink, n).len() > 40));
    command(&redis.url(), &["endpoint", "pause", &format!("{}/any/path", urls[0])], 0);
    let obeyed = Instant::now() + OBEYED;
    eventually("the other goes on", SOON, || arrived(&sink, 1).last().is_some_and(|at| *at > obeyed + ms(300)));

    // One dies, one is restarted, and so is Redis; more is pushed meanwhile.
    agents[0].kill9();
    agents[1].term();
    assert_eq!(agents[1].wait_exit(SOON), Some(0));
    redis.kill9();
    redis.restart();
    redis.push_all((3000..3100).map(|n| envelope(&urls[0], format!("{n}").as_bytes())));
    let agents = [Agent::start(&redis, &options), Agent::start(&redis, &["--lease", "3s", "--pop", "blpop"])];
    eventually_eq("all that is left waits for the one that is paused", SOON * 3, (0, 0, 0), || {
        let counts = redis.counts();
        (counts.queue, counts.inflight, counts.retry)
    });
    let late = arrived(&sink, 0).iter().filter(|at| **at > obeyed).count();
    assert_eq!(late, 0, "of {} attempts, so many began later than a second after the pause", arrived(&sink, 0).len());
    let waiting = redis.counts().waiting;
    let seen = status(&redis);
    assert_eq!(seen["paused"]["endpoints"], 1);
    assert_eq!(seen["paused"]["by_endpoint"][0]["endpoint"], urls[0].as_str());
    assert_eq!(seen["paused"]["by_endpoint"][0]["messages"], waiting);
    let lane = &seen["waiting"]["by_endpoint"][0];
    assert_eq!((&lane["paused"], &lane["next_try"]), (&Value::Bool(true), &Value::Null));
    redis.check_invariant();

    let resumed = Instant::now();
    let output = command(&redis.url(), &["endpoint", "resume", "--all"], 0);
    assert!(stdout(&output).contains(&format!("resumed: {}; {waiting} messages", urls[0])), "{}", stdout(&output));
    redis.wait_empty(SOON * 3);
    let first = arrived(&sink, 0).into_iter().find(|at| *at > obeyed).unwrap();
    assert!(first < resumed + OBEYED * 2, "the first after {:?}", first - resumed);
    let copies = sink.copies();
    assert_eq!(copies.len(), 3100, "each arrives");
    for agent in agents {
        agent.term();
    }
}

#[test]
fn in_order_what_was_paused_goes_out_in_order() {
    let redis = Redis::start();
    let sink = Sink::new(|_| Answer::ok().after(ms(5)));
    let options = ["--ordered", "--lease", "3s"];
    let mut agent = Agent::start(&redis, &options);
    let all = numbered(&sink.url(), 120);
    redis.push_all(&all[..80]);
    eventually("some are delivered", SOON, || sink.n_delivered() > 10);
    command(&redis.url(), &["endpoint", "pause", &sink.url()], 0);
    redis.push_all(&all[80..100]);
    eventually_eq("the rest waits", SOON, (0, 0), || (redis.counts().queue, redis.counts().inflight));
    agent.kill9();
    let _agent = Agent::start(&redis, &options);
    redis.push_all(&all[100..]);
    eventually_eq("it waits with the others", SOON, (0, 120), || {
        (redis.counts().queue, redis.counts().waiting + sink.n_delivered())
    });
    command(&redis.url(), &["endpoint", "resume", &sink.url()], 0);
    redis.wait_empty(SOON);
    let numbers: Vec<String> = (0..120).map(|n| format!("message {n}")).collect();
    assert_eq!(sink.delivered(), numbers);
}

#[test]
fn an_endpoint_that_is_repaired_is_tried_at_once() {
    let redis = Redis::start();
    let mut sink = Sink::new(|_| Answer::ok());
    let url = sink.url();
    sink.stop();
    let _agents = [Agent::start(&redis, &PATIENT), Agent::start(&redis, &PATIENT)];
    redis.push_all(numbered(&url, 5));
    eventually_eq("all wait for it", SOON, 5, || redis.counts().waiting);
    let before = status(&redis);
    assert_eq!(before["waiting"]["by_endpoint"][0]["failures_in_a_row"], 1);
    sink.start();
    let output = command(&redis.url(), &["endpoint", "try", &url, "--dry-run"], 0);
    assert!(stdout(&output).contains("would be tried now"), "{}", stdout(&output));
    assert_eq!(status(&redis)["waiting"], before["waiting"]);
    let asked = Instant::now();
    let output = command(&redis.url(), &["endpoint", "try", &url], 0);
    assert!(stdout(&output).contains("after 1 failure in a row; 5 messages wait for it"), "{}", stdout(&output));
    redis.wait_empty(SOON);
    assert!(sink.requests()[0].at < asked + OBEYED * 2, "after {:?}", sink.requests()[0].at - asked);
    // It is well now: there is nothing to try.
    let output = command(&redis.url(), &["endpoint", "try", &url], 1);
    assert!(stderr(&output).contains(&format!("nothing waits for {url}")), "{}", stderr(&output));
}

#[test]
fn what_is_put_off_is_tried_now_and_its_endpoint_with_it() {
    let redis = Redis::start();
    let mut sink = Sink::origins(2, |request| Answer::status(if request.target == "/good" { 200 } else { 500 }));
    let urls = sink.urls();
    let _agent = Agent::start(&redis, &PATIENT);
    for path in ["a", "b", "c"] {
        redis.push(&envelope(&format!("{}/{path}", urls[0]), path.as_bytes()));
    }
    redis.push(&envelope(&format!("{}/d", urls[1]), b"d"));
    eventually_eq("all are put off", SOON, 4, || redis.counts().retry);
    let listed = lines(&redis, &["retry", "list", "--json"]);
    assert_eq!(listed.len(), 4);
    assert!(listed.iter().all(|one| one["attempts"] == 1 && one["last_error"].as_str().unwrap().contains("500")));
    let text = stdout(&command(&redis.url(), &["retry", "list", "--endpoint", &urls[1]], 0));
    assert!(text.contains("/d") && !text.contains("/a"), "{text}");

    // The endpoint goes down as a whole, and comes back.
    sink.stop();
    redis.push(&envelope(&format!("{}/good", urls[0]), b"good"));
    eventually_eq("it waits", SOON, 1, || redis.counts().waiting);
    sink.start();
    sink.behave(|_| Answer::ok());
    let before = redis.put_off().len();
    let output = command(&redis.url(), &["retry", "now", "--endpoint", &urls[0], "--dry-run"], 0);
    assert_eq!((stdout(&output).trim(), redis.put_off().len()), ("would be due now: 3 messages", before));
    let output = command(&redis.url(), &["retry", "now", "--endpoint", &urls[0]], 0);
    assert_eq!(stdout(&output).trim(), "due now: 3 messages");
    eventually_eq("all of it arrives", SOON, 4, || sink.n_delivered());
    eventually_eq("the other is where it was", SOON, (1, 0), || (redis.counts().retry, redis.counts().waiting));

    let id = lines(&redis, &["retry", "list", "--json"])[0]["id"].as_str().unwrap().to_string();
    let output = command(&redis.url(), &["retry", "now", &id, "7"], 1);
    assert!(stderr(&output).contains("there is no message 0000000000000007"), "{}", stderr(&output));
    assert_eq!(stdout(&output).trim(), "due now: 1 message");
    redis.wait_empty(SOON);
    let output = command(&redis.url(), &["retry", "now", "--all"], 1);
    assert!(stderr(&output).contains("no messages on the retry schedule"), "{}", stderr(&output));
}

#[test]
fn only_what_is_meant_is_dropped_of_what_waits() {
    // Small enough keys are written down in the order of their entries: two dumps can be compared.
    let compact = ["hash-max-ziplist-entries 9999", "zset-max-ziplist-entries 9999", "hash-max-ziplist-value 99999"];
    let redis = Redis::with(&compact);
    let agent = Agent::start(&redis, &PATIENT);
    let urls = ["http://127.0.0.1:1", "http://127.0.0.1:1/other", "http://127.0.0.1:2"];
    command(&redis.url(), &["endpoint", "pause", "ws://127.0.0.1:3/x"], 0);
    redis.push_all(numbered(urls[0], 3));
    redis.push_all(numbered(urls[1], 3));
    redis.push_all(numbered(urls[2], 600));
    redis.push_all(numbered("ws://127.0.0.1:3/x", 1));
    eventually_eq("all wait", SOON, 607, || redis.counts().waiting);
    agent.term();
    eventually_eq("the agent has left", SOON, 0, || redis.agents().len());

    let before = dump(&redis);
    for words in [
        &["waiting", "drop", "--all", "--dry-run"][..],
        &["endpoint", "pause", urls[0], "--dry-run"],
        &["endpoint", "resume", "--all", "--dry-run"],
        &["endpoint", "try", urls[2], "--dry-run"],
        &["waiting", "list"],
        &["endpoint", "list"],
        &["status"],
    ] {
        command(&redis.url(), words, 0);
        assert!(dump(&redis) == before, "{words:?} has changed something");
    }
    command(&redis.url(), &["retry", "now", "--all", "--dry-run"], 1);
    assert!(dump(&redis) == before, "retry now --dry-run has changed something");

    let listed = lines(&redis, &["waiting", "list", "--json", "--limit", "1000", "--reason", "refused"]);
    // What came when the endpoint was known to be down says why it waits, too.
    assert_eq!(listed.len(), 606);
    let drop = |words: &[&str], code: i32| {
        let output = command(&redis.url(), &[&["waiting", "drop"], words].concat(), code);
        (stdout(&output).trim().to_string(), stderr(&output))
    };
    assert_eq!(drop(&["--endpoint", urls[1]], 0).0, "dropped: 3 messages");
    assert_eq!(drop(&["--endpoint", urls[2], "--limit", "2"], 0).0, "dropped: 2 messages");
    let (_, said) = drop(&["--endpoint", urls[2], "--reason", "no such reason"], 1);
    assert!(said.contains("no messages that wait with an endpoint that begins with"), "{said}");
    let id = listed[0]["id"].as_str().unwrap();
    assert_eq!(drop(&[id], 0).0, "dropped: 1 message");
    assert!(drop(&[id], 1).1.contains("there is no message"));
    assert_eq!(drop(&["--endpoint", urls[2]], 0).0, "dropped: 598 messages");
    assert_eq!(redis.counts().waiting, 607 - 3 - 2 - 1 - 598);
    redis.check_invariant();
    let left = lines(&redis, &["waiting", "list", "--json"]);
    assert!(left.iter().all(|one| one["endpoint"].as_str().unwrap().contains("127.0.0.1:")), "{left:?}");
    assert_eq!(drop(&["--all"], 0).0, "dropped: 3 messages");
    assert_eq!(redis.counts().messages, 0);
    redis.check_invariant();
}

#[test]
fn orders_say_what_they_did_and_to_how_many_and_what_is_wrong_with_them() {
    let redis = Redis::start();
    let url = redis.url();
    let output = command(&url, &["endpoint", "pause", "HTTP://Example.org/x", "http://example.org:80", "wss://b"], 0);
    let said = stdout(&output);
    assert!(said.contains("paused: http://example.org:80; 0 messages wait for it"), "{said}");
    assert!(said.contains("paused: wss://b:443;") && said.contains("2 of 2 endpoints"), "{said}");
    let output = command(&url, &["endpoint", "pause", "http://example.org"], 0);
    assert!(stderr(&output).contains("http://example.org:80 is paused already, since 20"), "{}", stderr(&output));
    let output = command(&url, &["endpoint", "try", "http://example.org"], 1);
    assert!(stderr(&output).contains("is paused: 'endpoint resume http://example.org:80'"), "{}", stderr(&output));
    let listed = lines(&redis, &["endpoint", "list", "--json"]);
    assert_eq!((listed.len(), &listed[0]["endpoint"]), (2, &Value::from("http://example.org:80")));
    assert!(listed.iter().all(|one| one["paused"] == true && one["paused_since"].is_string()));
    let text = stdout(&command(&url, &["endpoint", "list"], 0));
    assert!(text.contains("wss://b:443") && text.contains("paused"), "{text}");
    let text = stdout(&command(&url, &["status"], 0));
    assert!(text.contains("Paused by an operator") && text.contains("wss://b:443"), "{text}");
    let output = command(&url, &["endpoint", "resume", "http://example.org", "http://c"], 1);
    assert!(stdout(&output).contains("resumed: http://example.org:80"), "{}", stdout(&output));
    assert!(stderr(&output).contains("http://c:80 is not paused"), "{}", stderr(&output));
    command(&url, &["endpoint", "resume", "--all"], 0);
    for words in [&["endpoint", "resume", "--all"][..], &["endpoint", "list"], &["waiting", "list"], &["retry", "list"]]
    {
        let output = command(&url, words, 1);
        assert!(!stderr(&output).is_empty() && stdout(&output).is_empty(), "{words:?}");
    }
    for (words, parts) in [
        (&["endpoint", "pause", "example.org"][..], &["'endpoint pause'", "example.org", "as http://host/"][..]),
        (&["endpoint", "pause", "ftp://user:secret@h/"], &["scheme ftp", "http, https, ws and wss"]),
        (&["endpoint", "pause", "http://u:secret@ho st/"], &["a blank", "***"]),
        (&["endpoint", "try"], &["needs an origin"]),
        (&["endpoint", "resume", "http://a", "--all"], &["not both"]),
        (&["waiting", "drop"], &["'waiting drop'", "--all"]),
        (&["waiting", "drop", "7", "--all"], &["not both"]),
        (&["retry", "now", "x"], &["not an id"]),
        (&["endpoint", "stop"], &["list, pause, resume, try"]),
    ] {
        let said = stderr(&command(&url, words, 2));
        assert!(parts.iter().all(|part| said.contains(part)) && !said.contains("secret"), "{words:?}: {said}");
    }
    // More than may be paused: nothing is.
    let many: Vec<String> = (0..1001).map(|n| format!("http://h{n}")).collect();
    let words: Vec<&str> = ["endpoint", "pause"].into_iter().chain(many.iter().map(String::as_str)).collect();
    assert!(stderr(&command(&url, &words, 1)).contains("more than 1000"));
    command(&url, &["endpoint", "list"], 1);
}

#[test]
fn on_a_cluster_an_endpoint_is_paused_and_resumed_while_its_slot_moves() {
    let cluster = Cluster::start();
    let sink = Sink::new(|_| Answer::ok());
    let _agent = cluster.agent(&cluster.url(), &[]);
    let order = |hand: &str| {
        command(&cluster.url(), &["endpoint", hand, &sink.url(), "--queue", "acapy_outbound"], 0);
    };
    order("pause");
    cluster.push_all(numbered(&sink.url(), 50));
    eventually_eq("all wait", SOON, 50, || cluster.home().counts().waiting);
    let from = cluster.owner().unwrap();
    cluster.move_slot(from, (from + 1) % 3);
    cluster.push_all(numbered(&sink.url(), 50));
    eventually_eq("all wait", SOON, 100, || cluster.home().counts().waiting);
    assert_eq!(sink.n_requests(), 0);
    order("resume");
    eventually_eq("all arrive", SOON, 100, || sink.n_delivered());
}

#[test]
fn what_a_paused_endpoint_holds_up_grows_no_older() {
    let redis = Redis::start();
    let mut sink = Sink::new(|_| Answer::status(500));
    let url = sink.url();
    let options = ["--retry-first", "200ms", "--retry-max", "300ms", "--give-up-after", "3s"];
    let _agent = Agent::start(&redis, &options);
    redis.push(&envelope(&url, b"old enough"));
    eventually("it has failed", SOON, || sink.n_requests() >= 1);
    command(&redis.url(), &["endpoint", "pause", &url], 0);
    eventually_eq("it waits", SOON, 1, || redis.counts().waiting);
    let n = sink.n_requests();
    // Longer than it would have lived: the length of this pause is what is tested.
    thread::sleep(ms(4000));
    assert_eq!(sink.n_requests(), n);
    command(&redis.url(), &["endpoint", "resume", &url], 0);
    eventually("it is attempted several times more", SOON, || sink.n_requests() >= n + 3);
    sink.stop();
    eventually_eq("it dies of its age at last", SOON, 1, || redis.dead().len());
}

#[test]
fn what_is_paused_is_shown_and_not_odd_and_a_pause_that_nobody_ordered_is_mended() {
    let redis = Redis::start();
    let sink = Sink::new(|_| Answer::ok());
    let agent = Agent::start(&redis, &["--status-addr", &format!("{}:0", Ipv4Addr::LOCALHOST)]);
    command(&redis.url(), &["endpoint", "pause", &sink.url()], 0);
    redis.push_all(numbered(&sink.url(), 3));
    eventually_eq("all wait", SOON, 3, || redis.counts().waiting);
    agent.wait_log(&format!("paused by an operator: {}", sink.url()));
    let log = agent.log();
    let address = log.split("status is served at http://").nth(1).unwrap().split('/').next().unwrap();
    let shows = |path: &str, text: &str| {
        let mut page = String::new();
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).unwrap();
        let _ = stream.read_to_string(&mut page);
        page.contains(text)
    };
    eventually("the metric counts it", SOON, || shows("/metrics", "\nacapy_deliver_queue_paused_endpoints 1\n"));
    eventually("the page shows it", SOON, || shows("/", ">paused<") && shows("/", &sink.url()));
    let odd = |words: &[&str]| {
        let output = run_to_end(&[&["check", "-oq", &redis.url()], words].concat());
        stdout(&output).lines().filter(|line| line.contains("odd entries")).map(str::to_string).collect::<Vec<_>>()
    };
    assert_eq!(odd(&[]), ["ok    odd entries   none: agents alone have written to the keys"]);
    // Somebody has removed the order, and nothing else.
    redis::cmd("HDEL").arg(redis.key("calls")).arg(&["orders", "ordered"]).exec(&mut redis.client()).unwrap();
    let said = odd(&[]);
    assert!(said[0].contains(&sink.url()) && said[0].contains("nobody has paused it"), "{said:?}");
    assert_eq!(sink.n_requests(), 0);
    let said = odd(&["--repair", "--yes"]);
    assert!(said.last().unwrap().contains("mended: 1"), "{said:?}");
    redis.wait_empty(SOON);
}

/// Orders come and go while messages do: nothing is lost, and what ends resumed arrives.
#[test]
fn pauses_that_come_and_go_lose_nothing() {
    let redis = Redis::start();
    let sink = Sink::origins(3, |_| Answer::ok().after(ms(3)));
    let urls = sink.urls();
    let options = ["--workers", "4", "--in-flight", "32", "--lease", "3s"];
    let mut agents = vec![Agent::start(&redis, &options), Agent::start(&redis, &options)];
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..1200 {
                redis.push(&envelope(&urls[n % 3], format!("{n}").as_bytes()));
                thread::sleep(ms(2));
            }
            done.store(true, Ordering::SeqCst);
        });
        let mut round = 0;
        while !done.load(Ordering::SeqCst) {
            let hand = ["pause", "try", "resume"][round % 3];
            run_to_end(&["endpoint", hand, &urls[round % 2], &urls[(round + 1) % 3], "-oq", &redis.url()]);
            if round == 10 {
                agents[0].kill9();
                agents.push(Agent::start_at(&redis.url(), &options));
            }
            round += 1;
        }
    });
    run_to_end(&["endpoint", "resume", "--all", "-oq", &redis.url()]);
    redis.wait_empty(SOON * 3);
    assert_eq!(sink.copies().len(), 1200);
}
