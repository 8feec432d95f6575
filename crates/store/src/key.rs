//! The identity of an object: group, kind, namespace, name.
//!
//! The version is not part of it: `networking.istio.io/v1` and `/v1alpha3` name the same object, as
//! in Kubernetes.

use std::fmt;

use lateen_api::Object;
use serde::{Deserialize, Serialize};

/// Where a namespaced object goes whose author names no namespace.
pub const DEFAULT_NAMESPACE: &str = "default";

/// Identifies one object. `namespace` is empty for cluster-scoped kinds, `group` for the core group.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ObjectKey {
    pub group: String,
    pub kind: String,
    pub namespace: String,
    pub name: String,
}

impl ObjectKey {
    pub fn new(
        group: impl Into<String>,
        kind: impl Into<String>,
        namespace: impl Into<String>,
        name: impl Into<String>,
    ) -> Self {
        Self {
            group: group.into(),
            kind: kind.into(),
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    /// The key of an object; fills in the default namespace, and removes one from an object of a
    /// cluster-scoped kind.
    pub fn adopt(object: &mut Object) -> Self {
        let info = object.kind.info();
        match (info.namespaced, object.meta.namespace.is_empty()) {
            (true, true) => object.meta.namespace = DEFAULT_NAMESPACE.to_owned(),
            (false, false) => object.meta.namespace.clear(),
            _ => {}
        }
        Self::new(
            info.group,
            info.name,
            object.meta.namespace.clone(),
            object.meta.name.clone(),
        )
    }

    /// The database key. NUL separates the parts: it cannot occur in a valid name, so two different
    /// keys never encode to the same string.
    pub(crate) fn encode(&self) -> String {
        [&*self.group, &*self.kind, &*self.namespace, &*self.name].join("\0")
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind, self.name)
        } else {
            write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}
