//! A demo of real processes to test against, and a small blocking HTTP client.
#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests stop at what is not as expected"
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::Value;

/// Everything that has to happen happens within this, on a slow machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A mesh has started, or has given up, within this.
const START: Duration = Duration::from_secs(120);

/// The first JSON document of an output, or what else was there.
fn summary(out: ChildStdout) -> Result<Value, String> {
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(out).lines().map_while(Result::ok) {
            // Nobody listens any more once the document is complete.
            if send.send(line).is_err() {
                return;
            }
        }
    });
    let started = Instant::now();
    let mut text = String::new();
    while let Ok(line) = receive.recv_timeout(START.saturating_sub(started.elapsed())) {
        text.push_str(&line);
        text.push('\n');
        if let Ok(value) = serde_json::from_str(&text) {
            return Ok(value);
        }
    }
    Err(text)
}

/// The binary under test.
pub fn lateen() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lateen"));
    command.env_remove("LATEEN_SERVER");
    command
}

/// A `lateen demo` (or `up`) that is ready; killed when dropped.
pub struct Mesh {
    pub child: Child,
    /// What `--json` printed.
    pub summary: Value,
    pub run_dir: tempfile::TempDir,
    pub port_base: u16,
}

impl Mesh {
    /// Starts the demo with more arguments and waits until it says it is ready.
    pub fn demo(arguments: &[&str]) -> Mesh {
        let port_base = free_block();
        let gateway = (port_base + 80).to_string();
        let mut all = vec!["demo", "--port", &gateway];
        all.extend(arguments);
        Mesh::start(&all, port_base)
    }

    pub fn start(arguments: &[&str], port_base: u16) -> Mesh {
        let run_dir = tempfile::tempdir().unwrap();
        Mesh::start_in(arguments, port_base, run_dir)
    }

    pub fn start_in(arguments: &[&str], port_base: u16, run_dir: tempfile::TempDir) -> Mesh {
        let mut child = lateen()
            .args(arguments)
            .args(["--json", "--port-base", &port_base.to_string(), "--run-dir"])
            .arg(run_dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let summary = match summary(child.stdout.take().unwrap()) {
            Ok(summary) => summary,
            Err(text) => {
                let _ = child.kill();
                let status = child.wait().unwrap();
                panic!("lateen ({status}) was not ready within {START:?}: {text}");
            }
        };
        Mesh {
            child,
            summary,
            run_dir,
            port_base,
        }
    }

    /// The address of the REST API, as `--server` takes it.
    pub fn server(&self) -> &str {
        self.summary["server"].as_str().unwrap()
    }

    pub fn gateway(&self) -> SocketAddr {
        loopback(self.summary["gateways"][0]["port"].as_u64().unwrap())
    }

    pub fn workload(&self, name: &str) -> &Value {
        let workloads = self.summary["workloads"].as_array().unwrap();
        workloads
            .iter()
            .find(|w| w["name"] == name)
            .unwrap_or_else(|| panic!("no workload {name}"))
    }

    /// Runs a verb against this mesh.
    pub fn run(&self, arguments: &[&str]) -> Output {
        lateen()
            .args(arguments)
            .env("LATEEN_SERVER", self.server())
            .output()
            .unwrap()
    }

    /// Runs a verb that must succeed; its standard output.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(
            output.status.success(),
            "{arguments:?}: {}{}",
            text(&output.stdout),
            text(&output.stderr)
        );
        text(&output.stdout)
    }

    /// Applies YAML from standard input; standard output and error together, and whether it worked.
    pub fn apply(&self, yaml: &str) -> (bool, String) {
        let mut child = lateen()
            .args(["apply", "-f", "-"])
            .env("LATEEN_SERVER", self.server())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // One that has ended already says why.
        let _ = child.stdin.take().unwrap().write_all(yaml.as_bytes());
        let output = child.wait_with_output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (
            output.status.success(),
            String::from_utf8_lossy(&text).into_owned(),
        )
    }

    /// A request as productpage would send it: through its sidecar's outbound HTTP proxy.
    pub fn through_productpage(&self, url: &str, headers: &[(&str, &str)]) -> Response {
        let proxy = loopback(
            self.workload("productpage-v1")["outboundPort"]
                .as_u64()
                .unwrap(),
        );
        request(proxy, "GET", url, headers, b"").unwrap()
    }

    /// Which workload of reviews answers.
    pub fn reviews(&self, headers: &[(&str, &str)]) -> String {
        let response = self.through_productpage("http://reviews:9080/reviews/0", headers);
        assert_eq!(response.status, 200, "{}", response.body);
        let json: Value = serde_json::from_str(&response.body).unwrap();
        json["podname"].as_str().unwrap().to_string()
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        // Children end with their supervisor, so this leaves nothing behind.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn loopback(port: u64) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], u16::try_from(port).unwrap()))
}

/// A block of 1,000 ports nobody listens on, different for every caller of a test run.
pub fn free_block() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let turn = NEXT.fetch_add(1, Ordering::Relaxed);
        // Below the range the kernel gives out, spread by process so that test binaries differ.
        let spread = u16::try_from(std::process::id() % 22).unwrap();
        let base = 10_000 + 1_000 * ((turn + spread) % 22);
        // Other tests hold a port that they are about to use by a UDP socket.
        let free = (base..base + 500).all(|port| {
            let address = ("127.0.0.1", port);
            TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok()
        });
        if free {
            return base;
        }
    }
}

/// Waits until `probe` is true.
pub fn eventually(what: &str, mut probe: impl FnMut() -> bool) {
    let start = Instant::now();
    while !probe() {
        assert!(
            start.elapsed() < PATIENCE,
            "not within {PATIENCE:?}: {what}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What a server answered.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub head: String,
    pub body: String,
}

/// One request on a connection of its own. `target` is a path or an absolute URL.
pub fn request(
    to: SocketAddr,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> std::io::Result<Response> {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let host = target
        .strip_prefix("http://")
        .and_then(|rest| rest.split('/').next())
        .unwrap_or("localhost");
    let mut head = format!("{method} {target} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += &format!("content-length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.ok_or_else(|| std::io::Error::other(format!("no status in {text:?}")))?;
    let body = if head
        .to_ascii_lowercase()
        .contains("transfer-encoding: chunked")
    {
        unchunk(body)
    } else {
        body.to_string()
    };
    Ok(Response {
        status,
        head: head.to_string(),
        body,
    })
}

fn unchunk(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let Ok(size) = usize::from_str_radix(size.trim(), 16) else {
            break;
        };
        if size == 0 || rest.len() < size {
            break;
        }
        whole.push_str(&rest[..size]);
        body = rest[size..].trim_start_matches("\r\n");
    }
    whole
}

/// Whether a process is there.
pub fn is_running(pid: u64) -> bool {
    // Signal 0 asks without sending; a zombie of ours would count, so look at its state too.
    let alive = Command::new("kill")
        .args(["-0", &pid.to_string()])
        .stderr(Stdio::null())
        .status();
    let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    alive.unwrap().success() && !state.contains(") Z ")
}

pub fn signal(name: &str, pid: u64) {
    let status = Command::new("kill")
        .args([&format!("-{name}"), &pid.to_string()])
        .status()
        .unwrap();
    assert!(status.success(), "kill -{name} {pid}");
}

pub fn example(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .unwrap();
    root.join("examples").join(path).display().to_string()
}
