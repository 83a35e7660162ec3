//! What waits for its endpoint: listed, and dropped for good, as for an endpoint that will never come back.

use super::desk::{Desk, Shelf};
use super::{Error, Exit};
use crate::config::{Held, HeldAction};
use crate::queue::Pop;
use crate::queue::redis::list::RedisList;
use crate::queue::redis::server::Server;

/// Does what was asked; [`Exit::Nothing`] if nothing matches.
///
/// # Errors
///
/// If Redis cannot be asked.
pub fn run(options: &Held) -> Result<Exit, Error> {
    let mut desk = Desk::new(&options.redis, Shelf::Waiting)?;
    match &options.action {
        HeldAction::List(list) => desk.list(list),
        HeldAction::Act(act) => {
            let mut list = RedisList::new(Server::from(&options.redis), &options.redis.key(), Pop::Peek, false);
            desk.act(act, "dropped", |some| Ok(list.drop_waiting(some)?))
        }
    }
}
