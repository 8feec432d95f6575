//! Which ports a gateway proxy opens: the servers of all its Gateways, merged by address.

use std::collections::BTreeMap;

use lateen_model::servers::{self, MergedPort, MergedServer, ServerKind};
use lateen_model::{MeshSnapshot, Proxy, TargetPort};

use crate::names;

/// The ports of a gateway proxy, by bound port.
pub fn ports<'a>(snapshot: &'a MeshSnapshot, proxy: &'a Proxy) -> Vec<MergedPort<'a>> {
    let gateways = snapshot.gateways_for(&proxy.labels);
    let bound = |port| bound_port(snapshot, proxy, port);
    servers::merge(gateways, &proxy.bind, bound).ports
}

/// Whether clients of the proxy may name the cluster they want.
pub fn passes_by_name(snapshot: &MeshSnapshot, proxy: &Proxy) -> bool {
    snapshot
        .gateways_for(&proxy.labels)
        .any(|gateway| servers::is_by_name(&gateway.spec))
}

/// The port behind a port of the gateway's Service; a port no Service names is bound as it is.
fn bound_port(snapshot: &MeshSnapshot, proxy: &Proxy, port: u32) -> u32 {
    let Some(workload) = snapshot.workload_of(proxy) else {
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

/// The HTTP servers of a gateway proxy by the route table they use.
pub fn http_servers<'a>(
    snapshot: &'a MeshSnapshot,
    proxy: &'a Proxy,
) -> BTreeMap<String, Vec<MergedServer<'a>>> {
    let mut tables: BTreeMap<String, Vec<MergedServer<'a>>> = BTreeMap::new();
    for port in ports(snapshot, proxy) {
        let http = |server: &&MergedServer<'a>| {
            matches!(server.kind, ServerKind::Http | ServerKind::Https)
        };
        let first = port.servers.first();
        for server in port.servers.iter().filter(http) {
            // The plain ones of a port share the table that its listener asks for.
            let named = match server.kind {
                ServerKind::Https => server,
                _ => first.unwrap_or(server),
            };
            let name = names::gateway_routes(&port, named);
            tables.entry(name).or_default().push(*server);
        }
    }
    tables
}
