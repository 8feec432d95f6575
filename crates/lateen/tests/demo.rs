//! The demo as a person sees it: real processes, real sidecars, the real binary.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests stop at what is not as expected"
)]

mod support;

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use support::*;

#[test]
fn bookinfo_is_served_through_real_sidecars_and_everything_stops_on_sigterm() {
    let mut mesh = Mesh::demo(&[]);
    let page = request(mesh.gateway(), "GET", "/productpage", &[], b"").unwrap();
    assert_eq!(page.status, 200);
    assert!(
        page.body.contains("<title>Simple Bookstore App</title>"),
        "{}",
        page.body
    );
    assert!(page.head.contains("server: istio-envoy"), "{}", page.head);
    for path in [
        "/api/v1/products",
        "/api/v1/products/0",
        "/api/v1/products/0/reviews",
        "/api/v1/products/0/ratings",
    ] {
        let answer = request(mesh.gateway(), "GET", path, &[], b"").unwrap();
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        serde_json::from_str::<serde_json::Value>(&answer.body).unwrap();
    }

    let status = mesh.ok(&["proxy-status"]);
    for name in [
        "productpage-v1",
        "details-v1",
        "ratings-v1",
        "reviews-v1",
        "reviews-v2",
        "reviews-v3",
        "istio-ingressgateway",
    ] {
        assert!(status.contains(name), "{name} in {status}");
    }
    let clusters = mesh.ok(&["proxy-config", "cluster", "productpage-v1"]);
    assert!(clusters.starts_with("SERVICE FQDN"), "{clusters}");
    assert!(
        clusters.contains("reviews.default.svc.cluster.local"),
        "{clusters}"
    );
    for part in ["listener", "route", "endpoint"] {
        assert!(
            mesh.ok(&["proxy-config", part, "productpage-v1"])
                .lines()
                .count()
                > 1,
            "{part}"
        );
        let json = mesh.ok(&["proxy-config", part, "productpage-v1", "-o", "json"]);
        serde_json::from_str::<serde_json::Value>(&json).unwrap();
    }

    let mut pids = vec![
        mesh.summary["control"]["pid"].as_u64().unwrap(),
        mesh.summary["gateways"][0]["pid"].as_u64().unwrap(),
    ];
    for workload in mesh.summary["workloads"].as_array().unwrap() {
        pids.extend([
            workload["pid"].as_u64().unwrap(),
            workload["sidecarPid"].as_u64().unwrap(),
        ]);
    }
    assert_eq!(
        pids.len(),
        14,
        "control plane, gateway, six workloads with six sidecars"
    );
    assert!(pids.iter().all(|pid| is_running(*pid)));
    signal("TERM", u64::from(mesh.child.id()));
    assert!(mesh.child.wait().unwrap().success());
    eventually("every process is gone", || {
        pids.iter().all(|pid| !is_running(*pid))
    });
    for port in mesh.port_base..mesh.port_base + 200 {
        eventually(&format!("port {port} is free"), || {
            TcpListener::bind(("127.0.0.1", port)).is_ok()
        });
    }
}

/// Asks for reviews all the time from another thread; counts answers that are not 200.
struct Load {
    stop: Arc<AtomicBool>,
    failed: Arc<AtomicU64>,
    sent: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<()>,
}

impl Load {
    fn start(mesh: &Mesh) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let (failed, sent) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let proxy = loopback(
            mesh.workload("productpage-v1")["outboundPort"]
                .as_u64()
                .unwrap(),
        );
        let (stopped, failures, count) = (stop.clone(), failed.clone(), sent.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                count.fetch_add(1, Ordering::Relaxed);
                match request(proxy, "GET", "http://reviews:9080/reviews/0", &[], b"") {
                    Ok(response) if response.status == 200 => {}
                    other => {
                        eprintln!("a request failed: {other:?}");
                        failures.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        });
        Load {
            stop,
            failed,
            sent,
            thread,
        }
    }

    fn end(self) -> (u64, u64) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        (
            self.sent.load(Ordering::Relaxed),
            self.failed.load(Ordering::Relaxed),
        )
    }
}

fn split(mesh: &Mesh, requests: u32) -> BTreeMap<String, u32> {
    let mut seen = BTreeMap::new();
    for _ in 0..requests {
        *seen.entry(mesh.reviews(&[])).or_insert(0) += 1;
    }
    seen
}

#[test]
fn a_canary_takes_effect_under_load_and_its_removal_restores_the_default() {
    let mesh = Mesh::demo(&[]);
    let load = Load::start(&mesh);
    let before = split(&mesh, 60);
    assert_eq!(
        before.len(),
        3,
        "without a rule all versions answer: {before:?}"
    );

    let canary = example("bookinfo/canary.yaml");
    mesh.ok(&["apply", "-f", &canary]);
    eventually("the rule takes effect", || {
        mesh.reviews(&[("end-user", "jason")]) == "reviews-v2" && mesh.reviews(&[]) != "reviews-v2"
    });
    mesh.ok(&[
        "wait",
        "--for=distribution",
        "virtualservice",
        "reviews.default",
        "--timeout",
        "30s",
    ]);
    for _ in 0..50 {
        assert_eq!(mesh.reviews(&[("end-user", "jason")]), "reviews-v2");
    }
    // 70/30 of 600: the standard deviation is 11.2, and by chance it is more than five of them
    // once in two million runs.
    let seen = split(&mesh, 600);
    let count = |name: &str| seen.get(name).copied().unwrap_or(0);
    assert_eq!(count("reviews-v2"), 0, "{seen:?}");
    assert!(count("reviews-v1").abs_diff(420) <= 56, "{seen:?}");

    mesh.ok(&["delete", "-f", &canary]);
    eventually("all versions answer again", || split(&mesh, 30).len() == 3);
    let (sent, failed) = load.end();
    assert_eq!(failed, 0, "of {sent} requests");
    assert!(sent > 100, "only {sent} requests were under way");
}

/// Applies the canary and waits until every proxy has it: one answer from v2 proves nothing, without
/// a rule every third one is.
fn apply_everywhere(mesh: &Mesh) {
    mesh.ok(&["apply", "-f", &example("bookinfo/canary.yaml")]);
    let wait = [
        "wait",
        "--for=distribution",
        "virtualservice",
        "reviews.default",
    ];
    mesh.ok(&[&wait[..], &["--timeout", "30s"]].concat());
}

#[test]
fn jason_logs_in_and_the_page_sends_his_name_on() {
    let mesh = Mesh::demo(&[]);
    mesh.ok(&["apply", "-f", &example("bookinfo/canary.yaml")]);
    let everywhere = [
        "wait",
        "--for=distribution",
        "virtualservice",
        "reviews.default",
    ];
    mesh.ok(&[&everywhere[..], &["--timeout", "30s"]].concat());
    let form = [("content-type", "application/x-www-form-urlencoded")];
    let login = request(
        mesh.gateway(),
        "POST",
        "/login",
        &form,
        b"username=jason&passwd=x",
    )
    .unwrap();
    assert!(matches!(login.status, 302 | 303), "{login:?}");
    let cookie = login
        .head
        .lines()
        .find(|line| line.to_ascii_lowercase().starts_with("set-cookie:"))
        .unwrap();
    let cookie = cookie
        .split_once(": ")
        .unwrap()
        .1
        .split(';')
        .next()
        .unwrap()
        .to_string();
    eventually("jason's page comes from v2", || {
        let page = request(
            mesh.gateway(),
            "GET",
            "/productpage",
            &[("cookie", &cookie)],
            b"",
        )
        .unwrap();
        page.body.contains("jason") && page.body.contains("reviews-v2")
    });
    for _ in 0..10 {
        let page = request(
            mesh.gateway(),
            "GET",
            "/productpage",
            &[("cookie", &cookie)],
            b"",
        )
        .unwrap();
        assert!(page.body.contains("reviews-v2"), "{}", page.body);
    }
}

#[test]
fn killed_processes_come_back_and_nothing_is_lost() {
    let mesh = Mesh::demo(&[]);
    apply_everywhere(&mesh);

    // The control plane: traffic goes on, it comes back, and it knows everything.
    let load = Load::start(&mesh);
    signal("KILL", mesh.summary["control"]["pid"].as_u64().unwrap());
    for _ in 0..50 {
        assert_eq!(mesh.reviews(&[("end-user", "jason")]), "reviews-v2");
    }
    eventually("the control plane is back with all proxies", || {
        let output = mesh.run(&["proxy-status", "-o", "json"]);
        let list: Option<serde_json::Value> = serde_json::from_slice(&output.stdout).ok();
        output.status.success() && list.and_then(|l| Some(l.as_array()?.len())) == Some(7)
    });
    assert!(mesh.ok(&["get", "vs", "reviews"]).contains("reviews"));
    let (sent, failed) = load.end();
    assert_eq!(
        failed, 0,
        "of {sent} requests while the control plane was away"
    );

    // A sidecar and an app: restarted, and the mesh serves again.
    for pid in ["sidecarPid", "pid"] {
        signal("KILL", mesh.workload("reviews-v2")[pid].as_u64().unwrap());
        eventually("reviews-v2 answers again", || {
            let answer =
                mesh.through_productpage("http://reviews:9080/reviews/0", &[("end-user", "jason")]);
            answer.status == 200 && answer.body.contains("reviews-v2")
        });
    }
}

#[test]
fn two_demos_run_side_by_side_and_a_restart_keeps_what_was_applied() {
    let first = Mesh::demo(&[]);
    let mut second = Mesh::demo(&[]);
    second.ok(&["apply", "-f", &example("bookinfo/canary.yaml")]);
    assert!(
        !String::from_utf8_lossy(&first.run(&["get", "vs", "reviews"]).stdout).contains("reviews ")
    );
    signal("TERM", u64::from(second.child.id()));
    second.child.wait().unwrap();
    let run_dir = std::mem::replace(&mut second.run_dir, tempfile::tempdir().unwrap());
    let port = (second.port_base + 80).to_string();
    let again = Mesh::start_in(&["demo", "--port", &port], second.port_base, run_dir);
    assert!(again.ok(&["get", "vs", "reviews"]).contains("reviews"));
    assert_eq!(again.reviews(&[("end-user", "jason")]), "reviews-v2");
}

#[test]
fn a_taken_port_is_one_clear_error() {
    let base = free_block();
    let taken = TcpListener::bind(("127.0.0.1", base + 88)).unwrap();
    let run_dir = tempfile::tempdir().unwrap();
    let output = lateen()
        .args([
            "demo",
            "--json",
            "--port",
            &(base + 80).to_string(),
            "--port-base",
            &base.to_string(),
            "--run-dir",
        ])
        .arg(run_dir.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        text.contains(&(base + 88).to_string()) && text.contains("--port-base"),
        "{text}"
    );
    drop(taken);
}

#[test]
fn a_gateway_on_a_taken_port_is_refused_by_the_proxy_and_said_so_while_the_rest_serves() {
    let mesh = Mesh::demo(&[]);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let (worked, text) = mesh.apply(&format!(
        "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{name: blocked, namespace: default}}\n\
         spec: {{selector: {{istio: ingressgateway}}, servers: [{{port: {{number: {port}, name: http, protocol: HTTP}}, hosts: [\"*\"]}}]}}\n"
    ));
    assert!(worked, "{text}");
    eventually("proxy-status names the port that is taken", || {
        let status = mesh.ok(&["proxy-status", "-o", "json"]);
        status.contains(&format!("127.0.0.1_{port}")) && status.contains("is taken")
    });
    assert_eq!(
        request(mesh.gateway(), "GET", "/productpage", &[], b"")
            .unwrap()
            .status,
        200
    );
}

#[test]
fn what_was_deleted_stays_deleted_and_the_demo_says_that_its_page_does_not_answer() {
    let mut first = Mesh::demo(&[]);
    first.ok(&["delete", "vs", "bookinfo"]);
    signal("TERM", u64::from(first.child.id()));
    first.child.wait().unwrap();
    let run_dir = std::mem::replace(&mut first.run_dir, tempfile::tempdir().unwrap());
    let port = (first.port_base + 80).to_string();
    let again = Mesh::start_in(&["demo", "--port", &port], first.port_base, run_dir);
    assert_eq!(again.summary["ready"], false);
    let problem = again.summary["problem"].as_str().unwrap();
    assert!(problem.ends_with("/productpage answers 404"), "{problem}");
    assert!(
        !again
            .ok(&["get", "vs", "-A", "-o", "name"])
            .contains("bookinfo")
    );
}

#[test]
fn a_directory_of_configuration_is_applied_and_watched() {
    let config = tempfile::tempdir().unwrap();
    let mesh = Mesh::demo(&["--config", config.path().to_str().unwrap()]);
    let file = config.path().join("canary.yaml");
    std::fs::copy(example("bookinfo/canary.yaml"), &file).unwrap();
    let jason = || (0..12).all(|_| mesh.reviews(&[("end-user", "jason")]) == "reviews-v2");
    eventually("the rule of the file applies", jason);
    std::fs::remove_file(&file).unwrap();
    eventually("the rule is gone with its file", || {
        split(&mesh, 30).len() == 3
    });
}

/// With a Gateway for HTTPS and the Secret that it names, the demo's pages come over TLS.
#[test]
fn the_demos_gateway_serves_https_when_its_certificate_is_applied() {
    use lateen_testkit::certificates::{Authority, file};

    let mesh = Mesh::demo(&[]);
    let https = mesh.gateway().port() + 363;
    let authority = Authority::new("authority");
    let pair = authority.issue("bookinfo", &["bookinfo.example.com"]);
    let block = |pem: &str| pem.trim_end().replace('\n', "\n    ");
    let yaml = format!(
        "apiVersion: v1\nkind: Secret\ntype: kubernetes.io/tls\n\
         metadata: {{name: bookinfo-tls, namespace: istio-system}}\n\
         stringData:\n  tls.crt: |\n    {}\n  tls.key: |\n    {}\n---\n\
         apiVersion: networking.istio.io/v1\nkind: Gateway\n\
         metadata: {{name: secure, namespace: default}}\n\
         spec:\n  selector: {{istio: ingressgateway}}\n  servers:\n  \
         - port: {{number: 443, name: https, protocol: HTTPS}}\n    \
         hosts: [bookinfo.example.com]\n    \
         tls: {{mode: SIMPLE, credentialName: bookinfo-tls}}\n---\n\
         apiVersion: networking.istio.io/v1\nkind: VirtualService\n\
         metadata: {{name: secure, namespace: default}}\n\
         spec: {{hosts: [bookinfo.example.com], gateways: [secure], \
         http: [{{route: [{{destination: {{host: productpage, port: {{number: 9080}}}}}}]}}]}}\n",
        block(&pair.chain),
        block(&pair.key)
    );
    let (applied, said) = mesh.apply(&yaml);
    assert!(applied, "{said}");
    assert!(!said.contains(pair.key.lines().nth(1).unwrap()), "{said}");
    let roots = file(mesh.run_dir.path(), "roots.pem", &authority.pem);
    let started = Instant::now();
    loop {
        let curl = std::process::Command::new("curl")
            .args(["-sS", "--max-time", "10", "--cacert"])
            .arg(&roots)
            .args([
                "--resolve",
                &format!("bookinfo.example.com:{https}:127.0.0.1"),
            ])
            .arg(format!("https://bookinfo.example.com:{https}/productpage"))
            .output()
            .unwrap();
        let page = String::from_utf8_lossy(&curl.stdout);
        if curl.status.success() && page.contains("<title>Simple Bookstore App</title>") {
            break;
        }
        let why = String::from_utf8_lossy(&curl.stderr);
        assert!(started.elapsed() < support::PATIENCE, "{why}{page}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}
