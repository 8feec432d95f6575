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
use std::fmt;
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
}

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
        usage: KeyUsage,
        now: UnixTime,
    ) -> Result<(), Error> {
        if let Some(trusted) = &self.trusted
            && !self.rules.accept_untrusted
        {
            self.verify_chain(trusted, leaf, intermediates, usage, now)?;
        }
        self.verify_names(leaf)?;
        self.verify_hashes(leaf)
    }

    fn verify_chain(
        &self,
        trusted: &Trusted,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        usage: KeyUsage,
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
            usage,
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
        self.verify(leaf, intermediates, KeyUsage::server_auth(), now)?;
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
        self.verify(leaf, intermediates, KeyUsage::client_auth(), now)?;
        Ok(ClientCertVerified::assertion())
    }

    signatures_as_the_provider_does!();
}
