//! Who may go next: one lane per origin, so that a bad endpoint delays nobody else.
//!
//! A plain data structure: it knows no clock (`now` is an argument), no sockets
//! and no threads. What it wants done (send these to the workers, settle those,
//! tell the queue of a lane that went down) it writes into [`Effects`].
//!
//! A lane is *untried* (no delivery yet), *up* (proven by a delivery) or *down*
//! (failed since). It holds its claims oldest first and lets as many of them out
//! to the workers as its window allows. What may not stay in memory, or must wait
//! until a lane that is down is tried, is put to wait in the queue, by origin and age;
//! the queue gives it back by itself, one message to try a lane that is down and more
//! once it is up. So nothing here is timed, and nothing is moved back and forth.
//!
//! | file | its part |
//! |---|---|
//! | `lanes.rs` | how much may be claimed; admitting a claim |
//! | `sending.rs`, `shares.rs` | which claims go out to the workers, and who may have them |
//! | `finish.rs`, `blame.rs` | where a claim goes when its attempt is over; what that does to its lane |
//! | `held.rs`, `known.rs` | what is held here, and given back; what is known of lanes and of what waits for them |
//! | `obey.rs` | what operators order: lanes that are paused, or to be tried now |
//! | `lane.rs` | one lane: its state, its window, its silent attempts |

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::BuildHasherDefault;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::envelope::Envelope;
use crate::orders::Orders;
use crate::queue::{AgentNumber, Bounds, History, Id, LaneChange, Settlement, Source};
use held::{Here, Hold, IdHasher, kept_bytes};
use known::{KEPT_OF_WAITING, MOST_LANES, WANTS_PER_CLAIM};
use lane::{Lane, State};
use shares::{Most, Shares};

mod blame;
mod finish;
mod held;
mod known;
mod lane;
mod obey;
mod sending;
mod shares;

/// A claim, decoded, as the lanes hold it and a worker attempts it.
#[derive(Debug)]
pub struct Claim {
    /// The message's id.
    pub id: Id,
    /// What is to be sent, and where.
    pub envelope: Envelope,
    /// What earlier attempts came to.
    pub history: History,
    /// Agents that died while they had it in flight.
    pub recovered: u32,
    /// Where it was taken from.
    pub source: Source,
    /// The number of the agent under which it was claimed.
    pub agent: AgentNumber,
    /// When it was claimed.
    pub claimed_at: Instant,
    /// Its lane's name; one allocation for all claims of a lane.
    pub origin: Arc<str>,
    /// Its lane, while it is held.
    lane: usize,
}

impl Claim {
    /// A claim that is in no lane yet. What nobody remembers has been attempted as often as another service
    /// wrote into it: what that one had put off or handed on, but nothing that was replayed here.
    pub fn new(
        id: Id,
        envelope: Envelope,
        mut history: History,
        recovered: u32,
        source: Source,
        agent: AgentNumber,
        now: Instant,
    ) -> Claim {
        if history.age.is_none() {
            history.attempts = envelope.retries();
        }
        let origin = Arc::from("");
        Claim { id, envelope, history, recovered, source, agent, claimed_at: now, origin, lane: usize::MAX }
    }

    /// Its history as it is `now`: older by the time it has been held.
    pub fn history_at(&self, now: Instant) -> History {
        let held = now.saturating_duration_since(self.claimed_at);
        History { age: self.history.age.map(|age| age + held), ..self.history.clone() }
    }

    /// On a backoff of its own: neither a probe of its lane nor counted against it.
    fn has_own_backoff(&self) -> bool {
        self.history.own_failures > 0
    }

    /// It was in flight in an agent that died: it goes out at once or not at all, so that what
    /// another death finds in flight of such has really been attempted.
    fn is_fragile(&self) -> bool {
        self.recovered >= 1
    }

    /// Two or more agents died of it, perhaps.
    fn is_suspect(&self) -> bool {
        self.recovered >= 2
    }
}

/// The numbers that the lanes go by.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Workers there are (`--workers`).
    pub workers: usize,
    /// The widest window of a lane (`--endpoint-concurrency`).
    pub endpoint_concurrency: usize,
    /// Claims held at once (`--in-flight`).
    pub messages: usize,
    /// Bytes of claims held at once (`--in-flight-bytes`).
    pub bytes: usize,
    /// Strict order per origin (`--ordered`).
    pub ordered: bool,
    /// The first backoff (`--retry-first`).
    pub retry_first: Duration,
    /// The longest backoff of a lane (`--retry-max`).
    pub retry_max: Duration,
    /// The age since its first failure at which a message dies (`--give-up-after`).
    pub give_up_after: Duration,
    /// A whole attempt (`--timeout`, and some for settling it): so long a lane is left alone while one probes it.
    pub attempt: Duration,
}

/// While no worker is idle, more than this many claims in memory only make them older.
const HELD_WHILE_BUSY: usize = 256;
/// Claims taken at once at most; measured: 0.4 ms of Redis for 64 of 2 KB, and no faster per message beyond.
const CLAIM_MESSAGES: usize = 128;
/// Bytes taken at once; a claim this large already costs Redis a millisecond or two.
const CLAIM_BYTES: usize = 4 << 20;
/// A message this large is still taken, by itself, where fewer bytes may be held; recipients take 2 MiB.
const LARGEST: usize = 64 << 20;
/// What is put off because this machine lacked something is tried again after this long.
const AFTER_LACKING: Duration = Duration::from_secs(1);

/// What the lanes want done. Settlements come before what they make room for.
#[derive(Debug, Default)]
pub struct Effects {
    /// To be settled.
    pub settlements: Vec<Settlement>,
    /// To be told to the queue, after these settlements.
    pub changes: Vec<LaneChange>,
    /// To be sent to the workers.
    pub ready: Vec<Box<Claim>>,
    /// To be logged.
    pub news: Vec<News>,
}

impl Effects {
    /// Whether nothing is to be done.
    pub fn is_empty(&self) -> bool {
        self.settlements.is_empty() && self.changes.is_empty() && self.ready.is_empty() && self.news.is_empty()
    }
}

/// A change of state that people want to read of, once.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum News {
    /// An endpoint failed, and is tried again only after a while.
    Down {
        /// Its origin.
        origin: Arc<str>,
        /// The last error.
        why: String,
        /// Failures in a row.
        failures: u32,
        /// How many messages were put to wait at this moment.
        waiting: usize,
        /// When it is tried again.
        next: Duration,
    },
    /// An endpoint delivers again.
    Back {
        /// Its origin.
        origin: Arc<str>,
        /// Since its first failure.
        after: Duration,
    },
    /// Operators have paused these, or resumed them.
    Ordered {
        /// Paused now.
        paused: Vec<String>,
        /// Not any more.
        resumed: Vec<String>,
    },
    /// A message was given up without a further attempt: it is too old, and its endpoint is down.
    GaveUp {
        /// The message.
        id: Id,
        /// Its origin.
        origin: Arc<str>,
        /// Why it is dead.
        reason: String,
    },
}

/// A lane that is down, as people see it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DownLane {
    /// Its origin.
    pub origin: Arc<str>,
    /// Why; empty if only others have seen it fail.
    pub last_error: String,
    /// Failures in a row.
    pub failures: u32,
    /// How long until it is tried.
    pub next_try: Duration,
}

/// All lanes of an agent, and what it holds.
#[derive(Debug)]
pub struct Lanes {
    limits: Limits,
    by_origin: HashMap<Arc<str>, usize>,
    lanes: Vec<Lane>,
    free: Vec<usize>,
    /// New lanes with claims to send and no slot; the newest arrival is last, and goes first.
    new_without_slot: Vec<usize>,
    /// Lanes that failed (fast, slowly) with a probe to send and no slot; first come, first served.
    failed_without_slot: VecDeque<usize>,
    failed_slowly_without_slot: VecDeque<usize>,
    /// Lanes that are up with claims to send that no worker is left for, since they are not known to be fast.
    exposed_without_slot: VecDeque<usize>,
    /// Whether failed lanes go before new ones where both may have the next slot: in turn.
    failed_first: bool,
    /// Lanes that are up that hold claims back because of what is out.
    watched: VecDeque<usize>,
    nudged: Option<Instant>,
    /// Lanes that are up of which the queue has more waiting.
    wanting: VecDeque<usize>,
    /// Every claim not yet confirmed settled.
    held: HashMap<Id, Hold, BuildHasherDefault<IdHasher>>,
    /// Claims that were discarded while they were out, until they come back. They take room as before;
    /// the same message may be held anew meanwhile, claimed under another number.
    discarded: HashSet<(Id, AgentNumber)>,
    /// Bytes of the claims not yet attempted to an end.
    held_bytes: usize,
    /// Bytes of those that are being settled and are kept until that is confirmed.
    leaving_bytes: usize,
    /// Sums over all lanes.
    shares: Shares,
    /// How many there are, by [`State`].
    n_in_state: [usize; State::N],
    /// Of what waits, so many claims are kept of one lane.
    kept: usize,
    /// Lanes that hold more than that, or did when it was last looked.
    heavy: Vec<usize>,
    /// The lane record from which on those that say nothing are looked for, when there are too many.
    next_forgotten: usize,
    most: Most,
    /// Claims here that two, three, and more agents died of.
    suspects: [usize; 3],
    /// Ordered mode: recovered ones being filed under their lanes; nothing is claimed meanwhile.
    filing: HashSet<Id>,
    last_spill: Option<Instant>,
    /// Put to wait, and confirmed since the last claim was begun.
    lately_confirmed: Vec<(usize, Id)>,
    /// Whether half of an odd bound is rounded up this time.
    round_up: bool,
    /// What operators have ordered, as far as known.
    orders: Orders,
    /// Lanes that were paused while they held something.
    to_put_away: Vec<usize>,
    random: u64,
}

impl Lanes {
    /// No lanes yet. `seed` is for the jitter.
    pub fn new(limits: Limits, seed: u64) -> Lanes {
        Lanes {
            most: Most::of(limits.workers),
            kept: KEPT_OF_WAITING.min(limits.messages / limits.workers).max(1),
            held: HashMap::with_capacity_and_hasher(limits.messages.min(1 << 16), BuildHasherDefault::default()),
            n_in_state: [0; State::N],
            heavy: Vec::new(),
            next_forgotten: 0,
            limits,
            // Room for all from the start, so that nobody waits while it grows; the system gives memory when it is used.
            by_origin: HashMap::with_capacity(MOST_LANES + 1),
            lanes: Vec::with_capacity(MOST_LANES + 1),
            free: Vec::new(),
            new_without_slot: Vec::new(),
            failed_without_slot: VecDeque::new(),
            failed_slowly_without_slot: VecDeque::new(),
            exposed_without_slot: VecDeque::new(),
            failed_first: false,
            watched: VecDeque::new(),
            nudged: None,
            wanting: VecDeque::new(),
            discarded: HashSet::new(),
            held_bytes: 0,
            leaving_bytes: 0,
            shares: Shares::default(),
            suspects: [0; 3],
            filing: HashSet::new(),
            last_spill: None,
            lately_confirmed: Vec::new(),
            round_up: false,
            orders: Orders::default(),
            to_put_away: Vec::new(),
            random: seed | 1,
        }
    }

    /// What the reader may claim now; `None` while there is no room worth a claim. `again`
    /// if a claim whose answer was lost is to be sent again.
    pub fn appetite(&mut self, again: bool, now: Instant, effects: &mut Effects) -> Option<Bounds> {
        self.nudge(now, effects);
        if !self.has_room() {
            if self.filing.is_empty() && self.has_idle_worker() {
                self.spill(now, effects);
            }
            return None;
        }
        // A claim begun from now on sees all that is confirmed; one that is sent again may be as old as it was.
        if !again {
            for (at, id) in self.lately_confirmed.drain(..) {
                let parked = &mut self.lanes[at].parked;
                match parked.get_mut(&id) {
                    Some(times) if *times > 1 => *times -= 1,
                    _ => drop(parked.remove(&id)),
                }
            }
        }
        let limit = self.held_at_most();
        let messages = (limit - self.n_held()).min(CLAIM_MESSAGES);
        self.round_up = !self.round_up;
        // Twice as many new lanes as may be out, so that the next are here when a slot is free.
        let new = (2 * self.most.new_lanes()).saturating_sub(self.shares.new + self.new_without_slot.len());
        let (fast, slow) = (self.failed_without_slot.len(), self.failed_slowly_without_slot.len());
        let failed = self.most.failed().saturating_sub(self.shares.failed + fast + slow);
        let failed_slowly = self.most.failed_slowly().saturating_sub(self.shares.failed_slowly + slow);
        Some(Bounds {
            messages,
            bytes: CLAIM_BYTES.min(self.limits.bytes - self.bytes()).max(1),
            largest: self.limits.bytes.max(LARGEST),
            returning: if self.round_up { messages.div_ceil(2) } else { messages / 2 },
            wants: self.wants(),
            probes: new,
            failed_probes: failed,
            slow_probes: failed_slowly.min(failed),
            probe_for: self.limits.attempt,
            fragile: self.limits.workers.saturating_sub(self.shares.out),
            suspects: self.suspects.iter().sum(),
            gravest: self.suspects.iter().rposition(|n| *n > 0).map_or(0, |at| at as u32 + 2),
            ordered: self.limits.ordered,
            popped: None,
            seen: 0,
            orders: self.orders.number,
        })
    }

    /// Whether a claim would be worth its round trip.
    pub fn has_room(&self) -> bool {
        let limit = self.held_at_most();
        let worth_it = (CLAIM_MESSAGES / 2).min(limit / 4).max(1);
        self.filing.is_empty() && self.n_held() + worth_it <= limit && self.bytes() < self.limits.bytes
    }

    /// Whether some lane that is up has more waiting in the queue: then the reader looks
    /// there again soon, in place of waiting for new messages alone.
    pub fn is_draining(&self) -> bool {
        !self.wanting.is_empty()
    }

    /// Whether some lane that is up has room for more of what waits; of many, those that are asked for next are looked at.
    pub fn is_hungry(&self) -> bool {
        let next = self.wanting.iter().take(4 * WANTS_PER_CLAIM);
        next.into_iter().any(|&at| self.lanes[at].held.len() <= self.kept / 2)
    }

    /// Takes in a claim: it goes out, is held, or is put to wait or off.
    pub fn admit(&mut self, mut claim: Box<Claim>, now: Instant, effects: &mut Effects) {
        if self.held.get(&claim.id).is_some_and(|hold| hold.here.is_some()) {
            // A rolled-back Redis gave out again what is still held: the one held counts.
            return;
        }
        let at = self.lane_of(claim.envelope.origin(), now);
        self.held.entry(claim.id).or_default().here = Some(Here { agent: claim.agent, lane: at as u32 });
        claim.lane = at;
        claim.origin = self.lanes[at].origin.clone();
        let lane = &mut self.lanes[at];
        if lane.is_paused {
            return self.admit_paused(&claim, now, effects);
        }
        match claim.source {
            Source::Retry if self.limits.ordered => {
                self.filing.insert(claim.id);
                effects.changes.push(LaneChange::Freed(lane.origin.clone()));
                return self.put_to_wait(&claim, None, now, effects);
            }
            // What the lane gave back (when it went down, or held too much) may not have been there yet when
            // the queue looked: then this one is not the oldest, and not the queue's answer to the lane's going down.
            Source::Waiting { probe } if lane.parked.keys().next().is_some_and(|parked| *parked < claim.id) => {
                if probe {
                    let (origin, after) = (lane.origin.clone(), lane.until_tried(now));
                    effects.changes.push(LaneChange::Due { origin, after });
                }
                return self.put_to_wait(&claim, None, now, effects);
            }
            // For another agent the lane is up.
            Source::Waiting { probe: false } => {
                if lane.state != State::Up {
                    self.go_up(at, true, now, effects);
                }
            }
            Source::Waiting { probe: true } => {
                match lane.state {
                    State::Down => lane.down_until = None,
                    // The queue has set a time aside for the probe; this lane needs none.
                    State::Up => effects.changes.push(LaneChange::Up(lane.origin.clone())),
                    State::Untried => {}
                }
            }
            Source::Retry | Source::Queue => {
                let is_down = lane.state == State::Down;
                // With nothing waiting there is nothing else to try it with.
                let may_probe = !lane.has_waiting && lane.until_tried(now).is_zero() && lane.is_idle();
                if claim.has_own_backoff() {
                    // When the lane may be tried, it is tried with what waits for it. With this one only if nothing
                    // does, or a while later: what is known to wait may be gone by another agent's hand, and a
                    // lane all of whose messages are on a backoff of their own would stay down for good.
                    let patience =
                        if lane.has_waiting { self.limits.retry_first.max(AFTER_LACKING) } else { Duration::ZERO };
                    let may_probe = lane.down_until.is_none_or(|until| until + patience <= now) && lane.is_idle();
                    if is_down && !may_probe {
                        return self.put_off(&claim, now, effects);
                    }
                } else if (lane.has_waiting || is_down) && !(is_down && may_probe)
                    || lane.state == State::Untried && self.shares.held_unproven >= self.limits.messages / 2
                {
                    if claim.source == Source::Retry {
                        effects.changes.push(LaneChange::Freed(lane.origin.clone()));
                    }
                    return self.put_to_wait(&claim, None, now, effects);
                }
            }
        }
        let (id, may_be_held) = (claim.id, !claim.is_fragile() || claim.source == Source::Waiting { probe: true });
        self.hold(claim);
        self.let_out(at, now, effects);
        if !may_be_held && let Some(claim) = self.take_held(at, id) {
            self.put_to_wait(&claim, None, now, effects);
        }
    }

    /// Takes note of a claim that cannot be decoded and is settled at once.
    pub fn admit_unreadable(&mut self, settlement: &Settlement) {
        self.held.entry(settlement.id).or_default().leaving += 1;
        self.leaving_bytes += kept_bytes(settlement);
    }
}

/// How many lanes are in which state, and what is held.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LaneCounts {
    /// Lanes with no delivery yet.
    pub untried: usize,
    /// Lanes that deliver.
    pub up: usize,
    /// Lanes that failed since their last delivery.
    pub down: usize,
    /// Claims not yet confirmed settled.
    pub held: usize,
    /// Bytes of those not yet attempted to an end, or kept until it is confirmed that they are put off.
    pub bytes: usize,
}

#[cfg(test)]
mod tests;
