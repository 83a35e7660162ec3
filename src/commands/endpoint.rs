//! Endpoints: listed, paused, resumed, tried. What is done is one step in Redis; agents hear of it within a second.

use std::io::{self, BufWriter, Write};

use super::status::next_try;
use super::table::Table;
use super::{Error, Exit, claimed_at, say};
use crate::config::{Endpoint, EndpointAction};
use crate::json::Object;
use crate::orders::{Before, Hand, MOST_PAUSED, Standing};
use crate::queue::redis::admin::{LaneSeen, Operator, PAGE};
use crate::queue::redis::list::RedisList;
use crate::queue::redis::server::Server;
use crate::queue::{self, Pop, Queue};
use crate::text::{ago, at_ms, n_of, utc};

/// Lanes looked at for a list; a look costs Redis some microseconds.
const MOST_LANES: usize = 10_000;

/// Does what was asked; [`Exit::Nothing`] if nothing matches.
///
/// # Errors
///
/// If Redis cannot be asked, or more would be paused than may be.
pub fn run(options: &Endpoint) -> Result<Exit, Error> {
    let mut list = RedisList::new(Server::from(&options.redis), &options.redis.key(), Pop::Peek, false);
    match &options.action {
        EndpointAction::List { limit, json } => {
            let mut operator = Operator::new(&options.redis);
            show(&mut list, &mut operator, usize::try_from(*limit).unwrap_or(usize::MAX), *json)
        }
        EndpointAction::Order { hand, origins, dry } if origins.is_empty() => {
            let mut paused: Vec<String> = list.orders()?.paused().map(|(origin, _)| origin.clone()).collect();
            paused.sort_unstable();
            if paused.is_empty() {
                say("no endpoint is paused");
                return Ok(Exit::Nothing);
            }
            order(&mut list, *hand, &paused, *dry)
        }
        EndpointAction::Order { hand, origins, dry } => order(&mut list, *hand, origins, *dry),
    }
}

/// A paused endpoint.
pub(super) struct Paused {
    pub(super) origin: String,
    /// Since when, in milliseconds since 1970.
    pub(super) since: u64,
    pub(super) messages: u64,
}

/// All that are paused, by name. Nothing is changed.
pub(super) fn paused(list: &mut RedisList) -> Result<Vec<Paused>, queue::Error> {
    let mut origins: Vec<String> = list.orders()?.paused().map(|(origin, _)| origin.clone()).collect();
    origins.sort_unstable();
    let mut paused = Vec::new();
    for some in origins.chunks(PAGE) {
        let before = list.order(Hand::Try, true, some)?.unwrap_or_default();
        paused.extend(some.iter().zip(before).filter_map(
            |(origin, Before { standing, messages, .. })| match standing {
                Standing::Paused(number) => Some(Paused { origin: origin.clone(), since: number / 1000, messages }),
                _ => None,
            },
        ));
    }
    Ok(paused)
}

fn show(list: &mut RedisList, operator: &mut Operator, limit: usize, json: bool) -> Result<Exit, Error> {
    let (now, paused) = (operator.now()?, paused(list)?);
    let mut lanes = Vec::new();
    operator.each_lane(MOST_LANES.max(limit), |lane| lanes.push(lane))?;
    lanes.retain(|lane| !paused.iter().any(|one| one.origin == lane.origin));
    lanes.sort_by(|a, b| b.messages.cmp(&a.messages).then(a.origin.cmp(&b.origin)));
    let n = paused.len() + lanes.len();
    if n == 0 {
        say("no endpoint is paused, and nothing waits for any");
        return Ok(Exit::Nothing);
    }
    let mut out = BufWriter::new(io::stdout().lock());
    let mut table =
        Table::new(&["ENDPOINT", "STATE", "#MESSAGES", "OLDEST CLAIMED", "#FAILURES IN A ROW", "LAST ERROR"]);
    for one in paused.iter().take(limit) {
        if json {
            writeln!(out, "{}", facts(&one.origin, Some(one.since), one.messages, None))?;
        } else {
            let since = format!("paused {}", ago(at_ms(one.since), at_ms(now)));
            let none = String::new;
            table.row(vec![one.origin.clone(), since, one.messages.to_string(), none(), none(), none()]);
        }
    }
    for lane in lanes.iter().take(limit.saturating_sub(paused.len())) {
        if json {
            writeln!(out, "{}", facts(&lane.origin, None, lane.messages, Some(lane)))?;
        } else {
            let oldest = lane.oldest.map(|id| ago(claimed_at(id), at_ms(now))).unwrap_or_default();
            let state = match next_try(lane.next_try, now) {
                up if lane.next_try.is_none() => up,
                when => format!("next try {when}"),
            };
            table.row(vec![
                lane.origin.clone(),
                state,
                lane.messages.to_string(),
                oldest,
                lane.failures.to_string(),
                lane.last_error.clone(),
            ]);
        }
    }
    table.write(&mut out)?;
    out.flush()?;
    if n > limit && !json {
        say(&format!("{} more; '--limit' shows them", n_of((n - limit) as u64, "endpoint")));
    }
    Ok(Exit::Done)
}

fn facts(origin: &str, paused_since: Option<u64>, messages: u64, lane: Option<&LaneSeen>) -> Object {
    Object::new()
        .text("endpoint", origin)
        .json("paused", paused_since.is_some())
        .time("paused_since", paused_since.map(at_ms))
        .number("messages", messages)
        .time("oldest_claimed", lane.and_then(|lane| lane.oldest).map(claimed_at))
        .time("next_try", lane.and_then(|lane| lane.next_try).map(at_ms))
        .number("failures_in_a_row", lane.map_or(0, |lane| lane.failures))
        .text("last_error", lane.map_or("", |lane| &lane.last_error))
}

fn order(list: &mut RedisList, hand: Hand, origins: &[String], dry: bool) -> Result<Exit, Error> {
    let mut out = io::stdout().lock();
    let (mut n_done, mut exit) = (0, Exit::Done);
    // As many as there may be go in one step, so that all or none are too many.
    for some in origins.chunks(2 * MOST_PAUSED) {
        let Some(before) = list.order(hand, dry, some)? else {
            return Err(Error::Failed(format!(
                "more than {MOST_PAUSED} endpoints would be paused, and none of these is: resume some first, see \
                 'endpoint list', or stop the agents"
            )));
        };
        for (origin, before) in some.iter().zip(&before) {
            match told(hand, origin, before) {
                Ok(words) => {
                    n_done += 1;
                    writeln!(out, "{}{words}", if dry { "would be " } else { "" })?;
                }
                Err((words, is_well)) => {
                    say(&words);
                    if !is_well {
                        exit = Exit::Nothing;
                    }
                }
            }
        }
    }
    if origins.len() > 1 {
        writeln!(out, "{} of {}", n_done, n_of(origins.len() as u64, "endpoint"))?;
    }
    Ok(exit)
}

/// What is done to this one; or why nothing is, and whether it is as it should be all the same.
fn told(hand: Hand, origin: &str, before: &Before) -> Result<String, (String, bool)> {
    let messages = n_of(before.messages, "message");
    let wait = if before.messages == 1 { "waits" } else { "wait" };
    match (hand, before.standing) {
        (Hand::Pause, Standing::Paused(number)) => {
            Err((format!("{origin} is paused already, since {}; {messages} {wait}", utc(at_ms(number / 1000))), true))
        }
        (Hand::Pause, _) => Ok(format!("paused: {origin}; {messages} {wait} for it")),
        (Hand::Resume, Standing::Paused(_)) => Ok(format!("resumed: {origin}; {messages} {wait} for it")),
        (Hand::Resume, _) => Err((format!("{origin} is not paused"), false)),
        (Hand::Try, Standing::Down(_) | Standing::Due) => {
            let failures = n_of(before.failures, "failure");
            Ok(format!("tried now: {origin}, after {failures} in a row; {messages} {wait} for it"))
        }
        (Hand::Try, Standing::Paused(_)) => {
            Err((format!("{origin} is paused: 'endpoint resume {origin}' has it tried at once"), false))
        }
        (Hand::Try, Standing::Probed) => Err((format!("{origin} is being tried at this moment"), true)),
        (Hand::Try, Standing::Up) => Err((format!("{origin} is up; {messages} {wait} for it"), true)),
        (Hand::Try, Standing::New) => Err((format!("{origin} is about to be tried for the first time"), true)),
        (Hand::Try, Standing::Unknown) => Err((
            format!("nothing waits for {origin}; see 'endpoint list', and 'retry list' for what is put off"),
            false,
        )),
    }
}
