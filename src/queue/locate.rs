//! From the name of a Redis to its addresses, within a bounded time. The system's resolver gives
//! silent name servers up to half a minute, longer than a thread of the agent may stand still: so
//! it is asked on a thread of its own, one for each name at a time, which is left behind when it
//! takes too long. Nothing is remembered: after a failover the name may lead elsewhere.

use std::net::{IpAddr, ToSocketAddrs};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;
use std::time::{Duration, Instant};

/// How long an answer is waited for once the agent is about to stop.
const HURRIED: Duration = Duration::from_millis(250);

/// Look-ups at most that are left behind; the system gives each up at last.
const MOST_LEFT_BEHIND: u64 = 8;

/// Looks up one name for all connections of an agent.
#[derive(Clone, Default)]
pub struct Names(Arc<(Mutex<State>, Condvar)>);

#[derive(Default)]
struct State {
    is_hurried: bool,
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
        let mut state = self.state();
        let was_hurried = state.is_hurried;
        let patience = if was_hurried { HURRIED } else { patience };
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
            if let Some((ended, answer)) = &state.answer
                && *ended >= number
            {
                return answer.clone();
            }
            let left = patience.saturating_sub(begun.elapsed());
            if left.is_zero() || state.is_hurried != was_hurried {
                let waited = begun.elapsed().as_secs_f64();
                return Err(format!("the name server has not answered about '{host}' in {waited:.1} s"));
            }
            state = self.0.1.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The agent is about to stop: who waits for a name is sent on, and nobody waits for long any more.
    pub fn hurry(&self) {
        self.state().is_hurried = true;
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
            let mut state = names.state();
            state.under_way -= 1;
            if state.answer.as_ref().is_none_or(|(latest, _)| *latest < number) {
                state.answer = Some((number, answer));
            }
            drop(state);
            names.0.1.notify_all();
        };
        // The system's resolver keeps its packets and host files on the stack.
        let started = Builder::new().name("redis-look-up".to_string()).stack_size(256 << 10).spawn(look_up);
        started.map(|_| ()).map_err(|error| format!("no thread to look up its name: {error}"))
    }

    fn state(&self) -> MutexGuard<'_, State> {
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
        let mut state = names.state();
        (state.begun, state.under_way, state.last_begun) = (1, MOST_LEFT_BEHIND, Some(Instant::now()));
        drop(state);
        let waiting = names.clone();
        let waits = std::thread::spawn(move || waiting.addresses("redis.test", Duration::from_secs(600)));
        names.hurry();
        assert!(waits.join().unwrap().unwrap_err().contains("'redis.test'"));
        assert!(names.addresses("redis.test", Duration::from_secs(600)).is_err());
    }
}
