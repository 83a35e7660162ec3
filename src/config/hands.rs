//! The options of the commands with which an operator steps in: endpoints paused, resumed and tried, what is put off
//! tried now, what waits dropped. What one is about must be said in it.

use super::operator::{ENDPOINT, Filter, JSON, LIMIT, REASON, Selection, ids, read_filter};
use super::queue::{self, RedisAddress};
use super::reader::Reader;
use super::row::{Action, AnyRow, CommandRow, Row, Section, flag};
use super::values::number;
use super::{Command, Error};
use crate::envelope::origin_of;
use crate::orders::Hand;

/// Options of `endpoint`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint {
    /// The queue.
    pub redis: RedisAddress,
    /// What to do.
    pub action: EndpointAction,
}

/// What to do with endpoints.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum EndpointAction {
    /// A line each, those that are paused first.
    List {
        /// At most so many; 50.
        limit: u64,
        /// One JSON object a line.
        json: bool,
    },
    /// Give an order.
    Order {
        /// Which.
        hand: Hand,
        /// For these origins, each named once; none: all that are paused.
        origins: Vec<String>,
        /// Only say what would be done.
        dry: bool,
    },
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
    List {
        /// Which of them; `limit` is 50 unless given.
        filter: Filter,
        /// One JSON object a line.
        json: bool,
    },
    /// What the command is for: `retry now`, `waiting drop`.
    Act {
        /// Which of them.
        selection: Selection,
        /// Only say what would be done.
        dry: bool,
    },
}

static DRY_RUN: Row<bool> = flag("--dry-run", "only say what would be done");
static LIST_LIMIT: Row<u64> =
    Row::new("--limit", "N", |text| number(text, 1, u64::MAX)).default("50").help("at most so many");
static ALL_PAUSED: Row<bool> = flag("--all", "resume all that are paused");
static ALL: Row<bool> = flag("--all", "all of them");

/// The command `endpoint`.
pub static ENDPOINTS: CommandRow = CommandRow {
    name: "endpoint",
    summary: "pause, resume or try endpoints",
    usage: "\
acapy-deliver endpoint list    [--limit N] [--json]
acapy-deliver endpoint pause   ORIGIN… [--dry-run]
acapy-deliver endpoint resume  ORIGIN… | --all [--dry-run]
acapy-deliver endpoint try     ORIGIN… [--dry-run]",
    about: "\
Steps in at endpoints. While one is paused all messages for it wait, whatever ends or
restarts, and grow no older; attempts under way end. All agents go by it within a
second. 'resume' ends that. 'try' has one that failed tried now and not when its time
comes: it is repaired. ORIGIN is as http://host:8020, or any URL of it.
Ends with 1 if there is nothing such.",
    sections: &[Section { heading: "", rows: &[&LIST_LIMIT, &JSON, &ALL_PAUSED, &DRY_RUN] }, queue::SECTION],
    after: "",
    actions: &[
        Action { name: "list", summary: "a line each, those that are paused first", rows: &[&LIST_LIMIT, &JSON] },
        Action { name: "pause", summary: "all messages for it wait", rows: &[&DRY_RUN] },
        Action { name: "resume", summary: "deliver to it again", rows: &[&ALL_PAUSED, &DRY_RUN] },
        Action { name: "try", summary: "try one that failed now", rows: &[&DRY_RUN] },
    ],
};

pub(super) fn read_endpoint(reader: &mut Reader) -> Result<Command, Error> {
    let redis = queue::read(reader)?;
    let hand = match reader.action() {
        "list" => {
            let (limit, json) = (reader.value(&LIST_LIMIT)?, reader.flag(&JSON)?);
            reader.rest(0)?;
            return Ok(Command::Endpoint(Endpoint { redis, action: EndpointAction::List { limit, json } }));
        }
        "pause" => Hand::Pause,
        "resume" => Hand::Resume,
        _ => Hand::Try,
    };
    let dry = reader.flag(&DRY_RUN)?;
    let all = hand == Hand::Resume && reader.flag(&ALL_PAUSED)?;
    let command = reader.command().to_owned();
    let mut origins: Vec<String> = Vec::new();
    for argument in reader.rest(usize::MAX)? {
        let origin = origin_of(&argument).map_err(|why| Error(format!("'{command}' takes origins: {why}")))?;
        if !origins.contains(&origin) {
            origins.push(origin);
        }
    }
    match (origins.is_empty(), all) {
        (true, false) => Err(Error(format!("'{command}' needs an origin, as http://host:8020, or any URL of it"))),
        (false, true) => Err(Error(format!("'{command}' takes origins or '--all', not both"))),
        _ => Ok(Command::Endpoint(Endpoint { redis, action: EndpointAction::Order { hand, origins, dry } })),
    }
}

const FILTERS: &[&dyn AnyRow] = &[&ENDPOINT, &REASON, &LIMIT, &JSON];
const SELECTING: &[&dyn AnyRow] = &[&ENDPOINT, &REASON, &LIMIT, &ALL, &DRY_RUN];
const HELD: &[&dyn AnyRow] = &[&ENDPOINT, &REASON, &LIMIT, &ALL, &DRY_RUN, &JSON];

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
those have failed. FILTERS are those of 'list'; the reason is the last error.
Ends with 1 if there is nothing such.",
    sections: &[Section { heading: "", rows: HELD }, queue::SECTION],
    after: "",
    actions: &[
        Action { name: "list", summary: "a line each, those due next first", rows: FILTERS },
        Action { name: "now", summary: "try them now", rows: SELECTING },
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
back, say. FILTERS are those of 'list'; the reason is the last error.
Ends with 1 if there is nothing such.",
    sections: &[Section { heading: "", rows: HELD }, queue::SECTION],
    after: "",
    actions: &[
        Action { name: "list", summary: "a line each, by endpoint, oldest first", rows: FILTERS },
        Action { name: "drop", summary: "remove them for good", rows: SELECTING },
    ],
};

pub(super) fn read_retry(reader: &mut Reader) -> Result<Command, Error> {
    Ok(Command::Retry(read_held(reader)?))
}

pub(super) fn read_waiting(reader: &mut Reader) -> Result<Command, Error> {
    Ok(Command::Waiting(read_held(reader)?))
}

fn read_held(reader: &mut Reader) -> Result<Held, Error> {
    let redis = queue::read(reader)?;
    if reader.action() == "list" {
        let mut filter = read_filter(reader)?;
        filter.limit.get_or_insert(50);
        let json = reader.flag(&JSON)?;
        reader.rest(0)?;
        return Ok(Held { redis, action: HeldAction::List { filter, json } });
    }
    let dry = reader.flag(&DRY_RUN)?;
    Ok(Held { redis, action: HeldAction::Act { selection: read_selection(reader)?, dry } })
}

/// Ids, or those that pass a filter, or `--all`: what is meant must be said.
fn read_selection(reader: &mut Reader) -> Result<Selection, Error> {
    let (filter, all) = (read_filter(reader)?, reader.flag(&ALL)?);
    let ids = ids(reader.rest(usize::MAX)?)?;
    let command = reader.command();
    let names_some = filter.endpoint.is_some() || filter.reason.is_some();
    match (ids.is_empty(), all || names_some) {
        (false, false) if filter.limit.is_none() => Ok(Selection::Ids(ids)),
        (false, _) => Err(Error(format!("'{command}' takes ids, or '--all' and filters; not both"))),
        (true, true) => Ok(Selection::All(filter)),
        (true, false) => {
            Err(Error(format!("'{command}' needs ids, '--endpoint' or '--reason', or '--all' for all of them")))
        }
    }
}
