//! The plan of a mesh: what runs, in which service, on which port. Pure: a mesh file and a base
//! port in, a plan or located errors out.
//!
//! Everything is on 127.0.0.1, so every listener has a port of its own. `B` is the base port:
//!
//! | port | what |
//! |---|---|
//! | B+0 to B+9 | admin of the gateways, one each |
//! | B+10, B+12, B+14, B+88 | control plane: xDS in plaintext, certificates and xDS over TLS, monitoring, configuration API |
//! | B+100+10·i | a block per workload: +0 sidecar's admin, +1 its HTTP proxy, +2 inbound and +3 application port of the first port, from +4 inbound and application of the further ports, then one listener per TCP service |
//!
//! A workload that needs more than ten takes the next block too. Invariant: no port twice.
//!
//! In a mesh with transparent capture every workload has an address of its own, so its ports are
//! the real ones: the application listens where callers think it does, and the sidecar on Istio's
//! ports. Only the gateways and the control plane are on 127.0.0.1.

mod check;
mod ports;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use lateen_api::mesh_file::ProxyKind;
use lateen_api::{Diagnostic, ParsedMeshFile};
use serde_json::Value;

use crate::bootstrap;
use crate::capture::{Network, Parameters};
use crate::identity::Place;

pub use ports::{PortUse, PortsError, TakenPort, check_free};

/// Where the `Service` and `WorkloadEntry` of gateways live, as in Istio.
pub const ROOT_NAMESPACE: &str = "istio-system";
const DEFAULT_GATEWAY: &str = "istio-ingressgateway";
const DEFAULT_GATEWAY_PORT: u16 = 8080;
/// Says that a workload takes mutual TLS.
const TLS_MODE: &str = "security.istio.io/tlsMode";
/// From a gateway's HTTP port to its HTTPS port: 8080 and 8443.
const HTTPS_OFFSET: u16 = 363;

/// What to plan with besides the mesh file.
#[derive(Debug, Clone)]
pub struct PlanOptions {
    pub port_base: u16,
    /// Port of the first gateway, instead of the file's.
    pub gateway_port: Option<u16>,
    /// Directory that relative paths of the file start from.
    pub directory: PathBuf,
    /// Addresses for transparent capture; none: everything is on 127.0.0.1.
    pub network: Option<Network>,
}

/// A mesh, ready to be started.
#[derive(Debug, Clone)]
pub struct Plan {
    pub name: Option<String>,
    /// With transparent capture.
    pub network: Option<Network>,
    pub control: ControlPorts,
    pub gateways: Vec<Gateway>,
    pub services: Vec<Service>,
    pub workloads: Vec<Workload>,
    /// Files and directories of YAML for the first start.
    pub config: Vec<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ControlPorts {
    /// Discovery without TLS.
    pub xds: u16,
    /// Certificates, and discovery over TLS.
    pub secure: u16,
    pub monitoring: u16,
    pub api: u16,
}

#[derive(Debug, Clone)]
pub struct Gateway {
    pub name: String,
    pub namespace: String,
    pub admin: u16,
    pub http: u16,
    pub https: u16,
    pub readiness_path: Option<String>,
    /// The person runs this gateway's proxy.
    pub external_proxy: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    pub name: String,
    pub namespace: String,
    pub ports: Vec<ServicePort>,
    /// Its virtual address, with transparent capture.
    pub address: Option<Ipv4Addr>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    pub name: String,
    pub number: u16,
    pub protocol: Protocol,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Http,
    Http2,
    Grpc,
    Tcp,
}

impl Protocol {
    /// As Kubernetes' `appProtocol` and Istio's port names spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Http2 => "http2",
            Self::Grpc => "grpc",
            Self::Tcp => "tcp",
        }
    }
}

#[derive(Debug, Clone)]
pub struct Workload {
    pub name: String,
    pub namespace: String,
    pub service: String,
    pub labels: BTreeMap<String, String>,
    pub service_account: String,
    pub command: Vec<String>,
    pub env: BTreeMap<String, String>,
    pub directory: PathBuf,
    pub readiness_path: Option<String>,
    pub annotations: BTreeMap<String, String>,
    /// `region/zone/subzone`, if it is said to run somewhere.
    pub locality: Option<String>,
    /// Where it is: 127.0.0.1, or its own with transparent capture.
    pub address: Ipv4Addr,
    /// What of its traffic is captured.
    pub capture: Parameters,
    /// User of the application, with transparent capture.
    pub run_as_user: Option<u32>,
    /// The person runs this workload's sidecar.
    pub external_proxy: bool,
    /// The sidecar's admin port.
    pub admin: u16,
    /// Where the sidecar takes the application's HTTP requests.
    pub outbound: u16,
    pub ports: Vec<WorkloadPort>,
    /// Listeners of the sidecar for TCP services.
    pub tcp_outbound: Vec<TcpOutbound>,
}

#[derive(Debug, Clone)]
pub struct WorkloadPort {
    pub name: String,
    /// The service's port.
    pub service: u16,
    pub protocol: Protocol,
    /// Where the sidecar takes requests for this port.
    pub inbound: u16,
    /// Where the application listens.
    pub app: u16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpOutbound {
    pub service: String,
    pub namespace: String,
    pub port: u16,
    /// Where the sidecar takes connections to that service.
    pub local: u16,
}

impl TcpOutbound {
    /// `mysql.default.svc.cluster.local:3306`
    pub fn host_and_port(&self) -> String {
        format!(
            "{}.{}.svc.cluster.local:{}",
            self.service, self.namespace, self.port
        )
    }
}

impl Gateway {
    /// As Istio's charts call it.
    pub fn service_account(&self) -> String {
        format!("{}-service-account", self.name)
    }
}

impl Workload {
    pub fn version(&self) -> &str {
        self.labels.get("version").map_or("", String::as_str)
    }
}

/// Why a proxy's ports cannot be moved.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    #[error("there is no workload {0:?}")]
    Unknown(String),
    #[error("the ports of the proxy of {0:?} do not fit below 65536; choose a lower port")]
    TooHigh(String),
}

impl Plan {
    /// Gives the listeners of one proxy ports of their own from `first` on. What else is in the
    /// plan keeps its ports, applications included.
    pub fn move_proxy(&mut self, name: &str, first: u16) -> Result<(), MoveError> {
        let mut next = Some(first);
        let mut take = || {
            let port = next.ok_or_else(|| MoveError::TooHigh(name.to_owned()))?;
            next = port.checked_add(1);
            Ok::<u16, MoveError>(port)
        };
        if let Some(gateway) = self
            .gateways
            .iter_mut()
            .find(|gateway| gateway.name == name)
        {
            gateway.admin = take()?;
            return Ok(());
        }
        let workload = self
            .workloads
            .iter_mut()
            .find(|workload| workload.name == name);
        let workload = workload.ok_or_else(|| MoveError::Unknown(name.to_owned()))?;
        (workload.admin, workload.outbound) = (take()?, take()?);
        for port in &mut workload.ports {
            port.inbound = take()?;
        }
        for tcp in &mut workload.tcp_outbound {
            tcp.local = take()?;
        }
        Ok(())
    }

    /// The bootstrap of the proxy of a workload or gateway, whose identity is at `place`.
    pub fn bootstrap_of(&self, name: &str, place: &Place) -> Option<Value> {
        let gateway = self.gateways.iter().find(|gateway| gateway.name == name);
        let workload = self.workloads.iter().find(|workload| workload.name == name);
        match (gateway, workload) {
            (Some(gateway), _) => Some(bootstrap::gateway(self, gateway, place)),
            (None, Some(workload)) => Some(bootstrap::sidecar(self, workload, place)),
            (None, None) => None,
        }
    }
}

/// Why a mesh file cannot be run.
#[derive(Debug)]
pub enum PlanError {
    /// What is wrong in the file, with its places: every error at once.
    File(Vec<Diagnostic>),
    /// The file is right, its ports do not fit this machine.
    Ports(PortsError),
}

/// Plans a mesh file.
pub fn plan(parsed: &ParsedMeshFile, options: &PlanOptions) -> Result<Plan, PlanError> {
    check::check(parsed).map_err(PlanError::File)?;
    let file = &parsed.file;
    let services = services(file);
    let workloads: Vec<Workload> = file
        .workloads
        .iter()
        .map(|workload| planned_workload(file, workload, options))
        .collect();
    let mut plan = Plan {
        name: (!file.name.is_empty()).then(|| file.name.clone()),
        network: options.network,
        control: ControlPorts {
            xds: 0,
            secure: 0,
            monitoring: 0,
            api: 0,
        },
        gateways: planned_gateways(file, options),
        services,
        workloads,
        config: file
            .config
            .iter()
            .map(|path| options.directory.join(path))
            .collect(),
    };
    match options.network {
        None => ports::assign(&mut plan, options.port_base),
        Some(network) => ports::assign_addresses(&mut plan, options.port_base, network),
    }
    .map_err(PlanError::Ports)?;
    Ok(plan)
}

fn planned_gateways(file: &lateen_api::MeshFile, options: &PlanOptions) -> Vec<Gateway> {
    let mut gateways: Vec<Gateway> = file
        .gateways
        .iter()
        .map(|gateway| {
            let http = gateway.port.unwrap_or(DEFAULT_GATEWAY_PORT);
            Gateway {
                name: or(&gateway.name, DEFAULT_GATEWAY),
                namespace: or(&gateway.namespace, ROOT_NAMESPACE),
                admin: 0,
                http,
                https: gateway
                    .https_port
                    .unwrap_or(http.saturating_add(HTTPS_OFFSET)),
                readiness_path: set(&gateway.readiness_path),
                external_proxy: gateway.proxy == ProxyKind::External,
            }
        })
        .collect();
    if let (Some(gateway), Some(port)) = (gateways.first_mut(), options.gateway_port) {
        gateway.http = port;
        gateway.https = port.saturating_add(HTTPS_OFFSET);
    }
    gateways
}

/// The services of all workloads, each once. A workload without ports only calls others and needs
/// none: a Service has at least one port.
fn services(file: &lateen_api::MeshFile) -> Vec<Service> {
    let mut services: Vec<Service> = Vec::new();
    for workload in file
        .workloads
        .iter()
        .filter(|workload| !workload.ports.is_empty())
    {
        let (name, namespace) = (service_of(workload), namespace_of(file, workload));
        let ports = (0..workload.ports.len()).filter_map(|index| service_port(workload, index));
        let known = services
            .iter_mut()
            .find(|s| s.name == name && s.namespace == namespace);
        match known {
            // Workloads may serve different ports of one service.
            Some(known) => {
                for port in ports {
                    if !known.ports.iter().any(|other| other.number == port.number) {
                        known.ports.push(port);
                    }
                }
            }
            None => services.push(Service {
                name,
                namespace,
                ports: ports.collect(),
                address: None,
            }),
        }
    }
    services
}

fn planned_workload(
    file: &lateen_api::MeshFile,
    workload: &lateen_api::mesh_file::Workload,
    options: &PlanOptions,
) -> Workload {
    let service = service_of(workload);
    let mut labels = workload.labels.clone();
    labels
        .entry("app".to_owned())
        .or_insert_with(|| service.clone());
    if !workload.version.is_empty() {
        labels.insert("version".to_owned(), workload.version.clone());
    }
    // As Istio's injector: others may expect its proxy to have a certificate.
    labels
        .entry(TLS_MODE.to_owned())
        .or_insert_with(|| "istio".to_owned());
    let ports = workload
        .ports
        .iter()
        .enumerate()
        .filter_map(|(index, port)| {
            let ServicePort {
                name,
                number,
                protocol,
            } = service_port(workload, index)?;
            let app = port.app_port.unwrap_or(0);
            Some(WorkloadPort {
                name,
                service: number,
                protocol,
                inbound: 0,
                app,
            })
        });
    Workload {
        name: workload.name.clone(),
        namespace: namespace_of(file, workload),
        labels,
        service_account: or(&workload.service_account, "default"),
        command: workload.command.clone(),
        env: workload.env.clone(),
        directory: options.directory.join(Path::new(&workload.working_dir)),
        readiness_path: set(&workload.readiness_path),
        annotations: workload.annotations.clone(),
        locality: set(&workload.locality),
        address: Ipv4Addr::LOCALHOST,
        // `check` has said what is wrong with them.
        capture: Parameters::from_annotations(&workload.annotations).unwrap_or_default(),
        run_as_user: workload.run_as_user,
        external_proxy: workload.proxy == ProxyKind::External,
        admin: 0,
        outbound: 0,
        ports: ports.collect(),
        tcp_outbound: Vec::new(),
        service,
    }
}

fn service_of(workload: &lateen_api::mesh_file::Workload) -> String {
    or(&workload.service, &workload.name)
}

fn namespace_of(file: &lateen_api::MeshFile, workload: &lateen_api::mesh_file::Workload) -> String {
    or(&workload.namespace, &or(&file.namespace, "default"))
}

/// A workload's port as its service has it. None if it cannot be understood, which `check` reports.
fn service_port(workload: &lateen_api::mesh_file::Workload, index: usize) -> Option<ServicePort> {
    let port = workload.ports.get(index)?;
    let protocol = protocol_of(port)?;
    let name = or(&port.name, protocol.as_str());
    Some(ServicePort {
        name,
        number: port.port?,
        protocol,
    })
}

/// The protocol as said, else from the port's name as Istio reads it (`grpc-web` is grpc), else
/// HTTP.
fn protocol_of(port: &lateen_api::mesh_file::WorkloadPort) -> Option<Protocol> {
    let said = |text: &str| match text.to_ascii_lowercase().as_str() {
        "http" => Some(Protocol::Http),
        "http2" => Some(Protocol::Http2),
        "grpc" => Some(Protocol::Grpc),
        "tcp" => Some(Protocol::Tcp),
        _ => None,
    };
    if !port.protocol.is_empty() {
        return said(&port.protocol);
    }
    let prefix = port.name.split('-').next().unwrap_or_default();
    Some(said(prefix).unwrap_or(Protocol::Http))
}

fn set(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

fn or(text: &str, default: &str) -> String {
    if text.is_empty() {
        default.to_owned()
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests;
