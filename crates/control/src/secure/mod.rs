//! The secure port (15012): certificates for workloads, and discovery for those that have proved
//! who they are.
//!
//! ```text
//! TCP -> TLS (client certificate if it has one) -> HTTP/2 -> who is it -> CreateCertificate | ADS
//! ```
//!
//! A caller is who its certificate says, or else who its token says; nobody else gets further than
//! that question.

mod caller;
mod certificates;
mod listen;
mod tls;

use std::sync::Arc;

use lateen_proto::istio_ca::IstioCertificateServiceServer;
use lateen_xds::Server;

use crate::source::Discovery;
use crate::trust::Trust;

use certificates::Certificates;
pub(crate) use certificates::Counters;
pub(crate) use listen::serve;
pub(crate) use tls::Tls;

/// Bytes of a request for a certificate: the request in PEM, and metadata.
const MAX_REQUEST: usize = 64 << 10;

/// What is served on the port.
#[derive(Clone)]
pub(crate) struct Services {
    trust: Arc<Trust>,
    certificates: IstioCertificateServiceServer<Certificates>,
    discovery: Server<Discovery>,
    counters: Arc<Counters>,
}

impl Services {
    pub fn new(trust: Arc<Trust>, discovery: Server<Discovery>, counters: Arc<Counters>) -> Self {
        let certificates = Arc::new(Certificates::new(trust.clone(), counters.clone()));
        Self {
            trust,
            certificates: IstioCertificateServiceServer::new(certificates, MAX_REQUEST),
            discovery,
            counters,
        }
    }
}
