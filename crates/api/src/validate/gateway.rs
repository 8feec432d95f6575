//! Rules of `Gateway`: servers, their ports and hosts, and TLS towards clients.

use super::http_route::is_base64;
use super::{Checker, Validate, names};
use crate::gateway::*;

/// What a gateway port may speak.
const PROTOCOLS: [&str; 10] = [
    "HTTP", "HTTPS", "HTTP2", "GRPC", "GRPC-WEB", "MONGO", "REDIS", "MYSQL", "TCP", "TLS",
];

impl Validate for Gateway {
    fn validate(&self, check: &mut Checker) {
        if self.servers.is_empty() {
            check.missing("servers", "gateway must have at least one server");
        }
        check.list("servers", &self.servers, server);
        check.unique(
            "servers",
            "name",
            self.servers.iter().map(|server| server.name.as_str()),
            "server name",
        );
        self.port_names(check);
        if self.selector.is_empty() {
            check.warning("without selector this applies to every gateway workload");
        }
        names::selector(check, "selector", &self.selector);
    }
}

impl Gateway {
    /// A name stands for one port number, however many servers share it.
    fn port_names(&self, check: &mut Checker) {
        let ports: Vec<Option<&Port>> = self
            .servers
            .iter()
            .map(|server| server.port.as_ref())
            .collect();
        for (index, port) in ports.iter().enumerate() {
            let Some(port) = port.filter(|port| !port.name.is_empty()) else {
                continue;
            };
            let same = |other: &&Option<&Port>| other.is_some_and(|other| other.name == port.name);
            if let Some(first) = ports[..index].iter().position(|other| same(&other)) {
                let name = &port.name;
                check.field("servers", |check| {
                    check.path.push_index(index);
                    check.field("port", |check| check.field("name", |check| {
                        check.error_hint(
                            format!("port names in servers must be unique: duplicate name {name:?}, already at servers[{first}]"),
                            "give each server's port a name of its own",
                        );
                    }));
                    check.path.pop();
                });
            }
        }
    }
}

fn server(check: &mut Checker, server: &Server) {
    match &server.port {
        Some(port) => check.field("port", |check| server_port(check, port)),
        None => check.missing("port", "port is required"),
    }
    if server.hosts.is_empty() {
        check.missing("hosts", "server config must contain at least one host");
    }
    check.list("hosts", &server.hosts, |check, host| {
        host_entry(check, host)
    });
    check.unique("hosts", "", server.hosts.iter().map(String::as_str), "host");
    let socket = server
        .bind
        .strip_prefix("unix://")
        .is_some_and(|path| !path.is_empty());
    if !server.bind.is_empty() && !names::is_ip(&server.bind) && !socket {
        check.field("bind", |check| {
            check.error(format!("{:?} is not an IP address", server.bind))
        });
    }
    if socket {
        check.field("bind", |check| {
            check.warning("a unix domain socket has no effect yet in this version");
        });
    }
    tls_fits_protocol(check, server);
    check.some("tls", &server.tls, tls);
}

fn server_port(check: &mut Checker, port: &Port) {
    check.field("number", |check| check.port(port.number));
    if port.protocol.is_empty() {
        check.missing(
            "protocol",
            format!("protocol is required, one of {}", PROTOCOLS.join(", ")),
        );
    }
    check.field("protocol", |check| {
        check.syntax(names::protocol(&port.protocol, &PROTOCOLS))
    });
    match port.name.as_str() {
        "" => check.missing("name", "port name must be set"),
        name => check.field("name", |check| check.syntax(names::label(name))),
    }
    check.some("targetPort", &port.target_port, |check, port| {
        check.port(*port)
    });
}

/// `host` or `namespace/host`; the namespace may be `*` or `.`.
fn host_entry(check: &mut Checker, entry: &str) {
    let host = match entry.split_once('/') {
        Some((namespace, host)) if namespace.is_empty() || host.is_empty() => {
            return check.error(format!(
                "config namespace and dnsName in host entry {entry:?} cannot be empty"
            ));
        }
        Some(("*" | ".", host)) => host,
        Some((namespace, host)) => {
            check.syntax(names::label(namespace));
            host
        }
        None => entry,
    };
    if host != "*" && !host.contains('.') && !names::is_ip(host) {
        check.error_hint(
            format!("short names (non FQDN) are not allowed: {host:?}"),
            "write the whole name, such as app.example.com",
        );
        return;
    }
    check.syntax(names::host(host));
}

fn tls_fits_protocol(check: &mut Checker, server: &Server) {
    let protocol = server
        .port
        .as_ref()
        .map(|port| port.protocol.to_ascii_uppercase())
        .unwrap_or_default();
    let is_tls = matches!(protocol.as_str(), "HTTPS" | "TLS");
    match &server.tls {
        None if is_tls => check.missing(
            "tls",
            "server must have TLS settings for HTTPS/TLS protocols",
        ),
        Some(tls) if !is_tls && !protocol.is_empty() => {
            let redirect_only = ServerTlsSettings {
                https_redirect: tls.https_redirect,
                ..Default::default()
            };
            let is_http = matches!(protocol.as_str(), "HTTP" | "HTTP2" | "GRPC" | "GRPC-WEB");
            if !is_http {
                check.field("tls", |check| {
                    check.error("server cannot have TLS settings for non HTTPS/TLS ports")
                });
            } else if *tls != redirect_only {
                check.field("tls", |check| {
                    check.error_hint(
                        "server cannot have TLS settings for plain text HTTP ports",
                        "only httpsRedirect is allowed; did you mean protocol HTTPS?",
                    );
                });
            }
        }
        Some(tls) if protocol == "TLS" && tls.https_redirect == Some(true) => {
            check.field("tls", |check| {
                check.field("httpsRedirect", |check| {
                    check.error("httpsRedirect is for HTTP ports")
                })
            });
        }
        _ => {}
    }
}

pub(super) fn tls(check: &mut Checker, tls: &ServerTlsSettings) {
    let server_certificate = ("serverCertificate", !tls.server_certificate.is_empty());
    let secrets = [
        ("credentialName", !tls.credential_name.is_empty()),
        ("credentialNames", !tls.credential_names.is_empty()),
        ("tlsCertificates", !tls.tls_certificates.is_empty()),
    ];
    check.at_most_one(&[secrets[0], secrets[1], secrets[2], server_certificate]);
    let files = [
        server_certificate,
        ("privateKey", !tls.private_key.is_empty()),
        ("caCertificates", !tls.ca_certificates.is_empty()),
    ];
    let forbidden = |check: &mut Checker, why: &str| {
        for (name, _) in files.iter().chain(&secrets).filter(|(_, set)| *set) {
            check.field(name, |check| {
                check.error(format!("{name} must be empty with mode {why}"));
            });
        }
    };
    match tls.mode {
        Some(ServerTlsMode::IstioMutual) => {
            forbidden(check, "ISTIO_MUTUAL, which uses the mesh's certificates");
        }
        Some(ServerTlsMode::Passthrough) => {
            forbidden(check, "PASSTHROUGH, which does not terminate TLS");
        }
        Some(ServerTlsMode::AutoPassthrough) => {
            forbidden(check, "AUTO_PASSTHROUGH, which does not terminate TLS");
        }
        Some(mode) => certificates(check, tls, mode),
        None => {}
    }
    several_certificates(check, tls);
    pins(check, tls);
    if let (Some(min), Some(max)) = (tls.min_protocol_version, tls.max_protocol_version)
        && max != TlsProtocol::Auto
        && min > max
    {
        check.field("minProtocolVersion", |check| {
            check.error("minProtocolVersion is above maxProtocolVersion");
        });
    }
    let suites = tls.cipher_suites.iter().map(String::as_str);
    check.unique("cipherSuites", "", suites, "cipher suite");
    check.list("cipherSuites", &tls.cipher_suites, |check, name| {
        if !SERVED_CIPHER_SUITES.contains(&name.as_str()) {
            check.warning(format!(
                "{name:?} is no cipher suite that a gateway knows and is left out"
            ));
        }
    });
}

fn several_certificates(check: &mut Checker, tls: &ServerTlsSettings) {
    if tls.credential_names.len() > 2 || tls.tls_certificates.len() > 2 {
        check.error("at most two certificates (one RSA, one ECDSA) are allowed");
    }
    check.list("tlsCertificates", &tls.tls_certificates, |check, pair| {
        if pair.server_certificate.is_empty() || pair.private_key.is_empty() {
            check.error("serverCertificate and privateKey are both required");
        }
    });
}

fn certificates(check: &mut Checker, tls: &ServerTlsSettings, mode: ServerTlsMode) {
    use crate::schema::Choice;
    let mode_name = mode.as_str();
    let by_name = !tls.credential_name.is_empty()
        || !tls.credential_names.is_empty()
        || !tls.tls_certificates.is_empty();
    if by_name {
        return;
    }
    if tls.server_certificate.is_empty() {
        check.missing(
            "credentialName",
            format!("{mode_name} TLS requires credentialName, or serverCertificate and privateKey"),
        );
        return;
    }
    if tls.private_key.is_empty() {
        check.missing(
            "privateKey",
            format!("{mode_name} TLS requires a private key"),
        );
    }
    let verifies_clients = mode != ServerTlsMode::Simple;
    if verifies_clients && tls.ca_certificates.is_empty() && tls.ca_cert_credential_name.is_empty()
    {
        check.missing(
            "caCertificates",
            format!("{mode_name} TLS requires a client CA bundle"),
        );
    }
}

fn pins(check: &mut Checker, tls: &ServerTlsSettings) {
    check.list(
        "verifyCertificateHash",
        &tls.verify_certificate_hash,
        |check, hash| {
            let digits = hash.replace(':', "");
            if digits.len() != 64 || !digits.chars().all(|c| c.is_ascii_hexdigit()) {
                check.error("not a hex-encoded SHA-256 hash (64 digits)");
            }
        },
    );
    check.list(
        "verifyCertificateSpki",
        &tls.verify_certificate_spki,
        |check, hash| {
            // 32 bytes are 43 base64 digits and one '='.
            if hash.trim_end_matches('=').len() != 43 || !is_base64(hash) {
                check.error("not a base64-encoded SHA-256 hash");
            }
        },
    );
}
