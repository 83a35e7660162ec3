//! A message as it is to be delivered: what ACA-Py pushes onto its queue, read as an [`Envelope`].
//!
//! Decoding accepts or explains; it cannot panic, whatever the bytes, and the
//! envelope keeps the bytes that came from the queue, which never change. What it
//! accepts can be sent: the endpoint is a URL that an HTTP request can carry, and
//! no header breaks HTTP. It leaves to others which addresses may be delivered to,
//! and everything about time.
//!
//! There are two wire formats, which may stand in one queue: each has a file beside
//! this one, and so has the endpoint, which is read once.

mod base64;
mod endpoint;
pub(crate) mod json;
mod msgpack;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use ureq::http::Uri;

use crate::headers::{belongs_to_connection, is_token};
use crate::text::excerpt;
pub use endpoint::{Endpoints, origin_of};
use endpoint::{Target, without_query};
use msgpack::HeaderEntries;

/// Longest endpoint accepted, in bytes. The HTTP server of ACA-Py itself takes
/// request lines of up to 8190 bytes, other servers' defaults are like it, and a
/// bound keeps what parsing allocates small.
pub const MAX_ENDPOINT: usize = 8192;

/// Longest host accepted, in bytes: a DNS name has at most 253, and a final dot.
/// Hosts become names of lanes, in memory and in the queue.
pub const MAX_HOST: usize = 254;

/// Most bytes of header names and values accepted in one envelope: eight times
/// what common servers take, and half of what ureq can buffer.
pub const MAX_HEADERS: usize = 64 * 1024;

/// How a message is written in the queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// As ACA-Py 0.7 writes, which has the queue built in.
    MessagePack,
    /// As the plugin `redis_events` writes for ACA-Py of today.
    Json,
}

impl Format {
    /// Which it is of these bytes, by the first of them: a MessagePack map never begins as JSON does.
    /// Bytes that are neither pass for MessagePack, which then says so.
    pub fn of(raw: &[u8]) -> Format {
        match raw.first() {
            Some(b'{' | b' ' | b'\t' | b'\n' | b'\r') => Format::Json,
            _ => Format::MessagePack,
        }
    }

    /// Which it most likely is at this key of Redis: ACA-Py 0.7 ends its key so, whatever its prefix.
    pub fn of_key(key: &str) -> Format {
        if key.ends_with(".outbound_transport") { Format::MessagePack } else { Format::Json }
    }

    /// `msgpack` or `json`.
    pub fn name(self) -> &'static str {
        match self {
            Format::MessagePack => "msgpack",
            Format::Json => "json",
        }
    }

    /// The content type that this ACA-Py gives to a packed message.
    pub fn content_type(self) -> &'static str {
        match self {
            Format::MessagePack => "application/ssi-agent-wire",
            Format::Json => "application/didcomm-envelope-enc",
        }
    }

    /// Writes what ACA-Py pushes for such a message, byte for byte. Nothing is
    /// checked; decoding the result tells whether it can be delivered.
    ///
    /// # Panics
    ///
    /// If one of the lengths is over 4 GiB, which MessagePack cannot express.
    /// Redis ends at 512 MiB.
    pub fn encode<'a, H>(self, headers: H, endpoint: &str, payload: &[u8]) -> Vec<u8>
    where
        H: IntoIterator<Item = (&'a str, &'a str)>,
        H::IntoIter: ExactSizeIterator,
    {
        match self {
            Format::MessagePack => msgpack::write(headers, endpoint, payload),
            Format::Json => json::write(headers, endpoint, payload),
        }
    }
}

/// A message as it is to be delivered.
#[derive(Clone, PartialEq, Eq)]
pub struct Envelope {
    /// What the queue gave out.
    raw: Arc<Vec<u8>>,
    /// What had to be decoded of it: of a JSON message the parts, one behind the other; else nothing.
    decoded: Vec<u8>,
    parts: Parts,
    /// For a message that names none.
    content_type: Option<&'static str>,
    target: Arc<Target>,
}

impl Envelope {
    /// Reads what ACA-Py pushed.
    ///
    /// # Errors
    ///
    /// [`Malformed`], with the bytes, if they are not one whole MessagePack map or JSON
    /// object with an endpoint and a payload that HTTP can carry.
    pub fn decode(raw: Vec<u8>) -> Result<Envelope, Malformed> {
        Envelope::decode_with(raw, &mut Endpoints::default())
    }

    /// The same for one message of many: endpoints that were read before need not be
    /// read again, which is a tenth of all work on a message.
    ///
    /// # Errors
    ///
    /// As [`Envelope::decode`].
    pub fn decode_with(raw: Vec<u8>, endpoints: &mut Endpoints) -> Result<Envelope, Malformed> {
        let read = match Format::of(&raw) {
            Format::MessagePack => msgpack::read(&raw).map(|parts| (Vec::new(), parts)),
            Format::Json => json::read(&raw),
        };
        let checked = read.and_then(|(decoded, parts)| {
            let bytes = if decoded.is_empty() { &raw } else { &decoded };
            let rules = parts.headers.check(bytes)?;
            let target = endpoints.read(&bytes[parts.endpoint.clone()], rules.has_authorization)?;
            let content_type = (!rules.has_content_type).then(|| content_type_of(&bytes[parts.payload.clone()]));
            Ok((decoded, parts, content_type, target))
        });
        match checked {
            Ok((decoded, parts, content_type, target)) => {
                Ok(Envelope { raw: Arc::new(raw), decoded, parts, content_type, target })
            }
            Err(reason) => Err(Malformed { raw, reason }),
        }
    }

    /// [`Format::encode`] for [`Format::MessagePack`].
    ///
    /// # Panics
    ///
    /// As there.
    pub fn encode<'a, H>(headers: H, endpoint: &str, payload: &[u8]) -> Vec<u8>
    where
        H: IntoIterator<Item = (&'a str, &'a str)>,
        H::IntoIter: ExactSizeIterator,
    {
        Format::MessagePack.encode(headers, endpoint, payload)
    }

    /// How it was written in the queue.
    pub fn format(&self) -> Format {
        Format::of(&self.raw)
    }

    /// What the places of the parts are places in.
    fn bytes(&self) -> &[u8] {
        if self.decoded.is_empty() { &self.raw } else { &self.decoded }
    }

    /// What to POST to: the endpoint in its canonical spelling, without fragment
    /// and without user and password.
    pub fn uri(&self) -> &Uri {
        &self.target.uri
    }

    /// The endpoint as it was pushed. It may hold a password and control
    /// characters: not for logs, see [`Envelope::endpoint_for_people`].
    pub fn endpoint(&self) -> &str {
        str::from_utf8(&self.bytes()[self.parts.endpoint.clone()]).expect("checked when decoding")
    }

    /// The endpoint as it may be shown and logged: canonical, hence printable
    /// ASCII, without user and password, `***` for its query, which may be one,
    /// and cut after 200 characters.
    pub fn endpoint_for_people(&self) -> String {
        let mut shown = without_query(&self.target.uri.to_string());
        if shown.len() > 200 {
            shown.truncate(200);
            shown.push_str("...");
        }
        shown
    }

    /// Scheme, host and port, as `http://host:port`: lower case, the port always
    /// written out. The name of the message's lane.
    pub fn origin(&self) -> &str {
        &self.target.origin
    }

    /// The headers to send: those that it has, and a `Content-Type` if that is not among them.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let added = self.content_type.map(|value| ("Content-Type", value.as_bytes()));
        self.own_headers().chain(added)
    }

    /// The headers that it has, in the order in which they were pushed, repetitions
    /// included. Names and values are such as HTTP allows. Those that belong to a
    /// connection and not to a message (`Host`, `Content-Length`, …) are left out.
    /// A user in the endpoint comes last, as `Authorization`, unless the envelope
    /// has a header of that name.
    pub fn own_headers(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let from_endpoint = self.target.authorization.as_deref();
        self.parts
            .headers
            .iter(self.bytes())
            .filter(|(name, _)| !belongs_to_connection(name))
            .map(|(name, value)| (str::from_utf8(name).expect("checked when decoding"), value))
            .chain(from_endpoint.map(|value| ("Authorization", value.as_bytes())))
    }

    /// The body to send.
    pub fn payload(&self) -> &[u8] {
        &self.bytes()[self.parts.payload.clone()]
    }

    /// Attempts that another program made before it put the message back onto the
    /// queue (`retries`, of the plugin's deliverer and of the aca-deliver prototype). None
    /// if that is negative or no integer: a message is not to die of a bad counter, and
    /// at worst it gets some attempts more.
    pub fn retries(&self) -> u32 {
        self.parts.retries
    }

    /// Size of the raw bytes.
    pub fn size(&self) -> usize {
        self.raw.len()
    }

    /// Bytes of memory that it takes: those, and what was decoded of them.
    pub fn held_size(&self) -> usize {
        self.raw.len() + self.decoded.len()
    }

    /// The bytes that ACA-Py pushed.
    pub fn raw(&self) -> &[u8] {
        &self.raw
    }

    /// Gives the bytes that ACA-Py pushed back.
    pub fn into_raw(self) -> Vec<u8> {
        Arc::unwrap_or_clone(self.raw)
    }

    /// The same bytes once more, shared and not copied.
    pub fn share_raw(&self) -> Arc<Vec<u8>> {
        self.raw.clone()
    }
}

/// Shows neither payload nor header values nor passwords, for it may end in a log.
impl fmt::Debug for Envelope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Envelope")
            .field("endpoint", &self.endpoint_for_people())
            .field("n_headers", &self.parts.headers.n_entries)
            .field("payload_size", &self.parts.payload.len())
            .field("retries", &self.parts.retries)
            .finish_non_exhaustive()
    }
}

/// Bytes from the queue that cannot be delivered, and why not.
#[derive(Clone, PartialEq, Eq)]
pub struct Malformed {
    /// The bytes, untouched.
    pub raw: Vec<u8>,
    /// For people; short and printable. Never quotes payload, header values or passwords.
    pub reason: String,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

/// Leaves the bytes out, for it may end in a log.
impl fmt::Debug for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Malformed").field("size", &self.raw.len()).field("reason", &self.reason).finish()
    }
}

impl std::error::Error for Malformed {}

/// Where the parts of a message are: in its bytes, or in what was decoded of them.
#[derive(Clone, PartialEq, Eq)]
struct Parts {
    payload: Range<usize>,
    endpoint: Range<usize>,
    headers: HeaderEntries,
    retries: u32,
}

/// What HTTP allows of headers, asked one by one.
#[derive(Default)]
struct HeaderRules {
    has_authorization: bool,
    has_content_type: bool,
    n_bytes: usize,
}

impl HeaderRules {
    /// A name as text. A bad one may be a whole header line, so the reason
    /// quotes no more than what comes before the first bad character.
    fn name<'a>(&mut self, name: &'a [u8]) -> Result<&'a str, String> {
        self.n_bytes += name.len();
        match name.iter().position(|&byte| !is_token(byte)) {
            None if name.is_empty() => Err("a header's name is empty".into()),
            None => Ok(str::from_utf8(name).expect("these characters are ASCII")),
            Some(at) => {
                let (good, byte) = (String::from_utf8_lossy(&name[..at]), name[at]);
                let good = bounded(&good);
                Err(format!("name of header \"{good}...\" has byte {byte:#04x}, not allowed"))
            }
        }
    }

    /// The value of the header of this name.
    fn value(&mut self, name: &str, value: &[u8]) -> Result<(), String> {
        self.n_bytes += value.len();
        if let Some(byte) = value.iter().find(|&&byte| !is_field_content(byte)) {
            let name = bounded(name);
            return Err(format!("value of header {name} has byte {byte:#04x}, not allowed"));
        }
        if name.eq_ignore_ascii_case("Authorization") {
            self.has_authorization = true;
            // The HTTP client reads this one, and sends nothing if it cannot.
            if let Some(byte) = value.iter().find(|byte| !byte.is_ascii()) {
                return Err(format!("value of header {name} has byte {byte:#04x}, only ASCII is allowed"));
            }
        }
        self.has_content_type |= name.eq_ignore_ascii_case("Content-Type");
        Ok(())
    }

    /// When all have been asked for.
    fn end(self) -> Result<HeaderRules, String> {
        match self.n_bytes {
            n_bytes if n_bytes > MAX_HEADERS => Err(format!("headers of {n_bytes} bytes, {MAX_HEADERS} are allowed")),
            _ => Ok(self),
        }
    }
}

/// The beginning of a text from outside, as it may stand in a reason.
fn bounded(text: &str) -> String {
    excerpt(text, 80)
}

/// What a message is that does not say so: ACA-Py's webhooks do not, and are JSON. By its first byte,
/// since a recipient reads it in any case.
fn content_type_of(payload: &[u8]) -> &'static str {
    match payload.first() {
        Some(b'{' | b'[') => "application/json",
        _ => "application/octet-stream",
    }
}

/// A character of a header's value (RFC 9110, section 5.5), which control
/// characters are not, CR, LF and NUL above all.
fn is_field_content(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

#[cfg(test)]
mod tests;
