//! Zone-aware balancing: what clusters say, where other regions stand, and the endpoints of a
//! proxy's own service.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests stop at what is not as expected"
)]

mod support;

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::cluster::v3::cluster::common_lb_config::LocalityConfigSpecifier;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use lateen_model::{Locality, MeshSnapshot, Proxy};
use lateen_translate::type_url;
use prost::Message;
use support::*;

const RATINGS: &str = "outbound|9080||ratings.default.svc.cluster.local";

fn rule(balancer: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
         metadata: {{name: ratings, namespace: default}}\n\
         spec: {{host: ratings, trafficPolicy: {{loadBalancer: {{{balancer}}}}}}}\n---\n"
    )
}

fn workload(name: &str, app: &str, locality: &str, more: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n\
         metadata: {{name: {name}, namespace: default}}\n\
         spec: {{address: 127.0.0.1, ports: {{http: {}}}, locality: {locality}, \
         labels: {{app: {app}{more}}}}}\n---\n",
        name.bytes().map(u16::from).sum::<u16>()
    )
}

/// The sidecar of reviews-v1 in a zone of `r`, which asks for the endpoints of its own service.
fn settled() -> Proxy {
    let mut proxy = sidecar();
    proxy.self_discovery = Some(vec!["pod-template-hash".to_string()]);
    proxy.locality = Locality::parse("r/a");
    proxy
}

fn specifier(rule: &str, proxy: &Proxy) -> Option<LocalityConfigSpecifier> {
    let made = one(&snapshot(rule), proxy, type_url::CLUSTER, RATINGS).unwrap();
    let made = Cluster::decode(made.bytes.as_slice()).unwrap();
    made.common_lb_config?.locality_config_specifier
}

#[test]
fn a_cluster_says_whether_zones_matter() {
    // Percent of the requests, and the smallest cluster.
    let zones = |rule: &str, proxy: &Proxy| match specifier(rule, proxy)? {
        LocalityConfigSpecifier::ZoneAwareLbConfig(zones) => Some((
            zones.routing_enabled.map(|percent| percent.value),
            zones.min_cluster_size.map(|size| size.value),
        )),
        other => panic!("{other:?}"),
    };
    let on = rule("zoneAwareLbSetting: {minClusterSize: 2}");
    let off = rule("zoneAwareLbSetting: {enabled: false}");
    assert_eq!(zones("", &sidecar()), None);
    assert_eq!(zones(&on, &sidecar()), Some((None, Some(2))));
    assert_eq!(zones(&off, &sidecar()), None);
    // Envoy would look at zones by itself where it knows its siblings.
    assert_eq!(zones("", &settled()), Some((Some(0.0), None)));
    assert_eq!(zones(&on, &settled()), Some((None, Some(2))));
    assert_eq!(zones(&off, &settled()), Some((Some(0.0), None)));
    let weighted = rule("localityLbSetting: {distribute: [{from: r/*, to: {r/*: 100}}]}");
    for proxy in [sidecar(), settled()] {
        let found = specifier(&weighted, &proxy);
        assert!(matches!(
            found,
            Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_))
        ));
    }
}

fn assignment(snapshot: &MeshSnapshot, proxy: &Proxy, name: &str) -> Option<ClusterLoadAssignment> {
    let made = one(snapshot, proxy, type_url::ENDPOINT, name)?;
    Some(ClusterLoadAssignment::decode(made.bytes.as_slice()).unwrap())
}

/// `zone priority` of each locality.
fn priorities(rule: &str) -> Vec<String> {
    let mut mesh = rule.to_string();
    for (name, locality, more) in [
        ("one", "r/a", ", rack: p"),
        ("two", "r/b", ", rack: q"),
        ("three", "s/c", ", rack: p"),
        ("four", "t/d", ", rack: q"),
    ] {
        mesh += &workload(name, "ratings", locality, more);
    }
    let made = assignment(&snapshot(&mesh), &settled(), RATINGS).unwrap();
    let text = |group: &envoy_types::pb::envoy::config::endpoint::v3::LocalityLbEndpoints| {
        let zone = &group.locality.as_ref().unwrap().zone;
        format!("{zone}{}", group.priority)
    };
    let mut all: Vec<String> = made.endpoints.iter().map(text).collect();
    all.sort();
    all
}

#[test]
fn regions_are_tiers_with_or_without_outlier_detection() {
    assert_eq!(priorities(""), ["a0", "b0", "c0", "d0"]);
    let with = |more: &str| priorities(&rule(&format!("zoneAwareLbSetting: {{{more}}}")));
    assert_eq!(with("enabled: true"), ["a0", "b0", "c1", "d1"]);
    assert_eq!(
        with("failover: [{from: r, to: t}]"),
        ["a0", "b0", "c2", "d1"]
    );
    assert_eq!(
        with("failover: [{from: x, to: t}]"),
        ["a0", "b0", "c1", "d1"]
    );
    // Labels come first, and regions order what they leave alike.
    assert_eq!(with("failoverPriority: [rack=p]"), ["a0", "b2", "c1", "d3"]);
    assert_eq!(with("enabled: false"), ["a0", "b0", "c0", "d0"]);
}

/// Ports of the endpoints of the proxy's own service, by zone.
fn own(proxy: &Proxy, workloads: &[(&str, &str, &str)]) -> Option<Vec<String>> {
    let all = workloads
        .iter()
        .map(|(name, locality, more)| workload(name, "reviews", locality, more));
    let made = assignment(&snapshot(&all.collect::<String>()), proxy, "local_cluster")?;
    let zones = made.endpoints.iter().map(|group| {
        let zone = &group.locality.as_ref().unwrap().zone;
        format!("{zone}{}", group.lb_endpoints.len())
    });
    Some(zones.collect())
}

#[test]
fn a_proxy_gets_the_endpoints_of_its_own_service_if_it_asks_for_them() {
    let all = [
        ("a1", "r/a", ""),
        ("b1", "r/b", ""),
        ("b2", "r/b", ""),
        ("c1", "s/c", ""),
    ];
    assert_eq!(own(&sidecar(), &all), None);
    // reviews-v1 and reviews-v2 of the mesh itself are nowhere, and so not in the region.
    assert_eq!(own(&settled(), &all).unwrap(), ["a1", "b2"]);
    // None of them is an answer, too.
    assert_eq!(own(&settled(), &[]).unwrap(), Vec::<String>::new());
    let mut nowhere = settled();
    nowhere.locality = Locality::default();
    assert_eq!(own(&nowhere, &all).unwrap(), ["2", "a1", "b2", "c1"]);
}

#[test]
fn other_versions_of_a_service_are_not_its_siblings() {
    let hash = |hash: &str| format!(", pod-template-hash: {hash}");
    let (mine, other) = (hash("m"), hash("o"));
    let all = [
        ("a1", "r/a", mine.as_str()),
        ("b1", "r/b", &mine),
        ("b2", "r/b", &other),
    ];
    let mut proxy = settled();
    proxy.labels.insert("pod-template-hash".into(), "m".into());
    assert_eq!(own(&proxy, &all).unwrap(), ["a1", "b1"]);
    proxy.self_discovery = Some(vec!["app".to_string()]);
    assert_eq!(own(&proxy, &all).unwrap(), ["a1", "b2"]);
}
