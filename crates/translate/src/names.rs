//! Names of generated resources, exactly Istio's (fact 27): dashboards, `proxy-config` and
//! people's habits depend on them.

use lateen_model::servers::{MergedPort, MergedServer, ServerKind};

/// `outbound|9080|v1|reviews.default.svc.cluster.local`; no subset is the empty text.
pub fn outbound_cluster(port: u32, subset: &str, host: &str) -> String {
    format!("outbound|{port}|{subset}|{host}")
}

/// The endpoints of a proxy's own service, under the name that its bootstrap has for them.
pub const LOCAL_CLUSTER: &str = "local_cluster";

/// `inbound|9080||`.
pub fn inbound_cluster(port: u16) -> String {
    format!("inbound|{port}||")
}

/// The parts of an outbound cluster name: port, subset, host.
pub fn parse_outbound(name: &str) -> Option<(u32, &str, &str)> {
    let mut parts = name.split('|');
    let (kind, port, subset, host) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    if kind != "outbound" || parts.next().is_some() {
        return None;
    }
    Some((port.parse().ok()?, subset, host))
}

/// `127.0.0.1_9080`; on a Unix domain socket, its path.
pub fn listener(bind: &str, port: u32) -> String {
    if bind.starts_with(crate::envoy::UNIX) {
        return bind.to_string();
    }
    format!("{bind}_{port}")
}

/// The route table of the outbound HTTP proxy listener.
pub const HTTP_PROXY_ROUTES: &str = "http_proxy";

/// The cluster that a client of an AUTO_PASSTHROUGH server names by its server name:
/// `outbound_.9080_.v1_.reviews.default.svc.cluster.local`.
pub fn sni_cluster(port: u32, subset: &str, host: &str) -> String {
    format!("outbound_.{port}_.{subset}_.{host}")
}

/// The parts of such a name: port, subset, host.
pub fn parse_sni_cluster(name: &str) -> Option<(u32, &str, &str)> {
    let mut parts = name.strip_prefix("outbound_.")?.splitn(3, "_.");
    let (port, subset, host) = (parts.next()?, parts.next()?, parts.next()?);
    Some((port.parse().ok()?, subset, host))
}

/// The route table of a gateway's HTTP server: `http.8080` for all plain ones of a bound port,
/// `https.443.NAME.GATEWAY.NAMESPACE` for one behind TLS, by its port as the Gateway says it. An
/// address of the server's own follows.
pub fn gateway_routes(port: &MergedPort<'_>, server: &MergedServer<'_>) -> String {
    let mut name = match server.kind {
        ServerKind::Https => {
            let said = server.server.port.as_ref();
            let origin = &server.gateway.origin;
            format!(
                "https.{}.{}.{}.{}",
                server.port,
                said.map_or("", |port| &port.name),
                origin.name,
                origin.namespace
            )
        }
        _ => format!("http.{}", port.number),
    };
    if !server.server.bind.is_empty() {
        name = format!("{name}.{}", server.server.bind);
    }
    name
}

/// Where captured connections of the application arrive.
pub const VIRTUAL_OUTBOUND: &str = "virtualOutbound";
/// Where captured connections to the application arrive.
pub const VIRTUAL_INBOUND: &str = "virtualInbound";

/// Connections whose destination nobody knows are passed on to where they were going.
pub const PASSTHROUGH_CLUSTER: &str = "PassthroughCluster";
/// Connections to a port of the workload that no service leads to are passed on to it.
pub const INBOUND_PASSTHROUGH_CLUSTER: &str = "InboundPassthroughCluster";
/// Connections whose destination nobody knows are closed.
pub const BLACK_HOLE_CLUSTER: &str = "BlackHoleCluster";

/// Where HTTP requests for hosts nobody registered go by the name they ask for (Istio).
pub const ANY_NAME_CLUSTER: &str = "AllowAnyDynamicDNSCluster";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outbound_name_is_read_back() {
        let name = outbound_cluster(9080, "v1", "reviews.default.svc.cluster.local");
        assert_eq!(name, "outbound|9080|v1|reviews.default.svc.cluster.local");
        assert_eq!(
            parse_outbound(&name),
            Some((9080, "v1", "reviews.default.svc.cluster.local"))
        );
        assert_eq!(parse_outbound("outbound|80||a"), Some((80, "", "a")));
        for wrong in [
            "inbound|80||",
            "outbound|x||a",
            "outbound|80|a",
            "outbound|1|2|3|4",
            "",
        ] {
            assert_eq!(parse_outbound(wrong), None, "{wrong}");
        }
        let name = sni_cluster(9080, "", "reviews.default.svc.cluster.local");
        assert_eq!(name, "outbound_.9080_._.reviews.default.svc.cluster.local");
        assert_eq!(
            parse_sni_cluster(&name),
            Some((9080, "", "reviews.default.svc.cluster.local"))
        );
    }
}
