//! Zone-aware balancing: requests stay in the zone of their client as far as its endpoints can take
//! them. Clients are real proxies in zones of one region; which other clients there are, the control
//! plane tells them.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use lateen_testkit::echo::Echo;
use lateen_testkit::envoy::{self, Bootstrap, Envoy, Plane};
use lateen_testkit::http::Call;
use lateen_testkit::{eventually, ports};
use serde_json::json;

use crate::gateway::assert_share;
use crate::mesh::{Mesh, loopback, service};

const ROUND_ROBIN: &str = "simple: ROUND_ROBIN";
/// For clusters as small as those here.
const ZONES: &str = "simple: ROUND_ROBIN, zoneAwareLbSetting: {enabled: true, minClusterSize: 1}";
const CLUSTER: &str = "cluster.outbound|80||pool.default.svc.cluster.local";

/// One of the workloads `front`, with its proxy.
struct Client {
    envoy: Envoy,
    proxy: SocketAddr,
}

/// Clients `front` in their zones, and a service `pool` with named endpoints.
struct Zones {
    mesh: Mesh,
    clients: Vec<Client>,
    echoes: BTreeMap<&'static str, Echo>,
}

impl Zones {
    /// A client in each of the zones `clients` of region `r`, and endpoints with their localities.
    async fn start(
        plane: Plane,
        test: &str,
        clients: &[&str],
        places: &[(&'static str, &str)],
        balancer: &str,
    ) -> Option<Zones> {
        let mesh = Mesh::start().await;
        let objects = service("pool", "http", 80) + &service("front", "http", 80);
        mesh.create(&objects).await;
        let mut zones = Zones {
            mesh,
            clients: Vec::new(),
            echoes: BTreeMap::new(),
        };
        for zone in clients {
            let client = zones.client(plane, test, zone).await?;
            zones.clients.push(client);
        }
        for (name, locality) in places {
            zones.add(name, locality).await;
        }
        zones.balance(balancer).await;
        Some(zones)
    }

    async fn client(&self, plane: Plane, test: &str, zone: &str) -> Option<Client> {
        let binary = plane.binary(test)?;
        let [proxy, inbound, app] = std::array::from_fn(|_| ports::reserve());
        self.sibling(zone, inbound).await;
        let bootstrap = Bootstrap {
            kind: "sidecar",
            name: format!("front-{zone}"),
            namespace: "default".into(),
            metadata: json!({
                "LABELS": {"app": "front"},
                "INTERCEPTION_MODE": "NONE",
                "HTTP_PROXY_PORT": proxy.to_string(),
                "LATEEN_BIND": "127.0.0.1",
                "LATEEN_INBOUND": {inbound.to_string(): app},
            }),
            xds: self.mesh.xds,
            admin: ports::reserve(),
            delta: true,
        };
        let mut bootstrap = bootstrap.to_json();
        envoy::settle(&mut bootstrap, "r", zone);
        let envoy = Envoy::start(&binary, &bootstrap, self.mesh.directory()).await;
        envoy.ready().await;
        Some(Client {
            envoy,
            proxy: loopback(proxy),
        })
    }

    /// A workload `front` in a zone, with or without a proxy that runs.
    async fn sibling(&self, zone: &str, port: u16) {
        let document = entry(
            &format!("front-{zone}"),
            "front",
            port,
            &format!("r/{zone}"),
        );
        self.mesh.apply(&document).await;
    }

    async fn add(&mut self, name: &'static str, locality: &str) {
        let echo = Echo::start(name).await;
        let document = entry(&format!("pool-{name}"), "pool", echo.port(), locality);
        self.mesh.apply(&document).await;
        self.echoes.insert(name, echo);
    }

    async fn remove(&self, name: &str) {
        let document = entry(&format!("pool-{name}"), "pool", 1, "r/a");
        self.mesh.delete(&document).await;
        self.mesh.distributed(self.clients.len()).await;
    }

    /// `balancer` is the body of `loadBalancer`.
    async fn balance(&self, balancer: &str) {
        let document = format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
             metadata: {{name: pool, namespace: default}}\n\
             spec:\n  host: pool\n  trafficPolicy: {{loadBalancer: {{{balancer}}}}}\n"
        );
        self.mesh.apply(&document).await;
        self.mesh.distributed(self.clients.len()).await;
    }

    /// How many of so many requests of a client each endpoint answered.
    async fn split(&self, client: usize, count: usize) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        let call = Call::through_proxy("pool", "/").header("connection", "close");
        for _ in 0..count {
            let answer = call.send(self.clients[client].proxy).await.unwrap();
            assert_eq!(answer.status, 200, "{answer:?}");
            *counts.entry(answer.name()).or_default() += 1;
        }
        counts
    }

    /// Waits until all answers to a client come from these endpoints, and from each of them.
    async fn until_from(&self, client: usize, names: &[&str]) {
        eventually(
            &format!("{names:?} answer to client {client}"),
            async || {
                let counts = self.split(client, 40).await;
                match counts.keys().map(String::as_str).collect::<Vec<_>>() == names {
                    true => Ok(()),
                    false => Err(format!("{counts:?}")),
                }
            },
        )
        .await;
    }

    async fn stat(&self, client: usize, name: &str) -> u64 {
        let name = format!("{CLUSTER}.{name}");
        self.clients[client].envoy.stat(&name).await
    }
}

fn entry(name: &str, app: &str, port: u16, locality: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n\
         metadata: {{name: {name}, namespace: default}}\n\
         spec: {{address: 127.0.0.1, ports: {{http: {port}}}, labels: {{app: {app}}}, \
         locality: {locality}}}\n"
    )
}

async fn requests_stay_in_the_zone_of_their_client(plane: Plane) {
    let test = "requests_stay_in_the_zone_of_their_client";
    let places = [("a1", "r/a"), ("b1", "r/b")];
    let Some(mut zones) = Zones::start(plane, test, &["a", "b"], &places, ZONES).await else {
        return;
    };
    zones.until_from(0, &["a1"]).await;
    zones.until_from(1, &["b1"]).await;
    assert_eq!(
        zones.split(0, 100).await,
        BTreeMap::from([("a1".into(), 100)])
    );
    assert_eq!(
        zones.split(1, 100).await,
        BTreeMap::from([("b1".into(), 100)])
    );
    assert!(zones.stat(0, "lb_zone_routing_all_directly").await >= 100);

    // A quarter of the endpoints is in the zone of half of the clients: half of what these send
    // goes elsewhere. The others need nobody.
    zones.add("b2", "r/b").await;
    zones.add("b3", "r/b").await;
    zones.mesh.distributed(2).await;
    zones.until_from(0, &["a1", "b1", "b2", "b3"]).await;
    zones.until_from(1, &["b1", "b2", "b3"]).await;
    let counts = zones.split(0, 400).await;
    assert_share(counts["a1"], 400, 0.5);
    let counts = zones.split(1, 90).await;
    assert_eq!(counts.get("a1"), None, "{counts:?}");
    for stat in ["lb_zone_routing_sampled", "lb_zone_routing_cross_zone"] {
        assert!(zones.stat(0, stat).await > 100, "{stat}");
        assert_eq!(zones.stat(1, stat).await, 0, "{stat}");
    }
    for client in &zones.clients {
        assert_eq!(client.envoy.rejected().await, Default::default());
    }
}

async fn clients_of_one_zone_spread_their_requests_evenly(plane: Plane) {
    let test = "clients_of_one_zone_spread_their_requests_evenly";
    let places = [("a1", "r/a"), ("b1", "r/b")];
    let Some(zones) = Zones::start(plane, test, &["a"], &places, ZONES).await else {
        return;
    };
    // Nobody else would send anything to the other zone.
    zones.until_from(0, &["a1", "b1"]).await;
    assert_share(zones.split(0, 200).await["a1"], 200, 0.5);
    // One of them in the other zone changes that, with no other word to the client.
    zones.sibling("b", ports::reserve()).await;
    zones.mesh.distributed(1).await;
    zones.until_from(0, &["a1"]).await;
    // Too few endpoints: Istio's default is 6.
    let default = "simple: ROUND_ROBIN, zoneAwareLbSetting: {enabled: true}";
    zones.balance(default).await;
    zones.until_from(0, &["a1", "b1"]).await;
    assert_share(zones.split(0, 200).await["a1"], 200, 0.5);
    assert!(zones.stat(0, "lb_zone_cluster_too_small").await > 0);
    zones.balance(ZONES).await;
    zones.until_from(0, &["a1"]).await;
    // Alone again.
    let gone = entry("front-b", "front", 1, "r/b");
    zones.mesh.delete(&gone).await;
    zones.mesh.distributed(1).await;
    zones.until_from(0, &["a1", "b1"]).await;
}

async fn a_zone_without_endpoints_sends_where_there_is_room(plane: Plane) {
    let test = "a_zone_without_endpoints_sends_where_there_is_room";
    let places = [("b1", "r/b"), ("c1", "r/c")];
    let Some(mut zones) = Zones::start(plane, test, &["a"], &places, ROUND_ROBIN).await else {
        return;
    };
    zones.sibling("b", ports::reserve()).await;
    zones.until_from(0, &["b1", "c1"]).await;
    // Half of the endpoints are in b, and half of the clients: what is left is in c.
    zones.balance(ZONES).await;
    zones.until_from(0, &["c1"]).await;
    assert!(zones.stat(0, "lb_zone_routing_cross_zone").await >= 40);
    zones.remove("c1").await;
    zones.until_from(0, &["b1"]).await;
    // With as many of their own they need neither.
    zones.add("a1", "r/a").await;
    zones.mesh.distributed(1).await;
    zones.until_from(0, &["a1"]).await;
}

async fn other_regions_come_after_the_clients_own(plane: Plane) {
    let test = "other_regions_come_after_the_clients_own";
    let places = [("b1", "r/b"), ("far", "far/z"), ("near", "near/z")];
    let Some(zones) = Zones::start(plane, test, &["a"], &places, ROUND_ROBIN).await else {
        return;
    };
    zones.until_from(0, &["b1", "far", "near"]).await;
    let next = "failover: [{from: r, to: near}]";
    zones.balance(&ZONES.replace("enabled: true", next)).await;
    zones.until_from(0, &["b1"]).await;
    zones.remove("b1").await;
    zones.until_from(0, &["near"]).await;
    zones.remove("near").await;
    zones.until_from(0, &["far"]).await;
}

async fn zones_do_not_matter_unless_somebody_says_so(plane: Plane) {
    let test = "zones_do_not_matter_unless_somebody_says_so";
    let all = ["a1", "a2", "a3", "b1", "b2", "b3"];
    let places = all.map(|name| (name, if name.starts_with('a') { "r/a" } else { "r/b" }));
    let Some(zones) = Zones::start(plane, test, &["a"], &places, ROUND_ROBIN).await else {
        return;
    };
    zones.sibling("b", ports::reserve()).await;
    zones.mesh.distributed(1).await;
    // There are enough of them for Envoy to prefer zones by itself.
    zones.until_from(0, &all).await;
    let settings = |mesh: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\n\
             data:\n  mesh: |-\n    {mesh}\n"
        )
    };
    zones
        .mesh
        .apply(&settings("zoneAwareLbSetting: {enabled: true}"))
        .await;
    zones.mesh.distributed(1).await;
    zones.until_from(0, &all[..3]).await;
    // A rule of its own is asked alone.
    for rule in [
        "zoneAwareLbSetting: {enabled: false}",
        "localityLbSetting: {enabled: true}",
    ] {
        zones.balance(&format!("{ROUND_ROBIN}, {rule}")).await;
        zones.until_from(0, &all).await;
        zones.balance(ROUND_ROBIN).await;
        zones.until_from(0, &all[..3]).await;
    }
}

on_both!(
    requests_stay_in_the_zone_of_their_client,
    clients_of_one_zone_spread_their_requests_evenly,
    a_zone_without_endpoints_sends_where_there_is_room,
    other_regions_come_after_the_clients_own,
    zones_do_not_matter_unless_somebody_says_so,
);
