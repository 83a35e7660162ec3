//! Asks the name servers about a name once, without the patience of the system's resolver: not for
//! the answer, but to learn whether there is any. It costs a socket and no thread, so that names
//! that nobody answers about need no look-up to be known as such. What an answer says is left to
//! the look-up that follows it.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

/// After this long without an answer the question is sent again, for packets get lost.
const AGAIN: Duration = Duration::from_secs(1);

/// Most name servers that the system's resolver asks.
const MOST_SERVERS: usize = 3;

/// Whether one of the system's name servers says anything about the name within this time.
///
/// # Errors
///
/// If it cannot be asked for.
pub(super) fn is_answered(host: &str, within: Duration) -> io::Result<bool> {
    is_answered_by(&name_servers(&fs::read_to_string("/etc/resolv.conf").unwrap_or_default()), host, within)
}

fn is_answered_by(servers: &[SocketAddr], host: &str, within: Duration) -> io::Result<bool> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let until = Instant::now() + within;
    let id = NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    let question = question(id, host).ok_or(io::ErrorKind::InvalidInput)?;
    let any: IpAddr = match servers.iter().all(SocketAddr::is_ipv4) {
        true => Ipv4Addr::UNSPECIFIED.into(),
        // One socket for both kinds.
        false => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    loop {
        let sent = servers.iter().filter(|server| socket.send_to(&question, as_seen_from(any, **server)).is_ok());
        if sent.count() == 0 {
            return Err(io::ErrorKind::NetworkUnreachable.into());
        }
        let again = until.min(Instant::now() + AGAIN);
        loop {
            let left = again.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            socket.set_read_timeout(Some(left))?;
            let mut answer = [0; 512];
            if let Ok((n, from)) = socket.recv_from(&mut answer) {
                let is_known = servers.iter().any(|server| as_seen_from(any, *server) == from);
                // The same number, and the bit that makes it an answer.
                if is_known && n > 2 && answer[..2] == id && answer[2] & 0x80 != 0 {
                    return Ok(true);
                }
            }
        }
        if Instant::now() >= until {
            return Ok(false);
        }
    }
}

fn as_seen_from(own: IpAddr, server: SocketAddr) -> SocketAddr {
    match server.ip() {
        IpAddr::V4(ip) if own.is_ipv6() => SocketAddr::new(ip.to_ipv6_mapped().into(), server.port()),
        _ => server,
    }
}

/// As the system's resolver reads them: the first three, or one on this machine.
fn name_servers(conf: &str) -> Vec<SocketAddr> {
    let mut servers: Vec<SocketAddr> = conf
        .lines()
        .filter_map(|line| line.strip_prefix("nameserver")?.trim().parse::<IpAddr>().ok())
        .map(|ip| SocketAddr::new(ip, 53))
        .take(MOST_SERVERS)
        .collect();
    if servers.is_empty() {
        servers.push((Ipv4Addr::LOCALHOST, 53).into());
    }
    servers
}

/// For the IPv4 addresses of the name, recursion wanted; `None` if it cannot be a name of DNS.
fn question(id: [u8; 2], host: &str) -> Option<Vec<u8>> {
    let mut question = [&id[..], &[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]].concat();
    for label in host.trim_end_matches('.').split('.') {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..=63).contains(length))?;
        question.push(length);
        question.extend(label.bytes());
    }
    question.extend([0, 0, 1, 0, 1]);
    Some(question)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_read_as_the_system_does() {
        let check = |conf: &str, expected: &[&str]| {
            let servers: Vec<String> = name_servers(conf).iter().map(SocketAddr::to_string).collect();
            assert_eq!(servers, expected, "{conf:?}");
        };
        check("", &["127.0.0.1:53"]);
        check("# nameserver 192.0.2.1\nsearch a b\n", &["127.0.0.1:53"]);
        check("nameserver 192.0.2.1\nnameserver\t2001:db8::1 \noptions x\n", &["192.0.2.1:53", "[2001:db8::1]:53"]);
        check(
            "nameserver 1.1.1.1\nnameserver 2.2.2.2\nnameserver 3.3.3.3\nnameserver 4.4.4.4",
            &["1.1.1.1:53", "2.2.2.2:53", "3.3.3.3:53"],
        );
    }

    #[test]
    fn what_is_no_name_of_dns_is_not_asked_for() {
        assert_eq!(question([1, 2], "a.bc").unwrap()[12..], *b"\x01a\x02bc\0\0\x01\0\x01");
        assert_eq!(question([1, 2], "a.bc."), question([1, 2], "a.bc"));
        for host in ["", ".", "a..b", &"a".repeat(64)] {
            assert_eq!(question([1, 2], host), None, "{host:?}");
        }
    }

    #[test]
    fn any_answer_of_a_name_server_counts_and_silence_is_told_from_it() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
        let addresses = [silent.local_addr().unwrap(), server.local_addr().unwrap()];
        let answering = std::thread::spawn(move || {
            let mut bytes = [0; 512];
            let (n, from) = server.recv_from(&mut bytes).unwrap();
            // First what is no answer: another number, and a question.
            server.send_to(&[!bytes[0], bytes[1], 0x80], from).unwrap();
            server.send_to(&bytes[..n], from).unwrap();
            bytes[2] |= 0x80;
            server.send_to(&bytes[..n], from).unwrap();
        });
        assert!(is_answered_by(&addresses, "a.example", Duration::from_secs(20)).unwrap());
        answering.join().unwrap();
        assert!(!is_answered_by(&addresses[..1], "a.example", Duration::from_millis(50)).unwrap());
    }
}
