//! From token to certificate to renewed certificate, over TLS that openssl agrees with.

use lateen_identity::identity_of;
use lateen_testkit::certificates::{file, run, s_client};
use tonic::Code;

use crate::client::{ISTIOD, Plane, certificates, create};

const REVIEWS: &str = "spiffe://cluster.local/ns/default/sa/reviews";

async fn openssl_verifies(plane: &Plane, chain: &[String]) {
    let leaf = file(plane.path(), "leaf.pem", &chain[0]);
    let root = file(plane.path(), "root.pem", chain.last().unwrap());
    let between = file(
        plane.path(),
        "between.pem",
        &chain[..chain.len() - 1].concat(),
    );
    let [leaf, root, between] = [&leaf, &root, &between].map(|path| path.to_str().unwrap());
    for purpose in ["sslclient", "sslserver"] {
        let arguments = [
            "verify",
            "-x509_strict",
            "-purpose",
            purpose,
            "-CAfile",
            root,
            "-untrusted",
            between,
            leaf,
        ];
        let said = run("openssl", &arguments).await;
        assert!(said.success, "{said:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_gets_a_certificate_and_the_certificate_gets_the_next_one() {
    let plane = Plane::start().await;
    let first = plane.certificate("default", "reviews").await;
    openssl_verifies(&plane, &first.chain).await;
    let leaf = certificates(&first.chain[0]);
    assert_eq!(identity_of(&leaf[0]).unwrap().to_string(), REVIEWS);
    assert_eq!(first.chain.last().unwrap(), &plane.roots().await);

    // No token this time.
    let again = create(plane.channel(Some(&first)).await, None, 3_600)
        .await
        .unwrap();
    openssl_verifies(&plane, &again.chain).await;
    let leaf = certificates(&again.chain[0]);
    assert_eq!(identity_of(&leaf[0]).unwrap().to_string(), REVIEWS);
    assert_ne!(again.chain[0], first.chain[0]);

    let metrics = lateen_testkit::http::Call::get("127.0.0.1", "/metrics");
    let metrics = metrics
        .send(plane.control.addresses().monitoring)
        .await
        .unwrap()
        .body;
    assert!(
        metrics.contains("citadel_server_success_cert_issuance_count 2\n"),
        "{metrics}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openssl_agrees_with_the_certificate_of_the_control_plane() {
    let plane = Plane::start().await;
    let root = file(plane.path(), "root.pem", &plane.roots().await);
    let root = root.to_str().unwrap();
    let tries: [(&str, &[&str], bool); 7] = [
        (ISTIOD, &["-verify_hostname", ISTIOD, "-alpn", "h2"], true),
        (
            "localhost",
            &["-verify_hostname", "localhost", "-alpn", "h2"],
            true,
        ),
        ("", &["-verify_ip", "127.0.0.1", "-alpn", "h2"], true),
        (
            ISTIOD,
            &["-tls1_2", "-verify_hostname", ISTIOD, "-alpn", "h2"],
            true,
        ),
        (
            "other.example",
            &["-verify_hostname", "other.example", "-alpn", "h2"],
            false,
        ),
        (
            ISTIOD,
            &["-tls1_1", "-verify_hostname", ISTIOD, "-alpn", "h2"],
            false,
        ),
        (
            ISTIOD,
            &["-verify_hostname", ISTIOD, "-alpn", "http/1.1"],
            false,
        ),
    ];
    for (name, more, good) in tries {
        let mut arguments = vec!["-CAfile", root, "-verify_return_error"];
        arguments.extend(more);
        let said = s_client(plane.secure(), name, &arguments).await;
        assert_eq!(said.success, good, "{name} {more:?}: {said:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_keeps_root_and_tokens() {
    let plane = Plane::start().await;
    let roots = plane.roots().await;
    let token = plane.token("default", "reviews", "istio-ca").await;
    let certificate = plane.certificate("default", "reviews").await;
    let plane = plane.restart(|_| ()).await;
    assert_eq!(plane.roots().await, roots);
    let channel = plane.channel(None).await;
    create(channel, Some(&format!("Bearer {token}")), 0)
        .await
        .unwrap();
    create(plane.channel(Some(&certificate)).await, None, 0)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_validity_that_is_asked_for_is_bounded() {
    let plane = Plane::start().await;
    let token = format!(
        "Bearer {}",
        plane.token("default", "reviews", "istio-ca").await
    );
    let ask = async |seconds| create(plane.channel(None).await, Some(&token), seconds).await;
    ask(60).await.unwrap();
    ask(90 * 24 * 3_600).await.unwrap();
    ask(-1).await.unwrap();
    for seconds in [90 * 24 * 3_600 + 1, i64::MAX] {
        let refused = ask(seconds).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert!(refused.message().contains("longest"), "{refused}");
    }
}
