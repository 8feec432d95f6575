//! Wires the control plane: store, model, translate, xDS server, REST API, monitoring.
//!
//! ```text
//! REST, directory -> store -> (watch, debounce) -> MeshSnapshot -> xDS push -> proxies
//! ```
//!
//! No logic of its own: an object is judged by `api`, kept by `store`, understood by `model`,
//! turned into Envoy's resources by `translate` and delivered by `xds`. What stands here is who
//! tells whom, and in which order things start and stop.
//!
//! Invariant: xDS is served only after everything in the store and the configuration directory is
//! in the first snapshot, so that a restart never pushes half a configuration.

mod advice;
pub mod analyze;
mod compliance;
mod error;
mod jwks;
mod listen;
mod mesh;
mod monitoring;
mod options;
mod plane;
mod rest;
mod secure;
mod source;
mod stored;
mod trust;

pub use error::ControlError;
pub use jwks::Cidr;
pub use lateen_identity::{KeyKind, Lifetimes, RootLifetimes};
pub use lateen_model::{Compliance, KeysFetchedBy};
pub use options::{KeyOptions, Options};
pub use plane::{Addresses, Control, run};
