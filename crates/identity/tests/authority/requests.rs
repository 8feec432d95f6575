//! What is issued for a request, and which requests are refused.

use std::time::{Duration, SystemTime};

use lateen_identity::{Ca, CaOptions, KeyKind, Lifetimes, SpiffeId, identity_of};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use crate::openssl::{P256, P384, RSA, ok, request, verify, write};

const REVIEWS: &str = "spiffe://cluster.local/ns/default/sa/bookinfo-reviews";

fn reviews() -> SpiffeId {
    SpiffeId::parse(REVIEWS).unwrap()
}

fn der(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

#[test]
fn chains_verify_with_openssl_for_every_kind_of_key_and_root() {
    for root in [KeyKind::EcdsaP256, KeyKind::Rsa2048] {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path();
        let options = CaOptions {
            key_kind: root,
            ..CaOptions::new(at)
        };
        let ca = Ca::open(options, None, SystemTime::now()).unwrap();
        for key in [P256, P384, RSA] {
            let csr = request(at, key, &[]);
            let issued =
                ca.current()
                    .issue(&csr, &reviews(), None, ca.lifetimes(), SystemTime::now());
            let issued = issued.unwrap();
            assert_eq!(issued.chain.len(), 2, "leaf and root");
            for purpose in ["sslclient", "sslserver"] {
                verify(at, &issued.chain, purpose).unwrap();
            }
            assert_eq!(identity_of(&der(&issued.chain[0])).unwrap(), reviews());
            let shown = ok(at, &["x509", "-in", "leaf.pem", "-noout", "-text"]);
            let lines: Vec<&str> = shown.lines().map(str::trim).collect();
            let after = |line: &str| {
                let found = lines.iter().position(|l| l.starts_with(line));
                lines[found.unwrap_or_else(|| panic!("no {line} in {shown}")) + 1]
            };
            assert_eq!(
                after("X509v3 Subject Alternative Name: critical"),
                format!("URI:{REVIEWS}")
            );
            assert_eq!(
                after("X509v3 Key Usage: critical"),
                "Digital Signature, Key Encipherment"
            );
            assert_eq!(
                after("X509v3 Extended Key Usage"),
                "TLS Web Server Authentication, TLS Web Client Authentication"
            );
            assert_eq!(after("X509v3 Basic Constraints: critical"), "CA:FALSE");
            assert!(
                lines.contains(&"Subject:") || lines.contains(&"Subject: "),
                "{shown}"
            );
            let public = ok(at, &["x509", "-in", "leaf.pem", "-noout", "-pubkey"]);
            assert_eq!(public, ok(at, &["pkey", "-in", "key.pem", "-pubout"]));
        }
    }
}

#[test]
fn names_in_the_request_do_not_count() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let ca = Ca::open(CaOptions::new(at), None, SystemTime::now()).unwrap();
    let names = "subjectAltName=URI:spiffe://cluster.local/ns/kube-system/sa/admin,DNS:istiod.istio-system.svc";
    let more = [
        "-addext",
        names,
        "-addext",
        "basicConstraints=critical,CA:TRUE",
    ];
    let csr = request(at, P256, &more);
    let issued = ca
        .current()
        .issue(&csr, &reviews(), None, ca.lifetimes(), SystemTime::now());
    let issued = issued.unwrap();
    assert_eq!(identity_of(&der(&issued.chain[0])).unwrap(), reviews());
    write(at, "leaf.pem", &issued.chain[0]);
    let shown = ok(at, &["x509", "-in", "leaf.pem", "-noout", "-text"]);
    for word in ["istiod", "admin", "CA:TRUE", "somebody else"] {
        assert!(!shown.contains(word), "{shown}");
    }
}

#[test]
fn serials_are_random_and_validity_is_what_was_asked_within_the_bound() {
    const HOUR: Duration = Duration::from_secs(3600);
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let ca = Ca::open(CaOptions::new(at), None, SystemTime::now()).unwrap();
    let csr = request(at, P256, &[]);
    let now = SystemTime::now();
    let lifetimes = Lifetimes {
        default: 24 * HOUR,
        max: 48 * HOUR,
    };
    let issue = |lifetime| {
        ca.current()
            .issue(&csr, &reviews(), lifetime, &lifetimes, now)
    };
    let (one, two) = (issue(None).unwrap(), issue(Some(HOUR)).unwrap());
    assert_ne!(one.serial, two.serial);
    assert_eq!(one.serial.len(), 32);
    assert_eq!(one.not_after, now + 24 * HOUR);
    assert_eq!(two.not_after, now + HOUR);
    assert_eq!(
        one.not_before,
        now - Duration::from_secs(120),
        "for clocks that are behind"
    );
    assert!(issue(Some(48 * HOUR)).is_ok());
    let refused = issue(Some(49 * HOUR)).unwrap_err().to_string();
    assert!(refused.contains("longest"), "{refused}");
    assert!(issue(Some(Duration::MAX)).is_err());
}

#[test]
fn requests_with_weak_keys_or_wrong_signatures_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let ca = Ca::open(CaOptions::new(at), None, SystemTime::now()).unwrap();
    let refused = |csr: &str, because: &str| {
        let issued = ca
            .current()
            .issue(csr, &reviews(), None, ca.lifetimes(), SystemTime::now());
        let error = issued.expect_err(because).to_string();
        assert!(error.contains(because), "{error}");
    };
    let good = request(at, P256, &[]);
    refused(
        &request(
            at,
            &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"],
            &[],
        ),
        "RSA of this size",
    );
    refused(
        &request(
            at,
            &[
                "-algorithm",
                "EC",
                "-pkeyopt",
                "ec_paramgen_curve:secp256k1",
            ],
            &[],
        ),
        "curve",
    );
    refused(&request(at, &["-algorithm", "ED25519"], &[]), "algorithm");
    refused(&request(at, RSA, &["-sha1"]), "SHA-256");
    refused("", "no certificate signing request");
    refused(
        "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
        "cannot be read",
    );
    refused(
        &good.replace("REQUEST", "NONSENSE"),
        "no certificate signing request",
    );
    refused(&"x".repeat(20_000), "more than");
    // The key of another in a request that one signed oneself.
    let (mine, other) = (der_of(at, &good), der_of(at, &request(at, P256, &[])));
    let key = |der: &[u8]| {
        let start = der
            .windows(4)
            .position(|w| w == [0x03, 0x42, 0x00, 0x04])
            .unwrap();
        start..start + 68
    };
    let mut forged = mine.clone();
    forged[key(&mine)].copy_from_slice(&other[key(&other)]);
    refused(&to_pem(at, &forged), "signature");
    let mut bent = mine.clone();
    *bent.last_mut().unwrap() ^= 1;
    refused(&to_pem(at, &bent), "signature");
    let mut long = mine.clone();
    long.push(0);
    refused(&to_pem(at, &long), "cannot be read");
}

fn der_of(at: &std::path::Path, pem: &str) -> Vec<u8> {
    write(at, "csr.pem", pem);
    ok(
        at,
        &[
            "req", "-in", "csr.pem", "-outform", "DER", "-out", "csr.der",
        ],
    );
    std::fs::read(at.join("csr.der")).unwrap()
}

fn to_pem(at: &std::path::Path, der: &[u8]) -> String {
    std::fs::write(at.join("csr.der"), der).unwrap();
    let base64 = ok(at, &["base64", "-in", "csr.der"]);
    format!("-----BEGIN CERTIFICATE REQUEST-----\n{base64}-----END CERTIFICATE REQUEST-----\n")
}
