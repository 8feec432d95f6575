//! Rules of `VirtualService` outside of its HTTP routes (`http_route`).

use super::{Checker, Validate, http_route, names};
use crate::virtual_service::*;

impl Validate for VirtualService {
    fn validate(&self, check: &mut Checker) {
        if self.hosts.is_empty() {
            self.delegate(check);
        }
        let mesh = self.gateways.is_empty() || self.gateways.iter().any(|name| name == "mesh");
        check.list("hosts", &self.hosts, |check, host| {
            check.syntax(names::host(host));
            if mesh && host == "*" {
                check.error_hint(
                    "wildcard host * is not allowed for virtual services bound to the mesh gateway",
                    "name the hosts, or bind it to a gateway only with spec.gateways",
                );
            }
        });
        check.unique("hosts", "", self.hosts.iter().map(String::as_str), "host");
        gateways(check, &self.gateways);
        if self.http.is_empty() && self.tcp.is_empty() && self.tls.is_empty() {
            check.missing(
                "http",
                "http, tcp or tls must be provided in virtual service",
            );
        }
        check.list("http", &self.http, http_route::validate);
        if mesh {
            check.list("http", &self.http, http_route::without_claims);
        }
        http_route::unreachable(check, &self.http);
        check.list("tls", &self.tls, |check, route| {
            tls_route(check, route, &self.hosts)
        });
        check.list("tcp", &self.tcp, tcp_route);
        names::export_to(check, &self.export_to, false);
    }
}

impl VirtualService {
    /// Without hosts it is one that another VirtualService delegates to.
    fn delegate(&self, check: &mut Checker) {
        check.list("http", &self.http, |check, route| {
            if route.delegate.is_some() {
                check.field("delegate", |check| {
                    check.error_hint(
                        "a delegate cannot delegate further",
                        "give the VirtualService hosts, or the rule a route",
                    )
                });
            }
        });
        if !self.gateways.is_empty() {
            check.field("gateways", |check| {
                check.error("a virtual service without hosts (a delegate) must have no gateways")
            });
        }
        if !self.tcp.is_empty() || !self.tls.is_empty() {
            check.missing(
                "hosts",
                "a virtual service with tcp or tls routes needs hosts",
            );
        }
    }
}

pub fn gateways(check: &mut Checker, gateways: &[String]) {
    check.list("gateways", gateways, |check, name| {
        check.syntax(names::gateway(name))
    });
}

pub fn source_namespace(check: &mut Checker, namespace: &str) {
    if !namespace.is_empty() {
        check.field("sourceNamespace", |check| {
            check.syntax(names::label(namespace))
        });
    }
}

fn tls_route(check: &mut Checker, route: &TlsRoute, hosts: &[String]) {
    if route.matches.is_empty() {
        check.missing("match", "TLS route must have at least one match condition");
    }
    check.list("match", &route.matches, |check, matches| {
        if matches.sni_hosts.is_empty() {
            check.missing("sniHosts", "TLS match must have at least one SNI host");
        }
        check.list("sniHosts", &matches.sni_hosts, |check, sni| {
            check.syntax(names::wildcard_domain(sni));
            if !hosts.iter().any(|host| covers(host, sni)) {
                let hosts = hosts.join(", ");
                check.error(format!("SNI host {sni:?} is not a compatible subset of any of the virtual service domains: [{hosts}]"));
            }
        });
        subnets(check, &matches.destination_subnets);
        check.some("port", &matches.port, |check, port| check.port(*port));
        names::selector(check, "sourceLabels", &matches.source_labels);
        gateways(check, &matches.gateways);
        source_namespace(check, &matches.source_namespace);
    });
    route_destinations(check, &route.route, "TLS");
}

/// Whether every name that `narrow` stands for is one of `wide`.
fn covers(wide: &str, narrow: &str) -> bool {
    match wide.strip_prefix('*') {
        Some(suffix) => narrow.strip_prefix('*').unwrap_or(narrow).ends_with(suffix),
        None => wide.eq_ignore_ascii_case(narrow),
    }
}

fn tcp_route(check: &mut Checker, route: &TcpRoute) {
    check.list("match", &route.matches, |check, matches| {
        subnets(check, &matches.destination_subnets);
        if !matches.source_subnet.is_empty() {
            check.field("sourceSubnet", |check| {
                check.syntax(names::ip_or_cidr(&matches.source_subnet))
            });
        }
        check.some("port", &matches.port, |check, port| check.port(*port));
        names::selector(check, "sourceLabels", &matches.source_labels);
        gateways(check, &matches.gateways);
        source_namespace(check, &matches.source_namespace);
    });
    route_destinations(check, &route.route, "TCP");
}

fn subnets(check: &mut Checker, subnets: &[String]) {
    check.list("destinationSubnets", subnets, |check, subnet| {
        check.syntax(names::ip_or_cidr(subnet))
    });
}

fn route_destinations(check: &mut Checker, route: &[RouteDestination], protocol: &str) {
    if route.is_empty() {
        check.missing("route", format!("{protocol} route is required"));
    }
    check.list("route", route, |check, to| {
        optional_destination(check, &to.destination);
        weight(check, to.weight);
    });
    total_weight(check, route.iter().map(|to| to.weight));
}

/// The `destination` field, which a route must have.
pub fn optional_destination(check: &mut Checker, to: &Option<Destination>) {
    match to {
        Some(to) => check.field("destination", |check| destination(check, to)),
        None => check.missing("destination", "destination is required"),
    }
}

pub fn destination(check: &mut Checker, to: &Destination) {
    match to.host.as_str() {
        "" => check.missing("host", "destination host is required"),
        "*" => check.field("host", |check| check.error("invalid destination host *")),
        host => check.field("host", |check| check.syntax(names::host(host))),
    }
    if !to.subset.is_empty() {
        check.field("subset", |check| check.syntax(names::label(&to.subset)));
    }
    check.some("port", &to.port, |check, port| {
        check.field("number", |check| check.port(port.number))
    });
}

pub fn weight(check: &mut Checker, weight: Option<i32>) {
    check.some("weight", &weight, |check, weight| {
        if *weight < 0 {
            check.error(format!("weight {weight} < 0"));
        }
    });
}

/// An only destination takes everything, whatever its weight.
pub fn total_weight(check: &mut Checker, weights: impl ExactSizeIterator<Item = Option<i32>>) {
    if weights.len() > 1
        && weights
            .map(|weight| weight.unwrap_or(0))
            .all(|weight| weight == 0)
    {
        check.field("route", |check| {
            check.error_hint(
                "total destination weight = 0",
                "give at least one destination a weight",
            )
        });
    }
}
