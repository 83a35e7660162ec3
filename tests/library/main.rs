//! The library from outside, without a Redis: what it makes of an envelope, and of a recipient.
//!
//! | file | holds tests of |
//! |---|---|
//! | `envelope.rs` | the wire formats, against what real ACA-Py wrote and against any bytes at all |
//! | `recipients.rs`, `recipients/websocket.rs` | recipients as they may be: slow, broken, hostile |
//! | `descriptors.rs` | what happens when file descriptors run out |
//! | `ureq_alone.rs` | why pool, transport, resolver and the way through proxies are ours |

mod descriptors;
mod envelope;
mod recipients;
mod ureq_alone;
