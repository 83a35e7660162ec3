//! One message to one endpoint, and what it came to in our own words: an [`Attempt`].
//!
//! It promises that every attempt ends by its deadline, redirects included,
//! with bounded memory, whatever the recipient does; and that no word of an error
//! holds credentials or payload. It leaves to `policy` what an attempt means,
//! and to the lanes when it is made.
//!
//! There is one file for each way to deliver, chosen by the endpoint's scheme: `http` and `websocket`.
//! Below them they share the connector with all that it uses: resolver, proxies, TLS, and what bytes pass
//! through. That is, from the top down, `transport` (a connection as ureq sees it) and `wire` for HTTP, `stream`
//! for WebSocket, `carrier` (what TLS runs on), and `socket`.

mod carrier;
mod connector;
mod course;
mod descriptors;
mod dial;
mod exchange;
mod http;
mod pool;
pub mod proxy;
mod redirect;
mod resolver;
mod socket;
mod stream;
mod tls;
mod transport;
mod trouble;
mod websocket;
mod wire;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use ureq::http::Uri;

use crate::guard::Guard;
use crate::headers::IdHeader;
use crate::policy::Attempt;
use crate::roots::Roots;
use connector::Connector;
use course::{Course, Parcel, Reply};
use descriptors::{IDLE_THROUGH_PROXIES, descriptor_limit, idle_limit};
use dial::Answered;
use http::Http;
use pool::{Pool, Pools};
use proxy::{Proxies, Proxy};
use resolver::Resolver;
use tls::{Sources, Trust};
use trouble::Patience;
use websocket::WebSocket;

pub use descriptors::raise_descriptor_limit;
pub(crate) use redirect::{is_secure, is_websocket, port};

/// Redirects followed in one attempt.
const MAX_REDIRECTS: usize = 5;

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
    /// that is more, as far as the limit of open files allows. Through proxies at most 32 more.
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
    pub id_header: Option<IdHeader>,
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
    http: Http,
    websocket: WebSocket,
    connector: Arc<Connector>,
    resolver: Resolver,
    patience: Patience,
    id_header: Option<IdHeader>,
    tls: Arc<Trust>,
}

impl Poster {
    /// A poster with these options; the error names the option that cannot be.
    pub fn new(options: Options) -> Result<Poster, String> {
        let idle_connections =
            options.idle_connections.unwrap_or_else(|| idle_limit(options.workers, descriptor_limit()));
        let pool = |max| Arc::new(Pool::new(max, options.endpoint_concurrency, options.idle_age));
        let proxied = pool(idle_connections.min(IDLE_THROUGH_PROXIES));
        let pools = Arc::new(Pools { direct: pool(idle_connections), proxied });
        let proxies = Arc::new(options.proxies);
        let resolver = Resolver::new(options.guard, proxies.clone());
        let sources = Sources { roots: options.roots, ca_file: options.ca_file, client: options.client_certificate };
        let tls = Arc::new(Trust::read(sources)?);
        let patience = Patience { connect: options.connect_timeout, whole: options.timeout };
        let connector = Arc::new(Connector {
            tls: tls.clone(),
            proxies: proxies.clone(),
            resolver: resolver.clone(),
            answered: Answered::default(),
            connect_timeout: options.connect_timeout,
            tick: options.timeout.min(options.connect_timeout) / 16,
        });
        Ok(Poster {
            websocket: WebSocket { connector: connector.clone(), resolver: resolver.clone(), patience },
            http: Http::new(connector.clone(), resolver.clone(), proxies, pools, options.idle_age, patience),
            connector,
            resolver,
            patience,
            id_header: options.id_header,
            tls,
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
        let deadline = Instant::now() + self.patience.whole;
        let id = self.id_header.as_ref().map(IdHeader::as_str).zip(id.map(str::as_bytes));
        let parcel = Parcel { headers: headers.collect(), id, payload };
        let mut course = Course::new(uri, deadline);
        let mut n_redirects = 0;
        loop {
            let reply = match redirect::is_websocket(&course.uri) {
                false => self.http.post(&mut course, &parcel),
                true => self.websocket.post(&course, &parcel),
            };
            match reply {
                Reply::Attempt(Attempt::Lacking { .. }) if !course.wants_fresh => {
                    self.http.close_idle();
                    course.wants_fresh = true;
                }
                Reply::Attempt(attempt) => return self.name_proxy(attempt, &course.uri),
                Reply::Redirect { attempt, .. } if n_redirects >= MAX_REDIRECTS => {
                    return attempt.with_note(format!("more than {MAX_REDIRECTS} redirects"));
                }
                Reply::Redirect { location, attempt } => {
                    let next = location.map_err(str::to_string);
                    let next = match next.and_then(|location| redirect::next(&course.uri, &location)) {
                        Ok(next) => next,
                        Err(note) => return attempt.with_note(note),
                    };
                    if !redirect::is_same_origin(&course.uri, &next) {
                        course.left_origin = true;
                        if let Err(attempt) = enter(&redirect::origin(&next)) {
                            return attempt;
                        }
                    }
                    course.uri = next;
                    course.wants_fresh = false;
                    n_redirects += 1;
                }
            }
        }
    }

    /// Opens a WebSocket as for a message, and sends none.
    ///
    /// # Errors
    ///
    /// What came instead.
    pub fn try_websocket(&self, uri: &Uri) -> Result<(), Attempt> {
        let parcel = Parcel { headers: Vec::new(), id: None, payload: &[] };
        let course = Course::new(uri, Instant::now() + self.patience.whole);
        self.websocket.try_opening(&course, &parcel).map_err(|attempt| self.name_proxy(attempt, uri))
    }

    /// Connects as for a message over HTTP, and sends nothing.
    ///
    /// # Errors
    ///
    /// What came instead.
    pub fn try_connection(&self, uri: &Uri) -> Result<(), Attempt> {
        let tried = self.connector.try_connection(uri);
        tried.map_err(|error| self.name_proxy(self.patience.attempt(error, uri), uri))
    }

    /// The proxy through which this is reached.
    pub fn proxy_of(&self, uri: &Uri) -> Option<&Proxy> {
        self.connector.proxies.of(uri)
    }

    /// What failed on the way through a proxy may be the fault of that.
    fn name_proxy(&self, attempt: Attempt, uri: &Uri) -> Attempt {
        let Attempt::Failed { failure, error } = attempt else { return attempt };
        let error = match self.proxy_of(uri) {
            Some(proxy) if !error.contains("proxy ") => format!("{error} through proxy {}", proxy.place()),
            _ => error,
        };
        Attempt::Failed { failure, error }
    }

    /// Closes connections that have been idle for too long, which posting does by
    /// itself, and forgets names that were looked up too long ago. This is for
    /// times when nothing is posted.
    pub fn tidy(&self) {
        self.http.tidy();
        self.resolver.tidy();
    }

    /// Reads roots and the client certificate again, for connections that are made from now on. How many
    /// roots of each kind there are now, if anything has changed.
    ///
    /// # Errors
    ///
    /// If something cannot be read; then all stays as it was.
    pub fn renew_trust(&self) -> Result<Option<String>, String> {
        self.tls.renew()
    }

    /// How many roots of each kind there are, and what of them could not be read.
    pub fn roots(&self) -> (String, Option<String>) {
        self.tls.roots()
    }

    /// Closes all idle connections, when file descriptors are needed elsewhere.
    pub fn close_idle(&self) {
        self.http.close_idle();
    }

    /// Counts requests that were sent once more within their attempt.
    pub fn repeated(&self) -> Arc<AtomicU64> {
        self.http.repeated()
    }

    /// How many connections are idle now.
    pub fn n_idle(&self) -> usize {
        self.http.n_idle()
    }
}

impl fmt::Debug for Poster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Poster").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_cannot_be_are_named() {
        let error = |options: Options| Poster::new(options).unwrap_err();
        let words = error(Options { ca_file: Some("/nowhere/ca.pem".into()), ..Options::default() });
        assert!(words.starts_with("option '--ca-file': /nowhere/ca.pem: "), "{words}");
        let words = error(Options { ca_file: Some("Cargo.toml".into()), ..Options::default() });
        assert_eq!(words, "option '--ca-file': Cargo.toml: holds no PEM certificate");
    }
}
