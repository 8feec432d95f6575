//! Counters, gauges and latency histograms of the data plane, with Envoy's names.
//!
//! Each worker owns one page per scope it has used (a cluster, an HTTP connection manager's
//! prefix, a listener, an endpoint); only that worker writes it, with plain relaxed stores. The
//! reader (admin, on the main thread) sums the pages of all workers. This module renders no text.
//!
//! Invariant: a page exists only for a scope that has seen traffic in that worker, so memory does
//! not grow with the number of clusters known. A write is never a read-modify-write instruction:
//! each page has a single writer.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

/// Whether a value only grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
}

macro_rules! stat_set {
    ($(#[$meta:meta])* $name:ident { $($stat:ident $kind:ident $text:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum $name { $($stat),* }
        impl Stat for $name {
            const ALL: &'static [(&'static str, Kind)] = &[$(($text, Kind::$kind)),*];
            fn index(self) -> usize { self as usize }
        }
    };
}

/// A fixed set of values that live together on one page.
pub trait Stat: Copy {
    /// Name and kind of each value, in the order of the indexes.
    const ALL: &'static [(&'static str, Kind)];
    fn index(self) -> usize;
}

stat_set! {
    /// `cluster.<name>.*`
    ClusterStat {
        UpstreamCxTotal Counter "upstream_cx_total",
        UpstreamCxActive Gauge "upstream_cx_active",
        UpstreamCxHttp1Total Counter "upstream_cx_http1_total",
        UpstreamCxHttp2Total Counter "upstream_cx_http2_total",
        UpstreamCxConnectFail Counter "upstream_cx_connect_fail",
        UpstreamCxConnectTimeout Counter "upstream_cx_connect_timeout",
        UpstreamCxOverflow Counter "upstream_cx_overflow",
        UpstreamCxPoolOverflow Counter "upstream_cx_pool_overflow",
        UpstreamCxDestroy Counter "upstream_cx_destroy",
        UpstreamCxDestroyRemoteWithActiveRq Counter "upstream_cx_destroy_remote_with_active_rq",
        UpstreamCxIdleTimeout Counter "upstream_cx_idle_timeout",
        UpstreamCxMaxRequests Counter "upstream_cx_max_requests",
        UpstreamCxMaxDuration Counter "upstream_cx_max_duration_reached",
        UpstreamHttp2KeepaliveTimeout Counter "http2.keepalive_timeout",
        UpstreamCxNoneHealthy Counter "upstream_cx_none_healthy",
        UpstreamCxProtocolError Counter "upstream_cx_protocol_error",
        UpstreamContextSecretsNotReady Counter "client_ssl_socket_factory.upstream_context_secrets_not_ready",
        SslHandshake Counter "ssl.handshake",
        SslConnectionError Counter "ssl.connection_error",
        SslFailVerifyError Counter "ssl.fail_verify_error",
        SslFailVerifySan Counter "ssl.fail_verify_san",
        UpstreamCxRxBytes Counter "upstream_cx_rx_bytes_total",
        UpstreamCxTxBytes Counter "upstream_cx_tx_bytes_total",
        UpstreamRqTotal Counter "upstream_rq_total",
        UpstreamRqActive Gauge "upstream_rq_active",
        UpstreamRqCompleted Counter "upstream_rq_completed",
        UpstreamRqPendingTotal Counter "upstream_rq_pending_total",
        UpstreamRqPendingActive Gauge "upstream_rq_pending_active",
        UpstreamRqPendingOverflow Counter "upstream_rq_pending_overflow",
        UpstreamRqPendingFailureEject Counter "upstream_rq_pending_failure_eject",
        UpstreamRqCancelled Counter "upstream_rq_cancelled",
        UpstreamRqTimeout Counter "upstream_rq_timeout",
        UpstreamRqPerTryTimeout Counter "upstream_rq_per_try_timeout",
        UpstreamRqRxReset Counter "upstream_rq_rx_reset",
        UpstreamRqTxReset Counter "upstream_rq_tx_reset",
        UpstreamRqRetry Counter "upstream_rq_retry",
        UpstreamRqRetrySuccess Counter "upstream_rq_retry_success",
        UpstreamRqRetryOverflow Counter "upstream_rq_retry_overflow",
        UpstreamRqRetryLimitExceeded Counter "upstream_rq_retry_limit_exceeded",
        UpstreamRq1xx Counter "upstream_rq_1xx",
        UpstreamRq2xx Counter "upstream_rq_2xx",
        UpstreamRq3xx Counter "upstream_rq_3xx",
        UpstreamRq4xx Counter "upstream_rq_4xx",
        UpstreamRq5xx Counter "upstream_rq_5xx",
        UpstreamRq200 Counter "upstream_rq_200",
        UpstreamRq404 Counter "upstream_rq_404",
        UpstreamRq500 Counter "upstream_rq_500",
        UpstreamRq502 Counter "upstream_rq_502",
        UpstreamRq503 Counter "upstream_rq_503",
        UpstreamRq504 Counter "upstream_rq_504",
        LbHealthyPanic Counter "lb_healthy_panic",
        LbLocalClusterNotOk Counter "lb_local_cluster_not_ok",
        LbRecalculateZoneStructures Counter "lb_recalculate_zone_structures",
        LbZoneClusterTooSmall Counter "lb_zone_cluster_too_small",
        LbZoneNoCapacityLeft Counter "lb_zone_no_capacity_left",
        LbZoneRoutingAllDirectly Counter "lb_zone_routing_all_directly",
        LbZoneRoutingCrossZone Counter "lb_zone_routing_cross_zone",
        LbZoneRoutingSampled Counter "lb_zone_routing_sampled",
    }
}

stat_set! {
    /// `vhost.<virtual host>.route.<stat prefix>.*`
    RouteCounter {
        UpstreamRqTotal Counter "upstream_rq_total",
        UpstreamRqCompleted Counter "upstream_rq_completed",
        UpstreamRqTimeout Counter "upstream_rq_timeout",
        UpstreamRqRetry Counter "upstream_rq_retry",
        UpstreamRqRetrySuccess Counter "upstream_rq_retry_success",
        UpstreamRqRetryOverflow Counter "upstream_rq_retry_overflow",
        UpstreamRqRetryLimitExceeded Counter "upstream_rq_retry_limit_exceeded",
        UpstreamRq1xx Counter "upstream_rq_1xx",
        UpstreamRq2xx Counter "upstream_rq_2xx",
        UpstreamRq3xx Counter "upstream_rq_3xx",
        UpstreamRq4xx Counter "upstream_rq_4xx",
        UpstreamRq5xx Counter "upstream_rq_5xx",
        UpstreamRq200 Counter "upstream_rq_200",
        UpstreamRq404 Counter "upstream_rq_404",
        UpstreamRq500 Counter "upstream_rq_500",
        UpstreamRq502 Counter "upstream_rq_502",
        UpstreamRq503 Counter "upstream_rq_503",
        UpstreamRq504 Counter "upstream_rq_504",
    }
}

stat_set! {
    /// `http.<stat prefix>.*`
    HttpStat {
        DownstreamCxTotal Counter "downstream_cx_total",
        DownstreamCxActive Gauge "downstream_cx_active",
        DownstreamCxHttp1Total Counter "downstream_cx_http1_total",
        DownstreamCxHttp1Active Gauge "downstream_cx_http1_active",
        DownstreamCxHttp2Total Counter "downstream_cx_http2_total",
        DownstreamCxHttp2Active Gauge "downstream_cx_http2_active",
        DownstreamCxDestroy Counter "downstream_cx_destroy",
        DownstreamCxIdleTimeout Counter "downstream_cx_idle_timeout",
        DownstreamCxDrainClose Counter "downstream_cx_drain_close",
        DownstreamCxProtocolError Counter "downstream_cx_protocol_error",
        DownstreamCxUpgradesTotal Counter "downstream_cx_upgrades_total",
        DownstreamCxUpgradesActive Gauge "downstream_cx_upgrades_active",
        DownstreamCxRxBytes Counter "downstream_cx_rx_bytes_total",
        DownstreamCxTxBytes Counter "downstream_cx_tx_bytes_total",
        DownstreamRqTotal Counter "downstream_rq_total",
        DownstreamRqHttp1Total Counter "downstream_rq_http1_total",
        DownstreamRqHttp2Total Counter "downstream_rq_http2_total",
        DownstreamRqActive Gauge "downstream_rq_active",
        DownstreamRqCompleted Counter "downstream_rq_completed",
        DownstreamRq1xx Counter "downstream_rq_1xx",
        DownstreamRq2xx Counter "downstream_rq_2xx",
        DownstreamRq3xx Counter "downstream_rq_3xx",
        DownstreamRq4xx Counter "downstream_rq_4xx",
        DownstreamRq5xx Counter "downstream_rq_5xx",
        DownstreamRqIdleTimeout Counter "downstream_rq_idle_timeout",
        DownstreamRqHeaderTimeout Counter "downstream_rq_header_timeout",
        DownstreamRqTimeout Counter "downstream_rq_timeout",
        DownstreamRqMaxDurationReached Counter "downstream_rq_max_duration_reached",
        DownstreamRqRxReset Counter "downstream_rq_rx_reset",
        NoRoute Counter "no_route",
        NoCluster Counter "no_cluster",
        RqDirectResponse Counter "rq_direct_response",
        RqRedirect Counter "rq_redirect",
        RqTotal Counter "rq_total",
        FaultAbortsInjected Counter "fault.aborts_injected",
        FaultDelaysInjected Counter "fault.delays_injected",
        FaultsOverflow Counter "fault.faults_overflow",
        ActiveFaults Gauge "fault.active_faults",
        ExtAuthzOk Counter "ext_authz.ok",
        ExtAuthzDenied Counter "ext_authz.denied",
        ExtAuthzError Counter "ext_authz.error",
        ExtAuthzInvalid Counter "ext_authz.invalid",
        ExtAuthzDisabled Counter "ext_authz.disabled",
        ExtAuthzFailureModeAllowed Counter "ext_authz.failure_mode_allowed",
        CorsOriginValid Counter "cors.origin_valid",
        CorsOriginInvalid Counter "cors.origin_invalid",
        JwtAuthnAllowed Counter "jwt_authn.allowed",
        JwtAuthnDenied Counter "jwt_authn.denied",
        JwtAuthnCorsPreflightBypassed Counter "jwt_authn.cors_preflight_bypassed",
    }
}

stat_set! {
    /// `listener.<address>.*`
    ListenerStat {
        DownstreamCxTotal Counter "downstream_cx_total",
        DownstreamCxActive Gauge "downstream_cx_active",
        DownstreamCxDestroy Counter "downstream_cx_destroy",
        DownstreamCxOverflow Counter "downstream_cx_overflow",
        DownstreamPreCxActive Gauge "downstream_pre_cx_active",
        DownstreamPreCxTimeout Counter "downstream_pre_cx_timeout",
        NoFilterChainMatch Counter "no_filter_chain_match",
        DownstreamCxTransportSocketConnectTimeout Counter "downstream_cx_transport_socket_connect_timeout",
        DownstreamContextSecretsNotReady Counter "server_ssl_socket_factory.downstream_context_secrets_not_ready",
        SslHandshake Counter "ssl.handshake",
        SslSessionReused Counter "ssl.session_reused",
        SslNoCertificate Counter "ssl.no_certificate",
        SslConnectionError Counter "ssl.connection_error",
        SslFailVerifyNoCert Counter "ssl.fail_verify_no_cert",
        SslFailVerifyError Counter "ssl.fail_verify_error",
        SslFailVerifySan Counter "ssl.fail_verify_san",
    }
}

stat_set! {
    /// `tls_inspector.*`
    TlsInspectorStat {
        ClientHelloTooLarge Counter "client_hello_too_large",
        TlsFound Counter "tls_found",
        TlsNotFound Counter "tls_not_found",
        AlpnFound Counter "alpn_found",
        AlpnNotFound Counter "alpn_not_found",
        SniFound Counter "sni_found",
        SniNotFound Counter "sni_not_found",
    }
}

stat_set! {
    /// `http_inspector.*`
    HttpInspectorStat {
        ReadError Counter "read_error",
        Http10Found Counter "http10_found",
        Http11Found Counter "http11_found",
        Http2Found Counter "http2_found",
        HttpNotFound Counter "http_not_found",
    }
}

stat_set! {
    /// `tcp.<stat prefix>.*`
    TcpStat {
        DownstreamCxTotal Counter "downstream_cx_total",
        DownstreamCxNoRoute Counter "downstream_cx_no_route",
        DownstreamCxRxBytes Counter "downstream_cx_rx_bytes_total",
        DownstreamCxTxBytes Counter "downstream_cx_tx_bytes_total",
        IdleTimeout Counter "idle_timeout",
    }
}

stat_set! {
    /// `http.<stat prefix>.rbac.*`, `<stat prefix>.rbac.*`
    RbacStat {
        Allowed Counter "allowed",
        Denied Counter "denied",
    }
}

stat_set! {
    /// The same for rules without effect.
    RbacShadowStat {
        Allowed Counter "shadow_allowed",
        Denied Counter "shadow_denied",
    }
}

stat_set! {
    /// `ext_authz.<stat prefix>.*`
    AuthzStat {
        Total Counter "total",
        Disabled Counter "disabled",
        Ok Counter "ok",
        Denied Counter "denied",
        Error Counter "error",
        FailureModeAllowed Counter "failure_mode_allowed",
        CxClosed Counter "cx_closed",
        Active Gauge "active",
    }
}

stat_set! {
    /// Per endpoint, as Envoy's `/clusters` shows them.
    EndpointStat {
        CxActive Gauge "cx_active",
        CxConnectFail Counter "cx_connect_fail",
        CxTotal Counter "cx_total",
        RqActive Gauge "rq_active",
        RqError Counter "rq_error",
        RqSuccess Counter "rq_success",
        RqTimeout Counter "rq_timeout",
        RqTotal Counter "rq_total",
    }
}

/// Upper bounds of the latency histogram, milliseconds (Envoy's default buckets).
pub const LATENCY_BUCKETS_MS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1000.0,
    2500.0,
    5000.0,
    10000.0,
    30000.0,
    60000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];

/// One worker's values of one scope.
#[derive(Debug)]
pub struct Page {
    values: Box<[AtomicU64]>,
    /// Cumulative only when read; the last slot is above all bounds. Made on first use.
    latency: std::sync::OnceLock<Box<Latency>>,
}

#[derive(Debug)]
struct Latency {
    buckets: [AtomicU64; LATENCY_BUCKETS_MS.len() + 1],
    sum_us: AtomicU64,
}

fn add(slot: &AtomicU64, n: u64) {
    slot.store(slot.load(Relaxed).wrapping_add(n), Relaxed);
}

impl Page {
    fn new(len: usize) -> Page {
        Page {
            values: (0..len).map(|_| AtomicU64::new(0)).collect(),
            latency: std::sync::OnceLock::new(),
        }
    }

    /// A page nobody reads.
    pub(crate) fn unlisted<S: Stat>() -> Page {
        Page::new(S::ALL.len())
    }

    pub fn inc<S: Stat>(&self, stat: S) {
        self.add(stat, 1);
    }

    pub fn add<S: Stat>(&self, stat: S, n: u64) {
        if let Some(slot) = self.values.get(stat.index()) {
            add(slot, n);
        }
    }

    /// Gauges wrap per page and come out right in the sum.
    pub fn dec<S: Stat>(&self, stat: S) {
        self.add(stat, u64::MAX);
    }

    pub fn value<S: Stat>(&self, stat: S) -> u64 {
        self.values
            .get(stat.index())
            .map_or(0, |slot| slot.load(Relaxed))
    }

    /// Records one latency.
    pub fn latency(&self, us: u64) {
        let latency = self.latency.get_or_init(|| {
            Box::new(Latency {
                buckets: [const { AtomicU64::new(0) }; LATENCY_BUCKETS_MS.len() + 1],
                sum_us: AtomicU64::new(0),
            })
        });
        let ms = us as f64 / 1000.0;
        let at = LATENCY_BUCKETS_MS.iter().position(|bound| ms <= *bound);
        add(&latency.buckets[at.unwrap_or(LATENCY_BUCKETS_MS.len())], 1);
        add(&latency.sum_us, us);
    }
}

/// What a page counts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    Cluster(Arc<str>),
    /// The `stat_prefix` of an HTTP connection manager.
    Http(Arc<str>),
    /// The listener's address as in Envoy's stat name (`127.0.0.1_15001`).
    Listener(Arc<str>),
    /// The `stat_prefix` of a TCP proxy.
    Tcp(Arc<str>),
    /// All listener filters that look for TLS.
    TlsInspector,
    /// All listener filters that look for HTTP.
    HttpInspector,
    /// A virtual host and the `stat_prefix` of a route in it.
    Route(Arc<str>, Arc<str>),
    /// One endpoint of a cluster.
    Endpoint(Arc<str>, SocketAddr),
    /// Decisions of authorization filters, and what their names begin with.
    Rbac(RbacOwner, Arc<str>),
    /// The same of rules without effect.
    RbacShadow(RbacOwner, Arc<str>),
    /// The `stat_prefix` of a filter that asks about connections.
    Authz(Arc<str>),
}

/// Whose decisions are counted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RbacOwner {
    /// The `stat_prefix` of an HTTP connection manager.
    Http(Arc<str>),
    /// The `stat_prefix` of a network filter.
    Network(Arc<str>),
}

impl Scope {
    /// Names and kinds of the values of this scope.
    pub fn stats(&self) -> &'static [(&'static str, Kind)] {
        match self {
            Scope::Cluster(_) => ClusterStat::ALL,
            Scope::Http(_) => HttpStat::ALL,
            Scope::Listener(_) => ListenerStat::ALL,
            Scope::Tcp(_) => TcpStat::ALL,
            Scope::TlsInspector => TlsInspectorStat::ALL,
            Scope::HttpInspector => HttpInspectorStat::ALL,
            Scope::Route(..) => RouteCounter::ALL,
            Scope::Endpoint(..) => EndpointStat::ALL,
            Scope::Rbac(..) => RbacStat::ALL,
            Scope::RbacShadow(..) => RbacShadowStat::ALL,
            Scope::Authz(_) => AuthzStat::ALL,
        }
    }
}

/// All pages of all workers. Locked when a page is made or read, never by a request.
#[derive(Default)]
pub struct Registry {
    pages: Mutex<BTreeMap<Scope, Vec<Arc<Page>>>>,
    /// Scopes that have a number.
    numbers: Mutex<BTreeMap<Scope, u32>>,
}

impl Registry {
    /// A new page for one worker.
    pub fn page(&self, scope: Scope) -> Arc<Page> {
        let page = Arc::new(Page::new(scope.stats().len()));
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        pages.entry(scope).or_default().push(page.clone());
        page
    }

    /// A number for a scope, always the same; asked for when a route is used first.
    pub fn number(&self, scope: &Scope) -> u32 {
        let mut numbers = self.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        let next = u32::try_from(numbers.len()).unwrap_or(u32::MAX);
        *numbers.entry(scope.clone()).or_insert(next)
    }

    /// Forgets a cluster that is gone, with its endpoints. Pages still held go on counting unseen.
    pub fn forget_cluster(&self, name: &str) {
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        pages.retain(|scope, _| match scope {
            Scope::Cluster(cluster) | Scope::Endpoint(cluster, _) => &**cluster != name,
            _ => true,
        });
    }

    /// Forgets what one worker has counted of an endpoint that it no longer knows. Others may still
    /// use it.
    pub fn forget_endpoint(&self, cluster: &Arc<str>, address: SocketAddr, page: &Arc<Page>) {
        let scope = Scope::Endpoint(cluster.clone(), address);
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_workers) = pages.get_mut(&scope) {
            of_workers.retain(|other| !Arc::ptr_eq(other, page));
            if of_workers.is_empty() {
                pages.remove(&scope);
            }
        }
    }

    /// HTTP requests being served now.
    pub fn active_requests(&self) -> u64 {
        let pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        let http = pages
            .iter()
            .filter(|(scope, _)| matches!(scope, Scope::Http(_)));
        let sum = http.flat_map(|(_, pages)| pages).fold(0u64, |sum, page| {
            sum.wrapping_add(page.value(HttpStat::DownstreamRqActive))
        });
        if sum > u64::MAX / 2 { 0 } else { sum }
    }

    /// The sums over all workers at this moment.
    pub fn snapshot(&self) -> StatsSnapshot {
        let pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        let scopes = pages
            .iter()
            .map(|(scope, pages)| ScopeSnapshot {
                scope: scope.clone(),
                values: sum_values(scope.stats(), pages),
                latency: sum_latency(pages),
            })
            .collect();
        StatsSnapshot { scopes }
    }
}

fn sum_values(names: &'static [(&'static str, Kind)], pages: &[Arc<Page>]) -> Vec<StatValue> {
    names
        .iter()
        .enumerate()
        .map(|(i, (name, kind))| {
            let sum = pages.iter().fold(0u64, |sum, page| {
                sum.wrapping_add(page.values.get(i).map_or(0, |slot| slot.load(Relaxed)))
            });
            // A gauge read between two workers' writes may be short of one for a moment.
            let value = if *kind == Kind::Gauge && sum > u64::MAX / 2 {
                0
            } else {
                sum
            };
            StatValue {
                name,
                kind: *kind,
                value,
            }
        })
        .collect()
}

fn sum_latency(pages: &[Arc<Page>]) -> Option<LatencySnapshot> {
    let mut out: Option<LatencySnapshot> = None;
    for latency in pages.iter().filter_map(|page| page.latency.get()) {
        let out = out.get_or_insert_with(LatencySnapshot::default);
        for (sum, bucket) in out.buckets.iter_mut().zip(&latency.buckets) {
            *sum += bucket.load(Relaxed);
        }
        out.sum_us += latency.sum_us.load(Relaxed);
    }
    out
}

/// What all workers together have counted.
#[derive(Clone, Debug, Default)]
pub struct StatsSnapshot {
    /// Sorted by scope.
    pub scopes: Vec<ScopeSnapshot>,
}

#[derive(Clone, Debug)]
pub struct ScopeSnapshot {
    pub scope: Scope,
    pub values: Vec<StatValue>,
    /// `cluster.*.upstream_rq_time` or `http.*.downstream_rq_time`, once a request has ended.
    pub latency: Option<LatencySnapshot>,
}

#[derive(Clone, Copy, Debug)]
pub struct StatValue {
    pub name: &'static str,
    pub kind: Kind,
    pub value: u64,
}

/// Requests per bucket (not cumulative); the last one is above all of [`LATENCY_BUCKETS_MS`].
#[derive(Clone, Debug, Default)]
pub struct LatencySnapshot {
    pub buckets: [u64; LATENCY_BUCKETS_MS.len() + 1],
    pub sum_us: u64,
}

impl StatsSnapshot {
    /// One value; 0 if the scope has not been used.
    pub fn value(&self, scope: &Scope, name: &str) -> u64 {
        let at = self.scopes.binary_search_by(|have| have.scope.cmp(scope));
        at.ok()
            .and_then(|at| self.scopes.get(at))
            .and_then(|scope| scope.values.iter().find(|value| value.name == name))
            .map_or(0, |value| value.value)
    }

    /// One value of a cluster.
    pub fn cluster(&self, cluster: &str, name: &str) -> u64 {
        self.value(&Scope::Cluster(cluster.into()), name)
    }
}

/// Counts the class of a response status, and the status itself where it has a counter.
pub fn count_cluster_status(page: &Page, status: u16) {
    use ClusterStat as C;
    page.inc(match status {
        100..=199 => C::UpstreamRq1xx,
        200..=299 => C::UpstreamRq2xx,
        300..=399 => C::UpstreamRq3xx,
        400..=499 => C::UpstreamRq4xx,
        _ => C::UpstreamRq5xx,
    });
    match status {
        200 => page.inc(C::UpstreamRq200),
        404 => page.inc(C::UpstreamRq404),
        500 => page.inc(C::UpstreamRq500),
        502 => page.inc(C::UpstreamRq502),
        503 => page.inc(C::UpstreamRq503),
        504 => page.inc(C::UpstreamRq504),
        _ => {}
    }
    page.inc(C::UpstreamRqCompleted);
}

/// The same for a route that counts apart.
pub fn count_route_status(page: &Page, status: u16) {
    use RouteCounter as R;
    page.inc(match status {
        100..=199 => R::UpstreamRq1xx,
        200..=299 => R::UpstreamRq2xx,
        300..=399 => R::UpstreamRq3xx,
        400..=499 => R::UpstreamRq4xx,
        _ => R::UpstreamRq5xx,
    });
    match status {
        200 => page.inc(R::UpstreamRq200),
        404 => page.inc(R::UpstreamRq404),
        500 => page.inc(R::UpstreamRq500),
        502 => page.inc(R::UpstreamRq502),
        503 => page.inc(R::UpstreamRq503),
        504 => page.inc(R::UpstreamRq504),
        _ => {}
    }
    page.inc(R::UpstreamRqCompleted);
}

/// Counts the class of a response status sent downstream.
pub fn count_http_status(page: &Page, status: u16) {
    use HttpStat as H;
    page.inc(match status {
        0..=199 => H::DownstreamRq1xx,
        200..=299 => H::DownstreamRq2xx,
        300..=399 => H::DownstreamRq3xx,
        400..=499 => H::DownstreamRq4xx,
        _ => H::DownstreamRq5xx,
    });
    page.inc(H::DownstreamRqCompleted);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_all_workers_are_summed_and_a_gauge_may_fall_in_another_worker() {
        let registry = Registry::default();
        let scope = Scope::Cluster("a".into());
        let (one, two) = (registry.page(scope.clone()), registry.page(scope.clone()));
        one.inc(ClusterStat::UpstreamRqTotal);
        two.add(ClusterStat::UpstreamRqTotal, 2);
        one.inc(ClusterStat::UpstreamCxActive);
        two.dec(ClusterStat::UpstreamCxActive);
        one.latency(700);
        two.latency(9_000_000_000);
        let snapshot = registry.snapshot();
        assert_eq!(snapshot.cluster("a", "upstream_rq_total"), 3);
        assert_eq!(snapshot.cluster("a", "upstream_cx_active"), 0);
        let latency = snapshot.scopes[0].latency.clone().unwrap();
        assert_eq!((latency.buckets[1], latency.buckets[19]), (1, 1));
        registry.forget_cluster("a");
        assert!(registry.snapshot().scopes.is_empty());
    }

    #[test]
    fn what_one_worker_forgets_of_an_endpoint_the_others_still_count() {
        let registry = Registry::default();
        let (cluster, address) = (Arc::from("a"), ([127, 0, 0, 1], 80).into());
        let scope = Scope::Endpoint(Arc::clone(&cluster), address);
        let (one, two) = (registry.page(scope.clone()), registry.page(scope.clone()));
        one.inc(EndpointStat::CxActive);
        two.inc(EndpointStat::CxActive);
        registry.forget_endpoint(&cluster, address, &one);
        assert_eq!(registry.snapshot().value(&scope, "cx_active"), 1);
        registry.forget_endpoint(&cluster, address, &two);
        assert!(registry.snapshot().scopes.is_empty());
    }
}
