//! The texts of the moves, one Lua file each. What an order of an operator does is a move as well.

use crate::queue::redis::connection::Move;

pub(in crate::queue::redis) struct Moves {
    pub(in crate::queue::redis) join: Move,
    pub(in crate::queue::redis) claim: Move,
    pub(in crate::queue::redis) settle: Move,
    pub(in crate::queue::redis) beat: Move,
    pub(in crate::queue::redis) recover: Move,
    pub(in crate::queue::redis) give_back: Move,
    pub(in crate::queue::redis) has: Move,
    pub(in crate::queue::redis) restore: Move,
    pub(in crate::queue::redis) hasten: Move,
    pub(in crate::queue::redis) replay: Move,
    pub(in crate::queue::redis) drop: Move,
    pub(in crate::queue::redis) forget: Move,
    pub(in crate::queue::redis) order: Move,
    pub(in crate::queue::redis) still: Move,
    pub(in crate::queue::redis) retry: Move,
    pub(in crate::queue::redis) drop_waiting: Move,
    pub(in crate::queue::redis) adopt: Move,
    pub(in crate::queue::redis) adopted: Move,
    /// The text of a script that names none of our keys.
    pub(in crate::queue::redis) take: String,
}

impl Moves {
    /// `clock`: for tests, the name of a key that holds the time in microseconds.
    /// `edit`: for tests, what becomes of each text, named as its file.
    pub(super) fn new(clock: Option<&str>, edit: &dyn Fn(&str, String) -> String) -> Moves {
        let edited = |name: &str, text: &str| edit(name, text.to_string());
        let mut head = edited("head", include_str!("../scripts/head.lua"));
        if let Some(clock) = clock {
            let simulated = format!(
                "{{math.floor(redis.call('GET', '{clock}') / 1000000), redis.call('GET', '{clock}') % 1000000}}"
            );
            assert!(head.contains("redis.call('TIME')"), "the head reads the clock");
            head = head.replace("redis.call('TIME')", &simulated);
        }
        let new = |name, body| Move::new(&head, &edited(name, body));
        Moves {
            join: new("join", include_str!("../scripts/join.lua")),
            claim: new("claim", include_str!("../scripts/claim.lua")),
            settle: new("settle", include_str!("../scripts/settle.lua")),
            beat: new("beat", include_str!("../scripts/beat.lua")),
            recover: new("recover", include_str!("../scripts/recover.lua")),
            give_back: new("give_back", include_str!("../scripts/give_back.lua")),
            has: new("has", include_str!("../scripts/has.lua")),
            restore: new("restore", include_str!("../scripts/restore.lua")),
            hasten: new("hasten", include_str!("../scripts/hasten.lua")),
            replay: new("replay", include_str!("../scripts/replay.lua")),
            drop: new("drop", include_str!("../scripts/drop.lua")),
            forget: new("forget", include_str!("../scripts/forget.lua")),
            order: new("order", include_str!("../admin/order.lua")),
            still: new("still", include_str!("../admin/still.lua")),
            retry: new("retry", include_str!("../admin/retry.lua")),
            drop_waiting: new("drop_waiting", include_str!("../admin/drop_waiting.lua")),
            adopt: new("adopt", include_str!("../scripts/adopt.lua")),
            adopted: new("adopted", include_str!("../scripts/adopted.lua")),
            take: edited("take", include_str!("../scripts/take.lua")),
        }
    }
}
