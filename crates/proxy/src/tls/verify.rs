//! Which peers are trusted: Envoy's certificate validation context on webpki.
//!
//! Three tests, each only if it is configured: the chain leads to a trusted certificate, a name
//! fits, a hash fits. As in Envoy, the name a client connects by is *not* tested unless the
//! configuration says so.

use super::certificate::{Description, dns_matches, public_key};
use super::material::Trusted;
use lateen_proxy_config::route::StringTest;
use lateen_proxy_config::{SanKind, SanMatcher, Validation};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use std::collections::HashMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use webpki::{
    EndEntityCert, ExpirationPolicy, KeyUsage, RevocationCheckDepth, RevocationOptionsBuilder,
    VerifiedPath,
};

/// What is asked of the other side's certificate.
pub(super) struct Verifier {
    trusted: Option<Trusted>,
    rules: Validation,
    /// Of clients: a certificate there must be.
    required: bool,
    /// Of servers: it must be for the name that was asked for.
    for_server_name: bool,
    hints: Vec<DistinguishedName>,
    algorithms: WebPkiSupportedAlgorithms,
    good: GoodChains,
}

/// Chains that have been verified, by their bytes and what they were shown for, and the seconds in
/// which nothing can be found wrong with them. In a mesh the same workloads come again and again, and
/// the signature of the authority below their certificates is a quarter of a handshake; that they
/// have the key is proven each time.
#[derive(Default)]
struct GoodChains(Mutex<HashMap<[u8; 32], RangeInclusive<u64>>>);

/// How many are remembered at most: then all are forgotten.
const GOOD_CHAINS: usize = 1024;

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier")
            .field("required", &self.required)
            .finish_non_exhaustive()
    }
}

impl Verifier {
    pub(super) fn new(
        trusted: Option<Trusted>,
        rules: Validation,
        algorithms: WebPkiSupportedAlgorithms,
    ) -> Verifier {
        let hints = match &trusted {
            Some(trusted) if !rules.suppress_ca_list => trusted
                .anchors
                .iter()
                .map(|anchor| DistinguishedName::in_sequence(&anchor.subject))
                .collect(),
            _ => Vec::new(),
        };
        Verifier {
            trusted,
            rules,
            required: false,
            for_server_name: false,
            hints,
            algorithms,
            good: GoodChains::default(),
        }
    }

    pub(super) fn of_clients(mut self, required: bool) -> Verifier {
        self.required = required;
        self
    }

    pub(super) fn of_servers(mut self, for_server_name: bool) -> Verifier {
        self.for_server_name = for_server_name;
        self
    }

    /// Whether anything is asked at all.
    pub(super) fn asks(&self) -> bool {
        self.trusted.is_some() || self.pinned()
    }

    /// Whether the configuration says that nobody has to prove anything.
    pub(super) fn takes_anybody(&self) -> bool {
        self.rules.accept_untrusted
    }

    fn pinned(&self) -> bool {
        !self.rules.spki_hashes.is_empty() || !self.rules.certificate_hashes.is_empty()
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        usage: Usage,
        now: UnixTime,
    ) -> Result<(), Error> {
        if let Some(trusted) = &self.trusted
            && !self.rules.accept_untrusted
        {
            self.verify_chain_once(trusted, leaf, intermediates, usage, now)?;
        }
        self.verify_names(leaf)?;
        self.verify_hashes(leaf)
    }

    /// The same chain is verified again when its time is over. With revocation lists, each time.
    fn verify_chain_once(
        &self,
        trusted: &Trusted,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        usage: Usage,
        now: UnixTime,
    ) -> Result<(), Error> {
        if !trusted.crls.is_empty() || self.rules.allow_expired {
            return self.verify_chain(trusted, leaf, intermediates, usage, now);
        }
        let chain = || std::iter::once(leaf).chain(intermediates);
        let mut bytes = vec![usage as u8];
        for certificate in chain() {
            bytes.extend_from_slice(&(certificate.len() as u64).to_be_bytes());
            bytes.extend_from_slice(certificate);
        }
        let key = super::context::sha256(&bytes);
        if self.good.has(&key, now.as_secs()) {
            return Ok(());
        }
        self.verify_chain(trusted, leaf, intermediates, usage, now)?;
        let end = |certificate| u64::try_from(Description::of(certificate)?.not_after).ok();
        let ends: Option<Vec<u64>> = chain().map(|certificate| end(certificate)).collect();
        if let Some(end) = ends.and_then(|ends| ends.into_iter().min()) {
            self.good.note(key, now.as_secs()..=end);
        }
        Ok(())
    }

    fn verify_chain(
        &self,
        trusted: &Trusted,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        usage: Usage,
        mut now: UnixTime,
    ) -> Result<(), Error> {
        let about = || Description::of(leaf).ok_or(CertificateError::BadEncoding);
        if self.rules.allow_expired {
            let end = u64::try_from(about()?.not_after).unwrap_or(0);
            now = UnixTime::since_unix_epoch(Duration::from_secs(end.min(now.as_secs())));
        }
        let certificate = match EndEntityCert::try_from(leaf) {
            Ok(certificate) => certificate,
            Err(error) => return Err(failure(&error)),
        };
        let crls: Vec<_> = trusted.crls.iter().collect();
        let revocation = RevocationOptionsBuilder::new(&crls).ok().map(|options| {
            let depth = match self.rules.only_leaf_crl {
                true => RevocationCheckDepth::EndEntity,
                false => RevocationCheckDepth::Chain,
            };
            // As Envoy: a list whose time is over says nothing of anybody.
            let options = options.with_expiration_policy(ExpirationPolicy::Enforce);
            options.with_depth(depth).build()
        });
        let most = self.rules.max_depth;
        let depth = move |path: &VerifiedPath<'_>| {
            let length = path.intermediate_certificates().count();
            match most {
                Some(most) if length > most as usize => Err(webpki::Error::UnknownIssuer),
                _ => Ok(()),
            }
        };
        let outcome = certificate.verify_for_usage(
            self.algorithms.all,
            &trusted.anchors,
            intermediates,
            now,
            usage.of_key(),
            revocation,
            Some(&depth),
        );
        match outcome {
            Ok(_) => Ok(()),
            // A server may show the very certificate that is trusted, as self-signed ones do.
            Err(webpki::Error::CaUsedAsEndEntity) if trusted.certificates.contains(leaf) => {
                let about = about()?;
                let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
                if now < about.not_before {
                    return Err(CertificateError::NotValidYet.into());
                }
                if now > about.not_after {
                    return Err(CertificateError::Expired.into());
                }
                Ok(())
            }
            Err(error) => Err(failure(&error)),
        }
    }

    fn verify_names(&self, leaf: &CertificateDer<'_>) -> Result<(), Error> {
        if self.rules.names.is_empty() {
            return Ok(());
        }
        let about = Description::of(leaf).ok_or(CertificateError::BadEncoding)?;
        match self
            .rules
            .names
            .iter()
            .any(|wanted| name_fits(wanted, &about))
        {
            true => Ok(()),
            false => Err(CertificateError::ApplicationVerificationFailure.into()),
        }
    }

    fn verify_hashes(&self, leaf: &CertificateDer<'_>) -> Result<(), Error> {
        if !self.pinned() {
            return Ok(());
        }
        let certificate = super::context::sha256(leaf);
        let key = public_key(leaf).map(|key| super::context::sha256(&key));
        let fits = self.rules.certificate_hashes.contains(&certificate)
            || key.is_some_and(|key| self.rules.spki_hashes.contains(&key));
        match fits {
            true => Ok(()),
            false => Err(CertificateError::ApplicationVerificationFailure.into()),
        }
    }
}

/// What a certificate is shown for.
#[derive(Clone, Copy)]
enum Usage {
    Server,
    Client,
}

impl Usage {
    fn of_key(self) -> KeyUsage {
        match self {
            Usage::Server => KeyUsage::server_auth(),
            Usage::Client => KeyUsage::client_auth(),
        }
    }
}

impl GoodChains {
    fn has(&self, key: &[u8; 32], now: u64) -> bool {
        let good = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        good.get(key).is_some_and(|time| time.contains(&now))
    }

    fn note(&self, key: [u8; 32], time: RangeInclusive<u64>) {
        let mut good = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if good.len() >= GOOD_CHAINS {
            good.clear();
        }
        good.insert(key, time);
    }
}

fn name_fits(wanted: &SanMatcher, about: &Description) -> bool {
    let test = |text: &str| wanted.matcher.matches(text.as_bytes());
    match wanted.kind {
        // A name of the certificate may itself be a wildcard.
        SanKind::Dns => match &wanted.matcher.test {
            StringTest::Exact(host) => about.dns.iter().any(|name| dns_matches(name, host)),
            _ => about.dns.iter().any(|name| test(name)),
        },
        SanKind::Uri => about.uris.iter().any(|uri| test(uri)),
        SanKind::Email => about.emails.iter().any(|email| test(email)),
        SanKind::Ip => about.ips.iter().any(|ip| test(&ip.to_string())),
    }
}

fn failure(error: &webpki::Error) -> Error {
    use webpki::Error as E;
    match error {
        E::CertExpired { .. } => CertificateError::Expired.into(),
        E::CertNotValidYet { .. } => CertificateError::NotValidYet.into(),
        E::CertRevoked => CertificateError::Revoked.into(),
        E::CrlExpired { .. } => CertificateError::ExpiredRevocationList.into(),
        E::UnknownRevocationStatus => CertificateError::UnknownRevocationStatus.into(),
        E::UnknownIssuer => CertificateError::UnknownIssuer.into(),
        E::InvalidSignatureForPublicKey => CertificateError::BadSignature.into(),
        other => Error::General(format!("certificate: {other}")),
    }
}

/// Both kinds of verifier must say how signatures of a handshake are checked.
macro_rules! signatures_as_the_provider_does {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls12_signature(message, certificate, signed, &self.algorithms)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls13_signature(message, certificate, signed, &self.algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.algorithms.supported_schemes()
        }
    };
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(leaf, intermediates, Usage::Server, now)?;
        if self.for_server_name {
            let certificate = EndEntityCert::try_from(leaf).map_err(|error| failure(&error))?;
            certificate
                .verify_is_valid_for_subject_name(server_name)
                .map_err(|_| CertificateError::NotValidForName)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    signatures_as_the_provider_does!();
}

impl ClientCertVerifier for Verifier {
    fn client_auth_mandatory(&self) -> bool {
        self.required
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verify(leaf, intermediates, Usage::Client, now)?;
        Ok(ClientCertVerified::assertion())
    }

    signatures_as_the_provider_does!();
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair};
    use rustls::pki_types::TrustAnchor;

    /// The years 2001 and 2002 begin.
    const BEGIN: u64 = 978_307_200;
    const END: u64 = 1_009_843_200;

    fn params(end: i32) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.not_before = rcgen::date_time_ymd(2001, 1, 1);
        params.not_after = rcgen::date_time_ymd(end, 1, 1);
        params
    }

    /// An authority's certificate, and two that it signed for clients, the second for longer.
    fn certificates() -> [CertificateDer<'static>; 3] {
        let key = KeyPair::generate().unwrap();
        let mut authority = params(2010);
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = authority.self_signed(&key).unwrap();
        let issuer = rcgen::Issuer::new(authority, key);
        let signed = |end| {
            let mut params = params(end);
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            let key = KeyPair::generate().unwrap();
            params.signed_by(&key, &issuer).unwrap().der().clone()
        };
        [certificate.der().clone(), signed(2002), signed(2003)]
    }

    fn verifier(authority: &CertificateDer<'static>) -> Verifier {
        let anchor: TrustAnchor<'_> = webpki::anchor_from_trusted_cert(authority).unwrap();
        let trusted = Trusted {
            anchors: vec![anchor.to_owned()],
            certificates: vec![authority.clone()],
            crls: Vec::new(),
        };
        let algorithms =
            rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms;
        Verifier::new(Some(trusted), Validation::default(), algorithms)
    }

    #[test]
    fn a_chain_that_was_verified_is_good_as_long_as_it_lasts_for_what_it_was_shown_and_no_other() {
        let [authority, leaf, longer] = certificates();
        let ours = verifier(&authority);
        let other = verifier(&certificates()[0]);
        let verify = |verifier: &Verifier, leaf: &CertificateDer<'_>, usage, at: u64| {
            let now = UnixTime::since_unix_epoch(Duration::from_secs(at));
            verifier.verify(leaf, &[], usage, now).is_ok()
        };
        let mut forged = leaf.to_vec();
        *forged.last_mut().unwrap() ^= 1;
        let forged = CertificateDer::from(forged);
        for known in [0, 1, 1] {
            assert_eq!(ours.good.0.lock().unwrap().len(), known);
            assert!(!verify(&ours, &leaf, Usage::Client, BEGIN - 1));
            assert!(!verify(&ours, &leaf, Usage::Client, END + 1));
            assert!(!verify(&ours, &leaf, Usage::Server, BEGIN + 1));
            assert!(!verify(&ours, &forged, Usage::Client, BEGIN + 1));
            assert!(!verify(&other, &leaf, Usage::Client, BEGIN + 1));
            assert!(verify(&ours, &leaf, Usage::Client, BEGIN + 1));
            assert!(verify(&ours, &leaf, Usage::Client, END));
        }
        assert!(other.good.0.lock().unwrap().is_empty());
        assert!(verify(&ours, &longer, Usage::Client, END + 1));
        assert_eq!(ours.good.0.lock().unwrap().len(), 2);
    }

    #[test]
    fn chains_that_are_remembered_are_bounded() {
        let good = GoodChains::default();
        for i in 0..3 * GOOD_CHAINS as u64 {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&i.to_be_bytes());
            good.note(key, 0..=9);
            assert!(good.has(&key, 9) && !good.has(&key, 10));
        }
        assert!(good.0.lock().unwrap().len() <= GOOD_CHAINS);
    }
}
