//! What the HTTP/2 client and the HTTP/2 upstream both say of a stream.

use h2::RecvStream;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Value, json};

/// Data, trailers, and whether the end came.
pub async fn collect(body: &mut RecvStream) -> (Vec<u8>, Vec<(String, String)>, Value) {
    let mut data = Vec::new();
    while let Some(chunk) = body.data().await {
        match chunk {
            Ok(chunk) => {
                let _ = body.flow_control().release_capacity(chunk.len());
                data.extend(chunk);
            }
            Err(error) => return (data, Vec::new(), said(&error)),
        }
    }
    match body.trailers().await {
        Ok(trailers) => {
            let trailers = trailers.map(|map| pairs(&map)).unwrap_or_default();
            (data, trailers, Value::Bool(true))
        }
        Err(error) => (data, Vec::new(), said(&error)),
    }
}

/// How a stream or a connection ended.
pub fn said(error: &h2::Error) -> Value {
    let what = match (error.is_reset(), error.is_go_away()) {
        (true, _) => "stream reset",
        (_, true) => "goaway",
        _ => "connection lost",
    };
    let reason = error.reason().map(|reason| reason.to_string());
    json!({what: reason.unwrap_or_default()})
}

pub fn pairs(map: &HeaderMap) -> Vec<(String, String)> {
    let pair = |(name, value): (&HeaderName, &HeaderValue)| {
        (name.to_string(), crate::wire::text(value.as_bytes()))
    };
    map.iter().map(pair).collect()
}

pub fn map_of(fields: &[(String, String)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in fields {
        let name = HeaderName::from_bytes(name.to_ascii_lowercase().as_bytes());
        let value = HeaderValue::from_bytes(&crate::wire::bytes(value));
        if let (Ok(name), Ok(value)) = (name, value) {
            map.append(name, value);
        }
    }
    map
}
