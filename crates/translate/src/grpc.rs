//! Resources for gRPC libraries that are their own data plane (`xds:///reviews.default:9080`).
//!
//! Such a client asks for a listener by the name it dials, then for the routes, the cluster and
//! the endpoints that follow (`pilot/pkg/networking/grpcgen`).

use lateen_model::{MeshSnapshot, Proxy, Service, ServicePort, hostname};

use crate::envoy::{self, hcm, listener, router};
use crate::names;

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
        http_filters: vec![envoy::http_filter(
            "envoy.filters.http.router",
            &router::Router::default(),
        )],
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
