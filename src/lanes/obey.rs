//! What operators order for endpoints: a lane that is paused lets nothing out and keeps nothing here, and what it had
//! waits in the queue; one that is to be tried, or is paused no more, does not go by its backoff.

use std::time::Instant;

use super::lane::State;
use super::{Claim, Effects, Lanes, News};
use crate::orders::{Order, Orders};
use crate::queue::{LaneChange, Source};

impl Lanes {
    /// Takes in the orders that are in force; those known already change nothing. What paused lanes hold is then to be
    /// put away ([`Lanes::put_away`]).
    pub fn obey(&mut self, orders: Orders, now: Instant, effects: &mut Effects) {
        if self.orders == orders {
            return;
        }
        let known = std::mem::replace(&mut self.orders, orders);
        self.tell(&known, effects);
        let resumed: Vec<usize> = known.paused().filter_map(|(origin, _)| self.lane_if(origin)).collect();
        for at in resumed {
            if !self.orders.is_paused(&self.lanes[at].origin) {
                self.lanes[at].is_paused = false;
                self.try_now(at);
            }
        }
        let orders = std::mem::take(&mut self.orders);
        for (origin, order) in &orders.by_origin {
            let Some(at) = self.lane_if(origin) else { continue };
            match order {
                Order::Paused(_) => self.pause(at, now),
                Order::Try(_) if known.by_origin.get(origin) != Some(order) => self.try_now(at),
                Order::Try(_) => {}
            }
        }
        self.orders = orders;
    }

    /// Endpoints that are paused, for people: how many, and at most so many of them, by name.
    pub fn paused(&self, at_most: usize) -> (usize, Vec<String>) {
        let mut paused: Vec<String> = self.orders.paused().map(|(origin, _)| origin.clone()).collect();
        let n = paused.len();
        paused.sort_unstable();
        paused.truncate(at_most);
        (n, paused)
    }

    /// Puts to wait what lanes hold that are paused by now, so many claims at most; whether there are more.
    pub fn put_away(&mut self, at_most: usize, now: Instant, effects: &mut Effects) -> bool {
        for _ in 0..at_most {
            let Some(&at) = self.to_put_away.last() else { return false };
            // Resumed meanwhile, it goes on with what it has.
            let is_paused = self.lanes[at].is_paused;
            let Some(claim) = self.change(at, |lane| if is_paused { lane.held.pop_front() } else { None }) else {
                self.to_put_away.pop();
                self.not_probing(at, now);
                self.let_out(at, now, effects);
                continue;
            };
            self.forget_held(&claim);
            self.put_to_wait(&claim, None, now, effects);
        }
        !self.to_put_away.is_empty()
    }

    /// Whether anything is paused.
    pub fn pauses_any(&self) -> bool {
        self.orders.paused().next().is_some()
    }

    /// Whether something is held here that might go out without another claim: then it has to be asked for orders.
    pub fn holds_any(&self) -> bool {
        self.n_held() > 0
    }

    /// Whether this claim's endpoint is paused.
    pub fn is_paused(&self, claim: &Claim) -> bool {
        self.lanes[claim.lane].is_paused
    }

    /// A worker has not begun this one, for its endpoint was paused on the way.
    pub fn withdraw(&mut self, claim: Box<Claim>, now: Instant, effects: &mut Effects) {
        if self.is_discarded(&claim) {
            return self.abandon(claim, now, effects);
        }
        self.came_back(&claim, None, now);
        self.put_to_wait(&claim, None, now, effects);
        self.not_probing(claim.lane, now);
        self.fill_slots(now, effects);
    }

    /// A claim of a lane that is paused has arrived.
    pub(super) fn admit_paused(&mut self, claim: &Claim, now: Instant, effects: &mut Effects) {
        if claim.source == Source::Retry {
            if self.limits.ordered {
                self.filing.insert(claim.id);
            }
            // Should it be paused no more by now.
            effects.changes.push(LaneChange::Freed(claim.origin.clone()));
        }
        self.put_to_wait(claim, None, now, effects);
        self.not_probing(claim.lane, now);
    }

    fn tell(&self, known: &Orders, effects: &mut Effects) {
        let only_in = |these: &Orders, those: &Orders| {
            let mut origins: Vec<String> = these
                .paused()
                .filter(|(origin, _)| !those.is_paused(origin))
                .map(|(origin, _)| origin.clone())
                .collect();
            origins.sort_unstable();
            origins
        };
        let (paused, resumed) = (only_in(&self.orders, known), only_in(known, &self.orders));
        if !paused.is_empty() || !resumed.is_empty() {
            effects.news.push(News::Ordered { paused, resumed });
        }
    }

    fn lane_if(&self, origin: &str) -> Option<usize> {
        self.by_origin.get(origin).copied()
    }

    fn pause(&mut self, at: usize, now: Instant) {
        if std::mem::replace(&mut self.lanes[at].is_paused, true) {
            return;
        }
        self.stop_wanting(at);
        if self.lanes[at].held.is_empty() {
            self.not_probing(at, now);
        } else {
            self.to_put_away.push(at);
        }
    }

    /// The probe of a lane that is down has not gone out: it is not left to what would have become of that.
    fn not_probing(&mut self, at: usize, now: Instant) {
        let lane = &mut self.lanes[at];
        if lane.lacks_probe() {
            lane.down_until = Some(now);
        }
    }

    /// The next message tries it, whichever that is.
    fn try_now(&mut self, at: usize) {
        let lane = &mut self.lanes[at];
        if lane.state == State::Down {
            lane.down_until = None;
        }
    }
}
