//! The server in front of the clients that judge it: stock Envoy (delta and state of the world)
//! and gRPC's own xDS client. The resources are made by hand; nothing here knows Istio.

#![allow(
    clippy::unwrap_used,
    reason = "a test stops at what is not as expected"
)]

mod grpc;
mod hosts;
mod mesh;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use lateen_testkit::echo::Echo;
use lateen_testkit::envoy::{Bootstrap, Envoy};
use lateen_testkit::http::{Answer, Call};
use lateen_testkit::{eventually, ports, tools};
use lateen_xds::type_url::{CLUSTER, ENDPOINT};
use lateen_xds::{Changed, ResourceState, SyncState, TypeStatus};
use mesh::{Mesh, cluster, endpoints, listener, route_table};
use serde_json::json;

/// Envoy in front of an echo server called `one`.
struct Bench {
    mesh: Mesh,
    envoy: Envoy,
    entry: SocketAddr,
    _directory: tempfile::TempDir,
}

impl Bench {
    /// `None`: Envoy is not installed.
    async fn start(test: &str, delta: bool, one: u16) -> Option<Self> {
        let Some(binary) = tools::envoy() else {
            tools::skip(test, "stock Envoy");
            return None;
        };
        let mesh = Mesh::start().await;
        let entry = SocketAddr::from(([127, 0, 0, 1], ports::reserve()));
        mesh.set(
            "1",
            &[
                cluster("one", 1),
                endpoints("one", &[one]),
                listener("main", entry.port()),
                route_table("main", &[("one", 1)]),
            ],
        );
        let bootstrap = Bootstrap {
            kind: "sidecar",
            name: "app".into(),
            namespace: "default".into(),
            metadata: json!({"CLUSTER_ID": "Kubernetes", "ISTIO_VERSION": "1.30.0"}),
            xds: mesh.port(),
            admin: ports::reserve(),
            delta,
        };
        let directory = tempfile::tempdir().unwrap();
        let envoy = Envoy::start(&binary, &bootstrap.to_json(), directory.path()).await;
        envoy.ready().await;
        Some(Self {
            mesh,
            envoy,
            entry,
            _directory: directory,
        })
    }

    async fn call(&self) -> Result<Answer, String> {
        Call::get("anything", "/").send(self.entry).await
    }

    async fn answered_by(&self, name: &str) {
        eventually(&format!("an answer of {name}"), async || {
            let answer = self.call().await?;
            match answer.status == 200 && answer.name() == name {
                true => Ok(()),
                false => Err(format!("{} {}", answer.status, answer.body)),
            }
        })
        .await;
    }

    async fn synced(&self) {
        eventually("everything accepted", async || {
            match self.mesh.server.status().as_slice() {
                [proxy] if proxy.synced() => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }
}

async fn both(test: &str, check: impl AsyncFn(Bench, u16, Echo)) {
    for delta in [true, false] {
        let (one, two) = (Echo::start("one").await, Echo::start("two").await);
        let port = two.port();
        if let Some(bench) = Bench::start(test, delta, one.port()).await {
            check(bench, port, one).await;
        }
        drop(two);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_loses_no_request_while_a_route_moves_to_a_new_cluster_and_the_old_one_goes() {
    both("routes move under Envoy", async |bench, two, one| {
        bench.answered_by("one").await;
        let (stop, calls) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicUsize::new(0)),
        );
        let load = tokio::spawn({
            let (stop, calls, entry) = (stop.clone(), calls.clone(), bench.entry);
            async move {
                let mut failures = Vec::new();
                while !stop.load(Relaxed) {
                    match Call::get("anything", "/").send(entry).await {
                        Ok(answer) if answer.status == 200 => calls.fetch_add(1, Relaxed),
                        other => {
                            failures.push(format!("{other:?}"));
                            0
                        }
                    };
                }
                failures
            }
        });
        for round in 0..6 {
            let (name, port) = match round % 2 {
                0 => ("two", two),
                _ => ("one", one.port()),
            };
            bench.mesh.set(
                &format!("{}", round + 2),
                &[
                    cluster(name, round),
                    endpoints(name, &[port]),
                    listener("main", bench.entry.port()),
                    route_table("main", &[(name, 1)]),
                ],
            );
            bench.answered_by(name).await;
        }
        bench.synced().await;
        stop.store(true, Relaxed);
        let failures = load.await.unwrap();
        assert!(
            failures.is_empty(),
            "{} of {}: {failures:?}",
            failures.len(),
            calls.load(Relaxed)
        );
        assert!(bench.envoy.rejected().await.is_empty());
        let clusters = bench.envoy.get("/clusters").await.unwrap();
        assert!(
            !clusters.contains("two::"),
            "the old cluster is gone: {clusters}"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_change_reaches_envoy_alone() {
    both("endpoints move under Envoy", async |bench, two, _one| {
        bench.synced().await;
        let cds = bench.envoy.stat("cluster_manager.cds.update_success").await;
        bench.mesh.change(&[endpoints("one", &[two])]);
        bench.mesh.push("2", Changed::names(ENDPOINT, ["one"]));
        bench.answered_by("two").await;
        bench.synced().await;
        assert_eq!(
            bench.envoy.stat("cluster_manager.cds.update_success").await,
            cds
        );
        let before = bench.mesh.server.status()[0].types[ENDPOINT].sent.clone();
        bench.mesh.push("3", Changed::All);
        tokio::time::sleep(Duration::from_millis(100)).await;
        let after = &bench.mesh.server.status()[0];
        assert_eq!(
            after.types[ENDPOINT].sent, before,
            "nothing changed, nothing was sent"
        );
    })
    .await;
}

/// Pushes a bad cluster together with a good one that routes move to.
async fn push_bad(bench: &Bench, bad: serde_json::Value, two: u16) -> TypeStatus {
    bench.synced().await;
    let mut broken = cluster("bad", 1);
    broken.merge(bad);
    bench.mesh.change(&[
        broken,
        endpoints("bad", &[two]),
        cluster("two", 1),
        endpoints("two", &[two]),
        route_table("main", &[("two", 1)]),
    ]);
    bench.mesh.push("2", Changed::All);
    eventually("the rejection", async || {
        let clusters = bench.mesh.server.status()[0].types[CLUSTER].clone();
        match clusters.state() == SyncState::Error && clusters.outstanding == 0 {
            true => Ok(clusters),
            false => Err(format!("{clusters:?}")),
        }
    })
    .await
}

fn reason<'a>(clusters: &'a TypeStatus, name: &str) -> &'a str {
    match &clusters.resources[name].state {
        ResourceState::Rejected(reason) => reason,
        other => panic!("{name} is {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_envoy_rejects_is_known_by_name_and_the_rest_applies() {
    both("Envoy rejects a cluster", async |bench, two, _one| {
        let host = json!({"socket_address": {"address": "not-an-address", "port_value": 80}});
        let bad = json!({
            "type": "STATIC", "eds_cluster_config": null,
            "load_assignment": {"cluster_name": "bad", "endpoints": [
                {"lb_endpoints": [{"endpoint": {"address": host}}]},
            ]},
        });
        let clusters = push_bad(&bench, bad, two).await;
        bench.answered_by("two").await;
        assert_eq!(clusters.resources["two"].state, ResourceState::Acked);
        assert!(
            reason(&clusters, "bad").contains("not-an-address"),
            "{clusters:?}"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_response_that_envoy_cannot_read_is_narrowed_down_to_the_bad_resource() {
    let (one, two) = (Echo::start("one").await, Echo::start("two").await);
    let Some(bench) = Bench::start("Envoy cannot read", true, one.port()).await else {
        return;
    };
    let clusters = push_bad(&bench, json!({"connect_timeout": "-1s"}), two.port()).await;
    bench.answered_by("two").await;
    let narrowed = bench.mesh.server.status()[0].types[CLUSTER].clone();
    assert_eq!(
        narrowed.resources["two"].state,
        ResourceState::Acked,
        "{clusters:?}"
    );
    assert!(
        reason(&narrowed, "bad").contains("duration"),
        "{narrowed:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_serves_on_while_the_control_plane_is_gone_and_catches_up_after() {
    both(
        "the control plane restarts under Envoy",
        async |mut bench, two, _one| {
            bench.synced().await;
            bench.mesh.kill();
            for _ in 0..20 {
                assert_eq!(bench.call().await.unwrap().status, 200);
            }
            bench.mesh.change(&[endpoints("one", &[two])]);
            bench.mesh.restart().await;
            bench.answered_by("two").await;
            bench.synced().await;
            assert!(bench.envoy.rejected().await.is_empty());
        },
    )
    .await;
}
