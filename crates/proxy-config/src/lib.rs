//! Envoy v3 resources compiled to the immutable runtime configuration of the proxy.
//!
//! Bytes of a listener, cluster, route table or endpoint set go in; a value that the workers share
//! by `Arc` and only read comes out, or an error that names the field. What it is not: it opens no
//! socket, resolves no name, and holds no counters.
//!
//! | file | holds |
//! |---|---|
//! | `listener.rs`, `chain_match.rs`, `http.rs`, `http_filter.rs`, `cluster.rs`, `outlier.rs`, `endpoint.rs`, `route/` | the runtime types, and the pure decisions on them (filter-chain match, route match, rewrite, redirect) |
//! | `rbac/` | who may do what: policies as a decision |
//! | `compile/` | Envoy's messages to those types, one file per message |
//! | `jwt/` | tokens and their keys |
//! | `path.rs`, `re2.rs` | path normalisation, RE2 syntax on the `regex` crate |
//!
//! Invariant: every field of every message is *supported*, *accepted without effect and reported*
//! ([`Compiled::unsupported`]), or *rejected with its path* ([`ConfigError`]). The compile functions
//! destructure each message without `..`, so a new proto field does not compile until it is placed.
//! A field that guards security is never in the middle state.

mod access_log;
mod address;
mod chain_match;
mod cluster;
pub mod compile;
mod endpoint;
mod error;
mod ext_authz;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod headers;
mod http;
mod http_filter;
pub mod jwt;
mod listener;
mod outlier;
pub mod path;
pub mod rbac;
pub mod re2;
mod request;
pub mod route;
mod tls;

pub use access_log::{AccessLog, AccessLogFormat, AccessLogSink, Comparison, LogFilter};
pub use address::{Address, CidrRange, HostPort};
pub use chain_match::{ChainIndex, ConnectionFacts};
pub use cluster::{
    Cluster, ClusterKind, DnsFamily, HashKey, HttpProtocol, LbPolicy, LocalityLb, Priority,
    RetryBudget, SlowStart, TcpKeepalive, Thresholds, UpstreamHttp, ZoneAware,
};
pub use endpoint::{DnsHosts, Endpoint, EndpointSet, HealthStatus, Locality, LocalityEndpoints};
pub use error::{Compiled, ConfigError, Notice};
pub use ext_authz::{AuthzBody, AuthzService, ExtAuthz, ExtAuthzRoute, HttpAuthz, NetworkAuthz};
pub use headers::{AppendAction, HeaderMutation, HeaderMutations, HeaderOps, HeaderTemplate};
pub use http::{
    ClientCertDetails, Codec, EscapedSlashes, ForwardClientCert, Http1Options, Http2Options,
    HttpConnectionManager, RouteSource, ServerHeader, StripPort, Timeouts, Underscores, Upgrades,
};
pub use http_filter::{
    AbortStatus, CorsPolicy, Fault, FaultAbort, FaultFilter, HttpFilter, Origins, PerRoute,
    RouteFilters, RouterFilter,
};
pub use listener::{
    FilterChain, FilterChainMatch, Guard, Listener, ListenerFilter, ListenerFilterKind,
    ListenerFilters, Network, PortPredicate, ProxyProtocol, SourceType, TcpCluster, TcpProxy,
    TlsInspector, TrafficDirection, Tunnel,
};
pub use outlier::{Consecutive, ErrorMatcher, FailurePercentage, OutlierDetection, SuccessRate};
pub use request::RequestView;
pub use tls::{
    Certificate, CertificateSource, CipherSuite, CommonTls, Curve, DataSource, DownstreamTls,
    ProxyVersion, SanKind, SanMatcher, Secret, SecretKind, SecretRef, SecretSource, SessionTickets,
    TlsVersion, Transport, UpstreamTls, UpstreamTransport, Validation, ValidationSource,
};

/// Free-form metadata of a resource (`filter_metadata`), as JSON by namespace.
pub type Metadata = serde_json::Map<String, serde_json::Value>;
