//! `x-forwarded-client-cert`: what is passed on of a client's certificate, in Envoy's format
//! (`ConnectionManagerUtility::mutateXfccRequestHeader`).

use crate::tls::peer::{Peer, PeerCertificate};
use lateen_proxy_config::ClientCertDetails;

/// One element: keys and values of this connection's certificate.
pub(super) fn element(
    tls: &Peer,
    certificate: &PeerCertificate,
    details: ClientCertDetails,
) -> String {
    let mut parts = Vec::new();
    for uri in tls.local.iter().flat_map(|local| &local.uris) {
        parts.push(format!("By={}", clean(uri)));
    }
    parts.push(format!("Hash={}", certificate.fingerprint));
    let about = &certificate.about;
    if details.cert {
        parts.push(format!("Cert=\"{}\"", certificate.url_encoded_pem(false)));
    }
    if details.chain {
        parts.push(format!("Chain=\"{}\"", certificate.url_encoded_pem(true)));
    }
    if details.subject {
        // Within quotes, so quotes and backslashes are escaped.
        let subject = about.subject.replace('\\', "\\\\").replace('"', "\\\"");
        parts.push(format!("Subject=\"{subject}\""));
    }
    if details.uri {
        match about.uris.is_empty() {
            true => parts.push("URI=".to_owned()),
            false => parts.extend(about.uris.iter().map(|uri| format!("URI={}", clean(uri)))),
        }
    }
    if details.dns {
        parts.extend(about.dns.iter().map(|name| format!("DNS={}", clean(name))));
    }
    parts.join(";")
}

/// Whoever made a certificate must not be able to add elements or keys by its names.
fn clean(value: &str) -> String {
    let bad = |c: char| c.is_control() || matches!(c, ',' | ';' | '"' | '\\');
    match value.contains(bad) {
        false => value.to_owned(),
        true => {
            let escaped = value.replace('\\', "\\\\").replace('"', "\\\"");
            let escaped: String = escaped.chars().filter(|c| !c.is_control()).collect();
            format!("\"{escaped}\"")
        }
    }
}
