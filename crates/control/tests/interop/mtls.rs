//! Mutual TLS between workloads: who is let in by which mode (facts 44 to 46), and whom clients
//! trust (fact 32).
//!
//! That a connection really was mutual TLS is seen by what the server got to know of its client
//! (`x-forwarded-client-cert`), and by servers that take nothing else.

use lateen_testkit::certificates::s_client;
use lateen_testkit::envoy::Plane;
use lateen_testkit::http::Call;
use lateen_testkit::settles;
use lateen_testkit::tls_client::{Dial, ask};

use crate::callers::{ALL, Clients, Shows, check, http, is_let_in, tcp};
use crate::member::{Member, Secured};

/// A PeerAuthentication for `cart`.
fn policy(rest: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
         metadata: {{name: cart, namespace: default}}\n\
         spec:\n  selector: {{matchLabels: {{app: cart}}}}\n  {rest}\n"
    )
}

async fn each_mode_lets_in_whom_it_says_on_every_kind_of_port(plane: Plane) {
    let test = "each_mode_lets_in_whom_it_says_on_every_kind_of_port";
    let mesh = Secured::start().await;
    let Some(cart) = mesh.member(plane, test, "cart").await else {
        return;
    };
    mesh.distributed(1).await;
    let clients = Clients::new(&mesh.authority);
    for mode in ["PERMISSIVE", "STRICT", "DISABLE"] {
        mesh.apply(&policy(&format!("mtls: {{mode: {mode}}}")))
            .await;
        mesh.distributed(1).await;
        // The workers have taken it over.
        let plain = async || http(cart.http, Dial::Plain).await;
        settles(&format!("{mode} is in force"), async || {
            let found = plain().await;
            let expected = is_let_in(mode, Shows::Plain);
            match found.is_ok() == expected {
                true => Ok(()),
                false => Err(format!("{found:?}")),
            }
        })
        .await;
        for shows in ALL {
            let expected = is_let_in(mode, shows);
            let declared = http(cart.http, clients.dial(shows, &["istio-http/1.1", "istio"])).await;
            check(mode, "http", shows, expected, &declared);
            let bytes = tcp(cart.tcp, clients.dial(shows, &["istio"])).await;
            let bytes = bytes.map(|said| assert!(said.starts_with("cart-tcp\n"), "{said}"));
            assert_eq!(bytes.is_ok(), expected, "{mode} tcp {shows:?} {bytes:?}");
            let sniffed = clients.dial(shows, &["istio-http/1.1", "istio"]);
            let sniffed = http(cart.undeclared, sniffed).await;
            check(mode, "undeclared", shows, expected, &sniffed);
        }
    }
}

async fn permissive_ports_pass_foreign_tls_on_where_it_may_be_the_applications(plane: Plane) {
    let test = "permissive_ports_pass_foreign_tls_on_where_it_may_be_the_applications";
    let mesh = Secured::start().await;
    let Some(cart) = mesh.member(plane, test, "cart").await else {
        return;
    };
    mesh.distributed(1).await;
    // A ClientHello without ALPN, as bytes: who gets it echoes it.
    let hello = hello();
    let echoed = async |to| ask(to, Dial::Plain, &hello, |got| got.ends_with(&hello)).await;
    settles("foreign TLS reaches the application", async || {
        echoed(cart.tcp).await.map(|_| ())
    })
    .await;
    mesh.apply(&policy("mtls: {mode: STRICT}")).await;
    mesh.distributed(1).await;
    settles("a STRICT port ends it", async || {
        match echoed(cart.tcp).await {
            Ok(_) => Err("echoed".to_owned()),
            Err(_) => Ok(()),
        }
    })
    .await;
    // A port that is HTTP takes no foreign TLS.
    mesh.apply(&policy("mtls: {mode: PERMISSIVE}")).await;
    mesh.distributed(1).await;
    settles("plain requests are taken again", async || {
        http(cart.http, Dial::Plain).await.map(|_| ())
    })
    .await;
    let clients = Clients::new(&mesh.authority);
    let foreign = Dial::Tls(Some(&clients.right), &["h2", "http/1.1"]);
    assert!(http(cart.http, foreign).await.is_err());
    let ours = Dial::Tls(Some(&clients.right), &["istio"]);
    settles("while that of the mesh is taken", async || {
        http(cart.http, ours).await.map(|_| ())
    })
    .await;
}

/// A TLS 1.2 ClientHello that asks for nothing.
fn hello() -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    // No session; one cipher suite; no compression; no extensions.
    body.extend([0, 0, 2, 0xc0, 0x2f, 1, 0]);
    let length = u8::try_from(body.len()).unwrap();
    let mut record = vec![22, 3, 1, 0, length + 4, 1, 0, 0, length];
    record.extend(body);
    record
}

async fn a_port_may_have_a_mode_of_its_own(plane: Plane) {
    let test = "a_port_may_have_a_mode_of_its_own";
    let mesh = Secured::start().await;
    let Some(cart) = mesh.member(plane, test, "cart").await else {
        return;
    };
    let Some(shop) = mesh.member(plane, test, "shop").await else {
        return;
    };
    let own = format!(
        "mtls: {{mode: STRICT}}\n  portLevelMtls: {{{}: {{mode: DISABLE}}}}",
        cart.tcp.port()
    );
    mesh.apply(&policy(&own)).await;
    mesh.distributed(2).await;
    settles("plain bytes to the port that says so", async || {
        tcp(cart.tcp, Dial::Plain).await.map(|_| ())
    })
    .await;
    settles("and to no other", async || {
        match http(cart.http, Dial::Plain).await {
            Ok(answer) => Err(answer),
            Err(_) => Ok(()),
        }
    })
    .await;
    // Clients in the mesh know which is which.
    let answer = shop.gets("cart", "/", 200).await;
    assert!(
        answer
            .got("x-forwarded-client-cert")
            .contains(&shop.spiffe_id)
    );
}

/// A mesh with `shop` on one data plane and `cart` on another.
async fn pair(test: &str, client: Plane, server: Plane) -> Option<(Secured, Member, Member)> {
    let mesh = Secured::start().await;
    let cart = mesh.member(server, test, "cart").await?;
    let shop = mesh.member(client, test, "shop").await?;
    mesh.distributed(2).await;
    Some((mesh, shop, cart))
}

/// Workloads speak mutual TLS without being told to; and a client refuses a server that proves to be
/// somebody else.
async fn workloads_speak_mutual_tls(test: &str, client: Plane, server: Plane) {
    let Some((mesh, shop, cart)) = pair(test, client, server).await else {
        return;
    };
    // A service over the port that nobody declared: HTTP is found inside TLS, too.
    mesh.create(&format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: any, namespace: default}}\nspec:\n  \
         selector: {{app: cart}}\n  ports: [{{name: any, port: 9000, targetPort: {}}}]\n",
        cart.undeclared.port()
    ))
    .await;
    for mode in ["PERMISSIVE", "STRICT"] {
        mesh.apply(&policy(&format!("mtls: {{mode: {mode}}}")))
            .await;
        mesh.distributed(2).await;
        for host in ["cart", "any:9000"] {
            settles(&format!("{mode} {host}"), async || {
                let answer = shop.send(&Call::through_proxy(host, "/")).await?;
                let of_client = answer.got("x-forwarded-client-cert");
                let proven = of_client.contains(&format!("By={}", cart.spiffe_id))
                    && of_client.contains(&format!("URI={}", shop.spiffe_id));
                match answer.status == 200 && proven {
                    true => Ok(()),
                    false => Err(format!("{answer:?}")),
                }
            })
            .await;
        }
    }
    let account = |name: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n\
             metadata: {{name: cart-v1, namespace: default}}\nspec:\n  address: 127.0.0.1\n  \
             serviceAccount: {name}\n  ports: {{http: {}, tcp: {}}}\n  \
             labels: {{app: cart, version: v1, security.istio.io/tlsMode: istio}}\n",
            cart.http.port(),
            cart.tcp.port()
        )
    };
    mesh.apply(&account("somebody-else")).await;
    mesh.distributed(2).await;
    settles("a server with another account is refused", async || {
        let answer = shop.send(&Call::through_proxy("cart", "/refused")).await?;
        match answer.status {
            503 => Ok(()),
            _ => Err(format!("{answer:?}")),
        }
    })
    .await;
    let served = cart.app.hits("/refused");
    mesh.apply(&account("cart")).await;
    mesh.distributed(2).await;
    settles("and with its own taken", async || {
        let answer = shop.send(&Call::through_proxy("cart", "/again")).await?;
        match answer.status {
            200 => Ok(()),
            _ => Err(format!("{answer:?}")),
        }
    })
    .await;
    assert_eq!(cart.app.hits("/refused"), served);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_proxies_speak_mutual_tls() {
    workloads_speak_mutual_tls("our_proxies", Plane::Lateen, Plane::Lateen).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_proxy_speaks_mutual_tls_to_envoy() {
    workloads_speak_mutual_tls("ours_to_envoy", Plane::Lateen, Plane::StockEnvoy).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_speaks_mutual_tls_to_our_proxy() {
    workloads_speak_mutual_tls("envoy_to_ours", Plane::StockEnvoy, Plane::Lateen).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoys_speak_mutual_tls() {
    workloads_speak_mutual_tls("envoys", Plane::StockEnvoy, Plane::StockEnvoy).await;
}

fn rule(tls: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
         metadata: {{name: cart, namespace: default}}\n\
         spec: {{host: cart, trafficPolicy: {{{tls}}}}}\n"
    )
}

async fn a_destination_rule_overrides_automatic_mutual_tls(plane: Plane) {
    let test = "a_destination_rule_overrides_automatic_mutual_tls";
    let Some((mesh, shop, cart)) = pair(test, plane, plane).await else {
        return;
    };
    mesh.apply(&policy("mtls: {mode: STRICT}")).await;
    for (tls, status) in [
        // Says nothing of TLS.
        ("connectionPool: {tcp: {maxConnections: 100}}", 200),
        ("tls: {mode: DISABLE}", 503),
        ("tls: {mode: ISTIO_MUTUAL}", 200),
        (
            "tls: {mode: ISTIO_MUTUAL, subjectAltNames: ['spiffe://cluster.local/ns/default/sa/other']}",
            503,
        ),
    ] {
        mesh.apply(&rule(tls)).await;
        mesh.distributed(2).await;
        settles(&format!("{status} with {tls}"), async || {
            let answer = shop.send(&Call::through_proxy("cart", "/")).await?;
            let proven = answer
                .got("x-forwarded-client-cert")
                .contains(&shop.spiffe_id);
            match answer.status == status && proven == (status == 200) {
                true => Ok(()),
                false => Err(format!("{answer:?}")),
            }
        })
        .await;
    }
    drop(cart);
}

async fn endpoints_without_a_sidecar_and_outside_the_mesh_get_plain_bytes(plane: Plane) {
    let test = "endpoints_without_a_sidecar_and_outside_the_mesh_get_plain_bytes";
    let Some((mesh, shop, cart)) = pair(test, plane, plane).await else {
        return;
    };
    let legacy = lateen_testkit::echo::Echo::start("legacy").await;
    let entry = |name: &str, location: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
             metadata: {{name: {name}, namespace: default}}\nspec:\n  hosts: [{name}.test]\n  \
             location: {location}\n  resolution: STATIC\n  ports: [{{name: http, number: 80, protocol: HTTP}}]\n  \
             endpoints:\n  - {{address: 127.0.0.1, ports: {{http: {}}}, labels: {{security.istio.io/tlsMode: istio}}}}\n",
            cart.http.port()
        )
    };
    mesh.create(&entry("inside", "MESH_INTERNAL")).await;
    mesh.create(&entry("outside", "MESH_EXTERNAL")).await;
    // One more endpoint of cart, without a sidecar.
    mesh.create(&crate::mesh::workload("cart", "v0", "http", legacy.port()))
        .await;
    mesh.distributed(2).await;
    let by = async |host: &str| {
        let answer = shop.send(&Call::through_proxy(host, "/")).await?;
        let certificate = answer.got("x-forwarded-client-cert");
        match answer.status {
            200 => Ok((answer.name(), certificate.contains(&shop.spiffe_id))),
            _ => Err(format!("{answer:?}")),
        }
    };
    settles("inside with mutual TLS, outside without", async || {
        let (inside, outside) = (by("inside.test").await?, by("outside.test").await?);
        match inside.1 && !outside.1 {
            true => Ok(()),
            false => Err(format!("{inside:?} {outside:?}")),
        }
    })
    .await;
    let mut seen = std::collections::BTreeSet::new();
    lateen_testkit::eventually(
        "both endpoints of cart answer, each in its way",
        async || {
            let (name, proven) = by("cart").await?;
            assert_eq!(proven, name == "cart", "{name}");
            seen.insert(name);
            match seen.len() {
                2 => Ok(()),
                _ => Err(format!("{seen:?}")),
            }
        },
    )
    .await;
    // Where nothing but mutual TLS is taken.
    mesh.apply(&policy("mtls: {mode: STRICT}")).await;
    mesh.distributed(2).await;
    settles("the outside is refused", async || {
        let answer = shop.send(&Call::through_proxy("outside.test", "/")).await?;
        match answer.status {
            503 => by("inside.test").await.map(|_| ()),
            _ => Err(format!("{answer:?}")),
        }
    })
    .await;
}

async fn who_is_outside_proves_itself_with_a_name_of_its_entry(plane: Plane) {
    let test = "who_is_outside_proves_itself_with_a_name_of_its_entry";
    let Some((mesh, shop, cart)) = pair(test, plane, plane).await else {
        return;
    };
    mesh.apply(&policy("mtls: {mode: STRICT}")).await;
    let (cart_id, other) = (
        &cart.spiffe_id,
        "spiffe://cluster.local/ns/default/sa/other",
    );
    for (name, names, rule, status) in [
        ("right", cart_id.as_str(), "", 200),
        ("wrong", other, "", 503),
        ("ruled", other, cart_id, 200),
        ("misruled", cart_id, other, 503),
    ] {
        mesh.create(&format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
             metadata: {{name: {name}, namespace: default}}\nspec:\n  hosts: [{name}.test]\n  \
             location: MESH_EXTERNAL\n  resolution: STATIC\n  subjectAltNames: ['{names}']\n  \
             ports: [{{name: http, number: 80, protocol: HTTP}}]\n  \
             endpoints: [{{address: 127.0.0.1, ports: {{http: {}}}}}]\n---\n\
             apiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
             metadata: {{name: {name}, namespace: default}}\nspec: {{host: {name}.test, \
             trafficPolicy: {{tls: {{mode: ISTIO_MUTUAL, subjectAltNames: [{rule}]}}}}}}\n",
            cart.http.port()
        ))
        .await;
        mesh.distributed(2).await;
        let path = format!("/{name}");
        let answer = shop.gets(&format!("{name}.test"), &path, status).await;
        let proven = answer
            .got("x-forwarded-client-cert")
            .contains(&shop.spiffe_id);
        assert_eq!(proven, status == 200, "{name}: {answer:?}");
        assert_eq!(cart.app.hits(&path) > 0, status == 200, "{name}");
    }
}

fn settings(text: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\n\
         data:\n  mesh: |\n    {text}\n"
    )
}

async fn the_mesh_says_versions_ciphers_and_trust_domains(plane: Plane) {
    let test = "the_mesh_says_versions_ciphers_and_trust_domains";
    let Some((mesh, shop, cart)) = pair(test, plane, plane).await else {
        return;
    };
    mesh.apply(&policy("mtls: {mode: STRICT}")).await;
    mesh.distributed(2).await;
    let clients = Clients::new(&mesh.authority);
    let directory = mesh.directory();
    let pem = lateen_testkit::certificates::file(
        directory,
        "client.pem",
        &format!("{}{}", clients.right.chain, clients.right.key),
    );
    let pem = pem.to_str().unwrap().to_owned();
    let agreed = async |arguments: &[&str]| {
        let certificate = ["-cert", pem.as_str(), "-key", pem.as_str()];
        let all = [arguments, certificate.as_slice()].concat();
        s_client(cart.http, "", &all).await.text
    };
    settles("TLS 1.2 with forward secrecy, and 1.3", async || {
        let old = agreed(&["-tls1_2"]).await;
        let new = agreed(&["-tls1_3"]).await;
        let weak = agreed(&["-tls1_2", "-cipher", "AES128-SHA"]).await;
        match old.contains("TLSv1.2")
            && old.contains("ECDHE-")
            && new.contains("TLSv1.3")
            && !weak.contains("CONNECTION ESTABLISHED")
        {
            true => Ok(()),
            false => Err(format!("{old} {new} {weak}")),
        }
    })
    .await;
    let foreign = Dial::Tls(Some(&clients.foreign), &["istio"]);
    assert!(http(cart.http, foreign).await.is_err());
    mesh.apply(&settings(
        "{meshMTLS: {minProtocolVersion: TLSV1_3}, trustDomainAliases: [other.domain]}",
    ))
    .await;
    mesh.distributed(2).await;
    settles(
        "nothing below TLS 1.3, and the alias is trusted",
        async || {
            let old = agreed(&["-tls1_2"]).await;
            let new = agreed(&["-tls1_3"]).await;
            http(cart.http, foreign).await?;
            match !old.contains("CONNECTION ESTABLISHED") && new.contains("TLSv1.3") {
                true => Ok(()),
                false => Err(format!("{old} {new}")),
            }
        },
    )
    .await;
    shop.gets("cart", "/", 200).await;
    mesh.apply(&settings("{enableAutoMtls: false}")).await;
    mesh.distributed(2).await;
    settles(
        "without automatic mutual TLS it must be asked for",
        async || {
            let answer = shop.send(&Call::through_proxy("cart", "/")).await?;
            match answer.status {
                503 => Ok(()),
                _ => Err(format!("{answer:?}")),
            }
        },
    )
    .await;
}

on_both! {
    each_mode_lets_in_whom_it_says_on_every_kind_of_port,
    permissive_ports_pass_foreign_tls_on_where_it_may_be_the_applications,
    a_port_may_have_a_mode_of_its_own,
    a_destination_rule_overrides_automatic_mutual_tls,
    endpoints_without_a_sidecar_and_outside_the_mesh_get_plain_bytes,
    who_is_outside_proves_itself_with_a_name_of_its_entry,
    the_mesh_says_versions_ciphers_and_trust_domains,
}
