//! Route tables (RDS) of one proxy, and what gRPC clients ask for in their place.

use super::*;

impl<R> Translator<R> {
    pub(super) fn generate_routes(
        &self,
        snapshot: &MeshSnapshot,
        proxy: &Proxy,
        names: Names<'_>,
    ) -> Vec<Arc<R>> {
        let mut made = Vec::new();
        match proxy.kind {
            ProxyKind::Sidecar => {
                let scope = snapshot.scope(proxy);
                let unknown_hosts = unknown_hosts(&scope);
                if proxy.interception == Interception::Redirect {
                    made.extend(self.captured_routes(snapshot, &scope, proxy, names));
                }
                if wanted(names, || names::HTTP_PROXY_ROUTES.to_string()) {
                    made.extend(self.view(
                        names::HTTP_PROXY_ROUTES,
                        snapshot,
                        &scope,
                        proxy,
                        || {
                            let hosts = route_table::http_proxy(snapshot, &scope, proxy);
                            let name = names::HTTP_PROXY_ROUTES.to_string();
                            Some(self.table(name, hosts, unknown_hosts.clone()))
                        },
                    ));
                }
                for port in sidecar::egress_ports(&scope, proxy) {
                    let name = names::listener(&port.bind, u32::from(port.number));
                    if port.protocol != EgressProtocol::Tcp && wanted(names, || name.clone()) {
                        let hosts = route_table::egress(snapshot, &scope, proxy, &port);
                        made.push(self.table(name, hosts, unknown_hosts.clone()));
                    }
                }
            }
            ProxyKind::Gateway => {
                for (name, servers) in gateway::http_servers(snapshot, proxy) {
                    if wanted(names, || name.clone()) {
                        let hosts = route_table::gateway(snapshot, proxy, &servers);
                        made.push(self.table(name, hosts, Rest::IgnorePorts));
                    }
                }
            }
        }
        made
    }

    /// The tables of outbound listeners of a sidecar whose traffic is redirected.
    fn captured_routes(
        &self,
        snapshot: &MeshSnapshot,
        scope: &Scope<'_>,
        proxy: &Proxy,
        names: Names<'_>,
    ) -> Vec<Arc<R>> {
        let all = match names {
            Some(names) => names.clone(),
            None => capture::routes::names(scope),
        };
        let rest = match unknown_hosts(scope) {
            Rest::EgressProxy(cluster) => Rest::PassToEgressProxy(cluster),
            Rest::UnknownNames => Rest::PassUnknownNames,
            _ if scope.outbound_policy() == OutboundPolicy::AllowAny => Rest::PassUnknownHosts,
            _ => Rest::RefuseUnknownHosts,
        };
        let tables = all.into_iter().filter_map(|name| {
            self.view(&name, snapshot, scope, proxy, || {
                let (hosts, all_hosts) = capture::routes::table(snapshot, scope, proxy, &name)?;
                let rest = match all_hosts {
                    true => Rest::IgnorePorts,
                    false => rest.clone(),
                };
                Some(self.table(name.clone(), hosts, rest))
            })
        });
        tables.collect()
    }

    /// A table of outbound routes, made once for all proxies that see the same.
    fn view(
        &self,
        name: &str,
        snapshot: &MeshSnapshot,
        scope: &Scope<'_>,
        proxy: &Proxy,
        make: impl FnOnce() -> Option<Arc<R>>,
    ) -> Option<Arc<R>> {
        let key = ViewKey {
            name: name.to_string(),
            snapshot: ById(snapshot.identity.clone()),
            namespace: proxy.namespace.clone(),
            dns_domain: proxy.dns_domain.clone(),
            interception: proxy.interception,
            sidecar: scope.sidecar().cloned().map(ById),
            labels: snapshot
                .rules_ask_for_labels()
                .then(|| proxy.labels.clone()),
        };
        (*self.views.get(key, |_| Arc::new(make()))).clone()
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
            let bytes = route_table::assemble(&key.name, &hosts, &key.rest);
            self.wrap(key.name.clone(), type_url::ROUTE, bytes)
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
        let rules = HostIndex::new(snapshot.scope(proxy).rules());
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
                hashed: route_table::hashed_of(snapshot, proxy, &rules),
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
