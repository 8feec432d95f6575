//! What each proxy of a mesh on this machine proves its identity with: a directory that nobody else
//! can read, with a token of its service account, the roots of the mesh, and the socket of an agent
//! where there is one. In Kubernetes the kubelet makes the same files.
//!
//! In the run directory; with transparent capture below `/run`, where the proxies' own user gets to.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, chown};
use std::path::{Path, PathBuf};

use crate::capture::{identity_directory, rules};
use crate::plan::Plan;
use crate::rundir::RunDir;

/// Of the run directory.
const DIRECTORY: &str = "identity";

/// Who a proxy is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    pub proxy: String,
    pub namespace: String,
    pub service_account: String,
}

/// The accounts of all proxies of a plan.
pub fn accounts(plan: &Plan) -> Vec<Account> {
    let gateways = plan.gateways.iter().map(|gateway| Account {
        proxy: gateway.name.clone(),
        namespace: gateway.namespace.clone(),
        service_account: gateway.service_account(),
    });
    let workloads = plan.workloads.iter().map(|workload| Account {
        proxy: workload.name.clone(),
        namespace: workload.namespace.clone(),
        service_account: workload.service_account.clone(),
    });
    gateways.chain(workloads).collect()
}

/// The directory of one proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place(PathBuf);

impl Place {
    /// That of a proxy of a mesh without transparent capture.
    pub fn in_run_dir(run_dir: &Path, proxy: &str) -> Self {
        Self(run_dir.join(DIRECTORY).join(proxy))
    }

    pub fn token(&self) -> PathBuf {
        self.0.join("token")
    }

    pub fn roots(&self) -> PathBuf {
        self.0.join("root-cert.pem")
    }

    /// Lists of revoked certificates.
    pub fn revoked(&self) -> PathBuf {
        self.0.join("ca-crl.pem")
    }

    /// Where an agent answers.
    pub fn socket(&self) -> PathBuf {
        self.0.join("sds.sock")
    }
}

/// The directories of all proxies. Dropping it removes them.
#[derive(Debug)]
pub struct Identities {
    base: PathBuf,
    /// User of the workloads' proxies, if it is not ours.
    owner: Option<u32>,
}

impl Identities {
    /// Makes a directory for each proxy of the plan.
    pub fn create(run_dir: &RunDir, plan: &Plan) -> io::Result<Self> {
        let (base, owner) = match plan.network {
            None => (run_dir.path().join(DIRECTORY), None),
            Some(_) => (identity_directory(run_dir.path()), Some(rules::PROXY_ID)),
        };
        let made = Self { base, owner };
        // A mesh that was killed may have left some.
        let _ = fs::remove_dir_all(&made.base);
        let mut builder = DirBuilder::new();
        builder.mode(if owner.is_some() { 0o711 } else { 0o700 });
        builder.create(&made.base)?;
        for account in accounts(plan) {
            let path = made.base.join(&account.proxy);
            DirBuilder::new().mode(0o700).create(&path)?;
            made.give(&path)?;
        }
        Ok(made)
    }

    pub fn of(&self, proxy: &str) -> Place {
        Place(self.base.join(proxy))
    }

    /// Replaces a file at once; nobody else can read it.
    pub fn write(&self, path: &Path, content: &str) -> io::Result<()> {
        let new = path.with_extension("new");
        let _ = fs::remove_file(&new);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(content.as_bytes())?;
        self.give(&new)?;
        fs::rename(&new, path)
    }

    fn give(&self, path: &Path) -> io::Result<()> {
        match self.owner {
            Some(owner) => chown(path, Some(owner), Some(owner)),
            None => Ok(()),
        }
    }
}

impl Drop for Identities {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.base);
    }
}
