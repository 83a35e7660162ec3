//! What one attempt delivers, where it is on its way, and what each of its requests came to: the same for
//! every way to deliver.

use std::time::Instant;

use ureq::http::Uri;

use crate::headers::{belongs_to_connection, goes_elsewhere, is_token};
use crate::policy::Attempt;

/// Who we say we are, unless an envelope has its own.
pub(super) const USER_AGENT: &str = concat!("acapy-deliver/", env!("CARGO_PKG_VERSION"));

/// What stays the same over the redirects and second tries of one attempt.
pub(super) struct Parcel<'a> {
    pub(super) headers: Vec<(&'a str, &'a [u8])>,
    /// Header and value that carry the message's id.
    pub(super) id: Option<(&'a str, &'a [u8])>,
    pub(super) payload: &'a [u8],
}

impl Parcel<'_> {
    /// Whether a header of the envelope is sent, or why it cannot be; those of a connection are left out.
    pub(super) fn sends(&self, name: &str, value: &[u8], left_origin: bool) -> Result<bool, String> {
        // Nobody else's check is relied on: what breaks out of a header breaks out of the request.
        let is_name = !name.is_empty() && name.bytes().all(is_token);
        if !is_name || !value.iter().all(|&byte| byte == b'\t' || (byte >= b' ' && byte != 0x7f)) {
            return Err(format!("header {name:?} is not allowed by HTTP"));
        }
        Ok(!belongs_to_connection(name.as_bytes())
            && (!left_origin || goes_elsewhere(name))
            && !self.id.is_some_and(|(id_header, _)| name.eq_ignore_ascii_case(id_header)))
    }
}

/// Where an attempt is on its way.
pub(super) struct Course {
    pub(super) uri: Uri,
    pub(super) deadline: Instant,
    /// A redirect has led to another origin.
    pub(super) left_origin: bool,
    /// Nothing has been sent yet.
    pub(super) is_first: bool,
    /// No idle connection will do.
    pub(super) wants_fresh: bool,
    /// A request that met the end of an idle connection may be sent once more.
    pub(super) may_repeat: bool,
}

impl Course {
    pub(super) fn new(uri: &Uri, deadline: Instant) -> Course {
        Course { uri: uri.clone(), deadline, left_origin: false, is_first: true, wants_fresh: false, may_repeat: true }
    }
}

/// What one request came to.
pub(super) enum Reply {
    Attempt(Attempt),
    /// To be followed, if the location can be; else it is this attempt.
    Redirect {
        location: Result<String, &'static str>,
        attempt: Attempt,
    },
}
