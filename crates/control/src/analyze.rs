//! What is wrong in a set of documents, as if they were the whole mesh: for `analyze`, with what is
//! stored, without it, or with changes laid over it.

use std::collections::BTreeMap;
use std::sync::Arc;

use lateen_analysis::{Finding, Level, Subject};
use lateen_api::{Diagnostic, Mode, Object};
use lateen_model::{MeshSettings, MeshSnapshot};
use serde_json::Value;

use crate::stored;

/// What is wrong between the objects of `stored` with those of `proposed` in their place, and what
/// each stored one has to say about itself. (Whoever proposes has parsed the documents, and knows
/// their lines.)
///
/// An object of `proposed` replaces the stored one of the same kind, namespace and name.
pub fn findings(stored: &[Value], proposed: &[Value]) -> Vec<Finding> {
    let mut objects = BTreeMap::new();
    let mut about_themselves = BTreeMap::new();
    let mut unreadable = Vec::new();
    for (document, is_stored) in stored
        .iter()
        .map(|document| (document, true))
        .chain(proposed.iter().map(|document| (document, false)))
    {
        // What is proposed was parsed strictly before.
        let (object, said) = match Object::from_json_with(document, Mode::AllowUnknown) {
            (Some(object), said) => (object, said),
            (None, said) if is_stored => {
                unreadable.extend(stored::unreadable(document, said));
                match Object::closed_for(document) {
                    Some(object) => (object, Vec::new()),
                    None => continue,
                }
            }
            (None, _) => continue,
        };
        let subject = subject(&object);
        unreadable.retain(|finding: &Finding| is_stored || finding.subject != subject);
        match is_stored {
            true => drop(about_themselves.insert(subject.clone(), said)),
            false => drop(about_themselves.remove(&subject)),
        }
        objects.insert(subject, object);
    }
    let settings = Arc::new(MeshSettings::default());
    let snapshot = MeshSnapshot::build(objects.values(), 0, settings, None);
    let mut found = lateen_analysis::findings(&snapshot);
    for (subject, said) in about_themselves {
        found.extend(said.into_iter().map(|said| finding(&subject, said)));
    }
    found.extend(unreadable);
    found.sort_by(|a, b| (&a.subject, &a.path).cmp(&(&b.subject, &b.path)));
    found
}

fn subject(object: &Object) -> Subject {
    let info = object.kind.info();
    let namespace = match object.meta.namespace.as_str() {
        "" if info.namespaced => "default",
        namespace => namespace,
    };
    Subject {
        kind: info.name,
        namespace: namespace.to_owned(),
        name: object.meta.name.clone(),
    }
}

/// What one object says about itself, as a finding: with Istio's code where it has one, else as a
/// schema warning or error.
fn finding(subject: &Subject, said: Diagnostic) -> Finding {
    let (code, level, kind) = match (said.code, said.is_error()) {
        (Some("IST0131"), _) => ("IST0131", Level::Info, ""),
        (Some(code), _) => (code, Level::Warning, ""),
        (None, true) => ("IST0106", Level::Error, "Schema validation error: "),
        (None, false) => ("IST0133", Level::Warning, "Schema validation warning: "),
    };
    let remedy = said.suggestion.map(|remedy| format!("; {remedy}"));
    Finding {
        code,
        level,
        subject: subject.clone(),
        message: format!("{kind}{}{}", said.message, remedy.unwrap_or_default()),
        path: said.path,
    }
}
