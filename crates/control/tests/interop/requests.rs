//! Stock Envoy as the ingress gateway: which route a request takes and what is done to it.
//!
//! One gateway with one host per feature; each line of a table is a request and what comes of it.

use std::time::{Duration, Instant};

use lateen_testkit::envoy::Plane;
use lateen_testkit::http::{Answer, Call};
use lateen_testkit::ports;

use crate::gateway::{rule, served};
use crate::mesh::{GATEWAY, Gateway, Mesh, Reviews, service, workload};

/// A gateway, the service `reviews`, and rules for `hosts` that are in force.
pub async fn gateway_with(
    plane: Plane,
    test: &str,
    hosts: &[(&str, &str)],
) -> Option<(Mesh, Gateway, Reviews)> {
    let mesh = Mesh::start().await;
    let gateway = Gateway::start(plane, &mesh, test, true).await?;
    let reviews = Reviews::start(&mesh).await;
    let rules: String = hosts.iter().map(|(host, http)| rule(host, http)).collect();
    // A last rule that takes everything: as soon as it answers, the others do too.
    let last = rule("last.test", "  - directResponse: {status: 200}");
    mesh.apply(&(rules + &last)).await;
    mesh.distributed(1).await;
    served(&gateway, "last.test").await;
    mesh.synced(GATEWAY).await;
    assert_eq!(gateway.envoy.rejected().await, Default::default());
    Some((mesh, gateway, reviews))
}

/// `match` items and what the route that they lead to calls itself.
fn named_routes(routes: &[(&str, &str)]) -> String {
    let route = |(matched, name): &(&str, &str)| {
        let matched = match matched.is_empty() {
            true => String::new(),
            false => format!("match: [{matched}], "),
        };
        format!(
            "  - {{{matched}headers: {{response: {{set: {{x-route: {name}}}}}}}, \
             route: [{{destination: {{host: reviews}}}}]}}\n"
        )
    };
    routes.iter().map(route).collect()
}

const PATHS: &[(&str, &str)] = &[
    ("{uri: {exact: /exact}}", "exact"),
    ("{uri: {prefix: /api}}", "prefix"),
    (r"{uri: {regex: '/item/[0-9]+(/.*)?'}}", "regex"),
    (
        "{uri: {exact: /Loud}, ignoreUriCase: true}",
        "exact-any-case",
    ),
    (
        "{uri: {prefix: /Quiet/}, ignoreUriCase: true}",
        "prefix-any-case",
    ),
    ("{uri: {prefix: /}, method: {exact: DELETE}}", "delete"),
    (
        "{uri: {prefix: /two}}, {uri: {prefix: /three}}",
        "two-or-three",
    ),
    ("", "rest"),
];

const PROPERTIES: &[(&str, &str)] = &[
    ("{headers: {x-exact: {exact: Some Text}}}", "exact"),
    ("{headers: {x-prefix: {prefix: v1.}}}", "prefix"),
    (
        "{headers: {cookie: {regex: '^(.*?;)?(user=jason)(;.*)?$'}}}",
        "cookie",
    ),
    ("{headers: {x-present: {}}}", "present"),
    (
        "{headers: {x-a: {exact: '1'}, x-b: {exact: '2'}}}",
        "a-and-b",
    ),
    ("{queryParams: {user: {exact: jason}}}", "query-exact"),
    ("{queryParams: {id: {regex: '[0-9]+'}}}", "query-regex"),
    ("{queryParams: {kind: {prefix: new-}}}", "query-prefix"),
    ("{authority: {prefix: 'other.'}}", "authority"),
    ("{scheme: {exact: https}}", "scheme"),
    (
        "{uri: {prefix: /without}, withoutHeaders: {x-skip: {exact: 'yes'}}}",
        "not-skipped",
    ),
    (
        "{uri: {prefix: /absent}, withoutHeaders: {x-skip: {}}}",
        "absent",
    ),
    ("", "rest"),
];

async fn the_route_that_matches_first_is_taken(plane: Plane) {
    let test = "the_route_that_matches_first_is_taken";
    let properties = named_routes(PROPERTIES);
    let hosts = [
        ("path.test", named_routes(PATHS)),
        ("property.test", properties.clone()),
        ("other.property.test", properties),
    ];
    let hosts = hosts.each_ref().map(|(host, http)| (*host, http.as_str()));
    let Some((_mesh, gateway, _reviews)) = gateway_with(plane, test, &hosts).await else {
        return;
    };
    let check = async |call: Call, expect: &str| {
        let answer = gateway.send(&call).await;
        let found = (answer.status, answer.header("x-route"));
        assert_eq!(found, (200, expect.to_owned()), "{call:?}: {answer:?}");
    };
    for (path, expect) in [
        ("/exact", "exact"),
        ("/exact?query=1", "exact"),
        ("/exact/", "rest"),
        ("/api/v1", "prefix"),
        ("/apix", "prefix"),
        ("/item/12", "regex"),
        ("/item/12/x?y", "regex"),
        ("/item/12x", "rest"),
        ("/x/item/12", "rest"),
        ("/LOUD", "exact-any-case"),
        ("/QUIET/a", "prefix-any-case"),
        ("/EXACT", "rest"),
        ("/two", "two-or-three"),
        ("/three/b", "two-or-three"),
        // Dot segments are resolved before matching (fact 23).
        ("/x/../exact", "exact"),
        ("/", "rest"),
    ] {
        check(Call::get("path.test", path), expect).await;
    }
    check(Call::get("path.test", "/").method("DELETE"), "delete").await;
    // The first in the order of the file wins.
    check(Call::get("path.test", "/exact").method("DELETE"), "exact").await;

    let get = |path: &str| Call::get("property.test", path);
    let with = |headers: &[(&str, &str)]| {
        let add = |call: Call, (name, value): &(&str, &str)| call.header(name, value);
        headers.iter().fold(get("/"), add)
    };
    check(with(&[("X-Exact", "Some Text")]), "exact").await;
    check(with(&[("x-exact", "some text")]), "rest").await;
    check(with(&[("x-prefix", "v1.2")]), "prefix").await;
    check(with(&[("x-prefix", "v2")]), "rest").await;
    check(with(&[("cookie", "a=b; user=jason")]), "rest").await;
    check(with(&[("cookie", "a=b;user=jason;c=d")]), "cookie").await;
    check(with(&[("x-present", "")]), "present").await;
    check(with(&[("x-a", "1"), ("x-b", "2")]), "a-and-b").await;
    check(with(&[("x-a", "1")]), "rest").await;
    check(get("/?user=jason"), "query-exact").await;
    check(get("/?user=jasonx"), "rest").await;
    check(get("/?id=42"), "query-regex").await;
    check(get("/?id=42x"), "rest").await;
    check(get("/?kind=new-one"), "query-prefix").await;
    check(Call::get("other.property.test", "/"), "authority").await;
    check(get("/without"), "not-skipped").await;
    check(get("/without").header("x-skip", "no"), "not-skipped").await;
    check(get("/without").header("x-skip", "yes"), "rest").await;
    check(get("/absent"), "absent").await;
    check(get("/absent").header("x-skip", ""), "rest").await;
    check(get("/"), "rest").await;
}

const REWRITES: &str = "
  - match: [{uri: {prefix: /old/}}]
    rewrite: {uri: /new/}
    route: [{destination: {host: reviews}}]
  - match: [{uri: {exact: /one}}]
    rewrite: {uri: /uno}
    route: [{destination: {host: reviews}}]
  - match: [{uri: {regex: '/any/.*'}}]
    rewrite: {uri: /fixed}
    route: [{destination: {host: reviews}}]
  - match: [{uri: {prefix: /users/}}]
    rewrite: {uriRegexRewrite: {match: '^/users/([0-9]+)/(.*)$', rewrite: '/\\2?id=\\1'}}
    route: [{destination: {host: reviews}}]
  - match: [{uri: {prefix: /named}}]
    rewrite: {authority: other.example}
    route: [{destination: {host: reviews}}]
  - match: [{uri: {prefix: /host}}]
    headers: {request: {set: {Host: set.example}}}
    route: [{destination: {host: reviews}}]
  - route: [{destination: {host: reviews}}]";

const REDIRECTS: &str = "
  - match: [{uri: {exact: /moved}}]
    redirect: {uri: /new, authority: elsewhere.test, redirectCode: 302}
  - match: [{uri: {exact: /scheme}}]
    redirect: {scheme: https}
  - match: [{uri: {exact: /port}}]
    redirect: {port: 8443, authority: elsewhere.test, redirectCode: 308}
  - match: [{uri: {exact: /request-port}}]
    redirect: {derivePort: FROM_REQUEST_PORT, authority: elsewhere.test}
  - match: [{uri: {exact: /teapot}}]
    directResponse: {status: 418, body: {string: short and stout}}
    headers: {response: {set: {x-kind: pot}}}
  - directResponse: {status: 204}";

async fn rewrites_redirects_and_direct_responses(plane: Plane) {
    let test = "rewrites_redirects_and_direct_responses";
    let hosts = [("rewrite.test", REWRITES), ("redirect.test", REDIRECTS)];
    let Some((_mesh, gateway, _reviews)) = gateway_with(plane, test, &hosts).await else {
        return;
    };
    for (path, host, expect) in [
        ("/old/a?b=c", "rewrite.test", "/new/a?b=c"),
        ("/one?b=c", "rewrite.test", "/uno?b=c"),
        ("/any/thing?b=c", "rewrite.test", "/fixed?b=c"),
        ("/users/7/books", "rewrite.test", "/books?id=7"),
        ("/named/x", "other.example", "/named/x"),
        ("/host/x", "set.example", "/host/x"),
        ("/same?x", "rewrite.test", "/same?x"),
    ] {
        let answer = gateway.get("rewrite.test", path).await;
        let json = answer.json();
        assert_eq!(json["path"], expect, "{path}: {answer:?}");
        assert_eq!(answer.got("host"), host, "{path}");
    }
    for (path, status, location, body) in [
        ("/moved?q", 302, "http://elsewhere.test/new?q", ""),
        ("/scheme", 301, "https://redirect.test/scheme", ""),
        ("/port", 308, "http://elsewhere.test:8443/port", ""),
        (
            "/request-port",
            301,
            "http://elsewhere.test/request-port",
            "",
        ),
        ("/teapot", 418, "", "short and stout"),
        ("/none", 204, "", ""),
    ] {
        let answer = gateway.get("redirect.test", path).await;
        let found = (
            answer.status,
            answer.header("location"),
            answer.body.clone(),
        );
        let expect = (status, location.to_owned(), body.to_owned());
        assert_eq!(found, expect, "{path}: {answer:?}");
    }
    let teapot = gateway.get("redirect.test", "/teapot").await;
    assert_eq!(teapot.header("x-kind"), "pot");
}

const HEADERS: &str = "
  - match: [{uri: {prefix: /one}}]
    headers:
      request: {set: {x-set: new}, add: {x-add: more}, remove: [x-gone]}
      response: {set: {x-echo: hidden}, add: {x-added: 'yes'}, remove: [x-secret]}
    route: [{destination: {host: reviews}}]
  - match: [{uri: {prefix: /many}}]
    headers: {request: {set: {x-set: route}}}
    route:
    - destination: {host: reviews, subset: v1}
      weight: 1
      headers: {request: {set: {x-for: one}}, response: {set: {x-from: one}}}
    - destination: {host: reviews, subset: v2}
      weight: 1
      headers: {request: {set: {x-for: two, Host: two.example}}, response: {set: {x-from: two}}}
  - match: [{uri: {prefix: /zero}}]
    route:
    - {destination: {host: reviews, subset: v1}, weight: 0}
    - {destination: {host: reviews, subset: v3}, weight: 5}
  - route: [{destination: {host: reviews, subset: v2}, weight: 0}]";

async fn headers_are_changed_as_the_rule_says(plane: Plane) {
    let test = "headers_are_changed_as_the_rule_says";
    let Some((_mesh, gateway, _reviews)) =
        gateway_with(plane, test, &[("headers.test", HEADERS)]).await
    else {
        return;
    };
    let call = Call::get("headers.test", "/one")
        .header("x-set", "old")
        .header("x-set", "older")
        .header("x-add", "first")
        .header("x-gone", "here");
    let answer = gateway.send(&call).await;
    let got = ["x-set", "x-add", "x-gone"].map(|name| answer.got(name));
    assert_eq!(got, ["new", "first,more", ""], "{answer:?}");
    let sent = ["x-echo", "x-added", "x-secret"].map(|name| answer.header(name));
    assert_eq!(sent, ["hidden", "yes", ""], "{answer:?}");
    // What Istio's gateways add (fact 21).
    assert_eq!(answer.header("server"), "istio-envoy");
    assert_eq!(answer.got("x-envoy-attempt-count"), "1");
    assert_eq!(answer.got("x-forwarded-proto"), "http");
    assert!(!answer.got("x-request-id").is_empty());

    let mut seen = [false; 2];
    for _ in 0..40 {
        let answer = gateway.get("headers.test", "/many").await;
        assert_eq!(answer.got("x-set"), "route");
        let found = (
            answer.name(),
            answer.got("x-for"),
            answer.header("x-from"),
            answer.got("host"),
        );
        let found = (&*found.0, &*found.1, &*found.2, &*found.3);
        match found {
            ("v1", "one", "one", "headers.test") => seen[0] = true,
            ("v2", "two", "two", "two.example") => seen[1] = true,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(seen, [true, true]);
    for _ in 0..20 {
        assert_eq!(gateway.get("headers.test", "/zero").await.name(), "v3");
        // The weight of an only destination does not matter (fact 8).
        assert_eq!(gateway.get("headers.test", "/only").await.name(), "v2");
    }
}

const RETRIES: &str = "
  - match: [{uri: {prefix: /slow}}]
    timeout: 0.2s
    route: [{destination: {host: reviews, subset: v1}}]
  - match: [{uri: {prefix: /flaky}, headers: {x-retry: {exact: 'on'}}}]
    retries: {attempts: 3, perTryTimeout: 20s, retryOn: '5xx'}
    route: [{destination: {host: reviews, subset: v1}}]
  - match: [{uri: {prefix: /flaky}, headers: {x-retry: {exact: 'code'}}}]
    retries: {attempts: 3, retryOn: '503'}
    route: [{destination: {host: reviews, subset: v1}}]
  - match: [{uri: {prefix: /some}, headers: {x-retry: {exact: 'off'}}}]
    retries: {attempts: 0}
    route: [{destination: {host: some}}]
  - match: [{uri: {prefix: /some}}]
    route: [{destination: {host: some}}]
  - route: [{destination: {host: reviews, subset: v1}}]";

async fn timeouts_and_retries_are_istios(plane: Plane) {
    let test = "timeouts_and_retries_are_istios";
    let Some((mesh, gateway, reviews)) =
        gateway_with(plane, test, &[("retry.test", RETRIES)]).await
    else {
        return;
    };
    let get = async |path: &str, retry: &str| -> Answer {
        let call = Call::get("retry.test", path).header("x-retry", retry);
        gateway.send(&call).await
    };
    let started = Instant::now();
    let answer = get("/slow/60000", "").await;
    assert_eq!(
        (answer.status, answer.body.as_str()),
        (504, "upstream request timeout")
    );
    assert!(started.elapsed() < Duration::from_secs(20), "cut short");

    // An error of the application is passed on, and tried again only where a rule says so.
    assert_eq!(get("/flaky/1/default", "").await.status, 503);
    assert_eq!(reviews.v1.hits("/flaky/1/default"), 1);
    assert_eq!(get("/flaky/2/on", "on").await.status, 200);
    assert_eq!(reviews.v1.hits("/flaky/2/on"), 3);
    assert_eq!(get("/flaky/9/enough", "on").await.status, 503);
    assert_eq!(reviews.v1.hits("/flaky/9/enough"), 4);
    assert_eq!(get("/flaky/2/code", "code").await.status, 200);

    // One of four endpoints refuses connections: the others answer all requests. A request fails
    // when that one is drawn 13 times in a row (once, and six times for each of two more tries),
    // which is a chance of 1 in 60 million; the rest of the pool is there for that.
    let mut some = service("some", "http", 80);
    for (version, echo) in reviews.all() {
        some += &workload("some", version, "http", echo.port());
    }
    some += &workload("some", "dead", "http", ports::reserve());
    mesh.apply(&some).await;
    mesh.distributed(1).await;
    let is_there = async || match get("/some", "").await.status {
        200 => Ok(()),
        other => Err(other.to_string()),
    };
    lateen_testkit::settles("the service is there", is_there).await;
    for _ in 0..40 {
        let answer = get("/some", "").await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    let mut failed = 0;
    for _ in 0..60 {
        failed += usize::from(get("/some", "off").await.status == 503);
    }
    assert!(failed > 0, "without retries, some requests fail");
}

on_both!(
    the_route_that_matches_first_is_taken,
    rewrites_redirects_and_direct_responses,
    headers_are_changed_as_the_rule_says,
    timeouts_and_retries_are_istios,
);
