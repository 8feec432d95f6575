//! The ConfigMaps that Istio puts into every namespace: `istio-ca-root-cert` with the roots of the
//! mesh, `istio-ca-crl` with the lists of certificates that are revoked. They are made when they are
//! asked for and stand in no store, so they can be neither changed nor out of date.

use std::collections::BTreeSet;

use axum::http::StatusCode;
use lateen_api::Kind;
use lateen_identity::Authority;
use lateen_store::{Body, ObjectKey, Store, Stored};
use serde_json::json;

use super::path::Target;
use super::status::ApiError;
use crate::trust::Trust;

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TrustMap {
    Roots,
    /// Empty where nothing is revoked.
    Revoked,
}

const ALL: [TrustMap; 2] = [TrustMap::Revoked, TrustMap::Roots];

impl TrustMap {
    /// The one that a target is, with its namespace.
    pub fn of(target: &Target) -> Option<(TrustMap, &str)> {
        let Target::Object {
            kind: Kind::ConfigMap,
            namespace,
            name,
            ..
        } = target
        else {
            return None;
        };
        Some((Self::named(name)?, namespace))
    }

    /// The one that a key is of.
    pub fn of_key(key: &ObjectKey) -> Option<TrustMap> {
        let is_map = key.group.is_empty() && key.kind == "ConfigMap";
        Self::named(&key.name).filter(|_| is_map)
    }

    fn named(name: &str) -> Option<TrustMap> {
        ALL.into_iter().find(|map| map.name() == name)
    }

    fn name(self) -> &'static str {
        match self {
            TrustMap::Roots => "istio-ca-root-cert",
            TrustMap::Revoked => "istio-ca-crl",
        }
    }

    /// The name of what is in it, and that.
    fn content(self, authority: &Authority) -> (&'static str, String) {
        match self {
            TrustMap::Roots => ("root-cert.pem", authority.roots_pem()),
            TrustMap::Revoked => {
                let lists = authority.revocations().map(|all| all.pem.clone());
                ("ca-crl.pem", lists.unwrap_or_default())
            }
        }
    }

    /// The one of a namespace. It is there since the namespace is; nobody knows since when, where
    /// that is only the name of objects.
    pub fn object(self, store: &Store, trust: &Trust, namespace: &str) -> Stored {
        let namespace_object = store.get(&ObjectKey::new("", "Namespace", "", namespace));
        let (key, content) = self.content(&trust.authority());
        let name = self.name();
        Stored {
            key: ObjectKey::new("", "ConfigMap", namespace, name),
            source: lateen_store::Source::Api,
            uid: String::new(),
            resource_version: 0,
            generation: 0,
            created: namespace_object
                .map(|one| one.created.clone())
                .unwrap_or_default(),
            body: Body::from(&json!({
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {
                    "name": name,
                    "namespace": namespace,
                    "labels": {"istio.io/config": "true"},
                },
                "data": {key: content},
            })),
        }
    }

    pub fn refuse_write(self) -> ApiError {
        let holds = match self {
            TrustMap::Roots => "holds the roots of the mesh",
            TrustMap::Revoked => "holds what the mesh's authority has revoked",
        };
        let reason = format!(
            "the ConfigMap {} {holds} and is not to be written; give the control plane other files \
             of its authority (--ca-dir, or the Secret cacerts)",
            self.name()
        );
        ApiError::new(StatusCode::FORBIDDEN, "Forbidden", reason)
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
    let of = |namespace: &String| ALL.map(|map| map.object(store, trust, namespace));
    namespaces.iter().flat_map(of).collect()
}
