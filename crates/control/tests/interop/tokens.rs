//! RequestAuthentication: which tokens pass a gateway and a sidecar, with what answers, and what
//! the application gets to see of them (SEC-13, SEC-14, SEC-22; facts 52, 53).

use lateen_testkit::envoy::Plane;
use lateen_testkit::http::{Answer, Call};
use lateen_testkit::tokens::{Issuer, KeyServer, key_set, now};
use lateen_testkit::{eventually, settles};
use serde_json::{Value, json};

use crate::gateway::{rule, served};
use crate::mesh::{Gateway, Mesh, Reviews};
use crate::sidecar::Sidecar;

pub const ISSUER: &str = "https://issuer.test";

/// A RequestAuthentication of a namespace for the workloads of an app, with these rules.
pub fn authentication(name: &str, namespace: &str, app: &str, rules: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\n\
         metadata: {{name: {name}, namespace: {namespace}}}\n\
         spec:\n  selector: {{matchLabels: {{app: {app}}}}}\n  jwtRules:\n{rules}---\n"
    )
}

/// A rule with its keys in it.
pub fn inline(issuer: &str, keys: &str, rest: &str) -> String {
    format!("  - issuer: {issuer}\n    jwks: '{keys}'\n{rest}")
}

pub fn for_gateway(rules: &str) -> String {
    authentication("tokens", "istio-system", "istio-ingressgateway", rules)
}

pub fn bearer(call: Call, token: &str) -> Call {
    call.header("authorization", &format!("Bearer {token}"))
}

/// A gateway with everything for `a.test` at `reviews`.
pub async fn gateway(plane: Plane, test: &str) -> Option<(Mesh, Gateway, Reviews)> {
    let mesh = Mesh::start().await;
    let gateway = Gateway::start(plane, &mesh, test, true).await?;
    Some(serving(mesh, gateway).await)
}

/// Gives the gateway everything for `a.test`, at `reviews`.
pub async fn serving(mesh: Mesh, gateway: Gateway) -> (Mesh, Gateway, Reviews) {
    let reviews = Reviews::start(&mesh).await;
    let all = "  - route: [{destination: {host: reviews}}]";
    mesh.apply(&rule("a.test", all)).await;
    mesh.distributed(1).await;
    served(&gateway, "a.test").await;
    (mesh, gateway, reviews)
}

/// Waits until a request without a right token is refused everywhere.
pub async fn guarded(gateway: &Gateway) {
    settles("wrong tokens are refused", async || {
        let call = bearer(Call::get("a.test", "/"), "no.to.ken");
        let answer = call.send(gateway.http).await?;
        (answer.status == 401)
            .then_some(())
            .ok_or_else(|| format!("{answer:?}"))
    })
    .await;
}

/// Waits until a call is answered with this status by all workers.
pub async fn answers(gateway: &Gateway, call: &Call, status: u16) {
    settles(&format!("{call:?} is answered {status}"), async || {
        let answer = call.send(gateway.http).await?;
        (answer.status == status)
            .then_some(())
            .ok_or_else(|| format!("{answer:?}"))
    })
    .await;
}

fn assert_refused(answer: &Answer, body: &str, realm: &str, what: &str) {
    let status = if body.starts_with("Audiences") {
        403
    } else {
        401
    };
    assert_eq!(
        (answer.status, answer.body.as_str()),
        (status, body),
        "{what}"
    );
    let challenge = format!("Bearer realm=\"{realm}\", error=\"invalid_token\"");
    assert_eq!(answer.header("www-authenticate"), challenge, "{what}");
    assert_eq!(answer.header("content-type"), "text/plain", "{what}");
}

async fn a_token_has_to_be_right_and_may_be_missing(plane: Plane) {
    let test = "a_token_has_to_be_right_and_may_be_missing";
    let Some((mesh, gateway, _reviews)) = gateway(plane, test).await else {
        return;
    };
    let issuer = Issuer::new(ISSUER);
    let other = Issuer::new(ISSUER);
    let rules = inline(
        ISSUER,
        &issuer.jwks(),
        "    audiences: [shop, 'https://api.test/']\n",
    );
    let document = for_gateway(&rules);
    mesh.apply(&document).await;
    guarded(&gateway).await;
    assert_eq!(gateway.envoy.rejected().await, Default::default());

    let get = || Call::get("a.test", "/x?y=1");
    // Missing passes; and so do right ones.
    assert_eq!(gateway.send(&get()).await.status, 200);
    let basic = get().header("authorization", "Basic dXNlcjpwYXNz");
    let answer = gateway.send(&basic).await;
    assert_eq!(
        (answer.status, answer.got("authorization")),
        (200, "Basic dXNlcjpwYXNz".into())
    );
    for claims in [
        json!({"aud": "shop"}),
        json!({"aud": ["x", "shop"]}),
        json!({"aud": "http://api.test"}),
        json!({"aud": "shop", "exp": null}),
        json!({"aud": "shop", "exp": now() - 30}),
        json!({"aud": "shop", "nbf": now() + 30}),
    ] {
        let answer = gateway
            .send(&bearer(get(), &issuer.token(claims.clone())))
            .await;
        assert_eq!(answer.status, 200, "{claims}: {answer:?}");
        // What was checked is not passed on.
        assert_eq!(answer.got("authorization"), "", "{claims}");
        assert_eq!(answer.json()["path"], "/x?y=1");
    }
    let right = issuer.token(json!({"aud": "shop"}));
    let (signed, signature) = right.rsplit_once('.').unwrap();
    let none = {
        let (_, claims) = signed.split_once('.').unwrap();
        format!("eyJhbGciOiJub25lIn0.{claims}.")
    };
    let swapped = {
        let another = issuer.token(json!({"aud": "shop", "sub": "admin"}));
        let (other, _) = another.rsplit_once('.').unwrap();
        format!("{other}.{signature}")
    };
    let aud = |mut claims: Value| {
        claims["aud"] = json!("shop");
        claims
    };
    let bad_format =
        "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections";
    for (what, token, body) in [
        (
            "expired",
            issuer.token(aud(json!({"exp": now() - 100}))),
            "Jwt is expired",
        ),
        (
            "early",
            issuer.token(aud(json!({"nbf": now() + 100}))),
            "Jwt not yet valid",
        ),
        (
            "audience",
            issuer.token(json!({"aud": "web"})),
            "Audiences in Jwt are not allowed",
        ),
        (
            "no audience",
            issuer.token(json!({})),
            "Audiences in Jwt are not allowed",
        ),
        (
            "issuer",
            issuer.token(aud(json!({"iss": "https://evil.test"}))),
            "Jwt issuer is not configured",
        ),
        (
            "no issuer",
            issuer.token(aud(json!({"iss": null}))),
            "Jwt issuer is not configured",
        ),
        (
            "key",
            other.token(json!({"aud": "shop"})),
            "Jwt verification fails",
        ),
        ("payload", swapped, "Jwt verification fails"),
        (
            "key id",
            Issuer::new(ISSUER).key_id("x").token(aud(json!({}))),
            "Jwks doesn't have key to match kid or alg from Jwt",
        ),
        (
            "algorithm",
            issuer.token_as("none", aud(json!({}))),
            "Jwt header [alg] is not supported",
        ),
        (
            "secret",
            issuer.token_as("HS256", aud(json!({}))),
            "Jwt verification fails",
        ),
        ("unsigned", none, bad_format),
        ("form", "one.two".into(), bad_format),
        ("form", "abc".into(), bad_format),
        (
            "header",
            "e30.e30.c2ln".into(),
            "Jwt header [alg] field is required and must be a string",
        ),
        (
            "base64",
            "a*.e30.c2ln".into(),
            "Jwt header is an invalid Base64url encoded",
        ),
        (
            "json",
            "YWJj.e30.c2ln".into(),
            "Jwt header is an invalid JSON",
        ),
        (
            "exp",
            issuer.token(aud(json!({"exp": "soon"}))),
            "Jwt payload [exp] field is not an integer",
        ),
        (
            "aud",
            issuer.token(json!({"aud": 7})),
            "Jwt payload [aud] field is not a string or string list",
        ),
    ] {
        let answer = gateway.send(&bearer(get(), &token)).await;
        assert_refused(&answer, body, "http://a.test/x?y=1", what);
    }
    // A host without a route is no reason to let a wrong token pass.
    let nowhere = bearer(Call::get("nowhere.test", "/"), "no.to.ken");
    assert_eq!(gateway.send(&nowhere).await.status, 401);
    assert_eq!(gateway.get("nowhere.test", "/").await.status, 404);
    // Preflights bring no credentials, and are not asked for them.
    let preflight = bearer(get().method("OPTIONS"), "no.to.ken")
        .header("origin", "https://page.test")
        .header("access-control-request-method", "GET");
    assert_eq!(gateway.send(&preflight).await.status, 200);
    eventually("all is counted", async || {
        let stats = gateway.envoy.stats().await;
        for (name, at_least) in [
            ("allowed", 8),
            ("denied", 19),
            ("cors_preflight_bypassed", 1),
        ] {
            let found = stats
                .iter()
                .find(|(key, _)| key.ends_with(&format!("jwt_authn.{name}")));
            let count = found.map(|(_, count)| *count).unwrap_or_default();
            if count < at_least {
                return Err(format!("{name}: {stats:?}"));
            }
        }
        Ok(())
    })
    .await;

    mesh.delete(&document).await;
    answers(&gateway, &bearer(get(), "no.to.ken"), 200).await;
}

async fn tokens_are_looked_for_where_the_rule_says(plane: Plane) {
    let test = "tokens_are_looked_for_where_the_rule_says";
    let Some((mesh, gateway, _reviews)) = gateway(plane, test).await else {
        return;
    };
    let issuer = Issuer::new(ISSUER);
    let token = issuer.token(json!({"sub": "alice"}));
    let get = |path: &str| Call::get("a.test", path);
    let status = async |call: Call| gateway.send(&call).await.status;

    // By default the Authorization header and `access_token`.
    mesh.apply(&for_gateway(&inline(ISSUER, &issuer.jwks(), "")))
        .await;
    guarded(&gateway).await;
    let answer = gateway
        .send(&get(&format!("/a?access_token={token}&b=2")))
        .await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.json()["path"], "/a?b=2");
    assert_eq!(status(get("/?access_token=no.to.ken")).await, 401);
    assert_eq!(status(get("/").header("x-token", "no.to.ken")).await, 200);
    // All that are there have to be right.
    let both = bearer(get("/?access_token=no.to.ken"), &token);
    assert_eq!(status(both).await, 401);

    let places = "    fromHeaders: [{name: X-Token, prefix: 'JWT '}, {name: x-plain}]\n    \
                  fromParams: [jwt]\n    fromCookies: [session]\n    forwardOriginalToken: true\n";
    mesh.apply(&for_gateway(&inline(ISSUER, &issuer.jwks(), places)))
        .await;
    answers(&gateway, &get("/?jwt=no.to.ken"), 401).await;
    for (what, call) in [
        (
            "prefix",
            get("/").header("x-token", &format!("JWT {token}")),
        ),
        ("plain", get("/").header("x-plain", &token)),
        ("param", get(&format!("/?jwt={token}"))),
        (
            "cookie",
            get("/").header("cookie", &format!("a=b; session={token}")),
        ),
    ] {
        let answer = gateway.send(&call).await;
        assert_eq!(answer.status, 200, "{what}: {answer:?}");
        assert!(answer.body.contains(&token), "{what}: {answer:?}");
    }
    for (what, call) in [
        ("prefix", get("/").header("x-token", "JWT no.to.ken")),
        ("plain", get("/").header("x-plain", "no.to.ken")),
        ("cookie", get("/").header("cookie", "session=no.to.ken")),
    ] {
        assert_eq!(status(call).await, 401, "{what}");
    }
    // Not where the rule does not look.
    assert_eq!(status(bearer(get("/"), "no.to.ken")).await, 200);
    assert_eq!(status(get("/?access_token=no.to.ken")).await, 200);
    assert_eq!(status(get("/").header("x-token", "no.to.ken")).await, 200);
    assert_eq!(gateway.envoy.rejected().await, Default::default());
}

async fn several_rules_stand_side_by_side(plane: Plane) {
    let test = "several_rules_stand_side_by_side";
    let Some((mesh, gateway, _reviews)) = gateway(plane, test).await else {
        return;
    };
    let (one, two) = (
        Issuer::rsa("https://one.test"),
        Issuer::ed25519("https://two.test"),
    );
    let stranger = Issuer::new("https://three.test");
    // Of two objects, one of which is for the whole namespace.
    let first = for_gateway(&inline(&one.name, &one.jwks(), ""));
    let second = "apiVersion: security.istio.io/v1beta1\nkind: RequestAuthentication\n\
                  metadata: {name: all, namespace: istio-system}\nspec:\n  jwtRules:\n"
        .to_owned()
        + &inline(&two.name, &two.jwks(), "")
        + &inline(
            "https://header.test",
            &two.jwks(),
            "    fromHeaders: [{name: x-token}]\n",
        );
    mesh.apply(&(first + &second)).await;
    let get = || Call::get("a.test", "/");
    answers(&gateway, &bearer(get(), &one.token(json!({}))), 200).await;
    answers(&gateway, &bearer(get(), &two.token(json!({}))), 200).await;
    answers(
        &gateway,
        &bearer(get(), &one.token_as("PS256", json!({}))),
        200,
    )
    .await;
    answers(&gateway, &get(), 200).await;
    let check = async |call: Call, body: &str| {
        let answer = gateway.send(&call).await;
        assert_eq!((answer.status, answer.body.as_str()), (401, body));
    };
    check(
        bearer(get(), &stranger.token(json!({}))),
        "Jwt issuer is not configured",
    )
    .await;
    // The keys of one are not for tokens of the other.
    let forged = one.token(json!({"iss": "https://two.test"}));
    check(
        bearer(get(), &forged),
        "Jwks doesn't have key to match kid or alg from Jwt",
    )
    .await;
    check(
        bearer(get(), &two.token(json!({"exp": 1}))),
        "Jwt is expired",
    )
    .await;
    // A right token in one place, a wrong one in another.
    let wrong = get().header("x-token", &stranger.token(json!({})));
    check(wrong.clone(), "Jwt issuer is not configured").await;
    let mixed = bearer(wrong, &one.token(json!({})));
    assert_eq!(gateway.send(&mixed).await.status, 200);
    assert_eq!(gateway.envoy.rejected().await, Default::default());
}

async fn claims_and_payload_go_to_the_application_and_cannot_be_forged(plane: Plane) {
    let test = "claims_and_payload_go_to_the_application_and_cannot_be_forged";
    let Some((mesh, gateway, _reviews)) = gateway(plane, test).await else {
        return;
    };
    let issuer = Issuer::new(ISSUER);
    let outputs = "    outputPayloadToHeader: x-payload\n    outputClaimToHeaders:\n    \
                   - {header: x-sub, claim: sub}\n    - {header: x-team, claim: org.team}\n    \
                   - {header: x-level, claim: level}\n    - {header: x-admin, claim: admin}\n    \
                   - {header: x-roles, claim: roles}\n    - {header: x-none, claim: nothing}\n";
    mesh.apply(&for_gateway(&inline(ISSUER, &issuer.jwks(), outputs)))
        .await;
    guarded(&gateway).await;
    let claims = json!({
        "sub": "alice", "org": {"team": "blue"}, "level": 3, "admin": false,
        "roles": ["a", "b"], "exp": 4102444800u64,
    });
    let token = issuer.token(claims);
    let forged = |call: Call| {
        ["x-payload", "x-sub", "x-team", "x-none", "X-Roles"]
            .into_iter()
            .fold(call, |call, name| call.header(name, "forged"))
    };
    let answer = gateway
        .send(&forged(bearer(Call::get("a.test", "/"), &token)))
        .await;
    assert_eq!(answer.status, 200, "{answer:?}");
    for (name, expect) in [
        ("x-payload", token.split('.').nth(1).unwrap()),
        ("x-sub", "alice"),
        ("x-team", "blue"),
        ("x-level", "3"),
        ("x-admin", "false"),
        ("x-roles", "WyJhIiwiYiJd"),
        ("x-none", ""),
        ("authorization", ""),
    ] {
        assert_eq!(answer.got(name), expect, "{name}");
    }
    // Without a token nobody vouches for them.
    let answer = gateway.send(&forged(Call::get("a.test", "/"))).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    for name in ["x-payload", "x-sub", "x-team", "x-none", "x-roles"] {
        assert_eq!(answer.got(name), "", "{name}");
    }
}

async fn a_sidecar_checks_the_tokens_for_its_workload(plane: Plane) {
    let test = "a_sidecar_checks_the_tokens_for_its_workload";
    let mesh = Mesh::start().await;
    let Some(sidecar) = Sidecar::start(plane, &mesh, test).await else {
        return;
    };
    let issuer = Issuer::new(ISSUER);
    let rules = inline(ISSUER, &issuer.jwks(), "");
    // For another workload, and for this one in another namespace: neither counts.
    let others = authentication("other", "default", "other", &rules)
        + &authentication("elsewhere", "elsewhere", "front", &rules);
    mesh.apply(&others).await;
    mesh.distributed(1).await;
    let send = async |call: Call| call.send(sidecar.http).await.unwrap();
    let get = || Call::get("front", "/");
    assert_eq!(send(bearer(get(), "no.to.ken")).await.status, 200);
    // The root namespace's count everywhere.
    for namespace in ["default", "istio-system"] {
        let document = authentication("front", namespace, "front", &rules);
        mesh.apply(&document).await;
        settles("wrong tokens are refused", async || {
            let answer = bearer(get(), "no.to.ken").send(sidecar.http).await?;
            (answer.status == 401)
                .then_some(())
                .ok_or_else(|| format!("{answer:?}"))
        })
        .await;
        assert_eq!(send(get()).await.status, 200);
        let right = send(bearer(get(), &issuer.token(json!({})))).await;
        assert_eq!(
            (right.status, right.got("authorization")),
            (200, String::new())
        );
        let expired = send(bearer(get(), &issuer.token(json!({"exp": 1})))).await;
        assert_refused(&expired, "Jwt is expired", "http://front/", namespace);
        mesh.delete(&document).await;
        settles("tokens are not looked at", async || {
            let answer = bearer(get(), "no.to.ken").send(sidecar.http).await?;
            (answer.status == 200)
                .then_some(())
                .ok_or_else(|| format!("{answer:?}"))
        })
        .await;
    }
    assert_eq!(sidecar.envoy.rejected().await, Default::default());
}

/// Whether the control plane says something like this is wrong.
async fn finds(mesh: &Mesh, text: &str, expected: bool) {
    eventually(&format!("findings say {text:?}: {expected}"), async || {
        let findings = mesh.page("/debug/findings").await.to_string();
        match findings.contains(text) == expected {
            true => Ok(()),
            false => Err(findings),
        }
    })
    .await;
}

async fn keys_come_from_a_uri_or_by_discovery_and_rotate(plane: Plane) {
    let test = "keys_come_from_a_uri_or_by_discovery_and_rotate";
    let Some((mesh, gateway, _reviews)) = gateway(plane, test).await else {
        return;
    };
    let server = KeyServer::start().await;
    let found = Issuer::new(server.url("/tenant").as_str());
    let named = Issuer::new("named");
    let get = || Call::get("a.test", "/");
    server.redirect("/moved", "/keys");
    let rules = format!(
        "  - issuer: {}\n  - issuer: named\n    jwksUri: {}\n    timeout: 2s\n",
        found.name,
        server.url("/moved")
    );
    // As long as nobody answers, no token is right, and requests without one pass.
    mesh.apply(&for_gateway(&rules)).await;
    guarded(&gateway).await;
    assert_eq!(gateway.send(&get()).await.status, 200);
    for issuer in [&found, &named] {
        let answer = gateway.send(&bearer(get(), &issuer.token(json!({})))).await;
        let refused = "Jwt verification fails";
        assert_eq!((answer.status, answer.body.as_str()), (401, refused));
    }
    finds(&mesh, "/.well-known/openid-configuration: status 404", true).await;

    let discovery = json!({"issuer": found.name, "jwks_uri": server.url("/found")}).to_string();
    server.page("/tenant/.well-known/openid-configuration", 200, &discovery);
    server.page("/found", 200, &found.jwks());
    server.page("/keys", 200, &named.jwks());
    answers(&gateway, &bearer(get(), &found.token(json!({}))), 200).await;
    answers(&gateway, &bearer(get(), &named.token(json!({}))), 200).await;
    finds(&mesh, "openid-configuration", false).await;

    // Both keys, then only the new one.
    let rotated = Issuer::new("named").key_id("new");
    server.page("/keys", 200, &key_set(&[&named, &rotated]));
    answers(&gateway, &bearer(get(), &rotated.token(json!({}))), 200).await;
    assert_eq!(
        gateway
            .send(&bearer(get(), &named.token(json!({}))))
            .await
            .status,
        200
    );
    server.page("/keys", 200, &rotated.jwks());
    answers(&gateway, &bearer(get(), &named.token(json!({}))), 401).await;
    assert_eq!(
        gateway
            .send(&bearer(get(), &rotated.token(json!({}))))
            .await
            .status,
        200
    );

    // What cannot be used does not take the place of what could.
    for (status, body) in [(503, ""), (200, "<html>"), (200, "{\"keys\":[]}")] {
        server.page("/keys", status, body);
        let asked = server.hits("/keys");
        eventually("it was asked again", async || {
            (server.hits("/keys") > asked + 1)
                .then_some(())
                .ok_or_else(String::new)
        })
        .await;
        let answer = gateway
            .send(&bearer(get(), &rotated.token(json!({}))))
            .await;
        assert_eq!(answer.status, 200, "{status} {body}");
    }
    assert_eq!(gateway.envoy.rejected().await, Default::default());
}

async fn keys_outlive_a_restart_without_their_issuer(plane: Plane) {
    let test = "keys_outlive_a_restart_without_their_issuer";
    let Some((mut mesh, gateway, _reviews)) = gateway(plane, test).await else {
        return;
    };
    let server = KeyServer::start().await;
    let (known, foreign) = (Issuer::new("known"), Issuer::new("known"));
    server.page("/keys", 200, &known.jwks());
    let uri = server.url("/keys");
    let rule = |name: &str, uri: &str| format!("  - issuer: {name}\n    jwksUri: {uri}\n");
    mesh.apply(&for_gateway(&rule("known", &uri))).await;
    let call = |issuer: &Issuer| bearer(Call::get("a.test", "/"), &issuer.token(json!({})));
    answers(&gateway, &call(&known), 200).await;
    answers(&gateway, &call(&foreign), 401).await;

    server.page("/keys", 503, "");
    mesh.restart().await;
    mesh.distributed(1).await;
    // Something else changes, so that the proxies have what this control plane makes of it.
    let other = rule("other", "http://127.0.0.1:1/keys");
    mesh.apply(&for_gateway(&format!("{}{other}", rule("known", &uri))))
        .await;
    mesh.distributed(1).await;
    finds(&mesh, "status 503", true).await;
    answers(&gateway, &call(&Issuer::new("other")), 401).await;
    answers(&gateway, &call(&known), 200).await;
    answers(&gateway, &call(&foreign), 401).await;

    // The issuer is there again, with another key.
    server.page("/keys", 200, &foreign.jwks());
    answers(&gateway, &call(&foreign), 200).await;
    answers(&gateway, &call(&known), 401).await;
}

on_both!(
    keys_outlive_a_restart_without_their_issuer,
    a_token_has_to_be_right_and_may_be_missing,
    tokens_are_looked_for_where_the_rule_says,
    several_rules_stand_side_by_side,
    claims_and_payload_go_to_the_application_and_cannot_be_forged,
    a_sidecar_checks_the_tokens_for_its_workload,
    keys_come_from_a_uri_or_by_discovery_and_rotate,
);
