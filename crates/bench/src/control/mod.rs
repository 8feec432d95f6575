//! The control plane at size: real delta ADS clients, one change at a time, and how long it takes
//! until the last client has acknowledged it.
//!
//! `cargo xtask bench control`. The control plane is the binary, in a process of its own; objects
//! come from a directory, changes over its API, and the clients (`client`) are gRPC streams that
//! ask as a sidecar asks: clusters and listeners whole, endpoints and routes by name.

mod client;
mod mesh;

use std::fmt::Write;
use std::process::Command;
use std::time::{Duration, Instant};

use clap::ValueEnum;

use crate::error::{Error, Result};
use crate::ground::loopback;
use crate::process::{Running, own_cpu};
use client::{Clients, Wanted};
use mesh::Mesh;

/// How long the control plane waits for quiet before it pushes; taken off the times.
const DEBOUNCE: Duration = Duration::from_millis(100);

/// What the clients are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Sidecars with an explicit HTTP proxy listener
    Sidecar,
    /// Sidecars whose traffic is redirected to them; a tenth of the services is TCP
    Captured,
    /// Gateways, to which the changed rules are bound
    Gateway,
}

/// What is measured.
pub struct Plan {
    pub sizes: Vec<usize>,
    pub clients: usize,
    pub kind: Kind,
    /// Changes of each kind.
    pub changes: usize,
}

/// A kind of change.
#[derive(Clone, Copy)]
enum Change {
    Rule,
    Endpoint,
    Service,
}

/// Tables for all sizes.
pub fn run(binaries: &std::path::Path, plan: &Plan) -> Result<String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| Error::io("start the runtime", source))?;
    let mut text = format!(
        "## Control plane\n\n{} delta ADS clients, each {} that sees every service. Per service two WorkloadEntries, a VirtualService and a DestinationRule. {} \
         changes of each kind, one after the other; milliseconds from the API call until the last \
         client has acknowledged, less the {} ms that the control plane waits for quiet. \"First\" is \
         the median until the first client has it: what comes after is the sending. CPU per change \
         is of the control plane, and of the bench that plays the clients on the same cores.\n\n\
         | services | change | first, ms | p50, ms | p99, ms | CPU per change, ms | CPU of the clients, ms \
         | bytes to all clients | PSS, MB |\n\
         |---|---|---|---|---|---|---|---|---|\n",
        plan.clients,
        match plan.kind {
            Kind::Sidecar => "the sidecar of a workload",
            Kind::Captured => "the sidecar of a workload whose traffic is redirected",
            Kind::Gateway => "a gateway",
        },
        plan.changes,
        DEBOUNCE.as_millis()
    );
    for services in &plan.sizes {
        let rows = runtime.block_on(size(binaries, *services, plan))?;
        eprint!("{rows}");
        text += &rows;
    }
    Ok(text)
}

/// The rows of one size.
async fn size(binaries: &std::path::Path, services: usize, plan: &Plan) -> Result<String> {
    let io = |source| Error::io("prepare the mesh", source);
    let directory = tempfile::tempdir().map_err(io)?;
    let mesh = Mesh::write(directory.path(), services, plan.kind).map_err(io)?;
    let ports = free_ports().map_err(io)?;
    let mut command = Command::new(binaries.join("lateen"));
    command.arg("control");
    command.arg("--data-dir").arg(directory.path().join("data"));
    command.arg("--config").arg(mesh.directory());
    for (flag, port) in ["--xds-port", "--api-port", "--monitoring-port"]
        .iter()
        .zip(ports)
    {
        command.arg(flag).arg(port.to_string());
    }
    command.args(["--secure-port", "0"]);
    let running = Running::start("control", &mut command, directory.path())?;
    let [xds, api, _] = ports.map(loopback);
    client::wait_for(api).await?;
    let alone = running.pss();
    let mut clients = Clients::connect(xds, plan.kind, plan.clients, services).await?;
    clients.settle().await;
    let mut rows = String::new();
    for change in [Change::Rule, Change::Endpoint, Change::Service] {
        eprintln!("{services} services: {} after the other", change.name());
        let mut times = Vec::new();
        let mut firsts = Vec::new();
        let (cpu, own, bytes) = (running.cpu(), own_cpu(), clients.bytes());
        for round in 0..plan.changes {
            let (first, last) =
                once((change, round), plan.kind, services, api, &mut clients).await?;
            firsts.push(first);
            times.push(last);
        }
        let count = plan.changes.max(1);
        let rounds = u32::try_from(count).unwrap_or(u32::MAX);
        let (cpu, own) = ((running.cpu() - cpu) / rounds, (own_cpu() - own) / rounds);
        let bytes = (clients.bytes() - bytes) / count as u64;
        times.sort();
        firsts.sort();
        let first = firsts.get(firsts.len() / 2).copied().unwrap_or_default();
        let at = |share: f64| {
            let last = times.len().saturating_sub(1);
            let index = (share * last as f64).ceil() as usize;
            millis(times.get(index).copied().unwrap_or_default())
        };
        // Writing into a String does not fail.
        let _ = writeln!(
            rows,
            "| {services} | {} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} | {bytes} | {:.0} |",
            change.name(),
            millis(first),
            at(0.5),
            at(0.99),
            millis(cpu),
            millis(own),
            running.pss() as f64 / 1e6,
        );
    }
    let _ = writeln!(
        rows,
        "| {services} | (before the clients) | | | | | | | {:.0} |",
        alone as f64 / 1e6
    );
    Ok(rows)
}

/// Makes one change and waits for the last acknowledgement.
async fn once(
    (change, round): (Change, usize),
    kind: Kind,
    services: usize,
    api: std::net::SocketAddr,
    clients: &mut Clients,
) -> Result<(Duration, Duration)> {
    let (path, document, wanted) = match change {
        Change::Rule => {
            let (path, document) = mesh::rule(round % services, &format!("round-{round}"), kind);
            (path, document, Wanted::Routes)
        }
        Change::Endpoint => {
            let service = round % services;
            let (path, document) = mesh::workload(
                service,
                0,
                &format!("10.9.{}.{}", round / 200, round % 200 + 1),
            );
            (
                path,
                document,
                Wanted::Endpoints(mesh::cluster(&mesh::name(service))),
            )
        }
        Change::Service => {
            let name = format!("new{round}");
            let (path, document) = mesh::service(&name);
            (path, document, Wanted::Service(mesh::cluster(&name)))
        }
    };
    clients.expect(wanted);
    let started = Instant::now();
    client::apply(api, &path, &document).await?;
    let (first, last) = clients.acknowledged().await?;
    // Quiet again before the next.
    tokio::time::sleep(Duration::from_millis(20)).await;
    let took = |until: Instant| {
        let whole = until.saturating_duration_since(started);
        whole.saturating_sub(DEBOUNCE)
    };
    Ok((took(first), took(last)))
}

impl Change {
    fn name(self) -> &'static str {
        match self {
            Change::Rule => "one VirtualService",
            Change::Endpoint => "one endpoint",
            Change::Service => "one new service",
        }
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn free_ports() -> std::io::Result<[u16; 3]> {
    let mut ports = [0; 3];
    let mut held = Vec::new();
    for port in &mut ports {
        let listener = std::net::TcpListener::bind(loopback(0))?;
        *port = listener.local_addr()?.port();
        held.push(listener);
    }
    Ok(ports)
}
