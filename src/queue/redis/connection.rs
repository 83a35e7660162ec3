//! One synchronous connection to Redis: opened when it is needed, given up at the
//! first sign of trouble, opened again at the next use. It runs the moves
//! (EVALSHA, EVAL where the server does not know the script).
//! It tells the address policy where Redis is. It leaves waiting and repeating to
//! its callers, but for two things: a connection that broke while nobody used it
//! says nothing about Redis, and is replaced before anybody hears of it; and so is one
//! to a node of a Cluster that says that the queue is elsewhere.

use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use log::{debug, warn};
use redis::{Cmd, Value};

use super::arguments::Arguments;
use super::errors::{is_answer, is_elsewhere, is_refusal, may_be_elsewhere, wire_text};
use super::locate::locate;
use super::sentinel::Watch;
use super::server::{Open, PATIENCE, Server};
use crate::queue::Error;

/// A connection that was not used for this long may have been closed by Redis (`timeout`) or by
/// what stands before it.
const IDLE: Duration = Duration::from_secs(1);
/// So long after its time a wait that nobody hears must have ended. One that a server ends since it becomes a
/// replica never does: its last words are not sent either, and without them it does not close.
const UNHEARD: Duration = Duration::from_secs(1);
/// While a connection is used, the password's file is read so often.
const READ_PASSWORD_EVERY: Duration = Duration::from_secs(1);

/// A move: its text and the SHA-1 under which a server may know it already.
#[derive(Debug)]
pub struct Move {
    text: String,
    sha: String,
}

impl Move {
    /// `head` comes before every move.
    pub fn new(head: &str, body: &str) -> Move {
        let text = format!("{head}{body}");
        let sha = redis::Script::new(&text).get_hash().to_string();
        Move { text, sha }
    }
}

/// Numbers that others may have been given between two looks of an agent at what was given out, a second apart.
const UNSEEN: u64 = 10_000_000;

/// What is sent, in the protocol of Redis, with the number seen raised by so much.
type Packed<'a> = &'a dyn Fn(u64) -> Cow<'a, [u8]>;

/// A connection that is opened when it is used.
pub struct Link {
    /// Where to.
    pub server: Server,
    /// On a Cluster, the key that tells which node it must lead to.
    key: String,
    open: Option<Open>,
    /// Whether Sentinels say that it must lead elsewhere by now.
    watch: Watch,
    /// When the password's file was read last, and which password was refused since.
    read_password: Instant,
    refused: Option<String>,
    /// The name of the server that it led to last, for messages.
    name: String,
    /// Tells it from others where the address policy is told.
    number: u64,
    /// When an exchange ended last, and when one did well.
    used: Instant,
    heard: Option<Instant>,
}

impl Link {
    /// Nothing is opened yet.
    pub fn new(server: Server, key: &str) -> Link {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let (key, name) = (key.to_string(), server.name());
        let (now, watch) = (Instant::now(), Watch::new());
        Link { server, key, open: None, watch, read_password: now, refused: None, name, number, used: now, heard: None }
    }

    /// Runs a command. After any failure but an answer of the server the connection
    /// is given up: what comes next on it could be the answer to something older.
    /// The command may be sent twice, see [`Link::run`].
    pub fn query(&mut self, command: &redis::Cmd) -> Result<Value, Error> {
        self.query_raw(command).map_err(|failure| self.explain(failure))
    }

    /// The same for a command that not every server or account may do: `None` if it is refused.
    pub fn query_if_let(&mut self, command: &redis::Cmd) -> Result<Option<Value>, Error> {
        match self.query_raw(command) {
            Err(Failure::Redis(error)) if is_refusal(&error) => Ok(None),
            answer => answer.map(Some).map_err(|failure| self.explain(failure)),
        }
    }

    /// Runs a command that may block for `at_most` on purpose. It is sent once.
    pub fn query_blocking(&mut self, command: &redis::Cmd, at_most: Duration) -> Result<Value, Failure> {
        let packed = command.get_packed_command();
        self.exchange_there(&|_| Cow::Borrowed(&packed), at_most + PATIENCE)
    }

    /// Runs a command that may block for `at_most` on purpose and whose answer is not
    /// wanted: it is not even sent (`CLIENT REPLY SKIP`). The answer is that of `then`.
    /// A server that sends the first one's all the same, or anything else that is not a
    /// number, costs the connection: more may come on it.
    pub fn query_unheard(&mut self, command: &Cmd, then: &Cmd, at_most: Duration) -> Result<Value, Failure> {
        let mut packed = redis::cmd("CLIENT").arg("REPLY").arg("SKIP").get_packed_command();
        command.write_packed_command(&mut packed);
        then.write_packed_command(&mut packed);
        let answer = self.exchange_there(&|_| Cow::Borrowed(&packed), at_most + UNHEARD);
        if !matches!(answer, Ok(Value::Int(_))) {
            self.give_up();
        }
        answer
    }

    /// Runs a move on all keys of the queue. If the connection breaks that nobody had used for a
    /// while, the move is sent again on a fresh one. None is harmed by being made twice: claims
    /// and settlements are numbered, a message that has been moved is not found in its old place
    /// again, and an agent that registers twice leaves a number that has nothing in flight.
    pub fn run(&mut self, script: &Move, keys: &[String], arguments: &Arguments) -> Result<Value, Error> {
        let call = |name: &str, script: &str, raise: u64| {
            let mut command = redis::cmd(name);
            command.arg(script).arg(keys.len()).arg(keys);
            arguments.each(raise, |argument| {
                command.arg(argument);
            });
            Cow::Owned(command.get_packed_command())
        };
        let answer = match self.query_packed(&|raise| call("EVALSHA", &script.sha, raise)) {
            Err(Failure::Redis(error)) if wire_text(&error).contains("NOSCRIPT") => {
                self.query_packed(&|raise| call("EVAL", &script.text, raise))
            }
            answer => answer,
        };
        if arguments.has_seen()
            && answer.is_ok()
            && let Some(open) = &mut self.open
        {
            open.knows_seen = true;
        }
        answer.map_err(|failure| self.explain(failure))
    }

    /// Why a command failed, in our own words.
    pub fn explain(&self, failure: Failure) -> Error {
        match failure {
            Failure::Redis(error) => self.server.explain(&self.name, error),
            Failure::Ours(error) => error,
        }
    }

    fn query_raw(&mut self, command: &redis::Cmd) -> Result<Value, Failure> {
        let packed = command.get_packed_command();
        self.query_packed(&|_| Cow::Borrowed(&packed))
    }

    fn query_packed(&mut self, packed: Packed) -> Result<Value, Failure> {
        let was_idle = self.open.is_some() && self.used.elapsed() >= IDLE;
        match self.exchange_there(packed, PATIENCE) {
            Err(Failure::Redis(error)) if was_idle && error.is_io_error() && !error.is_timeout() => {
                self.exchange_there(packed, PATIENCE)
            }
            answer => answer,
        }
    }

    /// The same as [`Link::exchange`], but sent again where the queue is if it has moved: what was sent to
    /// the wrong node of a Cluster has done nothing there.
    fn exchange_there(&mut self, packed: Packed, patience: Duration) -> Result<Value, Failure> {
        match self.exchange(packed, patience) {
            Err(Failure::Redis(error)) if is_answer(&error) && is_elsewhere(&wire_text(&error)) => {
                self.give_up();
                self.exchange(packed, patience)
            }
            answer => answer,
        }
    }

    /// Sends once, and hears one answer.
    fn exchange(&mut self, packed: Packed, patience: Duration) -> Result<Value, Failure> {
        self.leave_if_demoted();
        self.renew_password();
        let heard = self.heard;
        let open = self.connection().map_err(Failure::Ours)?;
        // Another server may answer now, which has lost what this agent knows of what others were given.
        let raise = match heard {
            Some(heard) if !open.knows_seen => heard.elapsed().as_micros() as u64 + UNSEEN,
            _ => 0,
        };
        let connection = &mut open.connection;
        let answer = connection
            .set_read_timeout(patience)
            .map_err(redis::RedisError::from)
            .and_then(|()| connection.ask(&packed(raise)));
        self.used = Instant::now();
        let keeps = match &answer {
            Ok(_) => {
                self.heard = Some(self.used);
                self.server.entry.served();
                true
            }
            Err(error) => is_answer(error) && !may_be_elsewhere(&wire_text(error)),
        };
        if !keeps {
            self.give_up();
        }
        answer.map_err(Failure::Redis)
    }

    /// Passwords that expire are changed in their file in time; the connection would end with the old one.
    fn renew_password(&mut self) {
        let Some(open) = &mut self.open else { return };
        if !self.server.has_password_file() || self.read_password.elapsed() < READ_PASSWORD_EVERY {
            return;
        }
        self.read_password = Instant::now();
        // One that cannot be read may be in the midst of a change.
        let Ok(password) = self.server.password() else { return };
        if open.password == password {
            return;
        }
        let Ok(url) = self.server.read_url() else { return };
        match open.connection.log_in(&url.access.login) {
            Ok(()) => {
                debug!("logged in to {} anew, as the password in its file has changed", open.name);
                open.password = password;
            }
            Err(error) if is_answer(&error) => {
                if self.refused != password {
                    warn!(
                        "{} refuses the password that is now in '--redis-password-file'; this connection stays logged \
                         in with the one before, and tries on",
                        open.name
                    );
                }
                self.refused = password;
            }
            Err(_) => self.give_up(),
        }
    }

    /// A master that others have taken the place of may not know it, and answer as before. What one connection
    /// learns all of an agent know: it must not claim from one master and settle with another.
    fn leave_if_demoted(&mut self) {
        let Some(open) = self.open.as_ref().filter(|_| self.server.has_sentinels()) else { return };
        if self.server.entry.knows_newer(open.epoch) {
            debug!("{} is no master any more, as another connection has learned", open.name);
            self.give_up();
        } else if let Some(other) = self.watch.has_other(&self.server, open) {
            debug!("{} is no master any more, by its Sentinels: that is at {other}", open.name);
            self.give_up();
        }
    }

    fn give_up(&mut self) {
        self.open = None;
        if let Some(own) = &self.server.own {
            own.lost(self.number);
        }
    }

    fn connection(&mut self) -> Result<&mut Open, Error> {
        if self.open.is_none() {
            let mut open = locate(&self.server, &self.key)?;
            self.server.add_ports(&mut open)?;
            if let Some(own) = &self.server.own {
                own.connected(self.number, std::mem::take(&mut open.addresses));
            }
            self.name.clone_from(&open.name);
            open.knows_seen = self.heard.is_none();
            self.open = Some(open);
        }
        Ok(self.open.as_mut().expect("just opened"))
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.give_up();
    }
}

/// Why a command failed, before it is put into words.
pub enum Failure {
    /// The client or the server said so.
    Redis(redis::RedisError),
    /// The connection could not be opened.
    Ours(Error),
}
