//! The options of the operator's commands. But for those of the queue and of `run` they have no variables: what
//! one call is about should stand in that call, above all where messages are dropped.

use std::path::PathBuf;
use std::time::Duration;

use super::queue::{self, RedisAddress};
use super::reader::Reader;
use super::row::{Action, CommandRow, Row, Section, flag};
use super::run::{self, Config};
use super::values::{HOUR, at_least_one, duration, header, host_and_port, not_empty, number, one_of};
use super::{Command, Error};
use crate::envelope::Format;

/// Options of `enqueue`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Enqueue {
    /// The queue.
    pub redis: RedisAddress,
    /// Where the message is to be delivered.
    pub endpoint: String,
    /// The wire format; `None`: what the queue's key suggests.
    pub format: Option<Format>,
    /// Headers as given, names and values trimmed.
    pub headers: Vec<(String, String)>,
    /// Where the payload comes from.
    pub payload: Payload,
    /// How many times it is pushed; 1.
    pub count: u64,
}

/// Where the payload of `enqueue` comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Payload {
    /// From the command line.
    Text(String),
    /// From a file.
    File(PathBuf),
    /// From standard input, asked for by `-`.
    Stdin,
    /// Nothing was said: from standard input if it is not a terminal.
    Unsaid,
}

static ENQUEUE_ENDPOINT: Row<String> =
    Row::new("--endpoint", "URL", not_empty).help("where it is to be delivered, http, https, ws or wss; needed");
static FORMAT: Row<Format> = Row::new("--format", "json|msgpack", |text| {
    one_of(text, &[Format::Json, Format::MessagePack].map(|format| (format.name(), format)))
})
.unset("msgpack for ….outbound_transport, else json")
.help("how it is written: as ACA-Py of today does, or as 0.7 did");
static HEADER: Row<Vec<(String, String)>> = Row::new("--header", "'Name: value'", header)
    .unset("Content-Type: application/didcomm-envelope-enc, or with msgpack application/ssi-agent-wire")
    .help("a header to deliver with it; repeatable");
static TEXT: Row<String> =
    Row::new("--text", "STRING", |text| Ok(text.to_owned())).unset("none").help("the payload, instead of a file");
static PUSH_COUNT: Row<u64> =
    Row::new("--count", "N", |text| number(text, 1, 100_000_000)).default("1").help("push it so many times");

/// The command `enqueue`.
pub static ENQUEUE: CommandRow = CommandRow {
    name: "enqueue",
    summary: "push one message, as ACA-Py would",
    usage: "acapy-deliver enqueue -oq URL --endpoint URL [options] [FILE|-]",
    about: "\
Pushes a message onto the queue as ACA-Py would. Its payload is FILE, or standard
input for - or when nothing is said.",
    sections: &[
        Section { heading: "", rows: &[&ENQUEUE_ENDPOINT, &FORMAT, &HEADER, &TEXT, &PUSH_COUNT] },
        queue::SECTION,
    ],
    after: "",
    actions: &[],
};

pub(super) fn read_enqueue(reader: &mut Reader) -> Result<Command, Error> {
    let redis = queue::read(reader)?;
    let endpoint = reader.optional(&ENQUEUE_ENDPOINT)?;
    let format = reader.optional(&FORMAT)?;
    let headers = reader.list(&HEADER)?;
    let text = reader.optional(&TEXT)?;
    let count = reader.value(&PUSH_COUNT)?;
    let file = reader.rest(1)?.into_iter().next();
    let payload = match (file, text) {
        (Some(_), Some(_)) => {
            return Err(Error("the payload is given twice: as '--text' and as a file; leave out one".to_owned()));
        }
        (Some(file), None) if file == "-" => Payload::Stdin,
        (Some(file), None) => Payload::File(PathBuf::from(file)),
        (None, Some(text)) => Payload::Text(text),
        (None, None) => Payload::Unsaid,
    };
    let endpoint =
        endpoint.ok_or_else(|| Error("option '--endpoint' is missing: where is the message to go?".to_owned()))?;
    Ok(Command::Enqueue(Enqueue { redis, endpoint, format, headers, payload, count }))
}

/// Options of `listen`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listen {
    /// `HOST:PORT`; `127.0.0.1:8030`. Port 0 takes a free one.
    pub address: String,
    /// The status of every answer; 200. A WebSocket opens with one of 2xx.
    pub status: u16,
    /// The code that every WebSocket is closed with; 1000.
    pub close: u16,
    /// How long to wait before each answer; none.
    pub delay: Duration,
    /// One line a request.
    pub quiet: bool,
    /// End after this many requests; `None`: never.
    pub count: Option<u64>,
}

static ANSWER: Row<u16> = Row::new("--status", "N", |text| number(text, 200, 599))
    .default("200")
    .help("answer with this status, 200 to 599 (2xx opens WebSockets)");
static CLOSE: Row<u16> = Row::new("--close", "CODE", |text| number(text, 1000, 4999))
    .default("1000")
    .help("close WebSockets with this code, 1000 to 4999");
static DELAY: Row<Duration> = Row::new("--delay", "TIME", |text| duration(text, Duration::ZERO, HOUR))
    .default("0s")
    .help("wait so long before each answer, as in 200ms or 5s");
static QUIET: Row<bool> = flag("--quiet", "one line a request, without headers and payload");
static REQUEST_COUNT: Row<u64> =
    Row::new("--count", "N", |text| number(text, 1, u64::MAX)).unset("never").help("end after so many requests");

/// The command `listen`.
pub static LISTEN: CommandRow = CommandRow {
    name: "listen",
    summary: "be a recipient that shows what arrives, for trying things out",
    usage: "acapy-deliver listen [options] [HOST:PORT]",
    about: "\
Is a recipient for trying things out: answers every request and shows it, and takes
WebSockets at the same port and shows their messages. Listens on 127.0.0.1:8030
unless told otherwise; port 0 takes a free one. The first line of output says where.",
    sections: &[Section { heading: "", rows: &[&ANSWER, &CLOSE, &DELAY, &QUIET, &REQUEST_COUNT] }],
    after: "",
    actions: &[],
};

pub(super) fn read_listen(reader: &mut Reader) -> Result<Command, Error> {
    let mut options = Listen {
        address: "127.0.0.1:8030".to_owned(),
        status: reader.value(&ANSWER)?,
        close: reader.value(&CLOSE)?,
        delay: reader.value(&DELAY)?,
        quiet: reader.flag(&QUIET)?,
        count: reader.optional(&REQUEST_COUNT)?,
    };
    if let Some(address) = reader.rest(1)?.into_iter().next() {
        options.address = host_and_port(&address).map_err(|why| Error(format!("argument '{address}' {why}")))?;
    }
    Ok(Command::Listen(options))
}

/// Options of `check`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Check {
    /// The settings that an agent would have here, by the same options.
    pub config: Config,
    /// A recipient to try as well.
    pub endpoint: Option<String>,
    /// What is done about entries that no agent writes.
    pub repair: Repair,
}

/// What `check` does about entries of the queue's keys that no agent writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Repair {
    /// Names them.
    No,
    /// Says what it would do.
    Say,
    /// Does it.
    Do,
}

static CHECK_ENDPOINT: Row<String> = Row::new("--endpoint", "URL", not_empty)
    .unset("none")
    .help("see also whether this recipient resolves, is allowed, and answers");
static REPAIR: Row<bool> = flag("--repair", "say what would mend entries in Redis that no agent writes");
static YES: Row<bool> = flag("--yes", "with --repair: do it; what is moved aside is kept in a key beside the queue's");

/// The command `check`.
pub static CHECK: CommandRow = CommandRow {
    name: "check",
    summary: "see whether an agent could work here, and what to change",
    usage: "acapy-deliver check -oq URL [--endpoint URL] [options of run]",
    about: "\
Says, a line each, whether an agent could work here and what to change: can it reach
Redis, is the version enough, is persistence on, are permissions right. Takes the
options of 'run' as well, so that what is checked is what would run.",
    sections: &[
        Section { heading: "", rows: &[&CHECK_ENDPOINT, &REPAIR, &YES] },
        run::SECTIONS[0],
        run::SECTIONS[1],
        run::SECTIONS[2],
        run::SECTIONS[3],
        run::SECTIONS[4],
    ],
    after: "",
    actions: &[],
};

pub(super) fn read_check(reader: &mut Reader) -> Result<Command, Error> {
    let config = run::read(reader)?;
    let endpoint = reader.optional(&CHECK_ENDPOINT)?;
    let repair = match (reader.flag(&REPAIR)?, reader.flag(&YES)?) {
        (false, false) => Repair::No,
        (true, false) => Repair::Say,
        (true, true) => Repair::Do,
        (false, true) => return Err(Error("option '--yes' goes with '--repair'".to_owned())),
    };
    reader.rest(0)?;
    Ok(Command::Check(Check { config, endpoint, repair }))
}

/// Options of `status`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Status {
    /// The queue.
    pub redis: RedisAddress,
    /// One JSON object instead of tables.
    pub json: bool,
    /// Again every second, with what happened in it.
    pub watch: bool,
    /// Lines of each table that could be long; 20.
    pub limit: u64,
}

static STATUS_JSON: Row<bool> = flag("--json", "one JSON object instead of tables");
static STATUS_WATCH: Row<bool> = flag("--watch", "again every second, with rates, until Ctrl-C");
static STATUS_LIMIT: Row<u64> =
    Row::new("--limit", "N", at_least_one).default("20").help("at most so many lines a table");

/// The command `status`.
pub static STATUS: CommandRow = CommandRow {
    name: "status",
    summary: "show what is queued, in flight, waiting and dead",
    usage: "acapy-deliver status -oq URL [--watch] [--json] [--limit N]",
    about: "\
Shows the length of the queue, what is in flight by agent, what waits by endpoint,
and the dead letters by reason.",
    sections: &[Section { heading: "", rows: &[&STATUS_WATCH, &STATUS_JSON, &STATUS_LIMIT] }, queue::SECTION],
    after: "",
    actions: &[],
};

pub(super) fn read_status(reader: &mut Reader) -> Result<Command, Error> {
    let redis = queue::read(reader)?;
    let (json, watch) = (reader.flag(&STATUS_JSON)?, reader.flag(&STATUS_WATCH)?);
    let limit = reader.value(&STATUS_LIMIT)?;
    reader.rest(0)?;
    Ok(Command::Status(Status { redis, json, watch, limit }))
}

/// What is made of the rows of all options, for packages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Generate {
    /// The manual page.
    Man,
    /// Completion for bash.
    Bash,
    /// Completion for zsh.
    Zsh,
    /// Completion for fish.
    Fish,
}

/// The command `generate`.
pub static GENERATE: CommandRow = CommandRow {
    name: "generate",
    summary: "write the manual page, or what a shell completes by",
    usage: "acapy-deliver generate man|complete-bash|complete-zsh|complete-fish",
    about: "\
Writes to standard output what packages bring: the manual page, or the completion of
commands and options for a shell.",
    sections: &[],
    after: "",
    actions: &[
        Action { name: "man", summary: "the manual page", rows: &[] },
        Action { name: "complete-bash", summary: "completion for bash", rows: &[] },
        Action { name: "complete-zsh", summary: "completion for zsh", rows: &[] },
        Action { name: "complete-fish", summary: "completion for fish", rows: &[] },
    ],
};

pub(super) fn read_generate(reader: &mut Reader) -> Result<Command, Error> {
    reader.rest(0)?;
    Ok(Command::Generate(match reader.action() {
        "man" => Generate::Man,
        "complete-bash" => Generate::Bash,
        "complete-zsh" => Generate::Zsh,
        _ => Generate::Fish,
    }))
}
