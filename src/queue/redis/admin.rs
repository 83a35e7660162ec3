//! What only operators need to see of the queue: counts, lists in pages, single
//! messages. Nothing here changes anything but what `odd` mends, and nothing holds more than one page
//! of a list or a few megabytes of messages at a time. It leaves to the commands
//! what to show and in which words. Here is how an operator asks; what for is in the rooms: `overview` and `lanes`,
//! `pages` and `find` (entries in a row, or one by its id), `odd` (what no agent writes).

mod find;
mod lanes;
pub mod odd;
pub mod overview;
mod pages;

use redis::{FromRedisValue, Value};

pub use self::find::{Place, Whereabouts};
pub use self::lanes::LaneSeen;
pub use self::overview::{AgentSeen, Overview};
pub use self::pages::{Entry, Schedule};
use super::arguments::Arguments;
use super::connection::{Link, Move};
use super::list::Keys;
use super::server::Server;
use crate::config::RedisAddress;
use crate::queue::Error;

/// Entries in one page of a list, and ids in one call that takes them.
pub const PAGE: usize = 500;

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

    /// Redis's clock, in milliseconds since 1970.
    ///
    /// # Errors
    ///
    /// If Redis cannot be asked.
    pub fn now(&mut self) -> Result<u64, Error> {
        let (seconds, microseconds): (u64, u64) = read(self.query(&redis::cmd("TIME"))?)?;
        Ok(seconds * 1000 + microseconds / 1000)
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
