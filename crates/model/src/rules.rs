//! Rules with their names resolved: VirtualServices, DestinationRules (merged), Gateways.

use std::collections::BTreeMap;
use std::sync::Arc;

use lateen_api as api;
use rpds::RedBlackTreeMapSync;

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

impl Origin {
    /// Before every other, where a range begins.
    pub(crate) fn least() -> Origin {
        Origin {
            created: String::new(),
            name: String::new(),
            namespace: String::new(),
        }
    }
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

    /// Whether the rule has routes for connections, whose inside is not read.
    pub fn is_of_connections(&self) -> bool {
        !(self.spec.tcp.is_empty() && self.spec.tls.is_empty())
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
    /// It stands for one that cannot be read: nothing is sent to its hosts.
    pub closed: bool,
}

impl DestinationRule {
    fn resolve(
        host: &str,
        origin: &Origin,
        Written { spec, closed }: &Written,
        mesh: &MeshSettings,
    ) -> DestinationRule {
        DestinationRule {
            namespace: origin.namespace.clone(),
            host: host.to_string(),
            selector: selector_of(spec),
            visibility: Visibility::with_default(
                &spec.export_to,
                &mesh.destination_rule_export_to,
                &origin.namespace,
            ),
            traffic_policy: spec.traffic_policy.clone(),
            subsets: spec.subsets.clone(),
            origins: vec![origin.clone()],
            closed: *closed,
        }
    }

    /// What it is merged by.
    pub fn key(&self) -> RuleKey {
        let (namespace, host) = (self.namespace.clone(), self.host.clone());
        (namespace, host, self.selector.clone())
    }

    /// Whether any policy of it places requests by a hash of them.
    pub fn hashes(&self) -> bool {
        let subsets = self.subsets.iter().map(|subset| &subset.traffic_policy);
        let policies = subsets.chain([&self.traffic_policy]).flatten();
        policies
            .flat_map(|policy| {
                let ports = policy.port_level_settings.iter();
                ports
                    .map(|port| &port.load_balancer)
                    .chain([&policy.load_balancer])
            })
            .flatten()
            .any(|lb| lb.consistent_hash.is_some())
    }

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
        self.closed |= younger.closed;
    }
}

/// Which rules are merged: those of one namespace for one host and the same client workloads.
pub type RuleKey = (String, String, BTreeMap<String, String>);

fn selector_of(spec: &api::DestinationRule) -> BTreeMap<String, String> {
    let selector = spec.workload_selector.as_ref();
    selector
        .map(|selector| selector.match_labels.clone())
        .unwrap_or_default()
}

/// What an object says.
#[derive(Clone, Debug, PartialEq)]
struct Written {
    spec: Arc<api::DestinationRule>,
    closed: bool,
}

/// DestinationRules by namespace, host and whom they are for.
#[derive(Clone, Debug, Default)]
pub struct DestinationRules {
    /// What each object says, oldest first.
    written: RedBlackTreeMapSync<(RuleKey, Origin), Written>,
    merged: RedBlackTreeMapSync<RuleKey, Arc<DestinationRule>>,
    /// The merged ones by host, of whichever namespace.
    by_host: RedBlackTreeMapSync<(String, RuleKey), Arc<DestinationRule>>,
    /// How many merged rules each namespace has.
    namespaces: RedBlackTreeMapSync<String, usize>,
    /// How many merged rules are for some clients only.
    selecting: usize,
    /// How many merged rules place requests by a hash.
    hashing: usize,
}

impl DestinationRules {
    /// Adds what an object says; answers the namespace and host to settle.
    pub fn add(
        &mut self,
        origin: &Origin,
        spec: &Arc<api::DestinationRule>,
        closed: bool,
        mesh: &MeshSettings,
    ) -> RuleKey {
        let key = Self::key(origin, spec, mesh);
        let spec = spec.clone();
        let written = Written { spec, closed };
        self.written
            .insert_mut((key.clone(), origin.clone()), written);
        key
    }

    /// Takes away what an object said; answers the namespace and host to settle.
    pub fn remove(
        &mut self,
        origin: &Origin,
        spec: &api::DestinationRule,
        mesh: &MeshSettings,
    ) -> RuleKey {
        let key = Self::key(origin, spec, mesh);
        let written = (key.clone(), origin.clone());
        self.written.remove_mut(&written);
        key
    }

    fn key(origin: &Origin, spec: &api::DestinationRule, mesh: &MeshSettings) -> RuleKey {
        let host = hostname::resolve(&spec.host, &origin.namespace, &mesh.domain_suffix);
        (origin.namespace.clone(), host, selector_of(spec))
    }

    /// Merges the rules of a namespace for a host anew; an equal result keeps the identity of
    /// `before`. Answers whether it is the same as that.
    pub fn settle(
        &mut self,
        key: &RuleKey,
        before: Option<&Arc<DestinationRule>>,
        mesh: &MeshSettings,
    ) -> bool {
        let (_, host, _) = key;
        let from = (key.clone(), Origin::least());
        let mut rules = self
            .written
            .range(from..)
            .take_while(|((of, _), _)| of == key)
            .map(|((_, origin), one)| DestinationRule::resolve(host, origin, one, mesh));
        let merged = rules.next().map(|mut oldest| {
            rules.for_each(|younger| oldest.merge(younger));
            oldest
        });
        let known = self.merged.get(key);
        let hashed = known.is_some_and(|known| known.hashes());
        let hashes = merged.as_ref().is_some_and(DestinationRule::hashes);
        let known = known.is_some();
        self.hashing = (self.hashing + usize::from(hashes)).saturating_sub(usize::from(hashed));
        let Some(merged) = merged else {
            if known {
                self.merged.remove_mut(key);
                self.by_host.remove_mut(&(host.clone(), key.clone()));
                self.count(key, false);
            }
            return before.is_none();
        };
        let same = before.filter(|before| ***before == merged);
        let rule = same.cloned().unwrap_or_else(|| Arc::new(merged));
        let by_host = (host.clone(), key.clone());
        self.by_host.insert_mut(by_host, rule.clone());
        self.merged.insert_mut(key.clone(), rule);
        if !known {
            self.count(key, true);
        }
        same.is_some()
    }

    /// Whether any rule is for some clients only.
    pub fn select_clients(&self) -> bool {
        self.selecting > 0
    }

    /// Whether any rule places requests by a hash of them.
    pub fn hash(&self) -> bool {
        self.hashing > 0
    }

    fn count(&mut self, (namespace, _, selector): &RuleKey, more: bool) {
        let selects = usize::from(!selector.is_empty());
        self.selecting = match more {
            true => self.selecting + selects,
            false => self.selecting.saturating_sub(selects),
        };
        let now = self.namespaces.get(namespace).copied().unwrap_or(0);
        let next = if more { now + 1 } else { now.saturating_sub(1) };
        match next {
            0 => {
                self.namespaces.remove_mut(namespace);
            }
            next => self.namespaces.insert_mut(namespace.to_string(), next),
        }
    }

    /// The merged rule of a namespace for a host.
    pub fn get(&self, key: &RuleKey) -> Option<&Arc<DestinationRule>> {
        self.merged.get(key)
    }

    /// Every merged rule.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<DestinationRule>> {
        self.merged.values()
    }

    /// The rules of any namespace that cover a host: those of the host itself, and wildcards.
    pub fn covering<'a>(&'a self, host: &'a str) -> impl Iterator<Item = &'a Arc<DestinationRule>> {
        let least = (String::new(), String::new(), BTreeMap::new());
        let exact = self
            .by_host
            .range((host.to_string(), least.clone())..)
            .take_while(move |((on, _), _)| on == host);
        let wildcards = self
            .by_host
            .range(("*".to_string(), least)..)
            .take_while(|((on, _), _)| on.starts_with('*'))
            .filter(move |((on, _), _)| on != host && hostname::matches(on, host));
        exact.chain(wildcards).map(|(_, rule)| rule)
    }

    /// The rules of a namespace that cover a host: that of the host itself, and wildcards.
    fn covering_in<'a>(
        &'a self,
        namespace: &'a str,
        host: &'a str,
    ) -> impl Iterator<Item = &'a Arc<DestinationRule>> {
        let from = |host: &str| (namespace.to_string(), host.to_string(), BTreeMap::new());
        let exact = self
            .merged
            .range(from(host)..)
            .take_while(move |((of, on, _), _)| of == namespace && on == host)
            .map(|(_, rule)| rule);
        let wildcards = self
            .merged
            .range(from("*")..)
            .take_while(move |((of, on, _), _)| of == namespace && on.starts_with('*'))
            .map(|(_, rule)| rule)
            .filter(move |rule| rule.host != host && hostname::matches(&rule.host, host));
        exact.chain(wildcards)
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
        let own = client.namespace;
        let others = [service_namespace, root_namespace];
        let others = others.into_iter().filter(|other| *other != own);
        std::iter::once(own)
            .chain(others)
            .filter(|namespace| self.namespaces.contains_key(*namespace))
            .find_map(|namespace| self.most_specific(namespace, service_host, client))
    }

    fn most_specific(
        &self,
        namespace: &str,
        host: &str,
        client: Client<'_>,
    ) -> Option<&Arc<DestinationRule>> {
        let found = self
            .covering_in(namespace, host)
            .filter(|rule| rule.visibility.reaches(client.namespace))
            .filter(|rule| client.is_selected_by(rule))
            .min_by_key(|rule| (hostname::specificity(&rule.host), rule.selector.is_empty()))?;
        // Found by names that end with this call; asked for again, it lives as long as the rules.
        self.merged.get(&found.key())
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
