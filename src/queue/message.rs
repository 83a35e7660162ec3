//! A message as the queue knows it: its id, what is remembered of it, and as it is given out.

use std::fmt;
use std::time::Duration;

/// A message's id: 16 decimal digits wherever it is written, so that text
/// order is number order. It stays the same through waiting, recovery and replay.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Id(pub u64);

impl Id {
    /// Reads an id; `None` if it is none that was given out.
    pub fn read(text: &[u8]) -> Option<Id> {
        let is_id = text.len() == 16 && text.iter().all(u8::is_ascii_digit);
        std::str::from_utf8(text).ok().filter(|_| is_id)?.parse().ok().map(Id)
    }

    /// When it was claimed first, in milliseconds since 1970 by the queue's clock; later than that while
    /// the clock is behind what it was.
    pub fn claimed_ms(self) -> i64 {
        (self.0 / 1000) as i64
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016}", self.0)
    }
}

/// What is remembered of a message that could not be delivered at once.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct History {
    /// Attempts made so far.
    pub attempts: u32,
    /// Of these, the failures that were the message's own fault; more than none
    /// means that it is on a backoff of its own, and no probe of its lane.
    pub own_failures: u32,
    /// How long ago it first failed, or, while it was never attempted, was first put off, by the queue's clock;
    /// `None` if never.
    pub age: Option<Duration>,
    /// The last error, for people; empty if there was none.
    pub last_error: String,
}

impl History {
    /// Whether it has reached this age.
    pub fn is_aged(&self, age: Duration) -> bool {
        self.age.is_some_and(|own| own >= age)
    }

    /// Takes note of one more attempt that failed.
    pub fn failed(&mut self, error: &str) {
        self.attempts = self.attempts.saturating_add(1);
        self.last_error = error.to_string();
    }
}

/// Where a claim was taken from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// From the queue itself: never claimed before.
    Queue,
    /// From what waits for its lane: to try whether the lane is mended (`probe`), or because the lane is up.
    Waiting {
        /// Its lane failed, or was never tried.
        probe: bool,
    },
    /// From the retry schedule: a backoff of its own, recovered, or replayed.
    Retry,
}

/// A message as the queue gave it out, not yet decoded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RawClaim {
    /// The message's id.
    pub id: Id,
    /// The bytes that ACA-Py pushed, untouched.
    pub bytes: Vec<u8>,
    /// What earlier claims of it came to.
    pub history: History,
    /// Agents that died while they had it in flight, since its last settled attempt.
    pub recovered: u32,
    /// Where it was taken from.
    pub source: Source,
}

/// Numbers are microseconds since 1970 or a little more: this is in the year 2223, and a double holds it exactly.
/// One beyond it is nonsense that somebody wrote.
pub const HIGHEST_NUMBER: u64 = 8_000_000_000_000_000;
