//! Random sequences of everything that can happen, by a seed, and what must hold:
//! after every step each message is in exactly one place and none is missing; in
//! the end, once the faults are over, nothing is left but the dead, no id was
//! used twice, and in ordered mode no attempt began before its elders were done.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use acapy_deliver::envelope::Envelope;
use acapy_deliver::internals::lanes::{Claim, Limits};
use acapy_deliver::internals::orders::Hand;
use acapy_deliver::internals::peers;
use acapy_deliver::internals::policy::{Attempt, Failure, Retry};
use acapy_deliver::queue::{AgentNumber, Id, Peer, RawClaim};

use crate::agent::{Ledger, SimAgent, Stop};
use crate::memory::{Memory, Record, State};
use crate::support::Redis;
use crate::world::{Answer, Move, OnRedis, World, invariant};

/// How the agents behave that the mutations change.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Each agent has one of these.
    pub leases: [Duration; 3],
    /// Who is taken for dead.
    pub peers: peers::Rules,
    /// One that was taken for dead believes that Redis has lost what it does not have any more.
    pub trusts_its_memory: bool,
    /// One that could not renew its lease begins attempts all the same.
    pub begins_without_a_lease: bool,
    /// What Redis has lost, and an attempt has failed of, is nobody's business any more.
    pub lets_go_of_what_is_lost: bool,
    /// What operators order is not heard; what a lane has let out before begins all the same.
    pub goes_by_no_orders: bool,
    pub begins_what_was_let_out: bool,
    /// One that Redis does not know any more drops all that it has not attempted.
    pub drops_what_it_holds: bool,
}

impl Default for Rules {
    fn default() -> Rules {
        let leases = [3, 15, 60].map(Duration::from_secs);
        Rules {
            leases,
            peers: peers::Rules::default(),
            trusts_its_memory: false,
            begins_without_a_lease: false,
            lets_go_of_what_is_lost: false,
            goes_by_no_orders: false,
            begins_what_was_let_out: false,
            drops_what_it_holds: false,
        }
    }
}

/// Which queue is attacked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum On {
    Memory,
    Redis,
    Both,
}

/// One attack.
pub struct Attack<'a> {
    pub seed: u64,
    pub ordered: bool,
    /// Whether the queue may come back with older data, or with none.
    pub rollback: bool,
    pub steps: usize,
    pub rules: Rules,
    pub edit: &'a dyn Fn(&str, String) -> String,
}

/// What an attack came to.
#[derive(Clone, Copy, Default, Debug)]
pub struct Tally {
    pub messages: usize,
    pub attempts: usize,
    pub repeats: usize,
    pub dead: usize,
    pub faults: usize,
    pub recoveries: usize,
}

impl Tally {
    pub fn add(&mut self, other: Tally) {
        self.messages += other.messages;
        self.attempts += other.attempts;
        self.repeats += other.repeats;
        self.dead += other.dead;
        self.faults += other.faults;
        self.recoveries += other.recoveries;
    }
}

impl Attack<'_> {
    pub fn new(seed: u64, ordered: bool, rollback: bool) -> Attack<'static> {
        Attack { seed, ordered, rollback, steps: 500, rules: Rules::default(), edit: &|_, text| text }
    }

    /// Runs it; an error says what went wrong, and how to see it again.
    pub fn run(&self, on: On, redis: Option<&Redis>) -> Result<Tally, String> {
        let on_redis = (on != On::Memory).then(|| {
            let prefix = format!("attack-{}-{}-{}", self.seed, self.ordered, self.rollback);
            OnRedis::new(redis.expect("a redis-server"), &prefix, self.ordered, self.edit)
        });
        let memory = (on != On::Redis).then(Memory::new);
        let mut run = Run::new(self, World::new(on_redis, memory));
        let result = catch_unwind(AssertUnwindSafe(|| run.all()));
        let result = result.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            Err(text.or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string())).unwrap_or_default())
        });
        run.net.world.clear();
        let Attack { seed, ordered, rollback, .. } = self;
        result.map_err(|why| {
            let agents: Vec<String> = run.agents.iter().map(SimAgent::describe).collect();
            format!(
                "seed {seed}, ordered {ordered}, rollback {rollback}, on {on:?} (MOVES_TRACE=1 shows every move): {why}\n{}\n{}\n",
                agents.join("\n"),
                run.net.said.join("\n")
            )
        })
    }
}

/// Splitmix64: every seed its own sequence.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5bf0_3635)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub fn between(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high - low + 1)
    }

    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    pub fn chance(&mut self, probability: f64) -> bool {
        ((self.next() >> 11) as f64 / (1u64 << 53) as f64) < probability
    }
}

/// Between the agents and the queue: answers get lost, moves are never made, or late.
pub struct Net {
    pub world: World,
    /// The monotonic clock of all agents.
    pub now: Instant,
    fault: f64,
    /// The agent that sends is cut off: nothing it sends is made, but perhaps late.
    pub cut_off: bool,
    late: Vec<Move>,
    faults: usize,
    /// When each agent's last beat or join was made, and its lease.
    beats: HashMap<AgentNumber, (Instant, Duration)>,
    recoveries: usize,
    /// Agents that others took for dead.
    recovered: HashSet<AgentNumber>,
    trace: bool,
    said: Vec<String>,
    /// Something was done to the queue since it was last looked at.
    pub touched: bool,
}

impl Net {
    pub fn send(&mut self, a_move: Move, rng: &mut Rng) -> Result<Answer, Stop> {
        let fate = match self.cut_off {
            true => rng.between(4, 9),
            false if rng.chance(self.fault) => rng.below(10),
            false => 10,
        };
        self.faults += usize::from(fate < 10);
        match fate {
            0..=3 => {
                self.make(&a_move, "answer lost")?;
                Err(Stop::Cut)
            }
            4..=6 => {
                self.say(|| format!("never made: {a_move:?}"));
                Err(Stop::Cut)
            }
            7..=9 => {
                self.say(|| format!("late: {a_move:?}"));
                self.late.push(a_move);
                Err(Stop::Cut)
            }
            _ => Ok(self.make(&a_move, "")?),
        }
    }

    fn make(&mut self, a_move: &Move, note: &str) -> Result<Answer, String> {
        self.touched = true;
        let answer = self.world.make(a_move)?;
        self.say(|| format!("{note} {a_move:?} -> {answer:?}"));
        match (a_move, &answer) {
            (Move::Beat { me, lease, .. }, Answer::Beat(beat)) if beat.registered => {
                self.beats.insert(*me, (self.now, *lease));
            }
            (Move::Join { lease, .. }, Answer::Joined(joined)) => {
                self.beats.insert(joined.number, (self.now, *lease));
            }
            (Move::Recover { dead, .. }, Answer::Recovered(Some(n))) => {
                self.recoveries += n;
                self.recovered.insert(dead.number);
            }
            _ => {}
        }
        Ok(answer)
    }

    /// Kept only with MOVES_TRACE set: writing down every move takes most of the time.
    fn say(&mut self, what: impl FnOnce() -> String) {
        if self.trace {
            let clock = self.world.clock() as f64 / 1e6 - 1.77e9;
            self.said.push(format!("{clock:.4} {}", what()));
        }
    }
}

/// What a recipient does with a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Taken,
    /// Arrives one time in two; the answer may get lost all the same.
    Flaky,
    /// Answered 500, until the quiet end.
    Failing,
    /// Answered 410.
    Refused,
    Undecodable,
}

struct Message {
    origin: usize,
    bytes: Vec<u8>,
    fate: Fate,
    id: Option<Id>,
    arrived: usize,
    /// Judged dead, or seen among the dead.
    died: bool,
    /// An operator dropped it, or it was lost with the data of a Redis that came back older.
    excused: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Endpoint {
    Up,
    Silent,
    Throttling,
}

/// Everything that was pushed, and what became of it.
struct Books {
    ordered: bool,
    messages: Vec<Message>,
    /// In order: to compare bytes is cheaper than to hash all of them.
    by_bytes: BTreeMap<Vec<u8>, usize>,
    /// In the order of the queue, by origin.
    order: Vec<Vec<usize>>,
    ids: HashMap<Id, usize>,
    endpoints: Vec<Endpoint>,
    rng: Rng,
    attempts: usize,
    /// Data has gone back: ids change and copies are many.
    rolled_back: bool,
    beats: HashMap<AgentNumber, (Instant, Duration)>,
    /// Agents that others took for dead.
    recovered: HashSet<AgentNumber>,
    /// Since when these are paused.
    paused: HashMap<String, Instant>,
    /// When the queue was last back from an outage, in which nobody could beat.
    back_since: Instant,
    /// Agents that are neither killed nor frozen, and have not been for a lease.
    awake: HashSet<AgentNumber>,
    quiet: bool,
}

impl Books {
    fn new_message(&mut self) -> usize {
        let n = self.messages.len();
        let origin = self.rng.below(self.endpoints.len());
        let fate = *self.rng.pick(&[
            Fate::Taken,
            Fate::Taken,
            Fate::Taken,
            Fate::Taken,
            Fate::Flaky,
            Fate::Failing,
            Fate::Refused,
            Fate::Undecodable,
        ]);
        let payload = vec![b'x'; *self.rng.pick(&[0, 0, 100, 400, 1200])];
        let bytes = if fate == Fate::Undecodable {
            format!("no envelope: {n}").into_bytes()
        } else {
            let endpoint = format!("http://o{origin}.example/{n}");
            Envelope::encode([("Content-Type", "text/plain")], &endpoint, &payload)
        };
        self.by_bytes.insert(bytes.clone(), n);
        self.messages.push(Message { origin, bytes, fate, id: None, arrived: 0, died: false, excused: false });
        n
    }

    /// It stands in the queue from now on.
    fn enqueued(&mut self, n: usize) {
        let message = &self.messages[n];
        if message.fate != Fate::Undecodable {
            self.order[message.origin].push(n);
        }
    }

    fn is_done(&self, n: usize) -> bool {
        let message = &self.messages[n];
        message.arrived > 0 || message.died || message.excused
    }
}

impl Ledger for Books {
    fn claimed(&mut self, claim: &RawClaim) -> Result<(), String> {
        let Some(&n) = self.by_bytes.get(&claim.bytes) else {
            return Err(format!("claimed {} with bytes that nobody pushed", claim.id));
        };
        if *self.ids.entry(claim.id).or_insert(n) != n {
            return Err(format!("id {} was given to two messages", claim.id));
        }
        let message = &mut self.messages[n];
        if message.id.is_some_and(|id| id != claim.id) && !self.rolled_back {
            return Err(format!("message {n} had the id {:?} and has {} now", message.id, claim.id));
        }
        message.id = Some(claim.id);
        Ok(())
    }

    fn begin(&mut self, claim: &Claim, heard: Instant) -> Result<Attempt, String> {
        let n = self.by_bytes[claim.envelope.raw()];
        self.attempts += 1;
        if self.recovered.contains(&claim.agent) && !self.rolled_back {
            return Err(format!("message {n} is attempted by agent {}, which others took for dead", claim.agent));
        }
        if self.paused.get(&*claim.origin).is_some_and(|since| *since < heard) {
            return Err(format!("message {n} is attempted, and {} is paused, which the agent has heard", claim.origin));
        }
        let origin = self.messages[n].origin;
        // What a Redis that lost data gives out again is not in order any more.
        if self.ordered && !self.rolled_back && self.order[origin].contains(&n) {
            let elders = self.order[origin].iter().take_while(|other| **other != n);
            if let Some(elder) = elders.copied().find(|other| !self.is_done(*other)) {
                let ids = (self.messages[elder].id, self.messages[n].id);
                return Err(format!("out of order: message {n} of o{origin} is attempted before {elder}, ids {ids:?}"));
            }
        }
        let answered = |status| Attempt::Answered { status, retry_after: None, note: None };
        let silent = || Attempt::Failed { failure: Failure::Timeout, error: "no answer".to_string() };
        if !self.quiet {
            if self.rng.chance(0.02) {
                return Ok(Attempt::Lacking { error: "no file descriptors".to_string() });
            }
            match self.endpoints[origin] {
                Endpoint::Silent => return Ok(silent()),
                Endpoint::Throttling => return Ok(answered(503)),
                Endpoint::Up => {}
            }
        }
        let coin = self.rng.below(4);
        let message = &mut self.messages[n];
        let (arrives, attempt) = match message.fate {
            Fate::Refused => (false, answered(410)),
            Fate::Failing if !self.quiet => (false, answered(500)),
            Fate::Flaky if !self.quiet && coin < 2 => (false, answered(500)),
            // It arrives, and nobody learns of it.
            Fate::Flaky if !self.quiet && coin == 2 => (true, silent()),
            _ => (true, answered(200)),
        };
        message.arrived += usize::from(arrives);
        Ok(attempt)
    }

    fn buried(&mut self, bytes: &[u8]) {
        let n = self.by_bytes[bytes];
        self.messages[n].died = true;
    }

    fn strays(&mut self, ids: &[Id]) -> Result<(), String> {
        if self.rolled_back { Ok(()) } else { Err(format!("a living agent has orphaned {ids:?}")) }
    }

    fn recovers(&mut self, dead: &Peer, now: Instant) -> Result<(), String> {
        let Some((beat, lease)) = self.beats.get(&dead.number) else { return Ok(()) };
        // The dead had a whole lease; the living have had no chance to beat for a part of it.
        let is_awake = self.awake.contains(&dead.number);
        let since = if is_awake { self.back_since.max(*beat) } else { *beat };
        let least = if is_awake { *lease * 2 / 3 } else { *lease };
        if self.rolled_back || now.saturating_duration_since(since) >= least {
            return Ok(());
        }
        Err(format!("agent {} is taken for dead; its last beat is {:?} ago", dead.number, now - *beat))
    }
}

struct Run<'a> {
    attack: &'a Attack<'a>,
    net: Net,
    books: Books,
    agents: Vec<SimAgent>,
    rng: Rng,
    limits: Limits,
    retry: Retry,
    calm: bool,
    last: Option<State>,
}

impl<'a> Run<'a> {
    fn new(attack: &'a Attack<'a>, world: World) -> Run<'a> {
        let mut rng = Rng::new(attack.seed);
        // No fault of any kind: then there are no copies either.
        let calm = !attack.rollback && rng.chance(0.2);
        let fault = if calm { 0.0 } else { *rng.pick(&[0.0, 0.05, 0.2]) };
        // Now and then more than the workers, and than most have messages.
        let n_origins = if rng.chance(0.2) { 60 } else { rng.between(1, 4) };
        let now = Instant::now() + Duration::from_secs(1_000_000);
        let workers = rng.between(1, 6);
        let limits = Limits {
            workers,
            endpoint_concurrency: if attack.ordered { 1 } else { rng.between(1, 4) },
            messages: (workers * 2).max(*rng.pick(&[4, 16, 64])),
            bytes: *rng.pick(&[1000, 1 << 20]),
            ordered: attack.ordered,
            retry_first: Duration::from_secs(5),
            retry_max: Duration::from_secs(120),
            give_up_after: Duration::from_secs(*rng.pick(&[60, 3600, 86_400])),
            attempt: Duration::from_secs(35),
        };
        let retry = Retry { give_up_after: limits.give_up_after, ordered: attack.ordered, ..Retry::default() };
        let net = Net {
            world,
            now,
            fault,
            cut_off: false,
            late: Vec::new(),
            faults: 0,
            beats: HashMap::new(),
            recoveries: 0,
            recovered: HashSet::new(),
            trace: std::env::var("MOVES_TRACE").is_ok(),
            said: Vec::new(),
            touched: true,
        };
        let books = Books {
            ordered: attack.ordered,
            messages: Vec::new(),
            by_bytes: BTreeMap::new(),
            order: vec![Vec::new(); n_origins],
            ids: HashMap::new(),
            endpoints: vec![Endpoint::Up; n_origins],
            rng: Rng::new(attack.seed ^ 0xb00c),
            attempts: 0,
            rolled_back: false,
            beats: HashMap::new(),
            recovered: HashSet::new(),
            paused: HashMap::new(),
            back_since: now,
            awake: HashSet::new(),
            quiet: false,
        };
        Run { attack, net, books, agents: Vec::new(), rng, limits, retry, calm, last: None }
    }

    fn all(&mut self) -> Result<Tally, String> {
        self.start_agent();
        for _ in 0..self.attack.steps {
            self.step()?;
            self.check()?;
        }
        self.quiet_end()?;
        let messages = &self.books.messages;
        Ok(Tally {
            messages: messages.len(),
            attempts: self.books.attempts,
            repeats: messages.iter().map(|message| message.arrived.saturating_sub(1)).sum(),
            dead: messages.iter().filter(|message| message.died).count(),
            faults: self.net.faults,
            recoveries: self.net.recoveries,
        })
    }

    fn start_agent(&mut self) {
        let seed = self.rng.next();
        let Run { attack, limits, retry, net, .. } = self;
        self.agents.push(SimAgent::new(attack.rules.clone(), limits.clone(), retry.clone(), seed, net.now));
    }

    /// Time goes on, for the agents and for the queue.
    fn pass(&mut self, time: Duration) {
        self.net.now += time;
        let clock = self.net.world.clock() + time.as_micros() as u64;
        self.net.world.set_clock(clock);
    }

    fn awake(&mut self) -> Option<usize> {
        let now = self.net.now;
        let awake: Vec<usize> = (0..self.agents.len()).filter(|at| self.agents[*at].is_awake(now)).collect();
        (!awake.is_empty()).then(|| *self.rng.pick(&awake))
    }

    fn step(&mut self) -> Result<(), String> {
        let disturbed = !self.calm;
        match self.rng.below(1000) {
            0..=129 => {
                for _ in 0..self.rng.between(1, 4) {
                    let n = self.books.new_message();
                    self.net.world.push(&self.books.messages[n].bytes);
                    self.net.touched = true;
                    self.books.enqueued(n);
                }
            }
            130..=144 if self.agents.iter().filter(|agent| agent.alive).count() < 4 => self.start_agent(),
            145..=159 if disturbed => {
                if let Some(at) = self.awake() {
                    self.net.say(|| "kill -9".to_string());
                    self.ends(at)?;
                    self.agents[at].alive = false;
                }
            }
            160..=171 if disturbed => {
                if let Some(at) = self.awake() {
                    let time = Duration::from_secs(*self.rng.pick(&[3, 20, 60, 200]));
                    self.agents[at].frozen_until = Some(self.net.now + time);
                }
            }
            172..=179 => {
                if let Some(at) = self.awake() {
                    // What it cannot settle before it leaves, and the queue has lost, goes with it.
                    self.ends(at)?;
                    self.net.cut_off = self.agents[at].is_cut_off(self.net.now);
                    let left = self.agents[at].leave(self.calm, &mut self.net, &mut self.books, &mut self.rng);
                    self.net.cut_off = false;
                    unless_cut(left)?;
                }
            }
            180..=194 => self.operate()?,
            312..=326 => self.order()?,
            195..=199 => self.net.world.flush_scripts(),
            200..=219 if disturbed => {
                let seconds = *self.rng.pick(&[1, 10, 100, 3600, 3 * 86_400]);
                let clock = self.net.world.clock();
                // Going back and losing data at once may use a number twice: that is not promised.
                let back = !self.attack.rollback && self.rng.chance(0.4);
                let to = if back { clock - seconds * 1_000_000 } else { clock + seconds * 1_000_000 };
                self.net.say(|| format!("the queue's clock goes by {seconds} s, back: {back}"));
                self.net.world.set_clock(to);
            }
            295..=299 if disturbed => {
                let outage = Duration::from_secs(*self.rng.pick(&[8, 30, 100]));
                self.pass(outage);
                self.books.back_since = self.net.now;
            }
            300..=311 if disturbed => {
                if let Some(at) = self.awake() {
                    let time = Duration::from_secs(*self.rng.pick(&[3, 20, 60, 200]));
                    self.net.say(|| format!("agent {at} is cut off for {time:?}"));
                    self.agents[at].cut_off_until = Some(self.net.now + time);
                }
            }
            220..=249 if !self.net.late.is_empty() => {
                let at = self.rng.below(self.net.late.len());
                let a_move = self.net.late.swap_remove(at);
                self.net.make(&a_move, "now the late")?;
            }
            250..=259 if self.attack.rollback => self.snapshot_or_roll_back()?,
            260..=289 => {
                let at = self.rng.below(self.books.endpoints.len());
                let state = *self.rng.pick(&[Endpoint::Up, Endpoint::Up, Endpoint::Silent, Endpoint::Throttling]);
                self.books.endpoints[at] = state;
            }
            290..=294 => {
                let adopted: Vec<usize> = (0..self.rng.between(1, 3)).map(|_| self.books.new_message()).collect();
                let mut due = || (self.net.world.clock() / 1_000_000) as i64 + self.rng.between(0, 20) as i64 - 10;
                let left: Vec<(i64, Vec<u8>)> =
                    adopted.iter().map(|n| (due(), self.books.messages[*n].bytes.clone())).collect();
                self.net.world.leave_legacy(&left);
                // What another service had popped has lost its place in the queue's order, and has none in the books.
                self.net.make(&Move::Adopt, "")?;
            }
            _ => {
                if let Some(at) = self.awake() {
                    self.agent_step(at)?;
                }
                let time = *self.rng.pick(&[
                    Duration::from_micros(100),
                    Duration::from_millis(10),
                    Duration::from_millis(800),
                ]);
                self.pass(time);
                self.beats(0.7)?;
            }
        }
        Ok(())
    }

    fn agent_step(&mut self, at: usize) -> Result<(), String> {
        let Run { agents, net, books, rng, .. } = self;
        let agent = &mut agents[at];
        books.recovered.clone_from(&net.recovered);
        net.cut_off = agent.is_cut_off(net.now);
        let done = match rng.below(10) {
            0..=2 => agent.read(net, books, rng),
            3..=4 => agent.begin(net.now, books),
            5..=6 => {
                agent.finish(net.now, books, rng);
                Ok(())
            }
            _ => agent.settle(net, rng),
        };
        net.cut_off = false;
        unless_cut(done)
    }

    fn beats(&mut self, probability: f64) -> Result<(), String> {
        let now = self.net.now;
        // One that has just thawed, or come back, may be dead to the others, and rightly.
        let thawed = |agent: &&SimAgent| {
            let is_over = |until: Option<Instant>| until.is_none_or(|until| until + agent.lease() <= now);
            is_over(agent.frozen_until) && is_over(agent.cut_off_until)
        };
        let awake = self.agents.iter().filter(|agent| agent.is_awake(now)).filter(thawed);
        let awake: HashSet<AgentNumber> = awake.filter_map(SimAgent::number).collect();
        for at in 0..self.agents.len() {
            let Run { agents, net, books, rng, .. } = self;
            if agents[at].is_awake(net.now) && net.now >= agents[at].next_beat && rng.chance(probability) {
                books.beats.clone_from(&net.beats);
                books.awake = awake.clone();
                net.cut_off = agents[at].is_cut_off(net.now);
                let beat = agents[at].beat(net, books, rng);
                net.cut_off = false;
                unless_cut(beat)?;
            }
        }
        Ok(())
    }

    /// What operators do with the dead.
    fn operate(&mut self) -> Result<(), String> {
        let state = self.net.world.state()?;
        let dead: Vec<Id> = state.dead.keys().copied().collect();
        let mut some: Vec<Id> = dead.iter().copied().filter(|_| self.rng.chance(0.5)).collect();
        // Also such as are not dead.
        some.extend(state.inflight.keys().chain(state.retry.keys()).take(1));
        let (n, gone) = match self.rng.below(4) {
            0 | 1 => {
                let replayed = self.net.make(&Move::Replay(some.clone()), "")?;
                let after = self.net.world.state()?;
                for id in some.iter().filter(|id| state.dead.contains_key(id)) {
                    let is_new = |record: &Record| (record.attempts, record.own_failures) == (0, 0);
                    if !after.history.get(id).is_some_and(is_new) || after.recovered.contains_key(id) {
                        return Err(format!("{id} was replayed and keeps its past"));
                    }
                }
                (replayed, Vec::new())
            }
            2 => (self.net.make(&Move::Drop(some.clone()), "")?, some),
            _ => {
                let age = Duration::from_secs(*self.rng.pick(&[0, 10, 1000]));
                let until = (self.net.world.clock() / 1000) as i64 - age.as_millis() as i64;
                let old = dead.iter().copied().filter(|id| state.dead[id] <= until).collect();
                (self.net.make(&Move::Forget(age), "")?, old)
            }
        };
        let _ = n;
        for id in gone.iter().filter(|id| state.dead.contains_key(id)) {
            self.books.messages[self.books.by_bytes[&state.messages[id]]].excused = true;
        }
        Ok(())
    }

    /// What operators do with endpoints, and with what waits or is put off.
    fn order(&mut self) -> Result<(), String> {
        let state = self.net.world.state()?;
        match self.rng.below(8) {
            0 => {
                let ids: Vec<Id> = state.retry.keys().copied().filter(|_| self.rng.chance(0.5)).collect();
                self.net.make(&Move::RetryNow(ids.clone()), "")?;
                let (after, now) = (self.net.world.state()?, (self.net.world.clock() / 1000) as i64);
                if let Some(id) = ids.iter().find(|id| after.retry.get(id).is_none_or(|due| *due > now)) {
                    return Err(format!("{id} was to be tried now, and is not due"));
                }
            }
            1 => {
                let mut waiting: Vec<_> = state.waiting.iter().filter(|_| self.rng.chance(0.2)).cloned().collect();
                // Also such as do not wait.
                waiting.extend(state.inflight.keys().take(1).map(|id| ("http://o0.example:80".to_string(), *id)));
                self.net.make(&Move::DropWaiting(waiting.clone()), "")?;
                for (_, id) in waiting.iter().filter(|one| state.waiting.contains(one)) {
                    self.books.messages[self.books.by_bytes[&state.messages[id]]].excused = true;
                }
            }
            what => {
                let hand = [Hand::Pause, Hand::Resume, Hand::Try][what % 3];
                let n = self.books.endpoints.len();
                let first = self.rng.below(n);
                let origins = (first..n.min(first + 2)).map(|at| format!("http://o{at}.example:80")).collect();
                let dry = self.rng.chance(0.1);
                self.net.make(&Move::Order { hand, dry, origins }, "")?;
                self.know_orders()?;
                if dry && self.net.world.state()? != state {
                    return Err(format!("a dry {hand} has changed something"));
                }
            }
        }
        Ok(())
    }

    /// What is paused, and since when as far as agents can tell.
    fn know_orders(&mut self) -> Result<(), String> {
        let orders = self.net.world.state()?.orders;
        self.books.paused.retain(|origin, _| orders.is_paused(origin));
        for (origin, _) in orders.paused() {
            self.books.paused.entry(origin.clone()).or_insert(self.net.now);
        }
        Ok(())
    }

    fn snapshot_or_roll_back(&mut self) -> Result<(), String> {
        let before = self.net.world.state()?;
        if self.rng.chance(0.2) {
            self.net.say(|| "FLUSHALL".to_string());
            self.net.world.flush();
        } else if !self.net.world.roll_back() {
            return self.net.world.take_snapshot();
        } else {
            self.net.say(|| "the queue has come back with older data".to_string());
        }
        // A restart takes a while, so that the counter has not run ahead of the clock; connections are gone.
        self.pass(Duration::from_secs(1));
        self.net.late.clear();
        self.books.rolled_back = true;
        self.net.touched = true;
        self.know_orders()?;
        let after = here(&self.net.world.state()?);
        // What others took over was the queue's to lose, also before its old holder has let go of it.
        let in_flight: HashSet<usize> =
            before.inflight.keys().filter_map(|id| self.books.ids.get(id).copied()).collect();
        let held: HashSet<usize> = self.of_the_living(None, SimAgent::surely_held);
        let held: HashSet<usize> = held.intersection(&in_flight).copied().collect();
        for bytes in here(&before).difference(&after) {
            let n = self.books.by_bytes[bytes];
            // What a living agent holds comes out all the same.
            self.books.messages[n].excused |= !held.contains(&n);
        }
        Ok(())
    }

    /// The messages in the hands of agents that are alive, but for one.
    fn of_the_living(&self, but: Option<usize>, held: fn(&SimAgent) -> Vec<Id>) -> HashSet<usize> {
        let living = self.agents.iter().enumerate().filter(|(at, agent)| agent.alive && Some(*at) != but);
        living.flat_map(|(_, agent)| held(agent)).filter_map(|id| self.books.ids.get(&id).copied()).collect()
    }

    /// This agent ends: with it goes what nobody else has, of what the queue has lost.
    fn ends(&mut self, at: usize) -> Result<(), String> {
        if !self.books.rolled_back {
            return Ok(());
        }
        let here = here(&self.net.world.state()?);
        let others = self.of_the_living(Some(at), SimAgent::held);
        let its = self.agents[at].held();
        for n in its.into_iter().filter_map(|id| self.books.ids.get(&id).copied()) {
            let message = &mut self.books.messages[n];
            message.excused |= !here.contains(&message.bytes) && !others.contains(&n);
        }
        Ok(())
    }

    fn check(&mut self) -> Result<(), String> {
        if !std::mem::take(&mut self.net.touched) {
            return Ok(());
        }
        let state = self.net.world.state()?;
        invariant(&state)?;
        let mut is_here = vec![false; self.books.messages.len()];
        for bytes in state.queue.iter().chain(state.messages.values()) {
            let n = self.books.by_bytes[bytes];
            if std::mem::replace(&mut is_here[n], true) && !self.books.rolled_back {
                return Err(format!("two of message {n}"));
            }
        }
        for id in state.dead.keys() {
            self.books.messages[self.books.by_bytes[&state.messages[id]]].died = true;
        }
        let mut held = None;
        for (n, message) in self.books.messages.iter().enumerate() {
            let is_held = || {
                self.books.rolled_back
                    && held.get_or_insert_with(|| self.of_the_living(None, SimAgent::held)).contains(&n)
            };
            if !is_here[n] && message.arrived == 0 && !message.excused && !{ is_held }() {
                return Err(format!(
                    "message {n} of o{} ({:?}) is lost, id {:?}",
                    message.origin, message.fate, message.id
                ));
            }
            if self.calm && message.fate != Fate::Flaky && message.arrived > 1 {
                return Err(format!("message {n} arrived {} times, and nothing has failed", message.arrived));
            }
        }
        self.last = Some(state);
        Ok(())
    }

    /// The faults are over: all that is not dead must get out.
    fn quiet_end(&mut self) -> Result<(), String> {
        self.net.fault = 0.0;
        while let Some(a_move) = self.net.late.pop() {
            self.net.make(&a_move, "now the late")?;
            self.check()?;
        }
        self.books.quiet = true;
        self.books.endpoints.fill(Endpoint::Up);
        for agent in &mut self.agents {
            agent.frozen_until = None;
            agent.cut_off_until = None;
        }
        if !self.agents.iter().any(|agent| agent.alive) {
            self.start_agent();
        }
        let mut silent = Duration::ZERO;
        for round in 0..600 {
            if round == 20 {
                self.resume_all()?;
            }
            self.beats(1.0)?;
            for at in 0..self.agents.len() {
                if self.agents[at].alive {
                    self.work(at)?;
                }
            }
            self.check()?;
            let state = self.last.clone().expect("just checked");
            if state.queue.is_empty() && state.messages.len() == state.dead.len() {
                return Ok(());
            }
            // The dead are found at the usual pace; then in greater steps, for backoffs of an hour.
            let step = if round < 120 { Duration::from_millis(1500) } else { Duration::from_secs(40) };
            self.pass(step);
            silent += step;
        }
        let state = self.net.world.state()?;
        Err(format!(
            "stuck after {silent:?} without a fault: queue {}, inflight {:?}, waiting {:?}, lanes {:?}, retry {:?}, agents {:?}, now {}",
            state.queue.len(),
            state.inflight,
            state.waiting,
            state.lanes,
            state.retry,
            state.agents,
            self.net.world.clock() / 1000
        ))
    }

    /// What is paused waits, and nothing of it is lost: only then it is resumed, and must get out too.
    fn resume_all(&mut self) -> Result<(), String> {
        let orders = self.net.world.state()?.orders;
        let mut origins: Vec<String> = orders.paused().map(|(origin, _)| origin.clone()).collect();
        origins.sort_unstable();
        self.net.make(&Move::Order { hand: Hand::Resume, dry: false, origins }, "")?;
        self.know_orders()
    }

    /// One agent does what it can at this moment.
    fn work(&mut self, at: usize) -> Result<(), String> {
        for _ in 0..30 {
            for _ in 0..4 {
                // No two steps at the same moment: the lanes compare times.
                self.pass(Duration::from_micros(5));
                let Run { agents, net, books, rng, .. } = self;
                let agent = &mut agents[at];
                unless_cut(agent.settle(net, rng))?;
                unless_cut(agent.read(net, books, rng))?;
                // Who died in this step is to be known before the next attempt begins.
                self.check()?;
                let Run { agents, net, books, rng, .. } = self;
                let agent = &mut agents[at];
                books.recovered.clone_from(&net.recovered);
                unless_cut(agent.begin(net.now, books))?;
                agent.finish(net.now, books, rng);
            }
            self.pass(Duration::from_micros(50));
            if self.agents[at].is_idle() {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// All that is in the queue, claimed or not.
fn here(state: &State) -> BTreeSet<Vec<u8>> {
    state.queue.iter().chain(state.messages.values()).cloned().collect()
}

fn unless_cut(result: Result<(), Stop>) -> Result<(), String> {
    match result {
        Ok(()) | Err(Stop::Cut) => Ok(()),
        Err(Stop::Broken(why)) => Err(why),
    }
}

/// Which seeds, and how many: MOVES_SEED and MOVES_RUNS, or a few from a fixed one.
fn seeds(usual: u64) -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse().expect("MOVES_… is a number"));
    let first = number("MOVES_SEED").unwrap_or(1);
    first..first + number("MOVES_RUNS").unwrap_or(usual)
}

fn attack(on: On, ordered: bool, rollback: bool, usual: u64) {
    let redis = (on != On::Memory).then(|| Redis::with(&["appendonly no"]));
    let mut tally = Tally::default();
    let mut failures = Vec::new();
    let seeds = seeds(usual);
    for seed in seeds.clone() {
        match Attack::new(seed, ordered, rollback).run(on, redis.as_ref()) {
            Ok(one) => tally.add(one),
            Err(why) => {
                println!("{why}");
                failures.push(why);
            }
        }
        if failures.len() >= 5 {
            break;
        }
    }
    println!("ordered {ordered}, rollback {rollback}, on {on:?}, seeds {seeds:?}: {tally:?}");
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n\n"));
}

#[test]
fn attack_in_memory_loses_nothing() {
    attack(On::Memory, false, false, 25);
}

#[test]
fn attack_in_memory_keeps_the_order() {
    attack(On::Memory, true, false, 25);
}

#[test]
fn attack_in_memory_survives_older_data() {
    attack(On::Memory, false, true, 10);
    attack(On::Memory, true, true, 10);
}

#[test]
fn attack_on_redis_loses_nothing_and_is_as_in_memory() {
    attack(On::Both, false, false, 6);
}

#[test]
fn attack_on_redis_keeps_the_order_and_is_as_in_memory() {
    attack(On::Both, true, false, 6);
}

#[test]
fn attack_on_redis_survives_older_data_and_is_as_in_memory() {
    attack(On::Both, false, true, 3);
    attack(On::Both, true, true, 3);
}
