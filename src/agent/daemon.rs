//! An agent as a process of its own: says what it delivers, goes on until a signal or the end of a thread, and does
//! meanwhile what is due by the minute, by the hour and at a SIGHUP.

use std::time::Duration;

use crossbeam_channel::{select, tick};
use log::{info, warn};

use super::{Agent, End};
use crate::config::{self, Config};
use crate::metrics::{Metrics, read};
use crate::notify;
use crate::roots::READ_EVERY;
use crate::signals;
use crate::text::spell;

/// A line in the log this often, if anything happened.
const SUMMARY_EVERY: Duration = Duration::from_secs(60);

/// Runs an agent until a signal stops it.
///
/// # Errors
///
/// Why it could not go on, as a sentence for people.
pub fn run(config: &Config) -> Result<(), String> {
    let (_watch, signals, hang_ups) = signals::watch().map_err(|error| format!("cannot watch for signals: {error}"))?;
    info!(
        "acapy-deliver {} delivers the queue '{}' at {} with {} workers{}{}",
        env!("CARGO_PKG_VERSION"),
        config.redis.key(),
        config.redis.url.shown(),
        config.workers,
        if config.ordered { ", in order" } else { "" },
        taken(config)
    );
    for warning in config::unknown_variables(&config::environment()) {
        warn!("{warning}");
    }
    let agent = Agent::start(config)?;
    let notifier = notify::start(agent.dispatch.clone(), config);
    let summary = tick(SUMMARY_EVERY);
    let mut counted = Counted::default();
    let hourly = tick(READ_EVERY);
    let why = loop {
        select! {
            recv(signals) -> signal => match signal {
                Ok(signal) => {
                    info!("{signal}: stopping; what is being attempted has {} to end", spell(config.drain_timeout));
                    break Ok(());
                }
                Err(_) => break Err("signals are not heard any more".to_string()),
            },
            recv(agent.ends) -> end => break Err(why_ended(end.ok())),
            recv(summary) -> _ => {
                counted.report(&agent.dispatch.metrics);
                agent.dispatch.journal.flush();
                // While nothing is posted, nobody else closes connections that have been idle for too long.
                agent.poster.tidy();
            }
            recv(hourly) -> _ => agent.renew_trust(),
            recv(hang_ups) -> asked => if asked.is_ok() {
                info!("SIGHUP: roots and client certificate are read again");
                match &notifier {
                    Some(notifier) => notifier.while_reloading(|| agent.renew_trust()),
                    None => agent.renew_trust(),
                }
            }
        }
    };
    let urgent = why.is_err();
    agent.stop(if urgent { Duration::ZERO } else { config.drain_timeout }, &signals);
    why
}

/// What the variables of the plugin's deliverer have settled, as the end of a sentence.
fn taken(config: &Config) -> String {
    let taken = config.redis.taken;
    match taken == config::Taken::default() {
        true => String::new(),
        false => format!("; as the environment of the plugin's deliverer says: {taken}"),
    }
}

fn why_ended(end: Option<End>) -> String {
    match end {
        Some(End { result: Err(why), .. }) => why.to_string(),
        Some(End { name, .. }) => format!("internal error: the {name} ended by itself"),
        None => "internal error: all threads ended".to_string(),
    }
}

/// What the last summary line counted up to.
#[derive(Default)]
struct Counted {
    delivered: u64,
    later: u64,
    dead: u64,
}

impl Counted {
    fn report(&mut self, metrics: &Metrics) {
        let now =
            Counted { delivered: read(&metrics.delivered), later: read(&metrics.later), dead: read(&metrics.dead) };
        let (delivered, later, dead) = (now.delivered - self.delivered, now.later - self.later, now.dead - self.dead);
        if delivered + later + dead > 0 {
            info!("in the last minute: {delivered} delivered, {later} put off, {dead} dead");
        }
        *self = now;
    }
}
