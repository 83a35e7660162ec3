//! The queue on a Redis LIST: one Lua script per move, atomic, by Redis's own
//! clock. The bytes that ACA-Py pushed never change and are never sent back.
//! It keeps no state beside its connection; numbering calls and repeating them
//! is its callers' part.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use log::{info, warn};
use redis::Value;

use super::advice;
use super::connection::{Arguments, Failure, Link, Move};
use super::server::{Server, is_refusal, wire_text};
use crate::orders::{Before, Hand, MOST_PAUSED, Orders, Standing};
use crate::queue::{
    Adopted, AgentNumber, Beat, Bounds, Claimed, Error, FailedLane, Fate, HIGHEST_NUMBER, History, Id, Joined,
    LaneChange, Peer, Place, Pop, Queue, RawClaim, Settlement, Source, Waited, WaitingLane,
};

/// The longest and the shortest time that a wait blocks: a stop is to be noticed,
/// and `0.001` blocks for ever on Redis 6.2.
const LONGEST_WAIT: Duration = Duration::from_millis(500);
const SHORTEST_WAIT: Duration = Duration::from_millis(20);

/// No agent counts as far: what goes beyond it somebody else has written.
const MOST_FAILURES: u32 = 1_000_000_000;
/// Times of messages, in milliseconds, are later: this is in 2001.
const FIRST_TIME: i64 = 1_000_000_000_000;

/// The time of a lane that is paused, and of what is no message on the retry schedule: it never comes.
pub(super) const NEVER: f64 = 9e15;

/// Ids in one call of the moves that take a list of them.
const IDS_PER_CALL: usize = 500;

/// The names of a queue's keys, all in the slot of the queue itself on a Cluster.
#[derive(Clone, Debug)]
pub struct Keys {
    all: Vec<String>,
}

/// The short names of a queue's keys, in the order in which every move is given them, after the queue's own.
pub const KEY_NAMES: [&str; 12] = [
    "id",
    "messages",
    "inflight",
    "waiting",
    "lanes",
    "failures",
    "retry",
    "dead",
    "history",
    "recovered",
    "agents",
    "calls",
];

impl Keys {
    /// The keys of the queue that has this one.
    pub fn new(queue: &str) -> Keys {
        let tagged = queue.find('{').is_some_and(|open| queue[open + 1..].find('}').is_some_and(|length| length > 0));
        let beside = |name: &&str| if tagged { format!("{queue}:{name}") } else { format!("{{{queue}}}:{name}") };
        let mut all = vec![queue.to_string()];
        all.extend(KEY_NAMES.iter().map(beside));
        Keys { all }
    }

    /// The LIST that ACA-Py pushes to.
    pub fn queue(&self) -> &str {
        &self.all[0]
    }

    /// One of the keys beside it, by its short name.
    pub fn named(&self, name: &str) -> &str {
        let at = KEY_NAMES.iter().position(|known| *known == name).expect("a key of the queue");
        &self.all[at + 1]
    }

    /// All of them, the queue first.
    pub fn all(&self) -> &[String] {
        &self.all
    }
}

pub(super) struct Moves {
    join: Move,
    claim: Move,
    settle: Move,
    beat: Move,
    recover: Move,
    give_back: Move,
    has: Move,
    restore: Move,
    hasten: Move,
    replay: Move,
    drop: Move,
    forget: Move,
    order: Move,
    still: Move,
    retry: Move,
    drop_waiting: Move,
    pub(super) adopt: Move,
    pub(super) adopted: Move,
    /// The text of a script that names none of our keys.
    pub(super) take: String,
}

impl Moves {
    /// `clock`: for tests, the name of a key that holds the time in microseconds.
    /// `edit`: for tests, what becomes of each text, named as its file.
    fn new(clock: Option<&str>, edit: &dyn Fn(&str, String) -> String) -> Moves {
        let edited = |name: &str, text: &str| edit(name, text.to_string());
        let mut head = edited("head", include_str!("scripts/head.lua"));
        if let Some(clock) = clock {
            let simulated = format!(
                "{{math.floor(redis.call('GET', '{clock}') / 1000000), redis.call('GET', '{clock}') % 1000000}}"
            );
            assert!(head.contains("redis.call('TIME')"), "the head reads the clock");
            head = head.replace("redis.call('TIME')", &simulated);
        }
        let new = |name, body| Move::new(&head, &edited(name, body));
        Moves {
            join: new("join", include_str!("scripts/join.lua")),
            claim: new("claim", include_str!("scripts/claim.lua")),
            settle: new("settle", include_str!("scripts/settle.lua")),
            beat: new("beat", include_str!("scripts/beat.lua")),
            recover: new("recover", include_str!("scripts/recover.lua")),
            give_back: new("give_back", include_str!("scripts/give_back.lua")),
            has: new("has", include_str!("scripts/has.lua")),
            restore: new("restore", include_str!("scripts/restore.lua")),
            hasten: new("hasten", include_str!("scripts/hasten.lua")),
            replay: new("replay", include_str!("scripts/replay.lua")),
            drop: new("drop", include_str!("scripts/drop.lua")),
            forget: new("forget", include_str!("scripts/forget.lua")),
            order: new("order", include_str!("admin/order.lua")),
            still: new("still", include_str!("admin/still.lua")),
            retry: new("retry", include_str!("admin/retry.lua")),
            drop_waiting: new("drop_waiting", include_str!("admin/drop_waiting.lua")),
            adopt: new("adopt", include_str!("scripts/adopt.lua")),
            adopted: new("adopted", include_str!("scripts/adopted.lua")),
            take: edited("take", include_str!("scripts/take.lua")),
        }
    }
}

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

/// Whether the value that a wait looks at can stay where it is. It is not read, and the
/// largest that Redis holds is half a gigabyte: so its answer is better not sent. Where it is, one message of
/// 100 MiB that wakes an agent makes it grow to 214 MiB (`limits::an_envelope_larger_than_the_bound…` allows 150).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Unheard {
    /// Not tried yet.
    Unknown,
    Works,
    /// The last wait ended before its time with nothing to show: the next is listened to, for it
    /// may be refused.
    Listen,
    /// The server, or what stands before it, cannot do it.
    Unusable,
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

    /// Makes dead messages due again, as if they had never been attempted; returns how many of them were dead.
    pub fn replay(&mut self, ids: &[Id]) -> Result<usize, Error> {
        self.on_ids(|moves| &moves.replay, None, ids)
    }

    /// Removes dead messages for good; returns how many of them were dead.
    pub fn drop_dead(&mut self, ids: &[Id]) -> Result<usize, Error> {
        self.on_ids(|moves| &moves.drop, None, ids)
    }

    /// Makes what is on the retry schedule due now; returns how many of them were there.
    pub fn retry_now(&mut self, ids: &[Id]) -> Result<usize, Error> {
        self.on_ids(|moves| &moves.retry, None, ids)
    }

    /// Removes for good what waits for its endpoint, given by origin and id; returns how many of them waited.
    pub fn drop_waiting(&mut self, waiting: &[(String, Id)]) -> Result<usize, Error> {
        let mut n = 0;
        for some in waiting.chunks(IDS_PER_CALL) {
            let mut arguments = Arguments::default();
            for (origin, id) in some {
                arguments.text(origin).sixteen(id.0);
            }
            n += count(self.run(|moves| &moves.drop_waiting, &arguments)?)?;
        }
        Ok(n)
    }

    /// Gives an order for these endpoints, each named once; `None`, and nothing is done, if more would be paused than
    /// may be. Returns what they were before. If it is dry, nothing is done.
    pub fn order(&mut self, hand: Hand, dry: bool, origins: &[String]) -> Result<Option<Vec<Before>>, Error> {
        let mut arguments = Arguments::default();
        arguments.text(hand).flag(dry).text(MOST_PAUSED);
        for origin in origins {
            arguments.text(origin);
        }
        let mut answer = Answer::of(self.run(|moves| &moves.order, &arguments)?)?;
        if answer.text()? != "ok" {
            return Ok(None);
        }
        let mut all = Vec::new();
        while answer.more() {
            all.push(before(&mut answer.list()?)?);
        }
        if hand == Hand::Pause && !dry {
            for origin in origins {
                self.stand_still(origin)?;
            }
        }
        Ok(Some(all))
    }

    /// What waits for a paused endpoint grows no older.
    fn stand_still(&mut self, origin: &str) -> Result<(), Error> {
        let mut after = Vec::new();
        loop {
            let mut arguments = Arguments::default();
            arguments.text(origin).bytes(&after).text(IDS_PER_CALL);
            let Value::BulkString(last) = self.run(|moves| &moves.still, &arguments)? else {
                return Err(unexpected("what stands still"));
            };
            if last.is_empty() {
                return Ok(());
            }
            after = last;
        }
    }

    /// By Redis's clock.
    fn now_ms(&mut self) -> Result<i64, Error> {
        if let Some(key) = &self.clock {
            let mut micros = Answer(vec![self.link.query(redis::cmd("GET").arg(key))?].into_iter());
            return Ok((micros.number_in_text()? / 1000) as i64);
        }
        let mut clock = Answer::of(self.link.query(&redis::cmd("TIME"))?)?;
        let (seconds, micros) = (clock.number_in_text()?, clock.number_in_text()?);
        Ok((seconds * 1000 + micros / 1000) as i64)
    }

    pub(super) fn run(&mut self, script: fn(&Moves) -> &Move, arguments: &Arguments) -> Result<Value, Error> {
        let answer = self.link.run(script(&self.moves), &self.keys.all, arguments);
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
        let expected = |at: usize| match at {
            0 => "list",
            1 => "string",
            2 | 6 | 9 | 10 | 12 => "hash",
            _ => "zset",
        };
        for (at, key) in self.keys.all.clone().iter().enumerate() {
            if let Ok(Value::SimpleString(found)) = self.link.query(redis::cmd("TYPE").arg(key))
                && found != "none"
                && found != expected(at)
            {
                return Error::WrongType(format!(
                    "key '{key}' at {} holds a {found}, where the queue keeps a {}: rename or delete it, or choose another '--queue'",
                    self.link.server.name(),
                    expected(at)
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

    fn recover_chunk(
        &mut self,
        me: AgentNumber,
        agent: AgentNumber,
        seen: &str,
        limit: usize,
        died: bool,
    ) -> Result<Option<usize>, Error> {
        let mut arguments = Arguments::default();
        arguments.sixteen(me.0).text(agent).text(seen).text(limit).flag(died);
        let mut answer = Answer::of(self.run(|moves| &moves.recover, &arguments)?)?;
        let state = answer.text()?;
        let n = answer.number()?;
        Ok((state == "moved").then_some(n as usize))
    }

    /// Waits without having the value sent, and then looks whether there is one. `None` if the
    /// wait is to be made, or made again, with its answer listened to.
    fn wait_unheard(&mut self, at_most: Duration) -> Result<Option<Waited>, Error> {
        match self.unheard {
            Unheard::Unknown | Unheard::Works => {}
            Unheard::Listen => {
                self.unheard = Unheard::Works;
                return Ok(None);
            }
            Unheard::Unusable => return Ok(None),
        }
        let begun = Instant::now();
        let length = redis::cmd("LLEN").arg(self.keys.queue()).to_owned();
        let longest = if self.has_fractions { LONGEST_WAIT } else { LONGEST_WAIT * 2 };
        match self.link.query_unheard(&self.wait_command(at_most), &length, longest) {
            Ok(Value::Int(length)) => {
                let ended_early = begun.elapsed() < at_most.clamp(SHORTEST_WAIT, LONGEST_WAIT);
                self.unheard = if length == 0 && ended_early { Unheard::Listen } else { Unheard::Works };
                Ok(Some(if length == 0 { Waited::Nothing } else { Waited::Something }))
            }
            Ok(_) => {
                self.unheard = Unheard::Unusable;
                Ok(None)
            }
            Err(Failure::Ours(error)) => Err(error),
            Err(Failure::Redis(error)) => {
                if is_refusal(&error) {
                    // Of CLIENT REPLY; if it was of the rest, that will be heard.
                    self.unheard = Unheard::Unusable;
                    return Ok(None);
                }
                if self.unheard == Unheard::Unknown && error.code().is_none() {
                    // What stands before the server may have cut us off for it.
                    self.unheard = Unheard::Unusable;
                }
                if error.is_timeout() {
                    // What is asked next, on another connection, will tell whether Redis is there.
                    return Ok(Some(Waited::Something));
                }
                match self.link.explain(Failure::Redis(error)) {
                    Error::WrongType(why) => Err(self.name_wrong_type(why)),
                    error => Err(error),
                }
            }
        }
    }

    fn without_blmove(&self) -> &'static str {
        if self.ordered {
            "this Redis has no BLMOVE (6.2): so that the order holds, the queue is asked ten times a second"
        } else {
            "this Redis has no BLMOVE (6.2): BRPOPLPUSH waits in its place, which may put the newest message first"
        }
    }

    /// Where a wait would take a whole second, and what is due before would be late.
    fn wait_by_asking(&mut self, at_most: Duration) -> Result<Waited, Error> {
        std::thread::sleep(at_most.clamp(SHORTEST_WAIT, SHORTEST_WAIT * 5));
        let length = redis::cmd("LLEN").arg(self.keys.queue()).to_owned();
        match self.link.query(&length)? {
            Value::Int(0) => Ok(Waited::Nothing),
            _ => Ok(Waited::Something),
        }
    }

    fn wait_command(&self, at_most: Duration) -> redis::Cmd {
        let key = self.keys.queue();
        let seconds = at_most.clamp(SHORTEST_WAIT, LONGEST_WAIT).as_secs_f64();
        let mut command;
        if self.pop == Pop::Blpop {
            command = redis::cmd("BLPOP");
            command.arg(key);
        } else if self.has_blmove {
            command = redis::cmd("BLMOVE");
            command.arg(key).arg(key).arg("LEFT").arg("LEFT");
        } else {
            command = redis::cmd("BRPOPLPUSH");
            command.arg(key).arg(key);
        }
        if self.has_fractions {
            command.arg(seconds)
        } else {
            command.arg(1)
        };
        command
    }
}

impl Queue for RedisList {
    fn join(&mut self, lease: Duration, old: Option<AgentNumber>, seen: u64) -> Result<Joined, Error> {
        let mut arguments = Arguments::default();
        arguments.millis(lease);
        match old {
            Some(old) => arguments.sixteen(old.0),
            None => arguments.text(""),
        };
        arguments.seen(seen);
        let mut answer = Answer::of(self.run(|moves| &moves.join, &arguments)?)?;
        let number = AgentNumber(answer.number_in_text()?);
        let old = match answer.text()?.as_str() {
            "recovered" => Fate::Recovered,
            "registered" => Fate::Registered,
            _ => Fate::Unknown,
        };
        let set_back = Duration::from_millis(u64::try_from(answer.number()?).unwrap_or_default());
        self.meet_odd(answer.number()?);
        Ok(Joined { number, old, set_back })
    }

    fn claim(&mut self, me: AgentNumber, call: u64, again: bool, bounds: &Bounds) -> Result<Claimed, Error> {
        let mut arguments = Arguments::default();
        arguments.sixteen(me.0).text(call).text(bounds.messages).text(bounds.bytes).text(bounds.returning);
        arguments
            .text(bounds.probes)
            .text(bounds.failed_probes)
            .text(bounds.slow_probes)
            .millis(bounds.probe_for)
            .text(bounds.fragile)
            .text(bounds.suspects)
            .text(bounds.gravest)
            .flag(bounds.ordered)
            .flag(again)
            .text(bounds.largest);
        arguments.flag(bounds.popped.is_some()).bytes(bounds.popped.as_deref().unwrap_or_default());
        arguments.seen(bounds.seen).text(bounds.orders);
        for want in &bounds.wants {
            arguments.text(&want.origin).text(want.room).text(want.free);
        }
        let mut answer = Answer::of(self.run(|moves| &moves.claim, &arguments)?)?;
        match answer.text()?.as_str() {
            // A call older than one already answered: our numbering is not what Redis knows, so begin anew.
            "gone" | "old" => return Ok(Claimed::Gone),
            "standby" => return Ok(Claimed::Standby),
            _ => {}
        }
        let now = answer.number()?;
        let due_in = answer.number()?;
        let more = answer.number()? != 0;
        let mut emptied = Vec::new();
        let mut origins = answer.list()?;
        while origins.more() {
            emptied.push(origins.lossy()?);
        }
        let mut failures = Vec::new();
        let mut records = answer.list()?;
        while records.more() {
            let origin = records.lossy()?;
            let record = records.lossy()?;
            let mut words = record.split(' ');
            let failures_in_a_row = words.next().and_then(|n| n.parse().ok()).unwrap_or(0).min(MOST_FAILURES);
            failures.push(FailedLane { origin, failures: failures_in_a_row, slowly: words.next() == Some("s") });
        }
        let mut claims = Vec::new();
        let mut messages = answer.list()?;
        while messages.more() {
            let id = messages.id()?;
            claims.push(RawClaim {
                id,
                bytes: messages.bytes()?,
                history: history(&messages.bytes()?, id, now),
                recovered: messages.number_in_text()? as u32,
                source: match messages.text()?.as_str() {
                    "k" => Source::Queue,
                    "o" => Source::Waiting { probe: false },
                    "p" => Source::Waiting { probe: true },
                    _ => Source::Retry,
                },
            });
        }
        let mut oversized = Vec::new();
        let mut buried = answer.list()?;
        while buried.more() {
            oversized.push((buried.id()?, buried.number_in_text()? as usize));
        }
        // New ones have ids in a row and no past: so only their bytes are sent.
        let before = answer.number_in_text()?;
        let mut fresh = answer.list()?;
        for id in before + 1.. {
            if !fresh.more() {
                break;
            }
            let (history, source) = (History::default(), Source::Queue);
            claims.push(RawClaim { id: Id(id), bytes: fresh.bytes()?, history, recovered: 0, source });
        }
        self.meet_odd(answer.number()?);
        let numbered = answer.number_in_text()?;
        let orders = if answer.more() { Some(orders(&mut answer.list()?)?) } else { None };
        let due_in = u64::try_from(due_in).ok().map(Duration::from_millis);
        let at = u64::try_from(now).unwrap_or_default();
        Ok(Claimed::Taken { claims, emptied, failures, oversized, due_in, more, at, numbered, orders })
    }

    fn orders(&mut self) -> Result<Orders, Error> {
        let mut command = redis::cmd("HMGET");
        command.arg(self.keys.named("calls")).arg("ordered").arg("orders");
        let Value::Array(values) = self.ask(&command)? else { return Err(unexpected("orders")) };
        let text = |value| if value == Value::Nil { Value::BulkString(Vec::new()) } else { value };
        orders(&mut Answer(values.into_iter().map(text).collect::<Vec<_>>().into_iter()))
    }

    fn wait(&mut self, at_most: Duration) -> Result<Waited, Error> {
        if self.ordered && !self.has_blmove {
            // BRPOPLPUSH turns the list, and so would break the order of more than one.
            std::thread::sleep(at_most.clamp(SHORTEST_WAIT, SHORTEST_WAIT * 5));
            return Ok(Waited::Something);
        }
        if !self.has_fractions && at_most < LONGEST_WAIT {
            return self.wait_by_asking(at_most);
        }
        if self.pop == Pop::Peek
            && let Some(waited) = self.wait_unheard(at_most)?
        {
            return Ok(waited);
        }
        let command = self.wait_command(at_most);
        match self.link.query_blocking(&command, LONGEST_WAIT * 2) {
            Ok(Value::Nil) => Ok(Waited::Nothing),
            Ok(Value::Array(values)) if self.pop == Pop::Blpop => match values.into_iter().nth(1) {
                Some(Value::BulkString(bytes)) => Ok(Waited::Popped(bytes)),
                _ => Ok(Waited::Nothing),
            },
            Ok(_) => Ok(Waited::Something),
            Err(Failure::Ours(error)) => Err(error),
            Err(Failure::Redis(error)) => {
                let text = wire_text(&error);
                if self.has_blmove && text.contains("unknown command") {
                    self.has_blmove = false;
                    info!("{}", self.without_blmove());
                    return self.wait(at_most);
                }
                if self.has_fractions && text.contains("not an integer") {
                    self.has_fractions = false;
                    info!("this Redis waits whole seconds (fractions: 6.0): what falls due may be half a second late");
                    return self.wait(at_most);
                }
                if text.contains("OOM ") {
                    if self.unheard != Unheard::Unusable {
                        self.unheard = Unheard::Listen;
                    }
                    return Ok(Waited::Refused);
                }
                match self.link.explain(Failure::Redis(error)) {
                    Error::WrongType(why) => Err(self.name_wrong_type(why)),
                    error => Err(error),
                }
            }
        }
    }

    fn settle(
        &mut self,
        me: AgentNumber,
        call: u64,
        settlements: &[Settlement],
        changes: &[LaneChange],
    ) -> Result<Option<Vec<Id>>, Error> {
        let arguments = settle_arguments(me, call, settlements, changes);
        let mut answer = Answer::of(self.run(|moves| &moves.settle, &arguments)?)?;
        if answer.text()? == "old" {
            return Ok(None);
        }
        let mut lost = Vec::new();
        let mut ids = answer.list()?;
        while ids.more() {
            lost.push(ids.id()?);
        }
        Ok(Some(lost))
    }

    fn beat(&mut self, me: AgentNumber, lease: Duration, seen: u64, longest: Duration) -> Result<Beat, Error> {
        let mut arguments = Arguments::default();
        arguments.sixteen(me.0).millis(lease).seen(seen).millis(longest);
        let mut answer = Answer::of(self.run(|moves| &moves.beat, &arguments)?)?;
        let registered = answer.number()? != 0;
        let at = u64::try_from(answer.number()?).unwrap_or_default();
        let longest = Duration::from_millis(u64::try_from(answer.number()?).unwrap_or_default());
        let beyond = (answer.number()? != 0).then_some(longest);
        let mut peers = Vec::new();
        let mut agents = answer.list()?;
        while agents.more() {
            let number = AgentNumber(agents.number_in_text()?);
            let lease = agents.text()?.parse().ok();
            let length = Duration::from_millis(agents.number_in_text()?);
            if number != me {
                peers.push(Peer { number, lease, length });
            }
        }
        self.meet_odd(answer.number()?);
        let numbered = answer.number_in_text()?;
        Ok(Beat { registered, peers, at, numbered, beyond })
    }

    fn recover(&mut self, me: AgentNumber, dead: &Peer, limit: usize) -> Result<Option<usize>, Error> {
        let seen = dead.lease.map(|lease| lease.to_string()).unwrap_or_default();
        self.recover_chunk(me, dead.number, &seen, limit, true)
    }

    fn leave(&mut self, me: AgentNumber) -> Result<(), Error> {
        while self.recover_chunk(me, me, "*", IDS_PER_CALL, false)? == Some(IDS_PER_CALL) {}
        Ok(())
    }

    fn in_flight(&mut self, me: AgentNumber) -> Result<Vec<Id>, Error> {
        let mut command = redis::cmd("ZRANGEBYSCORE");
        command.arg(self.keys.named("inflight")).arg(me.to_string()).arg(me.to_string());
        let mut answer = Answer::of(self.ask(&command)?)?;
        let mut ids = Vec::new();
        while answer.more() {
            ids.extend(Id::read(&answer.bytes()?));
        }
        Ok(ids)
    }

    fn give_back(&mut self, me: AgentNumber, ids: &[Id]) -> Result<usize, Error> {
        self.on_ids(|moves| &moves.give_back, Some(me), ids)
    }

    fn restore(&mut self, me: AgentNumber, messages: &[(Id, Arc<Vec<u8>>)]) -> Result<Option<Vec<Id>>, Error> {
        let mut arguments = Arguments::default();
        arguments.sixteen(me.0);
        for (id, bytes) in messages {
            arguments.sixteen(id.0).bytes(bytes);
        }
        let mut answer = Answer::of(self.run(|moves| &moves.restore, &arguments)?)?;
        if answer.text()? != "ok" {
            return Ok(None);
        }
        let mut ours = Vec::new();
        while answer.more() {
            ours.push(answer.id()?);
        }
        Ok(Some(ours))
    }

    fn put_back(&mut self, popped: &[u8]) -> Result<(), Error> {
        self.ask(redis::cmd("LPUSH").arg(self.keys.queue()).arg(popped)).map(|_| ())
    }

    fn hasten(&mut self, longest: Duration, limit: usize) -> Result<usize, Error> {
        let mut arguments = Arguments::default();
        arguments.millis(longest).text(limit);
        count(self.run(|moves| &moves.hasten, &arguments)?)
    }

    fn has(&mut self, ids: &[Id]) -> Result<Vec<bool>, Error> {
        let mut has = Vec::with_capacity(ids.len());
        for ids in ids.chunks(IDS_PER_CALL) {
            let mut arguments = Arguments::default();
            for id in ids {
                arguments.sixteen(id.0);
            }
            let mut answer = Answer::of(self.run(|moves| &moves.has, &arguments)?)?;
            while answer.more() {
                has.push(answer.number()? != 0);
            }
        }
        Ok(has)
    }

    fn lanes(&mut self) -> Result<Vec<WaitingLane>, Error> {
        let mut lanes = Vec::new();
        const PAGE: usize = 1000;
        loop {
            let page = self.some_lanes(lanes.len(), PAGE)?;
            let n = page.len();
            lanes.extend(page);
            if n < PAGE {
                return Ok(lanes);
            }
        }
    }

    fn some_lanes(&mut self, from: usize, limit: usize) -> Result<Vec<WaitingLane>, Error> {
        let now = self.now_ms()?;
        let mut command = redis::cmd("ZRANGE");
        command.arg(self.keys.named("lanes")).arg(from).arg(from + limit - 1).arg("WITHSCORES");
        let mut answer = Answer::of(self.ask(&command)?)?;
        let mut lanes = Vec::new();
        while answer.more() {
            let origin = answer.lossy()?;
            let score: f64 = answer.text()?.parse().map_err(|_| unexpected("a lane's time"))?;
            let due_in = (score > 0.0).then(|| Duration::from_millis((score as i64 - now).max(0) as u64));
            lanes.push(WaitingLane { origin, due_in, is_paused: score == NEVER });
        }
        Ok(lanes)
    }

    fn prepare(&mut self) -> Result<Vec<String>, Error> {
        Ok(advice::Server::ask(self)?.advice())
    }

    fn adopt(&mut self, seen: u64) -> Result<Adopted, Error> {
        self.adopt_some(seen)
    }

    fn forget_dead(&mut self, age: Duration, limit: usize, latest: u64) -> Result<usize, Error> {
        let mut arguments = Arguments::default();
        arguments.millis(age).text(limit).text(latest);
        count(self.run(|moves| &moves.forget, &arguments)?)
    }
}

fn settle_arguments(me: AgentNumber, call: u64, settlements: &[Settlement], changes: &[LaneChange]) -> Arguments {
    let mut arguments = Arguments::default();
    arguments.sixteen(me.0).text(call);

    // By origin, so that each origin is sent once.
    let mut delivered: Vec<&Settlement> = settlements.iter().filter(|one| one.place == Place::Delivered).collect();
    delivered.sort_by(|a, b| a.origin.cmp(&b.origin));
    let groups: Vec<&[&Settlement]> = delivered.chunk_by(|a, b| a.origin == b.origin).collect();
    arguments.text(groups.len());
    for group in groups {
        arguments.text(&group[0].origin).text(group.len());
        for one in group {
            arguments.sixteen(one.id.0);
        }
    }
    let count = |of: fn(&Place) -> bool| settlements.iter().filter(|one| of(&one.place)).count();
    let past = |arguments: &mut Arguments, history: &History| {
        arguments.text(history.attempts).text(history.own_failures).text(&history.last_error);
    };
    arguments.text(count(|place| matches!(place, Place::Retry(_))));
    for one in settlements {
        if let Place::Retry(delay) = one.place {
            arguments.sixteen(one.id.0).millis(delay);
            past(&mut arguments, &one.history);
        }
    }
    arguments.text(count(|place| matches!(place, Place::Waiting(_))));
    for one in settlements {
        if let Place::Waiting(delay) = one.place {
            arguments.sixteen(one.id.0).text(&one.origin);
            match delay {
                Some(delay) => arguments.millis(delay),
                None => arguments.text(-1),
            };
            past(&mut arguments, &one.history);
        }
    }
    arguments.text(count(|place| *place == Place::Dead));
    for one in settlements {
        if one.place == Place::Dead {
            arguments.sixteen(one.id.0);
            past(&mut arguments, &one.history);
        }
    }
    arguments.text(changes.len());
    for change in changes {
        match change {
            LaneChange::Up(origin) => arguments.text(origin).text("o"),
            LaneChange::Freed(origin) => arguments.text(origin).text("f"),
            LaneChange::Due { origin, after } => arguments.text(origin).text("d").millis(*after),
            LaneChange::Down { origin, after, failures, slowly, why } => {
                let how = if *slowly { "s" } else { "f" };
                arguments.text(origin).text("c").millis(*after).text(failures).text(how).text(why)
            }
        };
    }
    arguments
}

/// An order's number may be anything that somebody wrote: then it is not ours, and is read again.
fn orders(answer: &mut Answer) -> Result<Orders, Error> {
    let number = answer.lossy()?.parse().unwrap_or(0);
    Ok(Orders::read(number, &answer.lossy()?))
}

fn before(answer: &mut Answer) -> Result<Before, Error> {
    let (state, time) = (answer.text()?, answer.text()?);
    let messages = answer.number()?.max(0) as u64;
    let failures = answer.number_in_text()?;
    let time = || time.parse().map_err(|_| unexpected("a time"));
    let standing = match state.as_str() {
        "paused" => Standing::Paused(time()?),
        "probed" => Standing::Probed,
        "down" => Standing::Down(time()?),
        "due" => Standing::Due,
        "up" => Standing::Up,
        "new" => Standing::New,
        _ => Standing::Unknown,
    };
    Ok(Before { standing, messages, failures })
}

/// `attempts own first error`, as `settle` writes it; `+age` in the place of `first` while it grows no older. Nothing
/// is older than its claim: what was noted before that, was noted by a clock that was behind.
pub(crate) fn history(record: &[u8], id: Id, now_ms: i64) -> History {
    let record = String::from_utf8_lossy(record);
    let mut words = record.splitn(4, ' ');
    let mut stands_still = false;
    let mut number = || {
        let word = words.next()?;
        stands_still = word.starts_with('+');
        word.parse::<i64>().ok()
    };
    let (attempts, own_failures, first) = (number(), number(), number());
    let first = if stands_still { first.and_then(|age| now_ms.checked_sub(age)) } else { first };
    let count = |n: Option<i64>, most: u32| n.unwrap_or(0).clamp(0, i64::from(most)) as u32;
    let first = first.filter(|first| (FIRST_TIME..HIGHEST_NUMBER as i64).contains(first));
    let claimed = Some(id.claimed_ms()).filter(|claimed| *claimed <= now_ms).unwrap_or(0);
    let first = first.map(|first| first.max(claimed));
    History {
        attempts: count(attempts, u32::MAX),
        own_failures: count(own_failures, MOST_FAILURES),
        age: first.map(|first| Duration::from_millis((now_ms - first).max(0) as u64)),
        last_error: words.next().unwrap_or_default().to_string(),
    }
}

pub(super) fn unexpected(what: &str) -> Error {
    Error::Unavailable(format!("an answer of Redis is not what the move returns: {what}"))
}

pub(super) fn count(value: Value) -> Result<usize, Error> {
    match value {
        Value::Int(n) => Ok(n.max(0) as usize),
        _ => Err(unexpected("a count")),
    }
}

/// An answer's values, taken one by one; bytes are moved, not copied.
pub(super) struct Answer(std::vec::IntoIter<Value>);

impl Answer {
    pub(super) fn of(value: Value) -> Result<Answer, Error> {
        match value {
            Value::Array(values) => Ok(Answer(values.into_iter())),
            _ => Err(unexpected("a list")),
        }
    }

    pub(super) fn more(&self) -> bool {
        self.0.len() > 0
    }

    pub(super) fn bytes(&mut self) -> Result<Vec<u8>, Error> {
        match self.0.next() {
            Some(Value::BulkString(bytes)) => Ok(bytes),
            Some(Value::SimpleString(text)) => Ok(text.into_bytes()),
            _ => Err(unexpected("bytes")),
        }
    }

    /// Text of which others may have written a part.
    fn lossy(&mut self) -> Result<String, Error> {
        Ok(String::from_utf8_lossy(&self.bytes()?).into_owned())
    }

    pub(super) fn text(&mut self) -> Result<String, Error> {
        String::from_utf8(self.bytes()?).map_err(|_| unexpected("text"))
    }

    fn number(&mut self) -> Result<i64, Error> {
        match self.0.next() {
            Some(Value::Int(n)) => Ok(n),
            _ => Err(unexpected("a number")),
        }
    }

    fn number_in_text(&mut self) -> Result<u64, Error> {
        self.text()?.parse().map_err(|_| unexpected("a number"))
    }

    pub(super) fn id(&mut self) -> Result<Id, Error> {
        Ok(Id(self.number_in_text()?))
    }

    fn list(&mut self) -> Result<Answer, Error> {
        Answer::of(self.0.next().ok_or_else(|| unexpected("a list"))?)
    }
}
