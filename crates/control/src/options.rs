//! What a control plane is told when it starts.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use lateen_identity::{KeyKind, Lifetimes, RootLifetimes};
use lateen_model::{Compliance, KeysFetchedBy};

use crate::jwks::Cidr;

#[derive(Clone, Debug)]
pub struct Options {
    /// Holds the store; made if it does not exist.
    pub data_dir: PathBuf,
    /// A directory of YAML to follow.
    pub config: Option<PathBuf>,
    pub bind: IpAddr,
    /// Address of the xDS server, where it is another one.
    pub xds_bind: Option<IpAddr>,
    /// Port 0 takes a free one.
    pub xds_port: u16,
    pub monitoring_port: u16,
    pub api_port: u16,
    /// A push waits until the configuration was quiet for this long (Istio's
    /// `PILOT_DEBOUNCE_AFTER`)...
    pub debounce_after: Duration,
    /// ...but not longer than this after the first change (`PILOT_DEBOUNCE_MAX`).
    pub debounce_max: Duration,
    /// Who connects has to have asked for something by then.
    pub patience: Duration,
    /// Revisions kept for history and rollback.
    pub history: u64,
    pub keys: KeyOptions,
    /// Port of the authority and of discovery over TLS.
    pub secure_port: u16,
    /// Istio's `cacerts` as a directory: the authority is that instead of a root of its own.
    pub plugged_ca: Option<PathBuf>,
    /// The key of a root that is made.
    pub ca_key: KeyKind,
    pub workload_lifetimes: Lifetimes,
    pub root_lifetimes: RootLifetimes,
    /// Who else issues tokens for workloads, besides the control plane itself: the issuer's name
    /// and the file of its JSON Web Key Set.
    pub token_issuers: Vec<(String, PathBuf)>,
    /// Gateways get their certificates over the plaintext port too, where nobody proves who he is.
    pub plaintext_credentials: bool,
    /// What all TLS has to comply with: that of proxies and our own (Istio's `COMPLIANCE_POLICY`).
    pub compliance: Option<Compliance>,
    /// Gateways pass TLS on to hosts of wildcard entries by whatever name its client says (Istio's
    /// `ENABLE_WILDCARD_HOST_SERVICE_ENTRIES_FOR_TLS`).
    pub wildcard_tls_at_gateways: bool,
    /// Sidecars end TLS of clients outside the mesh where ingress listeners say so (Istio's
    /// `ENABLE_TLS_ON_SIDECAR_INGRESS`).
    pub tls_at_sidecars: bool,
    /// How long a client of gateways and sidecars may take for its TLS handshake; zero: any time
    /// (Istio's `PILOT_GATEWAY_TRANSPORT_SOCKET_CONNECT_TIMEOUT`).
    pub handshake_timeout: Duration,
}

/// How the keys of tokens are fetched.
#[derive(Clone, Debug)]
pub struct KeyOptions {
    /// Fetch them again after this long (Istio's `PILOT_JWT_PUB_KEY_REFRESH_INTERVAL`).
    pub refresh: Duration,
    /// Try again this long after a first failure; further waits double.
    pub retry: Duration,
    /// Nothing is fetched from these addresses (Istio's `BLOCKED_CIDRS_IN_JWKS_URIS`).
    pub blocked: Vec<Cidr>,
    /// A PEM file of certificates to trust beside those of the system.
    pub extra_roots: Option<PathBuf>,
    /// Who fetches those that are named by a URI (Istio's `PILOT_JWT_ENABLE_REMOTE_JWKS`).
    pub fetched_by: KeysFetchedBy,
    /// How long a proxy that fetches keys uses them; Istio's 5 minutes.
    pub proxy_cache: Duration,
}

impl Default for KeyOptions {
    fn default() -> Self {
        Self {
            refresh: Duration::from_secs(20 * 60),
            retry: Duration::from_secs(1),
            blocked: Vec::new(),
            extra_roots: None,
            fetched_by: KeysFetchedBy::default(),
            proxy_cache: Duration::from_secs(5 * 60),
        }
    }
}

impl Options {
    /// Istio's ports and times on loopback.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            config: None,
            bind: IpAddr::V4(Ipv4Addr::LOCALHOST),
            xds_bind: None,
            xds_port: 15010,
            monitoring_port: 15014,
            api_port: 15088,
            debounce_after: Duration::from_millis(100),
            debounce_max: Duration::from_secs(10),
            patience: Duration::from_secs(30),
            history: 10_000,
            keys: KeyOptions::default(),
            secure_port: 15012,
            plugged_ca: None,
            ca_key: KeyKind::default(),
            workload_lifetimes: Lifetimes::default(),
            root_lifetimes: RootLifetimes::default(),
            token_issuers: Vec::new(),
            plaintext_credentials: false,
            compliance: None,
            wildcard_tls_at_gateways: false,
            tls_at_sidecars: false,
            handshake_timeout: Duration::from_secs(15),
        }
    }
}
