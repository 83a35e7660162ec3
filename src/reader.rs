//! The reader, exactly one: claims from the queue, decodes, admits to the lanes;
//! what cannot be decoded goes to be settled as dead. It waits for room in memory,
//! and for messages in Redis, half a second at most. It ends when the agent is
//! to stop, or when waiting cannot mend what Redis says.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{debug, info, warn};

use crate::backoff::Backoff;
use crate::claiming::{Claiming, Next};
use crate::dispatch::{Dispatch, Report};
use crate::envelope::{Endpoints, Envelope};
use crate::journal::{Death, Speaker};
use crate::lanes::{Claim, NUDGE_EVERY};
use crate::lease::Thread;
use crate::metrics::add;
use crate::queue::{
    AgentNumber, Claimed, Error, History, Id, Kept, LONGEST_WAIT, Place, Queue, RawClaim, Settlement, Waited,
};
use crate::text::{n_of, panic_message};

/// While lanes that are up have messages waiting in Redis, new messages are looked for this often.
const DRAINING_WAIT: Duration = Duration::from_millis(5);
/// A full Redis refuses to wait: it is polled.
const POLL: Duration = Duration::from_millis(50);
/// A standby looks this often whether it is its turn.
const STANDBY: Duration = Duration::from_millis(200);
/// What has become due meanwhile (put off by this agent or another) is looked for at least this
/// often, and four times within the shortest delay that this agent itself gives.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// While something is held that may go out, what operators order is heard this often. A claim tells it too, and what
/// is claimed later is claimed with it.
const HEAR_EVERY: Duration = Duration::from_millis(400);

/// Reads until the agent is to stop. `retry_first` is the shortest delay that this agent gives.
///
/// # Errors
///
/// What waiting cannot mend: wrong password, no permission, wrong type at a key.
pub fn run(queue: &mut dyn Queue, dispatch: &Dispatch, retry_first: Duration) -> Result<(), Error> {
    let mut reader = Reader::new(dispatch, retry_first);
    while !dispatch.lease.is_stopping() {
        dispatch.lease.turn(Thread::Reader);
        match reader.turn(queue) {
            Ok(()) => {
                reader.backoff = Backoff::default();
                dispatch.journal.redis_back(Speaker::Reader);
            }
            Err(error) if !error.is_lasting() => {
                dispatch.journal.redis_lost(Speaker::Reader, error.why());
                // What Redis has of ours may be older than what we hold: compare as soon as it answers.
                reader.claiming.doubt(Instant::now());
                reader.backoff.pause(&dispatch.lease);
            }
            Err(lasting) => return Err(lasting),
        }
    }
    reader.hand_over_popped(queue);
    Ok(())
}

struct Reader<'a> {
    dispatch: &'a Dispatch,
    look_every: Duration,
    claiming: Claiming,
    /// Taken from the queue by the wait, not yet claimed.
    popped: Option<Vec<u8>>,
    endpoints: Endpoints,
    was_standby: bool,
    /// When what operators had ordered was heard last.
    heard: Instant,
    /// Whether a refused wait has been spoken of.
    refused: bool,
    backoff: Backoff,
}

impl Reader<'_> {
    fn new(dispatch: &Dispatch, retry_first: Duration) -> Reader<'_> {
        Reader {
            dispatch,
            look_every: (retry_first / 4).clamp(Duration::from_millis(20), LOOK_EVERY),
            claiming: Claiming::new(Instant::now()),
            popped: None,
            endpoints: Endpoints::default(),
            was_standby: false,
            heard: Instant::now(),
            refused: false,
            backoff: Backoff::default(),
        }
    }

    fn turn(&mut self, queue: &mut dyn Queue) -> Result<(), Error> {
        match self.claiming.next(self.dispatch.lease.number(), Instant::now()) {
            Next::Register => self.dispatch.lease.wait_for_change(Duration::from_millis(100)),
            Next::Audit(number) => {
                self.audit(queue, number)?;
                self.claim(queue)?;
            }
            Next::Claim => self.claim(queue)?,
        }
        Ok(())
    }

    /// Claims as much as the lanes have room for, and hands it to them.
    fn claim(&mut self, queue: &mut dyn Queue) -> Result<(), Error> {
        let Some(mut bounds) = self.dispatch.appetite(self.claiming.is_again(), Duration::from_millis(200)) else {
            return self.hear_orders(queue);
        };
        bounds.popped = self.popped.clone();
        bounds.seen = self.dispatch.lease.seen();
        let Some(call) = self.claiming.call(Instant::now()) else { return Ok(()) };
        let sent = Instant::now();
        let claimed = queue.claim(call.agent, call.number, call.again, &bounds)?;
        add(&self.dispatch.metrics.claims, 1);
        let learns_lanes = self.claiming.answered(&claimed);
        match claimed {
            Claimed::Gone => self.dispatch.report(Report::Gone(call.agent)),
            Claimed::Standby => {
                if !std::mem::replace(&mut self.was_standby, true) {
                    info!("another agent delivers in order; standing by to take over");
                }
                self.dispatch.lease.wait_for_change(STANDBY);
            }
            Claimed::Taken { claims, emptied, failures, oversized, due_in, more, at, numbered, orders } => {
                self.heard = sent;
                if let Some(orders) = orders {
                    self.dispatch.obey(orders);
                }
                self.dispatch.lease.note_clock(at, sent);
                let ids = claims.iter().map(|claim| claim.id).chain(oversized.iter().map(|(id, _)| *id));
                self.dispatch.lease.see(ids.map(|id| id.0).max().unwrap_or(0).max(numbered));
                self.popped = None;
                if std::mem::replace(&mut self.was_standby, false) {
                    info!("taking over: this agent delivers now");
                }
                if learns_lanes {
                    self.dispatch.learn(&queue.lanes()?, call.asked);
                }
                self.claiming.admitted();
                self.note_oversized(&oversized);
                let taken = claims.len();
                add(&self.dispatch.metrics.claimed, taken as u64);
                let claims = claims.into_iter().map(|claim| self.decode(claim, call.agent)).collect();
                let now = Instant::now();
                self.dispatch.admit(
                    call.agent,
                    |lanes| {
                        for origin in &emptied {
                            lanes.emptied(origin, call.asked);
                        }
                        for failed in &failures {
                            lanes.has_failed(failed, now);
                        }
                    },
                    claims,
                );
                if taken == 0 && !more {
                    self.wait(queue, due_in)?;
                }
            }
        }
        Ok(())
    }

    /// Nothing is claimed for want of room: what operators order is asked for by itself.
    fn hear_orders(&mut self, queue: &mut dyn Queue) -> Result<(), Error> {
        if self.heard.elapsed() < HEAR_EVERY {
            return Ok(());
        }
        let asked = Instant::now();
        self.dispatch.obey(queue.orders()?);
        self.heard = asked;
        Ok(())
    }

    /// What was too large for any agent is dead already.
    fn note_oversized(&self, oversized: &[(Id, usize)]) {
        for (id, size) in oversized {
            add(&self.dispatch.metrics.dead, 1);
            let reason = format!("{size} bytes are more than 64 MiB and than '--in-flight-bytes'");
            self.dispatch.journal.died(&Death::unread(*id, "an unread endpoint", &reason));
        }
    }

    /// Nothing can be claimed now: waits for what comes first, new messages or what is due.
    fn wait(&mut self, queue: &mut dyn Queue, due_in: Option<Duration>) -> Result<(), Error> {
        let begun = Instant::now();
        let look_every = if self.dispatch.holds_any() { self.look_every.min(HEAR_EVERY) } else { self.look_every };
        let due = begun + due_in.unwrap_or(look_every).min(look_every);
        loop {
            if self.dispatch.is_draining() {
                self.dispatch.wait_until_hungry(DRAINING_WAIT);
                return Ok(());
            }
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() || self.dispatch.lease.is_stopping() {
                return Ok(());
            }
            let is_watching = self.dispatch.is_watching();
            let at_most = if is_watching { left.min(NUDGE_EVERY) } else { left.min(LONGEST_WAIT) };
            match queue.wait(at_most)? {
                Waited::Nothing => {
                    self.dispatch.lease.turn(Thread::Reader);
                    if is_watching {
                        self.dispatch.nudge();
                    }
                }
                Waited::Something => return Ok(()),
                Waited::Popped(value) => {
                    self.popped = Some(value);
                    return Ok(());
                }
                Waited::Refused => {
                    if !std::mem::replace(&mut self.refused, true) {
                        warn!("Redis is full and refuses to wait for messages: looking for them every 50 ms");
                    }
                    self.dispatch.lease.wait_for_change(POLL.min(left));
                    return Ok(());
                }
            }
            self.refused = false;
        }
    }

    /// What Redis records as in flight here, but is held nowhere, is due again: a
    /// rolled-back Redis leaves such. No claim is outstanding now.
    fn audit(&mut self, queue: &mut dyn Queue, number: AgentNumber) -> Result<(), Error> {
        let strays = self.dispatch.not_held(queue.in_flight(number)?);
        self.claiming.audited(Instant::now());
        if !strays.is_empty() {
            let n = queue.give_back(number, &strays)?;
            warn!(
                "Redis listed {} as in flight in this agent that it does not hold: to be attempted again",
                n_of(n as u64, "message")
            );
        }
        Ok(())
    }

    fn decode(&mut self, raw: RawClaim, number: AgentNumber) -> Result<Claim, Settlement> {
        let RawClaim { id, bytes, history, recovered, source } = raw;
        let decoded = catch_unwind(AssertUnwindSafe(|| Envelope::decode_with(bytes, &mut self.endpoints)));
        let mut kept = None;
        let reason = match decoded {
            Ok(Ok(envelope)) => {
                let mut claim = Claim::new(id, envelope, history, recovered, source, number, Instant::now());
                if !self.dispatch.lease.tells_ages() {
                    claim.history.age = None;
                }
                return Ok(claim);
            }
            Ok(Err(malformed)) => {
                let reason = format!("undecodable: {malformed}");
                kept = Some(Kept { agent: number, bytes: Arc::new(malformed.raw) });
                reason
            }
            Err(panic) => format!("internal error: {}", panic_message(&*panic)),
        };
        add(&self.dispatch.metrics.undecodable, 1);
        add(&self.dispatch.metrics.dead, 1);
        self.dispatch.journal.died(&Death::unread(id, "an unknown endpoint", &reason));
        let history = History { last_error: reason, ..history };
        Err(Settlement { id, origin: Arc::from(""), place: Place::Dead, history, kept })
    }

    /// At a stop: what the wait has popped is claimed once more, so that Redis has it, and leaving gives
    /// it back. An agent that is not registered any more cannot claim: it puts it back where it was.
    fn hand_over_popped(&mut self, queue: &mut dyn Queue) {
        let Some(value) = self.popped.take() else { return };
        let bounds = crate::queue::Bounds::only(value);
        let value = bounds.popped.as_deref().expect("just set");
        for _ in 0..3 {
            // If the last claim's answer was lost it may have taken the message: so it is sent again as it was.
            let call = self.claiming.call(Instant::now());
            let claimed = call.map(|call| queue.claim(call.agent, call.number, call.again, &bounds));
            let done = match claimed {
                Some(Ok(Claimed::Taken { .. })) => Ok(()),
                Some(Ok(gone_or_standby)) => {
                    self.claiming.answered(&gone_or_standby);
                    queue.put_back(value)
                }
                None => queue.put_back(value),
                Some(Err(error)) => Err(error),
            };
            match done {
                Ok(()) => return,
                Err(error) => debug!("handing over what was popped: {error}"),
            }
        }
        warn!("one message popped by '--pop blpop' could not be handed back to Redis and is lost");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Memory;

    /// What is left in the queue when an agent stops that has popped a message and was registered so.
    fn handed_over(registered: impl FnOnce(&mut Memory) -> Option<AgentNumber>) -> (Memory, Option<AgentNumber>) {
        let mut queue = Memory::new();
        queue.push(["second"]);
        let number = registered(&mut queue);
        let (dispatch, _ready, _reports) = Dispatch::for_tests(Duration::from_secs(15));
        let mut reader = Reader::new(&dispatch, Duration::from_secs(1));
        reader.claiming.next(number, Instant::now());
        reader.popped = Some(b"first".to_vec());
        reader.hand_over_popped(&mut queue);
        (queue, number)
    }

    #[test]
    fn what_was_popped_is_claimed_at_a_stop() {
        let (queue, number) = handed_over(|queue| Some(queue.join(Duration::from_secs(15), None, 0).unwrap().number));
        let state = queue.state();
        assert_eq!(state.messages.values().collect::<Vec<_>>(), [b"first"]);
        assert_eq!(state.inflight.values().copied().collect::<Vec<_>>(), [number.unwrap()]);
    }

    #[test]
    fn what_was_popped_goes_back_to_the_left_if_nobody_may_claim_it() {
        for number in [None, Some(AgentNumber(7))] {
            let (queue, _) = handed_over(|_| number);
            let state = queue.state();
            assert_eq!(state.queue, [b"first".to_vec(), b"second".to_vec()]);
            assert!(state.messages.is_empty());
        }
    }
}
