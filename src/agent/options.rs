//! What each part of an agent is told of the configuration.

use std::time::Duration;

use crate::config::Config;
use crate::delivery;
use crate::delivery::proxy::Proxies;
use crate::guard::Guard;
use crate::lanes::Limits;
use crate::policy::{self, Retry};
use crate::settler;

/// Beside a whole attempt, so long a probed lane is left alone while its outcome is settled.
const SETTLING: Duration = Duration::from_secs(5);

pub(super) fn limits(config: &Config) -> Limits {
    Limits {
        workers: config.workers,
        endpoint_concurrency: config.endpoint_concurrency,
        messages: config.in_flight,
        bytes: usize::try_from(config.in_flight_bytes).unwrap_or(usize::MAX),
        ordered: config.ordered,
        retry_first: config.retry_first,
        retry_max: config.retry_max,
        give_up_after: config.give_up_after,
        attempt: config.timeout + SETTLING,
    }
}

pub(super) fn retry(config: &Config) -> Retry {
    Retry {
        give_up_after: config.give_up_after,
        final_statuses: config.final_statuses.clone(),
        retryable_statuses: config.retryable_statuses.clone(),
        attempts: config.attempts,
        ordered: config.ordered,
    }
}

pub(super) fn settler_options(config: &Config) -> settler::Options {
    settler::Options { lease: config.lease, keep_dead: config.keep_dead, longest_delay: longest_delay(config) }
}

/// Nothing is put off for longer: a message until its lane is tried (its backoff or what the recipient
/// asked for) and for a backoff of its own beyond that, both with their jitter; and an attempt.
pub(crate) fn longest_delay(config: &Config) -> Duration {
    policy::longest_lane_backoff(config.retry_max) + policy::longest_message_backoff() + config.timeout + SETTLING
}

/// Where messages may go.
pub(crate) fn guard(config: &Config) -> Guard {
    Guard::new(&config.allow_net, &config.deny_net, &[])
        .https_only(config.https_only)
        .proxy_resolves(config.proxy_resolves)
}

/// What messages are posted with.
pub(crate) fn poster_options(config: &Config, guard: Guard, proxies: Proxies) -> delivery::Options {
    delivery::Options {
        connect_timeout: config.connect_timeout,
        timeout: config.timeout,
        workers: config.workers,
        endpoint_concurrency: config.endpoint_concurrency,
        roots: config.redis.roots,
        ca_file: config.ca_file.clone(),
        client_certificate: config.client_certificate.clone(),
        id_header: config.id_header.clone(),
        guard,
        proxies,
        ..delivery::Options::default()
    }
}
