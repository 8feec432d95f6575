//! Documents 17 and 18: who may call what, by the identity of the caller.

use lateen_testkit::envoy::Plane;
use lateen_testkit::http::Call;

use super::{offered, read};
use crate::member::{Member, Secured, Who};

/// Waits until the calls have these outcomes: method, path, status.
async fn expect(from: &Member, host: &str, outcomes: &[(&str, &str, u16)]) {
    for (method, path, status) in outcomes {
        let call = Call::through_proxy(host, path).method(method);
        let what = format!("{status} for {method} {path} of {}", from.id);
        lateen_testkit::settles(&what, async || {
            let answer = from.send(&call).await?;
            match answer.status == *status {
                true => Ok(()),
                false => Err(format!("{answer:?}")),
            }
        })
        .await;
    }
}

async fn document_17_authorizationpolicy_productpage_authz(plane: Plane) {
    let test = "17";
    let mesh = Secured::start().await;
    let Some(_productpage) = mesh.member(plane, test, "productpage").await else {
        return;
    };
    let who = |name, namespace, account| Who {
        namespace,
        account,
        ..Who::named(name)
    };
    let edge = who("edge", "istio-system", "istio-ingressgateway");
    let edge = mesh.member_as(plane, test, edge).await.unwrap();
    let app = mesh
        .member_as(plane, test, who("app", "app", "app"))
        .await
        .unwrap();
    let other = mesh.member(plane, test, "other").await.unwrap();
    let host = "productpage.default";
    expect(&other, host, &[("GET", "/", 200)]).await;
    assert_eq!(offered(&mesh, "17").await.0, 201, "{}", read("17").1);
    expect(
        &edge,
        host,
        &[
            ("GET", "/", 200),
            ("GET", "/api/v1", 200),
            ("POST", "/", 403),
        ],
    )
    .await;
    expect(
        &app,
        host,
        &[
            ("GET", "/api/v1", 200),
            ("GET", "/", 403),
            ("POST", "/api/v1", 403),
        ],
    )
    .await;
    expect(&other, host, &[("GET", "/", 403), ("GET", "/api/v1", 403)]).await;
}

async fn document_18_authorizationpolicy_httpbin_policy(plane: Plane) {
    let test = "18";
    let mesh = Secured::start().await;
    let Some(_httpbin) = mesh.member(plane, test, "httpbin").await else {
        return;
    };
    let admin = Who {
        account: "admin-sa",
        ..Who::named("admin")
    };
    let admin = mesh.member_as(plane, test, admin).await.unwrap();
    let other = mesh.member(plane, test, "other").await.unwrap();
    expect(&other, "httpbin", &[("DELETE", "/x", 200)]).await;
    assert_eq!(offered(&mesh, "18").await.0, 201, "{}", read("18").1);
    let read = [
        ("GET", "/get", 200),
        ("GET", "/status/200", 200),
        ("GET", "/x", 403),
    ];
    expect(&other, "httpbin", &read).await;
    expect(&admin, "httpbin", &read).await;
    let written = |status| ["POST", "PUT", "DELETE"].map(|method| (method, "/x", status));
    expect(&admin, "httpbin", &written(200)).await;
    expect(&other, "httpbin", &written(403)).await;
}

on_both!(
    document_17_authorizationpolicy_productpage_authz,
    document_18_authorizationpolicy_httpbin_policy,
);
