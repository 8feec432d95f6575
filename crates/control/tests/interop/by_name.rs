//! Requests that go to whatever the name of their host leads to: hosts of a wildcard ServiceEntry
//! with resolution DYNAMIC_DNS, and hosts nobody registered under ALLOW_ANY_DYNAMIC_DNS.

use std::net::SocketAddr;

use lateen_testkit::certificates::{Authority, TlsBackend, s_client};
use lateen_testkit::echo::Echo;
use lateen_testkit::envoy::{Bootstrap, Envoy, Plane};
use lateen_testkit::{ports, settles};
use serde_json::json;

use crate::mesh::{Mesh, loopback, service, workload};
use crate::secure_gateway::{Secure, gateway, routes};
use crate::sidecar::Sidecar;

on_both!(
    hosts_of_a_wildcard_entry_are_looked_up_when_they_are_asked_for,
    hosts_nobody_registered_are_looked_up_where_the_mesh_says_so,
    tls_to_a_wildcard_entry_goes_to_its_server_name,
    a_gateway_goes_to_the_server_names_of_a_wildcard_entry_where_it_is_allowed,
);

/// What a host answers with: the name of a server, or a status.
async fn answers(sidecar: &Sidecar, host: &str, expected: &str) {
    settles(&format!("{host} answers {expected}"), async || {
        let answer = sidecar.get(host, "/").await;
        match answer.status {
            200 if answer.name() == expected => Ok(()),
            status if status.to_string() == expected => Ok(()),
            _ => Err(format!("{answer:?}")),
        }
    })
    .await;
}

async fn hosts_of_a_wildcard_entry_are_looked_up_when_they_are_asked_for(plane: Plane) {
    let mesh = Mesh::start().await;
    let Some(sidecar) = Sidecar::start(plane, &mesh, "wildcard hosts by name").await else {
        return;
    };
    let (one, other) = (Echo::start("one").await, Echo::start("other").await);
    // RFC 6761: every name below `localhost` is this machine.
    let entry = format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
         metadata: {{name: anything, namespace: default}}\nspec:\n  hosts: ['*.localhost']\n  \
         location: MESH_EXTERNAL\n  resolution: DYNAMIC_DNS\n  \
         ports: [{{number: {}, name: http, protocol: HTTP}}]\n---\n",
        one.port()
    );
    mesh.create(&entry).await;
    mesh.distributed(1).await;
    for name in ["a", "b.c"] {
        answers(&sidecar, &format!("{name}.localhost:{}", one.port()), "one").await;
    }
    // Neither another port of the same hosts nor the bare name is registered.
    answers(&sidecar, &format!("a.localhost:{}", other.port()), "502").await;
    answers(&sidecar, &format!("localhost:{}", one.port()), "502").await;
    assert_eq!(sidecar.envoy.rejected().await, Default::default());
}

fn policy(mode: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\n\
         data:\n  mesh: |-\n    outboundTrafficPolicy: {{mode: {mode}}}\n"
    )
}

async fn hosts_nobody_registered_are_looked_up_where_the_mesh_says_so(plane: Plane) {
    let mesh = Mesh::start().await;
    let Some(sidecar) = Sidecar::start(plane, &mesh, "unknown hosts by name").await else {
        return;
    };
    let (known, unknown) = (Echo::start("known").await, Echo::start("unknown").await);
    let objects = service("near", "http", 80) + &workload("near", "v1", "http", known.port());
    mesh.create(&objects).await;
    mesh.distributed(1).await;
    let host = format!("localhost:{}", unknown.port());
    answers(&sidecar, "near", "known").await;
    answers(&sidecar, &host, "502").await;

    mesh.apply(&policy("ALLOW_ANY_DYNAMIC_DNS")).await;
    mesh.distributed(1).await;
    answers(&sidecar, &host, "unknown").await;
    answers(&sidecar, "near", "known").await;
    assert_eq!(sidecar.envoy.rejected().await, Default::default());

    mesh.apply(&policy("REGISTRY_ONLY")).await;
    mesh.distributed(1).await;
    answers(&sidecar, &host, "502").await;
    answers(&sidecar, "near", "known").await;
    assert_eq!(sidecar.envoy.rejected().await, Default::default());
}

/// A wildcard entry for TLS whose hosts are this machine (RFC 6761).
fn wildcard_tls(port: u16) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
         metadata: {{name: anything, namespace: default}}\nspec:\n  hosts: ['*.localhost']\n  \
         location: MESH_EXTERNAL\n  resolution: DYNAMIC_DNS\n  \
         ports: [{{number: {port}, name: tls, protocol: TLS}}]\n---\n"
    )
}

/// Whether the backend answers who asks for a name there.
async fn is_reached(at: SocketAddr, name: &str, expected: bool) {
    settles(&format!("{name} is reached: {expected}"), async || {
        let said = s_client(at, name, &[]).await;
        match said.text.contains("CN = backend\n") == expected {
            true => Ok(()),
            false => Err(format!("{said:?}")),
        }
    })
    .await;
}

async fn tls_to_a_wildcard_entry_goes_to_its_server_name(plane: Plane) {
    let test = "tls_to_a_wildcard_entry_goes_to_its_server_name";
    let Some(binary) = plane.binary(test) else {
        return;
    };
    let mesh = Mesh::start().await;
    let authority = Authority::new("authority");
    let backend = TlsBackend::start(&authority, "backend", mesh.directory()).await;
    mesh.create(&wildcard_tls(backend.port)).await;
    let local = ports::reserve();
    let bootstrap = Bootstrap {
        kind: "sidecar",
        name: "front-v1".into(),
        namespace: "default".into(),
        metadata: json!({
            "LABELS": {"app": "front"},
            "INTERCEPTION_MODE": "NONE",
            "LATEEN_BIND": "127.0.0.1",
            "LATEEN_OUTBOUND": {format!("*.localhost:{}", backend.port): local},
        }),
        xds: mesh.xds,
        admin: ports::reserve(),
        delta: true,
    };
    let envoy = Envoy::start(&binary, &bootstrap.to_json(), mesh.directory()).await;
    envoy.ready().await;
    mesh.distributed(1).await;
    let local = loopback(local);
    is_reached(local, "a.localhost", true).await;
    is_reached(local, "b.c.localhost", true).await;
    // Names that the entry does not cover lead nowhere, be they those of this machine.
    for other in ["localhost", "a.localhost.test", ""] {
        is_reached(local, other, false).await;
    }
    assert_eq!(envoy.rejected().await, Default::default());
}

async fn a_gateway_goes_to_the_server_names_of_a_wildcard_entry_where_it_is_allowed(plane: Plane) {
    let test = "a_gateway_goes_to_the_server_names_of_a_wildcard_entry_where_it_is_allowed";
    for allowed in [true, false] {
        let mesh = match allowed {
            true => Mesh::with_wildcard_tls_at_gateways().await,
            false => Mesh::start().await,
        };
        let Some(secure) = Secure::start_in(mesh, plane, test).await else {
            return;
        };
        let directory = secure.mesh.directory();
        let backend = TlsBackend::start(&secure.authority, "backend", directory).await;
        let port = backend.port;
        // The rule takes more names than its destination covers.
        let spec = format!(
            "  tls:\n  - match: [{{sniHosts: ['*.localhost', '*.test']}}]\n    \
             route: [{{destination: {{host: '*.localhost', port: {{number: {port}}}}}}}]"
        );
        let hosts = "'*.localhost', '*.test'";
        let objects = wildcard_tls(port)
            + &gateway("out", 443, "TLS", hosts, "mode: PASSTHROUGH")
            + &routes("*.localhost", "out", &spec).replace(
                "['*.localhost']\n  gateways",
                &format!("[{hosts}]\n  gateways"),
            );
        secure.mesh.apply(&objects).await;
        secure.rejected_nothing().await;
        is_reached(secure.https, "a.localhost", allowed).await;
        is_reached(secure.https, "a.test", false).await;
        is_reached(secure.https, "localhost", false).await;
    }
}
