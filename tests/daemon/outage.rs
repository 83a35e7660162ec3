//! A Redis that is away, cut off, full, read-only or loading is waited out, said once, and loses
//! nothing; one that refuses us for good ends the agent with code 1 and a message that says what.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::addresses::get;
use crate::support::wire::{envelope, numbered};
use crate::support::{Agent, Answer, Redis, SOON, Sink, eventually, eventually_eq, ms};

/// How long the outages last, several times the first pauses between tries; their length is what
/// is tested.
const OUTAGE: Duration = Duration::from_secs(2);

/// It said once that Redis was lost, and once that it was back.
#[track_caller]
fn assert_said_once(agent: &Agent) {
    let complaints = agent.complaints();
    assert_eq!(complaints.len(), 1, "said about one outage: {complaints:#?}");
}

#[test]
fn redis_away_at_start_is_waited_for() {
    let mut redis = Redis::start();
    let sink = Sink::new(|_| Answer::ok());
    redis.kill9();
    let mut agent = Agent::start_at(&redis.url(), &[]);
    thread::sleep(OUTAGE);
    assert!(agent.is_running());
    agent.wait_log(&redis.address());
    redis.restart();
    redis.push(&envelope(&sink.url(), b"x"));
    redis.wait_empty(SOON);
    assert_eq!(sink.n_delivered(), 1);
    assert_said_once(&agent);
    agent.term();
    assert_eq!(agent.wait_exit(SOON), Some(0));
}

#[test]
fn told_to_end_while_redis_is_away_it_ends() {
    let mut redis = Redis::start();
    let url = redis.url();
    let mut connected = Agent::start(&redis, &["--drain-timeout", "1s"]);
    redis.kill9();
    let mut never_connected = Agent::start_at(&url, &["--drain-timeout", "1s"]);
    never_connected.wait_log(&redis.address());
    for agent in [&mut connected, &mut never_connected] {
        agent.term();
        assert_eq!(agent.wait_exit(ms(6_000)), Some(0));
    }
}

#[test]
fn redis_killed_and_restarted_in_mid_delivery_loses_nothing() {
    let mut redis = Redis::start();
    let sink = Sink::new(|_| Answer::ok().after(ms(20)));
    redis.push_all(numbered(&sink.url(), 600));
    let mut agent = Agent::start(&redis, &["--workers", "8"]);
    eventually("it is in the middle", SOON, || sink.n_requests() >= 100);
    redis.kill9();
    thread::sleep(OUTAGE);
    assert!(agent.is_running());
    redis.restart();
    redis.wait_empty(ms(40_000));
    let copies = sink.copies();
    assert_eq!(copies.len(), 600);
    // What was delivered while Redis was away was kept and settled then.
    assert!(copies.values().all(|n| *n == 1), "some arrived twice: {copies:?}");
    assert_said_once(&agent);
    agent.wait_log("again");
}

#[test]
fn cut_connections_to_redis_lose_nothing_and_repeat_nothing() {
    let redis = Redis::start();
    let sink = Sink::new(|_| Answer::ok().after(ms(5)));
    redis.push_all(numbered(&sink.url(), 1500));
    let mut agent = Agent::start(&redis, &["--workers", "8", "--in-flight", "64"]);
    for round in 1..=20 {
        eventually("some more arrive", SOON, || sink.n_requests() >= round * 40);
        let mut client = redis.client();
        let kill = ["KILL", "TYPE", "normal", "SKIPME", "yes"];
        redis::cmd("CLIENT").arg(&kill).exec(&mut client).unwrap();
    }
    redis.wait_empty(ms(60_000));
    let copies = sink.copies();
    assert_eq!(copies.len(), 1500);
    assert!(copies.values().all(|n| *n == 1), "some arrived twice: {copies:?}");
    assert!(agent.is_running());
    assert!(agent.log().lines().count() < 100, "a log of {} lines", agent.log().lines().count());
}

#[test]
fn scripts_that_redis_forgot_are_sent_again() {
    let redis = Redis::start();
    let sink = Sink::new(|_| Answer::ok());
    let agent = Agent::start(&redis, &[]);
    for round in 1..=5 {
        redis::cmd("SCRIPT").arg("FLUSH").exec(&mut redis.client()).unwrap();
        redis.push_all(numbered(&sink.url(), 20));
        redis.wait_empty(SOON);
        assert_eq!(sink.n_delivered(), round * 20);
    }
    assert_eq!(agent.complaints(), Vec::<String>::new());
}

#[test]
fn a_full_redis_is_emptied_and_said_once() {
    let redis = Redis::start();
    let sink = Sink::new(|_| Answer::ok());
    let payload = vec![b'x'; 2000];
    redis.push_all((0..200).map(|_| envelope(&sink.url(), &payload)));
    let limit = |bytes: &str| {
        redis::cmd("CONFIG").arg(&["SET", "maxmemory", bytes]).exec(&mut redis.client()).unwrap();
    };
    limit("1");
    let refused = redis::cmd("RPUSH").arg("a").arg("b").exec(&mut redis.client());
    assert!(refused.unwrap_err().to_string().contains("OOM"));

    let agent = Agent::start(&redis, &[]);
    redis.wait_empty(SOON);
    assert_eq!(sink.n_delivered(), 200);
    // Full and with nothing to do, it may not wait in Redis; it says so once and stays.
    thread::sleep(OUTAGE);
    let complaints = agent.complaints();
    assert!(complaints.len() <= 2, "{complaints:#?}");
    limit("0");
    redis.push(&envelope(&sink.url(), b"afterwards"));
    redis.wait_empty(SOON);
    assert_eq!(sink.copies().get("afterwards"), Some(&1));
}

#[test]
fn messages_that_must_wait_are_kept_in_a_full_redis() {
    let redis = Redis::start();
    let sink = Sink::new(|_| Answer::status(500));
    redis.push_all(numbered(&sink.url(), 5));
    redis.push(b"not an envelope");
    redis::cmd("CONFIG").arg(&["SET", "maxmemory", "1"]).exec(&mut redis.client()).unwrap();
    let _agent = Agent::start(&redis, &["--retry-first", "200ms"]);
    eventually("each is attempted and settled", SOON, || {
        let counts = redis.counts();
        sink.n_requests() >= 5 && counts.dead == 1 && counts.retry + counts.waiting == 5
    });
    sink.behave(|_| Answer::ok());
    eventually_eq("only the dead one is left", SOON, (0, 1), || {
        let counts = redis.counts();
        (counts.messages - counts.dead + counts.queue, counts.dead)
    });
    redis.check_invariant();
}

#[test]
fn a_redis_that_turns_read_only_is_waited_for() {
    let redis = Redis::start();
    let sink = Sink::new(|_| Answer::ok().after(ms(10)));
    redis.push_all(numbered(&sink.url(), 400));
    let mut agent = Agent::start(&redis, &["--workers", "8"]);
    eventually("it is in the middle", SOON, || sink.n_requests() >= 50);
    // A replica of a primary that is not there keeps its data and refuses writes.
    let replica_of = |args: &[&str; 2]| {
        redis::cmd("REPLICAOF").arg(args).exec(&mut redis.client()).unwrap();
    };
    replica_of(&["127.0.0.1", "1"]);
    thread::sleep(OUTAGE);
    assert!(agent.is_running());
    replica_of(&["NO", "ONE"]);
    redis.wait_empty(ms(40_000));
    let copies = sink.copies();
    assert_eq!(copies.len(), 400);
    assert!(copies.values().all(|n| *n == 1), "some arrived twice: {copies:?}");
    assert_said_once(&agent);
}

/// A replica without its master, a master without its replica, a Cluster without the queue's slot: each has a word
/// of its own for it.
#[test]
fn a_redis_that_says_what_it_lacks_is_waited_for_and_said_once() {
    let of_a_replica = Redis::with(&["replica-serve-stale-data no"]);
    let of_a_cluster = Redis::cluster_of("acapy_outbound");
    for (redis, broken, mended, says) in [
        (&of_a_replica, "REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE", "has lost its master"),
        (
            &Redis::start(),
            "CONFIG SET min-replicas-to-write 1",
            "CONFIG SET min-replicas-to-write 0",
            "too few replicas follow it",
        ),
        (&of_a_cluster, "CLUSTER DELSLOTS 7658", "CLUSTER ADDSLOTS 7658", "its Cluster does not work now (CLUSTERDOWN"),
    ] {
        let sink = Sink::new(|_| Answer::ok().after(ms(10)));
        let tell = |command: &str| {
            let mut words = command.split(' ');
            redis::cmd(words.next().unwrap()).arg(words.collect::<Vec<_>>()).exec(&mut redis.client()).unwrap();
        };
        redis.push_all(numbered(&sink.url(), 200));
        let mut agent = Agent::start_at(&redis.url(), &["--queue", &redis.queue_key(), "--workers", "4"]);
        eventually("it is in the middle", SOON, || sink.n_requests() >= 20);
        tell(broken);
        agent.wait_log(says);
        thread::sleep(OUTAGE);
        tell(mended);
        redis.wait_empty(ms(40_000));
        assert_eq!(sink.copies().len(), 200, "{says}");
        assert!(agent.is_running());
        assert_said_once(&agent);
    }
}

#[test]
fn a_redis_that_is_loading_is_waited_for() {
    // It loads half a millisecond a key, and answers LOADING meanwhile.
    let mut redis = Redis::with(&["key-load-delay 500"]);
    let sink = Sink::new(|_| Answer::ok());
    redis.push_all(numbered(&sink.url(), 100));
    let mut filler = redis::pipe();
    for i in 0..6000 {
        filler.cmd("SET").arg(format!("filler {i}")).arg(i).ignore();
    }
    filler.exec(&mut redis.client()).unwrap();
    redis.kill9();
    redis.restart_without_waiting();
    let mut agent = Agent::start_at(&redis.url(), &[]);
    redis.wait_until_ready();
    redis.wait_empty(SOON);
    assert_eq!(sink.n_delivered(), 100);
    assert!(agent.is_running());
    assert!(agent.complaints().len() <= 1, "{:#?}", agent.complaints());
}

#[test]
fn a_redis_that_does_not_answer_for_a_while_loses_and_repeats_nothing() {
    let redis = Redis::start();
    let sink = Sink::new(|_| Answer::ok().after(ms(10)));
    redis.push_all(numbered(&sink.url(), 400));
    let mut agent = Agent::start(&redis, &["--workers", "8"]);
    eventually("it is in the middle", SOON, || sink.n_requests() >= 50);
    redis.pause(3000);
    redis.wait_empty(ms(40_000));
    let copies = sink.copies();
    assert_eq!(copies.len(), 400);
    assert!(copies.values().all(|n| *n == 1), "some arrived twice: {copies:?}");
    assert!(agent.is_running());
}

/// A server that becomes a replica ends the wait with an error and then closes; as the agent had asked for no
/// answer, it sends none and does not close either.
#[test]
fn a_wait_that_a_failover_ends_without_a_word_is_soon_left() {
    let redis = Redis::start();
    let sink = Sink::new(|_| Answer::ok());
    let agent = Agent::start(&redis, &[]);
    redis.push(&envelope(&sink.url(), b"first"));
    eventually_eq("it arrives", SOON, 1, || sink.n_delivered());
    redis.wait_empty(SOON);
    let mut client = redis.client();
    eventually("it waits", SOON, || {
        let clients: String = redis::cmd("CLIENT").arg("LIST").query(&mut client).unwrap();
        clients.contains("cmd=blmove") || clients.contains("cmd=brpoplpush")
    });
    redis::cmd("REPLICAOF").arg(&["127.0.0.1", "1"]).exec(&mut client).unwrap();
    redis::cmd("REPLICAOF").arg(&["NO", "ONE"]).exec(&mut client).unwrap();
    redis.push(&envelope(&sink.url(), b"second"));
    // Of an answer that is listened for five seconds are the patience.
    eventually_eq("it arrives", ms(4500), 2, || sink.n_delivered());
    assert!(!agent.log().contains("no answer"), "{}", agent.log());
}

#[test]
fn connections_that_redis_closes_when_idle_are_not_spoken_of() {
    let redis = Redis::with(&["timeout 1"]);
    let sink = Sink::new(|_| Answer::ok());
    // A beat every two seconds, and nothing else: Redis closes the settler's connection between them.
    let agent = Agent::start(&redis, &["--lease", "6s"]);
    let lease = || -> Vec<String> {
        let range = redis::cmd("ZRANGE").arg(redis.key("agents")).arg(&["0", "-1", "WITHSCORES"]).to_owned();
        range.query(&mut redis.client()).unwrap()
    };
    for _ in 0..4 {
        let before = lease();
        eventually("the lease is renewed", SOON, || lease() != before);
    }
    let refreshed = agent.log().matches("again").count();
    assert_eq!((agent.complaints(), refreshed), (Vec::new(), 0), "{}", agent.log());
    redis.push(&envelope(&sink.url(), b"x"));
    redis.wait_empty(SOON);
}

#[test]
fn frozen_while_it_waits_it_loses_neither_connection_nor_message() {
    for pop in ["peek", "blpop"] {
        let redis = Redis::start();
        let sink = Sink::new(|_| Answer::ok());
        let agent = Agent::start(&redis, &["--pop", pop]);
        for n in 1..=10 {
            eventually("it waits", SOON, || blocked_clients(&redis) == 1);
            agent.freeze();
            redis.push(&envelope(&sink.url(), format!("{n}").as_bytes()));
            agent.thaw();
            eventually_eq("all arrive", SOON, n, || sink.copies().len());
        }
        redis.wait_empty(SOON);
        assert_eq!(agent.complaints(), Vec::<String>::new(), "{pop}");
    }
}

fn blocked_clients(redis: &Redis) -> usize {
    let info: String = redis::cmd("INFO").arg("clients").query(&mut redis.client()).unwrap();
    let blocked = info.lines().find_map(|line| line.strip_prefix("blocked_clients:"));
    blocked.and_then(|blocked| blocked.trim().parse().ok()).expect("a number of blocked clients")
}

#[test]
fn after_a_failover_every_connection_leaves_a_server_that_wraps_its_errors() {
    let (old, new) = (Redis::start(), Redis::start());
    let sink = Sink::new(|_| Answer::ok());
    let follow = |redis: &Redis, of: &[&str]| redis::cmd("REPLICAOF").arg(of).exec(&mut redis.client()).unwrap();
    let of = |redis: &Redis| redis.address().split(':').map(str::to_string).collect::<Vec<_>>();
    follow(&new, &[&of(&old)[0], &of(&old)[1]]);
    eventually("the replica follows", SOON, || {
        let info: String = redis::cmd("INFO").arg("replication").query(&mut new.client()).unwrap();
        info.contains("master_link_status:up")
    });
    // What is under the name of Redis: it leads new connections to the new server, and leaves the old ones.
    let name = Between::start(&old);
    let agent = Agent::start_at(&name.url(), &[]);
    old.push(&envelope(&sink.url(), b"before"));
    eventually("one is delivered", SOON, || sink.n_delivered() == 1);
    old.wait_empty(SOON);
    eventually("the agent is known to the replica", SOON, || new.agents().len() == 1 && new.counts().messages == 0);
    name.lead_to(&new);
    follow(&new, &["NO", "ONE"]);
    follow(&old, &[&of(&new)[0], &of(&new)[1]]);
    new.push_all(numbered(&sink.url(), 5));
    eventually_eq("all are delivered", SOON, 6, || sink.n_delivered());
    // Before 7, what the old one says of being read-only stands inside another error.
    new.wait_empty(SOON);
    let info: String = redis::cmd("INFO").arg("server").query(&mut old.client()).unwrap();
    let wraps_itself = ["5.", "6."].iter().any(|version| info.contains(&format!("redis_version:{version}")));
    assert!(wraps_itself || name.n_wrapped() > 0, "nothing was wrapped: {}", agent.log());
}

#[test]
fn who_is_not_alive_is_not_ready() {
    let redis = Redis::start();
    let name = Between::start(&redis);
    let mut agent = Agent::start_at(&name.url(), &["--status-addr", "127.0.0.1:0", "--lease", "60s"]);
    agent.wait_log("status is served at");
    let log = agent.log();
    let status = log.split("http://").nth(1).and_then(|rest| rest.split("/metrics").next()).unwrap().to_string();
    eventually("it is ready", SOON, || get(&status, "/readyz") == "200 ok");
    // The reader gets its answers byte by byte, each in time; the settler has no trouble at all.
    name.drip();
    eventually("the reader hangs", ms(40_000), || get(&status, "/healthz").starts_with("503 the reader"));
    let ready = get(&status, "/readyz");
    assert!(ready.starts_with("503 the reader has not turned"), "{ready}");
    assert!(agent.is_running());
}

/// Stands before a Redis and speaks as those before version 7 do: the error of a command inside a
/// script is wrapped in one of the script. It can also make the reader's answers drip.
struct Between {
    address: SocketAddr,
    shared: Arc<BetweenShared>,
}

struct BetweenShared {
    target: Mutex<String>,
    n_wrapped: AtomicUsize,
    drips: AtomicBool,
}

impl Between {
    fn start(redis: &Redis) -> Between {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (n_wrapped, drips) = (AtomicUsize::new(0), AtomicBool::new(false));
        let shared = Arc::new(BetweenShared { target: Mutex::new(redis.address()), n_wrapped, drips });
        let served = shared.clone();
        // Its threads end with the connections, and these with the agent; the listener with the process.
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(served.target.lock().unwrap().as_str()) else { continue };
                let (from_client, to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                let (is_reader, served) = (Arc::new(AtomicBool::new(false)), served.clone());
                let seen = is_reader.clone();
                thread::spawn(move || pass_to_server(from_client, to_server, &seen));
                thread::spawn(move || pass_to_client(server, client, &is_reader, &served));
            }
        });
        Between { address, shared }
    }

    fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    fn lead_to(&self, redis: &Redis) {
        *self.shared.target.lock().unwrap() = redis.address();
    }

    fn n_wrapped(&self) -> usize {
        self.shared.n_wrapped.load(Ordering::SeqCst)
    }

    fn drip(&self) {
        self.shared.drips.store(true, Ordering::SeqCst);
    }
}

fn pass_to_server(mut client: TcpStream, mut server: TcpStream, is_reader: &AtomicBool) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(n @ 1..) = client.read(&mut buffer) {
        if buffer[..n].windows(6).any(|word| word == b"BLMOVE") {
            is_reader.store(true, Ordering::SeqCst);
        }
        if server.write_all(&buffer[..n]).is_err() {
            break;
        }
    }
    let _ = server.shutdown(Shutdown::Both);
}

fn pass_to_client(mut server: TcpStream, mut client: TcpStream, is_reader: &AtomicBool, shared: &BetweenShared) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(n @ 1..) = server.read(&mut buffer) {
        let bytes = &buffer[..n];
        if shared.drips.load(Ordering::SeqCst) && is_reader.load(Ordering::SeqCst) {
            // An answer is waited for for five seconds after the last byte.
            for byte in bytes {
                thread::sleep(Duration::from_secs(2));
                if client.write_all(&[*byte]).is_err() {
                    return;
                }
            }
            continue;
        }
        // An error of a script is a whole answer, and answers come one at a time.
        let text = String::from_utf8_lossy(bytes);
        let wrapped = text.strip_prefix("-READONLY ").filter(|rest| rest.contains("script")).map(|rest| {
            shared.n_wrapped.fetch_add(1, Ordering::SeqCst);
            let rest = rest.split(" script:").next().unwrap_or_default().trim_end();
            format!(
                "-ERR Error running script (call to f_0123): @user_script:1: @user_script: 1: -READONLY {rest} \r\n"
            )
        });
        let passed = wrapped.as_deref().map_or(bytes, str::as_bytes);
        if client.write_all(passed).is_err() {
            break;
        }
    }
    let _ = client.shutdown(Shutdown::Both);
}

#[test]
fn a_wrong_password_ends_it_and_is_not_repeated_in_the_log() {
    let redis = Redis::with(&["requirepass the-right-one"]);
    let mut agent = Agent::start_at(&redis.url_with_password("the-wrong-one"), &[]);
    assert_eq!(agent.wait_exit(SOON), Some(1));
    let log = agent.log();
    assert!(log.to_lowercase().contains("password"), "{log}");
    assert!(!log.contains("the-wrong-one"), "the password is in the log: {log}");

    let mut without = Agent::start_at(&format!("redis://{}", redis.address()), &[]);
    assert_eq!(without.wait_exit(SOON), Some(1));
    assert!(without.log().to_lowercase().contains("password"), "{}", without.log());
}

#[test]
fn the_right_password_works_and_is_not_in_the_log() {
    let mut redis = Redis::with(&["requirepass the-right-one"]);
    let sink = Sink::new(|_| Answer::ok());
    let agent = Agent::start(&redis, &[]);
    redis.push(&envelope(&sink.url(), b"x"));
    redis.wait_empty(SOON);
    redis.kill9();
    agent.wait_log(&redis.address());
    redis.restart();
    redis.push(&envelope(&sink.url(), b"y"));
    redis.wait_empty(SOON);
    assert!(!agent.log().contains("the-right-one"), "{}", agent.log());
}

#[test]
fn a_unix_socket_serves_as_well() {
    let redis = Redis::start();
    let sink = Sink::new(|_| Answer::ok());
    redis.push(&envelope(&sink.url(), b"x"));
    let _agent = Agent::start_at(&format!("unix://{}", redis.socket().display()), &[]);
    redis.wait_empty(SOON);
    assert_eq!(sink.n_delivered(), 1);
}

#[test]
fn a_wrong_type_at_a_key_ends_it_and_the_key_is_named() {
    for name in [None, Some("dead"), Some("retry"), Some("messages")] {
        let redis = Redis::start();
        let key = name.map_or_else(|| redis.queue_key(), |name| redis.key(name));
        redis::cmd("SET").arg(&key).arg("not ours").exec(&mut redis.client()).unwrap();
        let mut agent = Agent::start_at(&redis.url(), &[]);
        assert_eq!(agent.wait_exit(SOON), Some(1), "with a string at {key}");
        assert!(agent.log().contains(&key), "{key} is not in: {}", agent.log());
        let kept: String = redis::cmd("GET").arg(&key).query(&mut redis.client()).unwrap();
        assert_eq!(kept, "not ours");
    }
}

#[test]
fn a_missing_permission_ends_it_with_a_message() {
    let redis = Redis::start();
    let user = ["SETUSER", "weak", "on", ">weak-secret", "~*", "+@all", "-eval", "-evalsha"];
    redis::cmd("ACL").arg(&user).exec(&mut redis.client()).unwrap();
    let url = format!("redis://weak:weak-secret@{}", redis.address());
    let mut agent = Agent::start_at(&url, &[]);
    assert_eq!(agent.wait_exit(SOON), Some(1));
    let log = agent.log().to_lowercase();
    assert!(log.contains("permission"), "{log}");
    assert!(!log.contains("weak-secret"), "{log}");
}

#[test]
fn a_redis_that_may_lose_messages_is_warned_about() {
    let redis = Redis::with(&["appendonly no", "maxmemory 50mb", "maxmemory-policy allkeys-lru"]);
    let agent = Agent::start(&redis, &[]);
    agent.wait_log("appendonly");
    agent.wait_log("maxmemory-policy");
}

#[test]
fn what_redis_has_lost_is_attempted_again_if_the_attempt_under_way_fails() {
    let redis = Redis::start();
    let sink = Sink::origins(4, |request| match request.text().as_str() {
        "refused" => Answer::status(410).after(ms(2000)),
        _ => Answer::status(503).after(ms(2000)),
    });
    let agent = Agent::start(&redis, &["--retry-first", "500ms"]);
    let urls = sink.urls();
    redis.push_all(urls[..3].iter().enumerate().map(|(i, url)| envelope(url, format!("message {i}").as_bytes())));
    redis.push(&envelope(&urls[3], b"refused"));
    eventually_eq("all are being attempted", SOON, 4, || sink.n_requests());
    redis::cmd("FLUSHALL").exec(&mut redis.client()).unwrap();
    agent.wait_log("messages that Redis has lost were still held here");
    sink.behave(|_| Answer::ok());
    eventually_eq("they are delivered", SOON, 3, || sink.n_delivered());
    // And the one that ended badly is where one can see it.
    eventually_eq("one is dead", SOON, 1, || redis.counts().dead);
    redis.wait_empty_but_dead(SOON);
    let dead = redis.dead();
    assert_eq!(dead[0].bytes, envelope(&urls[3], b"refused"));
    assert!(dead[0].history.contains("410"), "{}", dead[0].history);
    redis.check_invariant();
}

#[test]
fn whatever_redis_holds_it_does_not_join_without_a_pause() {
    let redis = Redis::start();
    // Beyond what sixteen digits and a double can tell: such a number would never come back as it was given out.
    redis::cmd("SET").arg(redis.key("id")).arg("100000000000000000").exec(&mut redis.client()).unwrap();
    let mut agent = Agent::start_at(&redis.url(), &["--lease", "3s"]);
    let n_moves = || {
        let info: String = redis::cmd("INFO").arg("commandstats").query(&mut redis.client()).unwrap();
        let line = info.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls="));
        line.map_or(0, |line| line.split(',').next().unwrap().parse::<u64>().unwrap())
    };
    eventually("it has spoken with Redis", SOON, || n_moves() > 3);
    let before = n_moves();
    // So long that a few pauses are in it.
    thread::sleep(Duration::from_secs(4));
    let n = n_moves() - before;
    assert!(n < 60, "{n} moves in 4 s");
    assert!(agent.is_running());
    assert!(agent.log().lines().count() < 30, "{}", agent.log());
}
