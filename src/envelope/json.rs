//! JSON: what the plugin `redis_events` pushes for ACA-Py of today, and what the plugin's own
//! deliverer puts back.
//!
//! As in Python, the last of several equal members counts: so a first pass finds the members that
//! matter as the pieces of JSON they are, copies nothing and judges nothing. Whatever stands in other
//! members costs no stack, however deep it nests, and a byte of memory for each level at most. Then the
//! parts are decoded, one behind the other, into one buffer.

use std::borrow::Cow;
use std::fmt;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE;
use rmp::encode::ByteBuf;
use serde_core::de::{Deserializer as _, MapAccess, Visitor};
use serde_json::error::Category;
use serde_json::value::RawValue;

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

    let n_headers: usize = headers.iter().map(|(name, value)| name.len() + value.get().len() + 8).sum();
    let mut decoded = vec![0; endpoint.len() + letters::most(payload.get().len()) + n_headers];
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

/// Hands out the members of an object, in their order, each value as it is written.
fn members<'a>(json: &'a [u8], take: Take<'_, 'a>) -> Result<(), String> {
    if !json.trim_ascii_start().starts_with(b"{") {
        return Err("not a JSON object".into());
    }
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let read = deserializer.deserialize_map(Members(take)).and_then(|()| deserializer.end());
    read.map_err(|error| match error.classify() {
        Category::Eof => truncated(),
        _ => format!("not JSON: {error}"),
    })
}

/// The same of a value that has to be an object.
fn members_of<'a>(what: &str, value: &'a RawValue, take: Take<'_, 'a>) -> Result<(), String> {
    match value.get().as_bytes() {
        json @ [b'{', ..] => members(json, take),
        _ => Err(format!("{what} is {}, not an object", kind(value))),
    }
}

type Take<'t, 'a> = &'t mut dyn FnMut(Cow<'a, str>, &'a RawValue);

struct Members<'t, 'a>(Take<'t, 'a>);

impl<'a> Visitor<'a> for Members<'_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some((name, value)) = map.next_entry::<&'a RawValue, &'a RawValue>()? {
            // A name that is no text (half of a surrogate pair) is none that is looked for, nor a header's.
            (self.0)(unescaped(name).unwrap_or(Cow::Borrowed("\u{fffd}")), value);
        }
        Ok(())
    }
}

/// The headers, a name where it came first. What they may be is asked of HTTP later.
fn list(value: &RawValue) -> Result<Vec<(Cow<'_, str>, &RawValue)>, String> {
    let mut found: Vec<(Cow<str>, &RawValue)> = Vec::new();
    let mut n_read = 0;
    if value.get() != "null" {
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
fn text(value: &RawValue) -> Result<Cow<'_, str>, String> {
    if !value.get().starts_with('"') {
        return Err(format!("is {}, not text", kind(value)));
    }
    unescaped(value).ok_or_else(|| "is not text: it holds half of a surrogate pair".into())
}

/// What a JSON string says.
fn unescaped(string: &RawValue) -> Option<Cow<'_, str>> {
    let json = string.get();
    match json.strip_prefix('"')?.strip_suffix('"')? {
        plain if !plain.as_bytes().contains(&b'\\') => Some(Cow::Borrowed(plain)),
        // As bytes, as all else is read: for text serde_json would bring itself a second time.
        _ => serde_json::from_slice(json.as_bytes()).ok().map(Cow::Owned),
    }
}

fn kind(value: &RawValue) -> &'static str {
    match value.get().as_bytes() {
        [b'{', ..] => "an object",
        [b'[', ..] => "an array",
        [b'"', ..] => "text",
        [b't' | b'f', ..] => "a boolean",
        [b'n', ..] => "null",
        _ => "a number",
    }
}

/// A count, if it is one; if it is too large, the largest.
fn count(value: &RawValue) -> u32 {
    match value.get() {
        digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse().unwrap_or(u32::MAX),
        _ => 0,
    }
}

/// The payload as bytes, and how many they are.
fn decode(payload: &RawValue, out: &mut [u8]) -> Result<usize, String> {
    // A backslash is no letter: what can be read so is as it is written.
    let written = payload.get().strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    if let Some(n) = written.and_then(|text| letters::decode_plain(text.as_bytes(), out)) {
        return Ok(n);
    }
    let text = text(payload).map_err(|why| format!("payload {why}"))?;
    letters::decode(text.as_bytes(), out).ok_or_else(|| "payload is not base64".into())
}
