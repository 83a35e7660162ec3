//! What is known of the lanes: their records, what waits for them in the queue, and how many there are.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::lane::{Lane, State};
use super::{DownLane, LaneCounts, Lanes};
use crate::policy;
use crate::queue::{FailedLane, WaitingLane, Want};

/// Claims that a lane with more of them waiting keeps in memory, so that it never runs dry between two claims.
pub(super) const KEPT_OF_WAITING: usize = 32;

/// Lanes asked for by name in one claim.
pub(super) const WANTS_PER_CLAIM: usize = 32;

/// Lane records kept at most: an idle one beyond is forgotten, which costs at most an attempt.
pub(super) const MOST_LANES: usize = 20_000;
/// So many of them are looked at when one must be forgotten: some 20 µs, while everybody waits.
const LOOKED_AT: usize = 128;

impl Lanes {
    /// The queue says that nothing of this origin waits any more, as of a claim begun at `asked`.
    /// To be called before the claims of the same answer are admitted.
    pub fn emptied(&mut self, origin: &str, asked: Instant) {
        if let Some(&at) = self.by_origin.get(origin) {
            let lane = &mut self.lanes[at];
            // What was put to wait since may not have been there yet when the queue looked.
            if lane.had_settled(asked) {
                lane.has_waiting = false;
                self.stop_wanting(at);
            }
        }
    }

    /// The queue says how often a lane that is now probed has failed in a row, with other agents too.
    pub fn has_failed(&mut self, failed: &FailedLane, now: Instant) {
        let at = self.lane_of(&failed.origin, now);
        if self.lanes[at].state == State::Untried {
            self.change(at, |lane| lane.fails_slowly = failed.slowly);
            self.become_down(at, now);
        }
        let lane = &mut self.lanes[at];
        lane.failures = lane.failures.max(failed.failures);
    }

    /// How many lanes of what waits are learned at most. In order, each is needed: a lane not known to have older
    /// ones waiting would be overtaken.
    pub fn learned_at_most(&self) -> usize {
        if self.limits.ordered { usize::MAX } else { MOST_LANES / 2 }
    }

    /// What waits in the queue by lane, as of a look begun at `asked`: lanes that
    /// other agents found down are not tried from here as if nothing were known.
    pub fn learn(&mut self, waiting: &[WaitingLane], asked: Instant, now: Instant) {
        // No lane backs off for longer: the queue's clock was ahead when such a time was written. The queue makes it due
        // now, and what is put to wait here must not be due in weeks again.
        let longest = policy::longest_lane_backoff(self.limits.retry_max);
        for known in waiting {
            let at = self.lane_of(&known.origin, now);
            let lane = &mut self.lanes[at];
            if lane.is_past(asked) {
                continue;
            }
            lane.has_waiting = true;
            // Its time says nothing of the endpoint; and whoever pauses or resumes it is heard by itself.
            if known.is_paused || lane.is_paused {
                continue;
            }
            let due_in = known.due_in.map(|due_in| if due_in > longest { Duration::ZERO } else { due_in });
            match (due_in, lane.state) {
                (Some(due_in), State::Untried | State::Up) => {
                    self.become_down(at, now);
                    self.lanes[at].down_until = Some(now + due_in);
                }
                // Another agent may have tried it since; while it is tried from here, this one knows better.
                (Some(due_in), State::Down) if lane.is_idle() => lane.down_until = Some(now + due_in),
                (None, State::Up) => self.start_wanting(at),
                _ => {}
            }
        }
    }

    /// Counts for the metrics: lanes by state.
    pub fn counts(&self) -> LaneCounts {
        let [untried, up, down] = self.n_in_state;
        LaneCounts { untried, up, down, held: self.held.len(), bytes: self.bytes() }
    }

    /// Lanes that are down, for people, among so many records after the first `from`: each with the time from which on
    /// it has failed, which is unknown if only others have seen that. `None` behind the last record.
    pub fn down_among(&self, from: usize, n: usize, now: Instant) -> Option<Vec<(Option<Instant>, DownLane)>> {
        let some = self.lanes.get(from..)?.iter().take(n);
        let is_known = |at: usize, lane: &Lane| self.by_origin.get(&lane.origin) == Some(&at);
        let down = some.enumerate().filter(|(past, lane)| lane.state == State::Down && is_known(from + past, lane));
        let shown = down.map(|(_, lane)| {
            let (origin, last_error) = (lane.origin.clone(), lane.last_error.clone());
            let next_try = lane.until_tried(now);
            (lane.failing_since, DownLane { origin, last_error, failures: lane.failures, next_try })
        });
        (from < self.lanes.len()).then(|| shown.collect())
    }

    /// Lanes that are up and have room for more of what waits, in turn; and, with 0, those
    /// that have none, so that the queue does not take them for lanes to be tried.
    pub(super) fn wants(&mut self) -> Vec<Want> {
        let kept = self.kept;
        let mut wants = Vec::new();
        for _ in 0..self.wanting.len().min(WANTS_PER_CLAIM) {
            self.wanting.rotate_left(1);
            let &at = self.wanting.back().expect("not empty");
            let lane = &self.lanes[at];
            let room = if lane.held.len() <= kept / 2 { kept - lane.held.len() } else { 0 };
            let free = lane.window.saturating_sub(lane.in_window() + lane.held.len());
            wants.push(Want { origin: lane.origin.to_string(), room, free });
        }
        wants
    }

    pub(super) fn start_wanting(&mut self, at: usize) {
        if !self.lanes[at].wanting {
            self.lanes[at].wanting = true;
            self.wanting.push_back(at);
        }
    }

    pub(super) fn stop_wanting(&mut self, at: usize) {
        if self.lanes[at].wanting {
            self.lanes[at].wanting = false;
            self.wanting.retain(|&other| other != at);
        }
    }

    pub(super) fn lane_of(&mut self, origin: &str, now: Instant) -> usize {
        if let Some(&at) = self.by_origin.get(origin) {
            return at;
        }
        if self.by_origin.len() >= MOST_LANES {
            self.forget_some(now);
        }
        let origin: Arc<str> = Arc::from(origin);
        let mut lane = Lane::new(origin.clone());
        lane.is_paused = self.orders.is_paused(&origin);
        let at = match self.free.pop() {
            Some(at) => {
                self.lanes[at] = lane;
                at
            }
            None => {
                self.lanes.push(lane);
                self.lanes.len() - 1
            }
        };
        self.n_in_state[State::Untried as usize] += 1;
        self.by_origin.insert(origin, at);
        at
    }

    /// Forgets some idle lanes: of the next records that are looked at those that say nothing, and if there are none,
    /// those due soonest.
    pub(super) fn forget_some(&mut self, now: Instant) {
        let n = self.lanes.len();
        let looked_at = (0..LOOKED_AT.min(n)).map(|past| (self.next_forgotten + past) % n);
        let mut idle: Vec<(Duration, usize)> = looked_at
            .filter(|&at| self.by_origin.get(&self.lanes[at].origin) == Some(&at))
            .filter(|&at| self.lanes[at].is_idle() && !(self.limits.ordered && self.lanes[at].has_waiting))
            .map(|at| (self.lanes[at].until_tried(now), at))
            .collect();
        self.next_forgotten = (self.next_forgotten + LOOKED_AT) % n.max(1);
        idle.sort_unstable();
        let silent = idle.iter().take_while(|(until_tried, _)| until_tried.is_zero()).count();
        for &(_, at) in idle.iter().take(silent.max(LOOKED_AT / 4)) {
            self.by_origin.remove(&self.lanes[at].origin);
            self.n_in_state[self.lanes[at].state as usize] -= 1;
            self.free.push(at);
        }
    }

    /// Evenly from -1 to 1, by xorshift: spreads retries, and has no other duty.
    pub(super) fn jitter(&mut self) -> f64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }
}
