//! The headers an application passes on from the request it serves to the requests it makes.
//!
//! A sidecar cannot know which outgoing request belongs to which incoming one; that is why an
//! application in a mesh forwards these itself
//! (<https://istio.io/latest/docs/tasks/observability/distributed-tracing/overview/>).

use http::{HeaderMap, HeaderName};

/// Identity of the request and its trace: W3C Trace Context, B3 (both forms) and the vendors'.
const TRACE: [&str; 17] = [
    "x-request-id",
    "traceparent",
    "tracestate",
    "b3",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
    "x-ot-span-context",
    "x-cloud-trace-context",
    "x-datadog-trace-id",
    "x-datadog-parent-id",
    "x-datadog-sampling-priority",
    "grpc-trace-bin",
    "sw8",
    "baggage",
];

/// Identity of the user, which routing and authorization rules look at.
const USER: [&str; 4] = ["end-user", "user-agent", "authorization", "cookie"];

/// The trace headers of a request.
pub fn trace(incoming: &HeaderMap) -> HeaderMap {
    pick(incoming, &TRACE)
}

/// The trace and user headers of a request.
pub fn trace_and_user(incoming: &HeaderMap) -> HeaderMap {
    let mut headers = trace(incoming);
    headers.extend(pick(incoming, &USER));
    headers
}

fn pick(incoming: &HeaderMap, names: &[&'static str]) -> HeaderMap {
    names
        .iter()
        .filter_map(|name| {
            let value = incoming.get(*name)?;
            Some((HeaderName::from_static(name), value.clone()))
        })
        .collect()
}
