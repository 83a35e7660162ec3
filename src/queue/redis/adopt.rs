//! Takes over what another delivery service of the same queue has scheduled for another attempt: the
//! deliverer of ACA-Py's Redis plugin, or the aca-deliver prototype. Both keep entries in a ZSET by
//! the time, in Unix seconds, at which they are due, and may go on doing so while an agent runs.
//!
//! On a Cluster that key lies in another slot than the queue, so no script can move an entry in one
//! step. It is first kept here, then taken there: a crash in between costs a copy, and never a
//! message. Who took it is who removed it, so that neither another agent nor the other service, which
//! goes by the same rule, delivers it as well.

use std::time::Duration;

use super::arguments::Arguments;
use super::connection::{Failure, Link};
use super::errors::is_answer;
use super::list::{Answer, RedisList, count, unexpected};
use crate::queue::{Adopted, Error, Id};

/// Entries in one step. Their sizes are not known before they are read.
pub const AT_ONCE: usize = 16;
/// What was kept, and of which nothing more is known, is due after this: longer than it takes to find
/// out, and so long that two copies do not arrive within a second.
const HOLD: Duration = Duration::from_secs(15);
/// Both services put off by half a minute at most: what claims to be due later has a wrong time.
pub const LONGEST: Duration = Duration::from_secs(3600);

/// Where another service keeps what it has put off.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Schedule {
    /// The ZSET.
    pub key: String,
    /// Whose it is.
    pub owner: &'static str,
}

impl Schedule {
    /// That of the service which delivered this queue before us; none delivers queues of other names.
    pub fn beside(queue: &str) -> Option<Schedule> {
        if let Some(prefix) = queue.strip_suffix(".outbound_transport") {
            return Some(Schedule { key: format!("{prefix}.outbound_retry"), owner: "the aca-deliver prototype" });
        }
        queue
            .ends_with("_outbound")
            .then(|| Schedule { key: format!("{queue}_retry"), owner: "the plugin's deliverer" })
    }
}

/// An entry of the schedule and its score.
type Entry = (Vec<u8>, f64);

impl RedisList {
    /// One step, see [`crate::queue::Queue::adopt`]. An error is one of the queue; what is wrong with the other
    /// service's key hinders no delivery.
    pub(super) fn adopt_some(&mut self, seen: u64) -> Result<Adopted, Error> {
        let Some(schedule) = Schedule::beside(self.keys().queue()) else { return Ok(Adopted::default()) };
        let hindered = |why: &dyn std::fmt::Display| {
            format!("cannot take over what {} has put off at '{}': {why}", schedule.owner, schedule.key)
        };
        let entries = match self.scheduled(&schedule.key)? {
            Ok(entries) if entries.is_empty() => return Ok(Adopted::default()),
            Ok(entries) => entries,
            Err(why) => return Ok(Adopted { hindrance: Some(hindered(&why)), ..Adopted::default() }),
        };
        let ids = self.keep(&entries, seen)?;
        let (taken, hindrance) = match self.take(&schedule.key, &entries) {
            Ok(taken) => (taken, None),
            // It has said no, so that nothing was taken: what was kept goes again.
            Err(Failure::Redis(error)) if is_answer(&error) => {
                let why = self.adopting().explain(Failure::Redis(error));
                (vec![false; entries.len()], Some(hindered(&why)))
            }
            // Whether it was taken is not known: what was kept stays.
            Err(failure) => return Err(self.adopting().explain(failure)),
        };
        let mut arguments = Arguments::default();
        arguments.millis(LONGEST);
        for ((id, (_, score)), taken) in ids.iter().zip(&entries).zip(&taken) {
            arguments.sixteen(id.0);
            match taken {
                true => arguments.text(due_ms(*score)),
                false => arguments.text(""),
            };
        }
        let messages = count(self.run(|moves| &moves.adopted, &arguments)?)?;
        let more = entries.len() == AT_ONCE && hindrance.is_none();
        Ok(Adopted { messages, more, from: format!("{} at '{}'", schedule.owner, schedule.key), hindrance })
    }

    /// What is due first. The inner error is why the key cannot be read.
    fn scheduled(&mut self, key: &str) -> Result<Result<Vec<Entry>, String>, Error> {
        let mut command = redis::cmd("ZRANGE");
        command.arg(key).arg(0).arg(AT_ONCE - 1).arg("WITHSCORES");
        let mut answer = self.adopting().query(&command);
        if matches!(answer, Err(Error::Elsewhere(_))) && self.adopts_by.is_none() {
            // A Cluster: the node that we are at serves the queue, and not this key.
            self.adopts_by = Some(Link::new(self.link.server.clone(), key));
            answer = self.adopting().query(&command);
        }
        let mut answer = match answer {
            Ok(answer) => Answer::of(answer)?,
            // What becomes of a node without our queue holds up nothing.
            Err(error) if error.is_lasting() || self.adopts_by.is_some() => return Ok(Err(error.to_string())),
            Err(error) => return Err(error),
        };
        let mut entries = Vec::new();
        while answer.more() {
            let entry = answer.bytes()?;
            entries.push((entry, answer.text()?.parse().map_err(|_| unexpected("a score"))?));
        }
        Ok(Ok(entries))
    }

    /// The connection to where the other service's key is.
    fn adopting(&mut self) -> &mut Link {
        self.adopts_by.as_mut().unwrap_or(&mut self.link)
    }

    fn keep(&mut self, entries: &[Entry], seen: u64) -> Result<Vec<Id>, Error> {
        let mut arguments = Arguments::default();
        arguments.millis(HOLD).seen(seen);
        for (entry, _) in entries {
            arguments.bytes(entry);
        }
        let mut answer = Answer::of(self.run(|moves| &moves.adopt, &arguments)?)?;
        let mut ids = Vec::with_capacity(entries.len());
        while answer.more() {
            ids.push(answer.id()?);
        }
        Ok(ids)
    }

    /// Which of them were still there. Sent once: the second of two answers would say that none was.
    fn take(&mut self, key: &str, entries: &[Entry]) -> Result<Vec<bool>, Failure> {
        let mut command = redis::cmd("EVAL");
        command.arg(&self.moves.take).arg(1).arg(key);
        for (entry, _) in entries {
            command.arg(entry);
        }
        let answer = self.adopting().query_blocking(&command, Duration::ZERO)?;
        let taken: Vec<bool> =
            redis::from_redis_value(answer).map_err(|_| Failure::Ours(unexpected("what was taken")))?;
        if taken.len() != entries.len() {
            return Err(Failure::Ours(unexpected("what was taken")));
        }
        Ok(taken)
    }
}

/// Unix seconds as milliseconds; what is no time at all is long due.
fn due_ms(score: f64) -> u64 {
    // A cast saturates, and makes nothing of what is not a number.
    (score * 1000.0) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_queue_has_the_schedule_of_the_service_that_delivered_it() {
        let key = |queue: &str| Schedule::beside(queue).map(|schedule| schedule.key);
        for (queue, expected) in [
            ("acapy_outbound", Some("acapy_outbound_retry")),
            ("my.agents_outbound", Some("my.agents_outbound_retry")),
            ("acapy.outbound_transport", Some("acapy.outbound_retry")),
            ("{a}.outbound_transport", Some("{a}.outbound_retry")),
            ("my topic", None),
        ] {
            assert_eq!(key(queue).as_deref(), expected, "{queue}");
        }
    }

    #[test]
    fn a_score_is_a_time_in_seconds_or_long_due() {
        let now = 1_787_000_000.0;
        for (score, expected) in [
            (now, 1_787_000_000_000),
            (now + 0.25, 1_787_000_000_250),
            (-1.0, 0),
            (f64::NAN, 0),
            (f64::NEG_INFINITY, 0),
        ] {
            assert_eq!(due_ms(score), expected, "{score}");
        }
    }
}
