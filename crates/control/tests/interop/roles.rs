//! Roles say which gateways of a namespace have its Secrets.

use std::net::SocketAddr;
use std::process::Command;

use lateen_agent::Agent;
use lateen_testkit::certificates::{Authority, file, run};
use lateen_testkit::envoy::{Bootstrap, Envoy, Plane};
use lateen_testkit::{eventually, ports, settles, tools};
use serde_json::json;

use crate::gateway::rule;
use crate::member::{Secured, Who, arm};
use crate::mesh::{Mesh, Reviews, loopback};
use crate::secure_gateway::secret;

/// A gateway of the namespace `edge` with an identity.
struct Gateway {
    /// Behind port 443 of its Service.
    https: SocketAddr,
    _envoy: Envoy,
    _agent: Option<Agent>,
}

/// Its Gateway, Service and WorkloadEntry have the name of its service account, and it serves
/// `web.test` with the Secret `web` of its namespace.
async fn gateway(mesh: &Secured, plane: Plane, test: &str, account: &str) -> Option<Gateway> {
    let binary = plane.binary(test)?;
    let https = ports::reserve();
    mesh.apply(&format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {account}, namespace: edge}}\n\
         spec: {{selector: {{app: {account}}}, ports: [{{name: https, port: 443, targetPort: {https}}}]}}\n\
         ---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n\
         metadata: {{name: {account}-v1, namespace: edge}}\n\
         spec: {{address: 127.0.0.1, serviceAccount: {account}, ports: {{https: {https}}}, \
         labels: {{app: {account}}}}}\n\
         ---\napiVersion: networking.istio.io/v1\nkind: Gateway\n\
         metadata: {{name: {account}, namespace: edge}}\n\
         spec:\n  selector: {{app: {account}}}\n  servers:\n  \
         - port: {{number: 443, name: https, protocol: HTTPS}}\n    hosts: ['*/web.test']\n    \
         tls: {{mode: SIMPLE, credentialName: web}}\n"
    ))
    .await;
    let bootstrap = Bootstrap {
        kind: "router",
        name: format!("{account}-v1"),
        namespace: "edge".into(),
        metadata: json!({
            "LABELS": {"app": account}, "NAMESPACE": "edge", "SERVICE_ACCOUNT": account,
            "LATEEN_BIND": "127.0.0.1",
        }),
        xds: mesh.xds,
        admin: ports::reserve(),
        delta: true,
    };
    let who = Who {
        namespace: "edge",
        ..Who::named(account)
    };
    let socket = mesh.directory().join(format!("{account}.sds/socket"));
    let bootstrap = bootstrap.secured(&socket, mesh.secure);
    let mut command = Command::new(&binary);
    let agent = arm(plane, mesh.identity(&who).await, &socket, &mut command);
    let envoy = Envoy::start_by(command, &binary, &bootstrap, mesh.directory()).await;
    envoy.ready().await;
    Some(Gateway {
        https: loopback(https),
        _envoy: envoy,
        _agent: agent,
    })
}

/// A Role, and who has it.
fn role(content: &str) -> String {
    format!(
        "apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\n\
         metadata: {{name: certificates, namespace: edge}}\n\
         rules: [{{apiGroups: [''], resources: [secrets], {content}}}]\n---\n"
    )
}

fn binding(account: &str) -> String {
    format!(
        "apiVersion: rbac.authorization.k8s.io/v1\nkind: RoleBinding\n\
         metadata: {{name: certificates, namespace: edge}}\n\
         roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: Role, name: certificates}}\n\
         subjects: [{{kind: ServiceAccount, name: {account}}}]\n---\n"
    )
}

async fn a_gateway_has_the_secrets_that_roles_give_its_service_account(plane: Plane) {
    let test = "a_gateway_has_the_secrets_that_roles_give_its_service_account";
    let mesh = Secured::start().await;
    let Some(first) = gateway(&mesh, plane, test, "first").await else {
        return;
    };
    let Some(second) = gateway(&mesh, plane, test, "second").await else {
        return;
    };
    let _reviews = Reviews::start(&mesh).await;
    let authority = Authority::new("web");
    let pair = authority.issue("web.test", &["web.test"]);
    let roots = file(mesh.directory(), "web.pem", &authority.pem);
    let roots = roots.to_str().unwrap();
    let routes = rule("web.test", "  - route: [{destination: {host: reviews}}]\n");
    let routes = routes.replace("gateways: [web]", "gateways: [edge/first, edge/second]");
    mesh.apply(&(secret("web", "edge", &pair) + &routes)).await;
    let serves = async |gateway: &Gateway, serves: bool, when: &str| {
        let port = gateway.https.port();
        let (url, resolve) = (
            format!("https://web.test:{port}/"),
            format!("web.test:{port}:127.0.0.1"),
        );
        settles(&format!("{serves} {when}"), async || {
            let more = ["--cacert", roots, "-w", " %{http_code}", &url];
            let all = ["-sS", "--max-time", "10", "--resolve", &resolve];
            let said = run("curl", &[&all[..], &more[..]].concat()).await;
            match said.success && said.text.ends_with(" 200") {
                found if found == serves => Ok(()),
                _ => Err(format!("{said:?}")),
            }
        })
        .await;
    };
    let both = async |expected: [bool; 2], when: &str| {
        serves(&first, expected[0], when).await;
        serves(&second, expected[1], when).await;
    };
    both([true, true], "without roles").await;
    let all = role("verbs: [get, watch, list]");
    mesh.apply(&(all.clone() + &binding("first"))).await;
    both([true, false], "for the first").await;
    mesh.apply(&binding("second")).await;
    both([false, true], "for the second").await;
    // What is bound to an account that is not here is nobody's.
    mesh.apply(&binding("third")).await;
    both([false, false], "for a third").await;
    let group = binding("x").replace(
        "{kind: ServiceAccount, name: x}",
        "{kind: Group, name: 'system:serviceaccounts:edge'}",
    );
    mesh.apply(&group).await;
    both([true, true], "for the group").await;
    mesh.apply(&role("verbs: [list], resourceNames: [other]"))
        .await;
    both([false, false], "for another Secret").await;
    mesh.apply(&role("verbs: [list], resourceNames: [web]"))
        .await;
    both([true, true], "for this Secret").await;
    // A binding whose role is not there gives nothing.
    mesh.delete(&all).await;
    both([false, false], "without the role").await;
    mesh.delete(&group).await;
    both([true, true], "without roles again").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_applies_roles_and_is_warned_of_a_binding_to_none() {
    let test = "kubectl_applies_roles_and_is_warned_of_a_binding_to_none";
    if tools::program("kubectl", &["version", "--client"]).is_none() {
        return tools::skip(test, "kubectl");
    }
    let mesh = Mesh::start().await;
    let kubectl = async |arguments: &[&str]| mesh.kubectl(arguments).await;
    let apply = async |name: &str, text: &str| {
        let path = file(mesh.directory(), name, text);
        kubectl(&["apply", "-f", path.to_str().unwrap()]).await
    };
    let said = apply("binding.yaml", &binding("gateway")).await;
    let missing = "Referenced Role not found: \"certificates\"";
    assert!(said.success && said.text.contains(missing), "{said:?}");
    let cluster = "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\n\
                   metadata: {name: 'lateen:secrets'}\n\
                   rules: [{apiGroups: [''], resources: [secrets], verbs: [list]}]\n---\n\
                   apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRoleBinding\n\
                   metadata: {name: 'lateen:secrets'}\n\
                   roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: 'lateen:secrets'}\n\
                   subjects: [{kind: ServiceAccount, name: gateway, namespace: edge}]\n";
    let said = apply("roles.yaml", &(role("verbs: [list]") + cluster)).await;
    assert!(said.success && !said.text.contains("Warning"), "{said:?}");
    eventually("the finding is gone", async || {
        let found = mesh.page("/debug/findings").await.to_string();
        match found.contains(missing) {
            false => Ok(()),
            true => Err(found),
        }
    })
    .await;
    let listed = kubectl(&["get", "rolebindings", "-n", "edge", "-o", "wide"]).await;
    let cells = ["certificates", "Role/certificates", "gateway"];
    let shows = |cell: &&str| listed.text.contains(cell);
    assert!(cells.iter().all(shows), "{listed:?}");
    let listed = kubectl(&["get", "clusterrolebindings", "-o", "wide"]).await;
    let cells = ["ClusterRole/lateen:secrets", "edge/gateway"];
    let shows = |cell: &&str| listed.text.contains(cell);
    assert!(cells.iter().all(shows), "{listed:?}");
    let wrong = role("verb: [list]");
    let refused = apply("wrong.yaml", &wrong).await;
    let why = "unknown field \"verb\"";
    assert!(
        !refused.success && refused.text.contains(why),
        "{refused:?}"
    );
    let deleted = kubectl(&["delete", "clusterrole", "lateen:secrets"]).await;
    assert!(deleted.success, "{deleted:?}");
}

on_both!(a_gateway_has_the_secrets_that_roles_give_its_service_account);
