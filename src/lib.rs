//! acapy-deliver: the delivery agent for the outbound queue of ACA-Py, inside another program.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use acapy_deliver::{Agent, Config, RedisAddress};
//!
//! let config = Config::with_defaults(RedisAddress::new("redis://127.0.0.1:6379")?);
//! let agent = Agent::start(&config)?;
//! // … until the program ends:
//! let (_hurry, hurried) = crossbeam_channel::bounded::<()>(1);
//! agent.stop(Duration::from_secs(5), &hurried);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! `examples/embed.rs` is such a program, whole; the tests run it. [`Envelope`](envelope::Envelope) reads and writes
//! what ACA-Py pushes. [`Queue`](queue::Queue) is what an agent needs of a queue: the one on a Redis LIST is built in,
//! and [`Agent::start_on`] takes any.
//!
//! # Words
//!
//! | Word | What it is here |
//! |---|---|
//! | claim | a message taken from the queue, recorded there as in flight under this agent's number |
//! | envelope | what a claim's bytes say: payload, headers, endpoint; delivered as they are |
//! | origin, lane | scheme, host and port of an endpoint; what is for it goes one lane, beside all others |
//! | up, down, untried | the states of a lane, as of a circuit breaker: proven by a delivery, failed since, neither |
//! | probe | the one message that tries a lane that is down (half-open) |
//! | window | how many of a lane's messages may be out at once: from one, by one with each delivery, halved when the endpoint is overloaded (AIMD) |
//! | shares | how the workers are divided among lanes by their state (bulkheads) |
//! | attempt, outcome | one POST or WebSocket, from its connection to its answer; what that means for the message: delivered, later, dead |
//! | settlement | a claim and its outcome, told to the queue (an acknowledgement) |
//! | waiting, retry | places of a message in Redis: behind a lane that is down or full; on a backoff of its own |
//! | lease, heartbeat | an agent's registration, which others take over when it has not been renewed for `lease` |
//! | call number | makes a claim or settlement that is sent again change nothing (idempotent) |
//! | dead letter, replay | a message that is given up, with its reason and bytes; having it delivered as if it were new |
//! | poison message | one that was in flight in five agents that died: dead |
//! | order | what an operator has said of an endpoint: pause, resume, try |
//!
//! # A message's way
//!
//! `reader` claims it, `envelope` reads it, `lanes` say when it may go, a `worker` attempts it by way of `delivery`,
//! `policy` judges, and the `settler` tells the queue; its `outbox` keeps each settlement until the queue has confirmed
//! it. They meet in `dispatch`, which is the lanes' mutex and the channels between threads; no thread knows another,
//! and `agent` starts and ends them all.
//!
//! # What is stable
//!
//! From 1.0 on, and before it only changed with a line in the README: the command line and its variables, exit codes,
//! the JSON that the commands and the status pages write, the metrics, and the keys in Redis (agents of two versions
//! may share a queue). This library is what the binary is made of: its face may change with any minor release.

mod agent;
mod backoff;
mod claiming;
mod clock;
mod commands;
mod config;
mod delivery;
mod dispatch;
pub mod envelope;
mod frames;
mod guard;
mod headers;
mod health;
mod journal;
mod json;
mod lanes;
mod lease;
mod logger;
mod metrics;
mod notify;
mod orders;
mod outbox;
mod peers;
mod policy;
pub mod queue;
mod reader;
mod roots;
mod serve;
mod settler;
mod signals;
mod status;
mod text;
mod worker;

pub use agent::Agent;
pub use config::{Config, Error as ConfigError, LogFormat, RedisAddress, StatusEndpoint, Taken};
pub use guard::Net;
pub use headers::IdHeader;
pub use orders::{Order, Orders};
pub use roots::Roots;

/// What the binary of this package is made of, and what its tests and fuzz targets reach into: for nobody else. Each
/// item is named, so that the compiler sees what nobody uses.
#[doc(hidden)]
#[allow(missing_docs, reason = "documented where they are")]
pub mod internals {
    pub mod commands {
        pub use crate::commands::{Error, Exit, obey};
    }
    pub mod config {
        pub use crate::config::{Command, environment, parse};
    }
    pub mod claiming {
        pub use crate::claiming::{Call, Claiming, Next, taken_over};
    }
    pub mod delivery {
        pub use crate::delivery::proxy::Proxies;
        pub use crate::delivery::{Options, Poster, raise_descriptor_limit};
    }
    pub mod guard {
        pub use crate::guard::Guard;
    }
    pub mod lanes {
        pub use crate::lanes::{Claim, Effects, Lanes, Limits};
    }
    pub mod logger {
        pub use crate::logger::{format_asked_for, last_words, set_up};
    }
    pub mod orders {
        pub use crate::orders::{Before, Hand, MOST_PAUSED, Order, Orders, Standing};
    }
    pub mod outbox {
        pub use crate::outbox::{Held, Outbox};
    }
    pub mod peers {
        pub use crate::peers::{Peers, Rules, between_beats};
    }
    pub mod policy {
        pub use crate::policy::{Attempt, Failure, MESSAGE_BACKOFF_MAX, Outcome, Retry, judge, parse_retry_after};
    }
    pub mod queue {
        pub use crate::queue::*;

        pub mod redis {
            pub mod adopt {
                pub use crate::queue::redis::adopt::{AT_ONCE, LONGEST};
            }
            pub mod list {
                pub use crate::queue::redis::list::{Keys, RedisList};
            }
            pub mod server {
                pub use crate::queue::redis::server::Server;
            }
        }
    }
}

/// The queue in memory of the tests, for those of single threads.
#[cfg(test)]
#[allow(dead_code, reason = "the simulation in tests/moves uses the rest")]
#[path = "../tests/moves/memory.rs"]
mod memory;
