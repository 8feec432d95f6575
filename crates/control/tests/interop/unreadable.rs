//! Security objects in the store that this version cannot read: what they guarded stays shut, and it
//! is said what is wrong. The twins are the same objects as they can be read.

use lateen_testkit::envoy::Plane;
use lateen_testkit::http::Call;
use lateen_testkit::settles;
use lateen_testkit::tls_client::Dial;
use serde_json::{Value, json};

use crate::authorization::Guarded;
use crate::callers::{Clients, http};
use crate::member::Secured;
use crate::mesh::Mesh;

fn object(kind: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1", "kind": kind,
        "metadata": {"name": "old", "namespace": "default"}, "spec": spec,
    })
}

/// What `analyze` says about the object.
async fn said(mesh: &Mesh) -> Vec<String> {
    let call = Call::get("127.0.0.1", "/debug/findings").method("POST");
    let call = call.header("content-type", "application/json").body("[]");
    let found = call.send(mesh.api).await.unwrap().json();
    let found = found.as_array().unwrap().iter();
    let about = found.filter(|one| one["subject"]["name"] == "old" && one["code"] == "IST0106");
    about
        .map(|one| format!("{} {}", one["path"], one["message"]))
        .collect()
}

async fn remove(mesh: &Mesh, plural: &str) {
    let path = format!("/apis/security.istio.io/v1/namespaces/default/{plural}/old");
    let call = Call::get("127.0.0.1", &path).method("DELETE");
    let answer = call.send(mesh.api).await.unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
}

/// Waits until requests to the workload and connections to it end so.
async fn becomes(guarded: &Guarded, status: u16, connects: bool, what: &str) {
    settles(what, async || {
        let answer = Call::get("front", "/").send(guarded.sidecar.http).await?;
        match answer.status == status && guarded.connects().await == connects {
            true => Ok(()),
            false => Err(format!("{answer:?}")),
        }
    })
    .await;
}

async fn a_stored_policy_that_cannot_be_read_denies(plane: Plane) {
    let test = "a_stored_policy_that_cannot_be_read_denies";
    let Some(mut guarded) = Guarded::start(plane, test).await else {
        return;
    };
    let front = json!({"matchLabels": {"app": "front"}});
    let policy = |spec| object("AuthorizationPolicy", spec);
    let mut allows = json!({"selector": front, "action": "ALLOW", "rules": [{}]});
    guarded.mesh.restart_with(policy(allows.clone())).await;
    becomes(&guarded, 200, true, "it can be read and allows").await;
    assert_eq!(said(&guarded.mesh).await, Vec::<String>::new());

    allows["rules"] = json!([{"unless": []}]);
    guarded.mesh.restart_with(policy(allows.clone())).await;
    becomes(&guarded, 403, false, "it is closed").await;
    let found = said(&guarded.mesh).await;
    assert!(found[0].contains("spec.rules[0].unless"), "{found:?}");
    assert!(found[0].contains("cannot be read"), "{found:?}");

    allows["selector"] = json!({"matchLabels": {"app": "back"}});
    guarded.mesh.restart_with(policy(allows.clone())).await;
    becomes(&guarded, 200, true, "it was about others").await;
    allows["selector"] = json!({"matchExpressions": []});
    guarded.mesh.restart_with(policy(allows)).await;
    becomes(&guarded, 403, false, "nobody knows whom it was about").await;
    remove(&guarded.mesh, "authorizationpolicies").await;
    becomes(&guarded, 200, true, "it is gone").await;

    // Of a version that there was never here.
    let mut later = policy(json!({"rules": [{}]}));
    later["apiVersion"] = json!("security.istio.io/v2");
    guarded.mesh.restart_with(later).await;
    becomes(&guarded, 403, false, "another version's").await;
}

async fn tokens_are_not_trusted_where_the_rules_for_them_cannot_be_read(plane: Plane) {
    let test = "tokens_are_not_trusted_where_the_rules_for_them_cannot_be_read";
    let Some(mut guarded) = Guarded::start(plane, test).await else {
        return;
    };
    let front = json!({"matchLabels": {"app": "front"}});
    let tokens = |spec| object("RequestAuthentication", spec);
    let mut rules = json!({"selector": front, "jwtRules": [{"issuer": "me", "jwks": KEYS}]});
    guarded.mesh.restart_with(tokens(rules.clone())).await;
    becomes(&guarded, 200, true, "who shows nothing passes").await;

    rules["jwtRules"][0]["outputClaimToHeaders"] = json!([{"header": "x", "claims": "sub"}]);
    guarded.mesh.restart_with(tokens(rules.clone())).await;
    becomes(&guarded, 403, true, "no request can be trusted").await;
    assert_ne!(said(&guarded.mesh).await, Vec::<String>::new());

    rules["selector"] = json!({"matchLabels": {"app": "back"}});
    guarded.mesh.restart_with(tokens(rules)).await;
    becomes(&guarded, 200, true, "it was about others").await;
}

const KEYS: &str = r#"{"keys":[{"kty":"EC","crv":"P-256","kid":"1",
"x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}"#;

async fn mutual_tls_is_required_where_the_rule_cannot_be_read(plane: Plane) {
    let test = "mutual_tls_is_required_where_the_rule_cannot_be_read";
    let mut mesh = Secured::start().await;
    let Some(cart) = mesh.member(plane, test, "cart").await else {
        return;
    };
    let clients = Clients::new(&mesh.authority);
    let alpn = ["istio-http/1.1", "istio"];
    let rule = |app: &str, mode: &str| {
        let selector = json!({"matchLabels": {"app": app}});
        let spec = json!({"selector": selector, "mtls": {"mode": mode}});
        object("PeerAuthentication", spec)
    };
    let becomes = async |plain: bool, what: &str| {
        settles(what, async || {
            let found = http(cart.http, Dial::Plain).await;
            match found.is_ok() == plain {
                true => Ok(()),
                false => Err(format!("{found:?}")),
            }
        })
        .await;
        let known = http(cart.http, Dial::Tls(Some(&clients.right), &alpn)).await;
        assert!(known.is_ok(), "{what}: {known:?}");
    };
    mesh.restart_with(rule("cart", "PERMISSIVE")).await;
    becomes(true, "it can be read").await;
    mesh.restart_with(rule("cart", "OPEN")).await;
    becomes(false, "it is closed").await;
    assert_ne!(said(&mesh).await, Vec::<String>::new());
    mesh.restart_with(rule("shop", "OPEN")).await;
    becomes(true, "it was about others").await;
}

on_both!(
    a_stored_policy_that_cannot_be_read_denies,
    tokens_are_not_trusted_where_the_rules_for_them_cannot_be_read,
    mutual_tls_is_required_where_the_rule_cannot_be_read,
);
