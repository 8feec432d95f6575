//! Rules of `Sidecar`.

use std::net::SocketAddr;

use super::{Checker, Validate, gateway, names, traffic_policy};
use crate::gateway::{ServerTlsMode, ServerTlsSettings};
use crate::sidecar::*;

impl Validate for Sidecar {
    fn validate(&self, check: &mut Checker) {
        let nothing = self.ingress.is_empty()
            && self.egress.is_empty()
            && self.inbound_connection_pool.is_none()
            && self.outbound_traffic_policy.is_none();
        if nothing {
            check.missing(
                "egress",
                "the Sidecar says nothing: it needs ingress, egress, inboundConnectionPool or \
                 outboundTrafficPolicy",
            );
        }
        check.some(
            "workloadSelector",
            &self.workload_selector,
            |check, selector| {
                names::selector(check, "labels", &selector.labels);
            },
        );
        check.list("ingress", &self.ingress, ingress);
        check.list("egress", &self.egress, egress);
        listeners_differ(
            check,
            "ingress",
            self.ingress
                .iter()
                .map(|one| (one.port.as_ref(), one.bind.as_str())),
        );
        listeners_differ(
            check,
            "egress",
            self.egress
                .iter()
                .map(|one| (one.port.as_ref(), one.bind.as_str())),
        );
        self.catch_all_is_last(check);
        check.some(
            "inboundConnectionPool",
            &self.inbound_connection_pool,
            traffic_policy::connection_pool,
        );
        check.some(
            "outboundTrafficPolicy",
            &self.outbound_traffic_policy,
            outbound_traffic_policy,
        );
    }
}

impl Sidecar {
    fn catch_all_is_last(&self, check: &mut Checker) {
        let last = self.egress.len().saturating_sub(1);
        let mut index = 0;
        check.list("egress", &self.egress, |check, listener| {
            if listener.port.is_none() && index < last && listener.bind.is_empty() {
                check.error_hint(
                    "an egress listener without port takes what the others leave",
                    "move it to the end of the list, there can be one",
                );
            }
            index += 1;
        });
    }
}

/// Two listeners of one direction cannot share a socket.
fn listeners_differ<'a>(
    check: &mut Checker,
    name: &str,
    sockets: impl Iterator<Item = (Option<&'a SidecarPort>, &'a str)>,
) {
    let keys: Vec<String> = sockets
        .map(|(port, bind)| match port {
            _ if bind.starts_with("unix://") => bind.to_owned(),
            Some(port) if port.number > 0 => format!("{bind}:{}", port.number),
            _ => String::new(),
        })
        .collect();
    check.unique(name, "port", keys.iter().map(String::as_str), "listener");
}

fn ingress(check: &mut Checker, listener: &IstioIngressListener) {
    match &listener.port {
        None => check.missing("port", "an ingress listener needs a port"),
        Some(port) => socket(check, port, &listener.bind, listener.capture_mode, true),
    }
    check.field("defaultEndpoint", |check| {
        default_endpoint(check, &listener.default_endpoint);
    });
    check.some("tls", &listener.tls, ingress_tls);
    check.some(
        "connectionPool",
        &listener.connection_pool,
        traffic_policy::connection_pool,
    );
}

/// TLS of a sidecar's own: with files, and only of the kinds that need nothing of the mesh.
fn ingress_tls(check: &mut Checker, tls: &ServerTlsSettings) {
    gateway::tls(check, tls);
    if !matches!(
        tls.mode,
        Some(ServerTlsMode::Simple | ServerTlsMode::Mutual)
    ) {
        check.field("mode", |check| {
            check.error("must be SIMPLE or MUTUAL at an ingress listener");
        });
    }
    let of_secret = !tls.credential_name.is_empty() || !tls.credential_names.is_empty();
    if of_secret {
        check.field("credentialName", |check| {
            check.warning(
                "a sidecar gets no Secrets, so nobody can connect; name files with \
                 serverCertificate and privateKey",
            );
        });
    }
    check.warning(
        "counts only where mutual TLS is DISABLEd for the port, and only when the control plane is \
         started with ENABLE_TLS_ON_SIDECAR_INGRESS=true (as in Istio)",
    );
}

fn egress(check: &mut Checker, listener: &IstioEgressListener) {
    match &listener.port {
        Some(port) => socket(check, port, &listener.bind, listener.capture_mode, false),
        None if !listener.bind.is_empty() => {
            check.missing("port", "a listener with bind needs a port")
        }
        None => {}
    }
    if listener.hosts.is_empty() {
        check.missing("hosts", "an egress listener needs at least one host");
    }
    check.list("hosts", &listener.hosts, |check, host| {
        egress_host(check, host)
    });
    check.unique(
        "hosts",
        "",
        listener.hosts.iter().map(String::as_str),
        "host",
    );
}

/// `namespace/dnsName`.
fn egress_host(check: &mut Checker, host: &str) {
    let Some((namespace, name)) = host.split_once('/') else {
        return check.error_hint(
            format!("{host:?} is not namespace/dnsName"),
            format!("write \"./{host}\" for this namespace, \"*/{host}\" for any"),
        );
    };
    if !matches!(namespace, "." | "*" | "~") {
        check.syntax(names::label(namespace));
    }
    if namespace == "~" && name != "*" {
        return check.error_hint(
            format!("{host:?}: with no namespace there is no host"),
            "write \"~/*\"",
        );
    }
    check.syntax(names::wildcard_domain(name));
    if name != "*" && !name.contains('.') {
        check.error_hint(
            format!("short names (non FQDN) are not allowed: {name:?}"),
            format!("write {name}.NAMESPACE.svc.cluster.local"),
        );
    }
}

fn socket(
    check: &mut Checker,
    port: &SidecarPort,
    bind: &str,
    capture: Option<CaptureMode>,
    ingress: bool,
) {
    check.field("port", |check| {
        if !port.name.is_empty() {
            check.field("name", |check| check.syntax(names::label(&port.name)));
        }
        check.field("protocol", |check| {
            check.syntax(names::protocol(&port.protocol, &names::PROTOCOLS));
        });
    });
    let Some(path) = bind.strip_prefix("unix://") else {
        check.field("port", |check| {
            check.field("number", |check| check.port(port.number))
        });
        if !bind.is_empty() && !names::is_ip(bind) {
            check.field("bind", |check| {
                check.error(format!("{bind:?} is not a valid IP address"));
            });
        }
        return;
    };
    check.field("bind", |check| {
        match (ingress, path.starts_with(['/', '@'])) {
            (true, _) => check.error("an ingress listener cannot bind a unix domain socket"),
            (false, false) => check.error("the path of a unix domain socket must be absolute"),
            (false, true) => {}
        }
    });
    if capture == Some(CaptureMode::Iptables) {
        check.field("captureMode", |check| {
            check.error("captureMode must be DEFAULT or NONE for a unix domain socket");
        });
    }
}

fn default_endpoint(check: &mut Checker, endpoint: &str) {
    if endpoint.is_empty() {
        return;
    }
    if let Some(path) = endpoint.strip_prefix("unix://") {
        if !path.starts_with(['/', '@']) {
            check.error("the path of a unix domain socket must be absolute");
        }
        return;
    }
    let allowed = endpoint.parse::<SocketAddr>().is_ok_and(|address| {
        address.port() != 0 && (address.ip().is_loopback() || address.ip().is_unspecified())
    });
    let standard = ["127.0.0.1:", "0.0.0.0:", "[::1]:", "[::]:"];
    if !allowed || !standard.iter().any(|start| endpoint.starts_with(start)) {
        check.error(format!(
            "defaultEndpoint {endpoint:?} must be 127.0.0.1:PORT, 0.0.0.0:PORT, [::1]:PORT, \
             [::]:PORT or unix:///PATH"
        ));
    }
}

fn outbound_traffic_policy(check: &mut Checker, policy: &OutboundTrafficPolicy) {
    let Some(proxy) = &policy.egress_proxy else {
        return;
    };
    check.field("egressProxy", |check| {
        if policy.mode == Some(OutboundTrafficMode::RegistryOnly) {
            check.error_hint(
                "an egress proxy takes traffic for unknown hosts, which REGISTRY_ONLY refuses",
                "use mode ALLOW_ANY",
            );
        }
        check.field("host", |check| check.syntax(names::fqdn(&proxy.host)));
        match &proxy.port {
            None => check.missing("port", "egressProxy needs a port"),
            Some(port) => check.field("port", |check| {
                check.field("number", |check| check.port(port.number));
            }),
        }
    });
}
