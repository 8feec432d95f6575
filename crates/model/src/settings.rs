//! Mesh-wide settings: the part of Istio's MeshConfig that the snapshot and translation read.
//!
//! They come from the ConfigMap `istio` of the root namespace and from IstioOperators. Field by
//! field the ConfigMap decides, then the youngest IstioOperator: applying one more changes what it
//! says and nothing else.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use lateen_api::MeshConfig;
use lateen_api::destination_rule::{
    LocalityLoadBalancerSetting, TcpKeepalive, ZoneAwareLoadBalancerSetting,
};
use lateen_api::mesh_config::{
    AccessLogEncoding, ExtensionProvider, ForwardClientCertDetails, MinTlsVersion, Normalization,
    TlsConfig,
};
use lateen_api::sidecar::OutboundTrafficMode;
use lateen_api::virtual_service::HttpRetry;

use crate::request_authentication::KeysFetchedBy;

/// Istio's default text access log line, with the closing newline
/// (`pilot/pkg/model/telemetry_logging.go`).
pub const DEFAULT_ACCESS_LOG_FORMAT: &str = concat!(
    "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" ",
    "%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% ",
    "\"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% ",
    "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" ",
    "\"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% ",
    "%UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% ",
    "%REQUESTED_SERVER_NAME% %ROUTE_NAME%\n"
);

/// Istio's default JSON access log.
const DEFAULT_ACCESS_LOG_JSON: [(&str, &str); 24] = [
    ("start_time", "%START_TIME%"),
    ("route_name", "%ROUTE_NAME%"),
    ("method", "%REQ(:METHOD)%"),
    ("path", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"),
    ("protocol", "%PROTOCOL%"),
    ("response_code", "%RESPONSE_CODE%"),
    ("response_flags", "%RESPONSE_FLAGS%"),
    ("response_code_details", "%RESPONSE_CODE_DETAILS%"),
    (
        "connection_termination_details",
        "%CONNECTION_TERMINATION_DETAILS%",
    ),
    ("bytes_received", "%BYTES_RECEIVED%"),
    ("bytes_sent", "%BYTES_SENT%"),
    ("duration", "%DURATION%"),
    (
        "upstream_service_time",
        "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%",
    ),
    ("x_forwarded_for", "%REQ(X-FORWARDED-FOR)%"),
    ("user_agent", "%REQ(USER-AGENT)%"),
    ("request_id", "%REQ(X-REQUEST-ID)%"),
    ("authority", "%REQ(:AUTHORITY)%"),
    ("upstream_host", "%UPSTREAM_HOST%"),
    ("upstream_cluster", "%UPSTREAM_CLUSTER_RAW%"),
    ("upstream_local_address", "%UPSTREAM_LOCAL_ADDRESS%"),
    ("downstream_local_address", "%DOWNSTREAM_LOCAL_ADDRESS%"),
    ("downstream_remote_address", "%DOWNSTREAM_REMOTE_ADDRESS%"),
    ("requested_server_name", "%REQUESTED_SERVER_NAME%"),
    (
        "upstream_transport_failure_reason",
        "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
    ),
];

/// Istio's default access log of encoding JSON.
pub fn default_access_log_json() -> serde_json::Map<String, serde_json::Value> {
    let fields = DEFAULT_ACCESS_LOG_JSON.iter();
    fields
        .map(|(key, format)| ((*key).to_string(), (*format).into()))
        .collect()
}

/// What happens to traffic for hosts that nobody registered (fact 17).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum OutboundPolicy {
    #[default]
    AllowAny,
    /// HTTP requests go to whatever their host's name leads to; the rest as with `AllowAny`.
    AllowAnyDynamicDns,
    RegistryOnly,
}

/// Form of an access log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum LogEncoding {
    #[default]
    Text,
    Json,
}

/// What stands before gateways, and so what they believe (defaultConfig.gatewayTopology).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct GatewayTopology {
    /// Proxies whose word in `x-forwarded-for` is believed.
    pub trusted_proxies: u32,
    pub client_certificates: Option<ForwardClientCertDetails>,
    /// Connections begin with a PROXY protocol header.
    pub proxy_protocol: bool,
}

/// Versions and ciphers of TLS; what is empty is left to the proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsSettings {
    /// Nothing below TLS 1.3.
    pub only_v1_3: bool,
    /// Of TLS 1.2.
    pub cipher_suites: Vec<String>,
    pub ecdh_curves: Vec<String>,
}

impl From<&TlsConfig> for TlsSettings {
    fn from(config: &TlsConfig) -> TlsSettings {
        TlsSettings {
            only_v1_3: config.min_protocol_version == Some(MinTlsVersion::V1_3),
            cipher_suites: config.cipher_suites.clone(),
            ecdh_curves: config.ecdh_curves.clone(),
        }
    }
}

/// What all TLS has to comply with, whatever else is configured (Istio's `COMPLIANCE_POLICY`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compliance {
    /// TLS 1.2 with AES-GCM and P-256.
    Fips140_2,
    /// TLS 1.3 with a key exchange that withstands quantum computers.
    Pqc,
}

impl FromStr for Compliance {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "fips-140-2" => Ok(Compliance::Fips140_2),
            "pqc" => Ok(Compliance::Pqc),
            _ => Err(format!(
                "{text:?} is not a compliance policy; there are fips-140-2 and pqc"
            )),
        }
    }
}

/// Mesh-wide settings.
#[derive(Clone, Debug, PartialEq)]
pub struct MeshSettings {
    /// Namespace whose rules are the mesh's defaults.
    pub root_namespace: String,
    /// Suffix of service names, `cluster.local`.
    pub domain_suffix: String,
    pub outbound_policy: OutboundPolicy,
    /// File that proxies log requests to; `None` logs nothing (fact 58).
    pub access_log_file: Option<String>,
    /// Format of a line, in Envoy's operators; `None` is Istio's default for the encoding.
    pub access_log_format: Option<String>,
    pub access_log_encoding: LogEncoding,
    /// How long a connection attempt to an upstream may take (Istio: 10 s, fact 34).
    pub connect_timeout: Duration,
    /// How long a listener waits for the first bytes that tell the protocol; zero is for ever
    /// (fact 42).
    pub protocol_detection_timeout: Duration,
    /// Retries of routes that say nothing; `None` is Istio's own default (fact 10).
    pub http_retries: Option<Arc<HttpRetry>>,
    /// Locality-aware balancing where a DestinationRule says nothing (fact 36).
    pub locality_balancing: Option<Arc<LocalityLoadBalancerSetting>>,
    /// Zone-aware balancing where a DestinationRule says nothing.
    pub zone_balancing: Option<Arc<ZoneAwareLoadBalancerSetting>>,
    pub gateway_topology: GatewayTopology,
    pub path_normalization: Normalization,
    /// What policies name by name.
    pub extension_providers: Vec<ExtensionProvider>,
    /// How often names are resolved.
    pub dns_refresh_rate: Duration,
    /// What identities of the mesh begin with: `spiffe://TRUST_DOMAIN/`.
    pub trust_domain: String,
    /// Trust domains whose identities are as good.
    pub trust_domain_aliases: Vec<String>,
    /// Whether endpoints with a sidecar are spoken to with mutual TLS where nobody says otherwise.
    pub auto_mtls: bool,
    /// For TLS between workloads.
    pub mesh_tls: TlsSettings,
    /// For all other TLS.
    pub tls_defaults: TlsSettings,
    /// Not a matter of configuration: the control plane is started with it.
    pub compliance: Option<Compliance>,
    /// Gateways pass TLS on to hosts of wildcard entries by whatever name its client says (Istio's
    /// `ENABLE_WILDCARD_HOST_SERVICE_ENTRIES_FOR_TLS`). Not a matter of configuration either.
    pub wildcard_tls_at_gateways: bool,
    /// Sidecars end TLS of clients outside the mesh where ingress listeners say so (Istio's
    /// `ENABLE_TLS_ON_SIDECAR_INGRESS`). Nor is this.
    pub tls_at_sidecars: bool,
    /// How long a client's TLS handshake may take; zero: any time (Istio's
    /// `PILOT_GATEWAY_TRANSPORT_SOCKET_CONNECT_TIMEOUT`). Nor is this.
    pub handshake_timeout: Duration,
    /// What is kept of them cannot be read: nobody is to be served by weaker ones.
    pub closed: bool,
    /// Who fetches the keys of tokens (Istio's `PILOT_JWT_ENABLE_REMOTE_JWKS`). Nor is this.
    pub keys_fetched_by: KeysFetchedBy,
    /// How long a proxy that fetches keys uses them.
    pub keys_cache: Duration,
    /// Probes on connections to upstreams where a DestinationRule says nothing.
    pub tcp_keepalive: Option<Arc<TcpKeepalive>>,
    /// `exportTo` of objects that say nothing; empty is everywhere.
    pub service_export_to: Vec<String>,
    pub virtual_service_export_to: Vec<String>,
    pub destination_rule_export_to: Vec<String>,
}

impl Default for MeshSettings {
    fn default() -> Self {
        MeshSettings {
            root_namespace: "istio-system".to_string(),
            domain_suffix: "cluster.local".to_string(),
            outbound_policy: OutboundPolicy::AllowAny,
            access_log_file: None,
            access_log_format: None,
            access_log_encoding: LogEncoding::Text,
            connect_timeout: Duration::from_secs(10),
            protocol_detection_timeout: Duration::ZERO,
            http_retries: None,
            locality_balancing: None,
            zone_balancing: None,
            gateway_topology: GatewayTopology::default(),
            path_normalization: Normalization::Base,
            extension_providers: Vec::new(),
            dns_refresh_rate: Duration::from_secs(60),
            trust_domain: "cluster.local".to_string(),
            trust_domain_aliases: Vec::new(),
            auto_mtls: true,
            mesh_tls: TlsSettings::default(),
            tls_defaults: TlsSettings::default(),
            compliance: None,
            wildcard_tls_at_gateways: false,
            tls_at_sidecars: false,
            handshake_timeout: Duration::from_secs(15),
            closed: false,
            keys_fetched_by: KeysFetchedBy::ControlPlane,
            keys_cache: Duration::from_secs(5 * 60),
            tcp_keepalive: None,
            service_export_to: Vec::new(),
            virtual_service_export_to: Vec::new(),
            destination_rule_export_to: Vec::new(),
        }
    }
}

impl MeshSettings {
    /// Takes over what a MeshConfig sets; what it leaves out stays.
    pub fn configure(&mut self, config: &MeshConfig) {
        fn set<T: Clone>(field: &mut T, value: &Option<T>) {
            if let Some(value) = value {
                *field = value.clone();
            }
        }
        fn set_list(field: &mut Vec<String>, value: &[String]) {
            if !value.is_empty() {
                *field = value.to_vec();
            }
        }
        set(&mut self.root_namespace, &config.root_namespace);
        set(&mut self.connect_timeout, &config.connect_timeout);
        set(
            &mut self.protocol_detection_timeout,
            &config.protocol_detection_timeout,
        );
        set(&mut self.dns_refresh_rate, &config.dns_refresh_rate);
        if let Some(keepalive) = &config.tcp_keepalive {
            self.tcp_keepalive = Some(Arc::new(keepalive.clone()));
        }
        let mode = config.outbound_traffic_policy.as_ref();
        if let Some(mode) = mode.and_then(|policy| policy.mode) {
            self.outbound_policy = OutboundPolicy::of(mode);
        }
        self.configure_access_log(config);
        self.configure_tls(config);
        for provider in &config.extension_providers {
            self.extension_providers
                .retain(|known| known.name != provider.name);
            self.extension_providers.push(provider.clone());
        }
        if let Some(retries) = &config.default_http_retry_policy {
            self.http_retries = Some(Arc::new(retries.clone()));
        }
        if let Some(locality) = &config.locality_lb_setting {
            self.locality_balancing = Some(Arc::new(locality.clone()));
        }
        if let Some(zones) = &config.zone_aware_lb_setting {
            self.zone_balancing = Some(Arc::new(zones.clone()));
        }
        let topology = config.default_config.as_ref();
        if let Some(topology) = topology.and_then(|config| config.gateway_topology.as_ref()) {
            self.gateway_topology = GatewayTopology {
                trusted_proxies: topology.num_trusted_proxies.unwrap_or(0),
                client_certificates: topology
                    .forward_client_cert_details
                    .filter(|details| *details != ForwardClientCertDetails::Undefined),
                proxy_protocol: topology.proxy_protocol.is_some(),
            };
        }
        if let Some(normalization) = &config.path_normalization {
            self.path_normalization = match normalization.normalization.unwrap_or_default() {
                Normalization::Default => Normalization::Base,
                other => other,
            };
        }
        set_list(
            &mut self.service_export_to,
            &config.default_service_export_to,
        );
        set_list(
            &mut self.virtual_service_export_to,
            &config.default_virtual_service_export_to,
        );
        set_list(
            &mut self.destination_rule_export_to,
            &config.default_destination_rule_export_to,
        );
    }

    fn configure_tls(&mut self, config: &MeshConfig) {
        if let Some(trust_domain) = config.trust_domain.as_ref().filter(|d| !d.is_empty()) {
            self.trust_domain = trust_domain.clone();
        }
        if !config.trust_domain_aliases.is_empty() {
            self.trust_domain_aliases = config.trust_domain_aliases.clone();
        }
        if let Some(auto_mtls) = config.enable_auto_mtls {
            self.auto_mtls = auto_mtls;
        }
        if let Some(tls) = &config.mesh_mtls {
            self.mesh_tls = TlsSettings::from(tls);
        }
        if let Some(tls) = &config.tls_defaults {
            self.tls_defaults = TlsSettings::from(tls);
        }
    }

    fn configure_access_log(&mut self, config: &MeshConfig) {
        let given = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
        if let Some(file) = &config.access_log_file {
            self.access_log_file = given(file);
        }
        if let Some(format) = &config.access_log_format {
            self.access_log_format = given(format);
        }
        if let Some(encoding) = config.access_log_encoding {
            self.access_log_encoding = match encoding {
                AccessLogEncoding::Text => LogEncoding::Text,
                AccessLogEncoding::Json => LogEncoding::Json,
            };
        }
    }
}

impl MeshSettings {
    /// The trust domain and its aliases, without repetition.
    pub fn trust_domains(&self) -> impl Iterator<Item = &str> {
        let own = self.trust_domain.as_str();
        let aliases = self.trust_domain_aliases.iter().map(String::as_str);
        let mut seen = std::collections::BTreeSet::new();
        std::iter::once(own)
            .chain(aliases)
            .filter(move |domain| seen.insert(*domain))
    }
}

impl OutboundPolicy {
    /// As a Sidecar or the mesh says it.
    pub fn of(mode: OutboundTrafficMode) -> OutboundPolicy {
        match mode {
            OutboundTrafficMode::RegistryOnly => OutboundPolicy::RegistryOnly,
            OutboundTrafficMode::AllowAny => OutboundPolicy::AllowAny,
            OutboundTrafficMode::AllowAnyDynamicDns => OutboundPolicy::AllowAnyDynamicDns,
        }
    }
}
