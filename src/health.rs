//! Whether the agent is alive, and whether it delivers: for the status pages and for whoever started it.
//! Read from memory alone, so that a Redis that is away keeps nobody waiting for the answer.

use std::time::Duration;

use crate::dispatch::Dispatch;
use crate::lease::{REDIS_AWAY, Thread};
use crate::peers::between_beats;

/// Alive means that reader and settler have turned within this time, beyond what they wait on purpose.
const ALIVE_WITHIN: Duration = Duration::from_secs(10);

/// Why the agent is not alive, if it is not. Redis has no part in it. `lease` as the agent has it.
pub fn unwell(dispatch: &Dispatch, lease: Duration) -> Option<String> {
    if dispatch.lease.is_stopping() {
        // Threads end on purpose, and the stop has a deadline of its own.
        return None;
    }
    let since_turn = [Thread::Reader, Thread::Settler].map(|thread| dispatch.lease.since_turn(thread));
    who_hangs(since_turn, lease, dispatch.journal.redis_is_up())
}

/// Why the agent cannot deliver now, if it cannot.
pub fn unready(dispatch: &Dispatch, lease: Duration) -> Option<String> {
    let lacks = [
        (dispatch.lease.is_stopping(), "stopping"),
        (!dispatch.journal.redis_is_up(), "Redis cannot be used"),
        (dispatch.lease.number().is_none(), "not yet registered in Redis"),
        (!dispatch.lease.is_beat_fresh(), "Redis has not confirmed a beat for most of the lease"),
    ];
    what_lacks(lacks, unwell(dispatch, lease))
}

/// What is lacking first; an agent that is not alive delivers nothing either.
fn what_lacks(lacks: [(bool, &str); 4], unwell: Option<String>) -> Option<String> {
    lacks.into_iter().find_map(|(lacks, what)| lacks.then(|| what.to_owned())).or(unwell)
}

/// From how long ago reader and settler turned last.
fn who_hangs(since_turn: [Duration; 2], lease: Duration, redis_is_up: bool) -> Option<String> {
    let away = if redis_is_up { Duration::ZERO } else { REDIS_AWAY };
    // The settler waits for reports until its next beat.
    let threads = [("reader", Duration::ZERO), ("settler", between_beats(lease))];
    threads.iter().zip(since_turn).find_map(|((name, on_purpose), since)| {
        (since > ALIVE_WITHIN + *on_purpose + away)
            .then(|| format!("the {name} has not turned for {} s", since.as_secs()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alive_is_who_turns_in_time() {
        let check = |reader, settler, redis_is_up, expected: Option<&str>| {
            let since_turn = [Duration::from_secs(reader), Duration::from_secs(settler)];
            let said = who_hangs(since_turn, Duration::from_secs(15), redis_is_up);
            assert_eq!(said.as_deref(), expected, "{reader} {settler} {redis_is_up}");
        };
        check(0, 5, true, None);
        check(10, 15, true, None);
        check(11, 0, true, Some("the reader has not turned for 11 s"));
        check(0, 16, true, Some("the settler has not turned for 16 s"));
        check(27, 32, false, None);
        check(28, 0, false, Some("the reader has not turned for 28 s"));
        check(0, 33, false, Some("the settler has not turned for 33 s"));
    }

    #[test]
    fn who_is_not_alive_is_not_ready() {
        let all_is_well = [(false, "stopping"), (false, "Redis"), (false, "registered"), (false, "beat")];
        assert_eq!(what_lacks(all_is_well, None), None);
        let hangs = Some("the reader has not turned for 11 s".to_owned());
        assert_eq!(what_lacks(all_is_well, hangs.clone()), hangs);
        let mut one_lacks = all_is_well;
        one_lacks[2].0 = true;
        assert_eq!(what_lacks(one_lacks, hangs).as_deref(), Some("registered"));
    }
}
