//! Documents 03, 13, 35 and 37 to 39: balancers, connection pools, localities, ejection of
//! endpoints that fail.

use lateen_testkit::echo::Echo;
use lateen_testkit::envoy::Plane;
use lateen_testkit::http::Call;
use lateen_testkit::{ports, settles};

use super::{Scene, codes, of};
use crate::mesh::workload;

async fn document_35_destinationrule_product_service(plane: Plane) {
    let Some(scene) = Scene::start(plane, "35").await else {
        return;
    };
    let host = "product-service";
    let scene = scene.with_service(host, &["v1"]).await;
    assert_eq!(scene.apply("35").await, codes(&[]));
    scene.answers_status(host, 200).await;
    // One server is busy with slow requests when another one comes.
    let slow: Vec<_> = (0..60)
        .map(|_| {
            let call = Call::through_proxy(host, SLOW);
            let proxy = scene.proxy;
            tokio::spawn(async move { call.send(proxy).await.unwrap() })
        })
        .collect();
    let busy = "cluster.outbound|80||product-service.default.svc.cluster.local.upstream_rq_active";
    settles("the slow requests are with v1", async || {
        match scene.envoy.stat(busy).await {
            60 => Ok(()),
            active => Err(format!("{active} active")),
        }
    })
    .await;
    let scene = scene.with_service_version(host, "v2").await;
    lateen_testkit::eventually("v2 answers", async || {
        let answer = scene.get(host, "/", &[]).await;
        match answer.name() == "product-service-v2" {
            true => Ok(()),
            false => Err(format!("{answer:?}")),
        }
    })
    .await;
    let shares = scene.shares(host, 1000).await;
    assert!(
        slow.iter().all(|request| !request.is_finished()),
        "too slow a machine"
    );
    // Of two endpoints drawn, the one with fewer requests: v2 but when v1 is drawn twice, so 750 of
    // 1000 (or all, where nobody is drawn twice); at random it would be 500. 660 is 6.5 sigma from
    // the first and 10 from the other. A worker counts its own requests: that it has no more than
    // ten of the sixty, against eight at a time that are split here, is a chance of 1 in 6 million.
    let idle = of(&shares, "product-service-v2");
    assert_eq!(idle + of(&shares, "product-service-v1"), 1000, "{shares:?}");
    assert!(idle >= 660, "{shares:?}");
    assert_eq!(scene.servers["product-service-v1"].hits(SLOW), 60);
    for request in slow {
        request.abort();
    }
}

/// Longer than the test.
const SLOW: &str = "/slow/60000";

/// A service whose last server fails with `status`: after a few requests it gets none, for as long
/// as the document says (30 s or more).
async fn ejects(plane: Plane, document: &str, host: &str, servers: usize, status: u16) {
    let Some(scene) = Scene::start(plane, document).await else {
        return;
    };
    let versions: Vec<String> = (1..=servers).map(|n| format!("v{n}")).collect();
    let versions: Vec<&str> = versions.iter().map(String::as_str).collect();
    let scene = scene.with_service(host, &versions).await;
    assert_eq!(scene.apply(document).await, codes(&[]));
    let bad = status.to_string();
    scene.answers_status(host, 200).await;
    scene.servers[&format!("{host}-v{servers}")].always(status);
    lateen_testkit::eventually("the failing server is ejected", async || {
        let shares = scene.shares(host, 40 * servers).await;
        match of(&shares, &bad) {
            0 => Ok(()),
            _ => Err(format!("{shares:?}")),
        }
    })
    .await;
    assert_eq!(of(&scene.shares(host, 200).await, &bad), 0);
    // One of them is the most that may go.
    scene.servers[&format!("{host}-v1")].always(status);
    scene.shares(host, 40 * servers).await;
    let shares = scene.shares(host, 40 * servers).await;
    assert!(of(&shares, &bad) > 0, "{shares:?}");
}

async fn document_03_destinationrule_payment_dr(plane: Plane) {
    // Without maxEjectionPercent one in ten may be ejected, so there have to be ten.
    ejects(plane, "03", "payment-svc", 10, 500).await;
}

async fn document_13_destinationrule_ratings(plane: Plane) {
    ejects(plane, "13", "ratings", 2, 502).await;
}

async fn document_38_destinationrule_backend_service(plane: Plane) {
    ejects(plane, "38", "backend-service", 2, 503).await;
}

async fn document_37_destinationrule_backend_service(plane: Plane) {
    let Some(scene) = Scene::start(plane, "37").await else {
        return;
    };
    let scene = scene.with_service("backend-service", &["v1"]).await;
    assert_eq!(scene.apply("37").await, codes(&[]));
    speaks_http2(&scene, "backend-service").await;
    // 100 requests on a connection, then another one.
    let shares = scene.shares("backend-service", 500).await;
    assert_eq!(of(&shares, "backend-service-v1"), 500);
    let cluster = "cluster.outbound|80||backend-service.default.svc.cluster.local";
    let full = format!("{cluster}.upstream_cx_max_requests");
    lateen_testkit::eventually("connections that are full", async || {
        match scene.envoy.stat(&full).await {
            4.. => Ok(()),
            few => Err(few.to_string()),
        }
    })
    .await;
}

async fn document_39_destinationrule_product_service(plane: Plane) {
    let Some(scene) = Scene::start(plane, "39").await else {
        return;
    };
    let host = "product-service";
    let mut scene = scene.with_service(host, &[]).await;
    for (version, locality) in [("west", "us-west-2/a"), ("east", "us-east-1/b")] {
        let echo = Echo::start(&format!("{host}-{version}")).await;
        let entry = workload(host, version, "http", echo.port());
        scene.mesh.create(&located(&entry, locality)).await;
        scene.servers.insert(version.to_owned(), echo);
    }
    // The client runs in us-west-2.
    let client = workload("client", "v1", "http", ports::reserve());
    scene.mesh.apply(&located(&client, "us-west-2/c")).await;
    assert_eq!(scene.apply("39").await, codes(&[]));
    scene.answers_status(host, 200).await;
    lateen_testkit::eventually("the shares are in force", async || {
        let shares = scene.shares(host, 1000).await;
        let west = of(&shares, "product-service-west");
        match (750..=850).contains(&west) && west + of(&shares, "product-service-east") == 1000 {
            true => Ok(()),
            false => Err(format!("{shares:?}")),
        }
    })
    .await;
    // A client elsewhere is not what the document is about.
    scene.mesh.apply(&located(&client, "eu-central-1/a")).await;
    lateen_testkit::eventually("no shares for others", async || {
        let shares = scene.shares(host, 1000).await;
        match (400..=600).contains(&of(&shares, "product-service-west")) {
            true => Ok(()),
            false => Err(format!("{shares:?}")),
        }
    })
    .await;
}

/// A WorkloadEntry in a locality.
fn located(entry: &str, locality: &str) -> String {
    entry.replace("  address:", &format!("  locality: {locality}\n  address:"))
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
    document_03_destinationrule_payment_dr,
    document_13_destinationrule_ratings,
    document_38_destinationrule_backend_service,
    document_39_destinationrule_product_service,
    document_37_destinationrule_backend_service,
    document_35_destinationrule_product_service,
}
