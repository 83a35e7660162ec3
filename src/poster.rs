//! One POST, and what it came to in our own words: an [`Attempt`].
//!
//! It promises that every attempt ends by its deadline, redirects included,
//! with bounded memory, whatever the recipient does; that a status that came is
//! never forgotten because of what followed it; and that no word of an error
//! holds credentials or payload. It leaves to `policy` what an attempt means,
//! and to the lanes when it is made.
//!
//! One attempt is one request, with one exception. Servers close connections that
//! have been idle, and may do so while a request is under way to them: nothing is
//! wrong then, and a failed attempt would close the lane of all for seconds. But
//! from here a server that read the request and then closed looks the same, and a
//! second copy within a second is known to have broken a handshake. So a request
//! is sent once more at once, on a new connection, only
//! * on a connection that was used before, from which not one byte came back, and
//! * if it could not be written whole, so that nobody can have read it whole; or
//! * if the connection closed within 100 ms (`RACE`) of the request's end: a close
//!   that crossed it arrives within one way from there to here, and who had time to
//!   work on a message takes longer as a rule.
//!
//! It is done once in an attempt, counted and logged. Whatever else breaks a
//! connection is a failed attempt, as on a new connection, and has its backoff.
//!
//! HTTP is ureq's (3.5): request lines, headers with the spelling that they were given in, framing,
//! chunks, parsing answers, the budget of time of each phase. Ours is what it does not do, each of which
//! `tests/ureq_alone.rs` shows of the release in use:
//! * the pool: idle connections can be given up without the agent, and cost the same however many they are;
//! * the transport: a request that met the end of an idle connection is told from one that was read; a
//!   status counts whatever follows it; an answer is heard while the request is not read; a `100 Continue`
//!   may have headers; all that is received is bounded;
//! * the resolver, which ureq asks for every request: it remembers, and judges addresses;
//! * dialing: an address that leads nowhere costs a quarter of a second, once;
//! * proxies: one for each scheme, plain http as such, NO_PROXY with networks and suffixes.

mod connector;
mod dial;
mod exchange;
mod pool;
pub mod proxy;
mod tls;
mod transport;
mod trouble;

use std::fmt;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant, SystemTime};

use log::debug;
use ureq::http::header::{self, HeaderName};
use ureq::http::{Response, Uri};
use ureq::typestate::WithBody;
use ureq::{Agent, Body, Error, RequestBuilder, Timeout};

use crate::guard::Guard;
use crate::headers::{belongs_to_connection, goes_elsewhere, is_token};
use crate::metrics::add;
use crate::policy::{Attempt, Failure, parse_retry_after};
use crate::resolver::Resolver;
use crate::roots::Roots;
use connector::Connector;
use dial::Answered;
use exchange::{MAX_HEADERS, OUTPUT_WINDOW};
use pool::Pool;
use proxy::Proxies;
use tls::{Sources, Trust};
use transport::{Stage, Wire, tls_error};

pub(crate) use trouble::{Trouble, what_we_lack};

const USER_AGENT: &str = concat!("acapy-deliver/", env!("CARGO_PKG_VERSION"));

/// Redirects followed in one attempt.
const MAX_REDIRECTS: usize = 5;

/// How much of an answer's body is read, so that the connection can be used
/// again. ACA-Py answers with nothing, or with up to a few kB.
const MAX_BODY: u64 = 64 * 1024;

/// How long it is waited for the rest of a body, once the status is known. It can
/// spare a new connection and no more, so it is worth less than one: a body that
/// drips would else keep a worker from others for as long as an attempt may take.
const BODY_PATIENCE: Duration = Duration::from_millis(250);

/// The names of so many headers keep their spelling: ureq looks for it among all of them, for each of them,
/// whenever it writes one. Servers take some hundred headers; what is beyond is sent in lower case.
const SPELT_HEADERS: usize = 100;

/// How soon after a request's end a connection that had been idle must have closed
/// for both to have crossed on the way. Longer than the way to nearly all there is.
const RACE: Duration = Duration::from_millis(100);

/// Files that are open besides connections: Redis, status, log, look-ups.
const OTHER_DESCRIPTORS: u64 = 64;

/// How a [`Poster`] posts.
#[derive(Clone, Debug)]
pub struct Options {
    /// For a connection to be made, TLS and proxy included; also for a look-up.
    pub connect_timeout: Duration,
    /// For a whole attempt, redirects included.
    pub timeout: Duration,
    /// How many threads will post at once.
    pub workers: usize,
    /// How many of them to one endpoint; as many idle connections are kept.
    pub endpoint_concurrency: usize,
    /// Idle connections kept in all; by default 1024, or eight for each worker if
    /// that is more, as far as the limit of open files allows.
    pub idle_connections: Option<usize>,
    /// How long a connection is kept idle: less than the 20 s or more after
    /// which most servers close theirs.
    pub idle_age: Duration,
    /// Which roots to trust.
    pub roots: Roots,
    /// PEM file with certificate authorities to trust besides.
    pub ca_file: Option<PathBuf>,
    /// PEM files of the certificate to show to endpoints that ask for one, and of its key.
    pub client_certificate: Option<(PathBuf, PathBuf)>,
    /// Header that carries the message's id.
    pub id_header: Option<String>,
    /// Which addresses may be delivered to.
    pub guard: Guard,
    /// The proxies, e.g. `Proxies::from_environment()`.
    pub proxies: Proxies,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            connect_timeout: Duration::from_secs(5),
            timeout: Duration::from_secs(30),
            workers: 128,
            endpoint_concurrency: 8,
            idle_connections: None,
            idle_age: Duration::from_secs(15),
            roots: Roots::default(),
            ca_file: None,
            client_certificate: None,
            id_header: None,
            guard: Guard::default(),
            proxies: Proxies::default(),
        }
    }
}

/// Posts messages; one for all workers.
pub struct Poster {
    agent: Agent,
    pool: Arc<Pool<Wire>>,
    resolver: Resolver,
    connect_timeout: Duration,
    timeout: Duration,
    id_header: Option<String>,
    repeated: Arc<AtomicU64>,
    proxies: Arc<Proxies>,
    tls: Arc<Trust>,
    /// What is known of the roots, for people.
    roots: (String, Option<String>),
}

/// What stays the same over the redirects and second tries of one attempt.
struct Parcel<'a> {
    headers: Vec<(&'a str, &'a [u8])>,
    id: Option<&'a str>,
}

impl Poster {
    /// A poster with these options; the error names the option that cannot be.
    pub fn new(options: Options) -> Result<Poster, String> {
        options.id_header.as_deref().map_or(Ok(()), check_id_header)?;
        let idle_connections =
            options.idle_connections.unwrap_or_else(|| idle_limit(options.workers, descriptor_limit()));
        let pool = Arc::new(Pool::new(idle_connections, options.endpoint_concurrency, options.idle_age));
        let proxies = Arc::new(options.proxies);
        let resolver = Resolver::new(options.guard, proxies.clone());
        let sources = Sources { roots: options.roots, ca_file: options.ca_file, client: options.client_certificate };
        let (tls, loaded) = Trust::read(sources)?;
        let tls = Arc::new(tls);
        let connector = Connector {
            pool: pool.clone(),
            tls: tls.clone(),
            proxies: proxies.clone(),
            resolver: resolver.clone(),
            answered: Answered::default(),
            connect_timeout: options.connect_timeout,
            tick: options.timeout.min(options.connect_timeout) / 16,
        };
        let config = Agent::config_builder()
            .http_status_as_error(false)
            // Redirects are followed here: ureq does not send a body twice.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(USER_AGENT)
            .accept_encoding("")
            // The connector's: see the head of `proxy`.
            .proxy(None)
            .timeout_resolve(Some(options.connect_timeout))
            .timeout_connect(Some(options.connect_timeout))
            .timeout_global(Some(options.timeout))
            .timeout_recv_body(Some(BODY_PATIENCE))
            .max_response_header_size(MAX_HEADERS)
            // ureq's own pool stays empty. The idle age is for our connector,
            // and has no meaning but that it is not nothing.
            .max_idle_connections(0)
            .max_idle_age(options.idle_age.max(Duration::from_millis(1)))
            .build();
        Ok(Poster {
            agent: Agent::with_parts(config, connector, resolver.clone()),
            pool,
            resolver,
            connect_timeout: options.connect_timeout,
            timeout: options.timeout,
            id_header: options.id_header,
            repeated: Arc::default(),
            proxies,
            tls,
            roots: (loaded.to_string(), loaded.trouble),
        })
    }

    /// Posts `payload` to `uri` with the envelope's headers (those of framing and
    /// connection are left out) and, if so configured, the message's id.
    pub fn post<'a>(
        &self,
        uri: &Uri,
        headers: impl Iterator<Item = (&'a str, &'a [u8])>,
        payload: &'a [u8],
        id: Option<&'a str>,
    ) -> Attempt {
        self.post_through(uri, headers, payload, id, &mut |_| Ok(()))
    }

    /// As [`Poster::post`]; before a redirect to another origin is followed, `enter` is asked with its name whether
    /// it may be, and else what the attempt comes to.
    pub fn post_through<'a>(
        &self,
        uri: &Uri,
        headers: impl Iterator<Item = (&'a str, &'a [u8])>,
        payload: &'a [u8],
        id: Option<&'a str>,
        enter: &mut dyn FnMut(&str) -> Result<(), Attempt>,
    ) -> Attempt {
        let deadline = Instant::now() + self.timeout;
        let parcel = Parcel { headers: headers.collect(), id };
        let mut uri = uri.clone();
        let mut n_redirects = 0;
        let mut is_first = true;
        let mut wants_fresh = false;
        let mut may_repeat = true;
        let mut left_origin = false;
        loop {
            let request = match self.request(&uri, &parcel, left_origin) {
                Ok(request) => request,
                Err(reason) => return Attempt::Refused { reason },
            };
            Stage::forget();
            let result =
                if is_first { request.send(payload) } else { run_again(request, payload, deadline, wants_fresh) };
            is_first = false;
            if let Some(attempt) = result.as_ref().err().and_then(answered_unreadably) {
                return attempt;
            }
            match result {
                Ok(response) => {
                    let status = response.status().as_u16();
                    // From whoever it is that a proxy leads to, it would mean nothing.
                    if let (407, Some(proxy)) = (status, self.reads_url(&uri)) {
                        return failed(Failure::Connect, &proxy.wants_credentials(), &uri);
                    }
                    if !matches!(status, 307 | 308) {
                        return answered(response, not_followed(status));
                    }
                    match next_hop(&uri, &response, n_redirects) {
                        Ok(next) => {
                            throw_away(response);
                            if !is_same_origin(&uri, &next) {
                                left_origin = true;
                                if let Err(attempt) = enter(&origin(&next)) {
                                    return attempt;
                                }
                            }
                            uri = next;
                            n_redirects += 1;
                            wants_fresh = false;
                        }
                        Err(note) => return answered(response, Some(note)),
                    }
                }
                Err(error) => match (trouble_of(error), wants_fresh) {
                    (Ok(Trouble::Stale), false) if may_repeat => {
                        self.note_repeat(&uri);
                        may_repeat = false;
                        wants_fresh = true;
                    }
                    (Ok(Trouble::Attempt(Attempt::Lacking { .. })), false) => {
                        self.pool.close_idle();
                        wants_fresh = true;
                    }
                    (Ok(Trouble::Attempt(attempt)), _) => return attempt,
                    (Ok(Trouble::Stale), _) => {
                        return failed(Failure::Broken, "connection closed before an answer", &uri);
                    }
                    (Err(error), _) => return self.spell(error, &uri),
                },
            }
        }
    }

    /// Closes connections that have been idle for too long, which posting does by
    /// itself, and forgets names that were looked up too long ago. This is for
    /// times when nothing is posted.
    pub fn tidy(&self) {
        self.pool.tidy(Instant::now());
        self.resolver.tidy();
    }

    /// Reads roots and the client certificate again, for connections that are made from now on. How many
    /// roots of each kind there are now, if anything has changed.
    ///
    /// # Errors
    ///
    /// If something cannot be read; then all stays as it was.
    pub fn renew_trust(&self) -> Result<Option<String>, String> {
        Ok(self.tls.renew()?.map(|loaded| loaded.to_string()))
    }

    /// How many roots of each kind were found at the start, and what of them could not be read.
    pub fn roots(&self) -> (&str, Option<&str>) {
        (&self.roots.0, self.roots.1.as_deref())
    }

    /// The settings of TLS towards endpoints.
    pub(crate) fn tls_settings(&self) -> Arc<rustls::ClientConfig> {
        self.tls.of_endpoints()
    }

    /// Closes all idle connections, when file descriptors are needed elsewhere.
    pub fn close_idle(&self) {
        self.pool.close_idle();
    }

    /// Counts requests that were sent once more within their attempt.
    pub fn repeated(&self) -> Arc<AtomicU64> {
        self.repeated.clone()
    }

    /// How many connections are idle now.
    pub fn n_idle(&self) -> usize {
        self.pool.len()
    }

    fn request(&self, uri: &Uri, parcel: &Parcel, left_origin: bool) -> Result<RequestBuilder<WithBody>, String> {
        let mut request = self.agent.post(uri);
        let id = self.id_header.as_deref().zip(parcel.id);
        for (n, (name, value)) in parcel.headers.iter().enumerate() {
            // Nobody else's check is relied on: what breaks out of a header breaks out of the request.
            let is_name = !name.is_empty() && name.bytes().all(is_token);
            if !is_name || !value.iter().all(|&byte| byte == b'\t' || (byte >= b' ' && byte != 0x7f)) {
                return Err(format!("header {name:?} is not allowed by HTTP"));
            }
            if belongs_to_connection(name.as_bytes())
                || (left_origin && !goes_elsewhere(name))
                || id.is_some_and(|(id_header, _)| name.eq_ignore_ascii_case(id_header))
            {
                continue;
            }
            // ureq wants to read this one, and would say so when the connection has been made.
            if name.eq_ignore_ascii_case("Authorization") && !value.is_ascii() {
                return Err("value of header authorization is not plain ASCII, which it must be".to_string());
            }
            request = if n < SPELT_HEADERS { request.header_raw(name, value) } else { request.header(*name, *value) };
        }
        if let Some((name, id)) = id {
            request = request.header_raw(name, id.as_bytes());
        }
        if let Some(authorization) = self.reads_url(uri).and_then(|proxy| proxy.authorization.as_deref()) {
            request = request.header(header::PROXY_AUTHORIZATION, authorization);
        }
        Ok(request)
    }

    /// The proxy that reads the request itself, in place of leading to who does.
    fn reads_url(&self, uri: &Uri) -> Option<&proxy::Proxy> {
        self.proxies.of(uri).filter(|_| uri.scheme_str() == Some("http"))
    }

    fn note_repeat(&self, uri: &Uri) {
        add(&self.repeated, 1);
        let host = uri.host().unwrap_or_default();
        debug!(
            "an idle connection to {host}:{} closed as a request was sent on it: sent once more on a new one",
            port(uri)
        );
    }

    /// What ureq itself says when there is no answer, in our words.
    fn spell(&self, error: Error, uri: &Uri) -> Attempt {
        match error {
            Error::Timeout(Timeout::Connect | Timeout::Resolve) => {
                let words = format!("no connection within {:?}", self.connect_timeout);
                failed(Failure::Connect, &words, uri)
            }
            Error::Timeout(_) => {
                let words = format!("no answer within {:?}", self.timeout);
                failed(Failure::Timeout, &words, uri)
            }
            Error::Io(error) => spell_io_error(&error, uri),
            Error::LargeResponseHeader(..) => {
                let words = format!("answer's headers are over {} kB", MAX_HEADERS / 1024);
                failed(Failure::Broken, &words, uri)
            }
            Error::Protocol(error) => match error.to_string() {
                // Known by its words alone: the type is not ours to name.
                words if words == "output too small to write output" => {
                    Attempt::Refused { reason: format!("a header is over {} kB", OUTPUT_WINDOW / 1024) }
                }
                // ureq itself would not send it, so the endpoint has no part in it.
                words if Stage::reached() == Stage::Unsent => {
                    Attempt::Refused { reason: format!("the request cannot be sent: {}", shorten(&words)) }
                }
                words => failed(Failure::Broken, &format!("answer is not valid HTTP: {}", shorten(&words)), uri),
            },
            Error::BadUri(words) => {
                Attempt::Refused { reason: format!("endpoint cannot be posted to: {}", shorten(&words)) }
            }
            Error::Http(error) => Attempt::Refused { reason: format!("endpoint cannot be posted to: {error}") },
            error => failed(Failure::Broken, &shorten(&error.to_string()), uri),
        }
    }
}

/// Within what is left of the attempt's time.
fn run_again(
    request: RequestBuilder<WithBody>,
    payload: &[u8],
    deadline: Instant,
    wants_fresh: bool,
) -> Result<Response<Body>, Error> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(Error::Timeout(Timeout::Global));
    }
    let mut config = request.config().timeout_global(Some(left));
    if wants_fresh {
        config = config.max_idle_age(Duration::ZERO);
    }
    config.build().send(payload)
}

impl fmt::Debug for Poster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Poster").finish_non_exhaustive()
    }
}

/// Raises the limit of open files as far as it goes, and returns it. Each
/// connection needs one; many systems start processes with 1024.
pub fn raise_descriptor_limit() -> u64 {
    rlimit::increase_nofile_limit(u64::MAX).unwrap_or_else(|_| descriptor_limit())
}

fn descriptor_limit() -> u64 {
    // Where it cannot be read, the least that systems give.
    rlimit::Resource::NOFILE.get_soft().unwrap_or(256)
}

/// How many are kept idle however few the workers: recipients that take turns
/// are met again only after all the others, and a connection costs far less to
/// keep than to make.
const MIN_IDLE: usize = 1024;

/// Half of what is left when each worker has its connection: the other half is
/// for look-ups, for others in the same process, and for luck.
fn idle_limit(workers: usize, descriptors: u64) -> usize {
    let spare = descriptors.saturating_sub(workers as u64 + OTHER_DESCRIPTORS) / 2;
    usize::try_from(spare).unwrap_or(usize::MAX).min(workers.saturating_mul(8).max(MIN_IDLE))
}

fn check_id_header(name: &str) -> Result<(), String> {
    if HeaderName::from_bytes(name.as_bytes()).is_err() {
        return Err(format!("option '--id-header': '{name}' is not a header name"));
    }
    if belongs_to_connection(name.as_bytes()) {
        return Err(format!("option '--id-header': '{name}' has another meaning"));
    }
    Ok(())
}

fn answered(response: Response<Body>, note: Option<String>) -> Attempt {
    let status = response.status().as_u16();
    let retry_after = response
        .headers()
        .get(header::RETRY_AFTER)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| parse_retry_after(value, SystemTime::now()));
    throw_away(response);
    Attempt::Answered { status, retry_after, note }
}

/// An answer whose status came whole and whose headers cannot be read: too many,
/// malformed, of two lengths. The recipient has said what it did with the message;
/// to send it again for what followed would only make copies. The connection is gone.
fn answered_unreadably(error: &Error) -> Option<Attempt> {
    let words = match error {
        Error::Protocol(error) => error.to_string(),
        Error::LargeResponseHeader(..) => format!("they are over {} kB", MAX_HEADERS / 1024),
        Error::Other(inner) => match inner.downcast_ref() {
            Some(Trouble::Attempt(Attempt::Failed { failure: Failure::Broken, error })) => error.clone(),
            _ => return None,
        },
        _ => return None,
    };
    let Stage::Sent(Some(status)) = Stage::reached() else { return None };
    let note = format!("the answer's headers cannot be read: {}", shorten(&words));
    Some(Attempt::Answered { status, retry_after: None, note: Some(note) })
}

/// Reads the body to its end if that is near, in bytes and in time, so that the
/// connection can be used again; otherwise the connection is closed. How the body ends (too
/// late, broken off, not at all) changes nothing: the recipient has said what it
/// did with the message, and sending it again because the rest of its words
/// did not arrive would only make copies.
fn throw_away(response: Response<Body>) {
    let body = response.into_body();
    // With nothing to read the connection has gone back to the pool already.
    if body.content_length().is_some_and(|length| length > MAX_BODY || length == 0) {
        return;
    }
    let mut reader = body.into_reader();
    let mut scratch = [0; 1024];
    let mut total = 0;
    while total <= MAX_BODY {
        match reader.read(&mut scratch) {
            Ok(0) | Err(_) => return,
            Ok(amount) => total += amount as u64,
        }
    }
}

fn not_followed(status: u16) -> Option<String> {
    matches!(status, 300..=303 | 305 | 306).then(|| "only redirects 307 and 308 are followed".to_string())
}

/// Where a 307 or 308 leads, or why it is not followed.
fn next_hop(uri: &Uri, response: &Response<Body>, n_redirects: usize) -> Result<Uri, String> {
    if n_redirects >= MAX_REDIRECTS {
        return Err(format!("more than {MAX_REDIRECTS} redirects"));
    }
    let location = response.headers().get(header::LOCATION).ok_or("redirect without a location")?;
    let location = location.to_str().map_err(|_| "redirect to an unreadable location")?;
    resolve_location(uri, location)
}

fn resolve_location(uri: &Uri, location: &str) -> Result<Uri, String> {
    let mut next = url::Url::parse(&uri.to_string())
        .and_then(|base| base.join(location))
        .map_err(|_| "redirect to an unreadable location")?;
    match (uri.scheme_str(), next.scheme()) {
        (Some("https"), "http") => return Err("redirect from https to http".to_string()),
        (_, "http" | "https") => {}
        _ => return Err("redirect to another scheme than http and https".to_string()),
    }
    next.set_fragment(None);
    next.as_str().parse().map_err(|_| "redirect to an unreadable location".to_string())
}

/// As the lanes name it.
fn origin(uri: &Uri) -> String {
    let (scheme, host) = (uri.scheme_str().unwrap_or("http"), uri.host().unwrap_or_default());
    format!("{scheme}://{}:{}", host.to_ascii_lowercase(), port(uri))
}

fn is_same_origin(one: &Uri, other: &Uri) -> bool {
    one.scheme() == other.scheme()
        && port(one) == port(other)
        && one.host().unwrap_or_default().eq_ignore_ascii_case(other.host().unwrap_or_default())
}

fn port(uri: &Uri) -> u16 {
    uri.port_u16().unwrap_or(match uri.scheme_str() {
        Some("https") => 443,
        _ => 80,
    })
}

fn trouble_of(error: Error) -> Result<Trouble, Error> {
    match error {
        Error::Other(inner) => match inner.downcast::<Trouble>() {
            Ok(trouble) => Ok(*trouble),
            Err(inner) => Err(Error::Other(inner)),
        },
        error => Err(error),
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
fn failed(failure: Failure, words: &str, uri: &Uri) -> Attempt {
    let host = uri.host().unwrap_or_default();
    Attempt::Failed { failure, error: format!("{words} ({host}:{})", port(uri)) }
}

/// Words that the other side may have had a hand in, at a length and of a kind
/// that do no harm in a log.
fn shorten(words: &str) -> String {
    words.chars().take(120).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_resolved_as_the_url_standard_says() {
        for (base, location, expected) in [
            ("http://a.example/x/y", "/z", Ok("http://a.example/z")),
            ("http://a.example/x/y", "z?q=1", Ok("http://a.example/x/z?q=1")),
            ("http://a.example/x", "//b.example:81/", Ok("http://b.example:81/")),
            ("http://a.example/x", "https://b.example/#top", Ok("https://b.example/")),
            ("https://a.example/x", "https://b.example", Ok("https://b.example/")),
            ("https://a.example/x", "http://a.example/x", Err("from https to http")),
            ("http://a.example/x", "ftp://b.example/", Err("another scheme")),
            ("http://a.example/x", "data:,x", Err("another scheme")),
            ("http://a.example/x", "http://[::1/", Err("unreadable")),
            ("http://a.example/x", "http://", Err("unreadable")),
        ] {
            let result = resolve_location(&base.parse().unwrap(), location);
            match (expected, &result) {
                (Ok(expected), Ok(next)) => assert_eq!(next.to_string(), expected),
                (Err(words), Err(note)) => assert!(note.contains(words), "{note}"),
                _ => panic!("{base} and {location}: {result:?}"),
            }
        }
    }

    #[test]
    fn origins_are_compared_with_their_ports() {
        for (one, other, expected) in [
            ("http://a.example/x", "http://A.example:80/y", true),
            ("https://a.example/x", "https://a.example:443/", true),
            ("http://a.example/", "https://a.example/", false),
            ("http://a.example/", "http://a.example:8020/", false),
            ("http://a.example/", "http://b.example/", false),
        ] {
            let same = is_same_origin(&one.parse().unwrap(), &other.parse().unwrap());
            assert_eq!(same, expected, "{one} and {other}");
        }
    }

    #[test]
    fn idle_connections_leave_room_for_other_files() {
        for (workers, descriptors, expected) in
            [(128, 1024, 416), (256, 20_000, 2048), (128, 100, 0), (8, 1024, 476), (8, u64::MAX, 1024)]
        {
            assert_eq!(idle_limit(workers, descriptors), expected);
        }
    }

    #[test]
    fn options_that_cannot_be_are_named() {
        let error = |options: Options| Poster::new(options).unwrap_err();
        for name in ["not a name", "Content-Length", "proxy-thing", ""] {
            let id_header = Some(name.to_string());
            let words = error(Options { id_header, ..Options::default() });
            assert!(words.starts_with("option '--id-header'"), "{words}");
        }
        let words = error(Options { ca_file: Some("/nowhere/ca.pem".into()), ..Options::default() });
        assert!(words.starts_with("option '--ca-file': /nowhere/ca.pem: "), "{words}");
        let words = error(Options { ca_file: Some("Cargo.toml".into()), ..Options::default() });
        assert_eq!(words, "option '--ca-file': Cargo.toml: holds no PEM certificate");
    }
}
