//! Which ports a gateway proxy opens: the servers of all its Gateways, merged by port.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use lateen_api::gateway::Server;
use lateen_model::{Gateway, MeshSnapshot, Protocol, Proxy, TargetPort};

/// One port of a gateway proxy.
pub struct GatewayPort<'a> {
    /// Address to bind.
    pub bind: String,
    /// The port that is bound.
    pub number: u32,
    /// The port as the Gateway says it.
    pub server_port: u32,
    pub protocol: Protocol,
    /// Oldest Gateway first.
    pub servers: Vec<(&'a Arc<Gateway>, &'a Server)>,
}

/// The plain HTTP and TCP ports of a gateway proxy, by bound port. Of servers on one port that
/// speak different protocols, those of the oldest Gateway's protocol stay.
pub fn ports<'a>(snapshot: &'a MeshSnapshot, proxy: &'a Proxy) -> Vec<GatewayPort<'a>> {
    let mut ports: BTreeMap<(String, u32), GatewayPort<'a>> = BTreeMap::new();
    for gateway in snapshot.gateways_for(&proxy.labels) {
        for server in &gateway.spec.servers {
            let Some(port) = &server.port else { continue };
            let protocol = Protocol::parse(&port.protocol).unwrap_or(Protocol::Tcp);
            // Servers that terminate or pass TLS come with certificates; until then they are
            // reported as without effect where they are applied.
            if !protocol.is_http() && protocol != Protocol::Tcp {
                continue;
            }
            let number = bound_port(snapshot, proxy, port.number);
            let bind = if server.bind.is_empty() {
                proxy.bind.clone()
            } else {
                server.bind.clone()
            };
            // A socket in the file system has no effect yet; it is reported where it is applied.
            if bind.parse::<IpAddr>().is_err() {
                continue;
            }
            let entry = ports
                .entry((bind.clone(), number))
                .or_insert_with(|| GatewayPort {
                    bind,
                    number,
                    server_port: port.number,
                    protocol,
                    servers: Vec::new(),
                });
            if entry.protocol.is_http() == protocol.is_http() {
                entry.servers.push((gateway, server));
            }
        }
    }
    ports.into_values().collect()
}

/// The port behind a port of the gateway's Service; a port no Service names is bound as it is.
fn bound_port(snapshot: &MeshSnapshot, proxy: &Proxy, port: u32) -> u32 {
    let Some(workload) = snapshot.workload(&proxy.namespace, &proxy.name) else {
        return port;
    };
    let of_service = snapshot
        .services_of(workload)
        .find_map(|service| service.port(port));
    match of_service.map(|port| (&port.target, port)) {
        None => port,
        Some((TargetPort::Number(number), _)) => *number,
        Some((TargetPort::Name(name), port)) => {
            workload.ports.get(name).copied().unwrap_or(port.number)
        }
    }
}
