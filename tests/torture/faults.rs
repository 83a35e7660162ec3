//! The faults: what there is, whom it strikes, how it begins and how it ends. Each is applied to a
//! [`World`] and leaves an entry of when it was, so that what came twice can be explained by it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::agents::Slot;
use super::cuts::{self, Cut};
use super::losses::{Contents, Loss};
use super::proxy::{Flow, Proxy};
use super::recipients::{Mood, Recipient, Temper};
use super::rng::Rng;
use crate::support::{Agent, Redis, ms};

/// No lease longer than this is outlasted on purpose: a round would be nothing else.
const LONGEST_PAST: Duration = Duration::from_secs(10);
/// By how many seconds Redis's clock is stepped. One of less than a minute is taken for no step, and
/// may delay what was put off by as much.
const STEPS: [u64; 6] = [SMALL_STEP, 90, 600, 2 * 3_600, 86_400, 40 * 86_400];
pub const SMALL_STEP: u64 = 4;
/// Milliseconds between a claim and a loss after which the agent surely holds what it claimed.
const SURE: u64 = 200;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Fault {
    AgentKilled,
    AgentKilledForAWhile,
    AgentTold,
    AgentToldTwice,
    AgentFrozen,
    AgentFrozenPastLease,
    AgentStarved,
    ClockStepped,
    LinkHeld,
    LinkForgotten,
    LinkCutPastLease,
    LinkDelayed,
    AnswersHeld,
    CallsHeld,
    LinkReset,
    AnswerCut,
    LinkDropped,
    LinkDroppedPastLease,
    RedisKilled,
    RedisKilledForAWhile,
    RedisLoadsLong,
    ClientsKilled,
    RedisPaused,
    RedisAsleep,
    ScriptsFlushed,
    RedisFull,
    RedisReadOnly,
    DiskFull,
    RedisFailedOver,
    RedisFlushed,
    RedisClockStepped,
    RedisDropped,
    RecipientAway,
    RecipientHangs,
    RecipientBusy,
    RecipientCuts,
    RemoteHeld,
    RemoteForgotten,
    RemoteDelayed,
    RemoteReset,
    RemoteAnswerCut,
    RemoteDropped,
    EndpointPaused,
    EndpointTried,
    RetriedNow,
}

use Fault::*;

/// Each with how likely it is.
pub const ALL: [(Fault, u64); 45] = [
    (AgentKilled, 6),
    (AgentKilledForAWhile, 4),
    (AgentTold, 4),
    (AgentToldTwice, 2),
    (AgentFrozen, 4),
    (AgentFrozenPastLease, 5),
    (AgentStarved, 3),
    (ClockStepped, 5),
    (LinkHeld, 4),
    (LinkForgotten, 4),
    (LinkCutPastLease, 5),
    (LinkDelayed, 3),
    (AnswersHeld, 4),
    (CallsHeld, 3),
    (LinkReset, 4),
    (AnswerCut, 6),
    (LinkDropped, 6),
    (LinkDroppedPastLease, 4),
    (RedisKilled, 3),
    (RedisKilledForAWhile, 2),
    (RedisLoadsLong, 2),
    (ClientsKilled, 5),
    (RedisPaused, 3),
    (RedisAsleep, 3),
    (ScriptsFlushed, 4),
    (RedisFull, 3),
    (RedisReadOnly, 3),
    (DiskFull, 3),
    (RedisFailedOver, 6),
    (RedisFlushed, 2),
    (RedisClockStepped, 5),
    (RedisDropped, 4),
    (RecipientAway, 4),
    (RecipientHangs, 3),
    (RecipientBusy, 3),
    (RecipientCuts, 3),
    (RemoteHeld, 3),
    (RemoteForgotten, 2),
    (RemoteDelayed, 2),
    (RemoteReset, 3),
    (RemoteAnswerCut, 3),
    (RemoteDropped, 3),
    (EndpointPaused, 6),
    (EndpointTried, 3),
    (RetriedNow, 3),
];

impl Fault {
    pub fn name(self) -> &'static str {
        match self {
            AgentKilled => "agent: kill -9, started again at once",
            AgentKilledForAWhile => "agent: kill -9, started again later",
            AgentTold => "agent: SIGTERM, started again",
            AgentToldTwice => "agent: SIGTERM twice, started again",
            AgentFrozen => "agent: SIGSTOP for less than the lease",
            AgentFrozenPastLease => "agent: SIGSTOP for longer than the lease",
            AgentStarved => "agent: no file descriptors left",
            ClockStepped => "agent: wall clock stepped",
            LinkHeld => "agent-Redis: cut silently, all delivered late",
            LinkForgotten => "agent-Redis: cut silently, for ever",
            LinkCutPastLease => "agent-Redis: cut for longer than the lease",
            LinkDelayed => "agent-Redis: 200 ms slower",
            AnswersHeld => "agent-Redis: answers alone held or lost",
            CallsHeld => "agent-Redis: calls alone held or lost",
            LinkReset => "agent-Redis: connections reset",
            AnswerCut => "agent-Redis: reset in the middle of an answer",
            LinkDropped => "agent-Redis: packets dropped, both ways or one",
            LinkDroppedPastLease => "agent-Redis: packets dropped for longer than the lease",
            RedisKilled => "Redis: kill -9, started again at once",
            RedisKilledForAWhile => "Redis: kill -9, started again later",
            RedisLoadsLong => "Redis: kill -9, loads a large AOF",
            ClientsKilled => "Redis: CLIENT KILL of all",
            RedisPaused => "Redis: CLIENT PAUSE",
            RedisAsleep => "Redis: DEBUG SLEEP",
            ScriptsFlushed => "Redis: SCRIPT FLUSH",
            RedisFull => "Redis: maxmemory reached",
            RedisReadOnly => "Redis: read-only replica and back",
            DiskFull => "Redis: disk full",
            RedisFailedOver => "Redis: failover to a replica that missed the last writes",
            RedisFlushed => "Redis: FLUSHALL",
            RedisClockStepped => "Redis: wall clock stepped",
            RedisDropped => "Redis: packets of all dropped",
            RecipientAway => "recipient: refuses connections",
            RecipientHangs => "recipient: does not answer",
            RecipientBusy => "recipient: 503",
            RecipientCuts => "recipient: closes each connection",
            RemoteHeld => "agent-recipient: cut silently, all delivered late",
            RemoteForgotten => "agent-recipient: cut silently, for ever",
            RemoteDelayed => "agent-recipient: 200 ms slower",
            RemoteReset => "agent-recipient: connections reset",
            RemoteAnswerCut => "agent-recipient: reset in the middle of an answer",
            RemoteDropped => "agent-recipient: packets dropped",
            EndpointPaused => "operator: an endpoint paused, and resumed",
            EndpointTried => "operator: an endpoint tried",
            RetriedNow => "operator: all on the retry schedule tried",
        }
    }
}

impl Fault {
    /// Whether it takes a network of one's own.
    fn drops_packets(self) -> bool {
        matches!(self, LinkDropped | LinkDroppedPastLease | RedisDropped | RemoteDropped)
    }

    /// Whether what the agent holds, and Redis has no more, may end with it, or come too late.
    pub fn may_lose_held(self) -> bool {
        !matches!(self, AgentFrozen | AgentStarved | ClockStepped | LinkDelayed) && !self.is_an_order()
    }

    /// Whether an outcome may remain untold, so that a message comes a second time.
    pub fn may_repeat(self) -> bool {
        !matches!(self, ClockStepped | ScriptsFlushed | RedisClockStepped) && !self.is_an_order()
    }

    /// No fault of anybody: what an operator does must come amiss to nothing.
    fn is_an_order(self) -> bool {
        matches!(self, EndpointPaused | EndpointTried | RetriedNow)
    }

    /// Whether the agent stands still and goes on later in the middle of what it did.
    pub fn freezes(self) -> bool {
        matches!(self, AgentFrozen | AgentFrozenPastLease)
    }
}

/// Whom a fault strikes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    Agent(usize),
    Redis,
    Recipient(usize),
}

/// A fault that was injected.
#[derive(Clone, Debug)]
pub struct Injected {
    pub fault: Fault,
    pub scope: Scope,
    pub from: Instant,
    /// When it was over; `None` if it is not yet.
    pub to: Option<Instant>,
}

/// What is still to be done about a fault.
#[derive(Clone, Copy, Debug)]
enum Cure {
    LookBefore,
    FailOver,
    JoinAsReplica,
    Flush,
    StartAgent(usize),
    Thaw(usize),
    Feed(usize),
    MendLink(usize, bool),
    StartRedis,
    RedisStarts,
    Wake,
    LiftLimit,
    Promote,
    FreeDisk,
    MendRecipient(usize, bool),
    Resume(usize),
    Heal(Scope),
}

/// Redis as the faults have left it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RedisState {
    Well,
    /// Not running, loading, asleep, full, or on a full disk: not to be asked anything.
    Away,
    /// Answers, and refuses writes.
    ReadOnly,
    /// Answers, and is about to lose what it is told.
    Doomed,
}

/// A second Redis that follows the first, over a network that can be cut.
pub struct Replica {
    pub redis: Redis,
    link: Proxy,
}

impl Replica {
    /// Makes it follow.
    pub fn of(master: &Redis, redis: Redis) -> Replica {
        let replica = Replica { redis, link: Proxy::to(master.address().parse().expect("an address")) };
        replica.follow(master);
        replica
    }

    fn follow(&self, master: &Redis) {
        self.link.mend(true);
        self.link.lead_to(master.address().parse().expect("an address"));
        let (host, port) = (self.link.address().ip().to_string(), self.link.address().port().to_string());
        let told =
            self.redis.try_client().and_then(|mut client| redis::cmd("REPLICAOF").arg(&[host, port]).exec(&mut client));
        told.expect("the replica answers");
    }

    /// Whether it has all that its master has, on disk as well.
    fn is_ready(&self) -> bool {
        let info = self.redis.try_client().and_then(|mut client| redis::cmd("INFO").query::<String>(&mut client));
        info.is_ok_and(|info| {
            ["role:slave", "master_link_status:up", "aof_rewrite_in_progress:0", "aof_rewrite_scheduled:0"]
                .iter()
                .all(|line| info.lines().any(|said| said == *line))
        })
    }
}

/// What the faults strike.
pub struct World {
    pub redis: Redis,
    pub redis_state: RedisState,
    pub slots: Vec<Slot>,
    pub recipients: Vec<Recipient>,
    pub replica: Option<Replica>,
    /// Where the producer finds Redis, as after a failover a name would say.
    pub url: Arc<Mutex<String>>,
    /// Whether Redis's clock can be stepped.
    pub has_own_clock: bool,
    /// Whether what Redis loses may be lost: in strict order that would tell nothing about the order.
    pub may_lose: bool,
    pub losses: Vec<Loss>,
    /// Failovers to a replica whose clock was behind.
    pub n_behind: usize,
    before: Contents,
    /// The loss of which the old master still has to tell.
    untold: usize,
    /// A small file system of Redis's own, if there is one.
    pub disk: Option<PathBuf>,
    /// Whether Redis ends by itself when it cannot write (`appendfsync always`), and is then started again.
    pub always: bool,
    pub injected: Vec<Injected>,
    /// Whose packets are dropped.
    cuts: Vec<(Scope, Cut)>,
    cures: Vec<(Instant, Cure, usize)>,
}

impl World {
    pub fn new(redis: Redis, slots: Vec<Slot>, recipients: Vec<Recipient>) -> World {
        World {
            url: Arc::new(Mutex::new(redis.url())),
            replica: None,
            has_own_clock: false,
            may_lose: false,
            losses: Vec::new(),
            n_behind: 0,
            before: Contents::default(),
            untold: 0,
            redis,
            redis_state: RedisState::Well,
            slots,
            recipients,
            disk: None,
            always: true,
            injected: Vec::new(),
            cuts: Vec::new(),
            cures: Vec::new(),
        }
    }

    /// Injects one fault of a random kind where one can be; false if the kind chosen cannot be now.
    pub fn inject(&mut self, rng: &mut Rng) -> bool {
        let fault = rng.weighted(&ALL);
        let scope = match fault {
            AgentKilled | AgentKilledForAWhile | AgentTold | AgentToldTwice | AgentFrozen | AgentFrozenPastLease
            | AgentStarved => {
                let n = rng.index(self.slots.len());
                let is_too_long = fault == AgentFrozenPastLease && self.slots[n].lease > LONGEST_PAST;
                if !self.slots[n].is_running() || self.slots[n].troubled || is_too_long {
                    return false;
                }
                Scope::Agent(n)
            }
            ClockStepped => {
                let stepped: Vec<usize> = (0..self.slots.len())
                    .filter(|n| self.slots[*n].clock.is_some() && self.slots[*n].is_running())
                    .collect();
                if stepped.is_empty() {
                    return false;
                }
                Scope::Agent(stepped[rng.index(stepped.len())])
            }
            fault if fault.drops_packets() && !cuts::are_possible() => return false,
            LinkHeld | LinkForgotten | LinkCutPastLease | LinkDelayed | AnswersHeld | CallsHeld | LinkReset
            | AnswerCut | LinkDropped | LinkDroppedPastLease => {
                let n = rng.index(self.slots.len());
                let is_too_long =
                    matches!(fault, LinkCutPastLease | LinkDroppedPastLease) && self.slots[n].lease > LONGEST_PAST;
                if self.slots[n].cut_off || is_too_long {
                    return false;
                }
                Scope::Agent(n)
            }
            DiskFull if self.disk.is_none() => return false,
            RedisKilled | RedisKilledForAWhile | RedisLoadsLong if !self.always => return false,
            RedisFailedOver | RedisFlushed if !self.may_lose => return false,
            // With nobody at work all that was pushed would go, and tell nothing.
            RedisFlushed if !self.slots.iter().any(|slot| slot.is_running() && !slot.troubled && !slot.cut_off) => {
                return false;
            }
            RedisFailedOver if !self.replica.as_ref().is_some_and(Replica::is_ready) => return false,
            RedisClockStepped if !self.has_own_clock => return false,
            RedisKilled | RedisKilledForAWhile | RedisLoadsLong | ClientsKilled | RedisPaused | RedisAsleep
            | ScriptsFlushed | RedisFull | RedisReadOnly | DiskFull | RedisFailedOver | RedisFlushed
            | RedisClockStepped | RedisDropped | RetriedNow => {
                if self.redis_state != RedisState::Well {
                    return false;
                }
                Scope::Redis
            }
            EndpointPaused | EndpointTried => {
                if self.redis_state != RedisState::Well {
                    return false;
                }
                Scope::Recipient(rng.index(self.recipients.len()))
            }
            RecipientAway | RecipientHangs | RecipientBusy | RecipientCuts => {
                let n = rng.index(self.recipients.len());
                if self.recipients[n].troubled || matches!(self.recipients[n].temper, Temper::Dead | Temper::Wide) {
                    return false;
                }
                Scope::Recipient(n)
            }
            RemoteHeld | RemoteForgotten | RemoteDelayed | RemoteReset | RemoteAnswerCut | RemoteDropped => {
                let remote: Vec<usize> = (0..self.recipients.len())
                    .filter(|n| self.recipients[*n].proxy.is_some() && !self.recipients[*n].troubled)
                    .collect();
                if remote.is_empty() {
                    return false;
                }
                Scope::Recipient(remote[rng.index(remote.len())])
            }
        };
        self.injected.push(Injected { fault, scope, from: Instant::now(), to: None });
        match scope {
            Scope::Agent(n) => self.strike_agent(fault, n, rng),
            Scope::Redis => self.strike_redis(fault, rng),
            Scope::Recipient(n) => self.strike_recipient(fault, n, rng),
        }
        true
    }

    fn strike_agent(&mut self, fault: Fault, n: usize, rng: &mut Rng) {
        let slot = &mut self.slots[n];
        let lease = slot.lease.as_millis().min(10_000) as u64;
        let a_moment = ms(rng.between(1, 300));
        let a_while = ms(rng.between(lease / 3, lease * 2));
        match fault {
            AgentKilled => {
                slot.troubled = true;
                slot.kill9();
                self.later(a_moment, Cure::StartAgent(n));
            }
            AgentKilledForAWhile => {
                slot.troubled = true;
                slot.kill9();
                self.later(a_while, Cure::StartAgent(n));
            }
            AgentTold => {
                slot.term();
                self.later(a_moment, Cure::StartAgent(n));
            }
            AgentToldTwice => {
                slot.term();
                thread::sleep(ms(rng.between(0, 30)));
                slot.term();
                self.later(a_moment, Cure::StartAgent(n));
            }
            AgentFrozen => {
                slot.troubled = true;
                slot.freeze();
                self.later(ms(rng.between(50, lease * 9 / 10)), Cure::Thaw(n));
            }
            AgentFrozenPastLease => {
                slot.troubled = true;
                slot.freeze();
                self.later(ms(rng.between(lease * 4 / 3, lease * 5 / 2)), Cure::Thaw(n));
            }
            AgentStarved => {
                slot.troubled = true;
                slot.starve(Some(rng.index(4)));
                self.later(ms(rng.between(300, 2500)), Cure::Feed(n));
            }
            ClockStepped => {
                let far = [1, 30, 3600, 86_400 * 400][rng.index(4)];
                slot.step_clock(if rng.percent(50) { far } else { -far });
                self.over();
            }
            LinkReset => {
                slot.proxy.reset_all();
                self.over();
            }
            AnswerCut => {
                slot.cut_off = true;
                slot.proxy.reset_after(rng.between(1, 20_000) as usize);
                self.later(ms(1500), Cure::MendLink(n, false));
            }
            LinkDropped | LinkDroppedPastLease => {
                slot.cut_off = true;
                let (to, from) = [(true, true), (true, true), (true, false), (false, true)][rng.index(4)];
                self.cuts.push((Scope::Agent(n), Cut::of_port(slot.proxy.address(), to, from)));
                let dropped_for = match fault {
                    LinkDropped => rng.between(200, lease * 2),
                    _ => rng.between(lease * 3 / 2, lease * 3),
                };
                self.later(ms(dropped_for), Cure::Heal(Scope::Agent(n)));
            }
            _ => {
                slot.cut_off = true;
                let (towards, back) = flows_of(fault);
                slot.proxy.set(towards, back);
                let forget = match fault {
                    LinkForgotten => true,
                    AnswersHeld | CallsHeld | LinkCutPastLease => rng.percent(50),
                    _ => false,
                };
                let cut_for = match fault {
                    LinkCutPastLease => rng.between(lease * 3 / 2, lease * 3),
                    _ => rng.between(200, lease * 2),
                };
                self.later(ms(cut_for), Cure::MendLink(n, forget));
            }
        }
    }

    fn strike_redis(&mut self, fault: Fault, rng: &mut Rng) {
        match fault {
            RedisKilled | RedisKilledForAWhile => {
                self.redis.kill9();
                self.redis_state = RedisState::Away;
                let away = if fault == RedisKilled { 10 } else { rng.between(500, 7_000) };
                self.later(ms(away), Cure::StartRedis);
            }
            RedisLoadsLong => {
                // Some old servers take nothing below zero: there it loads as fast as it can.
                let mut delay = redis::cmd("CONFIG");
                delay.arg("SET").arg("key-load-delay").arg(self.load_delay());
                let _ = self.redis.try_client().and_then(|mut client| delay.exec(&mut client));
                self.command(&["CONFIG", "REWRITE"]);
                self.redis.kill9();
                self.redis_state = RedisState::Away;
                self.later(ms(10), Cure::StartRedis);
            }
            ClientsKilled => {
                self.command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
                self.over();
            }
            RedisPaused => {
                let pause = rng.between(200, 7_000);
                self.command(&["CLIENT", "PAUSE", &pause.to_string(), if rng.percent(70) { "ALL" } else { "WRITE" }]);
                self.redis_state = RedisState::Away;
                self.later(ms(pause + 50), Cure::Wake);
            }
            RedisAsleep => {
                let pause = rng.between(200, 7_000);
                if let Ok(mut client) = self.redis.try_client() {
                    let sleep = format!("{:.3}", pause as f64 / 1000.0);
                    thread::spawn(move || redis::cmd("DEBUG").arg(&["SLEEP", &sleep]).exec(&mut client));
                }
                self.redis_state = RedisState::Away;
                self.later(ms(pause + 50), Cure::Wake);
            }
            ScriptsFlushed => {
                self.command(&["SCRIPT", "FLUSH"]);
                self.over();
            }
            RedisFull => {
                self.command(&["CONFIG", "SET", "maxmemory", "1"]);
                self.redis_state = RedisState::Away;
                self.later(ms(rng.between(300, 4_000)), Cure::LiftLimit);
            }
            RedisReadOnly => {
                self.command(&["REPLICAOF", "127.0.0.1", "1"]);
                self.redis_state = RedisState::ReadOnly;
                self.later(ms(rng.between(100, 4_000)), Cure::Promote);
            }
            DiskFull => {
                self.fill_disk();
                self.redis_state = RedisState::Away;
                self.later(ms(rng.between(300, 3_000)), Cure::FreeDisk);
            }
            RedisFailedOver => {
                let replica = self.replica.as_ref().expect("it was ready");
                replica.link.set(Flow::Hold, Flow::Hold);
                self.redis_state = RedisState::Doomed;
                let misses = rng.between(250, 1_500);
                self.later(ms(misses), Cure::FailOver);
                self.later(ms(misses - SURE), Cure::LookBefore);
                if self.has_own_clock && rng.percent(50) {
                    self.n_behind += 1;
                    let behind = STEPS[rng.index(STEPS.len())];
                    self.replica.as_mut().expect("it was ready").redis.set_clock(&format!("-{behind}"));
                }
            }
            RedisFlushed => {
                self.redis_state = RedisState::Doomed;
                self.later(ms(SURE), Cure::Flush);
                self.later(ms(0), Cure::LookBefore);
            }
            RedisClockStepped => {
                let far = STEPS[rng.index(STEPS.len())];
                self.redis.set_clock(&format!("{}{far}", if rng.percent(50) { "+" } else { "-" }));
                self.over();
            }
            RetriedNow => {
                self.order(&["retry", "now", "--all"]);
                self.over();
            }
            RedisDropped => {
                let address = self.redis.address().parse().expect("an address");
                self.cuts.push((Scope::Redis, Cut::of_port(address, true, true)));
                self.redis_state = RedisState::Away;
                self.later(ms(rng.between(300, 7_000)), Cure::Heal(Scope::Redis));
            }
            _ => unreachable!("{fault:?} does not strike Redis"),
        }
    }

    fn strike_recipient(&mut self, fault: Fault, n: usize, rng: &mut Rng) {
        let a_while = ms(rng.between(200, 4_000));
        if fault.is_an_order() {
            let hand = if fault == EndpointPaused { "pause" } else { "try" };
            self.order(&["endpoint", hand, &self.recipients[n].endpoint]);
            if fault == EndpointPaused {
                self.later(a_while, Cure::Resume(n));
            } else {
                self.over();
            }
            return;
        }
        let recipient = &mut self.recipients[n];
        if fault == RemoteReset {
            recipient.proxy.as_ref().expect("a remote one").reset_all();
            self.over();
            return;
        }
        recipient.troubled = true;
        match fault {
            RemoteDropped => {
                let address = recipient.proxy.as_ref().expect("a remote one").address();
                self.cuts.push((Scope::Recipient(n), Cut::of_port(address, true, true)));
                self.later(a_while, Cure::Heal(Scope::Recipient(n)));
                return;
            }
            RecipientAway => recipient.stop(),
            RecipientHangs => recipient.set_mood(Mood::Hanging),
            RecipientBusy => recipient.set_mood(Mood::Busy),
            RecipientCuts => recipient.cut_on_accept(true),
            RemoteAnswerCut => {
                recipient.proxy.as_ref().expect("a remote one").reset_after(rng.between(1, 400) as usize);
            }
            _ => {
                let (towards, back) = flows_of(fault);
                recipient.proxy.as_ref().expect("a remote one").set(towards, back);
            }
        }
        self.later(a_while, Cure::MendRecipient(n, fault == RemoteForgotten));
    }

    /// Does what is due; what should not be.
    pub fn turn(&mut self) -> Vec<String> {
        let now = Instant::now();
        let (mut due, rest): (Vec<_>, Vec<_>) = self.cures.drain(..).partition(|(at, ..)| *at <= now);
        self.cures = rest;
        due.sort_by_key(|(at, ..)| *at);
        for (_, cure, injected) in due {
            self.cure(cure, injected);
        }
        self.slots.iter_mut().filter_map(Slot::watch).collect()
    }

    fn cure(&mut self, cure: Cure, injected: usize) {
        match cure {
            Cure::StartAgent(n) => {
                let slot = &mut self.slots[n];
                if !slot.has_ended() {
                    // Told to end and not yet gone.
                    self.cures.push((Instant::now() + ms(20), cure, injected));
                    return;
                }
                slot.troubled = false;
                slot.start();
            }
            Cure::Thaw(n) => {
                self.slots[n].thaw();
                self.slots[n].troubled = false;
            }
            Cure::Feed(n) => {
                self.slots[n].starve(None);
                self.slots[n].troubled = false;
            }
            Cure::MendLink(n, forget) => {
                self.slots[n].proxy.mend(forget);
                self.slots[n].cut_off = false;
            }
            Cure::Heal(whose) => {
                self.cuts.retain(|(scope, _)| *scope != whose);
                match whose {
                    Scope::Agent(n) => self.slots[n].cut_off = false,
                    Scope::Redis => self.redis_state = RedisState::Well,
                    Scope::Recipient(n) => self.recipients[n].mend(),
                }
            }
            Cure::StartRedis => {
                self.redis.restart_without_waiting();
                self.cures.push((Instant::now() + ms(20), Cure::RedisStarts, injected));
                return;
            }
            Cure::RedisStarts => {
                if !self.answers() {
                    self.cures.push((Instant::now() + ms(20), cure, injected));
                    return;
                }
                if self.injected[injected].fault == RedisLoadsLong {
                    self.command(&["CONFIG", "SET", "key-load-delay", "0"]);
                    self.command(&["CONFIG", "REWRITE"]);
                }
                self.redis_state = RedisState::Well;
            }
            Cure::LookBefore => {
                self.before = Contents::of(&self.redis).expect("Redis answers");
                return;
            }
            Cure::FailOver => {
                self.fail_over();
                self.cures.push((Instant::now() + ms(20), Cure::JoinAsReplica, injected));
                return;
            }
            Cure::JoinAsReplica => {
                if !self.join_as_replica() {
                    self.cures.push((Instant::now() + ms(20), cure, injected));
                    return;
                }
            }
            Cure::Flush => {
                let last = Contents::of(&self.redis).expect("Redis answers");
                self.command(&["FLUSHALL"]);
                let loss = Loss::new(Instant::now(), BTreeSet::new(), &self.before, &last, &self.slots);
                self.losses.push(loss);
                self.redis_state = RedisState::Well;
            }
            Cure::Wake => self.redis_state = RedisState::Well,
            Cure::LiftLimit => {
                self.command(&["CONFIG", "SET", "maxmemory", "0"]);
                self.redis_state = RedisState::Well;
            }
            Cure::Promote => {
                self.command(&["REPLICAOF", "NO", "ONE"]);
                self.redis_state = RedisState::Well;
            }
            Cure::FreeDisk => {
                self.free_disk();
                if self.always && !self.answers() {
                    // It ended by itself, for it could not write what it had promised to.
                    self.redis.kill9();
                    self.redis.restart_without_waiting();
                }
                self.cures.push((Instant::now() + ms(20), Cure::RedisStarts, injected));
                return;
            }
            Cure::Resume(n) => {
                let is_well = self.redis_state == RedisState::Well;
                if !is_well || !self.order(&["endpoint", "resume", &self.recipients[n].endpoint]) {
                    self.cures.push((Instant::now() + ms(100), cure, injected));
                    return;
                }
            }
            Cure::MendRecipient(n, forget) => {
                if let Some(proxy) = &self.recipients[n].proxy {
                    proxy.mend(forget);
                }
                self.recipients[n].mend();
            }
        }
        self.injected[injected].to = Some(Instant::now());
    }

    /// The replica takes over, with what it has. The old master starts again, aside, to tell what it had.
    fn fail_over(&mut self) {
        let replica = self.replica.as_mut().expect("there is one");
        self.redis.kill9();
        let at = Instant::now();
        std::mem::swap(&mut self.redis, &mut replica.redis);
        replica.link.reset_all();
        self.command(&["REPLICAOF", "NO", "ONE"]);
        let left = Contents::of(&self.redis).expect("the new master answers").all;
        self.untold = self.losses.len();
        self.losses.push(Loss { at, left, held: BTreeMap::new() });
        let address = self.redis.address().parse().expect("an address");
        for slot in &self.slots {
            slot.proxy.lead_to(address);
            slot.proxy.reset_all();
        }
        *self.url.lock().expect("nothing panics with it") = self.redis.url();
        self.redis_state = RedisState::Well;
        self.replica.as_mut().expect("there is one").redis.restart_without_waiting();
    }

    /// The old master tells what it had, and follows the new one; false if it has not started yet.
    fn join_as_replica(&mut self) -> bool {
        let replica = self.replica.as_mut().expect("there is one");
        let Ok(last) = Contents::of(&replica.redis) else { return false };
        if self.has_own_clock {
            replica.redis.set_clock("+0");
        }
        replica.follow(&self.redis);
        let loss = &mut self.losses[self.untold];
        let left = std::mem::take(&mut loss.left);
        *loss = Loss::new(loss.at, left, &self.before, &last, &self.slots);
        true
    }

    /// What Redis is to wait for each command that it loads, for it to take about five seconds: so many
    /// microseconds, or, below zero, one for each so many commands, which is sixty by the time it wakes.
    fn load_delay(&self) -> String {
        let bytes: u64 =
            self.redis.info("persistence", "aof_current_size").ok().and_then(|n| n.parse().ok()).unwrap_or(0);
        // Commands of a move are of 125 bytes in the middle.
        let seconds = bytes / 125 * 60 / 1_000_000;
        if seconds < 10 { "50".to_string() } else { format!("-{}", seconds / 5) }
    }

    /// Whether every fault is over.
    pub fn is_whole(&self) -> bool {
        self.cures.is_empty()
    }

    /// Brings all that is still to be cured forward to now.
    pub fn hurry(&mut self) {
        let now = Instant::now();
        for (at, cure, _) in &mut self.cures {
            // A pause ends by itself and not before.
            if !matches!(cure, Cure::Wake | Cure::LookBefore | Cure::FailOver | Cure::Flush) {
                *at = now;
            }
        }
    }

    fn later(&mut self, after: Duration, cure: Cure) {
        self.cures.push((Instant::now() + after, cure, self.injected.len() - 1));
    }

    /// The last fault was over as soon as it was there.
    fn over(&mut self) {
        let last = self.injected.last_mut().expect("one was injected");
        last.to = Some(Instant::now());
    }

    fn command(&self, words: &[&str]) {
        let done =
            self.redis.try_client().and_then(|mut client| redis::cmd(words[0]).arg(&words[1..]).exec(&mut client));
        if let Err(error) = done {
            panic!("cannot tell Redis {words:?}: {error}");
        }
    }

    /// Has an operator do something; false if Redis could not be asked. That there was nothing such is well.
    pub fn order(&self, words: &[&str]) -> bool {
        let mut command = Agent::command();
        command.args(words).args(["-oq", &self.redis.url()]);
        let output = command.output().expect("the binary can be started");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        output.status.success() || said.contains("is not paused") || said.contains("no endpoint is paused")
    }

    /// Whether Redis answers and writes what it is told.
    fn answers(&self) -> bool {
        let answer = self.redis.try_client().and_then(|mut client| {
            redis::cmd("SET").arg(&["torture", "1"]).exec(&mut client)?;
            redis::cmd("DEL").arg("torture").exec(&mut client)
        });
        answer.is_ok()
    }

    fn fill_disk(&self) {
        let Some(disk) = &self.disk else { return };
        let mut filler = fs::File::create(disk.join("filler")).expect("a file can be made");
        let piece = vec![0; 1 << 20];
        while filler.write_all(&piece).is_ok() {}
        while filler.write_all(&piece[..512]).is_ok() {}
    }

    pub fn free_disk(&self) {
        if let Some(disk) = &self.disk {
            let _ = fs::remove_file(disk.join("filler"));
        }
    }
}

fn flows_of(fault: Fault) -> (Flow, Flow) {
    match fault {
        AnswersHeld => (Flow::Pass, Flow::Hold),
        CallsHeld => (Flow::Hold, Flow::Pass),
        LinkDelayed | RemoteDelayed => (Flow::Delay(ms(100)), Flow::Delay(ms(100))),
        _ => (Flow::Hold, Flow::Hold),
    }
}
