//! Services whose endpoints are written down: in EndpointSlices, and in Endpoints.

use lateen_testkit::certificates::file;
use lateen_testkit::echo::Echo;
use lateen_testkit::envoy::Plane;
use lateen_testkit::{settles, tools};

use crate::gateway::rule;
use crate::mesh::{Gateway, Mesh};

/// The Service `outside` without a selector, port 80 `web`.
const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: outside, namespace: default}\n\
                       spec: {ports: [{name: web, appProtocol: http, port: 80}]}\n---\n";

fn slice(name: &str, more: &str, endpoints: &str, port: &str) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}\n  \
         namespace: default\n  labels: {{kubernetes.io/service-name: outside{more}}}\n\
         addressType: IPv4\nendpoints: [{endpoints}]\nports: [{port}]\n---\n"
    )
}

fn web(echo: &Echo) -> String {
    format!("{{name: web, port: {}}}", echo.port())
}

const HERE: &str = "{addresses: [127.0.0.1]}";

/// Who answers at the gateway: each of `expected` does, and nobody else. `503` is an answer, too.
async fn answers(gateway: &Gateway, expected: &[&str], when: &str) {
    settles(&format!("{expected:?} {when}"), async || {
        let mut found = std::collections::BTreeSet::new();
        // 2 ^ -40 that one of two does not come.
        for _ in 0..40 {
            let answer = gateway.get("outside.test", "/").await;
            found.insert(match answer.status {
                200 => answer.header("x-echo"),
                other => other.to_string(),
            });
        }
        match found
            .iter()
            .map(String::as_str)
            .eq(expected.iter().copied())
        {
            true => Ok(()),
            false => Err(format!("{found:?}")),
        }
    })
    .await;
}

async fn a_service_without_a_selector_leads_to_its_endpoint_slices(plane: Plane) {
    let test = "a_service_without_a_selector_leads_to_its_endpoint_slices";
    let mesh = Mesh::start().await;
    let Some(gateway) = Gateway::start(plane, &mesh, test, true).await else {
        return;
    };
    let (a, b) = (Echo::start("a").await, Echo::start("b").await);
    let routes = rule(
        "outside.test",
        "  - route: [{destination: {host: outside}}]\n",
    );
    mesh.apply(&(SERVICE.to_owned() + &routes)).await;
    answers(&gateway, &["503"], "without endpoints").await;
    let one = slice("one", "", HERE, &web(&a));
    let two = slice("two", "", HERE, &web(&b));
    mesh.apply(&one).await;
    answers(&gateway, &["a"], "with one slice").await;
    mesh.apply(&two).await;
    answers(&gateway, &["a", "b"], "with two slices").await;
    let not_ready = "{addresses: [127.0.0.1], conditions: {ready: false, serving: true}}";
    mesh.apply(&slice("one", "", not_ready, &web(&a))).await;
    answers(&gateway, &["b"], "with one that is not ready").await;
    let unsaid = "{addresses: [127.0.0.1], conditions: {serving: true}, zone: z}";
    mesh.apply(&slice("one", "", unsaid, &web(&a))).await;
    answers(&gateway, &["a", "b"], "where readiness is not said").await;
    // Ports are found by the name that the Service's port has.
    let other = format!("{{name: other, port: {}}}", a.port());
    mesh.apply(&slice("one", "", HERE, &other)).await;
    answers(&gateway, &["b"], "with a port of another name").await;
    let udp = format!("{{name: web, protocol: UDP, port: {}}}", a.port());
    mesh.apply(&slice("one", "", HERE, &udp)).await;
    answers(&gateway, &["b"], "with a port of another protocol").await;
    mesh.apply(&one).await;
    mesh.delete(&two).await;
    answers(&gateway, &["a"], "without the other slice").await;

    // Endpoints have the name of their Service; what two objects say counts once.
    let endpoints = |ready: &Echo, not: &Echo| {
        format!(
            "apiVersion: v1\nkind: Endpoints\nmetadata: {{name: outside, namespace: default}}\n\
             subsets:\n- addresses: [{{ip: 127.0.0.1}}]\n  ports: [{{name: web, port: {}}}]\n\
             - notReadyAddresses: [{{ip: 127.0.0.1}}]\n  ports: [{{name: web, port: {}}}]\n---\n",
            ready.port(),
            not.port()
        )
    };
    mesh.apply(&endpoints(&b, &a)).await;
    answers(&gateway, &["a", "b"], "with Endpoints and a slice").await;
    mesh.delete(&one).await;
    answers(&gateway, &["b"], "with Endpoints").await;

    // Of a Service with a selector, what Kubernetes makes of that is known from the pods themselves.
    let selecting = SERVICE.replace("{ports:", "{selector: {app: outside}, ports:");
    mesh.apply(&selecting).await;
    answers(&gateway, &["503"], "with a selector").await;
    let made = ", endpointslice.kubernetes.io/managed-by: endpointslice-controller.k8s.io";
    mesh.apply(&slice("made", made, HERE, &web(&a))).await;
    mesh.apply(&slice("own", "", HERE, &web(&b))).await;
    answers(&gateway, &["b"], "with slices beside a selector").await;
    mesh.apply(SERVICE).await;
    answers(&gateway, &["a", "b"], "with a slice that somebody made").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_applies_and_shows_slices_endpoints_and_aliases() {
    let test = "kubectl_applies_and_shows_slices_endpoints_and_aliases";
    if tools::program("kubectl", &["version", "--client"]).is_none() {
        return tools::skip(test, "kubectl");
    }
    let mesh = Mesh::start().await;
    let kubectl = async |arguments: &[&str]| mesh.kubectl(arguments).await;
    let alias = "apiVersion: v1\nkind: Service\nmetadata: {name: other, namespace: default}\n\
                 spec: {type: ExternalName, externalName: outside.default.svc.cluster.local}\n---\n";
    let endpoints = "apiVersion: v1\nkind: Endpoints\n\
                     metadata: {name: outside, namespace: default}\nsubsets:\n\
                     - addresses: [{ip: 192.0.2.1}, {ip: 192.0.2.2}]\n  \
                     ports: [{name: web, port: 8080}]\n---\n";
    let slice = slice(
        "one",
        "",
        "{addresses: [192.0.2.3]}",
        "{name: web, port: 8081}",
    );
    let all = [SERVICE, alias, endpoints, &slice].concat();
    let path = file(mesh.directory(), "all.yaml", &all);
    let path = path.to_str().unwrap();
    // The second time nothing changes.
    for expected in ["created", "unchanged"] {
        let said = kubectl(&["apply", "-f", path]).await;
        let times = said.text.matches(expected).count();
        assert!(said.success && times == 4, "{said:?}");
        assert!(!said.text.contains("no effect"), "{said:?}");
    }
    for (kind, cells) in [
        (
            "services",
            &["ExternalName", "outside.default.svc.cluster.local"][..],
        ),
        ("endpoints", &["192.0.2.1:8080,192.0.2.2:8080"]),
        ("endpointslices", &["IPv4", "8081", "192.0.2.3"]),
    ] {
        let said = kubectl(&["get", kind]).await;
        assert!(
            cells.iter().all(|cell| said.text.contains(cell)),
            "{said:?}"
        );
    }
    let wrong = all.replace("addressType: IPv4", "addressType: IPv6");
    let path = file(mesh.directory(), "wrong.yaml", &wrong);
    let refused = kubectl(&["apply", "-f", path.to_str().unwrap()]).await;
    let why = "is not an IPv6 address";
    assert!(
        !refused.success && refused.text.contains(why),
        "{refused:?}"
    );
    let deleted = kubectl(&["delete", "endpointslice/one", "endpoints/outside"]).await;
    assert!(deleted.success, "{deleted:?}");
}

on_both!(a_service_without_a_selector_leads_to_its_endpoint_slices);
