//! Two values beside each other: where they differ.

use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::Value;

/// One place where the planes differ.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// `answers.0.headers.server`
    pub field: String,
    /// What Envoy did; null when it is not there.
    pub envoy: Value,
    pub lateen: Value,
}

/// Every place where two outcomes differ, in order.
pub fn differences(envoy: &Value, lateen: &Value) -> Vec<Difference> {
    let mut found = Vec::new();
    walk("", envoy, lateen, &mut found);
    found
}

fn walk(path: &str, envoy: &Value, lateen: &Value, found: &mut Vec<Difference>) {
    let below = |name: &str| match path.is_empty() {
        true => name.to_owned(),
        false => format!("{path}.{name}"),
    };
    match (envoy, lateen) {
        (Value::Object(theirs), Value::Object(ours)) => {
            let names: BTreeSet<&String> = theirs.keys().chain(ours.keys()).collect();
            for name in names {
                let theirs = theirs.get(name).unwrap_or(&Value::Null);
                let ours = ours.get(name).unwrap_or(&Value::Null);
                walk(&below(name), theirs, ours, found);
            }
        }
        (Value::Array(theirs), Value::Array(ours)) if theirs.len() == ours.len() => {
            for (index, (theirs, ours)) in theirs.iter().zip(ours).enumerate() {
                walk(&below(&index.to_string()), theirs, ours, found);
            }
        }
        _ if envoy == lateen => {}
        _ => found.push(Difference {
            field: path.to_owned(),
            envoy: envoy.clone(),
            lateen: lateen.clone(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_place_that_differs_is_named() {
        let envoy = json!({"a": [1, {"b": 2}], "c": 3, "same": []});
        let lateen = json!({"a": [1, {"b": 4}], "d": 5, "same": []});
        let fields: Vec<_> = differences(&envoy, &lateen)
            .into_iter()
            .map(|difference| difference.field)
            .collect();
        assert_eq!(fields, ["a.1.b", "c", "d"]);
    }

    #[test]
    fn lists_of_different_length_differ_as_a_whole() {
        let found = differences(&json!({"a": [1]}), &json!({"a": [1, 2]}));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].field, "a");
    }
}
