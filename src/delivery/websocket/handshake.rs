//! The opening handshake (RFC 6455, section 4): its request, and the head of the answer.
//!
//! It promises that all that is received before the head is whole is bounded, that a refusal is heard while the
//! request is not read, and that a status that came counts whatever follows it. It leaves to its user
//! what is done about an answer.

use std::io;
use std::time::{Duration, SystemTime};

use ureq::Error;
use ureq::http::Uri;

use crate::delivery::course::{Parcel, USER_AGENT};
use crate::delivery::exchange::{MAX_HEADERS, MAX_RECEIVED, is_interim, status_of};
use crate::delivery::stream::Stream;
use crate::delivery::trouble::{Trouble, failed, shorten};
use crate::frames;
use crate::headers::belongs_to_handshake;
use crate::policy::{Attempt, Failure, parse_retry_after};

/// The headers that an answer to a handshake may have.
const N_HEADERS: usize = 128;

/// The request of a handshake.
pub(super) fn request(uri: &Uri, parcel: &Parcel, left_origin: bool, key: &str) -> Result<Vec<u8>, String> {
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
pub(super) fn ask(stream: &mut Stream, request: &[u8]) -> Result<Vec<u8>, Error> {
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
        if total > MAX_RECEIVED {
            let words = format!("answer has no end within {} kB", MAX_RECEIVED / 1024);
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
pub(super) struct AnswerHead {
    pub(super) length: usize,
    pub(super) status: u16,
    pub(super) retry_after: Option<Duration>,
    pub(super) location: Option<Result<String, &'static str>>,
    upgrade: String,
    connection: String,
    accept: String,
    /// A subprotocol or an extension, which nobody asked for.
    has_more: bool,
}

pub(super) fn read_head(bytes: &[u8], uri: &Uri) -> Result<AnswerHead, Attempt> {
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
    pub(super) fn fault(&self, key: &str) -> Option<&'static str> {
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
