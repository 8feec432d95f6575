//! Asking a server who may come in (`envoy.filters.http.ext_authz`, `envoy.filters.network.ext_authz`),
//! as configuration.

use crate::HeaderTemplate;
use crate::rbac::MetadataMatcher;
use crate::route::{Fraction, StringMatcher};
use std::sync::Arc;
use std::time::Duration;

/// One filter.
#[derive(Clone, Debug)]
pub struct ExtAuthz {
    pub service: AuthzService,
    pub cluster: Arc<str>,
    /// For one answer; [`None`]: without limit.
    pub timeout: Option<Duration>,
    /// Requests pass when there is no answer.
    pub failure_mode_allow: bool,
    /// And are marked with `x-envoy-auth-failure-mode-allowed: true`.
    pub failure_mode_header: bool,
    /// When there is no answer and requests do not pass.
    pub status_on_error: u16,
    pub body: Option<AuthzBody>,
    /// The share of requests that are asked about.
    pub enabled: Option<Fraction>,
    /// Only these are.
    pub enabled_metadata: Option<MetadataMatcher>,
    /// Namespaces of dynamic metadata that the server gets.
    pub metadata_namespaces: Vec<Box<str>>,
    pub peer_certificate: bool,
    pub tls_session: bool,
    /// Request headers that the server gets; [`None`]: for gRPC all, for HTTP a few.
    pub allowed_headers: Option<Vec<StringMatcher>>,
    pub disallowed_headers: Vec<StringMatcher>,
    /// The route is chosen anew when an answer that allows has changed the request.
    pub clear_route_cache: bool,
    /// What the server says becomes dynamic metadata.
    pub takes_metadata: bool,
    /// Longer bodies of refusals are cut; [`None`]: not.
    pub max_denied_body: Option<usize>,
}

/// How the server is asked.
#[derive(Clone, Debug)]
pub enum AuthzService {
    Grpc {
        /// The `:authority` of the calls.
        authority: Box<str>,
        /// Headers of the calls.
        metadata: Vec<(Box<str>, Box<str>)>,
    },
    Http(HttpAuthz),
}

/// A server that is asked with a request like the one in question.
#[derive(Clone, Debug, Default)]
pub struct HttpAuthz {
    pub path_prefix: Box<str>,
    pub path_override: Box<str>,
    pub headers_to_add: Vec<(Box<str>, HeaderTemplate)>,
    /// Headers of an answer that allows, which the request gets.
    pub to_upstream: Vec<StringMatcher>,
    pub to_upstream_appended: Vec<StringMatcher>,
    /// Headers of an answer that allows, which the response gets.
    pub to_client: Vec<StringMatcher>,
    /// Headers of a refusal that the client gets; empty: nearly all.
    pub to_client_denied: Vec<StringMatcher>,
}

/// How much of a request's body the server gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuthzBody {
    pub max_bytes: usize,
    /// A longer body is cut; else it is refused with 413.
    pub allow_partial: bool,
    pub as_bytes: bool,
}

/// What a route says about the filter.
#[derive(Clone, Debug, Default)]
pub struct ExtAuthzRoute {
    /// For the server, by name.
    pub context: Vec<(Box<str>, Box<str>)>,
    pub without_body: bool,
}

/// The filter for connections: asked before anything is opened or sent for one.
#[derive(Clone, Debug)]
pub struct NetworkAuthz {
    pub stat_prefix: Arc<str>,
    /// The `:authority` of the calls.
    pub authority: Box<str>,
    /// Headers of the calls.
    pub call_headers: Vec<(Box<str>, Box<str>)>,
    pub cluster: Arc<str>,
    /// For one answer; [`None`]: without limit.
    pub timeout: Option<Duration>,
    /// Connections pass when there is no answer.
    pub failure_mode_allow: bool,
    /// Only these are asked about.
    pub enabled_metadata: Option<MetadataMatcher>,
    /// Namespaces of dynamic metadata that the server gets.
    pub metadata_namespaces: Vec<Box<str>>,
    pub peer_certificate: bool,
    pub tls_session: bool,
}
