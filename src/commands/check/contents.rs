//! What is in the queue's keys: clocks, agents, numbers that add up, and what another service has put off.

use std::time::{Duration, Instant, SystemTime};

use redis::Value;

use super::{Report, Stop};
use crate::commands::Error;
use crate::config::Config;
use crate::queue;
use crate::queue::redis::admin::{Operator, Overview, read};
use crate::queue::redis::adopt::Schedule;
use crate::queue::redis::list::Keys;
use crate::text::{ago, at_ms, n_of, spell, utc};

/// Clocks further apart than this make times hard to compare.
const CLOCKS_APART: Duration = Duration::from_secs(10);

/// Looks at them; whether they can also be gone through entry by entry. All that is called here by itself is among
/// the calls that `permissions` tries.
pub(super) fn check(config: &Config, operator: &mut Operator, report: &mut Report) -> Result<bool, Stop> {
    let wrong = operator.wrong_types()?;
    for wrong in &wrong {
        report.mend("keys", wrong)?;
    }
    if !wrong.is_empty() {
        return Ok(false);
    }
    let queue = config.redis.key();
    report.ok("keys", format!("'{queue}' and those beside it are free or hold what they should"))?;
    check_other_schedule(operator, &queue, report)?;

    let (before, local) = (Instant::now(), SystemTime::now());
    let overview = operator.overview()?;
    check_clock(&overview, local + before.elapsed() / 2, report)?;
    check_agents(config, &overview, report)?;
    check_counts(&overview, operator.keys(), report)?;
    if let Some(late) = due_late(config, &overview, operator)? {
        report.mend("schedule", late)?;
    }
    Ok(true)
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
