//! Our proxy beside stock Envoy.
//!
//! One control plane in this process; under it stock Envoy and our proxy, each as gateway and as
//! sidecar; the same YAML for both, the same requests to both, and upstreams that write down what
//! they see. Whatever is not the same is a difference: it is fixed, or it stands with its reason in
//! `corpus/accepted.yaml` and `docs/differences.md`.
//!
//! ```text
//! corpus -> world (control plane, proxies, upstreams) -> client -> outcome per plane -> compare
//! ```
//!
//! The planes are told apart by address: Envoy listens on 127.0.0.2 and connects from there, ours
//! listens on 127.0.0.3 and connects from 127.0.0.1, so that both share every port, every document
//! and every upstream. The client of each case connects from an address of its own.
//!
//! Invariant: an assertion about what is right stands in the interop tests of `crates/control`;
//! here nothing is right or wrong but being different from Envoy.

pub mod accepted;
pub mod client;
pub mod compare;
pub mod corpus;
pub mod outcome;
pub mod report;
pub mod run;
pub mod statistics;
pub mod tokens;
pub mod upstream;
pub mod wire;
pub mod world;

use std::fmt;

/// What went wrong with the harness itself, in a sentence.
#[derive(Debug)]
pub struct Failure(pub String);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failure {}

pub type Result<T, E = Failure> = std::result::Result<T, E>;

/// An error with the words of what was tried.
pub fn failed<E: fmt::Display>(what: impl fmt::Display) -> impl FnOnce(E) -> Failure {
    move |error| Failure(format!("{what}: {error}"))
}
