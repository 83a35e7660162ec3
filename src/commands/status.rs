//! What is queued, in flight, waiting, on the retry schedule and dead, as tables
//! or as one JSON object. Totals are exact; tables of what may be many are counted
//! over a bounded number, and say so. It only reads.

mod json;
mod look;
mod tables;
mod watch;

use std::io::{self, Write};

use super::{Error, Exit};
use crate::config::Status;
use crate::queue::redis::admin::AgentSeen;
use crate::text::{ago, at_ms};
use look::{BOUNDS, Looker};

/// Shows it.
///
/// # Errors
///
/// If Redis cannot be asked.
pub fn run(options: &Status) -> Result<Exit, Error> {
    if options.watch {
        return watch::run(options);
    }
    let seen = Looker::new(options).look(options, &BOUNDS)?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    if options.json {
        writeln!(out, "{}", seen.json(options))?;
    } else {
        seen.print(options, &mut out)?;
    }
    out.flush()?;
    Ok(Exit::Done)
}

/// `alive`, `expired`, or `none` for one that is not registered but has messages in flight.
fn lease(agent: &AgentSeen, now: u64) -> &'static str {
    match agent.lease {
        Some(lease) if lease >= now => "alive",
        Some(_) => "expired",
        None => "none",
    }
}

pub(super) fn next_try(time: Option<u64>, now: u64) -> String {
    match time {
        None => "up".to_string(),
        Some(time) if time <= now => "now".to_string(),
        Some(time) => ago(at_ms(time), at_ms(now)),
    }
}
