//! Which rule applies to whom: picking, merging, conflicts, visibility.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests stop at what is not as expected"
)]

use std::sync::Arc;

use lateen_model::{HostIndex, MeshSettings, MeshSnapshot, MtlsMode};

fn snapshot(yaml: &str) -> MeshSnapshot {
    let parsed = lateen_api::parse("test.yaml", yaml, lateen_api::Mode::Strict);
    let errors: Vec<String> = parsed
        .diagnostics
        .iter()
        .filter(|d| d.is_error())
        .map(|d| d.to_string())
        .collect();
    assert!(errors.is_empty(), "{errors:?}");
    let objects: Vec<_> = parsed.objects.into_iter().map(|p| p.object).collect();
    MeshSnapshot::build(objects.iter(), 1, Arc::new(MeshSettings::default()), None)
}

fn service(name: &str, namespace: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{ports: [{{name: http, port: 80}}]}}\n---\n"
    )
}

fn rule(name: &str, namespace: &str, rest: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
         metadata: {{name: {name}, namespace: {namespace}, creationTimestamp: \"2026-01-01T00:00:00Z\"}}\nspec: {{{rest}}}\n---\n"
    )
}

/// The names of the objects that make the rule for `reviews.shop` in the eyes of `client`.
fn picked(rules: &[String], client: &str) -> Vec<String> {
    let snapshot = snapshot(&(service("reviews", "shop") + &rules.concat()));
    let service = snapshot.service("reviews.shop.svc.cluster.local").unwrap();
    let picked = snapshot.destination_rule(client, service);
    picked
        .into_iter()
        .flat_map(|rule| rule.origins.iter().map(|o| o.name.clone()))
        .collect()
}

#[test]
fn the_clients_namespace_beats_the_services_which_beats_the_root() {
    let host = "host: reviews.shop.svc.cluster.local";
    let all = [
        rule("root", "istio-system", host),
        rule("service", "shop", host),
        rule("client", "web", host),
    ];
    assert_eq!(picked(&all, "web"), ["client"]);
    assert_eq!(picked(&all, "other"), ["service"]);
    assert_eq!(picked(&all[..1], "other"), ["root"]);
    assert!(picked(&[], "web").is_empty());
}

#[test]
fn the_most_specific_host_of_a_namespace_wins() {
    let all = [
        rule("all", "shop", "host: \"*\""),
        rule("suffix", "shop", "host: \"*.shop.svc.cluster.local\""),
        rule("exact", "shop", "host: reviews"),
    ];
    assert_eq!(picked(&all, "shop"), ["exact"]);
    assert_eq!(picked(&all[..2], "shop"), ["suffix"]);
    assert_eq!(picked(&all[..1], "shop"), ["all"]);
}

#[test]
fn a_rule_counts_only_where_it_is_exported() {
    let all = [rule("private", "shop", "host: reviews, exportTo: [\".\"]")];
    assert_eq!(picked(&all, "shop"), ["private"]);
    assert!(picked(&all, "web").is_empty());
}

#[test]
fn rules_for_one_host_and_namespace_are_merged_and_the_older_policy_wins() {
    let a = "host: reviews, subsets: [{name: v1, labels: {version: a}}], trafficPolicy: {loadBalancer: {simple: RANDOM}}";
    let b = "host: reviews, subsets: [{name: v1, labels: {version: b}}, {name: v2, labels: {version: b}}], \
             trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}";
    let snapshot =
        snapshot(&(service("reviews", "shop") + &rule("b", "shop", b) + &rule("a", "shop", a)));
    let service = snapshot.service("reviews.shop.svc.cluster.local").unwrap();
    let merged = snapshot.destination_rule("shop", service).unwrap();
    assert_eq!(merged.subset("v1").unwrap().labels["version"], "a");
    assert_eq!(merged.subset("v2").unwrap().labels["version"], "b");
    let balancer = merged
        .traffic_policy
        .as_ref()
        .unwrap()
        .load_balancer
        .as_ref()
        .unwrap()
        .simple;
    assert_eq!(
        balancer,
        Some(lateen_api::destination_rule::SimpleLb::Random)
    );
}

#[test]
fn an_exact_rule_host_beats_a_wildcard_and_the_older_of_two_wins() {
    let vs = |name: &str, host: &str, day: u8| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\n\
             metadata: {{name: {name}, namespace: shop, creationTimestamp: \"2026-01-0{day}T00:00:00Z\"}}\n\
             spec: {{hosts: [\"{host}\"], http: [{{directResponse: {{status: 200}}}}]}}\n---\n"
        )
    };
    let snapshot = snapshot(
        &[
            vs("wild", "*.svc.cluster.local", 1),
            vs("longer", "*.shop.svc.cluster.local", 4),
            vs("young", "reviews", 3),
            vs("old", "reviews", 2),
        ]
        .concat(),
    );
    let index = HostIndex::new(snapshot.mesh_virtual_services("shop"));
    let name = |host: &str| index.rule_for(host).map(|rule| rule.origin.name.as_str());
    assert_eq!(name("reviews.shop.svc.cluster.local"), Some("old"));
    assert_eq!(name("ratings.shop.svc.cluster.local"), Some("longer"));
    assert_eq!(name("ratings.web.svc.cluster.local"), Some("wild"));
    assert_eq!(name("example.com"), None);
}

#[test]
fn a_host_that_two_service_entries_claim_stays_with_the_older() {
    let entry = |name: &str, day: u8, port: u32| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
             metadata: {{name: {name}, namespace: shop, creationTimestamp: \"2026-01-0{day}T00:00:00Z\"}}\n\
             spec: {{hosts: [api.example.com], resolution: DNS, ports: [{{number: {port}, name: http, protocol: HTTP}}]}}\n---\n"
        )
    };
    let snapshot = snapshot(&(entry("b", 2, 81) + &entry("a", 1, 80)));
    assert_eq!(
        snapshot.service("api.example.com").unwrap().ports[0].number,
        80
    );
}

#[test]
fn what_did_not_change_keeps_its_identity() {
    let yaml = service("reviews", "shop") + &service("ratings", "shop");
    let objects = |yaml: &str| -> Vec<lateen_api::Object> {
        let parsed = lateen_api::parse("t", yaml, lateen_api::Mode::Strict);
        parsed.objects.into_iter().map(|p| p.object).collect()
    };
    let settings = Arc::new(MeshSettings::default());
    let first = MeshSnapshot::build(objects(&yaml).iter(), 1, settings.clone(), None);
    let changed = yaml.replacen("port: 80", "port: 81", 1);
    let second = MeshSnapshot::build(objects(&changed).iter(), 2, settings, Some(&first));
    let same =
        |host: &str| Arc::ptr_eq(first.service(host).unwrap(), second.service(host).unwrap());
    assert!(!same("reviews.shop.svc.cluster.local"));
    assert!(same("ratings.shop.svc.cluster.local"));
}

/// A PeerAuthentication of an age in days.
fn peer(name: &str, namespace: &str, day: u32, rest: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
         metadata: {{name: {name}, namespace: {namespace}, creationTimestamp: \"2026-01-{day:02}T00:00:00Z\"}}\nspec: {{{rest}}}\n---\n"
    )
}

/// The mode of a port of a workload `app: a` in `namespace`.
fn mode(rules: &[String], namespace: &str, port: u32) -> MtlsMode {
    let snapshot = snapshot(&rules.concat());
    let labels = [("app".to_owned(), "a".to_owned())].into();
    let mtls = snapshot.mtls_in(namespace).of_workload(&labels);
    mtls.of_port([port])
}

const SELECTS: &str = "selector: {matchLabels: {app: a}}";

#[test]
fn the_narrowest_peer_authentication_that_says_a_mode_decides() {
    use MtlsMode::{Disable, Permissive, Strict};
    let of = |mode: &str| format!("mtls: {{mode: {mode}}}");
    let mesh = |mode: &str| peer("mesh", "istio-system", 1, &of(mode));
    let namespace = |mode: &str| peer("ns", "shop", 1, &of(mode));
    let workload = |mode: &str| peer("w", "shop", 1, &format!("{SELECTS}, {}", of(mode)));
    assert_eq!(mode(&[], "shop", 80), Permissive);
    assert_eq!(mode(&[mesh("STRICT")], "shop", 80), Strict);
    // A rule of another namespace is that namespace's.
    assert_eq!(mode(&[namespace("STRICT")], "web", 80), Permissive);
    assert_eq!(
        mode(&[mesh("STRICT"), namespace("DISABLE")], "shop", 80),
        Disable
    );
    let all = [mesh("STRICT"), namespace("DISABLE"), workload("PERMISSIVE")];
    assert_eq!(mode(&all, "shop", 80), Permissive);
    assert_eq!(mode(&all, "web", 80), Strict);
    let unset = [mesh("STRICT"), namespace("UNSET"), workload("UNSET")];
    assert_eq!(mode(&unset, "shop", 80), Strict);
    let silent = [
        mesh("STRICT"),
        peer("ns", "shop", 1, ""),
        peer("w", "shop", 1, SELECTS),
    ];
    assert_eq!(mode(&silent, "shop", 80), Strict);
}

#[test]
fn of_several_peer_authentications_the_oldest_counts_and_the_others_do_not() {
    use MtlsMode::{Permissive, Strict};
    let rules = [
        peer("a-young", "shop", 3, "mtls: {mode: DISABLE}"),
        peer("old", "shop", 2, "mtls: {mode: STRICT}"),
    ];
    assert_eq!(mode(&rules, "shop", 80), Strict);
    // One that says nothing is still the oldest: the mesh's holds, not the younger one's.
    let rules = [
        peer("a-young", "shop", 3, "mtls: {mode: DISABLE}"),
        peer("old", "shop", 2, ""),
    ];
    assert_eq!(mode(&rules, "shop", 80), Permissive);
    let rules = [
        peer(
            "young",
            "shop",
            3,
            &format!("{SELECTS}, mtls: {{mode: DISABLE}}"),
        ),
        peer(
            "old",
            "shop",
            2,
            &format!("{SELECTS}, mtls: {{mode: STRICT}}"),
        ),
    ];
    assert_eq!(mode(&rules, "shop", 80), Strict);
}

#[test]
fn a_selector_in_the_root_namespace_selects_nothing() {
    use MtlsMode::{Permissive, Strict};
    let rule = peer(
        "w",
        "istio-system",
        1,
        &format!("{SELECTS}, mtls: {{mode: STRICT}}"),
    );
    for namespace in ["shop", "istio-system"] {
        assert_eq!(mode(std::slice::from_ref(&rule), namespace, 80), Permissive);
    }
    let rules = [
        rule,
        peer("mesh", "istio-system", 2, "mtls: {mode: STRICT}"),
    ];
    assert_eq!(mode(&rules, "istio-system", 80), Strict);
}

#[test]
fn a_port_of_the_workload_may_have_a_mode_of_its_own() {
    use MtlsMode::{Disable, Permissive, Strict};
    let rules = [
        peer("ns", "shop", 1, "mtls: {mode: STRICT}"),
        peer(
            "w",
            "shop",
            1,
            &format!(
                "{SELECTS}, portLevelMtls: {{8080: {{mode: DISABLE}}, 8081: {{mode: UNSET}}, 8082: {{mode: PERMISSIVE}}}}"
            ),
        ),
    ];
    assert_eq!(mode(&rules, "shop", 8080), Disable);
    assert_eq!(mode(&rules, "shop", 8081), Strict);
    assert_eq!(mode(&rules, "shop", 8082), Permissive);
    assert_eq!(mode(&rules, "shop", 80), Strict);
}

/// STRICT stands for what cannot be read: before what is older, and for everybody where nobody knows
/// whom it was for.
#[test]
fn a_peer_authentication_that_cannot_be_read_comes_before_all_others() {
    use MtlsMode::{Disable, Permissive, Strict};
    let of = |rest: &str, closed: &str| {
        let rules = [
            peer("old", "shop", 1, "mtls: {mode: DISABLE}"),
            peer("w", "shop", 1, &format!("{SELECTS}, {rest}")),
            closed.to_owned(),
        ];
        let mut objects: Vec<_> = lateen_api::parse("t", &rules.concat(), lateen_api::Mode::Strict)
            .objects
            .into_iter()
            .map(|one| one.object)
            .collect();
        for object in &mut objects {
            object.closed = object.meta.name == "closed";
        }
        let settings = Arc::new(MeshSettings::default());
        let snapshot = MeshSnapshot::build(objects.iter(), 1, settings, None);
        let mode = |app: &str| {
            let labels = [("app".to_owned(), app.to_owned())].into();
            snapshot.mtls_in("shop").of_workload(&labels).of_port([80])
        };
        [mode("a"), mode("b")]
    };
    let permissive = "mtls: {mode: PERMISSIVE}";
    assert_eq!(of(permissive, ""), [Permissive, Disable]);
    let of_all = peer("closed", "shop", 2, "mtls: {mode: STRICT}");
    assert_eq!(of(permissive, &of_all), [Strict, Strict]);
    let of_a = peer(
        "closed",
        "shop",
        2,
        &format!("{SELECTS}, mtls: {{mode: STRICT}}"),
    );
    assert_eq!(of(permissive, &of_a), [Strict, Disable]);
}
