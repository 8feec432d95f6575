//! Request bodies: JSON or YAML in, one object that fits its URL out.

use axum::http::{HeaderMap, StatusCode, header};
use lateen_api::{Diagnostic, Mode, Object};
use lateen_store::ObjectKey;
use serde_json::Value;

use super::path::Target;
use super::status::ApiError;

/// A body that was read: the object (in the namespace of the URL) and what is worth saying about it.
#[derive(Debug)]
pub(crate) struct Document {
    pub key: ObjectKey,
    pub object: Object,
    /// The `resourceVersion` it was written against.
    pub expected: Option<String>,
    pub warnings: Vec<Diagnostic>,
}

/// Reads a whole object in the body of a POST, PUT or apply.
pub(crate) fn read(
    body: &[u8],
    headers: &HeaderMap,
    mode: Mode,
    target: &Target,
) -> Result<Document, ApiError> {
    let content_type = headers
        .get(header::CONTENT_TYPE)
        .and_then(|v| v.to_str().ok());
    // kubectl's `create namespace` and the like; `create -f` and `apply` send JSON.
    if content_type.is_some_and(|t| t.contains("protobuf") || t.contains("cbor")) {
        return Err(ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "UnsupportedMediaType",
            format!(
                "the body is {}; send JSON or YAML (`kubectl apply -f FILE` does)",
                content_type.unwrap_or_default()
            ),
        ));
    }
    let text = std::str::from_utf8(body)
        .map_err(|error| ApiError::bad_request(format!("the body is not UTF-8: {error}")))?;
    if content_type.is_some_and(|t| t.contains("json")) {
        let json: Value = serde_json::from_str(text)
            .map_err(|error| ApiError::bad_request(format!("the body is not JSON: {error}")))?;
        return from_json(&json, mode, target);
    }
    let mut parsed = lateen_api::parse("", text, mode);
    let count = parsed.objects.len();
    match (parsed.has_errors(), parsed.objects.pop()) {
        (false, Some(only)) if count == 1 => place(only.object, parsed.diagnostics, target),
        (false, _) => Err(ApiError::bad_request(format!(
            "the body holds {count} objects; send one object per request"
        ))),
        (true, _) => Err(invalid(target, name_in(text), parsed.diagnostics)),
    }
}

/// Reads an object that is JSON already, such as one that a patch was merged into.
pub(crate) fn from_json(json: &Value, mode: Mode, target: &Target) -> Result<Document, ApiError> {
    match Object::from_json_with(json, mode) {
        (Some(object), diagnostics) => place(object, diagnostics, target),
        (None, diagnostics) => {
            let name = json
                .pointer("/metadata/name")
                .and_then(Value::as_str)
                .unwrap_or_default();
            Err(invalid(target, name, diagnostics))
        }
    }
}

fn invalid(target: &Target, name: &str, diagnostics: Vec<Diagnostic>) -> ApiError {
    let errors: Vec<_> = diagnostics
        .into_iter()
        .filter(Diagnostic::is_error)
        .collect();
    let name = match target {
        Target::Object { name, .. } => name,
        Target::Collection { .. } => name,
    };
    ApiError::invalid(Some(target.kind()), name, &errors)
}

/// The name in a document that is wrong elsewhere, for the message.
fn name_in(text: &str) -> &str {
    let mut lines = text
        .lines()
        .skip_while(|line| !line.starts_with("metadata:"));
    let name = lines.find_map(|line| line.trim_start().strip_prefix("name:"));
    name.unwrap_or_default().trim().trim_matches(['"', '\''])
}

/// Puts the object where the URL says, or refuses it if it says something else itself.
fn place(
    mut object: Object,
    warnings: Vec<Diagnostic>,
    target: &Target,
) -> Result<Document, ApiError> {
    if object.kind != target.kind() {
        return Err(ApiError::bad_request(format!(
            "the body is a {}, the URL is of {}",
            object.kind,
            target.kind().info().plural
        )));
    }
    let (namespace, name) = match target {
        Target::Collection { namespace, .. } => (namespace.as_deref(), None),
        Target::Object {
            namespace, name, ..
        } => (Some(namespace.as_str()), Some(name)),
    };
    if let Some(namespace) = namespace.filter(|_| object.kind.info().namespaced) {
        if object.meta.namespace.is_empty() {
            object.meta.namespace = namespace.to_owned();
        }
        if object.meta.namespace != namespace {
            return Err(ApiError::bad_request(format!(
                "the namespace of the provided object does not match the namespace sent on the \
                 request: {:?} and {namespace:?}",
                object.meta.namespace
            )));
        }
    }
    if let Some(name) = name
        && object.meta.name != *name
    {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({}) does not match the name on the URL ({name})",
            object.meta.name
        )));
    }
    let key = ObjectKey::adopt(&mut object);
    let expected = Some(object.meta.resource_version.clone()).filter(|v| !v.is_empty());
    Ok(Document {
        key,
        object,
        expected,
        warnings,
    })
}
