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

/// Like [`merge`], but lists of objects that are merged by key in Kubernetes are merged here too.
/// kubectl sends this form for kinds it knows itself (Service, Namespace, Pod).
pub(crate) fn strategic(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() || patch.get("$patch") == Some(&Value::from("replace")) {
        *target = Value::Object(Map::new());
    }
    let Some(target) = target.as_object_mut() else {
        return;
    };
    for (key, value) in patch {
        if let Some(list) = key.strip_prefix("$deleteFromPrimitiveList/") {
            delete_from(target.get_mut(list), value);
        }
        // Directives about order; a list here keeps the order it has.
        if key.starts_with('$') {
            continue;
        }
        match value {
            Value::Null => {
                target.shift_remove(key);
            }
            Value::Array(items) => {
                let list = target
                    .entry(key.clone())
                    .or_insert_with(|| Value::Array(Vec::new()));
                merge_list(key, list, items);
            }
            value => strategic(target.entry(key.clone()).or_insert(Value::Null), value),
        }
    }
}

/// What tells the elements of a list apart (`patchMergeKey` of Kubernetes' types); lists of other
/// names are replaced whole.
fn merge_key(list: &str, item: &Value) -> Option<&'static str> {
    Some(match list {
        "ports" if item.get("containerPort").is_some() => "containerPort",
        "ports" => "port",
        "containers"
        | "initContainers"
        | "ephemeralContainers"
        | "volumes"
        | "env"
        | "imagePullSecrets"
        | "resourceClaims" => "name",
        "volumeMounts" => "mountPath",
        "volumeDevices" => "devicePath",
        "conditions" => "type",
        "hostAliases" | "podIPs" | "hostIPs" => "ip",
        "topologySpreadConstraints" => "topologyKey",
        "ownerReferences" => "uid",
        _ => return None,
    })
}

fn merge_list(name: &str, list: &mut Value, items: &[Value]) {
    let replaces = items.iter().any(|item| item["$patch"] == "replace");
    let key = items.first().and_then(|item| merge_key(name, item));
    let (Value::Array(list), Some(key), false) = (&mut *list, key, replaces) else {
        let items = items.iter().filter(|item| item["$patch"] != "replace");
        // Finalizers are a set.
        match (name, list) {
            ("finalizers", Value::Array(list)) => {
                for item in items {
                    if !list.contains(item) {
                        list.push(item.clone());
                    }
                }
            }
            (_, list) => *list = items.cloned().collect(),
        }
        return;
    };
    for item in items {
        let found = list.iter().position(|one| one[key] == item[key]);
        let deleted = item["$patch"] == "delete";
        match found {
            Some(at) if deleted => {
                list.remove(at);
            }
            Some(at) => strategic(&mut list[at], item),
            None if deleted => {}
            None => {
                // Without directives inside.
                let mut new = Value::Null;
                strategic(&mut new, item);
                list.push(new);
            }
        }
    }
}

fn delete_from(list: Option<&mut Value>, items: &Value) {
    if let (Some(Value::Array(list)), Value::Array(items)) = (list, items) {
        list.retain(|one| !items.contains(one));
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

    #[test]
    fn strategic_patches_merge_containers_by_name() {
        let mut pod = json!({"metadata": {"finalizers": ["a"]}, "spec": {
            "tolerations": [{"key": "x"}],
            "containers": [
                {"name": "app", "image": "app:1", "env": [{"name": "A", "value": "1"}],
                 "ports": [{"containerPort": 80}, {"containerPort": 81}]},
                {"name": "istio-proxy", "image": "proxy:1"},
            ],
        }});
        let patch = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"]}, "spec": {
            "tolerations": [{"key": "y"}],
            "$setElementOrder/containers": [{"name": "app"}, {"name": "new"}],
            "containers": [
                {"name": "app", "image": "app:2",
                 "env": [{"name": "A", "value": "2"}, {"name": "B", "value": "3"}],
                 "ports": [{"containerPort": 81, "$patch": "delete"}]},
                {"name": "istio-proxy", "$patch": "delete"},
                {"name": "new", "image": "new:1"},
            ],
        }});
        strategic(&mut pod, &patch);
        assert_eq!(
            pod,
            json!({"metadata": {"finalizers": []}, "spec": {
                "tolerations": [{"key": "y"}],
                "containers": [
                    {"name": "app", "image": "app:2",
                     "env": [{"name": "A", "value": "2"}, {"name": "B", "value": "3"}],
                     "ports": [{"containerPort": 80}]},
                    {"name": "new", "image": "new:1"},
                ],
            }})
        );
        let replaced = json!({"spec": {"containers": [{"$patch": "replace"}, {"name": "only"}]}});
        strategic(&mut pod, &replaced);
        assert_eq!(pod["spec"]["containers"], json!([{"name": "only"}]));
    }
}
