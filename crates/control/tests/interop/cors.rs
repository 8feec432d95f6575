//! CORS policies of VirtualServices through a gateway: preflights answered by the proxy, headers
//! added to other answers.

use lateen_testkit::envoy::Plane;
use lateen_testkit::eventually;
use lateen_testkit::http::{Answer, Call};

use crate::mesh::Gateway;
use crate::requests::gateway_with;

const POLICIES: &str = "
  - match: [{uri: {prefix: /full}}]
    corsPolicy:
      allowOrigins: [{exact: 'https://a.test'}, {prefix: 'https://dev.'}, {regex: 'https://[a-z]+\\.org'}]
      allowMethods: [GET, PUT]
      allowHeaders: [x-one, x-two]
      exposeHeaders: [x-echo, x-other]
      maxAge: 24h
      allowCredentials: true
    headers: {response: {set: {x-route: full}}}
    route: [{destination: {host: reviews, subset: v1}}]
  - match: [{uri: {prefix: /any}}]
    corsPolicy: {allowOrigins: [{exact: '*'}], allowMethods: ['*'], allowHeaders: ['*']}
    route: [{destination: {host: reviews, subset: v1}}]
  - match: [{uri: {prefix: /ignore}}]
    corsPolicy: {allowOrigins: [{exact: 'https://a.test'}], allowMethods: [GET], allowCredentials: false, unmatchedPreflights: IGNORE}
    route: [{destination: {host: reviews, subset: v1}}]
  - match: [{uri: {prefix: /old}}]
    corsPolicy: {allowOrigin: ['https://a.test'], allowMethods: [GET], unmatchedPreflights: FORWARD}
    route: [{destination: {host: reviews, subset: v1}}]
  - match: [{uri: {prefix: /moved}}]
    corsPolicy: {allowOrigins: [{exact: '*'}]}
    redirect: {uri: /full}
  - match: [{uri: {prefix: /faulty}}]
    corsPolicy: {allowOrigins: [{exact: '*'}]}
    fault: {abort: {httpStatus: 500, percentage: {value: 100}}}
    route: [{destination: {host: reviews, subset: v1}}]
  - route: [{destination: {host: reviews, subset: v1}}]";

/// What the answer says about origins: origin, credentials, methods, headers, exposed, age.
fn said(answer: &Answer) -> [String; 6] {
    ["origin", "credentials", "methods", "headers"]
        .map(|what| format!("access-control-allow-{what}"))
        .into_iter()
        .chain([
            "access-control-expose-headers".into(),
            "access-control-max-age".into(),
        ])
        .map(|name| answer.header(&name))
        .collect::<Vec<_>>()
        .try_into()
        .unwrap()
}

fn get(path: &str, origin: &str) -> Call {
    let call = Call::get("cors.test", path);
    match origin {
        "" => call,
        origin => call.header("origin", origin),
    }
}

fn preflight(path: &str, origin: &str) -> Call {
    get(path, origin)
        .method("OPTIONS")
        .header("access-control-request-method", "PUT")
        .header("access-control-request-headers", "x-asked,x-for")
}

const NOTHING: [&str; 6] = [""; 6];

async fn preflights_are_answered_by_the_proxy(plane: Plane) {
    let test = "preflights_are_answered_by_the_proxy";
    let Some((_mesh, gateway, reviews)) = start(plane, test).await else {
        return;
    };
    let full = |origin| {
        [
            origin,
            "true",
            "GET,PUT",
            "x-one,x-two",
            "x-echo,x-other",
            "86400",
        ]
    };
    for (path, origin, expect) in [
        ("/full/a", "https://a.test", full("https://a.test")),
        ("/full/b", "https://dev.b", full("https://dev.b")),
        ("/full/c", "https://abc.org", full("https://abc.org")),
        (
            "/any/a",
            "https://x",
            ["https://x", "", "PUT", "x-asked,x-for", "", ""],
        ),
        (
            "/ignore/a",
            "https://a.test",
            ["https://a.test", "", "GET", "", "", ""],
        ),
        // Not allowed, but the rule wants such preflights kept from the service.
        ("/ignore/b", "https://b.test", ["", "", "GET", "", "", ""]),
        (
            "/old/a",
            "https://a.test",
            ["https://a.test", "", "GET", "", "", ""],
        ),
    ] {
        let answer = gateway.send(&preflight(path, origin)).await;
        let found = (answer.status, answer.body.as_str(), said(&answer));
        let expect = (200, "", expect.map(str::to_owned));
        assert_eq!(found, expect, "{path} {origin}: {answer:?}");
        assert_eq!(answer.header("server"), "istio-envoy");
        assert_eq!(
            answer.header("x-route"),
            "",
            "of the route, not of the proxy"
        );
        assert_eq!(reviews.v1.hits(path), 0, "{path} reached the service");
    }
    // Of others the service hears, and its answer says nothing about origins.
    for (path, origin) in [
        ("/full/d", "https://a.test.evil"),
        ("/full/e", "https://abc.org.evil"),
        ("/old/b", "https://b.test"),
        ("/other/a", "https://a.test"),
    ] {
        let answer = gateway.send(&preflight(path, origin)).await;
        assert_eq!(
            (answer.status, &*answer.name()),
            (200, "v1"),
            "{path}: {answer:?}"
        );
        assert_eq!(
            said(&answer),
            NOTHING.map(str::to_owned),
            "{path}: {answer:?}"
        );
    }
    // OPTIONS that asks for no method is no preflight, nor is one without origin.
    for call in [
        get("/full/f", "https://a.test").method("OPTIONS"),
        preflight("/full/g", ""),
    ] {
        assert_eq!(gateway.send(&call).await.name(), "v1", "{call:?}");
    }
    eventually("all are counted", async || {
        let valid = counted(&gateway, "origin_valid").await;
        let invalid = counted(&gateway, "origin_invalid").await;
        match (valid, invalid) {
            (7, 4) => Ok(()),
            found => Err(format!("{found:?}")),
        }
    })
    .await;
}

async fn answers_to_other_origins_say_what_the_policy_allows(plane: Plane) {
    let test = "answers_to_other_origins_say_what_the_policy_allows";
    let Some((_mesh, gateway, _reviews)) = start(plane, test).await else {
        return;
    };
    for (path, origin, expect) in [
        (
            "/full",
            "https://a.test",
            ["https://a.test", "true", "", "", "x-echo,x-other", ""],
        ),
        ("/full", "https://b.test", NOTHING),
        ("/full", "", NOTHING),
        ("/any", "null", ["null", "", "", "", "", ""]),
        ("/status/404", "https://a.test", NOTHING),
    ] {
        let answer = gateway.send(&get(path, origin)).await;
        assert_eq!(answer.name(), "v1", "{path} {origin}: {answer:?}");
        assert_eq!(answer.got("origin"), origin, "{path}");
        let expect = expect.map(str::to_owned);
        assert_eq!(said(&answer), expect, "{path} {origin}: {answer:?}");
    }
    // The proxy's own answers: a redirect has no policy, an abort comes before the policy is asked.
    let moved = gateway.send(&get("/moved", "https://a.test")).await;
    assert_eq!(
        (moved.status, said(&moved)),
        (301, NOTHING.map(str::to_owned))
    );
    let aborted = gateway.send(&get("/faulty", "https://a.test")).await;
    assert_eq!(
        (aborted.status, said(&aborted)),
        (500, NOTHING.map(str::to_owned))
    );
}

async fn start(
    plane: Plane,
    test: &str,
) -> Option<(crate::mesh::Mesh, Gateway, crate::mesh::Reviews)> {
    gateway_with(plane, test, &[("cors.test", POLICIES)]).await
}

/// The sum of a counter of the CORS filter.
async fn counted(gateway: &Gateway, name: &str) -> u64 {
    gateway.envoy.stats_ending(&format!(".cors.{name}")).await
}

on_both!(
    preflights_are_answered_by_the_proxy,
    answers_to_other_origins_say_what_the_policy_allows,
);
