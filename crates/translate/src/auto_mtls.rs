//! Whether connections of a cluster speak the mesh's mutual TLS, and with whom (fact 32;
//! `pilot/pkg/networking/core/cluster_tls.go`).
//!
//! A DestinationRule that says `tls` decides. Where none does, each endpoint that takes mutual TLS
//! gets it: endpoints say so in their metadata, and the cluster has a transport for those that do.

use std::collections::BTreeSet;

use lateen_api::destination_rule::{ClientTlsMode, SimpleLb};
use lateen_model::{
    Generator, Interception, Location, MeshSettings, MeshSnapshot, MtlsMode, Protocol, Proxy,
    Resolution, Service, ServiceEndpoints, ServicePort, TargetPort,
};

use crate::cluster_policy::UpstreamProtocol;
use crate::envoy::{self, cluster, core, raw_buffer};
use crate::policy::Policy;
use crate::{mesh_tls, names};

/// Where endpoints say which transport they take (Envoy's name), and how.
const MATCH: &str = "envoy.transport_socket_match";
const MATCH_KEY: &str = "tlsMode";
const MATCH_VALUE: &str = "istio";

/// What the connections of a cluster depend on, beside its policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct MeshPeers {
    /// Whether endpoints get mutual TLS where no rule says otherwise.
    pub auto: bool,
    /// Names that servers prove themselves with; empty: any of the mesh's.
    pub names: Vec<String>,
}

impl MeshPeers {
    /// For a service in the eyes of a proxy.
    pub fn of(
        snapshot: &MeshSnapshot,
        proxy: &Proxy,
        service: &Service,
        policy: &Policy,
        has_identity: bool,
    ) -> MeshPeers {
        let mutual = |mode| mode == Some(ClientTlsMode::IstioMutual);
        let by_rule = policy.tls.as_ref().map(|tls| mutual(tls.mode));
        let possible = by_rule.unwrap_or(
            has_identity
                && snapshot.settings.auto_mtls
                && service.location == Location::Internal
                && proxy.generator == Generator::Envoy,
        );
        if !possible {
            return MeshPeers::default();
        }
        let endpoints = snapshot.endpoints(&service.hostname);
        if by_rule.is_none() && !is_inferred(snapshot, proxy, service, &endpoints, policy) {
            return MeshPeers::default();
        }
        MeshPeers {
            auto: by_rule.is_none(),
            names: names(&snapshot.settings, service, &endpoints),
        }
    }

    /// Gives the cluster its transports for the mesh. `by_rule`: a DestinationRule asks for mutual
    /// TLS, and says the server name and the names of servers or leaves them to us.
    pub fn apply(
        &self,
        made: &mut cluster::Cluster,
        policy: &Policy,
        (service, port, subset): (&Service, &ServicePort, &str),
        protocol: UpstreamProtocol,
        mesh: &MeshSettings,
    ) {
        let rule = policy.tls.as_ref();
        let rule = rule.filter(|tls| tls.mode == Some(ClientTlsMode::IstioMutual));
        if rule.is_none() && !self.auto {
            return;
        }
        let own_name = names::sni_cluster(port.number, subset, &service.hostname);
        let server_name = rule
            .map(|tls| tls.sni.clone())
            .filter(|sni| !sni.is_empty());
        let accepted = rule
            .map(|tls| &tls.subject_alt_names)
            .filter(|names| !names.is_empty());
        let offered: &[&str] = match protocol {
            _ if port.protocol == Protocol::Undeclared => &mesh_tls::OFFER_TCP,
            UpstreamProtocol::Http2 => &mesh_tls::OFFER_HTTP2,
            _ if port.protocol.is_http() => &mesh_tls::OFFER_HTTP1,
            _ => &mesh_tls::OFFER_TCP,
        };
        let socket = mesh_tls::client(
            server_name.as_deref().unwrap_or(&own_name),
            accepted.unwrap_or(&self.names),
            offered,
            mesh,
        );
        if port.protocol == Protocol::Undeclared {
            let metadata = made.metadata.get_or_insert_default();
            metadata
                .filter_metadata
                .extend(mesh_tls::alpn_metadata().filter_metadata);
        }
        let original = cluster::cluster::DiscoveryType::OriginalDst as i32;
        let is_original = made.cluster_discovery_type
            == Some(cluster::cluster::ClusterDiscoveryType::Type(original));
        // Where the client chose the endpoint there is nothing that says what it takes.
        if rule.is_some() || is_original {
            made.transport_socket = Some(socket);
        } else {
            made.transport_socket_matches = matches(socket);
        }
    }
}

/// The transports for endpoints that take mutual TLS and for the others.
fn matches(mutual: core::TransportSocket) -> Vec<cluster::cluster::TransportSocketMatch> {
    let plain = core::TransportSocket {
        name: "envoy.transport_sockets.raw_buffer".to_string(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(envoy::any(
            &raw_buffer::RawBuffer {},
        ))),
    };
    let wanted = endpoint_metadata().filter_metadata.remove(MATCH);
    vec![
        cluster::cluster::TransportSocketMatch {
            name: "tlsMode-istio".to_string(),
            r#match: wanted,
            transport_socket: Some(mutual),
        },
        cluster::cluster::TransportSocketMatch {
            name: "tlsMode-disabled".to_string(),
            r#match: Some(envoy::Struct::default()),
            transport_socket: Some(plain),
        },
    ]
}

/// What an endpoint that takes mutual TLS says of itself.
pub fn endpoint_metadata() -> core::Metadata {
    envoy::metadata(MATCH, &[(MATCH_KEY, MATCH_VALUE.to_string())])
}

/// Whether the endpoints may be asked one by one: not where their namespace takes none, nor where
/// the client chooses the endpoint and not all of them take it
/// (`BestEffortInferServiceMTLSMode`).
fn is_inferred(
    snapshot: &MeshSnapshot,
    proxy: &Proxy,
    service: &Service,
    endpoints: &ServiceEndpoints,
    policy: &Policy,
) -> bool {
    // Where traffic is not intercepted the proxy chooses among the endpoints of any service.
    let intercepted = proxy.interception != Interception::None;
    let chosen_by_client = (intercepted && service.is_headless())
        || service.resolution == Resolution::None
        || policy.simple_balancer() == SimpleLb::Passthrough;
    (!chosen_by_client || endpoints.all_take_mtls)
        && snapshot.mtls_in(&service.namespace).mode() != MtlsMode::Disable
}

/// The names of a service's endpoints: their accounts, in the trust domain and under each alias, and
/// what its ServiceEntry says.
fn names(mesh: &MeshSettings, service: &Service, endpoints: &ServiceEndpoints) -> Vec<String> {
    let accounts = endpoints.accounts.iter().flat_map(|(namespace, account)| {
        let domains = mesh.trust_domains();
        domains.map(move |domain| format!("spiffe://{domain}/ns/{namespace}/sa/{account}"))
    });
    let said = service.subject_alt_names.iter().cloned();
    let all: BTreeSet<String> = accounts.chain(said).collect();
    all.into_iter().collect()
}

/// Which endpoints of a service port do not get mutual TLS although their workloads have it,
/// because a PeerAuthentication takes it from the port: their positions.
pub fn disabled(
    snapshot: &MeshSnapshot,
    endpoints: &ServiceEndpoints,
    port: &ServicePort,
) -> Vec<u32> {
    if snapshot.peer_authentications().next().is_none() {
        return Vec::new();
    }
    let target = match port.target {
        TargetPort::Number(number) => Some(number),
        TargetPort::Name(_) => None,
    };
    let mut namespaces = std::collections::BTreeMap::new();
    let all = endpoints.of_port(port.number).iter().enumerate();
    let off = all.filter(|(_, one)| {
        let namespace = one.workload.namespace.as_str();
        let rules = namespaces
            .entry(namespace)
            .or_insert_with(|| snapshot.mtls_in(namespace));
        if !one.workload.takes_mtls() || rules.is_never_disabled() {
            return false;
        }
        let mtls = rules.of_workload(&one.workload.labels);
        mtls.of_port(std::iter::once(one.port).chain(target)) == MtlsMode::Disable
    });
    off.filter_map(|(at, _)| u32::try_from(at).ok()).collect()
}
