//! `Route` and its actions.

use super::filters;
use super::headers::{HeaderFields, header_ops};
use super::route_action::forward;
use super::route_match::route_matcher;
use super::route_table::{Inherited, Limits};
use super::scope::{At, reject, report};
use super::strings::substitution;
use super::values::{flag, header_value, known, metadata, non_empty, port, required};
use crate::ConfigError;
use crate::route::{
    Decorator, DirectResponse, Redirect, RedirectPath, Route, RouteAction, RouteStat,
    SchemeRedirect,
};
use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::route::v3 as pb;
use lateen_telemetry::format::Format;
use std::sync::Arc;

pub(crate) fn route(
    message: pb::Route,
    host: &Arc<str>,
    inherited: &Inherited,
    limits: Limits,
    at: At<'_>,
) -> Result<Route, ConfigError> {
    let pb::Route {
        name,
        r#match,
        metadata: route_metadata,
        decorator,
        typed_per_filter_config,
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
        tracing,
        per_request_buffer_limit_bytes,
        stat_prefix,
        request_body_buffer_limit,
        route_specifiers,
        action,
    } = message;
    reject!(at; route_specifiers);
    report!(at, "spans are not made"; tracing);
    let filters = filters::per_filter_config(typed_per_filter_config, &inherited.filters, at)?;
    let match_at = at.field("match");
    let matcher = route_matcher(required(r#match, match_at)?, match_at)?;
    let mut retry = inherited.retry.clone();
    let action =
        match required(action, at.field("action"))? {
            pb::route::Action::Route(action) => {
                let (forward, own_retry) = forward(action, &inherited.mirrors, at.field("route"))?;
                retry = own_retry.or(retry);
                RouteAction::Forward(Box::new(forward))
            }
            pb::route::Action::Redirect(action) => {
                RouteAction::Redirect(Box::new(redirect(action, at.field("redirect"))?))
            }
            pb::route::Action::DirectResponse(action) => RouteAction::DirectResponse(
                direct_response(action, limits, at.field("direct_response"))?,
            ),
            pb::route::Action::FilterAction(_) => {
                return Err(at.field("filter_action").not_supported());
            }
            pb::route::Action::NonForwardingAction(_) => {
                return Err(at.field("non_forwarding_action").not_supported());
            }
        };
    Ok(Route {
        name: name.into(),
        matcher,
        action,
        headers: header_ops(
            HeaderFields {
                request_headers_to_add,
                request_headers_to_remove,
                response_headers_to_add,
                response_headers_to_remove,
            },
            at,
        )?,
        retry,
        filters,
        stat: (!stat_prefix.is_empty()).then(|| RouteStat::new(host, &stat_prefix)),
        decorator: decorator
            .map(|d| decorate(d, at.field("decorator")))
            .transpose()?,
        request_body_buffer_limit: request_body_buffer_limit
            .map(|v| v.value)
            .or(per_request_buffer_limit_bytes.map(|v| v.value.into()))
            .or(inherited.body_limit),
        metadata: metadata(route_metadata, at.field("metadata"))?,
    })
}

fn decorate(message: pb::Decorator, at: At<'_>) -> Result<Decorator, ConfigError> {
    let pb::Decorator {
        operation,
        propagate,
    } = message;
    let operation = non_empty(operation, at.field("operation"))?;
    header_value(&operation, at.field("operation"))?;
    Ok(Decorator {
        operation: operation.into(),
        propagate: flag(propagate, true),
    })
}

fn redirect(message: pb::RedirectAction, at: At<'_>) -> Result<Redirect, ConfigError> {
    use pb::redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier};
    let pb::RedirectAction {
        host_redirect,
        port_redirect,
        response_code,
        strip_query,
        scheme_rewrite_specifier,
        path_rewrite_specifier,
    } = message;
    header_value(&host_redirect, at.field("host_redirect"))?;
    let text = |value: String, field: &str| {
        header_value(&value, at.field(field)).map(|()| value.into_boxed_str())
    };
    Ok(Redirect {
        status: match known(response_code, at.field("response_code"))? {
            RedirectResponseCode::MovedPermanently => 301,
            RedirectResponseCode::Found => 302,
            RedirectResponseCode::SeeOther => 303,
            RedirectResponseCode::TemporaryRedirect => 307,
            RedirectResponseCode::PermanentRedirect => 308,
        },
        scheme: match scheme_rewrite_specifier {
            None | Some(SchemeRewriteSpecifier::HttpsRedirect(false)) => SchemeRedirect::Keep,
            Some(SchemeRewriteSpecifier::HttpsRedirect(true)) => SchemeRedirect::Https,
            Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) => {
                SchemeRedirect::To(text(scheme, "scheme_redirect")?)
            }
        },
        host: (!host_redirect.is_empty()).then(|| host_redirect.into_boxed_str()),
        port: match port_redirect {
            0 => None,
            value => Some(port(value, at.field("port_redirect"))?),
        },
        path: match path_rewrite_specifier {
            None => RedirectPath::Keep,
            Some(PathRewriteSpecifier::PathRedirect(path)) => {
                RedirectPath::Full(text(path, "path_redirect")?)
            }
            Some(PathRewriteSpecifier::PrefixRewrite(prefix)) => {
                RedirectPath::Prefix(text(prefix, "prefix_rewrite")?)
            }
            Some(PathRewriteSpecifier::RegexRewrite(rewrite)) => {
                RedirectPath::Regex(substitution(rewrite, at.field("regex_rewrite"))?)
            }
            Some(PathRewriteSpecifier::PathRewrite(_)) => {
                return Err(at.field("path_rewrite").not_supported());
            }
        },
        strip_query,
    })
}

fn direct_response(
    message: pb::DirectResponseAction,
    limits: Limits,
    at: At<'_>,
) -> Result<DirectResponse, ConfigError> {
    let pb::DirectResponseAction {
        status,
        body,
        body_format,
    } = message;
    let status = match u16::try_from(status) {
        Ok(status @ 200..600) => status,
        _ => {
            return Err(at
                .field("status")
                .error(format!("{status} is not between 200 and 599")));
        }
    };
    let body = body
        .map(|b| data_source(b, at.field("body")))
        .transpose()?
        .unwrap_or_default();
    if body.len() > limits.direct_response_body {
        return Err(at.field("body").error(format!(
            "{} bytes are more than max_direct_response_body_size_bytes ({})",
            body.len(),
            limits.direct_response_body
        )));
    }
    let (format, content_type) = match body_format {
        None => (None, None),
        Some(format) => body_template(format, at.field("body_format"))?,
    };
    Ok(DirectResponse {
        status,
        body,
        format,
        content_type,
    })
}

type BodyTemplate = (Option<Arc<Format>>, Option<Box<str>>);

fn body_template(
    message: core::SubstitutionFormatString,
    at: At<'_>,
) -> Result<BodyTemplate, ConfigError> {
    let compiled = super::access_log::substitution(message, at)?;
    Ok((Some(Arc::new(compiled.program)), compiled.content_type))
}

/// Text or bytes in the message itself. Files and environment variables of the proxy's machine are
/// not for the control plane to read.
pub(crate) fn data_source(message: core::DataSource, at: At<'_>) -> Result<Bytes, ConfigError> {
    use core::data_source::Specifier;
    let core::DataSource {
        watched_directory,
        specifier,
    } = message;
    reject!(at; watched_directory);
    match required(specifier, at)? {
        Specifier::InlineBytes(bytes) => Ok(bytes.into()),
        Specifier::InlineString(text) => Ok(text.into()),
        Specifier::Filename(_) => Err(at.field("filename").not_supported()),
        Specifier::EnvironmentVariable(_) => Err(at.field("environment_variable").not_supported()),
    }
}
