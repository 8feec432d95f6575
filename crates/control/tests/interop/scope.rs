//! Sidecars: what a proxy is told shrinks to what they import, they make listeners of their own,
//! and say where the application is.

use std::collections::BTreeSet;

use lateen_testkit::echo::{Echo, TcpEcho};
use lateen_testkit::envoy::Plane;
use lateen_testkit::http::Call;
use lateen_testkit::{eventually, ports, settles};
use serde_json::Value;
use tokio::net::TcpStream;

use crate::gateway::say_hello;
use crate::mesh::{Mesh, loopback, service, workload};
use crate::sidecar::{SIDECAR, Sidecar};

on_both!(
    a_sidecar_resource_shrinks_what_a_proxy_knows,
    services_are_seen_where_they_are_exported_to,
    egress_listeners_of_a_sidecar_resource_have_ports_of_their_own,
    ingress_listeners_of_a_sidecar_resource_lead_to_their_endpoint,
    unknown_hosts_go_to_the_egress_proxy,
);

/// Two services here and one in the namespace `other`, each answering with its name.
pub struct Services {
    near: Echo,
    nearby: Echo,
    far: Echo,
}

impl Services {
    pub async fn start(mesh: &Mesh) -> Services {
        let services = Services {
            near: Echo::start("near").await,
            nearby: Echo::start("nearby").await,
            far: Echo::start("far").await,
        };
        let mut objects = service("near", "http", 80) + &service("nearby", "http", 80);
        objects += &workload("near", "v1", "http", services.near.port());
        objects += &workload("nearby", "v1", "http", services.nearby.port());
        let far = service("far", "http", 80) + &workload("far", "v1", "http", services.far.port());
        objects += &far.replace("namespace: default", "namespace: other");
        mesh.create(&objects).await;
        services
    }
}

fn sidecar(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: Sidecar\n\
         metadata: {{name: {name}, namespace: {namespace}}}\nspec:\n{spec}"
    )
}

async fn dump(sidecar: &Sidecar) -> Value {
    let text = sidecar.envoy.get("/config_dump").await.unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Hosts of the clusters a proxy holds.
async fn hosts(sidecar: &Sidecar) -> BTreeSet<String> {
    let dump = dump(sidecar).await;
    let mut found = BTreeSet::new();
    for config in dump["configs"].as_array().unwrap() {
        for cluster in config["dynamic_active_clusters"]
            .as_array()
            .into_iter()
            .flatten()
        {
            let name = cluster["cluster"]["name"].as_str().unwrap_or_default();
            if let Some(host) = name
                .strip_prefix("outbound|")
                .and_then(|n| n.split('|').nth(2))
            {
                found.insert(host.trim_end_matches(".svc.cluster.local").to_owned());
            }
        }
    }
    found
}

pub async fn knows(sidecar: &Sidecar, expected: &[&str]) {
    let expected: BTreeSet<String> = expected.iter().map(|host| host.to_string()).collect();
    eventually("the proxy knows what it should", async || {
        match hosts(sidecar).await {
            found if found == expected => Ok(()),
            found => Err(format!("{found:?} instead of {expected:?}")),
        }
    })
    .await;
}

async fn answers(sidecar: &Sidecar, host: &str, status: u16) {
    settles(
        &format!("{host} answers {status}"),
        async || match sidecar.get(host, "/").await.status {
            found if found == status => Ok(()),
            found => Err(found.to_string()),
        },
    )
    .await;
}

async fn a_sidecar_resource_shrinks_what_a_proxy_knows(plane: Plane) {
    let mesh = Mesh::start().await;
    let Some(proxy) = Sidecar::start(plane, &mesh, "scopes").await else {
        return;
    };
    let _services = Services::start(&mesh).await;
    mesh.distributed(1).await;
    knows(
        &proxy,
        &[
            "far.other",
            "front.default",
            "near.default",
            "nearby.default",
        ],
    )
    .await;
    answers(&proxy, "far.other", 200).await;

    // That of the root namespace is the mesh's default, where `.` is the namespace of each workload.
    let root = |hosts: &str| {
        let egress = format!("  egress: [{{hosts: [{hosts}]}}]\n");
        sidecar("istio-system", "default", &egress)
    };
    mesh.apply(&root("./*")).await;
    knows(&proxy, &["front.default", "near.default", "nearby.default"]).await;
    answers(&proxy, "far.other", 502).await;
    answers(&proxy, "near", 200).await;
    mesh.apply(&root("istio-system/*, other/*")).await;
    knows(&proxy, &["far.other"]).await;
    answers(&proxy, "near", 502).await;
    answers(&proxy, "far.other", 200).await;

    // That of the namespace counts instead, and one that picks the workload instead of both.
    mesh.apply(&sidecar(
        "default",
        "default",
        "  egress: [{hosts: [./*]}]\n",
    ))
    .await;
    knows(&proxy, &["front.default", "near.default", "nearby.default"]).await;
    answers(&proxy, "far.other", 502).await;
    answers(&proxy, "near", 200).await;
    let one = "  workloadSelector: {labels: {app: front}}\n  \
               egress: [{hosts: [./near.default.svc.cluster.local]}]\n";
    mesh.apply(&sidecar("default", "front", one)).await;
    knows(&proxy, &["near.default"]).await;
    answers(&proxy, "nearby", 502).await;
    answers(&proxy, "near", 200).await;

    // Where an imported rule leads comes along.
    let rule = "apiVersion: networking.istio.io/v1\nkind: VirtualService\n\
                metadata: {name: near, namespace: default}\nspec:\n  hosts: [near]\n  http:\n  \
                - route: [{destination: {host: far.other.svc.cluster.local}}]\n";
    mesh.apply(rule).await;
    knows(&proxy, &["far.other", "near.default"]).await;
    settles("the rule leads there", async || {
        match proxy.get("near", "/").await.name().as_str() {
            "far" => Ok(()),
            other => Err(other.to_owned()),
        }
    })
    .await;

    // Nothing at all.
    let nothing = "  workloadSelector: {labels: {app: front}}\n  egress: [{hosts: [~/*]}]\n";
    mesh.apply(&sidecar("default", "front", nothing)).await;
    knows(&proxy, &[]).await;
    answers(&proxy, "near", 502).await;
    mesh.synced(SIDECAR).await;
    assert_eq!(proxy.envoy.rejected().await, Default::default());
}

async fn services_are_seen_where_they_are_exported_to(plane: Plane) {
    let mesh = Mesh::start().await;
    let Some(proxy) = Sidecar::start(plane, &mesh, "exportTo").await else {
        return;
    };
    let echo = Echo::start("external").await;
    let entry = |name: &str, namespace: &str, export: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
             metadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  \
             hosts: [{name}.example.com]\n  resolution: STATIC\n  exportTo: [{export}]\n  \
             ports: [{{number: 80, name: http, protocol: HTTP}}]\n  \
             endpoints: [{{address: 127.0.0.1, ports: {{http: {}}}}}]\n---\n",
            echo.port()
        )
    };
    let objects = entry("everyone", "other", "'*'")
        + &entry("theirs", "other", "'.'")
        + &entry("ours", "other", "default")
        + &entry("nobodys", "default", "'~'")
        + &entry("own", "default", "'.'");
    mesh.apply(&objects).await;
    mesh.distributed(1).await;
    let seen = [
        "everyone.example.com",
        "front.default",
        "ours.example.com",
        "own.example.com",
    ];
    knows(&proxy, &seen).await;
    for (host, status) in [
        ("everyone", 200),
        ("ours", 200),
        ("own", 200),
        ("theirs", 502),
        ("nobodys", 502),
    ] {
        answers(&proxy, &format!("{host}.example.com"), status).await;
    }

    // The mesh's default is for those that say nothing.
    let silent = entry("silent", "other", "'*'").replace("  exportTo: ['*']\n", "");
    mesh.apply(&silent).await;
    answers(&proxy, "silent.example.com", 200).await;
    let config = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\n\
                  data: {mesh: 'defaultServiceExportTo: [.]'}\n";
    mesh.apply(config).await;
    answers(&proxy, "silent.example.com", 502).await;
    answers(&proxy, "everyone.example.com", 200).await;
}

async fn egress_listeners_of_a_sidecar_resource_have_ports_of_their_own(plane: Plane) {
    let mesh = Mesh::start().await;
    let Some(proxy) = Sidecar::start(plane, &mesh, "egress listeners").await else {
        return;
    };
    let services = Services::start(&mesh).await;
    let database = TcpEcho::start("database").await;
    let [http, tcp, explicit] = std::array::from_fn(|_| ports::reserve());
    let objects = service("web", "http", http)
        + &workload("web", "v1", "http", services.near.port())
        + &service("store", "tcp", tcp)
        + &workload("store", "v1", "tcp", database.port());
    mesh.create(&objects).await;
    let spec = format!(
        "  egress:\n  \
         - {{port: {{number: {http}, protocol: HTTP, name: http}}, hosts: [./*]}}\n  \
         - {{port: {{number: {tcp}, protocol: TCP, name: tcp}}, bind: 127.0.0.1, captureMode: NONE, \
         hosts: [./store.default.svc.cluster.local]}}\n  \
         - {{port: {{number: {explicit}, protocol: HTTP_PROXY, name: proxy}}, hosts: [other/*]}}\n"
    );
    mesh.apply(&sidecar("default", "ports", &spec)).await;
    mesh.distributed(1).await;
    eventually("the HTTP listener answers for its port", async || {
        let answer = Call::get("web", "/").send(loopback(http)).await?;
        match answer.name().as_str() {
            "near" => Ok(()),
            _ => Err(format!("{answer:?}")),
        }
    })
    .await;
    let what = "another port's service is not behind this listener";
    settles(what, async || {
        let stranger = Call::get("nearby", "/").send(loopback(http)).await?;
        match stranger.status {
            502 => Ok(()),
            _ => Err(format!("{stranger:?}")),
        }
    })
    .await;
    eventually("the TCP listener leads to its service", async || {
        let stream = TcpStream::connect(loopback(tcp))
            .await
            .map_err(|e| e.to_string())?;
        match say_hello(stream)
            .await
            .map_err(|e| format!("{e:?}"))?
            .as_str()
        {
            "database hello" => Ok(()),
            other => Err(other.to_owned()),
        }
    })
    .await;
    eventually("the HTTP proxy has the services of its hosts", async || {
        let far = Call::through_proxy("far.other", "/")
            .send(loopback(explicit))
            .await?;
        let near = Call::through_proxy("near", "/")
            .send(loopback(explicit))
            .await?;
        match (far.name().as_str(), near.status) {
            ("far", 502) => Ok(()),
            _ => Err(format!("{far:?} {near:?}")),
        }
    })
    .await;
    mesh.pushed().await;
    assert_eq!(proxy.envoy.rejected().await, Default::default());
}

async fn ingress_listeners_of_a_sidecar_resource_lead_to_their_endpoint(plane: Plane) {
    let mesh = Mesh::start().await;
    let Some(proxy) = Sidecar::start(plane, &mesh, "ingress listeners").await else {
        return;
    };
    let other = Echo::start("beside").await;
    let own = ports::reserve();
    let spec = format!(
        "  workloadSelector: {{labels: {{app: front}}}}\n  ingress:\n  \
         - {{port: {{number: 80, protocol: HTTP, name: http}}, defaultEndpoint: '127.0.0.1:{}'}}\n  \
         - {{port: {{number: {own}, protocol: HTTP, name: extra}}, bind: 127.0.0.1, \
         defaultEndpoint: '0.0.0.0:{}', connectionPool: {{http: {{http1MaxPendingRequests: 7}}}}}}\n  \
         inboundConnectionPool: {{tcp: {{maxConnections: 9}}}}\n",
        other.port(),
        other.port()
    );
    mesh.distributed(1).await;
    mesh.apply(&sidecar("default", "front", &spec)).await;
    mesh.distributed(1).await;
    for address in [proxy.http, loopback(own)] {
        settles("the endpoint of the ingress listener answers", async || {
            let answer = Call::get("front", "/").send(address).await?;
            match answer.name().as_str() {
                "beside" => Ok(()),
                _ => Err(format!("{answer:?}")),
            }
        })
        .await;
    }
    // A port that no ingress listener names is not served.
    eventually("the TCP port is closed", async || {
        let said = match TcpStream::connect(proxy.tcp).await {
            Ok(stream) => say_hello(stream).await.ok(),
            Err(_) => None,
        };
        said.map_or(Ok(()), Err)
    })
    .await;
    let dump = dump(&proxy).await.to_string();
    assert!(
        dump.contains("\"max_pending_requests\":7"),
        "the listener's own limit"
    );
    assert!(
        dump.contains("\"max_connections\":9"),
        "the limit of all other inbound connections"
    );
}

async fn unknown_hosts_go_to_the_egress_proxy(plane: Plane) {
    let mesh = Mesh::start().await;
    let Some(proxy) = Sidecar::start(plane, &mesh, "the egress proxy").await else {
        return;
    };
    let _services = Services::start(&mesh).await;
    mesh.distributed(1).await;
    answers(&proxy, "nobody.example.com", 502).await;
    let spec = "  egress: [{hosts: ['*/*']}]\n  outboundTrafficPolicy:\n    mode: ALLOW_ANY\n    \
                egressProxy: {host: far.other.svc.cluster.local, port: {number: 80}}\n";
    mesh.apply(&sidecar("default", "default", spec)).await;
    settles("unknown hosts go there, known ones do not", async || {
        let unknown = proxy.get("nobody.example.com", "/").await;
        let known = proxy.get("near", "/").await;
        match (unknown.status, known.name().as_str()) {
            (200, "near") if unknown.name() == "far" => Ok(()),
            _ => Err(format!("{unknown:?} {known:?}")),
        }
    })
    .await;
}
