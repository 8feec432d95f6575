//! VirtualServices to routes: matching, weights, order, conflicts, gateways.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests stop at what is not as expected"
)]

mod support;

use expect_test::{Expect, expect};
use support::*;

/// The routes a sidecar has for `domain` under the given documents.
fn check(documents: &str, domain: &str, expect: Expect) {
    let snapshot = snapshot(documents);
    let tables = tables(&snapshot, &sidecar());
    expect.assert_eq(&routes(&virtual_host(&tables[0], domain)));
}

fn reviews(http: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: reviews, namespace: default}}\n\
         spec:\n  hosts: [reviews]\n  http:\n{http}"
    )
}

#[test]
fn a_service_without_rules_has_the_default_route() {
    check(
        "",
        "reviews:9080",
        expect![[r#"
            /* -> outbound|9080||reviews.default.svc.cluster.local
        "#]],
    );
}

#[test]
fn a_service_is_reached_under_all_its_names_and_a_plain_name_means_port_80() {
    let snapshot = snapshot("");
    let table = &tables(&snapshot, &sidecar())[0];
    for name in [
        "reviews",
        "reviews.default",
        "reviews.default.svc",
        "reviews.default.svc.cluster.local",
    ] {
        virtual_host(table, &format!("{name}:9080"));
        assert!(
            !domains(table).contains(&name.to_string()),
            "{name} without a port is port 80"
        );
    }
    // A service of another namespace has no short name here.
    virtual_host(table, "istio-ingressgateway.istio-system:80");
    virtual_host(table, "istio-ingressgateway.istio-system");
    assert!(!domains(table).contains(&"istio-ingressgateway:80".to_string()));
}

#[test]
fn hosts_nobody_knows_are_answered_502() {
    check(
        "",
        "*",
        expect![[r#"
            /* -> answer 502
        "#]],
    );
}

#[test]
fn the_canary_of_the_user_goes_by_header_then_by_weight() {
    let rule = reviews(
        r#"
  - match: [{headers: {end-user: {exact: jason}}}]
    route: [{destination: {host: reviews, subset: v2}, weight: 100}]
  - route:
    - {destination: {host: reviews, subset: v1}, weight: 70}
    - {destination: {host: reviews, subset: v3}, weight: 30}
"#,
    );
    check(
        &rule,
        "reviews:9080",
        expect![[r#"
            /* end-user=jason -> outbound|9080|v2|reviews.default.svc.cluster.local
            /* -> outbound|9080|v1|reviews.default.svc.cluster.local:70 outbound|9080|v3|reviews.default.svc.cluster.local:30
        "#]],
    );
}

#[test]
fn every_kind_of_match_is_translated() {
    let rule = reviews(
        r#"
  - match:
    - uri: {exact: /a}
      method: {exact: GET}
    - uri: {prefix: /b}
      ignoreUriCase: true
      scheme: {exact: https}
      authority: {prefix: api.}
    - uri: {regex: "/c/[0-9]+"}
      headers: {x-any: {}, x-star: {regex: "*"}, cookie: {regex: ".*user=x.*"}}
      withoutHeaders: {x-no: {exact: "1"}}
      queryParams: {q: {exact: "1"}}
    route: [{destination: {host: ratings, port: {number: 9090}}}]
"#,
    );
    check(
        &rule,
        "reviews:9080",
        expect![[r#"
            =/a :method=GET -> outbound|9090||ratings.default.svc.cluster.local
            /b* nocase :authority=api.* :scheme=https -> outbound|9090||ratings.default.svc.cluster.local
            ~/c/[0-9]+ cookie~.*user=x.* x-any x-star !x-no=1 ?q -> outbound|9090||ratings.default.svc.cluster.local
        "#]],
    );
}

#[test]
fn nothing_follows_a_catch_all() {
    let rule = reviews(
        r#"
  - match: [{uri: {prefix: /}}]
    route: [{destination: {host: reviews, subset: v1}}]
  - match: [{uri: {prefix: /never}}]
    route: [{destination: {host: reviews, subset: v2}}]
"#,
    );
    check(
        &rule,
        "reviews:9080",
        expect![[r#"
            /* -> outbound|9080|v1|reviews.default.svc.cluster.local
        "#]],
    );
}

#[test]
fn a_zero_weight_member_takes_nothing_and_the_only_destination_takes_all() {
    let rule = reviews(
        r#"
  - match: [{uri: {prefix: /one}}]
    route: [{destination: {host: reviews, subset: v1}, weight: 0}]
  - route:
    - {destination: {host: reviews, subset: v1}, weight: 1}
    - {destination: {host: reviews, subset: v2}, weight: 0}
    - {destination: {host: reviews, subset: v3}, weight: 1}
"#,
    );
    check(
        &rule,
        "reviews:9080",
        expect![[r#"
            /one* -> outbound|9080|v1|reviews.default.svc.cluster.local
            /* -> outbound|9080|v1|reviews.default.svc.cluster.local:1 outbound|9080|v3|reviews.default.svc.cluster.local:1
        "#]],
    );
}

#[test]
fn matches_for_other_sources_ports_and_gateways_are_left_out() {
    let rule = reviews(
        r#"
  - match: [{sourceLabels: {app: other}}]
    route: [{destination: {host: reviews, subset: v1}}]
  - match: [{sourceLabels: {app: reviews}, sourceNamespace: default, port: 9080}]
    route: [{destination: {host: reviews, subset: v2}}]
  - match: [{port: 1234}]
    route: [{destination: {host: reviews, subset: v3}}]
  - match: [{gateways: [some-gateway], uri: {prefix: /gw}}]
    route: [{destination: {host: reviews, subset: v4}}]
  - match: [{gateways: [mesh], sourceLabels: {app: other}, uri: {prefix: /mesh}}]
    route: [{destination: {host: reviews, subset: v5}}]
"#,
    );
    check(
        &rule,
        "reviews:9080",
        expect![[r#"
            /* -> outbound|9080|v2|reviews.default.svc.cluster.local
        "#]],
    );
    let late = rule.replace(
        "sourceLabels: {app: reviews}, ",
        "sourceLabels: {app: reviews}, uri: {prefix: /x}, ",
    );
    check(
        &late,
        "reviews:9080",
        expect![[r#"
            /x* -> outbound|9080|v2|reviews.default.svc.cluster.local
            /mesh* -> outbound|9080|v5|reviews.default.svc.cluster.local
        "#]],
    );
}

#[test]
fn of_two_rules_for_a_mesh_host_the_older_wins() {
    let rule = |name: &str, time: &str, subset: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\n\
             metadata: {{name: {name}, namespace: default, creationTimestamp: \"{time}\"}}\n\
             spec: {{hosts: [reviews], http: [{{route: [{{destination: {{host: reviews, subset: {subset}}}}}]}}]}}\n---\n"
        )
    };
    let both =
        rule("a", "2026-01-02T00:00:00Z", "young") + &rule("b", "2026-01-01T00:00:00Z", "old");
    check(
        &both,
        "reviews:9080",
        expect![[r#"
            /* -> outbound|9080|old|reviews.default.svc.cluster.local
        "#]],
    );
}

#[test]
fn a_rule_for_a_host_without_a_service_is_served_on_port_80() {
    let rule = reviews("  - directResponse: {status: 418}\n")
        .replace("hosts: [reviews]", "hosts: [api.example.com]");
    for domain in ["api.example.com", "api.example.com:80"] {
        check(
            &rule,
            domain,
            expect![[r#"
            /* -> answer 418
        "#]],
        );
    }
}

const GATEWAY: &str = r#"
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: shop, namespace: default}
spec:
  selector: {istio: ingressgateway}
  servers:
  - {port: {number: 80, name: http, protocol: HTTP}, hosts: ["*.example.com"]}
---
"#;

#[test]
fn a_gateway_port_is_the_target_port_of_its_service_and_answers_404_without_rules() {
    let snapshot = snapshot(GATEWAY);
    let made = listeners(&snapshot, &gateway());
    assert_eq!(
        made.iter().map(|l| l.name.as_str()).collect::<Vec<_>>(),
        ["127.0.0.1_8080"]
    );
    let tables = tables(&snapshot, &gateway());
    assert_eq!(tables[0].name, "http.8080");
    assert_eq!(routes(&virtual_host(&tables[0], "*")), "");
}

#[test]
fn rules_bind_to_a_gateway_by_its_name_and_hosts_are_intersected_and_merged() {
    let rule = |name: &str, gateway: &str, host: &str, path: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}, namespace: default}}\n\
             spec: {{hosts: [\"{host}\"], gateways: [{gateway}], http: [{{match: [{{uri: {{prefix: {path}}}}}], \
             route: [{{destination: {{host: reviews}}}}]}}]}}\n---\n"
        )
    };
    let documents = [
        GATEWAY.to_string(),
        rule("a", "shop", "a.example.com", "/"),
        rule("b", "default/shop", "a.example.com", "/b"),
        rule("c", "other/shop", "c.example.com", "/c"),
        rule("d", "shop", "*", "/d"),
        rule("e", "shop", "e.other.org", "/e"),
    ]
    .concat();
    let snapshot = snapshot(&documents);
    let table = &tables(&snapshot, &gateway())[0];
    assert_eq!(domains(table), ["*.example.com", "a.example.com"]);
    assert!(table.ignore_port_in_host_matching);
    expect![[r#"
        /b* -> outbound|9080||reviews.default.svc.cluster.local
        /* -> outbound|9080||reviews.default.svc.cluster.local
    "#]]
    .assert_eq(&routes(&virtual_host(table, "a.example.com")));
    expect![[r#"
        /d* -> outbound|9080||reviews.default.svc.cluster.local
    "#]]
    .assert_eq(&routes(&virtual_host(table, "*.example.com")));
}

#[test]
fn an_https_redirect_server_needs_no_rule() {
    let document = GATEWAY.replace(
        "hosts: [\"*.example.com\"]",
        "hosts: [\"*.example.com\"], tls: {httpsRedirect: true}",
    );
    let snapshot = snapshot(&document);
    let host = virtual_host(&tables(&snapshot, &gateway())[0], "*.example.com");
    assert_eq!(host.require_tls, 2, "ALL");
}
