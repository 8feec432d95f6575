//! Responses: JSON or YAML as the client likes it, with Kubernetes' warning headers.

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use lateen_api::Diagnostic;
use serde_json::Value;

use super::status;

/// Warnings beyond this are left out; the last header says so.
const MAX_WARNINGS: usize = 32;
/// Bytes of one warning text.
const MAX_WARNING: usize = 512;

pub(crate) fn ok(document: &Value, accept: &HeaderMap) -> Response {
    with_code(StatusCode::OK, document, accept)
}

pub(crate) fn with_code(code: StatusCode, document: &Value, accept: &HeaderMap) -> Response {
    let accept = accept
        .get(header::ACCEPT)
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default();
    let (media_type, text) = if accept.starts_with("application/yaml") {
        ("application/yaml", lateen_api::to_yaml(document))
    } else {
        ("application/json", document.to_string())
    };
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = code;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}

/// Adds one `Warning: 299 - "..."` header per warning (RFC 7234, section 5.5, as Kubernetes uses it).
pub(crate) fn add_warnings(response: &mut Response, warnings: &[Diagnostic]) {
    let mut texts: Vec<String> = warnings
        .iter()
        .take(MAX_WARNINGS)
        .map(status::text)
        .collect();
    if warnings.len() > MAX_WARNINGS {
        texts.push(format!("{} more warnings", warnings.len() - MAX_WARNINGS));
    }
    for text in texts {
        if let Ok(value) = HeaderValue::from_bytes(warning(&text).as_bytes()) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
}

fn warning(text: &str) -> String {
    let mut quoted = String::from("299 - \"");
    for c in text.chars() {
        if quoted.len() > MAX_WARNING {
            quoted.push_str("...");
            break;
        }
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => quoted.push(' '),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    #[test]
    fn warnings_are_one_quoted_string() {
        let check = |text: &str, expect: &str| assert_eq!(super::warning(text), expect);
        check("plain", r#"299 - "plain""#);
        check("a \"b\" \\ c\nd", r#"299 - "a \"b\" \\ c d""#);
        assert!(super::warning(&"x".repeat(10_000)).len() < 600);
    }
}
