//! Which endpoint a request takes: hashing, localities, failover, weights, slow start.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use lateen_testkit::echo::{Echo, TcpEcho};
use lateen_testkit::envoy::Plane;
use lateen_testkit::eventually;
use lateen_testkit::http::{Answer, Call};
use tokio::net::TcpStream;

use crate::gateway::{assert_share, rule, say_hello, served};
use crate::mesh::{Gateway, Mesh, service};
use crate::sidecar::Sidecar;

pub const HOST: &str = "balancing.test";

/// A service `pool` with named endpoints behind a gateway.
pub struct Pool {
    pub mesh: Mesh,
    pub gateway: Gateway,
    pub echoes: BTreeMap<&'static str, Echo>,
    /// How many proxies are connected.
    proxies: usize,
}

/// An endpoint: name, locality, weight.
pub type Place = (&'static str, &'static str, u32);

impl Pool {
    pub async fn start(plane: Plane, test: &str, places: &[Place], policy: &str) -> Option<Pool> {
        let mesh = Mesh::start().await;
        let gateway = Gateway::start(plane, &mesh, test, true).await?;
        mesh.create(&service("pool", "http", 80)).await;
        let mut pool = Pool {
            mesh,
            gateway,
            echoes: BTreeMap::new(),
            proxies: 1,
        };
        pool.put_gateway_at("r1/z1/s1").await;
        for place in places {
            pool.add(*place).await;
        }
        pool.set_policy(policy).await;
        let route = "  - retries: {attempts: 0}\n    route: [{destination: {host: pool}}]";
        pool.mesh.apply(&rule(HOST, route)).await;
        pool.mesh.distributed(1).await;
        served(&pool.gateway, HOST).await;
        Some(pool)
    }

    async fn add(&mut self, (name, locality, weight): Place) {
        let echo = Echo::start(name).await;
        let document = format!(
            "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n\
             metadata: {{name: pool-{name}, namespace: default}}\n\
             spec: {{address: 127.0.0.1, ports: {{http: {}}}, labels: {{app: pool, rack: {name}}}, \
             locality: {locality}, weight: {weight}}}\n",
            echo.port()
        );
        self.mesh.apply(&document).await;
        self.echoes.insert(name, echo);
    }

    /// Says where the gateway is, and that it is in rack `a`.
    async fn put_gateway_at(&self, locality: &str) {
        let ports = (self.gateway.http.port(), self.gateway.tcp.port());
        let document = format!(
            "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n\
             metadata: {{name: istio-ingressgateway, namespace: istio-system}}\n\
             spec: {{address: 127.0.0.1, ports: {{http2: {}, tcp: {}}}, locality: {locality}, \
             labels: {{app: istio-ingressgateway, istio: ingressgateway}}}}\n",
            ports.0, ports.1
        );
        self.mesh.apply(&document).await;
    }

    /// `policy` is the body of `trafficPolicy`.
    pub async fn set_policy(&self, policy: &str) {
        let document = format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
             metadata: {{name: pool, namespace: default}}\n\
             spec:\n  host: pool\n  trafficPolicy: {{{policy}}}\n"
        );
        self.mesh.apply(&document).await;
        self.mesh.distributed(self.proxies).await;
    }

    pub async fn send(&self, call: &Call) -> Answer {
        call.send(self.gateway.http).await.unwrap()
    }

    /// How many of so many requests each endpoint answered.
    async fn split(&self, count: usize) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        let call = Call::get(HOST, "/");
        for _ in 0..count {
            let answer = self.send(&call).await;
            *counts.entry(answer.name()).or_default() += 1;
        }
        counts
    }

    /// Waits until so many answers in a row come from one endpoint alone.
    async fn until_only(&self, name: &str) {
        eventually(&format!("only {name} answers"), async || {
            let counts = self.split(20).await;
            match counts.get(name) {
                Some(20) => Ok(()),
                _ => Err(format!("{counts:?}")),
            }
        })
        .await;
    }
}

const NEAR: &[Place] = &[("a", "", 1), ("b", "", 1), ("c", "", 1)];

async fn equal_requests_go_to_one_endpoint_and_different_ones_to_all(plane: Plane) {
    let test = "equal_requests_go_to_one_endpoint_and_different_ones_to_all";
    let by = |key: &str| format!("loadBalancer: {{consistentHash: {{{key}}}}}");
    let policy = by("httpHeaderName: x-user");
    let Some(pool) = Pool::start(plane, test, NEAR, &policy).await else {
        return;
    };
    let header = |user: usize| Call::get(HOST, "/").header("x-user", &format!("user-{user}"));
    let query = |user: usize| Call::get(HOST, &format!("/?a=b&user={user}"));
    let cookie = |user: usize| Call::get(HOST, "/").header("cookie", &format!("x=1; user=u{user}"));
    type Make<'a> = &'a dyn Fn(usize) -> Call;
    let kinds: [(String, Make<'_>); 4] = [
        (policy, &header),
        (by("httpHeaderName: x-user, maglev: {}"), &header),
        (
            by("httpQueryParameterName: user, ringHash: {minimumRingSize: 4096}"),
            &query,
        ),
        (by("httpCookie: {name: user, ttl: 0s}"), &cookie),
    ];
    for (policy, call) in kinds {
        pool.set_policy(&policy).await;
        eventually(&format!("{policy} is in force"), async || {
            let mut used = BTreeMap::<String, usize>::new();
            for user in 0..60 {
                let first = pool.send(&call(user)).await.name();
                let repeats = if user < 24 { 3 } else { 0 };
                for _ in 0..repeats {
                    let again = pool.send(&call(user)).await.name();
                    if again != first {
                        return Err(format!("{policy}: {first}, then {again}"));
                    }
                }
                *used.entry(first).or_default() += 1;
            }
            // Which endpoint has which users changes with the ports, that is from run to run. That
            // one of three has none of 60 users happens once in ten million runs, also where its
            // share is but a quarter.
            match used.len() {
                3 => Ok(()),
                _ => Err(format!("{used:?}")),
            }
        })
        .await;
    }
    assert_eq!(pool.gateway.envoy.rejected().await, Default::default());
}

async fn a_client_without_the_cookie_gets_one_and_stays_where_it_was(plane: Plane) {
    let test = "a_client_without_the_cookie_gets_one_and_stays_where_it_was";
    let policy = "loadBalancer: {consistentHash: {httpCookie: {name: user, path: /p, ttl: 90s, \
                  attributes: [{name: SameSite, value: Strict}, {name: Secure}]}}}";
    let Some(pool) = Pool::start(plane, test, NEAR, policy).await else {
        return;
    };
    for _ in 0..6 {
        let first = pool.send(&Call::get(HOST, "/")).await;
        let set = first.header("set-cookie");
        let value = set
            .strip_prefix("user=\"")
            .and_then(|rest| rest.split('"').next());
        let value = value.unwrap_or_else(|| panic!("{first:?}")).to_owned();
        assert_eq!(
            set,
            format!("user=\"{value}\"; Max-Age=90; Path=/p; SameSite=Strict; Secure; HttpOnly")
        );
        for quoted in [format!("user={value}"), format!("user=\"{value}\"")] {
            let again = pool
                .send(&Call::get(HOST, "/").header("cookie", &quoted))
                .await;
            assert_eq!(again.name(), first.name());
            assert_eq!(again.header("set-cookie"), "");
        }
    }
}

async fn clients_are_told_apart_by_their_address(plane: Plane) {
    let test = "clients_are_told_apart_by_their_address";
    let policy = "loadBalancer: {consistentHash: {useSourceIp: true}}";
    let Some(pool) = Pool::start(plane, test, NEAR, policy).await else {
        return;
    };
    let counts = pool.split(30).await;
    assert_eq!(counts.len(), 1, "{counts:?}");
}

/// One mesh, both proxies: what one chooses, the other chooses too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_proxies_choose_the_same_endpoint_by_hash() {
    let test = "both_proxies_choose_the_same_endpoint_by_hash";
    let places = &[("a", "", 1), ("b", "", 3), ("c", "", 2), ("d", "", 1)];
    let policy = "loadBalancer: {consistentHash: {httpHeaderName: x-user}}";
    let Some(mut pool) = Pool::start(Plane::StockEnvoy, test, places, policy).await else {
        return;
    };
    let Some(sidecar) = Sidecar::start(Plane::Lateen, &pool.mesh, test).await else {
        return;
    };
    pool.proxies = 2;
    let maglev =
        "loadBalancer: {consistentHash: {httpHeaderName: x-user, maglev: {tableSize: 1031}}}";
    for policy in [policy, maglev] {
        pool.set_policy(policy).await;
        eventually("both choose alike", async || {
            for user in 0..300 {
                let user = format!("user-{user}");
                let one = pool
                    .send(&Call::get(HOST, "/").header("x-user", &user))
                    .await;
                let call = Call::through_proxy("pool", "/").header("x-user", &user);
                let other = sidecar.send(&call).await?;
                if one.name() != other.name() {
                    return Err(format!("{user}: {} and {}", one.name(), other.name()));
                }
            }
            Ok(())
        })
        .await;
    }
}

async fn connections_of_one_client_go_to_one_endpoint(plane: Plane) {
    let test = "connections_of_one_client_go_to_one_endpoint";
    let mesh = Mesh::start().await;
    let echoes = [
        TcpEcho::start("first").await,
        TcpEcho::start("second").await,
        TcpEcho::start("third").await,
    ];
    let mut objects = service("database", "tcp", 3306);
    for (version, echo) in ["v1", "v2", "v3"].iter().zip(&echoes) {
        objects += &crate::mesh::workload("database", version, "tcp", echo.port());
    }
    mesh.create(&objects).await;
    let Some(sidecar) = Sidecar::start(plane, &mesh, test).await else {
        return;
    };
    // By chance all of 60 leave one of three out in one of ten billion runs.
    let lead_to = async |expected: usize| {
        let mut seen = BTreeMap::<String, usize>::new();
        for _ in 0..60 {
            let stream = TcpStream::connect(sidecar.database).await;
            let stream = stream.map_err(|error| error.to_string())?;
            *seen.entry(say_hello(stream).await?).or_default() += 1;
        }
        match seen.len() == expected {
            true => Ok(()),
            false => Err(format!("{seen:?}")),
        }
    };
    mesh.distributed(1).await;
    eventually("connections go to all", async || lead_to(3).await).await;
    let document = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: database, namespace: default}
spec:
  host: database
  trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true}}}
";
    mesh.apply(document).await;
    mesh.distributed(1).await;
    eventually("all connections go to one", async || lead_to(1).await).await;
}

const FAR: &[Place] = &[
    ("a", "r1/z1/s1", 1),
    ("b", "r1/z2/s1", 1),
    ("c", "r2/z1/s1", 1),
    ("d", "r3/z1/s1", 1),
];

async fn shares_of_localities_can_be_given(plane: Plane) {
    let test = "shares_of_localities_can_be_given";
    let policy = "loadBalancer: {simple: ROUND_ROBIN, localityLbSetting: {distribute: [\
                  {from: r9/*, to: {'r3/*': 100}}, \
                  {from: r1/z1/*, to: {r1/z1/*: 70, r2/*: 30}}]}}";
    let Some(pool) = Pool::start(plane, test, FAR, policy).await else {
        return;
    };
    let counts = pool.split(1000).await;
    assert_eq!(
        counts.keys().map(String::as_str).collect::<Vec<_>>(),
        ["a", "c"]
    );
    assert_share(counts["a"], 1000, 0.7);
    pool.put_gateway_at("r9/z1/s1").await;
    // Endpoints depend on the place; another change brings them up to date in any case.
    pool.set_policy(&policy.replace("70", "71").replace("30", "29"))
        .await;
    pool.until_only("d").await;
}

async fn the_mesh_can_give_shares_to_localities(plane: Plane) {
    let test = "the_mesh_can_give_shares_to_localities";
    let policy = "loadBalancer: {simple: ROUND_ROBIN}";
    let Some(pool) = Pool::start(plane, test, FAR, policy).await else {
        return;
    };
    assert_eq!(pool.split(40).await.len(), 4);
    let settings = "
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |-
    localityLbSetting: {distribute: [{from: r1/z1/*, to: {r1/z1/*: 70, 'r2/*': 30}}]}
";
    pool.mesh.apply(settings).await;
    pool.mesh.distributed(1).await;
    eventually("only a and c answer", async || {
        let counts = pool.split(40).await;
        match counts.keys().all(|name| name == "a" || name == "c") {
            true => Ok(()),
            false => Err(format!("{counts:?}")),
        }
    })
    .await;
    let counts = pool.split(1000).await;
    assert_share(counts["a"], 1000, 0.7);
    // A rule that says something itself is asked alone.
    pool.set_policy("loadBalancer: {simple: ROUND_ROBIN, localityLbSetting: {enabled: false}}")
        .await;
    eventually("all answer again", async || {
        let counts = pool.split(40).await;
        match counts.len() {
            4 => Ok(()),
            _ => Err(format!("{counts:?}")),
        }
    })
    .await;
}

async fn traffic_fails_over_to_the_next_nearest_locality(plane: Plane) {
    let test = "traffic_fails_over_to_the_next_nearest_locality";
    let outlier = "outlierDetection: {consecutive5xxErrors: 2, interval: 1s, baseEjectionTime: 60s, maxEjectionPercent: 100}";
    // Detection alone switches failover on (fact 36).
    let Some(pool) = Pool::start(plane, test, FAR, outlier).await else {
        return;
    };
    pool.until_only("a").await;
    pool.echoes["a"].always(500);
    pool.until_only("b").await;
    pool.echoes["b"].always(500);
    eventually("both other regions answer", async || {
        let counts = pool.split(40).await;
        match counts.keys().map(String::as_str).collect::<Vec<_>>()[..] {
            ["c", "d"] => Ok(()),
            _ => Err(format!("{counts:?}")),
        }
    })
    .await;
    // A region that is named comes before the others.
    let named = "loadBalancer: {localityLbSetting: {failover: [{from: r1, to: r3}]}}";
    pool.set_policy(&format!("{outlier}, {named}")).await;
    pool.until_only("d").await;
    // And it can be switched off: then all that are not ejected are alike.
    let off = "loadBalancer: {localityLbSetting: {enabled: false}}";
    pool.set_policy(&format!("{outlier}, {off}")).await;
    eventually("distance does not matter", async || {
        let counts = pool.split(60).await;
        match counts.contains_key("c") && counts.contains_key("d") {
            true => Ok(()),
            false => Err(format!("{counts:?}")),
        }
    })
    .await;
}

async fn traffic_fails_over_by_labels(plane: Plane) {
    let test = "traffic_fails_over_by_labels";
    let policy = "outlierDetection: {consecutive5xxErrors: 2, interval: 1s, baseEjectionTime: 60s, maxEjectionPercent: 100}, \
                  loadBalancer: {localityLbSetting: {failoverPriority: [rack=c, topology.kubernetes.io/region]}}";
    let places = &[
        ("a", "r1/z1/s1", 1),
        ("b", "r2/z1/s1", 1),
        ("c", "r1/z2/s2", 1),
    ];
    let Some(pool) = Pool::start(plane, test, places, policy).await else {
        return;
    };
    pool.until_only("c").await;
    pool.echoes["c"].always(500);
    // The first label decides; where it differs, the others do not count.
    eventually("a and b answer", async || {
        let counts = pool.split(40).await;
        match counts.keys().map(String::as_str).collect::<Vec<_>>()[..] {
            ["a", "b"] => Ok(()),
            _ => Err(format!("{counts:?}")),
        }
    })
    .await;
}

async fn endpoints_get_requests_by_their_weight(plane: Plane) {
    let test = "endpoints_get_requests_by_their_weight";
    let policy = "loadBalancer: {simple: ROUND_ROBIN}";
    let places = &[("a", "", 6), ("b", "", 3), ("c", "", 1)];
    let Some(pool) = Pool::start(plane, test, places, policy).await else {
        return;
    };
    for policy in [policy, "loadBalancer: {simple: LEAST_REQUEST}"] {
        pool.set_policy(policy).await;
        let counts = pool.split(600).await;
        for (name, share) in [("a", 0.6), ("b", 0.3), ("c", 0.1)] {
            assert_share(counts[name], 600, share);
        }
    }
    // Chance does not look at weights.
    pool.set_policy("loadBalancer: {simple: RANDOM}").await;
    eventually("chance decides", async || {
        let counts = pool.split(300).await;
        match counts.values().all(|count| (60..140).contains(count)) {
            true => Ok(()),
            false => Err(format!("{counts:?}")),
        }
    })
    .await;
}

async fn the_endpoint_with_fewer_requests_is_preferred(plane: Plane) {
    let test = "the_endpoint_with_fewer_requests_is_preferred";
    let policy = "loadBalancer: {simple: LEAST_CONN}";
    let places = &[("a", "", 9), ("b", "", 1)];
    let Some(pool) = Pool::start(plane, test, places, policy).await else {
        return;
    };
    // Sixty requests that stay, each sent when the one before has arrived.
    let call = Call::get(HOST, "/slow/60000");
    let held = |name: &str| pool.echoes[name].hits("/slow/60000");
    let mut requests = tokio::task::JoinSet::new();
    for sent in 1..=60 {
        let (call, to) = (call.clone(), pool.gateway.http);
        requests.spawn(async move { call.send(to).await });
        eventually("the request has arrived", async || {
            match held("a") + held("b") {
                all if all == sent => Ok(()),
                all => Err(format!("{all} of {sent}")),
            }
        })
        .await;
    }
    // Where load divides the weights 9 and 1, `b` gets one in four: 14 to 16, however the requests
    // fall to the workers and wherever their schedules begin. By weight alone it gets 4 to 7, by
    // load alone half.
    let few = held("b");
    assert!((10..=20).contains(&few), "{few} of 60");
}

async fn a_new_endpoint_warms_up(plane: Plane) {
    let test = "a_new_endpoint_warms_up";
    let policy = "loadBalancer: {simple: ROUND_ROBIN, warmup: {duration: 8s, minimumPercent: 5, aggression: 1}}";
    let Some(mut pool) = Pool::start(plane, test, &NEAR[..2], policy).await else {
        return;
    };
    tokio::time::sleep(Duration::from_secs(9)).await;
    let added = Instant::now();
    pool.add(("c", "", 1)).await;
    pool.mesh.distributed(1).await;
    // The most that it may get: its share by a clock that began before the proxy's, and some turns
    // for the beginning of each worker's schedule. Of 200 it would get 67 if it were warm.
    let (mut early, mut most) = (0, 10.0);
    for _ in 0..200 {
        let answer = pool.send(&Call::get(HOST, "/")).await;
        let factor = (added.elapsed().as_secs_f64() / 8.0).clamp(0.05, 1.0);
        most += factor / (2.0 + factor);
        early += u32::from(answer.name() == "c");
    }
    assert!(f64::from(early) < most, "{early}, at most {most}");
    eventually("c has its full share", async || {
        let counts = pool.split(300).await;
        match counts.get("c").is_some_and(|count| *count >= 75) {
            true => Ok(()),
            false => Err(format!("{counts:?}")),
        }
    })
    .await;
}

on_both!(
    equal_requests_go_to_one_endpoint_and_different_ones_to_all,
    a_client_without_the_cookie_gets_one_and_stays_where_it_was,
    clients_are_told_apart_by_their_address,
    connections_of_one_client_go_to_one_endpoint,
    shares_of_localities_can_be_given,
    the_mesh_can_give_shares_to_localities,
    traffic_fails_over_to_the_next_nearest_locality,
    traffic_fails_over_by_labels,
    endpoints_get_requests_by_their_weight,
    the_endpoint_with_fewer_requests_is_preferred,
    a_new_endpoint_warms_up,
);
