//! What a Sidecar says of Unix domain sockets, and of TLS that ends at a sidecar.

use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use lateen_testkit::certificates::{Authority, file};
use lateen_testkit::echo::Echo;
use lateen_testkit::envoy::Plane;
use lateen_testkit::http::{Answer, Call, Client};
use lateen_testkit::settles;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixListener, UnixStream};

use crate::callers::{http, tcp};
use crate::mesh::{Mesh, service, workload};
use crate::sidecar::Sidecar;
use lateen_testkit::tls_client::Dial;

on_both!(
    applications_reach_services_over_unix_domain_sockets,
    an_application_is_reached_over_a_unix_domain_socket,
    a_sidecar_ends_tls_of_clients_outside_the_mesh_where_it_is_allowed,
);

fn sidecar(spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: Sidecar\n\
         metadata: {{name: front, namespace: default}}\nspec:\n  \
         workloadSelector: {{labels: {{app: front}}}}\n{spec}"
    )
}

/// A connection over a socket file, as a client of HTTP takes it.
fn as_tcp(stream: UnixStream) -> TcpStream {
    let fd = std::os::fd::OwnedFd::from(stream.into_std().unwrap());
    TcpStream::from_std(std::net::TcpStream::from(fd)).unwrap()
}

async fn get(socket: &Path, host: &str) -> Result<Answer, String> {
    let stream = UnixStream::connect(socket).await;
    let stream = as_tcp(stream.map_err(|error| error.to_string())?);
    let mut client = Client::over(stream).await?;
    client.send(&Call::get(host, "/")).await
}

async fn applications_reach_services_over_unix_domain_sockets(plane: Plane) {
    let test = "applications_reach_services_over_unix_domain_sockets";
    let mesh = Mesh::start().await;
    let Some(proxy) = Sidecar::start(plane, &mesh, test).await else {
        return;
    };
    let (near, other) = (Echo::start("near").await, Echo::start("other").await);
    let database = lateen_testkit::echo::TcpEcho::start("database").await;
    let objects = [
        service("near", "http", 80),
        workload("near", "v1", "http", near.port()),
        service("other", "http", 80),
        workload("other", "v1", "http", other.port()),
        service("sql", "tcp", 3306),
        workload("sql", "v1", "tcp", database.port()),
    ];
    mesh.create(&objects.concat()).await;
    let path = |name: &str| mesh.directory().join(name);
    let (web, sql) = (path("web.sock"), path("sql.sock"));
    let listeners = |web: &Path| {
        sidecar(&format!(
            "  egress:\n  - port: {{number: 0, protocol: HTTP, name: web}}\n    bind: unix://{}\n    \
             hosts: ['./near.default.svc.cluster.local']\n  \
             - port: {{number: 0, protocol: TCP, name: sql}}\n    bind: unix://{}\n    \
             hosts: ['./sql.default.svc.cluster.local']\n  - hosts: ['./*']\n",
            web.display(),
            sql.display()
        ))
    };
    mesh.apply(&listeners(&web)).await;
    mesh.distributed(1).await;
    settles("near answers", async || match get(&web, "near").await {
        Ok(answer) if answer.status == 200 && answer.name() == "near" => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    // What the listener does not import is not reached by it, though the proxy knows it.
    let answer = get(&web, "other").await.unwrap();
    assert_ne!((answer.status, answer.name().as_str()), (200, "other"));
    settles("the database answers", async || {
        let mut stream = UnixStream::connect(&sql).await.map_err(|e| e.to_string())?;
        let mut greeting = [0; 9];
        let read = stream.read_exact(&mut greeting).await;
        read.map_err(|error| error.to_string())?;
        match &greeting {
            b"database\n" => Ok(()),
            other => Err(other.escape_ascii().to_string()),
        }
    })
    .await;
    // The listener moves; a connection over the new path is served.
    let moved = path("moved.sock");
    mesh.apply(&listeners(&moved)).await;
    mesh.distributed(1).await;
    settles("near answers elsewhere", async || {
        get(&moved, "near").await.map(|_| ())
    })
    .await;
    assert_eq!(proxy.envoy.rejected().await, Default::default());
}

/// An application that listens on a socket file and answers every request.
fn application(path: &Path) -> tokio::task::JoinHandle<()> {
    let listener = UnixListener::bind(path).unwrap();
    assert!(std::fs::metadata(path).unwrap().file_type().is_socket());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    match stream.read_u8().await {
                        Ok(byte) => head.push(byte),
                        Err(_) => return,
                    }
                }
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\nby a socket";
                let _ = stream.write_all(answer).await;
            });
        }
    })
}

async fn an_application_is_reached_over_a_unix_domain_socket(plane: Plane) {
    let test = "an_application_is_reached_over_a_unix_domain_socket";
    let mesh = Mesh::start().await;
    let Some(proxy) = Sidecar::start(plane, &mesh, test).await else {
        return;
    };
    let path: PathBuf = mesh.directory().join("app.sock");
    let spec = |path: &Path| {
        sidecar(&format!(
            "  ingress:\n  - port: {{number: {}, protocol: HTTP, name: http}}\n    \
             defaultEndpoint: unix://{}\n  egress: [{{hosts: ['*/*']}}]\n",
            proxy.http.port(),
            path.display()
        ))
    };
    let serving = application(&path);
    mesh.apply(&spec(&path)).await;
    mesh.distributed(1).await;
    let asked = async || Call::get("front", "/").send(proxy.http).await;
    settles("the application answers", async || match asked().await {
        Ok(answer) if answer.status == 200 && answer.body == "by a socket" => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    // Nobody listens there: that is the application's failure, and nothing else is tried.
    serving.abort();
    mesh.apply(&spec(&mesh.directory().join("nobody.sock")))
        .await;
    mesh.distributed(1).await;
    settles("nobody answers", async || match asked().await?.status {
        503 => Ok(()),
        other => Err(other.to_string()),
    })
    .await;
    assert_eq!(proxy.envoy.rejected().await, Default::default());
}

const DISABLED: &str = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
                        metadata: {name: default, namespace: default}\n\
                        spec: {mtls: {mode: DISABLE}}\n---\n";

async fn a_sidecar_ends_tls_of_clients_outside_the_mesh_where_it_is_allowed(plane: Plane) {
    let test = "a_sidecar_ends_tls_of_clients_outside_the_mesh_where_it_is_allowed";
    for allowed in [true, false] {
        let mesh = match allowed {
            true => Mesh::with_tls_at_sidecars().await,
            false => Mesh::start().await,
        };
        let Some(proxy) = Sidecar::start(plane, &mesh, test).await else {
            return;
        };
        let authority = Authority::new("outside");
        let server = authority.issue("server", &["server.test"]);
        let client = authority.issue("client", &["client.test"]);
        let stranger = Authority::new("strangers").issue("client", &["client.test"]);
        let write = |name: &str, content: &str| {
            let path = file(mesh.directory(), name, content);
            path.display().to_string()
        };
        let pair = format!(
            "serverCertificate: {}, privateKey: {}",
            write("web.crt", &server.chain),
            write("web.key", &server.key)
        );
        let roots = write("roots.pem", &authority.pem);
        let spec = format!(
            "  ingress:\n  - port: {{number: {}, protocol: HTTP, name: http}}\n    \
             tls: {{mode: SIMPLE, {pair}}}\n  \
             - port: {{number: {}, protocol: TCP, name: tcp}}\n    \
             tls: {{mode: MUTUAL, {pair}, caCertificates: {roots}}}\n  \
             egress: [{{hosts: ['*/*']}}]\n",
            proxy.http.port(),
            proxy.tcp.port()
        );
        mesh.apply(&(DISABLED.to_owned() + &sidecar(&spec))).await;
        mesh.distributed(1).await;
        let (web, sql): (SocketAddr, SocketAddr) = (proxy.http, proxy.tcp);
        settles(&format!("TLS is ended: {allowed}"), async || {
            let found = http(web, Dial::Tls(None, &["http/1.1"])).await;
            match found.is_ok() == allowed {
                true => Ok(()),
                false => Err(format!("{found:?}")),
            }
        })
        .await;
        settles(&format!("TLS is ended for bytes: {allowed}"), async || {
            let found = tcp(sql, Dial::Tls(Some(&client), &[])).await;
            match found.is_ok() == allowed {
                true => Ok(()),
                false => Err(format!("{found:?}")),
            }
        })
        .await;
        // A port that asks for TLS takes nothing else.
        assert_eq!(http(web, Dial::Plain).await.is_ok(), !allowed);
        assert_eq!(tcp(sql, Dial::Plain).await.is_ok(), !allowed);
        for (pair, taken) in [
            (Some(&client), true),
            (Some(&stranger), false),
            (None, false),
        ] {
            let bytes = tcp(sql, Dial::Tls(pair, &[])).await;
            assert_eq!(bytes.is_ok(), taken && allowed, "{bytes:?}");
        }
        assert_eq!(proxy.envoy.rejected().await, Default::default());
    }
}
