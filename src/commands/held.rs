//! What is put off, on the retry schedule or waiting for its endpoint: listed, and picked out for what `retry` and
//! `waiting` do. It is read in pages and a few megabytes at a time, however much there is.

use std::collections::HashSet;
use std::io::{self, BufWriter, Write};
use std::ops::ControlFlow;

use super::letter::{Letter, ending};
use super::table::Table;
use super::{Error, Exit, claimed_at, say};
use crate::config::{Filter, RedisAddress, Selection};
use crate::json::Object;
use crate::queue::Id;
use crate::queue::redis::admin::{Entry, Operator, PAGE, Place, Schedule, Whereabouts};
use crate::text::{ago, at_ms, n_of};

/// One that is put off.
pub struct One {
    /// What is known of it.
    pub entry: Entry,
    /// The origin of its endpoint; empty if none can be read.
    pub origin: String,
    letter: Letter,
}

/// What is done to messages, each given with the origin of its endpoint; to how many it was done.
type Act<'a> = &'a mut dyn FnMut(&[(String, Id)]) -> Result<usize, Error>;

/// Where the command looks, and what it has seen.
pub struct Desk {
    operator: Operator,
    /// Redis's clock when the command began.
    now: u64,
    place: Place,
}

impl Desk {
    /// Looks at this place.
    ///
    /// # Errors
    ///
    /// If Redis cannot be asked.
    pub fn new(redis: &RedisAddress, place: Place) -> Result<Desk, Error> {
        let mut operator = Operator::new(redis);
        let now = operator.now()?;
        Ok(Desk { operator, now, place })
    }

    /// A line for each that passes the filter.
    ///
    /// # Errors
    ///
    /// If Redis cannot be asked.
    pub fn list(&mut self, filter: &Filter, json: bool) -> Result<Exit, Error> {
        let (now, place) = (at_ms(self.now), self.place);
        let mut out = BufWriter::new(io::stdout().lock());
        let when = if place == Place::Retry { "NEXT TRY" } else { "CLAIMED" };
        let mut table = Table::new(&["ID", when, "#ATTEMPTS", "ENDPOINT", "LAST ERROR"]);
        let mut n_rows = 0;
        let found = self.each(filter, |one| {
            if json {
                writeln!(out, "{}", facts(&one, place))?;
                return Ok(());
            }
            let time = at_ms(one.entry.at);
            table.row(vec![
                one.entry.id.to_string(),
                if place == Place::Retry && time <= now { "now".to_string() } else { ago(time, now) },
                one.entry.history.attempts.to_string(),
                one.letter.endpoint(),
                one.entry.history.last_error,
            ]);
            n_rows += 1;
            if n_rows % PAGE == 0 {
                table.write(&mut out)?;
            }
            Ok(())
        })?;
        table.write(&mut out)?;
        out.flush()?;
        if filter.limit == Some(found) && !json {
            let overview = self.operator.overview()?;
            let all = if place == Place::Retry { overview.retry } else { overview.waiting };
            if all > found {
                say(&format!("at most {found} are shown of {} {place}; '--limit' shows more", n_of(all, "message")));
            }
        }
        Ok(ending(found, filter, self.nothing()))
    }

    /// Does something to those that are selected, some hundreds at a time, and says to how many; if it is dry, only
    /// says it. `done` is as in "dropped".
    ///
    /// # Errors
    ///
    /// If Redis cannot be asked; what was done before that is said.
    pub fn act(
        &mut self,
        selection: &Selection,
        dry: bool,
        done: &str,
        mut act: impl FnMut(&[(String, Id)]) -> Result<usize, Error>,
    ) -> Result<Exit, Error> {
        let mut act = |some: &[(String, Id)]| if dry { Ok(some.len()) } else { act(some) };
        let (n, exit) = match selection {
            Selection::Ids(ids) => self.act_on_ids(ids, &mut act)?,
            Selection::All(filter) => {
                let (mut n, mut some) = (0, Vec::with_capacity(PAGE));
                let found = self.each(filter, |one| {
                    some.push((one.origin, one.entry.id));
                    if some.len() == PAGE {
                        n += act(&some)? as u64;
                        some.clear();
                    }
                    Ok(())
                });
                // What was found before Redis went away is done all the same, and said.
                let rest = act(&some).map(|rest| n += rest as u64);
                if let Err(error) = found.and(rest) {
                    return Err(Error::Failed(format!("{done} {}, then: {error}", n_of(n, "message"))));
                }
                (n, ending(n, filter, self.nothing()))
            }
        };
        if n > 0 {
            let would = if dry { "would be " } else { "" };
            writeln!(io::stdout().lock(), "{would}{done}: {}", n_of(n, "message"))?;
        }
        Ok(exit)
    }

    fn act_on_ids(&mut self, ids: &[u64], act: Act) -> Result<(u64, Exit), Error> {
        let (mut n, mut missed, mut seen) = (0, false, HashSet::new());
        for id in ids.iter().map(|id| Id(*id)).filter(|id| seen.insert(*id)) {
            let place = self.operator.find(id, self.now)?;
            let is_there = matches!(&place, Whereabouts::Alive(found) if *found == self.place);
            let did = if is_there { act(&[(self.origin_of(id)?, id)])? } else { 0 };
            if did == 0 {
                missed = true;
                say(&self.not_there(id, &place));
            }
            n += did as u64;
        }
        Ok((n, if missed { Exit::Nothing } else { Exit::Done }))
    }

    fn origin_of(&mut self, id: Id) -> Result<String, Error> {
        let entry = Entry { id, at: 0, history: crate::queue::History::default(), recovered: 0 };
        let mut origin = String::new();
        self.operator.each_message(vec![entry], |_, bytes| {
            origin = Letter::read(bytes).origin().to_string();
            Ok::<_, Error>(ControlFlow::Break(()))
        })?;
        Ok(origin)
    }

    /// Hands out those that pass the filter; returns how many there were.
    fn each(&mut self, filter: &Filter, mut take: impl FnMut(One) -> Result<(), Error>) -> Result<u64, Error> {
        let (limit, now) = (filter.limit.unwrap_or(u64::MAX), self.now);
        let mut found = 0;
        let mut page = |operator: &mut Operator, mut entries: Vec<Entry>| {
            // What came after the command began is not meant, and would keep it going.
            entries.retain(|entry| entry.id.claimed_ms() <= now as i64);
            if let Some(reason) = &filter.reason {
                entries.retain(|entry| entry.history.last_error.contains(reason));
            }
            let mut flow = ControlFlow::Continue(());
            operator.each_message(entries, |entry, bytes| {
                let letter = Letter::read(bytes);
                if filter.endpoint.as_ref().is_some_and(|endpoint| !letter.goes_to(endpoint)) {
                    return Ok(ControlFlow::Continue(()));
                }
                take(One { entry, origin: letter.origin().to_string(), letter })?;
                found += 1;
                if found >= limit {
                    flow = ControlFlow::Break(());
                }
                Ok::<_, Error>(flow)
            })?;
            Ok::<_, Error>(flow)
        };
        match self.place {
            Place::Waiting => self.operator.each_waiting(now, |operator, entries| {
                page(operator, entries.into_iter().map(|(_, entry)| entry).collect())
            })?,
            _ => self.operator.each_page(Schedule::Retry, 0, now, page)?,
        }
        Ok(found)
    }

    fn nothing(&self) -> &'static str {
        match self.place {
            Place::Waiting => "no messages that wait",
            _ => "no messages on the retry schedule",
        }
    }

    fn not_there(&self, id: Id, found: &Whereabouts) -> String {
        let place = self.place;
        match found {
            Whereabouts::Alive(found) if *found == place => format!("message {id} went elsewhere just now; try again"),
            Whereabouts::Alive(found) => format!("message {id} is not {place}: it is {found}"),
            Whereabouts::Dead(..) => format!("message {id} is not {place}: it is dead, see 'dead show'"),
            Whereabouts::Gone => format!("there is no message {id}: it was delivered or dropped, or never was"),
        }
    }
}

fn facts(one: &One, place: Place) -> Object {
    let One { entry, letter, .. } = one;
    let object = Object::new().text("id", &entry.id.to_string()).time("claimed", Some(claimed_at(entry.id)));
    let object = match place {
        Place::Retry => object.time("next_try", Some(at_ms(entry.at))),
        _ => object,
    };
    object
        .maybe_text("endpoint", letter.full_endpoint().as_deref())
        .number("attempts", u64::from(entry.history.attempts))
        .text("last_error", &entry.history.last_error)
        .number("size", letter.raw().len() as u64)
}
