//! Documents 19, 25, 27 and 41, which have a field that Istio does not know: refused at its line, with
//! the right spelling, and nothing that serves is disturbed.

use lateen_testkit::envoy::Plane;

use super::{Scene, offered};

async fn document_19_requestauthentication_jwt_auth(plane: Plane) {
    let words = ["spec.jwtRules[0].triggerRules", "notPaths"];
    refused(plane, "19", "api", &words).await;
}

async fn document_25_destinationrule_reviews(plane: Plane) {
    refused(
        plane,
        "25",
        "reviews",
        &[
            "spec.trafficPolicy.localityLbSetting",
            "loadBalancer.localityLbSetting",
        ],
    )
    .await;
}

async fn document_27_destinationrule_api(plane: Plane) {
    refused(
        plane,
        "27",
        "api",
        &[
            "spec.trafficPolicy.loadBalancer.warmupDuration",
            "warmup.duration",
        ],
    )
    .await;
}

async fn document_41_serviceentry_external_payment_api(plane: Plane) {
    refused(plane, "41", "payment", &["spec.tls", "unknown field"]).await;
}

async fn refused(plane: Plane, document: &str, host: &str, words: &[&str]) {
    let Some(scene) = Scene::start(plane, document).await else {
        return;
    };
    let scene = scene.with_service(host, &["v1"]).await;
    let name = format!("{host}-v1");
    scene.answers(host, &[], &name).await;
    let revision = scene.mesh.page("/debug/pushz").await["revision"].clone();
    let (status, said) = offered(&scene.mesh, document).await;
    assert!((400..500).contains(&status), "{status} {said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is not in {said}");
    }
    let after = scene.mesh.page("/debug/pushz").await["revision"].clone();
    assert_eq!(revision, after);
    scene.answers(host, &[], &name).await;
}

on_both! {
    document_19_requestauthentication_jwt_auth,
    document_25_destinationrule_reviews,
    document_27_destinationrule_api,
    document_41_serviceentry_external_payment_api,
}
