//! A claim in the words of its move: what it asks for, and what Redis answers.

use std::time::Duration;

use redis::Value;

use super::answer::{Answer, MOST_FAILURES, history, orders};
use crate::queue::redis::arguments::Arguments;
use crate::queue::{AgentNumber, Bounds, Claimed, Error, FailedLane, History, Id, RawClaim, Source};

pub(super) fn arguments(me: AgentNumber, call: u64, again: bool, bounds: &Bounds) -> Arguments {
    let mut arguments = Arguments::default();
    arguments.sixteen(me.0).text(call).text(bounds.messages).text(bounds.bytes).text(bounds.returning);
    arguments
        .text(bounds.probes)
        .text(bounds.failed_probes)
        .text(bounds.slow_probes)
        .millis(bounds.probe_for)
        .text(bounds.fragile)
        .text(bounds.suspects)
        .text(bounds.gravest)
        .flag(bounds.ordered)
        .flag(again)
        .text(bounds.largest);
    arguments.flag(bounds.popped.is_some()).bytes(bounds.popped.as_deref().unwrap_or_default());
    arguments.seen(bounds.seen).text(bounds.orders);
    for want in &bounds.wants {
        arguments.text(&want.origin).text(want.room).text(want.free);
    }
    arguments
}

/// The answer; how many entries that no agent writes were met is told to `meet_odd`.
pub(super) fn read(answer: Value, meet_odd: impl FnOnce(i64)) -> Result<Claimed, Error> {
    let mut answer = Answer::of(answer)?;
    match answer.text()?.as_str() {
        // A call older than one already answered: our numbering is not what Redis knows, so begin anew.
        "gone" | "old" => return Ok(Claimed::Gone),
        "standby" => return Ok(Claimed::Standby),
        _ => {}
    }
    let now = answer.number()?;
    let due_in = answer.number()?;
    let more = answer.number()? != 0;
    let emptied = each(answer.list()?, Answer::lossy)?;
    let failures = each(answer.list()?, failed_lane)?;
    let mut claims = each(answer.list()?, |messages| raw_claim(messages, now))?;
    let oversized = each(answer.list()?, |buried| Ok((buried.id()?, buried.number_in_text()? as usize)))?;
    // New ones have ids in a row and no past: so only their bytes are sent.
    let before = answer.number_in_text()?;
    let mut fresh = answer.list()?;
    for id in before + 1.. {
        if !fresh.more() {
            break;
        }
        let (history, source) = (History::default(), Source::Queue);
        claims.push(RawClaim { id: Id(id), bytes: fresh.bytes()?, history, recovered: 0, source });
    }
    meet_odd(answer.number()?);
    let numbered = answer.number_in_text()?;
    let orders = if answer.more() { Some(orders(&mut answer.list()?)?) } else { None };
    let due_in = u64::try_from(due_in).ok().map(Duration::from_millis);
    let at = u64::try_from(now).unwrap_or_default();
    Ok(Claimed::Taken { claims, emptied, failures, oversized, due_in, more, at, numbered, orders })
}

fn each<T>(mut list: Answer, mut read: impl FnMut(&mut Answer) -> Result<T, Error>) -> Result<Vec<T>, Error> {
    let mut all = Vec::new();
    while list.more() {
        all.push(read(&mut list)?);
    }
    Ok(all)
}

fn failed_lane(records: &mut Answer) -> Result<FailedLane, Error> {
    let origin = records.lossy()?;
    let record = records.lossy()?;
    let mut words = record.split(' ');
    let failures_in_a_row = words.next().and_then(|n| n.parse().ok()).unwrap_or(0).min(MOST_FAILURES);
    Ok(FailedLane { origin, failures: failures_in_a_row, slowly: words.next() == Some("s") })
}

fn raw_claim(messages: &mut Answer, now: i64) -> Result<RawClaim, Error> {
    let id = messages.id()?;
    Ok(RawClaim {
        id,
        bytes: messages.bytes()?,
        history: history(&messages.bytes()?, id, now),
        recovered: messages.number_in_text()? as u32,
        source: match messages.text()?.as_str() {
            "k" => Source::Queue,
            "o" => Source::Waiting { probe: false },
            "p" => Source::Waiting { probe: true },
            _ => Source::Retry,
        },
    })
}
