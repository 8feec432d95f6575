//! Route tables (RDS): which virtual hosts a listener has, and under which domains.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lateen_api::virtual_service::{Destination, HttpRoute};
use lateen_model::servers::MergedServer;
use lateen_model::{
    MESH_GATEWAY, MeshSnapshot, Proxy, ServerHost, Service, VirtualService, hostname,
};
use prost::Message;

use crate::cache::ById;
use crate::destination_policy::{self, Hashed};
use crate::envoy::{core, route};
use crate::port_table::{PortTable, Viewer, domain_suffix};
use crate::route_action::KnownHosts;
use crate::route_match::Audience;
use crate::sidecar::EgressPort;
use crate::virtual_hosts::{EncodedHost, VirtualHostKey, append};

/// Port of a rule host that no service stands behind: Istio serves it on 80 only.
pub(crate) const UNREGISTERED_PORT: u32 = 80;

/// The virtual hosts of a Sidecar's egress listener: its hosts, under names without port too where
/// the listener is for one port.
pub fn egress(viewer: &Viewer<'_>, listener: &EgressPort<'_>) -> Vec<VirtualHostKey> {
    let (egress, scope) = (listener.egress, viewer.scope);
    let mut keys = PortTable::All.hosts(viewer);
    keys.retain_mut(|key| {
        let service = key.service.as_ref();
        let Some((host, port)) = service else {
            return key
                .rules
                .iter()
                .any(|rule| scope.imports_rule(egress, rule));
        };
        let imported = scope
            .service(host)
            .is_some_and(|service| scope.imports(egress, service));
        if egress.port.is_some() {
            let ending = format!(":{port}");
            let bare = key
                .domains
                .iter()
                .filter_map(|domain| domain.strip_suffix(&ending));
            let missing: Vec<String> = bare
                .filter(|domain| !key.domains.iter().any(|known| known == domain))
                .map(str::to_string)
                .collect();
            key.domains.extend(missing);
        }
        imported && egress.takes(*port)
    });
    keys
}

/// A virtual host for sidecars.
pub(crate) fn mesh_key(
    viewer: &Viewer<'_>,
    name: String,
    domains: Vec<String>,
    rule: Option<&Arc<VirtualService>>,
    service: Option<(String, u32)>,
) -> VirtualHostKey {
    let (snapshot, proxy) = (viewer.snapshot, viewer.proxy);
    let rules: Vec<_> = rule.into_iter().cloned().map(ById).collect();
    let port = service
        .as_ref()
        .map_or(UNREGISTERED_PORT, |(_, port)| *port);
    let own = service.iter().map(|(host, _)| host.as_str());
    let mut hashed = destination_policy::hashed(snapshot, proxy, own);
    hashed.extend(hashed_of(snapshot, proxy, &rules));
    VirtualHostKey {
        name,
        domains,
        hashed,
        known: known_hosts(snapshot, &rules),
        audience: audience(proxy, vec![MESH_GATEWAY.to_string()], port, &rules),
        rules,
        service,
        require_tls: false,
        mesh: ById(snapshot.settings.clone()),
    }
}

/// Names and addresses under which a client in the proxy's namespace reaches a service (fact 16).
pub(crate) fn service_names(service: &Service, proxy: &Proxy) -> Vec<String> {
    let mut hosts = names_of(&service.hostname, &service.namespace, proxy);
    for alias in &service.aliases {
        // `NAME.NAMESPACE.svc.SUFFIX`.
        let namespace = alias.split('.').nth(1).unwrap_or_default();
        hosts.extend(names_of(alias, namespace, proxy));
    }
    hosts.extend(
        service
            .addresses_for(proxy)
            .iter()
            .filter(|a| !a.contains('/'))
            .cloned(),
    );
    hosts
}

fn names_of(host: &str, namespace: &str, proxy: &Proxy) -> Vec<String> {
    let mut hosts = vec![host.to_string()];
    let tail = format!(".{namespace}.svc.{}", domain_suffix(proxy));
    if let Some(name) = host.strip_suffix(&tail) {
        if namespace == proxy.namespace {
            hosts.push(name.to_string());
        }
        hosts.push(format!("{name}.{namespace}"));
        hosts.push(format!("{name}.{namespace}.svc"));
    }
    hosts
}

/// The audience of a virtual host. Namespace and labels are left out where no rule asks for them,
/// so that proxies share the result.
fn audience(
    proxy: &Proxy,
    gateways: Vec<String>,
    port: u32,
    rules: &[ById<VirtualService>],
) -> Audience {
    let items = || {
        rules
            .iter()
            .flat_map(|rule| &rule.spec.http)
            .flat_map(|http| &http.matches)
    };
    let by_labels = items().any(|item| !item.source_labels.is_empty());
    let by_namespace = items().any(|item| !item.source_namespace.is_empty());
    Audience {
        gateways,
        namespace: if by_namespace {
            proxy.namespace.clone()
        } else {
            String::new()
        },
        labels: if by_labels {
            proxy.labels.clone()
        } else {
            BTreeMap::new()
        },
        port,
    }
}

/// DestinationRules of destinations that hash.
pub fn hashed_of(snapshot: &MeshSnapshot, proxy: &Proxy, rules: &[ById<VirtualService>]) -> Hashed {
    let mut hashed = Hashed::new();
    for rule in rules {
        let to = rule.spec.http.iter().flat_map(destinations);
        let namespace = &rule.origin.namespace;
        hashed.extend(destination_policy::hashed_destinations(
            snapshot, proxy, namespace, to,
        ));
    }
    hashed
}

/// Ports of the destination hosts that have exactly one.
pub fn known_hosts(snapshot: &MeshSnapshot, rules: &[ById<VirtualService>]) -> KnownHosts {
    let mut known = KnownHosts::default();
    for rule in rules {
        let destinations = rule.spec.http.iter().flat_map(destinations);
        let of = known_hosts_of(snapshot, &rule.origin.namespace, destinations);
        known.single_ports.extend(of.single_ports);
        known.aliases.extend(of.aliases);
    }
    known
}

/// Where a rule sends requests and copies of them.
fn destinations(http: &HttpRoute) -> impl Iterator<Item = &Destination> {
    let routes = http.route.iter().filter_map(|to| to.destination.as_ref());
    let mirrors = http.mirrors.iter();
    let mirrors = mirrors.filter_map(|to| to.destination.as_ref());
    routes.chain(&http.mirror).chain(mirrors)
}

/// The same for given destinations of a rule.
pub fn known_hosts_of<'a>(
    snapshot: &MeshSnapshot,
    rule_namespace: &str,
    destinations: impl Iterator<Item = &'a Destination>,
) -> KnownHosts {
    let mut known = KnownHosts::default();
    let suffix = &snapshot.settings.domain_suffix;
    for destination in destinations {
        let host = hostname::resolve(&destination.host, rule_namespace, suffix);
        let host = match snapshot.alias_of(&host) {
            None => host,
            Some(of) => {
                known.aliases.insert(host, of.clone());
                of.to_string()
            }
        };
        let ports = snapshot
            .service(&host)
            .map(|service| service.ports.as_slice());
        if let Some([only]) = ports {
            known.single_ports.insert(host, only.number);
        }
    }
    known
}

/// The servers of a gateway that share a route table.
pub struct GatewayTable<'a> {
    pub snapshot: &'a MeshSnapshot,
    pub proxy: &'a Proxy,
    /// In the order of their Gateways; never none.
    pub servers: &'a [MergedServer<'a>],
}

impl<'a> GatewayTable<'a> {
    /// All virtual hosts: per host all rules bound to its Gateways, merged oldest first (facts 15,
    /// 20); a server without any rule still answers, with 404 (fact 19).
    pub fn hosts(&self) -> Vec<VirtualHostKey> {
        let mut hosts = self.collect(None);
        if hosts.is_empty() {
            hosts.insert("*".to_string(), GatewayHost::default());
        }
        let hosts = hosts.into_iter();
        hosts.map(|(host, made)| self.key(host, made)).collect()
    }

    /// The virtual host of one host, if rules or a redirection make one.
    pub fn host(&self, host: &str) -> Option<VirtualHostKey> {
        let made = self.collect(Some(host)).remove(host)?;
        Some(self.key(host.to_string(), made))
    }

    /// Hosts whose virtual hosts a rule has a part in, whoever may see it.
    pub fn hosts_of_rule(&self, rule: &VirtualService) -> BTreeSet<String> {
        let mut hosts = BTreeSet::new();
        for one in self.servers {
            if rule.is_bound_to(&one.gateway.full_name()) {
                let of_server = one.server.hosts.iter().map(|text| {
                    let namespace = &one.gateway.origin.namespace;
                    ServerHost::parse(text, namespace).host
                });
                for of_server in of_server {
                    let both = rule.hosts.iter();
                    let both = both.filter_map(|host| hostname::intersection(of_server, host));
                    hosts.extend(both.map(str::to_string));
                }
            }
        }
        hosts
    }

    /// The name of a host's virtual host.
    pub fn name(&self, host: &str) -> String {
        format!("{host}:{}", self.port())
    }

    /// The name of the one that stands in where there is none.
    pub fn name_of_none(&self) -> String {
        format!("blackhole:{}", self.port())
    }

    fn port(&self) -> u32 {
        self.servers.first().map_or(0, |server| server.port)
    }

    /// What counts for each host, or for `only` one.
    fn collect(&self, only: Option<&'a str>) -> BTreeMap<String, GatewayHost<'a>> {
        let (snapshot, is_wanted) = (self.snapshot, |host: &str| only.is_none_or(|o| o == host));
        // Rules for the host, and those that cover it where a server is for it.
        let candidates: Vec<&Arc<VirtualService>> = match only {
            None => Vec::new(),
            Some(host) => {
                let patterns = std::iter::once(host.to_string());
                let patterns = patterns.chain(hostname::wildcards_over(host));
                let mut rules = Vec::new();
                for pattern in patterns {
                    let of = snapshot.rules_of_host(&pattern);
                    rules.extend(of.filter_map(|rule| snapshot.virtual_service(&rule.origin)));
                }
                rules
            }
        };
        let mut hosts: BTreeMap<String, GatewayHost<'a>> = BTreeMap::new();
        for MergedServer {
            gateway, server, ..
        } in self.servers
        {
            let gateway_name = gateway.full_name();
            let redirect = server
                .tls
                .as_ref()
                .is_some_and(|tls| tls.https_redirect == Some(true));
            let bound: Vec<&'a Arc<VirtualService>> = match only {
                None => rules_bound_to(snapshot, &gateway_name),
                Some(_) => {
                    let all = candidates.iter().copied();
                    all.filter(|rule| rule.is_bound_to(&gateway_name)).collect()
                }
            };
            let bound = bound.into_iter();
            let bound: Vec<_> = bound
                .filter(|rule| rule.visibility.reaches(&self.proxy.namespace))
                .collect();
            for text in &server.hosts {
                let server_host = ServerHost::parse(text, &gateway.origin.namespace);
                let admitted = bound.iter();
                for rule in admitted.filter(|rule| server_host.admits(&rule.origin.namespace)) {
                    for host in rule
                        .hosts
                        .iter()
                        .filter_map(|host| hostname::intersection(server_host.host, host))
                        .filter(|host| is_wanted(host))
                    {
                        hosts.entry(host.to_string()).or_default().add(
                            rule,
                            &gateway_name,
                            redirect,
                        );
                    }
                }
                if redirect && is_wanted(server_host.host) {
                    hosts
                        .entry(server_host.host.to_string())
                        .or_default()
                        .require_tls = true;
                }
            }
        }
        hosts
    }

    fn key(&self, host: String, made: GatewayHost<'_>) -> VirtualHostKey {
        let (snapshot, proxy, port) = (self.snapshot, self.proxy, self.port());
        let rules: Vec<_> = made.rules.into_values().cloned().map(ById).collect();
        VirtualHostKey {
            name: if rules.is_empty() && !made.require_tls {
                self.name_of_none()
            } else {
                self.name(&host)
            },
            domains: vec![host],
            hashed: hashed_of(snapshot, proxy, &rules),
            known: known_hosts(snapshot, &rules),
            audience: audience(proxy, made.gateways.into_iter().collect(), port, &rules),
            rules,
            service: None,
            require_tls: made.require_tls,
            mesh: ById(snapshot.settings.clone()),
        }
    }
}

/// Rules bound to a Gateway, as long as the snapshot lives and not its name.
pub(crate) fn rules_bound_to<'a>(
    snapshot: &'a MeshSnapshot,
    gateway: &str,
) -> Vec<&'a Arc<VirtualService>> {
    let bound = snapshot.rules_bound_to(gateway);
    bound
        .filter_map(|rule| snapshot.virtual_service(&rule.origin))
        .collect()
}

#[derive(Default)]
struct GatewayHost<'a> {
    /// By origin, which sorts oldest first.
    rules: BTreeMap<&'a lateen_model::Origin, &'a Arc<VirtualService>>,
    gateways: BTreeSet<String>,
    require_tls: bool,
}

impl<'a> GatewayHost<'a> {
    fn add(&mut self, rule: &'a Arc<VirtualService>, gateway: &str, redirect: bool) {
        self.rules.insert(&rule.origin, rule);
        self.gateways.insert(gateway.to_string());
        self.require_tls |= redirect;
    }
}

/// The virtual host for hosts that a table does not know.
pub fn fallback(rest: &Rest) -> Option<EncodedHost> {
    let host = match rest {
        Rest::BlockUnknownHosts | Rest::RefuseUnknownHosts => block_all(),
        Rest::EgressProxy(cluster) | Rest::PassToEgressProxy(cluster) => {
            allow_any(crate::route_action::forward_to(cluster.clone()))
        }
        Rest::PassUnknownHosts => allow_any(crate::route_action::pass_to(
            crate::names::PASSTHROUGH_CLUSTER.to_string(),
        )),
        Rest::UnknownNames | Rest::PassUnknownNames => {
            let to = crate::names::ANY_NAME_CLUSTER.to_string();
            allow_any(crate::route_action::pass_to(to))
        }
        Rest::IgnorePorts | Rest::Nothing => return None,
    };
    let name = host.name.clone();
    Some(EncodedHost::new(&name, host))
}

/// Puts a table together from encoded virtual hosts.
///
/// A message may be written in pieces: repeated field 2 is appended to the encoding of the rest,
/// so that a change of one virtual host does not encode the others again.
pub fn assemble(name: &str, virtual_hosts: &[ById<EncodedHost>], rest: &Rest) -> Vec<u8> {
    const VIRTUAL_HOSTS: u32 = 2;
    let mut bytes = table(name, rest).encode_to_vec();
    for one in virtual_hosts {
        append(VIRTUAL_HOSTS, &one.named(&one.name), &mut bytes);
    }
    bytes
}

/// The table of which all virtual hosts are resources of their own.
pub fn without_hosts(name: &str, rest: &Rest) -> Vec<u8> {
    let table = route::RouteConfiguration {
        vhds: Some(route::Vhds {
            config_source: Some(crate::envoy::ads()),
        }),
        ..table(name, rest)
    };
    table.encode_to_vec()
}

fn table(name: &str, rest: &Rest) -> route::RouteConfiguration {
    route::RouteConfiguration {
        name: name.to_string(),
        ignore_port_in_host_matching: match rest {
            Rest::IgnorePorts
            | Rest::PassUnknownHosts
            | Rest::PassUnknownNames
            | Rest::PassToEgressProxy(_)
            | Rest::RefuseUnknownHosts => true,
            Rest::BlockUnknownHosts | Rest::EgressProxy(_) | Rest::UnknownNames | Rest::Nothing => {
                false
            }
        },
        virtual_hosts: Vec::new(),
        validate_clusters: crate::envoy::bool_value(false),
        max_direct_response_body_size_bytes: crate::envoy::u32_value(1024 * 1024),
        ..Default::default()
    }
}

/// What a table does beside its virtual hosts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Rest {
    /// Hosts nobody knows are answered 502 (fact 17).
    BlockUnknownHosts,
    /// Hosts nobody knows go to this cluster.
    EgressProxy(String),
    /// Hosts nobody knows are looked up.
    UnknownNames,
    /// The port in the Host header does not matter.
    IgnorePorts,
    /// Neither does it here; hosts nobody knows get what they asked for where the client was going
    /// (fact 17).
    PassUnknownHosts,
    /// Neither does it here; hosts nobody knows are looked up.
    PassUnknownNames,
    /// Neither does it here; hosts nobody knows go to this cluster.
    PassToEgressProxy(String),
    /// Neither does it here; hosts nobody knows are answered 502.
    RefuseUnknownHosts,
    Nothing,
}

fn allow_any(action: route::route::Action) -> route::VirtualHost {
    route::VirtualHost {
        name: "allow_any".to_string(),
        domains: vec!["*".to_string()],
        routes: vec![route::Route {
            name: "allow_any".to_string(),
            r#match: Some(crate::route_match::everything()),
            action: Some(action),
            ..Default::default()
        }],
        include_request_attempt_count: true,
        ..Default::default()
    }
}

fn block_all() -> route::VirtualHost {
    let body = "no service of the mesh has this host; register it with a ServiceEntry\n";
    route::VirtualHost {
        name: "block_all".to_string(),
        domains: vec!["*".to_string()],
        routes: vec![route::Route {
            name: "block_all".to_string(),
            r#match: Some(crate::route_match::everything()),
            action: Some(route::route::Action::DirectResponse(
                route::DirectResponseAction {
                    status: 502,
                    body: Some(core::DataSource {
                        specifier: Some(core::data_source::Specifier::InlineString(
                            body.to_string(),
                        )),
                        ..Default::default()
                    }),
                    ..Default::default()
                },
            )),
            ..Default::default()
        }],
        include_request_attempt_count: true,
        ..Default::default()
    }
}
