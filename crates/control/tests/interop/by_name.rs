//! Requests that go to whatever the name of their host leads to: hosts of a wildcard ServiceEntry
//! with resolution DYNAMIC_DNS, and hosts nobody registered under ALLOW_ANY_DYNAMIC_DNS.

use lateen_testkit::echo::Echo;
use lateen_testkit::envoy::Plane;
use lateen_testkit::settles;

use crate::mesh::{Mesh, service, workload};
use crate::sidecar::Sidecar;

on_both!(
    hosts_of_a_wildcard_entry_are_looked_up_when_they_are_asked_for,
    hosts_nobody_registered_are_looked_up_where_the_mesh_says_so,
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
