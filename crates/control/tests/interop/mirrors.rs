//! Mirrors of VirtualServices through a gateway: what the mirror gets, how often, and that the
//! client never notices.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use lateen_testkit::envoy::Plane;
use lateen_testkit::http::{Call, Client};
use lateen_testkit::recorder::{Recorder, Seen};
use lateen_testkit::{eventually, ports};

use crate::gateway::assert_share;
use crate::mesh::{Mesh, service, workload};
use crate::requests::gateway_with;

const RULES: &str = "
  - match: [{uri: {prefix: /all}}]
    mirror: {host: mirror-one}
    rewrite: {uri: /rewritten, authority: rewritten.test}
    headers: {request: {set: {x-set: route}}}
    route: [{destination: {host: live}}]
  - match: [{uri: {prefix: /plain}}]
    mirror: {host: mirror-one, port: {number: 80}}
    route: [{destination: {host: live}}]
  - match: [{uri: {prefix: /quarter}}]
    mirror: {host: mirror-one}
    mirrorPercentage: {value: 25}
    route: [{destination: {host: live}}]
  - match: [{uri: {prefix: /old}}]
    mirror: {host: mirror-one}
    mirrorPercent: 50
    route: [{destination: {host: live}}]
  - match: [{uri: {prefix: /exact-wins}}]
    mirror: {host: mirror-one}
    mirrorPercentage: {value: 100}
    mirrorPercent: 0
    route: [{destination: {host: live}}]
  - match: [{uri: {prefix: /none}}]
    mirror: {host: mirror-one}
    mirrorPercentage: {value: 0}
    route: [{destination: {host: live}}]
  - match: [{uri: {prefix: /two}}]
    mirrors: [{destination: {host: mirror-one}}, {destination: {host: mirror-two}, percentage: {value: 100}}]
    route: [{destination: {host: live}}]
  - match: [{uri: {prefix: /nowhere}}]
    mirrors:
    - {destination: {host: mirror-one, subset: missing}}
    - {destination: {host: unknown}}
    - {destination: {host: closed}}
    - {destination: {host: reviews, subset: nobody}}
    route: [{destination: {host: live}}]
  - match: [{uri: {prefix: /slow}}]
    mirror: {host: reviews, subset: v1}
    route: [{destination: {host: live}}]
  - route: [{destination: {host: live}}]";

const MIRROR: &str = "outbound|80||mirror-one.default.svc.cluster.local";

/// The services of the rules; `live` answers, the mirrors write down.
struct Servers {
    live: Recorder,
    one: Recorder,
    two: Recorder,
}

impl Servers {
    async fn start(mesh: &Mesh) -> Servers {
        let servers = Servers {
            live: Recorder::start("live").await,
            one: Recorder::start("one").await,
            two: Recorder::start("two").await,
        };
        let mut objects = String::new();
        for (name, port) in [
            ("live", servers.live.port()),
            ("mirror-one", servers.one.port()),
            ("mirror-two", servers.two.port()),
            ("closed", ports::reserve()),
        ] {
            objects += &service(name, "http", 80);
            objects += &workload(name, "v1", "http", port);
        }
        mesh.create(&objects).await;
        mesh.distributed(1).await;
        servers
    }
}

/// What a server got for a path, once it has got `count` requests.
async fn seen(server: &Recorder, path: &str, count: usize) -> Vec<Seen> {
    eventually(&format!("{count} requests for {path}"), async || {
        let seen = server.seen(path);
        match seen.len() {
            len if len == count => Ok(seen),
            len => Err(format!("{len}: {seen:?}")),
        }
    })
    .await
}

async fn a_mirror_gets_what_the_live_service_gets(plane: Plane) {
    let test = "a_mirror_gets_what_the_live_service_gets";
    let Some((mesh, gateway, _reviews)) =
        gateway_with(plane, test, &[("mirror.test", RULES)]).await
    else {
        return;
    };
    let servers = Servers::start(&mesh).await;
    lateen_testkit::settles("the service is there", async || {
        let answer = gateway.get("mirror.test", "/").await;
        match &*answer.body {
            "live" => Ok(()),
            _ => Err(format!("{answer:?}")),
        }
    })
    .await;
    let big = vec![b'x'; 300_000];
    for (path, arrives, body) in [
        ("/plain/get", "/plain/get", Vec::new()),
        ("/plain/post?q=1", "/plain/post", b"some text".to_vec()),
        ("/plain/big", "/plain/big", big),
        ("/all/x", "/rewritten/x", b"text".to_vec()),
    ] {
        let method = if body.is_empty() { "GET" } else { "PUT" };
        let call = Call::get("mirror.test", path)
            .method(method)
            .body(body.clone());
        let answer = gateway
            .send(&call.header("x-own", "1").header("x-own", "2"))
            .await;
        assert_eq!(
            (answer.status, &*answer.body),
            (200, "live"),
            "{path}: {answer:?}"
        );
        let live = seen(&servers.live, arrives, 1).await.remove(0);
        let copy = seen(&servers.one, arrives, 1).await.remove(0);
        assert_eq!(
            (&copy.method, &copy.path),
            (&live.method, &live.path),
            "{path}"
        );
        assert!(copy.body == body && live.body == body, "{path}");
        // The suffix `-shadow` is off by default since Istio 1.28 (fact 14).
        for name in [
            "host",
            "x-own",
            "x-set",
            "x-request-id",
            "content-length",
            "x-envoy-attempt-count",
            "x-envoy-original-path",
        ] {
            assert_eq!(copy.header(name), live.header(name), "{path} {name}");
        }
        // What the proxy's own client adds.
        assert_eq!(copy.header("x-envoy-internal"), "true", "{path}: {copy:?}");
        let (live, copy) = (
            live.header("x-forwarded-for"),
            copy.header("x-forwarded-for"),
        );
        let added = copy.strip_prefix(&format!("{live},"));
        assert!(
            added.is_some_and(|ip| ip.parse::<IpAddr>().is_ok()),
            "{path}: {live} {copy}"
        );
    }
    for path in ["/two", "/exact-wins"] {
        assert_eq!(gateway.get("mirror.test", path).await.body, "live");
        seen(&servers.one, path, 1).await;
    }
    seen(&servers.two, "/two", 1).await;
    assert_eq!(gateway.get("mirror.test", "/none").await.body, "live");

    // A mirror that does not exist, does not listen or does not answer changes nothing.
    for path in ["/nowhere", "/slow/60000"] {
        let started = Instant::now();
        for _ in 0..5 {
            assert_eq!(
                gateway.get("mirror.test", path).await.body,
                "live",
                "{path}"
            );
        }
        assert!(started.elapsed() < Duration::from_secs(20), "{path}");
    }
    assert_eq!(servers.one.seen("/none").len(), 0);
    assert_eq!(gateway.envoy.rejected().await, Default::default());
}

async fn mirrors_get_the_share_that_the_rule_says(plane: Plane) {
    let test = "mirrors_get_the_share_that_the_rule_says";
    let Some((mesh, gateway, _reviews)) =
        gateway_with(plane, test, &[("mirror.test", RULES)]).await
    else {
        return;
    };
    let servers = Servers::start(&mesh).await;
    for (path, share) in [("/quarter", 0.25), ("/old", 0.5)] {
        let mut client = Client::connect(gateway.http).await.unwrap();
        for _ in 0..1000 {
            let answer = client.send(&Call::get("mirror.test", path)).await.unwrap();
            assert_eq!(answer.status, 200, "{answer:?}");
        }
        // The last copies may still be on their way: there are as many as the proxy says it sent.
        let sent = format!("cluster.{MIRROR}.upstream_rq_total");
        let copies = eventually("all copies have come", async || {
            let copies = ["/quarter", "/old"].map(|path| servers.one.seen(path).len());
            match gateway.envoy.stat(&sent).await as usize {
                sent if sent == copies[0] + copies[1] => Ok(servers.one.seen(path).len()),
                sent => Err(format!("{copies:?} of {sent}")),
            }
        })
        .await;
        assert_share(copies, 1000, share);
    }
}

on_both!(
    a_mirror_gets_what_the_live_service_gets,
    mirrors_get_the_share_that_the_rule_says,
);
