//! Keeps the tokens and roots of all proxies fresh, as a kubelet does: tokens well before they end,
//! roots and lists of revoked certificates as soon as there are others.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;

use super::StartError;
use super::api::{Api, ApiError};
use crate::identity::{Account, Identities, accounts};
use crate::plan::Plan;

/// How long tokens are valid, as in Kubernetes.
const TOKEN: Duration = Duration::from_secs(3_600);
/// When they are replaced.
const FRESH: Duration = Duration::from_secs(1_800);
/// How often the roots are looked at.
const LOOK: Duration = Duration::from_secs(5);
/// Whom the tokens are for: Istio's authority.
const AUDIENCE: &str = "istio-ca";
/// Where the control plane has the roots, in every namespace (Istio's ConfigMap).
const ROOTS: &str = "/api/v1/namespaces/istio-system/configmaps/istio-ca-root-cert";

/// And the lists of revoked certificates.
const REVOKED: &str = "/api/v1/namespaces/istio-system/configmaps/istio-ca-crl";

#[derive(Debug)]
pub(super) struct Keeper {
    api: Api,
    accounts: Vec<Account>,
    identities: Arc<Identities>,
    roots: String,
    revoked: String,
    made: Instant,
}

impl Keeper {
    pub(super) fn new(api: Api, plan: &Plan, identities: Arc<Identities>) -> Self {
        Self {
            api,
            accounts: accounts(plan),
            identities,
            roots: String::new(),
            revoked: String::new(),
            made: Instant::now(),
        }
    }

    /// Gives every proxy what it starts with.
    pub(super) async fn put_all(&mut self) -> Result<(), StartError> {
        self.put_roots().await?;
        self.put_tokens().await
    }

    /// Keeps all of it fresh. Never returns.
    pub(super) async fn follow(mut self) {
        loop {
            tokio::time::sleep(LOOK).await;
            let roots = self.put_roots().await;
            let tokens = match self.made.elapsed() > FRESH {
                true => self.put_tokens().await,
                false => Ok(()),
            };
            // While the control plane is away, what is there goes on being valid.
            if let Err(error) = roots.and(tokens) {
                tracing::debug!(%error, "tokens and roots are not fresh");
            }
        }
    }

    /// What is revoked goes first: with new roots come those that they revoke.
    async fn put_revoked(&mut self) -> Result<(), StartError> {
        let object = self.api.get(REVOKED).await?;
        let revoked = object["data"]["ca-crl.pem"].as_str().unwrap_or_default();
        if revoked == self.revoked {
            return Ok(());
        }
        for account in &self.accounts {
            self.write(&self.identities.of(&account.proxy).revoked(), revoked)?;
        }
        revoked.clone_into(&mut self.revoked);
        Ok(())
    }

    async fn put_roots(&mut self) -> Result<(), StartError> {
        self.put_revoked().await?;
        let object = self.api.get(ROOTS).await?;
        let roots = object["data"]["root-cert.pem"].as_str();
        let roots = roots.unwrap_or_default();
        if roots.is_empty() || roots == self.roots {
            return Ok(());
        }
        for account in &self.accounts {
            self.write(&self.identities.of(&account.proxy).roots(), roots)?;
        }
        roots.clone_into(&mut self.roots);
        Ok(())
    }

    async fn put_tokens(&mut self) -> Result<(), StartError> {
        let tokens = try_join_all(self.accounts.iter().map(|account| self.token(account))).await?;
        for (account, token) in self.accounts.iter().zip(tokens) {
            self.write(&self.identities.of(&account.proxy).token(), &token)?;
        }
        self.made = Instant::now();
        Ok(())
    }

    /// Kubernetes' TokenRequest.
    async fn token(&self, account: &Account) -> Result<String, ApiError> {
        let Account {
            namespace,
            service_account,
            ..
        } = account;
        let path =
            format!("/api/v1/namespaces/{namespace}/serviceaccounts/{service_account}/token");
        let request = serde_json::json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"audiences": [AUDIENCE], "expirationSeconds": TOKEN.as_secs()},
        });
        let made = self.api.create(&path, &request).await?;
        Ok(made["status"]["token"]
            .as_str()
            .unwrap_or_default()
            .to_owned())
    }

    fn write(&self, path: &std::path::Path, content: &str) -> Result<(), StartError> {
        let written = self.identities.write(path, content);
        written.map_err(|source| StartError::Write {
            path: path.to_owned(),
            source,
        })
    }
}
