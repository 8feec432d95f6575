//! What hands that know istioctl and kubectl type, on a running mesh: partial words, verbs that
//! istioctl dropped or never had, names that are nearly right, output that nobody reads.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests stop at what is not as expected"
)]

mod support;

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::mpsc;
use std::time::Duration;

use support::{Mesh, eventually, lateen};

fn stderr(mesh: &Mesh, arguments: &[&str]) -> (Option<i32>, String) {
    let output = mesh.run(arguments);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), text)
}

#[test]
fn what_hands_type_on_a_running_mesh() {
    let mesh = Mesh::demo(&[]);
    partial_words_and_missing_verbs(&mesh);
    names_that_are_nearly_right(&mesh);
    namespaces_of_what_is_listed(&mesh);
    a_watch_of_one_object_begins_with_one_row_and_ends_with_its_reader(&mesh);
}

fn partial_words_and_missing_verbs(mesh: &Mesh) {
    let whole = mesh.ok(&["proxy-config", "cluster", "reviews-v1"]);
    for word in ["clust", "clusters", "c"] {
        assert_eq!(mesh.ok(&["pc", word, "reviews-v1"]), whole, "{word}");
    }
    let said = mesh.ok(&["verify-install"]);
    assert!(
        said.contains("7 proxies are connected, all in step"),
        "{said}"
    );

    let stats = mesh.ok(&["pc", "stats", "reviews-v1", "--stat=cluster_manager."]);
    assert!(
        stats.contains("cluster_manager.active_clusters: "),
        "{stats}"
    );
    mesh.reviews(&[]);
    eventually("a histogram of what came in", || {
        let asked = ["--direction", "inbound", "--quantile", "0.99"];
        let workloads = ["reviews-v1", "reviews-v2", "reviews-v3"];
        workloads.iter().any(|workload| {
            let all = ["proxy-config", "stats", workload].into_iter().chain(asked);
            let times = mesh.ok(&all.collect::<Vec<_>>());
            times
                .lines()
                .any(|line| line.contains("upstream_rq_time: "))
        })
    });
    let prom = mesh.ok(&["pc", "stats", "reviews-v1", "-o", "prom"]);
    assert!(prom.starts_with("# TYPE envoy_"), "{prom}");

    let (code, said) = stderr(mesh, &["pc", "secret", "reviews-v1", "-o", "json"]);
    assert_eq!((code, said.as_str()), (Some(0), ""));
    let (code, said) = stderr(
        mesh,
        &["pc", "clusters", "reviews-v1", "--direction", "inwards"],
    );
    assert_eq!(code, Some(64));
    assert!(
        said.contains("possible values: inbound, outbound"),
        "{said}"
    );
    assert!(mesh.ok(&["help"]).contains("Usage: lateen <COMMAND>"));
}

fn names_that_are_nearly_right(mesh: &Mesh) {
    let check = |arguments: &[&str], expect: &str| {
        let (code, said) = stderr(mesh, arguments);
        assert_ne!(code, Some(0), "{arguments:?}");
        assert!(said.contains(expect), "{arguments:?}: {said}");
    };
    let meant = r#"did you mean "ratings-v1.default"?"#;
    check(&["pc", "c", "ratings"], meant);
    check(&["ps", "ratigns-v1"], meant);
    check(&["ps", "ratings-v1.prod"], meant);
    let (code, said) = stderr(mesh, &["get", "pods"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("`lateen get workloadentries`"), "{said}");
}

fn namespaces_of_what_is_listed(mesh: &Mesh) {
    let gateways = mesh.ok(&["proxy-status", "-n", "istio-system"]);
    let names: Vec<&str> = gateways
        .lines()
        .filter_map(|l| l.split(' ').next())
        .collect();
    assert_eq!(names, ["NAME", "istio-ingressgateway.istio-system"]);
    let namespaces = mesh.ok(&["get", "ns", "-A"]);
    assert!(namespaces.starts_with("NAME "), "{namespaces}");
}

fn a_watch_of_one_object_begins_with_one_row_and_ends_with_its_reader(mesh: &Mesh) {
    let mut watch = lateen()
        .args(["get", "vs", "bookinfo", "-w"])
        .env("LATEEN_SERVER", mesh.server())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let rows = BufReader::new(watch.stdout.take().unwrap()).lines();
    // Ends, and with it the pipe, at the first row that finds no receiver.
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut rows = rows.map_while(Result::ok);
        while rows.next().is_some_and(|row| sender.send(row).is_ok()) {}
    });
    let next = |patience: Duration| receiver.recv_timeout(patience).ok();
    let row = || next(Duration::from_secs(20)).unwrap();
    assert!(row().starts_with("NAME"));
    assert!(row().starts_with("bookinfo"));
    let rule = mesh.ok(&["get", "vs", "bookinfo", "-o", "yaml"]);
    let version = rule.find("  resourceVersion").unwrap();
    let rest = version + rule[version..].find('\n').unwrap() + 1;
    let rule = format!("{}{}", &rule[..version], &rule[rest..]);
    let mut count = 0;
    let mut change = || {
        count += 1;
        let labels = format!("metadata:\n  labels: {{changed: \"{count}\"}}\n");
        let (worked, said) = mesh.apply(&rule.replace("metadata:\n", &labels));
        assert!(worked, "{said}");
    };
    assert_eq!(
        next(Duration::from_millis(300)),
        None,
        "nothing changed yet"
    );
    change();
    assert!(row().starts_with("bookinfo"));
    drop(receiver);
    eventually("the watch ends when nobody reads it", || {
        change();
        watch.try_wait().unwrap().is_some()
    });
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error_that_says_so() {
    for arguments in [
        &["version", "--remote=false"][..],
        &["bootstrap", "reviews-v1"],
    ] {
        let full = std::fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .unwrap();
        let output = lateen().args(arguments).stdout(full).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        assert!(
            said.contains("No space left on device"),
            "{arguments:?}: {said}"
        );
        assert!(!said.contains("panicked"), "{arguments:?}: {said}");
    }
}

#[test]
fn errors_of_a_followed_directory_are_said_on_the_terminal() {
    let directory = tempfile::tempdir().unwrap();
    let run_dir = tempfile::tempdir().unwrap();
    let port_base = support::free_block();
    let mut demo = lateen()
        .args([
            "demo",
            "--port",
            &(port_base + 80).to_string(),
            "--port-base",
        ])
        .arg(port_base.to_string())
        .arg("--run-dir")
        .arg(run_dir.path())
        .arg("--config")
        .arg(directory.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(demo.stderr.take().unwrap()).lines();
    let file = directory.path().join("half.yaml");
    std::fs::write(&file, "apiVersion: networking.istio.io/v1\nkind: Virtual").unwrap();
    let mut said = Vec::new();
    for line in lines.map_while(Result::ok) {
        said.push(line);
        let last = said.last().unwrap();
        if last.contains("half.yaml:2:7: error: kind: unknown kind") {
            std::fs::remove_file(&file).unwrap();
        }
        if last.ends_with("every file is right again") {
            break;
        }
    }
    support::signal("TERM", u64::from(demo.id()));
    demo.wait().unwrap();
    assert!(
        said.last()
            .is_some_and(|l| l.ends_with("every file is right again")),
        "{said:?}"
    );
}
