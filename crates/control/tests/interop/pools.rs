//! Connection pools: what their limits, times and protocols do to real upstreams.

use std::time::{Duration, Instant};

use lateen_testkit::echo::TcpEcho;
use lateen_testkit::envoy::Plane;
use lateen_testkit::http::Call;
use lateen_testkit::{PATIENCE, eventually};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};

use crate::balancing::{HOST, Pool};
use crate::mesh::{Mesh, service, workload};
use crate::sidecar::Sidecar;

const CLUSTER: &str = "cluster.outbound|80||pool.default.svc.cluster.local";

async fn stat(pool: &Pool, name: &str) -> u64 {
    pool.gateway.envoy.stat(&format!("{CLUSTER}.{name}")).await
}

/// Statuses of requests at the same time.
async fn at_once(pool: &Pool, path: &str, count: usize) -> Vec<(u16, String)> {
    let requests: Vec<_> = (0..count)
        .map(|_| {
            let (call, to) = (Call::get(HOST, path), pool.gateway.http);
            tokio::spawn(async move { call.send(to).await.unwrap() })
        })
        .collect();
    let mut answers = Vec::new();
    for request in requests {
        let answer = request.await.unwrap();
        answers.push((answer.status, answer.body));
    }
    answers
}

async fn what_is_above_the_limits_is_refused(plane: Plane) {
    let test = "what_is_above_the_limits_is_refused";
    let policy = "connectionPool: {tcp: {maxConnections: 1}, http: {http1MaxPendingRequests: 1}}";
    let Some(pool) = Pool::start(plane, test, &[("a", "", 1)], policy).await else {
        return;
    };
    for policy in [policy, "connectionPool: {http: {http2MaxRequests: 1}}"] {
        pool.set_policy(policy).await;
        eventually(&format!("{policy} refuses some"), async || {
            let answers = at_once(&pool, "/slow/300", 10).await;
            let refused = |body: &str| body.ends_with("reset reason: overflow");
            let over = answers
                .iter()
                .filter(|(status, body)| *status == 503 && refused(body));
            let (over, good) = (
                over.count(),
                answers.iter().filter(|(s, _)| *s == 200).count(),
            );
            match over > 0 && good > 0 && over + good == 10 {
                true => Ok(()),
                false => Err(format!("{answers:?}")),
            }
        })
        .await;
    }
    pool.set_policy("connectionPool: {tcp: {connectTimeout: 3s}}")
        .await;
    eventually("nothing is refused without limits", async || {
        let answers = at_once(&pool, "/slow/300", 10).await;
        match answers.iter().all(|(status, _)| *status == 200) {
            true => Ok(()),
            false => Err(format!("{answers:?}")),
        }
    })
    .await;
}

async fn connections_end_by_their_number_of_requests_their_idle_time_and_their_age(plane: Plane) {
    let test = "connections_end_by_their_number_of_requests_their_idle_time_and_their_age";
    let policy = "connectionPool: {http: {maxRequestsPerConnection: 1}}";
    let Some(pool) = Pool::start(plane, test, &[("a", "", 1)], policy).await else {
        return;
    };
    let before = stat(&pool, "upstream_cx_total").await;
    for _ in 0..5 {
        assert_eq!(pool.send(&Call::get(HOST, "/")).await.status, 200);
    }
    assert_eq!(stat(&pool, "upstream_cx_total").await, before + 5);

    pool.set_policy("connectionPool: {http: {idleTimeout: 1s}}")
        .await;
    eventually("a connection was idle for too long", async || {
        // The first request may still go over a connection of the time before.
        assert_eq!(pool.send(&Call::get(HOST, "/")).await.status, 200);
        tokio::time::sleep(Duration::from_secs(2)).await;
        match stat(&pool, "upstream_cx_idle_timeout").await {
            0 => Err("none was".to_owned()),
            _ => Ok(()),
        }
    })
    .await;

    pool.set_policy("connectionPool: {tcp: {maxConnectionDuration: 1s}}")
        .await;
    eventually("a connection is too old", async || {
        assert_eq!(pool.send(&Call::get(HOST, "/")).await.status, 200);
        match stat(&pool, "upstream_cx_max_duration_reached").await {
            0 => Err("none is".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
}

async fn connections_are_probed_when_they_are_silent(plane: Plane) {
    let test = "connections_are_probed_when_they_are_silent";
    let policy = "connectionPool: {tcp: {tcpKeepalive: {time: 77s, interval: 7s, probes: 3}}}";
    let Some(pool) = Pool::start(plane, test, &[("a", "", 1)], policy).await else {
        return;
    };
    assert_eq!(pool.send(&Call::get(HOST, "/")).await.status, 200);
    // proc(5): remote address in hexadecimal, state 01 is open, timer 02 is keepalive; the timer
    // runs in hundredths of a second.
    let remote = format!("0100007F:{:04X}", pool.echoes["a"].port());
    eventually("the connection has a keepalive timer", async || {
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let lines = table
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>());
        let mut of_echo = lines.filter(|parts| parts[2] == remote && parts[3] == "01");
        let probed = |parts: &Vec<&str>| {
            let (kind, when) = parts[5].split_once(':').unwrap();
            let when = u64::from_str_radix(when, 16).unwrap();
            kind == "02" && (1..=7700).contains(&when)
        };
        match of_echo.find(probed) {
            Some(_) => Ok(()),
            None => Err(table.clone()),
        }
    })
    .await;
}

async fn the_protocol_towards_the_upstream_can_be_chosen(plane: Plane) {
    let test = "the_protocol_towards_the_upstream_can_be_chosen";
    let upgrade = "connectionPool: {http: {h2UpgradePolicy: UPGRADE}}";
    let Some(pool) = Pool::start(plane, test, &[("a", "", 1)], upgrade).await else {
        return;
    };
    let version = async |expect: &str| {
        eventually(&format!("the upstream sees {expect}"), async || {
            let answer = pool.send(&Call::get(HOST, "/")).await;
            match answer.json()["version"].as_str() {
                Some(version) if version == expect => Ok(()),
                _ => Err(format!("{answer:?}")),
            }
        })
        .await;
    };
    version("HTTP/2.0").await;
    // One request at a time makes as many connections as requests.
    pool.set_policy("connectionPool: {http: {h2UpgradePolicy: UPGRADE, maxConcurrentStreams: 1}}")
        .await;
    version("HTTP/2.0").await;
    // What was made for one time of eight requests stays for the next: two workers would do with
    // two connections otherwise.
    let before = stat(&pool, "upstream_cx_http2_total").await;
    eventually("each request has a connection of its own", async || {
        let answers = at_once(&pool, "/slow/1000", 8).await;
        assert!(
            answers.iter().all(|(status, _)| *status == 200),
            "{answers:?}"
        );
        match stat(&pool, "upstream_cx_http2_total").await - before {
            5.. => Ok(()),
            few => Err(format!("{few} new connections")),
        }
    })
    .await;
    pool.set_policy("connectionPool: {http: {h2UpgradePolicy: DO_NOT_UPGRADE}}")
        .await;
    version("HTTP/1.1").await;
    // A port of protocol HTTP/2, but the client speaks HTTP/1.1.
    let http2 =
        service("pool", "http", 80).replace("name: http,", "name: http, appProtocol: http2,");
    pool.mesh.apply(&http2).await;
    pool.set_policy("connectionPool: {http: {http2MaxRequests: 10}}")
        .await;
    version("HTTP/2.0").await;
    pool.set_policy("connectionPool: {http: {useClientProtocol: true}}")
        .await;
    version("HTTP/1.1").await;
    assert_eq!(pool.gateway.envoy.rejected().await, Default::default());
}

async fn an_upstream_that_answers_no_ping_is_given_up(plane: Plane) {
    let test = "an_upstream_that_answers_no_ping_is_given_up";
    let policy = "connectionPool: {http: {h2UpgradePolicy: UPGRADE, http2KeepAlive: {interval: 1s, timeout: 1s}}}";
    let Some(pool) = Pool::start(plane, test, &[], policy).await else {
        return;
    };
    // Takes connections and everything that comes, and never says a word.
    let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = mute.local_addr().unwrap().port();
    let task = tokio::spawn(async move {
        while let Ok((mut stream, _)) = mute.accept().await {
            tokio::spawn(async move {
                let mut buffer = [0; 1024];
                while matches!(stream.read(&mut buffer).await, Ok(1..)) {}
            });
        }
    });
    pool.mesh
        .apply(&workload("pool", "mute", "http", port))
        .await;
    pool.mesh.distributed(1).await;
    let answer = eventually("the request ends", async || {
        let call = Call::get(HOST, "/");
        let answer = tokio::time::timeout(PATIENCE, pool.send(&call)).await;
        let answer = answer.expect("a request ends");
        match answer.body.contains("connection termination") {
            true => Ok(answer),
            false => Err(format!("{answer:?}")),
        }
    })
    .await;
    assert_eq!(answer.status, 503);
    task.abort();
}

async fn retries_are_limited_by_number_and_by_budget(plane: Plane) {
    let test = "retries_are_limited_by_number_and_by_budget";
    let policy = "connectionPool: {http: {maxRetries: 1}}";
    let Some(pool) = Pool::start(plane, test, &[("a", "", 1)], policy).await else {
        return;
    };
    let route =
        "  - retries: {attempts: 3, retryOn: 5xx}\n    route: [{destination: {host: pool}}]";
    pool.mesh.apply(&crate::gateway::rule(HOST, route)).await;
    pool.mesh.distributed(1).await;
    let mut overflows = 0;
    for policy in [policy, "retryBudget: {percent: 1, minRetryConcurrency: 1}"] {
        pool.set_policy(policy).await;
        eventually(&format!("{policy} holds retries back"), async || {
            at_once(&pool, "/status/500", 30).await;
            match stat(&pool, "upstream_rq_retry_overflow").await {
                now if now > overflows => Ok(()),
                now => Err(format!("{now}")),
            }
        })
        .await;
        overflows = stat(&pool, "upstream_rq_retry_overflow").await;
    }
}

async fn tcp_connections_end_when_they_are_idle_and_when_they_are_old(plane: Plane) {
    let test = "tcp_connections_end_when_they_are_idle_and_when_they_are_old";
    let mesh = Mesh::start().await;
    let echo = TcpEcho::start("db").await;
    mesh.create(
        &(service("database", "tcp", 3306) + &workload("database", "v1", "tcp", echo.port())),
    )
    .await;
    let Some(sidecar) = Sidecar::start(plane, &mesh, test).await else {
        return;
    };
    for setting in ["idleTimeout: 1s", "maxConnectionDuration: 1s"] {
        let document = format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
             metadata: {{name: database, namespace: default}}\n\
             spec: {{host: database, trafficPolicy: {{connectionPool: {{tcp: {{{setting}}}}}}}}}\n"
        );
        mesh.apply(&document).await;
        mesh.distributed(1).await;
        eventually(&format!("{setting} ends a connection"), async || {
            let mut stream = TcpStream::connect(sidecar.database).await.unwrap();
            let started = Instant::now();
            let mut all = Vec::new();
            let read = tokio::time::timeout(Duration::from_secs(3), stream.read_to_end(&mut all));
            match read.await {
                Ok(_) if all == b"db\n" && started.elapsed() > Duration::from_millis(700) => Ok(()),
                other => Err(format!("{other:?} {all:?} after {:?}", started.elapsed())),
            }
        })
        .await;
    }
}

on_both!(
    what_is_above_the_limits_is_refused,
    connections_end_by_their_number_of_requests_their_idle_time_and_their_age,
    connections_are_probed_when_they_are_silent,
    the_protocol_towards_the_upstream_can_be_chosen,
    an_upstream_that_answers_no_ping_is_given_up,
    retries_are_limited_by_number_and_by_budget,
    tcp_connections_end_when_they_are_idle_and_when_they_are_old,
);
