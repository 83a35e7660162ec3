//! The queue on a Redis LIST: one Lua script per move, atomic, by Redis's own
//! clock. The bytes that ACA-Py pushed never change and are never sent back.
//! It keeps no state beside its connection; numbering calls and repeating them
//! is its callers' part. Here are the list itself and how it asks; its rooms, from the bottom up: `keys` and `moves`
//! (what a move is run on, and its text), `answer` (what Redis answers), `claim` and `settle` (these two moves, put
//! and answered), `wait`, `queue` (what the threads need of it) and `orders` (what operators order).

mod answer;
mod claim;
mod keys;
mod moves;
mod orders;
mod queue;
mod settle;
mod wait;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use log::warn;
use redis::Value;

pub(crate) use self::answer::history;
pub(super) use self::answer::{Answer, count, unexpected};
pub use self::keys::{Keys, key_names};
use self::moves::Moves;
use self::wait::Unheard;
use super::arguments::Arguments;
use super::connection::{Link, Move};
use super::server::Server;
use crate::queue::{AgentNumber, Error, Id, Pop};

/// The time of a lane that is paused, and of what is no message on the retry schedule: it never comes.
pub(super) const NEVER: f64 = 9e15;

/// Ids in one call of the moves that take a list of them.
const IDS_PER_CALL: usize = 500;

/// The queue on a Redis LIST.
pub struct RedisList {
    pub(super) link: Link,
    /// Leads to where another service's key is, on a Cluster that has it in another place.
    pub(super) adopts_by: Option<Link>,
    keys: Keys,
    pub(super) moves: Arc<Moves>,
    pop: Pop,
    /// False once the server has refused BLMOVE: it is older than 6.2.
    has_blmove: bool,
    /// False once the server has refused a fraction of a second: it is older than 6.0.
    has_fractions: bool,
    unheard: Unheard,
    ordered: bool,
    /// How often entries of the keys that no agent writes were met, and left out; shared by all ends.
    odd: Arc<AtomicU64>,
    /// For tests: the key that stands in for Redis's clock.
    clock: Option<String>,
}

impl RedisList {
    /// A queue on its own connection, which is opened at the first use.
    pub fn new(server: Server, queue: &str, pop: Pop, ordered: bool) -> RedisList {
        RedisList::build(server, queue, pop, ordered, None, &|_, text| text)
    }

    /// For tests of the moves: reads the time, in microseconds, from a key in place of Redis's clock.
    #[doc(hidden)]
    pub fn with_clock(server: Server, queue: &str, ordered: bool, clock: &str) -> RedisList {
        RedisList::build(server, queue, Pop::Peek, ordered, Some(clock), &|_, text| text)
    }

    /// For tests of the tests: the same with scripts changed by `edit`, which is given
    /// the name of each file without its ending, and its text.
    #[doc(hidden)]
    pub fn with_edited_moves(
        server: Server,
        queue: &str,
        ordered: bool,
        clock: Option<&str>,
        edit: &dyn Fn(&str, String) -> String,
    ) -> RedisList {
        RedisList::build(server, queue, Pop::Peek, ordered, clock, edit)
    }

    fn build(
        server: Server,
        queue: &str,
        pop: Pop,
        ordered: bool,
        clock: Option<&str>,
        edit: &dyn Fn(&str, String) -> String,
    ) -> RedisList {
        RedisList {
            link: Link::new(server, queue),
            adopts_by: None,
            keys: Keys::new(queue),
            moves: Arc::new(Moves::new(clock, edit)),
            pop,
            has_blmove: true,
            has_fractions: true,
            unheard: Unheard::Unknown,
            ordered,
            odd: Arc::default(),
            clock: clock.map(str::to_string),
        }
    }

    /// The same queue on another connection.
    pub fn another(&self) -> RedisList {
        RedisList {
            link: Link::new(self.link.server.clone(), self.keys.queue()),
            adopts_by: None,
            keys: self.keys.clone(),
            moves: self.moves.clone(),
            pop: self.pop,
            has_blmove: self.has_blmove,
            has_fractions: self.has_fractions,
            unheard: Unheard::Unknown,
            ordered: self.ordered,
            odd: self.odd.clone(),
            clock: self.clock.clone(),
        }
    }

    /// Counts how often entries of the keys that no agent writes were met; of all ends together.
    pub fn odd(&self) -> Arc<AtomicU64> {
        self.odd.clone()
    }

    /// The names of its keys.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// Runs any command on this connection, for what only operators need.
    pub fn query(&mut self, command: &redis::Cmd) -> Result<Value, Error> {
        self.link.query(command)
    }

    pub(super) fn run(&mut self, script: fn(&Moves) -> &Move, arguments: &Arguments) -> Result<Value, Error> {
        let answer = self.link.run(script(&self.moves), self.keys.all(), arguments);
        match answer {
            Err(Error::WrongType(why)) => Err(self.name_wrong_type(why)),
            answer => answer,
        }
    }

    fn ask(&mut self, command: &redis::Cmd) -> Result<Value, Error> {
        match self.link.query(command) {
            Err(Error::WrongType(why)) => Err(self.name_wrong_type(why)),
            answer => answer,
        }
    }

    /// Redis does not say at which key it found the wrong type: so look.
    fn name_wrong_type(&mut self, why: String) -> Error {
        let keys = self.keys.clone();
        for (key, kind) in keys.types() {
            if let Ok(Value::SimpleString(found)) = self.link.query(redis::cmd("TYPE").arg(key))
                && found != "none"
                && found != kind
            {
                return Error::WrongType(format!(
                    "key '{key}' at {} holds a {found}, where the queue keeps a {kind}: rename or delete it, or choose another '--queue'",
                    self.link.server.name(),
                ));
            }
        }
        Error::WrongType(why)
    }

    /// Said once: the metric goes on counting.
    fn meet_odd(&self, n: i64) {
        if let Ok(n @ 1..) = u64::try_from(n)
            && self.odd.fetch_add(n, Ordering::Relaxed) == 0
        {
            let queue = self.keys.queue();
            warn!(
                "the keys beside '{queue}' hold what no agent writes; it is left alone: 'acapy-deliver check' names it, and with '--repair' says how to move it aside"
            );
        }
    }

    fn on_ids(&mut self, script: fn(&Moves) -> &Move, first: Option<AgentNumber>, ids: &[Id]) -> Result<usize, Error> {
        let mut done = 0;
        for ids in ids.chunks(IDS_PER_CALL) {
            let mut arguments = Arguments::default();
            if let Some(me) = first {
                arguments.sixteen(me.0);
            }
            for id in ids {
                arguments.sixteen(id.0);
            }
            done += count(self.run(script, &arguments)?)?;
        }
        Ok(done)
    }
}
