//! Today's ACA-Py with its Redis plugin: the agent takes the place of the plugin's own deliverer, in
//! that one's environment, on its queue, and with what it left behind.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::support::wire::Fixture;
use super::support::{Agent, Answer, Redis, SOON, Sink, StopAtEnd, eventually, eventually_eq, run_to_end, wire};

/// The binary with nothing but the environment that the plugin's deliverer would have.
fn in_place_of_the_deliverer(redis: &Redis, further: &[(&str, &str)]) -> Command {
    let mut command = Agent::command();
    command.env("REDIS_SERVER_URL", redis.url()).envs(further.iter().copied());
    command
}

fn output(mut command: Command, args: &[&str]) -> (Option<i32>, String) {
    let output = command.args(args).stdin(Stdio::null()).output().expect("the binary can be started");
    (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

#[test]
fn the_environment_of_the_deliverer_is_enough_and_the_first_line_says_so() {
    for (queue, variables, said) in [
        ("acapy_outbound", &[][..], "Redis by REDIS_SERVER_URL, the queue by the default of TOPIC_PREFIX"),
        ("bob_outbound", &[("TOPIC_PREFIX", "bob")], "Redis by REDIS_SERVER_URL, the queue by TOPIC_PREFIX"),
    ] {
        let (redis, sink) = (Redis::of(queue), Sink::new(|_| Answer::ok()));
        let mut agent = Agent::start_as(&redis, in_place_of_the_deliverer(&redis, variables));
        let log = agent.log();
        let first = log.lines().next().unwrap_or_default();
        assert!(first.contains(&format!("'{queue}'")) && first.contains(said), "{log}");
        redis.push(&wire::envelope(&sink.url(), b"hello"));
        eventually_eq("it arrives", SOON, 1, || sink.n_delivered());
        redis.wait_empty(SOON);
        let (code, checked) = output(in_place_of_the_deliverer(&redis, variables), &["check"]);
        assert!(code == Some(0) && checked.contains(said) && checked.contains(&format!("'{queue}'")), "{checked}");
        agent.term();
        assert_eq!(agent.wait_exit(SOON), Some(0));
    }
}

#[test]
fn the_whole_key_can_be_given_and_what_is_typed_wins() {
    let (redis, sink) = (Redis::of("my topic"), Sink::new(|_| Answer::ok()));
    let mut command = in_place_of_the_deliverer(&Redis::of("elsewhere"), &[("TOPIC_PREFIX", "other")]);
    command.args(["-oq", &redis.url(), "--queue", "my topic"]);
    let agent = Agent::start_as(&redis, command);
    assert!(!agent.log().contains("TOPIC_PREFIX"), "{}", agent.log());
    let enqueue = ["enqueue", "-oq", &redis.url(), "--queue", "my topic", "--endpoint", &sink.url(), "--text", "hi"];
    let output = run_to_end(&enqueue);
    assert!(output.status.success(), "{output:?}");
    eventually_eq("it arrives", SOON, 1, || sink.n_delivered());
}

#[test]
fn a_python_class_in_the_place_of_the_url_is_told_and_what_to_give_instead() {
    let mut command = Agent::command();
    let class = "aries_cloudagent.transport.outbound.queue.redis:RedisOutboundQueue";
    command.env("ACAPY_OUTBOUND_TRANSPORT_QUEUE", class);
    let (code, said) = output(command, &[]);
    assert_eq!(code, Some(2), "{said}");
    for words in [class, "Python class", "ACA-Py 0.7.1 to 0.7.3", "-oq redis://host:6379"] {
        assert!(said.contains(words), "{said}");
    }
}

fn unix_now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64
}

/// Status and body of one answer.
fn ask(address: &str, path: &str, headers: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("the status server listens");
    stream.set_read_timeout(Some(SOON)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\n{headers}\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"));
    if body.starts_with('{') {
        assert!(head.contains("Content-Type: application/json\r\n"), "{head}");
    }
    (head[9..12].parse().expect("a status"), body.to_string())
}

/// Where the log says that pages are served.
fn served_at(agent: &Agent, page: &str) -> String {
    let mut found = None;
    eventually(&format!("the log says where {page} is"), SOON, || {
        let log = agent.log();
        let line = log.lines().find(|line| line.contains("status is served at http://") && line.ends_with(page));
        found = line.and_then(|line| Some(line.rsplit_once("http://")?.1.trim_end_matches(page).to_string()));
        found.is_some()
    });
    found.expect("just found")
}

const KEY: &str = "k3y of the pages";

#[test]
fn all_that_today_s_aca_py_writes_is_delivered_with_nothing_but_the_environment_of_the_deliverer() {
    let pages =
        [("STATUS_ENDPOINT_HOST", "127.0.0.1"), ("STATUS_ENDPOINT_PORT", "0"), ("STATUS_ENDPOINT_API_KEY", KEY)];
    for redis in [Redis::of("bob_outbound"), Redis::cluster_of("bob_outbound")] {
        let sink = Sink::new(|_| Answer::ok());
        let mut client = redis.client();
        let fixtures = Fixture::today();
        let path = |fixture: &Fixture| format!("/topic/{}/", fixture.name);
        let (put_off_before, pushed): (Vec<_>, Vec<_>) = fixtures.iter().partition(|f| f.name.starts_with("retry-"));
        assert!(pushed.len() >= 22 && put_off_before.len() == 5);
        // Between them the other format, what nobody can read, and what is for a mediator.
        let garbage: [&[u8]; 5] =
            [b"", b"{", b"{\"service\": 7}", b"\xc1", include_bytes!("../fixtures/today/real-mediator-mode.json")];
        for (n, fixture) in pushed.iter().enumerate() {
            redis.push(&fixture.addressed_to(&(sink.url() + &path(fixture))));
            redis.push(&wire::envelope(&format!("{}/once", sink.url()), format!("of ACA-Py 0.7, {n}").as_bytes()));
            redis.push(garbage[n % garbage.len()]);
        }
        for (n, fixture) in put_off_before.iter().enumerate() {
            let entry = fixture.addressed_to(&(sink.url() + &path(fixture)));
            put_off(&mut client, "bob_outbound_retry", unix_now() + n as i64, &entry);
        }
        let variables = [&[("TOPIC_PREFIX", "bob")][..], &pages].concat();
        let mut agent = Agent::start_as(&redis, in_place_of_the_deliverer(&redis, &variables));
        let n = 2 * pushed.len() + put_off_before.len();
        eventually_eq("all that can be delivered arrives", SOON, n, || sink.n_delivered());
        eventually_eq("the rest is dead", SOON, pushed.len(), || redis.counts().dead);
        redis.wait_empty_but_dead(SOON);
        redis.check_invariant();
        let requests = sink.requests();
        for fixture in &fixtures {
            let arrived: Vec<_> = requests.iter().filter(|request| request.target == path(fixture)).collect();
            assert_eq!(arrived.len(), 1, "{}", fixture.name);
            assert!(arrived[0].body == fixture.payload, "{}: another payload", fixture.name);
            for (name, value) in fixture.headers.iter().filter(|(_, value)| value.is_ascii()) {
                assert_eq!(arrived[0].header(name), Some(value.as_str()), "{}: {name}", fixture.name);
            }
        }
        let address = served_at(&agent, "/status/ready");
        let with_key = format!("access_token: {KEY}\r\n");
        assert_eq!(ask(&address, "/status/ready", &with_key), (200, r#"{"ready":true}"#.to_string()));
        assert_eq!(ask(&address, "/status/live", &with_key), (200, r#"{"alive":true}"#.to_string()));
        assert!(!agent.log().contains(KEY) && !agent.log().contains("lab-webhook-key"), "{}", agent.log());
        agent.term();
        assert_eq!(agent.wait_exit(SOON), Some(0));
    }
}

#[test]
fn the_pages_of_the_deliverer_are_for_who_has_the_key_and_alone_on_their_address() {
    let mut redis = Redis::of("acapy_outbound");
    // An address that only this test uses, so that a port of it stays free.
    let host = redis.address().rsplit_once(':').expect("a port").0.to_string();
    let theirs = |port: &str| {
        [("STATUS_ENDPOINT_HOST", host.as_str()), ("STATUS_ENDPOINT_PORT", port), ("STATUS_ENDPOINT_API_KEY", KEY)]
            .map(|(name, value)| (name, value.to_string()))
    };
    let start = |redis: &Redis, port: &str, options: &[&str]| {
        let mut command = in_place_of_the_deliverer(redis, &[]);
        command.envs(theirs(port)).args(options);
        Agent::start_as(redis, command)
    };
    let with_key = format!("Access_Token: {KEY}\r\n");
    let refused = |address: &str| {
        for path in ["/status/live", "/status/ready"] {
            for headers in ["", "access_token: \r\n", "access_token: other\r\n", "x-api-key: k3y of the pages\r\n"] {
                let (status, body) = ask(address, path, headers);
                assert_eq!(
                    (status, body.contains("alive") || body.contains("ready")),
                    (403, false),
                    "{path} {headers:?}"
                );
            }
        }
    };
    let agent = start(&redis, "0", &[]);
    let address = served_at(&agent, "/status/ready");
    refused(&address);
    assert_eq!(ask(&address, "/status/ready", &with_key).0, 200);
    for path in ["/metrics", "/healthz", "/readyz", "/", "/status"] {
        assert_eq!(ask(&address, path, &with_key).0, 404, "{path}");
    }
    // A Redis that does not answer: still 200, as the deliverer says it.
    redis.kill9();
    eventually_eq("it is not alive", 3 * SOON, (200, r#"{"alive":false}"#.to_string()), || {
        ask(&address, "/status/live", &with_key)
    });
    assert_eq!(ask(&address, "/status/ready", &with_key), (200, r#"{"ready":false}"#.to_string()));
    redis.restart();
    eventually_eq("it is alive again", 3 * SOON, (200, r#"{"alive":true}"#.to_string()), || {
        ask(&address, "/status/live", &with_key)
    });
    drop(agent);

    // Two addresses: each has its own pages.
    let port = address.rsplit(':').next().unwrap();
    let agent = start(&redis, port, &["--status-addr", "127.0.0.2:0"]);
    let ours = served_at(&agent, "/metrics");
    assert_eq!(ask(&ours, "/metrics", "").0, 200);
    assert_eq!(ask(&ours, "/status/ready", &with_key).0, 404);
    assert_eq!(ask(&address, "/metrics", &with_key).0, 404);
    drop(agent);

    // One address, named by both: it has all.
    let agent = start(&redis, port, &["--status-addr", &format!("{host}:{port}")]);
    assert_eq!((served_at(&agent, "/metrics"), served_at(&agent, "/status/ready")), (address.clone(), address.clone()));
    assert_eq!(ask(&address, "/metrics", "").0, 200);
    assert_eq!(ask(&address, "/readyz", "").0, 200);
    assert_eq!(ask(&address, "/status/ready", &with_key).0, 200);
    refused(&address);
    drop(agent);

    // Without all three of its variables there are none, and that is said.
    let mut command = in_place_of_the_deliverer(&redis, &[]);
    command.envs(theirs("0").into_iter().take(2));
    let agent = Agent::start_as(&redis, command);
    agent.wait_log("without STATUS_ENDPOINT_API_KEY does nothing");
    assert!(!agent.log().contains("status is served"), "{}", agent.log());
}

/// The services that were there before, as their queue and their retry schedule.
const BEFORE: [(&str, &str); 2] =
    [("acapy_outbound", "acapy_outbound_retry"), ("acapy.outbound_transport", "acapy.outbound_retry")];

/// An entry as the service before us read it from this queue.
fn entry(queue: &str, endpoint: &str, payload: &str) -> Vec<u8> {
    match queue.ends_with("_outbound") {
        true => wire::json_with(endpoint, &[("Content-Type", "application/didcomm-envelope-enc")], payload.as_bytes()),
        false => wire::envelope(endpoint, payload.as_bytes()),
    }
}

/// Puts an entry where another service keeps what it has put off.
fn put_off(client: &mut redis::Connection, schedule: &str, due: i64, entry: &[u8]) {
    redis::cmd("ZADD").arg(schedule).arg(due).arg(entry).exec(client).unwrap();
}

fn length(client: &mut redis::Connection, schedule: &str) -> usize {
    redis::cmd("ZCARD").arg(schedule).query(client).unwrap()
}

#[test]
fn what_another_service_put_off_is_taken_over_at_the_start_and_due_when_it_was() {
    for (queue, schedule) in BEFORE {
        for redis in [Redis::of(queue), Redis::cluster_of(queue)] {
            let sink = Sink::new(|_| Answer::ok());
            let mut client = redis.client();
            let due = unix_now() + 6;
            for n in 0..40 {
                let entry = entry(queue, &sink.url(), &format!("due {n}"));
                put_off(&mut client, schedule, unix_now() - n, &entry);
            }
            put_off(&mut client, schedule, due, &entry(queue, &sink.url(), "not yet"));
            redis.push(&entry(queue, &sink.url(), "new"));
            let check = ["check", "-oq", &redis.url(), "--queue", queue];
            let checked = String::from_utf8(run_to_end(&check).stdout).unwrap();
            assert!(checked.contains(&format!("note  adoption      '{schedule}' holds 41 messages")), "{checked}");

            let agent = Agent::start(&redis, &["--queue", queue]);
            agent.wait_log("41 messages that were put off by ");
            assert_eq!(length(&mut client, schedule), 0);
            eventually_eq("all that is due arrives", SOON, 41, || {
                sink.delivered().iter().filter(|text| !text.contains("not yet")).count()
            });
            eventually_eq("all arrives", SOON, 42, || sink.n_delivered());
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
            assert!(now >= Duration::from_secs(due as u64), "it was not due before {due}: {now:?}");
            redis.wait_empty(SOON);
            assert!(sink.copies().values().all(|n| *n == 1), "{:?}", sink.copies());
            let severe = agent.complaints();
            assert!(severe.is_empty(), "{severe:?}");
        }
    }
}

#[test]
fn garbage_among_what_was_put_off_is_dead_and_no_score_hinders_the_rest() {
    let (queue, schedule) = BEFORE[0];
    let redis = Redis::cluster_of(queue);
    let sink = Sink::new(|_| Answer::ok());
    let mut client = redis.client();
    let mut put_off = |score: String, member: &[u8]| {
        redis::cmd("ZADD").arg(schedule).arg(score).arg(member).exec(&mut client).unwrap();
    };
    let now = unix_now();
    let garbage: [&[u8]; 6] = [
        b"",
        b"garbage",
        b"\xff\0",
        b"[]",
        br#"{"payload": "eA=="}"#,
        br#"{"service": {"url": ""}, "payload": "", "retries": 3}"#,
    ];
    for (n, member) in garbage.into_iter().enumerate() {
        put_off((now - n as i64).to_string(), member);
    }
    // The last two are seconds and milliseconds mixed up: no time to wait for.
    let scores = ["-inf", "-1e300", "-5", "0", "1.5", "inf", "1e300"].map(str::to_string);
    let scores = [&scores[..], &[(now * 1000).to_string(), (now / 1000).to_string()]].concat();
    for (n, score) in scores.iter().enumerate() {
        put_off(score.clone(), &entry(queue, &sink.url(), &format!("good {n}")));
    }
    let wire = String::from_utf8(entry(queue, &sink.url(), "odd counts")).unwrap();
    for retries in ["-1", "1e99", "\"x\"", "null", "99999999999999999999"] {
        put_off("1".into(), wire.replace("\"headers\"", &format!("\"retries\": {retries}, \"headers\"")).as_bytes());
    }
    // Written by the service of the other format.
    put_off("1".into(), &wire::envelope(&sink.url(), b"in MessagePack"));

    let agent = Agent::start(&redis, &["--queue", queue]);
    eventually_eq("all that can be delivered arrives", SOON, scores.len() + 6, || sink.n_delivered());
    eventually_eq("the rest is dead", SOON, garbage.len(), || redis.counts().dead);
    redis.wait_empty_but_dead(SOON);
    redis.check_invariant();
    assert_eq!(length(&mut client, schedule), 0);
    assert_eq!(sink.copies().values().sum::<usize>(), scores.len() + 6);
    assert!(!agent.log().contains("panic"), "{}", agent.log());
}

/// As the services before us do it each second: what is due goes to the right of the queue, unless somebody
/// else was faster.
fn push_what_is_due(client: &mut redis::Connection, queue: &str, schedule: &str) {
    let mut due = redis::cmd("ZRANGEBYSCORE");
    due.arg(schedule).arg(0).arg(unix_now()).arg("LIMIT").arg(0).arg(10);
    for entry in due.query::<Vec<Vec<u8>>>(client).unwrap() {
        let removed: usize = redis::cmd("ZREM").arg(schedule).arg(&entry).query(client).unwrap();
        if removed == 1 {
            redis::cmd("RPUSH").arg(queue).arg(&entry).exec(client).unwrap();
        }
    }
}

#[test]
fn a_change_over_under_load_loses_and_doubles_nothing_while_the_other_goes_on() {
    for (queue, schedule) in BEFORE {
        let redis = Redis::cluster_of(queue);
        let sink = Sink::new(|_| Answer::ok());
        let url = sink.url();
        let stop = AtomicBool::new(false);
        let pushed = AtomicUsize::new(0);
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut client = redis.client();
                while !stop.load(Ordering::Relaxed) {
                    let n = pushed.fetch_add(1, Ordering::Relaxed);
                    let entry = entry(queue, &url, &format!("message {n}"));
                    match n % 3 {
                        0 => redis::cmd("RPUSH").arg(queue).arg(&entry).exec(&mut client).unwrap(),
                        n => put_off(&mut client, schedule, unix_now() + n as i64 - 1, &entry),
                    }
                    if n.is_multiple_of(20) {
                        push_what_is_due(&mut client, queue, schedule);
                    }
                }
            });
            let stops = StopAtEnd(&stop);
            // Each takes over what there is when it starts.
            let mut agents: Vec<Agent> = Vec::new();
            for n in 1..=4 {
                eventually("the other service has something", SOON, || pushed.load(Ordering::Relaxed) > 600 * n);
                agents.push(Agent::start(&redis, &["--queue", queue]));
                agents[n - 1].wait_log("are taken over, and due when they were");
            }
            drop(stops);
            // What it still has it delivers to the queue, until its end.
            eventually("the other service has nothing left", SOON, || {
                let mut client = redis.client();
                push_what_is_due(&mut client, queue, schedule);
                length(&mut client, schedule) == 0
            });
            eventually_eq("all arrives", 3 * SOON, pushed.load(Ordering::Relaxed), || sink.copies().len());
            redis.wait_empty(SOON);
        });
        let copies: usize = sink.copies().values().map(|n| n - 1).sum();
        assert_eq!(copies, 0, "of {} messages", pushed.load(Ordering::Relaxed));
    }
}

#[test]
fn what_the_other_service_puts_off_later_is_taken_over_within_a_minute() {
    let (queue, schedule) = BEFORE[0];
    let redis = Redis::cluster_of(queue);
    let sink = Sink::new(|_| Answer::ok());
    let _agent = Agent::start(&redis, &["--queue", queue]);
    redis.push(&entry(queue, &sink.url(), "first"));
    eventually_eq("the agent is at work", SOON, 1, || sink.n_delivered());
    put_off(&mut redis.client(), schedule, unix_now() + 3, &entry(queue, &sink.url(), "later"));
    eventually_eq("it is taken over", Duration::from_secs(60) + SOON, 2, || sink.n_delivered());
    assert_eq!(length(&mut redis.client(), schedule), 0);
    redis.wait_empty(SOON);
}

#[test]
fn kill_9_while_taking_over_costs_copies_and_no_message() {
    const N: usize = 4000;
    const KILLS: usize = 6;
    for (queue, schedule) in BEFORE {
        let redis = Redis::cluster_of(queue);
        let sink = Sink::new(|_| Answer::ok());
        let mut client = redis.client();
        let due = unix_now() + 30;
        let mut pipe = redis::pipe();
        for n in 0..N {
            let entry = entry(queue, &sink.url(), &format!("message {n}"));
            pipe.cmd("ZADD").arg(schedule).arg(due).arg(entry).ignore();
        }
        pipe.exec(&mut client).unwrap();
        for n in 1..=KILLS {
            let mut agent = Agent::start_at(&redis.url(), &["--queue", queue]);
            let left = N - n * N / (KILLS + 1);
            eventually("some of it is taken over", SOON, || length(&mut client, schedule) < left);
            agent.kill9();
        }
        let attempted_meanwhile = sink.n_requests();
        let kept = redis.counts().messages + length(&mut client, schedule);
        let _agent = Agent::start(&redis, &["--queue", queue]);
        eventually_eq("all arrives", Duration::from_secs(40) + SOON, N, || sink.copies().len());
        redis.wait_empty(2 * SOON);
        let copies: usize = sink.copies().values().map(|n| n - 1).sum();
        println!("{queue}: {KILLS} kills while taking over {N}: {copies} copies, 0 lost");
        if attempted_meanwhile == 0 {
            // Those of the step under way.
            assert!(copies <= KILLS * 16 && kept == N + copies, "{copies} copies, {kept} kept");
        }
    }
}

#[test]
fn a_schedule_that_cannot_be_taken_over_is_spoken_of_and_hinders_nothing() {
    let redis = Redis::of("acapy_outbound");
    let sink = Sink::new(|_| Answer::ok());
    let mut client = redis.client();
    // A type that neither service keeps there.
    redis::cmd("SET").arg("acapy_outbound_retry").arg("x").exec(&mut client).unwrap();
    let agent = Agent::start(&redis, &["--queue", "acapy_outbound"]);
    redis.push(&wire::envelope(&sink.url(), b"one"));
    eventually_eq("messages are delivered", SOON, 1, || sink.n_delivered());
    agent.wait_log("cannot take over what the plugin's deliverer has put off at 'acapy_outbound_retry'");
    drop(agent);
    // An account that may read there, and not remove: nothing is sent twice, nothing is taken.
    let entry = wire::envelope(&sink.url(), b"two");
    redis::cmd("DEL").arg("acapy_outbound_retry").exec(&mut client).unwrap();
    put_off(&mut client, "acapy_outbound_retry", 1, &entry);
    let rules = ["on", ">secret", "~acapy_outbound", "~{acapy_outbound}:*", "%R~acapy_outbound_retry", "+@all"];
    redis::cmd("ACL").arg("SETUSER").arg("narrow").arg(&rules).exec(&mut client).unwrap();
    let url = format!("redis://narrow:secret@{}", redis.address());
    let mut command = Agent::command();
    command.args(["-oq", &url, "--queue", "acapy_outbound"]);
    let narrow = Agent::start_as(&redis, command);
    narrow.wait_log("cannot take over what the plugin's deliverer has put off at 'acapy_outbound_retry'");
    redis.push(&wire::envelope(&sink.url(), b"three"));
    eventually_eq("messages are delivered", SOON, 2, || sink.n_delivered());
    redis.wait_empty(SOON);
    assert_eq!(length(&mut client, "acapy_outbound_retry"), 1);
    assert!(!sink.delivered().contains(&"two".to_string()));
}
