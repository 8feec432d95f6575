//! The ways a proxy ends.

use std::time::{Duration, Instant};

use lateen_testkit::echo::Echo;
use lateen_testkit::http::{Answer, Call};
use lateen_testkit::{PATIENCE, eventually, ports};
use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::mesh::{Mesh, cluster, endpoints, listener, route_table};
use crate::proxy::{Proxy, address, answered_by, bootstrap};

/// A proxy ends within this on a slow machine, too.
const SOON: Duration = Duration::from_secs(20);
/// How long requests and draining take that are not waited for: longer than [`SOON`].
const LONG: u64 = 60_000;
const DRAIN_LONG: [&str; 2] = ["--drain-time-s", "60"];

struct Bench {
    proxy: Proxy,
    port: u16,
    _mesh: Mesh,
    echo: Echo,
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
            echo,
        }
    }

    /// A request that takes so long, already on its way.
    async fn slow(&self, millis: u64) -> JoinHandle<Result<Answer, String>> {
        let to = address(self.port);
        let path = format!("/slow/{millis}");
        let call = Call::get("anything", &path);
        let task = tokio::spawn(async move { call.send(to).await });
        eventually("the request is at the upstream", async || {
            match self.echo.hits(&path) {
                0 => Err("not yet".to_owned()),
                _ => Ok(()),
            }
        })
        .await;
        task
    }

    /// Waits until the proxy has heard its first signal.
    async fn draining(&self) {
        eventually("it is draining", async || {
            match self.proxy.get("/ready").await?.status {
                503 => Ok(()),
                other => Err(format!("/ready says {other}")),
            }
        })
        .await;
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
    let mut bench = Bench::start(&DRAIN_LONG).await;
    // While the process does not run, the kernel takes connections and requests for it.
    bench.proxy.signal(Signal::SIGSTOP);
    let mut waiting = Vec::new();
    for _ in 0..200 {
        let mut stream = TcpStream::connect(address(bench.port)).await.unwrap();
        let request = b"GET / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n";
        stream.write_all(request).await.unwrap();
        waiting.push(stream);
    }
    bench.proxy.signal(Signal::SIGTERM);
    bench.proxy.signal(Signal::SIGCONT);
    for mut stream in waiting {
        let mut answer = String::new();
        let read = stream.read_to_string(&mut answer);
        tokio::time::timeout(PATIENCE, read).await.unwrap().unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer:?}");
    }
    assert_eq!(bench.proxy.ended(SOON).await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_proxy_ends_at_once() {
    let mut bench = Bench::start(&DRAIN_LONG).await;
    bench.proxy.signal(Signal::SIGTERM);
    assert_eq!(bench.proxy.ended(SOON).await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_longer_than_the_drain_time_are_cut() {
    let mut bench = Bench::start(&["--drain-time-s", "0.3"]).await;
    let slow = bench.slow(LONG).await;
    bench.proxy.signal(Signal::SIGTERM);
    assert_eq!(bench.proxy.ended(SOON).await.code(), Some(0));
    assert!(slow.await.unwrap().is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_ends_it_at_once() {
    let mut bench = Bench::start(&DRAIN_LONG).await;
    let _slow = bench.slow(LONG).await;
    bench.proxy.signal(Signal::SIGTERM);
    bench.draining().await;
    bench.proxy.signal(Signal::SIGTERM);
    let code = bench.proxy.ended(SOON).await.code();
    assert_eq!(code, Some(128 + Signal::SIGTERM as i32));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_connections_are_taken_for_the_minimum_drain_time() {
    let mut bench = Bench::start(&["--min-drain-time-s", "60"]).await;
    bench.proxy.signal(Signal::SIGTERM);
    bench.draining().await;
    eventually("clients are asked to leave", async || {
        let call = Call::get("anything", "/");
        let answer = call.send(address(bench.port)).await.unwrap();
        match (answer.status, answer.header("connection").as_str()) {
            (200, "close") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    bench.proxy.signal(Signal::SIGTERM);
    bench.proxy.ended(SOON).await;

    let mut bench = Bench::start(&["--min-drain-time-s", "0.6"]).await;
    let started = Instant::now();
    bench.proxy.signal(Signal::SIGTERM);
    assert_eq!(bench.proxy.ended(SOON).await.code(), Some(0));
    let took = started.elapsed();
    assert!(took >= Duration::from_millis(600), "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quitquitquit_ends_it_without_drain() {
    let mut bench = Bench::start(&DRAIN_LONG).await;
    let _slow = bench.slow(LONG).await;
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
