//! `virtualInbound`: everything that comes to a workload whose traffic is redirected.
//!
//! Each port that a service leads to has filter chains of its own. The others pass through to the
//! application as they are (fact 45), and a connection made to the capture port itself goes nowhere.

use std::collections::BTreeMap;
use std::sync::Arc;

use lateen_model::{
    Interception, MeshSnapshot, Protocol, Proxy, Scope, Service, ServicePort, Sidecar,
};

use super::{INBOUND_PORT, RAW_BUFFER, WILDCARD, outbound::to_cluster, plain_http};
use crate::cache::ById;
use crate::connection_manager::{self as connection, Routes, Side};
use crate::envoy::{self, core, listener};
use crate::guard::{Guard, Guards};
use crate::listeners::inbound_routes;
use crate::names;
use crate::sidecar::{InboundPort, InboundTarget};

use listener::listener_filter_chain_match_predicate::{MatchSet, Rule};

/// One port of the application.
pub struct CapturedPort {
    pub number: u16,
    pub protocol: Protocol,
    service: Option<(Arc<Service>, ServicePort)>,
    pub to: InboundTarget,
}

/// Ports of the workload that services lead to: of several services on a port the oldest counts. A
/// Sidecar with ingress listeners says itself which ports there are.
pub fn ports(
    snapshot: &MeshSnapshot,
    proxy: &Proxy,
    sidecar: Option<&Arc<Sidecar>>,
) -> Vec<CapturedPort> {
    let told = sidecar.is_some_and(|sidecar| !sidecar.spec.ingress.is_empty());
    let workload = snapshot.workload(&proxy.namespace, &proxy.name);
    let (Interception::Redirect, false, Some(workload)) = (proxy.interception, told, workload)
    else {
        return Vec::new();
    };
    let mut services: Vec<_> = snapshot.services_of(workload).collect();
    services.sort_by(|a, b| (&a.created, &a.name).cmp(&(&b.created, &b.name)));
    let limits = sidecar.filter(|sidecar| sidecar.spec.inbound_connection_pool.is_some());
    let mut ports = BTreeMap::new();
    for service in services {
        for port in service.ports.iter().filter(|p| p.protocol != Protocol::Udp) {
            if let Ok(number) = u16::try_from(workload.port_for(port)) {
                ports.entry(number).or_insert_with(|| CapturedPort {
                    number,
                    protocol: port.protocol,
                    service: Some((service.clone(), port.clone())),
                    to: InboundTarget {
                        address: None,
                        port: number,
                        limits: limits.map(|sidecar| (ById(sidecar.clone()), None)),
                    },
                });
            }
        }
    }
    ports.into_values().collect()
}

/// The listener that all connections to the application are redirected to.
pub fn virtual_inbound(
    snapshot: &MeshSnapshot,
    scope: &Scope<'_>,
    proxy: &Proxy,
    told: Vec<InboundPort>,
    guards: &Guards<'_>,
) -> listener::Listener {
    let mut chains = vec![listener::FilterChain {
        name: "virtualInbound-blackhole".to_string(),
        filter_chain_match: Some(listener::FilterChainMatch {
            destination_port: envoy::u32_value(INBOUND_PORT),
            ..Default::default()
        }),
        ..to_cluster(names::BLACK_HOLE_CLUSTER, snapshot)
    }];
    let rest = Served {
        snapshot,
        port: None,
        service: None,
        cluster: names::INBOUND_PASSTHROUGH_CLUSTER.to_string(),
        guard: guards.at(&[]),
    };
    chains.extend(rest.chains(Protocol::Undeclared));
    // Ports whose first bytes are not looked at.
    let mut silent = vec![INBOUND_PORT];
    let told = told.into_iter().map(|port| CapturedPort {
        number: port.number,
        protocol: port.protocol,
        service: port.service,
        to: port.to,
    });
    for port in ports(snapshot, proxy, scope.sidecar())
        .into_iter()
        .chain(told)
    {
        let service = port.service.as_ref();
        let served = Served {
            snapshot,
            port: Some(port.number),
            service: service.map(|(service, port)| (service.as_ref(), port)),
            cluster: names::inbound_cluster(port.number),
            guard: guards.at(&[port.number]),
        };
        chains.extend(served.chains(port.protocol));
        if port.protocol != Protocol::Undeclared {
            silent.push(u32::from(port.number));
        }
    }
    silent.sort_unstable();
    listener::Listener {
        name: "virtualInbound".to_string(),
        address: Some(envoy::socket_address(WILDCARD, INBOUND_PORT)),
        filter_chains: chains,
        listener_filters: vec![
            super::original_dst_filter(),
            listener::ListenerFilter {
                filter_disabled: Some(one_of(&silent)),
                ..super::http_inspector_filter()
            },
        ],
        listener_filters_timeout: Some(envoy::duration(
            snapshot.settings.protocol_detection_timeout,
        )),
        continue_on_listener_filters_timeout: true,
        traffic_direction: core::TrafficDirection::Inbound as i32,
        ..Default::default()
    }
}

/// The condition that a connection goes to one of the ports.
fn one_of(ports: &[u32]) -> listener::ListenerFilterChainMatchPredicate {
    let rules = ports.iter().filter_map(|port| {
        let start = i32::try_from(*port).ok()?;
        let range = envoy_types::pb::envoy::r#type::v3::Int32Range {
            start,
            end: start + 1,
        };
        Some(listener::ListenerFilterChainMatchPredicate {
            rule: Some(Rule::DestinationPortRange(range)),
        })
    });
    let mut rules: Vec<_> = rules.collect();
    match rules.len() {
        1 => rules.remove(0),
        _ => listener::ListenerFilterChainMatchPredicate {
            rule: Some(Rule::OrMatch(MatchSet { rules })),
        },
    }
}

/// One port of the application, or all that no service leads to.
struct Served<'a> {
    snapshot: &'a MeshSnapshot,
    port: Option<u16>,
    service: Option<(&'a Service, &'a ServicePort)>,
    cluster: String,
    guard: Guard,
}

impl Served<'_> {
    fn chains(&self, protocol: Protocol) -> Vec<listener::FilterChain> {
        let port = self.port.map(u32::from);
        let plain = listener::FilterChainMatch {
            destination_port: port.and_then(envoy::u32_value),
            transport_protocol: RAW_BUFFER.to_string(),
            ..Default::default()
        };
        match protocol {
            Protocol::Undeclared => vec![self.http(plain_http(port)), self.tcp(plain)],
            http if http.is_http() => vec![self.http(plain)],
            _ => vec![self.tcp(plain)],
        }
    }

    fn http(&self, matches: listener::FilterChainMatch) -> listener::FilterChain {
        let (name, prefix) = match self.port {
            Some(port) => {
                let name = names::listener(WILDCARD, u32::from(port));
                (name.clone(), format!("inbound_{name}"))
            }
            None => (
                "virtualInbound-catchall-http".to_string(),
                self.cluster.clone(),
            ),
        };
        let table = inbound_routes(&self.cluster, self.port.unwrap_or(0), self.service);
        let routes = Routes::Inline(Box::new(table));
        let manager = connection::http(
            Side::SidecarInbound,
            prefix,
            routes,
            &self.snapshot.settings,
        );
        let manager = self.guard.over_http(manager);
        let filter = "envoy.filters.network.http_connection_manager";
        listener::FilterChain {
            name,
            filter_chain_match: Some(matches),
            filters: vec![envoy::network_filter(filter, &manager)],
            ..Default::default()
        }
    }

    fn tcp(&self, matches: listener::FilterChainMatch) -> listener::FilterChain {
        let name = match self.port {
            Some(port) => names::listener(WILDCARD, u32::from(port)),
            None => "virtualInbound".to_string(),
        };
        let chain = to_cluster(&self.cluster, self.snapshot);
        listener::FilterChain {
            name,
            filter_chain_match: Some(matches),
            filters: self.guard.over_tcp(chain.filters),
            ..Default::default()
        }
    }
}
