//! Why a move could not be made, told apart by what a caller does about it.

use std::fmt;

/// Why a move could not be made; each with a sentence for people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Error {
    /// Waiting may help: unreachable, restarting, loading, read-only, full.
    Unavailable(String),
    /// Waiting may help: another node of the Cluster has the key.
    Elsewhere(String),
    /// Waiting may help: another server may know the command.
    NoCommand(String),
    /// Waiting does not help: a wrong password, an option.
    Fatal(String),
    /// Waiting does not help: the account may not use this command or key.
    NotPermitted(Denied, String),
    /// Waiting does not help: a key of the queue holds another type.
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
    /// Whether waiting does not help.
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
