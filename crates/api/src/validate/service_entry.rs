//! Rules of `ServiceEntry` and `WorkloadEntry`.

use super::{Checker, Validate, names};
use crate::schema::Choice;
use crate::service_entry::*;
use crate::workload_entry::WorkloadEntry;

impl Validate for ServiceEntry {
    fn validate(&self, check: &mut Checker) {
        let resolution = self.resolution.unwrap_or_default();
        if self.resolution.is_none() && !resolution.is_effective() {
            check.warning(format!(
                "without resolution it is {}, which has no effect yet in this version",
                resolution.as_str()
            ));
        }
        self.hosts(check, resolution);
        check.list("addresses", &self.addresses, |check, address| {
            check.syntax(names::ip_or_cidr(address));
            if address.contains('/') && !matches!(resolution, Resolution::None | Resolution::Static)
            {
                check.error("CIDR addresses are allowed only for NONE/STATIC resolution types");
            }
        });
        if self.ports.is_empty() {
            check.missing("ports", "service entry must have at least one port");
        }
        check.list("ports", &self.ports, service_port);
        check.unique(
            "ports",
            "name",
            self.ports.iter().map(|port| port.name.as_str()),
            "port name",
        );
        let numbers: Vec<String> = self
            .ports
            .iter()
            .map(|port| port.number.to_string())
            .collect();
        check.unique(
            "ports",
            "number",
            numbers.iter().map(String::as_str),
            "port number",
        );
        check.at_most_one(&[
            ("endpoints", !self.endpoints.is_empty()),
            ("workloadSelector", self.workload_selector.is_some()),
        ]);
        check.some(
            "workloadSelector",
            &self.workload_selector,
            |check, selector| {
                names::selector(check, "labels", &selector.labels);
            },
        );
        self.endpoints(check, resolution);
        names::export_to(check, &self.export_to, true);
    }
}

impl ServiceEntry {
    fn hosts(&self, check: &mut Checker, resolution: Resolution) {
        if self.hosts.is_empty() {
            check.missing("hosts", "service entry must have at least one host");
        }
        check.list("hosts", &self.hosts, |check, host| {
            if host == "*" {
                return check.error_hint("invalid host *", "name a host, such as *.example.com");
            }
            check.syntax(names::wildcard_domain(host));
            let wildcard = host.starts_with('*');
            match resolution {
                Resolution::Dns | Resolution::DnsRoundRobin
                    if wildcard && self.endpoints.is_empty() =>
                {
                    check.error_hint(
                        "hosts must be FQDN if no endpoints are provided for resolution mode DNS",
                        "use resolution NONE for a wildcard host, or list endpoints",
                    )
                }
                Resolution::DynamicDns if !wildcard => {
                    check.error_hint(
                        "resolution DYNAMIC_DNS is for wildcard hosts",
                        "use resolution DNS",
                    );
                }
                _ => {}
            }
        });
        check.unique("hosts", "", self.hosts.iter().map(String::as_str), "host");
    }

    fn endpoints(&self, check: &mut Checker, resolution: Resolution) {
        let count = self.endpoints.len();
        match resolution {
            Resolution::None | Resolution::DynamicDns if count > 0 => {
                let name = resolution.as_str();
                let message = format!("no endpoints should be provided for resolution type {name}");
                let hint = "set resolution STATIC for addresses or DNS for names";
                check.field("endpoints", |check| check.error_hint(message, hint));
            }
            Resolution::Static if count == 0 && self.workload_selector.is_none() => {
                let message = "resolution STATIC needs endpoints or a workloadSelector";
                check.missing("endpoints", message);
            }
            Resolution::DnsRoundRobin if count > 1 => check.field("endpoints", |check| {
                let message =
                    "there must only be 0 or 1 endpoint for resolution mode DNS_ROUND_ROBIN";
                check.error(message);
            }),
            _ => {}
        }
        check.list("endpoints", &self.endpoints, |check, endpoint| {
            workload(check, endpoint);
            check.field("address", |check| {
                endpoint_address(check, &endpoint.address, resolution)
            });
            check.map("ports", &endpoint.ports, |check, name, _| {
                if !self.ports.iter().any(|port| port.name == name) {
                    let message =
                        format!("endpoint port {name:?} is not defined by the service entry");
                    check.error(message);
                }
            });
        });
    }
}

/// What the resolution asks of an address, beyond that it is one.
fn endpoint_address(check: &mut Checker, address: &str, resolution: Resolution) {
    let socket = address.starts_with("unix://");
    match resolution {
        Resolution::Static if !socket && !address.is_empty() && !names::is_ip(address) => {
            let message = format!("{address:?} is not an IP address");
            check.error_hint(message, "use resolution DNS for names");
        }
        Resolution::Dns | Resolution::DnsRoundRobin if socket => {
            check.error("a unix domain socket needs resolution STATIC");
        }
        _ => {}
    }
}

fn service_port(check: &mut Checker, port: &ServicePort) {
    check.field("number", |check| check.port(port.number));
    match port.name.as_str() {
        "" => check.missing("name", "port name is required"),
        name => check.field("name", |check| check.syntax(names::label(name))),
    }
    check.field("protocol", |check| {
        check.syntax(names::protocol(&port.protocol, &names::PROTOCOLS))
    });
    check.some("targetPort", &port.target_port, |check, port| {
        check.port(*port)
    });
}

impl Validate for WorkloadEntry {
    fn validate(&self, check: &mut Checker) {
        workload(check, self);
    }
}

fn workload(check: &mut Checker, entry: &WorkloadEntry) {
    let socket = entry.address.strip_prefix("unix://");
    match (entry.address.as_str(), socket) {
        // Reachable through its network's gateway.
        ("", _) if !entry.network.is_empty() => {}
        ("", _) => check.missing("address", "address is required"),
        (_, Some(path)) => {
            check.field("address", |check| {
                check.warning("a unix domain socket has no effect yet in this version");
            });
            if !path.starts_with(['/', '@']) {
                check.field("address", |check| {
                    check.error("the path of a unix domain socket must be absolute")
                });
            }
            if !entry.ports.is_empty() {
                check.field("ports", |check| {
                    check.error(format!(
                        "unix endpoint {} must not include ports",
                        entry.address
                    ))
                });
            }
        }
        (address, _) if !names::is_ip(address) => check.field("address", |check| {
            if names::fqdn(address).is_err() {
                check.error(format!(
                    "endpoint address {address:?} is not a valid FQDN or an IP address"
                ));
            }
        }),
        _ => {}
    }
    check.map("ports", &entry.ports, |check, name, number| {
        check.syntax(names::label(name));
        check.port(*number);
    });
    check.map("labels", &entry.labels, |check, key, value| {
        check.syntax(names::label_key(key));
        check.syntax(names::label_value(value));
    });
    if entry.locality.split('/').count() > 3
        || (!entry.locality.is_empty() && entry.locality.starts_with('/'))
    {
        check.field("locality", |check| {
            check.error(format!(
                "locality {:?} is not region/zone/subzone",
                entry.locality
            ))
        });
    }
    if !entry.service_account.is_empty() {
        check.field("serviceAccount", |check| {
            check.syntax(names::subdomain(&entry.service_account))
        });
    }
}
