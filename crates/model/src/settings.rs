//! Mesh-wide settings: the part of Istio's MeshConfig that the snapshot and translation read.

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

/// What happens to traffic for hosts that nobody registered (fact 17).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum OutboundPolicy {
    #[default]
    AllowAny,
    RegistryOnly,
}

/// Mesh-wide settings.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MeshSettings {
    /// Namespace whose rules are the mesh's defaults.
    pub root_namespace: String,
    /// Suffix of service names, `cluster.local`.
    pub domain_suffix: String,
    pub outbound_policy: OutboundPolicy,
    /// File that proxies log requests to; `None` logs nothing (fact 58).
    pub access_log_file: Option<String>,
    /// Format of a line, in Envoy's operators.
    pub access_log_format: String,
    /// How long a connection attempt to an upstream may take (Istio: 10 s, fact 34).
    pub connect_timeout: std::time::Duration,
}

impl Default for MeshSettings {
    fn default() -> Self {
        MeshSettings {
            root_namespace: "istio-system".to_string(),
            domain_suffix: "cluster.local".to_string(),
            outbound_policy: OutboundPolicy::AllowAny,
            access_log_file: None,
            access_log_format: DEFAULT_ACCESS_LOG_FORMAT.to_string(),
            connect_timeout: std::time::Duration::from_secs(10),
        }
    }
}
