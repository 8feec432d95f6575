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
        pending mode: Option<ServerTlsMode>,
        pending server_certificate "serverCertificate": String,
        pending private_key "privateKey": String,
        pending ca_certificates "caCertificates": String,
        pending ca_crl "caCrl": String,
        /// Name of a Secret; excludes the file names.
        pending credential_name "credentialName": String,
        pending credential_names "credentialNames": Vec<String>,
        pending ca_cert_credential_name "caCertCredentialName": String,
        pending tls_certificates "tlsCertificates": Vec<TlsCertificate>,
        pending subject_alt_names "subjectAltNames": Vec<String>,
        /// Base64 of SHA-256.
        pending verify_certificate_spki "verifyCertificateSpki": Vec<String>,
        /// Hex of SHA-256, colons allowed.
        pending verify_certificate_hash "verifyCertificateHash": Vec<String>,
        pending min_protocol_version "minProtocolVersion": Option<TlsProtocol>,
        pending max_protocol_version "maxProtocolVersion": Option<TlsProtocol>,
        pending cipher_suites "cipherSuites": Vec<String>,
        /// Istio 1.31.
        pending insecure_skip_verify "insecureSkipVerify": Option<bool>,
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
