//! One lane: what is known of one origin and its endpoint, and the claims of it that are
//! here. It leaves to `lanes` what follows from a change, and to `shares` who may be out.
//!
//! A lane is an origin, but a path of it can be bad while all others are well, and who
//! names an endpoint chooses the path. So an attempt that gets no answer holds up the
//! others of a proven lane no longer than answers usually take: after that one more goes
//! out beside it (a *scout*), and once a later attempt has been answered the silent one no
//! longer counts against the window.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Claim;
use super::shares::Shares;
use crate::queue::Id;

/// Silent attempts beside which one more may go out, at most.
const SCOUTS: usize = 2;
/// An attempt is silent when it has had no answer for this long and for `SILENT_FACTOR` times as long
/// as answers of its lane usually take.
const SILENT_AFTER: Duration = Duration::from_millis(250);
const SILENT_FACTOR: u32 = 8;
/// An attempt that takes longer than this is slow.
pub(super) const SLOW: Duration = Duration::from_secs(1);
/// Attempts in a row that were not slow, for each that may be out without counting as exposed.
const FAST_PER_TRUSTED: usize = 4;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// No delivery yet, no failure either.
    Untried,
    /// Proven by a delivery.
    Up,
    /// Failed since the last delivery.
    Down,
}

impl State {
    /// How many there are.
    pub(super) const N: usize = 3;
}

/// A claim that a worker has.
#[derive(Debug)]
pub(super) struct Out {
    pub(super) id: Id,
    pub(super) since: Instant,
    /// Silent, while an attempt that began later was answered: it no longer counts against the window.
    pub(super) is_overtaken: bool,
}

#[derive(Debug)]
pub(super) struct Lane {
    pub(super) origin: Arc<str>,
    pub(super) state: State,
    /// How many claims may be out at once.
    pub(super) window: usize,
    /// After a halving the window grows by one per window of deliveries, not per delivery.
    pub(super) careful: bool,
    /// The window at which it was last throttled.
    pub(super) ceiling: usize,
    /// Deliveries since the window last grew.
    pub(super) since_growth: usize,
    /// Claims sent to the workers and not finished, in the order of their sending.
    pub(super) out: Vec<Out>,
    /// How many of them are overtaken; counted, for every change of a lane asks.
    n_overtaken: usize,
    /// Attempts of other lanes that were redirected here and are under way.
    pub(super) guests: usize,
    /// Claims to go out, oldest first.
    pub(super) held: VecDeque<Box<Claim>>,
    /// Failures of the lane in a row.
    pub(super) failures: u32,
    /// When a lane that is down may be tried.
    pub(super) down_until: Option<Instant>,
    /// A failure begun before this counts for nothing: the last halving or outage.
    pub(super) epoch: Option<Instant>,
    /// Since when it has been failing, for the log.
    pub(super) failing_since: Option<Instant>,
    pub(super) last_delivery: Option<Instant>,
    /// Whether something is known to wait in the queue.
    pub(super) has_waiting: bool,
    /// Put to wait, and not yet confirmed by the queue.
    pub(super) unconfirmed: usize,
    /// When the queue last confirmed such a one.
    pub(super) confirmed_at: Option<Instant>,
    /// These, and those confirmed since the last claim was begun: it may not have seen them. Each as often as it
    /// was put to wait: the queue may give one out, and it be put back, before the first time is confirmed.
    pub(super) parked: BTreeMap<Id, usize>,
    /// Different messages in a row that failed by their own fault.
    pub(super) at_fault: Vec<Id>,
    /// Different messages in a row that got no answer, or one that speaks of the endpoint's state.
    pub(super) unanswered: Vec<Id>,
    /// It is down because its answers refused one message after the other: one such answer more does not bring it up.
    pub(super) is_refusing: bool,
    /// Its last failure was slow: probes of such lanes may not take every place.
    pub(super) fails_slowly: bool,
    /// How long an answer usually takes: a moving average.
    pub(super) usual: Duration,
    /// Attempts in a row that were not slow.
    pub(super) n_fast: usize,
    pub(super) last_error: String,
    /// On a stack of lanes that wait for a slot.
    pub(super) on_stack: bool,
    /// Among the lanes that are looked at for silent attempts.
    pub(super) is_watched: bool,
    /// Among the lanes that want more of what waits.
    pub(super) wanting: bool,
    /// An operator has paused it: nothing goes out, and nothing is held.
    pub(super) is_paused: bool,
    /// Among the lanes that hold much.
    pub(super) is_heavy: bool,
}

impl Lane {
    pub(super) fn new(origin: Arc<str>) -> Lane {
        Lane {
            origin,
            state: State::Untried,
            window: 1,
            careful: false,
            ceiling: 0,
            since_growth: 0,
            out: Vec::new(),
            n_overtaken: 0,
            guests: 0,
            held: VecDeque::new(),
            failures: 0,
            down_until: None,
            epoch: None,
            failing_since: None,
            last_delivery: None,
            has_waiting: false,
            unconfirmed: 0,
            confirmed_at: None,
            parked: BTreeMap::new(),
            at_fault: Vec::new(),
            unanswered: Vec::new(),
            is_refusing: false,
            fails_slowly: false,
            usual: Duration::ZERO,
            n_fast: 0,
            last_error: String::new(),
            on_stack: false,
            is_heavy: false,
            is_watched: false,
            wanting: false,
            is_paused: false,
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.out.is_empty()
            && self.guests == 0
            && self.held.is_empty()
            && self.unconfirmed == 0
            && !self.on_stack
            && !self.is_watched
            && !self.wanting
            && !self.is_heavy
    }

    /// Whether all that was put to wait had been confirmed when the queue was asked at `asked`.
    pub(super) fn had_settled(&self, asked: Instant) -> bool {
        self.unconfirmed == 0 && self.confirmed_at.is_none_or(|confirmed| confirmed < asked)
    }

    /// Whether it is down, its time is over, and there is nothing else to try it with.
    pub(super) fn may_be_probed(&self, now: Instant) -> bool {
        !self.has_waiting && self.until_tried(now).is_zero() && self.is_idle()
    }

    /// Whether it is down and left to a probe that is not there.
    pub(super) fn lacks_probe(&self) -> bool {
        self.state == State::Down && self.out.is_empty() && self.guests == 0 && self.down_until.is_none()
    }

    pub(super) fn until_tried(&self, now: Instant) -> Duration {
        self.down_until.map(|until| until.saturating_duration_since(now)).unwrap_or_default()
    }

    /// Whether an attempt begun then is older than what the lane already knows.
    pub(super) fn is_past(&self, begun: Instant) -> bool {
        self.epoch.is_some_and(|epoch| begun < epoch)
    }

    /// Whether others than the one that has just come back wait for this lane, as far as known.
    pub(super) fn has_others(&self) -> bool {
        self.has_waiting || !self.held.is_empty() || self.unconfirmed > 0
    }

    /// Claims out that count against the window, guests included.
    pub(super) fn in_window(&self) -> usize {
        self.out.len() - self.n_overtaken + self.guests
    }

    pub(super) fn has_room(&self) -> bool {
        self.in_window() < self.window
    }

    /// Whether one more may go out beside attempts that are silent.
    pub(super) fn may_scout(&self, now: Instant) -> bool {
        self.state == State::Up
            && self.in_window() < self.window + SCOUTS
            && self.out.last().is_some_and(|youngest| self.is_silent(youngest.since, now))
    }

    fn is_silent(&self, since: Instant, now: Instant) -> bool {
        now.saturating_duration_since(since) >= SILENT_AFTER.max(self.usual * SILENT_FACTOR)
    }

    /// An attempt that began at `since` was answered: those before it that are silent do not hold up the
    /// lane any longer, as far as `at_most` of them are out.
    pub(super) fn overtake(&mut self, since: Instant, now: Instant, at_most: usize) {
        // In the order of their sending: behind one that is not older none is.
        for i in 0..self.out.len() {
            let out = &self.out[i];
            if self.n_overtaken >= at_most || out.since >= since || !self.is_silent(out.since, now) {
                return;
            }
            if !out.is_overtaken {
                self.out[i].is_overtaken = true;
                self.n_overtaken += 1;
                self.n_fast = 0;
            }
        }
    }

    /// A claim is with its worker no more. Returns when it was sent there.
    pub(super) fn came_back(&mut self, id: Id) -> Instant {
        let at = self.out.iter().position(|out| out.id == id);
        let out = self.out.remove(at.expect("what comes back was out"));
        self.n_overtaken -= usize::from(out.is_overtaken);
        out.since
    }

    /// Takes note of how long an attempt took.
    pub(super) fn took(&mut self, duration: Duration, is_answered: bool) {
        self.n_fast = if duration < SLOW { self.n_fast + 1 } else { 0 };
        if is_answered {
            self.usual = if self.usual.is_zero() { duration } else { (self.usual * 7 + duration) / 8 };
        } else {
            self.fails_slowly = duration >= SLOW;
        }
    }

    /// What the lane takes of what all of them share.
    pub(super) fn shares(&self) -> Shares {
        let out = self.out.len();
        let mut shares = Shares { out, ..Shares::default() };
        match self.state {
            State::Untried => shares.new = out,
            State::Up => {
                let others = out - self.n_overtaken;
                shares.exposed = self.n_overtaken + others.saturating_sub(self.trusted());
            }
            State::Down => {
                shares.failed = out;
                shares.failed_slowly = if self.fails_slowly { out } else { 0 };
            }
        }
        if self.state != State::Up {
            shares.held_unproven = self.held.len();
        }
        shares
    }

    /// How many may be out that do not count as exposed: a lane has to earn them by being fast.
    fn trusted(&self) -> usize {
        self.n_fast / FAST_PER_TRUSTED
    }

    /// Whether the next one out would count as exposed.
    pub(super) fn is_exposed(&self) -> bool {
        self.in_window() >= self.trusted()
    }
}
