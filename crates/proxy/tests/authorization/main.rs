//! Authorization through real sockets, on stock Envoy and on our proxy: the same bootstrap, the same
//! requests, and answers that must agree.

#![recursion_limit = "256"]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests stop at what is not as expected"
)]

mod ext_authz;
mod planes;
mod rbac;
mod requests;
mod servers;
mod trailers;
