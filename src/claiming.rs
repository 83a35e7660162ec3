//! The numbering of claims: which call is made next, what an answer means for it, and when what Redis
//! records as in flight here is compared with what is held. It knows no queue and no thread: the reader
//! drives it, and so does the simulation that attacks the moves.

use std::time::{Duration, Instant};

use crate::queue::{AgentNumber, Claimed, Fate, Id};

/// How often what Redis records as in flight is compared with what is held.
const AUDIT_EVERY: Duration = Duration::from_secs(60);

/// What is to be done next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// Wait: the agent is not registered, or not under a number that the queue knows.
    Register,
    /// Ask what is in flight under this number, and give back what is not held.
    Audit(AgentNumber),
    /// Claim.
    Claim,
}

/// A claim's number among those of its agent. A claim whose answer was lost is sent again under the same one:
/// then the queue answers the same batch, instead of giving another to somebody who holds one already.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Call {
    /// Under which number of the agent.
    pub agent: AgentNumber,
    /// The number of the call, from 1.
    pub number: u64,
    /// It has been sent before.
    pub again: bool,
    /// When it was sent first.
    pub asked: Instant,
}

/// What has been claimed, as far as numbers tell.
#[derive(Debug)]
pub struct Claiming {
    agent: Option<AgentNumber>,
    /// The queue does not know this one any more; the settler registers another.
    gone: Option<AgentNumber>,
    call: u64,
    /// The answer to the last call has not arrived, or is not worked off.
    again: bool,
    asked: Instant,
    /// Whether the lanes that wait in the queue are known since the number was new or the standby ended.
    knows_lanes: bool,
    audited: Instant,
}

impl Claiming {
    /// Nothing is claimed yet.
    pub fn new(now: Instant) -> Claiming {
        Claiming { agent: None, gone: None, call: 0, again: false, asked: now, knows_lanes: false, audited: now }
    }

    /// What is to be done next by an agent that is registered so.
    pub fn next(&mut self, agent: Option<AgentNumber>, now: Instant) -> Next {
        let Some(agent) = agent.filter(|_| agent != self.gone) else { return Next::Register };
        if self.agent != Some(agent) {
            self.agent = Some(agent);
            (self.call, self.again, self.knows_lanes) = (0, false, false);
        }
        // With a claim outstanding the queue knows more than is held here.
        let audits = !self.again && now.saturating_duration_since(self.audited) >= AUDIT_EVERY;
        if audits { Next::Audit(agent) } else { Next::Claim }
    }

    /// Whether the last call is to be sent again.
    pub fn is_again(&self) -> bool {
        self.again
    }

    /// The next call, or the last one once more. `None` without a number.
    pub fn call(&mut self, now: Instant) -> Option<Call> {
        let agent = self.agent?;
        let again = std::mem::replace(&mut self.again, true);
        if !again {
            self.call += 1;
            self.asked = now;
        }
        Some(Call { agent, number: self.call, again, asked: self.asked })
    }

    /// Takes in an answer. True if the lanes that wait in the queue are to be asked for before what was taken
    /// is admitted: only now is nobody else's message in flight (in strict order). If that fails, the call is
    /// sent again and answered again.
    pub fn answered(&mut self, claimed: &Claimed) -> bool {
        match claimed {
            Claimed::Gone => {
                self.again = false;
                self.gone = self.agent.take();
            }
            Claimed::Standby => (self.again, self.knows_lanes) = (false, false),
            Claimed::Taken { .. } => return !self.knows_lanes,
        }
        false
    }

    /// What was taken is about to be admitted, and the lanes are known.
    pub fn admitted(&mut self) {
        (self.again, self.knows_lanes) = (false, true);
    }

    /// What is in flight was compared with what is held.
    pub fn audited(&mut self, now: Instant) {
        self.audited = now;
    }

    /// What the queue has may be older than what is held: they are compared as soon as it answers.
    pub fn doubt(&mut self, now: Instant) {
        self.audited = now.checked_sub(AUDIT_EVERY).unwrap_or(now);
    }
}

/// Which of the claims that are held are others' when the agent is registered anew, after `old`, of which the
/// queue says `fate`. If others took the old number for dead, the queue knew all that was claimed under it, and
/// all of it is theirs, delivered or not. Else the queue has lost data: then what it has (`known`) must be
/// another copy, and what it has no more exists only here.
pub fn taken_over(
    old: Option<AgentNumber>,
    fate: Fate,
    known: impl Fn(Id) -> bool,
) -> impl Fn(Id, AgentNumber) -> bool {
    let recovered = old.filter(|_| fate == Fate::Recovered);
    move |id, agent| match recovered {
        Some(recovered) => agent == recovered,
        None => known(id),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: AgentNumber = AgentNumber(7);

    fn taken() -> Claimed {
        Claimed::Taken {
            claims: Vec::new(),
            emptied: Vec::new(),
            failures: Vec::new(),
            oversized: Vec::new(),
            due_in: None,
            more: false,
            at: 0,
            numbered: 0,
            orders: None,
        }
    }

    fn number_of(call: Option<Call>) -> (u64, bool) {
        let call = call.expect("it has a number");
        (call.number, call.again)
    }

    #[test]
    fn a_claim_without_an_answer_is_sent_again_under_its_number() {
        let now = Instant::now();
        let mut claiming = Claiming::new(now);
        assert_eq!(claiming.call(now), None);
        assert_eq!(claiming.next(None, now), Next::Register);
        assert_eq!(claiming.next(Some(ME), now), Next::Claim);
        assert_eq!(number_of(claiming.call(now)), (1, false));
        let later = now + Duration::from_secs(1);
        let again = claiming.call(later).unwrap();
        assert_eq!((again.number, again.again, again.asked), (1, true, now));
        // Until the lanes are known it is not over.
        assert!(claiming.answered(&taken()));
        assert_eq!(number_of(claiming.call(later)), (1, true));
        assert!(claiming.answered(&taken()));
        claiming.admitted();
        assert_eq!(number_of(claiming.call(later)), (2, false));
        assert!(!claiming.answered(&taken()));
    }

    #[test]
    fn a_number_that_the_queue_does_not_know_is_used_no_more() {
        let now = Instant::now();
        let mut claiming = Claiming::new(now);
        claiming.next(Some(ME), now);
        claiming.call(now);
        assert!(!claiming.answered(&Claimed::Gone));
        assert_eq!((claiming.next(Some(ME), now), claiming.call(now)), (Next::Register, None));
        assert_eq!(claiming.next(Some(AgentNumber(8)), now), Next::Claim);
        assert_eq!(number_of(claiming.call(now)), (1, false));
        // The lanes are asked for anew.
        assert!(claiming.answered(&taken()));
    }

    #[test]
    fn after_a_standby_the_lanes_are_asked_for_anew() {
        let now = Instant::now();
        let mut claiming = Claiming::new(now);
        claiming.next(Some(ME), now);
        claiming.call(now);
        claiming.answered(&taken());
        claiming.admitted();
        claiming.call(now);
        assert!(!claiming.answered(&Claimed::Standby));
        assert_eq!(number_of(claiming.call(now)), (3, false));
        assert!(claiming.answered(&taken()));
    }

    #[test]
    fn what_is_held_is_compared_every_minute_and_after_an_outage_but_never_with_a_claim_outstanding() {
        let now = Instant::now();
        let mut claiming = Claiming::new(now);
        assert_eq!(claiming.next(Some(ME), now), Next::Claim);
        let later = now + AUDIT_EVERY;
        assert_eq!(claiming.next(Some(ME), later), Next::Audit(ME));
        claiming.audited(later);
        assert_eq!(claiming.next(Some(ME), later), Next::Claim);
        claiming.call(later);
        claiming.doubt(later + AUDIT_EVERY);
        assert_eq!(claiming.next(Some(ME), later + AUDIT_EVERY), Next::Claim);
        claiming.answered(&taken());
        claiming.admitted();
        assert_eq!(claiming.next(Some(ME), later + AUDIT_EVERY), Next::Audit(ME));
    }

    #[test]
    fn what_others_took_over_is_theirs_and_what_the_queue_lost_is_ours() {
        let [known, lost] = [Id(1), Id(2)];
        let check = |old, fate, expected: [bool; 3]| {
            let is_theirs = taken_over(old, fate, |id| id == known);
            assert_eq!(
                [is_theirs(known, ME), is_theirs(lost, ME), is_theirs(known, AgentNumber(8))],
                expected,
                "{fate:?}"
            );
        };
        check(Some(ME), Fate::Recovered, [true, true, false]);
        check(Some(ME), Fate::Unknown, [true, false, true]);
        check(Some(ME), Fate::Registered, [true, false, true]);
        check(None, Fate::Unknown, [true, false, true]);
    }
}
