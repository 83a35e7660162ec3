//! What the agent holds: every claim until its settlement is confirmed, and what is given back unattempted.

use std::hash::Hasher;
use std::time::{Duration, Instant};

use super::lane::State;
use super::{Claim, Effects, HELD_WHILE_BUSY, Lanes, Limits, News};
use crate::policy;
use crate::queue::{AgentNumber, History, Id, Kept, LaneChange, Place, Settlement};

/// What is known of a message that was claimed. The queue may give it out again
/// (from waiting, or a retry) before it has been noted here that the settlement
/// which put it there is confirmed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Hold {
    pub(super) here: Option<Here>,
    /// Settlements on their way.
    pub(super) leaving: u32,
}

/// In a lane or out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Here {
    /// The number under which it was claimed.
    pub(super) agent: AgentNumber,
    /// Its lane.
    pub(super) lane: u32,
}

/// Ids come from our own queue one after the other: nobody can choose them so that
/// they collide, and a multiplication spreads them.
#[derive(Debug, Default)]
pub(super) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0 ^ number).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

pub(super) fn kept_bytes(settlement: &Settlement) -> usize {
    settlement.kept.as_ref().map_or(0, |kept| kept.bytes.len())
}

impl Lanes {
    pub(super) fn bytes(&self) -> usize {
        self.held_bytes + self.leaving_bytes
    }

    pub(super) fn n_held(&self) -> usize {
        self.held.len() + self.discarded.len()
    }

    pub(super) fn held_at_most(&self) -> usize {
        if self.has_idle_worker() {
            return self.limits.messages;
        }
        HELD_WHILE_BUSY.max(2 * self.limits.workers).min(self.limits.messages)
    }

    /// Puts a claim that was not attempted to wait for its lane.
    pub(super) fn put_to_wait(&mut self, claim: &Claim, delay: Option<Duration>, now: Instant, effects: &mut Effects) {
        let lane = &self.lanes[claim.lane];
        let delay = delay.or_else(|| {
            // While the probe of a lane that is down is out, its outcome says when the lane is tried next.
            let probing = lane.down_until.is_none();
            (lane.state == State::Down).then(|| if probing { self.limits.attempt } else { lane.until_tried(now) })
        });
        let mut history = claim.history.clone();
        if history.last_error.is_empty() {
            history.last_error = lane.last_error.clone();
        }
        self.file(claim, history, delay, effects);
    }

    pub(super) fn settle(&mut self, claim: &Claim, place: Place, history: History, effects: &mut Effects) {
        let hold = self.held.entry(claim.id).or_default();
        hold.leaving += 1;
        // One that was discarded while it was attempted is not the one that may be held now.
        if !self.discarded.remove(&(claim.id, claim.agent)) {
            hold.here = None;
        }
        let kept = (place != Place::Delivered).then(|| Kept { agent: claim.agent, bytes: claim.envelope.share_raw() });
        let settlement = Settlement { id: claim.id, origin: claim.origin.clone(), place, history, kept };
        self.leaving_bytes += kept_bytes(&settlement);
        effects.settlements.push(settlement);
    }

    pub(super) fn file(&mut self, claim: &Claim, history: History, delay: Option<Duration>, effects: &mut Effects) {
        self.settle(claim, Place::Waiting(delay), history, effects);
        let lane = &mut self.lanes[claim.lane];
        lane.has_waiting = true;
        lane.unconfirmed += 1;
        *lane.parked.entry(claim.id).or_default() += 1;
        if lane.state == State::Up && !lane.is_paused {
            if !lane.wanting {
                effects.changes.push(LaneChange::Up(lane.origin.clone()));
            }
            self.start_wanting(claim.lane);
        }
    }

    /// A message on a backoff of its own whose lane is down: due when that is tried and its own backoff, no attempt
    /// spent; dead if it is too old for that.
    pub(super) fn put_off(&mut self, claim: &Claim, now: Instant, effects: &mut Effects) {
        let mut history = claim.history_at(now);
        let give_up_after = self.limits.give_up_after;
        if history.attempts > 0 && history.is_aged(give_up_after) {
            history.last_error = policy::gave_up(give_up_after, &history.last_error);
            let (origin, reason) = (claim.origin.clone(), history.last_error.clone());
            effects.news.push(News::GaveUp { id: claim.id, origin, reason });
            return self.settle(claim, Place::Dead, history, effects);
        }
        let jitter = self.jitter();
        let Limits { retry_first, retry_max, .. } = self.limits;
        let own = policy::lane_backoff(claim.history.own_failures, retry_first, retry_max, jitter);
        let delay = self.lanes[claim.lane].until_tried(now) + own;
        self.settle(claim, Place::Retry(delay), history, effects);
    }

    /// Gives back claims that were taken out of a lane.
    pub(super) fn hand_back(
        &mut self,
        held: impl IntoIterator<Item = Box<Claim>>,
        delay: Option<Duration>,
        now: Instant,
        effects: &mut Effects,
    ) {
        for claim in held {
            self.forget_held(&claim);
            if claim.has_own_backoff() && !self.limits.ordered {
                self.put_off(&claim, now, effects);
            } else {
                self.put_to_wait(&claim, delay, now, effects);
            }
        }
    }

    /// Memory is full while a worker is idle: the lane that holds most, if it does
    /// not keep up, gives back all but a few.
    pub(super) fn spill(&mut self, now: Instant, effects: &mut Effects) {
        if self.last_spill.is_some_and(|last| now.saturating_duration_since(last) < Duration::from_millis(1)) {
            return;
        }
        self.last_spill = Some(now);
        let kept = self.kept;
        let lanes = &mut self.lanes;
        self.heavy.retain(|&at| {
            lanes[at].is_heavy = lanes[at].held.len() > kept;
            lanes[at].is_heavy
        });
        let Some(&at) = self.heavy.iter().max_by_key(|&&at| self.lanes[at].held.len()) else { return };
        let lane = &self.lanes[at];
        let n = lane.held.len();
        let Some(head) = lane.held.front() else { return };
        let waited = now.saturating_duration_since(head.claimed_at);
        if waited < Duration::from_micros(100) * n as u32 {
            return;
        }
        let given_back = self.change(at, |lane| lane.held.split_off(kept));
        self.hand_back(given_back, None, now, effects);
    }

    /// The queue has settled these.
    pub fn confirmed(&mut self, settlements: &[Settlement], now: Instant) {
        for settlement in settlements {
            self.leaving_bytes -= kept_bytes(settlement);
            if let Some(hold) = self.held.get_mut(&settlement.id) {
                hold.leaving = hold.leaving.saturating_sub(1);
                if hold.here.is_none() && hold.leaving == 0 {
                    self.held.remove(&settlement.id);
                }
            }
            if matches!(settlement.place, Place::Waiting(_)) {
                self.filing.remove(&settlement.id);
                if let Some(&at) = self.by_origin.get(&settlement.origin) {
                    let lane = &mut self.lanes[at];
                    lane.unconfirmed = lane.unconfirmed.saturating_sub(1);
                    lane.confirmed_at = Some(now);
                    self.lately_confirmed.push((at, settlement.id));
                }
            }
        }
    }

    /// Whether this message is held here, or its settlement is not yet confirmed.
    pub fn holds(&self, id: Id) -> bool {
        self.held.contains_key(&id)
    }

    /// All claims not yet confirmed settled.
    pub fn held(&self) -> Vec<Id> {
        self.held.keys().copied().collect()
    }

    /// Forgets claims that another agent has now, told by their id and number; those that workers have are told apart by
    /// [`Lanes::is_discarded`]. What is being settled stays noted until that is confirmed.
    pub fn discard(&mut self, is_theirs: impl Fn(Id, AgentNumber) -> bool, now: Instant, effects: &mut Effects) {
        let here = self.held.iter().filter_map(|(id, hold)| Some((*id, hold.here?)));
        let theirs: Vec<_> = here.filter(|(id, here)| is_theirs(*id, here.agent)).collect();
        for (id, Here { agent, lane }) in theirs {
            let at = lane as usize;
            match self.lanes[at].held.iter().position(|claim| claim.id == id) {
                Some(place) => {
                    let claim = self.change(at, |lane| lane.held.remove(place)).expect("it was found there");
                    self.forget_held(&claim);
                }
                None => {
                    self.discarded.insert((id, agent));
                }
            }
            let hold = self.held.get_mut(&id).expect("it was found there");
            hold.here = None;
            if hold.leaving == 0 {
                self.held.remove(&id);
            }
        }
        self.fill_slots(now, effects);
    }

    /// Whether this claim, which is out, was discarded since.
    pub fn is_discarded(&self, claim: &Claim) -> bool {
        self.discarded.contains(&(claim.id, claim.agent))
    }

    /// Empties the lanes at a stop: what was never attempted is dropped here, and
    /// still recorded as in flight in the queue, which gives it back when the agent leaves.
    pub fn stop(&mut self) -> usize {
        let mut n = 0;
        for at in 0..self.lanes.len() {
            let held = self.change(at, |lane| std::mem::take(&mut lane.held));
            n += held.len();
            for claim in held {
                self.held.remove(&claim.id);
            }
        }
        self.new_without_slot.clear();
        self.failed_without_slot.clear();
        self.failed_slowly_without_slot.clear();
        self.exposed_without_slot.clear();
        self.watched.clear();
        self.to_put_away.clear();
        n
    }
}
