//! Which connections workloads take: with mutual TLS, without, or both (fact 46).
//!
//! The narrowest PeerAuthentication that says a mode decides: the one that selects the workload,
//! that of its namespace, that of the mesh (the root namespace's); of several the oldest counts, and
//! the others as if they were not there. In the root namespace only the one without selector counts.
//! Who says nothing takes both.

use std::collections::BTreeMap;
use std::sync::Arc;

use lateen_api as api;
use lateen_api::peer_authentication::{MutualTls, MutualTlsMode};

use crate::proxy::{Proxy, ProxyKind};
use crate::rules::Origin;
use crate::service::{Workload, labels_match};
use crate::snapshot::MeshSnapshot;

/// The label that Istio's injector gives to workloads with a sidecar, and its value for those whose
/// sidecar takes mutual TLS.
const TLS_MODE_LABEL: &str = "security.istio.io/tlsMode";
const TAKES_MUTUAL_TLS: &str = "istio";

/// A PeerAuthentication.
#[derive(Clone, Debug, PartialEq)]
pub struct PeerAuthentication {
    pub origin: Origin,
    pub spec: Arc<api::PeerAuthentication>,
    /// It stands for one that cannot be read: before any other, and without a selector for every
    /// workload of its namespace.
    pub closed: bool,
}

/// What a port takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum MtlsMode {
    /// Without TLS of the mesh.
    Disable,
    /// With and without.
    #[default]
    Permissive,
    /// Nothing but mutual TLS.
    Strict,
}

impl MtlsMode {
    /// `None` leaves it to the wider rule.
    fn of(mtls: Option<&MutualTls>) -> Option<MtlsMode> {
        match mtls?.mode.unwrap_or_default() {
            MutualTlsMode::Unset => None,
            MutualTlsMode::Disable => Some(MtlsMode::Disable),
            MutualTlsMode::Permissive => Some(MtlsMode::Permissive),
            MutualTlsMode::Strict => Some(MtlsMode::Strict),
        }
    }
}

/// What holds for one workload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct WorkloadMtls {
    pub mode: MtlsMode,
    /// Ports of the workload with a mode of their own.
    pub ports: BTreeMap<u32, MtlsMode>,
}

impl WorkloadMtls {
    /// What holds for a port that is known by these numbers: the one the workload is reached at, and
    /// the one the service that leads there has as its target. They differ only where a
    /// WorkloadEntry says another (the mesh on one machine), and the person who writes the rule
    /// knows the second.
    pub fn of_port(&self, numbers: impl IntoIterator<Item = u32>) -> MtlsMode {
        let mut numbers = numbers.into_iter();
        let own = numbers.find_map(|number| self.ports.get(&number));
        own.copied().unwrap_or(self.mode)
    }
}

/// What holds in one namespace, where the rules that select workloads still have to be asked.
pub struct NamespaceMtls<'a> {
    mode: MtlsMode,
    /// Those of the namespace that select workloads, in the order in which they count.
    selecting: Vec<&'a Arc<PeerAuthentication>>,
}

impl NamespaceMtls<'_> {
    /// For a workload that no rule selects.
    pub fn mode(&self) -> MtlsMode {
        self.mode
    }

    /// Whether every port of every workload takes mutual TLS.
    pub fn is_never_disabled(&self) -> bool {
        let disables = |mtls: Option<&MutualTls>| MtlsMode::of(mtls) == Some(MtlsMode::Disable);
        self.mode != MtlsMode::Disable
            && !self.selecting.iter().any(|rule| {
                disables(rule.spec.mtls.as_ref())
                    || rule
                        .spec
                        .port_level_mtls
                        .values()
                        .any(|m| disables(Some(m)))
            })
    }

    /// For a workload with these labels.
    pub fn of_workload(&self, labels: &BTreeMap<String, String>) -> WorkloadMtls {
        let selects = |rule: &&&Arc<PeerAuthentication>| {
            let selector = rule.spec.selector.as_ref();
            selector.is_none_or(|selector| labels_match(&selector.match_labels, labels))
        };
        let Some(rule) = self.selecting.iter().find(selects) else {
            return WorkloadMtls {
                mode: self.mode,
                ports: BTreeMap::new(),
            };
        };
        let mode = MtlsMode::of(rule.spec.mtls.as_ref()).unwrap_or(self.mode);
        let ports = rule.spec.port_level_mtls.iter();
        WorkloadMtls {
            mode,
            ports: ports
                .filter_map(|(port, mtls)| {
                    Some((port.parse().ok()?, MtlsMode::of(Some(mtls)).unwrap_or(mode)))
                })
                .collect(),
        }
    }
}

impl MeshSnapshot {
    /// What holds in a namespace.
    pub fn mtls_in<'a>(&'a self, namespace: &'a str) -> NamespaceMtls<'a> {
        let root = self.settings.root_namespace.as_str();
        let default_of = |namespace: &'a str| {
            let defaults = || {
                let rules = self.peer_authentications_in(namespace);
                rules.filter(|rule| rule.spec.is_default())
            };
            let default = defaults().find(|rule| rule.closed);
            let default = default.or_else(|| defaults().next());
            default.and_then(|rule| MtlsMode::of(rule.spec.mtls.as_ref()))
        };
        let own = (namespace != root).then(|| default_of(namespace)).flatten();
        let mode = own.or_else(|| default_of(root)).unwrap_or_default();
        let mut selecting: Vec<_> = self
            .peer_authentications_in(namespace)
            .filter(|rule| namespace != root && (rule.closed || !rule.spec.is_default()))
            .collect();
        selecting.sort_by_key(|rule| !rule.closed);
        NamespaceMtls { mode, selecting }
    }

    /// What holds for the workload of a proxy.
    pub fn mtls_of(&self, proxy: &Proxy) -> WorkloadMtls {
        let proxy = self.labelled(proxy);
        self.mtls_in(&proxy.namespace).of_workload(&proxy.labels)
    }

    /// Whether the proxy has an identity in the mesh: certificate, key and the authorities that
    /// certificates of others are verified with. A gateway has it with its agent, as in Istio, where
    /// nothing labels gateways.
    pub fn has_identity(&self, proxy: &Proxy) -> bool {
        let workload = self.workload_of(proxy);
        let is_gateway = proxy.kind == ProxyKind::Gateway;
        (is_gateway && proxy.has_agent)
            || takes_mtls(&proxy.labels)
            || workload.is_some_and(|workload| workload.takes_mtls())
    }
}

impl Workload {
    /// Whether clients may speak mutual TLS to it.
    pub fn takes_mtls(&self) -> bool {
        takes_mtls(&self.labels)
    }
}

/// Whether workloads with these labels take mutual TLS.
pub fn takes_mtls(labels: &BTreeMap<String, String>) -> bool {
    labels.get(TLS_MODE_LABEL).map(String::as_str) == Some(TAKES_MUTUAL_TLS)
}
