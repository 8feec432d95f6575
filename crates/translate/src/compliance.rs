//! What a compliance policy makes of a TLS context, as the last word about it (Istio's
//! `pkg/model/fips.go`).
//!
//! Where Istio leaves ciphers and curves to a proxy that was built for FIPS, they are written out here:
//! the same for such a proxy, and right for any other.

use lateen_model::Compliance;

use crate::envoy::tls;

use tls::tls_parameters::TlsProtocol as Version;

/// Of TLS 1.2.
const CIPHERS: [&str; 4] = [
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
];

/// Makes a context comply.
pub fn enforce(policy: Option<Compliance>, common: &mut tls::CommonTlsContext) {
    let Some(policy) = policy else { return };
    let parameters = common.tls_params.get_or_insert_default();
    let (version, curve) = match policy {
        Compliance::Fips140_2 => (Version::TlSv12, "P-256"),
        Compliance::Pqc => (Version::TlSv13, "X25519MLKEM768"),
    };
    parameters.tls_minimum_protocol_version = version as i32;
    parameters.tls_maximum_protocol_version = version as i32;
    parameters.ecdh_curves = vec![curve.to_string()];
    let chosen = &mut parameters.cipher_suites;
    chosen.retain(|name| CIPHERS.contains(&name.as_str()));
    // None left would mean all that the proxy has.
    if chosen.is_empty() || policy == Compliance::Pqc {
        *chosen = CIPHERS.map(str::to_string).to_vec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enforced(policy: Compliance, ciphers: &[&str]) -> tls::TlsParameters {
        let mut common = tls::CommonTlsContext {
            tls_params: Some(tls::TlsParameters {
                tls_minimum_protocol_version: Version::TlSv12 as i32,
                tls_maximum_protocol_version: Version::TlSv13 as i32,
                cipher_suites: ciphers.iter().map(|name| (*name).to_string()).collect(),
                ecdh_curves: vec!["X25519".to_string()],
                ..Default::default()
            }),
            ..Default::default()
        };
        enforce(Some(policy), &mut common);
        common.tls_params.unwrap()
    }

    #[test]
    fn a_policy_has_the_last_word_and_leaves_no_list_empty() {
        let chacha = "ECDHE-ECDSA-CHACHA20-POLY1305";
        let some = enforced(Compliance::Fips140_2, &[chacha, CIPHERS[2]]);
        assert_eq!(some.cipher_suites, [CIPHERS[2]]);
        assert_eq!(some.ecdh_curves, ["P-256"]);
        assert_eq!(some.tls_maximum_protocol_version, Version::TlSv12 as i32);
        assert_eq!(
            enforced(Compliance::Fips140_2, &[chacha]).cipher_suites,
            CIPHERS
        );
        let pqc = enforced(Compliance::Pqc, &[]);
        assert_eq!(pqc.ecdh_curves, ["X25519MLKEM768"]);
        assert_eq!(pqc.tls_minimum_protocol_version, Version::TlSv13 as i32);
    }
}
