//! Fuzz target: any bytes as an element of the queue. See `envelope_rules.rs` for what must hold.

#![no_main]

mod envelope_rules;

libfuzzer_sys::fuzz_target!(|raw: &[u8]| {
    let _ = envelope_rules::check(raw);
});
