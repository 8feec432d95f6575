//! The command line, environment and readiness of every process of a mesh.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::{CONTROL, StartError};
use crate::bootstrap;
use crate::plan::{Gateway, Plan, Workload};
use crate::rundir::RunDir;
use crate::supervise::{Readiness, Spec};

/// Time for what is in flight when the mesh stops.
const GRACE: Duration = Duration::from_secs(3);
/// A person's own application may have more to finish.
const APP_GRACE: Duration = Duration::from_secs(5);
const EXIT_WITH_PARENT: &str = "--exit-with-parent";

/// The name of an application's process and log.
pub fn app_name(workload: &str) -> String {
    workload.to_owned()
}

/// The name of a sidecar's process and log.
pub fn sidecar_name(workload: &str) -> String {
    format!("{workload}.sidecar")
}

/// Writes the bootstrap file of every proxy.
pub fn write_bootstraps(plan: &Plan, run_dir: &RunDir) -> Result<(), StartError> {
    let gateways = plan
        .gateways
        .iter()
        .map(|gateway| (&gateway.name, bootstrap::gateway(plan, gateway)));
    let sidecars = plan
        .workloads
        .iter()
        .map(|workload| (&workload.name, bootstrap::sidecar(plan, workload)));
    for (name, content) in gateways.chain(sidecars) {
        write_json(&run_dir.bootstrap(name), &content)?;
    }
    Ok(())
}

fn write_json(path: &Path, content: &Value) -> Result<(), StartError> {
    std::fs::write(path, format!("{content:#}\n")).map_err(|source| StartError::Write {
        path: path.to_owned(),
        source,
    })
}

pub fn control(plan: &Plan, lateen: &Path, run_dir: &RunDir, watched: Option<&Path>) -> Spec {
    let ports = plan.control;
    let mut args: Vec<OsString> = vec!["control".into(), EXIT_WITH_PARENT.into()];
    args.extend(["--data-dir".into(), run_dir.store().into_os_string()]);
    for (flag, port) in [
        ("--xds-port", ports.xds),
        ("--monitoring-port", ports.monitoring),
        ("--api-port", ports.api),
    ] {
        args.extend([flag.into(), port.to_string().into()]);
    }
    if let Some(directory) = watched {
        args.extend(["--config".into(), directory.as_os_str().to_owned()]);
    }
    let ready = Readiness::Http(format!("http://127.0.0.1:{}/ready", ports.monitoring));
    own(CONTROL.to_owned(), lateen, args, ready)
}

pub fn gateway(lateen: &Path, run_dir: &RunDir, gateway: &Gateway) -> Spec {
    proxy(
        gateway.name.clone(),
        lateen,
        run_dir,
        &gateway.name,
        gateway.admin,
    )
}

pub fn sidecar(lateen: &Path, run_dir: &RunDir, workload: &Workload) -> Spec {
    proxy(
        sidecar_name(&workload.name),
        lateen,
        run_dir,
        &workload.name,
        workload.admin,
    )
}

fn proxy(name: String, lateen: &Path, run_dir: &RunDir, bootstrap: &str, admin: u16) -> Spec {
    let mut args: Vec<OsString> = vec!["proxy".into(), EXIT_WITH_PARENT.into()];
    args.extend([
        "--bootstrap".into(),
        run_dir.bootstrap(bootstrap).into_os_string(),
    ]);
    // Everything shares this machine's cores: one worker each keeps ten proxies small.
    args.extend(["--concurrency".into(), "1".into()]);
    own(
        name,
        lateen,
        args,
        Readiness::Http(format!("http://127.0.0.1:{admin}/ready")),
    )
}

/// A process of our own binary, which leaves by itself when we do.
fn own(name: String, lateen: &Path, args: Vec<OsString>, readiness: Readiness) -> Spec {
    Spec {
        name,
        program: lateen.to_owned(),
        args,
        env: Vec::new(),
        env_remove: Vec::new(),
        directory: None,
        readiness,
        grace: GRACE,
    }
}

/// An application: a person's command under the shim, or one of Bookinfo's.
pub fn app(lateen: &Path, workload: &Workload) -> Spec {
    let env = app_environment(workload);
    let variables: BTreeMap<&str, &str> = env
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let command: Vec<OsString> = workload
        .command
        .iter()
        .map(|word| OsString::from(expand(word, &variables)))
        .collect();
    let args = match command.split_first() {
        // `lateen` is this very binary, which needs no shim to leave when we do.
        Some((program, args)) if program == "lateen" => args
            .iter()
            .cloned()
            .chain([EXIT_WITH_PARENT.into()])
            .collect(),
        _ => ["run-child".into(), "--".into()]
            .into_iter()
            .chain(command)
            .collect(),
    };
    Spec {
        name: app_name(&workload.name),
        program: lateen.to_owned(),
        args,
        directory: Some(workload.directory.clone()),
        readiness: app_readiness(workload),
        grace: APP_GRACE,
        env_remove: Vec::new(),
        env,
    }
}

fn app_readiness(workload: &Workload) -> Readiness {
    match (workload.ports.first(), &workload.readiness_path) {
        (None, _) => Readiness::Running,
        (Some(port), Some(path)) => Readiness::Http(format!("http://127.0.0.1:{}{path}", port.app)),
        (Some(port), None) => Readiness::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, port.app))),
    }
}

/// What an application is told: its ports, the way into its sidecar, and TCP services in
/// Kubernetes' convention (`MYSQL_SERVICE_HOST`, `MYSQL_SERVICE_PORT`). The mesh file's own
/// variables come last and may refer to these as `$(PORT)`.
fn app_environment(workload: &Workload) -> Vec<(String, String)> {
    let proxy = format!("http://127.0.0.1:{}", workload.outbound);
    let mut env: Vec<(String, String)> = vec![
        ("LATEEN_WORKLOAD".into(), workload.name.clone()),
        ("HTTP_PROXY".into(), proxy.clone()),
        ("http_proxy".into(), proxy),
        ("NO_PROXY".into(), "localhost,127.0.0.1".into()),
        ("no_proxy".into(), "localhost,127.0.0.1".into()),
        // Node.js looks at the variables above only when this one is set.
        ("NODE_USE_ENV_PROXY".into(), "1".into()),
    ];
    if let Some(first) = workload.ports.first() {
        env.push(("PORT".into(), first.app.to_string()));
    }
    for port in &workload.ports {
        env.push((
            format!("PORT_{}", variable(&port.name)),
            port.app.to_string(),
        ));
    }
    for tcp in &workload.tcp_outbound {
        let service = variable(&tcp.service);
        env.push((format!("{service}_SERVICE_HOST"), "127.0.0.1".into()));
        env.push((format!("{service}_SERVICE_PORT"), tcp.local.to_string()));
    }
    let known: BTreeMap<&str, &str> = env
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let own: Vec<(String, String)> = workload
        .env
        .iter()
        .map(|(name, value)| (name.clone(), expand(value, &known)))
        .collect();
    env.extend(own);
    env
}

fn variable(name: &str) -> String {
    name.to_ascii_uppercase().replace(['-', '.'], "_")
}

/// `$(NAME)` becomes the variable's value and `$$` becomes `$`; an unknown name stays as it is.
/// These are the rules of `command` and `env` in a Kubernetes pod.
fn expand(text: &str, variables: &BTreeMap<&str, &str>) -> String {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        let (before, from) = rest.split_at(at);
        expanded.push_str(before);
        let name = from
            .strip_prefix("$(")
            .and_then(|tail| tail.split_once(')'));
        let known = name.and_then(|(name, tail)| Some((variables.get(name)?, tail)));
        rest = match (known, from.strip_prefix("$$")) {
            (Some((value, tail)), _) => {
                expanded.push_str(value);
                tail
            }
            (None, Some(tail)) => {
                expanded.push('$');
                tail
            }
            (None, None) => {
                expanded.push('$');
                &from[1..]
            }
        };
    }
    expanded.push_str(rest);
    expanded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_expanded_as_in_a_pod() {
        let check = |text: &str, expect: &str| {
            let variables = BTreeMap::from([("PORT", "15103"), ("A", "$(PORT)")]);
            assert_eq!(expand(text, &variables), expect, "{text}");
        };
        check("--port=$(PORT)", "--port=15103");
        check("$(PORT)$(PORT)", "1510315103");
        check("$PORT ${PORT} $(NONE) $", "$PORT ${PORT} $(NONE) $");
        check("$$(PORT)", "$(PORT)");
        check("$(A)", "$(PORT)");
        check("$(PORT", "$(PORT");
        check("", "");
    }
}
