//! Messages in one place (the dead letters, the retry schedule, what waits): listed, and picked out for what the
//! commands do to them. They are read in pages and a few megabytes at a time, however many there are; only those that
//! were there when the command began are meant, so that it ends even while an agent adds more.

use std::collections::HashSet;
use std::io::{self, BufWriter, Write};
use std::ops::ControlFlow;

use super::letter::Letter;
use super::table::Table;
use super::{Error, Exit, claimed_at, say};
use crate::config::{Act, Filter, List, RedisAddress, Selection};
use crate::json::Object;
use crate::queue::redis::admin::{Entry, Operator, PAGE, Place, Schedule, Whereabouts};
use crate::queue::{History, Id};
use crate::text::{ago, at_ms, n_of, redacted, utc, visible};

/// The place that a command looks after.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shelf {
    /// Given up.
    Dead,
    /// Due at a time of their own.
    Retry,
    /// Their endpoint is down, paused or slow.
    Waiting,
}

impl Shelf {
    /// As in "message 7 is not dead".
    fn is(self) -> String {
        match self {
            Shelf::Dead => "dead".to_string(),
            Shelf::Retry => Place::Retry.to_string(),
            Shelf::Waiting => Place::Waiting.to_string(),
        }
    }

    fn nothing(self) -> &'static str {
        match self {
            Shelf::Dead => "no dead letters",
            Shelf::Retry => "no messages on the retry schedule",
            Shelf::Waiting => "no messages that wait",
        }
    }

    fn holds(self, found: &Whereabouts) -> bool {
        match self {
            Shelf::Dead => matches!(found, Whereabouts::Dead(..)),
            Shelf::Retry => *found == Whereabouts::Alive(Place::Retry),
            Shelf::Waiting => *found == Whereabouts::Alive(Place::Waiting),
        }
    }

    /// Why there is nothing to be done to a message that is elsewhere.
    pub fn lacks(self, id: Id, found: &Whereabouts) -> String {
        match found {
            found if self.holds(found) => format!("message {id} came or went just now; try again"),
            Whereabouts::Alive(place) => format!("message {id} is not {}: it is {place}", self.is()),
            Whereabouts::Dead(..) => format!("message {id} is not {}: it is dead, see 'dead show'", self.is()),
            Whereabouts::Gone => format!("there is no message {id}: it was delivered or dropped, or never was"),
        }
    }

    fn table(self) -> Table {
        Table::new(match self {
            Shelf::Dead => &["ID", "DIED", "AGO", "#ATTEMPTS", "ENDPOINT", "REASON"],
            Shelf::Retry => &["ID", "NEXT TRY", "#ATTEMPTS", "ENDPOINT", "LAST ERROR"],
            Shelf::Waiting => &["ID", "CLAIMED", "#ATTEMPTS", "ENDPOINT", "LAST ERROR"],
        })
    }

    fn row(self, entry: Entry, letter: &Letter, now: u64) -> Vec<String> {
        let (at, is_due) = (at_ms(entry.at), entry.at <= now);
        let mut row = vec![entry.id.to_string()];
        match self {
            Shelf::Dead => row.extend([utc(at), ago(at, at_ms(now))]),
            Shelf::Retry if is_due => row.push("now".to_string()),
            _ => row.push(ago(at, at_ms(now))),
        }
        row.extend([entry.history.attempts.to_string(), letter.endpoint(), entry.history.last_error]);
        row
    }

    /// What `list` says of a message in JSON, and `dead show` and `dead export` begin with.
    pub fn facts(self, entry: &Entry, letter: &Letter) -> Object {
        let object = Object::new().text("id", &entry.id.to_string()).time("claimed", Some(claimed_at(entry.id)));
        let (object, error) = match self {
            // By the clock that the entry's age was taken from; the difference of both is exact.
            Shelf::Dead => (object.time("died", Some(at_ms(entry.at))), "reason"),
            Shelf::Retry => (object.time("next_try", Some(at_ms(entry.at))), "last_error"),
            Shelf::Waiting => (object, "last_error"),
        };
        object
            .maybe_text("endpoint", letter.full_endpoint().as_deref())
            .number("attempts", u64::from(entry.history.attempts))
            .text(error, &entry.history.last_error)
            .number("size", letter.raw().len() as u64)
    }
}

/// A message picked out, with the origin of its endpoint; empty where nobody needs it or none can be read.
pub type Picked = (String, Id);

/// Where the command looks, and what it has seen.
pub struct Desk {
    operator: Operator,
    /// Redis's clock when the command began.
    now: u64,
    shelf: Shelf,
}

impl Desk {
    /// Looks at this place.
    ///
    /// # Errors
    ///
    /// If Redis cannot be asked.
    pub fn new(redis: &RedisAddress, shelf: Shelf) -> Result<Desk, Error> {
        let mut operator = Operator::new(redis);
        let now = operator.now()?;
        Ok(Desk { operator, now, shelf })
    }

    /// Redis's clock when the command began, in milliseconds.
    pub fn now(&self) -> u64 {
        self.now
    }

    /// Where one message is.
    ///
    /// # Errors
    ///
    /// If Redis cannot be asked.
    pub fn find(&mut self, id: Id) -> Result<Whereabouts, Error> {
        Ok(self.operator.find(id, self.now)?)
    }

    /// A line for each that passes the filter.
    ///
    /// # Errors
    ///
    /// If Redis cannot be asked.
    pub fn list(&mut self, List { filter, json }: &List) -> Result<Exit, Error> {
        let (now, shelf) = (self.now, self.shelf);
        let mut out = BufWriter::new(io::stdout().lock());
        let mut table = shelf.table();
        let mut n_rows = 0;
        let found = self.each_letter(filter, |entry, letter| {
            if *json {
                writeln!(out, "{}", shelf.facts(&entry, &letter))?;
                return Ok(());
            }
            table.row(shelf.row(entry, &letter, now));
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
            let all = match shelf {
                Shelf::Dead => overview.dead,
                Shelf::Retry => overview.retry,
                Shelf::Waiting => overview.waiting,
            };
            if all > found {
                let all = n_of(all, "message");
                say(&format!("at most {found} are shown of {all} that are {}; '--limit' shows more", shelf.is()));
            }
        }
        Ok(self.ending(found, filter))
    }

    /// Does something to those that are selected, some hundreds at a time, and says to how many; if it is dry, only
    /// says it. `done` is as in "dropped"; `act` returns to how many it was done.
    ///
    /// # Errors
    ///
    /// If Redis cannot be asked; what was done before that is said.
    pub fn act(
        &mut self,
        Act { selection, dry }: &Act,
        done: &str,
        mut act: impl FnMut(&[Picked]) -> Result<usize, Error>,
    ) -> Result<Exit, Error> {
        let mut act = |some: &[Picked]| if *dry { Ok(some.len()) } else { act(some) };
        let would = if *dry { "would be " } else { "" };
        let (n, exit) = match selection {
            Selection::Ids(ids) => self.act_on_ids(ids, *dry, &mut act)?,
            Selection::All(filter) => {
                let (mut n, mut some) = (0, Vec::with_capacity(PAGE));
                let found = self.each_picked(filter, |picked| {
                    some.push(picked);
                    if some.len() == PAGE {
                        n += act(&some)? as u64;
                        some.clear();
                    }
                    Ok(())
                });
                // What was found before Redis went away is done all the same, and said.
                let rest = act(&some).map(|rest| n += rest as u64);
                if let Err(error) = found.and(rest) {
                    return Err(Error::Failed(format!("{would}{done}: {}, then: {error}", n_of(n, "message"))));
                }
                (n, self.ending(n, filter))
            }
        };
        if n > 0 {
            writeln!(io::stdout().lock(), "{would}{done}: {}", n_of(n, "message"))?;
        }
        Ok(exit)
    }

    fn act_on_ids(
        &mut self,
        ids: &[u64],
        dry: bool,
        act: &mut dyn FnMut(&[Picked]) -> Result<usize, Error>,
    ) -> Result<(u64, Exit), Error> {
        let (mut n, mut missed, mut seen) = (0, false, HashSet::new());
        for id in ids.iter().map(|id| Id(*id)).filter(|id| seen.insert(*id)) {
            // Nobody needs the message of a dead one, which may be large, nor its origin: so it is not looked for first.
            let is_looked_for = self.shelf != Shelf::Dead || dry;
            let found = if is_looked_for { Some(self.find(id)?) } else { None };
            let did = match &found {
                Some(found) if self.shelf.holds(found) => act(&[(self.origin_of(id)?, id)])?,
                Some(_) => 0,
                None => act(&[(String::new(), id)])?,
            };
            if did == 0 {
                missed = true;
                let found = found.map_or_else(|| self.find(id), Ok)?;
                say(&self.shelf.lacks(id, &found));
            }
            n += did as u64;
        }
        Ok((n, if missed { Exit::Nothing } else { Exit::Done }))
    }

    fn origin_of(&mut self, id: Id) -> Result<String, Error> {
        let mut origin = String::new();
        let entry = Entry { id, at: 0, history: History::default(), recovered: 0 };
        self.operator.each_message(vec![entry], |_, bytes| {
            origin = Letter::read(bytes).origin().to_string();
            Ok::<_, Error>(ControlFlow::Break(()))
        })?;
        Ok(origin)
    }

    /// Those that pass the filter, each with its message; returns how many there were.
    ///
    /// # Errors
    ///
    /// If Redis cannot be asked.
    pub fn each_letter(
        &mut self,
        filter: &Filter,
        mut take: impl FnMut(Entry, Letter) -> Result<(), Error>,
    ) -> Result<u64, Error> {
        let mut count = Counter::new(filter);
        self.each_page(filter, |operator, entries| {
            let mut flow = ControlFlow::Continue(());
            operator.each_message(entries, |entry, bytes| {
                let letter = Letter::read(bytes);
                if filter.endpoint.as_ref().is_none_or(|endpoint| letter.goes_to(endpoint)) {
                    take(entry, letter)?;
                    flow = count.one();
                }
                Ok::<_, Error>(flow)
            })?;
            Ok(flow)
        })?;
        Ok(count.found)
    }

    /// The same, without the messages: of dead letters they are not even read, unless the filter needs them.
    fn each_picked(
        &mut self,
        filter: &Filter,
        mut take: impl FnMut(Picked) -> Result<(), Error>,
    ) -> Result<u64, Error> {
        if self.shelf != Shelf::Dead || filter.endpoint.is_some() {
            return self.each_letter(filter, |entry, letter| take((letter.origin().to_string(), entry.id)));
        }
        let mut count = Counter::new(filter);
        self.each_page(filter, |_, entries| {
            for entry in entries {
                take((String::new(), entry.id))?;
                if count.one().is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(count.found)
    }

    /// Pages of what was there when the command began, in the place's own order.
    fn each_page(
        &mut self,
        filter: &Filter,
        mut take: impl FnMut(&mut Operator, Vec<Entry>) -> Result<ControlFlow<()>, Error>,
    ) -> Result<(), Error> {
        let (now, shelf) = (self.now, self.shelf);
        let mut page = |operator: &mut Operator, mut entries: Vec<Entry>| {
            let n_entries = entries.len();
            match shelf {
                Shelf::Dead => entries.retain(|entry| entry.at <= now),
                _ => entries.retain(|entry| entry.id.claimed_ms() <= now as i64),
            }
            // By time of death: nothing after the first that died since is meant.
            let is_last = shelf == Shelf::Dead && entries.len() < n_entries;
            if let Some(reason) = &filter.reason {
                entries.retain(|entry| entry.history.last_error.contains(reason));
            }
            let flow = take(operator, entries)?;
            Ok::<_, Error>(if is_last { ControlFlow::Break(()) } else { flow })
        };
        match shelf {
            Shelf::Dead => self.operator.each_page(Schedule::Dead, 0, now, page),
            Shelf::Retry => self.operator.each_page(Schedule::Retry, 0, now, page),
            Shelf::Waiting => self.operator.each_waiting(now, |operator, entries| {
                page(operator, entries.into_iter().map(|(_, entry)| entry).collect())
            }),
        }
    }

    /// How a command ends that has found so many; that nothing matched is said.
    pub fn ending(&self, found: u64, filter: &Filter) -> Exit {
        if found > 0 {
            return Exit::Done;
        }
        let mut words = vec![self.shelf.nothing().to_string()];
        words.extend(
            filter
                .endpoint
                .as_ref()
                .map(|endpoint| format!("with an endpoint that begins with '{}'", redacted(endpoint))),
        );
        words.extend(filter.reason.as_ref().map(|reason| format!("with a reason that contains '{}'", visible(reason))));
        say(&words.join(" "));
        Exit::Nothing
    }
}

/// Counts up to the filter's limit.
struct Counter {
    found: u64,
    limit: u64,
}

impl Counter {
    fn new(filter: &Filter) -> Counter {
        Counter { found: 0, limit: filter.limit.unwrap_or(u64::MAX) }
    }

    fn one(&mut self) -> ControlFlow<()> {
        self.found += 1;
        if self.found < self.limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }
}
