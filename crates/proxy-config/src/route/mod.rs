//! Route tables: which virtual host and which route a request takes, and what the route does.
//!
//! Everything here is pure: a table, a request and a random number give a route; a route and a
//! request give a rewritten path or a redirect. Tables arrive on their own, so they name clusters;
//! whether such a cluster exists is found out per request.

mod action;
pub(crate) mod domains;
mod hash;
pub(crate) mod index;
mod matcher;
mod retry;
mod rewrite;
mod strings;
mod table;

pub use action::{
    ClusterName, ClusterTarget, Decorator, DirectResponse, Forward, GrpcTimeout, HostRewrite,
    MaxStreamDuration, Mirror, PathRewrite, Redirect, RedirectPath, RegexSubstitution, RouteAction,
    SchemeRedirect, WeightedCluster, WeightedClusters,
};
pub use hash::{HashCookie, HashMethod, HashPolicy};
pub use matcher::{
    Fraction, HeaderMatcher, HeaderTest, PathMatcher, QueryMatcher, RouteMatcher, matched_path,
    query_value,
};
pub use retry::{RetryOn, RetryPolicy};
pub use rewrite::without_query;
pub use strings::{StringMatcher, StringTest};
pub use table::{RequireTls, Route, RouteStat, RouteTable, VirtualHost};

#[cfg(test)]
mod tests;
