//! The HTTP filters in front of the router, and what routes say to them: faults and CORS
//! (`pilot/pkg/networking/core/route/route.go`, `TranslateFault` and `TranslateCORSPolicy`).

use lateen_api::virtual_service::{
    Abort, CorsPolicy, Delay, HttpFaultInjection, HttpRoute, Percent, StringMatch,
    UnmatchedPreflights, grpc_status_code,
};

use crate::envoy::{self, Any, common_fault, core, cors, fault, hcm, percent, router};
use crate::mesh_tls;
use crate::route_match;

const FAULT: &str = "envoy.filters.http.fault";
const CORS: &str = "envoy.filters.http.cors";

/// The filters of a connection manager, in Istio's order (fact 26). Those that send requests to
/// other workloads (`to_peers`) tell them what is inside TLS.
pub fn chain(to_peers: bool) -> Vec<hcm::HttpFilter> {
    let mut filters = vec![fault_filter(), envoy::http_filter(CORS, &cors::Cors {})];
    filters.extend(to_peers.then(mesh_tls::alpn_filter));
    filters.push(router());
    filters
}

/// The same for gRPC libraries, which know no CORS.
pub fn grpc_chain() -> Vec<hcm::HttpFilter> {
    vec![fault_filter(), router()]
}

fn fault_filter() -> hcm::HttpFilter {
    envoy::http_filter(FAULT, &fault::HttpFault::default())
}

fn router() -> hcm::HttpFilter {
    envoy::http_filter("envoy.filters.http.router", &router::Router::default())
}

/// What a rule says to the filters, sorted by filter.
pub fn per_route(rule: &HttpRoute) -> Vec<(&'static str, Any)> {
    let cors = rule.cors_policy.as_ref().map(cors_policy);
    let fault = rule.fault.as_ref().and_then(http_fault);
    let cors = cors.map(|policy| (CORS, envoy::any(&policy)));
    let fault = fault.map(|fault| (FAULT, envoy::any(&fault)));
    cors.into_iter().chain(fault).collect()
}

/// [`None`]: only kinds of faults that have no effect in Istio either (fact 13).
fn http_fault(fault: &HttpFaultInjection) -> Option<fault::HttpFault> {
    let delay = fault.delay.as_ref().and_then(fixed_delay);
    let abort = fault.abort.as_ref().and_then(fault_abort);
    if delay.is_none() && abort.is_none() {
        return None;
    }
    Some(fault::HttpFault {
        delay,
        abort,
        ..Default::default()
    })
}

fn fixed_delay(delay: &Delay) -> Option<common_fault::FaultDelay> {
    use common_fault::fault_delay::FaultDelaySecifier as Specifier;
    let share = match &delay.percentage {
        Some(percentage) => fraction(percentage),
        // The deprecated whole number; without either nothing is delayed.
        None => hundredths(u32::try_from(delay.percent.unwrap_or(0)).unwrap_or(0)),
    };
    Some(common_fault::FaultDelay {
        percentage: Some(share),
        fault_delay_secifier: Some(Specifier::FixedDelay(envoy::duration(delay.fixed_delay?))),
    })
}

fn fault_abort(abort: &Abort) -> Option<fault::FaultAbort> {
    use fault::fault_abort::ErrorType;
    let error = match (abort.http_status, &abort.grpc_status) {
        (Some(status), _) => ErrorType::HttpStatus(u32::try_from(status).ok()?),
        (None, Some(name)) => ErrorType::GrpcStatus(grpc_status_code(name)?),
        (None, None) => return None,
    };
    Some(fault::FaultAbort {
        percentage: abort.percentage.as_ref().map(fraction),
        error_type: Some(error),
        ..Default::default()
    })
}

/// A percentage, exact to one in a million as in Istio.
pub fn fraction(percentage: &Percent) -> percent::FractionalPercent {
    percent::FractionalPercent {
        numerator: (percentage.value * 10_000.0) as u32,
        denominator: percent::fractional_percent::DenominatorType::Million as i32,
    }
}

/// Whole percent.
pub fn hundredths(percent: u32) -> percent::FractionalPercent {
    percent::FractionalPercent {
        numerator: percent,
        denominator: percent::fractional_percent::DenominatorType::Hundred as i32,
    }
}

fn cors_policy(policy: &CorsPolicy) -> cors::CorsPolicy {
    let exact = |origin: &String| StringMatch::Exact(origin.clone());
    let origins = match policy.allow_origins.is_empty() {
        false => policy.allow_origins.clone(),
        true => policy.allow_origin.iter().map(exact).collect(),
    };
    let origins = origins.iter().filter_map(route_match::pattern);
    let forward = policy.unmatched_preflights != Some(UnmatchedPreflights::Ignore);
    cors::CorsPolicy {
        allow_origin_string_match: origins.map(envoy::string_matcher).collect(),
        allow_methods: policy.allow_methods.join(","),
        allow_headers: policy.allow_headers.join(","),
        expose_headers: policy.expose_headers.join(","),
        max_age: policy
            .max_age
            .map(|age| age.as_secs().to_string())
            .unwrap_or_default(),
        allow_credentials: policy.allow_credentials.and_then(envoy::bool_value),
        filter_enabled: Some(core::RuntimeFractionalPercent {
            default_value: Some(hundredths(100)),
            ..Default::default()
        }),
        forward_not_matching_preflights: envoy::bool_value(forward),
        ..Default::default()
    }
}
