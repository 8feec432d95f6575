//! `MeshConfig`: settings of the whole mesh. Not an object of its own; it stands in an IstioOperator
//! (`spec.meshConfig`) or, as text, in the ConfigMap `istio` (`data.mesh`).
//!
//! Field meaning: Istio's reference, mesh/config. An absent field leaves what is set elsewhere, so
//! every field tells absent from zero.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value as Json;

use crate::destination_rule::{
    LocalityLoadBalancerSetting, TcpKeepalive, ZoneAwareLoadBalancerSetting,
};
use crate::field::IntOrString;
use crate::schema::{choice, message};
use crate::sidecar::OutboundTrafficMode;
use crate::virtual_service::HttpRetry;

message! {
    pub struct MeshConfig {
        pending proxy_listen_port "proxyListenPort": Option<i32>,
        pending proxy_inbound_listen_port "proxyInboundListenPort": Option<i32>,
        pending proxy_http_port "proxyHttpPort": Option<i32>,
        effective connect_timeout "connectTimeout": Option<Duration>,
        pending hbone_idle_timeout "hboneIdleTimeout": Option<Duration>,
        /// Zero waits for as long as the client says nothing.
        effective protocol_detection_timeout "protocolDetectionTimeout": Option<Duration>,
        effective tcp_keepalive "tcpKeepalive": Option<TcpKeepalive>,
        pending ingress_class "ingressClass": Option<String>,
        pending ingress_service "ingressService": Option<String>,
        pending ingress_controller_mode "ingressControllerMode": Option<IngressControllerMode>,
        pending ingress_selector "ingressSelector": Option<String>,
        pending enable_tracing "enableTracing": Option<bool>,
        /// Empty logs nothing.
        effective access_log_file "accessLogFile": Option<String>,
        /// Of TEXT a line, of JSON an object; empty is Istio's default.
        effective access_log_format "accessLogFormat": Option<String>,
        effective access_log_encoding "accessLogEncoding": Option<AccessLogEncoding>,
        pending enable_envoy_access_log_service "enableEnvoyAccessLogService": Option<bool>,
        pending disable_envoy_listener_log "disableEnvoyListenerLog": Option<bool>,
        effective default_config "defaultConfig": Option<ProxyConfig>,
        effective outbound_traffic_policy "outboundTrafficPolicy": Option<MeshOutboundTrafficPolicy>,
        pending inbound_traffic_policy "inboundTrafficPolicy": Json,
        pending config_sources "configSources": Vec<Json>,
        /// Towards endpoints that have a sidecar, unless a DestinationRule says otherwise.
        effective enable_auto_mtls "enableAutoMtls": Option<bool>,
        effective trust_domain "trustDomain": Option<String>,
        effective trust_domain_aliases "trustDomainAliases": Vec<String>,
        pending ca_certificates "caCertificates": Vec<Json>,
        effective default_service_export_to "defaultServiceExportTo": Vec<String>,
        effective default_virtual_service_export_to "defaultVirtualServiceExportTo": Vec<String>,
        effective default_destination_rule_export_to "defaultDestinationRuleExportTo": Vec<String>,
        effective root_namespace "rootNamespace": Option<String>,
        effective locality_lb_setting "localityLbSetting": Option<LocalityLoadBalancerSetting>,
        /// Istio 1.31; where it is on, `localityLbSetting` of the mesh has no effect.
        effective zone_aware_lb_setting "zoneAwareLbSetting": Option<ZoneAwareLoadBalancerSetting>,
        effective dns_refresh_rate "dnsRefreshRate": Option<Duration>,
        pending h2_upgrade_policy "h2UpgradePolicy": Option<MeshH2UpgradePolicy>,
        pending inbound_cluster_stat_name "inboundClusterStatName": Option<String>,
        pending outbound_cluster_stat_name "outboundClusterStatName": Option<String>,
        pending certificates: Vec<Json> => "use a CA that signs them",
        pending thrift_config "thriftConfig": Json => "remove it; Istio does so as well",
        pending service_settings "serviceSettings": Vec<Json>,
        pending service_scope_configs "serviceScopeConfigs": Vec<Json>,
        pending enable_prometheus_merge "enablePrometheusMerge": Option<bool>,
        pending verify_certificate_at_client "verifyCertificateAtClient": Option<bool> => "use tls of a DestinationRule",
        pending ca: Json,
        effective extension_providers "extensionProviders": Vec<ExtensionProvider>,
        pending default_providers "defaultProviders": Option<DefaultProviders>,
        pending discovery_selectors "discoverySelectors": Vec<Json>,
        effective path_normalization "pathNormalization": Option<PathNormalization>,
        effective default_http_retry_policy "defaultHttpRetryPolicy": Option<HttpRetry>,
        /// TLS between workloads of the mesh.
        effective mesh_mtls "meshMTLS": Option<TlsConfig>,
        /// All other TLS.
        effective tls_defaults "tlsDefaults": Option<TlsConfig>,
    }
}

message! {
    /// Versions and ciphers, where nothing more special says them.
    pub struct TlsConfig {
        effective min_protocol_version "minProtocolVersion": Option<MinTlsVersion>,
        effective ecdh_curves "ecdhCurves": Vec<String>,
        /// Of TLS 1.2; those of 1.3 cannot be chosen.
        effective cipher_suites "cipherSuites": Vec<String>,
    }
}

choice! {
    pub enum MinTlsVersion {
        #[default]
        effective Auto = "TLS_AUTO",
        effective V1_2 = "TLSV1_2",
        effective V1_3 = "TLSV1_3",
    }
}

message! {
    pub struct MeshOutboundTrafficPolicy {
        effective mode: Option<OutboundTrafficMode>,
    }
}

choice! {
    pub enum AccessLogEncoding {
        #[default]
        effective Text = "TEXT",
        effective Json = "JSON",
    }
}

choice! {
    pub enum IngressControllerMode {
        #[default]
        effective Unspecified = "UNSPECIFIED",
        effective Off = "OFF",
        effective Default = "DEFAULT",
        effective Strict = "STRICT",
    }
}

choice! {
    pub enum MeshH2UpgradePolicy {
        #[default]
        effective DoNotUpgrade = "DO_NOT_UPGRADE",
        effective Upgrade = "UPGRADE",
    }
}

message! {
    pub struct DefaultProviders {
        effective tracing: Vec<String>,
        effective metrics: Vec<String>,
        effective access_logging "accessLogging": Vec<String>,
    }
}

message! {
    /// Something outside of the proxies that policies name. One of the fields beside the name.
    pub struct ExtensionProvider {
        effective name: String,
        effective envoy_ext_authz_http "envoyExtAuthzHttp": Option<ExtAuthzHttpProvider>,
        effective envoy_ext_authz_grpc "envoyExtAuthzGrpc": Option<ExtAuthzGrpcProvider>,
        pending zipkin: Json,
        pending lightstep: Json => "use opentelemetry",
        pending datadog: Json,
        pending stackdriver: Json,
        pending opencensus: Json => "use opentelemetry",
        pending skywalking: Json,
        pending opentelemetry: Json,
        pending prometheus: Json,
        pending envoy_file_access_log "envoyFileAccessLog": Json,
        pending envoy_http_als "envoyHttpAls": Json,
        pending envoy_tcp_als "envoyTcpAls": Json,
        pending envoy_otel_als "envoyOtelAls": Json,
        pending sds: Json,
    }
}

message! {
    /// An authorizer that is asked over HTTP: 200 allows, anything else is the answer.
    pub struct ExtAuthzHttpProvider {
        /// Host name of a service, or `namespace/host`.
        effective service: String,
        effective port: IntOrString,
        /// Default 600 s.
        effective timeout: Option<Duration>,
        effective path_prefix "pathPrefix": String,
        /// Whether requests pass while the authorizer fails.
        effective fail_open "failOpen": bool,
        /// After an allowing answer routes are chosen again.
        effective clear_route_cache "clearRouteCache": bool,
        /// Default 403.
        effective status_on_error "statusOnError": String,
        effective include_headers_in_check "includeHeadersInCheck": Vec<String> => "use includeRequestHeadersInCheck",
        effective include_request_headers_in_check "includeRequestHeadersInCheck": Vec<String>,
        effective include_additional_headers_in_check "includeAdditionalHeadersInCheck": BTreeMap<String, String>,
        effective include_request_body_in_check "includeRequestBodyInCheck": Option<ExtAuthzRequestBody>,
        effective headers_to_upstream_on_allow "headersToUpstreamOnAllow": Vec<String>,
        effective headers_to_downstream_on_deny "headersToDownstreamOnDeny": Vec<String>,
        effective headers_to_downstream_on_allow "headersToDownstreamOnAllow": Vec<String>,
    }
}

message! {
    /// An authorizer that speaks Envoy's `envoy.service.auth.v3.Authorization`.
    pub struct ExtAuthzGrpcProvider {
        effective service: String,
        effective port: IntOrString,
        effective timeout: Option<Duration>,
        effective fail_open "failOpen": bool,
        effective clear_route_cache "clearRouteCache": bool,
        effective status_on_error "statusOnError": String,
        effective include_request_body_in_check "includeRequestBodyInCheck": Option<ExtAuthzRequestBody>,
    }
}

message! {
    pub struct ExtAuthzRequestBody {
        effective max_request_bytes "maxRequestBytes": u32,
        /// Whether a longer body is cut; else it is refused with 413.
        effective allow_partial_message "allowPartialMessage": bool,
        effective pack_as_bytes "packAsBytes": bool,
    }
}

message! {
    pub struct PathNormalization {
        effective normalization: Option<Normalization>,
    }
}

choice! {
    /// How a path is brought into one form before anything looks at it.
    pub enum Normalization {
        #[default]
        effective Default = "DEFAULT",
        effective None = "NONE",
        /// Dot segments.
        effective Base = "BASE",
        /// And slashes in a row.
        effective MergeSlashes = "MERGE_SLASHES",
        /// And escaped slashes.
        effective DecodeAndMergeSlashes = "DECODE_AND_MERGE_SLASHES",
    }
}

message! {
    /// How proxies run. What concerns the process of a proxy in a cluster has no effect here.
    pub struct ProxyConfig {
        pending config_path "configPath": Option<String>,
        pending binary_path "binaryPath": Option<String>,
        pending service_cluster "serviceCluster": Option<String>,
        pending tracing_service_name "tracingServiceName": Option<String>,
        pending drain_duration "drainDuration": Option<Duration>,
        pending discovery_address "discoveryAddress": Option<String>,
        pending zipkin_address "zipkinAddress": Option<String> => "use tracing.zipkin.address",
        pending statsd_udp_address "statsdUdpAddress": Option<String>,
        pending proxy_admin_port "proxyAdminPort": Option<i32>,
        pending control_plane_auth_policy "controlPlaneAuthPolicy": Option<String>,
        pending custom_config_file "customConfigFile": Option<String>,
        pending stat_name_length "statNameLength": Option<i32>,
        pending concurrency: Option<i32>,
        pending proxy_bootstrap_template_path "proxyBootstrapTemplatePath": Option<String>,
        pending interception_mode "interceptionMode": Option<String>,
        pending tracing: Json,
        pending envoy_access_log_service "envoyAccessLogService": Json,
        pending envoy_metrics_service "envoyMetricsService": Json,
        pending proxy_metadata "proxyMetadata": BTreeMap<String, String>,
        pending runtime_values "runtimeValues": BTreeMap<String, String>,
        pending status_port "statusPort": Option<i32>,
        pending extra_stat_tags "extraStatTags": Vec<String>,
        effective gateway_topology "gatewayTopology": Option<Topology>,
        pending termination_drain_duration "terminationDrainDuration": Option<Duration>,
        pending mesh_id "meshId": Option<String>,
        pending readiness_probe "readinessProbe": Json,
        pending proxy_stats_matcher "proxyStatsMatcher": Json,
        pending hold_application_until_proxy_starts "holdApplicationUntilProxyStarts": Option<bool>,
        pending ca_certificates_pem "caCertificatesPem": Vec<String>,
        pending image: Json,
        pending private_key_provider "privateKeyProvider": Json,
        pending proxy_headers "proxyHeaders": Json,
        pending file_flush_interval "fileFlushInterval": Option<Duration>,
        pending file_flush_min_size_kb "fileFlushMinSizeKb": Option<u32>,
        pending stats_compression "statsCompression": Option<bool>,
        pending stats_eviction_interval "statsEvictionInterval": Option<Duration>,
    }
}

message! {
    /// What stands before a gateway.
    pub struct Topology {
        /// Proxies whose word in `x-forwarded-for` is believed.
        effective num_trusted_proxies "numTrustedProxies": Option<u32>,
        effective forward_client_cert_details "forwardClientCertDetails": Option<ForwardClientCertDetails>,
        /// Present: connections begin with a PROXY protocol header.
        pending proxy_protocol "proxyProtocol": Option<ProxyProtocolConfiguration>,
    }
}

message! {
    pub struct ProxyProtocolConfiguration {}
}

choice! {
    /// What a gateway does with `x-forwarded-client-cert`.
    pub enum ForwardClientCertDetails {
        #[default]
        effective Undefined = "UNDEFINED",
        effective Sanitize = "SANITIZE",
        effective ForwardOnly = "FORWARD_ONLY",
        effective AppendForward = "APPEND_FORWARD",
        effective SanitizeSet = "SANITIZE_SET",
        effective AlwaysForwardOnly = "ALWAYS_FORWARD_ONLY",
    }
}

impl MeshConfig {
    /// From the text in a ConfigMap. Fields that are unknown are left out; `None` when the text is
    /// wrong, which is said where the ConfigMap is applied.
    pub fn read(text: &str) -> Option<MeshConfig> {
        let (config, problems) = crate::validate::mesh_config::read(text, true);
        config.filter(|_| !problems.iter().any(|problem| problem.error))
    }
}

/// Port of an authorizer, which may be written as text.
pub fn ext_authz_port(port: &IntOrString) -> Option<u16> {
    let number = match port {
        IntOrString::Int(number) => u16::try_from(*number).ok(),
        IntOrString::String(text) => text.parse().ok(),
    };
    number.filter(|port| *port != 0)
}

/// Status that is answered while an authorizer fails: one that Envoy knows, and that ends a request.
pub fn ext_authz_status(text: &str) -> Option<u16> {
    let code = text.parse().ok()?;
    let known = matches!(
        code,
        200..=208 | 226 | 300..=305 | 307 | 308 | 400..=417 | 421..=424 | 426 | 428
            | 429 | 431 | 500..=508 | 510 | 511
    );
    known.then_some(code)
}
