//! `DestinationRule`: what applies to traffic after it was routed to a service.
//!
//! Field meaning: Istio's reference, networking/destination-rule.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::schema::{choice, message};
use crate::virtual_service::PortSelector;

message! {
    pub struct DestinationRule {
        effective host: String,
        effective traffic_policy "trafficPolicy": Option<TrafficPolicy>,
        effective subsets: Vec<Subset>,
        effective export_to "exportTo": Vec<String>,
        /// Client workloads that follow this rule; others in the namespace ignore it.
        effective workload_selector "workloadSelector": Option<WorkloadSelector>,
    }
}

message! {
    /// Of type/v1beta1: `matchLabels`. (ServiceEntry's own selector says `labels`.)
    pub struct WorkloadSelector {
        effective match_labels "matchLabels": BTreeMap<String, String>,
    }
}

message! {
    pub struct Subset {
        effective name: String,
        effective labels: BTreeMap<String, String>,
        /// Overrides the rule's own policy, one top-level field at a time.
        effective traffic_policy "trafficPolicy": Option<TrafficPolicy>,
    }
}

message! {
    pub struct TrafficPolicy {
        effective load_balancer "loadBalancer": Option<LoadBalancerSettings>,
        effective connection_pool "connectionPool": Option<ConnectionPoolSettings>,
        effective outlier_detection "outlierDetection": Option<OutlierDetection>,
        effective tls: Option<ClientTlsSettings>,
        /// A port listed here inherits nothing from the fields above.
        effective port_level_settings "portLevelSettings": Vec<PortTrafficPolicy>,
        effective tunnel: Option<TunnelSettings>,
        effective proxy_protocol "proxyProtocol": Option<ProxyProtocol>,
        effective retry_budget "retryBudget": Option<RetryBudget>,
    }
}

message! {
    pub struct PortTrafficPolicy {
        /// The service's port.
        effective port: Option<PortSelector>,
        effective load_balancer "loadBalancer": Option<LoadBalancerSettings>,
        effective connection_pool "connectionPool": Option<ConnectionPoolSettings>,
        effective outlier_detection "outlierDetection": Option<OutlierDetection>,
        effective tls: Option<ClientTlsSettings>,
    }
}

message! {
    pub struct LoadBalancerSettings {
        /// Excludes `consistentHash`.
        effective simple: Option<SimpleLb>,
        effective consistent_hash "consistentHash": Option<ConsistentHashLb>,
        effective locality_lb_setting "localityLbSetting": Option<LocalityLoadBalancerSetting>,
        /// Istio 1.31.
        effective zone_aware_lb_setting "zoneAwareLbSetting": Option<ZoneAwareLoadBalancerSetting>,
        effective warmup_duration_secs "warmupDurationSecs": Option<Duration> => "use warmup.duration",
        effective warmup: Option<WarmupConfiguration>,
    }
}

choice! {
    pub enum SimpleLb {
        #[default]
        effective Unspecified = "UNSPECIFIED",
        effective LeastConn = "LEAST_CONN" => "use LEAST_REQUEST, which is what it means",
        effective Random = "RANDOM",
        /// To the address the caller asked for, without choosing an endpoint.
        effective Passthrough = "PASSTHROUGH",
        effective RoundRobin = "ROUND_ROBIN",
        effective LeastRequest = "LEAST_REQUEST",
    }
}

message! {
    /// One hash key (the first four) and at most one algorithm.
    pub struct ConsistentHashLb {
        effective http_header_name "httpHeaderName": String,
        effective http_cookie "httpCookie": Option<HttpCookie>,
        effective use_source_ip "useSourceIp": Option<bool>,
        effective http_query_parameter_name "httpQueryParameterName": String,
        effective ring_hash "ringHash": Option<RingHash>,
        effective maglev: Option<Maglev>,
        effective minimum_ring_size "minimumRingSize": Option<u64> => "use ringHash.minimumRingSize",
    }
}

message! {
    pub struct HttpCookie {
        effective name: String,
        effective path: String,
        /// Zero makes a session cookie.
        effective ttl: Option<Duration>,
        effective attributes: Vec<HttpCookieAttribute>,
    }
}

message! {
    pub struct HttpCookieAttribute {
        effective name: String,
        effective value: String,
    }
}

message! {
    pub struct RingHash {
        /// Default 1024.
        effective minimum_ring_size "minimumRingSize": Option<u64>,
    }
}

message! {
    pub struct Maglev {
        /// A prime below 5000011; default 65537.
        effective table_size "tableSize": Option<u64>,
    }
}

message! {
    pub struct WarmupConfiguration {
        effective duration: Option<Duration>,
        effective minimum_percent "minimumPercent": Option<f64>,
        effective aggression: Option<f64>,
    }
}

message! {
    /// One of `distribute`, `failover` and `failoverPriority`, save that the last two go together.
    pub struct LocalityLoadBalancerSetting {
        effective distribute: Vec<Distribute>,
        effective failover: Vec<Failover>,
        effective failover_priority "failoverPriority": Vec<String>,
        effective enabled: Option<bool>,
    }
}

message! {
    pub struct Distribute {
        /// `region/zone/subzone`, `*` at the end allowed.
        effective from: String,
        /// Locality to its share; the shares make 100.
        effective to: BTreeMap<String, u32>,
    }
}

message! {
    /// Regions.
    pub struct Failover {
        effective from: String,
        effective to: String,
    }
}

message! {
    /// Requests stay in their client's zone as far as its endpoints can take them.
    pub struct ZoneAwareLoadBalancerSetting {
        effective enabled: Option<bool>,
        effective failover: Vec<Failover>,
        effective failover_priority "failoverPriority": Vec<String>,
        /// Default 6.
        effective min_cluster_size "minClusterSize": Option<u64>,
    }
}

message! {
    pub struct ConnectionPoolSettings {
        effective tcp: Option<TcpSettings>,
        effective http: Option<HttpSettings>,
    }
}

message! {
    pub struct TcpSettings {
        /// Default 2^32-1, as for all limits here.
        effective max_connections "maxConnections": Option<i32>,
        /// Default 10 s.
        effective connect_timeout "connectTimeout": Option<Duration>,
        effective tcp_keepalive "tcpKeepalive": Option<TcpKeepalive>,
        effective max_connection_duration "maxConnectionDuration": Option<Duration>,
        effective idle_timeout "idleTimeout": Option<Duration>,
    }
}

message! {
    pub struct TcpKeepalive {
        effective probes: Option<u32>,
        effective time: Option<Duration>,
        effective interval: Option<Duration>,
    }
}

message! {
    pub struct HttpSettings {
        effective http1_max_pending_requests "http1MaxPendingRequests": Option<i32>,
        /// Of HTTP/1.1 too, despite its name.
        effective http2_max_requests "http2MaxRequests": Option<i32>,
        effective max_requests_per_connection "maxRequestsPerConnection": Option<i32>,
        effective max_retries "maxRetries": Option<i32>,
        effective idle_timeout "idleTimeout": Option<Duration>,
        effective h2_upgrade_policy "h2UpgradePolicy": Option<H2UpgradePolicy>,
        effective use_client_protocol "useClientProtocol": Option<bool>,
        effective max_concurrent_streams "maxConcurrentStreams": Option<i32>,
        /// Istio 1.31.
        effective http2_keep_alive "http2KeepAlive": Option<ConnectionKeepalive>,
    }
}

choice! {
    pub enum H2UpgradePolicy {
        #[default]
        effective Default = "DEFAULT",
        effective DoNotUpgrade = "DO_NOT_UPGRADE",
        effective Upgrade = "UPGRADE",
    }
}

message! {
    /// HTTP/2 PING frames.
    pub struct ConnectionKeepalive {
        effective interval: Option<Duration>,
        effective timeout: Option<Duration>,
    }
}

message! {
    pub struct OutlierDetection {
        effective consecutive_errors "consecutiveErrors": Option<i32> => "use consecutiveGatewayErrors or consecutive5xxErrors",
        effective split_external_local_origin_errors "splitExternalLocalOriginErrors": Option<bool>,
        effective consecutive_local_origin_failures "consecutiveLocalOriginFailures": Option<u32>,
        effective consecutive_gateway_errors "consecutiveGatewayErrors": Option<u32>,
        /// Default 5, enforced even when only gateway errors are configured.
        effective consecutive5xx_errors "consecutive5xxErrors": Option<u32>,
        effective interval: Option<Duration>,
        effective base_ejection_time "baseEjectionTime": Option<Duration>,
        /// Default 10.
        effective max_ejection_percent "maxEjectionPercent": Option<i32>,
        effective min_health_percent "minHealthPercent": Option<i32>,
        /// Istio 1.31: status codes that count as errors.
        effective outlier_detection_http_error_codes "outlierDetectionHttpErrorCodes": Vec<u32>,
    }
}

message! {
    pub struct ClientTlsSettings {
        effective mode: Option<ClientTlsMode>,
        effective client_certificate "clientCertificate": String,
        effective private_key "privateKey": String,
        effective ca_certificates "caCertificates": String,
        /// Excludes the three file names above.
        effective credential_name "credentialName": String,
        effective subject_alt_names "subjectAltNames": Vec<String>,
        effective sni: String,
        effective insecure_skip_verify "insecureSkipVerify": Option<bool>,
        effective ca_crl "caCrl": String,
    }
}

choice! {
    pub enum ClientTlsMode {
        #[default]
        effective Disable = "DISABLE",
        effective Simple = "SIMPLE",
        effective Mutual = "MUTUAL",
        /// Mutual TLS with the mesh's own certificates.
        effective IstioMutual = "ISTIO_MUTUAL",
    }
}

message! {
    pub struct TunnelSettings {
        /// `CONNECT` (default) or `POST`.
        effective protocol: String,
        effective target_host "targetHost": String,
        effective target_port "targetPort": u32,
    }
}

message! {
    pub struct ProxyProtocol {
        effective version: Option<ProxyProtocolVersion>,
    }
}

choice! {
    pub enum ProxyProtocolVersion {
        #[default]
        effective V1 = "V1",
        effective V2 = "V2",
    }
}

message! {
    pub struct RetryBudget {
        /// Of active requests; default 20.
        effective percent: Option<f64>,
        /// Default 3.
        effective min_retry_concurrency "minRetryConcurrency": Option<u32>,
        /// Istio 1.31.
        effective budget_interval "budgetInterval": Option<Duration>,
    }
}
