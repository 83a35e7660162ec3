//! One round of torture: a Redis, some agents, all recipients and a producer, struck by faults at
//! random times; then the faults end, everything that is not dead must be delivered in time, and
//! what is sent after that must arrive exactly once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use std::{fs, io};

use super::agents::{self, Slot};
use super::faults::{Fault, Injected, RedisState, Scope, World};
use super::history;
use super::ledger::{self, Kind, Ledger, Message, Push};
use super::recipients::{self, Recipient};
use super::rng::Rng;
use crate::support::wire::envelope;
use crate::support::{Redis, TempDir, ms};

/// How the agents of a round are set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Short times, so that much happens in a minute.
    Short,
    /// Short times, and in order.
    Ordered,
    /// As they come.
    Default,
}

/// What a round is to be.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub round: u64,
    pub mode: Mode,
    pub n_agents: usize,
    /// How long faults are injected.
    pub faults_for: Duration,
    /// Milliseconds between two faults, on average.
    pub pace: u64,
    /// Messages a second.
    pub rate: u64,
    pub disk: bool,
    pub always: bool,
}

impl Plan {
    pub fn new(seed: u64, round: u64, mode: Option<Mode>, faults_for: Duration) -> (Plan, Rng) {
        let mut rng = Rng::of_round(seed, round);
        let mode = mode.unwrap_or_else(|| rng.weighted(&[(Mode::Short, 70), (Mode::Ordered, 22), (Mode::Default, 8)]));
        let disk = rng.percent(45);
        let plan = Plan {
            seed,
            round,
            mode,
            n_agents: 2 + rng.index(3),
            faults_for,
            pace: [250, 400, 700][rng.index(3)],
            rate: if mode == Mode::Ordered { 40 } else { [60, 120, 250][rng.index(3)] },
            disk,
            always: !(disk && rng.percent(30)),
        };
        (plan, rng)
    }

    fn options(&self) -> Vec<String> {
        let mut options: Vec<&str> = Vec::new();
        if self.mode != Mode::Default {
            options.extend(["--lease", "3s", "--retry-first", "200ms", "--retry-max", "2s", "--timeout", "2s"]);
            options.extend(["--connect-timeout", "1s", "--workers", "32"]);
        }
        options.extend(["--drain-timeout", "1s"]);
        if self.mode == Mode::Ordered {
            options.push("--ordered");
        }
        options.into_iter().map(str::to_string).collect()
    }

    fn lease(&self) -> Duration {
        Duration::from_secs(if self.mode == Mode::Default { 15 } else { 3 })
    }

    /// After the last fault: two leases until what dead agents held is taken back, the longest
    /// backoff there can be by then, an attempt that hangs, and the pause of a reconnection; and
    /// time for the rest by its number.
    fn patience(&self, n_left: usize) -> Duration {
        let (backoff, attempt) = match self.mode {
            Mode::Default => (self.faults_for.min(Duration::from_secs(600)) * 2, Duration::from_secs(30)),
            _ => (Duration::from_millis(2400), Duration::from_secs(2)),
        };
        let per_message = if self.mode == Mode::Ordered { ms(60) } else { ms(8) };
        self.lease() * 3 + backoff * 2 + attempt * 2 + Duration::from_secs(8) + per_message * n_left as u32
    }
}

/// What a round came to.
#[derive(Default)]
pub struct Report {
    pub n_messages: usize,
    pub n_delivered: usize,
    pub n_dead: usize,
    pub n_lost: usize,
    pub n_stuck: usize,
    pub n_repeated: usize,
    pub most_copies: usize,
    pub n_unexplained: usize,
    pub n_uncertain: usize,
    pub n_refused: usize,
    pub faults: BTreeMap<Fault, usize>,
    pub n_starts: usize,
    pub n_invariant_checks: usize,
    pub drained_in: Duration,
    pub lines: BTreeMap<String, usize>,
    /// Lines that the faults allow.
    pub lines_allowed: usize,
    pub peak_kib: u64,
    pub last_kib: u64,
    pub peak_files: usize,
    /// What was slow, and why.
    pub notes: Vec<String>,
    /// What must not be.
    pub failures: Vec<String>,
}

impl Report {
    pub fn n_faults(&self) -> usize {
        self.faults.values().sum()
    }

    pub fn n_lines(&self) -> usize {
        self.lines.values().sum()
    }
}

/// Runs a round. Its directory is kept if it failed.
pub fn run(plan: &Plan, mut rng: Rng) -> Report {
    let dir = TempDir::new(&format!("torture-{}-{}", plan.seed, plan.round));
    let disk = if plan.disk { Disk::mount(&dir.path().join("disk")) } else { None };
    let redis = start_redis(plan, disk.as_ref());
    let ledger = Arc::new(Ledger::default());
    let recipients = Recipient::all(&ledger, &mut rng);
    let address = redis.address().parse().expect("an address");
    let slots = (0..plan.n_agents).map(|n| Slot::new(n, address, dir.path(), &plan.options(), n % 2 == 1)).collect();
    let mut world = World::new(redis, slots, recipients, plan.lease());
    world.disk = disk.as_ref().map(|disk| disk.0.clone());
    world.always = plan.always;
    for slot in &mut world.slots {
        slot.start();
    }

    let mut report = Report::default();
    let stop = Arc::new(AtomicBool::new(false));
    let producer = {
        let producer = Producer::new(&world, ledger.clone(), Rng::new(rng.next()), plan.rate);
        let stop = stop.clone();
        thread::spawn(move || producer.run(&stop))
    };
    torment(plan, &mut world, &mut rng, &mut report);
    let faults_ended = Instant::now();
    stop.store(true, Ordering::SeqCst);
    producer.join().expect("the producer does not panic");

    recover(&mut world, &mut report);
    drain(plan, &mut world, &mut report);
    if report.failures.is_empty() {
        calm(&mut world, &ledger, Rng::new(rng.next()), &mut report);
    }
    judge(plan, &world, &ledger, faults_ended, &mut report);
    if !report.failures.is_empty() {
        let kept = keep(&dir, &world);
        report.failures.push(format!("logs and the append-only file are kept in {}", kept.display()));
    }
    drop(world);
    drop(disk);
    report
}

fn start_redis(plan: &Plan, disk: Option<&Disk>) -> Redis {
    let mut lines = vec!["auto-aof-rewrite-percentage 0".to_string(), "databases 1".to_string()];
    if redis_version() >= 7 {
        lines.extend(["enable-debug-command yes", "aof-timestamp-enabled yes"].map(str::to_string));
    }
    if let Some(disk) = disk {
        lines.push(format!("dir {}", disk.0.display()));
    }
    if !plan.always {
        lines.push("appendfsync everysec".into());
    }
    Redis::with(&lines.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Injects faults until their time is over.
fn torment(plan: &Plan, world: &mut World, rng: &mut Rng, report: &mut Report) {
    let end = Instant::now() + plan.faults_for;
    let mut next = Instant::now() + ms(500);
    let mut look = Instant::now();
    while Instant::now() < end {
        report.failures.extend(world.turn());
        let now = Instant::now();
        if now >= next {
            // Now and then several at once.
            let at_once = if rng.percent(20) { 2 + rng.index(3) } else { 1 };
            for _ in 0..at_once {
                for _ in 0..20 {
                    if world.inject(rng) {
                        break;
                    }
                }
            }
            next = now + ms(rng.between(plan.pace / 4, plan.pace * 7 / 4)) * at_once as u32;
        }
        if now >= look {
            look = now + ms(700);
            measure(world, report);
        }
        thread::sleep(ms(5));
    }
}

/// Looks at the sizes of the agents, and at the invariant where Redis can be asked.
fn measure(world: &mut World, report: &mut Report) {
    for slot in &mut world.slots {
        slot.measure();
    }
    if world.redis_state != RedisState::Away {
        report.n_invariant_checks += 1;
        if let Err(wrong) = world.redis.invariant() {
            report.failures.push(format!("the invariant is broken: {wrong}"));
        }
    }
}

/// Ends all faults.
fn recover(world: &mut World, report: &mut Report) {
    world.hurry();
    let deadline = Instant::now() + Duration::from_secs(40);
    while !world.is_whole() {
        report.failures.extend(world.turn());
        if Instant::now() > deadline {
            report.failures.push("the faults could not be ended within 40 s".into());
            return;
        }
        thread::sleep(ms(5));
    }
    for recipient in &mut world.recipients {
        recipient.calm();
    }
    for slot in &world.slots {
        slot.step_clock(0);
    }
}

/// Waits until only the dead are left.
fn drain(plan: &Plan, world: &mut World, report: &mut Report) {
    let begun = Instant::now();
    let left = |world: &World| {
        let counts = world.redis.counts();
        counts.queue + counts.messages - counts.dead
    };
    let deadline = begun + plan.patience(left(world));
    let mut look = Instant::now();
    loop {
        report.failures.extend(world.turn());
        let n_left = left(world);
        if n_left == 0 {
            break;
        }
        if Instant::now() > deadline {
            report.n_stuck = n_left;
            let (counts, agents) = (world.redis.counts(), world.redis.agents());
            let running: Vec<_> = world.slots.iter().map(|slot| (slot.n, slot.is_running(), slot.pid())).collect();
            report.failures.push(format!(
                "{n_left} messages are stuck {:.1?} after the last fault: {counts:?}; registered: {agents:?}; running: {running:?}",
                begun.elapsed()
            ));
            return;
        }
        if Instant::now() >= look {
            look = Instant::now() + ms(500);
            measure(world, report);
        }
        thread::sleep(ms(20));
    }
    report.drained_in = begun.elapsed();
}

/// Without any fault: exactly once.
fn calm(world: &mut World, ledger: &Arc<Ledger>, rng: Rng, report: &mut Report) {
    let first = ledger.len();
    let mut producer = Producer::new(world, ledger.clone(), rng, 400);
    producer.only_plain = true;
    producer.produce(300);
    let deadline = Instant::now() + Duration::from_secs(40);
    while !ledger.delivered_since(first) || world.redis.counts().messages > world.redis.counts().dead {
        report.failures.extend(world.turn());
        if Instant::now() > deadline {
            report.failures.push("not all of 300 messages were delivered within 40 s without any fault".into());
            break;
        }
        thread::sleep(ms(20));
    }
    for (number, message) in ledger.messages().iter().enumerate().skip(first) {
        let n = message.arrivals.len();
        if n != 1 {
            report.failures.push(format!("without any fault, message #{number} arrived {n} times"));
        }
    }
    measure(world, report);
}

/// Pushes messages as ACA-Py does, on a connection of its own that no proxy disturbs.
struct Producer {
    url: String,
    key: String,
    endpoints: Vec<String>,
    ledger: Arc<Ledger>,
    rng: Rng,
    rate: u64,
    only_plain: bool,
    connection: Option<redis::Connection>,
}

impl Producer {
    fn new(world: &World, ledger: Arc<Ledger>, rng: Rng, rate: u64) -> Producer {
        let endpoints = world.recipients.iter().map(|recipient| recipient.endpoint.clone()).collect();
        let (url, key) = (world.redis.url(), world.redis.queue_key());
        Producer { url, key, endpoints, ledger, rng, rate, only_plain: false, connection: None }
    }

    fn run(mut self, stop: &AtomicBool) {
        while !stop.load(Ordering::SeqCst) {
            // In bursts, as conversations come.
            let burst = self.rng.between(1, 20);
            self.produce(burst);
            thread::sleep(ms(1000 * burst / self.rate));
        }
    }

    fn produce(&mut self, n: u64) {
        for _ in 0..n {
            self.push();
        }
    }

    fn push(&mut self) {
        let recipient = self
            .rng
            .weighted(&recipients::ALL.map(|(_, weight)| weight).iter().copied().enumerate().collect::<Vec<_>>());
        let kind = match self.rng.between(0, 1000) {
            _ if self.only_plain => Kind::Plain,
            0..8 => Kind::Final,
            8..20 => Kind::Stubborn(self.rng.between(1, 3) as u32),
            20..26 => Kind::Garbage,
            _ => Kind::Plain,
        };
        let size = match self.rng.between(0, 1000) {
            0 => 1 << 20,
            1..10 => 60_000,
            _ => self.rng.between(20, 3_000) as usize,
        };
        let Some(connection) = self.connect() else { return };
        let number = self.ledger.begin(kind, size, recipient);
        let payload = ledger::body(number, size);
        let bytes = match kind {
            Kind::Garbage => [&b"\xc1"[..], &payload].concat(),
            _ => envelope(&self.endpoints[recipient], &payload),
        };
        let connection = self.connection.insert(connection);
        match redis::cmd("RPUSH").arg(&self.key).arg(bytes).exec(connection) {
            Ok(()) => self.ledger.settle(number, Push::Confirmed),
            Err(error) if matches!(error.kind(), redis::ErrorKind::Server(_) | redis::ErrorKind::Extension) => {
                self.ledger.settle(number, Push::Refused);
            }
            Err(_) => self.connection = None,
        }
    }

    fn connect(&mut self) -> Option<redis::Connection> {
        if self.connection.is_some() {
            return self.connection.take();
        }
        let client = redis::Client::open(self.url.as_str()).expect("a URL");
        let connection = client.get_connection_with_timeout(Duration::from_secs(2)).ok()?;
        connection.set_read_timeout(Some(Duration::from_secs(15))).ok()?;
        Some(connection)
    }
}

/// Holds the ledger against what Redis has at the end.
fn judge(plan: &Plan, world: &World, ledger: &Ledger, faults_ended: Instant, report: &mut Report) {
    // Redis first: what leaves it after this look has arrived before the look at the ledger.
    let held = held(&world.redis);
    let dead = dead_letters(world, report);
    let messages = ledger.messages();
    report.n_messages = messages.iter().filter(|message| message.push != Push::Refused).count();
    report.failures.extend(ledger.wrong());
    for injected in &world.injected {
        *report.faults.entry(injected.fault).or_default() += 1;
    }

    let n_struck = world.injected.iter().filter(|i| matches!(i.scope, Scope::Agent(_))).count();
    report.n_dead = dead.len();
    let mut lost = Vec::new();
    for (number, message) in messages.iter().enumerate() {
        let copies = message.deliveries().len();
        report.most_copies = report.most_copies.max(copies);
        report.n_delivered += usize::from(copies > 0);
        report.n_repeated += usize::from(copies > 1);
        report.n_uncertain += usize::from(message.push == Push::Uncertain);
        report.n_refused += usize::from(message.push == Push::Refused);
        let to_die = matches!(message.kind, Kind::Final | Kind::Garbage);
        match dead.get(&number) {
            Some((reason, bytes)) => {
                let by_deaths = reason.contains("in flight in 5 agents that died") && n_struck >= 5;
                if !to_die && !by_deaths {
                    report.failures.push(format!("message #{number} ({:?}) is dead: {reason}", message.kind));
                }
                if !bytes.ends_with(&ledger::body(number, message.size)) {
                    report.failures.push(format!("the bytes of message #{number} changed before it died"));
                }
            }
            None => {
                if message.push == Push::Confirmed && !held.contains(&number) && (copies == 0 || to_die) {
                    lost.push(number);
                }
            }
        }
        if copies > 1 && !is_explained(message, world) {
            report.n_unexplained += 1;
            report.failures.push(format!("no fault explains {copies} copies of message #{number}"));
            describe(number, message, world, report);
        }
    }
    // In time, and yet long after the last fault: why, is told of the message that came last.
    if report.drained_in > plan.patience(0) / 2 {
        let of_faults = messages.iter().enumerate().filter(|(_, message)| message.pushed < faults_ended);
        let last = of_faults.max_by_key(|(_, message)| message.arrivals.last().map(|arrival| arrival.at));
        if let Some((number, message)) = last {
            report.notes.push(tell(number, message, world));
        }
    }
    report.n_lost = lost.len();
    if !lost.is_empty() {
        report.failures.push(format!("{} messages are lost: {lost:?}", lost.len()));
        for number in lost.iter().take(3) {
            describe(*number, &messages[*number], world, report);
        }
    }
    if plan.mode == Mode::Ordered {
        let wrong = ledger::out_of_order(&messages, |number| dead.contains_key(&number));
        for (before, after) in wrong.iter().take(5) {
            report.failures.push(format!("message #{after} arrived before the older #{before} of its recipient"));
            describe(*before, &messages[*before], world, report);
            describe(*after, &messages[*after], world, report);
        }
    }
    judge_agents(plan, world, report);
}

fn judge_agents(plan: &Plan, world: &World, report: &mut Report) {
    for slot in &world.slots {
        report.n_starts += slot.n_starts;
        report.peak_kib = report.peak_kib.max(slot.peak_kib);
        report.last_kib = report.last_kib.max(slot.last_kib);
        report.peak_files = report.peak_files.max(slot.peak_files);
        for line in agents::lines_for_people(&slot.log) {
            if line.contains("panicked") || line.contains("internal error") {
                report.failures.push(format!("agent {} says: {line}", slot.n));
            }
            *report.lines.entry(without_numbers(&line)).or_default() += 1;
        }
    }
    // What a fault of Redis or of a recipient says, each agent says; a few lines each.
    let shared = world.injected.iter().filter(|i| !matches!(i.scope, Scope::Agent(_))).count();
    let own = world.injected.len() - shared;
    report.lines_allowed = 4 * (shared * plan.n_agents + own) + 8 * report.n_starts;
    if report.n_lines() > report.lines_allowed {
        report.failures.push(format!(
            "{} lines in the logs for {} faults and {} starts; {} would be enough",
            report.n_lines(),
            world.injected.len(),
            report.n_starts,
            report.lines_allowed
        ));
    }
}

/// The dead letters by number: reason and bytes.
fn dead_letters(world: &World, report: &mut Report) -> HashMap<usize, (String, Vec<u8>)> {
    let mut dead = HashMap::new();
    for held in world.redis.dead() {
        match find_number(&held.bytes) {
            Some(number) => {
                if dead.insert(number, (held.history, held.bytes)).is_some() {
                    report.failures.push(format!("message #{number} is among the dead twice"));
                }
            }
            None => report.failures.push(format!("the dead {} holds bytes that nobody pushed", held.id)),
        }
    }
    dead
}

/// The numbers of all that Redis has, queued or claimed, in one look.
fn held(redis: &Redis) -> BTreeSet<usize> {
    let mut pipe = redis::pipe();
    pipe.atomic().cmd("LRANGE").arg(&[&redis.queue_key(), "0", "-1"]).cmd("HVALS").arg(redis.key("messages"));
    let (queued, claimed): (Vec<Vec<u8>>, Vec<Vec<u8>>) = pipe.query(&mut redis.client()).unwrap();
    queued.iter().chain(&claimed).filter_map(|bytes| find_number(bytes)).collect()
}

/// The number of the message that these bytes hold somewhere.
fn find_number(bytes: &[u8]) -> Option<usize> {
    let starts = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'#');
    starts.map(|(at, _)| &bytes[at..]).find_map(ledger::number_of)
}

/// Whether between each two copies there was a fault that can explain the second: of Redis, of the
/// recipient or its network, or of the agent that delivered the first.
fn is_explained(message: &Message, world: &World) -> bool {
    let deliverers = message.id.as_ref().map(|id| history::deliverers(&world.slots, id)).unwrap_or_default();
    // A fault lasts beyond its end: a connection that stays silent is given up after 5 s, and an
    // agent that was away for a lease by then has been taken for dead.
    let slack = Duration::from_secs(5) + world.lease;
    message.deliveries().windows(2).all(|pair| {
        let (first, second) = (pair[0].at, pair[1].at);
        let between = |fault: &&Injected| fault.from <= second && fault.to.is_none_or(|to| to + slack >= first);
        world.injected.iter().filter(between).any(|fault| match fault.scope {
            Scope::Redis => fault.fault != Fault::ScriptsFlushed,
            Scope::Recipient(n) => n == message.recipient,
            // Without a line in any log, the agent that delivered it ended before it knew.
            Scope::Agent(n) => deliverers.is_empty() || deliverers.contains(&n) || fault.fault.ends_agent(),
        })
    })
}

fn describe(number: usize, message: &Message, world: &World, report: &mut Report) {
    report.failures.push(tell(number, message, world));
}

fn tell(number: usize, message: &Message, world: &World) -> String {
    let aof = history::append_only_file(&world.redis);
    history::of(number, message, &world.slots, &world.injected, aof.as_deref())
}

/// Copies what tells the story to a directory that stays.
fn keep(dir: &TempDir, world: &World) -> PathBuf {
    let kept = std::env::temp_dir().join(format!("{}-kept", dir.path().file_name().unwrap().to_string_lossy()));
    let _ = fs::create_dir_all(&kept);
    for slot in &world.slots {
        let _ = fs::copy(&slot.log, kept.join(slot.log.file_name().unwrap()));
    }
    if let Some(aof) = history::append_only_file(&world.redis) {
        let _ = fs::write(kept.join("appendonly.aof"), aof);
    }
    kept
}

/// A line of a log with its numbers and addresses made alike.
fn without_numbers(line: &str) -> String {
    let mut out = String::new();
    for c in line.chars() {
        match c {
            '0'..='9' if out.ends_with('0') => {}
            '0'..='9' => out.push('0'),
            c => out.push(c),
        }
    }
    out.replace("0.0.0.0", "0").replace("0.0.", "0.").chars().take(110).collect()
}

/// The major version of the redis-server.
fn redis_version() -> u32 {
    let output = Command::new("redis-server").arg("--version").output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let version = text.split("v=").nth(1).and_then(|rest| rest.split('.').next()?.parse().ok());
    version.unwrap_or(0)
}

/// A small file system in memory; where none can be mounted, there is none.
struct Disk(PathBuf);

impl Disk {
    fn mount(at: &Path) -> Option<Disk> {
        fs::create_dir_all(at).ok()?;
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=96m", "tmpfs"]).arg(at);
        quietly(&mut mount).ok()?.then(|| Disk(at.to_path_buf()))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = quietly(Command::new("umount").arg("-l").arg(&self.0));
    }
}

fn quietly(command: &mut Command) -> io::Result<bool> {
    use std::process::Stdio;
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().map(|status| status.success())
}
