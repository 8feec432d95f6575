//! Kubernetes' `Secret`: the certificates and keys that gateways serve with.
//!
//! Invariant: a value of a Secret is shown to nobody but who asks for the object itself. It prints
//! as `[redacted]`, no finding repeats it, and [`redact`] takes it out of documents that are shown.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value as Json};

use crate::decode::Decoder;
use crate::field::Field;
use crate::node::{Node, Value};
use crate::schema::{Schema, message};

/// Names that the two forms of a certificate, its key, its authority and its revocation list have.
pub const CERTIFICATE_KEYS: [&str; 2] = ["tls.crt", "cert"];
pub const PRIVATE_KEY_KEYS: [&str; 2] = ["tls.key", "key"];
pub const AUTHORITY_KEYS: [&str; 2] = ["ca.crt", "cacert"];
pub const REVOCATION_KEYS: [&str; 2] = ["ca.crl", "crl"];

/// A Secret of this name holds the authority for the clients of the one without the ending.
pub const AUTHORITY_SUFFIX: &str = "-cacert";

/// The type that must hold a certificate and its key.
pub const TLS_TYPE: &str = "kubernetes.io/tls";

message! {
    /// The content of a Secret; it stands beside `metadata`.
    pub struct Secret {
        effective secret_type "type": String,
        /// Base64.
        effective data: BTreeMap<String, Confidential>,
        /// As it is; joins `data` when the Secret is written, as in Kubernetes.
        effective string_data "stringData": BTreeMap<String, Confidential>,
        effective immutable: Option<bool>,
    }
}

/// Text that is never printed.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Confidential(pub String);

impl fmt::Debug for Confidential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl Field for Confidential {
    fn schema() -> Schema {
        Schema::String
    }

    fn decode(node: &Node, decoder: &mut Decoder) -> Option<Self> {
        if let Value::String(text) = &node.value {
            return Some(Confidential(text.clone()));
        }
        decoder.error(
            node,
            "expected a string".to_owned(),
            Some("quote it".to_owned()),
        );
        None
    }

    fn encode(&self) -> Json {
        Json::String(self.0.clone())
    }
}

impl Secret {
    /// An entry by its name; `None` when there is none or it is not base64.
    pub fn entry(&self, name: &str) -> Option<Vec<u8>> {
        match self.string_data.get(name) {
            Some(text) => Some(text.0.clone().into_bytes()),
            None => decode_base64(&self.data.get(name)?.0),
        }
    }

    /// The first of `names` that is there and not empty, with its content.
    pub fn first_of(&self, names: [&'static str; 2]) -> Option<(&'static str, Vec<u8>)> {
        let found = names
            .into_iter()
            .filter_map(|name| Some((name, self.entry(name)?)));
        found.into_iter().find(|(_, content)| !content.is_empty())
    }

    /// What is kept: `stringData` has become part of `data`.
    pub(crate) fn joined(&self) -> Secret {
        let mut joined = self.clone();
        for (name, text) in std::mem::take(&mut joined.string_data) {
            let encoded = STANDARD.encode(text.0.as_bytes());
            joined.data.insert(name, Confidential(encoded));
        }
        joined
    }
}

/// Base64 with the line breaks that people's tools put in.
pub(crate) fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let text: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    STANDARD.decode(text).ok()
}

/// Takes the values out of a Secret's document; other documents stay as they are.
pub fn redact(document: &mut Json) {
    if document.get("kind").and_then(Json::as_str) != Some("Secret") {
        return;
    }
    for part in ["data", "stringData"] {
        let entries = document.get_mut(part).and_then(Json::as_object_mut);
        for value in entries.into_iter().flat_map(Map::values_mut) {
            *value = Json::from("[redacted]");
        }
    }
    // kubectl keeps the whole document in one of its annotations.
    let annotations = document.pointer_mut("/metadata/annotations");
    let values = annotations.and_then(Json::as_object_mut);
    for value in values.into_iter().flat_map(Map::values_mut) {
        if value
            .as_str()
            .is_some_and(|text| text.contains("data\"") || text.contains("Data\""))
        {
            *value = Json::from("[redacted]");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_printed_nowhere() {
        let secret = Secret {
            string_data: BTreeMap::from([("key".to_owned(), Confidential("hush".to_owned()))]),
            ..Secret::default()
        };
        assert!(!format!("{secret:?}").contains("hush"));
        let mut document = serde_json::json!({
            "kind": "Secret", "data": {"a": "aHVzaA=="}, "stringData": {"b": "hush"},
            "metadata": {"annotations": {
                "kubectl.kubernetes.io/last-applied-configuration": "{\"data\":{\"a\":\"aHVzaA==\"}}",
                "team": "web",
            }},
        });
        redact(&mut document);
        let text = document.to_string();
        assert!(!text.contains("hush") && !text.contains("aHVzaA"), "{text}");
        assert_eq!(document["metadata"]["annotations"]["team"], "web");
    }

    #[test]
    fn string_data_joins_data_and_wins() {
        let secret = Secret {
            data: BTreeMap::from([("a".to_owned(), Confidential("b2xk".to_owned()))]),
            string_data: BTreeMap::from([("a".to_owned(), Confidential("new".to_owned()))]),
            ..Secret::default()
        };
        assert_eq!(secret.entry("a").unwrap(), b"new");
        let joined = secret.joined();
        assert_eq!(joined.entry("a").unwrap(), b"new");
        assert!(joined.string_data.is_empty());
    }
}
