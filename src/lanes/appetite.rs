//! How much may be claimed: by what is held, by the workers that are idle, and by the shares of lanes that are not proven.

use std::time::Instant;

use super::known::WANTS_PER_CLAIM;
use super::{Effects, Lanes};
use crate::queue::Bounds;

/// Claims taken at once at most; measured: 0.4 ms of Redis for 64 of 2 KB, and no faster per message beyond.
const CLAIM_MESSAGES: usize = 128;
/// Bytes taken at once; a claim this large already costs Redis a millisecond or two.
const CLAIM_BYTES: usize = 4 << 20;
/// A message this large is still taken, by itself, where fewer bytes may be held; recipients take 2 MiB.
const LARGEST: usize = 64 << 20;

impl Lanes {
    /// What the reader may claim now; `None` while there is no room worth a claim. `again`
    /// if a claim whose answer was lost is to be sent again.
    pub fn appetite(&mut self, again: bool, now: Instant, effects: &mut Effects) -> Option<Bounds> {
        self.nudge(now, effects);
        if !self.has_room() {
            if self.filing.is_empty() && self.has_idle_worker() {
                self.spill(now, effects);
            }
            return None;
        }
        // A claim begun from now on sees all that is confirmed; one that is sent again may be as old as it was.
        if !again {
            for (at, id) in self.lately_confirmed.drain(..) {
                let parked = &mut self.lanes[at].parked;
                match parked.get_mut(&id) {
                    Some(times) if *times > 1 => *times -= 1,
                    _ => drop(parked.remove(&id)),
                }
            }
        }
        let limit = self.held_at_most();
        let messages = (limit - self.n_held()).min(CLAIM_MESSAGES);
        self.round_up = !self.round_up;
        // Twice as many new lanes as may be out, so that the next are here when a slot is free.
        let new = (2 * self.most.new_lanes()).saturating_sub(self.shares.new + self.new_without_slot.len());
        let (fast, slow) = (self.failed_without_slot.len(), self.failed_slowly_without_slot.len());
        let failed = self.most.failed().saturating_sub(self.shares.failed + fast + slow);
        let failed_slowly = self.most.failed_slowly().saturating_sub(self.shares.failed_slowly + slow);
        Some(Bounds {
            messages,
            bytes: CLAIM_BYTES.min(self.limits.bytes - self.bytes()).max(1),
            largest: self.limits.bytes.max(LARGEST),
            returning: if self.round_up { messages.div_ceil(2) } else { messages / 2 },
            wants: self.wants(),
            probes: new,
            failed_probes: failed,
            slow_probes: failed_slowly.min(failed),
            probe_for: self.limits.attempt,
            fragile: self.limits.workers.saturating_sub(self.shares.out),
            suspects: self.suspects.iter().sum(),
            gravest: self.suspects.iter().rposition(|n| *n > 0).map_or(0, |at| at as u32 + 2),
            ordered: self.limits.ordered,
            popped: None,
            seen: 0,
            orders: self.orders.number,
        })
    }

    /// Whether a claim would be worth its round trip.
    pub fn has_room(&self) -> bool {
        let limit = self.held_at_most();
        let worth_it = (CLAIM_MESSAGES / 2).min(limit / 4).max(1);
        self.filing.is_empty() && self.n_held() + worth_it <= limit && self.bytes() < self.limits.bytes
    }

    /// Whether some lane that is up has more waiting in the queue: then the reader looks
    /// there again soon, in place of waiting for new messages alone.
    pub fn is_draining(&self) -> bool {
        !self.wanting.is_empty()
    }

    /// Whether some lane that is up has room for more of what waits; of many, those that are asked for next are looked at.
    pub fn is_hungry(&self) -> bool {
        let next = self.wanting.iter().take(4 * WANTS_PER_CLAIM);
        next.into_iter().any(|&at| self.lanes[at].held.len() <= self.kept / 2)
    }
}
