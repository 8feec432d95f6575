//! Clusters (CDS): one for each port and subset of each service a proxy sees, and for a sidecar
//! one for each port of its own workload.

use std::collections::HashMap;
use std::time::Duration;

use lateen_api::destination_rule::{H2UpgradePolicy, HttpSettings, SimpleLb, TcpSettings};
use lateen_model::{DestinationRule, MeshSettings, Protocol, Resolution, Service, ServicePort};

use crate::endpoints;
use crate::envoy::{self, cluster, core, upstream_http};
use crate::names;
use crate::policy::Policy;
use crate::sidecar::InboundTarget;

use cluster::cluster::{ClusterDiscoveryType, DiscoveryType, LbPolicy};

/// Limits that nobody set are this: Istio lifts Envoy's 1024 (fact 34).
const UNLIMITED: u32 = u32::MAX;

/// How often names are resolved again when their answer carries no time to live.
const DNS_REFRESH: Duration = Duration::from_secs(60);

/// The cluster for traffic to one port (and subset) of a service.
pub fn outbound(
    service: &Service,
    port: &ServicePort,
    subset: &str,
    rule: Option<&DestinationRule>,
    resolution: Resolution,
    mesh: &MeshSettings,
) -> cluster::Cluster {
    let name = names::outbound_cluster(port.number, subset, &service.hostname);
    let policy = Policy::of(rule, subset, port.number);
    let mut made = base(name, &policy, mesh);
    discover(&mut made, service, port, subset, rule, resolution);
    balance(&mut made, policy.simple_balancer());
    made.typed_extension_protocol_options =
        protocol_options(upstream_protocol(port.protocol, &policy), &policy);
    if let Some(rule) = rule
        && let Some(origin) = rule.origins.first()
    {
        let config = format!(
            "/apis/networking.istio.io/v1/namespaces/{}/destination-rule/{}",
            origin.namespace, origin.name
        );
        made.metadata = Some(envoy::metadata("istio", &[("config", config)]));
    }
    made
}

/// The cluster for traffic to an application behind its sidecar.
pub fn inbound(
    listener_port: u16,
    to: &InboundTarget,
    protocol: Protocol,
    mesh: &MeshSettings,
) -> cluster::Cluster {
    let name = names::inbound_cluster(listener_port);
    let policy = Policy {
        connection_pool: to.connection_pool().cloned(),
        ..Policy::default()
    };
    let mut made = base(name.clone(), &policy, mesh);
    made.cluster_discovery_type = Some(ClusterDiscoveryType::Type(DiscoveryType::Static as i32));
    made.lb_policy = LbPolicy::RoundRobin as i32;
    made.load_assignment = to
        .address
        .as_ref()
        .map(|address| endpoints::static_assignment(&name, address, u32::from(to.port)));
    made.typed_extension_protocol_options =
        protocol_options(upstream_protocol(protocol, &policy), &policy);
    made
}

/// Connections go on to where they were going.
pub fn passthrough(mesh: &MeshSettings) -> cluster::Cluster {
    let policy = Policy::default();
    let mut made = base(names::PASSTHROUGH_CLUSTER.to_string(), &policy, mesh);
    original_destination(&mut made);
    made.typed_extension_protocol_options =
        protocol_options(UpstreamProtocol::AsDownstream, &policy);
    made
}

/// Connections go nowhere: a cluster without endpoints.
pub fn black_hole(mesh: &MeshSettings) -> cluster::Cluster {
    let mut made = base(
        names::BLACK_HOLE_CLUSTER.to_string(),
        &Policy::default(),
        mesh,
    );
    made.cluster_discovery_type = Some(ClusterDiscoveryType::Type(DiscoveryType::Static as i32));
    made
}

/// Name, limits and timeouts.
fn base(name: String, policy: &Policy, mesh: &MeshSettings) -> cluster::Cluster {
    let pool = policy.connection_pool.as_ref();
    let tcp = pool.and_then(|pool| pool.tcp.as_ref());
    let connect_timeout = tcp
        .and_then(|tcp| tcp.connect_timeout)
        .unwrap_or(mesh.connect_timeout);
    cluster::Cluster {
        name,
        connect_timeout: Some(envoy::duration(connect_timeout)),
        circuit_breakers: Some(circuit_breakers(
            tcp,
            pool.and_then(|pool| pool.http.as_ref()),
        )),
        ..Default::default()
    }
}

fn circuit_breakers(
    tcp: Option<&TcpSettings>,
    http: Option<&HttpSettings>,
) -> cluster::CircuitBreakers {
    // A limit of 0 means "not set" in Istio's API.
    let limit = |value: Option<i32>| {
        envoy::u32_value(
            value
                .and_then(|v| u32::try_from(v).ok())
                .filter(|v| *v > 0)
                .unwrap_or(UNLIMITED),
        )
    };
    cluster::CircuitBreakers {
        thresholds: vec![cluster::circuit_breakers::Thresholds {
            max_connections: limit(tcp.and_then(|tcp| tcp.max_connections)),
            max_pending_requests: limit(http.and_then(|http| http.http1_max_pending_requests)),
            max_requests: limit(http.and_then(|http| http.http2_max_requests)),
            max_retries: limit(http.and_then(|http| http.max_retries)),
            track_remaining: true,
            ..Default::default()
        }],
        ..Default::default()
    }
}

/// How the proxy finds the endpoints.
#[expect(
    deprecated,
    reason = "the fields that replace them are not yet in every Envoy that Istio supports"
)]
fn discover(
    made: &mut cluster::Cluster,
    service: &Service,
    port: &ServicePort,
    subset: &str,
    rule: Option<&DestinationRule>,
    resolution: Resolution,
) {
    let dns = |kind: DiscoveryType, made: &mut cluster::Cluster| {
        let labels = rule
            .and_then(|rule| rule.subset(subset))
            .map(|s| s.labels.clone())
            .unwrap_or_default();
        made.cluster_discovery_type = Some(ClusterDiscoveryType::Type(kind as i32));
        made.load_assignment = Some(endpoints::dns_assignment(
            &made.name, service, port, &labels,
        ));
        made.dns_lookup_family = cluster::cluster::DnsLookupFamily::V4Only as i32;
        made.dns_refresh_rate = Some(envoy::duration(DNS_REFRESH));
        made.respect_dns_ttl = true;
    };
    match resolution {
        Resolution::Endpoints => {
            made.cluster_discovery_type =
                Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32));
            made.eds_cluster_config = Some(cluster::cluster::EdsClusterConfig {
                eds_config: Some(envoy::ads()),
                service_name: made.name.clone(),
            });
        }
        Resolution::Dns => dns(DiscoveryType::StrictDns, made),
        Resolution::DnsRoundRobin => dns(DiscoveryType::LogicalDns, made),
        Resolution::None => original_destination(made),
    }
}

fn original_destination(made: &mut cluster::Cluster) {
    made.cluster_discovery_type = Some(ClusterDiscoveryType::Type(
        DiscoveryType::OriginalDst as i32,
    ));
    made.lb_policy = LbPolicy::ClusterProvided as i32;
    made.eds_cluster_config = None;
    made.load_assignment = None;
}

fn balance(made: &mut cluster::Cluster, balancer: SimpleLb) {
    if made.lb_policy == LbPolicy::ClusterProvided as i32 {
        return;
    }
    made.lb_policy = match balancer {
        SimpleLb::RoundRobin => LbPolicy::RoundRobin as i32,
        SimpleLb::Random => LbPolicy::Random as i32,
        // Not "without the sidecar": the endpoints are ignored (fact 33).
        SimpleLb::Passthrough => return original_destination(made),
        SimpleLb::LeastRequest | SimpleLb::LeastConn | SimpleLb::Unspecified => {
            LbPolicy::LeastRequest as i32
        }
    };
}

/// What a proxy speaks to the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum UpstreamProtocol {
    Http1,
    Http2,
    /// What the client of the proxy spoke: the port did not say.
    AsDownstream,
}

fn upstream_protocol(protocol: Protocol, policy: &Policy) -> UpstreamProtocol {
    let http = policy
        .connection_pool
        .as_ref()
        .and_then(|pool| pool.http.as_ref());
    let upgrade = http.and_then(|http| http.h2_upgrade_policy) == Some(H2UpgradePolicy::Upgrade);
    if protocol.is_http2() || (upgrade && protocol.is_http()) {
        UpstreamProtocol::Http2
    } else if protocol == Protocol::Undeclared {
        UpstreamProtocol::AsDownstream
    } else {
        UpstreamProtocol::Http1
    }
}

/// The HTTP options of a cluster; nothing where HTTP/1.1 with defaults is meant.
fn protocol_options(protocol: UpstreamProtocol, policy: &Policy) -> HashMap<String, envoy::Any> {
    use upstream_http::http_protocol_options as part;
    let http = policy
        .connection_pool
        .as_ref()
        .and_then(|pool| pool.http.as_ref());
    let max_requests = http
        .and_then(|h| h.max_requests_per_connection)
        .and_then(|v| u32::try_from(v).ok());
    let max_requests = max_requests.filter(|v| *v > 0);
    let idle = http.and_then(|h| h.idle_timeout);
    let common = (max_requests.is_some() || idle.is_some()).then(|| core::HttpProtocolOptions {
        idle_timeout: idle.map(envoy::duration),
        max_requests_per_connection: max_requests.and_then(envoy::u32_value),
        ..Default::default()
    });
    if protocol == UpstreamProtocol::Http1 && common.is_none() {
        return HashMap::new();
    }
    let explicit = |config| {
        part::UpstreamProtocolOptions::ExplicitHttpConfig(part::ExplicitHttpConfig {
            protocol_config: Some(config),
        })
    };
    let options = upstream_http::HttpProtocolOptions {
        common_http_protocol_options: common,
        upstream_protocol_options: Some(match protocol {
            UpstreamProtocol::Http1 => explicit(
                part::explicit_http_config::ProtocolConfig::HttpProtocolOptions(Default::default()),
            ),
            UpstreamProtocol::Http2 => explicit(
                part::explicit_http_config::ProtocolConfig::Http2ProtocolOptions(Default::default()),
            ),
            UpstreamProtocol::AsDownstream => {
                part::UpstreamProtocolOptions::UseDownstreamProtocolConfig(
                    part::UseDownstreamHttpConfig {
                        http_protocol_options: Some(Default::default()),
                        http2_protocol_options: Some(Default::default()),
                        ..Default::default()
                    },
                )
            }
        }),
        ..Default::default()
    };
    HashMap::from([(
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions".to_string(),
        envoy::any(&options),
    )])
}
