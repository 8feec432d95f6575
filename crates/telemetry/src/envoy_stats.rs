//! Envoy's names for statistics, dotted and tagged.
//!
//! On `/stats` a statistic is one dotted name (`cluster.reviews.upstream_rq_2xx`). For Prometheus the
//! variable parts become labels (`envoy_cluster_upstream_rq_xx{envoy_cluster_name="reviews",
//! envoy_response_code_class="2"}`). Envoy takes them out of the text with regexes
//! (`source/common/config/well_known_names.cc`); here a statistic knows its scope, so nothing is
//! guessed from names that contain dots.

use crate::prometheus::sanitize;

/// What a statistic is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatScope<'a> {
    /// By cluster name.
    Cluster(&'a str),
    /// By the `stat_prefix` of an HTTP connection manager.
    Http(&'a str),
    /// By address, as in `127.0.0.1_15001`.
    Listener(&'a str),
    /// By the `stat_prefix` of a TCP proxy.
    Tcp(&'a str),
    /// By the name of a virtual host, and the `stat_prefix` of a route in it.
    Route(&'a str, &'a str),
    /// One per process, its first word being `server`, `cluster_manager`, ...
    Process(&'a str),
}

/// A statistic for Prometheus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tagged {
    /// `envoy_cluster_upstream_rq_total`.
    pub name: String,
    pub labels: Vec<(&'static str, String)>,
}

/// The dotted name.
pub fn dotted(scope: StatScope<'_>, name: &str) -> String {
    // Of all scopes Envoy leaves the colons in this one.
    if let StatScope::Route(host, prefix) = scope {
        return format!("vhost.{host}.route.{prefix}.{name}");
    }
    let (kind, value) = parts(scope);
    // Envoy replaces the colons of a stat name; `|` and dots stay (`Utility::sanitizeStatName`).
    let value = value.replace(':', "_");
    if value.is_empty() {
        format!("{kind}.{name}")
    } else {
        format!("{kind}.{value}.{name}")
    }
}

/// The name and labels for Prometheus.
pub fn tagged(scope: StatScope<'_>, name: &str) -> Tagged {
    let (kind, value) = parts(scope);
    let mut labels = Vec::new();
    if let StatScope::Route(host, prefix) = scope {
        // Envoy takes the virtual host for what stands before the first dot.
        let (host, rest) = host.split_once('.').unwrap_or((host, ""));
        let (name, code) = response_code(name);
        labels.extend(code);
        labels.push(("envoy_virtual_host", host.to_owned()));
        let between = if rest.is_empty() { "" } else { "_" };
        let whole = sanitize(&format!("vhost_{rest}{between}route_{prefix}_{name}"));
        return Tagged {
            name: format!("envoy_{whole}"),
            labels,
        };
    }
    let (name, code) = response_code(name);
    labels.extend(code);
    let label = match scope {
        StatScope::Cluster(_) => Some("envoy_cluster_name"),
        StatScope::Http(_) => Some("envoy_http_conn_manager_prefix"),
        StatScope::Listener(_) => Some("envoy_listener_address"),
        StatScope::Tcp(_) => Some("envoy_tcp_prefix"),
        StatScope::Route(..) | StatScope::Process(_) => None,
    };
    // As in the dotted name, from which Envoy takes the labels.
    labels.extend(label.map(|label| (label, value.replace(':', "_"))));
    Tagged {
        name: format!("envoy_{}_{}", sanitize(kind), sanitize(name)),
        labels,
    }
}

fn parts<'a>(scope: StatScope<'a>) -> (&'a str, &'a str) {
    match scope {
        StatScope::Cluster(name) => ("cluster", name),
        StatScope::Http(prefix) => ("http", prefix),
        StatScope::Listener(address) => ("listener", address),
        StatScope::Tcp(prefix) => ("tcp", prefix),
        StatScope::Route(host, _) => ("vhost", host),
        StatScope::Process(kind) => (kind, ""),
    }
}

/// `upstream_rq_2xx` is the class 2 of `upstream_rq_xx`; `upstream_rq_503` the code 503 of
/// `upstream_rq`.
fn response_code(name: &str) -> (&str, Option<(&'static str, String)>) {
    let Some((stem, last)) = name.rsplit_once('_') else {
        return (name, None);
    };
    if !stem.ends_with("_rq") {
        return (name, None);
    }
    match last.as_bytes() {
        [class @ b'1'..=b'5', b'x', b'x'] => {
            let base = match stem {
                "upstream_rq" => "upstream_rq_xx",
                "downstream_rq" => "downstream_rq_xx",
                "internal.upstream_rq" => "internal_upstream_rq_xx",
                "external.upstream_rq" => "external_upstream_rq_xx",
                _ => return (name, None),
            };
            (
                base,
                Some(("envoy_response_code_class", char::from(*class).to_string())),
            )
        }
        [b'1'..=b'5', b'0'..=b'9', b'0'..=b'9'] => {
            (stem, Some(("envoy_response_code", last.to_owned())))
        }
        _ => (name, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(scope: StatScope<'_>, name: &str, dots: &str, prometheus: &str) {
        assert_eq!(dotted(scope, name), dots);
        let tagged = tagged(scope, name);
        let labels: Vec<String> = tagged
            .labels
            .iter()
            .map(|(label, value)| format!("{label}={value}"))
            .collect();
        assert_eq!(
            format!("{}{{{}}}", tagged.name, labels.join(",")),
            prometheus
        );
    }

    #[test]
    fn scopes_and_response_codes_become_labels() {
        use StatScope::*;
        let reviews = Cluster("outbound|9080||reviews.default.svc.cluster.local");
        check(
            reviews,
            "upstream_rq_total",
            "cluster.outbound|9080||reviews.default.svc.cluster.local.upstream_rq_total",
            "envoy_cluster_upstream_rq_total{envoy_cluster_name=outbound|9080||reviews.default.svc.cluster.local}",
        );
        check(
            Cluster("c"),
            "upstream_rq_5xx",
            "cluster.c.upstream_rq_5xx",
            "envoy_cluster_upstream_rq_xx{envoy_response_code_class=5,envoy_cluster_name=c}",
        );
        check(
            Cluster("c"),
            "upstream_rq_503",
            "cluster.c.upstream_rq_503",
            "envoy_cluster_upstream_rq{envoy_response_code=503,envoy_cluster_name=c}",
        );
        check(
            Http("outbound_0.0.0.0_80;"),
            "downstream_rq_2xx",
            "http.outbound_0.0.0.0_80;.downstream_rq_2xx",
            "envoy_http_downstream_rq_xx{envoy_response_code_class=2,envoy_http_conn_manager_prefix=outbound_0.0.0.0_80;}",
        );
        check(
            Listener("127.0.0.1_15001"),
            "downstream_cx_active",
            "listener.127.0.0.1_15001.downstream_cx_active",
            "envoy_listener_downstream_cx_active{envoy_listener_address=127.0.0.1_15001}",
        );
        check(
            Process("server"),
            "live",
            "server.live",
            "envoy_server_live{}",
        );
        check(
            Process("cluster_manager"),
            "cds.update_success",
            "cluster_manager.cds.update_success",
            "envoy_cluster_manager_cds_update_success{}",
        );
    }
}
