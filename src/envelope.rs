//! The wire format, both ways: what ACA-Py pushes onto its queue, read as an [`Envelope`].
//!
//! Decoding accepts or explains; it cannot panic, whatever the bytes, and copies
//! neither payload nor headers: both stay where they are in the bytes that came
//! from the queue, which the envelope keeps and which never change. What it
//! accepts can be sent: the endpoint is a URL that an HTTP request can carry, and
//! no header breaks HTTP. It leaves to others which addresses may be delivered to,
//! and everything about time.
//!
//! Read is MessagePack of today and of before 2013, which had one type for text
//! and bytes. As in Python, the last of several equal keys counts, so a value is
//! judged only when the whole map has been read.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rmp::Marker;
use rmp::decode::{self, Bytes};
use rmp::encode::{self, ByteBuf};
use ureq::http::Uri;
use url::Url;

use crate::headers::{belongs_to_connection, is_token};

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

/// A message as it is to be delivered.
#[derive(Clone, PartialEq, Eq)]
pub struct Envelope {
    /// What the queue gave out; the ranges below are parts of it.
    raw: Arc<Vec<u8>>,
    payload: Range<usize>,
    /// UTF-8, as checked when decoding.
    endpoint: Range<usize>,
    headers: HeaderEntries,
    retries: u32,
    target: Arc<Target>,
}

impl Envelope {
    /// Reads what ACA-Py pushed.
    ///
    /// # Errors
    ///
    /// [`Malformed`], with the bytes, if they are not one whole MessagePack map
    /// with an `endpoint` and a `payload` that HTTP can carry.
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
        match Parts::read(&raw, endpoints) {
            Ok(Parts { payload, endpoint, headers, retries, target }) => {
                let raw = Arc::new(raw);
                Ok(Envelope { raw, payload, endpoint, headers, retries, target })
            }
            Err(reason) => Err(Malformed { raw, reason }),
        }
    }

    /// Writes what ACA-Py pushes for such a message, byte for byte: three keys in
    /// the order headers, endpoint, payload; the payload as binary. Nothing is
    /// checked; decoding the result tells whether it can be delivered.
    ///
    /// # Panics
    ///
    /// If one of the lengths is over 4 GiB, which MessagePack cannot express.
    /// Redis ends at 512 MiB.
    pub fn encode<'a, H>(headers: H, endpoint: &str, payload: &[u8]) -> Vec<u8>
    where
        H: IntoIterator<Item = (&'a str, &'a str)>,
        H::IntoIter: ExactSizeIterator,
    {
        // 64 bytes hold the keys, all lengths, and the one header that ACA-Py sends.
        let mut buf = ByteBuf::with_capacity(payload.len() + endpoint.len() + 64);
        let headers = headers.into_iter();
        write_map_len(&mut buf, 3);
        write_text(&mut buf, "headers");
        write_map_len(&mut buf, headers.len());
        for (name, value) in headers {
            write_text(&mut buf, name);
            write_text(&mut buf, value);
        }
        write_text(&mut buf, "endpoint");
        write_text(&mut buf, endpoint);
        write_text(&mut buf, "payload");
        encode::write_bin_len(&mut buf, length(payload.len())).expect("memory takes all writes");
        buf.as_mut_vec().extend_from_slice(payload);
        buf.into_vec()
    }

    /// What to POST to: the endpoint in its canonical spelling, without fragment
    /// and without user and password.
    pub fn uri(&self) -> &Uri {
        &self.target.uri
    }

    /// The endpoint as it was pushed. It may hold a password and control
    /// characters: not for logs, see [`Envelope::endpoint_for_people`].
    pub fn endpoint(&self) -> &str {
        str::from_utf8(&self.raw[self.endpoint.clone()]).expect("checked when decoding")
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

    /// The headers to send, in the order in which they were pushed, repetitions
    /// included. Names and values are such as HTTP allows. Those that belong to a
    /// connection and not to a message (`Host`, `Content-Length`, …) are left out.
    /// A user in the endpoint comes last, as `Authorization`, unless the envelope
    /// has a header of that name.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let from_endpoint = self.target.authorization.as_deref();
        self.headers
            .iter(&self.raw)
            .filter(|(name, _)| !belongs_to_connection(name))
            .map(|(name, value)| (str::from_utf8(name).expect("checked when decoding"), value))
            .chain(from_endpoint.map(|value| ("Authorization", value.as_bytes())))
    }

    /// The body to send.
    pub fn payload(&self) -> &[u8] {
        &self.raw[self.payload.clone()]
    }

    /// Attempts that another program made before it put the message back onto the
    /// queue (the key `retries` of the aca-deliver prototype). None if that is
    /// negative or no integer: a message is not to die of a bad counter, and at
    /// worst it gets some attempts more.
    pub fn retries(&self) -> u32 {
        self.retries
    }

    /// Size of the raw bytes.
    pub fn size(&self) -> usize {
        self.raw.len()
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
            .field("n_headers", &self.headers.n_entries)
            .field("payload_size", &self.payload.len())
            .field("retries", &self.retries)
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

/// All of an envelope but its bytes.
struct Parts {
    payload: Range<usize>,
    endpoint: Range<usize>,
    headers: HeaderEntries,
    retries: u32,
    target: Arc<Target>,
}

impl Parts {
    /// The error is the reason for people.
    fn read(raw: &[u8], endpoints: &mut Endpoints) -> Result<Parts, String> {
        let mut reader = Reader::new(raw, 0);
        let n_entries = match reader.head() {
            Ok(Value::Map { n_entries, .. }) => n_entries,
            _ if raw.is_empty() => return Err("empty: not a single byte".into()),
            _ if raw[0] == b'{' => {
                return Err("not a MessagePack map; it begins with '{' as JSON does".into());
            }
            Ok(other) => return Err(format!("not a map but {}", other.kind())),
            Err(reason) => return Err(reason),
        };
        let (mut headers, mut endpoint, mut payload, mut retries) = (None, None, None, None);
        for _ in 0..n_entries {
            let (key, value) = (reader.value()?, reader.value()?);
            let Value::Bytes(key) = key else { continue };
            match &raw[key] {
                b"headers" => headers = Some(value),
                b"endpoint" => endpoint = Some(value),
                b"payload" => payload = Some(value),
                b"retries" => retries = Some(value),
                _ => {}
            }
        }
        match reader.n_left() {
            0 => {}
            n_left => {
                return Err(format!("more after the map: {n_left} of {} bytes", raw.len()));
            }
        }

        let payload = payload.ok_or("no payload")?.bytes("payload")?;
        let endpoint = endpoint.ok_or("no endpoint")?.bytes("endpoint")?;
        let headers = match headers {
            None | Some(Value::Nil) => HeaderEntries { first: 0, n_entries: 0 },
            Some(Value::Map { first, n_entries }) => HeaderEntries { first, n_entries },
            Some(other) => return Err(format!("headers is {}, not a map", other.kind())),
        };
        let has_authorization = headers.check(raw)?;
        let target = endpoints.read(&raw[endpoint.clone()], has_authorization)?;
        let retries = match retries {
            Some(Value::Integer(n)) if n > 0 => u32::try_from(n).unwrap_or(u32::MAX),
            _ => 0,
        };
        Ok(Parts { payload, endpoint, headers, retries, target })
    }
}

/// Endpoints that were read lately, and what they came to.
#[derive(Default)]
pub struct Endpoints {
    known: HashMap<Box<[u8]>, Arc<Target>>,
}

/// So many endpoints are remembered, and so long may each be: some 2 MB at most.
const KNOWN_ENDPOINTS: usize = 4096;
const KNOWN_LENGTH: usize = 200;

impl Endpoints {
    fn read(&mut self, endpoint: &[u8], has_authorization: bool) -> Result<Arc<Target>, String> {
        if let Some(target) = self.known.get(endpoint) {
            return Ok(target.clone());
        }
        let target = Arc::new(Target::read(endpoint, has_authorization)?);
        // With a user and password it depends on the headers, too.
        if endpoint.len() <= KNOWN_LENGTH && !endpoint.contains(&b'@') {
            if self.known.len() >= KNOWN_ENDPOINTS {
                self.known.clear();
            }
            self.known.insert(endpoint.into(), target.clone());
        }
        Ok(target)
    }
}

/// What the endpoint means.
#[derive(Clone, PartialEq, Eq)]
struct Target {
    uri: Uri,
    origin: String,
    /// From user and password in the endpoint.
    authorization: Option<String>,
}

impl Target {
    fn read(endpoint: &[u8], has_authorization: bool) -> Result<Target, String> {
        if endpoint.len() > MAX_ENDPOINT {
            let n = endpoint.len();
            return Err(format!("endpoint of {n} bytes, {MAX_ENDPOINT} are allowed"));
        }
        let endpoint = str::from_utf8(endpoint).map_err(|_| "endpoint is not UTF-8")?;
        let quoted = || quoted(endpoint);
        let mut url = Url::parse(endpoint).map_err(|error| match error {
            url::ParseError::RelativeUrlWithoutBase => {
                format!("endpoint {} is not an absolute URL, as http://host/ is", quoted())
            }
            error => format!("endpoint {} is not a URL: {error}", quoted()),
        })?;
        if !matches!(url.scheme(), "http" | "https") {
            let scheme = bounded(url.scheme());
            return Err(format!("endpoint of scheme {scheme}, only http and https are supported"));
        }
        let host = url.host_str().expect("http URLs have a host");
        if host.len() > MAX_HOST {
            let n = host.len();
            return Err(format!("host of {n} bytes in the endpoint, {MAX_HOST} are possible"));
        }
        let port = url.port_or_known_default().expect("http has a default port");
        let origin = format!("{}://{host}:{port}", url.scheme());

        let mut authorization = None;
        if !url.username().is_empty() || url.password().is_some() {
            if !has_authorization {
                authorization = Some(basic(url.username(), url.password().unwrap_or("")));
            }
            url.set_username("").expect("http URLs have an authority");
            url.set_password(None).expect("http URLs have an authority");
        }
        url.set_fragment(None);
        // `Url` allows a few characters in hosts that `Uri` does not.
        let uri = Uri::try_from(String::from(url))
            .map_err(|error| format!("endpoint {} cannot be requested: {error}", quoted()))?;
        Ok(Target { uri, origin, authorization })
    }
}

/// The value of `Authorization` for a user and password that are percent-encoded, as in a URL.
fn basic(user: &str, password: &str) -> String {
    let mut credentials: Vec<u8> = percent_encoding::percent_decode_str(user).collect();
    credentials.push(b':');
    credentials.extend(percent_encoding::percent_decode_str(password));
    format!("Basic {}", BASE64_STANDARD.encode(credentials))
}

/// An endpoint that could not be understood, for a reason. Where user and
/// password end is then unknown, so all up to the last `@` is left out, and with
/// it more than need be rather than less; and the query.
fn quoted(endpoint: &str) -> String {
    match endpoint.rfind('@') {
        Some(at) => format!("\"***{}\"", bounded(&without_query(&endpoint[at..]))),
        None => format!("\"{}\"", bounded(&without_query(endpoint))),
    }
}

/// The query of an endpoint often is what lets people in.
fn without_query(endpoint: &str) -> String {
    match endpoint.split_once('?') {
        Some((before, _)) => format!("{before}?***"),
        None => endpoint.to_owned(),
    }
}

/// The beginning of a text from outside, without anything that a terminal would act upon.
fn bounded(text: &str) -> String {
    let mut shown: String = text.chars().take(80).flat_map(char::escape_debug).collect();
    if text.chars().nth(80).is_some() {
        shown.push_str("...");
    }
    shown
}

/// The headers where they are in the raw bytes. They are read anew each time,
/// which costs less than to allocate a list of them.
#[derive(Clone, Copy, PartialEq, Eq)]
struct HeaderEntries {
    /// Where the first name begins.
    first: usize,
    n_entries: u32,
}

impl HeaderEntries {
    /// All names and values; ends early where they are none, which `check` rules out.
    fn iter<'a>(&self, raw: &'a [u8]) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        let mut reader = Reader::new(raw, self.first);
        (0..self.n_entries).map_while(move |_| {
            let name = reader.head().ok()?.bytes("name").ok()?;
            let value = reader.head().ok()?.bytes("value").ok()?;
            Some((&raw[name], &raw[value]))
        })
    }

    /// Checks that HTTP allows them, and tells whether `Authorization` is among them.
    fn check(&self, raw: &[u8]) -> Result<bool, String> {
        let mut has_authorization = false;
        let mut n_bytes = 0;
        let mut reader = Reader::new(raw, self.first);
        for _ in 0..self.n_entries {
            let (name, value) = (reader.value()?, reader.value()?);
            let name = header_name(&raw[name.bytes("a header's name")?])?;
            let Value::Bytes(value) = value else {
                let kind = value.kind();
                return Err(format!("header {} is {kind}, not text", bounded(name)));
            };
            if let Some(byte) = raw[value.clone()].iter().find(|&&byte| !is_field_content(byte)) {
                let name = bounded(name);
                return Err(format!("value of header {name} has byte {byte:#04x}, not allowed"));
            }
            if name.eq_ignore_ascii_case("Authorization") {
                has_authorization = true;
                // The HTTP client reads this one, and sends nothing if it cannot.
                if let Some(byte) = raw[value.clone()].iter().find(|byte| !byte.is_ascii()) {
                    return Err(format!("value of header {name} has byte {byte:#04x}, only ASCII is allowed"));
                }
            }
            n_bytes += name.len() + value.len();
        }
        if n_bytes > MAX_HEADERS {
            return Err(format!("headers of {n_bytes} bytes, {MAX_HEADERS} are allowed"));
        }
        Ok(has_authorization)
    }
}

/// A header's name as text. A bad one may be a whole header line, so the reason
/// quotes no more than what comes before the first bad character.
fn header_name(name: &[u8]) -> Result<&str, String> {
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

/// A character of a header's value (RFC 9110, section 5.5), which control
/// characters are not, CR, LF and NUL above all.
fn is_field_content(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

/// One MessagePack value, as far as envelopes need to know it.
enum Value {
    /// Text or bytes: where in the raw bytes they are.
    Bytes(Range<usize>),
    /// Where the first key begins, and how many pairs there are.
    Map {
        first: usize,
        n_entries: u32,
    },
    Array {
        n_values: u32,
    },
    /// Wide enough for both signed and unsigned 64 bits.
    Integer(i128),
    Nil,
    /// Anything else, by the words for it.
    Other(&'static str),
}

impl Value {
    fn kind(&self) -> &'static str {
        match self {
            Value::Bytes(_) => "text or bytes",
            Value::Map { .. } => "a map",
            Value::Array { .. } => "an array",
            Value::Integer(_) => "an integer",
            Value::Nil => "nil",
            Value::Other(kind) => kind,
        }
    }

    fn bytes(self, name: &str) -> Result<Range<usize>, String> {
        match self {
            Value::Bytes(range) => Ok(range),
            other => Err(format!("{name} is {}, not text or bytes", other.kind())),
        }
    }

    /// How many values follow that are part of this one.
    fn n_inside(&self) -> u64 {
        match self {
            Value::Map { n_entries, .. } => 2 * u64::from(*n_entries),
            Value::Array { n_values } => u64::from(*n_values),
            _ => 0,
        }
    }
}

/// Reads values off a slice and says where they were. It believes no length
/// before the bytes are there, and nothing nested costs it stack or memory.
struct Reader<'a> {
    raw: &'a [u8],
    rest: Bytes<'a>,
}

impl<'a> Reader<'a> {
    fn new(raw: &'a [u8], start: usize) -> Reader<'a> {
        Reader { raw, rest: Bytes::new(&raw[start..]) }
    }

    fn n_left(&self) -> usize {
        self.rest.remaining_slice().len()
    }

    /// Reads a value with all that is inside.
    fn value(&mut self) -> Result<Value, String> {
        let value = self.head()?;
        let mut n_values = value.n_inside();
        while n_values > 0 {
            // Each needs a byte at least. This also keeps the sum from overflowing.
            if n_values > self.n_left() as u64 {
                return Err(truncated());
            }
            n_values = n_values - 1 + self.head()?.n_inside();
        }
        Ok(value)
    }

    /// Reads a value, but not what is inside a map or an array.
    fn head(&mut self) -> Result<Value, String> {
        let first = *self.rest.remaining_slice().first().ok_or_else(truncated)?;
        let rest = &mut self.rest;
        // The marker fits by the match, so all that can go wrong is the end of the bytes.
        let value = match Marker::from_u8(first) {
            Marker::FixStr(_) | Marker::Str8 | Marker::Str16 | Marker::Str32 => {
                let n = decode::read_str_len(rest).map_err(|_| truncated())?;
                Value::Bytes(self.take(n)?)
            }
            Marker::Bin8 | Marker::Bin16 | Marker::Bin32 => {
                let n = decode::read_bin_len(rest).map_err(|_| truncated())?;
                Value::Bytes(self.take(n)?)
            }
            Marker::FixMap(_) | Marker::Map16 | Marker::Map32 => {
                let n_entries = decode::read_map_len(rest).map_err(|_| truncated())?;
                Value::Map { first: self.raw.len() - self.n_left(), n_entries }
            }
            Marker::FixArray(_) | Marker::Array16 | Marker::Array32 => {
                let n_values = decode::read_array_len(rest).map_err(|_| truncated())?;
                Value::Array { n_values }
            }
            Marker::FixPos(_)
            | Marker::FixNeg(_)
            | Marker::U8
            | Marker::U16
            | Marker::U32
            | Marker::U64
            | Marker::I8
            | Marker::I16
            | Marker::I32
            | Marker::I64 => Value::Integer(decode::read_int(rest).map_err(|_| truncated())?),
            Marker::Null => {
                decode::read_nil(rest).map_err(|_| truncated())?;
                Value::Nil
            }
            Marker::True | Marker::False => {
                decode::read_bool(rest).map_err(|_| truncated())?;
                Value::Other("a boolean")
            }
            Marker::F32 => {
                decode::read_f32(rest).map_err(|_| truncated())?;
                Value::Other("a float")
            }
            Marker::F64 => {
                decode::read_f64(rest).map_err(|_| truncated())?;
                Value::Other("a float")
            }
            Marker::FixExt1
            | Marker::FixExt2
            | Marker::FixExt4
            | Marker::FixExt8
            | Marker::FixExt16
            | Marker::Ext8
            | Marker::Ext16
            | Marker::Ext32 => {
                let meta = decode::read_ext_meta(rest).map_err(|_| truncated())?;
                self.take(meta.size)?;
                Value::Other("an extension type")
            }
            Marker::Reserved => return Err("not MessagePack: byte 0xc1 begins no value".into()),
        };
        Ok(value)
    }

    /// Steps over so many bytes of data.
    fn take(&mut self, n: u32) -> Result<Range<usize>, String> {
        let rest = self.rest.remaining_slice();
        let start = self.raw.len() - rest.len();
        let (data, rest) = rest.split_at_checked(n as usize).ok_or_else(truncated)?;
        self.rest = Bytes::new(rest);
        Ok(start..start + data.len())
    }
}

fn truncated() -> String {
    "truncated: it ends within a value".into()
}

fn write_map_len(buf: &mut ByteBuf, n_entries: usize) {
    encode::write_map_len(buf, length(n_entries)).expect("memory takes all writes");
}

fn write_text(buf: &mut ByteBuf, text: &str) {
    encode::write_str_len(buf, length(text.len())).expect("memory takes all writes");
    buf.as_mut_vec().extend_from_slice(text.as_bytes());
}

fn length(n: usize) -> u32 {
    u32::try_from(n).expect("MessagePack lengths have 32 bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A map with the one header that ACA-Py sends; `parts` are MessagePack already.
    fn map(parts: &[&[u8]]) -> Vec<u8> {
        assert!(parts.len().is_multiple_of(2) && parts.len() < 32);
        let mut raw = vec![0x80 | (parts.len() / 2) as u8];
        raw.extend(parts.concat());
        raw
    }

    fn text(text: &str) -> Vec<u8> {
        let mut buf = ByteBuf::new();
        write_text(&mut buf, text);
        buf.into_vec()
    }

    fn bin(bytes: &[u8]) -> Vec<u8> {
        let mut buf = ByteBuf::new();
        encode::write_bin(&mut buf, bytes).unwrap();
        buf.into_vec()
    }

    /// What is read, as: URI, origin, headers a line each, payload, retries.
    fn check(raw: &[u8], expected: Result<&str, &str>) {
        let read = Envelope::decode(raw.to_vec());
        let actual = match &read {
            Ok(envelope) => {
                assert_eq!(envelope.raw(), raw);
                let mut lines = format!("{} {}\n", envelope.uri(), envelope.origin());
                for (name, value) in envelope.headers() {
                    lines += &format!("{name}: {}\n", value.escape_ascii());
                }
                let (payload, retries) = (envelope.payload().escape_ascii(), envelope.retries());
                Ok(lines + &format!("{payload} {retries}"))
            }
            Err(malformed) => {
                assert_eq!(malformed.raw, raw);
                Err(malformed.to_string())
            }
        };
        let expected = expected.map(String::from).map_err(String::from);
        assert_eq!(actual, expected, "{}", raw.escape_ascii());
    }

    fn check_endpoint(endpoint: &str, expected: Result<&str, &str>) {
        let raw = Envelope::encode([], endpoint, b"x");
        check(&raw, expected.map(|line| format!("{line}\nx 0")).as_deref().map_err(|error| *error));
    }

    fn check_headers(headers: &[(&str, &str)], expected: Result<&str, &str>) {
        let raw = Envelope::encode(headers.iter().copied(), "http://h", b"x");
        let expected = expected.map(|lines| format!("http://h/ http://h:80\n{lines}x 0"));
        check(&raw, expected.as_deref().map_err(|error| *error));
    }

    /// `value` under `key`, beside a good endpoint and payload.
    fn check_extra(key: &[u8], value: &[u8], expected: Result<&str, &str>) {
        let good = [&text("endpoint")[..], &text("http://h"), &text("payload"), &bin(b"x")];
        for at in [0, 2, 4] {
            let mut parts = good.to_vec();
            parts.splice(at..at, [key, value]);
            check(&map(&parts), expected);
        }
    }

    const GOOD: Result<&str, &str> = Ok("http://h/ http://h:80\nx 0");

    #[test]
    fn endpoints_become_what_http_can_request() {
        check_endpoint("http://h", Ok("http://h/ http://h:80"));
        check_endpoint("HTTP://Host.Example:80/A?b=c#d", Ok("http://host.example/A?b=c http://host.example:80"));
        check_endpoint("https://h/", Ok("https://h/ https://h:443"));
        check_endpoint("https://h:80", Ok("https://h:80/ https://h:80"));
        check_endpoint(" http://h/a b\u{e4}\n", Ok("http://h/a%20b%C3%A4 http://h:80"));
        check_endpoint(
            "http://m\u{fc}nchen.example",
            Ok("http://xn--mnchen-3ya.example/ http://xn--mnchen-3ya.example:80"),
        );
        check_endpoint("http://0x7f.1:8020/", Ok("http://127.0.0.1:8020/ http://127.0.0.1:8020"));
        check_endpoint("http://2130706433", Ok("http://127.0.0.1/ http://127.0.0.1:80"));
        check_endpoint("http://[::FFFF:127.0.0.1]:1", Ok("http://[::ffff:7f00:1]:1/ http://[::ffff:7f00:1]:1"));
        check_endpoint("http://h/../a/./b?x=`{|}^\"<>", Ok("http://h/a/b?x=`{|}^%22%3C%3E http://h:80"));
        check_endpoint("http:\\\\h\\a", Ok("http://h/a http://h:80"));
    }

    #[test]
    fn user_and_password_become_a_header_and_are_never_shown() {
        check_endpoint(
            "http://Aladdin:open%20sesame@h/",
            Ok("http://h/ http://h:80\nAuthorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="),
        );
        check_endpoint("http://user@h/", Ok("http://h/ http://h:80\nAuthorization: Basic dXNlcjo="));
        check_endpoint("http://@h/", Ok("http://h/ http://h:80"));
        let own = [("authorization", "Bearer t")];
        let raw = Envelope::encode(own, "http://user:secret@h/p#f", b"payload");
        check(&raw, Ok("http://h/p http://h:80\nauthorization: Bearer t\npayload 0"));
        let queried = Envelope::decode(Envelope::encode([], "http://h/p?code=secret", b"")).unwrap();
        assert_eq!(queried.endpoint_for_people(), "http://h/p?***");
        check_endpoint(
            "http://h:port/?code=secret",
            Err("endpoint \"http://h:port/?***\" is not a URL: invalid port number"),
        );
        let envelope = Envelope::decode(raw).unwrap();
        assert_eq!(envelope.endpoint(), "http://user:secret@h/p#f");
        assert_eq!(envelope.endpoint_for_people(), "http://h/p");
        let debug = format!("{envelope:?}");
        assert!(!debug.contains("secret") && !debug.contains("Bearer"), "{debug}");

        check_endpoint("http://user:secret@h:port/", Err("endpoint \"***@h:port/\" is not a URL: invalid port number"));
        check_endpoint("http://user:sec/ret@h:1/", Err("endpoint \"***@h:1/\" is not a URL: invalid port number"));
        check_endpoint("user:secret@h", Err("endpoint of scheme user, only http and https are supported"));
    }

    #[test]
    fn what_cannot_be_requested_is_explained() {
        check_endpoint("", Err("endpoint \"\" is not an absolute URL, as http://host/ is"));
        check_endpoint("h/path", Err("endpoint \"h/path\" is not an absolute URL, as http://host/ is"));
        check_endpoint("http://", Err("endpoint \"http://\" is not a URL: empty host"));
        check_endpoint(
            "http://a\n\u{1b}[31m b",
            Err("endpoint \"http://a\\n\\u{1b}[31m b\" is not a URL: invalid international domain name"),
        );
        check_endpoint("http://1.2.3.4.5/", Err("endpoint \"http://1.2.3.4.5/\" is not a URL: invalid IPv4 address"));
        check_endpoint("ws://h/ws", Err("endpoint of scheme ws, only http and https are supported"));
        check_endpoint("WSS://h/ws", Err("endpoint of scheme wss, only http and https are supported"));
        check_endpoint("did:sov:abc", Err("endpoint of scheme did, only http and https are supported"));
        check_endpoint("h:8020", Err("endpoint of scheme h, only http and https are supported"));
        check_endpoint("http://a{b}/", Err("endpoint \"http://a{b}/\" cannot be requested: invalid uri character"));
        check_endpoint(
            &format!("http://{}/", "a".repeat(255)),
            Err("host of 255 bytes in the endpoint, 254 are possible"),
        );
        check_endpoint(&format!("http://h/{}", "a".repeat(9000)), Err("endpoint of 9009 bytes, 8192 are allowed"));
        let long = format!("endpoint \"{}...\" is not an absolute URL, as http://host/ is", "a".repeat(80));
        check_endpoint(&"a".repeat(100), Err(&long));
        check(
            &map(&[&text("endpoint"), &bin(b"http://\xff"), &text("payload"), &bin(b"")]),
            Err("endpoint is not UTF-8"),
        );
    }

    #[test]
    fn the_longest_endpoint_and_host_are_accepted() {
        let host = "a".repeat(MAX_HOST);
        check_endpoint(&format!("http://{host}"), Ok(&format!("http://{host}/ http://{host}:80")));
        let path = "a".repeat(MAX_ENDPOINT - "http://h/".len());
        check_endpoint(&format!("http://h/{path}"), Ok(&format!("http://h/{path} http://h:80")));
    }

    #[test]
    fn headers_keep_order_spelling_and_repetitions() {
        check_headers(&[("X-b", "1"), ("a", "2"), ("x-B", "\t\u{e4} 3")], Ok("X-b: 1\na: 2\nx-B: \\t\\xc3\\xa4 3\n"));
        check_headers(&[("Empty", "")], Ok("Empty: \n"));
    }

    #[test]
    fn headers_of_the_connection_are_not_sent() {
        for name in [
            "host",
            "CONTENT-LENGTH",
            "Transfer-Encoding",
            "Connection",
            "Keep-Alive",
            "te",
            "Trailer",
            "Upgrade",
            "Expect",
            "Proxy-Authorization",
            "proxy-connection",
        ] {
            check_headers(&[(name, "1"), ("Content-Type", "t")], Ok("Content-Type: t\n"));
        }
        check_headers(&[("Proxy", "1"), ("TEA", "2")], Ok("Proxy: 1\nTEA: 2\n"));
    }

    #[test]
    fn headers_that_http_does_not_allow_are_refused() {
        check_headers(&[("", "1")], Err("a header's name is empty"));
        check_headers(&[("a\r\nb", "1")], Err("name of header \"a...\" has byte 0x0d, not allowed"));
        check_headers(
            &[("Authorization: secret", "")],
            Err("name of header \"Authorization...\" has byte 0x3a, not allowed"),
        );
        check_headers(&[("\u{e4}", "")], Err("name of header \"...\" has byte 0xc3, not allowed"));
        check_headers(&[("a", "1"), ("b", "secret\r\nc: 2")], Err("value of header b has byte 0x0d, not allowed"));
        check_headers(&[("a", "1\n")], Err("value of header a has byte 0x0a, not allowed"));
        check_headers(&[("a", "\0")], Err("value of header a has byte 0x00, not allowed"));
        check_headers(&[("a", "\x7f")], Err("value of header a has byte 0x7f, not allowed"));
        let only_ascii = "value of header authorization has byte 0xc3, only ASCII is allowed";
        check_headers(&[("a", "\u{e4}"), ("authorization", "Bearer \u{e4}")], Err(only_ascii));
        check_headers(&[("Host", "\r\n")], Err("value of header Host has byte 0x0d, not allowed"));
        check_headers(&[("a", &"b".repeat(MAX_HEADERS))], Err("headers of 65537 bytes, 65536 are allowed"));
        let value = "b".repeat(MAX_HEADERS - 1);
        check_headers(&[("a", &value)], Ok(&format!("a: {value}\n")));
    }

    #[test]
    fn text_and_bytes_are_the_same_everywhere() {
        let headers = map(&[&bin(b"n"), &bin(b"v\xff")]);
        let lines = Ok("http://h/ http://h:80\nn: v\\xff\n\\xffx 0");
        let payload = b"\xa2\xffx";
        check(
            &map(&[&bin(b"headers"), &headers, &bin(b"endpoint"), &bin(b"http://h"), &bin(b"payload"), payload]),
            lines,
        );
    }

    #[test]
    fn headers_may_be_missing_or_nil_but_nothing_else() {
        check(&map(&[&text("payload"), &bin(b"x"), &text("endpoint"), &text("http://h")]), GOOD);
        check_extra(&text("headers"), b"\xc0", GOOD);
        check_extra(&text("headers"), b"\x80", GOOD);
        check_extra(&text("headers"), b"\x90", Err("headers is an array, not a map"));
        check_extra(&text("headers"), b"\x81\x01\xa1v", Err("a header's name is an integer, not text or bytes"));
        check_extra(&text("headers"), b"\x81\xa1n\x01", Err("header n is an integer, not text"));
        check_extra(&text("headers"), b"\x81\xa1n\x91\xc0", Err("header n is an array, not text"));
    }

    #[test]
    fn what_is_missing_or_of_a_wrong_type_is_named() {
        check(b"\x80", Err("no payload"));
        check(&map(&[&text("payload"), &bin(b"x")]), Err("no endpoint"));
        check(&map(&[&text("payload"), b"\xc0"]), Err("payload is nil, not text or bytes"));
        check(&map(&[&text("payload"), b"\x80"]), Err("payload is a map, not text or bytes"));
        check(
            &map(&[&text("payload"), &bin(b""), &text("endpoint"), b"\xc3"]),
            Err("endpoint is a boolean, not text or bytes"),
        );
        check(b"", Err("empty: not a single byte"));
        check(b"\x93\x01\x02\x03", Err("not a map but an array"));
        check(b"{\"endpoint\": 1}", Err("not a MessagePack map; it begins with '{' as JSON does"));
        check(b"hello", Err("not a map but an integer"));
        check(b"\xc1", Err("not MessagePack: byte 0xc1 begins no value"));
        check(b"\x81\x01\xc1", Err("not MessagePack: byte 0xc1 begins no value"));
    }

    #[test]
    fn the_end_must_be_where_the_map_ends() {
        let whole = Envelope::encode([("n", "v")], "http://h", b"x");
        check(&whole, Ok("http://h/ http://h:80\nn: v\nx 0"));
        for n in 1..whole.len() {
            check(&whole[..n], Err("truncated: it ends within a value"));
        }
        let mut longer = whole.clone();
        longer.extend_from_slice(b"\xc0\xc0");
        check(&longer, Err(&format!("more after the map: 2 of {} bytes", longer.len())));
    }

    #[test]
    fn lengths_are_not_believed_before_the_bytes_are_there() {
        for head in [
            &b"\xdf\xff\xff\xff\xff"[..],
            b"\xdd\xff\xff\xff\xff",
            b"\xdb\xff\xff\xff\xff",
            b"\xc6\xff\xff\xff\xff",
            b"\xc9\xff\xff\xff\xff\x01",
            b"\xc7\xff\x01",
        ] {
            let raw = map(&[&text("headers"), head, &text("payload"), &bin(b"x")]);
            check(&raw, Err("truncated: it ends within a value"));
            let inside = [b"\x91", head].concat();
            let raw = map(&[&text("other"), &inside, &text("payload"), &bin(b"x")]);
            check(&raw, Err("truncated: it ends within a value"));
        }
        check(b"\xdf\xff\xff\xff\xff\xa1", Err("truncated: it ends within a value"));
    }

    #[test]
    fn unknown_keys_of_any_type_and_depth_are_skipped() {
        let values: [&[u8]; 20] = [
            b"\x05",
            b"\xe0",
            b"\xc0",
            b"\xc2",
            b"\xc3",
            b"\xca....",
            b"\xcb........",
            b"\xcc.",
            b"\xcd..",
            b"\xce....",
            b"\xcf........",
            b"\xd0.",
            b"\xd3........",
            b"\xd4..",
            b"\xd8.................",
            b"\xc7\x01..",
            b"\xc8\x00\x02...",
            b"\x92\x81\xa1a\xc4\x01.\x90",
            b"\xdc\x00\x01\x80",
            b"\xde\x00\x01\xc0\xc0",
        ];
        for value in values {
            check_extra(&text("other"), value, GOOD);
            check_extra(value, value, GOOD);
        }
        let deep = [vec![0x91; 1_000_000], vec![0xc0]].concat();
        check_extra(&text("deep"), &deep, GOOD);
        check_extra(&deep, b"\xc0", GOOD);
    }

    #[test]
    fn the_last_of_equal_keys_counts() {
        let (payload, endpoint) = (text("payload"), text("endpoint"));
        check(
            &map(&[&payload, b"\xc0", &endpoint, &text("bad"), &endpoint, &text("http://h"), &payload, &bin(b"x")]),
            GOOD,
        );
        check(
            &map(&[&endpoint, &text("http://h"), &payload, &bin(b"x"), &payload, b"\xc0"]),
            Err("payload is nil, not text or bytes"),
        );
    }

    #[test]
    fn retries_count_if_they_can() {
        for (value, retries) in [
            (&b"\x03"[..], 3u32),
            (b"\x00", 0),
            (b"\xff", 0),
            (b"\xcd\x01\x00", 256),
            (b"\xd2\xff\xff\xff\xff", 0),
            (b"\xcf\xff\xff\xff\xff\xff\xff\xff\xff", u32::MAX),
            (b"\xd3\x80\x00\x00\x00\x00\x00\x00\x00", 0),
            (b"\xc0", 0),
            (b"\xa13", 0),
            (b"\xcb\x40\x00\x00\x00\x00\x00\x00\x00", 0),
        ] {
            check_extra(&text("retries"), value, Ok(&format!("http://h/ http://h:80\nx {retries}")));
        }
    }

    #[test]
    fn what_is_shown_of_an_endpoint_has_an_end() {
        let raw = Envelope::encode([], &format!("http://h/{}", "\u{e4}".repeat(1000)), b"");
        let shown = Envelope::decode(raw).unwrap().endpoint_for_people();
        assert!(shown.starts_with("http://h/%C3%A4") && shown.ends_with("...") && shown.len() == 203, "{shown}");
    }
}
