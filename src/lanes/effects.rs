//! What the lanes tell others: what they want done, and what people may want to read.

use std::sync::Arc;
use std::time::Duration;

use super::claim::Claim;
use crate::queue::{Id, LaneChange, Settlement};

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

/// Why a lane takes no redirected attempt now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Closed {
    /// Its window is full.
    Full,
    /// It is down, and it is not this one's turn to try it.
    Down {
        /// How long until it may be asked again.
        wait: Duration,
        /// Why it is down; empty if only others have seen it fail.
        why: String,
    },
    /// An operator has paused it.
    Paused,
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
