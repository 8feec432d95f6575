//! Faults of VirtualServices through a gateway: delays and aborts, for HTTP and gRPC, in the share
//! that the rule says.

use std::time::{Duration, Instant};

use lateen_testkit::envoy::Plane;
use lateen_testkit::eventually;
use lateen_testkit::http::{Answer, Call, Client};

use crate::gateway::assert_share;
use crate::mesh::Gateway;
use crate::requests::gateway_with;

/// One rule per line: path, fault.
const FAULTS: &[(&str, &str)] = &[
    (
        "/http",
        "{abort: {httpStatus: 418, percentage: {value: 100}}}",
    ),
    (
        "/unavailable",
        "{abort: {httpStatus: 503, percentage: {value: 100}}}",
    ),
    (
        "/grpc",
        "{abort: {grpcStatus: RESOURCE_EXHAUSTED, percentage: {value: 100}}}",
    ),
    (
        "/unsaid",
        "{abort: {httpStatus: 500}, delay: {fixedDelay: 60s}}",
    ),
    (
        "/zero",
        "{abort: {httpStatus: 500, percentage: {value: 0}}}",
    ),
    (
        "/half",
        "{abort: {httpStatus: 500, percentage: {value: 50}}}",
    ),
    (
        "/eighth",
        "{abort: {httpStatus: 500, percentage: {value: 12.5}}}",
    ),
    (
        "/delay",
        "{delay: {fixedDelay: 0.3s, percentage: {value: 100}}}",
    ),
    ("/percent", "{delay: {fixedDelay: 0.3s, percent: 100}}"),
    (
        "/both",
        "{delay: {fixedDelay: 0.3s, percentage: {value: 100}}, abort: {httpStatus: 500, percentage: {value: 100}}}",
    ),
    (
        "/exponential",
        "{delay: {exponentialDelay: 60s, percentage: {value: 100}}}",
    ),
    (
        "/http2",
        "{abort: {http2Error: CANCEL, percentage: {value: 100}}}",
    ),
];

fn rules() -> String {
    let rule = |(path, fault): &(&str, &str)| {
        format!(
            "  - match: [{{uri: {{exact: {path}}}}}]\n    fault: {fault}\n    \
             headers: {{response: {{set: {{x-why: '%RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%'}}}}}}\n    \
             route: [{{destination: {{host: reviews, subset: v1}}}}]\n"
        )
    };
    let rest = "  - route: [{destination: {host: reviews, subset: v1}}]\n";
    FAULTS.iter().map(rule).collect::<String>() + rest
}

async fn timed(gateway: &Gateway, call: &Call) -> (Duration, Answer) {
    let started = Instant::now();
    let answer = gateway.send(call).await;
    (started.elapsed(), answer)
}

/// The sum of a counter of the fault filter.
async fn counted(gateway: &Gateway, name: &str) -> u64 {
    gateway.envoy.stats_ending(&format!(".fault.{name}")).await
}

async fn faults_delay_and_abort_what_the_rule_says(plane: Plane) {
    let test = "faults_delay_and_abort_what_the_rule_says";
    let rules = rules();
    let hosts = [("fault.test", rules.as_str())];
    let Some((_mesh, gateway, reviews)) = gateway_with(plane, test, &hosts).await else {
        return;
    };
    let get = |path: &str| Call::get("fault.test", path);
    for (path, status, body, why) in [
        ("/http", 418, "fault filter abort", "FI fault_filter_abort"),
        (
            "/unavailable",
            503,
            "fault filter abort",
            "FI fault_filter_abort",
        ),
        // A client that does not speak gRPC sees an HTTP success.
        ("/grpc", 200, "fault filter abort", "FI fault_filter_abort"),
    ] {
        let answer = gateway.send(&get(path)).await;
        let found = (answer.status, &*answer.body, answer.header("x-why"));
        assert_eq!(found, (status, body, why.to_owned()), "{path}: {answer:?}");
        assert_eq!(answer.header("content-type"), "text/plain", "{path}");
        assert_eq!(answer.header("server"), "istio-envoy", "{path}");
        assert_eq!(reviews.v1.hits(path), 0, "{path} reached the service");
    }
    for (path, status) in [("/http", "2"), ("/unavailable", "14"), ("/grpc", "8")] {
        let call = get(path)
            .method("POST")
            .header("content-type", "application/grpc");
        let answer = gateway.send(&call).await;
        let headers = ["grpc-status", "grpc-message", "content-type"];
        let found = headers.map(|name| answer.header(name));
        let expect = [status, "fault filter abort", "application/grpc"];
        assert_eq!(
            (answer.status, &*answer.body),
            (200, ""),
            "{path}: {answer:?}"
        );
        assert_eq!(found, expect, "{path}: {answer:?}");
    }
    // Without a percentage, or of a kind Istio does not know, nothing happens (fact 13).
    for path in ["/unsaid", "/zero", "/exponential", "/http2", "/other"] {
        let (took, answer) = timed(&gateway, &get(path)).await;
        assert_eq!(
            (answer.status, &*answer.name()),
            (200, "v1"),
            "{path}: {answer:?}"
        );
        assert!(took < Duration::from_secs(20), "{path} took {took:?}");
    }
    // Envoy's clock stands still within a turn of its event loop.
    let delayed = Duration::from_millis(280);
    for path in ["/delay", "/percent"] {
        let (took, answer) = timed(&gateway, &get(path)).await;
        assert_eq!(
            (answer.status, &*answer.name()),
            (200, "v1"),
            "{path}: {answer:?}"
        );
        assert_eq!(answer.header("x-why"), "DI via_upstream", "{path}");
        assert!(took >= delayed, "{path} took {took:?}");
    }
    let (took, answer) = timed(&gateway, &get("/both")).await;
    let found = (answer.status, answer.header("x-why"));
    assert_eq!(
        found,
        (500, "DI,FI fault_filter_abort".to_owned()),
        "{answer:?}"
    );
    assert!(took >= delayed, "took {took:?}");

    // A request with a fault ends a moment after its answer.
    eventually("all faults are counted and over", async || {
        let mut found = [0; 3];
        for (found, name) in
            found
                .iter_mut()
                .zip(["delays_injected", "aborts_injected", "active_faults"])
        {
            *found = counted(&gateway, name).await;
        }
        match found {
            [3, 7, 0] => Ok(()),
            _ => Err(format!("{found:?}")),
        }
    })
    .await;
}

async fn faults_hit_the_share_of_requests_that_the_rule_says(plane: Plane) {
    let test = "faults_hit_the_share_of_requests_that_the_rule_says";
    let rules = rules();
    let hosts = [("fault.test", rules.as_str())];
    let Some((_mesh, gateway, _reviews)) = gateway_with(plane, test, &hosts).await else {
        return;
    };
    for (path, share) in [("/half", 0.5), ("/eighth", 0.125)] {
        let mut client = Client::connect(gateway.http).await.unwrap();
        let mut aborted = 0;
        for _ in 0..1000 {
            match client
                .send(&Call::get("fault.test", path))
                .await
                .unwrap()
                .status
            {
                500 => aborted += 1,
                200 => {}
                other => panic!("{path}: {other}"),
            }
        }
        assert_share(aborted, 1000, share);
    }
}

on_both!(
    faults_delay_and_abort_what_the_rule_says,
    faults_hit_the_share_of_requests_that_the_rule_says,
);
