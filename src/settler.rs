//! The settler, one: writes outcomes to the queue in batches, and keeps each until
//! the queue has confirmed it; registers the agent and renews its lease; takes
//! back what dead agents left. It waits for reports and for the next beat. It
//! ends when it is told to leave, or when waiting cannot mend what Redis says.
//!
//! The beat comes first: everything that may be long (taking back, burying,
//! removing) is done one bounded call at a time between two looks at the clock.
//! `registration` joins and beats; `chores` is what takes several calls.

mod chores;
mod registration;

use std::collections::VecDeque;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use log::{debug, warn};

use crate::backoff::Backoff;
use crate::dispatch::{Dispatch, Report};
use crate::journal::Speaker;
use crate::lease::Thread;
use crate::metrics::add;
use crate::outbox::Outbox;
use crate::peers::{Peers, between_beats};
use crate::queue::{AgentNumber, Error, Queue, Settlement};
use chores::Chore;
use registration::{BEAT_OF_THE_STUCK, REJOIN_MIN};

/// Settlements in one call at most; measured: 0.4 to 0.7 ms of Redis for 256 delivered.
const BATCH: usize = 512;
/// A settlement waits this long for company. Asleep and not on the channel, so
/// that those who report need not wake the settler one by one.
const LINGER: Duration = Duration::from_millis(1);
/// Messages taken back, buried, removed or made due in one call.
const AT_ONCE: usize = 500;
/// Bytes that are put back in one call, beside the message that reaches it.
const RESTORED_BYTES: usize = 4 << 20;

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

    fn settle(&mut self, queue: &mut dyn Queue) -> Result<(), Error> {
        let Some(number) = self.number else { return Ok(()) };
        while let Some((call, batch)) = self.outbox.next(BATCH) {
            let Some(lost) = queue.settle(number, call, &batch.settlements, &batch.changes)? else {
                warn!("Redis has a later call number for this agent than it ever sent; registering again");
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
