//! A look at the whole queue: totals, and the largest groups of what may be many, counted over a bounded number.

use std::collections::HashMap;
use std::ops::ControlFlow;

use crate::commands::endpoint::{Paused, paused};
use crate::config::Status;
use crate::envelope::Envelope;
use crate::queue::redis::admin::{LaneSeen, Operator, Overview, Schedule};
use crate::queue::redis::list::RedisList;
use crate::queue::redis::server::Server;
use crate::queue::{self, Id, Pop};

/// How many are looked at.
pub(super) struct Bounds {
    /// Lanes; a look costs Redis some microseconds.
    pub(super) lanes: usize,
    /// Messages of the retry schedule read for their endpoints, those due first.
    pub(super) retries: u64,
    /// Dead letters grouped by reason, those that died last.
    pub(super) dead: u64,
}

/// By a single look.
pub(super) const BOUNDS: Bounds = Bounds { lanes: 10_000, retries: 2_000, dead: 100_000 };
/// Groups kept in memory while counting.
const MOST_GROUPS: usize = 10_000;

/// The two connections that looks are made by; each is opened by the first.
pub(super) struct Looker {
    operator: Operator,
    list: RedisList,
}

impl Looker {
    pub(super) fn new(options: &Status) -> Looker {
        let list = RedisList::new(Server::from(&options.redis), &options.redis.key(), Pop::Peek, false);
        Looker { operator: Operator::new(&options.redis), list }
    }

    pub(super) fn look(&mut self, options: &Status, bounds: &Bounds) -> Result<Seen, queue::Error> {
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

pub(super) struct Seen {
    pub(super) overview: Overview,
    /// Of all that wait for the lanes that were looked at.
    pub(super) oldest_waiting: Option<Id>,
    pub(super) lanes: Groups<LaneSeen>,
    /// Endpoints that operators have paused.
    pub(super) paused: Vec<Paused>,
    pub(super) retries: Groups<RetryGroup>,
    pub(super) deaths: Groups<DeathGroup>,
}

/// The largest groups of what was looked at.
pub(super) struct Groups<T> {
    pub(super) groups: Vec<T>,
    pub(super) n_groups: u64,
    pub(super) looked_at: u64,
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
pub(super) struct RetryGroup {
    pub(super) origin: String,
    pub(super) messages: u64,
    pub(super) next: u64,
    pub(super) attempts: u32,
    pub(super) last_error: String,
}

#[derive(Default)]
pub(super) struct DeathGroup {
    pub(super) reason: String,
    pub(super) messages: u64,
    pub(super) first: u64,
    pub(super) last: u64,
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
