//! What comes, changes and goes in the mesh.

use std::sync::LazyLock;

use lateen_api::Object;

use crate::support;

/// Kind, namespace, name, and what it says: one of these specs, or of these bodies for kinds without
/// one (or nothing, while it is not there).
pub type Form = (
    &'static str,
    &'static str,
    &'static str,
    &'static [&'static str],
);

const SERVICE: &str = "v1/Service";
const ENTRY: &str = "networking.istio.io/v1/ServiceEntry";
const WORKLOAD: &str = "networking.istio.io/v1/WorkloadEntry";
const RULE: &str = "networking.istio.io/v1/VirtualService";
const POLICY: &str = "networking.istio.io/v1/DestinationRule";
const GATEWAY: &str = "networking.istio.io/v1/Gateway";
const SIDECAR: &str = "networking.istio.io/v1/Sidecar";
const PEERS: &str = "security.istio.io/v1/PeerAuthentication";
const ACCESS: &str = "security.istio.io/v1/AuthorizationPolicy";
const TOKENS: &str = "security.istio.io/v1/RequestAuthentication";
const SECRET: &str = "v1/Secret";
const ROLE: &str = "rbac.authorization.k8s.io/v1/Role";
const ROLE_BINDING: &str = "rbac.authorization.k8s.io/v1/RoleBinding";
const CLUSTER_ROLE_BINDING: &str = "rbac.authorization.k8s.io/v1/ClusterRoleBinding";
const SLICE: &str = "discovery.k8s.io/v1/EndpointSlice";
const ENDPOINTS: &str = "v1/Endpoints";
const POD: &str = "v1/Pod";

/// What `KEYS` stands for.
const KEYS: &str = r#"{"keys":[{"kty":"EC","crv":"P-256","x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}]}"#;

/// Two certificates with their keys, as strings of YAML: what `CERT_A`, `KEY_A`, `CERT_B` and `KEY_B`
/// stand for.
static PAIRS: LazyLock<Vec<(String, String)>> = LazyLock::new(|| {
    let mut found = Vec::new();
    for letter in ["A", "B"] {
        let made = rcgen::generate_simple_self_signed(["late.test".to_owned()]).unwrap();
        for (name, pem) in [
            ("CERT", made.cert.pem()),
            ("KEY", made.signing_key.serialize_pem()),
        ] {
            found.push((format!("{name}_{letter}"), format!("{pem:?}")));
        }
    }
    found
});

pub const OBJECTS: &[Form] = &[
    (
        SERVICE,
        "default",
        "late",
        &[
            "{clusterIP: 10.9.0.1, ports: [{name: http, port: 80}]}",
            "{clusterIP: 10.9.0.1, ports: [{name: http, port: 80}, {name: http-b, port: 9080}]}",
            "{clusterIP: 10.9.0.2, ports: [{name: tcp, port: 80}]}",
        ],
    ),
    (
        SERVICE,
        "default",
        "same-address",
        &[
            "{clusterIP: 10.9.0.1, ports: [{name: http, port: 80}, {name: tcp, port: 3306}]}",
            "{clusterIP: 10.9.0.2, ports: [{name: any, port: 80}, {name: tcp, port: 3306}]}",
        ],
    ),
    (
        SERVICE,
        "default",
        "headless",
        &[
            "{clusterIP: None, selector: {app: ratings}, ports: [{name: http, port: 80}, {name: tcp, port: 7000}]}",
            "{clusterIP: None, selector: {app: reviews}, ports: [{name: any, port: 7000}]}",
            "{clusterIP: 10.9.0.7, selector: {app: reviews}, ports: [{name: tcp, port: 7000}]}",
        ],
    ),
    (
        SERVICE,
        "default",
        "sniffed",
        &[
            "{clusterIP: 10.9.0.3, ports: [{name: web, port: 9080}]}",
            "{clusterIP: 10.9.0.3, ports: [{name: http, port: 9080}]}",
            "{clusterIP: 10.9.0.3, ports: [{name: web, port: 9080}, {name: mysql, port: 9090}]}",
        ],
    ),
    (
        SERVICE,
        "other",
        "far",
        &[
            "{clusterIP: 10.9.0.4, ports: [{name: http, port: 9080}, {name: tls, port: 8443}]}",
            "{clusterIP: 10.9.0.4, ports: [{name: mysql, port: 9080}]}",
            "{clusterIP: 10.9.0.4, selector: {app: ratings}, ports: [{name: http, port: 15102}]}",
        ],
    ),
    // Another name of a service, to which a rule sends.
    (
        SERVICE,
        "default",
        "alias",
        &[
            "{type: ExternalName, externalName: late.default.svc.cluster.local}",
            "{type: ExternalName, externalName: sniffed.default.svc.cluster.local}",
        ],
    ),
    (
        RULE,
        "default",
        "to-alias",
        &[
            "{hosts: [ratings], http: [{route: [{destination: {host: alias}}]}]}",
            "{hosts: [mysql], tcp: [{route: [{destination: {host: alias}}]}]}",
        ],
    ),
    // Leads to the sidecar's own workload.
    (
        SERVICE,
        "default",
        "own",
        &[
            "{clusterIP: 10.9.0.5, selector: {app: reviews}, ports: [{name: tcp, port: 15102}]}",
            "{clusterIP: 10.9.0.5, selector: {app: reviews}, ports: [{name: http, port: 15102}, {name: tcp, port: 81}]}",
        ],
    ),
    // Says which ports the gateway binds.
    (
        SERVICE,
        "istio-system",
        "second-gateway",
        &[
            "{selector: {istio: ingressgateway}, ports: [{name: http2, port: 81, targetPort: 8081}]}",
            "{selector: {istio: ingressgateway}, ports: [{name: http2, port: 81, targetPort: 8082}, {name: https, port: 443, targetPort: 8443}]}",
        ],
    ),
    (
        ENTRY,
        "default",
        "ext",
        &[
            "{hosts: [ext.test], resolution: DNS, ports: [{name: http, number: 80, protocol: HTTP}]}",
            "{hosts: [ext.test], resolution: DNS, exportTo: [other], ports: [{name: tls, number: 8443, protocol: TLS}]}",
        ],
    ),
    (
        ENTRY,
        "default",
        "wild",
        &[
            "{hosts: ['*.test'], ports: [{name: http, number: 80, protocol: HTTP}]}",
            "{hosts: ['*.test'], resolution: DYNAMIC_DNS, ports: [{name: tls, number: 8443, protocol: TLS}]}",
            "{hosts: [late.test, two.test], resolution: DNS, ports: [{name: http, number: 80, protocol: HTTP}]}",
        ],
    ),
    (
        ENTRY,
        "other",
        "ranges",
        &[
            "{hosts: [range.test], addresses: [10.8.0.0/16], resolution: NONE, ports: [{name: tcp, number: 3306, protocol: TCP}]}",
            "{hosts: [range.test], addresses: [10.9.0.1/32], resolution: NONE, ports: [{name: tcp, number: 80, protocol: TCP}]}",
        ],
    ),
    (
        ENTRY,
        "other",
        "auto",
        &[
            "{hosts: [auto.test], resolution: DNS, ports: [{name: tcp, number: 3306, protocol: TCP}]}",
            "{hosts: [auto.test, auto2.test], resolution: DNS, ports: [{name: tcp, number: 3307, protocol: TCP}]}",
        ],
    ),
    (
        WORKLOAD,
        "default",
        "ratings-v1",
        &[
            "{address: 10.2.0.1, labels: {app: ratings, version: v1}}",
            "{address: 10.2.0.2, labels: {app: ratings, version: v2}}",
        ],
    ),
    (
        WORKLOAD,
        "default",
        "reviews-v3",
        &[
            "{address: 10.2.0.3, labels: {app: reviews, version: v3}}",
            "{address: 10.2.0.3, labels: {app: ratings}}",
        ],
    ),
    (
        RULE,
        "default",
        "a",
        &[
            "{hosts: [reviews], http: [{route: [{destination: {host: reviews}}], timeout: 1s}]}",
            "{hosts: [reviews], http: [{route: [{destination: {host: far.other.svc.cluster.local}}]}]}",
            "{hosts: [reviews, ratings], http: [{route: [{destination: {host: late}}], timeout: 2s}]}",
        ],
    ),
    (
        RULE,
        "default",
        "patterns",
        &[
            "{hosts: ['*.default.svc.cluster.local'], http: [{route: [{destination: {host: reviews}}]}]}",
            "{hosts: ['*.test'], http: [{route: [{destination: {host: auto.test}}]}]}",
        ],
    ),
    (
        RULE,
        "default",
        "labelled",
        &[
            "{hosts: [ratings], http: [{match: [{sourceLabels: {app: reviews}}], route: [{destination: {host: ratings, port: {number: 9080}}}]}]}",
            "{hosts: [ratings], exportTo: ['.'], http: [{route: [{destination: {host: ratings, port: {number: 9080}}}]}]}",
        ],
    ),
    (
        RULE,
        "default",
        "connections",
        &[
            "{hosts: [mysql], tcp: [{route: [{destination: {host: mysql}}]}]}",
            "{hosts: [late], tcp: [{match: [{sourceLabels: {app: reviews}}], route: [{destination: {host: mysql, port: {number: 3306}}}]}]}",
            "{hosts: [ext.test], tls: [{match: [{port: 8443, sniHosts: [ext.test]}], route: [{destination: {host: late}}]}]}",
        ],
    ),
    (
        RULE,
        "other",
        "unregistered",
        &[
            "{hosts: [nobody.test, late.default], http: [{route: [{destination: {host: far}}]}]}",
            "{hosts: [nobody.test], gateways: [mesh, istio-system/web], http: [{route: [{destination: {host: late.default.svc.cluster.local}}]}]}",
        ],
    ),
    (
        RULE,
        "default",
        "to-gateway",
        &[
            "{hosts: [app.test], gateways: [istio-system/web], http: [{route: [{destination: {host: late}}]}]}",
            "{hosts: ['*'], gateways: [istio-system/web], http: [{route: [{destination: {host: late}}]}]}",
            "{hosts: [app.test, b.test], gateways: [istio-system/web, istio-system/second], http: [{route: [{destination: {host: ext.test}}]}]}",
        ],
    ),
    (
        RULE,
        "other",
        "to-gateway",
        &[
            "{hosts: [app.test], gateways: [istio-system/second], http: [{match: [{uri: {prefix: /x}}], route: [{destination: {host: far}}]}]}",
            "{hosts: ['*.test'], gateways: [istio-system/web, istio-system/second], http: [{match: [{uri: {prefix: /y}}], route: [{destination: {host: far}}]}]}",
            "{hosts: [tls.test], gateways: [istio-system/second], tls: [{match: [{sniHosts: [tls.test]}], route: [{destination: {host: far}}]}]}",
        ],
    ),
    (
        POLICY,
        "default",
        "plain",
        &[
            "{host: late, subsets: [{name: a, labels: {a: b}}]}",
            "{host: late, trafficPolicy: {connectionPool: {tcp: {idleTimeout: 9s}}}}",
            "{host: '*.default.svc.cluster.local', trafficPolicy: {connectionPool: {tcp: {idleTimeout: 7s}}}}",
        ],
    ),
    (
        POLICY,
        "default",
        "hashing",
        &[
            "{host: reviews, trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true}}}}",
            "{host: mysql, trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true}}}}",
        ],
    ),
    (
        POLICY,
        "default",
        "selecting",
        &[
            "{host: mysql, workloadSelector: {matchLabels: {app: reviews}}, trafficPolicy: {connectionPool: {tcp: {idleTimeout: 5s}}}}",
            "{host: mysql}",
        ],
    ),
    (
        GATEWAY,
        "istio-system",
        "web",
        &[
            "{selector: {istio: ingressgateway}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*.test', 'other/a.b']}]}",
            "{selector: {istio: ingressgateway}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*'], tls: {httpsRedirect: true}}]}",
            "{selector: {istio: ingressgateway}, servers: [{port: {number: 81, name: http, protocol: HTTP}, hosts: ['*.test']}, {port: {number: 82, name: tcp, protocol: TCP}, hosts: ['*']}]}",
        ],
    ),
    (
        GATEWAY,
        "istio-system",
        "second",
        &[
            "{selector: {istio: ingressgateway}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: [app.test]}]}",
            "{selector: {istio: ingressgateway}, servers: [{port: {number: 443, name: tls, protocol: TLS}, hosts: [tls.test], tls: {mode: PASSTHROUGH}}]}",
            "{selector: {istio: ingressgateway}, servers: [{port: {number: 443, name: tls, protocol: TLS}, hosts: ['*.local'], tls: {mode: AUTO_PASSTHROUGH}}]}",
        ],
    ),
    (
        SIDECAR,
        "default",
        "own",
        &[
            "{egress: [{hosts: ['./*']}]}",
            "{egress: [{hosts: ['other/*', './reviews.default.svc.cluster.local']}], outboundTrafficPolicy: {mode: REGISTRY_ONLY}}",
            "{egress: [{port: {number: 9080, protocol: HTTP, name: http}, bind: 127.0.0.1, hosts: ['*/*']}, {hosts: ['./late.default.svc.cluster.local']}]}",
            "{workloadSelector: {labels: {app: reviews}}, ingress: [{port: {number: 15102, protocol: HTTP, name: http}, defaultEndpoint: '127.0.0.1:15103'}], egress: [{hosts: ['*/*']}]}",
        ],
    ),
    (
        SIDECAR,
        "istio-system",
        "default",
        &["{egress: [{hosts: ['./*', 'istio-system/*']}]}"],
    ),
    (
        PEERS,
        "default",
        "peers",
        &["{mtls: {mode: STRICT}}", "{mtls: {mode: DISABLE}}"],
    ),
    (PEERS, "istio-system", "peers", &["{mtls: {mode: STRICT}}"]),
    (
        ACCESS,
        "default",
        "access",
        &[
            "{rules: [{from: [{source: {namespaces: [other]}}]}]}",
            "{selector: {matchLabels: {app: reviews}}, action: DENY, rules: [{to: [{operation: {ports: ['15102']}}]}]}",
        ],
    ),
    (
        ACCESS,
        "istio-system",
        "attached",
        &[
            "{targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: edge}], rules: [{}]}",
            "{selector: {matchLabels: {istio: ingressgateway}}, rules: [{when: [{key: 'request.auth.claims[a]', values: [b]}]}]}",
        ],
    ),
    (
        TOKENS,
        "default",
        "tokens",
        &[
            "{jwtRules: [{issuer: a, jwks: 'KEYS'}]}",
            "{selector: {matchLabels: {app: reviews}}, jwtRules: [{issuer: b, jwks: 'KEYS', forwardOriginalToken: true}]}",
            "{targetRefs: [{kind: Service, group: '', name: own}], jwtRules: [{issuer: c, jwks: 'KEYS'}]}",
        ],
    ),
    (
        TOKENS,
        "istio-system",
        "tokens",
        &["{jwtRules: [{issuer: d, jwks: 'KEYS'}]}"],
    ),
    (
        SECRET,
        "istio-system",
        "web",
        &[
            "type: kubernetes.io/tls\nstringData: {tls.crt: CERT_A, tls.key: KEY_A}",
            "type: kubernetes.io/tls\nstringData: {tls.crt: CERT_B, tls.key: KEY_B, ca.crt: CERT_A}",
        ],
    ),
    (
        SECRET,
        "istio-system",
        "web-cacert",
        &["stringData: {ca.crt: CERT_B}"],
    ),
    (
        SECRET,
        "istio-system",
        "clients",
        &[
            "stringData: {ca.crt: CERT_A}",
            "stringData: {ca.crt: CERT_B}",
        ],
    ),
    (
        ROLE,
        "istio-system",
        "reader",
        &[
            "rules: [{apiGroups: [''], resources: [secrets], verbs: [list]}]",
            "rules: [{apiGroups: [''], resources: [secrets], resourceNames: [web], verbs: [list]}]",
            "rules: [{apiGroups: [''], resources: [pods], verbs: [list]}]",
        ],
    ),
    (
        ROLE_BINDING,
        "istio-system",
        "reader",
        &[
            "roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: reader}\nsubjects: [{kind: ServiceAccount, name: ingress}]",
            "roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: reader}\nsubjects: [{kind: ServiceAccount, name: egress}]",
        ],
    ),
    (
        CLUSTER_ROLE_BINDING,
        "",
        "all",
        &[
            "roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: gone}\nsubjects: [{kind: Group, apiGroup: rbac.authorization.k8s.io, name: 'system:serviceaccounts'}]",
        ],
    ),
    (
        GATEWAY,
        "istio-system",
        "secure",
        &[
            "{selector: {istio: ingressgateway}, servers: [{port: {number: 443, name: https, protocol: HTTPS}, hosts: ['*.test'], tls: {mode: SIMPLE, credentialName: web}}]}",
            "{selector: {istio: ingressgateway}, servers: [{port: {number: 443, name: https, protocol: HTTPS}, hosts: [app.test], tls: {mode: MUTUAL, credentialName: web}}]}",
            "{selector: {istio: ingressgateway}, servers: [{port: {number: 443, name: tls, protocol: TLS}, hosts: [app.test], tls: {mode: OPTIONAL_MUTUAL, credentialName: clients}}]}",
        ],
    ),
    (
        POLICY,
        "istio-system",
        "credentials",
        &[
            "{host: late.default.svc.cluster.local, exportTo: ['*'], trafficPolicy: {tls: {mode: MUTUAL, credentialName: web}}}",
            "{host: ext.test, trafficPolicy: {tls: {mode: SIMPLE, credentialName: clients}}}",
        ],
    ),
    (
        SLICE,
        "default",
        "late-1",
        &[
            "labels: {kubernetes.io/service-name: late}\naddressType: IPv4\nendpoints: [{addresses: [10.3.0.1]}]\nports: [{name: http, port: 8080}]",
            "labels: {kubernetes.io/service-name: late}\naddressType: IPv4\nendpoints: [{addresses: [10.3.0.2], zone: z}, {addresses: [10.7.0.2]}]\nports: [{name: http, port: 8080}, {name: http-b, port: 8081}]",
            "labels: {kubernetes.io/service-name: same-address}\naddressType: IPv4\nendpoints: [{addresses: [10.3.0.1]}]\nports: [{name: tcp, port: 3306}]",
        ],
    ),
    (
        ENDPOINTS,
        "default",
        "same-address",
        &[
            "subsets: [{addresses: [{ip: 10.3.0.9}], ports: [{name: http, port: 8080}, {name: tcp, port: 3307}]}]",
        ],
    ),
    (
        POD,
        "default",
        "ratings-v2",
        &[
            "labels: {app: ratings, version: v2}\nspec: {serviceAccountName: ratings, containers: [{name: c, image: i}]}\nstatus: {phase: Running, podIP: 10.4.0.1, conditions: [{type: Ready, status: 'True'}]}",
            "labels: {app: reviews, version: v2, security.istio.io/tlsMode: istio}\nspec: {serviceAccountName: late, containers: [{name: c, image: i}]}\nstatus: {phase: Running, podIP: 10.4.0.1, conditions: [{type: Ready, status: 'True'}]}",
            "labels: {app: ratings}\nspec: {containers: [{name: c, image: i}]}\nstatus: {phase: Running, podIP: 10.4.0.1, conditions: [{type: Ready, status: 'False'}]}",
        ],
    ),
];

/// An object of this form in one of its versions.
pub fn object((kind, namespace, name, specs): &Form, version: usize) -> Object {
    let (api, kind) = kind.rsplit_once('/').unwrap();
    let day = (name.len() * 7 + namespace.len()) % 9 + 1;
    let said = specs[version % specs.len()];
    let place = match *namespace {
        "" => String::new(),
        namespace => format!("\n  namespace: {namespace}"),
    };
    let said = match said.strip_prefix("labels: ") {
        Some(rest) => format!("  labels: {rest}"),
        None if said.starts_with('{') => format!("spec: {said}"),
        None => said.to_owned(),
    };
    let mut yaml = format!(
        "apiVersion: {api}\nkind: {kind}\nmetadata:\n  name: {name}{place}\n  \
         creationTimestamp: '2026-02-0{day}T00:00:00Z'\n{said}\n"
    );
    yaml = yaml.replace("KEYS", KEYS);
    for (name, pem) in PAIRS.iter() {
        yaml = yaml.replace(name, pem);
    }
    support::objects(&yaml).remove(0)
}
