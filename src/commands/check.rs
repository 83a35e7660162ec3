//! The operator's first aid: whether an agent could work here with these options,
//! a line each: `ok`, `note` (to know), or `mend` (to change, and how). It changes
//! nothing unless told to by `--repair --yes`: whether a command is permitted is seen from calls that are complete
//! enough for Redis to judge the account, and too wrong to be carried out. A
//! recipient is connected to and sent no message.

mod odd;

use std::io::{self, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::{Duration, Instant, SystemTime};

use redis::Value;
use ureq::http::Uri;

use super::{Error, Exit};
use crate::config::queue_url::Node;
use crate::config::{self, Check, Config, Repair};
use crate::delivery::proxy::{Proxies, Proxy};
use crate::delivery::{self, Poster, is_secure, is_websocket, port};
use crate::envelope::Envelope;
use crate::guard::Guard;
use crate::policy::{self, Attempt, Outcome};
use crate::queue::redis::admin::{Operator, Overview, read};
use crate::queue::redis::adopt::Schedule;
use crate::queue::redis::advice::Persistence;
use crate::queue::redis::list::{Keys, RedisList};
use crate::queue::redis::server::Server;
use crate::queue::redis::{advice, sentinel};
use crate::queue::{self, Denied, History, Pop};
use crate::text::{ago, at_ms, n_of, spell, utc, visible};

/// Clocks further apart than this make times hard to compare.
const CLOCKS_APART: Duration = Duration::from_secs(10);
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
    let (guard, poster) = check_options(config, &mut report)?;
    if let Err(error) = check_redis(config, &guard, options.repair, &mut report)? {
        report.mend("Redis", error)?;
    }
    if let Some(endpoint) = &options.endpoint {
        check_endpoint(&guard, poster.as_ref(), endpoint, &mut report)?;
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

/// What only an agent would find out when it starts; its address policy, and what it would post with.
fn check_options(config: &Config, report: &mut Report) -> Result<(Guard, Option<Poster>), Error> {
    let guard = Guard::new(&config.allow_net, &config.deny_net, &[])
        .https_only(config.https_only)
        .proxy_resolves(config.proxy_resolves);
    let proxies = match Proxies::from_environment() {
        Ok(proxies) => proxies,
        Err(why) => {
            report.mend("proxies", why)?;
            Proxies::default()
        }
    };
    for (scheme, uri) in [("http", "http://recipient.invalid/"), ("https", "https://recipient.invalid/")] {
        if let Some(proxy) = proxies.of(&ureq::http::Uri::from_static(uri)) {
            let words = format!("{scheme} goes through {} but for what NO_PROXY names", proxy.place());
            report.ok("proxies", words)?;
        }
    }
    if let Some(advice) = proxies.advice() {
        report.note("proxies", advice)?;
    }
    let options = delivery::Options {
        connect_timeout: config.connect_timeout,
        timeout: config.timeout,
        roots: config.redis.roots,
        ca_file: config.ca_file.clone(),
        client_certificate: config.client_certificate.clone(),
        id_header: config.id_header.clone(),
        guard: guard.clone(),
        proxies,
        ..delivery::Options::default()
    };
    let mut usable = None;
    match Poster::new(options) {
        Ok(poster) => {
            report.ok("options", "can be used")?;
            let (roots, trouble) = poster.roots();
            report.ok("roots", roots)?;
            if let Some(trouble) = trouble {
                report.note("roots", trouble)?;
            }
            usable = Some(poster);
        }
        Err(why) => report.mend("options", why)?,
    }
    if config.redis.taken != config::Taken::default() {
        let taken = config.redis.taken;
        report.ok("options", format!("by the environment of the plugin's deliverer: {taken}"))?;
    }
    for warning in config::unknown_variables(&config::environment()) {
        report.note("options", warning)?;
    }
    for line in guard.advice() {
        report.note("endpoints", line)?;
    }
    match config.keep_dead {
        Some(age) => {
            let age = match age.as_secs() {
                seconds if seconds % 86_400 == 0 => format!("{} days", seconds / 86_400),
                _ => spell(age),
            };
            report.ok("dead letters", format!("are removed for good after {age} ('--keep-dead')"))?;
        }
        None => {
            report.note("dead letters", "are kept for ever, as '--keep-dead forever' says; strangers can make some")?
        }
    }
    let pages = config.status_endpoint.as_ref().map(|endpoint| &endpoint.address);
    for status in config.status_addr.iter().chain(pages) {
        for address in status.to_socket_addrs().into_iter().flatten().filter(|address| address.port() != 0) {
            guard.own().add(address, "status server");
        }
    }
    Ok((guard, usable))
}

/// The inner error is why Redis could not be asked any further.
/// The policy learns from the connection where Redis is.
fn check_redis(
    config: &Config,
    guard: &Guard,
    repair: Repair,
    report: &mut Report,
) -> Result<Result<(), queue::Error>, Error> {
    let address = &config.redis;
    let server = Server::from(address).telling(guard.own().clone());
    let name = server.name();
    let mut operator = Operator::on(server, &address.key());
    macro_rules! ask {
        ($asked:expr) => {
            match $asked {
                Ok(value) => value,
                Err(error) => return Ok(Err(error)),
            }
        };
    }

    let began = Instant::now();
    ask!(operator.query(&redis::cmd("PING")));
    let opened = began.elapsed();
    let mut trips = Vec::with_capacity(N_PINGS);
    for _ in 0..N_PINGS {
        let began = Instant::now();
        ask!(operator.query(&redis::cmd("PING")));
        trips.push(began.elapsed());
    }
    trips.sort();
    let trip = trips[N_PINGS / 2];
    let words = format!("{name} answers; {} to connect, {} for a round trip", micro(opened), micro(trip));
    match trip <= SLOW_ROUND_TRIP {
        true => report.ok("Redis", words)?,
        false => report.note("Redis", format!("{words}, which is slow: put the agent near its Redis"))?,
    }
    check_encryption(config, report)?;
    check_sentinels(&Server::from(address), report)?;

    let info = ask!(operator.query_if_let(&redis::cmd("INFO")));
    let info = Info(info.and_then(|info| read(info).ok()).unwrap_or_default());
    let mut list = RedisList::new(Server::from(address), &address.key(), Pop::Peek, config.ordered);
    let server = ask!(advice::Server::ask(&mut list));
    check_server(config, &info, &server, report)?;
    check_permissions(config, &mut operator, report)?;

    let wrong = match operator.wrong_types() {
        Ok(wrong) => wrong,
        Err(error) if is_refused(&error) => {
            // Which command is missing has been said.
            return Ok(Ok(()));
        }
        Err(error) => return Ok(Err(error)),
    };
    for wrong in &wrong {
        report.mend("keys", wrong)?;
    }
    if !wrong.is_empty() {
        return Ok(Ok(()));
    }
    report.ok("keys", format!("'{}' and those beside it are free or hold what they should", address.key()))?;
    check_other_schedule(&mut operator, &address.key(), report)?;

    let (before, local) = (Instant::now(), SystemTime::now());
    let overview = match operator.overview() {
        Ok(overview) => overview,
        Err(error) if is_refused(&error) => return Ok(Ok(())),
        Err(error) => return Ok(Err(error)),
    };
    check_clock(&overview, local + before.elapsed() / 2, report)?;
    check_agents(config, &overview, report)?;
    check_counts(&overview, operator.keys(), report)?;
    let late = ask!(due_late(config, &overview, &mut operator));
    if let Some(late) = late {
        report.mend("schedule", late)?;
    }
    odd::check(&mut operator, repair, report).map_or_else(odd::Stop::into_result, |()| Ok(Ok(())))
}

/// What another delivery service has put off is adopted, if it can be.
fn check_other_schedule(operator: &mut Operator, queue: &str, report: &mut Report) -> Result<(), Error> {
    let Some(Schedule { key, owner }) = Schedule::beside(queue) else { return Ok(()) };
    match operator.query_elsewhere(&key, redis::cmd("ZCARD").arg(&key)) {
        Ok(Value::Int(0)) => Ok(()),
        Ok(Value::Int(n)) => report.note(
            "adoption",
            format!("'{key}' holds {} that {owner} has put off; an agent takes them over", n_of(n as u64, "message")),
        ),
        Ok(_) => Ok(()),
        // Not everybody has ever had another service: the account need not see what it left.
        Err(error @ queue::Error::NotPermitted(..)) => report.note(
            "adoption",
            format!("whether {owner} has put off something at '{key}' cannot be seen, and it would not be taken over: {error}"),
        ),
        Err(error) => {
            report.mend("adoption", format!("what {owner} has put off at '{key}' cannot be taken over: {error}"))
        }
    }
}

fn check_encryption(config: &Config, report: &mut Report) -> Result<(), Error> {
    let url = &config.redis.url;
    let near = url.nodes.iter().all(|node| match node {
        Node::Unix(_) => true,
        Node::Tcp(host, port) => (host.as_str(), *port)
            .to_socket_addrs()
            .is_ok_and(|mut addresses| addresses.all(|address| address.ip().is_loopback())),
    });
    match url.access.has_tls {
        true => report.ok(
            "TLS",
            match &config.redis.ca_file {
                Some(path) => format!("the certificate of Redis leads to a root in '{}'", path.display()),
                None => "the certificate of Redis leads to a root that is trusted ('--roots')".to_string(),
            },
        ),
        _ if near => report.ok("TLS", "not needed: Redis is on this machine"),
        _ => {
            report.note("TLS", "not used: messages and password cross the network as they are; rediss:// encrypts them")
        }
    }
}

/// Each of them is asked, for any may be needed one day.
fn check_sentinels(server: &Server, report: &mut Report) -> Result<(), Error> {
    let answers = sentinel::ask_each(server);
    let said = || answers.iter().filter_map(|answer| answer.as_ref().ok());
    let newest = said().map(|said| said.epoch).max().flatten();
    for answer in &answers {
        let one = match answer {
            Ok(one) => one,
            Err(why) => {
                report.mend("Sentinel", why)?;
                continue;
            }
        };
        let says = format!("{} says that the master is at {}", one.by, one.master);
        let differs = |other: &&sentinel::Said| other.master != one.master;
        let is_newest = one.epoch == newest && !said().filter(|other| other.epoch == newest).any(|one| differs(&one));
        if is_newest || !said().any(|other| differs(&other)) {
            report.ok("Sentinel", says)?;
        } else if one.epoch < newest {
            let why = "others know a newer one: is it cut off from them, or not told to watch the same?";
            report.mend("Sentinel", format!("{says}; {why}"))?;
        } else {
            report.mend("Sentinel", format!("{says}; others differ"))?;
        }
    }
    if said().any(|said| said.epoch.is_none()) {
        report.mend(
            "Sentinel",
            "one does not tell how new its knowledge is, so that most are believed, not the newest; permit its user \
             '+sentinel|master'",
        )?;
    }
    if answers.len() == 1 {
        report.note("Sentinel", "only one is named in the queue URL: without it, the master is not found")?;
    }
    Ok(())
}

fn check_server(config: &Config, info: &Info, server: &advice::Server, report: &mut Report) -> Result<(), Error> {
    if info.0.is_empty() {
        let account = user(config);
        report.note(
            "server",
            format!("INFO is refused: version, persistence and memory cannot be seen; 'ACL SETUSER {account} +info' permits it"),
        )?;
        return Ok(());
    }
    let name = match info.field("server_name") {
        "valkey" => format!("Valkey {}", info.field("valkey_version")),
        _ => format!("Redis {}", info.field("redis_version")),
    };
    match server.version {
        Some(version) if version < (5, 0, 0) => {
            report.mend("version", format!("{name} is too old: 5.0 or newer is needed"))?
        }
        Some(version) => {
            report.ok("version", &name)?;
            check_age(config, &name, version, report)?;
        }
        None => report.note("version", "INFO does not tell: 5.0 or newer is needed")?,
    }
    if info.field("role") == "slave" {
        let (host, port) = (info.field("master_host"), info.field("master_port"));
        report.mend("role", format!("this is a replica, which takes no writes: name its primary, {host}:{port}"))?;
    }
    for field in ["aof_last_write_status", "aof_last_bgrewrite_status", "rdb_last_bgsave_status"] {
        if info.field(field) == "err" {
            report.mend(
                "persistence",
                format!("Redis could not write to its disk ({field}:err): see its log, and whether the disk is full"),
            )?;
        }
    }
    match server.persistence() {
        Persistence::Kept => report.ok("persistence", "the append-only file is on")?,
        Persistence::Lacking(line) => report.mend("persistence", line)?,
        Persistence::Unseen(line) => report.note("persistence", line)?,
    }
    match (server.evicts(), server.maxmemory) {
        (Some(line), _) => report.mend("memory", line)?,
        (None, None) => {
            report.note("memory", "INFO does not tell how much there is, nor whether messages are evicted")?
        }
        (None, Some(0)) => report.ok("memory", "Redis has no limit of its own (maxmemory 0)")?,
        (None, Some(most)) => {
            let used: u64 = info.field("used_memory").parse().unwrap_or(0);
            let percent = used.saturating_mul(100) / most;
            let words = format!("{percent}% of maxmemory {most} bytes in use, nothing is evicted");
            match percent < 90 {
                true => report.ok("memory", words)?,
                false => report
                    .mend("memory", format!("{words}: ACA-Py's pushes fail when it is full; raise 'maxmemory'"))?,
            }
        }
    }
    match (server.replicas, server.min_replicas) {
        (None | Some(0), _) => {}
        (Some(_), Some(0)) => report.note(
            "replicas",
            "a failover loses what no replica has yet, and a master that is cut off takes pushes that are lost: \
             'min-replicas-to-write 1' (with 'min-replicas-max-lag 10') bounds both",
        )?,
        (Some(n), Some(least)) => {
            report.ok("replicas", format!("{n}; without {least} it takes no pushes (min-replicas-to-write)"))?
        }
        (Some(n), None) => report.note(
            "replicas",
            format!("{n}; whether pushes need one of them (min-replicas-to-write) cannot be seen: CONFIG is refused"),
        )?,
    }
    if server.is_cluster {
        report.ok("cluster", "the queue's slot, in which all its keys are, is followed from node to node")?;
    }
    Ok(())
}

/// What a version has not yet; how it waits is seen beside the permissions.
fn check_age(config: &Config, name: &str, version: (u32, u32, u32), report: &mut Report) -> Result<(), Error> {
    if version >= (6, 0, 0) {
        return Ok(());
    }
    if config.redis.url.access.login.username().is_some() {
        report.note("version", format!("{name} knows no users (6.0): that of the queue URL is not told to it"))?;
    }
    report.note(
        "version",
        format!("{name} waits whole seconds (fractions: 6.0): what falls due may be half a second late"),
    )
}

fn check_permissions(config: &Config, operator: &mut Operator, report: &mut Report) -> Result<(), Error> {
    let keys = operator.keys().clone();
    let mut refuses = |call: &Call| operator.query(&call.command(&keys)).err().filter(is_refused);
    let mut missing: Vec<&str> = Vec::new();
    let mut first_error = None;
    for call in CALLS {
        if let Some(error) = refuses(call) {
            missing.push(call.name());
            first_error = first_error.or(Some(error));
        }
    }
    let wait = |refuses: &mut dyn FnMut(&Call) -> Option<queue::Error>| match config.pop {
        Pop::Blpop => ("BLPOP", refuses(&BLPOP)),
        Pop::Peek => match refuses(&BLMOVE) {
            Some(queue::Error::NoCommand(_)) => ("BRPOPLPUSH", refuses(&BRPOPLPUSH)),
            answer => ("BLMOVE", answer),
        },
    };
    let (way, error) = wait(&mut refuses);
    match (way, &error) {
        (_, Some(_)) => {
            missing.push(way);
            first_error = first_error.or(error);
        }
        ("BLMOVE", None) => report.ok("wait", "by BLMOVE, which looks and takes nothing")?,
        ("BLPOP", None) => {
            report.note("wait", "by BLPOP, as '--pop blpop' says: it can lose the one message it has just popped")?
        }
        (_, None) if config.ordered => {
            report.note("wait", "by asking ten times a second: this server has no BLMOVE (6.2)")?
        }
        _ => report
            .note("wait", "by BRPOPLPUSH, which may put the newest message first: this server has no BLMOVE (6.2)")?,
    }
    let looks: Vec<&str> = LOOKS.iter().filter(|call| refuses(call).is_some()).map(Call::name).collect();

    let account = user(config);
    match first_error {
        None => report.ok("permissions", format!("all {} commands of an agent", CALLS.len() + 1))?,
        Some(error) => {
            let remedy = if matches!(error, queue::Error::NoCommand(_)) {
                format!(
                    "this server does not know {}: a 'rename-command' in its configuration hides them, or it is not Redis",
                    missing.join(", ")
                )
            } else if matches!(error, queue::Error::NotPermitted(Denied::Key, _)) {
                let queue = keys.queue();
                let beside = keys.named("id").trim_end_matches("id");
                format!(
                    "the account '{account}' may not use the queue's keys: 'ACL SETUSER {account} ~{queue} ~{beside}*'"
                )
            } else {
                let rules: Vec<String> = missing.iter().map(|name| format!("+{}", name.to_lowercase())).collect();
                format!(
                    "the account '{account}' may not use {}: 'ACL SETUSER {account} {}'",
                    missing.join(", "),
                    rules.join(" ")
                )
            };
            report.mend("permissions", remedy)?;
        }
    }
    if !looks.is_empty() && looks.iter().all(|name| !missing.contains(name)) {
        let words = format!(
            "'check', 'status', 'dead', 'endpoint', 'retry' and 'waiting' need {} as well, which the account '{account}' may not use",
            looks.join(", ")
        );
        report.note("permissions", words)?;
    }
    Ok(())
}

/// A call that Redis judges by its account and then does not carry out: it reads nothing or
/// next to nothing, or is refused for what stands in the place of a number.
struct Call(&'static [&'static str]);

/// What an agent calls, by itself and in its moves. A word in angle brackets is a key; `<*>` are
/// all, with their number before them.
const CALLS: &[Call] = &[
    Call(&["EVAL", "return 1", "<*>"]),
    Call(&["EVALSHA", "0000000000000000000000000000000000000000", "<*>"]),
    Call(&["TIME"]),
    Call(&["TYPE", "<queue>"]),
    Call(&["LLEN", "<queue>"]),
    Call(&["LRANGE", "<queue>", "1", "0"]),
    Call(&["LTRIM", "<queue>", "no", "number"]),
    Call(&["GET", "<id>"]),
    Call(&["SET", "<id>", "0", "NO-OPTION"]),
    // Of another type, so that not even an entry without a name goes.
    Call(&["HDEL", "<agents>", ""]),
    Call(&["HEXISTS", "<messages>", ""]),
    Call(&["HGET", "<messages>", ""]),
    Call(&["HLEN", "<history>"]),
    Call(&["HMGET", "<history>", ""]),
    Call(&["HSET", "<failures>", "a", "pair", "and a half"]),
    Call(&["ZADD", "<retry>", "no number", ""]),
    Call(&["ZCARD", "<dead>"]),
    Call(&["ZRANGE", "<agents>", "1", "0"]),
    Call(&["ZRANGEBYLEX", "<waiting>", "[b", "[a"]),
    Call(&["ZREVRANGEBYLEX", "<waiting>", "[a", "[b"]),
    Call(&["ZREVRANGEBYSCORE", "<lanes>", "0", "1"]),
    Call(&["ZRANGEBYSCORE", "<lanes>", "1", "0"]),
    Call(&["ZREM", "<calls>", ""]),
    Call(&["ZREVRANGE", "<inflight>", "1", "0"]),
    Call(&["ZSCORE", "<dead>", ""]),
];
const BLMOVE: Call = Call(&["BLMOVE", "<queue>", "<queue>", "LEFT", "LEFT", "no number"]);
const BRPOPLPUSH: Call = Call(&["BRPOPLPUSH", "<queue>", "<queue>", "no number"]);
const BLPOP: Call = Call(&["BLPOP", "<queue>", "no number"]);
/// What only the operator's commands call.
const LOOKS: &[Call] = &[
    Call(&["ZCOUNT", "<inflight>", "1", "0"]),
    Call(&["ZLEXCOUNT", "<waiting>", "[b", "[a"]),
    Call(&["HSCAN", "<calls>", "no cursor"]),
    Call(&["ZSCAN", "<agents>", "no cursor"]),
];

impl Call {
    fn name(&self) -> &'static str {
        self.0[0]
    }

    fn command(&self, keys: &Keys) -> redis::Cmd {
        let mut command = redis::Cmd::new();
        for word in self.0 {
            match word.strip_prefix('<').and_then(|word| word.strip_suffix('>')) {
                Some("*") => command.arg(keys.all().len()).arg(keys.all()),
                Some("queue") => command.arg(keys.queue()),
                Some(name) => command.arg(keys.named(name)),
                None => command.arg(*word),
            };
        }
        command
    }
}

/// By the account, or because the server does not know the command.
fn is_refused(error: &queue::Error) -> bool {
    matches!(error, queue::Error::NotPermitted(..) | queue::Error::NoCommand(_))
}

fn check_clock(overview: &Overview, local: SystemTime, report: &mut Report) -> Result<(), Error> {
    let redis = at_ms(overview.now);
    let apart = redis.duration_since(local).unwrap_or_else(|error| error.duration());
    if apart <= CLOCKS_APART {
        return report.ok("clock", format!("{} from that of Redis", spell(apart)));
    }
    report.mend(
        "clock",
        format!("it is {} here and {} at Redis, by which messages are timed: set both by NTP", utc(local), utc(redis)),
    )
}

/// What is due later than anything is put off: a clock was ahead when it was.
fn due_late(config: &Config, overview: &Overview, operator: &mut Operator) -> Result<Option<String>, queue::Error> {
    let longest = crate::agent::longest_delay(config);
    let latest = at_ms(overview.now) + longest;
    for name in ["retry", "lanes"] {
        let key = operator.keys().named(name).to_string();
        // What is due then or later is no message: it is among the odd entries.
        let mut last = redis::cmd("ZREVRANGEBYSCORE");
        last.arg(&key).arg("(9000000000000000").arg("-inf").arg(&["WITHSCORES", "LIMIT", "0", "1"]);
        let due =
            read::<Vec<(Vec<u8>, f64)>>(operator.query(&last)?)?.first().map(|(_, due)| at_ms(due.max(0.0) as u64));
        if let Some(due) = due.filter(|due| *due > latest) {
            return Ok(Some(format!(
                "something at '{key}' is due only at {}, later than the {} that anything is put off with these options: \
                 Redis's clock was ahead. An agent at work makes it due at once",
                utc(due),
                spell(longest)
            )));
        }
    }
    Ok(None)
}

fn check_agents(config: &Config, overview: &Overview, report: &mut Report) -> Result<(), Error> {
    let now = at_ms(overview.now);
    let is_alive = |lease: Option<u64>| lease.is_some_and(|lease| lease >= overview.now);
    let (alive, rest): (Vec<_>, Vec<_>) = overview.agents.iter().partition(|agent| is_alive(agent.lease));
    let names: Vec<String> = alive
        .iter()
        .take(5)
        .map(|agent| format!("{:016}, started {}", agent.number, ago(at_ms(agent.number / 1000), now)))
        .collect();
    let names = names.join("; ");
    match alive.len() {
        0 => report.ok("agents", "none is at work on this queue")?,
        n if config.ordered => report.note(
            "agents",
            format!("{} at work: in order, one more is a standby ({names})", n_of(n as u64, "agent")),
        )?,
        n => {
            report.ok("agents", format!("{} at work; one more shares the queue ({names})", n_of(n as u64, "agent")))?
        }
    }
    for agent in rest.iter().take(5) {
        let since = agent.lease.map_or("is not registered".to_string(), |lease| {
            format!("has given no sign of life since its lease ran out, {}", ago(at_ms(lease), now))
        });
        report.note(
            "agents",
            format!(
                "{:016} {since}; what it has in flight ({}) is taken over by any agent at work",
                agent.number,
                n_of(agent.messages, "message")
            ),
        )?;
    }
    Ok(())
}

/// The cheap half of the invariant: numbers. Which message is where is for those who repair.
fn check_counts(overview: &Overview, keys: &Keys, report: &mut Report) -> Result<(), Error> {
    let Overview { queued, messages, in_flight, waiting, retry, dead, .. } = overview;
    let words = format!(
        "{queued} queued; {messages} recorded = {in_flight} in flight + {waiting} waiting + {retry} retry + {dead} dead"
    );
    match in_flight + waiting + retry + dead == *messages {
        true => report.ok("counts", words),
        false => report.mend(
            "counts",
            format!(
                "these do not add up: {words}; something else has changed the queue's keys, or Redis went back to \
                 older data. Messages go on being delivered; what is in no place stays in '{}'",
                keys.named("messages")
            ),
        ),
    }
}

/// Resolves, is allowed, and takes a connection (with TLS for https and wss), and for ws and wss a handshake.
/// No request is made of http: a recipient may take any for a message.
fn check_endpoint(guard: &Guard, poster: Option<&Poster>, endpoint: &str, report: &mut Report) -> Result<(), Error> {
    const WHAT: &str = "endpoint";
    let envelope = match Envelope::decode(Envelope::encode([], endpoint, b"")) {
        Ok(envelope) => envelope,
        Err(malformed) => return report.mend(WHAT, malformed),
    };
    let (uri, shown) = (envelope.uri(), envelope.endpoint_for_people());
    let (is_tls, port) = (is_secure(uri), port(uri));
    let host = uri.host().unwrap_or_default();
    if let Some((proxy, poster)) = poster.and_then(|poster| Some((poster.proxy_of(uri)?, poster))) {
        report.ok(WHAT, format!("{shown} is reached through the proxy {}", proxy.place()))?;
        return check_through_proxy(poster, uri, proxy, report);
    }
    let bare = host.trim_matches(['[', ']']);
    let addresses: Vec<SocketAddr> = match (bare, port).to_socket_addrs() {
        Ok(addresses) => addresses.collect(),
        Err(error) => {
            return report.mend(
                WHAT,
                format!("host '{bare}' has no address: {error}; see /etc/resolv.conf and the name itself"),
            );
        }
    };
    if let Err(why) = guard.check_scheme(is_tls) {
        return report.mend(WHAT, format!("messages for it become dead letters: {why}"));
    }
    let spelled: Vec<String> = addresses.iter().map(|address| address.ip().to_string()).collect();
    report.ok(WHAT, format!("host '{bare}' is {}", spelled.join(", ")))?;

    let mut allowed = Vec::new();
    let mut refusals = Vec::new();
    for address in addresses {
        match guard.check(address, is_tls) {
            Ok(()) => allowed.push(address),
            Err(reason) => refusals.push(reason),
        }
    }
    match (allowed.is_empty(), refusals.is_empty()) {
        (true, _) => {
            let fate = match bare.parse::<std::net::IpAddr>() {
                Ok(_) => "become dead letters",
                Err(_) => "are put off, and are dead after '--give-up-after'",
            };
            return report.mend(WHAT, format!("messages for it {fate}: {}", refusals.join("; ")));
        }
        (false, false) => {
            report.note(WHAT, format!("not all of its addresses are allowed: {}", refusals.join("; ")))?
        }
        (false, true) => report.ok(WHAT, "its addresses are allowed")?,
    }
    // Without settings it has been said why.
    let Some(poster) = poster else { return Ok(()) };
    match try_connection(poster, uri) {
        Ok(took) => {
            let agrees = if is_tls { ", and agrees on TLS with a good certificate" } else { "" };
            let nothing_sent = if is_websocket(uri) { "" } else { "; nothing was sent" };
            report.ok(WHAT, format!("takes a connection, in {}{agrees}{nothing_sent}", micro(took)))?;
        }
        Err(why) => return report.mend(WHAT, why),
    }
    match is_websocket(uri) {
        true => check_handshake(poster, uri, report),
        false => Ok(()),
    }
}

/// By the resolver, the connector and the TLS that deliver; over the connection nothing is sent. How long it took, or
/// what would become of a message.
fn try_connection(poster: &Poster, uri: &Uri) -> Result<Duration, String> {
    let began = Instant::now();
    let Err(attempt) = poster.try_connection(uri) else { return Ok(began.elapsed()) };
    match policy::judge(&attempt, &History::default(), &policy::Retry::default()) {
        Outcome::Dead { reason, .. } => Err(format!("messages for it become dead letters: {reason}")),
        Outcome::Later { error, .. } => Err(error),
        Outcome::Delivered => Ok(began.elapsed()),
    }
}

/// As far as to the proxy, for plain http, or to the endpoint.
fn check_through_proxy(poster: &Poster, uri: &Uri, proxy: &Proxy, report: &mut Report) -> Result<(), Error> {
    const WHAT: &str = "endpoint";
    if is_websocket(uri) {
        return check_handshake(poster, uri, report);
    }
    match try_connection(poster, uri) {
        Ok(took) => {
            let whither = match is_secure(uri) {
                true => "leads to it, and the two ends agree on TLS with a good certificate",
                false => "takes a connection; what it says of the endpoint is not tried",
            };
            report.ok(WHAT, format!("the proxy {} {whither} ({}); nothing was sent", proxy.place(), micro(took)))
        }
        Err(why) => report.mend(WHAT, why),
    }
}

/// Opens a WebSocket, and sends nothing.
fn check_handshake(poster: &Poster, uri: &Uri, report: &mut Report) -> Result<(), Error> {
    const WHAT: &str = "endpoint";
    let Err(attempt) = poster.try_websocket(uri) else {
        return report.ok(WHAT, "opens a WebSocket; no message was sent");
    };
    match policy::judge(&attempt, &History::default(), &policy::Retry::default()) {
        Outcome::Later { error, .. } if matches!(attempt, Attempt::Unopened { status: 307 | 308, .. }) => {
            report.note(WHAT, format!("answers the handshake of a WebSocket with {error}; it is not followed here"))
        }
        Outcome::Later { error: why, .. } | Outcome::Dead { reason: why, .. } => {
            report.mend(WHAT, format!("opens no WebSocket: {why}"))
        }
        Outcome::Delivered => Ok(()),
    }
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

/// What INFO says.
struct Info(String);

impl Info {
    fn field(&self, name: &str) -> &str {
        self.0.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap_or_default().trim()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// The commands that a move calls, by itself or through `all`.
    fn called(script: &str) -> impl Iterator<Item = &str> {
        ["redis.call('", "all('"]
            .into_iter()
            .flat_map(move |call| script.split(call).skip(1).filter_map(|rest| rest.split('\'').next()))
    }

    #[test]
    fn every_command_of_the_moves_is_checked() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/queue/redis/scripts");
        let scripts = |dir: &Path| -> Vec<String> {
            let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
            files
                .filter(|path| path.extension().is_some_and(|e| e == "lua"))
                .map(|p| std::fs::read_to_string(p).unwrap())
                .collect()
        };
        let (moves, looks) = (scripts(&dir), scripts(&dir.join("../admin")));
        assert!(moves.len() > 10 && looks.len() > 3);
        let knows = |calls: &[Call], name: &str| calls.iter().any(|call| call.name() == name);
        // Adopting what the prototype left is not every agent's.
        for name in moves.iter().flat_map(|script| called(script)).filter(|name| *name != "RPUSH") {
            assert!(knows(CALLS, name), "{name} is called by a move and not checked");
        }
        for name in looks.iter().flat_map(|script| called(script)) {
            assert!(knows(CALLS, name) || knows(LOOKS, name), "{name} is called by a look and not checked");
        }
    }

    #[test]
    fn calls_name_their_keys() {
        let keys = Keys::new("p.outbound_transport");
        for call in CALLS.iter().chain(LOOKS).chain([&BLMOVE, &BRPOPLPUSH, &BLPOP]) {
            let packed = String::from_utf8(call.command(&keys).get_packed_command()).unwrap();
            assert!(call.name() == "TIME" || packed.contains("p.outbound_transport"), "{packed}");
        }
    }
}
