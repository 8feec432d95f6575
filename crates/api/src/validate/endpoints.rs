//! Rules of Kubernetes' `EndpointSlice` and `Endpoints` (`pkg/apis/discovery/validation`). Addresses
//! on loopback are taken: on one machine, that is where everything is.

use std::net::IpAddr;

use super::{Checker, Validate, names};
use crate::endpoints::*;
use crate::object::{Object, Spec};

/// As many as Kubernetes takes.
const MAX_ENDPOINTS: usize = 1000;
const MAX_ADDRESSES: usize = 100;
const MAX_PORTS: usize = 20_000;

impl Validate for EndpointSlice {
    fn validate(&self, check: &mut Checker) {
        if self.address_type.is_none() {
            check.missing(
                "addressType",
                "an EndpointSlice needs addressType: IPv4 or IPv6",
            );
        }
        if self.endpoints.len() > MAX_ENDPOINTS {
            check.field("endpoints", |check| {
                check.error_hint(
                    format!(
                        "{} endpoints, at most {MAX_ENDPOINTS}",
                        self.endpoints.len()
                    ),
                    "write several EndpointSlices",
                );
            });
        }
        let kind = self.address_type;
        check.list("endpoints", &self.endpoints, |check, endpoint| {
            slice_endpoint(check, endpoint, kind);
        });
        ports(check, &self.ports);
    }
}

fn slice_endpoint(check: &mut Checker, endpoint: &SliceEndpoint, kind: Option<AddressType>) {
    match endpoint.addresses.len() {
        0 => check.missing("addresses", "an endpoint needs at least one address"),
        many if many > MAX_ADDRESSES => check.field("addresses", |check| {
            check.error(format!("{many} addresses, at most {MAX_ADDRESSES}"));
        }),
        _ => {}
    }
    check.list("addresses", &endpoint.addresses, |check, address| {
        let found = address.parse::<IpAddr>();
        match (kind, found) {
            (None, _) => {}
            (Some(AddressType::Fqdn), _) => check.syntax(names::fqdn(address)),
            (Some(AddressType::Ipv4), Ok(found)) if found.is_ipv4() => {}
            (Some(AddressType::Ipv6), Ok(found)) if found.is_ipv6() => {}
            (Some(kind), _) => {
                use crate::schema::Choice;
                check.error(format!("{address:?} is not an {} address", kind.as_str()));
            }
        }
    });
    labels(check, &endpoint.hostname, &endpoint.node_name);
}

fn labels(check: &mut Checker, hostname: &str, node: &str) {
    if !hostname.is_empty() {
        check.field("hostname", |check| check.syntax(names::label(hostname)));
    }
    if !node.is_empty() {
        check.field("nodeName", |check| check.syntax(names::subdomain(node)));
    }
}

fn ports(check: &mut Checker, all: &[EndpointPort]) {
    if all.len() > MAX_PORTS {
        check.field("ports", |check| {
            check.error(format!("{} ports, at most {MAX_PORTS}", all.len()));
        });
    }
    let several = all.len() > 1;
    check.list("ports", all, |check, port| {
        match port.name.as_str() {
            "" if several => check.missing(
                "name",
                "a port name is required when there are several ports",
            ),
            "" => {}
            name => check.field("name", |check| check.syntax(names::label(name))),
        }
        match port.port {
            None => check.missing("port", "a port needs its number"),
            Some(number) => check.field("port", |check| check.port(number)),
        }
    });
    let named = all.iter().map(|port| port.name.as_str());
    check.unique("ports", "name", named, "port name");
}

impl Validate for Endpoints {
    fn validate(&self, check: &mut Checker) {
        check.list("subsets", &self.subsets, |check, subset| {
            if subset.addresses.is_empty() && subset.not_ready_addresses.is_empty() {
                check.missing("addresses", "a subset needs addresses or notReadyAddresses");
            }
            for (name, addresses) in [
                ("addresses", &subset.addresses),
                ("notReadyAddresses", &subset.not_ready_addresses),
            ] {
                check.list(name, addresses, |check, address| {
                    if !names::is_ip(&address.ip) {
                        let message = format!("{:?} is not an IP address", address.ip);
                        check.field("ip", |check| check.error(message));
                    }
                    labels(check, &address.hostname, &address.node_name);
                });
            }
            ports(check, &subset.ports);
        });
    }
}

/// A slice belongs to the Service that its label names.
pub(super) fn metadata(object: &Object, check: &mut Checker) {
    let labels = &object.meta.labels;
    if matches!(object.spec, Spec::EndpointSlice(_)) && !labels.contains_key(SERVICE_NAME) {
        check.warning(format!(
            "without the label {SERVICE_NAME} the EndpointSlice belongs to no Service"
        ));
    }
}
