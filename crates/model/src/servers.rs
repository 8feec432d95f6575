//! The servers of all Gateways of one gateway workload, merged by the address they bind.
//!
//! The rules are Istio's (`pilot/pkg/model/gateway.go`), oldest Gateway first: plain HTTP servers
//! share a port, servers with TLS share a port as long as no host is served twice, and nothing else
//! does. What does not fit is left out, and who is in the way is said.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use lateen_api as api;
use lateen_api::gateway::{Server, ServerTlsMode};

use crate::protocol::Protocol;
use crate::rules::{Gateway, ServerHost};

/// What a server does with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ServerKind {
    Http,
    /// HTTP after TLS ends here.
    Https,
    Tcp,
    /// Bytes after TLS ends here.
    TlsToTcp,
    /// TLS goes on to where a VirtualService sends its server name.
    Passthrough,
    /// TLS goes on to the cluster that its server name names.
    AutoPassthrough,
}

impl ServerKind {
    /// The kind of a server; `None` without a port.
    pub fn of(server: &Server) -> Option<ServerKind> {
        let port = server.port.as_ref()?;
        let protocol = Protocol::parse(&port.protocol).unwrap_or(Protocol::Tcp);
        if protocol.is_http() {
            return Some(ServerKind::Http);
        }
        let tls = match (&server.tls, protocol) {
            (Some(tls), Protocol::Https | Protocol::Tls) => tls,
            _ => return Some(ServerKind::Tcp),
        };
        Some(match tls.mode.unwrap_or_default() {
            ServerTlsMode::Passthrough => ServerKind::Passthrough,
            ServerTlsMode::AutoPassthrough => ServerKind::AutoPassthrough,
            _ if protocol == Protocol::Https => ServerKind::Https,
            _ => ServerKind::TlsToTcp,
        })
    }

    /// Whether connections begin with TLS.
    pub fn is_tls(self) -> bool {
        !matches!(self, ServerKind::Http | ServerKind::Tcp)
    }

    /// Whether TLS ends at the gateway.
    pub fn terminates(self) -> bool {
        matches!(self, ServerKind::Https | ServerKind::TlsToTcp)
    }
}

/// Whether a server of the Gateway lets its clients name their cluster.
pub fn is_by_name(gateway: &api::Gateway) -> bool {
    let mut servers = gateway.servers.iter();
    servers.any(|server| ServerKind::of(server) == Some(ServerKind::AutoPassthrough))
}

/// One server of a Gateway.
#[derive(Clone, Copy, Debug)]
pub struct MergedServer<'a> {
    pub gateway: &'a Arc<Gateway>,
    pub server: &'a Server,
    /// Place in `spec.servers`.
    pub index: usize,
    pub kind: ServerKind,
    /// The port as the Gateway says it.
    pub port: u32,
}

impl MergedServer<'_> {
    /// Hosts without the namespaces that may attach to them, each once.
    pub fn host_names(&self) -> Vec<String> {
        let namespace = &self.gateway.origin.namespace;
        let hosts = self.server.hosts.iter();
        let mut names: Vec<String> = hosts
            .map(|text| ServerHost::parse(text, namespace).host.to_ascii_lowercase())
            .collect();
        names.sort();
        names.dedup();
        names
    }

    /// The server names a connection must ask for; empty takes every connection.
    pub fn server_names(&self) -> Vec<String> {
        let names = self.host_names();
        match names.iter().any(|name| name == "*") {
            true => Vec::new(),
            false => names,
        }
    }
}

/// What one address of a gateway serves; never empty, and all plain HTTP, one plain TCP, or all TLS.
#[derive(Clone, Debug)]
pub struct MergedPort<'a> {
    pub bind: String,
    /// The port that is bound.
    pub number: u32,
    /// Oldest Gateway first.
    pub servers: Vec<MergedServer<'a>>,
}

/// A server that is left out.
#[derive(Clone, Debug)]
pub struct Rejected<'a> {
    pub server: MergedServer<'a>,
    /// The Gateway that is in the way, and its server.
    pub by: (&'a Arc<Gateway>, usize),
    pub why: Conflict,
}

/// Why two servers cannot share a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Conflict {
    /// One speaks TLS or HTTP, the other does not.
    Protocol,
    /// Both want these hosts with certificates or routes of their own.
    Hosts(Vec<String>),
    /// Two HTTPS servers of one Gateway with one port name.
    PortName,
}

/// The servers of a gateway workload.
#[derive(Clone, Debug, Default)]
pub struct MergedServers<'a> {
    pub ports: Vec<MergedPort<'a>>,
    pub rejected: Vec<Rejected<'a>>,
}

/// Merges Gateways given oldest first. `bound` is the port behind a port of the gateway's Service,
/// `bind` the address of servers that name none.
pub fn merge<'a>(
    gateways: impl Iterator<Item = &'a Arc<Gateway>>,
    bind: &str,
    bound: impl Fn(u32) -> u32,
) -> MergedServers<'a> {
    let mut ports: BTreeMap<(u32, String), MergedPort<'a>> = BTreeMap::new();
    let mut rejected = Vec::new();
    let servers = gateways.flat_map(|gateway| {
        let servers = gateway.spec.servers.iter().enumerate();
        servers.filter_map(move |(index, server)| {
            Some(MergedServer {
                gateway,
                server,
                index,
                kind: ServerKind::of(server)?,
                port: server.port.as_ref()?.number,
            })
        })
    });
    for one in servers {
        let bind = match one.server.bind.as_str() {
            "" => bind,
            own => own,
        };
        // A socket in the file system has no effect yet; it is reported where it is applied.
        if bind.parse::<IpAddr>().is_err() {
            continue;
        }
        let number = bound(one.port);
        let port = ports
            .entry((number, bind.to_string()))
            .or_insert_with(|| MergedPort {
                bind: bind.to_string(),
                number,
                servers: Vec::new(),
            });
        match conflict(&port.servers, &one) {
            None => port.servers.push(one),
            Some((by, why)) => rejected.push(Rejected {
                server: one,
                by: (by.gateway, by.index),
                why,
            }),
        }
    }
    MergedServers {
        ports: ports.into_values().collect(),
        rejected,
    }
}

fn conflict<'s, 'a>(
    present: &'s [MergedServer<'a>],
    one: &MergedServer<'a>,
) -> Option<(&'s MergedServer<'a>, Conflict)> {
    let first = present.first()?;
    let fits = match (first.kind, one.kind) {
        (ServerKind::Http, ServerKind::Http) => true,
        (a, b) => a.is_tls() && b.is_tls(),
    };
    if !fits {
        return Some((first, Conflict::Protocol));
    }
    if !one.kind.is_tls() {
        return None;
    }
    let wanted = one.host_names();
    for other in present {
        let taken = other.host_names();
        let both: Vec<String> = wanted
            .iter()
            .filter(|host| taken.contains(host))
            .cloned()
            .collect();
        if !both.is_empty() {
            return Some((other, Conflict::Hosts(both)));
        }
        let same_name = |a: &Server, b: &Server| {
            a.port.as_ref().map(|port| &port.name) == b.port.as_ref().map(|port| &port.name)
        };
        if one.kind == ServerKind::Https
            && other.kind == ServerKind::Https
            && Arc::ptr_eq(other.gateway, one.gateway)
            && same_name(other.server, one.server)
        {
            return Some((other, Conflict::PortName));
        }
    }
    None
}
