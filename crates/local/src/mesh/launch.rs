//! The command line, environment and readiness of every process of a mesh.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::{CONTROL, StartError};
use crate::capture::{Namespaces, rules};
use crate::identity::Identities;
use crate::plan::{Gateway, Plan, Workload};
use crate::rundir::RunDir;
use crate::supervise::{Readiness, Spec};

/// Time for what is in flight when the mesh stops.
const GRACE: Duration = Duration::from_secs(3);
/// A person's own application may have more to finish.
const APP_GRACE: Duration = Duration::from_secs(5);
const EXIT_WITH_PARENT: &str = "--exit-with-parent";
/// The user that owns nothing.
const NOBODY: u32 = 65_534;
/// What leads a program to an HTTP proxy.
const PROXY_VARIABLES: [&str; 6] = [
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "ALL_PROXY",
    "all_proxy",
];

/// The name of an application's process and log.
pub fn app_name(workload: &str) -> String {
    workload.to_owned()
}

/// The name of a sidecar's process and log.
pub fn sidecar_name(workload: &str) -> String {
    format!("{workload}.sidecar")
}

/// The name of the DNS server beside a proxy that has none.
pub fn dns_name(workload: &str) -> String {
    format!("{workload}.dns")
}

/// The name of the agent beside a stock Envoy.
pub fn agent_name(proxy: &str) -> String {
    format!("{proxy}.agent")
}

/// Writes the bootstrap file of every proxy.
pub fn write_bootstraps(
    plan: &Plan,
    run_dir: &RunDir,
    identities: &Identities,
) -> Result<(), StartError> {
    let gateways = plan.gateways.iter().map(|gateway| &gateway.name);
    let workloads = plan.workloads.iter().map(|workload| &workload.name);
    for name in gateways.chain(workloads) {
        if let Some(content) = plan.bootstrap_of(name, &identities.of(name)) {
            write_json(&run_dir.bootstrap(name), &content)?;
        }
    }
    Ok(())
}

fn write_json(path: &Path, content: &Value) -> Result<(), StartError> {
    std::fs::write(path, format!("{content:#}\n")).map_err(|source| StartError::Write {
        path: path.to_owned(),
        source,
    })
}

/// Makes the processes of one mesh.
#[derive(Debug)]
pub struct Launcher {
    /// Our binary, which is every process of ours.
    pub lateen: PathBuf,
    /// Stock Envoy in the place of our proxy.
    pub envoy: Option<PathBuf>,
    /// With transparent capture.
    pub namespaces: Option<Namespaces>,
    pub identities: Arc<Identities>,
    /// Where the proxies find the authority.
    pub authority: SocketAddr,
}

impl Launcher {
    pub fn control(&self, plan: &Plan, run_dir: &RunDir, watched: Option<&Path>) -> Spec {
        let ports = plan.control;
        let mut args: Vec<OsString> = vec!["control".into(), EXIT_WITH_PARENT.into()];
        args.extend(["--data-dir".into(), run_dir.store().into_os_string()]);
        for (flag, port) in [
            ("--xds-port", ports.xds),
            ("--secure-port", ports.secure),
            ("--monitoring-port", ports.monitoring),
            ("--api-port", ports.api),
        ] {
            args.extend([flag.into(), port.to_string().into()]);
        }
        if let Some(network) = plan.network {
            args.extend(["--xds-bind".into(), network.host().to_string().into()]);
        }
        if let Some(directory) = watched {
            args.extend(["--config".into(), directory.as_os_str().to_owned()]);
        }
        let ready = Readiness::Http(format!("http://127.0.0.1:{}/ready", ports.monitoring));
        self.own(CONTROL.to_owned(), args, ready)
    }

    /// The proxy of a gateway, and an agent beside one that is not ours.
    pub fn gateway(&self, run_dir: &RunDir, gateway: &Gateway) -> Vec<Spec> {
        let account = gateway.service_account();
        let foreign = self.envoy.is_some() || gateway.external_proxy;
        let agent = || self.agent(&gateway.name, &gateway.namespace, &account);
        let mut specs: Vec<Spec> = foreign.then(agent).into_iter().collect();
        if !gateway.external_proxy {
            let ready = format!("http://127.0.0.1:{}/ready", gateway.admin);
            let args = self.proxy_command(&run_dir.bootstrap(&gateway.name), &gateway.name);
            specs.push(self.own(gateway.name.clone(), args, Readiness::Http(ready)));
        }
        specs
    }

    /// What gives a proxy that is not ours its certificate; ours needs nobody for that.
    fn agent(&self, proxy: &str, namespace: &str, account: &str) -> Spec {
        let mut args: Vec<OsString> = vec!["agent".into(), EXIT_WITH_PARENT.into()];
        let socket = self.identities.of(proxy).socket();
        args.extend(["--sds-socket".into(), socket.into_os_string()]);
        args.extend(["--workload-namespace".into(), namespace.into()]);
        args.extend(["--service-account".into(), account.into()]);
        args.extend(self.identity(proxy));
        self.own(agent_name(proxy), args, Readiness::Running)
    }

    /// The flags by which an agent, built in or not, finds the authority and its proof.
    fn identity(&self, proxy: &str) -> [OsString; 8] {
        let place = self.identities.of(proxy);
        [
            "--ca-address".into(),
            self.authority.to_string().into(),
            "--ca-root".into(),
            place.roots().into_os_string(),
            "--ca-crl".into(),
            place.revoked().into_os_string(),
            "--token".into(),
            place.token().into_os_string(),
        ]
    }

    /// The sidecar of a workload. Beside one that is not ours there is an agent, and beside stock
    /// Envoy in a namespace a DNS server too.
    pub fn sidecar(&self, run_dir: &RunDir, workload: &Workload) -> Vec<Spec> {
        let user = Some(rules::PROXY_ID);
        let foreign = self.envoy.is_some() || workload.external_proxy;
        let agent = || {
            let agent = self.agent(
                &workload.name,
                &workload.namespace,
                &workload.service_account,
            );
            self.enter(agent, workload, user, &[])
        };
        let mut specs: Vec<Spec> = foreign.then(agent).into_iter().collect();
        if workload.external_proxy {
            return specs;
        }
        let bootstrap = run_dir.bootstrap(&workload.name);
        let ready = format!("http://{}:{}/ready", workload.address, workload.admin);
        let args = self.proxy_command(&bootstrap, &workload.name);
        let proxy = self.own(sidecar_name(&workload.name), args, Readiness::Http(ready));
        let keep: Vec<&Path> = [bootstrap.as_path()]
            .into_iter()
            .chain(self.envoy.as_deref())
            .collect();
        specs.push(self.enter(proxy, workload, user, &keep));
        if self.envoy.is_some() && self.namespaces.is_some() {
            let args = vec![
                "dns".into(),
                EXIT_WITH_PARENT.into(),
                "--bootstrap".into(),
                bootstrap.clone().into_os_string(),
            ];
            let dns = self.own(dns_name(&workload.name), args, Readiness::Running);
            specs.push(self.enter(dns, workload, user, &keep));
        }
        specs
    }

    /// What follows `lateen` to run a proxy.
    fn proxy_command(&self, bootstrap: &Path, proxy: &str) -> Vec<OsString> {
        let bootstrap = bootstrap.as_os_str().to_owned();
        // Everything shares this machine's cores: one worker each keeps ten proxies small.
        let one: [OsString; 2] = ["--concurrency".into(), "1".into()];
        match &self.envoy {
            None => {
                let ours: [OsString; 3] = [
                    "proxy".into(),
                    EXIT_WITH_PARENT.into(),
                    "--bootstrap".into(),
                ];
                ours.into_iter()
                    .chain([bootstrap])
                    .chain(one)
                    .chain(self.identity(proxy))
                    .collect()
            }
            Some(envoy) => {
                let quiet = ["--disable-hot-restart", "--log-level", "warning"];
                let ends = ["--drain-time-s", "1"];
                let shim: [OsString; 2] = ["run-child".into(), "--".into()];
                shim.into_iter()
                    .chain([envoy.clone().into_os_string(), "-c".into(), bootstrap])
                    .chain(one)
                    .chain(quiet.into_iter().chain(ends).map(OsString::from))
                    .collect()
            }
        }
    }

    /// A process of our own binary, which leaves by itself when we do.
    fn own(&self, name: String, args: Vec<OsString>, readiness: Readiness) -> Spec {
        Spec {
            name,
            program: self.lateen.clone(),
            args,
            env: Vec::new(),
            env_remove: Vec::new(),
            directory: None,
            readiness,
            hint: None,
            grace: GRACE,
        }
    }

    /// An application: a person's command under the shim, or one of Bookinfo's.
    pub fn app(&self, workload: &Workload) -> Spec {
        let env = app_environment(workload, self.namespaces.is_some());
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
        let spec = Spec {
            name: app_name(&workload.name),
            program: self.lateen.clone(),
            args,
            directory: Some(workload.directory.clone()),
            readiness: app_readiness(workload, self.namespaces.is_some()),
            hint: self
                .namespaces
                .as_ref()
                .and(workload.ports.first())
                .map(|port| {
                    let to = port.app;
                    format!("does it listen on 0.0.0.0:{to}, as LISTEN_ADDRESS and PORT tell it?")
                }),
            grace: APP_GRACE,
            env_remove: match self.namespaces {
                // In a namespace the application needs no proxy, and ours is not reachable there.
                Some(_) => PROXY_VARIABLES.map(str::to_owned).to_vec(),
                None => Vec::new(),
            },
            env,
        };
        let user = workload.run_as_user.unwrap_or_else(ordinary_user);
        self.enter(spec, workload, Some(user), &[])
    }

    /// The same process in the workload's namespace, where there is one.
    fn enter(&self, spec: Spec, workload: &Workload, user: Option<u32>, keep: &[&Path]) -> Spec {
        let Some(namespaces) = &self.namespaces else {
            return spec;
        };
        let mut args: Vec<OsString> = vec!["in-namespace".into()];
        args.extend(["--net".into(), namespaces.path(&workload.name).into()]);
        let resolv_conf = namespaces.resolv_conf(&workload.namespace);
        args.extend(["--resolv-conf".into(), resolv_conf.into()]);
        if let Some(user) = user {
            args.extend(["--user".into(), user.to_string().into()]);
        }
        for file in keep {
            args.extend(["--keep".into(), file.as_os_str().to_owned()]);
        }
        args.extend(["--".into(), "lateen".into()]);
        args.extend(spec.args);
        Spec { args, ..spec }
    }
}

/// Who an application runs as in a namespace: the person who called sudo, or nobody.
fn ordinary_user() -> u32 {
    let person = std::env::var("SUDO_UID")
        .ok()
        .and_then(|id| id.parse().ok());
    person.filter(|id| *id != 0).unwrap_or(NOBODY)
}

/// In a namespace readiness is asked past the sidecar, on a port of its own.
fn app_readiness(workload: &Workload, in_namespace: bool) -> Readiness {
    let Some(first) = workload.ports.first() else {
        return Readiness::Running;
    };
    let port = match in_namespace {
        true => rules::PROBE_PORT,
        false => first.app,
    };
    let address = SocketAddr::from((workload.address, port));
    match &workload.readiness_path {
        Some(path) => Readiness::Http(format!("http://{address}{path}")),
        None => Readiness::Tcp(address),
    }
}

/// What an application is told: its address and ports, the way into its sidecar, and TCP services
/// in Kubernetes' convention (`MYSQL_SERVICE_HOST`, `MYSQL_SERVICE_PORT`). The mesh file's own
/// variables come last and may refer to these as `$(PORT)`.
fn app_environment(workload: &Workload, in_namespace: bool) -> Vec<(String, String)> {
    let mut env: Vec<(String, String)> = vec![("LATEEN_WORKLOAD".into(), workload.name.clone())];
    if in_namespace {
        env.push(("LISTEN_ADDRESS".into(), Ipv4Addr::UNSPECIFIED.to_string()));
    } else {
        let proxy = format!("http://127.0.0.1:{}", workload.outbound);
        env.extend([
            ("LISTEN_ADDRESS".into(), Ipv4Addr::LOCALHOST.to_string()),
            ("HTTP_PROXY".into(), proxy.clone()),
            ("http_proxy".into(), proxy),
            ("NO_PROXY".into(), "localhost,127.0.0.1".into()),
            ("no_proxy".into(), "localhost,127.0.0.1".into()),
            // Node.js looks at the variables above only when this one is set.
            ("NODE_USE_ENV_PROXY".into(), "1".into()),
        ]);
    }
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
