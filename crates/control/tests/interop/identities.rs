//! Certificates of workloads on both data planes: how they come from the control plane, and that
//! they are renewed under load.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use lateen_agent::{Agent, sds};
use lateen_testkit::certificates::{file, run, s_client};
use lateen_testkit::envoy::{Envoy, Plane};
use lateen_testkit::eventually;
use lateen_testkit::http::{Call, Client};
use serde_json::Value;

use crate::member::{Member, Secured, Who};

const TEST: &str = "identities";

async fn dump(envoy: &Envoy) -> Value {
    let text = envoy.get("/config_dump").await.unwrap();
    serde_json::from_str(&text).unwrap()
}

/// The entries of the active secrets.
async fn secrets(envoy: &Envoy) -> Vec<Value> {
    let dump = dump(envoy).await;
    let sections = dump["configs"].as_array().unwrap().iter();
    let lists = sections.filter_map(|section| section["dynamic_active_secrets"].as_array());
    lists.flatten().cloned().collect()
}

/// The serial number of the workload's certificate, and the SPIFFE id in it.
async fn own_certificate(member: &Member) -> Result<(String, String), String> {
    let text = member.envoy.get("/certs").await?;
    let certs: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    let contexts = certs["certificates"].as_array().ok_or("no certificates")?;
    let chains = contexts
        .iter()
        .filter_map(|one| one["cert_chain"].as_array());
    let of_member = |certificate: &&Value| {
        let names = certificate["subject_alt_names"].as_array();
        names.is_some_and(|names| names.iter().any(|name| name["uri"] == member.spiffe_id))
    };
    let own = chains.flatten().find(of_member);
    let own = own.ok_or_else(|| format!("none of {}: {certs:#}", member.spiffe_id))?;
    let serial = own["serial_number"].as_str().unwrap_or_default();
    Ok((serial.to_owned(), member.spiffe_id.clone()))
}

async fn a_proxy_proves_who_it_is_and_shows_its_certificate_but_not_its_key(plane: Plane) {
    let mesh = Secured::start().await;
    let Some(cart) = mesh.member(plane, TEST, "cart").await else {
        return;
    };
    let Some(shop) = mesh.member(plane, TEST, "shop").await else {
        return;
    };
    mesh.distributed(2).await;
    let answer = shop.gets("cart", "/", 200).await;
    assert_eq!(answer.name(), "cart");
    // What the control plane knows of the connection is what the certificate says.
    let connections = mesh.page("/debug/connections").await;
    assert!(
        connections.to_string().contains(&cart.spiffe_id),
        "{connections:#}"
    );
    let names = eventually("both secrets", async || {
        let mut names: Vec<String> = secrets(&cart.envoy)
            .await
            .iter()
            .filter(|secret| secret["version_info"] != "uninitialized")
            .map(|secret| secret["name"].as_str().unwrap().to_owned())
            .collect();
        names.sort();
        names.dedup();
        match names.len() {
            2 => Ok(names),
            _ => Err(format!("{names:?}")),
        }
    });
    assert_eq!(names.await, ["ROOTCA", "default"]);
    let text = dump(&cart.envoy).await.to_string();
    assert!(text.contains("W3JlZGFjdGVkXQ==") || text.contains("[redacted]"));
    eventually("the certificate is shown", async || {
        own_certificate(&cart).await
    })
    .await;
}

async fn a_certificate_is_renewed_under_load_and_nobody_notices(plane: Plane) {
    let mesh = Secured::start().await;
    let brief = Who {
        lifetime: Duration::from_secs(12),
        ..Who::named("cart")
    };
    let Some(cart) = mesh.member_as(plane, TEST, brief).await else {
        return;
    };
    let brief = Who {
        lifetime: Duration::from_secs(12),
        ..Who::named("shop")
    };
    let Some(shop) = mesh.member_as(plane, TEST, brief).await else {
        return;
    };
    mesh.distributed(2).await;
    shop.gets("cart", "/", 200).await;
    // A connection that stays, and new ones all the time.
    let mut kept = Client::connect(shop.proxy).await.unwrap();
    let (stop, sent) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
    );
    let load = {
        let (stop, sent, proxy) = (stop.clone(), sent.clone(), shop.proxy);
        tokio::spawn(async move {
            let mut failures = Vec::new();
            while !stop.load(Relaxed) {
                match Call::through_proxy("cart", "/").send(proxy).await {
                    Ok(answer) if answer.status == 200 => {}
                    other => failures.push(format!("{other:?}")),
                }
                sent.fetch_add(1, Relaxed);
            }
            failures
        })
    };
    let (first, _) = eventually("a certificate", async || own_certificate(&cart).await).await;
    let mut seen = vec![first];
    while seen.len() < 3 {
        let last = seen.last().unwrap().clone();
        let next = eventually("another certificate", async || {
            let (serial, _) = own_certificate(&cart).await?;
            let answer = kept.send(&Call::through_proxy("cart", "/")).await;
            let answer = answer.expect("the connection is kept");
            assert_eq!(answer.status, 200, "{answer:?}");
            match serial == last {
                true => Err(serial),
                false => Ok(serial),
            }
        });
        seen.push(next.await);
    }
    stop.store(true, Relaxed);
    let failures = load.await.unwrap();
    assert!(
        failures.is_empty(),
        "{} of {}: {failures:?}",
        failures.len(),
        sent.load(Relaxed)
    );
    assert!(sent.load(Relaxed) > 10);
}

async fn the_old_certificate_serves_while_there_is_no_control_plane(plane: Plane) {
    let mut mesh = Secured::start().await;
    let who = Who {
        lifetime: Duration::from_secs(30),
        ..Who::named("cart")
    };
    let Some(cart) = mesh.member_as(plane, TEST, who).await else {
        return;
    };
    mesh.distributed(1).await;
    cart.gets("cart", "/", 200).await;
    mesh.stop().await;
    let (before, _) = eventually("a certificate", async || own_certificate(&cart).await).await;
    // Past half of its life, when it would have been renewed.
    tokio::time::sleep(Duration::from_millis(15_500)).await;
    assert_eq!(own_certificate(&cart).await.unwrap().0, before);
    cart.gets("cart", "/", 200).await;
    mesh.restart().await;
    eventually("another certificate", async || {
        match own_certificate(&cart).await? {
            (serial, _) if serial == before => Err(serial),
            _ => Ok(()),
        }
    })
    .await;
    mesh.distributed(1).await;
}

on_both!(
    a_proxy_proves_who_it_is_and_shows_its_certificate_but_not_its_key,
    a_certificate_is_renewed_under_load_and_nobody_notices,
    the_old_certificate_serves_while_there_is_no_control_plane,
);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_control_plane_shows_the_certificate_of_its_authority() {
    let mesh = Secured::start().await;
    let roots = mesh.roots();
    let roots = roots.to_str().unwrap();
    let address = crate::mesh::loopback(mesh.secure);
    let name = "istiod.istio-system.svc";
    let with = [
        "-CAfile",
        roots,
        "-verify_return_error",
        "-verify_hostname",
        name,
    ];
    let said = s_client(address, name, &with).await;
    assert!(said.text.contains("Verification: OK"), "{}", said.text);
    // The deny twin: with another root the same server is not verified.
    let other = lateen_testkit::certificates::Authority::new("another");
    let other = file(mesh.directory(), "other.pem", &other.pem);
    let with = ["-CAfile", other.to_str().unwrap(), "-verify_return_error"];
    let said = s_client(address, name, &with).await;
    assert!(!said.text.contains("Verification: OK"), "{}", said.text);
    assert!(
        run("openssl", &["verify", "-CAfile", roots, roots])
            .await
            .success
    );
}

/// As `kill -9` ends it: its socket stays, and nobody answers there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_was_killed_is_started_again_under_a_stock_envoy() {
    let mut mesh = Secured::start().await;
    let start = || tokio::runtime::Runtime::new().unwrap();
    let killed = start();
    mesh.agents = Some(killed.handle().clone());
    let plane = Plane::StockEnvoy;
    let Some(cart) = mesh.member(plane, TEST, "cart").await else {
        return killed.shutdown_background();
    };
    let Some(shop) = mesh.member(plane, TEST, "shop").await else {
        return killed.shutdown_background();
    };
    mesh.distributed(2).await;
    shop.gets("cart", "/", 200).await;
    let shown = async || own_certificate(&cart).await;
    let (before, _) = eventually("the certificate is shown", shown).await;
    killed.shutdown_background();
    // What Envoy has serves on.
    for _ in 0..20 {
        assert_eq!(shop.get("cart", "/").await.status, 200);
    }
    let (kept, _) = own_certificate(&cart).await.unwrap();
    assert_eq!(kept, before);

    let who = Who::named("cart");
    let (config, socket) = (mesh.identity(&who).await, mesh.sds_socket(&who));
    assert!(socket.exists());
    let listener = sds::bind(&socket).unwrap();
    let agent = Agent::start(config);
    tokio::spawn(sds::serve(listener, agent.watch()));
    eventually(
        "the new agent's certificate",
        async || match own_certificate(&cart).await?.0 {
            same if same == before => Err("still the old one".to_owned()),
            _ => Ok(()),
        },
    )
    .await;
    shop.gets("cart", "/", 200).await;
}
