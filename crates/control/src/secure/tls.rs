//! TLS of the secure port: a certificate of the mesh's own authority, renewed at half its life,
//! and the certificates of clients verified against all roots of the mesh.

use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use lateen_identity::Authority;
use lateen_model::Compliance;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};

use crate::compliance;
use crate::trust::Trust;

const LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

/// The settings that new connections get.
pub(crate) struct Tls {
    trust: Arc<Trust>,
    addresses: Vec<IpAddr>,
    policy: Option<Compliance>,
    current: RwLock<Arc<Current>>,
}

struct Current {
    config: Arc<ServerConfig>,
    signed_by: Arc<Authority>,
    renew_at: SystemTime,
}

impl Tls {
    /// `addresses` are those that clients may connect to, besides loopback.
    pub fn new(
        trust: Arc<Trust>,
        addresses: &[IpAddr],
        policy: Option<Compliance>,
    ) -> Result<Self, String> {
        let mut all = vec![
            IpAddr::from([127, 0, 0, 1]),
            IpAddr::from([0u16, 0, 0, 0, 0, 0, 0, 1]),
        ];
        let more = addresses.iter().filter(|ip| !ip.is_unspecified());
        for address in more {
            if !all.contains(address) {
                all.push(*address);
            }
        }
        let current = make(&trust, &all, policy, SystemTime::now())?;
        Ok(Self {
            trust,
            addresses: all,
            policy,
            current: RwLock::new(Arc::new(current)),
        })
    }

    pub fn config(&self) -> Arc<ServerConfig> {
        self.current().config.clone()
    }

    /// Makes new settings when the authority is another one or the certificate is old.
    pub fn refresh(&self) {
        let now = SystemTime::now();
        let current = self.current();
        let is_same = Arc::ptr_eq(&current.signed_by, &self.trust.authority());
        if is_same && now < current.renew_at {
            return;
        }
        match make(&self.trust, &self.addresses, self.policy, now) {
            Ok(next) => {
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
                tracing::debug!("the certificate of the control plane is renewed");
            }
            Err(reason) => tracing::error!(reason, "no new certificate for the control plane"),
        }
    }

    fn current(&self) -> Arc<Current> {
        self.current
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// The names that proxies know the control plane by.
fn names(namespace: &str) -> Vec<String> {
    let mut names = vec!["localhost".to_owned()];
    for service in ["istiod", "istiod-remote", "istio-pilot"] {
        names.push(format!("{service}.{namespace}.svc"));
        names.push(format!("{service}.{namespace}.svc.cluster.local"));
    }
    names
}

fn make(
    trust: &Trust,
    addresses: &[IpAddr],
    policy: Option<Compliance>,
    now: SystemTime,
) -> Result<Current, String> {
    let authority = trust.authority();
    let names = names(&trust.root_namespace());
    let certificate = authority
        .issue_server(&names, addresses, LIFETIME, now)
        .map_err(|error| error.to_string())?;
    let key = PrivateKeyDer::from_pem_slice(certificate.key.as_bytes());
    let key = key.map_err(|error| error.to_string())?;
    let failed = |error: rustls::Error| error.to_string();
    let mut roots = RootCertStore::empty();
    for root in authority.roots() {
        roots.add(root.clone()).map_err(failed)?;
    }
    let (provider, versions) = compliance::tls(policy);
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .with_crls(
            authority
                .revocations()
                .into_iter()
                .flat_map(|all| all.lists.clone()),
        )
        .enforce_revocation_expiration()
        // A workload that has no certificate yet shows a token.
        .allow_unauthenticated()
        .build()
        .map_err(|error| error.to_string())?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .map_err(failed)?
        .with_client_cert_verifier(clients)
        .with_single_cert(certificate.chain, key)
        .map_err(failed)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A session that is resumed is not verified again; connections here are few and long.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    let renew_at = now
        + certificate
            .not_after
            .duration_since(now)
            .unwrap_or_default()
            / 2;
    Ok(Current {
        config: Arc::new(config),
        signed_by: authority,
        renew_at,
    })
}
