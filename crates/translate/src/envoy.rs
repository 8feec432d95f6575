//! Short names for the Envoy messages that translation writes, and the small builders they need.
//!
//! Only shapes live here; what goes into them is decided by the generators.

pub use envoy_types::pb::envoy::config::accesslog::v3 as accesslog;
pub use envoy_types::pb::envoy::config::cluster::v3 as cluster;
pub use envoy_types::pb::envoy::config::common::matcher::v3 as match_predicate;
pub use envoy_types::pb::envoy::config::core::v3 as core;
pub use envoy_types::pb::envoy::config::endpoint::v3 as endpoint;
pub use envoy_types::pb::envoy::config::listener::v3 as listener;
pub use envoy_types::pb::envoy::config::rbac::v3 as rbac;
pub use envoy_types::pb::envoy::config::route::v3 as route;
pub use envoy_types::pb::envoy::extensions::access_loggers::file::v3 as file_log;
pub use envoy_types::pb::envoy::extensions::clusters::dynamic_forward_proxy::v3 as by_name_cluster;
pub use envoy_types::pb::envoy::extensions::common::dynamic_forward_proxy::v3 as name_cache;
pub use envoy_types::pb::envoy::extensions::filters::common::fault::v3 as common_fault;
pub use envoy_types::pb::envoy::extensions::filters::common::set_filter_state::v3 as set_filter_state;
pub use envoy_types::pb::envoy::extensions::filters::http::cors::v3 as cors;
pub use envoy_types::pb::envoy::extensions::filters::http::dynamic_forward_proxy::v3 as by_name_filter;
pub use envoy_types::pb::envoy::extensions::filters::http::ext_authz::v3 as ext_authz;
pub use envoy_types::pb::envoy::extensions::filters::http::fault::v3 as fault;
pub use envoy_types::pb::envoy::extensions::filters::http::jwt_authn::v3 as jwt;
pub use envoy_types::pb::envoy::extensions::filters::http::rbac::v3 as http_rbac;
pub use envoy_types::pb::envoy::extensions::filters::http::router::v3 as router;
pub use envoy_types::pb::envoy::extensions::filters::http::set_filter_state::v3 as http_set_filter_state;
pub use envoy_types::pb::envoy::extensions::filters::listener::http_inspector::v3 as http_inspector;
pub use envoy_types::pb::envoy::extensions::filters::listener::original_dst::v3 as original_dst;
pub use envoy_types::pb::envoy::extensions::filters::network::ext_authz::v3 as network_ext_authz;
pub use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
pub use envoy_types::pb::envoy::extensions::filters::network::rbac::v3 as network_rbac;
pub use envoy_types::pb::envoy::extensions::filters::network::sni_dynamic_forward_proxy::v3 as by_server_name_filter;
pub use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3 as tcp;
pub use envoy_types::pb::envoy::extensions::path::r#match::uri_template::v3 as uri_template;
pub use envoy_types::pb::envoy::extensions::transport_sockets::proxy_protocol::v3 as proxy_protocol;
pub use envoy_types::pb::envoy::extensions::transport_sockets::raw_buffer::v3 as raw_buffer;
pub use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
pub use envoy_types::pb::envoy::extensions::upstreams::http::v3 as upstream_http;
pub use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;
pub use envoy_types::pb::envoy::r#type::v3 as percent;
pub use envoy_types::pb::google::protobuf::{Any, BoolValue, Duration, Struct, UInt32Value, Value};

use std::collections::HashMap;

use prost::{Message, Name};

/// Packs a message with its type.
pub fn any<M: Message + Name>(message: &M) -> Any {
    Any {
        type_url: M::type_url(),
        value: message.encode_to_vec(),
    }
}

/// A protobuf duration.
pub fn duration(value: std::time::Duration) -> Duration {
    Duration {
        seconds: i64::try_from(value.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(value.subsec_nanos()).unwrap_or(0),
    }
}

/// A wrapped number.
pub fn u32_value(value: u32) -> Option<UInt32Value> {
    Some(UInt32Value { value })
}

/// A wrapped boolean.
pub fn bool_value(value: bool) -> Option<BoolValue> {
    Some(BoolValue { value })
}

/// A share of a hundred.
pub fn percent(value: f64) -> envoy_types::pb::envoy::r#type::v3::Percent {
    envoy_types::pb::envoy::r#type::v3::Percent { value }
}

/// A TCP socket address.
pub fn socket_address(address: &str, port: u32) -> core::Address {
    core::Address {
        address: Some(core::address::Address::SocketAddress(core::SocketAddress {
            address: address.to_string(),
            port_specifier: Some(core::socket_address::PortSpecifier::PortValue(port)),
            ..Default::default()
        })),
    }
}

/// How the path of a Unix domain socket begins where an address may stand.
pub const UNIX: &str = "unix://";

/// An address: that of a socket, or `unix://` and a path.
pub fn address(address: &str, port: u32) -> core::Address {
    match address.strip_prefix(UNIX) {
        None => socket_address(address, port),
        Some(path) => core::Address {
            address: Some(core::address::Address::Pipe(core::Pipe {
                path: path.to_string(),
                ..Default::default()
            })),
        },
    }
}

/// "Ask on the aggregated stream."
pub fn ads() -> core::ConfigSource {
    core::ConfigSource {
        config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::Ads(
            core::AggregatedConfigSource {},
        )),
        // Wait for the resource rather than start without it: a listener without its routes
        // would answer 404 (Istio sets the same).
        initial_fetch_timeout: Some(Duration {
            seconds: 0,
            nanos: 0,
        }),
        resource_api_version: core::ApiVersion::V3 as i32,
        ..Default::default()
    }
}

/// A filter chain entry with its typed configuration.
pub fn network_filter<M: Message + Name>(name: &str, config: &M) -> listener::Filter {
    network_filter_of(name, any(config))
}

/// The same with a configuration that is packed already.
pub fn network_filter_of(name: &str, config: Any) -> listener::Filter {
    listener::Filter {
        name: name.to_string(),
        config_type: Some(listener::filter::ConfigType::TypedConfig(config)),
    }
}

/// A listener filter with its typed configuration.
pub fn listener_filter<M: Message + Name>(name: &str, config: &M) -> listener::ListenerFilter {
    listener::ListenerFilter {
        name: name.to_string(),
        config_type: Some(listener::listener_filter::ConfigType::TypedConfig(any(
            config,
        ))),
        ..Default::default()
    }
}

/// An HTTP filter with its typed configuration.
pub fn http_filter<M: Message + Name>(name: &str, config: &M) -> hcm::HttpFilter {
    http_filter_of(name, any(config))
}

/// The same with a configuration that is packed already.
pub fn http_filter_of(name: &str, config: Any) -> hcm::HttpFilter {
    hcm::HttpFilter {
        name: name.to_string(),
        config_type: Some(hcm::http_filter::ConfigType::TypedConfig(config)),
        ..Default::default()
    }
}

/// A regular expression, matched against the whole value (fact 3).
pub fn regex(pattern: &str) -> matcher::RegexMatcher {
    matcher::RegexMatcher {
        regex: pattern.to_string(),
        ..Default::default()
    }
}

/// A string match of one kind.
pub fn string_matcher(pattern: matcher::string_matcher::MatchPattern) -> matcher::StringMatcher {
    matcher::StringMatcher {
        match_pattern: Some(pattern),
        ignore_case: false,
    }
}

/// Metadata `filter_metadata.NAMESPACE = {key: text}`.
pub fn metadata(namespace: &str, fields: &[(&str, String)]) -> core::Metadata {
    let fields = fields
        .iter()
        .map(|(key, value)| (key.to_string(), text(value)))
        .collect();
    core::Metadata {
        filter_metadata: HashMap::from([(namespace.to_string(), Struct { fields })]),
        ..Default::default()
    }
}

fn text(value: &str) -> Value {
    Value {
        kind: Some(envoy_types::pb::google::protobuf::value::Kind::StringValue(
            value.to_string(),
        )),
    }
}

/// Puts metadata behind an encoded message that was encoded without, in the order of its
/// namespaces: maps are encoded in any order, and equal resources must be equal bytes. Several
/// occurrences of a message are one, by the rules of protobuf.
pub fn append_metadata(field: u32, metadata: Option<core::Metadata>, bytes: &mut Vec<u8>) {
    let mut namespaces: Vec<_> = metadata
        .into_iter()
        .flat_map(|all| all.filter_metadata)
        .collect();
    namespaces.sort_by(|a, b| a.0.cmp(&b.0));
    for one in namespaces {
        let part = core::Metadata {
            filter_metadata: HashMap::from([one]),
            ..Default::default()
        };
        crate::virtual_hosts::append(field, &part.encode_to_vec(), bytes);
    }
}

/// A cluster, equal bytes for equal clusters.
pub fn encoded_cluster(mut made: cluster::Cluster) -> Vec<u8> {
    const METADATA: u32 = 25;
    let metadata = made.metadata.take();
    let mut bytes = made.encode_to_vec();
    append_metadata(METADATA, metadata, &mut bytes);
    bytes
}

/// Endpoints, equal bytes for equal endpoints.
pub fn encoded_endpoints(mut made: endpoint::ClusterLoadAssignment) -> Vec<u8> {
    const ENDPOINTS: u32 = 2;
    const LB_ENDPOINTS: u32 = 2;
    const METADATA: u32 = 3;
    let localities = std::mem::take(&mut made.endpoints);
    let mut bytes = made.encode_to_vec();
    for mut locality in localities {
        let endpoints = std::mem::take(&mut locality.lb_endpoints);
        let mut group = locality.encode_to_vec();
        for mut one in endpoints {
            let metadata = one.metadata.take();
            let mut encoded = one.encode_to_vec();
            append_metadata(METADATA, metadata, &mut encoded);
            crate::virtual_hosts::append(LB_ENDPOINTS, &encoded, &mut group);
        }
        crate::virtual_hosts::append(ENDPOINTS, &group, &mut bytes);
    }
    bytes
}

/// A `google.protobuf.Struct`, encoded in the order of its keys.
pub fn encoded_struct(object: &serde_json::Map<String, serde_json::Value>) -> Vec<u8> {
    const FIELDS: u32 = 1;
    let mut sorted: Vec<_> = object.iter().collect();
    sorted.sort_by_key(|(key, _)| *key);
    let mut bytes = Vec::new();
    for (key, value) in sorted {
        let mut entry = Vec::new();
        crate::virtual_hosts::append(1, key.as_bytes(), &mut entry);
        crate::virtual_hosts::append(2, &encoded_value(value), &mut entry);
        crate::virtual_hosts::append(FIELDS, &entry, &mut bytes);
    }
    bytes
}

fn encoded_value(value: &serde_json::Value) -> Vec<u8> {
    use envoy_types::pb::google::protobuf::value::Kind;
    use serde_json::Value as Json;
    let mut bytes = Vec::new();
    let kind = match value {
        Json::Null => Kind::NullValue(0),
        Json::Bool(value) => Kind::BoolValue(*value),
        Json::Number(value) => Kind::NumberValue(value.as_f64().unwrap_or_default()),
        Json::String(value) => Kind::StringValue(value.clone()),
        Json::Object(object) => {
            crate::virtual_hosts::append(5, &encoded_struct(object), &mut bytes);
            return bytes;
        }
        Json::Array(items) => {
            let mut list = Vec::new();
            for item in items {
                crate::virtual_hosts::append(1, &encoded_value(item), &mut list);
            }
            crate::virtual_hosts::append(6, &list, &mut bytes);
            return bytes;
        }
    };
    Value { kind: Some(kind) }.encode_to_vec()
}
