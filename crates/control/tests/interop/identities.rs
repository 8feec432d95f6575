//! Certificates of workloads on both data planes: how they come, and that they are renewed under
//! load.

use lateen_testkit::envoy::Plane;
use serde_json::Value;

use crate::member::Secured;

async fn members_talk_and_have_what_they_were_given(plane: Plane) {
    let test = "members_talk_and_have_what_they_were_given";
    let mesh = Secured::start().await;
    let Some(cart) = mesh.member(plane, test, "cart").await else {
        return;
    };
    let Some(shop) = mesh.member(plane, test, "shop").await else {
        return;
    };
    mesh.distributed(2).await;
    let answer = shop.gets("cart", "/", 200).await;
    assert_eq!(answer.name(), "cart");
    let dump: Value = serde_json::from_str(&cart.envoy.get("/config_dump").await.unwrap()).unwrap();
    assert!(!dump.to_string().contains("PRIVATE KEY"));
}

on_both!(members_talk_and_have_what_they_were_given);
