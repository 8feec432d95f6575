//! What holds for any bytes that are shown as an identity, a certificate, a request for one, a token
//! or a key set. Fuzzing looks for bytes for which it does not.

use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::certificate::{About, read};
use crate::request::prove;
use crate::token::{CA_AUDIENCE, TokenVerifier, TrustedIssuer};
use crate::{Pieces, SpiffeId, identity_of, not_after};
use zeroize::Zeroizing;

const ISSUER: &str = "https://issuer.example";
/// The public half of a key that is kept nowhere.
const KEYS: &str = r#"{"keys":[{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}"#;

/// Reads bytes as the URI of an identity: one that is taken has this one spelling.
pub fn spiffe(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(id) = SpiffeId::parse(&text) {
        assert_eq!(id.to_string(), text);
        let parts = SpiffeId::new(
            id.trust_domain().clone(),
            id.namespace(),
            id.service_account(),
        );
        assert_eq!(parts.as_ref(), Ok(&id));
    }
}

/// Reads bytes as a certificate, DER or PEM, and as a request for one.
pub fn x509(bytes: &[u8]) {
    certificate(bytes);
    for der in read(bytes).into_iter().flatten() {
        certificate(&der);
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = prove(text);
    }
    let found = Pieces::find("x", |_| Ok(Some(Zeroizing::new(bytes.to_vec()))));
    if let Ok(Some(pieces)) = found {
        let _ = pieces.authority(SystemTime::UNIX_EPOCH);
    }
}

fn certificate(der: &[u8]) {
    let _ = not_after(der);
    if let Some(about) = About::read(der)
        && about.is_ca
    {
        assert!(identity_of(der).is_err(), "an authority is no workload");
    }
    if let Ok(id) = identity_of(der) {
        assert_eq!(SpiffeId::parse(&id.to_string()), Ok(id));
    }
}

/// Reads bytes as the token of a workload, and a first line and the rest as the header and the payload
/// of one: nobody has the key, so none is believed.
pub fn token(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    refused(&text);
    if let Some((header, payload)) = text.split_once('\n') {
        let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
        refused(&format!("{}.{}.c2ln", part(header), part(payload)));
    }
}

fn refused(token: &str) {
    static VERIFIER: LazyLock<Option<TokenVerifier>> = LazyLock::new(|| {
        let issuer = TrustedIssuer::from_jwks(ISSUER, KEYS).ok()?;
        Some(TokenVerifier::new(vec![issuer]))
    });
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let verifier = VERIFIER.as_ref();
    let believed = verifier.map(|verifier| verifier.verify(token, CA_AUDIENCE, now).is_ok());
    assert_eq!(believed, Some(false));
}

/// Reads bytes as the key set of an issuer.
pub fn jwks(bytes: &[u8]) {
    let _ = TrustedIssuer::from_jwks(ISSUER, &String::from_utf8_lossy(bytes));
}

#[cfg(test)]
mod tests {
    fn replay(name: &str, survive: fn(&[u8])) {
        let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/");
        for entry in std::fs::read_dir(format!("{corpus}{name}")).unwrap() {
            let path = entry.unwrap().path();
            println!("{}", path.display());
            survive(&std::fs::read(path).unwrap());
        }
    }

    #[test]
    fn the_corpora_of_identities_are_survived() {
        replay("spiffe", super::spiffe);
        replay("x509", super::x509);
        replay("jwt", super::token);
        replay("jwks", super::jwks);
    }
}
