//! acapy-deliver: the delivery agent for ACA-Py's outbound queue.
//!
//! The binary is thin; another program can run the whole inside itself:
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use acapy_deliver::agent::Agent;
//! use acapy_deliver::config::{Config, RedisAddress};
//!
//! let config = Config::with_defaults(RedisAddress::new("redis://127.0.0.1:6379"));
//! let agent = Agent::start(&config)?;
//! // … until the program ends:
//! let (_hurry, stop_at_once) = crossbeam_channel::bounded::<()>(1);
//! agent.stop(Duration::from_secs(5), &stop_at_once);
//! # Ok::<(), String>(())
//! ```
//!
//! [`Envelope`](envelope::Envelope) reads and writes what ACA-Py pushes. [`Queue`](queue::Queue)
//! is what an agent needs of a queue: [`RedisList`](queue::redis::list::RedisList) is ACA-Py's,
//! and [`Agent::start_on`](agent::Agent::start_on) takes any.
//!
//! A message's way: [`reader`] claims it and hands it to the [`lanes`], a [`worker`] attempts it
//! with the [`delivery`], [`policy`] judges, and the [`settler`] tells the queue.

pub mod agent;
mod backoff;
pub mod claiming;
pub mod clock;
pub mod commands;
pub mod config;
pub mod delivery;
pub mod dispatch;
pub mod envelope;
mod frames;
pub mod guard;
pub mod headers;
mod health;
pub mod journal;
pub mod lanes;
pub mod lease;
pub mod logger;
pub mod metrics;
mod notify;
pub mod orders;
pub mod outbox;
pub mod peers;
pub mod policy;
pub mod queue;
pub mod reader;
pub mod roots;
mod serve;
pub mod settler;
pub mod signals;
pub mod status;
pub mod text;
pub mod worker;

/// The queue in memory of the tests, for those of single threads.
#[cfg(test)]
#[allow(dead_code, reason = "the simulation in tests/moves uses the rest")]
#[path = "../tests/moves/memory.rs"]
mod memory;
