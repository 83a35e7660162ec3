//! Who may go next: one lane per origin, so that a bad endpoint delays nobody else.
//!
//! A plain data structure: it knows no clock (`now` is an argument), no sockets
//! and no threads. What it wants done (send these to the workers, settle those,
//! tell the queue of a lane that closed) it writes into [`Effects`].
//!
//! A lane is *new* (no delivery yet), *open* (proven by a delivery) or *closed*
//! (failed since). It holds its claims oldest first and lets as many of them out
//! to the workers as its window allows. What may not stay in memory, or must wait
//! until a closed lane is tried, is put to wait in the queue, by origin and age;
//! the queue gives it back by itself, one message to try a closed lane and more
//! once it is open. So nothing here is timed, and nothing is moved back and forth.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::envelope::Envelope;
use crate::policy::{self, Fault, Outcome};
use crate::queue::{
    AgentNumber, Bounds, FailedLane, History, Id, Kept, LaneChange, Place, Settlement, Source, WaitingLane, Want,
};
use lane::{Lane, Out, State};
use shares::{Kind, Most, Shares};

mod lane;
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
    /// A claim that is in no lane yet.
    pub fn new(
        id: Id,
        envelope: Envelope,
        history: History,
        recovered: u32,
        source: Source,
        agent: AgentNumber,
        now: Instant,
    ) -> Claim {
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

/// Claims that a lane with more of them waiting keeps in memory, so that it never runs dry between two claims.
const KEPT_OF_WAITING: usize = 32;
/// Windows of deliveries before a lane tries again what it was throttled at: each try costs a halving,
/// so an endpoint that takes four at once is kept near four.
const WINDOWS_AT_CEILING: usize = 8;
/// Different messages in a row that an endpoint may answer with a failure before the lane closes.
const MESSAGES_AT_FAULT: usize = 10;
/// Different messages in a row that may get no answer before a proven lane closes: fewer may be bad paths of a
/// good endpoint.
const UNANSWERED: usize = 12;
/// So many are enough when the last delivery is longer ago than the first backoff.
const UNANSWERED_FOR_LONG: usize = 3;
/// What one message alone can make its lane wait for by `Retry-After`.
const ONE_MESSAGE_ASKS: Duration = Duration::from_secs(60);
/// What has waited for longer than `--give-up-after` behind an endpoint that is down, and was never attempted,
/// is attempted this often: it ends as well, and not unattempted.
const OVERDUE_EVERY: Duration = Duration::from_secs(1);
/// How often lanes are looked at whose attempts are silent.
const NUDGE_EVERY: Duration = Duration::from_millis(50);
/// Lanes looked at at once.
const NUDGED: usize = 64;
/// While no worker is idle, more than this many claims in memory only make them older.
const HELD_WHILE_BUSY: usize = 256;
/// Claims taken at once at most; measured: 0.4 ms of Redis for 64 of 2 KB, and no faster per message beyond.
const CLAIM_MESSAGES: usize = 128;
/// Bytes taken at once; a claim this large already costs Redis a millisecond or two.
const CLAIM_BYTES: usize = 4 << 20;
/// A message this large is still taken, by itself, where fewer bytes may be held; recipients take 2 MiB.
const LARGEST: usize = 64 << 20;
/// Lanes asked for by name in one claim.
const WANTS_PER_CLAIM: usize = 32;
/// Lane records kept at most: an idle one beyond is forgotten, which costs at most an attempt.
const MOST_LANES: usize = 20_000;
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

/// A failed attempt, as its lane sees it.
#[derive(Clone, Copy)]
struct Blame<'a> {
    fault: Fault,
    why: &'a str,
    retry_after: Option<Duration>,
    is_dead: bool,
}

/// Why and for how long a lane closes.
#[derive(Clone, Copy)]
struct Closing<'a> {
    why: &'a str,
    retry_after: Option<Duration>,
    /// Several messages say so, or whatever the message nothing reaches the endpoint.
    by_many: bool,
    /// The message has waited for so long without an attempt that those behind it have their turn soon.
    is_overdue: bool,
}

/// Whether the endpoint answered; `None` if the attempt says nothing of it.
fn is_answered(outcome: &Outcome) -> Option<bool> {
    match outcome {
        Outcome::Delivered => Some(true),
        Outcome::Dead { fault: None, .. } | Outcome::Later { fault: Fault::Ours, .. } => None,
        Outcome::Dead { fault: Some(fault), .. } | Outcome::Later { fault, .. } => {
            Some(matches!(fault, Fault::Message | Fault::Elsewhere))
        }
    }
}

/// What kind of claim this lane would send next.
fn kind(lane: &Lane) -> Kind {
    match lane.state {
        State::New => Kind::New,
        State::Closed if lane.fails_slowly => Kind::FailedSlowly,
        State::Closed => Kind::Failed,
        State::Open if lane.is_exposed() => Kind::Exposed,
        State::Open => Kind::Trusted,
    }
}

/// What is known of a message that was claimed. The queue may give it out again
/// (from waiting, or a retry) before it has been noted here that the settlement
/// which put it there is confirmed.
#[derive(Clone, Copy, Debug, Default)]
struct Hold {
    /// In a lane or out, claimed under this number.
    here: Option<AgentNumber>,
    /// Settlements on their way.
    leaving: u32,
}

/// Ids come from our own queue one after the other: nobody can choose them so that
/// they collide, and a multiplication spreads them.
#[derive(Debug, Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0 ^ number).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
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
    /// Open lanes with claims to send that no worker is left for, since they are not known to be fast.
    exposed_without_slot: VecDeque<usize>,
    /// Whether failed lanes go before new ones where both may have the next slot: in turn.
    failed_first: bool,
    /// Open lanes that hold claims back because of what is out.
    watched: VecDeque<usize>,
    nudged: Option<Instant>,
    /// Open lanes of which the queue has more waiting.
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
    random: u64,
}

impl Lanes {
    /// No lanes yet. `seed` is for the jitter.
    pub fn new(limits: Limits, seed: u64) -> Lanes {
        Lanes {
            most: Most::of(limits.workers),
            limits,
            by_origin: HashMap::new(),
            lanes: Vec::new(),
            free: Vec::new(),
            new_without_slot: Vec::new(),
            failed_without_slot: VecDeque::new(),
            failed_slowly_without_slot: VecDeque::new(),
            exposed_without_slot: VecDeque::new(),
            failed_first: false,
            watched: VecDeque::new(),
            nudged: None,
            wanting: VecDeque::new(),
            held: HashMap::default(),
            discarded: HashSet::new(),
            held_bytes: 0,
            leaving_bytes: 0,
            shares: Shares::default(),
            suspects: [0; 3],
            filing: HashSet::new(),
            last_spill: None,
            lately_confirmed: Vec::new(),
            round_up: false,
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
                self.lanes[at].parked.remove(&id);
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
        })
    }

    /// Whether a claim would be worth its round trip.
    pub fn has_room(&self) -> bool {
        let limit = self.held_at_most();
        let worth_it = (CLAIM_MESSAGES / 2).min(limit / 4).max(1);
        self.filing.is_empty() && self.n_held() + worth_it <= limit && self.bytes() < self.limits.bytes
    }

    fn bytes(&self) -> usize {
        self.held_bytes + self.leaving_bytes
    }

    fn n_held(&self) -> usize {
        self.held.len() + self.discarded.len()
    }

    fn held_at_most(&self) -> usize {
        if self.has_idle_worker() {
            return self.limits.messages;
        }
        HELD_WHILE_BUSY.max(2 * self.limits.workers).min(self.limits.messages)
    }

    /// Whether some open lane has more waiting in the queue: then the reader looks
    /// there again soon, in place of waiting for new messages alone.
    pub fn is_draining(&self) -> bool {
        !self.wanting.is_empty()
    }

    /// Whether some open lane has room for more of what waits.
    pub fn is_hungry(&self) -> bool {
        self.wanting.iter().any(|&at| self.lanes[at].held.len() <= self.kept_of_waiting() / 2)
    }

    /// Takes in a claim: it goes out, is held, or is put to wait or off.
    pub fn admit(&mut self, mut claim: Box<Claim>, now: Instant, effects: &mut Effects) {
        let hold = self.held.entry(claim.id).or_default();
        if hold.here.is_some() {
            // A rolled-back Redis gave out again what is still held: the one held counts.
            return;
        }
        hold.here = Some(claim.agent);
        let at = self.lane_of(claim.envelope.origin(), now);
        claim.lane = at;
        claim.origin = self.lanes[at].origin.clone();
        let lane = &mut self.lanes[at];
        match claim.source {
            Source::Retry if self.limits.ordered => {
                self.filing.insert(claim.id);
                effects.changes.push(LaneChange::Freed(lane.origin.clone()));
                return self.put_to_wait(&claim, None, now, effects);
            }
            // What the lane gave back (when it closed, or held too much) may not have been there yet when
            // the queue looked: then this one is not the oldest, and not the queue's answer to the closing.
            Source::Waiting { probe } if lane.parked.first().is_some_and(|parked| *parked < claim.id) => {
                if probe {
                    let (origin, after) = (lane.origin.clone(), lane.until_open(now));
                    effects.changes.push(LaneChange::Due { origin, after });
                }
                return self.put_to_wait(&claim, None, now, effects);
            }
            // Another agent has the lane open.
            Source::Waiting { probe: false } => {
                if lane.state != State::Open {
                    self.open(at, true, now, effects);
                }
            }
            Source::Waiting { probe: true } => {
                match lane.state {
                    State::Closed => lane.closed_until = None,
                    // The queue has set a time aside for the probe; this lane needs none.
                    State::Open => effects.changes.push(LaneChange::Open(lane.origin.clone())),
                    State::New => {}
                }
            }
            Source::Retry | Source::Queue => {
                let closed = lane.state == State::Closed;
                // With nothing waiting there is nothing else to try a closed lane with.
                let may_probe = !lane.has_waiting && lane.until_open(now).is_zero() && lane.is_idle();
                if claim.has_own_backoff() {
                    // When the lane may be tried, it is tried with what waits for it. With this one only if nothing
                    // does, or a while later: what is known to wait may be gone by another agent's hand, and a
                    // lane all of whose messages are on a backoff of their own would stay closed for good.
                    let patience =
                        if lane.has_waiting { self.limits.retry_first.max(AFTER_LACKING) } else { Duration::ZERO };
                    let may_probe = lane.closed_until.is_none_or(|until| until + patience <= now) && lane.is_idle();
                    if closed && !may_probe {
                        return self.put_off(&claim, now, effects);
                    }
                } else if (lane.has_waiting || closed) && !(closed && may_probe)
                    || lane.state == State::New && self.shares.held_unproven >= self.limits.messages / 2
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

    /// Takes in what became of an attempt that began at `begun`: settles the claim,
    /// and lets out what may go now.
    pub fn finish(&mut self, claim: Box<Claim>, outcome: Outcome, begun: Instant, now: Instant, effects: &mut Effects) {
        self.finish_at(claim, outcome, None, begun, now, effects);
    }

    /// As [`Lanes::finish`], for an attempt that was redirected to the lane of `guest_of` and entered it there
    /// ([`Lanes::enter`]): what became of it is that one's merit or fault. In strict order it is the message's
    /// own lane that must wait, whoever failed.
    pub fn finish_at(
        &mut self,
        claim: Box<Claim>,
        outcome: Outcome,
        guest_of: Option<&str>,
        begun: Instant,
        now: Instant,
        effects: &mut Effects,
    ) {
        let guest = guest_of.and_then(|origin| self.by_origin.get(origin).copied());
        if let Some(guest) = guest {
            self.change(guest, |lane| lane.guests = lane.guests.saturating_sub(1));
            if !self.limits.ordered || outcome == Outcome::Delivered {
                self.finish_guest(claim, outcome, guest, begun, now, effects);
                self.let_out(guest, now, effects);
                return self.fill_slots(now, effects);
            }
        }
        let at = claim.lane;
        let was_full = !self.lanes[at].has_room();
        let was_closed = self.lanes[at].state == State::Closed;
        let took = now.saturating_duration_since(begun);
        self.came_back(&claim, is_answered(&outcome).map(|answered| (took, answered)), now);
        let mut history = claim.history.clone();
        match outcome {
            Outcome::Delivered => {
                self.settle(&claim, Place::Delivered, History::default(), effects);
                self.delivered(at, &claim, was_full, now, effects);
            }
            Outcome::Dead { reason, fault } => {
                history.attempts = history.attempts.saturating_add(1);
                history.last_error = reason.clone();
                self.settle(&claim, Place::Dead, history, effects);
                match fault {
                    Some(fault) => {
                        let blame = Blame { fault, why: &reason, retry_after: None, is_dead: true };
                        self.blame(at, &claim, blame, begun, now, effects)
                    }
                    None => self.still_closed(at, now, effects),
                }
            }
            Outcome::Later { fault: Fault::Ours, error, .. } => {
                history.last_error = error;
                if self.limits.ordered {
                    self.file(&claim, history, Some(AFTER_LACKING), effects);
                    self.close_for(at, AFTER_LACKING, now, effects);
                    // Not one failure more: so the closing alone would not tell the queue when.
                    let origin = self.lanes[at].origin.clone();
                    effects.changes.push(LaneChange::Due { origin, after: AFTER_LACKING });
                } else {
                    self.settle(&claim, Place::Retry(AFTER_LACKING), history, effects);
                    self.still_closed(at, now, effects);
                }
            }
            Outcome::Later { fault, retry_after, error } => {
                history.attempts = history.attempts.saturating_add(1);
                history.last_error = error.clone();
                if self.waits_for_lane(&claim, fault, retry_after, now) {
                    let lane = &self.lanes[at];
                    let delay = (lane.state == State::Closed).then(|| lane.until_open(now));
                    self.file(&claim, history, delay, effects);
                } else {
                    history.own_failures = history.own_failures.saturating_add(1);
                    let own = self.own_backoff(fault, history.own_failures);
                    let delay = match retry_after {
                        Some(wait) if fault == Fault::Elsewhere => wait.max(own),
                        wanted => wanted.unwrap_or(own),
                    };
                    self.settle(&claim, Place::Retry(delay), history, effects);
                }
                let blame = Blame { fault, why: &error, retry_after, is_dead: false };
                self.blame(at, &claim, blame, begun, now, effects);
            }
        }
        if !was_closed && claim.source == (Source::Waiting { probe: true }) {
            self.probe_ended(at, effects);
        }
        self.let_out(at, now, effects);
        self.fill_slots(now, effects);
    }

    /// The attempt of a claim that was redirected is over; its own endpoint has answered in any case.
    fn finish_guest(
        &mut self,
        claim: Box<Claim>,
        outcome: Outcome,
        guest: usize,
        begun: Instant,
        now: Instant,
        effects: &mut Effects,
    ) {
        let at = claim.lane;
        let (was_full, guest_was_full) =
            (!self.lanes[at].has_room(), self.lanes[guest].in_window() + 1 >= self.lanes[guest].window);
        let was_probe = self.lanes[at].state != State::Closed && claim.source == (Source::Waiting { probe: true });
        self.came_back(&claim, None, now);
        let mut history = claim.history.clone();
        let mut blame = None;
        match &outcome {
            Outcome::Delivered => {
                self.settle(&claim, Place::Delivered, History::default(), effects);
                self.delivered(at, &claim, was_full, now, effects);
                self.delivered(guest, &claim, guest_was_full, now, effects);
            }
            Outcome::Dead { reason, fault } => {
                history.attempts = history.attempts.saturating_add(1);
                history.last_error = reason.clone();
                self.settle(&claim, Place::Dead, history, effects);
                blame = fault.map(|fault| Blame { fault, why: reason, retry_after: None, is_dead: true });
            }
            Outcome::Later { fault, retry_after, error } => {
                history.last_error = error.clone();
                let delay = if *fault == Fault::Ours {
                    AFTER_LACKING
                } else {
                    history.attempts = history.attempts.saturating_add(1);
                    history.own_failures = history.own_failures.saturating_add(1);
                    retry_after.unwrap_or_else(|| self.own_backoff(*fault, history.own_failures))
                };
                self.settle(&claim, Place::Retry(delay), history, effects);
                blame = Some(Blame { fault: *fault, why: error, retry_after: *retry_after, is_dead: false });
            }
        }
        self.answers(at, now, effects);
        match blame {
            Some(blame) => self.blame(guest, &claim, blame, begun, now, effects),
            None => self.still_closed(guest, now, effects),
        }
        if was_probe {
            self.probe_ended(at, effects);
        }
        self.let_out(at, now, effects);
    }

    /// An attempt is redirected to another origin: takes a place in the window of that one's lane, so that
    /// redirects go round neither its limit nor its being down. Else how long until it may be asked again, and why.
    ///
    /// # Errors
    ///
    /// If its window is full, or it is down.
    pub fn enter(&mut self, origin: &str, now: Instant) -> Result<(), (Duration, String)> {
        let at = self.lane_of(origin, now);
        let lane = &mut self.lanes[at];
        let may_probe = !lane.has_waiting && lane.until_open(now).is_zero() && lane.is_idle();
        match lane.state {
            State::Closed if !may_probe => {
                return Err((lane.until_open(now).max(AFTER_LACKING), lane.last_error.clone()));
            }
            State::Closed => lane.closed_until = None,
            State::New | State::Open if !lane.has_room() => return Err((AFTER_LACKING, String::new())),
            State::New | State::Open => {}
        }
        self.change(at, |lane| lane.guests += 1);
        Ok(())
    }

    /// A redirected attempt goes on to yet another origin, or ends before it was sent to this one.
    pub fn leave(&mut self, origin: &str, now: Instant, effects: &mut Effects) {
        if let Some(&at) = self.by_origin.get(origin) {
            self.change(at, |lane| lane.guests = lane.guests.saturating_sub(1));
            self.still_closed(at, now, effects);
            self.let_out(at, now, effects);
        }
    }

    /// The endpoint of a lane has answered, though it took nothing: it is not down.
    fn answers(&mut self, at: usize, now: Instant, effects: &mut Effects) {
        let lane = &mut self.lanes[at];
        lane.unanswered.clear();
        if lane.state == State::Closed && !lane.is_refusing {
            effects.changes.push(LaneChange::Open(lane.origin.clone()));
            self.open(at, false, now, effects);
        }
    }

    /// Whether a message that failed waits for its lane and is its next probe, or is on a backoff of its own, so
    /// that others are tried meanwhile.
    fn waits_for_lane(&self, claim: &Claim, fault: Fault, retry_after: Option<Duration>, now: Instant) -> bool {
        let lane = &self.lanes[claim.lane];
        if self.limits.ordered {
            return true;
        }
        match fault {
            Fault::Message | Fault::Elsewhere | Fault::Ours => false,
            // Any other would have failed as well: it keeps its place, unless all those behind it are to be attempted.
            Fault::Unreachable => !self.is_overdue(claim, now) || !lane.has_others(),
            // What an endpoint could not take beside the others is sent again at once, but only once.
            Fault::Throttled if lane.state == State::Open && lane.window > 1 => {
                claim.history.attempts == 0 && retry_after.is_none()
            }
            Fault::Throttled | Fault::NoAnswer if lane.state == State::Open => false,
            _ => !lane.has_others() && retry_after.is_none_or(|wanted| wanted <= ONE_MESSAGE_ASKS),
        }
    }

    /// It has waited for longer than messages live after their first failure, and was never attempted.
    fn is_overdue(&self, claim: &Claim, now: Instant) -> bool {
        claim.history.attempts == 0
            && claim.history_at(now).age.is_some_and(|waited| waited >= self.limits.give_up_after)
    }

    fn own_backoff(&mut self, fault: Fault, own_failures: u32) -> Duration {
        let jitter = self.jitter();
        let Limits { retry_first, retry_max, .. } = self.limits;
        match fault {
            Fault::Message => policy::message_backoff(own_failures, retry_first, jitter),
            // With the endpoint: as that is tried.
            _ => policy::lane_backoff(own_failures, retry_first, retry_max, jitter),
        }
    }

    /// A claim that a worker gives up without an attempt: it is not this agent's any more, or the agent stops.
    pub fn abandon(&mut self, claim: Box<Claim>, now: Instant, effects: &mut Effects) {
        let at = claim.lane;
        self.came_back(&claim, None, now);
        if !self.discarded.remove(&(claim.id, claim.agent)) {
            self.held.remove(&claim.id);
        }
        self.let_out(at, now, effects);
        self.fill_slots(now, effects);
    }

    /// The queue has settled these.
    pub fn confirmed(&mut self, settlements: &[Settlement], now: Instant) {
        for settlement in settlements {
            self.leaving_bytes -= kept_bytes(settlement);
            if let Some(hold) = self.held.get_mut(&settlement.id) {
                hold.leaving = hold.leaving.saturating_sub(1);
                if hold.here.is_none() && hold.leaving == 0 {
                    self.held.remove(&settlement.id);
                }
            }
            if matches!(settlement.place, Place::Waiting(_)) {
                self.filing.remove(&settlement.id);
                if let Some(&at) = self.by_origin.get(&settlement.origin) {
                    let lane = &mut self.lanes[at];
                    lane.unconfirmed = lane.unconfirmed.saturating_sub(1);
                    lane.confirmed_at = Some(now);
                    self.lately_confirmed.push((at, settlement.id));
                }
            }
        }
    }

    /// The queue says that nothing of this origin waits any more, as of a claim begun at `asked`.
    /// To be called before the claims of the same answer are admitted.
    pub fn emptied(&mut self, origin: &str, asked: Instant) {
        if let Some(&at) = self.by_origin.get(origin) {
            let lane = &mut self.lanes[at];
            // What was put to wait since may not have been there yet when the queue looked.
            if lane.had_settled(asked) {
                lane.has_waiting = false;
                self.stop_wanting(at);
            }
        }
    }

    /// The queue says how often a lane that is now probed has failed in a row, with other agents too.
    pub fn has_failed(&mut self, failed: &FailedLane, now: Instant) {
        let at = self.lane_of(&failed.origin, now);
        if self.lanes[at].state == State::New {
            self.change(at, |lane| lane.fails_slowly = failed.slowly);
            self.become_closed(at, now);
        }
        let lane = &mut self.lanes[at];
        lane.failures = lane.failures.max(failed.failures);
    }

    /// What waits in the queue by lane, as of a look begun at `asked`: lanes that
    /// other agents closed are not tried from here as if nothing were known.
    pub fn learn(&mut self, waiting: &[WaitingLane], asked: Instant, now: Instant) {
        // In order, each is needed: a lane not known to have older ones waiting would be overtaken.
        let most = if self.limits.ordered { waiting.len() } else { MOST_LANES / 2 };
        for known in waiting.iter().take(most) {
            let at = self.lane_of(&known.origin, now);
            let lane = &mut self.lanes[at];
            if lane.is_past(asked) {
                continue;
            }
            lane.has_waiting = true;
            match (known.due_in, lane.state) {
                (Some(due_in), State::New | State::Open) => {
                    self.become_closed(at, now);
                    self.lanes[at].closed_until = Some(now + due_in);
                }
                // Another agent may have tried it since; while it is tried from here, this one knows better.
                (Some(due_in), State::Closed) if lane.is_idle() => lane.closed_until = Some(now + due_in),
                (None, State::Open) => self.start_wanting(at),
                _ => {}
            }
        }
    }

    /// The ids of all claims held, for comparing with what the queue says.
    pub fn holds(&self, id: Id) -> bool {
        self.held.contains_key(&id)
    }

    /// All claims not yet confirmed settled.
    pub fn held(&self) -> Vec<Id> {
        self.held.keys().copied().collect()
    }

    /// Forgets claims that another agent has now, told by their id and number; those that workers have are told apart by
    /// [`Lanes::is_discarded`]. What is being settled stays noted until that is confirmed.
    pub fn discard(&mut self, is_theirs: impl Fn(Id, AgentNumber) -> bool, now: Instant, effects: &mut Effects) {
        let mut dropped = Vec::new();
        for at in 0..self.lanes.len() {
            dropped.extend(self.change(at, |lane| {
                let (theirs, kept): (VecDeque<_>, _) =
                    lane.held.drain(..).partition(|claim| is_theirs(claim.id, claim.agent));
                lane.held = kept;
                theirs
            }));
        }
        for claim in dropped {
            self.forget_held(&claim);
            self.held.remove(&claim.id);
        }
        let discarded = &mut self.discarded;
        self.held.retain(|id, hold| {
            if let Some(agent) = hold.here.filter(|agent| is_theirs(*id, *agent)) {
                hold.here = None;
                discarded.insert((*id, agent));
            }
            hold.here.is_some() || hold.leaving > 0
        });
        self.fill_slots(now, effects);
    }

    /// Whether this claim, which is out, was discarded since.
    pub fn is_discarded(&self, claim: &Claim) -> bool {
        self.discarded.contains(&(claim.id, claim.agent))
    }

    /// Empties the lanes at a stop: what was never attempted is dropped here, and
    /// still recorded as in flight in the queue, which gives it back when the agent leaves.
    pub fn stop(&mut self) -> usize {
        let mut n = 0;
        for at in 0..self.lanes.len() {
            let held = self.change(at, |lane| std::mem::take(&mut lane.held));
            n += held.len();
            for claim in held {
                self.held.remove(&claim.id);
            }
        }
        self.new_without_slot.clear();
        self.failed_without_slot.clear();
        self.failed_slowly_without_slot.clear();
        self.exposed_without_slot.clear();
        self.watched.clear();
        n
    }

    /// Counts for the metrics: open lanes, new ones, closed ones.
    pub fn counts(&self) -> LaneCounts {
        let mut counts = LaneCounts { held: self.held.len(), bytes: self.bytes(), ..LaneCounts::default() };
        for &at in self.by_origin.values() {
            match self.lanes[at].state {
                State::New => counts.new += 1,
                State::Open => counts.open += 1,
                State::Closed => counts.closed += 1,
            }
        }
        counts
    }

    // ---- what an attempt does to its lane ----

    fn delivered(&mut self, at: usize, claim: &Claim, was_full: bool, now: Instant, effects: &mut Effects) {
        let limits = &self.limits;
        let lane = &mut self.lanes[at];
        lane.at_fault.clear();
        lane.unanswered.clear();
        lane.last_delivery = Some(now);
        if lane.state != State::Open {
            // However long ago it began: the endpoint has just answered.
            let tell = lane.state == State::Closed || lane.has_waiting || claim.source != Source::Queue;
            if tell {
                effects.changes.push(LaneChange::Open(lane.origin.clone()));
            }
            self.open(at, true, now, effects);
        } else if was_full && lane.window < limits.endpoint_concurrency && !limits.ordered {
            lane.since_growth += 1;
            // Up to what it was throttled at by one per window, and only slowly into that again.
            let windows = if lane.window + 1 < lane.ceiling { 1 } else { WINDOWS_AT_CEILING };
            if !lane.careful || lane.since_growth >= lane.window * windows {
                lane.window += 1;
                lane.since_growth = 0;
            }
        }
    }

    /// What a failed attempt does to its lane.
    fn blame(&mut self, at: usize, claim: &Claim, blame: Blame, begun: Instant, now: Instant, effects: &mut Effects) {
        let Blame { fault, why, retry_after, is_dead } = blame;
        match fault {
            Fault::Ours => return self.still_closed(at, now, effects),
            Fault::Elsewhere if !self.limits.ordered => return self.answers(at, now, effects),
            _ => {}
        }
        if self.lanes[at].is_past(begun) {
            return;
        }
        let is_overdue = self.is_overdue(claim, now);
        let closing = Closing { why, retry_after, by_many: false, is_overdue };
        if self.limits.ordered {
            return if is_dead && fault == Fault::Message {
                self.message_failed(at, claim, why, now, effects)
            } else {
                self.close(at, closing, now, effects)
            };
        }
        let lane = &mut self.lanes[at];
        match fault {
            // Whatever its path, nothing reaches this endpoint.
            Fault::Unreachable => self.close(at, Closing { by_many: true, ..closing }, now, effects),
            Fault::Message => self.message_failed(at, claim, why, now, effects),
            Fault::Throttled | Fault::NoAnswer | Fault::Elsewhere | Fault::Ours => {
                if lane.state != State::Open {
                    return self.close(at, closing, now, effects);
                }
                if fault == Fault::Throttled && lane.window > 1 {
                    lane.ceiling = lane.window;
                    lane.window /= 2;
                    lane.careful = true;
                    lane.since_growth = 0;
                    lane.epoch = Some(now);
                }
                // One that has failed before is known to be bad, be its endpoint well or not.
                if claim.has_own_backoff() {
                    return;
                }
                if !lane.unanswered.contains(&claim.id) {
                    lane.unanswered.push(claim.id);
                }
                let lately = |last: Instant| now.saturating_duration_since(last) < self.limits.retry_first;
                let enough = if lane.last_delivery.is_some_and(lately) { UNANSWERED } else { UNANSWERED_FOR_LONG };
                if lane.unanswered.len() >= enough {
                    self.close(at, Closing { by_many: true, ..closing }, now, effects);
                }
            }
        }
    }

    fn message_failed(&mut self, at: usize, claim: &Claim, why: &str, now: Instant, effects: &mut Effects) {
        let jitter = self.jitter();
        // It answers: so it is not down, whatever it thinks of this message.
        self.answers(at, now, effects);
        if claim.has_own_backoff() {
            return self.still_closed(at, now, effects);
        }
        let lane = &mut self.lanes[at];
        if !lane.at_fault.contains(&claim.id) {
            lane.at_fault.push(claim.id);
        }
        if lane.at_fault.len() >= MESSAGES_AT_FAULT {
            self.close(at, Closing { why, retry_after: None, by_many: true, is_overdue: false }, now, effects);
            self.lanes[at].is_refusing = true;
        } else if lane.state == State::Closed {
            // The endpoint is alive, and only this message was a bad probe: another is tried soon. Closing
            // for twice as long would keep all that waits from an endpoint that takes nine in ten.
            let after = policy::lane_backoff(1, self.limits.retry_first, self.limits.retry_max, jitter);
            lane.closed_until = Some(now + after);
            effects.changes.push(LaneChange::Due { origin: lane.origin.clone(), after });
        }
    }

    /// A probe of a lane that is not closed here: it was opened by another message meanwhile,
    /// or what became of the probe says nothing of the endpoint. The queue would leave the lane
    /// alone for the whole attempt that it set aside.
    fn probe_ended(&mut self, at: usize, effects: &mut Effects) {
        let lane = &mut self.lanes[at];
        if lane.state == State::Closed {
            return;
        }
        let change = LaneChange::Open(lane.origin.clone());
        if !effects.changes.contains(&change) {
            effects.changes.push(change);
        }
        lane.has_waiting = true;
        if lane.state == State::Open {
            self.start_wanting(at);
        }
    }

    /// A closed lane whose probe said nothing about it stays closed, and is not left to
    /// the time that was set aside for the probe.
    fn still_closed(&mut self, at: usize, now: Instant, effects: &mut Effects) {
        let lane = &mut self.lanes[at];
        if lane.state == State::Closed && lane.out.is_empty() && lane.guests == 0 && lane.closed_until.is_none() {
            lane.closed_until = Some(now + AFTER_LACKING);
            effects.changes.push(LaneChange::Due { origin: lane.origin.clone(), after: AFTER_LACKING });
        }
    }

    fn close(&mut self, at: usize, closing: Closing, now: Instant, effects: &mut Effects) {
        let jitter = self.jitter();
        let Limits { retry_first, retry_max, .. } = self.limits;
        let lane = &mut self.lanes[at];
        lane.failures += 1;
        lane.last_error = closing.why.to_string();
        lane.is_refusing = false;
        let delay = match closing.retry_after {
            Some(wanted) if closing.by_many || lane.failures > 1 => wanted,
            Some(wanted) => wanted.min(ONE_MESSAGE_ASKS),
            None => policy::lane_backoff(lane.failures, retry_first, retry_max, jitter),
        };
        let delay = if closing.is_overdue { delay.min(OVERDUE_EVERY) } else { delay };
        self.close_for(at, delay, now, effects);
    }

    fn close_for(&mut self, at: usize, delay: Duration, now: Instant, effects: &mut Effects) {
        self.become_closed(at, now);
        let held = self.change(at, |lane| {
            lane.window = 1;
            lane.careful = false;
            lane.since_growth = 0;
            lane.at_fault.clear();
            lane.unanswered.clear();
            lane.epoch = Some(now);
            lane.closed_until = Some(now + delay);
            lane.failures = lane.failures.max(1);
            std::mem::take(&mut lane.held)
        });
        let waiting = held.len();
        self.give_up(held, Some(delay), now, effects);
        let lane = &mut self.lanes[at];
        effects.changes.push(LaneChange::Close {
            origin: lane.origin.clone(),
            after: delay,
            failures: lane.failures,
            slowly: lane.fails_slowly,
            why: lane.last_error.clone(),
        });
        effects.news.push(News::Down {
            origin: lane.origin.clone(),
            why: lane.last_error.clone(),
            failures: lane.failures,
            waiting,
            next: delay,
        });
    }

    fn become_closed(&mut self, at: usize, now: Instant) {
        self.change(at, |lane| {
            lane.state = State::Closed;
            lane.failing_since.get_or_insert(now);
        });
        self.stop_wanting(at);
    }

    /// `by_delivery`: not only by an answer, after which the next failure counts on.
    fn open(&mut self, at: usize, by_delivery: bool, now: Instant, effects: &mut Effects) {
        self.change(at, |lane| {
            lane.state = State::Open;
            if by_delivery {
                lane.failures = 0;
            }
            lane.is_refusing = false;
            lane.closed_until = None;
            lane.window = 1;
            lane.careful = false;
            lane.since_growth = 0;
        });
        let lane = &mut self.lanes[at];
        if let Some(since) = lane.failing_since.take() {
            let after = now.saturating_duration_since(since);
            effects.news.push(News::Back { origin: lane.origin.clone(), after });
        }
        if self.lanes[at].has_waiting {
            self.start_wanting(at);
        }
    }

    /// Changes a lane, and the sums with it.
    fn change<T>(&mut self, at: usize, change: impl FnOnce(&mut Lane) -> T) -> T {
        let lane = &mut self.lanes[at];
        self.shares -= lane.shares();
        let result = change(lane);
        self.shares += lane.shares();
        result
    }

    // ---- what becomes of claims that may not go out now ----

    /// Puts a claim that was not attempted to wait for its lane.
    fn put_to_wait(&mut self, claim: &Claim, delay: Option<Duration>, now: Instant, effects: &mut Effects) {
        let lane = &self.lanes[claim.lane];
        let delay = delay.or_else(|| {
            // While the probe of a closed lane is out, its outcome says when the lane is tried next.
            let probing = lane.closed_until.is_none();
            (lane.state == State::Closed).then(|| if probing { self.limits.attempt } else { lane.until_open(now) })
        });
        let mut history = claim.history.clone();
        if history.last_error.is_empty() {
            history.last_error = lane.last_error.clone();
        }
        self.file(claim, history, delay, effects);
    }

    fn settle(&mut self, claim: &Claim, place: Place, history: History, effects: &mut Effects) {
        let hold = self.held.entry(claim.id).or_default();
        hold.leaving += 1;
        // One that was discarded while it was attempted is not the one that may be held now.
        if !self.discarded.remove(&(claim.id, claim.agent)) {
            hold.here = None;
        }
        let kept = (place != Place::Delivered).then(|| Kept { agent: claim.agent, bytes: claim.envelope.share_raw() });
        let settlement = Settlement { id: claim.id, origin: claim.origin.clone(), place, history, kept };
        self.leaving_bytes += kept_bytes(&settlement);
        effects.settlements.push(settlement);
    }

    fn file(&mut self, claim: &Claim, history: History, delay: Option<Duration>, effects: &mut Effects) {
        self.settle(claim, Place::Waiting(delay), history, effects);
        let lane = &mut self.lanes[claim.lane];
        lane.has_waiting = true;
        lane.unconfirmed += 1;
        lane.parked.insert(claim.id);
        if lane.state == State::Open {
            if !lane.wanting {
                effects.changes.push(LaneChange::Open(lane.origin.clone()));
            }
            self.start_wanting(claim.lane);
        }
    }

    /// A message on a backoff of its own whose lane is closed: due at the reopening and its own backoff, no attempt
    /// spent; dead if it is too old for that.
    fn put_off(&mut self, claim: &Claim, now: Instant, effects: &mut Effects) {
        let mut history = claim.history_at(now);
        let give_up_after = self.limits.give_up_after;
        if history.attempts > 0 && history.age.is_some_and(|age| age >= give_up_after) {
            history.last_error = policy::gave_up(give_up_after, &history.last_error);
            let (origin, reason) = (claim.origin.clone(), history.last_error.clone());
            effects.news.push(News::GaveUp { id: claim.id, origin, reason });
            return self.settle(claim, Place::Dead, history, effects);
        }
        let jitter = self.jitter();
        let Limits { retry_first, retry_max, .. } = self.limits;
        let own = policy::lane_backoff(claim.history.own_failures, retry_first, retry_max, jitter);
        let delay = self.lanes[claim.lane].until_open(now) + own;
        self.settle(claim, Place::Retry(delay), history, effects);
    }

    /// Gives back claims that were taken out of a lane.
    fn give_up(
        &mut self,
        held: impl IntoIterator<Item = Box<Claim>>,
        delay: Option<Duration>,
        now: Instant,
        effects: &mut Effects,
    ) {
        for claim in held {
            self.forget_held(&claim);
            if claim.has_own_backoff() && !self.limits.ordered {
                self.put_off(&claim, now, effects);
            } else {
                self.put_to_wait(&claim, delay, now, effects);
            }
        }
    }

    /// Memory is full while a worker is idle: the lane that holds most, if it does
    /// not keep up, gives back all but a few.
    fn spill(&mut self, now: Instant, effects: &mut Effects) {
        if self.last_spill.is_some_and(|last| now.saturating_duration_since(last) < Duration::from_millis(1)) {
            return;
        }
        self.last_spill = Some(now);
        let kept = self.kept_of_waiting();
        let Some(at) = (0..self.lanes.len()).max_by_key(|&at| self.lanes[at].held.len()) else { return };
        let lane = &self.lanes[at];
        let n = lane.held.len();
        let Some(head) = lane.held.front() else { return };
        let waited = now.saturating_duration_since(head.claimed_at);
        if n <= kept || waited < Duration::from_micros(100) * n as u32 {
            return;
        }
        let given_back = self.change(at, |lane| lane.held.split_off(kept));
        self.give_up(given_back, None, now, effects);
    }

    // ---- going out ----

    fn hold(&mut self, claim: Box<Claim>) {
        self.held_bytes += claim.envelope.size();
        self.count_suspect(&claim, 1);
        self.change(claim.lane, |lane| {
            // Oldest first: what comes back from waiting is older than what came meanwhile.
            let behind = lane.held.iter().rev().take_while(|held| held.id > claim.id).count();
            lane.held.insert(lane.held.len() - behind, claim);
        });
    }

    /// Sends what a lane may send.
    fn let_out(&mut self, at: usize, now: Instant, effects: &mut Effects) {
        loop {
            let lane = &self.lanes[at];
            if lane.held.is_empty() {
                return;
            }
            let is_scout = !lane.has_room();
            if is_scout && (self.limits.ordered || !lane.may_scout(now)) {
                return self.watch(at);
            }
            if !self.most.allows(kind(lane), &self.shares) {
                return self.wait_for_slot(at);
            }
            let claim = self.change(at, |lane| {
                // Beside silent ones the newest: those that came with them may be as bad.
                let claim = if is_scout { lane.held.pop_back() } else { lane.held.pop_front() };
                let claim = claim.expect("not empty");
                lane.out.push(Out { id: claim.id, since: now, is_overtaken: false });
                claim
            });
            effects.ready.push(claim);
        }
    }

    /// An open lane holds claims back because of those that are out: if these are silent, one more may go out later.
    fn watch(&mut self, at: usize) {
        let lane = &mut self.lanes[at];
        if lane.state == State::Open && !self.limits.ordered && !lane.is_watched {
            lane.is_watched = true;
            self.watched.push_back(at);
        }
    }

    /// Whether lanes have to be looked at again soon though nothing happens.
    pub fn is_watching(&self) -> bool {
        !self.watched.is_empty()
    }

    /// Looks at lanes that hold claims back: beside attempts that are silent one more may go out by now.
    pub fn nudge(&mut self, now: Instant, effects: &mut Effects) {
        if self.nudged.is_some_and(|last| now.saturating_duration_since(last) < NUDGE_EVERY) {
            return;
        }
        self.nudged = Some(now);
        for _ in 0..self.watched.len().min(NUDGED) {
            let Some(at) = self.watched.pop_front() else { return };
            self.lanes[at].is_watched = false;
            self.let_out(at, now, effects);
        }
    }

    /// A claim is with its worker no more; `told`: how long its attempt took, if that says something of the
    /// endpoint, and whether it was answered.
    fn came_back(&mut self, claim: &Claim, told: Option<(Duration, bool)>, now: Instant) {
        self.held_bytes -= claim.envelope.size();
        self.count_suspect(claim, -1);
        let at_most = self.most.failed();
        self.change(claim.lane, |lane| {
            let sent = lane.came_back(claim.id);
            let Some((took, is_answered)) = told else { return };
            lane.took(took, is_answered);
            if is_answered {
                lane.overtake(sent, now, at_most);
            }
        });
    }

    fn take_held(&mut self, at: usize, id: Id) -> Option<Box<Claim>> {
        let place = self.lanes[at].held.iter().position(|held| held.id == id)?;
        let claim = self.change(at, |lane| lane.held.remove(place))?;
        self.forget_held(&claim);
        Some(claim)
    }

    /// A claim has left a lane's `held` without going out.
    fn forget_held(&mut self, claim: &Claim) {
        self.held_bytes -= claim.envelope.size();
        self.count_suspect(claim, -1);
    }

    fn count_suspect(&mut self, claim: &Claim, by: isize) {
        if claim.is_suspect() {
            let grade = (claim.recovered as usize - 2).min(2);
            self.suspects[grade] = self.suspects[grade].saturating_add_signed(by);
        }
    }

    fn wait_for_slot(&mut self, at: usize) {
        let lane = &mut self.lanes[at];
        if !lane.on_stack {
            lane.on_stack = true;
            match kind(lane) {
                Kind::New => self.new_without_slot.push(at),
                Kind::Failed => self.failed_without_slot.push_back(at),
                Kind::FailedSlowly => self.failed_slowly_without_slot.push_back(at),
                Kind::Exposed | Kind::Trusted => self.exposed_without_slot.push_back(at),
            }
        }
    }

    /// Of the new lanes the newest first: behind a thousand black holes a healthy newcomer must not queue.
    /// New and failed ones go first in turn, where both may have the next slot.
    fn fill_slots(&mut self, now: Instant, effects: &mut Effects) {
        loop {
            self.failed_first = !self.failed_first;
            let unproven = [Kind::New, Kind::Failed, Kind::FailedSlowly];
            let order = if self.failed_first { [1, 2, 0] } else { [0, 1, 2] };
            let kinds = std::iter::once(Kind::Exposed).chain(order.map(|n| unproven[n]));
            let next = kinds.filter(|kind| self.most.allows(*kind, &self.shares)).find_map(|kind| match kind {
                Kind::New => self.new_without_slot.pop(),
                Kind::Failed => self.failed_without_slot.pop_front(),
                Kind::FailedSlowly => self.failed_slowly_without_slot.pop_front(),
                Kind::Exposed | Kind::Trusted => self.exposed_without_slot.pop_front(),
            });
            let Some(at) = next else { return };
            self.lanes[at].on_stack = false;
            self.let_out(at, now, effects);
        }
    }

    fn has_idle_worker(&self) -> bool {
        self.shares.out < self.limits.workers
    }

    // ---- what waits in the queue ----

    fn kept_of_waiting(&self) -> usize {
        KEPT_OF_WAITING.min(self.limits.messages / self.limits.workers).max(1)
    }

    /// Open lanes that have room for more of what waits, in turn; and, with 0, those
    /// that have none, so that the queue does not take them for lanes to be tried.
    fn wants(&mut self) -> Vec<Want> {
        let kept = self.kept_of_waiting();
        let mut wants = Vec::new();
        for _ in 0..self.wanting.len().min(WANTS_PER_CLAIM) {
            self.wanting.rotate_left(1);
            let &at = self.wanting.back().expect("not empty");
            let lane = &self.lanes[at];
            let room = if lane.held.len() <= kept / 2 { kept - lane.held.len() } else { 0 };
            let free = lane.window.saturating_sub(lane.in_window() + lane.held.len());
            wants.push(Want { origin: lane.origin.to_string(), room, free });
        }
        wants
    }

    fn start_wanting(&mut self, at: usize) {
        if !self.lanes[at].wanting {
            self.lanes[at].wanting = true;
            self.wanting.push_back(at);
        }
    }

    fn stop_wanting(&mut self, at: usize) {
        if self.lanes[at].wanting {
            self.lanes[at].wanting = false;
            self.wanting.retain(|&other| other != at);
        }
    }

    // ---- records ----

    fn lane_of(&mut self, origin: &str, now: Instant) -> usize {
        if let Some(&at) = self.by_origin.get(origin) {
            return at;
        }
        if self.by_origin.len() >= MOST_LANES {
            self.forget_idle(now);
        }
        let origin: Arc<str> = Arc::from(origin);
        let lane = Lane::new(origin.clone());
        let at = match self.free.pop() {
            Some(at) => {
                self.lanes[at] = lane;
                at
            }
            None => {
                self.lanes.push(lane);
                self.lanes.len() - 1
            }
        };
        self.by_origin.insert(origin, at);
        at
    }

    /// Forgets idle lanes: first those that say nothing, and if that is not enough, those due soonest.
    fn forget_idle(&mut self, now: Instant) {
        let mut idle: Vec<(Duration, usize)> = self
            .by_origin
            .values()
            .filter(|&&at| self.lanes[at].is_idle() && !(self.limits.ordered && self.lanes[at].has_waiting))
            .map(|&at| (self.lanes[at].until_open(now), at))
            .collect();
        idle.sort_unstable();
        let silent = idle.iter().take_while(|(until_open, _)| until_open.is_zero()).count();
        for &(_, at) in idle.iter().take(silent.max(MOST_LANES / 4)) {
            self.by_origin.remove(&self.lanes[at].origin);
            self.free.push(at);
        }
    }

    /// Evenly from -1 to 1, by xorshift: spreads retries, and has no other duty.
    fn jitter(&mut self) -> f64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }
}

fn kept_bytes(settlement: &Settlement) -> usize {
    settlement.kept.as_ref().map_or(0, |kept| kept.bytes.len())
}

/// How many lanes are in which state, and what is held.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LaneCounts {
    /// Lanes with no delivery yet.
    pub new: usize,
    /// Lanes that deliver.
    pub open: usize,
    /// Lanes that failed since their last delivery.
    pub closed: usize,
    /// Claims not yet confirmed settled.
    pub held: usize,
    /// Bytes of those not yet attempted to an end, or kept until it is confirmed that they are put off.
    pub bytes: usize,
}

#[cfg(test)]
mod tests;
