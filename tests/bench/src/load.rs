//! The messages: written as ACA-Py writes them, for as many endpoints as wanted, and put into
//! Redis by Redis itself, for pushing hundreds of megabytes through a socket before each round
//! would take longer than the round.

use std::net::Ipv4Addr;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE;
use rmp::encode::{write_bin, write_map_len, write_str};

/// The key that ACA-Py pushes to.
pub const QUEUE: &str = "acapy.outbound_transport";

/// One queue entry as the plugin of today's ACA-Py writes it.
pub fn json_message(endpoint: &str, payload: &[u8]) -> Vec<u8> {
    let payload = BASE64_URL_SAFE.encode(payload);
    let headers = r#"{"Content-Type": "application/didcomm-envelope-enc"}"#;
    format!(r#"{{"service": {{"url": "{endpoint}"}}, "payload": "{payload}", "headers": {headers}}}"#).into_bytes()
}

/// One queue entry as ACA-Py 0.7 writes it: headers, endpoint, payload, in its order and types.
pub fn message(endpoint: &str, payload: &[u8]) -> Vec<u8> {
    let mut wire = Vec::with_capacity(payload.len() + endpoint.len() + 100);
    let done = "memory can be written to";
    write_map_len(&mut wire, 3).expect(done);
    write_str(&mut wire, "headers").expect(done);
    write_map_len(&mut wire, 1).expect(done);
    write_str(&mut wire, "Content-Type").expect(done);
    write_str(&mut wire, "application/ssi-agent-wire").expect(done);
    write_str(&mut wire, "endpoint").expect(done);
    write_str(&mut wire, endpoint).expect(done);
    write_str(&mut wire, "payload").expect(done);
    write_bin(&mut wire, payload).expect(done);
    wire
}

/// The address of the `n`th origin: all of 127.0.0.0/8 leads to this machine, so that one
/// listening socket can be ten thousand origins.
pub fn origin(n: usize) -> Ipv4Addr {
    Ipv4Addr::from(0x7f01_0001 + u32::try_from(n).expect("origins fit in 127.0.0.0/8"))
}

/// Which origin an address is.
pub fn origin_number(address: Ipv4Addr) -> Option<usize> {
    u32::from(address).checked_sub(0x7f01_0001).map(|n| n as usize)
}

/// The endpoint at the `n`th origin.
pub fn endpoint(scheme: &str, n: usize, port: u16) -> String {
    format!("{scheme}://{}:{port}/", origin(n))
}

/// A payload of this size that looks like one: a DIDComm message is base64 text.
pub fn payload(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|n| b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"[n * 7 % 64]).collect()
}

/// What is put into the queue before a round.
#[derive(Clone, Debug)]
pub struct Load {
    pub messages: usize,
    pub bytes: usize,
    pub origins: usize,
    pub scheme: &'static str,
    pub port: u16,
    /// Written as today's ACA-Py does, not as 0.7 did.
    pub json: bool,
}

impl Load {
    /// Puts it there: the origins take turns.
    pub fn preload(&self, redis: &mut redis::Connection) {
        let payload = payload(self.bytes);
        let script =
            redis::Script::new("for i = 0, ARGV[1] - 1 do redis.call('RPUSH', KEYS[1], ARGV[2 + i % (#ARGV - 1)]) end");
        let write = if self.json { json_message } else { message };
        let mut call = script.key(QUEUE);
        call.arg(self.messages);
        for n in 0..self.origins.min(self.messages) {
            call.arg(write(&endpoint(self.scheme, n, self.port), &payload));
        }
        call.invoke::<()>(redis).expect("the queue can be filled");
    }
}
