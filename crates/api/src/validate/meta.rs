//! Names, labels and annotations of any object.

use super::{Checker, names};
use crate::kind::Kind;
use crate::object::Object;

/// Kubernetes' bound on all annotations of an object together.
const MAX_ANNOTATION_BYTES: usize = 256 << 10;

pub fn validate(object: &Object, check: &mut Checker) {
    let meta = &object.meta;
    match meta.name.as_str() {
        "" => check.missing("name", "metadata.name is required"),
        name => check.field("name", |check| {
            check.syntax(match object.kind {
                Kind::Namespace => names::label(name),
                Kind::Service => service_name(name),
                kind if kind.is_role() => super::role::role_name(name),
                _ => names::subdomain(name),
            });
        }),
    }
    if !meta.namespace.is_empty() {
        check.field("namespace", |check| match object.kind.info().namespaced {
            true => check.syntax(names::label(&meta.namespace)),
            false => check.warning(format!(
                "a {} belongs to no namespace; this is ignored",
                object.kind
            )),
        });
    }
    check.map("labels", &meta.labels, |check, key, value| {
        check.syntax(names::label_key(key));
        check.syntax(names::label_value(value));
    });
    check.map("annotations", &meta.annotations, |check, key, _| {
        check.syntax(names::label_key(key));
    });
    let size: usize = meta
        .annotations
        .iter()
        .map(|(key, value)| key.len() + value.len())
        .sum();
    if size > MAX_ANNOTATION_BYTES {
        check.field("annotations", |check| {
            check.error(format!(
                "{size} bytes of annotations, at most {MAX_ANNOTATION_BYTES} are allowed"
            ));
        });
    }
}

/// RFC 1035 label, which begins with a letter.
fn service_name(name: &str) -> names::Check {
    names::label(name)?;
    match name.starts_with(|c: char| c.is_ascii_lowercase()) {
        true => Ok(()),
        false => Err(format!(
            "{name:?} is not a valid name for a Service: it must begin with a letter"
        )),
    }
}
