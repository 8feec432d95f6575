//! `Gateway`: ports that a gateway proxy opens, and for which hosts.
//!
//! Field meaning: Istio's reference, networking/gateway. Not Kubernetes' Gateway API.

use std::collections::BTreeMap;

use crate::schema::{choice, message};

message! {
    pub struct Gateway {
        effective servers: Vec<Server>,
        /// Labels of the gateway workloads, in any namespace.
        effective selector: BTreeMap<String, String>,
    }
}

message! {
    pub struct Server {
        effective port: Option<Port>,
        effective bind: String,
        /// `host` or `namespace/host`; `*` and `./` allowed.
        effective hosts: Vec<String>,
        effective tls: Option<ServerTlsSettings>,
        /// Has no effect on gateways in Istio either.
        pending default_endpoint "defaultEndpoint": String,
        effective name: String,
    }
}

message! {
    pub struct Port {
        effective number: u32,
        /// HTTP, HTTPS, HTTP2, GRPC, GRPC-Web, MONGO, TCP, TLS.
        effective protocol: String,
        effective name: String,
        pending target_port "targetPort": Option<u32> => "leave it out; the gateway's Service says where a port leads",
    }
}

message! {
    pub struct ServerTlsSettings {
        /// 301 to https for every request of this server.
        effective https_redirect "httpsRedirect": Option<bool>,
        effective mode: Option<ServerTlsMode>,
        effective server_certificate "serverCertificate": String,
        effective private_key "privateKey": String,
        effective ca_certificates "caCertificates": String,
        effective ca_crl "caCrl": String,
        /// Name of a Secret; excludes the file names.
        effective credential_name "credentialName": String,
        effective credential_names "credentialNames": Vec<String>,
        effective ca_cert_credential_name "caCertCredentialName": String,
        effective tls_certificates "tlsCertificates": Vec<TlsCertificate>,
        effective subject_alt_names "subjectAltNames": Vec<String>,
        /// Base64 of SHA-256.
        effective verify_certificate_spki "verifyCertificateSpki": Vec<String>,
        /// Hex of SHA-256, colons allowed.
        effective verify_certificate_hash "verifyCertificateHash": Vec<String>,
        effective min_protocol_version "minProtocolVersion": Option<TlsProtocol>,
        effective max_protocol_version "maxProtocolVersion": Option<TlsProtocol>,
        effective cipher_suites "cipherSuites": Vec<String>,
        /// Istio 1.31.
        effective insecure_skip_verify "insecureSkipVerify": Option<bool>,
    }
}

message! {
    pub struct TlsCertificate {
        effective server_certificate "serverCertificate": String,
        effective private_key "privateKey": String,
        effective ca_certificates "caCertificates": String,
    }
}

choice! {
    pub enum ServerTlsMode {
        #[default]
        effective Passthrough = "PASSTHROUGH",
        effective Simple = "SIMPLE",
        effective Mutual = "MUTUAL",
        effective AutoPassthrough = "AUTO_PASSTHROUGH",
        /// With the certificates that the mesh issues.
        effective IstioMutual = "ISTIO_MUTUAL",
        effective OptionalMutual = "OPTIONAL_MUTUAL",
    }
}

choice! {
    pub enum TlsProtocol {
        #[default]
        effective Auto = "TLS_AUTO",
        effective V1_0 = "TLSV1_0",
        effective V1_1 = "TLSV1_1",
        effective V1_2 = "TLSV1_2",
        effective V1_3 = "TLSV1_3",
    }
}

/// Cipher suites of TLS 1.2 that a gateway can be told to use (Istio's `ValidCipherSuites` without
/// triple DES, which Envoy refuses); others are left out.
pub const SERVED_CIPHER_SUITES: [&str; 14] = [
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-CHACHA20-POLY1305",
    "ECDHE-ECDSA-AES128-SHA",
    "ECDHE-RSA-AES128-SHA",
    "ECDHE-ECDSA-AES256-SHA",
    "ECDHE-RSA-AES256-SHA",
    "AES128-GCM-SHA256",
    "AES256-GCM-SHA384",
    "AES128-SHA",
    "AES256-SHA",
];
