//! What a certificate says of itself. Parsing is the `x509-parser` crate's; a certificate that it
//! cannot read says nothing.

use rustls::pki_types::CertificateDer;
use std::net::IpAddr;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::X509Name;

/// Names and dates of one certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Description {
    /// RFC 2253: `CN=a,O=b`, the last of the certificate first.
    pub subject: String,
    pub issuer: String,
    /// Hexadecimal, lower case.
    pub serial: String,
    pub dns: Vec<String>,
    pub uris: Vec<String>,
    pub emails: Vec<String>,
    pub ips: Vec<IpAddr>,
    /// Seconds since 1970.
    pub not_before: i64,
    pub not_after: i64,
    pub common_name: Option<String>,
}

impl Description {
    /// [`None`]: it cannot be read.
    pub fn of(der: &[u8]) -> Option<Description> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let mut about = Description {
            subject: name(certificate.subject()),
            issuer: name(certificate.issuer()),
            serial: hex(certificate.raw_serial()),
            not_before: certificate.validity().not_before.timestamp(),
            not_after: certificate.validity().not_after.timestamp(),
            common_name: certificate
                .subject()
                .iter_common_name()
                .find_map(|cn| cn.as_str().ok())
                .map(str::to_owned),
            ..Description::default()
        };
        if let Ok(Some(names)) = certificate.subject_alternative_name() {
            for name in &names.value.general_names {
                match name {
                    GeneralName::DNSName(name) => about.dns.push((*name).to_owned()),
                    GeneralName::URI(uri) => about.uris.push((*uri).to_owned()),
                    GeneralName::RFC822Name(email) => about.emails.push((*email).to_owned()),
                    GeneralName::IPAddress(bytes) => about.ips.extend(ip(bytes)),
                    _ => {}
                }
            }
        }
        Some(about)
    }

    /// Whether it is for this host, be it by a wildcard. As Envoy, the common name counts only when
    /// there is no alternative name.
    pub fn is_for(&self, host: &str) -> bool {
        if self.dns.is_empty() {
            return self
                .common_name
                .as_deref()
                .is_some_and(|cn| dns_matches(cn, host));
        }
        self.dns.iter().any(|pattern| dns_matches(pattern, host))
    }
}

/// Whether a name of a certificate is for a host: `*.a.b` is for `c.a.b`, not for `d.c.a.b`.
pub(super) fn dns_matches(pattern: &str, host: &str) -> bool {
    if pattern.eq_ignore_ascii_case(host) {
        return true;
    }
    let (Some(suffix), Some((first, rest))) = (pattern.strip_prefix("*."), host.split_once('.'))
    else {
        return false;
    };
    !first.is_empty() && !suffix.is_empty() && suffix.eq_ignore_ascii_case(rest)
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Some(four.into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

/// The DER of a certificate's public key (SubjectPublicKeyInfo), of which pins are made.
pub(super) fn public_key(der: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    Some(certificate.public_key().raw.to_vec())
}

pub(super) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |n: u8| char::from(DIGITS[usize::from(n & 15)]);
    bytes
        .iter()
        .flat_map(|b| [digit(b >> 4), digit(*b)])
        .collect()
}

/// A distinguished name as RFC 2253 writes it, as OpenSSL's `XN_FLAG_RFC2253` and so Envoy.
fn name(name: &X509Name<'_>) -> String {
    let relative: Vec<_> = name.iter().collect();
    let mut text = String::new();
    for set in relative.into_iter().rev() {
        if !text.is_empty() {
            text.push(',');
        }
        for (i, attribute) in set.iter().enumerate() {
            if i > 0 {
                text.push('+');
            }
            text.push_str(&attribute_name(&attribute.attr_type().to_id_string()));
            text.push('=');
            match attribute.as_str() {
                Ok(value) => escape(value, &mut text),
                Err(_) => {
                    text.push('#');
                    text.push_str(&hex(attribute.as_slice()));
                }
            }
        }
    }
    text
}

fn attribute_name(oid: &str) -> String {
    let known = match oid {
        "2.5.4.3" => "CN",
        "2.5.4.4" => "SN",
        "2.5.4.5" => "serialNumber",
        "2.5.4.6" => "C",
        "2.5.4.7" => "L",
        "2.5.4.8" => "ST",
        "2.5.4.9" => "street",
        "2.5.4.10" => "O",
        "2.5.4.11" => "OU",
        "2.5.4.12" => "title",
        "2.5.4.42" => "GN",
        "0.9.2342.19200300.100.1.1" => "UID",
        "0.9.2342.19200300.100.1.25" => "DC",
        "1.2.840.113549.1.9.1" => "emailAddress",
        other => other,
    };
    known.to_owned()
}

fn escape(value: &str, text: &mut String) {
    let last = value.chars().count().saturating_sub(1);
    for (i, c) in value.chars().enumerate() {
        let edge = (i == 0 && (c == ' ' || c == '#')) || (i == last && c == ' ');
        if edge || matches!(c, ',' | '+' | '"' | '\\' | '<' | '>' | ';') {
            text.push('\\');
        }
        match c {
            // Control characters as bytes, so that nobody's line or header breaks.
            '\0'..='\u{1f}' | '\u{7f}' => text.push_str(&format!("\\{:02X}", u32::from(c))),
            c => text.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_wildcard_stands_for_one_label() {
        for (pattern, host, fits) in [
            ("a.test", "a.test", true),
            ("A.test", "a.TEST", true),
            ("*.a.test", "b.a.test", true),
            ("*.a.test", "c.b.a.test", false),
            ("*.a.test", "a.test", false),
            ("*.a.test", ".a.test", false),
            ("*", "a", false),
            ("b*.a.test", "bc.a.test", false),
        ] {
            assert_eq!(dns_matches(pattern, host), fits, "{pattern} {host}");
        }
    }

    #[test]
    fn special_characters_of_names_are_escaped() {
        let mut text = String::new();
        escape(" a,b\n\u{e9}\" ", &mut text);
        assert_eq!(text, "\\ a\\,b\\0A\u{e9}\\\"\\ ");
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(der: Vec<u8>) {
            let _ = Description::of(&der);
        }
    }
}
