//! The part of an object's `status` that is computed when it is read: it is never stored, so it
//! can neither be stale nor make revisions.

use lateen_model::MeshSnapshot;
use lateen_store::Stored;
use serde_json::{Value, json};

/// `status.addresses` of a ServiceEntry: the addresses the mesh gave to its hosts, in the form of
/// Istio's `ServiceEntryStatus`.
pub(crate) fn add_addresses(document: &mut Value, object: &Stored, mesh: &MeshSnapshot) {
    let hosts = document["spec"]["hosts"].as_array().cloned();
    let hosts = hosts.unwrap_or_default();
    let hosts = hosts.iter().filter_map(Value::as_str);
    let found = mesh.auto_addresses(&object.key.namespace, &object.key.name, hosts);
    if !found.is_empty() {
        let addresses = found.into_iter();
        let addresses: Vec<Value> = addresses
            .map(|(host, address)| json!({"value": address, "host": host}))
            .collect();
        document["status"]["addresses"] = json!(addresses);
    } else if let Some(status) = document["status"].as_object_mut() {
        status.shift_remove("addresses");
    }
}
