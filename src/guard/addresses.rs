//! What an address is: public or not, nobody's to deliver to, or one that stands for another.
//!
//! It knows the forms of IPv6 that carry an IPv4 address (mapped, compatible, translated, NAT64, 6to4), and those
//! of tunnels (Teredo, ISATAP) with addresses inside. It leaves to the guard what follows from that.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Not reachable over the internet, besides loopback: RFC 1918, shared address
/// space (RFC 6598), protocol assignments, benchmarking (RFC 2544), reserved;
/// unique local, the old site-local, and the local NAT64 prefix (RFC 8215).
const PRIVATE_V4: [(Ipv4Addr, u8); 7] = [
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
];
const PRIVATE_V6: [(Ipv6Addr, u8); 3] = [
    (Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7),
    (Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0), 10),
    (Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, 0, 0), 48),
];

pub(super) fn private_nets() -> impl Iterator<Item = IpNet> {
    let v4 = PRIVATE_V4.iter().map(|(ip, len)| IpNet::V4(Ipv4Net::new_assert(*ip, *len)));
    let v6 = PRIVATE_V6.iter().map(|(ip, len)| IpNet::V6(Ipv6Net::new_assert(*ip, *len)));
    v4.chain(v6)
}

pub(super) fn is_public(ip: IpAddr) -> bool {
    !ip.is_loopback() && !private_nets().any(|net| net.contains(&ip))
}

/// Where clouds give out secrets to whoever asks, beside the link-local addresses: AWS, Google,
/// Alibaba, Oracle, Azure.
const METADATA: [IpAddr; 5] = [
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
];

/// Never a recipient, whatever the options say: cloud metadata lives on
/// link-local addresses and some others, and the rest are not one machine's.
pub(super) fn always_refused(ip: IpAddr) -> Option<&'static str> {
    match ip {
        ip if METADATA.contains(&ip) => Some("a cloud's metadata service"),
        IpAddr::V4(ip) if ip.is_unspecified() => Some("unspecified"),
        IpAddr::V4(ip) if ip.octets()[0] == 0 => Some("of this network (0.0.0.0/8)"),
        IpAddr::V4(ip) if ip.is_link_local() => Some("link-local"),
        IpAddr::V4(ip) if ip.is_multicast() => Some("multicast"),
        IpAddr::V4(ip) if ip.is_broadcast() => Some("broadcast"),
        IpAddr::V6(ip) if ip.is_unspecified() => Some("unspecified"),
        IpAddr::V6(ip) if ip.is_unicast_link_local() => Some("link-local"),
        IpAddr::V6(ip) if ip.is_multicast() => Some("multicast"),
        _ => None,
    }
}

/// The IPv4 address that an IPv6 address stands for, if it does.
pub(super) fn carried_ipv4(ip: IpAddr) -> Option<Ipv4Addr> {
    let IpAddr::V6(ip) = ip else { return None };
    let s = ip.segments();
    let of = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    match s {
        // `::` and `::1` are themselves, not compatible forms of 0.0.0.0 and 0.0.0.1.
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => None,
        // ::a.b.c.d (compatible), ::ffff:a.b.c.d (mapped), ::ffff:0:a.b.c.d (translated)
        [0, 0, 0, 0, 0, 0, high, low] | [0, 0, 0, 0, 0, 0xffff, high, low] | [0, 0, 0, 0, 0xffff, 0, high, low] => {
            Some(of(high, low))
        }
        // NAT64
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some(of(high, low)),
        // 6to4
        [0x2002, high, low, ..] => Some(of(high, low)),
        _ => None,
    }
}

/// The IPv4 addresses inside an address of a tunnel, which it reaches if this machine has that tunnel.
pub(super) fn tunnelled(ip: IpAddr) -> [Option<Ipv4Addr>; 2] {
    let IpAddr::V6(ip) = ip else { return [None; 2] };
    let of = |high: u16, low: u16| Some(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)));
    match ip.segments() {
        // Teredo: the server, and the client with its bits turned.
        [0x2001, 0, server_high, server_low, _, _, high, low] => [of(server_high, server_low), of(!high, !low)],
        // ISATAP, below whatever prefix
        [_, _, _, _, 0 | 0x200, 0x5efe, high, low] => [of(high, low), None],
        _ => [None; 2],
    }
}

pub(super) fn spell(ip: IpAddr, judged: IpAddr) -> String {
    if ip == judged { ip.to_string() } else { format!("{ip} (that is {judged})") }
}
