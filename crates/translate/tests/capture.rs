//! Listeners and routes of a sidecar whose traffic is redirected to it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests stop at what is not as expected"
)]

mod support;

use envoy_types::pb::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::listener::v3::{self as pb, Listener};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3 as tcp;
use lateen_model::{MeshSnapshot, Proxy};
use prost::Message;
use support::{clusters, listeners, routes, snapshot, tables, virtual_host};

fn sidecar() -> Proxy {
    let metadata = serde_json::json!({"LABELS": {"app": "reviews", "version": "v1"}});
    let id = "sidecar~127.0.0.1~reviews-v1.default~default.svc.cluster.local";
    Proxy::from_node(id, &metadata).unwrap()
}

fn service(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default, \
         creationTimestamp: '2024-01-01T00:00:00Z'}}\nspec: {{selector: {{app: {name}}}, {spec}}}\n---\n"
    )
}

fn entry(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}, namespace: default, \
         creationTimestamp: '2024-01-02T00:00:00Z'}}\nspec: {{hosts: [{name}.test], {spec}}}\n---\n"
    )
}

/// A line per filter chain: what it takes, and where that goes.
fn chains(listener: &Listener) -> String {
    let mut lines: Vec<String> = listener.filter_chains.iter().map(chain).collect();
    lines.extend(
        listener
            .default_filter_chain
            .iter()
            .map(|c| format!("else {}", chain(c))),
    );
    lines.join("\n")
}

fn chain(chain: &pb::FilterChain) -> String {
    let matches = chain.filter_chain_match.clone().unwrap_or_default();
    let mut words: Vec<String> = Vec::new();
    words.extend(
        matches
            .destination_port
            .map(|port| format!(":{}", port.value)),
    );
    let range = |r: &core::CidrRange| {
        format!(
            "{}/{}",
            r.address_prefix,
            r.prefix_len.unwrap_or_default().value
        )
    };
    words.extend(matches.prefix_ranges.iter().map(range));
    words.extend(
        matches
            .server_names
            .iter()
            .map(|name| format!("sni={name}")),
    );
    words.extend(matches.application_protocols.iter().cloned());
    let filter = chain.filters.last().unwrap();
    let Some(pb::filter::ConfigType::TypedConfig(any)) = &filter.config_type else {
        panic!("{filter:?}");
    };
    let to = match filter.name.as_str() {
        "envoy.filters.network.tcp_proxy" => {
            match tcp::TcpProxy::decode(any.value.as_slice())
                .unwrap()
                .cluster_specifier
            {
                Some(tcp::tcp_proxy::ClusterSpecifier::Cluster(name)) => name,
                other => format!("{other:?}"),
            }
        }
        _ => {
            let manager = hcm::HttpConnectionManager::decode(any.value.as_slice()).unwrap();
            match manager.route_specifier {
                Some(hcm::http_connection_manager::RouteSpecifier::Rds(rds)) => {
                    format!("routes {}", rds.route_config_name)
                }
                _ => "routes inline".to_string(),
            }
        }
    };
    words.push(format!("-> {to}"));
    words.join(" ")
}

fn listener(snapshot: &MeshSnapshot, name: &str) -> Listener {
    let all = listeners(snapshot, &sidecar());
    let names: Vec<String> = all.iter().map(|l| l.name.clone()).collect();
    let mut found = all.into_iter().filter(|l| l.name == name);
    found
        .next()
        .unwrap_or_else(|| panic!("{name} is not in {names:?}"))
}

fn check(documents: &str, name: &str, expected: &str) {
    let expected: Vec<&str> = expected
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .collect();
    let found = listener(&snapshot(documents), name);
    assert_eq!(chains(&found), expected.join("\n"), "{name}");
    assert_eq!(found.bind_to_port.map(|b| b.value), Some(false), "{name}");
}

const HTTP: &str = "http/1.1 h2c -> routes";
const PASS: &str = "else -> PassthroughCluster";

#[test]
fn each_kind_of_service_has_its_kind_of_listener() {
    let documents = service(
        "web",
        "clusterIP: 10.96.0.1, ports: [{name: http, port: 80}]",
    ) + &service(
        "db",
        "clusterIP: 10.96.0.2, ports: [{name: tcp, port: 5432}, {name: dns, port: 53, protocol: UDP}]",
    ) + &service(
        "any",
        "clusterIP: 10.96.0.3, ports: [{name: x, port: 7000}]",
    );
    let mut names: Vec<String> = listeners(&snapshot(&documents), &sidecar())
        .into_iter()
        .map(|l| l.name)
        .collect();
    names.sort();
    // Services of the test mesh without addresses are headless; only reviews has workloads.
    assert_eq!(
        names,
        [
            "0.0.0.0_80",
            "0.0.0.0_9080",
            "0.0.0.0_9090",
            "10.96.0.2_5432",
            "10.96.0.3_7000",
            "virtualInbound",
            "virtualOutbound"
        ]
    );
    check(&documents, "0.0.0.0_80", &format!("{HTTP} 80\n{PASS}"));
    check(
        &documents,
        "10.96.0.2_5432",
        "-> outbound|5432||db.default.svc.cluster.local",
    );
    let any = "any.default.svc.cluster.local";
    check(
        &documents,
        "10.96.0.3_7000",
        &format!("{HTTP} {any}:7000\nelse -> outbound|7000||{any}"),
    );
}

#[test]
fn services_that_share_a_listener_are_told_apart_where_that_is_possible() {
    let web = service(
        "web",
        "clusterIP: 10.96.0.1, ports: [{name: http, port: 443}]",
    );
    let ports = |protocol: &str| {
        format!("ports: [{{number: 443, name: a, protocol: {protocol}}}], resolution: NONE")
    };
    let secure = entry("secure", &ports("TLS"));
    let bytes = entry("bytes", &ports("TCP"));
    let range = entry(
        "range",
        &format!("addresses: [10.7.0.0/16], {}", ports("TCP")),
    );
    let single = entry(
        "single",
        &format!("addresses: [10.8.0.1/32], {}", ports("TCP")),
    );
    check(
        &(web.clone() + &secure + &range),
        "0.0.0.0_443",
        &format!(
            "{HTTP} 443
             10.7.0.0/16 -> outbound|443||range.test
             sni=secure.test -> outbound|443||secure.test
             {PASS}"
        ),
    );
    check(
        &(web.clone() + &bytes),
        "0.0.0.0_443",
        &format!("{HTTP} 443\nelse -> outbound|443||bytes.test"),
    );
    // The first of two that want everything has it.
    let other = entry("zbytes", &ports("TCP"));
    check(
        &(bytes + &other),
        "0.0.0.0_443",
        "-> outbound|443||bytes.test",
    );
    check(&single, "10.8.0.1_443", "-> outbound|443||single.test");
}

#[test]
fn nothing_is_looked_at_where_the_server_speaks_first() {
    let web = service(
        "web",
        "clusterIP: 10.96.0.1, ports: [{name: http, port: 3306}]",
    );
    let ports = "ports: [{number: 3306, name: a, protocol: MySQL}], resolution: NONE";
    let mysql = entry("mysql", ports);
    check(
        &(mysql.clone() + &web),
        "0.0.0.0_3306",
        &format!("{HTTP} 3306\n{PASS}"),
    );
    let older = mysql.replace("2024-01-02", "2023-01-02");
    check(
        &(older + &web),
        "0.0.0.0_3306",
        "-> outbound|3306||mysql.test",
    );
}

#[test]
fn headless_services_are_reached_at_their_workloads() {
    let entries = ["10.0.0.7", "10.0.0.8", "127.0.0.1"].map(|address| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n\
             metadata: {{name: w{}, namespace: default}}\n\
             spec: {{address: {address}, labels: {{app: db}}}}\n---\n",
            address.replace('.', "-")
        )
    });
    let documents = entries.concat()
        + &service(
            "db",
            "clusterIP: None, ports: [{name: tcp, port: 5432}, {name: http, port: 80}]",
        );
    let snapshot = snapshot(&documents);
    let names: Vec<String> = listeners(&snapshot, &sidecar())
        .into_iter()
        .map(|l| l.name)
        .filter(|name| name.ends_with("_5432"))
        .collect();
    // Its own address is reached past the proxy.
    assert_eq!(names, ["10.0.0.7_5432", "10.0.0.8_5432"]);
    let cluster = clusters(&snapshot, &sidecar())
        .into_iter()
        .find(|c| c.name == "outbound|80||db.default.svc.cluster.local")
        .unwrap();
    let kind = ClusterDiscoveryType::Type(DiscoveryType::OriginalDst as i32);
    assert_eq!(cluster.cluster_discovery_type, Some(kind));
    let all = tables(&snapshot, &sidecar());
    let table = all.iter().find(|table| table.name == "80").unwrap();
    let host = virtual_host(table, "*.db.default.svc.cluster.local");
    assert!(
        host.domains.iter().any(|domain| domain == "*.db"),
        "{host:?}"
    );
}

#[test]
fn hosts_nobody_knows_pass_or_are_refused() {
    let documents = service(
        "web",
        "clusterIP: 10.96.0.1, ports: [{name: http, port: 80}]",
    );
    let config = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\n\
                  data: {mesh: 'outboundTrafficPolicy: {mode: REGISTRY_ONLY}'}\n---\n";
    for (more, route, cluster) in [
        ("", "/* -> PassthroughCluster\n", "PassthroughCluster"),
        (config, "/* -> answer 502\n", "BlackHoleCluster"),
    ] {
        let snapshot = snapshot(&format!("{documents}{more}"));
        let all = tables(&snapshot, &sidecar());
        let table = all.iter().find(|table| table.name == "80").unwrap();
        assert!(table.ignore_port_in_host_matching);
        assert_eq!(routes(&virtual_host(table, "*")), route);
        let web = virtual_host(table, "10.96.0.1");
        assert_eq!(web.domains[..2], ["web.default.svc.cluster.local", "web"]);
        let outbound = listener(&snapshot, "virtualOutbound");
        assert_eq!(
            chains(&outbound),
            format!(":15001 -> BlackHoleCluster\n-> {cluster}")
        );
        assert_eq!(outbound.use_original_dst.map(|v| v.value), Some(true));
    }
}

#[test]
fn inbound_ports_are_served_as_they_are_declared() {
    let ports = "ports: [{name: http-own, port: 9080, targetPort: 8080}, {name: tcp, port: 9000}, {name: x, port: 9001}]";
    let documents = service("own", ports).replace("app: own", "app: reviews");
    let snapshot = snapshot(&documents);
    let inbound = listener(&snapshot, "virtualInbound");
    assert_eq!(
        chains(&inbound),
        ":15006 -> BlackHoleCluster\n\
         http/1.1 h2c -> routes inline\n\
         -> InboundPassthroughCluster\n\
         :8080 -> routes inline\n\
         :9000 -> inbound|9000||\n\
         :9001 http/1.1 h2c -> routes inline\n\
         :9001 -> inbound|9001||\n\
         :15102 -> routes inline"
    );
    let names: Vec<&str> = inbound
        .listener_filters
        .iter()
        .map(|f| f.name.as_str())
        .collect();
    assert_eq!(
        names,
        [
            "envoy.filters.listener.original_dst",
            "envoy.filters.listener.http_inspector"
        ]
    );
    // Waits for first bytes as long as they take (fact 42).
    assert_eq!(inbound.listener_filters_timeout.map(|t| t.seconds), Some(0));
    let made = clusters(&snapshot, &sidecar());
    for name in ["inbound|8080||", "InboundPassthroughCluster"] {
        let cluster = made.iter().find(|c| c.name == name).unwrap();
        let source = cluster
            .upstream_bind_config
            .clone()
            .unwrap()
            .source_address
            .unwrap();
        assert_eq!(source.address, "127.0.0.6", "{name}");
    }
}
