//! The table of kinds: names, group, versions. One line here and one file make a new kind.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde_json::Value as Json;

use crate::decode::Decoder;
use crate::field::Field;
use crate::node::Node;
use crate::object::Spec;
use crate::schema::Schema;
use crate::validate::{Checker, Validate};

/// What a kind is called, and where.
#[derive(Debug, PartialEq, Eq)]
pub struct KindInfo {
    /// `VirtualService`.
    pub name: &'static str,
    /// Empty for Kubernetes' core group.
    pub group: &'static str,
    pub plural: &'static str,
    pub singular: &'static str,
    pub short: &'static [&'static str],
    pub namespaced: bool,
    /// Versions that documents may name; all have the same form.
    pub versions: &'static [&'static str],
    /// The version that answers are given in.
    pub storage_version: &'static str,
}

const ISTIO: &[&str] = &["v1", "v1beta1", "v1alpha3"];
const SECURITY: &[&str] = &["v1", "v1beta1"];
const CORE: &[&str] = &["v1"];
const OPERATOR: &[&str] = &["v1alpha1"];
const RBAC: &str = crate::role::GROUP;

macro_rules! kinds {
    ($( $kind:ident($spec:path), $group:literal, $plural:literal, $singular:literal, $short:expr, $namespaced:literal, $versions:expr; )*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Kind { $( $kind ),* }

        impl Kind {
            pub const ALL: &'static [Kind] = &[ $( Kind::$kind ),* ];

            pub fn info(self) -> &'static KindInfo {
                match self { $( Kind::$kind => {
                    const INFO: KindInfo = KindInfo {
                        name: stringify!($kind),
                        group: $group,
                        plural: $plural,
                        singular: $singular,
                        short: &$short,
                        namespaced: $namespaced,
                        versions: $versions,
                        storage_version: $versions[0],
                    };
                    &INFO
                } )* }
            }

            /// Form of the kind's `spec`.
            pub fn schema(self) -> Schema {
                match self { $( Kind::$kind => <$spec as Field>::schema() ),* }
            }
        }

        /// The content of an object, shared so that snapshots copy no content.
        #[derive(Clone, Debug, PartialEq)]
        pub enum SpecOf { $( $kind(Arc<$spec>) ),* }

        impl SpecOf {
            pub fn kind(&self) -> Kind {
                match self { $( SpecOf::$kind(_) => Kind::$kind ),* }
            }

            pub(crate) fn decode(kind: Kind, node: &Node, decoder: &mut Decoder) -> Option<SpecOf> {
                match kind { $( Kind::$kind => <$spec as Field>::decode(node, decoder).map(|spec| SpecOf::$kind(Arc::new(spec))) ),* }
            }

            pub(crate) fn validate(&self, check: &mut Checker) {
                match self { $( SpecOf::$kind(spec) => spec.validate(check) ),* }
            }

            pub(crate) fn encode(&self) -> Json {
                match self { $( SpecOf::$kind(spec) => spec.encode() ),* }
            }
        }

        $( impl From<$spec> for Spec {
            fn from(spec: $spec) -> Spec {
                SpecOf::$kind(Arc::new(spec))
            }
        } )*
    };
}

kinds! {
    VirtualService(crate::VirtualService), "networking.istio.io", "virtualservices", "virtualservice", ["vs"], true, ISTIO;
    DestinationRule(crate::DestinationRule), "networking.istio.io", "destinationrules", "destinationrule", ["dr"], true, ISTIO;
    Gateway(crate::Gateway), "networking.istio.io", "gateways", "gateway", ["gw"], true, ISTIO;
    ServiceEntry(crate::ServiceEntry), "networking.istio.io", "serviceentries", "serviceentry", ["se"], true, ISTIO;
    WorkloadEntry(crate::WorkloadEntry), "networking.istio.io", "workloadentries", "workloadentry", ["we"], true, ISTIO;
    Sidecar(crate::Sidecar), "networking.istio.io", "sidecars", "sidecar", [], true, ISTIO;
    PeerAuthentication(crate::PeerAuthentication), "security.istio.io", "peerauthentications", "peerauthentication", ["pa"], true, SECURITY;
    AuthorizationPolicy(crate::AuthorizationPolicy), "security.istio.io", "authorizationpolicies", "authorizationpolicy", ["ap"], true, SECURITY;
    RequestAuthentication(crate::RequestAuthentication), "security.istio.io", "requestauthentications", "requestauthentication", ["ra"], true, SECURITY;
    Service(crate::Service), "", "services", "service", ["svc"], true, CORE;
    Pod(crate::Pod), "", "pods", "pod", ["po"], true, CORE;
    Endpoints(crate::endpoints::Endpoints), "", "endpoints", "endpoints", ["ep"], true, CORE;
    EndpointSlice(crate::endpoints::EndpointSlice), "discovery.k8s.io", "endpointslices", "endpointslice", [], true, CORE;
    Secret(crate::Secret), "", "secrets", "secret", [], true, CORE;
    Namespace(crate::Namespace), "", "namespaces", "namespace", ["ns"], false, CORE;
    ConfigMap(crate::ConfigMap), "", "configmaps", "configmap", ["cm"], true, CORE;
    Role(crate::role::Role), "rbac.authorization.k8s.io", "roles", "role", [], true, CORE;
    RoleBinding(crate::role::RoleBinding), "rbac.authorization.k8s.io", "rolebindings", "rolebinding", [], true, CORE;
    ClusterRole(crate::role::ClusterRole), "rbac.authorization.k8s.io", "clusterroles", "clusterrole", [], false, CORE;
    ClusterRoleBinding(crate::role::ClusterRoleBinding), "rbac.authorization.k8s.io", "clusterrolebindings", "clusterrolebinding", [], false, CORE;
    IstioOperator(crate::IstioOperator), "install.istio.io", "istiooperators", "istiooperator", ["iop", "io"], true, OPERATOR;
}

impl Kind {
    /// Whether the content stands beside `metadata` instead of under `spec`.
    pub fn content_at_root(self) -> bool {
        use Kind::{ConfigMap, EndpointSlice, Endpoints, Secret};
        matches!(self, ConfigMap | Secret | Endpoints | EndpointSlice) || self.is_role()
    }

    /// Whether the kind says what somebody may do in the API.
    pub fn is_role(self) -> bool {
        self.info().group == RBAC
    }

    /// Whether objects of the kind protect something: one that is not understood to the last field
    /// is refused, whatever else is asked for.
    pub fn is_security(self) -> bool {
        self.info().group == "security.istio.io" || self.is_role()
    }

    /// `networking.istio.io/v1`, `v1`: the version that answers are given in.
    pub fn api_version(self) -> String {
        self.in_group(self.info().storage_version)
    }

    /// Everything a document may say as `apiVersion`.
    pub fn api_versions(self) -> Vec<String> {
        self.info()
            .versions
            .iter()
            .map(|version| self.in_group(version))
            .collect()
    }

    fn in_group(self, version: &str) -> String {
        match self.info().group {
            "" => version.to_owned(),
            group => format!("{group}/{version}"),
        }
    }

    /// By the group and the plural name of a URL path.
    pub fn from_resource(group: &str, plural: &str) -> Option<Kind> {
        Kind::ALL
            .iter()
            .copied()
            .find(|kind| kind.info().group == group && kind.info().plural == plural)
    }
}

/// What `apiVersion` and `kind` of a document name.
pub(crate) enum Resolved {
    Kind(Kind),
    /// The kind, but in a version that does not exist.
    Version(Kind),
    /// The kind, but of another group.
    Group(Kind),
    /// Exists in the world, not here yet.
    NotYet,
    Unknown(Option<&'static str>),
}

/// Groups and kinds that documents for a mesh hold and that no type here stands for yet.
const NOT_YET: &[(&str, &[&str])] = &[
    (
        "networking.istio.io",
        &["EnvoyFilter", "WorkloadGroup", "ProxyConfig"],
    ),
    ("telemetry.istio.io", &["Telemetry"]),
    ("extensions.istio.io", &["WasmPlugin", "ExtensionFilter"]),
    (
        "gateway.networking.k8s.io",
        &[
            "GatewayClass",
            "Gateway",
            "HTTPRoute",
            "GRPCRoute",
            "TLSRoute",
            "TCPRoute",
            "UDPRoute",
            "ReferenceGrant",
            "BackendTLSPolicy",
            "ListenerSet",
        ],
    ),
    (
        "",
        &[
            "ServiceAccount",
            "Node",
            "PersistentVolumeClaim",
            "PersistentVolume",
            "ReplicationController",
            "LimitRange",
            "ResourceQuota",
        ],
    ),
    (
        "apps",
        &["Deployment", "StatefulSet", "DaemonSet", "ReplicaSet"],
    ),
    ("batch", &["Job", "CronJob"]),
    (
        "networking.k8s.io",
        &["Ingress", "IngressClass", "NetworkPolicy"],
    ),
    ("autoscaling", &["HorizontalPodAutoscaler"]),
    ("policy", &["PodDisruptionBudget"]),
    ("apiextensions.k8s.io", &["CustomResourceDefinition"]),
    (
        "admissionregistration.k8s.io",
        &[
            "MutatingWebhookConfiguration",
            "ValidatingWebhookConfiguration",
        ],
    ),
];

impl Kind {
    pub(crate) fn resolve(api_version: &str, name: &str) -> Resolved {
        let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
        let same_name = |kind: &&Kind| kind.info().name == name;
        if let Some(kind) = Kind::ALL
            .iter()
            .filter(same_name)
            .find(|kind| kind.info().group == group)
        {
            return match kind.info().versions.contains(&version) {
                true => Resolved::Kind(*kind),
                false => Resolved::Version(*kind),
            };
        }
        if NOT_YET
            .iter()
            .any(|(of, names)| *of == group && names.contains(&name))
        {
            return Resolved::NotYet;
        }
        if let Some(kind) = Kind::ALL.iter().find(same_name) {
            return Resolved::Group(*kind);
        }
        let known = Kind::ALL.iter().map(|kind| kind.info().name);
        let not_yet = NOT_YET.iter().flat_map(|(_, names)| names.iter().copied());
        Resolved::Unknown(crate::suggest::nearest(name, known.chain(not_yet)))
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.info().name)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown kind {name:?}{}", .suggestion.map(|name| format!("; did you mean {name:?}?")).unwrap_or_default())]
pub struct UnknownKind {
    pub name: String,
    pub suggestion: Option<&'static str>,
}

/// Whatever a person types: `VirtualService`, `virtualservice(s)`, `vs`, `virtualservices.networking.istio.io`
/// (also with the version between: `virtualservices.v1.networking.istio.io`); case does not matter.
impl FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(text: &str) -> Result<Kind, UnknownKind> {
        let lower = text.to_ascii_lowercase();
        let (name, group) = lower.split_once('.').unwrap_or((&lower, ""));
        let named = |kind: &Kind| {
            let info = kind.info();
            info.plural == name || info.singular == name || info.short.contains(&name)
        };
        let grouped = |kind: &Kind| {
            let info = kind.info();
            let unversioned = group
                .split_once('.')
                .filter(|(version, _)| info.versions.contains(version));
            group.is_empty()
                || info.group == group
                || unversioned.is_some_and(|(_, group)| info.group == group)
        };
        Kind::ALL
            .iter()
            .copied()
            .find(|kind| named(kind) && grouped(kind))
            .ok_or_else(|| {
                let known = Kind::ALL
                    .iter()
                    .flat_map(|kind| [kind.info().plural, kind.info().singular]);
                UnknownKind {
                    name: text.to_owned(),
                    suggestion: crate::suggest::nearest(name, known),
                }
            })
    }
}
