//! What the threads need of a queue, and the words for it.
//!
//! A queue gives out *claims* (messages recorded as in flight under the agent's
//! number) and takes *settlements* (what became of them). It promises that a
//! message is at every moment in exactly one place: queued, in flight, waiting,
//! on the retry schedule, dead, or gone because it was delivered. It leaves to
//! others when to claim, what to attempt and how to judge.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::orders::Orders;

pub(crate) mod redis;

/// What the threads need of a queue. Each thread has one of its own, so that a
/// blocking wait holds up nobody's settlement.
pub trait Queue: Send {
    /// Registers a new agent whose lease runs out after `lease`, and says what became of the number
    /// that it had before. No number is given out that is not higher than `seen`.
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
    /// due later than `longest`. No number is given out from now on that is not higher than `seen`.
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
    /// No number is given out that is not higher than `seen`.
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

/// Numbers are microseconds since 1970 or a little more: this is in the year 2223, and a double holds it exactly.
/// One beyond it is nonsense that somebody wrote.
pub const HIGHEST_NUMBER: u64 = 8_000_000_000_000_000;

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

/// An agent's number: from the same counter as the ids, new at every `join`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct AgentNumber(pub u64);

impl fmt::Display for AgentNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016}", self.0)
    }
}

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

/// Why a move could not be made; each with a sentence for people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Error {
    /// Waiting may mend it: unreachable, restarting, loading, read-only, full.
    Unavailable(String),
    /// So it may if the server has not got the key: another node of its Cluster has.
    Elsewhere(String),
    /// And if it does not know a command, for another server may.
    NoCommand(String),
    /// Waiting cannot mend it: a wrong password, an option.
    Fatal(String),
    /// Nor what the account may not do.
    NotPermitted(Denied, String),
    /// Nor a value at a key of the queue that is of another type than the queue keeps there.
    WrongType(String),
}

/// What an account may not use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Denied {
    /// A command.
    Command,
    /// A key.
    Key,
}

impl Error {
    /// Whether waiting cannot mend it.
    pub fn is_lasting(&self) -> bool {
        match self {
            Error::Unavailable(_) | Error::Elsewhere(_) | Error::NoCommand(_) => false,
            Error::Fatal(_) | Error::NotPermitted(..) | Error::WrongType(_) => true,
        }
    }

    /// The sentence.
    pub fn why(&self) -> &str {
        match self {
            Error::Unavailable(why)
            | Error::Elsewhere(why)
            | Error::NoCommand(why)
            | Error::Fatal(why)
            | Error::NotPermitted(_, why)
            | Error::WrongType(why) => why,
        }
    }

    /// The same with other words.
    #[must_use]
    pub fn said(self, say: impl FnOnce(String) -> String) -> Error {
        match self {
            Error::Unavailable(why) => Error::Unavailable(say(why)),
            Error::Elsewhere(why) => Error::Elsewhere(say(why)),
            Error::NoCommand(why) => Error::NoCommand(say(why)),
            Error::Fatal(why) => Error::Fatal(say(why)),
            Error::NotPermitted(denied, why) => Error::NotPermitted(denied, say(why)),
            Error::WrongType(why) => Error::WrongType(say(why)),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.why())
    }
}

impl std::error::Error for Error {}
