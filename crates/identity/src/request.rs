//! Certificate signing requests: what they prove, and nothing of what they ask for.
//!
//! A request proves that its sender holds the private half of the key in it. Its names and
//! extensions are not looked at: whose certificate it becomes is what the caller has proved.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA384_ASN1, ECDSA_P256_SHA512_ASN1, ECDSA_P384_SHA256_ASN1,
    ECDSA_P384_SHA384_ASN1, ECDSA_P384_SHA512_ASN1, RSA_PKCS1_2048_8192_SHA256,
    RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, UnparsedPublicKey,
    VerificationAlgorithm,
};
use rustls::pki_types::CertificateSigningRequestDer;
use rustls::pki_types::pem::PemObject as _;
use thiserror::Error;
use x509_parser::asn1_rs::{Oid, oid};
use x509_parser::prelude::{FromDer, X509CertificationRequest};
use x509_parser::x509::SubjectPublicKeyInfo;

/// Bytes of a request in PEM. One with an RSA key of 8192 bits and many names has 4 KiB.
pub(crate) const MAX_REQUEST: usize = 16 << 10;

/// Why a request is refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum RequestError {
    #[error("the request has {0} bytes, more than {MAX_REQUEST}")]
    TooLong(usize),
    #[error(
        "there is no certificate signing request in PEM form (-----BEGIN CERTIFICATE REQUEST-----)"
    )]
    Pem,
    #[error("the certificate signing request cannot be read")]
    Unreadable,
    #[error(
        "the key cannot be used: {0}; use ECDSA on P-256 or P-384, or RSA of 2048 to 8192 bits"
    )]
    Key(&'static str),
    #[error(
        "the request is signed with an algorithm that is not accepted; use SHA-256, SHA-384 or SHA-512"
    )]
    Algorithm,
    #[error("the signature of the request is wrong: its sender does not hold the key")]
    Signature,
}

/// A public key whose owner has shown that it has the private one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProvenKey {
    bytes: Vec<u8>,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    P256,
    P384,
    Rsa,
}

impl rcgen::PublicKeyData for ProvenKey {
    fn der_bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        match self.kind {
            Kind::P256 => &rcgen::PKCS_ECDSA_P256_SHA256,
            Kind::P384 => &rcgen::PKCS_ECDSA_P384_SHA384,
            Kind::Rsa => &rcgen::PKCS_RSA_SHA256,
        }
    }
}

const EC: Oid<'_> = oid!(1.2.840.10045.2.1);
const P256: Oid<'_> = oid!(1.2.840.10045.3.1.7);
const P384: Oid<'_> = oid!(1.3.132.0.34);
const RSA: Oid<'_> = oid!(1.2.840.113549.1.1.1);
const ECDSA_SHA256: Oid<'_> = oid!(1.2.840.10045.4.3.2);
const ECDSA_SHA384: Oid<'_> = oid!(1.2.840.10045.4.3.3);
const ECDSA_SHA512: Oid<'_> = oid!(1.2.840.10045.4.3.4);
const RSA_SHA256: Oid<'_> = oid!(1.2.840.113549.1.1.11);
const RSA_SHA384: Oid<'_> = oid!(1.2.840.113549.1.1.12);
const RSA_SHA512: Oid<'_> = oid!(1.2.840.113549.1.1.13);

/// Reads a request in PEM and checks its signature.
pub(crate) fn prove(pem: &str) -> Result<ProvenKey, RequestError> {
    if pem.len() > MAX_REQUEST {
        return Err(RequestError::TooLong(pem.len()));
    }
    let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes());
    let der = der.map_err(|_| RequestError::Pem)?;
    let (rest, request) =
        X509CertificationRequest::from_der(&der).map_err(|_| RequestError::Unreadable)?;
    if !rest.is_empty() {
        return Err(RequestError::Unreadable);
    }
    let key = public_key(&request.certification_request_info.subject_pki)?;
    let algorithm = algorithm(key.kind, &request.signature_algorithm.algorithm)?;
    let signed = request.certification_request_info.raw;
    UnparsedPublicKey::new(algorithm, &key.bytes)
        .verify(signed, &request.signature_value.data)
        .map_err(|_| RequestError::Signature)?;
    Ok(key)
}

fn public_key(info: &SubjectPublicKeyInfo<'_>) -> Result<ProvenKey, RequestError> {
    let bits = &info.subject_public_key;
    if bits.unused_bits != 0 {
        return Err(RequestError::Unreadable);
    }
    let kind = if info.algorithm.algorithm == EC {
        let curve = info.algorithm.parameters.as_ref();
        let curve = curve.and_then(|curve| curve.as_oid().ok());
        match curve {
            Some(curve) if curve == P256 && bits.data.len() == 65 => Kind::P256,
            Some(curve) if curve == P384 && bits.data.len() == 97 => Kind::P384,
            _ => return Err(RequestError::Key("its curve is not accepted")),
        }
    } else if info.algorithm.algorithm == RSA {
        let (2048..=8192) = rsa_bits(info) else {
            return Err(RequestError::Key("RSA of this size is not accepted"));
        };
        Kind::Rsa
    } else {
        return Err(RequestError::Key("its algorithm is not accepted"));
    };
    Ok(ProvenKey {
        bytes: bits.data.to_vec(),
        kind,
    })
}

fn rsa_bits(info: &SubjectPublicKeyInfo<'_>) -> usize {
    match info.parsed() {
        Ok(x509_parser::public_key::PublicKey::RSA(key)) => {
            let modulus = key.modulus;
            let zeros = modulus.iter().take_while(|byte| **byte == 0).count();
            let first = modulus.get(zeros).map_or(0, |byte| byte.leading_zeros());
            (modulus.len() - zeros) * 8 - first as usize
        }
        _ => 0,
    }
}

/// The one way to verify that key and signature algorithm leave.
fn algorithm(
    kind: Kind,
    named: &Oid<'_>,
) -> Result<&'static dyn VerificationAlgorithm, RequestError> {
    let known: [(Kind, Oid<'_>, &'static dyn VerificationAlgorithm); 9] = [
        (Kind::P256, ECDSA_SHA256, &ECDSA_P256_SHA256_ASN1),
        (Kind::P256, ECDSA_SHA384, &ECDSA_P256_SHA384_ASN1),
        (Kind::P256, ECDSA_SHA512, &ECDSA_P256_SHA512_ASN1),
        (Kind::P384, ECDSA_SHA256, &ECDSA_P384_SHA256_ASN1),
        (Kind::P384, ECDSA_SHA384, &ECDSA_P384_SHA384_ASN1),
        (Kind::P384, ECDSA_SHA512, &ECDSA_P384_SHA512_ASN1),
        (Kind::Rsa, RSA_SHA256, &RSA_PKCS1_2048_8192_SHA256),
        (Kind::Rsa, RSA_SHA384, &RSA_PKCS1_2048_8192_SHA384),
        (Kind::Rsa, RSA_SHA512, &RSA_PKCS1_2048_8192_SHA512),
    ];
    let found = known
        .into_iter()
        .find(|(of, oid, _)| *of == kind && oid == named);
    found
        .map(|(_, _, algorithm)| algorithm)
        .ok_or(RequestError::Algorithm)
}
