//! Which resources a proxy has, and the memos they are remembered in.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lateen_model::{
    DestinationRule, Generator, HostIndex, Interception, MeshSettings, MeshSnapshot, Protocol,
    Proxy, ProxyKind, Resolution, Service, ServiceEndpoints, VirtualService,
};
use prost::Message;

use crate::cache::{ById, Memo};
use crate::name_table::{self, NameTableKey};
use crate::route_match::Audience;
use crate::route_table::Rest;
use crate::virtual_hosts::{self, VirtualHostKey};
use crate::{clusters, endpoints, gateway, grpc, listeners, names, route_table};

/// Type URLs of the resources made here.
pub mod type_url {
    pub const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
    pub const ENDPOINT: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
    pub const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
    pub const ROUTE: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
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
    clusters: Memo<ClusterKey, R>,
    inbound_clusters: Memo<InboundClusterKey, R>,
    endpoints: Memo<EndpointsKey, R>,
    virtual_hosts: Memo<VirtualHostKey, Vec<u8>>,
    tables: Memo<TableKey, R>,
    listeners: Memo<Vec<u8>, R>,
    name_tables: Memo<NameTableKey, R>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct ClusterKey {
    service: ById<Service>,
    port: u32,
    subset: String,
    rule: Option<ById<DestinationRule>>,
    generator: Generator,
    mesh: ById<MeshSettings>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
enum InboundClusterKey {
    Workload {
        listener_port: u16,
        app_port: u16,
        protocol: Protocol,
        mesh: ById<MeshSettings>,
    },
    Passthrough(ById<MeshSettings>),
    BlackHole(ById<MeshSettings>),
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct EndpointsKey {
    endpoints: ById<ServiceEndpoints>,
    host: Arc<str>,
    port: u32,
    subset: String,
    labels: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct TableKey {
    name: String,
    virtual_hosts: Vec<ById<Vec<u8>>>,
    rest: Rest,
}

impl<R> Translator<R> {
    /// `wrap` makes what the caller sends of an encoded resource; it runs once per resource.
    pub fn new(wrap: fn(Encoded) -> R) -> Self {
        Translator {
            wrap,
            clusters: Memo::default(),
            inbound_clusters: Memo::default(),
            endpoints: Memo::default(),
            virtual_hosts: Memo::default(),
            tables: Memo::default(),
            listeners: Memo::default(),
            name_tables: Memo::default(),
        }
    }

    /// Forgets what recent snapshots did not use. Call once per snapshot.
    pub fn sweep(&self) {
        self.clusters.sweep();
        self.inbound_clusters.sweep();
        self.endpoints.sweep();
        self.virtual_hosts.sweep();
        self.tables.sweep();
        self.listeners.sweep();
        self.name_tables.sweep();
    }

    /// The resources of one type for one proxy. Names nobody knows are absent.
    pub fn generate(
        &self,
        snapshot: &MeshSnapshot,
        proxy: &Proxy,
        type_url: &str,
        names: Names<'_>,
    ) -> Vec<Arc<R>> {
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
            (type_url::NAME_TABLE, _) if wanted(names, || name_table::NAME.to_string()) => {
                vec![self.name_table(snapshot, proxy)]
            }
            _ => Vec::new(),
        }
    }

    fn name_table(&self, snapshot: &MeshSnapshot, proxy: &Proxy) -> Arc<R> {
        let key = NameTableKey::new(snapshot, proxy);
        self.name_tables.get(key, |key| {
            let table = name_table::name_table(key).encode_to_vec();
            self.wrap(name_table::NAME.to_string(), type_url::NAME_TABLE, table)
        })
    }

    fn generate_clusters(
        &self,
        snapshot: &MeshSnapshot,
        proxy: &Proxy,
        names: Names<'_>,
    ) -> Vec<Arc<R>> {
        let mut made = Vec::new();
        let mesh = ById(snapshot.settings.clone());
        for service in snapshot.visible_services(&proxy.namespace) {
            let rule = snapshot.destination_rule(&proxy.namespace, service);
            let subsets = rule.map(|rule| rule.subsets.as_slice()).unwrap_or_default();
            for port in service
                .ports
                .iter()
                .filter(|port| port.protocol != Protocol::Udp)
            {
                for subset in std::iter::once("").chain(subsets.iter().map(|s| s.name.as_str())) {
                    if !wanted(names, || {
                        names::outbound_cluster(port.number, subset, &service.hostname)
                    }) {
                        continue;
                    }
                    let key = ClusterKey {
                        service: ById(service.clone()),
                        port: port.number,
                        subset: subset.to_string(),
                        rule: rule.cloned().map(ById),
                        generator: proxy.generator,
                        mesh: mesh.clone(),
                    };
                    made.extend(self.outbound_cluster(key));
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
            let name = names::outbound_cluster(key.port, &key.subset, &key.service.hostname);
            let bytes = key.service.port(key.port).map(|port| {
                let rule = key.rule.as_deref();
                let mut made = clusters::outbound(&key.service, port, &key.subset, rule, &key.mesh);
                if key.generator == Generator::Grpc {
                    grpc::restrict(&mut made);
                }
                made.encode_to_vec()
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
            for (port, app_port) in &proxy.inbound {
                let protocol = inbound_service(snapshot, proxy, *port)
                    .map_or(Protocol::Undeclared, |(_, port)| port.protocol);
                keys.push(InboundClusterKey::Workload {
                    listener_port: *port,
                    app_port: *app_port,
                    protocol,
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
                        app_port,
                        protocol,
                        mesh,
                    } => clusters::inbound(*listener_port, *app_port, *protocol, mesh),
                    InboundClusterKey::Passthrough(mesh) => clusters::passthrough(mesh),
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
        match names {
            Some(names) => names
                .iter()
                .filter_map(|name| self.endpoints_of(snapshot, proxy, name))
                .collect(),
            None => {
                let all = snapshot
                    .visible_services(&proxy.namespace)
                    .flat_map(|service| {
                        cluster_names(
                            service,
                            snapshot
                                .destination_rule(&proxy.namespace, service)
                                .map(Arc::as_ref),
                        )
                    });
                all.filter_map(|name| self.endpoints_of(snapshot, proxy, &name))
                    .collect()
            }
        }
    }

    fn endpoints_of(
        &self,
        snapshot: &MeshSnapshot,
        proxy: &Proxy,
        cluster: &str,
    ) -> Option<Arc<R>> {
        let (port, subset, host) = names::parse_outbound(cluster)?;
        let service = snapshot.service(host)?;
        let visible = service.visibility.reaches(&proxy.namespace)
            && service.resolution == Resolution::Endpoints;
        if !visible || service.port(port).is_none() {
            return None;
        }
        let labels = match subset {
            "" => BTreeMap::new(),
            subset => snapshot
                .destination_rule(&proxy.namespace, service)?
                .subset(subset)?
                .labels
                .clone(),
        };
        let key = EndpointsKey {
            endpoints: ById(snapshot.endpoints(host)),
            host: service.hostname.clone(),
            port,
            subset: subset.to_string(),
            labels,
        };
        Some(self.endpoints.get(key, |key| {
            let name = names::outbound_cluster(key.port, &key.subset, &key.host);
            let made = endpoints::load_assignment(&name, &key.endpoints, key.port, &key.labels);
            self.wrap(name, type_url::ENDPOINT, made.encode_to_vec())
        }))
    }

    fn generate_listeners(
        &self,
        snapshot: &MeshSnapshot,
        proxy: &Proxy,
        names: Names<'_>,
    ) -> Vec<Arc<R>> {
        let mut made = Vec::new();
        match proxy.kind {
            ProxyKind::Gateway => {
                for port in gateway::ports(snapshot, proxy) {
                    made.extend(listeners::gateway(snapshot, proxy, &port));
                }
            }
            ProxyKind::Sidecar => {
                if let (Some(port), Interception::None) =
                    (proxy.http_proxy_port, proxy.interception)
                {
                    made.push(listeners::http_proxy(proxy, port, &snapshot.settings));
                }
                for port in proxy.inbound.keys() {
                    let service = inbound_service(snapshot, proxy, *port);
                    let service = service
                        .as_ref()
                        .map(|(service, port)| (service.as_ref(), port));
                    made.push(listeners::inbound(
                        proxy,
                        *port,
                        service,
                        &snapshot.settings,
                    ));
                }
                for (service, local_port) in &proxy.outbound {
                    let Some((host, port)) = service.rsplit_once(':') else {
                        continue;
                    };
                    let Some(service) = snapshot.service(host) else {
                        continue;
                    };
                    let Some(port) = port.parse().ok().and_then(|port| service.port(port)) else {
                        continue;
                    };
                    made.push(listeners::outbound_tcp(
                        snapshot,
                        proxy,
                        service,
                        port,
                        *local_port,
                    ));
                }
            }
        }
        made.retain(|one| wanted(names, || one.name.clone()));
        made.into_iter()
            .map(|one| self.listener(one.name.clone(), one.encode_to_vec()))
            .collect()
    }

    /// Listeners are few and cheap to make; equal ones still share one resource.
    fn listener(&self, name: String, bytes: Vec<u8>) -> Arc<R> {
        self.listeners.get(bytes, |bytes| {
            self.wrap(name, type_url::LISTENER, bytes.clone())
        })
    }

    fn generate_routes(
        &self,
        snapshot: &MeshSnapshot,
        proxy: &Proxy,
        names: Names<'_>,
    ) -> Vec<Arc<R>> {
        let mut made = Vec::new();
        match proxy.kind {
            ProxyKind::Sidecar => {
                if wanted(names, || names::HTTP_PROXY_ROUTES.to_string()) {
                    let hosts = route_table::http_proxy(snapshot, proxy);
                    made.push(self.table(
                        names::HTTP_PROXY_ROUTES.to_string(),
                        hosts,
                        Rest::BlockUnknownHosts,
                    ));
                }
            }
            ProxyKind::Gateway => {
                for port in gateway::ports(snapshot, proxy)
                    .iter()
                    .filter(|port| port.protocol.is_http())
                {
                    let name = names::gateway_routes(port.number);
                    if wanted(names, || name.clone()) {
                        let hosts = route_table::gateway(snapshot, proxy, port);
                        made.push(self.table(name, hosts, Rest::IgnorePorts));
                    }
                }
            }
        }
        made
    }

    fn table(&self, name: String, hosts: Vec<VirtualHostKey>, rest: Rest) -> Arc<R> {
        let hosts = hosts.into_iter().map(|key| {
            ById(
                self.virtual_hosts
                    .get(key, |key| Arc::new(virtual_hosts::encode(key))),
            )
        });
        let key = TableKey {
            name,
            virtual_hosts: hosts.collect(),
            rest,
        };
        self.tables.get(key, |key| {
            let hosts: Vec<Arc<Vec<u8>>> = key
                .virtual_hosts
                .iter()
                .map(|host| host.0.clone())
                .collect();
            let bytes = route_table::assemble(&key.name, &hosts, key.rest);
            self.wrap(key.name.clone(), type_url::ROUTE, bytes)
        })
    }

    fn generate_grpc_listeners(
        &self,
        snapshot: &MeshSnapshot,
        proxy: &Proxy,
        names: Names<'_>,
    ) -> Vec<Arc<R>> {
        let named = names.into_iter().flatten().filter_map(|name| {
            let (service, port) = grpc::target(snapshot, proxy, name)?;
            Some((
                name.clone(),
                grpc::api_listener(name, service, port).encode_to_vec(),
            ))
        });
        named
            .map(|(name, bytes)| self.listener(name, bytes))
            .collect()
    }

    fn generate_grpc_routes(
        &self,
        snapshot: &MeshSnapshot,
        proxy: &Proxy,
        names: Names<'_>,
    ) -> Vec<Arc<R>> {
        let rules = HostIndex::new(snapshot.mesh_virtual_services(&proxy.namespace));
        let named = names.into_iter().flatten().filter_map(|name| {
            let (port, _, host) = names::parse_outbound(name)?;
            let service = snapshot.service(host)?;
            let port = service.port(port)?;
            let rules: Vec<ById<VirtualService>> = rules
                .rule_for(host)
                .cloned()
                .map(ById)
                .into_iter()
                .collect();
            let key = VirtualHostKey {
                name: format!("{host}:{}", port.number),
                domains: grpc::domains(service, port),
                single_ports: route_table::single_ports(snapshot, &rules),
                audience: Audience {
                    gateways: vec![lateen_model::MESH_GATEWAY.to_string()],
                    namespace: proxy.namespace.clone(),
                    labels: proxy.labels.clone(),
                    port: port.number,
                },
                rules,
                service: Some((host.to_string(), port.number)),
                require_tls: false,
                mesh: ById(snapshot.settings.clone()),
            };
            Some(self.table(name.clone(), vec![key], Rest::Nothing))
        });
        named.collect()
    }

    fn wrap(&self, name: String, type_url: &'static str, bytes: Vec<u8>) -> Arc<R> {
        Arc::new((self.wrap)(Encoded {
            name,
            type_url,
            bytes,
        }))
    }
}

impl InboundClusterKey {
    fn name(&self) -> String {
        match self {
            InboundClusterKey::Workload { listener_port, .. } => {
                names::inbound_cluster(*listener_port)
            }
            InboundClusterKey::Passthrough(_) => names::PASSTHROUGH_CLUSTER.to_string(),
            InboundClusterKey::BlackHole(_) => names::BLACK_HOLE_CLUSTER.to_string(),
        }
    }
}

fn wanted(names: Names<'_>, name: impl FnOnce() -> String) -> bool {
    names.is_none_or(|names| names.contains(&name()))
}

/// The service port that a workload port serves: the first service, by host, that leads there.
fn inbound_service(
    snapshot: &MeshSnapshot,
    proxy: &Proxy,
    port: u16,
) -> Option<(Arc<Service>, lateen_model::ServicePort)> {
    let workload = snapshot.workload(&proxy.namespace, &proxy.name)?;
    snapshot.services_of(workload).find_map(|service| {
        let found = service
            .ports
            .iter()
            .find(|one| workload.port_for(one) == u32::from(port))?;
        Some((service.clone(), found.clone()))
    })
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

/// The endpoint resources that a change of these hosts' endpoints can touch, for any proxy.
pub fn endpoint_resources<'a>(
    snapshot: &MeshSnapshot,
    hosts: impl IntoIterator<Item = &'a Arc<str>>,
) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for service in hosts.into_iter().filter_map(|host| snapshot.service(host)) {
        names.extend(cluster_names(service, None));
        // Which rule applies depends on the client's namespace; take the subsets of all.
        let covering = |rule: &&Arc<DestinationRule>| {
            lateen_model::hostname::matches(&rule.host, &service.hostname)
        };
        for rule in snapshot.destination_rules().filter(covering) {
            names.extend(cluster_names(service, Some(rule)));
        }
    }
    names
}
