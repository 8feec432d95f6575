//! A gateway that serves TLS: certificates from Secrets and files, who may connect, server names,
//! what is passed on unread.

use std::net::SocketAddr;

use lateen_testkit::certificates::{Authority, Pair, Said, TlsBackend, file, run, s_client};
use lateen_testkit::echo::TcpEcho;
use lateen_testkit::envoy::{Bootstrap, Envoy, Plane};
use lateen_testkit::http::Call;
use lateen_testkit::{PATIENCE, eventually, ports, settles};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::gateway::{assert_share, rule, say_hello};
use crate::mesh::{GATEWAY, Gateway, Mesh, Reviews, loopback, service, workload};

/// A gateway with more ports.
pub struct Secure {
    pub mesh: Mesh,
    pub gateway: Gateway,
    pub authority: Authority,
    /// Behind port 443.
    pub https: SocketAddr,
    /// Behind port 8443.
    pub other: SocketAddr,
    reviews: Reviews,
}

impl Secure {
    pub async fn start(plane: Plane, test: &str) -> Option<Self> {
        Self::start_in(Mesh::start().await, plane, test).await
    }

    pub async fn start_in(mesh: Mesh, plane: Plane, test: &str) -> Option<Self> {
        let gateway = Gateway::start(plane, &mesh, test, true).await?;
        let (https, other) = (ports::reserve(), ports::reserve());
        mesh.apply(&format!(
            "apiVersion: v1\nkind: Service\n\
             metadata: {{name: istio-ingressgateway, namespace: istio-system}}\n\
             spec:\n  selector: {{istio: ingressgateway}}\n  ports:\n  \
             - {{name: http2, port: 80, targetPort: {}}}\n  \
             - {{name: https, port: 443, targetPort: {https}}}\n  \
             - {{name: other, port: 8443, targetPort: {other}}}\n",
            gateway.http.port()
        ))
        .await;
        let reviews = Reviews::start(&mesh).await;
        Some(Secure {
            mesh,
            gateway,
            authority: Authority::new("authority"),
            https: loopback(https),
            other: loopback(other),
            reviews,
        })
    }

    /// Puts a certificate into a Secret of the gateway's namespace.
    pub async fn secret(&self, name: &str, pair: &Pair) {
        self.mesh.apply(&secret(name, "istio-system", pair)).await;
    }

    /// The authority in a file.
    fn authority(&self) -> String {
        path(&self.mesh, "authority.pem", &self.authority.pem)
    }

    pub async fn curl(&self, to: SocketAddr, host: &str, more: &[&str]) -> Said {
        self.curl_path(to, host, "/", more).await
    }

    /// `curl https://HOST/PATH` through the port, verifying the server.
    pub async fn curl_path(&self, to: SocketAddr, host: &str, path: &str, more: &[&str]) -> Said {
        let authority = self.authority();
        let (url, resolve) = (
            format!("https://{host}:{}{path}", to.port()),
            format!("{host}:{}:127.0.0.1", to.port()),
        );
        let mut all = vec!["-sS", "--max-time", "10", "--resolve", &resolve];
        all.extend([
            "--cacert",
            &authority,
            "-w",
            " %{http_code} %{http_version}",
        ]);
        all.extend(more);
        all.push(&url);
        run("curl", &all).await
    }

    /// Waits until `curl` gets this status over HTTP of this version.
    pub async fn answers(&self, to: SocketAddr, host: &str, more: &[&str], expect: &str) -> Said {
        eventually(&format!("{host} answers {expect}"), async || {
            let said = self.curl(to, host, more).await;
            match said.success && said.text.ends_with(expect) {
                true => Ok(said),
                false => Err(format!("{said:?}")),
            }
        })
        .await
    }

    /// Waits until the server shows a certificate of this name to who asks for `host`.
    async fn shows(&self, to: SocketAddr, host: &str, name: &str) {
        let authority = self.authority();
        settles(&format!("{host} is served by {name}"), async || {
            let more = ["-CAfile", &authority, "-verify_return_error"];
            let said = s_client(to, host, &more).await;
            match said.text.contains(&format!("CN = {name}\n")) {
                true => Ok(()),
                false => Err(format!("{said:?}")),
            }
        })
        .await;
    }

    async fn backends(&self) -> (TlsBackend, TlsBackend) {
        backends(&self.mesh, &self.authority).await
    }

    /// Code and message of what is wrong with a Gateway.
    pub async fn findings(&self, gateway: &str) -> Vec<String> {
        let all = self.mesh.page("/debug/findings").await;
        let about =
            |one: &&Value| one["subject"]["kind"] == "Gateway" && one["subject"]["name"] == gateway;
        let text = |one: &Value| {
            let part = |name: &str| one[name].as_str().unwrap_or_default().to_owned();
            format!("{} {}", part("code"), part("message"))
        };
        all.as_array()
            .unwrap()
            .iter()
            .filter(about)
            .map(text)
            .collect()
    }

    pub async fn rejected_nothing(&self) {
        self.mesh.distributed(1).await;
        assert_eq!(self.gateway.envoy.rejected().await, Default::default());
    }
}

/// `curl` with many slow requests, which a slow machine makes slower.
pub async fn curl_at_length(arguments: &[&str]) -> Said {
    let mut command = tokio::process::Command::new("curl");
    let asking = command.args(arguments).kill_on_drop(true).output();
    let output = tokio::time::timeout(4 * PATIENCE, asking).await;
    let output = output.expect("the requests end").unwrap();
    let text = [output.stdout, output.stderr].concat();
    Said {
        success: output.status.success(),
        text: String::from_utf8_lossy(&text).into_owned(),
    }
}

pub fn path(mesh: &Mesh, name: &str, content: &str) -> String {
    let path = file(mesh.directory(), name, content);
    path.to_str().unwrap().to_owned()
}

pub fn block(text: &str) -> String {
    text.trim_end().replace('\n', "\n    ")
}

pub fn secret(name: &str, namespace: &str, pair: &Pair) -> String {
    format!(
        "apiVersion: v1\nkind: Secret\ntype: kubernetes.io/tls\n\
         metadata: {{name: {name}, namespace: {namespace}}}\n\
         stringData:\n  tls.crt: |\n    {}\n  tls.key: |\n    {}\n---\n",
        block(&pair.chain),
        block(&pair.key)
    )
}

/// A Secret of a gateway, with the authority of its clients beside the certificate.
pub fn secret_with_authority(name: &str, pair: &Pair, authority: &str) -> String {
    let beside = format!("stringData:\n  ca.crt: |\n    {}\n", block(authority));
    secret(name, "istio-system", pair).replace("stringData:\n", &beside)
}

/// A Gateway with one server.
pub fn gateway(name: &str, port: u16, protocol: &str, hosts: &str, tls: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: Gateway\n\
         metadata: {{name: {name}, namespace: default}}\n\
         spec:\n  selector: {{istio: ingressgateway}}\n  servers:\n  \
         - port: {{number: {port}, name: {name}, protocol: {protocol}}}\n    \
         hosts: [{hosts}]\n    tls: {{{tls}}}\n---\n"
    )
}

/// A VirtualService for one host at several Gateways.
pub fn routes(host: &str, gateways: &str, spec: &str) -> String {
    let name = host.replace('.', "-").replace('*', "any");
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\n\
         metadata: {{name: {name}, namespace: default}}\n\
         spec:\n  hosts: ['{host}']\n  gateways: [{gateways}]\n{spec}\n---\n"
    )
}

pub const TO_REVIEWS: &str = "  http: [{route: [{destination: {host: reviews}}]}]";

async fn a_gateway_serves_https_with_the_certificates_of_secrets(plane: Plane) {
    let test = "a_gateway_serves_https_with_the_certificates_of_secrets";
    let Some(secure) = Secure::start(plane, test).await else {
        return;
    };
    let (a, b) = (
        secure.authority.issue("a.test", &["a.test"]),
        secure.authority.issue("b.test", &["*.b.test"]),
    );
    // Another namespace's Secret is not the gateway's.
    let foreign = secret("foreign", "default", &a);
    let objects = [
        gateway(
            "a",
            443,
            "HTTPS",
            "a.test",
            "mode: SIMPLE, credentialName: a",
        ),
        gateway(
            "b",
            443,
            "HTTPS",
            "'*.b.test'",
            "mode: SIMPLE, credentialName: b",
        ),
        gateway(
            "foreign",
            8443,
            "HTTPS",
            "a.test",
            "mode: SIMPLE, credentialName: foreign",
        ),
        routes("a.test", "a, foreign", TO_REVIEWS),
        routes("x.b.test", "b", TO_REVIEWS),
        foreign,
    ];
    secure.secret("a", &a).await;
    secure.secret("b", &b).await;
    secure.mesh.apply(&objects.concat()).await;
    secure.answers(secure.https, "a.test", &[], " 200 2").await;
    secure
        .answers(secure.https, "x.b.test", &["--http1.1"], " 200 1.1")
        .await;
    secure.shows(secure.https, "a.test", "a.test").await;
    secure.shows(secure.https, "x.b.test", "b.test").await;
    // A host of the certificate that no rule serves.
    secure
        .answers(secure.https, "y.b.test", &[], " 404 2")
        .await;
    // Each server has its own routes: the other's hosts are not found on a connection to this one.
    secure
        .answers(secure.https, "a.test", &["-H", "host: x.b.test"], " 404 2")
        .await;
    let nobody = s_client(secure.https, "c.test", &[]).await;
    assert!(!nobody.success, "{nobody:?}");
    let old = s_client(
        secure.https,
        "a.test",
        &["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"],
    )
    .await;
    assert!(!old.success, "{old:?}");
    let plain = Call::get("a.test", "/").send(secure.https).await;
    assert!(plain.is_err() || plain.unwrap().status >= 400);
    let foreign = s_client(secure.other, "a.test", &[]).await;
    assert!(!foreign.text.contains("CN = a.test"), "{foreign:?}");
    secure.rejected_nothing().await;
    secure.mesh.status_of(GATEWAY).await;
}

async fn a_new_certificate_is_served_and_no_connection_is_dropped(plane: Plane) {
    let test = "a_new_certificate_is_served_and_no_connection_is_dropped";
    let Some(secure) = Secure::start(plane, test).await else {
        return;
    };
    let secret_of = async |name: &str| {
        let pair = secure.authority.issue(name, &["a.test"]);
        secure.secret("web", &pair).await;
    };
    secret_of("first").await;
    let objects = gateway(
        "a",
        443,
        "HTTPS",
        "a.test",
        "mode: SIMPLE, credentialName: web",
    ) + &routes("a.test", "a", TO_REVIEWS);
    secure.mesh.apply(&objects).await;
    secure.answers(secure.https, "a.test", &[], " 200 2").await;
    secure.shows(secure.https, "a.test", "first").await;

    // Forty slow requests on one connection, and new connections all the time.
    let authority = secure.authority();
    let port = secure.https.port();
    let (url, resolve) = (
        format!("https://a.test:{port}/slow/50?[1-40]"),
        format!("a.test:{port}:127.0.0.1"),
    );
    let long = [
        "-sS",
        "--resolve",
        &resolve,
        "--cacert",
        &authority,
        "-o",
        "/dev/null",
        "-w",
        "%{http_code} %{num_connects},",
        &url,
    ];
    let long = curl_at_length(&long);
    let renewing = async {
        for name in ["second", "third"] {
            secret_of(name).await;
            let mut renewed = false;
            let started = std::time::Instant::now();
            while !renewed {
                assert!(started.elapsed() < PATIENCE, "{name} is not served");
                let said = secure.curl(secure.https, "a.test", &["-v"]).await;
                assert!(said.success && said.text.contains(" 200 2"), "{said:?}");
                renewed = said.text.contains(&format!("subject: CN={name}"));
            }
        }
    };
    let (long, ()) = tokio::join!(long, renewing);
    let expect = format!("200 1,{}", "200 0,".repeat(39));
    assert!(long.success && long.text == expect, "{long:?}");
    secure.shows(secure.https, "a.test", "third").await;
    secure.rejected_nothing().await;
}

/// A connection that was let in without a certificate does not outlive the drain time where one is
/// demanded by now (the test above is its twin: nothing else ends a connection).
async fn an_open_connection_has_to_prove_what_is_demanded_since(plane: Plane) {
    let test = "an_open_connection_has_to_prove_what_is_demanded_since";
    let Some(secure) = Secure::start(plane, test).await else {
        return;
    };
    let pair = secure.authority.issue("web", &["a.test"]);
    let clients = Authority::new("clients");
    let server = |mode: &str| {
        let tls = format!("mode: {mode}, credentialName: web");
        gateway("a", 443, "HTTPS", "a.test", &tls) + &routes("a.test", "a", TO_REVIEWS)
    };
    secure.secret("web", &pair).await;
    secure
        .mesh
        .apply(&format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: web-cacert, namespace: istio-system}}\n\
             stringData:\n  ca.crt: |\n    {}\n---\n{}",
            block(&clients.pem),
            server("SIMPLE")
        ))
        .await;
    secure.answers(secure.https, "a.test", &[], " 200 2").await;

    // Ten seconds of requests on one connection.
    let port = secure.https.port();
    let (url, resolve) = (
        format!("https://a.test:{port}/slow/50?[1-200]"),
        format!("a.test:{port}:127.0.0.1"),
    );
    let authority = secure.authority();
    let long = [
        "-sS",
        "--resolve",
        &resolve,
        "--cacert",
        &authority,
        "-o",
        "/dev/null",
        "-w",
        "%{http_code},",
        &url,
    ];
    let demanded = async {
        eventually("some requests are served", async || {
            let hits = secure.reviews.all().map(|(_, echo)| echo.hits("/slow/50"));
            match hits.iter().sum::<u32>() {
                5.. => Ok(()),
                few => Err(few.to_string()),
            }
        })
        .await;
        secure.mesh.apply(&server("MUTUAL")).await;
    };
    let (long, ()) = tokio::join!(curl_at_length(&long), demanded);
    let served = long.text.matches("200,").count();
    assert!((1..200).contains(&served), "{served}: {long:?}");
    assert!(!long.success, "{long:?}");
    secure.rejected_nothing().await;
}

async fn the_last_good_certificate_serves_on_when_its_secret_is_gone_or_useless(plane: Plane) {
    let test = "the_last_good_certificate_serves_on_when_its_secret_is_gone_or_useless";
    let Some(secure) = Secure::start(plane, test).await else {
        return;
    };
    let pair = secure.authority.issue("first", &["a.test"]);
    secure.secret("web", &pair).await;
    let objects = gateway(
        "a",
        443,
        "HTTPS",
        "a.test",
        "mode: SIMPLE, credentialName: web",
    ) + &routes("a.test", "a", TO_REVIEWS);
    secure.mesh.apply(&objects).await;
    secure.shows(secure.https, "a.test", "first").await;
    assert_eq!(secure.findings("a").await, Vec::<String>::new());

    secure
        .mesh
        .delete(&secret("web", "istio-system", &pair))
        .await;
    secure.mesh.distributed(1).await;
    secure.shows(secure.https, "a.test", "first").await;
    let found = secure.findings("a").await;
    assert!(
        found.len() == 1 && found[0].starts_with("IST0101"),
        "{found:?}"
    );

    let useless = "apiVersion: v1\nkind: Secret\nmetadata: {name: web, namespace: istio-system}\n\
                   stringData: {tls.crt: none, tls.key: none}\n";
    secure.mesh.apply(useless).await;
    secure.mesh.distributed(1).await;
    secure.shows(secure.https, "a.test", "first").await;
    let found = secure.findings("a").await;
    assert!(
        found.len() == 1 && found[0].starts_with("IST0161"),
        "{found:?}"
    );

    let again = secure.authority.issue("second", &["a.test"]);
    let again = secret("web", "istio-system", &again).replace("type: kubernetes.io/tls\n", "");
    secure.mesh.apply(&again).await;
    secure.shows(secure.https, "a.test", "second").await;
    assert_eq!(secure.findings("a").await, Vec::<String>::new());
    secure.rejected_nothing().await;
}

async fn clients_are_verified_as_the_mode_says(plane: Plane) {
    let test = "clients_are_verified_as_the_mode_says";
    let Some(secure) = Secure::start(plane, test).await else {
        return;
    };
    let server = secure
        .authority
        .issue("server", &["must.test", "may.test", "only.test"]);
    let clients = Authority::new("clients");
    let client = clients.issue("client", &["spiffe://test/client"]);
    let other = clients.issue("other", &["other.test"]);
    let stranger = Authority::new("strangers").issue("stranger", &["spiffe://test/client"]);
    let curl_with = |name: &str, pair: &Pair| {
        let certificate = path(&secure.mesh, &format!("{name}.crt"), &pair.chain);
        let key = path(&secure.mesh, &format!("{name}.key"), &pair.key);
        ["--cert".to_owned(), certificate, "--key".to_owned(), key]
    };
    let (client_args, other_args, stranger_args) = (
        curl_with("client", &client),
        curl_with("other", &other),
        curl_with("stranger", &stranger),
    );
    let print = [
        "x509",
        "-in",
        &other_args[1],
        "-noout",
        "-fingerprint",
        "-sha256",
    ];
    let hash = run("openssl", &print).await.text;
    let hash = hash.trim().split('=').nth(1).unwrap();
    // One authority beside the certificate, one in a Secret of its own.
    let authority = |name: &str| {
        format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}, namespace: istio-system}}\n\
             stringData:\n  ca.crt: |\n    {}\n---\n",
            block(&clients.pem)
        )
    };
    let beside = secret_with_authority("beside", &server, &clients.pem);
    let objects = [
        secret("web", "istio-system", &server),
        authority("web-cacert"),
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
            443,
            "HTTPS",
            "may.test",
            "mode: OPTIONAL_MUTUAL, credentialName: beside",
        ),
        gateway(
            "only",
            443,
            "HTTPS",
            "only.test",
            "mode: MUTUAL, credentialName: web, subjectAltNames: ['spiffe://test/client']",
        ),
        gateway(
            "pinned",
            8443,
            "HTTPS",
            "must.test",
            &format!("mode: MUTUAL, credentialName: web, verifyCertificateHash: ['{hash}']"),
        ),
        routes("must.test", "must, pinned", TO_REVIEWS),
        routes("may.test", "may", TO_REVIEWS),
        routes("only.test", "only", TO_REVIEWS),
    ];
    secure.mesh.apply(&objects.concat()).await;
    let client_args: Vec<&str> = client_args.iter().map(String::as_str).collect();
    let other_args: Vec<&str> = other_args.iter().map(String::as_str).collect();
    let stranger_args: Vec<&str> = stranger_args.iter().map(String::as_str).collect();
    let said = secure
        .answers(secure.https, "must.test", &client_args, " 200 2")
        .await;
    assert!(said.text.contains("x-forwarded-client-cert"), "{said:?}");
    assert!(said.text.contains("CN=client"), "{said:?}");
    secure
        .answers(secure.https, "may.test", &[], " 200 2")
        .await;
    secure
        .answers(secure.other, "must.test", &other_args, " 200 2")
        .await;
    secure
        .answers(secure.https, "only.test", &client_args, " 200 2")
        .await;
    let check = async |to: SocketAddr, host: &str, args: &[&str], expect: bool| {
        let said = secure.curl(to, host, args).await;
        assert_eq!(said.success, expect, "{host} {args:?}: {said:?}");
    };
    check(secure.https, "must.test", &[], false).await;
    check(secure.https, "must.test", &stranger_args, false).await;
    check(secure.https, "must.test", &other_args, true).await;
    check(secure.https, "may.test", &client_args, true).await;
    check(secure.https, "may.test", &stranger_args, false).await;
    check(secure.https, "only.test", &client_args, true).await;
    check(secure.https, "only.test", &other_args, false).await;
    check(secure.https, "only.test", &[], false).await;
    check(secure.other, "must.test", &client_args, false).await;
    secure.rejected_nothing().await;
}

async fn versions_and_ciphers_are_those_of_the_server(plane: Plane) {
    let test = "versions_and_ciphers_are_those_of_the_server";
    let Some(secure) = Secure::start(plane, test).await else {
        return;
    };
    let pair = secure.authority.issue("web", &["new.test", "old.test"]);
    secure.secret("web", &pair).await;
    let objects = [
        gateway(
            "new",
            443,
            "HTTPS",
            "new.test",
            "mode: SIMPLE, credentialName: web, minProtocolVersion: TLSV1_3",
        ),
        gateway(
            "old",
            443,
            "HTTPS",
            "old.test",
            "mode: SIMPLE, credentialName: web, maxProtocolVersion: TLSV1_2, \
             cipherSuites: [ECDHE-ECDSA-AES128-GCM-SHA256]",
        ),
    ];
    secure.mesh.apply(&objects.concat()).await;
    secure.shows(secure.https, "new.test", "web").await;
    secure.shows(secure.https, "old.test", "web").await;
    let check = async |host: &str, args: &[&str], expect: Option<&str>| {
        let said = s_client(secure.https, host, args).await;
        assert_eq!(said.success, expect.is_some(), "{host} {args:?}: {said:?}");
        assert!(said.text.contains(expect.unwrap_or_default()), "{said:?}");
    };
    check("new.test", &["-alpn", "h2"], Some("TLSv1.3")).await;
    check("new.test", &["-tls1_2"], None).await;
    check("old.test", &[], Some("TLSv1.2")).await;
    check("old.test", &[], Some("ECDHE-ECDSA-AES128-GCM-SHA256")).await;
    check("old.test", &["-tls1_3"], None).await;
    let other = ["-cipher", "ECDHE-ECDSA-AES256-GCM-SHA384", "-tls1_2"];
    check("old.test", &other, None).await;
    secure.rejected_nothing().await;
}

async fn tls_is_passed_on_by_its_server_name(plane: Plane) {
    let test = "tls_is_passed_on_by_its_server_name";
    let Some(secure) = Secure::start(plane, test).await else {
        return;
    };
    let (one, two) = secure.backends().await;
    let spec = "  tls:
  - match: [{sniHosts: [one.test], port: 443}]
    route: [{destination: {host: one}}]
  - match: [{sniHosts: [one.test], port: 443}]
    route: [{destination: {host: two}}]
  - match: [{sniHosts: ['*.two.test'], gateways: [pass]}]
    route: [{destination: {host: two}}]
  - match: [{sniHosts: [elsewhere.test], gateways: [other]}]
    route: [{destination: {host: two}}]
  - match: [{sniHosts: [split.test]}]
    route:
    - {destination: {host: one}, weight: 75}
    - {destination: {host: two}, weight: 25}";
    let hosts = "one.test, '*.two.test', split.test, elsewhere.test";
    let objects = gateway("pass", 443, "TLS", hosts, "mode: PASSTHROUGH")
        + &routes("one.test", "pass, other", spec).replace("['one.test']", &format!("[{hosts}]"));
    secure.mesh.apply(&objects).await;
    secure.shows(secure.https, "one.test", "one").await;
    secure.shows(secure.https, "a.two.test", "two").await;
    for nobody in ["three.test", "elsewhere.test", ""] {
        let said = s_client(secure.https, nobody, &[]).await;
        assert!(!said.success, "{said:?}");
    }
    let mut counts = [0, 0];
    for _ in 0..100 {
        let said = s_client(secure.https, "split.test", &[]).await;
        let names = ["CN = one\n", "CN = two\n"].map(|name| said.text.contains(name));
        counts[0] += usize::from(names[0]);
        counts[1] += usize::from(names[1]);
    }
    assert_eq!(counts[0] + counts[1], 100, "{counts:?}");
    assert_share(counts[0], 100, 0.75);
    drop((one, two));
    secure.rejected_nothing().await;
}

async fn a_client_names_the_cluster_it_wants(plane: Plane) {
    let test = "a_client_names_the_cluster_it_wants";
    let Some(secure) = Secure::start(plane, test).await else {
        return;
    };
    let (one, two) = secure.backends().await;
    let rule = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
                metadata: {name: two, namespace: default}\n\
                spec: {host: two, subsets: [{name: v1, labels: {version: v1}}, {name: v9, labels: {version: v9}}]}\n---\n";
    let objects =
        gateway("east", 443, "TLS", "'*.local'", "mode: AUTO_PASSTHROUGH").to_owned() + rule;
    secure.mesh.apply(&objects).await;
    let name = |service: &str, subset: &str| {
        format!("outbound_.443_.{subset}_.{service}.default.svc.cluster.local")
    };
    let istio = ["-alpn", "istio"];
    for (service, subset) in [("one", ""), ("two", ""), ("two", "v1")] {
        settles(&format!("{service} {subset} is reached"), async || {
            let said = s_client(secure.https, &name(service, subset), &istio).await;
            match said.text.contains(&format!("CN = {service}\n")) {
                true => Ok(()),
                false => Err(format!("{said:?}")),
            }
        })
        .await;
    }
    let check = async |name: &str, args: &[&str]| {
        let said = s_client(secure.https, name, args).await;
        assert!(!said.success, "{name} {args:?}: {said:?}");
    };
    // Only the mesh's own TLS is passed on, only to what is there.
    check(&name("one", ""), &[]).await;
    check(&name("one", ""), &["-alpn", "h2"]).await;
    check(&name("two", "v9"), &istio).await;
    check(&name("three", ""), &istio).await;
    check("one.default.svc.cluster.local", &istio).await;
    drop((one, two));
    secure.rejected_nothing().await;
}

async fn tls_ends_at_the_gateway_and_bytes_go_on(plane: Plane) {
    let test = "tls_ends_at_the_gateway_and_bytes_go_on";
    let Some(secure) = Secure::start(plane, test).await else {
        return;
    };
    let (database, other) = (
        TcpEcho::start("database").await,
        TcpEcho::start("other").await,
    );
    // Certificates from files on the gateway's machine.
    let pair = secure.authority.issue("db", &["db.test", "other.test"]);
    let certificate = path(&secure.mesh, "db.crt", &pair.chain);
    let key = path(&secure.mesh, "db.key", &pair.key);
    let tls = format!("mode: SIMPLE, serverCertificate: {certificate}, privateKey: {key}");
    let services = [("database", &database), ("other", &other)];
    let services = services
        .map(|(name, echo)| service(name, "tcp", 3306) + &workload(name, "v1", "tcp", echo.port()));
    let objects = [
        services.concat(),
        gateway("db", 443, "TLS", "db.test", &tls),
        gateway("other", 443, "TLS", "other.test", &tls),
        routes(
            "db.test",
            "db",
            "  tcp: [{route: [{destination: {host: database}}]}]",
        ),
        routes(
            "other.test",
            "other",
            "  tcp:\n  - match: [{port: 80}]\n    route: [{destination: {host: database}}]\n  \
             - route: [{destination: {host: other}}]",
        ),
    ];
    secure.mesh.apply(&objects.concat()).await;
    for (host, greeting) in [("db.test", "database\n"), ("other.test", "other\n")] {
        eventually(host, async || {
            let to = secure.https.to_string();
            let said = run(
                "timeout",
                &[
                    "3",
                    "openssl",
                    "s_client",
                    "-quiet",
                    "-connect",
                    &to,
                    "-servername",
                    host,
                ],
            )
            .await;
            match said.text.starts_with(greeting) {
                true => Ok(()),
                false => Err(format!("{said:?}")),
            }
        })
        .await;
    }
    secure.rejected_nothing().await;
}

async fn gateways_of_several_teams_share_a_port_and_the_older_wins_a_fight(plane: Plane) {
    let test = "gateways_of_several_teams_share_a_port_and_the_older_wins_a_fight";
    let Some(secure) = Secure::start(plane, test).await else {
        return;
    };
    for name in ["first", "second"] {
        let pair = secure.authority.issue(name, &["a.test", "b.test"]);
        secure.secret(name, &pair).await;
    }
    let objects = [
        gateway(
            "g1",
            443,
            "HTTPS",
            "a.test",
            "mode: SIMPLE, credentialName: first",
        ),
        gateway(
            "g2",
            443,
            "HTTPS",
            "b.test",
            "mode: SIMPLE, credentialName: second",
        ),
        gateway(
            "g3",
            443,
            "HTTPS",
            "a.test, c.test",
            "mode: SIMPLE, credentialName: second",
        ),
        gateway("g4", 443, "HTTP", "a.test", "httpsRedirect: true"),
        gateway("g5", 80, "HTTP", "a.test", "httpsRedirect: true"),
        routes("a.test", "g1, g3", TO_REVIEWS),
        routes("b.test", "g2", TO_REVIEWS),
    ];
    secure.mesh.apply(&objects.concat()).await;
    secure.answers(secure.https, "a.test", &[], " 200 2").await;
    secure.answers(secure.https, "b.test", &[], " 200 2").await;
    secure.shows(secure.https, "a.test", "first").await;
    secure.shows(secure.https, "b.test", "second").await;
    let left_out = s_client(secure.https, "c.test", &[]).await;
    assert!(!left_out.success, "{left_out:?}");
    settles("plain HTTP is sent to https", async || {
        let redirect = secure.gateway.get("a.test", "/x").await;
        match (redirect.status, &*redirect.header("location")) {
            (301, "https://a.test/x") => Ok(()),
            _ => Err(format!("{redirect:?}")),
        }
    })
    .await;
    for (name, expect) in [
        ("g1", None),
        ("g2", None),
        ("g3", Some("IST0145")),
        ("g4", Some("IST0145")),
    ] {
        let found = secure.findings(name).await;
        let first = found.first().map(|text| text[..7].to_owned());
        assert_eq!(first.as_deref(), expect, "{name}: {found:?}");
    }
    secure.rejected_nothing().await;
}

async fn a_gateway_learns_its_client_from_the_proxy_protocol(plane: Plane) {
    let test = "a_gateway_learns_its_client_from_the_proxy_protocol";
    let Some(secure) = Secure::start(plane, test).await else {
        return;
    };
    let settings = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\n\
         data:\n  mesh: |\n    defaultConfig:\n      gatewayTopology:\n        proxyProtocol: {}\n---\n";
    let objects = rule(
        "a.test",
        TO_REVIEWS
            .trim_start_matches("  http: ")
            .trim_matches(['[', ']']),
    );
    let objects = objects.replace("{route:", "  - {route:");
    secure.mesh.apply(&(settings.to_owned() + &objects)).await;
    let said = eventually("the client's address arrives", async || {
        let mut stream = TcpStream::connect(secure.gateway.http)
            .await
            .map_err(|e| e.to_string())?;
        let request = "PROXY TCP4 192.0.2.7 127.0.0.1 5555 80\r\n\
                       GET / HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\n\r\n";
        stream
            .write_all(request.as_bytes())
            .await
            .map_err(|e| e.to_string())?;
        let mut text = String::new();
        let _ = stream.read_to_string(&mut text).await;
        match text.starts_with("HTTP/1.1 200") {
            true => Ok(text),
            false => Err(text),
        }
    })
    .await;
    assert!(said.contains("\"x-forwarded-for\":\"192.0.2.7\""), "{said}");
    secure.rejected_nothing().await;
}

async fn a_sidecar_chooses_by_server_name_and_address(plane: Plane) {
    let test = "a_sidecar_chooses_by_server_name_and_address";
    let Some(binary) = plane.binary(test) else {
        return;
    };
    let mesh = Mesh::start().await;
    let authority = Authority::new("authority");
    let (one, two) = backends(&mesh, &authority).await;
    let databases = [TcpEcho::start("near").await, TcpEcho::start("far").await];
    let (to_one, to_near) = (ports::reserve(), ports::reserve());
    let objects = [
        service("near", "tcp", 3306) + &workload("near", "v1", "tcp", databases[0].port()),
        service("far", "tcp", 3306) + &workload("far", "v1", "tcp", databases[1].port()),
        routes(
            "one",
            "mesh",
            "  tls:
  - match: [{sniHosts: [b.test], sourceLabels: {app: other}}]
    route: [{destination: {host: one}}]
  - match: [{sniHosts: [a.test, c.test], port: 443, sourceLabels: {app: front}}]
    route: [{destination: {host: one}}]
  - match: [{sniHosts: [b.test]}, {sniHosts: [c.test]}]
    route: [{destination: {host: two}}]",
        )
        .replace("['one']", "[one, a.test, b.test, c.test]"),
        routes(
            "near",
            "mesh",
            "  tcp:
  - match: [{destinationSubnets: [10.0.0.0/8]}]
    route: [{destination: {host: near}}]
  - match: [{destinationSubnets: [127.0.0.0/8], sourceNamespace: default}]
    route: [{destination: {host: far}}]",
        ),
    ];
    mesh.create(&objects.concat()).await;
    let bootstrap = Bootstrap {
        kind: "sidecar",
        name: "front-v1".into(),
        namespace: "default".into(),
        metadata: json!({
            "LABELS": {"app": "front"},
            "INTERCEPTION_MODE": "NONE",
            "LATEEN_BIND": "127.0.0.1",
            "LATEEN_OUTBOUND": {
                "one.default.svc.cluster.local:443": to_one,
                "near.default.svc.cluster.local:3306": to_near,
            },
        }),
        xds: mesh.xds,
        admin: ports::reserve(),
        delta: true,
    };
    let envoy = Envoy::start(&binary, &bootstrap.to_json(), mesh.directory()).await;
    envoy.ready().await;
    for (host, backend) in [("a.test", "one"), ("b.test", "two"), ("c.test", "one")] {
        settles(host, async || {
            let said = s_client(loopback(to_one), host, &[]).await;
            match said.text.contains(&format!("CN = {backend}\n")) {
                true => Ok(()),
                false => Err(format!("{said:?}")),
            }
        })
        .await;
    }
    let nobody = s_client(loopback(to_one), "d.test", &[]).await;
    assert!(!nobody.success, "{nobody:?}");
    let line = eventually("the TCP route", async || {
        let stream = TcpStream::connect(loopback(to_near)).await;
        say_hello(stream.map_err(|error| error.to_string())?).await
    })
    .await;
    assert_eq!(line, "far hello");
    assert_eq!(envoy.rejected().await, Default::default());
    drop((one, two));
}

/// The services `one` and `two`, which speak TLS on port 443.
async fn backends(mesh: &Mesh, authority: &Authority) -> (TlsBackend, TlsBackend) {
    let one = TlsBackend::start(authority, "one", mesh.directory()).await;
    let two = TlsBackend::start(authority, "two", mesh.directory()).await;
    for (name, backend) in [("one", &one), ("two", &two)] {
        let objects = service(name, "tls", 443) + &workload(name, "v1", "tls", backend.port);
        mesh.apply(&objects).await;
    }
    (one, two)
}

on_both!(
    tls_is_passed_on_by_its_server_name,
    a_client_names_the_cluster_it_wants,
    a_gateway_learns_its_client_from_the_proxy_protocol,
    a_sidecar_chooses_by_server_name_and_address,
    a_gateway_serves_https_with_the_certificates_of_secrets,
    a_new_certificate_is_served_and_no_connection_is_dropped,
    an_open_connection_has_to_prove_what_is_demanded_since,
    the_last_good_certificate_serves_on_when_its_secret_is_gone_or_useless,
    clients_are_verified_as_the_mode_says,
    versions_and_ciphers_are_those_of_the_server,
    tls_ends_at_the_gateway_and_bytes_go_on,
    gateways_of_several_teams_share_a_port_and_the_older_wins_a_fight,
);
