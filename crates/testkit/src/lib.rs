//! Real sockets, echo servers, a runner for stock Envoy and expectation helpers for tests.

pub mod tools;
