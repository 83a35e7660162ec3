//! What each user of the server sets: how much, how many and how long.

use std::time::Duration;

/// What a server's connections may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once. Further ones wait in the system's own queue.
    pub connections: usize,
    /// Whether, when all seats are taken, the oldest connection that has been answered makes room, and if there
    /// is none the oldest that has not asked anything for a moment: so neither half-open ones nor those
    /// that do not close keep anybody out.
    pub idle_make_room: bool,
    /// Connections a second, beyond the first `connections` of a burst; `None`: as many as come.
    pub per_second: Option<u32>,
    /// A request's line and headers may have so many bytes, and so many headers.
    pub head: usize,
    /// See `head`.
    pub headers: usize,
    /// Without a byte for so long a connection is closed.
    pub idle: Duration,
    /// A request may take so long to arrive, from when it is waited for.
    pub request: Duration,
    /// What is written may take so long to be taken.
    pub answer: Duration,
    /// A connection may take so long in all.
    pub connection: Option<Duration>,
    /// A connection that has its last answer is heard to its end for so long: a close with unread bytes would
    /// reset it, and the answer might be lost with that.
    pub linger: Duration,
    /// And for so many bytes.
    pub linger_bytes: usize,
    /// Stack of a connection's thread.
    pub stack: usize,
}

/// Those of the tests.
#[cfg(test)]
pub(super) const LIMITS: Limits = Limits {
    connections: 16,
    idle_make_room: true,
    per_second: Some(200),
    head: 8 << 10,
    headers: 64,
    idle: Duration::from_secs(5),
    request: Duration::from_secs(5),
    answer: Duration::from_secs(5),
    connection: Some(Duration::from_secs(5)),
    linger: Duration::from_millis(250),
    linger_bytes: 64 << 10,
    stack: 128 << 10,
};
