//! JSON: what the plugin `redis_events` pushes for ACA-Py of today, and what the plugin's own
//! deliverer puts back.
//!
//! As in Python, the last of several equal members counts: so a first pass finds the members that
//! matter as the pieces of JSON they are, copies nothing and judges nothing. Whatever stands in other
//! members costs no stack, however deep it nests, and a byte of memory for each level at most. Then the
//! parts are decoded, one behind the other, into one buffer.
//!
//! serde_json reads all but the outermost: where a text ends is found by its quote alone, for the payload is
//! nine tenths of a message, and is looked at letter by letter when its base64 is decoded.

use std::borrow::Cow;
use std::fmt;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE;
use memchr::memchr2;
use rmp::encode::ByteBuf;
use serde_core::de::IgnoredAny;

use super::msgpack::{HeaderEntries, truncated, write_text as write_msgpack_text};
use super::{Parts, base64 as letters, bounded};

/// Most headers that are looked at, equal ones included: more than any recipient takes, and few enough
/// to be compared with one another.
const MAX_ENTRIES: usize = 1000;

/// Decodes the parts of a message, and says where in the buffer they are; the error is the reason
/// for people.
pub(super) fn read(raw: &[u8]) -> Result<(Vec<u8>, Parts), String> {
    let (mut service, mut payload, mut headers, mut retries) = (None, None, None, None);
    let mut n_members = 0;
    members(raw, &mut |name, value| {
        n_members += 1;
        match &*name {
            "service" => service = Some(value),
            "payload" => payload = Some(value),
            "headers" => headers = Some(value),
            "retries" => retries = Some(value),
            _ => {}
        }
    })?;
    let Some(service) = service else {
        let alone = payload.is_some() && n_members == 1;
        return Err(if alone {
            "no service, a payload alone: an entry of mediator mode, which is for another ACA-Py to fetch".into()
        } else {
            "no service".into()
        });
    };
    let mut url = None;
    members_of("service", service, &mut |name, value| {
        if name == "url" {
            url = Some(value);
        }
    })?;
    let endpoint = text(url.ok_or("service has no url")?).map_err(|why| format!("service.url {why}"))?;
    let payload = payload.ok_or("no payload")?;
    let headers = headers.map_or(Ok(Vec::new()), list)?;

    let n_headers: usize = headers.iter().map(|(name, value)| name.len() + value.len() + 8).sum();
    let mut decoded = vec![0; endpoint.len() + letters::most(payload.len()) + n_headers];
    let (before, after) = decoded.split_at_mut(endpoint.len());
    before.copy_from_slice(endpoint.as_bytes());
    let endpoint = 0..endpoint.len();
    let payload = endpoint.end..endpoint.end + decode(payload, after)?;
    decoded.truncate(payload.end);
    let places = HeaderEntries { first: decoded.len(), n_entries: headers.len() as u32 };
    let mut buf = ByteBuf::from_vec(decoded);
    for (name, value) in headers {
        write_msgpack_text(&mut buf, &name);
        match text(value) {
            Ok(value) => write_msgpack_text(&mut buf, &value),
            Err(why) => return Err(format!("header {} {why}", bounded(&name))),
        }
    }
    let retries = retries.map_or(0, count);
    Ok((buf.into_vec(), Parts { payload, endpoint, headers: places, retries }))
}

/// Writes what the plugin pushes for such a message, byte for byte: as Python writes JSON, in ASCII alone.
pub(super) fn write<'a>(
    headers: impl IntoIterator<Item = (&'a str, &'a str)>,
    endpoint: &str,
    payload: &[u8],
) -> Vec<u8> {
    let is_escaped = |character| !matches!(character, ' '..='~');
    // 100 characters hold the names of the members, and the one header that ACA-Py sends.
    let mut out = String::with_capacity(payload.len().div_ceil(3) * 4 + endpoint.len() + 100);
    out.push_str(r#"{"service": {"url": "#);
    write_text(&mut out, endpoint, is_escaped);
    out.push_str(r#"}, "payload": ""#);
    BASE64_URL_SAFE.encode_string(payload, &mut out);
    out.push_str(r#"", "headers": {"#);
    for (n, (name, value)) in headers.into_iter().enumerate() {
        if n > 0 {
            out.push_str(", ");
        }
        write_text(&mut out, name, is_escaped);
        out.push_str(": ");
        write_text(&mut out, value, is_escaped);
    }
    out.push_str("}}");
    out.into_bytes()
}

/// Writes a JSON string; of the characters that JSON allows as they are, those are escaped that `is_escaped`
/// wants to be.
pub(crate) fn write_text(out: &mut String, text: &str, is_escaped: impl Fn(char) -> bool) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            other if other < ' ' || is_escaped(other) => {
                for unit in other.encode_utf16(&mut [0; 2]) {
                    fmt::Write::write_fmt(out, format_args!("\\u{unit:04x}")).expect("memory takes all writes");
                }
            }
            other => out.push(other),
        }
    }
    out.push('"');
}

/// Hands out the members of an object, in their order, each value as it is written. A value that is a text
/// may hold anything.
fn members<'a>(json: &'a [u8], take: Take<'_, 'a>) -> Result<(), String> {
    let mut reader = Reader { json, at: 0 };
    if reader.next() != Some(b'{') {
        return Err("not a JSON object".into());
    }
    let mut next = reader.expect(b"\"}", "a member's name")?;
    while next == b'"' {
        let name = reader.text()?;
        reader.expect(b":", "a colon")?;
        let value = reader.value()?;
        // A name that is no text (half of a surrogate pair) is none that is looked for, nor a header's.
        take(unescaped(name).unwrap_or(Cow::Borrowed("\u{fffd}")), value);
        next = match reader.expect(b",}", "a comma or the end")? {
            b',' => reader.expect(b"\"", "a member's name")?,
            end => end,
        };
    }
    match reader.next() {
        None => Ok(()),
        Some(_) => reader.wrong("its end"),
    }
}

/// The same of a value that has to be an object.
fn members_of<'a>(what: &str, value: &'a [u8], take: Take<'_, 'a>) -> Result<(), String> {
    match value {
        [b'{', ..] => members(value, take),
        _ => Err(format!("{what} is {}, not an object", kind(value))),
    }
}

/// Its name, and its value as it is written.
type Member<'a> = (Cow<'a, str>, &'a [u8]);
type Take<'t, 'a> = &'t mut dyn FnMut(Cow<'a, str>, &'a [u8]);

/// Steps through one object.
struct Reader<'a> {
    json: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// What comes after white space.
    fn next(&mut self) -> Option<u8> {
        loop {
            let byte = *self.json.get(self.at)?;
            self.at += 1;
            if !matches!(byte, b' ' | b'\n' | b'\r' | b'\t') {
                return Some(byte);
            }
        }
    }

    /// What has to be one of these.
    fn expect(&mut self, bytes: &[u8], what: &str) -> Result<u8, String> {
        match self.next() {
            Some(byte) if bytes.contains(&byte) => Ok(byte),
            None => Err(truncated()),
            Some(_) => self.wrong(what),
        }
    }

    /// What was read last is not what should be there.
    fn wrong<T>(&self, expected: &str) -> Result<T, String> {
        Err(format!("not JSON: byte {} is not {expected}", self.at - 1))
    }

    /// A text with its quotes, of which the first has been read.
    fn text(&mut self) -> Result<&'a [u8], String> {
        let start = self.at - 1;
        loop {
            let rest = self.json.get(self.at..).ok_or_else(truncated)?;
            let found = memchr2(b'"', b'\\', rest).ok_or_else(truncated)?;
            self.at += found + 1;
            if rest[found] == b'"' {
                return Ok(&self.json[start..self.at]);
            }
            // What is escaped, which may be a quote.
            self.at += 1;
        }
    }

    fn value(&mut self) -> Result<&'a [u8], String> {
        if self.next().ok_or_else(truncated)? == b'"' {
            return self.text();
        }
        let start = self.at - 1;
        let rest = &self.json[start..];
        let mut values = serde_json::Deserializer::from_slice(rest).into_iter::<IgnoredAny>();
        match values.next() {
            Some(Ok(_)) => {}
            Some(Err(error)) if !error.is_eof() => {
                return Err(format!("not JSON: {}, in what begins at byte {start}", without_place(&error)));
            }
            _ => return Err(truncated()),
        }
        self.at = start + values.byte_offset();
        Ok(&self.json[start..self.at])
    }
}

/// What is wrong; where it is, serde_json counts from the beginning of what it was given.
fn without_place(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split(" at line ").next().unwrap_or_default().to_owned()
}

/// The headers, a name where it came first. What they may be is asked of HTTP later.
fn list(value: &[u8]) -> Result<Vec<Member<'_>>, String> {
    let mut found: Vec<Member> = Vec::new();
    let mut n_read = 0;
    if value != b"null" {
        members_of("headers", value, &mut |name, value| {
            n_read += 1;
            match found.iter_mut().find(|(other, _)| n_read <= MAX_ENTRIES && *other == name) {
                Some((_, last)) => *last = value,
                None if n_read <= MAX_ENTRIES => found.push((name, value)),
                None => {}
            }
        })?;
    }
    match n_read {
        ..=MAX_ENTRIES => Ok(found),
        _ => Err(format!("{n_read} headers, {MAX_ENTRIES} are allowed")),
    }
}

/// The error is the end of a sentence that begins with its name.
fn text(value: &[u8]) -> Result<Cow<'_, str>, String> {
    if !value.starts_with(b"\"") {
        return Err(format!("is {}, not text", kind(value)));
    }
    unescaped(value).map_err(|error| format!("is not text: {}", without_place(&error)))
}

/// What a JSON text says.
fn unescaped(text: &[u8]) -> Result<Cow<'_, str>, serde_json::Error> {
    match text.contains(&b'\\') {
        false => serde_json::from_slice(text).map(Cow::Borrowed),
        true => serde_json::from_slice(text).map(Cow::Owned),
    }
}

fn kind(value: &[u8]) -> &'static str {
    match value {
        [b'{', ..] => "an object",
        [b'[', ..] => "an array",
        [b'"', ..] => "text",
        [b't' | b'f', ..] => "a boolean",
        [b'n', ..] => "null",
        _ => "a number",
    }
}

/// A count, if it is one; if it is too large, the largest.
fn count(value: &[u8]) -> u32 {
    match str::from_utf8(value) {
        Ok(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse().unwrap_or(u32::MAX),
        _ => 0,
    }
}

/// The payload as bytes, and how many they are.
fn decode(payload: &[u8], out: &mut [u8]) -> Result<usize, String> {
    // A backslash is no letter: what can be read so is as it is written.
    if let [b'"', letters @ .., b'"'] = payload
        && let Some(n) = letters::decode_plain(letters, out)
    {
        return Ok(n);
    }
    let text = text(payload).map_err(|why| format!("payload {why}"))?;
    letters::decode(text.as_bytes(), out).ok_or_else(|| "payload is not base64".into())
}
