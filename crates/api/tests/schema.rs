//! Every declared field, by walking the declarations: it is read, written, spelt as Istio spells it,
//! and a wrong value in it is found at its place with what to do.

#![allow(
    clippy::unwrap_used,
    reason = "the helpers of tests may stop a test, too"
)]

use std::collections::BTreeSet;

use lateen_api::{Diagnostic, FieldInfo, Kind, Mode, Object, ObjectMeta, Schema, Support, parse};
use serde_json::{Value as Json, json};

/// Calls `visit` with the path (`[]` for any element, `{}` for any key) of every field below `schema`.
fn walk(path: &str, schema: Schema, visit: &mut impl FnMut(&str, &'static FieldInfo)) {
    match schema {
        Schema::Message(info) => {
            for field in info.fields {
                let path = format!("{path}.{}", field.name);
                visit(&path, field);
                walk(&path, (field.schema)(), visit);
            }
        }
        Schema::List(inner) => walk(&format!("{path}[]"), inner(), visit),
        Schema::Map(inner) => walk(&format!("{path}{{}}"), inner(), visit),
        _ => {}
    }
}

fn fields(kind: Kind) -> Vec<(String, &'static FieldInfo)> {
    let mut fields = Vec::new();
    let root = if kind.content_at_root() { "" } else { "spec" };
    walk(root, kind.schema(), &mut |path, field| {
        fields.push((path.to_owned(), field))
    });
    fields
}

/// A document that has only `value` at `path`.
fn document(kind: Kind, path: &str, value: Json) -> Json {
    let mut content = value;
    for part in path
        .split('.')
        .skip(1)
        .collect::<Vec<_>>()
        .into_iter()
        .rev()
    {
        let name = part.trim_end_matches(['[', ']', '{', '}']);
        for container in part.as_bytes()[name.len()..].chunks(2).rev() {
            content = if container == b"[]" {
                json!([content])
            } else {
                json!({ "key": content })
            };
        }
        content = json!({ name: content });
    }
    let mut document = json!({ "apiVersion": kind.api_version(), "kind": kind.to_string(), "metadata": {"name": "x"} });
    match (kind.content_at_root(), content) {
        (true, Json::Object(content)) => content
            .into_iter()
            .for_each(|(key, value)| document[key] = value),
        (_, content) => document["spec"] = content,
    }
    document
}

/// The path as a diagnostic prints it.
fn printed(path: &str) -> String {
    let path = path.replace("[]", "[0]").replace("{}", ".key");
    path.trim_start_matches('.').to_owned()
}

/// (a value of the wrong form, what the message says)
fn wrong(schema: Schema) -> Vec<(Json, &'static str)> {
    match schema {
        Schema::String => vec![
            (
                json!(80),
                "expected a string, found the number 80; quote it: \"80\"",
            ),
            (
                json!(1.5),
                "expected a string, found the number 1.5; quote it: \"1.5\"",
            ),
            (
                json!(true),
                "expected a string, found the boolean true; quote it: \"true\"",
            ),
            (json!(["a"]), "expected a string, found a list"),
        ],
        Schema::Bool => vec![
            (
                json!("true"),
                "expected a boolean, found the string \"true\"; remove the quotes: true",
            ),
            (
                json!(1),
                "expected a boolean, found the number 1; write true or false",
            ),
        ],
        Schema::Integer { .. } => vec![
            (
                json!("80"),
                "expected a number, found the string \"80\"; remove the quotes: 80",
            ),
            (json!(1.5), "expected a whole number, found the number 1.5"),
            (json!(99999999999999999999.0), "expected a whole number"),
            (json!(true), "expected a number, found the boolean true"),
        ],
        Schema::Number => vec![
            (
                json!("10"),
                "expected a number, found the string \"10\"; remove the quotes: 10",
            ),
            (json!("10%"), "expected a number, found the string \"10%\""),
        ],
        Schema::Duration => vec![
            (
                json!(5),
                "the duration 5 has no unit; write 5s for seconds or 5ms for milliseconds",
            ),
            (json!("5"), "the duration \"5\" has no unit"),
            (json!("-5s"), "the duration \"-5s\" is negative"),
            (json!("5 sec"), "has the unknown unit"),
            (json!("5d"), "has the unknown unit \"d\""),
            (json!(""), "\"\" is not a duration"),
            (json!({}), "expected a duration, found a mapping"),
        ],
        Schema::Timestamp => vec![(json!("yesterday"), "expected a time")],
        Schema::IntOrString => vec![(json!([]), "expected a number or a name, found a list")],
        Schema::Enum(_) => vec![
            (json!("NO_SUCH_VALUE"), "unknown value \"NO_SUCH_VALUE\""),
            (json!(3), "expected a string, found the number 3"),
        ],
        Schema::List(_) => vec![(
            json!("a"),
            "expected a list, found the string \"a\"; start each element with \"- \"",
        )],
        Schema::Map(_) | Schema::Message(_) => {
            vec![(json!("a"), "expected a mapping, found the string \"a\"")]
        }
        Schema::Any => vec![],
    }
}

fn contains(diagnostics: &[Diagnostic], path: &str, text: &str) -> bool {
    diagnostics
        .iter()
        .any(|found| found.path == path && found.to_string().contains(text))
}

#[test]
fn a_value_of_the_wrong_form_is_found_in_every_field() {
    let mut checked = 0;
    for kind in Kind::ALL {
        for (path, field) in fields(*kind) {
            for (value, expected) in wrong((field.schema)()) {
                let json = document(*kind, &path, value.clone());
                let yaml = lateen_api::to_yaml(&json);
                let parsed = parse("x.yaml", &yaml, Mode::Strict);
                let path = printed(&path);
                assert!(
                    contains(&parsed.diagnostics, &path, expected),
                    "{kind} {path} {value}: {:#?}\n{yaml}",
                    parsed.diagnostics
                );
                let found = parsed
                    .diagnostics
                    .iter()
                    .find(|found| found.path == path && found.is_error())
                    .unwrap();
                let last = path
                    .rsplit(['.', '['])
                    .next()
                    .unwrap()
                    .trim_end_matches(']');
                let line = yaml.lines().nth(found.line as usize - 1).unwrap();
                assert!(
                    line.contains(last) || !value.is_string() && !value.is_number(),
                    "{path} is not at {found}\n{yaml}"
                );
                assert!(parsed.objects.is_empty());
                checked += 1;
            }
        }
    }
    assert!(checked > 700, "only {checked} values checked");
}

#[test]
fn a_misspelt_field_gets_the_right_spelling_wherever_it_stands() {
    for kind in Kind::ALL {
        for (path, field) in fields(*kind) {
            let (parent, name) = path.rsplit_once('.').unwrap();
            // One letter lost in the middle, as fingers do.
            let (cut, _) = name.char_indices().nth(name.len() / 2).unwrap();
            let misspelt = format!("{}{}", &name[..cut], &name[cut + 1..]);
            if name.len() < 5
                || fields(*kind)
                    .iter()
                    .any(|(other, _)| *other == format!("{parent}.{misspelt}"))
            {
                continue;
            }
            let json = document(*kind, &format!("{parent}.{misspelt}"), json!("x"));
            let parsed = parse("x.yaml", &lateen_api::to_yaml(&json), Mode::Strict);
            let at = printed(&format!("{parent}.{misspelt}"));
            let message = format!("unknown field {misspelt:?}; did you mean {:?}?", field.name);
            assert!(
                contains(&parsed.diagnostics, &at, &message),
                "{kind} {at}: {:#?}",
                parsed.diagnostics
            );
        }
    }
}

#[test]
fn a_misspelt_enum_value_gets_the_right_spelling() {
    for kind in Kind::ALL {
        for (path, field) in fields(*kind) {
            let Schema::Enum(variants) = (field.schema)() else {
                continue;
            };
            for variant in variants.iter().filter(|variant| variant.name.len() > 3) {
                let wrong = variant.name.to_lowercase();
                if variants.iter().any(|other| other.name == wrong) {
                    continue;
                }
                let json = document(*kind, &path, json!(wrong));
                let parsed = parse("x.yaml", &lateen_api::to_yaml(&json), Mode::Strict);
                let message = format!("unknown value {wrong:?}; did you mean {:?}?", variant.name);
                assert!(
                    contains(&parsed.diagnostics, &printed(&path), &message),
                    "{path}: {:#?}",
                    parsed.diagnostics
                );
            }
        }
    }
}

#[test]
fn names_are_camel_case_and_unique_in_their_message() {
    for kind in Kind::ALL {
        let mut seen = BTreeSet::new();
        for (path, field) in fields(*kind) {
            let name = field.name;
            assert!(
                name.chars().all(|c| c.is_ascii_alphanumeric())
                    && name.starts_with(|c: char| c.is_ascii_lowercase()),
                "{path}"
            );
            assert!(seen.insert(path.clone()), "{path} twice");
        }
    }
}

#[test]
fn a_field_without_effect_is_reported_once_per_use_at_the_outermost() {
    for kind in Kind::ALL {
        let all = fields(*kind);
        for (path, field) in &all {
            let value = match (field.schema)() {
                Schema::Message(_) | Schema::Map(_) => json!({}),
                Schema::List(_) => json!([]),
                Schema::Bool => json!(true),
                Schema::Integer { .. } | Schema::Number | Schema::IntOrString => json!(1),
                Schema::Duration => json!("1s"),
                Schema::Enum(variants) => match variants
                    .iter()
                    .find(|variant| variant.support == Support::Effective)
                {
                    Some(variant) => json!(variant.name),
                    None => continue,
                },
                _ => json!("x"),
            };
            let json = document(*kind, path, value);
            let (_, diagnostics) = Object::from_json_with(&json, Mode::Strict);
            let reported: Vec<&str> = diagnostics
                .iter()
                .filter(|found| {
                    found.message == "accepted and kept, but has no effect yet in this version"
                })
                .map(|found| found.path.as_str())
                .collect();
            // The outermost pending field on the way to this one, itself included.
            let outer = all.iter().find(|(other, field)| {
                let inside = *other == *path
                    || path
                        .strip_prefix(other.as_str())
                        .is_some_and(|rest| rest.starts_with(['.', '[', '{']));
                field.support == Support::Pending && inside
            });
            let expected: Vec<String> = outer.iter().map(|(path, _)| printed(path)).collect();
            assert_eq!(reported, expected, "{kind} {path}");
        }
    }
}

fn complete() -> Vec<lateen_api::ParsedObject> {
    let texts = [
        include_str!("complete/virtual-service.yaml"),
        include_str!("complete/destination-rule.yaml"),
        include_str!("complete/others.yaml"),
        include_str!("complete/mesh.yaml"),
        include_str!("complete/security.yaml"),
        include_str!("complete/roles.yaml"),
        include_str!("complete/endpoints.yaml"),
    ];
    let mut objects = Vec::new();
    for text in texts {
        let parsed = parse("complete.yaml", text, Mode::Strict);
        assert!(!parsed.has_errors(), "{}", parsed.render(text, false));
        objects.extend(parsed.objects);
    }
    objects
}

/// Adds every (message, field) that `json` sets.
fn used(schema: Schema, json: &Json, fields: &mut BTreeSet<(&'static str, &'static str)>) {
    match (schema, json) {
        (Schema::Message(info), Json::Object(map)) => {
            for (key, value) in map {
                let field = info.field(key).unwrap();
                fields.insert((info.name, field.name));
                used((field.schema)(), value, fields);
            }
        }
        (Schema::Map(inner), Json::Object(map)) => {
            map.values().for_each(|value| used(inner(), value, fields))
        }
        (Schema::List(inner), Json::Array(items)) => {
            items.iter().for_each(|item| used(inner(), item, fields))
        }
        _ => {}
    }
}

fn declared(schema: Schema, fields: &mut BTreeSet<(&'static str, &'static str)>) {
    let Some(info) = schema.message() else { return };
    // Refused: targets are of the policy's own namespace.
    // And roles that are put together from others.
    let refused = [
        ("PolicyTargetReference", "namespace"),
        ("ClusterRole", "aggregationRule"),
    ];
    let taken = |field: &&FieldInfo| !refused.contains(&(info.name, field.name));
    for field in info.fields.iter().filter(taken) {
        fields.insert((info.name, field.name));
        declared((field.schema)(), fields);
    }
}

#[test]
fn the_complete_documents_use_every_field_and_keep_it() {
    let objects = complete();
    for kind in Kind::ALL {
        let (mut found, mut expected) = (BTreeSet::new(), BTreeSet::new());
        for parsed in objects.iter().filter(|parsed| parsed.object.kind == *kind) {
            let json = parsed.object.to_json();
            let content = match (kind.content_at_root(), json) {
                (true, Json::Object(mut object)) => {
                    object.retain(|key, _| {
                        !["apiVersion", "kind", "metadata", "status"].contains(&key.as_str())
                    });
                    Json::Object(object)
                }
                (_, json) => json["spec"].clone(),
            };
            used(kind.schema(), &content, &mut found);
        }
        declared(kind.schema(), &mut expected);
        // Refused: a Role is of a namespace.
        if *kind == Kind::Role {
            expected.remove(&("PolicyRule", "nonResourceURLs"));
        }
        // The complete WorkloadEntry is the endpoint of the complete ServiceEntry.
        if *kind != Kind::WorkloadEntry {
            let missing: Vec<_> = expected.difference(&found).collect();
            assert!(
                missing.is_empty(),
                "{kind}: no complete document uses {missing:?}"
            );
        }
    }
}

#[test]
fn complete_objects_survive_json_and_yaml() {
    for parsed in complete() {
        let object = parsed.object;
        assert_eq!(Object::from_json(&object.to_json()), Ok(object.clone()));
        let yaml = object.to_yaml();
        let again = parse("again.yaml", &yaml, Mode::Strict);
        assert!(!again.has_errors(), "{}", again.render(&yaml, false));
        assert_eq!(again.objects[0].object, object, "{yaml}");
        assert_eq!(serde_json::to_value(&object).unwrap(), object.to_json());
    }
}

#[test]
fn a_new_object_is_in_the_storage_version() {
    let meta = ObjectMeta {
        name: "reviews".to_owned(),
        ..ObjectMeta::default()
    };
    let object = Object::new(meta, lateen_api::Service::default());
    assert_eq!(
        object.to_json(),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "reviews"}})
    );
}
