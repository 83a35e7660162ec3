//! The addresses of an endpoint or of a proxy, guarded.
//!
//! ureq asks its resolver for every request, even if it then reuses a
//! connection, and its own one starts a thread each time; this one answers from
//! memory, and starts a thread on a miss only, so that a look-up that hangs
//! costs no more than the time allowed for it (`names`). It promises that every
//! address it gives out has just passed the guard. ureq connects only to what it
//! was given here, so an answer that changes between look-up and connecting
//! cannot get round the guard. Names that go through a proxy are the proxy's to
//! resolve and to judge, if that is allowed; addresses are judged here all the same.

mod names;
mod probe;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver as UreqResolver};
use ureq::unversioned::transport::NextTimeout;

use super::proxy::Proxies;
use super::redirect::{is_secure, port};
use super::trouble::Trouble;
use crate::guard::Guard;
use crate::policy::Failure;
use names::{AGES, Shared, ask_system, find};

/// How many addresses ureq takes of one name.
const MAX_ADDRESSES: usize = 16;

/// The resolver that all workers share.
#[derive(Clone)]
pub struct Resolver {
    shared: Arc<Shared>,
    guard: Guard,
    proxies: Arc<Proxies>,
}

impl Resolver {
    /// A resolver that asks the system and gives out what `guard` allows; of what goes through a
    /// proxy nothing, if that is allowed.
    pub fn new(guard: Guard, proxies: Arc<Proxies>) -> Resolver {
        let shared = Shared::new(AGES, Box::new(ask_system), Box::new(probe::is_answered));
        Resolver { shared: Arc::new(shared), guard, proxies }
    }

    /// Forgets what is too old to serve, so that names met once do not stay in memory.
    pub fn tidy(&self) {
        self.shared.tidy();
    }

    /// The addresses of a host name (or literal) that may be delivered to; there
    /// is at least one. `within` bounds the wait. A literal that may not is refused
    /// for good; a name whose addresses may not, for now.
    fn addresses(&self, host: &str, port: u16, is_tls: bool, within: Duration) -> Result<ResolvedSocketAddrs, Trouble> {
        let mut allowed = no_addresses();
        self.guard.check_scheme(is_tls).map_err(|reason| Trouble::refused(format!("host {host}: {reason}")))?;
        if let Some(ip) = literal(host) {
            let addr = SocketAddr::new(ip, port);
            self.guard.check(addr, is_tls).map_err(Trouble::refused)?;
            allowed.push(addr);
            return Ok(allowed);
        }
        let mut refusal = None;
        for ip in find(&self.shared, host, within)?.iter() {
            let addr = SocketAddr::new(*ip, port);
            match self.guard.check(addr, is_tls) {
                Ok(()) if allowed.len() < MAX_ADDRESSES => allowed.push(addr),
                Ok(()) => break,
                Err(reason) => refusal = refusal.or(Some(reason)),
            }
        }
        match refusal {
            Some(reason) if allowed.is_empty() => {
                Err(Trouble::failed(Failure::Denied, format!("host {host}: {reason}")))
            }
            _ => Ok(allowed),
        }
    }
}

impl Resolver {
    /// The addresses to connect to for an endpoint; none if that is a proxy's to find out.
    pub(crate) fn of_endpoint(&self, uri: &Uri, within: Duration) -> Result<ResolvedSocketAddrs, Trouble> {
        let (host, port, is_tls) = (uri.host().unwrap_or_default(), port(uri), is_secure(uri));
        if self.proxies.of(uri).is_some() {
            self.check_unresolved(host, port, is_tls).map_err(Trouble::refused)?;
            return Ok(no_addresses());
        }
        self.addresses(host, port, is_tls, within)
    }

    /// The addresses of a proxy. The operator chose it, so they are not judged.
    pub(crate) fn of_proxy(&self, host: &str, port: u16, within: Duration) -> Result<Vec<SocketAddr>, Trouble> {
        let ips = match literal(host) {
            Some(ip) => Arc::from([ip].as_slice()),
            None => find(&self.shared, host, within)?,
        };
        Ok(ips.iter().take(MAX_ADDRESSES).map(|ip| SocketAddr::new(*ip, port)).collect())
    }

    /// A proxy resolves names and judges what they come to. But an address is an
    /// address, in whatever spelling, and a proxy may stand where we do.
    fn check_unresolved(&self, host: &str, port: u16, is_tls: bool) -> Result<(), String> {
        let ip = match url::Host::parse(host) {
            Ok(url::Host::Domain(_)) => {
                return self.guard.check_unresolved(is_tls).map_err(|reason| format!("host {host}: {reason}"));
            }
            Ok(url::Host::Ipv4(ip)) => IpAddr::V4(ip),
            Ok(url::Host::Ipv6(ip)) => IpAddr::V6(ip),
            Err(why) => return Err(format!("endpoint cannot be posted to: its host is not readable ({why})")),
        };
        self.guard.check(SocketAddr::new(ip, port), is_tls)
    }
}

fn no_addresses() -> ResolvedSocketAddrs {
    ResolvedSocketAddrs::from_fn(|_| SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0))
}

impl UreqResolver for Resolver {
    fn resolve(&self, uri: &Uri, _config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        Ok(self.of_endpoint(uri, *timeout.after)?)
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver").finish_non_exhaustive()
    }
}

/// An address written as such. Odd spellings (`0x7f.1`) are names to us: the
/// system's resolver knows them, and the guard sees what they come to.
fn literal(host: &str) -> Option<IpAddr> {
    match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(inner) => inner.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        None if host.as_bytes().first()?.is_ascii_digit() => host.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::names::Lookup;
    use super::*;
    use crate::policy::Attempt;
    use std::io;

    const LONG: Duration = Duration::from_secs(20);

    impl Resolver {
        /// Whose probes cannot be made.
        fn with(guard: Guard, lookup: Box<Lookup>) -> Resolver {
            let probe = |_: &str, _| Err(io::ErrorKind::NetworkUnreachable.into());
            let shared = Shared::new(AGES, lookup, Box::new(probe));
            Resolver { shared: Arc::new(shared), guard, proxies: Arc::default() }
        }
    }

    fn guard(deny: &[&str]) -> Guard {
        let deny: Vec<_> = deny.iter().map(|net| net.parse().unwrap()).collect();
        Guard::new(&[], &deny, &[])
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn failure_of(trouble: Trouble) -> (Failure, String) {
        match trouble {
            Trouble::Attempt(Attempt::Failed { failure, error }) => (failure, error),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn literals_are_not_looked_up() {
        let resolver = Resolver::with(guard(&[]), Box::new(|_| panic!("looked up")));
        for (host, expected) in [("127.0.0.1", "127.0.0.1:80"), ("[::1]", "[::1]:80")] {
            assert_eq!(resolver.addresses(host, 80, true, LONG).unwrap()[..], [expected.parse().unwrap()]);
        }
    }

    #[test]
    fn odd_spellings_are_judged_by_what_they_come_to() {
        let resolver = Resolver::new(guard(&["loopback"]), Arc::default());
        for host in ["127.0.0.1", "0x7f.1", "2130706433", "017700000001", "[::1]", "localhost"] {
            let is_literal = literal(host).is_some();
            match resolver.addresses(host, 80, true, LONG) {
                Err(Trouble::Attempt(Attempt::Refused { reason })) if is_literal => {
                    assert!(reason.contains("'--deny-net loopback'"), "{host}: {reason}")
                }
                Err(Trouble::Attempt(Attempt::Failed { failure: Failure::Denied, error })) if !is_literal => {
                    assert!(error.contains("'--deny-net loopback'"), "{host}: {error}")
                }
                other => panic!("{host}: {other:?}"),
            }
        }
    }

    #[test]
    fn refused_addresses_are_left_out_and_refuse_only_if_no_other_is_left() {
        let lookup = |host: &str| {
            Ok(match host {
                "mixed.example" => vec![ip("10.0.0.1"), ip("192.0.2.1"), ip("169.254.169.254")],
                _ => vec![ip("10.0.0.1"), ip("169.254.169.254")],
            })
        };
        let resolver = Resolver::with(guard(&["private"]), Box::new(lookup));
        assert_eq!(
            resolver.addresses("mixed.example", 8020, true, LONG).unwrap()[..],
            ["192.0.2.1:8020".parse().unwrap()]
        );
        let (failure, error) = failure_of(resolver.addresses("inside.example", 80, true, LONG).unwrap_err());
        assert_eq!(failure, Failure::Denied);
        assert_eq!(error, "host inside.example: address 10.0.0.1 is refused by '--deny-net private'");
    }
}
