//! What stands on the screen, or in the JSON, when a mesh is up.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use lateen_local::mesh::{CONTROL, Mesh, Outcome, Row, rows};
use lateen_local::plan::{Gateway, Workload};
use serde_json::{Value, json};

use crate::session::seconds;

/// Where verbs look for the control plane when they are not told.
const DEFAULT_API_PORT: u16 = 15088;

/// A mesh that has just come up.
#[derive(Debug)]
pub struct Summary<'a> {
    pub mesh: &'a Mesh,
    pub took: Duration,
    pub outcome: Outcome,
    pub page: &'static str,
    /// A file of YAML worth applying.
    pub example: Option<PathBuf>,
}

impl Summary<'_> {
    pub fn print(&self, as_json: bool) {
        let rows = rows(self.mesh.plan(), &self.mesh.watch().borrow());
        let text = match as_json {
            true => format!("{}\n", self.json(&rows)),
            false => self.text(&rows),
        };
        // Nobody reading is no reason to stop the mesh.
        let mut out = anstream::stdout();
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }

    fn text(&self, rows: &[Row]) -> String {
        let bold = Style::new().bold();
        let dim = Style::new().dimmed();
        let link = Style::new().bold().fg_color(Some(AnsiColor::Cyan.into()));
        let mut text = table(rows);
        let took = seconds(self.took);
        let color = match self.outcome {
            Outcome::Ready => AnsiColor::Green,
            Outcome::Failing | Outcome::NoAnswer { .. } => AnsiColor::Red,
        };
        let mark = Style::new().bold().fg_color(Some(color.into()));
        let what = match &self.outcome {
            Outcome::Ready => format!("{mark}Ready{mark:#} after {took}"),
            Outcome::Failing => format!("{mark}Not all ready{mark:#} after {took}"),
            Outcome::NoAnswer { reason, .. } => {
                format!("{mark}Ready, but the page {reason}{mark:#}")
            }
        };
        text.push_str(&format!("\n{what}"));
        if let Some(url) = self.url() {
            text.push_str(&format!(": {link}{url}{link:#}"));
        }
        if let Outcome::NoAnswer { .. } = self.outcome {
            let get = format!(
                "{} get gateways,virtualservices -A{}",
                command_name(),
                self.server()
            );
            text.push_str(&format!(
                "\nWhat is applied decides that; see it with {get}"
            ));
        }
        text.push_str("\n\n");
        let commands = self.commands();
        text.push_str(&format!("{bold}Worth trying{bold:#}\n"));
        for (what, command) in &commands {
            text.push_str(&format!("  {dim}# {what}{dim:#}\n  {command}\n"));
        }
        let run_dir = self.mesh.run_dir().path().display();
        text.push_str(&format!(
            "\n{dim}State and logs are in {run_dir}. Ctrl-C stops everything.{dim:#}\n"
        ));
        text
    }

    fn url(&self) -> Option<String> {
        let gateway = self.mesh.plan().gateways.first()?;
        Some(format!("http://127.0.0.1:{}{}", gateway.http, self.page))
    }

    /// The flag that verbs need to find this control plane, if they need one.
    fn server(&self) -> String {
        match self.mesh.plan().control.api {
            DEFAULT_API_PORT => String::new(),
            port => format!(" --server http://127.0.0.1:{port}"),
        }
    }

    /// Three commands that show something, ready to be pasted.
    fn commands(&self) -> Vec<(&'static str, String)> {
        let lateen = command_name();
        let server = self.server();
        let mut commands = Vec::new();
        if let (Some(url), Some(example)) = (self.url(), &self.example) {
            commands.push((
                "which version of reviews answers?",
                format!("curl -s {url} | grep -o 'reviews-v[0-9]' | head -1"),
            ));
            let example = quoted(example);
            commands.push((
                "jason sees v2, the others v1 and v3",
                format!("{lateen} apply -f {example}{server}"),
            ));
        } else if let Some(url) = self.url() {
            commands.push(("through the gateway", format!("curl -i {url}")));
            commands.push((
                "what the mesh knows",
                format!("{lateen} get services -A{server}"),
            ));
        } else {
            commands.push((
                "what the mesh knows",
                format!("{lateen} get services -A{server}"),
            ));
        }
        if let (Some(_), Some(first)) =
            (self.mesh.plan().network, self.mesh.plan().workloads.first())
        {
            let run_dir = quoted(self.mesh.run_dir().path());
            let (shell, name) = (format!("{lateen} exec --run-dir {run_dir}"), &first.name);
            commands.push((
                "where a workload runs; curl any service by its name",
                format!("{shell} {name} -- bash"),
            ));
        }
        commands.push((
            "has every proxy got it?",
            format!("{lateen} proxy-status{server}"),
        ));
        commands
    }

    fn json(&self, rows: &[Row]) -> Value {
        let plan = self.mesh.plan();
        let row = |name: &str| rows.iter().find(|row| row.workload == name);
        let workloads: Vec<Value> = plan
            .workloads
            .iter()
            .filter_map(|workload| Some(workload_json(workload, row(&workload.name)?)))
            .collect();
        let gateways: Vec<Value> = plan
            .gateways
            .iter()
            .filter_map(|gateway| Some(gateway_json(gateway, row(&gateway.name)?)))
            .collect();
        let control = row(CONTROL);
        let problem = match &self.outcome {
            Outcome::Ready => None,
            Outcome::Failing => Some("a process fails; see its state".to_owned()),
            Outcome::NoAnswer { url, reason } => Some(format!("{url} {reason}")),
        };
        json!({
            "ready": self.outcome == Outcome::Ready,
            "problem": problem,
            "seconds": self.took.as_secs_f64(),
            "url": self.url(),
            "server": format!("http://127.0.0.1:{}", plan.control.api),
            "runDir": self.mesh.run_dir().path(),
            "pid": std::process::id(),
            "control": {
                "xdsPort": plan.control.xds,
                "monitoringPort": plan.control.monitoring,
                "apiPort": plan.control.api,
                "pid": control.and_then(|row| row.pid),
                "state": control.map(Row::state),
            },
            "gateways": gateways,
            "workloads": workloads,
        })
    }
}

fn gateway_json(gateway: &Gateway, row: &Row) -> Value {
    json!({
        "name": gateway.name,
        "namespace": gateway.namespace,
        "url": format!("http://127.0.0.1:{}", gateway.http),
        "port": gateway.http,
        "httpsPort": gateway.https,
        "adminPort": gateway.admin,
        "pid": row.sidecar_pid,
        "ready": row.is_ready(),
        "state": row.state(),
    })
}

fn workload_json(workload: &Workload, row: &Row) -> Value {
    let ports: Vec<Value> = workload
        .ports
        .iter()
        .map(|port| {
            json!({
                "name": port.name,
                "port": port.service,
                "inboundPort": port.inbound,
                "appPort": port.app,
            })
        })
        .collect();
    let tcp: Vec<Value> = workload
        .tcp_outbound
        .iter()
        .map(|tcp| json!({"service": tcp.host_and_port(), "localPort": tcp.local}))
        .collect();
    json!({
        "name": workload.name,
        "namespace": workload.namespace,
        "service": workload.service,
        "version": workload.version(),
        "address": row.address,
        "ports": ports,
        "adminPort": workload.admin,
        "outboundPort": workload.outbound,
        "tcpOutbound": tcp,
        "pid": row.pid,
        "sidecarPid": row.sidecar_pid,
        "ready": row.is_ready(),
        "state": row.state(),
    })
}

/// Columns as kubectl draws them: upper-case heads, two or more blanks between.
fn table(rows: &[Row]) -> String {
    const HEAD: [&str; 5] = ["WORKLOAD", "VERSION", "ADDRESS", "SIDECAR", "STATE"];
    let cells = |row: &Row| {
        [
            row.workload.clone(),
            if row.version.is_empty() {
                "-".to_owned()
            } else {
                row.version.clone()
            },
            row.address.clone().unwrap_or_else(|| "-".to_owned()),
            row.sidecar.clone().unwrap_or_else(|| "-".to_owned()),
            row.state(),
        ]
    };
    let lines: Vec<[String; 5]> = rows.iter().map(cells).collect();
    let width = |column: usize| {
        let longest = lines
            .iter()
            .map(|line| line[column].len())
            .max()
            .unwrap_or(0);
        longest.max(HEAD[column].len()) + 3
    };
    let widths: [usize; 4] = std::array::from_fn(width);
    let mut text = String::new();
    let bold = Style::new().bold();
    for (head, width) in HEAD.iter().zip(&widths) {
        text.push_str(&format!("{bold}{head:width$}{bold:#}"));
    }
    text.push_str(&format!("{bold}{}{bold:#}\n", HEAD[4]));
    for (line, row) in lines.iter().zip(rows) {
        for (cell, width) in line.iter().zip(&widths) {
            text.push_str(&format!("{cell:width$}"));
        }
        let color = if row.is_ready() {
            AnsiColor::Green
        } else {
            AnsiColor::Red
        };
        let state = Style::new().fg_color(Some(color.into()));
        text.push_str(&format!("{state}{}{state:#}\n", line[4]));
    }
    text
}

/// How this binary can be called from where the person stands: by name if it is on the path, else
/// by the shorter of its relative and absolute paths.
fn command_name() -> String {
    let Ok(own) = std::env::current_exe() else {
        return "lateen".to_owned();
    };
    let on_path = std::env::var_os("PATH").is_some_and(|path| {
        let found = std::env::split_paths(&path)
            .map(|dir| dir.join("lateen"))
            .find(|p| p.is_file());
        found.and_then(|found| found.canonicalize().ok()) == own.canonicalize().ok()
    });
    if on_path {
        return "lateen".to_owned();
    }
    let relative = std::env::current_dir().ok().and_then(|dir| {
        let below = own.strip_prefix(dir).ok()?;
        Some(Path::new(".").join(below))
    });
    quoted(&relative.unwrap_or(own))
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:@%,".contains(c);
    if text.chars().all(plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}
