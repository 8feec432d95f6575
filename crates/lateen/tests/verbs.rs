//! The verbs that talk to a control plane, as a person or a script meets them.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests stop at what is not as expected"
)]

mod support;

use std::io::Write;
use std::net::TcpStream;
use std::process::{Child, Output, Stdio};

use support::{eventually, free_block, lateen, loopback};

/// A control plane process without proxies.
struct Control {
    child: Child,
    port_base: u16,
    directory: tempfile::TempDir,
}

impl Control {
    fn start() -> Control {
        Control::start_in(tempfile::tempdir().unwrap(), free_block(), &[])
    }

    fn start_in(directory: tempfile::TempDir, port_base: u16, more: &[&str]) -> Control {
        let port = |offset: u16| (port_base + offset).to_string();
        let child = lateen()
            .args([
                "control",
                "--xds-port",
                &port(10),
                "--monitoring-port",
                &port(14),
            ])
            .args([
                "--api-port",
                &port(88),
                "--secure-port",
                "0",
                "--debounce-after",
                "10ms",
                "--data-dir",
            ])
            .arg(directory.path().join("data"))
            .args(more)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let control = Control {
            child,
            port_base,
            directory,
        };
        eventually("the control plane is there", || {
            TcpStream::connect(loopback(u64::from(port_base + 88))).is_ok()
        });
        control
    }

    fn server(&self) -> String {
        format!("127.0.0.1:{}", self.port_base + 88)
    }

    fn run(&self, arguments: &[&str]) -> Run {
        self.run_with(arguments, "")
    }

    fn run_with(&self, arguments: &[&str], input: &str) -> Run {
        run(arguments, input, &self.server())
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.directory.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a verb printed and how it ended.
#[derive(Debug)]
struct Run {
    out: String,
    err: String,
    code: i32,
}

fn run(arguments: &[&str], input: &str, server: &str) -> Run {
    let mut child = lateen()
        .args(arguments)
        .env("LATEEN_SERVER", server)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A verb that reads nothing may have ended before.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let Output {
        status,
        stdout,
        stderr,
    } = child.wait_with_output().unwrap();
    Run {
        out: String::from_utf8(stdout).unwrap(),
        err: String::from_utf8(stderr).unwrap(),
        code: status.code().unwrap(),
    }
}

impl Run {
    #[track_caller]
    fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.out
    }

    #[track_caller]
    fn fails(self, code: i32, parts: &[&str]) -> Run {
        assert_eq!(self.code, code, "{self:?}");
        for part in parts {
            assert!(self.err.contains(part), "{part:?} is not in {}", self.err);
        }
        self
    }
}

const RULE: &str = "apiVersion: networking.istio.io/v1alpha3
kind: DestinationRule
metadata:
  name: reviews
spec:
  host: reviews
  subsets:
  - name: v1
    labels: {version: v1}
";

const ROUTE: &str = "apiVersion: networking.istio.io/v1alpha3
kind: VirtualService
metadata:
  name: reviews
spec:
  hosts: [reviews]
  http:
  - route:
    - destination: {host: reviews, subset: v1}
";

#[test]
fn apply_says_what_it_did_to_each_object() {
    let control = Control::start();
    // The rule comes after the route that needs it; it is applied first, so nothing is warned of.
    let file = control.file("both.yaml", &format!("{ROUTE}---\n{RULE}"));
    let applied = control.run(&["apply", "-f", &file]);
    assert!(!applied.err.contains("host+subset"), "{}", applied.err);
    let line = |verdict: &str| {
        format!(
            "virtualservice.networking.istio.io/reviews {verdict}\n\
             destinationrule.networking.istio.io/reviews {verdict}\n"
        )
    };
    assert_eq!(applied.ok(), line("created"));
    assert_eq!(control.run(&["apply", "-f", &file]).ok(), line("unchanged"));
    let changed = ROUTE.replace("[reviews]", "[reviews, other]");
    let out = control.run_with(&["apply", "-f", "-"], &changed).ok();
    assert_eq!(
        out,
        "virtualservice.networking.istio.io/reviews configured\n"
    );
    let out = control
        .run_with(&["apply", "-f", "-", "-o", "name"], &changed)
        .ok();
    assert_eq!(out, "virtualservice.networking.istio.io/reviews\n");
    let out = control
        .run_with(&["apply", "-f", "-", "-o", "json"], &changed)
        .ok();
    let object: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(object["spec"]["hosts"][1], "other");
}

#[test]
fn apply_warns_of_what_does_not_fit_at_its_line() {
    let control = Control::start();
    let file = control.file("route.yaml", ROUTE);
    let applied = control.run(&["apply", "-f", &file]);
    assert_eq!(applied.code, 0);
    assert!(
        applied.err.contains(&format!("{file}:9:")),
        "{}",
        applied.err
    );
    assert!(applied.err.contains("IST0101"), "{}", applied.err);
}

#[test]
fn one_wrong_document_keeps_everything_from_being_applied() {
    let control = Control::start();
    control.file("config/a.yaml", RULE);
    control.file(
        "config/b.yaml",
        &ROUTE.replace("hosts:", "hots:").replace("route:", "rout:"),
    );
    let broken = control.file("config/sub/c.yml", "kind: [\n");
    let directory = control.directory.path().join("config");
    let directory = directory.to_str().unwrap();
    let run = control.run(&["apply", "-f", directory]).fails(
        65,
        &[
            "b.yaml:6:3: error: spec.hots: unknown field \"hots\"; did you mean \"hosts\"?",
            "6 |   hots: [reviews]",
            "  |   ^^^^",
            "spec.http[0].rout",
            &broken,
            "in 2 files; nothing was applied",
        ],
    );
    assert_eq!(run.out, "");
    assert_eq!(control.run(&["get", "dr", "-o", "name"]).ok(), "");

    let lenient = ["apply", "--allow-unknown", "-f", "-"];
    let run = control.run_with(&lenient, &format!("{RULE}  nonsense: 1\n"));
    assert!(
        run.err.contains("unknown field \"nonsense\" is ignored"),
        "{}",
        run.err
    );
    assert_eq!(
        run.ok(),
        "destinationrule.networking.istio.io/reviews created\n"
    );
}

#[test]
fn a_dry_run_changes_nothing() {
    let control = Control::start();
    let out = control
        .run_with(&["apply", "--dry-run", "-f", "-"], RULE)
        .ok();
    assert_eq!(
        out,
        "destinationrule.networking.istio.io/reviews created (dry run)\n"
    );
    control
        .run(&["get", "dr", "reviews"])
        .fails(1, &["NotFound"]);
}

#[test]
fn namespaces_come_from_the_document_or_the_flag() {
    let control = Control::start();
    let out = control
        .run_with(&["apply", "-n", "shop", "-f", "-"], RULE)
        .ok();
    assert!(out.ends_with("created\n"));
    assert!(
        control
            .run(&["get", "dr", "-n", "shop"])
            .ok()
            .contains("reviews")
    );
    let elsewhere = RULE.replace("name: reviews", "name: reviews\n  namespace: other");
    let run = control.run_with(&["apply", "-n", "shop", "-f", "-"], &elsewhere);
    run.fails(1, &["stdin:1", "--namespace=other"]);
}

#[test]
fn get_has_istios_columns_and_kubectls_words() {
    let control = Control::start();
    let none = control.run(&["get", "vs"]);
    assert_eq!(
        (none.code, &*none.err),
        (0, "No resources found in default namespace.\n")
    );
    assert_eq!(
        control.run(&["get", "vs", "-A"]).err,
        "No resources found\n"
    );
    control
        .run_with(&["apply", "-f", "-"], &format!("{RULE}---\n{ROUTE}"))
        .ok();

    let columns = |arguments: &[&str]| -> Vec<String> {
        let out = control.run(arguments).ok();
        out.lines()
            .next()
            .unwrap()
            .split_whitespace()
            .map(str::to_owned)
            .collect()
    };
    assert_eq!(
        columns(&["get", "vs"]),
        ["NAME", "GATEWAYS", "HOSTS", "AGE"]
    );
    assert_eq!(
        columns(&["get", "destinationrule"]),
        ["NAME", "HOST", "AGE"]
    );
    assert_eq!(
        columns(&["get", "dr", "-A"]),
        ["NAMESPACE", "NAME", "HOST", "AGE"]
    );
    let both = control.run(&["get", "vs,dr"]).ok();
    assert!(
        both.contains("virtualservice.networking.istio.io/reviews"),
        "{both}"
    );
    assert!(both.contains("\n\nNAME"), "{both}");
    let yaml = control.run(&["get", "vs/reviews", "-o", "yaml"]).ok();
    assert!(
        yaml.starts_with("apiVersion: networking.istio.io/v1\nkind: VirtualService"),
        "{yaml}"
    );
    assert!(
        control
            .run(&["get", "vs", "-o", "yaml"])
            .ok()
            .contains("kind: List")
    );

    let missing = "destinationrules.networking.istio.io \"nope\" not found";
    control
        .run(&["get", "dr", "nope"])
        .fails(1, &["Error from server (NotFound)", missing]);
    control
        .run(&["get", "virtalservice"])
        .fails(64, &["did you mean \"virtualservice\""]);
    // What it prints can be applied again.
    let again = control.run_with(&["apply", "-f", "-"], &yaml);
    assert!(again.ok().ends_with("unchanged\n"));
}

#[test]
fn get_watch_prints_changes_as_they_happen() {
    use std::io::BufRead;
    let control = Control::start();
    control.run_with(&["apply", "-f", "-"], RULE).ok();
    let mut child = lateen()
        .args(["get", "dr", "-w"])
        .env("LATEEN_SERVER", control.server())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
    let mut line = || lines.next().unwrap().unwrap();
    assert!(line().starts_with("NAME"));
    assert!(line().contains("reviews"));
    control
        .run_with(
            &["apply", "-f", "-"],
            &RULE.replace("host: reviews", "host: changed"),
        )
        .ok();
    assert!(line().contains("changed"));
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn delete_takes_names_and_files() {
    let control = Control::start();
    let file = control.file("both.yaml", &format!("{RULE}---\n{ROUTE}"));
    control.run(&["apply", "-f", &file]).ok();
    let out = control.run(&["delete", "vs", "reviews"]).ok();
    assert_eq!(
        out,
        "virtualservice.networking.istio.io \"reviews\" deleted\n"
    );
    let run = control.run(&["delete", "-f", &file]);
    assert_eq!(
        run.out,
        "destinationrule.networking.istio.io \"reviews\" deleted\n"
    );
    run.fails(1, &["NotFound"]);
    control
        .run(&["delete", "-f", &file, "--ignore-not-found"])
        .ok();
    control.run(&["delete", "vs"]).fails(64, &["--all"]);
    control.run_with(&["apply", "-f", "-"], RULE).ok();
    assert!(
        control
            .run(&["delete", "dr", "--all"])
            .ok()
            .contains("deleted")
    );
}

#[test]
fn delete_goes_on_past_kinds_that_are_not_known() {
    let control = Control::start();
    let unknown = "apiVersion: example.com/v1\nkind: Whatever\nmetadata: {name: w}\n";
    control
        .run_with(&["apply", "-f", "-"], &format!("{RULE}---\n{ROUTE}"))
        .ok();
    let file = control.file("mixed.yaml", &format!("{ROUTE}---\n{unknown}---\n{RULE}"));
    let run = control.run(&["delete", "-f", &file]);
    assert_eq!(
        run.out,
        "virtualservice.networking.istio.io \"reviews\" deleted\n\
         destinationrule.networking.istio.io \"reviews\" deleted\n"
    );
    run.fails(1, &["mixed.yaml", "Whatever", "example.com/v1"]);
    // Of a document that is wrong its name is enough, as for kubectl.
    control.run_with(&["apply", "-f", "-"], RULE).ok();
    let wrong = RULE.replace("host: reviews", "host: [reviews]");
    let wrong = control.file("wrong.yaml", &wrong);
    let out = control.run(&["delete", "-f", &wrong]).ok();
    assert_eq!(
        out,
        "destinationrule.networking.istio.io \"reviews\" deleted\n"
    );
    // Without a name there is nothing to delete.
    let nameless = control.file("nameless.yaml", &RULE.replace("name:", "nam:"));
    let run = control.run(&["delete", "-f", &nameless]);
    run.fails(65, &["nothing was deleted"]);
    // What cannot be read at all still stops it.
    let broken = control.file("broken.yaml", &format!("{ROUTE}---\nkind: [\n"));
    control
        .run(&["delete", "-f", &broken])
        .fails(65, &["nothing was deleted"]);
}

#[test]
fn wait_returns_when_every_proxy_has_it_or_it_is_gone() {
    let control = Control::start();
    control.run_with(&["apply", "-f", "-"], RULE).ok();
    let out = control
        .run(&["wait", "--for=distribution", "dr", "reviews.default"])
        .ok();
    assert_eq!(
        out,
        "Resource DestinationRule/default/reviews present on 0 out of 0 proxies\n"
    );
    let missing = ["wait", "dr", "nope", "--timeout", "100ms"];
    control
        .run(&missing)
        .fails(1, &["timeout", "does not exist"]);
    let still = ["wait", "--for=delete", "dr/reviews", "--timeout", "100ms"];
    control.run(&still).fails(1, &["still there"]);
    control.run(&["delete", "dr/reviews"]).ok();
    control.run(&["wait", "--for=delete", "dr/reviews"]).ok();
}

#[test]
fn validate_needs_no_control_plane() {
    let nowhere = "127.0.0.1:1";
    let out = run(&["validate", "-f", "-"], RULE, nowhere).ok();
    assert_eq!(
        out,
        "stdin:1: destinationrule.networking.istio.io/reviews is valid\n"
    );
    let wrong = run(
        &["validate", "-f", "-"],
        &format!("{RULE}  nonsense: 1\n"),
        nowhere,
    );
    wrong.fails(65, &["stdin:10:3", "unknown field \"nonsense\""]);
    run(&["validate", "-f", "/nonexistent"], "", nowhere)
        .fails(1, &["/nonexistent", "check the path"]);
    run(&["validate", "-f", "https://a/b.yaml"], "", nowhere).fails(64, &["curl"]);
}

#[test]
fn a_missing_control_plane_is_named_with_the_remedy() {
    let verbs: [&[&str]; 6] = [
        &["get", "vs"],
        &["apply", "-f", "-"],
        &["delete", "vs", "a"],
        &["wait", "vs", "a"],
        &["proxy-status"],
        &["pc", "cluster", "a"],
    ];
    for verb in verbs {
        run(verb, RULE, "127.0.0.1:1").fails(1, &["127.0.0.1:1", "lateen demo", "--server"]);
    }
    let out = run(&["version"], "", "127.0.0.1:1").ok();
    assert!(
        out.contains("client version: ") && out.contains("no control plane"),
        "{out}"
    );
    run(&["get", "vs"], "", "nonsense").fails(64, &["HOST:PORT"]);
}

#[test]
fn version_and_status_speak_istioctls_words() {
    let control = Control::start();
    let out = control.run(&["version"]).ok();
    let version = env!("CARGO_PKG_VERSION");
    let expect = format!(
        "client version: {version}\ncontrol plane version: {version}\ndata plane version: none\n"
    );
    assert_eq!(out, expect);
    let json: serde_json::Value =
        serde_json::from_str(&control.run(&["version", "-o", "json"]).ok()).unwrap();
    assert_eq!(json["clientVersion"]["version"], version);
    let status = control.run(&["proxy-status"]);
    assert!(
        status.err.contains("No proxies are connected"),
        "{status:?}"
    );
    let missing = control.run(&["proxy-config", "cluster", "reviews-v1"]);
    missing.fails(1, &["no proxy \"reviews-v1\"", "no proxy is connected"]);
}

#[test]
fn configuration_survives_kill_minus_9_of_the_control_plane() {
    let mut control = Control::start();
    control.run_with(&["apply", "-f", "-"], RULE).ok();
    control.child.kill().unwrap();
    control.child.wait().unwrap();
    let port_base = control.port_base;
    let directory = std::mem::replace(&mut control.directory, tempfile::tempdir().unwrap());
    drop(control);
    let control = Control::start_in(directory, port_base, &[]);
    assert!(control.run(&["get", "dr"]).ok().contains("reviews"));
}

#[test]
fn objects_of_a_watched_directory_are_shown_and_refused() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("config");
    std::fs::create_dir(&config).unwrap();
    std::fs::write(config.join("rule.yaml"), RULE).unwrap();
    let control = Control::start_in(
        directory,
        free_block(),
        &["--config", config.to_str().unwrap()],
    );
    assert!(control.run(&["get", "dr"]).ok().contains("reviews"));
    let changed = RULE.replace("host: reviews", "host: other");
    control
        .run_with(&["apply", "-f", "-"], &changed)
        .fails(1, &["rule.yaml", "nothing was applied"]);
    std::fs::write(config.join("rule.yaml"), changed).unwrap();
    eventually("the change of the file is there", || {
        control.run(&["get", "dr"]).ok().contains("other")
    });
}
