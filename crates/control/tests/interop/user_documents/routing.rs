//! Documents 01, 02, 06, 10, 11, 28 to 31 and 33: who gets which request.

use std::time::{Duration, Instant};

use lateen_testkit::envoy::Plane;

use super::{Scene, codes, of};
use crate::gateway::assert_share;

async fn document_01_virtualservice_product_service(plane: Plane) {
    let Some(scene) = Scene::start(plane, "01").await else {
        return;
    };
    let scene = scene.with_service("product-svc", &["v1", "v2"]).await;
    // The document names subsets that nothing defines: 503 NC, and it is told so.
    let found = scene.apply("01").await;
    assert_eq!(found, codes(&["IST0101"]));
    scene.answers_status("product-svc", 503).await;
    let scene = scene
        .with_subsets("product-svc", &[("v1", "v1"), ("v2", "v2")])
        .await;
    scene.answers("product-svc", &[], "product-svc-v1").await;
    let canary = [("env", "canary")];
    scene
        .answers("product-svc", &canary, "product-svc-v2")
        .await;
    scene
        .answers("product-svc", &[("env", "Canary")], "product-svc-v1")
        .await;
}

async fn document_02_virtualservice_review_service(plane: Plane) {
    let Some(scene) = Scene::start(plane, "02").await else {
        return;
    };
    let scene = scene.with_service("review-svc", &["v1", "v2"]).await;
    let scene = scene
        .with_subsets("review-svc", &[("v1", "v1"), ("v2", "v2")])
        .await;
    assert_eq!(scene.apply("02").await, codes(&[]));
    scene.answers_status("review-svc", 200).await;
    let shares = scene.shares("review-svc", 1000).await;
    assert_share(of(&shares, "review-svc-v1"), 1000, 0.7);
    assert_share(of(&shares, "review-svc-v2"), 1000, 0.3);
}

async fn document_06_virtualservice_reviews(plane: Plane) {
    let Some(scene) = Scene::start(plane, "06").await else {
        return;
    };
    let scene = scene.with_service("reviews", &["v1", "v2", "v3"]).await;
    let scene = scene
        .with_subsets("reviews", &[("v1", "v1"), ("v2", "v2"), ("v3", "v3")])
        .await;
    assert_eq!(scene.apply("06").await, codes(&[]));
    scene
        .answers("reviews", &[("end-user", "jason")], "reviews-v2")
        .await;
    let shares = scene.shares("reviews", 1000).await;
    assert_share(of(&shares, "reviews-v1"), 1000, 0.7);
    assert_share(of(&shares, "reviews-v3"), 1000, 0.3);
}

async fn documents_10_and_11_virtualservices_myapp(plane: Plane) {
    let Some(scene) = Scene::start(plane, "10").await else {
        return;
    };
    let scene = scene.with_service("myapp", &["stable", "canary"]).await;
    let scene = scene
        .with_subsets(
            "myapp",
            &[
                ("stable", "stable"),
                ("canary", "canary"),
                ("new-version", "canary"),
            ],
        )
        .await;
    assert_eq!(scene.apply("10").await, codes(&[]));
    let split = async || {
        let shares = scene.shares("myapp", 1000).await;
        assert_share(of(&shares, "myapp-stable"), 1000, 0.9);
        assert_share(of(&shares, "myapp-canary"), 1000, 0.1);
    };
    scene.answers_status("myapp", 200).await;
    split().await;
    // The second rule for the same host: the first by age and name goes on, and both are told.
    assert_eq!(scene.apply("11").await, codes(&["IST0109"]));
    if scene.mesh.page("/debug/findings").await[0]["message"]
        .as_str()
        .unwrap()
        .contains("default/myapp-canary wins")
    {
        split().await;
    } else {
        // Both within one second: the first by name.
        let region = [("X-Region", "us-west")];
        scene.answers("myapp", &region, "myapp-canary").await;
        scene.answers("myapp", &[], "myapp-stable").await;
    }
}

async fn document_11_virtualservice_myapp_ab(plane: Plane) {
    let Some(scene) = Scene::start(plane, "11").await else {
        return;
    };
    let scene = scene.with_service("myapp", &["stable", "new"]).await;
    let subsets = [("stable", "stable"), ("new-version", "new")];
    let scene = scene.with_subsets("myapp", &subsets).await;
    assert_eq!(scene.apply("11").await, codes(&[]));
    scene.answers("myapp", &[], "myapp-stable").await;
    scene
        .answers("myapp", &[("x-region", "us-west")], "myapp-new")
        .await;
    scene
        .answers("myapp", &[("X-Region", "us-east")], "myapp-stable")
        .await;
}

async fn documents_28_to_30_virtualservice_product_service(plane: Plane) {
    let Some(scene) = Scene::start(plane, "28").await else {
        return;
    };
    let scene = scene.with_service("product-service", &["v1", "v2"]).await;
    let scene = scene
        .with_subsets("product-service", &[("v1", "v1"), ("v2", "v2")])
        .await;
    // One name: each replaces the one before.
    assert_eq!(scene.apply("28").await, codes(&[]));
    lateen_testkit::eventually("all goes to v1", async || {
        let shares = scene.shares("product-service", 100).await;
        match of(&shares, "product-service-v1") {
            100 => Ok(()),
            _ => Err(format!("{shares:?}")),
        }
    })
    .await;
    assert_eq!(scene.apply("29").await, codes(&[]));
    let debug = [("x-debug", "true")];
    scene
        .answers("product-service", &debug, "product-service-v2")
        .await;
    scene
        .answers("product-service", &[], "product-service-v1")
        .await;
    assert_eq!(scene.apply("30").await, codes(&[]));
    // The header means nothing any more; wait until that is so.
    lateen_testkit::settles("the split is in force", async || {
        let shares = scene.shares("product-service", 80).await;
        match of(&shares, "product-service-v2") {
            0 | 80 => Err(format!("{shares:?}")),
            _ => Ok(()),
        }
    })
    .await;
    let shares = scene.shares("product-service", 1000).await;
    assert_share(of(&shares, "product-service-v1"), 1000, 0.8);
    assert_share(of(&shares, "product-service-v2"), 1000, 0.2);
}

async fn document_31_virtualservice_api_gateway(plane: Plane) {
    let Some(scene) = Scene::start(plane, "31").await else {
        return;
    };
    let scene = scene.with_service("product-service", &["v1", "v2"]).await;
    let scene = scene.with_service("static-service", &["v1"]).await;
    let scene = scene
        .with_subsets("product-service", &[("stable", "v1"), ("canary", "v2")])
        .await;
    // Without gateways the rule is for sidecars, which know the host from a ServiceEntry.
    scene
        .mesh
        .create(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
             metadata: {name: api, namespace: default}\n\
             spec: {hosts: [api.example.com], resolution: STATIC, location: MESH_EXTERNAL,\n\
             \x20 ports: [{number: 80, name: http, protocol: HTTP}], endpoints: [{address: 127.0.0.1}]}\n",
        )
        .await;
    assert_eq!(scene.apply("31").await, codes(&[]));
    for (path, name) in [
        ("/api/v1/products", "product-service-v1"),
        ("/api/v1/products/7?x=1", "product-service-v1"),
        // A prefix is one of characters (fact 2).
        ("/api/v1/productsX", "product-service-v1"),
        ("/api/v2/products", "product-service-v2"),
        ("/static/app.js", "static-service-v1"),
    ] {
        lateen_testkit::settles(path, async || {
            let answer = scene.get("api.example.com", path, &[]).await;
            match answer.name() == name {
                true => Ok(()),
                false => Err(format!("{answer:?}")),
            }
        })
        .await;
    }
    assert_eq!(
        scene.get("api.example.com", "/other", &[]).await.status,
        404
    );
}

async fn document_33_virtualservice_checkout_service(plane: Plane) {
    let Some(scene) = Scene::start(plane, "33").await else {
        return;
    };
    let scene = scene.with_service("checkout-service", &["v1"]).await;
    let scene = scene.with_service("inventory-service", &["v1"]).await;
    assert_eq!(scene.apply("33").await, codes(&[]));
    scene
        .answers("checkout-service", &[], "inventory-service-v1")
        .await;
    let urgent = [("x-priority", "high")];
    let started = Instant::now();
    let (cut, patient) = tokio::join!(
        scene.get("checkout-service", "/slow/6500", &urgent),
        scene.get("checkout-service", "/slow/6500", &[]),
    );
    assert_eq!((cut.status, patient.status), (504, 200));
    assert!(started.elapsed() >= Duration::from_millis(6500));
}

on_both! {
    document_01_virtualservice_product_service,
    document_02_virtualservice_review_service,
    document_06_virtualservice_reviews,
    documents_10_and_11_virtualservices_myapp,
    document_11_virtualservice_myapp_ab,
    documents_28_to_30_virtualservice_product_service,
    document_31_virtualservice_api_gateway,
    document_33_virtualservice_checkout_service,
}
