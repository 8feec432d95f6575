//! `lateen up` as a person uses it: processes, signals, ports, bad input. The sidecars are left
//! out (`proxy: external`); `demo.rs` has them.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests stop at what is not as expected"
)]

mod support;

use std::net::TcpListener;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::{Mesh, eventually, free_block, is_running, lateen, loopback, request, signal};

const SHELL: &str = "
workloads:
  - name: app
    proxy: external
    command: [sh, -c, 'echo $$$$ > pids; sleep 1000 & echo $! >> pids; wait']
";

const DETAILS: &str = "
workloads:
  - name: details-v1
    service: details
    proxy: external
    ports: [{port: 9080}]
    command: [lateen, bookinfo, details, --port, $(PORT)]
    readinessPath: /health
  - name: shell
    proxy: external
    ports: [{port: 9081}]
    command: [sh, -c, 'exec $LATEEN bookinfo details --port $PORT']
    readinessPath: /health
";

fn details() -> String {
    let lateen = env!("CARGO_BIN_EXE_lateen");
    DETAILS.replace("$LATEEN", lateen)
}

/// Starts a mesh from a file's text, which stays in its run directory.
fn up(text: &str) -> Mesh {
    let run_dir = tempfile::tempdir().unwrap();
    std::fs::write(run_dir.path().join("mesh.yaml"), text).unwrap();
    up_in(run_dir, free_block())
}

fn up_in(run_dir: tempfile::TempDir, port_base: u16) -> Mesh {
    let file = run_dir.path().join("mesh.yaml");
    Mesh::start_in(&["up", "-f", file.to_str().unwrap()], port_base, run_dir)
}

fn run(args: &[&str]) -> Output {
    lateen().args(args).stdin(Stdio::null()).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// Status and body; none if nobody answers.
fn get(port: &Value, path: &str) -> Option<(u16, String)> {
    let response = request(loopback(port.as_u64().unwrap()), "GET", path, &[], b"").ok()?;
    Some((response.status, response.body))
}

/// Every process of a mesh, as of its start.
fn pids(mesh: &Mesh) -> Vec<u64> {
    let list = |name: &str| mesh.summary[name].as_array().unwrap().clone();
    let rows = [
        list("workloads"),
        list("gateways"),
        vec![mesh.summary["control"].clone()],
    ]
    .concat();
    rows.iter()
        .flat_map(|row| [row["pid"].as_u64(), row["sidecarPid"].as_u64()])
        .flatten()
        .collect()
}

/// Every port of a mesh, as of its start.
fn ports(json: &Value) -> Vec<u16> {
    let of_field = |(name, value): (&String, &Value)| match value.as_u64() {
        Some(port) if name.ends_with("Port") => vec![u16::try_from(port).unwrap()],
        _ => ports(value),
    };
    match json {
        Value::Object(fields) => fields.iter().flat_map(of_field).collect(),
        Value::Array(items) => items.iter().flat_map(ports).collect(),
        _ => Vec::new(),
    }
}

fn assert_nothing_left(pids: &[u64], ports: &[u16]) {
    for pid in pids {
        eventually(&format!("process {pid} is gone"), || !is_running(*pid));
    }
    for port in ports {
        let is_free = || TcpListener::bind(("127.0.0.1", *port)).is_ok();
        eventually(&format!("port {port} is free"), is_free);
    }
}

/// Ends a mesh by SIGTERM: how long it took, and its exit code.
fn terminate(mesh: &mut Mesh) -> (Duration, Option<i32>) {
    let began = Instant::now();
    signal("TERM", u64::from(mesh.child.id()));
    let status = mesh.child.wait().unwrap();
    (began.elapsed(), status.code())
}

/// The process ids that the shell of `SHELL` has written down.
fn shell_pids(mesh: &Mesh) -> Vec<u64> {
    let pids = || -> Vec<u64> {
        let text = read(&mesh.run_dir.path().join("pids"));
        text.lines().filter_map(|line| line.parse().ok()).collect()
    };
    eventually("the shell has started", || pids().len() == 2);
    pids()
}

#[test]
fn a_mesh_comes_up_and_sigterm_leaves_nothing() {
    let mut mesh = up(&details());
    assert_eq!(mesh.summary["ready"], true);
    for (name, offset) in [("details-v1", 103), ("shell", 113)] {
        let port = &mesh.workload(name)["ports"][0]["appPort"];
        assert_eq!(port.as_u64(), Some(u64::from(mesh.port_base) + offset));
        assert_eq!(get(port, "/health").unwrap().0, 200);
    }
    let (pids, ports) = (pids(&mesh), ports(&mesh.summary));
    assert_eq!(pids.len(), 3, "{}", mesh.summary);
    assert!(ports.len() >= 9, "{}", mesh.summary);
    let (took, code) = terminate(&mut mesh);
    assert_eq!(code, Some(0));
    assert!(took < Duration::from_secs(4), "{took:?}");
    assert_nothing_left(&pids, &ports);
}

#[test]
fn a_supervisor_that_is_killed_leaves_nothing_and_the_next_one_starts_at_once() {
    let mut mesh = up(&(details() + &SHELL.replace("\nworkloads:\n", "")));
    let (mut pids, ports) = (pids(&mesh), ports(&mesh.summary));
    pids.extend(shell_pids(&mesh));
    mesh.child.kill().unwrap();
    mesh.child.wait().unwrap();
    let run_dir = std::mem::replace(&mut mesh.run_dir, tempfile::tempdir().unwrap());
    let mut again = up_in(run_dir, mesh.port_base);
    assert_nothing_left(&pids, &[]);
    assert_eq!(terminate(&mut again).1, Some(0));
    assert_nothing_left(&[], &ports);
}

#[test]
fn killed_processes_come_back_and_nothing_is_lost() {
    let mesh = up(&details());
    let api = &mesh.summary["control"]["apiPort"];
    let entry = "/apis/networking.istio.io/v1/namespaces/default/workloadentries/details-v1";
    assert_eq!(get(api, entry).unwrap().0, 200);
    let starts = |name: &str| {
        let log = read(&mesh.run_dir.path().join(format!("logs/{name}.log")));
        log.matches(&format!("lateen started {name} as process"))
            .count()
    };
    for name in ["details-v1", "shell", "control"] {
        let pid = match name {
            "control" => mesh.summary["control"]["pid"].as_u64().unwrap(),
            workload => mesh.workload(workload)["pid"].as_u64().unwrap(),
        };
        signal("KILL", pid);
        // Once more where its port was not free yet.
        eventually("it is started again", || starts(name) >= 2);
        eventually("the killed process is gone", || !is_running(pid));
    }
    for name in ["details-v1", "shell"] {
        let port = &mesh.workload(name)["ports"][0]["appPort"];
        eventually("it answers again", || {
            get(port, "/health").is_some_and(|(s, _)| s == 200)
        });
    }
    eventually("the entry is there", || {
        get(api, entry).is_some_and(|(s, _)| s == 200)
    });
}

#[test]
fn an_application_that_crashes_at_start_is_shown_with_its_last_line() {
    let mesh = up("
workloads:
  - name: broken
    proxy: external
    ports: [{port: 80}]
    command: [sh, -c, 'echo loading; echo no such table >&2; exit 3']
  - name: fine
    proxy: external
    command: [sleep, '1000']
  - name: missing
    proxy: external
    command: [no-such-program]
");
    assert_eq!(mesh.summary["ready"], false);
    assert_eq!(
        mesh.workload("broken")["state"],
        "exited with code 3: no such table"
    );
    assert_eq!(mesh.workload("fine")["ready"], true);
    let missing = mesh.workload("missing")["state"].as_str().unwrap();
    assert!(
        missing.contains("cannot start no-such-program"),
        "{missing}"
    );
    let api = &mesh.summary["control"]["apiPort"];
    let entry = "/apis/networking.istio.io/v1/namespaces/default/workloadentries/broken";
    eventually("the broken workload is out of service", || {
        get(api, entry).is_some_and(|(_, body)| body.contains("\"False\""))
    });
}

#[test]
fn a_user_command_and_what_it_started_end_with_the_mesh() {
    let mut mesh = up(SHELL);
    let pids = [pids(&mesh), shell_pids(&mesh)].concat();
    assert!(pids.iter().all(|pid| is_running(*pid)));
    terminate(&mut mesh);
    assert_nothing_left(&pids, &[]);
}

#[test]
fn a_second_mesh_in_the_same_run_directory_is_refused_and_one_beside_it_runs() {
    let mesh = up(SHELL);
    let run_dir = mesh.run_dir.path();
    let file = run_dir.join("mesh.yaml");
    let base = free_block().to_string();
    let second = lateen()
        .args(["up", "--port-base", &base, "-f"])
        .args([file.as_os_str(), "--run-dir".as_ref(), run_dir.as_os_str()])
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(1));
    let message = stderr(&second);
    for part in [
        &format!("process {}", mesh.child.id()),
        "--run-dir",
        "--port-base",
    ] {
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(up(SHELL).summary["ready"], true);
}

#[test]
fn a_taken_port_is_an_error_that_names_the_port_its_user_and_the_remedy() {
    let check = |taken: u16, expect: [&str; 2], args: &[&str]| {
        let holder = TcpListener::bind(("127.0.0.1", taken)).unwrap();
        let run_dir = tempfile::tempdir().unwrap();
        let began = Instant::now();
        let output = run(&[args, &["--run-dir", run_dir.path().to_str().unwrap()]].concat());
        assert_eq!(output.status.code(), Some(1));
        let message = stderr(&output);
        assert!(
            message.contains(&format!("port {taken} is taken")),
            "{message}"
        );
        assert!(
            expect.iter().all(|part| message.contains(part)),
            "{message}"
        );
        // It does not wait for the port, nor for the mesh.
        assert!(began.elapsed() < Duration::from_secs(20));
        drop(holder);
    };
    let base = free_block();
    let (port, base_text) = (base + 80, base.to_string());
    let port_text = port.to_string();
    let args = ["demo", "--port", &port_text, "--port-base", &base_text];
    check(
        port,
        ["the gateway istio-ingressgateway", "--port PORT"],
        &args,
    );
    check(
        base + 88,
        ["the control plane (configuration API)", "--port-base PORT"],
        &args,
    );
    check(
        base + 132,
        ["the inbound listener of reviews-v1", "--port-base PORT"],
        &args,
    );
    check(
        base + 103,
        ["the application productpage-v1", "--port-base"],
        &args,
    );
}

#[test]
fn a_wrong_mesh_file_gets_every_error_with_its_line() {
    let check = |text: &str, expect: &[&str]| {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("mesh.yaml");
        std::fs::write(&file, text).unwrap();
        let run_dir = dir.path().join("run");
        let output = run(&[
            "up",
            "-f",
            file.to_str().unwrap(),
            "--run-dir",
            run_dir.to_str().unwrap(),
        ]);
        let message = stderr(&output);
        assert_eq!(output.status.code(), Some(65), "{message}");
        for part in expect {
            assert!(message.contains(part), "{part:?} is missing in\n{message}");
        }
        assert!(!run_dir.exists(), "nothing is started for a wrong file");
    };
    check("", &["the mesh file is empty", "workloads"]);
    check(
        "workloads: []\n",
        &["mesh.yaml:1:", "the mesh has no workloads"],
    );
    check("workloads:\n  - name: [\n", &["mesh.yaml:"]);
    check(
        "apiVersion: v1\nkind: Service\n",
        &[":1:13: ", "not a mesh file", "lateen apply"],
    );
    check(
        "workloads:\n  - nam: a\n    comand: [x]\n    ports: [{port: 70000}, {port: web}]\n",
        &[
            ":2:5: error: workloads[0].nam: unknown field",
            "did you mean \"name\"",
            ":3:5: error: workloads[0].comand: unknown field",
            "did you mean \"command\"",
            ":4:20: error: workloads[0].ports[0].port: 70000 is out of range",
            "workloads[0].ports[1].port: expected a number",
        ],
    );
    check(
        "
workloads:
  - name: Web_1
    command: []
    ports:
      - port: 80
        protocol: quic
    readinessPath: health
  - name: a
    service: s
    command: [x]
    ports: [{port: 80}, {port: 80}]
  - name: a
    service: s
    command: [x]
    ports: [{port: 80, protocol: tcp}]
  - name: control
    command: [x]
    env: {A: 1}
",
        &[
            ":19:14: error: workloads[3].env.A: expected a string",
            "quote it: \"1\"",
        ],
    );
    check(
        "
workloads:
  - name: Web_1
    command: []
    ports:
      - port: 80
        protocol: quic
    readinessPath: health
  - name: a
    service: s
    command: [x]
    ports: [{port: 80}, {port: 80}]
  - name: a
    service: s
    command: [x]
    ports: [{port: 80, protocol: tcp}]
  - name: control
    command: [x]
",
        &[
            ":3:11: error: workloads[0].name: \"Web_1\" cannot be the name of a workload",
            ":4:5: error: workloads[0].command: the workload has no command to run",
            ":7:19: error: workloads[0].ports[0].protocol: \"quic\" is not a protocol",
            ":8:20: error: workloads[0].readinessPath: \"health\" is not the path of a URL; write \"/health\"",
            ":12:32: error: workloads[1].ports[1].port: port 80 is listed twice",
            ":13:11: error: workloads[2].name: workloads[1] has the name \"a\" too",
            "workloads[2].ports[0]: port 80 of service \"s\" is \"tcp\" (tcp) here and \"http\" (http)",
            ":17:11: error: workloads[3].name: \"control\" is a process of the mesh itself",
        ],
    );
    check(
        "workloads: [{name: a, command: [x]}]\n---\nworkloads: []\n",
        &[":3:1: error:", "a mesh file is one document", "config"],
    );
}

#[test]
fn files_that_are_not_there_are_named_with_a_remedy() {
    let missing = run(&["up", "-f", "no-such-mesh.yaml"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(stderr(&missing).contains("cannot read the mesh file no-such-mesh.yaml"));
    assert!(stderr(&missing).contains("lateen demo"));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("mesh.yaml");
    std::fs::write(
        &file,
        "workloads: [{name: a, command: [x]}]\nconfig: [routes.yaml]\n",
    )
    .unwrap();
    let seed = run(&["up", "-f", file.to_str().unwrap()]);
    assert_eq!(seed.status.code(), Some(1));
    assert!(stderr(&seed).contains("routes.yaml"), "{}", stderr(&seed));
    std::fs::write(
        dir.path().join("routes.yaml"),
        "apiVersion: v1\nkind: Serbice\n",
    )
    .unwrap();
    let seed = run(&["up", "-f", file.to_str().unwrap()]);
    assert_eq!(seed.status.code(), Some(65));
    assert!(
        stderr(&seed).contains("routes.yaml:2:"),
        "{}",
        stderr(&seed)
    );
}

#[test]
fn wrong_command_lines_exit_with_64() {
    for args in [
        &["nonsense"][..],
        &["demo", "--prot", "1"],
        &["demo", "--port-base", "65500"],
        &[],
    ] {
        let output = run(args);
        assert_eq!(
            output.status.code(),
            Some(64),
            "{args:?}: {}",
            stderr(&output)
        );
    }
    assert_eq!(run(&["--help"]).status.code(), Some(0));
    assert_eq!(run(&["demo", "--help"]).status.code(), Some(0));
}

/// Sidecars and gateway included.
#[test]
fn the_example_sends_one_request_in_ten_to_the_second_version() {
    if std::process::Command::new("python3")
        .arg("--version")
        .output()
        .is_err()
    {
        eprintln!("skipped: there is no python3");
        return;
    }
    let (base, run_dir) = (free_block(), tempfile::tempdir().unwrap());
    let (file, port) = (
        support::example("two-versions/mesh.yaml"),
        (base + 80).to_string(),
    );
    let mesh = Mesh::start_in(&["up", "-f", &file, "--port", &port], base, run_dir);
    assert_eq!(mesh.summary["ready"], true, "{}", mesh.summary);
    let answer = || request(mesh.gateway(), "GET", "/", &[], b"").unwrap().body;
    let second = (0..400).filter(|_| answer().contains("web v2")).count();
    // Expected are 40; a correct mesh is outside once in fifty million runs.
    assert!((10..=76).contains(&second), "{second} of 400");
}

#[test]
fn a_tcp_service_is_reached_through_both_sidecars_at_the_port_that_the_environment_names() {
    let mesh = up("
workloads:
  - name: db
    ports: [{port: 3306, protocol: tcp}]
    command: [lateen, bookinfo, details, --port, $(PORT)]
  - name: client
    command: [sh, -c, 'env > env; exec sleep 1000']
");
    assert_eq!(mesh.summary["ready"], true, "{}", mesh.summary);
    let tcp = &mesh.workload("client")["tcpOutbound"][0];
    assert_eq!(tcp["service"], "db.default.svc.cluster.local:3306");
    let port = format!("DB_SERVICE_PORT={}\n", tcp["localPort"]);
    eventually("the environment names the port", || {
        let env = read(&mesh.run_dir.path().join("env"));
        env.contains("DB_SERVICE_HOST=127.0.0.1\n") && env.contains(&port)
    });
    let (status, body) = get(&tcp["localPort"], "/details/0").unwrap();
    assert_eq!(status, 200);
    assert!(body.contains("William Shakespeare"), "{body}");
}

/// A workload that hangs gets no requests until it answers again. One of them takes its time to
/// start and is published as unready meanwhile: a mesh is not called ready before that is over.
#[test]
fn traffic_avoids_a_workload_that_is_not_ready() {
    let mesh = "
workloads:
  - {name: client, command: [sleep, '1000']}
  - {name: a, service: s, ports: [{port: 80}], readinessPath: /health,
     command: [sh, -c, 'sleep 1.5; exec LATEEN bookinfo details --port $(PORT)']}
  - {name: b, service: s, ports: [{port: 80}], readinessPath: /health,
     command: [lateen, bookinfo, details, --port, $(PORT)]}
";
    let mesh = up(&mesh.replace("LATEEN", env!("CARGO_BIN_EXE_lateen")));
    assert_eq!(mesh.summary["ready"], true, "{}", mesh.summary);
    let proxy = loopback(mesh.workload("client")["outboundPort"].as_u64().unwrap());
    let seen = || -> std::collections::BTreeSet<String> {
        // Were each chosen by chance, one of two would be missing once in a thousand million runs.
        (0..32)
            .map(|_| {
                let answer = request(proxy, "GET", "http://s/details/0", &[], b"").unwrap();
                assert_eq!(answer.status, 200, "{answer:?}");
                let header = "x-bookinfo-workload: ";
                let name = answer
                    .head
                    .lines()
                    .find_map(|line| line.strip_prefix(header));
                name.unwrap_or_default().to_owned()
            })
            .collect()
    };
    assert_eq!(seen().len(), 2);
    let hanging = mesh.workload("b")["pid"].as_u64().unwrap();
    signal("STOP", hanging);
    let api = &mesh.summary["control"]["apiPort"];
    let entry = "/apis/networking.istio.io/v1/namespaces/default/workloadentries/b";
    eventually("its entry says so", || {
        get(api, entry).is_some_and(|(_, body)| body.contains("\"False\""))
    });
    // A request to the one that hangs would hang as well.
    let monitoring = &mesh.summary["control"]["monitoringPort"];
    eventually("every proxy knows", || {
        let (_, body) = get(monitoring, "/debug/pushz").unwrap_or_default();
        let state: Value = serde_json::from_str(&body).unwrap_or_default();
        state["pushed"] == state["revision"] && state["pending"] == serde_json::json!([])
    });
    assert_eq!(seen().into_iter().collect::<Vec<_>>(), ["a"]);
    signal("CONT", hanging);
    eventually("it is back", || seen().len() == 2);
}

/// The first start makes the store's file; killed in the middle of that, the next start must not
/// find half a file.
#[test]
fn a_control_plane_that_is_killed_at_its_very_first_start_starts_again() {
    for milliseconds in (4..40).step_by(4) {
        let dir = tempfile::tempdir().unwrap();
        let base = free_block();
        let port = |offset: u16| (base + offset).to_string();
        let start = || {
            lateen()
                .args([
                    "control",
                    "--xds-port",
                    &port(10),
                    "--monitoring-port",
                    &port(14),
                ])
                .args(["--api-port", &port(88), "--secure-port", "0", "--data-dir"])
                .arg(dir.path())
                .stdin(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap()
        };
        let mut first = start();
        std::thread::sleep(Duration::from_millis(milliseconds));
        first.kill().unwrap();
        first.wait().unwrap();
        let mut second = start();
        let ready = Value::from(base + 14);
        eventually("the control plane is ready", || {
            assert!(
                second.try_wait().unwrap().is_none(),
                "it ended, after {milliseconds} ms"
            );
            get(&ready, "/ready").is_some_and(|(status, _)| status == 200)
        });
        second.kill().unwrap();
        second.wait().unwrap();
    }
}
