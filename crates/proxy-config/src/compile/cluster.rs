//! `Cluster`: discovery, limits, protocols.

use super::dns::{dns_family, dns_hosts};
use super::endpoint::endpoint_set;
use super::filter_chain::OBSERVERS;
use super::hcm::ads;
use super::lb::{self, lb_policy};
use super::listener::tcp_keepalive;
use super::request_alpn;
use super::scope::{At, reject, report};
use super::transport;
use super::upstream_http::{DeprecatedOptions, upstream_http};
use super::values::{address, any, known, metadata, non_empty, port, positive, required};
use crate::{Address, Cluster, ClusterKind, ConfigError, RetryBudget, TcpKeepalive, Thresholds};
use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::core::v3 as core;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// cluster.proto: 5 s to connect, names resolved again every 5 s.
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const DEFAULT_DNS_REFRESH: Duration = Duration::from_secs(5);

pub(crate) fn cluster(message: pb::Cluster, at: At<'_>) -> Result<Cluster, ConfigError> {
    let pb::Cluster {
        transport_socket_matches,
        transport_socket_matcher,
        name,
        alt_stat_name,
        stats_matcher,
        eds_cluster_config,
        connect_timeout,
        per_connection_buffer_limit_bytes,
        per_connection_buffer_high_watermark_timeout,
        lb_policy: policy,
        load_assignment,
        health_checks,
        max_requests_per_connection,
        circuit_breakers,
        upstream_http_protocol_options,
        common_http_protocol_options,
        http_protocol_options,
        http2_protocol_options,
        typed_extension_protocol_options,
        dns_refresh_rate,
        dns_jitter,
        dns_failure_refresh_rate,
        respect_dns_ttl,
        dns_lookup_family,
        dns_resolvers,
        use_tcp_for_dns_lookups,
        dns_resolution_config,
        typed_dns_resolver_config,
        wait_for_warm_on_init,
        outlier_detection,
        cleanup_interval,
        upstream_bind_config,
        lb_subset_config,
        common_lb_config,
        transport_socket,
        metadata: cluster_metadata,
        protocol_selection,
        upstream_connection_options,
        close_connections_on_host_health_failure,
        ignore_health_on_host_removal,
        filters,
        load_balancing_policy,
        lrs_server,
        lrs_report_endpoint_metrics,
        track_timeout_budgets,
        upstream_config,
        track_cluster_stats,
        preconnect_policy,
        connection_pool_per_downstream_connection,
        queuing_policies,
        cluster_discovery_type,
        lb_config,
    } = message;
    reject!(at; transport_socket_matcher, lb_subset_config, upstream_config);
    reject!(at; connection_pool_per_downstream_connection);
    report!(at, "all statistics are kept"; stats_matcher, track_cluster_stats, track_timeout_budgets);
    report!(at, "full buffers only pause reading"; per_connection_buffer_high_watermark_timeout);
    report!(at, "endpoints are not probed"; health_checks);
    report!(at, "connections of unhealthy endpoints go on"; close_connections_on_host_health_failure);
    report!(at, "buffers have a fixed size"; per_connection_buffer_limit_bytes);
    report!(at, "removed endpoints take no new requests"; ignore_health_on_host_removal);
    report!(at, "the system's resolver is used, every dns_refresh_rate"; dns_jitter,
        dns_failure_refresh_rate, respect_dns_ttl, dns_resolvers, use_tcp_for_dns_lookups,
        dns_resolution_config, typed_dns_resolver_config);
    report!(at, "unused original destinations go with their connections"; cleanup_interval);
    report!(at, "a cluster is always waited for"; wait_for_warm_on_init);
    report!(at, "no load is reported"; lrs_server, lrs_report_endpoint_metrics);
    report!(at, "connections are made when they are needed"; preconnect_policy, queuing_policies);
    upstream_filters(filters, at)?;
    let name: Arc<str> = non_empty(name, at.field("name"))?.into();
    let discovery = Discovery {
        kind: cluster_discovery_type,
        eds: eds_cluster_config,
        load_assignment,
        dns_refresh: positive(dns_refresh_rate, at.field("dns_refresh_rate"))?,
        dns_family: dns_lookup_family,
        original_dst: lb::original_dst(&lb_config),
    };
    let kind = discovery.compile(&name, at)?;
    let lb = lb_policy(
        lb::LbFields {
            policy,
            lb_config,
            load_balancing_policy,
            common_lb_config,
        },
        &kind,
        at,
    )?;
    let (thresholds, high_thresholds) = circuit_breaker(circuit_breakers, at)?;
    let http = upstream_http(
        typed_extension_protocol_options,
        DeprecatedOptions {
            common_http_protocol_options,
            http_protocol_options,
            http2_protocol_options,
            max_requests_per_connection,
            protocol_selection,
            upstream_http_protocol_options,
        },
        at,
    )?;
    let metadata = metadata(cluster_metadata, at.field("metadata"))?;
    let mut transport = transport::upstream(transport_socket, at.field("transport_socket"))?;
    let mut matches = transport::matches(transport_socket_matches, at)?;
    let all = std::iter::once(&mut transport).chain(matches.iter_mut().map(|(_, one)| one));
    request_alpn::apply(metadata.as_deref(), all);
    Ok(Cluster {
        stat_name: if alt_stat_name.is_empty() {
            name.clone()
        } else {
            alt_stat_name.into()
        },
        name,
        kind,
        lb: lb.policy,
        locality_lb: lb.locality,
        panic_threshold: lb.panic_threshold,
        connect_timeout: positive(connect_timeout, at.field("connect_timeout"))?
            .unwrap_or(DEFAULT_CONNECT_TIMEOUT),
        thresholds,
        high_thresholds,
        http,
        outlier: outlier_detection
            .map(|m| super::outlier::outlier_detection(m, at.field("outlier_detection")))
            .transpose()?
            .map(Arc::new),
        transport,
        transport_matches: matches,
        tcp_keepalive: connection_options(upstream_connection_options, at),
        source_address: upstream_bind_config
            .map(|config| source_address(config, at.field("upstream_bind_config")))
            .transpose()?
            .flatten(),
        metadata,
    })
}

fn upstream_filters(filters: Vec<pb::Filter>, at: At<'_>) -> Result<(), ConfigError> {
    for (i, filter) in filters.into_iter().enumerate() {
        let at = at.item("filters", i);
        let pb::Filter {
            name,
            typed_config,
            config_discovery,
        } = filter;
        reject!(at; config_discovery);
        let kind = typed_config.as_ref().map(|c| any(c).0).unwrap_or_default();
        match OBSERVERS.iter().find(|(observer, _)| *observer == kind) {
            Some((_, what)) => at.notice(what),
            None => {
                return Err(at.error(format!(
                    "the network filter '{name}' ({kind}) is not supported yet"
                )));
            }
        }
    }
    Ok(())
}

/// The fields that say where endpoints come from.
struct Discovery {
    kind: Option<pb::cluster::ClusterDiscoveryType>,
    eds: Option<pb::cluster::EdsClusterConfig>,
    load_assignment: Option<envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment>,
    dns_refresh: Option<Duration>,
    dns_family: i32,
    original_dst: Option<pb::cluster::OriginalDstLbConfig>,
}

impl Discovery {
    fn compile(self, name: &Arc<str>, at: At<'_>) -> Result<ClusterKind, ConfigError> {
        use pb::cluster::{ClusterDiscoveryType, DiscoveryType};
        let kind = match self.kind {
            None => DiscoveryType::Static,
            Some(ClusterDiscoveryType::Type(kind)) => known(kind, at.field("type"))?,
            Some(ClusterDiscoveryType::ClusterType(custom)) => {
                return super::by_name::cluster(custom, at.field("cluster_type"));
            }
        };
        if self.eds.is_some() && kind != DiscoveryType::Eds {
            return Err(at
                .field("eds_cluster_config")
                .error("is only for clusters of type EDS"));
        }
        let assignment_at = at.field("load_assignment");
        let refresh = self.dns_refresh.unwrap_or(DEFAULT_DNS_REFRESH);
        let family = dns_family(self.dns_family, at.field("dns_lookup_family"))?;
        Ok(match kind {
            DiscoveryType::Eds => {
                let at = at.field("eds_cluster_config");
                let pb::cluster::EdsClusterConfig {
                    eds_config,
                    service_name,
                } = required(self.eds, at)?;
                ads(eds_config, at.field("eds_config"))?;
                let service_name = if service_name.is_empty() {
                    name.clone()
                } else {
                    service_name.into()
                };
                ClusterKind::Eds { service_name }
            }
            DiscoveryType::Static => {
                // None means no endpoints, as in Envoy: Istio's BlackHoleCluster is such a cluster.
                let none = || envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment {
                    cluster_name: name.to_string(),
                    ..Default::default()
                };
                let assignment = self.load_assignment.unwrap_or_else(none);
                let mut set = endpoint_set(assignment, assignment_at)?;
                set.cluster = name.clone();
                ClusterKind::Static(Arc::new(set))
            }
            DiscoveryType::StrictDns | DiscoveryType::LogicalDns => {
                let assignment = required(self.load_assignment, assignment_at)?;
                let mut hosts = dns_hosts(assignment, assignment_at)?;
                hosts.cluster = name.clone();
                if kind == DiscoveryType::StrictDns {
                    return Ok(ClusterKind::StrictDns {
                        hosts,
                        family,
                        refresh,
                    });
                }
                if hosts
                    .localities
                    .iter()
                    .map(|l| l.endpoints.len())
                    .sum::<usize>()
                    != 1
                {
                    return Err(
                        assignment_at.error("a LOGICAL_DNS cluster has exactly one endpoint")
                    );
                }
                ClusterKind::LogicalDns {
                    hosts,
                    family,
                    refresh,
                }
            }
            DiscoveryType::OriginalDst => {
                if self.load_assignment.is_some() {
                    return Err(assignment_at.error("an ORIGINAL_DST cluster has no endpoints"));
                }
                original_dst(self.original_dst, at.field("original_dst_lb_config"))?
            }
        })
    }
}

fn original_dst(
    message: Option<pb::cluster::OriginalDstLbConfig>,
    at: At<'_>,
) -> Result<ClusterKind, ConfigError> {
    let pb::cluster::OriginalDstLbConfig {
        use_http_header,
        http_header_name,
        upstream_port_override,
        metadata_key,
    } = message.unwrap_or_default();
    reject!(at; metadata_key);
    let header = match (use_http_header, http_header_name.as_str()) {
        (false, _) => None,
        (true, "") => Some("x-envoy-original-dst-host".into()),
        (true, name) => Some(super::values::header_name(
            name,
            at.field("http_header_name"),
        )?),
    };
    let port_override = upstream_port_override
        .map(|v| port(v.value, at.field("upstream_port_override")))
        .transpose()?;
    Ok(ClusterKind::OriginalDst {
        header,
        port_override,
    })
}

fn connection_options(
    message: Option<pb::UpstreamConnectionOptions>,
    at: At<'_>,
) -> Option<TcpKeepalive> {
    let at = at.field("upstream_connection_options");
    let pb::UpstreamConnectionOptions {
        tcp_keepalive: keepalive,
        set_local_interface_name_on_upstream_connections,
        happy_eyeballs_config,
    } = message?;
    report!(at, "the interface is not looked up"; set_local_interface_name_on_upstream_connections);
    report!(at, "one address is tried at a time"; happy_eyeballs_config);
    keepalive.map(tcp_keepalive)
}

/// Where connections come from.
fn source_address(
    message: core::BindConfig,
    at: At<'_>,
) -> Result<Option<SocketAddr>, ConfigError> {
    let core::BindConfig {
        source_address,
        freebind,
        socket_options,
        extra_source_addresses,
        additional_source_addresses,
        local_address_selector,
        validate_network_namespaces,
    } = message;
    report!(at, "network namespaces are not entered"; validate_network_namespaces);
    reject!(at; freebind, extra_source_addresses, additional_source_addresses, local_address_selector);
    report!(at, "the socket keeps the system's options"; socket_options);
    let Some(source) = source_address else {
        return Ok(None);
    };
    let wrapped = core::Address {
        address: Some(core::address::Address::SocketAddress(source)),
    };
    match address(Some(wrapped), at.field("source_address"))? {
        Address::Socket(address) => Ok(Some(address)),
        Address::Pipe(_) => Err(at.field("source_address").not_supported()),
    }
}

fn circuit_breaker(
    message: Option<pb::CircuitBreakers>,
    at: At<'_>,
) -> Result<(Thresholds, Thresholds), ConfigError> {
    let at = at.field("circuit_breakers");
    let pb::CircuitBreakers {
        thresholds,
        per_host_thresholds,
    } = message.unwrap_or_default();
    report!(at, "limits hold for the whole cluster"; per_host_thresholds);
    let (mut default, mut high) = (Thresholds::default(), Thresholds::default());
    for (i, message) in thresholds.into_iter().enumerate() {
        let at = at.item("thresholds", i);
        match known(message.priority, at.field("priority"))? {
            core::RoutingPriority::Default => default = limits(message, at),
            core::RoutingPriority::High => high = limits(message, at),
        }
    }
    Ok((default, high))
}

fn limits(message: pb::circuit_breakers::Thresholds, at: At<'_>) -> Thresholds {
    let pb::circuit_breakers::Thresholds {
        priority: _,
        max_connections,
        max_pending_requests,
        max_requests,
        max_retries,
        retry_budget,
        track_remaining,
        max_connection_pools,
    } = message;
    report!(at, "there is one pool per endpoint"; max_connection_pools);
    let default = Thresholds::default();
    Thresholds {
        max_connections: max_connections.map_or(default.max_connections, |v| v.value),
        max_pending_requests: max_pending_requests
            .map_or(default.max_pending_requests, |v| v.value),
        max_requests: max_requests.map_or(default.max_requests, |v| v.value),
        max_retries: max_retries.map_or(default.max_retries, |v| v.value),
        track_remaining,
        retry_budget: retry_budget.map(|message| {
            let pb::circuit_breakers::thresholds::RetryBudget {
                budget_percent,
                budget_interval,
                min_retry_concurrency,
            } = message;
            let at = at.field("retry_budget");
            report!(at, "the budget holds at every moment"; budget_interval);
            // circuit_breaker.proto: 20 % of the active requests, at least 3.
            RetryBudget {
                percent: budget_percent.map_or(20.0, |p| p.value.clamp(0.0, 100.0)),
                min_concurrency: min_retry_concurrency.map_or(3, |v| v.value),
            }
        }),
    }
}
