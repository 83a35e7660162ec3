//! The queue's clock, as held against our own monotonic one. Ages of messages are
//! told by the queue's clock, since no other is common to all agents; so when that
//! one is set, nothing is given up or removed for its age for a while.

use std::time::{Duration, Instant};

/// Clocks that come apart by more than this from one look to the next were set, not slewed.
const STEP: Duration = Duration::from_secs(60);
/// After a step ages mean nothing for so long: who sets a clock wrong also sets it right again.
const DISTRUST: Duration = Duration::from_secs(3600);

/// One reading: the queue's time in milliseconds, and our own before it was asked and after it answered.
#[derive(Clone, Copy, Debug)]
struct Reading {
    at: u64,
    asked: Instant,
    answered: Instant,
}

/// What is known of the queue's clock.
#[derive(Debug, Default)]
pub struct Clock {
    last: Option<Reading>,
    distrusted_until: Option<Instant>,
}

/// The queue's clock was set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step {
    /// Forwards or back.
    pub ahead: bool,
    /// By how much at least.
    pub by: Duration,
}

impl Clock {
    /// Takes in a reading, asked for and answered then; whether the clock was set since the last one.
    pub fn note(&mut self, at: u64, asked: Instant, answered: Instant) -> Option<Step> {
        let last = self.last.replace(Reading { at, asked, answered })?;
        let theirs = at as i128 - last.at as i128;
        // Whatever the order of the readings in the queue: two threads ask, and either may have been frozen.
        let (least, most) = (between(last.answered, asked), between(last.asked, answered));
        let step = STEP.as_millis() as i128;
        let (ahead, by) = if theirs > most + step {
            (true, theirs - most)
        } else if theirs < least - step {
            (false, least - theirs)
        } else {
            return None;
        };
        self.distrusted_until = Some(answered + DISTRUST);
        Some(Step { ahead, by: Duration::from_millis(by as u64) })
    }

    /// Whether ages by this clock mean anything.
    pub fn tells_ages(&self, now: Instant) -> bool {
        self.distrusted_until.is_none_or(|until| until <= now)
    }

    /// How old the last reading is; `None` before the first.
    pub fn since_reading(&self, now: Instant) -> Option<Duration> {
        self.last.map(|last| now.saturating_duration_since(last.answered))
    }
}

/// Milliseconds from one to the other, negative if the other is before.
fn between(from: Instant, to: Instant) -> i128 {
    let (after, before) = (to.saturating_duration_since(from), from.saturating_duration_since(to));
    after.as_millis() as i128 - before.as_millis() as i128
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: u64 = 60_000;

    /// The readings, each as the queue's time and our own, in milliseconds; which of them show a step.
    fn steps(readings: &[(u64, u64, u64)]) -> Vec<bool> {
        let begun = Instant::now();
        let mut clock = Clock::default();
        let at = |ms: &u64| begun + Duration::from_millis(*ms);
        readings
            .iter()
            .map(|(theirs, asked, answered)| clock.note(*theirs, at(asked), at(answered)).is_some())
            .collect()
    }

    #[test]
    fn a_step_is_seen_and_a_wait_is_not() {
        let day = 24 * 60 * MINUTE;
        assert_eq!(steps(&[(5, 0, 1), (5_000, 5_000, 5_001), (9_999, 10_000, 10_001)]), [false; 3]);
        assert_eq!(steps(&[(day, 0, 1), (day * 9, 5_000, 5_001)]), [false, true]);
        assert_eq!(steps(&[(day * 9, 0, 1), (day, 5_000, 5_001), (day + 5_000, 10_000, 10_001)]), [false, true, false]);
        // Frozen for ten minutes between the answer and its reading, and the next one is answered at once.
        assert_eq!(steps(&[(0, 0, 10 * MINUTE), (10 * MINUTE, 10 * MINUTE, 10 * MINUTE + 1)]), [false, false]);
        // Readings that are noted in another order than the queue answered them.
        assert_eq!(steps(&[(9 * MINUTE, 0, 10 * MINUTE), (1, 0, 10 * MINUTE)]), [false, false]);
    }

    #[test]
    fn ages_mean_nothing_for_an_hour_after_a_step() {
        let begun = Instant::now();
        let mut clock = Clock::default();
        assert!(clock.tells_ages(begun));
        clock.note(0, begun, begun);
        assert!(clock.note(MINUTE * 2, begun, begun).is_some_and(|step| step.ahead));
        assert!(!clock.tells_ages(begun + DISTRUST - Duration::from_secs(1)));
        assert!(clock.tells_ages(begun + DISTRUST));
    }
}
