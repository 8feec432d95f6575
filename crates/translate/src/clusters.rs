//! Clusters (CDS): one for each port and subset of each service a proxy sees, and for a sidecar
//! one for each port of its own workload.

use std::collections::{BTreeMap, HashMap};

use lateen_api::destination_rule::H2UpgradePolicy;
use lateen_model::{
    DestinationRule, MeshSettings, Protocol, ProxyKind, Resolution, Service, ServicePort,
};

use crate::auto_mtls::MeshPeers;
use crate::by_name;
use crate::cluster_policy;
use crate::endpoints;
use crate::envoy::{self, cluster};
use crate::locality::Placement;
use crate::names;
use crate::policy::Policy;
use crate::sidecar::InboundTarget;
use crate::upstream_tls::Transport;

use crate::cluster_policy::UpstreamProtocol;

use cluster::cluster::{ClusterDiscoveryType, DiscoveryType, LbPolicy};

/// What a cluster depends on of the proxy that gets it.
pub struct Client<'a> {
    pub kind: ProxyKind,
    /// How this proxy finds the endpoints of the service.
    pub resolution: Resolution,
    pub placement: &'a Placement,
    /// It knows the endpoints of its own service.
    pub self_discovery: bool,
    /// Roles keep it from a Secret that it would need.
    pub refused: bool,
    /// Who they are, for the mesh's own TLS.
    pub peers: &'a MeshPeers,
}

/// The cluster for traffic to one port (and subset) of a service.
pub fn outbound(
    service: &Service,
    port: &ServicePort,
    subset: &str,
    rule: Option<&DestinationRule>,
    mesh: &MeshSettings,
    client: &Client<'_>,
) -> cluster::Cluster {
    let name = names::outbound_cluster(port.number, subset, &service.hostname);
    if client.refused || rule.is_some_and(|rule| rule.closed) {
        return nowhere(name, mesh);
    }
    let policy = Policy::of(rule, subset, port.number);
    let mut made = base(name, &policy, mesh);
    let labels = rule.and_then(|rule| rule.subset(subset));
    let labels = labels
        .map(|subset| subset.labels.clone())
        .unwrap_or_default();
    discover(&mut made, service, port, &labels, client, mesh);
    cluster_policy::outlier_detection(&mut made, policy.outlier_detection.as_ref());
    cluster_policy::balancer(&mut made, &policy, mesh, client.self_discovery);
    let transport = Transport::of(&policy, client.kind, service);
    let protocol = upstream_protocol(port.protocol, &policy);
    transport.apply(&mut made, protocol == UpstreamProtocol::Http2, mesh);
    made.typed_extension_protocol_options = typed_options(protocol, &policy, &transport);
    if client.resolution == Resolution::ByRequest {
        by_name::discover(&mut made, mesh);
    }
    if let Some(rule) = rule
        && let Some(origin) = rule.origins.first()
    {
        let config = format!(
            "/apis/networking.istio.io/v1/namespaces/{}/destination-rule/{}",
            origin.namespace, origin.name
        );
        made.metadata = Some(envoy::metadata("istio", &[("config", config)]));
    }
    let of = (service, port, subset);
    client.peers.apply(&mut made, &policy, of, protocol, mesh);
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
    made.typed_extension_protocol_options = typed_options(
        upstream_protocol(protocol, &policy),
        &policy,
        &Transport::default(),
    );
    made
}

/// Connections go on to where they were going.
pub fn passthrough(mesh: &MeshSettings) -> cluster::Cluster {
    let policy = Policy::default();
    let mut made = base(names::PASSTHROUGH_CLUSTER.to_string(), &policy, mesh);
    cluster_policy::original_destination(&mut made);
    made.typed_extension_protocol_options = typed_options(
        UpstreamProtocol::AsDownstream,
        &policy,
        &Transport::default(),
    );
    made
}

/// HTTP requests go to the name they ask for.
pub fn any_name(mesh: &MeshSettings) -> cluster::Cluster {
    let policy = Policy::default();
    let mut made = base(names::ANY_NAME_CLUSTER.to_string(), &policy, mesh);
    by_name::discover(&mut made, mesh);
    made.typed_extension_protocol_options = typed_options(
        UpstreamProtocol::AsDownstream,
        &policy,
        &Transport::default(),
    );
    made
}

/// Connections go nowhere: a cluster without endpoints.
pub fn black_hole(mesh: &MeshSettings) -> cluster::Cluster {
    nowhere(names::BLACK_HOLE_CLUSTER.to_string(), mesh)
}

/// A cluster without endpoints.
fn nowhere(name: String, mesh: &MeshSettings) -> cluster::Cluster {
    let mut made = base(name, &Policy::default(), mesh);
    made.cluster_discovery_type = Some(ClusterDiscoveryType::Type(DiscoveryType::Static as i32));
    made
}

/// Name, limits and timeouts.
fn base(name: String, policy: &Policy, mesh: &MeshSettings) -> cluster::Cluster {
    let mut made = cluster::Cluster {
        name,
        ..Default::default()
    };
    cluster_policy::connection_pool(&mut made, policy, mesh);
    made
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
    labels: &BTreeMap<String, String>,
    client: &Client<'_>,
    mesh: &MeshSettings,
) {
    let dns = |kind: DiscoveryType, made: &mut cluster::Cluster| {
        made.cluster_discovery_type = Some(ClusterDiscoveryType::Type(kind as i32));
        made.load_assignment = Some(endpoints::dns_assignment(
            &made.name,
            service,
            port,
            labels,
            client.placement,
        ));
        made.dns_lookup_family = cluster::cluster::DnsLookupFamily::V4Only as i32;
        // Where an answer carries no time to live.
        made.dns_refresh_rate = Some(envoy::duration(mesh.dns_refresh_rate));
        made.respect_dns_ttl = true;
    };
    match client.resolution {
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
        Resolution::None => cluster_policy::original_destination(made),
        // Last, since it depends on balancer and transport: `by_name`.
        Resolution::ByRequest => {}
    }
}

fn upstream_protocol(protocol: Protocol, policy: &Policy) -> UpstreamProtocol {
    let http = policy
        .connection_pool
        .as_ref()
        .and_then(|pool| pool.http.as_ref());
    let upgrade = http.and_then(|http| http.h2_upgrade_policy) == Some(H2UpgradePolicy::Upgrade);
    if protocol.is_http2() || (upgrade && protocol.is_http_or_undeclared()) {
        UpstreamProtocol::Http2
    } else if protocol == Protocol::Undeclared {
        UpstreamProtocol::AsDownstream
    } else {
        UpstreamProtocol::Http1
    }
}

fn typed_options(
    protocol: UpstreamProtocol,
    policy: &Policy,
    transport: &Transport,
) -> HashMap<String, envoy::Any> {
    let options = cluster_policy::protocol_options(protocol, policy, transport.http_options());
    let name = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    options
        .map(|options| (name.to_string(), envoy::any(&options)))
        .into_iter()
        .collect()
}

/// Makes of a service's cluster the one that a client of an AUTO_PASSTHROUGH server names: what it
/// sends is TLS already and goes on as it is.
pub fn pass_on(made: &mut cluster::Cluster, name: &str) {
    made.name = name.to_string();
    if let Some(eds) = &mut made.eds_cluster_config {
        eds.service_name = name.to_string();
    }
    if let Some(assignment) = &mut made.load_assignment {
        assignment.cluster_name = name.to_string();
    }
    made.transport_socket = None;
    made.transport_socket_matches.clear();
    made.typed_extension_protocol_options.clear();
}
