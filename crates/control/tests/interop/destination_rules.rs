//! Which DestinationRule counts for a client, a host and a port. What shows it here is the protocol
//! towards the upstream: a rule that counts upgrades it to HTTP/2.

use lateen_testkit::echo::Echo;
use lateen_testkit::envoy::Plane;
use lateen_testkit::eventually;
use lateen_testkit::http::Call;

use crate::balancing::{HOST, Pool};
use crate::gateway::rule as route;
use crate::mesh::{Mesh, service};
use crate::sidecar::Sidecar;

const UPGRADE: &str = "{connectionPool: {http: {h2UpgradePolicy: UPGRADE}}}";
const PLAIN: &str = "{loadBalancer: {simple: RANDOM}}";

/// A policy without its braces.
fn inner(policy: &str) -> &str {
    &policy[1..policy.len() - 1]
}

/// A DestinationRule; `more` are further fields of its spec.
fn rule(namespace: &str, name: &str, host: &str, policy: &str, more: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
         metadata: {{name: {name}, namespace: {namespace}}}\n\
         spec:\n  host: '{host}'\n  trafficPolicy: {policy}\n{more}\n---\n"
    )
}

async fn until_version(pool: &Pool, expect: &str) {
    eventually(&format!("the upstream sees {expect}"), async || {
        let answer = pool.send(&Call::get(HOST, "/")).await;
        match answer.json()["version"].as_str() {
            Some(version) if version == expect => Ok(()),
            _ => Err(format!("{answer:?}")),
        }
    })
    .await;
}

async fn the_most_specific_host_and_the_port_decide(plane: Plane) {
    let test = "the_most_specific_host_and_the_port_decide";
    let Some(pool) = Pool::start(plane, test, &[("a", "", 1)], inner(PLAIN)).await else {
        return;
    };
    let own = rule("default", "pool", "pool", PLAIN, "");
    pool.mesh.delete(&own).await;
    let wide = rule(
        "default",
        "wide",
        "*.default.svc.cluster.local",
        UPGRADE,
        "",
    );
    pool.mesh.apply(&wide).await;
    until_version(&pool, "HTTP/2.0").await;
    // Not merged: the narrower rule alone counts.
    pool.mesh.apply(&own).await;
    until_version(&pool, "HTTP/1.1").await;
    let ported = "{loadBalancer: {simple: RANDOM}, portLevelSettings: [{port: {number: 80}, \
                  connectionPool: {http: {h2UpgradePolicy: UPGRADE}}}]}";
    pool.mesh
        .apply(&rule("default", "pool", "pool", ported, ""))
        .await;
    until_version(&pool, "HTTP/2.0").await;
    // Settings of the port inherit nothing.
    let bare = "{connectionPool: {http: {h2UpgradePolicy: UPGRADE}}, \
                portLevelSettings: [{port: {number: 80}, loadBalancer: {simple: RANDOM}}]}";
    pool.mesh
        .apply(&rule("default", "pool", "pool", bare, ""))
        .await;
    until_version(&pool, "HTTP/1.1").await;
}

async fn rules_for_one_host_are_merged_and_the_older_policy_wins(plane: Plane) {
    let test = "rules_for_one_host_are_merged_and_the_older_policy_wins";
    let places = &[("a", "", 1), ("b", "", 1)];
    let Some(pool) = Pool::start(plane, test, places, inner(UPGRADE)).await else {
        return;
    };
    let older = "  subsets: [{name: a, labels: {rack: a}, trafficPolicy: {connectionPool: {http: {h2UpgradePolicy: DO_NOT_UPGRADE}}}}]";
    pool.mesh
        .apply(&rule("default", "pool", "pool", UPGRADE, older))
        .await;
    let younger = "  subsets: [{name: a, labels: {rack: b}}, {name: b, labels: {rack: b}}]";
    pool.mesh
        .apply(&rule("default", "younger", "pool", PLAIN, younger))
        .await;
    for (subset, version) in [("b", "HTTP/2.0"), ("a", "HTTP/1.1")] {
        let to = format!("  - route: [{{destination: {{host: pool, subset: {subset}}}}}]");
        pool.mesh.apply(&route(HOST, &to)).await;
        eventually(&format!("subset {subset} answers"), async || {
            let answer = pool.send(&Call::get(HOST, "/")).await;
            match (answer.name().as_str(), answer.json()["version"].as_str()) {
                (name, Some(found)) if name == subset && found == version => Ok(()),
                _ => Err(format!("{answer:?}")),
            }
        })
        .await;
    }
}

async fn the_clients_namespace_decides_before_the_services_and_the_roots(plane: Plane) {
    let test = "the_clients_namespace_decides_before_the_services_and_the_roots";
    let mesh = Mesh::start().await;
    let far = Echo::start("far").await;
    let objects = service("far", "http", 80).replace("namespace: default", "namespace: other")
        + &format!(
            "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n\
             metadata: {{name: far-v1, namespace: other}}\n\
             spec: {{address: 127.0.0.1, ports: {{http: {}}}, labels: {{app: far}}}}\n",
            far.port()
        );
    mesh.create(&objects).await;
    let Some(sidecar) = Sidecar::start(plane, &mesh, test).await else {
        return;
    };
    let host = "far.other.svc.cluster.local";
    let root = rule("istio-system", "root", host, UPGRADE, "");
    let services = rule("other", "services", host, PLAIN, "");
    let hidden = rule("other", "services", host, PLAIN, "  exportTo: ['.']");
    let own = rule("default", "own", host, UPGRADE, "");
    let others = rule(
        "default",
        "own",
        host,
        UPGRADE,
        "  workloadSelector: {matchLabels: {app: back}}",
    );
    let ours = rule(
        "default",
        "own",
        host,
        UPGRADE,
        "  workloadSelector: {matchLabels: {app: front}}",
    );
    for (step, document, expect) in [
        ("the root's", &root, "HTTP/2.0"),
        ("the service's", &services, "HTTP/1.1"),
        ("the client's", &own, "HTTP/2.0"),
        // It is for other workloads of the namespace.
        ("for others", &others, "HTTP/1.1"),
        ("for this workload", &ours, "HTTP/2.0"),
        ("for others again", &others, "HTTP/1.1"),
        ("the service's is not exported", &hidden, "HTTP/2.0"),
    ] {
        mesh.apply(document).await;
        mesh.distributed(1).await;
        eventually(step, async || {
            let answer = sidecar.send(&Call::through_proxy("far.other", "/")).await?;
            match answer.json()["version"].as_str() {
                Some(version) if version == expect => Ok(()),
                _ => Err(format!("{answer:?}")),
            }
        })
        .await;
    }
}

on_both!(
    the_most_specific_host_and_the_port_decide,
    rules_for_one_host_are_merged_and_the_older_policy_wins,
    the_clients_namespace_decides_before_the_services_and_the_roots,
);
