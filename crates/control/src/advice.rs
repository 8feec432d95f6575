//! What is worth saying about an object when it is written: how it fits the other objects.
//!
//! Istio says these things in `istioctl analyze`, with the codes used here. They are warnings: an
//! object may be written before the ones it names.

use lateen_api::{Diagnostic, Object};
use lateen_model::MeshSnapshot;

/// Warnings about `object` in a mesh that is otherwise as in `snapshot`.
pub(crate) fn warnings(snapshot: &MeshSnapshot, object: &Object) -> Vec<Diagnostic> {
    let _ = (snapshot, object);
    Vec::new()
}
