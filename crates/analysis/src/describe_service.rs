//! What holds for one service: its ports and workloads, the rules on the way to it, the policies at its
//! workloads, and the gateways that lead to it. What `lateen x describe service` tells.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lateen_api::Field;
use lateen_api::destination_rule::TrafficPolicy;
use lateen_api::virtual_service::{Destination, HttpMatchRequest, HttpRoute};
use lateen_model::{
    DestinationRule, MESH_GATEWAY, MeshSnapshot, ServerHost, Service, TargetPort, VirtualService,
    Workload, hostname, labels_match,
};
use serde::Serialize;
use serde_json::Value;

use crate::describe::{DescribedPolicy, full_name, is_for, mode, policy, rules_about};

/// What holds for one service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceDescription {
    pub name: String,
    pub namespace: String,
    pub host: String,
    pub ports: Vec<DescribedServicePort>,
    pub workloads: Vec<DescribedMember>,
    pub destination_rule: Option<DescribedDestination>,
    pub virtual_services: Vec<DescribedRouting>,
    pub gateways: Vec<DescribedExposure>,
    /// Of all workloads; each says whose it is.
    pub authorization_policies: Vec<PolicyOfMembers>,
}

/// A port, and what connections the workloads behind it take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DescribedServicePort {
    pub name: String,
    pub number: u32,
    pub protocol: String,
    pub target_port: String,
    /// The modes of the workloads; usually one.
    pub mtls: Vec<&'static str>,
}

/// A workload that the service selects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DescribedMember {
    /// `name.namespace`.
    pub name: String,
    pub address: String,
    pub subsets: Vec<String>,
    /// Whether its proxy has a certificate of the mesh.
    pub takes_mtls: bool,
    pub healthy: bool,
}

/// The DestinationRule that clients in the service's namespace use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DescribedDestination {
    /// `name.namespace` of the objects it is merged from, oldest first.
    pub names: Vec<String>,
    pub traffic_policy: Value,
    pub subsets: Vec<DescribedSubset>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DescribedSubset {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub traffic_policy: Value,
    /// How many workloads are in it.
    pub workloads: usize,
}

/// A VirtualService, and its routes that concern the service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DescribedRouting {
    pub name: String,
    pub gateways: Vec<String>,
    pub routes: Vec<DescribedRoute>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DescribedRoute {
    /// `http[0]`, as field paths name it.
    pub at: String,
    /// Alternatives, as they are written; none: everything.
    pub matches: Vec<Value>,
    /// `reviews v2 10%`, or what else becomes of a request.
    pub to: Vec<String>,
    /// What else the route does: `timeout`, `retries`, `fault`, ...
    pub also: Vec<&'static str>,
}

/// A Gateway with a server through which the service is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DescribedExposure {
    /// `namespace/name`.
    pub gateway: String,
    /// `80 HTTP bookinfo.example`.
    pub servers: Vec<String>,
    pub by: String,
}

/// An AuthorizationPolicy, and whose requests it decides on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyOfMembers {
    #[serde(flatten)]
    pub policy: DescribedPolicy,
    pub workloads: Vec<String>,
}

/// What holds for a service; `None` when there is none of this name.
pub fn describe_service(
    snapshot: &MeshSnapshot,
    namespace: &str,
    name: &str,
) -> Option<ServiceDescription> {
    let named = |service: &&Arc<Service>| service.name == name && service.namespace == namespace;
    let service = snapshot.services().find(named)?;
    let members: Vec<&Arc<Workload>> = snapshot
        .workloads()
        .filter(|workload| {
            let mut services = snapshot.services_of(workload);
            services.any(|one| one.hostname == service.hostname)
        })
        .collect();
    let rule = snapshot.destination_rule(&service.namespace, service);
    Some(ServiceDescription {
        name: service.name.clone(),
        namespace: service.namespace.clone(),
        host: service.hostname.to_string(),
        ports: ports(snapshot, service, &members),
        workloads: members.iter().map(|one| member(one, rule)).collect(),
        destination_rule: rule.map(|rule| destination(rule, &members)),
        virtual_services: rules_about(snapshot, service)
            .map(|rule| routing(snapshot, rule, service))
            .collect(),
        gateways: exposures(snapshot, service),
        authorization_policies: policies(snapshot, &members),
    })
}

fn ports(
    snapshot: &MeshSnapshot,
    service: &Service,
    members: &[&Arc<Workload>],
) -> Vec<DescribedServicePort> {
    let described = service.ports.iter().map(|port| {
        let modes = members.iter().map(|workload| {
            let of = snapshot.mtls_in(&workload.namespace);
            let of = of.of_workload(&workload.labels);
            let own = workload.port_for(service, port);
            mode(of.of_port(own.into_iter().chain([port.number])))
        });
        let modes: BTreeSet<&'static str> = modes.collect();
        DescribedServicePort {
            name: port.name.clone(),
            number: port.number,
            protocol: port.protocol.as_str().to_owned(),
            target_port: match &port.target {
                TargetPort::Number(number) => number.to_string(),
                TargetPort::Name(name) => name.clone(),
            },
            mtls: modes.into_iter().collect(),
        }
    });
    described.collect()
}

fn member(workload: &Workload, rule: Option<&Arc<DestinationRule>>) -> DescribedMember {
    let subsets = rule.into_iter().flat_map(|rule| &rule.subsets);
    DescribedMember {
        name: format!("{}.{}", workload.name, workload.namespace),
        address: workload.address.clone(),
        subsets: subsets
            .filter(|subset| labels_match(&subset.labels, &workload.labels))
            .map(|subset| subset.name.clone())
            .collect(),
        takes_mtls: workload.takes_mtls(),
        healthy: workload.healthy,
    }
}

fn destination(rule: &DestinationRule, members: &[&Arc<Workload>]) -> DescribedDestination {
    let policy = |policy: &Option<TrafficPolicy>| {
        let written = policy.as_ref().map(Field::encode);
        written.unwrap_or_else(|| Value::Object(serde_json::Map::new()))
    };
    let subsets = rule.subsets.iter().map(|subset| DescribedSubset {
        name: subset.name.clone(),
        labels: subset.labels.clone(),
        traffic_policy: policy(&subset.traffic_policy),
        workloads: members
            .iter()
            .filter(|workload| labels_match(&subset.labels, &workload.labels))
            .count(),
    });
    DescribedDestination {
        names: rule.origins.iter().map(full_name).collect(),
        traffic_policy: policy(&rule.traffic_policy),
        subsets: subsets.collect(),
    }
}

/// The routes of a rule for the service, or those that lead to it of a rule for others.
fn routing(snapshot: &MeshSnapshot, rule: &VirtualService, service: &Service) -> DescribedRouting {
    let namespace = &rule.origin.namespace;
    let own = is_for(rule, service);
    let leads = |to: &Destination| {
        let host = hostname::resolve(&to.host, namespace, &snapshot.settings.domain_suffix);
        *host == *service.hostname
    };
    let mut routes = Vec::new();
    for (index, http) in rule.spec.http.iter().enumerate() {
        let mut to = http.route.iter().filter_map(|one| one.destination.as_ref());
        if own || to.any(leads) {
            routes.push(http_route(index, http));
        }
    }
    let tls = rule.spec.tls.iter().enumerate().map(|(index, tls)| {
        let matches = tls.matches.iter().map(Field::encode).collect();
        (format!("tls[{index}]"), matches, &tls.route)
    });
    let tcp = rule.spec.tcp.iter().enumerate().map(|(index, tcp)| {
        let matches = tcp.matches.iter().map(Field::encode).collect();
        (format!("tcp[{index}]"), matches, &tcp.route)
    });
    for (at, matches, route) in tls.chain(tcp) {
        let mut to = route.iter().filter_map(|one| one.destination.as_ref());
        if own || to.any(leads) {
            let to = route
                .iter()
                .map(|one| (one.destination.as_ref(), one.weight));
            routes.push(DescribedRoute {
                at,
                matches,
                to: shares(to.collect()),
                also: Vec::new(),
            });
        }
    }
    let gateways = rule.gateways.iter().map(|gateway| match gateway.as_str() {
        MESH_GATEWAY => "mesh".to_owned(),
        other => other.to_owned(),
    });
    DescribedRouting {
        name: full_name(&rule.origin),
        gateways: gateways.collect(),
        routes,
    }
}

fn http_route(index: usize, http: &HttpRoute) -> DescribedRoute {
    let to = match (&http.redirect, &http.direct_response, &http.delegate) {
        (Some(_), _, _) => vec!["a redirect".to_owned()],
        (_, Some(response), _) => vec![format!("status {}", response.status)],
        (_, _, Some(delegate)) => vec![format!("the routes of {}", delegate.name)],
        _ => {
            let to = http.route.iter();
            shares(
                to.map(|one| (one.destination.as_ref(), one.weight))
                    .collect(),
            )
        }
    };
    let also = [
        ("rewrite", http.rewrite.is_some()),
        ("timeout", http.timeout.is_some()),
        ("retries", http.retries.is_some()),
        ("fault", http.fault.is_some()),
        ("mirror", http.mirror.is_some() || !http.mirrors.is_empty()),
        ("corsPolicy", http.cors_policy.is_some()),
        ("headers", http.headers.is_some()),
    ];
    DescribedRoute {
        at: match http.name.as_str() {
            "" => format!("http[{index}]"),
            name => format!("http[{index}] {name:?}"),
        },
        matches: http.matches.iter().map(HttpMatchRequest::encode).collect(),
        to,
        also: also
            .into_iter()
            .filter_map(|(name, set)| set.then_some(name))
            .collect(),
    }
}

/// Destinations with their shares; one alone gets everything (fact 8).
fn shares(to: Vec<(Option<&Destination>, Option<i32>)>) -> Vec<String> {
    let weight = |weight: Option<i32>| i64::from(weight.unwrap_or(0).max(0));
    let total: i64 = to.iter().map(|(_, one)| weight(*one)).sum();
    let only = to.len() == 1;
    let one = |(destination, share): (Option<&Destination>, Option<i32>)| {
        let destination = destination?;
        let mut text = destination.host.clone();
        if !destination.subset.is_empty() {
            text = format!("{text} {}", destination.subset);
        }
        if let Some(port) = &destination.port {
            text = format!("{text} port {}", port.number);
        }
        if !only && total > 0 {
            text = format!("{text} {}%", weight(share) * 100 / total);
        }
        Some(text)
    };
    to.into_iter().filter_map(one).collect()
}

/// Gateways to which a rule is bound that leads to the service.
fn exposures(snapshot: &MeshSnapshot, service: &Service) -> Vec<DescribedExposure> {
    let mut found = Vec::new();
    let domain = &snapshot.settings.domain_suffix;
    for rule in rules_about(snapshot, service) {
        let mut to = rule.destinations(domain).into_iter();
        if !to.any(|host| *host == *service.hostname) {
            continue;
        }
        for gateway in snapshot.gateways() {
            let name = gateway.full_name();
            if !rule.gateways.contains(&name) {
                continue;
            }
            let mut servers = Vec::new();
            for server in &gateway.spec.servers {
                let hosts = server.hosts.iter().filter(|text| {
                    let host = ServerHost::parse(text, &gateway.origin.namespace);
                    let lower = host.host.to_ascii_lowercase();
                    let meets = |of: &String| hostname::intersection(&lower, of).is_some();
                    host.admits(&rule.origin.namespace) && rule.hosts.iter().any(meets)
                });
                let hosts: Vec<&str> = hosts.map(String::as_str).collect();
                if let (Some(port), false) = (&server.port, hosts.is_empty()) {
                    let hosts = hosts.join(", ");
                    servers.push(format!("{} {} {hosts}", port.number, port.protocol));
                }
            }
            if !servers.is_empty() {
                found.push(DescribedExposure {
                    gateway: name,
                    servers,
                    by: full_name(&rule.origin),
                });
            }
        }
    }
    found
}

fn policies(snapshot: &MeshSnapshot, members: &[&Arc<Workload>]) -> Vec<PolicyOfMembers> {
    let mut found: Vec<PolicyOfMembers> = Vec::new();
    for workload in members {
        let name = format!("{}.{}", workload.name, workload.namespace);
        let of = snapshot.authorization_policies(&workload.namespace, &workload.labels);
        for one in of.map(|one| policy(one)) {
            match found.iter_mut().find(|known| known.policy == one) {
                Some(known) => known.workloads.push(name.clone()),
                None => found.push(PolicyOfMembers {
                    policy: one,
                    workloads: vec![name.clone()],
                }),
            }
        }
    }
    found
}
