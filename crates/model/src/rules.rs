//! Rules with their names resolved: VirtualServices, DestinationRules (merged), Gateways.

use std::collections::BTreeMap;
use std::sync::Arc;

use lateen_api as api;

use crate::hostname;
use crate::service::labels_match;
use crate::settings::MeshSettings;
use crate::visibility::Visibility;

/// The gateway name that stands for all sidecars.
pub const MESH_GATEWAY: &str = "mesh";

/// Which object a rule came from, and how old it is.
///
/// The order is Istio's for conflicts: older first, then by name and namespace (fact 15).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Origin {
    /// RFC 3339; sorts by age.
    pub created: String,
    pub name: String,
    pub namespace: String,
}

/// A VirtualService whose hosts and gateways are resolved.
#[derive(Clone, Debug, PartialEq)]
pub struct VirtualService {
    pub origin: Origin,
    pub hosts: Vec<String>,
    /// `mesh` or `namespace/name`.
    pub gateways: Vec<String>,
    pub visibility: Visibility,
    pub spec: Arc<api::VirtualService>,
}

impl VirtualService {
    /// Resolves a VirtualService of `origin`.
    pub fn resolve(
        origin: Origin,
        spec: Arc<api::VirtualService>,
        mesh: &MeshSettings,
    ) -> VirtualService {
        let namespace = &origin.namespace;
        let hosts = spec
            .hosts
            .iter()
            .map(|h| hostname::resolve(h, namespace, &mesh.domain_suffix))
            .collect();
        let gateways = if spec.gateways.is_empty() {
            vec![MESH_GATEWAY.to_string()]
        } else {
            spec.gateways
                .iter()
                .map(|g| resolve_gateway(g, namespace))
                .collect()
        };
        let visibility =
            Visibility::with_default(&spec.export_to, &mesh.virtual_service_export_to, namespace);
        VirtualService {
            hosts,
            gateways,
            visibility,
            spec,
            origin,
        }
    }

    /// Hosts that requests and connections are led to, mirrors included.
    pub fn destinations(&self, domain_suffix: &str) -> Vec<String> {
        let spec = &self.spec;
        let http = spec.http.iter().flat_map(|http| {
            let routes = http.route.iter().map(|route| route.destination.as_ref());
            let mirrors = http
                .mirrors
                .iter()
                .map(|mirror| mirror.destination.as_ref());
            routes.chain(mirrors).chain([http.mirror.as_ref()])
        });
        let tls = spec.tls.iter().flat_map(|tls| &tls.route);
        let tcp = spec.tcp.iter().flat_map(|tcp| &tcp.route);
        let l4 = tls.chain(tcp).map(|route| route.destination.as_ref());
        http.chain(l4)
            .flatten()
            .map(|to| hostname::resolve(&to.host, &self.origin.namespace, domain_suffix))
            .collect()
    }

    /// Whether the rule is bound to a gateway (`mesh` or `namespace/name`).
    pub fn is_bound_to(&self, gateway: &str) -> bool {
        self.gateways.iter().any(|g| g == gateway)
    }
}

/// A gateway name as written in a rule of `namespace`: `mesh`, `name` or `namespace/name`
/// (fact 20: a bare name is looked for in the rule's own namespace).
pub fn resolve_gateway(name: &str, namespace: &str) -> String {
    match name.split_once('/') {
        _ if name == MESH_GATEWAY => name.to_string(),
        Some((".", rest)) => format!("{namespace}/{rest}"),
        Some(_) => name.to_string(),
        None => format!("{namespace}/{name}"),
    }
}

/// All DestinationRules of one namespace for one host, merged.
#[derive(Clone, Debug, PartialEq)]
pub struct DestinationRule {
    /// Where it came from, oldest first.
    pub origins: Vec<Origin>,
    pub namespace: String,
    /// Fully qualified host or wildcard.
    pub host: String,
    /// Labels of the client workloads it is for; empty: all.
    pub selector: BTreeMap<String, String>,
    pub visibility: Visibility,
    pub traffic_policy: Option<api::destination_rule::TrafficPolicy>,
    pub subsets: Vec<api::destination_rule::Subset>,
}

impl DestinationRule {
    /// The subset of this name.
    pub fn subset(&self, name: &str) -> Option<&api::destination_rule::Subset> {
        self.subsets.iter().find(|subset| subset.name == name)
    }

    /// Adds a younger rule for the same host: its subsets are added, names that are taken are
    /// ignored, and the older traffic policy wins (fact 30).
    fn merge(&mut self, younger: DestinationRule) {
        for subset in younger.subsets {
            if self.subset(&subset.name).is_none() {
                self.subsets.push(subset);
            }
        }
        if self.traffic_policy.is_none() {
            self.traffic_policy = younger.traffic_policy;
        }
        self.origins.extend(younger.origins);
    }
}

/// Rules of one namespace by host and by whom they are for.
type OfNamespace<R> = BTreeMap<(String, BTreeMap<String, String>), R>;

/// DestinationRules by namespace and host.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DestinationRules {
    by_namespace: BTreeMap<String, OfNamespace<Arc<DestinationRule>>>,
}

impl DestinationRules {
    /// Merges rules given oldest first.
    pub fn merge(
        rules: impl Iterator<Item = (Origin, Arc<api::DestinationRule>)>,
        mesh: &MeshSettings,
    ) -> Self {
        let mut merged: BTreeMap<String, OfNamespace<DestinationRule>> = BTreeMap::new();
        for (origin, spec) in rules {
            let host = hostname::resolve(&spec.host, &origin.namespace, &mesh.domain_suffix);
            let rule = DestinationRule {
                namespace: origin.namespace.clone(),
                host: host.clone(),
                selector: spec
                    .workload_selector
                    .as_ref()
                    .map(|selector| selector.match_labels.clone())
                    .unwrap_or_default(),
                visibility: Visibility::with_default(
                    &spec.export_to,
                    &mesh.destination_rule_export_to,
                    &origin.namespace,
                ),
                traffic_policy: spec.traffic_policy.clone(),
                subsets: spec.subsets.clone(),
                origins: vec![origin],
            };
            let hosts = merged.entry(rule.namespace.clone()).or_default();
            let key = (host, rule.selector.clone());
            match hosts.get_mut(&key) {
                Some(older) => older.merge(rule),
                None => {
                    hosts.insert(key, rule);
                }
            }
        }
        let share = |hosts: OfNamespace<DestinationRule>| {
            hosts
                .into_iter()
                .map(|(host, rule)| (host, Arc::new(rule)))
                .collect()
        };
        DestinationRules {
            by_namespace: merged
                .into_iter()
                .map(|(ns, hosts)| (ns, share(hosts)))
                .collect(),
        }
    }

    /// Takes over the identity of rules that did not change.
    pub fn keep_identities(&mut self, previous: &DestinationRules) {
        for (namespace, hosts) in &mut self.by_namespace {
            let Some(before) = previous.by_namespace.get(namespace) else {
                continue;
            };
            for (host, rule) in hosts {
                if let Some(old) = before.get(host).filter(|old| *old == rule) {
                    *rule = old.clone();
                }
            }
        }
    }

    /// Every merged rule.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<DestinationRule>> {
        self.by_namespace.values().flat_map(BTreeMap::values)
    }

    /// The rule that a client uses for a service: looked for in the client's
    /// namespace, then the service's, then the root namespace; the first that has one decides,
    /// rules are never merged across namespaces (fact 29). A rule that selects client workloads counts
    /// for those of its own namespace, and there before one for all.
    pub fn pick(
        &self,
        client: Client<'_>,
        service_host: &str,
        service_namespace: &str,
        root_namespace: &str,
    ) -> Option<&Arc<DestinationRule>> {
        [client.namespace, service_namespace, root_namespace]
            .iter()
            .find_map(|namespace| self.most_specific(namespace, service_host, client))
    }

    fn most_specific(
        &self,
        namespace: &str,
        host: &str,
        client: Client<'_>,
    ) -> Option<&Arc<DestinationRule>> {
        self.by_namespace
            .get(namespace)?
            .values()
            .filter(|rule| rule.visibility.reaches(client.namespace))
            .filter(|rule| client.is_selected_by(rule))
            .filter(|rule| hostname::matches(&rule.host, host))
            .min_by_key(|rule| (hostname::specificity(&rule.host), rule.selector.is_empty()))
    }
}

/// Who asks for a DestinationRule.
#[derive(Clone, Copy, Debug)]
pub struct Client<'a> {
    pub namespace: &'a str,
    /// [`None`]: any workload of the namespace, for whom rules that select do not count.
    pub labels: Option<&'a BTreeMap<String, String>>,
}

impl Client<'_> {
    fn is_selected_by(&self, rule: &DestinationRule) -> bool {
        rule.selector.is_empty()
            || self.labels.is_some_and(|labels| {
                rule.namespace == self.namespace && labels_match(&rule.selector, labels)
            })
    }
}

/// A Gateway.
#[derive(Clone, Debug, PartialEq)]
pub struct Gateway {
    pub origin: Origin,
    pub spec: Arc<api::Gateway>,
}

impl Gateway {
    /// `namespace/name`, as rules name it.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.origin.namespace, self.origin.name)
    }
}

/// A host of a Gateway server: `host` or `namespace/host` (`.` and `*` as in Istio).
pub struct ServerHost<'a> {
    /// Namespaces whose VirtualServices may attach; `None` is all.
    pub namespace: Option<&'a str>,
    pub host: &'a str,
}

impl<'a> ServerHost<'a> {
    /// Reads a host of a server in a Gateway of `gateway_namespace`.
    pub fn parse(text: &'a str, gateway_namespace: &'a str) -> ServerHost<'a> {
        match text.split_once('/') {
            None | Some(("*", _)) => ServerHost {
                namespace: None,
                host: text.split_once('/').map_or(text, |(_, host)| host),
            },
            Some((".", host)) => ServerHost {
                namespace: Some(gateway_namespace),
                host,
            },
            Some((namespace, host)) => ServerHost {
                namespace: Some(namespace),
                host,
            },
        }
    }

    /// Whether VirtualServices of `namespace` may attach to this host.
    pub fn admits(&self, namespace: &str) -> bool {
        self.namespace.is_none_or(|only| only == namespace)
    }
}
