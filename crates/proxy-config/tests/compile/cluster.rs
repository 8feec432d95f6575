//! Clusters.

use super::{compiled_cluster, expect_error, notices, with};
use lateen_proxy_config::{ClusterKind, HttpProtocol, LbPolicy, LocalityLb, ZoneAware};
use serde_json::{Value, json};
use std::time::Duration;

pub fn eds_cluster() -> Value {
    json!({
        "name": "outbound|9080|v2|reviews.default.svc.cluster.local",
        "type": "EDS",
        "eds_cluster_config": {"eds_config": {"ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"}},
        "connect_timeout": "10s",
        "lb_policy": "LEAST_REQUEST",
        "circuit_breakers": {"thresholds": [{"max_connections": 4294967295u32, "max_retries": 7}]},
        "common_lb_config": {"locality_weighted_lb_config": {}},
    })
}

#[test]
fn an_eds_cluster_compiles() {
    let compiled = compiled_cluster(&eds_cluster()).unwrap();
    assert_eq!(compiled.unsupported, []);
    let c = &compiled.value;
    assert!(matches!(&c.kind, ClusterKind::Eds { service_name } if *service_name == c.name));
    assert_eq!(
        c.lb,
        LbPolicy::LeastRequest {
            choices: 2,
            bias: 1.0,
            slow_start: None
        }
    );
    assert_eq!(c.locality_lb, LocalityLb::Weighted);
    assert_eq!(c.connect_timeout, Duration::from_secs(10));
    assert_eq!(
        (c.thresholds.max_connections, c.thresholds.max_requests),
        (u32::MAX, 1024)
    );
    assert_eq!(
        (c.thresholds.max_retries, c.high_thresholds.max_retries),
        (7, 3)
    );
    assert_eq!(c.http.protocol, HttpProtocol::Http1);
}

#[test]
fn the_upstream_protocol_comes_from_the_extension() {
    let options = |config: Value| {
        json!({"typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": with(
        json!({"@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions"}), config)}})
    };
    for (config, protocol) in [
        (
            json!({"explicit_http_config": {"http2_protocol_options": {"max_concurrent_streams": 9}}}),
            HttpProtocol::Http2,
        ),
        (
            json!({"explicit_http_config": {"http_protocol_options": {}}}),
            HttpProtocol::Http1,
        ),
        (
            json!({"use_downstream_protocol_config": {"http2_protocol_options": {}}}),
            HttpProtocol::UseDownstream,
        ),
        (json!({"auto_config": {}}), HttpProtocol::Auto),
    ] {
        let compiled = compiled_cluster(&with(eds_cluster(), options(config))).unwrap();
        assert_eq!(compiled.value.http.protocol, protocol);
    }
}

#[test]
fn clusters_are_rejected_with_the_path_of_the_field() {
    let tls = json!({"name": "envoy.transport_sockets.tls", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext", "common_tls_context": {"validation_context": {"match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": "spiffe://x"}}]}}}});
    for (change, path, reason) in [
        (json!({"name": ""}), "name", "must not be empty"),
        (
            json!({"eds_cluster_config": null}),
            "eds_cluster_config",
            "is required",
        ),
        (
            json!({"type": "STATIC"}),
            "eds_cluster_config",
            "only for clusters of type EDS",
        ),
        (
            json!({"transport_socket": {"name": "quic", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"}}}),
            "transport_socket",
            "DownstreamTlsContext) is not supported yet",
        ),
        (
            json!({"transport_socket_matches": [{"name": "tlsMode-istio", "transport_socket": tls}]}),
            "transport_socket_matches[0].transport_socket.typed_config.common_tls_context.validation_context",
            "trusted_ca is missing",
        ),
        (
            json!({"lb_policy": "MAGLEV", "maglev_lb_config": {"table_size": 65536}}),
            "table_size",
            "prime number",
        ),
        (
            json!({"lb_policy": "CLUSTER_PROVIDED"}),
            "lb_policy",
            "ORIGINAL_DST",
        ),
        (
            json!({"connect_timeout": "0s"}),
            "connect_timeout",
            "must be above zero",
        ),
        (
            json!({"lb_subset_config": {}}),
            "lb_subset_config",
            "not supported yet",
        ),
        (
            json!({"least_request_lb_config": {"choice_count": 1}}),
            "least_request_lb_config.choice_count",
            "at least 2",
        ),
    ] {
        let path = if path.starts_with("least_request") {
            "choice_count".to_owned()
        } else {
            path.to_owned()
        };
        let result = compiled_cluster(&with(eds_cluster(), change));
        let error = result.map(|_| ()).unwrap_err();
        assert!(error.path.ends_with(&path), "{error}");
        assert!(error.reason.contains(reason), "{error}");
    }
}

#[test]
fn what_a_cluster_cannot_do_yet_is_reported() {
    let c = with(
        eds_cluster(),
        json!({
            "health_checks": [{"timeout": "1s", "interval": "1s", "unhealthy_threshold": 1, "healthy_threshold": 1, "tcp_health_check": {}}],
        }),
    );
    assert_eq!(
        notices(compiled_cluster(&c)),
        ["health_checks: endpoints are not probed",]
    );
}

#[test]
fn static_and_dns_clusters_carry_their_endpoints() {
    let assignment = |address: &str| {
        json!({"load_assignment": {"cluster_name": "x", "endpoints": [{"lb_endpoints": [
            {"endpoint": {"address": {"socket_address": {"address": address, "port_value": 80}}}},
        ]}]}})
    };
    let base = |kind: &str| json!({"name": "c", "type": kind});
    let c = compiled_cluster(&with(base("STATIC"), assignment("127.0.0.1")))
        .unwrap()
        .value;
    let ClusterKind::Static(set) = &c.kind else {
        panic!("{:?}", c.kind)
    };
    assert_eq!(set.endpoints().count(), 1);
    assert_eq!((&*set.cluster, set.overprovisioning), ("c", 140));
    let c = compiled_cluster(&with(base("STRICT_DNS"), assignment("localhost")))
        .unwrap()
        .value;
    let ClusterKind::StrictDns { hosts, .. } = &c.kind else {
        panic!("{:?}", c.kind)
    };
    let set = hosts.resolved(|name| {
        assert_eq!(name, "localhost");
        vec![[127, 0, 0, 1].into(), [127, 0, 0, 2].into()]
    });
    let addresses: Vec<String> = set.endpoints().map(|e| e.address.to_string()).collect();
    assert_eq!(addresses, ["127.0.0.1:80", "127.0.0.2:80"]);
    expect_error(
        compiled_cluster(&with(base("STATIC"), assignment("localhost"))),
        "load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.address",
        "'localhost' is not an IP address",
    );
}

#[test]
fn zone_aware_balancing_compiles_from_both_places() {
    let zones = |cluster: Value| match compiled_cluster(&cluster).unwrap().value.locality_lb {
        LocalityLb::Zones(zones) => zones,
        other => panic!("{other:?}"),
    };
    let bare = || {
        let mut cluster = eds_cluster();
        cluster.as_object_mut().unwrap().remove("common_lb_config");
        cluster
    };
    let of = |common: Value| zones(with(bare(), json!({"common_lb_config": common})));
    let panic = json!({"healthy_panic_threshold": {"value": 0}});
    assert_eq!(of(panic), ZoneAware::default());
    let config = json!({"routing_enabled": {"value": 49.6}, "min_cluster_size": "2"});
    let expect = ZoneAware {
        routed: 50,
        min_cluster_size: 2,
        ..ZoneAware::default()
    };
    assert_eq!(of(json!({"zone_aware_lb_config": config})), expect);
    let policy = |zones: Value| {
        let kind = "type.googleapis.com/envoy.extensions.load_balancing_policies.random.v3.Random";
        let config = json!({"@type": kind, "locality_lb_config": {"zone_aware_lb_config": zones}});
        let policy = json!({"policies": [{"typed_extension_config": {"name": "p", "typed_config": config}}]});
        with(bare(), json!({"load_balancing_policy": policy}))
    };
    let config = json!({
        "fail_traffic_on_panic": true, "force_local_zone": {"min_size": 3},
        "locality_basis": "HEALTHY_HOSTS_WEIGHT",
    });
    let expect = ZoneAware {
        fail_on_panic: true,
        force_local: Some(3),
        by_weight: true,
        ..ZoneAware::default()
    };
    assert_eq!(zones(policy(config)), expect);
    let direct = zones(policy(json!({"force_locality_direct_routing": true})));
    assert_eq!(direct.force_local, Some(1));
}
