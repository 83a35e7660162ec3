//! The server: how it is reached, what it is, and whether it keeps what it is given.

use std::net::ToSocketAddrs;

use super::{Report, Stop, user};
use crate::commands::Error;
use crate::config::Config;
use crate::config::queue_url::Node;
use crate::queue::Pop;
use crate::queue::redis::admin::{Operator, read};
use crate::queue::redis::advice::{self, Persistence};
use crate::queue::redis::list::RedisList;
use crate::queue::redis::sentinel;
use crate::queue::redis::server::Server;

/// Looks at the way to it, and at what it tells of itself.
pub(super) fn check(config: &Config, operator: &mut Operator, report: &mut Report) -> Result<(), Stop> {
    check_encryption(config, report)?;
    check_sentinels(&Server::from(&config.redis), report)?;
    let info = operator.query_if_let(&redis::cmd("INFO"))?;
    let info = Info(info.and_then(|info| read(info).ok()).unwrap_or_default());
    let mut list = RedisList::new(Server::from(&config.redis), &config.redis.key(), Pop::Peek, config.ordered);
    let server = advice::Server::ask(&mut list)?;
    check_server(config, &info, &server, report)?;
    Ok(())
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

/// What INFO says.
struct Info(String);

impl Info {
    fn field(&self, name: &str) -> &str {
        self.0.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap_or_default().trim()
    }
}
