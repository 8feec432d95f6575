//! A cluster: a named group of endpoints, and how to talk to them.

use crate::{
    DnsHosts, EndpointSet, ErrorMatcher, Http1Options, Http2Options, Metadata, OutlierDetection,
    UpstreamTls, UpstreamTransport,
};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// One cluster (`envoy.config.cluster.v3.Cluster`).
#[derive(Clone, Debug)]
pub struct Cluster {
    pub name: Arc<str>,
    /// Name in statistics; the same as `name` unless `alt_stat_name` is set.
    pub stat_name: Arc<str>,
    pub kind: ClusterKind,
    pub lb: LbPolicy,
    pub locality_lb: LocalityLb,
    /// Below this share of healthy endpoints in a priority all of them get traffic (0..=100, default 50).
    pub panic_threshold: f64,
    pub connect_timeout: Duration,
    /// Limits for requests of default priority.
    pub thresholds: Thresholds,
    /// Limits for requests of high priority.
    pub high_thresholds: Thresholds,
    pub http: UpstreamHttp,
    pub outlier: Option<Arc<OutlierDetection>>,
    pub transport: UpstreamTransport,
    /// Instead of `transport` for endpoints whose `envoy.transport_socket_match` metadata contains
    /// all of this; the first that fits.
    pub transport_matches: Vec<(Metadata, UpstreamTransport)>,
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// Where connections come from; [`None`]: the system chooses. Port 0 is any.
    pub source_address: Option<SocketAddr>,
    pub metadata: Option<Arc<Metadata>>,
}

impl Cluster {
    /// The limits for one priority.
    pub fn thresholds(&self, priority: Priority) -> &Thresholds {
        match priority {
            Priority::Default => &self.thresholds,
            Priority::High => &self.high_thresholds,
        }
    }

    /// What carries the bytes to an endpoint with this metadata: 0 is `transport`, others are one
    /// more than their place in `transport_matches`.
    pub fn transport_index(&self, endpoint: Option<&Metadata>) -> usize {
        let labels = endpoint.and_then(|all| all.get("envoy.transport_socket_match"));
        let fits = |wanted: &Metadata| {
            let has = |(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value);
            wanted.iter().all(has)
        };
        let found = self
            .transport_matches
            .iter()
            .position(|(wanted, _)| fits(wanted));
        found.map_or(0, |at| at + 1)
    }

    /// Every TLS context of the cluster.
    pub fn tls(&self) -> impl Iterator<Item = &Arc<UpstreamTls>> {
        let matched = self
            .transport_matches
            .iter()
            .map(|(_, transport)| transport);
        matched
            .chain([&self.transport])
            .filter_map(|transport| transport.tls.as_ref())
    }
}

/// Where endpoints come from.
#[derive(Clone, Debug)]
pub enum ClusterKind {
    /// Discovered over EDS under this name.
    Eds {
        service_name: Arc<str>,
    },
    Static(Arc<EndpointSet>),
    /// Every address of every name is an endpoint.
    StrictDns {
        hosts: DnsHosts,
        family: DnsFamily,
        refresh: Duration,
    },
    /// The first address of the one name, for new connections.
    LogicalDns {
        hosts: DnsHosts,
        family: DnsFamily,
        refresh: Duration,
    },
    /// The address that the host of the request leads to (Envoy's dynamic forward proxy).
    ByRequest {
        family: DnsFamily,
        /// For how long an address is used.
        refresh: Duration,
    },
    /// The address the connection was going to.
    OriginalDst {
        /// Take the address from this request header (`x-envoy-original-dst-host` by default).
        header: Option<Box<str>>,
        port_override: Option<u16>,
    },
}

/// Which address families a DNS cluster uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DnsFamily {
    /// IPv6 when there is any, else IPv4.
    Auto,
    V4Only,
    V6Only,
    /// IPv4 when there is any, else IPv6.
    V4Preferred,
    All,
}

/// How an endpoint is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LbPolicy {
    RoundRobin {
        slow_start: Option<SlowStart>,
    },
    /// The least busy of `choices` endpoints taken at random. Where weights differ, endpoints take
    /// turns by weight, divided by the active requests to the power of `bias`.
    LeastRequest {
        choices: u32,
        bias: f64,
        slow_start: Option<SlowStart>,
    },
    Random,
    /// The endpoint whose place on a ring follows the request's hash.
    RingHash {
        minimum_size: u64,
        maximum_size: u64,
        key: HashKey,
    },
    /// The endpoint that a table of this (prime) size has for the request's hash.
    Maglev {
        table_size: u32,
        key: HashKey,
    },
    /// The cluster kind decides (original destination).
    ClusterProvided,
}

impl LbPolicy {
    /// How new endpoints begin.
    pub fn slow_start(&self) -> Option<SlowStart> {
        match self {
            LbPolicy::RoundRobin { slow_start } | LbPolicy::LeastRequest { slow_start, .. } => {
                *slow_start
            }
            _ => None,
        }
    }

    /// Whether equal requests go to the same endpoint.
    pub fn hashes(&self) -> bool {
        matches!(self, LbPolicy::RingHash { .. } | LbPolicy::Maglev { .. })
    }
}

/// New endpoints get their full share little by little.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlowStart {
    pub window: Duration,
    /// 1: the share grows in proportion to time; above, faster at first.
    pub aggression: f64,
    /// Of the full weight, at least (0..=1).
    pub minimum: f64,
}

impl SlowStart {
    /// The part of its weight that an endpoint of this age gets (Envoy,
    /// `EdfLoadBalancerBase::applySlowStartFactor`).
    pub fn factor(&self, age: Duration) -> f64 {
        if age >= self.window {
            return 1.0;
        }
        let passed = age.max(Duration::from_millis(1)).as_secs_f64() / self.window.as_secs_f64();
        passed.powf(1.0 / self.aggression).max(self.minimum)
    }
}

/// What of an endpoint is hashed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HashKey {
    #[default]
    Address,
    Hostname,
}

/// How traffic is spread over localities of one priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LocalityLb {
    /// First choose a locality by its weight.
    Weighted,
    /// All endpoints of a priority are one set, save that those of the proxy's own zone are preferred
    /// where the bootstrap names a local cluster.
    Zones(ZoneAware),
}

/// When and how the proxy's own zone is preferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZoneAware {
    /// Percent of the requests that zones are looked at for (0..=100).
    pub routed: u32,
    /// Not where there are fewer healthy endpoints.
    pub min_cluster_size: u64,
    /// Requests fail rather than go to endpoints that are not healthy.
    pub fail_on_panic: bool,
    /// Zones are compared by the weights of their endpoints, not by their number.
    pub by_weight: bool,
    /// All requests stay in the zone when it has so many healthy endpoints.
    pub force_local: Option<u32>,
}

impl Default for ZoneAware {
    /// Envoy's, which hold where a cluster says nothing about localities.
    fn default() -> Self {
        Self {
            routed: 100,
            min_cluster_size: 6,
            fail_on_panic: false,
            by_weight: false,
            force_local: None,
        }
    }
}

/// Circuit-breaker limits, shared by all workers of the process.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Thresholds {
    pub max_connections: u32,
    pub max_pending_requests: u32,
    pub max_requests: u32,
    pub max_retries: u32,
    /// Replaces `max_retries` when set.
    pub retry_budget: Option<RetryBudget>,
    /// Show in statistics how much is left of each limit.
    pub track_remaining: bool,
}

impl Default for Thresholds {
    /// Envoy's defaults (`circuit_breaker.proto`).
    fn default() -> Self {
        Self {
            max_connections: 1024,
            max_pending_requests: 1024,
            max_requests: 1024,
            max_retries: 3,
            retry_budget: None,
            track_remaining: false,
        }
    }
}

/// Retries as a share of active requests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryBudget {
    /// 0..=100.
    pub percent: f64,
    pub min_concurrency: u32,
}

/// Routing priority of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Priority {
    #[default]
    Default,
    High,
}

/// HTTP towards the endpoints.
#[derive(Clone, Debug)]
pub struct UpstreamHttp {
    pub protocol: HttpProtocol,
    pub http1: Http1Options,
    pub http2: Http2Options,
    /// Close a pooled connection after this time without requests (default 1 h).
    pub idle_timeout: Option<Duration>,
    pub max_connection_duration: Option<Duration>,
    pub max_requests_per_connection: Option<u32>,
    pub max_headers_count: u32,
    /// Response heads above this many bytes end the request with 502.
    pub max_response_headers_bytes: u32,
    pub max_stream_duration: Option<Duration>,
    /// What outlier detection takes for an error; [`None`]: statuses from 500.
    pub error_matcher: Option<Arc<ErrorMatcher>>,
    /// Take the TLS server name from the request.
    pub auto_sni: bool,
    /// The certificate must be for the name in the request.
    pub auto_san_validation: bool,
    /// The header to take the name from; [`None`]: the authority.
    pub sni_header: Option<Box<str>>,
}

/// Which HTTP version to speak to endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpProtocol {
    Http1,
    Http2,
    /// The version of the downstream request.
    UseDownstream,
    /// What ALPN says; HTTP/1.1 without TLS.
    Auto,
}

/// TCP keepalive probes; [`None`] leaves the system's value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpKeepalive {
    pub probes: Option<u32>,
    pub time: Option<Duration>,
    pub interval: Option<Duration>,
}
