//! What the queue has answered, of settlements, of lanes and of the agent itself: for the settler, and of lanes for
//! the reader too.

use std::time::Instant;

use super::{CONFIRMED_AT_ONCE, Dispatch, LEARNED_AT_ONCE};
use crate::lanes::Effects;
use crate::queue::{AgentNumber, Id, Settlement, WaitingLane};

impl Dispatch {
    /// The queue has settled these.
    pub fn confirmed(&self, settlements: &[Settlement]) {
        for some in settlements.chunks(CONFIRMED_AT_ONCE) {
            let mut inner = self.inner();
            inner.lanes.confirmed(some, Instant::now());
            self.wake_reader(&mut inner);
        }
    }

    /// What waits by lane, as other agents left it.
    pub fn learn(&self, waiting: &[WaitingLane], asked: Instant) {
        let most = self.inner().lanes.learned_at_most();
        for some in waiting[..waiting.len().min(most)].chunks(LEARNED_AT_ONCE) {
            self.inner().lanes.learn(some, asked, Instant::now());
        }
    }

    /// All claims held.
    pub fn held(&self) -> Vec<Id> {
        self.inner().lanes.held()
    }

    /// The agent is registered under this number, as of a call sent at `sent`. Claims that
    /// are another agent's now, told by their id and number, are forgotten in the same step.
    pub fn registered(&self, number: AgentNumber, sent: Instant, is_theirs: impl Fn(Id, AgentNumber) -> bool) {
        let mut effects = Effects::default();
        let mut inner = self.inner();
        inner.lanes.discard(is_theirs, Instant::now(), &mut effects);
        self.lease.registered(number);
        self.perform(inner, effects);
        self.lease.beat_confirmed(sent);
    }
}
