//! TLS and PROXY headers towards services, as DestinationRules ask for them.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use lateen_testkit::certificates::{Authority, file};
use lateen_testkit::echo::Echo;
use lateen_testkit::envoy::Plane;
use lateen_testkit::http::Call;
use lateen_testkit::settles;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::gateway::rule;
use crate::mesh::{Gateway, Mesh};

/// A service outside, `HOST:80`, whose endpoint is on this machine. The client speaks HTTP.
pub fn outside(host: &str, protocol: &str, port: u16) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
         metadata: {{name: {name}, namespace: default}}\n\
         spec:\n  hosts: [{host}]\n  location: MESH_EXTERNAL\n  resolution: STATIC\n  \
         ports: [{{number: 80, name: web, protocol: {protocol}, targetPort: {port}}}]\n  \
         endpoints: [{{address: 127.0.0.1}}]\n---\n",
        name = host.replace('.', "-")
    )
}

/// How connections to `HOST` are made.
pub fn policy(host: &str, policy: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
         metadata: {{name: {name}, namespace: default}}\n\
         spec:\n  host: {host}\n  trafficPolicy: {{{policy}}}\n---\n",
        name = host.replace('.', "-")
    )
}

/// A rule that sends a host of the gateway to the service of that name.
fn forwarded(host: &str) -> String {
    rule(
        host,
        &format!("  - route: [{{destination: {{host: {host}}}}}]"),
    )
}

struct Scene {
    mesh: Mesh,
    gateway: Gateway,
    authority: Authority,
    /// File of the authority's certificate.
    roots: String,
}

impl Scene {
    async fn start(plane: Plane, test: &str) -> Option<Scene> {
        let mesh = Mesh::start().await;
        let gateway = Gateway::start(plane, &mesh, test, true).await?;
        let authority = Authority::new("The authority");
        let roots = file(mesh.directory(), "roots.pem", &authority.pem);
        Some(Scene {
            mesh,
            gateway,
            authority,
            roots: text(&roots),
        })
    }

    /// What was agreed on with the server, once `expect` comes true of it.
    async fn agreed(&self, host: &str, expect: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        settles(&format!("TLS to {host}"), async || {
            let answer = self.gateway.get(host, "/").await;
            last = answer.json();
            match answer.status == 200 && expect(&last) {
                true => Ok(()),
                false => Err(format!("{answer:?}")),
            }
        })
        .await;
        last["tls"].clone()
    }

    /// Waits until requests to the host end with this status.
    async fn fails(&self, host: &str, status: u16) {
        settles(&format!("{status} from {host}"), async || {
            let answer = self.gateway.get(host, "/").await;
            match answer.status == status {
                true => Ok(()),
                false => Err(format!("{answer:?}")),
            }
        })
        .await;
    }
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

async fn a_service_outside_is_reached_over_tls_and_must_prove_its_name(plane: Plane) {
    let test = "a_service_outside_is_reached_over_tls_and_must_prove_its_name";
    let Some(scene) = Scene::start(plane, test).await else {
        return;
    };
    let roots = &scene.roots;
    let pair = scene
        .authority
        .issue("secure.test", &["secure.test", "alias.test"]);
    let echo = Echo::over_tls("secure", pair.server(None, &["h2", "http/1.1"])).await;
    let mut objects = String::new();
    for (host, protocol, tls) in [
        // The name is the request's, and the certificate must be for it.
        (
            "secure.test",
            "HTTP",
            format!("mode: SIMPLE, caCertificates: {roots}"),
        ),
        (
            "wrong.test",
            "HTTP",
            format!("mode: SIMPLE, caCertificates: {roots}"),
        ),
        // A name of its own, with which the certificate is not compared unless it says so.
        (
            "named.test",
            "HTTP",
            format!(
                "mode: SIMPLE, caCertificates: {roots}, sni: alias.test, subjectAltNames: [alias.test]"
            ),
        ),
        (
            "misnamed.test",
            "HTTP",
            format!(
                "mode: SIMPLE, caCertificates: {roots}, sni: alias.test, subjectAltNames: [other.test]"
            ),
        ),
        // The system's authorities did not sign it.
        (
            "system.test",
            "HTTP",
            "mode: SIMPLE, sni: secure.test".to_owned(),
        ),
        (
            "trusting.test",
            "HTTP",
            "mode: SIMPLE, insecureSkipVerify: true".to_owned(),
        ),
        (
            "http2.test",
            "HTTP2",
            format!("mode: SIMPLE, caCertificates: {roots}, sni: secure.test"),
        ),
        ("plain.test", "HTTP", "mode: DISABLE".to_owned()),
    ] {
        objects += &outside(host, protocol, echo.port());
        objects += &policy(host, &format!("tls: {{{tls}}}"));
        objects += &forwarded(host);
    }
    scene.mesh.create(&objects).await;
    scene.mesh.pushed().await;
    assert_eq!(scene.gateway.envoy.rejected().await, Default::default());

    let sni = |name: &'static str| move |body: &Value| body["tls"]["sni"] == name;
    let agreed = scene.agreed("secure.test", sni("secure.test")).await;
    assert_eq!(agreed["alpn"], "http/1.1");
    scene.agreed("named.test", sni("alias.test")).await;
    scene.agreed("trusting.test", sni("trusting.test")).await;
    let agreed = scene.agreed("http2.test", sni("secure.test")).await;
    assert_eq!(agreed["alpn"], "h2");
    scene.fails("wrong.test", 503).await;
    scene.fails("misnamed.test", 503).await;
    scene.fails("system.test", 503).await;
    // Plaintext to a TLS server, which answers with an alert.
    scene.fails("plain.test", 502).await;
}

async fn a_service_outside_must_have_a_name_that_its_entry_lists(plane: Plane) {
    let test = "a_service_outside_must_have_a_name_that_its_entry_lists";
    let Some(scene) = Scene::start(plane, test).await else {
        return;
    };
    let id = "spiffe://outside/ns/shop/sa/till";
    let pair = scene.authority.issue("server", &["server.test", id]);
    let simple = Echo::over_tls("simple", pair.server(None, &[])).await;
    let server = pair.server(Some(&scene.authority), &[]);
    let mutual = Echo::over_tls("mutual", server).await;
    let client = scene.authority.issue("client", &["client.test"]);
    let directory = scene.mesh.directory();
    let certificate = text(&file(directory, "client.crt", &client.chain));
    let key = text(&file(directory, "client.key", &client.key));
    let roots = format!("caCertificates: {}", scene.roots);
    let pair = format!("{roots}, clientCertificate: {certificate}, privateKey: {key}");
    let mut objects = String::new();
    let cases = [
        // The names of the entry count instead of the one that was asked for, of whatever kind.
        ("dns.test", "server.test", "SIMPLE", "", 200),
        ("uri.test", id, "SIMPLE", "", 200),
        ("several.test", "other.test, server.test", "SIMPLE", "", 200),
        ("wrong.test", "other.test", "SIMPLE", "", 503),
        (
            "wrong-uri.test",
            "spiffe://outside/ns/shop/sa/safe",
            "SIMPLE",
            "",
            503,
        ),
        // Names of the rule count instead of those.
        ("ruled.test", "other.test", "SIMPLE", "server.test", 200),
        ("misruled.test", "server.test", "SIMPLE", "other.test", 503),
        ("mutual.test", id, "MUTUAL", "", 200),
        ("mutual-wrong.test", "other.test", "MUTUAL", "", 503),
    ];
    for (host, names, mode, ruled, _) in cases {
        let (echo, files) = match mode {
            "MUTUAL" => (&mutual, &pair),
            _ => (&simple, &roots),
        };
        objects += &outside(host, "HTTP", echo.port()).replace(
            "spec:\n",
            &format!(
                "spec:\n  subjectAltNames: ['{}']\n",
                names.replace(", ", "', '")
            ),
        );
        let tls = format!("tls: {{mode: {mode}, {files}, subjectAltNames: [{ruled}]}}");
        objects += &policy(host, &tls);
        objects += &forwarded(host);
    }
    scene.mesh.create(&objects).await;
    scene.mesh.pushed().await;
    assert_eq!(scene.gateway.envoy.rejected().await, Default::default());
    for (host, _, mode, _, status) in cases {
        match status {
            200 => {
                let shown = |body: &Value| body["tls"]["certificate"] == (mode == "MUTUAL");
                scene.agreed(host, shown).await;
            }
            _ => scene.fails(host, status).await,
        }
    }
}

async fn mutual_tls_shows_the_clients_certificate_and_a_port_can_have_tls_of_its_own(plane: Plane) {
    let test = "mutual_tls_shows_the_clients_certificate_and_a_port_can_have_tls_of_its_own";
    let Some(scene) = Scene::start(plane, test).await else {
        return;
    };
    let pair = scene.authority.issue("mutual.test", &["mutual.test"]);
    let server = pair.server(Some(&scene.authority), &[]);
    let echo = Echo::over_tls("mutual", server).await;
    let client = scene.authority.issue("client", &["client.test"]);
    let directory = scene.mesh.directory();
    let certificate = text(&file(directory, "client.crt", &client.chain));
    let key = text(&file(directory, "client.key", &client.key));
    let roots = &scene.roots;
    let tls = format!(
        "tls: {{mode: MUTUAL, caCertificates: {roots}, clientCertificate: {certificate}, \
         privateKey: {key}}}"
    );
    let anonymous = format!("tls: {{mode: SIMPLE, caCertificates: {roots}, sni: mutual.test}}");
    let objects = [
        outside("mutual.test", "HTTP", echo.port()),
        policy("mutual.test", &tls),
        forwarded("mutual.test"),
        outside("anonymous.test", "HTTP", echo.port()),
        policy("anonymous.test", &anonymous),
        forwarded("anonymous.test"),
        // The settings of the port replace those of the rule.
        outside("port.test", "HTTP", echo.port()),
        policy(
            "port.test",
            &format!(
                "tls: {{mode: DISABLE}}, portLevelSettings: [{{port: {{number: 80}}, {}}}]",
                tls.replace("mode: MUTUAL", "mode: MUTUAL, sni: mutual.test")
            ),
        ),
        forwarded("port.test"),
    ];
    scene.mesh.create(&objects.concat()).await;
    scene.mesh.pushed().await;
    assert_eq!(scene.gateway.envoy.rejected().await, Default::default());
    let shown = |body: &Value| body["tls"]["certificate"] == true;
    scene.agreed("mutual.test", shown).await;
    scene.agreed("port.test", shown).await;
    scene.fails("anonymous.test", 503).await;
}

async fn a_gateway_takes_what_it_needs_for_a_service_from_a_secret(plane: Plane) {
    let test = "a_gateway_takes_what_it_needs_for_a_service_from_a_secret";
    let Some(scene) = Scene::start(plane, test).await else {
        return;
    };
    let pair = scene.authority.issue("mutual.test", &["mutual.test"]);
    let server = pair.server(Some(&scene.authority), &[]);
    let echo = Echo::over_tls("mutual", server).await;
    let objects = [
        outside("mutual.test", "HTTP", echo.port()),
        policy(
            "mutual.test",
            "tls: {mode: MUTUAL, credentialName: for-mutual}",
        ),
        forwarded("mutual.test"),
    ];
    scene.mesh.create(&objects.concat()).await;
    let client = scene.authority.issue("client", &["client.test"]);
    let block = |pem: &str| pem.trim_end().replace('\n', "\n    ");
    let secret = format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: for-mutual, namespace: istio-system}}\n\
         stringData:\n  tls.crt: |\n    {}\n  tls.key: |\n    {}\n  ca.crt: |\n    {}\n",
        block(&client.chain),
        block(&client.key),
        block(&scene.authority.pem)
    );
    scene.mesh.create(&secret).await;
    let shown = |body: &Value| body["tls"]["certificate"] == true;
    scene.agreed("mutual.test", shown).await;
    assert_eq!(scene.gateway.envoy.rejected().await, Default::default());
}

async fn a_proxy_header_goes_before_the_request(plane: Plane) {
    let test = "a_proxy_header_goes_before_the_request";
    let Some(scene) = Scene::start(plane, test).await else {
        return;
    };
    let mut objects = String::new();
    let mut servers = Vec::new();
    for (host, version) in [("v1.test", "V1"), ("v2.test", "V2")] {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        objects += &outside(host, "HTTP", server.local_addr().unwrap().port());
        objects += &policy(host, &format!("proxyProtocol: {{version: {version}}}"));
        objects += &forwarded(host);
        servers.push(server);
    }
    scene.mesh.create(&objects).await;
    scene.mesh.pushed().await;
    assert_eq!(scene.gateway.envoy.rejected().await, Default::default());
    for (host, server) in ["v1.test", "v2.test"].into_iter().zip(servers) {
        let http = scene.gateway.http;
        let client = tokio::spawn(async move {
            // Until the rule is in force there is no answer, or 404.
            let call = Call::get(host, "/");
            while !call.send(http).await.is_ok_and(|a| a.status == 200) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        let head = first_bytes(&server).await;
        match host {
            "v1.test" => {
                let line = String::from_utf8_lossy(&head).into_owned();
                let words: Vec<_> = line.split([' ', '\r']).take(4).collect();
                assert_eq!(
                    words[..4],
                    ["PROXY", "TCP4", "127.0.0.1", "127.0.0.1"],
                    "{line}"
                );
                assert!(line.contains("\r\nGET / HTTP/1.1\r\n"), "{line}");
            }
            _ => {
                assert_eq!(head[..12], *b"\r\n\r\n\0\r\nQUIT\n");
                // Version 2, PROXY; TCP over IPv4, twelve bytes of addresses at least.
                assert_eq!(head[12..14], [0x21, 0x11]);
                assert_eq!(head[16..20], [127, 0, 0, 1]);
                let length = 16 + usize::from(u16::from_be_bytes([head[14], head[15]]));
                assert!(head[length..].starts_with(b"GET / HTTP/1.1\r\n"));
            }
        }
        client.abort();
    }
}

/// What a connection begins with, to the end of the request's head. Connections are answered.
async fn first_bytes(server: &TcpListener) -> Vec<u8> {
    let accepted: std::io::Result<(_, SocketAddr)> = server.accept().await;
    let (mut stream, _) = accepted.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") || head.len() < 40 {
        assert_ne!(stream.read_buf(&mut head).await.unwrap(), 0, "{head:?}");
    }
    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    stream.write_all(answer).await.unwrap();
    head
}

async fn a_server_whose_certificate_was_revoked_is_not_spoken_to(plane: Plane) {
    let test = "a_server_whose_certificate_was_revoked_is_not_spoken_to";
    let Some(scene) = Scene::start(plane, test).await else {
        return;
    };
    let good = scene.authority.issue("good.test", &["good.test"]);
    let revoked = scene.authority.issue("revoked.test", &["revoked.test"]);
    let list = scene.authority.revokes(&[&revoked]);
    let list = text(&file(scene.mesh.directory(), "revoked.pem", &list));
    let mut objects = String::new();
    let mut echoes = Vec::new();
    for (host, pair, more) in [
        ("good.test", &good, format!(", caCrl: {list}")),
        ("revoked.test", &revoked, format!(", caCrl: {list}")),
        // Whoever does not look at the list does not know.
        ("trusting.test", &revoked, ", sni: revoked.test".to_owned()),
    ] {
        let echo = Echo::over_tls(host, pair.server(None, &[])).await;
        objects += &outside(host, "HTTP", echo.port());
        let tls = format!(
            "tls: {{mode: SIMPLE, caCertificates: {}{more}}}",
            scene.roots
        );
        objects += &policy(host, &tls);
        objects += &forwarded(host);
        echoes.push(echo);
    }
    scene.mesh.create(&objects).await;
    scene.mesh.pushed().await;
    assert_eq!(scene.gateway.envoy.rejected().await, Default::default());
    scene
        .agreed("good.test", |body| body["tls"]["sni"] == "good.test")
        .await;
    scene
        .agreed("trusting.test", |body| body["tls"]["sni"] == "revoked.test")
        .await;
    scene.fails("revoked.test", 503).await;
}

on_both! {
    a_server_whose_certificate_was_revoked_is_not_spoken_to,
    a_service_outside_is_reached_over_tls_and_must_prove_its_name,
    a_service_outside_must_have_a_name_that_its_entry_lists,
    mutual_tls_shows_the_clients_certificate_and_a_port_can_have_tls_of_its_own,
    a_gateway_takes_what_it_needs_for_a_service_from_a_secret,
    a_proxy_header_goes_before_the_request,
}
