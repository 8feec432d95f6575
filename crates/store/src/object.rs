//! One stored object: what its author declared, and what the store knows about it.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value, json};

use crate::key::ObjectKey;

/// Where an object comes from. Only the same source may change it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Source {
    /// Written through the REST API.
    Api,
    /// Read from a file of a watched directory; `file` is relative to `directory`, and empty for a
    /// revision that takes several files together.
    Directory { directory: String, file: String },
}

impl Source {
    /// Whether a write by `self` may touch an object of `owner`. Files of one directory are one
    /// owner, so that an object may move between them.
    pub(crate) fn may_write(&self, owner: &Source) -> bool {
        match (self, owner) {
            (Source::Api, Source::Api) => true,
            (Source::Directory { directory: a, .. }, Source::Directory { directory: b, .. }) => {
                a == b
            }
            _ => false,
        }
    }

    pub(crate) fn with_file(&self, file: Option<String>) -> Source {
        match (self, file) {
            (Source::Directory { directory, .. }, Some(file)) => Source::Directory {
                directory: directory.clone(),
                file,
            },
            (source, _) => source.clone(),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Api => f.write_str("the API"),
            Source::Directory { directory, file } if file.is_empty() => {
                write!(f, "the directory {directory}")
            }
            Source::Directory { directory, file } => write!(f, "the file {directory}/{file}"),
        }
    }
}

/// An object as it stands in the store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stored {
    pub key: ObjectKey,
    pub source: Source,
    pub uid: String,
    /// The revision that wrote the object last.
    pub resource_version: u64,
    /// Counts changes of anything but the metadata, as in Kubernetes.
    pub generation: u64,
    /// RFC 3339, whole seconds; empty where nobody knows.
    pub created: String,
    /// What the author declared: `apiVersion`, `kind`, `metadata` without the fields that the store
    /// owns, and the rest. `status` is taken from an author for a WorkloadEntry and a Pod only.
    pub body: Body,
}

/// A declaration: a JSON object, kept as text. As a tree of values it would take several times the
/// memory, and it is read far less often than it is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Body(Box<str>);

impl Body {
    pub fn value(&self) -> Value {
        // Made from a value, so that it is one.
        serde_json::from_str(&self.0).unwrap_or_default()
    }
}

impl From<&Value> for Body {
    fn from(value: &Value) -> Self {
        Self(value.to_string().into())
    }
}

impl Serialize for Body {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.value().serialize(to)
    }
}

impl<'de> Deserialize<'de> for Body {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Value::deserialize(from).map(|value| Self::from(&value))
    }
}

/// Metadata that the store (or a Kubernetes API server) writes; an author's value has no effect.
const OWNED_METADATA: [&str; 7] = [
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "managedFields",
    "selfLink",
];

impl Stored {
    /// The whole object as the API serves it: the declaration with the store's metadata added.
    pub fn document(&self) -> Value {
        let mut document = self.body.value();
        if let Some(metadata) = metadata_mut(&mut document) {
            metadata.insert("uid".into(), json!(self.uid));
            metadata.insert(
                "resourceVersion".into(),
                json!(self.resource_version.to_string()),
            );
            metadata.insert("generation".into(), json!(self.generation));
            if !self.created.is_empty() {
                metadata.insert("creationTimestamp".into(), json!(self.created));
            }
        }
        document
    }

    /// The value of one label.
    pub fn label(&self, name: &str) -> Option<String> {
        let body = self.body.value();
        let label = body.get("metadata")?.get("labels")?.get(name)?;
        label.as_str().map(str::to_owned)
    }
}

/// Reduces a document to what its author declares.
pub(crate) fn declared(mut document: Value) -> Value {
    // Whoever runs a workload says in its entry whether it is healthy, as Istio's agent does for a
    // workload on a virtual machine. The status of a pod is where it is, and its cluster's word; so
    // is when it is to end.
    let kind = document.get("kind").and_then(Value::as_str);
    let is_pod = kind == Some("Pod");
    let reports_status = is_pod || kind == Some("WorkloadEntry");
    if let Some(object) = document.as_object_mut()
        && !reports_status
    {
        object.shift_remove("status");
    }
    if let Some(metadata) = metadata_mut(&mut document) {
        for field in OWNED_METADATA {
            if !(is_pod && field == "deletionTimestamp") {
                metadata.shift_remove(field);
            }
        }
    }
    document
}

/// Whether two declarations say the same. The version an object is written in is no difference:
/// all served versions of a kind share one schema.
pub(crate) fn same_declaration(a: &Value, b: &Value) -> bool {
    same_except(a, b, &["apiVersion"])
}

/// Whether two declarations differ in metadata and status at most.
pub(crate) fn same_spec(a: &Value, b: &Value) -> bool {
    same_except(a, b, &["apiVersion", "metadata", "status"])
}

fn same_except(a: &Value, b: &Value, ignored: &[&str]) -> bool {
    let (Some(a), Some(b)) = (a.as_object(), b.as_object()) else {
        return a == b;
    };
    let keys = |map: &Map<String, Value>| {
        map.keys()
            .filter(|key| !ignored.contains(&key.as_str()))
            .count()
    };
    keys(a) == keys(b)
        && a.iter()
            .filter(|(key, _)| !ignored.contains(&key.as_str()))
            .all(|(key, value)| b.get(key) == Some(value))
}

fn metadata_mut(document: &mut Value) -> Option<&mut Map<String, Value>> {
    document
        .as_object_mut()?
        .get_mut("metadata")?
        .as_object_mut()
}
