//! Lists of certificates that count no more: `ca-crl.pem` of an authority that is given.
//!
//! Every proxy refuses a certificate for which it has no list of its issuer, all the way up to the
//! root. So a file is taken only if what the authority signs now would still be accepted with it.

use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::pem::PemObject as _;
use webpki::{CertRevocationList, OwnedCertRevocationList};

/// The most lists in a file.
const MAX_LISTS: usize = 100;

/// What is revoked, as it goes to those who verify.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocations {
    pub pem: String,
    pub lists: Vec<CertificateRevocationListDer<'static>>,
}

impl Revocations {
    /// Reads the lists of a PEM text.
    pub(crate) fn read(pem: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(pem).map_err(|_| "is no text".to_owned())?;
        let lists: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(pem).collect();
        let lists = lists.map_err(|_| "is no valid PEM".to_owned())?;
        match lists.len() {
            0 => Err("has no list of revoked certificates (-----BEGIN X509 CRL-----)".to_owned()),
            1..=MAX_LISTS => Ok(Self {
                pem: text.to_owned(),
                lists,
            }),
            more => Err(format!("has {more} lists, more than {MAX_LISTS}")),
        }
    }

    /// Ready to verify by.
    pub(crate) fn parsed(&self) -> Result<Vec<CertRevocationList<'static>>, String> {
        let parse = |der: &CertificateRevocationListDer<'_>| {
            let list = OwnedCertRevocationList::from_der(der);
            let list = list.map_err(|error| format!("has a list that cannot be read: {error}"));
            Ok(CertRevocationList::from(list?))
        };
        self.lists.iter().map(parse).collect()
    }
}

/// Why nothing that the authority signs would be accepted with its lists.
pub(crate) fn complaint(error: &webpki::Error) -> String {
    match error {
        webpki::Error::CertRevoked => {
            "revokes a certificate of the very chain that signs; give the control plane another \
             authority first, or in the same change"
                .to_owned()
        }
        webpki::Error::UnknownRevocationStatus => {
            "has no list for each authority of the chain; it needs one that is signed by the \
             authority itself, and one by each above it up to the root (a list may be empty)"
                .to_owned()
        }
        webpki::Error::CrlExpired { .. } => {
            "has a list whose nextUpdate is over; proxies accept nobody by it".to_owned()
        }
        other => format!("cannot be verified by: {other}"),
    }
}
