//! Certificates of the run: one authority, one server, one client, on P-256 as Istio's.

use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, SupportedCipherSuite};

use crate::error::{Error, Result};

/// The name in the server's certificate.
pub const SERVER_NAME: &str = "backend.bench";

/// PEM texts, and files with the same for peers that read files.
pub struct Credentials {
    pub authority: String,
    pub server: Pair,
    pub client: Pair,
    /// `ca.pem`, `server.pem`, `server.key`, `client.pem`, `client.key`, and `server.both`,
    /// `client.both` with chain and key in one.
    pub directory: PathBuf,
}

/// A certificate and its key.
pub struct Pair {
    pub chain: String,
    pub key: String,
}

impl Credentials {
    pub fn make(directory: PathBuf) -> Result<Self> {
        let failed = |error: rcgen::Error| unusable(&error);
        let mut params = CertificateParams::default();
        // A leaf with its issuer's subject would look self-signed to OpenSSL and BoringSSL.
        let subject = &mut params.distinguished_name;
        subject.push(DnType::CommonName, "Lateen benchmark authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().map_err(failed)?;
        let authority = params.self_signed(&key).map_err(failed)?.pem();
        let issuer = Issuer::new(params, key);
        let made = Self {
            server: issue(&issuer, SERVER_NAME)?,
            client: issue(&issuer, "client")?,
            authority,
            directory,
        };
        made.write()?;
        Ok(made)
    }

    fn write(&self) -> Result {
        let files = [
            ("ca.pem", self.authority.clone()),
            ("server.pem", self.server.chain.clone()),
            ("server.key", self.server.key.clone()),
            ("server.both", self.server.chain.clone() + &self.server.key),
            ("client.pem", self.client.chain.clone()),
            ("client.key", self.client.key.clone()),
            ("client.both", self.client.chain.clone() + &self.client.key),
        ];
        for (name, text) in files {
            let path = self.directory.join(name);
            std::fs::write(&path, text)
                .map_err(|source| Error::io(format!("write {}", path.display()), source))?;
        }
        Ok(())
    }

    /// A client that shows its certificate and never resumes a session.
    pub fn client_config(&self) -> Result<Arc<ClientConfig>> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(certificates(&self.authority)?);
        let key = PrivateKeyDer::from_pem_slice(self.client.key.as_bytes());
        let mut provider = rustls::crypto::aws_lc_rs::default_provider();
        // As Envoy and our proxy, who are the clients in a mesh, order them.
        let longer = |suite: &SupportedCipherSuite| {
            suite.suite() == rustls::CipherSuite::TLS13_AES_256_GCM_SHA384
        };
        provider.cipher_suites.sort_by_key(longer);
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable(&error))?
            .with_root_certificates(roots)
            .with_client_auth_cert(
                certificates(&self.client.chain)?,
                key.map_err(|error| unusable(&error))?,
            )
            .map_err(|error| unusable(&error))?;
        config.resumption = rustls::client::Resumption::disabled();
        Ok(Arc::new(config))
    }
}

fn issue(issuer: &Issuer<'_, KeyPair>, name: &str) -> Result<Pair> {
    let failed = |error: rcgen::Error| unusable(&error);
    let text = |text: &str| text.try_into().map_err(failed);
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.subject_alt_names = vec![
        SanType::DnsName(text(name)?),
        SanType::URI(text("spiffe://cluster.local/ns/bench/sa/bench")?),
    ];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let key = KeyPair::generate().map_err(failed)?;
    let certificate = params.signed_by(&key, issuer).map_err(failed)?;
    Ok(Pair {
        chain: certificate.pem(),
        key: key.serialize_pem(),
    })
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>> {
    let all: std::result::Result<Vec<_>, _> =
        CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    all.map_err(|error| unusable(&error))
}

fn unusable(error: &dyn std::fmt::Display) -> Error {
    Error::Unsuitable(format!("certificates cannot be made: {error}"))
}
