//! acapy-deliver: the delivery agent for ACA-Py's outbound queue.

pub mod guard;
pub mod policy;
pub mod poster;
pub mod queue;
pub mod resolver;
