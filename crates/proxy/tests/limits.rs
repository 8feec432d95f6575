//! Retries that change their priority, and limits on whole streams, through real sockets.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests stop at what is not as expected"
)]

mod common;

use common::{Client, Proxy, Upstream, get, ok, socket};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

#[test]
fn after_so_many_tries_a_retry_goes_to_a_priority_that_was_not_tried() {
    let bad = Upstream::http(|_| b"HTTP/1.1 503 X\r\ncontent-length: 0\r\n\r\n".to_vec());
    let good =
        Upstream::http(|seen| ok(seen.header("x-envoy-attempt-count").unwrap_or("no count")));
    let group = |up: &Upstream, priority: u32| json!({ "priority": priority, "lb_endpoints": [{ "endpoint": { "address": socket(up.address) } }] });
    let priority = |every: u32| {
        json!({ "name": "envoy.retry_priorities.previous_priorities", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig",
            "update_frequency": every,
        }})
    };
    let status = |retry_priority: Option<Value>| {
        let mut retry = json!({ "retry_on": "5xx", "num_retries": 2 });
        if let Some(priority) = retry_priority {
            retry["retry_priority"] = priority;
        }
        let (_proxy, at) = Proxy::with(
            json!({}),
            json!({ "cluster": "up", "retry_policy": retry }),
            json!({ "load_assignment": { "endpoints": [group(&bad, 0), group(&good, 1)] } }),
            &[],
        );
        get(at, "/").status()
    };
    assert_eq!(status(None), 503);
    assert_eq!(status(Some(priority(1))), 200);
    assert_eq!(status(Some(priority(2))), 200);
    // Two retries are not enough to come to the third try's successor.
    assert_eq!(status(Some(priority(3))), 503);
}

#[test]
fn a_stream_that_takes_too_long_is_answered_for_the_side_that_was_slow() {
    let up = Upstream::http(|_| {
        std::thread::sleep(Duration::from_secs(60));
        ok("late")
    });
    let limited =
        json!({ "cluster": "up", "max_stream_duration": { "max_stream_duration": "0.2s" } });
    let (_proxy, at) = Proxy::with(json!({}), limited, json!({}), &[up.address]);
    let started = Instant::now();
    let seen = get(at, "/");
    assert_eq!(
        (seen.status(), &*seen.text()),
        (504, "downstream duration timeout")
    );
    let mut client = Client::new(at);
    client.send("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\n\r\nab");
    let seen = client.read();
    assert_eq!(
        (seen.status(), &*seen.text()),
        (408, "downstream duration timeout")
    );
    let mut client = Client::new(at);
    client.send("POST / HTTP/1.1\r\nhost: h\r\ncontent-type: application/grpc\r\n\r\n");
    let seen = client.read();
    assert_eq!(
        (seen.status(), seen.header("grpc-status")),
        (200, Some("4"))
    );
    assert!(started.elapsed() < Duration::from_secs(20));
}
