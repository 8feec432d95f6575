//! A mesh with transparent capture: real processes in network namespaces, unmodified programs, our
//! proxy and stock Envoy. Everything happens in a network namespace of the test's own, which
//! stands for the machine. Needs root.

#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests stop at what is not as expected"
)]

mod support;

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use lateen_testkit::tools;
use serde_json::Value;
use support::{PATIENCE, eventually, lateen};

const GATEWAY: &str = "http://127.0.0.1:8080";
/// A mesh that does not get ready says so by itself before this.
const START: Duration = Duration::from_secs(90);

/// A network namespace in the place of this machine, with a DNS server that knows one name. It
/// ends with its shell, the shell with us.
struct Machine {
    shell: Child,
    names: Option<Child>,
    _files: tempfile::TempDir,
}

/// Loopback with the address of the DNS server, and a `resolv.conf` that names it.
const SET_UP: &str = "set -e; mount --make-rprivate /; mount --bind \"$0\" /etc/resolv.conf; \
    echo 0 > /proc/sys/net/ipv4/ip_forward; ip link set lo up; ip addr add 198.51.100.53/32 dev lo; echo up; exec cat";

/// `public.test` is 198.51.100.9, and nothing else exists.
const NAMES: &str = r#"
import socket, struct
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("198.51.100.53", 53))
while True:
    query, client = server.recvfrom(512)
    end = query.index(b"\0", 12) + 5
    known = query[12:end - 4] == b"\x06public\x04test\0"
    answers = [b"\xc0\x0c" + struct.pack(">HHIH4B", 1, 1, 60, 4, 198, 51, 100, 9)]
    answers = answers if known and query[end - 3] == 1 else []
    head = query[:2] + struct.pack(">HHHHH", 0x8180 if known else 0x8183, 1, len(answers), 0, 0)
    server.sendto(head + query[12:end] + b"".join(answers), client)
"#;

impl Machine {
    /// None, with a word about it, where namespaces cannot be had.
    fn new(test: &str) -> Option<Self> {
        let missing = [
            (
                "unshare",
                &["--net", "true"][..],
                "root, which makes network namespaces,",
            ),
            (
                "setpriv",
                &["--pdeathsig", "TERM", "true"],
                "setpriv (util-linux)",
            ),
            ("nft", &["--version"], "nftables"),
            ("ip", &["-V"], "iproute2"),
            ("curl", &["--version"], "curl"),
        ]
        .into_iter()
        .find(|(program, probe, _)| tools::program(program, probe).is_none());
        if let Some((_, _, what)) = missing {
            tools::skip(test, what);
            return None;
        }
        let files = tempfile::tempdir().unwrap();
        let resolv_conf = files.path().join("resolv.conf");
        std::fs::write(&resolv_conf, "nameserver 198.51.100.53\n").unwrap();
        let mut shell = Command::new("unshare")
            .args(["--net", "--mount", "sh", "-c", SET_UP])
            .arg(&resolv_conf)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let up = first_line(shell.stdout.take().unwrap());
        let mut machine = Self {
            shell,
            names: None,
            _files: files,
        };
        let said = up.recv_timeout(PATIENCE);
        assert_eq!(said.as_deref(), Ok("up\n"), "the namespace is not set up");
        let mut names = machine.command("python3");
        machine.names = Some(names.args(["-c", NAMES]).spawn().unwrap());
        Some(machine)
    }

    /// A program on this machine, which ends with the test, however that ends: a mesh that stayed
    /// would keep our standard error open, and whoever reads that would wait for ever.
    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "TERM", "nsenter"])
            .args([
                "--net",
                "--mount",
                "--target",
                &self.shell.id().to_string(),
                "--",
            ])
            .arg(program);
        command
    }

    /// What a program prints that must succeed.
    fn run(&self, words: &[&str]) -> String {
        let mut command = self.command(words[0]);
        command.args(&words[1..]);
        text(words, output(command))
    }

    fn try_curl(&self, url: &str) -> String {
        let mut command = self.command("curl");
        command.args(["-s", "--max-time", "20", url]);
        String::from_utf8_lossy(&output(command).stdout).into_owned()
    }

    /// Starts a mesh and waits until it is up.
    fn start<'a>(&'a self, arguments: &[&str], run_dir: &'a Path) -> Mesh<'a> {
        let mut child = self
            .command(lateen().get_program())
            .args(arguments)
            .args(["--transparent", "--json", "--run-dir"])
            .arg(run_dir)
            .env_remove("SUDO_UID")
            // What a person's shell may have set is not for programs in the mesh.
            .env("HTTP_PROXY", "http://127.0.0.1:9")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let line = first_line(child.stdout.take().unwrap()).recv_timeout(START);
        let mut mesh = Mesh {
            machine: self,
            child,
            summary: Value::Null,
            run_dir,
        };
        let summary = line.ok().and_then(|line| serde_json::from_str(&line).ok());
        mesh.summary = summary.unwrap_or_else(|| panic!("the mesh says nothing in {START:?}"));
        mesh
    }

    /// Nothing of a mesh is left: no interface, no rule, no forwarding.
    fn is_clean(&self) -> Result<(), String> {
        let links = self.run(&["ip", "-br", "link"]);
        let rules = self.run(&["nft", "list", "ruleset"]);
        let forwards = self.run(&["cat", "/proc/sys/net/ipv4/ip_forward"]);
        match links.lines().count() == 1 && rules.is_empty() && forwards.trim() == "0" {
            true => Ok(()),
            false => Err(format!("{links}{rules}forwards: {forwards}")),
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        for child in self.names.iter_mut().chain([&mut self.shell]) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

struct Mesh<'a> {
    machine: &'a Machine,
    child: Child,
    summary: Value,
    run_dir: &'a Path,
}

impl Mesh<'_> {
    fn pid(&self) -> u64 {
        self.summary["pid"].as_u64().unwrap()
    }

    fn workload(&self, name: &str) -> &Value {
        let workloads = self.summary["workloads"].as_array().unwrap();
        workloads.iter().find(|w| w["name"] == name).unwrap()
    }

    /// Runs a program where a workload runs.
    fn exec(&self, workload: &str, words: &[&str]) -> Output {
        let mut command = self.machine.command(lateen().get_program());
        command.args(["exec", workload, "--run-dir"]);
        command.arg(self.run_dir).arg("--").args(words);
        command.env_remove("HTTP_PROXY");
        output(command)
    }

    /// An unmodified curl where a workload runs: status and headers, and the body.
    fn curl(&self, workload: &str, arguments: &[&str]) -> (String, String) {
        let words = [&["curl", "-si", "--max-time", "20"], arguments].concat();
        let output = self.exec(workload, &words);
        let text = String::from_utf8_lossy(&output.stdout).replace("\r\n", "\n");
        let (head, body) = text.split_once("\n\n").unwrap_or((&text, ""));
        (head.to_ascii_lowercase(), body.to_owned())
    }

    fn lateen(&self, words: &[&str]) -> String {
        let mut command = self.machine.command(lateen().get_program());
        command.args(words);
        text(words, output(command))
    }

    /// Ends it as Ctrl-C does.
    fn stop(mut self) {
        support::signal("TERM", self.pid());
        assert!(ended(&mut self.child, Instant::now(), "the mesh").success());
    }
}

impl Drop for Mesh<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("{:#}", self.summary);
            for log in std::fs::read_dir(self.run_dir.join("logs"))
                .into_iter()
                .flatten()
                .flatten()
            {
                let lines = std::fs::read_to_string(log.path()).unwrap_or_default();
                let last = lines.lines().last().unwrap_or("nothing");
                eprintln!("{} says last: {last}", log.file_name().display());
            }
        }
    }
}

/// What a program prints and how it ends, which it does in time.
fn output(mut command: Command) -> Output {
    let what = format!("{command:?}");
    let start = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let stdout = everything(child.stdout.take().unwrap());
    let stderr = everything(child.stderr.take().unwrap());
    // Mostly the end of what it prints is its own end, which is then not waited for.
    let stdout = stdout.recv_timeout(PATIENCE);
    let status = ended(&mut child, start, &what);
    let open = |_| panic!("{what} has ended and left a process that holds its output");
    Output {
        status,
        stdout: stdout.unwrap_or_else(open),
        stderr: stderr.recv_timeout(PATIENCE).unwrap_or_else(open),
    }
}

/// Waits for the end of a process, but not for ever: then it is killed.
fn ended(child: &mut Child, start: Instant, what: &str) -> ExitStatus {
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if start.elapsed() > PATIENCE {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{what} does not end");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// All that is read, at its end.
fn everything(mut from: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes);
        let _ = sender.send(bytes);
    });
    receiver
}

/// The first line that is read, as soon as it is there.
fn first_line(from: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        let _ = BufReader::new(from).read_line(&mut line);
        let _ = sender.send(line);
    });
    receiver
}

fn text(words: &[&str], output: Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Every process of a mesh: those whose environment or command names the run directory, and those
/// in its namespaces.
fn processes_of(summary: &Value) -> Vec<u64> {
    let workloads = summary["workloads"].as_array().unwrap().iter();
    let workloads = workloads.flat_map(|w| [w["pid"].as_u64(), w["sidecarPid"].as_u64()]);
    let gateways = summary["gateways"].as_array().unwrap().iter();
    let gateways = gateways.map(|g| g["pid"].as_u64());
    let control = summary["control"]["pid"].as_u64();
    workloads
        .chain(gateways)
        .chain([control])
        .flatten()
        .collect()
}

/// Pages, names, virtual addresses, rules and the world outside, with any data plane.
fn programs_are_in_the_mesh_without_knowing(mesh: &Mesh<'_>) {
    assert_eq!(mesh.summary["ready"], true, "{:#}", mesh.summary);
    let page = mesh.machine.try_curl(&format!("{GATEWAY}/productpage"));
    assert!(
        page.contains("<title>Simple Bookstore App</title>"),
        "{page}"
    );
    assert!(page.contains("William Shakespeare"), "{page}");
    // By every name a pod would have, and through the sidecar of either side.
    for name in [
        "reviews",
        "reviews.default",
        "reviews.default.svc.cluster.local",
    ] {
        let url = format!("http://{name}:9080/reviews/0");
        let (head, body) = mesh.curl("productpage-v1", &[&url]);
        assert!(head.starts_with("http/1.1 200"), "{name}: {head}");
        assert!(head.contains("x-envoy-upstream-service-time"), "{head}");
        assert!(body.contains("podname"), "{body}");
    }
    // By virtual address.
    let hosts = mesh.exec("productpage-v1", &["getent", "ahostsv4", "ratings"]);
    let hosts = String::from_utf8(hosts.stdout).unwrap();
    let address = hosts.split_whitespace().next().unwrap_or_default();
    assert!(address.contains(".128."), "a virtual address: {hosts}");
    let url = format!("http://{address}:9080/ratings/0");
    let (head, _) = mesh.curl("reviews-v2", &[&url]);
    assert!(
        head.starts_with("http/1.1 200") && head.contains("x-envoy-upstream"),
        "{head}"
    );
    // Each proxy is there once, whatever else of it is connected.
    let table = mesh.lateen(&["proxy-status"]);
    assert_eq!(table.lines().count(), 1 + 7, "{table}");
    assert!(
        !table.contains("NOT SENT") && !table.contains("ERROR"),
        "{table}"
    );
    // An application is an ordinary process that was told nothing of a proxy.
    let pid = mesh.workload("reviews-v1")["pid"].as_u64().unwrap();
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
    let environment = String::from_utf8_lossy(&environment).to_ascii_lowercase();
    assert!(!environment.contains("http_proxy="), "{environment}");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains("Uid:\t65534\t65534"), "{status}");
}

fn rules_decide(mesh: &Mesh<'_>) {
    let canary = support::example("bookinfo/canary.yaml");
    mesh.lateen(&["apply", "-f", &canary]);
    eventually("jason sees v2 only", || {
        (0..8).all(|_| {
            let jason = ["-H", "end-user: jason", "http://reviews:9080/reviews/0"];
            mesh.curl("productpage-v1", &jason).1.contains("reviews-v2")
        })
    });
}

/// A plain web server on this machine, which the mesh knows nothing of.
struct Outside<'a> {
    machine: &'a Machine,
    address: &'static str,
    server: Child,
}

impl<'a> Outside<'a> {
    /// It serves a file `name`.
    fn start(machine: &'a Machine, address: &'static str, name: &str, files: &Path) -> Self {
        machine.run(&["ip", "addr", "add", &format!("{address}/32"), "dev", "lo"]);
        let files = files.join(name);
        std::fs::create_dir(&files).unwrap();
        std::fs::write(files.join("name"), name).unwrap();
        let mut server = machine.command("python3");
        server.args(["-m", "http.server", "--bind", address, "8000"]);
        server.arg("--directory").arg(&files).stdout(Stdio::null());
        let server = server.stderr(Stdio::null()).spawn().unwrap();
        let outside = Self {
            machine,
            address,
            server,
        };
        let url = format!("http://{address}:8000/name");
        eventually("the server outside answers", || {
            machine.try_curl(&url) == name
        });
        outside
    }
}

impl Drop for Outside<'_> {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
        let address = format!("{}/32", self.address);
        self.machine
            .run(&["ip", "addr", "del", &address, "dev", "lo"]);
    }
}

/// Two TCP services on one port, told apart by the addresses that the mesh gave their hosts.
const ENTRIES: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: one}
spec:
  hosts: [one.outside.test]
  resolution: STATIC
  endpoints: [{address: 198.51.100.7, ports: {tcp: 8000}}]
  ports: [{number: 9000, name: tcp, protocol: TCP}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: two}
spec:
  hosts: [two.outside.test]
  resolution: STATIC
  endpoints: [{address: 198.51.100.8, ports: {tcp: 8000}}]
  ports: [{number: 9000, name: tcp, protocol: TCP}]
";

fn the_world_outside_is_reached(mesh: &Mesh<'_>) {
    let files = tempfile::tempdir().unwrap();
    let _one = Outside::start(mesh.machine, "198.51.100.7", "one", files.path());
    let _two = Outside::start(mesh.machine, "198.51.100.8", "two", files.path());
    let get = |url: &str| mesh.curl("productpage-v1", &[url]);
    // Nobody knows this address: the connection is passed on.
    let (head, body) = get("http://198.51.100.7:8000/name");
    assert_eq!(body, "one", "{head}");
    let yaml = files.path().join("entries.yaml");
    std::fs::write(&yaml, ENTRIES).unwrap();
    mesh.lateen(&["apply", "-f", yaml.to_str().unwrap()]);
    for name in ["one", "two"] {
        let url = format!("http://{name}.outside.test:9000/name");
        eventually("the host is known and leads to its service", || {
            get(&url).1 == name
        });
    }
    // Names that the mesh does not know are asked of the server of this machine.
    let public = mesh.exec("productpage-v1", &["getent", "hosts", "public.test"]);
    let public = String::from_utf8_lossy(&public.stdout).into_owned();
    assert!(public.starts_with("198.51.100.9 "), "{public}");
    let unknown = mesh.exec(
        "productpage-v1",
        &["getent", "hosts", "nobody.outside.test"],
    );
    assert!(!unknown.status.success());
}

fn nothing_is_left(machine: &Machine, summary: &Value) {
    for pid in processes_of(summary) {
        assert!(!support::is_running(pid), "process {pid} is left");
    }
    machine.is_clean().unwrap();
}

#[test]
fn a_transparent_mesh_serves_unmodified_programs_and_leaves_nothing() {
    let test = "a_transparent_mesh_serves_unmodified_programs_and_leaves_nothing";
    let Some(machine) = Machine::new(test) else {
        return;
    };
    let run_dir = tempfile::tempdir().unwrap();
    let mesh = machine.start(&["demo"], run_dir.path());
    programs_are_in_the_mesh_without_knowing(&mesh);
    rules_decide(&mesh);
    the_world_outside_is_reached(&mesh);
    let summary = mesh.summary.clone();
    mesh.stop();
    nothing_is_left(&machine, &summary);
}

#[test]
fn stock_envoy_serves_a_transparent_mesh_alike() {
    let test = "stock_envoy_serves_a_transparent_mesh_alike";
    let (Some(envoy), Some(machine)) = (envoy(test), Machine::new(test)) else {
        return;
    };
    let run_dir = tempfile::tempdir().unwrap();
    let mesh = machine.start(&["demo", "--envoy", &envoy], run_dir.path());
    programs_are_in_the_mesh_without_knowing(&mesh);
    rules_decide(&mesh);
    the_world_outside_is_reached(&mesh);
    let summary = mesh.summary.clone();
    mesh.stop();
    nothing_is_left(&machine, &summary);
}

/// The program itself: what is on the path may be a Python script around it, which only its owner
/// can read.
fn envoy(test: &str) -> Option<String> {
    let Some(found) = tools::envoy() else {
        tools::skip(test, "Envoy");
        return None;
    };
    let place = "import envoy, os; \
        print(os.path.join(os.path.dirname(envoy.__file__), '_bin', 'envoy'), end='')";
    let python = std::env::var("LATEEN_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
    let inside = Command::new(python).args(["-c", place]).output().unwrap();
    match inside.status.success() {
        true => Some(String::from_utf8(inside.stdout).unwrap()),
        false => Some(found.display().to_string()),
    }
}

#[test]
fn what_a_killed_mesh_leaves_is_removed_by_the_next() {
    let test = "what_a_killed_mesh_leaves_is_removed_by_the_next";
    let Some(machine) = Machine::new(test) else {
        return;
    };
    let run_dir = tempfile::tempdir().unwrap();
    let mesh = machine.start(&["demo"], run_dir.path());
    let summary = mesh.summary.clone();
    support::signal("KILL", mesh.pid());
    drop(mesh);
    eventually("every process has left", || {
        !processes_of(&summary)
            .iter()
            .any(|pid| support::is_running(*pid))
    });
    // Namespaces end with their processes, and cables with namespaces.
    let links = || machine.run(&["ip", "-br", "link"]);
    eventually("the interface is gone", || links().lines().count() == 1);
    let again = machine.start(&["demo"], run_dir.path());
    assert_eq!(again.summary["ready"], true, "{:#}", again.summary);
    let summary = again.summary.clone();
    again.stop();
    nothing_is_left(&machine, &summary);
}

#[test]
fn without_root_the_flag_says_what_is_missing() {
    let person = ["--reuid", "65534", "--clear-groups", "true"];
    if tools::program("setpriv", &person).is_none() {
        tools::skip("without_root_the_flag_says_what_is_missing", "root");
        return;
    }
    let run_dir = tempfile::tempdir().unwrap();
    // A copy where anybody may run it.
    let directory = tempfile::Builder::new()
        .prefix("lateen")
        .tempdir_in("/tmp")
        .unwrap();
    let copy = directory.path().join("lateen");
    // By another process: a program cannot be run while somebody has it open to write, and a test
    // in another thread may be starting a process that inherits this.
    let copied = Command::new("cp")
        .arg(lateen().get_program())
        .arg(&copy)
        .status();
    assert!(copied.unwrap().success());
    let all = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(directory.path(), all).unwrap();
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", "65534", "--clear-groups"])
        .arg(&copy)
        .args(["demo", "--transparent", "--run-dir"])
        .arg(run_dir.path());
    let output = output(command);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(
        said.contains("--transparent needs root") && said.contains("sudo"),
        "{said}"
    );
}
