//! What is on the retry schedule: listed, and tried now. The endpoints of that are tried with it where they have
//! failed, for behind one that is down nothing is tried but what is its turn.

use std::collections::BTreeSet;

use super::desk::{Desk, Shelf};
use super::{Error, Exit, say};
use crate::config::{Held, HeldAction};
use crate::orders::{Hand, Standing};
use crate::queue::redis::admin::PAGE;
use crate::queue::redis::list::RedisList;
use crate::queue::redis::server::Server;
use crate::queue::{Id, Pop};

/// Does what was asked; [`Exit::Nothing`] if nothing matches.
///
/// # Errors
///
/// If Redis cannot be asked.
pub fn run(options: &Held) -> Result<Exit, Error> {
    let mut desk = Desk::new(&options.redis, Shelf::Retry)?;
    match &options.action {
        HeldAction::List(list) => desk.list(list),
        HeldAction::Act(act) => {
            let mut list = RedisList::new(Server::from(&options.redis), &options.redis.key(), Pop::Peek, false);
            let mut origins = BTreeSet::new();
            let done = desk.act(act, "due now", |some| {
                origins.extend(some.iter().map(|(origin, _)| origin.clone()).filter(|origin| !origin.is_empty()));
                Ok(list.retry_now(&some.iter().map(|(_, id)| *id).collect::<Vec<Id>>())?)
            });
            try_endpoints(&mut list, &origins.into_iter().collect::<Vec<_>>())?;
            done
        }
    }
}

fn try_endpoints(list: &mut RedisList, origins: &[String]) -> Result<(), Error> {
    for some in origins.chunks(PAGE) {
        let before = list.order(Hand::Try, false, some)?.unwrap_or_default();
        for (origin, before) in some.iter().zip(before) {
            if let Standing::Paused(_) = before.standing {
                say(&format!("{origin} is paused: its messages wait until 'endpoint resume {origin}'"));
            }
        }
    }
    Ok(())
}
