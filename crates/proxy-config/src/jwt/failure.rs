//! Why a token, or its absence, is refused, in Envoy's words: people search for them
//! (Envoy, `source/common/jwt/status.cc`).

macro_rules! failures {
    ($( $(#[$doc:meta])* $name:ident $status:literal $text:literal $detail:literal; )*) => {
        /// Why a request is refused for its token.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum JwtFailure { $( $(#[$doc])* $name ),* }

        impl JwtFailure {
            /// Every failure, for tests.
            pub const ALL: &'static [JwtFailure] = &[ $( JwtFailure::$name ),* ];

            /// Status of the answer.
            pub const fn status(self) -> u16 {
                match self { $( JwtFailure::$name => $status ),* }
            }

            /// Body of the answer.
            pub const fn text(self) -> &'static str {
                match self { $( JwtFailure::$name => $text ),* }
            }

            /// Response code details.
            pub const fn details(self) -> &'static str {
                match self { $( JwtFailure::$name => concat!("jwt_authn_access_denied{", $detail, "}") ),* }
            }
        }
    };
}

failures! {
    Missing 401 "Jwt is missing" "Jwt_is_missing";
    NotYetValid 401 "Jwt not yet valid" "Jwt_not_yet_valid";
    Expired 401 "Jwt is expired" "Jwt_is_expired";
    BadFormat 401 "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections"
        "Jwt_is_not_in_the_form_of_Header.Payload.Signature_with_two_dots_and_3_sections";
    HeaderBase64 401 "Jwt header is an invalid Base64url encoded"
        "Jwt_header_is_an_invalid_Base64url_encoded";
    HeaderJson 401 "Jwt header is an invalid JSON" "Jwt_header_is_an_invalid_JSON";
    HeaderAlgorithm 401 "Jwt header [alg] field is required and must be a string"
        "Jwt_header_[alg]_field_is_required_and_must_be_a_string";
    AlgorithmUnknown 401 "Jwt header [alg] is not supported" "Jwt_header_[alg]_is_not_supported";
    HeaderKeyId 401 "Jwt header [kid] field is not a string" "Jwt_header_[kid]_field_is_not_a_string";
    PayloadBase64 401 "Jwt payload is an invalid Base64url encoded"
        "Jwt_payload_is_an_invalid_Base64url_encoded";
    PayloadJson 401 "Jwt payload is an invalid JSON" "Jwt_payload_is_an_invalid_JSON";
    Issuer 401 "Jwt payload [iss] field is not a string" "Jwt_payload_[iss]_field_is_not_a_string";
    Subject 401 "Jwt payload [sub] field is not a string" "Jwt_payload_[sub]_field_is_not_a_string";
    IssuedAt 401 "Jwt payload [iat] field is not an integer"
        "Jwt_payload_[iat]_field_is_not_an_integer";
    IssuedAtRange 401 "Jwt payload [iat] field is not a positive 64 bit integer"
        "Jwt_payload_[iat]_field_is_not_a_positive_64_bit_integer";
    NotBefore 401 "Jwt payload [nbf] field is not an integer"
        "Jwt_payload_[nbf]_field_is_not_an_integer";
    NotBeforeRange 401 "Jwt payload [nbf] field is not a positive 64 bit integer"
        "Jwt_payload_[nbf]_field_is_not_a_positive_64_bit_integer";
    Expiry 401 "Jwt payload [exp] field is not an integer"
        "Jwt_payload_[exp]_field_is_not_an_integer";
    ExpiryRange 401 "Jwt payload [exp] field is not a positive 64 bit integer"
        "Jwt_payload_[exp]_field_is_not_a_positive_64_bit_integer";
    Id 401 "Jwt payload [jti] field is not a string" "Jwt_payload_[jti]_field_is_not_a_string";
    Audience 401 "Jwt payload [aud] field is not a string or string list"
        "Jwt_payload_[aud]_field_is_not_a_string_or_string_list";
    SignatureBase64 401 "Jwt signature is an invalid Base64url encoded"
        "Jwt_signature_is_an_invalid_Base64url_encoded";
    Ed25519Length 401 "Jwt ED25519 signature is wrong length" "Jwt_ED25519_signature_is_wrong_length";
    UnknownIssuer 401 "Jwt issuer is not configured" "Jwt_issuer_is_not_configured";
    AudienceNotAllowed 403 "Audiences in Jwt are not allowed" "Audiences_in_Jwt_are_not_allowed";
    Signature 401 "Jwt verification fails" "Jwt_verification_fails";
    NoSuchKey 401 "Jwks doesn't have key to match kid or alg from Jwt"
        "Jwks_doesn't_have_key_to_match_kid_or_alg_from_Jwt";
    NotFetched 401 "Jwks remote fetch is failed" "Jwks_remote_fetch_is_failed";
    NoKeys 401 "Jwks doesn't have any valid public key" "Jwks_doesn't_have_any_valid_public_key";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_are_the_text_without_spaces() {
        for failure in JwtFailure::ALL {
            let text = failure.text().replace(' ', "_");
            let expect = format!("jwt_authn_access_denied{{{text}}}");
            assert_eq!(failure.details(), expect, "{failure:?}");
            let forbidden = *failure == JwtFailure::AudienceNotAllowed;
            assert_eq!(failure.status(), if forbidden { 403 } else { 401 });
        }
    }
}
