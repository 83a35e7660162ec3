//! Fuzz target: any bytes as an element of the queue, from JSON on; its seeds and its dictionary are
//! what tells it from `envelope.rs`.

#![no_main]

mod envelope_rules;

libfuzzer_sys::fuzz_target!(|raw: &[u8]| {
    let _ = envelope_rules::check(raw);
});
