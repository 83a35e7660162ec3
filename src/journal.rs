//! What people read in the log: changes of state, each said once. An endpoint
//! that flaps, or a thousand that fail together, do not fill it. It decides what
//! is said and how often; what happened is decided elsewhere.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use log::{Level, debug, info, log, warn};

use crate::lanes::News;
use crate::queue::Id;
use crate::text::spell;

/// An endpoint's troubles are said at most this often.
const QUIET_PER_ENDPOINT: Duration = Duration::from_secs(600);
/// Lines about endpoints, and lines about dead messages, in one window of time.
const LINES_PER_WINDOW: u32 = 20;
const WINDOW: Duration = Duration::from_secs(60);
/// Endpoints whose last line is remembered.
const MOST_ENDPOINTS: usize = 10_000;

/// The threads that speak with Redis, for telling when all of them are well again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Speaker {
    /// The reader.
    Reader = 1,
    /// The settler.
    Settler = 2,
}

/// The log's memory of what it has said.
#[derive(Debug, Default)]
pub struct Journal {
    memory: Mutex<Memory>,
}

#[derive(Debug, Default)]
struct Memory {
    /// Which threads find Redis unusable, as a set of bits, and since when any does.
    unusable: u8,
    since: Option<Instant>,
    /// When an endpoint was last said to be down, and whether that still stands.
    endpoints: HashMap<Arc<str>, (Instant, bool)>,
    endpoint_lines: Budget,
    dead_lines: Budget,
    /// When it was last said that this machine lacks something.
    lacking: Option<Instant>,
}

/// A number of lines per window, and how many were left out.
#[derive(Debug, Default)]
struct Budget {
    window: Option<Instant>,
    lines: u32,
    left_out: u32,
}

impl Budget {
    /// Whether a line may be written; `what` names the lines in the count of those left out.
    fn allows(&mut self, now: Instant, what: &str) -> bool {
        if self.window.is_none_or(|since| now.saturating_duration_since(since) >= WINDOW) {
            self.flush(what);
            self.window = Some(now);
        }
        self.lines += 1;
        if self.lines > LINES_PER_WINDOW {
            self.left_out += 1;
        }
        self.lines <= LINES_PER_WINDOW
    }

    fn flush(&mut self, what: &str) {
        if self.left_out > 0 {
            warn!("{} more {what} in the minute before; see 'acapy-deliver status'", self.left_out);
        }
        *self = Budget::default();
    }
}

/// A message that died.
#[derive(Clone, Copy, Debug)]
pub struct Death<'a> {
    /// Its id.
    pub id: Id,
    /// Where it was for, in words for people.
    pub endpoint: &'a str,
    /// Its lane, if it had one.
    pub origin: Option<&'a str>,
    /// How often it was attempted, if that is known.
    pub attempts: Option<u32>,
    /// Why it is dead.
    pub reason: &'a str,
}

impl Death<'_> {
    /// Of one that was never attempted, for nobody could read where it was for.
    pub fn unread<'a>(id: Id, endpoint: &'a str, reason: &'a str) -> Death<'a> {
        Death { id, endpoint, origin: None, attempts: None, reason }
    }
}

impl Memory {
    fn died(&mut self, now: Instant, death: &Death) {
        let Death { id, endpoint, origin, attempts, reason } = *death;
        let level = if self.dead_lines.allows(now, "messages died") { Level::Warn } else { Level::Debug };
        log!(
            level, id:% = id, origin = origin, attempts = attempts, error = reason;
            "message {id} for {endpoint} is dead: {reason}"
        );
    }
}

impl Journal {
    /// Redis cannot be used by this thread: said when it is the first.
    pub fn redis_lost(&self, speaker: Speaker, why: &str) {
        let mut memory = self.memory();
        let first = memory.unusable == 0;
        memory.unusable |= speaker as u8;
        if first {
            memory.since = Some(Instant::now());
            warn!(error = why; "Redis cannot be used: {why}; nothing is lost, trying on");
        } else {
            debug!(error = why; "Redis still cannot be used: {why}");
        }
    }

    /// Redis answers this thread: said when the last thread is well again.
    pub fn redis_back(&self, speaker: Speaker) {
        let mut memory = self.memory();
        if memory.unusable == 0 {
            return;
        }
        memory.unusable &= !(speaker as u8);
        if memory.unusable == 0
            && let Some(since) = memory.since.take()
        {
            info!("Redis can be used again, after {}", spell(since.elapsed()));
        }
    }

    /// Whether Redis answered every thread that asked it last.
    pub fn redis_is_up(&self) -> bool {
        self.memory().unusable == 0
    }

    /// For how long Redis has not been usable, if it is not.
    pub fn redis_away_for(&self) -> Option<Duration> {
        self.memory().since.map(|since| since.elapsed())
    }

    /// What changed with the lanes.
    pub fn lanes(&self, news: Vec<News>) {
        if news.is_empty() {
            return;
        }
        let now = Instant::now();
        let memory = &mut *self.memory();
        for news in news {
            match news {
                News::Ordered { paused, resumed } => {
                    if !paused.is_empty() {
                        info!("paused by an operator: {}; what is for it waits", some_of(&paused));
                    }
                    if !resumed.is_empty() {
                        info!("resumed by an operator: {}", some_of(&resumed));
                    }
                }
                News::GaveUp { id, origin, reason } => {
                    let died = Death { id, endpoint: &origin, origin: Some(&origin), attempts: None, reason: &reason };
                    memory.died(now, &died);
                }
                News::Down { origin, why, failures, waiting, next } => {
                    let said = memory.endpoints.get(&origin);
                    let quiet = said.is_some_and(|(said, _)| now.saturating_duration_since(*said) < QUIET_PER_ENDPOINT);
                    let first = failures <= 1 && !quiet;
                    if first && memory.endpoint_lines.allows(now, "endpoints failed") {
                        if memory.endpoints.len() >= MOST_ENDPOINTS {
                            memory.endpoints.clear();
                        }
                        memory.endpoints.insert(origin.clone(), (now, true));
                        let waiting = match waiting {
                            0 => String::new(),
                            n => format!("; {n} more messages wait for it"),
                        };
                        warn!(
                            origin = &*origin, failures = failures, error = why.as_str();
                            "{origin} is down: {why}{waiting}; next try in {}", spell(next)
                        );
                    } else {
                        debug!(
                            origin = &*origin, failures = failures, error = why.as_str();
                            "{origin} failed again ({failures} in a row): {why}; next try in {}", spell(next)
                        );
                    }
                }
                News::Back { origin, after } => {
                    // Only what was said to be down is said to be back, once; the time stays, so that flapping is quiet.
                    let stands = memory.endpoints.get_mut(&origin).map(|(_, stands)| std::mem::take(stands));
                    if stands == Some(true) {
                        info!(origin = &*origin; "{origin} is back, after {}", spell(after));
                    } else {
                        debug!(origin = &*origin; "{origin} is back, after {}", spell(after));
                    }
                }
            }
        }
    }

    /// A message died.
    pub fn died(&self, death: &Death) {
        self.memory().died(Instant::now(), death);
    }

    /// This machine lacked something for an attempt: said at most once a minute, for it is
    /// nobody else's fault and only its operator can mend it.
    pub fn lacking(&self, error: &str) {
        let now = Instant::now();
        let last = self.memory().lacking;
        if last.is_none_or(|last| now.saturating_duration_since(last) >= WINDOW) {
            self.memory().lacking = Some(now);
            warn!(error = error; "this machine is short of something: {error}; what cannot be attempted now is tried again");
        }
    }

    /// Says what was left out so far; for the end of a minute, and of the agent.
    pub fn flush(&self) {
        let memory = &mut *self.memory();
        memory.endpoint_lines.flush("endpoints failed");
        memory.dead_lines.flush("messages died");
    }

    fn memory(&self) -> std::sync::MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// The first of many, and how many more there are.
fn some_of(names: &[String]) -> String {
    let shown = names.iter().take(3).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(3) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_lines_a_minute_and_no_more() {
        let now = Instant::now();
        let mut budget = Budget::default();
        let allowed = |budget: &mut Budget, at: Instant| budget.allows(at, "tests failed");
        let n = (0..100).filter(|_| allowed(&mut budget, now)).count();
        assert_eq!((n, budget.left_out), (LINES_PER_WINDOW as usize, 100 - LINES_PER_WINDOW));
        assert!(!allowed(&mut budget, now + WINDOW - Duration::from_millis(1)));
        assert!(allowed(&mut budget, now + WINDOW), "a new minute");
        assert_eq!(budget.left_out, 0);
    }

    #[test]
    fn redis_is_back_when_the_last_thread_is_well_again() {
        let journal = Journal::default();
        journal.redis_back(Speaker::Reader);
        assert!(journal.redis_is_up() && journal.redis_away_for().is_none());
        journal.redis_lost(Speaker::Reader, "no answer");
        journal.redis_lost(Speaker::Settler, "no answer");
        let since = journal.memory().since;
        journal.redis_lost(Speaker::Reader, "no answer");
        journal.redis_back(Speaker::Settler);
        assert!(!journal.redis_is_up());
        assert_eq!(journal.memory().since, since, "the outage goes on");
        journal.redis_back(Speaker::Reader);
        assert!(journal.redis_is_up() && journal.redis_away_for().is_none());
    }

    #[test]
    fn an_endpoint_that_flaps_is_said_to_be_down_once_and_back_once() {
        let journal = Journal::default();
        let origin: Arc<str> = Arc::from("http://a.test:80");
        let down = |failures| News::Down {
            origin: origin.clone(),
            why: "refused".to_string(),
            failures,
            waiting: 0,
            next: Duration::from_secs(5),
        };
        let back = || News::Back { origin: origin.clone(), after: Duration::from_secs(5) };
        let stands = || journal.memory().endpoints.get(&origin).map(|(_, stands)| *stands);
        let lines = || journal.memory().endpoint_lines.lines;
        // What others have seen fail more than once, they have said.
        journal.lanes(vec![down(3)]);
        assert_eq!((stands(), lines()), (None, 0));
        journal.lanes(vec![down(1), down(2)]);
        assert_eq!((stands(), lines()), (Some(true), 1));
        journal.lanes(vec![back()]);
        assert_eq!(stands(), Some(false));
        for _ in 0..10 {
            journal.lanes(vec![down(1), back()]);
        }
        assert_eq!((stands(), lines()), (Some(false), 1));
    }
}
