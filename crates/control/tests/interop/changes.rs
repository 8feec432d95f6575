//! Stock Envoy while things change: what is sent, how soon it is in force, and what happens to
//! requests meanwhile.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lateen_testkit::echo::Echo;
use lateen_testkit::envoy::Plane;
use lateen_testkit::http::{Answer, Call, Client};
use lateen_testkit::{eventually, settles};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::gateway::{rule, served};
use crate::mesh::{GATEWAY, Gateway, Mesh, Reviews, workload};

/// Requests on a few connections until it is told to stop; every one must be answered with 200.
struct Load {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<usize>>,
}

impl Load {
    fn start(gateway: &Gateway, host: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let tasks = (0..4).map(|_| {
            let (stop, to, call) = (stop.clone(), gateway.http, Call::get(host, "/"));
            tokio::spawn(async move {
                let mut client = Client::connect(to).await.unwrap();
                let mut count = 0;
                while !stop.load(Ordering::Relaxed) {
                    let answer = client.send(&call).await.unwrap();
                    assert_eq!(answer.status, 200, "{answer:?}");
                    count += 1;
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                count
            })
        });
        let tasks = tasks.collect();
        Load { stop, tasks }
    }

    /// How many requests were answered.
    async fn stop(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        let mut count = 0;
        for task in self.tasks {
            count += task.await.unwrap();
        }
        count
    }
}

/// Waits until requests are answered as `expect` says; returns how long that took.
async fn in_force(gateway: &Gateway, host: &str, expect: impl Fn(&Answer) -> bool) -> Duration {
    let started = Instant::now();
    settles("the change is in force", async || {
        let answer = Call::get(host, "/").send(gateway.http).await?;
        match expect(&answer) {
            true => Ok(()),
            false => Err(format!("{answer:?}")),
        }
    })
    .await;
    started.elapsed()
}

fn to_subset(name: &str) -> String {
    let http = format!("  - route: [{{destination: {{host: reviews, subset: {name}}}}}]");
    rule("app.test", &http)
}

async fn changes_take_effect_soon_and_no_request_fails(plane: Plane) {
    let mesh = Mesh::start().await;
    let test = "changes_take_effect_soon_and_no_request_fails";
    let Some(gateway) = Gateway::start(plane, &mesh, test, true).await else {
        return;
    };
    let _reviews = Reviews::start(&mesh).await;
    mesh.apply(&to_subset("v1")).await;
    served(&gateway, "app.test").await;
    mesh.distributed(1).await;
    let load = Load::start(&gateway, "app.test");
    let mut times = Vec::new();
    for version in ["v2", "v3", "v1", "v2", "v3", "v1"] {
        mesh.apply(&to_subset(version)).await;
        times.push(in_force(&gateway, "app.test", |answer| answer.name() == version).await);
    }
    // A subset that comes with the rule that uses it, and goes with it: the cluster must be there
    // before the route and until after it.
    for _ in 0..4 {
        mesh.apply(&(EXTRA_SUBSETS.to_owned() + &to_subset("extra")))
            .await;
        in_force(&gateway, "app.test", |answer| answer.name() == "v2").await;
        mesh.apply(&to_subset("v1")).await;
        mesh.delete(EXTRA_SUBSETS).await;
        in_force(&gateway, "app.test", |answer| answer.name() == "v1").await;
    }
    let count = load.stop().await;
    assert!(count > 100, "{count} requests");
    times.sort();
    // The median, so that one stall of a busy machine does not decide. It is a tenth of a second
    // where nothing else runs.
    assert!(times[3] < Duration::from_secs(5), "{times:?}");
    assert_eq!(gateway.envoy.rejected().await, Default::default());
}

/// Beside the rule `reviews`: subsets of rules for one host are joined (fact 30).
const EXTRA_SUBSETS: &str = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews-extra, namespace: default}
spec:
  host: reviews
  subsets: [{name: extra, labels: {version: v2}}]
---
";

/// Of each type: the nonce of the last response, and version by resource.
type Sent = BTreeMap<String, (Value, BTreeMap<String, Value>)>;

async fn sent(mesh: &Mesh) -> Sent {
    let status = mesh.status_of(GATEWAY).await;
    let types = status["types"].as_object().unwrap().iter();
    let sent = types.map(|(kind, status)| {
        let resources = status["resources"].as_object().unwrap().iter();
        let versions = resources.map(|(name, one)| (name.clone(), one["sent"].clone()));
        (
            kind.clone(),
            (status["sent"]["nonce"].clone(), versions.collect()),
        )
    });
    sent.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_one_endpoint_sends_only_its_endpoint_sets() {
    let mesh = Mesh::start().await;
    let test = "a_change_of_one_endpoint_sends_only_its_endpoint_sets";
    let Some(gateway) = Gateway::start(Plane::StockEnvoy, &mesh, test, true).await else {
        return;
    };
    let _reviews = Reviews::start(&mesh).await;
    mesh.apply(&(to_subset("v1") + EXTRA_SERVICE)).await;
    in_force(&gateway, "app.test", |answer| answer.name() == "v1").await;
    mesh.distributed(1).await;
    // A new cluster asks for its endpoints after it was accepted.
    eventually("every cluster has its endpoints", async || {
        let sent = sent(&mesh).await;
        let other = "outbound|80||other.default.svc.cluster.local";
        match sent["eds"].1.contains_key(other) {
            true => Ok(()),
            false => Err(format!("{sent:?}")),
        }
    })
    .await;
    mesh.distributed(1).await;

    let (before, pushes) = (sent(&mesh).await, pushes(&mesh).await);
    let moved = Echo::start("moved").await;
    let unchanged_labels = workload("reviews", "v1", "http", moved.port());
    mesh.apply(&unchanged_labels).await;
    in_force(&gateway, "app.test", |answer| answer.name() == "moved").await;
    mesh.distributed(1).await;
    let after = sent(&mesh).await;
    for kind in ["cds", "lds", "rds"] {
        assert_eq!(before[kind], after[kind], "{kind} was sent again");
    }
    let changed: Vec<&String> = after["eds"]
        .1
        .iter()
        .filter(|(name, version)| before["eds"].1.get(*name) != Some(version))
        .map(|(name, _)| name)
        .collect();
    assert_eq!(
        changed,
        [
            "outbound|9080|v1|reviews.default.svc.cluster.local",
            "outbound|9080||reviews.default.svc.cluster.local",
        ]
    );
    let now = self::pushes(&mesh).await;
    assert_eq!(now["eds"], pushes["eds"] + 1.0, "one response");

    // The instance reports that it is not well: nothing is left in the subset.
    let unwell = "status: {conditions: [{type: Healthy, status: 'False'}]}\n---\n";
    mesh.apply(&unchanged_labels.replace("---\n", unwell)).await;
    in_force(&gateway, "app.test", |answer| {
        (answer.status, answer.body.as_str()) == (503, "no healthy upstream")
    })
    .await;
    mesh.apply(&unchanged_labels.replace("---\n", &unwell.replace("False", "True")))
        .await;
    in_force(&gateway, "app.test", |answer| answer.name() == "moved").await;
    for kind in ["cds", "lds", "rds"] {
        assert_eq!(
            before[kind],
            sent(&mesh).await[kind],
            "{kind} was sent again"
        );
    }
    assert_eq!(gateway.envoy.rejected().await, Default::default());
}

const EXTRA_SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: other, namespace: default}
spec:
  selector: {app: other}
  ports: [{name: http, port: 80}]
";

/// Responses sent so far, by type.
async fn pushes(mesh: &Mesh) -> BTreeMap<&'static str, f64> {
    let mut found = BTreeMap::new();
    for kind in ["cds", "eds", "lds", "rds"] {
        let name = format!("pilot_xds_pushes{{type=\"{kind}\"}}");
        found.insert(kind, mesh.metric(&name).await);
    }
    found
}

/// What Envoy did with what it was sent: nothing of this moves when nothing is sent anew.
async fn effects(gateway: &Gateway) -> BTreeMap<String, u64> {
    let mut stats = gateway.envoy.stats().await;
    let counts = [
        "cluster_manager.cluster_added",
        "cluster_manager.cluster_modified",
        "cluster_manager.cluster_removed",
        "cluster_manager.cluster_updated",
        "listener_manager.listener_added",
        "listener_manager.listener_modified",
        "listener_manager.listener_removed",
    ];
    stats.retain(|name, _| {
        counts.contains(&name.as_str())
            || name.ends_with(".config_reload")
            || (name.starts_with("cluster.outbound") && name.ends_with(".update_success"))
    });
    assert!(stats.len() > counts.len() + 1, "{stats:?}");
    stats
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stock_envoy_outlives_the_control_plane_and_is_not_sent_again_what_it_has() {
    let mut mesh = Mesh::start().await;
    let test = "stock_envoy_outlives_the_control_plane_and_is_not_sent_again_what_it_has";
    let Some(gateway) = Gateway::start(Plane::StockEnvoy, &mesh, test, true).await else {
        return;
    };
    let reviews = Reviews::start(&mesh).await;
    mesh.apply(&to_subset("v1")).await;
    in_force(&gateway, "app.test", |answer| answer.name() == "v1").await;
    mesh.distributed(1).await;
    let before = effects(&gateway).await;
    let load = Load::start(&gateway, "app.test");

    mesh.stop().await;
    eventually("Envoy sees that it is alone", async || {
        match gateway.envoy.stat("control_plane.connected_state").await {
            0 => Ok(()),
            other => Err(other.to_string()),
        }
    })
    .await;
    let served_alone = reviews.v1.hits("/");
    eventually(
        "requests go on without a control plane",
        async || match reviews.v1.hits("/") {
            hits if hits > served_alone + 20 => Ok(()),
            hits => Err(hits.to_string()),
        },
    )
    .await;

    mesh.restart().await;
    mesh.distributed(1).await;
    mesh.synced(GATEWAY).await;
    assert_eq!(before, effects(&gateway).await);
    let status = mesh.status_of(GATEWAY).await;
    assert_eq!(status["types"]["cds"]["nack"], json!(null));

    // Changes reach it as before.
    mesh.apply(&to_subset("v2")).await;
    in_force(&gateway, "app.test", |answer| answer.name() == "v2").await;
    load.stop().await;
    assert_eq!(gateway.envoy.rejected().await, Default::default());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_changed_while_the_control_plane_was_away_is_sent_over_delta_ads() {
    changed_while_away(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_changed_while_the_control_plane_was_away_is_sent_over_state_of_the_world_ads() {
    changed_while_away(false).await;
}

async fn changed_while_away(delta: bool) {
    let mut mesh = Mesh::start().await;
    let test = "what_changed_while_the_control_plane_was_away";
    let Some(gateway) = Gateway::start(Plane::StockEnvoy, &mesh, test, delta).await else {
        return;
    };
    let _reviews = Reviews::start(&mesh).await;
    mesh.apply(&(to_subset("v1") + EXTRA_SERVICE)).await;
    served(&gateway, "app.test").await;
    mesh.distributed(1).await;
    eventually("the cluster is there", async || {
        let clusters = gateway.envoy.get("/clusters").await?;
        match clusters.contains("||other.default") {
            true => Ok(()),
            false => Err(clusters),
        }
    })
    .await;

    // The same store under a control plane that Envoy does not know of.
    let elsewhere = lateen_testkit::ports::reserve();
    let xds = std::mem::replace(&mut mesh.xds, elsewhere);
    mesh.restart().await;
    mesh.apply(&to_subset("v3")).await;
    mesh.delete(EXTRA_SERVICE).await;
    mesh.xds = xds;
    mesh.restart().await;
    mesh.distributed(1).await;
    in_force(&gateway, "app.test", |answer| answer.name() == "v3").await;
    eventually("the cluster is gone", async || {
        let clusters = gateway.envoy.get("/clusters").await?;
        match clusters.contains("||other.default") {
            true => Err(clusters),
            false => Ok(()),
        }
    })
    .await;
    assert_eq!(gateway.envoy.rejected().await, Default::default());
}

on_both!(changes_take_effect_soon_and_no_request_fails);
