//! Findings between objects, as `istioctl analyze` words them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests stop at what is not as expected"
)]

use std::sync::Arc;

use expect_test::{Expect, expect};
use lateen_model::{MeshSettings, MeshSnapshot};

const SERVICES: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: default}
spec: {selector: {app: reviews}, ports: [{name: http, port: 9080}]}
---
apiVersion: v1
kind: Service
metadata: {name: istio-ingressgateway, namespace: istio-system}
spec: {selector: {istio: ingressgateway}, ports: [{name: http2, port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: istio-ingressgateway, namespace: istio-system}
spec: {address: 127.0.0.1, labels: {istio: ingressgateway}}
---
"#;

fn check(documents: &str, expect: Expect) {
    check_with(MeshSettings::default(), documents, expect);
}

fn check_with(settings: MeshSettings, documents: &str, expect: Expect) {
    let yaml = format!("{SERVICES}{documents}");
    let parsed = lateen_api::parse("test.yaml", &yaml, lateen_api::Mode::Strict);
    assert!(!parsed.has_errors(), "{:?}", parsed.diagnostics);
    let objects: Vec<_> = parsed.objects.into_iter().map(|p| p.object).collect();
    let snapshot = MeshSnapshot::build(objects.iter(), 1, Arc::new(settings), None);
    let found = lateen_analysis::findings(&snapshot);
    for finding in &found {
        // Who asks for one object hears the same about it.
        let of_one = lateen_analysis::findings_of(&snapshot, &finding.subject);
        let of_all = found.iter().filter(|one| one.subject == finding.subject);
        assert_eq!(of_one, of_all.cloned().collect::<Vec<_>>());
    }
    let lines: String = found
        .iter()
        .map(|finding| format!("{}: {finding}\n", finding.path))
        .collect();
    expect.assert_eq(&lines);
}

fn virtual_service(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}, namespace: default}}\nspec: {{{spec}}}\n---\n"
    )
}

#[test]
fn names_that_lead_nowhere_are_found_with_their_paths() {
    check(
        &virtual_service(
            "canary",
            "hosts: [reviews], http: [{route: [{destination: {host: reviews, subset: v9}}]}, \
             {route: [{destination: {host: nosuch}}]}, {route: [{destination: {host: reviews, port: {number: 1}}}]}]",
        ),
        expect![[r#"
            spec.http[0].route[0].destination.subset: Error [IST0101] (VirtualService default/canary) Referenced host+subset in destinationrule not found: "reviews+v9"
            spec.http[1].route[0].destination.host: Error [IST0101] (VirtualService default/canary) Referenced host not found: "nosuch"
            spec.http[2].route[0].destination.port.number: Error [IST0101] (VirtualService default/canary) Referenced host:port not found: "reviews:1"
        "#]],
    );
}

#[test]
fn a_gateway_of_another_namespace_is_suggested_by_its_full_name() {
    let gateway = "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: public, namespace: istio-system}\n\
                   spec: {selector: {istio: ingressgateway}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: [\"*\"]}]}\n---\n";
    check(
        &(gateway.to_string()
            + &virtual_service(
                "api",
                "hosts: [a.b], gateways: [public], http: [{route: [{destination: {host: reviews}}]}]",
            )),
        expect![[r#"
            spec.gateways[0]: Error [IST0101] (VirtualService default/api) Referenced gateway not found: "default/public"; did you mean "istio-system/public"?
        "#]],
    );
}

#[test]
fn two_rules_for_one_mesh_host_are_told_which_one_wins() {
    let spec = "hosts: [reviews], http: [{route: [{destination: {host: reviews}}]}]";
    check(
        &(virtual_service("a", spec) + &virtual_service("b", spec)),
        expect![[r#"
            spec.hosts: Error [IST0109] (VirtualService default/a) The VirtualServices default/a,default/b associated with mesh gateway define the same host reviews.default.svc.cluster.local which can lead to undefined behavior. This can be fixed by merging the conflicting VirtualServices into a single resource. default/a wins, being the first by name of those created in the same second.
            spec.hosts: Error [IST0109] (VirtualService default/b) The VirtualServices default/a,default/b associated with mesh gateway define the same host reviews.default.svc.cluster.local which can lead to undefined behavior. This can be fixed by merging the conflicting VirtualServices into a single resource. default/a wins, being the first by name of those created in the same second.
        "#]],
    );
}

#[test]
fn gateways_without_proxies_and_ports_without_services_are_found() {
    let gateway = |name: &str, selector: &str, port: u32| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{name: {name}, namespace: default}}\n\
             spec: {{selector: {{istio: {selector}}}, servers: [{{port: {{number: {port}, name: http, protocol: HTTP}}, hosts: [\"*\"]}}]}}\n---\n"
        )
    };
    check(
        &(gateway("a", "nosuch", 80)
            + &gateway("b", "ingressgateway", 8080)
            + &gateway("c", "ingressgateway", 80)),
        expect![[r#"
            spec.selector: Error [IST0101] (Gateway default/a) Referenced selector not found: "istio=nosuch"
            spec.servers[0].port.number: Warning [IST0162] (Gateway default/b) The gateway is listening on a target port (port 8080) that is not defined in the Service associated with its workload instances (Pod selector istio=ingressgateway). If you need to access the gateway port through the gateway Service, it will not be available.
        "#]],
    );
}

#[test]
fn destination_rules_for_nobody_and_subsets_without_workloads_are_found() {
    check(
        r#"
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: reviews-v1, namespace: default}
spec: {address: 127.0.0.1, labels: {app: reviews, version: v1}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: default}
spec:
  host: reviews
  subsets: [{name: v1, labels: {version: v1}}, {name: v4, labels: {version: v4}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: typo, namespace: default}
spec: {host: reveiws}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: all, namespace: default}
spec:
  host: "*.default.svc.cluster.local"
  trafficPolicy:
    tls: {mode: SIMPLE}
    portLevelSettings: [{port: {number: 9080}, tls: {mode: MUTUAL, clientCertificate: /c, privateKey: /k}}]
"#,
        expect![[r#"
            spec.trafficPolicy.portLevelSettings[0].tls: Warning [IST0129] (DestinationRule default/all) DestinationRule default/all in namespace default has TLS mode set to MUTUAL but no caCertificates are set to validate server identity for host: *.default.svc.cluster.local at port 9080
            spec.trafficPolicy.tls: Warning [IST0128] (DestinationRule default/all) DestinationRule default/all in namespace default has TLS mode set to SIMPLE but no caCertificates are set to validate server identity for host: *.default.svc.cluster.local
            spec.subsets[1].labels: Error [IST0173] (DestinationRule default/reviews) The Subset v4 defined in the DestinationRule does not select any pods. Which may lead to 503 UH (NoHealthyUpstream).
            spec.host: Warning [IST0174] (DestinationRule default/typo) The host reveiws.default.svc.cluster.local defined in the DestinationRule does not match any services in the mesh.
        "#]],
    );
}

#[test]
fn ports_without_a_protocol_and_external_tcp_without_addresses_are_found() {
    check(
        r#"
apiVersion: v1
kind: Service
metadata: {name: legacy, namespace: default}
spec: {ports: [{name: web, port: 8080}, {name: tcp-db, port: 5432}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: anywhere, namespace: default}
spec: {hosts: [db.example.com], resolution: NONE, ports: [{number: 5432, name: tcp, protocol: TCP}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: allocated, namespace: default}
spec: {hosts: [db2.example.com], resolution: DNS, ports: [{number: 5432, name: tcp, protocol: TCP}]}
"#,
        expect![[r#"
            spec.ports[0].name: Info [IST0118] (Service default/legacy) Port name web (port: 8080, targetPort: 8080) doesn't follow the naming convention of Istio port.
            spec.ports[0].protocol: Warning [IST0134] (ServiceEntry default/anywhere) ServiceEntry addresses are required for this protocol.
        "#]],
    );
}

#[test]
fn mirrors_and_hosts_that_the_gateway_does_not_serve_are_found() {
    let gateway = r#"
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: shop, namespace: default}
spec:
  selector: {istio: ingressgateway}
  servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ["./*.shop.example.com"]}]
---
"#;
    let wrong = virtual_service(
        "wrong",
        "hosts: [shop.example.com], gateways: [shop], http: [{route: [{destination: {host: reviews}}], \
         mirrors: [{destination: {host: reviews, subset: shadow}}]}]",
    );
    let right = virtual_service(
        "right",
        "hosts: [a.shop.example.com], gateways: [shop], http: [{route: [{destination: {host: reviews}}]}]",
    );
    check(
        &format!("{gateway}{wrong}{right}"),
        expect![[r#"
            spec.gateways[0]: Warning [IST0132] (VirtualService default/wrong) one or more host [shop.example.com] defined in VirtualService default/wrong not found in Gateway default/shop.
            spec.http[0].mirrors[0].destination.subset: Error [IST0101] (VirtualService default/wrong) Referenced host+subset in destinationrule not found: "reviews+shadow"
        "#]],
    );
}

#[test]
fn an_authorizer_over_http_is_not_asked_about_connections() {
    use lateen_api::mesh_config::{ExtAuthzGrpcProvider, ExtAuthzHttpProvider, ExtensionProvider};
    let settings = || MeshSettings {
        extension_providers: vec![
            ExtensionProvider {
                name: "http".to_owned(),
                envoy_ext_authz_http: Some(ExtAuthzHttpProvider::default()),
                ..Default::default()
            },
            ExtensionProvider {
                name: "grpc".to_owned(),
                envoy_ext_authz_grpc: Some(ExtAuthzGrpcProvider::default()),
                ..Default::default()
            },
        ],
        ..MeshSettings::default()
    };
    let documents = |port: &str, provider: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: vault, namespace: default}}\n\
             spec: {{selector: {{app: vault}}, ports: [{{name: http, port: 80}}, {{name: {port}, port: 81}}]}}\n---\n\
             apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: vault, namespace: default}}\n\
             spec: {{address: 127.0.0.1, labels: {{app: vault}}}}\n---\n\
             apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: ask, namespace: default}}\n\
             spec: {{selector: {{matchLabels: {{app: vault}}}}, action: CUSTOM, provider: {{name: {provider}}}, rules: [{{}}]}}\n---\n"
        )
    };
    for port in ["tcp-raw", "mysql-own"] {
        check_with(
            settings(),
            &documents(port, "http"),
            expect![[r#"
                spec.provider.name: Warning [IST0133] (AuthorizationPolicy default/ask) Schema validation warning: the provider is asked over HTTP, so nobody is asked about connections: port 81 of vault.default.svc.cluster.local is not declared to be HTTP, and what is not HTTP passes there; declare its protocol, use envoyExtAuthzGrpc, or deny the port
            "#]],
        );
    }
    check_with(settings(), &documents("tcp-raw", "grpc"), expect![""]);
    check_with(settings(), &documents("http-more", "http"), expect![""]);
}

#[test]
fn policies_attached_to_nothing_are_told() {
    let policy = |kind: &str, name: &str, rest: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: default}}\n\
             spec: {{{rest}: [{{group: gateway.networking.k8s.io, kind: Gateway, name: {name}}}]}}\n---\n"
        )
    };
    let edge = "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: edge, namespace: default}\n\
                spec: {address: 127.0.0.1, labels: {gateway.networking.k8s.io/gateway-name: edge}}\n---\n";
    let documents: String = ["AuthorizationPolicy", "RequestAuthentication"]
        .iter()
        .flat_map(|kind| ["edge", "gone"].map(|name| policy(kind, name, "targetRefs")))
        .collect();
    check(
        &format!("{edge}{documents}"),
        expect![[r#"
            spec.targetRefs[0].name: Error [IST0101] (AuthorizationPolicy default/gone) Referenced gateway (a workload of namespace default with the label gateway.networking.k8s.io/gateway-name; without one the policy guards nothing) not found: "gone"
            spec.targetRefs[0].name: Error [IST0101] (RequestAuthentication default/gone) Referenced gateway (a workload of namespace default with the label gateway.networking.k8s.io/gateway-name; without one the policy guards nothing) not found: "gone"
        "#]],
    );
}

#[test]
fn several_sidecars_for_one_workload_are_told() {
    let sidecar = |name: &str, selector: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {{name: {name}, namespace: istio-system}}\n\
             spec: {{{selector}egress: [{{hosts: [./*]}}]}}\n---\n"
        )
    };
    let picked = "workloadSelector: {labels: {istio: ingressgateway}}, ";
    check(
        &(sidecar("one", "") + &sidecar("picks", picked)),
        expect![""],
    );
    check(
        &(sidecar("one", "")
            + &sidecar("two", "")
            + &sidecar("picks", picked)
            + &sidecar("too", picked)),
        expect![[r#"
            spec.workloadSelector: Error [IST0111] (Sidecar istio-system/one) The Sidecars [one two] in namespace "istio-system" have no workload selector, which can lead to undefined behavior.
            spec.workloadSelector: Error [IST0110] (Sidecar istio-system/picks) The Sidecars [picks too] in namespace "istio-system" select the same workload pod "istio-ingressgateway", which can lead to undefined behavior.
            spec.workloadSelector: Error [IST0110] (Sidecar istio-system/too) The Sidecars [picks too] in namespace "istio-system" select the same workload pod "istio-ingressgateway", which can lead to undefined behavior.
            spec.workloadSelector: Error [IST0111] (Sidecar istio-system/two) The Sidecars [one two] in namespace "istio-system" have no workload selector, which can lead to undefined behavior.
        "#]],
    );
}

#[test]
fn servers_that_cannot_share_a_port_and_credentials_that_are_not_there_are_found() {
    let gateway = |name: &str, server: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{name: {name}, namespace: default}}\n\
             spec: {{selector: {{istio: ingressgateway}}, servers: [{{{server}}}]}}\n---\n"
        )
    };
    let https = |host: &str| {
        format!(
            "port: {{number: 80, name: a, protocol: HTTPS}}, hosts: [{host}], tls: {{mode: SIMPLE, credentialName: web}}"
        )
    };
    check(
        &[
            gateway("g1", &https("a.test")),
            gateway("g2", &https("a.test")),
            gateway(
                "g3",
                "port: {number: 80, name: a, protocol: HTTP}, hosts: [b.test]",
            ),
        ]
        .concat(),
        expect![[r#"
            spec.servers[0].tls.credentialName: Error [IST0101] (Gateway default/g1) Referenced credentialName not found: "web"; the gateway reads Secrets of its own namespace, istio-system. What it was given before keeps serving.
            spec.servers[0]: Error [IST0145] (Gateway default/g2) Conflict with gateways default/g1 (workload istio-system/istio-ingressgateway, port 80, hosts a.test): the hosts a.test are served already. servers[0] of default/g1 wins, being older or first; this server is left out.
            spec.servers[0].tls.credentialName: Error [IST0101] (Gateway default/g2) Referenced credentialName not found: "web"; the gateway reads Secrets of its own namespace, istio-system. What it was given before keeps serving.
            spec.servers[0]: Error [IST0145] (Gateway default/g3) Conflict with gateways default/g1 (workload istio-system/istio-ingressgateway, port 80, hosts b.test): a port speaks either HTTP, or TCP, or TLS. servers[0] of default/g1 wins, being older or first; this server is left out.
        "#]],
    );
}

#[test]
fn tls_routes_that_no_server_looks_at_are_found() {
    let gateway = "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: web, namespace: default}\n\
         spec: {selector: {istio: ingressgateway}, servers: [{port: {number: 80, name: a, protocol: TLS}, hosts: [a.test], tls: {mode: PASSTHROUGH}}]}\n---\n";
    let route = |more: &str| {
        virtual_service(
            "web",
            &format!(
                "hosts: [a.test], gateways: [web], tls: [{{match: [{{sniHosts: [a.test]{more}}}], route: [{{destination: {{host: reviews}}}}]}}]"
            ),
        )
    };
    check(&(gateway.to_owned() + &route("")), expect![[""]]);
    check(
        &(gateway.to_owned() + &route(", port: 443")),
        expect![[r#"
        spec.tls[0].match[0]: Warning [IST0130] (VirtualService default/web) VirtualService rule tls[0] not used (no PASSTHROUGH server of its gateways has this port).
    "#]],
    );
    let simple = gateway.replace(
        "mode: PASSTHROUGH",
        "mode: SIMPLE, serverCertificate: /c, privateKey: /k",
    );
    check(
        &(simple + &route("")),
        expect![[r#"
        spec.tls[0].match[0]: Warning [IST0130] (VirtualService default/web) VirtualService rule tls[0] not used (only servers with tls.mode PASSTHROUGH look at tls routes, and its gateways have none).
    "#]],
    );
}

#[test]
fn tokens_that_nobody_checks_and_keys_that_cannot_be_had_are_found() {
    let gateway = "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: web, namespace: default}\n\
         spec: {selector: {istio: ingressgateway}, servers: [{port: {number: 80, name: a, protocol: HTTP}, hosts: [a.test]}]}\n---\n";
    let claims = virtual_service(
        "web",
        "hosts: [a.test], gateways: [web], http: [{match: [{headers: {'@request.auth.claims.group': {exact: a}}}], route: [{destination: {host: reviews}}]}]",
    );
    let tokens = |namespace: &str, selector: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{name: tokens, namespace: {namespace}}}\n\
             spec: {{selector: {{matchLabels: {selector}}}, jwtRules: [{{issuer: 'https://a.test'}}]}}\n---\n"
        )
    };
    let routed = gateway.to_owned() + &claims;
    check(
        &(routed.clone() + &tokens("default", "{istio: ingressgateway}")),
        expect![[r#"
            spec.selector: Warning [IST0127] (RequestAuthentication default/tokens) No matching workloads for this resource with the following labels: istio=ingressgateway
            spec.http[0].match[0].headers["@request.auth.claims.group"]: Error [IST0149] (VirtualService default/web) The virtual service uses the JWT claim based routing (key: @request.auth.claims.group) but found no request authentication for the gateway (default/web) pod (istio-ingressgateway). The request authentication must first be applied for the gateway pods to validate the JWT token and make the claims available for routing.
        "#]],
    );
    check(
        &(routed + &tokens("istio-system", "{istio: ingressgateway}")),
        expect![[""]],
    );
}

#[test]
fn clients_and_servers_that_do_not_agree_on_mutual_tls_are_found() {
    let entry = "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: reviews-v1, namespace: default}\n\
         spec: {address: 127.0.0.1, labels: {app: reviews}}\n---\n";
    let rule = |mode: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: reviews, namespace: default}}\n\
             spec: {{host: reviews, trafficPolicy: {{tls: {{mode: {mode}}}}}}}\n---\n"
        )
    };
    let peer = |mode: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: default, namespace: default}}\n\
             spec: {{mtls: {{mode: {mode}}}}}\n---\n"
        )
    };
    let documents = |tls: &str, mode: &str| format!("{entry}{}{}", rule(tls), peer(mode));
    check(&documents("DISABLE", "PERMISSIVE"), expect![[""]]);
    check(&documents("ISTIO_MUTUAL", "STRICT"), expect![[""]]);
    check(
        &documents("DISABLE", "STRICT"),
        expect![[r#"
            spec.trafficPolicy.tls: Error [IST0113] (DestinationRule default/reviews) A DestinationRule and Policy are in conflict with regards to mTLS for host reviews.default.svc.cluster.local. The DestinationRule "default/reviews" specifies that mTLS must be false but the PeerAuthentication of its workloads specifies STRICT.
        "#]],
    );
    check(
        &documents("ISTIO_MUTUAL", "DISABLE"),
        expect![[r#"
            spec.trafficPolicy.tls: Error [IST0113] (DestinationRule default/reviews) A DestinationRule and Policy are in conflict with regards to mTLS for host reviews.default.svc.cluster.local. The DestinationRule "default/reviews" specifies that mTLS must be true but the PeerAuthentication of its workloads specifies DISABLE.
        "#]],
    );
}
