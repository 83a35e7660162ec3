//! Which addresses this machine has. The system is asked, and its answers are remembered for some seconds where
//! they are wanted for every message.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Whether this machine has the address. Where the machine lacks the means to tell, it is taken for
/// its own: asked only where the port is one of ours, so nobody else is hurt.
pub fn is_of_this_machine(ip: IpAddr) -> bool {
    ask_machine(ip).unwrap_or(true)
}

/// Binding to an address works only on the machine that has it, unless it is set up to take over
/// others' addresses; then the way to an address begins with that address only if it is its own.
fn ask_machine(ip: IpAddr) -> io::Result<bool> {
    if ip.is_loopback() {
        return Ok(true);
    }
    match UdpSocket::bind((ip, 0)) {
        Err(error) if matches!(error.kind(), io::ErrorKind::AddrNotAvailable | io::ErrorKind::Unsupported) => Ok(false),
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => Ok(false),
        Err(error) => Err(error),
        Ok(_) if !binds_others_addresses(ip) => Ok(true),
        Ok(_) => {
            let any: IpAddr = if ip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            let socket = UdpSocket::bind((any, 0))?;
            Ok(socket.connect((ip, 9)).is_ok() && socket.local_addr()?.ip() == ip)
        }
    }
}

fn binds_others_addresses(ip: IpAddr) -> bool {
    let family = if ip.is_ipv4() { "ipv4" } else { "ipv6" };
    let setting = std::fs::read_to_string(format!("/proc/sys/net/{family}/ip_nonlocal_bind"));
    setting.is_ok_and(|value| value.trim() != "0")
}

/// What is known of this machine's addresses, for the word `self`: it is asked for every message.
#[derive(Debug, Default)]
pub(super) struct Machine(Mutex<HashMap<IpAddr, (bool, Instant)>>);

/// Addresses come and go: asked again after this long.
const MACHINE_AGE: Duration = Duration::from_secs(5);
/// Answers remembered at most.
const MACHINE_ANSWERS: usize = 4096;

impl Machine {
    pub(super) fn has(&self, ip: IpAddr) -> bool {
        let known = self.lock().get(&ip).copied();
        if let Some((answer, at)) = known
            && at.elapsed() < MACHINE_AGE
        {
            return answer;
        }
        let begun = Instant::now();
        let mut asked = ask_machine(ip);
        // Without file descriptors it cannot be told; mostly one is free again soon.
        while asked.is_err() && known.is_none() && begun.elapsed() < Duration::from_secs(1) {
            std::thread::sleep(Duration::from_millis(5));
            asked = ask_machine(ip);
        }
        let mut answers = self.lock();
        match (asked, known) {
            (Ok(answer), _) => {
                if answers.len() >= MACHINE_ANSWERS {
                    answers.clear();
                }
                answers.insert(ip, (answer, Instant::now()));
                answer
            }
            (Err(_), Some((answer, _))) => answer,
            (Err(_), None) => true,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<IpAddr, (bool, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
