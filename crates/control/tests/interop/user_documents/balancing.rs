//! Documents 07, 35 and 37: balancers and connection pools.

use lateen_testkit::envoy::Plane;

use super::{Scene, codes, of};

async fn document_35_destinationrule_product_service(plane: Plane) {
    let Some(scene) = Scene::start(plane, "35").await else {
        return;
    };
    let scene = scene.with_service("product-service", &["v1", "v2"]).await;
    assert_eq!(scene.apply("35").await, codes(&[]));
    scene.answers_status("product-service", 200).await;
    // One server is busy with slow requests: the other one gets nearly everything else.
    let slow: Vec<_> = (0..20)
        .map(|_| {
            let call = lateen_testkit::http::Call::through_proxy("product-service", "/slow/4000");
            let proxy = scene.proxy;
            tokio::spawn(async move { call.send(proxy).await.unwrap() })
        })
        .collect();
    let shares = scene.shares("product-service", 200).await;
    assert_eq!(
        of(&shares, "product-service-v1") + of(&shares, "product-service-v2"),
        200,
        "{shares:?}"
    );
    let mut by_server = std::collections::BTreeMap::<String, usize>::new();
    for task in slow {
        *by_server.entry(task.await.unwrap().name()).or_default() += 1;
    }
    // Least request evens out what is in flight; at random 20 would be 10 and 10 plus or minus 9
    // (4 sigma).
    let most = by_server.values().max().copied().unwrap_or_default();
    assert!((10..=13).contains(&most), "{by_server:?}");
}

async fn document_37_destinationrule_backend_service(plane: Plane) {
    let Some(scene) = Scene::start(plane, "37").await else {
        return;
    };
    let scene = scene.with_service("backend-service", &["v1"]).await;
    assert_eq!(scene.apply("37").await, codes(&[]));
    speaks_http2(&scene, "backend-service").await;
}

async fn document_07_destinationrule_reviews(plane: Plane) {
    let Some(scene) = Scene::start(plane, "07").await else {
        return;
    };
    let scene = scene.with_service("reviews", &["v1", "v2", "v3"]).await;
    // The subsets are those that document 06 names.
    assert_eq!(scene.apply("07").await, codes(&[]));
    assert_eq!(scene.apply("06").await, codes(&[]));
    speaks_http2(&scene, "reviews").await;
    scene
        .answers("reviews", &[("end-user", "jason")], "reviews-v2")
        .await;
}

/// HTTP/1.1 of the client becomes HTTP/2 on the way to the server.
async fn speaks_http2(scene: &Scene, host: &str) {
    lateen_testkit::settles("HTTP/2 to the server", async || {
        let answer = scene.get(host, "/", &[]).await;
        match answer.json()["version"] == "HTTP/2.0" {
            true => Ok(()),
            false => Err(format!("{answer:?}")),
        }
    })
    .await;
}

on_both! {
    document_07_destinationrule_reviews,
    document_37_destinationrule_backend_service,
    document_35_destinationrule_product_service,
}
