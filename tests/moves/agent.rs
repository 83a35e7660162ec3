//! An agent in simulated time: the lanes, the claiming, the outbox and the judgements of the product, and
//! around them the threads' calls of the queue, cut into the steps between which other threads and other
//! agents may act. An answer is one step from the queue and another into the agent, so everything can happen
//! in between.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use acapy_deliver::envelope::Envelope;
use acapy_deliver::internals::claiming::{Call, Claiming, Next, taken_over};
use acapy_deliver::internals::lanes::{Claim, Effects, Lanes, Limits};
use acapy_deliver::internals::orders::Orders;
use acapy_deliver::internals::outbox::{Held, Outbox};
use acapy_deliver::internals::peers::{Peers, between_beats};
use acapy_deliver::internals::policy::{self, Attempt, Outcome, Retry};
use acapy_deliver::queue::{
    AgentNumber, Beat, Claimed, Fate, History, Id, Joined, Kept, LaneChange, Peer, Place, RawClaim, Settlement,
    WaitingLane,
};

use crate::attack::{Net, Rng, Rules};
use crate::world::{Answer, Move};

/// Nothing here is put off for longer.
const LONGEST: Duration = Duration::from_secs(2 * 3600);

/// Why a step came to nothing.
pub enum Stop {
    /// The connection broke: the queue may have made the move or not.
    Cut,
    /// The queue did what it must not.
    Broken(String),
}

impl From<String> for Stop {
    fn from(why: String) -> Stop {
        Stop::Broken(why)
    }
}

/// What the agent tells the ledger.
pub trait Ledger {
    /// A claim has arrived in the agent.
    fn claimed(&mut self, claim: &RawClaim) -> Result<(), String>;
    /// An attempt begins; what it will come to. What operators ordered until `heard` is known here.
    fn begin(&mut self, claim: &Claim, heard: Instant) -> Result<Attempt, String>;
    /// A message was judged dead.
    fn buried(&mut self, bytes: &[u8]);
    /// The audit found messages that the queue holds for this agent, and the agent does not.
    fn strays(&mut self, ids: &[Id]) -> Result<(), String>;
    /// Another agent's messages are about to be taken back.
    fn recovers(&mut self, dead: &Peer, now: Instant) -> Result<(), String>;
}

/// What the reader has in hand.
enum Reading {
    Nothing,
    Answer(Call, Claimed),
    Known(Call, Claimed, Vec<WaitingLane>),
    Strays(AgentNumber, Vec<Id>),
}

/// What the settler has in hand.
enum Settling {
    Nothing,
    Confirmed(Vec<Id>),
    Joined(Joined, Option<AgentNumber>, Instant),
}

struct Busy {
    claim: Box<Claim>,
    begun: Instant,
    attempt: Attempt,
}

pub struct SimAgent {
    rules: Rules,
    limits: Limits,
    retry: Retry,
    lanes: Lanes,
    ready: VecDeque<Box<Claim>>,
    busy: Vec<Busy>,
    /// What the threads share: the number, and when the last confirmed beat was sent.
    shared_number: Option<AgentNumber>,
    beat_sent: Option<Instant>,
    // The reader's.
    claiming: Claiming,
    reading: Reading,
    /// When it asked for orders last, of what it has taken in.
    heard: Instant,
    /// When the last claim was sent, again or not.
    claim_sent: Instant,
    // The settler's.
    settler_number: Option<AgentNumber>,
    outbox: Outbox,
    settling: Settling,
    pub next_beat: Instant,
    lease: Duration,
    /// The highest number seen.
    seen: u64,
    peers: Peers,
    /// Not killed and not stopped.
    pub alive: bool,
    pub frozen_until: Option<Instant>,
    /// It runs, and nothing it sends arrives in time.
    pub cut_off_until: Option<Instant>,
}

impl SimAgent {
    pub fn new(rules: Rules, limits: Limits, retry: Retry, seed: u64, now: Instant) -> SimAgent {
        SimAgent {
            lanes: Lanes::new(limits.clone(), seed),
            limits,
            retry,
            ready: VecDeque::new(),
            busy: Vec::new(),
            shared_number: None,
            beat_sent: None,
            claiming: Claiming::new(now),
            reading: Reading::Nothing,
            heard: now,
            claim_sent: now,
            settler_number: None,
            outbox: Outbox::default(),
            settling: Settling::Nothing,
            next_beat: now,
            peers: Peers::new(rules.peers.clone()),
            lease: rules.leases[seed as usize % 3],
            seen: 0,
            alive: true,
            frozen_until: None,
            cut_off_until: None,
            rules,
        }
    }

    pub fn lease(&self) -> Duration {
        self.lease
    }

    pub fn number(&self) -> Option<AgentNumber> {
        self.shared_number
    }

    pub fn is_awake(&self, now: Instant) -> bool {
        self.alive && self.frozen_until.is_none_or(|until| until <= now)
    }

    pub fn is_cut_off(&self, now: Instant) -> bool {
        self.cut_off_until.is_some_and(|until| until > now)
    }

    /// What it holds, until the queue has confirmed what became of it.
    pub fn held(&self) -> Vec<Id> {
        self.lanes.held().into_iter().chain(self.outbox.unconfirmed().map(|one| one.id)).collect()
    }

    /// The same without what the queue may have been told already: that is the queue's to lose.
    pub fn surely_held(&self) -> Vec<Id> {
        let told: HashSet<Id> = self.outbox.sent().map(|one| one.id).collect();
        self.held().into_iter().filter(|id| !told.contains(id)).collect()
    }

    /// Nothing held, nothing unconfirmed.
    pub fn is_idle(&self) -> bool {
        self.busy.is_empty() && self.ready.is_empty() && self.outbox.is_empty()
    }

    /// For a failure's message.
    pub fn describe(&self) -> String {
        let reading = match &self.reading {
            Reading::Nothing => "nothing",
            Reading::Answer(..) => "an answer",
            Reading::Known(..) => "lanes",
            Reading::Strays(..) => "strays",
        };
        format!(
            "agent {:?} alive {} held {:?} ready {} busy {} unconfirmed {} reader has {reading}, {:?}; {:?}",
            self.shared_number.map(|n| n.0),
            self.alive,
            self.lanes.held(),
            self.ready.len(),
            self.busy.len(),
            self.outbox.unconfirmed().count(),
            self.claiming,
            self.lanes.counts(),
        )
    }

    // ---- the reader ----

    /// One step of the reader.
    pub fn read(&mut self, net: &mut Net, ledger: &mut dyn Ledger, rng: &mut Rng) -> Result<(), Stop> {
        let now = net.now;
        match std::mem::replace(&mut self.reading, Reading::Nothing) {
            Reading::Nothing => self.claim(net, rng),
            Reading::Strays(number, ids) => {
                let strays: Vec<Id> = ids.into_iter().filter(|id| !self.lanes.holds(*id)).collect();
                self.claiming.audited(now);
                if !strays.is_empty() {
                    let answer = net.send(Move::GiveBack(number, strays.clone()), rng);
                    if let Err(Stop::Cut) = answer {
                        self.claiming.doubt(now);
                    }
                    // Under a number that it has no more, others take them back as well.
                    if answer? != Answer::Count(0) && self.shared_number == Some(number) {
                        ledger.strays(&strays)?;
                    }
                }
                Ok(())
            }
            Reading::Answer(call, claimed) => {
                let learns_lanes = self.claiming.answered(&claimed);
                match claimed {
                    // The settler hears of it, and joins again.
                    Claimed::Gone => self.next_beat = now,
                    Claimed::Standby => {}
                    Claimed::Taken { .. } if learns_lanes => match net.send(Move::Lanes, rng) {
                        Ok(Answer::Lanes(lanes)) => self.reading = Reading::Known(call, claimed, lanes),
                        Ok(other) => return Err(Stop::Broken(format!("lanes answer {other:?}"))),
                        // The call is answered again.
                        Err(stop) => {
                            self.claiming.doubt(now);
                            return Err(stop);
                        }
                    },
                    Claimed::Taken { .. } => return self.admit(call, claimed, now, ledger),
                }
                Ok(())
            }
            Reading::Known(call, claimed, lanes) => {
                self.lanes.learn(&lanes, call.asked, now);
                self.admit(call, claimed, now, ledger)
            }
        }
    }

    fn claim(&mut self, net: &mut Net, rng: &mut Rng) -> Result<(), Stop> {
        let now = net.now;
        match self.claiming.next(self.shared_number, now) {
            Next::Register => return Ok(()),
            Next::Audit(number) => match net.send(Move::InFlight(number), rng)? {
                Answer::Ids(ids) => {
                    self.reading = Reading::Strays(number, ids);
                    return Ok(());
                }
                other => return Err(Stop::Broken(format!("in_flight answers {other:?}"))),
            },
            Next::Claim => {}
        }
        let mut effects = Effects::default();
        let bounds = self.lanes.appetite(self.claiming.is_again(), now, &mut effects);
        self.perform(effects);
        let Some(mut bounds) = bounds else {
            let Answer::Orders(orders) = net.send(Move::Orders, rng)? else {
                return Err(Stop::Broken("orders answer something else".to_string()));
            };
            self.obey(orders, now);
            self.heard = now;
            return Ok(());
        };
        // Smaller bounds than the lanes ask for, so that they matter with few messages.
        if rng.chance(0.5) {
            bounds.messages = bounds.messages.min(rng.between(1, 6));
            bounds.returning = if rng.chance(0.5) { bounds.messages.div_ceil(2) } else { bounds.messages / 2 };
            bounds.bytes = bounds.bytes.min(*rng.pick(&[1, 100, 300, 1000]));
        }
        bounds.seen = self.seen;
        let call = self.claiming.call(now).expect("it is registered");
        self.claim_sent = now;
        match net.send(Move::Claim { me: call.agent, call: call.number, again: call.again, bounds }, rng) {
            Ok(Answer::Claimed(claimed)) => {
                self.reading = Reading::Answer(call, claimed);
                Ok(())
            }
            Ok(other) => Err(Stop::Broken(format!("claim answers {other:?}"))),
            Err(stop) => {
                self.claiming.doubt(now);
                Err(stop)
            }
        }
    }

    fn admit(&mut self, call: Call, claimed: Claimed, now: Instant, ledger: &mut dyn Ledger) -> Result<(), Stop> {
        let Claimed::Taken { claims, emptied, failures, oversized, numbered, orders, .. } = claimed else {
            unreachable!("looked at before")
        };
        if let Some(orders) = orders {
            self.obey(orders, now);
        }
        // When it was sent last: one that is sent again is answered with the orders of then.
        self.heard = self.heard.max(self.claim_sent);
        self.claiming.admitted();
        let highest = claims.iter().map(|claim| claim.id.0).chain(oversized.iter().map(|(id, _)| id.0)).max();
        self.seen = self.seen.max(highest.unwrap_or(0)).max(numbered);
        let mut decoded = Vec::new();
        for claim in claims {
            ledger.claimed(&claim)?;
            decoded.push(self.decode(claim, call.agent, now, ledger));
        }
        if self.shared_number != Some(call.agent) {
            return Ok(());
        }
        for origin in &emptied {
            self.lanes.emptied(origin, call.asked);
        }
        for failed in &failures {
            self.lanes.has_failed(failed, now);
        }
        let mut effects = Effects::default();
        for claim in decoded {
            match claim {
                Ok(claim) => self.lanes.admit(Box::new(claim), now, &mut effects),
                Err(unreadable) => {
                    self.lanes.admit_unreadable(&unreadable);
                    effects.settlements.push(unreadable);
                }
            }
        }
        self.perform(effects);
        Ok(())
    }

    fn decode(
        &self,
        raw: RawClaim,
        number: AgentNumber,
        now: Instant,
        ledger: &mut dyn Ledger,
    ) -> Result<Claim, Settlement> {
        let RawClaim { id, bytes, history, recovered, source } = raw;
        match Envelope::decode(bytes.clone()) {
            Ok(envelope) => Ok(Claim::new(id, envelope, history, recovered, source, number, now)),
            Err(malformed) => {
                ledger.buried(&bytes);
                let kept = Some(Kept { agent: number, bytes: Arc::new(bytes) });
                let history = History { last_error: format!("undecodable: {malformed}"), ..history };
                Err(Settlement { id, origin: Arc::from(""), place: Place::Dead, history, kept })
            }
        }
    }

    fn obey(&mut self, orders: Orders, now: Instant) {
        if self.rules.goes_by_no_orders {
            return;
        }
        let mut effects = Effects::default();
        self.lanes.obey(orders, now, &mut effects);
        while self.lanes.put_away(3, now, &mut effects) {}
        self.perform(effects);
    }

    fn perform(&mut self, effects: Effects) {
        effects.settlements.into_iter().for_each(|one| self.outbox.settle(one));
        effects.changes.into_iter().for_each(|one| self.outbox.change(one));
        self.ready.extend(effects.ready);
    }

    // ---- the workers ----

    fn is_beat_fresh(&self, now: Instant) -> bool {
        self.beat_sent.is_some_and(|sent| sent + self.lease * 2 / 3 > now)
    }

    /// A worker takes the next claim and begins, if it may.
    pub fn begin(&mut self, now: Instant, ledger: &mut dyn Ledger) -> Result<(), Stop> {
        if self.busy.len() >= self.limits.workers {
            return Ok(());
        }
        let Some(claim) = self.ready.front() else { return Ok(()) };
        if self.shared_number != Some(claim.agent) && self.lanes.is_discarded(claim) {
            let claim = self.ready.pop_front().expect("just seen");
            let mut effects = Effects::default();
            self.lanes.abandon(claim, now, &mut effects);
            self.perform(effects);
            return Ok(());
        }
        if !self.is_beat_fresh(now) && !self.rules.begins_without_a_lease {
            return Ok(());
        }
        let claim = self.ready.pop_front().expect("just seen");
        if self.lanes.is_paused(&claim) && !self.rules.begins_what_was_let_out {
            let mut effects = Effects::default();
            self.lanes.withdraw(claim, now, &mut effects);
            self.perform(effects);
            return Ok(());
        }
        let attempt = ledger.begin(&claim, self.heard)?;
        self.busy.push(Busy { claim, begun: now, attempt });
        Ok(())
    }

    /// An attempt, any of those under way, comes to its end.
    pub fn finish(&mut self, now: Instant, ledger: &mut dyn Ledger, rng: &mut Rng) {
        if self.busy.is_empty() {
            return;
        }
        let Busy { claim, begun, attempt } = self.busy.swap_remove(rng.below(self.busy.len()));
        let outcome = policy::judge(&attempt, &claim.history_at(now), &self.retry);
        if matches!(outcome, Outcome::Dead { .. }) {
            ledger.buried(claim.envelope.raw());
        }
        let mut effects = Effects::default();
        self.lanes.finish(claim, outcome, None, begun, now, &mut effects);
        self.perform(effects);
    }

    // ---- the settler ----

    /// One step of the settler.
    pub fn settle(&mut self, net: &mut Net, rng: &mut Rng) -> Result<(), Stop> {
        let now = net.now;
        match std::mem::replace(&mut self.settling, Settling::Nothing) {
            Settling::Confirmed(lost) => {
                let lost = if self.rules.lets_go_of_what_is_lost { Vec::new() } else { lost };
                self.lanes.confirmed(&self.outbox.confirmed(lost), now);
                Ok(())
            }
            Settling::Joined(Joined { number, old: fate, .. }, old, sent) => {
                let fate = match fate {
                    Fate::Recovered if self.rules.trusts_its_memory => Fate::Unknown,
                    fate => fate,
                };
                let held = self.lanes.held();
                let Answer::Has(known) = net.send(Move::Has(held.clone()), rng)? else {
                    return Err(Stop::Broken("has answers something else".to_string()));
                };
                let known: HashSet<Id> =
                    held.into_iter().zip(known).filter(|(_, known)| *known).map(|(id, _)| id).collect();
                self.outbox.joined(old, fate);
                self.seen = self.seen.max(number.0);
                self.settler_number = Some(number);
                self.peers.clear();
                let mut effects = Effects::default();
                let drops = self.rules.drops_what_it_holds;
                let others = taken_over(old, fate, |id| known.contains(&id));
                let is_theirs = |id: Id, agent| drops || others(id, agent);
                self.lanes.discard(is_theirs, now, &mut effects);
                self.shared_number = Some(number);
                self.perform(effects);
                self.beat_sent = Some(sent);
                self.next_beat = now;
                Ok(())
            }
            Settling::Nothing => {
                let Some(number) = self.settler_number else { return self.join(net, rng) };
                let (messages, theirs) = self.outbox.to_restore(usize::MAX, usize::MAX);
                self.lanes.confirmed(&theirs, now);
                if !messages.is_empty() {
                    return self.restore(number, messages, net, rng);
                }
                // Now and then less than there is, as with more than fits into a call.
                let at_most =
                    if rng.chance(0.3) { rng.between(1, self.outbox.n_waiting().max(2) - 1) } else { usize::MAX };
                let Some((call, batch)) = self.outbox.next(at_most) else { return Ok(()) };
                let (settlements, changes) = (batch.settlements.clone(), batch.changes.clone());
                match net.send(Move::Settle { me: number, call, settlements, changes }, rng)? {
                    Answer::NotOurs(Some(lost)) => self.settling = Settling::Confirmed(lost),
                    other => return Err(Stop::Broken(format!("settle answers {other:?}"))),
                }
                Ok(())
            }
        }
    }

    /// What the queue has lost goes back.
    fn restore(&mut self, number: AgentNumber, messages: Vec<Held>, net: &mut Net, rng: &mut Rng) -> Result<(), Stop> {
        let Answer::Restored(restored) = net.send(Move::Restore(number, messages), rng)? else {
            return Err(Stop::Broken("restore answers something else".to_string()));
        };
        let Some(restored) = restored else {
            self.beat_sent = None;
            self.settler_number = None;
            return Ok(());
        };
        let (_, elsewhere) = self.outbox.restored(&restored.into_iter().collect());
        self.lanes.confirmed(&elsewhere, net.now);
        Ok(())
    }

    fn join(&mut self, net: &mut Net, rng: &mut Rng) -> Result<(), Stop> {
        let sent = net.now;
        let old = self.shared_number;
        match net.send(Move::Join { lease: self.lease, old, seen: self.seen }, rng)? {
            Answer::Joined(joined) => self.settling = Settling::Joined(joined, old, sent),
            other => return Err(Stop::Broken(format!("join answers {other:?}"))),
        }
        Ok(())
    }

    /// The settler's beat, if it is due; and what follows from it.
    pub fn beat(&mut self, net: &mut Net, ledger: &mut dyn Ledger, rng: &mut Rng) -> Result<(), Stop> {
        let (Some(number), true) = (self.settler_number, net.now >= self.next_beat) else { return Ok(()) };
        let sent = net.now;
        let beat = Move::Beat { me: number, lease: self.lease, seen: self.seen, longest: LONGEST };
        let Answer::Beat(Beat { registered, peers, beyond, at, numbered }) = net.send(beat, rng)? else {
            return Err(Stop::Broken("beat answers something else".to_string()));
        };
        self.seen = self.seen.max(at * 1000).max(numbered);
        self.next_beat = sent + between_beats(self.lease);
        if !registered {
            self.beat_sent = None;
            self.settler_number = None;
            // The settler is one thread: it is not in the middle of a settle now.
            self.settling = Settling::Nothing;
            return self.join(net, rng);
        }
        self.beat_sent = Some(sent);
        if let Some(longest) = beyond {
            net.send(Move::Hasten(longest), rng)?;
        }
        for mut dead in self.peers.look_at(&peers, self.lease, sent) {
            loop {
                ledger.recovers(&dead, net.now)?;
                let limit = *rng.pick(&[1, 2, 512]);
                let Answer::Recovered(recovered) = net.send(Move::Recover { me: number, dead, limit }, rng)? else {
                    return Err(Stop::Broken("recover answers something else".to_string()));
                };
                dead.lease = None;
                if recovered.is_none_or(|n| n < limit) {
                    break;
                }
            }
            self.peers.forget(dead.number);
        }
        if !peers.is_empty() {
            let asked = net.now;
            if let Answer::Lanes(lanes) = net.send(Move::Lanes, rng)? {
                self.lanes.learn(&lanes, asked, net.now);
            }
        }
        Ok(())
    }

    /// SIGTERM: what is being attempted ends or is cut off, all is settled, the rest is given back.
    pub fn leave(&mut self, calm: bool, net: &mut Net, ledger: &mut dyn Ledger, rng: &mut Rng) -> Result<(), Stop> {
        self.alive = false;
        while !self.busy.is_empty() && (calm || rng.chance(0.7)) {
            self.finish(net.now, ledger, rng);
        }
        self.lanes.stop();
        for Busy { claim, .. } in std::mem::take(&mut self.busy) {
            let history = History {
                attempts: claim.history.attempts + 1,
                last_error: "cut off by a stop".to_string(),
                ..claim.history.clone()
            };
            let (delay, why) = (self.limits.retry_first, history.last_error.clone());
            let place = if self.limits.ordered { Place::Waiting(Some(delay)) } else { Place::Retry(delay) };
            let origin = claim.origin.clone();
            let settlement = Settlement { id: claim.id, origin: origin.clone(), place, history, kept: None };
            self.outbox.settle(settlement);
            if self.limits.ordered {
                self.outbox.change(LaneChange::Down { origin, after: delay, failures: 1, slowly: false, why });
            }
        }
        let Some(number) = self.settler_number else { return Ok(()) };
        // A cut ends it: then it is as if it had been killed.
        while !self.outbox.is_empty() {
            self.settle(net, rng)?;
        }
        net.send(Move::Leave(number), rng)?;
        Ok(())
    }
}
