//! `CreateCertificate`: a certificate for who the caller has proved to be.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use lateen_identity::{IssueError, SpiffeId};
use lateen_proto::istio_ca::{
    IstioCertificateRequest, IstioCertificateResponse, IstioCertificateService, Kind,
};
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

use crate::trust::Trust;

/// Requests that are worked on at one time; a machine signs some thousands a second.
const IN_FLIGHT: usize = 64;
/// Requests that wait for their turn; more are refused.
const WAITING: usize = 1_024;

/// Who the caller was found to be; among the extensions of a request that got this far.
#[derive(Clone, Debug)]
pub(super) struct Caller(pub SpiffeId);

/// The service.
pub(crate) struct Certificates {
    trust: Arc<Trust>,
    turns: Semaphore,
    waiting: Semaphore,
    counters: Arc<Counters>,
}

/// For /metrics, under Istio's names.
#[derive(Default)]
pub(crate) struct Counters {
    pub requests: AtomicU64,
    pub issued: AtomicU64,
    pub unauthenticated: AtomicU64,
    pub malformed: AtomicU64,
    pub failed: AtomicU64,
}

impl Counters {
    pub fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

impl Certificates {
    pub fn new(trust: Arc<Trust>, counters: Arc<Counters>) -> Self {
        Self {
            trust,
            turns: Semaphore::new(IN_FLIGHT),
            waiting: Semaphore::new(WAITING),
            counters,
        }
    }
}

impl IstioCertificateService for Certificates {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let Some(Caller(identity)) = request.extensions().get::<Caller>().cloned() else {
            return Err(Status::unauthenticated("authentication failure"));
        };
        let asked = request.into_inner();
        only_for_itself(&asked)?;
        let overloaded =
            || Status::resource_exhausted("too many requests for certificates at once");
        let _waits = self.waiting.try_acquire().map_err(|_| overloaded())?;
        let _turn = self.turns.acquire().await.map_err(|_| overloaded())?;
        let lifetime = u64::try_from(asked.validity_duration).ok();
        let lifetime = lifetime
            .filter(|seconds| *seconds > 0)
            .map(Duration::from_secs);
        let (trust, who) = (self.trust.clone(), identity.clone());
        // An RSA authority takes a millisecond.
        let issued = tokio::task::spawn_blocking(move || {
            let lifetimes = *trust.ca().lifetimes();
            let now = SystemTime::now();
            trust
                .authority()
                .issue(&asked.csr, &who, lifetime, &lifetimes, now)
        });
        let issued = issued
            .await
            .map_err(|error| Status::internal(error.to_string()))?;
        let issued = issued.map_err(|error| self.refused(&identity, &error))?;
        Counters::add(&self.counters.issued);
        tracing::debug!(%identity, serial = issued.serial, "issued a certificate");
        Ok(Response::new(IstioCertificateResponse {
            cert_chain: issued.chain,
        }))
    }
}

impl Certificates {
    fn refused(&self, identity: &SpiffeId, error: &IssueError) -> Status {
        tracing::debug!(%identity, %error, "no certificate");
        let text = format!("CSR signing error: {error}");
        match error {
            IssueError::Request(_) => {
                Counters::add(&self.counters.malformed);
                Status::invalid_argument(text)
            }
            IssueError::Lifetime { .. } => Status::invalid_argument(text),
            _ => {
                tracing::error!(%identity, %error, "a certificate could not be issued");
                Counters::add(&self.counters.failed);
                Status::internal(text)
            }
        }
    }
}

/// Metadata that asks for somebody else's certificate, or for another signer, is not passed over.
fn only_for_itself(asked: &IstioCertificateRequest) -> Result<(), Status> {
    let Some(metadata) = &asked.metadata else {
        return Ok(());
    };
    let given = |name: &str| match metadata.fields.get(name).map(|value| &value.kind) {
        None | Some(None | Some(Kind::NullValue(_))) => false,
        Some(Some(Kind::StringValue(text))) => !text.is_empty(),
        Some(Some(_)) => true,
    };
    if given("ImpersonatedIdentity") {
        return Err(Status::unauthenticated(
            "request impersonation authentication failure: no account may ask for others here",
        ));
    }
    if given("CertSigner") {
        return Err(Status::invalid_argument(
            "there is one signer here; ask without CertSigner",
        ));
    }
    Ok(())
}
