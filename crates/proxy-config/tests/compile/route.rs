//! Route tables and endpoint sets.

use super::{ENDPOINTS, ROUTES, bytes, expect_error, with};
use lateen_proxy_config::compile::{compile_endpoints, compile_routes};
use lateen_proxy_config::route::RetryOn;
use serde_json::{Value, json};
use std::time::Duration;

pub fn route_table(route: Value) -> Value {
    json!({"name": "r", "virtual_hosts": [{"name": "v", "domains": ["a", "a:80"], "routes": [
        with(json!({"match": {"prefix": "/"}, "route": {"cluster": "c"}}), route),
    ]}]})
}

#[test]
fn a_route_takes_over_the_retries_of_its_virtual_host() {
    let table = with(route_table(json!({})), json!({"virtual_hosts": null}));
    let table = with(
        table,
        json!({"virtual_hosts": [{"name": "v", "domains": ["*"],
        "retry_policy": {"retry_on": "connect-failure,refused-stream", "num_retries": 2},
        "routes": [
            {"match": {"prefix": "/own"}, "route": {"cluster": "c", "retry_policy": {"retry_on": "5xx,unheard-of"}}},
            {"match": {"prefix": "/"}, "route": {"cluster": "c"}},
        ]}]}),
    );
    let compiled = compile_routes(&bytes(ROUTES, &table)).unwrap();
    let retry = |i: usize| {
        compiled.value.virtual_hosts[0].routes[i]
            .retry
            .clone()
            .unwrap()
    };
    assert_eq!(
        (retry(0).on, retry(0).num_retries),
        (RetryOn::STATUS_5XX, 1)
    );
    assert_eq!(
        (retry(1).on, retry(1).num_retries),
        (RetryOn::CONNECT_FAILURE | RetryOn::REFUSED_STREAM, 2)
    );
    assert_eq!(retry(1).backoff_max, Duration::from_millis(250));
    assert_eq!(compiled.unsupported.len(), 1);
    assert!(compiled.unsupported[0].what.contains("unheard-of"));
}

#[test]
fn routes_are_rejected_with_the_path_of_the_field() {
    let route = "virtual_hosts[0].routes[0]";
    for (change, path, reason) in [
        (json!({"match": null}), "match", "is required"),
        (json!({"route": null}), "action", "is required"),
        (
            json!({"route": {"cluster": ""}}),
            "route.cluster",
            "must not be empty",
        ),
        (
            json!({"match": {"prefix": null, "safe_regex": {"regex": "("}}}),
            "match.safe_regex.regex",
            "invalid regex '('",
        ),
        (
            json!({"match": {"prefix": null, "path_separated_prefix": "/a/"}}),
            "match.path_separated_prefix",
            "must not end in '/'",
        ),
        (
            json!({"match": {"headers": [{"name": "a b"}]}}),
            "match.headers[0].name",
            "'a b' is not a header name",
        ),
        (
            json!({"route": {"prefix_rewrite": "/x", "regex_rewrite": {"pattern": {"regex": "a"}, "substitution": "b"}}}),
            "route",
            "only one of prefix_rewrite and regex_rewrite",
        ),
        (
            json!({"route": {"regex_rewrite": {"pattern": {"regex": "(a)"}, "substitution": "\\2"}}}),
            "route.regex_rewrite.substitution",
            "the regex has 1 groups",
        ),
        (
            json!({"route": {"cluster": null, "weighted_clusters": {"clusters": [{"name": "a", "weight": 0}]}}}),
            "route.weighted_clusters.clusters",
            "weight above zero",
        ),
        (
            json!({"route": {"retry_policy": {"retry_back_off": {"base_interval": "1s", "max_interval": "0.5s"}}}}),
            "route.retry_policy.retry_back_off.max_interval",
            "must not be below",
        ),
        (
            json!({"request_headers_to_add": [{"header": {"key": ":path", "value": "/"}}]}),
            "request_headers_to_add[0].header.key",
            "cannot be modified here",
        ),
        (
            json!({"request_headers_to_remove": ["Host"]}),
            "request_headers_to_remove[0]",
            "'host' cannot be modified here",
        ),
        (
            json!({"response_headers_to_add": [{"header": {"key": "x", "value": "%RESPONSE_COD%"}}]}),
            "response_headers_to_add[0].header.value",
            "did you mean %RESPONSE_CODE%?",
        ),
        (
            json!({"route": null, "direct_response": {"status": 199}}),
            "direct_response.status",
            "not between 200 and 599",
        ),
    ] {
        let json = route_table(change);
        expect_error(
            compile_routes(&bytes(ROUTES, &json)),
            &format!("{route}.{path}"),
            reason,
        );
    }
}

#[test]
fn domains_are_unique_in_a_table() {
    let host = |name: &str, domain: &str| json!({"name": name, "domains": [domain]});
    let table = json!({"name": "r", "virtual_hosts": [host("a", "x.y"), host("b", "X.Y")]});
    expect_error(
        compile_routes(&bytes(ROUTES, &table)),
        "virtual_hosts[1].domains[0]",
        "'X.Y' is already a domain of this route configuration",
    );
}

#[test]
fn endpoints_keep_health_weight_locality_and_priority() {
    let json = json!({"cluster_name": "c", "endpoints": [
        {"priority": 1, "load_balancing_weight": 3, "locality": {"region": "r", "zone": "z"}, "lb_endpoints": [
            {"health_status": "DRAINING", "load_balancing_weight": 2, "metadata": {"filter_metadata": {"istio": {"workload": "reviews-v1;default"}}},
             "endpoint": {"hostname": "h", "address": {"socket_address": {"address": "::1", "port_value": 9080}}}},
        ]},
    ]});
    let set = compile_endpoints(&bytes(ENDPOINTS, &json)).unwrap().value;
    let locality = &set.localities[0];
    assert_eq!(
        (locality.priority, locality.weight, &*locality.locality.zone),
        (1, Some(3), "z")
    );
    let endpoint = &locality.endpoints[0];
    assert_eq!((endpoint.weight, endpoint.health.is_healthy()), (2, false));
    assert_eq!(endpoint.address.to_string(), "[::1]:9080");
    assert_eq!(
        endpoint.metadata.as_ref().unwrap()["istio"]["workload"],
        "reviews-v1;default"
    );
    for (change, path, reason) in [
        (
            json!({"cluster_name": ""}),
            "cluster_name",
            "must not be empty",
        ),
        (
            json!({"endpoints": [{"priority": 129}]}),
            "endpoints[0].priority",
            "0 and 128",
        ),
        (
            json!({"policy": {"drop_overloads": [{"category": "x"}]}}),
            "policy.drop_overloads",
            "not supported yet",
        ),
        (
            json!({"endpoints": [{"lb_endpoints": [{}]}]}),
            "endpoints[0].lb_endpoints[0].endpoint",
            "is required",
        ),
    ] {
        expect_error(
            compile_endpoints(&bytes(ENDPOINTS, &with(json.clone(), change))),
            path,
            reason,
        );
    }
}
