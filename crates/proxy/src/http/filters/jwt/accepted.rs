//! What an accepted token changes: headers, and what later filters and routes know of the request.

use crate::http::headers::{HeaderBlock, is_value};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lateen_proxy_config::jwt::{JwtProvider, Token};
use serde_json::{Map, Value};

/// Sets the headers that the provider wants. Whether a claim's header is among them.
pub(super) fn set_headers(
    headers: &mut HeaderBlock,
    provider: &JwtProvider,
    token: &Token<'_>,
    payload: &Value,
) -> bool {
    if let Some(header) = &provider.payload_header {
        let mut text = token.encoded_payload.to_vec();
        while header.padded && !text.len().is_multiple_of(4) {
            text.push(b'=');
        }
        headers.push_name(header.name.as_bytes(), &text);
    }
    let mut any = false;
    for header in &provider.claim_headers {
        let mut path = header.path.iter();
        let value = path.try_fold(payload, |value, key| value.get(&**key));
        let text = value.map(claim_text).unwrap_or_default();
        // A claim may hold any characters; a header may not.
        if !text.is_empty() && is_value(text.as_bytes()) {
            headers.push_name(header.name.as_bytes(), text.as_bytes());
            any = true;
        }
    }
    any
}

/// A claim as a header has it: lists and objects as base64 of their JSON (Envoy,
/// `addJWTClaimToHeader`).
fn claim_text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Bool(value) => value.to_string(),
        Value::Number(number) => match number.as_u64() {
            Some(whole) => whole.to_string(),
            None => number_text(number.as_f64().unwrap_or_default()),
        },
        Value::Array(_) | Value::Object(_) => STANDARD.encode(value.to_string()),
    }
}

fn number_text(number: f64) -> String {
    if number >= 0.0 && number < u64::MAX as f64 && number.fract() == 0.0 {
        return (number as u64).to_string();
    }
    format!("{number:.6}")
}

/// The payload as routes and authorization read it: some texts are lists of words.
pub(super) fn normalized(mut payload: Value, provider: &JwtProvider) -> Value {
    if let Value::Object(claims) = &mut payload {
        split_words(claims, &provider.lists);
    }
    payload
}

fn split_words(claims: &mut Map<String, Value>, lists: &[Box<str>]) {
    for name in lists {
        let Some(claim) = claims.get_mut(&**name) else {
            continue;
        };
        if let Value::String(text) = claim {
            let words = text.split(' ').filter(|word| !word.is_empty());
            *claim = words.map(Value::from).collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn claims_as_headers_have_them() {
        for (value, expect) in [
            (json!("text"), "text"),
            (json!(true), "true"),
            (json!(42), "42"),
            (json!(1.5), "1.500000"),
            (json!(-3), "-3.000000"),
            (json!(1e3), "1000"),
            (json!(null), ""),
            (json!(["a", "b"]), "WyJhIiwiYiJd"),
            (json!({"a": 1}), "eyJhIjoxfQ=="),
        ] {
            assert_eq!(claim_text(&value), expect, "{value}");
        }
    }

    #[test]
    fn texts_that_are_lists_are_split_at_spaces() {
        let mut claims = json!({"scope": "read  write", "roles": ["a b"], "sub": "x y"});
        let lists = ["scope".into(), "roles".into(), "missing".into()];
        split_words(claims.as_object_mut().unwrap(), &lists);
        let expect = json!({"scope": ["read", "write"], "roles": ["a b"], "sub": "x y"});
        assert_eq!(claims, expect);
    }
}
