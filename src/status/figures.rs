//! What only Redis knows of the queue, for the status server: asked on connections of its own,
//! by a thread of its own, at most once in a while, and only when somebody wants to see it. So a
//! Redis that hangs holds up this thread and nobody else, and an unwatched agent asks nothing. The same
//! thread reads the counters once a minute, for the last hour's picture.

use std::ops::ControlFlow;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use log::debug;
use redis::Value;

use super::minutes::{Counts, Minutes};
use crate::dispatch::Dispatch;
use crate::metrics::read;
use crate::queue::Error;
use crate::queue::redis::admin::{LaneSeen, Operator, Overview, Schedule};
use crate::queue::redis::arguments::Arguments;
use crate::queue::redis::connection::{Link, Move};
use crate::queue::redis::list::Keys;
use crate::queue::redis::server::Server;

/// Figures as young as this are not asked for again, nor details: those cost Redis some milliseconds.
const FRESH: Duration = Duration::from_secs(2);
const DETAILS_FRESH: Duration = Duration::from_secs(4);
/// Who wants figures waits so long for them; Redis needs a millisecond.
const PATIENCE: Duration = Duration::from_secs(1);
/// Lanes and retries among which the oldest message is looked for: well under a millisecond of Redis.
const LANES_LOOKED_AT: usize = 200;
const RETRIES_LOOKED_AT: usize = 500;
/// Lanes and dead letters looked at for details.
const DETAILED_LANES: usize = 2_000;
const DETAILED_DEAD: u64 = 2_000;
/// Of each kind so many are kept, the largest: more are not shown.
pub const KEPT: usize = 20;

/// How many messages are where, and what else only Redis knows.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Figures {
    /// In the LIST that ACA-Py pushes to.
    pub queue: u64,
    /// Claimed by some agent.
    pub in_flight: u64,
    /// Waiting for their lane.
    pub waiting: u64,
    /// On the retry schedule.
    pub retry: u64,
    /// Dead letters.
    pub dead: u64,
    /// Lanes that have messages waiting.
    pub waiting_lanes: u64,
    /// Agents whose lease has not run out.
    pub agents: u64,
    /// Endpoints that operators have paused.
    pub paused: u64,
    /// Since the oldest message that is in flight, waiting or on the retry schedule was first
    /// claimed; `None` if there is none. What is still in the LIST carries no time.
    pub oldest: Option<Duration>,
}

/// What people want to see besides.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Details {
    /// Counts, and agents with their leases.
    pub overview: Overview,
    /// Endpoints that failed or are paused and that messages wait for, those with most messages.
    pub failing: Vec<LaneSeen>,
    /// How many such there are among those looked at, and how many were looked at.
    pub n_failing: usize,
    /// See `n_failing`.
    pub lanes_looked_at: usize,
    /// Dead letters by reason, the most frequent first.
    pub reasons: Vec<(String, u64)>,
    /// How many reasons there are among those looked at, and how many were looked at.
    pub n_reasons: usize,
    /// See `n_reasons`.
    pub dead_looked_at: u64,
}

/// Details, and how old they are.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The last that Redis told.
    pub details: Details,
    /// When.
    pub at: SystemTime,
    /// Whether it told them when it was last asked.
    pub is_current: bool,
}

/// Asks for figures when they are wanted. Dropped, its thread ends.
pub struct Watcher {
    shared: Arc<Shared>,
    /// `None` once dropped: the thread ends when it cannot be woken any more.
    wake: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    look: Mutex<Look>,
    changed: Condvar,
    dispatch: Arc<Dispatch>,
    started: Instant,
}

#[derive(Default)]
struct Look {
    /// When the last answer or failure came.
    at: Option<Instant>,
    /// What it was.
    figures: Option<Figures>,
    wants_figures: bool,
    /// The same of details.
    details_at: Option<Instant>,
    seen: Option<Seen>,
    wants_details: bool,
    minutes: Minutes,
}

impl Watcher {
    /// Nothing is asked before somebody wants it.
    ///
    /// # Errors
    ///
    /// If its thread cannot be started.
    pub fn start(server: Server, queue: &str, dispatch: Arc<Dispatch>) -> Result<Watcher, String> {
        let (look, changed) = (Mutex::default(), Condvar::new());
        let shared = Arc::new(Shared { look, changed, dispatch, started: Instant::now() });
        // One: whoever comes while a look is asked for waits for that look.
        let (wake, woken) = bounded(1);
        let (queue, asked) = (queue.to_owned(), shared.clone());
        let thread = Builder::new()
            .name("status-redis".to_owned())
            .stack_size(512 << 10) // as a worker's: a TLS handshake is what needs most
            .spawn(move || look_when_woken(&server, &queue, &woken, &asked))
            .map_err(|error| format!("cannot start the thread 'status-redis' ({error})"))?;
        Ok(Watcher { shared, wake: Some(wake), thread: Some(thread) })
    }

    /// Figures at most `FRESH` old; `None` if Redis does not give any within `PATIENCE`.
    pub fn figures(&self) -> Option<Figures> {
        let is_fresh = |look: &Look| look.at.is_some_and(|at| at.elapsed() < FRESH);
        let look = self.wait(PATIENCE, |look| look.wants_figures = true, is_fresh);
        is_fresh(&look).then(|| look.figures.clone()).flatten()
    }

    /// Details as fresh as they can be had within `patience`, or else what was last told.
    pub fn details(&self, patience: Duration) -> Option<Seen> {
        let is_fresh = |look: &Look| look.details_at.is_some_and(|at| at.elapsed() < DETAILS_FRESH);
        let look = self.wait(patience, |look| look.wants_details = true, is_fresh);
        let is_fresh = is_fresh(&look);
        look.seen.clone().map(|seen| Seen { is_current: seen.is_current && is_fresh, ..seen })
    }

    /// What became of messages in the minutes of the last hour.
    pub fn minutes(&self) -> Minutes {
        let mut look = self.shared.lock();
        self.shared.count(&mut look);
        look.minutes.clone()
    }

    fn wait(&self, patience: Duration, want: fn(&mut Look), is_fresh: impl Fn(&Look) -> bool) -> MutexGuard<'_, Look> {
        let until = Instant::now() + patience;
        let mut look = self.shared.lock();
        while !is_fresh(&look) {
            want(&mut look);
            // Full means that a look is asked for already; it is looked again for what is wanted since.
            let _ = self.wake.as_ref().map(|wake| wake.try_send(()));
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = self.shared.changed.wait_timeout(look, left);
            look = waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        }
        look
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.wake = None;
        // In the midst of a look it ends when Redis answers or its timeout comes: not waited for.
        if let Some(thread) = self.thread.take()
            && thread.is_finished()
        {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Look> {
        self.look.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn count(&self, look: &mut Look) {
        let metrics = &self.dispatch.metrics;
        let counters: Counts = [&metrics.delivered, &metrics.later, &metrics.dead].map(read);
        look.minutes.note(self.started.elapsed().as_secs() / 60, counters);
    }

    fn until_next_minute(&self) -> Duration {
        let past = self.started.elapsed().as_millis() as u64 % 60_000;
        Duration::from_millis(60_000 - past)
    }
}

fn look_when_woken(server: &Server, queue: &str, woken: &Receiver<()>, shared: &Shared) {
    let keys = Keys::new(queue);
    let script = Move::new(include_str!("../queue/redis/scripts/head.lua"), include_str!("figures.lua"));
    let mut link = Link::new(server.clone(), keys.queue());
    // Opened when the page for people is asked for.
    let mut operator = None;
    loop {
        match woken.recv_timeout(shared.until_next_minute()) {
            Ok(()) => {}
            Err(RecvTimeoutError::Timeout) => shared.count(&mut shared.lock()),
            Err(RecvTimeoutError::Disconnected) => return,
        }
        // Somebody who came during a look has what that look has found.
        let (wants_figures, wants_details) = {
            let mut look = shared.lock();
            let stale = |at: Option<Instant>, fresh| at.is_none_or(|at: Instant| at.elapsed() >= fresh);
            (
                std::mem::take(&mut look.wants_figures) && stale(look.at, FRESH),
                std::mem::take(&mut look.wants_details) && stale(look.details_at, DETAILS_FRESH),
            )
        };
        if wants_figures {
            let figures = told(ask(&mut link, &script, &keys));
            let mut look = shared.lock();
            (look.at, look.figures) = (Some(Instant::now()), figures);
            shared.changed.notify_all();
        }
        if wants_details {
            let operator = operator.get_or_insert_with(|| Operator::on(server.clone(), queue));
            let details = told(ask_for_details(operator));
            let mut look = shared.lock();
            look.details_at = Some(Instant::now());
            match details {
                Some(details) => look.seen = Some(Seen { details, at: SystemTime::now(), is_current: true }),
                None => look.seen = look.seen.take().map(|seen| Seen { is_current: false, ..seen }),
            }
            shared.changed.notify_all();
        }
    }
}

fn told<T>(answer: Result<T, Error>) -> Option<T> {
    answer.inspect_err(|error| debug!("asking Redis for figures: {error}")).ok()
}

fn ask_for_details(operator: &mut Operator) -> Result<Details, Error> {
    let overview = operator.overview()?;
    let (mut failing, mut lanes_looked_at) = (Vec::new(), 0);
    operator.each_lane(DETAILED_LANES, |lane| {
        lanes_looked_at += 1;
        if lane.failures > 0 || lane.is_paused {
            failing.push(lane);
        }
    })?;
    let n_failing = failing.len();
    failing.sort_by(|a, b| b.messages.cmp(&a.messages).then_with(|| a.origin.cmp(&b.origin)));
    failing.truncate(KEPT);

    let mut counted = std::collections::HashMap::<String, u64>::new();
    let mut dead_looked_at = 0;
    // Those that died last.
    let skip = overview.dead.saturating_sub(DETAILED_DEAD);
    operator.each_page(Schedule::Dead, skip, overview.now, |_, entries| {
        for entry in entries {
            dead_looked_at += 1;
            *counted.entry(entry.history.last_error).or_default() += 1;
        }
        Ok::<_, Error>(if dead_looked_at < DETAILED_DEAD { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    let n_reasons = counted.len();
    let mut reasons: Vec<(String, u64)> = counted.into_iter().collect();
    reasons.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    reasons.truncate(KEPT);
    Ok(Details { overview, failing, n_failing, lanes_looked_at, reasons, n_reasons, dead_looked_at })
}

fn ask(link: &mut Link, script: &Move, keys: &Keys) -> Result<Figures, Error> {
    let mut arguments = Arguments::default();
    arguments.text(LANES_LOOKED_AT).text(RETRIES_LOOKED_AT);
    let answer = link.run(script, keys.all(), &arguments)?;
    let numbers: Vec<i64> = match answer {
        Value::Array(values) => values
            .into_iter()
            .filter_map(|value| match value {
                Value::Int(number) => Some(number),
                _ => None,
            })
            .collect(),
        _ => Vec::new(),
    };
    let [queue, in_flight, waiting, retry, dead, waiting_lanes, agents, paused, oldest] = numbers[..] else {
        return Err(Error::Unavailable("an answer of Redis is not what the figures are".to_string()));
    };
    let count = |number: i64| number.max(0) as u64;
    Ok(Figures {
        queue: count(queue),
        in_flight: count(in_flight),
        waiting: count(waiting),
        retry: count(retry),
        dead: count(dead),
        waiting_lanes: count(waiting_lanes),
        agents: count(agents),
        paused: count(paused),
        oldest: u64::try_from(oldest).ok().map(Duration::from_millis),
    })
}
