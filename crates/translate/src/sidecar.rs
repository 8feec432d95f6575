//! What a Sidecar says about listeners: the ports of a workload with where they lead, and egress
//! listeners with a port of their own.
//!
//! Without a Sidecar the ports are those the proxy was told (`LATEEN_INBOUND`). One with ingress
//! listeners has these and no others; a port of its own is found by its number on the workload or,
//! as the person who writes the Sidecar knows it, by the number of the service port that leads
//! there.

use std::net::SocketAddr;
use std::sync::Arc;

use lateen_api::destination_rule::ConnectionPoolSettings;
use lateen_api::gateway::ServerTlsSettings;
use lateen_api::sidecar::{CaptureMode, IstioIngressListener, SidecarPort};
use lateen_model::{
    Egress, Interception, MeshSnapshot, Protocol, Proxy, Scope, Service, ServicePort, Sidecar,
    TargetPort,
};

use crate::cache::ById;
use crate::envoy;

/// One port on which a workload is reached.
pub struct InboundPort {
    pub bind: String,
    /// The port that is listened on.
    pub number: u16,
    pub protocol: Protocol,
    /// What the port serves.
    pub service: Option<(Arc<Service>, ServicePort)>,
    pub to: InboundTarget,
    /// TLS of clients outside the mesh that ends here, where the mesh's own does not.
    pub tls: Option<ServerTlsSettings>,
}

impl InboundPort {
    /// The numbers that policies may know the port by: its own, and the one that the service behind
    /// it says workloads listen on. They differ where the mesh is on one machine.
    pub fn known_as(&self) -> Vec<u16> {
        let target = self
            .service
            .as_ref()
            .and_then(|(_, port)| match port.target {
                TargetPort::Number(number) => u16::try_from(number).ok(),
                TargetPort::Name(_) => None,
            });
        std::iter::once(self.number).chain(target).collect()
    }
}

/// Where an inbound cluster leads, and with which limits.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct InboundTarget {
    /// An IP address, or `unix://` and a path. `None`: where the connection was going.
    pub address: Option<String>,
    pub port: u16,
    /// The Sidecar whose limits count, and its ingress listener.
    pub limits: Option<(ById<Sidecar>, Option<usize>)>,
}

impl InboundTarget {
    /// The limits of connections to the application.
    pub fn connection_pool(&self) -> Option<&ConnectionPoolSettings> {
        let (sidecar, listener) = self.limits.as_ref()?;
        let spec = &sidecar.spec;
        listener
            .and_then(|index| spec.ingress.get(index)?.connection_pool.as_ref())
            .or(spec.inbound_connection_pool.as_ref())
    }
}

/// The ports of a sidecar's workload.
pub fn inbound_ports(
    snapshot: &MeshSnapshot,
    proxy: &Proxy,
    sidecar: Option<&Arc<Sidecar>>,
) -> Vec<InboundPort> {
    match sidecar.filter(|sidecar| !sidecar.spec.ingress.is_empty()) {
        // Where traffic is redirected, the services say which ports there are.
        None if proxy.interception == Interception::Redirect => Vec::new(),
        None => {
            let told = proxy.inbound.iter();
            told.map(|(port, app_port)| told_port(snapshot, proxy, sidecar, *port, *app_port))
                .collect()
        }
        Some(sidecar) => {
            let listeners = sidecar.spec.ingress.iter().enumerate();
            listeners
                .filter_map(|(index, one)| ingress_port(snapshot, proxy, sidecar, index, one))
                .collect()
        }
    }
}

fn told_port(
    snapshot: &MeshSnapshot,
    proxy: &Proxy,
    sidecar: Option<&Arc<Sidecar>>,
    port: u16,
    app_port: u16,
) -> InboundPort {
    let service = service_behind(snapshot, proxy, port);
    let limits = sidecar.filter(|sidecar| sidecar.spec.inbound_connection_pool.is_some());
    InboundPort {
        bind: proxy.bind.clone(),
        number: port,
        protocol: protocol_of(service.as_ref()),
        service,
        to: InboundTarget {
            address: Some("127.0.0.1".to_string()),
            port: app_port,
            limits: limits.map(|sidecar| (ById(sidecar.clone()), None)),
        },
        tls: None,
    }
}

fn ingress_port(
    snapshot: &MeshSnapshot,
    proxy: &Proxy,
    sidecar: &Arc<Sidecar>,
    index: usize,
    listener: &IstioIngressListener,
) -> Option<InboundPort> {
    let port = listener.port.as_ref()?;
    let number = u16::try_from(port.number).ok()?;
    let number = workload_port(snapshot, proxy, number);
    let service = service_behind(snapshot, proxy, number);
    let app_port = proxy.inbound.get(&number).copied().unwrap_or(number);
    let (address, app_port) = target(proxy, &listener.default_endpoint, app_port);
    let limited =
        listener.connection_pool.is_some() || sidecar.spec.inbound_connection_pool.is_some();
    Some(InboundPort {
        bind: match listener.bind.as_str() {
            "" => proxy.bind.clone(),
            bind => bind.to_string(),
        },
        number,
        protocol: declared(port, || protocol_of(service.as_ref())),
        service,
        to: InboundTarget {
            address,
            port: app_port,
            limits: limited.then(|| (ById(sidecar.clone()), Some(index))),
        },
        tls: match snapshot.settings.tls_at_sidecars {
            true => listener.tls.clone(),
            false => None,
        },
    })
}

/// The workload's port of this number, or the one that the service port of this number leads to.
fn workload_port(snapshot: &MeshSnapshot, proxy: &Proxy, number: u16) -> u16 {
    if proxy.inbound.contains_key(&number) {
        return number;
    }
    let Some(workload) = snapshot.workload_of(proxy) else {
        return number;
    };
    let led_to = snapshot.services_of(workload).find_map(|service| {
        let port = service.port(u32::from(number))?;
        u16::try_from(workload.port_for(service, port)?).ok()
    });
    led_to
        .filter(|port| proxy.inbound.contains_key(port))
        .unwrap_or(number)
}

/// The service port that a workload port serves: the first service, by host, that leads there.
fn service_behind(
    snapshot: &MeshSnapshot,
    proxy: &Proxy,
    port: u16,
) -> Option<(Arc<Service>, ServicePort)> {
    let workload = snapshot.workload_of(proxy)?;
    snapshot.services_of(workload).find_map(|service| {
        let found = service
            .ports
            .iter()
            .find(|one| workload.port_for(service, one) == Some(u32::from(port)))?;
        Some((service.clone(), found.clone()))
    })
}

fn protocol_of(service: Option<&(Arc<Service>, ServicePort)>) -> Protocol {
    service.map_or(Protocol::Undeclared, |(_, port)| port.protocol)
}

fn declared(port: &SidecarPort, otherwise: impl FnOnce() -> Protocol) -> Protocol {
    match port.protocol.as_str() {
        "" => otherwise(),
        text => Protocol::parse(text).unwrap_or(Protocol::Tcp),
    }
}

/// Address and port of a `defaultEndpoint`.
fn target(proxy: &Proxy, endpoint: &str, default_port: u16) -> (Option<String>, u16) {
    if endpoint.is_empty() {
        return (Some("127.0.0.1".to_string()), default_port);
    }
    if endpoint.starts_with(envoy::UNIX) {
        return (Some(endpoint.to_string()), default_port);
    }
    match endpoint.parse::<SocketAddr>() {
        // The workload's own address.
        Ok(address) if address.ip().is_unspecified() => {
            (Some(proxy.address.clone()), address.port())
        }
        Ok(address) => (Some(address.ip().to_string()), address.port()),
        Err(_) => (None, default_port),
    }
}

/// An egress listener with an address and port of its own.
pub struct EgressPort<'a> {
    pub bind: String,
    pub number: u16,
    pub protocol: EgressProtocol,
    pub egress: &'a Egress,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum EgressProtocol {
    /// An HTTP proxy for all of its hosts.
    HttpProxy,
    Http,
    Tcp,
}

/// The egress listeners that a proxy opens by itself: on Unix domain sockets, and on ports where
/// nothing is captured.
pub fn egress_ports<'a>(scope: &Scope<'a>, proxy: &Proxy) -> Vec<EgressPort<'a>> {
    let Some(sidecar) = scope.sidecar() else {
        return Vec::new();
    };
    let listeners = sidecar.spec.egress.iter().zip(&sidecar.egress);
    let made = listeners.filter_map(|(listener, egress)| {
        let port = listener.port.as_ref()?;
        // A path is nothing that could be captured.
        let socket = listener.bind.starts_with(envoy::UNIX);
        let captured = proxy.interception != Interception::None
            || listener.capture_mode == Some(CaptureMode::Iptables);
        if captured && !socket {
            return None;
        }
        let proxied = port.protocol.eq_ignore_ascii_case("HTTP_PROXY");
        let protocol = Protocol::parse(&port.protocol).unwrap_or(Protocol::Tcp);
        Some(EgressPort {
            // Istio binds 127.0.0.1 where nothing is captured.
            bind: match listener.bind.as_str() {
                "" => "127.0.0.1".to_string(),
                bind => bind.to_string(),
            },
            number: u16::try_from(port.number).ok()?,
            protocol: match protocol {
                _ if proxied => EgressProtocol::HttpProxy,
                protocol if protocol.is_http_or_undeclared() => EgressProtocol::Http,
                _ => EgressProtocol::Tcp,
            },
            egress,
        })
    });
    made.collect()
}
