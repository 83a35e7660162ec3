//! For the reader: how much may be claimed, what has been claimed, and what operators have ordered.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{ADMITTED_AT_ONCE, Dispatch};
use crate::lanes::{Claim, Effects, Lanes};
use crate::orders::Orders;
use crate::queue::{AgentNumber, Bounds, Id, Settlement};

impl Dispatch {
    /// Waits for room, at most this long, and says what may be claimed. `again` if an
    /// earlier claim is to be sent again.
    pub fn appetite(&self, again: bool, at_most: Duration) -> Option<Bounds> {
        let until = Instant::now() + at_most;
        let mut inner = self.inner();
        loop {
            let mut effects = Effects::default();
            let bounds = inner.lanes.appetite(again, Instant::now(), &mut effects);
            if !effects.is_empty() {
                inner = self.perform_and_lock(inner, effects);
            }
            let now = Instant::now();
            if bounds.is_some() || self.lease.is_stopping() || now >= until {
                return bounds;
            }
            inner.reader_waits = true;
            // Looked at again now and then: a lane that holds most may have become slow meanwhile.
            let nap = (until - now).min(Duration::from_millis(20));
            inner = self.room.wait_timeout(inner, nap).unwrap_or_else(|poisoned| poisoned.into_inner()).0;
            inner.reader_waits = false;
        }
    }

    /// Whether lanes have to be looked at again soon though nothing happens.
    pub fn is_watching(&self) -> bool {
        self.inner().lanes.is_watching()
    }

    /// Lets out what may go beside attempts that have become silent.
    pub fn nudge(&self) {
        let mut effects = Effects::default();
        let mut inner = self.inner();
        inner.lanes.nudge(Instant::now(), &mut effects);
        self.perform(inner, effects);
    }

    /// Whether some lane that is up has more waiting in the queue.
    pub fn is_draining(&self) -> bool {
        self.inner().lanes.is_draining()
    }

    /// Waits until a lane that is up has room for more of what waits in the queue, at most
    /// this long; the whole of it if one has, for then the queue has just given nothing.
    pub fn wait_until_hungry(&self, at_most: Duration) {
        let mut inner = self.inner();
        if inner.lanes.is_hungry() {
            drop(inner);
            return self.lease.wait_for_change(at_most);
        }
        inner.reader_waits = true;
        inner = self.room.wait_timeout(inner, at_most).unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        inner.reader_waits = false;
    }

    /// Hands claims to the lanes, unless the agent has got another number since: then
    /// they are others' already. `before` is done first, under the same lock.
    pub fn admit(&self, number: AgentNumber, before: impl FnOnce(&mut Lanes), claims: Vec<Result<Claim, Settlement>>) {
        let (mut before, mut claims) = (Some(before), claims.into_iter().peekable());
        while before.is_some() || claims.peek().is_some() {
            let mut effects = Effects::default();
            let mut inner = self.inner();
            if self.lease.number() != Some(number) {
                return;
            }
            if let Some(before) = before.take() {
                before(&mut inner.lanes);
            }
            let now = Instant::now();
            for claim in claims.by_ref().take(ADMITTED_AT_ONCE) {
                match claim {
                    Ok(claim) => inner.lanes.admit(Box::new(claim), now, &mut effects),
                    Err(unreadable) => {
                        inner.lanes.admit_unreadable(&unreadable);
                        effects.settlements.push(unreadable);
                    }
                }
            }
            self.perform(inner, effects);
        }
    }

    /// Takes in what operators have ordered.
    pub fn obey(&self, orders: Orders) {
        let mut orders = Some(orders);
        loop {
            let (mut effects, now) = (Effects::default(), Instant::now());
            let mut inner = self.inner();
            if let Some(orders) = orders.take() {
                inner.lanes.obey(orders, now, &mut effects);
                self.pauses_any.store(inner.lanes.pauses_any(), Ordering::SeqCst);
            }
            let has_more = inner.lanes.put_away(ADMITTED_AT_ONCE, now, &mut effects);
            self.perform(inner, effects);
            if !has_more {
                return;
            }
        }
    }

    /// Whether something is held that might go out without another claim.
    pub fn holds_any(&self) -> bool {
        self.inner().lanes.holds_any()
    }

    /// The ids of these that the agent does not hold.
    pub fn not_held(&self, ids: Vec<Id>) -> Vec<Id> {
        let inner = self.inner();
        ids.into_iter().filter(|id| !inner.lanes.holds(*id)).collect()
    }
}
