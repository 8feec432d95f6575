//! `/clusters`: circuit breakers and endpoints of every cluster.

use super::query::Query;
use super::{json, listeners};
use crate::main_thread::ProxyState;
use crate::main_thread::config::Origin;
use crate::stats::{Kind, Scope, Stat as _, StatValue, StatsSnapshot};
use crate::upstream::outlier::OutlierStatus;
use axum::response::{IntoResponse, Response};
use lateen_proxy_config::{
    Address, Cluster, ClusterKind, Endpoint, EndpointSet, HealthStatus, LocalityEndpoints,
    Thresholds,
};
use serde_json::{Value, json};
use std::fmt::Write;
use std::sync::Arc;

/// One cluster as it stands.
struct Status {
    cluster: Arc<Cluster>,
    added_via_api: bool,
    endpoints: Option<Arc<EndpointSet>>,
    outlier: Option<OutlierStatus>,
}

pub(super) fn show(proxy: &ProxyState, query: &Query) -> Response {
    let statuses = collect(proxy);
    let stats = proxy.workers.stats();
    if query.get("format") == Some("json") {
        let statuses: Vec<Value> = statuses.iter().map(|s| as_json(s, &stats)).collect();
        return json(&json!({ "cluster_statuses": statuses }));
    }
    let mut out = String::new();
    for status in &statuses {
        as_text(status, &stats, &mut out);
    }
    out.into_response()
}

fn collect(proxy: &ProxyState) -> Vec<Status> {
    let config = proxy.config();
    let active = config.clusters.iter().filter_map(|(name, entry)| {
        let cluster = entry.active.as_ref()?.value.clone();
        Some(Status {
            outlier: proxy.workers.outlier_status(name),
            cluster,
            added_via_api: entry.origin == Origin::Ads,
            endpoints: config.cluster_endpoints.get(name).cloned(),
        })
    });
    active.collect()
}

impl Status {
    fn hosts(&self) -> impl Iterator<Item = (&LocalityEndpoints<Endpoint>, &Endpoint)> {
        let localities = self.endpoints.iter().flat_map(|set| &set.localities);
        localities.flat_map(|l| l.endpoints.iter().map(move |e| (l, e)))
    }

    fn eds_service_name(&self) -> Option<&str> {
        match &self.cluster.kind {
            ClusterKind::Eds { service_name } if *service_name != self.cluster.name => {
                Some(service_name)
            }
            _ => None,
        }
    }

    fn is_ejected(&self, endpoint: &Endpoint) -> bool {
        let address = endpoint.address.socket();
        self.outlier
            .as_ref()
            .zip(address)
            .is_some_and(|(outlier, address)| outlier.ejected.contains(&address))
    }

    /// Envoy's words in the text form.
    fn health_flags(&self, endpoint: &Endpoint) -> String {
        let eds = match endpoint.health {
            HealthStatus::Unknown | HealthStatus::Healthy => "",
            HealthStatus::Unhealthy | HealthStatus::Timeout => "/failed_eds_health",
            HealthStatus::Draining => "/eds_status_draining",
            HealthStatus::Degraded => "/degraded_eds_health",
        };
        let outlier = match self.is_ejected(endpoint) {
            true => "/failed_outlier_check",
            false => "",
        };
        match (outlier, eds) {
            ("", "") => "healthy".to_owned(),
            (outlier, eds) => format!("{outlier}{eds}"),
        }
    }

    /// Percent of good answers, and of connections made, in the last interval.
    fn success_rates(&self, endpoint: &Endpoint) -> (Option<f64>, Option<f64>) {
        let address = endpoint.address.socket();
        self.outlier
            .as_ref()
            .zip(address)
            .and_then(|(outlier, address)| outlier.rates.get(&address).copied())
            .unwrap_or_default()
    }

    /// What the workers counted for one endpoint, by name.
    fn counted(&self, endpoint: &Endpoint, stats: &StatsSnapshot) -> Vec<StatValue> {
        let names = crate::stats::EndpointStat::ALL;
        let scope = match endpoint.address {
            Address::Socket(address) => Some(Scope::Endpoint(self.cluster.name.clone(), address)),
            Address::Pipe(_) => None,
        };
        names
            .iter()
            .map(|(name, kind)| StatValue {
                name,
                kind: *kind,
                value: scope.as_ref().map_or(0, |scope| stats.value(scope, name)),
            })
            .collect()
    }
}

// Writing to a string cannot fail, so the results below are not looked at.
fn as_text(status: &Status, stats: &StatsSnapshot, out: &mut String) {
    let cluster = &status.cluster;
    let name = &cluster.name;
    let _ = writeln!(out, "{name}::observability_name::{}", cluster.stat_name);
    for (priority, limits) in [
        ("default", &cluster.thresholds),
        ("high", &cluster.high_thresholds),
    ] {
        for (limit, value) in limit_values(limits) {
            let _ = writeln!(out, "{name}::{priority}_priority::{limit}::{value}");
        }
    }
    let _ = writeln!(out, "{name}::added_via_api::{}", status.added_via_api);
    if let Some(service) = status.eds_service_name() {
        let _ = writeln!(out, "{name}::eds_service_name::{service}");
    }
    for (locality, endpoint) in status.hosts() {
        let host = format!("{name}::{}", endpoint.address);
        for stat in status.counted(endpoint, stats) {
            let _ = writeln!(out, "{host}::{}::{}", stat.name, stat.value);
        }
        let place = &locality.locality;
        let _ = writeln!(out, "{host}::hostname::{}", endpoint.hostname);
        let _ = writeln!(
            out,
            "{host}::health_flags::{}",
            status.health_flags(endpoint)
        );
        let _ = writeln!(out, "{host}::weight::{}", endpoint.weight);
        let _ = writeln!(out, "{host}::region::{}", place.region);
        let _ = writeln!(out, "{host}::zone::{}", place.zone);
        let _ = writeln!(out, "{host}::sub_zone::{}", place.sub_zone);
        let _ = writeln!(out, "{host}::canary::false");
        let _ = writeln!(out, "{host}::priority::{}", locality.priority);
        let (rate, local_rate) = status.success_rates(endpoint);
        let _ = writeln!(out, "{host}::success_rate::{}", rate.unwrap_or(-1.0));
        let _ = writeln!(
            out,
            "{host}::local_origin_success_rate::{}",
            local_rate.unwrap_or(-1.0)
        );
    }
}

fn limit_values(limits: &Thresholds) -> [(&'static str, u32); 4] {
    [
        ("max_connections", limits.max_connections),
        ("max_pending_requests", limits.max_pending_requests),
        ("max_requests", limits.max_requests),
        ("max_retries", limits.max_retries),
    ]
}

fn eds_health(health: HealthStatus) -> &'static str {
    match health {
        // Envoy shows hosts without a status as healthy.
        HealthStatus::Unknown | HealthStatus::Healthy => "HEALTHY",
        HealthStatus::Unhealthy => "UNHEALTHY",
        HealthStatus::Draining => "DRAINING",
        HealthStatus::Timeout => "TIMEOUT",
        HealthStatus::Degraded => "DEGRADED",
    }
}

fn as_json(status: &Status, stats: &StatsSnapshot) -> Value {
    let cluster = &status.cluster;
    let thresholds = |priority: &str, limits: &Thresholds| {
        let mut json = json!({ "priority": priority });
        for (limit, value) in limit_values(limits) {
            json[limit] = value.into();
        }
        json
    };
    let hosts: Vec<Value> = status
        .hosts()
        .map(|(locality, endpoint)| host_json(status, locality, endpoint, stats))
        .collect();
    let mut json = json!({
        "name": &*cluster.name,
        "added_via_api": status.added_via_api,
        "host_statuses": hosts,
        "circuit_breakers": { "thresholds": [
            thresholds("DEFAULT", &cluster.thresholds),
            thresholds("HIGH", &cluster.high_thresholds),
        ] },
        "observability_name": &*cluster.stat_name,
    });
    if let Some(service) = status.eds_service_name() {
        json["eds_service_name"] = service.into();
    }
    json
}

fn host_json(
    status: &Status,
    locality: &LocalityEndpoints<Endpoint>,
    endpoint: &Endpoint,
    stats: &StatsSnapshot,
) -> Value {
    let values: Vec<Value> = status
        .counted(endpoint, stats)
        .into_iter()
        .map(|stat| {
            let mut json = json!({});
            // Defaults (COUNTER, 0) are left out of proto3 JSON; 64-bit numbers are strings.
            if stat.kind == Kind::Gauge {
                json["type"] = "GAUGE".into();
            }
            if stat.value != 0 {
                json["value"] = stat.value.to_string().into();
            }
            json["name"] = stat.name.into();
            json
        })
        .collect();
    let address = match &endpoint.address {
        Address::Socket(address) => listeners::address(*address),
        Address::Pipe(path) => json!({ "pipe": { "path": path } }),
    };
    let place = &locality.locality;
    let mut json = json!({
        "address": address,
        "stats": values,
        "health_status": { "eds_health_status": eds_health(endpoint.health) },
        "weight": endpoint.weight,
        "hostname": &*endpoint.hostname,
        "locality": {},
    });
    if status.is_ejected(endpoint) {
        json["health_status"]["failed_outlier_check"] = true.into();
    }
    for (key, value) in [
        ("region", &place.region),
        ("zone", &place.zone),
        ("sub_zone", &place.sub_zone),
    ] {
        if !value.is_empty() {
            json["locality"][key] = (**value).into();
        }
    }
    if locality.priority != 0 {
        json["priority"] = locality.priority.into();
    }
    json
}
