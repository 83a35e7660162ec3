//! From an endpoint to a connection: an idle one from the pool if it is still
//! quiet, else a new one, through the proxy and TLS as need be.
//!
//! It promises one budget of time for all of that, and to tell what this machine
//! lacked from what the endpoint failed to do. A proxy is asked for a tunnel
//! (CONNECT) for all that has TLS; plain http it is sent as such, with the whole URL
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

use super::dial::{self, Answered};
use super::pool::{Key, Pool};
use super::proxy::{Proxies, Proxy};
use super::tls::Trust;
use super::transport::{Carrier, Pooled, Socket, Wire, handshake};
use super::trouble::{Trouble, what_we_lack};
use super::{port, shorten};
use crate::policy::Failure;
use crate::resolver::Resolver;

/// The most that a proxy may say before a tunnel begins.
const MAX_PROXY_ANSWER: usize = 16 * 1024;

/// Makes all connections of one poster.
pub(super) struct Connector {
    pub(super) pool: Arc<Pool<Wire>>,
    pub(super) tls: Arc<Trust>,
    pub(super) proxies: Arc<Proxies>,
    /// For the names of proxies.
    pub(super) resolver: Resolver,
    pub(super) answered: Answered,
    /// For the words alone: ureq minds the time.
    pub(super) connect_timeout: Duration,
    pub(super) tick: Duration,
}

impl Connector {
    fn open(&self, details: &ConnectionDetails, proxy: Option<&Proxy>) -> Result<Wire, Error> {
        let is_tls = details.needs_tls();
        let Some(proxy) = proxy else {
            let authority = details.uri.authority().ok_or(Error::ConnectionFailed)?;
            let socket = self.dial(authority, &mut details.addrs.to_vec(), details)?;
            return match is_tls {
                false => Ok(Wire::plain(socket)),
                true => self.agree(details, Carrier::socket(socket)),
            };
        };
        let mut addrs = self.resolver.of_proxy(&proxy.host, proxy.port, time_left(details))?;
        let authority: Authority = proxy.place().parse().map_err(|_| Error::ConnectionFailed)?;
        let socket = self.dial(&authority, &mut addrs, details)?;
        match (proxy.is_tls, is_tls) {
            (false, false) => Ok(Wire::plain(socket)),
            (false, true) => {
                let carrier = tunnel(Carrier::socket(socket), proxy, details)?;
                self.agree(details, carrier)
            }
            (true, _) => {
                let config = self.tls.of_proxies();
                let place = format!("proxy {}", proxy.place());
                let name = name(&proxy.host, &place)?;
                let stream = handshake(Carrier::socket(socket), config, name, time_left(details), &place)?;
                if !is_tls {
                    return Ok(Wire::tls(stream));
                }
                let carrier = tunnel(Carrier::inside(stream), proxy, details)?;
                self.agree(details, carrier)
            }
        }
    }

    fn agree(&self, details: &ConnectionDetails, carrier: Carrier) -> Result<Wire, Error> {
        let host = details.uri.host().unwrap_or_default();
        let place = format!("{}:{}", host.trim_matches(['[', ']']), details.uri.port_u16().unwrap_or(443));
        let name = name(host, &place)?;
        let config = self.tls.of_endpoints();
        handshake(carrier, config, name, time_left(details), &place).map(Wire::tls)
    }

    /// Tries the address that answered last, then the others beside it.
    fn dial(&self, of: &Authority, addrs: &mut [SocketAddr], details: &ConnectionDetails) -> Result<Socket, Error> {
        let left = time_left(details);
        let reason = details.timeout.reason;
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

impl UreqConnector<()> for Connector {
    type Out = Pooled;

    fn connect(&self, details: &ConnectionDetails, _chained: Option<()>) -> Result<Option<Pooled>, Error> {
        let key = Key::of(details.uri).ok_or(Error::ConnectionFailed)?;
        let proxy = self.proxies.of(details.uri);
        let absolute = proxy.filter(|_| !details.needs_tls()).map(|_| before_path(details.uri));
        // A second try has an idle age of nothing: it wants a fresh connection.
        if !details.config.max_idle_age().is_zero() {
            while let Some(mut wire) = self.pool.take(&key, Instant::now()) {
                if wire.is_quiet() {
                    return Ok(Some(Pooled::new(wire, (self.pool.clone(), key), true, absolute)));
                }
            }
        }
        let wire = self.open(details, proxy)?;
        Ok(Some(Pooled::new(wire, (self.pool.clone(), key), false, absolute)))
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
fn tunnel(mut carrier: Carrier, proxy: &Proxy, details: &ConnectionDetails) -> Result<Carrier, Error> {
    let failed = |words: String| Error::from(Trouble::failed(Failure::Connect, words));
    let place = proxy.place();
    let target = format!("{}:{}", details.uri.host().unwrap_or_default(), port(details.uri));
    let mut head = format!(
        "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nUser-Agent: {}\r\nProxy-Connection: Keep-Alive\r\n",
        super::USER_AGENT
    );
    if let Some(authorization) = &proxy.authorization {
        head.push_str(&format!("Proxy-Authorization: {authorization}\r\n"));
    }
    head.push_str("\r\n");
    carrier.set_deadline(time_left(details), details.timeout.reason);
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
        407 => Err(failed(format!("{} ({target})", proxy.wants_credentials()))),
        status => Err(failed(format!("proxy {place} answered {status} to CONNECT ({target})"))),
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").finish_non_exhaustive()
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

fn time_left(details: &ConnectionDetails) -> Duration {
    let whole = (*details.timeout.after).min(Duration::from_secs(24 * 3600));
    match details.now {
        UreqInstant::Exact(began) => whole.saturating_sub(began.elapsed()),
        _ => whole,
    }
}
