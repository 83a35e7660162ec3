//! What an attempt does to its lane: it comes up, narrows, goes down, or stays as it is.

use std::time::{Duration, Instant};

use super::lane::{Lane, State};
use super::{AFTER_LACKING, Claim, Effects, Lanes, Limits, News, ONE_MESSAGE_ASKS};
use crate::policy::{self, Fault};
use crate::queue::{LaneChange, Source};

/// Windows of deliveries before a lane tries again what it was throttled at: each try costs a halving,
/// so an endpoint that takes four at once is kept near four.
const WINDOWS_AT_CEILING: usize = 8;

/// Different messages in a row that an endpoint may answer with a failure before the lane goes down.
const MESSAGES_AT_FAULT: usize = 10;

/// Different messages in a row that may get no answer before a proven lane goes down: fewer may be bad paths of a
/// good endpoint.
const UNANSWERED: usize = 12;

/// So many are enough when the last delivery is longer ago than the first backoff.
const UNANSWERED_FOR_LONG: usize = 3;

/// What has waited for longer than `--give-up-after` behind an endpoint that is down, and was never attempted,
/// is attempted this often: it ends as well, and not unattempted.
pub(super) const OVERDUE_EVERY: Duration = Duration::from_secs(1);

/// A failed attempt, as its lane sees it.
#[derive(Clone, Copy)]
pub(super) struct Blame<'a> {
    pub(super) fault: Fault,
    pub(super) why: &'a str,
    pub(super) retry_after: Option<Duration>,
    pub(super) is_dead: bool,
}

/// Why and for how long a lane is down.
#[derive(Clone, Copy)]
struct Outage<'a> {
    why: &'a str,
    retry_after: Option<Duration>,
    /// Several messages say so, or whatever the message nothing reaches the endpoint.
    by_many: bool,
    /// The message has waited for so long without an attempt that those behind it have their turn soon.
    is_overdue: bool,
}

impl Lanes {
    pub(super) fn delivered(&mut self, at: usize, claim: &Claim, was_full: bool, now: Instant, effects: &mut Effects) {
        let limits = &self.limits;
        let lane = &mut self.lanes[at];
        lane.at_fault.clear();
        lane.unanswered.clear();
        lane.last_delivery = Some(now);
        if lane.state != State::Up {
            // However long ago it began: the endpoint has just answered.
            let tell = lane.state == State::Down || lane.has_waiting || claim.source != Source::Queue;
            if tell {
                effects.changes.push(LaneChange::Up(lane.origin.clone()));
            }
            self.go_up(at, true, now, effects);
        } else if was_full && lane.window < limits.endpoint_concurrency && !limits.ordered {
            lane.since_growth += 1;
            // Up to what it was throttled at by one per window, and only slowly into that again.
            let windows = if lane.window + 1 < lane.ceiling { 1 } else { WINDOWS_AT_CEILING };
            if !lane.careful || lane.since_growth >= lane.window * windows {
                lane.window += 1;
                lane.since_growth = 0;
            }
        }
    }

    /// The endpoint of a lane has answered, though it took nothing: it is not down.
    pub(super) fn answers(&mut self, at: usize, now: Instant, effects: &mut Effects) {
        let lane = &mut self.lanes[at];
        lane.unanswered.clear();
        if lane.state == State::Down && !lane.is_refusing {
            effects.changes.push(LaneChange::Up(lane.origin.clone()));
            self.go_up(at, false, now, effects);
        }
    }

    /// What a failed attempt does to its lane.
    pub(super) fn blame(
        &mut self,
        at: usize,
        claim: &Claim,
        blame: Blame,
        begun: Instant,
        now: Instant,
        effects: &mut Effects,
    ) {
        let Blame { fault, why, retry_after, is_dead } = blame;
        match fault {
            Fault::Ours => return self.still_down(at, now, effects),
            Fault::Elsewhere if !self.limits.ordered => return self.answers(at, now, effects),
            _ => {}
        }
        if self.lanes[at].is_past(begun) {
            return;
        }
        let is_overdue = self.is_overdue(claim, now);
        let outage = Outage { why, retry_after, by_many: false, is_overdue };
        if self.limits.ordered {
            return if is_dead && fault == Fault::Message {
                self.message_failed(at, claim, why, now, effects)
            } else {
                self.go_down(at, outage, now, effects)
            };
        }
        let lane = &mut self.lanes[at];
        match fault {
            // Whatever its path, nothing reaches this endpoint.
            Fault::Unreachable => self.go_down(at, Outage { by_many: true, ..outage }, now, effects),
            Fault::Message => self.message_failed(at, claim, why, now, effects),
            Fault::Throttled | Fault::NoAnswer | Fault::Elsewhere | Fault::Ours => {
                if lane.state != State::Up {
                    return self.go_down(at, outage, now, effects);
                }
                if fault == Fault::Throttled && lane.window > 1 {
                    lane.ceiling = lane.window;
                    lane.window /= 2;
                    lane.careful = true;
                    lane.since_growth = 0;
                    lane.epoch = Some(now);
                }
                // One that has failed before is known to be bad, be its endpoint well or not.
                if claim.has_own_backoff() {
                    return;
                }
                if !lane.unanswered.contains(&claim.id) {
                    lane.unanswered.push(claim.id);
                }
                let lately = |last: Instant| now.saturating_duration_since(last) < self.limits.retry_first;
                let enough = if lane.last_delivery.is_some_and(lately) { UNANSWERED } else { UNANSWERED_FOR_LONG };
                if lane.unanswered.len() >= enough {
                    self.go_down(at, Outage { by_many: true, ..outage }, now, effects);
                }
            }
        }
    }

    pub(super) fn message_failed(&mut self, at: usize, claim: &Claim, why: &str, now: Instant, effects: &mut Effects) {
        let jitter = self.jitter();
        // It answers: so it is not down, whatever it thinks of this message.
        self.answers(at, now, effects);
        if claim.has_own_backoff() {
            return self.still_down(at, now, effects);
        }
        let lane = &mut self.lanes[at];
        if !lane.at_fault.contains(&claim.id) {
            lane.at_fault.push(claim.id);
        }
        if lane.at_fault.len() >= MESSAGES_AT_FAULT {
            self.go_down(at, Outage { why, retry_after: None, by_many: true, is_overdue: false }, now, effects);
            self.lanes[at].is_refusing = true;
        } else if lane.state == State::Down {
            // The endpoint is alive, and only this message was a bad probe: another is tried soon. To be
            // down for twice as long would keep all that waits from an endpoint that takes nine in ten.
            let after = policy::lane_backoff(1, self.limits.retry_first, self.limits.retry_max, jitter);
            lane.down_until = Some(now + after);
            effects.changes.push(LaneChange::Due { origin: lane.origin.clone(), after });
        }
    }

    /// A probe of a lane that is not down here: another message brought it up meanwhile,
    /// or what became of the probe says nothing of the endpoint. The queue would leave the lane
    /// alone for the whole attempt that it set aside.
    pub(super) fn probe_ended(&mut self, at: usize, effects: &mut Effects) {
        let lane = &mut self.lanes[at];
        if lane.state == State::Down {
            return;
        }
        let change = LaneChange::Up(lane.origin.clone());
        if !effects.changes.contains(&change) {
            effects.changes.push(change);
        }
        lane.has_waiting = true;
        if lane.state == State::Up {
            self.start_wanting(at);
        }
    }

    /// A lane whose probe said nothing about it stays down, and is not left to
    /// the time that was set aside for the probe.
    pub(super) fn still_down(&mut self, at: usize, now: Instant, effects: &mut Effects) {
        let lane = &mut self.lanes[at];
        if lane.lacks_probe() {
            lane.down_until = Some(now + AFTER_LACKING);
            effects.changes.push(LaneChange::Due { origin: lane.origin.clone(), after: AFTER_LACKING });
        }
    }

    fn go_down(&mut self, at: usize, outage: Outage, now: Instant, effects: &mut Effects) {
        let jitter = self.jitter();
        let Limits { retry_first, retry_max, .. } = self.limits;
        let lane = &mut self.lanes[at];
        lane.failures += 1;
        lane.last_error = outage.why.to_string();
        lane.is_refusing = false;
        let delay = match outage.retry_after {
            Some(wanted) if outage.by_many || lane.failures > 1 => wanted,
            Some(wanted) => wanted.min(ONE_MESSAGE_ASKS),
            None => policy::lane_backoff(lane.failures, retry_first, retry_max, jitter),
        };
        let delay = if outage.is_overdue { delay.min(OVERDUE_EVERY) } else { delay };
        self.down_for(at, delay, now, effects);
    }

    pub(super) fn down_for(&mut self, at: usize, delay: Duration, now: Instant, effects: &mut Effects) {
        self.become_down(at, now);
        let held = self.change(at, |lane| {
            lane.window = 1;
            lane.careful = false;
            lane.since_growth = 0;
            lane.at_fault.clear();
            lane.unanswered.clear();
            lane.epoch = Some(now);
            lane.down_until = Some(now + delay);
            lane.failures = lane.failures.max(1);
            std::mem::take(&mut lane.held)
        });
        let waiting = held.len();
        self.hand_back(held, Some(delay), now, effects);
        let lane = &mut self.lanes[at];
        effects.changes.push(LaneChange::Down {
            origin: lane.origin.clone(),
            after: delay,
            failures: lane.failures,
            slowly: lane.fails_slowly,
            why: lane.last_error.clone(),
        });
        effects.news.push(News::Down {
            origin: lane.origin.clone(),
            why: lane.last_error.clone(),
            failures: lane.failures,
            waiting,
            next: delay,
        });
    }

    pub(super) fn become_down(&mut self, at: usize, now: Instant) {
        self.change(at, |lane| {
            lane.state = State::Down;
            lane.failing_since.get_or_insert(now);
        });
        self.stop_wanting(at);
    }

    /// `by_delivery`: not only by an answer, after which the next failure counts on.
    pub(super) fn go_up(&mut self, at: usize, by_delivery: bool, now: Instant, effects: &mut Effects) {
        self.change(at, |lane| {
            lane.state = State::Up;
            if by_delivery {
                lane.failures = 0;
            }
            lane.is_refusing = false;
            lane.down_until = None;
            lane.window = 1;
            lane.careful = false;
            lane.since_growth = 0;
        });
        let lane = &mut self.lanes[at];
        if let Some(since) = lane.failing_since.take() {
            let after = now.saturating_duration_since(since);
            effects.news.push(News::Back { origin: lane.origin.clone(), after });
        }
        if self.lanes[at].has_waiting {
            self.start_wanting(at);
        }
    }

    /// Changes a lane, and the sums with it.
    pub(super) fn change<T>(&mut self, at: usize, change: impl FnOnce(&mut Lane) -> T) -> T {
        let lane = &mut self.lanes[at];
        self.shares -= lane.shares();
        self.n_in_state[lane.state as usize] -= 1;
        let result = change(lane);
        self.shares += lane.shares();
        self.n_in_state[lane.state as usize] += 1;
        if lane.held.len() > self.kept && !lane.is_heavy {
            lane.is_heavy = true;
            self.heavy.push(at);
        }
        result
    }
}
