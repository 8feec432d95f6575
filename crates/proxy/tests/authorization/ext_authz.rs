//! `envoy.filters.http.ext_authz`, with a server behind it that does as the request in question
//! wants: over HTTP and over gRPC.

use crate::planes::{Running, TYPES, both, cluster, filter, log, manager};
use crate::servers::{by_grpc, by_http, server};
use lateen_testkit::echo::Echo;
use lateen_testkit::envoy::Plane;
use lateen_testkit::eventually;
use lateen_testkit::tokens::Issuer;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

const NAMES: [&str; 2] = ["http", "grpc"];

/// The filter over one of the services.
pub fn ext_authz(over: &str, config: Value) -> Value {
    let names = |names: &[&str]| {
        let patterns: Vec<Value> = names.iter().map(|n| json!({ "exact": n })).collect();
        json!({ "patterns": patterns })
    };
    let service = match over {
        "http" => json!({ "http_service": {
            "server_uri": { "uri": "http://authz", "cluster": "by-http", "timeout": "2s" },
            "path_prefix": "/check",
            "authorization_request": {
                "allowed_headers": names(&["x-want", "x-add"]),
                "headers_to_add": [
                    { "key": "x-share", "value": "100%%" },
                    { "key": "x-protocol", "value": "by %PROTOCOL%" },
                ],
            },
            "authorization_response": {
                "allowed_upstream_headers": names(&["x-user"]),
                "allowed_upstream_headers_to_append": names(&["x-add"]),
                "allowed_client_headers": names(&["x-why"]),
                "allowed_client_headers_on_success": names(&["x-back", "x-other"]),
            },
        } }),
        _ => json!({ "grpc_service": {
            "envoy_grpc": { "cluster_name": "by-grpc", "authority": "authz.test" },
            "timeout": "2s",
        } }),
    };
    let mut all = service;
    let fields = all.as_object_mut().unwrap();
    fields.extend(config.as_object().cloned().unwrap_or_default());
    filter(
        "envoy.filters.http.ext_authz",
        "http.ext_authz.v3.ExtAuthz",
        all,
    )
}

fn routes() -> Value {
    let up = json!({ "cluster": "up" });
    let per = |config: Value| {
        let mut all = json!({ "@type": format!("{TYPES}.http.ext_authz.v3.ExtAuthzPerRoute") });
        all.as_object_mut()
            .unwrap()
            .extend(config.as_object().cloned().unwrap());
        json!({ "envoy.filters.http.ext_authz": all })
    };
    json!([
        { "match": { "prefix": "/open" }, "route": up, "typed_per_filter_config": per(json!({ "disabled": true })) },
        { "match": { "prefix": "/said" }, "route": up, "typed_per_filter_config": per(json!({ "check_settings": { "context_extensions": { "from": "route" } } })) },
        { "match": { "prefix": "/alice", "headers": [{ "name": "x-user", "string_match": { "exact": "alice" } }] }, "direct_response": { "status": 202 } },
        { "match": { "prefix": "/" }, "route": up },
    ])
}

/// The upstream and both servers.
pub async fn clusters(up: &Echo) -> [Value; 3] {
    let mut grpc = cluster("by-grpc", server(by_grpc).await);
    let http2 = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    grpc["typed_extension_protocol_options"] = json!({ http2: {
        "@type": format!("type.googleapis.com/{http2}"),
        "explicit_http_config": { "http2_protocol_options": {} },
    } });
    [
        cluster("up", up.port()),
        cluster("by-http", server(by_http).await),
        grpc,
    ]
}

/// Both planes with a listener for the filter over HTTP and one over gRPC.
async fn start(test: &str, config: Value, up: &Echo) -> Vec<Running> {
    both(test, &clusters(up).await, |directory| {
        let listener = |over: &&str| {
            let log = log(
                &directory.join(over),
                json!({
                    "asked": "%REQ(:PATH)% %REQ(X-WANT)%",
                    "code": "%RESPONSE_CODE%",
                    "details": "%RESPONSE_CODE_DETAILS%",
                    "flags": "%RESPONSE_FLAGS%",
                    "decided": "%DYNAMIC_METADATA(envoy.filters.http.ext_authz:decided)%",
                }),
            );
            let filters = vec![ext_authz(over, config.clone())];
            json!({ "filters": [manager(filters, routes(), json!({ "access_log": log }))] })
        };
        NAMES.iter().map(listener).collect()
    })
    .await
}

/// Sends a request to each plane and service; status, head and body of the answers.
fn all(planes: &[Running], request: &str) -> Vec<(String, u16, String, String)> {
    let mut answers = Vec::new();
    for plane in planes {
        for (listener, over) in NAMES.iter().enumerate() {
            let answer = plane.raw(listener, request.as_bytes()).unwrap_or_default();
            let answer = String::from_utf8_lossy(&answer).into_owned();
            let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
            let status = head
                .split(' ')
                .nth(1)
                .and_then(|s| s.parse().ok())
                .unwrap_or(0);
            let who = format!("{:?} {over}", plane.plane);
            answers.push((who, status, head.to_lowercase(), body.to_owned()));
        }
    }
    answers
}

fn get(path: &str, want: &str, more: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nhost: h.test\r\nx-want: {want}\r\n{more}connection: close\r\n\r\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_allows_denies_and_fails() {
    let up = Echo::start("up").await;
    let planes = start("the_server_allows", json!({}), &up).await;
    for (who, status, head, body) in all(
        &planes,
        &get("/a", "allow", "x-user: mallory\r\nx-add: a\r\n"),
    ) {
        assert_eq!(status, 200, "{who}: {head}");
        let got = |name: &str| body.to_lowercase().contains(name);
        assert!(
            got("alice") && !got("mallory") && got("a,b"),
            "{who}: {body}"
        );
        assert!(!got("x-other"), "{who}: {body}");
        // What is set and removed is removed.
        assert!(!got("x-both"), "{who}: {body}");
        assert!(head.contains("x-back: yes"), "{who}: {head}");
    }
    for (who, status, head, body) in all(&planes, &get("/a", "deny", "")) {
        assert_eq!((status, body.as_str()), (401, "<p>no</p>"), "{who}: {head}");
        assert!(head.contains("x-why: because"), "{who}: {head}");
        let html = head.contains("content-type: text/html");
        assert_eq!(html, who.ends_with("grpc"), "{who}: {head}");
        assert!(!head.contains("x-secret"), "{who}: {head}");
    }
    for (who, status, head, _) in all(&planes, &get("/a", "redirect", "")) {
        assert_eq!(status, 302, "{who}: {head}");
        assert!(
            head.contains("location: http://login.test/"),
            "{who}: {head}"
        );
    }
    // Without a word of the server, and where it is not asked.
    for want in ["error", "broken", "close", "slow"] {
        for (who, status, head, body) in all(&planes, &get("/a", want, "")) {
            assert_eq!((status, body.as_str()), (403, ""), "{who} {want}: {head}");
        }
    }
    for (who, status, head, _) in all(&planes, &get("/open", "deny", "")) {
        assert_eq!(status, 200, "{who}: {head}");
    }
    for plane in &planes {
        for over in NAMES {
            let lines = plane.lines(over, 8).await;
            // Each worker writes its own lines, so their order says nothing.
            for (asked, details, flags) in [
                ("/a allow", "via_upstream", "-"),
                ("/a deny", "ext_authz_denied", "UAEX"),
                ("/a redirect", "ext_authz_denied", "UAEX"),
                ("/a error", "ext_authz_error", "UAEX"),
                ("/a broken", "ext_authz_error", "UAEX"),
                ("/a close", "ext_authz_error", "UAEX"),
                ("/a slow", "ext_authz_error", "UAEX"),
                ("/open deny", "via_upstream", "-"),
            ] {
                let line = lines.iter().find(|line| line["asked"] == asked);
                let line = line.unwrap_or_else(|| panic!("{over} {asked}: {lines:?}"));
                let shown = |key: &str| line[key].as_str().unwrap_or("-").to_owned();
                assert_eq!(
                    (shown("details").as_str(), shown("flags").as_str()),
                    (details, flags),
                    "{:?} {over} {asked}",
                    plane.plane
                );
                // Of an answer over gRPC, and of none where nobody was asked.
                let decided = match (over, asked) {
                    ("grpc", "/a allow") => "allow",
                    ("grpc", "/a deny") => "deny",
                    ("grpc", "/a redirect") => "redirect",
                    _ => "-",
                };
                assert_eq!(
                    shown("decided"),
                    decided,
                    "{:?} {over} {asked}",
                    plane.plane
                );
            }
        }
    }
    assert_eq!(up.hits("/a"), u32::try_from(2 * planes.len()).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_hears_what_the_request_is() {
    let up = Echo::start("up").await;
    let config =
        json!({ "with_request_body": { "max_request_bytes": 8, "allow_partial_message": true } });
    let planes = start("the_server_hears", config, &up).await;
    let post = |want: &str, body: &str| {
        let length = body.len();
        format!(
            "POST /said/x?q=1 HTTP/1.1\r\nhost: h.test\r\nauthorization: token\r\nx-hidden: 1\r\nx-want: {want}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
        )
    };
    for (body, shown, part) in [
        ("short", "short", "false"),
        ("much too long", "much too", "true"),
    ] {
        for (who, status, head, said) in all(&planes, &post("tell", body)) {
            assert_eq!(status, 403, "{who}: {head}");
            let expect = match who.ends_with("http") {
                true => format!("POST /check/said/x?q=1 HTTP/1.1|h.test|token||{part}|{shown}"),
                false => format!(
                    "/envoy.service.auth.v3.Authorization/Check|POST /said/x?q=1|h.test|/said/x?q=1|{part}|route|{shown}"
                ),
            };
            assert_eq!(said, expect, "{who}");
        }
        // And the upstream gets all of it.
        for (who, status, head, said) in all(&planes, &post("allow", body)) {
            assert_eq!(status, 200, "{who}: {head}");
            assert!(said.contains(&body.len().to_string()), "{who}: {said}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_too_long_is_refused_and_failures_are_let_through_where_said() {
    let up = Echo::start("up").await;
    let config = json!({
        "failure_mode_allow": true,
        "failure_mode_allow_header_add": true,
        "with_request_body": { "max_request_bytes": 4 },
    });
    let planes = start("a_body_that_is_too_long", config, &up).await;
    for want in ["error", "close"] {
        for (who, status, head, body) in all(&planes, &get("/b", want, "")) {
            assert_eq!(status, 200, "{who}: {head}");
            assert!(
                body.contains("x-envoy-auth-failure-mode-allowed"),
                "{who}: {body}"
            );
        }
    }
    // A refusal is none of those.
    for (who, status, head, _) in all(&planes, &get("/b", "deny", "")) {
        assert_eq!(status, 401, "{who}: {head}");
    }
    let long = "POST /b HTTP/1.1\r\nhost: h\r\nx-want: allow\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello";
    for (who, status, head, _) in all(&planes, long) {
        assert_eq!(status, 413, "{who}: {head}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_allows_is_applied_as_a_whole_or_not_at_all() {
    let up = Echo::start("up").await;
    let planes = start("an_answer_that_allows", json!({}), &up).await;
    let grpc = |answers: Vec<(String, u16, String, String)>| {
        answers
            .into_iter()
            .filter(|(who, ..)| who.ends_with("grpc"))
    };
    let request = get("/q?b=2&gone=1&a=x&b=4", "query", "");
    for (who, status, head, body) in grpc(all(&planes, &request)) {
        assert_eq!(status, 200, "{who}: {head}");
        let said: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(said["path"], "/q?a=x&b=3", "{who}");
    }
    for (who, status, head, body) in grpc(all(&planes, &get("/p", "elsewhere", ""))) {
        assert_eq!(status, 200, "{who}: {head}");
        let said: Value = serde_json::from_str(&body).unwrap();
        let found = (&said["method"], &said["path"], &said["headers"]["host"]);
        let expect = ("PUT", "/elsewhere?x=1", "other.test");
        assert_eq!(
            found,
            (&json!(expect.0), &json!(expect.1), &json!(expect.2)),
            "{who}"
        );
    }
    // Envoy only with `validate_mutations`, which Istio does not set.
    for want in ["line break", "unknown action"] {
        for (who, status, head, body) in grpc(all(&planes, &get("/i", want, "x-user: admin\r\n"))) {
            if who.starts_with("Lateen") {
                assert_eq!((status, body.as_str()), (500, ""), "{who} {want}: {head}");
            }
        }
    }
    // What is added to the question may be a format.
    for (who, _, head, body) in all(&planes, &get("/f", "added", "")) {
        if who.ends_with("http") {
            assert_eq!(body, "100%|by HTTP/1.1", "{who}: {head}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_route_is_chosen_anew_where_the_answer_changed_the_request() {
    let up = Echo::start("up").await;
    for (clear, expect) in [(false, 200), (true, 202)] {
        let config = json!({ "clear_route_cache": clear });
        let planes = start("the_route_is_chosen_anew", config, &up).await;
        for (who, status, head, _) in all(&planes, &get("/alice", "allow", "")) {
            assert_eq!(status, expect, "{who}: {head}");
        }
        for (who, status, head, _) in all(&planes, &get("/bob", "allow", "")) {
            assert_eq!(status, 200, "{who}: {head}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_that_nobody_allows_does_not_pass_by_a_route_that_is_found_late() {
    let up = Echo::start("up").await;
    let routes = json!([
        {
            "match": { "prefix": "/", "headers": [{ "name": "x-user", "string_match": { "exact": "alice" } }] },
            "route": { "cluster": "up" },
        },
        {
            "match": { "prefix": "/" },
            "route": { "cluster": "up", "upgrade_configs": [{ "upgrade_type": "foo" }] },
        },
    ]);
    let planes = both("an_upgrade_that_nobody", &clusters(&up).await, |_| {
        let listener = |over: &&str| {
            let filters = vec![ext_authz(over, json!({ "clear_route_cache": true }))];
            json!({ "filters": [manager(filters, routes.clone(), json!({}))] })
        };
        NAMES.iter().map(listener).collect()
    })
    .await;
    let request = "GET /u HTTP/1.1\r\nhost: h.test\r\nx-want: allow\r\n\
                   connection: upgrade\r\nupgrade: foo\r\n\r\n";
    // Envoy asks the first route only.
    let planes: Vec<_> = planes
        .into_iter()
        .filter(|one| one.plane == Plane::Lateen)
        .collect();
    for (who, status, head, _) in all(&planes, request) {
        assert_eq!(status, 403, "{who}: {head}");
    }
    assert_eq!(up.hits("/u"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_asked_about_a_request_without_a_route_unless_it_may_find_one() {
    let up = Echo::start("up").await;
    let claim = json!([{ "filter": "envoy.filters.http.jwt_authn", "path": [{ "key": "payload" }, { "key": "sub" }], "value": { "string_match": { "exact": "alice" } } }]);
    let routes = json!([
        { "match": { "prefix": "/here" }, "route": { "cluster": "up" } },
        { "match": { "prefix": "/alice", "dynamic_metadata": claim }, "route": { "cluster": "up" } },
    ]);
    let issuer = Issuer::new("issuer.test");
    let tokens = filter(
        "envoy.filters.http.jwt_authn",
        "http.jwt_authn.v3.JwtAuthentication",
        json!({
            "providers": { "one": {
                "issuer": "issuer.test",
                "local_jwks": { "inline_string": issuer.jwks() },
                "payload_in_metadata": "payload",
                "clear_route_cache": true,
            } },
            "rules": [{ "match": { "prefix": "/" }, "requires": { "requires_any": { "requirements": [
                { "provider_name": "one" }, { "allow_missing": {} },
            ] } } }],
        }),
    );
    let planes = both("nobody_is_asked", &clusters(&up).await, |_| {
        let listener =
            |filters| json!({ "filters": [manager(filters, routes.clone(), json!({}))] });
        let asks = |over: &&str| listener(vec![ext_authz(over, json!({}))]);
        let then_tokens = |over: &&str| listener(vec![ext_authz(over, json!({})), tokens.clone()]);
        let plain = NAMES.iter().map(asks);
        plain.chain(NAMES.iter().map(then_tokens)).collect()
    })
    .await;
    for (who, status, head, _) in all(&planes, &get("/here", "deny", "")) {
        assert_eq!(status, 401, "{who}: {head}");
    }
    for (who, status, head, _) in all(&planes, &get("/none", "deny", "")) {
        assert_eq!(status, 404, "{who}: {head}");
    }
    // What the token says leads to a route, which Envoy lets it take unasked.
    let token = issuer.token(json!({ "sub": "alice" }));
    let bearer = format!("authorization: Bearer {token}\r\n");
    for plane in planes.iter().filter(|one| one.plane == Plane::Lateen) {
        for listener in [2, 3] {
            let (status, body) = plane.http(listener, &get("/alice", "deny", &bearer));
            assert_eq!(status, 401, "{listener}: {body}");
            let (status, body) = plane.http(listener, &get("/alice", "allow", &bearer));
            assert_eq!(status, 200, "{listener}: {body}");
        }
    }
    assert_eq!(up.hits("/none"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_servers_see_the_same_body_and_each_changes_the_response_once() {
    let up = Echo::start("up").await;
    let planes = both("two_servers_see", &clusters(&up).await, |_| {
        let body = |bytes: u32| {
            let limits = json!({ "max_request_bytes": bytes, "allow_partial_message": true });
            json!({ "with_request_body": limits })
        };
        let filters = vec![ext_authz("http", body(4)), ext_authz("grpc", body(64))];
        vec![json!({ "filters": [manager(filters, routes(), json!({}))] })]
    })
    .await;
    let post = |want: &str| {
        format!(
            "POST /said HTTP/1.1\r\nhost: h.test\r\nx-want: {want}\r\ncontent-length: 11\r\n\
             connection: close\r\n\r\nhello world"
        )
    };
    for plane in &planes {
        let (status, said) = plane.http(0, &post("second"));
        assert_eq!(status, 403, "{:?}: {said}", plane.plane);
        assert!(said.ends_with("|hello world"), "{:?}: {said}", plane.plane);
        let answer = plane.raw(0, post("allow").as_bytes()).unwrap();
        let answer = String::from_utf8_lossy(&answer).to_lowercase();
        assert!(
            answer.starts_with("http/1.1 200"),
            "{:?}: {answer}",
            plane.plane
        );
        // Of one of them, and of each.
        for (header, count) in [("x-other: no", 1), ("x-back: yes", 2)] {
            let found = answer.matches(header).count();
            assert_eq!(found, count, "{:?}: {answer}", plane.plane);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_requests_that_rules_without_effect_mark_are_asked_about() {
    let up = Echo::start("up").await;
    let port = server(by_http).await;
    let clusters = [cluster("up", up.port()), cluster("by-http", port)];
    let planes = both("only_requests_that_rules", &clusters, |_| {
        // As Istio writes a CUSTOM policy.
        let marks = filter("envoy.filters.http.rbac", "http.rbac.v3.RBAC", json!({
            "shadow_rules": { "action": "DENY", "policies": { "istio-ext-authz-ns[a]-policy[p]-rule[0]": {
                "permissions": [{ "url_path": { "path": { "prefix": "/asked" } } }],
                "principals": [{ "any": true }],
            } } },
            "shadow_rules_stat_prefix": "istio_ext_authz_",
        }));
        let asks = ext_authz("http", json!({
            "status_on_error": { "code": 503 },
            "filter_enabled_metadata": {
                "filter": "envoy.filters.http.rbac",
                "path": [{ "key": "istio_ext_authz_shadow_effective_policy_id" }],
                "value": { "string_match": { "prefix": "istio-ext-authz" } },
            },
        }));
        vec![json!({ "filters": [manager(vec![marks, asks], routes(), json!({}))] })]
    })
    .await;
    for plane in &planes {
        for (path, want, status) in [
            ("/asked/x", "allow", 200),
            ("/asked/x", "deny", 401),
            ("/asked/x", "error", 503),
            ("/free", "deny", 200),
            ("/asked/../free", "deny", 200),
            ("//asked", "deny", 401),
        ] {
            let (answer, body) = plane.http(0, &get(path, want, ""));
            assert_eq!(answer, status, "{:?} {path} {want}: {body}", plane.plane);
        }
        let stats = plane.envoy.stats().await;
        let shadow = |what: &str| stats[&format!("http.in.rbac.istio_ext_authz_.shadow_{what}")];
        assert_eq!(
            (shadow("allowed"), shadow("denied")),
            (2, 4),
            "{:?}",
            plane.plane
        );
    }
}

/// Waits until so many requests are under way.
async fn active(plane: &Running, count: u64) {
    eventually("requests under way", async || {
        match plane.envoy.stat("http.in.downstream_rq_active").await {
            found if found == count => Ok(()),
            found => Err(format!("{found} in place of {count}")),
        }
    })
    .await;
}

/// A client that leaves while the server thinks leaves nothing behind, and a server that says too
/// much has said nothing.
#[tokio::test(flavor = "multi_thread")]
async fn clients_that_leave_and_answers_without_end_cost_nothing() {
    let up = Echo::start("up").await;
    let planes = start("clients_that_leave", json!({}), &up).await;
    for plane in &planes {
        for listener in 0..NAMES.len() {
            let mut stream = TcpStream::connect(plane.at(listener)).await.unwrap();
            stream
                .write_all(get("/gone", "slow", "").as_bytes())
                .await
                .unwrap();
            active(plane, 1).await;
            drop(stream);
            active(plane, 0).await;
        }
        for (listener, over) in NAMES.iter().enumerate() {
            let lines = plane.lines(over, 1).await;
            assert_eq!(
                lines[0]["details"], "downstream_remote_disconnect",
                "{:?} {over} {listener}",
                plane.plane
            );
        }
    }
    for (who, status, head, _) in all(&planes, &get("/huge", "huge", "")) {
        assert!((400..500).contains(&status), "{who}: {head}");
    }
    assert_eq!(up.hits("/gone") + up.hits("/huge"), 0);
}
