//! Values at the edge of what is allowed: what the API takes, the data planes must take too, since
//! one resource that a proxy rejects holds up all that is sent with it.

use lateen_api::{Mode, Object};
use lateen_testkit::envoy::Plane;
use lateen_testkit::eventually;
use lateen_testkit::http::Call;

use crate::gateway::{rule, served};
use crate::mesh::{GATEWAY, Gateway, Mesh, Reviews, object_path};
use crate::sidecar::{SIDECAR, Sidecar};

/// A route with one more part, in place of `PART`.
const ROUTES: &[&str] = &[
    "match: [{uri: {prefix: ''}}]",
    "match: [{uri: {exact: ''}}]",
    "match: [{uri: {regex: ''}}]",
    "match: [{uri: {regex: '*'}}]",
    "match: [{uri: {regex: '(unclosed'}}]",
    "match: [{uri: {regex: 'a(?=b)'}}]",
    r"match: [{uri: {regex: '(a)\1'}}]",
    "match: [{uri: {regex: '[a-z]{1,1001}'}}]",
    "match: [{uri: {regex: '((a{100}){100}){100}'}}]",
    "match: [{uri: {prefix: no-slash}}]",
    "match: [{uri: {exact: '/with space'}}]",
    "match: [{uri: {exact: '/with?query#fragment'}}]",
    "match: [{headers: {x: {exact: ''}}}]",
    "match: [{headers: {x: {prefix: ''}}}]",
    "match: [{headers: {x: {regex: ''}}}]",
    "match: [{headers: {'x y': {exact: a}}}]",
    "match: [{headers: {'': {exact: a}}}]",
    "match: [{headers: {X-Upper: {exact: a}}}]",
    "match: [{headers: {':path': {prefix: /a}}}]",
    "match: [{headers: {':status': {exact: '200'}}}]",
    "match: [{withoutHeaders: {x: {}}}]",
    "match: [{withoutHeaders: {x: {regex: ''}}}]",
    "match: [{queryParams: {'': {exact: a}}}]",
    "match: [{queryParams: {a: {exact: ''}}}]",
    "match: [{queryParams: {a: {prefix: ''}}}]",
    "match: [{queryParams: {a: {}}}]",
    "match: [{method: {prefix: ''}}]",
    "match: [{authority: {regex: ''}}]",
    "match: [{scheme: {exact: ''}}]",
    "match: [{port: 0}]",
    "match: [{}]",
    "match: []",
    "headers: {request: {set: {x: '100%'}}}",
    "headers: {request: {add: {x: '%REQ(x)%'}}}",
    "headers: {request: {add: {x: '%REQ(%'}}}",
    "headers: {response: {set: {x: '50% off'}}}",
    "headers: {request: {set: {x: ''}}}",
    "headers: {request: {set: {'': y}}}",
    "headers: {request: {set: {'x y': z}}}",
    "headers: {request: {set: {':path': /x}}}",
    "headers: {request: {set: {':method': PUT}}}",
    "headers: {request: {remove: [':path']}}",
    "headers: {request: {remove: [host]}}",
    "headers: {request: {remove: ['']}}",
    "headers: {response: {set: {':status': '201'}}}",
    r#"headers: {response: {set: {x: "a\nb"}}}"#,
    r#"headers: {response: {set: {x: "\u00e9\u4e16"}}}"#,
    "headers: {request: {set: {Host: 'a b'}}}",
    "rewrite: {uri: ''}",
    "rewrite: {uri: no-slash}",
    "rewrite: {authority: 'a b'}",
    r"rewrite: {uriRegexRewrite: {match: '(a)', rewrite: '\9'}}",
    r"rewrite: {uriRegexRewrite: {match: '(a)', rewrite: '\'}}",
    "rewrite: {uriRegexRewrite: {match: '(a', rewrite: b}}",
    "rewrite: {uriRegexRewrite: {match: '', rewrite: b}}",
    "timeout: 0s",
    "timeout: 0.0000001s",
    "timeout: 1000000h",
    "retries: {attempts: 0}",
    "retries: {attempts: 2000000000, perTryTimeout: 1ms}",
    "retries: {attempts: 1, retryOn: '503, reset'}",
    "retries: {attempts: 1, retryOn: 'reset,503,unavailable'}",
    "retries: {attempts: 1, backoff: 0s}",
    "retries: {attempts: 1, backoff: 2h}",
    "name: ''",
];

/// Routes without a destination.
const ACTIONS: &[&str] = &[
    "redirect: {uri: ''}",
    "redirect: {uri: no-slash}",
    "redirect: {authority: 'a b'}",
    "redirect: {redirectCode: 300, uri: /}",
    "redirect: {redirectCode: 308, scheme: ftp}",
    "redirect: {port: 0}",
    "redirect: {port: 99999}",
    "redirect: {derivePort: FROM_PROTOCOL_DEFAULT, authority: x}",
    "directResponse: {status: 99}",
    "directResponse: {status: 101}",
    "directResponse: {status: 204, body: {string: not allowed}}",
    "directResponse: {status: 600}",
    "directResponse: {status: 200, body: {string: '100%'}}",
    "directResponse: {status: 200, body: {bytes: aGVsbG8=}}",
    "directResponse: {status: 200, body: {bytes: '***'}}",
    "directResponse: {status: 200, body: {}}",
];

/// Hosts of a rule.
const HOSTS: &[&str] = &[
    "['*']",
    "['*.a.test']",
    "['*a.test']",
    "['a.*.test']",
    "[A.Test, a.test]",
    "[a.test, a.test]",
    "['a.test.']",
    "['a.test:80']",
    "[10.0.0.1]",
    "['::1']",
    "['2001:db8::1']",
    "[reviews, reviews.default.svc.cluster.local]",
    "[Reviews]",
];

/// `spec` of a DestinationRule for `reviews`.
const POLICIES: &[&str] = &[
    "trafficPolicy: {connectionPool: {tcp: {connectTimeout: 0s}}}",
    "trafficPolicy: {connectionPool: {tcp: {connectTimeout: 1ns}}}",
    "trafficPolicy: {connectionPool: {tcp: {maxConnections: -1}}}",
    "trafficPolicy: {connectionPool: {tcp: {maxConnections: 0}}}",
    "trafficPolicy: {connectionPool: {http: {maxRequestsPerConnection: -1}}}",
    "trafficPolicy: {connectionPool: {http: {maxRetries: -5, http2MaxRequests: 2147483647}}}",
    "trafficPolicy: {connectionPool: {http: {idleTimeout: 0s}}}",
    "trafficPolicy: {connectionPool: {http: {idleTimeout: 10000000h}}}",
    "trafficPolicy: {connectionPool: {http: {h2UpgradePolicy: UPGRADE}}}",
    "trafficPolicy: {loadBalancer: {simple: PASSTHROUGH}}",
    "trafficPolicy: {loadBalancer: {simple: RANDOM}}",
    "trafficPolicy: {loadBalancer: {simple: LEAST_CONN}}",
    "subsets: [{name: v1}]",
    "subsets: [{name: v1, labels: {}}, {name: v1, labels: {version: v2}}]",
    "subsets: [{name: 'a|b', labels: {version: v1}}]",
    "subsets: [{name: 'Upper_Case.dot', labels: {version: v1}}]",
    "subsets: [{name: v1, labels: {version: v1}, trafficPolicy: {loadBalancer: {simple: PASSTHROUGH}}}]",
];

/// `spec` of a ServiceEntry.
const ENTRIES: &[&str] = &[
    "hosts: [e.test]\n  resolution: STATIC\n  ports: [{number: 80, name: http, protocol: HTTP}]\n  endpoints: [{address: not-an-ip}]",
    "hosts: [e.test]\n  resolution: STATIC\n  ports: [{number: 80, name: http, protocol: HTTP}]\n  endpoints: [{address: '::1'}]",
    "hosts: [e.test]\n  resolution: STATIC\n  ports: [{number: 80, name: http, protocol: HTTP}]\n  endpoints: [{address: 'unix:///tmp/x.sock'}]",
    "hosts: [e.test]\n  resolution: STATIC\n  ports: [{number: 80, name: http, protocol: HTTP}]\n  endpoints: [{address: 10.0.0.1, ports: {http: 0}}]",
    "hosts: [e.test]\n  resolution: STATIC\n  ports: [{number: 80, name: http, protocol: HTTP}]\n  endpoints: [{address: 10.0.0.1, weight: 0}, {address: 10.0.0.2, weight: 4000000000}]",
    "hosts: [e.test]\n  resolution: STATIC\n  ports: [{number: 80, name: http, protocol: HTTP}]\n  endpoints: [{address: 10.0.0.1}, {address: 10.0.0.1}]",
    "hosts: [e.test]\n  resolution: STATIC\n  ports: [{number: 80, name: http, protocol: HTTP}]\n  endpoints: [{address: 10.0.0.1, locality: a/b/c/d}, {address: 10.0.0.2, locality: a}]",
    "hosts: [e.test]\n  resolution: STATIC\n  ports: [{number: 80, name: http, protocol: HTTP}]",
    "hosts: [e.test]\n  resolution: DNS\n  ports: [{number: 80, name: http, protocol: HTTP}]\n  endpoints: [{address: 10.0.0.1}, {address: e1.test}]",
    "hosts: ['*.e.test']\n  resolution: DNS\n  ports: [{number: 80, name: http, protocol: HTTP}]",
    "hosts: ['*.e.test']\n  resolution: NONE\n  ports: [{number: 80, name: http, protocol: HTTP}]",
    "hosts: [e.test]\n  resolution: DNS_ROUND_ROBIN\n  ports: [{number: 80, name: http, protocol: HTTP}]\n  endpoints: [{address: a.test}, {address: b.test}]",
    "hosts: [e.test]\n  resolution: DNS_ROUND_ROBIN\n  ports: [{number: 80, name: http, protocol: HTTP}]",
    "hosts: [e.test, f.test]\n  addresses: [10.9.9.9, 10.9.9.0/24]\n  resolution: NONE\n  ports: [{number: 80, name: http, protocol: HTTP}, {number: 443, name: tls, protocol: TLS}]",
    "hosts: [e.test]\n  resolution: STATIC\n  ports: [{number: 80, name: a, protocol: HTTP}, {number: 80, name: b, protocol: TCP}]\n  endpoints: [{address: 10.0.0.1}]",
    "hosts: [E.Test, e.test]\n  resolution: NONE\n  ports: [{number: 80, name: http, protocol: HTTP}]",
    "hosts: [reviews.default.svc.cluster.local]\n  resolution: NONE\n  ports: [{number: 80, name: http, protocol: HTTP}]",
    "hosts: [e.test]\n  addresses: [10.9.9.9]\n  resolution: STATIC\n  ports: [{number: 3306, name: tcp, protocol: MYSQL}, {number: 53, name: udp, protocol: UDP}]\n  endpoints: [{address: 10.0.0.1}]",
];

/// `spec` of a WorkloadEntry that the service `reviews` selects.
const WORKLOADS: &[&str] = &[
    "address: not-an-ip\n  labels: {app: reviews}",
    "address: 'fe80::1%eth0'\n  labels: {app: reviews}",
    "address: '::ffff:10.0.0.1'\n  labels: {app: reviews}",
    "address: 'unix:///tmp/x'\n  labels: {app: reviews}",
    "address: 10.0.0.1\n  ports: {http: 70000}\n  labels: {app: reviews}",
    "address: 10.0.0.1\n  weight: 1000000\n  labels: {app: reviews, version: v1}",
    "address: 10.0.0.300\n  labels: {app: reviews}",
    "address: '0.0.0.0'\n  labels: {app: reviews}",
    "labels: {app: reviews}",
];

/// `servers` of a Gateway.
const SERVERS: &[&str] = &[
    "[{port: {number: 80, name: http, protocol: HTTP}, hosts: [A.test, a.test]}]",
    "[{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*', '*']}]",
    "[{port: {number: 80, name: http, protocol: HTTP}, hosts: ['default/a.test', '*/a.test', './a.test']}]",
    "[{port: {number: 80, name: http, protocol: HTTP}, hosts: ['a.test']}, {port: {number: 80, name: tcp, protocol: TCP}, hosts: ['*']}]",
    "[{port: {number: 80, name: http, protocol: HTTP}, bind: not-an-ip, hosts: ['*']}]",
    "[{port: {number: 80, name: http, protocol: HTTP}, bind: 'unix:///tmp/x', hosts: ['*']}]",
    "[{port: {number: 9000, name: mongo, protocol: MONGO}, hosts: ['*']}]",
    "[{port: {number: 9000, name: grpc, protocol: GRPC}, hosts: ['*']}]",
    "[{port: {number: 9000, name: tls, protocol: TLS}, hosts: ['*'], tls: {mode: PASSTHROUGH}}]",
];

fn documents() -> Vec<String> {
    let object = |kind: &str, spec: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: {kind}\n\
             metadata: {{name: edge, namespace: default}}\nspec:\n  {spec}\n"
        )
    };
    let mut all = Vec::new();
    for part in ROUTES {
        let http = format!(
            "hosts: [reviews, edge.test]\n  gateways: [mesh, web]\n  http:\n  - {part}\n    \
             route: [{{destination: {{host: reviews}}}}]"
        );
        all.push(object("VirtualService", &http));
    }
    for action in ACTIONS {
        let http = format!("hosts: [edge.test]\n  gateways: [mesh, web]\n  http:\n  - {action}");
        all.push(object("VirtualService", &http));
    }
    for hosts in HOSTS {
        let route = "http:\n  - route: [{destination: {host: reviews}}]";
        let spec = format!("hosts: {hosts}\n  gateways: [mesh, web]\n  {route}");
        all.push(object("VirtualService", &spec));
    }
    for policy in POLICIES {
        let spec = format!("host: reviews\n  {policy}");
        all.push(object("DestinationRule", &spec));
    }
    all.extend(ENTRIES.iter().map(|spec| object("ServiceEntry", spec)));
    all.extend(WORKLOADS.iter().map(|spec| object("WorkloadEntry", spec)));
    for servers in SERVERS {
        let spec = format!("selector: {{istio: ingressgateway}}\n  servers: {servers}");
        all.push(object("Gateway", &spec));
    }
    all
}

/// Sends a document to the API; whether it was taken.
async fn taken(mesh: &Mesh, yaml: &str) -> Option<Object> {
    let parsed = lateen_api::parse("edge", yaml, Mode::AllowUnknown);
    let object = parsed.objects.into_iter().next()?.object;
    let path = object_path(&object);
    let (collection, _) = path.rsplit_once('/').unwrap();
    let call = Call::get("127.0.0.1", collection).method("POST");
    let call = call.header("content-type", "application/yaml");
    let answer = call.body(yaml.to_owned()).send(mesh.api).await.unwrap();
    assert!(answer.status < 500, "{yaml}: {answer:?}");
    (answer.status == 201).then_some(object)
}

/// What the proxies said against the last push; empty when they took it.
async fn objections(mesh: &Mesh) -> Vec<String> {
    let mut found = Vec::new();
    for proxy in [GATEWAY, SIDECAR] {
        let status = mesh.status_of(proxy).await;
        for (kind, of_type) in status["types"].as_object().unwrap() {
            if let Some(text) = of_type["nack"]["message"].as_str() {
                found.push(format!("{proxy} {kind}: {text}"));
            }
        }
    }
    found
}

on_both!(
    what_the_api_takes_is_taken_by_the_data_plane,
    a_rejected_change_is_shown_and_disturbs_nothing,
);

async fn what_the_api_takes_is_taken_by_the_data_plane(plane: Plane) {
    let mesh = Mesh::start().await;
    let test = "what_the_api_takes_is_taken_by_the_data_plane";
    let Some(_gateway) = Gateway::start(plane, &mesh, test, true).await else {
        return;
    };
    let Some(_sidecar) = Sidecar::start(plane, &mesh, test).await else {
        return;
    };
    let _reviews = Reviews::start(&mesh).await;
    mesh.distributed(2).await;
    let (mut taken_count, mut wrong) = (0, Vec::new());
    for yaml in documents() {
        let Some(object) = taken(&mesh, &yaml).await else {
            continue;
        };
        taken_count += 1;
        mesh.pushed().await;
        let said = objections(&mesh).await;
        if !said.is_empty() {
            wrong.push(format!("{yaml}{}", said.join("\n")));
        }
        let call = Call::get("127.0.0.1", &object_path(&object)).method("DELETE");
        assert_eq!(call.send(mesh.api).await.unwrap().status, 200);
        mesh.pushed().await;
    }
    assert!(taken_count > 60, "{taken_count} of {}", documents().len());
    assert!(
        wrong.is_empty(),
        "{} refused:\n{}",
        wrong.len(),
        wrong.join("\n\n")
    );
}

/// No API can know all operators of all versions of Envoy, so a proxy may still reject a change.
async fn a_rejected_change_is_shown_and_disturbs_nothing(plane: Plane) {
    let mesh = Mesh::start().await;
    let test = "a_rejected_change_is_shown_and_disturbs_nothing";
    let Some(gateway) = Gateway::start(plane, &mesh, test, true).await else {
        return;
    };
    let _reviews = Reviews::start(&mesh).await;
    let route = "  - route: [{destination: {host: reviews, subset: v1}}]";
    mesh.apply(&rule("app.test", route)).await;
    mesh.distributed(1).await;
    served(&gateway, "app.test").await;

    let unknown =
        format!("  - headers: {{request: {{set: {{x: '%NO_SUCH_OPERATOR%'}}}}}}\n  {route}")
            .replace("    - route", "    route");
    mesh.apply(&rule("wrong.test", &unknown)).await;
    mesh.pushed().await;
    eventually("the reason is shown", async || {
        let status = mesh.status_of(GATEWAY).await;
        let hosts = &status["types"]["vhds"];
        let reason = hosts["nack"]["message"].as_str().unwrap_or_default();
        match hosts["state"] == "ERROR" && reason.contains("NO_SUCH_OPERATOR") {
            true => Ok(()),
            false => Err(format!("{status:#}")),
        }
    })
    .await;
    for _ in 0..20 {
        assert_eq!(gateway.get("app.test", "/").await.name(), "v1");
    }

    // As soon as it is right, everything is in force, with what was held up.
    mesh.apply(&rule("app.test", &route.replace("v1", "v2")))
        .await;
    mesh.apply(&rule("wrong.test", &route.replace("v1", "v3")))
        .await;
    mesh.distributed(1).await;
    mesh.synced(GATEWAY).await;
    for (host, version) in [("app.test", "v2"), ("wrong.test", "v3")] {
        eventually(host, async || match gateway.get(host, "/").await.name() {
            name if name == version => Ok(()),
            name => Err(name),
        })
        .await;
    }
}
