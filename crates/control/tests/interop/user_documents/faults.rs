//! Documents 23, 24 and 34: delays and aborts.

use std::time::{Duration, Instant};

use lateen_testkit::envoy::Plane;
use lateen_testkit::http::Call;

use super::{Scene, codes, of};
use crate::gateway::assert_share;

/// How many of `count` requests, all sent at once, took at least as long.
async fn delayed(scene: &Scene, host: &str, count: usize, at_least: Duration) -> usize {
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..count {
        let (proxy, call) = (scene.proxy, Call::through_proxy(host, "/"));
        tasks.spawn(async move {
            let started = Instant::now();
            let answer = call.send(proxy).await.unwrap();
            assert_eq!(answer.status, 200, "{answer:?}");
            started.elapsed()
        });
    }
    let took = tasks.join_all().await;
    took.iter().filter(|took| **took >= at_least).count()
}

async fn document_23_virtualservice_ratings_fault(plane: Plane) {
    let Some(scene) = Scene::start(plane, "23").await else {
        return;
    };
    let scene = scene.with_service("ratings", &["v1"]).await;
    assert_eq!(scene.apply("23").await, codes(&[]));
    scene.answers("ratings", &[], "ratings-v1").await;
    let count = delayed(&scene, "ratings", 400, Duration::from_secs(3)).await;
    assert_share(count, 400, 0.1);
}

async fn document_24_virtualservice_ratings_error(plane: Plane) {
    let Some(scene) = Scene::start(plane, "24").await else {
        return;
    };
    let scene = scene.with_service("ratings", &["v1"]).await;
    assert_eq!(scene.apply("24").await, codes(&[]));
    lateen_testkit::eventually("the fault is in force", async || {
        let shares = scene.shares("ratings", 40).await;
        match of(&shares, "500") {
            0 => Err(format!("{shares:?}")),
            _ => Ok(()),
        }
    })
    .await;
    let shares = scene.shares("ratings", 1000).await;
    assert_share(of(&shares, "500"), 1000, 0.5);
    assert_share(of(&shares, "ratings-v1"), 1000, 0.5);
    let refused = async || {
        let answer = scene.get("ratings", "/", &[]).await;
        (answer.status == 500)
            .then_some(answer)
            .ok_or_else(String::new)
    };
    let answer = lateen_testkit::eventually("an aborted request", refused).await;
    assert_eq!(answer.body, "fault filter abort");
}

async fn document_34_virtualservice_product_service(plane: Plane) {
    let Some(scene) = Scene::start(plane, "34").await else {
        return;
    };
    let scene = scene.with_service("product-service", &["v1"]).await;
    let scene = scene.with_service("review-service", &["v1"]).await;
    let scene = scene.with_service("rating-service", &["v1"]).await;
    // The first route takes everything; that the second is never reached is said when the document
    // is read (see crates/api/tests/user_documents.rs).
    assert_eq!(scene.apply("34").await, codes(&[]));
    scene
        .answers("product-service", &[], "review-service-v1")
        .await;
    let count = delayed(&scene, "product-service", 400, Duration::from_secs(5)).await;
    assert_share(count, 400, 0.1);
    assert_eq!(scene.servers["rating-service-v1"].hits("/"), 0);
}

on_both! {
    document_23_virtualservice_ratings_fault,
    document_24_virtualservice_ratings_error,
    document_34_virtualservice_product_service,
}
