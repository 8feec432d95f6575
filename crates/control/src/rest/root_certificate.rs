//! The ConfigMap `istio-ca-root-cert` that Istio puts into every namespace: the roots of the mesh,
//! as `root-cert.pem`. It is made when it is asked for and stands in no store, so it can be
//! neither changed nor out of date.

use std::collections::BTreeSet;

use axum::http::StatusCode;
use lateen_api::Kind;
use lateen_store::{Body, ObjectKey, Store, Stored};
use serde_json::json;

use super::path::Target;
use super::status::ApiError;
use crate::trust::Trust;

/// Its name in every namespace.
const NAME: &str = "istio-ca-root-cert";

/// The namespace whose ConfigMap a target is.
pub(super) fn namespace_of(target: &Target) -> Option<&str> {
    match target {
        Target::Object {
            kind: Kind::ConfigMap,
            namespace,
            name,
            ..
        } if name == NAME => Some(namespace),
        _ => None,
    }
}

/// Those of a list: of one namespace, or of all that there are.
pub(super) fn of_list(store: &Store, trust: &Trust, target: &Target) -> Vec<Stored> {
    let Target::Collection {
        kind: Kind::ConfigMap,
        namespace,
        ..
    } = target
    else {
        return Vec::new();
    };
    let namespaces = match namespace {
        Some(namespace) => BTreeSet::from([namespace.clone()]),
        None => {
            let (_, objects) = store.list(|_| true);
            let names = objects
                .iter()
                .map(|object| match object.key.kind == "Namespace" {
                    true => object.key.name.clone(),
                    false => object.key.namespace.clone(),
                });
            names.filter(|name| !name.is_empty()).collect()
        }
    };
    let roots = trust.authority().roots_pem();
    namespaces
        .iter()
        .map(|namespace| config_map(namespace, &roots))
        .collect()
}

/// The one of a namespace.
pub(super) fn object(trust: &Trust, namespace: &str) -> Stored {
    config_map(namespace, &trust.authority().roots_pem())
}

pub(super) fn refuse_write() -> ApiError {
    let reason = format!(
        "the ConfigMap {NAME} holds the roots of the mesh and is not to be written; give the control plane another authority (--ca-dir, or the Secret cacerts)"
    );
    ApiError::new(StatusCode::FORBIDDEN, "Forbidden", reason)
}

fn config_map(namespace: &str, roots: &str) -> Stored {
    Stored {
        key: ObjectKey::new("", "ConfigMap", namespace, NAME),
        source: lateen_store::Source::Api,
        uid: String::new(),
        resource_version: 0,
        generation: 0,
        created: "1970-01-01T00:00:00Z".to_owned(),
        body: Body::from(&json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": NAME,
                "namespace": namespace,
                "labels": {"istio.io/config": "true"},
            },
            "data": {"root-cert.pem": roots},
        })),
    }
}
