//! An authority that is given, in files and in a Secret, and that changes while it is used.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lateen_control::{Control, Options};
use lateen_testkit::eventually;
use lateen_testkit::http::Call;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::callers::Plugged;
use crate::client::{Plane, create};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_authority_in_files_signs_and_is_replaced_without_a_restart() {
    let directory = Arc::new(tempfile::tempdir().unwrap());
    let at = directory.path().join("cacerts");
    let first = Plugged::write(&at);
    let given = at.clone();
    let plane = Plane::start_with(directory, |options| options.plugged_ca = Some(given)).await;
    let root = std::fs::read_to_string(at.join("root-cert.pem")).unwrap();
    assert_eq!(plane.roots().await, root);
    let old = plane.certificate("default", "reviews").await;
    assert_eq!(old.chain.last(), Some(&root));

    // Both roots for a while: the old certificate still opens the door.
    let next = tempfile::tempdir().unwrap();
    Plugged::write(next.path());
    let new_root = std::fs::read_to_string(next.path().join("root-cert.pem")).unwrap();
    for name in ["ca-cert.pem", "ca-key.pem"] {
        std::fs::copy(next.path().join(name), at.join(name)).unwrap();
    }
    std::fs::write(at.join("root-cert.pem"), format!("{root}{new_root}")).unwrap();
    eventually("the new authority signs", async || {
        let renewed = create(plane.channel(Some(&old)).await, None, 0).await;
        match renewed.map(|renewed| renewed.chain) {
            Ok(chain) if chain.last() == Some(&new_root) && chain.len() == 3 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    drop(first);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_secret_cacerts_is_the_authority_now_and_after_a_restart() {
    let plane = Plane::start().await;
    let own = plane.roots().await;
    let at = plane.path().join("cacerts");
    Plugged::write(&at);
    let root = std::fs::read_to_string(at.join("root-cert.pem")).unwrap();
    let mut document = "apiVersion: v1\nkind: Secret\nmetadata:\n  name: cacerts\n  namespace: istio-system\ndata:\n".to_owned();
    for name in ["ca-cert.pem", "ca-key.pem", "root-cert.pem"] {
        let content = STANDARD.encode(std::fs::read(at.join(name)).unwrap());
        document += &format!("  {name}: {content}\n");
    }
    plane
        .apply("/api/v1/namespaces/istio-system/secrets/cacerts", &document)
        .await;
    eventually("the Secret is used", async || match plane.roots().await {
        roots if roots == root => Ok(()),
        roots => Err(roots),
    })
    .await;
    assert_ne!(own, root);
    plane.certificate("default", "reviews").await;
    let plane = plane.restart(|_| ()).await;
    assert_eq!(plane.roots().await, root);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_control_plane_does_not_start_with_an_authority_that_does_not_fit() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path().join("cacerts");
    Plugged::write(&at);
    let other = tempfile::tempdir().unwrap();
    Plugged::write(other.path());
    std::fs::copy(other.path().join("ca-key.pem"), at.join("ca-key.pem")).unwrap();
    let options = Options {
        xds_port: 0,
        secure_port: 0,
        api_port: 0,
        monitoring_port: 0,
        plugged_ca: Some(at),
        ..Options::new(directory.path().join("data"))
    };
    let error = Control::start(options).await.err().unwrap().to_string();
    assert!(error.contains("ca-key.pem: is not the key of"), "{error}");
    assert!(
        !directory.path().join("data/ca/self-signed.pem").exists(),
        "and takes no other"
    );
}

const OWN: &str = "/api/v1/namespaces/istio-system/secrets/istio-ca-secret";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_root_it_made_is_shown_as_istios_secret_and_its_key_is_not() {
    let plane = Plane::start().await;
    let own = plane.roots().await;
    let shown: Value = serde_json::from_str(&plane.get(OWN).await).unwrap();
    let entry = |name: &str| STANDARD.decode(shown["data"][name].as_str().unwrap());
    for name in ["ca-cert.pem", "root-cert.pem"] {
        assert_eq!(entry(name).unwrap(), own.as_bytes(), "{name}");
    }
    assert_eq!(shown["type"], "istio.io/ca-root");
    assert!(shown["data"]["ca-key.pem"].is_null(), "{shown}");
    // The key is where nobody else can read it.
    let file = plane.path().join("data/ca/self-signed.pem");
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    // It is as old as the root, also after a restart; so is what `get` prints.
    let made = shown["metadata"]["creationTimestamp"].clone();
    let at = OffsetDateTime::parse(made.as_str().unwrap(), &Rfc3339).unwrap();
    let ago = OffsetDateTime::now_utc() - at;
    assert!(
        ago.whole_hours() == 0 && ago > time::Duration::seconds(-2),
        "{made}"
    );
    let plane = plane.restart(|_| ()).await;
    let shown: Value = serde_json::from_str(&plane.get(OWN).await).unwrap();
    assert_eq!(shown["metadata"]["creationTimestamp"], made);
    let api = plane.control.addresses().api;

    // It is in lists, in its namespace only, and it cannot be taken away.
    let listed = async |path: &str| {
        let list: Value = serde_json::from_str(&plane.get(path).await).unwrap();
        let items = list["items"].as_array().unwrap().clone();
        let names = items.iter().map(|one| one["metadata"]["name"].clone());
        names.filter(|name| name == "istio-ca-secret").count()
    };
    assert_eq!(listed("/api/v1/secrets").await, 1);
    assert_eq!(listed("/api/v1/namespaces/istio-system/secrets").await, 1);
    assert_eq!(listed("/api/v1/namespaces/default/secrets").await, 0);
    let elsewhere = Call::get("127.0.0.1", &OWN.replace("istio-system", "default"));
    assert_eq!(elsewhere.send(api).await.unwrap().status, 404);
    let delete = Call::get("127.0.0.1", OWN).method("DELETE");
    assert_eq!(delete.send(api).await.unwrap().status, 403);

    // Saved and applied again it is no authority, and does no harm.
    let certificate = shown["data"]["ca-cert.pem"].as_str().unwrap();
    let document = |entries: &str| {
        format!(
            "apiVersion: v1\nkind: Secret\nmetadata:\n  name: istio-ca-secret\n  \
             namespace: istio-system\ndata:\n{entries}"
        )
    };
    let saved = format!("  ca-cert.pem: {certificate}\n  ca-key.pem: ''\n");
    plane.apply(OWN, &document(&saved)).await;
    let plane = plane.restart(|_| ()).await;
    assert_eq!(plane.roots().await, own);
    plane.certificate("default", "reviews").await;

    // One with a key is Istio's own root, brought along.
    let at = plane.path().join("istio");
    Plugged::write(&at);
    let mut entries = String::new();
    for (name, file) in [
        ("ca-cert.pem", "ca-cert.pem"),
        ("ca-key.pem", "ca-key.pem"),
        ("root-cert.pem", "root-cert.pem"),
    ] {
        let content = STANDARD.encode(std::fs::read(at.join(file)).unwrap());
        entries += &format!("  {name}: {content}\n");
    }
    plane.apply(OWN, &document(&entries)).await;
    let root = std::fs::read_to_string(at.join("root-cert.pem")).unwrap();
    eventually("the Secret is used", async || match plane.roots().await {
        roots if roots == root => Ok(()),
        roots => Err(roots),
    })
    .await;
}
