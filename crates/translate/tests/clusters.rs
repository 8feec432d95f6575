//! Services and DestinationRules to clusters and endpoints.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests stop at what is not as expected"
)]

mod support;

use std::sync::Arc;

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use lateen_model::ObjectChange;
use lateen_translate::type_url;
use prost::Message;
use support::*;

fn cluster(documents: &str, name: &str) -> Cluster {
    let snapshot = snapshot(documents);
    let made = one(&snapshot, &sidecar(), type_url::CLUSTER, name)
        .unwrap_or_else(|| panic!("no cluster {name}"));
    Cluster::decode(made.bytes.as_slice()).unwrap()
}

fn rule(spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: reviews, namespace: default}}\nspec:\n  host: reviews\n{spec}"
    )
}

const REVIEWS: &str = "outbound|9080||reviews.default.svc.cluster.local";

#[test]
fn names_are_istios() {
    let snapshot = snapshot(&rule("  subsets: [{name: v1, labels: {version: v1}}]\n"));
    let mut names: Vec<String> = clusters(&snapshot, &sidecar())
        .into_iter()
        .map(|c| c.name)
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "BlackHoleCluster",
            "PassthroughCluster",
            "inbound|15102||",
            "outbound|3306||mysql.default.svc.cluster.local",
            "outbound|80||istio-ingressgateway.istio-system.svc.cluster.local",
            "outbound|9080|v1|reviews.default.svc.cluster.local",
            "outbound|9080||ratings.default.svc.cluster.local",
            "outbound|9080||reviews.default.svc.cluster.local",
            "outbound|9090||ratings.default.svc.cluster.local",
        ]
    );
}

#[test]
fn limits_are_lifted_unless_set_and_the_balancer_is_least_request() {
    let plain = cluster("", REVIEWS);
    let limits = &plain.circuit_breakers.unwrap().thresholds[0];
    assert_eq!(limits.max_requests.unwrap().value, u32::MAX);
    assert_eq!(plain.connect_timeout.unwrap().seconds, 10);
    assert_eq!(plain.lb_policy, 1, "LEAST_REQUEST");
    let set = cluster(
        &rule(
            "  trafficPolicy:\n    loadBalancer: {simple: ROUND_ROBIN}\n    connectionPool:\n      \
             tcp: {maxConnections: 7, connectTimeout: 2s}\n      http: {http1MaxPendingRequests: 8, http2MaxRequests: 9, maxRetries: 3}\n",
        ),
        REVIEWS,
    );
    let limits = &set.circuit_breakers.unwrap().thresholds[0];
    let value = |v: Option<envoy_types::pb::google::protobuf::UInt32Value>| v.unwrap().value;
    assert_eq!(
        (
            value(limits.max_connections),
            value(limits.max_pending_requests),
            value(limits.max_requests),
            value(limits.max_retries)
        ),
        (7, 8, 9, 3)
    );
    assert_eq!(set.connect_timeout.unwrap().seconds, 2);
    assert_eq!(set.lb_policy, 0, "ROUND_ROBIN");
}

#[test]
fn port_settings_do_not_inherit_and_subset_settings_do() {
    let document = rule(
        r#"  trafficPolicy:
    loadBalancer: {simple: ROUND_ROBIN}
    connectionPool: {tcp: {maxConnections: 7}}
    portLevelSettings: [{port: {number: 9080}, loadBalancer: {simple: RANDOM}}]
  subsets:
  - {name: v1, labels: {version: v1}, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}}
"#,
    );
    let limit = |c: &Cluster| {
        c.circuit_breakers.as_ref().unwrap().thresholds[0]
            .max_connections
            .unwrap()
            .value
    };
    let whole = cluster(&document, REVIEWS);
    assert_eq!(
        (whole.lb_policy, limit(&whole)),
        (3, u32::MAX),
        "RANDOM, and no limit"
    );
    let subset = cluster(
        &document,
        "outbound|9080|v1|reviews.default.svc.cluster.local",
    );
    assert_eq!(
        (subset.lb_policy, limit(&subset)),
        (0, u32::MAX),
        "ROUND_ROBIN over the port's settings"
    );
}

#[test]
fn a_subset_has_the_endpoints_with_its_labels_and_unhealthy_ones_are_left_out() {
    let down = "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: reviews-v3, namespace: default}\n\
                spec: {address: 127.0.0.1, ports: {http: 15122}, labels: {app: reviews, version: v3}}\n\
                status: {conditions: [{type: Healthy, status: \"False\"}]}\n---\n";
    let document = format!(
        "{down}{}",
        rule("  subsets: [{name: v2, labels: {version: v2}}, {name: v3, labels: {version: v3}}]\n")
    );
    let snapshot = snapshot(&document);
    let ports = |name: &str| -> Vec<u32> {
        let all = endpoints(&snapshot, &sidecar());
        let found = all.iter().find(|one| one.cluster_name == name).unwrap();
        let lb = found
            .endpoints
            .iter()
            .flat_map(|locality| &locality.lb_endpoints);
        lb.map(|one| {
            format!("{one:?}")
                .split("PortValue(")
                .nth(1)
                .unwrap()
                .split(')')
                .next()
                .unwrap()
                .parse()
                .unwrap()
        })
        .collect()
    };
    assert_eq!(ports(REVIEWS), [15102, 15112]);
    assert_eq!(
        ports("outbound|9080|v2|reviews.default.svc.cluster.local"),
        [15112]
    );
    assert!(ports("outbound|9080|v3|reviews.default.svc.cluster.local").is_empty());
}

#[test]
fn an_unrelated_change_finds_every_resource_again() {
    let translator = translator();
    let before = snapshot("");
    let after = next(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: x, namespace: default}\n\
         spec: {hosts: [ratings], http: [{route: [{destination: {host: ratings, port: {number: 9080}}}]}]}\n",
        Some(&before),
    );
    let proxy = sidecar();
    for url in [type_url::CLUSTER, type_url::ENDPOINT, type_url::LISTENER] {
        let old = translator.generate(&before, &proxy, url, None);
        let new = translator.generate(&after, &proxy, url, None);
        assert!(
            old.iter().zip(&new).all(|(a, b)| Arc::ptr_eq(a, b)),
            "{url}"
        );
    }
    let old = translator.generate(&before, &proxy, type_url::ROUTE, None);
    let new = translator.generate(&after, &proxy, type_url::ROUTE, None);
    assert_ne!(old[0].bytes, new[0].bytes);
}

/// The mesh with `before`, then with `after` in its place, and what a push has to look at.
fn affected_by(before: &str, after: &str) -> lateen_translate::Affected {
    let old = snapshot(before);
    let (before, after) = (objects(before), objects(after));
    let count = before.len().max(after.len());
    let changes: Vec<ObjectChange<'_>> = (0..count)
        .map(|index| ObjectChange {
            before: before.get(index),
            after: after.get(index),
        })
        .collect();
    let (new, changes) = old.updated(&changes, 2).unwrap();
    lateen_translate::affected(&new, &changes, |_| false).unwrap()
}

fn names(affected: &lateen_translate::Affected, url: &str) -> Vec<String> {
    let names = affected.get(url).cloned().flatten();
    let names = names.into_iter().flatten();
    names.filter(|name| name.starts_with("outbound|")).collect()
}

#[test]
fn a_change_of_health_is_a_change_of_these_endpoints_only() {
    let workload = |status: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: ratings-v1, namespace: default}}\n\
             spec: {{address: 127.0.0.1, labels: {{app: ratings}}}}\n\
             status: {{conditions: [{{type: Healthy, status: \"{status}\"}}]}}\n"
        )
    };
    // A service with an address of its own; without, its workloads are what listeners know.
    let addressed = |status: &str| {
        let service = "apiVersion: v1\nkind: Service\nmetadata: {name: ratings, namespace: default}\n\
                       spec: {clusterIP: 10.96.0.1, selector: {app: ratings}, ports: [{name: http, port: 9080}, \
                       {name: grpc, port: 9090}]}\n---\n";
        format!("{service}{}", workload(status))
    };
    let affected = affected_by(&addressed("True"), &addressed("False"));
    for url in [type_url::CLUSTER, type_url::LISTENER, type_url::ROUTE] {
        assert!(!affected.contains_key(url), "{affected:?}");
    }
    assert_eq!(
        names(&affected, type_url::ENDPOINT),
        [
            "outbound|9080||ratings.default.svc.cluster.local",
            "outbound|9090||ratings.default.svc.cluster.local"
        ]
    );
    assert!(affected_by(&workload("False"), &workload("False")).is_empty());
}

#[test]
fn a_change_of_a_rule_is_a_change_of_its_services_clusters() {
    let rule = |subset: &str| {
        rule(&format!(
            "  subsets: [{{name: {subset}, labels: {{version: v1}}}}]\n"
        ))
    };
    let affected = affected_by(&rule("old"), &rule("new"));
    let expected = ["new", "old", ""]
        .map(|subset| format!("outbound|9080|{subset}|reviews.default.svc.cluster.local"));
    assert_eq!(names(&affected, type_url::CLUSTER), expected);
    assert_eq!(names(&affected, type_url::ENDPOINT), expected);
    let route = |header: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: x, namespace: default}}\n\
         spec: {{hosts: [ratings], http: [{{match: [{{headers: {{{header}: {{exact: b}}}}}}], route: [{{destination: {{host: reviews}}}}]}}]}}\n"
        )
    };
    let affected = affected_by(&route("a"), &route("b"));
    let tables = affected[type_url::ROUTE].clone().unwrap();
    let expected = [
        "80",
        "9080",
        "9090",
        "http_proxy",
        "ratings.default.svc.cluster.local:9080",
        "ratings.default.svc.cluster.local:9090",
    ];
    assert_eq!(Vec::from_iter(&tables), expected);
    assert!(names(&affected, type_url::CLUSTER).is_empty());
    assert!(!affected.contains_key(type_url::LISTENER));
}

#[test]
fn under_a_sidecar_resource_a_rule_changes_what_is_listened_for_and_named() {
    let mesh = |target: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {{name: default, namespace: default}}\n\
             spec: {{egress: [{{hosts: [\"./*\"]}}]}}\n---\n\
             apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: x, namespace: default}}\n\
             spec: {{hosts: [reviews], http: [{{route: [{{destination: {{host: {target}}}}}]}}]}}\n"
        )
    };
    let (before, after) = (mesh("reviews"), mesh("ratings.other.svc.cluster.local"));
    let (old, before, after) = (snapshot(&before), objects(&before), objects(&after));
    let rule = ObjectChange {
        before: before.get(1),
        after: after.get(1),
    };
    let (new, changes) = old.updated(&[rule], 2).unwrap();
    let affected = lateen_translate::affected(&new, &changes, |_| false).unwrap();
    assert_eq!(affected.get(type_url::NAME_TABLE), Some(&None));
    let reviews = "outbound|9080||reviews.default.svc.cluster.local";
    for (url, name) in [
        (type_url::LISTENER, "0.0.0.0_9080"),
        (type_url::CLUSTER, reviews),
        (type_url::ENDPOINT, reviews),
    ] {
        let names = affected[url].clone().unwrap();
        assert!(names.contains(name), "{url} {names:?}");
    }
}

#[test]
fn http2_is_spoken_where_declared_or_asked_for() {
    let options = |c: &Cluster| {
        use envoy_types::pb::envoy::extensions::upstreams::http::v3 as upstream;
        let any = c.typed_extension_protocol_options.values().next()?;
        let options = upstream::HttpProtocolOptions::decode(any.value.as_slice()).unwrap();
        Some(format!("{:?}", options.upstream_protocol_options))
    };
    assert_eq!(options(&cluster("", REVIEWS)), None);
    let grpc = cluster("", "outbound|9090||ratings.default.svc.cluster.local");
    assert!(options(&grpc).unwrap().contains("Http2ProtocolOptions"));
    let upgraded = rule("  trafficPolicy: {connectionPool: {http: {h2UpgradePolicy: UPGRADE}}}\n");
    assert!(
        options(&cluster(&upgraded, REVIEWS))
            .unwrap()
            .contains("Http2ProtocolOptions")
    );
}

#[test]
fn a_service_entry_resolved_by_dns_is_a_strict_dns_cluster_of_its_host() {
    let document = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: weather, namespace: default}\n\
                    spec: {hosts: [weather.example.com], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS}\n";
    let made = cluster(document, "outbound|80||weather.example.com");
    let text = format!("{:?}", made.load_assignment);
    assert!(
        text.contains("weather.example.com") && text.contains("PortValue(80)"),
        "{text}"
    );
    use envoy_types::pb::envoy::config::cluster::v3::cluster::{
        ClusterDiscoveryType, DiscoveryType,
    };
    let strict_dns = ClusterDiscoveryType::Type(DiscoveryType::StrictDns as i32);
    assert_eq!(made.cluster_discovery_type, Some(strict_dns));
}
