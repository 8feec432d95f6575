//! What is wrong between objects, with Istio's message codes.
//!
//! One object can be right and still mean nothing: a subset that no DestinationRule defines, a
//! gateway that is not there, two rules for one host. [`findings`] says so for a whole snapshot;
//! `apply` shows those of the objects it changed.
//!
//! What one object can say about itself is checked in `api`. No I/O here.

mod attachments;
mod authorization_policies;
mod describe;
mod describe_service;
mod destination_rules;
mod gateways;
mod mtls;
mod request_authentications;
mod role_bindings;
mod servers;
mod services;
mod sidecars;
mod virtual_services;

use std::fmt;

pub use describe::{Description, describe};
pub use describe_service::{ServiceDescription, describe_service};

use lateen_model::MeshSnapshot;
use serde::Serialize;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Level {
    Info,
    Warning,
    Error,
}

/// The object a finding is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Subject {
    pub kind: &'static str,
    pub namespace: String,
    pub name: String,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Istio's message code, `IST0101`.
    pub code: &'static str,
    pub level: Level,
    pub subject: Subject,
    pub message: String,
    /// Path of the field, `spec.http[0].route[1].destination.subset`.
    pub path: String,
}

impl fmt::Display for Finding {
    /// As `istioctl analyze` prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Subject {
            kind,
            namespace,
            name,
        } = &self.subject;
        write!(
            f,
            "{:?} [{}] ({kind} {namespace}/{name}) {}",
            self.level, self.code, self.message
        )
    }
}

/// Everything that is wrong, by object.
pub fn findings(snapshot: &MeshSnapshot) -> Vec<Finding> {
    let mut found = virtual_services::findings(snapshot);
    found.extend(gateways::findings(snapshot));
    found.extend(destination_rules::findings(snapshot));
    found.extend(mtls::findings(snapshot));
    found.extend(services::findings(snapshot));
    found.extend(servers::findings(snapshot));
    found.extend(sidecars::findings(snapshot));
    found.extend(request_authentications::findings(snapshot));
    found.extend(authorization_policies::findings(snapshot));
    found.extend(role_bindings::findings(snapshot));
    found.sort_by(|a, b| (&a.subject, &a.path).cmp(&(&b.subject, &b.path)));
    found
}

/// What is wrong with one object, without a look at what the others say: for who has just written it.
pub fn findings_of(snapshot: &MeshSnapshot, subject: &Subject) -> Vec<Finding> {
    let mut found = match subject.kind {
        "VirtualService" => {
            let rules = virtual_services::of(snapshot, subject);
            let routes = servers::tls_routes_of(snapshot, subject);
            let claims = request_authentications::of_routes(snapshot, subject);
            rules.into_iter().chain(routes).chain(claims).collect()
        }
        "DestinationRule" => {
            let mut found = destination_rules::of(snapshot, subject);
            found.extend(mtls::of(snapshot, subject));
            found
        }
        "Service" | "ServiceEntry" => services::of(snapshot, subject),
        "RoleBinding" | "ClusterRoleBinding" => role_bindings::findings(snapshot),
        // Nobody is told anything about workloads.
        "WorkloadEntry" | "Endpoints" | "EndpointSlice" | "Namespace" | "Secret" | "Role"
        | "ClusterRole" => Vec::new(),
        _ => findings(snapshot),
    };
    found.retain(|finding| finding.subject == *subject);
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// "Referenced X not found": a name that leads nowhere (IST0101).
fn not_found(subject: &Subject, what: &str, name: &str, path: String) -> Finding {
    Finding {
        code: "IST0101",
        level: Level::Error,
        subject: subject.clone(),
        message: format!("Referenced {what} not found: {name:?}"),
        path,
    }
}
