//! Rules of a traffic policy: balancing, limits, outlier detection, TLS towards the service.

use std::collections::BTreeMap;

use super::{Checker, names};
use crate::destination_rule::*;

/// Labels that stand for the place of a workload.
const PLACES: [&str; 3] = [
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
    "topology.istio.io/subzone",
];

pub fn validate(check: &mut Checker, policy: &TrafficPolicy) {
    if *policy == TrafficPolicy::default() {
        check.error("traffic policy must have at least one field");
    }
    check.some("loadBalancer", &policy.load_balancer, load_balancer);
    check.some("connectionPool", &policy.connection_pool, connection_pool);
    check.some(
        "outlierDetection",
        &policy.outlier_detection,
        outlier_detection,
    );
    check.some("tls", &policy.tls, tls);
    check.list(
        "portLevelSettings",
        &policy.port_level_settings,
        port_policy,
    );
    check.some("tunnel", &policy.tunnel, tunnel);
    check.some("retryBudget", &policy.retry_budget, |check, budget| {
        check.some("percent", &budget.percent, |check, percent| {
            check.percent(*percent)
        });
        check.duration("budgetInterval", &budget.budget_interval);
    });
}

fn port_policy(check: &mut Checker, policy: &PortTrafficPolicy) {
    match &policy.port {
        Some(port) => check.field("port", |check| {
            check.field("number", |check| check.port(port.number))
        }),
        None => check.missing("port", "a port level policy needs port.number"),
    }
    if *policy
        == (PortTrafficPolicy {
            port: policy.port.clone(),
            ..Default::default()
        })
    {
        check.error("port level traffic policy must have at least one field");
    }
    check.some("loadBalancer", &policy.load_balancer, load_balancer);
    check.some("connectionPool", &policy.connection_pool, connection_pool);
    check.some(
        "outlierDetection",
        &policy.outlier_detection,
        outlier_detection,
    );
    check.some("tls", &policy.tls, tls);
}

fn load_balancer(check: &mut Checker, lb: &LoadBalancerSettings) {
    check.at_most_one(&[
        ("simple", lb.simple.is_some()),
        ("consistentHash", lb.consistent_hash.is_some()),
    ]);
    check.at_most_one(&[
        ("localityLbSetting", lb.locality_lb_setting.is_some()),
        ("zoneAwareLbSetting", lb.zone_aware_lb_setting.is_some()),
    ]);
    check.at_most_one(&[
        ("warmup", lb.warmup.is_some()),
        ("warmupDurationSecs", lb.warmup_duration_secs.is_some()),
    ]);
    check.some("consistentHash", &lb.consistent_hash, consistent_hash);
    check.some("localityLbSetting", &lb.locality_lb_setting, locality);
    check.some("zoneAwareLbSetting", &lb.zone_aware_lb_setting, zone_aware);
    check.duration("warmupDurationSecs", &lb.warmup_duration_secs);
    check.some("warmup", &lb.warmup, |check, warmup| {
        if warmup.duration.is_none() {
            check.missing("duration", "duration is required for warmup");
        }
        check.duration("duration", &warmup.duration);
        check.some(
            "minimumPercent",
            &warmup.minimum_percent,
            |check, percent| check.percent(*percent),
        );
        check.some("aggression", &warmup.aggression, |check, aggression| {
            if *aggression < 1.0 {
                check.error("aggression should be greater than or equal to 1");
            }
        });
    });
}

fn consistent_hash(check: &mut Checker, hash: &ConsistentHashLb) {
    let keys = [
        ("httpHeaderName", !hash.http_header_name.is_empty()),
        ("httpCookie", hash.http_cookie.is_some()),
        ("useSourceIp", hash.use_source_ip.is_some()),
        (
            "httpQueryParameterName",
            !hash.http_query_parameter_name.is_empty(),
        ),
    ];
    if !keys.iter().any(|(_, set)| *set) {
        check.missing("httpHeaderName", "a hash key is required: httpHeaderName, httpCookie, useSourceIp or httpQueryParameterName");
    }
    check.at_most_one(&keys);
    check.at_most_one(&[
        ("ringHash", hash.ring_hash.is_some()),
        ("maglev", hash.maglev.is_some()),
    ]);
    if !hash.http_header_name.is_empty() {
        check.field("httpHeaderName", |check| {
            check.syntax(names::header_name(&hash.http_header_name))
        });
    }
    check.some("httpCookie", &hash.http_cookie, |check, cookie| {
        if cookie.name.is_empty() {
            check.missing("name", "name required for HttpCookie");
        }
        check.list("attributes", &cookie.attributes, |check, attribute| {
            if attribute.name.is_empty() {
                check.missing("name", "name required for a cookie attribute");
            }
        });
    });
    check.some("maglev", &hash.maglev, |check, maglev| {
        check.some("tableSize", &maglev.table_size, |check, size| {
            if *size >= 5_000_011 {
                check.error("tableSize must be less than 5000011");
            } else if !is_prime(*size) {
                check.error(format!(
                    "tableSize must be a prime number for maglev, {size} is not"
                ));
            }
        });
    });
}

fn is_prime(number: u64) -> bool {
    number >= 2
        && (2..)
            .take_while(|divisor| divisor * divisor <= number)
            .all(|divisor| !number.is_multiple_of(divisor))
}

pub fn locality(check: &mut Checker, setting: &LocalityLoadBalancerSetting) {
    let ordered = !setting.failover.is_empty() || !setting.failover_priority.is_empty();
    if !setting.distribute.is_empty() && ordered {
        check.field("distribute", |check| {
            check.error(
                "can not simultaneously specify 'distribute' and 'failover' or 'failoverPriority'",
            );
        });
    }
    check.list("distribute", &setting.distribute, |check, distribute| {
        match distribute.from.as_str() {
            "" => check.missing("from", "the originating locality is required"),
            from => check.field("from", |check| locality_pattern(check, from)),
        }
        locality_weights(check, &distribute.to);
    });
    failover(check, &setting.failover);
    failover_priority(check, &setting.failover_priority);
}

pub fn zone_aware(check: &mut Checker, setting: &ZoneAwareLoadBalancerSetting) {
    failover(check, &setting.failover);
    failover_priority(check, &setting.failover_priority);
    check.list(
        "failoverPriority",
        &setting.failover_priority,
        |check, entry| {
            let label = entry.split('=').next().unwrap_or_default();
            if PLACES.contains(&label) {
                check.error_hint(
                    format!("{label} cannot be a priority: regions are tiers and zones are balanced already"),
                    "remove it; name regions in failover",
                );
            }
        },
    );
}

/// `*` stands for the rest and so only at the end.
fn locality_pattern(check: &mut Checker, locality: &str) {
    let parts: Vec<&str> = locality.split('/').collect();
    let stars = parts.iter().filter(|part| part.contains('*')).count();
    let star_ends = parts.last().is_some_and(|last| *last == "*");
    if parts.len() > 3 || parts.iter().any(|part| part.is_empty()) {
        check.error(format!("locality {locality:?} is not region/zone/subzone"));
    } else if stars > 0 && !(stars == 1 && star_ends) {
        check.error(format!(
            "locality {locality:?}: '*' may only stand for the last part"
        ));
    }
}

fn locality_weights(check: &mut Checker, to: &BTreeMap<String, u32>) {
    check.map("to", to, |check, locality, weight| {
        locality_pattern(check, locality);
        if !(1..=100).contains(weight) {
            check.error(format!(
                "locality weight {weight} must be in range [1, 100]"
            ));
        }
    });
    let total: u64 = to.values().map(|weight| u64::from(*weight)).sum();
    if total != 100 {
        check.field("to", |check| {
            check.error(format!("total locality weight {total} != 100"))
        });
    }
    let prefix = |locality: &str| {
        locality
            .trim_end_matches('*')
            .trim_end_matches('/')
            .to_owned()
    };
    for (wide, _) in to.iter().filter(|(locality, _)| locality.ends_with('*')) {
        let inside = |other: &&String| {
            *other != wide
                && (prefix(wide).is_empty() || other.starts_with(&format!("{}/", prefix(wide))))
        };
        if let Some(narrow) = to.keys().find(inside) {
            check.field("to", |check| {
                check.error(format!("locality {wide} overlap with {narrow}"))
            });
        }
    }
}

fn failover(check: &mut Checker, failover: &[Failover]) {
    check.list("failover", failover, |check, failover| {
        for (name, region) in [("from", &failover.from), ("to", &failover.to)] {
            if region.is_empty() {
                check.missing(
                    name,
                    format!("the region {name} which to fail over is required"),
                );
            } else if region.contains(['/', '*']) {
                check.field(name, |check| {
                    check.error(format!(
                        "locality lb failover only specify region, found {region:?}"
                    ))
                });
            }
        }
        if !failover.from.is_empty() && failover.from == failover.to {
            check.error("locality lb failover settings must specify different regions");
        }
    });
}

fn failover_priority(check: &mut Checker, priority: &[String]) {
    check.list("failoverPriority", priority, |check, entry| {
        let (key, value) = entry.split_once('=').unwrap_or((entry, ""));
        check.syntax(names::label_key(key));
        check.syntax(names::label_value(value));
    });
    check.unique(
        "failoverPriority",
        "",
        priority.iter().map(String::as_str),
        "label",
    );
}

pub fn connection_pool(check: &mut Checker, pool: &ConnectionPoolSettings) {
    if pool.tcp.is_none() && pool.http.is_none() {
        check.error("connection pool must have at least one field");
    }
    check.some("tcp", &pool.tcp, |check, tcp| {
        check.not_negative("maxConnections", tcp.max_connections);
        check.duration("connectTimeout", &tcp.connect_timeout);
        check.duration("maxConnectionDuration", &tcp.max_connection_duration);
        check.duration(
            "idleTimeout",
            &tcp.idle_timeout.filter(|timeout| !timeout.is_zero()),
        );
        check.some("tcpKeepalive", &tcp.tcp_keepalive, |check, keepalive| {
            check.duration("time", &keepalive.time);
            check.duration("interval", &keepalive.interval);
        });
    });
    check.some("http", &pool.http, |check, http| {
        check.not_negative("http1MaxPendingRequests", http.http1_max_pending_requests);
        check.not_negative("http2MaxRequests", http.http2_max_requests);
        check.not_negative("maxRequestsPerConnection", http.max_requests_per_connection);
        check.not_negative("maxRetries", http.max_retries);
        check.not_negative("maxConcurrentStreams", http.max_concurrent_streams);
        check.duration("idleTimeout", &http.idle_timeout);
        check.some(
            "http2KeepAlive",
            &http.http2_keep_alive,
            |check, keepalive| {
                check.duration("interval", &keepalive.interval);
                check.duration("timeout", &keepalive.timeout);
            },
        );
        if http.h2_upgrade_policy == Some(H2UpgradePolicy::Upgrade)
            && http.use_client_protocol == Some(true)
        {
            check.field("useClientProtocol", |check| {
                check.error("use client protocol must not be true when H2UpgradePolicy is UPGRADE");
            });
        }
    });
}

fn outlier_detection(check: &mut Checker, outlier: &OutlierDetection) {
    check.duration("interval", &outlier.interval);
    check.duration("baseEjectionTime", &outlier.base_ejection_time);
    check.not_negative("consecutiveErrors", outlier.consecutive_errors);
    for (name, percent) in [
        ("maxEjectionPercent", outlier.max_ejection_percent),
        ("minHealthPercent", outlier.min_health_percent),
    ] {
        check.some(name, &percent, |check, percent| {
            check.percent((*percent).into())
        });
    }
    check.list(
        "outlierDetectionHttpErrorCodes",
        &outlier.outlier_detection_http_error_codes,
        |check, code| {
            if !(100..=599).contains(code) {
                check.error(format!("HTTP status {code} is not in range 100-599"));
            }
        },
    );
    let local = outlier
        .consecutive_local_origin_failures
        .is_some_and(|failures| failures > 0);
    if local && outlier.split_external_local_origin_errors != Some(true) {
        check.field("consecutiveLocalOriginFailures", |check| {
            check.error_hint(
                "consecutiveLocalOriginFailures needs splitExternalLocalOriginErrors",
                "add splitExternalLocalOriginErrors: true",
            );
        });
    }
}

fn tls(check: &mut Checker, tls: &ClientTlsSettings) {
    let files = [
        ("clientCertificate", &tls.client_certificate),
        ("privateKey", &tls.private_key),
        ("caCertificates", &tls.ca_certificates),
        ("caCrl", &tls.ca_crl),
    ];
    if !tls.credential_name.is_empty() {
        for (name, _) in files.iter().filter(|(_, file)| !file.is_empty()) {
            check.field(name, |check| {
                check.error(format!(
                    "{name} cannot be specified when credentialName is set"
                ))
            });
        }
    }
    match tls.mode.unwrap_or_default() {
        ClientTlsMode::Mutual if tls.credential_name.is_empty() => {
            if tls.client_certificate.is_empty() {
                check.missing(
                    "clientCertificate",
                    "client certificate required for mutual tls",
                );
            }
            if tls.private_key.is_empty() {
                check.missing("privateKey", "private key required for mutual tls");
            }
        }
        ClientTlsMode::IstioMutual => {
            for (name, _) in files.iter().filter(|(_, file)| !file.is_empty()) {
                check.field(name, |check| check.error(format!("{name} must be empty with mode ISTIO_MUTUAL, which uses the mesh's certificates")));
            }
        }
        _ => {}
    }
    let verifies = !tls.ca_certificates.is_empty() || !tls.subject_alt_names.is_empty();
    if tls.insecure_skip_verify == Some(true) && verifies {
        check.field("insecureSkipVerify", |check| {
            check.error(
                "insecureSkipVerify cannot be true when caCertificates or subjectAltNames are set",
            );
        });
    }
    check.list("subjectAltNames", &tls.subject_alt_names, |check, name| {
        if name.is_empty() {
            check.error("the name is empty");
        }
    });
    if !tls.sni.is_empty() && tls.sni != "*" {
        check.field("sni", |check| check.syntax(names::fqdn(&tls.sni)));
    }
}

fn tunnel(check: &mut Checker, tunnel: &TunnelSettings) {
    if !matches!(tunnel.protocol.as_str(), "" | "CONNECT" | "POST") {
        check.field("protocol", |check| {
            check.error("tunnel protocol must be \"CONNECT\" or \"POST\"")
        });
    }
    match tunnel.target_host.as_str() {
        "" => check.missing("targetHost", "tunnel target host cannot be empty"),
        host if names::is_ip(host) => {}
        host => check.field("targetHost", |check| check.syntax(names::fqdn(host))),
    }
    match tunnel.target_port {
        0 => check.missing("targetPort", "tunnel target port is required"),
        port => check.field("targetPort", |check| check.port(port)),
    }
}
