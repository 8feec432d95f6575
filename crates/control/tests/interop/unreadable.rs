//! Security objects in the store that this version cannot read: what they guarded stays shut, and it
//! is said what is wrong. The twins are the same objects as they can be read.

use std::time::Duration;

use lateen_testkit::envoy::Plane;
use lateen_testkit::http::Call;
use lateen_testkit::settles;
use lateen_testkit::tls_client::Dial;
use serde_json::{Value, json};

use crate::authorization::Guarded;
use crate::callers::{Clients, http};
use crate::member::Secured;
use crate::mesh::{Gateway, Mesh};
use crate::scope::{Services, knows};
use crate::sidecar::Sidecar;
use crate::tokens;

fn object(kind: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1", "kind": kind,
        "metadata": {"name": "old", "namespace": "default"}, "spec": spec,
    })
}

/// What `analyze` says about the object.
async fn said(mesh: &Mesh) -> Vec<String> {
    said_of(mesh, "old").await
}

async fn said_of(mesh: &Mesh, name: &str) -> Vec<String> {
    let call = Call::get("127.0.0.1", "/debug/findings").method("POST");
    let call = call.header("content-type", "application/json").body("[]");
    let found = call.send(mesh.api).await.unwrap().json();
    let found = found.as_array().unwrap().iter();
    let about = found.filter(|one| one["subject"]["name"] == name && one["code"] == "IST0106");
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

/// Waits until requests for a host through a gateway end so.
async fn ends(gateway: &Gateway, status: u16, what: &str) {
    settles(what, async || {
        match gateway.get("a.test", "/").await.status {
            found if found == status => Ok(()),
            other => Err(format!("{other}; {:?}", gateway.envoy.rejected().await)),
        }
    })
    .await;
}

async fn nothing_is_sent_where_nobody_knows_with_which_tls(plane: Plane) {
    let test = "nothing_is_sent_where_nobody_knows_with_which_tls";
    let Some((mut mesh, gateway, _reviews)) = tokens::gateway(plane, test).await else {
        return;
    };
    let rule = |policy: Value| {
        let mut rule = object("DestinationRule", json!({"host": "reviews"}));
        rule["apiVersion"] = json!("networking.istio.io/v1");
        rule["spec"]["trafficPolicy"] = policy;
        rule
    };
    mesh.restart_with(rule(json!({"tls": {"mode": "DISABLE"}})))
        .await;
    ends(&gateway, 200, "it can be read").await;
    mesh.restart_with(rule(json!({"tls": {"mode": "QUANTUM"}})))
        .await;
    ends(&gateway, 503, "it is closed").await;
    let found = said(&mesh).await;
    assert!(
        found[0].contains("nothing is sent to its host"),
        "{found:?}"
    );
    let balancer = json!({"loadBalancer": {"simple": "QUANTUM"}});
    mesh.restart_with(rule(balancer)).await;
    ends(&gateway, 200, "it said nothing of TLS").await;
    assert_ne!(said(&mesh).await, Vec::<String>::new());
}

async fn a_sidecar_resource_that_cannot_be_read_shows_no_more_than_it_did(plane: Plane) {
    let test = "a_sidecar_resource_that_cannot_be_read_shows_no_more_than_it_did";
    let mut mesh = Mesh::start().await;
    let Some(proxy) = Sidecar::start(plane, &mesh, test).await else {
        return;
    };
    let _services = Services::start(&mesh).await;
    knows(
        &proxy,
        &[
            "far.other",
            "front.default",
            "near.default",
            "nearby.default",
        ],
    )
    .await;
    let sidecar = |egress: Value| {
        let mut sidecar = object("Sidecar", json!({"egress": egress}));
        sidecar["apiVersion"] = json!("networking.istio.io/v1");
        sidecar
    };
    let lost = |hosts: Value| sidecar(json!([{"hosts": hosts, "captureMode": "LATER"}]));
    mesh.restart_with(lost(json!(["./near.default.svc.cluster.local", "other/*"])))
        .await;
    knows(&proxy, &["far.other", "near.default"]).await;
    mesh.restart_with(lost(json!("?"))).await;
    knows(&proxy, &["front.default", "near.default", "nearby.default"]).await;
    let found = said(&mesh).await;
    assert!(found[0].contains("see no more than"), "{found:?}");
    let everything = sidecar(json!([{"hosts": ["*/*"]}]));
    mesh.restart_with(everything).await;
    knows(
        &proxy,
        &[
            "far.other",
            "front.default",
            "near.default",
            "nearby.default",
        ],
    )
    .await;
}

async fn nobody_is_served_while_the_settings_of_the_mesh_cannot_be_read(plane: Plane) {
    let test = "nobody_is_served_while_the_settings_of_the_mesh_cannot_be_read";
    let Some(mut guarded) = Guarded::start(plane, test).await else {
        return;
    };
    let settings = |mesh: &str| {
        json!({
            "apiVersion": "v1", "kind": "ConfigMap", "data": {"mesh": mesh},
            "metadata": {"name": "istio", "namespace": "istio-system"},
        })
    };
    let closes = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
                  metadata: {name: all, namespace: default}\nspec: {action: DENY, rules: [{}]}\n---\n";
    guarded
        .mesh
        .restart_with(settings("trustDomain: shop.test"))
        .await;
    guarded.mesh.distributed(1).await;
    assert_eq!(said_of(&guarded.mesh, "istio").await, Vec::<String>::new());

    guarded
        .mesh
        .restart_with(settings("trustDomain: [shop.test]"))
        .await;
    let found = said_of(&guarded.mesh, "istio").await;
    assert!(found[0].contains("no proxy is served"), "{found:?}");
    // The proxy asks again and again; it keeps what it has.
    guarded.mesh.apply(closes).await;
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let answer = Call::get("front", "/").send(guarded.sidecar.http).await;
        assert_eq!(answer.unwrap().status, 200);
        assert_eq!(
            guarded
                .mesh
                .page("/debug/syncz")
                .await
                .as_array()
                .map_or(0, Vec::len),
            0
        );
    }
    // Mended through the API, which is there all the time.
    let mended = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\n\
                  data: {mesh: 'trustDomain: shop.test'}\n---\n";
    guarded.mesh.apply(mended).await;
    becomes(&guarded, 403, false, "the proxy is served again").await;
}

on_both!(
    nothing_is_sent_where_nobody_knows_with_which_tls,
    a_sidecar_resource_that_cannot_be_read_shows_no_more_than_it_did,
    nobody_is_served_while_the_settings_of_the_mesh_cannot_be_read,
    a_stored_policy_that_cannot_be_read_denies,
    tokens_are_not_trusted_where_the_rules_for_them_cannot_be_read,
    mutual_tls_is_required_where_the_rule_cannot_be_read,
);
