//! Rules of a VirtualService's HTTP routes: conditions, actions, retries, and rules never reached.

use std::collections::BTreeMap;
use std::time::Duration;

use super::virtual_service::{
    destination, gateways, optional_destination, source_namespace, total_weight, weight,
};
use super::{Checker, names};
use crate::field::Field;
use crate::request_authentication::routing_claim;
use crate::virtual_service::*;

pub fn validate(check: &mut Checker, route: &HttpRoute) {
    exclusive_actions(check, route);
    check.list("match", &route.matches, match_request);
    if route.delegate.is_some() {
        check.list("match", &route.matches, no_regex_beside_delegate);
    }
    check.list("route", &route.route, |check, to| {
        optional_destination(check, &to.destination);
        weight(check, to.weight);
        check.some("headers", &to.headers, headers);
    });
    total_weight(check, route.route.iter().map(|to| to.weight));
    check.some("redirect", &route.redirect, redirect);
    check.some("directResponse", &route.direct_response, direct_response);
    check.some("delegate", &route.delegate, delegate);
    check.some("rewrite", &route.rewrite, rewrite);
    // 0s turns the timeout off.
    check.duration(
        "timeout",
        &route.timeout.filter(|timeout| !timeout.is_zero()),
    );
    check.some("retries", &route.retries, retries);
    check.some("fault", &route.fault, fault);
    mirrors(check, route);
    check.some("corsPolicy", &route.cors_policy, cors);
    check.some("headers", &route.headers, headers);
}

fn exclusive_actions(check: &mut Checker, route: &HttpRoute) {
    let routes = !route.route.is_empty();
    let actions = [
        ("route", routes),
        ("redirect", route.redirect.is_some()),
        ("directResponse", route.direct_response.is_some()),
        ("delegate", route.delegate.is_some()),
    ];
    if !actions.iter().any(|(_, set)| *set) {
        check.missing(
            "route",
            "HTTP route, redirect or direct_response is required",
        );
    }
    check.at_most_one(&actions);
    for (action, set) in &actions[1..3] {
        if *set {
            check.at_most_one(&[(action, true), ("rewrite", route.rewrite.is_some())]);
            check.at_most_one(&[(action, true), ("fault", route.fault.is_some())]);
        }
    }
}

fn match_request(check: &mut Checker, matches: &HttpMatchRequest) {
    for (name, value) in [
        ("uri", &matches.uri),
        ("scheme", &matches.scheme),
        ("method", &matches.method),
        ("authority", &matches.authority),
    ] {
        check.some(name, value, |check, value| {
            string_match(check, value);
            let empty = matches!(value, StringMatch::Prefix(text) | StringMatch::Exact(text) if text.is_empty());
            if empty || *value == StringMatch::Present {
                check.error_hint("the condition is empty", "set exact, prefix or regex, or leave it out");
            }
        });
    }
    matched_headers(check, "headers", &matches.headers);
    matched_headers(check, "withoutHeaders", &matches.without_headers);
    check.map(
        "queryParams",
        &matches.query_params,
        |check, name, value| {
            if name.is_empty() {
                check.error("the name of a query parameter cannot be empty");
            }
            string_match(check, value);
            nonempty_prefix(check, value);
        },
    );
    check.some("port", &matches.port, |check, port| check.port(*port));
    names::selector(check, "sourceLabels", &matches.source_labels);
    gateways(check, &matches.gateways);
    source_namespace(check, &matches.source_namespace);
}

fn matched_headers(check: &mut Checker, name: &str, headers: &BTreeMap<String, StringMatch>) {
    check.map(name, headers, |check, name, value| {
        check.syntax(names::matched_header_name(name));
        // The regex `*` is no regex: Istio takes it for "present".
        if *value != StringMatch::Regex("*".to_owned()) {
            string_match(check, value);
        }
        nonempty_prefix(check, value);
    });
}

/// Only gateways route by the claims of tokens.
pub fn without_claims(check: &mut Checker, route: &HttpRoute) {
    check.list("match", &route.matches, |check, matches| {
        for (name, headers) in [
            ("headers", &matches.headers),
            ("withoutHeaders", &matches.without_headers),
        ] {
            check.map(name, headers, |check, header, _| {
                if routing_claim(header).is_some() {
                    check.error_hint(
                        format!(
                            "JWT claim based routing (key: {header}) is only supported for gateway"
                        ),
                        "bind the VirtualService to gateways, without mesh, with spec.gateways",
                    );
                }
            });
        }
    });
}

fn nonempty_prefix(check: &mut Checker, value: &StringMatch) {
    if *value == StringMatch::Prefix(String::new()) {
        check.error_hint("the prefix is empty", "write {} for \"any value\"");
    }
}

fn string_match(check: &mut Checker, value: &StringMatch) {
    if let StringMatch::Regex(regex) = value {
        check.field("regex", |check| match regex.as_str() {
            "" => check.error("the regex is empty"),
            regex => check.syntax(names::regex(regex)),
        });
    }
}

fn headers(check: &mut Checker, headers: &Headers) {
    for (name, operations) in [
        ("request", &headers.request),
        ("response", &headers.response),
    ] {
        check.some(name, operations, |check, operations| {
            for (name, map) in [("set", &operations.set), ("add", &operations.add)] {
                check.map(name, map, |check, name, value| {
                    // Setting the authority rewrites the host.
                    if name != ":authority" {
                        check.syntax(names::header_name(name));
                    }
                    check.syntax(names::header_format(value));
                });
            }
            check.list("remove", &operations.remove, |check, name| {
                check.syntax(names::header_name(name))
            });
        });
    }
}

fn redirect(check: &mut Checker, redirect: &HttpRedirect) {
    let port = redirect.port.is_some() || redirect.derive_port.is_some();
    let texts = [
        &redirect.uri,
        &redirect.authority,
        &redirect.scheme,
        &redirect.prefix_rewrite,
    ];
    if texts.iter().all(|text| text.is_empty()) && !port {
        check.error("redirect must specify URI, authority, scheme, or port");
    }
    check.at_most_one(&[
        ("port", redirect.port.is_some()),
        ("derivePort", redirect.derive_port.is_some()),
    ]);
    check.at_most_one(&[
        ("uri", !redirect.uri.is_empty()),
        ("prefixRewrite", !redirect.prefix_rewrite.is_empty()),
    ]);
    if !matches!(redirect.scheme.as_str(), "" | "http" | "https") {
        check.field("scheme", |check| {
            check.error("invalid redirect scheme, must be \"http\" or \"https\"")
        });
    }
    check.some("port", &redirect.port, |check, port| check.port(*port));
    check.some("redirectCode", &redirect.redirect_code, |check, code| {
        if !matches!(code, 301 | 302 | 303 | 307 | 308) {
            check.error(format!(
                "redirect code {code} is not one of 301, 302, 303, 307, 308"
            ));
        }
    });
}

fn direct_response(check: &mut Checker, response: &HttpDirectResponse) {
    check.field("status", |check| http_status(check, response.status.into()));
    check.some("body", &response.body, |check, body| {
        check.at_most_one(&[
            ("string", body.string.is_some()),
            ("bytes", body.bytes.is_some()),
        ]);
        check.some("bytes", &body.bytes, |check, bytes| {
            if !is_base64(bytes) {
                check.error_hint("the body is not base64", "use body.string for text");
            }
        });
        let size = body
            .string
            .as_ref()
            .or(body.bytes.as_ref())
            .map_or(0, String::len);
        // Envoy's bound is 4 KiB by default; Istio raises it to 1 MiB.
        if size > 1 << 20 {
            check.error(format!("response body of {size} bytes is larger than 1MB"));
        }
    });
}

/// Padded standard or URL-safe base64, as protobuf's JSON takes it.
pub fn is_base64(text: &str) -> bool {
    let digits = text.trim_end_matches('=');
    let valid = |c: char| c.is_ascii_alphanumeric() || "+/-_".contains(c);
    text.len() - digits.len() <= 2 && digits.chars().all(valid) && digits.len() % 4 != 1
}

fn http_status(check: &mut Checker, status: i64) {
    if !(200..=599).contains(&status) {
        check.error(format!("HTTP status {status} is not in range 200-599"));
    }
}

/// Whether a delegate's conditions are narrower than a regex cannot be told.
fn no_regex_beside_delegate(check: &mut Checker, matches: &HttpMatchRequest) {
    let strings = [
        &matches.uri,
        &matches.scheme,
        &matches.method,
        &matches.authority,
    ];
    let maps = [
        &matches.headers,
        &matches.without_headers,
        &matches.query_params,
    ];
    let mut all = strings
        .into_iter()
        .flatten()
        .chain(maps.into_iter().flat_map(BTreeMap::values));
    if all.any(|value| matches!(value, StringMatch::Regex(_))) {
        check.error_hint(
            "regex match is not supported in a rule with a delegate",
            "use exact or prefix",
        );
    }
}

fn delegate(check: &mut Checker, delegate: &Delegate) {
    match delegate.name.as_str() {
        "" => check.missing("name", "name of the delegate is required"),
        name => check.field("name", |check| check.syntax(names::subdomain(name))),
    }
    if !delegate.namespace.is_empty() {
        check.field("namespace", |check| {
            check.syntax(names::label(&delegate.namespace))
        });
    }
}

fn rewrite(check: &mut Checker, rewrite: &HttpRewrite) {
    if rewrite.uri.is_empty() && rewrite.authority.is_empty() && rewrite.uri_regex_rewrite.is_none()
    {
        check.error("rewrite must specify at least one of URI, UriRegexRewrite, or authority");
    }
    check.at_most_one(&[
        ("uri", !rewrite.uri.is_empty()),
        ("uriRegexRewrite", rewrite.uri_regex_rewrite.is_some()),
    ]);
    check.some(
        "uriRegexRewrite",
        &rewrite.uri_regex_rewrite,
        |check, regex| {
            match regex.matches.as_str() {
                "" => check.missing(
                    "match",
                    "UriRegexRewrite requires both Rewrite and Match fields to be specified",
                ),
                pattern => check.field("match", |check| check.syntax(names::regex(pattern))),
            }
            match regex.rewrite.as_str() {
                "" => check.missing(
                    "rewrite",
                    "UriRegexRewrite requires both Rewrite and Match fields to be specified",
                ),
                text => check.field("rewrite", |check| {
                    check.syntax(names::substitution(&regex.matches, text));
                }),
            }
        },
    );
}

/// Conditions of Envoy's `x-envoy-retry-on` and `x-envoy-retry-grpc-on` that Istio lets through.
const RETRY_ON: [&str; 16] = [
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "retriable-4xx",
    "refused-stream",
    "retriable-status-codes",
    "retriable-headers",
    "envoy-ratelimited",
    "http3-post-connect-failure",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
];

pub fn retries(check: &mut Checker, retries: &HttpRetry) {
    let others = retries.per_try_timeout.is_some() || !retries.retry_on.is_empty();
    if retries.attempts.is_none() && others {
        check.field("attempts", |check| {
            check.warning("without attempts nothing is tried again, and the other fields have no effect; Istio refuses it");
        });
    }
    check.some(
        "attempts",
        &retries.attempts,
        |check, attempts| match attempts {
            ..0 => check.error("attempts cannot be negative"),
            0 if others => {
                check.warning("attempts: 0 turns retries off; the other fields have no effect")
            }
            _ => {}
        },
    );
    check.duration("perTryTimeout", &retries.per_try_timeout);
    check.duration("backoff", &retries.backoff);
    if !retries.retry_on.is_empty() {
        check.field("retryOn", |check| retry_on(check, &retries.retry_on));
    }
}

fn retry_on(check: &mut Checker, conditions: &str) {
    let is_status = |token: &str| {
        token
            .parse::<u16>()
            .is_ok_and(|status| (100..600).contains(&status))
    };
    for token in conditions.split(',') {
        if is_status(token) || RETRY_ON.contains(&token) {
            continue;
        }
        let message = format!("{token:?} is not a valid retryOn policy");
        match crate::suggest::nearest(token.trim(), RETRY_ON.into_iter()) {
            Some(near) if near == token.trim() => {
                check.error_hint(message, "remove the spaces around it")
            }
            Some(near) => check.error_hint(message, format!("did you mean {near:?}?")),
            None => check.error_hint(
                message,
                format!("one of {}, or a status code", RETRY_ON.join(", ")),
            ),
        }
    }
    let named = conditions
        .split(',')
        .any(|token| token == "retriable-status-codes");
    if named && !conditions.split(',').any(is_status) {
        check.warning("retriable-status-codes without a status code matches nothing; add codes, such as 503, to the list");
    }
}

fn fault(check: &mut Checker, fault: &HttpFaultInjection) {
    if fault.delay.is_none() && fault.abort.is_none() {
        check.error("HTTP fault injection must have an abort and/or a delay");
    }
    check.some("delay", &fault.delay, |check, delay| {
        if delay.fixed_delay.is_none() && delay.exponential_delay.is_none() {
            check.missing("fixedDelay", "a delay needs a fixedDelay");
        }
        check.at_most_one(&[
            ("fixedDelay", delay.fixed_delay.is_some()),
            ("exponentialDelay", delay.exponential_delay.is_some()),
        ]);
        check.duration("fixedDelay", &delay.fixed_delay);
        check.duration("exponentialDelay", &delay.exponential_delay);
        check.some("percent", &delay.percent, |check, percent| {
            check.percent((*percent).into())
        });
        percentage(check, &delay.percentage);
        if delay.percentage.is_none() && delay.percent.is_none() {
            check.warning("without percentage no request is delayed");
        }
    });
    check.some("abort", &fault.abort, |check, abort| {
        let kinds = [
            ("httpStatus", abort.http_status.is_some()),
            ("grpcStatus", abort.grpc_status.is_some()),
            ("http2Error", abort.http2_error.is_some()),
        ];
        if !kinds.iter().any(|(_, set)| *set) {
            check.missing("httpStatus", "an abort needs httpStatus or grpcStatus");
        }
        check.at_most_one(&kinds);
        check.some("httpStatus", &abort.http_status, |check, status| {
            http_status(check, (*status).into())
        });
        check.some("grpcStatus", &abort.grpc_status, |check, status| {
            grpc_status(check, status)
        });
        percentage(check, &abort.percentage);
        if abort.percentage.is_none() {
            check.warning("without percentage no request is aborted");
        }
    });
}

fn grpc_status(check: &mut Checker, status: &str) {
    if !GRPC_STATUS.contains(&status) {
        let message = format!("gRPC status {status:?} is not supported");
        match crate::suggest::nearest(status, GRPC_STATUS.into_iter()) {
            Some(near) => check.error_hint(message, format!("did you mean {near:?}?")),
            None => check.error_hint(message, format!("one of {}", GRPC_STATUS.join(", "))),
        }
    }
}

fn percentage(check: &mut Checker, percentage: &Option<Percent>) {
    check.some("percentage", percentage, |check, percent| {
        check.field("value", |check| check.percent(percent.value))
    });
}

fn mirrors(check: &mut Checker, route: &HttpRoute) {
    check.at_most_one(&[
        ("mirror", route.mirror.is_some()),
        ("mirrors", !route.mirrors.is_empty()),
    ]);
    check.some("mirror", &route.mirror, destination);
    check.some("mirrorPercent", &route.mirror_percent, |check, percent| {
        check.percent((*percent).into())
    });
    check.some(
        "mirrorPercentage",
        &route.mirror_percentage,
        |check, percent| {
            check.field("value", |check| check.percent(percent.value));
        },
    );
    check.list("mirrors", &route.mirrors, |check, mirror| {
        optional_destination(check, &mirror.destination);
        percentage(check, &mirror.percentage);
    });
}

const METHODS: [&str; 9] = [
    "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "TRACE",
];

fn cors(check: &mut Checker, cors: &CorsPolicy) {
    check.list("allowOrigins", &cors.allow_origins, |check, origin| {
        string_match(check, origin);
        if *origin == StringMatch::Present {
            check.error_hint("the condition is empty", "set exact, prefix or regex");
        }
    });
    check.list("allowMethods", &cors.allow_methods, |check, method| {
        if method != "*" && !METHODS.contains(&method.as_str()) {
            check.error(format!(
                "{method:?} is not a valid HTTP method (methods are upper case)"
            ));
        }
    });
    for (name, headers) in [
        ("allowHeaders", &cors.allow_headers),
        ("exposeHeaders", &cors.expose_headers),
    ] {
        check.list(name, headers, |check, header| {
            if header != "*" {
                check.syntax(names::header_name(header));
            }
        });
    }
    check.duration("maxAge", &cors.max_age);
    if cors
        .max_age
        .is_some_and(|age| age >= Duration::from_millis(1) && age.subsec_nanos() != 0)
    {
        check.field("maxAge", |check| {
            check.error("max_age duration is accurate only to seconds precision")
        });
    }
}

/// Rules after one that takes every request, and conditions that an earlier rule has already.
pub fn unreachable(check: &mut Checker, routes: &[HttpRoute]) {
    let catch_all = routes.iter().position(takes_everything);
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut index = 0;
    check.list("http", routes, |check, route| {
        match catch_all.filter(|first| *first < index) {
            Some(first) => check.coded_warning(
                "IST0130",
                format!("this rule is never used: http[{first}] before it takes every request"),
                format!("give http[{first}] a match, or move it to the end"),
            ),
            None => repeated_matches(check, route, &seen),
        }
        for matches in &route.matches {
            seen.entry(matches.encode().to_string()).or_insert(index);
        }
        index += 1;
    });
}

/// No condition, or one that only asks for a path (`prefix: /`), which every request has.
fn takes_everything(route: &HttpRoute) -> bool {
    let any_path = StringMatch::Prefix("/".to_owned());
    let everything = |matches: &HttpMatchRequest| {
        let HttpMatchRequest { uri, name, .. } = matches.clone();
        let uri_only = HttpMatchRequest {
            uri,
            name,
            ..Default::default()
        };
        *matches == uri_only && matches.uri.as_ref().is_none_or(|uri| *uri == any_path)
    };
    route.matches.is_empty() || route.matches.iter().any(everything)
}

fn repeated_matches(check: &mut Checker, route: &HttpRoute, seen: &BTreeMap<String, usize>) {
    let earlier = |matches: &HttpMatchRequest| seen.get(&matches.encode().to_string()).copied();
    if !route.matches.is_empty()
        && route
            .matches
            .iter()
            .all(|matches| earlier(matches).is_some())
    {
        let message = "this rule is never used: all its matches are used by rules before it";
        return check.coded_warning("IST0130", message, "remove one of them");
    }
    check.list("match", &route.matches, |check, matches| {
        if let Some(first) = earlier(matches) {
            let message = format!("this match is not used: http[{first}] has the same");
            check.coded_warning("IST0131", message, "remove one of them");
        }
    });
}
