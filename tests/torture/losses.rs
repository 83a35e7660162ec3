//! What a Redis lost that forgot something: a replica that took over and had missed the last writes,
//! or a FLUSHALL. From what there was before and what was left follows which messages nobody can
//! deliver any more; all others, those that a living agent still held among them, must come out.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use super::agents::Slot;
use super::faults::{Injected, Scope};
use super::ledger::find_number;
use crate::support::Redis;

/// The numbers of the messages that a Redis has.
#[derive(Default)]
pub struct Contents {
    /// All, queued or claimed.
    pub all: BTreeSet<usize>,
    /// Those in flight, with the number of the agent that has claimed them.
    pub in_flight: BTreeMap<usize, u64>,
}

impl Contents {
    /// In one look.
    pub fn of(redis: &Redis) -> redis::RedisResult<Contents> {
        let mut pipe = redis::pipe();
        pipe.atomic().cmd("LRANGE").arg(&[&redis.queue_key(), "0", "-1"]);
        pipe.cmd("HGETALL").arg(redis.key("messages"));
        pipe.cmd("ZRANGE").arg(&[&redis.key("inflight"), "0", "-1", "WITHSCORES"]);
        type Read = (Vec<Vec<u8>>, HashMap<String, Vec<u8>>, Vec<(String, f64)>);
        let (queued, claimed, in_flight): Read = pipe.query(&mut redis.try_client()?)?;
        let all = queued.iter().chain(claimed.values()).filter_map(|bytes| find_number(bytes)).collect();
        let number = |(id, agent): &(String, f64)| Some((find_number(claimed.get(id)?)?, *agent as u64));
        Ok(Contents { all, in_flight: in_flight.iter().filter_map(number).collect() })
    }
}

/// One such event.
pub struct Loss {
    pub at: Instant,
    /// What was left.
    pub left: BTreeSet<usize>,
    /// What an agent held for certain, with its slot: it had claimed it a good while before.
    pub held: BTreeMap<usize, usize>,
}

impl Loss {
    /// `before` was seen a moment before, `last` when it happened. What was claimed in between may
    /// never have reached the agent.
    pub fn new(at: Instant, left: BTreeSet<usize>, before: &Contents, last: &Contents, slots: &[Slot]) -> Loss {
        let running = slots.iter().filter(|slot| slot.is_running());
        let known: BTreeMap<u64, usize> = running.filter_map(|slot| Some((slot.number()?, slot.n))).collect();
        let still = last.in_flight.iter().filter(|(number, agent)| before.in_flight.get(number) == Some(agent));
        let held = still.filter_map(|(number, agent)| Some((*number, *known.get(agent)?))).collect();
        Loss { at, left, held }
    }

    /// Whether this explains that a message, pushed then, is nowhere.
    pub fn explains(&self, number: usize, pushed: Instant, injected: &[Injected]) -> bool {
        if pushed > self.at || self.left.contains(&number) {
            return false;
        }
        // An agent that ended, or was cut off, before it could bring back what it held took it along.
        let around = |fault: &&Injected| {
            fault.from <= self.at + Duration::from_secs(8)
                && fault.to.is_none_or(|to| to + Duration::from_secs(1) >= self.at)
        };
        self.held.get(&number).is_none_or(|slot| {
            injected
                .iter()
                .filter(around)
                .any(|fault| fault.scope == Scope::Agent(*slot) && fault.fault.may_lose_held())
        })
    }
}
