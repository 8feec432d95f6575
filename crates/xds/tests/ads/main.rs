//! Client against server through real loopback sockets.

#![allow(
    clippy::unwrap_used,
    reason = "a test stops at what is not as expected"
)]

mod mesh;

use std::collections::BTreeMap;
use std::time::Duration;

use lateen_xds::client::{Client, Event};
use lateen_xds::type_url::{CLUSTER, ENDPOINT, LISTENER};
use lateen_xds::{Changed, Limits, ResourceState, SyncState};
use mesh::{Mesh, Proxy, eventually};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

#[tokio::test]
async fn a_proxy_gets_what_it_subscribes_to_and_every_change_of_it() {
    let mesh = Mesh::start().await;
    mesh.set(&[
        (CLUSTER, "a", 1),
        (CLUSTER, "b", 1),
        (ENDPOINT, "a", 1),
        (ENDPOINT, "x", 1),
    ]);
    let proxy = Proxy::connect(&mesh, "p.default");
    proxy.client.subscribe_all(CLUSTER);
    proxy
        .client
        .subscribe(ENDPOINT, ["a".to_owned(), "missing".to_owned()]);
    eventually("the first state", || {
        proxy.holds(&[(CLUSTER, "a", 1), (CLUSTER, "b", 1), (ENDPOINT, "a", 1)])
    })
    .await;
    assert!(proxy.was_removed(ENDPOINT, "missing"));
    mesh.set(&[
        (CLUSTER, "a", 2),
        (ENDPOINT, "a", 1),
        (ENDPOINT, "missing", 1),
    ]);
    eventually("the change", || {
        proxy.holds(&[
            (CLUSTER, "a", 2),
            (ENDPOINT, "a", 1),
            (ENDPOINT, "missing", 1),
        ])
    })
    .await;
    eventually("synced", || {
        mesh.server.status().first().is_some_and(|p| p.synced())
    })
    .await;
    let status = &mesh.server.status()[0];
    assert_eq!(status.connection, "p.default-1");
    assert_eq!(status.state(LISTENER), SyncState::NotSent);
}

/// What a push changes may have been found out before the proxy was there.
#[tokio::test]
async fn a_push_that_began_before_a_proxy_came_leaves_nothing_out() {
    let mesh = Mesh::start().await;
    let before = std::time::Instant::now();
    mesh.set(&[(CLUSTER, "a", 1), (ENDPOINT, "a", 1)]);
    let proxy = Proxy::connect(&mesh, "p.default");
    proxy.client.subscribe_all(CLUSTER);
    proxy.client.subscribe(ENDPOINT, ["a".to_owned()]);
    let first = [(CLUSTER, "a", 1), (ENDPOINT, "a", 1)];
    eventually("the first state", || proxy.holds(&first)).await;
    mesh.replace(&[(CLUSTER, "a", 2), (ENDPOINT, "a", 2)]);
    mesh.push_since(before, Changed::names(ENDPOINT, ["a"]));
    let second = [(CLUSTER, "a", 2), (ENDPOINT, "a", 2)];
    eventually("all of that push", || proxy.holds(&second)).await;
    // Those that begin later are made with it in view.
    mesh.replace(&[(CLUSTER, "a", 3), (ENDPOINT, "a", 3)]);
    mesh.push(Changed::names(ENDPOINT, ["a"]));
    let third = [(CLUSTER, "a", 2), (ENDPOINT, "a", 3)];
    eventually("what the push names", || proxy.holds(&third)).await;
}

#[tokio::test]
async fn a_refused_resource_is_shown_with_its_reason_while_the_others_apply() {
    let mesh = Mesh::start().await;
    mesh.set(&[(CLUSTER, "good", 1), (CLUSTER, "bad", 666)]);
    let proxy = Proxy::connect(&mesh, "p.default");
    proxy.client.subscribe_all(CLUSTER);
    eventually("the rejection", || {
        mesh.server
            .status()
            .first()
            .is_some_and(|p| p.state(CLUSTER) == SyncState::Error)
    })
    .await;
    assert!(proxy.holds(&[(CLUSTER, "good", 1)]));
    let status = mesh.server.status();
    let resources = &status[0].types[CLUSTER].resources;
    assert_eq!(resources["good"].state, ResourceState::Acked);
    assert_eq!(
        resources["bad"].state,
        ResourceState::Rejected("666 is refused".into())
    );
    mesh.set(&[(CLUSTER, "good", 1), (CLUSTER, "bad", 2)]);
    eventually("the repair", || {
        proxy.holds(&[(CLUSTER, "good", 1), (CLUSTER, "bad", 2)])
            && mesh.server.status()[0].synced()
    })
    .await;
}

#[tokio::test]
async fn after_a_restart_of_the_server_only_the_difference_is_sent() {
    let mut mesh = Mesh::start().await;
    mesh.set(&[(CLUSTER, "a", 1), (CLUSTER, "b", 1), (CLUSTER, "c", 1)]);
    let proxy = Proxy::connect(&mesh, "p.default");
    proxy.client.subscribe_all(CLUSTER);
    eventually("the first state", || {
        proxy.holds(&[(CLUSTER, "a", 1), (CLUSTER, "b", 1), (CLUSTER, "c", 1)])
    })
    .await;
    mesh.stop().await;
    eventually("the loss", || proxy.disconnects() > 0).await;
    assert!(proxy.holds(&[(CLUSTER, "a", 1), (CLUSTER, "b", 1), (CLUSTER, "c", 1)]));
    let before = proxy.received();
    mesh.restart(&[(CLUSTER, "a", 1), (CLUSTER, "b", 2)]).await;
    eventually("the difference", || {
        proxy.holds(&[(CLUSTER, "a", 1), (CLUSTER, "b", 2)])
    })
    .await;
    assert_eq!(proxy.received() - before, 1, "b alone");
}

#[tokio::test]
async fn thousands_of_resources_and_an_endpoint_change_among_them() {
    let mesh = Mesh::start().await;
    let names: Vec<String> = (0..3000)
        .map(|i| format!("outbound|80||svc-{i}.default"))
        .collect();
    let world = |touched: u32| -> Vec<(&'static str, &str, u32)> {
        let clusters = names.iter().map(|name| (CLUSTER, name.as_str(), 1));
        let endpoints = names.iter().enumerate();
        let endpoints =
            endpoints.map(|(i, name)| (ENDPOINT, name.as_str(), if i == 77 { touched } else { 1 }));
        clusters.chain(endpoints).collect()
    };
    mesh.set(&world(1));
    let proxy = Proxy::connect(&mesh, "p.default");
    proxy.client.subscribe_all(CLUSTER);
    proxy.client.subscribe(ENDPOINT, names.iter().cloned());
    eventually("all of it", || proxy.holds(&world(1))).await;
    let before = proxy.received();
    mesh.replace(&world(2));
    mesh.push(Changed::names(ENDPOINT, [names[77].clone()]));
    eventually("the change", || proxy.holds(&world(2))).await;
    assert_eq!(proxy.received() - before, 1);
}

#[tokio::test]
async fn a_client_that_lags_skips_states_but_ends_with_the_last() {
    let mesh = Mesh::start().await;
    mesh.set(&[(CLUSTER, "a", 1)]);
    let (client, mut events) = Client::start(mesh.config("slow.default"));
    client.subscribe_all(CLUSTER);
    assert!(matches!(events.recv().await, Some(Event::Connected)));
    let Some(Event::Update(first)) = events.recv().await else {
        panic!("an update")
    };
    for content in 2..=500 {
        mesh.set(&[(CLUSTER, "a", content)]);
        if content % 100 == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    let owed = &mesh.server.status()[0].types[CLUSTER];
    assert_eq!(owed.state(), SyncState::Stale);
    first.reply.accept();
    let mut updates = 0;
    loop {
        let Some(Event::Update(update)) = events.recv().await else {
            panic!("an update")
        };
        updates += 1;
        let last = update.resources[0].version.clone();
        update.reply.accept();
        if last == "500" {
            break;
        }
    }
    assert!(updates < 20, "{updates} updates for a client that lagged");
}

#[tokio::test]
async fn a_reply_that_is_dropped_is_a_rejection() {
    let mesh = Mesh::start().await;
    mesh.set(&[(CLUSTER, "a", 1)]);
    let (client, mut events) = Client::start(mesh.config("p.default"));
    client.subscribe_all(CLUSTER);
    while let Some(event) = events.recv().await {
        if let Event::Update(update) = event {
            drop(update);
            break;
        }
    }
    eventually("the rejection", || {
        mesh.server
            .status()
            .first()
            .is_some_and(|p| p.state(CLUSTER) == SyncState::Error)
    })
    .await;
}

#[tokio::test]
async fn a_refused_proxy_hears_why_and_tries_again() {
    let mesh = Mesh::start().await;
    let (client, mut events) = Client::start(mesh.config("stranger.default"));
    client.subscribe_all(CLUSTER);
    let mut reasons = Vec::new();
    while reasons.len() < 2 {
        if let Some(Event::Disconnected { reason, .. }) = events.recv().await {
            reasons.push(reason);
        }
    }
    assert!(
        reasons[1].contains("no workload stranger.default"),
        "{}",
        reasons[1]
    );
    assert!(mesh.server.status().is_empty());
}

#[tokio::test]
async fn a_control_plane_that_is_not_there_is_named_with_its_address() {
    let mut config = Mesh::start().await.config("p.default");
    // A port that nobody else can have, and on which nobody listens.
    let bound = tokio::net::TcpSocket::new_v4().unwrap();
    bound.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let port = bound.local_addr().unwrap().port();
    config.target = lateen_xds::client::Target::Tcp {
        host: "127.0.0.1".into(),
        port,
    };
    let (client, mut events) = Client::start(config);
    client.subscribe_all(CLUSTER);
    let Some(Event::Disconnected { reason, .. }) = events.recv().await else {
        panic!("lost")
    };
    assert!(reason.contains(&format!("127.0.0.1:{port}: ")), "{reason}");
    assert!(reason.contains("refused"), "{reason}");
}

#[tokio::test]
async fn streams_beyond_the_bound_are_refused() {
    let limits = lateen_xds::Limits {
        connections: 2,
        ..Default::default()
    };
    let mesh = Mesh::with_limits(limits).await;
    mesh.set(&[(CLUSTER, "a", 1)]);
    let proxies: Vec<_> = (0..3)
        .map(|i| {
            let proxy = Proxy::connect(&mesh, &format!("p{i}.default"));
            proxy.client.subscribe_all(CLUSTER);
            proxy
        })
        .collect();
    eventually("two served", || {
        proxies
            .iter()
            .filter(|p| p.holds(&[(CLUSTER, "a", 1)]))
            .count()
            == 2
    })
    .await;
    eventually("one refused", || {
        proxies.iter().any(|p| p.disconnects() > 1)
    })
    .await;
    assert_eq!(mesh.server.status().len(), 2);
}

/// Random worlds, pushed with exactly what changed, while the server is killed and started anew
/// and clients come and go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_happens_every_client_ends_with_the_last_state() {
    const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
    for seed in 0..6 {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut mesh = Mesh::start().await;
        let mut proxies = vec![Proxy::connect(&mesh, "p0.default")];
        let mut world: BTreeMap<(&'static str, &str), u32> = BTreeMap::new();
        for step in 0..120 {
            let entries: Vec<_> = world.iter().map(|((u, n), c)| (*u, *n, *c)).collect();
            match random.random_range(0..20) {
                0 => {
                    mesh.kill();
                    mesh.restart(&entries).await;
                }
                1 => proxies.push(Proxy::connect(&mesh, &format!("p{step}.default"))),
                2 if proxies.len() > 1 => drop(proxies.swap_remove(0)),
                _ => {
                    let url = [CLUSTER, LISTENER, ENDPOINT][random.random_range(0..3)];
                    let name = NAMES[random.random_range(0..NAMES.len())];
                    match random.random_range(0..5) {
                        0 => world.remove(&(url, name)),
                        content => world.insert((url, name), content),
                    };
                    let entries: Vec<_> = world.iter().map(|((u, n), c)| (*u, *n, *c)).collect();
                    mesh.replace(&entries);
                    mesh.push(Changed::names(url, [name]));
                }
            }
            if let Some(proxy) = proxies.last().filter(|_| step % 7 == 0) {
                proxy.client.subscribe_all(CLUSTER);
                proxy.client.subscribe_all(LISTENER);
                proxy.client.subscribe(ENDPOINT, NAMES.map(str::to_owned));
            }
            if random.random_bool(0.3) {
                tokio::time::sleep(Duration::from_millis(random.random_range(0..4))).await;
            }
        }
        let entries: Vec<_> = world.iter().map(|((u, n), c)| (*u, *n, *c)).collect();
        for proxy in &proxies {
            proxy.client.subscribe_all(CLUSTER);
            proxy.client.subscribe_all(LISTENER);
            proxy.client.subscribe(ENDPOINT, NAMES.map(str::to_owned));
            eventually(&format!("the last state, seed {seed}"), || {
                proxy.holds(&entries)
            })
            .await;
        }
    }
}

/// Nobody may hold a stream open without ever saying who he is.
#[tokio::test]
async fn a_stream_without_a_first_request_ends() {
    use discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
    use envoy_types::pb::envoy::service::discovery::v3 as discovery;

    let mesh = Mesh::with_limits(Limits {
        first_request: Duration::from_millis(200),
        ..Limits::default()
    })
    .await;
    let address = format!("http://{}", mesh.address());
    let channel = tonic::transport::Endpoint::from_shared(address).unwrap();
    let mut client = AggregatedDiscoveryServiceClient::new(channel.connect().await.unwrap());
    let silent = tokio_stream::pending::<discovery::DeltaDiscoveryRequest>();
    let answer = client.delta_aggregated_resources(silent).await.unwrap();
    let end = answer.into_inner().message().await.unwrap_err();
    assert_eq!(end.code(), tonic::Code::DeadlineExceeded, "{end}");

    // One that has said it may be silent for as long as it likes.
    let proxy = Proxy::connect(&mesh, "p.default");
    proxy.client.subscribe_all(CLUSTER);
    eventually("it is connected", || mesh.server.status().len() == 1).await;
    let connection = mesh.server.status()[0].connection.clone();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(mesh.server.status()[0].connection, connection);
}
