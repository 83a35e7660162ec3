//! What only an agent would find out when it starts.

use std::net::ToSocketAddrs;

use super::Report;
use crate::agent;
use crate::commands::Error;
use crate::config::{self, Config};
use crate::delivery::Poster;
use crate::delivery::proxy::Proxies;
use crate::guard::Guard;
use crate::text::spell;

/// Its address policy, and what it would post with, if anything.
pub(super) fn check(config: &Config, report: &mut Report) -> Result<(Guard, Option<Poster>), Error> {
    let guard = agent::guard(config);
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
    let mut usable = None;
    match Poster::new(agent::poster_options(config, guard.clone(), proxies)) {
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
