//! What an attempt means: an [`Attempt`] and the message's history give one [`Outcome`] (delivered, later, dead).
//! Also the backoffs of lanes and messages, what `Retry-After` asks for, and the words for all of it: [`Attempt`],
//! [`Failure`], [`Fault`], [`Outcome`]. Pure: it knows no clock, no socket and no source of randomness; those are
//! arguments.
//!
//! It promises that every attempt has exactly one outcome, that only a 2xx
//! answer delivers, or over WebSocket a close without complaint after the whole message, and that reasons of
//! death stay few in kind, so that dead letters can be counted by them. It leaves to the lanes what a fault
//! brings down, and to the queue how old a message is.

use std::time::{Duration, SystemTime};

use ureq::http::StatusCode;

use crate::queue::History;
use crate::text;

/// The longest that a message at fault waits between two attempts, before
/// jitter; also the longest `Retry-After` that is honoured.
pub const MESSAGE_BACKOFF_MAX: Duration = Duration::from_secs(3600);

/// Answers after which the same message will never do, so that another attempt
/// only costs the recipient: what HTTP says of them, and what ACA-Py's
/// recipients were seen to answer to bodies they will never take.
pub(crate) const FINAL_STATUSES: [u16; 12] = [400, 405, 410, 411, 413, 414, 415, 422, 426, 431, 501, 505];

/// Codes of a WebSocket's close that speak of the message: it broke the protocol, is of the wrong kind, holds
/// what it may not, is too big, or wants an extension that was not offered.
const FINAL_CODES: [u16; 6] = [1002, 1003, 1007, 1008, 1009, 1010];

/// Answers that speak of the endpoint's state and not of the message.
const THROTTLED_STATUSES: [u16; 4] = [429, 502, 503, 504];

/// When a message is attempted again, and when no more.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Retry {
    /// Age, since the first time it was put off, at which a failed message dies (`--give-up-after`).
    pub give_up_after: Duration,
    /// Statuses that are final, whatever the table says (`--final`).
    pub final_statuses: Vec<u16>,
    /// Statuses that are not final, whatever the table says (`--retryable`).
    pub retryable_statuses: Vec<u16>,
    /// Failed attempts after which a message is dead, those of other programs included (`--attempts`); `None`:
    /// only its age counts. For recipients that fail after they have taken a message, and take each copy.
    pub attempts: Option<u32>,
    /// Strict order (`--ordered`): a message's age counts from when it was first held up behind older ones.
    pub ordered: bool,
}

impl Default for Retry {
    fn default() -> Retry {
        Retry {
            give_up_after: Duration::from_secs(24 * 3600),
            final_statuses: Vec::new(),
            retryable_statuses: Vec::new(),
            attempts: None,
            ordered: false,
        }
    }
}

/// What is to become of a message after this attempt. `history` is as it was
/// before it: `history.age` is the time since its first failure, or, if it has none yet,
/// since it was first put off. The latter counts in strict order alone, where those behind a
/// message that fails cannot be attempted themselves; even so, none dies unattempted.
///
/// What this machine lacked never makes a message dead, however old: it was not
/// attempted, and a machine short of descriptors would bury all that waits.
pub fn judge(attempt: &Attempt, history: &History, retry: &Retry) -> Outcome {
    match judge_attempt(attempt, retry) {
        Outcome::Later { fault, error, .. }
            if fault != Fault::Ours
                && (history.attempts > 0 || retry.ordered)
                && history.is_aged(retry.give_up_after) =>
        {
            Outcome::Dead { reason: gave_up(retry.give_up_after, &error), fault: Some(fault) }
        }
        Outcome::Later { fault, error, .. }
            if fault != Fault::Ours
                && retry.attempts.is_some_and(|most| history.attempts.saturating_add(1) >= most) =>
        {
            let n = retry.attempts.unwrap_or_default();
            let reason = format!("gave up after {n} attempt{}: {error}", if n == 1 { "" } else { "s" });
            Outcome::Dead { reason, fault: Some(fault) }
        }
        outcome => outcome,
    }
}

/// The reason of a death by age.
pub fn gave_up(after: Duration, last_error: &str) -> String {
    format!("gave up after {}: {last_error}", text::exact(after))
}

fn judge_attempt(attempt: &Attempt, retry: &Retry) -> Outcome {
    match attempt {
        Attempt::Answered { status: 200..=299, .. } => Outcome::Delivered,
        Attempt::Answered { status, retry_after, note } | Attempt::Unopened { status, retry_after, note } => {
            judge_status(*status, *retry_after, note.as_deref(), retry)
        }
        Attempt::Closed { code, reason, sent } => judge_close(*code, reason, *sent),
        Attempt::Failed { failure, error } => {
            let fault = match failure {
                Failure::Resolve | Failure::Denied | Failure::Connect | Failure::Tls => Fault::Unreachable,
                Failure::Timeout | Failure::Broken => Fault::NoAnswer,
            };
            Outcome::Later { fault, retry_after: None, error: error.clone() }
        }
        Attempt::Refused { reason } => Outcome::Dead { reason: reason.clone(), fault: None },
        Attempt::Elsewhere { error, wait } => {
            Outcome::Later { fault: Fault::Elsewhere, retry_after: Some(*wait), error: error.clone() }
        }
        Attempt::Lacking { error } => Outcome::Later { fault: Fault::Ours, retry_after: None, error: error.clone() },
    }
}

/// Of a status that delivered nothing: one of 2xx that answers a handshake has opened no WebSocket.
fn judge_status(status: u16, retry_after: Option<Duration>, note: Option<&str>, retry: &Retry) -> Outcome {
    let later = |fault| Outcome::Later { fault, retry_after, error: spell_status(status, note) };
    let dead = || Outcome::Dead { reason: spell_status(status, note), fault: Some(Fault::Message) };
    match status {
        _ if retry.final_statuses.contains(&status) => dead(),
        _ if retry.retryable_statuses.contains(&status) => later(Fault::Message),
        _ if THROTTLED_STATUSES.contains(&status) => later(Fault::Throttled),
        _ if FINAL_STATUSES.contains(&status) => dead(),
        _ => later(Fault::Message),
    }
}

/// Of a WebSocket that was closed. Frames are read in their order, so who says nothing against a message
/// that was sent whole has taken it. Who goes away may have read it or not.
fn judge_close(code: Option<u16>, reason: &str, sent: bool) -> Outcome {
    let words = spell_close(code, reason);
    let later = |fault, words: String| Outcome::Later { fault, retry_after: None, error: words };
    match code {
        None | Some(1000) if sent => Outcome::Delivered,
        None | Some(1000) => later(Fault::NoAnswer, format!("{words} before the whole message was sent")),
        Some(code) if FINAL_CODES.contains(&code) => Outcome::Dead { reason: words, fault: Some(Fault::Message) },
        Some(_) if sent => later(Fault::Throttled, format!("{words}: the message may have arrived")),
        Some(_) => later(Fault::Throttled, words),
    }
}

/// For people: `closed with 1009 (too big): at most 4 MB`.
fn spell_close(code: Option<u16>, reason: &str) -> String {
    let Some(code) = code else { return "closed without a code".to_string() };
    let name = match code {
        1000 => " (normal)",
        1001 => " (going away)",
        1002 => " (protocol error)",
        1003 => " (unsupported data)",
        1007 => " (invalid data)",
        1008 => " (policy violation)",
        1009 => " (too big)",
        1010 => " (extension missing)",
        1011 => " (server error)",
        1012 => " (restarting)",
        1013 => " (try again later)",
        1014 => " (bad gateway)",
        _ => "",
    };
    match reason {
        "" => format!("closed with {code}{name}"),
        reason => format!("closed with {code}{name}: {reason}"),
    }
}

/// For people, few in kind: `410 Gone`, `302 Found (redirect not followed)`.
fn spell_status(status: u16, note: Option<&str>) -> String {
    let name = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
    let mut words = status.to_string();
    if let Some(name) = name {
        words.push(' ');
        words.push_str(name);
    }
    if let Some(note) = note {
        words.push_str(" (");
        words.push_str(note);
        words.push(')');
    }
    words
}

/// A backoff varies by up to this part of it, either way.
const JITTER: f64 = 0.2;

/// The longest that a lane whose longest backoff is `max` stays down, jitter included: its own, or what a recipient
/// asked for.
pub fn longest_lane_backoff(max: Duration) -> Duration {
    max.max(MESSAGE_BACKOFF_MAX).mul_f64(1.0 + JITTER)
}

/// The longest that a message waits for a backoff of its own, jitter included.
pub fn longest_message_backoff() -> Duration {
    MESSAGE_BACKOFF_MAX.mul_f64(1.0 + JITTER)
}

/// How long a lane stays down after its `n_failures`th failure since its last
/// delivery: `first` × 2^(n−1), at most `max`, then varied by up to a fifth either
/// way, so that lanes that went down together are not tried together. `jitter` is a
/// random number from −1 to 1.
pub fn lane_backoff(n_failures: u32, first: Duration, max: Duration, jitter: f64) -> Duration {
    doubled(n_failures, first, max).mul_f64(1.0 + JITTER * jitter.clamp(-1.0, 1.0))
}

/// How long a message waits after its `own_failures`th failure that was its own
/// fault: as [`lane_backoff`], doubling to an hour.
pub fn message_backoff(own_failures: u32, first: Duration, jitter: f64) -> Duration {
    lane_backoff(own_failures, first, MESSAGE_BACKOFF_MAX.max(first), jitter)
}

fn doubled(n_failures: u32, first: Duration, max: Duration) -> Duration {
    // 2^31 of anything worth waiting for is beyond any `max`.
    let factor = 1_u32 << n_failures.saturating_sub(1).min(31);
    first.saturating_mul(factor).min(max)
}

/// What a `Retry-After` header asks for, as a time from `now`: seconds or an HTTP
/// date, brought within 1 s to 1 h; `None` if it is neither.
pub fn parse_retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    let wait = if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // All digits and still no number means too many of them.
        Duration::from_secs(value.parse().unwrap_or(u64::MAX))
    } else {
        let date = httpdate::parse_http_date(value).ok()?;
        date.duration_since(now).unwrap_or(Duration::ZERO)
    };
    Some(wait.clamp(Duration::from_secs(1), MESSAGE_BACKOFF_MAX))
}

/// What one attempt came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Attempt {
    /// The recipient answered.
    Answered {
        /// The HTTP status.
        status: u16,
        /// `Retry-After`, already turned into a time from now.
        retry_after: Option<Duration>,
        /// What the status alone does not say, e.g. why a redirect was not followed.
        note: Option<String>,
    },
    /// The handshake of a WebSocket was answered otherwise than by opening one.
    Unopened {
        /// The HTTP status.
        status: u16,
        /// As of an answer.
        retry_after: Option<Duration>,
        /// As of an answer.
        note: Option<String>,
    },
    /// The recipient closed the WebSocket.
    Closed {
        /// Its close frame's, if that has one.
        code: Option<u16>,
        /// Its close frame's, printable and bounded.
        reason: String,
        /// Whether the whole message and our close frame were sent before.
        sent: bool,
    },
    /// No answer: what went wrong, and the words for it.
    Failed {
        /// At which stage.
        failure: Failure,
        /// For people: no credentials, no payload.
        error: String,
    },
    /// The endpoint may not be delivered to, now or ever (address policy, for an address written
    /// as such); the reason names the rule.
    Refused {
        /// For the dead letter.
        reason: String,
    },
    /// The recipient redirected to another origin, whose lane takes nothing more now.
    Elsewhere {
        /// Where to, and why not.
        error: String,
        /// How long until it may take something.
        wait: Duration,
    },
    /// This machine lacked something (file descriptors, memory): nobody else's fault.
    Lacking {
        /// What was lacking.
        error: String,
    },
}

impl Attempt {
    /// The same, if it is an answer, with what its status does not say.
    pub(crate) fn with_note(self, words: String) -> Attempt {
        match self {
            Attempt::Answered { status, retry_after, .. } => {
                Attempt::Answered { status, retry_after, note: Some(words) }
            }
            Attempt::Unopened { status, retry_after, .. } => {
                Attempt::Unopened { status, retry_after, note: Some(words) }
            }
            other => other,
        }
    }
}

/// The stage at which an attempt failed without an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    /// The host name has no address now.
    Resolve,
    /// The host name has no address now that may be delivered to (address policy). Names change
    /// what they stand for, and a filter or a captive portal may answer for a while: nothing is
    /// wrong with the message.
    Denied,
    /// No connection.
    Connect,
    /// No agreement on TLS.
    Tls,
    /// Not finished in time.
    Timeout,
    /// The connection broke, or what came was not HTTP, or no WebSocket.
    Broken,
}

/// What is to become of the message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// A 2xx answer, or a close without complaint.
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
        /// Whose fault the last attempt was; `None` if the endpoint was not reached at all.
        fault: Option<Fault>,
    },
}

/// Whose fault a failed attempt was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// No way to the endpoint, whatever the message: no address, no connection, no agreement on TLS. Its lane goes down.
    Unreachable,
    /// The request got no answer: the endpoint is down, or this path of it is bad.
    NoAnswer,
    /// The answer was 429, 502, 503 or 504, or a WebSocket was closed for such a reason: the endpoint is busy
    /// or down, or this path of it is bad.
    Throttled,
    /// The message is at fault: it gets a backoff of its own.
    Message,
    /// The origin that it was redirected to takes nothing more now: its own endpoint has answered.
    Elsewhere,
    /// This machine's own: nobody is blamed, and no attempt is counted.
    Ours,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(status: u16) -> Attempt {
        Attempt::Answered { status, retry_after: None, note: None }
    }

    fn aged(age: Duration) -> History {
        History { age: Some(age), attempts: 1, ..History::default() }
    }

    fn later(fault: Fault, error: &str) -> Outcome {
        Outcome::Later { fault, retry_after: None, error: error.to_string() }
    }

    fn dead(reason: &str) -> Outcome {
        Outcome::Dead { reason: reason.to_string(), fault: Some(Fault::Message) }
    }

    fn check(status: u16, expected: Outcome) {
        let outcome = judge(&answered(status), &History::default(), &Retry::default());
        assert_eq!(outcome, expected, "status {status}");
    }

    #[test]
    fn statuses_are_judged_as_the_table_says() {
        for status in [200, 201, 202, 204, 226, 299] {
            check(status, Outcome::Delivered);
        }
        check(429, later(Fault::Throttled, "429 Too Many Requests"));
        check(502, later(Fault::Throttled, "502 Bad Gateway"));
        check(503, later(Fault::Throttled, "503 Service Unavailable"));
        check(504, later(Fault::Throttled, "504 Gateway Timeout"));
        check(500, later(Fault::Message, "500 Internal Server Error"));
        check(507, later(Fault::Message, "507 Insufficient Storage"));
        check(408, later(Fault::Message, "408 Request Timeout"));
        check(425, later(Fault::Message, "425 Too Early"));
        check(401, later(Fault::Message, "401 Unauthorized"));
        check(404, later(Fault::Message, "404 Not Found"));
        check(302, later(Fault::Message, "302 Found"));
        check(101, later(Fault::Message, "101 Switching Protocols"));
        check(599, later(Fault::Message, "599"));
        check(999, later(Fault::Message, "999"));
        check(400, dead("400 Bad Request"));
        check(405, dead("405 Method Not Allowed"));
        check(410, dead("410 Gone"));
        check(411, dead("411 Length Required"));
        check(413, dead("413 Payload Too Large"));
        check(414, dead("414 URI Too Long"));
        check(415, dead("415 Unsupported Media Type"));
        check(422, dead("422 Unprocessable Entity"));
        check(426, dead("426 Upgrade Required"));
        check(431, dead("431 Request Header Fields Too Large"));
        check(501, dead("501 Not Implemented"));
        check(505, dead("505 HTTP Version Not Supported"));
    }

    #[test]
    fn every_status_has_an_outcome_and_only_2xx_delivers() {
        for status in 0..=u16::MAX {
            let outcome = judge(&answered(status), &History::default(), &Retry::default());
            assert_eq!(outcome == Outcome::Delivered, (200..300).contains(&status), "status {status}");
        }
    }

    #[test]
    fn a_handshake_is_judged_as_a_status_is_but_never_delivers() {
        for status in 0..=u16::MAX {
            let unopened = Attempt::Unopened { status, retry_after: None, note: None };
            let outcome = judge(&unopened, &History::default(), &Retry::default());
            match status {
                200..=299 => assert_eq!(outcome, later(Fault::Message, &spell_status(status, None))),
                _ => assert_eq!(outcome, judge(&answered(status), &History::default(), &Retry::default())),
            }
        }
        let retry = Retry { final_statuses: vec![200, 404], retryable_statuses: vec![426], ..Retry::default() };
        for (status, expected) in
            [(200, dead("200 OK")), (404, dead("404 Not Found")), (426, later(Fault::Message, "426 Upgrade Required"))]
        {
            let unopened = Attempt::Unopened { status, retry_after: None, note: None };
            assert_eq!(judge(&unopened, &History::default(), &retry), expected);
        }
    }

    #[test]
    fn closes_are_judged_as_the_table_says() {
        let check = |code, reason: &str, sent, expected| {
            let attempt = Attempt::Closed { code, reason: reason.to_string(), sent };
            assert_eq!(judge(&attempt, &History::default(), &Retry::default()), expected, "{code:?} {sent}");
        };
        let maybe = ": the message may have arrived";
        check(None, "", true, Outcome::Delivered);
        check(Some(1000), "", true, Outcome::Delivered);
        check(Some(1000), "thanks", true, Outcome::Delivered);
        let early = "closed without a code before the whole message was sent";
        check(None, "", false, later(Fault::NoAnswer, early));
        let early = "closed with 1000 (normal): no before the whole message was sent";
        check(Some(1000), "no", false, later(Fault::NoAnswer, early));
        for sent in [true, false] {
            check(Some(1002), "", sent, dead("closed with 1002 (protocol error)"));
            check(Some(1003), "", sent, dead("closed with 1003 (unsupported data)"));
            check(Some(1007), "", sent, dead("closed with 1007 (invalid data)"));
            check(Some(1008), "not you", sent, dead("closed with 1008 (policy violation): not you"));
            check(Some(1009), "4 MB", sent, dead("closed with 1009 (too big): 4 MB"));
            check(Some(1010), "", sent, dead("closed with 1010 (extension missing)"));
        }
        for (code, words) in [
            (1001, "closed with 1001 (going away)"),
            (1011, "closed with 1011 (server error)"),
            (1012, "closed with 1012 (restarting)"),
            (1013, "closed with 1013 (try again later)"),
            (1014, "closed with 1014 (bad gateway)"),
            (1005, "closed with 1005"),
            (1006, "closed with 1006"),
            (3000, "closed with 3000"),
            (4999, "closed with 4999"),
            (0, "closed with 0"),
        ] {
            check(Some(code), "", true, later(Fault::Throttled, &format!("{words}{maybe}")));
            check(Some(code), "", false, later(Fault::Throttled, words));
        }
        // Every code has an outcome, and no other delivers.
        for code in 0..=u16::MAX {
            let attempt = Attempt::Closed { code: Some(code), reason: String::new(), sent: true };
            let outcome = judge(&attempt, &History::default(), &Retry::default());
            assert_eq!(outcome == Outcome::Delivered, code == 1000, "{code}");
        }
    }

    #[test]
    fn lists_override_the_table_but_not_a_delivery() {
        let retry =
            Retry { final_statuses: vec![404, 503, 200], retryable_statuses: vec![400, 429, 200], ..Retry::default() };
        let check = |status, expected| {
            let outcome = judge(&answered(status), &History::default(), &retry);
            assert_eq!(outcome, expected, "status {status}");
        };
        check(404, dead("404 Not Found"));
        check(503, dead("503 Service Unavailable"));
        check(400, later(Fault::Message, "400 Bad Request"));
        check(429, later(Fault::Message, "429 Too Many Requests"));
        check(200, Outcome::Delivered);
        check(410, dead("410 Gone"));
    }

    #[test]
    fn no_way_to_the_endpoint_and_no_answer_to_this_request_are_told_apart() {
        for (failure, fault) in [
            (Failure::Resolve, Fault::Unreachable),
            (Failure::Denied, Fault::Unreachable),
            (Failure::Connect, Fault::Unreachable),
            (Failure::Tls, Fault::Unreachable),
            (Failure::Timeout, Fault::NoAnswer),
            (Failure::Broken, Fault::NoAnswer),
        ] {
            let attempt = Attempt::Failed { failure, error: "no good".to_string() };
            let outcome = judge(&attempt, &History::default(), &Retry::default());
            assert_eq!(outcome, later(fault, "no good"));
        }
    }

    #[test]
    fn a_refused_endpoint_is_dead_with_the_rule() {
        let attempt = Attempt::Refused { reason: "address 169.254.169.254 is link-local".to_string() };
        assert_eq!(
            judge(&attempt, &History::default(), &Retry::default()),
            Outcome::Dead { reason: "address 169.254.169.254 is link-local".to_string(), fault: None }
        );
    }

    #[test]
    fn what_we_lack_is_nobodys_fault_at_any_age() {
        let attempt = Attempt::Lacking { error: "no file descriptors left".to_string() };
        for history in [History::default(), aged(Duration::from_secs(1_000_000))] {
            assert_eq!(judge(&attempt, &history, &Retry::default()), later(Fault::Ours, "no file descriptors left"));
        }
    }

    #[test]
    fn a_message_dies_with_its_last_error_when_its_first_failure_is_too_long_ago() {
        let day = Duration::from_secs(24 * 3600);
        let second = Duration::from_secs(1);
        let check = |history: History, expected: Outcome| {
            let outcome = judge(&answered(500), &history, &Retry::default());
            assert_eq!(outcome, expected, "{history:?}");
        };
        let error = "500 Internal Server Error";
        check(History::default(), later(Fault::Message, error));
        check(aged(day - second), later(Fault::Message, error));
        check(aged(day), dead("gave up after 24h: 500 Internal Server Error"));
        check(aged(day * 9), dead("gave up after 24h: 500 Internal Server Error"));
        assert_eq!(judge(&answered(204), &aged(day * 9), &Retry::default()), Outcome::Delivered);
        assert_eq!(judge(&answered(410), &aged(day * 9), &Retry::default()), dead("410 Gone"));
        // It has only waited so far: this is its first failure, unless it waited behind others in order.
        let waited = History { attempts: 0, ..aged(day * 9) };
        check(waited.clone(), later(Fault::Message, error));
        let in_order = Retry { ordered: true, ..Retry::default() };
        assert_eq!(judge(&answered(500), &waited, &in_order), dead("gave up after 24h: 500 Internal Server Error"));
    }

    #[test]
    fn a_message_dies_at_its_last_attempt_if_they_are_counted() {
        let check = |most, before, attempt: &Attempt, expected| {
            let retry = Retry { attempts: Some(most), ..Retry::default() };
            let history = History { attempts: before, ..History::default() };
            assert_eq!(judge(attempt, &history, &retry), expected, "{before} of {most}");
        };
        let error = "500 Internal Server Error";
        check(3, 0, &answered(500), later(Fault::Message, error));
        check(3, 1, &answered(500), later(Fault::Message, error));
        check(3, 2, &answered(500), dead("gave up after 3 attempts: 500 Internal Server Error"));
        // Some were made elsewhere, or the bound was higher.
        check(3, u32::MAX, &answered(500), dead("gave up after 3 attempts: 500 Internal Server Error"));
        check(1, 0, &answered(500), dead("gave up after 1 attempt: 500 Internal Server Error"));
        check(1, 0, &answered(200), Outcome::Delivered);
        check(1, 0, &answered(410), dead("410 Gone"));
        let lacking = Attempt::Lacking { error: "no file descriptors left".to_string() };
        check(1, 9, &lacking, later(Fault::Ours, "no file descriptors left"));
        let refused = Attempt::Failed { failure: Failure::Connect, error: "refused".to_string() };
        let reason = "gave up after 1 attempt: refused".to_string();
        check(1, 0, &refused, Outcome::Dead { reason, fault: Some(Fault::Unreachable) });
    }

    #[test]
    fn retry_after_and_note_come_through() {
        let attempt = Attempt::Answered {
            status: 308,
            retry_after: Some(Duration::from_secs(7)),
            note: Some("redirect without a location".to_string()),
        };
        assert_eq!(
            judge(&attempt, &History::default(), &Retry::default()),
            Outcome::Later {
                fault: Fault::Message,
                retry_after: Some(Duration::from_secs(7)),
                error: "308 Permanent Redirect (redirect without a location)".to_string(),
            }
        );
    }

    #[test]
    fn backoff_doubles_to_its_limit_and_varies_by_a_fifth() {
        let seconds = Duration::from_secs;
        for (n_failures, jitter, expected) in [
            (0, 0.0, seconds(5)),
            (1, 0.0, seconds(5)),
            (2, 0.0, seconds(10)),
            (3, 0.0, seconds(20)),
            (7, 0.0, seconds(320)),
            (8, 0.0, seconds(600)),
            (33, 0.0, seconds(600)),
            (u32::MAX, 0.0, seconds(600)),
            (1, 1.0, seconds(6)),
            (1, -1.0, seconds(4)),
            (8, 1.0, seconds(720)),
            (1, 55.0, seconds(6)),
        ] {
            let wait = lane_backoff(n_failures, seconds(5), seconds(600), jitter);
            assert_eq!(wait, expected, "failure {n_failures}, jitter {jitter}");
        }
        assert_eq!(message_backoff(1, seconds(5), 0.0), seconds(5));
        assert_eq!(message_backoff(10, seconds(5), 0.0), seconds(2560));
        assert_eq!(message_backoff(11, seconds(5), 0.0), seconds(3600));
        assert_eq!(message_backoff(1, seconds(7200), 0.0), seconds(7200));
    }

    #[test]
    fn retry_after_is_read_as_seconds_or_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let seconds = |n| Some(Duration::from_secs(n));
        for (value, expected) in [
            ("120", seconds(120)),
            (" 3 ", seconds(3)),
            ("0", seconds(1)),
            ("86400", seconds(3600)),
            ("99999999999999999999999999", seconds(3600)),
            ("Sun, 06 Nov 1994 08:50:37 GMT", seconds(60)),
            ("Sunday, 06-Nov-94 08:50:37 GMT", seconds(60)),
            ("Sun Nov  6 08:50:37 1994", seconds(60)),
            ("Sun, 06 Nov 1994 07:00:00 GMT", seconds(1)),
            ("Sat, 06 Nov 2094 08:49:37 GMT", seconds(3600)),
            ("", None),
            ("-1", None),
            ("1.5", None),
            ("soon", None),
            ("Sun, 99 Nov 1994 08:49:37 GMT", None),
        ] {
            assert_eq!(parse_retry_after(value, now), expected, "{value:?}");
        }
    }
}
