//! What became of claims, kept until the queue has confirmed it: batches under a call number, sent again under
//! the same one if the answer was lost; and what to do with settlements that the queue refuses, since the claim
//! is not this agent's any more. It knows no queue and no thread: the settler drives it, and so does the
//! simulation that attacks the moves.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use crate::queue::{AgentNumber, Fate, Id, LaneChange, Settlement};

/// Numbers of ours of which it is remembered that others took them over.
const MOST_TAKEN_OVER: usize = 100;

/// What goes to the queue in one call.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// What became of claims.
    pub settlements: Vec<Settlement>,
    /// What became of lanes, after these.
    pub changes: Vec<LaneChange>,
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.settlements.is_empty() && self.changes.is_empty()
    }

    /// The first of what there is. All changes go with them only once the settlements before them fit.
    fn take(&mut self, at_most: usize) -> Batch {
        if self.settlements.len() > at_most {
            let rest = self.settlements.split_off(at_most);
            return Batch { settlements: std::mem::replace(&mut self.settlements, rest), changes: Vec::new() };
        }
        std::mem::take(self)
    }
}

/// A message that exists only here, perhaps.
pub type Held = (Id, Arc<Vec<u8>>);

/// What the queue has not confirmed yet.
#[derive(Debug, Default)]
pub struct Outbox {
    call: u64,
    backlog: Batch,
    /// Sent, and not yet confirmed.
    sent: Option<Batch>,
    /// The queue says that these are not ours any more; it may have lost them.
    astray: VecDeque<Settlement>,
    /// How many of these, from the front, the queue is asked to take back.
    restoring: usize,
    /// Numbers of ours that others took for dead: what was claimed under them is others' now.
    taken_over: VecDeque<AgentNumber>,
}

impl Outbox {
    /// A claim came to an end, or has to go back.
    pub fn settle(&mut self, settlement: Settlement) {
        self.backlog.settlements.push(settlement);
    }

    /// A lane came up or went down.
    pub fn change(&mut self, change: LaneChange) {
        self.backlog.changes.push(change);
    }

    /// Settlements that were not sent yet.
    pub fn n_waiting(&self) -> usize {
        self.backlog.settlements.len()
    }

    /// Whether something was not sent yet, or is to be restored.
    pub fn has_more(&self) -> bool {
        !self.backlog.is_empty() || !self.astray.is_empty()
    }

    /// Whether all is confirmed.
    pub fn is_empty(&self) -> bool {
        self.sent.is_none() && !self.has_more()
    }

    /// All settlements that are not confirmed.
    pub fn unconfirmed(&self) -> impl Iterator<Item = &Settlement> {
        self.backlog.settlements.iter().chain(&self.astray).chain(self.sent())
    }

    /// Of these, what the queue may have been told already.
    pub fn sent(&self) -> impl Iterator<Item = &Settlement> {
        self.sent.iter().flat_map(|batch| &batch.settlements)
    }

    /// The next call, with at most so many settlements, or the last one once more: its number and what goes with it.
    pub fn next(&mut self, at_most: usize) -> Option<(u64, &Batch)> {
        if self.sent.is_none() {
            if self.backlog.is_empty() {
                return None;
            }
            self.call += 1;
            self.sent = Some(self.backlog.take(at_most));
        }
        self.sent.as_ref().map(|batch| (self.call, batch))
    }

    /// The queue has taken in the last call, but for these, which are not ours any more. Returns what is
    /// confirmed; what may be lost and is still held goes astray ([`Outbox::to_restore`]).
    pub fn confirmed(&mut self, lost: Vec<Id>) -> Vec<Settlement> {
        let Some(Batch { mut settlements, .. }) = self.sent.take() else { return Vec::new() };
        if !lost.is_empty() {
            let lost: HashSet<Id> = lost.into_iter().collect();
            let astray = settlements.extract_if(.., |one| one.kept.is_some() && lost.contains(&one.id));
            self.astray.extend(astray);
        }
        settlements
    }

    /// The agent is registered anew, after a number of which the queue says this: calls are numbered from 1 again.
    pub fn joined(&mut self, old: Option<AgentNumber>, fate: Fate) {
        self.call = 0;
        if let Some(old) = old.filter(|_| fate != Fate::Unknown) {
            self.taken_over.push_back(old);
            if self.taken_over.len() > MOST_TAKEN_OVER {
                self.taken_over.pop_front();
            }
        }
    }

    /// What the queue should take back, so many messages and (beside the one that reaches it) bytes at most, and
    /// what is confirmed instead: what another agent took over is its own. What Redis has lost exists only here.
    pub fn to_restore(&mut self, at_most: usize, bytes_at_most: usize) -> (Vec<Held>, Vec<Settlement>) {
        let (mut ours, mut theirs, mut bytes) = (Vec::new(), Vec::new(), 0);
        while ours.len() < at_most
            && bytes < bytes_at_most
            && let Some(one) = self.astray.get(ours.len())
        {
            match &one.kept {
                Some(kept) if !self.taken_over.contains(&kept.agent) => {
                    bytes += kept.bytes.len();
                    ours.push((one.id, kept.bytes.clone()));
                }
                _ => theirs.extend(self.astray.remove(ours.len())),
            }
        }
        self.restoring = ours.len();
        (ours, theirs)
    }

    /// Of what it was asked to take back the queue has these in flight here: they are settled like anything else.
    /// Returns how many these are, and what is confirmed: the queue has that in another place.
    pub fn restored(&mut self, ids: &HashSet<Id>) -> (usize, Vec<Settlement>) {
        let asked_for = self.astray.drain(..std::mem::take(&mut self.restoring));
        let (back, elsewhere): (Vec<_>, Vec<_>) = asked_for.partition(|one| ids.contains(&one.id));
        let n_back = back.len();
        self.backlog.settlements.extend(back);
        (n_back, elsewhere)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::{History, Kept, Place};

    const ME: AgentNumber = AgentNumber(7);

    fn settlement(id: u64, agent: Option<AgentNumber>) -> Settlement {
        let kept = agent.map(|agent| Kept { agent, bytes: Arc::new(vec![0; 10]) });
        Settlement { id: Id(id), origin: Arc::from(""), place: Place::Dead, history: History::default(), kept }
    }

    fn ids<'a>(settlements: impl IntoIterator<Item = &'a Settlement>) -> Vec<u64> {
        settlements.into_iter().map(|one| one.id.0).collect()
    }

    fn outbox(agents: &[Option<AgentNumber>]) -> Outbox {
        let mut outbox = Outbox::default();
        for (n, agent) in agents.iter().enumerate() {
            outbox.settle(settlement(n as u64 + 1, *agent));
        }
        outbox
    }

    #[test]
    fn a_call_is_the_same_until_it_is_confirmed_and_changes_come_after_all_settlements() {
        let mut outbox = outbox(&[None; 3]);
        outbox.change(LaneChange::Up(Arc::from("http://a:80")));
        let next = |outbox: &mut Outbox| {
            outbox.next(2).map(|(call, batch)| (call, ids(&batch.settlements), batch.changes.len()))
        };
        assert_eq!(next(&mut outbox), Some((1, vec![1, 2], 0)));
        outbox.settle(settlement(4, None));
        assert_eq!(next(&mut outbox), Some((1, vec![1, 2], 0)));
        assert_eq!((ids(outbox.sent()), ids(outbox.unconfirmed())), (vec![1, 2], vec![3, 4, 1, 2]));
        assert_eq!(ids(&outbox.confirmed(Vec::new())), [1, 2]);
        assert_eq!(next(&mut outbox), Some((2, vec![3, 4], 1)));
        outbox.confirmed(Vec::new());
        assert_eq!(next(&mut outbox), None);
        assert!(outbox.is_empty());
        // Under a new number from 1 again.
        outbox.joined(None, Fate::Unknown);
        outbox.settle(settlement(5, None));
        assert_eq!(next(&mut outbox), Some((1, vec![5], 0)));
    }

    #[test]
    fn what_the_queue_has_lost_is_restored_and_settled_again() {
        let mut outbox = outbox(&[Some(ME), Some(ME), Some(ME), None]);
        outbox.next(10);
        // What is not held any more is confirmed whatever the queue says.
        assert_eq!(ids(&outbox.confirmed(vec![Id(1), Id(2), Id(4)])), [3, 4]);
        let (ours, theirs) = outbox.to_restore(10, 1000);
        assert_eq!((ours.len(), theirs.len()), (2, 0));
        // The call failed: the same again, then one of them is somewhere else.
        assert_eq!(outbox.to_restore(10, 1000).0, ours);
        let (n_back, elsewhere) = outbox.restored(&HashSet::from([Id(2)]));
        assert_eq!((n_back, ids(&elsewhere)), (1, vec![1]));
        assert_eq!(outbox.next(10).map(|(call, batch)| (call, ids(&batch.settlements))), Some((2, vec![2])));
    }

    #[test]
    fn what_another_agent_took_over_is_not_restored() {
        let old = AgentNumber(6);
        let mut outbox = outbox(&[Some(old), Some(ME), Some(old), Some(ME), Some(ME)]);
        outbox.next(10);
        outbox.confirmed((1..=5).map(Id).collect());
        outbox.joined(Some(old), Fate::Recovered);
        // Two at most; and no more bytes than that either.
        let (ours, theirs) = outbox.to_restore(2, 1000);
        assert_eq!((ours.iter().map(|one| one.0.0).collect::<Vec<_>>(), ids(&theirs)), (vec![2, 4], vec![1, 3]));
        assert_eq!(outbox.to_restore(10, 10).0.len(), 1);
        assert_eq!(outbox.to_restore(10, 11).0.len(), 2);
        outbox.restored(&HashSet::new());
        assert_eq!(ids(outbox.unconfirmed()), [5]);
        // A number of which the queue knows nothing was nobody's to take over.
        outbox.joined(Some(ME), Fate::Unknown);
        assert_eq!(outbox.to_restore(10, 1000).0.len(), 1);
    }
}
