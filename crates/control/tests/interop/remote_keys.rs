//! Keys of tokens that the proxies fetch themselves (SEC-14, `PILOT_JWT_ENABLE_REMOTE_JWKS`): over the
//! cluster of a service, when a token needs them. Without keys no token passes.

use lateen_control::KeysFetchedBy;
use lateen_testkit::envoy::Plane;
use lateen_testkit::http::Call;
use lateen_testkit::ports;
use lateen_testkit::settles;
use lateen_testkit::tokens::{Issuer, KeyServer};
use serde_json::json;

use crate::mesh::{Gateway, Mesh, Reviews};
use crate::tokens::{answers, bearer, for_gateway, serving};

/// The server as a service of the mesh. The control plane cannot resolve its name.
fn server(port: u16) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
         metadata: {{name: keys, namespace: default}}\nspec:\n  hosts: [keys.test]\n  \
         ports: [{{number: 8000, name: http, protocol: HTTP}}]\n  resolution: STATIC\n  \
         endpoints: [{{address: 127.0.0.1, ports: {{http: {port}}}}}]\n---\n"
    )
}

async fn gateway(plane: Plane, test: &str, who: KeysFetchedBy) -> Option<(Mesh, Gateway, Reviews)> {
    let mesh = Mesh::with_keys_fetched_by(who).await;
    let gateway = Gateway::start(plane, &mesh, test, true).await?;
    Some(serving(mesh, gateway).await)
}

fn call(issuer: &Issuer) -> Call {
    bearer(Call::get("a.test", "/"), &issuer.token(json!({})))
}

/// Waits until a call is refused by all workers in these words.
async fn refused(gateway: &Gateway, call: &Call, words: &str) {
    settles(words, async || {
        let answer = call.send(gateway.http).await?;
        match answer.status == 401 && answer.body == words {
            true => Ok(()),
            false => Err(format!("{answer:?}; {:?}", gateway.envoy.rejected().await)),
        }
    })
    .await;
}

const NOT_FETCHED: &str = "Jwks remote fetch is failed";

async fn a_proxy_fetches_keys_itself_and_refuses_tokens_without(plane: Plane) {
    let test = "a_proxy_fetches_keys_itself_and_refuses_tokens_without";
    let who = KeysFetchedBy::ProxiesIfInMesh;
    let Some((mesh, gateway, _reviews)) = gateway(plane, test, who).await else {
        return;
    };
    let (known, rotated) = (Issuer::new("me"), Issuer::new("me").key_id("new"));
    let port = ports::reserve();
    let rules = "  - issuer: me\n    jwksUri: http://keys.test:8000/keys?all\n    timeout: 2s\n";
    mesh.apply(&(server(port) + &for_gateway(rules))).await;

    // Nobody is there: no token is right, and requests without one pass.
    refused(&gateway, &call(&known), NOT_FETCHED).await;
    assert_eq!(gateway.get("a.test", "/").await.status, 200);

    let keys = KeyServer::at(port).await;
    keys.page("/keys", 503, &known.jwks());
    refused(&gateway, &call(&known), NOT_FETCHED).await;
    keys.page("/keys", 200, "<html>");
    refused(&gateway, &call(&known), NOT_FETCHED).await;
    keys.page("/keys", 200, &known.jwks());
    answers(&gateway, &call(&known), 200).await;
    refused(
        &gateway,
        &call(&Issuer::new("me")),
        "Jwt verification fails",
    )
    .await;
    refused(
        &gateway,
        &call(&Issuer::new("other")),
        "Jwt issuer is not configured",
    )
    .await;

    // Keys that are too old are fetched again.
    keys.page("/keys", 200, &rotated.jwks());
    answers(&gateway, &call(&rotated), 200).await;
    answers(&gateway, &call(&known), 401).await;
    assert!(keys.hits("/keys") > 0);
    assert_eq!(gateway.envoy.rejected().await, Default::default());

    // A server that is no service of the mesh is asked by the control plane.
    let outside = KeyServer::start().await;
    outside.page("/keys", 200, &known.jwks());
    let uri = outside.url("/keys");
    mesh.apply(&for_gateway(&format!(
        "  - issuer: me\n    jwksUri: {uri}\n"
    )))
    .await;
    answers(&gateway, &call(&known), 200).await;
    answers(&gateway, &call(&rotated), 401).await;
}

async fn where_only_proxies_fetch_keys_a_server_outside_the_mesh_gives_none(plane: Plane) {
    let test = "where_only_proxies_fetch_keys_a_server_outside_the_mesh_gives_none";
    let who = KeysFetchedBy::Proxies;
    let Some((mesh, gateway, _reviews)) = gateway(plane, test, who).await else {
        return;
    };
    let known = Issuer::new("me");
    let keys = KeyServer::start().await;
    keys.page("/keys", 200, &known.jwks());
    let rules = |uri: &str| for_gateway(&format!("  - issuer: me\n    jwksUri: {uri}\n"));
    mesh.apply(&rules(&keys.url("/keys"))).await;
    refused(&gateway, &call(&known), NOT_FETCHED).await;
    assert_eq!(gateway.get("a.test", "/").await.status, 200);
    assert_eq!(keys.hits("/keys"), 0);
    mesh.apply(&(server(keys.port()) + &rules("http://keys.test:8000/keys")))
        .await;
    answers(&gateway, &call(&known), 200).await;
    // What is to be asked over TLS is not asked in clear, though the server would answer.
    mesh.apply(&rules("https://keys.test:8000/keys")).await;
    refused(&gateway, &call(&known), "Jwt verification fails").await;
}

on_both!(
    a_proxy_fetches_keys_itself_and_refuses_tokens_without,
    where_only_proxies_fetch_keys_a_server_outside_the_mesh_gives_none,
);
