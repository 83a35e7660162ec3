//! Entries of the dead letters, of the retry schedule and of what waits, in pages; and their messages, a few
//! megabytes at a time. What is removed meanwhile, by whoever is handed them or by others, shifts no page.

use std::ops::ControlFlow;

use super::{Operator, PAGE, lossy, read, unexpected};
use crate::queue::redis::arguments::Arguments;
use crate::queue::redis::list::history;
use crate::queue::{Error, History, Id};

/// Bytes of messages in one answer; the message that reaches it is still among them.
const BYTES: usize = 4 << 20;

/// An entry of the dead letters or of the retry schedule, without the message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The message's id.
    pub id: Id,
    /// Time of death, or when it is due, or of its first claim if it waits, in milliseconds since 1970.
    pub at: u64,
    /// Attempts and the last error.
    pub history: History,
    /// Agents that died with it in flight, since its last settled attempt.
    pub recovered: u64,
}

/// A list of entries by time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Schedule {
    /// The dead letters, by time of death.
    Dead,
    /// What has a backoff of its own, by the time it is due.
    Retry,
}

impl Operator {
    /// Hands out the entries of a schedule in pages of at most [`PAGE`], oldest first, without the
    /// first `skip`, until `take` breaks off. What `take` removes, or anyone else, shifts nothing:
    /// every entry that stays is handed out once.
    ///
    /// # Errors
    ///
    /// If Redis cannot be asked, or `take` fails.
    pub fn each_page<E: From<Error>>(
        &mut self,
        schedule: Schedule,
        skip: u64,
        now: u64,
        mut take: impl FnMut(&mut Operator, Vec<Entry>) -> Result<ControlFlow<()>, E>,
    ) -> Result<(), E> {
        let name = match schedule {
            Schedule::Dead => "dead",
            Schedule::Retry => "retry",
        };
        // Scores as Redis writes them, so that they come back as they are.
        let (mut after, mut skip) = (("-inf".to_string(), Vec::new()), skip);
        loop {
            let mut arguments = Arguments::default();
            arguments.text(name).text(&after.0).bytes(&after.1).text(skip).text(PAGE);
            skip = 0;
            let found: Vec<(Vec<u8>, String, Vec<u8>, u64)> = read(self.run(|looks| &looks.page, &arguments)?)?;
            let Some((id, score, ..)) = found.last() else { return Ok(()) };
            after = (score.clone(), id.clone());
            let entries = found
                .into_iter()
                .filter_map(|(id, score, record, recovered)| {
                    let id = Id::read(&id)?;
                    Some(Entry {
                        id,
                        // Below 0 and beyond all times it stops there.
                        at: score.parse::<f64>().ok()? as u64,
                        history: history(&record, id, now as i64),
                        recovered,
                    })
                })
                .collect();
            if take(self, entries)?.is_break() {
                return Ok(());
            }
        }
    }

    /// Hands out what waits for its endpoint in pages of at most [`PAGE`], by endpoint and oldest first, each with
    /// the origin that it waits for, until `take` breaks off. What `take` removes shifts nothing.
    ///
    /// # Errors
    ///
    /// If Redis cannot be asked, or `take` fails.
    pub fn each_waiting<E: From<Error>>(
        &mut self,
        now: u64,
        mut take: impl FnMut(&mut Operator, Vec<(String, Entry)>) -> Result<ControlFlow<()>, E>,
    ) -> Result<(), E> {
        let mut after = Vec::new();
        loop {
            let mut arguments = Arguments::default();
            arguments.bytes(&after).text(PAGE);
            let found: Vec<(Vec<u8>, Vec<u8>, u64)> = read(self.run(|looks| &looks.waiting, &arguments)?)?;
            let Some((last, ..)) = found.last() else { return Ok(()) };
            after.clone_from(last);
            let entries = found
                .into_iter()
                .filter_map(|(member, record, recovered)| {
                    let at = member.len().checked_sub(17).filter(|at| member[*at] == b'\n')?;
                    let id = Id::read(&member[at + 1..])?;
                    let history = history(&record, id, now as i64);
                    Some((lossy(&member[..at]), Entry { id, at: id.0 / 1000, history, recovered }))
                })
                .collect();
            if take(self, entries)?.is_break() {
                return Ok(());
            }
        }
    }

    /// Hands out messages in the order of their entries, a few megabytes at a time; those that have
    /// gone meanwhile are left out.
    ///
    /// # Errors
    ///
    /// If Redis cannot be asked, or `take` fails.
    pub fn each_message<E: From<Error>>(
        &mut self,
        entries: Vec<Entry>,
        mut take: impl FnMut(Entry, Vec<u8>) -> Result<ControlFlow<()>, E>,
    ) -> Result<(), E> {
        let mut entries = entries.into_iter();
        while !entries.as_slice().is_empty() {
            let mut arguments = Arguments::default();
            arguments.text(BYTES);
            for entry in entries.as_slice().iter().take(PAGE) {
                arguments.text(entry.id);
            }
            let bodies: Vec<Option<Vec<u8>>> = read(self.run(|looks| &looks.bodies, &arguments)?)?;
            if bodies.is_empty() {
                return Err(unexpected().into());
            }
            for (body, entry) in bodies.into_iter().zip(entries.by_ref()) {
                if let Some(body) = body
                    && take(entry, body)?.is_break()
                {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}
