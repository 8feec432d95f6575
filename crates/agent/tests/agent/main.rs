//! An agent and an authority over real sockets: how certificates come, are renewed, and what
//! happens when they do not.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests stop at what is not as expected"
)]

mod authority;
mod sds;

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use authority::{Ca, ID};
use lateen_agent::{Agent, Config, KeyKind, Material};
use lateen_testkit::certificates::{Authority, file, run};
use lateen_testkit::eventually;

/// What the agent has when `wanted` is true of it.
async fn material(agent: &Agent, what: &str, wanted: impl Fn(&Material) -> bool) -> Material {
    let watch = agent.watch();
    eventually(what, async || {
        let now = watch.borrow().clone();
        match wanted(&now) {
            true => Ok(now),
            false => Err(format!("{now:?}")),
        }
    })
    .await
}

async fn trouble(agent: &Agent, text: &str) {
    let has = |material: &Material| {
        material
            .trouble
            .as_deref()
            .is_some_and(|t| t.contains(text))
    };
    material(agent, text, has).await;
}

fn serial(material: &Material) -> String {
    material.identity.as_ref().unwrap().serial.clone()
}

#[tokio::test]
async fn the_first_certificate_is_for_the_id_and_the_key_and_openssl_agrees() {
    for kind in [KeyKind::Ecdsa, KeyKind::Rsa] {
        let ca = Ca::start().await;
        let output = ca.path("out");
        let agent = Agent::start(Config {
            key: kind,
            output: Some(output.clone()),
            ..ca.config()
        });
        let has = material(&agent, "a certificate", |m| m.identity.is_some()).await;
        let identity = has.identity.unwrap();
        assert_eq!(identity.spiffe_id, ID);
        assert!(identity.key.starts_with("-----BEGIN PRIVATE KEY"));
        assert_eq!(has.roots.unwrap().matches("BEGIN CERTIFICATE").count(), 1);
        assert_eq!(ca.callers(), ["Bearer good"]);
        assert_eq!(ca.rules.lock().unwrap().asked_seconds, 3600);

        // The files that were asked for are for nobody else.
        let path = |name: &str| output.join(name).to_str().unwrap().to_owned();
        for name in ["cert-chain.pem", "key.pem", "root-cert.pem"] {
            eventually(name, async || match std::fs::metadata(path(name)) {
                Ok(found) => {
                    assert_eq!(found.permissions().mode() & 0o777, 0o600);
                    Ok(())
                }
                Err(error) => Err(error.to_string()),
            })
            .await;
        }
        let (root, chain) = (path("root-cert.pem"), path("cert-chain.pem"));
        let verified = run("openssl", &["verify", "-CAfile", &root, &chain]).await;
        assert!(verified.success, "{}", verified.text);
        let of_key = run("openssl", &["pkey", "-in", &path("key.pem"), "-pubout"]).await;
        let of_chain = run("openssl", &["x509", "-in", &chain, "-noout", "-pubkey"]).await;
        assert_eq!(of_key.text, of_chain.text);
    }
}

#[tokio::test]
async fn without_being_asked_nothing_is_written() {
    let ca = Ca::start().await;
    let agent = Agent::start(ca.config());
    material(&agent, "a certificate", |m| m.identity.is_some()).await;
    let mut names: Vec<_> = std::fs::read_dir(ca.directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["root.pem", "token"]);
}

#[tokio::test]
async fn a_certificate_is_renewed_while_the_old_one_is_valid_and_has_a_key_of_its_own() {
    let ca = Ca::start().await;
    ca.change(|rules| rules.lifetime = Duration::from_secs(12));
    let agent = Agent::start(ca.config());
    let first = material(&agent, "a certificate", |m| m.identity.is_some()).await;
    let old = serial(&first);
    let second = material(&agent, "another one", |m| serial(m) != old).await;
    let (first, second) = (first.identity.unwrap(), second.identity.unwrap());
    assert!(second.received < first.not_after, "{first:?} {second:?}");
    assert_ne!(*first.key, *second.key);
}

#[tokio::test]
async fn the_old_certificate_stays_while_the_authority_is_down() {
    let ca = Ca::start().await;
    ca.change(|rules| {
        rules.lifetime = Duration::from_secs(2);
        rules.left = 1;
    });
    let agent = Agent::start(ca.config());
    let first = material(&agent, "a certificate", |m| m.identity.is_some()).await;
    trouble(&agent, "down for maintenance").await;
    assert_eq!(serial(&agent.watch().borrow()), serial(&first));
    ca.change(|rules| rules.left = 1);
    let old = serial(&first);
    let second = material(&agent, "another one", |m| serial(m) != old).await;
    assert!(second.trouble.is_none());
}

#[tokio::test]
async fn an_authority_of_another_root_is_refused_and_gets_no_token() {
    let ca = Ca::start().await;
    ca.write("root.pem", &Authority::new("another").pem);
    let agent = Agent::start(ca.config());
    trouble(&agent, "is not trusted").await;
    assert!(agent.watch().borrow().identity.is_none());
    assert_eq!(ca.callers(), [""; 0]);
    // The right root comes: no restart is needed.
    ca.write("root.pem", &ca.authority.pem);
    material(&agent, "a certificate", |m| m.identity.is_some()).await;
}

#[tokio::test]
async fn an_authority_of_another_name_is_refused() {
    let ca = Ca::start().await;
    let agent = Agent::start(Config {
        ca_name: "istiod.elsewhere.svc".into(),
        ..ca.config()
    });
    trouble(&agent, "is not trusted").await;
    assert_eq!(ca.callers(), [""; 0]);
}

#[tokio::test]
async fn a_token_is_read_anew_each_time() {
    let ca = Ca::start().await;
    std::fs::remove_file(ca.path("token")).unwrap();
    let agent = Agent::start(ca.config());
    trouble(&agent, "cannot read the token").await;
    ca.write("token", " \n");
    trouble(&agent, "is empty").await;
    ca.write("token", "expired");
    trouble(&agent, "who are you?").await;
    assert_eq!(ca.callers(), [""; 0]);
    ca.write("token", "good");
    material(&agent, "a certificate", |m| m.identity.is_some()).await;
    assert_eq!(ca.callers(), ["Bearer good"]);
}

#[tokio::test]
async fn without_a_token_the_present_certificate_is_the_proof() {
    let ca = Ca::start().await;
    ca.change(|rules| {
        rules.lifetime = Duration::from_secs(12);
        rules.left = 1;
    });
    let agent = Agent::start(ca.config());
    let first = material(&agent, "a certificate", |m| m.identity.is_some()).await;
    std::fs::remove_file(ca.path("token")).unwrap();
    ca.change(|rules| rules.left = 1);
    let old = serial(&first);
    material(&agent, "another one", |m| serial(m) != old).await;
    assert_eq!(ca.callers(), ["Bearer good", "certificate"]);
}

#[tokio::test]
async fn old_and_new_roots_are_trusted_while_a_root_is_replaced() {
    let ca = Ca::start().await;
    let agent = Agent::start(ca.config());
    material(&agent, "a certificate", |m| m.identity.is_some()).await;
    let next = Authority::new("next").pem;
    let both = format!("{}{next}", ca.authority.pem);
    file(ca.directory.path(), "root.pem", &both);
    let roots = |m: &Material, pem: &str| {
        let line = pem.lines().nth(3).unwrap().to_owned();
        m.roots.as_deref().unwrap_or_default().contains(&line)
    };
    let has = |m: &Material| roots(m, &next) && roots(m, &ca.authority.pem);
    material(&agent, "both roots", has).await;
    // A file that is damaged takes nothing away.
    file(ca.directory.path(), "root.pem", "nonsense");
    trouble(&agent, "certificates in PEM are expected").await;
    assert!(has(&agent.watch().borrow()));
}

#[tokio::test]
async fn roots_that_come_with_a_certificate_are_trusted_too() {
    let ca = Ca::start().await;
    let next = Authority::new("next").pem;
    let both = format!("{}{next}", ca.authority.pem);
    ca.change(|rules| rules.roots = Some(both));
    let agent = Agent::start(ca.config());
    let has = material(&agent, "a certificate", |m| m.identity.is_some()).await;
    assert_eq!(has.roots.unwrap().matches("BEGIN CERTIFICATE").count(), 2);
    // Roots are for verifying; peers are not sent ours.
    let chain = &has.identity.unwrap().chain;
    assert_eq!(chain.matches("BEGIN CERTIFICATE").count(), 1);
}
