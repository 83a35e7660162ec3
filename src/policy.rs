//! From an [`Attempt`], the attempts so far and an age to an [`Outcome`]:
//! delivered, later, or dead for a reason. Pure; it knows no clock and no socket.

use std::time::Duration;

/// What one POST came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Attempt {
    /// The recipient answered.
    Answered {
        /// The HTTP status.
        status: u16,
        /// `Retry-After`, already turned into a time from now.
        retry_after: Option<Duration>,
    },
    /// No answer: what went wrong, and the words for it.
    Failed {
        /// At which stage.
        failure: Failure,
        /// For people: no credentials, no payload.
        error: String,
    },
    /// The endpoint may not be delivered to, now or ever (address policy); the reason names the rule.
    Refused {
        /// For the dead letter.
        reason: String,
    },
    /// This machine lacked something (file descriptors, memory): nobody else's fault.
    Lacking {
        /// What was lacking.
        error: String,
    },
}

/// The stage at which an attempt failed without an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    /// The host name has no address now.
    Resolve,
    /// No connection.
    Connect,
    /// No agreement on TLS.
    Tls,
    /// Not finished in time.
    Timeout,
    /// The connection broke, or what came was not HTTP.
    Broken,
}

/// What is to become of the message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// A 2xx answer.
    Delivered,
    /// To be attempted again.
    Later {
        /// Whose fault it was, which decides what waits with it.
        fault: Fault,
        /// What the recipient asked for, within 1 s to 1 h.
        retry_after: Option<Duration>,
        /// For the history and the log.
        error: String,
    },
    /// Never again, unless an operator replays it.
    Dead {
        /// For the dead letter.
        reason: String,
    },
}

/// Whose fault a failed attempt was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The endpoint gave no answer: its lane closes.
    NoAnswer,
    /// The endpoint answered 429, 502, 503 or 504: its lane narrows.
    Throttled,
    /// The message is at fault: it gets a backoff of its own.
    Message,
    /// This machine's own: nobody is blamed, and no attempt is counted.
    Ours,
}
