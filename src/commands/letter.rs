//! A message as the operator's commands show it. Text shows no passwords.

use crate::envelope::{Envelope, Malformed};

/// A message as far as it can be read.
pub enum Letter {
    /// It can be read.
    Good(Envelope),
    /// It cannot.
    Bad(Malformed),
}

impl Letter {
    /// Reads what was pushed.
    pub fn read(bytes: Vec<u8>) -> Letter {
        match Envelope::decode(bytes) {
            Ok(envelope) => Letter::Good(envelope),
            Err(malformed) => Letter::Bad(malformed),
        }
    }

    /// For a table: short, without user and password.
    pub fn endpoint(&self) -> String {
        match self {
            Letter::Good(envelope) => envelope.endpoint_for_people(),
            Letter::Bad(_) => "-".to_string(),
        }
    }

    /// As it was pushed, if that has neither user nor password, else without them.
    pub fn full_endpoint(&self) -> Option<String> {
        let Letter::Good(envelope) = self else { return None };
        let has_user = url::Url::parse(envelope.endpoint())
            .map_or(true, |url| !url.username().is_empty() || url.password().is_some());
        Some(if has_user { envelope.uri().to_string() } else { envelope.endpoint().to_string() })
    }

    /// Whether its endpoint begins so.
    pub fn goes_to(&self, prefix: &str) -> bool {
        let Letter::Good(envelope) = self else { return false };
        envelope.endpoint().starts_with(prefix) || envelope.uri().to_string().starts_with(prefix)
    }

    /// The origin of its endpoint; empty if none can be read.
    pub fn origin(&self) -> &str {
        match self {
            Letter::Good(envelope) => envelope.origin(),
            Letter::Bad(_) => "",
        }
    }

    /// All of an unreadable message: what its payload is cannot be told.
    pub fn payload(&self) -> &[u8] {
        match self {
            Letter::Good(envelope) => envelope.payload(),
            Letter::Bad(malformed) => &malformed.raw,
        }
    }

    /// All that was pushed.
    pub fn raw(&self) -> &[u8] {
        match self {
            Letter::Good(envelope) => envelope.raw(),
            Letter::Bad(malformed) => &malformed.raw,
        }
    }
}
