//! Errors as Kubernetes' `Status`: code, reason, message, causes.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use lateen_api::{Diagnostic, Kind};
use lateen_store::{ObjectKey, StoreError};
use serde_json::{Value, json};

/// A refused request. Clients decide by `code` and `reason`, people read `message`.
#[derive(Clone, Debug)]
pub(crate) struct ApiError {
    code: StatusCode,
    reason: &'static str,
    message: String,
    /// Group, kind (or resource) and name of the object in question.
    about: Option<(String, String, String)>,
    causes: Vec<Value>,
}

impl ApiError {
    pub fn new(code: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason,
            message: message.into(),
            about: None,
            causes: Vec::new(),
        }
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    pub fn path_not_found() -> Self {
        let message = "the server could not find the requested resource";
        Self::new(StatusCode::NOT_FOUND, "NotFound", message)
    }

    pub fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message)
    }

    pub fn gone(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GONE, "Expired", message)
    }

    /// A document with errors of content: every one of them is a cause.
    pub fn invalid(kind: Option<Kind>, name: &str, errors: &[Diagnostic]) -> Self {
        let texts: Vec<String> = errors.iter().map(text).collect();
        let list = match texts.as_slice() {
            [one] => one.clone(),
            more => format!("[{}]", more.join(", ")),
        };
        let (message, about) = match kind {
            None => (list, None),
            Some(kind) => {
                let info = kind.info();
                let dotted = match info.group {
                    "" => info.name.to_owned(),
                    group => format!("{}.{group}", info.name),
                };
                let about = (info.group.to_owned(), info.name.to_owned(), name.to_owned());
                (format!("{dotted} {name:?} is invalid: {list}"), Some(about))
            }
        };
        let causes = errors
            .iter()
            .map(|error| {
                let mut cause =
                    json!({"reason": "FieldValueInvalid", "message": without_path(error)});
                if !error.path.is_empty() {
                    cause["field"] = json!(error.path);
                }
                if error.line > 0 {
                    cause["line"] = json!(error.line);
                    cause["column"] = json!(error.column);
                }
                cause
            })
            .collect();
        let (code, reason) = (StatusCode::UNPROCESSABLE_ENTITY, "Invalid");
        Self {
            code,
            reason,
            message,
            about,
            causes,
        }
    }

    pub fn from_store(error: StoreError) -> Self {
        let about = error
            .key()
            .map(|key| (key.group.clone(), resource(key), key.name.clone()));
        let named = about
            .as_ref()
            .map_or(String::new(), |(group, resource, name)| {
                let dot = if group.is_empty() { "" } else { "." };
                format!("{resource}{dot}{group} {name:?}")
            });
        let (code, reason, message) = match &error {
            StoreError::NotFound { .. } => (
                StatusCode::NOT_FOUND,
                "NotFound",
                format!("{named} not found"),
            ),
            StoreError::AlreadyExists { .. } => (
                StatusCode::CONFLICT,
                "AlreadyExists",
                format!("{named} already exists"),
            ),
            StoreError::Conflict { .. } | StoreError::UidConflict { .. } => {
                let message = format!(
                    "Operation cannot be fulfilled on {named}: the object has been modified; \
                     please apply your changes to the latest version and try again ({error})"
                );
                (StatusCode::CONFLICT, "Conflict", message)
            }
            StoreError::ForeignSource { .. } | StoreError::TooMany { .. } => {
                let colon = if named.is_empty() {
                    ""
                } else {
                    " is forbidden: "
                };
                (
                    StatusCode::FORBIDDEN,
                    "Forbidden",
                    format!("{named}{colon}{error}"),
                )
            }
            StoreError::TooLarge { .. } => {
                let code = StatusCode::PAYLOAD_TOO_LARGE;
                (code, "RequestEntityTooLarge", error.to_string())
            }
            StoreError::Compacted(_) => (StatusCode::GONE, "Expired", error.to_string()),
            StoreError::Locked { .. }
            | StoreError::Corrupt { .. }
            | StoreError::Format { .. }
            | StoreError::DiskFull { .. }
            | StoreError::Io { .. }
            | StoreError::Directory { .. } => (
                StatusCode::INTERNAL_SERVER_ERROR,
                "InternalError",
                error.to_string(),
            ),
        };
        Self {
            code,
            reason,
            message,
            about,
            causes: Vec::new(),
        }
    }

    pub fn to_json(&self) -> Value {
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code.as_u16(),
        });
        let mut details = serde_json::Map::new();
        if let Some((group, kind, name)) = &self.about {
            details.insert("name".into(), json!(name));
            details.insert("group".into(), json!(group));
            details.insert("kind".into(), json!(kind));
        }
        if !self.causes.is_empty() {
            details.insert("causes".into(), json!(self.causes));
        }
        if !details.is_empty() {
            status["details"] = Value::Object(details);
        }
        status
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.code, Json(self.to_json())).into_response()
    }
}

/// A finding without its line: `spec.http[0].route: message; suggestion`.
pub(crate) fn text(diagnostic: &Diagnostic) -> String {
    match &*diagnostic.path {
        "" => without_path(diagnostic),
        path => format!("{path}: {}", without_path(diagnostic)),
    }
}

fn without_path(diagnostic: &Diagnostic) -> String {
    let code = diagnostic
        .code
        .map(|code| format!("[{code}] "))
        .unwrap_or_default();
    let suggestion = diagnostic
        .suggestion
        .as_ref()
        .map(|s| format!("; {s}"))
        .unwrap_or_default();
    format!("{code}{}{suggestion}", diagnostic.message)
}

fn resource(key: &ObjectKey) -> String {
    let known = Kind::ALL.iter().map(|kind| kind.info());
    let mut known = known.filter(|info| info.name == key.kind && info.group == key.group);
    known
        .next()
        .map_or_else(|| key.kind.to_lowercase(), |info| info.plural.to_owned())
}
