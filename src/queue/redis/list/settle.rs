//! Settlements and changes of lanes, in the words of the move that takes them.

use crate::queue::redis::arguments::Arguments;
use crate::queue::{AgentNumber, History, LaneChange, Place, Settlement};

pub(super) fn arguments(me: AgentNumber, call: u64, settlements: &[Settlement], changes: &[LaneChange]) -> Arguments {
    let mut arguments = Arguments::default();
    arguments.sixteen(me.0).text(call);

    // By origin, so that each origin is sent once.
    let mut delivered: Vec<&Settlement> = settlements.iter().filter(|one| one.place == Place::Delivered).collect();
    delivered.sort_by(|a, b| a.origin.cmp(&b.origin));
    let groups: Vec<&[&Settlement]> = delivered.chunk_by(|a, b| a.origin == b.origin).collect();
    arguments.text(groups.len());
    for group in groups {
        arguments.text(&group[0].origin).text(group.len());
        for one in group {
            arguments.sixteen(one.id.0);
        }
    }
    let count = |of: fn(&Place) -> bool| settlements.iter().filter(|one| of(&one.place)).count();
    let past = |arguments: &mut Arguments, history: &History| {
        arguments.text(history.attempts).text(history.own_failures).text(&history.last_error);
    };
    arguments.text(count(|place| matches!(place, Place::Retry(_))));
    for one in settlements {
        if let Place::Retry(delay) = one.place {
            arguments.sixteen(one.id.0).millis(delay);
            past(&mut arguments, &one.history);
        }
    }
    arguments.text(count(|place| matches!(place, Place::Waiting(_))));
    for one in settlements {
        if let Place::Waiting(delay) = one.place {
            arguments.sixteen(one.id.0).text(&one.origin);
            match delay {
                Some(delay) => arguments.millis(delay),
                None => arguments.text(-1),
            };
            past(&mut arguments, &one.history);
        }
    }
    arguments.text(count(|place| *place == Place::Dead));
    for one in settlements {
        if one.place == Place::Dead {
            arguments.sixteen(one.id.0);
            past(&mut arguments, &one.history);
        }
    }
    arguments.text(changes.len());
    for change in changes {
        match change {
            LaneChange::Up(origin) => arguments.text(origin).text("o"),
            LaneChange::Freed(origin) => arguments.text(origin).text("f"),
            LaneChange::Due { origin, after } => arguments.text(origin).text("d").millis(*after),
            LaneChange::Down { origin, after, failures, slowly, why } => {
                let how = if *slowly { "s" } else { "f" };
                arguments.text(origin).text("c").millis(*after).text(failures).text(how).text(why)
            }
        };
    }
    arguments
}
