//! Certificates as they are read: PEM, what they say of themselves, whether they verify.

use std::time::{Duration, SystemTime};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, UnixTime};
use thiserror::Error;
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, RevocationOptionsBuilder,
};
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};

use crate::spiffe::{SpiffeError, SpiffeId};

/// Why a certificate does not name a workload.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum CertificateError {
    #[error("the certificate cannot be read")]
    Unreadable,
    #[error("the certificate has {0} URIs among its names; that of a workload has exactly one")]
    Uris(usize),
    #[error("the certificate is that of an authority")]
    Authority,
    #[error("the certificate is of no workload: {0}")]
    Identity(#[from] SpiffeError),
}

/// The workload that a certificate names. Whether the certificate is to be believed is another
/// question: verify it first.
pub fn identity_of(certificate: &[u8]) -> Result<SpiffeId, CertificateError> {
    let (rest, certificate) =
        X509Certificate::from_der(certificate).map_err(|_| CertificateError::Unreadable)?;
    if !rest.is_empty() {
        return Err(CertificateError::Unreadable);
    }
    if certificate.is_ca() {
        return Err(CertificateError::Authority);
    }
    let mut found = Vec::new();
    for extension in certificate.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => {
                for name in &names.general_names {
                    match name {
                        GeneralName::URI(uri) => found.push(*uri),
                        GeneralName::Invalid(..) => return Err(CertificateError::Unreadable),
                        _ => {}
                    }
                }
            }
            ParsedExtension::ParseError { .. } => return Err(CertificateError::Unreadable),
            _ => {}
        }
    }
    match found[..] {
        [uri] => Ok(SpiffeId::parse(uri)?),
        _ => Err(CertificateError::Uris(found.len())),
    }
}

/// Until when a certificate is valid; `None` when it cannot be read.
pub fn not_after(certificate: &[u8]) -> Option<SystemTime> {
    About::read(certificate).map(|about| about.not_after)
}

/// The certificates of a PEM text.
pub(crate) fn read(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, &'static str> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err("has no certificate in PEM form (-----BEGIN CERTIFICATE-----)"),
        Err(_) => Err("is no valid PEM"),
    }
}

/// One certificate in PEM, with an end of line.
pub(crate) fn to_pem(certificate: &[u8]) -> String {
    use base64::Engine as _;
    let body = base64::engine::general_purpose::STANDARD.encode(certificate);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in body.as_bytes().chunks(64) {
        pem.push_str(std::str::from_utf8(line).unwrap_or_default());
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

/// What matters of the certificate of an authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct About {
    pub not_before: SystemTime,
    pub not_after: SystemTime,
    pub is_ca: bool,
    /// False when key usages are named and signing certificates is not among them.
    pub may_sign: bool,
    pub subject: Vec<u8>,
    pub issuer: Vec<u8>,
    /// The bytes of the public key, without its algorithm.
    pub public_key: Vec<u8>,
}

impl About {
    pub fn read(certificate: &[u8]) -> Option<Self> {
        let (rest, certificate) = X509Certificate::from_der(certificate).ok()?;
        let usage = certificate.key_usage().ok()?;
        rest.is_empty().then(|| Self {
            not_before: time(certificate.validity().not_before.timestamp()),
            not_after: time(certificate.validity().not_after.timestamp()),
            is_ca: certificate.is_ca(),
            may_sign: usage.is_none_or(|usage| usage.value.key_cert_sign()),
            subject: certificate.subject().as_raw().to_vec(),
            issuer: certificate.issuer().as_raw().to_vec(),
            public_key: certificate.public_key().subject_public_key.data.to_vec(),
        })
    }
}

fn time(seconds: i64) -> SystemTime {
    let from = Duration::from_secs(seconds.unsigned_abs());
    match seconds < 0 {
        true => SystemTime::UNIX_EPOCH - from,
        false => SystemTime::UNIX_EPOCH + from,
    }
}

/// Whether a certificate of a workload verifies as a client's and as a server's; where there are
/// lists of revoked certificates, by them.
pub(crate) fn verify(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    roots: &[CertificateDer<'_>],
    lists: &[CertRevocationList<'_>],
    now: SystemTime,
) -> Result<(), webpki::Error> {
    let anchors: Result<Vec<_>, _> = roots.iter().map(webpki::anchor_from_trusted_cert).collect();
    let anchors = anchors?;
    let now = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let leaf = EndEntityCert::try_from(leaf)?;
    let lists: Vec<&CertRevocationList<'_>> = lists.iter().collect();
    let revocation = RevocationOptionsBuilder::new(&lists).ok().map(|options| {
        let options = options.with_expiration_policy(ExpirationPolicy::Enforce);
        options.build()
    });
    for usage in [KeyUsage::server_auth(), KeyUsage::client_auth()] {
        leaf.verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &anchors,
            intermediates,
            UnixTime::since_unix_epoch(now),
            usage,
            revocation,
            None,
        )?;
    }
    Ok(())
}
