//! What was seen, as tables.

use std::io::Write;
use std::time::Duration;

use super::look::Seen;
use super::{lease, next_try};
use crate::commands::table::Table;
use crate::commands::{Error, claimed_at};
use crate::config::Status;
use crate::queue::redis::admin::{AgentSeen, Overview};
use crate::text::{ago, at_ms, n_of, spell, utc};

impl Seen {
    /// Tables of nothing are left out.
    pub(super) fn print(&self, options: &Status, out: &mut impl Write) -> Result<(), Error> {
        let clock = at_ms(self.overview.now);
        writeln!(out, "queue '{}' at {}, {}\n", options.redis.key(), options.redis.url.shown(), utc(clock))?;
        self.places().write(out)?;
        let Overview { agents, lanes, retry, dead, .. } = &self.overview;
        let mut part = |n: u64, heading: String, table: Table, what: &str| match n {
            0 => Ok(()),
            n => print_part(out, &heading, table, n, options.limit, what),
        };
        let most = usize::try_from(options.limit).unwrap_or(usize::MAX);
        part(agents.len() as u64, "In flight by agent".to_string(), self.by_agent(most), "agent")?;
        let heading = "Paused by an operator, until 'endpoint resume'".to_string();
        part(self.paused.len() as u64, heading, self.by_paused(most), "endpoint")?;
        let heading =
            format!("Waiting by endpoint{}", of_first(self.lanes.looked_at, *lanes, "of the first", "endpoint"));
        part(self.lanes.n_groups, heading, self.by_lane(), "endpoint")?;
        let heading =
            format!("Retry by endpoint{}", of_first(self.retries.looked_at, *retry, "of the first", "message"));
        part(self.retries.n_groups, heading, self.by_retry(), "endpoint")?;
        let heading = format!("Dead by reason{}", of_first(self.deaths.looked_at, *dead, "of the last", "message"));
        part(self.deaths.n_groups, heading, self.by_reason(), "reason")
    }

    fn places(&self) -> Table {
        let Overview { now, queued, in_flight, waiting, lanes, retry, retry_due, next_retry_in, dead, .. } =
            self.overview;
        let clock = at_ms(now);
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
            0 => format!("the next due in {}", spell(Duration::from_millis(next))),
            n => format!("{n} due now"),
        };
        place("retry", retry, next_retry_in.map_or(String::new(), due));
        place("dead", dead, String::new());
        table
    }

    fn by_agent(&self, most: usize) -> Table {
        let (now, clock) = (self.overview.now, at_ms(self.overview.now));
        let mut table = Table::new(&["AGENT", "STARTED", "LEASE", "#MESSAGES", "OLDEST CLAIMED"]);
        for agent in self.overview.agents.iter().take(most) {
            table.row(vec![
                format!("{:016}", agent.number),
                ago(at_ms(agent.number / 1000), clock),
                lease_of(agent, now),
                agent.messages.to_string(),
                agent.oldest.map(|id| ago(claimed_at(id), clock)).unwrap_or_default(),
            ]);
        }
        table
    }

    fn by_paused(&self, most: usize) -> Table {
        let clock = at_ms(self.overview.now);
        let mut table = Table::new(&["ENDPOINT", "SINCE", "#MESSAGES THAT WAIT"]);
        for one in self.paused.iter().take(most) {
            table.row(vec![one.origin.clone(), ago(at_ms(one.since), clock), one.messages.to_string()]);
        }
        table
    }

    fn by_lane(&self) -> Table {
        let (now, clock) = (self.overview.now, at_ms(self.overview.now));
        let titles = ["ENDPOINT", "#MESSAGES", "OLDEST CLAIMED", "NEXT TRY", "#FAILURES IN A ROW", "LAST ERROR"];
        let mut table = Table::new(&titles);
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
        table
    }

    fn by_retry(&self) -> Table {
        let titles = ["ENDPOINT", "#MESSAGES", "NEXT TRY", "#MOST ATTEMPTS", "LAST ERROR OF THE NEXT"];
        let mut table = Table::new(&titles);
        for group in &self.retries.groups {
            table.row(vec![
                group.origin.clone(),
                group.messages.to_string(),
                next_try(Some(group.next), self.overview.now),
                group.attempts.to_string(),
                group.last_error.clone(),
            ]);
        }
        table
    }

    fn by_reason(&self) -> Table {
        let mut table = Table::new(&["#MESSAGES", "FIRST DIED", "LAST DIED", "REASON"]);
        for group in &self.deaths.groups {
            table.row(vec![
                group.messages.to_string(),
                utc(at_ms(group.first)),
                ago(at_ms(group.last), at_ms(self.overview.now)),
                group.reason.clone(),
            ]);
        }
        table
    }
}

fn lease_of(agent: &AgentSeen, now: u64) -> String {
    let until = agent.lease.map(|lease| ago(at_ms(lease), at_ms(now))).unwrap_or_default();
    match lease(agent, now) {
        "alive" => format!("alive, ends {until}"),
        "expired" => format!("expired {until}"),
        _ => "not registered".to_string(),
    }
}

/// A table under its heading, and how many of all its rows it leaves out.
fn print_part(
    out: &mut impl Write,
    heading: &str,
    mut table: Table,
    n: u64,
    limit: u64,
    what: &str,
) -> Result<(), Error> {
    writeln!(out, "\n{heading}")?;
    table.write(out)?;
    if n > limit {
        writeln!(out, "and {}; '--limit' shows them", n_of(n - limit, &format!("more {what}")))?;
    }
    Ok(())
}

fn of_first(looked_at: u64, all: u64, which: &str, what: &str) -> String {
    if looked_at >= all { String::new() } else { format!(", {which} {} of {all}", n_of(looked_at, what)) }
}
