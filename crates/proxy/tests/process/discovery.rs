//! Configuration that comes over discovery.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use lateen_testkit::echo::Echo;
use lateen_testkit::http::Call;
use lateen_testkit::{eventually, ports};
use lateen_xds::type_url::{CLUSTER, ENDPOINT, LISTENER};
use lateen_xds::{Changed, ResourceState, SyncState, TypeStatus};
use serde_json::json;

use crate::mesh::{Draft, Mesh, cluster, endpoints, listener, route_table};
use crate::proxy::{Proxy, address, answered_by, bootstrap};

fn world(port: u16, name: &str, backend: u16) -> Vec<Draft> {
    vec![
        cluster(name, 1),
        endpoints(name, &[backend]),
        listener("main", port),
        route_table("main", &[(name, 1)]),
    ]
}

async fn synced(mesh: &Mesh) {
    eventually("everything accepted", async || {
        match mesh.server.status().as_slice() {
            [proxy] if proxy.synced() && !proxy.types.is_empty() => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

async fn refused(mesh: &Mesh, url: &str, name: &str) -> String {
    eventually("a refusal", async || {
        let status = mesh.server.status();
        let kind: &TypeStatus = status
            .first()
            .and_then(|p| p.types.get(url))
            .ok_or("no stream")?;
        match kind.resources.get(name).map(|resource| &resource.state) {
            Some(ResourceState::Rejected(reason)) => Ok(reason.clone()),
            other => Err(format!("{other:?}")),
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_while_routes_move_between_clusters_that_come_and_go() {
    let (one, two) = (Echo::start("one").await, Echo::start("two").await);
    let mesh = Mesh::start().await;
    let port = ports::reserve();
    mesh.set("1", &world(port, "one", one.port()));
    let proxy = Proxy::start(&bootstrap(mesh.port()));
    proxy.ready().await;
    // Ready means that the very first request is served.
    let first = Call::get("anything", "/")
        .send(address(port))
        .await
        .unwrap();
    assert_eq!((first.status, first.name().as_str()), (200, "one"));
    let (stop, good) = <(Arc<AtomicBool>, Arc<AtomicUsize>)>::default();
    let load = tokio::spawn({
        let (stop, good) = (stop.clone(), good.clone());
        async move {
            let mut bad = Vec::new();
            while !stop.load(Relaxed) {
                match Call::get("anything", "/").send(address(port)).await {
                    Ok(answer) if answer.status == 200 => {
                        good.fetch_add(1, Relaxed);
                    }
                    other => bad.push(format!("{other:?}")),
                }
            }
            bad
        }
    });
    for round in 0..20 {
        let (name, backend) = match round % 2 {
            0 => ("two", two.port()),
            _ => ("one", one.port()),
        };
        mesh.set(&format!("{}", round + 2), &world(port, name, backend));
        answered_by(address(port), name).await;
        let passed = good.load(Relaxed);
        eventually("a request of the load passes", async || {
            match good.load(Relaxed) > passed || load.is_finished() {
                true => Ok(()),
                false => Err(format!("{passed} passed")),
            }
        })
        .await;
    }
    synced(&mesh).await;
    stop.store(true, Relaxed);
    let bad = load.await.unwrap();
    assert!(bad.is_empty(), "{good:?} good, {}: {bad:?}", bad.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_taken_port_is_reported_by_the_listener_that_wants_it_and_the_rest_serves() {
    let one = Echo::start("one").await;
    let mesh = Mesh::start().await;
    let (port, taken) = (ports::reserve(), one.port());
    let mut drafts = world(port, "one", one.port());
    drafts.push(listener("taken", taken));
    drafts.push(route_table("taken", &[("one", 1)]));
    mesh.set("1", &drafts);
    let proxy = Proxy::start(&bootstrap(mesh.port()));
    proxy.ready().await;
    answered_by(address(port), "one").await;
    let reason = refused(&mesh, LISTENER, "taken").await;
    assert!(
        reason.contains(&format!("127.0.0.1:{taken} is taken")),
        "{reason}"
    );
    let listeners = &mesh.server.status()[0].types[LISTENER];
    assert_eq!(listeners.resources["main"].state, ResourceState::Acked);
    assert_eq!(listeners.state(), SyncState::Error);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_serves_when_whatever_had_its_port_has_left() {
    let one = Echo::start("one").await;
    let mesh = Mesh::start().await;
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = other.local_addr().unwrap().port();
    mesh.set("1", &world(port, "one", one.port()));
    let proxy = Proxy::start(&bootstrap(mesh.port()));
    refused(&mesh, LISTENER, "main").await;
    drop(other);
    answered_by(address(port), "one").await;
    assert!(proxy.log().contains("the address is free now"));
    // The control plane hears of it, too.
    lateen_testkit::eventually("no listener is refused", async || {
        let listeners = &mesh.server.status()[0].types[LISTENER];
        match listeners.state() {
            SyncState::Synced => Ok(()),
            state => Err(format!("{state:?}")),
        }
    })
    .await;
    answered_by(address(port), "one").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_update_leaves_the_last_good_one_serving() {
    let one = Echo::start("one").await;
    let mesh = Mesh::start().await;
    let port = ports::reserve();
    mesh.set("1", &world(port, "one", one.port()));
    let proxy = Proxy::start(&bootstrap(mesh.port()));
    proxy.ready().await;
    let mut bad = cluster("one", 2);
    bad.merge(json!({"lb_policy": "CLUSTER_PROVIDED"}));
    mesh.change(&[bad]);
    mesh.push("2", Changed::All);
    let reason = refused(&mesh, CLUSTER, "one").await;
    assert!(reason.starts_with("lb_policy"), "{reason}");
    answered_by(address(port), "one").await;
    mesh.change(&[cluster("one", 3)]);
    mesh.push("3", Changed::All);
    synced(&mesh).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn traffic_goes_on_without_control_plane_and_changes_arrive_when_it_is_back() {
    let (one, two) = (Echo::start("one").await, Echo::start("two").await);
    let mut mesh = Mesh::start().await;
    let port = ports::reserve();
    mesh.set("1", &world(port, "one", one.port()));
    let proxy = Proxy::start(&bootstrap(mesh.port()));
    proxy.ready().await;
    synced(&mesh).await;
    mesh.kill();
    for _ in 0..20 {
        let answer = Call::get("anything", "/")
            .send(address(port))
            .await
            .unwrap();
        assert_eq!(answer.status, 200);
    }
    mesh.change(&[endpoints("one", &[two.port()])]);
    mesh.restart().await;
    answered_by(address(port), "two").await;
    synced(&mesh).await;
    // Only the endpoints were sent again.
    eventually("the new one knows what the proxy has", async || {
        let status = &mesh.server.status()[0];
        let sent = |url| status.types.get(url)?.sent.as_ref();
        match (sent(ENDPOINT), sent(LISTENER)) {
            (Some(_), Some(listeners)) if listeners.version == "0" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_that_finds_no_control_plane_becomes_ready_when_there_is_one() {
    let one = Echo::start("one").await;
    let mut mesh = Mesh::start().await;
    let port = ports::reserve();
    mesh.change(&world(port, "one", one.port()));
    mesh.kill();
    let proxy = Proxy::start(&bootstrap(mesh.port()));
    eventually("the loss is logged", async || {
        match proxy.log().contains("no control plane") {
            true => Ok(()),
            false => Err(proxy.log()),
        }
    })
    .await;
    assert_eq!(proxy.get("/ready").await.unwrap().status, 503);
    mesh.restart().await;
    proxy.ready().await;
    answered_by(address(port), "one").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_with_configuration_at_hand_is_quick() {
    let one = Echo::start("one").await;
    let mesh = Mesh::start().await;
    let port = ports::reserve();
    mesh.set("1", &world(port, "one", one.port()));
    // 100 ms is the aim of an optimised build on an idle machine; this is neither. Whatever else the
    // machine does, one of these starts is in time, if the proxy waits for nothing.
    let mut times = Vec::new();
    while times.len() < 5 || times.iter().all(|time| *time >= Duration::from_secs(1)) {
        assert!(times.len() < 25, "{times:?}");
        let started = Instant::now();
        let proxy = Proxy::start(&bootstrap(mesh.port()));
        while Call::get("anything", "/")
            .send(address(port))
            .await
            .is_err()
        {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        times.push(started.elapsed());
        drop(proxy);
    }
}
