//! Virtual hosts by name, in front of stock Envoy and of our proxy.

use std::net::SocketAddr;
use std::time::Duration;

use lateen_testkit::echo::Echo;
use lateen_testkit::envoy::{Bootstrap, Envoy, Plane};
use lateen_testkit::http::Call;
use lateen_testkit::{eventually, ports};
use lateen_xds::ResourceState;
use lateen_xds::type_url::{ROUTE, VIRTUAL_HOST};
use serde_json::json;

use crate::mesh::{Draft, Mesh, ads, cluster, endpoints, listener};

/// A table whose virtual hosts are resources of their own.
fn divided_table(name: &str) -> Draft {
    let vhds = json!({"config_source": ads()});
    Draft {
        url: ROUTE,
        json: json!({"name": name, "vhds": vhds}),
    }
}

/// One of them, called `TABLE/HOST`.
fn virtual_host(name: &str, domains: &[&str], cluster: &str) -> Draft {
    let route = json!({"match": {"prefix": "/"}, "route": {"cluster": cluster}});
    Draft {
        url: VIRTUAL_HOST,
        json: json!({"name": name, "domains": domains, "routes": [route]}),
    }
}

struct Hosts {
    mesh: Mesh,
    proxy: Envoy,
    entry: SocketAddr,
    /// What does not change.
    base: Vec<Draft>,
    _one: Echo,
    _two: Echo,
    _directory: tempfile::TempDir,
}

impl Hosts {
    /// Virtual hosts `a` and `b`, both of the cluster `one`.
    async fn start(plane: Plane, test: &str) -> Option<Self> {
        let binary = plane.binary(test)?;
        let mesh = Mesh::start().await;
        let (one, two) = (Echo::start("one").await, Echo::start("two").await);
        let entry = SocketAddr::from(([127, 0, 0, 1], ports::reserve()));
        let base = vec![
            cluster("one", 1),
            cluster("two", 1),
            endpoints("one", &[one.port()]),
            endpoints("two", &[two.port()]),
            listener("main", entry.port()),
            divided_table("main"),
        ];
        let hosts = [
            virtual_host("main/a", &["a.test"], "one"),
            virtual_host("main/b", &["b.test"], "one"),
        ];
        mesh.set("1", &[&base[..], &hosts].concat());
        let bootstrap = Bootstrap {
            kind: "sidecar",
            name: "app".into(),
            namespace: "default".into(),
            metadata: json!({}),
            xds: mesh.port(),
            admin: ports::reserve(),
            delta: true,
        };
        let directory = tempfile::tempdir().unwrap();
        let proxy = Envoy::start(&binary, &bootstrap.to_json(), directory.path()).await;
        proxy.ready().await;
        Some(Hosts {
            mesh,
            proxy,
            entry,
            base,
            _one: one,
            _two: two,
            _directory: directory,
        })
    }

    /// Makes this the truth beside what does not change.
    fn set(&self, version: &str, more: &[Draft]) {
        self.mesh.set(version, &[&self.base, more].concat());
    }

    async fn answer(&self, host: &str) -> Result<String, String> {
        let answer = Call::get(host, "/").send(self.entry).await?;
        match answer.status {
            200 => Ok(answer.name()),
            status => Err(format!("{host}: {status} {}", answer.body)),
        }
    }

    async fn answers(&self, host: &str, expect: &str) {
        eventually(
            &format!("{expect} answers for {host}"),
            async || match self.answer(host).await? {
                name if name == expect => Ok(()),
                name => Err(name),
            },
        )
        .await;
    }

    /// State of each virtual host at the proxy.
    fn states(&self) -> Vec<(String, ResourceState)> {
        let all = self.mesh.server.status();
        let of_type = all.first().and_then(|proxy| proxy.types.get(VIRTUAL_HOST));
        let resources = of_type.into_iter().flat_map(|of_type| &of_type.resources);
        resources
            .map(|(name, one)| (name.clone(), one.state.clone()))
            .collect()
    }
}

async fn a_refused_virtual_host_leaves_the_last_good_one_and_the_others_apply(plane: Plane) {
    let test = "a_refused_virtual_host_leaves_the_last_good_one";
    let Some(hosts) = Hosts::start(plane, test).await else {
        return;
    };
    // The first requests, at once.
    assert_eq!(hosts.answer("a.test").await.as_deref(), Ok("one"));
    assert_eq!(hosts.answer("b.test").await.as_deref(), Ok("one"));

    // `a` takes a domain that `b` has.
    let b = virtual_host("main/b", &["b.test"], "two");
    let greedy = virtual_host("main/a", &["a.test", "b.test"], "two");
    hosts.set("2", &[greedy, b.clone()]);
    hosts.answers("b.test", "two").await;
    eventually("the bad one alone is refused", async || {
        match hosts.states().as_slice() {
            [
                (_, ResourceState::Rejected(reason)),
                (_, ResourceState::Acked),
            ] if reason.contains("b.test") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    assert_eq!(hosts.answer("a.test").await.as_deref(), Ok("one"));

    // A good one takes its place, and a domain moves from one to another in one push.
    hosts.set("3", &[virtual_host("main/a", &["a.test"], "two"), b]);
    hosts.answers("a.test", "two").await;
    let moved = [
        virtual_host("main/a", &["b.test"], "one"),
        virtual_host("main/b", &["a.test"], "one"),
    ];
    hosts.set("4", &moved);
    hosts.answers("a.test", "one").await;
    hosts.answers("b.test", "one").await;
    eventually("everything is accepted", async || {
        let states = hosts.states();
        let all = states
            .iter()
            .all(|(_, state)| *state == ResourceState::Acked);
        match all && states.len() == 2 {
            true => Ok(()),
            false => Err(format!("{states:?}")),
        }
    })
    .await;
}

async fn a_table_that_comes_later_or_again_is_never_without_its_virtual_hosts(plane: Plane) {
    let test = "a_table_that_comes_later_or_again";
    let Some(hosts) = Hosts::start(plane, test).await else {
        return;
    };
    let later = SocketAddr::from(([127, 0, 0, 1], ports::reserve()));
    let own = [virtual_host("main/a", &["a.test"], "one")];
    let with = [
        own[0].clone(),
        listener("later", later.port()),
        divided_table("later"),
        virtual_host("later/a", &["a.test"], "two"),
    ];
    for round in 0..3 {
        hosts.set(&format!("{round} with"), &with);
        // From the first moment on that it listens.
        eventually("the listener is there", async || {
            let answer = Call::get("a.test", "/").send(later).await?;
            assert_eq!(
                (answer.status, answer.name()),
                (200, "two".into()),
                "{answer:?}"
            );
            Ok(())
        })
        .await;
        hosts.set(&format!("{round} without"), &own);
        eventually(
            "the listener is gone",
            async || match tokio::net::TcpStream::connect(later).await {
                Err(_) => Ok(()),
                Ok(_) => Err("it is still there".to_owned()),
            },
        )
        .await;
    }
    assert_eq!(hosts.answer("a.test").await.as_deref(), Ok("one"));
    assert_eq!(hosts.proxy.rejected().await, Default::default());
}

async fn after_a_restart_of_the_control_plane_only_what_differs_is_sent(plane: Plane) {
    let test = "after_a_restart_of_the_control_plane_only_what_differs_is_sent";
    let Some(mut hosts) = Hosts::start(plane, test).await else {
        return;
    };
    hosts.answers("b.test", "one").await;
    hosts.mesh.kill();
    let others = [
        virtual_host("main/b", &["b.test"], "two"),
        virtual_host("main/c", &["c.test"], "two"),
    ];
    hosts.set("2", &others);
    hosts.mesh.restart().await;
    hosts.answers("b.test", "two").await;
    hosts.answers("c.test", "two").await;
    eventually("the one that went is gone", async || {
        let answer = Call::get("a.test", "/").send(hosts.entry).await?;
        match answer.status {
            404 => Ok(()),
            _ => Err(format!("{answer:?}")),
        }
    })
    .await;
    // Once more, with nothing changed.
    hosts.mesh.kill();
    hosts.mesh.restart().await;
    eventually("it follows virtual hosts again", async || {
        match hosts.states().len() {
            2 => Ok(()),
            _ => Err(format!("{:?}", hosts.states())),
        }
    })
    .await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let sent = hosts.mesh.server.status()[0].types[VIRTUAL_HOST]
        .sent
        .clone();
    assert!(sent.is_none(), "{sent:?}");
    assert_eq!(hosts.proxy.rejected().await, Default::default());
}

macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod stock_envoy {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    super::$name(lateen_testkit::envoy::Plane::StockEnvoy).await;
                }
            )*
        }

        mod lateen {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    super::$name(lateen_testkit::envoy::Plane::Lateen).await;
                }
            )*
        }
    };
}

on_both!(
    a_refused_virtual_host_leaves_the_last_good_one_and_the_others_apply,
    a_table_that_comes_later_or_again_is_never_without_its_virtual_hosts,
    after_a_restart_of_the_control_plane_only_what_differs_is_sent,
);
