//! The identity of one workload: a key that is made here, a certificate for it from the mesh's
//! authority, and the roots that other workloads are verified by; renewed before they end.
//!
//! | file | what it is |
//! |---|---|
//! | `args.rs` | flags and environment, as Istio's agent has them |
//! | `key.rs` | the key and the request for a certificate |
//! | `authority.rs` | the call of `CreateCertificate` over TLS |
//! | `identity.rs` | what came back, checked |
//! | `roots.rs` | which authorities are trusted, from the file and from the answer |
//! | `revoked.rs` | which certificates count no more |
//! | `rotation.rs` | the loop: first certificate, half life, backoff, new roots |
//! | `secret.rs`, `sds.rs` | the same for Envoy: as secrets, over a Unix socket |
//! | `files.rs` | certificates and authorities in files that configuration names |
//! | `about.rs` | what a certificate says of itself |
//! | `output.rs` | the same as files, where somebody asks for them |
//!
//! The proxy runs this inside itself ([`Agent::start`]); beside a stock Envoy it is a process of
//! its own that answers on a socket ([`sds::serve`]).
//!
//! Invariants: the key never leaves this process except to the proxy it is for, is zeroized when it
//! is replaced, and is on disk only where `OUTPUT_CERTS` says so. A certificate that came is used
//! only if it is for our key. Whatever fails leaves the last good one.

mod about;
mod args;
mod authority;
mod files;
mod identity;
mod key;
mod output;
mod revoked;
mod roots;
mod rotation;
pub mod sds;
pub mod secret;

pub use about::About;
pub use args::{Config, ConfigError, IdentityArgs, KeyKind};
pub use authority::CallError;
pub use files::FileSecret;
pub use identity::{Identity, IdentityError};
pub use output::OutputError;
pub use roots::RootsError;
pub use rotation::{Agent, Backoff, Material};
