//! The options of the commands that look after messages: the dead letters, the retry schedule, what waits. What one
//! acts upon must be said in it: ids, filters, or `--all`.

use super::queue::{self, RedisAddress};
use super::reader::Reader;
use super::row::{Action, AnyRow, CommandRow, Row, Section, flag};
use super::values::{at_least_one, id, not_empty};
use super::{Command, Error};
use crate::text::redacted;

/// Options of `dead`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Dead {
    /// The queue.
    pub redis: RedisAddress,
    /// What to do with them.
    pub action: DeadAction,
}

/// What to do with the dead letters.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DeadAction {
    /// A line each, oldest first.
    List(List),
    /// All that is known of one.
    Show {
        /// Its id.
        id: u64,
        /// Its payload as well.
        payload: bool,
        /// As a JSON object.
        json: bool,
    },
    /// Try them again as if they were new.
    Replay(Act),
    /// Remove them for good.
    Drop(Act),
    /// One line of JSON each, payload included.
    Export(Filter),
}

/// Options of `retry` and `waiting`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Held {
    /// The queue.
    pub redis: RedisAddress,
    /// What to do.
    pub action: HeldAction,
}

/// What to do with messages that are put off.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum HeldAction {
    /// A line each.
    List(List),
    /// What the command is for: `retry now`, `waiting drop`.
    Act(Act),
}

/// A list of messages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct List {
    /// Which of them; `limit` is 50 unless given.
    pub filter: Filter,
    /// One JSON object a line.
    pub json: bool,
}

/// Something that is done to messages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Act {
    /// To which.
    pub selection: Selection,
    /// Only say what would be done.
    pub dry: bool,
}

/// Which messages to act on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Selection {
    /// These; never empty.
    Ids(Vec<u64>),
    /// All that pass.
    All(Filter),
}

/// Which messages are meant.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Filter {
    /// Only those whose endpoint begins with this.
    pub endpoint: Option<String>,
    /// Only those whose reason contains this.
    pub reason: Option<String>,
    /// At most so many; `None`: all.
    pub limit: Option<u64>,
}

static ENDPOINT: Row<String> =
    Row::new("--endpoint", "URL", not_empty).help("only those whose endpoint begins with this");
static REASON: Row<String> = Row::new("--reason", "TEXT", not_empty).help("only those whose reason contains this");
static LIMIT: Row<u64> =
    Row::new("--limit", "N", at_least_one).unset("list: 50; else all").help("at most so many, the oldest");
static ALL: Row<bool> = flag("--all", "all of them, or all that the filters let pass");
static PAYLOAD: Row<bool> = flag("--payload", "show the payload as well");
pub(super) static JSON: Row<bool> = flag("--json", "JSON instead of text");
pub(super) static DRY_RUN: Row<bool> = flag("--dry-run", "only say what would be done");

const LISTING: &[&dyn AnyRow] = &[&ENDPOINT, &REASON, &LIMIT, &JSON];
const ACTING: &[&dyn AnyRow] = &[&ENDPOINT, &REASON, &LIMIT, &ALL, &DRY_RUN];
const ALL_OF_HELD: &[&dyn AnyRow] = &[&ENDPOINT, &REASON, &LIMIT, &ALL, &DRY_RUN, &JSON];
const ALL_OF_DEAD: &[&dyn AnyRow] = &[&ENDPOINT, &REASON, &LIMIT, &ALL, &DRY_RUN, &PAYLOAD, &JSON];

/// The command `dead`.
pub static DEAD: CommandRow = CommandRow {
    name: "dead",
    summary: "list, show, replay, drop or export the dead letters",
    usage: "\
acapy-deliver dead list    [--endpoint URL] [--reason TEXT] [--limit N] [--json]
acapy-deliver dead show    ID [--payload] [--json]
acapy-deliver dead replay  ID… | --all | FILTERS [--dry-run]
acapy-deliver dead drop    ID… | --all | FILTERS [--dry-run]
acapy-deliver dead export  [--endpoint URL] [--reason TEXT] [--limit N]",
    about: "\
Looks after the dead letters: messages that will not be tried again unless they are
replayed. 'replay' has them delivered as if they were new; 'drop' removes them for
good; 'export' writes one line of JSON each, payload included, oldest first.
FILTERS are those of 'list', with or without --all; --limit alone does not say which
are meant. Ends with 1 if nothing matches.",
    sections: &[Section { heading: "", rows: ALL_OF_DEAD }, queue::SECTION],
    after: "",
    actions: &[
        Action { name: "list", summary: "a line each, oldest first", rows: LISTING },
        Action { name: "show", summary: "all that is known of one", rows: &[&PAYLOAD, &JSON] },
        Action { name: "replay", summary: "try them again as if they were new", rows: ACTING },
        Action { name: "drop", summary: "remove them for good", rows: ACTING },
        Action {
            name: "export",
            summary: "a line of JSON each, payload included",
            rows: &[&ENDPOINT, &REASON, &LIMIT],
        },
    ],
};

/// The command `retry`.
pub static RETRY: CommandRow = CommandRow {
    name: "retry",
    summary: "list what is put off for itself, or try it now",
    usage: "\
acapy-deliver retry list  [--endpoint URL] [--reason TEXT] [--limit N] [--json]
acapy-deliver retry now   ID… | --all | FILTERS [--dry-run]",
    about: "\
Looks after the retry schedule: messages that failed by a fault of their own, and wait
for a time of their own. 'now' has them tried now, and their endpoints too where
those have failed. FILTERS are those of 'list', with or without --all; --limit alone
does not say which are meant. The reason is the last error.
Ends with 1 if nothing matches.",
    sections: &[Section { heading: "", rows: ALL_OF_HELD }, queue::SECTION],
    after: "",
    actions: &[
        Action { name: "list", summary: "a line each, those due next first", rows: LISTING },
        Action { name: "now", summary: "try them now", rows: ACTING },
    ],
};

/// The command `waiting`.
pub static WAITING: CommandRow = CommandRow {
    name: "waiting",
    summary: "list or drop what waits for its endpoint",
    usage: "\
acapy-deliver waiting list  [--endpoint URL] [--reason TEXT] [--limit N] [--json]
acapy-deliver waiting drop  ID… | --all | FILTERS [--dry-run]",
    about: "\
Looks after what waits for its endpoint, which is down, paused or slower than what
comes. 'drop' removes messages for good, undelivered: an endpoint that never comes
back, say. FILTERS are those of 'list', with or without --all; --limit alone does not
say which are meant. The reason is the last error.
Ends with 1 if nothing matches.",
    sections: &[Section { heading: "", rows: ALL_OF_HELD }, queue::SECTION],
    after: "",
    actions: &[
        Action { name: "list", summary: "a line each, by endpoint, oldest first", rows: LISTING },
        Action { name: "drop", summary: "remove them for good", rows: ACTING },
    ],
};

pub(super) fn read_dead(reader: &mut Reader) -> Result<Command, Error> {
    let redis = queue::read(reader)?;
    let action = match reader.action() {
        "list" => DeadAction::List(read_list(reader)?),
        "show" => {
            let (payload, json) = (reader.flag(&PAYLOAD)?, reader.flag(&JSON)?);
            let id = ids(reader.rest(1)?)?.into_iter().next();
            let id = id.ok_or_else(|| Error("'dead show' needs the id of a dead letter".to_owned()))?;
            DeadAction::Show { id, payload, json }
        }
        "export" => {
            let filter = read_filter(reader)?;
            reader.rest(0)?;
            DeadAction::Export(filter)
        }
        "replay" => DeadAction::Replay(read_act(reader)?),
        _ => DeadAction::Drop(read_act(reader)?),
    };
    Ok(Command::Dead(Dead { redis, action }))
}

pub(super) fn read_retry(reader: &mut Reader) -> Result<Command, Error> {
    Ok(Command::Retry(read_held(reader)?))
}

pub(super) fn read_waiting(reader: &mut Reader) -> Result<Command, Error> {
    Ok(Command::Waiting(read_held(reader)?))
}

fn read_held(reader: &mut Reader) -> Result<Held, Error> {
    let redis = queue::read(reader)?;
    let action = match reader.action() {
        "list" => HeldAction::List(read_list(reader)?),
        _ => HeldAction::Act(read_act(reader)?),
    };
    Ok(Held { redis, action })
}

fn read_list(reader: &mut Reader) -> Result<List, Error> {
    let mut filter = read_filter(reader)?;
    filter.limit.get_or_insert(50);
    let json = reader.flag(&JSON)?;
    reader.rest(0)?;
    Ok(List { filter, json })
}

fn read_filter(reader: &mut Reader) -> Result<Filter, Error> {
    Ok(Filter {
        endpoint: reader.optional(&ENDPOINT)?,
        reason: reader.optional(&REASON)?,
        limit: reader.optional(&LIMIT)?,
    })
}

/// Ids, or those that pass a filter, or `--all`: what is meant must be said.
fn read_act(reader: &mut Reader) -> Result<Act, Error> {
    let dry = reader.flag(&DRY_RUN)?;
    let (filter, all) = (read_filter(reader)?, reader.flag(&ALL)?);
    let ids = ids(reader.rest(usize::MAX)?)?;
    let command = reader.command();
    let names_some = filter.endpoint.is_some() || filter.reason.is_some();
    let selection = match (ids.is_empty(), all || names_some) {
        (false, false) if filter.limit.is_none() => Selection::Ids(ids),
        (false, _) => return Err(Error(format!("'{command}' takes ids, or '--all' and filters; not both"))),
        (true, true) => Selection::All(filter),
        (true, false) => {
            let why = format!("'{command}' needs ids, '--endpoint' or '--reason', or '--all' for all of them");
            return Err(Error(why));
        }
    };
    Ok(Act { selection, dry })
}

fn ids(arguments: Vec<String>) -> Result<Vec<u64>, Error> {
    let wrong = |argument: &str| {
        Error(format!(
            "'{}' is not an id; ids have 16 digits, as the lists of 'dead', 'retry' and 'waiting' show them",
            redacted(argument)
        ))
    };
    arguments.iter().map(|argument| id(argument).ok_or_else(|| wrong(argument))).collect()
}
