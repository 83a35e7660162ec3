//! What is too long for one call of the queue, or is looked for now and then: done one bounded call at a time, between
//! two looks at whether the lease is due.

use std::time::{Duration, Instant};

use log::{info, warn};

use super::{AT_ONCE, Settler};
use crate::metrics::add;
use crate::queue::{AgentNumber, Error, Peer, Queue};
use crate::text::{n_of, spell};

/// How often dead letters past their keeping are looked for.
const FORGET_EVERY: Duration = Duration::from_secs(60);
/// How often it is looked for what another delivery service has put off: it may be at work for a while yet.
const ADOPT_EVERY: Duration = Duration::from_secs(60);

/// What is too long for one call: done a call at a time.
pub(super) enum Chore {
    /// Taking back what a dead agent had in flight; how much it was so far.
    Recover(Peer, usize),
    /// Removing dead letters past their keeping.
    Forget(Duration, usize),
    /// Taking over what another delivery service has put off; from whom, how much it was so far.
    Adopt(String, usize),
    /// Making due what a clock that went back has put off too far.
    Hasten(Duration, usize),
}

impl Settler<'_> {
    /// One call of the chore that has waited longest.
    pub(super) fn do_chore(&mut self, queue: &mut dyn Queue) -> Result<(), Error> {
        let Some(number) = self.number else { return Ok(()) };
        if let Some(age) = self.options.keep_dead
            && Instant::now() >= self.next_forget
        {
            self.next_forget = Instant::now() + FORGET_EVERY;
            self.chores.push_back(Chore::Forget(age, 0));
        }
        if Instant::now() >= self.next_adopt {
            self.next_adopt = Instant::now() + ADOPT_EVERY;
            self.chores.push_back(Chore::Adopt(String::new(), 0));
        }
        let Some(mut chore) = self.chores.pop_front() else { return Ok(()) };
        if let Chore::Adopt(from, so_far) = chore {
            return self.adopt(queue, from, so_far);
        }
        match self.one_call(queue, number, &mut chore) {
            Ok(Some(n)) if n >= AT_ONCE => self.chores.push_back(chore),
            Ok(Some(_)) => self.done(chore),
            Ok(None) => {}
            Err(error) => {
                self.chores.push_front(chore);
                return Err(error);
            }
        }
        Ok(())
    }

    /// A call of taking over what another service has put off. What hinders it is said once, and tried again
    /// a minute later.
    fn adopt(&mut self, queue: &mut dyn Queue, from: String, so_far: usize) -> Result<(), Error> {
        let adopted = match queue.adopt(self.dispatch.lease.seen()) {
            Ok(adopted) => adopted,
            Err(error) => {
                self.chores.push_front(Chore::Adopt(from, so_far));
                return Err(error);
            }
        };
        let (from, so_far) = (if adopted.from.is_empty() { from } else { adopted.from }, so_far + adopted.messages);
        if adopted.more {
            self.chores.push_back(Chore::Adopt(from, so_far));
        } else if so_far > 0 {
            info!("{so_far} messages that were put off by {from} are taken over, and due when they were");
        }
        if let Some(why) = &adopted.hindrance
            && self.hindrance != adopted.hindrance
        {
            warn!("{why}");
        }
        self.hindrance = adopted.hindrance;
        Ok(())
    }

    /// How many messages it was about; `None` if the chore is not to be done.
    fn one_call(&self, queue: &mut dyn Queue, me: AgentNumber, chore: &mut Chore) -> Result<Option<usize>, Error> {
        // What is too old is so by a clock that goes on as it did when it was last looked at.
        let latest = self.dispatch.lease.latest();
        let (n, so_far) = match chore {
            Chore::Recover(dead, recovered) => {
                // Refused: it lives.
                let Some(n) = queue.recover(me, dead, AT_ONCE)? else { return Ok(None) };
                // The first call signs the dead agent off; the rest of its messages are nobody's.
                dead.lease = None;
                (n, recovered)
            }
            Chore::Forget(age, removed) => (queue.forget_dead(*age, AT_ONCE, latest)?, removed),
            Chore::Hasten(longest, hastened) => (queue.hasten(*longest, AT_ONCE)?, hastened),
            Chore::Adopt(..) => return Ok(None),
        };
        *so_far += n;
        Ok(Some(n))
    }

    fn done(&mut self, chore: Chore) {
        match chore {
            Chore::Recover(dead, recovered) => {
                self.peers.forget(dead.number);
                add(&self.dispatch.metrics.recovered, recovered as u64);
                if recovered > 0 {
                    warn!("agent {} is dead: {recovered} messages that it had in flight are due again", dead.number);
                } else {
                    info!("agent {} is dead; it had nothing in flight", dead.number);
                }
            }
            Chore::Forget(age, removed) if removed > 0 => {
                info!("{} older than {} removed for good", n_of(removed as u64, "dead message"), spell(age));
            }
            Chore::Hasten(longest, n) if n > 0 => {
                warn!(
                    "of messages and endpoints that were put off, {n} were due in more than {}, for Redis's clock had been fast: they are due now",
                    spell(longest)
                );
            }
            _ => {}
        }
    }
}
