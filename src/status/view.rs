//! Gathers what the page for people shows: from Redis as far as it answers, the rest from memory. Both are cut to what
//! is shown, however much there is.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use super::Status;
use super::figures::{Details, KEPT, Seen};
use super::page::{Agent, Endpoint, LINES, Listed, Told, View};
use crate::config::{Config, LogFormat};
use crate::queue::Pop;
use crate::text::exact;

/// Who asks for the page waits so long for what only Redis knows; not at all while it is known to be away.
const PATIENCE: Duration = Duration::from_millis(700);

impl Status {
    pub(super) fn view(&self) -> View {
        let dispatch = &self.dispatch;
        let redis_away = dispatch.journal.redis_away_for();
        let patience = if redis_away.is_some() { Duration::ZERO } else { PATIENCE };
        let seen = self.watcher.as_ref().and_then(|watcher| watcher.details(patience));
        let now = SystemTime::now();
        let lanes = dispatch.lane_counts();
        View {
            queue: self.about.queue.clone(),
            redis: self.about.redis.clone(),
            now: Some(now),
            up_for: now.duration_since(self.started).unwrap_or_default(),
            unready: self.unready(),
            redis_away,
            endpoints: self.endpoints(seen.as_ref(), now),
            told: seen.map(|seen| told(&seen, now, dispatch.lease.number().map(|number| number.0))),
            minutes: self.watcher.as_ref().map(|watcher| watcher.minutes().all().to_vec()).unwrap_or_default(),
            here: [dispatch.attempts_under_way().len(), self.about.workers, lanes.held],
            options: self.about.options.clone(),
        }
    }

    /// Those that are not delivered to, and before them those that are paused and that nothing waits for.
    fn endpoints(&self, seen: Option<&Seen>, now: SystemTime) -> Listed<Endpoint> {
        let mut listed = self.failing(seen, now);
        let is_whole = listed.n == listed.lines.len();
        let mut paused = self.dispatch.paused_endpoints(LINES).1;
        for line in &mut listed.lines {
            if let Some(at) = paused.iter().position(|origin| *origin == line.origin) {
                paused.swap_remove(at);
                (line.state, line.next_try) = ("paused", None);
            }
        }
        // Where not all are here, those are counted already that something waits for.
        listed.n += if is_whole { paused.len() } else { 0 };
        let paused = paused.into_iter().map(|origin| Endpoint {
            origin,
            state: "paused",
            waiting: None,
            failures: 0,
            next_try: None,
            last_error: String::new(),
        });
        listed.lines.splice(0..0, paused);
        listed.lines.truncate(LINES);
        listed
    }

    /// Those that all agents know to be failing, as Redis told it last, and after them those that only this one knows of.
    fn failing(&self, seen: Option<&Seen>, now: SystemTime) -> Listed<Endpoint> {
        let (n_here, here) = self.dispatch.down_lanes(LINES);
        let here = here.into_iter().map(|lane| Endpoint {
            origin: lane.origin.to_string(),
            state: "down",
            waiting: None,
            failures: u64::from(lane.failures),
            next_try: Some(lane.next_try),
            last_error: lane.last_error,
        });
        let Some(Seen { details, at, .. }) = seen else {
            return Listed { lines: here.collect(), n: n_here, at_least: false };
        };
        let age = now.duration_since(*at).unwrap_or_default();
        let left = |at: u64| Duration::from_millis(at.saturating_sub(details.overview.now)).saturating_sub(age);
        let mut lines: Vec<Endpoint> = details
            .failing
            .iter()
            .map(|lane| Endpoint {
                origin: lane.origin.clone(),
                state: match (lane.is_paused, lane.next_try) {
                    (true, _) => "paused",
                    (false, Some(_)) => "down",
                    (false, None) => "up again",
                },
                waiting: Some(lane.messages),
                failures: lane.failures,
                next_try: lane.next_try.map(left),
                last_error: lane.last_error.clone(),
            })
            .collect();
        if details.n_failing > KEPT {
            let at_least = (details.lanes_looked_at as u64) < details.overview.lanes || n_here > details.n_failing;
            return Listed { lines, n: details.n_failing.max(n_here), at_least };
        }
        let known: HashSet<String> = lines.iter().map(|line| line.origin.clone()).collect();
        lines.extend(here.filter(|line| !known.contains(&line.origin)));
        // Of more than the lines looked at here it is not known which all agents know.
        let n = lines.len().max(n_here);
        lines.truncate(LINES);
        Listed { lines, n, at_least: n_here > LINES }
    }
}

fn told(seen: &Seen, now: SystemTime, this: Option<u64>) -> Told {
    let Details { overview, reasons, n_reasons, dead_looked_at, .. } = &seen.details;
    let age = now.duration_since(seen.at).unwrap_or_default();
    let agents = overview.agents.iter().take(LINES).map(|agent| Agent {
        number: agent.number,
        lease: agent.lease,
        in_flight: agent.messages,
        is_this: Some(agent.number) == this,
    });
    Told {
        at: overview.now,
        age: (!seen.is_current).then_some(age),
        queued: overview.queued,
        in_flight: overview.in_flight,
        waiting: overview.waiting,
        retry: overview.retry,
        dead: overview.dead,
        agents: Listed { lines: agents.collect(), n: overview.agents.len(), at_least: overview.agents.len() >= 1000 },
        reasons: Listed { lines: reasons.clone(), n: *n_reasons, at_least: *dead_looked_at < overview.dead },
        dead_looked_at: *dead_looked_at,
    }
}

/// What the agent was told to do, for people: nothing that is secret.
pub(super) struct About {
    queue: String,
    redis: String,
    pub(super) workers: usize,
    options: Vec<(&'static str, String)>,
}

impl About {
    pub(super) fn new(config: &Config) -> About {
        About {
            queue: config.redis.key(),
            redis: config.redis.url.shown().to_string(),
            workers: config.workers,
            options: options(config),
        }
    }
}

/// A list in the words of the command line.
fn many<T: ToString>(all: &[T]) -> String {
    match all.is_empty() {
        true => "–".to_owned(),
        false => all.iter().map(T::to_string).collect::<Vec<_>>().join(", "),
    }
}

fn options(config: &Config) -> Vec<(&'static str, String)> {
    let yes = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    let size = |bytes: u64| {
        if bytes.is_multiple_of(1 << 20) { format!("{} MiB", bytes >> 20) } else { format!("{bytes} bytes") }
    };

    let or = |value: Option<String>, otherwise: &str| value.unwrap_or_else(|| otherwise.to_owned());
    let pop = if config.pop == Pop::Peek { "peek" } else { "blpop" };
    let log_format = LogFormat::NAMED.iter().find(|(_, format)| *format == config.log_format);
    vec![
        ("workers", config.workers.to_string()),
        ("endpoint-concurrency", config.endpoint_concurrency.to_string()),
        ("ordered", yes(config.ordered)),
        ("in-flight", config.in_flight.to_string()),
        ("in-flight-bytes", size(config.in_flight_bytes)),
        ("connect-timeout", exact(config.connect_timeout)),
        ("timeout", exact(config.timeout)),
        ("retry-first", exact(config.retry_first)),
        ("retry-max", exact(config.retry_max)),
        ("give-up-after", exact(config.give_up_after)),
        ("attempts", or(config.attempts.map(|n| n.to_string()), "any number")),
        ("final", many(&config.final_statuses)),
        ("retryable", many(&config.retryable_statuses)),
        ("keep-dead", or(config.keep_dead.map(exact), "forever")),
        ("drain-timeout", exact(config.drain_timeout)),
        ("lease", exact(config.lease)),
        ("pop", pop.to_owned()),
        ("deny-net", many(&config.deny_net)),
        ("allow-net", many(&config.allow_net)),
        ("https-only", yes(config.https_only)),
        ("proxy-resolves", yes(config.proxy_resolves)),
        ("id-header", or(config.id_header.as_ref().map(|header| header.as_str().to_owned()), "–")),
        ("log-format", log_format.map_or("", |(name, _)| name).to_owned()),
    ]
}
