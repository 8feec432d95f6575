//! Everybody who gets no certificate, each beside one who does.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use lateen_identity::token::{Subject, TokenIssuer};
use lateen_proto::istio_ca::{
    IstioCertificateRequest, IstioCertificateServiceClient, Kind, Metadata, Value,
};
use lateen_testkit::certificates::Authority;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request};

use crate::client::{Certificate, Plane, channel, create, csr};

const ISSUER: &str = "https://issuer.example";

fn subject() -> Subject {
    Subject {
        namespace: "default".into(),
        service_account: "reviews".into(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_that_prove_nothing_get_no_certificate() {
    let directory = Arc::new(tempfile::tempdir().unwrap());
    let at = |name: &str| directory.path().join(name);
    let issuer = TokenIssuer::open(&at("issuer.pem"), ISSUER).unwrap();
    let foreign_key = TokenIssuer::open(&at("foreign.pem"), ISSUER).unwrap();
    let foreign_issuer = TokenIssuer::open(&at("issuer.pem"), "https://other.example").unwrap();
    std::fs::write(at("keys.json"), issuer.jwks().to_string()).unwrap();
    let keys = at("keys.json");
    let plane = Plane::start_with(directory.clone(), |options| {
        options.token_issuers = vec![(ISSUER.to_owned(), keys)];
    })
    .await;
    let hour = Duration::from_secs(3_600);
    let now = SystemTime::now();
    let make = |issuer: &TokenIssuer, audience: &str, from: SystemTime| {
        let token = issuer.issue(&subject(), &[audience.to_owned()], hour, from);
        format!("Bearer {}", token.unwrap().token)
    };
    let good = make(&issuer, "istio-ca", now);
    let ask = async |authorization: Option<&str>| {
        create(plane.channel(None).await, authorization, 0).await
    };
    ask(Some(&good)).await.unwrap();

    let parts: Vec<&str> = good.split('.').collect();
    let none = format!(
        "Bearer {}.{}.",
        BASE64.encode(r#"{"alg":"none"}"#),
        parts[1]
    );
    let altered = {
        let claims = String::from_utf8(BASE64.decode(parts[1]).unwrap()).unwrap();
        let claims = BASE64.encode(claims.replace("reviews", "admin"));
        format!("{}.{claims}.{}", parts[0], parts[2])
    };
    let refused: [(&str, Option<String>, &str); 10] = [
        ("no token", None, "no token"),
        (
            "expired",
            Some(make(&issuer, "istio-ca", now - 2 * hour)),
            "has expired",
        ),
        (
            "of tomorrow",
            Some(make(&issuer, "istio-ca", now + 2 * hour)),
            "not yet valid",
        ),
        (
            "for others",
            Some(make(&issuer, "vault", now)),
            "have one made with this audience",
        ),
        (
            "unknown issuer",
            Some(make(&foreign_issuer, "istio-ca", now)),
            "issuer",
        ),
        (
            "foreign key",
            Some(make(&foreign_key, "istio-ca", now)),
            "signature",
        ),
        ("algorithm none", Some(none), "algorithm"),
        ("other claims", Some(altered), "signature"),
        (
            "basic",
            Some("Basic cmV2aWV3czpyZXZpZXdz".to_owned()),
            "no Bearer token",
        ),
        ("nonsense", Some("Bearer nonsense".to_owned()), "no signed"),
    ];
    for (who, authorization, because) in refused {
        let status = ask(authorization.as_deref()).await.expect_err(who);
        assert_eq!(status.code(), Code::Unauthenticated, "{who}: {status}");
        assert!(status.message().contains(because), "{who}: {status}");
    }

    // Two at once: whose would count?
    let mut request = Request::new(IstioCertificateRequest {
        csr: csr().0,
        ..Default::default()
    });
    for _ in 0..2 {
        let value = MetadataValue::try_from(good.as_str()).unwrap();
        request.metadata_mut().append("authorization", value);
    }
    let mut client = IstioCertificateServiceClient::new(plane.channel(None).await);
    let status = client.create_certificate(request).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "{status}");
    ask(Some(&good)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_that_prove_nothing_are_not_renewed() {
    // An authority of ours, so that it can sign anything.
    let directory = Arc::new(tempfile::tempdir().unwrap());
    let authority = Plugged::write(&directory.path().join("cacerts"));
    let at = directory.path().join("cacerts");
    let plane = Plane::start_with(directory, |options| options.plugged_ca = Some(at)).await;
    let ask = async |with: &Certificate| create(plane.channel(Some(with)).await, None, 0).await;
    let workload = "spiffe://cluster.local/ns/default/sa/reviews";
    ask(&authority.issue(&[workload], 3_600)).await.unwrap();

    let refused: [(&[&str], &str); 5] = [
        (
            &["spiffe://other.domain/ns/default/sa/reviews"],
            "trust domain other.domain",
        ),
        (&["istiod.istio-system.svc"], "0 URIs"),
        (
            &[workload, "spiffe://cluster.local/ns/default/sa/admin"],
            "2 URIs",
        ),
        (
            &["spiffe://cluster.local/reviews"],
            "not the identity of a workload",
        ),
        (
            &["https://cluster.local/ns/default/sa/reviews"],
            "not the identity of a workload",
        ),
    ];
    for (names, because) in refused {
        let status = ask(&authority.issue(names, 3_600))
            .await
            .expect_err(because);
        assert_eq!(status.code(), Code::Unauthenticated, "{names:?}: {status}");
        assert!(status.message().contains(because), "{names:?}: {status}");
    }

    // These do not get through the handshake.
    let foreign = Authority::new("foreign").issue("x", &[workload]);
    let foreign = Certificate {
        chain: vec![foreign.chain],
        key: foreign.key,
    };
    let expired = authority.issue(&[workload], -60);
    for with in [foreign, expired] {
        // In TLS 1.3 the client may hear of it when it has begun to send.
        let status = ask(&with).await.expect_err("no handshake");
        let closed = [Code::Unavailable, Code::Cancelled, Code::Unknown];
        assert!(closed.contains(&status.code()), "{status:?}");
    }
    // And one of ours does not talk to a control plane that it does not know.
    let roots = Authority::new("another").pem;
    let status = create(channel(plane.secure(), &roots, None), None, 0)
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_are_too_large_or_for_others_are_refused() {
    let plane = Plane::start().await;
    let token = format!(
        "Bearer {}",
        plane.token("default", "reviews", "istio-ca").await
    );
    let ask = async |csr: String, metadata: &[(&str, &str)]| {
        let fields = metadata.iter().map(|(name, text)| {
            let kind = Some(Kind::StringValue((*text).to_owned()));
            ((*name).to_owned(), Value { kind })
        });
        let mut request = Request::new(IstioCertificateRequest {
            csr,
            validity_duration: 0,
            metadata: Some(Metadata {
                fields: fields.collect(),
            }),
        });
        let value = MetadataValue::try_from(token.as_str()).unwrap();
        request.metadata_mut().insert("authorization", value);
        let mut client = IstioCertificateServiceClient::new(plane.channel(None).await);
        client
            .create_certificate(request)
            .await
            .map_err(|status| (status.code(), status.message().to_owned()))
    };
    ask(csr().0, &[]).await.unwrap();
    ask(csr().0, &[("ImpersonatedIdentity", ""), ("CertSigner", "")])
        .await
        .unwrap();
    let (code, text) = ask("x".repeat(20_000), &[]).await.unwrap_err();
    assert!(
        code == Code::InvalidArgument && text.contains("more than"),
        "{text}"
    );
    let (code, _) = ask("x".repeat(100_000), &[]).await.unwrap_err();
    assert_eq!(code, Code::OutOfRange);
    let other = "spiffe://cluster.local/ns/default/sa/admin";
    let (code, _) = ask(csr().0, &[("ImpersonatedIdentity", other)])
        .await
        .unwrap_err();
    assert_eq!(code, Code::Unauthenticated);
    let (code, _) = ask(csr().0, &[("CertSigner", "other")]).await.unwrap_err();
    assert_eq!(code, Code::InvalidArgument);
}

/// A root that is its own authority, in files, and that signs whatever a test wants.
pub struct Plugged {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    root: String,
}

impl Plugged {
    pub fn write(directory: &std::path::Path) -> Self {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
        let key = rcgen::KeyPair::generate().unwrap();
        let root = params.self_signed(&key).unwrap().pem();
        std::fs::create_dir_all(directory).unwrap();
        for (name, content) in [
            ("ca-key.pem", key.serialize_pem()),
            ("ca-cert.pem", root.clone()),
            ("root-cert.pem", root.clone()),
        ] {
            std::fs::write(directory.join(name), content).unwrap();
        }
        Self {
            issuer: rcgen::Issuer::new(params, key),
            root,
        }
    }

    pub fn issue(&self, names: &[&str], seconds: i64) -> Certificate {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let names = names.iter().map(|name| match name.contains("://") {
            true => rcgen::SanType::URI((*name).try_into().unwrap()),
            false => rcgen::SanType::DnsName((*name).try_into().unwrap()),
        });
        params.subject_alt_names = names.collect();
        let now = time::OffsetDateTime::now_utc();
        params.not_before = now - Duration::from_secs(120);
        params.not_after = now + time::Duration::seconds(seconds);
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let key = rcgen::KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.issuer).unwrap().pem();
        Certificate {
            chain: vec![leaf, self.root.clone()],
            key: key.serialize_pem(),
        }
    }
}
