//! VirtualServices that leave rules to those of other namespaces, through a gateway.

use lateen_testkit::echo::Echo;
use lateen_testkit::envoy::Plane;
use lateen_testkit::http::Call;

use crate::gateway::served;
use crate::requests::gateway_with;

const ROOT: &str = "
  - match: [{uri: {prefix: /team}, headers: {x-root: {exact: 'yes'}}}]
    name: root
    headers: {response: {set: {x-rule: '%ROUTE_NAME%'}}}
    timeout: 30s
    delegate: {name: rules, namespace: team}
  - match: [{uri: {prefix: /hidden}}]
    delegate: {name: hidden, namespace: team}
  - match: [{uri: {prefix: /missing}}]
    delegate: {name: nothing, namespace: team}
  - match: [{uri: {prefix: /same}}]
    delegate: {name: same}
  - match: [{uri: {prefix: /rest}}]
    route: [{destination: {host: reviews, subset: v1}}]";

fn team(port: u16) -> String {
    format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: app, namespace: team}}
spec: {{selector: {{app: app}}, ports: [{{name: http, port: 80}}]}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: app-v1, namespace: team}}
spec: {{address: 127.0.0.1, ports: {{http: {port}}}, labels: {{app: app}}}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: rules, namespace: team}}
spec:
  http:
  - match: [{{uri: {{prefix: /team/a}}}}]
    name: a
    route: [{{destination: {{host: app}}}}]
  - match: [{{uri: {{prefix: /other}}}}]
    name: conflicts
    directResponse: {{status: 418}}
  - match: [{{uri: {{exact: /team/own}}}}]
    headers: {{response: {{set: {{x-rule: own}}}}}}
    timeout: 60s
    route: [{{destination: {{host: app}}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: hidden, namespace: team}}
spec:
  exportTo: ['.']
  http: [{{route: [{{destination: {{host: app}}}}]}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: same, namespace: default}}
spec:
  http: [{{route: [{{destination: {{host: reviews, subset: v2}}}}]}}]
"
    )
}

async fn a_rule_is_left_to_another_virtual_service(plane: Plane) {
    let test = "a_rule_is_left_to_another_virtual_service";
    let Some((mesh, gateway, _reviews)) =
        gateway_with(plane, test, &[("delegate.test", ROOT)]).await
    else {
        return;
    };
    let app = Echo::start("app").await;
    mesh.apply(&team(app.port())).await;
    mesh.apply(&crate::gateway::rule(
        "later.test",
        "  - directResponse: {status: 200}",
    ))
    .await;
    mesh.distributed(1).await;
    served(&gateway, "later.test").await;
    let get = |path: &str| Call::get("delegate.test", path).header("x-root", "yes");
    for (path, status, name, rule) in [
        // The conditions of both hold, and what the delegate leaves open the root says.
        ("/team/a/b", 200, "app", "root-a"),
        ("/team/own", 200, "app", "own"),
        ("/team/c", 404, "", ""),
        ("/other", 404, "", ""),
        ("/rest", 200, "v1", ""),
        ("/same", 200, "v2", ""),
        // One that is not exported to the root's namespace, or is not there, leaves the rule out.
        ("/hidden", 404, "", ""),
        ("/missing", 404, "", ""),
    ] {
        let answer = gateway.send(&get(path)).await;
        let found = (answer.status, answer.name(), answer.header("x-rule"));
        let expect = (status, name.to_owned(), rule.to_owned());
        assert_eq!(found, expect, "{path}: {answer:?}");
    }
    assert_eq!(gateway.get("delegate.test", "/team/a").await.status, 404);
    assert_eq!(gateway.envoy.rejected().await, Default::default());
}

on_both!(a_rule_is_left_to_another_virtual_service);
