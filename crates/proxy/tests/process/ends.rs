//! The ways a proxy ends.

use std::time::{Duration, Instant};

use lateen_testkit::echo::Echo;
use lateen_testkit::http::{Answer, Call};
use lateen_testkit::ports;
use nix::sys::signal::Signal;
use tokio::task::JoinHandle;

use crate::mesh::{Mesh, cluster, endpoints, listener, route_table};
use crate::proxy::{Proxy, address, answered_by, bootstrap};

const SOON: Duration = Duration::from_secs(5);

struct Bench {
    proxy: Proxy,
    port: u16,
    _mesh: Mesh,
    _echo: Echo,
}

impl Bench {
    async fn start(args: &[&str]) -> Self {
        let echo = Echo::start("echo").await;
        let mesh = Mesh::start().await;
        let port = ports::reserve();
        mesh.set(
            "1",
            &[
                cluster("echo", 1),
                endpoints("echo", &[echo.port()]),
                listener("main", port),
                route_table("main", &[("echo", 1)]),
            ],
        );
        let proxy = Proxy::with(&bootstrap(mesh.port()), args);
        proxy.ready().await;
        answered_by(address(port), "echo").await;
        Self {
            proxy,
            port,
            _mesh: mesh,
            _echo: echo,
        }
    }

    /// A request that takes so long, already on its way.
    async fn slow(&self, millis: u64) -> JoinHandle<Result<Answer, String>> {
        let to = address(self.port);
        let call = Call::get("anything", &format!("/slow/{millis}"));
        let task = tokio::spawn(async move { call.send(to).await });
        tokio::time::sleep(Duration::from_millis(100)).await;
        task
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_in_flight_is_finished_and_the_exit_is_clean() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut bench = Bench::start(&[]).await;
        let slow = bench.slow(700).await;
        bench.proxy.signal(signal);
        let answer = slow.await.unwrap().unwrap();
        assert_eq!(answer.status, 200);
        assert_eq!(bench.proxy.ended(SOON).await.code(), Some(0));
        assert!(
            Call::get("anything", "/")
                .send(address(bench.port))
                .await
                .is_err()
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_wait_to_be_accepted_are_served_before_the_end() {
    let mut bench = Bench::start(&[]).await;
    // While the process does not run, the kernel takes connections and requests for it.
    bench.proxy.signal(Signal::SIGSTOP);
    let call = Call::get("anything", "/");
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..200 {
        let (call, to) = (call.clone(), address(bench.port));
        waiting.spawn(async move { call.send(to).await });
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    bench.proxy.signal(Signal::SIGTERM);
    bench.proxy.signal(Signal::SIGCONT);
    for answer in waiting.join_all().await {
        assert_eq!(answer.unwrap().status, 200);
    }
    assert_eq!(bench.proxy.ended(SOON).await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_proxy_ends_at_once() {
    let mut bench = Bench::start(&[]).await;
    let started = Instant::now();
    bench.proxy.signal(Signal::SIGTERM);
    assert_eq!(bench.proxy.ended(SOON).await.code(), Some(0));
    assert!(
        started.elapsed() < Duration::from_secs(1),
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_longer_than_the_drain_time_are_cut() {
    let mut bench = Bench::start(&["--drain-time-s", "0.3"]).await;
    let slow = bench.slow(20_000).await;
    bench.proxy.signal(Signal::SIGTERM);
    assert_eq!(bench.proxy.ended(SOON).await.code(), Some(0));
    assert!(slow.await.unwrap().is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_ends_it_at_once() {
    let mut bench = Bench::start(&["--drain-time-s", "30"]).await;
    let _slow = bench.slow(20_000).await;
    bench.proxy.signal(Signal::SIGTERM);
    tokio::time::sleep(Duration::from_millis(200)).await;
    bench.proxy.signal(Signal::SIGTERM);
    let code = bench.proxy.ended(SOON).await.code();
    assert_eq!(code, Some(128 + Signal::SIGTERM as i32));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_connections_are_taken_for_the_minimum_drain_time() {
    let mut bench = Bench::start(&["--min-drain-time-s", "0.6"]).await;
    bench.proxy.signal(Signal::SIGTERM);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(bench.proxy.get("/ready").await.unwrap().status, 503);
    let answer = Call::get("anything", "/")
        .send(address(bench.port))
        .await
        .unwrap();
    assert_eq!(
        (answer.status, answer.header("connection").as_str()),
        (200, "close")
    );
    assert_eq!(bench.proxy.ended(SOON).await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quitquitquit_ends_it_without_drain() {
    let mut bench = Bench::start(&[]).await;
    let _slow = bench.slow(20_000).await;
    assert_eq!(bench.proxy.post("/quitquitquit").await.unwrap().status, 200);
    assert_eq!(bench.proxy.ended(SOON).await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_leaves_with_its_parent_when_told_to() {
    let mut bench = Bench::start(&["--exit-with-parent"]).await;
    bench.proxy.close_stdin();
    assert_eq!(bench.proxy.ended(SOON).await.code(), Some(0));

    let mut bench = Bench::start(&[]).await;
    bench.proxy.close_stdin();
    tokio::time::sleep(Duration::from_millis(200)).await;
    answered_by(address(bench.port), "echo").await;
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_proxy_is_small() {
    let bench = Bench::start(&[]).await;
    let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", bench.proxy.id()));
    let Ok(rollup) = rollup else { return };
    let line = rollup
        .lines()
        .find(|line| line.starts_with("Pss_Anon:"))
        .unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    // The aim is 8 MiB of PSS for an optimised binary; what it allocates is the same in any build.
    assert!(kib < 4 * 1024, "{kib} KiB of its own memory");
}
