//! `envoy.filters.http.rbac` and `envoy.filters.network.rbac`.

use crate::planes::{Running, TYPES, both, cluster, filter, log, manager};
use crate::requests::REQUESTS;
use lateen_testkit::certificates::{self, Authority};
use lateen_testkit::echo::{Echo, TcpEcho};
use lateen_testkit::envoy::Plane;
use serde_json::{Value, json};

fn http_rbac(config: Value) -> Value {
    filter("envoy.filters.http.rbac", "http.rbac.v3.RBAC", config)
}

fn tcp_rbac(config: Value) -> Value {
    filter("envoy.filters.network.rbac", "network.rbac.v3.RBAC", config)
}

fn rules(action: &str, policies: Value) -> Value {
    json!({ "action": action, "policies": policies })
}

fn policy(permission: Value, principal: Value) -> Value {
    json!({ "permissions": [permission], "principals": [principal] })
}

fn any() -> Value {
    json!({ "any": true })
}

fn path(matcher: Value) -> Value {
    json!({ "url_path": { "path": matcher } })
}

fn header(name: &str, matcher: Value) -> Value {
    let mut header = json!({ "name": name });
    let fields = header.as_object_mut().unwrap();
    fields.extend(matcher.as_object().cloned().unwrap_or_default());
    json!({ "header": header })
}

fn exact_header(name: &str, value: &str) -> Value {
    header(name, json!({ "string_match": { "exact": value } }))
}

/// Every kind of rule that Istio sends about requests, as an ALLOW policy of its own.
fn allowed() -> Value {
    json!({
        "path-exact": policy(path(json!({ "exact": "/exact" })), any()),
        "path-prefix": policy(path(json!({ "prefix": "/prefix/" })), any()),
        "path-suffix": policy(path(json!({ "suffix": "/suffix" })), any()),
        "path-any-case": policy(path(json!({ "exact": "/AnyCase", "ignore_case": true })), any()),
        "path-regex": policy(path(json!({ "safe_regex": { "regex": "/regex/[0-9]+" } })), any()),
        "path-odd": policy(path(json!({ "exact": "/odd;v=1" })), any()),
        "path-empty-segment": policy(path(json!({ "exact": "/a%2fb" })), any()),
        "method": policy(exact_header(":method", "DELETE"), any()),
        "host": policy(
            header(":authority", json!({ "string_match": { "exact": "good.test", "ignore_case": true } })),
            any(),
        ),
        "host-with-port": policy(
            header(":authority", json!({ "string_match": { "exact": "ported.test:81" } })),
            any(),
        ),
        "host-suffix": policy(
            header("host", json!({ "string_match": { "suffix": ".wild.test" } })),
            any(),
        ),
        "header-exact": policy(exact_header("x-exact", "v"), any()),
        "header-present": policy(header("x-present", json!({ "present_match": true })), any()),
        "header-prefix": policy(header("x-prefix", json!({ "string_match": { "prefix": "v" } })), any()),
        "header-inverted": policy(
            header("x-inverted", json!({ "string_match": { "exact": "v" }, "invert_match": true })),
            any(),
        ),
        "header-not": policy(
            json!({ "and_rules": { "rules": [
                path(json!({ "exact": "/not" })),
                { "not_rule": exact_header("x-not", "v") },
            ] } }),
            any(),
        ),
        "header-missing-as-empty": policy(
            json!({ "and_rules": { "rules": [
                path(json!({ "exact": "/empty" })),
                header("x-empty", json!({
                    "string_match": { "exact": "" }, "treat_missing_header_as_empty": true,
                })),
            ] } }),
            any(),
        ),
        "remote-ip": policy(
            path(json!({ "prefix": "/remote" })),
            json!({ "or_ids": { "ids": [
                { "remote_ip": { "address_prefix": "10.1.0.0", "prefix_len": 16 } },
                { "remote_ip": { "address_prefix": "fd00::", "prefix_len": 8 } },
            ] } }),
        ),
        "source-ip": policy(
            path(json!({ "exact": "/source" })),
            json!({ "source_ip": { "address_prefix": "127.0.0.0", "prefix_len": 8 } }),
        ),
        "direct-ip": policy(
            path(json!({ "exact": "/direct" })),
            json!({ "and_ids": { "ids": [
                { "direct_remote_ip": { "address_prefix": "127.0.0.1", "prefix_len": 32 } },
                { "not_id": { "direct_remote_ip": { "address_prefix": "127.0.0.2", "prefix_len": 32 } } },
            ] } }),
        ),
        "wrong-ip": policy(
            path(json!({ "exact": "/wrong-source" })),
            json!({ "source_ip": { "address_prefix": "10.0.0.0", "prefix_len": 8 } }),
        ),
        "destination": policy(
            json!({ "and_rules": { "rules": [
                path(json!({ "exact": "/destination" })),
                { "destination_ip": { "address_prefix": "127.0.0.1", "prefix_len": 32 } },
                { "destination_port_range": { "start": 1, "end": 65536 } },
                { "not_rule": { "destination_port": 1 } },
            ] } }),
            any(),
        ),
        "wrong-port": policy(
            json!({ "and_rules": { "rules": [path(json!({ "exact": "/port" })), { "destination_port": 1 }] } }),
            any(),
        ),
        "not-tls": policy(path(json!({ "exact": "/tls" })), json!({ "authenticated": {} })),
        "no-name": policy(
            json!({ "and_rules": { "rules": [
                path(json!({ "exact": "/sni" })),
                { "requested_server_name": { "exact": "a.test" } },
            ] } }),
            any(),
        ),
        "claims": policy(
            path(json!({ "exact": "/claims" })),
            json!({ "metadata": {
                "filter": "envoy.filters.http.jwt_authn",
                "path": [{ "key": "payload" }, { "key": "sub" }],
                "value": { "string_match": { "exact": "a" } },
            } }),
        ),
        "no-claims": policy(
            path(json!({ "exact": "/no-claims" })),
            json!({ "not_id": { "metadata": {
                "filter": "envoy.filters.http.jwt_authn",
                "path": [{ "key": "payload" }],
                "value": { "present_match": true },
            } } }),
        ),
        "route-metadata": policy(
            any(),
            json!({ "sourced_metadata": {
                "metadata_source": "ROUTE",
                "metadata_matcher": {
                    "filter": "m",
                    "path": [{ "key": "k" }],
                    "value": { "or_match": { "value_matchers": [
                        { "list_match": { "one_of": { "string_match": { "exact": "x" } } } },
                        { "double_match": { "exact": 7 } },
                    ] } },
                },
            } }),
        ),
    })
}

fn routes() -> Value {
    let up = json!({ "cluster": "up" });
    let metadata = |value: Value| json!({ "filter_metadata": { "m": { "k": value } } });
    json!([
        { "match": { "path": "/marked" }, "route": up, "metadata": metadata(json!(["y", "x"])) },
        { "match": { "path": "/seven" }, "route": up, "metadata": metadata(json!(7)) },
        { "match": { "path": "/eight" }, "route": up, "metadata": metadata(json!(8)) },
        { "match": { "path": "/open" }, "route": up, "typed_per_filter_config": {
            "envoy.filters.http.rbac": { "@type": format!("{TYPES}.http.rbac.v3.RBACPerRoute") },
        } },
        { "match": { "path": "/closed" }, "route": up, "typed_per_filter_config": {
            "envoy.filters.http.rbac": {
                "@type": format!("{TYPES}.http.rbac.v3.RBACPerRoute"),
                "rbac": { "rules": { "action": "DENY", "policies": {
                    "of the route": { "permissions": [any()], "principals": [any()] },
                } } },
            },
        } },
        { "match": { "path": "/redirect" }, "redirect": { "path_redirect": "/x" } },
        { "match": { "path": "/direct-response" }, "direct_response": { "status": 204 } },
        { "match": { "prefix": "/missing-cluster" }, "route": { "cluster": "none" } },
        { "match": { "prefix": "/" , "headers": [{ "name": "x-nowhere", "present_match": true, "invert_match": true }] }, "route": up },
    ])
}

/// What the request is, on the wire.
fn on_the_wire(line: &str, headers: &[&str]) -> String {
    let host = match headers.iter().any(|h| h.starts_with("host:")) {
        true => "",
        false => "host: h\r\n",
    };
    let headers: String = headers.iter().map(|h| format!("{h}\r\n")).collect();
    // A second header of this name where the request has one itself: both count.
    format!("{line} HTTP/1.1\r\n{host}{headers}connection: close\r\n\r\n")
}

fn log_fields() -> Value {
    json!({
        "nth": "%REQ(X-NTH)%",
        "code": "%RESPONSE_CODE%",
        "details": "%RESPONSE_CODE_DETAILS%",
        "from": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
        "shadow": "%DYNAMIC_METADATA(envoy.filters.http.rbac:dry_shadow_effective_policy_id)%",
        "result": "%DYNAMIC_METADATA(envoy.filters.http.rbac:dry_shadow_engine_result)%",
        "hint": "%DYNAMIC_METADATA(envoy.common:access_log_hint)%",
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_allowed_and_denied_as_by_envoy() {
    let up = Echo::start("up").await;
    let shadow = json!({ "b second": policy(any(), any()), "a first": policy(path(json!({ "prefix": "/x" })), any()) });
    let filters = || {
        let logged = rules(
            "LOG",
            json!({ "l": policy(exact_header("x-exact", "v"), any()) }),
        );
        vec![
            http_rbac(json!({ "rules": logged })),
            http_rbac(json!({
                "rules": rules("ALLOW", allowed()),
                "shadow_rules": rules("DENY", shadow.clone()),
                "shadow_rules_stat_prefix": "dry_",
            })),
        ]
    };
    let planes = both(
        "requests_are_allowed",
        &[cluster("up", up.port())],
        |directory| {
            let log = log(&directory.join("log"), log_fields());
            vec![json!({ "filters": [manager(filters(), routes(), json!({ "access_log": log }))] })]
        },
    )
    .await;
    let mut answers: Vec<Vec<(u16, bool)>> = Vec::new();
    for plane in &planes {
        let mut of_plane = Vec::new();
        for (i, (line, headers, allow)) in REQUESTS.iter().enumerate() {
            let nth = format!("x-nth: {i}");
            let sent: Vec<&str> = headers.iter().copied().chain([nth.as_str()]).collect();
            let (status, body) = plane.http(0, &on_the_wire(line, &sent));
            let denied = status == 403 && body == "RBAC: access denied";
            let malformed = status == 400;
            assert_eq!(
                !denied && !malformed,
                *allow,
                "{:?}: {line} {headers:?}: {status} {body}",
                plane.plane
            );
            of_plane.push((status, denied));
        }
        answers.push(of_plane);
    }
    let mut logs = Vec::new();
    for plane in &planes {
        logs.push(by_request(plane.lines("log", REQUESTS.len()).await));
    }
    if let ([one, other], [theirs, ours]) = (&answers[..], &logs[..]) {
        for (i, (line, headers, _)) in REQUESTS.iter().enumerate() {
            assert_eq!(one[i], other[i], "{line} {headers:?}");
        }
        assert_eq!(theirs.len(), ours.len());
        for (theirs, ours) in theirs.iter().zip(ours) {
            assert_eq!(theirs, ours);
        }
    }
    counted_alike(&planes, "http.in.rbac.").await;
}

/// Lines in the order of the requests: each worker writes its own, so theirs says nothing. Of a
/// request that could not be read nothing is known but its answer.
fn by_request(mut lines: Vec<Value>) -> Vec<Value> {
    for line in &mut lines {
        if line["code"] == 400 {
            line["nth"] = Value::Null;
        }
    }
    lines.sort_by_key(|line| (line["nth"].as_str().map(str::to_owned), line.to_string()));
    lines
}

/// The counters of both planes below a prefix are the same, and not zero.
async fn counted_alike(planes: &[Running], prefix: &str) {
    let mut counted = Vec::new();
    for plane in planes {
        let stats = plane.envoy.stats().await.into_iter();
        let of_prefix: Vec<_> = stats.filter(|(name, _)| name.starts_with(prefix)).collect();
        assert!(of_prefix.iter().any(|(_, n)| *n > 0), "{:?}", plane.plane);
        counted.push(of_prefix);
    }
    if let [one, other] = &counted[..] {
        assert_eq!(one, other);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_policy_that_denies_is_named_in_the_log_only() {
    let up = Echo::start("up").await;
    let denied = json!({
        "ns[a b]-policy[p]": policy(path(json!({ "exact": "/b" })), any()),
        "ns[a]-policy[p]": policy(path(json!({ "prefix": "/a" })), any()),
    });
    let planes = both(
        "the_policy_that_denies",
        &[cluster("up", up.port())],
        |directory| {
            let log = log(&directory.join("log"), log_fields());
            let filters = vec![http_rbac(json!({ "rules": rules("DENY", denied.clone()) }))];
            vec![json!({ "filters": [manager(filters, routes(), json!({ "access_log": log }))] })]
        },
    )
    .await;
    for plane in &planes {
        for (path, status) in [("/a", 403), ("/b", 403), ("/c", 200)] {
            let nth = format!("x-nth: {path}");
            let (answer, body) = plane.http(0, &on_the_wire(&format!("GET {path}"), &[&nth]));
            assert_eq!(answer, status, "{:?} {path}: {body}", plane.plane);
            assert!(!body.contains("policy["), "{body}");
        }
        let lines = by_request(plane.lines("log", 3).await);
        let details: Vec<_> = lines.iter().map(|line| line["details"].clone()).collect();
        let expect = [
            "rbac_access_denied_matched_policy[ns[a]-policy[p]]",
            "rbac_access_denied_matched_policy[ns[a_b]-policy[p]]",
            "via_upstream",
        ];
        assert_eq!(details, expect, "{:?}", plane.plane);
        // gRPC clients get a status of theirs.
        let grpc = ["content-type: application/grpc"];
        let answer = plane
            .raw(0, on_the_wire("GET /a", &grpc).as_bytes())
            .unwrap();
        let answer = String::from_utf8_lossy(&answer).to_lowercase();
        assert!(answer.contains("grpc-status: 7"), "{answer}");
        assert!(
            answer.contains("grpc-message: rbac: access denied"),
            "{answer}"
        );
    }
    counted_alike(&planes, "http.in.rbac.").await;
}

/// Identities on connections, for HTTP and TCP at once.
#[tokio::test(flavor = "multi_thread")]
async fn identities_of_clients_decide_over_mutual_tls() {
    let up = Echo::start("up").await;
    let tcp = TcpEcho::start("tcp").await;
    let authority = Authority::new("root");
    let server = authority.issue("server", &["server.test"]);
    let clients = [
        (
            "exact",
            authority.issue("x", &["spiffe://td/ns/a/sa/b"]),
            true,
        ),
        (
            "namespace",
            authority.issue("x", &["spiffe://td/ns/team/sa/z"]),
            true,
        ),
        (
            "other",
            authority.issue("x", &["spiffe://td/ns/other/sa/z"]),
            false,
        ),
        (
            "prefix of another",
            authority.issue("x", &["spiffe://td/ns/a/sa/bc"]),
            false,
        ),
        (
            "second",
            authority.issue("x", &["spiffe://td/ns/no/sa/no", "spiffe://td/ns/a/sa/b"]),
            true,
        ),
        (
            "by DNS name",
            authority.issue("x", &["spiffe://td/ns/no/sa/no", "dns.test"]),
            true,
        ),
        ("by subject", authority.issue("subject", &[]), true),
        (
            "by subject although it has names",
            authority.issue("subject", &["spiffe://td/ns/no/sa/no"]),
            true,
        ),
    ];
    let name = |matcher: Value| json!({ "authenticated": { "principal_name": matcher } });
    let policies = json!({ "p": policy(
        json!({ "requested_server_name": { "exact": "server.test" } }),
        json!({ "or_ids": { "ids": [
            name(json!({ "exact": "spiffe://td/ns/a/sa/b" })),
            name(json!({ "safe_regex": { "regex": ".*/ns/team/.*" } })),
            name(json!({ "exact": "dns.test" })),
            name(json!({ "exact": "CN=subject" })),
        ] } }),
    ) });
    let transport = json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "require_client_certificate": false,
            "common_tls_context": {
                "tls_certificates": [{
                    "certificate_chain": { "inline_string": server.chain },
                    "private_key": { "inline_string": server.key },
                }],
                "validation_context": { "trusted_ca": { "inline_string": authority.pem } },
            },
        },
    });
    let clusters = [cluster("up", up.port()), cluster("tcp", tcp.port())];
    let planes = both("identities_of_clients", &clusters, |directory| {
        let rules = rules("ALLOW", policies.clone());
        let http = manager(
            vec![http_rbac(json!({ "rules": rules }))],
            routes(),
            json!({}),
        );
        let proxy = filter(
            "envoy.filters.network.tcp_proxy",
            "network.tcp_proxy.v3.TcpProxy",
            json!({
                "stat_prefix": "t",
                "cluster": "tcp",
                "access_log": log(&directory.join("log"), json!({
                    "details": "%CONNECTION_TERMINATION_DETAILS%",
                    "sent": "%BYTES_SENT%",
                })),
            }),
        );
        let guard = tcp_rbac(json!({ "rules": rules, "stat_prefix": "tcp." }));
        vec![
            json!({ "filters": [http], "transport_socket": transport }),
            json!({ "filters": [guard, proxy], "transport_socket": transport }),
        ]
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    for plane in &planes {
        // At once: those who may talk to the echo wait for its end in vain.
        let checks = clients
            .iter()
            .enumerate()
            .map(|(index, (what, pair, allow))| {
                let directory = directory.path().join(index.to_string());
                async move {
                    std::fs::create_dir_all(&directory).unwrap();
                    let chain = certificates::file(&directory, "chain", &pair.chain);
                    let key = certificates::file(&directory, "key", &pair.key);
                    let pair = [
                        "--cert",
                        chain.to_str().unwrap(),
                        "--key",
                        key.to_str().unwrap(),
                    ];
                    for (sni, right) in [("server.test", true), ("wrong.test", false)] {
                        let status = curl(plane, 0, sni, &pair).await;
                        let expect = if *allow && right { "200" } else { "403" };
                        assert_eq!(status, expect, "{:?}: {what} {sni}", plane.plane);
                    }
                    // curl speaks HTTP to the TCP echo, and gets its own words back or nothing.
                    let answer = curl_raw(plane, 1, "server.test", &pair).await;
                    assert_eq!(
                        answer.contains("GET / HTTP"),
                        *allow,
                        "{:?}: {what}: {answer}",
                        plane.plane
                    );
                }
            });
        futures_util::future::join_all(checks).await;
        assert_eq!(
            curl(plane, 0, "server.test", &[]).await,
            "403",
            "without a certificate"
        );
        let answer = curl_raw(plane, 1, "server.test", &[]).await;
        assert!(!answer.contains("GET /"), "without a certificate: {answer}");
        let lines = plane.lines("log", clients.len() + 1).await;
        let denied = |line: &&Value| line["details"] == "rbac_access_denied_matched_policy[none]";
        let refused = clients.iter().filter(|(_, _, allow)| !allow).count() + 1;
        assert_eq!(lines.iter().filter(denied).count(), refused, "{lines:?}");
    }
    counted_alike(&planes, "tcp.rbac.").await;
    counted_alike(&planes, "http.in.rbac.").await;
}

async fn curl(plane: &Running, listener: usize, sni: &str, more: &[&str]) -> String {
    let format = ["-o", "/dev/null", "-w", "%{http_code}"];
    run_curl(plane, listener, sni, &[&format, more].concat()).await
}

async fn curl_raw(plane: &Running, listener: usize, sni: &str, more: &[&str]) -> String {
    let raw = ["--http0.9", "--http1.1", "-m", "5"];
    run_curl(plane, listener, sni, &[&raw, more].concat()).await
}

async fn run_curl(plane: &Running, listener: usize, sni: &str, more: &[&str]) -> String {
    let port = plane.ports[listener];
    let resolve = format!("{sni}:{port}:127.0.0.1");
    let url = format!("https://{sni}:{port}/");
    let fixed = ["-sk", "--resolve", &resolve, &url];
    certificates::run("curl", &[&fixed, more].concat())
        .await
        .text
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_denied_is_closed_and_nothing_of_it_gets_through() {
    let tcp = TcpEcho::start("tcp").await;
    let denied = json!({ "by port": policy(
        json!({ "destination_port_range": { "start": 1, "end": 65536 } }),
        json!({ "direct_remote_ip": { "address_prefix": "127.0.0.1", "prefix_len": 32 } }),
    ) });
    let elsewhere = json!({ "elsewhere": policy(
        any(),
        json!({ "not_id": { "source_ip": { "address_prefix": "127.0.0.0", "prefix_len": 8 } } }),
    ) });
    let planes = both(
        "a_connection_that_is_denied",
        &[cluster("tcp", tcp.port())],
        |directory| {
            let chain = |file: &str, guards: Vec<Value>| {
                let proxy = filter(
                    "envoy.filters.network.tcp_proxy",
                    "network.tcp_proxy.v3.TcpProxy",
                    json!({
                        "stat_prefix": "t",
                        "cluster": "tcp",
                        "access_log": log(&directory.join(file), json!({
                            "details": "%CONNECTION_TERMINATION_DETAILS%",
                            "flags": "%RESPONSE_FLAGS%",
                            "received": "%BYTES_RECEIVED%",
                        })),
                    }),
                );
                json!({ "filters": guards.into_iter().chain([proxy]).collect::<Vec<_>>() })
            };
            let deny =
                tcp_rbac(json!({ "rules": rules("DENY", denied.clone()), "stat_prefix": "tcp." }));
            let pass = tcp_rbac(json!({
                "rules": rules("DENY", elsewhere.clone()),
                "shadow_rules": rules("ALLOW", elsewhere.clone()),
                "shadow_rules_stat_prefix": "dry_",
                "stat_prefix": "tcp.",
            }));
            let none = tcp_rbac(json!({ "rules": { "action": "ALLOW" }, "stat_prefix": "tcp." }));
            vec![
                chain("denied", vec![pass.clone(), deny]),
                chain("passed", vec![pass.clone(), pass]),
                chain("nobody", vec![none]),
            ]
        },
    )
    .await;
    for plane in &planes {
        let hello = b"hello".as_slice();
        // With its end, so that the echo ends as well.
        for (listener, file, details) in [
            (0, "denied", "rbac_access_denied_matched_policy[by_port]"),
            (2, "nobody", "rbac_access_denied_matched_policy[none]"),
        ] {
            let got = plane.raw(listener, hello);
            // Envoy decides on the first bytes of the client, when its TCP proxy has a connection
            // already: what the server says first may be through by then. Ours decides before.
            let early = plane.plane == Plane::StockEnvoy && got.as_deref() == Some(b"tcp\n");
            assert!(
                got.as_deref() == Some(b"") || early,
                "{:?}: {got:?}",
                plane.plane
            );
            let lines = plane.lines(file, 1).await;
            assert_eq!(lines[0]["details"], details, "{:?}", plane.plane);
        }
        let port = plane.at(1);
        let echoed = tokio::task::spawn_blocking(move || {
            use std::io::{Read, Write};
            let mut stream = std::net::TcpStream::connect(port).unwrap();
            stream.write_all(b"hello").unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            let mut all = String::new();
            stream.read_to_string(&mut all).unwrap();
            all
        });
        assert!(echoed.await.unwrap().contains("hello"), "{:?}", plane.plane);
    }
    counted_alike(&planes, "tcp.rbac.").await;
}

/// What only our proxy can be asked: a policy it cannot read in full rejects the configuration.
#[tokio::test(flavor = "multi_thread")]
async fn rules_that_are_not_understood_are_not_applied_in_part() {
    let Some(binary) = Plane::Lateen.binary("rules_that_are_not_understood") else {
        return;
    };
    let ok = policy(any(), any());
    for (what, rbac) in [
        (
            "policies[\"p\"].permissions",
            json!({ "rules": rules("ALLOW", json!({ "p": { "principals": [any()] } })) }),
        ),
        (
            "filter_state",
            json!({ "rules": rules("ALLOW", json!({ "p": policy(any(), json!({ "filter_state": { "key": "k", "string_match": { "exact": "v" } } })) })) }),
        ),
        (
            "any",
            json!({ "rules": rules("ALLOW", json!({ "p": policy(any(), json!({ "any": false })) })) }),
        ),
        (
            "condition",
            json!({ "rules": rules("ALLOW", json!({ "p": { "permissions": [any()], "principals": [any()], "condition": {} } })) }),
        ),
        (
            "audit_logging_options",
            json!({ "rules": { "policies": { "p": ok }, "audit_logging_options": {} } }),
        ),
    ] {
        let chain = json!({ "filters": [manager(vec![http_rbac(rbac)], routes(), json!({}))] });
        let directory = tempfile::tempdir().unwrap();
        let bootstrap = json!({
            "node": { "id": "sidecar~127.0.0.1~x.default~x", "cluster": "c" },
            "admin": { "address": crate::planes::socket(lateen_testkit::ports::reserve()) },
            "static_resources": { "listeners": [{
                "name": "l",
                "address": crate::planes::socket(lateen_testkit::ports::reserve()),
                "filter_chains": [chain],
            }] },
        });
        let file = certificates::file(directory.path(), "b.json", &bootstrap.to_string());
        let said =
            certificates::run(binary.to_str().unwrap(), &["-c", file.to_str().unwrap()]).await;
        assert!(
            !said.success && said.text.contains(what),
            "{what}: {}",
            said.text
        );
    }
}
