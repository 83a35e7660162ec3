//! The queue on a Redis LIST: one Lua script per move, atomic, by Redis's own
//! clock. The bytes that ACA-Py pushed never change and are never sent back.
//! It keeps no state beside its connection; numbering calls and repeating them
//! is its callers' part.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use log::warn;
use redis::Value;

use super::advice;
use super::connection::{Arguments, Link, Move};
use super::server::Server;
use crate::orders::Orders;
use crate::queue::{
    Adopted, AgentNumber, Beat, Bounds, Claimed, Error, FailedLane, Fate, History, Id, Joined, LaneChange, Peer, Place,
    Pop, Queue, RawClaim, Settlement, Source, Waited, WaitingLane,
};

/// The time of a lane that is paused, and of what is no message on the retry schedule: it never comes.
pub(super) const NEVER: f64 = 9e15;

/// Ids in one call of the moves that take a list of them.
const IDS_PER_CALL: usize = 500;

mod answer;
mod keys;
mod moves;
mod orders;
mod wait;

use answer::MOST_FAILURES;
pub(crate) use answer::history;
pub(super) use answer::{Answer, count, unexpected};
pub use keys::{Keys, key_names};
use moves::Moves;
use wait::Unheard;

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
        self.wait_for_something(at_most)
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
