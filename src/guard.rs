//! Which addresses may be delivered to, and why not: endpoints come from
//! strangers, and this agent often stands where secrets can be reached.
//!
//! It promises to judge the address that is connected to, whatever it was
//! spelled as: IPv6 forms that carry an IPv4 address (mapped, compatible,
//! translated, NAT64, 6to4) are judged by the address they carry, and those of
//! tunnels (Teredo, ISATAP) by the addresses inside as well. It leaves to
//! the resolver to ask about every address of a name at every look-up, and to a
//! configured proxy to judge what goes through that proxy.

mod addresses;
mod machine;
mod net;
mod own;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

use addresses::{always_refused, carried_ipv4, is_public, spell, tunnelled};
use machine::Machine;
use net::{Reach, WORDS};

pub use machine::is_of_this_machine;
pub use net::Net;
pub use own::Own;

/// The address policy. The default allows everything that is not always refused.
/// Its clones share the agent's own addresses, which change while it runs.
#[derive(Clone, Debug, Default)]
pub struct Guard {
    rules: Vec<Rule>,
    own: Own,
    machine: Arc<Machine>,
    https_only: bool,
    /// What a proxy finds of a name is not judged, and refused.
    refuses_unresolved: bool,
}

/// One network of one `--allow-net` or `--deny-net`.
#[derive(Clone, Debug)]
struct Rule {
    reach: Reach,
    /// Of several networks: then none of them counts as one address.
    is_word: bool,
    allow: bool,
    /// The option as it was given.
    option: String,
}

/// Said of a connection without TLS.
const HTTPS_ONLY: &str = "'--https-only' refuses unless an '--allow-net' holds the address";

impl Guard {
    /// A guard with the values of `--allow-net` and `--deny-net`, and the agent's own addresses
    /// with the name of what answers there ("Redis").
    ///
    /// The most specific network decides, and of two as specific the denying one.
    /// `self` is less specific than one address and more so than any network.
    /// What no network holds is allowed.
    pub fn new(allow: &[Net], deny: &[Net], own_addresses: &[(SocketAddr, &str)]) -> Guard {
        let mut guard = Guard::default();
        for (address, name) in own_addresses {
            guard.own.add(*address, name);
        }
        for net in allow {
            guard.add("--allow-net", net, true);
        }
        for net in deny {
            guard.add("--deny-net", net, false);
        }
        guard
    }

    /// The same policy with `--https-only`: without TLS only to networks that are allowed by name.
    #[must_use]
    pub fn https_only(self, https_only: bool) -> Guard {
        Guard { https_only, ..self }
    }

    /// The same policy with `--proxy-resolves`: whether a proxy may find the address of a name, which
    /// then is not judged here.
    #[must_use]
    pub fn proxy_resolves(self, proxy_resolves: bool) -> Guard {
        Guard { refuses_unresolved: !proxy_resolves, ..self }
    }

    /// Whether a proxy may be asked for a name.
    pub fn check_unresolved(&self, is_tls: bool) -> Result<(), String> {
        if self.refuses_unresolved {
            return Err("only its proxy would know its address, which '--proxy-resolves no' refuses \
                        (NO_PROXY names what needs no proxy)"
                .to_string());
        }
        if self.https_only && !is_tls {
            return Err(format!("without TLS, which {HTTPS_ONLY}, and only its proxy would know that"));
        }
        Ok(())
    }

    /// Whether nothing at all may be delivered to without TLS; if so, the reason.
    pub fn check_scheme(&self, is_tls: bool) -> Result<(), String> {
        if !is_tls && self.https_only && !self.rules.iter().any(|rule| rule.allow) {
            return Err(format!("without TLS, which {HTTPS_ONLY}"));
        }
        Ok(())
    }

    fn add(&mut self, option: &str, net: &Net, allow: bool) {
        let is_word = WORDS.contains(&net.text.as_str());
        let rule = |reach: &Reach| Rule { reach: *reach, is_word, allow, option: format!("'{option} {net}'") };
        self.rules.extend(net.reach.iter().map(rule));
    }

    /// The agent's own addresses, to be told where its services are.
    pub fn own(&self) -> &Own {
        &self.own
    }

    /// Whether a message may go to this address, with TLS or without; if not, the
    /// reason names the address, the rule and the option.
    pub fn check(&self, addr: SocketAddr, is_tls: bool) -> Result<(), String> {
        let ip = addr.ip();
        let judged = carried_ipv4(ip).map_or(ip, IpAddr::V4);
        self.judge(addr, judged, is_tls)?;
        for inside in tunnelled(ip).into_iter().flatten() {
            self.judge(addr, inside.into(), is_tls)?;
        }
        Ok(())
    }

    /// Judges an address by another one that it stands for.
    fn judge(&self, addr: SocketAddr, judged: IpAddr, is_tls: bool) -> Result<(), String> {
        let ip = addr.ip();
        for ip in [ip, judged] {
            if let Some(kind) = always_refused(ip) {
                return Err(format!("address {} is {kind}, which is always refused", spell(addr.ip(), judged)));
            }
        }
        if let Some(name) = self.own.holds(judged, addr.port()) {
            return Err(format!(
                "address {} port {} is the agent's own {name}, which is always refused",
                spell(ip, judged),
                addr.port()
            ));
        }
        match self.deciding_rule(ip, judged) {
            Some(rule) if !rule.allow => Err(format!("address {} is refused by {}", spell(ip, judged), rule.option)),
            None if self.https_only && !is_tls => {
                Err(format!("address {} without TLS, which {HTTPS_ONLY}", spell(ip, judged)))
            }
            _ => Ok(()),
        }
    }

    fn deciding_rule(&self, ip: IpAddr, judged: IpAddr) -> Option<&Rule> {
        self.rules
            .iter()
            .filter(|rule| match rule.reach {
                Reach::Myself => self.machine.has(judged),
                Reach::Net(net) => net.contains(&judged) || net.contains(&ip),
                // What carries an address is as public as that.
                Reach::Public(net) => net.contains(&judged) && is_public(judged),
            })
            .min_by_key(|rule| (rule.width(), rule.allow))
    }

    /// What this policy leaves open though it may not be meant to, a line each, with what closes it.
    pub fn advice(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let nobody_speaks_of = |ip: &str| {
            let ip: IpAddr = ip.parse().expect("an address");
            self.deciding_rule(ip, ip).is_none()
        };
        let loopback = nobody_speaks_of("127.0.0.1") && nobody_speaks_of("::1");
        let private = ["10.0.0.1", "172.16.0.1", "192.168.0.1", "fd00::1"].into_iter().all(nobody_speaks_of);
        if loopback || private {
            let open = match (loopback, private) {
                (true, true) => "loopback and private addresses",
                (true, false) => "loopback addresses",
                _ => "private addresses",
            };
            lines.push(format!(
                "endpoints come from strangers and may lead to {open} here: close them with \
                 '--deny-net private --deny-net loopback --deny-net self', and open what is meant with '--allow-net'"
            ));
        }
        let denied = |ips: &[&str]| {
            ips.iter().all(|ip| {
                let ip: IpAddr = ip.parse().expect("an address");
                self.deciding_rule(ip, ip).is_some_and(|rule| !rule.allow)
            })
        };
        // Some addresses far apart stand for a whole family.
        let whole = [denied(&["1.0.0.1", "100.0.0.1", "203.0.113.1"]), denied(&["2001:db8::1", "2600::1", "2a00::1"])];
        let own = [denied(&["127.0.0.1"]), denied(&["::1"])];
        let one_family = match (whole, own) {
            ([true, false], _) => Some(("IPv4", "IPv6", "::/0")),
            ([false, true], _) => Some(("IPv6", "IPv4", "0.0.0.0/0")),
            (_, [true, false]) => Some(("IPv4", "IPv6", "::1")),
            (_, [false, true]) => Some(("IPv6", "IPv4", "127.0.0.0/8")),
            _ => None,
        };
        if let Some((closed, open, missing)) = one_family {
            lines.push(format!(
                "'--deny-net' closes {closed} and leaves {open} open: add '--deny-net {missing}', or say 'all' or 'loopback', \
                 which hold both"
            ));
        }
        lines
    }
}

impl Rule {
    /// The wider, the less specific; twice the bits that are free, so that words find room between.
    fn width(&self) -> u16 {
        let free = |net: IpNet| 2 * u16::from(net.max_prefix_len() - net.prefix_len());
        match self.reach {
            Reach::Net(net) => free(net).max(2 * u16::from(self.is_word)),
            Reach::Public(net) => free(net) - 1,
            Reach::Myself => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(values: &[&str]) -> Vec<Net> {
        values.iter().map(|value| value.parse().unwrap()).collect()
    }

    fn guard(allow: &[&str], deny: &[&str]) -> Guard {
        Guard::new(&nets(allow), &nets(deny), &[])
    }

    /// `expected` is a part of the reason; empty means allowed.
    fn check(guard: &Guard, ip: &str, expected: &str) {
        let result = guard.check(SocketAddr::new(ip.parse().unwrap(), 80), true);
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
                ("fd00:ec2::254", "metadata"),
                ("fd20:ce::254", "metadata"),
                ("100.100.100.200", "metadata"),
                ("192.0.0.192", "metadata"),
                ("168.63.129.16", "metadata"),
                ("::ffff:168.63.129.16", "metadata"),
                // Teredo: client and server; ISATAP, local and global
                ("2001:0:4136:e378:8000:63bf:5601:5601", "link-local"),
                ("2001:0:a9fe:a9fe:8000:63bf:3fff:fdd2", "link-local"),
                ("2001:db8::5efe:a9fe:a9fe", "link-local"),
                ("2001:db8::200:5efe:a83f:8110", "metadata"),
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
            "2001:0:4136:e378:8000:63bf:3fff:fdd2",
            "2001:db8::5efe:192.0.2.1",
            "168.63.129.15",
        ] {
            check(&guard, ip, "");
        }
    }

    #[test]
    fn without_tls_only_what_is_allowed_by_name_is_delivered_to_where_that_is_wanted() {
        let strict = guard(&["10.1.0.0/16"], &["private"]).https_only(true);
        let check = |guard: &Guard, ip: &str, is_tls| guard.check(SocketAddr::new(ip.parse().unwrap(), 80), is_tls);
        assert_eq!(check(&strict, "10.1.2.3", false), Ok(()));
        assert_eq!(check(&strict, "192.0.2.1", true), Ok(()));
        let reason = check(&strict, "192.0.2.1", false).unwrap_err();
        assert!(reason.contains("192.0.2.1") && reason.contains("'--https-only'"), "{reason}");
        assert!(check(&strict, "10.2.0.1", false).unwrap_err().contains("'--deny-net private'"));
        assert_eq!(strict.check_scheme(false), Ok(()));
        let strictest = guard(&[], &[]).https_only(true);
        assert!(strictest.check_scheme(false).unwrap_err().contains("'--https-only'"));
        assert_eq!(strictest.check_scheme(true), Ok(()));
        assert_eq!(guard(&[], &[]).check_scheme(false), Ok(()));
        // What carries an address is as public as that.
        let public = guard(&["public"], &[]).https_only(true);
        for ip in ["192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1", "64:ff9b::192.0.2.1"] {
            assert_eq!(check(&public, ip, false), Ok(()), "{ip}");
        }
        let not_public =
            ["127.0.0.1", "::1", "::ffff:127.0.0.1", "::ffff:10.1.2.3", "64:ff9b::10.1.2.3", "2002:a01:203::"];
        for ip in not_public.into_iter().chain(["2001:0:4136:e378:8000:63bf:f5fe:fdfc", "2001:db8::5efe:10.1.2.3"]) {
            assert!(check(&public, ip, false).is_err(), "{ip}");
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
            "fd00:ec2::253",
            "fec0::1",
            "64:ff9b:1::a00:1",
            "::ffff:10.1.2.3",
            "64:ff9b::a01:203",
            "2002:a01:203::",
            "2001:0:4136:e378:8000:63bf:f5fe:fdfc",
            "2001:db8::5efe:a01:203",
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
    fn all_holds_both_families_and_public_is_more_specific() {
        for ip in ["192.0.2.1", "127.0.0.1", "10.0.0.1", "2001:db8::1", "::1"] {
            check(&guard(&[], &["all"]), ip, "'--deny-net all'");
        }
        let guard = guard(&["public"], &["all"]);
        check(&guard, "192.0.2.1", "");
        check(&guard, "2001:db8::1", "");
        check(&guard, "10.0.0.1", "'--deny-net all'");
        check(&guard, "::1", "'--deny-net all'");
    }

    #[test]
    fn self_is_this_machine_and_yields_to_one_address_only() {
        // What else this machine has is seen in a namespace, with the real binary.
        let strict = guard(&["loopback"], &["self"]);
        for ip in ["127.0.0.1", "127.3.2.1", "::1", "::ffff:127.0.0.1"] {
            check(&strict, ip, "'--deny-net self'");
        }
        for ip in ["192.0.2.1", "2001:db8::1", "10.254.253.252"] {
            check(&strict, ip, "");
        }
        check(&guard(&["127.0.0.1"], &["self"]), "127.0.0.1", "");
        check(&guard(&["127.0.0.1"], &["self"]), "127.0.0.2", "'--deny-net self'");
        check(&guard(&["self"], &["all"]), "127.0.0.1", "");
    }

    #[test]
    fn advice_names_what_is_left_open_and_what_closes_it() {
        let (strangers, family) = ("--deny-net private --deny-net loopback --deny-net self", "leaves");
        let cases: [(&[&str], &[&str], &[&str]); 12] = [
            (&[], &[], &[strangers]),
            (&[], &["192.0.2.0/24"], &[strangers]),
            (&[], &["private"], &[strangers]),
            (&[], &["loopback"], &[strangers]),
            (&[], &["private", "loopback"], &[]),
            (&[], &["all"], &[]),
            (&["loopback", "private"], &["all"], &[]),
            (&["loopback"], &["private"], &[]),
            (&[], &["0.0.0.0/0"], &["IPv6 open"]),
            (&[], &["0.0.0.0/1", "128.0.0.0/1"], &["IPv6 open"]),
            (&["loopback", "private"], &["::/0"], &["0.0.0.0/0"]),
            (&[], &["private", "127.0.0.0/8"], &["'--deny-net ::1'"]),
        ];
        for (allow, deny, expected) in cases {
            let lines = guard(allow, deny).advice();
            assert_eq!(lines.len(), expected.len(), "{allow:?} {deny:?}: {lines:?}");
            assert!(lines.iter().zip(expected).all(|(line, part)| line.contains(part)), "{lines:?}");
        }
        assert!(guard(&[], &["0.0.0.0/0"]).advice()[0].contains(family));
    }

    #[test]
    fn the_agents_own_services_are_refused_at_their_port_only() {
        let own = [
            ("127.0.0.1:6379".parse().unwrap(), "Redis"),
            ("192.0.2.7:6380".parse().unwrap(), "Redis"),
            ("0.0.0.0:9090".parse().unwrap(), "status address"),
        ];
        let guard = Guard::new(&nets(&["127.0.0.0/8"]), &[], &own);
        for (addr, expected) in [
            ("127.0.0.1:6379", Some("Redis")),
            ("127.0.0.2:6379", Some("Redis")),
            ("[::1]:6379", Some("Redis")),
            ("[::ffff:127.0.0.1]:6379", Some("Redis")),
            ("192.0.2.7:6380", Some("Redis")),
            ("[64:ff9b::c000:207]:6380", Some("Redis")),
            ("[2001:db8::5efe:192.0.2.7]:6380", Some("Redis")),
            ("192.0.2.8:6380", None),
            ("127.0.0.1:9090", Some("status address")),
            ("127.0.0.1:80", None),
            ("198.51.100.1:6379", None),
        ] {
            check_own(&guard, addr, expected);
        }
    }

    fn check_own(guard: &Guard, addr: &str, expected: Option<&str>) {
        let result = guard.check(addr.parse().unwrap(), true);
        match expected {
            None => assert_eq!(result, Ok(()), "{addr}"),
            Some(name) => assert!(result.unwrap_err().contains(name), "{addr}"),
        }
    }
}
