//! What goes wrong, in our words: what our own parts (connector, transport, resolver) have to say when
//! they fail, carried through ureq inside its `Error::Other`, and what the system says. It leaves to each
//! way of delivering what its protocol says.

use std::fmt;
use std::io;
use std::time::Duration;

use ureq::http::Uri;
use ureq::{Error, Timeout};

use super::redirect::port;
use super::tls::{self, tls_error};
use crate::policy::{Attempt, Failure};
use crate::text;

/// Why a request got no answer, told by one of our own parts.
#[derive(Clone, Debug)]
pub(crate) enum Trouble {
    /// The attempt came to this.
    Attempt(Attempt),
    /// A connection that had been idle closed as the request was sent on it, so that
    /// the request may be sent once more at once.
    Stale,
}

impl Trouble {
    pub(crate) fn failed(failure: Failure, error: impl Into<String>) -> Trouble {
        Trouble::Attempt(Attempt::Failed { failure, error: error.into() })
    }

    pub(crate) fn refused(reason: impl Into<String>) -> Trouble {
        Trouble::Attempt(Attempt::Refused { reason: reason.into() })
    }

    pub(crate) fn lacking(error: impl Into<String>) -> Trouble {
        Trouble::Attempt(Attempt::Lacking { error: error.into() })
    }

    /// What of ours ureq carries in this error; else the error.
    pub(super) fn of(error: Error) -> Result<Trouble, Error> {
        match error {
            Error::Other(inner) => match inner.downcast::<Trouble>() {
                Ok(trouble) => Ok(*trouble),
                Err(inner) => Err(Error::Other(inner)),
            },
            error => Err(error),
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trouble::Attempt(attempt) => write!(f, "{attempt:?}"),
            Trouble::Stale => f.write_str("idle connection was closed"),
        }
    }
}

impl std::error::Error for Trouble {}

impl From<Trouble> for Error {
    fn from(trouble: Trouble) -> Error {
        Error::Other(Box::new(trouble))
    }
}

/// Whether this machine lacked something, in words; `None` if the fault is elsewhere.
pub(crate) fn what_we_lack(error: &io::Error) -> Option<&'static str> {
    match error.raw_os_error()? {
        libc::EMFILE => Some("no file descriptors left (raise the limit of open files)"),
        libc::ENFILE => Some("no file descriptors left on this machine"),
        libc::ENOMEM | libc::ENOBUFS => Some("no memory left for a connection"),
        _ => None,
    }
}

/// Whether a connection has ended or is broken.
pub(super) fn is_break(error: &Error) -> bool {
    matches!(error, Error::Io(error) if matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::WriteZero
    ))
}

/// How long may be waited, for the words.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    pub(super) connect: Duration,
    pub(super) whole: Duration,
}

impl Patience {
    /// What an attempt came to for want of an answer, where no idle connection was used and ureq has no say.
    pub(super) fn attempt(self, error: Error, uri: &Uri) -> Attempt {
        match Trouble::of(error) {
            Ok(Trouble::Attempt(attempt)) => attempt,
            Ok(Trouble::Stale) => failed(Failure::Broken, "connection closed before an answer", uri),
            Err(error) => self.spell(error, uri),
        }
    }

    /// What is said when there is no answer, for a reason that is none of a protocol's.
    pub(super) fn spell(self, error: Error, uri: &Uri) -> Attempt {
        match error {
            Error::Timeout(Timeout::Connect | Timeout::Resolve) => {
                failed(Failure::Connect, &format!("no connection within {:?}", self.connect), uri)
            }
            Error::Timeout(_) => failed(Failure::Timeout, &format!("no answer within {:?}", self.whole), uri),
            Error::Io(error) => spell_io_error(&error, uri),
            error => failed(Failure::Broken, &shorten(&error.to_string()), uri),
        }
    }
}

fn spell_io_error(error: &io::Error, uri: &Uri) -> Attempt {
    if let Some(lack) = what_we_lack(error) {
        return Attempt::Lacking { error: lack.to_string() };
    }
    if let Some(error) = tls_error(error) {
        let words = format!("TLS: {}", tls::spell_tls_error(error));
        return failed(Failure::Tls, &words, uri);
    }
    let words = match error.kind() {
        io::ErrorKind::UnexpectedEof => "connection closed before an answer",
        io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted => "connection reset before an answer",
        io::ErrorKind::BrokenPipe => "connection closed before an answer",
        _ => &shorten(&error.to_string()),
    };
    failed(Failure::Broken, words, uri)
}

/// With the endpoint's host and port, and never its user and password.
pub(super) fn failed(failure: Failure, words: &str, uri: &Uri) -> Attempt {
    let host = uri.host().unwrap_or_default();
    Attempt::Failed { failure, error: format!("{words} ({host}:{})", port(uri)) }
}

/// Words that the other side may have had a hand in, at a length and of a kind
/// that do no harm in a log.
pub(super) fn shorten(words: &str) -> String {
    text::excerpt(words, 120)
}
