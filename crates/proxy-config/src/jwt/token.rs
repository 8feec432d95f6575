//! JSON Web Tokens in compact form (RFC 7515 section 7.1, RFC 7519): reading, and what can be told
//! without keys.
//!
//! Nobody vouches for a token yet when it is read, so this is cheap for any bytes: no tree of JSON is
//! made, only the registered claims are kept, and the length is bounded before anything is decoded.

use super::failure::JwtFailure;
use base64::Engine as _;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::fmt;
use std::time::Duration;

/// Longer than a request head may be by default; a token that came in any other way is refused.
const MAX_TOKEN: usize = 64 * 1024;

/// Padding may be there or not, as in Envoy.
const BASE64URL: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

pub(super) fn base64url(text: &[u8]) -> Option<Vec<u8>> {
    BASE64URL.decode(text).ok()
}

/// A signature algorithm (RFC 7518 section 3.1, RFC 8037). `none` is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    Es512,
    EdDsa,
    Hs256,
    Hs384,
    Hs512,
}

impl Algorithm {
    /// By its name in `alg`.
    pub fn from_name(name: &str) -> Option<Algorithm> {
        Some(match name {
            "RS256" => Algorithm::Rs256,
            "RS384" => Algorithm::Rs384,
            "RS512" => Algorithm::Rs512,
            "PS256" => Algorithm::Ps256,
            "PS384" => Algorithm::Ps384,
            "PS512" => Algorithm::Ps512,
            "ES256" => Algorithm::Es256,
            "ES384" => Algorithm::Es384,
            "ES512" => Algorithm::Es512,
            "EdDSA" => Algorithm::EdDsa,
            "HS256" => Algorithm::Hs256,
            "HS384" => Algorithm::Hs384,
            "HS512" => Algorithm::Hs512,
            _ => return None,
        })
    }
}

/// A token that is well formed. Its signature is not checked yet.
#[derive(Clone, Debug)]
pub struct Token<'t> {
    pub algorithm: Algorithm,
    pub key_id: Option<String>,
    /// What is signed: header and payload as they stand in the token.
    pub signed: &'t [u8],
    /// The payload as it stands in the token.
    pub encoded_payload: &'t [u8],
    pub header: Vec<u8>,
    pub payload: Vec<u8>,
    pub signature: Vec<u8>,
    /// `iss`; may be empty.
    pub issuer: String,
    pub audiences: Vec<String>,
    not_before: u64,
    /// 0: never.
    expires: u64,
}

impl<'t> Token<'t> {
    /// Reads a token, and refuses it in the order of Envoy's checks.
    pub fn parse(text: &'t [u8]) -> Result<Token<'t>, JwtFailure> {
        if text.len() > MAX_TOKEN {
            return Err(JwtFailure::BadFormat);
        }
        let mut parts = text.split(|b| *b == b'.');
        let next = |parts: &mut dyn Iterator<Item = &'t [u8]>| {
            parts.next().filter(|part| !part.is_empty())
        };
        let (Some(header), Some(payload), Some(signature), None) = (
            next(&mut parts),
            next(&mut parts),
            next(&mut parts),
            parts.next(),
        ) else {
            return Err(JwtFailure::BadFormat);
        };
        let decoded_header = base64url(header).ok_or(JwtFailure::HeaderBase64)?;
        let head: Header = object(&decoded_header).ok_or(JwtFailure::HeaderJson)?;
        let algorithm = head.alg.text(JwtFailure::HeaderAlgorithm)?;
        let algorithm = algorithm.ok_or(JwtFailure::HeaderAlgorithm)?;
        let algorithm = Algorithm::from_name(&algorithm).ok_or(JwtFailure::AlgorithmUnknown)?;
        let key_id = head.kid.text(JwtFailure::HeaderKeyId)?;
        let decoded_payload = base64url(payload).ok_or(JwtFailure::PayloadBase64)?;
        let claims: Claims = object(&decoded_payload).ok_or(JwtFailure::PayloadJson)?;
        let issuer = claims.iss.text(JwtFailure::Issuer)?.unwrap_or_default();
        claims.sub.text(JwtFailure::Subject)?;
        claims
            .iat
            .seconds(JwtFailure::IssuedAt, JwtFailure::IssuedAtRange)?;
        let nbf = claims
            .nbf
            .seconds(JwtFailure::NotBefore, JwtFailure::NotBeforeRange)?;
        let exp = claims
            .exp
            .seconds(JwtFailure::Expiry, JwtFailure::ExpiryRange)?;
        claims.jti.text(JwtFailure::Id)?;
        let audiences = claims.aud.texts(JwtFailure::Audience)?;
        Ok(Token {
            algorithm,
            key_id: key_id.filter(|id| !id.is_empty()),
            signed: &text[..header.len() + 1 + payload.len()],
            encoded_payload: payload,
            header: decoded_header,
            payload: decoded_payload,
            signature: base64url(signature).ok_or(JwtFailure::SignatureBase64)?,
            issuer,
            audiences,
            not_before: nbf,
            expires: exp,
        })
    }

    /// Whether the token is valid at a time since 1970. Clocks may differ by `skew`.
    pub fn check_time(&self, now: Duration, skew: Duration) -> Result<(), JwtFailure> {
        let (now, skew) = (now.as_secs(), skew.as_secs());
        if now.saturating_add(skew) < self.not_before {
            return Err(JwtFailure::NotYetValid);
        }
        if self.expires != 0 && now > self.expires.saturating_add(skew) {
            return Err(JwtFailure::Expired);
        }
        Ok(())
    }
}

/// JSON that is an object; what it has besides the fields of `T` is skipped.
fn object<T: for<'d> Deserialize<'d>>(bytes: &[u8]) -> Option<T> {
    // A list would do for the fields of a struct, too.
    bytes.trim_ascii_start().starts_with(b"{").then_some(())?;
    serde_json::from_slice(bytes).ok()
}

#[derive(Deserialize)]
struct Header {
    #[serde(default)]
    alg: Claim,
    #[serde(default)]
    kid: Claim,
}

#[derive(Deserialize)]
struct Claims {
    #[serde(default)]
    iss: Claim,
    #[serde(default)]
    sub: Claim,
    #[serde(default)]
    aud: Claim,
    #[serde(default)]
    exp: Claim,
    #[serde(default)]
    nbf: Claim,
    #[serde(default)]
    iat: Claim,
    #[serde(default)]
    jti: Claim,
}

/// A value of which only the form matters that it should have.
#[derive(Default)]
enum Claim {
    #[default]
    Missing,
    Text(String),
    Number(f64),
    Texts(Vec<String>),
    Other,
}

impl Claim {
    fn text(self, wrong: JwtFailure) -> Result<Option<String>, JwtFailure> {
        match self {
            Claim::Missing => Ok(None),
            Claim::Text(text) => Ok(Some(text)),
            _ => Err(wrong),
        }
    }

    fn texts(self, wrong: JwtFailure) -> Result<Vec<String>, JwtFailure> {
        match self {
            Claim::Missing => Ok(Vec::new()),
            Claim::Text(text) => Ok(vec![text]),
            Claim::Texts(texts) => Ok(texts),
            _ => Err(wrong),
        }
    }

    /// Seconds since 1970, fractions cut off; 0 when missing.
    fn seconds(self, wrong: JwtFailure, range: JwtFailure) -> Result<u64, JwtFailure> {
        match self {
            Claim::Missing => Ok(0),
            Claim::Number(number) if (0.0..u64::MAX as f64).contains(&number) => Ok(number as u64),
            Claim::Number(_) => Err(range),
            _ => Err(wrong),
        }
    }
}

impl<'d> Deserialize<'d> for Claim {
    fn deserialize<D: Deserializer<'d>>(deserializer: D) -> Result<Claim, D::Error> {
        deserializer.deserialize_any(AnyClaim { inner: false })
    }
}

struct AnyClaim {
    /// Within a list, where lists are not kept.
    inner: bool,
}

impl<'d> Visitor<'d> for AnyClaim {
    type Value = Claim;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a claim")
    }

    fn visit_str<E>(self, text: &str) -> Result<Claim, E> {
        Ok(Claim::Text(text.to_owned()))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Claim, E> {
        Ok(Claim::Number(number))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Claim, E> {
        Ok(Claim::Number(number as f64))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Claim, E> {
        Ok(Claim::Number(number as f64))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Claim, E> {
        Ok(Claim::Other)
    }

    fn visit_unit<E>(self) -> Result<Claim, E> {
        Ok(Claim::Other)
    }

    fn visit_map<A: MapAccess<'d>>(self, mut map: A) -> Result<Claim, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Claim::Other)
    }

    fn visit_seq<A: SeqAccess<'d>>(self, mut list: A) -> Result<Claim, A::Error> {
        if self.inner {
            while list.next_element::<IgnoredAny>()?.is_some() {}
            return Ok(Claim::Other);
        }
        let mut texts = Some(Vec::new());
        while let Some(Element(element)) = list.next_element()? {
            texts = match (texts, element) {
                (Some(mut texts), Claim::Text(text)) => {
                    texts.push(text);
                    Some(texts)
                }
                _ => None,
            };
        }
        Ok(texts.map_or(Claim::Other, Claim::Texts))
    }
}

/// An element of a list.
struct Element(Claim);

impl<'d> Deserialize<'d> for Element {
    fn deserialize<D: Deserializer<'d>>(deserializer: D) -> Result<Element, D::Error> {
        let claim = deserializer.deserialize_any(AnyClaim { inner: true })?;
        Ok(Element(claim))
    }
}
