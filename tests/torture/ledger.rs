//! The ledger: every message has a number, and for each it is known whether Redis confirmed its
//! push, when it arrived where, under which id, and how that was answered. From it and from what
//! Redis holds at the end follows what was lost, what came more than once, and what came in the
//! wrong order.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use crate::support::Request;

/// What the header that carries the message's id begins with (`--id-header`); behind it comes the
/// number of the agent's slot, so that each arrival says who sent it.
pub const ID_HEADER: &str = "X-Message-Id-";

/// What a message is like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Plain,
    /// Its recipient answers 410: it dies.
    Final,
    /// Its recipient answers 500 so many times first.
    Stubborn(u32),
    /// No envelope at all: it dies unread.
    Garbage,
    /// For a path that fails in one of several ways as long as strangers may, beside others of its origin that are well.
    Strange(u8),
}

/// What the producer knows of its push.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Push {
    Confirmed,
    /// The answer was lost: it may be in the queue or not.
    Uncertain,
    /// Redis said no.
    Refused,
}

#[derive(Clone, Debug)]
pub struct Arrival {
    pub at: Instant,
    /// The slot of the agent that sent it.
    pub agent: usize,
    /// How it is answered; `None`: not at all.
    pub status: Option<u16>,
}

impl Arrival {
    pub fn is_delivery(&self) -> bool {
        self.status.is_some_and(|status| (200..300).contains(&status))
    }
}

#[derive(Clone, Debug)]
pub struct Message {
    pub kind: Kind,
    pub size: usize,
    pub recipient: usize,
    /// Its origin: the recipient, where that has only one.
    pub lane: usize,
    pub pushed: Instant,
    pub push: Push,
    /// The id under which it first arrived.
    pub id: Option<String>,
    pub arrivals: Vec<Arrival>,
}

impl Message {
    pub fn deliveries(&self) -> Vec<&Arrival> {
        self.arrivals.iter().filter(|arrival| arrival.is_delivery()).collect()
    }
}

#[derive(Default)]
pub struct Ledger(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    messages: Vec<Message>,
    ids: HashMap<String, usize>,
    /// What arrived and should not have: each with its explanation.
    wrong: Vec<String>,
    /// What arrived under a second id: the message, when, and both ids.
    renamed: Vec<(usize, Instant, String)>,
}

impl Ledger {
    /// Notes a message before it is pushed; its number. Until it is confirmed it is uncertain.
    pub fn begin(&self, kind: Kind, size: usize, recipient: usize, lane: usize) -> usize {
        let mut inner = self.inner();
        let (pushed, push) = (Instant::now(), Push::Uncertain);
        inner.messages.push(Message { kind, size, recipient, lane, pushed, push, id: None, arrivals: Vec::new() });
        inner.messages.len() - 1
    }

    pub fn settle(&self, number: usize, push: Push) {
        self.inner().messages[number].push = push;
    }

    /// Notes a request of a recipient before it is answered; `answer` says with which status,
    /// given the message's kind and how often it was answered 500.
    pub fn arrive(&self, lane: usize, request: &Request, answer: impl FnOnce(Kind, u32) -> Option<u16>) -> Option<u16> {
        let at = Instant::now();
        let inner = &mut *self.inner();
        let number = number_of(&request.body).filter(|number| *number < inner.messages.len());
        let Some(number) = number else {
            inner.wrong.push(format!("a body of {} bytes that nobody pushed arrived", request.body.len()));
            return Some(200);
        };
        let message = &mut inner.messages[number];
        if request.body != body(number, message.size) {
            inner.wrong.push(format!("message #{number} arrived with another body"));
        }
        if message.lane != lane {
            inner.wrong.push(format!("message #{number} arrived at origin {lane}, not {}", message.lane));
        }
        if message.push == Push::Refused {
            inner.wrong.push(format!("message #{number} arrived, though Redis had refused it"));
        }
        let id_header = request.headers.iter().find_map(|(name, id)| {
            let known = name.get(..ID_HEADER.len()).is_some_and(|start| start.eq_ignore_ascii_case(ID_HEADER));
            known.then(|| (name[ID_HEADER.len()..].parse::<usize>().expect("a slot's number"), id.clone()))
        });
        let Some((agent, id)) = id_header else {
            inner.wrong.push(format!("message #{number} arrived without its id"));
            return Some(200);
        };
        match &message.id {
            Some(first) if *first != id => {
                inner.renamed.push((number, at, format!("{first} and {id}")));
                message.id = Some(id.clone());
            }
            Some(_) => {}
            None => {
                message.id = Some(id.clone());
            }
        }
        if let Some(other) = inner.ids.insert(id.clone(), number)
            && other != number
        {
            inner.wrong.push(format!("the id {id} was given to #{other} and to #{number}"));
        }
        let n_500 = message.arrivals.iter().filter(|arrival| arrival.status == Some(500)).count();
        let status = answer(message.kind, n_500 as u32);
        message.arrivals.push(Arrival { at, agent, status });
        status
    }

    pub fn messages(&self) -> Vec<Message> {
        self.inner().messages.clone()
    }

    pub fn len(&self) -> usize {
        self.inner().messages.len()
    }

    pub fn wrong(&self) -> Vec<String> {
        self.inner().wrong.clone()
    }

    /// The messages that arrived under a second id, when that was, and both ids.
    pub fn renamed(&self) -> Vec<(usize, Instant, String)> {
        self.inner().renamed.clone()
    }

    /// Whether all messages from this number on have been delivered, as far as they are to be.
    pub fn delivered_since(&self, from: usize) -> bool {
        self.inner().messages[from..].iter().all(|message| message.arrivals.iter().any(Arrival::is_delivery))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// The payload of a message: its number, then bytes that only it has at their places.
pub fn body(number: usize, size: usize) -> Vec<u8> {
    let mut body = format!("#{number} ").into_bytes();
    let fill = (body.len()..size).map(|at| (at.wrapping_mul(31) ^ number) as u8);
    body.extend(fill);
    body
}

/// The number that a payload begins with.
pub fn number_of(body: &[u8]) -> Option<usize> {
    let digits = body.strip_prefix(b"#")?;
    let end = digits.iter().take(12).position(|byte| *byte == b' ')?;
    std::str::from_utf8(&digits[..end]).ok()?.parse().ok()
}

/// The number of the message that these bytes hold somewhere.
pub fn find_number(bytes: &[u8]) -> Option<usize> {
    let starts = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'#');
    starts.map(|(at, _)| &bytes[at..]).find_map(number_of)
}

/// First arrivals that came before the first arrival of an older message of the same origin;
/// `exempt` are those that died.
pub fn out_of_order(messages: &[Message], exempt: impl Fn(usize) -> bool) -> Vec<(usize, usize)> {
    let mut latest: BTreeMap<usize, (Instant, usize)> = BTreeMap::new();
    let mut wrong = Vec::new();
    for (number, message) in messages.iter().enumerate() {
        let Some(first) = message.arrivals.first() else { continue };
        if exempt(number) {
            continue;
        }
        if let Some((before, other)) = latest.get(&message.lane)
            && *before > first.at
        {
            wrong.push((*other, number));
        }
        let entry = latest.entry(message.lane).or_insert((first.at, number));
        if first.at >= entry.0 {
            *entry = (first.at, number);
        }
    }
    wrong
}
