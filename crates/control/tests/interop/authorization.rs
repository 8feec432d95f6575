//! AuthorizationPolicies in force: at a sidecar's HTTP port, at its TCP port, at a gateway.
//!
//! The callers are plaintext; who they are does not matter here. A line of a table is a request and
//! whether it is answered, so that each rule is seen to let pass and to refuse.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use lateen_testkit::envoy::Plane;
use lateen_testkit::http::{Answer, Call, Client};
use lateen_testkit::{eventually, settles};
use tokio::net::{TcpSocket, TcpStream};

use crate::gateway::say_hello;
use crate::mesh::{Mesh, loopback};
use crate::sidecar::{SIDECAR, Sidecar};

/// A workload with a sidecar, and policies for it.
pub struct Guarded {
    pub mesh: Mesh,
    pub sidecar: Sidecar,
    applied: AtomicU32,
}

impl Guarded {
    pub async fn start(plane: Plane, test: &str) -> Option<Self> {
        let mesh = Mesh::start().await;
        let sidecar = Sidecar::start(plane, &mesh, test).await?;
        Some(Guarded {
            mesh,
            sidecar,
            applied: AtomicU32::new(0),
        })
    }

    /// Applies documents and waits until they are in force: a policy applied after them is. What
    /// is in force before must let `/round/` pass.
    pub async fn apply(&self, documents: &str) {
        self.mesh.apply(documents).await;
        let round = self.applied.fetch_add(1, Ordering::Relaxed);
        let port = self.sidecar.http.port();
        self.mesh
            .apply(&policy(
                "in-force",
                &format!(
                    "action: DENY, rules: [{{to: [{{operation: {{paths: [/round/{round}], \
                     ports: ['{port}']}}}}]}}]"
                ),
            ))
            .await;
        // Every listener has them; which worker has taken them the requests tell.
        self.mesh.distributed(1).await;
        let call = Call::get("front", &format!("/round/{round}"));
        settles("the policies are in force", async || {
            match call.send(self.sidecar.http).await?.status {
                403 => Ok(()),
                other => Err(format!(
                    "{other}; {:?}; {}",
                    self.sidecar.envoy.rejected().await,
                    self.sidecar.envoy.log()
                )),
            }
        })
        .await;
    }

    /// Whether a request passes.
    pub async fn passes(&self, call: &Call) -> bool {
        let answer = call.send(self.sidecar.http).await.unwrap();
        passed(&answer, call)
    }

    /// Whether bytes pass on a TCP connection.
    pub async fn connects(&self) -> bool {
        let stream = TcpStream::connect(self.sidecar.tcp).await.unwrap();
        tcp_passes(stream).await
    }

    /// Applies each policy alone and sends its requests. A line of requests is `+` or `-` (passes or
    /// not) and the request: `GET /path host:x name:value`.
    async fn check(&self, table: &[(&str, &[&str])]) {
        for (spec, requests) in table {
            let document = policy("tested", &with_rounds(spec));
            self.apply(&document).await;
            for line in *requests {
                let (expected, request) = line.split_once(' ').unwrap();
                let found = self.passes(&call(request)).await;
                assert_eq!(found, expected == "+", "{line} under {spec}");
            }
            self.mesh.delete(&document).await;
        }
    }
}

/// A policy for the workload `front`, of which the rest is given in flow style.
pub fn policy(name: &str, rest: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {{name: {name}, namespace: default}}\n\
         spec: {{selector: {{matchLabels: {{app: front}}}}, {rest}}}\n---\n"
    )
}

/// The same policy, in which `/round/` passes.
fn with_rounds(spec: &str) -> String {
    match spec.starts_with("action") {
        true => spec.to_owned(),
        false => spec.replacen(
            "rules: [",
            "rules: [{to: [{operation: {paths: [/round/*]}}]}, ",
            1,
        ),
    }
}

/// `GET /path host:x name:value`.
fn call(text: &str) -> Call {
    let mut words = text.split_whitespace();
    let method = words.next().unwrap();
    let path = words.next().unwrap();
    let rest: Vec<_> = words.map(|word| word.split_once(':').unwrap()).collect();
    let host = rest.iter().find(|(name, _)| *name == "host");
    let host = host.map_or("front", |(_, host)| host);
    let headers = rest.iter().filter(|(name, _)| *name != "host");
    headers.fold(
        Call::get(host, path).method(method),
        |call, (name, value)| call.header(name, value),
    )
}

/// What is refused is refused as Istio does it, and has not reached the application.
fn passed(answer: &Answer, call: &Call) -> bool {
    match answer.status {
        200 => {
            assert_eq!(answer.name(), "front", "{call:?}: {answer:?}");
            true
        }
        403 => {
            assert_eq!(answer.body, "RBAC: access denied", "{call:?}: {answer:?}");
            assert_eq!(
                answer.header("server"),
                "istio-envoy",
                "{call:?}: {answer:?}"
            );
            false
        }
        _ => panic!("{call:?}: {answer:?}"),
    }
}

/// A refused connection is closed at the client's first byte.
pub async fn tcp_passes(stream: TcpStream) -> bool {
    match say_hello(stream).await {
        Ok(said) => said.ends_with(" hello"),
        Err(_) => false,
    }
}

async fn requests_pass_by_method_path_host_and_header(plane: Plane) {
    let test = "requests_pass_by_method_path_host_and_header";
    let Some(guarded) = Guarded::start(plane, test).await else {
        return;
    };
    guarded.check(OPERATIONS).await;
    guarded.check(CONDITIONS).await;
    guarded.mesh.synced(SIDECAR).await;
    assert_eq!(guarded.sidecar.envoy.rejected().await, Default::default());
}

const OPERATIONS: &[(&str, &[&str])] = &[
    (
        "rules: [{to: [{operation: {methods: [GET, 'P*', '*TE']}}]}]",
        &[
            "+ GET /",
            "+ POST /",
            "+ PUT /",
            "+ DELETE /",
            "- TRACE /",
            "- OPTIONS /",
        ],
    ),
    (
        "rules: [{to: [{operation: {methods: ['*'], notMethods: [DELETE, 'P*']}}]}]",
        &["+ GET /", "- POST /", "- DELETE /"],
    ),
    // The query is no part of the path, and case matters.
    (
        "rules: [{to: [{operation: {paths: [/exact, '/prefix/*', '*.png']}}]}]",
        &[
            "+ GET /exact",
            "+ GET /exact?q=/other",
            "- GET /exact/",
            "- GET /Exact",
            "+ GET /prefix/a/b",
            "- GET /prefix",
            "+ GET /images/a.png",
            "- GET /images/a.gif?x=.png",
            // Normalized before it is looked at.
            "+ GET /other/../exact",
            "- GET /prefix/../other",
        ],
    ),
    (
        "rules: [{to: [{operation: {paths: ['*'], notPaths: [/secret, '/admin*']}}]}]",
        &[
            "+ GET /",
            "- GET /secret",
            "- GET /admin/x",
            "- GET /a/../secret?a=b",
        ],
    ),
    (
        "rules: [{to: [{operation: {paths: ['/item/{*}', '/files/{**}', '/a/{*}/c', '/x/{**}/y']}}]}]",
        &[
            "+ GET /item/1",
            "+ GET /item/1?a=/b",
            "- GET /item/",
            "- GET /item/1/2",
            "+ GET /files/a/b/c",
            "+ GET /files/a",
            "+ GET /a/b/c",
            "- GET /a/b/d/c",
            "+ GET /x/1/2/y",
            "- GET /x/1/2/z",
        ],
    ),
    // Of a host case does not matter, and the port is part of it.
    (
        "rules: [{to: [{operation: {hosts: [front.test, '*.wide.test', 'pre.*', 'with.port:*']}}]}]",
        &[
            "+ GET / host:front.test",
            "+ GET / host:FRONT.Test",
            "- GET / host:front.test:80",
            "+ GET / host:a.b.wide.test",
            "- GET / host:wide.test",
            "+ GET / host:pre.test",
            "+ GET / host:with.port:8080",
            "- GET / host:other.test",
        ],
    ),
    (
        "rules: [{to: [{operation: {hosts: ['*'], notHosts: [secret.test]}}]}]",
        &["+ GET / host:front.test", "- GET / host:Secret.test"],
    ),
    // All fields of an operation; one of the operations; one of the rules.
    (
        "rules: [{to: [{operation: {methods: [GET], paths: [/a]}}, {operation: {methods: [POST], paths: [/b]}}]}, \
         {to: [{operation: {paths: [/c]}}]}]",
        &["+ GET /a", "- POST /a", "- GET /b", "+ POST /b", "+ PUT /c"],
    ),
    (
        "action: DENY, rules: [{to: [{operation: {methods: [GET], notPaths: [/open*, '/round/*']}}]}]",
        &["- GET /", "+ POST /", "+ GET /open/x"],
    ),
];

const CONDITIONS: &[(&str, &[&str])] = &[
    (
        "rules: [{when: [{key: 'request.headers[x-token]', values: [secret, 'pre*', '*fix']}]}]",
        &[
            "+ GET / x-token:secret",
            "+ GET / X-TOKEN:prefixed",
            "+ GET / x-token:suffix",
            "- GET / x-token:Secret",
            "- GET / x-token:",
            "- GET /",
        ],
    ),
    (
        "rules: [{when: [{key: 'request.headers[x-token]', values: ['*']}]}]",
        &["+ GET / x-token:anything", "- GET /"],
    ),
    // Absent is not the value.
    (
        "rules: [{when: [{key: 'request.headers[x-token]', notValues: [bad]}]}]",
        &["+ GET / x-token:good", "+ GET /", "- GET / x-token:bad"],
    ),
    // All of the conditions, beside any of the operations.
    (
        "rules: [{to: [{operation: {methods: [GET]}}, {operation: {paths: [/b]}}], when: [{key: 'request.headers[a]', \
         values: ['1', '2']}, {key: 'request.headers[b]', values: ['1']}]}]",
        &[
            "+ GET / a:1 b:1",
            "+ GET / a:2 b:1",
            "- GET / a:3 b:1",
            "- GET / a:1",
            "+ POST /b a:1 b:1",
            "- POST / a:1 b:1",
        ],
    ),
    (
        "rules: [{when: [{key: destination.ip, values: [127.0.0.0/8]}]}]",
        &["+ GET /"],
    ),
    (
        "rules: [{when: [{key: destination.ip, values: [10.0.0.0/8]}]}]",
        &["- GET /"],
    ),
    // A plaintext caller is nobody: it is never somebody, and always not somebody (fact 50).
    (
        "rules: [{from: [{source: {principals: ['*']}}]}]",
        &["- GET /"],
    ),
    (
        "rules: [{from: [{source: {namespaces: [default]}}]}]",
        &["- GET /"],
    ),
    (
        "rules: [{from: [{source: {notPrincipals: [cluster.local/ns/a/sa/b]}}]}]",
        &["+ GET /"],
    ),
    (
        "rules: [{from: [{source: {notNamespaces: [default]}}]}]",
        &["+ GET /"],
    ),
    (
        "action: DENY, rules: [{from: [{source: {notPrincipals: ['*']}}], to: [{operation: {notPaths: [/round/*]}}]}]",
        &["- GET /"],
    ),
    // Without a token there is nobody either.
    (
        "rules: [{from: [{source: {requestPrincipals: ['*']}}]}]",
        &["- GET /"],
    ),
    (
        "action: DENY, rules: [{from: [{source: {notRequestPrincipals: ['*']}}], to: [{operation: {notPaths: [/health, '/round/*']}}]}]",
        &["- GET /", "+ GET /health"],
    ),
    (
        "rules: [{when: [{key: 'request.auth.claims[group]', values: [admins]}]}]",
        &["- GET /"],
    ),
];

async fn callers_pass_by_their_address(plane: Plane) {
    let test = "callers_pass_by_their_address";
    let Some(guarded) = Guarded::start(plane, test).await else {
        return;
    };
    let front = |path: &str| Call::get("front", path);
    let from = async |ip: Ipv4Addr, call: &Call| {
        let answer = send_from(ip, guarded.sidecar.http, call).await;
        passed(&answer, call)
    };
    let [first, second] = [2, 3].map(|last| Ipv4Addr::new(127, 0, 0, last));

    guarded
        .apply(&policy(
            "tested",
            "rules: [{from: [{source: {ipBlocks: [127.0.0.2, 127.0.1.0/24]}}]}, {to: [{operation: {paths: [/round*]}}]}]",
        ))
        .await;
    assert!(from(first, &front("/")).await);
    assert!(from(Ipv4Addr::new(127, 0, 1, 77), &front("/")).await);
    assert!(!from(second, &front("/")).await);
    // What a header says of the client is not the connection's address.
    let lying = front("/").header("x-forwarded-for", "127.0.0.2");
    assert!(!from(second, &lying).await);
    // The same for connections.
    assert!(tcp_passes(connect_from(first, guarded.sidecar.tcp).await).await);
    assert!(!tcp_passes(connect_from(second, guarded.sidecar.tcp).await).await);

    guarded
        .apply(&policy(
            "tested",
            "action: DENY, rules: [{from: [{source: {notIpBlocks: [127.0.0.2]}}], to: [{operation: {notPaths: [/round/*]}}]}]",
        ))
        .await;
    assert!(from(first, &front("/")).await);
    assert!(!from(second, &front("/")).await);

    guarded
        .apply(&policy(
            "tested",
            "rules: [{when: [{key: source.ip, values: [127.0.0.2]}]}, {to: [{operation: {paths: [/round*]}}]}]",
        ))
        .await;
    assert!(from(first, &front("/")).await);
    assert!(!from(second, &front("/")).await);

    // The client behind the proxy that calls, as that proxy says.
    guarded
        .apply(&policy(
            "tested",
            "rules: [{from: [{source: {remoteIpBlocks: [203.0.113.0/24]}}]}, {to: [{operation: {paths: [/round*]}}]}]",
        ))
        .await;
    let told = |client: &str| front("/").header("x-forwarded-for", client);
    assert!(from(first, &told("203.0.113.7")).await);
    assert!(from(first, &told("198.51.100.1, 203.0.113.7")).await);
    assert!(!from(first, &told("203.0.113.7, 198.51.100.1")).await);
    assert!(!from(first, &front("/")).await);
}

async fn connect_from(ip: Ipv4Addr, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from((ip, 0))).unwrap();
    socket.connect(to).await.unwrap()
}

async fn send_from(ip: Ipv4Addr, to: SocketAddr, call: &Call) -> Answer {
    let mut client = Client::over(connect_from(ip, to).await).await.unwrap();
    client.send(call).await.unwrap()
}

async fn policies_count_in_istios_order(plane: Plane) {
    let test = "policies_count_in_istios_order";
    let Some(guarded) = Guarded::start(plane, test).await else {
        return;
    };
    let (mesh, sidecar) = (&guarded.mesh, &guarded.sidecar);
    // What is expected differs from what was before, so it is in force when it is seen.
    let expect = async |path: &str, passes: bool, what: &str| {
        let call = Call::get("front", path);
        mesh.distributed(1).await;
        settles(what, async || {
            let answer = call.send(sidecar.http).await?;
            match passed(&answer, &call) == passes {
                true => Ok(()),
                false => Err(format!("{answer:?}")),
            }
        })
        .await;
    };
    expect("/", true, "without a policy everybody may").await;
    assert!(guarded.connects().await);

    // An ALLOW policy without rules allows nothing, and one with an empty rule everything (fact 48).
    let none = policy("none", "action: ALLOW");
    mesh.apply(&none).await;
    expect("/", false, "no rule matches").await;
    assert!(!guarded.connects().await);
    let all = policy("all", "rules: [{}]");
    mesh.apply(&all).await;
    expect("/", true, "any of the policies").await;
    assert!(guarded.connects().await);
    mesh.delete(&all).await;
    expect("/", false, "no policy matches").await;
    mesh.apply(&all).await;
    expect("/", true, "any of the policies").await;

    // DENY comes first (fact 47).
    let denied = policy(
        "denied",
        "action: DENY, rules: [{to: [{operation: {paths: [/denied]}}]}]",
    );
    mesh.apply(&denied).await;
    expect("/denied", false, "a rule denies it").await;
    expect("/", true, "no rule denies it").await;
    // In a TCP chain a rule without its HTTP part denies everything (fact 51).
    assert!(!guarded.connects().await);
    mesh.delete(&denied).await;
    expect("/denied", true, "the rule is gone").await;

    // AUDIT never decides.
    mesh.apply(&policy("audit", "action: AUDIT, rules: [{}]"))
        .await;
    expect("/", true, "auditing refuses nothing").await;
    mesh.delete(&all).await;
    expect("/", false, "auditing allows nothing").await;
    mesh.apply(&policy("none", "rules: []")).await;
    expect("/", false, "an empty list is no rule").await;
    mesh.delete(&none).await;
    expect("/", true, "no policy is left that allows").await;

    // Of the root namespace: for the mesh, unless its selector says for whom.
    let root = |rest: &str| {
        policy("root", rest)
            .replace("namespace: default", "namespace: istio-system")
            .replace(
                "{matchLabels: {app: front}}",
                "{matchLabels: {version: v1}}",
            )
    };
    mesh.apply(&root(
        "action: DENY, rules: [{to: [{operation: {paths: [/root]}}]}]",
    ))
    .await;
    expect("/root", false, "the root namespace denies it").await;
    expect("/", true, "but not everything").await;
    let others = root("action: DENY, rules: [{}]").replace("version: v1", "version: v2");
    mesh.apply(&others).await;
    expect("/root", true, "for others").await;
    // Another namespace's are not this one's.
    let other = policy("other", "action: DENY, rules: [{}]");
    mesh.apply(&other.replace("namespace: default", "namespace: other"))
        .await;
    expect("/", true, "for another namespace").await;
    mesh.apply(&other).await;
    expect("/", false, "for this namespace").await;
}

async fn rules_of_tcp_ports(plane: Plane) {
    let test = "rules_of_tcp_ports";
    let Some(guarded) = Guarded::start(plane, test).await else {
        return;
    };
    let (http, tcp) = (guarded.sidecar.http.port(), guarded.sidecar.tcp.port());
    let root = Call::get("front", "/");
    for (spec, connects, passes) in [
        (
            format!("rules: [{{to: [{{operation: {{ports: ['{tcp}']}}}}]}}]"),
            true,
            false,
        ),
        (
            format!("rules: [{{to: [{{operation: {{ports: ['{http}']}}}}]}}]"),
            false,
            true,
        ),
        // As the service says where workloads listen, where the mesh gave the port another number.
        (
            "rules: [{to: [{operation: {ports: ['7000']}}]}]".to_owned(),
            true,
            false,
        ),
        (
            "rules: [{to: [{operation: {ports: ['80']}}]}]".to_owned(),
            false,
            true,
        ),
        (
            "rules: [{to: [{operation: {notPorts: ['7000']}}]}]".to_owned(),
            false,
            true,
        ),
        (
            "rules: [{when: [{key: destination.port, values: ['7000', '80']}]}]".to_owned(),
            true,
            true,
        ),
        (
            "action: DENY, rules: [{to: [{operation: {ports: ['7000']}}]}]".to_owned(),
            false,
            true,
        ),
        // An ALLOW rule that speaks of requests is left out for TCP.
        (
            "rules: [{to: [{operation: {methods: [GET]}}]}]".to_owned(),
            false,
            true,
        ),
        (
            format!(
                "rules: [{{to: [{{operation: {{methods: [GET]}}}}]}}, {{to: [{{operation: {{ports: ['{tcp}']}}}}]}}]"
            ),
            true,
            true,
        ),
        // Of a DENY rule what remains counts.
        (
            "action: DENY, rules: [{to: [{operation: {methods: [POST]}}]}]".to_owned(),
            false,
            true,
        ),
        (
            "action: DENY, rules: [{to: [{operation: {methods: [POST], ports: ['80']}}]}]"
                .to_owned(),
            true,
            true,
        ),
        (
            "action: DENY, rules: [{when: [{key: 'request.headers[x]', values: ['1']}]}]"
                .to_owned(),
            false,
            true,
        ),
    ] {
        let spec = with_rounds(&spec);
        let document = policy("tested", &spec);
        guarded.apply(&document).await;
        assert_eq!(guarded.connects().await, connects, "{spec}");
        assert_eq!(guarded.passes(&root).await, passes, "{spec}");
        guarded.mesh.delete(&document).await;
    }
    eventually("refused connections are counted", async || {
        match guarded.sidecar.envoy.stats_ending("tcp.rbac.denied").await {
            6.. => Ok(()),
            few => Err(few.to_string()),
        }
    })
    .await;
}

async fn a_dry_run_counts_and_lets_pass(plane: Plane) {
    let test = "a_dry_run_counts_and_lets_pass";
    let Some(guarded) = Guarded::start(plane, test).await else {
        return;
    };
    let dry = |name: &str, rest: &str, on: &str| {
        policy(name, rest).replace(
            "namespace: default}",
            &format!("namespace: default, annotations: {{istio.io/dry-run: '{on}'}}}}"),
        )
    };
    let counted = async |name: &str| guarded.sidecar.envoy.stats_ending(name).await;
    let get = |path: &str| Call::get("front", path);
    let denies = "action: DENY, rules: [{to: [{operation: {paths: [/dry]}}]}]";
    guarded.apply(&dry("dry", denies, "true")).await;
    let before = counted("istio_dry_run_deny_.shadow_denied").await;
    assert!(guarded.passes(&get("/dry")).await);
    assert!(guarded.passes(&get("/other")).await);
    eventually("the dry run is counted", async || {
        match counted("istio_dry_run_deny_.shadow_denied").await - before {
            1 => Ok(()),
            other => Err(other.to_string()),
        }
    })
    .await;
    // The same policy without the annotation, or with it switched off, is in force.
    guarded.apply(&dry("dry", denies, "false")).await;
    assert!(!guarded.passes(&get("/dry")).await);

    let allows = "rules: [{to: [{operation: {paths: [/round/*, /good]}}]}]";
    guarded.apply(&dry("allow", allows, "true")).await;
    let denied = counted("istio_dry_run_allow_.shadow_denied").await;
    let allowed = counted("istio_dry_run_allow_.shadow_allowed").await;
    assert!(guarded.passes(&get("/bad")).await);
    assert!(guarded.passes(&get("/good")).await);
    eventually("both outcomes are counted", async || {
        let found = (
            counted("istio_dry_run_allow_.shadow_denied").await - denied,
            counted("istio_dry_run_allow_.shadow_allowed").await - allowed,
        );
        match found {
            (1, 1) => Ok(()),
            found => Err(format!("{found:?}")),
        }
    })
    .await;
    guarded.apply(&policy("allow", allows)).await;
    assert!(!guarded.passes(&get("/bad")).await);
    assert!(guarded.passes(&get("/good")).await);
}

async fn no_request_passes_before_the_policies_are_there(plane: Plane) {
    let test = "no_request_passes_before_the_policies_are_there";
    let mesh = Mesh::start().await;
    mesh.apply(&policy("closed", "action: DENY, rules: [{}]"))
        .await;
    // No push has it yet: the control plane still waits for quiet when the proxy connects.
    let port = lateen_testkit::ports::reserve();
    let stop = Arc::new(AtomicBool::new(false));
    let refused = Arc::new(AtomicU32::new(0));
    let watching = tokio::spawn({
        let (stop, refused) = (stop.clone(), refused.clone());
        async move {
            while !stop.load(Ordering::Relaxed) {
                let call = Call::get("front", "/");
                match call.send(loopback(port)).await {
                    Ok(answer) if answer.status == 403 => {
                        refused.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(answer) => panic!("after {refused:?} refusals: {answer:?}"),
                    Err(_) => tokio::time::sleep(std::time::Duration::from_millis(1)).await,
                }
            }
        }
    });
    // The workload, its service and its proxy appear while somebody tries all the time.
    let Some(sidecar) = Sidecar::start_at(plane, &mesh, test, port).await else {
        return;
    };
    settles("the workload is guarded", async || {
        match Call::get("front", "/").send(sidecar.http).await?.status {
            403 => Ok(()),
            other => Err(other.to_string()),
        }
    })
    .await;
    eventually("who tries all the time is refused", async || {
        match watching.is_finished() || refused.load(Ordering::Relaxed) > 0 {
            true => Ok(()),
            false => Err("nobody answered".to_owned()),
        }
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    watching.await.unwrap();
}

async fn a_policy_that_is_refused_leaves_the_last_good_one(plane: Plane) {
    let test = "a_policy_that_is_refused_leaves_the_last_good_one";
    let Some(guarded) = Guarded::start(plane, test).await else {
        return;
    };
    let closed = "action: DENY, rules: [{to: [{operation: {paths: [/closed], ports: ['80']}}]}]";
    guarded.apply(&policy("closed", closed)).await;
    let call = Call::get("front", "/closed");
    assert!(!guarded.passes(&call).await);
    for (wrong, path) in [
        ("acton: DENY", "spec.acton"),
        (
            "rules: [{to: [{operation: {path: [/open]}}]}]",
            "spec.rules[0].to[0].operation.path",
        ),
        (
            "rules: [{when: [{key: source.colour, values: [red]}]}]",
            "spec.rules[0].when[0].key",
        ),
        (
            "targetRefs: [{kind: Deployment, name: front, group: apps}]",
            "spec.targetRefs[0].kind",
        ),
    ] {
        // Even if whoever applies it asks for unknown fields to be dropped.
        let url = "/apis/security.istio.io/v1/namespaces/default/authorizationpolicies/closed";
        let document = policy("closed", wrong);
        let put = Call::get(
            "127.0.0.1",
            &format!("{url}?fieldValidation=Ignore&force=true"),
        )
        .method("PATCH")
        .header("content-type", "application/apply-patch+yaml")
        .body(document.trim_end_matches("---\n").to_owned());
        let answer = put.send(guarded.mesh.api).await.unwrap();
        assert_eq!(answer.status, 422, "{wrong}: {}", answer.body);
        assert!(answer.body.contains(path), "{wrong}: {}", answer.body);
    }
    guarded.apply("").await;
    assert!(!guarded.passes(&call).await);
}

on_both!(
    no_request_passes_before_the_policies_are_there,
    a_policy_that_is_refused_leaves_the_last_good_one,
    requests_pass_by_method_path_host_and_header,
    callers_pass_by_their_address,
    policies_count_in_istios_order,
    rules_of_tcp_ports,
    a_dry_run_counts_and_lets_pass,
);
