//! A gateway that is a workload of the mesh: servers of mode ISTIO_MUTUAL take who has a certificate
//! of the mesh, and nobody else.

use std::net::SocketAddr;
use std::process::Command;

use lateen_agent::Agent;
use lateen_testkit::certificates::{Authority, file, s_client};
use lateen_testkit::envoy::{Bootstrap, Envoy, Plane};
use lateen_testkit::tls_client::Dial;
use lateen_testkit::{echo, ports, settles};
use serde_json::json;

use crate::callers::{ALL, CLIENT, Clients, Shows, http_of, tcp};
use crate::member::{Secured, Who, arm};
use crate::mesh::{loopback, service, workload};
use crate::secure_gateway::{TO_REVIEWS, curl_at_length, gateway, routes};

on_both!(
    a_gateway_of_the_mesh_takes_who_has_a_certificate_of_the_mesh,
    a_gateway_of_the_mesh_takes_only_whom_its_server_names,
    renewed_files_are_taken_and_no_connection_is_dropped,
);

/// The name that the clients of tests ask for (`lateen_testkit::tls_client`).
const HOST: &str = "server.test";

struct Scene {
    mesh: Secured,
    envoy: Envoy,
    /// Behind port 443.
    https: SocketAddr,
    /// Behind port 9443.
    tls: SocketAddr,
    _echo: echo::Echo,
    _database: echo::TcpEcho,
    _agent: Option<Agent>,
}

impl Scene {
    /// With the services `reviews` (HTTP) and `database` (TCP).
    async fn start(plane: Plane, test: &str) -> Option<Self> {
        let binary = plane.binary(test)?;
        let mesh = Secured::start().await;
        let (https, tls) = (ports::reserve(), ports::reserve());
        mesh.create(&format!(
            "apiVersion: v1\nkind: Service\n\
             metadata: {{name: istio-ingressgateway, namespace: istio-system}}\n\
             spec:\n  selector: {{istio: ingressgateway}}\n  ports:\n  \
             - {{name: https, port: 443, targetPort: {https}}}\n  \
             - {{name: tls, port: 9443, targetPort: {tls}}}\n---\n\
             apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n\
             metadata: {{name: istio-ingressgateway, namespace: istio-system}}\n\
             spec:\n  address: 127.0.0.1\n  labels: {{istio: ingressgateway}}\n"
        ))
        .await;
        let echo = echo::Echo::start("reviews").await;
        let database = echo::TcpEcho::start("database").await;
        let objects = [
            service("reviews", "http", 9080),
            workload("reviews", "v1", "http", echo.port()),
            service("database", "tcp", 3306),
            workload("database", "v1", "tcp", database.port()),
            routes(HOST, "web", TO_REVIEWS),
            routes(
                HOST,
                "sql",
                "  tcp: [{route: [{destination: {host: database}}]}]",
            )
            .replace("name: server-test", "name: sql"),
        ];
        mesh.create(&objects.concat()).await;
        let who = Who {
            namespace: "istio-system",
            ..Who::named("istio-ingressgateway")
        };
        let bootstrap = Bootstrap {
            kind: "router",
            name: who.name.into(),
            namespace: who.namespace.into(),
            metadata: json!({
                "LABELS": {"istio": "ingressgateway"},
                // As Istio's agent says it of itself.
                "ISTIO_VERSION": "1.30.0",
                "NAMESPACE": who.namespace,
                "SERVICE_ACCOUNT": who.account,
                "LATEEN_BIND": "127.0.0.1",
            }),
            xds: mesh.xds,
            admin: ports::reserve(),
            delta: true,
        };
        let socket = mesh.directory().join("gateway.sds/socket");
        let secured = bootstrap.secured(&socket, mesh.secure);
        let mut command = Command::new(&binary);
        let config = mesh.identity(&who).await;
        let agent = arm(plane, config, &socket, &mut command);
        let envoy = Envoy::start_by(command, &binary, &secured, mesh.directory()).await;
        envoy.ready().await;
        Some(Scene {
            mesh,
            envoy,
            https: loopback(https),
            tls: loopback(tls),
            _echo: echo,
            _database: database,
            _agent: agent,
        })
    }

    /// Both servers, with this beside their mode.
    async fn serve(&self, more: &str) {
        let mode = format!("mode: ISTIO_MUTUAL{more}");
        let objects =
            gateway("web", 443, "HTTPS", HOST, &mode) + &gateway("sql", 9443, "TLS", HOST, &mode);
        self.mesh.apply(&objects).await;
        self.mesh.distributed(1).await;
        assert_eq!(self.envoy.rejected().await, Default::default());
    }
}

async fn a_gateway_of_the_mesh_takes_who_has_a_certificate_of_the_mesh(plane: Plane) {
    let test = "a_gateway_of_the_mesh_takes_who_has_a_certificate_of_the_mesh";
    let Some(scene) = Scene::start(plane, test).await else {
        return;
    };
    scene.serve("").await;
    let clients = Clients::new(&scene.mesh.authority);
    let alpn = ["istio", "h2", "http/1.1"];
    settles("who has a certificate is served", async || {
        http_of(scene.https, HOST, clients.dial(Shows::Right, &["http/1.1"])).await?;
        let bytes = tcp(scene.tls, clients.dial(Shows::Right, &["istio"])).await;
        bytes.map(|_| ())
    })
    .await;
    for shows in ALL {
        // Whatever trust domain its certificate is of, the mesh's roots have signed it.
        let expected = matches!(shows, Shows::Right | Shows::ForeignDomain);
        let answer = http_of(scene.https, HOST, clients.dial(shows, &["http/1.1"])).await;
        assert_eq!(answer.is_ok(), expected, "{shows:?}: {answer:?}");
        let known = answer.is_ok_and(|answer| answer.contains(&format!("URI={CLIENT}")));
        assert_eq!(known, shows == Shows::Right, "{shows:?}");
        let bytes = tcp(scene.tls, clients.dial(shows, &alpn)).await;
        assert_eq!(bytes.is_ok(), expected, "{shows:?}: {bytes:?}");
    }
}

async fn a_gateway_of_the_mesh_takes_only_whom_its_server_names(plane: Plane) {
    let test = "a_gateway_of_the_mesh_takes_only_whom_its_server_names";
    let Some(scene) = Scene::start(plane, test).await else {
        return;
    };
    let clients = Clients::new(&scene.mesh.authority);
    let named = |name: &str| format!(", subjectAltNames: ['{name}']");
    let other = "spiffe://cluster.local/ns/default/sa/other";
    for (name, shows) in [
        (CLIENT, Shows::Right),
        (
            "spiffe://other.domain/ns/default/sa/client",
            Shows::ForeignDomain,
        ),
        (other, Shows::Nothing),
    ] {
        scene.serve(&named(name)).await;
        settles(&format!("only {name} is served"), async || {
            for one in [Shows::Right, Shows::ForeignDomain] {
                let answer = http_of(scene.https, HOST, clients.dial(one, &["http/1.1"])).await;
                let bytes = tcp(scene.tls, clients.dial(one, &["istio"])).await;
                if answer.is_ok() != (one == shows) || bytes.is_ok() != (one == shows) {
                    return Err(format!("{one:?}: {answer:?} {bytes:?}"));
                }
            }
            Ok(())
        })
        .await;
    }
}

/// What a server shows to who asks for it.
async fn shows(to: SocketAddr, name: &str) {
    settles(&format!("the certificate of {name}"), async || {
        let said = s_client(to, HOST, &[]).await;
        match said.text.contains(&format!("CN = {name}\n")) {
            true => Ok(()),
            false => Err(format!("{said:?}")),
        }
    })
    .await;
}

async fn renewed_files_are_taken_and_no_connection_is_dropped(plane: Plane) {
    let test = "renewed_files_are_taken_and_no_connection_is_dropped";
    let Some(scene) = Scene::start(plane, test).await else {
        return;
    };
    let directory = scene.mesh.directory();
    let write = |name: &str, content: &str| file(directory, name, content).display().to_string();
    let authorities = [Authority::new("one"), Authority::new("two")];
    let clients = authorities
        .each_ref()
        .map(|one| one.issue("client", &[CLIENT]));
    let first = authorities[0].issue("first", &[HOST]);
    let (certificate, key) = (write("web.crt", &first.chain), write("web.key", &first.key));
    let roots = write("clients.pem", &authorities[0].pem);
    let tls = format!("serverCertificate: {certificate}, privateKey: {key}");
    let mutual = format!("mode: MUTUAL, {tls}, caCertificates: {roots}");
    let objects = gateway("web", 443, "HTTPS", HOST, &format!("mode: SIMPLE, {tls}"))
        + &gateway("sql", 9443, "TLS", HOST, &mutual);
    scene.mesh.apply(&objects).await;
    scene.mesh.distributed(1).await;
    shows(scene.https, "first").await;
    let taken = async |expected: [bool; 2]| {
        settles(&format!("clients {expected:?}"), async || {
            let dial = clients.each_ref().map(|pair| Dial::Tls(Some(pair), &[]));
            let answers = [tcp(scene.tls, dial[0]).await, tcp(scene.tls, dial[1]).await];
            match answers.each_ref().map(Result::is_ok) == expected {
                true => Ok(()),
                false => Err(format!("{answers:?}")),
            }
        })
        .await;
    };
    taken([true, false]).await;

    // Sixty slow requests on one connection, while the files are replaced.
    let port = scene.https.port();
    let resolve = format!("{HOST}:{port}:127.0.0.1");
    let url = format!("https://{HOST}:{port}/slow/50?[1-60]");
    let form = "%{http_code} %{num_connects},";
    let long = [
        "-sSk",
        "--resolve",
        &resolve,
        "-o",
        "/dev/null",
        "-w",
        form,
        &url,
    ];
    let renewing = async {
        let second = authorities[0].issue("second", &[HOST]);
        write("web.crt", &second.chain);
        // The key comes later: what does not fit together is not taken.
        tokio::time::sleep(std::time::Duration::from_millis(1_200)).await;
        shows(scene.https, "first").await;
        write("web.key", &second.key);
        shows(scene.https, "second").await;
    };
    let (long, ()) = tokio::join!(curl_at_length(&long), renewing);
    let expect = format!("200 1,{}", "200 0,".repeat(59));
    assert!(long.success && long.text == expect, "{long:?}");
    write("clients.pem", &authorities[1].pem);
    taken([false, true]).await;
    assert_eq!(scene.envoy.rejected().await, Default::default());
}
