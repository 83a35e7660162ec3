//! Cuts below TCP: packets dropped without a word to anybody, as on a network that breaks. By nft, in a
//! network namespace of this process alone, which `scripts/torture` makes; elsewhere there are none,
//! and the proxies hold back what they can.

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// By which `scripts/torture` says that this network is nobody else's.
const INSIDE: &str = "ACAPY_DELIVER_TORTURE_HAS_ITS_OWN_NETWORK";

/// Whether packets can be dropped here.
pub fn are_possible() -> bool {
    static ARE: OnceLock<bool> = OnceLock::new();
    *ARE.get_or_init(|| {
        let is_asked_for = std::env::var_os(INSIDE).is_some();
        // Never in a network that leads anywhere.
        let interfaces = std::fs::read_to_string("/proc/net/dev").unwrap_or_default();
        let is_apart = interfaces.lines().skip(2).all(|line| line.trim_start().starts_with("lo:"));
        is_asked_for && is_apart && nft("add table ip torture").is_ok()
    })
}

/// Packets that are dropped until it is healed, or goes.
pub struct Cut(usize);

impl Cut {
    /// Of each of these, as nft matches packets.
    fn of(matches: &[String]) -> Cut {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        // Where they arrive: who sends one that is dropped on its way out is told.
        let mut lines = format!("add chain ip torture cut{n} {{ type filter hook input priority 0; }}\n");
        for packets in matches {
            lines += &format!("add rule ip torture cut{n} {packets} drop\n");
        }
        nft(&lines).unwrap_or_else(|why| panic!("packets cannot be dropped: {why}"));
        Cut(n)
    }

    /// All to and from a port, or one direction of it.
    pub fn of_port(address: SocketAddr, to: bool, from: bool) -> Cut {
        let (ip, port) = (address.ip(), address.port());
        let mut matches = Vec::new();
        if to {
            matches.push(format!("ip daddr {ip} tcp dport {port}"));
        }
        if from {
            matches.push(format!("ip saddr {ip} tcp sport {port}"));
        }
        Cut::of(&matches)
    }

    /// Of an address and all others.
    pub fn off(ip: &str) -> Cut {
        Cut::of(&[format!("ip daddr {ip}"), format!("ip saddr {ip}")])
    }

    /// Of an address and these others.
    pub fn between(ip: &str, others: &[String]) -> Cut {
        let others = others.join(", ");
        Cut::of(&[format!("ip saddr {ip} ip daddr {{ {others} }}"), format!("ip daddr {ip} ip saddr {{ {others} }}")])
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        let n = self.0;
        let healed = nft(&format!("flush chain ip torture cut{n}\ndelete chain ip torture cut{n}\n"));
        if let Err(why) = healed
            && !std::thread::panicking()
        {
            panic!("packets cannot be let through again: {why}");
        }
    }
}

/// Does all of it or nothing.
fn nft(lines: &str) -> Result<(), String> {
    let mut command = Command::new("nft");
    command.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| format!("nft (nftables): {error}"))?;
    let mut stdin = child.stdin.take().expect("it is piped");
    std::io::Write::write_all(&mut stdin, lines.as_bytes()).map_err(|error| format!("nft: {error}"))?;
    drop(stdin);
    let output = child.wait_with_output().map_err(|error| format!("nft: {error}"))?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}
