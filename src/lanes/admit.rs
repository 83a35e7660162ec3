//! Where a claim goes when it comes: out, into its lane, to wait, or off.

use std::time::{Duration, Instant};

use super::held::{Here, kept_bytes};
use super::lane::State;
use super::{AFTER_LACKING, Claim, Effects, Lanes};
use crate::queue::{LaneChange, Settlement, Source};

impl Lanes {
    /// Takes in a claim: it goes out, is held, or is put to wait or off.
    pub fn admit(&mut self, mut claim: Box<Claim>, now: Instant, effects: &mut Effects) {
        if self.held.get(&claim.id).is_some_and(|hold| hold.here.is_some()) {
            // A rolled-back Redis gave out again what is still held: the one held counts.
            return;
        }
        let at = self.lane_of(claim.envelope.origin(), now);
        self.held.entry(claim.id).or_default().here = Some(Here { agent: claim.agent, lane: at as u32 });
        claim.lane = at;
        claim.origin = self.lanes[at].origin.clone();
        let lane = &mut self.lanes[at];
        if lane.is_paused {
            return self.admit_paused(&claim, now, effects);
        }
        match claim.source {
            Source::Retry if self.limits.ordered => {
                self.filing.insert(claim.id);
                effects.changes.push(LaneChange::Freed(lane.origin.clone()));
                return self.put_to_wait(&claim, None, now, effects);
            }
            // What the lane gave back (when it went down, or held too much) may not have been there yet when
            // the queue looked: then this one is not the oldest, and not the queue's answer to the lane's going down.
            Source::Waiting { probe } if lane.parked.keys().next().is_some_and(|parked| *parked < claim.id) => {
                if probe {
                    let (origin, after) = (lane.origin.clone(), lane.until_tried(now));
                    effects.changes.push(LaneChange::Due { origin, after });
                }
                return self.put_to_wait(&claim, None, now, effects);
            }
            // For another agent the lane is up.
            Source::Waiting { probe: false } => {
                if lane.state != State::Up {
                    self.go_up(at, true, now, effects);
                }
            }
            Source::Waiting { probe: true } => {
                match lane.state {
                    State::Down => lane.down_until = None,
                    // The queue has set a time aside for the probe; this lane needs none.
                    State::Up => effects.changes.push(LaneChange::Up(lane.origin.clone())),
                    State::Untried => {}
                }
            }
            Source::Retry | Source::Queue => {
                let is_down = lane.state == State::Down;
                let may_probe = lane.may_be_probed(now);
                if claim.has_own_backoff() {
                    // When the lane may be tried, it is tried with what waits for it. With this one only if nothing
                    // does, or a while later: what is known to wait may be gone by another agent's hand, and a
                    // lane all of whose messages are on a backoff of their own would stay down for good.
                    let patience =
                        if lane.has_waiting { self.limits.retry_first.max(AFTER_LACKING) } else { Duration::ZERO };
                    let may_probe = lane.down_until.is_none_or(|until| until + patience <= now) && lane.is_idle();
                    if is_down && !may_probe {
                        return self.put_off(&claim, now, effects);
                    }
                } else if (lane.has_waiting || is_down) && !(is_down && may_probe)
                    || lane.state == State::Untried && self.shares.held_unproven >= self.limits.messages / 2
                {
                    if claim.source == Source::Retry {
                        effects.changes.push(LaneChange::Freed(lane.origin.clone()));
                    }
                    return self.put_to_wait(&claim, None, now, effects);
                }
            }
        }
        let (id, may_be_held) = (claim.id, !claim.is_fragile() || claim.source == Source::Waiting { probe: true });
        self.hold(claim);
        self.let_out(at, now, effects);
        if !may_be_held && let Some(claim) = self.take_held(at, id) {
            self.put_to_wait(&claim, None, now, effects);
        }
    }

    /// Takes note of a claim that cannot be decoded and is settled at once.
    pub fn admit_unreadable(&mut self, settlement: &Settlement) {
        self.held.entry(settlement.id).or_default().leaving += 1;
        self.leaving_bytes += kept_bytes(settlement);
    }
}
