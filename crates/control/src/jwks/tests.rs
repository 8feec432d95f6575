//! Fetches of keys from servers that are right, wrong, slow, far away or not to be asked.

use super::*;
use lateen_testkit::certificates::{Authority, file};
use lateen_testkit::tokens::{Issuer, KeyServer};
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(5);

fn fetcher(blocked: &[&str], roots: Option<&PathBuf>) -> Fetcher {
    let blocked = blocked.iter().map(|cidr| Cidr::parse(cidr).unwrap());
    Fetcher::new(blocked.collect(), roots, None).unwrap()
}

fn at(uri: &str) -> KeySource {
    KeySource {
        issuer: "issuer".to_owned(),
        uri: uri.to_owned(),
    }
}

async fn fails(fetcher: &Fetcher, source: &KeySource, words: &str) {
    let error = fetcher.keys(source, LIMIT).await.unwrap_err().to_string();
    assert!(error.contains(words), "{words:?} is not in {error:?}");
}

#[test]
fn addresses_in_blocks() {
    let check = |cidr: &str, address: &str, expect: bool| {
        let cidr = Cidr::parse(cidr).unwrap();
        let found = cidr.contains(address.parse().unwrap());
        assert_eq!(found, expect, "{cidr} {address}");
    };
    check("10.0.0.0/8", "10.255.0.1", true);
    check("10.0.0.0/8", "11.0.0.1", false);
    check("169.254.169.254/32", "169.254.169.254", true);
    check("169.254.169.254/32", "169.254.169.253", false);
    check("127.0.0.0/8", "::ffff:127.0.0.1", true);
    check("0.0.0.0/0", "8.8.8.8", true);
    check("0.0.0.0/0", "::1", false);
    check("fd00::/8", "fd12::1", true);
    for wrong in ["", "10.0.0.0", "10.0.0.0/33", "x/8", "::/129"] {
        assert!(Cidr::parse(wrong).is_err(), "{wrong}");
    }
}

#[tokio::test]
async fn keys_by_uri_by_discovery_and_over_redirects() {
    let server = KeyServer::start().await;
    let issuer = Issuer::new(&server.url("/tenant/"));
    let fetcher = fetcher(&[], None);
    server.page("/keys", 200, &issuer.jwks());
    server.redirect("/moved", "/keys");
    server.redirect("/far", &server.url("/moved"));
    server.redirect("/round", "/round");
    for path in ["/keys", "/moved", "/far"] {
        let keys = fetcher.keys(&at(&server.url(path)), LIMIT).await.unwrap();
        assert_eq!(&*keys, issuer.jwks(), "{path}");
    }
    fails(
        &fetcher,
        &at(&server.url("/round")),
        "more than 5 redirects",
    )
    .await;
    assert_eq!(server.hits("/round"), 6);

    let discovered = KeySource {
        issuer: issuer.name.clone(),
        uri: String::new(),
    };
    let document = "/tenant/.well-known/openid-configuration";
    fails(&fetcher, &discovered, "status 404").await;
    server.page(document, 200, "{}");
    fails(&fetcher, &discovered, "does not say a jwks_uri").await;
    let says = json!({"jwks_uri": server.url("/keys")}).to_string();
    server.page(document, 200, &says);
    let keys = fetcher.keys(&discovered, LIMIT).await.unwrap();
    assert_eq!(&*keys, issuer.jwks());
    let says = json!({"jwks_uri": "ftp://keys.test/x"}).to_string();
    server.page(document, 200, &says);
    fails(&fetcher, &discovered, "neither http nor https").await;
}

#[tokio::test]
async fn what_is_no_key_set_or_comes_without_end_is_refused() {
    let server = KeyServer::start().await;
    let fetcher = fetcher(&[], None);
    let source = at(&server.url("/keys"));
    for (body, words) in [
        ("<html>", "it is not JSON"),
        ("{}", "it has no \"keys\""),
        (r#"{"keys": []}"#, "\"keys\" is empty"),
    ] {
        server.page("/keys", 200, body);
        fails(&fetcher, &source, words).await;
    }
    server.page("/keys", 200, &" ".repeat(MAX_BODY + 1));
    fails(&fetcher, &source, "larger than").await;
    // Takes the connection and says nothing.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("http://{}/", silent.local_addr().unwrap());
    let slow = fetcher.keys(&at(&uri), Duration::from_millis(100)).await;
    assert!(
        slow.unwrap_err()
            .to_string()
            .contains("no answer within 100ms")
    );
}

#[tokio::test]
async fn nothing_is_fetched_from_blocked_addresses_not_even_over_a_redirect() {
    let server = KeyServer::start().await;
    let issuer = Issuer::new("issuer");
    server.page("/keys", 200, &issuer.jwks());
    let blocked = fetcher(&["127.0.0.0/8"], None);
    for host in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]"] {
        let uri = format!("http://{host}:{}/keys", server.port());
        let error = blocked
            .keys(&at(&uri), LIMIT)
            .await
            .unwrap_err()
            .to_string();
        // `localhost` may also be ::1, where nobody listens.
        let told = error.contains("which is blocked") || error.contains("::1");
        assert!(told, "{error}");
    }
    assert_eq!(server.hits("/keys"), 0);
    let only_one = fetcher(&["127.0.0.2/32"], None);
    let elsewhere = format!("http://127.0.0.2:{}/keys", server.port());
    server.redirect("/moved", &elsewhere);
    fails(&only_one, &at(&server.url("/moved")), "which is blocked").await;
    assert!(
        only_one
            .keys(&at(&server.url("/keys")), LIMIT)
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn https_needs_a_certificate_of_somebody_trusted_for_that_host() {
    let authority = Authority::new("keys");
    let directory = tempfile::tempdir().unwrap();
    let roots = file(directory.path(), "roots.pem", &authority.pem);
    let right = authority.issue("localhost", &["localhost"]);
    let server = KeyServer::over_tls(right.server(None, &[])).await;
    let issuer = Issuer::new("issuer");
    server.page("/keys", 200, &issuer.jwks());
    server.redirect("/down", &server.url("/keys"));
    let uri = |path: &str| at(&format!("https://localhost:{}{path}", server.port()));
    let trusting = fetcher(&[], Some(&roots));
    let keys = trusting.keys(&uri("/keys"), LIMIT).await.unwrap();
    assert_eq!(&*keys, issuer.jwks());
    fails(&trusting, &uri("/down"), "gives up TLS").await;
    // Nor does the document of an issuer lead there.
    let issuer = KeySource {
        issuer: format!("https://localhost:{}", server.port()),
        uri: String::new(),
    };
    let document = |uri: &str| json!({"jwks_uri": uri}).to_string();
    let place = "/.well-known/openid-configuration";
    server.page(place, 200, &document("http://localhost/keys"));
    fails(&trusting, &issuer, "gives up TLS").await;
    let keys = format!("https://localhost:{}/keys", server.port());
    server.page(place, 200, &document(&keys));
    trusting.keys(&issuer, LIMIT).await.unwrap();
    // Nobody vouches for it without the file.
    fails(&fetcher(&[], None), &uri("/keys"), "TLS:").await;
    // The certificate is another host's.
    let other = authority.issue("other.test", &["other.test"]);
    let server = KeyServer::over_tls(other.server(None, &[])).await;
    let uri = at(&format!("https://localhost:{}/keys", server.port()));
    fails(&trusting, &uri, "TLS:").await;
}
