//! Which port everything gets, and whether those ports are free.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use super::{ControlPorts, Plan, Protocol, TcpOutbound};

const XDS: u16 = 10;
const MONITORING: u16 = 14;
const API: u16 = 88;
const FIRST_BLOCK: u16 = 100;
const BLOCK: u16 = 10;

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
}

/// Gives every listener of the plan its port.
pub(super) fn assign(plan: &mut Plan, base: u16) -> Result<(), PortsError> {
    let beyond = || PortsError::Beyond(base);
    let at = |offset: u16| base.checked_add(offset).ok_or_else(beyond);
    plan.control = ControlPorts {
        xds: at(XDS)?,
        monitoring: at(MONITORING)?,
        api: at(API)?,
    };
    for (gateway, offset) in plan.gateways.iter_mut().zip(0..) {
        gateway.admin = at(offset)?;
    }
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

/// One port and who needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortUse {
    pub port: u16,
    pub what: String,
    /// What gives this listener another port.
    pub remedy: &'static str,
}

impl Plan {
    /// Every port of the plan.
    pub fn ports(&self) -> Vec<PortUse> {
        const BASE: &str = "--port-base PORT moves it together with all others";
        const GATEWAY: &str = "--port PORT chooses another for the gateway";
        let mut ports = Vec::new();
        let mut add = |port: u16, what: String, remedy| ports.push(PortUse { port, what, remedy });
        for gateway in &self.gateways {
            let name = &gateway.name;
            add(gateway.http, format!("the gateway {name} (HTTP)"), GATEWAY);
            add(
                gateway.https,
                format!("the gateway {name} (HTTPS)"),
                GATEWAY,
            );
            add(
                gateway.admin,
                format!("the admin interface of gateway {name}"),
                BASE,
            );
        }
        add(self.control.xds, "the control plane (xDS)".to_owned(), BASE);
        add(
            self.control.monitoring,
            "the control plane (monitoring)".to_owned(),
            BASE,
        );
        add(
            self.control.api,
            "the control plane (configuration API)".to_owned(),
            BASE,
        );
        for workload in &self.workloads {
            let name = &workload.name;
            add(
                workload.admin,
                format!("the admin interface of the sidecar of {name}"),
                BASE,
            );
            add(
                workload.outbound,
                format!("the outbound listener of the sidecar of {name}"),
                BASE,
            );
            for port in &workload.ports {
                let port_name = &port.name;
                add(
                    port.inbound,
                    format!("the inbound listener of {name} ({port_name})"),
                    BASE,
                );
                let remedy = "the mesh file's \"appPort\" or --port-base changes it";
                add(
                    port.app,
                    format!("the application {name} ({port_name})"),
                    remedy,
                );
            }
            for tcp in &workload.tcp_outbound {
                let target = tcp.host_and_port();
                add(
                    tcp.local,
                    format!("the listener for {target} in the sidecar of {name}"),
                    BASE,
                );
            }
        }
        ports
    }
}

fn twice(plan: &Plan) -> Option<(PortUse, PortUse)> {
    let mut seen: BTreeMap<u16, PortUse> = BTreeMap::new();
    for port in plan.ports() {
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
