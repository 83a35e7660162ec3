//! Who the agent is to the queue: its registration and the lease that each heartbeat renews, what is known of the
//! queue's clock and numbers, whether the threads turn, and whether all is to stop. Reader, settler and workers
//! share one of these; each of its values stands for itself, so none of them needs another's lock.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use log::warn;

use crate::clock::{Clock, Step};
use crate::queue::{AgentNumber, HIGHEST_NUMBER};
use crate::text::spell;

/// While Redis is away a thread may wait for it without a turn for so long: for its name, to connect and for an answer,
/// 5 s each, and up to 1.25 s until the next try.
pub const REDIS_AWAY: Duration = Duration::from_secs(17);

/// The registration of one agent.
pub struct Lease {
    /// Nothing new is claimed or begun.
    stopping: AtomicBool,
    /// The agent's number; 0 while it is not registered.
    number: AtomicU64,
    /// When the last confirmed beat was sent, in milliseconds since `started`, plus one; 0: never.
    beat_sent: AtomicU64,
    /// Waited on by those who need a number or a fresh beat, and for the stop.
    changed: (Mutex<()>, Condvar),
    started: Instant,
    length: Duration,
    /// The highest number, of a message or an agent, that has been seen.
    seen: AtomicU64,
    /// The queue's clock, as of the last claim or beat.
    clock: Mutex<Clock>,
    /// By how many milliseconds it was set back, for the settler; 0 once that has seen to it.
    set_back: AtomicU64,
    /// When reader and settler last turned, in milliseconds since `started`.
    turned: [AtomicU64; 2],
}

/// A thread that must turn for the agent to be alive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Thread {
    /// It claims.
    Reader,
    /// It settles and renews the lease.
    Settler,
}

impl Lease {
    /// Of an agent that is not registered yet, for leases of this length (`--lease`).
    pub fn new(length: Duration) -> Lease {
        Lease {
            stopping: AtomicBool::new(false),
            number: AtomicU64::new(0),
            beat_sent: AtomicU64::new(0),
            changed: (Mutex::new(()), Condvar::new()),
            started: Instant::now(),
            length,
            seen: AtomicU64::new(0),
            clock: Mutex::default(),
            set_back: AtomicU64::new(0),
            turned: [AtomicU64::new(0), AtomicU64::new(0)],
        }
    }

    /// The agent's number, once it has one.
    pub fn number(&self) -> Option<AgentNumber> {
        match self.number.load(Ordering::SeqCst) {
            0 => None,
            number => Some(AgentNumber(number)),
        }
    }

    /// The agent is registered under this number.
    pub(crate) fn registered(&self, number: AgentNumber) {
        self.number.store(number.0, Ordering::SeqCst);
    }

    /// The lease was renewed by a beat sent at this time.
    pub fn beat_confirmed(&self, sent: Instant) {
        let millis = sent.saturating_duration_since(self.started).as_millis() as u64;
        self.beat_sent.store(millis + 1, Ordering::SeqCst);
        self.announce_change();
    }

    /// The agent is not registered any more: nothing is begun until it is again.
    pub fn unregistered(&self) {
        self.beat_sent.store(0, Ordering::SeqCst);
    }

    /// Whether the agent may still take its claims for its own.
    pub fn is_beat_fresh(&self) -> bool {
        match self.beat_sent.load(Ordering::SeqCst) {
            0 => false,
            millis => self.started + Duration::from_millis(millis - 1) + self.length * 2 / 3 > Instant::now(),
        }
    }

    /// This number, of a message or an agent, was seen. One beyond what a counter of microseconds can
    /// come to is nonsense that somebody wrote, and is not handed on.
    pub fn see(&self, number: u64) {
        if number < HIGHEST_NUMBER {
            self.seen.fetch_max(number, Ordering::Relaxed);
        }
    }

    /// The highest number that has been seen.
    pub fn seen(&self) -> u64 {
        self.seen.load(Ordering::Relaxed)
    }

    /// The queue's clock said `at`, in a call sent at `asked` whose answer is here now.
    pub fn note_clock(&self, at: u64, asked: Instant) {
        // All numbers given out later are higher, by whomever they are asked for.
        self.see(at.saturating_mul(1000));
        let step = lock(&self.clock).note(at, asked, Instant::now());
        self.note_step(step);
    }

    /// At the first registration the queue's clock was behind the last beat of any agent by so much.
    pub fn note_set_back(&self, by: Duration) {
        let step = lock(&self.clock).was_set_back(by, Instant::now());
        self.note_step(step);
    }

    fn note_step(&self, step: Option<Step>) {
        let Some(step) = step else { return };
        if !step.first && !step.ahead {
            self.set_back.fetch_max(step.by.as_millis() as u64, Ordering::SeqCst);
        }
        let by = spell(step.by);
        let what = match (step.first, step.ahead) {
            (true, true) => format!("Redis's clock is {by} ahead of this machine's"),
            (true, false) => format!("Redis's clock is {by} behind this machine's"),
            (false, true) => format!("Redis's clock was set forwards by {by}, or this machine slept"),
            (false, false) => format!("Redis's clock was set back by {by}"),
        };
        warn!("{what}: for the next hour no message is given up and no dead letter is removed because of its age");
    }

    /// By how much the queue's clock was set back since this was last asked.
    pub fn take_set_back(&self) -> Option<Duration> {
        let by = self.set_back.swap(0, Ordering::SeqCst);
        (by > 0).then(|| Duration::from_millis(by))
    }

    /// Whether ages by the queue's clock mean anything.
    pub fn tells_ages(&self) -> bool {
        lock(&self.clock).tells_ages(Instant::now())
    }

    /// The queue's time is hardly later than this, unless its clock was set; 0 while ages mean nothing.
    pub fn latest(&self) -> u64 {
        lock(&self.clock).latest(Instant::now())
    }

    /// Whether nothing new is to be claimed or begun.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// Nothing more is to be claimed or begun.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.announce_change();
    }

    /// Waits until something about the registration or the stop changes, at most this long.
    pub fn wait_for_change(&self, at_most: Duration) {
        let guard = lock(&self.changed.0);
        let _ = self.changed.1.wait_timeout(guard, at_most);
    }

    /// Notes that a thread has turned.
    pub fn turn(&self, thread: Thread) {
        self.turned[thread as usize].store(self.started.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// How long ago it last did.
    pub fn since_turn(&self, thread: Thread) -> Duration {
        self.started
            .elapsed()
            .saturating_sub(Duration::from_millis(self.turned[thread as usize].load(Ordering::Relaxed)))
    }

    /// As if it had been started so long before.
    #[cfg(test)]
    pub fn grow_older(&mut self, by: Duration) {
        self.started -= by;
    }

    fn announce_change(&self) {
        let _guard = lock(&self.changed.0);
        self.changed.1.notify_all();
    }
}

/// A thread that panicked while it held a lock left a whole value: each is changed
/// in steps that keep it whole, so the others go on.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
