//! Documents 40 and 42: services outside the mesh, found by DNS.
//!
//! Their names resolve nowhere here, so a request ends with 503 and not with the answer for unknown
//! hosts; what the proxies resolve, and how, is in their configuration.

use lateen_testkit::envoy::Plane;

use super::{Scene, codes};

async fn document_40_serviceentry_external_weather_api(plane: Plane) {
    by_dns(plane, "40", "weather-api.example.com", 80, "").await;
}

async fn document_42_serviceentry_external_grpc_service(plane: Plane) {
    by_dns(plane, "42", "grpc.external.com", 8080, ":8080").await;
}

async fn by_dns(plane: Plane, document: &str, host: &str, port: u16, suffix: &str) {
    let Some(scene) = Scene::start(plane, document).await else {
        return;
    };
    let authority = format!("{host}{suffix}");
    let before = scene.get(&authority, "/", &[]).await.status;
    assert_ne!(before, 503, "a host that nobody knows");
    assert_eq!(scene.apply(document).await, codes(&[]));
    scene.answers_status(&authority, 503).await;
    let dump = scene.envoy.get("/config_dump").await.unwrap();
    let dump: serde_json::Value = serde_json::from_str(&dump).unwrap();
    let cluster = find(&dump, &format!("outbound|{port}||{host}"));
    assert_eq!(cluster["type"], "STRICT_DNS", "{cluster:#}");
    let endpoint = &cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"];
    let address = &endpoint["address"]["socket_address"];
    assert_eq!(address["address"], host, "{cluster:#}");
    assert_eq!(address["port_value"], port, "{cluster:#}");
}

/// The cluster of this name in a dump.
fn find(dump: &serde_json::Value, name: &str) -> serde_json::Value {
    let configs = dump["configs"].as_array().unwrap().iter();
    let mut clusters = configs
        .filter_map(|config| config["dynamic_active_clusters"].as_array())
        .flatten()
        .map(|cluster| &cluster["cluster"]);
    let found = clusters.find(|cluster| cluster["name"] == name);
    found.unwrap_or_else(|| panic!("no cluster {name}")).clone()
}

on_both! {
    document_40_serviceentry_external_weather_api,
    document_42_serviceentry_external_grpc_service,
}
