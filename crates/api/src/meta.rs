//! Kubernetes' object metadata.

use std::collections::BTreeMap;

use serde_json::Value as Json;
use time::OffsetDateTime;

use crate::schema::message;

message! {
    /// The part of every object that is not its content. What only a Kubernetes API server fills in
    /// is kept, so that `kubectl get -o yaml` output can be applied again.
    pub struct ObjectMeta {
        effective name: String,
        /// Empty until the store fills in the default namespace.
        effective namespace: String,
        effective labels: BTreeMap<String, String>,
        effective annotations: BTreeMap<String, String>,
        effective uid: String,
        effective resource_version "resourceVersion": String,
        effective generation: Option<i64>,
        /// Decides between objects that claim the same host: the oldest wins.
        effective creation_timestamp "creationTimestamp": Option<OffsetDateTime>,
        /// Counts for nothing beside a name, as in Kubernetes; without one an object is refused.
        effective generate_name "generateName": String,
        effective deletion_timestamp "deletionTimestamp": Option<OffsetDateTime>,
        effective deletion_grace_period_seconds "deletionGracePeriodSeconds": Option<i64>,
        effective finalizers: Vec<String>,
        effective owner_references "ownerReferences": Vec<Json>,
        effective managed_fields "managedFields": Vec<Json>,
        effective self_link "selfLink": String,
    }
}
