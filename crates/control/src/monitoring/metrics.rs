//! The control plane's metrics in Prometheus' text format, under Istio's names.

use std::fmt::Write as _;
use std::sync::atomic::Ordering;

use lateen_xds::{MetricKind, Sample};

use super::Monitor;

pub(super) fn render(monitor: &Monitor) -> String {
    let mut text = String::new();
    let snapshot = monitor.mesh.snapshot();
    let counters = &monitor.mesh.counters;
    let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed) as f64;
    let version = env!("CARGO_PKG_VERSION");
    single(
        &mut text,
        "pilot_info",
        "gauge",
        "Version of the control plane.",
        &format!("{{version=\"{version}\"}}"),
        1.0,
    );
    single(
        &mut text,
        "istio_build",
        "gauge",
        "Version of this component.",
        &format!("{{component=\"pilot\",tag=\"{version}\"}}"),
        1.0,
    );
    let gauges = [
        (
            "pilot_services",
            "Services known.",
            snapshot.services().count(),
        ),
        (
            "pilot_virt_services",
            "Virtual services known.",
            snapshot.virtual_services().count(),
        ),
    ];
    for (name, help, value) in gauges {
        single(&mut text, name, "gauge", help, "", value as f64);
    }
    let inbound = "Changes of configuration received.";
    let labels = "{type=\"config\"}";
    single(
        &mut text,
        "pilot_inbound_updates",
        "counter",
        inbound,
        labels,
        read(&counters.changes),
    );
    let triggers = "Pushes by what caused them.";
    single(
        &mut text,
        "pilot_push_triggers",
        "counter",
        triggers,
        labels,
        read(&counters.pushes),
    );
    summary(
        &mut text,
        "pilot_pushcontext_init_seconds",
        "Time to make a snapshot.",
        read(&counters.snapshot_micros) / 1e6,
        read(&counters.pushes),
    );
    authority(&mut text, monitor);
    for metric in monitor.server.metrics() {
        let kind = match metric.kind {
            MetricKind::Counter => "counter",
            MetricKind::Gauge => "gauge",
            MetricKind::Histogram => "histogram",
        };
        head(&mut text, metric.name, kind, metric.help);
        for sample in &metric.samples {
            sample_lines(&mut text, metric.name, sample);
        }
    }
    let uptime = monitor.started.elapsed().as_secs_f64();
    let help = "Seconds since the control plane started.";
    single(
        &mut text,
        "istiod_uptime_seconds",
        "gauge",
        help,
        "",
        uptime,
    );
    text
}

/// Under the names of Istio's authority (Citadel).
fn authority(text: &mut String, monitor: &Monitor) {
    let counters = &monitor.certificates;
    let counted = [
        (
            "citadel_server_csr_count",
            "Requests for certificates.",
            &counters.requests,
        ),
        (
            "citadel_server_success_cert_issuance_count",
            "Certificates issued.",
            &counters.issued,
        ),
        (
            "citadel_server_authentication_failure_count",
            "Requests on the secure port from somebody who did not prove who he is.",
            &counters.unauthenticated,
        ),
        (
            "citadel_server_csr_parsing_err_count",
            "Requests for certificates that were malformed, or had weak keys.",
            &counters.malformed,
        ),
        (
            "citadel_server_csr_sign_err_count",
            "Certificates that could not be signed.",
            &counters.failed,
        ),
    ];
    for (name, help, counter) in counted {
        let value = counter.load(Ordering::Relaxed) as f64;
        single(text, name, "counter", help, "", value);
    }
    let expires = monitor.trust.authority().expires();
    let expires = expires.duration_since(std::time::SystemTime::UNIX_EPOCH);
    single(
        text,
        "citadel_server_root_cert_expiry_timestamp",
        "gauge",
        "When the authority of the mesh expires, in seconds since 1970.",
        "",
        expires.unwrap_or_default().as_secs_f64(),
    );
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn single(text: &mut String, name: &str, kind: &str, help: &str, labels: &str, value: f64) {
    head(text, name, kind, help);
    let _ = writeln!(text, "{name}{labels} {value}");
}

fn summary(text: &mut String, name: &str, help: &str, sum: f64, count: f64) {
    head(text, name, "summary", help);
    let _ = writeln!(text, "{name}_sum {sum}\n{name}_count {count}");
}

fn sample_lines(text: &mut String, name: &str, sample: &Sample) {
    match sample {
        Sample::Value { labels, value } => {
            let _ = writeln!(text, "{name}{} {value}", label_text(labels, None));
        }
        Sample::Histogram {
            labels,
            buckets,
            sum,
            count,
        } => {
            for (bound, below) in buckets {
                let labels = label_text(labels, Some(&bound.to_string()));
                let _ = writeln!(text, "{name}_bucket{labels} {below}");
            }
            let all = label_text(labels, Some("+Inf"));
            let labels = label_text(labels, None);
            let _ = writeln!(
                text,
                "{name}_bucket{all} {count}\n{name}_sum{labels} {sum}\n{name}_count{labels} {count}"
            );
        }
    }
}

/// `{a="b",le="0.1"}`; empty without labels. Values are escaped as the text format asks.
fn label_text(labels: &[(&'static str, String)], bound: Option<&str>) -> String {
    let mut parts: Vec<String> = Vec::new();
    for (name, value) in labels {
        let value = value
            .replace('\\', "\\\\")
            .replace('"', "\\\"")
            .replace('\n', "\\n");
        parts.push(format!("{name}=\"{value}\""));
    }
    parts.extend(bound.map(|bound| format!("le=\"{bound}\"")));
    match parts.is_empty() {
        true => String::new(),
        false => format!("{{{}}}", parts.join(",")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_lines_of_the_text_format() {
        let check = |sample: Sample, expect: &str| {
            let mut text = String::new();
            sample_lines(&mut text, "m", &sample);
            assert_eq!(text, expect);
        };
        check(
            Sample::Value {
                labels: vec![],
                value: 3.0,
            },
            "m 3\n",
        );
        check(
            Sample::Value {
                labels: vec![("type", "a\"b".into())],
                value: 0.5,
            },
            "m{type=\"a\\\"b\"} 0.5\n",
        );
        check(
            Sample::Histogram {
                labels: vec![("type", "cds".into())],
                buckets: vec![(0.1, 1), (1.0, 2)],
                sum: 4.5,
                count: 3,
            },
            "m_bucket{type=\"cds\",le=\"0.1\"} 1\nm_bucket{type=\"cds\",le=\"1\"} 2\n\
             m_bucket{type=\"cds\",le=\"+Inf\"} 3\nm_sum{type=\"cds\"} 4.5\nm_count{type=\"cds\"} 3\n",
        );
    }
}
