//! RequestAuthentications: which a workload has, and the keys their rules name.
//!
//! Keys that are not in a rule are fetched by the control plane; what it found is an input of the
//! snapshot, so that translation stays pure.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use lateen_api as api;
use lateen_api::request_authentication::{DEFAULT_KEYS_TIMEOUT, JwtRule, key_server};
use lateen_api::target_reference::PolicyTargetReference;

use crate::attachment::Attachment;
use crate::rules::Origin;
use crate::snapshot::MeshSnapshot;

/// A RequestAuthentication.
#[derive(Clone, Debug, PartialEq)]
pub struct RequestAuthentication {
    pub origin: Origin,
    pub spec: Arc<api::RequestAuthentication>,
    /// It stands for one that cannot be read: requests are refused.
    pub closed: bool,
}

impl RequestAuthentication {
    /// What it is attached to by name.
    pub fn targets(&self) -> &[PolicyTargetReference] {
        PolicyTargetReference::of(&self.spec.target_ref, &self.spec.target_refs)
    }

    fn selects(&self, namespace: &str, labels: &BTreeMap<String, String>) -> bool {
        let attachment = Attachment {
            namespace: &self.origin.namespace,
            selector: self.spec.selector.as_ref(),
            targets: self.targets(),
        };
        attachment.selects(namespace, labels)
    }
}

/// Where the keys of a rule are fetched from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeySource {
    pub issuer: String,
    /// Empty: found by OpenID discovery from the issuer.
    pub uri: String,
}

impl KeySource {
    /// The source of a rule's keys, unless they are in the rule.
    pub fn of(rule: &JwtRule) -> Option<KeySource> {
        rule.jwks.is_empty().then(|| KeySource {
            issuer: rule.issuer.clone(),
            uri: rule.jwks_uri.clone(),
        })
    }
}

/// Who fetches the keys that rules name by URI. What an issuer has to be asked for first (no URI), the
/// control plane fetches in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum KeysFetchedBy {
    #[default]
    ControlPlane,
    /// The proxies, where the server is a service of the mesh; else the control plane.
    ProxiesIfInMesh,
    Proxies,
}

impl FromStr for KeysFetchedBy {
    type Err = String;

    /// Reads the values of `PILOT_JWT_ENABLE_REMOTE_JWKS`.
    fn from_str(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "" | "false" | "istiod" => Ok(KeysFetchedBy::ControlPlane),
            "true" | "hybrid" => Ok(KeysFetchedBy::ProxiesIfInMesh),
            "envoy" => Ok(KeysFetchedBy::Proxies),
            _ => Err(format!(
                "{text:?} is none of false, istiod, true, hybrid, envoy"
            )),
        }
    }
}

/// A server of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyServer {
    pub host: String,
    pub port: u32,
    /// What it says counts over TLS only.
    pub https: bool,
}

/// What fetching keys came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeySet {
    /// The last good JSON Web Key Set.
    pub keys: Option<Arc<str>>,
    /// Why the last try failed.
    pub error: Option<Arc<str>>,
}

/// Key sets by source.
pub type KeySets = BTreeMap<KeySource, KeySet>;

impl MeshSnapshot {
    /// Every RequestAuthentication, by namespace, oldest first.
    pub fn all_request_authentications(&self) -> impl Iterator<Item = &Arc<RequestAuthentication>> {
        self.request_authentications.values()
    }

    /// Those of a workload: of the root namespace and its own that are for it, oldest first.
    pub fn request_authentications(
        &self,
        namespace: &str,
        labels: &BTreeMap<String, String>,
    ) -> Vec<&Arc<RequestAuthentication>> {
        let root = &*self.settings.root_namespace;
        let namespaces = [Some(root), (namespace != root).then_some(namespace)];
        let mut found: Vec<_> = namespaces
            .into_iter()
            .flatten()
            .flat_map(|namespace| {
                let from = (namespace.to_string(), Origin::least());
                let range = self.request_authentications.range(from..);
                range.take_while(move |((of, _), _)| of == namespace)
            })
            .map(|(_, one)| one)
            .filter(|one| one.selects(namespace, labels))
            .collect();
        found.sort_by(|a, b| a.origin.cmp(&b.origin));
        found
    }

    /// The rules of a workload, sorted by issuer as Istio merges several RequestAuthentications.
    pub fn jwt_rules(&self, namespace: &str, labels: &BTreeMap<String, String>) -> Vec<&JwtRule> {
        let policies = self.request_authentications(namespace, labels);
        let mut rules: Vec<&JwtRule> = policies
            .into_iter()
            .flat_map(|policy| &policy.spec.jwt_rules)
            .collect();
        rules.sort_by(|a, b| a.issuer.cmp(&b.issuer));
        rules
    }

    /// The server that proxies themselves fetch the keys of a rule from.
    pub fn key_server(&self, rule: &JwtRule) -> Option<KeyServer> {
        let mode = self.settings.keys_fetched_by;
        if mode == KeysFetchedBy::ControlPlane || rule.jwks_uri.is_empty() || !rule.jwks.is_empty()
        {
            return None;
        }
        let (host, port) = key_server(&rule.jwks_uri)?;
        let port = u32::from(port);
        let in_mesh = || {
            let service = self.service(&host);
            service.is_some_and(|service| service.port(port).is_some())
        };
        let https = rule.jwks_uri.starts_with("https:");
        (mode == KeysFetchedBy::Proxies || in_mesh()).then_some(KeyServer { host, port, https })
    }

    /// Every source that the control plane fetches from, with how long fetching from it may take.
    pub fn key_sources(&self) -> BTreeMap<KeySource, Duration> {
        let mut sources = BTreeMap::new();
        let policies = self.request_authentications.values();
        for rule in policies.flat_map(|policy| &policy.spec.jwt_rules) {
            let timeout = rule.timeout.unwrap_or(DEFAULT_KEYS_TIMEOUT);
            let server = self.key_server(rule);
            let only_proxies = self.settings.keys_fetched_by == KeysFetchedBy::Proxies;
            // With https it depends on the proxy who fetches.
            if server.is_some_and(|server| only_proxies || !server.https) {
                continue;
            }
            if let Some(source) = KeySource::of(rule) {
                let longest = sources.entry(source).or_insert(timeout);
                *longest = timeout.max(*longest);
            }
        }
        sources
    }

    /// What fetching the keys of a source came to; `None` before the first try ended.
    pub fn key_set(&self, source: &KeySource) -> Option<&KeySet> {
        self.key_sets.get(source)
    }

    /// Of how many sources something is known.
    pub fn known_key_sets(&self) -> usize {
        self.key_sets.len()
    }

    /// The same mesh with other key sets; `None` when they are the same.
    pub fn with_key_sets(&self, sets: Arc<KeySets>) -> Option<MeshSnapshot> {
        if *self.key_sets == *sets {
            return None;
        }
        let mut next = self.clone();
        next.identity = Arc::default();
        next.key_sets = sets;
        Some(next)
    }
}
