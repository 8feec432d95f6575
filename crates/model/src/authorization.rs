//! Which AuthorizationPolicies count for a workload: those of the root namespace, then those of its
//! own, each the oldest first (`pilot/pkg/model/authorization.go`).
//!
//! A policy in the root namespace is for the mesh; a selector narrows that to the workloads with its
//! labels, in any namespace. A policy with targets is for what it is attached to (`attachment.rs`).

use std::collections::BTreeMap;
use std::sync::Arc;

use lateen_api as api;
use lateen_api::authorization_policy::{Action, DRY_RUN, Rule, parse_switch};
use lateen_api::mesh_config::ext_authz_port;
use lateen_api::target_reference::PolicyTargetReference;
use lateen_api::{IntOrString, Object};

use crate::attachment::Attachment;
use crate::rules::Origin;
use crate::service::Service;
use crate::snapshot::MeshSnapshot;

/// An AuthorizationPolicy.
#[derive(Clone, Debug, PartialEq)]
pub struct AuthorizationPolicy {
    pub origin: Origin,
    /// It only counts what it would do.
    pub dry_run: bool,
    pub spec: Arc<api::AuthorizationPolicy>,
}

impl AuthorizationPolicy {
    pub(crate) fn read(
        origin: Origin,
        object: &Object,
        spec: Arc<api::AuthorizationPolicy>,
    ) -> AuthorizationPolicy {
        let annotation = object.meta.annotations.get(DRY_RUN);
        AuthorizationPolicy {
            origin,
            // What is not understood is in force.
            dry_run: annotation.and_then(|text| parse_switch(text)) == Some(true),
            spec,
        }
    }

    pub fn action(&self) -> Action {
        self.spec.action.unwrap_or_default()
    }

    pub fn rules(&self) -> &[Rule] {
        self.spec.rules.as_deref().unwrap_or_default()
    }

    /// What it is attached to by name.
    pub fn targets(&self) -> &[PolicyTargetReference] {
        PolicyTargetReference::of(&self.spec.target_ref, &self.spec.target_refs)
    }

    /// Whether the policy is for a workload, of those in its reach.
    pub fn selects(&self, namespace: &str, labels: &BTreeMap<String, String>) -> bool {
        let attachment = Attachment {
            namespace: &self.origin.namespace,
            selector: self.spec.selector.as_ref(),
            targets: self.targets(),
        };
        attachment.selects(namespace, labels)
    }
}

impl MeshSnapshot {
    /// Every AuthorizationPolicy, by namespace.
    pub fn all_authorization_policies(&self) -> impl Iterator<Item = &Arc<AuthorizationPolicy>> {
        self.authorization_policies.values()
    }

    /// The AuthorizationPolicies that count for a workload, in the order they are applied.
    pub fn authorization_policies<'a>(
        &'a self,
        namespace: &'a str,
        labels: &'a BTreeMap<String, String>,
    ) -> impl Iterator<Item = &'a Arc<AuthorizationPolicy>> {
        let root = self.settings.root_namespace.as_str();
        let own = (namespace != root).then_some(namespace);
        let reach = std::iter::once(root).chain(own);
        reach
            .flat_map(|namespace| self.authorization_policies_in(namespace))
            .filter(move |policy| policy.selects(namespace, labels))
    }

    /// The service of an external authorizer (`host` or `namespace/host`) that a namespace sees, and
    /// its port.
    pub fn authorizer(
        &self,
        service: &str,
        port: &IntOrString,
        seen_from: &str,
    ) -> Option<(&Arc<Service>, u32)> {
        let (namespace, host) = match service.split_once('/') {
            Some((namespace, host)) => (Some(namespace), host),
            None => (None, service),
        };
        let service = self.service(&host.to_ascii_lowercase())?;
        let there = namespace.is_none_or(|namespace| service.namespace == namespace)
            && service.visibility.reaches(seen_from);
        let port = u32::from(ext_authz_port(port)?);
        (there && service.port(port).is_some()).then_some((service, port))
    }

    fn authorization_policies_in<'a>(
        &'a self,
        namespace: &'a str,
    ) -> impl Iterator<Item = &'a Arc<AuthorizationPolicy>> {
        self.authorization_policies
            .range((namespace.to_string(), Origin::least())..)
            .take_while(move |((of, _), _)| of == namespace)
            .map(|(_, policy)| policy)
    }
}
