//! Label and field selectors of list requests.

use std::collections::BTreeMap;

use lateen_store::Stored;

/// A conjunction of requirements; empty selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Selector {
    labels: Vec<(String, Requirement)>,
    fields: BTreeMap<String, (bool, String)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Requirement {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    NotExists,
}

impl Selector {
    /// `labels` as in `kubectl -l`: `a=b,c!=d,e in (x,y),f notin (z),g,!h`; `fields`:
    /// `metadata.name=x,metadata.namespace!=y`.
    pub fn parse(labels: &str, fields: &str) -> Result<Self, String> {
        let mut selector = Self::default();
        for part in split_outside_parentheses(labels) {
            selector.labels.push(requirement(part)?);
        }
        for part in fields
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
        {
            let (name, wanted, value) = equality(part)
                .ok_or_else(|| format!("the field selector {part:?} is not NAME=VALUE"))?;
            if !["metadata.name", "metadata.namespace"].contains(&name) {
                return Err(format!(
                    "the field selector {name:?} is not supported; metadata.name and \
                     metadata.namespace are"
                ));
            }
            selector
                .fields
                .insert(name.to_owned(), (wanted, value.to_owned()));
        }
        Ok(selector)
    }

    pub fn selects(&self, object: &Stored) -> bool {
        let labels = self.labels.iter().all(|(name, requirement)| {
            let value = object.label(name);
            match requirement {
                Requirement::Exists => value.is_some(),
                Requirement::NotExists => value.is_none(),
                Requirement::In(values) => value.is_some_and(|v| values.contains(&v)),
                Requirement::NotIn(values) => !value.is_some_and(|v| values.contains(&v)),
            }
        });
        labels
            && self.fields.iter().all(|(name, (wanted, value))| {
                let found = match &**name {
                    "metadata.name" => &object.key.name,
                    _ => &object.key.namespace,
                };
                (found == value) == *wanted
            })
    }
}

fn requirement(part: &str) -> Result<(String, Requirement), String> {
    let wrong = || format!("the label selector {part:?} is not understood");
    if let Some((name, set)) = part.split_once('(') {
        let values = set.strip_suffix(')').ok_or_else(wrong)?;
        let values: Vec<String> = values.split(',').map(|v| v.trim().to_owned()).collect();
        let mut words = name.split_whitespace();
        return match (words.next(), words.next(), words.next()) {
            (Some(name), Some("in"), None) => Ok((name.to_owned(), Requirement::In(values))),
            (Some(name), Some("notin"), None) => Ok((name.to_owned(), Requirement::NotIn(values))),
            _ => Err(wrong()),
        };
    }
    if let Some((name, wanted, value)) = equality(part) {
        let values = vec![value.to_owned()];
        let requirement = if wanted {
            Requirement::In(values)
        } else {
            Requirement::NotIn(values)
        };
        return Ok((name.to_owned(), requirement));
    }
    let (name, requirement) = match part.strip_prefix('!') {
        Some(name) => (name.trim(), Requirement::NotExists),
        None => (part, Requirement::Exists),
    };
    if name.is_empty() || name.contains(char::is_whitespace) {
        return Err(wrong());
    }
    Ok((name.to_owned(), requirement))
}

/// `a=b`, `a==b` or `a!=b`: name, whether it must be equal, value.
fn equality(part: &str) -> Option<(&str, bool, &str)> {
    let (name, wanted, value) = match part.split_once("!=") {
        Some((name, value)) => (name, false, value),
        None => {
            let (name, value) = part.split_once('=')?;
            (name, true, value.strip_prefix('=').unwrap_or(value))
        }
    };
    let (name, value) = (name.trim(), value.trim());
    (!name.is_empty()).then_some((name, wanted, value))
}

fn split_outside_parentheses(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut depth, mut start) = (0_i32, 0);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
        .into_iter()
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use lateen_store::{Body, ObjectKey, Source};
    use serde_json::json;

    use super::*;

    fn object() -> Stored {
        Stored {
            key: ObjectKey::new("", "Service", "default", "reviews"),
            source: Source::Api,
            uid: String::new(),
            resource_version: 1,
            generation: 1,
            created: String::new(),
            body: Body::from(&json!({"metadata": {"labels": {"app": "reviews", "tier": "web"}}})),
        }
    }

    #[test]
    fn selectors_select() {
        let check = |labels: &str, fields: &str, expect: bool| {
            let selector = Selector::parse(labels, fields).unwrap();
            assert_eq!(selector.selects(&object()), expect, "{labels} {fields}");
        };
        check("", "", true);
        check("app=reviews", "", true);
        check("app==reviews,tier!=db", "", true);
        check("app=ratings", "", false);
        check("app!=reviews", "", false);
        check("other!=x", "", true);
        check("app in (ratings, reviews),tier", "", true);
        check("app notin (ratings,reviews)", "", false);
        check("!app", "", false);
        check("!other", "", true);
        check("", "metadata.name=reviews", true);
        check(
            "",
            "metadata.name=reviews,metadata.namespace!=default",
            false,
        );
    }

    #[test]
    fn nonsense_is_refused() {
        for (labels, fields) in [
            ("a b", ""),
            ("a in (b", ""),
            ("a of (b)", ""),
            ("!", ""),
            ("", "spec.x=y"),
            ("", "x"),
        ] {
            assert!(
                Selector::parse(labels, fields).is_err(),
                "{labels} {fields}"
            );
        }
    }
}
