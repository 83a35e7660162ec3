//! The agent's registration: joining, renewing the lease by heartbeats, and what is learned with each of them: who is
//! dead, what other agents know of lanes, and whether the clock was set.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use log::{debug, error, info, warn};

use super::Settler;
use super::chores::Chore;
use crate::claiming::taken_over;
use crate::lease::{REDIS_AWAY, Thread};
use crate::peers::between_beats;
use crate::queue::{Error, Fate, Id, Queue};
use crate::text::spell;

/// Lanes that other agents may have closed are looked at so many a beat, in turn.
const LANES_PER_BEAT: usize = 1000;
/// So often it is looked whether such a reader turns again.
pub(super) const BEAT_OF_THE_STUCK: Duration = Duration::from_secs(1);
/// An agent that the queue forgets again and again joins again after pauses that grow from this to the longer.
pub(super) const REJOIN_MIN: Duration = Duration::from_millis(500);
const REJOIN_MAX: Duration = Duration::from_secs(10);

impl Settler<'_> {
    /// An agent that cannot claim must not keep what it holds from the others: its lease is not renewed,
    /// until the reader turns again.
    pub(super) fn reader_is_stuck(&mut self) -> bool {
        let since = self.dispatch.lease.since_turn(Thread::Reader);
        // It may take as long to wait for Redis.
        let stuck = since > (self.options.lease * 2).max(REDIS_AWAY);
        if stuck && !self.said_stuck {
            error!(
                "the reader thread has made no progress for {}: this agent stops renewing its lease, so that other agents take over",
                spell(since)
            );
        } else if !stuck && self.said_stuck {
            info!("the reader thread makes progress again: the lease is renewed");
        }
        self.said_stuck = stuck;
        stuck
    }

    pub(super) fn unregistered(&mut self) {
        self.dispatch.lease.unregistered();
        self.number = None;
    }

    pub(super) fn join(&mut self, queue: &mut dyn Queue) -> Result<(), Error> {
        if !self.prepared {
            for line in queue.prepare()? {
                warn!("{line}");
            }
            self.prepared = true;
        }
        let old = self.dispatch.lease.number();
        let sent = Instant::now();
        let joined = queue.join(self.options.lease, old, self.dispatch.lease.seen())?;
        let known = if joined.old == Fate::Recovered { HashSet::new() } else { self.known_of_held(queue)? };
        self.outbox.joined(old, joined.old);
        if old.is_none() {
            // Later steps are seen from one beat to the next.
            self.dispatch.lease.note_set_back(joined.set_back);
        }
        self.number = Some(joined.number);
        self.peers.clear();
        self.chores.retain(|chore| !matches!(chore, Chore::Recover(..)));
        self.dispatch.lease.see(joined.number.0);
        self.dispatch.registered(joined.number, sent, taken_over(old, joined.old, |id| known.contains(&id)));
        // The first look at the others is at once: a predecessor that died is known after one lease.
        self.next_beat = Instant::now();
        // A queue that forgets us time and again is not asked to remember us without a pause.
        if self.next_join + REJOIN_MAX < sent {
            self.join_pause = REJOIN_MIN;
        }
        self.next_join = sent + self.join_pause;
        self.join_pause = (self.join_pause * 2).min(REJOIN_MAX);
        debug!("registered as agent {}", joined.number);
        Ok(())
    }

    /// Of what is held, what the queue has, wherever.
    fn known_of_held(&self, queue: &mut dyn Queue) -> Result<HashSet<Id>, Error> {
        let held = self.dispatch.held();
        let known = queue.has(&held)?;
        Ok(held.into_iter().zip(known).filter(|(_, known)| *known).map(|(id, _)| id).collect())
    }

    pub(super) fn beat(&mut self, queue: &mut dyn Queue) -> Result<(), Error> {
        let Some(number) = self.number else { return Ok(()) };
        let sent = Instant::now();
        let beat = queue.beat(number, self.options.lease, self.dispatch.lease.seen(), self.options.longest_delay)?;
        self.dispatch.lease.note_clock(beat.at, sent);
        self.dispatch.lease.see(beat.numbered);
        self.next_beat = sent + between_beats(self.options.lease);
        if !beat.registered {
            warn!("the queue does not know this agent any more; registering again");
            self.unregistered();
            return Ok(());
        }
        self.dispatch.lease.beat_confirmed(sent);
        for dead in self.peers.look_at(&beat.peers, self.options.lease, sent) {
            let is_known = |chore: &Chore| matches!(chore, Chore::Recover(known, _) if known.number == dead.number);
            if !self.chores.iter().any(is_known) {
                self.chores.push_front(Chore::Recover(dead, 0));
            }
        }
        // After a step back what was put off is due too late by the step. Half of it: some of that was overdue;
        // what was really put off for longer is attempted once too early.
        if let Some(by) = self.dispatch.lease.take_set_back() {
            self.chores.push_back(Chore::Hasten(by / 2, 0));
        }
        let hastens = |chore: &Chore| matches!(chore, Chore::Hasten(..));
        if let Some(longest) = beat.beyond
            && !self.chores.iter().any(hastens)
        {
            self.chores.push_back(Chore::Hasten(longest, 0));
        }
        // Lanes that are about to be due at once are better not learned as due in hours.
        if !beat.peers.is_empty() && !self.chores.iter().any(hastens) {
            let asked = Instant::now();
            let lanes = queue.some_lanes(self.next_lane, LANES_PER_BEAT)?;
            self.next_lane = if lanes.len() < LANES_PER_BEAT { 0 } else { self.next_lane + lanes.len() };
            self.dispatch.learn(&lanes, asked);
        }
        Ok(())
    }
}
