//! Where Redis is not one server: the real binary against real Clusters, their nodes killed, failed
//! over and resharded under load. Nothing may be lost, and who is asked last may be anyone.
//!
//! | file | holds tests of |
//! |---|---|
//! | `figures.rs` | no tests: `scripts/failover-figures` |
//! | `sentinel.rs` | Sentinels: failovers with the old master well, frozen, or sure that it still is one; one of them that knows no better |
//! | `cluster.rs` | a Cluster: each node, a slot that moves, failovers wanted and not |
//! | `name.rs` | no tests: an address that leads elsewhere when it is told to |

mod cluster;
mod figures;
mod name;
mod sentinel;
