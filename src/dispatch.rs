//! The way of claims between the threads: the lanes behind their mutex, the channel to the workers and the one to
//! the settler. Whatever the lanes want done is done here, after the mutex is released, in the order:
//! settlements, lane changes, then what they made room for. What one kind of thread alone asks for is in a room of
//! its own: `intake` for the reader, `attempts` for the workers, `answers` for what the queue has answered.

mod answers;
mod attempts;
mod intake;

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};

pub use self::attempts::Begin;
use crate::journal::Journal;
use crate::lanes::{Claim, DownLane, Effects, LaneCounts, Lanes, Limits, News};
use crate::lease::{Lease, lock};
use crate::metrics::{Metrics, add};
use crate::queue::{AgentNumber, History, Id, LaneChange, Settlement};

/// What the settler is told.
#[derive(Debug)]
pub enum Report {
    /// A claim came to an end, or has to go back.
    Settle(Settlement),
    /// A lane came up or went down.
    Lane(LaneChange),
    /// The queue does not know the agent of this number any more, or its calls: join again.
    Gone(AgentNumber),
    /// Settle what is left, give back the rest, and end.
    Leave,
}

/// What a worker is attempting, for giving it back when the agent must go before it is done.
#[derive(Clone, Debug)]
pub struct Attempting {
    /// The message.
    pub id: Id,
    /// Its lane.
    pub origin: Arc<str>,
    /// As it was before this attempt.
    pub history: History,
}

/// Shared by all threads of one agent.
pub struct Dispatch {
    inner: Mutex<Inner>,
    /// The reader waits here for room.
    room: Condvar,
    reports: Sender<Report>,
    /// Who the agent is to the queue, and whether it is to stop.
    pub lease: Lease,
    attempting: Vec<Mutex<Option<Attempting>>>,
    /// Whether any endpoint is paused: workers look no further while none is.
    pauses_any: AtomicBool,
    /// Counters.
    pub metrics: Metrics,
    /// What has been said.
    pub journal: Journal,
}

struct Inner {
    lanes: Lanes,
    /// The lanes' sending end: closing it ends the workers.
    ready: Option<Sender<Box<Claim>>>,
    reader_waits: bool,
}

/// What is done for many lanes or claims is done for so many at a time, and the mutex let go between: whoever
/// finishes an attempt waits for it. Each is some 10 to 50 µs (`lanes::tests::the_longest_hold…`).
const LEARNED_AT_ONCE: usize = 32;
const SHOWN_AT_ONCE: usize = 64;
const ADMITTED_AT_ONCE: usize = 32;
const CONFIRMED_AT_ONCE: usize = 128;

impl Dispatch {
    /// Returns it with the receiving ends for workers and settler.
    pub fn new(limits: Limits, lease: Duration, seed: u64) -> (Dispatch, Receiver<Box<Claim>>, Receiver<Report>) {
        // Those who send here (the reader, and the workers themselves) are all who could ever make room, so a
        // bound would be a way to stand still for good. What bounds it are the lanes: each lets out as many as
        // its window, and together no more than they may hold (`--in-flight`), discarded ones included.
        let (ready_sender, ready) = unbounded();
        // Bounded by the same number of claims (two reports each at most); unbounded only in name.
        let (reports, reports_receiver) = unbounded();
        let attempting = (0..limits.workers).map(|_| Mutex::new(None)).collect();
        let inner = Inner { lanes: Lanes::new(limits, seed), ready: Some(ready_sender), reader_waits: false };
        let dispatch = Dispatch {
            inner: Mutex::new(inner),
            room: Condvar::new(),
            reports,
            lease: Lease::new(lease),
            attempting,
            pauses_any: AtomicBool::new(false),
            metrics: Metrics::default(),
            journal: Journal::default(),
        };
        (dispatch, ready, reports_receiver)
    }

    /// Tells the settler.
    pub fn report(&self, report: Report) {
        // The settler ends only after its last report; past that nobody needs to know.
        let _ = self.reports.send(report);
    }

    /// Claim and begin nothing more.
    pub fn stop(&self) {
        self.lease.stop();
        self.room.notify_all();
    }

    /// Closes the way to the workers: each ends after what it is attempting. Returns
    /// how many claims were never attempted.
    pub fn close(&self) -> usize {
        let mut inner = self.inner();
        inner.ready = None;
        inner.lanes.stop()
    }

    /// What workers are attempting at this moment.
    pub fn attempts_under_way(&self) -> Vec<Attempting> {
        self.attempting.iter().filter_map(|slot| lock(slot).clone()).collect()
    }

    /// For tests of one thread alone.
    #[cfg(test)]
    pub fn for_tests(lease: Duration) -> (Dispatch, Receiver<Box<Claim>>, Receiver<Report>) {
        let limits = Limits {
            workers: 4,
            endpoint_concurrency: 4,
            messages: 64,
            bytes: 1 << 20,
            ordered: false,
            retry_first: Duration::from_secs(5),
            retry_max: Duration::from_secs(600),
            give_up_after: Duration::from_secs(86_400),
            attempt: Duration::from_secs(35),
        };
        Dispatch::new(limits, lease, 1)
    }

    /// Lanes by state, and what is held.
    pub fn lane_counts(&self) -> LaneCounts {
        self.inner().lanes.counts()
    }

    /// Endpoints that operators have paused: how many, and at most so many of them.
    pub fn paused_endpoints(&self, at_most: usize) -> (usize, Vec<String>) {
        self.inner().lanes.paused(at_most)
    }

    /// Lanes that are down: how many, and at most so many of them, those first that have failed for longest; what was
    /// never seen to fail from here is down by what others say, and comes last.
    pub fn down_lanes(&self, at_most: usize) -> (usize, Vec<DownLane>) {
        let (mut down, mut from) = (Vec::new(), 0);
        // Between two looks the others go on; a lane that changes meanwhile may be seen as it was or as it is.
        while let Some(some) = { self.inner().lanes.down_among(from, SHOWN_AT_ONCE, Instant::now()) } {
            down.extend(some);
            from += SHOWN_AT_ONCE;
        }
        let n = down.len();
        down.sort_by_key(|(since, _)| (since.is_none(), *since));
        down.truncate(at_most);
        (n, down.into_iter().map(|(_, lane)| lane).collect())
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }

    fn perform(&self, mut inner: MutexGuard<'_, Inner>, effects: Effects) {
        self.wake_reader(&mut inner);
        let ready = if effects.ready.is_empty() { None } else { inner.ready.clone() };
        drop(inner);
        let n_gave_up = effects.news.iter().filter(|news| matches!(news, News::GaveUp { .. })).count();
        add(&self.metrics.dead, n_gave_up as u64);
        self.journal.lanes(effects.news);
        for settlement in effects.settlements {
            self.report(Report::Settle(settlement));
        }
        for change in effects.changes {
            self.report(Report::Lane(change));
        }
        if let Some(ready) = ready {
            for claim in effects.ready {
                // A closed channel means a stop: the claim stays recorded in flight and is given back.
                let _ = ready.send(claim);
            }
        }
    }

    fn perform_and_lock<'a>(&'a self, inner: MutexGuard<'a, Inner>, effects: Effects) -> MutexGuard<'a, Inner> {
        self.perform(inner, effects);
        self.inner()
    }

    fn wake_reader(&self, inner: &mut MutexGuard<'_, Inner>) {
        if inner.reader_waits && (inner.lanes.has_room() || inner.lanes.is_hungry()) {
            inner.reader_waits = false;
            self.room.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope::Envelope;
    use crate::policy::{Fault, Outcome};
    use crate::queue::Source;

    const ME: AgentNumber = AgentNumber(7);

    /// Registered as [`ME`].
    fn at_work() -> (Dispatch, Receiver<Box<Claim>>, Receiver<Report>) {
        let (dispatch, ready, reports) = Dispatch::for_tests(Duration::from_secs(15));
        dispatch.registered(ME, Instant::now(), |_, _| false);
        (dispatch, ready, reports)
    }

    fn claim(id: u64, origin: &str) -> Result<Claim, Settlement> {
        let no_headers: [(&str, &str); 0] = [];
        let envelope = Envelope::decode(Envelope::encode(no_headers, origin, b"x")).unwrap();
        Ok(Claim::new(Id(id), envelope, History::default(), 0, Source::Queue, ME, Instant::now()))
    }

    fn admit(dispatch: &Dispatch, number: AgentNumber, claims: Vec<Result<Claim, Settlement>>) {
        dispatch.admit(number, |_| {}, claims);
    }

    fn ids(ready: &Receiver<Box<Claim>>) -> Vec<u64> {
        ready.try_iter().map(|claim| claim.id.0).collect()
    }

    #[test]
    fn claims_under_another_number_are_others_already() {
        let (dispatch, ready, _reports) = at_work();
        admit(&dispatch, AgentNumber(6), vec![claim(1, "http://a.test")]);
        assert!(ids(&ready).is_empty() && dispatch.held().is_empty());
        admit(&dispatch, ME, vec![claim(1, "http://a.test")]);
        assert_eq!((ids(&ready), dispatch.held()), (vec![1], vec![Id(1)]));
    }

    #[test]
    fn more_than_are_admitted_at_once_are_all_admitted() {
        let (dispatch, ready, _reports) = at_work();
        let n = ADMITTED_AT_ONCE as u64 + 8;
        let mut begun = 0;
        dispatch.admit(ME, |_| begun += 1, (1..=n).map(|id| claim(id, "http://a.test")).collect());
        assert_eq!((begun, dispatch.held().len() as u64, ids(&ready)), (1, n, vec![1]));
    }

    #[test]
    fn a_worker_goes_on_with_what_its_delivery_made_room_for_if_nobody_waits_longer() {
        let (dispatch, ready, reports) = at_work();
        admit(&dispatch, ME, (1..=3).map(|id| claim(id, "http://a.test")).collect());
        let first = ready.try_recv().unwrap();
        let next = dispatch.finish(first, Outcome::Delivered, None, Instant::now());
        assert_eq!(next.map(|claim| claim.id), Some(Id(2)));
        assert!(matches!(reports.try_recv(), Ok(Report::Settle(settled)) if settled.id == Id(1)));
        // Somebody else's claim is in the channel: that one goes first.
        admit(&dispatch, ME, vec![claim(4, "http://b.test")]);
        let third = dispatch.inner().lanes.holds(Id(3));
        assert!(third && ids(&ready).contains(&4));
    }

    #[test]
    fn the_settler_hears_of_a_lane_that_goes_down_after_what_was_settled_with_it() {
        let (dispatch, ready, reports) = at_work();
        admit(&dispatch, ME, (1..=2).map(|id| claim(id, "http://a.test")).collect());
        let first = ready.try_recv().unwrap();
        let failed = Outcome::Later { fault: Fault::NoAnswer, retry_after: None, error: "refused".to_string() };
        assert!(dispatch.finish(first, failed, None, Instant::now()).is_none());
        let told: Vec<Report> = reports.try_iter().collect();
        let settled = told.iter().filter(|report| matches!(report, Report::Settle(_))).count();
        assert!(matches!(told.last(), Some(Report::Lane(LaneChange::Down { .. }))) && settled == 2, "{told:?}");
        assert_eq!(dispatch.down_lanes(10).0, 1);
    }

    #[test]
    fn a_reader_that_waits_for_room_is_woken_when_something_is_confirmed() {
        let (dispatch, ready, reports) = at_work();
        admit(&dispatch, ME, (1..=64).map(|id| claim(id, &format!("http://h{id}.test"))).collect());
        assert!(dispatch.appetite(false, Duration::ZERO).is_none(), "it holds all that it may");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| dispatch.appetite(false, Duration::from_secs(20)));
            let begun = Instant::now();
            while let Ok(claim) = ready.recv_timeout(Duration::from_millis(200)) {
                let mut next = Some(claim);
                while let Some(claim) = next {
                    next = dispatch.finish(claim, Outcome::Delivered, None, Instant::now());
                }
            }
            let settled: Vec<Settlement> = reports
                .try_iter()
                .filter_map(|report| if let Report::Settle(settled) = report { Some(settled) } else { None })
                .collect();
            assert!(!settled.is_empty());
            dispatch.confirmed(&settled);
            assert!(waiting.join().unwrap().is_some() && begun.elapsed() < Duration::from_secs(15));
        });
    }

    #[test]
    fn what_is_others_after_a_new_registration_is_not_begun() {
        let (dispatch, ready, _reports) = at_work();
        admit(&dispatch, ME, vec![claim(1, "http://a.test"), claim(2, "http://b.test")]);
        let out: Vec<_> = ready.try_iter().collect();
        assert_eq!(out.len(), 2);
        dispatch.registered(AgentNumber(9), Instant::now(), |id, _| id == Id(1));
        let begin = |id| dispatch.may_begin(out.iter().find(|claim| claim.id == Id(id)).unwrap());
        assert_eq!((begin(1), begin(2)), (Begin::Never, Begin::Now));
        dispatch.stop();
        assert_eq!(begin(2), Begin::Never);
    }

    #[test]
    fn closed_it_ends_the_workers_and_tells_how_much_was_never_attempted() {
        let (dispatch, ready, _reports) = at_work();
        admit(&dispatch, ME, (1..=3).map(|id| claim(id, "http://a.test")).collect());
        assert_eq!(dispatch.close(), 2);
        assert_eq!(ids(&ready), [1]);
        assert!(ready.recv().is_err(), "the channel is closed");
    }
}
