//! Policies select workloads by the labels of their entries, whatever the proxy says of itself.

use lateen_testkit::envoy::Plane;
use lateen_testkit::http::Call;
use lateen_testkit::settles;
use lateen_testkit::tokens::Issuer;

use crate::authorization::{Guarded, policy};
use crate::tokens::{ISSUER, bearer, inline};

async fn policies_select_by_the_labels_of_the_entry(plane: Plane) {
    let test = "policies_select_by_the_labels_of_the_entry";
    let Some(guarded) = Guarded::start(plane, test).await else {
        return;
    };
    let expect = async |what: &str, call: &Call, status: u16| {
        settles(what, async || {
            match call.send(guarded.sidecar.http).await?.status {
                found if found == status => Ok(()),
                other => Err(other.to_string()),
            }
        })
        .await;
    };
    let get = Call::get("front", "/vault");
    let wrong = bearer(Call::get("front", "/"), "no.to.ken");
    let rules = inline(ISSUER, &Issuer::new(ISSUER).jwks(), "");
    let selecting = format!(
        "{}apiVersion: security.istio.io/v1\nkind: RequestAuthentication\n\
         metadata: {{name: tokens, namespace: default}}\n\
         spec:\n  selector: {{matchLabels: {{tier: vault}}}}\n  jwtRules:\n{rules}",
        policy(
            "vaults",
            "action: DENY, rules: [{to: [{operation: {paths: [/vault]}}]}]"
        )
        .replace("{app: front}", "{tier: vault}"),
    );
    guarded.apply(&selecting).await;
    expect("nobody is selected yet", &get, 200).await;
    expect("no token is looked at yet", &wrong, 200).await;

    let entry = |tier: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n\
             metadata: {{name: front-v1, namespace: default}}\nspec:\n  address: 127.0.0.1\n  \
             ports: {{http: {}, tcp-own: {}}}\n  labels: {{app: front, version: v1{tier}}}\n",
            guarded.sidecar.http.port(),
            guarded.sidecar.tcp.port()
        )
    };
    guarded.mesh.apply(&entry(", tier: vault")).await;
    expect("the entry is selected", &get, 403).await;
    expect("tokens have to be right", &wrong, 401).await;
    guarded.mesh.apply(&entry("")).await;
    expect("the entry is no longer selected", &get, 200).await;
    expect("tokens are no longer looked at", &wrong, 200).await;
}

on_both!(policies_select_by_the_labels_of_the_entry);
