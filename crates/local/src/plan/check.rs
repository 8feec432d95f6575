//! What a mesh file must be beyond its form: names, ports and services that fit together.

use std::collections::BTreeMap;

use lateen_api::mesh_file::{Workload, WorkloadPort};
use lateen_api::{Diagnostic, ParsedMeshFile, Path};

use crate::capture::Parameters;
use crate::capture::rules::PROXY_ID;

use super::{
    DEFAULT_GATEWAY, ServicePort, namespace_of, or, protocol_of, service_of, service_port,
};

/// Longest name of a Service and of a label value in Kubernetes (RFC 1123 label).
const MAX_NAME: usize = 63;

/// Collects what is wrong.
struct Findings<'a> {
    parsed: &'a ParsedMeshFile,
    found: Vec<Diagnostic>,
}

impl Findings<'_> {
    fn error(&mut self, path: &Path, message: impl Into<String>, remedy: impl Into<String>) {
        self.found
            .push(self.parsed.error(path, message.into(), Some(remedy.into())));
    }

    fn name(&mut self, path: &Path, what: &str, name: &str) {
        if !is_dns_label(name) {
            let message = format!("{name:?} cannot be the name of a {what}");
            let remedy = format!(
                "use at most {MAX_NAME} of a-z, 0-9 and -, with a letter or digit at both ends"
            );
            self.error(path, message, remedy);
        }
    }

    fn path(&mut self, path: &Path, value: &str) {
        if !value.is_empty() && !value.starts_with('/') {
            let message = format!("{value:?} is not the path of a URL");
            self.error(path, message, format!("write \"/{value}\""));
        }
    }
}

/// Every error of the file, in its order.
pub fn check(parsed: &ParsedMeshFile) -> Result<(), Vec<Diagnostic>> {
    let mut findings = Findings {
        parsed,
        found: Vec::new(),
    };
    let file = &parsed.file;
    let root = Path::root();
    for (field, value) in [("name", &file.name), ("namespace", &file.namespace)] {
        if !value.is_empty() {
            findings.name(&root.key(field), field_of_mesh(field), value);
        }
    }
    if file.workloads.is_empty() {
        let message = "the mesh has no workloads";
        findings.error(
            &root.key("workloads"),
            message,
            "list at least one under \"workloads\"",
        );
    }
    for (index, workload) in file.workloads.iter().enumerate() {
        check_workload(&mut findings, &root.key("workloads").index(index), workload);
    }
    check_unique_workloads(&mut findings);
    check_services(&mut findings);
    check_gateways(&mut findings);
    let mut found = findings.found;
    found.sort_by_key(|diagnostic| (diagnostic.line, diagnostic.column));
    if found.is_empty() { Ok(()) } else { Err(found) }
}

fn field_of_mesh(field: &str) -> &'static str {
    if field == "name" { "mesh" } else { "namespace" }
}

fn locality(findings: &mut Findings<'_>, path: &Path, locality: &str) {
    let parts: Vec<&str> = locality.split('/').collect();
    let is_part = |part: &&str| !part.is_empty() && !part.contains(['*', ' ']);
    if locality.is_empty() || (parts.len() <= 3 && parts.iter().all(is_part)) {
        return;
    }
    let message = format!("{locality:?} is not REGION/ZONE/SUBZONE");
    let remedy = "write it as in eu-west/eu-west-1a; later parts may be left out";
    findings.error(&path.key("locality"), message, remedy);
}

fn check_workload(findings: &mut Findings<'_>, path: &Path, workload: &Workload) {
    if workload.name.is_empty() {
        findings.error(path, "the workload has no name", "add \"name: NAME\"");
    } else {
        findings.name(&path.key("name"), "workload", &workload.name);
    }
    for (field, value) in [
        ("service", &workload.service),
        ("namespace", &workload.namespace),
        ("serviceAccount", &workload.service_account),
    ] {
        if !value.is_empty() {
            findings.name(&path.key(field), field, value);
        }
    }
    let said_twice = workload
        .labels
        .get("version")
        .is_some_and(|label| !workload.version.is_empty() && *label != workload.version);
    if said_twice {
        let message = "\"version\" and the label \"version\" differ";
        findings.error(
            &path.key("labels").key("version"),
            message,
            "keep one of them",
        );
    }
    if workload
        .labels
        .get("app")
        .is_some_and(|app| *app != service_of(workload))
    {
        let message = "the label \"app\" is not the name of the workload's service";
        let remedy = "remove it: it is set by itself, and the service selects workloads by it";
        findings.error(&path.key("labels").key("app"), message, remedy);
    }
    if workload.command.first().is_none_or(String::is_empty) {
        let remedy = "add \"command: [PROGRAM, ARGUMENT, ...]\"";
        findings.error(
            &path.key("command"),
            "the workload has no command to run",
            remedy,
        );
    }
    for name in workload.env.keys() {
        if name.is_empty() || name.contains(['=', '\0']) {
            let message = format!("{name:?} cannot be the name of an environment variable");
            findings.error(
                &path.key("env").key(name),
                message,
                "remove the character =",
            );
        }
    }
    findings.path(&path.key("readinessPath"), &workload.readiness_path);
    locality(findings, path, &workload.locality);
    if let Err(wrong) = Parameters::from_annotations(&workload.annotations) {
        for invalid in wrong {
            let at = path.key("annotations").key(&invalid.annotation);
            findings.error(&at, invalid.message, invalid.remedy);
        }
    }
    if workload.run_as_user == Some(PROXY_ID) {
        let message = format!("{PROXY_ID} is the sidecar's user, whose traffic is not captured");
        findings.error(&path.key("runAsUser"), message, "choose another user");
    }
    for (index, port) in workload.ports.iter().enumerate() {
        check_port(
            findings,
            &path.key("ports").index(index),
            workload,
            index,
            port,
        );
    }
    let first_is_tcp = workload
        .ports
        .first()
        .is_none_or(|port| protocol_of(port) == Some(super::Protocol::Tcp));
    if first_is_tcp && !workload.readiness_path.is_empty() {
        let message = "a readiness path needs a first port that speaks HTTP";
        let remedy = "remove it: without it, ready means that the first port accepts connections";
        findings.error(&path.key("readinessPath"), message, remedy);
    }
}

fn check_port(
    findings: &mut Findings<'_>,
    path: &Path,
    workload: &Workload,
    index: usize,
    port: &WorkloadPort,
) {
    match port.port {
        None => findings.error(
            path,
            "the port has no number",
            "add \"port: NUMBER\", the one that callers of the service use",
        ),
        Some(0) => findings.error(&path.key("port"), "0 is not a port", "use 1 to 65535"),
        Some(_) => {}
    }
    if port.app_port == Some(0) {
        let remedy = "remove it: the application is told its port in the variable PORT";
        findings.error(&path.key("appPort"), "0 is not a port", remedy);
    }
    if protocol_of(port).is_none() {
        let message = format!("{:?} is not a protocol of this version", port.protocol);
        findings.error(
            &path.key("protocol"),
            message,
            "use http, http2, grpc or tcp",
        );
        return;
    }
    if !port.name.is_empty() {
        findings.name(&path.key("name"), "port", &port.name);
    }
    let Some(own) = service_port(workload, index) else {
        return;
    };
    let earlier = (0..index).filter_map(|other| service_port(workload, other));
    for other in earlier {
        if other.number == own.number {
            let message = format!("port {} is listed twice", own.number);
            findings.error(&path.key("port"), message, "remove one of them");
        } else if other.name == own.name {
            let message = format!("two ports are named {:?}", own.name);
            findings.error(path, message, "give each port a name of its own");
        }
    }
}

fn check_unique_workloads(findings: &mut Findings<'_>) {
    let file = &findings.parsed.file;
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for (index, workload) in file.workloads.iter().enumerate() {
        let path = Path::root().key("workloads").index(index).key("name");
        if let Some(first) = seen.insert(&workload.name, index)
            && !workload.name.is_empty()
        {
            let message = format!("workloads[{first}] has the name {:?} too", workload.name);
            findings.error(&path, message, "a workload's name is unique in the mesh");
        }
        if RESERVED.contains(&workload.name.as_str()) {
            let message = format!("{:?} is a process of the mesh itself", workload.name);
            findings.error(&path, message, "choose another name");
        }
    }
}

/// Names of our own processes and their logs.
const RESERVED: [&str; 2] = ["control", DEFAULT_GATEWAY];

/// The workloads of a service must agree on what a port of it is.
fn check_services(findings: &mut Findings<'_>) {
    let file = &findings.parsed.file;
    let mut known: BTreeMap<(String, String, u16), (ServicePort, &str)> = BTreeMap::new();
    for (at, workload) in file.workloads.iter().enumerate() {
        for index in 0..workload.ports.len() {
            let Some(port) = service_port(workload, index) else {
                continue;
            };
            let key = (
                namespace_of(file, workload),
                service_of(workload),
                port.number,
            );
            let (first, by) = known.entry(key).or_insert((port.clone(), &workload.name));
            if *first != port {
                let path = Path::root()
                    .key("workloads")
                    .index(at)
                    .key("ports")
                    .index(index);
                let message = format!(
                    "port {} of service {:?} is {:?} ({}) here and {:?} ({}) in workload {by:?}",
                    port.number,
                    service_of(workload),
                    port.name,
                    port.protocol.as_str(),
                    first.name,
                    first.protocol.as_str(),
                );
                findings.error(&path, message, "give both the same name and protocol");
            }
        }
    }
}

fn check_gateways(findings: &mut Findings<'_>) {
    let file = &findings.parsed.file;
    let mut names: Vec<String> = Vec::new();
    for (index, gateway) in file.gateways.iter().enumerate() {
        let path = Path::root().key("gateways").index(index);
        let name = or(&gateway.name, DEFAULT_GATEWAY);
        findings.name(&path.key("name"), "gateway", &name);
        if !gateway.namespace.is_empty() {
            findings.name(&path.key("namespace"), "namespace", &gateway.namespace);
        }
        findings.path(&path.key("readinessPath"), &gateway.readiness_path);
        if names.contains(&name) || file.workloads.iter().any(|workload| workload.name == name) {
            let message = format!("the name {name:?} is taken");
            findings.error(&path, message, "add \"name: NAME\" with a name of its own");
        }
        if index > 0 && gateway.port.is_none() {
            findings.error(
                &path,
                "a second gateway needs a port",
                "add \"port: NUMBER\"",
            );
        }
        for (field, port) in [("port", gateway.port), ("httpsPort", gateway.https_port)] {
            if port == Some(0) {
                findings.error(&path.key(field), "0 is not a port", "use 1 to 65535");
            }
        }
        names.push(name);
    }
    if file.gateways.len() > 10 {
        let message = format!("{} gateways are more than ten", file.gateways.len());
        findings.error(
            &Path::root().key("gateways"),
            message,
            "remove some of them",
        );
    }
}

/// RFC 1123 label, as Kubernetes requires of most names.
fn is_dns_label(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    !name.is_empty()
        && name.len() <= MAX_NAME
        && name.chars().all(|c| plain(c) || c == '-')
        && name.starts_with(plain)
        && name.ends_with(plain)
}
