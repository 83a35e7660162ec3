//! A queue as the attack sees it: made of the real scripts on a redis-server, of
//! the one in memory, or of both, which then must agree answer by answer and
//! place by place. Moves are values here, so that one can be made late.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use acapy_deliver::RedisAddress;
use acapy_deliver::internals::orders::{Before, Hand, Orders};
use acapy_deliver::internals::queue::redis::list::{Keys, RedisList};
use acapy_deliver::internals::queue::redis::server::Server;
use acapy_deliver::queue::{
    AgentNumber, Beat, Bounds, Claimed, Error, Id, Joined, LaneChange, Peer, Queue, Settlement, Source, WaitingLane,
};

use crate::memory::{Memory, NEVER, Record, State};
use crate::support::Redis;

/// What the moves that are bounded do in one call.
const AT_ONCE: usize = 500;

/// A move with its arguments.
#[derive(Clone, Debug)]
pub enum Move {
    Join { lease: Duration, old: Option<AgentNumber>, seen: u64 },
    Claim { me: AgentNumber, call: u64, again: bool, bounds: Bounds },
    Settle { me: AgentNumber, call: u64, settlements: Vec<Settlement>, changes: Vec<LaneChange> },
    Beat { me: AgentNumber, lease: Duration, seen: u64, longest: Duration },
    Recover { me: AgentNumber, dead: Peer, limit: usize },
    Leave(AgentNumber),
    InFlight(AgentNumber),
    GiveBack(AgentNumber, Vec<Id>),
    Has(Vec<Id>),
    Restore(AgentNumber, Vec<(Id, Arc<Vec<u8>>)>),
    Hasten(Duration),
    Lanes,
    Forget(Duration),
    Replay(Vec<Id>),
    Drop(Vec<Id>),
    Orders,
    Order { hand: Hand, dry: bool, origins: Vec<String> },
    RetryNow(Vec<Id>),
    DropWaiting(Vec<(String, Id)>),
    Adopt,
}

/// What a move answers.
#[derive(Clone, PartialEq, Debug)]
pub enum Answer {
    Joined(Joined),
    Claimed(Claimed),
    NotOurs(Option<Vec<Id>>),
    Beat(Beat),
    Recovered(Option<usize>),
    Left,
    Ids(Vec<Id>),
    Has(Vec<bool>),
    Restored(Option<Vec<Id>>),
    Lanes(Vec<WaitingLane>),
    Count(usize),
    Orders(Orders),
    Ordered(Option<Vec<Before>>),
}

/// What operators do, beside the moves of the trait.
trait Operated: Queue {
    fn replay_dead(&mut self, ids: &[Id]) -> Result<usize, Error>;
    fn drop_these(&mut self, ids: &[Id]) -> Result<usize, Error>;
    fn give_order(&mut self, hand: Hand, dry: bool, origins: &[String]) -> Result<Option<Vec<Before>>, Error>;
    fn hurry(&mut self, ids: &[Id]) -> Result<usize, Error>;
    fn drop_those(&mut self, waiting: &[(String, Id)]) -> Result<usize, Error>;
}

impl Operated for Memory {
    fn replay_dead(&mut self, ids: &[Id]) -> Result<usize, Error> {
        self.replay(ids)
    }
    fn drop_these(&mut self, ids: &[Id]) -> Result<usize, Error> {
        self.drop_dead(ids)
    }
    fn give_order(&mut self, hand: Hand, dry: bool, origins: &[String]) -> Result<Option<Vec<Before>>, Error> {
        self.order(hand, dry, origins)
    }
    fn hurry(&mut self, ids: &[Id]) -> Result<usize, Error> {
        self.retry_now(ids)
    }
    fn drop_those(&mut self, waiting: &[(String, Id)]) -> Result<usize, Error> {
        self.drop_waiting(waiting)
    }
}

impl Operated for RedisList {
    fn replay_dead(&mut self, ids: &[Id]) -> Result<usize, Error> {
        self.replay(ids)
    }
    fn drop_these(&mut self, ids: &[Id]) -> Result<usize, Error> {
        self.drop_dead(ids)
    }
    fn give_order(&mut self, hand: Hand, dry: bool, origins: &[String]) -> Result<Option<Vec<Before>>, Error> {
        self.order(hand, dry, origins)
    }
    fn hurry(&mut self, ids: &[Id]) -> Result<usize, Error> {
        self.retry_now(ids)
    }
    fn drop_those(&mut self, waiting: &[(String, Id)]) -> Result<usize, Error> {
        self.drop_waiting(waiting)
    }
}

fn make(queue: &mut dyn Operated, a_move: &Move) -> Result<Answer, Error> {
    Ok(match a_move {
        Move::Join { lease, old, seen } => Answer::Joined(queue.join(*lease, *old, *seen)?),
        Move::Claim { me, call, again, bounds } => Answer::Claimed(queue.claim(*me, *call, *again, bounds)?),
        Move::Settle { me, call, settlements, changes } => {
            Answer::NotOurs(queue.settle(*me, *call, settlements, changes)?)
        }
        Move::Beat { me, lease, seen, longest } => Answer::Beat(queue.beat(*me, *lease, *seen, *longest)?),
        Move::Recover { me, dead, limit } => Answer::Recovered(queue.recover(*me, dead, *limit)?),
        Move::Leave(me) => {
            queue.leave(*me)?;
            Answer::Left
        }
        Move::InFlight(me) => Answer::Ids(queue.in_flight(*me)?),
        Move::GiveBack(me, ids) => Answer::Count(queue.give_back(*me, ids)?),
        Move::Restore(me, messages) => Answer::Restored(queue.restore(*me, messages)?),
        Move::Hasten(longest) => Answer::Count(queue.hasten(*longest, AT_ONCE)?),
        Move::Has(ids) => Answer::Has(queue.has(ids)?),
        Move::Lanes => Answer::Lanes(queue.lanes()?),
        Move::Forget(age) => Answer::Count(queue.forget_dead(*age, AT_ONCE, u64::MAX >> 11)?),
        Move::Replay(ids) => Answer::Count(queue.replay_dead(ids)?),
        Move::Drop(ids) => Answer::Count(queue.drop_these(ids)?),
        Move::Orders => Answer::Orders(queue.orders()?),
        Move::Order { hand, dry, origins } => Answer::Ordered(queue.give_order(*hand, *dry, origins)?),
        Move::RetryNow(ids) => Answer::Count(queue.hurry(ids)?),
        Move::DropWaiting(waiting) => Answer::Count(queue.drop_those(waiting)?),
        Move::Adopt => Answer::Count(queue.adopt(0)?.messages),
    })
}

/// The queue of one attack.
pub struct World {
    redis: Option<OnRedis>,
    memory: Option<Memory>,
    /// Microseconds since 1970.
    clock: u64,
    snapshot: Option<(State, Dump)>,
}

/// Keys and their values as Redis dumps them.
type Dump = Vec<(String, Vec<u8>)>;

/// The scripts, and a connection to look behind them.
pub struct OnRedis {
    list: RedisList,
    keys: Keys,
    client: redis::Connection,
    clock_key: String,
}

impl OnRedis {
    /// A queue of this prefix with the scripts as they are, or as `edit` makes them.
    pub fn new(redis: &Redis, prefix: &str, ordered: bool, edit: &dyn Fn(&str, String) -> String) -> OnRedis {
        let clock_key = format!("{prefix}-clock");
        let server = Server::from(&RedisAddress::new(&redis.url()).unwrap());
        let queue = format!("{prefix}.outbound_transport");
        let list = RedisList::with_edited_moves(server, &queue, ordered, Some(&clock_key), edit);
        OnRedis { list, keys: Keys::new(&queue), client: redis.client(), clock_key }
    }

    fn all_keys(&self) -> Vec<String> {
        self.keys.all().iter().cloned().chain([legacy_key(&self.keys)]).collect()
    }

    fn dump(&mut self) -> Dump {
        let keys = self.all_keys();
        let mut pipe = redis::pipe();
        for key in &keys {
            pipe.cmd("DUMP").arg(key);
        }
        let values: Vec<Option<Vec<u8>>> = pipe.query(&mut self.client).unwrap();
        keys.into_iter().zip(values).filter_map(|(key, value)| Some((key, value?))).collect()
    }

    fn restore(&mut self, dump: &Dump) {
        let mut pipe = redis::pipe();
        pipe.atomic().cmd("DEL").arg(self.all_keys()).ignore();
        for (key, value) in dump {
            pipe.cmd("RESTORE").arg(key).arg(0).arg(value.as_slice()).ignore();
        }
        pipe.exec(&mut self.client).unwrap();
    }
}

impl World {
    pub fn new(redis: Option<OnRedis>, memory: Option<Memory>) -> World {
        // Any time does; some agents' numbers would have fewer digits before 2001.
        let mut world = World { redis, memory, clock: 1_770_000_000_000_000, snapshot: None };
        world.set_clock(world.clock);
        world
    }

    pub fn clock(&self) -> u64 {
        self.clock
    }

    pub fn set_clock(&mut self, micros: u64) {
        self.clock = micros;
        if let Some(redis) = &mut self.redis {
            redis::cmd("SET").arg(&redis.clock_key).arg(micros).exec(&mut redis.client).unwrap();
        }
        if let Some(memory) = &self.memory {
            memory.set_clock(micros);
        }
    }

    /// Makes a move. An error is a failure of the queue: nothing here refuses anything.
    pub fn make(&mut self, a_move: &Move) -> Result<Answer, String> {
        let failed = |error: Error| format!("{a_move:?} fails: {error}");
        let on_redis = self.redis.as_mut().map(|redis| make(&mut redis.list, a_move)).transpose().map_err(failed)?;
        let in_memory = self.memory.as_mut().map(|memory| make(memory, a_move)).transpose().map_err(failed)?;
        if let (Some(on_redis), Some(in_memory)) = (&on_redis, &in_memory)
            && on_redis != in_memory
        {
            return Err(format!("{a_move:?} answers\n  on Redis  {on_redis:?}\n  in memory {in_memory:?}"));
        }
        Ok(on_redis.or(in_memory).expect("a world has a queue"))
    }

    /// Everything as it is; on both it must be the same.
    pub fn state(&mut self) -> Result<State, String> {
        let on_redis = self.redis.as_mut().map(|redis| read_state(&mut redis.client, &redis.keys)).transpose()?;
        let in_memory = self.memory.as_ref().map(Memory::state);
        if let (Some(on_redis), Some(in_memory)) = (&on_redis, &in_memory)
            && on_redis != in_memory
        {
            return Err(format!("the places differ\n  on Redis  {on_redis:?}\n  in memory {in_memory:?}"));
        }
        Ok(on_redis.or(in_memory).expect("a world has a queue"))
    }

    pub fn push(&mut self, bytes: &[u8]) {
        if let Some(redis) = &mut self.redis {
            redis::cmd("RPUSH").arg(redis.keys.queue()).arg(bytes).exec(&mut redis.client).unwrap();
        }
        if let Some(memory) = &self.memory {
            memory.push([bytes]);
        }
    }

    /// Puts messages on the schedule of another service, due at these times in Unix seconds.
    pub fn leave_legacy(&mut self, messages: &[(i64, Vec<u8>)]) {
        for (due, bytes) in messages {
            if let Some(redis) = &mut self.redis {
                let key = legacy_key(&redis.keys);
                redis::cmd("ZADD").arg(&key).arg(due).arg(bytes.as_slice()).exec(&mut redis.client).unwrap();
            }
            if let Some(memory) = &self.memory {
                let mut state = memory.state();
                state.legacy.insert((*due, bytes.clone()));
                memory.roll_back(state);
            }
        }
    }

    /// The server forgets all scripts.
    pub fn flush_scripts(&mut self) {
        if let Some(redis) = &mut self.redis {
            redis::cmd("SCRIPT").arg("FLUSH").exec(&mut redis.client).unwrap();
        }
    }

    /// Remembers everything as it is, for [`World::roll_back`].
    pub fn take_snapshot(&mut self) -> Result<(), String> {
        let state = self.state()?;
        let dump = self.redis.as_mut().map(OnRedis::dump).unwrap_or_default();
        self.snapshot = Some((state, dump));
        Ok(())
    }

    /// Puts everything as it was at the last snapshot; false if there was none.
    pub fn roll_back(&mut self) -> bool {
        let Some((state, dump)) = self.snapshot.take() else { return false };
        if let Some(redis) = &mut self.redis {
            redis.restore(&dump);
        }
        if let Some(memory) = &self.memory {
            memory.roll_back(state);
        }
        true
    }

    /// FLUSHALL.
    pub fn flush(&mut self) {
        if let Some(redis) = &mut self.redis {
            redis.restore(&Dump::new());
        }
        if let Some(memory) = &self.memory {
            memory.roll_back(State::default());
        }
    }

    /// Leaves nothing behind on the server.
    pub fn clear(&mut self) {
        if let Some(redis) = &mut self.redis {
            redis.restore(&Dump::new());
            redis::cmd("DEL").arg(&redis.clock_key).exec(&mut redis.client).unwrap();
        }
    }
}

pub fn legacy_key(keys: &Keys) -> String {
    keys.queue().replace(".outbound_transport", ".outbound_retry")
}

/// Reads all keys in one step.
pub fn read_state(client: &mut redis::Connection, keys: &Keys) -> Result<State, String> {
    let mut pipe = redis::pipe();
    pipe.atomic().cmd("LRANGE").arg(keys.queue()).arg(0).arg(-1);
    pipe.cmd("GET").arg(keys.named("id"));
    for name in ["messages", "failures", "history", "recovered", "calls"] {
        pipe.cmd("HGETALL").arg(keys.named(name));
    }
    for name in ["inflight", "waiting", "lanes", "retry", "dead", "agents"] {
        pipe.cmd("ZRANGE").arg(keys.named(name)).arg(0).arg(-1).arg("WITHSCORES");
    }
    pipe.cmd("ZRANGE").arg(legacy_key(keys)).arg(0).arg(-1).arg("WITHSCORES");
    type Hash = BTreeMap<String, String>;
    type Scores = Vec<(String, f64)>;
    type Raw = (
        (Vec<Vec<u8>>, Option<u64>),
        (BTreeMap<String, Vec<u8>>, Hash, Hash, BTreeMap<String, u32>, Hash),
        (Scores, Scores, Scores, Scores, Scores, Scores),
        Vec<(Vec<u8>, f64)>,
    );
    let raw: Vec<redis::Value> = pipe.query(client).map_err(|error| error.to_string())?;
    let group = |from: usize, to: usize| redis::Value::Array(raw[from..to].to_vec());
    let whole = redis::Value::Array(vec![group(0, 2), group(2, 7), group(7, 13), raw[13].clone()]);
    let raw: Raw = redis::from_redis_value(whole).map_err(|error| error.to_string())?;
    let ((queue, last), (messages, failures, history, recovered, calls), scores, legacy) = raw;
    let (inflight, waiting, lanes, retry, dead, agents) = scores;

    let mut state = State { queue: queue.into(), last_number: last.unwrap_or(0), ..State::default() };
    state.legacy = legacy.into_iter().map(|(bytes, due)| (due as i64, bytes)).collect();
    for (key, bytes) in messages {
        state.messages.insert(id(&key)?, bytes);
    }
    for (origin, record) in failures {
        let mut words = record.splitn(3, ' ');
        let mut word = || words.next().ok_or(format!("failures of {origin}: {record:?}"));
        let failures = (number(word()?)? as u32, word()? == "s", word()?.to_string());
        state.failures.insert(origin, failures);
    }
    for (key, record) in history {
        let mut words = record.splitn(4, ' ');
        let mut word = || words.next().ok_or(format!("history of {key}: {record:?}"));
        let (attempts, own, stamp) = (number(word()?)? as u32, number(word()?)? as u32, word()?);
        let (stands_still, last_error) = (stamp.starts_with('+'), word()?.to_string());
        let first = number(stamp)? as i64;
        let record = Record { attempts, own_failures: own, first, stands_still, last_error };
        state.history.insert(id(&key)?, record);
    }
    for (key, n) in recovered {
        state.recovered.insert(id(&key)?, n);
    }
    if let Some(ordered) = calls.get("ordered") {
        state.orders = Orders::read(number(ordered)?, calls.get("orders").map_or("", String::as_str));
    }
    for (key, record) in calls {
        if let Some(agent) = key.strip_prefix('s') {
            let mut words = record.split(' ');
            let call = number(words.next().unwrap_or_default())?;
            let lost = words.map(id).collect::<Result<Vec<_>, _>>()?;
            state.settles.insert(agent_number(agent)?, (call, lost));
            continue;
        }
        if let Some(agent) = key.strip_prefix('l') {
            let (length, longest) = record.split_once(' ').ok_or(format!("calls of {key}: {record:?}"))?;
            state.lengths.insert(agent_number(agent)?, (number(length)?, number(longest)?));
            continue;
        }
        // What was counted changes nothing.
        if key == "ordered" || key == "orders" || key == "counts" {
            continue;
        }
        if key == "clock" {
            state.last_beat = number(&record)? as i64;
            continue;
        }
        if key == "recovered" {
            let numbers = record.split_terminator(' ').map(agent_number);
            state.recovered_agents = numbers.collect::<Result<Vec<_>, _>>()?;
            continue;
        }
        let mut words = record.split(' ');
        let call = number(words.next().unwrap_or_default())?;
        let mut taken = Vec::new();
        for word in words {
            let (digits, source) = word.split_at(word.len() - 1);
            let source = match source {
                "k" => Source::Queue,
                "o" => Source::Waiting { probe: false },
                "p" => Source::Waiting { probe: true },
                "r" => Source::Retry,
                _ => return Err(format!("calls of {key}: {record:?}")),
            };
            taken.push((id(digits)?, source));
        }
        state.claims.insert(agent_number(&key)?, (call, taken));
    }
    for (key, owner) in inflight {
        state.inflight.insert(id(&key)?, AgentNumber(owner as u64));
    }
    for (member, _) in waiting {
        let (origin, key) = member.split_once('\n').ok_or(format!("waiting: {member:?}"))?;
        state.waiting.insert((origin.to_string(), id(key)?));
    }
    state.lanes = lanes.into_iter().map(|(origin, due)| (origin, due as i64)).collect();
    for (key, due) in retry {
        state.retry.insert(id(&key)?, due as i64);
    }
    for (key, died) in dead {
        state.dead.insert(id(&key)?, died as i64);
    }
    for (key, lease) in agents {
        state.agents.insert(agent_number(&key)?, lease as i64);
    }
    Ok(state)
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("no number: {text:?}"))
}

/// Ids and agents' numbers have sixteen digits wherever they are written.
fn id(text: &str) -> Result<Id, String> {
    if text.len() != 16 {
        return Err(format!("not sixteen digits: {text:?}"));
    }
    Ok(Id(number(text)?))
}

fn agent_number(text: &str) -> Result<AgentNumber, String> {
    Ok(AgentNumber(id(text)?.0))
}

/// What must hold at every moment.
pub fn invariant(state: &State) -> Result<(), String> {
    let mut places: BTreeMap<Id, &str> = BTreeMap::new();
    let named = [
        ("inflight", state.inflight.keys().copied().collect::<Vec<_>>()),
        ("waiting", state.waiting.iter().map(|(_, id)| *id).collect()),
        ("retry", state.retry.keys().copied().collect()),
        ("dead", state.dead.keys().copied().collect()),
    ];
    for (place, ids) in named {
        for id in ids {
            if !state.messages.contains_key(&id) {
                return Err(format!("{id} is in {place} and not in messages"));
            }
            if let Some(other) = places.insert(id, place) {
                return Err(format!("{id} is in two places: {other} and {place}"));
            }
        }
    }
    if let Some(id) = state.messages.keys().find(|id| !places.contains_key(id)) {
        return Err(format!("{id} is in messages and in no place"));
    }
    let origins: BTreeSet<&String> = state.waiting.iter().map(|(origin, _)| origin).collect();
    let lanes: BTreeSet<&String> = state.lanes.keys().collect();
    if origins != lanes {
        return Err(format!("messages wait for {origins:?}, and lanes are {lanes:?}"));
    }
    if let Some((origin, due)) =
        state.lanes.iter().find(|(origin, due)| (**due == NEVER) != state.orders.is_paused(origin))
    {
        return Err(format!("{origin} may be tried at {due}, and orders are {:?}", state.orders));
    }
    if let Some(origin) = state.failures.keys().find(|origin| !state.lanes.contains_key(*origin)) {
        return Err(format!("failures are remembered of {origin}, which is not in lanes"));
    }
    let remembered = state.history.keys().chain(state.recovered.keys());
    for id in remembered {
        if !state.messages.contains_key(id) {
            return Err(format!("{id} is gone and still in history or recovered"));
        }
    }
    let highest = state.messages.keys().map(|id| id.0).chain(state.agents.keys().map(|agent| agent.0)).max();
    if highest > Some(state.last_number) {
        return Err(format!("the counter is {}, and a number given out {highest:?}", state.last_number));
    }
    for agent in state.claims.keys().chain(state.settles.keys()).chain(state.lengths.keys()) {
        if !state.agents.contains_key(agent) {
            return Err(format!("calls of agent {agent}, which is not registered"));
        }
    }
    Ok(())
}
