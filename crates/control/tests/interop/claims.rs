//! What tokens say leads requests elsewhere and decides what they may do: routes by claims (VS-16),
//! and authorization policies that ask for tokens (SEC-22).

use lateen_testkit::envoy::Plane;
use lateen_testkit::http::Call;
use lateen_testkit::tokens::Issuer;
use serde_json::{Value, json};

use crate::gateway::{rule, served};
use crate::tokens::{ISSUER, answers, bearer, for_gateway, gateway, guarded, inline};

async fn a_gateway_routes_by_claims(plane: Plane) {
    let test = "a_gateway_routes_by_claims";
    let Some((mesh, gateway, _reviews)) = gateway(plane, test).await else {
        return;
    };
    let issuer = Issuer::new(ISSUER);
    let to = |route: &str| {
        format!(
            "headers: {{response: {{set: {{x-route: {route}}}}}}}\n    directResponse: {{status: 200}}\n"
        )
    };
    let by = |matched: &str, route: &str| format!("  - match: [{{{matched}}}]\n    {}", to(route));
    let rules = [
        by(
            "headers: {'@request.auth.claims.group': {exact: admin}}",
            "admin",
        ),
        by(
            "uri: {prefix: /p}, headers: {'@request.auth.claims.org.team': {prefix: blue-}}",
            "blue",
        ),
        by(
            "headers: {'@request.auth.claims[https://a.test/roles]': {regex: 'r[0-9]'}}",
            "role",
        ),
        by(
            "headers: {'@request.auth.claims.scope': {exact: write}}",
            "write",
        ),
        by("headers: {'@request.auth.claims.vip': {}}", "vip"),
        by(
            "uri: {prefix: /without}, withoutHeaders: {'@request.auth.claims.sub': {exact: bob}}",
            "not-bob",
        ),
        format!("  - {}", to("rest")),
    ]
    .concat();
    let only = by(
        "headers: {'@request.auth.claims.group': {exact: admin}}",
        "only",
    );
    mesh.apply(&(rule("claims.test", &rules) + &rule("only.test", &only)))
        .await;
    mesh.apply(&for_gateway(&inline(ISSUER, &issuer.jwks(), "")))
        .await;
    mesh.distributed(1).await;
    guarded(&gateway).await;
    served(&gateway, "claims.test").await;
    let check = async |path: &str, claims: Value, expect: &str| {
        let call = bearer(
            Call::get("claims.test", path),
            &issuer.token(claims.clone()),
        );
        let answer = gateway.send(&call).await;
        let found = (answer.status, answer.header("x-route"));
        assert_eq!(
            found,
            (200, expect.to_owned()),
            "{path} {claims}: {answer:?}"
        );
    };
    check("/", json!({"group": "admin"}), "admin").await;
    check("/", json!({"group": ["user", "admin"]}), "admin").await;
    check("/", json!({"group": "Admin"}), "rest").await;
    check("/", json!({"group": ["user"]}), "rest").await;
    check("/p", json!({"org": {"team": "blue-1"}}), "blue").await;
    check("/q", json!({"org": {"team": "blue-1"}}), "rest").await;
    check("/p", json!({"org.team": "blue-1"}), "rest").await;
    check("/", json!({"https://a.test/roles": ["r1"]}), "role").await;
    check("/", json!({"https://a.test/roles": ["r12"]}), "rest").await;
    check("/", json!({"scope": "read write"}), "write").await;
    check("/", json!({"scope": "read writer"}), "rest").await;
    check("/", json!({"vip": true}), "vip").await;
    check("/without", json!({"sub": "alice"}), "not-bob").await;
    check("/without", json!({"sub": "bob"}), "rest").await;
    // Nobody without a token is an administrator, whatever the headers say.
    let forged = Call::get("claims.test", "/").header("request.auth.claims.group", "admin");
    let answer = gateway.send(&forged).await;
    assert_eq!(
        (answer.status, answer.header("x-route")),
        (200, "rest".into())
    );
    let wrong = Issuer::new(ISSUER).token(json!({"group": "admin"}));
    let call = Call::get("claims.test", "/");
    assert_eq!(gateway.send(&bearer(call, &wrong)).await.status, 401);
    // A host whose only route asks for a claim.
    let call = Call::get("only.test", "/");
    assert_eq!(gateway.send(&call).await.status, 404);
    let user = bearer(call.clone(), &issuer.token(json!({"group": "user"})));
    assert_eq!(gateway.send(&user).await.status, 404);
    let admin = bearer(call, &issuer.token(json!({"group": "admin"})));
    assert_eq!(gateway.send(&admin).await.header("x-route"), "only");
    assert_eq!(gateway.envoy.rejected().await, Default::default());
}

const ASKS_FOR_TOKENS: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: tokens, namespace: istio-system}
spec:
  selector: {matchLabels: {app: istio-ingressgateway}}
  rules:
  - to: [{operation: {paths: [/public]}}]
  - from: [{source: {requestPrincipals: ['https://issuer.test/alice']}}]
  - from: [{source: {requestPrincipals: ['*']}}]
    to: [{operation: {paths: [/members]}}]
  - to: [{operation: {paths: [/admin]}}]
    when: [{key: 'request.auth.claims[groups]', values: [admin]}]
  - to: [{operation: {paths: [/write]}}]
    when: [{key: 'request.auth.claims[scope]', values: [write]}]
  - to: [{operation: {paths: [/shop]}}]
    when: [{key: request.auth.audiences, values: [shop]}]
  - to: [{operation: {paths: [/app]}}]
    when: [{key: request.auth.presenter, values: [app]}]
  - to: [{operation: {paths: [/carol]}}]
    when: [{key: request.auth.principal, values: ['https://issuer.test/carol']}]
";

async fn authorization_can_ask_for_tokens_and_what_they_say(plane: Plane) {
    let test = "authorization_can_ask_for_tokens_and_what_they_say";
    let Some((mesh, gateway, _reviews)) = gateway(plane, test).await else {
        return;
    };
    let issuer = Issuer::new(ISSUER);
    mesh.apply(&for_gateway(&inline(ISSUER, &issuer.jwks(), "")))
        .await;
    mesh.apply(ASKS_FOR_TOKENS).await;
    guarded(&gateway).await;
    answers(&gateway, &Call::get("a.test", "/"), 403).await;
    let check = async |path: &str, claims: Option<Value>, status: u16| {
        let call = Call::get("a.test", path);
        let call = match &claims {
            Some(claims) => bearer(call, &issuer.token(claims.clone())),
            None => call,
        };
        let answer = gateway.send(&call).await;
        assert_eq!(answer.status, status, "{path} {claims:?}: {answer:?}");
        if status == 403 {
            assert_eq!(answer.body, "RBAC: access denied");
        }
    };
    let with = |claims: Value| Some(claims);
    check("/public", None, 200).await;
    check("/", with(json!({"sub": "alice"})), 200).await;
    check("/", with(json!({"sub": "bob"})), 403).await;
    check("/members", with(json!({"sub": "bob"})), 200).await;
    check("/members", None, 403).await;
    check(
        "/admin",
        with(json!({"sub": "bob", "groups": ["user", "admin"]})),
        200,
    )
    .await;
    check(
        "/admin",
        with(json!({"sub": "bob", "groups": ["user"]})),
        403,
    )
    .await;
    check("/admin", None, 403).await;
    check(
        "/write",
        with(json!({"sub": "bob", "scope": "read write"})),
        200,
    )
    .await;
    check("/write", with(json!({"sub": "bob", "scope": "read"})), 403).await;
    check(
        "/shop",
        with(json!({"sub": "bob", "aud": ["x", "shop"]})),
        200,
    )
    .await;
    check("/shop", with(json!({"sub": "bob", "aud": "x"})), 403).await;
    check("/app", with(json!({"sub": "bob", "azp": "app"})), 200).await;
    check("/app", with(json!({"sub": "bob", "azp": "other"})), 403).await;
    check("/app", with(json!({"sub": "bob"})), 403).await;
    check("/carol", with(json!({"sub": "carol"})), 200).await;
    check("/carol", with(json!({"sub": "bob"})), 403).await;
    // A wrong token is refused before anybody asks what it may do.
    let wrong = Issuer::new(ISSUER).token(json!({"sub": "alice"}));
    let wrong = bearer(Call::get("a.test", "/public"), &wrong);
    assert_eq!(gateway.send(&wrong).await.status, 401);
    assert_eq!(gateway.envoy.rejected().await, Default::default());
}

on_both!(
    a_gateway_routes_by_claims,
    authorization_can_ask_for_tokens_and_what_they_say,
);
