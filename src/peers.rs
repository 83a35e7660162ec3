//! Who is dead, as one agent judges of the others. It knows no clock (`now` is an
//! argument) and no queue, so that the settler and the simulation go by the same rule.
//!
//! A peer is dead when its lease has not changed over several looks of ours, none too
//! far from the one before, that span a whole lease by our own monotonic clock: ours
//! or its own, whichever is longer, for agents of different leases live side by side.
//! So no step of a clock, no outage of the queue and no other option kills the living.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::queue::{AgentNumber, Peer};

/// A lease is renewed at least this often, however long it is: an agent of a program before this
/// one, which goes by its own lease alone, is not to take a longer one for dead.
const LONGEST_BEAT: Duration = Duration::from_secs(5);

/// The time between two beats of an agent with such a lease.
pub fn between_beats(lease: Duration) -> Duration {
    (lease / 3).min(LONGEST_BEAT)
}

/// What the judgement goes by. The tests take each away and see that it is needed.
#[derive(Clone, Debug)]
pub struct Rules {
    /// So many looks at the same lease at least.
    pub looks: u32,
    /// They span a lease.
    pub span_a_lease: bool,
    /// A look that comes too late begins anew: meanwhile the peer may have had no chance to beat either.
    pub gaps_begin_anew: bool,
    /// A lease that has changed begins anew.
    pub renewals_count: bool,
    /// The peer's own lease counts where it is longer.
    pub their_lease_counts: bool,
}

impl Default for Rules {
    fn default() -> Rules {
        Rules { looks: 3, span_a_lease: true, gaps_begin_anew: true, renewals_count: true, their_lease_counts: true }
    }
}

/// How a peer has been seen.
#[derive(Debug)]
struct Look {
    lease: Option<u64>,
    looks: u32,
    first: Instant,
    last: Instant,
}

/// All others, as they were seen.
#[derive(Debug, Default)]
pub struct Peers {
    rules: Rules,
    looks: HashMap<AgentNumber, Look>,
}

impl Peers {
    /// Nobody has been seen yet.
    pub fn new(rules: Rules) -> Peers {
        Peers { rules, looks: HashMap::new() }
    }

    /// Takes in what a beat sent at `now` says of the others; returns those that are dead.
    /// `lease` is our own.
    pub fn look_at(&mut self, peers: &[Peer], lease: Duration, now: Instant) -> Vec<Peer> {
        let rules = &self.rules;
        self.looks.retain(|number, _| peers.iter().any(|peer| peer.number == *number));
        let mut dead = Vec::new();
        for peer in peers {
            let new = || Look { lease: peer.lease, looks: 0, first: now, last: now };
            let look = self.looks.entry(peer.number).or_insert_with(new);
            let is_renewed = look.lease != peer.lease && rules.renewals_count;
            let is_late = now.saturating_duration_since(look.last) > between_beats(lease) * 2 && rules.gaps_begin_anew;
            if is_renewed || is_late {
                *look = new();
            }
            look.looks += 1;
            look.last = now;
            let span = match (rules.span_a_lease, rules.their_lease_counts) {
                (false, _) => Duration::ZERO,
                (true, false) => lease,
                (true, true) => lease.max(peer.length),
            };
            if look.looks >= rules.looks && now.saturating_duration_since(look.first) >= span {
                dead.push(*peer);
            }
        }
        dead
    }

    /// One of them has been taken back: it is judged anew if it shows again.
    pub fn forget(&mut self, number: AgentNumber) {
        self.looks.remove(&number);
    }

    /// We are another agent now.
    pub fn clear(&mut self) {
        self.looks.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// After how many seconds a peer whose lease is never renewed is dead to us, who look as often as we beat.
    fn dead_after(ours: u64, theirs: u64) -> f64 {
        let (lease, begun) = (SECOND * ours as u32, Instant::now());
        let peer = Peer { number: AgentNumber(1), lease: Some(7), length: SECOND * theirs as u32 };
        let mut peers = Peers::default();
        let looks = (0..).map(|n| begun + between_beats(lease) * n);
        let at = looks.take(100_000).find(|now| !peers.look_at(&[peer], lease, *now).is_empty());
        at.expect("it is dead some day").duration_since(begun).as_secs_f64()
    }

    #[test]
    fn the_longer_of_both_leases_must_pass() {
        assert_eq!(dead_after(15, 15), 15.0);
        assert_eq!(dead_after(3, 30), 30.0);
        assert_eq!(dead_after(30, 3), 30.0);
        assert_eq!(dead_after(3, 0), 3.0);
    }

    #[test]
    fn one_that_beats_lives_whatever_our_lease_is() {
        for (ours, theirs) in [(3, 3), (3, 30), (30, 3), (3, 3600), (3600, 3)] {
            let (lease, begun) = (SECOND * ours, Instant::now());
            let length = SECOND * theirs;
            let mut peers = Peers::default();
            for n in 0..5000 {
                let now = begun + between_beats(lease) * n;
                let renewed = now.duration_since(begun).as_millis() / between_beats(length).as_millis();
                let peer = Peer { number: AgentNumber(1), lease: Some(renewed as u64), length };
                assert_eq!(peers.look_at(&[peer], lease, now), [], "{ours} s and {theirs} s");
            }
        }
    }
}
