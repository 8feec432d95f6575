//! Policies attached to a Gateway of the Gateway API by `targetRefs`: they are for the workloads that
//! carry its name, and for nobody else; and whoever attaches one to nothing is told (SEC-06, SEC-13).

use lateen_testkit::envoy::Plane;
use lateen_testkit::http::Call;
use lateen_testkit::settles;
use lateen_testkit::tokens::Issuer;
use serde_json::json;

use crate::authorization::Guarded;
use crate::mesh::{Gateway, Mesh, Reviews};
use crate::tokens::{ISSUER, bearer, inline, serving};

const EDGE: &str = "targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: edge}]";

/// A gateway that is an instance of the Gateway `edge`, with everything for `a.test`.
async fn edge(plane: Plane, test: &str) -> Option<(Mesh, Gateway, Reviews)> {
    let mesh = Mesh::start().await;
    let labels = json!({"LABELS": {
        "app": "istio-ingressgateway", "istio": "ingressgateway",
        "gateway.networking.k8s.io/gateway-name": "edge",
    }});
    let gateway = Gateway::start_with(plane, &mesh, test, true, labels).await?;
    Some(serving(mesh, gateway).await)
}

fn policy(kind: &str, namespace: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: {kind}\n\
         metadata: {{name: attached, namespace: {namespace}}}\nspec:\n  {spec}\n---\n"
    )
}

/// A policy that closes one path, which says that what was applied with it is in force.
fn marker(path: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {{name: marker, namespace: istio-system}}\n\
         spec: {{action: DENY, rules: [{{to: [{{operation: {{paths: [{path}]}}}}]}}]}}\n---\n"
    )
}

async fn answers(gateway: &Gateway, path: &str, status: u16, what: &str) {
    settles(
        &format!("{what}: {path} is answered {status}"),
        async || match gateway.get("a.test", path).await.status {
            found if found == status => Ok(()),
            other => Err(format!("{other}; {:?}", gateway.envoy.rejected().await)),
        },
    )
    .await;
}

async fn a_policy_attached_to_a_gateway_is_for_its_instances(plane: Plane) {
    let test = "a_policy_attached_to_a_gateway_is_for_its_instances";
    let Some((mesh, gateway, _reviews)) = edge(plane, test).await else {
        return;
    };
    let denies = "action: DENY\n  rules: [{to: [{operation: {paths: [/closed]}}]}]";
    let attached = |namespace, target: &str| {
        policy(
            "AuthorizationPolicy",
            namespace,
            &format!("{target}\n  {denies}"),
        )
    };
    mesh.apply(&(attached("istio-system", EDGE) + &marker("/1")))
        .await;
    answers(&gateway, "/closed", 403, "attached").await;
    answers(&gateway, "/open", 200, "attached").await;
    // What selects it, or its namespace, counts as well.
    answers(&gateway, "/1", 403, "not attached").await;

    // The same of another Gateway, or of things that only waypoints guard.
    for (round, target) in [
        EDGE.replace("edge", "other"),
        EDGE.replace("Gateway,", "GatewayClass,"),
        "targetRefs: [{kind: Service, group: '', name: istio-ingressgateway}]".to_owned(),
    ]
    .iter()
    .enumerate()
    {
        let path = format!("/round/{round}");
        mesh.apply(&(attached("istio-system", target) + &marker(&path)))
            .await;
        answers(&gateway, &path, 403, target).await;
        answers(&gateway, "/closed", 200, target).await;
    }
    // And the older form, of one.
    let one = "targetRef: {group: gateway.networking.k8s.io, kind: Gateway, name: edge}";
    mesh.apply(&attached("istio-system", one)).await;
    answers(&gateway, "/closed", 403, one).await;
    // A Gateway of another namespace is another Gateway.
    mesh.delete(&attached("istio-system", one)).await;
    mesh.apply(&(attached("default", EDGE) + &marker("/2")))
        .await;
    answers(&gateway, "/2", 403, "elsewhere").await;
    answers(&gateway, "/closed", 200, "elsewhere").await;
}

async fn a_gateway_checks_the_tokens_that_are_attached_to_it(plane: Plane) {
    let test = "a_gateway_checks_the_tokens_that_are_attached_to_it";
    let Some((mesh, gateway, _reviews)) = edge(plane, test).await else {
        return;
    };
    let issuer = Issuer::new(ISSUER);
    let rules = inline(ISSUER, &issuer.jwks(), "");
    let tokens = |target: &str| {
        let spec = format!("{target}\n  jwtRules:\n{rules}");
        policy("RequestAuthentication", "istio-system", &spec)
    };
    let allows = "action: ALLOW\n  rules: [{from: [{source: {requestPrincipals: ['*']}}]}]";
    let allow = policy(
        "AuthorizationPolicy",
        "istio-system",
        &format!("{EDGE}\n  {allows}"),
    );
    let right = bearer(Call::get("a.test", "/"), &issuer.token(json!({"sub": "x"})));
    let wrong = bearer(Call::get("a.test", "/"), "no.to.ken");
    let ends = async |what: &str, expect: [u16; 3]| {
        settles(what, async || {
            let found = [
                gateway.send(&right).await.status,
                gateway.send(&wrong).await.status,
                gateway.get("a.test", "/").await.status,
            ];
            match found == expect {
                true => Ok(()),
                false => Err(format!("{found:?}; {:?}", gateway.envoy.rejected().await)),
            }
        })
        .await;
    };
    mesh.apply(&(tokens(EDGE) + &allow)).await;
    ends("a token is asked for", [200, 401, 403]).await;
    // Where the rules are of another Gateway, nobody's token counts.
    mesh.apply(&tokens(&EDGE.replace("edge", "other"))).await;
    ends("no token is known", [403, 403, 403]).await;
    mesh.delete(&allow).await;
    ends("nobody asks", [200, 200, 200]).await;
}

async fn what_has_no_gateways_name_is_not_hit_by_a_policy_that_is_attached(plane: Plane) {
    let test = "what_has_no_gateways_name_is_not_hit_by_a_policy_that_is_attached";
    let Some(guarded) = Guarded::start(plane, test).await else {
        return;
    };
    let call = Call::get("front", "/");
    let everything = "action: DENY\n  rules: [{}]";
    let attached = |target: &str| {
        let spec = format!("{target}\n  {everything}");
        policy("AuthorizationPolicy", "default", &spec)
    };
    for target in [
        EDGE,
        "targetRefs: [{kind: Service, group: '', name: front}]",
    ] {
        guarded.apply(&attached(target)).await;
        let answer = call.send(guarded.sidecar.http).await.unwrap();
        assert_eq!(answer.status, 200, "{target}");
    }
    guarded
        .mesh
        .apply(&attached("selector: {matchLabels: {app: front}}"))
        .await;
    settles("the same with a selector is hit", async || {
        match call.send(guarded.sidecar.http).await?.status {
            403 => Ok(()),
            other => Err(other.to_string()),
        }
    })
    .await;
}

on_both!(
    a_policy_attached_to_a_gateway_is_for_its_instances,
    a_gateway_checks_the_tokens_that_are_attached_to_it,
    what_has_no_gateways_name_is_not_hit_by_a_policy_that_is_attached,
);

#[tokio::test]
async fn who_attaches_a_policy_to_nothing_is_told() {
    let mesh = Mesh::start().await;
    let url = "/apis/security.istio.io/v1/namespaces/default/authorizationpolicies/attached";
    let put = async |target: &str| {
        let spec = format!("{target}\n  action: DENY\n  rules: [{{}}]");
        let document = policy("AuthorizationPolicy", "default", &spec);
        let put = Call::get("127.0.0.1", &format!("{url}?fieldManager=test&force=true"))
            .method("PATCH")
            .header("content-type", "application/apply-patch+yaml")
            .body(document.trim_end_matches("---\n").to_owned());
        put.send(mesh.api).await.unwrap()
    };
    for (target, warning) in [
        (EDGE, "Referenced gateway"),
        (
            "targetRefs: [{kind: Service, group: '', name: front}]",
            "this guards nothing",
        ),
    ] {
        let answer = put(target).await;
        assert!(answer.status < 300, "{answer:?}");
        assert!(answer.header("warning").contains(warning), "{answer:?}");
    }
    let refused = put(&EDGE.replace("name: edge", "name: edge, namespace: web")).await;
    assert_eq!(refused.status, 422, "{refused:?}");
    assert!(refused.body.contains("spec.targetRefs[0].namespace"));

    let call = Call::get("127.0.0.1", "/debug/findings").method("POST");
    let call = call
        .header("content-type", "application/json")
        .body("[]".to_owned());
    let found = call.send(mesh.api).await.unwrap();
    assert!(found.body.contains("this guards nothing"), "{}", found.body);
}
