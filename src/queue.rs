//! What the threads need of a queue, and the words for it.
//!
//! A queue gives out *claims* (messages recorded as in flight under the agent's
//! number) and takes *settlements* (what became of them). It promises that a
//! message is at every moment in exactly one place: queued, in flight, waiting,
//! on the retry schedule, dead, or gone because it was delivered. It leaves to
//! others when to claim, what to attempt and how to judge.

// The words are in rooms below, and named here: `message` and `agent` (what has a number), `claim` and `settlement`
// (what passes between an agent and the queue), `error`. `redis` is the queue on a Redis LIST.
mod agent;
mod claim;
mod error;
mod message;
pub(crate) mod redis;
mod settlement;

use std::sync::Arc;
use std::time::Duration;

pub use self::agent::{AgentNumber, Beat, Fate, Joined, Peer};
pub use self::claim::{Bounds, Claimed, FailedLane, Want};
pub use self::error::{Denied, Error};
pub use self::message::{HIGHEST_NUMBER, History, Id, RawClaim, Source};
pub use self::settlement::{Kept, LaneChange, Place, Settlement};
use crate::orders::Orders;

/// A wait for the queue blocks for so long at most: a stop is to be noticed.
pub(crate) const LONGEST_WAIT: Duration = Duration::from_millis(500);

/// What the threads need of a queue. Each thread has one of its own, so that a
/// blocking wait holds up nobody's settlement.
pub trait Queue: Send {
    /// Registers a new agent whose lease runs out after `lease`, and says what became of the number
    /// that it had before. Every number given out from now on is higher than `seen`.
    fn join(&mut self, lease: Duration, old: Option<AgentNumber>, seen: u64) -> Result<Joined, Error>;

    /// Takes messages within `bounds`, recorded as in flight under `me`. A claim
    /// whose answer was lost is sent again under the same `call` (with `again`),
    /// and answers the same.
    fn claim(&mut self, me: AgentNumber, call: u64, again: bool, bounds: &Bounds) -> Result<Claimed, Error>;

    /// What operators have ordered for endpoints. A claim tells it too, if it is not what the agent knows.
    fn orders(&mut self) -> Result<Orders, Error>;

    /// Waits until the queue has something, for at most this long.
    fn wait(&mut self, at_most: Duration) -> Result<Waited, Error>;

    /// Puts each message where its settlement says and tells all agents of lanes
    /// that changed, in one step; sent again under the same `call` it changes
    /// nothing. Returns the ids that are not this agent's any more; `None`, and nothing is done, if the queue
    /// knows a later call: its record is none of this agent's, which must join again.
    fn settle(
        &mut self,
        me: AgentNumber,
        call: u64,
        settlements: &[Settlement],
        changes: &[LaneChange],
    ) -> Result<Option<Vec<Id>>, Error>;

    /// Renews the lease of an agent that is registered; lists all others; says whether anything is
    /// due later than `longest`. Every number given out from now on is higher than `seen`.
    fn beat(&mut self, me: AgentNumber, lease: Duration, seen: u64, longest: Duration) -> Result<Beat, Error>;

    /// Takes back what a dead agent had in flight, at most `limit` messages, due
    /// at once; `None` if its lease has changed since it was seen.
    fn recover(&mut self, me: AgentNumber, dead: &Peer, limit: usize) -> Result<Option<usize>, Error>;

    /// Gives back all that `me` still has in flight, without counting it as a death, and signs off.
    fn leave(&mut self, me: AgentNumber) -> Result<(), Error>;

    /// What the queue records as in flight under `me`.
    fn in_flight(&mut self, me: AgentNumber) -> Result<Vec<Id>, Error>;

    /// Makes these due again, as far as they are in flight under `me`.
    fn give_back(&mut self, me: AgentNumber, ids: &[Id]) -> Result<usize, Error>;

    /// Puts what the queue has lost back, in flight under `me`; what it still has stays where it is.
    /// Returns those that are in flight under `me` now; `None` if `me` is not registered any more.
    fn restore(&mut self, me: AgentNumber, messages: &[(Id, Arc<Vec<u8>>)]) -> Result<Option<Vec<Id>>, Error>;

    /// Puts a message that a wait has popped back to where it was, the left of the queue.
    fn put_back(&mut self, popped: &[u8]) -> Result<(), Error>;

    /// Makes what is due later than `longest` due now, at most `limit` messages and as many lanes;
    /// returns how many of both. Nothing is put off for so long, but a clock may have gone back since.
    fn hasten(&mut self, longest: Duration, limit: usize) -> Result<usize, Error>;

    /// Which of these the queue still has, wherever.
    fn has(&mut self, ids: &[Id]) -> Result<Vec<bool>, Error>;

    /// All lanes that have messages waiting.
    fn lanes(&mut self) -> Result<Vec<WaitingLane>, Error>;

    /// So many lanes that have messages waiting, leaving out the first `from` of them.
    fn some_lanes(&mut self, from: usize, limit: usize) -> Result<Vec<WaitingLane>, Error>;

    /// Once, at the start of an agent: what the operator of the queue should know or change, a line each.
    fn prepare(&mut self) -> Result<Vec<String>, Error>;

    /// Takes over some of what another delivery service of this queue has put off, due when it was.
    /// Every number given out from now on is higher than `seen`.
    fn adopt(&mut self, seen: u64) -> Result<Adopted, Error>;

    /// Removes for good the dead letters older than `age`, at most `limit`; returns how many.
    /// None if the queue's time is beyond `latest`.
    fn forget_dead(&mut self, age: Duration, limit: usize, latest: u64) -> Result<usize, Error>;
}

/// What was taken over from another delivery service.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Adopted {
    /// How many messages.
    pub messages: usize,
    /// Whether there may be more of them.
    pub more: bool,
    /// From whom, for people.
    pub from: String,
    /// Why it could not be done, for people; the queue itself is well.
    pub hindrance: Option<String>,
}

/// How a wait is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Pop {
    /// `BLMOVE K K LEFT LEFT`: looks without taking, so that a cut connection loses nothing.
    #[default]
    Peek,
    /// `BLPOP`: takes, and hands the value to the next claim; it can lose the one message just popped.
    Blpop,
}

/// What a wait came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Waited {
    /// Time is up.
    Nothing,
    /// The queue has something.
    Something,
    /// The queue had something, and the wait has taken it (`--pop blpop`): it goes into the next claim.
    Popped(Vec<u8>),
    /// The queue cannot wait now (a full Redis refuses it): poll instead.
    Refused,
}

/// A lane with waiting messages as the queue sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WaitingLane {
    /// Its origin.
    pub origin: String,
    /// When it may be tried: `None` if it has not failed since its last delivery.
    pub due_in: Option<Duration>,
    /// An operator has paused it: nothing of it is given out.
    pub is_paused: bool,
}
