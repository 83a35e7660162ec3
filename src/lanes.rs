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
//! | `lanes.rs` | how much may be claimed |
//! | `admit.rs` | where a claim goes when it comes |
//! | `sending.rs`, `shares.rs` | which claims go out to the workers, and who may have them |
//! | `finish.rs`, `blame.rs` | where a claim goes when its attempt is over; what that does to its lane |
//! | `held.rs`, `known.rs` | what is held here, and given back; what is known of lanes and of what waits for them |
//! | `obey.rs` | what operators order: lanes that are paused, or to be tried now |
//! | `lane.rs`, `claim.rs` | one lane: its state, its window, its silent attempts; one claim |
//! | `effects.rs` | what the lanes want done, and what people may want to read |

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::BuildHasherDefault;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::orders::Orders;
use crate::queue::{AgentNumber, Bounds, Id};
pub use claim::Claim;
pub use effects::{DownLane, Effects, LaneCounts, News};
use held::{Hold, IdHasher};
use known::{KEPT_OF_WAITING, MOST_LANES, WANTS_PER_CLAIM};
use lane::{Lane, State};
use shares::{Most, Shares};

mod admit;
mod blame;
mod claim;
mod effects;
mod finish;
mod held;
mod known;
mod lane;
mod obey;
mod sending;
mod shares;

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
}

#[cfg(test)]
mod tests;
