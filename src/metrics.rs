//! Counters that the threads share. They only ever grow; who wants a rate takes
//! two readings. Turning them into text for a monitoring system is left to the
//! status server.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::policy::Outcome;

/// Upper bounds, in seconds, of the attempt duration histogram.
pub const DURATION_BOUNDS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 15.0, 30.0];

/// What happened since the start.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Messages claimed, those that came back included.
    pub claimed: AtomicU64,
    /// Messages delivered.
    pub delivered: AtomicU64,
    /// Attempts that are to be repeated.
    pub later: AtomicU64,
    /// Messages that died here, the undecodable ones included.
    pub dead: AtomicU64,
    /// Of these, the ones that could not be decoded.
    pub undecodable: AtomicU64,
    /// Messages given up because another agent has them now.
    pub taken_over: AtomicU64,
    /// Messages taken back from agents that died.
    pub recovered: AtomicU64,
    /// Requests sent once more within their attempt; counted by the poster.
    pub repeated: Arc<AtomicU64>,
    /// Entries of the queue's keys that no agent writes; counted by the queue.
    pub odd: Arc<AtomicU64>,
    /// Calls of claim.
    pub claims: AtomicU64,
    /// Calls of settle.
    pub settles: AtomicU64,
    /// Attempts by duration: one count for each of `DURATION_BOUNDS`, and one for what took longer.
    pub durations: [AtomicU64; DURATION_BOUNDS.len() + 1],
    /// The durations of all attempts, in microseconds.
    pub duration_sum: AtomicU64,
}

impl Metrics {
    /// Counts one attempt and what it came to.
    pub fn attempted(&self, outcome: &Outcome, took: Duration) {
        match outcome {
            Outcome::Delivered => add(&self.delivered, 1),
            Outcome::Later { .. } => add(&self.later, 1),
            Outcome::Dead { .. } => add(&self.dead, 1),
        }
        let seconds = took.as_secs_f64();
        let bucket = DURATION_BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(DURATION_BOUNDS.len());
        add(&self.durations[bucket], 1);
        add(&self.duration_sum, took.as_micros() as u64);
    }
}

/// Adds to a counter.
pub fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

/// Reads a counter.
pub fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}
