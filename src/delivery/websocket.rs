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

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ring::rand::{SecureRandom, SystemRandom};
use ureq::http::Uri;
use ureq::{Error, Timeout};

use super::connector::{Connector, Goal};
use super::course::{Course, Parcel, Reply, USER_AGENT};
use super::exchange::{self, MAX_HEADERS, is_interim, status_of};
use super::redirect::not_followed;
use super::resolver::Resolver;
use super::stream::Stream;
use super::trouble::{Patience, Trouble, failed, shorten};
use crate::frames::{self, Close, Event, Head, Reader};
use crate::headers::belongs_to_handshake;
use crate::policy::{Attempt, Failure, parse_retry_after};

/// The most that may come after the handshake: what ACA-Py takes for a message, so that an answer to
/// one may pass by before the close frame.
const MAX_RECEIVED: usize = 4 << 20;

/// So much of a message is masked and written at a time. A multiple of four, for the mask.
const PIECE: usize = 16 * 1024;

/// How long the recipient is given to end the connection after its close frame. Who ends it first has to
/// remember it for a minute, which is not for the one that has many (RFC 6455, section 7.1.1).
const FAREWELL: Duration = Duration::from_millis(250);

/// The headers that an answer to a handshake may have.
const N_HEADERS: usize = 128;

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

/// The request of a handshake.
fn request(uri: &Uri, parcel: &Parcel, left_origin: bool, key: &str) -> Result<Vec<u8>, String> {
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let host = uri.host().unwrap_or_default();
    let host = uri.port_u16().map_or(host.to_string(), |port| format!("{host}:{port}"));
    let mut request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
    )
    .into_bytes();
    let mut has_user_agent = false;
    let mut add = |name: &str, value: &[u8]| request.extend([name.as_bytes(), b": ", value, b"\r\n"].concat());
    for &(name, value) in &parcel.headers {
        if parcel.sends(name, value, left_origin)? && !belongs_to_handshake(name) {
            has_user_agent |= name.eq_ignore_ascii_case("User-Agent");
            add(name, value);
        }
    }
    if let Some((name, id)) = parcel.id {
        add(name, id);
    }
    if !has_user_agent {
        add("User-Agent", USER_AGENT.as_bytes());
    }
    request.extend(b"\r\n");
    Ok(request)
}

/// Sends the request and receives the head of the answer, and what follows it at once; or as much as shows
/// that it can never be read. It is heard while the request is not read.
fn ask(stream: &mut Stream, request: &[u8]) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    stream.send(request, &mut |piece| {
        bytes.extend_from_slice(piece);
        status_of(&bytes).is_some_and(|status| status >= 300) || bytes.len() >= MAX_HEADERS
    })?;
    let mut piece = [0; 4096];
    let mut total = bytes.len();
    let mut has_new_line = true;
    loop {
        skip_interim(&mut bytes);
        let begins_otherwise = bytes.first().is_some_and(|byte| *byte != b'H');
        if begins_otherwise || bytes.len() >= MAX_HEADERS || has_new_line && is_whole(&bytes) {
            return Ok(bytes);
        }
        if total > exchange::MAX_RECEIVED {
            let words = format!("answer has no end within {} kB", exchange::MAX_RECEIVED / 1024);
            return Err(Trouble::failed(Failure::Broken, words).into());
        }
        let amount = stream.receive(&mut piece)?;
        if amount == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        // Else it cannot be whole now if it was not before, and need not be read from its beginning again.
        has_new_line = piece[..amount].contains(&b'\n');
        bytes.extend_from_slice(&piece[..amount]);
        total += amount;
    }
}

/// Whether a head can be read, or never can.
fn is_whole(bytes: &[u8]) -> bool {
    let mut headers = [httparse::EMPTY_HEADER; N_HEADERS];
    !matches!(httparse::Response::new(&mut headers).parse(bytes), Ok(httparse::Status::Partial))
}

/// Passes over interim answers, which mean nothing to us.
fn skip_interim(bytes: &mut Vec<u8>) {
    while is_interim(bytes) {
        let mut headers = [httparse::EMPTY_HEADER; N_HEADERS];
        let Ok(httparse::Status::Complete(length)) = httparse::Response::new(&mut headers).parse(bytes) else { return };
        bytes.drain(..length);
    }
}

/// What the head of an answer says.
struct AnswerHead {
    length: usize,
    status: u16,
    retry_after: Option<Duration>,
    location: Option<Result<String, &'static str>>,
    upgrade: String,
    connection: String,
    accept: String,
    /// A subprotocol or an extension, which nobody asked for.
    has_more: bool,
}

fn read_head(bytes: &[u8], uri: &Uri) -> Result<AnswerHead, Attempt> {
    let mut headers = [httparse::EMPTY_HEADER; N_HEADERS];
    let mut parsed = httparse::Response::new(&mut headers);
    let length = match parsed.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => Ok(length),
        Ok(httparse::Status::Partial) if bytes.len() < MAX_HEADERS => Err("it begins otherwise".to_string()),
        Ok(httparse::Status::Partial) => Err(format!("they are over {} kB", MAX_HEADERS / 1024)),
        Err(error) => Err(shorten(&error.to_string())),
    };
    let length = length.map_err(|words| match status_of(bytes) {
        // It counts whatever follows it.
        Some(status) => {
            let note = Some(format!("the answer's headers cannot be read: {words}"));
            Attempt::Unopened { status, retry_after: None, note }
        }
        None => failed(Failure::Broken, &format!("answer is not valid HTTP: {words}"), uri),
    })?;
    let all = |name: &str| {
        let found = parsed.headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name));
        found.map(|header| String::from_utf8_lossy(header.value).trim().to_string()).collect::<Vec<_>>()
    };
    let status = parsed.code.unwrap_or_default();
    let location = matches!(status, 307 | 308).then(|| match all("Location").first() {
        Some(location) if location.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(location.clone()),
        Some(_) => Err("redirect to an unreadable location"),
        None => Err("redirect without a location"),
    });
    Ok(AnswerHead {
        length,
        status,
        retry_after: all("Retry-After").first().and_then(|value| parse_retry_after(value, SystemTime::now())),
        location,
        upgrade: all("Upgrade").join(","),
        connection: all("Connection").join(","),
        accept: all("Sec-WebSocket-Accept").join(","),
        has_more: !all("Sec-WebSocket-Protocol").is_empty() || !all("Sec-WebSocket-Extensions").is_empty(),
    })
}

impl AnswerHead {
    /// Why this 101 begins no WebSocket.
    fn fault(&self, key: &str) -> Option<&'static str> {
        let has_word = |value: &str, word: &str| value.split(',').any(|part| part.trim().eq_ignore_ascii_case(word));
        if !has_word(&self.upgrade, "websocket") || !has_word(&self.connection, "upgrade") {
            Some("without 'Upgrade: websocket' and 'Connection: Upgrade'")
        } else if self.accept != frames::accept_key(key) {
            Some("with a wrong 'Sec-WebSocket-Accept'")
        } else if self.has_more {
            Some("with a subprotocol or an extension that was not offered")
        } else {
            None
        }
    }
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
