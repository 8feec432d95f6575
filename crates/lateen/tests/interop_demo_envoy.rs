//! Stock Envoy in the place of our proxy in a mesh of real processes, from the bootstrap that
//! `lateen bootstrap` writes: the same requests get the same answers.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests stop at what is not as expected"
)]

mod support;

use std::net::SocketAddr;

use lateen_testkit::echo::Echo;
use lateen_testkit::envoy::Envoy;
use lateen_testkit::http::{Answer, Call, Client};
use lateen_testkit::{eventually, settles, tools};
use serde_json::Value;
use support::{Mesh, free_block, lateen, loopback};

/// The demo's mesh in which Envoy is the gateway and the sidecar of productpage. Our own proxy is
/// the sidecar of all others and a second gateway, to compare with.
struct Mixed {
    mesh: Mesh,
    gateway: Envoy,
    sidecar: Envoy,
    /// Envoy's gateway port and our own.
    gateways: [SocketAddr; 2],
    /// The outbound HTTP proxies of productpage (Envoy) and of details (our own).
    proxies: [SocketAddr; 2],
    _files: tempfile::TempDir,
}

const ENVOYS: [&str; 2] = ["istio-ingressgateway", "productpage-v1"];

impl Mixed {
    async fn start(test: &str) -> Option<Self> {
        let Some(binary) = tools::envoy() else {
            tools::skip(test, "Envoy");
            return None;
        };
        let files = tempfile::tempdir().unwrap();
        let base = free_block();
        let (first, second) = (base + 80, base + 90);
        let file = files.path().join("mesh.yaml");
        std::fs::write(&file, mesh_file(second)).unwrap();
        let file = file.display().to_string();
        let port = first.to_string();
        let mesh = Mesh::start(&["up", "-f", &file, "--port", &port], base);
        let mut envoys = Vec::new();
        for name in ENVOYS {
            let base = base.to_string();
            let written = lateen()
                .args(["bootstrap", name, "-f", &file])
                .args(["--port-base", &base, "--port", &port, "--run-dir"])
                .arg(mesh.run_dir.path())
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&written.stderr);
            assert!(written.status.success(), "{said}");
            let bootstrap: Value = serde_json::from_slice(&written.stdout).unwrap();
            Envoy::validate(&binary, &bootstrap, files.path()).unwrap();
            envoys.push(Envoy::start(&binary, &bootstrap, files.path()).await);
        }
        let (sidecar, gateway) = (envoys.pop().unwrap(), envoys.pop().unwrap());
        let outbound = |name| loopback(mesh.workload(name)["outboundPort"].as_u64().unwrap());
        Some(Mixed {
            proxies: [outbound("productpage-v1"), outbound("details-v1")],
            gateways: [loopback(first.into()), loopback(second.into())],
            mesh,
            gateway,
            sidecar,
            _files: files,
        })
    }

    /// Applies YAML and waits until every proxy has accepted this object of it.
    fn apply(&self, yaml: &str, object: &[&str]) {
        let (applied, text) = self.mesh.apply(yaml);
        assert!(applied, "{text}");
        let wait = ["wait", "--for=distribution", "--timeout", "60s"];
        self.mesh.ok(&[&wait, object].concat());
    }

    /// Waits until all proxies, Envoy's among them, are in step with the control plane.
    async fn synced(&self) {
        eventually("every proxy is SYNCED", async || {
            let output = self.mesh.run(&["proxy-status"]);
            let table = String::from_utf8_lossy(&output.stdout).into_owned();
            let count = table.matches(" SYNCED").count();
            let envoys = ENVOYS.iter().all(|name| table.contains(name));
            let stale = ["STALE", "ERROR", "NOT SENT"];
            match envoys && count >= 8 && !stale.iter().any(|word| table.contains(word)) {
                true => Ok(()),
                false => Err(table),
            }
        })
        .await;
    }
}

/// The demo's own file with these changes.
fn mesh_file(second_gateway: u16) -> String {
    let external = |name: &str| {
        (
            format!("- name: {name}\n"),
            format!("- name: {name}\n    proxy: external\n"),
        )
    };
    let mut text = lateen_local::demo::MESH.replace("    readinessPath: /productpage\n", "");
    for name in ENVOYS {
        let (plain, changed) = external(name);
        assert!(text.contains(&plain), "{text}");
        text = text.replace(&plain, &changed);
    }
    let second = format!("  - name: own-gateway\n    port: {second_gateway}\n\nworkloads:\n");
    text.replace("\nworkloads:\n", &second)
}

/// Our own gateway gets the routes of the demo, and both get the rules of `rules.test`.
fn comparisons(echo: u16) -> String {
    COMPARISONS.replace("ECHO", &echo.to_string())
}

const COMPARISONS: &str = "
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: own}
spec:
  selector: {istio: own-gateway}
  servers:
  - port: {number: 80, name: http, protocol: HTTP}
    hosts: ['*']
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: echo}
spec:
  hosts: [echo.test]
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP}]
  endpoints:
  - {address: 127.0.0.1, ports: {http: ECHO}, labels: {version: v1}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: echo}
spec:
  host: echo.test
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: nobody, labels: {version: v9}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: rules}
spec:
  hosts: [rules.test]
  gateways: [bookinfo-gateway, own, mesh]
  http:
  - match: [{uri: {exact: /exact}}]
    route: [{destination: {host: echo.test}}]
  - match: [{uri: {prefix: /old/}}]
    rewrite: {uri: /new/}
    route: [{destination: {host: echo.test}}]
  - match: [{uri: {regex: '/item/[0-9]+'}}]
    rewrite: {uri: /fixed, authority: other.test}
    route: [{destination: {host: echo.test, subset: v1}}]
  - match: [{uri: {prefix: /users/}}]
    rewrite: {uriRegexRewrite: {match: '^/users/([0-9]+)/(.*)$', rewrite: '/\\2?id=\\1'}}
    route: [{destination: {host: echo.test}}]
  - match: [{uri: {exact: /Loud}, ignoreUriCase: true}]
    route: [{destination: {host: echo.test}}]
    headers:
      request: {set: {x-set: new}, add: {x-add: more}, remove: [x-gone]}
      response: {set: {x-echo: hidden}, add: {x-added: 'yes'}, remove: [x-secret]}
  - match: [{headers: {x-exact: {exact: yes please}, x-regex: {regex: '[a-c]+'}}}]
    directResponse: {status: 418, body: {string: by headers}}
  - match: [{queryParams: {kind: {prefix: new-}}}]
    directResponse: {status: 206, body: {string: by query}}
  - match: [{uri: {prefix: /without}, withoutHeaders: {x-skip: {exact: 'yes'}}}]
    directResponse: {status: 202, body: {string: without}}
  - match: [{uri: {exact: /moved}}]
    redirect: {uri: /new, authority: elsewhere.test, redirectCode: 302}
  - match: [{uri: {exact: /scheme}}]
    redirect: {scheme: https}
  - match: [{uri: {exact: /port}}]
    redirect: {port: 8443}
  - match: [{uri: {prefix: /nobody}}]
    route: [{destination: {host: echo.test, subset: nobody}}]
  - match: [{uri: {prefix: /missing}}]
    route: [{destination: {host: echo.test, subset: none}}]
  - match: [{uri: {prefix: /slow}}]
    timeout: 0.1s
    route: [{destination: {host: echo.test}}]
  - match: [{uri: {prefix: /flaky}}]
    retries: {attempts: 3, retryOn: '5xx'}
    route: [{destination: {host: echo.test}}]
  - match: [{uri: {prefix: /status}}]
    route: [{destination: {host: echo.test}}]
";

/// What is compared of an answer: all but what differs from one request to the next.
fn comparable(answer: &Answer) -> (u16, Vec<(String, String)>, String) {
    // The length of the body varies with the address above.
    let volatile = ["date", "x-envoy-upstream-service-time", "content-length"];
    let headers = answer.headers.iter();
    let mut headers: Vec<(String, String)> = headers
        .map(|(name, value)| {
            (
                name.to_string(),
                String::from_utf8_lossy(value.as_bytes()).into(),
            )
        })
        .filter(|(name, _)| !volatile.contains(&name.as_str()))
        .collect();
    headers.sort();
    let mut body = answer.body.clone();
    let mut json = answer.json();
    if let Some(got) = json["headers"].as_object_mut() {
        assert!(got.remove("x-request-id").is_some(), "{answer:?}");
        // For a peer on loopback Envoy appends the address of the machine, not the peer's.
        if let Some(list) = got.get_mut("x-forwarded-for") {
            let text = list.as_str().unwrap_or_default();
            let before = text.rsplit_once(',').map(|(before, _)| before);
            *list = Value::from(before.unwrap_or_default());
        }
        got.sort_keys();
        body = format!("{json:#}");
    }
    (answer.status, headers, body)
}

/// Paths with headers, sent as they are to both proxies.
const REQUESTS: &[(&str, &[(&str, &str)])] = &[
    ("/exact", &[]),
    (
        "/exact?query=1",
        &[("user-agent", "test"), ("cookie", "a=b; c=d")],
    ),
    ("/exact/more", &[]),
    ("/x/../exact", &[]),
    (
        "/old/a?b=c",
        &[("accept", "text/plain"), ("x-forwarded-for", "10.1.2.3")],
    ),
    ("/item/12?b=c", &[]),
    ("/item/12x", &[]),
    ("/users/7/books", &[]),
    (
        "/LOUD",
        &[
            ("x-set", "old"),
            ("x-set", "older"),
            ("x-add", "first"),
            ("x-gone", "here"),
        ],
    ),
    ("/", &[("x-exact", "yes please"), ("x-regex", "abc")]),
    ("/", &[("x-exact", "yes please"), ("x-regex", "abcd")]),
    ("/?kind=new-one", &[]),
    ("/without", &[]),
    ("/without", &[("x-skip", "yes")]),
    ("/moved?q", &[]),
    ("/scheme", &[]),
    ("/port?q", &[]),
    ("/nobody", &[]),
    ("/missing", &[]),
    ("/slow/60000", &[]),
    ("/status/404", &[]),
    ("/status/503", &[]),
    ("/status/204", &[]),
    (
        "/exact",
        &[("x-envoy-internal", "true"), ("x-envoy-max-retries", "5")],
    ),
    ("/exact", &[("x-request-id", "mine"), ("te", "trailers")]),
];

/// Methods with the body that is sent.
const METHODS: &[(&str, &str)] = &[
    ("POST", "a body"),
    ("POST", ""),
    ("PUT", "a body"),
    ("PATCH", ""),
    ("DELETE", ""),
    ("DELETE", "a body"),
    ("HEAD", ""),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stock_envoy_and_our_proxy_answer_alike_as_gateway_and_as_sidecar() {
    let test = "stock_envoy_and_our_proxy_answer_alike_as_gateway_and_as_sidecar";
    let Some(mixed) = Mixed::start(test).await else {
        return;
    };
    let echo = Echo::start("echo").await;
    let all = format!(
        "{}\n---{}",
        lateen_local::demo::GATEWAY,
        comparisons(echo.port())
    );
    mixed.apply(&all, &["virtualservice", "rules"]);
    mixed.synced().await;
    let by_gateways = mixed
        .gateways
        .map(|to| (to, Call::get("rules.test", "/exact")));
    let through = |to| (to, Call::through_proxy("rules.test", "/exact"));
    for (to, call) in by_gateways.into_iter().chain(mixed.proxies.map(through)) {
        settles("the proxy has the rules", async || {
            match call.send(to).await? {
                answer if answer.status == 200 => Ok(()),
                answer => Err(format!("{answer:?}")),
            }
        })
        .await;
    }
    let mut differences = Vec::new();
    for (kind, [envoy, own]) in [("gateway", mixed.gateways), ("sidecar", mixed.proxies)] {
        let call = |path: &str| match kind {
            "gateway" => Call::get("rules.test", path),
            _ => Call::through_proxy("rules.test", path),
        };
        let with_headers = REQUESTS.iter().map(|(path, headers)| {
            let add = |call: Call, (name, value): &(&str, &str)| call.header(name, value);
            headers.iter().fold(call(path), add)
        });
        let with_methods = METHODS
            .iter()
            .map(|(method, body)| call("/exact").method(method).body(*body));
        for call in with_headers.chain(with_methods) {
            let theirs = comparable(&call.send(envoy).await.unwrap());
            let ours = comparable(&call.send(own).await.unwrap());
            if theirs != ours {
                differences.push(format!(
                    "{kind} {call:?}\n  Envoy {theirs:?}\n  own   {ours:?}"
                ));
            }
        }
        for (name, to) in [("envoy", envoy), ("own", own)] {
            let path = format!("/flaky/2/{kind}/{name}");
            assert_eq!(call(&path).send(to).await.unwrap().status, 200, "{name}");
            assert_eq!(echo.hits(&path), 3, "{name}");
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    assert_eq!(mixed.gateway.rejected().await, Default::default());
    assert_eq!(mixed.sidecar.rejected().await, Default::default());
}

/// How many of `count` requests for reviews v1, v2 and v3 answered.
async fn split(proxy: SocketAddr, user: &str, count: usize) -> [usize; 3] {
    let call = Call::through_proxy("reviews:9080", "/reviews/0").header("end-user", user);
    let mut client = Client::connect(proxy).await.unwrap();
    let mut counts = [0; 3];
    for _ in 0..count {
        let answer = client.send(&call).await.unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        let pod = answer.json()["podname"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let version = ["reviews-v1", "reviews-v2", "reviews-v3"]
            .iter()
            .position(|v| *v == pod);
        counts[version.unwrap_or_else(|| panic!("{answer:?}"))] += 1;
    }
    counts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stock_envoy_serves_bookinfo_splits_alike_and_outlives_the_control_plane() {
    let test = "stock_envoy_serves_bookinfo_splits_alike_and_outlives_the_control_plane";
    let Some(mixed) = Mixed::start(test).await else {
        return;
    };
    mixed.apply(lateen_local::demo::GATEWAY, &["virtualservice", "bookinfo"]);
    // Envoy's gateway, Envoy before productpage, Envoy on the way to details and reviews.
    let page = async || {
        let answer = Call::get("localhost", "/productpage")
            .send(mixed.gateways[0])
            .await?;
        let title = answer.body.contains("<title>Simple Bookstore App</title>");
        match answer.status == 200 && title && answer.body.contains("William Shakespeare") {
            true => Ok(()),
            false => Err(format!("{answer:?}")),
        }
    };
    eventually("the page is served", page).await;

    mixed.apply(
        lateen_local::demo::EXAMPLE.1,
        &["virtualservice", "reviews"],
    );
    mixed.synced().await;
    for proxy in mixed.proxies {
        settles("the rule is in force", async || {
            match split(proxy, "jason", 8).await {
                [0, 8, 0] => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        assert_eq!(split(proxy, "jason", 50).await, [0, 50, 0]);
        let [v1, v2, v3] = split(proxy, "", 500).await;
        assert_eq!(v2, 0);
        // 500 draws with probability 0.7: by chance it is more once in twenty million runs.
        assert!(v1.abs_diff(350) <= 56, "{v1} and {v3} of 500");
    }

    for name in ENVOYS {
        for (part, expect) in [
            ("cluster", "reviews.default.svc.cluster.local"),
            ("listener", "127.0.0.1"),
            ("route", "/productpage"),
            (
                "endpoint",
                "outbound|9080|v1|reviews.default.svc.cluster.local",
            ),
        ] {
            let expect = match (name, part) {
                ("productpage-v1", "route") => "reviews.default.svc.cluster.local",
                _ => expect,
            };
            let table = mixed.mesh.ok(&["proxy-config", part, name]);
            assert!(table.contains(expect), "{part} of {name}: {table}");
            let json = mixed.mesh.ok(&["proxy-config", part, name, "-o", "json"]);
            assert!(serde_json::from_str::<Value>(&json).is_ok(), "{json}");
        }
    }

    let control = mixed.mesh.summary["control"]["pid"].as_u64().unwrap();
    support::signal("KILL", control);
    page().await.unwrap();
    mixed.synced().await;
    mixed.mesh.ok(&["delete", "virtualservice", "reviews"]);
    eventually("the default is back", async || {
        match split(mixed.proxies[0], "jason", 20).await {
            [_, 20, _] => Err("only v2 answers".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
    assert_eq!(mixed.gateway.rejected().await, Default::default());
    assert_eq!(mixed.sidecar.rejected().await, Default::default());
}
