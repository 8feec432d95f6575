//! The small values that many messages share: durations, wrappers, addresses, metadata, `Any`.

use super::scope::{At, reject, report};
use crate::{Address, CidrRange, ConfigError, HostPort, Metadata};
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::google::protobuf as wkt;
use prost::Message;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// A duration that is not negative.
pub(crate) fn duration(
    value: Option<wkt::Duration>,
    at: At<'_>,
) -> Result<Option<Duration>, ConfigError> {
    let Some(wkt::Duration { seconds, nanos }) = value else {
        return Ok(None);
    };
    let seconds =
        u64::try_from(seconds).map_err(|_| at.error("a duration must not be negative"))?;
    match u32::try_from(nanos) {
        Ok(nanos) if nanos < 1_000_000_000 => Ok(Some(Duration::new(seconds, nanos))),
        _ => Err(at.error("the nanoseconds of a duration must be between 0 and 999999999")),
    }
}

/// A time limit with a default; zero means no limit.
pub(crate) fn limit(
    value: Option<wkt::Duration>,
    default: Option<Duration>,
    at: At<'_>,
) -> Result<Option<Duration>, ConfigError> {
    Ok(match duration(value, at)? {
        None => default,
        Some(zero) if zero.is_zero() => None,
        some => some,
    })
}

/// A duration above zero.
pub(crate) fn positive(
    value: Option<wkt::Duration>,
    at: At<'_>,
) -> Result<Option<Duration>, ConfigError> {
    match duration(value, at)? {
        Some(zero) if zero.is_zero() => Err(at.error("must be above zero")),
        other => Ok(other),
    }
}

/// `UInt32Value` within bounds.
pub(crate) fn number(
    value: Option<wkt::UInt32Value>,
    range: std::ops::RangeInclusive<u32>,
    at: At<'_>,
) -> Result<Option<u32>, ConfigError> {
    match value.map(|v| v.value) {
        Some(n) if !range.contains(&n) => Err(at.error(format!(
            "{n} is not between {} and {}",
            range.start(),
            range.end()
        ))),
        other => Ok(other),
    }
}

/// `BoolValue`.
pub(crate) fn flag(value: Option<wkt::BoolValue>, default: bool) -> bool {
    value.map_or(default, |v| v.value)
}

/// An enum value the API defines.
pub(crate) fn known<E: TryFrom<i32>>(value: i32, at: At<'_>) -> Result<E, ConfigError> {
    E::try_from(value).map_err(|_| at.error(format!("{value} is not a value of this enum")))
}

/// A port between 0 and 65535.
pub(crate) fn port(value: u32, at: At<'_>) -> Result<u16, ConfigError> {
    u16::try_from(value).map_err(|_| at.error(format!("{value} is not a port (0 to 65535)")))
}

/// The short name of an `Any`'s type and its bytes.
pub(crate) fn any(message: &wkt::Any) -> (&str, &[u8]) {
    let name = message.type_url.rsplit('/').next().unwrap_or_default();
    (name, &message.value)
}

/// Decodes the bytes of a message.
pub(crate) fn decode<M: Message + Default>(bytes: &[u8], at: At<'_>) -> Result<M, ConfigError> {
    M::decode(bytes).map_err(|e| at.error(format!("cannot be decoded: {e}")))
}

/// A required message.
pub(crate) fn required<M>(value: Option<M>, at: At<'_>) -> Result<M, ConfigError> {
    value.ok_or_else(|| at.error("is required"))
}

/// A required, non-empty string.
pub(crate) fn non_empty(value: String, at: At<'_>) -> Result<String, ConfigError> {
    if value.is_empty() {
        Err(at.error("must not be empty"))
    } else {
        Ok(value)
    }
}

/// An address to listen on or connect to: an IP address or a Unix domain socket.
pub(crate) fn address(value: Option<core::Address>, at: At<'_>) -> Result<Address, ConfigError> {
    let core::Address { address } = required(value, at)?;
    match required(address, at)? {
        core::address::Address::SocketAddress(socket) => {
            let at = at.field("socket_address");
            let (host, port) = host_and_port(socket, at)?;
            let ip = ip(&host, at.field("address"))?;
            Ok(Address::Socket(SocketAddr::new(ip, port)))
        }
        core::address::Address::Pipe(core::Pipe { path, mode }) => {
            let at = at.field("pipe");
            report!(at, "the socket file gets the process's umask"; mode);
            Ok(Address::Pipe(non_empty(path, at.field("path"))?.into()))
        }
        core::address::Address::EnvoyInternalAddress(_) => {
            Err(at.field("envoy_internal_address").not_supported())
        }
    }
}

/// An address whose host may be a DNS name.
pub(crate) fn host_port(value: Option<core::Address>, at: At<'_>) -> Result<HostPort, ConfigError> {
    let core::Address { address } = required(value, at)?;
    match required(address, at)? {
        core::address::Address::SocketAddress(socket) => {
            let (host, port) = host_and_port(socket, at.field("socket_address"))?;
            Ok(HostPort {
                host: host.into(),
                port,
            })
        }
        _ => Err(at.error("must be a socket_address")),
    }
}

fn host_and_port(value: core::SocketAddress, at: At<'_>) -> Result<(String, u16), ConfigError> {
    let core::SocketAddress {
        protocol,
        address,
        resolver_name,
        ipv4_compat,
        network_namespace_filepath,
        port_specifier,
    } = value;
    if known::<core::socket_address::Protocol>(protocol, at.field("protocol"))?
        != core::socket_address::Protocol::Tcp
    {
        return Err(at.field("protocol").error("only TCP is supported"));
    }
    reject!(at; resolver_name, network_namespace_filepath);
    report!(at, "IPv4 addresses in IPv6 form are always taken for IPv4"; ipv4_compat);
    let port = match port_specifier {
        Some(core::socket_address::PortSpecifier::PortValue(value)) => {
            port(value, at.field("port_value"))?
        }
        Some(core::socket_address::PortSpecifier::NamedPort(_)) => {
            return Err(at.field("named_port").not_supported());
        }
        None => return Err(at.field("port_value").error("is required")),
    };
    Ok((non_empty(address, at.field("address"))?, port))
}

/// An IP address.
pub(crate) fn ip(text: &str, at: At<'_>) -> Result<IpAddr, ConfigError> {
    text.parse()
        .map_err(|_| at.error(format!("'{text}' is not an IP address")))
}

/// An IP prefix; host bits are cleared.
pub(crate) fn cidr(value: core::CidrRange, at: At<'_>) -> Result<CidrRange, ConfigError> {
    let core::CidrRange {
        address_prefix,
        prefix_len,
    } = value;
    let network = ip(&address_prefix, at.field("address_prefix"))?;
    let bits = if network.is_ipv4() { 32 } else { 128 };
    // Absent means 0 (address.proto).
    let prefix_len = number(prefix_len, 0..=bits, at.field("prefix_len"))?.unwrap_or(0);
    let network = match network {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(32 - prefix_len).unwrap_or(0);
            IpAddr::V4((u32::from(ip) & mask).into())
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(128 - prefix_len).unwrap_or(0);
            IpAddr::V6((u128::from(ip) & mask).into())
        }
    };
    Ok(CidrRange {
        network,
        prefix_len: u8::try_from(prefix_len).unwrap_or(u8::MAX),
    })
}

/// Free-form metadata. Typed metadata is for extensions this proxy has not got.
pub(crate) fn metadata(
    value: Option<core::Metadata>,
    at: At<'_>,
) -> Result<Option<Arc<Metadata>>, ConfigError> {
    let Some(core::Metadata {
        filter_metadata,
        typed_filter_metadata,
    }) = value
    else {
        return Ok(None);
    };
    report!(at, "typed metadata is not read"; typed_filter_metadata);
    // In order of names, so that equal messages give equal values.
    let mut namespaces: Vec<_> = filter_metadata.into_iter().collect();
    namespaces.sort_by(|a, b| a.0.cmp(&b.0));
    let mut metadata = Metadata::new();
    for (namespace, fields) in namespaces {
        metadata.insert(namespace, serde_json::Value::Object(structure(fields)));
    }
    Ok((!metadata.is_empty()).then(|| Arc::new(metadata)))
}

/// A protobuf `Struct` as JSON, its keys sorted.
pub(crate) fn structure(value: wkt::Struct) -> Metadata {
    let wkt::Struct { fields } = value;
    let mut fields: Vec<_> = fields.into_iter().collect();
    fields.sort_by(|a, b| a.0.cmp(&b.0));
    fields
        .into_iter()
        .map(|(key, value)| (key, json(value)))
        .collect()
}

fn json(value: wkt::Value) -> serde_json::Value {
    use serde_json::Value as Json;
    use wkt::value::Kind;
    let wkt::Value { kind } = value;
    match kind {
        None | Some(Kind::NullValue(_)) => Json::Null,
        Some(Kind::NumberValue(n)) if n.fract() == 0.0 && n.abs() < 9e15 => Json::from(n as i64),
        Some(Kind::NumberValue(n)) => {
            serde_json::Number::from_f64(n).map_or(Json::Null, Json::Number)
        }
        Some(Kind::StringValue(s)) => Json::String(s),
        Some(Kind::BoolValue(b)) => Json::Bool(b),
        Some(Kind::StructValue(s)) => Json::Object(structure(s)),
        Some(Kind::ListValue(wkt::ListValue { values })) => {
            Json::Array(values.into_iter().map(json).collect())
        }
    }
}

/// A header name in lower case (RFC 9110 section 5.1: a token).
pub(crate) fn header_name(name: &str, at: At<'_>) -> Result<Box<str>, ConfigError> {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if name.is_empty() {
        return Err(at.error("must not be empty"));
    }
    if !name.trim_start_matches(':').bytes().all(token) || name == ":" {
        return Err(at.error(format!("'{name}' is not a header name")));
    }
    Ok(name.to_ascii_lowercase().into())
}

/// A header value: no line feed, carriage return or NUL.
pub(crate) fn header_value(value: &str, at: At<'_>) -> Result<(), ConfigError> {
    if value.bytes().any(|b| matches!(b, b'\n' | b'\r' | 0)) {
        return Err(at.error("must not contain line feed, carriage return or NUL"));
    }
    Ok(())
}
