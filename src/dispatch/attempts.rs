//! For the workers: whether a claim may be attempted, where its attempt is redirected to, and how it ended.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use super::{Attempting, Dispatch};
use crate::lanes::{Claim, Closed, Effects};
use crate::lease::lock;
use crate::metrics::add;
use crate::policy::Outcome;

/// Whether a claim may be attempted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Begin {
    /// Yes.
    Now,
    /// No: it is not this agent's any more, or the agent stops.
    Never,
    /// Not now: its endpoint was paused since it was let out.
    Paused,
}

/// A redirected attempt waits so long for a place in the window of where it is redirected to; a worker is held up meanwhile.
const PLACE_PATIENCE: Duration = Duration::from_millis(250);

impl Dispatch {
    /// Whether a claim may be attempted now. Blocks while the agent cannot be sure
    /// that the claim is still its own: no confirmed beat for two thirds of the lease.
    pub fn may_begin(&self, claim: &Claim) -> Begin {
        loop {
            if self.lease.is_stopping() {
                return Begin::Never;
            }
            if self.lease.number() != Some(claim.agent) && self.inner().lanes.is_discarded(claim) {
                add(&self.metrics.taken_over, 1);
                return Begin::Never;
            }
            if self.lease.is_beat_fresh() {
                let is_paused = self.pauses_any.load(Ordering::SeqCst) && self.inner().lanes.is_paused(claim);
                return if is_paused { Begin::Paused } else { Begin::Now };
            }
            self.lease.wait_for_change(Duration::from_millis(100));
        }
    }

    /// Takes note of what worker `n` attempts.
    pub fn attempting(&self, n: usize, attempting: Option<Attempting>) {
        *lock(&self.attempting[n]) = attempting;
    }

    /// A worker's attempt is over. Returns a claim for this worker to go on with, if
    /// there is one and nobody has been waiting for longer: that spares a way through
    /// the channel and the waking of another thread.
    pub fn finish(
        &self,
        claim: Box<Claim>,
        outcome: Outcome,
        guest_of: Option<&str>,
        begun: Instant,
    ) -> Option<Box<Claim>> {
        let now = Instant::now();
        let mut effects = Effects::default();
        let mut inner = self.inner();
        inner.lanes.finish(claim, outcome, guest_of, begun, now, &mut effects);
        let nobody_waits = inner.ready.as_ref().is_some_and(Sender::is_empty);
        let next = if nobody_waits && !effects.ready.is_empty() { Some(effects.ready.remove(0)) } else { None };
        self.perform(inner, effects);
        next
    }

    /// The attempt of a claim is redirected to `origin` (and so leaves `left`, if it was redirected before): whether
    /// the lane of that one takes it. Waits a moment for a place in its window.
    ///
    /// # Errors
    ///
    /// Why it takes none.
    pub fn enter(&self, origin: &str, left: Option<&str>) -> Result<(), Closed> {
        let until = Instant::now() + PLACE_PATIENCE;
        self.leave(left);
        loop {
            let now = Instant::now();
            match self.inner().lanes.enter(origin, now) {
                Err(Closed::Full) if now < until && !self.lease.is_stopping() => {}
                entered => return entered,
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// A redirected attempt goes on from there.
    pub fn leave(&self, origin: Option<&str>) {
        let Some(origin) = origin else { return };
        let mut effects = Effects::default();
        let mut inner = self.inner();
        inner.lanes.leave(origin, Instant::now(), &mut effects);
        self.perform(inner, effects);
    }

    /// A worker hands back a claim whose endpoint is paused.
    pub fn withdraw(&self, claim: Box<Claim>) {
        let mut effects = Effects::default();
        let mut inner = self.inner();
        inner.lanes.withdraw(claim, Instant::now(), &mut effects);
        self.perform(inner, effects);
    }

    /// A worker hands back a claim that it may not attempt.
    pub fn abandon(&self, claim: Box<Claim>) {
        let mut effects = Effects::default();
        let mut inner = self.inner();
        inner.lanes.abandon(claim, Instant::now(), &mut effects);
        self.perform(inner, effects);
    }
}
