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
//! once it is up. A lane that is down has no timer here: the queue decides when it is due.
//!
//! | file | its part, in the order of a message |
//! |---|---|
//! | `appetite.rs` | how much may be claimed |
//! | `admit.rs` | where a claim goes when it comes: out, into its lane, to wait, or off |
//! | `sending.rs`, `shares.rs` | which claims go out to the workers, and who may have them |
//! | `finish.rs`, `blame.rs` | where a claim goes when its attempt is over; what that does to its lane |
//! | `held.rs`, `known.rs` | what is held here, settled and given back; what is known of lanes and of what waits for them |
//! | `obey.rs` | what operators order: lanes that are paused, or to be tried now |
//! | `lane.rs`, `claim.rs` | one lane: its state, its window, its silent attempts; one claim |
//! | `effects.rs` | what the lanes want done, and what people may want to read |

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::BuildHasherDefault;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::orders::Orders;
use crate::queue::{AgentNumber, Id};
pub use claim::Claim;
pub use effects::{Closed, DownLane, Effects, LaneCounts, News};
use held::{Hold, IdHasher};
use known::{KEPT_OF_WAITING, MOST_LANES};
use lane::{Lane, State};
pub use sending::NUDGE_EVERY;
use shares::{Most, Shares};

mod admit;
mod appetite;
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

/// What one message alone can make its lane wait for by `Retry-After`.
const ONE_MESSAGE_ASKS: Duration = Duration::from_secs(60);
/// While no worker is idle, more than this many claims in memory only make them older.
const HELD_WHILE_BUSY: usize = 256;
/// What is put off because this machine lacked something, or since a redirect leads to a lane that takes nothing now,
/// is tried again after this long.
pub const AFTER_LACKING: Duration = Duration::from_secs(1);

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
}

#[cfg(test)]
mod tests;
