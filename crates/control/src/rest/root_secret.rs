//! The Secret `istio-ca-secret` of the root namespace, where people and tools look for the root that
//! the control plane made itself. It is made when it is asked for and holds certificates only: the key
//! stays in its file, which nobody but its owner can read, while this API answers every program of the
//! machine (docs/decisions/0005-the-roots-key-stays-in-its-file.md).
//!
//! Whoever writes a Secret of this name brings an authority of their own, as with `cacerts`; then it
//! stands in the store, and nothing is made.

use axum::http::StatusCode;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lateen_api::Kind;
use lateen_identity::Origin;
use lateen_store::{Body, ObjectKey, Store, Stored};
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::path::Target;
use super::status::ApiError;
use crate::trust::{OWN_SECRET, Trust};

/// The Secret, if it is what the target names and nobody wrote one.
pub(super) fn of_object(store: &Store, trust: &Trust, target: &Target) -> Option<Stored> {
    let Target::Object {
        kind: Kind::Secret,
        namespace,
        name,
        ..
    } = target
    else {
        return None;
    };
    (name == OWN_SECRET && *namespace == trust.root_namespace())
        .then(|| object(store, trust))
        .flatten()
}

/// The Secret, if a list of this target has it.
pub(super) fn of_list(store: &Store, trust: &Trust, target: &Target) -> Option<Stored> {
    let Target::Collection {
        kind: Kind::Secret,
        namespace,
        ..
    } = target
    else {
        return None;
    };
    let namespace = namespace.as_deref();
    namespace
        .is_none_or(|namespace| namespace == trust.root_namespace())
        .then(|| object(store, trust))
        .flatten()
}

/// Whether an object was made here and stands in no store.
pub(super) fn is_made(object: &Stored) -> bool {
    object.key.kind == "Secret" && object.resource_version == 0
}

pub(super) fn refuse_delete() -> ApiError {
    let reason = format!(
        "the Secret {OWN_SECRET} shows the root that this control plane made and cannot be deleted; to \
         sign with another authority, apply a Secret cacerts"
    );
    ApiError::new(StatusCode::FORBIDDEN, "Forbidden", reason)
}

fn object(store: &Store, trust: &Trust) -> Option<Stored> {
    let key = ObjectKey::new("", "Secret", trust.root_namespace(), OWN_SECRET);
    if trust.ca().origin() != Origin::SelfSigned || store.get(&key).is_some() {
        return None;
    }
    let authority = trust.authority();
    let made = authority.own_root_made().map(OffsetDateTime::from);
    let made = made.and_then(|at| at.replace_nanosecond(0).ok()?.format(&Rfc3339).ok());
    let data = json!({
        "ca-cert.pem": STANDARD.encode(authority.own_root_pem()),
        "cert-chain.pem": "",
        "root-cert.pem": STANDARD.encode(authority.roots_pem()),
    });
    let note = "the key of this root is in the file ca/self-signed.pem of the control plane's data \
                directory and is not shown";
    let body = Body::from(&json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "istio.io/ca-root",
        "metadata": {
            "name": OWN_SECRET,
            "namespace": &key.namespace,
            "annotations": {"lateen.dev/key": note},
        },
        "data": data,
    }));
    Some(Stored {
        key,
        source: lateen_store::Source::Api,
        uid: String::new(),
        resource_version: 0,
        generation: 0,
        created: made.unwrap_or_default(),
        body,
    })
}
