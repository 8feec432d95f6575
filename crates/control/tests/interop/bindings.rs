//! For whom rules are: hosts, gateways, ports, sources, exports; and how routes are called.

use lateen_testkit::envoy::Plane;
use lateen_testkit::http::Call;

use crate::gateway::served;
use crate::requests::gateway_with;

/// Each rule says which one it is.
fn say(matched: &str, name: &str) -> String {
    format!(
        "  - match: [{matched}]\n    directResponse: {{status: 200, body: {{string: {name}}}}}\n"
    )
}

const ELSEWHERE: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: from-other, namespace: other}
spec:
  hosts: [other-namespace.test]
  gateways: [default/web]
  http: [{directResponse: {status: 200, body: {string: other}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: unqualified, namespace: other}
spec:
  hosts: [unqualified.test]
  gateways: [web]
  http: [{directResponse: {status: 200}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: private, namespace: other}
spec:
  hosts: [private.test]
  gateways: [default/web]
  exportTo: ['.']
  http: [{directResponse: {status: 200}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: exported, namespace: other}
spec:
  hosts: [exported.test]
  gateways: [default/web]
  exportTo: [istio-system]
  http: [{directResponse: {status: 200, body: {string: exported}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: mesh-only, namespace: default}
spec:
  hosts: [mesh-only.test]
  http: [{directResponse: {status: 200}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: wild, namespace: default}
spec:
  hosts: ['*.wild.test', 10.11.12.13]
  gateways: [web]
  http: [{directResponse: {status: 200, body: {string: wild}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: narrow, namespace: default}
spec:
  hosts: [narrow.wild.test]
  gateways: [web]
  http: [{directResponse: {status: 200, body: {string: narrow}}}]
---
";

const ROUTES: &str = "
  - match: [{uri: {prefix: /old}}]
    redirect: {prefixRewrite: /new, redirectCode: 307}
  - match: [{uri: {exact: /bytes}}]
    directResponse: {status: 203, body: {bytes: AAECgP8=}}
  - match: [{uri: {exact: /named}, name: item, statPrefix: items}]
    name: rule
    headers: {response: {set: {x-name: '%ROUTE_NAME%'}}}
    route: [{destination: {host: reviews}}]
  - match: [{uri: {exact: /item}, name: item}]
    headers: {response: {set: {x-name: '%ROUTE_NAME%'}}}
    route: [{destination: {host: reviews}}]
  - name: rest
    headers: {response: {set: {x-name: '%ROUTE_NAME%'}}}
    route: [{destination: {host: reviews}}]";

async fn a_rule_counts_for_the_hosts_gateways_ports_and_sources_it_names(plane: Plane) {
    let test = "a_rule_counts_for_the_hosts_gateways_ports_and_sources_it_names";
    let matched = [
        say("{port: 81}", "wrong-port"),
        say("{uri: {prefix: /port}, port: 80}", "port"),
        say("{uri: {prefix: /gateway}, gateways: [mesh]}", "wrong-gateway"),
        // Sources are not asked for where gateways are named (fact 6).
        say("{uri: {prefix: /gateway}, gateways: [default/web], sourceNamespace: nowhere}", "gateway"),
        say("{uri: {prefix: /source}, sourceNamespace: default}", "wrong-namespace"),
        say("{uri: {prefix: /source}, sourceLabels: {istio: egress}}", "wrong-labels"),
        say(
            "{uri: {prefix: /source}, sourceNamespace: istio-system, sourceLabels: {istio: ingressgateway}}",
            "source",
        ),
        say("{uri: {prefix: /}}", "rest"),
    ]
    .concat();
    let hosts = [("match.test", matched.as_str()), ("routes.test", ROUTES)];
    let Some((mesh, gateway, _reviews)) = gateway_with(plane, test, &hosts).await else {
        return;
    };
    mesh.apply(ELSEWHERE).await;
    mesh.distributed(1).await;
    served(&gateway, "narrow.wild.test").await;
    served(&gateway, "exported.test").await;
    for (host, path, status, body) in [
        ("match.test", "/port", 200, "port"),
        ("match.test", "/gateway", 200, "gateway"),
        ("match.test", "/source", 200, "source"),
        ("match.test", "/", 200, "rest"),
        ("other-namespace.test", "/", 200, "other"),
        ("exported.test", "/", 200, "exported"),
        // A gateway without a namespace is looked for in the rule's own (fact 20).
        ("unqualified.test", "/", 404, ""),
        ("private.test", "/", 404, ""),
        ("mesh-only.test", "/", 404, ""),
        ("a.wild.test", "/", 200, "wild"),
        ("a.b.wild.test:8080", "/", 200, "wild"),
        ("wild.test", "/", 404, ""),
        ("narrow.wild.test", "/", 200, "narrow"),
        ("10.11.12.13", "/", 200, "wild"),
    ] {
        let answer = gateway.get(host, path).await;
        let found = (answer.status, answer.body.as_str());
        assert_eq!(found, (status, body), "{host}{path}: {answer:?}");
    }

    let moved = gateway.get("routes.test", "/old/a?q").await;
    let found = (moved.status, moved.header("location"));
    assert_eq!(found, (307, "http://routes.test/new/a?q".to_owned()));
    let bytes = gateway.get("routes.test", "/bytes").await;
    assert_eq!(
        (bytes.status, bytes.header("content-length")),
        (203, "5".to_owned()),
        "{bytes:?}"
    );
    assert_eq!(bytes.body, String::from_utf8_lossy(&[0, 1, 2, 0x80, 0xff]));
    for (path, name) in [("/named", "rule.item"), ("/item", ".item"), ("/", "rest")] {
        let answer = gateway.send(&Call::get("routes.test", path)).await;
        assert_eq!(answer.header("x-name"), name, "{path}: {answer:?}");
    }
    assert_eq!(gateway.envoy.rejected().await, Default::default());
}

on_both!(a_rule_counts_for_the_hosts_gateways_ports_and_sources_it_names);
