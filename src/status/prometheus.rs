//! `GET /metrics`: what happened since the start and what is now, in Prometheus's text format.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use super::figures::Figures;
use crate::dispatch::Dispatch;
use crate::metrics::{Metrics, read};

/// The whole page. `figures` are what Redis says, if it says anything.
pub(super) fn page(
    dispatch: &Dispatch,
    figures: Option<&Figures>,
    is_ready: bool,
    workers: usize,
    started: SystemTime,
) -> String {
    let metrics = &dispatch.metrics;
    let mut page = Page::default();
    let version = [("version", env!("CARGO_PKG_VERSION"))];
    page.name("build_info", "gauge", "Always 1; the version is its label.").value(&version, 1);
    let redis_up = figures.is_some() && dispatch.journal.redis_is_up();
    page.name("redis_up", "gauge", "Whether Redis answers this agent.").value(&[], u8::from(redis_up));
    page.name("ready", "gauge", "Whether the agent is registered in Redis and delivers.")
        .value(&[], u8::from(is_ready));

    count_events(&mut page, metrics);
    durations(&mut page, metrics);

    page.name("workers", "gauge", "Attempts that may be made at the same time.").value(&[], workers);
    page.name("attempts_in_progress", "gauge", "Attempts being made now.")
        .value(&[], dispatch.attempts_under_way().len());
    let lanes = dispatch.lane_counts();
    page.name("held_messages", "gauge", "Messages that this agent holds in memory.").value(&[], lanes.held);
    page.name("held_bytes", "gauge", "Bytes of the messages held and not yet attempted to an end.")
        .value(&[], lanes.bytes);
    page.name("lanes", "gauge", "Endpoints (scheme, host, port) that this agent knows: untried (no delivery yet), up, down (failed since the last delivery).")
        .value(&[("state", "untried")], lanes.untried)
        .value(&[("state", "up")], lanes.up)
        .value(&[("state", "down")], lanes.down);
    if let Some(figures) = figures {
        of_the_queue(&mut page, figures);
    }
    of_the_process(&mut page, started);
    page.text
}

fn count_events(page: &mut Page, metrics: &Metrics) {
    page.name("outcomes_total", "counter", "What became of messages: delivered, later (to be attempted again), dead.")
        .value(&[("outcome", "delivered")], read(&metrics.delivered))
        .value(&[("outcome", "later")], read(&metrics.later))
        .value(&[("outcome", "dead")], read(&metrics.dead));
    let counters = [
        ("claimed_messages_total", "Messages claimed, those that came back included.", &metrics.claimed),
        ("undecodable_messages_total", "Of the dead, those that could not be decoded.", &metrics.undecodable),
        ("taken_over_messages_total", "Messages given up because another agent has them.", &metrics.taken_over),
        ("recovered_messages_total", "Messages taken back from agents that died.", &metrics.recovered),
        ("repeated_total", "Requests sent once more, as an idle connection closed under them.", &metrics.repeated),
        ("odd_entries_total", "Times that an entry of Redis which no agent writes was met and left out.", &metrics.odd),
        ("claims_total", "Calls of claim.", &metrics.claims),
        ("settles_total", "Calls of settle.", &metrics.settles),
    ];
    for (name, help, counter) in counters {
        page.name(name, "counter", help).value(&[], read(counter));
    }
}

fn durations(page: &mut Page, metrics: &Metrics) {
    const NAME: &str = "attempt_duration_seconds";
    page.name(NAME, "histogram", "How long attempts took, whatever came of them.");
    let mut n = 0;
    let bounds = crate::metrics::DURATION_BOUNDS.iter().map(f64::to_string).chain(["+Inf".to_owned()]);
    for (bound, count) in bounds.zip(&metrics.durations) {
        n += read(count);
        page.part(NAME, "_bucket", &[("le", &bound)], n);
    }
    page.part(NAME, "_sum", &[], read(&metrics.duration_sum) as f64 / 1e6);
    page.part(NAME, "_count", &[], n);
}

fn of_the_queue(page: &mut Page, figures: &Figures) {
    page.name("queue_messages", "gauge", "Messages in Redis, of all agents: queue (not yet claimed), in_flight, waiting (for their endpoint), retry, dead. Absent while Redis is away.")
        .value(&[("place", "queue")], figures.queue)
        .value(&[("place", "in_flight")], figures.in_flight)
        .value(&[("place", "waiting")], figures.waiting)
        .value(&[("place", "retry")], figures.retry)
        .value(&[("place", "dead")], figures.dead);
    page.name("queue_waiting_lanes", "gauge", "Endpoints that messages in Redis wait for.")
        .value(&[], figures.waiting_lanes);
    page.name("queue_paused_endpoints", "gauge", "Endpoints that operators have paused.").value(&[], figures.paused);
    page.name("queue_agents", "gauge", "Agents alive on this queue.").value(&[], figures.agents);
    page.name("queue_oldest_age_seconds", "gauge", "Since the oldest message in flight, waiting or to be retried was first claimed; 0 if there is none. What was never claimed carries no time.")
        .value(&[], figures.oldest.unwrap_or_default().as_secs_f64());
}

/// The names that Prometheus's own clients use. What the system does not tell is left out.
fn of_the_process(page: &mut Page, started: SystemTime) {
    let started = started.duration_since(UNIX_EPOCH).unwrap_or_default();
    page.plain("process_start_time_seconds", "gauge", "When the process started, since 1970.", started.as_secs_f64());
    // The file gives kB in whole; only pages would be wrong on some machines.
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        value.split_whitespace().next()?.parse::<u64>().ok()
    };
    if let Some(kib) = field("VmRSS") {
        page.plain("process_resident_memory_bytes", "gauge", "Resident memory.", kib * 1024);
    }
    if let Some(threads) = field("Threads") {
        page.plain("process_threads", "gauge", "Threads.", threads);
    }
    // Fields 14 and 15 of the whole, in hundredths of a second (USER_HZ) on every Linux; the name
    // in parentheses may hold spaces.
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let ticks = stat.rsplit_once(')').and_then(|(_, rest)| {
        let fields: Vec<&str> = rest.split_whitespace().collect();
        Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
    });
    if let Some(ticks) = ticks {
        page.plain("process_cpu_seconds_total", "counter", "Time of processors used.", ticks as f64 / 100.0);
    }
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        // One of them is this look itself.
        page.plain("process_open_fds", "gauge", "Open files and sockets.", open.count().saturating_sub(1));
    }
    if let Ok((limit, _)) = rlimit::Resource::NOFILE.get() {
        page.plain("process_max_fds", "gauge", "How many of them there may be.", limit);
    }
}

/// A page of metrics in Prometheus's text format. Labels are fixed words of ours: nothing to escape.
#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    /// Begins a metric of ours.
    fn name<'a>(&'a mut self, name: &'a str, kind: &str, help: &str) -> Values<'a> {
        let _ = writeln!(self.text, "# HELP {PREFIX}{name} {help}\n# TYPE {PREFIX}{name} {kind}");
        Values { page: self, name }
    }

    fn part(&mut self, name: &str, part: &str, labels: &[(&str, &str)], value: impl ToString) {
        let _ = write!(self.text, "{PREFIX}{name}{part}");
        for (n, (label, word)) in labels.iter().enumerate() {
            let _ = write!(self.text, "{}{label}=\"{word}\"", if n == 0 { '{' } else { ',' });
        }
        let end = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.text, "{end} {}", value.to_string());
    }

    /// A metric with a common name and one value.
    fn plain(&mut self, name: &str, kind: &str, help: &str, value: impl ToString) {
        let value = value.to_string();
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
    }
}

const PREFIX: &str = "acapy_deliver_";

struct Values<'a> {
    page: &'a mut Page,
    name: &'a str,
}

impl Values<'_> {
    fn value(self, labels: &[(&str, &str)], value: impl ToString) -> Self {
        self.page.part(self.name, "", labels, value);
        self
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_histogram_counts_up_to_each_bound() {
        let metrics = Metrics::default();
        let later = crate::policy::Outcome::Delivered;
        for millis in [1, 2, 40_000] {
            metrics.attempted(&later, Duration::from_millis(millis));
        }
        let mut page = Page::default();
        durations(&mut page, &metrics);
        let lines: Vec<&str> = page.text.lines().skip(2).collect();
        assert_eq!(lines[0], "acapy_deliver_attempt_duration_seconds_bucket{le=\"0.001\"} 1");
        assert_eq!(lines[1], "acapy_deliver_attempt_duration_seconds_bucket{le=\"0.0025\"} 2");
        assert_eq!(lines[11], "acapy_deliver_attempt_duration_seconds_bucket{le=\"30\"} 2");
        assert_eq!(lines[12], "acapy_deliver_attempt_duration_seconds_bucket{le=\"+Inf\"} 3");
        assert_eq!(lines[13], "acapy_deliver_attempt_duration_seconds_sum 40.003");
        assert_eq!(lines[14], "acapy_deliver_attempt_duration_seconds_count 3");
    }
}
