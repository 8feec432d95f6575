//! Stored documents as objects. What was stored once was valid then; a program that has become
//! stricter, or is older than the one that stored it, may not be able to read it any more.
//!
//! Such an object is never silently gone: the last one that could be read stays, a security object
//! or one without which something would be weaker, becomes one that closes ([`Object::closed_for`]), and what is wrong is said in the log, and by
//! `analyze` for as long as it lasts.

use std::sync::Arc;

use lateen_analysis::{Finding, Level, Subject};
use lateen_api::{Diagnostic, Kind, Mode, Object};
use lateen_store::Stored;
use serde_json::Value;

/// What a stored object is; `before` is what was known of the object until now.
pub(crate) fn object(stored: &Stored, before: Option<&Arc<Object>>) -> Option<Arc<Object>> {
    let document = stored.document();
    let errors = match Object::from_json_with(&document, Mode::AllowUnknown) {
        (Some(object), _) => return Some(Arc::new(object)),
        (None, errors) => errors,
    };
    let errors: Vec<_> = errors.iter().map(ToString::to_string).collect();
    let errors = errors.join("; ");
    let object = &stored.key;
    if let Some(before) = before.filter(|before| !before.closed) {
        tracing::error!(%object, errors, "a stored object cannot be read; the one before counts");
        return Some(before.clone());
    }
    let closed = Object::closed_for(&document);
    let effect = effect(closed.as_ref());
    tracing::error!(
        %object,
        errors,
        "a stored object cannot be read: {effect} until it is replaced or deleted"
    );
    closed.map(Arc::new)
}

/// What comes of an object in whose place this one stands.
fn effect(closed: Option<&Object>) -> &'static str {
    match closed.map(|object| object.kind) {
        None => "it is left out",
        Some(Kind::DestinationRule) => "nothing is sent to its host",
        Some(Kind::Sidecar) => "its workloads see no more than what of its egress can be read",
        Some(Kind::ConfigMap | Kind::IstioOperator) => {
            "no proxy is served, since nobody knows the settings of the mesh"
        }
        Some(_) => "what it may have been about is refused",
    }
}

/// What to say of a stored document that cannot be read, in place of its own kind and name.
pub(crate) fn unreadable(document: &Value, said: Vec<Diagnostic>) -> Vec<Finding> {
    let text = |pointer| document.pointer(pointer).and_then(Value::as_str);
    let Some(kind) = text("/kind") else {
        return Vec::new();
    };
    let mut kinds = Kind::ALL.iter().map(|kind| kind.info());
    let Some(info) = kinds.find(|info| info.name == kind) else {
        return Vec::new();
    };
    let namespace = text("/metadata/namespace").filter(|namespace| !namespace.is_empty());
    let default = if info.namespaced { "default" } else { "" };
    let subject = Subject {
        kind: info.name,
        namespace: namespace.unwrap_or(default).to_owned(),
        name: text("/metadata/name").unwrap_or_default().to_owned(),
    };
    let effect = effect(Object::closed_for(document).as_ref());
    let errors = said.into_iter().filter(Diagnostic::is_error);
    errors
        .map(|error| {
            let remedy = error.suggestion.unwrap_or_else(|| {
                "replace the object, or delete it if it is not meant to count".to_owned()
            });
            Finding {
                code: "IST0106",
                level: Level::Error,
                subject: subject.clone(),
                message: format!(
                    "Schema validation error: the stored object cannot be read, and {effect}: {}; \
                     {remedy}",
                    error.message
                ),
                path: error.path,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use lateen_api::Spec;
    use lateen_store::{Body, ObjectKey, Source};
    use serde_json::json;

    fn stored(spec: Value) -> Stored {
        Stored {
            key: ObjectKey {
                group: "security.istio.io".into(),
                kind: "AuthorizationPolicy".into(),
                namespace: "default".into(),
                name: "one".into(),
            },
            source: Source::Api,
            uid: "1".into(),
            resource_version: 1,
            generation: 1,
            created: "2026-01-01T00:00:00Z".into(),
            body: Body::from(&json!({
                "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
                "metadata": {"name": "one", "namespace": "default"}, "spec": spec,
            })),
        }
    }

    #[test]
    fn the_last_good_object_counts_for_one_that_cannot_be_read() {
        let good = object(&stored(json!({"rules": [{}]})), None).unwrap();
        assert!(!good.closed);
        let broken = stored(json!({"rules": [{}], "later": 1}));
        assert_eq!(object(&broken, Some(&good)), Some(good));
    }

    #[test]
    fn without_one_it_denies() {
        let broken = stored(json!({"rules": [{}], "later": 1}));
        let closed = object(&broken, None).unwrap();
        let Spec::AuthorizationPolicy(policy) = &closed.spec else {
            panic!("{closed:?}");
        };
        assert!(closed.closed);
        assert_eq!(policy.rules.as_ref().map(Vec::len), Some(1));
        // And one that stood for it is no good one.
        let fixed = object(&stored(json!({"rules": []})), Some(&closed)).unwrap();
        assert!(!fixed.closed);
        assert!(object(&broken, Some(&closed)).unwrap().closed);
    }
}
