//! TLS of listeners and clusters, before certificates are read: what a handshake needs and what it
//! must insist on.
//!
//! Nothing here opens a file or parses a certificate; the proxy does so once per context and version
//! of its secrets. Material that came inline is never printed.

use crate::route::StringMatcher;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use zeroize::Zeroizing;

/// What carries the bytes of a filter chain's connections.
#[derive(Clone, Debug, Default)]
pub enum Transport {
    #[default]
    Plain,
    Tls(Arc<DownstreamTls>),
}

/// What carries the bytes to an endpoint.
#[derive(Clone, Debug, Default)]
pub struct UpstreamTransport {
    /// Begin each connection with this header.
    pub proxy_header: Option<ProxyVersion>,
    pub tls: Option<Arc<UpstreamTls>>,
}

impl UpstreamTransport {
    /// Whether connections made for one are as good for the other.
    pub fn is_same(&self, other: &UpstreamTransport) -> bool {
        self.proxy_header == other.proxy_header
            && self.tls.as_ref().map(|tls| &tls.key) == other.tls.as_ref().map(|tls| &tls.key)
    }
}

/// Version of the PROXY protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyVersion {
    V1,
    V2,
}

/// `DownstreamTlsContext`.
#[derive(Clone, Debug)]
pub struct DownstreamTls {
    /// Equal for equal contexts.
    pub key: Arc<[u8]>,
    pub common: CommonTls,
    /// A client without a certificate is refused.
    pub require_client_certificate: bool,
    pub require_sni: bool,
    pub tickets: SessionTickets,
    /// Sessions are resumed at most this long; [`None`]: the library's default.
    pub session_timeout: Option<Duration>,
    /// Of ciphers for TLS 1.2, the client's order decides and not that of the server.
    pub prefer_client_ciphers: bool,
}

/// How TLS sessions are resumed without state on this side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionTickets {
    /// With keys that only this process knows.
    Own,
    Disabled,
}

/// `UpstreamTlsContext`.
#[derive(Clone, Debug)]
pub struct UpstreamTls {
    /// Equal for equal contexts.
    pub key: Arc<[u8]>,
    pub common: CommonTls,
    /// What requests offer by ALPN instead of what connections do; empty: the same.
    pub http_alpn: Vec<Box<str>>,
    /// The server name to ask for; a host name, in lower case.
    pub sni: Option<Box<str>>,
    /// Ask for the endpoint's host name instead.
    pub auto_host_sni: bool,
    /// The certificate must be for the name that was asked for.
    pub auto_sni_san_validation: bool,
    /// Sessions remembered for resumption; 0: none.
    pub max_session_keys: usize,
}

/// `CommonTlsContext`.
#[derive(Clone, Debug)]
pub struct CommonTls {
    pub min_version: TlsVersion,
    pub max_version: TlsVersion,
    /// For TLS 1.2, best first; those of one group are as good as each other. Empty: all that this
    /// proxy has.
    pub cipher_suites: Vec<Vec<CipherSuite>>,
    /// Best first; empty: all that this proxy has.
    pub curves: Vec<Curve>,
    /// Best first.
    pub alpn: Vec<Box<str>>,
    pub certificates: Vec<CertificateSource>,
    pub validation: ValidationSource,
}

impl CommonTls {
    /// Names of the secrets that must have arrived before the context can be used.
    pub fn secrets(&self) -> impl Iterator<Item = &SecretRef> {
        let certificates = self.certificates.iter().filter_map(|source| match source {
            CertificateSource::Secret(secret) => Some(secret),
            CertificateSource::Given(_) => None,
        });
        let validation = match &self.validation {
            ValidationSource::Secret(secret) | ValidationSource::Combined(_, secret) => {
                Some(secret)
            }
            ValidationSource::None | ValidationSource::Given(_) => None,
        };
        certificates.chain(validation)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    V12,
    V13,
}

/// Cipher suites of TLS 1.2. Those of TLS 1.3 cannot be configured, as in Envoy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CipherSuite {
    EcdheEcdsaAes128Gcm,
    EcdheEcdsaAes256Gcm,
    EcdheEcdsaChaCha20,
    EcdheRsaAes128Gcm,
    EcdheRsaAes256Gcm,
    EcdheRsaChaCha20,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Curve {
    X25519,
    P256,
    P384,
    X25519MlKem768,
}

/// Where a certificate comes from.
#[derive(Clone, Debug)]
pub enum CertificateSource {
    Given(Arc<Certificate>),
    /// Discovered.
    Secret(SecretRef),
}

/// A secret that is discovered: its name, and where to ask for it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SecretRef {
    pub name: Arc<str>,
    pub source: SecretSource,
}

/// Who is asked for a secret.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SecretSource {
    /// The control plane, over the aggregated stream.
    Ads,
    /// The server behind this static cluster: an agent beside the proxy.
    Cluster(Arc<str>),
}

/// A certificate with its chain and key, in PEM.
#[derive(Clone, Debug)]
pub struct Certificate {
    pub chain: DataSource,
    pub key: DataSource,
    pub ocsp_staple: Option<DataSource>,
}

/// What says which peers are trusted.
#[derive(Clone, Debug)]
pub enum ValidationSource {
    /// Nothing does: a server is not verified, a client is not asked.
    None,
    Given(Arc<Validation>),
    Secret(SecretRef),
    /// The secret, with what is given here beside it.
    Combined(Arc<Validation>, SecretRef),
}

/// `CertificateValidationContext`.
#[derive(Clone, Debug, Default)]
pub struct Validation {
    /// Certificates in PEM.
    pub trusted_ca: Option<DataSource>,
    /// The certificates that the system trusts, when there is no `trusted_ca`.
    pub system_roots: bool,
    /// SHA-256 of the public key; one of these or of `certificate_hashes` must fit.
    pub spki_hashes: Vec<[u8; 32]>,
    /// SHA-256 of the certificate.
    pub certificate_hashes: Vec<[u8; 32]>,
    /// One of these must fit; empty: any name.
    pub names: Vec<SanMatcher>,
    /// Revocation lists in PEM.
    pub crl: Option<DataSource>,
    pub only_leaf_crl: bool,
    pub allow_expired: bool,
    /// Take certificates whose chain cannot be verified, too.
    pub accept_untrusted: bool,
    /// Most intermediate certificates between a peer's and a trusted one.
    pub max_depth: Option<u32>,
    /// Do not tell clients whose certificates are trusted.
    pub suppress_ca_list: bool,
}

/// A condition on one kind of subject alternative name.
#[derive(Clone, Debug)]
pub struct SanMatcher {
    pub kind: SanKind,
    pub matcher: StringMatcher,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SanKind {
    Dns,
    Uri,
    Email,
    Ip,
}

/// A discovered secret.
#[derive(Clone, Debug)]
pub struct Secret {
    pub name: Arc<str>,
    pub kind: SecretKind,
}

#[derive(Clone, Debug)]
pub enum SecretKind {
    Certificate(Arc<Certificate>),
    Validation(Arc<Validation>),
}

/// Where bytes come from.
#[derive(Clone, PartialEq, Eq)]
pub enum DataSource {
    /// May be a key: cleared with its last user.
    Inline(Arc<Zeroizing<Vec<u8>>>),
    /// Read when the context is built, and again when the file changes.
    File(Arc<Path>),
    /// The value of an environment variable.
    Environment(Box<str>),
}

impl fmt::Debug for DataSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DataSource::Inline(bytes) => write!(f, "Inline({} bytes)", bytes.len()),
            DataSource::File(path) => write!(f, "File({})", path.display()),
            DataSource::Environment(name) => write!(f, "Environment({name})"),
        }
    }
}

impl Certificate {
    /// Every source it is read from.
    pub fn sources(&self) -> impl Iterator<Item = &DataSource> {
        [&self.chain, &self.key]
            .into_iter()
            .chain(&self.ocsp_staple)
    }
}

impl Validation {
    /// Every source it is read from.
    pub fn sources(&self) -> impl Iterator<Item = &DataSource> {
        self.trusted_ca.iter().chain(&self.crl)
    }
}
