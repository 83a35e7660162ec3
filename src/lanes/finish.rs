//! What becomes of a claim whose attempt is over: where it goes, and whose merit or fault it was.

use std::time::{Duration, Instant};

use super::blame::Blame;
use super::lane::State;
use super::{AFTER_LACKING, Claim, Closed, Effects, Lanes, Limits, ONE_MESSAGE_ASKS};
use crate::policy::{self, Fault, Outcome};
use crate::queue::{History, LaneChange, Place, Source};

/// Whether the endpoint answered; `None` if the attempt says nothing of it.
fn is_answered(outcome: &Outcome) -> Option<bool> {
    match outcome {
        Outcome::Delivered => Some(true),
        Outcome::Dead { fault: None, .. } | Outcome::Later { fault: Fault::Ours, .. } => None,
        Outcome::Dead { fault: Some(fault), .. } | Outcome::Later { fault, .. } => {
            Some(matches!(fault, Fault::Message | Fault::Elsewhere))
        }
    }
}

impl Lanes {
    /// Takes in what became of an attempt that began at `begun`: settles the claim, and lets out what may go
    /// now. If it was redirected to the lane of `guest_of` and entered it there ([`Lanes::enter`]), what became
    /// of it is that one's merit or fault. In strict order it is the message's own lane that must wait, whoever
    /// failed.
    pub fn finish(
        &mut self,
        claim: Box<Claim>,
        outcome: Outcome,
        guest_of: Option<&str>,
        begun: Instant,
        now: Instant,
        effects: &mut Effects,
    ) {
        let guest = guest_of.and_then(|origin| self.by_origin.get(origin).copied());
        if let Some(guest) = guest {
            self.lanes[guest].guests = self.lanes[guest].guests.saturating_sub(1);
            if !self.limits.ordered || outcome == Outcome::Delivered {
                self.finish_guest(claim, outcome, guest, begun, now, effects);
                self.let_out(guest, now, effects);
                return self.fill_slots(now, effects);
            }
        }
        let at = claim.lane;
        let was_full = !self.lanes[at].has_room();
        let was_down = self.lanes[at].state == State::Down;
        let took = now.saturating_duration_since(begun);
        self.came_back(&claim, is_answered(&outcome).map(|answered| (took, answered)), now);
        let mut history = claim.history.clone();
        match outcome {
            Outcome::Delivered => {
                self.settle(&claim, Place::Delivered, History::default(), effects);
                self.delivered(at, &claim, was_full, now, effects);
            }
            Outcome::Dead { reason, fault } => {
                history.failed(&reason);
                self.settle(&claim, Place::Dead, history, effects);
                match fault {
                    Some(fault) => {
                        let blame = Blame { fault, why: &reason, retry_after: None, is_dead: true };
                        self.blame(at, &claim, blame, begun, now, effects)
                    }
                    None => self.still_down(at, now, effects),
                }
            }
            Outcome::Later { fault: Fault::Ours, error, .. } => {
                history.last_error = error;
                if self.limits.ordered {
                    self.file(&claim, history, Some(AFTER_LACKING), effects);
                    self.down_for(at, AFTER_LACKING, now, effects);
                    // Not one failure more: so that it is down again alone would not tell the queue when.
                    let origin = self.lanes[at].origin.clone();
                    effects.changes.push(LaneChange::Due { origin, after: AFTER_LACKING });
                } else {
                    self.settle(&claim, Place::Retry(AFTER_LACKING), history, effects);
                    self.still_down(at, now, effects);
                }
            }
            Outcome::Later { fault, retry_after, error } => {
                history.failed(&error);
                if self.waits_for_lane(&claim, fault, retry_after, now) {
                    let lane = &self.lanes[at];
                    let delay = (lane.state == State::Down).then(|| lane.until_tried(now));
                    self.file(&claim, history, delay, effects);
                } else {
                    history.own_failures = history.own_failures.saturating_add(1);
                    let own = self.own_backoff(fault, history.own_failures);
                    let delay = match retry_after {
                        Some(wait) if fault == Fault::Elsewhere => wait.max(own),
                        wanted => wanted.unwrap_or(own),
                    };
                    self.settle(&claim, Place::Retry(delay), history, effects);
                }
                let blame = Blame { fault, why: &error, retry_after, is_dead: false };
                self.blame(at, &claim, blame, begun, now, effects);
            }
        }
        if !was_down && claim.source == (Source::Waiting { probe: true }) {
            self.probe_ended(at, effects);
        }
        self.let_out(at, now, effects);
        self.fill_slots(now, effects);
    }

    /// The attempt of a claim that was redirected is over; its own endpoint has answered in any case.
    pub(super) fn finish_guest(
        &mut self,
        claim: Box<Claim>,
        outcome: Outcome,
        guest: usize,
        begun: Instant,
        now: Instant,
        effects: &mut Effects,
    ) {
        let at = claim.lane;
        let (was_full, guest_was_full) =
            (!self.lanes[at].has_room(), self.lanes[guest].in_window() + 1 >= self.lanes[guest].window);
        let was_probe = self.lanes[at].state != State::Down && claim.source == (Source::Waiting { probe: true });
        self.came_back(&claim, None, now);
        let mut history = claim.history.clone();
        let mut blame = None;
        match &outcome {
            Outcome::Delivered => {
                self.settle(&claim, Place::Delivered, History::default(), effects);
                self.delivered(at, &claim, was_full, now, effects);
                self.delivered(guest, &claim, guest_was_full, now, effects);
            }
            Outcome::Dead { reason, fault } => {
                history.failed(reason);
                self.settle(&claim, Place::Dead, history, effects);
                blame = fault.map(|fault| Blame { fault, why: reason, retry_after: None, is_dead: true });
            }
            Outcome::Later { fault, retry_after, error } => {
                let delay = if *fault == Fault::Ours {
                    history.last_error = error.clone();
                    AFTER_LACKING
                } else {
                    history.failed(error);
                    history.own_failures = history.own_failures.saturating_add(1);
                    retry_after.unwrap_or_else(|| self.own_backoff(*fault, history.own_failures))
                };
                self.settle(&claim, Place::Retry(delay), history, effects);
                blame = Some(Blame { fault: *fault, why: error, retry_after: *retry_after, is_dead: false });
            }
        }
        self.answers(at, now, effects);
        match blame {
            Some(blame) => self.blame(guest, &claim, blame, begun, now, effects),
            None => self.still_down(guest, now, effects),
        }
        if was_probe {
            self.probe_ended(at, effects);
        }
        self.let_out(at, now, effects);
    }

    /// An attempt is redirected to another origin: takes a place in the window of that one's lane, so that
    /// redirects go round neither its limit nor its being down, nor its being paused.
    ///
    /// # Errors
    ///
    /// Why it takes none now.
    pub fn enter(&mut self, origin: &str, now: Instant) -> Result<(), Closed> {
        let at = self.lane_of(origin, now);
        let lane = &mut self.lanes[at];
        match lane.state {
            _ if lane.is_paused => return Err(Closed::Paused),
            State::Down if !lane.may_be_probed(now) => {
                let wait = lane.until_tried(now).max(AFTER_LACKING);
                return Err(Closed::Down { wait, why: lane.last_error.clone() });
            }
            State::Down => lane.down_until = None,
            State::Untried | State::Up if !lane.has_room() => return Err(Closed::Full),
            State::Untried | State::Up => {}
        }
        self.lanes[at].guests += 1;
        Ok(())
    }

    /// A redirected attempt goes on to yet another origin, or ends before it was sent to this one.
    pub fn leave(&mut self, origin: &str, now: Instant, effects: &mut Effects) {
        if let Some(&at) = self.by_origin.get(origin) {
            self.lanes[at].guests = self.lanes[at].guests.saturating_sub(1);
            self.still_down(at, now, effects);
            self.let_out(at, now, effects);
        }
    }

    /// Where a message that failed waits. True: in its lane, in its place, so that it will be the next probe if the
    /// lane is down. False: it gets its own backoff, and others are tried meanwhile.
    pub(super) fn waits_for_lane(
        &self,
        claim: &Claim,
        fault: Fault,
        retry_after: Option<Duration>,
        now: Instant,
    ) -> bool {
        let lane = &self.lanes[claim.lane];
        if self.limits.ordered {
            return true;
        }
        match fault {
            Fault::Message | Fault::Elsewhere | Fault::Ours => false,
            // Any other would have failed as well: it keeps its place, unless all those behind it are to be attempted.
            Fault::Unreachable => !self.is_overdue(claim, now) || !lane.has_others(),
            // What an endpoint could not take beside the others is sent again at once, but only once.
            Fault::Throttled if lane.state == State::Up && lane.window > 1 => {
                claim.history.attempts == 0 && retry_after.is_none()
            }
            Fault::Throttled | Fault::NoAnswer if lane.state == State::Up => false,
            _ => !lane.has_others() && retry_after.is_none_or(|wanted| wanted <= ONE_MESSAGE_ASKS),
        }
    }

    /// It has waited for longer than messages live after their first failure, and was never attempted.
    pub(super) fn is_overdue(&self, claim: &Claim, now: Instant) -> bool {
        claim.history.attempts == 0 && claim.history_at(now).is_aged(self.limits.give_up_after)
    }

    pub(super) fn own_backoff(&mut self, fault: Fault, own_failures: u32) -> Duration {
        let jitter = self.jitter();
        let Limits { retry_first, retry_max, .. } = self.limits;
        match fault {
            Fault::Message => policy::message_backoff(own_failures, retry_first, jitter),
            // With the endpoint: as that is tried.
            _ => policy::lane_backoff(own_failures, retry_first, retry_max, jitter),
        }
    }

    /// A claim that a worker hands back without an attempt: it is not this agent's any more, or the agent stops.
    pub fn abandon(&mut self, claim: Box<Claim>, now: Instant, effects: &mut Effects) {
        let at = claim.lane;
        self.came_back(&claim, None, now);
        if !self.discarded.remove(&(claim.id, claim.agent)) {
            self.held.remove(&claim.id);
        }
        self.let_out(at, now, effects);
        self.fill_slots(now, effects);
    }
}
