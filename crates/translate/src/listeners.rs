//! Listeners (LDS).
//!
//! A sidecar without interception has explicit ones: an HTTP proxy for everything its workload
//! calls, one listener for each TCP service the workload asked for, and one for each port of its
//! own. A gateway has one for each port of its Gateways.

#![allow(
    deprecated,
    reason = "`max_grpc_timeout` is what Istio sends, see `setTimeout` in its route.go"
)]

use lateen_model::{MeshSettings, MeshSnapshot, Protocol, Proxy, Scope, Service, ServicePort};

use crate::by_name;
use crate::capture;
use crate::connection_manager::{self as connection, Routes, Side};
use crate::envoy::{self, core, listener, route, tcp};
use crate::guard::Guards;
use crate::inbound_tls::{self, Inbound};
use crate::l4::{self, ConnectionRules};
use crate::sidecar::{EgressPort, EgressProtocol, InboundPort};
use crate::virtual_hosts;
use crate::{names, tls_context};

use tcp::tcp_proxy::ClusterSpecifier;

/// The outbound HTTP proxy listener of a sidecar.
pub fn http_proxy(
    scope: &Scope<'_>,
    proxy: &Proxy,
    port: u16,
    mesh: &MeshSettings,
) -> listener::Listener {
    let name = names::listener(&proxy.bind, u32::from(port));
    let routes = Routes::Rds(names::HTTP_PROXY_ROUTES.to_string());
    let prefix = format!("outbound_{name}");
    let mut manager = connection::http(Side::SidecarOutbound, prefix, routes, mesh);
    if by_name::is_used(scope) {
        by_name::add_filter(&mut manager, mesh);
    }
    one_chain(
        name,
        &proxy.bind,
        u32::from(port),
        core::TrafficDirection::Outbound,
        vec![envoy::network_filter(
            "envoy.filters.network.http_connection_manager",
            &manager,
        )],
    )
}

/// The inbound listener of one port of a workload.
pub fn inbound(
    port: &InboundPort,
    guards: &Guards<'_>,
    transport: &Inbound<'_>,
) -> listener::Listener {
    let mesh = transport.mesh;
    let cluster = names::inbound_cluster(port.number);
    let name = names::listener(&port.bind, u32::from(port.number));
    let prefix = format!("inbound_{name}");
    let service = port.service.as_ref();
    let service = service.map(|(service, port)| (service.as_ref(), port));
    let guard = guards.at(&port.known_as());
    let http = || {
        let table = inbound_routes(&cluster, port.number, service);
        let routes = Routes::Inline(Box::new(table));
        let manager = connection::http(Side::SidecarInbound, prefix.clone(), routes, mesh);
        let manager = guard.over_http(manager);
        envoy::network_filter("envoy.filters.network.http_connection_manager", &manager)
    };
    let tcp = || {
        let to = ClusterSpecifier::Cluster(cluster.clone());
        let to = connection::tcp_proxy(cluster.clone(), to, mesh);
        let to = envoy::network_filter("envoy.filters.network.tcp_proxy", &to);
        guard.over_tcp(vec![to])
    };
    let kinds = transport.kinds(port.protocol);
    let chain = |kind: &inbound_tls::Kind| {
        let filters = match kind.http {
            true => vec![http()],
            false => tcp(),
        };
        transport.chain(kind, None, filters)
    };
    let (tls, first_bytes) = inbound_tls::inspected(&kinds);
    let mut inspectors = Vec::new();
    inspectors.extend(tls.then(tls_context::inspector));
    inspectors.extend(first_bytes.then(capture::http_inspector_filter));
    let waits = !inspectors.is_empty();
    listener::Listener {
        name: name.clone(),
        address: Some(envoy::socket_address(&port.bind, u32::from(port.number))),
        filter_chains: kinds.iter().map(chain).collect(),
        listener_filters: inspectors,
        listener_filters_timeout: waits.then(|| envoy::duration(mesh.protocol_detection_timeout)),
        continue_on_listener_filters_timeout: waits,
        traffic_direction: core::TrafficDirection::Inbound as i32,
        ..Default::default()
    }
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
        let mut services = scope
            .services()
            .filter(|one| scope.imports(port.egress, one));
        let (service, service_port) = services.find_map(|service| match number {
            // A Unix domain socket without a number leads to the first port that is not HTTP.
            0 => {
                let mut ports = service.ports.iter();
                let port = ports.find(|p| p.protocol != Protocol::Udp && !p.protocol.is_http())?;
                Some((service, port))
            }
            number => Some((service, service.port(number)?)),
        })?;
        let mut made = outbound_tcp(snapshot, scope, proxy, service, service_port, port.number);
        made.name = names::listener(&port.bind, number);
        made.address = Some(envoy::address(&port.bind, number));
        return Some(made);
    }
    let name = names::listener(&port.bind, number);
    let mut manager = connection::http(
        Side::SidecarOutbound,
        format!("outbound_{name}"),
        Routes::Rds(name.clone()),
        &snapshot.settings,
    );
    if by_name::is_used(scope) {
        by_name::add_filter(&mut manager, &snapshot.settings);
    }
    Some(one_chain(
        name,
        &port.bind,
        number,
        core::TrafficDirection::Outbound,
        vec![envoy::network_filter(
            "envoy.filters.network.http_connection_manager",
            &manager,
        )],
    ))
}

pub(crate) fn inbound_routes(
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
        action.max_grpc_timeout = None;
        action.max_stream_duration = Some(route::route_action::MaxStreamDuration {
            max_stream_duration: Some(envoy::duration(std::time::Duration::ZERO)),
            grpc_timeout_header_max: Some(envoy::duration(std::time::Duration::ZERO)),
            grpc_timeout_header_offset: None,
        });
        // What the application got may not be sent to it twice: only a connection that broke
        // before the request was passed on is tried again, and nothing on a port of gRPC (fact 12).
        let is_grpc = |protocol| matches!(protocol, Protocol::Grpc | Protocol::GrpcWeb);
        let grpc = service.is_some_and(|(_, port)| is_grpc(port.protocol));
        action.retry_policy = (!grpc).then(|| route::RetryPolicy {
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
    let rules = ConnectionRules::of(scope);
    // The listener is the service's own.
    let place = l4::Place {
        destinations: &[],
        by_server_name: false,
    };
    let chains = l4::sidecar(snapshot, proxy, &rules, service, port, place);
    let inspected = chains.iter().any(l4::needs_tls_inspection);
    listener::Listener {
        name: names::listener(&proxy.bind, u32::from(local_port)),
        address: Some(envoy::socket_address(&proxy.bind, u32::from(local_port))),
        listener_filters: match inspected {
            true => vec![tls_context::inspector()],
            false => Vec::new(),
        },
        filter_chains: chains,
        traffic_direction: core::TrafficDirection::Outbound as i32,
        ..Default::default()
    }
}

fn one_chain(
    name: String,
    bind: &str,
    port: u32,
    direction: core::TrafficDirection,
    filters: Vec<listener::Filter>,
) -> listener::Listener {
    listener::Listener {
        name,
        address: Some(envoy::address(bind, port)),
        filter_chains: vec![listener::FilterChain {
            filters,
            ..Default::default()
        }],
        traffic_direction: direction as i32,
        ..Default::default()
    }
}
