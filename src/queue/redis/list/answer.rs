//! What Redis answers, as values of our own.

use std::time::Duration;

use redis::Value;

use crate::orders::Orders;
use crate::queue::{Error, HIGHEST_NUMBER, History, Id};

/// No agent counts as far: what goes beyond it somebody else has written.
pub(super) const MOST_FAILURES: u32 = 1_000_000_000;
/// Times of messages, in milliseconds, are later: this is in 2001.
const FIRST_TIME: i64 = 1_000_000_000_000;

/// `attempts own first error`, as `settle` writes it; `+age` in the place of `first` while it grows no older. Nothing
/// is older than its claim: what was noted before that, was noted by a clock that was behind.
pub(crate) fn history(record: &[u8], id: Id, now_ms: i64) -> History {
    let record = String::from_utf8_lossy(record);
    let mut words = record.splitn(4, ' ');
    let mut stands_still = false;
    let mut number = || {
        let word = words.next()?;
        stands_still = word.starts_with('+');
        word.parse::<i64>().ok()
    };
    let (attempts, own_failures, first) = (number(), number(), number());
    let first = if stands_still { first.and_then(|age| now_ms.checked_sub(age)) } else { first };
    let count = |n: Option<i64>, most: u32| n.unwrap_or(0).clamp(0, i64::from(most)) as u32;
    let first = first.filter(|first| (FIRST_TIME..HIGHEST_NUMBER as i64).contains(first));
    let claimed = Some(id.claimed_ms()).filter(|claimed| *claimed <= now_ms).unwrap_or(0);
    let first = first.map(|first| first.max(claimed));
    History {
        attempts: count(attempts, u32::MAX),
        own_failures: count(own_failures, MOST_FAILURES),
        age: first.map(|first| Duration::from_millis((now_ms - first).max(0) as u64)),
        last_error: words.next().unwrap_or_default().to_string(),
    }
}

/// An order's number may be anything that somebody wrote: then it is not ours, and is read again.
pub(super) fn orders(answer: &mut Answer) -> Result<Orders, Error> {
    let number = answer.lossy()?.parse().unwrap_or(0);
    Ok(Orders::read(number, &answer.lossy()?))
}

pub(in crate::queue::redis) fn unexpected(what: &str) -> Error {
    Error::Unavailable(format!("an answer of Redis is not what the move returns: {what}"))
}

pub(in crate::queue::redis) fn count(value: Value) -> Result<usize, Error> {
    match value {
        Value::Int(n) => Ok(n.max(0) as usize),
        _ => Err(unexpected("a count")),
    }
}

/// An answer's values, taken one by one; bytes are moved, not copied.
pub(in crate::queue::redis) struct Answer(pub(super) std::vec::IntoIter<Value>);

impl Answer {
    pub(in crate::queue::redis) fn of(value: Value) -> Result<Answer, Error> {
        match value {
            Value::Array(values) => Ok(Answer(values.into_iter())),
            _ => Err(unexpected("a list")),
        }
    }

    pub(in crate::queue::redis) fn more(&self) -> bool {
        self.0.len() > 0
    }

    pub(in crate::queue::redis) fn bytes(&mut self) -> Result<Vec<u8>, Error> {
        match self.0.next() {
            Some(Value::BulkString(bytes)) => Ok(bytes),
            Some(Value::SimpleString(text)) => Ok(text.into_bytes()),
            _ => Err(unexpected("bytes")),
        }
    }

    /// Text of which others may have written a part.
    pub(super) fn lossy(&mut self) -> Result<String, Error> {
        Ok(String::from_utf8_lossy(&self.bytes()?).into_owned())
    }

    pub(in crate::queue::redis) fn text(&mut self) -> Result<String, Error> {
        String::from_utf8(self.bytes()?).map_err(|_| unexpected("text"))
    }

    pub(super) fn number(&mut self) -> Result<i64, Error> {
        match self.0.next() {
            Some(Value::Int(n)) => Ok(n),
            _ => Err(unexpected("a number")),
        }
    }

    pub(super) fn number_in_text(&mut self) -> Result<u64, Error> {
        self.text()?.parse().map_err(|_| unexpected("a number"))
    }

    pub(in crate::queue::redis) fn id(&mut self) -> Result<Id, Error> {
        Ok(Id(self.number_in_text()?))
    }

    pub(super) fn list(&mut self) -> Result<Answer, Error> {
        Answer::of(self.0.next().ok_or_else(|| unexpected("a list"))?)
    }
}
