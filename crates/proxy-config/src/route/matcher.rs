//! What a request must be for a route (`envoy.config.route.v3.RouteMatch`).

use super::StringMatcher;
use crate::RequestView;
use regex::bytes::Regex;

/// All conditions of one route; all must hold.
#[derive(Clone, Debug)]
pub struct RouteMatcher {
    pub path: PathMatcher,
    pub case_sensitive: bool,
    pub headers: Vec<HeaderMatcher>,
    pub query: Vec<QueryMatcher>,
    /// Only gRPC requests (`content-type: application/grpc`).
    pub grpc: bool,
    pub runtime_fraction: Option<Fraction>,
}

/// The condition on the path, which never includes the query.
#[derive(Clone, Debug)]
pub enum PathMatcher {
    Prefix(Box<str>),
    Exact(Box<str>),
    /// Matches the whole path.
    Regex(Regex),
    /// The path itself, or below it: `/api` takes `/api` and `/api/x`, not `/apix`.
    SeparatedPrefix(Box<str>),
    /// The CONNECT method.
    Connect,
}

/// A share of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fraction {
    pub numerator: u32,
    /// 100, 10,000 or 1,000,000.
    pub denominator: u32,
}

impl Fraction {
    /// Whether the request with this random number is in.
    pub fn includes(self, random: u64) -> bool {
        random % u64::from(self.denominator.max(1)) < u64::from(self.numerator)
    }
}

/// The condition on one header or pseudo header.
#[derive(Clone, Debug)]
pub struct HeaderMatcher {
    /// Lower case.
    pub name: Box<str>,
    pub test: HeaderTest,
    pub invert: bool,
    pub treat_missing_as_empty: bool,
}

/// The kind of test.
#[derive(Clone, Debug)]
pub enum HeaderTest {
    Present(bool),
    String(StringMatcher),
    /// Start inclusive, end exclusive.
    Range(std::ops::Range<i64>),
}

/// The condition on one query parameter.
#[derive(Clone, Debug)]
pub struct QueryMatcher {
    pub name: Box<str>,
    /// [`None`]: it must be present.
    pub test: Option<StringMatcher>,
    /// With no test: whether it must be present or absent.
    pub present: bool,
}

impl RouteMatcher {
    /// Whether all conditions hold.
    pub fn matches(&self, request: &impl RequestView, random: u64) -> bool {
        let _ = (request, random);
        false
    }
}
