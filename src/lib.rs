//! acapy-deliver: the delivery agent for ACA-Py's outbound queue.

pub mod commands;
pub mod config;
pub mod envelope;
pub mod lanes;
pub mod policy;
pub mod queue;
pub mod signals;
