//! HTTP filters in front of the router, and what routes say about them.

use crate::ext_authz::{ExtAuthz, ExtAuthzRoute};
use crate::jwt::JwtAuthn;
use crate::rbac::RbacFilter;
use crate::route::{Fraction, HeaderMatcher, StringMatcher};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

/// One HTTP filter.
#[derive(Clone, Debug)]
pub enum HttpFilter {
    /// `envoy.filters.http.jwt_authn`.
    JwtAuthn(Arc<JwtAuthn>),
    /// `envoy.filters.http.fault`.
    Fault(FaultFilter),
    /// `envoy.filters.http.cors`; its policies come with routes.
    Cors,
    /// `envoy.filters.http.rbac`; a chain may have several.
    Rbac(Arc<RbacFilter>),
    /// `envoy.filters.http.ext_authz`; a chain may have several.
    ExtAuthz(Arc<ExtAuthz>),
    Router(RouterFilter),
}

/// `envoy.filters.http.router`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouterFilter {
    /// Do not add `x-envoy-*` headers to requests and responses.
    pub suppress_envoy_headers: bool,
}

/// The fault filter of one connection manager.
#[derive(Clone, Debug, Default)]
pub struct FaultFilter {
    /// What holds where a route says nothing else.
    pub fault: Option<Arc<Fault>>,
    /// Requests with a fault now, of all workers, for [`Fault::max_active`].
    pub active: Arc<AtomicU32>,
}

/// Faults to inject into requests.
#[derive(Clone, Debug)]
pub struct Fault {
    pub delay: Option<(Fraction, Duration)>,
    pub abort: Option<(Fraction, FaultAbort)>,
    /// Only into requests that pass all of these.
    pub headers: Vec<HeaderMatcher>,
    /// Requests with a fault at the same time; [`None`]: any number.
    pub max_active: Option<u32>,
}

/// How a request is aborted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultAbort {
    pub status: AbortStatus,
    /// Instead of the usual body.
    pub body: Option<Box<str>>,
}

/// The status of an aborted request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AbortStatus {
    /// 200 to 599.
    Http(u16),
    /// `grpc-status`, with HTTP status 200.
    Grpc(u32),
}

/// Cross-origin resource sharing. What is [`None`] or empty is asked of the next wider level when
/// the table is compiled.
#[derive(Clone, Debug, Default)]
pub struct CorsPolicy {
    /// Share of requests that the policy holds for; [`None`]: all.
    pub enabled: Option<Fraction>,
    pub origins: Option<Origins>,
    /// `access-control-allow-methods`; `*` answers what was asked for.
    pub allow_methods: Box<str>,
    /// `access-control-allow-headers`; `*` answers what was asked for.
    pub allow_headers: Box<str>,
    /// `access-control-expose-headers`.
    pub expose_headers: Box<str>,
    /// `access-control-max-age`, seconds.
    pub max_age: Box<str>,
    pub allow_credentials: Option<bool>,
    pub allow_private_network: Option<bool>,
    /// A preflight from an origin that is not allowed goes to the upstream; default true.
    pub forward_unmatched_preflights: Option<bool>,
}

/// The origins that are allowed.
#[derive(Clone, Debug)]
pub enum Origins {
    Any,
    Matching(Vec<StringMatcher>),
}

impl CorsPolicy {
    /// Whether an `origin` is allowed.
    pub fn allows(&self, origin: &[u8]) -> bool {
        match &self.origins {
            None => false,
            Some(Origins::Any) => true,
            Some(Origins::Matching(origins)) => origins.iter().any(|o| o.matches(origin)),
        }
    }

    /// Fills what this policy does not say from that of a wider level (Envoy asks level by level,
    /// `CorsFilter::allowOrigins` and its neighbours; only `enabled` is the narrowest level's alone).
    pub(crate) fn or(mut self, wider: &CorsPolicy) -> CorsPolicy {
        let fill = |own: &mut Box<str>, wider: &str| {
            if own.is_empty() {
                *own = wider.into();
            }
        };
        fill(&mut self.allow_methods, &wider.allow_methods);
        fill(&mut self.allow_headers, &wider.allow_headers);
        fill(&mut self.expose_headers, &wider.expose_headers);
        fill(&mut self.max_age, &wider.max_age);
        self.origins = self.origins.or_else(|| wider.origins.clone());
        self.allow_credentials = self.allow_credentials.or(wider.allow_credentials);
        self.allow_private_network = self.allow_private_network.or(wider.allow_private_network);
        self.forward_unmatched_preflights = self
            .forward_unmatched_preflights
            .or(wider.forward_unmatched_preflights);
        self
    }
}

/// What a route, or what stands around it, says about one filter.
#[derive(Clone, Debug, Default)]
pub enum PerRoute<T> {
    /// Nothing.
    #[default]
    Unsaid,
    /// The filter does nothing here.
    Off,
    Use(Arc<T>),
}

impl<T> PerRoute<T> {
    /// The configuration that holds, when the filter has `own`.
    pub fn over<'a>(&'a self, own: Option<&'a T>) -> Option<&'a T> {
        match self {
            PerRoute::Unsaid => own,
            PerRoute::Off => None,
            PerRoute::Use(config) => Some(config),
        }
    }

    pub(crate) fn is_said(&self) -> bool {
        !matches!(self, PerRoute::Unsaid)
    }
}

/// What a route says about filters, its virtual host and table included.
#[derive(Clone, Debug, Default)]
pub struct RouteFilters {
    pub fault: PerRoute<Fault>,
    pub cors: PerRoute<CorsPolicy>,
    pub rbac: PerRoute<RbacFilter>,
    pub ext_authz: PerRoute<ExtAuthzRoute>,
}
