//! Flags and environment of an agent, shared by `lateen agent` and the proxies that have one built
//! in. Names are those of Istio's agent where it has one.

use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

use crate::Backoff;

/// Istio's port for certificates and configuration over TLS.
const CA_PORT: u16 = 15012;
const DAY: Duration = Duration::from_secs(24 * 3600);

/// The workload's identity: who gives it a certificate
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Identity")]
pub struct IdentityArgs {
    /// The mesh's certificate authority; without it the workload has no identity of its own
    #[arg(long, env = "CA_ADDR", value_name = "HOST:PORT")]
    pub ca_address: Option<String>,

    /// Certificates in PEM by which the authority (and other workloads) are verified
    #[arg(long, env = "CA_ROOT_CA", value_name = "FILE")]
    pub ca_root: Option<PathBuf>,

    /// Lists in PEM of certificates that are revoked; one that is not there is none
    #[arg(long, value_name = "FILE")]
    #[arg(default_value = "/var/run/secrets/istio/crl/ca-crl.pem")]
    pub ca_crl: Option<PathBuf>,

    /// Name that the authority's certificate must have
    #[arg(long, env = "CA_SNI", value_name = "HOST")]
    #[arg(default_value = "istiod.istio-system.svc")]
    pub ca_name: String,

    /// The workload's token, read anew each time it is needed
    #[arg(long, value_name = "FILE")]
    pub token: Option<PathBuf>,

    /// Trust domain of the workload's SPIFFE id
    #[arg(long, env = "TRUST_DOMAIN", value_name = "DOMAIN")]
    #[arg(default_value = "cluster.local")]
    pub trust_domain: String,

    /// Namespace of the workload [default: the bootstrap's]
    #[arg(long, env = "POD_NAMESPACE", value_name = "NAMESPACE")]
    pub workload_namespace: Option<String>,

    /// Service account of the workload [default: the bootstrap's]
    #[arg(long, env = "SERVICE_ACCOUNT", value_name = "NAME")]
    pub service_account: Option<String>,

    /// Kind of the workload's key
    #[arg(long, value_enum, value_name = "KIND", default_value_t = KeyKind::Ecdsa)]
    pub key: KeyKind,

    /// How long certificates are asked for
    #[arg(
        long,
        env = "SECRET_TTL",
        value_name = "DURATION",
        default_value = "24h"
    )]
    #[arg(value_parser = duration)]
    pub certificate_lifetime: Option<Duration>,

    /// Part of its life that a certificate has left when it is renewed
    #[arg(long, env = "SECRET_GRACE_PERIOD_RATIO", value_name = "RATIO")]
    #[arg(default_value_t = 0.5, value_parser = ratio)]
    pub grace_period_ratio: f64,

    /// How far that moment is moved by chance, as a part of the life
    #[arg(long, env = "SECRET_GRACE_PERIOD_RATIO_JITTER", value_name = "RATIO")]
    #[arg(default_value_t = 0.01, value_parser = ratio)]
    pub grace_period_jitter: f64,

    /// Write certificate, key and roots into this directory too (mode 0600)
    #[arg(long, env = "OUTPUT_CERTS", value_name = "DIR")]
    pub output_certs: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum KeyKind {
    /// ECDSA on P-256.
    #[default]
    Ecdsa,
    /// RSA with 2,048 bits.
    Rsa,
}

/// All that an agent must know.
#[derive(Clone, Debug)]
pub struct Config {
    /// `host:port`.
    pub ca: String,
    pub ca_name: String,
    pub roots: PathBuf,
    /// Where lists of revoked certificates are, if there are any.
    pub revoked: Option<PathBuf>,
    pub token: Option<PathBuf>,
    /// The SPIFFE id that is asked for; the authority decides by the token.
    pub spiffe_id: Option<String>,
    pub key: KeyKind,
    pub lifetime: Duration,
    pub grace_ratio: f64,
    pub grace_jitter: f64,
    pub output: Option<PathBuf>,
    pub backoff: Backoff,
}

/// Flags that do not go together.
#[derive(Debug, Error)]
pub enum ConfigError {
    #[error(
        "--ca-address needs --ca-root FILE: without it nobody could tell the mesh's authority from \
         another"
    )]
    NoRoots,
    #[error("--ca-address {0:?}: not HOST:PORT")]
    Address(String),
}

impl IdentityArgs {
    /// `None`: the workload has no identity of its own. Namespace and service account are those of
    /// the flags, or else of the proxy's bootstrap.
    pub fn config(
        &self,
        namespace: Option<&str>,
        service_account: Option<&str>,
    ) -> Result<Option<Config>, ConfigError> {
        let Some(address) = self.ca_address.as_deref().filter(|text| !text.is_empty()) else {
            return Ok(None);
        };
        let roots = self.ca_root.clone().ok_or(ConfigError::NoRoots)?;
        let namespace = self.workload_namespace.as_deref().or(namespace);
        let account = self.service_account.as_deref().or(service_account);
        let spiffe_id = namespace.zip(account).map(|(namespace, account)| {
            format!("spiffe://{}/ns/{namespace}/sa/{account}", self.trust_domain)
        });
        Ok(Some(Config {
            ca: with_port(address).ok_or_else(|| ConfigError::Address(address.to_owned()))?,
            ca_name: self.ca_name.clone(),
            roots,
            revoked: self.ca_crl.clone(),
            token: self.token.clone(),
            spiffe_id,
            key: self.key,
            lifetime: self.certificate_lifetime.unwrap_or(DAY),
            grace_ratio: self.grace_period_ratio,
            grace_jitter: self.grace_period_jitter,
            output: self.output_certs.clone(),
            backoff: Backoff::default(),
        }))
    }
}

/// `host`, `host:port`, `[v6]` or `[v6]:port`, always with a port in the end.
fn with_port(address: &str) -> Option<String> {
    let after = address.rsplit_once(']').map_or(address, |(_, rest)| rest);
    match after.rsplit_once(':') {
        Some((_, port)) => port.parse::<u16>().ok().map(|_| address.to_owned()),
        None => Some(format!("{address}:{CA_PORT}")),
    }
}

fn ratio(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(ratio),
        _ => Err("must be between 0 and 1".to_owned()),
    }
}

/// Go's durations: `24h`, `1h30m`, `90s`, `500ms`.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration such as 24h or 90s");
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let (number, after) = rest.split_at(digits);
        let unit = after.find(|c: char| c.is_ascii_digit());
        let (unit, after) = after.split_at(unit.unwrap_or(after.len()));
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let seconds = |one: u64| number.checked_mul(one).map(Duration::from_secs);
        let part = match unit {
            "h" => seconds(3600),
            "m" => seconds(60),
            "s" => seconds(1),
            "ms" => Some(Duration::from_millis(number)),
            _ => None,
        };
        total = part
            .and_then(|part| total.checked_add(part))
            .ok_or_else(wrong)?;
        rest = after;
    }
    match total.is_zero() {
        true => Err(wrong()),
        false => Ok(total),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_in_go() {
        let check = |text: &str, expect: Option<u64>| {
            let read = duration(text).ok().map(|d| d.as_millis());
            assert_eq!(read, expect.map(u128::from), "{text}");
        };
        check("24h", Some(86_400_000));
        check("24h0m0s", Some(86_400_000));
        check("1h30m", Some(5_400_000));
        check("1500ms", Some(1_500));
        for wrong in ["", "0s", "5", "h", "5d", "-1s", "99999999999999999999h"] {
            check(wrong, None);
        }
    }

    #[test]
    fn an_address_has_istios_port_unless_it_says_another() {
        let check = |text: &str, expect: Option<&str>| {
            assert_eq!(with_port(text).as_deref(), expect, "{text}");
        };
        check("istiod", Some("istiod:15012"));
        check("127.0.0.1:1", Some("127.0.0.1:1"));
        check("[::1]", Some("[::1]:15012"));
        check("[::1]:7", Some("[::1]:7"));
        check("a:b", None);
        check("a:70000", None);
    }

    #[test]
    fn flags_win_over_the_bootstrap_and_roots_are_required() {
        let args = IdentityArgs {
            ca_address: Some("ca".into()),
            trust_domain: "td".into(),
            ..IdentityArgs::default()
        };
        assert!(matches!(args.config(None, None), Err(ConfigError::NoRoots)));
        let args = IdentityArgs {
            ca_root: Some("root.pem".into()),
            service_account: Some("mine".into()),
            ..args
        };
        let config = args.config(Some("ns"), Some("theirs")).unwrap().unwrap();
        assert_eq!(
            config.spiffe_id.as_deref(),
            Some("spiffe://td/ns/ns/sa/mine")
        );
        let none = IdentityArgs::default().config(Some("ns"), Some("sa"));
        assert!(none.unwrap().is_none());
    }
}
