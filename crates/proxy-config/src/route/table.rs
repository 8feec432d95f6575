//! The route table, its virtual hosts, and the search in them.

use super::domains::DomainIndex;
use super::index::RouteIndex;
use super::matcher::matched_path;
use super::{Decorator, RetryPolicy, RouteAction, RouteMatcher};
use crate::compile::Around;
use crate::{HeaderOps, Metadata, RequestView, RouteFilters};
use std::sync::{Arc, OnceLock};

/// One route table (`envoy.config.route.v3.RouteConfiguration`).
#[derive(Clone, Debug)]
pub struct RouteTable {
    pub name: Arc<str>,
    pub virtual_hosts: Vec<Arc<VirtualHost>>,
    pub headers: HeaderOps,
    /// Apply table, then virtual host, then route mutations, instead of the other way round.
    pub most_specific_header_mutations_wins: bool,
    pub ignore_port_in_host_matching: bool,
    /// Match paths without their `;parameters`.
    pub ignore_path_parameters: bool,
    pub metadata: Option<Arc<Metadata>>,
    pub(crate) domains: DomainIndex,
    /// Of a table whose virtual hosts come by themselves.
    pub(crate) around: Option<Arc<Around>>,
}

impl RouteTable {
    /// The virtual host for an `:authority`: exact domain, then the longest `*suffix`, then the
    /// longest `prefix*`, then `*` (Envoy's order). Case does not matter.
    pub fn virtual_host(&self, authority: &[u8]) -> Option<&Arc<VirtualHost>> {
        let index = self
            .domains
            .find(authority, self.ignore_port_in_host_matching)?;
        self.virtual_hosts.get(index)
    }
}

/// One virtual host.
#[derive(Clone, Debug)]
pub struct VirtualHost {
    pub name: Arc<str>,
    pub domains: Vec<Box<str>>,
    pub routes: Vec<Arc<Route>>,
    pub headers: HeaderOps,
    /// Send `x-envoy-attempt-count` to the upstream.
    pub include_request_attempt_count: bool,
    /// Send it back to the client.
    pub include_attempt_count_in_response: bool,
    pub require_tls: RequireTls,
    pub metadata: Option<Arc<Metadata>>,
    pub(crate) ignore_path_parameters: bool,
    pub(crate) index: RouteIndex,
}

impl VirtualHost {
    /// The first route in order that matches. `metadata` is what filters have found out so far;
    /// `random` decides runtime fractions and weights, and must be the same for all decisions about
    /// one request.
    pub fn route(
        &self,
        request: &impl RequestView,
        metadata: Option<&Metadata>,
        random: u64,
    ) -> Option<&Arc<Route>> {
        let path = matched_path(request.path(), self.ignore_path_parameters);
        self.index.find(&self.routes, path, |route| {
            route.matcher.matches(request, metadata, path, random)
        })
    }
}

/// Whether a plaintext request is redirected to `https` before routing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RequireTls {
    #[default]
    None,
    /// Requests of external clients.
    ExternalOnly,
    All,
}

/// Names the counters of a route: `vhost.HOST.route.PREFIX`.
#[derive(Debug)]
pub struct RouteStat {
    pub host: Arc<str>,
    pub prefix: Arc<str>,
    /// Which number the counters have where the route is used; given when that happens first.
    pub number: OnceLock<u32>,
}

impl RouteStat {
    pub(crate) fn new(host: &Arc<str>, prefix: &str) -> Arc<RouteStat> {
        Arc::new(RouteStat {
            host: host.clone(),
            prefix: prefix.into(),
            number: OnceLock::new(),
        })
    }
}

/// One route.
#[derive(Clone, Debug)]
pub struct Route {
    /// May be empty.
    pub name: Arc<str>,
    pub matcher: RouteMatcher,
    pub action: RouteAction,
    pub headers: HeaderOps,
    /// Retries of this route, or of its virtual host.
    pub retry: Option<Arc<RetryPolicy>>,
    /// Of this route, its virtual host and its table.
    pub filters: RouteFilters,
    /// Where its requests are counted apart.
    pub stat: Option<Arc<RouteStat>>,
    pub decorator: Option<Decorator>,
    /// How much of a request body may be kept for a retry; [`None`]: the listener's buffer limit.
    pub request_body_buffer_limit: Option<u64>,
    pub metadata: Option<Arc<Metadata>>,
}
