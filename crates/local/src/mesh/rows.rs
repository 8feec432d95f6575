//! The table that a person sees: one row for the control plane and for each gateway and workload.

use super::CONTROL;
use super::launch::{app_name, dns_name, sidecar_name};
use crate::plan::{Gateway, Plan, Workload};
use crate::supervise::{State, Status, Table};

/// One line of the table.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    pub workload: String,
    pub version: String,
    /// Where it takes requests: host and port; none for a workload without ports.
    pub address: Option<String>,
    /// The admin address of its proxy; none for the control plane.
    pub sidecar: Option<String>,
    pub condition: Condition,
    /// The application's or the control plane's process; none for a gateway.
    pub pid: Option<u32>,
    pub sidecar_pid: Option<u32>,
    /// Of its processes together.
    pub restarts: u32,
}

/// How a workload is, both of its processes considered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// A process waits for its turn.
    Waiting,
    Starting,
    Ready,
    /// The application is ready; the person runs the proxy.
    ExternalProxy,
    Stopped,
    Failing {
        /// Name of the process, and of its log.
        process: String,
        /// What happened and the last line that was printed.
        reason: String,
    },
}

impl Row {
    pub fn is_ready(&self) -> bool {
        matches!(self.condition, Condition::Ready | Condition::ExternalProxy)
    }

    /// The condition in a few words.
    pub fn state(&self) -> String {
        match &self.condition {
            Condition::Waiting => "waiting".to_owned(),
            Condition::Starting => "starting".to_owned(),
            Condition::Ready => "ready".to_owned(),
            Condition::ExternalProxy => "ready, external proxy".to_owned(),
            Condition::Stopped => "stopped".to_owned(),
            Condition::Failing { process, reason } if *process == self.workload => reason.clone(),
            Condition::Failing { reason, .. } => format!("sidecar {reason}"),
        }
    }
}

/// The rows of a mesh: control plane, gateways, workloads.
pub fn rows(plan: &Plan, table: &Table) -> Vec<Row> {
    let gateways = plan
        .gateways
        .iter()
        .map(|gateway| gateway_row(gateway, table));
    let workloads = plan
        .workloads
        .iter()
        .map(|workload| workload_row(workload, table));
    std::iter::once(control_row(plan, table))
        .chain(gateways)
        .chain(workloads)
        .collect()
}

fn control_row(plan: &Plan, table: &Table) -> Row {
    let control = find(table, CONTROL);
    Row {
        workload: CONTROL.to_owned(),
        version: String::new(),
        address: Some(format!("127.0.0.1:{}", plan.control.api)),
        sidecar: None,
        condition: condition(&[control]),
        pid: control.and_then(|status| status.pid),
        sidecar_pid: None,
        restarts: control.map_or(0, |status| status.restarts),
    }
}

fn gateway_row(gateway: &Gateway, table: &Table) -> Row {
    let proxy = find(table, &gateway.name);
    Row {
        workload: gateway.name.clone(),
        version: String::new(),
        address: Some(format!("127.0.0.1:{}", gateway.http)),
        sidecar: Some(format!("127.0.0.1:{}", gateway.admin)),
        condition: match gateway.external_proxy {
            true => Condition::ExternalProxy,
            false => condition(&[proxy]),
        },
        pid: None,
        sidecar_pid: proxy.and_then(|status| status.pid),
        restarts: proxy.map_or(0, |status| status.restarts),
    }
}

fn workload_row(workload: &Workload, table: &Table) -> Row {
    let app = find(table, &app_name(&workload.name));
    let sidecar = find(table, &sidecar_name(&workload.name));
    // Only stock Envoy has one beside it.
    let dns = find(table, &dns_name(&workload.name));
    let condition = match workload.external_proxy {
        true => match condition(&[app]) {
            Condition::Ready => Condition::ExternalProxy,
            other => other,
        },
        false => match condition(&[app, sidecar]) {
            Condition::Ready if dns.is_some() => condition(&[dns]),
            other => other,
        },
    };
    Row {
        workload: workload.name.clone(),
        version: workload.version().to_owned(),
        address: workload
            .ports
            .first()
            .map(|port| format!("{}:{}", workload.address, port.inbound)),
        sidecar: Some(format!("{}:{}", workload.address, workload.admin)),
        condition,
        pid: app.and_then(|status| status.pid),
        sidecar_pid: sidecar.and_then(|status| status.pid),
        restarts: [app, sidecar]
            .into_iter()
            .flatten()
            .map(|status| status.restarts)
            .sum(),
    }
}

fn find<'a>(table: &'a Table, name: &str) -> Option<&'a Status> {
    table.iter().find(|status| status.name == name)
}

/// That of the first process that is not ready.
fn condition(processes: &[Option<&Status>]) -> Condition {
    for status in processes {
        let Some(status) = status else {
            return Condition::Waiting;
        };
        let reason = match &status.state {
            State::Ready => continue,
            State::Starting => return Condition::Starting,
            State::Stopped => return Condition::Stopped,
            State::Unready(reason) => format!("not ready: {reason}"),
            State::Restarting {
                reason,
                last_line: None,
            } => reason.clone(),
            State::Restarting {
                reason,
                last_line: Some(line),
            } => format!("{reason}: {line}"),
        };
        return Condition::Failing {
            process: status.name.clone(),
            reason,
        };
    }
    Condition::Ready
}
