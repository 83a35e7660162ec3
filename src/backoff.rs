//! Growing, jittered pauses while Redis cannot be used.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::lease::{Lease, Thread};

/// Unusable Redis is tried again after this long, growing to `RECONNECT_MAX`: so long a new master is idle
/// at most, after a failover.
const RECONNECT_MIN: Duration = Duration::from_millis(50);
const RECONNECT_MAX: Duration = Duration::from_secs(1);

/// Growing, jittered pauses while Redis cannot be used.
#[derive(Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Pauses before the next try; a stop cuts it short.
    pub fn pause(&mut self, lease: &Lease) {
        let delay = self.next_pause();
        let until = Instant::now() + delay;
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            if lease.is_stopping() && self.failures > 1 {
                return;
            }
            lease.turn(Thread::Reader);
            lease.wait_for_change(left.min(Duration::from_millis(100)));
        }
    }

    /// The length of the next pause.
    pub fn next_pause(&mut self) -> Duration {
        let doubled = RECONNECT_MIN * (1 << self.failures.min(10));
        self.failures += 1;
        // The clock's low digits are jitter enough for agents that lost Redis at the same moment.
        let jitter = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        doubled.min(RECONNECT_MAX).mul_f64(0.75 + f64::from(jitter.subsec_nanos() % 1000) / 2000.0)
    }
}
