//! Pods as workloads: what a Service or a ServiceEntry selects of them, the ports they name, when
//! they serve, the names of a StatefulSet's, and the policies that select them.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use lateen_testkit::echo::Echo;
use lateen_testkit::envoy::{Bootstrap, Envoy, Plane};
use lateen_testkit::tls_client::Dial;
use lateen_testkit::{eventually, ports, settles};
use serde_json::json;
use tokio::net::UdpSocket;

use crate::callers::http;
use crate::gateway::assert_share;
use crate::member::{Secured, Who};
use crate::mesh::Mesh;
use crate::sidecar::Sidecar;

on_both!(
    a_service_entry_selects_virtual_machines_and_pods,
    a_service_leads_to_the_port_that_each_pod_names,
    a_pod_gets_traffic_while_it_is_ready,
    policies_select_pods_by_their_labels,
);

/// A server at an address of its own, as a pod has one, and at a port that no other has.
fn serve(last: u8, name: &str) -> (Echo, SocketAddr) {
    let address = SocketAddr::from((Ipv4Addr::new(127, 0, 7, last), ports::reserve()));
    let listener = TcpListener::bind(address).unwrap();
    listener.set_nonblocking(true).unwrap();
    (Echo::on(listener, name), address)
}

/// A pod that runs and is ready, with one named port.
fn pod(name: &str, app: &str, port_name: &str, at: SocketAddr) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\n\
         metadata: {{name: {name}, namespace: default, labels: {{app: {app}}}}}\nspec:\n  \
         containers:\n  - {{name: helper, image: helper}}\n  \
         - name: app\n    image: app\n    \
         ports: [{{name: {port_name}, containerPort: {}, protocol: TCP}}]\n\
         status:\n  phase: Running\n  podIP: {}\n  podIPs: [{{ip: {}}}]\n  \
         conditions: [{{type: ContainersReady, status: 'True'}}, {{type: Ready, status: 'True'}}]\n---\n",
        at.port(),
        at.ip(),
        at.ip(),
    )
}

/// Who answers `times` requests.
async fn answers(sidecar: &Sidecar, host: &str, times: usize) -> Vec<String> {
    let mut names = Vec::new();
    for _ in 0..times {
        let answer = sidecar.get(host, "/").await;
        names.push(match answer.status {
            200 => answer.name(),
            other => other.to_string(),
        });
    }
    names
}

/// Waits until exactly these answer.
async fn only(sidecar: &Sidecar, host: &str, expected: &[&str]) {
    settles(&format!("{expected:?} answer for {host}"), async || {
        let names = answers(sidecar, host, 12).await;
        let found: std::collections::BTreeSet<&str> = names.iter().map(String::as_str).collect();
        match found.iter().eq(expected) {
            true => Ok(()),
            false => Err(format!("{found:?}")),
        }
    })
    .await;
}

const ROUND_ROBIN: &str = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: all, namespace: default}
spec: {host: '*', trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}}
---
";

async fn a_service_entry_selects_virtual_machines_and_pods(plane: Plane) {
    let mesh = Mesh::start().await;
    let Some(sidecar) = Sidecar::start(plane, &mesh, "selected pods").await else {
        return;
    };
    let machine = Echo::start("machine").await;
    let (_pod, at) = serve(1, "pod");
    let (_other, other_at) = serve(2, "other");
    let objects = format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
         metadata: {{name: mixed, namespace: default}}\nspec:\n  hosts: [mixed.example.com]\n  \
         location: MESH_INTERNAL\n  resolution: STATIC\n  \
         ports: [{{number: 80, name: http, protocol: HTTP}}]\n  \
         workloadSelector: {{labels: {{app: mixed}}}}\n---\n\
         apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n\
         metadata: {{name: same, namespace: default}}\nspec:\n  address: 127.0.0.1\n  \
         ports: {{http: {}}}\n  labels: {{app: mixed}}\n  weight: 3\n---\n",
        machine.port()
    );
    // The pod has the name of the WorkloadEntry, and nothing is confused.
    let pods = pod("same", "mixed", "http", at) + &pod("other", "other", "http", other_at);
    mesh.create(&(objects + ROUND_ROBIN + &pods)).await;
    mesh.distributed(1).await;
    only(&sidecar, "mixed.example.com", &["machine", "pod"]).await;
    let of = answers(&sidecar, "mixed.example.com", 400).await;
    let of_machine = of.iter().filter(|name| *name == "machine").count();
    assert_share(of_machine, 400, 0.75);
    // One goes, the other stays.
    mesh.delete(&pod("same", "mixed", "http", at)).await;
    only(&sidecar, "mixed.example.com", &["machine"]).await;
    assert_eq!(sidecar.envoy.rejected().await, Default::default());
}

async fn a_service_leads_to_the_port_that_each_pod_names(plane: Plane) {
    let mesh = Mesh::start().await;
    let Some(sidecar) = Sidecar::start(plane, &mesh, "named ports").await else {
        return;
    };
    let (_one, one) = serve(1, "one");
    let (_two, two) = serve(2, "two");
    let (_three, three) = serve(3, "three");
    assert_ne!(one.port(), two.port());
    // The last has no port of the name, and one with the name of the Service's port.
    let pods = [
        pod("one", "shop", "web", one),
        pod("two", "shop", "web", two),
        pod("three", "shop", "http", three),
    ];
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: shop, namespace: default}\n\
         spec:\n  selector: {app: shop}\n  ports:\n  \
         - {name: http, port: 80, targetPort: web}\n";
    let number = format!(
        "  - {{name: http-number, port: 81, targetPort: {}}}\n---\n",
        three.port()
    );
    mesh.create(&(service.to_owned() + &number + ROUND_ROBIN + &pods.concat()))
        .await;
    mesh.distributed(1).await;
    only(&sidecar, "shop", &["one", "two"]).await;
    // By number the pods are asked for no name: two of them listen elsewhere.
    settles("the third answers on its number", async || {
        match answers(&sidecar, "shop:81", 1).await[0].as_str() {
            "three" => Ok(()),
            other => Err(other.to_owned()),
        }
    })
    .await;
    assert_eq!(sidecar.envoy.rejected().await, Default::default());
}

async fn a_pod_gets_traffic_while_it_is_ready(plane: Plane) {
    let mesh = Mesh::start().await;
    let Some(sidecar) = Sidecar::start(plane, &mesh, "readiness").await else {
        return;
    };
    let (_steady, steady) = serve(1, "steady");
    let (_moody, moody) = serve(2, "moody");
    let service = |name: &str, rest: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\n\
             spec:\n  selector: {{app: shop}}\n  {rest}\n  \
             ports: [{{name: http, port: 80, targetPort: web}}]\n---\n"
        )
    };
    let ready = pod("moody", "shop", "web", moody);
    let objects = service("shop", "type: ClusterIP")
        + &service("early", "publishNotReadyAddresses: true")
        + ROUND_ROBIN
        + &pod("steady", "shop", "web", steady);
    mesh.create(&(objects + &ready)).await;
    mesh.distributed(1).await;
    only(&sidecar, "shop", &["moody", "steady"]).await;
    let not_ready = ready.replace(
        "{type: Ready, status: 'True'}",
        "{type: Ready, status: 'False'}",
    );
    let unsaid = ready.replace(", {type: Ready, status: 'True'}", "");
    let leaving = ready.replace(
        "metadata: {",
        "metadata: {deletionTimestamp: '2026-01-01T00:00:00Z', ",
    );
    // A Service that says so has it all the same while it may still run.
    for gone in [&not_ready, &unsaid, &leaving] {
        assert_ne!(*gone, ready);
        mesh.apply(gone).await;
        only(&sidecar, "shop", &["steady"]).await;
        only(&sidecar, "early", &["moody", "steady"]).await;
        mesh.apply(&ready).await;
        only(&sidecar, "shop", &["moody", "steady"]).await;
    }
    for phase in ["Succeeded", "Failed"] {
        mesh.apply(&ready.replace("Running", phase)).await;
        only(&sidecar, "shop", &["steady"]).await;
        only(&sidecar, "early", &["steady"]).await;
        mesh.apply(&ready).await;
        only(&sidecar, "shop", &["moody", "steady"]).await;
    }
    assert_eq!(sidecar.envoy.rejected().await, Default::default());
}

/// A policy for pods with the label, whose requests from `shop` are decided so.
fn policy(action: &str, label: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {{name: tiers, namespace: default}}\nspec:\n  \
         selector: {{matchLabels: {{tier: {label}}}}}\n  action: {action}\n  rules:\n  \
         - from: [{{source: {{principals: [cluster.local/ns/default/sa/shop]}}}}]\n---\n"
    )
}

async fn policies_select_pods_by_their_labels(plane: Plane) {
    let test = "policies_select_pods_by_their_labels";
    let mesh = Secured::start().await;
    let as_pod = |name| Who {
        pod: true,
        ..Who::named(name)
    };
    let Some(cart) = mesh.member_as(plane, test, as_pod("cart")).await else {
        return;
    };
    let Some(shop) = mesh.member_as(plane, test, as_pod("shop")).await else {
        return;
    };
    let Some(other) = mesh.member_as(plane, test, as_pod("other")).await else {
        return;
    };
    mesh.distributed(3).await;
    // Identities are those of the pods' service accounts: the server saw the client's.
    let answer = shop.gets("cart", "/", 200).await;
    let seen = answer.got("x-forwarded-client-cert");
    assert!(
        seen.contains("URI=spiffe://cluster.local/ns/default/sa/shop"),
        "{seen}"
    );

    // Only the object of the pod has the label that policies select by, its proxy knows nothing of it.
    let label = json!({"metadata": {"labels": {"tier": "gold"}}});
    let call =
        lateen_testkit::http::Call::get("127.0.0.1", "/api/v1/namespaces/default/pods/cart-v1");
    let call = call
        .method("PATCH")
        .header("content-type", "application/merge-patch+json");
    let answer = call.body(label.to_string()).send(mesh.api).await.unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    for (action, label, from_shop, from_other) in [
        ("DENY", "gold", 403, 200),
        ("DENY", "silver", 200, 200),
        ("ALLOW", "gold", 200, 403),
        ("ALLOW", "silver", 200, 200),
    ] {
        mesh.apply(&policy(action, label)).await;
        mesh.distributed(3).await;
        let what = format!("{action} {label}");
        settles(&what, async || {
            let found = (
                shop.get("cart", "/").await.status,
                other.get("cart", "/").await.status,
            );
            match found == (from_shop, from_other) {
                true => Ok(()),
                false => Err(format!("{found:?}")),
            }
        })
        .await;
    }
    // Who shows no certificate is let in by one mode and not by the other.
    for (mode, label, is_let_in) in [
        ("PERMISSIVE", "gold", true),
        ("STRICT", "gold", false),
        ("STRICT", "silver", true),
    ] {
        mesh.apply(&format!(
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
             metadata: {{name: tiers, namespace: default}}\nspec:\n  \
             selector: {{matchLabels: {{tier: {label}}}}}\n  mtls: {{mode: {mode}}}\n"
        ))
        .await;
        mesh.distributed(3).await;
        settles(&format!("{mode} for {label}"), async || {
            let found = http(cart.http, Dial::Plain).await;
            match found.is_ok() == is_let_in {
                true => Ok(()),
                false => Err(format!("{found:?}")),
            }
        })
        .await;
        shop.gets("cart", "/", 200).await;
    }
}

/// Asks for the address of a name (RFC 1035): what the answer has, or its code.
async fn look_up(server: SocketAddr, name: &str) -> Result<Vec<Ipv4Addr>, String> {
    let mut question = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        question.push(u8::try_from(label.len()).unwrap());
        question.extend(label.as_bytes());
    }
    question.extend([0, 0, 1, 0, 1]);
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(&question, server).await.unwrap();
    let mut buffer = [0; 1500];
    let received =
        tokio::time::timeout(std::time::Duration::from_secs(5), socket.recv(&mut buffer));
    let received = received.await.map_err(|_| "no answer".to_owned())?;
    let answer = &buffer[..received.map_err(|error| error.to_string())?];
    match answer[3] & 15 {
        0 => {}
        code => return Err(format!("code {code}")),
    }
    let records = usize::from(answer[7]);
    // Each record ends with the four bytes of its address; names are pointers or written out.
    let mut found = Vec::new();
    let mut rest = &answer[question.len()..];
    for _ in 0..records {
        let header = rest
            .windows(4)
            .position(|four| four == [0, 1, 0, 1])
            .unwrap();
        let address = &rest[header + 10..header + 14];
        found.push(Ipv4Addr::new(
            address[0], address[1], address[2], address[3],
        ));
        rest = &rest[header + 14..];
    }
    found.sort();
    Ok(found)
}

/// Where nobody listens with UDP nor with TCP: reservations are held at another address.
fn free_for_dns() -> SocketAddr {
    SocketAddr::from(([127, 0, 7, 9], ports::reserve()))
}

/// Our proxy alone: stock Envoy has no DNS server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_of_a_stateful_set_have_names_of_their_own() {
    let mesh = Mesh::start().await;
    let Some(binary) = Plane::Lateen.binary("pods_of_a_stateful_set_have_names_of_their_own")
    else {
        return;
    };
    let of_set = |number: u8, ready: &str| {
        let at = SocketAddr::from(([10, 1, 0, number + 1], 3306));
        pod(&format!("db-{number}"), "db", "sql", at)
            .replace(
                "spec:\n",
                &format!("spec:\n  hostname: db-{number}\n  subdomain: db\n"),
            )
            .replace(
                "{type: Ready, status: 'True'}",
                &format!("{{type: Ready, status: '{ready}'}}"),
            )
    };
    let objects = "apiVersion: v1\nkind: Service\nmetadata: {name: db, namespace: default}\n\
         spec: {clusterIP: None, selector: {app: db}, ports: [{name: tcp-sql, port: 3306, targetPort: sql}]}\n---\n\
         apiVersion: v1\nkind: Service\nmetadata: {name: reader, namespace: default}\n\
         spec: {clusterIP: None, selector: {app: db}, ports: [{name: tcp-sql, port: 3306, targetPort: sql}]}\n---\n"
        .to_owned();
    mesh.create(&(objects + &of_set(0, "True") + &of_set(1, "True") + &of_set(2, "False")))
        .await;
    let dns = free_for_dns();
    let bootstrap = Bootstrap {
        kind: "sidecar",
        name: "front-v1".into(),
        namespace: "default".into(),
        metadata: json!({"INTERCEPTION_MODE": "NONE", "LATEEN_BIND": "127.0.0.1", "DNS_CAPTURE": "true"}),
        xds: mesh.xds,
        admin: ports::reserve(),
        delta: true,
    };
    let mut command = std::process::Command::new(&binary);
    command.env("DNS_PROXY_ADDR", dns.to_string());
    let proxy = Envoy::start_by(command, &binary, &bootstrap.to_json(), mesh.directory()).await;
    proxy.ready().await;
    let is = async |name: &str, expected: Result<&[u8], &str>| {
        eventually(name, async || {
            let expected = match expected {
                Ok(last) => Ok(last.iter().map(|n| Ipv4Addr::new(10, 1, 0, *n)).collect()),
                Err(code) => Err(code.to_owned()),
            };
            match look_up(dns, name).await {
                found if found == expected => Ok(()),
                found => Err(format!("{found:?} and not {expected:?}")),
            }
        })
        .await;
    };
    is("db-0.db.default.svc.cluster.local", Ok(&[1])).await;
    is("db-1.db.default.svc.cluster.local", Ok(&[2])).await;
    is("db.default.svc.cluster.local", Ok(&[1, 2])).await;
    is("reader.default.svc.cluster.local", Ok(&[1, 2])).await;
    mesh.apply(&of_set(2, "True")).await;
    is("db-2.db.default.svc.cluster.local", Ok(&[3])).await;
    mesh.apply(&of_set(0, "False")).await;
    is("db.default.svc.cluster.local", Ok(&[2, 3])).await;
    // A name that is in the table no more is another server's to answer.
    eventually("db-0 has no address", async || {
        match look_up(dns, "db-0.db.default.svc.cluster.local").await {
            Ok(found) if !found.is_empty() => Err(format!("{found:?}")),
            _ => Ok(()),
        }
    })
    .await;
    // Its name is below the Service it says, and below no other that selects it.
    let other = look_up(dns, "db-1.reader.default.svc.cluster.local").await;
    assert!(
        other.as_ref().is_ok_and(Vec::is_empty) || other.is_err(),
        "{other:?}"
    );
}
