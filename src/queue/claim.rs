//! How much a claim may take, and the answer to it.

use std::time::Duration;

use super::message::{Id, RawClaim};
use crate::orders::Orders;

/// How much a claim may take.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bounds {
    /// Messages in all.
    pub messages: usize,
    /// Bytes in all; the message that reaches it is still taken, so that none is too large to pass.
    pub bytes: usize,
    /// A message larger than this, in bytes, is dead at once.
    pub largest: usize,
    /// Messages that return (from the retry schedule or from waiting), while the queue has new ones.
    pub returning: usize,
    /// Lanes that are up here and have messages waiting.
    pub wants: Vec<Want>,
    /// Other lanes that have not failed and may be tried now, with one message each.
    pub probes: usize,
    /// Lanes that failed and may be tried again, with one message each.
    pub failed_probes: usize,
    /// How many of these may be lanes that fail slowly.
    pub slow_probes: usize,
    /// How long the lane of a probe is left alone: a whole attempt.
    pub probe_for: Duration,
    /// How many messages may be among them that were in flight in an agent that died: as many as go out at once.
    pub fragile: usize,
    /// How many messages that two or more agents died of are here now: the more agents died of one, the fewer of
    /// them are worked on together, so that an innocent one never comes to its end beside a poisonous one.
    pub suspects: usize,
    /// The most agents that died of one of these.
    pub gravest: u32,
    /// Strict order: retries first and alone, due or not, and only while no older agent
    /// is registered and nobody else has messages in flight.
    pub ordered: bool,
    /// A value that the wait has already popped from the queue (`--pop blpop`).
    pub popped: Option<Vec<u8>>,
    /// The highest number, of a message or an agent, that this agent has seen: what is taken gets higher ones.
    pub seen: u64,
    /// The number of the orders that this agent knows.
    pub orders: u64,
}

impl Bounds {
    /// A claim of nothing but a value already popped.
    pub fn only(popped: Vec<u8>) -> Bounds {
        Bounds {
            messages: 1,
            bytes: 1,
            largest: usize::MAX >> 11,
            returning: 0,
            wants: Vec::new(),
            probes: 0,
            failed_probes: 0,
            slow_probes: 0,
            probe_for: Duration::ZERO,
            fragile: 0,
            suspects: 0,
            gravest: 0,
            ordered: false,
            popped: Some(popped),
            seen: 0,
            orders: 0,
        }
    }
}

/// A lane that is up here and of which more waits in the queue.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Want {
    /// Its origin.
    pub origin: String,
    /// How many messages to take.
    pub room: usize,
    /// How many of these can go out at once: no more that were in flight in an agent that died.
    pub free: usize,
}

/// The answer to a claim.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Claimed {
    /// This agent is not registered any more: its lease ran out and another took its messages back.
    Gone,
    /// Ordered mode: an older agent is at work; this one is its standby.
    Standby,
    /// What was taken.
    Taken {
        /// The messages, oldest first within each source.
        claims: Vec<RawClaim>,
        /// Origins that have nothing waiting any more.
        emptied: Vec<String>,
        /// Lanes that are probed, as far as they failed before.
        failures: Vec<FailedLane>,
        /// Messages that were too large to be given out, and their sizes in bytes; they are dead.
        oversized: Vec<(Id, usize)>,
        /// Time until a retry or a lane that is down is due; `None` if nothing is scheduled.
        due_in: Option<Duration>,
        /// Whether the queue itself had more than was taken.
        more: bool,
        /// The queue's time, in milliseconds since 1970.
        at: u64,
        /// The last number that the queue has given out, to a message or an agent; 0 if it did not say.
        numbered: u64,
        /// What operators have ordered for endpoints, if it is not what the agent knows.
        orders: Option<Orders>,
    },
}

/// A lane that failed, as the queue knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FailedLane {
    /// Its origin.
    pub origin: String,
    /// How many times in a row it has failed.
    pub failures: u32,
    /// Whether its last failure took long.
    pub slowly: bool,
}
