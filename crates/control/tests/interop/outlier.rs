//! Outlier detection with upstreams that really fail: who is ejected, for how long, and what is
//! left when all are.

use std::time::{Duration, Instant};

use lateen_testkit::echo::Echo;
use lateen_testkit::envoy::Plane;
use lateen_testkit::http::Call;
use lateen_testkit::{eventually, ports};

use crate::gateway::{rule, served};
use crate::mesh::{Gateway, Mesh, Reviews, loopback, workload};

const HOST: &str = "outlier.test";
const CLUSTER: &str = "outbound|9080||reviews.default.svc.cluster.local";

/// Three versions behind a gateway that neither retries nor keeps to one of them.
struct Ward {
    mesh: Mesh,
    gateway: Gateway,
    reviews: Reviews,
}

impl Ward {
    /// `policy` is the body of `outlierDetection`.
    async fn start(plane: Plane, test: &str, policy: &str) -> Option<Ward> {
        let mesh = Mesh::start().await;
        let gateway = Gateway::start(plane, &mesh, test, true).await?;
        let reviews = Reviews::start(&mesh).await;
        let ward = Ward {
            mesh,
            gateway,
            reviews,
        };
        ward.set_policy(policy).await;
        let route = "  - retries: {attempts: 0}\n    route: [{destination: {host: reviews}}]";
        ward.mesh.apply(&rule(HOST, route)).await;
        ward.mesh.distributed(1).await;
        served(&ward.gateway, HOST).await;
        Some(ward)
    }

    async fn set_policy(&self, policy: &str) {
        let document = format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
             metadata: {{name: reviews, namespace: default}}\n\
             spec:\n  host: reviews\n  trafficPolicy:\n    loadBalancer: {{simple: ROUND_ROBIN}}\n    \
             outlierDetection: {{{policy}}}\n"
        );
        self.mesh.apply(&document).await;
        self.mesh.distributed(1).await;
    }

    /// Statuses of so many requests.
    async fn send(&self, count: usize) -> Vec<u16> {
        let mut statuses = Vec::new();
        for _ in 0..count {
            statuses.push(self.gateway.get(HOST, "/").await.status);
        }
        statuses
    }

    async fn stat(&self, name: &str) -> u64 {
        let name = format!("cluster.{CLUSTER}.outlier_detection.{name}");
        self.gateway.envoy.stat(&name).await
    }

    /// The flags that `/clusters` shows for an endpoint.
    async fn health(&self, port: u16) -> String {
        let page = self.gateway.envoy.get("/clusters").await.unwrap();
        let start = format!("{CLUSTER}::127.0.0.1:{port}::health_flags::");
        let line = page.lines().find_map(|line| line.strip_prefix(&start));
        line.unwrap_or_else(|| panic!("{start} is not in {page}"))
            .to_owned()
    }

    /// Waits until twelve answers in a row are like this: Envoy gathers changes of health for a
    /// second before its workers hear of them.
    async fn until_all_are(&self, status: u16, body: &str) {
        eventually(&format!("all answers are {status}"), async || {
            for _ in 0..12 {
                let answer = self.gateway.get(HOST, "/").await;
                if answer.status != status || !answer.body.ends_with(body) {
                    return Err(format!("{answer:?}"));
                }
            }
            Ok(())
        })
        .await;
    }

    /// Has `v1` listen at a port that nobody is given when it ends.
    async fn settle_v1(&mut self) {
        let listener = std::net::TcpListener::bind(loopback(ports::reserve())).unwrap();
        listener.set_nonblocking(true).unwrap();
        self.reviews.v1 = Echo::on(listener, "v1");
        let v1 = workload("reviews", "v1", "http", self.reviews.v1.port());
        self.mesh.apply(&v1).await;
        self.mesh.distributed(1).await;
    }

    /// Ends `v1`; its port.
    async fn end_v1(&mut self) -> u16 {
        let gone = std::mem::replace(&mut self.reviews.v1, Echo::start("x").await);
        gone.port()
    }

    /// Sends requests until so many ejections were made.
    async fn until_ejections(&self, count: u64) {
        eventually(&format!("ejection {count}"), async || {
            self.send(3).await;
            match self.stat("ejections_enforced_total").await {
                made if made >= count => Ok(()),
                made => Err(format!("{made} were: {:?}", self.stats().await)),
            }
        })
        .await;
    }

    /// Sends requests until so many endpoints are ejected.
    async fn until_ejected(&self, count: u64) {
        eventually(&format!("{count} are ejected"), async || {
            self.send(3).await;
            match self.stat("ejections_active").await {
                active if active == count => Ok(()),
                active => Err(format!("{active} are: {:?}", self.stats().await)),
            }
        })
        .await;
    }

    async fn until_back(&self) {
        eventually("all are back", async || {
            match self.stat("ejections_active").await {
                0 => Ok(()),
                active => Err(format!("{active} are ejected")),
            }
        })
        .await;
    }

    async fn stats(&self) -> Vec<(String, u64)> {
        let all = self.gateway.envoy.stats().await;
        all.into_iter()
            .filter(|(name, value)| name.contains("outlier") && *value > 0)
            .collect()
    }
}

async fn an_endpoint_that_fails_in_a_row_is_ejected_and_the_next_time_for_longer(plane: Plane) {
    let test = "an_endpoint_that_fails_in_a_row_is_ejected_and_the_next_time_for_longer";
    // An endpoint that is well for an interval begins anew, so it has to fail again within three
    // seconds.
    let policy =
        "consecutive5xxErrors: 3, interval: 3s, baseEjectionTime: 2s, maxEjectionPercent: 50";
    let Some(ward) = Ward::start(plane, test, policy).await else {
        return;
    };
    ward.reviews.v1.always(500);
    let mut lasted = Vec::new();
    for ejection in [1, 2] {
        let started = Instant::now();
        ward.until_ejections(ejection).await;
        ward.until_back().await;
        lasted.push(started.elapsed());
    }
    // 2 s, and 4 s: at the end of the second interval then, where 2 s are over with the first.
    assert!(lasted[0] > Duration::from_millis(1900), "{lasted:?}");
    assert!(lasted[1] > Duration::from_millis(3900), "{lasted:?}");
    assert_eq!(ward.stat("ejections_enforced_consecutive_5xx").await, 2);
    assert_eq!(ward.stat("ejections_enforced_total").await, 2);
    ward.reviews.v1.always(0);
    eventually("v1 answers again", async || {
        let answer = Call::get(HOST, "/").send(ward.gateway.http).await?;
        match answer.name().as_str() {
            "v1" => Ok(()),
            other => Err(other.to_owned()),
        }
    })
    .await;
    assert_eq!(ward.health(ward.reviews.v1.port()).await, "healthy");
}

async fn an_ejected_endpoint_gets_nothing(plane: Plane) {
    let test = "an_ejected_endpoint_gets_nothing";
    let policy =
        "consecutive5xxErrors: 3, interval: 1s, baseEjectionTime: 120s, maxEjectionPercent: 50";
    let Some(ward) = Ward::start(plane, test, policy).await else {
        return;
    };
    ward.reviews.v1.always(500);
    ward.until_ejected(1).await;
    assert_eq!(
        ward.health(ward.reviews.v1.port()).await,
        "/failed_outlier_check"
    );
    assert_eq!(ward.health(ward.reviews.v2.port()).await, "healthy");
    ward.until_all_are(200, "").await;
    let before = ward.reviews.v1.all_hits();
    assert_eq!(ward.send(30).await, [200; 30]);
    assert_eq!(ward.reviews.v1.all_hits(), before);
}

async fn gateway_errors_are_counted_apart_and_other_errors_still_count(plane: Plane) {
    let test = "gateway_errors_are_counted_apart_and_other_errors_still_count";
    let policy =
        "consecutiveGatewayErrors: 2, interval: 1s, baseEjectionTime: 120s, maxEjectionPercent: 70";
    let Some(ward) = Ward::start(plane, test, policy).await else {
        return;
    };
    ward.reviews.v1.always(503);
    ward.until_ejected(1).await;
    let gateway = "ejections_enforced_consecutive_gateway_failure";
    assert_eq!(ward.stat(gateway).await, 1);
    // Five of any 5xx eject although only gateway errors are configured (fact 35).
    ward.reviews.v2.always(500);
    ward.until_ejected(2).await;
    assert_eq!(ward.stat(gateway).await, 1);
    assert_eq!(ward.stat("ejections_enforced_consecutive_5xx").await, 1);
    ward.reviews.v1.always(0);
    ward.reviews.v2.always(0);

    // Zero switches a detection off.
    ward.set_policy("consecutive5xxErrors: 0, interval: 1s, maxEjectionPercent: 100")
        .await;
    ward.reviews.v3.always(500);
    let before = ward.reviews.v3.all_hits();
    ward.send(45).await;
    assert!(ward.reviews.v3.all_hits() - before >= 10);
    assert_eq!(ward.health(ward.reviews.v3.port()).await, "healthy");
}

async fn an_endpoint_that_refuses_connections_is_ejected(plane: Plane) {
    let test = "an_endpoint_that_refuses_connections_is_ejected";
    let policy = "consecutive5xxErrors: 2, interval: 10s, maxEjectionPercent: 50";
    let Some(mut ward) = Ward::start(plane, test, policy).await else {
        return;
    };
    ward.settle_v1().await;
    let port = ward.end_v1().await;
    ward.until_ejected(1).await;
    assert_eq!(ward.health(port).await, "/failed_outlier_check");
    ward.until_all_are(200, "").await;
    assert_eq!(ward.stat("ejections_enforced_consecutive_5xx").await, 1);
}

async fn failures_to_connect_can_be_counted_apart(plane: Plane) {
    let test = "failures_to_connect_can_be_counted_apart";
    let policy = "splitExternalLocalOriginErrors: true, consecutiveLocalOriginFailures: 2, \
                  consecutive5xxErrors: 4, interval: 10s, maxEjectionPercent: 70";
    let Some(mut ward) = Ward::start(plane, test, policy).await else {
        return;
    };
    ward.settle_v1().await;
    ward.end_v1().await;
    ward.until_ejected(1).await;
    let local = "ejections_enforced_consecutive_local_origin_failure";
    assert_eq!(ward.stat(local).await, 1);
    assert_eq!(ward.stat("ejections_enforced_consecutive_5xx").await, 0);
    ward.reviews.v2.always(500);
    ward.until_ejected(2).await;
    assert_eq!(ward.stat(local).await, 1);
    assert_eq!(ward.stat("ejections_enforced_consecutive_5xx").await, 1);
}

async fn no_more_than_the_allowed_share_is_ejected(plane: Plane) {
    let test = "no_more_than_the_allowed_share_is_ejected";
    let policy = "consecutive5xxErrors: 2, interval: 30s, maxEjectionPercent: 34";
    let Some(ward) = Ward::start(plane, test, policy).await else {
        return;
    };
    ward.reviews.v1.always(500);
    ward.reviews.v2.always(500);
    ward.until_ejected(1).await;
    let statuses = ward.send(20).await;
    assert!(
        statuses.contains(&200) && statuses.contains(&500),
        "{statuses:?}"
    );
    eventually("the second is over the limit", async || {
        ward.send(2).await;
        match ward.stat("ejections_overflow").await {
            0 => Err(format!("{:?}", ward.stats().await)),
            _ => Ok(()),
        }
    })
    .await;
    assert_eq!(ward.stat("ejections_active").await, 1);
}

async fn when_all_are_ejected_none_answers_unless_that_means_panic(plane: Plane) {
    let test = "when_all_are_ejected_none_answers_unless_that_means_panic";
    let policy = "consecutive5xxErrors: 2, interval: 30s, maxEjectionPercent: 100";
    let Some(ward) = Ward::start(plane, test, policy).await else {
        return;
    };
    for echo in [&ward.reviews.v1, &ward.reviews.v2, &ward.reviews.v3] {
        echo.always(500);
    }
    ward.until_ejected(3).await;
    ward.until_all_are(503, "no healthy upstream").await;

    // Below 60 % healthy ones all are used again.
    ward.set_policy(&format!("{policy}, minHealthPercent: 60"))
        .await;
    ward.until_ejected(3).await;
    ward.all_are_used().await;
}

impl Ward {
    /// In panic all endpoints get requests, ejected or not.
    async fn all_are_used(&self) {
        for echo in [&self.reviews.v1, &self.reviews.v2, &self.reviews.v3] {
            let before = echo.all_hits();
            eventually("an endpoint is used in panic", async || {
                let statuses = self.send(6).await;
                match echo.all_hits() > before && statuses == [500; 6] {
                    true => Ok(()),
                    false => Err(format!("{statuses:?}")),
                }
            })
            .await;
        }
    }
}

async fn the_statuses_that_count_as_errors_can_be_listed(plane: Plane) {
    let test = "the_statuses_that_count_as_errors_can_be_listed";
    let policy = "consecutive5xxErrors: 2, interval: 30s, maxEjectionPercent: 50, \
                  outlierDetectionHttpErrorCodes: [429, 503]";
    let Some(ward) = Ward::start(plane, test, policy).await else {
        return;
    };
    ward.reviews.v1.always(500);
    ward.send(30).await;
    assert_eq!(ward.health(ward.reviews.v1.port()).await, "healthy");
    ward.reviews.v2.always(429);
    ward.until_ejected(1).await;
    assert_eq!(
        ward.health(ward.reviews.v2.port()).await,
        "/failed_outlier_check"
    );
}

on_both!(
    an_endpoint_that_fails_in_a_row_is_ejected_and_the_next_time_for_longer,
    gateway_errors_are_counted_apart_and_other_errors_still_count,
    an_endpoint_that_refuses_connections_is_ejected,
    failures_to_connect_can_be_counted_apart,
    no_more_than_the_allowed_share_is_ejected,
    when_all_are_ejected_none_answers_unless_that_means_panic,
    the_statuses_that_count_as_errors_can_be_listed,
    an_ejected_endpoint_gets_nothing,
);
