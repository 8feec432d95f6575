//! Which resources a proxy has, and the memos they are remembered in; those of routes and listeners
//! are in `translator/`.

mod carry;
mod listeners;
mod routes;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use lateen_model::{
    Changes, DestinationRule, Generator, Identity, Interception, Locality, Location, MeshSettings,
    MeshSnapshot, OutboundPolicy, Protocol, Proxy, ProxyKind, Resolution, Scope, Service,
    ServiceEndpoints, Sidecar, VirtualService,
};
use prost::Message;

use crate::auto_mtls::{self, MeshPeers};
use crate::cache::{ById, Memo};
use crate::capture::routes::Hosts;
use crate::locality::{self, Placement};
use crate::name_table::{self, NameTableKey};
use crate::own_endpoints::OwnEndpoints;
use crate::policy::Policy;
use crate::port_table::{self, PortTable, Viewer};
use crate::route_match::Audience;
use crate::route_table::{GatewayTable, Rest};
use crate::secrets::{self, SecretKey};
use crate::sidecar::{self, EgressProtocol, InboundTarget};
use crate::virtual_hosts::{self, EncodedHost, VirtualHostKey};
use crate::{capture, clusters, endpoints, envoy, gateway, grpc, names, route_table};
use listeners::OutboundKey;
use routes::{Generations, Parts, TableKey, ViewKey};

/// Type URLs of the resources made here.
pub mod type_url {
    pub const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
    pub const ENDPOINT: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
    pub const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
    pub const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
    pub const ROUTE: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
    pub const VIRTUAL_HOST: &str = "type.googleapis.com/envoy.config.route.v3.VirtualHost";
    pub use lateen_proto::nds::NAME_TABLE;
}

/// One encoded resource.
pub struct Encoded {
    pub name: String,
    pub type_url: &'static str,
    pub bytes: Vec<u8>,
}

/// The names a proxy asked for; `None` is all of the type.
pub type Names<'a> = Option<&'a BTreeSet<String>>;

/// Makes resources of type `R` (whatever the caller sends them as), each once for equal inputs.
pub struct Translator<R> {
    wrap: fn(Encoded) -> R,
    /// Snapshots so far.
    snapshots: AtomicU64,
    clusters: Memo<ClusterKey, R>,
    inbound_clusters: Memo<InboundClusterKey, R>,
    endpoints: Memo<EndpointsKey, R>,
    own_endpoints: Memo<OwnEndpoints, R>,
    /// Of the routes of the last snapshot that views were carried over to.
    routing: Mutex<Arc<Identity>>,
    virtual_hosts: Memo<Arc<VirtualHostKey>, EncodedHost>,
    fallbacks: Memo<Rest, Option<Arc<EncodedHost>>>,
    tables: Memo<TableKey, R>,
    views: Memo<ViewKey, Option<Arc<Parts<R>>>>,
    /// Virtual hosts as resources of their own, by the name of their table.
    named_hosts: Memo<(Arc<str>, ById<EncodedHost>), R>,
    /// Names of virtual hosts that differ between two generations of a table.
    differences: Memo<Generations<R>, BTreeSet<String>>,
    listeners: Memo<Vec<u8>, R>,
    /// Of captured service ports, for all proxies to which they look the same.
    outbound: Memo<OutboundKey, Vec<Arc<R>>>,
    name_tables: Memo<NameTableKey, R>,
    /// The same for all proxies that see the same names, so that only one looks through them.
    names_seen: Memo<NamesSeen, R>,
    secrets: Memo<SecretKey, R>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct ClusterKey {
    service: ById<Service>,
    port: u32,
    subset: String,
    rule: Option<ById<DestinationRule>>,
    resolution: Resolution,
    kind: ProxyKind,
    generator: Generator,
    /// Under the name that clients of an AUTO_PASSTHROUGH server ask for.
    by_server_name: bool,
    mesh: ById<MeshSettings>,
    /// Of clusters that bring their endpoints along (DNS).
    placement: Placement,
    /// Its proxy knows the endpoints of its own service.
    self_discovery: bool,
    /// Roles keep its proxy from a Secret that it would need.
    refused: bool,
    peers: MeshPeers,
}

#[derive(Clone, PartialEq, Eq, Hash)]
enum InboundClusterKey {
    Workload {
        listener_port: u16,
        to: InboundTarget,
        protocol: Protocol,
        mesh: ById<MeshSettings>,
    },
    /// A port of a workload whose traffic is redirected.
    Captured {
        to: InboundTarget,
        protocol: Protocol,
        mesh: ById<MeshSettings>,
    },
    InboundPassthrough(ById<MeshSettings>),
    Passthrough(ById<MeshSettings>),
    AnyName(ById<MeshSettings>),
    BlackHole(ById<MeshSettings>),
}

/// Which names a proxy sees of a mesh.
#[derive(Clone, PartialEq, Eq, Hash)]
struct NamesSeen {
    snapshot: ById<Identity>,
    namespace: String,
    sidecar: Option<ById<Sidecar>>,
    /// Addresses that the mesh gave to services count, those of one family.
    dns_capture: Option<bool>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct EndpointsKey {
    endpoints: ById<ServiceEndpoints>,
    host: Arc<str>,
    port: u32,
    subset: String,
    labels: BTreeMap<String, String>,
    placement: Placement,
    by_server_name: bool,
    /// Positions of endpoints whose port takes no mutual TLS.
    plain: Vec<u32>,
}

impl<R> Translator<R> {
    /// `wrap` makes what the caller sends of an encoded resource; it runs once per resource.
    pub fn new(wrap: fn(Encoded) -> R) -> Self {
        Translator {
            wrap,
            snapshots: AtomicU64::new(0),
            clusters: Memo::default(),
            inbound_clusters: Memo::default(),
            endpoints: Memo::default(),
            own_endpoints: Memo::default(),
            routing: Mutex::default(),
            virtual_hosts: Memo::default(),
            fallbacks: Memo::default(),
            tables: Memo::default(),
            views: Memo::default(),
            named_hosts: Memo::default(),
            differences: Memo::default(),
            listeners: Memo::default(),
            outbound: Memo::default(),
            name_tables: Memo::default(),
            names_seen: Memo::default(),
            secrets: Memo::default(),
        }
    }

    /// Forgets what recent snapshots did not use. Call once per snapshot; most calls do nothing,
    /// since looking at every entry for every change would cost in proportion to the mesh.
    pub fn sweep(&self) {
        const EVERY: u64 = 32;
        // Few, and large. (Views: see `advance`.)
        self.tables.sweep();
        self.differences.sweep();
        self.outbound.sweep();
        self.names_seen.sweep();
        if !self
            .snapshots
            .fetch_add(1, Ordering::Relaxed)
            .is_multiple_of(EVERY)
        {
            return;
        }
        self.clusters.sweep();
        self.inbound_clusters.sweep();
        self.endpoints.sweep();
        self.own_endpoints.sweep();
        self.virtual_hosts.sweep();
        self.fallbacks.sweep();
        self.named_hosts.sweep();
        self.listeners.sweep();
        self.name_tables.sweep();
        self.secrets.sweep();
    }

    /// The resources of one type for one proxy. Names nobody knows are absent.
    pub fn generate(
        &self,
        snapshot: &MeshSnapshot,
        proxy: &Proxy,
        type_url: &str,
        names: Names<'_>,
    ) -> Vec<Arc<R>> {
        let proxy = &*snapshot.labelled(proxy);
        match (type_url, proxy.generator) {
            (type_url::CLUSTER, _) => self.generate_clusters(snapshot, proxy, names),
            (type_url::ENDPOINT, _) => self.generate_endpoints(snapshot, proxy, names),
            (type_url::LISTENER, Generator::Envoy) => {
                self.generate_listeners(snapshot, proxy, names)
            }
            (type_url::LISTENER, Generator::Grpc) => {
                self.generate_grpc_listeners(snapshot, proxy, names)
            }
            (type_url::ROUTE, Generator::Envoy) => self.generate_routes(snapshot, proxy, names),
            (type_url::ROUTE, Generator::Grpc) => self.generate_grpc_routes(snapshot, proxy, names),
            (type_url::VIRTUAL_HOST, Generator::Envoy) if proxy.virtual_hosts_by_name => {
                self.generate_virtual_hosts(snapshot, proxy, names)
            }
            (type_url::NAME_TABLE, _) if wanted(names, || name_table::NAME.to_string()) => {
                vec![self.name_table(snapshot, proxy)]
            }
            (type_url::SECRET, _) => self.generate_secrets(snapshot, proxy, names),
            _ => Vec::new(),
        }
    }

    fn name_table(&self, snapshot: &MeshSnapshot, proxy: &Proxy) -> Arc<R> {
        let seen = NamesSeen {
            snapshot: ById(snapshot.identity.clone()),
            namespace: proxy.namespace.clone(),
            sidecar: snapshot.sidecar_of(proxy).cloned().map(ById),
            dns_capture: proxy.dns_capture.then(|| proxy.address.contains(':')),
        };
        self.names_seen.get(seen, |_| {
            let key = NameTableKey::new(snapshot, proxy);
            self.name_tables.get(key, |key| {
                let table = name_table::name_table(key).encode_to_vec();
                self.wrap(name_table::NAME.to_string(), type_url::NAME_TABLE, table)
            })
        })
    }

    /// Only what was asked for by name: nobody gets to know which Secrets there are.
    fn generate_secrets(
        &self,
        snapshot: &MeshSnapshot,
        proxy: &Proxy,
        names: Names<'_>,
    ) -> Vec<Arc<R>> {
        let keys = names
            .into_iter()
            .flatten()
            .filter_map(|name| secrets::find(snapshot, proxy, name));
        keys.map(|key| {
            self.secrets.get(key, |key| {
                self.wrap(key.name.clone(), type_url::SECRET, secrets::encode(key))
            })
        })
        .collect()
    }

    fn generate_clusters(
        &self,
        snapshot: &MeshSnapshot,
        proxy: &Proxy,
        names: Names<'_>,
    ) -> Vec<Arc<R>> {
        let mut made = Vec::new();
        let mesh = ById(snapshot.settings.clone());
        let scope = snapshot.scope(proxy);
        let place = place_of(snapshot, proxy);
        let has_identity = snapshot.has_identity(proxy);
        let by_server_name =
            proxy.kind == ProxyKind::Gateway && gateway::passes_by_name(snapshot, proxy);
        for service in services_named(&scope, names) {
            let rule = snapshot.destination_rule_for(proxy, service);
            let subsets = rule.map(|rule| rule.subsets.as_slice()).unwrap_or_default();
            for port in service
                .ports
                .iter()
                .filter(|port| port.protocol != Protocol::Udp)
                .filter(|port| scope.admits_port(service, port.number))
            {
                for subset in std::iter::once("").chain(subsets.iter().map(|s| s.name.as_str())) {
                    let policy = Policy::of(rule.map(Arc::as_ref), subset, port.number);
                    let key = ClusterKey {
                        service: ById(service.clone()),
                        port: port.number,
                        subset: subset.to_string(),
                        rule: rule.cloned().map(ById),
                        resolution: resolution_for(proxy, service, &snapshot.settings),
                        kind: proxy.kind,
                        generator: proxy.generator,
                        by_server_name: false,
                        mesh: mesh.clone(),
                        placement: match service.resolution {
                            Resolution::Dns | Resolution::DnsRoundRobin => {
                                locality::placement(&policy, &snapshot.settings, proxy, &place)
                            }
                            _ => Placement::Anywhere,
                        },
                        self_discovery: proxy.self_discovery.is_some(),
                        refused: crate::upstream_tls::secrets(&policy)
                            .iter()
                            .any(|name| secrets::is_refused(snapshot, proxy, name)),
                        peers: MeshPeers::of(snapshot, proxy, service, &policy, has_identity),
                    };
                    let own = by_server_name && service.location == Location::Internal;
                    let twin = own.then(|| ClusterKey {
                        by_server_name: true,
                        ..key.clone()
                    });
                    for key in std::iter::once(key).chain(twin) {
                        if wanted(names, || key.name()) {
                            made.extend(self.outbound_cluster(key));
                        }
                    }
                }
            }
        }
        if proxy.generator == Generator::Envoy {
            made.extend(self.own_clusters(snapshot, proxy, names));
        }
        made
    }

    fn outbound_cluster(&self, key: ClusterKey) -> Option<Arc<R>> {
        key.service.port(key.port)?;
        Some(self.clusters.get(key, |key| {
            let name = key.name();
            let bytes = key.service.port(key.port).map(|port| {
                let rule = key.rule.as_deref();
                let mut made = clusters::outbound(
                    &key.service,
                    port,
                    &key.subset,
                    rule,
                    &key.mesh,
                    &clusters::Client {
                        kind: key.kind,
                        resolution: key.resolution,
                        placement: &key.placement,
                        self_discovery: key.self_discovery,
                        refused: key.refused,
                        peers: &key.peers,
                    },
                );
                if key.generator == Generator::Grpc {
                    grpc::restrict(&mut made);
                }
                if key.by_server_name {
                    clusters::pass_on(&mut made, &name);
                }
                envoy::encoded_cluster(made)
            });
            self.wrap(name, type_url::CLUSTER, bytes.unwrap_or_default())
        }))
    }

    /// Clusters that are not a service's: the workload's own ports, and the two that catch what
    /// nobody registered.
    fn own_clusters(
        &self,
        snapshot: &MeshSnapshot,
        proxy: &Proxy,
        names: Names<'_>,
    ) -> Vec<Arc<R>> {
        let mesh = ById(snapshot.settings.clone());
        let mut keys = vec![InboundClusterKey::BlackHole(mesh.clone())];
        if proxy.kind == ProxyKind::Sidecar {
            keys.push(InboundClusterKey::Passthrough(mesh.clone()));
            if snapshot.scope(proxy).outbound_policy() == OutboundPolicy::AllowAnyDynamicDns {
                keys.push(InboundClusterKey::AnyName(mesh.clone()));
            }
            if proxy.interception == Interception::Redirect {
                keys.push(InboundClusterKey::InboundPassthrough(mesh.clone()));
            }
            let sidecar = snapshot.sidecar_of(proxy);
            for port in capture::inbound::ports(snapshot, proxy, sidecar) {
                keys.push(InboundClusterKey::Captured {
                    to: port.to,
                    protocol: port.protocol,
                    mesh: mesh.clone(),
                });
            }
            for port in sidecar::inbound_ports(snapshot, proxy, sidecar) {
                keys.push(InboundClusterKey::Workload {
                    listener_port: port.number,
                    to: port.to,
                    protocol: port.protocol,
                    mesh: mesh.clone(),
                });
            }
        }
        let keys = keys.into_iter().filter(|key| wanted(names, || key.name()));
        keys.map(|key| {
            self.inbound_clusters.get(key, |key| {
                let cluster = match key {
                    InboundClusterKey::Workload {
                        listener_port,
                        to,
                        protocol,
                        mesh,
                    } => clusters::inbound(*listener_port, to, *protocol, mesh),
                    InboundClusterKey::Captured { to, protocol, mesh } => {
                        capture::clusters::inbound(to, *protocol, mesh)
                    }
                    InboundClusterKey::InboundPassthrough(mesh) => {
                        capture::clusters::inbound_passthrough(mesh)
                    }
                    InboundClusterKey::Passthrough(mesh) => clusters::passthrough(mesh),
                    InboundClusterKey::AnyName(mesh) => clusters::any_name(mesh),
                    InboundClusterKey::BlackHole(mesh) => clusters::black_hole(mesh),
                };
                self.wrap(key.name(), type_url::CLUSTER, cluster.encode_to_vec())
            })
        })
        .collect()
    }

    fn generate_endpoints(
        &self,
        snapshot: &MeshSnapshot,
        proxy: &Proxy,
        names: Names<'_>,
    ) -> Vec<Arc<R>> {
        let scope = snapshot.scope(proxy);
        match names {
            Some(names) => names
                .iter()
                .filter_map(|name| self.endpoints_of(snapshot, &scope, proxy, name))
                .collect(),
            None => {
                let all = scope.services().flat_map(|service| {
                    cluster_names(
                        service,
                        snapshot
                            .destination_rule_for(proxy, service)
                            .map(Arc::as_ref),
                    )
                });
                all.filter_map(|name| self.endpoints_of(snapshot, &scope, proxy, &name))
                    .collect()
            }
        }
    }

    fn endpoints_of(
        &self,
        snapshot: &MeshSnapshot,
        scope: &Scope<'_>,
        proxy: &Proxy,
        cluster: &str,
    ) -> Option<Arc<R>> {
        if cluster == names::LOCAL_CLUSTER {
            return self.own_endpoints(snapshot, proxy);
        }
        let by_server_name =
            names::parse_sni_cluster(cluster).filter(|_| proxy.kind == ProxyKind::Gateway);
        let (port, subset, host) = by_server_name.or_else(|| names::parse_outbound(cluster))?;
        let service = scope.service(host)?;
        let sent = resolution_for(proxy, service, &snapshot.settings) == Resolution::Endpoints
            && scope.admits_port(service, port);
        let service_port = service.port(port).filter(|_| sent)?;
        let rule = snapshot.destination_rule_for(proxy, service);
        let labels = match subset {
            "" => BTreeMap::new(),
            subset => rule?.subset(subset)?.labels.clone(),
        };
        let policy = Policy::of(rule.map(Arc::as_ref), subset, port);
        let endpoints = snapshot.endpoints(host);
        let key = EndpointsKey {
            plain: auto_mtls::disabled(snapshot, &endpoints, service_port),
            endpoints: ById(endpoints),
            host: service.hostname.clone(),
            port,
            subset: subset.to_string(),
            labels,
            placement: locality::placement(
                &policy,
                &snapshot.settings,
                proxy,
                &place_of(snapshot, proxy),
            ),
            by_server_name: by_server_name.is_some(),
        };
        Some(self.endpoints.get(key, |key| {
            let name = match key.by_server_name {
                true => names::sni_cluster(key.port, &key.subset, &key.host),
                false => names::outbound_cluster(key.port, &key.subset, &key.host),
            };
            let made = endpoints::load_assignment(
                &name,
                &key.endpoints,
                key.port,
                &key.labels,
                (&key.placement, &key.plain),
            );
            self.wrap(name, type_url::ENDPOINT, envoy::encoded_endpoints(made))
        }))
    }

    /// Those of the proxy's own services; none is an answer too, since its start waits for one.
    fn own_endpoints(&self, snapshot: &MeshSnapshot, proxy: &Proxy) -> Option<Arc<R>> {
        let key = OwnEndpoints::of(snapshot, proxy, &place_of(snapshot, proxy))?;
        Some(self.own_endpoints.get(key, |key| {
            let made = envoy::encoded_endpoints(key.load_assignment());
            self.wrap(names::LOCAL_CLUSTER.to_string(), type_url::ENDPOINT, made)
        }))
    }

    fn wrap(&self, name: String, type_url: &'static str, bytes: Vec<u8>) -> Arc<R> {
        Arc::new((self.wrap)(Encoded {
            name,
            type_url,
            bytes,
        }))
    }
}

impl ClusterKey {
    fn name(&self) -> String {
        let name = match self.by_server_name {
            true => names::sni_cluster,
            false => names::outbound_cluster,
        };
        name(self.port, &self.subset, &self.service.hostname)
    }
}

impl InboundClusterKey {
    fn name(&self) -> String {
        match self {
            InboundClusterKey::Workload { listener_port, .. } => {
                names::inbound_cluster(*listener_port)
            }
            InboundClusterKey::Captured { to, .. } => names::inbound_cluster(to.port),
            InboundClusterKey::InboundPassthrough(_) => {
                names::INBOUND_PASSTHROUGH_CLUSTER.to_string()
            }
            InboundClusterKey::Passthrough(_) => names::PASSTHROUGH_CLUSTER.to_string(),
            InboundClusterKey::AnyName(_) => names::ANY_NAME_CLUSTER.to_string(),
            InboundClusterKey::BlackHole(_) => names::BLACK_HOLE_CLUSTER.to_string(),
        }
    }
}

/// The services that clusters are named after; all when none is named. So a push of a few clusters
/// costs nothing for the others.
fn services_named<'a>(scope: &Scope<'a>, names: Names<'_>) -> Vec<&'a Arc<Service>> {
    let Some(names) = names else {
        return scope.services().collect();
    };
    let hosts: BTreeSet<&str> = names
        .iter()
        .filter_map(|name| names::parse_outbound(name).or_else(|| names::parse_sni_cluster(name)))
        .map(|(_, _, host)| host)
        .collect();
    hosts
        .into_iter()
        .filter_map(|host| scope.service(host))
        .collect()
}

fn wanted(names: Names<'_>, name: impl FnOnce() -> String) -> bool {
    names.is_none_or(|names| names.contains(&name()))
}

/// How a proxy finds the endpoints of a service. "Where the client was going" is known only where
/// connections are captured: to a client of an explicit proxy that is the host it names, and a
/// gateway has but the endpoints that are written down (as in Istio).
fn resolution_for(proxy: &Proxy, service: &Service, mesh: &MeshSettings) -> Resolution {
    match (service.resolution, proxy.kind, proxy.interception) {
        (Resolution::ByRequest, ProxyKind::Gateway, _) if mesh.wildcard_tls_at_gateways => {
            Resolution::ByRequest
        }
        // As in Istio, only sidecars look names up (and gRPC libraries nothing).
        (Resolution::None | Resolution::ByRequest, ProxyKind::Gateway, _) => Resolution::Endpoints,
        (Resolution::ByRequest, ..) if proxy.generator == Generator::Grpc => Resolution::Endpoints,
        (Resolution::None, ProxyKind::Sidecar, Interception::None)
            if !service.dns_targets.is_empty() =>
        {
            Resolution::Dns
        }
        (Resolution::None, ProxyKind::Sidecar, Interception::None) => Resolution::Endpoints,
        // The client chose the workload; a gRPC library asks for all of them.
        (Resolution::Endpoints, ProxyKind::Sidecar, Interception::Redirect)
            if service.is_headless() && proxy.generator == Generator::Envoy =>
        {
            Resolution::None
        }
        (resolution, ..) => resolution,
    }
}

/// Where a proxy runs: what it says itself, else where its workload is.
fn place_of(snapshot: &MeshSnapshot, proxy: &Proxy) -> Locality {
    if proxy.locality != Locality::default() {
        return proxy.locality.clone();
    }
    let workload = snapshot.workload_of(proxy);
    workload.map(|w| w.locality.clone()).unwrap_or_default()
}

/// Names of all clusters of a service.
fn cluster_names(service: &Service, rule: Option<&DestinationRule>) -> Vec<String> {
    let subsets: Vec<&str> = rule
        .into_iter()
        .flat_map(|rule| &rule.subsets)
        .map(|s| s.name.as_str())
        .collect();
    let ports = service.ports.iter();
    ports
        .flat_map(|port| {
            std::iter::once("")
                .chain(subsets.iter().copied())
                .map(|subset| names::outbound_cluster(port.number, subset, &service.hostname))
        })
        .collect()
}
