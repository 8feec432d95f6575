//! Resources for gRPC libraries that are their own data plane (`xds:///reviews.default:9080`).
//!
//! Such a client asks for a listener by the name it dials, then for the routes, the cluster and
//! the endpoints that follow (`pilot/pkg/networking/grpcgen`).

use lateen_model::{MeshSnapshot, Proxy, Service, ServicePort, hostname};

use crate::envoy::{self, cluster, hcm, listener};
use crate::filters;
use crate::names;

use cluster::cluster::{ClusterDiscoveryType, DiscoveryType, LbPolicy};

/// The service port that `host:port` names for a client of this proxy.
pub fn target<'a>(
    snapshot: &'a MeshSnapshot,
    proxy: &Proxy,
    name: &str,
) -> Option<(&'a Service, &'a ServicePort)> {
    let (host, port) = name.rsplit_once(':')?;
    let port: u32 = port.parse().ok()?;
    let domain = &snapshot.settings.domain_suffix;
    let candidates = [
        hostname::resolve(host, &proxy.namespace, domain),
        format!("{host}.svc.{domain}"),
        format!("{host}.{domain}"),
    ];
    let service = candidates
        .iter()
        .find_map(|candidate| snapshot.service(candidate))?;
    if !service.visibility.reaches(&proxy.namespace) {
        return None;
    }
    Some((service, service.port(port)?))
}

/// The listener for the dialled `name`.
pub fn api_listener(name: &str, service: &Service, port: &ServicePort) -> listener::Listener {
    let manager = hcm::HttpConnectionManager {
        http_filters: filters::grpc_chain(),
        route_specifier: Some(hcm::http_connection_manager::RouteSpecifier::Rds(
            hcm::Rds {
                config_source: Some(envoy::ads()),
                route_config_name: names::outbound_cluster(port.number, "", &service.hostname),
            },
        )),
        ..Default::default()
    };
    listener::Listener {
        name: name.to_string(),
        api_listener: Some(listener::ApiListener {
            api_listener: Some(envoy::any(&manager)),
        }),
        ..Default::default()
    }
}

/// Takes out of a cluster what gRPC libraries refuse with the whole cluster. They balance in turn
/// whatever the rule says, as under Istio (`grpcgen/cds.go`): of the other policies none is in
/// every library.
pub fn restrict(made: &mut cluster::Cluster) {
    made.lb_policy = LbPolicy::RoundRobin as i32;
    let is = |kind: DiscoveryType| {
        made.cluster_discovery_type == Some(ClusterDiscoveryType::Type(kind as i32))
    };
    let names = made.load_assignment.iter().flat_map(|all| &all.endpoints);
    let names = names.map(|group| group.lb_endpoints.len()).sum::<usize>();
    if is(DiscoveryType::OriginalDst) {
        // They have no destination but what they look up.
        made.cluster_discovery_type = Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32));
        made.eds_cluster_config = Some(cluster::cluster::EdsClusterConfig {
            eds_config: Some(envoy::ads()),
            service_name: made.name.clone(),
        });
    } else if is(DiscoveryType::StrictDns) && names == 1 {
        // The same for one name, and the only kind that they know (gRFC A37).
        made.cluster_discovery_type =
            Some(ClusterDiscoveryType::Type(DiscoveryType::LogicalDns as i32));
    }
}

/// The domains under which a gRPC client's route table is looked up: the dialled authority in any
/// of its forms.
pub fn domains(service: &Service, port: &ServicePort) -> Vec<String> {
    let host = &service.hostname;
    let mut domains = vec![format!("{host}:{}", port.number), host.to_string()];
    let short = format!("{}.{}", service.name, service.namespace);
    for alias in [service.name.clone(), short.clone(), format!("{short}.svc")] {
        domains.push(format!("{alias}:{}", port.number));
        domains.push(alias);
    }
    domains
}
