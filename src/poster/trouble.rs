//! What our own parts (connector, transports, resolver) have to say when they
//! fail, carried through ureq inside its `Error::Other`. It leaves to the poster
//! what ureq itself says.

use std::fmt;
use std::io;

use crate::policy::{Attempt, Failure};

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

impl From<Trouble> for ureq::Error {
    fn from(trouble: Trouble) -> ureq::Error {
        ureq::Error::Other(Box::new(trouble))
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
