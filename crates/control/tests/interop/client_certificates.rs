//! Certificates of clients at a gateway: what is passed on of them, which are taken; and several
//! certificates of the gateway itself.

use std::net::SocketAddr;

use lateen_testkit::certificates::{Authority, Pair, Said, run};
use lateen_testkit::envoy::Plane;
use lateen_testkit::eventually;
use lateen_testkit::http::Call;
use serde_json::Value;

use crate::mesh::loopback;
use crate::mesh_settings::config_map;
use crate::secure_gateway::{
    Secure, TO_REVIEWS, block, gateway, path, routes, secret, secret_with_authority,
};

on_both!(
    what_is_told_of_a_clients_certificate_is_as_the_mesh_says,
    clients_whose_certificates_were_revoked_are_refused,
    clients_are_known_by_their_keys_or_not_looked_at,
    a_server_has_a_certificate_for_each_kind_of_key,
    a_gateway_listens_at_the_address_of_its_server,
);

/// Files of a client's certificate, as options for curl.
struct Client([String; 4]);

impl Client {
    fn new(secure: &Secure, name: &str, pair: &Pair) -> Self {
        let file =
            |kind: &str, content: &str| path(&secure.mesh, &format!("{name}.{kind}"), content);
        let (certificate, key) = (file("crt", &pair.chain), file("key", &pair.key));
        Client(["--cert".to_owned(), certificate, "--key".to_owned(), key])
    }

    fn options(&self) -> Vec<&str> {
        self.0.iter().map(String::as_str).collect()
    }
}

/// What the application got of a header; none when there was no answer of it.
fn got(said: &Said, header: &str) -> Option<String> {
    let mut values = serde_json::Deserializer::from_str(&said.text).into_iter::<Value>();
    let body = values.next()?.ok()?;
    body["name"].as_str()?;
    Some(
        body["headers"][header]
            .as_str()
            .unwrap_or_default()
            .to_owned(),
    )
}

async fn fingerprint(client: &Client) -> String {
    let options = [
        "x509",
        "-in",
        &client.0[1],
        "-noout",
        "-fingerprint",
        "-sha256",
    ];
    let said = run("openssl", &options).await.text;
    let hash = said.trim().split('=').nth(1).unwrap().replace(':', "");
    hash.to_ascii_lowercase()
}

/// As in a URL (BoringSSL's PEM, in which Envoy escapes what has a meaning in a header).
fn url_encoded(pem: &str) -> String {
    let mut out = String::new();
    for c in pem.replace("\r\n", "\n").chars() {
        match c {
            '\n' => out += "%0A",
            ' ' => out += "%20",
            '+' => out += "%2B",
            '/' => out += "%2F",
            '=' => out += "%3D",
            c => out.push(c),
        }
    }
    out
}

const BEFORE: &str = "By=spiffe://before;Hash=00";

async fn what_is_told_of_a_clients_certificate_is_as_the_mesh_says(plane: Plane) {
    let test = "what_is_told_of_a_clients_certificate_is_as_the_mesh_says";
    let Some(secure) = Secure::start(plane, test).await else {
        return;
    };
    let also = ["must.test", "spiffe://test/gateway"];
    let server = secure.authority.issue("server", &also);
    let clients = Authority::new("clients");
    let pair = clients.issue("client", &["spiffe://test/a", "client.test", "other.test"]);
    let client = Client::new(&secure, "client", &pair);
    let beside = secret_with_authority("web", &server, &clients.pem);
    let objects = [
        beside,
        gateway(
            "must",
            443,
            "HTTPS",
            "must.test",
            "mode: MUTUAL, credentialName: web",
        ),
        gateway(
            "may",
            8443,
            "HTTPS",
            "must.test",
            "mode: SIMPLE, credentialName: web",
        ),
        routes("must.test", "must, may", TO_REVIEWS),
    ];
    secure.mesh.apply(&objects.concat()).await;
    secure
        .answers(secure.https, "must.test", &client.options(), " 200 2")
        .await;
    secure
        .answers(secure.other, "must.test", &[], " 200 2")
        .await;

    let own = format!(
        "By=spiffe://test/gateway;Hash={};Cert=\"{}\";Subject=\"CN=client\";URI=spiffe://test/a;\
         DNS=client.test;DNS=other.test",
        fingerprint(&client).await,
        url_encoded(&pair.chain)
    );
    let appended = format!("{BEFORE},{own}");
    // With a certificate, and without one.
    for (mode, with, without) in [
        ("SANITIZE_SET", own.as_str(), ""),
        ("APPEND_FORWARD", &appended, ""),
        ("FORWARD_ONLY", BEFORE, ""),
        ("SANITIZE", "", ""),
        ("ALWAYS_FORWARD_ONLY", BEFORE, BEFORE),
    ] {
        let topology =
            format!("defaultConfig:\n  gatewayTopology:\n    forwardClientCertDetails: {mode}\n");
        secure.mesh.apply(&config_map(&topology)).await;
        secure.mesh.distributed(1).await;
        let header = format!("x-forwarded-client-cert: {BEFORE}");
        eventually(mode, async || {
            let mut options = client.options();
            options.extend(["-H", &header]);
            let said = secure.curl(secure.https, "must.test", &options).await;
            let mutual = got(&said, "x-forwarded-client-cert");
            let said = secure
                .curl(secure.other, "must.test", &["-H", &header])
                .await;
            let simple = got(&said, "x-forwarded-client-cert");
            match (mutual.as_deref(), simple.as_deref()) {
                (Some(a), Some(b)) if a == with && b == without => Ok(()),
                other => Err(format!("{other:?}, not {with:?} and {without:?}")),
            }
        })
        .await;
    }
    secure.rejected_nothing().await;
}

/// Files of a server for MUTUAL, as fields of `tls`.
fn files(secure: &Secure, server: &Pair, clients: &Authority) -> String {
    format!(
        "mode: MUTUAL, serverCertificate: {}, privateKey: {}, caCertificates: {}",
        path(&secure.mesh, "server.crt", &server.chain),
        path(&secure.mesh, "server.key", &server.key),
        path(&secure.mesh, "clients.pem", &clients.pem),
    )
}

async fn check(secure: &Secure, to: SocketAddr, host: &str, client: &Client, expect: bool) {
    let said = secure.curl(to, host, &client.options()).await;
    assert_eq!(said.success, expect, "{host} {:?}: {said:?}", client.0);
}

async fn clients_whose_certificates_were_revoked_are_refused(plane: Plane) {
    let test = "clients_whose_certificates_were_revoked_are_refused";
    let Some(secure) = Secure::start(plane, test).await else {
        return;
    };
    let server = secure
        .authority
        .issue("server", &["files.test", "secret.test"]);
    let clients = Authority::new("clients");
    let (good, revoked) = (clients.issue("good", &[]), clients.issue("revoked", &[]));
    let list = clients.revokes(&[&revoked]);
    let by_files = files(&secure, &server, &clients);
    let crl = path(&secure.mesh, "revoked.pem", &list);
    let with_list = secret("web", "istio-system", &server).replace(
        "stringData:\n",
        &format!(
            "stringData:\n  ca.crt: |\n    {}\n  ca.crl: |\n    {}\n",
            block(&clients.pem),
            block(&list)
        ),
    );
    let objects = [
        with_list,
        gateway(
            "files",
            443,
            "HTTPS",
            "files.test",
            &format!("{by_files}, caCrl: {crl}"),
        ),
        gateway(
            "secret",
            443,
            "HTTPS",
            "secret.test",
            "mode: MUTUAL, credentialName: web",
        ),
        // Whoever does not look at the list does not know.
        gateway("trusting", 8443, "HTTPS", "files.test", &by_files),
        routes("files.test", "files, trusting", TO_REVIEWS),
        routes("secret.test", "secret", TO_REVIEWS),
    ];
    secure.mesh.apply(&objects.concat()).await;
    let good = Client::new(&secure, "good", &good);
    let revoked = Client::new(&secure, "revoked", &revoked);
    for host in ["files.test", "secret.test"] {
        secure
            .answers(secure.https, host, &good.options(), " 200 2")
            .await;
        check(&secure, secure.https, host, &revoked, false).await;
    }
    secure
        .answers(secure.other, "files.test", &revoked.options(), " 200 2")
        .await;
    secure.rejected_nothing().await;
}

/// The hash of a certificate's key, as `verifyCertificateSpki` wants it.
async fn key_hash(client: &Client) -> String {
    let script = format!(
        "openssl x509 -in {} -noout -pubkey | openssl pkey -pubin -outform der | \
         openssl dgst -sha256 -binary | openssl base64",
        client.0[1]
    );
    run("sh", &["-c", &script]).await.text.trim().to_owned()
}

async fn clients_are_known_by_their_keys_or_not_looked_at(plane: Plane) {
    let test = "clients_are_known_by_their_keys_or_not_looked_at";
    let Some(secure) = Secure::start(plane, test).await else {
        return;
    };
    let server = secure
        .authority
        .issue("server", &["pinned.test", "any.test"]);
    let clients = Authority::new("clients");
    let [one, two] =
        ["one", "two"].map(|name| Client::new(&secure, name, &clients.issue(name, &[])));
    let stranger = Authority::new("strangers").issue("stranger", &[]);
    let stranger = Client::new(&secure, "stranger", &stranger);
    let tls = files(&secure, &server, &clients);
    let pin = key_hash(&one).await;
    let objects = [
        gateway(
            "pinned",
            443,
            "HTTPS",
            "pinned.test",
            &format!("{tls}, verifyCertificateSpki: ['{pin}']"),
        ),
        gateway(
            "any",
            8443,
            "HTTPS",
            "any.test",
            &format!("{tls}, insecureSkipVerify: true"),
        ),
        routes("pinned.test", "pinned", TO_REVIEWS),
        routes("any.test", "any", TO_REVIEWS),
    ];
    secure.mesh.apply(&objects.concat()).await;
    secure
        .answers(secure.https, "pinned.test", &one.options(), " 200 2")
        .await;
    check(&secure, secure.https, "pinned.test", &two, false).await;
    check(&secure, secure.https, "pinned.test", &stranger, false).await;
    // Any certificate, but one.
    secure
        .answers(secure.other, "any.test", &stranger.options(), " 200 2")
        .await;
    let said = secure.curl(secure.other, "any.test", &[]).await;
    assert!(!said.success, "{said:?}");
    secure.rejected_nothing().await;
}

async fn a_server_has_a_certificate_for_each_kind_of_key(plane: Plane) {
    let test = "a_server_has_a_certificate_for_each_kind_of_key";
    let Some(secure) = Secure::start(plane, test).await else {
        return;
    };
    let hosts = ["secrets.test", "files.test", "clients.test"];
    let curve = secure.authority.issue("curve", &hosts);
    let rsa = secure.authority.issue_rsa("rsa", &hosts);
    let clients = Authority::new("clients");
    let client = Client::new(&secure, "client", &clients.issue("client", &[]));
    let stranger = Authority::new("strangers").issue("stranger", &[]);
    let stranger = Client::new(&secure, "stranger", &stranger);
    let file = |name: &str, content: &str| path(&secure.mesh, name, content);
    let pair = |name: &str, pair: &Pair| {
        format!(
            "{{serverCertificate: {}, privateKey: {}}}",
            file(&format!("{name}.crt"), &pair.chain),
            file(&format!("{name}.key"), &pair.key)
        )
    };
    let both = format!(
        "tlsCertificates: [{}, {}]",
        pair("rsa", &rsa),
        pair("curve", &curve)
    );
    let objects = [
        secret("curve", "istio-system", &curve),
        secret("rsa", "istio-system", &rsa),
        format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: those, namespace: istio-system}}\n\
             stringData:\n  ca.crt: |\n    {}\n---\n",
            block(&clients.pem)
        ),
        gateway(
            "secrets",
            443,
            "HTTPS",
            "secrets.test",
            "mode: SIMPLE, credentialNames: [curve, rsa]",
        ),
        gateway(
            "files",
            443,
            "HTTPS",
            "files.test",
            &format!("mode: SIMPLE, {both}"),
        ),
        gateway(
            "clients",
            443,
            "HTTPS",
            "clients.test",
            "mode: MUTUAL, credentialName: curve, caCertCredentialName: those",
        ),
        routes("secrets.test", "secrets", TO_REVIEWS),
        routes("files.test", "files", TO_REVIEWS),
        routes("clients.test", "clients", TO_REVIEWS),
    ];
    secure.mesh.apply(&objects.concat()).await;
    for host in ["secrets.test", "files.test"] {
        for (kind, name) in [("RSA", "rsa"), ("ECDSA", "curve")] {
            let cipher = format!("ECDHE-{kind}-AES128-GCM-SHA256");
            let options = ["--tls-max", "1.2", "--ciphers", &cipher, "-v"];
            let subject = format!("subject: CN={name}");
            eventually(&format!("{host} shows {name}"), async || {
                let said = secure.curl(secure.https, host, &options).await;
                let told = [subject.as_str(), " 200 2"];
                match said.success && told.iter().all(|part| said.text.contains(part)) {
                    true => Ok(()),
                    false => Err(format!("{said:?}")),
                }
            })
            .await;
        }
    }
    secure
        .answers(secure.https, "clients.test", &client.options(), " 200 2")
        .await;
    check(&secure, secure.https, "clients.test", &stranger, false).await;
    secure.rejected_nothing().await;
}

async fn a_gateway_listens_at_the_address_of_its_server(plane: Plane) {
    let test = "a_gateway_listens_at_the_address_of_its_server";
    let Some(secure) = Secure::start(plane, test).await else {
        return;
    };
    let document = "
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: bound, namespace: default}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: 8443, name: bound, protocol: HTTP}
    bind: 127.0.0.3
    name: bound
    hosts: [bound.test]
";
    secure.mesh.apply(document).await;
    secure
        .mesh
        .apply(&routes("bound.test", "bound", TO_REVIEWS))
        .await;
    let call = Call::get("bound.test", "/");
    let at = SocketAddr::from(([127, 0, 0, 3], secure.other.port()));
    eventually("the server answers at its address", async || {
        match call.send(at).await?.status {
            200 => Ok(()),
            other => Err(other.to_string()),
        }
    })
    .await;
    let elsewhere = call.send(loopback(secure.other.port())).await;
    assert!(elsewhere.is_err(), "{elsewhere:?}");
    secure.rejected_nothing().await;
}
