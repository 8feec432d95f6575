//! `lateen-proxy` as a process, steered by a real discovery server: start, updates, bad input, and
//! the ways it ends.

#![allow(
    clippy::unwrap_used,
    reason = "a test stops at what is not as expected"
)]

mod discovery;
mod ends;
mod input;
mod proxy;

// One control plane of hand-made resources for all tests that need one.
#[path = "../../../xds/tests/peers/mesh.rs"]
mod mesh;
