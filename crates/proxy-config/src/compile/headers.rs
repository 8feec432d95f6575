//! Header mutations of route tables, virtual hosts, routes and weighted clusters.

use super::scope::At;
use super::values::{header_name, header_value, known, required};
use crate::{
    AppendAction, ConfigError, HeaderMutation, HeaderMutations, HeaderOps, HeaderTemplate,
};
use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3 as core;
use lateen_telemetry::format::Format;

/// What one message says about headers.
pub(crate) struct HeaderFields {
    pub request_headers_to_add: Vec<core::HeaderValueOption>,
    pub request_headers_to_remove: Vec<String>,
    pub response_headers_to_add: Vec<core::HeaderValueOption>,
    pub response_headers_to_remove: Vec<String>,
}

pub(crate) fn header_ops(fields: HeaderFields, at: At<'_>) -> Result<HeaderOps, ConfigError> {
    let HeaderFields {
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
    } = fields;
    Ok(HeaderOps {
        request: HeaderMutations {
            add: additions(request_headers_to_add, "request_headers_to_add", at)?,
            remove: removals(request_headers_to_remove, "request_headers_to_remove", at)?,
        },
        response: HeaderMutations {
            add: additions(response_headers_to_add, "response_headers_to_add", at)?,
            remove: removals(response_headers_to_remove, "response_headers_to_remove", at)?,
        },
    })
}

fn removals(names: Vec<String>, field: &str, at: At<'_>) -> Result<Vec<Box<str>>, ConfigError> {
    let name = |(i, name): (usize, String)| modifiable(&name, at.item(field, i));
    names.into_iter().enumerate().map(name).collect()
}

fn additions(
    values: Vec<core::HeaderValueOption>,
    field: &str,
    at: At<'_>,
) -> Result<Vec<HeaderMutation>, ConfigError> {
    values
        .into_iter()
        .enumerate()
        .map(|(i, v)| addition(v, at.item(field, i)))
        .collect()
}

fn addition(value: core::HeaderValueOption, at: At<'_>) -> Result<HeaderMutation, ConfigError> {
    use core::header_value_option::HeaderAppendAction;
    let core::HeaderValueOption {
        header,
        append,
        append_action,
        keep_empty_value,
    } = value;
    let action = match known(append_action, at.field("append_action"))? {
        HeaderAppendAction::AppendIfExistsOrAdd => AppendAction::Append,
        HeaderAppendAction::AddIfAbsent => AppendAction::AddIfAbsent,
        HeaderAppendAction::OverwriteIfExistsOrAdd => AppendAction::Overwrite,
        HeaderAppendAction::OverwriteIfExists => AppendAction::OverwriteIfExists,
    };
    // The older `append` decides alone when it is given (base.proto).
    let action = match (append, action) {
        (None, action) => action,
        (Some(_), AppendAction::AddIfAbsent | AppendAction::OverwriteIfExists) => {
            return Err(at
                .field("append")
                .error("cannot be combined with append_action"));
        }
        (Some(append), _) if append.value => AppendAction::Append,
        (Some(_), _) => AppendAction::Overwrite,
    };
    let at = at.field("header");
    let core::HeaderValue {
        key,
        value,
        raw_value,
    } = required(header, at)?;
    let name = modifiable(&key, at.field("key"))?;
    let value = if raw_value.is_empty() {
        header_value(&value, at.field("value"))?;
        template(&value, at.field("value"))?
    } else {
        HeaderTemplate::Literal(raw_value.into())
    };
    Ok(HeaderMutation {
        name,
        value,
        action,
        keep_empty_value,
    })
}

/// A header that routes may change: not a pseudo header and not `host`, which have their own
/// rewrites (Envoy, `HeaderUtility::isModifiableHeader`).
fn modifiable(name: &str, at: At<'_>) -> Result<Box<str>, ConfigError> {
    let name = header_name(name, at)?;
    if name.starts_with(':') || &*name == "host" {
        return Err(at.error(format!(
            "'{name}' cannot be modified here; use host_rewrite_literal, prefix_rewrite or regex_rewrite"
        )));
    }
    Ok(name)
}

/// A header value that may contain `%OPERATOR%`s.
pub(crate) fn template(value: &str, at: At<'_>) -> Result<HeaderTemplate, ConfigError> {
    if !value.contains('%') {
        return Ok(HeaderTemplate::Literal(Bytes::copy_from_slice(
            value.as_bytes(),
        )));
    }
    let format = Format::text(value).map_err(|e| at.error(e))?;
    for what in format.without_effect() {
        at.notice(what);
    }
    Ok(match format.literal() {
        Some(literal) => HeaderTemplate::Literal(Bytes::copy_from_slice(literal.as_bytes())),
        None => HeaderTemplate::Format(Box::new(format)),
    })
}
