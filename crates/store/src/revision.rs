//! The revision log's entries: who changed what, when, and what was there before.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::key::ObjectKey;
use crate::object::{Source, Stored};

/// Who asked for a change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Author {
    /// The program, e.g. `lateen/0.1.0` or `kubectl/v1.33`.
    pub agent: String,
    /// The person, when the program says.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub user: String,
}

/// What a write says about itself.
#[derive(Clone, Debug)]
pub struct Change {
    pub author: Author,
    /// Groups the revisions of one `apply`; empty for a lone write.
    pub id: String,
    pub source: Source,
}

/// One entry of the log. Numbers rise by one; an object's `resourceVersion` is the number of the
/// revision that wrote it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Revision {
    pub number: u64,
    /// RFC 3339, milliseconds.
    pub time: String,
    pub author: Author,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub change: String,
    pub source: Source,
    pub changes: Vec<ObjectChange>,
}

/// One object's change within a revision: created (`before` is none), deleted (`after` is none) or
/// changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ObjectChange {
    pub key: ObjectKey,
    #[serde(default, with = "shared", skip_serializing_if = "Option::is_none")]
    pub before: Option<Arc<Stored>>,
    #[serde(default, with = "shared", skip_serializing_if = "Option::is_none")]
    pub after: Option<Arc<Stored>>,
}

/// Serde for `Option<Arc<Stored>>` (serde's own needs the `rc` feature).
mod shared {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::object::Stored;

    pub fn serialize<S: Serializer>(
        value: &Option<Arc<Stored>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        value.as_deref().serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Arc<Stored>>, D::Error> {
        Ok(Option::<Stored>::deserialize(deserializer)?.map(Arc::new))
    }
}
