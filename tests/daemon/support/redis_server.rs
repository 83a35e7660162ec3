//! A private redis-server: on a loopback address of its own, with a directory of its own, writing
//! each command to disk before it answers, so that a `kill -9` loses nothing that was confirmed.
//! Names the keys as the design does, reads them in one step, and checks the invariant over them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use std::{fs, thread};

use super::{TempDir, eventually_eq, own_address};

/// The queue that the agent serves unless told otherwise.
const QUEUE: &str = "acapy.outbound_transport";

/// A redis-server of one test.
pub struct Redis {
    dir: TempDir,
    address: Ipv4Addr,
    port: u16,
    password: Option<String>,
    /// The queue's key.
    queue: String,
    /// Where it reads by how much its clock is wrong; `None`: it has the machine's.
    clock: Option<PathBuf>,
    server: Option<Child>,
}

/// How many messages are where.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Counts {
    pub queue: usize,
    pub inflight: usize,
    pub waiting: usize,
    pub retry: usize,
    pub dead: usize,
    pub messages: usize,
}

/// A message that the agent holds in Redis, dead or put off.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Held {
    pub id: String,
    pub bytes: Vec<u8>,
    /// The record of attempts and errors, as text where it is text.
    pub history: String,
}

impl Held {
    /// Whether its envelope names this endpoint.
    pub fn is_for(&self, url: &str) -> bool {
        self.bytes.windows(url.len()).any(|window| window == url.as_bytes())
    }
}

impl Redis {
    pub fn start() -> Redis {
        Redis::with(&[])
    }

    /// With further lines of configuration, such as `rename-command BLMOVE ""`, `maxmemory 3mb`,
    /// `appendonly no`, `requirepass secret` (then `url` holds the password).
    pub fn with(configuration: &[&str]) -> Redis {
        Redis::begin(configuration, false)
    }

    /// With a clock of its own, ahead of the machine's by so much, as `faketime` writes it: `+8d`.
    #[allow(dead_code)] // The torture shares these fixtures.
    pub fn with_clock(ahead: &str) -> Redis {
        let mut redis = Redis::begin(&[], true);
        redis.set_clock(ahead);
        redis
    }

    /// With further lines of configuration, and a clock of its own that is right at first.
    #[allow(dead_code)] // As above.
    pub fn with_own_clock(configuration: &[&str]) -> Redis {
        Redis::begin(configuration, true)
    }

    /// Sets its clock anew.
    #[allow(dead_code)] // As above.
    pub fn set_clock(&mut self, ahead: &str) {
        let clock = self.clock.as_ref().expect("it has a clock of its own");
        // In one step: it reads the file at any moment.
        let new = clock.with_extension("new");
        fs::write(&new, format!("{ahead}\n")).unwrap();
        fs::rename(&new, clock).unwrap();
    }

    /// For a queue of this key.
    #[allow(dead_code)] // As above.
    pub fn of(queue: &str) -> Redis {
        let mut redis = Redis::start();
        redis.queue = queue.to_string();
        redis
    }

    /// The same, as a Redis Cluster of one node, which refuses what names keys of several slots.
    #[allow(dead_code)] // As above.
    pub fn cluster_of(queue: &str) -> Redis {
        let mut redis = Redis::with(&["cluster-enabled yes"]);
        redis.queue = queue.to_string();
        let mut client = redis.client();
        let slots: Vec<u16> = (0..16384).collect();
        redis::cmd("CLUSTER").arg("ADDSLOTS").arg(slots).exec(&mut client).unwrap();
        super::eventually("the Cluster is up", super::SOON, || {
            let info: String = redis::cmd("CLUSTER").arg("INFO").query(&mut client).unwrap();
            info.contains("cluster_state:ok")
        });
        redis
    }

    /// For a queue of this key, with further lines of configuration.
    #[allow(dead_code)] // As above.
    pub fn of_with(queue: &str, configuration: &[&str]) -> Redis {
        let mut redis = Redis::with(configuration);
        redis.queue = queue.to_string();
        redis
    }

    fn begin(configuration: &[&str], own_clock: bool) -> Redis {
        let dir = TempDir::new("redis");
        let address = own_address();
        let port = free_port(address);
        let lines = [
            format!("bind {address}"),
            format!("port {port}"),
            format!("dir {}", dir.path().display()),
            format!("unixsocket {}", dir.path().join("redis.sock").display()),
            "appendonly yes".into(),
            "appendfsync always".into(),
            // Nothing here is worth a snapshot, and a child process would outlive a kill.
            "save \"\"".into(),
            "logfile redis.log".into(),
            // What the others of a Cluster see of its connections is 127.0.0.1.
            format!("cluster-announce-ip {address}"),
            format!("replica-announce-ip {address}"),
        ];
        // By which cuts between servers tell one from another; others than 127.0.0.1 count as strangers.
        let own_source = [format!("bind-source-addr {address}"), "protected-mode no".to_string()];
        let own_source = own_source.into_iter().filter(|_| version() >= (7, 0));
        let lines = lines.into_iter().chain(own_source).collect::<Vec<_>>();
        // A server that has no BLMOVE need not be told to forget it, and would not start.
        let is_known = |line: &&str| !line.contains("BLMOVE") || version() >= (6, 2);
        let lines = lines.iter().map(String::as_str).chain(configuration.iter().copied().filter(is_known));
        let lines = lines.collect::<Vec<_>>().join("\n");
        fs::write(dir.path().join("redis.conf"), lines + "\n").unwrap();
        let password = configuration.iter().find_map(|line| line.strip_prefix("requirepass "));
        let password = password.map(str::to_string);
        let clock = own_clock.then(|| dir.path().join("clock"));
        if let Some(clock) = &clock {
            fs::write(clock, "+0\n").unwrap();
        }
        let mut redis = Redis { dir, address, port, password, queue: QUEUE.to_string(), clock, server: None };
        redis.restart();
        redis
    }

    /// Starts the server again, in its directory and on its port, and waits until it answers.
    pub fn restart(&mut self) {
        self.restart_without_waiting();
        self.wait_until_ready();
    }

    /// The same, for those who want to see it load.
    pub fn restart_without_waiting(&mut self) {
        assert!(self.server.is_none(), "this redis-server runs already");
        let mut command = Command::new("redis-server");
        if let Some(clock) = &self.clock {
            // The monotonic clock stays: it is what a step of the wall clock leaves alone.
            command.env("LD_PRELOAD", faketime()).env("FAKETIME_TIMESTAMP_FILE", clock);
            command.env("FAKETIME_NO_CACHE", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
            command.env("DONT_FAKE_MONOTONIC", "1");
        }
        let server = command
            .arg(self.dir.path().join("redis.conf"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.server = Some(server.unwrap_or_else(|error| {
            panic!(
                "cannot start redis-server, which these tests need ({error}): \
                 run scripts/test, which installs it, or `apt-get install redis-server`"
            )
        }));
    }

    /// Whether it answers and has loaded its data.
    #[allow(dead_code)] // As above.
    pub fn is_ready(&self) -> bool {
        self.try_client().and_then(|mut c| redis::cmd("PING").exec(&mut c)).is_ok()
    }

    /// Waits until it answers and has loaded its data.
    pub fn wait_until_ready(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let answer = self.try_client().and_then(|mut c| redis::cmd("PING").exec(&mut c));
            let Err(error) = answer else { return };
            let ended = self.server.as_mut().and_then(|server| server.try_wait().unwrap());
            if ended.is_some() || Instant::now() > deadline {
                panic!("redis-server does not start: {error}; ended: {ended:?}\n{}", self.log());
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends it without a word.
    pub fn kill9(&mut self) {
        let mut server = self.server.take().expect("this redis-server runs");
        server.kill().unwrap();
        server.wait().unwrap();
    }

    /// Kills it and starts it on another port of its address, with all that it had.
    #[allow(dead_code)] // As above.
    pub fn restart_on_another_port(&mut self) {
        self.kill9();
        let file = self.dir.path().join("redis.conf");
        let lines = fs::read_to_string(&file).unwrap();
        let before = format!("\nport {}\n", self.port);
        self.port += 1;
        fs::write(&file, lines.replace(&before, &format!("\nport {}\n", self.port))).unwrap();
        self.restart();
    }

    /// Whether it has not been killed.
    #[allow(dead_code)] // As above.
    pub fn is_running(&self) -> bool {
        self.server.is_some()
    }

    /// SIGSTOP: it takes connections and answers nothing until `thaw`.
    #[allow(dead_code)] // As above.
    pub fn freeze(&self) {
        self.signal("STOP");
    }

    #[allow(dead_code)] // As above.
    pub fn thaw(&self) {
        self.signal("CONT");
    }

    fn signal(&self, name: &str) {
        // The shell's own `kill`, since the tests hold no unsafe code.
        let kill = format!("kill -s {name} {}", self.server.as_ref().expect("this redis-server runs").id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    /// Leaves every command of every client unanswered for a while.
    pub fn pause(&self, milliseconds: u64) {
        let mut client = self.client();
        let mut pause = redis::cmd("CLIENT");
        pause.arg("PAUSE").arg(milliseconds);
        if version() >= (6, 2) {
            pause.arg("ALL");
        }
        pause.exec(&mut client).unwrap();
    }

    /// Where it is, with the password if there is one.
    pub fn url(&self) -> String {
        let user = self.password.as_ref().map_or(String::new(), |password| format!(":{password}@"));
        format!("redis://{user}{}:{}", self.address, self.port)
    }

    /// The same with another password.
    pub fn url_with_password(&self, password: &str) -> String {
        format!("redis://:{password}@{}:{}", self.address, self.port)
    }

    /// `127.x.y.z:port`.
    pub fn address(&self) -> String {
        format!("{}:{}", self.address, self.port)
    }

    /// `127.x.y.z`.
    #[allow(dead_code)] // As above.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Its unix socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("redis.sock")
    }

    /// A new connection.
    pub fn client(&self) -> redis::Connection {
        self.try_client().unwrap_or_else(|error| panic!("no connection to {}: {error}", self.address()))
    }

    pub fn try_client(&self) -> redis::RedisResult<redis::Connection> {
        redis::Client::open(self.url())?.get_connection()
    }

    /// The key that ACA-Py pushes to.
    pub fn queue_key(&self) -> String {
        self.queue.clone()
    }

    /// One of the agent's keys, such as `messages`.
    pub fn key(&self, name: &str) -> String {
        format!("{{{}}}:{name}", self.queue)
    }

    /// Appends one message, as ACA-Py does.
    pub fn push(&self, bytes: &[u8]) {
        self.push_all([bytes]);
    }

    /// Appends messages, one command each.
    pub fn push_all<B: AsRef<[u8]>>(&self, messages: impl IntoIterator<Item = B>) {
        let mut pipe = redis::pipe();
        for bytes in messages {
            pipe.cmd("RPUSH").arg(self.queue_key()).arg(bytes.as_ref()).ignore();
        }
        if !pipe.is_empty() {
            pipe.exec(&mut self.client()).unwrap();
        }
    }

    /// How many messages are where, seen in one step.
    pub fn counts(&self) -> Counts {
        let until = Instant::now() + super::SOON;
        loop {
            match self.try_counts() {
                Ok(counts) => return counts,
                // It was just started.
                Err(error)
                    if error.kind() == redis::ErrorKind::Server(redis::ServerErrorKind::BusyLoading)
                        && Instant::now() < until =>
                {
                    thread::sleep(Duration::from_millis(20));
                }
                Err(error) => panic!("cannot count at {}: {error}", self.address()),
            }
        }
    }

    fn try_counts(&self) -> redis::RedisResult<Counts> {
        let mut read = Reading::default();
        read.also("LLEN", self.queue_key(), &[]);
        for name in ["inflight", "waiting", "retry", "dead"] {
            read.also("ZCARD", self.key(name), &[]);
        }
        read.also("HLEN", self.key("messages"), &[]);
        let [queue, inflight, waiting, retry, dead, messages] = read.query(&mut self.try_client()?)?;
        Ok(Counts { queue, inflight, waiting, retry, dead, messages })
    }

    /// What a section of INFO says of this.
    #[allow(dead_code)] // As above.
    pub fn info(&self, section: &str, field: &str) -> redis::RedisResult<String> {
        let info: String = redis::cmd("INFO").arg(section).query(&mut self.try_client()?)?;
        let found = info.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        Ok(found.unwrap_or_default().trim().to_string())
    }

    /// Waits until every message has gone.
    #[track_caller]
    pub fn wait_empty(&self, timeout: Duration) {
        eventually_eq("all messages are gone from Redis", timeout, Counts::default(), || self.counts());
        self.check_invariant();
    }

    /// Waits until every message has gone or is dead.
    #[track_caller]
    pub fn wait_empty_but_dead(&self, timeout: Duration) {
        super::eventually_eq("only dead messages are left", timeout, 0, || {
            let counts = self.counts();
            counts.queue + counts.messages - counts.dead
        });
    }

    /// The numbers of the agents that are registered.
    pub fn agents(&self) -> Vec<String> {
        self.strings("ZRANGE", "agents", &["0", "-1"])
    }

    /// The numbers of the agents that have something in flight.
    pub fn holders(&self) -> BTreeSet<u64> {
        let claims = self.strings("ZRANGE", "inflight", &["0", "-1", "WITHSCORES"]);
        claims.iter().skip(1).step_by(2).map(|score| score.parse::<f64>().unwrap() as u64).collect()
    }

    /// The dead letters, oldest first.
    pub fn dead(&self) -> Vec<Held> {
        self.held(&self.strings("ZRANGE", "dead", &["0", "-1"]))
    }

    /// What is on the retry schedule or waits for its lane.
    pub fn put_off(&self) -> Vec<Held> {
        let mut ids = self.strings("ZRANGE", "retry", &["0", "-1"]);
        let waiting = self.strings("ZRANGE", "waiting", &["0", "-1"]);
        ids.extend(waiting.iter().map(|member| split_waiting(member).1.to_string()));
        self.held(&ids)
    }

    fn held(&self, ids: &[String]) -> Vec<Held> {
        let mut client = self.client();
        let mut read = |id: &String| {
            let mut hget = |name: &str| {
                let value = redis::cmd("HGET").arg(self.key(name)).arg(id).query(&mut client);
                value.map(|value: Option<Vec<u8>>| value.unwrap_or_default()).unwrap()
            };
            let history = String::from_utf8_lossy(&hget("history")).into_owned();
            Held { id: id.clone(), bytes: hget("messages"), history }
        };
        ids.iter().map(&mut read).collect()
    }

    /// What the design promises of the keys at every moment; panics with what is wrong.
    #[track_caller]
    pub fn check_invariant(&self) {
        if let Err(wrong) = self.invariant() {
            panic!("the invariant is broken: {wrong}");
        }
    }

    /// The ids in `messages` are `inflight` ∪ `waiting` ∪ `retry` ∪ `dead`, disjoint; an origin is in
    /// `lanes` exactly when something waits for it; nothing is remembered of messages that are gone.
    pub fn invariant(&self) -> Result<(), String> {
        type Names = Vec<String>;
        let mut read = Reading::default();
        for name in ["messages", "history", "recovered"] {
            read.also("HKEYS", self.key(name), &[]);
        }
        for name in ["inflight", "waiting", "retry", "dead", "lanes"] {
            read.also("ZRANGE", self.key(name), &["0", "-1"]);
        }
        let [messages, history, recovered, inflight, waiting, retry, dead, lanes]: [Names; 8] =
            read.query(&mut self.client()).unwrap();

        let (origins, waiting): (BTreeSet<_>, Names) = waiting
            .iter()
            .map(|member| split_waiting(member))
            .map(|(origin, id)| (origin.to_string(), id.to_string()))
            .unzip();
        let messages: BTreeSet<_> = messages.into_iter().collect();
        let mut places = BTreeMap::new();
        let named = [("inflight", inflight), ("waiting", waiting), ("retry", retry), ("dead", dead)];
        for (place, ids) in named {
            for id in ids {
                if !messages.contains(&id) {
                    return Err(format!("{id} is in {place} and not in messages"));
                }
                if let Some(other) = places.insert(id.clone(), place) {
                    return Err(format!("{id} is in two places: {other} and {place}"));
                }
            }
        }
        if let Some(id) = messages.iter().find(|id| !places.contains_key(*id)) {
            return Err(format!("{id} is in messages and in no place"));
        }
        let lanes: BTreeSet<_> = lanes.into_iter().collect();
        if lanes != origins {
            return Err(format!("lanes are {lanes:?}, but messages wait for {origins:?}"));
        }
        let remembered = history.iter().map(|id| ("history", id));
        let mut remembered = remembered.chain(recovered.iter().map(|id| ("recovered", id)));
        match remembered.find(|(_, id)| !messages.contains(*id)) {
            Some((key, id)) => Err(format!("{id} is gone and still in {key}")),
            None => Ok(()),
        }
    }

    fn strings(&self, command: &str, name: &str, args: &[&str]) -> Vec<String> {
        let all: Vec<Vec<u8>> = redis::cmd(command).arg(self.key(name)).arg(args).query(&mut self.client()).unwrap();
        all.iter().map(|one| String::from_utf8_lossy(one).into_owned()).collect()
    }

    fn log(&self) -> String {
        let log = fs::read_to_string(self.dir.path().join("redis.log")).unwrap_or_default();
        let tail = log.lines().count().saturating_sub(15);
        log.lines().skip(tail).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        if thread::panicking() {
            // Nothing here may panic: that would end the whole run, and leave servers behind.
            match self.try_counts() {
                Ok(counts) => {
                    eprintln!("--- redis {}: {counts:?}", self.address());
                    for name in ["agents", "lanes", "inflight", "retry"] {
                        let first = redis::cmd("ZRANGE").arg(self.key(name)).arg(&["0", "9", "WITHSCORES"]).to_owned();
                        let first = self.try_client().and_then(|mut c| first.query::<Vec<String>>(&mut c));
                        eprintln!("  {name}: {first:?}");
                    }
                }
                Err(error) => eprintln!("--- redis {}: {error}\n{}", self.address(), self.log()),
            }
        }
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

/// Which Redis, or what has come from it, these tests run against.
fn version() -> (u32, u32) {
    static VERSION: OnceLock<(u32, u32)> = OnceLock::new();
    *VERSION.get_or_init(|| {
        let said = Command::new("redis-server").arg("--version").output().map(|output| output.stdout);
        let said = String::from_utf8(said.unwrap_or_default()).unwrap_or_default();
        let mut numbers = said.split("v=").nth(1).unwrap_or_default().split('.').map(|number| number.parse().ok());
        let mut number = || numbers.next().flatten();
        Option::zip(number(), number()).unwrap_or((7, 0))
    })
}

/// Commands that read, carried out in one step: by a script, since a full Redis refuses EXEC.
#[derive(Default)]
struct Reading(String);

impl Reading {
    fn also(&mut self, command: &str, key: String, args: &[&str]) {
        let args: String = args.iter().map(|arg| format!(", '{arg}'")).collect();
        self.0 += &format!("redis.call('{command}', '{key}'{args}),");
    }

    fn query<T: redis::FromRedisValue, const N: usize>(
        &self,
        client: &mut redis::Connection,
    ) -> redis::RedisResult<[T; N]> {
        let script = format!("return {{{}}}", self.0);
        redis::cmd("EVAL").arg(script).arg(0).query(client)
    }
}

/// The library that gives a process another wall clock (Debian's `libfaketime`), and before all others the C
/// library: with the allocator that redis-server usually has, which asks for the time, it would not start.
fn faketime() -> String {
    let dirs = fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    let libraries = dirs.map(|dir| dir.path().join("faketime/libfaketimeMT.so.1"));
    let found = libraries.chain([PathBuf::from("/usr/lib/faketime/libfaketimeMT.so.1")]).find(|path| path.exists());
    let found = found.expect(
        "cannot find libfaketime, which this test needs: run scripts/test, which installs it, or `apt-get install libfaketime`",
    );
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let libc = maps.lines().filter_map(|line| line.split_whitespace().last()).find(|path| path.ends_with("/libc.so.6"));
    format!("{}:{}", found.display(), libc.expect("this test runs with the C library of GNU"))
}

/// A member of `waiting`: the origin, a line feed, the id.
fn split_waiting(member: &str) -> (&str, &str) {
    member.split_once('\n').unwrap_or_else(|| panic!("a member of waiting without LF: {member:?}"))
}

/// A port that is free on an address that only this fixture uses. Below those that the system
/// gives out, so that no sink has it: the agent refuses to deliver to its own Redis, and takes
/// every loopback address with that port for it.
pub fn free_port(address: Ipv4Addr) -> u16 {
    let ports = 20_000..30_000;
    let free = |port: &u16| TcpListener::bind((address, *port)).is_ok();
    ports.into_iter().find(free).expect("some port of a loopback address is free")
}
