//! The authority: what it issues is verified with openssl and webpki, what it refuses is tried.

mod openssl;
mod plugged;
mod requests;
mod roots;
