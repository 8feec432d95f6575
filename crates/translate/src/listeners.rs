//! Listeners (LDS).
//!
//! A sidecar without interception has explicit ones: an HTTP proxy for everything its workload
//! calls, one listener for each TCP service the workload asked for, and one for each port of its
//! own. A gateway has one for each port of its Gateways.

use lateen_model::{
    HostIndex, MeshSettings, MeshSnapshot, Proxy, Scope, Service, ServicePort, VirtualService,
    resolve_gateway,
};

use crate::connection_manager::{self as connection, Routes, Side};
use crate::envoy::{self, core, listener, route, tcp};
use crate::gateway::GatewayPort;
use crate::names;
use crate::route_action::Destinations;
use crate::sidecar::{EgressPort, EgressProtocol, InboundPort};
use crate::virtual_hosts;

use tcp::tcp_proxy::{ClusterSpecifier, WeightedCluster, weighted_cluster::ClusterWeight};

/// The outbound HTTP proxy listener of a sidecar.
pub fn http_proxy(proxy: &Proxy, port: u16, mesh: &MeshSettings) -> listener::Listener {
    let name = names::listener(&proxy.bind, u32::from(port));
    let routes = Routes::Rds(names::HTTP_PROXY_ROUTES.to_string());
    let manager = connection::http(
        Side::SidecarOutbound,
        format!("outbound_{name}"),
        routes,
        mesh,
    );
    one_chain(
        name,
        &proxy.bind,
        u32::from(port),
        core::TrafficDirection::Outbound,
        envoy::network_filter("envoy.filters.network.http_connection_manager", &manager),
    )
}

/// The inbound listener of one port of a workload.
pub fn inbound(port: &InboundPort, mesh: &MeshSettings) -> listener::Listener {
    let cluster = names::inbound_cluster(port.number);
    let name = names::listener(&port.bind, u32::from(port.number));
    let prefix = format!("inbound_{name}");
    let service = port.service.as_ref();
    let service = service.map(|(service, port)| (service.as_ref(), port));
    let filter = if port.protocol.is_http_or_undeclared() {
        let table = inbound_routes(&cluster, port.number, service);
        let routes = Routes::Inline(Box::new(table));
        let manager = connection::http(Side::SidecarInbound, prefix, routes, mesh);
        envoy::network_filter("envoy.filters.network.http_connection_manager", &manager)
    } else {
        let to = connection::tcp_proxy(cluster.clone(), ClusterSpecifier::Cluster(cluster), mesh);
        envoy::network_filter("envoy.filters.network.tcp_proxy", &to)
    };
    one_chain(
        name,
        &port.bind,
        u32::from(port.number),
        core::TrafficDirection::Inbound,
        filter,
    )
}

/// The listener of a Sidecar's egress listener with a port of its own.
pub fn egress(
    snapshot: &MeshSnapshot,
    scope: &Scope<'_>,
    proxy: &Proxy,
    port: &EgressPort<'_>,
) -> Option<listener::Listener> {
    let number = u32::from(port.number);
    if port.protocol == EgressProtocol::Tcp {
        let mut services = scope.services().filter(|one| port.egress.imports(one));
        let (service, service_port) =
            services.find_map(|service| Some((service, service.port(number)?)))?;
        let mut made = outbound_tcp(snapshot, scope, proxy, service, service_port, port.number);
        made.name = names::listener(&port.bind, number);
        made.address = Some(envoy::socket_address(&port.bind, number));
        return Some(made);
    }
    let name = names::listener(&port.bind, number);
    let manager = connection::http(
        Side::SidecarOutbound,
        format!("outbound_{name}"),
        Routes::Rds(name.clone()),
        &snapshot.settings,
    );
    Some(one_chain(
        name,
        &port.bind,
        number,
        core::TrafficDirection::Outbound,
        envoy::network_filter("envoy.filters.network.http_connection_manager", &manager),
    ))
}

fn inbound_routes(
    cluster: &str,
    port: u16,
    service: Option<(&Service, &ServicePort)>,
) -> route::RouteConfiguration {
    let operation = match service {
        Some((service, port)) => format!("{}:{}/*", service.hostname, port.number),
        None => format!("inbound:{port}/*"),
    };
    let mut only = virtual_hosts::default_route("", u32::from(port));
    only.decorator = Some(route::Decorator {
        operation,
        propagate: None,
    });
    if let Some(route::route::Action::Route(action)) = &mut only.action {
        action.cluster_specifier = Some(route::route_action::ClusterSpecifier::Cluster(
            cluster.to_string(),
        ));
        // What the application got may not be sent to it twice: only a connection that broke
        // before the request was passed on is tried again (fact 12).
        action.retry_policy = Some(route::RetryPolicy {
            retry_on: "reset-before-request".to_string(),
            num_retries: envoy::u32_value(2),
            ..Default::default()
        });
    }
    route::RouteConfiguration {
        name: cluster.to_string(),
        virtual_hosts: vec![route::VirtualHost {
            name: format!("inbound|http|{port}"),
            domains: vec!["*".to_string()],
            routes: vec![only],
            ..Default::default()
        }],
        validate_clusters: envoy::bool_value(false),
        ..Default::default()
    }
}

/// A local listener of a sidecar for one TCP service.
pub fn outbound_tcp(
    snapshot: &MeshSnapshot,
    scope: &Scope<'_>,
    proxy: &Proxy,
    service: &Service,
    port: &ServicePort,
    local_port: u16,
) -> listener::Listener {
    let mesh = &snapshot.settings;
    let rules = HostIndex::new(scope.rules());
    let to = rules
        .rule_for(&service.hostname)
        .and_then(|rule| tcp_route(snapshot, proxy, rule, "mesh", port.number))
        .unwrap_or_else(|| {
            ClusterSpecifier::Cluster(names::outbound_cluster(port.number, "", &service.hostname))
        });
    let prefix = names::outbound_cluster(port.number, "", &service.hostname);
    let filter = envoy::network_filter(
        "envoy.filters.network.tcp_proxy",
        &connection::tcp_proxy(prefix, to, mesh),
    );
    let name = names::listener(&proxy.bind, u32::from(local_port));
    one_chain(
        name,
        &proxy.bind,
        u32::from(local_port),
        core::TrafficDirection::Outbound,
        filter,
    )
}

/// The listener of one gateway port.
pub fn gateway(
    snapshot: &MeshSnapshot,
    proxy: &Proxy,
    port: &GatewayPort<'_>,
) -> Option<listener::Listener> {
    let mesh = &snapshot.settings;
    let name = names::listener(&port.bind, port.number);
    let filter = if port.protocol.is_http() {
        let routes = Routes::Rds(names::gateway_routes(port.number));
        let manager = connection::http(Side::Gateway, format!("outbound_{name}"), routes, mesh);
        envoy::network_filter("envoy.filters.network.http_connection_manager", &manager)
    } else {
        let to = gateway_tcp_route(snapshot, proxy, port)?;
        envoy::network_filter(
            "envoy.filters.network.tcp_proxy",
            &connection::tcp_proxy(name.clone(), to, mesh),
        )
    };
    Some(one_chain(
        name,
        &port.bind,
        port.number,
        core::TrafficDirection::Outbound,
        filter,
    ))
}

fn gateway_tcp_route(
    snapshot: &MeshSnapshot,
    proxy: &Proxy,
    port: &GatewayPort<'_>,
) -> Option<ClusterSpecifier> {
    port.servers.iter().find_map(|(gateway, _)| {
        let name = gateway.full_name();
        snapshot
            .virtual_services()
            .filter(|rule| rule.is_bound_to(&name))
            .find_map(|rule| tcp_route(snapshot, proxy, rule, &name, port.server_port))
    })
}

/// Where the first matching TCP route of a rule leads.
fn tcp_route(
    snapshot: &MeshSnapshot,
    proxy: &Proxy,
    rule: &VirtualService,
    gateway: &str,
    port: u32,
) -> Option<ClusterSpecifier> {
    let applies = |item: &lateen_api::virtual_service::L4MatchAttributes| {
        let named = |g: &String| resolve_gateway(g, &rule.origin.namespace) == gateway;
        item.port.is_none_or(|wanted| wanted == 0 || wanted == port)
            && (item.gateways.is_empty() || item.gateways.iter().any(named))
            && lateen_model::labels_match(&item.source_labels, &proxy.labels)
            && (item.source_namespace.is_empty() || item.source_namespace == proxy.namespace)
    };
    let found = rule
        .spec
        .tcp
        .iter()
        .find(|tcp| tcp.matches.is_empty() || tcp.matches.iter().any(applies))?;
    let single_ports = crate::route_table::single_ports_of(
        snapshot,
        &rule.origin.namespace,
        found
            .route
            .iter()
            .filter_map(|one| one.destination.as_ref()),
    );
    let to = Destinations {
        rule_namespace: &rule.origin.namespace,
        domain_suffix: &snapshot.settings.domain_suffix,
        listen_port: port,
        single_ports: &single_ports,
    };
    let cluster = |one: &lateen_api::virtual_service::RouteDestination| {
        to.cluster(&one.destination.clone().unwrap_or_default())
    };
    match found.route.as_slice() {
        [] => None,
        [only] => Some(ClusterSpecifier::Cluster(cluster(only))),
        many => {
            let weighted = many.iter().filter_map(|one| {
                let weight = u32::try_from(one.weight.unwrap_or(0))
                    .ok()
                    .filter(|w| *w > 0)?;
                Some(ClusterWeight {
                    name: cluster(one),
                    weight,
                    ..Default::default()
                })
            });
            Some(ClusterSpecifier::WeightedClusters(WeightedCluster {
                clusters: weighted.collect(),
            }))
        }
    }
}

fn one_chain(
    name: String,
    bind: &str,
    port: u32,
    direction: core::TrafficDirection,
    filter: listener::Filter,
) -> listener::Listener {
    listener::Listener {
        name,
        address: Some(envoy::socket_address(bind, port)),
        filter_chains: vec![listener::FilterChain {
            filters: vec![filter],
            ..Default::default()
        }],
        traffic_direction: direction as i32,
        ..Default::default()
    }
}
