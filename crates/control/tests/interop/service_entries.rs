//! ServiceEntries by every resolution, and the WorkloadEntries they select, through a gateway and
//! through the HTTP proxy of a sidecar.

use lateen_testkit::echo::Echo;
use lateen_testkit::envoy::Plane;
use lateen_testkit::settles;

use crate::gateway::assert_share;
use crate::mesh::{Gateway, Mesh};
use crate::sidecar::Sidecar;

on_both!(
    a_gateway_reaches_services_by_every_resolution,
    a_sidecar_reaches_services_by_every_resolution,
    a_service_entry_selects_workload_entries_with_their_weights,
);

/// One ServiceEntry per resolution; each leads to `port`.
fn entries(port: u16) -> String {
    let entry = |name: &str, host: &str, number: u16, rest: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
             metadata: {{name: {name}, namespace: default}}\nspec:\n  hosts: [{host}]\n  \
             location: MESH_EXTERNAL\n  \
             ports: [{{number: {number}, name: http, protocol: HTTP}}]\n{rest}---\n"
        )
    };
    let at =
        |address: &str| format!("  endpoints: [{{address: {address}, ports: {{http: {port}}}}}]\n");
    entry(
        "static",
        "static.example.com",
        80,
        &format!("  resolution: STATIC\n{}", at("127.0.0.1")),
    ) + &entry(
        "dns",
        "dns.example.com",
        80,
        &format!("  resolution: DNS\n{}", at("localhost")),
    ) + &entry("own", "localhost", port, "  resolution: DNS\n")
        + &entry(
            "logical",
            "logical.example.com",
            80,
            &format!("  resolution: DNS_ROUND_ROBIN\n{}", at("localhost")),
        )
        + &entry("none", "localhost", port, "  resolution: NONE\n")
}

const ROUTES: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: out, namespace: default}
spec:
  hosts: ['*']
  gateways: [web]
  http:
  - match: [{uri: {prefix: /static}}]
    route: [{destination: {host: static.example.com}}]
  - match: [{uri: {prefix: /dns}}]
    route: [{destination: {host: dns.example.com}}]
  - match: [{uri: {prefix: /logical}}]
    route: [{destination: {host: logical.example.com}}]
";

async fn a_gateway_reaches_services_by_every_resolution(plane: Plane) {
    let mesh = Mesh::start().await;
    let Some(gateway) = Gateway::start(plane, &mesh, "resolutions", true).await else {
        return;
    };
    let echo = Echo::start("outside").await;
    mesh.create(&entries(echo.port())).await;
    mesh.apply(ROUTES).await;
    mesh.distributed(1).await;
    for (path, status) in [("/static", 200), ("/dns", 200), ("/logical", 200)] {
        settles(path, async || match gateway.get("a", path).await.status {
            found if found == status => Ok(()),
            found => Err(found.to_string()),
        })
        .await;
    }
    assert_eq!(gateway.envoy.rejected().await, Default::default());
}

async fn a_sidecar_reaches_services_by_every_resolution(plane: Plane) {
    let mesh = Mesh::start().await;
    let Some(sidecar) = Sidecar::start(plane, &mesh, "resolutions").await else {
        return;
    };
    let echo = Echo::start("outside").await;
    mesh.create(&entries(echo.port())).await;
    mesh.distributed(1).await;
    // Where the client was going is what it asked the proxy for.
    let asked = format!("localhost:{}", echo.port());
    for host in [
        "static.example.com",
        "dns.example.com",
        "logical.example.com",
        &asked,
    ] {
        settles(host, async || {
            match sidecar.get(host, "/").await.name().as_str() {
                "outside" => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }
    assert_eq!(sidecar.envoy.rejected().await, Default::default());
}

async fn a_service_entry_selects_workload_entries_with_their_weights(plane: Plane) {
    let mesh = Mesh::start().await;
    let Some(sidecar) = Sidecar::start(plane, &mesh, "selected workloads").await else {
        return;
    };
    let (light, heavy, stranger) = (
        Echo::start("light").await,
        Echo::start("heavy").await,
        Echo::start("stranger").await,
    );
    // Networks that no gateway leads to are reached directly.
    let workload = |name: &str, app: &str, port: u16, weight: u32| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n\
             metadata: {{name: {name}, namespace: default}}\nspec:\n  address: 127.0.0.1\n  \
             ports: {{http: {port}}}\n  labels: {{app: {app}}}\n  weight: {weight}\n  \
             network: of-{name}\n---\n"
        )
    };
    let entry = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
                 metadata: {name: vms, namespace: default}\nspec:\n  hosts: [vms.example.com]\n  \
                 location: MESH_INTERNAL\n  resolution: STATIC\n  addresses: [240.1.1.1, 10.9.0.0/24]\n  \
                 ports: [{number: 80, name: http, protocol: HTTP}]\n  \
                 workloadSelector: {labels: {app: vm}}\n---\n\
                 apiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
                 metadata: {name: vms, namespace: default}\n\
                 spec: {host: vms.example.com, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}}\n---\n"
        .to_owned();
    let objects = entry
        + &workload("light", "vm", light.port(), 1)
        + &workload("heavy", "vm", heavy.port(), 3)
        + &workload("stranger", "other", stranger.port(), 9);
    mesh.create(&objects).await;
    mesh.distributed(1).await;
    // By name and by the address it is known under; a network is no name.
    for host in ["vms.example.com", "240.1.1.1"] {
        settles(host, async || match sidecar.get(host, "/").await.status {
            200 => Ok(()),
            other => Err(other.to_string()),
        })
        .await;
    }
    let mut of_heavy = 0;
    for _ in 0..400 {
        match sidecar.get("vms.example.com", "/").await.name().as_str() {
            "heavy" => of_heavy += 1,
            "light" => {}
            other => panic!("{other}"),
        }
    }
    assert_share(of_heavy, 400, 0.75);
    // One that says it is not well gets nothing.
    let sick = workload("heavy", "vm", heavy.port(), 3).replace(
        "spec:",
        "status: {conditions: [{type: Healthy, status: 'False'}]}\nspec:",
    );
    mesh.apply(&sick).await;
    settles("only the healthy one answers", async || {
        match sidecar.get("vms.example.com", "/").await.name().as_str() {
            "light" => Ok(()),
            other => Err(other.to_owned()),
        }
    })
    .await;
}
