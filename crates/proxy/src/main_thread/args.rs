//! The command line of the proxy, shared by `lateen-proxy` and `lateen proxy`. Flags follow
//! Envoy's where Envoy has one.

use std::path::PathBuf;
use std::time::Duration;

use lateen_agent::IdentityArgs;

/// Istio's `terminationDrainDuration` and `drainDuration`, in seconds.
const STOPPING: f64 = 5.0;
const REPLACED: f64 = 45.0;

/// Run a proxy from an Envoy bootstrap file
#[derive(Clone, Debug, clap::Args)]
pub struct ProxyArgs {
    /// Bootstrap in Envoy's JSON form: node, admin address, xDS server
    #[arg(
        short = 'c',
        long = "config-path",
        alias = "bootstrap",
        value_name = "FILE"
    )]
    pub config_path: PathBuf,

    /// Number of worker threads; 0 means one per usable core
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub concurrency: usize,

    /// off, critical, error, warning, info, debug, trace, or filters such as lateen_proxy=debug
    #[arg(short = 'l', long, value_name = "LEVEL", default_value = "info")]
    pub log_level: String,

    /// Seconds that requests in flight may take when the proxy is told to stop (default 5), and
    /// that TCP connections outlive the filter chain that serves them (default 45)
    #[arg(long, value_name = "SECONDS")]
    pub drain_time_s: Option<f64>,

    /// Seconds the proxy goes on accepting connections after it was told to stop
    #[arg(long, value_name = "SECONDS", default_value_t = 0.0)]
    pub min_drain_time_s: f64,

    /// Leave when standard input ends: the parent process holds it open
    #[arg(long, hide = true)]
    pub exit_with_parent: bool,

    #[command(flatten)]
    pub identity: IdentityArgs,
}

/// What the proxy is told from outside its bootstrap.
#[derive(Clone, Debug)]
pub struct Options {
    pub config_path: PathBuf,
    /// 0: one per usable core.
    pub concurrency: usize,
    pub log_level: String,
    /// After this, requests still in flight are cut.
    pub max_drain: Duration,
    /// For TCP connections whose filter chain is gone.
    pub chain_drain: Duration,
    /// For this long new connections are still taken, while whoever sends them learns to stop.
    pub min_drain: Duration,
    pub exit_with_parent: bool,
    /// Whether the proxy has an identity of its own, and from whom.
    pub identity: IdentityArgs,
}

impl From<ProxyArgs> for Options {
    fn from(args: ProxyArgs) -> Self {
        Self {
            config_path: args.config_path,
            concurrency: args.concurrency,
            log_level: args.log_level,
            max_drain: seconds(args.drain_time_s.unwrap_or(STOPPING)),
            chain_drain: seconds(args.drain_time_s.unwrap_or(REPLACED)),
            min_drain: seconds(args.min_drain_time_s),
            exit_with_parent: args.exit_with_parent,
            identity: args.identity,
        }
    }
}

/// Nonsense (negative, not a number) is no time at all; a day is the most.
fn seconds(value: f64) -> Duration {
    Duration::try_from_secs_f64(value)
        .unwrap_or_default()
        .min(Duration::from_secs(86_400))
}
