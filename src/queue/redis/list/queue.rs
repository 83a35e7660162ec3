//! The list as the queue of the threads: each thing that they need of it is a move, or a command that only looks.
//! It leaves to `claim` and `settle` how a claim and settlements are put to Redis, and to `wait` how it waits.

use std::sync::Arc;
use std::time::Duration;

use redis::Value;

use super::answer::{Answer, count, orders, unexpected};
use super::{IDS_PER_CALL, NEVER, RedisList, claim, settle};
use crate::orders::Orders;
use crate::queue::redis::advice;
use crate::queue::redis::arguments::Arguments;
use crate::queue::{
    Adopted, AgentNumber, Beat, Bounds, Claimed, Error, Fate, Id, Joined, LaneChange, Peer, Queue, Settlement, Waited,
    WaitingLane,
};

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
        let arguments = claim::arguments(me, call, again, bounds);
        claim::read(self.run(|moves| &moves.claim, &arguments)?, |n| self.meet_odd(n))
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
        let arguments = settle::arguments(me, call, settlements, changes);
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

impl RedisList {
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
}
