//! Secrets: what of them is wrong is told at the field, and nothing of them is repeated.

use std::fmt::Write as _;

use lateen_api::{Mode, parse};

/// A certificate and its key.
#[allow(
    clippy::unwrap_used,
    reason = "a test stops at what is not as expected"
)]
fn pair() -> (String, String) {
    let made = rcgen::generate_simple_self_signed(["web.test".to_owned()]).unwrap();
    (made.cert.pem(), made.signing_key.serialize_pem())
}

/// A Secret with entries below `stringData`.
fn secret(secret_type: &str, entries: &[(&str, &str)]) -> String {
    let mut text = format!(
        "apiVersion: v1\nkind: Secret\nmetadata:\n  name: web\ntype: {secret_type}\nstringData:\n"
    );
    for (name, value) in entries {
        let value = value.trim_end().replace('\n', "\n    ");
        let _ = writeln!(text, "  {name}: |\n    {value}");
    }
    text
}

/// The findings, each with its line and without what is not about the field.
#[track_caller]
fn check(text: &str, expected: &[&str]) {
    let parsed = parse("web.yaml", text, Mode::Strict);
    let found: Vec<String> = parsed.diagnostics.iter().map(ToString::to_string).collect();
    assert_eq!(found.len(), expected.len(), "{found:?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.contains(expected), "{found}\nlacks\n{expected}");
    }
    let shown = parsed.render(text, false);
    for line in text.lines().filter(|line| line.len() > 40) {
        assert!(!shown.contains(line.trim()), "{shown}");
    }
}

#[test]
fn a_certificate_has_to_fit_its_key() {
    let tls = "kubernetes.io/tls";
    let ((certificate, key), (_, other_key)) = (pair(), pair());
    check(
        &secret(tls, &[("tls.crt", &certificate), ("tls.key", &key)]),
        &[],
    );
    check(
        &secret(tls, &[("tls.crt", &certificate), ("tls.key", &other_key)]),
        &["the private key does not fit the certificate"],
    );
    check(
        &secret(tls, &[("tls.crt", "nothing"), ("tls.key", &key)]),
        &["web.yaml:8:5: error: stringData[\"tls.crt\"]: no certificate in PEM form"],
    );
    check(
        &secret(tls, &[("tls.crt", &certificate), ("tls.key", "nothing")]),
        &["no private key in PEM form"],
    );
    let cut = &certificate[..200];
    check(
        &secret(tls, &[("tls.crt", cut), ("tls.key", &key)]),
        &["tls.crt"],
    );
    check(&secret(tls, &[("tls.key", &key)]), &["needs tls.crt"]);
    check(
        &secret(tls, &[("tls.crt", &certificate)]),
        &["needs tls.key"],
    );
}

#[test]
fn other_secrets_hold_what_they_like_unless_it_looks_like_a_certificate() {
    let ((certificate, key), (_, other_key)) = (pair(), pair());
    check(
        &secret("Opaque", &[("key", "an api key"), ("cert", "none")]),
        &[],
    );
    check(
        &secret("Opaque", &[("cert", &certificate), ("key", &key)]),
        &[],
    );
    check(
        &secret("Opaque", &[("cert", &certificate), ("key", &other_key)]),
        &["stringData.key: the private key does not fit"],
    );
    check(
        &secret("Opaque", &[("cert", &certificate)]),
        &["warning: stringData.cert: cert without key"],
    );
    check(
        &secret("Opaque", &[("cacert", &certificate[..200])]),
        &["stringData.cacert: "],
    );
    let data = "apiVersion: v1\nkind: Secret\nmetadata: {name: a}\ndata:\n  a: \"*not base64*\"\n  b/c: aGVsbG8=\n";
    check(data, &["data.a: not base64", "consists of letters"]);
    let number = "apiVersion: v1\nkind: Secret\nmetadata: {name: a}\nstringData: {pin: 1234}\n";
    let parsed = parse("web.yaml", number, Mode::Strict);
    let shown = parsed.render(number, false);
    assert!(parsed.has_errors() && !shown.contains("1234"), "{shown}");
}
