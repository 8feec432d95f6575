//! What is worth saying about an object when it is written: how it fits the other objects.
//!
//! Istio says these things in `istioctl analyze`, with the codes used here. They are warnings: an
//! object may be written before the ones it names.

use lateen_analysis::{Finding, Subject};
use lateen_api::{Diagnostic, Object, Severity};
use lateen_model::MeshSnapshot;

/// Warnings about `object` in the mesh of `snapshot`, of which it is a part.
pub(crate) fn warnings(snapshot: &MeshSnapshot, object: &Object) -> Vec<Diagnostic> {
    let namespace = match object.meta.namespace.as_str() {
        "" if object.kind.info().namespaced => "default",
        namespace => namespace,
    };
    let subject = Subject {
        kind: object.kind.info().name,
        namespace: namespace.to_owned(),
        name: object.meta.name.clone(),
    };
    lateen_analysis::findings_of(snapshot, &subject)
        .into_iter()
        .map(diagnostic)
        .collect()
}

fn diagnostic(finding: Finding) -> Diagnostic {
    Diagnostic {
        severity: Severity::Warning,
        code: Some(finding.code),
        message: finding.message,
        file: String::new(),
        line: 0,
        column: 0,
        path: finding.path,
        suggestion: None,
        confidential: false,
        unknown_kind: false,
    }
}
