//! The protocol of a port, from its application protocol, its name, or its number.
//!
//! Source of the rules: istio-behaviour fact 41 (`pkg/config/kube/conversion.go`).

use serde::Serialize;

/// What a port speaks, as far as it was declared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum Protocol {
    Http,
    Http2,
    Grpc,
    GrpcWeb,
    HttpProxy,
    Https,
    Tls,
    Tcp,
    Udp,
    Mongo,
    Redis,
    Mysql,
    /// Not declared: the proxy finds out from the first bytes.
    Undeclared,
}

/// Ports that are server-first or well known to be plain TCP when nothing is declared.
const DEFAULT_TCP_PORTS: [u32; 4] = [25, 53, 3306, 27017];

impl Protocol {
    /// Reads a protocol as written in a Gateway, a ServiceEntry or before `-` in a port name.
    pub fn parse(text: &str) -> Option<Protocol> {
        Some(match text.to_ascii_lowercase().as_str() {
            "http" => Protocol::Http,
            "http2" | "kubernetes.io/h2c" => Protocol::Http2,
            "grpc" => Protocol::Grpc,
            "grpc-web" => Protocol::GrpcWeb,
            "http_proxy" => Protocol::HttpProxy,
            "kubernetes.io/ws" | "ws" => Protocol::Http,
            "kubernetes.io/wss" | "wss" | "https" => Protocol::Https,
            "tls" => Protocol::Tls,
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "mongo" => Protocol::Mongo,
            "redis" => Protocol::Redis,
            "mysql" => Protocol::Mysql,
            _ => return None,
        })
    }

    /// Its name as Istio's tools print it.
    pub fn as_str(self) -> &'static str {
        match self {
            Protocol::Http => "HTTP",
            Protocol::Http2 => "HTTP2",
            Protocol::Grpc => "GRPC",
            Protocol::GrpcWeb => "GRPC-Web",
            Protocol::HttpProxy => "HTTP_PROXY",
            Protocol::Https => "HTTPS",
            Protocol::Tls => "TLS",
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Mongo => "Mongo",
            Protocol::Redis => "Redis",
            Protocol::Mysql => "MySQL",
            Protocol::Undeclared => "auto-detect",
        }
    }

    /// The protocol of a Kubernetes service port: `appProtocol` beats the name, the name beats
    /// the number.
    pub fn of_service_port(
        app_protocol: Option<&str>,
        name: &str,
        transport: &str,
        port: u32,
    ) -> Protocol {
        if transport.eq_ignore_ascii_case("UDP") {
            return Protocol::Udp;
        }
        if let Some(found) = app_protocol.and_then(Protocol::parse) {
            return found;
        }
        let lower = name.to_ascii_lowercase();
        let prefix = if lower.starts_with("grpc-web") {
            "grpc-web"
        } else {
            lower.split('-').next().unwrap_or_default()
        };
        match Protocol::parse(prefix) {
            Some(found) => found,
            None if DEFAULT_TCP_PORTS.contains(&port) => Protocol::Tcp,
            None => Protocol::Undeclared,
        }
    }

    /// Handled as HTTP by the proxy without looking at the bytes.
    pub fn is_http(self) -> bool {
        use Protocol::*;
        matches!(self, Http | Http2 | Grpc | GrpcWeb | HttpProxy)
    }

    /// HTTP, or may turn out to be.
    pub fn is_http_or_undeclared(self) -> bool {
        self.is_http() || self == Protocol::Undeclared
    }

    /// Spoken as HTTP/2 to the upstream.
    pub fn is_http2(self) -> bool {
        matches!(self, Protocol::Http2 | Protocol::Grpc | Protocol::GrpcWeb)
    }

    /// Forwarded as bytes: TCP and everything whose inside the proxy does not read.
    pub fn is_tcp(self) -> bool {
        use Protocol::*;
        matches!(self, Tcp | Tls | Https | Mongo | Redis | Mysql)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn app_protocol_beats_name_beats_number() {
        let check = |app, name, transport, port, expect| {
            assert_eq!(
                Protocol::of_service_port(app, name, transport, port),
                expect,
                "{app:?} {name} {port}"
            )
        };
        check(None, "http", "TCP", 80, Protocol::Http);
        check(None, "http-web", "TCP", 80, Protocol::Http);
        check(None, "HTTP2-x", "TCP", 80, Protocol::Http2);
        check(None, "grpc-web-x", "TCP", 80, Protocol::GrpcWeb);
        check(None, "grpc-webx", "TCP", 80, Protocol::GrpcWeb);
        check(None, "httpx", "TCP", 80, Protocol::Undeclared);
        check(Some("grpc"), "http", "TCP", 80, Protocol::Grpc);
        check(Some("kubernetes.io/h2c"), "x", "TCP", 80, Protocol::Http2);
        check(Some("acme.io/x"), "tcp-db", "TCP", 80, Protocol::Tcp);
        check(None, "db", "TCP", 3306, Protocol::Tcp);
        check(None, "http-dns", "UDP", 53, Protocol::Udp);
    }
}
