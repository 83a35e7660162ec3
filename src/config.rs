//! The command line and the environment, turned into plain typed values.
//!
//! [`parse`] accepts exactly what the help texts (`config/help.rs`) list and refuses all
//! else with one sentence that names the option or variable, the value, and what would be
//! right. The command line wins over the environment; an empty variable counts as unset.
//! Passwords never appear in a message or in `Debug`: every value that is repeated goes
//! through [`redacted`]. What the values lead to is left to those who use them.
//!
//! A default never contradicts what was said: one that lies under a bound shrinks with it
//! (`--workers 2` also means at most 2 per endpoint). A bound that was not named does not
//! grow by itself; going over it is an error.

mod help;
pub(crate) mod queue_url;
mod reader;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use queue_url::QueueUrl;
use reader::Reader;

use crate::envelope::Format;
use crate::guard::WORDS;
use crate::roots::Roots;

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
    /// Print this text to standard output.
    Print(String),
}

/// Every option of `run`. All are checked: each by itself and against one another.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// The queue.
    pub redis: RedisAddress,
    /// Threads that make attempts, all started at the start; 128, never more than half of `in_flight`.
    pub workers: usize,
    /// How many messages of one origin may be attempted at once; 8, never more than `workers`.
    pub endpoint_concurrency: usize,
    /// Strictly one at a time and in the order of the queue, per origin.
    pub ordered: bool,
    /// Messages held in memory at once; 4096.
    pub in_flight: usize,
    /// Bytes of messages held in memory at once; 64 MiB.
    pub in_flight_bytes: u64,
    /// For one connection to a recipient, TLS included; 5 s, never over `timeout`.
    pub connect_timeout: Duration,
    /// For one whole attempt; 30 s.
    pub timeout: Duration,
    /// Until a failed message or a closed lane is tried again for the first time; 5 s, never over `retry_max`.
    pub retry_first: Duration,
    /// What the growing delays between attempts grow to; 10 min.
    pub retry_max: Duration,
    /// Age, from its first put-off, at which a message is dead; 24 h.
    pub give_up_after: Duration,
    /// Failed attempts after which a message is dead; `None`, the default: its age alone counts.
    pub attempts: Option<u32>,
    /// Statuses (300 to 599) after which a message is dead, whatever the table says.
    pub final_statuses: Vec<u16>,
    /// Statuses (300 to 599) after which a message is tried again, whatever the table says.
    pub retryable_statuses: Vec<u16>,
    /// Age at which dead letters are removed for good; 30 days. `None` (`forever`): never.
    pub keep_dead: Option<Duration>,
    /// After a signal, how long attempts may go on; 5 s.
    pub drain_timeout: Duration,
    /// Without a beat for this long an agent counts as dead; 15 s, at least 3 s.
    pub lease: Duration,
    /// How the reader waits on an empty queue.
    pub pop: Pop,
    /// What may be delivered to: an address, a CIDR, or one of [`crate::guard::WORDS`] each.
    pub allow_net: Vec<String>,
    /// What may not be delivered to, in the same words.
    pub deny_net: Vec<String>,
    /// Without TLS only to what `allow_net` holds.
    pub https_only: bool,
    /// Whether a proxy may look up names, whose addresses then cannot be judged; yes.
    pub proxy_resolves: bool,
    /// A PEM file of roots that recipients' certificates may lead to, beside those of `redis.roots`.
    pub ca_file: Option<PathBuf>,
    /// `HOST:PORT` of the status server; `None`, the default: no server.
    pub status_addr: Option<String>,
    /// The status pages of the plugin's deliverer, where its variables ask for them.
    pub status_endpoint: Option<StatusEndpoint>,
    /// PEM files of the certificate that is shown to endpoints that ask for one, and of its key.
    pub client_certificate: Option<(PathBuf, PathBuf)>,
    /// The header that carries a message's id to the recipient; `None`, the default: none does.
    pub id_header: Option<String>,
    /// What a log line begins with.
    pub log_format: LogFormat,
}

/// Where the queue is and how to get in. Its `Debug` shows no password.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisAddress {
    /// `redis://`, `rediss://`, `unix://` or `redis+unix://`, with one server or, of a Cluster, some of
    /// its nodes with commas between them; `redis+sentinel://` or `rediss+sentinel://` with some
    /// Sentinels and the name of the master; may hold a password, so show
    /// [`RedisAddress::shown`] instead.
    pub url: String,
    /// The prefix of ACA-Py 0.7: without `queue`, the key is `PREFIX.outbound_transport`; `acapy`.
    pub prefix: String,
    /// The whole key of the queue, as today's ACA-Py names it.
    pub queue: Option<String>,
    /// Which variables of the plugin's deliverer were followed.
    pub taken: Taken,
    /// A file that holds the password, instead of the URL; see [`RedisAddress::password`].
    pub password_file: Option<PathBuf>,
    /// A PEM file of roots to trust instead of all others; only with `rediss://`.
    pub ca_file: Option<PathBuf>,
    /// PEM files of the certificate that is shown to Redis and of its key; only with TLS.
    pub client_certificate: Option<(PathBuf, PathBuf)>,
    /// The name that Redis's certificate must have, whatever it is reached by; only with TLS.
    pub server_name: Option<String>,
    /// Which roots TLS trusts, towards Redis as towards recipients; both.
    pub roots: Roots,
}

/// What the environment of the plugin's deliverer has settled, where nothing of ours did: which variable
/// it was, for people.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Taken {
    /// Where Redis is.
    pub url: Option<&'static str>,
    /// The queue's key.
    pub queue: Option<&'static str>,
}

impl fmt::Display for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = [("Redis", self.url), ("the queue", self.queue)];
        let said: Vec<String> = said.iter().filter_map(|(what, by)| Some(format!("{what} by {}", (*by)?))).collect();
        f.write_str(&said.join(", "))
    }
}

/// Where the status pages of the plugin's deliverer are served, and to whom. Its `Debug` shows no key.
#[derive(Clone, PartialEq, Eq)]
pub struct StatusEndpoint {
    /// `HOST:PORT`.
    pub address: String,
    /// What a request must bring in the header `access_token`.
    pub key: String,
}

impl fmt::Debug for StatusEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StatusEndpoint").field("address", &self.address).finish_non_exhaustive()
    }
}

/// How the reader waits on an empty queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pop {
    /// A blocking command that looks and takes nothing.
    Peek,
    /// A plain `BLPOP`, which can lose the one message it has just popped.
    Blpop,
}

/// What a log line begins with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogFormat {
    /// Time, level, message.
    Full,
    /// Level, message: for a supervisor's log that adds the time itself.
    Bare,
}

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

/// Options of `status`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Status {
    /// The queue.
    pub redis: RedisAddress,
    /// One JSON object instead of tables.
    pub json: bool,
    /// Lines of each table that could be long; 20.
    pub limit: u64,
}

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
    List {
        /// Which of them; `limit` is 50 unless given.
        filter: Filter,
        /// One JSON object a line.
        json: bool,
    },
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
    Replay(Selection),
    /// Remove them for good.
    Drop(Selection),
    /// One line of JSON each, payload included.
    Export(Filter),
}

/// Which dead letters to act on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Selection {
    /// These; never empty.
    Ids(Vec<u64>),
    /// All that pass (`--all`).
    All(Filter),
}

/// Which dead letters are meant.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Filter {
    /// Only those whose endpoint begins with this.
    pub endpoint: Option<String>,
    /// Only those whose reason contains this.
    pub reason: Option<String>,
    /// At most so many; `None`: all.
    pub limit: Option<u64>,
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
    let command = match arguments.first() {
        Some(first) if !first.starts_with('-') => arguments.remove(0),
        _ => String::new(),
    };
    let wants_help = arguments.iter().any(|argument| argument == "--help");
    let mut reader = Reader::new(&command, arguments, environment);
    match command.as_str() {
        name if wants_help => {
            return help::of(name).map(Command::Print).ok_or_else(|| unknown_command(name));
        }
        "help" => return help_on(reader),
        "" if reader.flag_without_variable("--version")? => {
            reader.finish(0)?;
            return Ok(Command::Print(format!("acapy-deliver {}\n", env!("CARGO_PKG_VERSION"))));
        }
        _ => {}
    }
    let read = command_reader(&command).ok_or_else(|| unknown_command(&command))?;
    read(&mut reader)
}

/// Sentences about variables that do nothing: `ACAPY_DELIVER_…` ones that no option has, since a misspelt
/// one would otherwise be ignored in silence, and those of the deliverer's status pages without the
/// others. Not an error, for an environment may be shared.
pub fn unknown_variables(environment: &Environment) -> Vec<String> {
    let known: Vec<String> =
        COMMANDS.iter().flat_map(|name| options_of(name)).filter_map(|asked| asked.variable).collect();
    environment
        .keys()
        .filter(|name| name.starts_with("ACAPY_DELIVER_") && !known.contains(name))
        .map(|name| {
            let names = known.iter().map(String::as_str);
            format!("variable {name} is not known and does nothing{}", reader::did_you_mean(name, names))
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

impl Config {
    /// The defaults, for a queue at `redis`.
    pub fn with_defaults(redis: RedisAddress) -> Config {
        Config {
            redis,
            workers: 128,
            endpoint_concurrency: 8,
            ordered: false,
            in_flight: 4096,
            in_flight_bytes: 64 << 20,
            connect_timeout: Duration::from_secs(5),
            timeout: Duration::from_secs(30),
            retry_first: Duration::from_secs(5),
            retry_max: Duration::from_secs(10 * 60),
            give_up_after: Duration::from_secs(24 * 60 * 60),
            attempts: None,
            final_statuses: Vec::new(),
            retryable_statuses: Vec::new(),
            keep_dead: Some(30 * DAY),
            drain_timeout: Duration::from_secs(5),
            lease: Duration::from_secs(15),
            pop: Pop::Peek,
            allow_net: Vec::new(),
            deny_net: Vec::new(),
            https_only: false,
            proxy_resolves: true,
            ca_file: None,
            status_addr: None,
            status_endpoint: None,
            client_certificate: None,
            id_header: None,
            log_format: LogFormat::Full,
        }
    }
}

impl RedisAddress {
    /// A queue at `url` with the default prefix of ACA-Py 0.7; the URL is taken as it is.
    pub fn new(url: impl Into<String>) -> RedisAddress {
        RedisAddress {
            url: url.into(),
            prefix: "acapy".to_owned(),
            queue: None,
            taken: Taken::default(),
            password_file: None,
            ca_file: None,
            client_certificate: None,
            server_name: None,
            roots: Roots::default(),
        }
    }

    /// The key of the queue.
    pub fn key(&self) -> String {
        self.queue.clone().unwrap_or_else(|| format!("{}.outbound_transport", self.prefix))
    }

    /// The URL for people: without its password.
    pub fn shown(&self) -> String {
        redacted(&self.url)
    }

    /// The password in the password file, without the line end; read anew at every call, so
    /// that a changed password takes effect at the next connection. `None` without a file:
    /// then the URL's password counts, if it has one.
    ///
    /// # Errors
    ///
    /// If the file cannot be read or holds nothing; the sentence names it.
    pub fn password(&self) -> Result<Option<String>, Error> {
        let Some(path) = &self.password_file else {
            return Ok(None);
        };
        let text = std::fs::read_to_string(path)
            .map_err(|error| Error(format!("cannot read the password file '{}': {error}", path.display())))?;
        match text.trim_end_matches(['\r', '\n']) {
            "" => Err(Error(format!("the password file '{}' is empty", path.display()))),
            password => Ok(Some(password.to_owned())),
        }
    }
}

impl fmt::Debug for RedisAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisAddress")
            .field("url", &self.shown())
            .field("prefix", &self.prefix)
            .field("queue", &self.queue)
            .field("taken", &self.taken)
            .field("password_file", &self.password_file)
            .field("ca_file", &self.ca_file)
            .field("client_certificate", &self.client_certificate)
            .field("server_name", &self.server_name)
            .field("roots", &self.roots)
            .finish()
    }
}

/// `text` with whatever could be a password in it replaced by `***`. Meant for URLs, whole or
/// broken, so it goes by the look of the text and would rather hide too much.
pub fn redacted(text: &str) -> String {
    let start = text.find("://").map_or(0, |at| at + 3);
    let (scheme, rest) = text.split_at(start);
    let rest = match rest.rfind('@') {
        Some(at) => {
            let (user, host) = rest.split_at(at);
            match user.find(':') {
                Some(colon) => format!("{}:***{host}", &user[..colon]),
                // A lone word before the '@' should be a user's name, but a password is as easily put there.
                None => format!("***{host}"),
            }
        }
        // `redis://user:password` with the host forgotten: only a port may follow a colon.
        None if !scheme.is_empty() => {
            let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
            let mut begin = 0;
            let no_port = rest[..end].split(',').find_map(|host| {
                let after_name = host.rfind(']').map_or(0, |at| at + 1);
                let port = host[after_name..].find(':').map(|at| after_name + at + 1);
                let found = port.filter(|port| *port < host.len() && host[*port..].parse::<u16>().is_err());
                let found = found.map(|port| begin + port);
                begin += host.len() + 1;
                found
            });
            match no_port {
                Some(port) => format!("{}***{}", &rest[..port], &rest[end..]),
                None => rest.to_owned(),
            }
        }
        None => rest.to_owned(),
    };
    let mut shown = String::from(scheme);
    for (n, part) in rest.split_inclusive(['?', '&']).enumerate() {
        let secret = n > 0 && ["pass=", "password=", "sentinel-password="].iter().any(|name| part.starts_with(name));
        match part.find('=') {
            Some(equals) if secret => {
                shown.push_str(&part[..=equals]);
                shown.push_str("***");
                if part.ends_with('&') {
                    shown.push('&');
                }
            }
            _ => shown.push_str(part),
        }
    }
    shown
}

/// All commands, as typed; `dead` also with its actions.
const COMMANDS: [&str; 7] = ["run", "enqueue", "listen", "check", "status", "dead", "help"];
const DEAD_ACTIONS: [&str; 5] = ["list", "show", "replay", "drop", "export"];

type ReadCommand = fn(&mut Reader) -> Result<Command, Error>;

fn command_reader(command: &str) -> Option<ReadCommand> {
    Some(match command {
        "" | "run" => |reader| Ok(Command::Run(read_whole_config(reader)?)),
        "enqueue" => read_enqueue,
        "listen" => read_listen,
        "check" => read_check,
        "status" => read_status,
        "dead" => read_dead,
        _ => return None,
    })
}

/// What options a command has, found by letting its reader ask for them.
fn options_of(command: &str) -> Vec<reader::Asked> {
    let empty = Environment::new();
    let action_lists: Vec<Vec<String>> = match command {
        "dead" => DEAD_ACTIONS.iter().map(|action| vec![(*action).to_owned()]).collect(),
        _ => vec![Vec::new()],
    };
    let mut asked = Vec::new();
    for arguments in action_lists {
        let mut reader = Reader::new(command, arguments, &empty);
        // That it then misses a queue or an id does not matter: it has asked for everything before.
        let _ = command_reader(command).map(|read| read(&mut reader));
        for option in reader.asked {
            if !asked.contains(&option) {
                asked.push(option);
            }
        }
    }
    asked
}

fn help_on(mut reader: Reader) -> Result<Command, Error> {
    let topics = reader.finish(2)?;
    let name = topics.first().map_or("", String::as_str);
    help::of(name).map(Command::Print).ok_or_else(|| unknown_command(name))
}

fn unknown_command(name: &str) -> Error {
    Error(format!(
        "there is no command '{}'{}; the commands are {}",
        redacted(name),
        reader::did_you_mean(name, COMMANDS.into_iter()),
        COMMANDS.join(", ")
    ))
}

fn read_whole_config(reader: &mut Reader) -> Result<Config, Error> {
    let config = read_config(reader)?;
    reader.finish(0)?;
    complete(config)
}

/// Everything `run` knows; the URL may still be missing, so that all options have been asked
/// for, and misspelt ones can be told, before that is an error.
fn read_config(reader: &mut Reader) -> Result<Config, Error> {
    let mut config = Config::with_defaults(read_redis(reader)?);
    let workers = reader.value("--workers", |text| number(text, 1, 4096))?;
    let endpoint_concurrency = reader.value("--endpoint-concurrency", |text| number(text, 1, 4096))?;
    let in_flight = reader.value("--in-flight", |text| number(text, 2, 10_000_000))?;
    let in_flight_bytes = reader.value("--in-flight-bytes", size)?;
    let connect_timeout = reader.value("--connect-timeout", |text| duration_within(text, MILLISECOND, DAY))?;
    let timeout = reader.value("--timeout", |text| duration_within(text, MILLISECOND, DAY))?;
    let retry_first = reader.value("--retry-first", |text| duration_within(text, MILLISECOND, DAY))?;
    let retry_max = reader.value("--retry-max", |text| duration_within(text, MILLISECOND, 30 * DAY))?;
    let give_up_after = reader.value("--give-up-after", |text| duration_within(text, MILLISECOND, 10 * YEAR))?;
    config.attempts = reader.value("--attempts", |text| number(text, 1, 1_000_000))?;
    let final_statuses = reader.value("--final", statuses)?;
    let retryable_statuses = reader.value("--retryable", statuses)?;
    let keep_dead = reader.value("--keep-dead", duration_or_forever)?;
    let drain_timeout = reader.value("--drain-timeout", |text| duration_within(text, Duration::ZERO, HOUR))?;
    let lease = reader.value("--lease", |text| duration_within(text, 3 * SECOND, HOUR))?;
    let pop = reader.value("--pop", |text| one_of(text, &[("peek", Pop::Peek), ("blpop", Pop::Blpop)]))?;
    config.allow_net = reader.list("--allow-net", nets)?;
    config.deny_net = reader.list("--deny-net", nets)?;
    config.ca_file = reader.value("--ca-file", certificate_file)?;
    config.client_certificate = read_certificate(reader, "--client-cert-file", "--client-key-file")?;
    config.status_addr = reader.value("--status-addr", host_and_port)?;
    config.status_endpoint = read_status_endpoint(reader)?;
    config.id_header = reader.value("--id-header", id_header)?;
    let log_format =
        reader.value("--log-format", |text| one_of(text, &[("full", LogFormat::Full), ("bare", LogFormat::Bare)]))?;
    config.ordered = reader.flag("--ordered")?;
    config.https_only = reader.flag("--https-only")?;
    let proxy_resolves = reader.value("--proxy-resolves", |text| one_of(text, &[("yes", true), ("no", false)]))?;
    config.proxy_resolves = proxy_resolves.unwrap_or(config.proxy_resolves);

    config.in_flight = in_flight.unwrap_or(config.in_flight);
    config.workers = under(("--workers", workers, config.workers), ("half of '--in-flight'", config.in_flight / 2))?;
    config.endpoint_concurrency = under(
        ("--endpoint-concurrency", endpoint_concurrency, config.endpoint_concurrency),
        ("'--workers'", config.workers),
    )?;
    config.timeout = timeout.unwrap_or(config.timeout);
    config.connect_timeout = under(
        ("--connect-timeout", connect_timeout.map(Span), Span(config.connect_timeout)),
        ("'--timeout'", Span(config.timeout)),
    )?
    .0;
    config.retry_max = retry_max.unwrap_or(config.retry_max);
    config.retry_first = under(
        ("--retry-first", retry_first.map(Span), Span(config.retry_first)),
        ("'--retry-max'", Span(config.retry_max)),
    )?
    .0;
    config.in_flight_bytes = in_flight_bytes.unwrap_or(config.in_flight_bytes);
    config.give_up_after = give_up_after.unwrap_or(config.give_up_after);
    config.keep_dead = keep_dead.unwrap_or(config.keep_dead);
    config.final_statuses = final_statuses.unwrap_or_default();
    config.retryable_statuses = retryable_statuses.unwrap_or_default();
    config.drain_timeout = drain_timeout.unwrap_or(config.drain_timeout);
    config.lease = lease.unwrap_or(config.lease);
    config.pop = pop.unwrap_or(config.pop);
    config.log_format = log_format.unwrap_or(config.log_format);
    Ok(config)
}

/// What can only be judged when all is read and known to be spelt right.
fn complete(config: Config) -> Result<Config, Error> {
    check_redis(&config.redis)?;
    if let Some(status) = config.final_statuses.iter().find(|status| config.retryable_statuses.contains(status)) {
        return Err(Error(format!("status {status} is in both '--final' and '--retryable'; leave it in one")));
    }
    if config.ordered && config.pop == Pop::Blpop {
        return Err(Error(
            "'--pop blpop' takes a message before it is this agent's turn, and so cannot keep the order of '--ordered'; leave out one"
                .to_owned(),
        ));
    }
    if let (Some(net), true) = (config.allow_net.first(), config.deny_net.is_empty() && !config.https_only) {
        return Err(Error(format!(
            "'--allow-net {net}' restricts nothing: all that no '--deny-net' holds is allowed; to allow that alone, \
             give '--deny-net all' as well"
        )));
    }
    if let Some(net) = config.allow_net.iter().find(|net| config.deny_net.contains(net)) {
        return Err(Error(format!("'{net}' is in both '--allow-net' and '--deny-net'; leave it in one")));
    }
    Ok(config)
}

fn read_redis(reader: &mut Reader) -> Result<RedisAddress, Error> {
    let mut redis = RedisAddress::new("");
    let url = reader.value("--outbound-queue", queue_url)?;
    let queue = reader.given("--queue")?;
    let prefix = reader.given("--outbound-queue-prefix")?;
    reader.value("--outbound-queue-class", queue_class)?;
    redis.password_file = reader.value("--redis-password-file", not_empty)?.map(PathBuf::from);
    redis.ca_file = reader.value("--redis-ca-file", certificate_file)?;
    redis.client_certificate = read_certificate(reader, "--redis-cert-file", "--redis-key-file")?;
    redis.server_name = reader.value("--redis-server-name", server_name)?;
    let roots = [("both", Roots::Both), ("bundled", Roots::Bundled), ("system", Roots::System)];
    redis.roots = reader.value("--roots", |text| one_of(text, &roots))?.unwrap_or_default();
    match (queue, prefix) {
        // What is typed wins over a variable, whichever of the two it is.
        (Some(queue), Some(prefix)) if queue.is_from_variable() == prefix.is_from_variable() => {
            return Err(Error(format!("the queue is named by {queue} and by {prefix}; leave out one")));
        }
        (Some(queue), Some(prefix)) if queue.is_from_variable() => redis.prefix = prefix.parsed(not_empty)?,
        (Some(queue), _) => redis.queue = Some(queue.parsed(not_empty)?),
        (None, Some(prefix)) => redis.prefix = prefix.parsed(not_empty)?,
        (None, None) => {
            let prefix = reader.foreign(TOPIC_PREFIX)?;
            let is_theirs = url.is_none() && reader.foreign(REDIS_SERVER_URL)?.is_some();
            if let Some(prefix) = &prefix {
                redis.taken.queue = Some(TOPIC_PREFIX);
                redis.queue = Some(format!("{}_outbound", prefix.value));
            } else if is_theirs {
                redis.taken.queue = Some("the default of TOPIC_PREFIX");
                redis.queue = Some("acapy_outbound".to_owned());
            }
        }
    }
    redis.url = match (url, reader.foreign(REDIS_SERVER_URL)?) {
        (Some(url), _) => url,
        (None, Some(theirs)) => {
            redis.taken.url = Some(REDIS_SERVER_URL);
            theirs.parsed(queue_url)?
        }
        // Until `check_redis`: that it is missing is said after what is misspelt.
        (None, None) => String::new(),
    };
    Ok(redis)
}

/// A certificate and its key, which go together.
fn read_certificate(
    reader: &mut Reader,
    certificate: &'static str,
    key: &'static str,
) -> Result<Option<(PathBuf, PathBuf)>, Error> {
    let certificate_file = reader.value(certificate, certificate_file)?;
    let key_file = reader.value(key, not_empty)?.map(PathBuf::from);
    match (certificate_file, key_file) {
        (Some(certificate), Some(key)) => Ok(Some((certificate, key))),
        (None, None) => Ok(None),
        (Some(_), None) => Err(Error(format!("'{certificate}' needs the key: give '{key}'"))),
        (None, Some(_)) => Err(Error(format!("'{key}' needs the certificate: give '{certificate}'"))),
    }
}

/// Where all three variables of the plugin's deliverer are set, as there.
fn read_status_endpoint(reader: &Reader) -> Result<Option<StatusEndpoint>, Error> {
    let [host, port, key] = STATUS_ENDPOINT;
    let (Some(host), Some(port), Some(key)) = (reader.foreign(host)?, reader.foreign(port)?, reader.foreign(key)?)
    else {
        return Ok(None);
    };
    let host =
        if host.value.contains(':') && !host.value.starts_with('[') { format!("[{}]", host.value) } else { host.value };
    let address = format!("{host}:{}", port.value);
    let address = host_and_port(&address)
        .map_err(|why| Error(format!("variables STATUS_ENDPOINT_HOST and STATUS_ENDPOINT_PORT: '{address}' {why}")))?;
    Ok(Some(StatusEndpoint { address, key: key.value }))
}

fn check_redis(redis: &RedisAddress) -> Result<(), Error> {
    if redis.url.is_empty() {
        return Err(Error(
            "no queue: give ACA-Py's Redis with '-oq redis://host:6379' ('--outbound-queue') \
             or in the variable ACAPY_OUTBOUND_TRANSPORT_QUEUE or REDIS_SERVER_URL"
                .to_owned(),
        ));
    }
    // A user's name alone goes with a password from a file.
    let has_password = |url: QueueUrl| url.access.login.password().is_some() || redis.url.contains("pass=");
    if redis.password()?.is_some() && QueueUrl::parse(&redis.url).is_ok_and(has_password) {
        return Err(Error(
            "a password is in both '--outbound-queue' and '--redis-password-file'; leave it in one".to_owned(),
        ));
    }
    let has_tls = |url: QueueUrl| url.access.has_tls || url.sentinels.is_some_and(|sentinels| sentinels.access.has_tls);
    let of_tls = [
        ("--redis-ca-file", redis.ca_file.is_some()),
        ("--redis-cert-file", redis.client_certificate.is_some()),
        ("--redis-server-name", redis.server_name.is_some()),
    ];
    if let Some((option, _)) = of_tls.iter().find(|(_, is_given)| *is_given)
        && !QueueUrl::parse(&redis.url).is_ok_and(has_tls)
    {
        return Err(Error(format!("'{option}' needs a queue URL that begins with rediss://")));
    }
    Ok(())
}

fn read_enqueue(reader: &mut Reader) -> Result<Command, Error> {
    let redis = read_redis(reader)?;
    let endpoint = reader.value("--endpoint", not_empty)?;
    let format = reader.value("--format", |text| {
        one_of(text, &[Format::Json, Format::MessagePack].map(|format| (format.name(), format)))
    })?;
    let headers = reader.list("--header", header)?;
    let text = reader.given("--text")?;
    let count = reader.value("--count", |text| number(text, 1, 100_000_000))?;
    let files = reader.finish(1)?;
    check_redis(&redis)?;
    let payload = match (files.into_iter().next(), text) {
        // A text in the environment is a default, and yields to a file that was typed.
        (Some(_), Some(text)) if !text.is_from_variable() => {
            return Err(Error("the payload is given twice: as '--text' and as a file; leave out one".to_owned()));
        }
        (Some(file), _) if file == "-" => Payload::Stdin,
        (Some(file), _) => Payload::File(PathBuf::from(file)),
        (None, Some(text)) => Payload::Text(text.value),
        (None, None) => Payload::Unsaid,
    };
    let endpoint =
        endpoint.ok_or_else(|| Error("option '--endpoint' is missing: where is the message to go?".to_owned()))?;
    Ok(Command::Enqueue(Enqueue { redis, endpoint, format, headers, payload, count: count.unwrap_or(1) }))
}

fn read_listen(reader: &mut Reader) -> Result<Command, Error> {
    let status = reader.value("--status", |text| number(text, 200, 599))?;
    let close = reader.value("--close", |text| number(text, 1000, 4999))?;
    let delay = reader.value("--delay", |text| duration_within(text, Duration::ZERO, HOUR))?;
    let count = reader.value("--count", |text| number(text, 1, u64::MAX))?;
    let quiet = reader.flag("--quiet")?;
    let addresses = reader.finish(1)?;
    let address = match addresses.into_iter().next() {
        Some(address) => host_and_port(&address).map_err(|why| Error(format!("argument '{address}' {why}")))?,
        None => "127.0.0.1:8030".to_owned(),
    };
    Ok(Command::Listen(Listen {
        address,
        status: status.unwrap_or(200),
        close: close.unwrap_or(1000),
        delay: delay.unwrap_or_default(),
        quiet,
        count,
    }))
}

fn read_check(reader: &mut Reader) -> Result<Command, Error> {
    let config = read_config(reader)?;
    let endpoint = reader.value("--endpoint", not_empty)?;
    let repair = reader.flag_without_variable("--repair")?;
    let yes = reader.flag_without_variable("--yes")?;
    reader.finish(0)?;
    let repair = match (repair, yes) {
        (false, false) => Repair::No,
        (true, false) => Repair::Say,
        (true, true) => Repair::Do,
        (false, true) => return Err(Error("option '--yes' goes with '--repair'".to_owned())),
    };
    Ok(Command::Check(Check { config: complete(config)?, endpoint, repair }))
}

fn read_status(reader: &mut Reader) -> Result<Command, Error> {
    let redis = read_redis(reader)?;
    let limit = reader.value("--limit", |text| number(text, 1, u64::MAX))?;
    let json = reader.flag("--json")?;
    reader.finish(0)?;
    check_redis(&redis)?;
    Ok(Command::Status(Status { redis, json, limit: limit.unwrap_or(20) }))
}

fn read_dead(reader: &mut Reader) -> Result<Command, Error> {
    let action = reader.subcommand("dead", &DEAD_ACTIONS)?;
    let redis = read_redis(reader)?;
    let action = match action {
        "list" => {
            let mut filter = read_filter(reader)?;
            filter.limit.get_or_insert(50);
            let json = reader.flag("--json")?;
            reader.finish(0)?;
            DeadAction::List { filter, json }
        }
        "show" => {
            let payload = reader.flag_without_variable("--payload")?;
            let json = reader.flag("--json")?;
            let ids = ids(reader.finish(1)?)?;
            let id = *ids.first().ok_or_else(|| Error("'dead show' needs the id of a dead letter".to_owned()))?;
            DeadAction::Show { id, payload, json }
        }
        "export" => {
            let filter = read_filter(reader)?;
            reader.finish(0)?;
            DeadAction::Export(filter)
        }
        _ => {
            let filter = read_filter(reader)?;
            let all = reader.flag_without_variable("--all")?;
            let ids = ids(reader.finish(usize::MAX)?)?;
            let selection = match (ids.is_empty(), all) {
                (false, false) if filter == Filter::default() => Selection::Ids(ids),
                (false, false) => {
                    return Err(Error(format!(
                        "'dead {action}' takes ids, or '--all' with '--endpoint', '--reason' and '--limit'; not both"
                    )));
                }
                (false, true) => {
                    return Err(Error(format!("'dead {action}' takes ids or '--all', not both")));
                }
                (true, true) => Selection::All(filter),
                (true, false) => {
                    return Err(Error(format!(
                        "'dead {action}' needs ids, or '--all' for all that the filters let pass"
                    )));
                }
            };
            if action == "replay" { DeadAction::Replay(selection) } else { DeadAction::Drop(selection) }
        }
    };
    check_redis(&redis)?;
    Ok(Command::Dead(Dead { redis, action }))
}

/// Filters have no variables: what one call is about should stand in that call, above all
/// where letters are dropped.
fn read_filter(reader: &mut Reader) -> Result<Filter, Error> {
    Ok(Filter {
        endpoint: reader.value_without_variable("--endpoint", not_empty)?,
        reason: reader.value_without_variable("--reason", not_empty)?,
        limit: reader.value_without_variable("--limit", |text| number(text, 1, u64::MAX))?,
    })
}

fn ids(arguments: Vec<String>) -> Result<Vec<u64>, Error> {
    arguments
        .into_iter()
        .map(|argument| {
            let is_id = argument.len() <= 16 && !argument.is_empty() && argument.bytes().all(|b| b.is_ascii_digit());
            match argument.parse() {
                Ok(id) if is_id => Ok(id),
                _ => Err(Error(format!("'{}' is not an id; ids have 16 digits, see 'dead list'", redacted(&argument)))),
            }
        })
        .collect()
}

// What follows turns one text into one value. The errors continue the sentence
// "option '--name': 'text' …".

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
const YEAR: Duration = Duration::from_secs(365 * 86_400);

/// A duration that shows itself as it would be typed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Span(Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let milliseconds = self.0.as_millis();
        let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s"), (1, "ms")];
        let (unit, name) = units.into_iter().find(|(unit, _)| milliseconds.is_multiple_of(*unit)).unwrap_or((1, "ms"));
        if milliseconds == 0 { f.write_str("0s") } else { write!(f, "{}{name}", milliseconds / unit) }
    }
}

/// The value given if it is not over the bound, else the default, made to fit.
fn under<T: Ord + Copy + fmt::Display>(
    (name, given, default): (&str, Option<T>, T),
    (bound_name, bound): (&str, T),
) -> Result<T, Error> {
    match given {
        Some(value) if value > bound => Err(Error(format!(
            "option '{name}' ({value}) is over {bound_name} ({bound}); lower the one or raise the other"
        ))),
        Some(value) => Ok(value),
        None => Ok(default.min(bound)),
    }
}

fn number<T: TryFrom<u64>>(text: &str, least: u64, most: u64) -> Result<T, String> {
    let wanted = || match most {
        u64::MAX => format!("is not a whole number of at least {least}"),
        _ => format!("is not a whole number from {least} to {most}"),
    };
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let value: u64 = if plain {
        text.parse().map_err(|_| wanted())?
    } else {
        return Err(wanted());
    };
    if value < least || value > most {
        return Err(wanted());
    }
    T::try_from(value).map_err(|_| wanted())
}

/// The digits a text begins with, and the rest of it.
fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    Some((text[..digits].parse().ok()?, &text[digits..]))
}

fn duration_within(text: &str, least: Duration, most: Duration) -> Result<Duration, String> {
    const WANTED: &str = "is not a duration; give a whole number and a unit, as in 200ms, 5s, 10m, 24h or 7d";
    let (value, unit) = number_and_unit(text).ok_or(WANTED)?;
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        "" => {
            return Err(format!("has no unit; give one, as in {value}s or {value}ms"));
        }
        _ => return Err(WANTED.to_owned()),
    };
    let duration = value.checked_mul(milliseconds).map(Duration::from_millis);
    match duration {
        Some(duration) if duration >= least && duration <= most => Ok(duration),
        _ => Err(format!("is not from {} to {}", Span(least), Span(most))),
    }
}

fn duration_or_forever(text: &str) -> Result<Option<Duration>, String> {
    if text == "forever" {
        return Ok(None);
    }
    duration_within(text, SECOND, 10 * YEAR).map(Some).map_err(|why| format!("{why}, or forever"))
}

/// Bytes. `KiB`, `MiB`, `GiB` are powers of 1024, `kB`, `MB`, `GB` of 1000, in any case of
/// letters; a lone `k` or `M` could be either, and is refused.
fn size(text: &str) -> Result<u64, String> {
    const WANTED: &str =
        "is not a size; give a whole number of bytes or one with a unit, as in 512, 64KiB, 64MiB, 1GiB or 64MB";
    let (value, unit) = number_and_unit(text).ok_or(WANTED)?;
    let bytes: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "kb" => 1000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        _ => return Err(WANTED.to_owned()),
    };
    match value.checked_mul(bytes) {
        Some(0) => Err("is nothing; give at least 1".to_owned()),
        Some(size) if size <= 1 << 40 => Ok(size),
        _ => Err("is over 1024GiB".to_owned()),
    }
}

fn statuses(text: &str) -> Result<Vec<u16>, String> {
    let mut statuses = Vec::new();
    for part in text.split(',') {
        let status = number::<u16>(part.trim(), 300, 599).map_err(|_| {
            "is not a list of HTTP statuses from 300 to 599 with commas between them, as in 404,409".to_owned()
        })?;
        if !statuses.contains(&status) {
            statuses.push(status);
        }
    }
    Ok(statuses)
}

fn one_of<T: Copy>(text: &str, choices: &[(&str, T)]) -> Result<T, String> {
    let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
    let found = choices.iter().find(|(name, _)| *name == text);
    found.map(|(_, value)| *value).ok_or_else(|| format!("is not one of {}", names.join(", ")))
}

fn not_empty(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("is empty".to_owned()) } else { Ok(text.to_owned()) }
}

fn queue_url(text: &str) -> Result<String, String> {
    if is_python_class(text) {
        return Err(
            "is a Python class, which is what ACA-Py 0.7.1 to 0.7.3 want there; give the URL of the Redis that \
                    they push to, as in '-oq redis://host:6379', which wins over the variable"
                .to_owned(),
        );
    }
    QueueUrl::parse(text).map(|_| text.to_owned())
}

/// `package.module:Class`, or with a dot in the place of the colon.
fn is_python_class(text: &str) -> bool {
    let is_word = |word: &str| {
        let letters = word.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        letters && word.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
    };
    let class = text.rsplit(['.', ':']).next().unwrap_or_default();
    let has_class = text.contains(':') || class.starts_with(|first: char| first.is_ascii_uppercase());
    text.contains(['.', ':']) && has_class && text.matches(':').count() <= 1 && text.split(['.', ':']).all(is_word)
}

/// ACA-Py names a Python class here; the one queue there is goes by its names for it.
fn queue_class(text: &str) -> Result<(), String> {
    let names = [
        "aries_cloudagent.transport.outbound.queue.redis:RedisOutboundQueue",
        "aries_cloudagent.transport.outbound.queue.redis.RedisOutboundQueue",
        "redis",
    ];
    if names.contains(&text) {
        Ok(())
    } else {
        Err(format!("is not a queue there is; there is only {}", names.join(" = ")))
    }
}

/// One or more networks with commas between them.
fn nets(text: &str) -> Result<Vec<String>, String> {
    text.split(',').map(|part| net(part.trim())).collect()
}

fn net(text: &str) -> Result<String, String> {
    let words = WORDS.join(", ");
    let wanted = || format!("is not one of {words}, nor an address, or a network as in 10.0.0.0/8 or fd00::/8");
    if WORDS.contains(&text) {
        return Ok(text.to_owned());
    }
    let (address, length) = text.split_once('/').map_or((text, None), |(address, length)| (address, Some(length)));
    let address: IpAddr = address.parse().map_err(|_| wanted())?;
    let bits = if address.is_ipv4() { 32 } else { 128 };
    if let Some(length) = length {
        number::<u64>(length, 0, bits).map_err(|_| wanted())?;
    }
    Ok(text.to_owned())
}

fn certificate_file(text: &str) -> Result<PathBuf, String> {
    let bytes = std::fs::read(text).map_err(|error| format!("cannot be read: {error}"))?;
    let mark = b"-----BEGIN CERTIFICATE-----";
    if !bytes.windows(mark.len()).any(|window| window == mark) {
        return Err("holds no certificate in PEM form".to_owned());
    }
    Ok(PathBuf::from(text))
}

fn server_name(text: &str) -> Result<String, String> {
    match rustls::pki_types::ServerName::try_from(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err("is neither a name nor an address that a certificate can be for".to_owned()),
    }
}

fn host_and_port(text: &str) -> Result<String, String> {
    let named = text.rsplit_once(':').is_some_and(|(host, port)| {
        let is_name = !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.' || b == b'-');
        is_name && port.parse::<u16>().is_ok()
    });
    if named || text.parse::<SocketAddr>().is_ok() {
        return Ok(text.to_owned());
    }
    Err("is not an address with a port, as in 127.0.0.1:9100 or [::1]:9100".to_owned())
}

fn is_header_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

/// Headers that belong to the connection and the message's framing, not to the message.
const FRAMING: [&str; 9] = [
    "host",
    "content-length",
    "content-type",
    "transfer-encoding",
    "connection",
    "keep-alive",
    "te",
    "trailer",
    "upgrade",
];

fn id_header(text: &str) -> Result<String, String> {
    let name = text.to_ascii_lowercase();
    if !is_header_name(text) {
        return Err("is not a header's name, as in X-Message-Id".to_owned());
    }
    if FRAMING.contains(&name.as_str()) || name == "expect" || name.starts_with("proxy-") {
        return Err("is a header that HTTP needs for itself; take another name, as in X-Message-Id".to_owned());
    }
    Ok(text.to_owned())
}

fn header(text: &str) -> Result<Vec<(String, String)>, String> {
    let (name, value) = text.split_once(':').ok_or("has no colon; give 'Name: value'")?;
    let (name, value) = (name.trim(), value.trim());
    if !is_header_name(name) {
        return Err("does not begin with a header's name; give 'Name: value'".to_owned());
    }
    if value.bytes().any(|byte| (byte < b' ' && byte != b'\t') || byte == 0x7f) {
        return Err("holds a control character, which HTTP does not allow in a header".to_owned());
    }
    Ok(vec![(name.to_owned(), value.to_owned())])
}

#[cfg(test)]
mod tests;
