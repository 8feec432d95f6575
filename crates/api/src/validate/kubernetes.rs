//! Rules of Kubernetes' `Service`.

use super::{Checker, Validate, mesh_config, names};
use crate::field::IntOrString;
use crate::kubernetes::*;

impl Validate for Service {
    fn validate(&self, check: &mut Checker) {
        let external = self.service_type == Some(ServiceType::ExternalName);
        if external {
            match self.external_name.as_str() {
                "" => check.missing(
                    "externalName",
                    "a Service of type ExternalName needs externalName",
                ),
                name => check.field("externalName", |check| check.syntax(names::fqdn(name))),
            }
        } else if self.ports.is_empty() && self.cluster_ip != "None" {
            check.missing("ports", "a Service needs at least one port");
        }
        check.list("ports", &self.ports, |check, port| {
            service_port(check, port, self.ports.len() > 1)
        });
        check.unique(
            "ports",
            "name",
            self.ports.iter().map(|port| port.name.as_str()),
            "port name",
        );
        let numbers: Vec<String> = self.ports.iter().map(port_and_protocol).collect();
        check.unique("ports", "port", numbers.iter().map(String::as_str), "port");
        names::selector(check, "selector", &self.selector);
        let cluster_ip = |check: &mut Checker, address: &String| {
            if !matches!(address.as_str(), "" | "None") && !names::is_ip(address) {
                check.error(format!("{address:?} is neither an IP address nor \"None\""));
            }
        };
        check.field("clusterIP", |check| cluster_ip(check, &self.cluster_ip));
        check.list("clusterIPs", &self.cluster_ips, cluster_ip);
        check.list("externalIPs", &self.external_ips, |check, address| {
            if !names::is_ip(address) {
                check.error(format!("{address:?} is not an IP address"));
            }
        });
        check.list(
            "loadBalancerSourceRanges",
            &self.load_balancer_source_ranges,
            |check, range| {
                check.syntax(names::ip_or_cidr(range.trim()));
            },
        );
    }
}

/// Its labels are metadata.
impl Validate for Namespace {
    fn validate(&self, _: &mut Checker) {}
}

impl Validate for ConfigMap {
    fn validate(&self, check: &mut Checker) {
        check.field("data", |check| {
            if let Some(text) = self.data.get("mesh") {
                check.field("mesh", |check| {
                    check.embedded(mesh_config::read(text, false).1);
                });
            }
        });
    }
}

fn port_and_protocol(port: &ServicePort) -> String {
    use crate::schema::Choice;
    format!(
        "{}/{}",
        port.port,
        port.protocol.unwrap_or_default().as_str()
    )
}

fn service_port(check: &mut Checker, port: &ServicePort, several: bool) {
    match port.name.as_str() {
        "" if several => check.missing(
            "name",
            "a port name is required when there are several ports",
        ),
        "" => {}
        name => check.field("name", |check| check.syntax(names::label(name))),
    }
    check.field("port", |check| check.port(port.port));
    check.some(
        "targetPort",
        &port.target_port,
        |check, target| match target {
            IntOrString::Int(number) => check.port(u32::try_from(*number).unwrap_or(0)),
            IntOrString::String(name) => check.syntax(port_name(name)),
        },
    );
    check.some("nodePort", &port.node_port, |check, port| {
        if *port != 0 {
            check.port(*port);
        }
    });
}

/// RFC 6335, section 5.1: at most 15 characters, with a letter among them.
pub(super) fn port_name(name: &str) -> names::Check {
    names::label(name)?;
    let valid =
        name.len() <= 15 && name.contains(|c: char| c.is_ascii_lowercase()) && !name.contains("--");
    valid.then_some(()).ok_or_else(|| {
        let hint = if name.parse::<u16>().is_ok() { " (a number is written without quotes)" } else { "" };
        format!("{name:?} is not a valid port name: at most 15 letters, digits and '-', with at least one letter{hint}")
    })
}
