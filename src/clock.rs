//! The queue's clock, as held against our own monotonic one. Ages of messages are
//! told by the queue's clock, since no other is common to all agents; so when that
//! one is set, nothing is given up or removed for its age for a while.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Clocks that come apart by more than this from one look to the next were set, not slewed.
const STEP: Duration = Duration::from_secs(60);
/// The queue's clock and this machine's may well differ by minutes; by more, one of them is wrong.
const APART: Duration = Duration::from_secs(3600);
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

/// The queue's clock was set since the last reading; or it was ahead or behind at the first, held against
/// this machine's, as if it had been set just before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step {
    /// Whether it is the first reading.
    pub first: bool,
    /// Forwards or back.
    pub ahead: bool,
    /// By how much at least.
    pub by: Duration,
}

impl Clock {
    /// Takes in a reading, asked for and answered then; whether the clock was set since the last one.
    pub fn note(&mut self, at: u64, asked: Instant, answered: Instant) -> Option<Step> {
        self.note_beside(at, asked, answered, SystemTime::now())
    }

    fn note_beside(&mut self, at: u64, asked: Instant, answered: Instant, here: SystemTime) -> Option<Step> {
        let Some(last) = self.last.replace(Reading { at, asked, answered }) else {
            let here = here.duration_since(UNIX_EPOCH).unwrap_or_default();
            let (ahead, by) = (at as u128 > here.as_millis(), Duration::from_millis(at).abs_diff(here));
            return (by > APART).then(|| self.set(Step { first: true, ahead, by }, answered));
        };
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
        Some(self.set(Step { first: false, ahead, by: Duration::from_millis(by as u64) }, answered))
    }

    /// Before our first reading it was set back, by so much at least; whether that is a step.
    pub fn was_set_back(&mut self, by: Duration, now: Instant) -> Option<Step> {
        (by > STEP).then(|| self.set(Step { first: false, ahead: false, by }, now))
    }

    fn set(&mut self, step: Step, now: Instant) -> Step {
        self.distrusted_until = Some(now + DISTRUST);
        step
    }

    /// The queue's time is hardly later than this, unless its clock was set since; 0 while ages mean nothing.
    pub fn latest(&self, now: Instant) -> u64 {
        match self.last {
            Some(last) if self.tells_ages(now) => {
                let passed = now.saturating_duration_since(last.asked) + STEP;
                last.at + passed.as_millis() as u64
            }
            _ => 0,
        }
    }

    /// Whether ages by this clock mean anything.
    pub fn tells_ages(&self, now: Instant) -> bool {
        self.distrusted_until.is_none_or(|until| until <= now)
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
        let here = UNIX_EPOCH + Duration::from_millis(readings[0].0);
        let mut note = |theirs, asked, answered| clock.note_beside(theirs, at(asked), at(answered), here).is_some();
        readings.iter().map(|(theirs, asked, answered)| note(*theirs, asked, answered)).collect()
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
        assert_eq!(clock.note_beside(0, begun, begun, UNIX_EPOCH), None);
        assert_eq!(clock.latest(begun + DISTRUST), MINUTE + 60 * MINUTE);
        assert!(clock.note(MINUTE * 2, begun, begun).is_some_and(|step| step.ahead));
        assert!(!clock.tells_ages(begun + DISTRUST - Duration::from_secs(1)));
        assert_eq!(clock.latest(begun), 0);
        assert!(clock.tells_ages(begun + DISTRUST));
    }

    #[test]
    fn a_clock_that_is_wrong_at_the_first_reading_tells_no_ages_either() {
        let begun = Instant::now();
        let mut clock = Clock::default();
        let day = Duration::from_secs(86_400);
        let step = clock.note_beside(day.as_millis() as u64, begun, begun, UNIX_EPOCH);
        assert_eq!(step, Some(Step { first: true, ahead: true, by: day }));
        assert!(!clock.tells_ages(begun));
    }
}
