//! Bootstrap files of proxies: Envoy's bootstrap in JSON, the only format there is. Stock Envoy
//! starts from the same file as our own proxy.
//!
//! Node ids and metadata keys are Istio's; keys that begin with `LATEEN_` say what a mesh on one
//! machine needs besides: which address listeners bind, and which local port stands for what.

use std::net::Ipv4Addr;

use serde_json::{Map, Value, json};

use crate::capture::Network;
use crate::identity::Place;
use crate::plan::{Gateway, Plan, Workload};

/// The name in the control plane's certificate, as Istio's has it.
const CONTROL_PLANE: &str = "istiod.istio-system.svc";
const LOOPBACK: &str = "127.0.0.1";
/// The proxy's own service, as Istio's bootstraps call it.
const LOCAL_CLUSTER: &str = "local_cluster";
/// Reported to the control plane as Istio's proxies report theirs.
const ISTIO_VERSION: &str = "1.30.0";

/// The bootstrap of a workload's sidecar.
pub fn sidecar(plan: &Plan, workload: &Workload, place: &Place) -> Value {
    let inbound: Map<String, Value> = workload
        .ports
        .iter()
        .map(|port| (port.inbound.to_string(), json!(port.app)))
        .collect();
    let outbound: Map<String, Value> = workload
        .tcp_outbound
        .iter()
        .map(|tcp| (tcp.host_and_port(), json!(tcp.local)))
        .collect();
    let mut own = json!({
        "LABELS": workload.labels,
        "SERVICE_ACCOUNT": workload.service_account,
    });
    own["ANNOTATIONS"] = json!(workload.annotations);
    if workload.locality.is_some() {
        own["ENABLE_SELF_DISCOVERY"] = json!("true");
    }
    let how = match plan.network {
        None => json!({
            "INTERCEPTION_MODE": "NONE",
            "LATEEN_BIND": LOOPBACK,
            "HTTP_PROXY_PORT": workload.outbound.to_string(),
            "LATEEN_INBOUND": inbound,
            "LATEEN_OUTBOUND": outbound,
        }),
        Some(_) => json!({
            "INTERCEPTION_MODE": "REDIRECT",
            "INSTANCE_IPS": workload.address,
            "DNS_CAPTURE": "true",
        }),
    };
    if let (Some(own), Value::Object(how)) = (own.as_object_mut(), how) {
        own.extend(how);
    }
    let proxy = Proxy {
        kind: "sidecar",
        name: &workload.name,
        namespace: &workload.namespace,
        cluster: format!("{}.{}", workload.service, workload.namespace),
        admin: (workload.address, workload.admin),
        place,
    };
    let mut bootstrap = proxy.bootstrap(plan, own);
    if let Some(locality) = &workload.locality {
        settle(&mut bootstrap, locality);
    }
    bootstrap
}

/// Says where the proxy runs, and has it ask for the endpoints of its own service: what zone-aware
/// balancing needs to know. Only Envoy's bootstrap can say either.
fn settle(bootstrap: &mut Value, locality: &str) {
    let mut parts = locality.splitn(3, '/');
    let mut part = || parts.next().unwrap_or_default();
    bootstrap["node"]["locality"] = json!({
        "region": part(), "zone": part(), "sub_zone": part(),
    });
    bootstrap["cluster_manager"] = json!({"local_cluster_name": LOCAL_CLUSTER});
    let cluster = json!({
        "name": LOCAL_CLUSTER,
        "type": "EDS",
        "connect_timeout": "1s",
        "eds_cluster_config": {"eds_config": {"ads": {}, "resource_api_version": "V3"}},
    });
    if let Some(clusters) = bootstrap["static_resources"]["clusters"].as_array_mut() {
        clusters.push(cluster);
    }
}

/// The bootstrap of a gateway.
pub fn gateway(plan: &Plan, gateway: &Gateway, place: &Place) -> Value {
    let own = json!({
        "LABELS": super::objects::gateway_labels(gateway),
        "SERVICE_ACCOUNT": gateway.service_account(),
        "INTERCEPTION_MODE": "NONE",
        "LATEEN_BIND": LOOPBACK,
    });
    let proxy = Proxy {
        kind: "router",
        name: &gateway.name,
        namespace: &gateway.namespace,
        cluster: format!("{}.{}", gateway.name, gateway.namespace),
        admin: (Ipv4Addr::LOCALHOST, gateway.admin),
        place,
    };
    proxy.bootstrap(plan, own)
}

struct Proxy<'a> {
    kind: &'static str,
    name: &'a str,
    namespace: &'a str,
    cluster: String,
    /// Of the admin interface; the proxy's own address.
    admin: (Ipv4Addr, u16),
    /// Where its agent answers, if it has none built in.
    place: &'a Place,
}

impl Proxy<'_> {
    /// The control plane, and the agent that it takes a certificate from.
    fn clusters(&self, plan: &Plan, control: Ipv4Addr) -> [Value; 2] {
        let mut xds = grpc_cluster("xds-grpc", socket_address(control, plan.control.secure));
        xds["transport_socket"] = mutual_tls();
        let agent = json!({"pipe": {"path": self.place.socket()}});
        [xds, grpc_cluster("sds-grpc", agent)]
    }

    fn bootstrap(&self, plan: &Plan, own_metadata: Value) -> Value {
        let Self {
            kind,
            name,
            namespace,
            ..
        } = self;
        let (address, admin) = self.admin;
        // Namespaces reach the control plane at this machine's address, not at its loopback.
        let xds = plan.network.map_or(Ipv4Addr::LOCALHOST, Network::host);
        let mut metadata = json!({
            "NAME": name,
            "NAMESPACE": namespace,
            "WORKLOAD_NAME": name,
            "CLUSTER_ID": "Kubernetes",
            "ISTIO_VERSION": ISTIO_VERSION,
            "LATEEN_ADMIN": format!("{address}:{admin}"),
        });
        if let (Some(metadata), Value::Object(own)) = (metadata.as_object_mut(), own_metadata) {
            metadata.extend(own);
        }
        let ads = json!({"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"});
        json!({
            "node": {
                "id": format!("{kind}~{address}~{name}.{namespace}~{namespace}.svc.cluster.local"),
                "cluster": self.cluster,
                "metadata": metadata,
            },
            "admin": {"address": socket_address(address, admin)},
            "dynamic_resources": {
                "ads_config": {
                    "api_type": "DELTA_GRPC",
                    "transport_api_version": "V3",
                    "set_node_on_first_message_only": true,
                    "grpc_services": [{"envoy_grpc": {"cluster_name": "xds-grpc"}}],
                },
                "cds_config": ads,
                "lds_config": ads,
            },
            "static_resources": {"clusters": self.clusters(plan, xds)},
        })
    }
}

/// A gRPC server of one address, over HTTP/2 without TLS.
fn grpc_cluster(name: &str, address: Value) -> Value {
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/\
                    envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {
                    "connection_keepalive": {"interval": "30s", "timeout": "10s"},
                }},
            },
        },
    })
}

/// TLS with the proxy's own certificate, to the mesh's control plane and nobody else.
fn mutual_tls() -> Value {
    let secret = |name: &str| {
        json!({
            "name": name,
            "sds_config": {
                "resource_api_version": "V3",
                "initial_fetch_timeout": "0s",
                "api_config_source": {
                    "api_type": "GRPC",
                    "transport_api_version": "V3",
                    "set_node_on_first_message_only": true,
                    "grpc_services": [{"envoy_grpc": {"cluster_name": "sds-grpc"}}],
                },
            },
        })
    };
    json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": "type.googleapis.com/\
                envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "sni": CONTROL_PLANE,
            "common_tls_context": {
                "alpn_protocols": ["h2"],
                // For a control plane of any compliance policy.
                "tls_params": {
                "tls_maximum_protocol_version": "TLSv1_3",
                "ecdh_curves": ["X25519MLKEM768", "X25519", "P-256"],
            },
                "tls_certificate_sds_secret_configs": [secret("default")],
                "combined_validation_context": {
                    "default_validation_context": {"match_typed_subject_alt_names": [
                        {"san_type": "DNS", "matcher": {"exact": CONTROL_PLANE}},
                    ]},
                    "validation_context_sds_secret_config": secret("ROOTCA"),
                },
            },
        },
    })
}

fn socket_address(address: Ipv4Addr, port: u16) -> Value {
    json!({"socket_address": {"address": address, "port_value": port}})
}
