//! Listeners, their filter chains and connection managers.

use super::{compiled_listener, expect_error, notices, with};
use lateen_proxy_config::route::{ClusterTarget, RouteAction};
use lateen_proxy_config::{Address, Codec, EscapedSlashes, Network, RouteSource};
use serde_json::{Value, json};
use std::time::Duration;

fn router() -> Value {
    json!({
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
    })
}

fn manager() -> Value {
    json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "outbound",
        "rds": {"config_source": {"ads": {}, "resource_api_version": "V3"}, "route_config_name": "http_proxy"},
        "http_filters": [router()],
    })
}

fn http_listener(manager: Value) -> Value {
    json!({
        "name": "127.0.0.1_15101",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 15101}},
        "traffic_direction": "OUTBOUND",
        "filter_chains": [{
            "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}],
        }],
    })
}

fn http_manager(json: Value) -> lateen_proxy_config::HttpConnectionManager {
    let compiled = compiled_listener(&http_listener(json)).unwrap_or_else(|e| panic!("{e}"));
    match &compiled.value.filter_chains[0].network {
        Network::Http(manager) => (**manager).clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_http_listener_has_envoys_defaults() {
    let compiled = compiled_listener(&http_listener(manager())).unwrap();
    assert_eq!(compiled.unsupported, []);
    let l = &compiled.value;
    assert_eq!(
        l.addresses,
        [Address::Socket(([127, 0, 0, 1], 15101).into())]
    );
    assert_eq!((l.reuse_port, l.bind_to_port), (true, true));
    let m = http_manager(manager());
    assert!(matches!(&m.routes, RouteSource::Rds(name) if &**name == "http_proxy"));
    assert_eq!(
        (m.codec, m.escaped_slashes),
        (Codec::Auto, EscapedSlashes::KeepUnchanged)
    );
    assert_eq!(
        (m.max_request_headers_bytes, m.max_headers_count),
        (60 * 1024, 100)
    );
    assert_eq!(m.timeouts.idle, Some(Duration::from_secs(3600)));
    assert_eq!(m.timeouts.stream_idle, Some(Duration::from_secs(300)));
    assert_eq!(m.timeouts.request, None);
    assert_eq!(
        (&*m.server_name, m.generate_request_id, m.normalize_path),
        ("envoy", true, false)
    );
}

#[test]
fn a_zero_timeout_is_no_limit() {
    let m = http_manager(with(
        manager(),
        json!({
            "stream_idle_timeout": "0s",
            "common_http_protocol_options": {"idle_timeout": "0s"},
        }),
    ));
    assert_eq!((m.timeouts.stream_idle, m.timeouts.idle), (None, None));
}

#[test]
fn an_inline_route_table_is_compiled_with_its_listener() {
    let m = http_manager(with(
        manager(),
        json!({
            "rds": null,
            "route_config": {"name": "inbound|9080||", "virtual_hosts": [
                {"name": "v", "domains": ["*"], "routes": [
                    {"match": {"prefix": "/"}, "route": {"cluster": "inbound|9080||", "timeout": "0s"}},
                ]},
            ]},
        }),
    ));
    let RouteSource::Inline(table) = &m.routes else {
        panic!("{:?}", m.routes)
    };
    let route = &table.virtual_hosts[0].routes[0];
    let RouteAction::Forward(forward) = &route.action else {
        panic!("{:?}", route.action)
    };
    assert!(matches!(&forward.cluster, ClusterTarget::One(name) if &**name == "inbound|9080||"));
    assert_eq!(forward.timeout, None);
}

#[test]
fn listeners_are_rejected_with_the_path_of_the_field() {
    let chain = "filter_chains[0]";
    for (change, path, reason) in [
        (json!({"name": ""}), "name".to_owned(), "must not be empty"),
        (
            json!({"address": {"socket_address": {"address": "localhost"}}}),
            "address.socket_address.address".to_owned(),
            "'localhost' is not an IP address",
        ),
        (
            json!({"address": {"socket_address": {"port_value": 70000}}}),
            "address.socket_address.port_value".to_owned(),
            "70000 is not a port",
        ),
        (
            json!({"udp_listener_config": {}}),
            "udp_listener_config".to_owned(),
            "not supported yet",
        ),
        (
            json!({"filter_chains": []}),
            "filter_chains".to_owned(),
            "at least one",
        ),
        (
            json!({"filter_chains": [{"transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"}}}]}),
            format!("{chain}.transport_socket.typed_config.common_tls_context"),
            "a server needs a certificate",
        ),
        (
            json!({"filter_chains": [{}, {}]}),
            "filter_chains[1].filter_chain_match".to_owned(),
            "same connections as filter_chains[0]",
        ),
        (
            json!({"filter_chains": [{"filter_chain_match": {"server_names": ["a*b"]}}]}),
            format!("{chain}.filter_chain_match.server_names[0]"),
            "a star stands for whole labels, as in *.example.com",
        ),
        (
            json!({"filter_chains": [
                {"filter_chain_match": {"server_names": ["a", "b"], "source_ports": [1, 2]}},
                {"filter_chain_match": {"server_names": ["B"], "source_ports": [2]}},
            ]}),
            "filter_chains[1].filter_chain_match".to_owned(),
            "same connections as filter_chains[0]",
        ),
        (
            json!({"listener_filters": [{"name": "x", "filter_disabled": {"not_match": {}}, "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.listener.http_inspector.v3.HttpInspector"}}]}),
            "listener_filters[0].filter_disabled.not_match".to_owned(),
            "is required",
        ),
        (
            json!({"listener_filters": [{"name": "x", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol", "disallowed_versions": ["V1", "V2"]}}]}),
            "listener_filters[0].typed_config.disallowed_versions".to_owned(),
            "leaves no version",
        ),
        (
            json!({"filter_chains": [{"filter_chain_match": {"prefix_ranges": [{"address_prefix": "10.0.0.1", "prefix_len": 40}]}}]}),
            format!("{chain}.filter_chain_match.prefix_ranges[0].prefix_len"),
            "40 is not between 0 and 32",
        ),
        (
            json!({"listener_filters": [{"name": "x", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"}}]}),
            "listener_filters[0]".to_owned(),
            "(envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer) is not supported yet",
        ),
    ] {
        expect_error(
            compiled_listener(&with(http_listener(manager()), change)),
            &path,
            reason,
        );
    }
}

#[test]
fn connection_managers_are_rejected_with_the_path_of_the_field() {
    let jwt = |provider: serde_json::Value, rule: serde_json::Value| {
        let kind =
            "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication";
        let config = json!({"@type": kind, "providers": {"p": provider}, "rules": [rule]});
        let filter = json!({"name": "envoy.filters.http.jwt_authn", "is_optional": true, "typed_config": config});
        json!({"http_filters": [filter, router()]})
    };
    let keys =
        json!({"local_jwks": {"inline_string": r#"{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}"#}});
    let provider_with = |field: &str, value: serde_json::Value| {
        let mut provider = keys.clone();
        provider[field] = value;
        jwt(provider, json!({"match": {"prefix": "/"}}))
    };
    let rbac = json!({"name": "envoy.filters.http.rbac", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC", "matcher": {}}});
    let fault = json!({"name": "envoy.filters.http.fault", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault", "response_rate_limit": {"fixed_limit": {"limit_kbps": 1}}}});
    let cors = |name: &str| json!({"name": name, "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors"}});
    for (change, path, reason) in [
        (
            json!({"stat_prefix": ""}),
            "stat_prefix",
            "must not be empty",
        ),
        (
            json!({"codec_type": "HTTP3"}),
            "codec_type",
            "HTTP/3 is not supported yet",
        ),
        (
            jwt(
                json!({"remote_jwks": {"http_uri": {"uri": "a/keys", "cluster": "a", "timeout": "1s"}}}),
                json!({}),
            ),
            "http_filters[0].typed_config.providers[\"p\"].remote_jwks.http_uri.uri",
            "must be http:// or https://",
        ),
        (
            jwt(json!({"local_jwks": {"filename": "/keys"}}), json!({})),
            "http_filters[0].typed_config.providers[\"p\"].local_jwks",
            "not supported",
        ),
        (
            provider_with("subjects", json!({"exact": "a"})),
            "http_filters[0].typed_config.providers[\"p\"].subjects",
            "not supported",
        ),
        (
            provider_with("require_expiration", json!(true)),
            "http_filters[0].typed_config.providers[\"p\"].require_expiration",
            "not supported",
        ),
        (
            provider_with("claim_to_headers", json!([{"header_name": "x"}])),
            "http_filters[0].typed_config.providers[\"p\"].claim_to_headers[0]",
            "claim_name or claim_path",
        ),
        (
            jwt(keys.clone(), json!({"requires": {"provider_name": "p"}})),
            "http_filters[0].typed_config.rules[0].match",
            "is required",
        ),
        (
            jwt(
                keys.clone(),
                json!({"match": {"prefix": "/"}, "requires": {"requires_any": {"requirements": [{"provider_name": "q"}]}}}),
            ),
            "http_filters[0].typed_config.rules[0].requires.requires_any.requirements[0].provider_name",
            "'q' is not configured",
        ),
        (
            json!({"http_filters": [rbac, router()]}),
            "http_filters[0].typed_config.matcher",
            "not supported",
        ),
        (
            json!({"http_filters": [fault, router()]}),
            "http_filters[0].typed_config.response_rate_limit",
            "not supported",
        ),
        (
            json!({"http_filters": [cors("mine"), router()]}),
            "http_filters[0].typed_config",
            "must be named 'envoy.filters.http.cors'",
        ),
        (
            json!({"http_filters": [cors("envoy.filters.http.cors"), cors("envoy.filters.http.cors"), router()]}),
            "http_filters[1]",
            "twice",
        ),
        (
            json!({"http_filters": [router(), router()]}),
            "http_filters[0]",
            "the last filter must be envoy.filters.http.router",
        ),
        (
            json!({"http_filters": []}),
            "http_filters",
            "needs envoy.filters.http.router",
        ),
        (
            json!({"rds": {"route_config_name": ""}}),
            "rds.route_config_name",
            "must not be empty",
        ),
        (
            json!({"rds": {"config_source": {"ads": null, "path": "/x"}}}),
            "rds.config_source",
            "only ads",
        ),
        (
            json!({"max_request_headers_kb": 9000}),
            "max_request_headers_kb",
            "9000 is not between 1 and 8192",
        ),
        (
            json!({"stream_idle_timeout": "-1s"}),
            "stream_idle_timeout",
            "must not be negative",
        ),
        (
            json!({"local_reply_config": {}}),
            "local_reply_config",
            "not supported yet",
        ),
        (
            json!({"strip_matching_host_port": true, "strip_any_host_port": true}),
            "strip_any_host_port",
            "cannot be combined",
        ),
        (
            json!({"access_log": [{"name": "f", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog", "path": "/dev/stdout", "log_format": {"text_format_source": {"inline_string": "%RESPONSE_COD%"}}}}]}),
            "access_log[0].typed_config.log_format.text_format_source",
            "did you mean %RESPONSE_CODE%?",
        ),
    ] {
        let path = format!("filter_chains[0].filters[0].typed_config.{path}");
        expect_error(
            compiled_listener(&http_listener(with(manager(), change))),
            &path,
            reason,
        );
    }
}

#[test]
fn what_istio_adds_to_every_listener_is_accepted_and_reported() {
    let filter = |name: &str, kind: &str| json!({"name": name, "typed_config": {"@type": format!("type.googleapis.com/{kind}")}});
    let stats = json!({"name": "istio.stats", "typed_config": {"@type": "type.googleapis.com/udpa.type.v1.TypedStruct", "type_url": "type.googleapis.com/stats.PluginConfig", "value": {}}});
    let m = with(
        manager(),
        json!({
            "http_filters": [
                filter("envoy.filters.http.grpc_stats", "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig"),
                filter("envoy.filters.http.fault", "envoy.extensions.filters.http.fault.v3.HTTPFault"),
                filter("envoy.filters.http.cors", "envoy.extensions.filters.http.cors.v3.Cors"),
                stats,
                router(),
            ],
            "tracing": {"random_sampling": {"value": 1.0}},
            "request_id_extension": {"typed_config": {"@type": "type.googleapis.com/envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig", "use_request_id_for_trace_sampling": true}},
        }),
    );
    let prefix = "filter_chains[0].filters[0].typed_config";
    assert_eq!(
        notices(compiled_listener(&http_listener(m))),
        [
            format!("{prefix}.tracing: spans are not made"),
            format!(
                "{prefix}.request_id_extension: request ids are random UUIDs; the trace decision is not packed into them"
            ),
            format!("{prefix}.http_filters[0].typed_config: gRPC messages are not counted"),
            format!("{prefix}.http_filters[3].typed_config: Istio's standard metrics are not made"),
        ]
    );
}

/// What would be refused here leaves a listener in force that asks nobody.
#[test]
fn what_a_provider_of_the_mesh_may_say_compiles() {
    let kind = "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz";
    let header = |key: &str, value: &str| json!({"key": key, "value": value});
    let http = json!({
        "server_uri": {"uri": "http://a.test", "cluster": "a", "timeout": "1s"},
        "path_prefix": "/check",
        "authorization_request": {"headers_to_add": [
            header("x-plain", "a"), header("x-share", "100%%"), header("x-format", "%REQ(x-y)%"),
        ]},
        "authorization_response": {
            "allowed_upstream_headers": {"patterns": [{"prefix": "x-"}]},
            "allowed_client_headers": {"patterns": [{"suffix": "-x"}]},
            "allowed_client_headers_on_success": {"patterns": [{"exact": "x-a"}]},
        },
    });
    let common = json!({
        "@type": kind, "transport_api_version": "V3", "clear_route_cache": true,
        "failure_mode_allow": true, "status_on_error": {"code": "Continue"},
        "with_request_body": {"max_request_bytes": 33554432, "pack_as_bytes": true},
        "allowed_headers": {"patterns": [{"exact": "x-b"}]},
    });
    let grpc = json!({
        "envoy_grpc": {"cluster_name": "a", "authority": "a_.b"}, "timeout": "600s",
    });
    for (field, service) in [("http_service", http), ("grpc_service", grpc)] {
        let filter = json!({
            "name": "envoy.filters.http.ext_authz",
            "typed_config": with(common.clone(), json!({field: service})),
        });
        let m = with(manager(), json!({"http_filters": [filter, router()]}));
        let at = "filter_chains[0].filters[0].typed_config.http_filters[0].typed_config";
        assert_eq!(
            notices(compiled_listener(&http_listener(m))),
            [
                format!("{at}.status_on_error.code: 100 does not end a request; 403 is answered"),
                format!(
                    "{at}.with_request_body.max_request_bytes: no more than 16777216 are read ahead"
                ),
            ]
        );
    }
}

/// An issuer decides what its key set is.
#[test]
fn a_key_set_of_no_use_keeps_no_listener_out() {
    let kind = "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication";
    let curve = r#"{"keys":[{"kty":"EC","crv":"secp256k1","x":"AQ","y":"AQ"}]}"#;
    let unsupported = "[crv] or [alg] field is not supported for an EC key";
    for (text, left_out, reason) in [
        ("", None, "Jwks is an invalid JSON"),
        (
            curve,
            Some(unsupported),
            "Jwks doesn't have any valid public key",
        ),
    ] {
        let filter = json!({"name": "envoy.filters.http.jwt_authn", "typed_config": {
            "@type": kind, "providers": {"p": {"local_jwks": {"inline_string": text}}},
        }});
        let m = with(manager(), json!({"http_filters": [filter, router()]}));
        let at = "filter_chains[0].filters[0].typed_config.http_filters[0].typed_config";
        let at = format!("{at}.providers[\"p\"].local_jwks");
        let left_out = left_out.map(|why| format!("{at}.keys[0]: the key is left out: {why}"));
        let refuses = format!(
            "{at}: no token of this provider is accepted until its key set is replaced: {reason}"
        );
        let expect: Vec<String> = left_out.into_iter().chain([refuses]).collect();
        assert_eq!(notices(compiled_listener(&http_listener(m))), expect);
    }
}
