//! HTTP/2 over the `h2` crate, behind the stream interface of `http::stream`.
//!
//! Here heads are converted between the crate's header maps and our blocks, and flow control is
//! tied to back-pressure: window is given back when a piece has been passed on, and no more is
//! sent than the peer's window takes. What a turn writes leaves in one call (`socket.rs`).

pub(crate) mod client;
mod convert;
mod send;
pub(crate) mod server;
mod socket;
