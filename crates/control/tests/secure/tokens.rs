//! TokenRequest and the roots through the REST API, with kubectl where it is there.

use lateen_testkit::certificates::run;
use lateen_testkit::http::Call;
use lateen_testkit::tools;
use serde_json::{Value, json};

use crate::client::{Plane, create};

async fn post(plane: &Plane, path: &str, body: Value) -> (u16, Value) {
    let call = Call::get("127.0.0.1", path)
        .method("POST")
        .body(body.to_string());
    let answer = call.send(plane.control.addresses().api).await.unwrap();
    (
        answer.status,
        serde_json::from_str(&answer.body).unwrap_or(Value::Null),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn token_requests_are_answered_and_bounded_as_kubernetes_does() {
    let plane = Plane::start().await;
    let path = "/api/v1/namespaces/default/serviceaccounts/reviews/token";
    let (code, answer) = post(
        &plane,
        path,
        json!({"spec": {"audiences": ["istio-ca"], "expirationSeconds": 600}}),
    )
    .await;
    assert_eq!(code, 201, "{answer}");
    assert_eq!(answer["kind"], "TokenRequest");
    assert_eq!(answer["spec"]["expirationSeconds"], 600);
    assert!(
        answer["status"]["expirationTimestamp"]
            .as_str()
            .unwrap()
            .ends_with('Z')
    );
    // Without an audience it is for the API itself, and worth nothing to the authority.
    let (code, answer) = post(&plane, path, json!({})).await;
    assert_eq!(code, 201, "{answer}");
    assert_eq!(answer["spec"]["expirationSeconds"], 3_600);
    let token = format!("Bearer {}", answer["status"]["token"].as_str().unwrap());
    let refused = create(plane.channel(None).await, Some(&token), 0)
        .await
        .unwrap_err();
    assert!(refused.message().contains("audience"), "{refused}");

    let refused: [(&str, Value, u16); 8] = [
        (path, json!({"spec": {"expirationSeconds": 599}}), 422),
        (path, json!({"spec": {"expirationSeconds": -1}}), 422),
        (path, json!({"spec": {"audiences": "istio-ca"}}), 422),
        (path, json!({"spec": {"audiences": [""]}}), 422),
        (
            path,
            json!({"spec": {"boundObjectRef": {"kind": "Pod", "name": "x"}}}),
            422,
        ),
        (path, json!({"kind": "Secret"}), 400),
        (
            "/api/v1/namespaces/default/serviceaccounts/..%2Fx/token",
            json!({}),
            422,
        ),
        (
            "/api/v1/namespaces/Default/serviceaccounts/x/token",
            json!({}),
            422,
        ),
    ];
    for (path, body, expect) in refused {
        let (code, answer) = post(&plane, path, body.clone()).await;
        assert_eq!(code, expect, "{path} {body}: {answer}");
    }
    let get = Call::get("127.0.0.1", path)
        .send(plane.control.addresses().api)
        .await
        .unwrap();
    assert_eq!(get.status, 405);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_roots_are_a_config_map_of_every_namespace_that_nobody_can_change() {
    let plane = Plane::start().await;
    let roots = plane.roots().await;
    let path = "/api/v1/namespaces/anywhere/configmaps/istio-ca-root-cert";
    let found: Value = serde_json::from_str(&plane.get(path).await).unwrap();
    assert_eq!(found["data"]["root-cert.pem"], roots.as_str());
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: production\n";
    plane
        .apply("/api/v1/namespaces/production", namespace)
        .await;
    let list: Value = serde_json::from_str(&plane.get("/api/v1/configmaps").await).unwrap();
    assert_eq!(
        list["items"][0]["metadata"]["namespace"], "production",
        "{list}"
    );
    // It is as old as its namespace, if anybody knows how old that is.
    let of: Value =
        serde_json::from_str(&plane.get("/api/v1/namespaces/production").await).unwrap();
    let created = |one: &Value| one["metadata"]["creationTimestamp"].clone();
    assert!(created(&of).is_string(), "{of}");
    assert_eq!(created(&list["items"][0]), created(&of));
    assert_eq!(created(&found), Value::Null);
    let table = Call::get("127.0.0.1", path).header("accept", "application/json;as=Table");
    let table = table
        .send(plane.control.addresses().api)
        .await
        .unwrap()
        .json();
    let age = table["rows"][0]["cells"]
        .as_array()
        .unwrap()
        .last()
        .cloned();
    assert_eq!(age, Some(json!("<unknown>")), "{table}");
    let document = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: istio-ca-root-cert\n  namespace: anywhere\ndata:\n  root-cert.pem: mine\n";
    let call = Call::get("127.0.0.1", path).method("PATCH").body(document);
    let call = call.header("content-type", "application/apply-patch+yaml");
    let answer = call.send(plane.control.addresses().api).await.unwrap();
    assert_eq!(answer.status, 403, "{}", answer.body);
    // Nor together with others.
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "istio-ca-root-cert", "namespace": "anywhere"},
        "data": {"root-cert.pem": "mine"},
    });
    let all = json!({"items": [map]}).to_string();
    let call = Call::get("127.0.0.1", "/lateen/v1/apply");
    let call = call.method("POST").body(all);
    let answer = call.send(plane.control.addresses().api).await.unwrap();
    assert_eq!(answer.status, 422, "{}", answer.body);
    assert!(answer.body.contains("holds the roots"), "{}", answer.body);
    let again: Value = serde_json::from_str(&plane.get(path).await).unwrap();
    assert_eq!(again["data"]["root-cert.pem"], roots.as_str());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_makes_tokens_and_reads_the_roots() {
    let test = "kubectl_makes_tokens_and_reads_the_roots";
    if tools::program("kubectl", &["version", "--client"]).is_none() {
        return tools::skip(test, "kubectl");
    }
    let plane = Plane::start().await;
    let server = format!("--server=http://{}", plane.control.addresses().api);
    let cache = format!("--cache-dir={}", plane.path().join("cache").display());
    let kubectl = async |arguments: &[&str]| {
        let mut all = vec![server.as_str(), "--kubeconfig=/dev/null", cache.as_str()];
        all.extend(arguments);
        run("kubectl", &all).await
    };
    let made = kubectl(&[
        "create",
        "token",
        "reviews",
        "--audience=istio-ca",
        "--duration=1h",
    ])
    .await;
    assert!(made.success, "{made:?}");
    let token = format!("Bearer {}", made.text.trim());
    create(plane.channel(None).await, Some(&token), 0)
        .await
        .unwrap();
    let read = kubectl(&[
        "get",
        "configmap",
        "istio-ca-root-cert",
        "-o",
        "jsonpath={.data.root-cert\\.pem}",
    ])
    .await;
    assert!(read.success, "{read:?}");
    assert_eq!(read.text, plane.roots().await);
}
