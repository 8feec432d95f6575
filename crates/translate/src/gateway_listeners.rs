//! Listeners of a gateway: one for each address its servers bind, with a filter chain for each
//! server name where TLS says it (`pilot/pkg/networking/core/gateway.go`).

use std::borrow::Cow;
use std::collections::BTreeSet;

use lateen_model::servers::{MergedPort, MergedServer, ServerKind};
use lateen_model::{Location, MeshSettings, MeshSnapshot, Protocol, Proxy, hostname};

use crate::connection_manager::{self as connection, Routes, Side};
use crate::envoy::{self, core, listener, tcp};
use crate::guard::{Guard, Guards};
use crate::{l4, names, secrets, tls_context};

/// What sidecars offer by ALPN when they speak the mesh's TLS. A gateway passes nothing else on to
/// clusters that are named by the client.
const MESH_TLS: [&str; 5] = [
    "istio-peer-exchange",
    "istio",
    "istio-http/1.0",
    "istio-http/1.1",
    "istio-h2",
];

/// The listener of one port; `None` when nothing could be done with a connection.
pub fn listener(
    snapshot: &MeshSnapshot,
    proxy: &Proxy,
    port: &MergedPort<'_>,
) -> Option<listener::Listener> {
    let name = names::listener(&port.bind, port.number);
    let settings = settings_for(snapshot, proxy);
    let served = Served {
        snapshot,
        proxy,
        settings: &settings,
        guard: Guards::of(snapshot, proxy).at(&[]),
        port,
        listener: &name,
    };
    let may_serve = |server: &&MergedServer<'_>| {
        let mut secrets = tls_context::secrets(server).into_iter();
        !secrets.any(|name| secrets::is_refused(snapshot, proxy, &name))
    };
    let mut taken: BTreeSet<String> = port
        .servers
        .iter()
        .filter(|server| server.kind.terminates())
        .flat_map(MergedServer::host_names)
        .collect();
    let mut chains = Vec::new();
    match port.servers.first()?.kind {
        // All of them are, and the route table tells them apart.
        ServerKind::Http => chains.push(served.http_chain(port.servers.first()?)?),
        _ => {
            for server in port.servers.iter().filter(may_serve) {
                chains.extend(served.server_chains(server, &mut taken));
            }
        }
    }
    if chains.is_empty() {
        return None;
    }
    // A chain for every connection goes last; the order of the others has no meaning.
    chains.sort_by_key(|chain| chain.filter_chain_match.is_none());
    for chain in chains.iter_mut().filter(|c| c.transport_socket.is_some()) {
        let limit = envoy::duration(settings.handshake_timeout);
        chain.transport_socket_connect_timeout = Some(limit);
    }
    let mut inspectors = Vec::new();
    if settings.gateway_topology.proxy_protocol {
        inspectors.push(proxy_protocol());
    }
    if chains.iter().any(l4::needs_tls_inspection) {
        inspectors.push(tls_context::inspector());
    }
    Some(listener::Listener {
        name,
        address: Some(envoy::socket_address(&port.bind, port.number)),
        listener_filters: inspectors,
        filter_chains: chains,
        traffic_direction: core::TrafficDirection::Outbound as i32,
        ..Default::default()
    })
}

/// The mesh's settings with what the proxy's own configuration says instead.
fn settings_for<'a>(snapshot: &'a MeshSnapshot, proxy: &Proxy) -> Cow<'a, MeshSettings> {
    match &proxy.topology {
        None => Cow::Borrowed(&*snapshot.settings),
        Some(topology) => Cow::Owned(MeshSettings {
            gateway_topology: topology.clone(),
            ..MeshSettings::clone(&snapshot.settings)
        }),
    }
}

/// Connections begin with a header that says who the client is.
fn proxy_protocol() -> listener::ListenerFilter {
    let filter =
        envoy_types::pb::envoy::extensions::filters::listener::proxy_protocol::v3::ProxyProtocol::default();
    listener::ListenerFilter {
        name: "envoy.filters.listener.proxy_protocol".to_string(),
        config_type: Some(listener::listener_filter::ConfigType::TypedConfig(
            envoy::any(&filter),
        )),
        ..Default::default()
    }
}

/// One port of a gateway, and what its chains have in common.
struct Served<'a> {
    snapshot: &'a MeshSnapshot,
    proxy: &'a Proxy,
    settings: &'a MeshSettings,
    guard: Guard,
    port: &'a MergedPort<'a>,
    listener: &'a str,
}

impl Served<'_> {
    /// What the servers' TLS depends on of the mesh and the proxy.
    fn own(&self) -> (&MeshSettings, bool) {
        (self.settings, self.snapshot.has_identity(self.proxy))
    }

    fn server_chains(
        &self,
        server: &MergedServer<'_>,
        taken: &mut BTreeSet<String>,
    ) -> Vec<listener::FilterChain> {
        let (snapshot, proxy) = (self.snapshot, self.proxy);
        let mut chains: Vec<_> = match server.kind {
            ServerKind::Http | ServerKind::Https => {
                return self.http_chain(server).into_iter().collect();
            }
            ServerKind::Tcp => {
                let to = l4::gateway_tcp(snapshot, proxy, server);
                to.map(|to| l4::chain(&[], &[], to)).into_iter().collect()
            }
            ServerKind::TlsToTcp => {
                let socket = tls_context::downstream(server, self.own());
                let to = l4::gateway_tcp(snapshot, proxy, server);
                let chain = socket.zip(to).map(|(socket, to)| listener::FilterChain {
                    transport_socket: Some(socket),
                    ..l4::chain(&server.server_names(), &[], to)
                });
                chain.into_iter().collect()
            }
            ServerKind::Passthrough => l4::gateway_tls(snapshot, proxy, server, taken),
            ServerKind::AutoPassthrough => auto_passthrough(snapshot, proxy, server),
        };
        for chain in &mut chains {
            chain.filters = self.guard.over_tcp(std::mem::take(&mut chain.filters));
        }
        chains
    }

    /// The chain of an HTTP server, behind TLS where it says so.
    fn http_chain(&self, server: &MergedServer<'_>) -> Option<listener::FilterChain> {
        let routes = Routes::Rds(names::gateway_routes(self.port, server));
        let prefix = match (server.kind, server.server.name.as_str()) {
            (ServerKind::Https, name) if !name.is_empty() => name.to_string(),
            _ => format!("outbound_{}", self.listener),
        };
        let manager = connection::http(Side::Gateway, prefix, routes, self.settings);
        let mut chain = listener::FilterChain {
            filters: vec![envoy::network_filter(
                "envoy.filters.network.http_connection_manager",
                &self.guard.over_http(manager),
            )],
            ..Default::default()
        };
        if server.kind == ServerKind::Https {
            chain.transport_socket = Some(tls_context::downstream(server, self.own())?);
            chain.filter_chain_match = l4::chain_match(&server.server_names(), &[]);
        }
        Some(chain)
    }
}

/// A chain for each cluster that a client may name: those of the mesh's own services that the
/// server's hosts cover.
fn auto_passthrough(
    snapshot: &MeshSnapshot,
    proxy: &Proxy,
    server: &MergedServer<'_>,
) -> Vec<listener::FilterChain> {
    let hosts = server.host_names();
    let covered = |host: &str| hosts.iter().any(|pattern| hostname::matches(pattern, host));
    let mut chains = Vec::new();
    for service in snapshot.visible_services(&proxy.namespace) {
        if service.location == Location::External || !covered(&service.hostname) {
            continue;
        }
        let rule = snapshot.destination_rule_for(proxy, service);
        let subsets: Vec<&str> = rule
            .into_iter()
            .flat_map(|rule| &rule.subsets)
            .map(|subset| subset.name.as_str())
            .collect();
        for port in service.ports.iter().filter(|p| p.protocol != Protocol::Udp) {
            for subset in std::iter::once("").chain(subsets.iter().copied()) {
                let cluster = names::sni_cluster(port.number, subset, &service.hostname);
                let to = connection::tcp_proxy(
                    cluster.clone(),
                    tcp::tcp_proxy::ClusterSpecifier::Cluster(cluster.clone()),
                    &snapshot.settings,
                );
                let mut chain = l4::chain(&[cluster], &[], to);
                if let Some(found) = &mut chain.filter_chain_match {
                    found.application_protocols = MESH_TLS.map(str::to_string).to_vec();
                }
                chains.push(chain);
            }
        }
    }
    chains
}
