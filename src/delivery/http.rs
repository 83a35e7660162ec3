//! Delivering over `http` and `https`: one POST.
//!
//! It promises that a status that came is never forgotten because of what followed it, and that no
//! redirect is followed here. It leaves to the poster the time of an attempt and where redirects lead.
//!
//! One attempt is one request, with one exception. Servers close connections that
//! have been idle, and may do so while a request is under way to them: nothing is
//! wrong then, and a failed attempt would close the lane of all for seconds. But
//! from here a server that read the request and then closed looks the same, and a
//! second copy within a second is known to have broken a handshake. So a request
//! is sent once more at once, on a new connection, only
//! * on a connection that was used before, from which not one byte came back, and
//! * if it could not be written whole, so that nobody can have read it whole; or
//! * if the connection closed within 100 ms (the transport's `RACE`) of the request's end: a close
//!   that crossed it arrives within one way from there to here, and who had time to
//!   work on a message takes longer as a rule.
//!
//! It is done once in an attempt, counted and logged. Whatever else breaks a
//! connection is a failed attempt, as on a new connection, and has its backoff.
//!
//! HTTP is ureq's (3.5): request lines, headers with the spelling that they were given in, framing,
//! chunks, parsing answers, the budget of time of each phase. Ours is what it does not do, each of which
//! `tests/library/ureq_alone.rs` shows of the release in use:
//! * the pool: idle connections can be given up without the agent, and cost the same however many they are,
//!   where ureq compares each with the others at every request;
//! * the transport: a request that met the end of an idle connection is told from one that was read; a
//!   status counts whatever follows it; an answer is heard while the request is not read; a `100 Continue`
//!   may have headers; what follows a body is bounded;
//! * the resolver, which ureq asks for every request: it remembers, and judges addresses;
//! * dialing: an address that leads nowhere costs a quarter of a second, once;
//! * proxies: one for each scheme, plain http as such, NO_PROXY with networks, ports and what is below a name.
//!
//! TLS is rustls's, without ureq between: roots and certificates change while an agent of ureq's lives.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant, SystemTime};

use log::debug;
use ureq::http::{Response, Uri, header};
use ureq::typestate::WithBody;
use ureq::{Agent, Body, Error, RequestBuilder, Timeout};

use super::connector::{Connector, Pooling};
use super::course::{Course, Parcel, Reply, USER_AGENT};
use super::exchange::{MAX_HEADERS, OUTPUT_WINDOW};
use super::pool::{Pool, Pools};
use super::proxy::{Proxies, Proxy};
use super::redirect::{not_followed, port};
use super::resolver::Resolver;
use super::transport::Stage;
use super::trouble::{Patience, Trouble, failed, shorten};
use super::wire::Wire;
use crate::metrics::add;
use crate::policy::{Attempt, Failure, parse_retry_after};

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

/// Sends requests over HTTP; one for all workers.
pub(super) struct Http {
    agent: Agent,
    pools: Arc<Pools<Wire>>,
    proxies: Arc<Proxies>,
    patience: Patience,
    repeated: Arc<AtomicU64>,
}

impl Http {
    pub(super) fn new(
        connector: Arc<Connector>,
        resolver: Resolver,
        proxies: Arc<Proxies>,
        pools: Arc<Pools<Wire>>,
        idle_age: Duration,
        patience: Patience,
    ) -> Http {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            // Redirects are followed by the poster: ureq does not send a body twice.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(USER_AGENT)
            .accept_encoding("")
            // The connector's: see the head of `proxy`.
            .proxy(None)
            .timeout_resolve(Some(patience.connect))
            .timeout_connect(Some(patience.connect))
            .timeout_global(Some(patience.whole))
            .timeout_recv_body(Some(BODY_PATIENCE))
            .max_response_header_size(MAX_HEADERS)
            // ureq's own pool stays empty. The idle age is for our connector,
            // and has no meaning but that it is not nothing.
            .max_idle_connections(0)
            .max_idle_age(idle_age.max(Duration::from_millis(1)))
            .build();
        let pooling = Pooling { connector, pools: pools.clone() };
        let agent = Agent::with_parts(config, pooling, resolver);
        Http { agent, pools, proxies, patience, repeated: Arc::default() }
    }

    /// Closes connections that have been idle for too long.
    pub(super) fn tidy(&self) {
        self.pools.both().into_iter().for_each(|pool| pool.tidy(Instant::now()));
    }

    /// Closes all idle connections.
    pub(super) fn close_idle(&self) {
        self.pools.both().into_iter().for_each(Pool::close_idle);
    }

    /// How many connections are idle now.
    pub(super) fn n_idle(&self) -> usize {
        self.pools.both().into_iter().map(Pool::len).sum()
    }

    /// Counts requests that were sent once more within their attempt.
    pub(super) fn repeated(&self) -> Arc<AtomicU64> {
        self.repeated.clone()
    }

    /// One request, and what it came to. It and its parts stand in the loop of an attempt, as if written
    /// there: 180 instructions less for a message.
    #[inline]
    pub(super) fn post(&self, course: &mut Course, parcel: &Parcel) -> Reply {
        loop {
            let request = match self.request(course, parcel) {
                Ok(request) => request,
                Err(reason) => return Reply::Attempt(Attempt::Refused { reason }),
            };
            Stage::forget();
            let result = match course.is_first {
                true => request.send(parcel.payload),
                false => send_again(request, parcel.payload, course),
            };
            course.is_first = false;
            if let Some(attempt) = result.as_ref().err().and_then(answered_unreadably) {
                return Reply::Attempt(attempt);
            }
            let error = match result {
                Ok(response) => return self.reply(response, &course.uri),
                Err(error) => error,
            };
            return Reply::Attempt(match Trouble::of(error) {
                Ok(Trouble::Stale) if course.may_repeat && !course.wants_fresh => {
                    self.note_repeat(&course.uri);
                    course.may_repeat = false;
                    course.wants_fresh = true;
                    continue;
                }
                Ok(Trouble::Stale) => failed(Failure::Broken, "connection closed before an answer", &course.uri),
                Ok(Trouble::Attempt(attempt)) => attempt,
                Err(error) => self.spell(error, &course.uri),
            });
        }
    }

    #[inline]
    fn request(&self, course: &Course, parcel: &Parcel) -> Result<RequestBuilder<WithBody>, String> {
        let mut request = self.agent.post(&course.uri);
        for (n, &(name, value)) in parcel.headers.iter().enumerate() {
            if !parcel.sends(name, value, course.left_origin)? {
                continue;
            }
            // ureq wants to read this one, and would say so when the connection has been made.
            if name.eq_ignore_ascii_case("Authorization") && !value.is_ascii() {
                return Err("value of header authorization is not plain ASCII, which it must be".to_string());
            }
            request = if n < SPELT_HEADERS { request.header_raw(name, value) } else { request.header(name, value) };
        }
        if let Some((name, id)) = parcel.id {
            request = request.header_raw(name, id);
        }
        if let Some(authorization) = self.reads_url(&course.uri).and_then(|proxy| proxy.authorization.as_deref()) {
            request = request.header(header::PROXY_AUTHORIZATION, authorization);
        }
        Ok(request)
    }

    /// The proxy that reads the request itself, in place of leading to who does.
    fn reads_url(&self, uri: &Uri) -> Option<&Proxy> {
        self.proxies.of(uri).filter(|_| uri.scheme_str() == Some("http"))
    }

    #[inline]
    fn reply(&self, response: Response<Body>, uri: &Uri) -> Reply {
        let status = response.status().as_u16();
        // From whoever it is that a proxy leads to, it would mean nothing.
        let proxy = self.reads_url(uri);
        if let (407, Some(proxy)) = (status, proxy) {
            return Reply::Attempt(failed(Failure::Connect, &proxy.wants_credentials(status), uri));
        }
        let by_proxy = proxy.filter(|proxy| status == 401 && proxy.authorization.is_some());
        let note = by_proxy.map(|proxy| format!("or {}", proxy.wants_credentials(status)));
        let location = matches!(status, 307 | 308).then(|| location(&response));
        let retry_after = response
            .headers()
            .get(header::RETRY_AFTER)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| parse_retry_after(value, SystemTime::now()));
        throw_away(response);
        let attempt = Attempt::Answered { status, retry_after, note: note.or(not_followed(status)) };
        match location {
            Some(location) => Reply::Redirect { location, attempt },
            None => Reply::Attempt(attempt),
        }
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
            error => self.patience.spell(error, uri),
        }
    }
}

fn location(response: &Response<Body>) -> Result<String, &'static str> {
    let location = response.headers().get(header::LOCATION).ok_or("redirect without a location")?;
    location.to_str().map(str::to_string).map_err(|_| "redirect to an unreadable location")
}

/// Within what is left of the attempt's time.
fn send_again(request: RequestBuilder<WithBody>, payload: &[u8], course: &Course) -> Result<Response<Body>, Error> {
    let left = course.deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(Error::Timeout(Timeout::Global));
    }
    let mut config = request.config().timeout_global(Some(left));
    if course.wants_fresh {
        config = config.max_idle_age(Duration::ZERO);
    }
    config.build().send(payload)
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
