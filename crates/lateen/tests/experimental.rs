//! `lateen x`: what is in force for a workload.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests stop at what is not as expected"
)]

mod support;

use expect_test::{Expect, expect};
use serde_json::{Value, json};
use support::{Mesh, lateen};

/// A listener with these RBAC filters, in Envoy's dump.
fn dump(http: &[Value], network: &[Value]) -> String {
    let filter = |kind: &str, config: &Value| {
        let mut config = config.clone();
        let url = format!("type.googleapis.com/envoy.extensions.filters.{kind}.rbac.v3.RBAC");
        config["@type"] = json!(url);
        json!({"name": format!("envoy.filters.{kind}.rbac"), "typed_config": config})
    };
    let http: Vec<Value> = http.iter().map(|config| filter("http", config)).collect();
    let mut filters: Vec<Value> = network.iter().map(|one| filter("network", one)).collect();
    filters.push(json!({
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {"http_filters": http},
    }));
    let listener = json!({"name": "virtualInbound", "filter_chains": [{"filters": filters}]});
    json!({"configs": [{
        "@type": "type.googleapis.com/envoy.admin.v3.ListenersConfigDump",
        "dynamic_listeners": [{"active_state": {"listener": listener}}],
    }]})
    .to_string()
}

fn rules(names: &[&str]) -> Value {
    let policies = names.iter().map(|name| ((*name).to_owned(), json!({})));
    Value::Object(policies.collect())
}

fn check(dump: &str, arguments: &[&str], expect: Expect) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("dump.json");
    std::fs::write(&file, dump).unwrap();
    let output = lateen()
        .args(["x", "authz", "check"])
        .args(arguments)
        .arg("--file")
        .arg(file)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    expect.assert_eq(&String::from_utf8(output.stdout).unwrap());
}

#[test]
fn authz_check_lists_the_policies_a_proxy_has() {
    let custom = "istio-ext-authz-mine-ns[default]-policy[ask]-rule[0]";
    let allowed = [
        "ns[default]-policy[a]-rule[0]",
        "ns[default]-policy[a]-rule[1]",
    ];
    let denied = ["ns[istio-system]-policy[no]-rule[0]"];
    let dump = dump(
        &[
            json!({"shadow_rules": {"action": "DENY", "policies": rules(&[custom])}}),
            json!({"rules": {"action": "DENY", "policies": rules(&denied)}}),
            json!({
                "rules": {"policies": rules(&allowed)},
                "shadow_rules": {"policies": rules(&["ns[default]-policy[dry]-rule[0]"])},
            }),
        ],
        &[json!({"rules": {"action": "DENY", "policies": rules(&denied)}})],
    );
    check(
        &dump,
        &[],
        expect![[r#"
            ACTION              AuthorizationPolicy     RULES
            CUSTOM              ask.default             1
            DENY                no.istio-system         1
            ALLOW               a.default               2
            ALLOW (dry run)     dry.default             1
        "#]],
    );
}

#[test]
fn an_allow_filter_without_rules_is_shown_as_istioctl_does() {
    let dump = dump(&[json!({"rules": {}})], &[]);
    check(
        &dump,
        &[],
        expect![[r#"
            ACTION     AuthorizationPolicy           RULES
            ALLOW      _anonymous_match_nothing_     1
        "#]],
    );
}

#[test]
fn describe_tells_what_holds_for_a_workload() {
    let mesh = Mesh::demo(&[]);
    let (good, said) = mesh.apply(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {name: viewers, namespace: default}\n\
         spec: {selector: {matchLabels: {app: reviews}}, rules: [{to: [{operation: {methods: [GET]}}]}]}\n",
    );
    assert!(good, "{said}");
    let text = mesh.ok(&["x", "describe", "reviews-v1"]);
    for part in [
        "Workload: reviews-v1.default",
        "Service: reviews.default.svc.cluster.local",
        "ALLOW viewers.default (1 rule)",
        "9080/HTTP",
        "Workload mTLS mode: PERMISSIVE",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let text = mesh.ok(&["experimental", "describe", "ratings-v1.default"]);
    assert!(text.contains("No AuthorizationPolicy applies"), "{text}");
    let json: Value =
        serde_json::from_str(&mesh.ok(&["x", "describe", "reviews-v1", "-o", "json"])).unwrap();
    assert_eq!(json["authorizationPolicies"][0]["name"], "viewers.default");
    let refused = mesh.run(&["x", "describe", "nobody"]);
    assert!(!refused.status.success());
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("there is no workload \"nobody\""), "{said}");
}

#[test]
fn describe_tells_what_holds_for_a_service() {
    let mesh = Mesh::demo(&[]);
    let (good, said) = mesh.apply(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {name: viewers, namespace: default}\n\
         spec: {selector: {matchLabels: {version: v2}}, rules: [{to: [{operation: {methods: [GET]}}]}]}\n---\n\
         apiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
         metadata: {name: parts, namespace: default}\n\
         spec: {host: reviews, trafficPolicy: {loadBalancer: {simple: RANDOM}}, \
         subsets: [{name: second, labels: {version: v2}}, {name: none, labels: {version: v9}}]}\n---\n\
         apiVersion: networking.istio.io/v1\nkind: VirtualService\n\
         metadata: {name: parts, namespace: default}\n\
         spec: {hosts: [reviews], http: [{match: [{uri: {prefix: /x}}], timeout: 1s, route: \
         [{destination: {host: reviews, subset: second}, weight: 3}, {destination: {host: reviews}, weight: 1}]}]}\n",
    );
    assert!(good, "{said}");
    let text = mesh.ok(&["x", "describe", "service", "reviews"]);
    for part in [
        "Service: reviews.default.svc.cluster.local\n",
        "   Port: http 9080/HTTP targets",
        "mTLS PERMISSIVE\n",
        "   reviews-v1.default ",
        "DestinationRule: parts.default for reviews.default.svc.cluster.local\n",
        "   loadBalancer: {\"simple\":\"RANDOM\"}\n",
        "   Subset second: 1 workload\n",
        "   Subset none: no workload: requests to it fail\n",
        "VirtualService: parts.default (gateways: mesh)\n",
        "   http[0] to reviews second 75%, reviews 25% with timeout\n",
        "      if {\"uri\":{\"prefix\":\"/x\"}}\n",
        "   ALLOW viewers.default (1 rule) at reviews-v2.default\n",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!text.contains("Exposed by"), "{text}");
    // The hosts of a gateway's rule are no services.
    assert!(!text.contains("VirtualService: bookinfo"), "{text}");

    let text = mesh.ok(&["x", "describe", "svc", "productpage.default"]);
    assert!(
        text.contains(
            "Exposed by Gateway: default/bookinfo-gateway (VirtualService bookinfo.default)\n"
        ),
        "{text}"
    );
    assert!(text.contains("No AuthorizationPolicy applies"), "{text}");
    let json = mesh.ok(&["x", "describe", "service", "reviews", "-o", "json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["workloads"].as_array().unwrap().len(), 3);

    let refused = mesh.run(&["x", "describe", "service", "nobody"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success());
    assert!(said.contains("there is no service \"nobody\""), "{said}");
    let refused = mesh.run(&["x", "describe", "gateway", "reviews"]);
    assert_eq!(refused.status.code(), Some(64));
}
