//! Where one message is, found by its id.

use super::pages::Entry;
use super::{Operator, read};
use crate::queue::redis::arguments::Arguments;
use crate::queue::redis::list::history;
use crate::queue::{Error, Id};

/// Where one message is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Whereabouts {
    /// Not in the queue's records: delivered, dropped, or never given out.
    Gone,
    /// Among the dead letters: the entry and the bytes that ACA-Py pushed.
    Dead(Box<Entry>, Vec<u8>),
    /// Somewhere else.
    Alive(Place),
}

/// Where a message is that is not at its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// Due at a time of its own.
    Retry,
    /// An agent has it.
    InFlight,
    /// It waits for its endpoint.
    Waiting,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Place::Retry => "on the retry schedule",
            Place::InFlight => "in flight",
            Place::Waiting => "waiting for its endpoint",
        })
    }
}

impl Operator {
    /// Where a message is, and all that is known of it if it is dead.
    ///
    /// # Errors
    ///
    /// If Redis cannot be asked.
    pub fn find(&mut self, id: Id, now: u64) -> Result<Whereabouts, Error> {
        let mut arguments = Arguments::default();
        arguments.text(id);
        let (body, died, record, recovered, due, agent): (Option<Vec<u8>>, String, Vec<u8>, u64, String, String) =
            read(self.run(|looks| &looks.one, &arguments)?)?;
        let Some(body) = body else { return Ok(Whereabouts::Gone) };
        let Ok(at) = died.parse() else {
            return Ok(Whereabouts::Alive(match (due.is_empty(), agent.is_empty()) {
                (false, _) => Place::Retry,
                (_, false) => Place::InFlight,
                _ => Place::Waiting,
            }));
        };
        let entry = Entry { id, at, history: history(&record, id, now as i64), recovered };
        Ok(Whereabouts::Dead(Box::new(entry), body))
    }
}
