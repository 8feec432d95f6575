//! TLS towards clients and endpoints, with rustls.
//!
//! | file | holds |
//! |---|---|
//! | `store.rs` | contexts by configuration, rebuilt when a secret or a file changes |
//! | `material.rs` | certificates, keys and revocation lists, read and parsed |
//! | `context.rs` | what rustls needs for one context |
//! | `verify.rs` | which peers are trusted |
//! | `listing.rs` | what `/certs` shows |
//! | `certificate.rs` | what a certificate says of itself |
//! | `handshake.rs` | from a socket to a [`crate::io::Io`] |
//! | `stream.rs` | records: one connection's cryptographic state |
//! | `peer.rs` | what a finished handshake tells: for logs and `x-forwarded-client-cert` |
//! | `proxy_header.rs` | the PROXY header towards endpoints |
//!
//! A context is built once per configuration and version of its secrets, on the main thread, and
//! shared by all workers; a handshake takes the newest one, a connection keeps its own. An idle
//! connection holds the state of the ciphers and no buffer.
//!
//! Invariant: what cannot be verified as configured is refused, never accepted with less.

mod certificate;
mod context;
pub(crate) mod handshake;
mod listing;
mod material;
pub(crate) mod peer;
pub(crate) mod proxy_header;
mod store;
pub(crate) mod stream;
mod verify;

pub(crate) use certificate::Description;
pub(crate) use listing::Listing;
pub(crate) use material::TlsError;
pub(crate) use store::{ClientSlot, ServerSlot, TlsStore, check, check_secret, contexts};
