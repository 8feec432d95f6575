//! HTTP/1.1 (and 1.0), our own engine over `httparse`.
//!
//! | file | holds |
//! |---|---|
//! | `parse.rs` | bytes to heads, and the strict framing rules |
//! | `body.rs` | how a body is delimited, chunked decoding included |
//! | `encode.rs` | heads and chunks to bytes |
//! | `server.rs` | a client's connection: requests in, responses out |
//! | `client.rs` | a connection to an endpoint: one request at a time |
//!
//! Invariant: a connection holds no buffer while it waits; reading goes into the worker's scratch
//! buffer, and only what cannot be used at once is copied aside. Ambiguous framing is refused,
//! never repaired.

pub(crate) mod body;
pub(crate) mod client;
pub(crate) mod encode;
pub(crate) mod parse;
pub(crate) mod server;
