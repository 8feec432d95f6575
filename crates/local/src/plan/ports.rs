//! Which port everything gets, and whether those ports are free.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use crate::capture::{Network, rules};

use super::{ControlPorts, Gateway, Plan, Protocol, TcpOutbound, Workload};

const XDS: u16 = 10;
const SECURE: u16 = 12;
const MONITORING: u16 = 14;
const API: u16 = 88;
const FIRST_BLOCK: u16 = 100;
const BLOCK: u16 = 10;

impl PortUse {
    fn new(port: u16, what: String, remedy: &'static str) -> Self {
        Self { port, what, remedy }
    }
}

/// Why the ports of a mesh cannot be chosen.
#[derive(Debug, thiserror::Error)]
pub enum PortsError {
    #[error("the mesh needs ports beyond 65535 when they begin at {0}; choose a lower --port-base")]
    Beyond(u16),
    #[error(
        "port {} is needed twice: by {} and by {}; choose another --port or --port-base, or \
         another port in the mesh file",
        .first.port, .first.what, .second.what
    )]
    Twice { first: PortUse, second: PortUse },
    #[error(
        "the application {workload} cannot listen on port {port}, which is its sidecar's with \
         --transparent; give it another \"appPort\" in the mesh file"
    )]
    Reserved { workload: String, port: u16 },
    #[error("a mesh with --transparent has room for 32764 workloads and services, not for more")]
    Full,
}

/// Gives every listener of the plan its port.
pub(super) fn assign(plan: &mut Plan, base: u16) -> Result<(), PortsError> {
    let beyond = || PortsError::Beyond(base);
    let at = |offset: u16| base.checked_add(offset).ok_or_else(beyond);
    assign_own(plan, base)?;
    let tcp: Vec<(String, String, u16)> = plan
        .services
        .iter()
        .flat_map(|service| {
            let ports = service
                .ports
                .iter()
                .filter(|port| port.protocol == Protocol::Tcp);
            ports.map(|port| (service.name.clone(), service.namespace.clone(), port.number))
        })
        .collect();
    let mut block = at(FIRST_BLOCK)?;
    for workload in &mut plan.workloads {
        let mut next = block;
        let mut take = || {
            let port = next;
            next = next.checked_add(1).ok_or_else(beyond)?;
            Ok::<u16, PortsError>(port)
        };
        (workload.admin, workload.outbound) = (take()?, take()?);
        for port in &mut workload.ports {
            (port.inbound, port.app) = match (take()?, take()?, port.app) {
                (inbound, app, 0) => (inbound, app),
                (inbound, _, said) => (inbound, said),
            };
        }
        for (service, namespace, port) in &tcp {
            let local = take()?;
            let (service, namespace) = (service.clone(), namespace.clone());
            workload.tcp_outbound.push(TcpOutbound {
                service,
                namespace,
                port: *port,
                local,
            });
        }
        let blocks = (next - block).div_ceil(BLOCK).max(1);
        block = block.checked_add(blocks * BLOCK).ok_or_else(beyond)?;
    }
    match twice(plan) {
        Some((first, second)) => Err(PortsError::Twice { first, second }),
        None => Ok(()),
    }
}

/// Gives the control plane and the gateways their ports.
fn assign_own(plan: &mut Plan, base: u16) -> Result<(), PortsError> {
    let at = |offset: u16| base.checked_add(offset).ok_or(PortsError::Beyond(base));
    plan.control = ControlPorts {
        xds: at(XDS)?,
        secure: at(SECURE)?,
        monitoring: at(MONITORING)?,
        api: at(API)?,
    };
    for (gateway, offset) in plan.gateways.iter_mut().zip(0..) {
        gateway.admin = at(offset)?;
    }
    Ok(())
}

/// Gives every workload and service an address. Its ports are the real ones.
pub(super) fn assign_addresses(
    plan: &mut Plan,
    base: u16,
    network: Network,
) -> Result<(), PortsError> {
    assign_own(plan, base)?;
    for (index, workload) in plan.workloads.iter_mut().enumerate() {
        workload.address = network.workload(index).ok_or(PortsError::Full)?;
        workload.admin = rules::ADMIN_PORT;
        for port in &mut workload.ports {
            if port.app == 0 {
                port.app = port.service;
            }
            port.inbound = port.app;
            if rules::is_reserved(port.app) {
                let (workload, port) = (workload.name.clone(), port.app);
                return Err(PortsError::Reserved { workload, port });
            }
        }
    }
    for (index, service) in plan.services.iter_mut().enumerate() {
        service.address = Some(network.service(index).ok_or(PortsError::Full)?);
    }
    let own = plan
        .workloads
        .iter()
        .find_map(|workload| first_twice(app_ports(workload)));
    match own.or_else(|| twice(plan)) {
        Some((first, second)) => Err(PortsError::Twice { first, second }),
        None => Ok(()),
    }
}

fn app_ports(workload: &Workload) -> Vec<PortUse> {
    let ports = workload.ports.iter().map(|port| {
        let what = format!("the application {} ({})", workload.name, port.name);
        PortUse::new(port.app, what, MOVE_APP)
    });
    ports.collect()
}

/// One port and who needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortUse {
    pub port: u16,
    pub what: String,
    /// What gives this listener another port.
    pub remedy: &'static str,
}

const MOVE_ALL: &str = "--port-base PORT moves it together with all others";
const MOVE_GATEWAY: &str = "--port PORT chooses another for the gateway";
const MOVE_APP: &str = "the mesh file's \"appPort\" or --port-base changes it";

impl Plan {
    /// Every port of the plan that is on 127.0.0.1.
    pub fn ports(&self) -> Vec<PortUse> {
        let gateways = self.gateways.iter().flat_map(gateway_ports);
        let workloads = self.workloads.iter().filter(|_| self.network.is_none());
        let workloads = workloads.flat_map(workload_ports);
        gateways
            .chain(control_ports(self.control))
            .chain(workloads)
            .collect()
    }
}

fn gateway_ports(gateway: &Gateway) -> Vec<PortUse> {
    let name = &gateway.name;
    let admin = format!("the admin interface of gateway {name}");
    vec![
        PortUse::new(
            gateway.http,
            format!("the gateway {name} (HTTP)"),
            MOVE_GATEWAY,
        ),
        PortUse::new(
            gateway.https,
            format!("the gateway {name} (HTTPS)"),
            MOVE_GATEWAY,
        ),
        PortUse::new(gateway.admin, admin, MOVE_ALL),
    ]
}

fn control_ports(ports: ControlPorts) -> [PortUse; 4] {
    [
        (ports.xds, "xDS"),
        (ports.secure, "certificates and xDS over TLS"),
        (ports.monitoring, "monitoring"),
        (ports.api, "configuration API"),
    ]
    .map(|(port, what)| PortUse::new(port, format!("the control plane ({what})"), MOVE_ALL))
}

fn workload_ports(workload: &Workload) -> Vec<PortUse> {
    let name = &workload.name;
    let sidecar = |what: &str| format!("the {what} of the sidecar of {name}");
    let mut ports = vec![
        PortUse::new(workload.admin, sidecar("admin interface"), MOVE_ALL),
        PortUse::new(workload.outbound, sidecar("outbound listener"), MOVE_ALL),
    ];
    for port in &workload.ports {
        let inbound = format!("the inbound listener of {name} ({})", port.name);
        ports.push(PortUse::new(port.inbound, inbound, MOVE_ALL));
        let app = format!("the application {name} ({})", port.name);
        ports.push(PortUse::new(port.app, app, MOVE_APP));
    }
    for tcp in &workload.tcp_outbound {
        let listener = sidecar(&format!("listener for {}", tcp.host_and_port()));
        ports.push(PortUse::new(tcp.local, listener, MOVE_ALL));
    }
    ports
}

fn twice(plan: &Plan) -> Option<(PortUse, PortUse)> {
    first_twice(plan.ports())
}

fn first_twice(ports: Vec<PortUse>) -> Option<(PortUse, PortUse)> {
    let mut seen: BTreeMap<u16, PortUse> = BTreeMap::new();
    for port in ports {
        if let Some(first) = seen.insert(port.port, port.clone()) {
            return Some((first, port));
        }
    }
    None
}

/// A port that another program holds, or that may not be used.
#[derive(Debug, thiserror::Error)]
#[error("port {} is taken, and {} needs it ({reason}); {}", .needed.port, .needed.what, .needed.remedy)]
pub struct TakenPort {
    pub needed: PortUse,
    pub reason: String,
}

/// Finds the first port that is not free. Nothing is held afterwards: this is for a clear message
/// before anything starts, a listener still reports its own failure.
pub fn check_free(ports: &[PortUse]) -> Result<(), TakenPort> {
    for needed in ports {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, needed.port));
        let taken = |reason: String| TakenPort {
            needed: needed.clone(),
            reason,
        };
        TcpListener::bind(address).map_err(|error| taken(error.to_string()))?;
        // macOS lets 127.0.0.1 be bound while another program listens on all addresses.
        if TcpStream::connect_timeout(&address, Duration::from_millis(100)).is_ok() {
            return Err(taken("another program answers there".to_owned()));
        }
    }
    Ok(())
}
