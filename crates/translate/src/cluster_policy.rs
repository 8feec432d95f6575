//! The groups of a traffic policy as parts of a cluster: limits, balancing, outlier detection.

use lateen_api::destination_rule::{
    ConnectionPoolSettings, ConsistentHashLb, LoadBalancerSettings, OutlierDetection, RetryBudget,
    SimpleLb, TcpKeepalive,
};

use crate::envoy::{self, cluster, core, matcher, percent, route, upstream_http};
use crate::locality::{self, Balancing};
use crate::policy::Policy;

use cluster::cluster::{DiscoveryType, LbConfig, LbPolicy};
use lateen_model::MeshSettings;

/// Limits that nobody set are this: Istio lifts Envoy's 1024 (fact 34).
const UNLIMITED: u32 = u32::MAX;

/// The size of a hash ring that nobody set (Istio).
const RING_SIZE: u64 = 1024;

/// Connect timeout, keepalive and circuit breakers.
pub fn connection_pool(made: &mut cluster::Cluster, policy: &Policy, mesh: &MeshSettings) {
    let tcp = policy.pool().and_then(|pool| pool.tcp.as_ref());
    let timeout = tcp.and_then(|tcp| tcp.connect_timeout);
    made.connect_timeout = Some(envoy::duration(timeout.unwrap_or(mesh.connect_timeout)));
    made.circuit_breakers = Some(circuit_breakers(
        policy.pool(),
        policy.retry_budget.as_ref(),
    ));
    let keepalive = tcp.and_then(|tcp| tcp.tcp_keepalive.as_ref());
    if let Some(keepalive) = keepalive.or(mesh.tcp_keepalive.as_deref()) {
        made.upstream_connection_options = Some(cluster::UpstreamConnectionOptions {
            tcp_keepalive: Some(tcp_keepalive(keepalive)),
            ..Default::default()
        });
    }
}

fn tcp_keepalive(keepalive: &TcpKeepalive) -> core::TcpKeepalive {
    let seconds = |time: Option<std::time::Duration>| {
        time.and_then(|time| u32::try_from(time.as_secs()).ok())
            .filter(|seconds| *seconds > 0)
            .and_then(envoy::u32_value)
    };
    core::TcpKeepalive {
        keepalive_probes: keepalive
            .probes
            .filter(|probes| *probes > 0)
            .and_then(envoy::u32_value),
        keepalive_time: seconds(keepalive.time),
        keepalive_interval: seconds(keepalive.interval),
    }
}

fn circuit_breakers(
    pool: Option<&ConnectionPoolSettings>,
    budget: Option<&RetryBudget>,
) -> cluster::CircuitBreakers {
    use cluster::circuit_breakers::{Thresholds, thresholds};
    let tcp = pool.and_then(|pool| pool.tcp.as_ref());
    let http = pool.and_then(|pool| pool.http.as_ref());
    // A limit of 0 means "not set" in Istio's API.
    let limit = |value: Option<i32>| envoy::u32_value(number(value).unwrap_or(UNLIMITED));
    cluster::CircuitBreakers {
        thresholds: vec![Thresholds {
            max_connections: limit(tcp.and_then(|tcp| tcp.max_connections)),
            max_pending_requests: limit(http.and_then(|http| http.http1_max_pending_requests)),
            max_requests: limit(http.and_then(|http| http.http2_max_requests)),
            max_retries: limit(http.and_then(|http| http.max_retries)),
            track_remaining: true,
            retry_budget: budget.map(|budget| thresholds::RetryBudget {
                budget_percent: Some(percent(budget.percent.unwrap_or(20.0))),
                budget_interval: budget.budget_interval.map(envoy::duration),
                min_retry_concurrency: envoy::u32_value(
                    budget.min_retry_concurrency.filter(|n| *n > 0).unwrap_or(3),
                ),
            }),
            ..Default::default()
        }],
        ..Default::default()
    }
}

/// A number of Istio's API that counts when it is above zero.
fn number(value: Option<i32>) -> Option<u32> {
    value.and_then(|v| u32::try_from(v).ok()).filter(|v| *v > 0)
}

/// The balancer. A cluster that goes where its client was going has none of ours (fact 33).
/// `self_discovery`: its proxy knows the endpoints of its own service.
pub fn balancer(
    made: &mut cluster::Cluster,
    policy: &Policy,
    mesh: &MeshSettings,
    self_discovery: bool,
) {
    localities(made, locality::balancing(policy, mesh), self_discovery);
    if made.lb_policy == LbPolicy::ClusterProvided as i32 {
        return;
    }
    let settings = policy.load_balancer.as_ref();
    if let Some(hash) = settings.and_then(|lb| lb.consistent_hash.as_ref()) {
        return consistent_hash(made, hash);
    }
    let slow_start = settings.and_then(slow_start);
    match policy.simple_balancer() {
        SimpleLb::Random => made.lb_policy = LbPolicy::Random as i32,
        SimpleLb::Passthrough => original_destination(made),
        SimpleLb::RoundRobin => {
            made.lb_policy = LbPolicy::RoundRobin as i32;
            made.lb_config = slow_start.map(|slow_start| {
                LbConfig::RoundRobinLbConfig(cluster::cluster::RoundRobinLbConfig {
                    slow_start_config: Some(slow_start),
                })
            });
        }
        SimpleLb::LeastRequest | SimpleLb::LeastConn | SimpleLb::Unspecified => {
            made.lb_policy = LbPolicy::LeastRequest as i32;
            made.lb_config = slow_start.map(|slow_start| {
                LbConfig::LeastRequestLbConfig(cluster::cluster::LeastRequestLbConfig {
                    slow_start_config: Some(slow_start),
                    ..Default::default()
                })
            });
        }
    }
}

/// How localities are chosen. A proxy that knows the endpoints of its own service would prefer its
/// zone in every cluster (Envoy's default), so it is told where nobody asked for that.
fn localities(made: &mut cluster::Cluster, balancing: Balancing, self_discovery: bool) {
    use cluster::cluster::common_lb_config::{
        LocalityConfigSpecifier, LocalityWeightedLbConfig, ZoneAwareLbConfig,
    };
    let zones = LocalityConfigSpecifier::ZoneAwareLbConfig;
    let specifier = match balancing {
        Balancing::Weighted => {
            LocalityConfigSpecifier::LocalityWeightedLbConfig(LocalityWeightedLbConfig {})
        }
        Balancing::Zones { min_cluster_size } => zones(ZoneAwareLbConfig {
            min_cluster_size: min_cluster_size
                .map(|value| envoy_types::pb::google::protobuf::UInt64Value { value }),
            ..Default::default()
        }),
        Balancing::Together if self_discovery => zones(ZoneAwareLbConfig {
            routing_enabled: Some(percent(0.0)),
            ..Default::default()
        }),
        Balancing::Together => return,
    };
    common(made).locality_config_specifier = Some(specifier);
}

/// Makes a cluster that goes where the connection was going, whatever endpoints there are.
pub fn original_destination(made: &mut cluster::Cluster) {
    made.cluster_discovery_type = Some(cluster::cluster::ClusterDiscoveryType::Type(
        DiscoveryType::OriginalDst as i32,
    ));
    made.lb_policy = LbPolicy::ClusterProvided as i32;
    made.eds_cluster_config = None;
    made.load_assignment = None;
}

fn consistent_hash(made: &mut cluster::Cluster, hash: &ConsistentHashLb) {
    let size = |value: u64| Some(envoy_types::pb::google::protobuf::UInt64Value { value });
    if let Some(maglev) = &hash.maglev {
        made.lb_policy = LbPolicy::Maglev as i32;
        made.lb_config = maglev.table_size.filter(|n| *n > 0).map(|table_size| {
            LbConfig::MaglevLbConfig(cluster::cluster::MaglevLbConfig {
                table_size: size(table_size),
            })
        });
        return;
    }
    let minimum = match &hash.ring_hash {
        Some(ring) => ring.minimum_ring_size,
        None => hash.minimum_ring_size,
    };
    made.lb_policy = LbPolicy::RingHash as i32;
    made.lb_config = Some(LbConfig::RingHashLbConfig(
        cluster::cluster::RingHashLbConfig {
            minimum_ring_size: size(minimum.filter(|n| *n > 0).unwrap_or(RING_SIZE)),
            ..Default::default()
        },
    ));
}

fn slow_start(lb: &LoadBalancerSettings) -> Option<cluster::cluster::SlowStartConfig> {
    let warmup = lb.warmup.as_ref();
    let window = warmup
        .and_then(|warmup| warmup.duration)
        .or(lb.warmup_duration_secs)?;
    Some(cluster::cluster::SlowStartConfig {
        slow_start_window: Some(envoy::duration(window)),
        aggression: warmup
            .and_then(|warmup| warmup.aggression)
            .map(|aggression| core::RuntimeDouble {
                default_value: aggression,
                // Envoy wants a name, under which nobody changes anything.
                runtime_key: "upstream.slow_start.aggression".to_string(),
            }),
        min_weight_percent: warmup
            .and_then(|warmup| warmup.minimum_percent)
            .map(percent),
    })
}

/// What a proxy speaks to the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamProtocol {
    Http1,
    Http2,
    /// What the client of the proxy spoke: the port did not say, or the policy says so.
    AsDownstream,
}

/// The HTTP options of a cluster; none where HTTP/1.1 with defaults is meant.
pub fn protocol_options(
    protocol: UpstreamProtocol,
    policy: &Policy,
    names: Option<core::UpstreamHttpProtocolOptions>,
) -> Option<upstream_http::HttpProtocolOptions> {
    use upstream_http::http_protocol_options::{
        ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig,
        explicit_http_config::ProtocolConfig,
    };
    let http = policy.pool().and_then(|pool| pool.http.as_ref());
    let use_client = http.and_then(|http| http.use_client_protocol) == Some(true);
    let protocol = match use_client {
        true => UpstreamProtocol::AsDownstream,
        false => protocol,
    };
    let common = common_http_options(policy);
    let outlier_detection = error_statuses(policy.outlier_detection.as_ref());
    let usual = common.is_none() && outlier_detection.is_none() && names.is_none();
    if protocol == UpstreamProtocol::Http1 && usual {
        return None;
    }
    let http2 = core::Http2ProtocolOptions {
        max_concurrent_streams: number(http.and_then(|http| http.max_concurrent_streams))
            .and_then(envoy::u32_value),
        connection_keepalive: http.and_then(|http| http.http2_keep_alive.as_ref()).map(
            |keepalive| core::KeepaliveSettings {
                interval: keepalive.interval.map(envoy::duration),
                timeout: keepalive.timeout.map(envoy::duration),
                ..Default::default()
            },
        ),
        ..Default::default()
    };
    let explicit = |config| {
        UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
            protocol_config: Some(config),
        })
    };
    let options = match protocol {
        UpstreamProtocol::Http1 => {
            explicit(ProtocolConfig::HttpProtocolOptions(Default::default()))
        }
        UpstreamProtocol::Http2 => explicit(ProtocolConfig::Http2ProtocolOptions(http2)),
        UpstreamProtocol::AsDownstream => {
            UpstreamProtocolOptions::UseDownstreamProtocolConfig(UseDownstreamHttpConfig {
                http_protocol_options: Some(Default::default()),
                http2_protocol_options: Some(http2),
                ..Default::default()
            })
        }
    };
    Some(upstream_http::HttpProtocolOptions {
        common_http_protocol_options: common,
        upstream_http_protocol_options: names,
        outlier_detection,
        upstream_protocol_options: Some(options),
        ..Default::default()
    })
}

fn common_http_options(policy: &Policy) -> Option<core::HttpProtocolOptions> {
    let pool = policy.pool()?;
    let (tcp, http) = (pool.tcp.as_ref(), pool.http.as_ref());
    let idle = http
        .and_then(|http| http.idle_timeout)
        .or_else(|| tcp.and_then(|tcp| tcp.idle_timeout));
    let options = core::HttpProtocolOptions {
        idle_timeout: idle.map(envoy::duration),
        max_connection_duration: tcp
            .and_then(|tcp| tcp.max_connection_duration)
            .map(envoy::duration),
        max_requests_per_connection: number(http.and_then(|http| http.max_requests_per_connection))
            .and_then(envoy::u32_value),
        ..Default::default()
    };
    (options != core::HttpProtocolOptions::default()).then_some(options)
}

/// Outlier detection as Istio asks for it (fact 35): failures in a row, never rates; and no panic
/// unless `minHealthPercent` says so.
pub fn outlier_detection(made: &mut cluster::Cluster, outlier: Option<&OutlierDetection>) {
    let Some(outlier) = outlier else { return };
    // A threshold of 0 switches the detection off.
    let enforcing = |threshold: u32| envoy::u32_value(if threshold > 0 { 100 } else { 0 });
    let mut message = cluster::OutlierDetection {
        enforcing_success_rate: envoy::u32_value(0),
        interval: outlier.interval.map(envoy::duration),
        base_ejection_time: outlier.base_ejection_time.map(envoy::duration),
        max_ejection_percent: outlier
            .max_ejection_percent
            .and_then(|percent| u32::try_from(percent).ok())
            .filter(|percent| *percent > 0)
            .and_then(envoy::u32_value),
        ..Default::default()
    };
    if let Some(threshold) = outlier.consecutive5xx_errors {
        message.consecutive_5xx = envoy::u32_value(threshold);
        message.enforcing_consecutive_5xx = enforcing(threshold);
    }
    if let Some(threshold) = outlier.consecutive_gateway_errors {
        message.consecutive_gateway_failure = envoy::u32_value(threshold);
        message.enforcing_consecutive_gateway_failure = enforcing(threshold);
    }
    if outlier.split_external_local_origin_errors == Some(true) {
        message.split_external_local_origin_errors = true;
        message.enforcing_local_origin_success_rate = envoy::u32_value(0);
        if let Some(threshold) = outlier.consecutive_local_origin_failures.filter(|n| *n > 0) {
            message.consecutive_local_origin_failure = envoy::u32_value(threshold);
            message.enforcing_consecutive_local_origin_failure = enforcing(threshold);
        }
    }
    made.outlier_detection = Some(message);
    let least = outlier.min_health_percent.unwrap_or_default().max(0);
    common(made).healthy_panic_threshold = Some(percent(f64::from(least)));
}

/// The statuses that count as errors, where the policy lists them.
pub fn error_statuses(
    outlier: Option<&OutlierDetection>,
) -> Option<upstream_http::http_protocol_options::OutlierDetection> {
    use envoy::match_predicate::{HttpHeadersMatch, MatchPredicate, match_predicate};
    let codes = &outlier?.outlier_detection_http_error_codes;
    if codes.is_empty() {
        return None;
    }
    let rules = codes.iter().map(|code| {
        let exact = matcher::string_matcher::MatchPattern::Exact(code.to_string());
        let header = route::HeaderMatcher {
            name: ":status".to_string(),
            header_match_specifier: Some(route::header_matcher::HeaderMatchSpecifier::StringMatch(
                envoy::string_matcher(exact),
            )),
            ..Default::default()
        };
        MatchPredicate {
            rule: Some(match_predicate::Rule::HttpResponseHeadersMatch(
                HttpHeadersMatch {
                    headers: vec![header],
                },
            )),
        }
    });
    let mut rules: Vec<MatchPredicate> = rules.collect();
    // A set has at least two members in Envoy's API.
    let matcher = if rules.len() == 1 {
        rules.remove(0)
    } else {
        MatchPredicate {
            rule: Some(match_predicate::Rule::OrMatch(match_predicate::MatchSet {
                rules,
            })),
        }
    };
    Some(upstream_http::http_protocol_options::OutlierDetection {
        error_matcher: Some(matcher),
    })
}

/// The balancing options that do not depend on the balancer.
fn common(made: &mut cluster::Cluster) -> &mut cluster::cluster::CommonLbConfig {
    made.common_lb_config.get_or_insert_default()
}
