//! The dead letters: listed, shown, replayed, dropped, exported. Text shows no passwords: not those of endpoints, nor
//! the values of headers that carry one.

use std::collections::HashSet;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::time::SystemTime;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::desk::{Desk, Picked, Shelf};
use super::letter::Letter;
use super::{Error, Exit, claimed_at, say};
use crate::config::{Dead, DeadAction, Filter};
use crate::envelope::Envelope;
use crate::headers::is_credential;
use crate::json::Object;
use crate::queue::redis::admin::{Entry, Whereabouts};
use crate::queue::redis::list::RedisList;
use crate::queue::redis::server::Server;
use crate::queue::{Id, Pop};
use crate::text::{ago, at_ms, n_of, utc, visible};

/// Does what was asked; [`Exit::Nothing`] if nothing matches.
///
/// # Errors
///
/// If Redis cannot be asked.
pub fn run(options: &Dead) -> Result<Exit, Error> {
    let mut desk = Desk::new(&options.redis, Shelf::Dead)?;
    let list = || RedisList::new(Server::from(&options.redis), &options.redis.key(), Pop::Peek, false);
    match &options.action {
        DeadAction::List(list) => desk.list(list),
        DeadAction::Show { id, payload, json } => show(&mut desk, Id(*id), *payload, *json),
        DeadAction::Replay(act) => {
            let mut list = list();
            desk.act(act, "replayed", |some| Ok(list.replay(&ids(some))?))
        }
        DeadAction::Drop(act) => {
            let mut list = list();
            desk.act(act, "dropped", |some| Ok(list.drop_dead(&ids(some))?))
        }
        DeadAction::Export(filter) => export(&mut desk, filter),
    }
}

fn ids(some: &[Picked]) -> Vec<Id> {
    some.iter().map(|(_, id)| *id).collect()
}

fn show(desk: &mut Desk, id: Id, payload: bool, json: bool) -> Result<Exit, Error> {
    let (entry, letter) = match desk.find(id)? {
        Whereabouts::Dead(entry, bytes) => (entry, Letter::read(bytes)),
        elsewhere => {
            say(&Shelf::Dead.lacks(id, &elsewhere));
            return Ok(Exit::Nothing);
        }
    };
    let mut out = io::stdout().lock();
    if json {
        let mut object = Shelf::Dead
            .facts(&entry, &letter)
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
    let text = describe(&entry, &letter, at_ms(desk.now()));
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

fn describe(entry: &Entry, letter: &Letter, now: SystemTime) -> String {
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

fn export(desk: &mut Desk, filter: &Filter) -> Result<Exit, Error> {
    let mut out = BufWriter::new(io::stdout().lock());
    let found = desk.each_letter(filter, |entry, letter| {
        writeln!(out, "{}", whole(&entry, &letter))?;
        Ok(())
    })?;
    out.flush()?;
    Ok(desk.ending(found, filter))
}

/// A line of an export. Nothing is lost by it: where the members are not all of the message (it
/// cannot be read, is not written as ACA-Py writes, or holds what must not be shown), `raw` is.
fn whole(entry: &Entry, letter: &Letter) -> Object {
    let line = Shelf::Dead.facts(entry, letter);
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
