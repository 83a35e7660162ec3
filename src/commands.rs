//! The operator's commands, one file each, and what they share: how they end, and time as
//! text. Only these files write to standard output.

mod check;
mod dead;
mod desk;
mod endpoint;
mod enqueue;
mod generate;
mod letter;
mod listen;
mod retry;
mod status;
mod table;
mod waiting;

use std::fmt;
use std::io::{self, Write};
use std::time::SystemTime;

use crate::agent;
use crate::config::Command;
use crate::queue::{self, Id};
use crate::text::{at_ms, visible};

/// How a command ended that did what it was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// Exit code 0.
    Done,
    /// Nothing matched, or something to mend was found: exit code 1.
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

/// Says something beside what was asked for; standard error may be closed.
fn say(words: &str) {
    let _ = writeln!(io::stderr(), "acapy-deliver: {}", visible(words));
}

/// Does what was asked for: runs an agent, or a command.
///
/// # Errors
///
/// Why it could not go on, or could not even begin.
pub fn obey(command: Command) -> Result<Exit, Error> {
    match command {
        Command::Run(config) => agent::run(&config).map(|()| Exit::Done).map_err(Error::Failed),
        Command::Enqueue(options) => enqueue::run(&options),
        Command::Listen(options) => listen::run(&options),
        Command::Check(options) => check::run(&options),
        Command::Status(options) => status::run(&options),
        Command::Dead(options) => dead::run(&options),
        Command::Endpoint(options) => endpoint::run(&options),
        Command::Retry(options) => retry::run(&options),
        Command::Waiting(options) => waiting::run(&options),
        Command::Generate(what) => generate::run(what),
        Command::Print(text) => print(&text),
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

/// When a message was claimed for the first time: its id says so, in microseconds.
pub fn claimed_at(id: Id) -> SystemTime {
    at_ms(id.0 / 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_pipe_is_an_end_and_a_full_disk_a_failure() {
        assert_eq!(Error::from(io::Error::from(io::ErrorKind::BrokenPipe)), Error::OutputClosed);
        assert!(matches!(Error::from(io::Error::from(io::ErrorKind::StorageFull)), Error::Failed(_)));
    }
}
