//! From an endpoint to a connection: an idle one from the pool if it is still
//! quiet, else a new one, through the proxy and TLS as need be.
//!
//! It promises one budget of time for all of that, and to tell what this machine
//! lacked from what the endpoint failed to do. It leaves to the resolver which
//! addresses there are, and to ureq the talk with a proxy.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use ureq::unversioned::transport::time::Instant as UreqInstant;
use ureq::unversioned::transport::{
    ConnectProxyConnector, ConnectionDetails, Connector as UreqConnector, Either, Transport, TransportAdapter,
};
use ureq::{Error, Timeout};

use super::pool::{Key, Pool};
use super::transport::{Carrier, Pooled, Socket, Wire};
use super::trouble::{Trouble, what_we_lack};
use crate::policy::Failure;

/// Makes all connections of one poster.
pub(super) struct Connector {
    pool: Arc<Pool<Wire>>,
    tls: Arc<ClientConfig>,
    proxy: Option<ConnectProxyConnector>,
    /// For the words alone: ureq minds the time.
    connect_timeout: Duration,
    tick: Duration,
}

impl Connector {
    pub(super) fn new(
        pool: Arc<Pool<Wire>>,
        tls: Arc<ClientConfig>,
        is_proxied: bool,
        connect_timeout: Duration,
        tick: Duration,
    ) -> Connector {
        Connector { pool, tls, proxy: is_proxied.then(ConnectProxyConnector::default), connect_timeout, tick }
    }

    fn open(&self, details: &ConnectionDetails, to_proxy: bool) -> Result<Wire, Error> {
        let tunnel = match &self.proxy {
            Some(proxy) if !to_proxy => match proxy.connect(details, None::<()>)? {
                Some(Either::B(tunnel)) => Some(unused(tunnel, details)?),
                _ => None, // NO_PROXY names this host
            },
            _ => None,
        };
        match (tunnel, details.needs_tls()) {
            (None, false) => Ok(Wire::plain(self.dial(details)?)),
            (Some(tunnel), false) => Ok(Wire::Tunnel(tunnel)),
            (None, true) => self.agree(details, Carrier::socket(self.dial(details)?)),
            (Some(tunnel), true) => {
                let adapter = TransportAdapter::new(tunnel, details.current_time.clone());
                self.agree(details, Carrier::tunnel(adapter))
            }
        }
    }

    fn agree(&self, details: &ConnectionDetails, carrier: Carrier) -> Result<Wire, Error> {
        let host = details.uri.host().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let place = format!("{host}:{}", details.uri.port_u16().unwrap_or(443));
        let name = ServerName::try_from(host)
            .map_err(|_| {
                let words = format!("TLS: no certificate can bear this name ({place})");
                Trouble::failed(Failure::Tls, words)
            })?
            .to_owned();
        Wire::tls(carrier, self.tls.clone(), name, time_left(details), &place)
    }

    /// Tries one address after the other; all but the last get half of the time left.
    fn dial(&self, details: &ConnectionDetails) -> Result<Socket, Error> {
        let mut last_error = Error::ConnectionFailed;
        for (n, addr) in details.addrs.iter().enumerate() {
            let left = time_left(details);
            if left.is_zero() {
                return Err(Error::Timeout(details.timeout.reason));
            }
            let is_last = n + 1 == details.addrs.len();
            let within = if is_last { left } else { left / 2 };
            match self.dial_one(*addr, within, details.timeout.reason) {
                Ok(stream) => return Ok(Socket::new(stream, self.tick)),
                Err(Error::Other(trouble)) if is_lack(&*trouble) => {
                    return Err(Error::Other(trouble));
                }
                Err(error) => last_error = error,
            }
        }
        Err(last_error)
    }

    fn dial_one(&self, addr: SocketAddr, within: Duration, reason: Timeout) -> Result<TcpStream, Error> {
        // A timeout of less than a millisecond would be rounded to none.
        let within = within.max(Duration::from_millis(1));
        TcpStream::connect_timeout(&addr, within).and_then(|stream| stream.set_nodelay(true).map(|()| stream)).map_err(
            |error| match (error.kind(), reason) {
                (io::ErrorKind::TimedOut, Timeout::Connect) => {
                    let words = format!("no connection within {:?} ({addr})", self.connect_timeout);
                    Trouble::failed(Failure::Connect, words).into()
                }
                // The time of the whole attempt has its own words.
                (io::ErrorKind::TimedOut, reason) => Error::Timeout(reason),
                _ => spell_dial_error(addr, &error).into(),
            },
        )
    }
}

impl UreqConnector<()> for Connector {
    type Out = Pooled;

    fn connect(&self, details: &ConnectionDetails, _chained: Option<()>) -> Result<Option<Pooled>, Error> {
        // To reach a proxy, ureq calls us again with the proxy taken out of the configuration.
        let to_proxy = self.proxy.is_some() && details.config.proxy().is_none();
        let Some(key) = Key::of(details.uri).filter(|_| !to_proxy) else {
            return Ok(Some(Pooled::new(self.open(details, to_proxy)?, None, false)));
        };
        // A second try has an idle age of nothing: it wants a fresh connection.
        if !details.config.max_idle_age().is_zero() {
            while let Some(mut wire) = self.pool.take(&key, Instant::now()) {
                if wire.is_quiet() {
                    let home = Some((self.pool.clone(), key));
                    return Ok(Some(Pooled::new(wire, home, true)));
                }
            }
        }
        let wire = self.open(details, to_proxy)?;
        let home = Some((self.pool.clone(), key));
        Ok(Some(Pooled::new(wire, home, false)))
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").finish_non_exhaustive()
    }
}

/// A tunnel out of which nothing has come yet: what follows the proxy's own answer
/// at once cannot be the recipient's, who has not been asked.
fn unused(mut tunnel: Box<dyn Transport>, details: &ConnectionDetails) -> Result<Box<dyn Transport>, Error> {
    if tunnel.buffers().input().is_empty() {
        return Ok(tunnel);
    }
    let host = details.uri.host().unwrap_or_default();
    let words = format!("the proxy's answer is followed by what nobody asked for ({host})");
    Err(Trouble::failed(Failure::Connect, words).into())
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

fn is_lack(error: &(dyn std::error::Error + Send + Sync + 'static)) -> bool {
    use crate::policy::Attempt;
    matches!(error.downcast_ref(), Some(Trouble::Attempt(Attempt::Lacking { .. })))
}

fn time_left(details: &ConnectionDetails) -> Duration {
    let whole = (*details.timeout.after).min(Duration::from_secs(24 * 3600));
    match details.now {
        UreqInstant::Exact(began) => whole.saturating_sub(began.elapsed()),
        _ => whole,
    }
}
