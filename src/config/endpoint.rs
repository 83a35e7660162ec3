//! The options of `endpoint`: endpoints that an operator pauses, resumes or has tried.

use super::messages::{DRY_RUN, JSON};
use super::queue::{self, RedisAddress};
use super::reader::Reader;
use super::row::{Action, CommandRow, Row, Section, flag};
use super::values::at_least_one;
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

static LIST_LIMIT: Row<u64> = Row::new("--limit", "N", at_least_one).default("50").help("at most so many");
static ALL_PAUSED: Row<bool> = flag("--all", "resume all that are paused");

/// The command `endpoint`.
pub static ENDPOINT: CommandRow = CommandRow {
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
Ends with 1 if nothing matches.",
    sections: &[Section { heading: "", rows: &[&LIST_LIMIT, &JSON, &ALL_PAUSED, &DRY_RUN] }, queue::SECTION],
    after: "",
    actions: &[
        Action { name: "list", summary: "a line each, those that are paused first", rows: &[&LIST_LIMIT, &JSON] },
        Action { name: "pause", summary: "all messages for it wait", rows: &[&DRY_RUN] },
        Action { name: "resume", summary: "deliver to it again", rows: &[&ALL_PAUSED, &DRY_RUN] },
        Action { name: "try", summary: "try one that failed now", rows: &[&DRY_RUN] },
    ],
};

pub(super) fn read(reader: &mut Reader) -> Result<Command, Error> {
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
