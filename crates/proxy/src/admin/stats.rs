//! `/stats` and `/stats/prometheus`.

use super::query::Query;
use super::{bad_request, json};
use crate::main_thread::config::Entry;
use crate::main_thread::{Phase, ProxyState};
use crate::stats::{Kind, LATENCY_BUCKETS_MS, LatencySnapshot, RbacOwner, Scope};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use lateen_proxy_config::{Endpoint, re2};
use lateen_telemetry::envoy_stats::{StatScope, dotted, tagged};
use lateen_telemetry::prometheus::{self, CONTENT_TYPE, Exposition};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

/// One statistic with its scope spelt out.
struct Stat {
    scope: Owned,
    name: String,
    value: Reading,
}

/// A [`StatScope`] that owns its text.
#[derive(Clone)]
enum Owned {
    Workers(Scope),
    Process(&'static str),
}

enum Reading {
    Number(Kind, u64),
    Text(String),
    Latency(LatencySnapshot),
}

impl Stat {
    fn scope(&self) -> StatScope<'_> {
        match &self.scope {
            Owned::Process(kind) => StatScope::Process(kind),
            Owned::Workers(Scope::Cluster(name) | Scope::Endpoint(name, _)) => {
                StatScope::Cluster(name)
            }
            Owned::Workers(Scope::Http(prefix)) => StatScope::Http(prefix),
            Owned::Workers(Scope::Listener(address)) => StatScope::Listener(address),
            Owned::Workers(Scope::Tcp(prefix)) => StatScope::Tcp(prefix),
            Owned::Workers(Scope::Rbac(owner, _) | Scope::RbacShadow(owner, _)) => match owner {
                RbacOwner::Http(prefix) => StatScope::Http(prefix),
                RbacOwner::Network(prefix) => StatScope::Process(prefix),
            },
            Owned::Workers(Scope::Authz(_)) => StatScope::Process("ext_authz"),
            Owned::Workers(Scope::Route(host, prefix)) => StatScope::Route(host, prefix),
            Owned::Workers(Scope::TlsInspector) => StatScope::Process("tls_inspector"),
            Owned::Workers(Scope::HttpInspector) => StatScope::Process("http_inspector"),
        }
    }

    fn is_used(&self) -> bool {
        !matches!(self.value, Reading::Number(_, 0))
    }

    fn is_of(&self, kind: &str) -> bool {
        match self.value {
            Reading::Number(Kind::Counter, _) => kind == "Counters",
            Reading::Number(Kind::Gauge, _) => kind == "Gauges",
            Reading::Text(_) => kind == "TextReadouts",
            Reading::Latency(_) => kind == "Histograms",
        }
    }
}

pub(super) fn show(proxy: &ProxyState, query: &Query) -> Response {
    match query.get("format") {
        None | Some("" | "text" | "html") => {}
        Some("json") => {
            return match selected(proxy, query) {
                Ok(stats) => json(&json!({ "stats": as_json(&stats) })),
                Err(error) => bad_request(error),
            };
        }
        Some("prometheus") => return self::prometheus(proxy, query),
        Some(_) => {
            return bad_request("usage: /stats?format=(text|json|prometheus)");
        }
    }
    match selected(proxy, query) {
        Ok(stats) => as_text(&stats).into_response(),
        Err(error) => bad_request(error),
    }
}

pub(super) fn prometheus(proxy: &ProxyState, query: &Query) -> Response {
    let stats = match selected(proxy, query) {
        Ok(stats) => stats,
        Err(error) => return bad_request(error),
    };
    let mut exposition = Exposition::default();
    for stat in &stats {
        let tagged = tagged(stat.scope(), &stat.name);
        let labels: Vec<_> = tagged
            .labels
            .iter()
            .map(|(n, v)| (*n, v.as_str()))
            .collect();
        match &stat.value {
            Reading::Number(kind, value) => {
                let kind = match kind {
                    Kind::Counter => prometheus::Kind::Counter,
                    Kind::Gauge => prometheus::Kind::Gauge,
                };
                exposition.value(&tagged.name, kind, &labels, *value);
            }
            Reading::Latency(latency) => exposition.histogram(
                &tagged.name,
                &labels,
                &LATENCY_BUCKETS_MS,
                &latency.buckets,
                latency.sum_us as f64 / 1000.0,
            ),
            Reading::Text(_) => {}
        }
    }
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], exposition.finish()).into_response()
}

/// The statistics that `filter`, `usedonly` and `type` leave.
fn selected(proxy: &ProxyState, query: &Query) -> Result<Vec<Stat>, String> {
    let filter = query
        .get("filter")
        .filter(|f| !f.is_empty())
        .map(re2::search)
        .transpose()?;
    let kind = query
        .get("type")
        .filter(|kind| !kind.is_empty() && *kind != "All");
    if let Some(kind) = kind
        && !["Counters", "Gauges", "Histograms", "TextReadouts"].contains(&kind)
    {
        return Err("usage: /stats?type=(All|Counters|Gauges|Histograms|TextReadouts)".to_owned());
    }
    let mut stats = from_workers(proxy);
    stats.extend(from_clusters(proxy));
    stats.extend(from_process(proxy));
    stats.retain(|stat| {
        let name = || dotted(stat.scope(), &stat.name);
        kind.is_none_or(|kind| stat.is_of(kind))
            && (!query.has("usedonly") || stat.is_used())
            && filter
                .as_ref()
                .is_none_or(|f| f.is_match(name().as_bytes()))
    });
    Ok(stats)
}

fn from_workers(proxy: &ProxyState) -> Vec<Stat> {
    let mut stats = Vec::new();
    let scopes = proxy.workers.stats().scopes;
    let config = proxy.config();
    for scope in scopes {
        // Endpoints are shown by /clusters, as in Envoy.
        if matches!(scope.scope, Scope::Endpoint(..)) {
            continue;
        }
        let owner = Owned::Workers(match scope.scope {
            // Workers count by name; `alt_stat_name` is for those who read.
            Scope::Cluster(name) => {
                let entry = config.clusters.get(&name).and_then(|e| e.active.as_ref());
                Scope::Cluster(entry.map_or(name, |active| active.value.stat_name.clone()))
            }
            other => other,
        });
        stats.extend(scope.values.iter().map(|value| Stat {
            scope: owner.clone(),
            name: match &owner {
                Owned::Workers(Scope::Rbac(_, prefix) | Scope::RbacShadow(_, prefix)) => {
                    let dot = if prefix.is_empty() { "" } else { "." };
                    format!("rbac.{}{dot}{}", prefix.trim_end_matches('.'), value.name)
                }
                Owned::Workers(Scope::Authz(prefix)) => format!("{prefix}.{}", value.name),
                _ => value.name.to_owned(),
            },
            value: Reading::Number(value.kind, value.value),
        }));
        if let Some(latency) = scope.latency {
            let name = match &owner {
                Owned::Workers(Scope::Cluster(_) | Scope::Route(..)) => "upstream_rq_time",
                _ => "downstream_rq_time",
            };
            let value = Reading::Latency(latency);
            stats.push(Stat {
                scope: owner,
                name: name.to_owned(),
                value,
            });
        }
    }
    stats
}

/// What follows from the configuration rather than from traffic.
fn from_clusters(proxy: &ProxyState) -> Vec<Stat> {
    let config = proxy.config();
    let mut stats = Vec::new();
    for (name, entry) in &config.clusters {
        let Some(active) = &entry.active else {
            continue;
        };
        let scope = Owned::Workers(Scope::Cluster(active.value.stat_name.clone()));
        let mut number = |name: &str, kind: Kind, value: u64| {
            let value = Reading::Number(kind, value);
            stats.push(Stat {
                scope: scope.clone(),
                name: name.to_owned(),
                value,
            });
        };
        let mut gauge = |name: &str, value: u64| number(name, Kind::Gauge, value);
        let endpoints = config.cluster_endpoints.get(name);
        let outlier = proxy.workers.outlier_status(name);
        let is_ejected = |endpoint: &Endpoint| {
            let address = endpoint.address.socket();
            let found = outlier.as_ref().zip(address);
            found.is_some_and(|(outlier, address)| outlier.ejected.contains(&address))
        };
        let all = endpoints.map_or(0, |set| set.endpoints().count());
        let healthy = endpoints.map_or(0, |set| {
            let healthy = set.endpoints().filter(|e| e.health.is_healthy());
            healthy.filter(|e| !is_ejected(e)).count()
        });
        gauge("membership_total", all as u64);
        gauge("membership_healthy", healthy as u64);
        if let Some(outlier) = &outlier {
            gauge("outlier_detection.ejections_active", outlier.active);
        }
        let load = proxy.workers.cluster_load(name);
        let limits = &active.value.thresholds;
        for (open, remaining, now, limit) in [
            (
                "cx_open",
                "remaining_cx",
                load.connections,
                limits.max_connections,
            ),
            (
                "rq_pending_open",
                "remaining_pending",
                load.pending,
                limits.max_pending_requests,
            ),
            (
                "rq_open",
                "remaining_rq",
                load.requests,
                limits.max_requests,
            ),
            (
                "rq_retry_open",
                "remaining_retries",
                load.retries,
                limits.max_retries,
            ),
        ] {
            gauge(
                &format!("circuit_breakers.default.{open}"),
                u64::from(now >= limit),
            );
            if limits.track_remaining {
                let left = u64::from(limit.saturating_sub(now));
                gauge(&format!("circuit_breakers.default.{remaining}"), left);
            }
        }
        for (name, value) in outlier.iter().flat_map(|outlier| &outlier.counters) {
            number(&format!("outlier_detection.{name}"), Kind::Counter, *value);
        }
    }
    stats
}

fn from_process(proxy: &ProxyState) -> Vec<Stat> {
    let number = |scope, name: &str, kind, value| Stat {
        scope: Owned::Process(scope),
        name: name.to_owned(),
        value: Reading::Number(kind, value),
    };
    let gauge = |scope, name, value| number(scope, name, Kind::Gauge, value);
    let counter = |scope, name, value| number(scope, name, Kind::Counter, value);
    let phase = super::server::phase(proxy);
    let control = proxy.control_plane();
    let mut stats = vec![
        gauge("server", "live", u64::from(phase == Phase::Live)),
        gauge("server", "state", phase as u64),
        gauge(
            "server",
            "uptime",
            proxy.started.elapsed().unwrap_or_default().as_secs(),
        ),
        gauge("server", "concurrency", proxy.options.concurrency as u64),
        gauge(
            "server",
            "total_connections",
            proxy.workers.active_connections(),
        ),
        gauge(
            "control_plane",
            "connected_state",
            u64::from(control.connected),
        ),
        counter("control_plane", "reconnects", control.reconnects),
        counter("control_plane", "update_attempt", control.updates),
        counter("control_plane", "update_rejected", control.rejected_updates),
        counter(
            "access_logs",
            "lines_dropped",
            proxy.workers.access_log_lines_dropped(),
        ),
        Stat {
            scope: Owned::Process("control_plane"),
            name: "identifier".to_owned(),
            value: Reading::Text(control.target),
        },
    ];
    let config = proxy.config();
    let (active, warming) = counts(&config.clusters);
    stats.push(gauge("cluster_manager", "active_clusters", active));
    stats.push(gauge("cluster_manager", "warming_clusters", warming));
    let (active, warming) = counts(&config.listeners);
    stats.push(gauge("listener_manager", "total_listeners_active", active));
    stats.push(gauge(
        "listener_manager",
        "total_listeners_warming",
        warming,
    ));
    stats.push(gauge(
        "config",
        "unsupported_fields",
        config.notices().len() as u64,
    ));
    stats
}

/// How many resources serve, and how many wait.
fn counts<T>(entries: &BTreeMap<Arc<str>, Entry<T>>) -> (u64, u64) {
    let active = entries
        .values()
        .filter(|entry| entry.active.is_some())
        .count();
    let warming = entries
        .values()
        .filter(|entry| entry.warming.is_some())
        .count();
    (active as u64, warming as u64)
}

/// Sorted `name: value` lines; texts first and latencies last, as Envoy prints them.
fn as_text(stats: &[Stat]) -> String {
    let (mut texts, mut numbers, mut latencies) = (Vec::new(), Vec::new(), Vec::new());
    for stat in stats {
        let name = dotted(stat.scope(), &stat.name);
        match &stat.value {
            Reading::Text(text) => texts.push(format!("{name}: \"{text}\"")),
            Reading::Number(_, value) => numbers.push(format!("{name}: {value}")),
            Reading::Latency(latency) => latencies.push(format!("{name}: {}", quantiles(latency))),
        }
    }
    let mut out = String::new();
    for lines in [&mut texts, &mut numbers, &mut latencies] {
        lines.sort_unstable();
        for line in lines {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

/// The quantiles Envoy shows, in percent.
const QUANTILES: [f64; 10] = [0.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 100.0];

/// `P50(nan,7.5)`: Envoy shows the last interval and the whole; there are no intervals here.
fn quantiles(latency: &LatencySnapshot) -> String {
    if latency.buckets.iter().sum::<u64>() == 0 {
        return "No recorded values".to_owned();
    }
    let mut out = String::new();
    for percent in QUANTILES {
        let space = if out.is_empty() { "" } else { " " };
        // Writing to a string cannot fail.
        let _ = write!(out, "{space}P{percent}(nan,{})", quantile(latency, percent));
    }
    out
}

/// A quantile by linear interpolation in its bucket; the last bucket has no upper end.
fn quantile(latency: &LatencySnapshot, percent: f64) -> f64 {
    let total: u64 = latency.buckets.iter().sum();
    let rank = percent / 100.0 * total as f64;
    let mut below = 0.0;
    let mut lower = 0.0;
    for (count, upper) in latency.buckets.iter().zip(LATENCY_BUCKETS_MS) {
        let count = *count as f64;
        if count > 0.0 && below + count >= rank {
            let share = ((rank - below) / count).clamp(0.0, 1.0);
            return ((lower + share * (upper - lower)) * 1000.0).round() / 1000.0;
        }
        below += count;
        lower = upper;
    }
    lower
}

/// Envoy's JSON: numbers in a row, all histograms in one object at the end.
fn as_json(stats: &[Stat]) -> Vec<Value> {
    let mut rows: Vec<(String, Value)> = Vec::new();
    let mut histograms = Vec::new();
    for stat in stats {
        let name = dotted(stat.scope(), &stat.name);
        match &stat.value {
            Reading::Number(_, value) => rows.push((name, json!(value))),
            Reading::Text(text) => rows.push((name, json!(text))),
            Reading::Latency(latency) => {
                let values: Vec<Value> = QUANTILES
                    .iter()
                    .map(|p| json!({ "interval": null, "cumulative": quantile(latency, *p) }))
                    .collect();
                histograms.push(json!({ "name": name, "values": values }));
            }
        }
    }
    rows.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    let mut out: Vec<Value> = rows
        .into_iter()
        .map(|(name, value)| json!({ "name": name, "value": value }))
        .collect();
    if !histograms.is_empty() {
        out.push(json!({ "histograms": {
            "supported_quantiles": QUANTILES,
            "computed_quantiles": histograms,
        } }));
    }
    out
}
