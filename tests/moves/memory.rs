//! The queue in memory. Every move does what its script does on Redis, result by result and place by place; a
//! test plays both against each other. It can go back to an older state, and its clock can be set.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::orders::{Before, Hand, MOST_PAUSED, Order, Orders, Standing};
use crate::queue::redis::adopt;
use crate::queue::{
    Adopted, AgentNumber, Beat, Bounds, Claimed, Error, FailedLane, Fate, HIGHEST_NUMBER, History, Id, Joined,
    LaneChange, Peer, Place, Queue, RawClaim, Settlement, Source, Waited, WaitingLane, Want,
};

/// Numbers left out when data was lost, at least.
const MARGIN: u64 = 10_000_000;
/// The time of a lane that is paused.
pub const NEVER: i64 = 9_000_000_000_000_000;
/// An order to try an endpoint is kept for so many microseconds.
const TRIED_FOR: u64 = 60_000_000;
/// So many agents that were taken for dead are remembered.
const MOST_RECOVERED: usize = 1000;

/// One end of a queue in memory; clones are further ends of the same queue.
#[derive(Clone, Default)]
pub struct Memory {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    inner: Mutex<Inner>,
    /// Something was pushed.
    pushed: Condvar,
}

#[derive(Default)]
struct Inner {
    state: State,
    /// Microseconds; `None`: the machine's clock.
    clock: Option<u64>,
}

/// Everything that a queue holds. Times are milliseconds since 1970 by the queue's clock.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct State {
    /// What was pushed and never claimed, oldest first.
    pub queue: VecDeque<Vec<u8>>,
    /// The last number given out, to a message or an agent.
    pub last_number: u64,
    /// Every message from its claim to its end.
    pub messages: BTreeMap<Id, Vec<u8>>,
    /// Who has claimed what.
    pub inflight: BTreeMap<Id, AgentNumber>,
    /// What waits for its lane, by origin and then age.
    pub waiting: BTreeSet<(String, Id)>,
    /// When a lane with waiting messages may be tried: a time; 0: open; negative: never failed, since then.
    pub lanes: BTreeMap<String, i64>,
    /// Of lanes that failed: how many times in a row, whether the last one was slow, and the last error.
    pub failures: BTreeMap<String, (u32, bool, String)>,
    /// Due times of messages with a backoff of their own, recovered or replayed.
    pub retry: BTreeMap<Id, i64>,
    /// Dead letters, and when they died.
    pub dead: BTreeMap<Id, i64>,
    /// What is remembered of messages that were put off.
    pub history: BTreeMap<Id, Record>,
    /// Agents that died with a message in flight.
    pub recovered: BTreeMap<Id, u32>,
    /// Who is registered, and when the lease runs out.
    pub agents: BTreeMap<AgentNumber, i64>,
    /// Each agent's last claim: its call and what it took.
    pub claims: BTreeMap<AgentNumber, (u64, Vec<(Id, Source)>)>,
    /// Each agent's last settle: its call, and what was not its own any more.
    pub settles: BTreeMap<AgentNumber, (u64, Vec<Id>)>,
    /// How long each agent's leases are, and the longest delay that it gives, in milliseconds.
    pub lengths: BTreeMap<AgentNumber, (u64, u64)>,
    /// When an agent beat last.
    pub last_beat: i64,
    /// Agents that others took for dead, the newest last.
    pub recovered_agents: Vec<AgentNumber>,
    /// What operators have ordered for endpoints.
    pub orders: Orders,
    /// What another delivery service has put off, by when it is due in Unix seconds.
    pub legacy: BTreeSet<(i64, Vec<u8>)>,
}

/// What is remembered of a message that was put off.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Record {
    /// Attempts made.
    pub attempts: u32,
    /// Of these, failures of the message's own.
    pub own_failures: u32,
    /// When it first failed, or, not attempted yet, was first put off.
    pub first: i64,
    /// Its endpoint is paused and it grows no older: then `first` is its age.
    pub stands_still: bool,
    /// The last error.
    pub last_error: String,
}

impl Record {
    fn first_at(&self, clock: Clock) -> i64 {
        if self.stands_still { clock.now() - self.first } else { self.first }
    }
}

impl Memory {
    /// An empty queue that goes by the machine's clock.
    pub fn new() -> Memory {
        Memory::default()
    }

    /// Sets the queue's clock, in microseconds since 1970, forwards or back; it stands still from then on.
    pub fn set_clock(&self, micros: u64) {
        self.inner().clock = Some(micros);
    }

    /// Appends messages, as ACA-Py does.
    pub fn push<B: Into<Vec<u8>>>(&self, messages: impl IntoIterator<Item = B>) {
        self.inner().state.queue.extend(messages.into_iter().map(Into::into));
        self.shared.pushed.notify_all();
    }

    /// Everything as it is now.
    pub fn state(&self) -> State {
        self.inner().state.clone()
    }

    /// Puts everything as it was then: a Redis that came back with older data.
    pub fn roll_back(&self, state: State) {
        self.inner().state = state;
        self.shared.pushed.notify_all();
    }

    /// Makes dead messages due again, as if they had never been attempted; returns how many of them were dead.
    pub fn replay(&mut self, ids: &[Id]) -> Result<usize, Error> {
        self.make(|state, clock| state.replay(clock, ids))
    }

    /// Removes dead messages for good; returns how many of them were dead.
    pub fn drop_dead(&mut self, ids: &[Id]) -> Result<usize, Error> {
        self.make(|state, _| state.drop_dead(ids))
    }

    /// Makes what is on the retry schedule due now; returns how many of them were there.
    pub fn retry_now(&mut self, ids: &[Id]) -> Result<usize, Error> {
        self.make(|state, clock| state.retry_now(clock, ids))
    }

    /// Removes for good what waits for its endpoint; returns how many of them waited.
    pub fn drop_waiting(&mut self, waiting: &[(String, Id)]) -> Result<usize, Error> {
        self.make(|state, _| state.drop_waiting(waiting))
    }

    /// Gives an order for these endpoints, each named once; `None` if more would be paused than may be.
    pub fn order(&mut self, hand: Hand, dry: bool, origins: &[String]) -> Result<Option<Vec<Before>>, Error> {
        self.make(|state, clock| state.order(clock, hand, dry, origins))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.shared.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn make<T>(&self, a_move: impl FnOnce(&mut State, Clock) -> T) -> Result<T, Error> {
        let mut inner = self.inner();
        let clock = inner.clock.unwrap_or_else(|| {
            SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros().try_into().unwrap_or(u64::MAX)
        });
        Ok(a_move(&mut inner.state, Clock(clock)))
    }
}

impl Queue for Memory {
    fn join(&mut self, lease: Duration, old: Option<AgentNumber>, seen: u64) -> Result<Joined, Error> {
        self.make(|state, clock| state.join(clock, lease, old, seen))
    }

    fn claim(&mut self, me: AgentNumber, call: u64, again: bool, bounds: &Bounds) -> Result<Claimed, Error> {
        self.make(|state, clock| state.claim(clock, me, call, again, bounds))
    }

    fn orders(&mut self) -> Result<Orders, Error> {
        self.make(|state, _| state.orders.clone())
    }

    fn wait(&mut self, at_most: Duration) -> Result<Waited, Error> {
        self.make(|_, _| ())?;
        let until = Instant::now() + at_most;
        let mut inner = self.inner();
        while inner.state.queue.is_empty() {
            let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) else {
                return Ok(Waited::Nothing);
            };
            inner = self.shared.pushed.wait_timeout(inner, left).unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        }
        Ok(Waited::Something)
    }

    fn settle(
        &mut self,
        me: AgentNumber,
        call: u64,
        settlements: &[Settlement],
        changes: &[LaneChange],
    ) -> Result<Option<Vec<Id>>, Error> {
        self.make(|state, clock| state.settle(clock, me, call, settlements, changes))
    }

    fn beat(&mut self, me: AgentNumber, lease: Duration, seen: u64, longest: Duration) -> Result<Beat, Error> {
        self.make(|state, clock| state.beat(clock, me, lease, seen, longest))
    }

    fn recover(&mut self, _me: AgentNumber, dead: &Peer, limit: usize) -> Result<Option<usize>, Error> {
        self.make(|state, clock| {
            let lease = state.agents.get(&dead.number).map(|&lease| lease as u64);
            (lease == dead.lease).then(|| {
                state.note_recovered(dead.number);
                state.recover(clock, dead.number, limit, true)
            })
        })
    }

    fn leave(&mut self, me: AgentNumber) -> Result<(), Error> {
        self.make(|state, clock| {
            state.recover(clock, me, usize::MAX, false);
        })
    }

    fn in_flight(&mut self, me: AgentNumber) -> Result<Vec<Id>, Error> {
        self.make(|state, _| state.in_flight(me))
    }

    fn give_back(&mut self, me: AgentNumber, ids: &[Id]) -> Result<usize, Error> {
        self.make(|state, clock| {
            let before = state.inflight.len();
            for id in ids {
                if state.inflight.get(id) == Some(&me) {
                    state.inflight.remove(id);
                    state.retry.insert(*id, clock.now());
                }
            }
            before - state.inflight.len()
        })
    }

    fn restore(&mut self, me: AgentNumber, messages: &[(Id, Arc<Vec<u8>>)]) -> Result<Option<Vec<Id>>, Error> {
        self.make(|state, clock| state.restore(clock, me, messages))
    }

    fn put_back(&mut self, popped: &[u8]) -> Result<(), Error> {
        self.make(|state, _| state.queue.push_front(popped.to_vec()))
    }

    fn hasten(&mut self, longest: Duration, limit: usize) -> Result<usize, Error> {
        self.make(|state, clock| state.hasten(clock, longest, limit))
    }

    fn has(&mut self, ids: &[Id]) -> Result<Vec<bool>, Error> {
        self.make(|state, _| ids.iter().map(|id| state.messages.contains_key(id)).collect())
    }

    fn lanes(&mut self) -> Result<Vec<WaitingLane>, Error> {
        self.make(|state, clock| {
            let lane = |(origin, score): (String, i64)| WaitingLane {
                origin,
                due_in: (score > 0).then(|| millis(score - clock.now())),
                is_paused: score == NEVER,
            };
            by_score(&state.lanes).into_iter().map(lane).collect()
        })
    }

    fn some_lanes(&mut self, from: usize, limit: usize) -> Result<Vec<WaitingLane>, Error> {
        Ok(self.lanes()?.into_iter().skip(from).take(limit).collect())
    }

    fn prepare(&mut self) -> Result<Vec<String>, Error> {
        self.make(|_, _| Vec::new())
    }

    fn adopt(&mut self, seen: u64) -> Result<Adopted, Error> {
        self.make(|state, clock| state.adopt(clock, seen))
    }

    fn forget_dead(&mut self, age: Duration, limit: usize, latest: u64) -> Result<usize, Error> {
        self.make(|state, clock| {
            if clock.now() as u64 > latest {
                return 0;
            }
            let until = clock.now() - score(age);
            let old = by_score(&state.dead).into_iter().filter(|(_, died)| *died <= until).take(limit);
            let died_before_its_claim =
                |(id, died): &(Id, i64)| clock.claimed_by(*id).is_some_and(|at| *died < at - 60_000);
            let (rising, old): (Vec<_>, Vec<_>) = old.partition(died_before_its_claim);
            state.dead.extend(rising.into_iter().map(|(id, _)| (id, clock.now())));
            state.drop_dead(&old.into_iter().map(|(id, _)| id).collect::<Vec<_>>())
        })
    }
}

/// The queue's clock at the moment of a move, in microseconds.
#[derive(Clone, Copy)]
struct Clock(u64);

impl Clock {
    /// In milliseconds, as the queue's times are.
    fn now(self) -> i64 {
        (self.0 / 1000) as i64
    }

    /// So many numbers are left out when data was lost.
    fn margin(self) -> u64 {
        MARGIN + self.0 % 1_000_000 * 100
    }

    fn after(self, delay: Duration) -> i64 {
        self.now() + score(delay)
    }

    /// When a message was claimed, if that is not in the future.
    fn claimed_by(self, id: Id) -> Option<i64> {
        Some(id.claimed_ms()).filter(|claimed| *claimed <= self.now())
    }
}

/// Whole milliseconds, as they are sent to Redis.
fn score(duration: Duration) -> i64 {
    duration.as_millis().min(u128::from(u32::MAX) * 1000) as i64
}

/// The time of a lane that is probed is odd, every other one is even.
fn probed(score: i64) -> i64 {
    score | 1
}

fn not_probed(score: i64) -> i64 {
    score & !1
}

fn millis(score: i64) -> Duration {
    Duration::from_millis(score.max(0) as u64)
}

/// As a sorted set gives its members: by score, then by member.
fn by_score<K: Ord + Clone>(scores: &BTreeMap<K, i64>) -> Vec<(K, i64)> {
    let mut members: Vec<(K, i64)> = scores.iter().map(|(member, score)| (member.clone(), *score)).collect();
    members.sort_by_key(|(_, score)| *score);
    members
}

/// What a claim has taken so far; nothing is changed before all is read.
struct Batch {
    claims: Vec<RawClaim>,
    bytes: usize,
    /// Messages that return, at most.
    returning: usize,
    /// Whether bytes that return are bounded by half.
    halved: bool,
    /// Of those that were in flight in an agent that died, how many more may be taken; how many that two died of
    /// are worked on, and the most that died of one.
    fragile: usize,
    suspects: usize,
    gravest: u32,
    /// Whether something is due that may not be taken now.
    passed_over: bool,
    lanes_left: bool,
    /// Leave the retry schedule.
    retried: Vec<Id>,
    strays: Vec<Id>,
    /// Leave their lanes.
    left: Vec<(String, Id)>,
    emptied: Vec<String>,
    moved_lanes: Vec<(String, i64)>,
    no_lanes: usize,
    failures: Vec<FailedLane>,
}

/// New messages that a claim takes.
#[derive(Default)]
struct Fresh {
    taken: Vec<Vec<u8>>,
    too_large: Vec<Vec<u8>>,
    /// How many of both are still in the queue.
    of_queue: usize,
}

impl Batch {
    fn has_returning_bytes(&self, bounds: &Bounds) -> bool {
        self.bytes * if self.halved { 2 } else { 1 } >= bounds.bytes
    }

    fn may_go(&self, died: u32) -> bool {
        let together = match died.max(self.gravest) {
            0..=2 => 16,
            3 => 4,
            _ => 1,
        };
        died == 0 || self.fragile > 0 && (died < 2 || self.suspects < together)
    }

    fn goes(&mut self, died: u32) {
        self.fragile -= usize::from(died > 0);
        if died >= 2 {
            self.suspects += 1;
            self.gravest = self.gravest.max(died);
        }
    }
}

impl State {
    fn next_numbers(&mut self, clock: Clock, n: u64, seen: u64) -> u64 {
        let sane = Some(self.last_number).filter(|last| *last < HIGHEST_NUMBER);
        let last = sane.unwrap_or(0).max(clock.0);
        let last = if last < seen { (seen + clock.margin()).min(HIGHEST_NUMBER - 1 - n) } else { last };
        self.last_number = last + n;
        last
    }

    fn new_ids(&mut self, clock: Clock, n: usize, seen: u64) -> impl Iterator<Item = Id> + use<> {
        let base = if n == 0 { 0 } else { self.next_numbers(clock, n as u64, seen) };
        (base + 1..=base + n as u64).map(Id)
    }

    fn join(&mut self, clock: Clock, lease: Duration, old: Option<AgentNumber>, seen: u64) -> Joined {
        let old = match old {
            Some(old) if self.agents.contains_key(&old) => Fate::Registered,
            Some(old) if self.recovered_agents.contains(&old) => Fate::Recovered,
            _ => Fate::Unknown,
        };
        if self.last_number > clock.0 + MARGIN {
            self.next_numbers(clock, clock.margin(), seen);
        }
        let number = AgentNumber(self.next_numbers(clock, 1, seen) + 1);
        self.agents.insert(number, clock.after(lease));
        self.lengths.insert(number, (score(lease) as u64, 0));
        Joined { number, old, set_back: millis(self.last_beat - clock.now()) }
    }

    fn note_recovered(&mut self, agent: AgentNumber) {
        if !self.recovered_agents.contains(&agent) {
            self.recovered_agents.push(agent);
            let beyond = self.recovered_agents.len().saturating_sub(MOST_RECOVERED);
            self.recovered_agents.drain(..beyond);
        }
    }

    fn restore(&mut self, clock: Clock, me: AgentNumber, messages: &[(Id, Arc<Vec<u8>>)]) -> Option<Vec<Id>> {
        if !self.agents.contains_key(&me) {
            return None;
        }
        let highest = messages.iter().map(|(id, _)| id.0).max().unwrap_or(0);
        if self.last_number < highest {
            self.next_numbers(clock, 0, highest);
        }
        for (id, bytes) in messages {
            if !self.messages.contains_key(id) {
                self.messages.insert(*id, bytes.to_vec());
                self.inflight.insert(*id, me);
            }
        }
        Some(messages.iter().map(|(id, _)| *id).filter(|id| self.inflight.get(id) == Some(&me)).collect())
    }

    fn hasten(&mut self, clock: Clock, longest: Duration, limit: usize) -> usize {
        let beyond = clock.after(longest);
        let retries: Vec<Id> =
            by_score(&self.retry).into_iter().filter(|(_, due)| *due > beyond).map(|(id, _)| id).take(limit).collect();
        let lanes: Vec<String> = by_score(&self.lanes)
            .into_iter()
            .filter(|(_, due)| *due > beyond && *due != NEVER)
            .map(|(lane, _)| lane)
            .take(limit)
            .collect();
        let n = retries.len() + lanes.len();
        self.retry.extend(retries.into_iter().map(|id| (id, clock.now())));
        self.lanes.extend(lanes.into_iter().map(|origin| (origin, not_probed(clock.now()))));
        n
    }

    fn claim(&mut self, clock: Clock, me: AgentNumber, call: u64, again: bool, bounds: &Bounds) -> Claimed {
        if !self.agents.contains_key(&me) {
            return Claimed::Gone;
        }
        match self.claims.get(&me) {
            Some((last, taken)) if *last == call => {
                let mine = |(id, _): &&(Id, Source)| self.inflight.get(id) == Some(&me);
                let claims = taken.iter().filter(mine).filter_map(|(id, source)| self.give(clock, *id, *source));
                return Claimed::Taken {
                    claims: claims.collect(),
                    emptied: Vec::new(),
                    failures: Vec::new(),
                    oversized: Vec::new(),
                    due_in: Some(Duration::ZERO),
                    more: true,
                    at: clock.now() as u64,
                    numbered: 0,
                    orders: self.orders_news(bounds),
                };
            }
            Some((last, _)) if *last > call => return Claimed::Gone,
            _ => {}
        }
        if bounds.ordered && (self.agents.keys().any(|other| *other < me) || self.inflight.values().any(|n| *n != me)) {
            if again {
                self.claims.insert(me, (call, Vec::new()));
            }
            return Claimed::Standby;
        }

        let queued = self.queue.len() + usize::from(bounds.popped.is_some());
        let mut batch = Batch {
            claims: Vec::new(),
            bytes: 0,
            returning: if queued == 0 { bounds.messages } else { bounds.returning },
            halved: queued > 0,
            fragile: bounds.fragile,
            suspects: bounds.suspects,
            gravest: bounds.gravest,
            passed_over: false,
            lanes_left: false,
            retried: Vec::new(),
            strays: Vec::new(),
            left: Vec::new(),
            emptied: Vec::new(),
            moved_lanes: Vec::new(),
            no_lanes: 0,
            failures: Vec::new(),
        };
        self.take_retries(clock, bounds, &mut batch);
        let files_first = bounds.ordered && !batch.claims.is_empty();
        if !files_first {
            self.try_failed(clock, bounds, &mut batch);
            self.take_from_lanes(clock, bounds, &mut batch);
        }
        let files_first = bounds.ordered && !batch.retried.is_empty();
        let Fresh { taken, too_large, of_queue } = self.look_at_queue(bounds, &batch, files_first);
        let Batch { mut claims, retried, strays, left, emptied, moved_lanes, failures, .. } = batch;
        let (passed_over, lanes_left) = (batch.passed_over, batch.lanes_left);

        let mut oversized = Vec::new();
        let counts =
            [claims.len(), taken.len(), too_large.len(), strays.len(), moved_lanes.len(), left.len(), batch.no_lanes];
        if counts.iter().any(|n| *n > 0) || again {
            for (id, body) in self.new_ids(clock, taken.len(), bounds.seen).zip(taken) {
                self.messages.insert(id, body);
                claims.extend(self.give(clock, id, Source::Queue));
            }
            for (id, body) in self.new_ids(clock, too_large.len(), bounds.seen).zip(too_large) {
                let size = body.len();
                self.messages.insert(id, body);
                self.dead.insert(id, clock.now());
                self.put_off(clock, id, 0, 0, &format!("larger than --in-flight-bytes: {size} bytes"));
                oversized.push((id, size));
            }
            self.inflight.extend(claims.iter().map(|claim| (claim.id, me)));
            if !claims.is_empty() || again {
                let taken = claims.iter().map(|claim| (claim.id, claim.source)).collect();
                self.claims.insert(me, (call, taken));
            }
            self.lanes.extend(moved_lanes);
            self.retry.retain(|id, _| !retried.contains(id) && !strays.contains(id));
            for member in left {
                self.waiting.remove(&member);
            }
            for origin in &emptied {
                self.close_if_empty(origin);
            }
            self.queue.drain(..of_queue);
        }

        let retries = self.retry.values().filter(|at| !passed_over || **at > clock.now());
        let mut due: Vec<i64> =
            retries.chain(self.lanes.values().filter(|s| **s > clock.now() && **s < NEVER)).copied().collect();
        if passed_over || lanes_left {
            due.push(clock.now() + 20);
        }
        let due_in = due.into_iter().min().map(|score| millis(score - clock.now()));
        Claimed::Taken {
            claims,
            emptied,
            failures,
            oversized,
            due_in,
            more: !self.queue.is_empty(),
            at: clock.now() as u64,
            numbered: self.last_number,
            orders: self.orders_news(bounds),
        }
    }

    fn orders_news(&self, bounds: &Bounds) -> Option<Orders> {
        (self.orders.number != bounds.orders).then(|| self.orders.clone())
    }

    fn give(&self, clock: Clock, id: Id, source: Source) -> Option<RawClaim> {
        let history = self.history.get(&id).map(|record| History {
            attempts: record.attempts,
            own_failures: record.own_failures,
            age: Some(millis(clock.now() - record.first_at(clock).max(clock.claimed_by(id).unwrap_or(0)))),
            last_error: record.last_error.clone(),
        });
        Some(RawClaim {
            id,
            bytes: self.messages.get(&id)?.clone(),
            history: history.unwrap_or_default(),
            recovered: self.recovered.get(&id).copied().unwrap_or(0),
            source,
        })
    }

    fn died(&self, id: Id) -> u32 {
        self.recovered.get(&id).copied().unwrap_or(0)
    }

    fn take_retries(&self, clock: Clock, bounds: &Bounds, batch: &mut Batch) {
        let most = match bounds.ordered {
            true => bounds.messages,
            false if self.lanes.is_empty() => batch.returning,
            false => batch.returning.div_ceil(2),
        };
        let due = by_score(&self.retry);
        let mut due = due.iter().filter(|(_, at)| bounds.ordered || *at <= clock.now()).map(|(id, _)| *id).peekable();
        let mut seen = 0;
        // In pages, as the script reads them: where it stops looking depends on it.
        while batch.retried.len() < most && !batch.has_returning_bytes(bounds) && due.peek().is_some() && seen <= 2000 {
            for id in due.by_ref().take(16.min(most - batch.retried.len())).collect::<Vec<_>>() {
                seen += 1;
                if batch.has_returning_bytes(bounds) {
                    return;
                }
                let died = self.died(id);
                if !bounds.ordered && !batch.may_go(died) {
                    batch.passed_over = true;
                } else if let Some(claim) = self.give(clock, id, Source::Retry) {
                    if !bounds.ordered {
                        batch.goes(died);
                    }
                    batch.retried.push(id);
                    batch.bytes += claim.bytes.len();
                    batch.claims.push(claim);
                } else {
                    batch.strays.push(id);
                }
            }
        }
    }

    /// Lanes that failed and may be tried again: the last due and the first due in turn, fast ones before slow ones.
    fn try_failed(&self, clock: Clock, bounds: &Bounds, batch: &mut Batch) {
        let mut most = batch.returning.div_ceil(4).max(1).min(bounds.failed_probes);
        let mut most_slow = bounds.slow_probes;
        let n = 64.min(2 * most + 1);
        let due: Vec<String> = by_score(&self.lanes)
            .into_iter()
            .filter(|(_, at)| *at > 0 && *at <= clock.now())
            .map(|(origin, _)| origin)
            .collect();
        let mut found: Vec<&String> = Vec::new();
        for (last, first) in due.iter().rev().zip(&due).take(n) {
            for origin in [last, first] {
                if !found.contains(&origin) {
                    found.push(origin);
                }
            }
        }
        for slowly in [false, true] {
            for origin in &found {
                if self.failures.get(*origin).is_some_and(|(_, slowly, _)| *slowly) != slowly {
                    continue;
                }
                if most == 0 || slowly && most_slow == 0 || batch.has_returning_bytes(bounds) {
                    batch.lanes_left = true;
                    break;
                }
                let one = Want { origin: origin.to_string(), room: 1, free: 1 };
                if self.take_from(clock, &one, true, bounds, batch) > 0 {
                    most -= 1;
                    most_slow -= usize::from(slowly);
                }
            }
        }
    }

    fn take_from_lanes(&self, clock: Clock, bounds: &Bounds, batch: &mut Batch) {
        for want in &bounds.wants {
            match self.lanes.get(&want.origin) {
                None => batch.emptied.push(want.origin.clone()),
                Some(due) if *due <= 0 => {
                    self.take_from(clock, want, false, bounds, batch);
                }
                Some(_) => {}
            }
        }
        let mut probed = 0;
        let due = by_score(&self.lanes);
        let due = due.iter().filter(|(_, at)| *at <= 0).take(bounds.probes + bounds.wants.len() + 1);
        for (origin, at) in due.filter(|(origin, _)| !bounds.wants.iter().any(|want| want.origin == *origin)) {
            if probed >= bounds.probes || batch.claims.len() >= batch.returning || batch.has_returning_bytes(bounds) {
                batch.lanes_left = true;
                return;
            }
            let one = Want { origin: origin.clone(), room: 1, free: 1 };
            probed += usize::from(self.take_from(clock, &one, *at != 0, bounds, batch) > 0);
        }
    }

    fn take_from(&self, clock: Clock, want: &Want, probe: bool, bounds: &Bounds, batch: &mut Batch) -> usize {
        let Want { origin, room, mut free } = want.clone();
        let room = room.min(batch.returning.saturating_sub(batch.claims.len()));
        if room == 0 || batch.has_returning_bytes(bounds) {
            return 0;
        }
        let failed = self.failures.get(&origin).filter(|_| probe);
        let newest = !bounds.ordered && failed.is_some_and(|(failures, ..)| failures % 2 == 0);
        let mut members: Vec<Id> = self.waiting_of(&origin).collect();
        if newest {
            members.reverse();
        }
        members.truncate(room + 1);
        let mut taken = 0;
        for id in members.iter().take(room) {
            if batch.has_returning_bytes(bounds) {
                break;
            }
            let died = self.died(*id);
            if died > 0 && (free == 0 || !batch.may_go(died)) {
                batch.passed_over = true;
                break;
            }
            if let Some(claim) = self.give(clock, *id, Source::Waiting { probe }) {
                batch.goes(died);
                free = free.saturating_sub(1);
                batch.bytes += claim.bytes.len();
                batch.claims.push(claim);
            }
            batch.left.push((origin.clone(), *id));
            taken += 1;
        }
        // A lane for which nothing waits is none.
        batch.no_lanes += usize::from(members.is_empty());
        if taken == members.len() {
            batch.emptied.push(origin.clone());
        } else if probe {
            let due = if taken > 0 { probed(clock.after(bounds.probe_for)) } else { not_probed(clock.now() + 100) };
            batch.moved_lanes.push((origin.clone(), due));
        }
        if taken > 0
            && let Some((failures, slowly, _)) = failed
        {
            batch.failures.push(FailedLane { origin, failures: *failures, slowly: *slowly });
        }
        taken
    }

    fn look_at_queue(&self, bounds: &Bounds, batch: &Batch, popped_only: bool) -> Fresh {
        let mut fresh = Fresh::default();
        let mut bytes = batch.bytes;
        let mut take = |fresh: &mut Fresh, body: &Vec<u8>| {
            if body.len() > bounds.largest {
                fresh.too_large.push(body.clone());
            } else {
                bytes += body.len();
                fresh.taken.push(body.clone());
            }
            bytes < bounds.bytes
        };
        let mut has_room = bounds.popped.as_ref().map_or(batch.bytes < bounds.bytes, |body| take(&mut fresh, body));
        // In growing pages, as the script reads them: one too large ends it with its page.
        while !popped_only && has_room && fresh.too_large.is_empty() {
            let room = bounds.messages.saturating_sub(batch.claims.len() + fresh.taken.len());
            let page: Vec<_> = self.queue.range(fresh.of_queue..).take(room.min(fresh.of_queue.clamp(1, 4))).collect();
            if page.is_empty() {
                break;
            }
            for body in page {
                if has_room {
                    has_room = take(&mut fresh, body);
                    fresh.of_queue += 1;
                }
            }
        }
        fresh
    }

    fn settle(
        &mut self,
        clock: Clock,
        me: AgentNumber,
        call: u64,
        settlements: &[Settlement],
        changes: &[LaneChange],
    ) -> Option<Vec<Id>> {
        match self.settles.get(&me) {
            Some((last, lost)) if *last == call => return Some(lost.clone()),
            Some((last, _)) if *last > call => return None,
            _ => {}
        }
        let mut lost = Vec::new();
        // In the order in which they are sent: retries, waiting, dead; then what was delivered.
        for kind in 0..3 {
            for one in settlements {
                let of_kind = match one.place {
                    Place::Retry(_) => 0,
                    Place::Waiting(_) => 1,
                    Place::Dead => 2,
                    Place::Delivered => continue,
                };
                if of_kind == kind && !self.place(clock, me, one) {
                    lost.push(one.id);
                }
            }
        }
        for one in settlements.iter().filter(|one| one.place == Place::Delivered) {
            self.forget(one.id);
            self.inflight.remove(&one.id);
            self.retry.remove(&one.id);
            self.dead.remove(&one.id);
            if self.waiting.remove(&(one.origin.to_string(), one.id)) {
                self.close_if_empty(&one.origin);
            }
        }
        for change in changes {
            self.change_lane(clock, change);
        }
        if self.agents.contains_key(&me) {
            self.settles.insert(me, (call, lost.clone()));
        }
        Some(lost)
    }

    /// False if the message is not this agent's any more.
    fn place(&mut self, clock: Clock, me: AgentNumber, one: &Settlement) -> bool {
        if self.inflight.get(&one.id) != Some(&me) {
            return false;
        }
        match one.place {
            Place::Retry(delay) => {
                self.retry.insert(one.id, clock.after(delay));
            }
            Place::Waiting(delay) => {
                self.waiting.insert((one.origin.to_string(), one.id));
                let may_be_tried = delay.map_or(-clock.now(), |delay| not_probed(clock.after(delay)));
                if !self.lanes.contains_key(&*one.origin) {
                    self.set_lane(&one.origin, may_be_tried);
                }
            }
            Place::Dead => {
                self.dead.insert(one.id, clock.now());
            }
            Place::Delivered => unreachable!("what was delivered goes another way"),
        }
        let History { attempts, own_failures, last_error, .. } = &one.history;
        let before = self.history.get(&one.id).map_or(0, |record| record.attempts);
        self.put_off(clock, one.id, *attempts, *own_failures, last_error);
        if matches!(one.place, Place::Waiting(_)) && self.orders.is_paused(&one.origin) {
            self.stand_still(clock, one.id);
        }
        if *attempts > before {
            self.recovered.remove(&one.id);
        }
        self.inflight.remove(&one.id);
        true
    }

    fn change_lane(&mut self, clock: Clock, change: &LaneChange) {
        match change {
            LaneChange::Up(origin) => {
                if self.lanes.contains_key(&**origin) {
                    self.set_lane(origin, 0);
                    self.failures.remove(&**origin);
                }
            }
            LaneChange::Freed(origin) => {
                if self.lanes.get(&**origin).is_some_and(|due| *due > clock.now() && *due % 2 != 0) {
                    self.set_lane(origin, not_probed(clock.now()));
                }
            }
            LaneChange::Due { origin, after } => {
                if self.lanes.contains_key(&**origin) {
                    self.set_lane(origin, not_probed(clock.after(*after)));
                }
            }
            LaneChange::Down { origin, after, failures, slowly, why } => {
                let known = self.failures.get(&**origin).map_or(0, |(known, ..)| *known);
                if self.lanes.contains_key(&**origin) && *failures > known {
                    self.set_lane(origin, not_probed(clock.after(*after)));
                    self.failures.insert(origin.to_string(), (*failures, *slowly, why.clone()));
                }
            }
        }
    }

    fn beat(&mut self, clock: Clock, me: AgentNumber, lease: Duration, seen: u64, longest: Duration) -> Beat {
        let registered = self.agents.contains_key(&me);
        if registered {
            self.agents.insert(me, clock.after(lease));
            self.lengths.insert(me, (score(lease) as u64, score(longest) as u64));
            self.last_beat = clock.now();
            if self.last_number.max(clock.0) < seen {
                self.next_numbers(clock, 0, seen);
            }
        }
        let length = |number: AgentNumber, expires: i64| {
            let left = || Some((expires - clock.now()).max(0) as u64).filter(|left| *left <= 3_600_000).unwrap_or(0);
            Duration::from_millis(self.lengths.get(&number).map_or_else(left, |(length, _)| *length))
        };
        let mut peers: Vec<Peer> = by_score(&self.agents)
            .into_iter()
            .map(|(number, lease)| Peer { number, lease: Some(lease as u64), length: length(number, lease) })
            .collect();
        let unknown: BTreeSet<AgentNumber> =
            self.inflight.values().filter(|number| !self.agents.contains_key(number)).copied().collect();
        peers.extend(unknown.into_iter().map(|number| Peer { number, lease: None, length: Duration::ZERO }));
        peers.retain(|peer| peer.number != me);
        let known = self.lengths.iter().filter(|(number, _)| self.agents.contains_key(number));
        let longest = known.map(|(_, (_, longest))| millis(*longest as i64)).fold(longest, Duration::max);
        let beyond =
            self.retry.values().chain(self.lanes.values()).any(|due| *due > clock.after(longest) && *due != NEVER);
        Beat {
            registered,
            peers,
            at: clock.now() as u64,
            numbered: self.last_number,
            beyond: beyond.then_some(longest),
        }
    }

    fn in_flight(&self, agent: AgentNumber) -> Vec<Id> {
        self.inflight.iter().filter(|(_, owner)| **owner == agent).map(|(id, _)| *id).collect()
    }

    fn recover(&mut self, clock: Clock, agent: AgentNumber, limit: usize, died: bool) -> usize {
        let mut ids = self.in_flight(agent);
        ids.truncate(limit);
        for id in &ids {
            let count = if died {
                let count = self.recovered.entry(*id).or_default();
                *count += 1;
                *count
            } else {
                0
            };
            self.inflight.remove(id);
            if count >= 5 {
                self.dead.insert(*id, clock.now());
                let attempts = self.history.get(id).map_or(0, |record| record.attempts);
                self.put_off(clock, *id, attempts, 0, "in flight in 5 agents that died");
            } else {
                self.retry.insert(*id, clock.now());
            }
        }
        self.agents.remove(&agent);
        self.claims.remove(&agent);
        self.settles.remove(&agent);
        self.lengths.remove(&agent);
        ids.len()
    }

    fn replay(&mut self, clock: Clock, ids: &[Id]) -> usize {
        let mut n = 0;
        for id in ids {
            if self.dead.remove(id).is_some() {
                self.retry.insert(*id, clock.now());
                self.history.remove(id);
                self.put_off(clock, *id, 0, 0, "");
                self.recovered.remove(id);
                n += 1;
            }
        }
        n
    }

    fn drop_dead(&mut self, ids: &[Id]) -> usize {
        let mut n = 0;
        for id in ids {
            if self.dead.remove(id).is_some() {
                self.forget(*id);
                n += 1;
            }
        }
        n
    }

    fn retry_now(&mut self, clock: Clock, ids: &[Id]) -> usize {
        let mut n = 0;
        for id in ids {
            let Some(due) = self.retry.get_mut(id) else { continue };
            *due = clock.now().min(*due);
            n += 1;
            if let Some(Record { attempts, last_error, .. }) = self.history.get(id).cloned() {
                self.put_off(clock, *id, attempts, 0, &last_error);
            }
        }
        n
    }

    fn drop_waiting(&mut self, waiting: &[(String, Id)]) -> usize {
        let mut n = 0;
        for one in waiting {
            if self.waiting.remove(one) {
                self.forget(one.1);
                self.close_if_empty(&one.0);
                n += 1;
            }
        }
        n
    }

    fn order(&mut self, clock: Clock, hand: Hand, dry: bool, origins: &[String]) -> Option<Vec<Before>> {
        let before: Vec<Before> = origins.iter().map(|origin| self.before(clock, origin)).collect();
        let mut orders = self.orders.clone();
        let number = clock.0.max(orders.number + 1);
        let mut lanes = Vec::new();
        for (origin, Before { standing, .. }) in origins.iter().zip(&before) {
            match (hand, standing) {
                (Hand::Pause, Standing::Paused(_)) | (Hand::Try, Standing::Paused(_)) => {}
                (Hand::Pause, _) => {
                    orders.by_origin.insert(origin.clone(), Order::Paused(number));
                    lanes.push((origin, NEVER));
                }
                (Hand::Resume, Standing::Paused(_)) => {
                    orders.by_origin.remove(origin);
                    lanes.push((origin, not_probed(clock.now())));
                }
                (Hand::Try, Standing::Down(_) | Standing::Due | Standing::Unknown) => {
                    orders.by_origin.insert(origin.clone(), Order::Try(number));
                    if matches!(standing, Standing::Down(_)) {
                        lanes.push((origin, not_probed(clock.now())));
                    }
                }
                _ => {}
            }
        }
        if orders.paused().count() > MOST_PAUSED {
            return None;
        }
        if orders != self.orders && !dry {
            orders.number = number;
            orders.by_origin.retain(|_, order| match order {
                Order::Paused(_) => true,
                Order::Try(at) => *at + TRIED_FOR > number,
            });
            for (origin, due) in lanes {
                if let Some(time) = self.lanes.get_mut(origin) {
                    *time = due;
                }
            }
            self.orders = orders;
            if hand == Hand::Pause {
                for id in origins.iter().flat_map(|origin| self.waiting_of(origin)).collect::<Vec<_>>() {
                    self.stand_still(clock, id);
                }
            }
        }
        Some(before)
    }

    fn before(&self, clock: Clock, origin: &str) -> Before {
        let standing = match (self.orders.by_origin.get(origin), self.lanes.get(origin)) {
            (Some(Order::Paused(number)), _) => Standing::Paused(*number),
            (_, None) => Standing::Unknown,
            (_, Some(due)) if *due > clock.now() && *due % 2 != 0 => Standing::Probed,
            (_, Some(due)) if *due > clock.now() => Standing::Down(*due as u64),
            (_, Some(1..)) => Standing::Due,
            (_, Some(0)) => Standing::Up,
            (_, Some(_)) => Standing::New,
        };
        let failures = self.failures.get(origin).map_or(0, |(failures, ..)| u64::from(*failures));
        Before { standing, messages: self.waiting_of(origin).count() as u64, failures }
    }

    /// While a lane is paused it has no time.
    fn set_lane(&mut self, origin: &str, due: i64) {
        let due = if self.orders.is_paused(origin) { NEVER } else { due };
        self.lanes.insert(origin.to_string(), due);
    }

    fn stand_still(&mut self, clock: Clock, id: Id) {
        if let Some(record) = self.history.get_mut(&id).filter(|record| !record.stands_still) {
            record.first = (clock.now() - record.first).max(0);
            record.stands_still = true;
        }
    }

    fn adopt(&mut self, clock: Clock, seen: u64) -> Adopted {
        let entries: Vec<_> = self.legacy.iter().take(adopt::AT_ONCE).cloned().collect();
        let n = entries.len();
        if n == 0 {
            return Adopted::default();
        }
        let ids = self.new_ids(clock, n, seen);
        for (id, entry) in ids.zip(entries) {
            self.legacy.remove(&entry);
            let due = entry.0 * 1000;
            let is_a_time = (clock.now()..=clock.now() + adopt::LONGEST.as_millis() as i64).contains(&due);
            self.retry.insert(id, if is_a_time { due } else { clock.now() });
            self.messages.insert(id, entry.1);
        }
        Adopted { messages: n, more: n == adopt::AT_ONCE, from: "another service".to_string(), hindrance: None }
    }

    fn forget(&mut self, id: Id) {
        self.messages.remove(&id);
        self.history.remove(&id);
        self.recovered.remove(&id);
    }

    fn put_off(&mut self, clock: Clock, id: Id, attempts: u32, own_failures: u32, why: &str) {
        let failed_before = |record: &&Record| attempts == 0 || record.attempts > 0;
        let first = self.history.get(&id).filter(failed_before).map_or(clock.now(), |record| record.first_at(clock));
        let last_error = why.to_string();
        self.history.insert(id, Record { attempts, own_failures, first, stands_still: false, last_error });
    }

    fn waiting_of(&self, origin: &str) -> impl Iterator<Item = Id> {
        let (first, last) = ((origin.to_string(), Id(0)), (origin.to_string(), Id(u64::MAX)));
        self.waiting.range(first..=last).map(|(_, id)| *id)
    }

    fn close_if_empty(&mut self, origin: &str) {
        if self.waiting_of(origin).next().is_none() {
            self.lanes.remove(origin);
            self.failures.remove(origin);
        }
    }
}
