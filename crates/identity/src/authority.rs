//! The authority at one moment: its signing key, what leads from it to the roots, and the roots.
//! It signs certificates for workloads and for the control plane itself.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose,
    PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use thiserror::Error;
use time::OffsetDateTime;
use x509_parser::oid_registry::Oid;
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use crate::certificate::{self, About};
use crate::key::{CryptoError, KeyKind, SigningKey};
use crate::request::{self, RequestError};
use crate::revocation::{self, Revocations};
use crate::spiffe::SpiffeId;

/// How far a certificate's validity begins in the past, for clocks that are behind (Istio: 2
/// minutes).
pub(crate) const CLOCK_SKEW: Duration = Duration::from_secs(120);

/// How long the certificates of workloads are valid.
#[derive(Clone, Copy, Debug)]
pub struct Lifetimes {
    /// When none is asked for. Istio's `DEFAULT_WORKLOAD_CERT_TTL`.
    pub default: Duration,
    /// The longest that may be asked for. Istio's `MAX_WORKLOAD_CERT_TTL`.
    pub max: Duration,
}

impl Default for Lifetimes {
    fn default() -> Self {
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);
        Self {
            default: DAY,
            max: DAY * 90,
        }
    }
}

/// Why no certificate was issued.
#[derive(Clone, Debug, Error)]
pub enum IssueError {
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error("a certificate was asked for that is valid for {asked:?}; the longest here is {max:?}")]
    Lifetime { asked: Duration, max: Duration },
    #[error("the certificate of the authority has expired; give it a new one")]
    Expired,
    #[error(transparent)]
    Crypto(#[from] CryptoError),
    #[error("what is signed with it cannot be verified with its chain and the roots: {0}")]
    Unverifiable(String),
    #[error("the certificate cannot be made: {0}")]
    Encoding(String),
}

/// A certificate that was issued, with what is needed to verify it.
#[derive(Clone, Debug)]
pub struct Issued {
    /// PEM: the workload's certificate, those between it and the root, then the roots that are
    /// trusted; the root that this chain ends at is the last (clients of Istio take the last one
    /// as the root).
    pub chain: Vec<String>,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
    /// In hexadecimal.
    pub serial: String,
}

/// A certificate of the control plane itself, with its key in PEM (PKCS#8).
#[derive(Debug)]
pub struct ServerCertificate {
    /// DER: the server's certificate and those between it and the root.
    pub chain: Vec<CertificateDer<'static>>,
    pub key: Zeroizing<String>,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
}

/// The authority as it is from one change of keys or roots to the next.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, SigningKey>,
    /// What a verifier needs between a certificate and the roots.
    intermediates: Vec<CertificateDer<'static>>,
    /// Everything that is trusted; the root of this chain is the last.
    roots: Vec<CertificateDer<'static>>,
    intermediates_pem: Vec<String>,
    roots_pem: Vec<String>,
    /// When the first certificate of the chain expires.
    expires: SystemTime,
    /// Certificates that count no more.
    revocations: Option<Revocations>,
}

impl Authority {
    /// Puts an authority together; `roots` may be in any order. What it signs was verified with
    /// its chain and one of the roots when it returns.
    pub(crate) fn new(
        key: SigningKey,
        certificate: &CertificateDer<'static>,
        intermediates: Vec<CertificateDer<'static>>,
        mut roots: Vec<CertificateDer<'static>>,
        now: SystemTime,
    ) -> Result<Self, IssueError> {
        let encoding = |error: rcgen::Error| IssueError::Encoding(error.to_string());
        check_subject(certificate)?;
        let issuer = Issuer::from_ca_cert_der(certificate, key).map_err(encoding)?;
        let end = |one: &CertificateDer<'_>| Some(About::read(one)?.not_after);
        let ends = [certificate].into_iter().chain(&intermediates);
        let expires = ends.filter_map(end).min();
        let pem = |all: &[CertificateDer<'_>]| {
            let all = all.iter();
            all.map(|one| certificate::to_pem(one)).collect()
        };
        let mut authority = Self {
            intermediates_pem: pem(&intermediates),
            roots_pem: Vec::new(),
            issuer,
            intermediates,
            roots: Vec::new(),
            expires: expires.unwrap_or(SystemTime::UNIX_EPOCH),
            revocations: None,
        };
        let own = authority.own_root(&roots, now)?;
        // Not by name: two generations of a root may have the same one.
        let own = roots.remove(own);
        authority.expires = end(&own).map_or(authority.expires, |end| end.min(authority.expires));
        if now >= authority.expires {
            return Err(IssueError::Expired);
        }
        roots.push(own);
        authority.roots_pem = pem(&roots);
        authority.roots = roots;
        Ok(authority)
    }

    /// The root that what this authority issues verifies with.
    fn own_root(
        &self,
        roots: &[CertificateDer<'static>],
        now: SystemTime,
    ) -> Result<usize, IssueError> {
        let leaf = self.probe(now)?;
        let mut why = "there is no root".to_owned();
        for (index, root) in roots.iter().enumerate() {
            let one = std::slice::from_ref(root);
            match certificate::verify(&leaf, &self.intermediates, one, &[], now) {
                Ok(()) => return Ok(index),
                Err(error) => why = error.to_string(),
            }
        }
        Err(IssueError::Unverifiable(why))
    }

    /// Adds lists of revoked certificates; the reason when nobody could be verified with them.
    pub(crate) fn with_revocations(
        mut self,
        revocations: Revocations,
        now: SystemTime,
    ) -> Result<Self, String> {
        let lists = revocations.parsed()?;
        let leaf = self.probe(now).map_err(|error| error.to_string())?;
        let root = self.roots.last().map(std::slice::from_ref);
        certificate::verify(
            &leaf,
            &self.intermediates,
            root.unwrap_or_default(),
            &lists,
            now,
        )
        .map_err(|error| revocation::complaint(&error))?;
        self.revocations = Some(revocations);
        Ok(self)
    }

    /// A certificate to see by whether others verify.
    fn probe(&self, now: SystemTime) -> Result<CertificateDer<'static>, IssueError> {
        let key = SigningKey::generate(KeyKind::EcdsaP256)?;
        let uri = uri("spiffe://cluster.local/ns/default/sa/default")?;
        let (leaf, _) = self.sign(&key, vec![uri], now, Duration::from_secs(60))?;
        Ok(CertificateDer::from(leaf))
    }

    /// Issues the certificate of a workload. `identity` is what the caller has proved; what the
    /// request says of names does not count.
    pub fn issue(
        &self,
        request: &str,
        identity: &SpiffeId,
        lifetime: Option<Duration>,
        lifetimes: &Lifetimes,
        now: SystemTime,
    ) -> Result<Issued, IssueError> {
        let asked = lifetime.unwrap_or(lifetimes.default.min(lifetimes.max));
        if asked > lifetimes.max {
            let max = lifetimes.max;
            return Err(IssueError::Lifetime { asked, max });
        }
        let key = request::prove(request)?;
        let uri = uri(&identity.to_string())?;
        let (leaf, about) = self.sign(&key, vec![uri], now, asked)?;
        let mut chain = vec![certificate::to_pem(&leaf)];
        chain.extend(self.intermediates_pem.iter().cloned());
        chain.extend(self.roots_pem.iter().cloned());
        Ok(Issued {
            chain,
            not_before: about.not_before,
            not_after: about.not_after,
            serial: about.serial,
        })
    }

    /// A certificate for the control plane's own servers, with a new key.
    pub fn issue_server(
        &self,
        names: &[String],
        addresses: &[IpAddr],
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<ServerCertificate, IssueError> {
        let key = SigningKey::generate(KeyKind::EcdsaP256)?;
        let mut alternatives = Vec::new();
        for name in names {
            let name = name.clone().try_into();
            let name =
                name.map_err(|error: rcgen::Error| IssueError::Encoding(error.to_string()))?;
            alternatives.push(SanType::DnsName(name));
        }
        alternatives.extend(addresses.iter().copied().map(SanType::IpAddress));
        let (leaf, about) = self.sign(&key, alternatives, now, lifetime)?;
        let mut chain = vec![CertificateDer::from(leaf)];
        chain.extend(self.intermediates.iter().cloned());
        Ok(ServerCertificate {
            chain,
            key: key.to_pem()?,
            not_before: about.not_before,
            not_after: about.not_after,
        })
    }

    /// Everything that is trusted, as certificates.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// Everything that is trusted, in PEM.
    pub fn roots_pem(&self) -> String {
        self.roots_pem.concat()
    }

    /// The root of what is signed now, in PEM.
    pub fn own_root_pem(&self) -> &str {
        self.roots_pem.last().map_or("", String::as_str)
    }

    /// When the root of what is signed now was made, if it was made here: it is valid from a little
    /// before.
    pub fn own_root_made(&self) -> Option<SystemTime> {
        let about = About::read(self.roots.last()?)?;
        Some(about.not_before + CLOCK_SKEW)
    }

    /// Certificates that count no more, of an authority that was given with such lists.
    pub fn revocations(&self) -> Option<&Revocations> {
        self.revocations.as_ref()
    }

    /// When this authority can sign no more.
    pub fn expires(&self) -> SystemTime {
        self.expires
    }

    fn sign(
        &self,
        key: &impl PublicKeyData,
        names: Vec<SanType>,
        now: SystemTime,
        lifetime: Duration,
    ) -> Result<(Vec<u8>, Validity), IssueError> {
        if now >= self.expires {
            return Err(IssueError::Expired);
        }
        // A certificate that outlives its authority's verifies no more by then anyway.
        let not_after = now
            .checked_add(lifetime)
            .unwrap_or(self.expires)
            .min(self.expires);
        let not_before = now - CLOCK_SKEW;
        let serial = serial()?;
        let mut params = CertificateParams::default();
        // No subject: the names are in the extension, which is critical then (RFC 5280 4.2.1.6).
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = names;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.not_before = OffsetDateTime::from(not_before);
        params.not_after = OffsetDateTime::from(not_after);
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let certificate = params.signed_by(key, &self.issuer);
        let certificate = certificate.map_err(|error| IssueError::Encoding(error.to_string()))?;
        let validity = Validity {
            not_before,
            not_after,
            serial: hexadecimal(&serial),
        };
        Ok((certificate.der().to_vec(), validity))
    }
}

struct Validity {
    not_before: SystemTime,
    not_after: SystemTime,
    serial: String,
}

fn uri(text: &str) -> Result<SanType, IssueError> {
    let encoding = |error: rcgen::Error| IssueError::Encoding(error.to_string());
    Ok(SanType::URI(text.try_into().map_err(encoding)?))
}

/// 127 random bits: positive, and never short (RFC 5280 4.1.2.2).
pub(crate) fn serial() -> Result<[u8; 16], CryptoError> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| CryptoError)?;
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(bytes)
}

pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The subject becomes the issuer of what is signed, and the library that writes certificates stops
/// at an object identifier that it cannot write (X.660 knows three first parts; its reader makes a
/// fourth of some).
fn check_subject(certificate: &CertificateDer<'_>) -> Result<(), IssueError> {
    let encoding = |what: String| IssueError::Encoding(what);
    let (_, read) =
        X509Certificate::from_der(certificate).map_err(|error| encoding(error.to_string()))?;
    let is_writable = |oid: &Oid<'_>| {
        let mut parts = oid.iter()?;
        let first_two = (parts.next()?, parts.next()?);
        Some(matches!(first_two, (0 | 1, 0..40) | (2, _)))
    };
    let mut names = read.subject().iter_attributes().map(|one| one.attr_type());
    match names.find(|oid| is_writable(oid) != Some(true)) {
        Some(oid) => Err(encoding(format!(
            "the subject of the authority has the object identifier {oid}, which cannot be written"
        ))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_whose_name_cannot_be_written_is_refused() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let made = params.self_signed(&key).unwrap();
        // 2.5.4.3, the name that the library gives by itself.
        let (common_name, unknown) = ([6, 3, 0x55, 4, 3], [6, 3, 0x7f, 4, 3]);
        let mut bytes = made.der().to_vec();
        for at in 0..bytes.len() - 5 {
            if bytes[at..at + 5] == common_name {
                bytes[at..at + 5].copy_from_slice(&unknown);
            }
        }
        assert_ne!(bytes, made.der().to_vec());
        let authority = |bytes: Vec<u8>| {
            let key = SigningKey::from_pem(key.serialize_pem().as_bytes()).unwrap();
            let certificate = CertificateDer::from(bytes);
            let roots = vec![certificate.clone()];
            let now = SystemTime::now();
            Authority::new(key, &certificate, Vec::new(), roots, now).map(|_| ())
        };
        let refused = authority(bytes).unwrap_err().to_string();
        assert!(refused.contains("object identifier"), "{refused}");
        assert!(authority(made.der().to_vec()).is_ok());
    }
}
