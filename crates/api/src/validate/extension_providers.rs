//! Rules of `meshConfig.extensionProviders`: what would make a proxy refuse its listeners, and what
//! could open a door.

use std::time::Duration;

use super::{Checker, names};
use crate::IntOrString;
use crate::mesh_config::*;

pub fn validate(check: &mut Checker, providers: &[ExtensionProvider]) {
    check.list("extensionProviders", providers, |check, provider| {
        if provider.name.is_empty() {
            check.missing("name", "an extension provider needs a name");
        }
        check.at_most_one(&[
            ("envoyExtAuthzHttp", provider.envoy_ext_authz_http.is_some()),
            ("envoyExtAuthzGrpc", provider.envoy_ext_authz_grpc.is_some()),
        ]);
        check.some("envoyExtAuthzHttp", &provider.envoy_ext_authz_http, http);
        check.some("envoyExtAuthzGrpc", &provider.envoy_ext_authz_grpc, grpc);
    });
    let names = providers.iter().map(|provider| provider.name.as_str());
    check.unique("extensionProviders", "name", names, "extension provider");
}

fn http(check: &mut Checker, provider: &ExtAuthzHttpProvider) {
    service(check, &provider.service, &provider.port);
    common(
        check,
        &provider.status_on_error,
        &provider.timeout,
        &provider.include_request_body_in_check,
    );
    if !provider.path_prefix.is_empty() && !provider.path_prefix.starts_with('/') {
        check.field("pathPrefix", |check| {
            check.error(format!(
                "pathPrefix must begin with \"/\", found {:?}",
                provider.path_prefix
            ));
        });
    }
    check.field("pathPrefix", |check| {
        check.syntax(names::header_value(&provider.path_prefix));
    });
    for (name, list) in [
        ("includeHeadersInCheck", &provider.include_headers_in_check),
        (
            "includeRequestHeadersInCheck",
            &provider.include_request_headers_in_check,
        ),
        (
            "headersToUpstreamOnAllow",
            &provider.headers_to_upstream_on_allow,
        ),
        (
            "headersToDownstreamOnDeny",
            &provider.headers_to_downstream_on_deny,
        ),
        (
            "headersToDownstreamOnAllow",
            &provider.headers_to_downstream_on_allow,
        ),
    ] {
        check.list(name, list, |check, header| match header.as_str() {
            "" => check.error("header name cannot be empty"),
            "*" => check.error_hint(
                "a single wildcard (\"*\") is not supported",
                "change it to either prefix or suffix match",
            ),
            _ => {}
        });
    }
    check.map(
        "includeAdditionalHeadersInCheck",
        &provider.include_additional_headers_in_check,
        |check, name, value| {
            check.syntax(names::header_name(name));
            check.syntax(names::header_format(value));
        },
    );
}

fn grpc(check: &mut Checker, provider: &ExtAuthzGrpcProvider) {
    service(check, &provider.service, &provider.port);
    common(
        check,
        &provider.status_on_error,
        &provider.timeout,
        &provider.include_request_body_in_check,
    );
}

fn service(check: &mut Checker, service: &str, port: &IntOrString) {
    let (namespace, host) = service.split_once('/').unwrap_or(("", service));
    if service.is_empty() {
        check.missing("service", "service must not be empty");
    } else {
        check.field("service", |check| {
            if service.contains('/') {
                check.syntax(names::label(namespace));
            }
            if !names::is_ip(host) {
                check.syntax(names::fqdn(host));
            }
        });
    }
    check.field("port", |check| {
        if ext_authz_port(port).is_none() {
            check.error("port must be in the range 1..65535");
        }
    });
}

fn common(
    check: &mut Checker,
    status_on_error: &str,
    timeout: &Option<Duration>,
    body: &Option<ExtAuthzRequestBody>,
) {
    if !status_on_error.is_empty() && ext_authz_status(status_on_error).is_none() {
        check.field("statusOnError", |check| {
            check.error_hint(
                format!("unsupported statusOnError {status_on_error:?}"),
                "use a status code such as 403 or 503",
            );
        });
    }
    check.duration("timeout", timeout);
    check.some("includeRequestBodyInCheck", body, |check, body| {
        if body.max_request_bytes == 0 {
            check.missing("maxRequestBytes", "maxRequestBytes must be greater than 0");
        }
    });
}
