//! Patches: JSON merge patch (RFC 7386), and the part of Kubernetes' strategic merge patch that
//! kubectl needs for Services.

use serde_json::{Map, Value};

/// RFC 7386: null removes, objects merge, everything else replaces.
pub(crate) fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Some(target) = target.as_object_mut() else {
        return;
    };
    for (key, value) in patch {
        if value.is_null() {
            target.shift_remove(key);
        } else {
            merge(target.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

/// Like [`merge`], but lists of objects that are merged by key in Kubernetes are merged here too:
/// `ports` by `port`. kubectl sends this form for kinds it knows itself (Service, Namespace).
pub(crate) fn strategic(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Some(target) = target.as_object_mut() else {
        return;
    };
    for (key, value) in patch {
        // Directives about order; a list here keeps the order it has.
        if key.starts_with('$') {
            continue;
        }
        match value {
            Value::Null => {
                target.shift_remove(key);
            }
            Value::Array(items) if key == "ports" => {
                let list = target
                    .entry(key.clone())
                    .or_insert_with(|| Value::Array(Vec::new()));
                merge_ports(list, items);
            }
            value => strategic(target.entry(key.clone()).or_insert(Value::Null), value),
        }
    }
}

fn merge_ports(list: &mut Value, items: &[Value]) {
    let Value::Array(list) = list else {
        *list = Value::Array(items.to_vec());
        return;
    };
    for item in items {
        let found = list.iter().position(|port| port["port"] == item["port"]);
        let deleted = item["$patch"] == "delete";
        match found {
            Some(at) if deleted => {
                list.remove(at);
            }
            Some(at) => strategic(&mut list[at], item),
            None if deleted => {}
            None => list.push(item.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn merge_patches_follow_rfc_7386() {
        let check = |target: Value, patch: Value, expect: Value| {
            let mut got = target.clone();
            merge(&mut got, &patch);
            assert_eq!(got, expect, "{target} + {patch}");
        };
        // The examples of the RFC's appendix A.
        check(json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"}));
        check(
            json!({"a": "b"}),
            json!({"b": "c"}),
            json!({"a": "b", "b": "c"}),
        );
        check(json!({"a": "b"}), json!({"a": null}), json!({}));
        check(json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"}));
        check(json!({"a": "c"}), json!({"a": ["b"]}), json!({"a": ["b"]}));
        check(
            json!({"a": {"b": "c"}}),
            json!({"a": {"b": "d", "c": null}}),
            json!({"a": {"b": "d"}}),
        );
        check(json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"]));
        check(json!({"a": "foo"}), json!(null), json!(null));
        check(
            json!({"e": null}),
            json!({"a": 1}),
            json!({"e": null, "a": 1}),
        );
        check(
            json!([1, 2]),
            json!({"a": "b", "c": null}),
            json!({"a": "b"}),
        );
        check(
            json!({}),
            json!({"a": {"bb": {"ccc": null}}}),
            json!({"a": {"bb": {}}}),
        );
    }

    #[test]
    fn strategic_patches_merge_ports_by_number() {
        let mut service = json!({"spec": {"ports": [{"port": 80, "name": "http"}, {"port": 81}]}});
        let patch = json!({"spec": {
            "$setElementOrder/ports": [{"port": 80}, {"port": 82}],
            "ports": [{"port": 80, "name": "web"}, {"port": 81, "$patch": "delete"}, {"port": 82}],
        }});
        strategic(&mut service, &patch);
        assert_eq!(
            service,
            json!({"spec": {"ports": [{"port": 80, "name": "web"}, {"port": 82}]}})
        );
    }
}
