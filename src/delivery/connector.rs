//! From an endpoint to a connection: for HTTP an idle one from the pool if it is still
//! quiet, else a new one, through the proxy and TLS as need be.
//!
//! It promises one budget of time for all of that, and to tell what this machine
//! lacked from what the endpoint failed to do. A proxy is asked for a tunnel
//! (CONNECT) for all but plain http; that it is sent as such, with the whole URL
//! (absolute-form). It leaves to the resolver which addresses there are.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use ureq::http::Uri;
use ureq::http::uri::Authority;
use ureq::unversioned::transport::time::Instant as UreqInstant;
use ureq::unversioned::transport::{ConnectionDetails, Connector as UreqConnector};
use ureq::{Error, Timeout};

use super::carrier::{Carrier, Secure, handshake};
use super::course::USER_AGENT;
use super::dial::{self, Answered};
use super::exchange::is_interim;
use super::pool::{Key, Pools};
use super::proxy::{Proxies, Proxy};
use super::redirect::{is_secure, port};
use super::resolver::Resolver;
use super::socket::Socket;
use super::stream::Stream;
use super::tls::Trust;
use super::transport::Pooled;
use super::trouble::{Trouble, shorten, what_we_lack};
use super::wire::Wire;
use crate::policy::Failure;

/// The most that a proxy may say before a tunnel begins.
const MAX_PROXY_ANSWER: usize = 16 * 1024;

/// Makes all connections of one poster.
pub(super) struct Connector {
    pub(super) tls: Arc<Trust>,
    pub(super) proxies: Arc<Proxies>,
    pub(super) resolver: Resolver,
    pub(super) answered: Answered,
    /// For the words alone.
    pub(super) connect_timeout: Duration,
    pub(super) tick: Duration,
}

/// Where a connection is to lead, and until when it must be made.
pub(super) struct Goal<'a> {
    pub(super) uri: &'a Uri,
    /// Its own; not needed where a proxy is asked.
    pub(super) addrs: &'a [SocketAddr],
    pub(super) deadline: Instant,
    /// What it means when that has passed.
    pub(super) reason: Timeout,
}

impl Goal<'_> {
    fn time_left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }
}

impl Connector {
    /// For requests that a proxy is to read itself, if they have no TLS.
    fn open(&self, goal: &Goal, proxy: Option<&Proxy>) -> Result<Wire, Error> {
        match proxy {
            _ if is_secure(goal.uri) => self.agree(goal, self.reach(goal, proxy)?).map(Wire::tls),
            None => self.dial_endpoint(goal).map(Wire::plain),
            Some(proxy) if proxy.is_tls => self.agree_with_proxy(goal, proxy).map(Wire::tls),
            Some(proxy) => self.dial_proxy(goal, proxy).map(Wire::plain),
        }
    }

    /// A new connection, over which nothing is sent.
    pub(super) fn try_connection(&self, uri: &Uri) -> Result<(), Error> {
        let within = self.connect_timeout;
        let addrs = self.resolver.of_endpoint(uri, within)?;
        let goal = Goal { uri, addrs: &addrs, deadline: Instant::now() + within, reason: Timeout::Connect };
        self.open(&goal, self.proxies.of(uri)).map(|_| ())
    }

    /// For what is no request of HTTP.
    pub(super) fn lead(&self, goal: &Goal) -> Result<Stream, Error> {
        let carrier = self.reach(goal, self.proxies.of(goal.uri))?;
        match is_secure(goal.uri) {
            true => self.agree(goal, carrier).map(Stream::tls),
            false => Ok(Stream::Plain(carrier)),
        }
    }

    /// What leads to the endpoint itself, and whatever is said is between it and us.
    fn reach(&self, goal: &Goal, proxy: Option<&Proxy>) -> Result<Carrier, Error> {
        match proxy {
            None => self.dial_endpoint(goal).map(Carrier::socket),
            Some(proxy) if proxy.is_tls => tunnel(Carrier::inside(self.agree_with_proxy(goal, proxy)?), proxy, goal),
            Some(proxy) => tunnel(Carrier::socket(self.dial_proxy(goal, proxy)?), proxy, goal),
        }
    }

    fn dial_endpoint(&self, goal: &Goal) -> Result<Socket, Error> {
        let authority = goal.uri.authority().ok_or(Error::ConnectionFailed)?;
        self.dial(authority, &mut goal.addrs.to_vec(), goal)
    }

    fn dial_proxy(&self, goal: &Goal, proxy: &Proxy) -> Result<Socket, Error> {
        let mut addrs = self.resolver.of_proxy(&proxy.host, proxy.port, goal.time_left())?;
        let authority: Authority = proxy.place().parse().map_err(|_| Error::ConnectionFailed)?;
        self.dial(&authority, &mut addrs, goal)
    }

    fn agree_with_proxy(&self, goal: &Goal, proxy: &Proxy) -> Result<Secure, Error> {
        let carrier = Carrier::socket(self.dial_proxy(goal, proxy)?);
        let place = format!("proxy {}", proxy.place());
        let name = name(&proxy.host, &place)?;
        handshake(carrier, self.tls.of_proxies(), name, goal.time_left(), &place)
    }

    fn agree(&self, goal: &Goal, carrier: Carrier) -> Result<Secure, Error> {
        let host = goal.uri.host().unwrap_or_default();
        let place = format!("{}:{}", host.trim_matches(['[', ']']), port(goal.uri));
        let name = name(host, &place)?;
        handshake(carrier, self.tls.of_endpoints(), name, goal.time_left(), &place)
    }

    /// Tries the address that answered last, then the others beside it.
    fn dial(&self, of: &Authority, addrs: &mut [SocketAddr], goal: &Goal) -> Result<Socket, Error> {
        let left = goal.time_left();
        let reason = goal.reason;
        if left.is_zero() {
            return Err(Error::Timeout(reason));
        }
        self.answered.arrange(of, addrs);
        let stream = dial::connect(addrs, left).ok_or(Error::ConnectionFailed)?;
        let stream = stream.and_then(|stream| match stream.set_nodelay(true) {
            Ok(()) => Ok(stream),
            Err(error) => Err((addrs[0], error)),
        });
        match stream {
            Ok(stream) => {
                if let (true, Ok(peer)) = (addrs.len() > 1, stream.peer_addr()) {
                    self.answered.note(of, peer.ip());
                }
                Ok(Socket::new(stream, self.tick))
            }
            Err((addr, error)) => Err(match (error.kind(), reason) {
                (io::ErrorKind::TimedOut, Timeout::Connect) => {
                    let words = format!("no connection within {:?} ({addr})", self.connect_timeout);
                    Trouble::failed(Failure::Connect, words).into()
                }
                // The time of the whole attempt has its own words.
                (io::ErrorKind::TimedOut, reason) => Error::Timeout(reason),
                _ => spell_dial_error(addr, &error).into(),
            }),
        }
    }
}

/// The connector as ureq sees it: idle connections come first.
pub(super) struct Pooling {
    pub(super) connector: Arc<Connector>,
    pub(super) pools: Arc<Pools<Wire>>,
}

impl UreqConnector<()> for Pooling {
    type Out = Pooled;

    fn connect(&self, details: &ConnectionDetails, _chained: Option<()>) -> Result<Option<Pooled>, Error> {
        let key = Key::of(details.uri).ok_or(Error::ConnectionFailed)?;
        let proxy = self.connector.proxies.of(details.uri);
        let pool = if proxy.is_some() { &self.pools.proxied } else { &self.pools.direct };
        let absolute = proxy.filter(|_| !details.needs_tls()).map(|_| before_path(details.uri));
        // A second try has an idle age of nothing: it wants a fresh connection.
        if !details.config.max_idle_age().is_zero() {
            while let Some(mut wire) = pool.take(&key, Instant::now()) {
                if wire.is_quiet() {
                    return Ok(Some(Pooled::new(wire, (pool.clone(), key), true, absolute)));
                }
            }
        }
        let began = match details.now {
            UreqInstant::Exact(began) => began,
            _ => Instant::now(),
        };
        // Without a deadline (there always is one here) a day: any instant plus it exists.
        let deadline = began + (*details.timeout.after).min(Duration::from_secs(24 * 3600));
        let goal = Goal { uri: details.uri, addrs: &details.addrs, deadline, reason: details.timeout.reason };
        let wire = self.connector.open(&goal, proxy)?;
        Ok(Some(Pooled::new(wire, (pool.clone(), key), false, absolute)))
    }
}

/// What comes before the path where a request names its whole URL.
fn before_path(uri: &Uri) -> Box<str> {
    format!("http://{}", uri.authority().map_or("", Authority::as_str)).into()
}

fn name(host: &str, place: &str) -> Result<ServerName<'static>, Error> {
    ServerName::try_from(host.trim_matches(['[', ']']).to_string()).map_err(|_| {
        let words = format!("TLS: no certificate can bear this name ({place})");
        Trouble::failed(Failure::Tls, words).into()
    })
}

/// Has the proxy lead to the endpoint.
fn tunnel(mut carrier: Carrier, proxy: &Proxy, goal: &Goal) -> Result<Carrier, Error> {
    let failed = |words: String| Error::from(Trouble::failed(Failure::Connect, words));
    let place = proxy.place();
    let target = format!("{}:{}", goal.uri.host().unwrap_or_default(), port(goal.uri));
    let mut head = format!(
        "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nUser-Agent: {}\r\nProxy-Connection: Keep-Alive\r\n",
        USER_AGENT
    );
    if let Some(authorization) = &proxy.authorization {
        head.push_str(&format!("Proxy-Authorization: {authorization}\r\n"));
    }
    head.push_str("\r\n");
    carrier.set_deadline(goal.time_left(), goal.reason);
    let spell = |error: io::Error| match Error::from(error) {
        Error::Io(error) => match what_we_lack(&error) {
            Some(lack) => Trouble::lacking(lack).into(),
            None => failed(format!("proxy {place} closed before it answered for {target}")),
        },
        other => other,
    };
    carrier.write_all(head.as_bytes()).and_then(|()| carrier.flush()).map_err(spell)?;

    let mut answer = vec![0; MAX_PROXY_ANSWER];
    let mut filled = 0;
    let (length, status) = loop {
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut parsed = httparse::Response::new(&mut headers);
        match parsed.parse(&answer[..filled]) {
            Ok(httparse::Status::Complete(length)) if is_interim(&answer[..filled]) => {
                answer.copy_within(length..filled, 0);
                filled -= length;
                continue;
            }
            Ok(httparse::Status::Complete(length)) => break (length, parsed.code.unwrap_or_default()),
            Ok(httparse::Status::Partial) if filled < answer.len() => {}
            Ok(httparse::Status::Partial) => {
                let words = format!("proxy {place}: its answer is over {} kB ({target})", MAX_PROXY_ANSWER / 1024);
                return Err(failed(words));
            }
            Err(error) => {
                let words = shorten(&error.to_string());
                return Err(failed(format!("proxy {place}: its answer is not valid HTTP: {words} ({target})")));
            }
        }
        match carrier.read(&mut answer[filled..]).map_err(spell)? {
            0 => return Err(failed(format!("proxy {place} closed before it answered for {target}"))),
            amount => filled += amount,
        }
    };
    match status {
        // What follows the proxy's own answer at once cannot be the recipient's, who has not been asked.
        200..=299 if filled > length => {
            Err(failed(format!("proxy {place}: its answer is followed by what nobody asked for ({target})")))
        }
        200..=299 => Ok(carrier.begun_anew()),
        401 | 407 => Err(failed(format!("{} ({target})", proxy.wants_credentials(status)))),
        status => Err(failed(format!("proxy {place} answered {status} to CONNECT ({target})"))),
    }
}

impl fmt::Debug for Pooling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pooling").finish_non_exhaustive()
    }
}

fn spell_dial_error(addr: SocketAddr, error: &io::Error) -> Trouble {
    if let Some(lack) = what_we_lack(error) {
        return Trouble::lacking(lack);
    }
    let words = match error.kind() {
        io::ErrorKind::ConnectionRefused => format!("connection refused ({addr})"),
        io::ErrorKind::ConnectionReset => format!("connection reset ({addr})"),
        io::ErrorKind::HostUnreachable => format!("host unreachable ({addr})"),
        io::ErrorKind::NetworkUnreachable => format!("network unreachable ({addr})"),
        // With IPv4 it means that all local ports are taken; with IPv6, that
        // this machine has none of it.
        io::ErrorKind::AddrNotAvailable if addr.is_ipv4() => {
            return Trouble::lacking(format!("no local port left for {addr}"));
        }
        io::ErrorKind::AddrNotAvailable => format!("no way to {addr} from here"),
        _ => format!("no connection ({addr}): {error}"),
    };
    Trouble::failed(Failure::Connect, words)
}
