//! Which addresses may be delivered to, and why not: endpoints come from
//! strangers, and this agent often stands where secrets can be reached.
//!
//! It promises to judge the address that is connected to, whatever it was
//! spelled as: IPv6 forms that carry an IPv4 address (mapped, compatible,
//! translated, NAT64, 6to4) are judged by the address they carry. It leaves to
//! the resolver to ask about every address of a name at every look-up, and to a
//! configured proxy to judge what goes through that proxy.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The address policy. The default allows everything that is not always refused.
#[derive(Clone, Debug, Default)]
pub struct Guard {
    rules: Vec<Rule>,
    own: Vec<(SocketAddr, String)>,
}

/// One network of one `--allow-net` or `--deny-net`.
#[derive(Clone, Debug)]
struct Rule {
    net: IpNet,
    /// `public`: all but loopback and private addresses.
    public_only: bool,
    allow: bool,
    /// The option as it was given.
    option: String,
}

impl Guard {
    /// A guard with the values of `--allow-net` and `--deny-net` (a CIDR, a single
    /// address, `private`, `loopback` or `public`), and the agent's own addresses
    /// with the name of what answers there ("Redis").
    ///
    /// The most specific network decides, and of two as specific the denying one.
    /// What no network holds is allowed. The error names option and value.
    pub fn new(allow: &[String], deny: &[String], own_addresses: &[(SocketAddr, &str)]) -> Result<Guard, String> {
        let mut guard = Guard {
            rules: Vec::new(),
            own: own_addresses.iter().map(|(addr, name)| (*addr, name.to_string())).collect(),
        };
        for value in allow {
            guard.add("--allow-net", value, true)?;
        }
        for value in deny {
            guard.add("--deny-net", value, false)?;
        }
        Ok(guard)
    }

    fn add(&mut self, option: &str, value: &str, allow: bool) -> Result<(), String> {
        let value = value.trim();
        let nets = parse_nets(value).ok_or_else(|| {
            format!(
                "option '{option}': '{value}' is neither a network such as 10.0.0.0/8, \
                 nor an address, 'private', 'loopback' or 'public'"
            )
        })?;
        self.rules.extend(nets.into_iter().map(|net| Rule {
            net,
            public_only: value == "public",
            allow,
            option: format!("'{option} {value}'"),
        }));
        Ok(())
    }

    /// Whether a message may go to this address; if not, the reason names the
    /// address, the rule and the option.
    pub fn check(&self, addr: SocketAddr) -> Result<(), String> {
        let ip = addr.ip();
        let judged = carried_ipv4(ip).map_or(ip, IpAddr::V4);
        for ip in [ip, judged] {
            if let Some(kind) = always_refused(ip) {
                return Err(format!("address {} is {kind}, which is always refused", spell(addr.ip(), judged)));
            }
        }
        if let Some(name) = self.own_service(judged, addr.port()) {
            return Err(format!(
                "address {} port {} is the agent's own {name}, which is always refused",
                spell(ip, judged),
                addr.port()
            ));
        }
        match self.deciding_rule(ip, judged) {
            Some(rule) if !rule.allow => Err(format!("address {} is refused by {}", spell(ip, judged), rule.option)),
            _ => Ok(()),
        }
    }

    fn deciding_rule(&self, ip: IpAddr, judged: IpAddr) -> Option<&Rule> {
        self.rules
            .iter()
            .filter(|rule| rule.holds(judged) || rule.holds(ip))
            .min_by_key(|rule| (rule.net.max_prefix_len() - rule.net.prefix_len(), rule.allow))
    }

    fn own_service(&self, ip: IpAddr, port: u16) -> Option<&str> {
        self.own
            .iter()
            .filter(|(own, _)| own.port() == port)
            .find(|(own, _)| {
                let own = carried_ipv4(own.ip()).map_or(own.ip(), IpAddr::V4);
                own == ip
                    // What listens on loopback here often listens on every address.
                    || ((own.is_loopback() || own.is_unspecified()) && is_of_this_machine(ip))
            })
            .map(|(_, name)| name.as_str())
    }
}

impl Rule {
    fn holds(&self, ip: IpAddr) -> bool {
        self.net.contains(&ip) && !(self.public_only && (ip.is_loopback() || is_private(ip)))
    }
}

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

fn private_nets() -> impl Iterator<Item = IpNet> {
    let v4 = PRIVATE_V4.iter().map(|(ip, len)| IpNet::V4(Ipv4Net::new_assert(*ip, *len)));
    let v6 = PRIVATE_V6.iter().map(|(ip, len)| IpNet::V6(Ipv6Net::new_assert(*ip, *len)));
    v4.chain(v6)
}

fn is_private(ip: IpAddr) -> bool {
    private_nets().any(|net| net.contains(&ip))
}

fn parse_nets(value: &str) -> Option<Vec<IpNet>> {
    let v4 = |ip: Ipv4Addr, len| IpNet::V4(Ipv4Net::new_assert(ip, len));
    let v6 = |ip: Ipv6Addr, len| IpNet::V6(Ipv6Net::new_assert(ip, len));
    Some(match value {
        "private" => private_nets().collect(),
        "loopback" => vec![v4(Ipv4Addr::new(127, 0, 0, 0), 8), v6(Ipv6Addr::LOCALHOST, 128)],
        "public" => vec![v4(Ipv4Addr::UNSPECIFIED, 0), v6(Ipv6Addr::UNSPECIFIED, 0)],
        _ => vec![value.parse::<IpNet>().or_else(|_| value.parse::<IpAddr>().map(IpNet::from)).ok()?],
    })
}

/// Never a recipient, whatever the options say: cloud metadata lives on
/// link-local addresses, and the others are not one machine's.
fn always_refused(ip: IpAddr) -> Option<&'static str> {
    match ip {
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
fn carried_ipv4(ip: IpAddr) -> Option<Ipv4Addr> {
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

/// Binding to an address works only on the machine that has it. Asked only when
/// the port is one of ours, so it costs ordinary deliveries nothing.
fn is_of_this_machine(ip: IpAddr) -> bool {
    ip.is_loopback() || UdpSocket::bind((ip, 0)).is_ok()
}

fn spell(ip: IpAddr, judged: IpAddr) -> String {
    if ip == judged { ip.to_string() } else { format!("{ip} (that is {judged})") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(allow: &[&str], deny: &[&str]) -> Guard {
        let owned = |values: &[&str]| values.iter().map(|v| v.to_string()).collect::<Vec<_>>();
        Guard::new(&owned(allow), &owned(deny), &[]).unwrap()
    }

    /// `expected` is a part of the reason; empty means allowed.
    fn check(guard: &Guard, ip: &str, expected: &str) {
        let result = guard.check(SocketAddr::new(ip.parse().unwrap(), 80));
        match result {
            Ok(()) => assert_eq!(expected, "", "{ip} was allowed"),
            Err(reason) => {
                assert!(!expected.is_empty(), "{ip}: {reason}");
                assert!(reason.contains(expected), "{ip}: {reason}");
                assert!(reason.contains(ip), "{ip}: {reason}");
            }
        }
    }

    #[test]
    fn some_addresses_are_refused_whatever_the_options_say() {
        for guard in [guard(&[], &[]), guard(&["0.0.0.0/0", "::/0", "169.254.1.0/24", "fe80::/10"], &[])] {
            for (ip, kind) in [
                ("0.0.0.0", "unspecified"),
                ("0.1.2.3", "this network"),
                ("169.254.169.254", "link-local"),
                ("169.254.1.1", "link-local"),
                ("224.0.0.1", "multicast"),
                ("239.255.255.250", "multicast"),
                ("255.255.255.255", "broadcast"),
                ("::", "unspecified"),
                ("fe80::1", "link-local"),
                ("ff02::1", "multicast"),
                ("::ffff:169.254.169.254", "link-local"),
                ("::a9fe:a9fe", "link-local"),
                ("::ffff:0:a9fe:a9fe", "link-local"),
                ("64:ff9b::a9fe:a9fe", "link-local"),
                ("2002:a9fe:a9fe::1", "link-local"),
                ("2002:e000:1::", "multicast"),
                ("::ffff:0.0.0.0", "unspecified"),
                ("64:ff9b::ffff:ffff", "broadcast"),
                ("::2", "this network"),
            ] {
                check(&guard, ip, kind);
            }
        }
    }

    #[test]
    fn all_else_is_allowed_unless_denied() {
        let guard = guard(&[], &[]);
        for ip in [
            "127.0.0.1",
            "10.0.0.1",
            "192.0.2.1",
            "::1",
            "2001:db8::1",
            "fd00::1",
            "::ffff:10.0.0.1",
            "64:ff9b::c000:201",
        ] {
            check(&guard, ip, "");
        }
    }

    #[test]
    fn words_stand_for_networks() {
        let guard = guard(&[], &["private", "loopback"]);
        for ip in [
            "10.1.2.3",
            "172.31.255.255",
            "192.168.0.1",
            "100.64.0.1",
            "198.19.0.1",
            "240.0.0.1",
            "fd00:ec2::254",
            "fec0::1",
            "64:ff9b:1::a00:1",
            "::ffff:10.1.2.3",
            "64:ff9b::a01:203",
            "2002:a01:203::",
        ] {
            check(&guard, ip, "'--deny-net private'");
        }
        for ip in ["127.0.0.1", "127.255.0.1", "::1", "::ffff:127.0.0.1"] {
            check(&guard, ip, "'--deny-net loopback'");
        }
        for ip in ["172.32.0.1", "11.0.0.1", "100.128.0.1", "2001:db8::1"] {
            check(&guard, ip, "");
        }
    }

    #[test]
    fn public_is_what_is_neither_private_nor_loopback() {
        let guard = guard(&[], &["public"]);
        for ip in ["192.0.2.1", "2001:db8::1", "64:ff9b::c000:201"] {
            check(&guard, ip, "'--deny-net public'");
        }
        for ip in ["10.0.0.1", "127.0.0.1", "::1", "fd00::1"] {
            check(&guard, ip, "");
        }
    }

    #[test]
    fn the_most_specific_network_decides_and_deny_wins_a_tie() {
        let guard = guard(
            &["10.1.0.0/16", "10.1.2.3", "192.0.2.0/24", "2001:db8:1::/48"],
            &["10.0.0.0/8", "10.1.2.0/24", "192.0.2.0/24", "2001:db8::/32"],
        );
        for (ip, expected) in [
            ("10.9.9.9", "'--deny-net 10.0.0.0/8'"),
            ("10.1.9.9", ""),
            ("10.1.2.9", "'--deny-net 10.1.2.0/24'"),
            ("10.1.2.3", ""),
            ("192.0.2.1", "'--deny-net 192.0.2.0/24'"),
            ("2001:db8:2::1", "'--deny-net 2001:db8::/32'"),
            ("2001:db8:1::1", ""),
            ("::ffff:10.9.9.9", "'--deny-net 10.0.0.0/8'"),
            ("::ffff:10.1.9.9", ""),
        ] {
            check(&guard, ip, expected);
        }
    }

    #[test]
    fn only_what_is_allowed_may_be_spelled_out() {
        let guard = guard(&["203.0.113.0/24"], &["0.0.0.0/0", "::/0"]);
        check(&guard, "203.0.113.7", "");
        check(&guard, "198.51.100.1", "'--deny-net 0.0.0.0/0'");
        check(&guard, "2001:db8::1", "'--deny-net ::/0'");
    }

    #[test]
    fn the_agents_own_services_are_refused_at_their_port_only() {
        let own = [
            ("127.0.0.1:6379".parse().unwrap(), "Redis"),
            ("192.0.2.7:6380".parse().unwrap(), "Redis"),
            ("0.0.0.0:9090".parse().unwrap(), "status address"),
        ];
        let guard = Guard::new(&["127.0.0.0/8".to_string()], &[], &own).unwrap();
        for (addr, expected) in [
            ("127.0.0.1:6379", Some("Redis")),
            ("127.0.0.2:6379", Some("Redis")),
            ("[::1]:6379", Some("Redis")),
            ("[::ffff:127.0.0.1]:6379", Some("Redis")),
            ("192.0.2.7:6380", Some("Redis")),
            ("[64:ff9b::c000:207]:6380", Some("Redis")),
            ("192.0.2.8:6380", None),
            ("127.0.0.1:9090", Some("status address")),
            ("127.0.0.1:80", None),
            ("198.51.100.1:6379", None),
        ] {
            let result = guard.check(addr.parse().unwrap());
            match expected {
                None => assert_eq!(result, Ok(()), "{addr}"),
                Some(name) => assert!(result.unwrap_err().contains(name), "{addr}"),
            }
        }
    }

    #[test]
    fn a_bad_network_is_named_with_its_option() {
        for value in ["", "10.0.0.0/33", "intranet", "10.0.0", "::/129"] {
            let error = Guard::new(&[], &[value.to_string()], &[]).unwrap_err();
            assert!(error.starts_with(&format!("option '--deny-net': '{value}' is neither")), "{error}");
        }
    }
}
