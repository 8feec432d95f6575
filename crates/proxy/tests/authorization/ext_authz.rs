//! `envoy.filters.http.ext_authz`, with a server behind it that does as the request in question
//! wants: over HTTP and over gRPC.

use crate::planes::{Running, TYPES, both, cluster, filter, log, manager};
use envoy_types::pb::envoy::config::core::v3::{HeaderValue, HeaderValueOption};
use envoy_types::pb::envoy::service::auth::v3 as pb;
use envoy_types::pb::envoy::r#type::v3::HttpStatus;
use envoy_types::pb::google::protobuf as wkt;
use envoy_types::pb::google::rpc::Status;
use lateen_testkit::echo::Echo;
use pb::check_response::HttpResponse;
use prost::Message;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A port on which `serve` serves connections.
async fn server<F: Future<Output = ()> + Send + 'static>(
    serve: impl Fn(TcpStream) -> F + Send + 'static,
) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    port
}

/// An HTTP server that answers by the header `x-want` of the request it is asked about.
async fn by_http(mut stream: TcpStream) {
    let mut read = Vec::new();
    loop {
        let end = loop {
            if let Some(at) = read.windows(4).position(|w| w == b"\r\n\r\n") {
                break at + 4;
            }
            if stream.read_buf(&mut read).await.unwrap_or(0) == 0 {
                return;
            }
        };
        let head = String::from_utf8_lossy(&read[..end]).into_owned();
        let header = |name: &str| {
            let mut lines = head.lines().filter_map(|line| line.split_once(": "));
            let found = lines.find(|(n, _)| n.eq_ignore_ascii_case(name));
            found.map(|(_, value)| value.to_owned()).unwrap_or_default()
        };
        let length: usize = header("content-length").parse().unwrap_or(0);
        while read.len() < end + length {
            if stream.read_buf(&mut read).await.unwrap_or(0) == 0 {
                return;
            }
        }
        let body = String::from_utf8_lossy(&read[end..end + length]).into_owned();
        read.drain(..end + length);
        let line = head.lines().next().unwrap_or_default().to_owned();
        let answer = |status: &str, headers: &str, body: &str| {
            let length = body.len();
            format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n{headers}\r\n{body}")
        };
        let answer = match header("x-want").as_str() {
            "allow" => answer(
                "200 OK",
                "x-user: alice\r\nx-add: b\r\nx-other: no\r\nx-back: yes\r\n",
                "",
            ),
            "no content" => answer("204 No Content", "", ""),
            "deny" => answer(
                "401 Unauthorized",
                "www-authenticate: Basic\r\nx-why: because\r\nx-secret: s\r\ncontent-type: text/html\r\n",
                "<p>no</p>",
            ),
            "error" => answer("500 Internal Server Error", "", ""),
            "redirect" => answer("302 Found", "location: http://login.test/\r\n", ""),
            "broken" => "HTP/1.1 200 OK\r\n\r\n".to_owned(),
            "close" => return,
            "huge" => answer("403 Forbidden", "", &"x".repeat(3 << 20)),
            "slow" => {
                tokio::time::sleep(Duration::from_secs(60)).await;
                return;
            }
            "tell" => {
                let said = format!(
                    "{line}|{}|{}|{}|{}|{body}",
                    header("host"),
                    header("authorization"),
                    header("x-hidden"),
                    header("x-envoy-auth-partial-body"),
                );
                answer("403 Forbidden", "", &said)
            }
            _ => answer("403 Forbidden", "", ""),
        };
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// The same over gRPC.
async fn by_grpc(stream: TcpStream) {
    let Ok(mut connection) = h2::server::handshake(stream).await else {
        return;
    };
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        tokio::spawn(async move {
            let (head, mut body) = request.into_parts();
            let mut bytes = Vec::new();
            while let Some(Ok(data)) = body.data().await {
                bytes.extend_from_slice(&data);
                let _ = body.flow_control().release_capacity(data.len());
            }
            let request = pb::CheckRequest::decode(bytes.get(5..).unwrap_or_default()).unwrap();
            let attributes = request.attributes.unwrap_or_default();
            let http = attributes
                .request
                .clone()
                .and_then(|r| r.http)
                .unwrap_or_default();
            let want = http.headers.get("x-want").cloned().unwrap_or_default();
            let mut response = check_response(&want, &attributes, head.uri.path());
            let mut status = "0";
            match want.as_str() {
                "slow" => tokio::time::sleep(Duration::from_secs(60)).await,
                "close" => return,
                "error" => status = "14",
                "huge" => {
                    response = check_response("deny", &attributes, "");
                    if let Some(HttpResponse::DeniedResponse(denied)) = &mut response.http_response
                    {
                        denied.body = "x".repeat(3 << 20);
                    }
                }
                _ => {}
            }
            let head = http::Response::builder().header("content-type", "application/grpc");
            let Ok(mut send) = respond.send_response(head.body(()).unwrap(), false) else {
                return;
            };
            let message = response.encode_to_vec();
            let mut framed = vec![0];
            framed.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
            framed.extend_from_slice(&message);
            if want == "broken" {
                framed.truncate(4);
            }
            let _ = send.send_data(framed.into(), false);
            let mut trailers = http::HeaderMap::new();
            trailers.insert("grpc-status", status.parse().unwrap());
            let _ = send.send_trailers(trailers);
        });
    }
}

fn option(name: &str, value: &str, append: Option<bool>) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValue {
            key: name.to_owned(),
            value: value.to_owned(),
            ..HeaderValue::default()
        }),
        #[allow(deprecated, reason = "authorizers still say it")]
        append: append.map(|value| wkt::BoolValue { value }),
        ..HeaderValueOption::default()
    }
}

fn check_response(want: &str, attributes: &pb::AttributeContext, path: &str) -> pb::CheckResponse {
    let http = attributes
        .request
        .clone()
        .and_then(|r| r.http)
        .unwrap_or_default();
    let denied = |code, headers, body: &str| {
        HttpResponse::DeniedResponse(pb::DeniedHttpResponse {
            status: Some(HttpStatus { code }),
            headers,
            body: body.to_owned(),
        })
    };
    let (code, response) = match want {
        "allow" => (
            0,
            Some(HttpResponse::OkResponse(pb::OkHttpResponse {
                headers: vec![
                    option("x-user", "alice", None),
                    option("x-add", "b", Some(true)),
                    option("x-both", "1", None),
                ],
                headers_to_remove: vec!["x-hidden".to_owned(), "x-both".to_owned()],
                response_headers_to_add: vec![option("x-back", "yes", None)],
                ..pb::OkHttpResponse::default()
            })),
        ),
        "plain" => (0, None),
        "deny" => {
            let headers = vec![
                option("x-why", "because", None),
                option("content-type", "text/html", None),
            ];
            (7, Some(denied(401, headers, "<p>no</p>")))
        }
        "redirect" => {
            let headers = vec![option("location", "http://login.test/", None)];
            (7, Some(denied(302, headers, "")))
        }
        "tell" => {
            let context = attributes.context_extensions.get("from").cloned();
            let source = attributes.source.clone().unwrap_or_default();
            let shown = format!(
                "{path}|{} {}|{}|{}|{}|{}|{}",
                http.method,
                http.path,
                http.host,
                http.headers.get(":path").cloned().unwrap_or_default(),
                http.headers
                    .get("x-envoy-auth-partial-body")
                    .cloned()
                    .unwrap_or_default(),
                context.unwrap_or_default(),
                http.body,
            );
            let local = format!("{:?}", source.address).contains("127.0.0.1");
            (
                7,
                Some(denied(
                    403,
                    Vec::new(),
                    if local { &shown } else { "no address" },
                )),
            )
        }
        _ => (7, None),
    };
    let metadata = wkt::Struct {
        fields: [(
            "decided".to_owned(),
            wkt::Value {
                kind: Some(wkt::value::Kind::StringValue(want.to_owned())),
            },
        )]
        .into(),
    };
    pb::CheckResponse {
        status: Some(Status {
            code,
            ..Status::default()
        }),
        dynamic_metadata: Some(metadata),
        http_response: response,
    }
}

const NAMES: [&str; 2] = ["http", "grpc"];

/// The filter over one of the services.
fn ext_authz(over: &str, config: Value) -> Value {
    let names = |names: &[&str]| {
        let patterns: Vec<Value> = names.iter().map(|n| json!({ "exact": n })).collect();
        json!({ "patterns": patterns })
    };
    let service = match over {
        "http" => json!({ "http_service": {
            "server_uri": { "uri": "http://authz", "cluster": "by-http", "timeout": "2s" },
            "path_prefix": "/check",
            "authorization_request": { "allowed_headers": names(&["x-want", "x-add"]) },
            "authorization_response": {
                "allowed_upstream_headers": names(&["x-user"]),
                "allowed_upstream_headers_to_append": names(&["x-add"]),
                "allowed_client_headers": names(&["x-why"]),
                "allowed_client_headers_on_success": names(&["x-back"]),
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
        { "match": { "prefix": "/" }, "route": up },
    ])
}

/// Both planes with a listener for the filter over HTTP and one over gRPC.
async fn start(test: &str, config: Value, up: &Echo) -> Vec<Running> {
    let mut grpc = cluster("by-grpc", server(by_grpc).await);
    let http2 = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    grpc["typed_extension_protocol_options"] = json!({ http2: {
        "@type": format!("type.googleapis.com/{http2}"),
        "explicit_http_config": { "http2_protocol_options": {} },
    } });
    let clusters = [
        cluster("up", up.port()),
        cluster("by-http", server(by_http).await),
        grpc,
    ];
    both(test, &clusters, |directory| {
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
            tokio::time::sleep(Duration::from_millis(200)).await;
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
