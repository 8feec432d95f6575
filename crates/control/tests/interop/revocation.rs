//! Certificates that the mesh's authority has revoked: lists stand among the files of an authority
//! that is plugged in, go to all namespaces as the ConfigMap `istio-ca-crl`, and from there to the
//! agents of proxies.

use lateen_testkit::certificates::{Authority, Pair, file};
use lateen_testkit::echo::Echo;
use lateen_testkit::envoy::Plane;
use lateen_testkit::settles;
use lateen_testkit::tls_client::{Dial, ask};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::callers::http;
use crate::member::Secured;
use crate::mesh::loopback;

on_both!(revoked_certificates_and_authorities_are_refused_until_they_are_taken_back);

/// What a client of HTTP/2 begins with: its preface and empty settings.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Publishes lists, and gives them to the proxies once the ConfigMap has them, as a kubelet does.
async fn revoke(mesh: &Secured, lists: &str) {
    mesh.revoke(lists);
    settles("the ConfigMap has the lists", async || {
        let map = "/api/v1/namespaces/default/configmaps/istio-ca-crl";
        let map = mesh.page(map).await;
        match map["data"]["ca-crl.pem"] == lists {
            true => Ok(()),
            false => Err(map.to_string()),
        }
    })
    .await;
    file(mesh.directory(), "ca-crl.pem", lists);
}

/// A service that speaks mutual TLS by itself with a certificate of the mesh.
async fn service(mesh: &Secured, name: &str, pair: &Pair, root: &Authority) -> Echo {
    let echo = Echo::over_tls(name, pair.server(Some(root), &["istio"])).await;
    mesh.create(&format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
         metadata: {{name: {name}, namespace: default}}\nspec:\n  hosts: [{name}.test]\n  \
         location: MESH_EXTERNAL\n  resolution: STATIC\n  subjectAltNames: ['{ID}']\n  \
         ports: [{{name: http, number: 80, protocol: HTTP}}]\n  \
         endpoints: [{{address: 127.0.0.1, ports: {{http: {}}}}}]\n---\n\
         apiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
         metadata: {{name: {name}, namespace: default}}\n\
         spec: {{host: {name}.test, trafficPolicy: {{tls: {{mode: ISTIO_MUTUAL}}, \
         connectionPool: {{http: {{maxRequestsPerConnection: 1}}}}}}}}\n",
        echo.port()
    ))
    .await;
    echo
}

const ID: &str = "spiffe://cluster.local/ns/default/sa/some";

async fn revoked_certificates_and_authorities_are_refused_until_they_are_taken_back(plane: Plane) {
    let test = "revoked_certificates_and_authorities_are_refused_until_they_are_taken_back";
    let root = Authority::new("root");
    let (ours, theirs) = (root.intermediate("ours"), root.intermediate("theirs"));
    let (good, bad) = (ours.issue("good", &[ID]), ours.issue("bad", &[ID]));
    let their = theirs.issue("their", &[ID]);
    let nothing = [&root, &ours, &theirs].map(|one| one.revokes(&[])).concat();
    let some = [
        root.revokes_serials(&[theirs.serial]),
        ours.revokes(&[&bad]),
        theirs.revokes(&[]),
    ]
    .concat();
    let mesh = Secured::signed_by(ours, None).await;
    let Some(cart) = mesh.member(plane, test, "cart").await else {
        return;
    };
    let Some(shop) = mesh.member(plane, test, "shop").await else {
        return;
    };
    mesh.apply(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
         metadata: {name: default, namespace: default}\nspec: {mtls: {mode: STRICT}}\n",
    )
    .await;
    let mut servers = Vec::new();
    for (name, pair) in [("good", &good), ("bad", &bad), ("their", &their)] {
        servers.push(service(&mesh, name, pair, &root).await);
    }
    mesh.distributed(2).await;
    let check = async |lists: &str, all: bool| {
        for (name, pair) in [("good", &good), ("bad", &bad), ("their", &their)] {
            let expected = all || name == "good";
            settles(&format!("{lists}: client {name} {expected}"), async || {
                let dial = Dial::Tls(Some(pair), &["istio"]);
                match http(cart.http, dial).await {
                    found if found.is_ok() == expected => Ok(()),
                    found => Err(format!("{found:?}")),
                }
            })
            .await;
            let status = if expected { 200 } else { 503 };
            shop.gets(&format!("{name}.test"), "/", status).await;
            // The control plane itself.
            settles(&format!("{lists}: xDS for {name} {expected}"), async || {
                let dial = Dial::Tls(Some(pair), &["h2"]);
                let answer = ask(loopback(mesh.secure), dial, PREFACE, |got| got.len() >= 9);
                match answer.await {
                    found if found.is_ok() == expected => Ok(()),
                    found => Err(format!("{found:?}")),
                }
            })
            .await;
        }
        // Who has a certificate of the authority that signs now goes on as before.
        let answer = shop.gets("cart", "/", 200).await;
        let certificate = answer.got("x-forwarded-client-cert");
        assert!(certificate.contains(&shop.spiffe_id), "{certificate}");
    };
    check("no lists", true).await;
    revoke(&mesh, &some).await;
    check("revoked", false).await;
    revoke(&mesh, &nothing).await;
    check("taken back", true).await;
    assert_eq!(cart.envoy.rejected().await, Default::default());
    assert_eq!(shop.envoy.rejected().await, Default::default());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_watches_config_maps_hears_of_new_roots_and_lists() {
    let root = Authority::new("root");
    let mesh = Secured::signed_by(root.intermediate("ours"), None).await;
    let mut watch = TcpStream::connect(mesh.api).await.unwrap();
    let request = "GET /api/v1/namespaces/default/configmaps?watch=true HTTP/1.1\r\n\
                   host: localhost\r\n\r\n";
    watch.write_all(request.as_bytes()).await.unwrap();
    let mut heard = String::new();
    let mut hears = async |events: &[&str]| {
        while !events.iter().all(|event| heard.contains(event)) {
            let mut piece = [0; 4096];
            let read = tokio::time::timeout(lateen_testkit::PATIENCE, watch.read(&mut piece));
            let read = read.await.unwrap_or_else(|_| panic!("{events:?}: {heard}"));
            heard.push_str(&String::from_utf8_lossy(&piece[..read.unwrap()]));
        }
    };
    hears(&["istio-ca-root-cert", "istio-ca-crl", "\"type\":\"ADDED\""]).await;
    let lists = root.revokes(&[]) + &mesh.authority.revokes(&[]);
    mesh.revoke(&lists);
    let first = lists.lines().nth(1).unwrap();
    hears(&["\"type\":\"MODIFIED\"", first]).await;
}
