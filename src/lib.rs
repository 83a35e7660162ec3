//! acapy-deliver: the delivery agent for ACA-Py's outbound queue.

pub mod commands;
pub mod config;
pub mod envelope;
pub mod journal;
pub mod lanes;
pub mod metrics;
pub mod policy;
pub mod queue;
pub mod reader;
pub mod settler;
pub mod shared;
pub mod signals;
pub mod worker;
