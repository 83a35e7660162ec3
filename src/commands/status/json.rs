//! What was seen, as a JSON object.

use super::lease;
use super::look::Seen;
use crate::commands::claimed_at;
use crate::config::Status;
use crate::json::{Object, array};
use crate::text::at_ms;

impl Seen {
    /// Its members are in OPERATING.
    pub(super) fn json(&self, options: &Status) -> Object {
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
