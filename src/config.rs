//! The command line and the environment, turned into values of their final types: nothing below parses an
//! option again.
//!
//! [`parse`] accepts exactly the options that have a row (`config/row.rs`; help texts are made from the same rows)
//! and refuses all else with one sentence that names the option or variable, the value, and what would be
//! right. The command line wins over the environment; an empty variable counts as unset.
//! Passwords never appear in a message or in `Debug`: every value that is repeated goes
//! through `text::redacted`. What the values lead to is left to those who use them.
//!
//! A default never contradicts what was said: one that lies under a bound shrinks with it
//! (`--workers 2` also means at most 2 per endpoint). A bound that was not named does not
//! grow by itself; going over it is an error.

mod endpoint;
mod help;
mod messages;
mod operator;
mod queue;
pub(crate) mod queue_url;
mod reader;
mod row;
mod run;
mod values;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;

use reader::{Reader, did_you_mean};

pub use endpoint::{Endpoint, EndpointAction};
pub use help::COMMANDS;
pub use messages::{Act, Dead, DeadAction, Filter, Held, HeldAction, List, Selection};
pub use operator::{Check, Enqueue, Generate, Listen, Payload, Repair, Status};
pub use queue::{RedisAddress, Taken};
pub use row::{AnyRow, CommandRow, Section};
pub use run::{Config, LogFormat, StatusEndpoint};

use crate::text::redacted;

/// Environment variables by name; [`environment`] takes those of this process that concern us.
pub type Environment = BTreeMap<String, OsString>;

/// What the user asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// Deliver until told to stop.
    Run(Config),
    /// Push messages as ACA-Py would.
    Enqueue(Enqueue),
    /// Be a recipient that shows what arrives.
    Listen(Listen),
    /// See whether an agent could work here.
    Check(Check),
    /// Show what is queued, in flight, waiting and dead.
    Status(Status),
    /// Look after the dead letters.
    Dead(Dead),
    /// Pause, resume or try endpoints.
    Endpoint(Endpoint),
    /// Look after what is on the retry schedule.
    Retry(Held),
    /// Look after what waits for its endpoint.
    Waiting(Held),
    /// Write what packages bring.
    Generate(Generate),
    /// Print this text to standard output.
    Print(String),
}

/// Why the command line cannot be followed: one sentence, without any password.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Error(String);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

/// The variables of the plugin's deliverer, by which its environment works as it stands.
const REDIS_SERVER_URL: &str = "REDIS_SERVER_URL";
const TOPIC_PREFIX: &str = "TOPIC_PREFIX";
const STATUS_ENDPOINT: [&str; 3] = ["STATUS_ENDPOINT_HOST", "STATUS_ENDPOINT_PORT", "STATUS_ENDPOINT_API_KEY"];

/// The variables of this process that begin with `ACAPY_`, and those of the plugin's deliverer.
pub fn environment() -> Environment {
    let concerns_us = |name: &str| {
        name.starts_with("ACAPY_")
            || [REDIS_SERVER_URL, TOPIC_PREFIX].contains(&name)
            || STATUS_ENDPOINT.contains(&name)
    };
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
        .filter(|(name, _)| concerns_us(name))
        .collect()
}

/// Reads the command line, without the program's own name, and the environment.
///
/// # Errors
///
/// For whatever cannot be followed to the letter; the process should end with 2.
pub fn parse(arguments: Vec<OsString>, environment: &Environment) -> Result<Command, Error> {
    let mut arguments = reader::normalised(arguments)?;
    let name = match arguments.first() {
        Some(first) if !first.starts_with('-') => arguments.remove(0),
        _ => String::new(),
    };
    if arguments.iter().any(|argument| argument == "--help") {
        return help_on(&name);
    }
    if name == "help" {
        let topics = Reader::new(command(&name)?, arguments, environment)?.rest(2)?;
        return help_on(topics.first().map_or("", String::as_str));
    }
    if name.is_empty() && arguments.first().is_some_and(|first| first == "--version") {
        arguments.remove(0);
        Reader::new(command("help")?, arguments, environment)?.rest(0)?;
        return Ok(Command::Print(format!("acapy-deliver {}\n", env!("CARGO_PKG_VERSION"))));
    }
    let command = command(if name.is_empty() { "run" } else { &name })?;
    let reader = &mut Reader::new(command, arguments, environment)?;
    match command.name {
        "enqueue" => operator::read_enqueue(reader),
        "listen" => operator::read_listen(reader),
        "check" => operator::read_check(reader),
        "status" => operator::read_status(reader),
        "dead" => messages::read_dead(reader),
        "endpoint" => endpoint::read(reader),
        "retry" => messages::read_retry(reader),
        "waiting" => messages::read_waiting(reader),
        "generate" => operator::read_generate(reader),
        _ => {
            let config = run::read(reader)?;
            reader.rest(0)?;
            Ok(Command::Run(config))
        }
    }
}

fn help_on(name: &str) -> Result<Command, Error> {
    help::of(name).map(Command::Print).ok_or_else(|| unknown_command(name))
}

fn command(name: &str) -> Result<&'static CommandRow, Error> {
    COMMANDS.iter().find(|command| command.name == name).copied().ok_or_else(|| unknown_command(name))
}

fn unknown_command(name: &str) -> Error {
    let names: Vec<&str> = COMMANDS.iter().map(|command| command.name).collect();
    Error(format!(
        "there is no command '{}'{}; the commands are {}",
        redacted(name),
        did_you_mean(name, names.iter().copied()),
        names.join(", ")
    ))
}

/// Sentences about variables that do nothing: `ACAPY_DELIVER_…` ones that no option has, since a misspelt
/// one would otherwise be ignored in silence, and those of the deliverer's status pages without the
/// others. Not an error, for an environment may be shared.
pub fn unknown_variables(environment: &Environment) -> Vec<String> {
    let known: Vec<String> =
        COMMANDS.iter().flat_map(|command| command.rows()).filter_map(|row| row.variable()).collect();
    environment
        .keys()
        .filter(|name| name.starts_with(row::OURS) && !known.contains(name))
        .map(|name| {
            let names = known.iter().map(String::as_str);
            format!("variable {name} is not known and does nothing{}", did_you_mean(name, names))
        })
        .chain(half_a_status_endpoint(environment))
        .collect()
}

fn half_a_status_endpoint(environment: &Environment) -> Option<String> {
    let is_set = |name: &&str| environment.get(*name).is_some_and(|value| !value.is_empty());
    let (set, unset): (Vec<&str>, Vec<&str>) = STATUS_ENDPOINT.into_iter().partition(is_set);
    (!set.is_empty() && !unset.is_empty()).then(|| {
        format!("{} without {} does nothing: no status pages are served there", set.join(", "), unset.join(", "))
    })
}

#[cfg(test)]
mod tests;
