//! What holds for one workload: services, policies, rules. What `lateen x describe` tells.

use lateen_api::Choice;
use lateen_model::{
    AuthorizationPolicy, MESH_GATEWAY, MeshSnapshot, MtlsMode, Origin, Service, VirtualService,
    Workload, hostname,
};
use serde::Serialize;
use std::sync::Arc;

/// What holds for one workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Description {
    pub name: String,
    pub namespace: String,
    pub address: String,
    pub service_account: String,
    pub labels: std::collections::BTreeMap<String, String>,
    pub services: Vec<DescribedService>,
    /// What connections it takes where no port says otherwise.
    pub mtls: &'static str,
    /// Whether its proxy has a certificate of the mesh.
    pub takes_mtls: bool,
    pub authorization_policies: Vec<DescribedPolicy>,
}

/// A service that selects the workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DescribedService {
    pub host: String,
    pub ports: Vec<DescribedPort>,
    /// `name.namespace`, oldest first.
    pub destination_rules: Vec<String>,
    /// Subsets that the workload is in.
    pub subsets: Vec<String>,
    pub virtual_services: Vec<DescribedRule>,
}

/// A port of a service, and where it leads on the workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DescribedPort {
    pub name: String,
    pub number: u32,
    pub protocol: String,
    pub workload_port: u32,
    pub mtls: &'static str,
}

/// A VirtualService for a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DescribedRule {
    pub name: String,
    /// `mesh`, or Gateways by `namespace/name`.
    pub gateways: Vec<String>,
}

/// An AuthorizationPolicy that counts for the workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DescribedPolicy {
    pub action: &'static str,
    pub name: String,
    pub rules: usize,
    pub dry_run: bool,
}

/// What holds for a workload; `None` when there is none of this name.
pub fn describe(snapshot: &MeshSnapshot, namespace: &str, name: &str) -> Option<Description> {
    let workload = snapshot.workload(namespace, name)?;
    let mtls = snapshot
        .mtls_in(&workload.namespace)
        .of_workload(&workload.labels);
    let services = snapshot.services_of(workload);
    let policies = snapshot.authorization_policies(&workload.namespace, &workload.labels);
    Some(Description {
        name: workload.name.clone(),
        namespace: workload.namespace.clone(),
        address: workload.address.clone(),
        service_account: workload.service_account.clone(),
        labels: workload.labels.clone(),
        services: services
            .map(|one| service(snapshot, workload, one))
            .collect(),
        mtls: mode(mtls.mode),
        takes_mtls: workload.takes_mtls(),
        authorization_policies: policies.map(|one| policy(one)).collect(),
    })
}

fn service(snapshot: &MeshSnapshot, workload: &Workload, service: &Service) -> DescribedService {
    let mtls = snapshot
        .mtls_in(&workload.namespace)
        .of_workload(&workload.labels);
    let ports = service.ports.iter().filter_map(|port| {
        let workload_port = workload.port_for(service, port)?;
        Some(DescribedPort {
            name: port.name.clone(),
            number: port.number,
            protocol: port.protocol.as_str().to_owned(),
            workload_port,
            mtls: mode(mtls.of_port([workload_port, port.number])),
        })
    });
    let rule = snapshot.destination_rule(&workload.namespace, service);
    let subsets = rule.into_iter().flat_map(|rule| &rule.subsets);
    let virtual_services = rules_about(snapshot, service);
    DescribedService {
        host: service.hostname.to_string(),
        ports: ports.collect(),
        destination_rules: rule
            .into_iter()
            .flat_map(|rule| &rule.origins)
            .map(full_name)
            .collect(),
        subsets: subsets
            .filter(|subset| lateen_model::labels_match(&subset.labels, &workload.labels))
            .map(|subset| subset.name.clone())
            .collect(),
        virtual_services: virtual_services
            .map(|rule| DescribedRule {
                name: full_name(&rule.origin),
                gateways: rule
                    .gateways
                    .iter()
                    .map(|gateway| match gateway.as_str() {
                        MESH_GATEWAY => "mesh".to_string(),
                        other => other.to_string(),
                    })
                    .collect(),
            })
            .collect(),
    }
}

/// VirtualServices that are for a service or lead to it, oldest first.
pub(crate) fn rules_about<'a>(
    snapshot: &'a MeshSnapshot,
    service: &'a Service,
) -> impl Iterator<Item = &'a Arc<VirtualService>> {
    snapshot.virtual_services().filter(|rule| {
        let mut to = rule
            .destinations(&snapshot.settings.domain_suffix)
            .into_iter();
        is_for(rule, service) || to.any(|host| *host == *service.hostname)
    })
}

/// Whether one of the hosts of a rule for the mesh is the service's. Hosts of a rule that gateways
/// alone have are names of the outside.
pub(crate) fn is_for(rule: &VirtualService, service: &Service) -> bool {
    let mut hosts = rule.hosts.iter();
    rule.is_bound_to(MESH_GATEWAY)
        && hosts.any(|pattern| hostname::matches(pattern, &service.hostname))
}

pub(crate) fn policy(policy: &AuthorizationPolicy) -> DescribedPolicy {
    DescribedPolicy {
        action: policy.action().as_str(),
        name: full_name(&policy.origin),
        rules: policy.rules().len(),
        dry_run: policy.dry_run,
    }
}

pub(crate) fn mode(mode: MtlsMode) -> &'static str {
    match mode {
        MtlsMode::Disable => "DISABLE",
        MtlsMode::Permissive => "PERMISSIVE",
        MtlsMode::Strict => "STRICT",
    }
}

pub(crate) fn full_name(origin: &Origin) -> String {
    format!("{}.{}", origin.name, origin.namespace)
}
