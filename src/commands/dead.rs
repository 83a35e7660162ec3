//! The dead letters: listed, shown, replayed, dropped, exported. They are read in
//! pages and a few megabytes at a time, however many there are; only those that
//! were dead when the command began are meant, so that it ends even while an agent
//! buries more. Text shows no passwords: not those of endpoints, nor the values of
//! headers that carry one.

use std::collections::HashSet;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::ops::ControlFlow;
use std::time::SystemTime;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::letter::Letter;
use super::table::Table;
use super::{Error, Exit, claimed_at, say};
use crate::config::{Dead, DeadAction, Filter, RedisAddress, Selection};
use crate::envelope::Envelope;
use crate::headers::is_credential;
use crate::json::Object;
use crate::queue::Pop;
use crate::queue::redis::admin::{Entry, Operator, PAGE, Schedule, Whereabouts};
use crate::queue::redis::list::RedisList;
use crate::queue::redis::server::Server;
use crate::queue::{self, Id};
use crate::text::{ago, at_ms, n_of, utc, visible};

/// Does what was asked; [`Exit::Nothing`] if there is nothing such.
///
/// # Errors
///
/// If Redis cannot be asked.
pub fn run(options: &Dead) -> Result<Exit, Error> {
    let mut operator = Operator::new(&options.redis);
    let now = operator.now()?;
    let mut desk = Desk { operator, now, redis: &options.redis };
    match &options.action {
        DeadAction::List { filter, json } => desk.list(filter, *json),
        DeadAction::Show { id, payload, json } => desk.show(Id(*id), *payload, *json),
        DeadAction::Replay(selection) => desk.act(selection, "replayed", RedisList::replay),
        DeadAction::Drop(selection) => desk.act(selection, "dropped", RedisList::drop_dead),
        DeadAction::Export(filter) => desk.export(filter),
    }
}

struct Desk<'a> {
    operator: Operator,
    /// Redis's clock when the command began.
    now: u64,
    redis: &'a RedisAddress,
}

impl Desk<'_> {
    fn list(&mut self, filter: &Filter, json: bool) -> Result<Exit, Error> {
        let now = at_ms(self.now);
        let mut out = BufWriter::new(io::stdout().lock());
        let mut table = Table::new(&["ID", "DIED", "AGO", "#ATTEMPTS", "ENDPOINT", "REASON"]);
        let mut n_rows = 0;
        let found = self.each(filter, true, |entry, letter| {
            let letter = letter.expect("asked for");
            if json {
                writeln!(out, "{}", facts(&entry, &letter))?;
                return Ok(());
            }
            table.row(vec![
                entry.id.to_string(),
                utc(at_ms(entry.at)),
                ago(at_ms(entry.at), now),
                entry.history.attempts.to_string(),
                letter.endpoint(),
                entry.history.last_error,
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
            let dead = self.operator.overview()?.dead;
            if dead > found {
                say(&format!("at most {found} are shown of {dead} dead letters in all; '--limit' shows more"));
            }
        }
        Ok(ending(found, filter))
    }

    fn show(&mut self, id: Id, payload: bool, json: bool) -> Result<Exit, Error> {
        let (entry, letter) = match self.operator.find(id, self.now)? {
            Whereabouts::Dead(entry, bytes) => (entry, Letter::read(bytes)),
            elsewhere => {
                say(&not_dead(id, &elsewhere));
                return Ok(Exit::Nothing);
            }
        };
        let mut out = io::stdout().lock();
        if json {
            let mut object = facts(&entry, &letter)
                .number("own_failures", u64::from(entry.history.own_failures))
                .number("agents_that_died_holding_it", entry.recovered);
            object = match &letter {
                Letter::Good(envelope) => object
                    .text("format", envelope.format().name())
                    .json("headers", headers_json(envelope))
                    .number("payload_size", envelope.payload().len() as u64),
                Letter::Bad(malformed) => object.text("unreadable", &malformed.reason),
            };
            if payload {
                object = match &letter {
                    Letter::Good(envelope) => object.text("payload", &BASE64_STANDARD.encode(envelope.payload())),
                    Letter::Bad(malformed) => object.text("raw", &BASE64_STANDARD.encode(&malformed.raw)),
                };
            }
            writeln!(out, "{object}")?;
            return Ok(Exit::Done);
        }
        let text = self.describe(&entry, &letter);
        if !payload {
            out.write_all(text.as_bytes())?;
            return Ok(Exit::Done);
        }
        // The description goes elsewhere, so that standard output holds the payload and nothing else.
        let _ = io::stderr().write_all(text.as_bytes());
        let bytes = letter.payload();
        if out.is_terminal() {
            writeln!(out, "{}", visible(&String::from_utf8_lossy(bytes)))?;
        } else {
            out.write_all(bytes)?;
        }
        out.flush()?;
        Ok(Exit::Done)
    }

    fn describe(&self, entry: &Entry, letter: &Letter) -> String {
        let now = at_ms(self.now);
        let time = |time: SystemTime| format!("{} ({})", utc(time), ago(time, now));
        let mut lines = vec![
            ("id", entry.id.to_string()),
            ("claimed", time(claimed_at(entry.id))),
            ("died", time(at_ms(entry.at))),
            ("endpoint", letter.full_endpoint().map_or("-".to_string(), |endpoint| visible(&endpoint))),
            ("attempts", entry.history.attempts.to_string()),
            ("reason", visible(&entry.history.last_error)),
        ];
        if let Some(first) = first_put_off(entry, now) {
            lines.insert(2, ("put off", format!("{} for the first time", time(first))));
        }
        if entry.recovered > 0 {
            lines.push(("in flight", format!("in {} when they died", n_of(entry.recovered, "agent"))));
        }
        match letter {
            Letter::Good(envelope) => {
                let size = n_of(envelope.size() as u64, "byte");
                lines.push(("size", format!("{size}, {}", envelope.format().name())));
                lines.push(("payload", n_of(envelope.payload().len() as u64, "byte")));
                for (name, value) in envelope.own_headers() {
                    lines.push(("header", visible(&format!("{name}: {}", shown_value(name, value)))));
                }
            }
            Letter::Bad(malformed) => {
                lines.push(("size", n_of(malformed.raw.len() as u64, "byte")));
                lines.push(("unreadable", visible(&malformed.reason)));
            }
        }
        lines.iter().map(|(name, value)| format!("{name:<10}  {value}\n")).collect()
    }

    fn act(
        &mut self,
        selection: &Selection,
        done: &str,
        act: fn(&mut RedisList, &[Id]) -> Result<usize, queue::Error>,
    ) -> Result<Exit, Error> {
        let mut list = RedisList::new(Server::from(self.redis), &self.redis.key(), Pop::Peek, false);
        let (n, exit) = match selection {
            Selection::Ids(ids) => {
                let mut seen = HashSet::new();
                let (mut n, mut missed) = (0, false);
                for id in ids.iter().filter(|id| seen.insert(**id)).map(|id| Id(*id)) {
                    if act(&mut list, &[id])? == 1 {
                        n += 1;
                    } else {
                        missed = true;
                        say(&not_dead(id, &self.operator.find(id, self.now)?));
                    }
                }
                (n, if missed { Exit::Nothing } else { Exit::Done })
            }
            Selection::All(filter) => {
                let mut n = 0;
                let mut ids = Vec::with_capacity(PAGE);
                let found = self.each(filter, false, |entry, _| {
                    ids.push(entry.id);
                    if ids.len() == PAGE {
                        n += act(&mut list, &ids)? as u64;
                        ids.clear();
                    }
                    Ok(())
                });
                // What was found before Redis went away is done all the same, and said.
                let rest = act(&mut list, &ids).map(|rest| n += rest as u64);
                if let Err(error) = found.and(rest.map_err(Error::from)) {
                    return Err(Error::Failed(format!("{done} {}, then: {error}", n_of(n, "message"))));
                }
                (n, ending(n, filter))
            }
        };
        if n > 0 {
            writeln!(io::stdout().lock(), "{done} {}", n_of(n, "message"))?;
        }
        Ok(exit)
    }

    fn export(&mut self, filter: &Filter) -> Result<Exit, Error> {
        let mut out = BufWriter::new(io::stdout().lock());
        let found = self.each(filter, true, |entry, letter| {
            writeln!(out, "{}", whole(&entry, &letter.expect("asked for")))?;
            Ok(())
        })?;
        out.flush()?;
        Ok(ending(found, filter))
    }

    /// Hands out the dead letters that pass the filter, oldest first; with their messages if they
    /// are asked for or the filter needs them. Returns how many there were.
    fn each(
        &mut self,
        filter: &Filter,
        whole: bool,
        mut take: impl FnMut(Entry, Option<Letter>) -> Result<(), Error>,
    ) -> Result<u64, Error> {
        let limit = filter.limit.unwrap_or(u64::MAX);
        let now = self.now;
        let mut found = 0;
        let mut counted = |entry: Entry, letter: Option<Letter>| {
            take(entry, letter)?;
            found += 1;
            Ok::<_, Error>(if found < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        };
        self.operator.each_page(Schedule::Dead, 0, now, |operator, mut entries| {
            let n_entries = entries.len();
            entries.retain(|entry| entry.at <= now);
            let mut flow = if entries.len() < n_entries { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
            if let Some(reason) = &filter.reason {
                entries.retain(|entry| entry.history.last_error.contains(reason));
            }
            if whole || filter.endpoint.is_some() {
                operator.each_message(entries, |entry, bytes| {
                    let letter = Letter::read(bytes);
                    if filter.endpoint.as_ref().is_some_and(|endpoint| !letter.goes_to(endpoint)) {
                        return Ok(ControlFlow::Continue(()));
                    }
                    let counted = counted(entry, Some(letter))?;
                    if counted.is_break() {
                        flow = ControlFlow::Break(());
                    }
                    Ok::<_, Error>(counted)
                })?;
                return Ok(flow);
            }
            for entry in entries {
                if counted(entry, None)?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
            Ok::<_, Error>(flow)
        })?;
        Ok(found)
    }
}

/// What `list` says of a dead letter, and `show` and `export` begin with.
fn facts(entry: &Entry, letter: &Letter) -> Object {
    let died = at_ms(entry.at);
    Object::new()
        .text("id", &entry.id.to_string())
        .time("claimed", Some(claimed_at(entry.id)))
        // By the clock that the entry's age was taken from; the difference of both is exact.
        .time("died", Some(died))
        .maybe_text("endpoint", letter.full_endpoint().as_deref())
        .number("attempts", u64::from(entry.history.attempts))
        .text("reason", &entry.history.last_error)
        .number("size", letter.raw().len() as u64)
}

/// A line of an export. Nothing is lost by it: where the members are not all of the message (it
/// cannot be read, is not written as ACA-Py writes, or holds what must not be shown), `raw` is.
fn whole(entry: &Entry, letter: &Letter) -> Object {
    let line = facts(entry, letter);
    let encode = |bytes: &[u8]| BASE64_STANDARD.encode(bytes);
    let Letter::Good(envelope) = letter else {
        return line.text("raw", &encode(letter.raw()));
    };
    let line = line
        .text("format", envelope.format().name())
        .json("headers", headers_json(envelope))
        .text("payload", &encode(envelope.payload()));
    if is_all(envelope, letter.full_endpoint().as_deref().unwrap_or_default()) {
        return line;
    }
    line.text("raw", &encode(envelope.raw()))
}

/// Whether headers (as they are shown), endpoint and payload make up the bytes that were pushed.
fn is_all(envelope: &Envelope, endpoint: &str) -> bool {
    let headers = shown_headers(envelope);
    let headers = headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    envelope.format().encode(headers, endpoint, envelope.payload()) == envelope.raw()
}

fn headers_json(envelope: &Envelope) -> Object {
    shown_headers(envelope).iter().fold(Object::new(), |object, (name, value)| object.text(name, value))
}

/// The first of each name.
fn shown_headers(envelope: &Envelope) -> Vec<(String, String)> {
    let mut seen = HashSet::new();
    envelope
        .own_headers()
        .filter(|(name, _)| seen.insert(name.to_ascii_lowercase()))
        .map(|(name, value)| (name.to_string(), shown_value(name, value)))
        .collect()
}

/// A header's value, unless it may be one that lets people in.
fn shown_value(name: &str, value: &[u8]) -> String {
    match is_credential(name) {
        true => "***".to_string(),
        false => String::from_utf8_lossy(value).into_owned(),
    }
}

fn first_put_off(entry: &Entry, now: SystemTime) -> Option<SystemTime> {
    // A message that died at its first attempt was not put off before it died.
    now.checked_sub(entry.history.age?).filter(|first| *first < at_ms(entry.at))
}

fn not_dead(id: Id, place: &Whereabouts) -> String {
    match place {
        Whereabouts::Alive(place) => format!("message {id} is not dead: it is {place}"),
        Whereabouts::Gone => format!("there is no message {id}: it was delivered or dropped, or never was"),
        Whereabouts::Dead(..) => format!("message {id} died just now; try again"),
    }
}

fn ending(found: u64, filter: &Filter) -> Exit {
    super::letter::ending(found, filter, "no dead letters")
}
