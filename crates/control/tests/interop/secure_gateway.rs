//! A gateway that serves TLS: certificates from Secrets and files, who may connect, server names,
//! what is passed on unread.

use std::net::SocketAddr;

use lateen_testkit::certificates::{Authority, Pair, Said, file, run, s_client};
use lateen_testkit::envoy::Plane;
use lateen_testkit::http::Call;
use lateen_testkit::{eventually, ports, settles};

use crate::mesh::{GATEWAY, Gateway, Mesh, Reviews, loopback};

/// A gateway with more ports.
struct Secure {
    mesh: Mesh,
    gateway: Gateway,
    authority: Authority,
    /// Behind port 443.
    https: SocketAddr,
    /// Behind port 8443.
    other: SocketAddr,
    _reviews: Reviews,
}

impl Secure {
    async fn start(plane: Plane, test: &str) -> Option<Self> {
        let mesh = Mesh::start().await;
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
            _reviews: reviews,
        })
    }

    /// Puts a certificate into a Secret of the gateway's namespace.
    async fn secret(&self, name: &str, pair: &Pair) {
        self.mesh.apply(&secret(name, "istio-system", pair)).await;
    }

    /// The authority in a file.
    fn authority(&self) -> String {
        path(&self.mesh, "authority.pem", &self.authority.pem)
    }

    /// `curl https://HOST/PATH` through the port, verifying the server.
    async fn curl(&self, to: SocketAddr, host: &str, more: &[&str]) -> Said {
        let authority = self.authority();
        let (url, resolve) = (
            format!("https://{host}:{}/", to.port()),
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
    async fn answers(&self, to: SocketAddr, host: &str, more: &[&str], expect: &str) -> Said {
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

    async fn rejected_nothing(&self) {
        self.mesh.distributed(1).await;
        assert_eq!(self.gateway.envoy.rejected().await, Default::default());
    }
}

fn path(mesh: &Mesh, name: &str, content: &str) -> String {
    let path = file(mesh.directory(), name, content);
    path.to_str().unwrap().to_owned()
}

fn block(text: &str) -> String {
    text.trim_end().replace('\n', "\n    ")
}

fn secret(name: &str, namespace: &str, pair: &Pair) -> String {
    format!(
        "apiVersion: v1\nkind: Secret\ntype: kubernetes.io/tls\n\
         metadata: {{name: {name}, namespace: {namespace}}}\n\
         stringData:\n  tls.crt: |\n    {}\n  tls.key: |\n    {}\n---\n",
        block(&pair.chain),
        block(&pair.key)
    )
}

/// A Gateway with one server.
fn gateway(name: &str, port: u16, protocol: &str, hosts: &str, tls: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: Gateway\n\
         metadata: {{name: {name}, namespace: default}}\n\
         spec:\n  selector: {{istio: ingressgateway}}\n  servers:\n  \
         - port: {{number: {port}, name: {name}, protocol: {protocol}}}\n    \
         hosts: [{hosts}]\n    tls: {{{tls}}}\n---\n"
    )
}

/// A VirtualService for one host at several Gateways.
fn routes(host: &str, gateways: &str, spec: &str) -> String {
    let name = host.replace('.', "-").replace('*', "any");
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\n\
         metadata: {{name: {name}, namespace: default}}\n\
         spec:\n  hosts: ['{host}']\n  gateways: [{gateways}]\n{spec}\n---\n"
    )
}

const TO_REVIEWS: &str = "  http: [{route: [{destination: {host: reviews}}]}]";

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

on_stock_envoy!(a_gateway_serves_https_with_the_certificates_of_secrets);
