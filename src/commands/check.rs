//! The operator's first aid: whether an agent could work here with these options,
//! a line each: `ok`, `note` (to know), or `mend` (to change, and how). It changes
//! nothing unless told to by `--repair --yes`: whether a command is permitted is seen from calls that are complete
//! enough for Redis to judge the account, and too wrong to be carried out. A
//! recipient is connected to and sent no message.

mod contents;
mod endpoint;
mod odd;
mod options;
mod permissions;
mod server;

use std::io::{self, Write};
use std::time::{Duration, Instant};

use super::{Error, Exit};
use crate::config::{Check, Config, Repair};
use crate::guard::Guard;
use crate::queue;
use crate::queue::redis::admin::Operator;
use crate::queue::redis::server::Server;
use crate::text::{spell, visible};

/// A round trip longer than this slows the agent down: it makes two or three for each batch.
const SLOW_ROUND_TRIP: Duration = Duration::from_millis(20);
const N_PINGS: usize = 9;

/// Looks at everything; [`Exit::Nothing`] if something is to be mended.
///
/// # Errors
///
/// Only if standard output cannot be written to.
pub fn run(options: &Check) -> Result<Exit, Error> {
    let mut report = Report::default();
    let config = &options.config;
    let (guard, poster) = options::check(config, &mut report)?;
    match check_redis(config, &guard, options.repair, &mut report) {
        Ok(()) => {}
        Err(Stop::Queue(error)) => report.mend("Redis", error)?,
        Err(Stop::Ours(error)) => return Err(error),
    }
    if let Some(endpoint) = &options.endpoint {
        endpoint::check(&guard, poster.as_ref(), endpoint, &mut report)?;
    }
    Ok(if report.n_to_mend == 0 { Exit::Done } else { Exit::Nothing })
}

/// Lines as they come, so that what is slow is seen to be.
#[derive(Default)]
struct Report {
    n_to_mend: usize,
}

impl Report {
    fn ok(&mut self, what: &str, words: impl ToString) -> Result<(), Error> {
        self.line("ok", what, &words.to_string())
    }

    /// For what is good to know and need not be changed.
    fn note(&mut self, what: &str, words: impl ToString) -> Result<(), Error> {
        self.line("note", what, &words.to_string())
    }

    fn mend(&mut self, what: &str, words: impl ToString) -> Result<(), Error> {
        self.n_to_mend += 1;
        self.line("mend", what, &words.to_string())
    }

    fn line(&mut self, verdict: &str, what: &str, words: &str) -> Result<(), Error> {
        let mut out = io::stdout().lock();
        writeln!(out, "{verdict:<4}  {what:<12}  {}", visible(words))?;
        Ok(out.flush()?)
    }
}

/// Why a look ended early.
enum Stop {
    /// Standard output.
    Ours(Error),
    /// Redis could not be asked any further.
    Queue(queue::Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Stop {
        Stop::Ours(error)
    }
}

impl From<queue::Error> for Stop {
    fn from(error: queue::Error) -> Stop {
        Stop::Queue(error)
    }
}

/// The policy learns from the connection where Redis is.
fn check_redis(config: &Config, guard: &Guard, repair: Repair, report: &mut Report) -> Result<(), Stop> {
    let server = Server::from(&config.redis).telling(guard.own().clone());
    let name = server.name();
    let mut operator = Operator::on(server, &config.redis.key());
    check_round_trip(&name, &mut operator, report)?;
    server::check(config, &mut operator, report)?;
    permissions::check(config, &mut operator, report)?;
    let looked = contents::check(config, &mut operator, report);
    match looked.and_then(|go_on| if go_on { odd::check(&mut operator, repair, report) } else { Ok(()) }) {
        // Which command is missing has been said.
        Err(Stop::Queue(error)) if permissions::is_refused(&error) => Ok(()),
        looked => looked,
    }
}

fn check_round_trip(name: &str, operator: &mut Operator, report: &mut Report) -> Result<(), Stop> {
    let mut ping = || {
        let began = Instant::now();
        operator.query(&redis::cmd("PING")).map(|_| began.elapsed())
    };
    let opened = ping()?;
    let mut trips = [Duration::ZERO; N_PINGS];
    for trip in &mut trips {
        *trip = ping()?;
    }
    trips.sort();
    let trip = trips[N_PINGS / 2];
    let words = format!("{name} answers; {} to connect, {} for a round trip", micro(opened), micro(trip));
    match trip <= SLOW_ROUND_TRIP {
        true => report.ok("Redis", words)?,
        false => report.note("Redis", format!("{words}, which is slow: put the agent near its Redis"))?,
    }
    Ok(())
}

/// The account's name, for a rule that can be pasted.
fn user(config: &Config) -> String {
    config.redis.url.access.login.username().unwrap_or("default").to_string()
}

fn micro(duration: Duration) -> String {
    match duration.as_micros() {
        micros @ 0..10_000 => format!("{:.2}ms", micros as f64 / 1000.0),
        _ => spell(duration),
    }
}
