//! What comes from outside, bent in every way: nothing panics, and nothing that was bent is
//! believed.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests stop at what is not as expected"
)]

use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lateen_identity::token::{CA_AUDIENCE, Subject, TokenIssuer, TokenVerifier, TrustedIssuer};
use lateen_identity::{Ca, CaOptions, Pieces, SpiffeId, TrustDomain, identity_of, not_after};
use proptest::prelude::*;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};
use zeroize::Zeroizing;

/// An authority with a request, a certificate and a token of a workload.
struct World {
    directory: tempfile::TempDir,
    ca: Ca,
    id: SpiffeId,
    request: Vec<u8>,
    certificate: Vec<u8>,
    verifier: TokenVerifier,
    token: String,
}

static WORLD: LazyLock<World> = LazyLock::new(|| {
    let directory = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    let ca = Ca::open(CaOptions::new(directory.path()), None, now).unwrap();
    let id = SpiffeId::parse("spiffe://cluster.local/ns/default/sa/reviews").unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let request = rcgen::CertificateParams::new(vec!["other".to_owned()]).unwrap();
    let request = request.serialize_request(&key).unwrap().pem().unwrap();
    let issued = ca
        .current()
        .issue(&request, &id, None, ca.lifetimes(), now)
        .unwrap();
    let issuer =
        TokenIssuer::open(&directory.path().join("token.pem"), "https://i.example").unwrap();
    let subject = Subject {
        namespace: "default".into(),
        service_account: "reviews".into(),
    };
    let token = issuer.issue(
        &subject,
        &[CA_AUDIENCE.to_owned()],
        Duration::from_secs(86_400),
        now,
    );
    World {
        request: CertificateSigningRequestDer::from_pem_slice(request.as_bytes())
            .unwrap()
            .to_vec(),
        certificate: CertificateDer::from_pem_slice(issued.chain[0].as_bytes())
            .unwrap()
            .to_vec(),
        verifier: TokenVerifier::new(vec![issuer.trusted()]),
        token: token.unwrap().token,
        directory,
        ca,
        id,
    }
});

/// How bytes are bent: one replaced, some cut off, some put in, two parts exchanged.
#[derive(Clone, Debug)]
enum Bend {
    Replace(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Insert(prop::sample::Index, Vec<u8>),
    Remove(prop::sample::Index, usize),
    Repeat(prop::sample::Index, usize),
}

fn bend() -> impl Strategy<Value = Bend> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        4 => (index(), any::<u8>()).prop_map(|(at, byte)| Bend::Replace(at, byte)),
        1 => index().prop_map(Bend::Cut),
        2 => (index(), prop::collection::vec(any::<u8>(), 1..8)).prop_map(|(at, bytes)| Bend::Insert(at, bytes)),
        2 => (index(), 1..16usize).prop_map(|(at, count)| Bend::Remove(at, count)),
        1 => (index(), 1..64usize).prop_map(|(at, count)| Bend::Repeat(at, count)),
    ]
}

fn bent(bytes: &[u8], bends: &[Bend]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for bend in bends {
        if bytes.is_empty() {
            break;
        }
        match bend {
            Bend::Replace(at, byte) => {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            Bend::Cut(at) => bytes.truncate(at.index(bytes.len())),
            Bend::Insert(at, more) => {
                let at = at.index(bytes.len());
                bytes.splice(at..at, more.iter().copied());
            }
            Bend::Remove(at, count) => {
                let at = at.index(bytes.len());
                let end = (at + count).min(bytes.len());
                bytes.drain(at..end);
            }
            Bend::Repeat(at, count) => {
                let at = at.index(bytes.len());
                let end = (at + count).min(bytes.len());
                let part = bytes[at..end].to_vec();
                bytes.splice(end..end, part);
            }
        }
    }
    bytes
}

fn pem(label: &str, der: &[u8]) -> String {
    format!(
        "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
        STANDARD.encode(der)
    )
}

fn public_key(certificate: &[u8]) -> Vec<u8> {
    use x509_parser::prelude::FromDer as _;
    let (_, read) = x509_parser::prelude::X509Certificate::from_der(certificate).unwrap();
    read.public_key().raw.to_vec()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn an_identity_that_is_read_has_the_spelling_it_was_read_from(text in "(spiffe://)?[a-zA-Z0-9./:%_~#?@\\-\u{0}-\u{20}é]{0,60}") {
        if let Ok(id) = SpiffeId::parse(&text) {
            prop_assert_eq!(id.to_string(), text);
        }
    }

    #[test]
    fn an_identity_that_is_written_is_read_as_itself(
        domain in "[a-z0-9._-]{1,40}",
        namespace in "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?",
        account in "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?(\\.[a-z0-9]{1,10}){0,3}",
    ) {
        let id = SpiffeId::new(TrustDomain::new(&domain).unwrap(), &namespace, &account).unwrap();
        prop_assert_eq!(SpiffeId::parse(&id.to_string()).unwrap(), id);
    }

    #[test]
    fn parts_of_an_identity_cannot_reach_into_each_other(
        namespace in "[a-z0-9/%.\\-]{0,20}",
        account in "[a-z0-9/%.\\-]{0,20}",
    ) {
        if let Ok(id) = SpiffeId::new(TrustDomain::default(), &namespace, &account) {
            let again = SpiffeId::parse(&id.to_string()).unwrap();
            prop_assert_eq!(again.namespace(), namespace);
            prop_assert_eq!(again.service_account(), account);
        }
    }

    #[test]
    fn bent_certificates_name_nobody_or_somebody_who_can_be_named(bends in prop::collection::vec(bend(), 1..4)) {
        let bytes = bent(&WORLD.certificate, &bends);
        let _ = not_after(&bytes);
        if let Ok(id) = identity_of(&bytes) {
            prop_assert_eq!(SpiffeId::parse(&id.to_string()).unwrap(), id);
        }
    }

    #[test]
    fn random_bytes_are_no_certificate(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(identity_of(&bytes).is_err());
    }

    #[test]
    fn a_bent_request_gets_no_certificate_for_another_key(bends in prop::collection::vec(bend(), 1..4)) {
        let world = &*WORLD;
        let bytes = bent(&world.request, &bends);
        let request = pem("CERTIFICATE REQUEST", &bytes);
        let issued = world.ca.current().issue(&request, &world.id, None, world.ca.lifetimes(), SystemTime::now());
        if let Ok(issued) = issued {
            let leaf = CertificateDer::from_pem_slice(issued.chain[0].as_bytes()).unwrap();
            prop_assert_eq!(public_key(&leaf), public_key(&world.certificate));
            prop_assert_eq!(identity_of(&leaf).unwrap(), world.id.clone());
        }
    }

    #[test]
    fn text_that_is_no_request_gets_no_certificate(text in "(-----BEGIN [A-Z ]{0,20}-----\n)?[ -~\n]{0,200}(-----END [A-Z ]{0,20}-----\n)?") {
        let world = &*WORLD;
        let issued = world.ca.current().issue(&text, &world.id, None, world.ca.lifetimes(), SystemTime::now());
        prop_assert!(issued.is_err());
    }

    #[test]
    fn a_token_of_which_anything_was_changed_is_not_believed(bends in prop::collection::vec(bend(), 1..4)) {
        let world = &*WORLD;
        let bytes = bent(world.token.as_bytes(), &bends);
        if let Ok(text) = String::from_utf8(bytes) && text != world.token {
            prop_assert!(world.verifier.verify(&text, CA_AUDIENCE, SystemTime::now()).is_err());
        }
    }

    #[test]
    fn random_text_is_no_token(text in "[A-Za-z0-9_.{}\":=\\-]{0,200}") {
        prop_assert!(WORLD.verifier.verify(&text, CA_AUDIENCE, SystemTime::now()).is_err());
    }

    #[test]
    fn random_key_sets_are_read_or_refused(text in "\\{\"keys\":\\[(\\{(\"(kty|crv|x|y|n|e|alg|use|kid)\":\"[A-Za-z0-9_-]{0,50}\",?){0,6}\\},?){0,3}\\]\\}") {
        let _ = TrustedIssuer::from_jwks("https://i.example", &text);
    }

    #[test]
    fn random_audiences_and_times_do_not_make_a_token_good(audience in "[a-z-]{0,12}", seconds in 86_400u64..1 << 40) {
        let world = &*WORLD;
        let now = SystemTime::now();
        if audience != CA_AUDIENCE {
            prop_assert!(world.verifier.verify(&world.token, &audience, now).is_err());
        }
        let later = now + Duration::from_secs(seconds);
        prop_assert!(world.verifier.verify(&world.token, CA_AUDIENCE, later).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// The file of the root, and the pieces of a given authority.
    #[test]
    fn bent_files_of_an_authority_are_refused_or_hold_together(bends in prop::collection::vec(bend(), 1..3), which in 0..3usize) {
        let world = &*WORLD;
        let good = std::fs::read(world.directory.path().join("ca/self-signed.pem")).unwrap();
        let text = String::from_utf8(good.clone()).unwrap();
        let at = text.find("-----BEGIN CERTIFICATE-----").unwrap();
        let (key, certificate) = text.split_at(at);
        let part = |index: usize, content: &str| match index == which {
            true => bent(content.as_bytes(), &bends),
            false => content.as_bytes().to_vec(),
        };
        let pieces = Pieces::find("x", |name| Ok(match name {
            "ca-key.pem" => Some(Zeroizing::new(part(0, key))),
            "ca-cert.pem" => Some(Zeroizing::new(part(1, certificate))),
            "root-cert.pem" => Some(Zeroizing::new(part(2, certificate))),
            _ => None,
        }));
        if let Ok(Some(pieces)) = pieces {
            let _ = pieces.authority(SystemTime::now());
        }

        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("ca")).unwrap();
        let path = directory.path().join("ca/self-signed.pem");
        let damaged = bent(&good, &bends);
        std::fs::write(&path, &damaged).unwrap();
        let opened = Ca::open(CaOptions::new(directory.path()), None, SystemTime::now());
        if opened.is_err() {
            prop_assert_eq!(std::fs::read(&path).unwrap(), damaged, "left as it is");
        }
    }
}
