//! The bytes that ACA-Py pushes, written here once more and by other means than the library's, so
//! that a change of the format on that side is seen on this one. Also the entries that real ACA-Py
//! wrote (`tests/fixtures`), with their endpoint replaced by a recipient of the test.

use std::fs;
use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE;

/// One envelope with the usual header, as ACA-Py packs it.
pub fn envelope(endpoint: &str, payload: &[u8]) -> Vec<u8> {
    envelope_with(endpoint, &[("Content-Type", "application/ssi-agent-wire")], payload)
}

/// One envelope: a map of headers, endpoint and payload, in this order; the payload as bin.
pub fn envelope_with(endpoint: &str, headers: &[(&str, &str)], payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(payload.len() + 200);
    let out = &mut bytes;
    rmp::encode::write_map_len(out, 3).unwrap();
    rmp::encode::write_str(out, "headers").unwrap();
    rmp::encode::write_map_len(out, headers.len() as u32).unwrap();
    for (name, value) in headers {
        rmp::encode::write_str(out, name).unwrap();
        rmp::encode::write_str(out, value).unwrap();
    }
    rmp::encode::write_str(out, "endpoint").unwrap();
    rmp::encode::write_str(out, endpoint).unwrap();
    rmp::encode::write_str(out, "payload").unwrap();
    rmp::encode::write_bin(out, payload).unwrap();
    bytes
}

/// One entry as ACA-Py of today writes it: JSON of service, payload and headers, in this order.
pub fn json_with(endpoint: &str, headers: &[(&str, &str)], payload: &[u8]) -> Vec<u8> {
    let text = |text: &str| serde_json::Value::from(text).to_string();
    let headers: Vec<_> = headers.iter().map(|(name, value)| format!("{}: {}", text(name), text(value))).collect();
    let payload = BASE64_URL_SAFE.encode(payload);
    let service = format!("{{\"url\": {}}}", text(endpoint));
    format!("{{\"service\": {service}, \"payload\": \"{payload}\", \"headers\": {{{}}}}}", headers.join(", "))
        .into_bytes()
}

/// As many envelopes as wanted; their payloads are `message 0`, `message 1` and so on.
pub fn numbered(endpoint: &str, n: usize) -> Vec<Vec<u8>> {
    (0..n).map(|i| envelope(endpoint, format!("message {i}").as_bytes())).collect()
}

/// An entry that real ACA-Py pushed, and what its manifest says of it.
pub struct Fixture {
    pub name: String,
    bytes: Vec<u8>,
    pub headers: Vec<(String, String)>,
    pub payload: Vec<u8>,
}

impl Fixture {
    /// All of them.
    pub fn all() -> Vec<Fixture> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        let manifest = fs::read_to_string(dir.join("manifest.json")).unwrap();
        let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
        let fixtures = manifest.as_object().unwrap().iter().map(|(name, entry)| {
            let bytes = fs::read(dir.join(name)).unwrap();
            let payload_size = entry["payload_size"].as_u64().unwrap() as usize;
            let headers = entry["headers"].as_object().unwrap().iter();
            Fixture {
                name: name.clone(),
                headers: headers.map(|(k, v)| (k.clone(), v.as_str().unwrap().into())).collect(),
                // The payload is the last value of the map.
                payload: bytes[bytes.len() - payload_size..].to_vec(),
                bytes,
            }
        });
        fixtures.collect()
    }

    /// What ACA-Py of today pushed, as far as it is for a deliverer.
    pub fn today() -> Vec<Fixture> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/today");
        let manifest = fs::read_to_string(dir.join("manifest.json")).unwrap();
        let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
        let fixtures = manifest.as_object().unwrap().iter().filter(|(_, entry)| entry["url"].is_string());
        fixtures
            .map(|(name, entry)| {
                let bytes = fs::read(dir.join(name)).unwrap();
                let value: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
                Fixture {
                    name: name.clone(),
                    headers: (entry["headers"].as_object().unwrap().iter())
                        .map(|(k, v)| (k.clone(), v.as_str().unwrap().into()))
                        .collect(),
                    payload: BASE64_URL_SAFE.decode(value["payload"].as_str().unwrap()).unwrap(),
                    bytes,
                }
            })
            .collect()
    }

    /// The entry with another endpoint; every other byte as it was.
    pub fn addressed_to(&self, endpoint: &str) -> Vec<u8> {
        if self.bytes.starts_with(b"{") {
            let text = std::str::from_utf8(&self.bytes).unwrap();
            let start = text.find(r#""url": ""#).unwrap() + r#""url": ""#.len();
            let end = start + text[start..].find('"').unwrap();
            return [&text[..start], endpoint, &text[end..]].concat().into_bytes();
        }
        let key = b"\xa8endpoint";
        let at = self.bytes.windows(key.len()).position(|w| w == key).unwrap() + key.len();
        let (header, length) = match self.bytes[at] {
            fix @ 0xa0..=0xbf => (1, usize::from(fix & 0x1f)),
            0xd9 => (2, usize::from(self.bytes[at + 1])),
            other => panic!("{}: an endpoint of msgpack type {other:#x}", self.name),
        };
        let mut bytes = self.bytes[..at].to_vec();
        match endpoint.len() {
            n @ 0..=31 => bytes.push(0xa0 | n as u8),
            // The format before 2013 has no strings with one byte of length.
            n if self.name.starts_with("oldraw") => bytes.extend([0xda, (n >> 8) as u8, n as u8]),
            n => bytes.extend([0xd9, u8::try_from(n).unwrap()]),
        }
        bytes.extend(endpoint.as_bytes());
        bytes.extend(&self.bytes[at + header + length..]);
        bytes
    }
}

mod tests {
    use super::*;

    #[test]
    fn what_the_tests_write_is_what_aca_py_of_today_wrote() {
        let one_header = Fixture::today().into_iter().filter(|f| f.headers.len() == 1 && !f.name.starts_with("retry"));
        let ascii = one_header.filter(|f| f.headers[0].1.is_ascii());
        assert!(
            ascii
                .inspect(|fixture| {
                    let endpoint = "http://127.0.0.1:9/some/path";
                    let ours = json_with(endpoint, &[(&fixture.headers[0].0, &fixture.headers[0].1)], &fixture.payload);
                    assert!(ours == fixture.addressed_to(endpoint), "{}", fixture.name);
                })
                .count()
                >= 18
        );
    }

    #[test]
    fn what_the_tests_write_is_what_aca_py_wrote() {
        let new = Fixture::all().into_iter().filter(|f| !f.name.starts_with("oldraw"));
        for fixture in new {
            let endpoint = "http://127.0.0.1:9/some/path/of/more/than/31/bytes";
            let headers: Vec<_> = fixture.headers.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
            let ours = envelope_with(endpoint, &headers, &fixture.payload);
            assert!(ours == fixture.addressed_to(endpoint), "{}", fixture.name);
        }
    }
}
