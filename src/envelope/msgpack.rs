//! MessagePack: what ACA-Py 0.7 pushes. Of today, and of before 2013, when there was one type for
//! text and bytes. Nothing is copied: what is found are places in the bytes.

use std::ops::Range;

use rmp::Marker;
use rmp::decode::{self, Bytes};
use rmp::encode::{self, ByteBuf};

use super::{HeaderRules, Parts, bounded};

/// Finds the parts of a message; the error is the reason for people. As in Python, the last of several
/// equal keys counts, so a value is judged only when the whole map has been read.
pub(super) fn read(raw: &[u8]) -> Result<Parts, String> {
    let mut reader = Reader::new(raw, 0);
    let n_entries = match reader.head() {
        Ok(Value::Map { n_entries, .. }) => n_entries,
        _ if raw.is_empty() => return Err("empty: not a single byte".into()),
        _ if raw[0].is_ascii() => return Err("neither a JSON object nor a MessagePack map".into()),
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
    let retries = match retries {
        Some(Value::Integer(n)) if n > 0 => u32::try_from(n).unwrap_or(u32::MAX),
        _ => 0,
    };
    Ok(Parts { payload, endpoint, headers, retries })
}

/// Writes what ACA-Py 0.7 pushes for such a message, byte for byte: three keys in the order headers,
/// endpoint, payload; the payload as binary.
pub(super) fn write<'a, H>(headers: H, endpoint: &str, payload: &[u8]) -> Vec<u8>
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

/// The headers where they are, which is MessagePack in both formats: those of a JSON message were
/// decoded to it. They are read anew each time, which costs less than to allocate a list of them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct HeaderEntries {
    /// Where the first name begins.
    pub(super) first: usize,
    pub(super) n_entries: u32,
}

impl HeaderEntries {
    /// All names and values; ends early where they are none, which `check` rules out.
    pub(super) fn iter<'a>(&self, raw: &'a [u8]) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        let mut reader = Reader::new(raw, self.first);
        (0..self.n_entries).map_while(move |_| {
            let name = reader.head().ok()?.bytes("name").ok()?;
            let value = reader.head().ok()?.bytes("value").ok()?;
            Some((&raw[name], &raw[value]))
        })
    }

    /// Holds each against the rules of HTTP.
    pub(super) fn check(&self, raw: &[u8]) -> Result<HeaderRules, String> {
        let mut rules = HeaderRules::default();
        let mut reader = Reader::new(raw, self.first);
        for _ in 0..self.n_entries {
            let (name, value) = (reader.value()?, reader.value()?);
            let name = rules.name(&raw[name.bytes("a header's name")?])?;
            let Value::Bytes(value) = value else {
                return Err(format!("header {} is {}, not text", bounded(name), value.kind()));
            };
            rules.value(name, &raw[value])?;
        }
        rules.end()
    }
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

pub(super) fn truncated() -> String {
    "truncated: it ends within a value".into()
}

fn write_map_len(buf: &mut ByteBuf, n_entries: usize) {
    encode::write_map_len(buf, length(n_entries)).expect("memory takes all writes");
}

pub(super) fn write_text(buf: &mut ByteBuf, text: &str) {
    encode::write_str_len(buf, length(text.len())).expect("memory takes all writes");
    buf.as_mut_vec().extend_from_slice(text.as_bytes());
}

fn length(n: usize) -> u32 {
    u32::try_from(n).expect("MessagePack lengths have 32 bits")
}
