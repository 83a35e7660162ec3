//! What must hold of any bytes given to `Envelope::decode`. Used by the property
//! test (`tests/library/envelope.rs`) and by the fuzz targets beside this file, so that
//! what one of them finds the other keeps finding.

use acapy_deliver::envelope::{Envelope, Format, MAX_HEADERS, MAX_HOST, Malformed};
use serde_json::Value;
use ureq::http::{HeaderName, HeaderValue};

/// Longest reason: 80 characters quoted, each as up to ten (`\u{10ffff}`), and the words around.
const MAX_REASON: usize = 80 * 10 + 120;

/// Decodes, and panics if a rule is broken.
pub fn check(raw: &[u8]) -> Result<Envelope, Malformed> {
    let read = Envelope::decode(raw.to_vec());
    match &read {
        Ok(envelope) => accepted_can_be_sent(envelope, raw),
        Err(malformed) => rejected_is_explained(malformed, raw),
    }
    read
}

fn rejected_is_explained(malformed: &Malformed, raw: &[u8]) {
    assert_eq!(malformed.raw, raw, "the bytes are given back untouched");
    let reason = malformed.to_string();
    assert!(!reason.is_empty() && reason.len() <= MAX_REASON, "{reason}");
    assert!(!reason.contains(char::is_control), "{reason:?}");
}

fn accepted_can_be_sent(envelope: &Envelope, raw: &[u8]) {
    assert_eq!(envelope.raw(), raw);
    assert_eq!(envelope.size(), raw.len());

    match envelope.format() {
        Format::MessagePack => {
            let (whole, part) = (envelope.raw().as_ptr_range(), envelope.payload().as_ptr_range());
            assert!(whole.start <= part.start && part.end <= whole.end, "the payload is not copied");
            assert_eq!(envelope.held_size(), raw.len());
        }
        Format::Json => {
            // A header's lengths take five bytes more each, and its quotes, colon and comma are gone.
            assert!(envelope.held_size() <= 3 * raw.len(), "{} of {}", envelope.held_size(), raw.len());
            is_what_a_plain_reader_reads(envelope, raw);
        }
    }

    let uri = envelope.uri();
    let origin = envelope.origin();
    let host = uri.host().expect("an absolute URI");
    let scheme = uri.scheme_str().expect("an absolute URI");
    assert!(["http", "https", "ws", "wss"].contains(&scheme), "{uri}");
    let port = uri.port_u16().unwrap_or(if scheme.ends_with('s') && scheme != "ws" { 443 } else { 80 });
    assert_eq!(origin, format!("{scheme}://{host}:{port}"), "the origin is that of the URI");
    assert_eq!(origin, origin.to_lowercase());
    assert!(!origin.contains(['\n', '@', ' ']) && host.len() <= MAX_HOST, "{origin:?}");
    let authority = uri.authority().expect("an absolute URI").as_str();
    assert!(!authority.contains('@'), "user and password are not part of what is requested");
    let shown = envelope.endpoint_for_people();
    assert!(shown.bytes().all(|byte| byte.is_ascii_graphic()) && shown.len() <= 203, "{shown:?}");

    // At most the endpoint's own credentials come to those that were pushed.
    let mut n_bytes = 0;
    let mut n_content_types = 0;
    for (name, value) in envelope.headers() {
        HeaderName::from_bytes(name.as_bytes()).expect("the HTTP client takes the name");
        HeaderValue::from_bytes(value).expect("the HTTP client takes the value");
        assert!(!value.contains(&b'\r') && !value.contains(&b'\n') && !value.contains(&0));
        n_content_types += usize::from(name.eq_ignore_ascii_case("Content-Type"));
        if matches!(name, "Authorization" | "Content-Type") {
            continue;
        }
        n_bytes += name.len() + value.len();
    }
    assert!(n_bytes <= MAX_HEADERS);
    assert!(n_content_types >= 1, "the body's kind is said");

    encoded_again_means_the_same(envelope);
}

/// As far as it can be encoded: header values of old may be no text.
fn encoded_again_means_the_same(envelope: &Envelope) {
    let headers: Option<Vec<(&str, &str)>> =
        envelope.headers().map(|(name, value)| Some((name, std::str::from_utf8(value).ok()?))).collect();
    let Some(headers) = headers else { return };
    // In JSON the last of equal names counts.
    let mut names: Vec<_> = headers.iter().map(|(name, _)| *name).collect();
    names.sort_unstable();
    names.dedup();
    let is_map = names.len() == headers.len();
    for format in [Format::MessagePack, Format::Json] {
        // What the envelope lacked is among these headers now, and is not added a second time.
        let again = format.encode(headers.iter().copied(), envelope.endpoint(), envelope.payload());
        let again = Envelope::decode(again).expect("what was accepted is accepted again");
        assert_eq!(again.format(), format);
        assert_eq!(again.uri(), envelope.uri());
        assert_eq!(again.origin(), envelope.origin());
        assert_eq!(again.endpoint(), envelope.endpoint());
        assert_eq!(again.payload(), envelope.payload());
        assert!(format == Format::Json && !is_map || again.headers().eq(envelope.headers()));
    }

    // A canonical endpoint is its own canonical form.
    let canonical = Envelope::encode([], &envelope.uri().to_string(), b"");
    if let Ok(canonical) = Envelope::decode(canonical) {
        assert_eq!(canonical.uri(), envelope.uri());
        assert_eq!(canonical.origin(), envelope.origin());
    } else {
        // Percent-encoding made it longer than what is accepted.
        assert!(envelope.uri().to_string().len() > acapy_deliver::envelope::MAX_ENDPOINT);
    }
}

/// What serde_json reads in its own way, where it reads at all: it nests less deep, and knows no numbers beyond its own.
fn is_what_a_plain_reader_reads(envelope: &Envelope, raw: &[u8]) {
    let Ok(value) = serde_json::from_slice::<Value>(raw) else { return };
    assert_eq!(value["service"]["url"].as_str(), Some(envelope.endpoint()));
    let mut letters: Vec<u8> = value["payload"].as_str().expect("a text").bytes().collect();
    letters.retain(|letter| !letter.is_ascii_whitespace() && *letter != b'=');
    // Each letter says six bits.
    assert_eq!(letters.len() * 6 / 8, envelope.payload().len());
    for (at, byte) in envelope.payload().iter().enumerate() {
        let bit = |n: usize| six_bits(letters[n / 6]) >> (5 - n % 6) & 1;
        let expected = (0..8).fold(0, |byte, n| byte << 1 | bit(at * 8 + n));
        assert_eq!(*byte, expected, "byte {at} of the payload");
    }
    let no_headers = serde_json::Map::new();
    for (name, value) in value["headers"].as_object().unwrap_or(&no_headers) {
        let value = value.as_str().expect("a text").as_bytes();
        let pushed = envelope.headers().any(|header| header == (name, value));
        assert!(pushed || HeaderName::from_bytes(name.as_bytes()).is_ok_and(|name| is_framing(&name)), "{name:?}");
    }
    let retries = value["retries"].as_u64().map_or(0, |n| u32::try_from(n).unwrap_or(u32::MAX));
    // A whole number beyond 64 bits is none to this reader.
    assert!(envelope.retries() == retries || value["retries"].is_f64() && envelope.retries() == u32::MAX);
}

fn six_bits(letter: u8) -> u8 {
    match letter {
        b'A'..=b'Z' => letter - b'A',
        b'a'..=b'z' => letter - b'a' + 26,
        b'0'..=b'9' => letter - b'0' + 52,
        b'-' | b'+' => 62,
        b'_' | b'/' => 63,
        other => panic!("{other:#04x} is not base64"),
    }
}

fn is_framing(name: &HeaderName) -> bool {
    let name = name.as_str();
    let names = [
        "host",
        "content-length",
        "transfer-encoding",
        "connection",
        "keep-alive",
        "te",
        "trailer",
        "upgrade",
        "expect",
    ];
    names.contains(&name) || name.starts_with("proxy-")
}
