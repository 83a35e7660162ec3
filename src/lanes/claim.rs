//! A claim: one message as the lanes hold it and a worker attempts it.

use std::sync::Arc;
use std::time::Instant;

use crate::envelope::Envelope;
use crate::queue::{AgentNumber, History, Id, Source};

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
    pub(super) lane: usize,
}

impl Claim {
    /// A claim that is in no lane yet. What nobody remembers has been attempted as often as another service
    /// wrote into it: what that one had put off or handed on, but nothing that was replayed here.
    pub fn new(
        id: Id,
        envelope: Envelope,
        mut history: History,
        recovered: u32,
        source: Source,
        agent: AgentNumber,
        now: Instant,
    ) -> Claim {
        if history.age.is_none() {
            history.attempts = envelope.retries();
        }
        let origin = Arc::from("");
        Claim { id, envelope, history, recovered, source, agent, claimed_at: now, origin, lane: usize::MAX }
    }

    /// Its history as it is `now`: older by the time it has been held.
    pub fn history_at(&self, now: Instant) -> History {
        let held = now.saturating_duration_since(self.claimed_at);
        History { age: self.history.age.map(|age| age + held), ..self.history.clone() }
    }

    /// On a backoff of its own: neither a probe of its lane nor counted against it.
    pub(super) fn has_own_backoff(&self) -> bool {
        self.history.own_failures > 0
    }

    /// It was in flight in an agent that died: it goes out at once or not at all, so that what
    /// another death finds in flight of such has really been attempted.
    pub(super) fn is_fragile(&self) -> bool {
        self.recovered >= 1
    }

    /// Two or more agents died of it, perhaps.
    pub(super) fn is_suspect(&self) -> bool {
        self.recovered >= 2
    }
}
