//! From the name of a Redis to its addresses, within a bounded time. The system's resolver gives
//! silent name servers up to half a minute, longer than a thread of the agent may stand still: so
//! it is asked on a thread of its own, one for each name at a time, which is left behind when it
//! takes too long. Nothing is remembered: after a failover a name may lead elsewhere.

use std::collections::HashMap;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;
use std::time::{Duration, Instant};

/// How long an answer is waited for once the agent is about to stop.
const HURRIED: Duration = Duration::from_millis(250);

/// Look-ups at most that are left behind; the system gives each up at last.
const MOST_LEFT_BEHIND: u64 = 8;

/// Names about which nobody asks are forgotten when there are more than this.
const MOST_NAMES: usize = 64;

/// Looks up names for all connections of an agent.
#[derive(Clone, Default)]
pub struct Names(Arc<(Mutex<All>, Condvar)>);

#[derive(Default)]
struct All {
    is_hurried: bool,
    by_name: HashMap<String, State>,
}

/// Of one name.
#[derive(Default)]
struct State {
    /// How many look-ups have begun, when the last one did, and how many have not ended yet.
    begun: u64,
    last_begun: Option<Instant>,
    under_way: u64,
    /// The answer of the last one that has ended, by its number; later ones are newer.
    answer: Option<(u64, Result<Vec<IpAddr>, String>)>,
}

impl Names {
    /// The addresses of `host`, a name or an address, as of now.
    ///
    /// # Errors
    ///
    /// If it has none, or none is known within `patience`; a fragment of a sentence.
    pub fn addresses(&self, host: &str, patience: Duration) -> Result<Vec<IpAddr>, String> {
        if let Ok(address) = host.parse() {
            return Ok(vec![address]);
        }
        let begun = Instant::now();
        let mut all = self.all();
        let was_hurried = all.is_hurried;
        let patience = if was_hurried { HURRIED } else { patience };
        if all.by_name.len() > MOST_NAMES {
            all.by_name.retain(|name, state| name == host || state.under_way > 0);
        }
        let state = all.by_name.entry(host.to_string()).or_default();
        // One that another connection waits for will do, but not one that was given up.
        let is_due = state.last_begun.is_none_or(|at| at.elapsed() >= patience) && state.under_way < MOST_LEFT_BEHIND;
        if state.under_way == 0 || is_due {
            self.begin(host, state.begun + 1)?;
            state.begun += 1;
            state.last_begun = Some(begun);
            state.under_way += 1;
        }
        let number = state.begun;
        loop {
            if let Some(State { answer: Some((ended, answer)), .. }) = all.by_name.get(host)
                && *ended >= number
            {
                return answer.clone();
            }
            let left = patience.saturating_sub(begun.elapsed());
            if left.is_zero() || all.is_hurried != was_hurried {
                let waited = begun.elapsed().as_secs_f64();
                return Err(format!("the name server has not answered about '{host}' in {waited:.1} s"));
            }
            all = self.0.1.wait_timeout(all, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The agent is about to stop: who waits for a name is sent on, and nobody waits for long any more.
    pub fn hurry(&self) {
        self.all().is_hurried = true;
        self.0.1.notify_all();
    }

    fn begin(&self, host: &str, number: u64) -> Result<(), String> {
        let (names, host) = (self.clone(), host.to_string());
        let look_up = move || {
            let answer = (host.as_str(), 0).to_socket_addrs().map_err(|error| error.to_string()).map(|found| {
                let mut addresses: Vec<IpAddr> = Vec::new();
                for address in found.map(|address| address.ip()) {
                    if !addresses.contains(&address) {
                        addresses.push(address);
                    }
                }
                addresses
            });
            if let Some(state) = names.all().by_name.get_mut(&host) {
                state.under_way -= 1;
                if state.answer.as_ref().is_none_or(|(latest, _)| *latest < number) {
                    state.answer = Some((number, answer));
                }
            }
            names.0.1.notify_all();
        };
        // The system's resolver keeps its packets and host files on the stack.
        let started = Builder::new().name("redis-look-up".to_string()).stack_size(256 << 10).spawn(look_up);
        started.map(|_| ()).map_err(|error| format!("no thread to look up its name: {error}"))
    }

    fn all(&self) -> MutexGuard<'_, All> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_needs_no_look_up_and_a_name_has_its_own() {
        let names = Names::default();
        assert_eq!(names.addresses("::1", Duration::ZERO).unwrap(), ["::1".parse::<IpAddr>().unwrap()]);
        let found = names.addresses("localhost", Duration::from_secs(20)).unwrap();
        assert!(!found.is_empty() && found.iter().all(IpAddr::is_loopback), "{found:?}");
    }

    #[test]
    fn a_hurry_sends_on_who_waits() {
        let names = Names::default();
        // A look-up that never ends.
        let endless = State { begun: 1, under_way: MOST_LEFT_BEHIND, last_begun: Some(Instant::now()), answer: None };
        names.all().by_name.insert("redis.test".to_string(), endless);
        let waiting = names.clone();
        let waits = std::thread::spawn(move || waiting.addresses("redis.test", Duration::from_secs(600)));
        names.hurry();
        assert!(waits.join().unwrap().unwrap_err().contains("'redis.test'"));
        assert!(names.addresses("redis.test", Duration::from_secs(600)).is_err());
        // Another name has its own answer.
        assert!(!names.addresses("localhost", Duration::from_secs(20)).is_err_and(|why| why.contains("redis.test")));
    }
}
