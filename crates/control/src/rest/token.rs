//! `POST .../serviceaccounts/NAME/token`: Kubernetes' TokenRequest, which `kubectl create token`
//! sends. The token proves the service account to whom it is made for (`istio-ca`).
//!
//! Service accounts are not kept here: any name that could be one gets its token. So this answers
//! on loopback only, where who can ask can also read and write all configuration.

use std::time::{Duration, SystemTime};

use axum::body;
use axum::extract::Request;
use axum::http::{Method, StatusCode};
use axum::response::Response;
use lateen_identity::token::Subject;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::status::ApiError;
use super::{Api, answer};

/// Bytes of a request.
const MAX_BODY: usize = 64 << 10;
/// Kubernetes' bounds: an hour when nothing is said, ten minutes at least.
const DEFAULT_SECONDS: u64 = 3_600;
const MIN_SECONDS: u64 = 600;
/// Kubernetes takes up to 2^32; this is what its API server grants by default in the end
/// (`--service-account-max-token-expiration` is a year in most clusters).
const MAX_SECONDS: u64 = 365 * 24 * 3_600;
const MAX_AUDIENCES: usize = 16;
const MAX_AUDIENCE: usize = 256;

/// The service account of a path; `None` when the path is another one.
pub(super) fn target(path: &str) -> Option<(String, String)> {
    let rest = path.strip_prefix("/api/v1/namespaces/")?;
    let (namespace, rest) = rest.split_once("/serviceaccounts/")?;
    let name = rest.strip_suffix("/token")?;
    let is_plain = |text: &str| !text.is_empty() && !text.contains('/');
    (is_plain(namespace) && is_plain(name)).then(|| (namespace.to_owned(), name.to_owned()))
}

pub(super) async fn serve(
    api: &Api,
    (namespace, name): (String, String),
    request: Request,
) -> Result<Response, ApiError> {
    if request.method() != Method::POST {
        return Err(ApiError::method_not_allowed());
    }
    if !api.issues_tokens {
        let reason = "tokens are only issued by a control plane whose API listens on loopback (--bind 127.0.0.1); in a cluster they come from Kubernetes (--token-issuer)";
        return Err(ApiError::new(StatusCode::FORBIDDEN, "Forbidden", reason));
    }
    let (parts, content) = request.into_parts();
    let content = body::to_bytes(content, MAX_BODY).await;
    let content =
        content.map_err(|error| ApiError::bad_request(format!("the body is refused: {error}")))?;
    let asked = match content.strip_prefix(PROTOBUF) {
        Some(message) => from_protobuf(message)?,
        None if content.is_empty() => json!({}),
        None => serde_json::from_slice(&content)
            .map_err(|error| ApiError::bad_request(format!("the body is no JSON: {error}")))?,
    };
    let spec = Spec::read(&asked, api.trust.tokens().name())?;
    let subject = Subject {
        namespace,
        service_account: name,
    };
    // The same rules as for whoever reads the token.
    let identity = subject.identity(api.trust.domain());
    let identity = identity.map_err(|error| invalid("metadata.name", &error.to_string()))?;
    let lifetime = Duration::from_secs(spec.seconds);
    let token = api
        .trust
        .tokens()
        .issue(&subject, &spec.audiences, lifetime, SystemTime::now())
        .map_err(|error| {
            ApiError::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "InternalError",
                error.to_string(),
            )
        })?;
    tracing::info!(%identity, audiences = ?spec.audiences, "issued a token");
    let expires = OffsetDateTime::from(token.expires).format(&Rfc3339);
    let document = json!({
        "kind": "TokenRequest",
        "apiVersion": "authentication.k8s.io/v1",
        "metadata": {"name": subject.service_account, "namespace": subject.namespace},
        "spec": {
            "audiences": spec.audiences,
            "expirationSeconds": spec.seconds,
            "boundObjectRef": null,
        },
        "status": {
            "token": token.token,
            "expirationTimestamp": expires.unwrap_or_default(),
        },
    });
    Ok(answer::with_code(
        StatusCode::CREATED,
        &document,
        &parts.headers,
    ))
}

/// What Kubernetes puts before a message in protobuf. kubectl sends this request so.
const PROTOBUF: &[u8] = b"k8s\0";

/// `k8s.io.apimachinery.pkg.runtime.Unknown`.
#[derive(prost::Message)]
struct Envelope {
    #[prost(message, optional, tag = "1")]
    type_meta: Option<TypeMeta>,
    #[prost(bytes = "vec", tag = "2")]
    raw: Vec<u8>,
}

#[derive(prost::Message)]
struct TypeMeta {
    #[prost(string, tag = "2")]
    kind: String,
}

/// `k8s.io.api.authentication.v1.TokenRequest`.
#[derive(prost::Message)]
struct TokenRequest {
    #[prost(message, optional, tag = "2")]
    spec: Option<TokenRequestSpec>,
}

#[derive(prost::Message)]
struct TokenRequestSpec {
    #[prost(string, repeated, tag = "1")]
    audiences: Vec<String>,
    /// What is in it does not matter: it is refused.
    #[prost(bytes = "vec", optional, tag = "3")]
    bound_object_ref: Option<Vec<u8>>,
    #[prost(int64, optional, tag = "4")]
    expiration_seconds: Option<i64>,
}

/// The same request as JSON has it.
fn from_protobuf(message: &[u8]) -> Result<Value, ApiError> {
    use prost::Message as _;
    let wrong = |error: prost::DecodeError| {
        ApiError::bad_request(format!("the body is no TokenRequest: {error}"))
    };
    let envelope = Envelope::decode(message).map_err(wrong)?;
    let request = TokenRequest::decode(envelope.raw.as_slice()).map_err(wrong)?;
    let spec = request.spec.unwrap_or_default();
    Ok(json!({
        "kind": envelope.type_meta.unwrap_or_default().kind,
        "spec": {
            "audiences": spec.audiences,
            "expirationSeconds": spec.expiration_seconds,
            "boundObjectRef": spec.bound_object_ref.map(|_| json!({})),
        },
    }))
}

/// What is asked for.
struct Spec {
    audiences: Vec<String>,
    seconds: u64,
}

impl Spec {
    fn read(asked: &Value, own: &str) -> Result<Self, ApiError> {
        let kind = asked
            .get("kind")
            .and_then(Value::as_str)
            .unwrap_or("TokenRequest");
        if kind != "TokenRequest" {
            return Err(ApiError::bad_request(format!(
                "the body is a {kind}, not a TokenRequest"
            )));
        }
        let spec = asked.get("spec").filter(|spec| !spec.is_null());
        let field = |name: &str| spec?.get(name).filter(|value| !value.is_null());
        // A token that was to end with a pod and does not is worse than none.
        if field("boundObjectRef").is_some() {
            return Err(invalid(
                "spec.boundObjectRef",
                "tokens cannot be bound to objects here",
            ));
        }
        let audiences = match field("audiences") {
            None => Vec::new(),
            Some(given) => given
                .as_array()
                .and_then(|given| {
                    let texts = given.iter().map(|one| one.as_str().map(str::to_owned));
                    texts.collect::<Option<Vec<String>>>()
                })
                .ok_or_else(|| invalid("spec.audiences", "must be a list of texts"))?,
        };
        let fits = |one: &String| !one.is_empty() && one.len() <= MAX_AUDIENCE;
        if audiences.len() > MAX_AUDIENCES || !audiences.iter().all(fits) {
            let reason = format!("up to {MAX_AUDIENCES} of 1 to {MAX_AUDIENCE} characters each");
            return Err(invalid("spec.audiences", &reason));
        }
        let audiences = match audiences.is_empty() {
            true => vec![own.to_owned()],
            false => audiences,
        };
        let seconds = match field("expirationSeconds") {
            None => DEFAULT_SECONDS,
            Some(given) => given
                .as_u64()
                .filter(|seconds| *seconds >= MIN_SECONDS)
                .ok_or_else(|| {
                    invalid(
                        "spec.expirationSeconds",
                        "may not specify a duration less than 10 minutes",
                    )
                })?,
        };
        Ok(Self {
            audiences,
            seconds: seconds.min(MAX_SECONDS),
        })
    }
}

fn invalid(field: &str, reason: &str) -> ApiError {
    ApiError::new(
        StatusCode::UNPROCESSABLE_ENTITY,
        "Invalid",
        format!("TokenRequest.authentication.k8s.io is invalid: {field}: {reason}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_path_of_a_service_account_is_one() {
        let of = |path| target(path);
        let found = Some(("a".to_owned(), "b".to_owned()));
        assert_eq!(of("/api/v1/namespaces/a/serviceaccounts/b/token"), found);
        for path in [
            "/api/v1/namespaces/a/serviceaccounts/b",
            "/api/v1/namespaces/a/serviceaccounts//token",
            "/api/v1/namespaces//serviceaccounts/b/token",
            "/api/v1/namespaces/a/serviceaccounts/b/c/token",
            "/api/v1/namespaces/a/b/serviceaccounts/c/token",
            "/apis/v1/namespaces/a/serviceaccounts/b/token",
            "/api/v1/namespaces/a/serviceaccounts/b/token/",
        ] {
            assert_eq!(of(path), None, "{path}");
        }
    }
}
