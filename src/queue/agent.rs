//! Agents as the queue knows them: their numbers and leases, and the answers to a join and a beat.

use std::fmt;
use std::time::Duration;

/// An agent's number: from the same counter as the ids, new at every `join`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct AgentNumber(pub u64);

impl fmt::Display for AgentNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016}", self.0)
    }
}

/// Another agent as the queue sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Peer {
    /// Its number.
    pub number: AgentNumber,
    /// Its lease as it stands in the queue, opaque; `None` if it has messages in
    /// flight but is not registered. It is alive as long as this changes.
    pub lease: Option<u64>,
    /// How long its leases are: before that it need not have changed.
    pub length: Duration,
}

/// The answer to a join.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Joined {
    /// The agent's new number.
    pub number: AgentNumber,
    /// What became of the one before.
    pub old: Fate,
    /// By how much the queue's clock is behind what it was at the last beat of any agent.
    pub set_back: Duration,
}

/// What became of a number that an agent had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// There was none, or the queue knows nothing of it: it has lost data.
    Unknown,
    /// It is registered still.
    Registered,
    /// Others took it for dead, and took back all that it had in flight.
    Recovered,
}

/// The answer to a beat.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Beat {
    /// False if the agent is gone and must join again.
    pub registered: bool,
    /// All other agents, registered or holding messages.
    pub peers: Vec<Peer>,
    /// The queue's time, in milliseconds since 1970.
    pub at: u64,
    /// The last number that the queue has given out, to a message or an agent.
    pub numbered: u64,
    /// The longest delay of all agents, if something is due later than that.
    pub beyond: Option<Duration>,
}
