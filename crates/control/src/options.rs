//! What a control plane is told when it starts.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

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
    /// Revisions kept for history and rollback.
    pub history: u64,
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
            history: 10_000,
        }
    }
}
