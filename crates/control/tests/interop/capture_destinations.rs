//! Where captured connections go when it is not an endpoint that the mesh chose: where the client
//! was going, or where the mesh thinks it is going when nobody says what is spoken.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use lateen_testkit::echo::Echo;
use lateen_testkit::settles;

use crate::capture::{Scene, connect, get, hears, start};

in_namespaces!(
    passthrough_goes_where_the_client_was_going_whatever_endpoints_and_subsets_say,
    an_undeclared_server_is_heard_when_the_detection_time_is_over,
    http_to_one_workload_of_a_headless_service_reaches_that_one,
    a_pod_is_captured_with_the_ports_that_it_names,
);

/// Its address is a real one, of a workload that is none of its endpoints; ports as in the Service
/// that its author had, and one for TCP.
const PRODUCT: &str = "
apiVersion: v1
kind: Service
metadata: {name: product-service, namespace: default}
spec:
  clusterIP: ADDRESS
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp, port: 9000, targetPort: 8081}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: product-service, namespace: default}
spec:
  hosts: [product-service]
  http:
  - match: [{uri: {prefix: /v2}}]
    route: [{destination: {host: product-service, subset: v2}}]
  - route: [{destination: {host: product-service}}]
---
";

async fn passthrough_goes_where_the_client_was_going_whatever_endpoints_and_subsets_say(
    scene: Scene,
) {
    let document = include_str!(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../api/tests/user-documents/36-destinationrule-product-service.yaml"
    ));
    let (http, tcp) = (scene.outside.at(80), scene.outside.at(9000));
    let answered_by = async |expected: &str, path: &str| {
        let what = format!("{expected} answers for {path}");
        settles(&what, async || {
            let answer = get(&scene.front, http, "product-service", path).await?;
            match answer.name() == expected {
                true => Ok(()),
                false => Err(format!("{answer:?}")),
            }
        })
        .await;
    };
    let service = PRODUCT.replace("ADDRESS", &scene.outside.address.to_string());
    scene.mesh.apply(&service).await;
    scene.mesh.distributed(2).await;
    // Without the rule an endpoint answers.
    answered_by("web", "/").await;
    settles("TCP goes to the endpoint", async || {
        hears(&mut connect(&scene.front, tcp)?, b"database\n").await
    })
    .await;

    scene.mesh.apply(document).await;
    scene.mesh.distributed(2).await;
    answered_by("outside", "/").await;
    // No workload has the labels of the subset, and nobody asks.
    answered_by("outside", "/v2").await;
    settles("TCP goes where the client was going", async || {
        hears(&mut connect(&scene.front, tcp)?, b"outside\n").await
    })
    .await;
    scene.accepted().await;

    let balanced = document.replace("PASSTHROUGH", "ROUND_ROBIN");
    scene.mesh.apply(&balanced).await;
    scene.mesh.distributed(2).await;
    answered_by("web", "/").await;
    scene.accepted().await;
}

const DETECTION: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |-
    protocolDetectionTimeout: 1s
";

async fn an_undeclared_server_is_heard_when_the_detection_time_is_over(scene: Scene) {
    // `mixed` speaks first on a port of which nobody said what is spoken.
    let mixed = SocketAddr::from(([10, 96, 0, 12], 7001));
    let mut stream = connect(&scene.front, mixed).unwrap();
    let waiting = hears(&mut stream, b"mixed\n");
    let heard = tokio::time::timeout(Duration::from_secs(3), waiting).await;
    assert!(heard.is_err(), "by default a listener waits for ever");

    scene.mesh.apply(DETECTION).await;
    scene.mesh.distributed(2).await;
    settles("the server is heard", async || {
        let started = Instant::now();
        hears(&mut connect(&scene.front, mixed)?, b"mixed\n").await?;
        match started.elapsed() {
            early if early < Duration::from_millis(900) => Err(format!("too early: {early:?}")),
            _ => Ok(()),
        }
    })
    .await;
    scene.accepted().await;
}

/// Of both workloads, without an address.
const PEERS: &str = "
apiVersion: v1
kind: Service
metadata: {name: peers, namespace: default}
spec:
  clusterIP: None
  selector: {version: v1}
  ports: [{name: http, port: 8085}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: peers, namespace: default}
spec:
  hosts: [peers]
  http:
  - route: [{destination: {host: peers}}]
    headers: {response: {set: {x-rule: peers}}}
---
";

async fn http_to_one_workload_of_a_headless_service_reaches_that_one(scene: Scene) {
    let front = Echo::on(scene.front.listen(8085), "front");
    let web = Echo::on(scene.web.listen(8085), "web");
    scene.mesh.apply(PEERS).await;
    scene.mesh.distributed(2).await;
    let calls = [
        (&scene.front, scene.web.at(8085), "web", "web-v1.peers"),
        (
            &scene.web,
            scene.front.at(8085),
            "front",
            "front-v1.peers.default.svc.cluster.local",
        ),
        // Under the service's name it is the workload that the client found for it.
        (&scene.web, scene.front.at(8085), "front", "peers"),
    ];
    for (from, to, expected, host) in calls {
        for _ in 0..4 {
            settles(&format!("{host} is {expected}"), async || {
                let answer = get(from, to, host, "/").await?;
                match (answer.name(), answer.header("x-rule").as_str()) {
                    (name, "peers") if name == expected => Ok(()),
                    _ => Err(format!("{answer:?}")),
                }
            })
            .await;
        }
    }
    scene.accepted().await;
    drop((front, web));
}

async fn a_pod_is_captured_with_the_ports_that_it_names(scene: Scene) {
    let address = scene.web.address;
    scene
        .mesh
        .delete(
            "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n\
             metadata: {name: web-v1, namespace: default}\nspec: {address: 10.0.0.1}\n",
        )
        .await;
    scene
        .mesh
        .create(&format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: named, namespace: default}}\nspec:\n  \
             clusterIP: 10.96.0.20\n  selector: {{app: web}}\n  \
             ports: [{{name: http, port: 80, targetPort: web}}]\n---\n\
             apiVersion: v1\nkind: Pod\n\
             metadata: {{name: web-v1, namespace: default, labels: {{app: web}}}}\nspec:\n  \
             containers: [{{name: app, ports: [{{name: web, containerPort: 8090}}]}}]\n\
             status: {{podIP: {address}, conditions: [{{type: Ready, status: 'True'}}]}}\n"
        ))
        .await;
    scene.mesh.distributed(2).await;
    let named = SocketAddr::from(([10, 96, 0, 20], 80));
    settles("the port that the pod names answers", async || {
        let answer = get(&scene.front, named, "named", "/x").await?;
        match answer.name().as_str() {
            "undeclared" => Ok(()),
            _ => Err(format!("{answer:?}")),
        }
    })
    .await;
    // Its own proxy knows the port as one of HTTP, which nothing else said.
    settles("the pod's proxy serves the port", async || {
        get(&scene.front, named, "named", "/x").await?;
        let stats = scene.web_stats().await;
        let name = "http.inbound_0.0.0.0_8090.downstream_rq_2xx";
        let mut seen = stats
            .iter()
            .map(|(key, count)| (key.replace(';', ""), *count));
        match seen.any(|(key, count)| key.starts_with(name) && count > 0) {
            true => Ok(()),
            false => Err(format!("{stats:?}")),
        }
    })
    .await;
    scene.accepted().await;
}
