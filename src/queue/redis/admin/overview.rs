//! How many messages are where, which agents there are, and what they have settled: one look, in one step.

use super::{Operator, read};
use crate::queue::redis::arguments::Arguments;
use crate::queue::{Error, Id};

/// How many messages are where, seen in one step.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Overview {
    /// Redis's clock, in milliseconds since 1970.
    pub now: u64,
    /// What ACA-Py has pushed and nobody has claimed.
    pub queued: u64,
    /// All messages from their claim to their end, wherever they are.
    pub messages: u64,
    /// Claimed by an agent.
    pub in_flight: u64,
    /// Waiting for their lanes.
    pub waiting: u64,
    /// Lanes with waiting messages.
    pub lanes: u64,
    /// On the retry schedule.
    pub retry: u64,
    /// Of these, due now.
    pub retry_due: u64,
    /// Milliseconds until the next of them is due; `None` if there are none.
    pub next_retry_in: Option<u64>,
    /// Dead letters.
    pub dead: u64,
    /// Agents that are registered or have messages in flight; at most 2,000.
    pub agents: Vec<AgentSeen>,
    /// What all agents have settled since the queue's first message.
    pub settled: Settled,
}

/// What became of attempts, counted in Redis from the queue's first message on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Settled {
    /// Messages delivered.
    pub delivered: u64,
    /// Attempts that failed and are made again.
    pub put_off: u64,
    /// Messages that died.
    pub dead: u64,
}

impl Settled {
    fn read(record: &str) -> Settled {
        let mut counts = record.split(' ').map(|count| count.parse().unwrap_or(0));
        let mut next = || counts.next().unwrap_or(0);
        Settled { delivered: next(), put_off: next(), dead: next() }
    }
}

/// An agent as the queue knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AgentSeen {
    /// Its number, which is the time of its start in microseconds since 1970.
    pub number: u64,
    /// When its lease runs out or ran out, in milliseconds since 1970; `None` if it is not registered.
    pub lease: Option<u64>,
    /// Messages it has in flight.
    pub messages: u64,
    /// The oldest of them.
    pub oldest: Option<Id>,
}

impl Operator {
    /// How many messages are where.
    ///
    /// # Errors
    ///
    /// If Redis cannot be asked.
    pub fn overview(&mut self) -> Result<Overview, Error> {
        type Agents = Vec<(u64, String, u64, String)>;
        let answer = self.run(|looks| &looks.overview, &Arguments::default())?;
        let (now, queued, messages, in_flight, waiting, lanes, retry, retry_due, next, dead, agents, settled): (
            u64,
            u64,
            u64,
            u64,
            u64,
            u64,
            u64,
            u64,
            i64,
            u64,
            Agents,
            String,
        ) = read(answer)?;
        let agents = agents
            .into_iter()
            .map(|(number, lease, messages, oldest)| AgentSeen {
                number,
                lease: lease.parse().ok(),
                messages,
                oldest: oldest.parse().ok().map(Id),
            })
            .collect();
        let next_retry_in = u64::try_from(next).ok();
        let settled = Settled::read(&settled);
        Ok(Overview {
            now,
            queued,
            messages,
            in_flight,
            waiting,
            lanes,
            retry,
            retry_due,
            next_retry_in,
            dead,
            agents,
            settled,
        })
    }
}
