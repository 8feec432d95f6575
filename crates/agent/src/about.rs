//! What a certificate says of itself, for people.

use std::time::SystemTime;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::identity;

/// The first certificate of a PEM text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// Hexadecimal, without leading zeros.
    pub serial: String,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
    /// It signs others.
    pub is_authority: bool,
    /// Of its SPIFFE id, if it has one.
    pub trust_domain: Option<String>,
}

impl About {
    /// `None`: there is no certificate in it that can be read.
    pub fn of_pem(pem: &[u8]) -> Option<Self> {
        let der = CertificateDer::pem_slice_iter(pem).next()?.ok()?;
        let (_, certificate) = X509Certificate::from_der(&der).ok()?;
        let serial = identity::hex(certificate.raw_serial());
        let significant = serial.trim_start_matches('0');
        let id = identity::uri(&certificate);
        let domain = id.as_deref().and_then(|id| id.strip_prefix("spiffe://"));
        let domain = domain.and_then(|rest| rest.split('/').next());
        Some(Self {
            serial: if significant.is_empty() {
                "0"
            } else {
                significant
            }
            .to_owned(),
            not_before: identity::time(certificate.validity().not_before.timestamp()),
            not_after: identity::time(certificate.validity().not_after.timestamp()),
            is_authority: certificate.is_ca(),
            trust_domain: domain.map(str::to_owned),
        })
    }

    pub fn is_valid(&self, now: SystemTime) -> bool {
        self.not_before < now && now < self.not_after
    }
}
