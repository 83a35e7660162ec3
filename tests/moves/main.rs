//! The moves of the queue under attack: the real scripts on a private redis-server,
//! the queue in memory, and both side by side.
//!
//! - `world.rs`: a queue that a test may look into, roll back and set the clock of.
//! - `memory.rs`: the queue in memory.
//! - `agent.rs`: an agent in simulated time around the product's own lanes, claiming and outbox.
//! - `attack.rs`: random sequences of everything, and what must hold after every step.
//! - `scenarios.rs`: one rule each, on a real redis-server.
//! - `mutations.rs`: takes each safety out in turn; something must notice.
//!
//! A longer attack: `MOVES_RUNS=2000 cargo test --test moves attack`; one seed again:
//! `MOVES_SEED=17 MOVES_RUNS=1 cargo test --test moves attack -- --nocapture`.

mod agent;
mod attack;
mod memory;
mod mutations;
mod scenarios;
mod world;

/// The fixtures of the black-box tests.
#[allow(dead_code, unused_imports, reason = "only the server is used here")]
#[path = "../daemon"]
mod daemon {
    pub mod support;
}
// As in the crate itself, whose unit tests use the queue in memory too.
use acapy_deliver::internals::{orders, queue};
use daemon::support;
