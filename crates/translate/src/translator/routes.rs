//! Route tables (RDS) of one proxy, and what gRPC clients ask for in their place.

use std::cell::LazyCell;
use std::sync::OnceLock;

use lateen_model::servers::MergedServer;
use lateen_model::{Gateway, Workload};
use rpds::RedBlackTreeMapSync;

use super::*;

/// What a route table depends on, beside the snapshot.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct ViewKey {
    name: String,
    pub(super) snapshot: ById<Identity>,
    namespace: String,
    dns_domain: String,
    interception: Interception,
    /// Addresses that the mesh gave to services count, those of one family.
    dns_capture: Option<bool>,
    pub(super) sidecar: Option<ById<Sidecar>>,
    /// Only where a rule asks for them, and of gateways.
    pub(super) labels: Option<BTreeMap<String, String>>,
    /// Of a gateway, whose Services say which ports its workload binds.
    pub(super) gateway: Option<(String, Option<ById<Workload>>)>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct TableKey {
    name: String,
    virtual_hosts: Vec<ById<EncodedHost>>,
    rest: Rest,
}

/// A route table in its parts, of which either form is made when it is asked for: one resource, or
/// one that leaves its virtual hosts to resources of their own.
pub(super) struct Parts<R> {
    pub(super) name: String,
    /// By name; the next generation shares all but what changed.
    pub(super) hosts: HostMap<ById<EncodedHost>>,
    pub(super) rest: Rest,
    /// There may be many virtual hosts.
    pub(super) divides: bool,
    /// One of the proxies that see it.
    pub(super) seen_by: Arc<Proxy>,
    /// Of a gateway, the servers it is for.
    pub(super) servers: Vec<ServerKey>,
    pub(super) apart: OnceLock<Apart<R>>,
}

/// A server: its Gateway, its place there, and its port.
pub(super) type ServerKey = (ById<Gateway>, usize, u32);

pub(super) fn server_keys(servers: &[MergedServer<'_>]) -> Vec<ServerKey> {
    let key = |one: &MergedServer<'_>| (ById(one.gateway.clone()), one.index, one.port);
    servers.iter().map(key).collect()
}

pub(super) type HostMap<T> = RedBlackTreeMapSync<Arc<str>, T>;

/// A table as it was and as it is.
pub(super) type Generations<R> = (ById<Parts<R>>, ById<Parts<R>>);

pub(super) struct Apart<R> {
    pub(super) table: Arc<R>,
    /// By the name of the resource.
    pub(super) hosts: HostMap<Arc<R>>,
}

impl<R> Translator<R> {
    pub(super) fn generate_routes(
        &self,
        snapshot: &MeshSnapshot,
        proxy: &Proxy,
        names: Names<'_>,
    ) -> Vec<Arc<R>> {
        let tables = self.route_tables(snapshot, proxy, names);
        let form = |table: Arc<Parts<R>>| match proxy.virtual_hosts_by_name && table.divides {
            true => self.apart(&table).table.clone(),
            false => self.whole(&table),
        };
        tables.into_iter().map(form).collect()
    }

    /// Virtual hosts that are resources of their own: `TABLE/HOST`, or all of a table: `TABLE/`.
    pub(super) fn generate_virtual_hosts(
        &self,
        snapshot: &MeshSnapshot,
        proxy: &Proxy,
        names: Names<'_>,
    ) -> Vec<Arc<R>> {
        let mut by_table: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for name in names.into_iter().flatten() {
            if let Some((table, _)) = name.rsplit_once('/') {
                by_table.entry(table).or_default().push(name);
            }
        }
        let wanted: Option<BTreeSet<String>> =
            names.map(|_| by_table.keys().map(|table| table.to_string()).collect());
        let tables = self.route_tables(snapshot, proxy, wanted.as_ref());
        let mut made = Vec::new();
        for table in tables.iter().filter(|table| table.divides) {
            let hosts = &self.apart(table).hosts;
            match by_table.get(table.name.as_str()) {
                Some(some) if !some.iter().any(|name| name.ends_with('/')) => {
                    made.extend(some.iter().filter_map(|name| hosts.get(*name)).cloned());
                }
                _ => made.extend(hosts.values().cloned()),
            }
        }
        made
    }

    /// Names of the virtual hosts of these tables that differ between two snapshots; of a table that
    /// went, none. Made once for all proxies that see the same.
    pub fn changed_virtual_hosts(
        &self,
        before: &MeshSnapshot,
        now: &MeshSnapshot,
        proxy: &Proxy,
        tables: &BTreeSet<String>,
    ) -> BTreeSet<String> {
        let mut changed = BTreeSet::new();
        for name in tables {
            let one = BTreeSet::from([name.clone()]);
            let table = |snapshot: &MeshSnapshot| {
                let proxy = snapshot.labelled(proxy);
                self.route_tables(snapshot, &proxy, Some(&one)).pop()
            };
            match (table(before), table(now)) {
                (Some(before), Some(now)) if Arc::ptr_eq(&before, &now) => {}
                (Some(before), Some(now)) => {
                    let key = (ById(before), ById(now));
                    let differing =
                        |(before, now): &Generations<R>| Arc::new(differences(before, now));
                    let names = self.differences.get(key, differing);
                    changed.extend(names.iter().cloned());
                }
                (None, Some(now)) => {
                    changed.extend(self.apart(&now).hosts.keys().map(|name| name.to_string()));
                }
                (_, None) => {}
            }
        }
        changed
    }

    fn route_tables(
        &self,
        snapshot: &MeshSnapshot,
        proxy: &Proxy,
        names: Names<'_>,
    ) -> Vec<Arc<Parts<R>>> {
        match proxy.kind {
            ProxyKind::Sidecar => self.sidecar_tables(snapshot, proxy, names),
            ProxyKind::Gateway => {
                let named = || gateway::http_servers(snapshot, proxy);
                let all = names
                    .cloned()
                    .unwrap_or_else(|| named().into_keys().collect());
                let tables = all.into_iter().filter_map(|name| {
                    self.view(&name, snapshot, proxy, || {
                        let servers = named().remove(&name)?;
                        let table = GatewayTable {
                            snapshot,
                            proxy,
                            servers: &servers,
                        };
                        let parts = self.parts(&name, proxy, table.hosts(), Rest::IgnorePorts);
                        Some(Parts {
                            servers: server_keys(&servers),
                            ..parts
                        })
                    })
                });
                tables.collect()
            }
        }
    }

    fn sidecar_tables(
        &self,
        snapshot: &MeshSnapshot,
        proxy: &Proxy,
        names: Names<'_>,
    ) -> Vec<Arc<Parts<R>>> {
        let mut made = Vec::new();
        // What a proxy sees can be much to find out; where the tables are known it is not needed.
        let scope = LazyCell::new(|| snapshot.scope(proxy));
        if proxy.interception == Interception::Redirect {
            let all = match names {
                Some(names) => names.clone(),
                None => capture::routes::names(&scope),
            };
            let own = all.into_iter().filter(|name| !has_own_listener(name));
            made.extend(own.filter_map(|name| {
                match name.contains(':') {
                    // Of one service: less work to make than to remember.
                    true => self
                        .captured_table(snapshot, &scope, proxy, &name)
                        .map(Arc::new),
                    false => self.view(&name, snapshot, proxy, || {
                        self.captured_table(snapshot, &scope, proxy, &name)
                    }),
                }
            }));
        }
        if wanted(names, || names::HTTP_PROXY_ROUTES.to_string()) {
            let name = names::HTTP_PROXY_ROUTES;
            made.extend(self.view(name, snapshot, proxy, || {
                let viewer = Viewer {
                    snapshot,
                    scope: &scope,
                    proxy,
                };
                let hosts = PortTable::All.hosts(&viewer);
                Some(self.parts(name, proxy, hosts, unknown_hosts(&scope)))
            }));
        }
        if snapshot.sidecar_of(proxy).is_some() {
            for port in sidecar::egress_ports(&scope, proxy) {
                let name = names::listener(&port.bind, u32::from(port.number));
                if port.protocol == EgressProtocol::Tcp || !wanted(names, || name.clone()) {
                    continue;
                }
                made.extend(self.view(&name, snapshot, proxy, || {
                    let viewer = Viewer {
                        snapshot,
                        scope: &scope,
                        proxy,
                    };
                    let hosts = route_table::egress(&viewer, &port);
                    Some(self.parts(&name, proxy, hosts, unknown_hosts(&scope)))
                }));
            }
        }
        made
    }

    /// The table of an outbound listener of a sidecar whose traffic is redirected.
    fn captured_table(
        &self,
        snapshot: &MeshSnapshot,
        scope: &Scope<'_>,
        proxy: &Proxy,
        name: &str,
    ) -> Option<Parts<R>> {
        let viewer = Viewer {
            snapshot,
            scope,
            proxy,
        };
        let hosts = match capture::routes::table(&viewer, name)? {
            Hosts::Of(hosts) => hosts,
            Hosts::Every(host) => {
                let mut parts = self.parts(name, proxy, vec![*host], Rest::IgnorePorts);
                parts.divides = false;
                return Some(parts);
            }
        };
        let rest = match unknown_hosts(scope) {
            Rest::EgressProxy(cluster) => Rest::PassToEgressProxy(cluster),
            Rest::UnknownNames => Rest::PassUnknownNames,
            _ if scope.outbound_policy() == OutboundPolicy::AllowAny => Rest::PassUnknownHosts,
            _ => Rest::RefuseUnknownHosts,
        };
        Some(self.parts(name, proxy, hosts, rest))
    }

    /// A table, made once for all proxies that see the same.
    fn view(
        &self,
        name: &str,
        snapshot: &MeshSnapshot,
        proxy: &Proxy,
        make: impl FnOnce() -> Option<Parts<R>>,
    ) -> Option<Arc<Parts<R>>> {
        let is_gateway = proxy.kind == ProxyKind::Gateway;
        let key = ViewKey {
            name: name.to_string(),
            snapshot: ById(snapshot.routing.clone()),
            namespace: proxy.namespace.clone(),
            dns_domain: proxy.dns_domain.clone(),
            interception: proxy.interception,
            dns_capture: proxy.dns_capture.then(|| proxy.address.contains(':')),
            sidecar: snapshot.sidecar_of(proxy).cloned().map(ById),
            labels: (is_gateway || snapshot.rules_ask_for_labels()).then(|| proxy.labels.clone()),
            gateway: is_gateway.then(|| {
                let workload = snapshot.workload_of(proxy);
                (proxy.bind.clone(), workload.cloned().map(ById))
            }),
        };
        (*self.views.get(key, |_| Arc::new(make().map(Arc::new)))).clone()
    }

    fn parts(&self, name: &str, proxy: &Proxy, hosts: Vec<VirtualHostKey>, rest: Rest) -> Parts<R> {
        let hosts = hosts.into_iter().map(|key| self.encoded_host(key));
        let fallback = self.fallbacks.get(rest.clone(), |rest| {
            Arc::new(route_table::fallback(rest).map(Arc::new))
        });
        let hosts = hosts.chain((*fallback).clone()).map(ById);
        Parts {
            name: name.to_string(),
            hosts: hosts.map(|host| (host.name.clone(), host)).collect(),
            rest,
            divides: true,
            seen_by: Arc::new(proxy.clone()),
            servers: Vec::new(),
            apart: OnceLock::new(),
        }
    }

    pub(super) fn encoded_host(&self, key: VirtualHostKey) -> Arc<EncodedHost> {
        let encode = |key: &Arc<VirtualHostKey>| Arc::new(virtual_hosts::encode(key));
        self.virtual_hosts.get(Arc::new(key), encode)
    }

    /// A virtual host as a resource of its own, and its name.
    pub(super) fn named_host(
        &self,
        table: &Arc<str>,
        host: &ById<EncodedHost>,
    ) -> (Arc<str>, Arc<R>) {
        let full = resource_name(table, &host.name);
        let made = self
            .named_hosts
            .get((table.clone(), host.clone()), |(_, host)| {
                self.wrap(full.clone(), type_url::VIRTUAL_HOST, host.named(&full))
            });
        (full.into(), made)
    }

    /// The table with all of its virtual hosts, as one resource.
    fn whole(&self, parts: &Parts<R>) -> Arc<R> {
        let key = TableKey {
            name: parts.name.clone(),
            virtual_hosts: parts.hosts.values().cloned().collect(),
            rest: parts.rest.clone(),
        };
        self.tables.get(key, |key| {
            let bytes = route_table::assemble(&key.name, &key.virtual_hosts, &key.rest);
            self.wrap(key.name.clone(), type_url::ROUTE, bytes)
        })
    }

    /// The table and its virtual hosts as resources of their own.
    fn apart<'p>(&self, parts: &'p Parts<R>) -> &'p Apart<R> {
        parts.apart.get_or_init(|| {
            let table = route_table::without_hosts(&parts.name, &parts.rest);
            let name: Arc<str> = parts.name.as_str().into();
            let hosts = parts
                .hosts
                .values()
                .map(|host| self.named_host(&name, host));
            Apart {
                hosts: hosts.collect(),
                table: self.wrap(parts.name.clone(), type_url::ROUTE, table),
            }
        })
    }

    pub(super) fn generate_grpc_listeners(
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

    pub(super) fn generate_grpc_routes(
        &self,
        snapshot: &MeshSnapshot,
        proxy: &Proxy,
        names: Names<'_>,
    ) -> Vec<Arc<R>> {
        let scope = snapshot.scope(proxy);
        let named = names.into_iter().flatten().filter_map(|name| {
            let (port, _, host) = names::parse_outbound(name)?;
            let service = snapshot.service(host)?;
            let port = service.port(port)?;
            let rule = scope.rule_for(host);
            let rules: Vec<ById<VirtualService>> = rule.map(ById).into_iter().collect();
            let key = VirtualHostKey {
                name: format!("{host}:{}", port.number),
                domains: grpc::domains(service, port),
                hashed: route_table::hashed_of(snapshot, proxy, &rules),
                known: route_table::known_hosts(snapshot, &rules),
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
            Some(self.whole(&self.parts(name, proxy, vec![key], Rest::Nothing)))
        });
        named.collect()
    }
}

impl ViewKey {
    /// The ports that its workload's Services bind count.
    pub(super) fn is_of_gateway(&self) -> bool {
        self.gateway.is_some()
    }
}

/// Whether a table is of no listener that takes captured connections.
fn has_own_listener(name: &str) -> bool {
    name == names::HTTP_PROXY_ROUTES || name.starts_with(envoy::UNIX)
}

/// Names of the resources of virtual hosts that one has otherwise than the other, or only one has.
fn differences<R>(before: &Parts<R>, now: &Parts<R>) -> BTreeSet<String> {
    let same = |name: &str| match (before.hosts.get(name), now.hosts.get(name)) {
        (Some(before), Some(now)) => before == now || before.says_the_same(now),
        _ => false,
    };
    let names: BTreeSet<&Arc<str>> = before.hosts.keys().chain(now.hosts.keys()).collect();
    let differing = names.into_iter().filter(|name| !same(name));
    differing
        .map(|name| resource_name(&now.name, name))
        .collect()
}

/// The last slash parts the two names.
pub(super) fn resource_name(table: &str, host: &str) -> String {
    format!("{table}/{}", host.replace('/', "_"))
}

/// Where requests for hosts go that the proxy does not know. Where nothing is captured there is no
/// original destination to go to, so without an egress proxy they are answered.
fn unknown_hosts(scope: &Scope<'_>) -> Rest {
    let policy = scope
        .sidecar()
        .and_then(|sidecar| sidecar.spec.outbound_traffic_policy.as_ref());
    let proxy = policy.and_then(|policy| policy.egress_proxy.as_ref());
    match (scope.outbound_policy(), proxy) {
        (OutboundPolicy::AllowAny | OutboundPolicy::AllowAnyDynamicDns, Some(to)) => {
            let port = to.port.as_ref().map_or(0, |port| port.number);
            Rest::EgressProxy(names::outbound_cluster(port, &to.subset, &to.host))
        }
        (OutboundPolicy::AllowAnyDynamicDns, None) => Rest::UnknownNames,
        _ => Rest::BlockUnknownHosts,
    }
}
