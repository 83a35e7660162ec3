//! The settler, one: writes outcomes to the queue in batches, and keeps each until
//! the queue has confirmed it; registers the agent and renews its lease; takes
//! back what dead agents left. It waits for reports and for the next beat. It
//! ends when it is told to leave, or when waiting cannot mend what Redis says.

use std::collections::HashMap;
use std::collections::HashSet;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use log::{debug, error, info, warn};

use crate::journal::{Speaker, spell};
use crate::metrics::add;
use crate::queue::{AgentNumber, Error, LaneChange, Peer, Queue, Settlement};
use crate::reader::Patience;
use crate::shared::{Report, Shared};

/// Settlements in one call at most; measured: 0.4 to 0.7 ms of Redis for 256 delivered.
const BATCH: usize = 512;
/// A settlement waits this long for company. Asleep and not on the channel, so
/// that those who report need not wake the settler one by one.
const LINGER: Duration = Duration::from_millis(1);
/// Messages recovered in one call.
const RECOVER_AT_ONCE: usize = 512;
/// How often dead letters past their keeping are looked for.
const FORGET_EVERY: Duration = Duration::from_secs(60);

/// A reader that has not turned for two leases, and not for this long, is stuck: while it waits for
/// Redis (to connect, for an answer, until the next try) it may take as long.
const READER_WAITS: Duration = Duration::from_secs(16);

/// So often it is looked whether such a reader turns again.
const BEAT_OF_THE_STUCK: Duration = Duration::from_secs(1);

/// What the settler goes by.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long the agent is taken for alive without a beat (`--lease`); it beats three times as often.
    pub lease: Duration,
    /// What waits behind a dead endpoint and is older ends too (`--give-up-after`).
    pub give_up_after: Duration,
    /// Dead letters older than this are removed for good (`--keep-dead`).
    pub keep_dead: Option<Duration>,
}

/// Settles until it is told to leave.
///
/// # Errors
///
/// What waiting cannot mend: wrong password, no permission, wrong type at a key.
pub fn run(queue: &mut dyn Queue, shared: &Shared, reports: &Receiver<Report>, options: &Options) -> Result<(), Error> {
    let mut settler = Settler {
        shared,
        options,
        number: None,
        call: 0,
        prepared: false,
        backlog: Batch::default(),
        sent: None,
        next_beat: Instant::now(),
        next_forget: Instant::now(),
        looks: HashMap::new(),
        leaving: false,
        said_stuck: false,
    };
    let mut patience = Patience::default();
    loop {
        shared.turn(1);
        match settler.turn(queue) {
            Ok(true) => return Ok(()),
            Ok(false) => {
                patience = Patience::default();
                shared.journal.redis_back(Speaker::Settler);
                settler.listen(reports, settler.next_beat);
            }
            Err(Error::Unavailable(why)) => {
                shared.journal.redis_lost(Speaker::Settler, &why);
                if settler.leaving {
                    return Err(Error::Unavailable(why));
                }
                // Reports are taken in meanwhile, so that a stop is heard.
                // Never longer than between two beats: an agent that is slower to come back than others
                // are to look three times is taken for dead, and what it holds goes out twice.
                let until = Instant::now() + patience.next_pause().min(options.lease / 3);
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

#[derive(Default)]
struct Batch {
    settlements: Vec<Settlement>,
    changes: Vec<LaneChange>,
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.settlements.is_empty() && self.changes.is_empty()
    }

    /// The first of what there is, up to the size of a call. All changes go with
    /// them only once the settlements before them fit.
    fn take(&mut self) -> Batch {
        if self.settlements.len() > BATCH {
            let rest = self.settlements.split_off(BATCH);
            return Batch { settlements: std::mem::replace(&mut self.settlements, rest), changes: Vec::new() };
        }
        std::mem::take(self)
    }
}

/// How an agent has been seen.
struct Look {
    lease: Option<u64>,
    looks: u32,
    first: Instant,
    last: Instant,
}

struct Settler<'a> {
    shared: &'a Shared,
    options: &'a Options,
    number: Option<AgentNumber>,
    call: u64,
    prepared: bool,
    backlog: Batch,
    /// Sent, and not yet confirmed: sent again under the same call number.
    sent: Option<Batch>,
    next_beat: Instant,
    next_forget: Instant,
    looks: HashMap<AgentNumber, Look>,
    leaving: bool,
    said_stuck: bool,
}

impl Settler<'_> {
    /// Does what is due. True when it has left.
    fn turn(&mut self, queue: &mut dyn Queue) -> Result<bool, Error> {
        if self.number.is_none() {
            self.join(queue)?;
        }
        self.settle(queue)?;
        if Instant::now() >= self.next_beat && !self.leaving {
            if self.reader_is_stuck() {
                self.next_beat = Instant::now() + BEAT_OF_THE_STUCK.min(self.options.lease / 3);
            } else {
                self.beat(queue)?;
            }
        }
        if let Some(age) = self.options.keep_dead
            && Instant::now() >= self.next_forget
        {
            self.next_forget = Instant::now() + FORGET_EVERY;
            let n = queue.forget_dead(age)?;
            if n > 0 {
                info!("{n} dead messages older than {} removed for good", spell(age));
            }
        }
        if self.leaving && self.sent.is_none() && self.backlog.is_empty() {
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
        let since = self.shared.since_turn(0);
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

    /// Takes in reports: waits for the first until `until`, then a moment for more.
    fn listen(&mut self, reports: &Receiver<Report>, until: Instant) {
        if !self.backlog.is_empty() || self.leaving {
            return;
        }
        match reports.recv_deadline(until) {
            Ok(report) => self.hear(report),
            Err(RecvTimeoutError::Timeout) => return,
            Err(RecvTimeoutError::Disconnected) => self.leaving = true,
        }
        thread::sleep(LINGER);
        while self.backlog.settlements.len() < BATCH
            && let Ok(report) = reports.try_recv()
        {
            self.hear(report);
        }
    }

    fn hear(&mut self, report: Report) {
        match report {
            Report::Settle(settlement) => self.backlog.settlements.push(settlement),
            Report::Lane(change) => self.backlog.changes.push(change),
            // Joined anew whatever a beat would say: Redis may have been rolled back in between.
            Report::Gone(number) if self.number == Some(number) => {
                self.shared.unregistered();
                self.number = None;
            }
            Report::Gone(_) => {}
            Report::Leave => self.leaving = true,
        }
    }

    fn settle(&mut self, queue: &mut dyn Queue) -> Result<(), Error> {
        let Some(number) = self.number else { return Ok(()) };
        while self.sent.is_some() || !self.backlog.is_empty() {
            if self.sent.is_none() {
                self.call += 1;
            }
            let batch = self.sent.get_or_insert_with(|| self.backlog.take());
            let lost = queue.settle(number, self.call, &batch.settlements, &batch.changes)?;
            add(&self.shared.metrics.settles, 1);
            for id in lost {
                debug!("message {id} is not ours any more: another agent has it");
            }
            let batch = self.sent.take().expect("just sent");
            self.shared.confirmed(&batch.settlements);
            self.expire(queue, &batch.changes);
            if Instant::now() >= self.next_beat {
                return Ok(());
            }
        }
        Ok(())
    }

    /// What waits behind an endpoint that failed again, and is too old, ends as well.
    fn expire(&mut self, queue: &mut dyn Queue, changes: &[LaneChange]) {
        let age = self.options.give_up_after;
        for change in changes {
            if let LaneChange::Close { origin, why, .. } = change {
                let reason = format!("gave up after {} behind a failing endpoint: {why}", spell(age));
                match queue.expire(origin, age, &reason) {
                    Ok(0) => {}
                    Ok(n) => {
                        add(&self.shared.metrics.dead, n as u64);
                        warn!("{n} messages that waited for {origin} are dead: {reason}");
                    }
                    // They are looked at again when it fails the next time.
                    Err(error) => debug!("looking for what waits too long for {origin}: {error}"),
                }
            }
        }
    }

    fn join(&mut self, queue: &mut dyn Queue) -> Result<(), Error> {
        if !self.prepared {
            for line in queue.prepare()? {
                warn!("{line}");
            }
            self.prepared = true;
        }
        let sent = Instant::now();
        let number = queue.join(self.options.lease)?;
        // What another agent may have taken back meanwhile is its own; what Redis does not know
        // any more exists only here.
        let held = self.shared.held();
        let known = queue.has(&held)?;
        let others: HashSet<_> = held.into_iter().zip(known).filter(|(_, known)| *known).map(|(id, _)| id).collect();
        self.call = 0;
        self.number = Some(number);
        self.looks.clear();
        self.shared.registered(number, sent, &others);
        // The first look at the others is at once: a predecessor that died is known after one lease.
        self.next_beat = Instant::now();
        debug!("registered as agent {number}");
        Ok(())
    }

    fn beat(&mut self, queue: &mut dyn Queue) -> Result<(), Error> {
        let Some(number) = self.number else { return Ok(()) };
        let sent = Instant::now();
        let beat = queue.beat(number, self.options.lease)?;
        self.next_beat = sent + self.options.lease / 3;
        if !beat.registered {
            warn!("the queue does not know this agent any more; joining again");
            self.shared.unregistered();
            self.number = None;
            return self.join(queue);
        }
        self.shared.beat_confirmed(sent);
        for dead in self.look_at(&beat.peers, sent) {
            self.recover(queue, number, dead)?;
        }
        if !beat.peers.is_empty() {
            let asked = Instant::now();
            self.shared.learn(&queue.lanes()?, asked);
        }
        Ok(())
    }

    /// Who is dead is judged by our own clock: a lease unchanged over three looks, none
    /// more than two beats apart, that span a whole lease. So no step of a clock and
    /// no outage of Redis kills the living.
    fn look_at(&mut self, peers: &[Peer], now: Instant) -> Vec<Peer> {
        let (lease, beat) = (self.options.lease, self.options.lease / 3);
        self.looks.retain(|number, _| peers.iter().any(|peer| peer.number == *number));
        let mut dead = Vec::new();
        for peer in peers {
            let look =
                self.looks.entry(peer.number).or_insert(Look { lease: peer.lease, looks: 0, first: now, last: now });
            if look.lease != peer.lease || now.saturating_duration_since(look.last) > beat * 2 {
                *look = Look { lease: peer.lease, looks: 0, first: now, last: now };
            }
            look.looks += 1;
            look.last = now;
            if look.looks >= 3 && now.saturating_duration_since(look.first) >= lease {
                dead.push(*peer);
            }
        }
        dead
    }

    fn recover(&mut self, queue: &mut dyn Queue, me: AgentNumber, mut dead: Peer) -> Result<(), Error> {
        let mut recovered = 0;
        while let Some(n) = queue.recover(me, &dead, RECOVER_AT_ONCE)? {
            recovered += n;
            // The first call signs the dead agent off; the rest of its messages are nobody's.
            dead.lease = None;
            if n < RECOVER_AT_ONCE {
                break;
            }
        }
        self.looks.remove(&dead.number);
        add(&self.shared.metrics.recovered, recovered as u64);
        if recovered > 0 {
            warn!("agent {} is dead: {recovered} messages that it had in flight are due again", dead.number);
        } else {
            info!("agent {} is dead; it had nothing in flight", dead.number);
        }
        Ok(())
    }
}
