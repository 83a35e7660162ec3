//! One round of torture: a Redis, some agents, all recipients and a producer, struck by faults at
//! random times; then the faults end, everything that is not dead must be delivered in time, and
//! what is sent after that must arrive exactly once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};
use std::{fs, io};

use super::agents::{self, Slot};
use super::faults::{Fault, Injected, RedisState, Replica, SMALL_STEP, Scope, World};
use super::history;
use super::ledger::{self, Kind, Ledger, Message, Push, find_number};
use super::losses::{Contents, Loss};
use super::recipients::{self, Recipient};
use super::rng::Rng;
use crate::support::wire::envelope;
use crate::support::{Redis, TempDir, ms};

/// A good message is in by then, whatever other paths of its origin do.
const BESIDE_STRANGERS: Duration = Duration::from_secs(6);

/// How the agents of a round are set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Short times, so that much happens in a minute.
    Short,
    /// Short times, and in order.
    Ordered,
    /// As they come.
    Default,
    /// Short times, and more origins than an agent remembers.
    Origins,
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
    /// In strict order.
    pub ordered: bool,
    /// The lease of each agent, in seconds.
    pub leases: Vec<u64>,
    /// A second Redis follows, and may have to take over.
    pub replica: bool,
    /// Redis has a clock that can be stepped.
    pub redis_clock: bool,
    /// `--give-up-after`, in seconds.
    pub give_up_after: Option<u64>,
}

impl Plan {
    pub fn new(seed: u64, round: u64, mode: Option<Mode>, faults_for: Duration) -> (Plan, Rng) {
        let mut rng = Rng::of_round(seed, round);
        let modes = [(Mode::Short, 60), (Mode::Ordered, 20), (Mode::Default, 7), (Mode::Origins, 13)];
        let mode = mode.unwrap_or_else(|| rng.weighted(&modes));
        let ordered = mode == Mode::Ordered || mode == Mode::Origins && rng.percent(50);
        let disk = rng.percent(35);
        let n_agents = 2 + rng.index(3);
        let leases = match (mode, rng.between(0, 100)) {
            (Mode::Default, _) => vec![15; n_agents],
            (_, 0..60) => vec![3; n_agents],
            (_, 60..90) => (0..n_agents).map(|_| [3, 4, 6, 10][rng.index(4)]).collect(),
            // What an agent of the last kind held when it was killed comes back after a minute.
            _ => (0..n_agents).map(|n| [3, 60, 10, 3][n]).collect(),
        };
        let plan = Plan {
            seed,
            round,
            mode,
            n_agents,
            faults_for,
            pace: [250, 400, 700][rng.index(3)],
            rate: if ordered { 40 } else { [60, 120, 250][rng.index(3)] },
            disk,
            always: !(disk && rng.percent(30)),
            ordered,
            leases,
            replica: !disk && !ordered && rng.percent(70),
            redis_clock: agents::faketime().is_some() && rng.percent(60),
            give_up_after: (mode == Mode::Short && rng.percent(25)).then_some(12),
        };
        (plan, rng)
    }

    fn options(&self) -> Vec<String> {
        let mut options: Vec<&str> = Vec::new();
        if self.mode != Mode::Default {
            options.extend(["--retry-first", "200ms", "--retry-max", "2s", "--timeout", "2s"]);
            options.extend(["--connect-timeout", "1s", "--workers", "32"]);
        }
        options.extend(["--drain-timeout", "1s"]);
        if self.ordered {
            options.push("--ordered");
        }
        let mut options: Vec<String> = options.into_iter().map(str::to_string).collect();
        if let Some(age) = self.give_up_after {
            options.extend(["--give-up-after".into(), format!("{age}s")]);
        }
        options
    }

    fn longest_lease(&self) -> Duration {
        Duration::from_secs(*self.leases.iter().max().expect("there are agents"))
    }

    /// After the last fault: two leases until what dead agents held is taken back, the longest
    /// backoff there can be by then, an attempt that hangs, and the pause of a reconnection; and
    /// time for the rest by its number.
    fn patience(&self, n_left: usize) -> Duration {
        let (backoff, attempt) = match self.mode {
            Mode::Default => (self.faults_for.min(Duration::from_secs(600)) * 2, Duration::from_secs(30)),
            _ => (Duration::from_millis(2400), Duration::from_secs(2)),
        };
        let per_message = if self.ordered { ms(60) } else { ms(8) };
        // A step back that nobody saw whole, since no agent was there, delays by less than a minute.
        let step = Duration::from_secs(if self.redis_clock { 60 } else { 0 });
        step + self.longest_lease() * 3
            + backoff * 2
            + attempt * 2
            + Duration::from_secs(8)
            + per_message * n_left as u32
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
    /// Of a Redis that forgot: how often with a clock that was behind, what nobody had any more, and
    /// what only an agent had.
    pub n_behind: usize,
    pub n_gone_with_redis: usize,
    pub n_held_only_here: usize,
    /// Messages to strangers' paths; the latest good one beside them, without other faults.
    pub n_strange: usize,
    pub latest_beside_strangers: Duration,
    pub n_given_up: usize,
    /// Given up, or removed from the dead, by an agent that had not seen how Redis's clock was set: known,
    /// and counted rather than a failure.
    pub n_aged_by_clock: usize,
    /// When each dead letter was first seen.
    pub first_seen_dead: HashMap<String, Instant>,
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
    let recipients = Recipient::all(&ledger, &mut rng, plan.mode == Mode::Origins);
    let address = redis.address().parse().expect("an address");
    let slot = |(n, lease): (usize, &u64)| {
        Slot::new((n, Duration::from_secs(*lease)), address, dir.path(), &plan.options(), n % 2 == 1)
    };
    let slots = plan.leases.iter().enumerate().map(slot).collect();
    let mut world = World::new(redis, slots, recipients);
    world.has_own_clock = plan.redis_clock;
    world.may_lose = !plan.ordered;
    if plan.replica {
        world.replica = Some(Replica::of(&world.redis, start_redis(plan, None)));
    }
    world.disk = disk.as_ref().map(|disk| disk.0.clone());
    world.always = plan.always;
    for slot in &mut world.slots {
        slot.start();
    }

    let mut report = Report::default();
    let stop = Arc::new(AtomicBool::new(false));
    let producer = {
        let mut producer = Producer::new(&world, ledger.clone(), Rng::new(rng.next()), plan.rate);
        producer.with_strangers = !plan.ordered;
        if plan.mode == Mode::Origins {
            producer.push_to_each_origin();
        }
        let stop = stop.clone();
        thread::spawn(move || producer.run(&stop))
    };
    torment(plan, &mut world, &mut rng, &mut report);
    stop.store(true, Ordering::SeqCst);
    producer.join().expect("the producer does not panic");

    recover(&mut world, &mut report);
    let faults_ended = Instant::now();
    drain(plan, &mut world, &mut report);
    if report.failures.is_empty() {
        calm(&mut world, &ledger, Rng::new(rng.next()), &mut report);
    }
    if report.failures.is_empty() && !plan.ordered && plan.give_up_after.is_none() {
        beside_strangers(plan, &mut world, &ledger, Rng::new(rng.next()), &mut report);
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
    if redis_version() >= 6 {
        lines.push("repl-diskless-sync-delay 0".into());
    }
    let lines = lines.iter().map(String::as_str).collect::<Vec<_>>();
    if plan.redis_clock { Redis::with_own_clock(&lines) } else { Redis::with(&lines) }
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
        if report.n_invariant_checks.is_multiple_of(4) {
            for dead in world.redis.dead() {
                report.first_seen_dead.entry(dead.id).or_insert_with(Instant::now);
            }
        }
    }
}

/// Ends all faults.
fn recover(world: &mut World, report: &mut Report) {
    world.hurry();
    // A Redis whose clock is read from a file takes its time to load what it has.
    let patience = Duration::from_secs(120);
    let deadline = Instant::now() + patience;
    while !world.is_whole() || !world.redis.is_ready() {
        report.failures.extend(world.turn());
        if Instant::now() > deadline {
            report.failures.push(format!("the faults could not be ended within {patience:?}"));
            return;
        }
        thread::sleep(ms(5));
    }
    let deadline = Instant::now() + Duration::from_secs(40);
    // A pause may have come back with an older Redis.
    while !world.order(&["endpoint", "resume", "--all"]) {
        if Instant::now() > deadline {
            report.failures.push("nothing could be resumed within 40 s".into());
            return;
        }
        thread::sleep(ms(100));
    }
    for recipient in &mut world.recipients {
        recipient.calm();
    }
    for slot in &world.slots {
        slot.step_clock(0);
    }
    if world.has_own_clock {
        // Under the eyes of agents that are at work: a step back of minutes that none of them was there to see
        // holds up what was put off for as long as it is, and that is known.
        let deadline = Instant::now() + Duration::from_secs(20);
        while Instant::now() < deadline && !world.slots.iter().all(|slot| slot.number().is_some()) {
            report.failures.extend(world.turn());
            thread::sleep(ms(20));
        }
        let a_beat_later = Instant::now() + ms(2_000);
        while Instant::now() < a_beat_later {
            report.failures.extend(world.turn());
            thread::sleep(ms(20));
        }
        world.redis.set_clock("+0");
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

/// Strangers' paths fail in every way, and nothing else: the origin's good messages are in time.
fn beside_strangers(plan: &Plan, world: &mut World, ledger: &Arc<Ledger>, rng: Rng, report: &mut Report) {
    let first = ledger.len();
    world.recipients[recipients::WITH_STRANGERS].let_strangers_fail(true);
    let mut producer = Producer::new(world, ledger.clone(), rng, 400);
    for n in 0..200 {
        if n % 10 == 0 {
            producer.push_to(recipients::WITH_STRANGERS, Kind::Strange((n / 10 % recipients::STRANGE_WAYS) as u8), 100);
        }
        producer.push_to(recipients::WITH_STRANGERS, Kind::Plain, 100);
        report.failures.extend(world.turn());
        thread::sleep(ms(25));
    }
    let end = Instant::now() + BESIDE_STRANGERS;
    let good = |message: &&Message| message.kind == Kind::Plain;
    let is_in = |message: &Message| message.arrivals.iter().any(ledger::Arrival::is_delivery);
    while Instant::now() < end && !ledger.messages()[first..].iter().filter(good).all(is_in) {
        report.failures.extend(world.turn());
        thread::sleep(ms(20));
    }
    let messages = ledger.messages();
    for (number, message) in messages.iter().enumerate().skip(first).filter(|(_, message)| good(message)) {
        let arrived = message.deliveries().first().map(|arrival| arrival.at);
        let late = arrived.unwrap_or_else(Instant::now).saturating_duration_since(message.pushed);
        report.latest_beside_strangers = report.latest_beside_strangers.max(late);
        if arrived.is_none() || late > BESIDE_STRANGERS {
            let beside =
                format!("message #{number} came {late:.1?} late ({arrived:?}) beside strangers' paths of its origin");
            report.failures.push(beside);
            describe(number, message, world, report);
        }
    }
    world.recipients[recipients::WITH_STRANGERS].let_strangers_fail(false);
    drain(plan, world, report);
}

/// Pushes messages as ACA-Py does, on a connection of its own that no proxy disturbs.
struct Producer {
    url: Arc<Mutex<String>>,
    key: String,
    /// Where messages of each recipient, kind and lane go.
    endpoint: Box<dyn Fn(usize, Kind, usize) -> String + Send>,
    weights: Vec<(usize, u64)>,
    ledger: Arc<Ledger>,
    rng: Rng,
    rate: u64,
    only_plain: bool,
    with_strangers: bool,
    connection: Option<redis::Connection>,
}

impl Producer {
    fn new(world: &World, ledger: Arc<Ledger>, rng: Rng, rate: u64) -> Producer {
        let places: Vec<_> = world.recipients.iter().map(Recipient::place).collect();
        let endpoint = Box::new(move |recipient: usize, kind, lane| places[recipient].endpoint(kind, lane));
        let mut weights: Vec<(usize, u64)> =
            recipients::ALL.map(|(_, weight)| weight).into_iter().enumerate().collect();
        if world.recipients.len() > weights.len() {
            weights.push((weights.len(), 100));
        }
        let (url, key) = (world.url.clone(), world.redis.queue_key());
        let (only_plain, with_strangers) = (false, false);
        Producer { url, key, endpoint, weights, ledger, rng, rate, only_plain, with_strangers, connection: None }
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
        let recipient = self.rng.weighted(&self.weights);
        let kind = match self.rng.between(0, 1000) {
            _ if self.only_plain => Kind::Plain,
            0..8 => Kind::Final,
            8..20 => Kind::Stubborn(self.rng.between(1, 3) as u32),
            20..26 => Kind::Garbage,
            26..150 if self.with_strangers && recipient == recipients::WITH_STRANGERS => {
                Kind::Strange(self.rng.between(0, recipients::STRANGE_WAYS) as u8)
            }
            _ => Kind::Plain,
        };
        let size = match self.rng.between(0, 1000) {
            0 => 1 << 20,
            1..10 => 60_000,
            _ => self.rng.between(20, 3_000) as usize,
        };
        self.push_to(recipient, kind, size);
    }

    /// One to each origin of the wide recipient.
    fn push_to_each_origin(&mut self) {
        let wide = recipients::ALL.len();
        for n in 0..recipients::WIDE {
            self.push_to_lane(wide, recipients::FIRST_WIDE_LANE + n, Kind::Plain, 50);
        }
    }

    fn push_to(&mut self, recipient: usize, kind: Kind, size: usize) {
        let lane = match recipient < recipients::ALL.len() {
            true => recipient,
            false => recipients::FIRST_WIDE_LANE + self.rng.index(recipients::WIDE),
        };
        self.push_to_lane(recipient, lane, kind, size);
    }

    fn push_to_lane(&mut self, recipient: usize, lane: usize, kind: Kind, size: usize) {
        let Some(connection) = self.connect() else { return };
        let number = self.ledger.begin(kind, size, recipient, lane);
        let payload = ledger::body(number, size);
        let bytes = match kind {
            Kind::Garbage => [&b"\xc1"[..], &payload].concat(),
            _ => envelope(&(self.endpoint)(recipient, kind, lane), &payload),
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
        let url = self.url.lock().expect("nothing panics with it").clone();
        let client = redis::Client::open(url).expect("a URL");
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
    for (number, at, ids) in ledger.renamed() {
        // What Redis lost, or had back in the queue, is claimed anew under another id.
        let is_lost = |loss: &Loss| loss.at >= messages[number].pushed && loss.at <= at;
        if !world.losses.iter().any(is_lost) {
            report.failures.push(format!("message #{number} arrived under two ids: {ids}"));
            describe(number, &messages[number], world, report);
        }
    }
    report.n_strange = messages.iter().filter(|message| matches!(message.kind, Kind::Strange(_))).count();
    report.n_behind = world.n_behind;
    report.n_held_only_here =
        world.losses.iter().map(|loss| loss.held.keys().filter(|n| !loss.left.contains(n)).count()).sum();
    for injected in &world.injected {
        *report.faults.entry(injected.fault).or_default() += 1;
    }

    let n_struck = world.injected.iter().filter(|i| matches!(i.scope, Scope::Agent(_))).count();
    report.n_dead = dead.len();
    let mut lost = Vec::new();
    let mut late = BTreeMap::new();
    for (number, message) in messages.iter().enumerate() {
        let copies = message.deliveries().len();
        report.most_copies = report.most_copies.max(copies);
        report.n_delivered += usize::from(copies > 0);
        report.n_repeated += usize::from(copies > 1);
        report.n_uncertain += usize::from(message.push == Push::Uncertain);
        report.n_refused += usize::from(message.push == Push::Refused);
        let to_die = matches!(message.kind, Kind::Final | Kind::Garbage);
        match dead.get(&number) {
            Some(Dead { id, history: reason, bytes }) => {
                let by_deaths = reason.contains("in flight in 5 agents that died") && n_struck >= 5;
                let is_given_up = plan.give_up_after.is_some() && reason.contains("gave up after");
                report.n_given_up += usize::from(is_given_up);
                if is_given_up {
                    report.failures.extend(died_too_early(
                        plan,
                        number,
                        message,
                        reason,
                        report.first_seen_dead.get(id),
                    ));
                }
                // Who starts after the clock was set right cannot know that a first failure was noted by a wrong one.
                let by_clock = plan.redis_clock && reason.contains("gave up after 24h") && started_after_a_step(world);
                report.n_aged_by_clock += usize::from(by_clock);
                if !to_die && !by_deaths && !is_given_up && !by_clock {
                    report.failures.push(format!("message #{number} ({:?}) is dead: {reason}", message.kind));
                }
                if !bytes.ends_with(&ledger::body(number, message.size)) {
                    report.failures.push(format!("the bytes of message #{number} changed before it died"));
                }
            }
            None => {
                if message.push == Push::Confirmed && !held.contains(&number) && (copies == 0 || to_die) {
                    if world.losses.iter().any(|loss| loss.explains(number, message.pushed, &world.injected)) {
                        report.n_gone_with_redis += 1;
                    } else if to_die && plan.redis_clock && removed_for_age(world) && started_after_a_step(world) {
                        report.n_aged_by_clock += 1;
                    } else {
                        lost.push(number);
                    }
                }
            }
        }
        if copies > 1 && !is_explained(message, world, &mut late) {
            report.n_unexplained += 1;
            report.failures.push(format!("no fault explains {copies} copies of message #{number}"));
            describe(number, message, world, report);
        }
    }
    // Those that were under way when it froze, and no more than that.
    for (injected, n) in late.into_iter().filter(|(_, n)| *n > MOST_UNDER_WAY) {
        report.n_unexplained += n;
        report
            .failures
            .push(format!("after {:?} {n} messages were sent that others had delivered", world.injected[injected]));
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
    if plan.ordered {
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
            let is_bad = line.contains("panicked") || line.contains("internal error");
            if is_bad || line.starts_with(agents::NOT_JSON) {
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

struct Dead {
    id: String,
    history: String,
    bytes: Vec<u8>,
}

/// The dead letters by number.
fn dead_letters(world: &World, report: &mut Report) -> HashMap<usize, Dead> {
    let mut dead = HashMap::new();
    for held in world.redis.dead() {
        let Some(number) = find_number(&held.bytes) else {
            report.failures.push(format!("the dead {} holds bytes that nobody pushed", held.id));
            continue;
        };
        let letter = Dead { id: held.id, history: held.history, bytes: held.bytes };
        // What a Redis lost may be with an agent, and in the queue once more.
        if dead.insert(number, letter).is_some() && world.losses.is_empty() {
            report.failures.push(format!("message #{number} is among the dead twice"));
        }
    }
    dead
}

/// Whether an agent removed dead letters for their age, which in a round only a wrong clock can tell.
fn removed_for_age(world: &World) -> bool {
    let says = |slot: &Slot| agents::lines_for_people(&slot.log).iter().any(|line| line.contains("removed for good"));
    world.slots.iter().any(says)
}

/// Whether an agent started, or was started again, after Redis's clock was set or a failover.
fn started_after_a_step(world: &World) -> bool {
    let sets_clock = |fault: Fault| matches!(fault, Fault::RedisClockStepped | Fault::RedisFailedOver);
    let first = world.injected.iter().filter(|injected| sets_clock(injected.fault)).map(|injected| injected.from).min();
    first.is_some_and(|first| world.slots.iter().any(|slot| slot.started.is_some_and(|started| started > first)))
}

/// A message that was given up had failed itself, and long enough before.
fn died_too_early(
    plan: &Plan,
    number: usize,
    message: &Message,
    history: &str,
    first_seen: Option<&Instant>,
) -> Option<String> {
    let age = Duration::from_secs(plan.give_up_after?);
    let attempts: u32 = history.split(' ').next()?.parse().ok()?;
    let lived = first_seen.map(|seen| seen.saturating_duration_since(message.pushed));
    // A small step of Redis's clock, from behind to ahead, is taken for none.
    let step = Duration::from_secs(if plan.redis_clock { 2 * SMALL_STEP } else { 0 });
    let is_right = attempts > 0 && lived.is_none_or(|lived| lived + step >= age);
    (!is_right).then(|| format!("message #{number} was given up after {lived:?} and {attempts} attempts: {history}"))
}

/// The numbers of all that Redis has, queued or claimed, in one look.
fn held(redis: &Redis) -> BTreeSet<usize> {
    Contents::of(redis).expect("Redis answers").all
}

/// Attempts that an agent may have begun and not ended when it was frozen.
const MOST_UNDER_WAY: usize = 8;

/// Whether between each two copies there was a fault that can explain the second: of Redis, of the
/// recipient or its network, or of the agent that delivered the first. What another agent had under
/// way when it was frozen goes out as it wakes, and is counted in `late` for that fault.
fn is_explained(message: &Message, world: &World, late: &mut BTreeMap<usize, usize>) -> bool {
    message.deliveries().windows(2).all(|pair| {
        let (first, second) = (pair[0], pair[1]);
        // A fault lasts beyond its end: a connection that stays silent is given up after 5 s, and an
        // agent that was away for a lease by then has been taken for dead.
        let slack = Duration::from_secs(5) + world.slots[first.agent].lease;
        let between = |fault: &&Injected| fault.from <= second.at && fault.to.is_none_or(|to| to + slack >= first.at);
        let explains = |fault: &Injected| match fault.scope {
            Scope::Redis => true,
            Scope::Recipient(n) => n == message.recipient,
            Scope::Agent(n) => n == first.agent,
        };
        if world.injected.iter().filter(between).any(|fault| fault.fault.may_repeat() && explains(fault)) {
            return true;
        }
        let woke = world.injected.iter().position(|fault| {
            let just_before = |to: Instant| to <= second.at && second.at <= to + Duration::from_millis(2500);
            fault.scope == Scope::Agent(second.agent) && fault.fault.freezes() && fault.to.is_some_and(just_before)
        });
        if let Some(woke) = woke {
            *late.entry(woke).or_default() += 1;
        }
        woke.is_some()
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
