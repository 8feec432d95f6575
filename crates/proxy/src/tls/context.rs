//! One TLS context, ready for handshakes: configuration and material as rustls takes them.

use super::certificate::Description;
use super::material::{self, TlsError};
use super::verify::Verifier;
use crate::listener::Seen;
use lateen_proxy_config::{
    CertificateSource, CipherSuite, CommonTls, Curve, DownstreamTls, Secret, SecretKind, SecretRef,
    SessionTickets, TlsVersion, UpstreamTls, Validation, ValidationSource,
};
use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs::{self, cipher_suite as suites, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{
    ClientConfig, ServerConfig, SignatureAlgorithm, SupportedCipherSuite, SupportedProtocolVersion,
};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// How long rustls's own ticket keys live.
const TICKET_LIFETIME: Duration = Duration::from_secs(12 * 3600);

/// The secrets that have arrived.
pub(super) type Secrets = HashMap<SecretRef, Arc<Secret>>;

/// A context of a listener.
pub(crate) struct ServerContext {
    /// The client's order of ciphers decides.
    by_client: Configs,
    /// The server's does, by which ciphers can be as good as each other: then the client's.
    by_server: Configs,
    by_server_chacha_first: Configs,
    /// What may be spoken is TLS 1.3.
    speaks_1_3: bool,
    alpn: Vec<Box<str>>,
    pub(super) require_sni: bool,
    pub(super) certificates: Arc<ByName>,
}

/// One order of ciphers.
#[derive(Clone)]
struct Configs {
    with_alpn: Arc<ServerConfig>,
    /// For clients that offer only protocols that are not spoken here: as Envoy, they are served
    /// without one.
    without_alpn: Arc<ServerConfig>,
}

impl Configs {
    fn of(mut config: ServerConfig, protocols: &[Box<str>]) -> Configs {
        let without_alpn = Arc::new(config.clone());
        config.alpn_protocols = alpn(protocols);
        Configs {
            with_alpn: Arc::new(config),
            without_alpn,
        }
    }
}

impl ServerContext {
    /// What a client is served with. As in Envoy (`SSL_OP_CIPHER_SERVER_PREFERENCE`) the server's
    /// order of ciphers decides for TLS 1.2; for TLS 1.3, whose ciphers are all good, the client's.
    pub(super) fn config_for(&self, seen: &Seen) -> &Arc<ServerConfig> {
        let configs = match (self.speaks_1_3 && seen.tls_1_3, seen.chacha_first) {
            (true, _) => &self.by_client,
            (false, true) => &self.by_server_chacha_first,
            (false, false) => &self.by_server,
        };
        let agreed =
            seen.protocols.is_empty() || seen.protocols.iter().any(|p| self.alpn.contains(p));
        match agreed {
            true => &configs.with_alpn,
            false => &configs.without_alpn,
        }
    }
}

/// A context of a cluster. What is offered by ALPN depends on who connects, unless it is configured.
pub(crate) struct ClientContext {
    pub(super) tcp: Arc<ClientConfig>,
    pub(super) http1: Arc<ClientConfig>,
    pub(crate) http2: Arc<ClientConfig>,
    pub(super) auto: Arc<ClientConfig>,
}

/// SHA-256.
pub(super) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut sum = [0; 32];
    if let SupportedCipherSuite::Tls13(suite) = suites::TLS13_AES_128_GCM_SHA256 {
        let hash = suite.common.hash_provider.hash(bytes);
        sum.copy_from_slice(hash.as_ref());
    }
    sum
}

pub(super) fn server(tls: &DownstreamTls, secrets: &Secrets) -> Result<ServerContext, TlsError> {
    let provider = |chacha_first| provider(&tls.common, chacha_first);
    let algorithms = provider(false).signature_verification_algorithms;
    let verifier = verifier(&tls.common, secrets, algorithms)?;
    // As Envoy: a certificate is asked for when something is known to verify it by, or when there
    // must be one.
    let asks = tls.require_client_certificate || verifier.asks();
    let verifier = asks.then(|| Arc::new(verifier.of_clients(tls.require_client_certificate)));
    let certificates = Arc::new(ByName::new(identities(&tls.common, secrets)?));
    let with = |provider| {
        let builder = ServerConfig::builder_with_provider(provider);
        let builder = builder.with_protocol_versions(versions(&tls.common));
        let builder = builder.map_err(unusable)?;
        let builder = match &verifier {
            Some(verifier) => builder.with_client_cert_verifier(verifier.clone()),
            None => builder.with_no_client_auth(),
        };
        Ok(builder.with_cert_resolver(certificates.clone()))
    };
    let mut config: ServerConfig = with(provider(false))?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    // A ticket key of its own: a session must not get past a context that asks for more.
    let short = tls.session_timeout.is_some_and(|t| t < TICKET_LIFETIME);
    if tls.tickets == SessionTickets::Own && !short {
        config.ticketer = aws_lc_rs::Ticketer::new().map_err(unusable)?;
    } else {
        config.send_tls13_tickets = 0;
    }
    let protocols = &tls.common.alpn;
    let by_client = Configs::of(config.clone(), protocols);
    let (by_server, by_server_chacha_first) = match tls.prefer_client_ciphers {
        true => (by_client.clone(), by_client.clone()),
        false => {
            let mut chacha_first = with(provider(true))?;
            chacha_first.session_storage = config.session_storage.clone();
            chacha_first.ticketer = config.ticketer.clone();
            chacha_first.send_tls13_tickets = config.send_tls13_tickets;
            let of_server = |mut config: ServerConfig| {
                config.ignore_client_order = true;
                Configs::of(config, protocols)
            };
            (of_server(config), of_server(chacha_first))
        }
    };
    Ok(ServerContext {
        by_client,
        by_server,
        by_server_chacha_first,
        speaks_1_3: tls.common.max_version == TlsVersion::V13,
        alpn: protocols.clone(),
        require_sni: tls.require_sni,
        certificates,
    })
}

pub(super) fn client(
    tls: &UpstreamTls,
    for_server_name: bool,
    secrets: &Secrets,
) -> Result<ClientContext, TlsError> {
    let provider = provider(&tls.common, false);
    let algorithms = provider.signature_verification_algorithms;
    let verifier = verifier(&tls.common, secrets, algorithms)?;
    // Without anything to trust there is nothing that a name could be verified in.
    let verifier = match verifier.asks() {
        true => verifier.of_servers(for_server_name || tls.auto_sni_san_validation),
        false => verifier,
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions(&tls.common))
        .map_err(unusable)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match identities(&tls.common, secrets)?.pop() {
        Some(identity) => builder
            .with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(identity))),
        None => builder.with_no_client_auth(),
    };
    config.resumption = match tls.max_session_keys {
        0 => Resumption::disabled(),
        // rustls counts per server name, and drops all of a kind at once when it is full.
        keys => Resumption::in_memory_sessions(keys.clamp(8, 256)),
    };
    let with = |protocols: &[&str]| {
        let mut config = config.clone();
        let configured = match protocols.is_empty() || tls.http_alpn.is_empty() {
            true => &tls.common.alpn,
            false => &tls.http_alpn,
        };
        config.alpn_protocols = match configured.is_empty() {
            true => protocols.iter().map(|p| p.as_bytes().to_vec()).collect(),
            false => alpn(configured),
        };
        Arc::new(config)
    };
    Ok(ClientContext {
        tcp: with(&[]),
        http1: with(&["http/1.1"]),
        http2: with(&["h2"]),
        auto: with(&["h2", "http/1.1"]),
    })
}

fn unusable(error: impl std::fmt::Display) -> TlsError {
    TlsError::Unusable {
        what: "common_tls_context",
        reason: error.to_string(),
    }
}

fn alpn(protocols: &[Box<str>]) -> Vec<Vec<u8>> {
    protocols.iter().map(|p| p.as_bytes().to_vec()).collect()
}

/// Envoy's order of the ciphers of TLS 1.2 where none is configured: the shorter keys first. The hash
/// that goes with them is the one that processors have instructions for, and a handshake hashes more
/// than it encrypts.
const SUITES: [&[CipherSuite]; 4] = [
    &[
        CipherSuite::EcdheEcdsaAes128Gcm,
        CipherSuite::EcdheEcdsaChaCha20,
    ],
    &[
        CipherSuite::EcdheRsaAes128Gcm,
        CipherSuite::EcdheRsaChaCha20,
    ],
    &[CipherSuite::EcdheEcdsaAes256Gcm],
    &[CipherSuite::EcdheRsaAes256Gcm],
];

/// Ciphers and curves as configured. Those of TLS 1.3 are always all there, as in Envoy. Where
/// ciphers are as good as each other, ChaCha20 goes first or last.
fn provider(tls: &CommonTls, chacha_first: bool) -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    let is_1_3 = |suite: &SupportedCipherSuite| matches!(suite, SupportedCipherSuite::Tls13(_));
    provider.cipher_suites.retain(is_1_3);
    let longer = |suite: &SupportedCipherSuite| {
        suite.suite() == rustls::CipherSuite::TLS13_AES_256_GCM_SHA384
    };
    provider.cipher_suites.sort_by_key(longer);
    let configured: Vec<&[CipherSuite]> = match tls.cipher_suites.is_empty() {
        true => SUITES.to_vec(),
        false => tls.cipher_suites.iter().map(Vec::as_slice).collect(),
    };
    for group in configured {
        let is_chacha = |suite: &CipherSuite| {
            use CipherSuite as S;
            matches!(suite, S::EcdheEcdsaChaCha20 | S::EcdheRsaChaCha20)
        };
        let (chacha, others): (Vec<_>, Vec<_>) = group.iter().partition(|suite| is_chacha(suite));
        let ordered = match chacha_first {
            true => [chacha, others],
            false => [others, chacha],
        };
        let suites = ordered.into_iter().flatten().map(of_rustls);
        provider.cipher_suites.extend(suites);
    }
    if !tls.curves.is_empty() {
        let group = |curve: &Curve| -> &'static dyn SupportedKxGroup {
            match curve {
                Curve::X25519 => kx_group::X25519,
                Curve::P256 => kx_group::SECP256R1,
                Curve::P384 => kx_group::SECP384R1,
                Curve::X25519MlKem768 => kx_group::X25519MLKEM768,
            }
        };
        provider.kx_groups = tls.curves.iter().map(group).collect();
    }
    Arc::new(provider)
}

fn of_rustls(suite: &CipherSuite) -> SupportedCipherSuite {
    match suite {
        CipherSuite::EcdheEcdsaAes128Gcm => suites::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        CipherSuite::EcdheEcdsaAes256Gcm => suites::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        CipherSuite::EcdheEcdsaChaCha20 => suites::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        CipherSuite::EcdheRsaAes128Gcm => suites::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        CipherSuite::EcdheRsaAes256Gcm => suites::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        CipherSuite::EcdheRsaChaCha20 => suites::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    }
}

fn versions(tls: &CommonTls) -> &'static [&'static SupportedProtocolVersion] {
    use rustls::version::{TLS12, TLS13};
    static BOTH: &[&SupportedProtocolVersion] = &[&TLS13, &TLS12];
    static ONLY_12: &[&SupportedProtocolVersion] = &[&TLS12];
    static ONLY_13: &[&SupportedProtocolVersion] = &[&TLS13];
    match (tls.min_version, tls.max_version) {
        (TlsVersion::V12, TlsVersion::V13) => BOTH,
        (TlsVersion::V12, TlsVersion::V12) => ONLY_12,
        (TlsVersion::V13, _) => ONLY_13,
    }
}

pub(super) fn identities(
    tls: &CommonTls,
    secrets: &Secrets,
) -> Result<Vec<Arc<CertifiedKey>>, TlsError> {
    let one = |source: &CertificateSource| match source {
        CertificateSource::Given(certificate) => material::identity(certificate),
        CertificateSource::Secret(whose) => match &secret(whose, secrets)?.kind {
            SecretKind::Certificate(certificate) => material::identity(certificate),
            SecretKind::Validation(_) => Err(TlsError::WrongKind {
                name: whose.name.clone(),
                wanted: "tls_certificate",
            }),
        },
    };
    tls.certificates.iter().map(one).collect()
}

fn secret<'s>(whose: &SecretRef, secrets: &'s Secrets) -> Result<&'s Arc<Secret>, TlsError> {
    secrets
        .get(whose)
        .ok_or_else(|| TlsError::Missing(whose.name.clone()))
}

fn verifier(
    tls: &CommonTls,
    secrets: &Secrets,
    algorithms: rustls::crypto::WebPkiSupportedAlgorithms,
) -> Result<Verifier, TlsError> {
    let rules = rules(tls, secrets)?;
    let trusted = material::trusted(&rules)?;
    if trusted.is_none() && (!rules.names.is_empty() || rules.crl.is_some()) {
        return Err(TlsError::Unusable {
            what: "validation_context",
            reason: "names and revocation can only be verified with a trusted_ca".to_owned(),
        });
    }
    let verifier = Verifier::new(trusted, rules, algorithms);
    // Who names a secret to verify peers by means to verify them: one that holds nothing to do so
    // is a mistake, and must not let everybody pass.
    let discovered = matches!(
        tls.validation,
        ValidationSource::Secret(_) | ValidationSource::Combined(..)
    );
    if discovered && !verifier.asks() && !verifier.takes_anybody() {
        return Err(TlsError::Unusable {
            what: "validation_context",
            reason: "the secret has neither a trusted_ca nor hashes of certificates".to_owned(),
        });
    }
    Ok(verifier)
}

/// Who is trusted.
pub(super) fn trusted(
    tls: &CommonTls,
    secrets: &Secrets,
) -> Result<Option<material::Trusted>, TlsError> {
    material::trusted(&rules(tls, secrets)?)
}

fn rules(tls: &CommonTls, secrets: &Secrets) -> Result<Validation, TlsError> {
    let of_secret = |whose: &SecretRef| match &secret(whose, secrets)?.kind {
        SecretKind::Validation(validation) => Ok(validation.clone()),
        SecretKind::Certificate(_) => Err(TlsError::WrongKind {
            name: whose.name.clone(),
            wanted: "validation_context",
        }),
    };
    Ok(match &tls.validation {
        ValidationSource::None => Validation::default(),
        ValidationSource::Given(given) => Validation::clone(given),
        ValidationSource::Secret(whose) => Validation::clone(&*of_secret(whose)?),
        ValidationSource::Combined(given, whose) => merged(given, &*of_secret(whose)?),
    })
}

/// As protobuf merges: lists are joined, single values of the secret win.
fn merged(given: &Validation, secret: &Validation) -> Validation {
    let mut all = given.clone();
    all.trusted_ca = secret.trusted_ca.clone().or(all.trusted_ca);
    all.system_roots |= secret.system_roots;
    all.spki_hashes.extend(&secret.spki_hashes);
    all.certificate_hashes.extend(&secret.certificate_hashes);
    all.names.extend(secret.names.iter().cloned());
    all.crl = secret.crl.clone().or(all.crl);
    all.only_leaf_crl |= secret.only_leaf_crl;
    all.allow_expired |= secret.allow_expired;
    all.accept_untrusted |= secret.accept_untrusted;
    all.max_depth = secret.max_depth.or(all.max_depth);
    all.suppress_ca_list |= secret.suppress_ca_list;
    all
}

/// Chooses a certificate by server name and by what the client can verify.
#[derive(Debug)]
pub(super) struct ByName {
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    identity: Arc<CertifiedKey>,
    about: Arc<Description>,
}

impl ByName {
    fn new(identities: Vec<Arc<CertifiedKey>>) -> ByName {
        let entries = identities.into_iter().map(|identity| Entry {
            about: Arc::new(
                identity
                    .cert
                    .first()
                    .and_then(|leaf| Description::of(leaf))
                    .unwrap_or_default(),
            ),
            identity,
        });
        ByName {
            entries: entries.collect(),
        }
    }

    /// The certificates for a name; all of them when none is for it.
    fn candidates(&self, name: Option<&str>) -> Vec<&Entry> {
        let named: Vec<_> = match name {
            Some(name) => self
                .entries
                .iter()
                .filter(|e| e.about.is_for(name))
                .collect(),
            None => Vec::new(),
        };
        match named.is_empty() {
            true => self.entries.iter().collect(),
            false => named,
        }
    }

    /// What the certificate for a name says of itself.
    pub(super) fn description(&self, name: &str) -> Option<Arc<Description>> {
        let name = Some(name).filter(|name| !name.is_empty());
        Some(self.candidates(name).first()?.about.clone())
    }
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let can = |entry: &&Entry| {
            let key = &entry.identity.key;
            key.choose_scheme(hello.signature_schemes()).is_some()
        };
        let is_rsa = |entry: &&Entry| entry.identity.key.algorithm() == SignatureAlgorithm::RSA;
        let candidates = self.candidates(hello.server_name());
        // As Envoy: ECDSA for who can.
        let best = candidates.iter().find(|e| can(e) && !is_rsa(e));
        let best = best.or_else(|| candidates.iter().find(|e| can(e)));
        Some(best.or(candidates.first())?.identity.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lateen_proxy_config::{SecretRef, SecretSource};

    fn verified_by(validation: Validation) -> Result<Verifier, TlsError> {
        let whose = SecretRef {
            name: "ROOTCA".into(),
            source: SecretSource::Ads,
        };
        let secret = Arc::new(Secret {
            name: whose.name.clone(),
            kind: SecretKind::Validation(Arc::new(validation)),
        });
        let tls = CommonTls {
            min_version: TlsVersion::V12,
            max_version: TlsVersion::V13,
            cipher_suites: Vec::new(),
            curves: Vec::new(),
            alpn: Vec::new(),
            certificates: Vec::new(),
            validation: ValidationSource::Secret(whose.clone()),
        };
        let algorithms = provider(&tls, false).signature_verification_algorithms;
        verifier(&tls, &Secrets::from([(whose, secret)]), algorithms)
    }

    #[test]
    fn a_secret_that_can_verify_nobody_lets_nobody_pass() {
        assert!(verified_by(Validation::default()).is_err());
        let pinned = Validation {
            certificate_hashes: vec![[7; 32]],
            ..Validation::default()
        };
        assert!(verified_by(pinned).is_ok());
        let anybody = Validation {
            accept_untrusted: true,
            ..Validation::default()
        };
        assert!(verified_by(anybody).is_ok());
    }
}
