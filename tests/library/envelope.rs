//! The wire formats against what real ACA-Py wrote, and against any bytes at all.
//!
//! The fixtures are elements of the queue, byte for byte, in MessagePack of ACA-Py 0.7 and (`today`) in
//! JSON of ACA-Py 1.7; `manifest.json` says what each must be read as. The allocator of this binary counts, so that the
//! tests can say how much memory decoding takes.

#![allow(unsafe_code)] // A counting allocator is one; it passes all on to the system's.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;
use std::path::PathBuf;

use acapy_deliver::envelope::{Envelope, Format, MAX_ENDPOINT};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE;
use proptest::prelude::*;
use serde_json::Value;

#[path = "../fuzz/envelope_rules.rs"]
mod envelope_rules;

#[test]
fn every_fixture_is_read_as_its_manifest_says() {
    for fixture in fixtures(Format::MessagePack).into_iter().chain(fixtures(Format::Json)) {
        let Fixture { name, raw, manifest, format } = &fixture;
        assert_eq!(raw.len() as u64, manifest["size"].as_u64().unwrap(), "{name}");
        assert_eq!(sha256(raw), manifest["sha256"].as_str().unwrap(), "{name}");
        assert_eq!(Format::of(raw), *format, "{name}");
        let read = envelope_rules::check(raw);
        let Some(expected) = fixture.fate() else {
            let envelope = read.unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(envelope.format(), *format, "{name}");
            assert_eq!(envelope.endpoint(), fixture.endpoint(), "{name}");
            let mut headers: Vec<(&str, &[u8])> = envelope.headers().collect();
            let expected = fixture.headers();
            let expected: Vec<_> = expected.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
            if !expected.iter().any(|(name, _)| *name == "Content-Type") {
                assert_eq!(headers.pop(), Some(("Content-Type", &b"application/json"[..])), "{name}");
            }
            assert_eq!(headers, expected, "{name}");
            let payload = envelope.payload();
            assert_eq!(payload.len() as u64, manifest["payload_size"].as_u64().unwrap(), "{name}");
            assert_eq!(sha256(payload), manifest["payload_sha256"].as_str().unwrap(), "{name}");
            assert_eq!(u64::from(envelope.retries()), manifest["retries"].as_u64().unwrap_or(0), "{name}");
            continue;
        };
        assert_eq!(read.expect_err(name).to_string(), expected, "{name}");
    }
}

/// Seeds that are rejected would teach the fuzzer nothing of what comes after.
#[test]
fn the_seeds_of_the_fuzz_targets_are_accepted() {
    for (target, format) in [("envelope", Format::MessagePack), ("json", Format::Json)] {
        let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/seeds").join(target);
        for file in fs::read_dir(dir).unwrap() {
            let path = file.unwrap().path();
            match envelope_rules::check(&fs::read(&path).unwrap()) {
                Ok(envelope) => assert_eq!(envelope.format(), format, "{}", path.display()),
                Err(error) => panic!("{}: {error}", path.display()),
            }
        }
    }
}

#[test]
fn what_we_encode_is_what_aca_py_packed() {
    let mut n_compared = 0;
    for fixture in fixtures(Format::MessagePack).into_iter().chain(fixtures(Format::Json)) {
        let Some(payload) = fixture.payload() else { continue };
        let encoded = fixture.format.encode(fixture.headers(), fixture.endpoint(), &payload);
        // `oldraw-*` is what ACA-Py never wrote, and we don't either; `retry-*` is the plugin's deliverer's.
        if fixture.name.starts_with("oldraw-") || fixture.name.starts_with("retry-") {
            assert_ne!(encoded, fixture.raw, "{}", fixture.name);
        } else {
            assert!(encoded == fixture.raw, "{}: {}", fixture.name, encoded.escape_ascii());
            n_compared += 1;
        }
    }
    // Eight of MessagePack, and of the 28 in JSON all but five of the deliverer and the one without an endpoint.
    assert_eq!(n_compared, 8 + 22);
}

#[test]
fn a_large_payload_costs_nothing() {
    let raw = Envelope::encode([("Content-Type", "t")], "http://h/", &vec![7; 64 << 20]);
    let (read, peak) = peak_of(|| Envelope::decode(raw));
    assert_eq!(read.unwrap().payload().len(), 64 << 20);
    assert!(peak < 1024, "{peak} bytes");
}

#[test]
fn a_large_payload_in_json_costs_itself_and_for_others_ways_of_writing_it_a_copy() {
    let raw = Format::Json.encode([("Content-Type", "t")], "http://h/", &vec![7; 24 << 20]);
    let text = String::from_utf8(raw.clone()).unwrap();
    let in_lines = text.replace("BwcHBwcH", "BwcH\\nBwcH");
    let escaped = text.replace("Bw", "B\\u0077");
    for (raw, per_byte) in [(raw, 0.76), (in_lines.into_bytes(), 4.0), (escaped.into_bytes(), 2.0)] {
        let n = raw.len();
        let (read, peak) = peak_of(|| Envelope::decode(raw));
        assert_eq!(read.unwrap().payload().len(), 24 << 20);
        assert!(peak as f64 <= per_byte * n as f64 + 1024.0, "{peak} bytes for {n}");
    }
}

#[test]
fn any_number_of_members_and_headers_in_json_costs_little() {
    for (n_headers, is_read) in [(999, true), (200_000, false)] {
        let mut raw = br#"{"service": {"url": "http://h"}, "payload": "", "headers": {"#.to_vec();
        raw.extend((0..n_headers).map(|n| format!("\"{n:x}\":\"\",")).collect::<String>().bytes());
        raw.extend(b"\"last\": \"\"}}");
        let n = raw.len();
        let (read, peak) = peak_of(|| Envelope::decode(raw));
        assert_eq!(read.is_ok(), is_read);
        assert!(peak <= HEADERS_BOUND, "{peak} bytes for {n}");
    }
    let one = br#""x": {"headers": []}, "headers": {"same": "value", "same": ""}, "#.repeat(50_000);
    let raw = [b"{", &one[..], br#""service": {"url": "http://h"}, "payload": ""}"#].concat();
    let (read, peak) = peak_of(|| Envelope::decode(raw));
    assert_eq!(read.unwrap().headers().count(), 2);
    assert!(peak < 2048, "{peak} bytes");
    let deep = [&b"{\"x\":"[..], &b"[".repeat(1 << 20)].concat();
    let (read, peak) = peak_of(|| Envelope::decode(deep));
    read.unwrap_err();
    assert!(peak <= 4 << 20, "{peak} bytes");
}

#[test]
fn headers_without_number_cost_nothing() {
    let headers = vec![("a", "b"); 30_000];
    let raw = Envelope::encode(headers, "http://h/", b"");
    let (read, peak) = peak_of(|| Envelope::decode(raw));
    let envelope = read.unwrap();
    assert!(peak < 1024, "{peak} bytes");
    let (n_headers, peak) = peak_of(|| envelope.headers().count());
    // With the content type that they lack.
    assert_eq!((n_headers, peak), (30_001, 0));
}

#[test]
fn lengths_that_are_not_there_cost_nothing() {
    let heads: [&[u8]; 5] = [
        b"\xdf\xff\xff\xff\xff",
        b"\xdd\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x01",
    ];
    let places: [&[u8]; 5] = [b"", b"\x81\xa7headers", b"\x81\xa8endpoint", b"\x81\xa7payload", b"\x81\xa7unknown\x91"];
    for (place, head) in places.iter().flat_map(|place| heads.map(|head| (place, head))) {
        let raw = [place, head].concat();
        let shown = raw.escape_ascii().to_string();
        let (read, peak) = peak_of(|| Envelope::decode(raw));
        read.unwrap_err();
        assert!(peak < 512, "{peak} bytes for {shown}");
    }
}

#[test]
fn an_endless_endpoint_is_not_parsed() {
    let raw = Envelope::encode([], &"\u{e4}".repeat(1 << 20), b"");
    let (read, peak) = peak_of(|| Envelope::decode(raw));
    assert_eq!(read.unwrap_err().to_string(), "endpoint of 2097152 bytes, 8192 are allowed");
    assert!(peak < 1024, "{peak} bytes");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_read_or_explained(raw in any::<Vec<u8>>()) {
        check_any(&raw);
    }

    #[test]
    fn any_endpoint_is_read_or_explained(
        scheme in prop_oneof![Just("http://"), Just("https:"), Just("HTTP:\\"), Just("")],
        rest in any::<String>(),
        ascii in "[ -~]{0,30}",
    ) {
        for format in [Format::MessagePack, Format::Json] {
            check_any(&format.encode([], &format!("{scheme}{rest}"), b""));
            check_any(&format.encode([], &format!("{scheme}{ascii}"), b""));
            check_any(&format.encode([], &format!("{scheme}{ascii}/{rest}"), b""));
        }
    }

    #[test]
    fn any_headers_are_read_or_explained(
        headers in prop::collection::vec((".{0,8}", any::<String>()), 0..5),
    ) {
        let headers = headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        check_any(&Format::MessagePack.encode(headers.clone(), "http://h", b""));
        check_any(&Format::Json.encode(headers, "http://h", b""));
    }

    #[test]
    fn damaged_messages_are_read_or_explained(
        damaged in any::<prop::sample::Index>(),
        other in any::<prop::sample::Index>(),
        damages in prop::collection::vec(any::<Damage>(), 1..6),
    ) {
        for format in [Format::MessagePack, Format::Json] {
            let (mut raw, other) = (small_fixture(format, damaged), small_fixture(format, other));
            for damage in damages.clone() {
                damage.apply(&mut raw, &other);
                check_any(&raw);
            }
        }
    }

    #[test]
    fn any_json_is_read_or_explained(members in prop::collection::vec((any_name(), any_json()), 0..6)) {
        check_any(&object(&members).into_bytes());
        let with_service = [vec![("service".into(), "{\"url\": \"http://h\"}".into())], members].concat();
        check_any(&object(&with_service).into_bytes());
        let with_payload = [vec![("payload".into(), "\"e30=\"".into())], with_service].concat();
        check_any(&object(&with_payload).into_bytes());
    }

    #[test]
    fn any_payload_in_json_is_read_or_explained(payload in "[A-Za-z0-9+/_=\\\\un \n-]{0,40}", any in any::<String>()) {
        for payload in [payload, any] {
            let json = format!("{{\"service\": {{\"url\": \"http://h\"}}, \"payload\": \"{payload}\"}}");
            check_any(json.as_bytes());
        }
    }

    #[test]
    fn what_is_encoded_is_read_again(
        headers in prop::collection::vec(("X-[a-zA-Z0-9!#$%&'*+.^_`|~-]{0,40}", "[ -~\u{a0}-\u{17f}\t]{0,300}"), 0..20),
        user in "([a-z]{1,5}(:[a-z]{0,5})?@)?",
        host in "[a-z][a-z0-9-]{0,10}(\\.[a-z]{2,8})?",
        port in 1u16..,
        path in "(/[A-Za-z0-9._~!$&'()*+,;=:@%-]{0,300}){0,3}",
        payload in any::<Vec<u8>>(),
        longer in prop_oneof![Just(0usize), Just(200), Just(300), Just(70_000)],
    ) {
        // Labels like `xn--…` need not be valid; paths like `/..` have a shorter canonical form.
        prop_assume!(!host.starts_with("xn-") && !host.contains("--"));
        let endpoint = format!("http://{user}{host}:{port}{path}");
        prop_assume!(endpoint.len() <= MAX_ENDPOINT);
        let payload = [payload, vec![b'x'; longer]].concat();
        let headers: Vec<_> =
            headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        // Keys of a map, which the last of equal ones would decide.
        let mut seen = std::collections::HashSet::new();
        let headers: Vec<_> = headers.into_iter().filter(|(name, _)| seen.insert(*name)).collect();
        for format in [Format::MessagePack, Format::Json] {
        let raw = format.encode(headers.iter().copied(), &endpoint, &payload);
        let envelope = envelope_rules::check(&raw).map_err(|error| TestCaseError::fail(error.to_string()))?;
        prop_assert_eq!(envelope.endpoint(), &endpoint);
        prop_assert_eq!(envelope.origin(), format!("http://{host}:{port}"));
        prop_assert_eq!(envelope.payload(), &payload);
        let read: Vec<_> = envelope.headers().collect();
        let expected: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
        prop_assert_eq!(&read[..expected.len()], &expected[..]);
        // And the content type.
        let n_added = usize::from(!user.is_empty()) + 1;
        prop_assert_eq!(read.len(), expected.len() + n_added);
        prop_assert_eq!(format.encode(headers.iter().copied(), envelope.endpoint(), envelope.payload()), raw);
        }
    }
}

/// The rules, and the memory: the parsed URL is up to three times as long as the
/// endpoint, lives twice for a moment while it grows, and is named again in the
/// origin or in a reason; 2 KiB cover what small inputs cost anyhow. JSON is decoded, for which what is
/// escaped or base64 in lines is copied twice, and headers are listed.
fn check_any(raw: &[u8]) {
    let owned = raw.to_vec();
    let (_, peak) = peak_of(|| Envelope::decode(owned));
    let mut bound = 2048 + 12 * raw.len().min(MAX_ENDPOINT);
    if Format::of(raw) == Format::Json {
        bound += 4 * raw.len() + (30 * raw.len()).min(HEADERS_BOUND);
    }
    assert!(peak <= bound, "{peak} bytes for {} bytes: {}", raw.len(), raw.escape_ascii());
    let _ = envelope_rules::check(raw);
}

/// What lists of the headers take at most, however many are pushed.
const HEADERS_BOUND: usize = 200 << 10;

/// Names of members, most of them ones that matter.
fn any_name() -> impl Strategy<Value = String> {
    prop_oneof![
        5 => prop::sample::select(vec!["service", "payload", "headers", "retries", "url"]).prop_map(String::from),
        1 => any::<String>(),
    ]
}

/// JSON of any kind, as text; some of it with broken strings in it.
fn any_json() -> impl Strategy<Value = String> {
    let text = || {
        prop_oneof![
            any::<String>().prop_map(|text| Value::from(text).to_string()),
            "[ -~]{0,10}".prop_map(|text| format!("\"{text}\"")),
            Just("\"e30=\"".to_string()),
            Just("\"http://h\"".to_string()),
            Just("\"\\ud800\"".to_string()),
        ]
    };
    let leaf = prop_oneof![
        text(),
        prop::sample::select(vec!["null", "true", "false", "-0", "1e999", "12345678901234567890123", "3"])
            .prop_map(String::from),
    ];
    leaf.prop_recursive(4, 24, 6, move |inner| {
        prop_oneof![
            prop::collection::vec((any_name(), inner.clone()), 0..6).prop_map(|members| object(&members)),
            prop::collection::vec(inner, 0..6).prop_map(|values| format!("[{}]", values.join(","))),
        ]
    })
}

fn object(members: &[(String, String)]) -> String {
    let members: Vec<_> = members.iter().map(|(name, value)| format!("{}: {value}", Value::from(&**name))).collect();
    format!("{{{}}}", members.join(", "))
}

/// What can happen to bytes; places are fractions of the whole.
#[derive(Debug, Clone)]
enum Damage {
    Set(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Insert(prop::sample::Index, Vec<u8>),
    Remove(prop::sample::Index, u8),
    /// The beginning of this and the end of another.
    Splice(prop::sample::Index, prop::sample::Index),
}

impl Arbitrary for Damage {
    type Parameters = ();
    type Strategy = BoxedStrategy<Damage>;

    fn arbitrary_with((): ()) -> BoxedStrategy<Damage> {
        use prop::sample::Index;
        // Most damage is done near the beginning, where the structure is.
        prop_oneof![
            4 => any::<(Index, u8)>().prop_map(|(at, byte)| Damage::Set(at, byte)),
            1 => any::<Index>().prop_map(Damage::Cut),
            2 => (any::<Index>(), prop::collection::vec(any::<u8>(), 1..9))
                .prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
            2 => any::<(Index, u8)>().prop_map(|(at, n)| Damage::Remove(at, n)),
            1 => any::<(Index, Index)>().prop_map(|(at, from)| Damage::Splice(at, from)),
        ]
        .boxed()
    }
}

impl Damage {
    fn apply(self, raw: &mut Vec<u8>, other: &[u8]) {
        let n = raw.len();
        // An even index falls into the first 100 bytes, which hold all but the payload.
        let place = |index: prop::sample::Index| match index.index(usize::MAX) % 2 {
            0 => index.index(n.min(100) + 1),
            _ => index.index(n + 1),
        };
        match self {
            Damage::Set(at, byte) => {
                if let Some(old) = raw.get_mut(place(at)) {
                    *old = byte;
                }
            }
            Damage::Cut(at) => raw.truncate(place(at)),
            Damage::Insert(at, bytes) => {
                let at = place(at);
                raw.splice(at..at, bytes);
            }
            Damage::Remove(at, n_bytes) => {
                let at = place(at);
                raw.drain(at..n.min(at + usize::from(n_bytes)));
            }
            Damage::Splice(at, from) => {
                raw.truncate(place(at));
                raw.extend_from_slice(&other[from.index(other.len())..]);
            }
        }
    }
}

struct Fixture {
    name: String,
    raw: Vec<u8>,
    manifest: Value,
    format: Format,
}

impl Fixture {
    fn headers(&self) -> Vec<(&str, &str)> {
        // In the order of the file, which the manifest's reader does not keep.
        let mut headers: Vec<(&str, &str)> = match self.manifest["headers"].as_object() {
            Some(headers) => headers.iter().map(|(name, value)| (name.as_str(), value.as_str().unwrap())).collect(),
            None => Vec::new(),
        };
        if self.format == Format::Json {
            let text = str::from_utf8(&self.raw).unwrap();
            headers.sort_by_key(|(name, _)| text.find(&format!("\"{name}\": ")));
        }
        headers
    }

    fn endpoint(&self) -> &str {
        let name = if self.format == Format::Json { "url" } else { "endpoint" };
        self.manifest[name].as_str().unwrap()
    }

    /// By another way than ours; `None` without an endpoint.
    fn payload(&self) -> Option<Vec<u8>> {
        match self.format {
            // The last value of the map.
            Format::MessagePack => {
                let size = self.manifest["payload_size"].as_u64().unwrap() as usize;
                Some(self.raw[self.raw.len() - size..].to_vec())
            }
            Format::Json => {
                let value: Value = serde_json::from_slice(&self.raw).unwrap();
                self.manifest["url"].as_str()?;
                Some(BASE64_URL_SAFE.decode(value["payload"].as_str().unwrap()).unwrap())
            }
        }
    }

    /// The reason, if it is not to be delivered.
    fn fate(&self) -> Option<String> {
        if self.manifest["url"].is_null() && self.format == Format::Json {
            let why = "no service, a payload alone: an entry of mediator mode, which is for another ACA-Py to fetch";
            return Some(why.to_string());
        }
        let scheme = self.endpoint().split(':').next().unwrap();
        (!scheme.starts_with("http") && !scheme.starts_with("ws"))
            .then(|| format!("endpoint of scheme {scheme}, only http, https, ws and wss are supported"))
    }
}

fn fixtures(format: Format) -> Vec<Fixture> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let (dir, n) = if format == Format::Json { (dir.join("today"), 28) } else { (dir, 16) };
    let manifest = fs::read(dir.join("manifest.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    let mut fixtures = Vec::new();
    for (name, manifest) in manifest.as_object().unwrap() {
        let raw = fs::read(dir.join(name)).unwrap();
        fixtures.push(Fixture { name: name.clone(), raw, manifest: manifest.clone(), format });
    }
    assert_eq!(fixtures.len(), n, "all fixtures are in the manifest");
    fixtures
}

/// One of the fixtures that are small enough to be damaged thousands of times.
fn small_fixture(format: Format, index: prop::sample::Index) -> Vec<u8> {
    thread_local! {
        static SMALL: [Vec<Vec<u8>>; 2] = [Format::MessagePack, Format::Json].map(|format| {
            fixtures(format).into_iter().map(|fixture| fixture.raw).filter(|raw| raw.len() < 3000).collect()
        });
    }
    SMALL.with(|small| {
        let small = &small[usize::from(format == Format::Json)];
        small[index.index(small.len())].clone()
    })
}

fn sha256(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What `f` returns, and the most bytes that this thread held beyond what it held before.
fn peak_of<T>(f: impl FnOnce() -> T) -> (T, usize) {
    let before = HELD.get();
    PEAK.set(before);
    let result = f();
    (result, usize::try_from(PEAK.get() - before).unwrap())
}

thread_local! {
    /// Bytes allocated less bytes freed by this thread; below zero if it freed others' bytes.
    static HELD: Cell<i64> = const { Cell::new(0) };
    static PEAK: Cell<i64> = const { Cell::new(0) };
}

fn count(n_bytes: i64) {
    let held = HELD.get() + n_bytes;
    HELD.set(held);
    PEAK.set(PEAK.get().max(held));
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call goes on unchanged to the system's allocator; counting neither
// allocates nor unwinds, its cells being constant and without a destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as i64));
        unsafe { System.dealloc(pointer, layout) }
    }

    // `realloc` is left to its default, which is alloc and dealloc: the moment when both are held counts.
}
