//! What operators order: messages tried anew or removed, endpoints paused, resumed and tried.

use redis::Value;

use super::answer::{Answer, count, unexpected};
use super::{IDS_PER_CALL, RedisList};
use crate::orders::{Before, Hand, MOST_PAUSED, Standing};
use crate::queue::redis::arguments::Arguments;
use crate::queue::{Error, Id};

impl RedisList {
    /// Makes dead messages due again, as if they had never been attempted; returns how many of them were dead.
    pub fn replay(&mut self, ids: &[Id]) -> Result<usize, Error> {
        self.on_ids(|moves| &moves.replay, None, ids)
    }

    /// Removes dead messages for good; returns how many of them were dead.
    pub fn drop_dead(&mut self, ids: &[Id]) -> Result<usize, Error> {
        self.on_ids(|moves| &moves.drop, None, ids)
    }

    /// Makes what is on the retry schedule due now; returns how many of them were there.
    pub fn retry_now(&mut self, ids: &[Id]) -> Result<usize, Error> {
        self.on_ids(|moves| &moves.retry, None, ids)
    }

    /// Removes for good what waits for its endpoint, given by origin and id; returns how many of them waited.
    pub fn drop_waiting(&mut self, waiting: &[(String, Id)]) -> Result<usize, Error> {
        let mut n = 0;
        for some in waiting.chunks(IDS_PER_CALL) {
            let mut arguments = Arguments::default();
            for (origin, id) in some {
                arguments.text(origin).sixteen(id.0);
            }
            n += count(self.run(|moves| &moves.drop_waiting, &arguments)?)?;
        }
        Ok(n)
    }

    /// Gives an order for these endpoints, each named once; `None`, and nothing is done, if more would be paused than
    /// may be. Returns what they were before. If it is dry, nothing is done.
    pub fn order(&mut self, hand: Hand, dry: bool, origins: &[String]) -> Result<Option<Vec<Before>>, Error> {
        let mut arguments = Arguments::default();
        arguments.text(hand).flag(dry).text(MOST_PAUSED);
        for origin in origins {
            arguments.text(origin);
        }
        let mut answer = Answer::of(self.run(|moves| &moves.order, &arguments)?)?;
        if answer.text()? != "ok" {
            return Ok(None);
        }
        let mut all = Vec::new();
        while answer.more() {
            all.push(before(&mut answer.list()?)?);
        }
        if hand == Hand::Pause && !dry {
            for origin in origins {
                self.stand_still(origin)?;
            }
        }
        Ok(Some(all))
    }

    /// What waits for a paused endpoint grows no older.
    fn stand_still(&mut self, origin: &str) -> Result<(), Error> {
        let mut after = Vec::new();
        loop {
            let mut arguments = Arguments::default();
            arguments.text(origin).bytes(&after).text(IDS_PER_CALL);
            let Value::BulkString(last) = self.run(|moves| &moves.still, &arguments)? else {
                return Err(unexpected("what stands still"));
            };
            if last.is_empty() {
                return Ok(());
            }
            after = last;
        }
    }
}

fn before(answer: &mut Answer) -> Result<Before, Error> {
    let (state, time) = (answer.text()?, answer.text()?);
    let messages = answer.number()?.max(0) as u64;
    let failures = answer.number_in_text()?;
    let time = || time.parse().map_err(|_| unexpected("a time"));
    let standing = match state.as_str() {
        "paused" => Standing::Paused(time()?),
        "probed" => Standing::Probed,
        "down" => Standing::Down(time()?),
        "due" => Standing::Due,
        "up" => Standing::Up,
        "new" => Standing::New,
        _ => Standing::Unknown,
    };
    Ok(Before { standing, messages, failures })
}
