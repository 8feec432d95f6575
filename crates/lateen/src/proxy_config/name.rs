//! Istio's cluster names, `outbound|9080|v2|reviews.default.svc.cluster.local`, taken apart.

/// The parts of a cluster name. Names of another form are a host without the rest.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClusterName<'a> {
    // The order of the fields is istioctl's order of rows.
    pub host: &'a str,
    pub subset: &'a str,
    pub port: u32,
    pub direction: &'a str,
    /// It has the four parts.
    pub istio: bool,
}

pub fn parse(name: &str) -> ClusterName<'_> {
    let parts: Vec<&str> = name.split('|').collect();
    match *parts.as_slice() {
        [direction, port, subset, host, ..] => ClusterName {
            host,
            subset,
            port: port.parse().unwrap_or(0),
            direction,
            istio: true,
        },
        _ => ClusterName {
            host: name,
            subset: "",
            port: 0,
            direction: "",
            istio: false,
        },
    }
}

/// `reviews.default` of `/apis/networking.istio.io/v1/namespaces/default/virtual-service/reviews`,
/// which Istio puts into the metadata of what a rule made.
pub fn origin(metadata: &serde_json::Value) -> String {
    let Some(path) = metadata
        .pointer("/filter_metadata/istio/config")
        .and_then(|c| c.as_str())
    else {
        return String::new();
    };
    match *path.split('/').collect::<Vec<_>>().as_slice() {
        ["", "apis", _, _, "namespaces", namespace, _, name] => format!("{name}.{namespace}"),
        _ => "<unknown>".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_are_taken_apart() {
        let name = parse("outbound|9080|v2|reviews.default.svc.cluster.local");
        assert_eq!(
            (name.direction, name.port, name.subset),
            ("outbound", 9080, "v2")
        );
        assert_eq!(name.host, "reviews.default.svc.cluster.local");
        assert_eq!(parse("inbound|9080||").host, "");
        assert_eq!(parse("BlackHoleCluster").host, "BlackHoleCluster");
    }

    #[test]
    fn origins_are_name_and_namespace() {
        let check = |path: &str, expect: &str| {
            let metadata = json!({"filter_metadata": {"istio": {"config": path}}});
            assert_eq!(origin(&metadata), expect);
        };
        check(
            "/apis/networking.istio.io/v1alpha3/namespaces/default/virtual-service/reviews",
            "reviews.default",
        );
        check("nonsense", "<unknown>");
        assert_eq!(origin(&json!({})), "");
    }
}
