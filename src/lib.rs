//! acapy-deliver: the delivery agent for ACA-Py's outbound queue.

pub mod agent;
pub mod commands;
pub mod config;
pub mod envelope;
pub mod guard;
pub mod journal;
pub mod lanes;
pub mod metrics;
pub mod policy;
pub mod poster;
pub mod queue;
pub mod reader;
pub mod resolver;
pub mod settler;
pub mod shared;
pub mod signals;
pub mod status_server;
pub mod worker;
