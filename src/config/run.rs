//! What an agent does: every option of `run`, read and judged by itself and against the others.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::queue::{self, RedisAddress, certificate_and_key};
use super::reader::Reader;
use super::row::{CommandRow, Row, Section, flag};
use super::values::{
    DAY, HOUR, MILLISECOND, SECOND, YEAR, certificate_file, duration, duration_or_forever, file, host_and_port, listed,
    number, one_of, size, statuses,
};
use super::{Environment, Error, STATUS_ENDPOINT};
use crate::guard::Net;
use crate::headers::IdHeader;
use crate::queue::Pop;

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
    /// Until a failed message or a lane that is down is tried again for the first time; 5 s, never over `retry_max`.
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
    /// Without a heartbeat for this long an agent counts as dead; 15 s, at least 3 s.
    pub lease: Duration,
    /// How the reader waits on an empty queue.
    pub pop: Pop,
    /// What may be delivered to.
    pub allow_net: Vec<Net>,
    /// What may not be delivered to.
    pub deny_net: Vec<Net>,
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
    pub id_header: Option<IdHeader>,
    /// What a log line begins with.
    pub log_format: LogFormat,
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

/// What a log line begins with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogFormat {
    /// Time, level, message.
    Full,
    /// Level, message: for a supervisor's log that adds the time itself.
    Bare,
    /// One JSON object a line, for what collects logs by their fields.
    Json,
}

impl LogFormat {
    /// All of them, by their names.
    pub const NAMED: [(&str, LogFormat); 3] =
        [("full", LogFormat::Full), ("bare", LogFormat::Bare), ("json", LogFormat::Json)];
}

impl Config {
    /// The defaults, for a queue at `redis`.
    ///
    /// # Panics
    ///
    /// Never: every default is read in a test.
    pub fn with_defaults(redis: RedisAddress) -> Config {
        let nothing = Environment::new();
        let mut reader = Reader::new(&COMMAND, Vec::new(), &nothing).expect("no arguments, no error");
        read_beside(redis, &mut reader).expect("defaults do not contradict one another")
    }
}

static WORKERS: Row<usize> = Row::new("--workers", "N", |text| number(text, 1, 4096))
    .variable()
    .default("128")
    .help("attempts at the same time; at most half of --in-flight");
static ENDPOINT_CONCURRENCY: Row<usize> = Row::new("--endpoint-concurrency", "N", |text| number(text, 1, 4096))
    .variable()
    .default("8")
    .help("the same for one endpoint; at most --workers");
static ORDERED: Row<bool> = flag("--ordered", "one at a time and in order, for each endpoint").variable();
static IN_FLIGHT: Row<usize> = Row::new("--in-flight", "N", |text| number(text, 2, 10_000_000))
    .variable()
    .default("4096")
    .help("messages held in memory");
static IN_FLIGHT_BYTES: Row<u64> =
    Row::new("--in-flight-bytes", "SIZE", size).variable().default("64MiB").help("bytes of messages held in memory");

static CONNECT_TIMEOUT: Row<Duration> = Row::new("--connect-timeout", "TIME", up_to_a_day)
    .variable()
    .default("5s")
    .help("for a connection; at most --timeout");
static TIMEOUT: Row<Duration> =
    Row::new("--timeout", "TIME", up_to_a_day).variable().default("30s").help("for a whole attempt");
static RETRY_FIRST: Row<Duration> = Row::new("--retry-first", "TIME", up_to_a_day)
    .variable()
    .default("5s")
    .help("until the first retry, then doubling; at most --retry-max");
static RETRY_MAX: Row<Duration> = Row::new("--retry-max", "TIME", |text| duration(text, MILLISECOND, 30 * DAY))
    .variable()
    .default("10m")
    .help("what the time between retries grows to");
static GIVE_UP_AFTER: Row<Duration> =
    Row::new("--give-up-after", "TIME", |text| duration(text, MILLISECOND, 10 * YEAR))
        .variable()
        .default("24h")
        .help("age since its first failure at which a message is dead");
static ATTEMPTS: Row<u32> = Row::new("--attempts", "N", |text| number(text, 1, 1_000_000))
    .variable()
    .unset("any number")
    .help("failed attempts after which a message is dead");
static FINAL: Row<Vec<u16>> = Row::new("--final", "STATUS,…", statuses)
    .variable()
    .unset("none")
    .help("answers after which a message is dead, beside 400 405 410 411 413 414 415 422 426 431 501 505");
static RETRYABLE: Row<Vec<u16>> = Row::new("--retryable", "STATUS,…", statuses)
    .variable()
    .unset("none")
    .help("answers after which it is retried even so");
static KEEP_DEAD: Row<Option<Duration>> = Row::new("--keep-dead", "TIME", duration_or_forever)
    .variable()
    .default("30d")
    .help("age at which dead letters are removed for good, or forever");
static DRAIN_TIMEOUT: Row<Duration> = Row::new("--drain-timeout", "TIME", |text| duration(text, Duration::ZERO, HOUR))
    .variable()
    .default("5s")
    .help("when told to stop: for attempts under way, at most 1h");
static LEASE: Row<Duration> = Row::new("--lease", "TIME", |text| duration(text, 3 * SECOND, HOUR))
    .variable()
    .default("15s")
    .help("silence after which others take over what an agent had; at least 3s");
static POP: Row<Pop> =
    Row::new("--pop", "peek|blpop", |text| one_of(text, &[("peek", Pop::Peek), ("blpop", Pop::Blpop)]))
        .variable()
        .default("peek")
        .help("how to wait on an empty queue; blpop can lose a message");

static DENY_NET: Row<Vec<Net>> = Row::new("--deny-net", "NET", |text| listed(text, str::parse)).variable().unset("none").help(
    "where messages may not go: private, loopback, self (all addresses of this machine), public, all, or a network as \
     in 10.0.0.0/8; repeatable (commas in the variable)",
);
static ALLOW_NET: Row<Vec<Net>> =
    Row::new("--allow-net", "NET", |text| listed(text, str::parse)).variable().unset("none").help(
        "where they may go all the same, in the same words; the most specific of both lists wins; needs a --deny-net",
    );
static HTTPS_ONLY: Row<bool> =
    flag("--https-only", "refuse endpoints without TLS, but in networks of an --allow-net").variable();
static PROXY_RESOLVES: Row<bool> =
    Row::new("--proxy-resolves", "yes|no", |text| one_of(text, &[("yes", true), ("no", false)]))
        .variable()
        .default("yes")
        .help(
            "whether names may go through a proxy (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY): only it then knows, \
             and judges, their addresses",
        );
static CA_FILE: Row<PathBuf> = Row::new("--ca-file", "PEM", certificate_file)
    .variable()
    .unset("none")
    .help("more roots to trust, beside those of --roots");
static CLIENT_CERT_FILE: Row<PathBuf> = Row::new("--client-cert-file", "PEM", certificate_file)
    .variable()
    .unset("none")
    .help("the certificate to show to endpoints that ask for one");
static CLIENT_KEY_FILE: Row<PathBuf> =
    Row::new("--client-key-file", "PEM", file).variable().unset("none").help("its key");
static ID_HEADER: Row<IdHeader> = Row::new("--id-header", "NAME", str::parse)
    .variable()
    .unset("none")
    .help("send each message's id in this header, the same at every attempt, for recipients that drop repeats");

static STATUS_ADDR: Row<String> = Row::new("--status-addr", "HOST:PORT", host_and_port).variable().unset("off").help(
    "serve a page for people, /metrics, /healthz and /readyz here; the plugin's STATUS_ENDPOINT_HOST, _PORT and _API_KEY do as there",
);
static LOG_FORMAT: Row<LogFormat> =
    Row::new("--log-format", "full|bare|json", |text| one_of(text, &LogFormat::NAMED)).variable().default("full").help(
        "log lines with their time, without for a supervisor's log that adds it, or as one JSON object each; \
             RUST_LOG says how much",
    );

fn up_to_a_day(text: &str) -> Result<Duration, String> {
    duration(text, MILLISECOND, DAY)
}

/// The options of `run`, which `check` takes as well.
pub static SECTIONS: [Section; 5] = [
    Section {
        heading: "How much at once",
        rows: &[&WORKERS, &ENDPOINT_CONCURRENCY, &ORDERED, &IN_FLIGHT, &IN_FLIGHT_BYTES],
    },
    Section {
        heading: "How long and how often",
        rows: &[
            &CONNECT_TIMEOUT,
            &TIMEOUT,
            &RETRY_FIRST,
            &RETRY_MAX,
            &GIVE_UP_AFTER,
            &ATTEMPTS,
            &FINAL,
            &RETRYABLE,
            &KEEP_DEAD,
            &DRAIN_TIMEOUT,
            &LEASE,
            &POP,
        ],
    },
    Section {
        heading: "Where to",
        rows: &[
            &DENY_NET,
            &ALLOW_NET,
            &HTTPS_ONLY,
            &PROXY_RESOLVES,
            &CA_FILE,
            &CLIENT_CERT_FILE,
            &CLIENT_KEY_FILE,
            &ID_HEADER,
        ],
    },
    Section { heading: "What it shows", rows: &[&STATUS_ADDR, &LOG_FORMAT] },
    queue::SECTION,
];

/// The command itself.
pub static COMMAND: CommandRow = CommandRow {
    name: "run",
    summary: "deliver until told to stop",
    usage: "acapy-deliver [run] [-oq URL] [--queue NAME] [options]",
    about: "\
Delivers until SIGTERM or SIGINT. Each option can be given by the variable beside
it; the command line wins. Defaults are in brackets. Durations are written 200ms,
5s, 10m, 24h, 7d; sizes 512, 64KiB, 64MiB, 1GiB (1024) or 64kB, 64MB, 1GB (1000).",
    sections: &SECTIONS,
    after: "",
    actions: &[],
};

pub(super) fn read(reader: &mut Reader) -> Result<Config, Error> {
    let redis = queue::read(reader)?;
    read_beside(redis, reader)
}

fn read_beside(redis: RedisAddress, reader: &mut Reader) -> Result<Config, Error> {
    let in_flight = reader.value(&IN_FLIGHT)?;
    let workers = reader.bounded(&WORKERS, ("half of '--in-flight'", in_flight / 2))?;
    let timeout = reader.value(&TIMEOUT)?;
    let retry_max = reader.value(&RETRY_MAX)?;
    let config = Config {
        redis,
        workers,
        endpoint_concurrency: reader.bounded(&ENDPOINT_CONCURRENCY, ("'--workers'", workers))?,
        ordered: reader.flag(&ORDERED)?,
        in_flight,
        in_flight_bytes: reader.value(&IN_FLIGHT_BYTES)?,
        connect_timeout: reader.bounded(&CONNECT_TIMEOUT, ("'--timeout'", timeout))?,
        timeout,
        retry_first: reader.bounded(&RETRY_FIRST, ("'--retry-max'", retry_max))?,
        retry_max,
        give_up_after: reader.value(&GIVE_UP_AFTER)?,
        attempts: reader.optional(&ATTEMPTS)?,
        final_statuses: reader.optional(&FINAL)?.unwrap_or_default(),
        retryable_statuses: reader.optional(&RETRYABLE)?.unwrap_or_default(),
        keep_dead: reader.value(&KEEP_DEAD)?,
        drain_timeout: reader.value(&DRAIN_TIMEOUT)?,
        lease: reader.value(&LEASE)?,
        pop: reader.value(&POP)?,
        allow_net: reader.list(&ALLOW_NET)?,
        deny_net: reader.list(&DENY_NET)?,
        https_only: reader.flag(&HTTPS_ONLY)?,
        proxy_resolves: reader.value(&PROXY_RESOLVES)?,
        ca_file: reader.optional(&CA_FILE)?,
        status_addr: reader.optional(&STATUS_ADDR)?,
        status_endpoint: read_status_endpoint(reader)?,
        client_certificate: certificate_and_key(reader, &CLIENT_CERT_FILE, &CLIENT_KEY_FILE)?,
        id_header: reader.optional(&ID_HEADER)?,
        log_format: reader.value(&LOG_FORMAT)?,
    };
    config.refuse_contradictions()?;
    Ok(config)
}

impl Config {
    fn refuse_contradictions(&self) -> Result<(), Error> {
        let refused = |why: String| Err(Error(why));
        if let Some(status) = self.final_statuses.iter().find(|status| self.retryable_statuses.contains(status)) {
            return refused(format!("status {status} is in both '--final' and '--retryable'; leave it in one"));
        }
        if self.ordered && self.pop == Pop::Blpop {
            return refused(
                "'--pop blpop' takes a message before it is this agent's turn, and so cannot keep the order of \
                 '--ordered'; leave out one"
                    .to_owned(),
            );
        }
        if let (Some(net), true) = (self.allow_net.first(), self.deny_net.is_empty() && !self.https_only) {
            return refused(format!(
                "'--allow-net {net}' restricts nothing: all that no '--deny-net' holds is allowed; to allow that \
                 alone, give '--deny-net all' as well"
            ));
        }
        if let Some(net) = self.allow_net.iter().find(|net| self.deny_net.contains(net)) {
            return refused(format!("'{net}' is in both '--allow-net' and '--deny-net'; leave it in one"));
        }
        Ok(())
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
