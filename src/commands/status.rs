//! What is queued, in flight, waiting, on the retry schedule and dead, as tables
//! or as one JSON object. Totals are exact; tables of what may be many are counted
//! over a bounded number, and say so. It only reads. `--watch` is in a file of its own.

mod watch;

use std::collections::HashMap;
use std::io::{self, Write};
use std::ops::ControlFlow;

use super::endpoint::{Paused, paused};
use super::table::Table;
use super::{Error, Exit, claimed_at};
use crate::config::Status;
use crate::envelope::Envelope;
use crate::json::{Object, array};
use crate::queue::redis::admin::{AgentSeen, LaneSeen, Operator, Overview, Schedule};
use crate::queue::redis::list::RedisList;
use crate::queue::redis::server::Server;
use crate::queue::{self, Id, Pop};
use crate::text::{ago, at_ms, n_of, spell, utc};

/// How many are looked at.
struct Bounds {
    /// Lanes; a look costs Redis some microseconds.
    lanes: usize,
    /// Messages of the retry schedule read for their endpoints, those due first.
    retries: u64,
    /// Dead letters grouped by reason, those that died last.
    dead: u64,
}

/// By a single look.
const BOUNDS: Bounds = Bounds { lanes: 10_000, retries: 2_000, dead: 100_000 };
/// Groups kept in memory while counting.
const MOST_GROUPS: usize = 10_000;

/// Shows it.
///
/// # Errors
///
/// If Redis cannot be asked.
pub fn run(options: &Status) -> Result<Exit, Error> {
    if options.watch {
        return watch::run(options);
    }
    let seen = Looker::new(options).look(options, &BOUNDS)?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    if options.json {
        writeln!(out, "{}", seen.json(options))?;
    } else {
        seen.print(options, &mut out)?;
    }
    out.flush()?;
    Ok(Exit::Done)
}

/// The two connections that looks are made by; each is opened by the first.
struct Looker {
    operator: Operator,
    list: RedisList,
}

impl Looker {
    fn new(options: &Status) -> Looker {
        let list = RedisList::new(Server::from(&options.redis), &options.redis.key(), Pop::Peek, false);
        Looker { operator: Operator::new(&options.redis), list }
    }

    fn look(&mut self, options: &Status, bounds: &Bounds) -> Result<Seen, queue::Error> {
        let Looker { operator, list } = self;
        let overview = operator.overview()?;
        let limit = usize::try_from(options.limit).unwrap_or(usize::MAX);
        let (lanes, oldest_waiting) = lanes(operator, limit, bounds)?;
        let paused = paused(list)?;
        let retries = retries(operator, &overview, limit, bounds)?;
        let deaths = deaths(operator, &overview, limit, bounds)?;
        Ok(Seen { overview, oldest_waiting, lanes, paused, retries, deaths })
    }
}

struct Seen {
    overview: Overview,
    /// Of all that wait for the lanes that were looked at.
    oldest_waiting: Option<Id>,
    lanes: Groups<LaneSeen>,
    /// Endpoints that operators have paused.
    paused: Vec<Paused>,
    retries: Groups<RetryGroup>,
    deaths: Groups<DeathGroup>,
}

/// The largest groups of what was looked at.
struct Groups<T> {
    groups: Vec<T>,
    n_groups: u64,
    looked_at: u64,
}

impl<T> Groups<T> {
    /// Keeps the largest `limit`; of equal ones, those that come first by name.
    fn largest<K: Ord>(mut groups: Vec<T>, looked_at: u64, limit: usize, order: impl Fn(&T) -> (u64, K)) -> Groups<T> {
        groups.sort_by(|a, b| {
            let ((n_a, name_a), (n_b, name_b)) = (order(a), order(b));
            n_b.cmp(&n_a).then(name_a.cmp(&name_b))
        });
        let n_groups = groups.len() as u64;
        groups.truncate(limit);
        Groups { groups, n_groups, looked_at }
    }
}

#[derive(Default)]
struct RetryGroup {
    origin: String,
    messages: u64,
    next: u64,
    attempts: u32,
    last_error: String,
}

#[derive(Default)]
struct DeathGroup {
    reason: String,
    messages: u64,
    first: u64,
    last: u64,
}

fn lanes(
    operator: &mut Operator,
    limit: usize,
    bounds: &Bounds,
) -> Result<(Groups<LaneSeen>, Option<Id>), queue::Error> {
    let mut lanes = Vec::new();
    operator.each_lane(bounds.lanes.max(limit), |lane| lanes.push(lane))?;
    let looked_at = lanes.len() as u64;
    let oldest = lanes.iter().filter_map(|lane| lane.oldest).min();
    Ok((Groups::largest(lanes, looked_at, limit, |lane| (lane.messages, lane.origin.clone())), oldest))
}

fn retries(
    operator: &mut Operator,
    overview: &Overview,
    limit: usize,
    bounds: &Bounds,
) -> Result<Groups<RetryGroup>, queue::Error> {
    let mut groups: HashMap<String, RetryGroup> = HashMap::new();
    let mut looked_at = 0;
    if overview.retry > 0 {
        operator.each_page(Schedule::Retry, 0, overview.now, |operator, entries| {
            operator.each_message(entries, |entry, bytes| {
                looked_at += 1;
                let origin = Envelope::decode(bytes).map_or("-".to_string(), |envelope| envelope.origin().to_string());
                let group = groups.entry(origin.clone()).or_insert(RetryGroup {
                    origin,
                    next: entry.at,
                    last_error: entry.history.last_error,
                    ..RetryGroup::default()
                });
                group.messages += 1;
                group.attempts = group.attempts.max(entry.history.attempts);
                Ok::<_, queue::Error>(if looked_at < bounds.retries {
                    ControlFlow::Continue(())
                } else {
                    ControlFlow::Break(())
                })
            })?;
            Ok::<_, queue::Error>(if looked_at < bounds.retries {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            })
        })?;
    }
    let groups = groups.into_values().collect();
    Ok(Groups::largest(groups, looked_at, limit, |group: &RetryGroup| (group.messages, group.origin.clone())))
}

fn deaths(
    operator: &mut Operator,
    overview: &Overview,
    limit: usize,
    bounds: &Bounds,
) -> Result<Groups<DeathGroup>, queue::Error> {
    let mut groups: HashMap<String, DeathGroup> = HashMap::new();
    let mut looked_at = 0;
    let skip = overview.dead.saturating_sub(bounds.dead);
    operator.each_page(Schedule::Dead, skip, overview.now, |_, entries| {
        for entry in entries {
            looked_at += 1;
            let mut reason = entry.history.last_error;
            if groups.len() >= MOST_GROUPS && !groups.contains_key(&reason) {
                reason = "(other reasons)".to_string();
            }
            let group =
                groups.entry(reason.clone()).or_insert(DeathGroup { reason, first: entry.at, ..DeathGroup::default() });
            group.messages += 1;
            group.last = entry.at;
        }
        // An agent that buries faster than this reads does not keep it here for ever.
        Ok::<_, queue::Error>(if looked_at < bounds.dead { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    let groups = groups.into_values().collect();
    Ok(Groups::largest(groups, looked_at, limit, |group: &DeathGroup| (group.messages, group.reason.clone())))
}

/// `alive`, `expired`, or `none` for one that is not registered but has messages in flight.
fn lease(agent: &AgentSeen, now: u64) -> &'static str {
    match agent.lease {
        Some(lease) if lease >= now => "alive",
        Some(_) => "expired",
        None => "none",
    }
}

impl Seen {
    fn print(&self, options: &Status, out: &mut impl Write) -> Result<(), Error> {
        let Overview { now, queued, in_flight, waiting, lanes, retry, retry_due, next_retry_in, dead, .. } =
            self.overview;
        let clock = at_ms(now);
        writeln!(out, "queue '{}' at {}, {}\n", options.redis.key(), options.redis.url.shown(), utc(clock))?;
        let mut table = Table::new(&["PLACE", "#MESSAGES", ""]);
        let mut place = |name: &str, n: u64, more: String| table.row(vec![name.to_string(), n.to_string(), more]);
        let head = if queued > 0 { "not claimed yet; ACA-Py does not record since when" } else { "" };
        place("queued", queued, head.to_string());
        let oldest = self.overview.agents.iter().filter_map(|agent| agent.oldest).min();
        place(
            "in flight",
            in_flight,
            oldest.map_or(String::new(), |id| format!("the oldest claimed {}", ago(claimed_at(id), clock))),
        );
        let for_lanes =
            |id| format!("for {}, the oldest claimed {}", n_of(lanes, "endpoint"), ago(claimed_at(id), clock));
        place("waiting", waiting, self.oldest_waiting.map_or(String::new(), for_lanes));
        let due = |next| match retry_due {
            0 => format!("the next due in {}", spell(std::time::Duration::from_millis(next))),
            n => format!("{n} due now"),
        };
        place("retry", retry, next_retry_in.map_or(String::new(), due));
        place("dead", dead, String::new());
        table.write(out)?;

        if !self.overview.agents.is_empty() {
            writeln!(out, "\nIn flight by agent")?;
            let mut table = Table::new(&["AGENT", "STARTED", "LEASE", "#MESSAGES", "OLDEST CLAIMED"]);
            for agent in self.overview.agents.iter().take(usize::try_from(options.limit).unwrap_or(usize::MAX)) {
                let until = agent.lease.map(|lease| ago(at_ms(lease), clock)).unwrap_or_default();
                let lease = match lease(agent, now) {
                    "alive" => format!("alive, ends {until}"),
                    "expired" => format!("expired {until}"),
                    _ => "not registered".to_string(),
                };
                table.row(vec![
                    format!("{:016}", agent.number),
                    ago(at_ms(agent.number / 1000), clock),
                    lease,
                    agent.messages.to_string(),
                    agent.oldest.map(|id| ago(claimed_at(id), clock)).unwrap_or_default(),
                ]);
            }
            table.write(out)?;
            rest(out, self.overview.agents.len() as u64, options.limit, "agent")?;
        }
        if !self.paused.is_empty() {
            writeln!(out, "\nPaused by an operator, until 'endpoint resume'")?;
            let mut table = Table::new(&["ENDPOINT", "SINCE", "#MESSAGES THAT WAIT"]);
            for one in self.paused.iter().take(usize::try_from(options.limit).unwrap_or(usize::MAX)) {
                table.row(vec![one.origin.clone(), ago(at_ms(one.since), clock), one.messages.to_string()]);
            }
            table.write(out)?;
            rest(out, self.paused.len() as u64, options.limit, "endpoint")?;
        }
        if !self.lanes.groups.is_empty() {
            writeln!(
                out,
                "\nWaiting by endpoint{}",
                of_first(self.lanes.looked_at, lanes, "of the first", "endpoint")
            )?;
            let mut table = Table::new(&[
                "ENDPOINT",
                "#MESSAGES",
                "OLDEST CLAIMED",
                "NEXT TRY",
                "#FAILURES IN A ROW",
                "LAST ERROR",
            ]);
            for lane in &self.lanes.groups {
                table.row(vec![
                    lane.origin.clone(),
                    lane.messages.to_string(),
                    lane.oldest.map(|id| ago(claimed_at(id), clock)).unwrap_or_default(),
                    if lane.is_paused { "paused".to_string() } else { next_try(lane.next_try, now) },
                    lane.failures.to_string(),
                    lane.last_error.clone(),
                ]);
            }
            table.write(out)?;
            rest(out, self.lanes.n_groups, options.limit, "endpoint")?;
        }
        if !self.retries.groups.is_empty() {
            writeln!(out, "\nRetry by endpoint{}", of_first(self.retries.looked_at, retry, "of the first", "message"))?;
            let mut table =
                Table::new(&["ENDPOINT", "#MESSAGES", "NEXT TRY", "#MOST ATTEMPTS", "LAST ERROR OF THE NEXT"]);
            for group in &self.retries.groups {
                table.row(vec![
                    group.origin.clone(),
                    group.messages.to_string(),
                    next_try(Some(group.next), now),
                    group.attempts.to_string(),
                    group.last_error.clone(),
                ]);
            }
            table.write(out)?;
            rest(out, self.retries.n_groups, options.limit, "endpoint")?;
        }
        if !self.deaths.groups.is_empty() {
            writeln!(out, "\nDead by reason{}", of_first(self.deaths.looked_at, dead, "of the last", "message"))?;
            let mut table = Table::new(&["#MESSAGES", "FIRST DIED", "LAST DIED", "REASON"]);
            for group in &self.deaths.groups {
                table.row(vec![
                    group.messages.to_string(),
                    utc(at_ms(group.first)),
                    ago(at_ms(group.last), clock),
                    group.reason.clone(),
                ]);
            }
            table.write(out)?;
            rest(out, self.deaths.n_groups, options.limit, "reason")?;
        }
        Ok(())
    }

    fn json(&self, options: &Status) -> Object {
        let seen = &self.overview;
        let agents = seen.agents.iter().map(|agent| {
            Object::new()
                .text("agent", &format!("{:016}", agent.number))
                .time("started", Some(at_ms(agent.number / 1000)))
                .text("lease", lease(agent, seen.now))
                .time("lease_ends", agent.lease.map(at_ms))
                .number("messages", agent.messages)
                .time("oldest_claimed", agent.oldest.map(claimed_at))
        });
        let lanes = self.lanes.groups.iter().map(|lane| {
            Object::new()
                .text("endpoint", &lane.origin)
                .number("messages", lane.messages)
                .time("oldest_claimed", lane.oldest.map(claimed_at))
                .time("next_try", lane.next_try.map(at_ms))
                .json("paused", lane.is_paused)
                .number("failures_in_a_row", lane.failures)
                .text("last_error", &lane.last_error)
        });
        let retries = self.retries.groups.iter().map(|group| {
            Object::new()
                .text("endpoint", &group.origin)
                .number("messages", group.messages)
                .time("next_try", Some(at_ms(group.next)))
                .number("most_attempts", u64::from(group.attempts))
                .text("last_error", &group.last_error)
        });
        let deaths = self.deaths.groups.iter().map(|group| {
            Object::new()
                .text("reason", &group.reason)
                .number("messages", group.messages)
                .time("first_died", Some(at_ms(group.first)))
                .time("last_died", Some(at_ms(group.last)))
        });
        let paused = self.paused.iter().take(usize::try_from(options.limit).unwrap_or(usize::MAX)).map(|one| {
            Object::new()
                .text("endpoint", &one.origin)
                .time("since", Some(at_ms(one.since)))
                .number("messages", one.messages)
        });
        let next_retry = seen.next_retry_in.map(|wait| at_ms(seen.now + wait));
        Object::new()
            .time("time", Some(at_ms(seen.now)))
            .text("queue", &options.redis.key())
            .json("queued", Object::new().number("messages", seen.queued))
            .json("in_flight", Object::new().number("messages", seen.in_flight).json("by_agent", array(agents)))
            .json(
                "waiting",
                Object::new()
                    .number("messages", seen.waiting)
                    .time("oldest_claimed", self.oldest_waiting.map(claimed_at))
                    .number("endpoints", seen.lanes)
                    .number("endpoints_looked_at", self.lanes.looked_at)
                    .json("by_endpoint", array(lanes)),
            )
            .json(
                "paused",
                Object::new().number("endpoints", self.paused.len() as u64).json("by_endpoint", array(paused)),
            )
            .json(
                "retry",
                Object::new()
                    .number("messages", seen.retry)
                    .number("due", seen.retry_due)
                    .time("next_try", next_retry)
                    .number("looked_at", self.retries.looked_at)
                    .json("by_endpoint", array(retries)),
            )
            .json(
                "dead",
                Object::new()
                    .number("messages", seen.dead)
                    .number("looked_at", self.deaths.looked_at)
                    .json("by_reason", array(deaths)),
            )
    }
}

pub(super) fn next_try(time: Option<u64>, now: u64) -> String {
    match time {
        None => "up".to_string(),
        Some(time) if time <= now => "now".to_string(),
        Some(time) => ago(at_ms(time), at_ms(now)),
    }
}

fn of_first(looked_at: u64, all: u64, which: &str, what: &str) -> String {
    if looked_at >= all { String::new() } else { format!(", {which} {} of {all}", n_of(looked_at, what)) }
}

/// What a table leaves out.
fn rest(out: &mut impl Write, n_groups: u64, limit: u64, what: &str) -> Result<(), Error> {
    if n_groups > limit {
        writeln!(
            out,
            "{}",
            format_args!("and {}; '--limit' shows them", n_of(n_groups - limit, &format!("more {what}")))
        )?;
    }
    Ok(())
}
