//! AuthorizationPolicies at a gateway: by path and by the client's address, and by the name in the
//! client's certificate.

use lateen_testkit::envoy::Plane;
use lateen_testkit::http::Call;
use lateen_testkit::{eventually, settles};

use crate::requests::gateway_with;
use crate::secure_gateway::{Secure, block, secret};

async fn a_gateway_has_policies_of_its_own(plane: Plane) {
    let test = "a_gateway_has_policies_of_its_own";
    let hosts = [("open.test", "  - route: [{destination: {host: reviews}}]\n")];
    let Some((mesh, gateway, _reviews)) = gateway_with(plane, test, &hosts).await else {
        return;
    };
    let expect = async |path: &str, client: &str, status: u16| {
        settles(&format!("{status} for {path} of {client}"), async || {
            let call = Call::get("open.test", path).header("x-forwarded-for", client);
            match gateway.send(&call).await.status {
                found if found == status => Ok(()),
                other => Err(other.to_string()),
            }
        })
        .await;
    };
    expect("/", "203.0.113.1", 200).await;
    mesh.apply(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {name: edge, namespace: istio-system}\n\
         spec: {selector: {matchLabels: {istio: ingressgateway}}, action: DENY, \
         rules: [{to: [{operation: {paths: ['/admin*']}}]}]}\n",
    )
    .await;
    expect("/admin/x", "203.0.113.1", 403).await;
    expect("/", "203.0.113.1", 200).await;
    // The client behind a trusted proxy is the one that the proxy names (fact 54).
    mesh.apply(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\n\
         data: {mesh: 'defaultConfig: {gatewayTopology: {numTrustedProxies: 1}}'}\n",
    )
    .await;
    mesh.apply(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {name: edge, namespace: istio-system}\n\
         spec: {selector: {matchLabels: {istio: ingressgateway}}, \
         rules: [{from: [{source: {remoteIpBlocks: [203.0.113.0/24], notIpBlocks: [203.0.113.0/24]}}]}]}\n",
    )
    .await;
    expect("/", "198.51.100.1", 403).await;
    expect("/admin/x", "203.0.113.1", 200).await;
    expect("/", "203.0.113.1, 198.51.100.1", 403).await;
}

/// A gateway is where a test can bring a certificate of its own.
async fn callers_pass_by_the_name_in_their_certificate(plane: Plane) {
    let test = "callers_pass_by_the_name_in_their_certificate";
    let Some(secure) = Secure::start(plane, test).await else {
        return;
    };
    let server = secure.authority.issue("web", &["secure.test"]);
    let clients = format!(
        "stringData:\n  ca.crt: |\n    {}\n",
        block(&secure.authority.pem)
    );
    let web = secret("web", "istio-system", &server).replace("stringData:\n", &clients);
    secure.mesh.apply(&web).await;
    let routes = crate::gateway::rule(
        "secure.test",
        "  - route: [{destination: {host: reviews}}]\n",
    );
    let config = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\n\
         data: {mesh: '{trustDomain: mesh.test, trustDomainAliases: [old.test]}'}\n---\n";
    secure
        .mesh
        .apply(&format!(
            "{config}{routes}apiVersion: networking.istio.io/v1\nkind: Gateway\n\
             metadata: {{name: web, namespace: default}}\nspec:\n  selector: {{istio: ingressgateway}}\n  \
             servers:\n  - port: {{number: 443, name: https, protocol: HTTPS}}\n    hosts: [secure.test]\n    \
             tls: {{mode: MUTUAL, credentialName: web}}\n"
        ))
        .await;
    let file = |name: &str, text: &str| {
        let path = secure.mesh.directory().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let client = |name: &str, id: &str| {
        let pair = secure.authority.issue(name, &[id]);
        let certificate = file(&format!("{name}.pem"), &pair.chain);
        (certificate, file(&format!("{name}.key"), &pair.key))
    };
    let jane = client("jane", "spiffe://mesh.test/ns/shop/sa/jane");
    let old = client("old", "spiffe://old.test/ns/shop/sa/jane");
    let joe = client("joe", "spiffe://mesh.test/ns/web/sa/joe");
    let foreign = client("foreign", "spiffe://foreign.test/ns/shop/sa/jane");
    let near = client("near", "spiffe://mesh.test/ns/shop/sa/janet");
    for (source, passing) in [
        (
            "principals: [mesh.test/ns/shop/sa/jane]",
            [true, true, false, false, false],
        ),
        (
            "principals: [cluster.local/ns/shop/sa/jane]",
            [true, true, false, false, false],
        ),
        (
            "principals: ['*/ns/shop/sa/jane']",
            [true, true, false, true, false],
        ),
        (
            "principals: ['mesh.test/ns/shop/*']",
            [true, false, false, false, true],
        ),
        ("principals: ['*']", [true; 5]),
        (
            "notPrincipals: [mesh.test/ns/shop/sa/jane]",
            [false, false, true, true, true],
        ),
        ("namespaces: [shop]", [true, true, false, true, true]),
        ("namespaces: ['w*']", [false, false, true, false, false]),
        ("notNamespaces: [web]", [true, true, false, true, true]),
        (
            "serviceAccounts: [shop/jane]",
            [true, true, false, true, false],
        ),
        (
            "notServiceAccounts: [shop/jane]",
            [false, false, true, false, true],
        ),
        ("trustDomains: [mesh.test]", [true, true, true, false, true]),
        (
            "trustDomains: ['foreign*']",
            [false, false, false, true, false],
        ),
        (
            "notTrustDomains: [mesh.test]",
            [false, false, false, true, false],
        ),
    ] {
        secure
            .mesh
            .apply(&format!(
                "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
                 metadata: {{name: edge, namespace: istio-system}}\n\
                 spec: {{selector: {{matchLabels: {{istio: ingressgateway}}}}, \
                 rules: [{{from: [{{source: {{{source}}}}}]}}]}}\n"
            ))
            .await;
        for ((certificate, key), passes) in [&jane, &old, &joe, &foreign, &near].iter().zip(passing)
        {
            let more = ["--cert", certificate, "--key", key];
            let expected = match passes {
                true => " 200 2",
                false => " 403 2",
            };
            eventually(
                &format!("{certificate} for {source}:{expected}"),
                async || {
                    let said = secure
                        .curl_path(secure.https, "secure.test", "/", &more)
                        .await;
                    match said.text.ends_with(expected) {
                        true => Ok(()),
                        false => Err(format!("{said:?}")),
                    }
                },
            )
            .await;
        }
    }
}

on_both!(
    a_gateway_has_policies_of_its_own,
    callers_pass_by_the_name_in_their_certificate,
);
