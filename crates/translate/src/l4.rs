//! Routes of connections whose inside is not read: the `tcp` and `tls` routes of VirtualServices
//! (`pilot/pkg/networking/core/tls.go`, `gateway.go`).
//!
//! What is known when configuration is made (gateway, port, labels and namespace of the proxy)
//! chooses among the routes; the server name and the destination address become filter chain
//! matches.

use std::collections::BTreeSet;
use std::sync::Arc;

use lateen_api::virtual_service::{L4MatchAttributes, RouteDestination, TlsMatchAttributes};
use lateen_model::servers::MergedServer;
use lateen_model::{
    MESH_GATEWAY, MeshSnapshot, Protocol, Proxy, ProxyKind, Resolution, Scope, ServerHost, Service,
    ServicePort, VirtualService, hostname, labels_match, resolve_gateway,
};

use crate::by_name;
use crate::connection_manager as connection;
use crate::destination_policy;
use crate::envoy::{self, core, listener, tcp};
use crate::names;
use crate::route_action::Destinations;

use tcp::tcp_proxy::{ClusterSpecifier, WeightedCluster, weighted_cluster::ClusterWeight};

/// The rules of a sidecar that have anything to say about connections, oldest first.
pub struct ConnectionRules<'a>(Vec<&'a Arc<VirtualService>>);

impl<'a> ConnectionRules<'a> {
    /// Those that a proxy sees.
    pub fn of(scope: &Scope<'a>) -> Self {
        let rules = scope.snapshot().connection_rules();
        ConnectionRules(rules.filter(|rule| scope.counts(rule)).collect())
    }

    fn of_host(&self, host: &str) -> impl Iterator<Item = &'a Arc<VirtualService>> {
        let covers = move |rule: &&Arc<VirtualService>| {
            rule.hosts
                .iter()
                .any(|pattern| hostname::matches(pattern, host))
        };
        self.0.iter().copied().filter(covers)
    }
}

/// Where a sidecar's listener for a service port stands.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    /// Addresses of the service that share the listener with others' (a range, or one address of a
    /// listener for all); empty where the listener is the service's own.
    pub destinations: &'a [String],
    /// Whether only the server name tells services apart.
    pub by_server_name: bool,
}

/// The filter chains of a sidecar for one service port that is not HTTP.
pub fn sidecar(
    snapshot: &MeshSnapshot,
    proxy: &Proxy,
    rules: &ConnectionRules<'_>,
    service: &Service,
    port: &ServicePort,
    place: Place<'_>,
) -> Vec<listener::FilterChain> {
    let chooser = Chooser {
        snapshot,
        proxy,
        gateway: MESH_GATEWAY,
        port: port.number,
    };
    let default = || {
        let cluster = names::outbound_cluster(port.number, "", &service.hostname);
        to_cluster(
            cluster.clone(),
            ClusterSpecifier::Cluster(cluster),
            (snapshot, proxy),
        )
    };
    let of_host = rules.of_host(&service.hostname);
    match port.protocol {
        Protocol::Tls | Protocol::Https => {
            let mut chains = chooser.tls_chains(of_host, place);
            if chains.is_empty() {
                let by_name = ByName::of(snapshot, &service.hostname, port.number);
                let names = match place.by_server_name || by_name.is_some() {
                    true => vec![service.hostname.to_string()],
                    false => Vec::new(),
                };
                let to = Target {
                    to: default(),
                    by_name,
                };
                chains.extend(to.chain(&names, place.destinations, snapshot));
            }
            chains
        }
        _ => {
            let (mut chains, complete) = chooser.tcp_chains(of_host, place);
            if !complete {
                chains.push(chain(&[], place.destinations, default()));
            }
            chains
        }
    }
}

/// Where connections of a chain go.
struct Target {
    to: tcp::TcpProxy,
    by_name: Option<ByName>,
}

/// The destination is whatever the server name leads to.
struct ByName {
    /// The names that may be asked for, `*.example.com`.
    pattern: Box<str>,
    port: u32,
}

impl ByName {
    fn of(snapshot: &MeshSnapshot, host: &str, port: u32) -> Option<ByName> {
        let service = snapshot.service(host)?;
        (service.resolution == Resolution::ByRequest).then(|| ByName {
            pattern: host.into(),
            port,
        })
    }
}

impl Target {
    /// The chain for connections that ask for one of these names. Where the names lead the way,
    /// nobody gets anywhere by a name that the destination does not cover.
    fn chain(
        self,
        names: &[String],
        subnets: &[String],
        snapshot: &MeshSnapshot,
    ) -> Option<listener::FilterChain> {
        let Some(ByName { pattern, port }) = self.by_name else {
            return Some(chain(names, subnets, self.to));
        };
        let covered = names
            .iter()
            .filter_map(|name| hostname::intersection(&pattern, name));
        let covered: Vec<String> = covered.map(str::to_owned).collect();
        if covered.is_empty() {
            return None;
        }
        let mut made = chain(&covered, subnets, self.to);
        let filter = by_name::server_name_filter(port, &snapshot.settings);
        made.filters.insert(0, filter);
        Some(made)
    }
}

/// A TCP proxy as the policy of its destination wants it.
fn to_cluster(
    prefix: String,
    to: ClusterSpecifier,
    (snapshot, proxy): (&MeshSnapshot, &Proxy),
) -> tcp::TcpProxy {
    let mut made = connection::tcp_proxy(prefix, to, &snapshot.settings);
    destination_policy::apply_to_connections(&mut made, snapshot, proxy);
    made
}

/// Where a gateway's server sends its connections by the `tcp` routes of the first rule that has
/// one for it.
pub fn gateway_tcp(
    snapshot: &MeshSnapshot,
    proxy: &Proxy,
    server: &MergedServer<'_>,
) -> Option<tcp::TcpProxy> {
    let gateway = server.gateway.full_name();
    let chooser = Chooser {
        snapshot,
        proxy,
        gateway: &gateway,
        port: server.port,
    };
    bound(snapshot, proxy, server, &gateway).find_map(|rule| {
        let mut routes = rule.spec.tcp.iter();
        let found = routes.find(|tcp| {
            let mut matches = tcp.matches.iter();
            tcp.matches.is_empty() || matches.any(|item| chooser.at_gateway(rule, item.into()))
        })?;
        Some(chooser.proxy(rule, &found.route)?.to)
    })
}

/// The chains of a gateway's server that passes TLS on, by the `tls` routes of its rules. `taken`
/// are server names that other chains of the listener have.
pub fn gateway_tls(
    snapshot: &MeshSnapshot,
    proxy: &Proxy,
    server: &MergedServer<'_>,
    taken: &mut BTreeSet<String>,
) -> Vec<listener::FilterChain> {
    let gateway = server.gateway.full_name();
    let chooser = Chooser {
        snapshot,
        proxy,
        gateway: &gateway,
        port: server.port,
    };
    let mut chains = Vec::new();
    for rule in bound(snapshot, proxy, server, &gateway) {
        for route in &rule.spec.tls {
            for item in &route.matches {
                let names: Vec<String> = item
                    .sni_hosts
                    .iter()
                    .map(|n| n.to_ascii_lowercase())
                    .collect();
                if !chooser.at_gateway(rule, item.into()) || names.iter().any(|n| taken.contains(n))
                {
                    continue;
                }
                if let Some(to) = chooser.proxy(rule, &route.route) {
                    taken.extend(names.iter().cloned());
                    chains.extend(to.chain(&names, &[], snapshot));
                }
            }
        }
    }
    chains
}

/// Rules that are bound to a server's Gateway and share a host with the server, oldest first.
fn bound<'a>(
    snapshot: &'a MeshSnapshot,
    proxy: &'a Proxy,
    server: &'a MergedServer<'_>,
    gateway: &'a str,
) -> impl Iterator<Item = &'a Arc<VirtualService>> {
    let shares = |rule: &&Arc<VirtualService>| {
        let mut hosts = server.server.hosts.iter();
        hosts.any(|text| {
            let host = ServerHost::parse(text, &server.gateway.origin.namespace);
            let lower = host.host.to_ascii_lowercase();
            let mut of_rule = rule.hosts.iter();
            host.admits(&rule.origin.namespace)
                && of_rule.any(|of| hostname::intersection(&lower, of).is_some())
        })
    };
    snapshot
        .rules_bound_to(gateway)
        .filter(|rule| rule.visibility.reaches(&proxy.namespace))
        .filter(shares)
}

/// The conditions that are known now, of `tcp` and `tls` matches alike.
struct Conditions<'a> {
    port: Option<u32>,
    gateways: &'a [String],
    source_labels: &'a std::collections::BTreeMap<String, String>,
    source_namespace: &'a str,
}

impl<'a> From<&'a L4MatchAttributes> for Conditions<'a> {
    fn from(item: &'a L4MatchAttributes) -> Self {
        Conditions {
            port: item.port,
            gateways: &item.gateways,
            source_labels: &item.source_labels,
            source_namespace: &item.source_namespace,
        }
    }
}

impl<'a> From<&'a TlsMatchAttributes> for Conditions<'a> {
    fn from(item: &'a TlsMatchAttributes) -> Self {
        Conditions {
            port: item.port,
            gateways: &item.gateways,
            source_labels: &item.source_labels,
            source_namespace: &item.source_namespace,
        }
    }
}

/// For whom and for which port routes are chosen.
struct Chooser<'a> {
    snapshot: &'a MeshSnapshot,
    proxy: &'a Proxy,
    /// `mesh` or `namespace/name`.
    gateway: &'a str,
    port: u32,
}

impl Chooser<'_> {
    /// A gateway looks at port and gateway name only.
    fn at_gateway(&self, rule: &VirtualService, item: Conditions<'_>) -> bool {
        let named = |name: &String| resolve_gateway(name, &rule.origin.namespace) == self.gateway;
        item.port.is_none_or(|port| port == 0 || port == self.port)
            && (item.gateways.is_empty() || item.gateways.iter().any(named))
    }

    fn at_sidecar(&self, rule: &VirtualService, item: Conditions<'_>) -> bool {
        labels_match(item.source_labels, &self.proxy.labels)
            && (item.source_namespace.is_empty() || item.source_namespace == self.proxy.namespace)
            && self.at_gateway(rule, item)
    }

    /// One chain for each match; of two for the same server names and addresses the first stays.
    fn tls_chains<'r>(
        &self,
        rules: impl Iterator<Item = &'r Arc<VirtualService>>,
        place: Place<'_>,
    ) -> Vec<listener::FilterChain> {
        let mut chains = Vec::new();
        let mut seen = BTreeSet::new();
        for rule in rules {
            for route in &rule.spec.tls {
                for item in &route.matches {
                    if !self.at_sidecar(rule, item.into()) {
                        continue;
                    }
                    let subnets = match item.destination_subnets.as_slice() {
                        [] => place.destinations,
                        own => own,
                    };
                    let free: Vec<String> = item
                        .sni_hosts
                        .iter()
                        .map(|name| name.to_ascii_lowercase())
                        .filter(|name| seen.insert((name.clone(), subnets.to_vec())))
                        .collect();
                    if free.is_empty() {
                        continue;
                    }
                    let to = self.proxy(rule, &route.route);
                    chains.extend(to.and_then(|to| to.chain(&free, subnets, self.snapshot)));
                }
            }
        }
        chains
    }

    /// The chains, and whether they leave nothing of the service for its default route.
    fn tcp_chains<'r>(
        &self,
        rules: impl Iterator<Item = &'r Arc<VirtualService>>,
        place: Place<'_>,
    ) -> (Vec<listener::FilterChain>, bool) {
        let mut chains = Vec::new();
        let mut seen: BTreeSet<Vec<String>> = BTreeSet::new();
        for rule in rules {
            for route in &rule.spec.tcp {
                let mut subnets = Vec::new();
                let mut everything = route.matches.is_empty();
                for item in &route.matches {
                    if self.at_sidecar(rule, item.into()) {
                        everything |= item.destination_subnets.is_empty();
                        subnets.extend(item.destination_subnets.iter().cloned());
                    }
                }
                if everything {
                    if let Some(to) = self.proxy(rule, &route.route) {
                        chains.push(chain(&[], place.destinations, to.to));
                        return (chains, true);
                    }
                } else if !subnets.is_empty() {
                    subnets.sort();
                    subnets.dedup();
                    if seen.insert(subnets.clone()) {
                        let to = self.proxy(rule, &route.route);
                        chains.extend(to.map(|to| chain(&[], &subnets, to.to)));
                    }
                }
            }
        }
        // Two chains for the same addresses would be refused.
        let mut own = place.destinations.to_vec();
        own.sort();
        let complete = !own.is_empty() && seen.contains(&own);
        (chains, complete)
    }

    /// The TCP proxy to the destinations of a route.
    fn proxy(&self, rule: &VirtualService, route: &[RouteDestination]) -> Option<Target> {
        let destinations = route.iter().filter_map(|one| one.destination.as_ref());
        let known =
            crate::route_table::known_hosts_of(self.snapshot, &rule.origin.namespace, destinations);
        let to = Destinations {
            rule_namespace: &rule.origin.namespace,
            domain_suffix: &self.snapshot.settings.domain_suffix,
            listen_port: self.port,
            known: &known,
        };
        let cluster =
            |one: &RouteDestination| to.cluster(&one.destination.clone().unwrap_or_default());
        let (name, specifier) = match route {
            [] => return None,
            [only] => (cluster(only), ClusterSpecifier::Cluster(cluster(only))),
            many => {
                let weighted = many.iter().filter_map(|one| {
                    let weight = u32::try_from(one.weight.unwrap_or(0)).ok()?;
                    (weight > 0).then(|| ClusterWeight {
                        name: cluster(one),
                        weight,
                        ..Default::default()
                    })
                });
                let name = format!("{}.{}", rule.origin.name, rule.origin.namespace);
                let clusters = weighted.collect();
                let weighted = WeightedCluster { clusters };
                (name, ClusterSpecifier::WeightedClusters(weighted))
            }
        };
        // As in Istio, only where there is one destination.
        let by_name = match &specifier {
            ClusterSpecifier::Cluster(cluster) if self.looks_names_up() => {
                let (port, _, host) = names::parse_outbound(cluster)?;
                ByName::of(self.snapshot, host, port)
            }
            _ => None,
        };
        Some(Target {
            to: to_cluster(name, specifier, (self.snapshot, self.proxy)),
            by_name,
        })
    }

    fn looks_names_up(&self) -> bool {
        self.proxy.kind == ProxyKind::Sidecar || self.snapshot.settings.wildcard_tls_at_gateways
    }
}

/// A chain for connections that ask for one of the names (`*` or none: for any) and go to one of
/// the addresses (none: to any).
pub fn chain(
    server_names: &[String],
    subnets: &[String],
    to: tcp::TcpProxy,
) -> listener::FilterChain {
    listener::FilterChain {
        filter_chain_match: chain_match(server_names, subnets),
        filters: vec![envoy::network_filter(
            "envoy.filters.network.tcp_proxy",
            &to,
        )],
        ..Default::default()
    }
}

/// The match of a chain; `None` takes every connection.
pub fn chain_match(
    server_names: &[String],
    subnets: &[String],
) -> Option<listener::FilterChainMatch> {
    let any_name = server_names.iter().any(|name| name == "*");
    let made = listener::FilterChainMatch {
        server_names: match any_name {
            true => Vec::new(),
            false => server_names.to_vec(),
        },
        prefix_ranges: subnets.iter().filter_map(|subnet| range(subnet)).collect(),
        ..Default::default()
    };
    (made != listener::FilterChainMatch::default()).then_some(made)
}

/// `10.0.0.0/8` or one address.
fn range(subnet: &str) -> Option<core::CidrRange> {
    let (address, length) = match subnet.split_once('/') {
        Some((address, length)) => (address, length.parse().ok()?),
        None if subnet.contains(':') => (subnet, 128),
        None => (subnet, 32),
    };
    address.parse::<std::net::IpAddr>().ok()?;
    Some(core::CidrRange {
        address_prefix: address.to_string(),
        prefix_len: envoy::u32_value(length),
    })
}

/// Whether a chain can only be chosen when the first bytes of a connection are known.
pub fn needs_tls_inspection(chain: &listener::FilterChain) -> bool {
    chain.transport_socket.is_some()
        || chain.filter_chain_match.as_ref().is_some_and(|found| {
            !found.server_names.is_empty() || !found.application_protocols.is_empty()
        })
}
