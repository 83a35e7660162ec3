//! Which claims go out to the workers, and when: from a lane's queue through its window and the shares.

use std::time::{Duration, Instant};

use super::lane::{Lane, Out, State};
use super::shares::Kind;
use super::{Claim, Effects, Lanes};
use crate::queue::Id;

/// How often lanes are looked at that hold claims back and whose attempts may become silent.
pub const NUDGE_EVERY: Duration = Duration::from_millis(50);

/// Lanes looked at at once.
const NUDGED: usize = 64;

/// What kind of claim this lane would send next.
fn kind(lane: &Lane) -> Kind {
    match lane.state {
        State::Untried => Kind::New,
        State::Down if lane.fails_slowly => Kind::FailedSlowly,
        State::Down => Kind::Failed,
        State::Up if lane.is_exposed() => Kind::Exposed,
        State::Up => Kind::Trusted,
    }
}

impl Lanes {
    pub(super) fn hold(&mut self, claim: Box<Claim>) {
        self.held_bytes += claim.envelope.held_size();
        self.count_suspect(&claim, 1);
        self.change(claim.lane, |lane| {
            // Oldest first: what comes back from waiting is older than what came meanwhile.
            let behind = lane.held.iter().rev().take_while(|held| held.id > claim.id).count();
            lane.held.insert(lane.held.len() - behind, claim);
        });
    }

    /// Sends what a lane may send.
    pub(super) fn let_out(&mut self, at: usize, now: Instant, effects: &mut Effects) {
        loop {
            let lane = &self.lanes[at];
            if lane.held.is_empty() || lane.is_paused {
                return;
            }
            let is_scout = !lane.has_room();
            if is_scout && (self.limits.ordered || !lane.may_scout(now)) {
                return self.watch(at);
            }
            if !self.most.allows(kind(lane), &self.shares) {
                return self.wait_for_slot(at);
            }
            let claim = self.change(at, |lane| {
                // Beside silent ones the newest: those that came with them may be as bad.
                let claim = if is_scout { lane.held.pop_back() } else { lane.held.pop_front() };
                let claim = claim.expect("not empty");
                lane.out.push(Out { id: claim.id, since: now, is_overtaken: false });
                claim
            });
            effects.ready.push(claim);
        }
    }

    /// A lane that is up holds claims back because of those that are out: if these are silent, one more may go out later.
    pub(super) fn watch(&mut self, at: usize) {
        let lane = &mut self.lanes[at];
        if lane.state == State::Up && !self.limits.ordered && !lane.is_watched {
            lane.is_watched = true;
            self.watched.push_back(at);
        }
    }

    /// Whether lanes have to be looked at again soon though nothing happens.
    pub fn is_watching(&self) -> bool {
        !self.watched.is_empty()
    }

    /// Looks at lanes that hold claims back: beside attempts that are silent one more may go out by now.
    pub fn nudge(&mut self, now: Instant, effects: &mut Effects) {
        if self.nudged.is_some_and(|last| now.saturating_duration_since(last) < NUDGE_EVERY) {
            return;
        }
        self.nudged = Some(now);
        for _ in 0..self.watched.len().min(NUDGED) {
            let Some(at) = self.watched.pop_front() else { return };
            self.lanes[at].is_watched = false;
            self.let_out(at, now, effects);
        }
    }

    /// A claim is with its worker no more; `told`: how long its attempt took, if that says something of the
    /// endpoint, and whether it was answered.
    pub(super) fn came_back(&mut self, claim: &Claim, told: Option<(Duration, bool)>, now: Instant) {
        self.forget_held(claim);
        let at_most = self.most.failed();
        self.change(claim.lane, |lane| {
            let sent = lane.came_back(claim.id);
            let Some((took, is_answered)) = told else { return };
            lane.took(took, is_answered);
            if is_answered {
                lane.overtake(sent, now, at_most);
            }
        });
    }

    pub(super) fn take_held(&mut self, at: usize, id: Id) -> Option<Box<Claim>> {
        let place = self.lanes[at].held.iter().position(|held| held.id == id)?;
        let claim = self.change(at, |lane| lane.held.remove(place))?;
        self.forget_held(&claim);
        Some(claim)
    }

    /// A claim is counted among those held no more.
    pub(super) fn forget_held(&mut self, claim: &Claim) {
        self.held_bytes -= claim.envelope.held_size();
        self.count_suspect(claim, -1);
    }

    pub(super) fn count_suspect(&mut self, claim: &Claim, by: isize) {
        if claim.is_suspect() {
            let grade = (claim.recovered as usize - 2).min(2);
            self.suspects[grade] = self.suspects[grade].saturating_add_signed(by);
        }
    }

    pub(super) fn wait_for_slot(&mut self, at: usize) {
        let lane = &mut self.lanes[at];
        if !lane.on_stack {
            lane.on_stack = true;
            match kind(lane) {
                Kind::New => self.new_without_slot.push(at),
                Kind::Failed => self.failed_without_slot.push_back(at),
                Kind::FailedSlowly => self.failed_slowly_without_slot.push_back(at),
                Kind::Exposed | Kind::Trusted => self.exposed_without_slot.push_back(at),
            }
        }
    }

    /// Of the new lanes the newest first: behind a thousand black holes a healthy newcomer must not queue.
    /// New and failed ones go first in turn, where both may have the next slot.
    pub(super) fn fill_slots(&mut self, now: Instant, effects: &mut Effects) {
        loop {
            self.failed_first = !self.failed_first;
            let unproven = [Kind::New, Kind::Failed, Kind::FailedSlowly];
            let order = if self.failed_first { [1, 2, 0] } else { [0, 1, 2] };
            let kinds = std::iter::once(Kind::Exposed).chain(order.map(|n| unproven[n]));
            let next = kinds.filter(|kind| self.most.allows(*kind, &self.shares)).find_map(|kind| match kind {
                Kind::New => self.new_without_slot.pop(),
                Kind::Failed => self.failed_without_slot.pop_front(),
                Kind::FailedSlowly => self.failed_slowly_without_slot.pop_front(),
                Kind::Exposed | Kind::Trusted => self.exposed_without_slot.pop_front(),
            });
            let Some(at) = next else { return };
            self.lanes[at].on_stack = false;
            self.let_out(at, now, effects);
        }
    }

    pub(super) fn has_idle_worker(&self) -> bool {
        self.shares.out < self.limits.workers
    }
}
