//! What of a request decides which endpoint it goes to, where a cluster hashes.

use super::RegexSubstitution;
use std::time::Duration;

/// One of a route's hash policies. The hashes of several are combined.
#[derive(Clone, Debug)]
pub struct HashPolicy {
    pub method: HashMethod,
    /// If this one gives a hash, those after it do not count.
    pub terminal: bool,
}

/// What is hashed.
#[derive(Clone, Debug)]
pub enum HashMethod {
    /// All values of this (lower-case) request header, in order of their bytes.
    Header {
        name: Box<str>,
        rewrite: Option<RegexSubstitution>,
    },
    Cookie(HashCookie),
    SourceIp,
    /// The first value of a query parameter.
    QueryParameter(Box<str>),
}

/// A cookie, which is made for a client that has none if it has a time to live.
#[derive(Clone, Debug)]
pub struct HashCookie {
    pub name: Box<str>,
    /// Zero makes a cookie for the session.
    pub ttl: Option<Duration>,
    /// What follows name and value in `set-cookie`, made when the route is compiled.
    pub suffix: Box<str>,
}
