//! Why a move could not be made, told apart by what a caller does about it.

use std::fmt;

/// Why a move could not be made; each with a sentence for people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Error {
    /// Waiting may mend it: unreachable, restarting, loading, read-only, full.
    Unavailable(String),
    /// So it may if the server has not got the key: another node of its Cluster has.
    Elsewhere(String),
    /// And if it does not know a command, for another server may.
    NoCommand(String),
    /// Waiting cannot mend it: a wrong password, an option.
    Fatal(String),
    /// Nor what the account may not do.
    NotPermitted(Denied, String),
    /// Nor a value at a key of the queue that is of another type than the queue keeps there.
    WrongType(String),
}

/// What an account may not use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Denied {
    /// A command.
    Command,
    /// A key.
    Key,
}

impl Error {
    /// Whether waiting cannot mend it.
    pub fn is_lasting(&self) -> bool {
        match self {
            Error::Unavailable(_) | Error::Elsewhere(_) | Error::NoCommand(_) => false,
            Error::Fatal(_) | Error::NotPermitted(..) | Error::WrongType(_) => true,
        }
    }

    /// The sentence.
    pub fn why(&self) -> &str {
        match self {
            Error::Unavailable(why)
            | Error::Elsewhere(why)
            | Error::NoCommand(why)
            | Error::Fatal(why)
            | Error::NotPermitted(_, why)
            | Error::WrongType(why) => why,
        }
    }

    /// The same with other words.
    #[must_use]
    pub fn said(self, say: impl FnOnce(String) -> String) -> Error {
        match self {
            Error::Unavailable(why) => Error::Unavailable(say(why)),
            Error::Elsewhere(why) => Error::Elsewhere(say(why)),
            Error::NoCommand(why) => Error::NoCommand(say(why)),
            Error::Fatal(why) => Error::Fatal(say(why)),
            Error::NotPermitted(denied, why) => Error::NotPermitted(denied, say(why)),
            Error::WrongType(why) => Error::WrongType(say(why)),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.why())
    }
}

impl std::error::Error for Error {}
