//! Clusters as one worker uses them: endpoints, balancing, connection pools.
//!
//! | file | holds |
//! |---|---|
//! | `cluster.rs` | the clusters a worker knows, and those it uses |
//! | `hosts.rs` | endpoints with their pools; what an endpoint update keeps |
//! | `health.rs` | what the process knows of an endpoint's health |
//! | `outlier.rs` | the main thread's part: who is ejected, and for how long |
//! | `priority.rs` | how priorities and localities share the requests |
//! | `zones.rs` | what of them stays in the proxy's own zone |
//! | `balance.rs` | which endpoint of a locality a request takes |
//! | `schedule.rs`, `hash_table.rs` | weighted turns; consistent hashing |
//! | `names.rs` | names in place of addresses |
//! | `pool.rs` | connections: from the pool, new, or wait for one |
//! | `connect.rs` | a new connection: socket, PROXY header, TLS |
//! | `ticket.rs` | guards that count connections and requests |
//! | `sweep.rs` | closes idle connections whose peer or time is gone |
//!
//! Invariant: a cluster costs two `Arc`s until its first request in a worker; only then are
//! endpoints, pools and counters made.

mod balance;
mod cluster;
pub(crate) mod connect;
mod hash_table;
pub(crate) mod health;
pub(crate) mod hosts;
pub(crate) mod names;
pub(crate) mod outlier;
pub(crate) mod pool;
mod priority;
mod schedule;
pub(crate) mod sweep;
pub(crate) mod ticket;
mod wait;
mod zones;

pub(crate) use cluster::{ActiveCluster, Clusters};
pub(crate) use hosts::Host;
pub use zones::Home;
