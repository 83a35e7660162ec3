//! How a wait for the queue is made: by a command that blocks in Redis and looks without taking, or, where the server
//! is old or refuses that, by what it has.

use std::time::{Duration, Instant};

use log::info;
use redis::Value;

use super::RedisList;
use crate::queue::redis::connection::Failure;
use crate::queue::redis::errors::{is_refusal, wire_text};
use crate::queue::{Error, LONGEST_WAIT, Pop, Waited};

/// The shortest time that a wait blocks: `0.001` blocks for ever on Redis 6.2.
const SHORTEST_WAIT: Duration = Duration::from_millis(20);

/// Whether the value that a wait looks at can stay where it is. It is not read, and the
/// largest that Redis holds is half a gigabyte: so its answer is better not sent. Where it is, one message of
/// 100 MiB that wakes an agent makes it grow to 214 MiB (`limits::an_envelope_larger_than_the_bound…` allows 150).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Unheard {
    /// Not tried yet.
    Unknown,
    Works,
    /// The last wait ended before its time with nothing to show: the next is listened to, for it
    /// may be refused.
    Listen,
    /// The server, or what stands before it, cannot do it.
    Unusable,
}

impl RedisList {
    /// Waits until the queue has something, for at most this long.
    pub(super) fn wait_for_something(&mut self, at_most: Duration) -> Result<Waited, Error> {
        if self.ordered && !self.has_blmove {
            // BRPOPLPUSH turns the list, and so would break the order of more than one.
            std::thread::sleep(at_most.clamp(SHORTEST_WAIT, SHORTEST_WAIT * 5));
            return Ok(Waited::Something);
        }
        if !self.has_fractions && at_most < LONGEST_WAIT {
            return self.wait_by_asking(at_most);
        }
        if self.pop == Pop::Peek
            && let Some(waited) = self.wait_unheard(at_most)?
        {
            return Ok(waited);
        }
        let command = self.wait_command(at_most);
        match self.link.query_blocking(&command, LONGEST_WAIT * 2) {
            Ok(Value::Nil) => Ok(Waited::Nothing),
            Ok(Value::Array(values)) if self.pop == Pop::Blpop => match values.into_iter().nth(1) {
                Some(Value::BulkString(bytes)) => Ok(Waited::Popped(bytes)),
                _ => Ok(Waited::Nothing),
            },
            Ok(_) => Ok(Waited::Something),
            Err(Failure::Ours(error)) => Err(error),
            Err(Failure::Redis(error)) => {
                let text = wire_text(&error);
                if self.has_blmove && text.contains("unknown command") {
                    self.has_blmove = false;
                    info!("{}", self.without_blmove());
                    return self.wait_for_something(at_most);
                }
                if self.has_fractions && text.contains("not an integer") {
                    self.has_fractions = false;
                    info!("this Redis waits whole seconds (fractions: 6.0): what falls due may be half a second late");
                    return self.wait_for_something(at_most);
                }
                if text.contains("OOM ") {
                    if self.unheard != Unheard::Unusable {
                        self.unheard = Unheard::Listen;
                    }
                    return Ok(Waited::Refused);
                }
                match self.link.explain(Failure::Redis(error)) {
                    Error::WrongType(why) => Err(self.name_wrong_type(why)),
                    error => Err(error),
                }
            }
        }
    }

    /// Waits without having the value sent, and then looks whether there is one. `None` if the
    /// wait is to be made, or made again, with its answer listened to.
    fn wait_unheard(&mut self, at_most: Duration) -> Result<Option<Waited>, Error> {
        match self.unheard {
            Unheard::Unknown | Unheard::Works => {}
            Unheard::Listen => {
                self.unheard = Unheard::Works;
                return Ok(None);
            }
            Unheard::Unusable => return Ok(None),
        }
        let begun = Instant::now();
        let length = redis::cmd("LLEN").arg(self.keys.queue()).to_owned();
        let longest = if self.has_fractions { LONGEST_WAIT } else { LONGEST_WAIT * 2 };
        match self.link.query_unheard(&self.wait_command(at_most), &length, longest) {
            Ok(Value::Int(length)) => {
                let ended_early = begun.elapsed() < at_most.clamp(SHORTEST_WAIT, LONGEST_WAIT);
                self.unheard = if length == 0 && ended_early { Unheard::Listen } else { Unheard::Works };
                Ok(Some(if length == 0 { Waited::Nothing } else { Waited::Something }))
            }
            Ok(_) => {
                self.unheard = Unheard::Unusable;
                Ok(None)
            }
            Err(Failure::Ours(error)) => Err(error),
            Err(Failure::Redis(error)) => {
                if is_refusal(&error) {
                    // Of CLIENT REPLY; if it was of the rest, that will be heard.
                    self.unheard = Unheard::Unusable;
                    return Ok(None);
                }
                if self.unheard == Unheard::Unknown && error.code().is_none() {
                    // What stands before the server may have cut us off for it.
                    self.unheard = Unheard::Unusable;
                }
                if error.is_timeout() {
                    // What is asked next, on another connection, will tell whether Redis is there.
                    return Ok(Some(Waited::Something));
                }
                match self.link.explain(Failure::Redis(error)) {
                    Error::WrongType(why) => Err(self.name_wrong_type(why)),
                    error => Err(error),
                }
            }
        }
    }

    fn without_blmove(&self) -> &'static str {
        if self.ordered {
            "this Redis has no BLMOVE (6.2): so that the order holds, the queue is asked ten times a second"
        } else {
            "this Redis has no BLMOVE (6.2): BRPOPLPUSH waits in its place, which may put the newest message first"
        }
    }

    /// Where a wait would take a whole second, and what is due before would be late.
    fn wait_by_asking(&mut self, at_most: Duration) -> Result<Waited, Error> {
        std::thread::sleep(at_most.clamp(SHORTEST_WAIT, SHORTEST_WAIT * 5));
        let length = redis::cmd("LLEN").arg(self.keys.queue()).to_owned();
        match self.link.query(&length)? {
            Value::Int(0) => Ok(Waited::Nothing),
            _ => Ok(Waited::Something),
        }
    }

    fn wait_command(&self, at_most: Duration) -> redis::Cmd {
        let key = self.keys.queue();
        let seconds = at_most.clamp(SHORTEST_WAIT, LONGEST_WAIT).as_secs_f64();
        let mut command;
        if self.pop == Pop::Blpop {
            command = redis::cmd("BLPOP");
            command.arg(key);
        } else if self.has_blmove {
            command = redis::cmd("BLMOVE");
            command.arg(key).arg(key).arg("LEFT").arg("LEFT");
        } else {
            command = redis::cmd("BRPOPLPUSH");
            command.arg(key).arg(key);
        }
        if self.has_fractions {
            command.arg(seconds)
        } else {
            command.arg(1)
        };
        command
    }
}
