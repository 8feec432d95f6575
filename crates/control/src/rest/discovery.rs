//! What there is: Kubernetes' discovery documents, and just enough OpenAPI for kubectl.

use std::collections::BTreeMap;

use lateen_api::Kind;
use serde_json::{Value, json};

/// The document at a discovery path; none if the path is not one.
pub(crate) fn document(path: &str) -> Option<Value> {
    let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
    match *segments.as_slice() {
        ["api"] => Some(json!({
            "kind": "APIVersions",
            "versions": ["v1"],
            "serverAddressByClientCIDRs": [],
        })),
        ["apis"] => {
            let groups: Vec<Value> = groups().into_keys().map(group_document).collect();
            Some(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}))
        }
        ["apis", group] => groups().contains_key(group).then(|| {
            let mut document = group_document(group);
            document["kind"] = json!("APIGroup");
            document["apiVersion"] = json!("v1");
            document
        }),
        ["api", version] => resources("", version),
        ["apis", group, version] if !group.is_empty() => resources(group, version),
        ["openapi", "v3"] => Some(openapi_index()),
        ["openapi", "v3", "api", version] => openapi("", version),
        ["openapi", "v3", "apis", group, version] => openapi(group, version),
        ["openapi", "v2"] => Some(json!({
            "swagger": "2.0",
            "info": {"title": "Lateen", "version": env!("CARGO_PKG_VERSION")},
            "paths": {},
            "definitions": {},
        })),
        _ => None,
    }
}

/// Kubernetes' version document. The minor version names the API conventions that are followed.
pub(crate) fn version() -> Value {
    json!({
        "major": "1",
        "minor": "33",
        "gitVersion": concat!("v1.33.0+lateen-", env!("CARGO_PKG_VERSION")),
        "gitCommit": "",
        "gitTreeState": "",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": "rustc",
        "platform": concat!("lateen/", env!("CARGO_PKG_VERSION")),
    })
}

/// The named groups and the versions that are served of each.
fn groups() -> BTreeMap<&'static str, &'static [&'static str]> {
    let infos = Kind::ALL.iter().map(|kind| kind.info());
    infos
        .filter(|info| !info.group.is_empty())
        .map(|info| (info.group, info.versions))
        .collect()
}

fn group_document(group: &str) -> Value {
    let groups = groups();
    let versions = groups.get(group).copied().unwrap_or_default();
    let version =
        |version: &&str| json!({"groupVersion": format!("{group}/{version}"), "version": version});
    json!({
        "name": group,
        "versions": versions.iter().map(version).collect::<Vec<_>>(),
        "preferredVersion": versions.first().map(version),
        "serverAddressByClientCIDRs": [],
    })
}

fn kinds(group: &str, version: &str) -> Vec<Kind> {
    let served =
        |kind: &Kind| kind.info().group == group && kind.info().versions.contains(&version);
    Kind::ALL.iter().copied().filter(served).collect()
}

fn group_version(group: &str, version: &str) -> String {
    match group {
        "" => version.to_owned(),
        group => format!("{group}/{version}"),
    }
}

fn resources(group: &str, version: &str) -> Option<Value> {
    let kinds = kinds(group, version);
    if kinds.is_empty() {
        return None;
    }
    let resources: Vec<Value> = kinds
        .into_iter()
        .map(|kind| {
            let info = kind.info();
            json!({
                "name": info.plural,
                "singularName": info.singular,
                "namespaced": info.namespaced,
                "kind": info.name,
                "shortNames": info.short,
                "categories": if group.is_empty() { json!(["all"]) } else { json!(["istio-io"]) },
                "verbs": ["create", "delete", "get", "list", "patch", "update", "watch"],
            })
        })
        .collect();
    Some(json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": group_version(group, version),
        "resources": resources,
    }))
}

fn openapi_index() -> Value {
    let mut paths = serde_json::Map::new();
    let mut add = |path: String| {
        let url = format!("/openapi/v3/{path}");
        paths.insert(path, json!({"serverRelativeURL": url}));
    };
    add("api/v1".into());
    for (group, versions) in groups() {
        for version in versions {
            add(format!("apis/{group}/{version}"));
        }
    }
    json!({"paths": paths})
}

/// Says only that a PATCH takes `fieldValidation`: kubectl then leaves validation to the server,
/// which names every error with its field.
fn openapi(group: &str, version: &str) -> Option<Value> {
    let kinds = kinds(group, version);
    if kinds.is_empty() {
        return None;
    }
    let root = if group.is_empty() { "/api/" } else { "/apis/" };
    let base = format!("{root}{}", group_version(group, version));
    let paths: serde_json::Map<String, Value> = kinds
        .into_iter()
        .map(|kind| {
            let info = kind.info();
            let scope = if info.namespaced {
                "/namespaces/{namespace}"
            } else {
                ""
            };
            let operation = json!({
                "parameters": [
                    {"name": "fieldValidation", "in": "query", "schema": {"type": "string"}},
                    {"name": "dryRun", "in": "query", "schema": {"type": "string"}},
                ],
                "responses": {"200": {"description": "OK"}},
                "x-kubernetes-group-version-kind":
                    {"group": group, "version": version, "kind": info.name},
            });
            (
                format!("{base}{scope}/{}/{{name}}", info.plural),
                json!({"patch": operation}),
            )
        })
        .collect();
    Some(json!({
        "openapi": "3.0.0",
        "info": {"title": "Lateen", "version": env!("CARGO_PKG_VERSION")},
        "paths": paths,
        "components": {"schemas": {}},
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_listed_in_every_version() {
        for kind in Kind::ALL {
            let info = kind.info();
            for version in info.versions {
                let root = if info.group.is_empty() {
                    "/api"
                } else {
                    "/apis"
                };
                let path = format!("{root}/{}", group_version(info.group, version));
                let listed = document(&path).unwrap();
                let listed = listed["resources"].as_array().unwrap();
                assert!(
                    listed.iter().any(|r| r["kind"] == info.name),
                    "{kind} in {path}"
                );
                assert!(document(&format!("/openapi/v3{path}")).is_some(), "{path}");
            }
        }
        assert_eq!(
            document("/apis/networking.istio.io").unwrap()["versions"][0]["version"],
            "v1"
        );
    }

    #[test]
    fn other_paths_are_no_discovery() {
        for path in [
            "/",
            "/apis/apps",
            "/apis/apps/v1",
            "/api/v2",
            "/openapi/v3/apis/apps/v1",
        ] {
            assert!(document(path).is_none(), "{path}");
        }
    }
}
