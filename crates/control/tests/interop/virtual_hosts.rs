//! Virtual hosts by name (VHDS): what a change sends, and what a proxy makes of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lateen_testkit::echo::Echo;
use lateen_testkit::envoy::Plane;
use lateen_testkit::http::Call;
use lateen_testkit::{PATIENCE, eventually, settles};
use lateen_xds::client::{Client, Config, Event, Target};
use lateen_xds::{Node, VIRTUAL_HOSTS_BY_NAME, type_url};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::gateway::{rule, served};
use crate::mesh::{GATEWAY, Gateway, Mesh, Reviews, service, workload};
use crate::sidecar::{SIDECAR, Sidecar};

const TABLE: &str = "http_proxy";

/// A rule for clients in the mesh.
fn mesh_rule(host: &str, subset: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\n\
         metadata: {{name: {host}, namespace: default}}\n\
         spec:\n  hosts: [{host}]\n  http:\n  \
         - route: [{{destination: {{host: {host}, subset: {subset}}}}}]\n---\n"
    )
}

/// Version by name of what a proxy was sent of a type.
async fn sent(mesh: &Mesh, proxy: &str, kind: &str) -> BTreeMap<String, Value> {
    let status = mesh.status_of(proxy).await;
    let resources = status["types"][kind]["resources"].as_object().cloned();
    let all = resources.into_iter().flatten();
    all.map(|(name, one)| (name, one["sent"].clone())).collect()
}

fn differing(before: &BTreeMap<String, Value>, now: &BTreeMap<String, Value>) -> Vec<String> {
    let names: BTreeSet<&String> = before.keys().chain(now.keys()).collect();
    let differs = |name: &&&String| before.get(**name) != now.get(**name);
    names
        .iter()
        .filter(differs)
        .map(|name| name.to_string())
        .collect()
}

async fn responses(mesh: &Mesh, kind: &str) -> f64 {
    mesh.metric(&format!("pilot_xds_pushes{{type=\"{kind}\"}}"))
        .await
}

async fn answers(sidecar: &Sidecar, host: &str, expect: &str) {
    settles(&format!("{expect} answers for {host}"), async || {
        let answer = sidecar.send(&Call::through_proxy(host, "/")).await?;
        match answer.name() == expect {
            true => Ok(()),
            false => Err(format!("{answer:?}")),
        }
    })
    .await;
}

async fn a_changed_rule_is_sent_as_one_virtual_host(plane: Plane) {
    let mesh = Mesh::start().await;
    let test = "a_changed_rule_is_sent_as_one_virtual_host";
    let _reviews = Reviews::start(&mesh).await;
    mesh.apply(&(mesh_rule("reviews", "v1") + &service("other", "http", 80)))
        .await;
    mesh.distributed(0).await;
    let Some(sidecar) = Sidecar::start(plane, &mesh, test).await else {
        return;
    };
    // The first request of a proxy that is ready.
    let first = sidecar.get("reviews:9080", "/").await;
    assert_eq!(
        (first.status, first.name().as_str()),
        (200, "v1"),
        "{first:?}"
    );
    mesh.distributed(1).await;
    let (before, tables) = (
        sent(&mesh, SIDECAR, "vhds").await,
        responses(&mesh, "rds").await,
    );
    let hosts = responses(&mesh, "vhds").await;

    mesh.apply(&mesh_rule("reviews", "v2")).await;
    answers(&sidecar, "reviews:9080", "v2").await;
    mesh.distributed(1).await;
    let after = sent(&mesh, SIDECAR, "vhds").await;
    let name = format!("{TABLE}/reviews.default.svc.cluster.local:9080");
    assert_eq!(differing(&before, &after), [name]);
    assert_eq!(responses(&mesh, "rds").await, tables);
    assert_eq!(responses(&mesh, "vhds").await, hosts + 1.0);

    // A service that comes and goes.
    let late = Echo::start("late").await;
    let objects = service("late", "http", 80) + &workload("late", "v1", "http", late.port());
    mesh.apply(&objects).await;
    answers(&sidecar, "late.default", "late").await;
    mesh.distributed(1).await;
    let with = sent(&mesh, SIDECAR, "vhds").await;
    let late = format!("{TABLE}/late.default.svc.cluster.local:80");
    assert_eq!(differing(&after, &with), [late]);
    mesh.delete(&objects).await;
    settles("the service is gone", async || {
        let answer = sidecar
            .send(&Call::through_proxy("late.default", "/"))
            .await?;
        match answer.status {
            502 => Ok(()),
            _ => Err(format!("{answer:?}")),
        }
    })
    .await;
    mesh.distributed(1).await;
    assert_eq!(sent(&mesh, SIDECAR, "vhds").await, after);
    assert_eq!(responses(&mesh, "rds").await, tables);

    // The proxy shows the table as it serves.
    let dump = sidecar
        .envoy
        .get("/config_dump?resource=dynamic_route_configs")
        .await;
    let dump: Value = serde_json::from_str(&dump.unwrap()).unwrap();
    let tables = dump["configs"].as_array().unwrap().iter();
    let table = tables
        .map(|one| &one["route_config"])
        .find(|one| one["name"] == TABLE);
    let hosts = table.unwrap()["virtual_hosts"].as_array().unwrap();
    let shown: BTreeSet<&str> = hosts
        .iter()
        .filter_map(|host| host["name"].as_str())
        .collect();
    let expect: BTreeSet<&str> = after.keys().map(String::as_str).collect();
    assert_eq!(shown, expect);
    assert_eq!(sidecar.envoy.rejected().await, Default::default());
}

async fn a_port_that_a_gateway_opens_later_is_never_without_its_routes(plane: Plane) {
    let mesh = Mesh::start().await;
    let test = "a_port_that_a_gateway_opens_later_is_never_without_its_routes";
    let Some(gateway) = Gateway::start(plane, &mesh, test, true).await else {
        return;
    };
    let _reviews = Reviews::start(&mesh).await;
    let http = "  - route: [{destination: {host: reviews, subset: v1}}]";
    mesh.apply(&rule("app.test", http)).await;
    served(&gateway, "app.test").await;
    for round in 0..2 {
        // The rule is of both Gateways.
        let both = rule("app.test", http).replace("[web]", "[web, second]");
        mesh.apply(&(SECOND.to_owned() + &both)).await;
        mesh.distributed(1).await;
        eventually(&format!("the port is open, {round}"), async || {
            let answer = Call::get("app.test", "/").send(gateway.tcp).await?;
            assert_eq!(
                (answer.status, answer.name().as_str()),
                (200, "v1"),
                "{answer:?}"
            );
            Ok(())
        })
        .await;
        mesh.delete(SECOND).await;
        mesh.distributed(1).await;
        eventually(
            "the port is closed",
            async || match tokio::net::TcpStream::connect(gateway.tcp).await {
                Err(_) => Ok(()),
                Ok(_) => Err("it is open".to_owned()),
            },
        )
        .await;
    }
    let hosts = sent(&mesh, GATEWAY, "vhds").await;
    assert!(
        hosts.keys().any(|name| name.ends_with("/app.test:80")),
        "{hosts:?}"
    );
    assert_eq!(gateway.envoy.rejected().await, Default::default());
}

const SECOND: &str = "
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: second, namespace: default}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: 9000, name: http-second, protocol: HTTP}
    hosts: ['*']
---
";

async fn a_control_plane_that_comes_back_sends_only_the_virtual_hosts_that_differ(plane: Plane) {
    let mut mesh = Mesh::start().await;
    let test = "a_control_plane_that_comes_back_sends_only_the_virtual_hosts_that_differ";
    let _reviews = Reviews::start(&mesh).await;
    mesh.apply(&(mesh_rule("reviews", "v1") + &service("other", "http", 80)))
        .await;
    let Some(sidecar) = Sidecar::start(plane, &mesh, test).await else {
        return;
    };
    mesh.distributed(1).await;
    // The same store under a control plane that the proxy does not know of.
    let elsewhere = lateen_testkit::ports::reserve();
    let xds = std::mem::replace(&mut mesh.xds, elsewhere);
    mesh.restart().await;
    mesh.apply(&mesh_rule("reviews", "v2")).await;
    mesh.delete(&service("other", "http", 80)).await;
    let before = sidecar.get("reviews:9080", "/").await;
    assert_eq!(
        (before.status, before.name().as_str()),
        (200, "v1"),
        "{before:?}"
    );
    mesh.xds = xds;
    mesh.restart().await;
    answers(&sidecar, "reviews:9080", "v2").await;
    settles("the other service is gone", async || {
        let answer = sidecar
            .send(&Call::through_proxy("other.default", "/"))
            .await?;
        match answer.status {
            502 => Ok(()),
            _ => Err(format!("{answer:?}")),
        }
    })
    .await;
    mesh.distributed(1).await;
    assert_eq!(responses(&mesh, "vhds").await, 1.0);
    assert_eq!(responses(&mesh, "rds").await, 0.0);
    assert_eq!(sidecar.envoy.rejected().await, Default::default());
}

/// A delta client that follows the outbound routes as Envoy does, and accepts everything.
struct Follower {
    events: mpsc::Receiver<Event>,
    _client: Client,
}

/// What came of one type: names, and bytes.
#[derive(Debug, Default, PartialEq)]
struct Came {
    names: BTreeSet<String>,
    removed: BTreeSet<String>,
    bytes: usize,
}

impl Follower {
    async fn start(mesh: &Mesh, by_name: bool) -> Follower {
        let features = by_name.then(|| VIRTUAL_HOSTS_BY_NAME.to_owned());
        let node = Node {
            id: "sidecar~127.0.0.1~client-v1.default~default.svc.cluster.local".into(),
            metadata: json!({"INTERCEPTION_MODE": "NONE", "HTTP_PROXY_PORT": "15101"}),
            client_features: features.into_iter().collect(),
            ..Node::default()
        };
        let target = Target::Tcp {
            host: "127.0.0.1".into(),
            port: mesh.xds,
        };
        let (client, events) = Client::start(Config::new(target, node));
        client.subscribe(type_url::ROUTE, [TABLE.to_owned()]);
        client.subscribe_all(type_url::VIRTUAL_HOST);
        Follower {
            events,
            _client: client,
        }
    }

    /// All that comes until the control plane has heard that all is accepted, and what comes in a
    /// while after that; by short type.
    async fn comes(&mut self, mesh: &Mesh) -> BTreeMap<String, Came> {
        let mut came: BTreeMap<String, Came> = BTreeMap::new();
        while came.is_empty() {
            let event = tokio::time::timeout(PATIENCE, self.events.recv()).await;
            note(event.expect("something comes"), &mut came);
        }
        let mut all = std::pin::pin!(mesh.pushed());
        loop {
            tokio::select! {
                event = self.events.recv() => note(event, &mut came),
                () = &mut all => break,
            }
        }
        let quiet = Duration::from_millis(500);
        while let Ok(event) = tokio::time::timeout(quiet, self.events.recv()).await {
            note(event, &mut came);
        }
        came
    }
}

/// Takes what came.
fn note(event: Option<Event>, came: &mut BTreeMap<String, Came>) {
    let Event::Update(update) = event.expect("the client runs") else {
        return;
    };
    let of_type = came
        .entry(type_url::short(&update.type_url).to_owned())
        .or_default();
    of_type.removed.extend(update.removed);
    for one in update.resources {
        of_type.bytes += one.any.value.len() + one.name.len() + one.version.len();
        of_type.names.insert(one.name);
    }
    update.reply.accept();
}

/// What a change of one rule sends, in a mesh with `unrelated` other services that have rules.
async fn one_rule_among(unrelated: usize, by_name: bool) -> (usize, BTreeMap<String, Came>) {
    let mesh = Mesh::start().await;
    let mut objects = service("reviews", "http", 9080) + &mesh_rule("reviews", "v1");
    for index in 0..unrelated {
        let name = format!("unrelated-{index}");
        objects += &(service(&name, "http", 80) + &mesh_rule(&name, "v1"));
    }
    mesh.create(&objects).await;
    mesh.distributed(0).await;
    let mut follower = Follower::start(&mesh, by_name).await;
    let first = follower.comes(&mesh).await;
    let of_all = first.values().map(|came| came.bytes).sum();
    mesh.apply(&mesh_rule("reviews", "v2")).await;
    (of_all, follower.comes(&mesh).await)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_rule_sends_as_many_bytes_in_a_mesh_of_ten_times_the_size() {
    let (small, few) = one_rule_among(20, true).await;
    let (large, many) = one_rule_among(200, true).await;
    assert!(large > 8 * small, "{small} {large}");
    assert_eq!(few, many);
    let name = format!("{TABLE}/reviews.default.svc.cluster.local:9080");
    assert_eq!(many["vhds"].names, BTreeSet::from([name]));
    assert_eq!(many.len(), 1, "{many:?}");
    assert!(many["vhds"].bytes < 2_000, "{many:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_take_virtual_hosts_by_name_has_whole_tables() {
    let (small, few) = one_rule_among(20, false).await;
    assert_eq!(few.keys().collect::<Vec<_>>(), ["rds"]);
    // Again in full.
    assert!(few["rds"].bytes * 10 > small * 9, "{small} {few:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stock_envoy_over_state_of_the_world_ads_has_whole_tables() {
    let mesh = Mesh::start().await;
    let test = "stock_envoy_over_state_of_the_world_ads_has_whole_tables";
    let Some(gateway) = Gateway::start(Plane::StockEnvoy, &mesh, test, false).await else {
        return;
    };
    let _reviews = Reviews::start(&mesh).await;
    let http = "  - route: [{destination: {host: reviews, subset: v1}}]";
    mesh.apply(&rule("app.test", http)).await;
    served(&gateway, "app.test").await;
    mesh.distributed(1).await;
    let status = mesh.status_of(GATEWAY).await;
    assert_eq!(status["types"].get("vhds"), None, "{status:#}");
}

on_both!(
    a_changed_rule_is_sent_as_one_virtual_host,
    a_port_that_a_gateway_opens_later_is_never_without_its_routes,
    a_control_plane_that_comes_back_sends_only_the_virtual_hosts_that_differ,
);
