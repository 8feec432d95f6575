//! The table that a person sees: one row per workload, gateway and control plane.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::CONTROL;
use super::launch::{app_name, sidecar_name};
use crate::plan::Plan;
use crate::supervise::{State, Status, Table};

/// The proxy is the person's own; whether it is ready is not known here.
const EXTERNAL: &str = "external proxy";

/// One line of the table.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    pub workload: String,
    pub version: String,
    /// Where it takes requests: host and port.
    pub address: String,
    /// The admin address of its proxy; none for the control plane.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sidecar: Option<String>,
    pub ready: bool,
    pub state: String,
    /// The application's or the control plane's process; none for a gateway.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sidecar_pid: Option<u32>,
    pub restarts: u32,
    pub log: PathBuf,
}

/// The rows of a mesh: control plane, gateways, workloads.
pub fn rows(plan: &Plan, table: &Table, logs: &Path) -> Vec<Row> {
    let find = |name: &str| table.iter().find(|status| status.name == name);
    let log = |name: &str| logs.join(format!("{name}.log"));
    let mut rows = Vec::new();
    let control = find(CONTROL);
    rows.push(Row {
        workload: CONTROL.to_owned(),
        version: String::new(),
        address: format!("127.0.0.1:{}", plan.control.api),
        sidecar: None,
        ready: is_ready(control),
        state: describe(&[control]),
        pid: control.and_then(|status| status.pid),
        sidecar_pid: None,
        restarts: control.map_or(0, |status| status.restarts),
        log: log(CONTROL),
    });
    for gateway in &plan.gateways {
        let proxy = find(&gateway.name);
        rows.push(Row {
            workload: gateway.name.clone(),
            version: String::new(),
            address: format!("127.0.0.1:{}", gateway.http),
            sidecar: Some(format!("127.0.0.1:{}", gateway.admin)),
            ready: gateway.external_proxy || is_ready(proxy),
            state: if gateway.external_proxy {
                EXTERNAL.to_owned()
            } else {
                describe(&[proxy])
            },
            pid: None,
            sidecar_pid: proxy.and_then(|status| status.pid),
            restarts: proxy.map_or(0, |status| status.restarts),
            log: log(&gateway.name),
        });
    }
    for workload in &plan.workloads {
        let name = app_name(&workload.name);
        let (app, sidecar) = (find(&name), find(&sidecar_name(&workload.name)));
        let port = workload
            .ports
            .first()
            .map_or(workload.outbound, |port| port.inbound);
        rows.push(Row {
            workload: workload.name.clone(),
            version: workload.version().to_owned(),
            address: format!("127.0.0.1:{port}"),
            sidecar: Some(format!("127.0.0.1:{}", workload.admin)),
            ready: is_ready(app) && (workload.external_proxy || is_ready(sidecar)),
            state: match workload.external_proxy {
                true if is_ready(app) => EXTERNAL.to_owned(),
                true => describe(&[app]),
                false => describe(&[app, sidecar]),
            },
            pid: app.and_then(|status| status.pid),
            sidecar_pid: sidecar.and_then(|status| status.pid),
            restarts: [app, sidecar]
                .into_iter()
                .flatten()
                .map(|status| status.restarts)
                .sum(),
            log: log(&name),
        });
    }
    rows
}

fn is_ready(status: Option<&Status>) -> bool {
    status.is_some_and(|status| status.state == State::Ready)
}

/// The first of the processes that is not ready, and why.
fn describe(processes: &[Option<&Status>]) -> String {
    for (process, who) in processes.iter().zip(["", "sidecar "]) {
        let text = match process.map(|status| &status.state) {
            None => "waiting".to_owned(),
            Some(State::Ready) => continue,
            Some(State::Starting) => "starting".to_owned(),
            Some(State::Stopped) => "stopped".to_owned(),
            Some(State::Unready(reason)) => format!("not ready: {reason}"),
            Some(State::Restarting {
                reason,
                last_line: None,
            }) => reason.clone(),
            Some(State::Restarting {
                reason,
                last_line: Some(line),
            }) => format!("{reason}: {line}"),
        };
        return format!("{who}{text}");
    }
    "ready".to_owned()
}
