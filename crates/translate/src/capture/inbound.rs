//! `virtualInbound`: everything that comes to a workload whose traffic is redirected.
//!
//! Each port that a service leads to has filter chains of its own, one for each kind of connection
//! that it takes (`inbound_tls.rs`). The others pass through to the application, with the mutual TLS
//! that holds for the workload (fact 45), and a connection made to the capture port itself goes
//! nowhere.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lateen_api::gateway::ServerTlsSettings;
use lateen_model::{
    Interception, MeshSnapshot, Protocol, Proxy, Scope, Service, ServicePort, Sidecar,
};

use super::{INBOUND_PORT, WILDCARD, outbound::to_cluster};
use crate::cache::ById;
use crate::connection_manager::{self as connection, Routes, Side};
use crate::envoy::{self, core, listener};
use crate::guard::{Guard, Guards};
use crate::inbound_tls::{self, Inbound};
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
    tls: Option<ServerTlsSettings>,
}

/// Ports of the workload that services lead to: of several services on a port the oldest counts. A
/// Sidecar with ingress listeners says itself which ports there are.
pub fn ports(
    snapshot: &MeshSnapshot,
    proxy: &Proxy,
    sidecar: Option<&Arc<Sidecar>>,
) -> Vec<CapturedPort> {
    let told = sidecar.is_some_and(|sidecar| !sidecar.spec.ingress.is_empty());
    let workload = snapshot.workload_of(proxy);
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
            let number = workload.port_for(service, port).map(u16::try_from);
            if let Some(Ok(number)) = number {
                ports.entry(number).or_insert_with(|| CapturedPort {
                    number,
                    protocol: port.protocol,
                    service: Some((service.clone(), port.clone())),
                    to: InboundTarget {
                        address: None,
                        port: number,
                        limits: limits.map(|sidecar| (ById(sidecar.clone()), None)),
                    },
                    tls: None,
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
    let mtls = snapshot.mtls_of(proxy);
    let inbound = |mode| Inbound {
        mode,
        has_identity: snapshot.has_identity(proxy),
        mesh: &snapshot.settings,
        own: None,
    };
    let passed = |port: Option<u16>| Served {
        snapshot,
        port,
        service: None,
        cluster: names::INBOUND_PASSTHROUGH_CLUSTER.to_string(),
        guard: guards.at(port.as_slice()),
        inbound: inbound(mtls.of_port(port.map(u32::from))),
    };
    let mut inspected = Inspected::default();
    let rest = passed(None);
    chains.extend(rest.chains(Protocol::Undeclared, &mut inspected));
    let told = told.into_iter().map(|port| CapturedPort {
        number: port.number,
        protocol: port.protocol,
        service: port.service,
        to: port.to,
        tls: port.tls,
    });
    let mut own = BTreeSet::new();
    for port in ports(snapshot, proxy, scope.sidecar())
        .into_iter()
        .chain(told)
    {
        own.insert(u32::from(port.number));
        let service = port.service.as_ref();
        let served = Served {
            snapshot,
            port: Some(port.number),
            service: service.map(|(service, port)| (service.as_ref(), port)),
            cluster: names::inbound_cluster(port.number),
            guard: guards.at(&[port.number]),
            inbound: Inbound {
                own: port.tls.as_ref(),
                ..inbound(mtls.of_port([u32::from(port.number)]))
            },
        };
        chains.extend(served.chains(port.protocol, &mut inspected));
    }
    // Ports that no service leads to may have a mode of their own.
    let others = mtls.ports.keys().filter(|port| !own.contains(*port));
    for port in others.filter_map(|port| u16::try_from(*port).ok()) {
        chains.extend(passed(Some(port)).chains(Protocol::Undeclared, &mut inspected));
    }
    listener::Listener {
        name: names::VIRTUAL_INBOUND.to_string(),
        address: Some(envoy::socket_address(WILDCARD, INBOUND_PORT)),
        filter_chains: chains,
        listener_filters: inspected.filters(),
        listener_filters_timeout: Some(envoy::duration(
            snapshot.settings.protocol_detection_timeout,
        )),
        continue_on_listener_filters_timeout: true,
        traffic_direction: core::TrafficDirection::Inbound as i32,
        ..Default::default()
    }
}

/// Which ports' first bytes are looked at: those alone whose chains ask for it, since where the
/// server speaks first there are none.
#[derive(Default)]
struct Inspected {
    /// By port (`None`: all others): for TLS, and for plain HTTP.
    ports: BTreeMap<Option<u16>, (bool, bool)>,
}

impl Inspected {
    fn filters(&self) -> Vec<listener::ListenerFilter> {
        let tls = self.filter(crate::tls_context::inspector(), |looks| looks.0);
        let http = self.filter(super::http_inspector_filter(), |looks| looks.1);
        let first = super::original_dst_filter();
        std::iter::once(first).chain(tls).chain(http).collect()
    }

    /// The filter, disabled for ports that need none; nothing when none does.
    fn filter(
        &self,
        filter: listener::ListenerFilter,
        looks: impl Fn(&(bool, bool)) -> bool,
    ) -> Option<listener::ListenerFilter> {
        let by_default = self.ports.get(&None).is_some_and(&looks);
        let ports = self.ports.iter().filter(|(_, of)| looks(of) != by_default);
        let mut other: Vec<u32> = ports.filter_map(|(port, _)| port.map(u32::from)).collect();
        if by_default {
            other.push(INBOUND_PORT);
            other.sort_unstable();
        } else if other.is_empty() {
            return None;
        }
        let disabled = match by_default {
            true => one_of(&other),
            false => listener::ListenerFilterChainMatchPredicate {
                rule: Some(Rule::NotMatch(Box::new(one_of(&other)))),
            },
        };
        Some(listener::ListenerFilter {
            filter_disabled: Some(disabled),
            ..filter
        })
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
    inbound: Inbound<'a>,
}

impl Served<'_> {
    fn chains(&self, protocol: Protocol, inspected: &mut Inspected) -> Vec<listener::FilterChain> {
        let kinds = self.inbound.kinds(protocol);
        inspected
            .ports
            .insert(self.port, inbound_tls::inspected(&kinds));
        let chain = |kind: &inbound_tls::Kind| {
            let filters = match kind.http {
                true => vec![self.http()],
                false => self.tcp(),
            };
            listener::FilterChain {
                name: self.name(kind.http),
                ..self.inbound.chain(kind, self.port, filters)
            }
        };
        kinds.iter().map(chain).collect()
    }

    /// Whether no service leads to the port.
    fn is_passed(&self) -> bool {
        self.cluster == names::INBOUND_PASSTHROUGH_CLUSTER
    }

    fn name(&self, http: bool) -> String {
        match self.port {
            Some(port) if !self.is_passed() => names::listener(WILDCARD, u32::from(port)),
            _ if http => "virtualInbound-catchall-http".to_string(),
            _ => names::VIRTUAL_INBOUND.to_string(),
        }
    }

    fn http(&self) -> listener::Filter {
        let prefix = match self.is_passed() {
            false => format!("inbound_{}", self.name(true)),
            true => self.cluster.clone(),
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
        envoy::network_filter("envoy.filters.network.http_connection_manager", &manager)
    }

    fn tcp(&self) -> Vec<listener::Filter> {
        self.guard
            .over_tcp(to_cluster(&self.cluster, self.snapshot).filters)
    }
}
