//! Mutual TLS of clusters, endpoints and inbound listeners, and what a change of it touches.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests stop at what is not as expected"
)]

use std::collections::BTreeSet;

mod support;

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::core::v3::{TransportSocket, transport_socket::ConfigType};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
use lateen_model::{ObjectChange, Proxy};
use lateen_translate::type_url;
use prost::Message;
use support::*;

/// A service whose two workloads have sidecars.
const CART: &str = "
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {selector: {app: cart}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: cart-v1, namespace: shop}
spec: {address: 10.0.0.1, serviceAccount: cart, labels: {app: cart, security.istio.io/tlsMode: istio}}
---
";

const NAME: &str = "outbound|80||cart.shop.svc.cluster.local";

fn client() -> Proxy {
    let mut proxy = sidecar();
    let label = "security.istio.io/tlsMode".to_string();
    proxy.labels.insert(label, "istio".to_string());
    proxy
}

fn cart(more: &str, proxy: &Proxy) -> Cluster {
    let snapshot = snapshot(&format!("{CART}{more}"));
    let made = one(&snapshot, proxy, type_url::CLUSTER, NAME).unwrap();
    Cluster::decode(made.bytes.as_slice()).unwrap()
}

fn context(socket: &TransportSocket) -> tls::UpstreamTlsContext {
    let Some(ConfigType::TypedConfig(config)) = &socket.config_type else {
        panic!("{socket:?}");
    };
    tls::UpstreamTlsContext::decode(config.value.as_slice()).unwrap()
}

#[test]
fn endpoints_that_take_mutual_tls_have_a_transport_of_their_own() {
    let made = cart("", &client());
    let names: Vec<_> = made
        .transport_socket_matches
        .iter()
        .map(|m| &*m.name)
        .collect();
    assert_eq!(names, ["tlsMode-istio", "tlsMode-disabled"]);
    let socket = made.transport_socket_matches[0].transport_socket.as_ref();
    let context = context(socket.unwrap());
    assert_eq!(context.sni, "outbound_.80_._.cart.shop.svc.cluster.local");
    let common = context.common_tls_context.unwrap();
    assert_eq!(
        common.alpn_protocols,
        ["istio-http/1.1", "istio", "http/1.1"]
    );
    assert_eq!(common.tls_certificate_sds_secret_configs[0].name, "default");
    let text = format!("{:?}", common.validation_context_type);
    assert!(
        text.contains("spiffe://cluster.local/ns/shop/sa/cart"),
        "{text}"
    );
    assert!(text.contains("ROOTCA"), "{text}");
    // A client without identity speaks plainly, and so does everybody to what is outside.
    assert!(cart("", &sidecar()).transport_socket_matches.is_empty());
}

#[test]
fn endpoints_say_whether_they_take_mutual_tls_and_their_port_may_not() {
    let says = |more: &str| {
        let made = endpoints(&snapshot(&format!("{CART}{more}")), &client());
        let of_cart = made.iter().find(|one| one.cluster_name == NAME).unwrap();
        let endpoint = &of_cart.endpoints[0].lb_endpoints[0];
        let metadata = endpoint.metadata.as_ref().unwrap();
        assert!(metadata.filter_metadata.contains_key("istio"));
        metadata
            .filter_metadata
            .contains_key("envoy.transport_socket_match")
    };
    let peer = |mode: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: a, namespace: shop}}\n\
             spec: {{selector: {{matchLabels: {{app: cart}}}}, portLevelMtls: {{8080: {{mode: {mode}}}}}}}\n"
        )
    };
    assert!(says(""));
    assert!(says(&peer("STRICT")));
    assert!(!says(&peer("DISABLE")));
}

#[test]
fn equal_endpoints_are_equal_bytes() {
    let encoded = || {
        let snapshot = snapshot(CART);
        let made = one(&snapshot, &client(), type_url::ENDPOINT, NAME).unwrap();
        made.bytes.clone()
    };
    let first = encoded();
    assert!((0..32).all(|_| encoded() == first));
}

#[test]
fn a_rule_of_a_namespace_touches_its_own_clusters() {
    let peer = |namespace: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
             metadata: {{name: a, namespace: {namespace}}}\nspec: {{mtls: {{mode: DISABLE}}}}\n"
        )
    };
    let touched = |namespace: &str| {
        let before = snapshot(CART);
        let rule = objects(&peer(namespace)).pop().unwrap();
        let change = ObjectChange {
            before: None,
            after: Some(&rule),
        };
        let (now, changes) = before.updated(&[change], 2).unwrap();
        let affected = lateen_translate::affected(&now, &changes, |_| false).unwrap();
        // Each proxy adds those that accept connections to its own ports.
        assert_eq!(affected[type_url::LISTENER], Some(BTreeSet::new()));
        let own = lateen_translate::own_names(&now, &client(), type_url::LISTENER);
        assert!(own.unwrap().contains("127.0.0.1_15102"));
        assert!(!affected.contains_key(type_url::ROUTE));
        affected[type_url::CLUSTER].clone().unwrap()
    };
    let of_shop = touched("shop");
    assert!(of_shop.contains(NAME));
    assert!(
        of_shop
            .iter()
            .all(|name| name.ends_with(".shop.svc.cluster.local"))
    );
    assert!(touched("istio-system").len() > of_shop.len());
}
