//! What only operators need to see of the queue: counts, lists in pages, single
//! messages. Nothing here changes anything but what `odd` mends, and nothing holds more than one page
//! of a list or a few megabytes of messages at a time. It leaves to the commands
//! what to show and in which words.

pub mod odd;

use std::ops::ControlFlow;

use redis::{FromRedisValue, Value};

use super::connection::{Arguments, Link, Move};
use super::list::{Keys, NEVER, history};
use super::server::Server;
use crate::config::RedisAddress;
use crate::queue::{Error, History, Id};

/// Entries in one page of a list, and ids in one call that takes them.
pub const PAGE: usize = 500;
/// Bytes of messages in one answer; the message that reaches it is still among them.
const BYTES: usize = 4 << 20;

/// An operator's view of one queue. Connections are opened when they are needed.
pub struct Operator {
    link: Link,
    keys: Keys,
    looks: Looks,
}

/// The scripts; they only read.
struct Looks {
    overview: Move,
    lanes: Move,
    page: Move,
    waiting: Move,
    bodies: Move,
    one: Move,
    odd: Move,
    mend: Move,
}

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

/// A lane with waiting messages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LaneSeen {
    /// Its origin.
    pub origin: String,
    /// When it may be tried, in milliseconds since 1970; `None` if it is open, was never tried, or is paused.
    pub next_try: Option<u64>,
    /// An operator has paused it.
    pub is_paused: bool,
    /// Messages that wait for it.
    pub messages: u64,
    /// The oldest of them.
    pub oldest: Option<Id>,
    /// How many times in a row it has failed.
    pub failures: u64,
    /// Its last error; empty if there was none.
    pub last_error: String,
}

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

/// A key that holds something else than the queue keeps there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WrongType {
    /// The key.
    pub key: String,
    /// What it holds.
    pub found: String,
    /// What it should.
    pub expected: &'static str,
}

impl std::fmt::Display for WrongType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let WrongType { key, found, expected } = self;
        write!(
            f,
            "key '{key}' holds a {found}, where the queue keeps a {expected}: rename or delete it, \
             or choose another '--queue'"
        )
    }
}

impl Operator {
    /// Opens nothing yet.
    pub fn new(address: &RedisAddress) -> Operator {
        Operator::on(Server::from(address), &address.key())
    }

    /// The same on a server that has more to be told.
    pub fn on(server: Server, queue: &str) -> Operator {
        let new = |body| Move::new(include_str!("scripts/head.lua"), body);
        let judging = concat!(include_str!("scripts/head.lua"), include_str!("admin/judge.lua"));
        Operator {
            link: Link::new(server, queue),
            keys: Keys::new(queue),
            looks: Looks {
                overview: new(include_str!("admin/overview.lua")),
                lanes: new(include_str!("admin/lanes.lua")),
                page: new(include_str!("admin/page.lua")),
                waiting: new(include_str!("admin/waiting.lua")),
                bodies: new(include_str!("admin/bodies.lua")),
                one: new(include_str!("admin/one.lua")),
                odd: Move::new(judging, include_str!("admin/odd.lua")),
                mend: Move::new(judging, include_str!("admin/mend.lua")),
            },
        }
    }

    /// The names of the queue's keys.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// Runs any command.
    ///
    /// # Errors
    ///
    /// If Redis cannot be asked or says no.
    pub fn query(&mut self, command: &redis::Cmd) -> Result<Value, Error> {
        self.link.query(command)
    }

    /// Runs a command that not every server or account may do: `None` if it is refused.
    ///
    /// # Errors
    ///
    /// If Redis cannot be asked.
    pub fn query_if_let(&mut self, command: &redis::Cmd) -> Result<Option<Value>, Error> {
        self.link.query_if_let(command)
    }

    /// Runs a command on a key that is none of the queue's: on a Cluster it may be on another node.
    ///
    /// # Errors
    ///
    /// If Redis cannot be asked or says no.
    pub fn query_elsewhere(&mut self, key: &str, command: &redis::Cmd) -> Result<Value, Error> {
        Link::new(self.link.server.clone(), key).query(command)
    }

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

    /// Redis's clock, in milliseconds since 1970.
    ///
    /// # Errors
    ///
    /// If Redis cannot be asked.
    pub fn now(&mut self) -> Result<u64, Error> {
        let (seconds, microseconds): (u64, u64) = read(self.query(&redis::cmd("TIME"))?)?;
        Ok(seconds * 1000 + microseconds / 1000)
    }

    /// Hands out the lanes that have messages waiting, at most so many: those never tried first,
    /// newest first, then by the time they may be tried.
    ///
    /// # Errors
    ///
    /// If Redis cannot be asked.
    pub fn each_lane(&mut self, at_most: usize, mut take: impl FnMut(LaneSeen)) -> Result<(), Error> {
        type Lane = (Vec<u8>, i64, u64, String, Vec<u8>);
        let mut from = 0;
        while from < at_most {
            let n = PAGE.min(at_most - from);
            let mut arguments = Arguments::default();
            arguments.text(from).text(n);
            let lanes: Vec<Lane> = read(self.run(|looks| &looks.lanes, &arguments)?)?;
            let found = lanes.len();
            for (origin, time, messages, oldest, record) in lanes {
                let (origin, record) = (lossy(&origin), lossy(&record));
                let (failures, last_error) = record.split_once(' ').unwrap_or((&record, ""));
                // How it failed, fast or slowly.
                let last_error = last_error.strip_prefix("f ").or(last_error.strip_prefix("s ")).unwrap_or(last_error);
                take(LaneSeen {
                    origin,
                    next_try: u64::try_from(time).ok().filter(|time| *time > 0 && *time != NEVER as u64),
                    is_paused: time == NEVER as i64,
                    messages,
                    oldest: oldest.parse().ok().map(Id),
                    failures: failures.parse().unwrap_or(0),
                    last_error: last_error.to_string(),
                });
            }
            if found < n {
                break;
            }
            from += found;
        }
        Ok(())
    }

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

    /// The keys that hold what they should not.
    ///
    /// # Errors
    ///
    /// If Redis cannot be asked.
    pub fn wrong_types(&mut self) -> Result<Vec<WrongType>, Error> {
        let mut wrong = Vec::new();
        let keys = self.keys.clone();
        for (key, expected) in keys.types() {
            let found: String = read(self.query(redis::cmd("TYPE").arg(key))?)?;
            if found != "none" && found != expected {
                wrong.push(WrongType { key: key.to_string(), found, expected });
            }
        }
        Ok(wrong)
    }

    fn run(&mut self, script: fn(&Looks) -> &Move, arguments: &Arguments) -> Result<Value, Error> {
        match self.link.run(script(&self.looks), self.keys.all(), arguments) {
            Err(Error::WrongType(why)) => {
                let wrong = self.wrong_types().unwrap_or_default();
                Err(Error::WrongType(wrong.first().map_or(why, ToString::to_string)))
            }
            answer => answer,
        }
    }
}

/// An answer as values of our own.
pub(crate) fn read<T: FromRedisValue>(value: Value) -> Result<T, Error> {
    redis::from_redis_value(value).map_err(|_| unexpected())
}

/// Text that somebody else may have written.
fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn unexpected() -> Error {
    Error::Unavailable("an answer of Redis is not what was asked for".to_string())
}
