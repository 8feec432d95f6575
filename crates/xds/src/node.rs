//! Who is at the other end of a stream: Envoy's `Node` in plain values, and Istio's convention
//! for its id. Not what the node may see; that is the source's decision.

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{ListValue, Struct, Value as ProtoValue};
use serde_json::Value;

use crate::Protocol;

/// The client feature of those who take virtual hosts by name on their delta stream: our own, since
/// there is no common word for it.
pub const VIRTUAL_HOSTS_BY_NAME: &str = "lateen.virtual_hosts_by_name";

/// The node of a client, from its first request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Node {
    pub id: String,
    pub cluster: String,
    /// Always a JSON object.
    pub metadata: Value,
    pub region: String,
    pub zone: String,
    pub sub_zone: String,
    /// `envoy`, `gRPC Go`, `lateen`, ...
    pub user_agent: String,
    pub user_agent_version: String,
    /// What the client says it can do beside what its kind and version tell.
    pub client_features: Vec<String>,
    /// The id read by Istio's convention; `None` when it does not follow it.
    pub parsed: Option<NodeId>,
    /// The SPIFFE id that the connection has proved. It never comes out of the node itself, and
    /// is not sent.
    pub identity: Option<String>,
    /// The server's number of the stream that it speaks on, which is no other's. Not sent either.
    pub stream: u64,
    /// How it asks; known of the clients of a server only.
    pub protocol: Option<Protocol>,
}

/// `sidecar~10.0.0.1~reviews-v1.default~default.svc.cluster.local`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeId {
    pub kind: NodeKind,
    pub ip: String,
    pub name: String,
    pub namespace: String,
    pub domain: String,
}

/// Istio's node types (`pkg/model/proxy.go`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeKind {
    Sidecar,
    Router,
    Waypoint,
    Ztunnel,
}

impl NodeKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sidecar => "sidecar",
            Self::Router => "router",
            Self::Waypoint => "waypoint",
            Self::Ztunnel => "ztunnel",
        }
    }
}

impl NodeId {
    /// `None` when `id` is not `type~ip~name.namespace~domain`.
    pub fn parse(id: &str) -> Option<Self> {
        let mut parts = id.split('~');
        let (kind, ip, workload, domain) =
            (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        if parts.next().is_some() {
            return None;
        }
        let kind = match kind {
            "sidecar" => NodeKind::Sidecar,
            "router" => NodeKind::Router,
            "waypoint" => NodeKind::Waypoint,
            "ztunnel" => NodeKind::Ztunnel,
            _ => return None,
        };
        // A pod name may hold dots, a namespace never does.
        let (name, namespace) = workload.rsplit_once('.')?;
        Some(Self {
            kind,
            ip: ip.to_owned(),
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            domain: domain.to_owned(),
        })
    }
}

impl Node {
    pub fn from_proto(node: &core::Node) -> Self {
        let locality = node.locality.clone().unwrap_or_default();
        let version = match &node.user_agent_version_type {
            Some(core::node::UserAgentVersionType::UserAgentVersion(version)) => version.clone(),
            Some(core::node::UserAgentVersionType::UserAgentBuildVersion(build)) => build
                .version
                .as_ref()
                .map(|v| format!("{}.{}.{}", v.major_number, v.minor_number, v.patch))
                .unwrap_or_default(),
            None => String::new(),
        };
        Self {
            id: node.id.clone(),
            cluster: node.cluster.clone(),
            metadata: struct_to_json(node.metadata.as_ref()),
            region: locality.region,
            zone: locality.zone,
            sub_zone: locality.sub_zone,
            user_agent: node.user_agent_name.clone(),
            user_agent_version: version,
            client_features: node.client_features.clone(),
            parsed: NodeId::parse(&node.id),
            identity: None,
            protocol: None,
            stream: 0,
        }
    }

    /// The form a client sends. `parsed`, `identity`, `protocol` and `stream` are not looked at.
    pub fn to_proto(&self) -> core::Node {
        core::Node {
            id: self.id.clone(),
            cluster: self.cluster.clone(),
            metadata: match json_to_proto(&self.metadata).kind {
                Some(Kind::StructValue(fields)) => Some(fields),
                _ => None,
            },
            locality: Some(core::Locality {
                region: self.region.clone(),
                zone: self.zone.clone(),
                sub_zone: self.sub_zone.clone(),
            }),
            user_agent_name: self.user_agent.clone(),
            user_agent_version_type: Some(core::node::UserAgentVersionType::UserAgentVersion(
                self.user_agent_version.clone(),
            )),
            client_features: self.client_features.clone(),
            ..Default::default()
        }
    }

    /// `name.namespace`, as tables show a proxy; the whole id when it has another form.
    pub fn short_id(&self) -> String {
        match &self.parsed {
            Some(id) => format!("{}.{}", id.name, id.namespace),
            None => self.id.clone(),
        }
    }

    /// A string out of the metadata.
    pub fn metadata_str(&self, key: &str) -> Option<&str> {
        self.metadata.get(key)?.as_str()
    }
}

fn struct_to_json(fields: Option<&Struct>) -> Value {
    let mut keys: Vec<_> = fields
        .map(|s| s.fields.iter().collect())
        .unwrap_or_default();
    keys.sort_by_key(|(key, _)| key.as_str());
    Value::Object(
        keys.into_iter()
            .map(|(key, value)| (key.clone(), to_json(value)))
            .collect(),
    )
}

fn to_json(value: &ProtoValue) -> Value {
    match &value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::NumberValue(number)) => number_to_json(*number),
        Some(Kind::StringValue(text)) => Value::String(text.clone()),
        Some(Kind::BoolValue(flag)) => Value::Bool(*flag),
        Some(Kind::StructValue(fields)) => struct_to_json(Some(fields)),
        Some(Kind::ListValue(list)) => Value::Array(list.values.iter().map(to_json).collect()),
    }
}

/// Whole numbers as integers: JSON knows one kind of number, readers expect `9080`, not `9080.0`.
fn number_to_json(number: f64) -> Value {
    const EXACT: f64 = 9_007_199_254_740_992.0; // 2^53
    if number.fract() == 0.0 && number.abs() <= EXACT {
        return Value::from(number as i64);
    }
    serde_json::Number::from_f64(number).map_or(Value::Null, Value::Number)
}

fn json_to_proto(value: &Value) -> ProtoValue {
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(flag) => Kind::BoolValue(*flag),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Value::String(text) => Kind::StringValue(text.clone()),
        Value::Array(items) => Kind::ListValue(ListValue {
            values: items.iter().map(json_to_proto).collect(),
        }),
        Value::Object(fields) => Kind::StructValue(Struct {
            fields: fields
                .iter()
                .map(|(key, v)| (key.clone(), json_to_proto(v)))
                .collect(),
        }),
    };
    ProtoValue { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn istio_ids_are_read_and_others_are_not() {
        let check = |id: &str, expect: Option<(&str, &str, &str, &str, &str)>| {
            let parsed = NodeId::parse(id);
            let got = parsed
                .as_ref()
                .map(|n| (n.kind.as_str(), &*n.ip, &*n.name, &*n.namespace, &*n.domain));
            assert_eq!(got, expect, "{id}");
        };
        check(
            "sidecar~127.0.0.1~reviews-v1.default~default.svc.cluster.local",
            Some((
                "sidecar",
                "127.0.0.1",
                "reviews-v1",
                "default",
                "default.svc.cluster.local",
            )),
        );
        check(
            "router~::1~gw.x.istio-system~",
            Some(("router", "::1", "gw.x", "istio-system", "")),
        );
        check("sidecar~127.0.0.1~nodots~d", None);
        check("toaster~1~a.b~d", None);
        check("test-node", None);
        check("sidecar~1~a.b~d~e", None);
        check("", None);
    }

    #[test]
    fn metadata_survives_the_way_there_and_back() {
        let node = Node {
            id: "sidecar~127.0.0.1~a.b~c".into(),
            metadata: serde_json::json!({
                "LABELS": {"app": "reviews"}, "LIST": [1, 2.5, null, true], "PORT": 9080
            }),
            user_agent: "lateen".into(),
            user_agent_version: "0.1.0".into(),
            client_features: vec!["one".into()],
            parsed: NodeId::parse("sidecar~127.0.0.1~a.b~c"),
            ..Node::default()
        };
        assert_eq!(Node::from_proto(&node.to_proto()), node);
        assert_eq!(node.short_id(), "a.b");
    }
}
