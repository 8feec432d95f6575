//! The loop of an agent: the first certificate, the next one at about half its life, again and
//! again with growing pauses while there is no authority, and new roots whenever they come.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rand::Rng;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::authority::create_certificate;
use crate::identity::Answer;
use crate::revoked::Revoked;
use crate::roots::Roots;
use crate::{Config, Identity, key, output};

/// How often the clock and the file of roots are looked at. The clock of the machine may jump, and
/// a machine may sleep; certificates end by that clock and not by ours.
const LOOK: Duration = Duration::from_secs(1);

/// Exponential, with full jitter: the n-th wait is a random time between nothing and
/// `min(max, base * 2^n)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    pub base: Duration,
    pub max: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            base: Duration::from_millis(500),
            max: Duration::from_secs(10),
        }
    }
}

/// What a workload has.
#[derive(Clone, Debug, Default)]
pub struct Material {
    /// `None`: the first certificate has not come.
    pub identity: Option<Arc<Identity>>,
    /// Certificates in PEM; `None`: the file could not be read yet.
    pub roots: Option<Arc<str>>,
    /// Lists of revoked certificates in PEM, if there are any.
    pub revoked: Option<Arc<str>>,
    /// Why there is no (new) certificate, until there is.
    pub trouble: Option<Arc<str>>,
}

/// An agent at work; it stops when this is dropped.
#[derive(Debug)]
pub struct Agent {
    material: watch::Receiver<Material>,
    task: JoinHandle<()>,
}

impl Agent {
    /// Starts on the current tokio runtime.
    pub fn start(config: Config) -> Self {
        let (publish, material) = watch::channel(Material::default());
        let task = tokio::spawn(Rotation::new(config, publish).run());
        Self { material, task }
    }

    /// What the workload has now, and whenever it changes.
    pub fn watch(&self) -> watch::Receiver<Material> {
        self.material.clone()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Rotation {
    config: Config,
    roots: Roots,
    revoked: Revoked,
    publish: watch::Sender<Material>,
    /// When the next certificate is due.
    due: SystemTime,
    failures: u32,
    /// Said once, until something else is wrong.
    complaint: String,
    expiry_told: bool,
}

impl Rotation {
    fn new(config: Config, publish: watch::Sender<Material>) -> Self {
        Self {
            roots: Roots::new(&config.roots),
            revoked: Revoked::new(config.revoked.as_deref()),
            config,
            publish,
            due: SystemTime::UNIX_EPOCH,
            failures: 0,
            complaint: String::new(),
            expiry_told: false,
        }
    }

    async fn run(mut self) {
        loop {
            self.look_at_roots();
            let now = SystemTime::now();
            if now >= self.due {
                let wait = match self.renew().await {
                    Ok(wait) => wait,
                    Err(reason) => self.failed(&reason),
                };
                self.due = SystemTime::now() + wait;
            }
            self.tell_expiry();
            let left = self.due.duration_since(SystemTime::now());
            tokio::time::sleep(left.unwrap_or_default().min(LOOK)).await;
        }
    }

    fn identity(&self) -> Option<Arc<Identity>> {
        self.publish.borrow().identity.clone()
    }

    fn look_at_roots(&mut self) {
        // Before the roots: who is trusted and who is revoked become known together.
        let revoked = self.revoked.refresh().map_err(|error| error.to_string());
        let roots = self.roots.refresh().map_err(|error| error.to_string());
        if matches!(revoked, Ok(true)) {
            tracing::info!("other certificates are revoked");
        }
        if matches!(roots, Ok(true)) {
            tracing::info!(file = %self.config.roots.display(), "roots");
        }
        if matches!(revoked, Ok(true)) || matches!(roots, Ok(true)) {
            self.publish(None);
        }
        for error in [revoked, roots].into_iter().filter_map(Result::err) {
            self.complain(&error);
        }
    }

    /// A new certificate; how long until the next.
    async fn renew(&mut self) -> Result<Duration, String> {
        let (kind, id) = (self.config.key, self.config.spiffe_id.clone());
        let made = tokio::task::spawn_blocking(move || key::make(kind, id.as_deref())).await;
        let made = made.map_err(|error| error.to_string())?;
        let requested = made.map_err(|error| format!("cannot make a key: {error}"))?;
        let now = SystemTime::now();
        let present = self.identity().filter(|present| present.is_valid(now));
        let csr = requested.csr.clone();
        let called = create_certificate(&self.config, self.roots.store(), present, csr).await;
        let parts = called.map_err(|error| error.to_string())?;
        let answer = Identity::from_answer(&parts, requested, SystemTime::now());
        let Answer { identity, roots } = answer.map_err(|error| error.to_string())?;
        let wait = self.half_life(&identity);
        tracing::info!(
            id = identity.spiffe_id, serial = identity.serial, renewed_in = ?wait,
            "the workload has a certificate"
        );
        self.roots.set_named(roots);
        self.failures = 0;
        self.complaint.clear();
        self.expiry_told = false;
        self.publish(Some(Arc::new(identity)));
        Ok(wait)
    }

    /// As Istio counts: the life begins when the certificate comes, and the moment is moved by
    /// chance so that a mesh that started in one moment does not renew in one moment.
    fn half_life(&self, identity: &Identity) -> Duration {
        let life = identity.not_after.duration_since(identity.received);
        let jitter = self.config.grace_jitter;
        let moved = rand::rng().random_range(-jitter..=jitter);
        let left = (self.config.grace_ratio + moved).clamp(0.0, 1.0);
        life.unwrap_or_default().mul_f64(1.0 - left)
    }

    fn failed(&mut self, reason: &str) -> Duration {
        self.complain(reason);
        let Backoff { base, max } = self.config.backoff;
        let bound = base.saturating_mul(1 << self.failures.min(16)).min(max);
        self.failures += 1;
        rand::rng().random_range(Duration::ZERO..=bound)
    }

    fn complain(&mut self, reason: &str) {
        if self.complaint == reason {
            tracing::debug!(reason, "still no new certificate");
            return;
        }
        reason.clone_into(&mut self.complaint);
        let trouble = Some(reason.into());
        self.publish
            .send_modify(|material| material.trouble = trouble);
        match self.identity() {
            None => tracing::warn!(reason, "no certificate for this workload yet"),
            Some(_) => tracing::warn!(reason, "the certificate is not renewed; it serves on"),
        }
    }

    fn tell_expiry(&mut self) {
        let expired = |identity: &Arc<Identity>| !identity.is_valid(SystemTime::now());
        if !self.expiry_told && self.identity().as_ref().is_some_and(expired) {
            self.expiry_told = true;
            tracing::error!(
                reason = self.complaint,
                "the workload's certificate has expired"
            );
        }
    }

    /// Tells everybody of new roots, and of a new certificate if there is one.
    fn publish(&self, identity: Option<Arc<Identity>>) {
        self.publish.send_modify(|material| {
            material.roots = self.roots.pem().map(Into::into);
            material.revoked = self.revoked.lists();
            if let Some(identity) = identity {
                material.identity = Some(identity);
                material.trouble = None;
            }
        });
        if let Some(directory) = &self.config.output {
            self.write(directory);
        }
    }

    fn write(&self, directory: &Path) {
        let material = self.publish.borrow().clone();
        if let Err(error) = output::write(directory, &material) {
            tracing::warn!(%error, "certificate and key are not in files");
        }
    }
}
