//! The wire format against what real ACA-Py wrote, and against any bytes at all.
//!
//! The fixtures are elements of the queue, byte for byte; `manifest.json` says
//! what each must be read as. The allocator of this binary counts, so that the
//! tests can say how much memory decoding takes.

#![allow(unsafe_code)] // A counting allocator is one; it passes all on to the system's.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;
use std::path::PathBuf;

use acapy_deliver::envelope::{Envelope, MAX_ENDPOINT};
use proptest::prelude::*;
use serde_json::Value;

#[path = "fuzz/envelope_rules.rs"]
mod envelope_rules;

#[test]
fn every_fixture_is_read_as_its_manifest_says() {
    for fixture in fixtures() {
        let Fixture { name, raw, manifest } = &fixture;
        assert_eq!(raw.len() as u64, manifest["size"].as_u64().unwrap(), "{name}");
        assert_eq!(sha256(raw), manifest["sha256"].as_str().unwrap(), "{name}");
        let envelope = envelope_rules::check(raw).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(envelope.endpoint(), manifest["endpoint"].as_str().unwrap(), "{name}");
        let headers: Vec<(&str, &[u8])> = envelope.headers().collect();
        let expected = fixture.headers();
        let expected: Vec<_> = expected.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
        assert_eq!(headers, expected, "{name}");
        let payload = envelope.payload();
        assert_eq!(payload.len() as u64, manifest["payload_size"].as_u64().unwrap(), "{name}");
        assert_eq!(sha256(payload), manifest["payload_sha256"].as_str().unwrap(), "{name}");
        assert_eq!(envelope.retries(), 0, "{name}");
    }
}

/// Seeds that are rejected would teach the fuzzer nothing of what comes after.
#[test]
fn the_seeds_of_the_fuzz_target_are_accepted() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/seeds/envelope");
    for file in fs::read_dir(dir).unwrap() {
        let path = file.unwrap().path();
        if let Err(error) = envelope_rules::check(&fs::read(&path).unwrap()) {
            panic!("{}: {error}", path.display());
        }
    }
}

#[test]
fn what_we_encode_is_what_aca_py_packed() {
    let mut n_compared = 0;
    for fixture in fixtures() {
        let envelope = Envelope::decode(fixture.raw.clone()).unwrap();
        let encoded = Envelope::encode(fixture.headers(), envelope.endpoint(), envelope.payload());
        // `oldraw-*` is what ACA-Py never wrote, and we don't either.
        if fixture.name.starts_with("oldraw-") {
            assert_ne!(encoded, fixture.raw, "{}", fixture.name);
        } else {
            assert!(encoded == fixture.raw, "{}", fixture.name);
            n_compared += 1;
        }
    }
    assert_eq!(n_compared, 8);
}

#[test]
fn a_large_payload_costs_nothing() {
    let raw = Envelope::encode([("Content-Type", "t")], "http://h/", &vec![7; 64 << 20]);
    let (read, peak) = peak_of(|| Envelope::decode(raw));
    assert_eq!(read.unwrap().payload().len(), 64 << 20);
    assert!(peak < 1024, "{peak} bytes");
}

#[test]
fn headers_without_number_cost_nothing() {
    let headers = vec![("a", "b"); 30_000];
    let raw = Envelope::encode(headers, "http://h/", b"");
    let (read, peak) = peak_of(|| Envelope::decode(raw));
    let envelope = read.unwrap();
    assert!(peak < 1024, "{peak} bytes");
    let (n_headers, peak) = peak_of(|| envelope.headers().count());
    assert_eq!((n_headers, peak), (30_000, 0));
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
        check_any(&Envelope::encode([], &format!("{scheme}{rest}"), b""));
        check_any(&Envelope::encode([], &format!("{scheme}{ascii}"), b""));
        check_any(&Envelope::encode([], &format!("{scheme}{ascii}/{rest}"), b""));
    }

    #[test]
    fn any_headers_are_read_or_explained(
        headers in prop::collection::vec((".{0,8}", any::<String>()), 0..5),
    ) {
        let headers = headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        check_any(&Envelope::encode(headers, "http://h", b""));
    }

    #[test]
    fn damaged_messages_are_read_or_explained(
        damaged in any::<prop::sample::Index>(),
        other in any::<prop::sample::Index>(),
        damages in prop::collection::vec(any::<Damage>(), 1..6),
    ) {
        let (mut raw, other) = (small_fixture(damaged), small_fixture(other));
        for damage in damages {
            damage.apply(&mut raw, &other);
            check_any(&raw);
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
        let raw = Envelope::encode(headers.iter().copied(), &endpoint, &payload);
        let envelope = envelope_rules::check(&raw).map_err(|error| TestCaseError::fail(error.to_string()))?;
        prop_assert_eq!(envelope.endpoint(), endpoint);
        prop_assert_eq!(envelope.origin(), format!("http://{host}:{port}"));
        prop_assert_eq!(envelope.payload(), payload);
        let read: Vec<_> = envelope.headers().collect();
        let expected: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
        prop_assert_eq!(&read[..expected.len()], &expected[..]);
        let n_added = usize::from(!user.is_empty());
        prop_assert_eq!(read.len(), expected.len() + n_added);
        prop_assert_eq!(Envelope::encode(headers, envelope.endpoint(), envelope.payload()), raw);
    }
}

/// The rules, and the memory: the parsed URL is up to three times as long as the
/// endpoint, lives twice for a moment while it grows, and is named again in the
/// origin or in a reason; 2 KiB cover what small inputs cost anyhow.
fn check_any(raw: &[u8]) {
    let owned = raw.to_vec();
    let (_, peak) = peak_of(|| Envelope::decode(owned));
    let bound = 2048 + 12 * raw.len().min(MAX_ENDPOINT);
    assert!(peak <= bound, "{peak} bytes for {} bytes: {}", raw.len(), raw.escape_ascii());
    let _ = envelope_rules::check(raw);
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
}

impl Fixture {
    fn headers(&self) -> Vec<(&str, &str)> {
        let headers = self.manifest["headers"].as_object().unwrap();
        headers.iter().map(|(name, value)| (name.as_str(), value.as_str().unwrap())).collect()
    }
}

fn fixtures() -> Vec<Fixture> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let manifest = fs::read(dir.join("manifest.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    let mut fixtures = Vec::new();
    for (name, manifest) in manifest.as_object().unwrap() {
        let raw = fs::read(dir.join(name)).unwrap();
        fixtures.push(Fixture { name: name.clone(), raw, manifest: manifest.clone() });
    }
    assert_eq!(fixtures.len(), 16, "all fixtures are in the manifest");
    fixtures
}

/// One of the fixtures that are small enough to be damaged thousands of times.
fn small_fixture(index: prop::sample::Index) -> Vec<u8> {
    thread_local! {
        static SMALL: Vec<Vec<u8>> =
            fixtures().into_iter().map(|fixture| fixture.raw).filter(|raw| raw.len() < 3000).collect();
    }
    SMALL.with(|small| small[index.index(small.len())].clone())
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
