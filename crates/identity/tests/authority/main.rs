//! The authority: what it issues is verified with openssl and webpki, what it refuses is tried.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests stop at what is not as expected"
)]

mod openssl;
mod plugged;
mod requests;
mod roots;
