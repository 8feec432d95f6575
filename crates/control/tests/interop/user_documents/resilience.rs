//! Documents 12 and 32: timeouts and retries.

use std::time::{Duration, Instant};

use lateen_testkit::envoy::Plane;
use lateen_testkit::{ports, settles};

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
    lateen_testkit::settles("the retries are in force", async || {
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
    assert!(took > Duration::from_millis(4900), "{took:?}");
    // There would be a fourth.
    assert_eq!(echo.hits("/slow/9000"), 3);
}

async fn document_32_virtualservice_order_service(plane: Plane) {
    let Some(scene) = Scene::start(plane, "32").await else {
        return;
    };
    let scene = scene.with_service("order-service", &["v1"]).await;
    // One of four endpoints refuses connections. That it is drawn for a request and all its tries is
    // a chance of 1 in 200 billion (each of three tries more draws up to six times).
    let scene = scene
        .with_service("payment-service", &["v1", "v2", "v3"])
        .await;
    let dead = workload("payment-service", "dead", "http", ports::reserve());
    scene.mesh.create(&dead).await;
    assert_eq!(scene.apply("32").await, codes(&[]));
    settles("only who is there answers", async || {
        let answer = scene.get("order-service", "/", &[]).await;
        match answer.name().starts_with("payment-service-") {
            true => Ok(()),
            false => Err(format!("{answer:?}")),
        }
    })
    .await;
    let shares = scene.shares("order-service", 100).await;
    let answered = shares
        .iter()
        .filter(|(name, _)| name.starts_with("payment-service-"));
    assert_eq!(
        answered.map(|(_, count)| count).sum::<usize>(),
        100,
        "{shares:?}"
    );
    // No codes are listed, so retriable-status-codes matches nothing, whatever the comment says.
    assert_eq!(
        scene.get("order-service", "/status/503", &[]).await.status,
        503
    );
    let hits = scene.servers.values().map(|echo| echo.hits("/status/503"));
    assert_eq!(hits.sum::<u32>(), 1);
}

on_both! {
    document_12_virtualservice_ratings,
    document_32_virtualservice_order_service,
}
