//! What requests offer by ALPN, where it is not what the transport says.
//!
//! The way of stock Envoy: the filter `set_filter_state` takes over a text of the cluster's metadata
//! as `envoy.network.application_protocols`. This form is understood and no other. What is offered
//! is known when the cluster is, so nothing is left to do for a request.

use super::scope::{At, reject};
use crate::{ConfigError, Metadata, UpstreamTls, UpstreamTransport};
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::filters::common::set_filter_state::v3 as common;
use envoy_types::pb::envoy::extensions::filters::http::set_filter_state::v3 as pb;
use std::sync::Arc;

const OBJECT: &str = "envoy.network.application_protocols";
/// Where the cluster says it; a convention of who sends both.
const NAMESPACE: &str = "lateen.alpn";
const KEY: &str = "http";

/// Checks that the filter does what is understood.
pub(crate) fn set_filter_state(message: pb::Config, at: At<'_>) -> Result<(), ConfigError> {
    let pb::Config {
        on_request_headers,
        // Routes do not depend on it.
        clear_route_cache: _,
    } = message;
    for (i, value) in on_request_headers.into_iter().enumerate() {
        one(value, at.item("on_request_headers", i))?;
    }
    Ok(())
}

#[expect(
    deprecated,
    reason = "every field is looked at, those without effect too"
)]
fn one(message: common::FilterStateValue, at: At<'_>) -> Result<(), ConfigError> {
    use common::filter_state_value::{Key, Value};
    let common::FilterStateValue {
        factory_key,
        read_only: _,
        // There are no internal connections.
        shared_with_upstream: _,
        skip_if_empty,
        key,
        value,
    } = message;
    let Some(Key::ObjectKey(object)) = key else {
        return Err(at.field("object_key").error("is required"));
    };
    if object != OBJECT || !(factory_key.is_empty() || factory_key == OBJECT) {
        return Err(at.field("object_key").error(format!(
            "the state '{object}' is not supported, only '{OBJECT}' is"
        )));
    }
    let Some(Value::FormatString(format)) = value else {
        return Err(at.field("format_string").error("is required"));
    };
    let at = at.field("format_string");
    let core::SubstitutionFormatString {
        omit_empty_values: _,
        content_type: _,
        formatters,
        json_format_options: _,
        format,
    } = format;
    reject!(at; formatters);
    let wanted = format!("%CLUSTER_METADATA({NAMESPACE}:{KEY})%");
    if text(format).as_deref() != Some(&wanted) || !skip_if_empty {
        return Err(at.error(format!("only '{wanted}' with skip_if_empty is supported")));
    }
    Ok(())
}

#[expect(deprecated, reason = "an older form of the same")]
fn text(format: Option<core::substitution_format_string::Format>) -> Option<String> {
    use core::data_source::Specifier;
    use core::substitution_format_string::Format;
    match format? {
        Format::TextFormat(text) => Some(text),
        Format::TextFormatSource(core::DataSource {
            specifier: Some(Specifier::InlineString(text)),
            ..
        }) => Some(text),
        _ => None,
    }
}

/// Gives the transports of a cluster what its metadata says.
pub(crate) fn apply<'t>(
    metadata: Option<&Metadata>,
    transports: impl Iterator<Item = &'t mut UpstreamTransport>,
) {
    let said = metadata
        .and_then(|all| all.get(NAMESPACE)?.get(KEY)?.as_str())
        .unwrap_or_default();
    if said.is_empty() {
        return;
    }
    for transport in transports {
        if let Some(tls) = &transport.tls {
            transport.tls = Some(Arc::new(offering(tls, said)));
        }
    }
}

fn offering(tls: &UpstreamTls, said: &str) -> UpstreamTls {
    let mut key = tls.key.to_vec();
    key.extend_from_slice(said.as_bytes());
    let protocols = said.split(',').map(str::trim);
    UpstreamTls {
        key: key.into(),
        http_alpn: protocols
            .filter(|name| !name.is_empty() && name.len() <= 255)
            .map(Into::into)
            .collect(),
        ..tls.clone()
    }
}
