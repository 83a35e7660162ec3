//! What the machine refuses: file descriptors, threads, an answer about a name, memory for an
//! envelope of any size. Nothing is lost by it, nobody is blamed for it, and it is said once.
//!
//! Some of it needs root (a resolver of one's own, a user of one's own); without, those tests fail
//! and say so, or test what is possible.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Instant;

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
    let names = Names::start(Says::NoSuchName);
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
    let names = Names::start(Says::Nothing);
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
    let names = Names::start(Says::Nothing);
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
    let names = Names::start(Says::Nothing);
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
    let names = Names::start(Says::Address(Ipv4Addr::LOCALHOST));
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

#[test]
fn names_of_one_domain_that_nobody_answers_about_leave_look_ups_for_new_ones() {
    silent_names_leave_look_ups_for_new_ones(".hole.test");
}

#[test]
fn names_of_many_domains_that_nobody_answers_about_leave_look_ups_for_new_ones() {
    silent_names_leave_look_ups_for_new_ones("-hole.test");
}

/// The silent names are a number and this.
fn silent_names_leave_look_ups_for_new_ones(suffix: &str) {
    // As resolvers are set up: each such name keeps its look-up busy for a minute and a half.
    let conf = "search one.invalid two.invalid";
    let names = Names::start_some(3, conf, Says::Nothing);
    let redis = Redis::start();
    let sink = Sink::new(|_| Answer::ok());
    names.say(Says::Holes(v4(&sink)));
    let port = sink.address().port();
    redis.push_all((0..2_000).map(|i| envelope(&format!("http://{i}{suffix}:{port}/"), b"hole")));
    let mut agent = names.agent(&redis, &["--workers", "512"]);
    // They come all the time that the first two hundred attempts at silent names take.
    let n_newcomers = 90;
    let mut pushed = Vec::new();
    for i in 0..n_newcomers {
        eventually("more silent names are asked for", SOON, || names.n_asked() > 3 * i);
        redis.push(&envelope(&format!("http://{i}.newcomer.test:{port}/{i}"), b"newcomer"));
        pushed.push(Instant::now());
        thread::sleep(ms(200));
    }
    eventually_eq("all newcomers are delivered", SOON, n_newcomers as usize, || sink.n_delivered());
    let delays = sink.requests().into_iter().map(|request| {
        let i: usize = request.target.trim_start_matches('/').parse().expect("a newcomer's number");
        request.at.saturating_duration_since(pushed[i])
    });
    let longest = delays.max().expect("newcomers were delivered");
    eprintln!("the slowest newcomer was delivered after {longest:?}");
    assert!(longest < SOON, "{longest:?}");
    assert!(agent.is_running());
}

#[test]
fn names_with_thousands_of_addresses_cost_no_more_memory_the_more_they_are() {
    let nowhere = Ipv4Addr::new(127, 33, 0, 1);
    let names = Names::start(Says::Many(nowhere, 4_000));
    let redis = Redis::start();
    // On a busy machine a look-up that takes long is no other error, which would be tried again only in a minute.
    let agent = names.agent(&redis, &["--retry-first", "60s", "--connect-timeout", "60s", "--timeout", "90s"]);
    let grown_to = |n: usize| {
        let n_before = redis.counts().messages;
        redis.push_all((n_before..n).map(|i| envelope(&format!("http://{i}.test:9/"), b"x")));
        // Beside other tests each of 700 look-ups parses 4,000 addresses for a while.
        eventually("all are put off for the addresses' sake", ms(300_000), || {
            thread::sleep(ms(200));
            redis.put_off().iter().filter(|held| held.history.contains("127.33.")).count() == n
        });
        agent.resident_kib()
    };
    // What the system's own resolver takes for an answer while a look-up lasts is in the first; on a busy machine
    // more of these are beside each other later. Kept whole, 500 answers would be 34 MB.
    let (few, many) = (grown_to(200), grown_to(700));
    eprintln!("200 names with 4,000 addresses each: {few} KiB, 700: {many} KiB");
    assert!(many < few + (22 << 10), "it grew from {few} to {many} KiB");
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
    /// This address about names without "hole" in them; about the others it does not answer.
    Holes(Ipv4Addr),
    /// So many addresses from this one on, which takes an answer over TCP.
    Many(Ipv4Addr, u16),
}

/// Name servers of the test's own, which the agents that it starts ask, and nobody else.
struct Names {
    addresses: Vec<Ipv4Addr>,
    dir: TempDir,
    says: Arc<Mutex<Says>>,
    n_asked: Arc<AtomicU32>,
    ended: Arc<AtomicBool>,
    servers: Vec<JoinHandle<()>>,
}

impl Names {
    /// It takes port 53 and a mount of one's own.
    fn start(says: Says) -> Names {
        Names::start_some(1, "options timeout:1 attempts:2", says)
    }

    /// So many servers that say the same, and further lines of the resolver's configuration.
    fn start_some(n_servers: usize, conf: &str, says: Says) -> Names {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let mut servers = Vec::new();
        let (said, n_asked, ended) =
            (Arc::new(Mutex::new(says)), Arc::new(AtomicU32::new(0)), Arc::new(AtomicBool::new(false)));
        let can_mount = Command::new("unshare").args(["--mount", "true"]).status();
        let mut addresses = Vec::new();
        for _ in 0..n_servers {
            let n = NEXT.fetch_add(1, Ordering::Relaxed);
            let address = Ipv4Addr::from(0x7f40_0000 | (std::process::id() & 0xffff) << 6 | n & 0x3f);
            let sockets = (UdpSocket::bind((address, 53)), TcpListener::bind((address, 53)));
            let (Ok(true), (Ok(socket), Ok(listener))) = (can_mount.as_ref().map(ExitStatus::success), sockets) else {
                panic!("a name server of one's own at {address}:53, and a mount of one's own for it, need root");
            };
            addresses.push(address);
            socket.set_read_timeout(Some(ms(100))).unwrap();
            let (says, asked, at_end) = (said.clone(), n_asked.clone(), ended.clone());
            servers.push(thread::spawn(move || {
                while !at_end.load(Ordering::SeqCst) {
                    let mut question = [0; 512];
                    let Ok((n, from)) = socket.recv_from(&mut question) else { continue };
                    asked.fetch_add(1, Ordering::SeqCst);
                    let says = *says.lock().unwrap();
                    if let Some(answer) = answer_about(&question[..n], says, false) {
                        let _ = socket.send_to(&answer, from);
                    }
                }
            }));
            let (says, at_end) = (said.clone(), ended.clone());
            servers.push(thread::spawn(move || {
                for stream in listener.incoming() {
                    if at_end.load(Ordering::SeqCst) {
                        return;
                    }
                    let says = *says.lock().unwrap();
                    let _ = stream.and_then(|stream| answer_over_tcp(stream, says));
                }
            }));
        }
        let dir = TempDir::new("names");
        let lines: String = addresses.iter().map(|address| format!("nameserver {address}\n")).collect();
        fs::write(dir.path().join("resolv.conf"), format!("{lines}{conf}\n")).unwrap();
        Names { addresses, dir, says: said, n_asked, ended, servers }
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
            assert!(agent.is_running(), "the agent on the name servers {:?} ended: {}", self.addresses, agent.log());
            !redis.agents().is_empty()
        });
        agent
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        for address in &self.addresses {
            // It waits for a connection: so it gets one.
            let _ = TcpStream::connect((*address, 53));
        }
        for server in self.servers.drain(..) {
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

/// One answer of DNS to a question; addresses for A, none for anything else. What is too long for
/// a packet is said over TCP.
fn answer_about(question: &[u8], says: Says, over_tcp: bool) -> Option<Vec<u8>> {
    let end_of_name = 12 + question.get(12..)?.iter().position(|byte| *byte == 0)? + 1;
    let is_a = question.get(end_of_name..end_of_name + 2)? == [0, 1];
    let is_hole = question[12..end_of_name].windows(4).any(|part| part == b"hole");
    let (code, address, n) = match says {
        Says::Nothing => return None,
        Says::Holes(_) if is_hole => return None,
        Says::NoSuchName => (3, Ipv4Addr::UNSPECIFIED, 0),
        Says::Failure => (2, Ipv4Addr::UNSPECIFIED, 0),
        Says::Address(address) | Says::Holes(address) => (0, address, 1),
        Says::Many(address, n) => (0, address, n),
    };
    let is_cut = is_a && n > 1 && !over_tcp;
    let n = if is_a && !is_cut { n } else { 0 };
    let mut answer = question[..2].to_vec();
    // A response, perhaps cut, recursion wanted and had; one question, so many answers.
    answer.extend([0x81 | u8::from(is_cut) << 1, 0x80 | code, 0, 1]);
    answer.extend(n.to_be_bytes());
    answer.extend([0, 0, 0, 0]);
    answer.extend(question.get(12..end_of_name + 4)?);
    for i in 0..n {
        // The name as in the question, A, IN, for no time at all, four bytes.
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        answer.extend(Ipv4Addr::from(u32::from(address) + u32::from(i)).octets());
    }
    Some(answer)
}

/// The same over TCP, where a length goes before each message, until the asker closes.
fn answer_over_tcp(mut stream: TcpStream, says: Says) -> std::io::Result<()> {
    loop {
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut question)?;
        let answer = answer_about(&question, says, true).expect("only what has an answer is asked over TCP");
        stream.write_all(&u16::try_from(answer.len()).expect("an answer of DNS").to_be_bytes())?;
        stream.write_all(&answer)?;
    }
}

#[test]
fn what_redis_reads_for_a_claim_is_bounded_however_large_the_messages_are() {
    const LARGE: usize = 8 << 20;
    let redis = Redis::start();
    let sink = Sink::new(|_| Answer::Hang);
    let mut client = redis.client();
    let mut memory = |field: &str| -> usize {
        let info: String = redis::cmd("INFO").arg("memory").query(&mut client).unwrap();
        let line = info.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).expect("Redis says so");
        line.trim().parse().unwrap()
    };
    // Twenty small ones let the pages of a claim grow as far as they do; then come the large ones.
    redis.push_all(numbered(&sink.url(), 20));
    for _ in 0..16 {
        redis.push(&envelope(&sink.url(), &vec![b'x'; LARGE]));
    }
    let before = memory("used_memory");
    let _agent = Agent::start(&redis, &["--in-flight-bytes", "8MiB"]);
    eventually("some of them are claimed", SOON, || redis.counts().inflight > 20);
    let peak = memory("used_memory_peak");
    // A page of four, each once in Lua and once on its way; a page of sixteen was 128 MiB and more.
    let grown = peak.saturating_sub(before) / LARGE;
    assert!(grown <= 10, "a claim made Redis grow by {grown} messages");
}
