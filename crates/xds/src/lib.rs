//! Aggregated discovery (ADS) of Envoy's v3 xDS: a server for the control plane and a client for
//! the proxy, delta and state-of-the-world.
//!
//! What stands here: streams, subscriptions, versions, nonces, ACK and NACK per resource, push
//! order, debouncing and the status of every connection. What does not: Istio kinds, services,
//! routes. A resource is a name, a version and opaque bytes; where they come from is the business
//! of [`Source`], what they mean is the business of the client's owner.
//!
//! Architecture Invariant: protocol decisions are made by plain values (`session`), which own no
//! socket and no clock; `server` and `client` move bytes between them and gRPC streams.
//!
//! ```text
//! Source::generate -> server::Server -> session (per stream) ~~ gRPC ~~ client -> Update -> Verdict
//! ```

pub mod client;
pub mod debounce;
mod metrics;
mod nack;
mod node;
mod push;
mod resource;
pub mod server;
mod session;
mod status;
pub mod type_url;

pub use metrics::{Metric, MetricKind, Sample};
pub use nack::Rejection;
pub use node::{Node, NodeId, NodeKind, VIRTUAL_HOSTS_BY_NAME};
pub use push::{Changed, Names, Push};
pub use resource::Resource;
pub use server::{Caller, Limits, Server, Source, passed};
pub use status::{
    Nack, Protocol, ProxyStatus, ResourceState, ResourceStatus, Stamp, SyncState, TypeStatus,
};
