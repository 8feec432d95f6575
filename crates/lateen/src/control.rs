//! `lateen control`: the control plane as a process of its own.

use std::path::PathBuf;
use std::time::Duration;

use lateen_control::{Cidr, KeyKind, KeyOptions, Lifetimes, Options};

use crate::failure::{Failure, Outcome};

/// Run the control plane: configuration API, xDS server and monitoring
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory where configuration is kept, with its history
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,

    /// Directory of Istio and Kubernetes YAML to watch, besides what is applied over the API
    #[arg(long, value_name = "DIR")]
    pub config: Option<PathBuf>,

    /// Address to listen on
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub bind: std::net::IpAddr,

    /// Address of the xDS server [default: that of --bind]
    #[arg(long, value_name = "ADDRESS")]
    pub xds_bind: Option<std::net::IpAddr>,

    /// Port of the xDS server (plaintext gRPC)
    #[arg(long, value_name = "PORT", default_value_t = 15010)]
    pub xds_port: u16,

    /// Port of the certificate authority and of xDS over TLS
    #[arg(long, value_name = "PORT", default_value_t = 15012)]
    pub secure_port: u16,

    /// Port of /metrics, /ready, /version and /debug
    #[arg(long, value_name = "PORT", default_value_t = 15014)]
    pub monitoring_port: u16,

    /// Port of the configuration API (Kubernetes-style paths)
    #[arg(long, value_name = "PORT", default_value_t = 15088)]
    pub api_port: u16,

    /// Push to proxies when configuration was quiet for this long
    #[arg(long, value_name = "DURATION", default_value = "100ms", value_parser = duration)]
    #[arg(env = "PILOT_DEBOUNCE_AFTER")]
    pub debounce_after: Duration,

    /// Push at the latest this long after the first change
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    #[arg(env = "PILOT_DEBOUNCE_MAX")]
    pub debounce_max: Duration,

    /// Revisions of the configuration kept for history and rollback
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub history: u64,

    /// Fetch the keys of RequestAuthentications again after this long
    #[arg(long, value_name = "DURATION", default_value = "20m", value_parser = duration)]
    #[arg(env = "PILOT_JWT_PUB_KEY_REFRESH_INTERVAL")]
    pub jwks_refresh: Duration,

    /// Fetch no keys from these addresses
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = Cidr::parse)]
    #[arg(env = "BLOCKED_CIDRS_IN_JWKS_URIS")]
    pub jwks_blocked_cidrs: Vec<Cidr>,

    /// PEM file of certificates to trust when keys are fetched, beside those of the system
    #[arg(long, value_name = "FILE")]
    pub jwks_extra_roots: Option<PathBuf>,

    /// Directory of an authority to use instead of a self-signed root: ca-cert.pem, ca-key.pem,
    /// cert-chain.pem and root-cert.pem (or tls.crt, tls.key and ca.crt)
    #[arg(long, value_name = "DIR")]
    pub ca_dir: Option<PathBuf>,

    /// Key of the self-signed root, when it is made
    #[arg(long, value_name = "KIND", default_value = "ecdsa", value_parser = ["ecdsa", "rsa"])]
    pub ca_key: String,

    /// Validity of the certificates of workloads
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = duration)]
    #[arg(env = "DEFAULT_WORKLOAD_CERT_TTL")]
    pub workload_cert_ttl: Duration,

    /// The longest validity that a workload may ask for
    #[arg(long, value_name = "DURATION", default_value = "2160h", value_parser = duration)]
    #[arg(env = "MAX_WORKLOAD_CERT_TTL")]
    pub max_workload_cert_ttl: Duration,

    /// Another issuer of workload tokens (audience istio-ca), and the file of its JSON Web Key Set
    #[arg(long, value_name = "ISSUER=FILE", value_parser = token_issuer)]
    pub token_issuer: Vec<(String, PathBuf)>,

    /// What all TLS has to comply with: fips-140-2 or pqc
    #[arg(
        long,
        value_name = "POLICY",
        env = "COMPLIANCE_POLICY",
        default_value = ""
    )]
    #[arg(hide_default_value = true, value_parser = ["", "fips-140-2", "pqc"])]
    pub compliance: String,

    /// Let gateways pass TLS on to hosts of wildcard ServiceEntries with resolution DYNAMIC_DNS, by
    /// whatever server name the client says: only for clients that are trusted
    #[arg(long, env = "ENABLE_WILDCARD_HOST_SERVICE_ENTRIES_FOR_TLS")]
    #[arg(value_parser = clap::builder::FalseyValueParser::new())]
    pub wildcard_tls_at_gateways: bool,

    /// Let sidecars end TLS of clients outside the mesh where the ingress listeners of Sidecars say so
    #[arg(long, env = "ENABLE_TLS_ON_SIDECAR_INGRESS")]
    #[arg(value_parser = clap::builder::FalseyValueParser::new())]
    pub tls_at_sidecars: bool,

    /// How long a client may take for its TLS handshake with a gateway or sidecar; 0s: any time
    #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = duration)]
    #[arg(env = "PILOT_GATEWAY_TRANSPORT_SOCKET_CONNECT_TIMEOUT")]
    pub handshake_timeout: Duration,

    /// Who fetches the keys that RequestAuthentications name by URI: this control plane (false,
    /// istiod), the proxies where the server is a service of the mesh (true, hybrid), or the
    /// proxies always (envoy)
    #[arg(long, value_name = "MODE", env = "PILOT_JWT_ENABLE_REMOTE_JWKS")]
    #[arg(default_value = "false", hide_default_value = true)]
    #[arg(value_parser = ["false", "istiod", "true", "hybrid", "envoy"], ignore_case = true)]
    pub remote_jwks: String,

    /// Give gateways their certificates over the plaintext port too
    #[arg(long, hide = true)]
    pub plaintext_credentials: bool,

    /// Leave when standard input ends: the parent process holds it open
    #[arg(long, hide = true)]
    pub exit_with_parent: bool,
}

pub fn run(args: Args) -> Outcome {
    if args.exit_with_parent {
        lateen_local::exit_with_parent();
    }
    log_to_stderr();
    let options = Options {
        config: args.config,
        bind: args.bind,
        xds_bind: args.xds_bind,
        xds_port: args.xds_port,
        monitoring_port: args.monitoring_port,
        api_port: args.api_port,
        debounce_after: args.debounce_after,
        debounce_max: args.debounce_max,
        history: args.history,
        keys: KeyOptions {
            refresh: args.jwks_refresh,
            blocked: args.jwks_blocked_cidrs,
            extra_roots: args.jwks_extra_roots,
            fetched_by: args.remote_jwks.parse().unwrap_or_default(),
            ..KeyOptions::default()
        },
        secure_port: args.secure_port,
        plugged_ca: args.ca_dir,
        ca_key: match args.ca_key.as_str() {
            "rsa" => KeyKind::Rsa2048,
            _ => KeyKind::EcdsaP256,
        },
        workload_lifetimes: Lifetimes {
            default: args.workload_cert_ttl,
            max: args.max_workload_cert_ttl,
        },
        token_issuers: args.token_issuer,
        plaintext_credentials: args.plaintext_credentials,
        wildcard_tls_at_gateways: args.wildcard_tls_at_gateways,
        tls_at_sidecars: args.tls_at_sidecars,
        handshake_timeout: args.handshake_timeout,
        compliance: args.compliance.parse().ok(),
        ..Options::new(args.data_dir)
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::other(format!("cannot start the runtime: {error}")))?;
    runtime
        .block_on(lateen_control::run(options, asked_to_leave()))
        .map_err(Failure::other)
}

pub fn duration(text: &str) -> Result<Duration, String> {
    lateen_api::parse_duration(text).map_err(|error| error.to_string())
}

fn token_issuer(text: &str) -> Result<(String, PathBuf), String> {
    match text.rsplit_once('=') {
        Some((issuer, file)) if !issuer.is_empty() && !file.is_empty() => {
            Ok((issuer.to_owned(), file.into()))
        }
        _ => Err("write ISSUER=FILE, as in https://issuer.example=keys.json".to_owned()),
    }
}

/// `LATEEN_LOG` takes tracing's filters (`debug`, `lateen_xds=trace,info`).
pub fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("LATEEN_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_writer(std::io::stderr);
    // An error means that a logger is there already.
    let _ = subscriber.try_init();
}

/// Completes at the first SIGINT or SIGTERM.
pub async fn asked_to_leave() {
    use tokio::signal::unix::{SignalKind, signal};
    let terminated = async {
        match signal(SignalKind::terminate()) {
            Ok(mut signals) => drop(signals.recv().await),
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        () = terminated => {}
    }
}
