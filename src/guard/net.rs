//! What one `--allow-net` or `--deny-net` names, read from its words.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::addresses::private_nets;

/// What one `--allow-net` or `--deny-net` names: a network, a single address, or a word for some of them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Net {
    /// As it was given.
    pub(super) text: String,
    pub(super) reach: Vec<Reach>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reach {
    Net(IpNet),
    /// Of this whole address family, all but loopback and private addresses.
    Public(IpNet),
    /// The addresses of this machine.
    Myself,
}

impl fmt::Display for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The error ends the sentence "option '--deny-net': 'text' …".
impl FromStr for Net {
    type Err = String;

    fn from_str(text: &str) -> Result<Net, String> {
        let reach = parse(text).ok_or_else(|| {
            let words = WORDS.join(", ");
            format!("is not one of {words}, nor an address, or a network as in 10.0.0.0/8 or fd00::/8")
        })?;
        Ok(Net { text: text.to_string(), reach })
    }
}

/// The words that stand for networks in `--allow-net` and `--deny-net`.
pub(super) const WORDS: [&str; 5] = ["private", "loopback", "public", "self", "all"];

fn parse(value: &str) -> Option<Vec<Reach>> {
    let v4 = |ip: Ipv4Addr, len| IpNet::V4(Ipv4Net::new_assert(ip, len));
    let v6 = |ip: Ipv6Addr, len| IpNet::V6(Ipv6Net::new_assert(ip, len));
    let all = [v4(Ipv4Addr::UNSPECIFIED, 0), v6(Ipv6Addr::UNSPECIFIED, 0)];
    Some(match value {
        "private" => private_nets().map(Reach::Net).collect(),
        "loopback" => [v4(Ipv4Addr::new(127, 0, 0, 0), 8), v6(Ipv6Addr::LOCALHOST, 128)].map(Reach::Net).to_vec(),
        "public" => all.map(Reach::Public).to_vec(),
        "all" => all.map(Reach::Net).to_vec(),
        "self" => vec![Reach::Myself],
        _ => vec![Reach::Net(value.parse::<IpNet>().or_else(|_| value.parse::<IpAddr>().map(IpNet::from)).ok()?)],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_network_is_refused() {
        for value in ["", "10.0.0.0/33", "intranet", "10.0.0", "::/129"] {
            let error = value.parse::<Net>().unwrap_err();
            assert!(error.contains("private, loopback") && error.contains("10.0.0.0/8"), "{error}");
        }
    }
}
