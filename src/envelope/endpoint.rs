//! The endpoint, read once: what to request, the lane's name, and the user that it may hold.
//!
//! Here alone it is decided which schemes are delivered to, and what is said of the others.
//! Nothing that is said repeats a password or a query.
//!
//! What is no clean URL is not repaired into another endpoint than the one that was pushed: control
//! characters, blanks, backslashes, and any number of slashes but two before the host are refused, which
//! the URL standard would take out or turn round. Left to the standard's leniency, since each has one
//! meaning that all of its readers agree on, is
//! * in the scheme and the host: upper case, and for the host what IDNA maps (`Ｅxample`, other full stops,
//!   soft hyphens, percent-encoding), an IPv4 address in odd numbers or with a dot at its end (`0x7f.1.`), an
//!   IPv6 address written out;
//! * a port left empty, or the scheme's own; leading zeros of a port; an empty path;
//! * `.` and `..` in the path, percent-encoded ones too; what must be percent-encoded in path and query
//!   (all beyond ASCII, `"`, `<`, `>`, in the path also `` ` ``, `{` and `}`, in the query `'`) and is not; a
//!   `%` without two digits, which stays as it is;
//! * a fragment, which is not sent.

use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ureq::http::Uri;
use url::Url;

use super::{MAX_ENDPOINT, MAX_HOST, bounded};

/// Endpoints that were read lately, and what they came to.
#[derive(Default)]
pub struct Endpoints {
    known: HashMap<Box<[u8]>, Arc<Target>>,
}

/// So many endpoints are remembered, and so long may each be: some 2 MB at most.
const KNOWN_ENDPOINTS: usize = 4096;
const KNOWN_LENGTH: usize = 200;

impl Endpoints {
    pub(super) fn read(&mut self, endpoint: &[u8], has_authorization: bool) -> Result<Arc<Target>, String> {
        if let Some(target) = self.known.get(endpoint) {
            return Ok(target.clone());
        }
        let target = Arc::new(Target::read(endpoint, has_authorization)?);
        // With a user and password it depends on the headers, too.
        if endpoint.len() <= KNOWN_LENGTH && !endpoint.contains(&b'@') {
            if self.known.len() >= KNOWN_ENDPOINTS {
                self.known.clear();
            }
            self.known.insert(endpoint.into(), target.clone());
        }
        Ok(target)
    }
}

/// Such agents have no endpoint: they ask their mediator, or a connection of their own opening.
const FETCHES: &str = "the recipient fetches its messages by itself, so that nothing can be sent to it";

/// What the endpoint means.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) uri: Uri,
    pub(super) origin: String,
    /// From user and password in the endpoint.
    pub(super) authorization: Option<String>,
}

impl Target {
    fn read(endpoint: &[u8], has_authorization: bool) -> Result<Target, String> {
        if endpoint.len() > MAX_ENDPOINT {
            let n = endpoint.len();
            return Err(format!("endpoint of {n} bytes, {MAX_ENDPOINT} are allowed"));
        }
        let endpoint = str::from_utf8(endpoint).map_err(|_| "endpoint is not UTF-8")?;
        if endpoint.trim().is_empty() {
            return Err(format!("endpoint is empty: {FETCHES}"));
        }
        let quoted = || quoted(endpoint);
        if let Some(odd) = endpoint.chars().find(|c| c.is_control() || c.is_whitespace() || *c == '\\') {
            let kind = match odd {
                '\\' => "a backslash".to_string(),
                ' ' => "a blank".to_string(),
                odd if odd.is_control() => format!("a control character (U+{:04X})", u32::from(odd)),
                odd => format!("a blank (U+{:04X})", u32::from(odd)),
            };
            return Err(format!("endpoint {} holds {kind}, which no URL has", quoted()));
        }
        let mut url = Url::parse(endpoint).map_err(|error| match error {
            url::ParseError::RelativeUrlWithoutBase => {
                format!("endpoint {} is not an absolute URL, as http://host/ is", quoted())
            }
            error => format!("endpoint {} is not a URL: {error}", quoted()),
        })?;
        match url.scheme() {
            "http" | "https" | "ws" | "wss" => {}
            "didcomm" if url.path() == "transport/queue" => {
                return Err(format!("endpoint didcomm:transport/queue: {FETCHES}"));
            }
            scheme => {
                return Err(format!(
                    "endpoint of scheme {}, only http, https, ws and wss are supported",
                    bounded(scheme)
                ));
            }
        }
        // With fewer or more the standard looks for the host in what follows.
        let after_scheme = &endpoint[url.scheme().len()..];
        if !after_scheme.starts_with("://") || after_scheme[3..].starts_with('/') {
            return Err(format!("endpoint {} has not two slashes before its host, as http://host/ has", quoted()));
        }
        let host = url.host_str().expect("such URLs have a host");
        if host.len() > MAX_HOST {
            let n = host.len();
            return Err(format!("host of {n} bytes in the endpoint, {MAX_HOST} are possible"));
        }
        let port = url.port_or_known_default().expect("such schemes have a default port");
        let origin = format!("{}://{host}:{port}", url.scheme());

        let mut authorization = None;
        if !url.username().is_empty() || url.password().is_some() {
            if !has_authorization {
                authorization = Some(basic(url.username(), url.password().unwrap_or("")));
            }
            url.set_username("").expect("such URLs have an authority");
            url.set_password(None).expect("such URLs have an authority");
        }
        url.set_fragment(None);
        // `Url` allows a few characters in hosts that `Uri` does not.
        let uri = Uri::try_from(String::from(url))
            .map_err(|error| format!("endpoint {} cannot be requested: {error}", quoted()))?;
        Ok(Target { uri, origin, authorization })
    }
}

/// The origin of an endpoint, as lanes are named; of one that is given as its origin, the same.
///
/// # Errors
///
/// Why no message could be sent there.
pub fn origin_of(endpoint: &str) -> Result<String, String> {
    Target::read(endpoint.as_bytes(), true).map(|target| target.origin)
}

/// The value of `Authorization` for a user and password that are percent-encoded, as in a URL.
fn basic(user: &str, password: &str) -> String {
    let mut credentials: Vec<u8> = percent_encoding::percent_decode_str(user).collect();
    credentials.push(b':');
    credentials.extend(percent_encoding::percent_decode_str(password));
    format!("Basic {}", BASE64_STANDARD.encode(credentials))
}

/// An endpoint that could not be understood, for a reason. Where user and
/// password end is then unknown, so all up to the last `@` is left out, and with
/// it more than need be rather than less; and the query.
fn quoted(endpoint: &str) -> String {
    match endpoint.rfind('@') {
        Some(at) => format!("\"***{}\"", bounded(&without_query(&endpoint[at..]))),
        None => format!("\"{}\"", bounded(&without_query(endpoint))),
    }
}

/// The query of an endpoint often is what lets people in.
pub(super) fn without_query(endpoint: &str) -> String {
    match endpoint.split_once('?') {
        Some((before, _)) => format!("{before}?***"),
        None => endpoint.to_owned(),
    }
}
