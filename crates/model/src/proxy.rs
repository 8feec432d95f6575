//! A connected proxy, as its xDS node describes it.
//!
//! Node ids and metadata keys are Istio's; keys that start with `LATEEN_` are ours and only say
//! what a mesh on one machine has to say (which loopback port stands for what). A stock Envoy
//! sends them as well, since they stand in its bootstrap.

use std::borrow::Cow;
use std::collections::BTreeMap;

use lateen_api::mesh_config::ForwardClientCertDetails;
use serde_json::Value;
use thiserror::Error;

use crate::MeshSnapshot;
use crate::service::Locality;
use crate::settings::GatewayTopology;

/// What the node is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProxyKind {
    Sidecar,
    Gateway,
}

/// How traffic reaches the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Interception {
    /// Explicit listeners; HTTP clients use the sidecar as their proxy.
    None,
    /// Connections are redirected to the capture listeners 15001 and 15006.
    Redirect,
}

/// Who generates the proxy's configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Generator {
    Envoy,
    /// A gRPC library that is its own data plane (`GENERATOR: grpc`).
    Grpc,
}

/// A proxy as translation sees it. Equal values get equal configuration.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Proxy {
    pub kind: ProxyKind,
    pub generator: Generator,
    pub interception: Interception,
    /// Address of the workload.
    pub address: String,
    /// Name of the workload (of its WorkloadEntry).
    pub name: String,
    pub namespace: String,
    /// The service account that its connection has proved.
    pub account: Option<String>,
    pub labels: BTreeMap<String, String>,
    /// Where it says it runs; empty when it does not say.
    pub locality: Locality,
    /// DNS domain of the proxy, `default.svc.cluster.local`.
    pub dns_domain: String,
    /// Address listeners bind.
    pub bind: String,
    /// Its workload asks the proxy for addresses of names (`DNS_CAPTURE`).
    pub dns_capture: bool,
    /// Its workload, or a client of the gateway, speaks HTTP/1.0 (`HTTP10: "1"`).
    pub http_10: bool,
    /// Port of the outbound HTTP proxy listener, where there is one.
    pub http_proxy_port: Option<u16>,
    /// Inbound listener port to application port.
    pub inbound: BTreeMap<u16, u16>,
    /// `host:port` of a TCP service to the local port of its outbound listener.
    pub outbound: BTreeMap<String, u16>,
    /// It takes virtual hosts one by one (VHDS), not as parts of route tables only.
    pub virtual_hosts_by_name: bool,
    /// What stands before it, where its own configuration (`PROXY_CONFIG`) says so.
    pub topology: Option<GatewayTopology>,
    /// Istio's agent, or ours, runs beside it and has its certificate.
    pub has_agent: bool,
    /// It asks for the endpoints of its own services (`ENABLE_SELF_DISCOVERY`), which zone-aware
    /// balancing needs; those that have its values of these labels.
    pub self_discovery: Option<Vec<String>>,
}

/// By which its siblings are told from other versions, unless a proxy says otherwise (Istio).
const SIBLINGS: &str = "pod-template-hash";

/// Why a node was not understood.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum NodeError {
    #[error(
        "node id {0:?} is not TYPE~ADDRESS~NAME.NAMESPACE~DOMAIN, as in sidecar~10.0.0.1~reviews-v1.default~default.svc.cluster.local"
    )]
    Id(String),
    #[error("node type {0:?} is not known; use sidecar or router")]
    Kind(String),
    #[error("node metadata {key}: {reason}")]
    Metadata { key: &'static str, reason: String },
}

impl Proxy {
    /// Reads a node: its id (`TYPE~ADDRESS~NAME.NAMESPACE~DOMAIN`) and its metadata.
    pub fn from_node(id: &str, metadata: &Value) -> Result<Proxy, NodeError> {
        let parts: Vec<&str> = id.split('~').collect();
        let [kind, address, full_name, dns_domain] = parts[..] else {
            return Err(NodeError::Id(id.to_string()));
        };
        let kind = match kind {
            "sidecar" => ProxyKind::Sidecar,
            "router" => ProxyKind::Gateway,
            other => return Err(NodeError::Kind(other.to_string())),
        };
        let (name, namespace) = match full_name.rsplit_once('.') {
            Some((name, namespace)) if !name.is_empty() && !namespace.is_empty() => {
                (name, namespace)
            }
            _ => return Err(NodeError::Id(id.to_string())),
        };
        let namespace = text(metadata, "NAMESPACE").unwrap_or(namespace).to_string();
        Ok(Proxy {
            kind,
            generator: match text(metadata, "GENERATOR") {
                Some("grpc") => Generator::Grpc,
                _ => Generator::Envoy,
            },
            interception: match text(metadata, "INTERCEPTION_MODE") {
                Some("NONE") => Interception::None,
                _ => Interception::Redirect,
            },
            address: address.to_string(),
            name: name.to_string(),
            labels: labels(metadata)?,
            account: None,
            locality: Locality::default(),
            dns_domain: if dns_domain.is_empty() {
                format!("{namespace}.svc.cluster.local")
            } else {
                dns_domain.to_string()
            },
            bind: text(metadata, "LATEEN_BIND")
                .unwrap_or("0.0.0.0")
                .to_string(),
            dns_capture: is_true(metadata, "DNS_CAPTURE"),
            http_10: text(metadata, "HTTP10") == Some("1"),
            http_proxy_port: match metadata.get("HTTP_PROXY_PORT") {
                None | Some(Value::Null) => None,
                Some(value) => Some(port("HTTP_PROXY_PORT", value)?),
            },
            inbound: inbound_ports(metadata)?,
            outbound: outbound_ports(metadata)?,
            virtual_hosts_by_name: false,
            topology: topology(metadata),
            has_agent: text(metadata, "ISTIO_VERSION").is_some(),
            self_discovery: is_true(metadata, "ENABLE_SELF_DISCOVERY").then(|| siblings(metadata)),
            namespace,
        })
    }
}

impl MeshSnapshot {
    /// A proxy with the labels of its workload: what the workload's entry says wins over what the proxy
    /// says of itself (Istio, `Proxy.SetWorkloadLabels`), and rules select by both.
    pub fn labelled<'p>(&self, proxy: &'p Proxy) -> Cow<'p, Proxy> {
        let Some(workload) = self.workload_of(proxy) else {
            return Cow::Borrowed(proxy);
        };
        let known = |(name, value): (&String, &String)| proxy.labels.get(name) == Some(value);
        if workload.labels.iter().all(known) {
            return Cow::Borrowed(proxy);
        }
        let mut labelled = proxy.clone();
        labelled.labels.extend(workload.labels.clone());
        Cow::Owned(labelled)
    }
}

/// `gatewayTopology` of the proxy's own configuration, which Istio's agent makes of the annotation
/// `proxy.istio.io/config` and sends as JSON.
fn topology(metadata: &Value) -> Option<GatewayTopology> {
    use lateen_api::Choice as _;
    let config = metadata.get("PROXY_CONFIG")?;
    let parsed: Value;
    let config = match config.as_str() {
        Some(text) => {
            parsed = serde_json::from_str(text).ok()?;
            &parsed
        }
        None => config,
    };
    let topology = config.get("gatewayTopology")?;
    let details = text(topology, "forwardClientCertDetails");
    Some(GatewayTopology {
        trusted_proxies: topology
            .get("numTrustedProxies")
            .and_then(Value::as_f64)
            .map_or(0, |number| number as u32),
        client_certificates: details.and_then(ForwardClientCertDetails::from_name),
        proxy_protocol: topology.get("proxyProtocol").is_some_and(|v| !v.is_null()),
    })
}

/// `SELF_DISCOVERY_GROUPING_LABEL_NAMES`: names of labels with commas between.
fn siblings(metadata: &Value) -> Vec<String> {
    let names = text(metadata, "SELF_DISCOVERY_GROUPING_LABEL_NAMES");
    let names = names.filter(|names| !names.trim().is_empty());
    let names = names.unwrap_or(SIBLINGS).split(',').map(str::trim);
    names
        .filter(|name| !name.is_empty())
        .map(str::to_string)
        .collect()
}

fn text<'a>(metadata: &'a Value, key: &str) -> Option<&'a str> {
    metadata.get(key).and_then(Value::as_str)
}

/// A switch, given as text (as Istio's agent sends it) or as a boolean.
fn is_true(metadata: &Value, key: &str) -> bool {
    match metadata.get(key) {
        Some(Value::Bool(value)) => *value,
        Some(Value::String(text)) => text.eq_ignore_ascii_case("true") || text == "1",
        _ => false,
    }
}

/// A port given as a number, a float (protobuf Struct knows no integers) or text.
fn port(key: &'static str, value: &Value) -> Result<u16, NodeError> {
    let number = match value {
        Value::Number(n) => n.as_f64().filter(|f| f.fract() == 0.0).map(|f| f as i64),
        Value::String(s) => s.parse().ok(),
        _ => None,
    };
    number
        .and_then(|n| u16::try_from(n).ok())
        .filter(|n| *n != 0)
        .ok_or_else(|| NodeError::Metadata {
            key,
            reason: format!("{value} is not a port (1 to 65535)"),
        })
}

fn labels(metadata: &Value) -> Result<BTreeMap<String, String>, NodeError> {
    let mut labels = BTreeMap::new();
    for (key, value) in object("LABELS", metadata)? {
        let Some(value) = value.as_str() else {
            return Err(NodeError::Metadata {
                key: "LABELS",
                reason: format!("the value of {key} is not text"),
            });
        };
        labels.insert(key.clone(), value.to_string());
    }
    Ok(labels)
}

fn inbound_ports(metadata: &Value) -> Result<BTreeMap<u16, u16>, NodeError> {
    const KEY: &str = "LATEEN_INBOUND";
    object(KEY, metadata)?
        .map(|(listener, app)| {
            Ok((
                port(KEY, &Value::String(listener.clone()))?,
                port(KEY, app)?,
            ))
        })
        .collect()
}

fn outbound_ports(metadata: &Value) -> Result<BTreeMap<String, u16>, NodeError> {
    const KEY: &str = "LATEEN_OUTBOUND";
    object(KEY, metadata)?
        .map(|(service, local)| Ok((service.to_ascii_lowercase(), port(KEY, local)?)))
        .collect()
}

fn object<'a>(
    key: &'static str,
    metadata: &'a Value,
) -> Result<impl Iterator<Item = (&'a String, &'a Value)>, NodeError> {
    match metadata.get(key) {
        None | Some(Value::Null) => Ok(None.into_iter().flatten()),
        Some(Value::Object(map)) => Ok(Some(map.iter()).into_iter().flatten()),
        Some(other) => Err(NodeError::Metadata {
            key,
            reason: format!("{other} is not an object"),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_node_of_a_mesh_on_one_machine_is_read() {
        let metadata = json!({
            "NAMESPACE": "default", "LABELS": {"app": "reviews", "version": "v1"},
            "INTERCEPTION_MODE": "NONE", "HTTP_PROXY_PORT": "15101", "LATEEN_BIND": "127.0.0.1",
            "LATEEN_INBOUND": {"15102": 15103.0}, "LATEEN_OUTBOUND": {"MySQL.default.svc.cluster.local:3306": "15104"},
        });
        let proxy = Proxy::from_node(
            "sidecar~127.0.0.1~reviews-v1.default~default.svc.cluster.local",
            &metadata,
        )
        .unwrap();
        assert_eq!(
            (proxy.name.as_str(), proxy.namespace.as_str()),
            ("reviews-v1", "default")
        );
        assert_eq!(proxy.interception, Interception::None);
        assert_eq!(proxy.http_proxy_port, Some(15101));
        assert_eq!(proxy.inbound, BTreeMap::from([(15102, 15103)]));
        assert_eq!(
            proxy.outbound["mysql.default.svc.cluster.local:3306"],
            15104
        );
        assert_eq!(proxy.labels["version"], "v1");
        assert_eq!(proxy.self_discovery, None);
    }

    #[test]
    fn a_node_that_asks_for_its_own_services_is_read() {
        let read = |metadata| {
            let id = "sidecar~127.0.0.1~reviews-v1.default~default.svc.cluster.local";
            Proxy::from_node(id, &metadata).unwrap().self_discovery
        };
        assert_eq!(read(json!({"ENABLE_SELF_DISCOVERY": "false"})), None);
        let usual = Some(vec!["pod-template-hash".to_string()]);
        assert_eq!(read(json!({"ENABLE_SELF_DISCOVERY": "true"})), usual);
        let named = json!({
            "ENABLE_SELF_DISCOVERY": true, "SELF_DISCOVERY_GROUPING_LABEL_NAMES": "app, version",
        });
        assert_eq!(
            read(named),
            Some(vec!["app".to_string(), "version".to_string()])
        );
    }

    #[test]
    fn wrong_nodes_are_refused_with_the_reason() {
        let check = |id: &str, metadata: Value, expect: &str| {
            let error = Proxy::from_node(id, &metadata).unwrap_err().to_string();
            assert!(error.contains(expect), "{error}");
        };
        check("reviews", json!({}), "is not TYPE~ADDRESS");
        check("sidecar~1.1.1.1~x~d", json!({}), "is not TYPE~ADDRESS");
        check("tunnel~1.1.1.1~x.y~d", json!({}), "use sidecar or router");
        check(
            "sidecar~1.1.1.1~x.y~d",
            json!({"LATEEN_INBOUND": {"99999": 1}}),
            "not a port",
        );
        check(
            "sidecar~1.1.1.1~x.y~d",
            json!({"LABELS": {"a": 1}}),
            "the value of a is not text",
        );
        check(
            "sidecar~1.1.1.1~x.y~d",
            json!({"LABELS": []}),
            "is not an object",
        );
    }
}
