//! Documents 12 and 32: timeouts and retries.

use std::time::{Duration, Instant};

use lateen_testkit::envoy::Plane;
use lateen_testkit::ports;

use super::{Scene, codes};
use crate::mesh::workload;

async fn document_12_virtualservice_ratings(plane: Plane) {
    let Some(scene) = Scene::start(plane, "12").await else {
        return;
    };
    let scene = scene.with_service("ratings", &["v1"]).await;
    assert_eq!(scene.apply("12").await, codes(&[]));
    let echo = &scene.servers["ratings-v1"];
    // 5xx: three tries more.
    lateen_testkit::eventually("the retries are in force", async || {
        let before = echo.hits("/status/500");
        scene.get("ratings", "/status/500", &[]).await;
        match echo.hits("/status/500") - before {
            4 => Ok(()),
            tries => Err(format!("{tries} tries")),
        }
    })
    .await;
    assert_eq!(scene.get("ratings", "/flaky/3/a", &[]).await.status, 200);
    // retriable-4xx is 409 only.
    let answer = scene.get("ratings", "/status/409", &[]).await;
    assert_eq!((answer.status, echo.hits("/status/409")), (409, 4));
    let answer = scene.get("ratings", "/status/404", &[]).await;
    assert_eq!((answer.status, echo.hits("/status/404")), (404, 1));
    // 2 s per try, but 5 s in all: the third try is cut.
    let started = Instant::now();
    let answer = scene.get("ratings", "/slow/9000", &[]).await;
    assert_eq!(answer.status, 504);
    let took = started.elapsed();
    assert!(
        (Duration::from_millis(4900)..Duration::from_millis(7000)).contains(&took),
        "{took:?}"
    );
    assert_eq!(echo.hits("/slow/9000"), 3);
}

async fn document_32_virtualservice_order_service(plane: Plane) {
    let Some(scene) = Scene::start(plane, "32").await else {
        return;
    };
    let scene = scene.with_service("order-service", &["v1"]).await;
    let scene = scene.with_service("payment-service", &["v1"]).await;
    // One of two endpoints refuses connections.
    let dead = workload("payment-service", "dead", "http", ports::reserve());
    scene.mesh.create(&dead).await;
    assert_eq!(scene.apply("32").await, codes(&[]));
    scene
        .answers("order-service", &[], "payment-service-v1")
        .await;
    let shares = scene.shares("order-service", 100).await;
    assert_eq!(shares.len(), 1, "{shares:?}");
    // No codes are listed, so retriable-status-codes matches nothing, whatever the comment says.
    let echo = &scene.servers["payment-service-v1"];
    assert_eq!(
        scene.get("order-service", "/status/503", &[]).await.status,
        503
    );
    assert_eq!(echo.hits("/status/503"), 1);
}

on_both! {
    document_12_virtualservice_ratings,
    document_32_virtualservice_order_service,
}
