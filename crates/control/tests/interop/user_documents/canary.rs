//! Documents 46 to 48: a canary in three steps, under load.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use lateen_testkit::envoy::Plane;
use lateen_testkit::http::{Call, Client};
use lateen_testkit::settles;

use super::{Scene, codes, of};
use crate::gateway::assert_share;

const HOST: &str = "recommendation-service";

async fn documents_46_to_48_a_canary_in_three_steps_under_load_fails_no_request(plane: Plane) {
    let Some(scene) = Scene::start(plane, "46").await else {
        return;
    };
    let scene = scene.with_service(HOST, &["v1", "v2"]).await;
    let scene = scene
        .with_subsets(HOST, &[("v1", "v1"), ("v2", "v2")])
        .await;
    scene.answers_status(HOST, 200).await;

    let (stop, answered) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
    );
    let load = (0..8).map(|_| {
        let (stop, answered, proxy) = (stop.clone(), answered.clone(), scene.proxy);
        tokio::spawn(async move {
            let call = Call::through_proxy(HOST, "/");
            let mut client = Client::connect(proxy).await.unwrap();
            while !stop.load(Ordering::Relaxed) {
                let answer = client.send(&call).await.unwrap();
                assert_eq!(answer.status, 200, "{answer:?}");
                answered.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
    });
    let load: Vec<_> = load.collect();

    for (document, to_v2) in [("46", 0.1), ("47", 0.5), ("48", 1.0)] {
        assert_eq!(scene.apply(document).await, codes(&[]));
        settles(&format!("document {document} is in force"), async || {
            let shares = scene.shares(HOST, 40).await;
            let v2 = of(&shares, "recommendation-service-v2") as f64 / 40.0;
            match (v2 - to_v2).abs() < 0.35 {
                true => Ok(()),
                false => Err(format!("{shares:?}")),
            }
        })
        .await;
        let shares = scene.shares(HOST, 1000).await;
        assert_share(of(&shares, "recommendation-service-v2"), 1000, to_v2);
        assert_share(of(&shares, "recommendation-service-v1"), 1000, 1.0 - to_v2);
    }

    stop.store(true, Ordering::Relaxed);
    for task in load {
        task.await.unwrap();
    }
    assert!(answered.load(Ordering::Relaxed) > 500, "{answered:?}");
    assert_eq!(scene.envoy.rejected().await, Default::default());
}

on_both! {
    documents_46_to_48_a_canary_in_three_steps_under_load_fails_no_request,
}
