//! What a compliance policy makes of the control plane's own TLS (Istio's `EnforceGoCompliance`).

use std::sync::Arc;

use lateen_model::Compliance;
use rustls::SupportedProtocolVersion;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, cipher_suite as suites, kx_group};
use rustls::version::{TLS12, TLS13};

static ANY: &[&SupportedProtocolVersion] = &[&TLS13, &TLS12];
static ONLY_12: &[&SupportedProtocolVersion] = &[&TLS12];
static ONLY_13: &[&SupportedProtocolVersion] = &[&TLS13];

/// Ciphers, groups and versions that comply.
pub(crate) fn tls(
    policy: Option<Compliance>,
) -> (
    Arc<CryptoProvider>,
    &'static [&'static SupportedProtocolVersion],
) {
    let mut provider = aws_lc_rs::default_provider();
    let versions = match policy {
        None => ANY,
        Some(Compliance::Fips140_2) => {
            provider.cipher_suites = vec![
                suites::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
                suites::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
                suites::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
                suites::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
            ];
            provider.kx_groups = vec![kx_group::SECP256R1];
            ONLY_12
        }
        Some(Compliance::Pqc) => {
            provider.cipher_suites = vec![
                suites::TLS13_AES_128_GCM_SHA256,
                suites::TLS13_AES_256_GCM_SHA384,
            ];
            provider.kx_groups = vec![kx_group::X25519MLKEM768];
            ONLY_13
        }
    };
    (Arc::new(provider), versions)
}
