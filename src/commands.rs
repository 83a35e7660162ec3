//! The operator's commands, one file each, and what they share: how they end, and time as
//! text. Only these files write to standard output.

pub mod check;
pub mod dead;
pub mod enqueue;
pub mod json;
pub mod listen;
pub mod status;
pub mod table;

use std::fmt;
use std::io::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::journal::spell;
use crate::queue::{self, Id};

/// How a command ended that did what it was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// Exit code 0.
    Done,
    /// There was nothing such, or something to mend was found: exit code 1.
    Nothing,
}

/// Why a command ended early.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Error {
    /// Exit code 1 and this sentence.
    Failed(String),
    /// Wrong usage that only the command itself could see: exit code 2 and this sentence.
    Usage(String),
    /// Whoever read standard output went away, as `head` does: an end, not a failure.
    OutputClosed,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Failed(why) | Error::Usage(why) => f.write_str(why),
            Error::OutputClosed => f.write_str("standard output was closed"),
        }
    }
}

impl std::error::Error for Error {}

/// For writes to standard output alone, so that `writeln!(out, …)?` does the right thing; errors
/// of other files need words of their own.
impl From<io::Error> for Error {
    fn from(error: io::Error) -> Error {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Error::OutputClosed,
            _ => Error::Failed(format!("cannot write to standard output: {error}")),
        }
    }
}

/// What a queue could not do ends a command: nobody waits for it to get better.
impl From<queue::Error> for Error {
    fn from(error: queue::Error) -> Error {
        Error::Failed(error.to_string())
    }
}

/// Writes a text to standard output.
///
/// # Errors
///
/// If standard output is closed or full.
pub fn print(text: &str) -> Result<Exit, Error> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(Exit::Done)
}

/// A text in one line that cannot move the cursor, nor show itself in another order than it has:
/// control characters and those like them are written as escapes.
pub fn visible(text: &str) -> String {
    let mut visible = String::with_capacity(text.len());
    for character in text.chars() {
        if is_moving(character) {
            visible.extend(character.escape_default());
        } else {
            visible.push(character);
        }
    }
    visible
}

/// Whether a character acts on those around it: control characters, separators of lines and
/// paragraphs, and those that turn the direction of writing.
fn is_moving(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

/// A time as `2026-01-31T23:59:59.999Z`.
pub fn utc(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = date(days);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{:02}.{:03}Z", second % 60, since.subsec_millis())
}

/// A time of the queue, in milliseconds since 1970.
pub fn at_ms(milliseconds: u64) -> SystemTime {
    // Beyond the year 9999 there is nothing to show.
    UNIX_EPOCH + Duration::from_millis(milliseconds.min(253_402_300_799_999))
}

/// When a message was claimed for the first time: its id says so, in microseconds.
pub fn claimed_at(id: Id) -> SystemTime {
    at_ms(id.0 / 1000)
}

/// How long before `now` that was, or how long after: `4.2s ago`, `in 3m 20s`.
pub fn ago(time: SystemTime, now: SystemTime) -> String {
    match now.duration_since(time) {
        Ok(since) => format!("{} ago", spell(since)),
        Err(error) => format!("in {}", spell(error.duration())),
    }
}

/// `1 message`, `2 messages`.
pub fn n_of(n: u64, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// The date so many days after 1970-01-01. Years are counted from the first of March, so that
/// the leap day is a year's last, and 400 of them always have 146,097 days.
fn date(days: u64) -> (u64, u64, u64) {
    // 719,468 days lie between 0000-03-01 and 1970-01-01.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    // Leap days before this day: one every 1,460 days, but for the last of a century, but for the last of four.
    let leap_days = day_of_era / 1460 - day_of_era / 36_524 + day_of_era / 146_096;
    let year_of_era = (day_of_era - leap_days) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    // Five months from March on have 153 days, whichever five.
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_written_as_utc_with_milliseconds() {
        let table = [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_709_164_800_001, "2024-02-29T00:00:00.001Z"),
            (1_735_689_599_999, "2024-12-31T23:59:59.999Z"),
            (1_772_323_200_000, "2026-03-01T00:00:00.000Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ];
        for (milliseconds, text) in table {
            assert_eq!(utc(UNIX_EPOCH + Duration::from_millis(milliseconds)), text);
        }
    }

    #[test]
    fn what_would_move_the_cursor_or_turn_the_text_is_escaped() {
        for (text, expected) in [
            ("plain \u{e4} \u{1f600}", "plain \u{e4} \u{1f600}"),
            ("a\u{1b}[31m\nb\u{9b}c", "a\\u{1b}[31m\\nb\\u{9b}c"),
            ("\u{202e}gpj.exe", "\\u{202e}gpj.exe"),
            ("a\u{2028}b\u{2029}c", "a\\u{2028}b\\u{2029}c"),
            (
                "\u{61c}\u{200e}\u{200f}\u{202a}\u{2066}\u{2069}",
                "\\u{61c}\\u{200e}\\u{200f}\\u{202a}\\u{2066}\\u{2069}",
            ),
        ] {
            assert_eq!(visible(text), expected);
        }
    }

    #[test]
    fn a_closed_pipe_is_an_end_and_a_full_disk_a_failure() {
        assert_eq!(Error::from(io::Error::from(io::ErrorKind::BrokenPipe)), Error::OutputClosed);
        assert!(matches!(Error::from(io::Error::from(io::ErrorKind::StorageFull)), Error::Failed(_)));
    }
}
