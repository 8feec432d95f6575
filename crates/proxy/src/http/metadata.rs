//! Dynamic metadata: what filters have found out about a request, by namespace, for filters after
//! them, routes, headers and access logs (`%DYNAMIC_METADATA(namespace:key)%`).
//!
//! Invariant: a request on which no filter sets anything carries one word.

use lateen_proxy_config::Metadata;
use serde_json::Value;

/// Namespace to values.
#[derive(Debug, Default)]
pub(crate) struct DynamicMetadata(Option<Box<Metadata>>);

impl DynamicMetadata {
    /// All of it; [`None`]: there is nothing.
    pub(crate) fn all(&self) -> Option<&Metadata> {
        self.0.as_deref()
    }

    /// A value below a namespace; an empty path stands for the namespace itself.
    pub(crate) fn get<K: AsRef<str>>(&self, namespace: &str, path: &[K]) -> Option<&Value> {
        let values = self.all()?.get(namespace)?;
        path.iter()
            .try_fold(values, |value, key| value.get(key.as_ref()))
    }

    /// Sets one value in a namespace, in place of the one under the same key.
    pub(crate) fn set(&mut self, namespace: &str, key: &str, value: Value) {
        self.merge(namespace, [(key.to_owned(), value)]);
    }

    /// Sets values in a namespace; other keys there stay, as with Envoy's
    /// `StreamInfo::setDynamicMetadata`.
    pub(crate) fn merge(
        &mut self,
        namespace: &str,
        values: impl IntoIterator<Item = (String, Value)>,
    ) {
        let all = self.0.get_or_insert_default();
        match all.get_mut(namespace) {
            Some(Value::Object(there)) => there.extend(values),
            _ => {
                let values = values.into_iter().collect();
                all.insert(namespace.to_owned(), Value::Object(values));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_are_found_by_namespace_and_path_and_merged_by_key() {
        let mut metadata = DynamicMetadata::default();
        assert!(metadata.all().is_none());
        metadata.set("jwt", "claims", json!({"sub": "a", "deep": {"x": 1}}));
        metadata.set("jwt", "other", json!("b"));
        let more = json!({"other": "c", "third": true});
        metadata.merge("jwt", more.as_object().cloned().unwrap());
        for (namespace, path, expect) in [
            ("jwt", &["claims", "sub"][..], Some(json!("a"))),
            ("jwt", &["claims", "deep", "x"], Some(json!(1))),
            ("jwt", &["claims", "sub", "y"], None),
            ("jwt", &["other"], Some(json!("c"))),
            ("jwt", &["third"], Some(json!(true))),
            ("rbac", &["third"], None),
        ] {
            assert_eq!(metadata.get(namespace, path), expect.as_ref(), "{path:?}");
        }
        assert!(metadata.get::<&str>("jwt", &[]).is_some());
    }
}
