//! Secrets through the API: kubectl writes and reads them, and nothing else shows what they hold.

use lateen_testkit::certificates::{Authority, Pair, file};
use lateen_testkit::http::Call;
use lateen_testkit::tools;

use crate::mesh::Mesh;

fn document(pair: &Pair) -> String {
    let block = |text: &str| text.trim_end().replace('\n', "\n    ");
    format!(
        "apiVersion: v1\nkind: Secret\nmetadata:\n  name: web\n  namespace: default\n\
         type: kubernetes.io/tls\nstringData:\n  tls.crt: |\n    {}\n  tls.key: |\n    {}\n",
        block(&pair.chain),
        block(&pair.key)
    )
}

/// A piece of a key that is in no other text.
fn piece(key: &str) -> &str {
    key.lines().nth(1).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_applies_and_reads_a_secret_and_nothing_else_shows_it() {
    let test = "kubectl_applies_and_reads_a_secret_and_nothing_else_shows_it";
    if tools::program("kubectl", &["version", "--client"]).is_none() {
        return tools::skip(test, "kubectl");
    }
    let mesh = Mesh::start().await;
    let authority = Authority::new("authority");
    let (pair, other) = (authority.issue("web", &[]), authority.issue("web", &[]));
    let good = file(mesh.directory(), "good.yaml", &document(&pair));
    let mixed = Pair {
        chain: pair.chain.clone(),
        key: other.key.clone(),
        serial: pair.serial,
    };
    let wrong = file(mesh.directory(), "wrong.yaml", &document(&mixed));
    let kubectl = async |arguments: &[&str]| mesh.kubectl(arguments).await;
    let said = kubectl(&["apply", "-f", good.to_str().unwrap()]).await;
    assert!(
        said.success && said.text.contains("secret/web created"),
        "{said:?}"
    );
    let listed = kubectl(&["get", "secrets"]).await;
    let row = ["web", "kubernetes.io/tls", "2"];
    assert!(
        row.iter().all(|cell| listed.text.contains(cell)),
        "{listed:?}"
    );
    // Who asks for the object gets it, as base64 like everything in a Secret.
    let shown = kubectl(&[
        "get",
        "secret",
        "web",
        "-o",
        "go-template={{index .data \"tls.key\" | base64decode}}",
    ])
    .await;
    assert_eq!(shown.text.trim_end(), pair.key.trim_end());
    let refused = kubectl(&["apply", "-f", wrong.to_str().unwrap()]).await;
    assert!(!refused.success, "{refused:?}");
    assert!(
        refused.text.contains("does not fit the certificate"),
        "{refused:?}"
    );
    assert!(!refused.text.contains(piece(&mixed.key)), "{refused:?}");

    let encoded = {
        let answer = Call::get("127.0.0.1", "/api/v1/namespaces/default/secrets/web");
        let answer = answer.send(mesh.api).await.unwrap().json();
        answer["data"]["tls.key"].as_str().unwrap().to_owned()
    };
    for page in [
        "/debug/configz",
        "/debug/findings",
        "/debug/registryz",
        "/debug/syncz",
    ] {
        let text = Call::get("127.0.0.1", page)
            .send(mesh.api)
            .await
            .unwrap()
            .body;
        assert!(
            !text.contains(piece(&pair.key)) && !text.contains(&encoded),
            "{page}"
        );
    }
    let configz = mesh.page("/debug/configz").await;
    assert_eq!(configz[0]["data"]["tls.key"], "[redacted]");
    let deleted = kubectl(&["delete", "secret", "web"]).await;
    assert!(deleted.success, "{deleted:?}");
}
