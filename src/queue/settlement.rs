//! What the queue is told: what became of claims, and which lanes have changed.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::agent::AgentNumber;
use super::message::{History, Id};

/// Where a settlement puts a message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Place {
    /// Delivered: out of the queue, wherever it is.
    Delivered,
    /// On the retry schedule, due after this long.
    Retry(Duration),
    /// Waiting for its lane; if the lane is not known to the queue yet, it may be
    /// tried after this long (`None`: it has not failed, at once).
    Waiting(Option<Duration>),
    /// Dead, for `History::last_error`.
    Dead,
}

/// What became of one claim.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settlement {
    /// The message.
    pub id: Id,
    /// The origin of its endpoint, the name of its lane; empty if it has none that can be read.
    pub origin: Arc<str>,
    /// Where it goes now.
    pub place: Place,
    /// Attempts and errors so far; not read for `Delivered`. `age` is ignored: the
    /// queue remembers the first time by its own clock.
    pub history: History,
    /// What it takes to put it back, should the queue have lost it; none with what was delivered.
    pub kept: Option<Kept>,
}

/// A message as it was claimed.
#[derive(Clone, PartialEq, Eq)]
pub struct Kept {
    /// The number under which it was claimed.
    pub agent: AgentNumber,
    /// Its bytes, shared with the claim.
    pub bytes: Arc<Vec<u8>>,
}

/// Leaves the bytes out, for it may end in a log.
impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kept").field("agent", &self.agent).field("size", &self.bytes.len()).finish()
    }
}

/// A lane's change of state, for all agents.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LaneChange {
    /// It may be used: a delivery succeeded.
    Up(Arc<str>),
    /// It failed, and may be tried after this long.
    Down {
        /// Its origin.
        origin: Arc<str>,
        /// When it may be tried.
        after: Duration,
        /// How many times in a row it has failed, this one included.
        failures: u32,
        /// Whether this failure took long.
        slowly: bool,
        /// The last error, for people.
        why: String,
    },
    /// A message of it came back from an agent that died: if it was probing the lane, that is over.
    Freed(Arc<str>),
    /// A probe of it was given back unused: it may be tried after this long.
    Due {
        /// Its origin.
        origin: Arc<str>,
        /// When it may be tried.
        after: Duration,
    },
}
