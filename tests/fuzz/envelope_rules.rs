//! What must hold of any bytes given to `Envelope::decode`. Used by the property
//! test (`tests/envelope.rs`) and by the fuzz target beside this file, so that
//! what one of them finds the other keeps finding.

use acapy_deliver::envelope::{Envelope, MAX_HEADERS, MAX_HOST, Malformed};
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

    let payload = envelope.payload();
    let (whole, part) = (envelope.raw().as_ptr_range(), payload.as_ptr_range());
    assert!(whole.start <= part.start && part.end <= whole.end, "the payload is not copied");

    let uri = envelope.uri();
    let origin = envelope.origin();
    let host = uri.host().expect("an absolute URI");
    let scheme = uri.scheme_str().expect("an absolute URI");
    assert!(scheme == "http" || scheme == "https", "{uri}");
    let port = uri.port_u16().unwrap_or(if scheme == "http" { 80 } else { 443 });
    assert_eq!(origin, format!("{scheme}://{host}:{port}"), "the origin is that of the URI");
    assert_eq!(origin, origin.to_lowercase());
    assert!(!origin.contains(['\n', '@', ' ']) && host.len() <= MAX_HOST, "{origin:?}");
    let authority = uri.authority().expect("an absolute URI").as_str();
    assert!(!authority.contains('@'), "user and password are not part of what is requested");
    let shown = envelope.endpoint_for_people();
    assert!(shown.bytes().all(|byte| byte.is_ascii_graphic()) && shown.len() <= 203, "{shown:?}");

    // At most the endpoint's own credentials come to those that were pushed.
    let mut n_bytes = 0;
    for (name, value) in envelope.headers() {
        HeaderName::from_bytes(name.as_bytes()).expect("the HTTP client takes the name");
        HeaderValue::from_bytes(value).expect("the HTTP client takes the value");
        assert!(!value.contains(&b'\r') && !value.contains(&b'\n') && !value.contains(&0));
        if name == "Authorization" {
            continue;
        }
        n_bytes += name.len() + value.len();
    }
    assert!(n_bytes <= MAX_HEADERS);

    encoded_again_means_the_same(envelope);
}

/// As far as it can be encoded: header values of old may be no text.
fn encoded_again_means_the_same(envelope: &Envelope) {
    let headers: Option<Vec<(&str, &str)>> =
        envelope.headers().map(|(name, value)| Some((name, std::str::from_utf8(value).ok()?))).collect();
    let Some(headers) = headers else { return };
    // The endpoint's credentials may be among these headers now, and not be added a second time.
    let again = Envelope::encode(headers, envelope.endpoint(), envelope.payload());
    let again = Envelope::decode(again).expect("what was accepted is accepted again");
    assert_eq!(again.uri(), envelope.uri());
    assert_eq!(again.origin(), envelope.origin());
    assert_eq!(again.endpoint(), envelope.endpoint());
    assert_eq!(again.payload(), envelope.payload());
    assert!(again.headers().eq(envelope.headers()));

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
