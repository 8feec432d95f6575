//! What a finished handshake tells, for access logs and `x-forwarded-client-cert`.

use super::certificate::{Description, hex};
use super::context::sha256;
use lateen_telemetry::format::{Field, Value};
use rustls::pki_types::CertificateDer;
use rustls::{CommonState, ProtocolVersion};
use std::sync::Arc;

/// The other side of a client's TLS connection.
#[derive(Debug, Default)]
pub(crate) struct Peer {
    pub(crate) version: &'static str,
    /// As IANA calls it.
    pub(crate) cipher: &'static str,
    /// Empty without one.
    pub(crate) server_name: Box<str>,
    pub(crate) http2: bool,
    /// A protocol was agreed on by ALPN, so that the first bytes are not asked.
    pub(crate) agreed: bool,
    pub(crate) reused: bool,
    /// What this side showed.
    pub(crate) local: Option<Arc<Description>>,
    pub(crate) certificate: Option<Box<PeerCertificate>>,
}

/// A client's certificate, verified as far as was configured.
#[derive(Debug)]
pub(crate) struct PeerCertificate {
    pub(crate) about: Description,
    /// SHA-256 in hexadecimal.
    pub(crate) fingerprint: String,
    /// With commas between them.
    uris: String,
    dns: String,
    chain: Vec<CertificateDer<'static>>,
}

impl Peer {
    pub(super) fn of(
        state: &CommonState,
        server_name: Box<str>,
        local: Option<Arc<Description>>,
    ) -> Peer {
        let chain = state.peer_certificates().unwrap_or_default();
        let certificate = chain.first().map(|leaf| {
            let about = Description::of(leaf).unwrap_or_default();
            Box::new(PeerCertificate {
                uris: about.uris.join(","),
                dns: about.dns.join(","),
                about,
                fingerprint: hex(&sha256(leaf)),
                chain: chain.to_vec(),
            })
        });
        Peer {
            version: match state.protocol_version() {
                Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
                _ => "TLSv1.3",
            },
            cipher: state
                .negotiated_cipher_suite()
                .map_or("", |suite| openssl_name(suite.suite())),
            server_name,
            http2: state.alpn_protocol() == Some(b"h2"),
            agreed: state.alpn_protocol().is_some(),
            reused: state.handshake_kind() == Some(rustls::HandshakeKind::Resumed),
            local,
            certificate,
        }
    }
}

impl Peer {
    /// What an access log may ask of it.
    pub(crate) fn value(&self, field: Field) -> Value<'_> {
        let some = |text: &'_ str| !text.is_empty();
        let certificate = self.certificate.as_deref();
        let local = self.local.as_deref();
        Value::text(match field {
            Field::DownstreamTlsVersion => Some(self.version),
            Field::DownstreamTlsCipher => Some(self.cipher).filter(|t| some(t)),
            Field::DownstreamPeerSubject => certificate.map(|c| &*c.about.subject),
            Field::DownstreamPeerIssuer => certificate.map(|c| &*c.about.issuer),
            Field::DownstreamPeerSerial => certificate.map(|c| &*c.about.serial),
            Field::DownstreamPeerFingerprint256 => certificate.map(|c| &*c.fingerprint),
            Field::DownstreamPeerUriSan => certificate.map(|c| &*c.uris).filter(|t| some(t)),
            Field::DownstreamPeerDnsSan => certificate.map(|c| &*c.dns).filter(|t| some(t)),
            Field::DownstreamLocalSubject => local.map(|l| &*l.subject),
            Field::DownstreamLocalUriSan => local.and_then(|l| l.uris.first()).map(|u| &**u),
            Field::DownstreamLocalDnsSan => local.and_then(|l| l.dns.first()).map(|n| &**n),
            _ => None,
        })
    }
}

/// Cipher suites as OpenSSL, and so Envoy, calls them.
fn openssl_name(suite: rustls::CipherSuite) -> &'static str {
    use rustls::CipherSuite as S;
    match suite {
        S::TLS13_AES_128_GCM_SHA256 => "TLS_AES_128_GCM_SHA256",
        S::TLS13_AES_256_GCM_SHA384 => "TLS_AES_256_GCM_SHA384",
        S::TLS13_CHACHA20_POLY1305_SHA256 => "TLS_CHACHA20_POLY1305_SHA256",
        S::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 => "ECDHE-ECDSA-AES128-GCM-SHA256",
        S::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384 => "ECDHE-ECDSA-AES256-GCM-SHA384",
        S::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256 => "ECDHE-ECDSA-CHACHA20-POLY1305",
        S::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => "ECDHE-RSA-AES128-GCM-SHA256",
        S::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 => "ECDHE-RSA-AES256-GCM-SHA384",
        S::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256 => "ECDHE-RSA-CHACHA20-POLY1305",
        _ => "",
    }
}

impl PeerCertificate {
    /// The certificate, or with its chain, in PEM with everything escaped that a header or URL
    /// would trip over (Envoy's `urlEncodedPemEncodedPeerCertificate`).
    pub(crate) fn url_encoded_pem(&self, whole_chain: bool) -> String {
        let mut text = String::new();
        let count = if whole_chain { self.chain.len() } else { 1 };
        for certificate in self.chain.iter().take(count) {
            text.push_str("-----BEGIN%20CERTIFICATE-----%0A");
            for line in base64(certificate).as_bytes().chunks(64) {
                for b in line {
                    match b {
                        b'+' => text.push_str("%2B"),
                        b'/' => text.push_str("%2F"),
                        b'=' => text.push_str("%3D"),
                        b => text.push(char::from(*b)),
                    }
                }
                text.push_str("%0A");
            }
            text.push_str("-----END%20CERTIFICATE-----%0A");
        }
        text
    }
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |i: usize| u32::from(chunk.get(i).copied().unwrap_or(0));
        let word = byte(0) << 16 | byte(1) << 8 | byte(2);
        for i in 0..4 {
            if i <= chunk.len() {
                let digit = (word >> (18 - 6 * i)) & 63;
                text.push(char::from(DIGITS[digit as usize]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::base64;

    #[test]
    fn base64_is_padded() {
        for (bytes, text) in [("", ""), ("M", "TQ=="), ("Ma", "TWE="), ("Man", "TWFu")] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }
}
