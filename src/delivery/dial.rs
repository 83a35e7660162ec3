//! A connection to one of several addresses, the way of RFC 8305: IPv6 and IPv4 take turns, and the next is
//! tried 250 ms after the last, beside it, or at once when that has failed; two at a time at most. Who is
//! silent while others wait for their turn has its share of the time, and no more. And the memory of which
//! address answered last, which is then the first to be tried: an IPv6 that leads nowhere costs a
//! quarter of a second once, and nothing from then on.
//!
//! It leaves to the resolver which addresses there are and whether they may be delivered to.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use ureq::http::uri::Authority;

use super::trouble::what_we_lack;

/// How long an address is waited for alone (RFC 8305, section 5: "Connection Attempt Delay").
const DELAY: Duration = Duration::from_millis(250);
const AT_ONCE: usize = 2;

/// How often it is looked after two connections that are being made: the system tells of one only. That
/// both have not come in 250 ms is rare, and then this is little.
const LOOK: Duration = Duration::from_millis(5);

/// So many names are remembered, some hundred kB; with more, all are forgotten and learned again.
const MAX_NAMES: usize = 4096;

/// Which address of a name answered last.
#[derive(Default)]
pub(super) struct Answered(Mutex<HashMap<Authority, IpAddr>>);

impl Answered {
    /// Puts the address that answered last before the others, and has the families take turns from there on.
    pub(super) fn arrange(&self, of: &Authority, addrs: &mut [SocketAddr]) {
        if addrs.len() < 2 {
            return;
        }
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(of).copied();
        if let Some(at) = last.and_then(|ip| addrs.iter().position(|addr| addr.ip() == ip)) {
            addrs[..=at].rotate_right(1);
        }
        for at in 1..addrs.len() {
            let wanted = !addrs[at - 1].is_ipv6();
            if let Some(next) = addrs[at..].iter().position(|addr| addr.is_ipv6() == wanted) {
                addrs[at..=at + next].rotate_right(1);
            }
        }
    }

    /// Takes note of an address that answered; only for names that have several.
    pub(super) fn note(&self, of: &Authority, ip: IpAddr) {
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if names.get(of) == Some(&ip) {
            return;
        }
        if names.len() >= MAX_NAMES {
            names.clear();
        }
        names.insert(of.clone(), ip);
    }
}

/// Why there is no connection, and to which address.
pub(super) type NoConnection = (SocketAddr, io::Error);

/// Connects to the first of the addresses that answers. `None` if there are none. The error is that of the
/// last address that failed; out of time it is of the kind `TimedOut`. What this machine
/// lacks ends it at once.
pub(super) fn connect(addrs: &[SocketAddr], within: Duration) -> Option<Result<TcpStream, NoConnection>> {
    // A timeout of less than a millisecond would be rounded to none.
    let within = within.max(Duration::from_millis(1));
    match addrs {
        [] => return None,
        [addr] => return Some(TcpStream::connect_timeout(addr, within).map_err(|error| (*addr, error))),
        _ => {}
    }
    let deadline = Instant::now() + within;
    let share = (within / addrs.len().div_ceil(AT_ONCE) as u32).max(2 * DELAY);
    let mut rest = addrs.iter().copied();
    let mut under_way: Vec<Attempt> = Vec::with_capacity(AT_ONCE);
    let mut next_at = Instant::now();
    let mut last_error = None;
    loop {
        let now = Instant::now();
        if rest.len() > 0 && under_way.len() == AT_ONCE && now.duration_since(under_way[0].begun) >= share {
            under_way.remove(0);
        }
        let may_begin = under_way.len() < AT_ONCE && (under_way.is_empty() || now >= next_at);
        let next = if may_begin { rest.next() } else { None };
        let has_more = rest.len() > 0;
        let left = deadline.saturating_duration_since(now);
        if left.is_zero() {
            let addr = under_way.last().map(|attempt| attempt.addr).or(addrs.last().copied())?;
            return Some(Err((addr, io::ErrorKind::TimedOut.into())));
        }
        let ended = if let Some(addr) = next {
            next_at = now + DELAY;
            let alone = under_way.is_empty();
            let patience = match (alone, has_more) {
                (true, true) => left.min(DELAY),
                (true, false) => left,
                (false, _) => left.min(LOOK),
            };
            Attempt::begin(addr, patience, &mut under_way)
        } else if under_way.is_empty() {
            return last_error.map(Err);
        } else {
            thread::sleep(left.min(LOOK));
            under_way.iter().enumerate().find_map(|(n, attempt)| Some((n, attempt.look()?)))
        };
        match ended {
            Some((n, Ok(()))) => return Some(Ok(under_way.swap_remove(n).socket.into())),
            Some((n, Err(error))) => {
                let addr = if n < under_way.len() { under_way.remove(n).addr } else { next.expect("it was begun") };
                if what_we_lack(&error).is_some() {
                    return Some(Err((addr, error)));
                }
                last_error = Some((addr, error));
                next_at = now;
            }
            None => {}
        }
    }
}

/// A connection that is being made.
struct Attempt {
    addr: SocketAddr,
    socket: Socket,
    begun: Instant,
}

impl Attempt {
    /// Begins one and waits for it; it is under way from then on, unless there could be no socket. If it has
    /// ended, its place among those under way, and how.
    fn begin(addr: SocketAddr, patience: Duration, under_way: &mut Vec<Attempt>) -> Option<(usize, io::Result<()>)> {
        let n = under_way.len();
        let socket = match Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP)) {
            Ok(socket) => socket,
            Err(error) => return Some((n, Err(error))),
        };
        let begun = Instant::now();
        let result = socket.connect_timeout(&SockAddr::from(addr), patience);
        under_way.push(Attempt { addr, socket, begun });
        match result {
            // Of the wait; the connection goes on being made. A connection's own has a number.
            Err(error) if error.kind() == io::ErrorKind::TimedOut && error.raw_os_error().is_none() => None,
            result => Some((n, result)),
        }
    }

    /// How it has ended, if it has. Who asks a second time for the same connection is told.
    fn look(&self) -> Option<io::Result<()>> {
        let asked = self.socket.set_nonblocking(true).and_then(|()| self.socket.connect(&SockAddr::from(self.addr)));
        let result = match asked {
            Err(error) => match error.raw_os_error() {
                Some(libc::EISCONN) => Ok(()),
                Some(libc::EALREADY | libc::EINPROGRESS | libc::EWOULDBLOCK) => return None,
                _ => Err(error),
            },
            ok => ok,
        };
        Some(result.and_then(|()| self.socket.set_nonblocking(false)))
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// An address at which connections are neither made nor refused: its listener's backlog is full.
    struct Silent {
        addr: SocketAddr,
        _held: (Socket, Vec<Socket>),
    }

    impl Silent {
        fn new() -> Silent {
            let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            listener.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
            listener.listen(0).unwrap();
            let addr = listener.local_addr().unwrap().as_socket().unwrap();
            let mut held = Vec::new();
            loop {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
                let made = socket.connect_timeout(&addr.into(), Duration::from_millis(100));
                held.push(socket);
                if made.is_err() {
                    return Silent { addr, _held: (listener, held) };
                }
            }
        }
    }

    fn refusing() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
    }

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn the_next_address_is_tried_beside_one_that_is_silent() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let good = listener.local_addr().unwrap();
        let (silent, other) = (Silent::new(), Silent::new());
        for (addrs, least) in [
            (vec![good, silent.addr], 0),
            (vec![refusing(), good, silent.addr], 0),
            (vec![silent.addr, good], 250),
            (vec![silent.addr, refusing(), good], 250),
        ] {
            let begun = Instant::now();
            let stream = connect(&addrs, LONG).unwrap().unwrap();
            let took = begun.elapsed();
            assert_eq!(stream.peer_addr().unwrap(), good);
            assert!(took >= Duration::from_millis(least) && took < Duration::from_secs(5), "{addrs:?}: {took:?}");
            println!(
                "{} addresses, the first of them {}: {took:?}",
                addrs.len(),
                if least > 0 { "silent" } else { "not" }
            );
        }
        // Two at a time: a third waits until one of them has failed, or has had its share of the time.
        let begun = Instant::now();
        let stream = connect(&[silent.addr, other.addr, good], Duration::from_secs(3)).unwrap().unwrap();
        assert_eq!(stream.peer_addr().unwrap(), good);
        assert!(begun.elapsed() >= Duration::from_millis(1500), "{:?}", begun.elapsed());
        let begun = Instant::now();
        let (addr, error) = connect(&[silent.addr, other.addr], Duration::from_millis(900)).unwrap().unwrap_err();
        assert_eq!((addr, error.kind()), (other.addr, io::ErrorKind::TimedOut));
        assert!(begun.elapsed() >= Duration::from_millis(900));
    }

    #[test]
    fn one_that_is_slow_and_the_first_to_answer_wins() {
        let silent = Silent::new();
        // It answers when there is room again, which the system tries after a second.
        let addr = silent.addr;
        let other = Silent::new();
        let listener = silent._held.0.try_clone().unwrap();
        let waiter = thread::spawn(move || {
            thread::sleep(Duration::from_millis(400));
            while listener.accept().is_ok() {}
        });
        let begun = Instant::now();
        let stream = connect(&[addr, other.addr], LONG).unwrap().unwrap();
        assert_eq!(stream.peer_addr().unwrap(), addr);
        assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
        let _ = silent._held.0.shutdown(std::net::Shutdown::Both);
        waiter.join().unwrap();
    }

    #[test]
    fn with_all_refused_the_last_one_is_named() {
        let (one, two) = (refusing(), refusing());
        let (addr, error) = connect(&[one, two], LONG).unwrap().unwrap_err();
        assert_eq!((addr, error.kind()), (two, io::ErrorKind::ConnectionRefused));
        let (addr, error) = connect(&[one], LONG).unwrap().unwrap_err();
        assert_eq!((addr, error.kind()), (one, io::ErrorKind::ConnectionRefused));
        assert!(connect(&[], LONG).is_none());
    }

    #[test]
    fn the_families_take_turns() {
        let (name, answered) = ("a.example:80".parse().unwrap(), Answered::default());
        let arranged = |of: &str, last: Option<&str>| {
            let mut addrs: Vec<SocketAddr> = of.split(' ').map(|ip| SocketAddr::new(ip.parse().unwrap(), 80)).collect();
            if let Some(ip) = last {
                answered.note(&name, ip.parse().unwrap());
            }
            answered.arrange(&name, &mut addrs);
            addrs.iter().map(|addr| addr.ip().to_string()).collect::<Vec<_>>().join(" ")
        };
        for (of, last, expected) in [
            ("::1 ::2 127.0.0.1 127.0.0.2", None, "::1 127.0.0.1 ::2 127.0.0.2"),
            ("::1 ::2 ::3 127.0.0.1", None, "::1 127.0.0.1 ::2 ::3"),
            ("127.0.0.1 127.0.0.2 ::1 ::2 ::3", None, "127.0.0.1 ::1 127.0.0.2 ::2 ::3"),
            ("::1 ::2", None, "::1 ::2"),
            ("::1 ::2 127.0.0.1 127.0.0.2", Some("127.0.0.2"), "127.0.0.2 ::1 127.0.0.1 ::2"),
            ("::1 ::2 127.0.0.1", Some("::2"), "::2 127.0.0.1 ::1"),
        ] {
            assert_eq!(arranged(of, last), expected);
        }
    }

    #[test]
    fn the_address_that_answered_last_comes_first() {
        let answered = Answered::default();
        let name: Authority = "a.example:80".parse().unwrap();
        let addrs = ["[::1]:80", "[::2]:80", "[::3]:80"].map(|addr| addr.parse::<SocketAddr>().unwrap());
        let mut arranged = addrs;
        answered.arrange(&name, &mut arranged);
        assert_eq!(arranged, addrs);
        answered.note(&name, addrs[2].ip());
        answered.arrange(&name, &mut arranged);
        assert_eq!(arranged, [addrs[2], addrs[0], addrs[1]]);
        arranged = addrs;
        answered.arrange(&"b.example:80".parse().unwrap(), &mut arranged);
        assert_eq!(arranged, addrs);
        for n in 0..2 * MAX_NAMES {
            answered.note(&format!("{n}.example:80").parse().unwrap(), addrs[0].ip());
        }
        assert!(answered.0.lock().unwrap().len() <= MAX_NAMES);
    }
}
