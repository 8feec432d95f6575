//! Which connections to a port of a workload are taken, and how: one filter chain for each kind
//! (fact 44; `pilot/pkg/networking/core/filterchain_options.go`).
//!
//! | | STRICT | PERMISSIVE | DISABLE |
//! |---|---|---|---|
//! | HTTP | mTLS | mTLS with ALPN of the mesh; plain | plain |
//! | TCP | mTLS | mTLS with ALPN of the mesh; plain; foreign TLS as it is | everything as it is |
//! | undeclared | mTLS, HTTP by its ALPN | as TCP, HTTP by its ALPN or its first bytes | as TCP, HTTP by its first bytes |
//!
//! What fits no chain is closed without an answer.

use lateen_api::gateway::ServerTlsSettings;
use lateen_model::{MeshSettings, MtlsMode, Protocol};

use crate::envoy::{self, listener};
use crate::{mesh_tls, names, tls_context};

/// What clients of the mesh offer by ALPN, by what is inside.
const HTTP_OVER_MTLS: [&str; 3] = ["istio-http/1.0", "istio-http/1.1", "istio-h2"];
const TCP_OVER_MTLS: [&str; 2] = ["istio-peer-exchange", "istio"];

/// What the first bytes of plain HTTP are found to be. HTTP/1.0 is not among them: where it is not
/// accepted it passes as TCP, rather than be refused.
const PLAIN_HTTP: [&str; 2] = ["http/1.1", "h2c"];

const RAW: &str = "raw_buffer";
const TLS: &str = "tls";

/// One kind of connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kind {
    transport: &'static str,
    protocols: Vec<&'static str>,
    ends: Ends,
    pub http: bool,
}

/// Whose TLS ends here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ends {
    Nobodys,
    /// With a certificate of the mesh, which the proxy may lack.
    TheMeshs,
    /// With certificates of the port's own.
    Own,
}

/// How the connections of one workload are encrypted.
pub struct Inbound<'a> {
    pub mode: MtlsMode,
    /// Whether the proxy has a certificate to serve with. One without takes what needs none, and
    /// nothing where mutual TLS is a must.
    pub has_identity: bool,
    pub mesh: &'a MeshSettings,
    /// TLS of clients outside the mesh, which counts only where the mesh's own does not.
    pub own: Option<&'a ServerTlsSettings>,
}

impl Inbound<'_> {
    /// The kinds of connections that a port of this protocol takes.
    pub fn kinds(&self, protocol: Protocol) -> Vec<Kind> {
        let sniffed = protocol == Protocol::Undeclared;
        let http = protocol.is_http();
        let mode = match self.mode {
            MtlsMode::Permissive if !self.has_identity => MtlsMode::Disable,
            mode => mode,
        };
        match mode {
            MtlsMode::Strict if sniffed => vec![mtls(&HTTP_OVER_MTLS, true), mtls(&[], false)],
            MtlsMode::Strict => vec![mtls(&[], http)],
            MtlsMode::Permissive if sniffed => vec![
                mtls(&HTTP_OVER_MTLS, true),
                plain(&PLAIN_HTTP, true),
                mtls(&TCP_OVER_MTLS, false),
                plain(&[], false),
                FOREIGN_TLS,
            ],
            MtlsMode::Permissive => {
                let all = [TCP_OVER_MTLS.as_slice(), HTTP_OVER_MTLS.as_slice()].concat();
                let mut kinds = vec![mtls(&all, http), plain(&[], http)];
                // HTTP was declared; TLS that ends elsewhere is not that.
                kinds.extend((!http).then_some(FOREIGN_TLS));
                kinds
            }
            // A port that asks for TLS takes nothing else.
            MtlsMode::Disable if self.own.is_some() => vec![Kind {
                transport: TLS,
                protocols: Vec::new(),
                ends: Ends::Own,
                http,
            }],
            MtlsMode::Disable if sniffed => vec![plain(&PLAIN_HTTP, true), plain(&[], false)],
            MtlsMode::Disable => vec![plain(&[], http)],
        }
    }

    /// The chain for one kind, with what it does with connections.
    pub fn chain(
        &self,
        kind: &Kind,
        port: Option<u16>,
        filters: Vec<listener::Filter>,
    ) -> listener::FilterChain {
        let found = listener::FilterChainMatch {
            destination_port: port.map(u32::from).and_then(envoy::u32_value),
            transport_protocol: kind.transport.to_string(),
            application_protocols: kind.protocols.iter().map(|p| (*p).to_string()).collect(),
            ..Default::default()
        };
        let transport_socket = match kind.ends {
            Ends::Nobodys => None,
            Ends::TheMeshs => self.has_identity.then(|| mesh_tls::server(self.mesh)),
            Ends::Own => self.own.and_then(|tls| {
                tls_context::terminating(tls, kind.http, (self.mesh, self.has_identity))
            }),
        };
        let served = kind.ends == Ends::Nobodys || transport_socket.is_some();
        listener::FilterChain {
            filter_chain_match: Some(found),
            transport_socket_connect_timeout: transport_socket
                .is_some()
                .then(|| envoy::duration(self.mesh.handshake_timeout)),
            transport_socket,
            filters: match served {
                true => filters,
                false => nowhere(),
            },
            ..Default::default()
        }
    }
}

/// TLS of a client that is not of the mesh, for the application to end.
const FOREIGN_TLS: Kind = Kind {
    transport: TLS,
    protocols: Vec::new(),
    ends: Ends::Nobodys,
    http: false,
};

fn mtls(protocols: &[&'static str], http: bool) -> Kind {
    Kind {
        transport: TLS,
        protocols: protocols.to_vec(),
        ends: Ends::TheMeshs,
        http,
    }
}

fn plain(protocols: &[&'static str], http: bool) -> Kind {
    Kind {
        transport: RAW,
        protocols: protocols.to_vec(),
        ends: Ends::Nobodys,
        http,
    }
}

/// Connections are closed.
fn nowhere() -> Vec<listener::Filter> {
    use envoy::tcp::{TcpProxy, tcp_proxy::ClusterSpecifier};
    let cluster = names::BLACK_HOLE_CLUSTER.to_string();
    let to = TcpProxy {
        stat_prefix: cluster.clone(),
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster)),
        ..Default::default()
    };
    vec![envoy::network_filter(
        "envoy.filters.network.tcp_proxy",
        &to,
    )]
}

/// Whether the first bytes of connections to a port with these kinds have to be known, and as what:
/// TLS, plain HTTP.
pub fn inspected(kinds: &[Kind]) -> (bool, bool) {
    let tls = kinds.iter().any(|kind| kind.transport == TLS);
    let http = kinds
        .iter()
        .any(|kind| kind.transport == RAW && !kind.protocols.is_empty());
    (tls, http)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `transport[protocols]>what`, with `!` where TLS ends here.
    fn kinds(mode: MtlsMode, has_identity: bool, protocol: Protocol) -> Vec<String> {
        let mesh = MeshSettings::default();
        let inbound = Inbound {
            mode,
            has_identity,
            own: None,
            mesh: &mesh,
        };
        let show = |kind: Kind| {
            let what = if kind.http { "http" } else { "tcp" };
            let ends = if kind.ends == Ends::TheMeshs { "!" } else { "" };
            let short: Vec<&str> = kind.protocols;
            format!("{}{ends}[{}]>{what}", kind.transport, short.join(","))
        };
        inbound.kinds(protocol).into_iter().map(show).collect()
    }

    const MESH_HTTP: &str = "tls![istio-http/1.0,istio-http/1.1,istio-h2]>http";
    const MESH_ANY: &str = "istio-peer-exchange,istio,istio-http/1.0,istio-http/1.1,istio-h2";

    #[test]
    fn strict_ports_take_nothing_but_mutual_tls() {
        use MtlsMode::Strict;
        assert_eq!(kinds(Strict, true, Protocol::Http), ["tls![]>http"]);
        assert_eq!(kinds(Strict, true, Protocol::Grpc), ["tls![]>http"]);
        assert_eq!(kinds(Strict, true, Protocol::Tcp), ["tls![]>tcp"]);
        assert_eq!(
            kinds(Strict, true, Protocol::Undeclared),
            [MESH_HTTP, "tls![]>tcp"]
        );
    }

    #[test]
    fn permissive_ports_take_mutual_tls_and_plain_bytes_and_tcp_ports_foreign_tls() {
        use MtlsMode::Permissive;
        let any = |what: &str| format!("tls![{MESH_ANY}]>{what}");
        assert_eq!(
            kinds(Permissive, true, Protocol::Http),
            [any("http"), "raw_buffer[]>http".to_owned()]
        );
        assert_eq!(
            kinds(Permissive, true, Protocol::Tcp),
            [
                any("tcp"),
                "raw_buffer[]>tcp".to_owned(),
                "tls[]>tcp".to_owned()
            ]
        );
        assert_eq!(
            kinds(Permissive, true, Protocol::Undeclared),
            [
                MESH_HTTP,
                "raw_buffer[http/1.1,h2c]>http",
                "tls![istio-peer-exchange,istio]>tcp",
                "raw_buffer[]>tcp",
                "tls[]>tcp",
            ]
        );
    }

    #[test]
    fn without_identity_permissive_is_plain_and_strict_is_closed() {
        use MtlsMode::{Disable, Permissive, Strict};
        for protocol in [Protocol::Http, Protocol::Tcp, Protocol::Undeclared] {
            let plain = kinds(Disable, true, protocol);
            assert!(
                plain.iter().all(|kind| kind.starts_with("raw_buffer[")),
                "{plain:?}"
            );
            assert_eq!(kinds(Permissive, false, protocol), plain);
        }
        let mesh = MeshSettings::default();
        let inbound = Inbound {
            mode: Strict,
            has_identity: false,
            own: None,
            mesh: &mesh,
        };
        for kind in inbound.kinds(Protocol::Http) {
            let chain = inbound.chain(&kind, None, Vec::new());
            assert_eq!(chain.transport_socket, None);
            assert_eq!(chain.filters, nowhere());
        }
    }
}
