//! The lanes that have messages waiting, as the queue knows them, a page at a time.

use super::{Operator, PAGE, lossy, read};
use crate::queue::redis::arguments::Arguments;
use crate::queue::redis::list::NEVER;
use crate::queue::{Error, Id};

/// A lane with waiting messages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LaneSeen {
    /// Its origin.
    pub origin: String,
    /// When it may be tried, in milliseconds since 1970; `None` if it is open, was never tried, or is paused.
    pub next_try: Option<u64>,
    /// An operator has paused it.
    pub is_paused: bool,
    /// Messages that wait for it.
    pub messages: u64,
    /// The oldest of them.
    pub oldest: Option<Id>,
    /// How many times in a row it has failed.
    pub failures: u64,
    /// Its last error; empty if there was none.
    pub last_error: String,
}

impl Operator {
    /// Hands out the lanes that have messages waiting, at most so many: those never tried first,
    /// newest first, then by the time they may be tried.
    ///
    /// # Errors
    ///
    /// If Redis cannot be asked.
    pub fn each_lane(&mut self, at_most: usize, mut take: impl FnMut(LaneSeen)) -> Result<(), Error> {
        type Lane = (Vec<u8>, i64, u64, String, Vec<u8>);
        let mut from = 0;
        while from < at_most {
            let n = PAGE.min(at_most - from);
            let mut arguments = Arguments::default();
            arguments.text(from).text(n);
            let lanes: Vec<Lane> = read(self.run(|looks| &looks.lanes, &arguments)?)?;
            let found = lanes.len();
            for (origin, time, messages, oldest, record) in lanes {
                let (origin, record) = (lossy(&origin), lossy(&record));
                let (failures, last_error) = record.split_once(' ').unwrap_or((&record, ""));
                // How it failed, fast or slowly.
                let last_error = last_error.strip_prefix("f ").or(last_error.strip_prefix("s ")).unwrap_or(last_error);
                take(LaneSeen {
                    origin,
                    next_try: u64::try_from(time).ok().filter(|time| *time > 0 && *time != NEVER as u64),
                    is_paused: time == NEVER as i64,
                    messages,
                    oldest: oldest.parse().ok().map(Id),
                    failures: failures.parse().unwrap_or(0),
                    last_error: last_error.to_string(),
                });
            }
            if found < n {
                break;
            }
            from += found;
        }
        Ok(())
    }
}
