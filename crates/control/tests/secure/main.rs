//! The secure port of a real control plane: certificates, discovery, and everybody who is refused.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests stop at what is not as expected"
)]

mod authority;
mod callers;
mod client;
mod discovery;
mod plugged;
mod tokens;
