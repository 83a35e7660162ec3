//! Delivering over `ws` and `wss`: one connection for a message, no subprotocol, no extension. In the
//! handshake the envelope's headers, then one binary frame and a close frame with 1000, in one write if
//! they are small; then it is waited for the recipient's close frame, which is the nearest to an answer that
//! there is. Its code is for `policy` to judge.
//!
//! It promises that all that is received is bounded, that data is passed over and pings are answered while
//! it waits, that a close frame is heard while the message is not read, and that the code of a close that
//! came is never forgotten because of what followed it. When a message went out and no close
//! frame came, the words say that it may have arrived.
//!
//! Nothing is left of an attempt when it ends, and no request is sent twice: no connection was idle before.

mod handshake;

use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ring::rand::{SecureRandom, SystemRandom};
use ureq::http::Uri;
use ureq::{Error, Timeout};

use super::connector::{Connector, Goal};
use super::course::{Course, Parcel, Reply};
use super::redirect::not_followed;
use super::resolver::Resolver;
use super::stream::Stream;
use super::trouble::{Patience, failed, shorten};
use crate::frames::{self, Close, Event, Head, Reader};
use crate::policy::{Attempt, Failure};
use handshake::{ask, read_head, request};

/// The most that may come after the handshake: what ACA-Py takes for a message, so that an answer to
/// one may pass by before the close frame.
const MAX_RECEIVED: usize = 4 << 20;

/// So much of a message is masked and written at a time. A multiple of four, for the mask.
const PIECE: usize = 16 * 1024;

/// How long the recipient is given to end the connection after its close frame. Who ends it first has to
/// remember it for a minute, which is not for the one that has many (RFC 6455, section 7.1.1).
const FAREWELL: Duration = Duration::from_millis(250);

const MAY_HAVE_ARRIVED: &str = "the message may have arrived";

/// Delivers over WebSocket; one for all workers.
pub(super) struct WebSocket {
    pub(super) connector: Arc<Connector>,
    pub(super) resolver: Resolver,
    pub(super) patience: Patience,
}

impl WebSocket {
    /// One connection with one message, and what it came to.
    pub(super) fn post(&self, course: &Course, parcel: &Parcel) -> Reply {
        self.try_post(course, parcel).unwrap_or_else(Reply::Attempt)
    }

    fn try_post(&self, course: &Course, parcel: &Parcel) -> Result<Reply, Attempt> {
        let uri = &course.uri;
        let (stream, early) = match self.open(course, parcel)? {
            Opened::Yes(stream, early) => (stream, early),
            Opened::No(reply) => return Ok(reply),
        };
        let mut dialogue = Dialogue { stream, heard: Heard::default() };
        dialogue.heard.take(&early);
        let (sent, ended) = match dialogue.send_message(parcel.payload) {
            Ok(sent) => (sent, dialogue.wait_for_close()),
            Err(error) => (false, Err(error)),
        };
        if let Some(close) = dialogue.heard.close.take() {
            dialogue.take_leave(course.deadline);
            let reason = shorten(close.reason.trim());
            return Ok(Reply::Attempt(Attempt::Closed { code: close.code, reason, sent }));
        }
        Err(self.unanswered(ended, sent, dialogue.heard.fault, uri))
    }

    /// The handshake alone; what it came to if it opened nothing.
    pub(super) fn try_opening(&self, course: &Course, parcel: &Parcel) -> Result<(), Attempt> {
        match self.open(course, parcel)? {
            Opened::Yes(..) => Ok(()),
            Opened::No(Reply::Attempt(attempt) | Reply::Redirect { attempt, .. }) => Err(attempt),
        }
    }

    fn open(&self, course: &Course, parcel: &Parcel) -> Result<Opened, Attempt> {
        let uri = &course.uri;
        let key = BASE64_STANDARD.encode(random::<16>());
        let request = request(uri, parcel, course.left_origin, &key).map_err(|reason| Attempt::Refused { reason })?;
        let mut stream = self.connect(course).map_err(|error| self.patience.attempt(error, uri))?;
        let mut answer = ask(&mut stream, &request).map_err(|error| self.patience.attempt(error, uri))?;
        let head = read_head(&answer, uri)?;
        if head.status != 101 {
            let note = not_followed(head.status);
            let attempt = Attempt::Unopened { status: head.status, retry_after: head.retry_after, note };
            return Ok(Opened::No(match head.location {
                Some(location) => Reply::Redirect { location, attempt },
                None => Reply::Attempt(attempt),
            }));
        }
        if let Some(fault) = head.fault(&key) {
            return Err(failed(Failure::Broken, &format!("no WebSocket: answer 101 {fault}"), uri));
        }
        Ok(Opened::Yes(stream, answer.split_off(head.length)))
    }

    fn connect(&self, course: &Course) -> Result<Stream, Error> {
        let now = Instant::now();
        let left = course.deadline.saturating_duration_since(now);
        let (within, reason) = match self.patience.connect < left {
            true => (self.patience.connect, Timeout::Connect),
            false => (left, Timeout::Global),
        };
        let addrs = self.resolver.of_endpoint(&course.uri, within)?;
        let goal = Goal { uri: &course.uri, addrs: &addrs, deadline: now + within, reason };
        let mut stream = self.connector.lead(&goal)?;
        stream.set_deadline(course.deadline.saturating_duration_since(Instant::now()), Timeout::Global);
        Ok(stream)
    }

    /// No close frame came.
    fn unanswered(&self, ended: Result<(), Error>, sent: bool, fault: Option<String>, uri: &Uri) -> Attempt {
        let within = self.patience.whole;
        let (failure, words) = match (fault, ended, sent) {
            (Some(fault), _, _) => (Failure::Broken, fault),
            (None, Err(Error::Timeout(_)), true) => (Failure::Timeout, format!("no close frame within {within:?}")),
            (None, Err(Error::Timeout(_)), false) => {
                (Failure::Timeout, format!("the message was not taken whole within {within:?}"))
            }
            (None, _, true) => (Failure::Broken, "connection ended without a close frame".to_string()),
            (None, _, false) => (Failure::Broken, "connection ended before the whole message was sent".to_string()),
        };
        let words = if sent { format!("{words}: {MAY_HAVE_ARRIVED}") } else { words };
        failed(failure, &words, uri)
    }
}

/// What a handshake came to.
enum Opened {
    /// With what came behind the answer at once.
    Yes(Stream, Vec<u8>),
    No(Reply),
}

/// What is said after the handshake.
struct Dialogue {
    stream: Stream,
    heard: Heard,
}

/// What has come of it.
#[derive(Default)]
struct Heard {
    reader: Reader,
    total: usize,
    /// To be answered.
    ping: Option<Vec<u8>>,
    close: Option<Close>,
    /// What came that may not.
    fault: Option<String>,
}

impl Heard {
    /// Whether it was the last that matters.
    fn take(&mut self, mut bytes: &[u8]) -> bool {
        self.total += bytes.len();
        while self.close.is_none() && self.fault.is_none() {
            match self.reader.next(&mut bytes) {
                Ok(Some(Event::Ping(payload))) => self.ping = Some(payload),
                Ok(Some(Event::Close(close))) => self.close = Some(close),
                Ok(None) if self.total > MAX_RECEIVED => {
                    self.fault = Some(format!("no close frame within {} MB", MAX_RECEIVED >> 20));
                }
                Ok(None) => return false,
                Err(fault) => self.fault = Some(format!("what came is not WebSocket: {fault}")),
            }
        }
        true
    }
}

impl Dialogue {
    /// Sends message and close frame; whether they went out whole before anything ended it.
    fn send_message(&mut self, payload: &[u8]) -> Result<bool, Error> {
        let mask = random();
        let mut out = Vec::with_capacity(PIECE.min(payload.len()) + 4 * Head::MAX);
        Head::of(frames::BINARY, payload.len(), Some(mask)).write(&mut out);
        let mut heard = [0; 4096];
        let mut pieces = payload.chunks(PIECE).peekable();
        loop {
            if let Some(piece) = pieces.next() {
                let at = out.len();
                out.extend_from_slice(piece);
                frames::apply_mask(&mut out[at..], mask);
            }
            // What has come before the message is whole is said of something else.
            let amount = self.stream.look(&mut heard);
            if self.heard.take(&heard[..amount]) {
                return Ok(false);
            }
            let is_last = pieces.peek().is_none();
            if is_last {
                frames::write(frames::CLOSE, &frames::NORMAL.to_be_bytes(), Some(random()), &mut out);
            }
            if self.stream.send(&out, &mut |bytes| self.heard.take(bytes))? || self.stream.is_cut() {
                return Ok(false);
            }
            if is_last {
                return Ok(true);
            }
            out.clear();
        }
    }

    /// Until it came, or may come no more.
    fn wait_for_close(&mut self) -> Result<(), Error> {
        let mut bytes = [0; 4096];
        while self.heard.close.is_none() && self.heard.fault.is_none() {
            if let Some(ping) = self.heard.ping.take() {
                let mut pong = Vec::new();
                frames::write(frames::PONG, &ping, Some(random()), &mut pong);
                self.stream.send(&pong, &mut |bytes| self.heard.take(bytes))?;
                continue;
            }
            match self.stream.receive(&mut bytes)? {
                0 => return Ok(()),
                amount => self.heard.take(&bytes[..amount]),
            };
        }
        Ok(())
    }

    /// Waits a moment for the end of the connection.
    fn take_leave(&mut self, deadline: Instant) {
        let left = deadline.saturating_duration_since(Instant::now());
        self.stream.set_deadline(left.min(FAREWELL), Timeout::Global);
        let mut bytes = [0; 4096];
        while let Ok(amount @ 1..) = self.stream.receive(&mut bytes) {
            self.heard.total += amount;
            if self.heard.total > MAX_RECEIVED {
                return;
            }
        }
    }
}

/// Bytes that nobody can foretell, for keys and masks.
fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).expect("the system gives random bytes");
    bytes
}
