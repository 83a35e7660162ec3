//! What the machine refuses: file descriptors, threads, an answer about a name, memory for an
//! envelope of any size. Nothing is lost by it, nobody is blamed for it, and it is said once.
//!
//! Some of it needs root (a resolver of one's own, a user of one's own); without, those tests say
//! that they have tested nothing.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use crate::support::wire::{envelope, numbered};
use crate::support::{Agent, Answer, Counts, Redis, SOON, Sink, TempDir, eventually, eventually_eq, ms};

#[test]
fn without_file_descriptors_nothing_is_lost_nobody_is_blamed_and_little_is_said() {
    let redis = Redis::start();
    let n = 60;
    let sink = Sink::origins(n, |_| Answer::ok().after(ms(1_500)));
    for (i, url) in sink.urls().iter().enumerate() {
        redis.push_all((0..3).map(|k| envelope(url, format!("{i} {k}").as_bytes())));
    }
    // Its own files and its connections to Redis take about ten.
    let options = ["--workers", "64", "--retry-first", "200ms", "--retry-max", "1s"];
    let command = under("prlimit", &["--nofile=32"], &redis.url(), &options);
    let mut agent = Agent::spawn(command);
    // 60 want to be attempted at once, and 22 can.
    eventually("some arrive", SOON, || sink.n_requests() > 0);
    eventually("all arrive", ms(60_000), || sink.copies().len() == 3 * n);
    redis.wait_empty(SOON);
    assert!(sink.copies().values().all(|copies| *copies == 1), "some came twice: {:?}", sink.copies());
    assert!(agent.is_running());
    assert!(agent.complaints().len() <= 5, "{:#?}", agent.complaints());
    assert!(agent.complaints().iter().any(|line| line.contains("file")), "{}", agent.log());
}

#[test]
fn an_agent_that_may_not_start_its_threads_says_which_option_and_leaves_all_in_the_queue() {
    let redis = Redis::start();
    let sink = Sink::new(|_| Answer::ok());
    redis.push_all(numbered(&sink.url(), 20));
    let dir = TempDir::new("limits");
    // Root is not limited, so a user of its own; then the binary has to be where that user can read it.
    let mut commands = Vec::new();
    if is_root() {
        let binary = dir.path().join("acapy-deliver");
        fs::copy(Agent::command().get_program(), &binary).unwrap();
        let user = (200_000 + std::process::id()).to_string();
        for limit in ["1", "3", "20"] {
            let (user, group) = (format!("--reuid={user}"), format!("--regid={user}"));
            let limit = format!("--nproc={limit}");
            let args = [&limit, "setpriv", &user, &group, "--clear-groups", binary.to_str().unwrap()];
            let mut command = Command::new("prlimit");
            command.args(args).args(["run", "-oq", &redis.url()]);
            commands.push(command);
        }
    } else {
        commands.push(under("prlimit", &["--nproc=1"], &redis.url(), &[]));
    }
    for (n, command) in commands.into_iter().enumerate() {
        let mut agent = Agent::spawn(command);
        assert_eq!(agent.wait_exit(SOON), Some(1), "limit {n}: {}", agent.log());
        let log = agent.log();
        assert!(log.contains("thread") || log.contains("signals"), "limit {n}: {log}");
        if n == 2 {
            assert!(log.contains("'--workers'") && log.contains("ulimit -u"), "limit {n}: {log}");
        }
        assert_eq!(log.lines().filter(|line| line.starts_with("acapy-deliver: ")).count(), 1, "{log}");
        assert!(!log.contains("panicked"), "{log}");
    }
    let counts = redis.counts();
    assert_eq!(counts.queue + counts.retry, 20, "{counts:?}");
    redis.check_invariant();
    let _agent = Agent::start(&redis, &[]);
    redis.wait_empty(SOON);
    assert_eq!(sink.copies().len(), 20);
}

#[test]
fn a_name_without_an_address_is_waited_for() {
    let Some(names) = Names::start(Says::NoSuchName) else { return };
    let redis = Redis::start();
    let sink = Sink::new(|_| Answer::ok());
    let url = format!("http://recipient.test:{}", sink.address().port());
    redis.push_all(numbered(&url, 10));
    let mut agent = names.agent(&redis, &["--retry-first", "200ms", "--retry-max", "1s"]);
    for says in [Says::NoSuchName, Says::Failure] {
        names.say(says);
        let n = names.n_asked();
        eventually("the name is asked for again", SOON, || names.n_asked() > n + 2);
        let counts = redis.counts();
        assert_eq!((counts.dead, counts.queue + counts.messages), (0, 10), "{counts:?}");
    }
    names.say(Says::Address(v4(&sink)));
    redis.wait_empty(SOON);
    assert_eq!(sink.n_delivered(), 10);
    assert!(agent.is_running());
    assert!(agent.complaints().len() <= 2, "{:#?}", agent.complaints());
}

#[test]
fn a_resolver_that_does_not_answer_holds_up_nobody_else() {
    let Some(names) = Names::start(Says::Nothing) else { return };
    let redis = Redis::start();
    let unreachable = Sink::new(|_| Answer::ok());
    let healthy = Sink::origins(4, |_| Answer::ok());
    for i in 0..40 {
        let url = format!("http://recipient-{i}.test:{}", unreachable.address().port());
        redis.push_all(numbered(&url, 5));
    }
    let options = ["--workers", "16", "--timeout", "2s", "--connect-timeout", "1s", "--retry-max", "5s"];
    let mut agent = names.agent(&redis, &options);
    eventually("a name is asked for", SOON, || names.n_asked() > 0);
    for url in healthy.urls() {
        redis.push_all(numbered(&url, 100));
    }
    eventually_eq("the others' messages arrive", SOON, 400, || healthy.n_delivered());
    assert_eq!(unreachable.n_requests(), 0);
    names.say(Says::Address(v4(&unreachable)));
    redis.wait_empty(ms(60_000));
    // An attempt whose time was spent on the name may end before the answer to it: then it comes twice.
    let (bodies, delivered) = (unreachable.copies().len(), unreachable.n_delivered());
    assert!(bodies == 5 && (200..220).contains(&delivered), "{bodies} bodies, {delivered} deliveries");
    assert!(agent.is_running());
}

#[test]
fn a_name_that_changes_its_address_is_followed() {
    let Some(names) = Names::start(Says::Nothing) else { return };
    let redis = Redis::start();
    let mut old = Sink::new(|_| Answer::ok());
    names.say(Says::Address(v4(&old)));
    // The new one has the old one's port at another address.
    let new_address = Ipv4Addr::from(u32::from(v4(&old)) ^ 0x0020_0000);
    let url = format!("http://recipient.test:{}", old.address().port());
    let _agent = names.agent(&redis, &["--retry-first", "200ms", "--retry-max", "2s", "--connect-timeout", "1s"]);
    redis.push(&envelope(&url, b"to the old address"));
    redis.wait_empty(SOON);
    assert_eq!(old.n_delivered(), 1);
    old.stop();
    let new = Sink::at(new_address, old.address().port(), |_| Answer::ok());
    names.say(Says::Address(new_address));
    redis.push(&envelope(&url, b"to the new address"));
    // An answer about a name is used for half a minute.
    redis.wait_empty(ms(60_000));
    assert_eq!(new.copies().get("to the new address"), Some(&1));
}

#[test]
fn a_name_that_stands_for_a_refused_address_for_a_while_costs_no_message() {
    let names = Names::start(Says::Nothing).expect("this test needs root, for a name server of its own");
    let redis = Redis::start();
    let sink = Sink::new(|_| Answer::ok());
    let denied = Ipv4Addr::from(u32::from(v4(&sink)) ^ 0x0020_0000);
    names.say(Says::Address(denied));
    let url = format!("http://recipient.test:{}", sink.address().port());
    redis.push_all(numbered(&url, 10));
    // A literal stays what it is: nothing else is to be hoped for.
    redis.push(&envelope(&format!("http://{denied}/"), b"literal"));
    let denied = denied.to_string();
    let mut agent = names.agent(&redis, &["--deny-net", &denied, "--retry-first", "200ms", "--retry-max", "1s"]);
    eventually_eq("the literal one is dead", SOON, 1, || redis.counts().dead);
    eventually("the others are attempted", SOON, || redis.put_off().iter().any(|held| !held.history.is_empty()));
    for held in redis.put_off().iter().filter(|held| !held.history.is_empty()) {
        assert!(held.history.contains(&format!("recipient.test: address {denied}")), "{}", held.history);
        assert!(held.history.contains(&format!("'--deny-net {denied}'")), "{}", held.history);
    }
    names.say(Says::Address(v4(&sink)));
    // An answer about a name is used for half a minute.
    eventually_eq("all others arrive", ms(60_000), 10, || sink.n_delivered());
    assert_eq!(redis.counts().dead, 1);
    assert!(agent.is_running());
}

#[test]
fn a_name_that_stands_for_a_refused_address_is_given_up_like_one_that_never_answers() {
    let names = Names::start(Says::Address(Ipv4Addr::LOCALHOST)).expect("this test needs root, for a name server");
    let redis = Redis::start();
    redis.push(&envelope("http://recipient.test/", b"x"));
    let options = ["--deny-net", "loopback", "--retry-first", "200ms", "--retry-max", "400ms", "--give-up-after", "1s"];
    let _agent = names.agent(&redis, &options);
    eventually_eq("it is dead", SOON, 1, || redis.counts().dead);
    let reason = redis.dead()[0].history.clone();
    for part in ["gave up after 1s", "address 127.0.0.1", "'--deny-net loopback'"] {
        assert!(reason.contains(part), "{part} is not in {reason}");
    }
}

/// In a machine's memory an envelope is copied by Redis, its scripts and its replies, and by the
/// test; this size is above the agent's bound and below what hurts.
const OVERSIZED: usize = 100 << 20;

#[test]
fn an_envelope_larger_than_the_bound_is_dead_with_the_limit_named_and_its_bytes_kept() {
    oversized(OVERSIZED, 150 << 10);
}

#[test]
#[ignore = "takes 4 GB of memory"]
fn the_largest_value_that_redis_can_hold_is_dead_with_the_limit_named_and_its_bytes_kept() {
    // A value of a push is at most 512 MB.
    oversized((512 << 20) - 200, 150 << 10);
}

/// Pushes one of this many bytes among others, before the agent starts and while it waits; the
/// agent grows to no more than `most_kib`.
fn oversized(size: usize, most_kib: u64) {
    let redis = Redis::start();
    let sink = Sink::new(|_| Answer::ok());
    let large = envelope(&sink.url(), &vec![b'x'; size - 200]);
    redis.push_all(numbered(&sink.url(), 10));
    redis.push(&large);
    redis.push_all(numbered(&sink.url(), 10));
    let mut agent = Agent::start(&redis, &[]);
    eventually_eq("the others are delivered", SOON * 3, 20, || sink.n_delivered());
    eventually_eq("it is dead", SOON * 3, Counts { dead: 1, messages: 1, ..Counts::default() }, || redis.counts());
    let dead = redis.dead();
    assert!(dead[0].bytes == large, "its bytes are not what was pushed");
    assert!(dead[0].history.contains("in-flight-bytes"), "{}", dead[0].history);
    let before = agent.peak_kib();
    assert!(before <= most_kib, "it grew to {before} KiB");

    // While it waits, Redis shows it the value that woke it.
    redis.push(&large);
    eventually_eq("both are dead", SOON * 3, 2, || redis.counts().dead);
    redis.push_all(numbered(&sink.url(), 10));
    eventually_eq("more is delivered", SOON * 3, 30, || sink.n_delivered());
    assert!(agent.is_running());
    let after = agent.peak_kib();
    assert!(after <= most_kib, "woken by it, it grew to {after} KiB");
    assert!(agent.complaints().len() <= 4, "{:#?}", agent.complaints());
}

#[test]
fn an_envelope_just_under_the_bound_is_delivered() {
    let redis = Redis::start();
    let sink = Sink::new(|_| Answer::ok());
    let payload = vec![b'x'; 30 << 20];
    redis.push_all(numbered(&sink.url(), 5));
    redis.push_all([envelope(&sink.url(), &payload), envelope(&sink.url(), &payload)]);
    redis.push_all(numbered(&sink.url(), 5));
    let agent = Agent::start(&redis, &["--in-flight-bytes", "31MiB"]);
    redis.wait_empty(SOON * 3);
    assert_eq!((sink.n_delivered(), sink.copies().len()), (12, 6));
    assert!(agent.peak_kib() < 160 << 10, "it grew to {} KiB", agent.peak_kib());
}

/// The agent on this Redis, started by another program.
fn under(program: &str, args: &[&str], redis: &str, options: &[&str]) -> Command {
    let agent = Agent::command();
    let mut command = Command::new(program);
    command.args(args).arg(agent.get_program()).args(["run", "-oq", redis]).args(options);
    for (name, _) in agent.get_envs() {
        command.env_remove(name);
    }
    command
}

fn is_root() -> bool {
    let own = fs::metadata("/proc/self").expect("/proc is there");
    std::os::unix::fs::MetadataExt::uid(&own) == 0
}

/// What the name server says about every name.
#[derive(Clone, Copy)]
enum Says {
    Address(Ipv4Addr),
    NoSuchName,
    Failure,
    /// It does not answer.
    Nothing,
}

/// A name server of the test's own, which the agents that it starts ask, and nobody else.
struct Names {
    address: Ipv4Addr,
    dir: TempDir,
    says: Arc<Mutex<Says>>,
    n_asked: Arc<AtomicU32>,
    ended: Arc<AtomicBool>,
    server: Option<JoinHandle<()>>,
}

impl Names {
    /// `None`, and a word about it, where that cannot be: it takes port 53 and a mount of one's own.
    fn start(says: Says) -> Option<Names> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let address = Ipv4Addr::from(0x7f40_0000 | (std::process::id() & 0xffff) << 6 | n & 0x3f);
        let can_mount = Command::new("unshare").args(["--mount", "true"]).status();
        let socket = UdpSocket::bind((address, 53));
        let (true, Ok(socket)) = (can_mount.is_ok_and(|status| status.success()), socket) else {
            eprintln!("not tested: a name server of one's own needs root");
            return None;
        };
        let dir = TempDir::new("names");
        let conf = format!("nameserver {address}\noptions timeout:1 attempts:2\n");
        fs::write(dir.path().join("resolv.conf"), conf).unwrap();
        let says = Arc::new(Mutex::new(says));
        let (n_asked, ended) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicBool::new(false)));
        socket.set_read_timeout(Some(ms(100))).unwrap();
        let server = {
            let (says, n_asked, ended) = (says.clone(), n_asked.clone(), ended.clone());
            thread::spawn(move || {
                while !ended.load(Ordering::SeqCst) {
                    let mut question = [0; 512];
                    let Ok((n, from)) = socket.recv_from(&mut question) else { continue };
                    n_asked.fetch_add(1, Ordering::SeqCst);
                    let says = *says.lock().unwrap();
                    if let Some(answer) = answer_about(&question[..n], says) {
                        let _ = socket.send_to(&answer, from);
                    }
                }
            })
        };
        Some(Names { address, dir, says, n_asked, ended, server: Some(server) })
    }

    fn say(&self, says: Says) {
        *self.says.lock().unwrap() = says;
    }

    fn n_asked(&self) -> u32 {
        self.n_asked.load(Ordering::SeqCst)
    }

    /// An agent that asks this server.
    fn agent(&self, redis: &Redis, options: &[&str]) -> Agent {
        let mount = "mount --bind \"$1\" /etc/resolv.conf && shift && exec \"$@\"";
        let conf = self.dir.path().join("resolv.conf");
        let args = ["--mount", "--propagation", "private", "sh", "-c", mount, "sh", path(&conf)];
        let mut agent = Agent::spawn(under("unshare", &args, &redis.url(), options));
        eventually("the agent registers in Redis", SOON, || {
            assert!(agent.is_running(), "the agent on the name server {} ended: {}", self.address, agent.log());
            !redis.agents().is_empty()
        });
        agent
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}

fn v4(sink: &Sink) -> Ipv4Addr {
    match sink.address().ip() {
        IpAddr::V4(address) => address,
        IpAddr::V6(address) => panic!("a sink at {address}"),
    }
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a path of letters")
}

/// One answer of DNS to a question; an address for A, none for anything else.
fn answer_about(question: &[u8], says: Says) -> Option<Vec<u8>> {
    let end_of_name = 12 + question.get(12..)?.iter().position(|byte| *byte == 0)? + 1;
    let is_a = question.get(end_of_name..end_of_name + 2)? == [0, 1];
    let (code, address) = match says {
        Says::Nothing => return None,
        Says::NoSuchName => (3, None),
        Says::Failure => (2, None),
        Says::Address(address) => (0, Some(address).filter(|_| is_a)),
    };
    let mut answer = question[..2].to_vec();
    // A response, recursion wanted and had; one question, perhaps one answer.
    answer.extend([0x81, 0x80 | code, 0, 1, 0, u8::from(address.is_some()), 0, 0, 0, 0]);
    answer.extend(question.get(12..end_of_name + 4)?);
    if let Some(address) = address {
        // The name as in the question, A, IN, for no time at all, four bytes.
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        answer.extend(address.octets());
    }
    Some(answer)
}
