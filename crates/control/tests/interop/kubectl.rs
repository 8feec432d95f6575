//! kubectl pointed at the configuration API.

use std::path::PathBuf;
use std::process::Command;

use lateen_testkit::tools;

use crate::mesh::Mesh;

/// kubectl with nothing of the person's own configuration.
struct Kubectl<'a> {
    mesh: &'a Mesh,
}

struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Kubectl<'_> {
    fn run(&self, arguments: &[&str]) -> Said {
        let directory = self.mesh.directory();
        let editor = self.file("editor.sh", "sed -i 's/weight: 60/weight: 61/' \"$1\"\n");
        let output = Command::new("kubectl")
            .arg(format!("--server=http://{}", self.mesh.api))
            .arg("--kubeconfig=/dev/null")
            .arg(format!("--cache-dir={}", directory.join("cache").display()))
            .args(arguments)
            .env("HOME", directory)
            .env("KUBE_EDITOR", format!("sh {}", editor.display()))
            .current_dir(directory)
            .output()
            .unwrap();
        Said {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.mesh.directory().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Runs and expects success; what it printed.
    fn ok(&self, arguments: &[&str]) -> String {
        let said = self.run(arguments);
        assert_eq!(
            said.code,
            Some(0),
            "{arguments:?}: {}{}",
            said.out,
            said.err
        );
        said.out
    }

    /// Runs and expects failure; what it complained of.
    fn fails(&self, arguments: &[&str]) -> String {
        let said = self.run(arguments);
        assert_eq!(
            said.code,
            Some(1),
            "{arguments:?}: {}{}",
            said.out,
            said.err
        );
        said.err
    }
}

/// None, with a loud word, when there is no kubectl.
async fn mesh_for_kubectl(test: &str) -> Option<Mesh> {
    let Some(_) = tools::program("kubectl", &["version", "--client"]) else {
        tools::skip(test, "kubectl");
        return None;
    };
    Some(Mesh::start().await)
}

fn words(line: &str) -> Vec<&str> {
    line.split(' ').filter(|word| !word.is_empty()).collect()
}

/// The lines of a table, each with its cells except the last, which is the age.
fn rows(table: &str) -> Vec<Vec<&str>> {
    let lines = table.lines().skip(1);
    lines
        .map(|line| {
            let mut cells = words(line);
            cells.pop();
            cells
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_applies_a_whole_pod_and_gets_all_of_it_back() {
    let test = "kubectl_applies_a_whole_pod_and_gets_all_of_it_back";
    let Some(mesh) = mesh_for_kubectl(test).await else {
        return;
    };
    let kubectl = Kubectl { mesh: &mesh };
    kubectl.file("pod.yaml", POD);
    let created = kubectl.ok(&["apply", "-f", "pod.yaml"]);
    assert_eq!(created, "pod/db-0 created\n");
    let again = kubectl.ok(&["apply", "-f", "pod.yaml"]);
    assert_eq!(again, "pod/db-0 unchanged\n");

    let parsed = lateen_api::parse("pod.yaml", POD, lateen_api::Mode::Strict);
    let applied = parsed.objects[0].object.to_json();
    let got = kubectl.ok(&["get", "pod", "db-0", "-o", "json"]);
    let got: serde_json::Value = serde_json::from_str(&got).unwrap();
    for part in ["spec", "status"] {
        assert_eq!(got[part], applied[part], "{part}");
    }
    for part in ["labels", "ownerReferences", "generateName"] {
        assert_eq!(got["metadata"][part], applied["metadata"][part], "{part}");
    }
    let table = kubectl.ok(&["get", "pods"]);
    assert_eq!(
        rows(&table),
        [vec!["db-0", "2/2", "Running", "2"]],
        "{table}"
    );
    let wide = kubectl.ok(&["get", "po", "-o", "wide"]);
    for part in ["10.244.1.7", "worker-1", "1/1"] {
        assert!(wide.contains(part), "{part}: {wide}");
    }

    // One container of several gets another image, which kubectl sends as that alone.
    kubectl.file(
        "pod.yaml",
        &POD.replace(
            "mysql:8.4\n    imagePullPolicy",
            "mysql:9.0\n    imagePullPolicy",
        ),
    );
    let changed = kubectl.ok(&["apply", "-f", "pod.yaml"]);
    assert_eq!(changed, "pod/db-0 configured\n");
    let got = kubectl.ok(&["get", "pod", "db-0", "-o", "json"]);
    let got: serde_json::Value = serde_json::from_str(&got).unwrap();
    let mut expected = applied["spec"].clone();
    expected["containers"][0]["image"] = "mysql:9.0".into();
    assert_eq!(got["spec"], expected);

    // What is read of it is checked, at its place; the rest is the cluster's business.
    for (from, to, complaint) in [
        (
            "containerPort: 3306",
            "containerPort: 70000",
            "spec.containers[0].ports[0].containerPort",
        ),
        ("podIP: 10.244.1.7", "podIP: here", "status.podIP"),
        ("phase: Running", "phase: Walking", "status.phase"),
        ("hostname: db-0", "hostname: DB_0", "spec.hostname"),
    ] {
        kubectl.file("wrong.yaml", &POD.replace(from, to));
        let said = kubectl.fails(&["apply", "-f", "wrong.yaml"]);
        assert!(said.contains(complaint), "{complaint}: {said}");
    }
    kubectl.ok(&["delete", "pod", "db-0", "--wait=false"]);
}

/// As a cluster gives it away, without what its own store writes (`uid` and the like).
const POD: &str = include_str!("pod.yaml");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_applies_shows_changes_and_deletes_configuration() {
    let test = "kubectl_applies_shows_changes_and_deletes_configuration";
    let Some(mesh) = mesh_for_kubectl(test).await else {
        return;
    };
    let kubectl = Kubectl { mesh: &mesh };
    kubectl.file("all.yaml", ALL);
    let created = kubectl.ok(&["apply", "-f", "all.yaml"]);
    assert_eq!(created.matches(" created\n").count(), 6, "{created}");
    let again = kubectl.ok(&["apply", "-f", "all.yaml"]);
    assert_eq!(again.matches(" unchanged\n").count(), 6, "{again}");

    for (kind, expect) in [
        ("vs", vec!["reviews", "[\"reviews\"]"]),
        ("dr", vec!["reviews", "reviews"]),
        ("gw", vec!["web"]),
        ("se", vec!["api", "[\"api.example.com\"]", "DNS"]),
        (
            "svc",
            vec!["reviews", "ClusterIP", "<none>", "<none>", "9080/TCP"],
        ),
        (
            "virtualservices.v1beta1.networking.istio.io",
            vec!["reviews", "[\"reviews\"]"],
        ),
    ] {
        let table = kubectl.ok(&["get", kind]);
        assert_eq!(rows(&table), [expect], "{kind}: {table}");
    }
    let everywhere = kubectl.ok(&["get", "vs,dr", "-A"]);
    assert!(everywhere.contains("default     virtualservice.networking.istio.io/reviews"));
    let yaml = kubectl.ok(&["get", "vs", "reviews", "-o", "yaml"]);
    assert!(
        yaml.contains("- reviews\n") && yaml.contains("weight: 70\n"),
        "{yaml}"
    );

    kubectl.file("all.yaml", &ALL.replace("weight: 70", "weight: 60"));
    let difference = kubectl.run(&["diff", "-f", "all.yaml"]);
    assert_eq!(difference.code, Some(1), "{}", difference.err);
    assert!(
        difference
            .out
            .contains("-      weight: 70\n+      weight: 60\n")
    );
    let changed = kubectl.ok(&["apply", "-f", "all.yaml"]);
    assert_eq!(changed.matches(" configured\n").count(), 1, "{changed}");
    let weight = "jsonpath={.spec.http[0].route[0].weight}";
    assert_eq!(kubectl.ok(&["get", "vs", "reviews", "-o", weight]), "60");
    kubectl.ok(&[
        "apply",
        "--server-side",
        "--force-conflicts",
        "-f",
        "all.yaml",
    ]);
    let patch = r#"{"spec":{"exportTo":["."]}}"#;
    kubectl.ok(&["patch", "vs", "reviews", "--type", "merge", "-p", patch]);
    kubectl.ok(&["label", "vs", "reviews", "team=x"]);
    let labelled = kubectl.ok(&["get", "vs", "-l", "team=x", "-o", "name"]);
    assert_eq!(labelled, "virtualservice.networking.istio.io/reviews\n");
    assert_eq!(kubectl.ok(&["get", "vs", "-l", "team=y", "-o", "name"]), "");
    kubectl.ok(&["edit", "vs", "reviews"]);
    assert_eq!(kubectl.ok(&["get", "vs", "reviews", "-o", weight]), "61");

    let deleted = kubectl.ok(&["delete", "-f", "all.yaml"]);
    assert_eq!(deleted.matches(" deleted").count(), 6, "{deleted}");
    assert_eq!(kubectl.ok(&["get", "vs,dr,gw,se,we,svc", "-A"]), "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_says_what_is_wrong() {
    let Some(mesh) = mesh_for_kubectl("kubectl_says_what_is_wrong").await else {
        return;
    };
    let kubectl = Kubectl { mesh: &mesh };
    kubectl.file(
        "wrong.yaml",
        &ALL.replace("hosts: [reviews]", "hots: [reviews]"),
    );
    let error = kubectl.fails(&["apply", "-f", "wrong.yaml"]);
    assert!(
        error.contains("spec.hots: unknown field \"hots\"; did you mean \"hosts\"?"),
        "{error}"
    );
    let error = kubectl.fails(&["get", "vs", "reviews"]);
    assert!(
        error.contains("virtualservices.networking.istio.io \"reviews\" not found"),
        "{error}"
    );
    let error = kubectl.fails(&["get", "nothing"]);
    assert!(
        error.contains("doesn't have a resource type \"nothing\""),
        "{error}"
    );
    kubectl.file("all.yaml", ALL);
    kubectl.fails(&["create", "-f", "wrong.yaml"]);
    let error = kubectl.fails(&["create", "-f", "all.yaml"]);
    assert!(
        error.contains("destinationrules.networking.istio.io \"reviews\" already exists"),
        "{error}"
    );
    // Newer versions send this one kind of request in a form of their own.
    let namespace = kubectl.run(&["create", "namespace", "team"]);
    let understood = namespace.out.contains("namespace/team created");
    assert!(
        understood || namespace.err.contains("send JSON or YAML"),
        "{}",
        namespace.err
    );
    let dry = kubectl.ok(&["apply", "--dry-run=server", "-n", "other", "-f", "all.yaml"]);
    assert!(dry.contains("created (server dry run)"), "{dry}");
    assert_eq!(kubectl.ok(&["get", "vs", "-n", "other", "-o", "name"]), "");
}

const ALL: &str = "
apiVersion: v1
kind: Service
metadata: {name: reviews}
spec:
  selector: {app: reviews}
  ports: [{name: http, port: 9080}]
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: reviews-v1}
spec: {address: 127.0.0.1, labels: {app: reviews, version: v1}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec:
  host: reviews
  subsets: [{name: v1, labels: {version: v1}}, {name: v3, labels: {version: v3}}]
---
apiVersion: networking.istio.io/v1beta1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http:
  - route:
    - {destination: {host: reviews, subset: v1}, weight: 70}
    - {destination: {host: reviews, subset: v3}, weight: 30}
---
apiVersion: networking.istio.io/v1alpha3
kind: Gateway
metadata: {name: web}
spec:
  selector: {istio: ingressgateway}
  servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: api}
spec:
  hosts: [api.example.com]
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: DNS
";
