//! What a set of writes would do to the objects, decided without touching anything.
//!
//! A dry run is a plan that is not committed, so both give the same answers and errors.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use crate::error::StoreError;
use crate::key::ObjectKey;
use crate::object::{Body, Source, Stored, declared, same_declaration, same_spec};
use crate::revision::ObjectChange;
use crate::store::Limits;

/// An object to be written.
#[derive(Clone, Debug)]
pub struct Draft {
    pub key: ObjectKey,
    /// The whole document; metadata that the store owns is ignored.
    pub body: Value,
    /// The `resourceVersion` the author read, if they gave one.
    pub expected: Option<String>,
    /// The file it comes from, within the directory that the change comes from.
    pub file: Option<String>,
}

/// One write of a transaction.
#[derive(Clone, Debug)]
pub enum Write {
    /// Fails if the object exists.
    Create(Draft),
    /// Fails if the object does not exist.
    Replace(Draft),
    /// Creates or replaces.
    Apply(Draft),
    Delete {
        key: ObjectKey,
        expected: Option<String>,
        uid: Option<String>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Created,
    Configured,
    Unchanged,
    Deleted,
}

/// What became of one write: the object as it stands afterwards (as it was, when deleted).
#[derive(Clone, Debug)]
pub struct Outcome {
    pub verdict: Verdict,
    pub object: Arc<Stored>,
}

/// The facts a plan stamps on what it writes.
pub(crate) struct Stamp<'a> {
    pub revision: u64,
    pub now: &'a str,
    pub source: &'a Source,
}

pub(crate) struct Plan {
    pub changes: Vec<ObjectChange>,
    pub outcomes: Vec<Outcome>,
}

/// Decides all writes against `objects`; later writes see earlier ones. All or nothing.
pub(crate) fn plan(
    objects: &BTreeMap<ObjectKey, Arc<Stored>>,
    limits: &Limits,
    stamp: &Stamp<'_>,
    writes: Vec<Write>,
) -> Result<Plan, StoreError> {
    let mut overlay: BTreeMap<ObjectKey, Option<Arc<Stored>>> = BTreeMap::new();
    let mut order: Vec<ObjectKey> = Vec::new();
    let mut outcomes = Vec::with_capacity(writes.len());
    for write in writes {
        let key = write.key().clone();
        let current = match overlay.get(&key) {
            Some(over) => over.clone(),
            None => objects.get(&key).cloned(),
        };
        let outcome = decide(write, current.as_ref(), limits, stamp)?;
        if outcome.verdict != Verdict::Unchanged {
            let after = match outcome.verdict {
                Verdict::Deleted => None,
                _ => Some(outcome.object.clone()),
            };
            if overlay.insert(key.clone(), after).is_none() {
                order.push(key);
            }
        }
        outcomes.push(outcome);
    }
    check_count(objects, &overlay, limits)?;
    let changes = order
        .into_iter()
        .filter_map(|key| {
            let before = objects.get(&key).cloned();
            let after = overlay.remove(&key).flatten();
            (before.is_some() || after.is_some()).then_some(ObjectChange { key, before, after })
        })
        .collect();
    Ok(Plan { changes, outcomes })
}

fn decide(
    write: Write,
    current: Option<&Arc<Stored>>,
    limits: &Limits,
    stamp: &Stamp<'_>,
) -> Result<Outcome, StoreError> {
    if let Some(current) = current {
        check_owner(current, stamp.source)?;
    }
    match write {
        Write::Create(draft) => match current {
            Some(_) => Err(StoreError::AlreadyExists { key: draft.key }),
            None => create(draft, limits, stamp),
        },
        Write::Replace(draft) => match current {
            Some(current) => replace(draft, current, limits, stamp),
            None => Err(StoreError::NotFound { key: draft.key }),
        },
        Write::Apply(draft) => match current {
            Some(current) => replace(draft, current, limits, stamp),
            None => create(draft, limits, stamp),
        },
        Write::Delete { key, expected, uid } => {
            let Some(current) = current else {
                return Err(StoreError::NotFound { key });
            };
            check_expected(expected.as_deref(), current)?;
            match uid {
                Some(uid) if uid != current.uid => Err(StoreError::UidConflict {
                    key,
                    expected: uid,
                    current: current.uid.clone(),
                }),
                _ => Ok(Outcome {
                    verdict: Verdict::Deleted,
                    object: current.clone(),
                }),
            }
        }
    }
}

fn create(draft: Draft, limits: &Limits, stamp: &Stamp<'_>) -> Result<Outcome, StoreError> {
    let source = stamp.source.with_file(draft.file);
    let body = declared(draft.body);
    check_size(&draft.key, &body, limits)?;
    let object = Arc::new(Stored {
        key: draft.key,
        source,
        uid: uuid::Uuid::new_v4().to_string(),
        resource_version: stamp.revision,
        generation: 1,
        created: stamp.now.to_owned(),
        body: Body::from(&body),
    });
    Ok(Outcome {
        verdict: Verdict::Created,
        object,
    })
}

fn replace(
    draft: Draft,
    current: &Arc<Stored>,
    limits: &Limits,
    stamp: &Stamp<'_>,
) -> Result<Outcome, StoreError> {
    check_expected(draft.expected.as_deref(), current)?;
    let source = stamp.source.with_file(draft.file);
    let (body, old) = (declared(draft.body), current.body.value());
    if same_declaration(&body, &old) && source == current.source {
        return Ok(Outcome {
            verdict: Verdict::Unchanged,
            object: current.clone(),
        });
    }
    check_size(&draft.key, &body, limits)?;
    let spec_changed = !same_spec(&body, &old);
    let object = Arc::new(Stored {
        key: draft.key,
        source,
        uid: current.uid.clone(),
        resource_version: stamp.revision,
        generation: current.generation + u64::from(spec_changed),
        created: current.created.clone(),
        body: Body::from(&body),
    });
    Ok(Outcome {
        verdict: Verdict::Configured,
        object,
    })
}

fn check_owner(current: &Stored, by: &Source) -> Result<(), StoreError> {
    if by.may_write(&current.source) {
        return Ok(());
    }
    Err(StoreError::ForeignSource {
        key: current.key.clone(),
        owner: current.source.clone(),
        by: match by {
            Source::Api => "the API",
            Source::Directory { .. } => "a directory",
        },
    })
}

fn check_expected(expected: Option<&str>, current: &Stored) -> Result<(), StoreError> {
    match expected {
        Some(expected) if expected != current.resource_version.to_string() => {
            Err(StoreError::Conflict {
                key: current.key.clone(),
                expected: expected.to_owned(),
                current: current.resource_version,
            })
        }
        _ => Ok(()),
    }
}

fn check_size(key: &ObjectKey, body: &Value, limits: &Limits) -> Result<(), StoreError> {
    let size = body.to_string().len();
    if size > limits.object_bytes {
        let key = key.clone();
        return Err(StoreError::TooLarge {
            key,
            size,
            limit: limits.object_bytes,
        });
    }
    Ok(())
}

fn check_count(
    objects: &BTreeMap<ObjectKey, Arc<Stored>>,
    overlay: &BTreeMap<ObjectKey, Option<Arc<Stored>>>,
    limits: &Limits,
) -> Result<(), StoreError> {
    let added = overlay
        .iter()
        .filter(|(k, v)| v.is_some() && !objects.contains_key(*k))
        .count();
    let removed = overlay
        .iter()
        .filter(|(k, v)| v.is_none() && objects.contains_key(*k))
        .count();
    if added > removed && objects.len() + added - removed > limits.objects {
        return Err(StoreError::TooMany {
            limit: limits.objects,
        });
    }
    Ok(())
}

impl Write {
    pub fn key(&self) -> &ObjectKey {
        match self {
            Write::Create(draft) | Write::Replace(draft) | Write::Apply(draft) => &draft.key,
            Write::Delete { key, .. } => key,
        }
    }
}
