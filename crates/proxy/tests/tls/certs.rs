//! Certificates made for one test.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, SanType,
};
use std::path::{Path, PathBuf};

/// A certificate authority, and the directory its files are in.
pub struct Ca {
    issuer: CertifiedIssuer<'static, KeyPair>,
    pub directory: tempfile::TempDir,
}

/// A certificate with its key.
pub struct Cert {
    pub chain: String,
    pub key: String,
    pub chain_path: PathBuf,
    pub key_path: PathBuf,
}

impl Ca {
    pub fn new(name: &str) -> Ca {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let ca = Ca {
            issuer: CertifiedIssuer::self_signed(params, key).unwrap(),
            directory: tempfile::tempdir().unwrap(),
        };
        std::fs::write(ca.path(), ca.pem()).unwrap();
        ca
    }

    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    pub fn path(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// A certificate for DNS names and URIs (what has `://` in it).
    pub fn issue(&self, names: &[&str]) -> Cert {
        self.issue_to(names[0], names)
    }

    pub fn issue_to(&self, common_name: &str, names: &[&str]) -> Cert {
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, common_name);
        params.subject_alt_names = names
            .iter()
            .map(|name| match name.contains("://") {
                true => SanType::URI((*name).try_into().unwrap()),
                false => SanType::DnsName((*name).try_into().unwrap()),
            })
            .collect();
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let file = common_name.replace(['/', ':', '*'], "_");
        let cert = Cert {
            chain: certificate.pem(),
            key: key.serialize_pem(),
            chain_path: self.directory.path().join(format!("{file}.pem")),
            key_path: self.directory.path().join(format!("{file}.key")),
        };
        cert.write_to(&cert.chain_path, &cert.key_path);
        cert
    }
}

impl Cert {
    pub fn write_to(&self, chain: &Path, key: &Path) {
        std::fs::write(key, &self.key).unwrap();
        std::fs::write(chain, &self.chain).unwrap();
    }
}
