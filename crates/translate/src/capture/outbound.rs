//! Outbound listeners of a sidecar whose traffic is redirected to it.
//!
//! HTTP services share one listener per port, `0.0.0.0_PORT`, and are told apart by the host of each
//! request. A TCP service has a listener of its own at its virtual address; without one it has to
//! share the listener of its port. Where the two kinds meet on one listener, or where a port does not
//! say what it speaks, the first bytes decide. What no listener takes goes to `virtualOutbound`.

use std::collections::btree_map::Entry as MapEntry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use lateen_model::{MeshSnapshot, OutboundPolicy, Protocol, Proxy, Scope, Service, ServicePort};

use super::{OUTBOUND_PORT, WILDCARD, plain_http};
use crate::by_name;
use crate::connection_manager::{self as connection, Routes, Side};
use crate::envoy::{self, core, listener, tcp};
use crate::l4::{self, ConnectionRules};
use crate::{names, tls_context};

use tcp::tcp_proxy::ClusterSpecifier;

/// The address and port of a listener of service ports.
pub type Bind = (String, u32);

/// Where the listener of this name stands, if it is one of service ports: what [`names::listener`]
/// made of it.
pub fn place(name: &str) -> Option<Bind> {
    let (bind, port) = name.rsplit_once('_')?;
    bind.parse::<IpAddr>().ok()?;
    Some((bind.to_string(), port.parse().ok()?))
}

/// The listeners of service ports that a proxy knows: all, or those that stand at `only` some places.
pub fn listeners(
    snapshot: &MeshSnapshot,
    scope: &Scope<'_>,
    proxy: &Proxy,
    only: Option<&BTreeSet<Bind>>,
) -> Vec<listener::Listener> {
    let mut ports = Ports {
        snapshot,
        rules: ConnectionRules::of(scope),
        by_name: by_name::is_used(scope),
        proxy,
        made: BTreeMap::new(),
    };
    let services = match only {
        None => super::routes::oldest_first(scope),
        Some(only) => services_at(snapshot, scope, only),
    };
    for service in services {
        let imported = |port: &&ServicePort| scope.admits_port(service, port.number);
        for port in service.ports.iter().filter(imported) {
            for place in places(snapshot, proxy, service, port) {
                let is_wanted =
                    |only: &BTreeSet<Bind>| only.contains(&(place.bind.clone(), port.number));
                if only.is_none_or(is_wanted) {
                    ports.enter(service, port, &place);
                }
            }
        }
    }
    let made = ports.made.into_iter();
    made.map(|((bind, port), entry)| finish(snapshot, scope, &bind, port, entry))
        .collect()
}

/// Services that a proxy sees and that may have a part in listeners at some places, oldest first. Of
/// those that speak HTTP on a port for all addresses the oldest is enough: the others add nothing
/// to the listener, they are told apart by the route table.
fn services_at<'a>(
    snapshot: &'a MeshSnapshot,
    scope: &Scope<'a>,
    only: &BTreeSet<Bind>,
) -> Vec<&'a Arc<Service>> {
    let mut found: BTreeMap<_, &'a Arc<Service>> = BTreeMap::new();
    let mut add = |service: &'a Arc<Service>| {
        found.insert(super::routes::age(service), service);
    };
    for (bind, _) in only.iter().filter(|(bind, _)| bind != WILDCARD) {
        let with_length = format!("{bind}/32");
        let hosts = snapshot
            .hosts_at(bind)
            .chain(snapshot.hosts_at(&with_length));
        let hosts = hosts.chain(snapshot.headless_at(bind)).cloned();
        for host in hosts.collect::<BTreeSet<_>>() {
            scope.service(&host).into_iter().for_each(&mut add);
        }
    }
    let shared = only.iter().filter(|(bind, _)| bind == WILDCARD);
    let shared: BTreeSet<u32> = shared.map(|(_, port)| *port).collect();
    let mut oldest: BTreeMap<u32, &'a Arc<Service>> = BTreeMap::new();
    for service in snapshot.services().filter(|_| !shared.is_empty()) {
        let mut ports = service
            .ports
            .iter()
            .filter(|port| shared.contains(&port.number));
        let Some(first) = ports.next() else {
            continue;
        };
        let single = ports.next().is_none().then_some(first);
        let Some(http) = single.filter(|port| port.protocol.is_http()) else {
            if scope.admits(service) {
                add(service);
            }
            continue;
        };
        let is_older =
            |known: &&'a Arc<Service>| super::routes::age(service) < super::routes::age(known);
        let known = oldest.get(&http.number);
        if known.is_none_or(is_older)
            && scope.admits(service)
            && scope.admits_port(service, http.number)
        {
            oldest.insert(http.number, service);
        }
    }
    oldest.into_values().for_each(add);
    found.into_values().collect()
}

/// Where connections to one service port arrive.
struct Place {
    /// The address of the listener.
    bind: String,
    /// Addresses by which the service is known on a listener that it shares.
    range: Vec<String>,
}

fn places(
    snapshot: &MeshSnapshot,
    proxy: &Proxy,
    service: &Service,
    port: &ServicePort,
) -> Vec<Place> {
    let shared = |range| Place {
        bind: WILDCARD.to_string(),
        range,
    };
    let own = |bind: String| Place {
        bind,
        range: Vec::new(),
    };
    if port.protocol == Protocol::Udp {
        return Vec::new();
    }
    if port.protocol.is_http() {
        return vec![shared(Vec::new())];
    }
    if service.is_headless() {
        // A client goes to the address of one workload; to its own it goes past the proxy.
        let endpoints = snapshot.endpoints(&service.hostname);
        let mut addresses: Vec<String> = endpoints
            .of_port(port.number)
            .iter()
            .map(|endpoint| endpoint.workload.address.clone())
            .filter(|address| address.parse::<IpAddr>().is_ok() && *address != proxy.address)
            .collect();
        addresses.sort();
        addresses.dedup();
        return addresses.into_iter().map(own).collect();
    }
    let places: Vec<Place> = service
        .addresses_for(proxy)
        .iter()
        // The wildcard listeners, and the redirection, are of IPv4.
        .filter(|address| !address.contains(':'))
        .filter_map(|address| match address.split_once('/') {
            Some((ip, "32")) if ip.parse::<IpAddr>().is_ok() => Some(own(ip.to_string())),
            Some(_) => Some(shared(vec![address.clone()])),
            None if address.parse::<IpAddr>().is_ok() => Some(own(address.clone())),
            None => None,
        })
        .collect();
    match places.is_empty() {
        true => vec![shared(Vec::new())],
        false => places,
    }
}

/// What a listener serves so far.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Serves {
    Tcp(Protocol),
    /// HTTP and other bytes, told apart by looking at them.
    Both,
}

struct Entry {
    serves: Serves,
    chains: Vec<listener::FilterChain>,
}

struct Ports<'a> {
    snapshot: &'a MeshSnapshot,
    proxy: &'a Proxy,
    rules: ConnectionRules<'a>,
    /// Whether hosts of requests are looked up.
    by_name: bool,
    made: BTreeMap<(String, u32), Entry>,
}

impl Ports<'_> {
    /// Enters a service port. Services come oldest first: of two chains that take the same
    /// connections the first stays.
    fn enter(&mut self, service: &Service, port: &ServicePort, place: &Place) {
        let name = names::listener(&place.bind, port.number);
        let http = || {
            let routes = match place.bind == WILDCARD {
                true => port.number.to_string(),
                // Only this service is behind the listener.
                false => format!("{}:{}", service.hostname, port.number),
            };
            http_chain(&name, routes, self.snapshot, self.by_name)
        };
        let mut chains = Vec::new();
        if !port.protocol.is_http() {
            let by_server_name = place.bind == WILDCARD && place.range.is_empty();
            let place = l4::Place {
                destinations: &place.range,
                by_server_name,
            };
            let Ports {
                snapshot, proxy, ..
            } = self;
            let of_service = l4::sidecar(snapshot, proxy, &self.rules, service, port, place);
            chains.extend(of_service);
        }
        if port.protocol.is_http_or_undeclared() {
            chains.push(http());
        }
        let serves = match port.protocol.is_http_or_undeclared() {
            true => Serves::Both,
            false => Serves::Tcp(port.protocol),
        };
        match self.made.entry((place.bind.clone(), port.number)) {
            MapEntry::Vacant(free) => {
                free.insert(Entry { serves, chains });
            }
            MapEntry::Occupied(taken) => taken.into_mut().merge(serves, chains),
        }
    }
}

impl Entry {
    fn merge(&mut self, serves: Serves, chains: Vec<listener::FilterChain>) {
        match (self.serves, serves) {
            // The route table has both services.
            (Serves::Both, Serves::Both) => return,
            // To look at the first bytes would be to wait for a client that waits for the server.
            (Serves::Tcp(protocol), Serves::Both) | (Serves::Both, Serves::Tcp(protocol))
                if server_first(protocol) =>
            {
                return;
            }
            (_, Serves::Both) => self.serves = Serves::Both,
            _ => {}
        }
        for chain in chains {
            let taken = |have: &listener::FilterChain| {
                have.filter_chain_match.clone().unwrap_or_default()
                    == chain.filter_chain_match.clone().unwrap_or_default()
            };
            if !self.chains.iter().any(taken) {
                self.chains.push(chain);
            }
        }
    }
}

fn server_first(protocol: Protocol) -> bool {
    matches!(protocol, Protocol::Mysql | Protocol::Mongo)
}

fn http_chain(
    name: &str,
    routes: String,
    snapshot: &MeshSnapshot,
    by_name: bool,
) -> listener::FilterChain {
    let mut manager = connection::http(
        Side::SidecarOutbound,
        format!("outbound_{name}"),
        Routes::Rds(routes),
        &snapshot.settings,
    );
    if by_name {
        by_name::add_filter(&mut manager, &snapshot.settings);
    }
    listener::FilterChain {
        filter_chain_match: Some(plain_http(None)),
        filters: vec![envoy::network_filter(
            "envoy.filters.network.http_connection_manager",
            &manager,
        )],
        ..Default::default()
    }
}

/// Puts a listener together: a chain that takes everything is the default one, so that a connection
/// that fits another chain only halfway is not dropped; without such a chain the rest is unknown
/// traffic.
fn finish(
    snapshot: &MeshSnapshot,
    scope: &Scope<'_>,
    bind: &str,
    port: u32,
    entry: Entry,
) -> listener::Listener {
    let mut matches = entry
        .chains
        .iter()
        .filter_map(|c| c.filter_chain_match.as_ref());
    let by_bytes = matches.any(|m| !m.application_protocols.is_empty());
    let mut filters = Vec::new();
    if entry.chains.iter().any(l4::needs_tls_inspection) {
        filters.push(tls_context::inspector());
    }
    if by_bytes {
        filters.push(super::http_inspector_filter());
    }
    let (mut chains, mut rest): (Vec<_>, Vec<_>) = entry
        .chains
        .into_iter()
        .partition(|chain| chain.filter_chain_match.is_some());
    let mut default = rest.pop();
    if chains.is_empty() {
        chains.extend(default.take());
    } else if default.is_none() {
        default = Some(listener::FilterChain {
            name: "PassthroughFilterChain".to_string(),
            ..unknown_traffic(snapshot, scope)
        });
    }
    listener::Listener {
        name: names::listener(bind, port),
        address: Some(envoy::socket_address(bind, port)),
        filter_chains: chains,
        default_filter_chain: default,
        listener_filters: filters,
        listener_filters_timeout: Some(envoy::duration(
            snapshot.settings.protocol_detection_timeout,
        )),
        continue_on_listener_filters_timeout: true,
        bind_to_port: envoy::bool_value(false),
        traffic_direction: core::TrafficDirection::Outbound as i32,
        ..Default::default()
    }
}

/// The listener that all connections of the application are redirected to.
pub fn virtual_outbound(snapshot: &MeshSnapshot, scope: &Scope<'_>) -> listener::Listener {
    listener::Listener {
        name: names::VIRTUAL_OUTBOUND.to_string(),
        address: Some(envoy::socket_address(WILDCARD, OUTBOUND_PORT)),
        use_original_dst: envoy::bool_value(true),
        filter_chains: vec![
            // To pass a connection on that was made to this port would be to call oneself.
            listener::FilterChain {
                name: "virtualOutbound-blackhole".to_string(),
                filter_chain_match: Some(listener::FilterChainMatch {
                    destination_port: envoy::u32_value(OUTBOUND_PORT),
                    ..Default::default()
                }),
                ..to_cluster(names::BLACK_HOLE_CLUSTER, snapshot)
            },
            listener::FilterChain {
                name: "virtualOutbound-catchall-tcp".to_string(),
                ..unknown_traffic(snapshot, scope)
            },
        ],
        traffic_direction: core::TrafficDirection::Outbound as i32,
        ..Default::default()
    }
}

/// The chain for destinations that nobody registered (fact 17).
fn unknown_traffic(snapshot: &MeshSnapshot, scope: &Scope<'_>) -> listener::FilterChain {
    let cluster = match scope.outbound_policy() {
        OutboundPolicy::AllowAny | OutboundPolicy::AllowAnyDynamicDns => names::PASSTHROUGH_CLUSTER,
        OutboundPolicy::RegistryOnly => names::BLACK_HOLE_CLUSTER,
    };
    to_cluster(cluster, snapshot)
}

/// A chain that only passes bytes.
pub(super) fn to_cluster(cluster: &str, snapshot: &MeshSnapshot) -> listener::FilterChain {
    let to = connection::tcp_proxy(
        cluster.to_string(),
        ClusterSpecifier::Cluster(cluster.to_string()),
        &snapshot.settings,
    );
    listener::FilterChain {
        filters: vec![envoy::network_filter(
            "envoy.filters.network.tcp_proxy",
            &to,
        )],
        ..Default::default()
    }
}
