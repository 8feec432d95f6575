//! Kubernetes' URL paths: which kind, namespace and name a request is about.
//!
//! Pure: text in, [`Target`] out.

use lateen_api::Kind;
use percent_encoding::percent_decode_str;

/// What a path under `/api` or `/apis` points at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// All objects of a kind; `namespace` is none for all namespaces.
    Collection {
        kind: Kind,
        version: String,
        namespace: Option<String>,
    },
    Object {
        kind: Kind,
        version: String,
        namespace: String,
        name: String,
    },
}

impl Target {
    pub fn kind(&self) -> Kind {
        match self {
            Target::Collection { kind, .. } | Target::Object { kind, .. } => *kind,
        }
    }

    /// `networking.istio.io/v1`: answers are given in the version that was asked for.
    pub fn api_version(&self) -> String {
        let (Target::Collection { kind, version, .. } | Target::Object { kind, version, .. }) =
            self;
        match kind.info().group {
            "" => version.clone(),
            group => format!("{group}/{version}"),
        }
    }
}

/// None if the path names nothing that is served.
pub(crate) fn parse(path: &str) -> Option<Target> {
    let segments: Option<Vec<String>> = path
        .strip_prefix('/')?
        .trim_end_matches('/')
        .split('/')
        .map(|s| {
            percent_decode_str(s)
                .decode_utf8()
                .ok()
                .map(|s| s.into_owned())
        })
        .collect();
    let segments = segments?;
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    match segments.as_slice() {
        ["api", version, rest @ ..] => resource("", version, rest),
        ["apis", group, version, rest @ ..] if !group.is_empty() => resource(group, version, rest),
        _ => None,
    }
}

fn resource(group: &str, version: &str, rest: &[&str]) -> Option<Target> {
    let served = |plural: &str| {
        let kind = Kind::from_resource(group, plural)?;
        kind.info().versions.contains(&version).then_some(kind)
    };
    let version = version.to_owned();
    match *rest {
        [plural] => Some(Target::Collection {
            kind: served(plural)?,
            version,
            namespace: None,
        }),
        ["namespaces", namespace, plural] if !namespace.is_empty() => {
            let kind = served(plural).filter(|kind| kind.info().namespaced)?;
            Some(Target::Collection {
                kind,
                version,
                namespace: Some(namespace.to_owned()),
            })
        }
        ["namespaces", namespace, plural, name] if !namespace.is_empty() && !name.is_empty() => {
            let kind = served(plural).filter(|kind| kind.info().namespaced)?;
            let (namespace, name) = (namespace.to_owned(), name.to_owned());
            Some(Target::Object {
                kind,
                version,
                namespace,
                name,
            })
        }
        [plural, name] if !name.is_empty() => {
            let kind = served(plural).filter(|kind| !kind.info().namespaced)?;
            Some(Target::Object {
                kind,
                version,
                namespace: String::new(),
                name: name.to_owned(),
            })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, expect: &str) {
        let got = match parse(path) {
            None => "-".to_owned(),
            Some(target @ Target::Collection { .. }) => {
                let Target::Collection {
                    kind, namespace, ..
                } = &target
                else {
                    unreachable!()
                };
                format!("{} {kind} in {namespace:?}", target.api_version())
            }
            Some(target @ Target::Object { .. }) => {
                let Target::Object {
                    kind,
                    namespace,
                    name,
                    ..
                } = &target
                else {
                    unreachable!()
                };
                format!("{} {kind} {namespace}/{name}", target.api_version())
            }
        };
        assert_eq!(got, expect, "{path}");
    }

    #[test]
    fn paths_name_collections_and_objects() {
        const ISTIO: &str = "/apis/networking.istio.io";
        check(
            &format!("{ISTIO}/v1/virtualservices"),
            "networking.istio.io/v1 VirtualService in None",
        );
        check(
            &format!("{ISTIO}/v1alpha3/namespaces/default/gateways/"),
            "networking.istio.io/v1alpha3 Gateway in Some(\"default\")",
        );
        check(
            &format!("{ISTIO}/v1beta1/namespaces/a/virtualservices/b"),
            "networking.istio.io/v1beta1 VirtualService a/b",
        );
        check("/api/v1/services", "v1 Service in None");
        check("/api/v1/namespaces", "v1 Namespace in None");
        check("/api/v1/namespaces/production", "v1 Namespace /production");
        check("/api/v1/namespaces/a%2Db/services/c", "v1 Service a-b/c");
    }

    #[test]
    fn other_paths_name_nothing() {
        for path in [
            "",
            "/",
            "/api",
            "/api/v1",
            "/api/v2/services",
            "/api/v1/virtualservices",
            "/api/v1/services/without-namespace",
            "/api/v1/namespaces/a/namespaces/b",
            "/api/v1/namespaces//services",
            "/apis/networking.istio.io/v2/gateways",
            "/apis/networking.istio.io/v1/namespaces/a/gateways/b/status",
            "/apis//v1/services",
            "/api/v1/namespaces/%ff/services",
        ] {
            check(path, "-");
        }
    }
}
