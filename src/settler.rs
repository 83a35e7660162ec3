//! The settler, one: writes outcomes to the queue in batches, and keeps each until
//! the queue has confirmed it; registers the agent and renews its lease; takes
//! back what dead agents left. It waits for reports and for the next beat. It
//! ends when it is told to leave, or when waiting cannot mend what Redis says.
//!
//! The beat comes first: everything that may be long (taking back, burying,
//! removing) is done one bounded call at a time between two looks at the clock.

use std::collections::{HashSet, VecDeque};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use log::{debug, error, info, warn};

use crate::backoff::Backoff;
use crate::claiming::taken_over;
use crate::dispatch::{Dispatch, Report};
use crate::journal::Speaker;
use crate::lease::Thread;
use crate::metrics::add;
use crate::outbox::Outbox;
use crate::peers::{Peers, between_beats};
use crate::queue::{AgentNumber, Error, Fate, Id, Peer, Queue, Settlement};
use crate::text::spell;

/// Settlements in one call at most; measured: 0.4 to 0.7 ms of Redis for 256 delivered.
const BATCH: usize = 512;
/// A settlement waits this long for company. Asleep and not on the channel, so
/// that those who report need not wake the settler one by one.
const LINGER: Duration = Duration::from_millis(1);
/// Messages taken back, buried, removed or made due in one call.
const AT_ONCE: usize = 500;
/// Bytes that are put back in one call, beside the message that reaches it.
const RESTORED_BYTES: usize = 4 << 20;
/// How often dead letters past their keeping are looked for.
const FORGET_EVERY: Duration = Duration::from_secs(60);
/// How often it is looked for what another delivery service has put off: it may be at work for a while yet.
const ADOPT_EVERY: Duration = Duration::from_secs(60);
/// Lanes that other agents may have closed are looked at so many a beat, in turn.
const LANES_PER_BEAT: usize = 1000;
/// A reader that has not turned for two leases, and not for this long, is stuck: while it waits for
/// Redis (to connect, for an answer, until the next try) it may take as long.
const READER_WAITS: Duration = Duration::from_secs(16);
/// So often it is looked whether such a reader turns again.
const BEAT_OF_THE_STUCK: Duration = Duration::from_secs(1);
/// An agent that the queue forgets again and again joins again after pauses that grow from this to the longer.
const REJOIN_MIN: Duration = Duration::from_millis(500);
const REJOIN_MAX: Duration = Duration::from_secs(10);

/// What the settler goes by.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long the agent is taken for alive without a beat (`--lease`).
    pub lease: Duration,
    /// Dead letters older than this are removed for good (`--keep-dead`).
    pub keep_dead: Option<Duration>,
    /// Nothing is put off for longer: what is due later than that was put off by a clock that was ahead.
    pub longest_delay: Duration,
}

/// Settles until it is told to leave.
///
/// # Errors
///
/// What waiting cannot mend: wrong password, no permission, wrong type at a key.
pub fn run(
    queue: &mut dyn Queue,
    dispatch: &Dispatch,
    reports: &Receiver<Report>,
    options: &Options,
) -> Result<(), Error> {
    let mut settler = Settler::new(dispatch, options);
    let mut backoff = Backoff::default();
    loop {
        dispatch.lease.turn(Thread::Settler);
        match settler.turn(queue) {
            Ok(true) => return Ok(()),
            Ok(false) => {
                backoff = Backoff::default();
                dispatch.journal.redis_back(Speaker::Settler);
                settler.listen(reports);
            }
            Err(error) if !error.is_lasting() => {
                dispatch.journal.redis_lost(Speaker::Settler, error.why());
                if settler.leaving {
                    return Err(error);
                }
                // What comes back may be an older copy: it learns first of all which numbers we have seen.
                settler.next_beat = Instant::now();
                // Reports are taken in meanwhile, so that a stop is heard.
                // Never longer than between two beats: an agent that is slower to come back than others
                // are to look three times is taken for dead, and what it holds goes out twice.
                let until = Instant::now() + backoff.next_pause().min(between_beats(options.lease));
                while !settler.leaving
                    && let Ok(report) = reports.recv_deadline(until)
                {
                    settler.hear(report);
                }
            }
            Err(fatal) => return Err(fatal),
        }
    }
}

/// What is too long for one call: done a call at a time.
enum Chore {
    /// Taking back what a dead agent had in flight; how much it was so far.
    Recover(Peer, usize),
    /// Removing dead letters past their keeping.
    Forget(Duration, usize),
    /// Taking over what another delivery service has put off; from whom, how much it was so far.
    Adopt(String, usize),
    /// Making due what a clock that went back has put off too far.
    Hasten(Duration, usize),
}

struct Settler<'a> {
    dispatch: &'a Dispatch,
    options: &'a Options,
    number: Option<AgentNumber>,
    prepared: bool,
    outbox: Outbox,
    chores: VecDeque<Chore>,
    next_beat: Instant,
    next_forget: Instant,
    next_adopt: Instant,
    /// Why what another service has put off could not be taken over, as it was said last.
    hindrance: Option<String>,
    /// Not before this is joined again, and how long the pause after that will be.
    next_join: Instant,
    join_pause: Duration,
    peers: Peers,
    /// The next of the lanes that other agents may have closed.
    next_lane: usize,
    leaving: bool,
    said_stuck: bool,
}

impl Settler<'_> {
    fn new<'a>(dispatch: &'a Dispatch, options: &'a Options) -> Settler<'a> {
        let now = Instant::now();
        Settler {
            dispatch,
            options,
            number: None,
            prepared: false,
            outbox: Outbox::default(),
            chores: VecDeque::new(),
            next_beat: now,
            next_forget: now,
            next_adopt: now,
            hindrance: None,
            next_join: now,
            join_pause: REJOIN_MIN,
            peers: Peers::default(),
            next_lane: 0,
            leaving: false,
            said_stuck: false,
        }
    }

    /// Does what is due. True when it has left.
    fn turn(&mut self, queue: &mut dyn Queue) -> Result<bool, Error> {
        if self.number.is_none() && (Instant::now() >= self.next_join || self.leaving) {
            self.join(queue)?;
        }
        if Instant::now() >= self.next_beat && !self.leaving && self.number.is_some() {
            if self.reader_is_stuck() {
                self.next_beat = Instant::now() + BEAT_OF_THE_STUCK.min(between_beats(self.options.lease));
            } else {
                self.beat(queue)?;
            }
        }
        self.settle(queue)?;
        self.bring_back(queue)?;
        if !self.leaving && !self.said_stuck {
            self.do_chore(queue)?;
        }
        if self.leaving && self.outbox.is_empty() {
            if let Some(number) = self.number {
                queue.leave(number)?;
            }
            return Ok(true);
        }
        Ok(false)
    }

    /// An agent that cannot claim must not keep what it holds from the others: its lease is not renewed,
    /// until the reader turns again.
    fn reader_is_stuck(&mut self) -> bool {
        let since = self.dispatch.lease.since_turn(Thread::Reader);
        let stuck = since > (self.options.lease * 2).max(READER_WAITS);
        if stuck && !self.said_stuck {
            error!(
                "the reader has not turned for {}: this agent lets its lease run out, so that others take over",
                spell(since)
            );
        } else if !stuck && self.said_stuck {
            info!("the reader turns again: the lease is renewed");
        }
        self.said_stuck = stuck;
        stuck
    }

    /// Takes in reports: waits for the first until something is due, then a moment for more.
    fn listen(&mut self, reports: &Receiver<Report>) {
        let until = match self.number {
            None => self.next_join,
            Some(_) if self.outbox.has_more() || self.leaving => return,
            Some(_) if !self.chores.is_empty() && !self.said_stuck => Instant::now(),
            Some(_) => self.next_beat,
        };
        match reports.recv_deadline(until) {
            Ok(report) => self.hear(report),
            Err(RecvTimeoutError::Timeout) => return,
            Err(RecvTimeoutError::Disconnected) => self.leaving = true,
        }
        thread::sleep(LINGER);
        while self.outbox.n_waiting() < BATCH
            && let Ok(report) = reports.try_recv()
        {
            self.hear(report);
        }
    }

    fn hear(&mut self, report: Report) {
        match report {
            Report::Settle(settlement) => self.outbox.settle(settlement),
            Report::Lane(change) => self.outbox.change(change),
            // Joined anew whatever a beat would say: Redis may have been rolled back in between.
            Report::Gone(number) if self.number == Some(number) => self.unregistered(),
            Report::Gone(_) => {}
            Report::Leave => self.leaving = true,
        }
    }

    fn unregistered(&mut self) {
        self.dispatch.lease.unregistered();
        self.number = None;
    }

    fn settle(&mut self, queue: &mut dyn Queue) -> Result<(), Error> {
        let Some(number) = self.number else { return Ok(()) };
        while let Some((call, batch)) = self.outbox.next(BATCH) {
            let Some(lost) = queue.settle(number, call, &batch.settlements, &batch.changes)? else {
                warn!("the queue knows another number of this agent's last call; joining again");
                self.unregistered();
                return Ok(());
            };
            add(&self.dispatch.metrics.settles, 1);
            self.dispatch.confirmed(&self.outbox.confirmed(lost));
            if Instant::now() >= self.next_beat {
                return Ok(());
            }
        }
        Ok(())
    }

    /// What Redis has lost and is still held goes back to be settled like anything else. A call's worth at once.
    fn bring_back(&mut self, queue: &mut dyn Queue) -> Result<(), Error> {
        let Some(number) = self.number else { return Ok(()) };
        let (messages, theirs) = self.outbox.to_restore(AT_ONCE, RESTORED_BYTES);
        self.let_go(&theirs, "another agent took it over");
        if messages.is_empty() {
            return Ok(());
        }
        // If it fails, which of them are back is told when they are asked for again.
        let Some(restored) = queue.restore(number, &messages)? else {
            self.unregistered();
            return Ok(());
        };
        let (n_back, elsewhere) = self.outbox.restored(&restored.into_iter().collect());
        self.let_go(&elsewhere, "Redis has it in another place");
        if n_back > 0 {
            warn!(
                "{n_back} messages that Redis has lost were still held here: they are in Redis again, and will be attempted again"
            );
        }
        Ok(())
    }

    /// These are not ours any more.
    fn let_go(&self, settlements: &[Settlement], why: &str) {
        for one in settlements {
            debug!("message {} is not ours any more: {why}", one.id);
        }
        self.dispatch.confirmed(settlements);
    }

    /// One call of the chore that has waited longest.
    fn do_chore(&mut self, queue: &mut dyn Queue) -> Result<(), Error> {
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
                info!("{removed} dead messages older than {} removed for good", spell(age));
            }
            Chore::Hasten(longest, n) if n > 0 => {
                warn!(
                    "{n} messages and endpoints were due in over {}, too late since Redis's clock was ahead: they are due now",
                    spell(longest)
                );
            }
            _ => {}
        }
    }

    fn join(&mut self, queue: &mut dyn Queue) -> Result<(), Error> {
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

    fn beat(&mut self, queue: &mut dyn Queue) -> Result<(), Error> {
        let Some(number) = self.number else { return Ok(()) };
        let sent = Instant::now();
        let beat = queue.beat(number, self.options.lease, self.dispatch.lease.seen(), self.options.longest_delay)?;
        self.dispatch.lease.note_clock(beat.at, sent);
        self.dispatch.lease.see(beat.numbered);
        self.next_beat = sent + between_beats(self.options.lease);
        if !beat.registered {
            warn!("the queue does not know this agent any more; joining again");
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use crate::memory::Memory;
    use crate::queue::{Bounds, Claimed, History, Place};

    const LEASE: Duration = Duration::from_secs(15);

    #[test]
    fn while_the_reader_is_stuck_the_lease_is_not_renewed_and_then_it_is_again() {
        let (mut dispatch, _ready, _reports) = Dispatch::for_tests(LEASE);
        dispatch.lease.grow_older(LEASE * 2 + Duration::from_secs(1));
        let options = Options { lease: LEASE, keep_dead: None, longest_delay: LEASE };
        let mut settler = Settler::new(&dispatch, &options);
        let mut queue = Memory::new();
        queue.set_clock(1_000_000_000);
        settler.turn(&mut queue).unwrap();
        let lease_of = |queue: &Memory| queue.state().agents.values().copied().collect::<Vec<_>>();
        let joined = lease_of(&queue);
        assert_eq!(joined, [1_015_000]);
        queue.set_clock(1_001_000_000);
        settler.next_beat = Instant::now();
        settler.turn(&mut queue).unwrap();
        assert_eq!(lease_of(&queue), joined);
        assert!(settler.said_stuck);
        // It is looked at again soon, and all is as before.
        assert!(settler.next_beat <= Instant::now() + BEAT_OF_THE_STUCK);
        dispatch.lease.turn(Thread::Reader);
        settler.next_beat = Instant::now();
        settler.turn(&mut queue).unwrap();
        assert_eq!(lease_of(&queue), [1_016_000]);
        assert!(dispatch.lease.is_beat_fresh());
    }

    #[test]
    fn who_starts_after_the_clock_was_set_back_makes_due_what_it_holds_up() {
        let mut queue = Memory::new();
        let put_off_at = 1_770_000_000_000_000;
        queue.set_clock(put_off_at);
        let before = queue.join(LEASE, None, 0).unwrap().number;
        queue.beat(before, LEASE, 0, Duration::from_secs(3600)).unwrap();
        let claimed = queue.claim(before, 1, false, &Bounds::only(b"late".to_vec())).unwrap();
        let Claimed::Taken { claims, .. } = claimed else { panic!("{claimed:?}") };
        let settlement = Settlement {
            id: claims[0].id,
            origin: Arc::from(""),
            place: Place::Retry(Duration::from_secs(5)),
            history: History::default(),
            kept: None,
        };
        queue.settle(before, 1, &[settlement], &[]).unwrap();
        queue.leave(before).unwrap();
        let due_in = |now: u64| queue.state().retry.values().map(|due| due - (now / 1000) as i64).collect::<Vec<_>>();
        let now = put_off_at - 1_800_000_000;
        queue.set_clock(now);
        assert_eq!(due_in(now), [1_805_000]);
        let (dispatch, _ready, _reports) = Dispatch::for_tests(LEASE);
        let options = Options { lease: LEASE, keep_dead: None, longest_delay: Duration::from_secs(3600) };
        let mut settler = Settler::new(&dispatch, &options);
        for _ in 0..3 {
            settler.turn(&mut queue.clone()).unwrap();
        }
        assert_eq!(due_in(now), [0]);
        assert!(!dispatch.lease.tells_ages());
    }
}
