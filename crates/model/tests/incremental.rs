//! The safety net of the incremental snapshot: after any sequence of changes it is equal to one
//! that is built from all objects at once, what is said to have changed covers what did, and all
//! else keeps its identity.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests stop at what is not as expected"
)]

use std::collections::BTreeMap;
use std::sync::Arc;

use lateen_api::Object;
use lateen_model::{Changes, MeshSettings, MeshSnapshot, ObjectChange, Workload};
use proptest::prelude::*;

type Objects = BTreeMap<(usize, usize, usize), Object>;

/// One step: an object by kind, namespace and name takes a variant of its content, or goes.
#[derive(Clone, Debug)]
struct Step {
    key: (usize, usize, usize),
    variant: Option<usize>,
}

const NAMESPACES: [&str; 3] = ["shop", "web", "istio-system"];
const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// The form of each kind; `%N` is the variant.
/// Version, kind and spec for a name and a variant.
type Form = fn(&str, usize) -> (&'static str, String);

const KINDS: [Form; 12] = [
    |name, v| {
        let selector = ["{app: a}", "{app: b, version: v1}", "{}"][v % 3];
        (
            "v1/Service",
            format!(
                "{{selector: {selector}, ports: [{{name: http, port: {}}}]}}",
                80 + v + name.len()
            ),
        )
    },
    |_, v| {
        let hosts = [
            "[x.test]",
            "[x.test, y.test]",
            "[x.test, z.test]",
            "[a.shop.svc.cluster.local]",
        ][v % 4];
        let rest = [
            "resolution: DNS",
            "resolution: STATIC, workloadSelector: {labels: {app: a}}",
            "resolution: STATIC, endpoints: [{address: 10.0.0.1}]",
            "resolution: DNS, exportTo: ['.']",
        ][v / 4 % 4];
        (
            "networking.istio.io/v1/ServiceEntry",
            format!(
                "{{hosts: {hosts}, {rest}, ports: [{{name: tcp, number: 90, protocol: TCP}}]}}"
            ),
        )
    },
    |_, v| {
        let labels = [
            "{app: a}",
            "{app: b, version: v1}",
            "{app: b}",
            "{other: x}",
        ][v % 4];
        (
            "networking.istio.io/v1/WorkloadEntry",
            format!(
                "{{address: 10.0.1.{}, labels: {labels}, weight: {}}}",
                v % 5,
                v % 2 + 1
            ),
        )
    },
    |_, v| {
        let labels = ["{app: a}", "{app: b, version: v1}", "{app: b}"][v % 3];
        let ready = ["'True'", "'False'"][v % 2];
        let phase = ["Running", "Running", "Failed"][v / 2 % 3];
        (
            "v1/Pod",
            format!(
                "{{containers: [{{name: a, ports: [{{name: p{}, containerPort: 80}}]}}]}}\n\
                 labels: {labels}\nstatus: {{phase: {phase}, podIP: 10.0.2.{}, \
                 conditions: [{{type: Ready, status: {ready}}}]}}",
                v % 4,
                v % 5,
            ),
        )
    },
    |_, v| {
        let hosts = [
            "[a]",
            "[b, a.shop.svc.cluster.local]",
            "['*.shop.svc.cluster.local']",
            "[x.test]",
            "['*.svc.cluster.local']",
        ][v % 5];
        let matches = ["", "match: [{sourceLabels: {app: a}}], "][v / 5 % 2];
        let route = "route: [{destination: {host: b}}]";
        let spec = match v / 10 % 4 {
            // Leaves its rules to another, and is one that others leave theirs to.
            1 => format!("{{hosts: {hosts}, http: [{{delegate: {{name: b, namespace: shop}}}}]}}"),
            2 => format!("{{http: [{{{matches}{route}}}]}}"),
            _ => format!("{{hosts: {hosts}, http: [{{{matches}{route}}}]}}"),
        };
        ("networking.istio.io/v1/VirtualService", spec)
    },
    |_, v| {
        let host = [
            "a",
            "a.shop.svc.cluster.local",
            "'*.shop.svc.cluster.local'",
            "'*'",
        ][v % 4];
        let rest = [
            "subsets: [{name: v1, labels: {version: v1}}]",
            "workloadSelector: {matchLabels: {app: a}}, subsets: [{name: v2, labels: {version: v2}}]",
            "trafficPolicy: {connectionPool: {tcp: {maxConnections: 3}}}",
        ][v / 4 % 3];
        (
            "networking.istio.io/v1/DestinationRule",
            format!("{{host: {host}, {rest}}}"),
        )
    },
    |_, v| {
        (
            "networking.istio.io/v1/Gateway",
            format!(
                "{{selector: {{istio: x}}, servers: [{{port: {{number: {}, name: http, protocol: HTTP}}, hosts: ['*']}}]}}",
                80 + v
            ),
        )
    },
    |_, v| {
        (
            "networking.istio.io/v1/Sidecar",
            format!(
                "{{egress: [{{hosts: [{}]}}]}}",
                ["./*", "'*/*'", "shop/*"][v % 3]
            ),
        )
    },
    |_, v| {
        let selector = ["", "selector: {matchLabels: {app: a}}, "][v % 2];
        let mode = ["STRICT", "PERMISSIVE", "DISABLE", "UNSET"][v / 2 % 4];
        (
            "security.istio.io/v1/PeerAuthentication",
            format!("{{{selector}mtls: {{mode: {mode}}}}}"),
        )
    },
    |_, v| {
        let selector = ["", "selector: {matchLabels: {app: a}}, "][v % 2];
        let action = ["ALLOW", "DENY", "AUDIT"][v / 2 % 3];
        (
            "security.istio.io/v1/AuthorizationPolicy",
            format!("{{{selector}action: {action}, rules: [{{}}]}}"),
        )
    },
    |_, v| {
        let selector = ["", "selector: {matchLabels: {app: a}}, "][v % 2];
        let issuer = ["a", "b", "c"][v / 2 % 3];
        (
            "security.istio.io/v1/RequestAuthentication",
            format!("{{{selector}jwtRules: [{{issuer: 'https://{issuer}.test'}}]}}"),
        )
    },
    // Its content stands beside the metadata.
    |_, v| {
        let of = ["a", "b", "c"][v % 3];
        let by = [
            "",
            ", endpointslice.kubernetes.io/managed-by: endpointslice-controller.k8s.io",
        ];
        let ready = ["true", "false"][v / 3 % 2];
        (
            "discovery.k8s.io/v1/EndpointSlice",
            format!(
                "\nlabels: {{kubernetes.io/service-name: {of}{}}}\naddressType: IPv4\n\
                 endpoints: [{{addresses: [10.0.3.{}], conditions: {{ready: {ready}}}}}]\n\
                 ports: [{{name: http, port: 80}}]",
                by[v / 6 % 2],
                v % 5,
            ),
        )
    },
];

fn object(key: (usize, usize, usize), variant: usize) -> Object {
    let (kind, namespace, name) = key;
    let name = NAMES[name % NAMES.len()];
    let (of, spec) = KINDS[kind](name, variant);
    let (version, kind) = of.rsplit_once('/').unwrap();
    // The labels of a pod are metadata.
    let (labels, spec) = match spec.split_once("\nlabels: ") {
        Some((spec, rest)) => {
            let (labels, rest) = rest.split_once('\n').unwrap();
            (labels.to_owned(), format!("{spec}\n{rest}"))
        }
        None => ("{}".to_owned(), spec),
    };
    let yaml = format!(
        "apiVersion: {version}\nkind: {kind}\n\
         metadata: {{labels: {labels}, name: {name}, namespace: {}, creationTimestamp: \"2026-01-0{}T00:00:00Z\"}}\nspec: {spec}\n",
        NAMESPACES[namespace],
        variant % 3 + 1,
    );
    let yaml = match kind {
        "EndpointSlice" => yaml.replace("\nspec: \n", "\n"),
        _ => yaml,
    };
    let parsed = lateen_api::parse("test.yaml", &yaml, lateen_api::Mode::Strict);
    assert!(!parsed.has_errors(), "{yaml}{:?}", parsed.diagnostics);
    parsed.objects.into_iter().next().unwrap().object
}

/// Everything a snapshot answers, in a form that compares.
fn content(snapshot: &MeshSnapshot) -> String {
    let mut lines = Vec::new();
    for service in snapshot.services() {
        lines.push(format!(
            "{service:?} {:?}",
            snapshot.endpoints(&service.hostname)
        ));
        for client in NAMESPACES {
            lines.push(format!(
                "{client} {:?}",
                snapshot.destination_rule(client, service)
            ));
        }
        let covering: Vec<_> = snapshot.destination_rules_for(&service.hostname).collect();
        lines.push(format!("{covering:?}"));
        let rules: Vec<_> = snapshot.rules_of_host(&service.hostname).collect();
        lines.push(format!("{rules:?}"));
        let rules: Vec<_> = snapshot.rules_to(&service.hostname).collect();
        lines.push(format!("{rules:?}"));
        for address in &service.addresses {
            let at: Vec<_> = snapshot.hosts_at(address).collect();
            lines.push(format!("{at:?}"));
        }
    }
    for workload in snapshot.workloads() {
        let of: Vec<_> = snapshot
            .services_of(workload)
            .map(|s| &s.hostname)
            .collect();
        let headless: Vec<_> = snapshot.headless_at(&workload.address).collect();
        lines.push(format!("{workload:?} {of:?} {headless:?}"));
    }
    for gateway in ["mesh", "shop/a", "web/a"] {
        let rules: Vec<_> = snapshot.rules_bound_to(gateway).collect();
        lines.push(format!("{rules:?}"));
    }
    lines.push(format!(
        "{:?}",
        snapshot.connection_rules().collect::<Vec<_>>()
    ));
    lines.push(format!(
        "{:?}",
        snapshot.virtual_services().collect::<Vec<_>>()
    ));
    lines.push(format!(
        "{:?}",
        snapshot.wildcard_rules().collect::<Vec<_>>()
    ));
    lines.push(format!(
        "{:?}",
        snapshot.destination_rules().collect::<Vec<_>>()
    ));
    lines.push(format!("{:?}", snapshot.gateways().collect::<Vec<_>>()));
    lines.push(format!("{:?}", snapshot.sidecars().collect::<Vec<_>>()));
    let peers = snapshot.peer_authentications().collect::<Vec<_>>();
    lines.push(format!("{peers:?}"));
    for namespace in NAMESPACES {
        let labels = BTreeMap::from([("app".to_string(), "a".to_string())]);
        let policies = snapshot.authorization_policies(namespace, &labels);
        lines.push(format!("{:?}", policies.collect::<Vec<_>>()));
    }
    let tokens = snapshot.all_request_authentications().collect::<Vec<_>>();
    lines.push(format!("{tokens:?}"));
    lines.push(snapshot.rules_ask_for_labels().to_string());
    lines.join("\n")
}

fn build(objects: &Objects, previous: Option<&MeshSnapshot>) -> MeshSnapshot {
    MeshSnapshot::build(
        objects.values(),
        1,
        Arc::new(MeshSettings::default()),
        previous,
    )
}

fn covers(changes: &Changes, before: &MeshSnapshot, after: &MeshSnapshot) {
    for service in before.services().chain(after.services()) {
        let host = &service.hostname;
        let (old, new) = (before.service(host), after.service(host));
        let same = match (old, new) {
            (Some(old), Some(new)) => Arc::ptr_eq(old, new),
            (old, new) => old.is_none() && new.is_none(),
        };
        assert_eq!(!same, changes.services.contains_key(host), "service {host}");
        let same = before.endpoints(host) == after.endpoints(host);
        assert!(
            same || changes.endpoints.contains_key(host),
            "endpoints {host}"
        );
        let kept = Arc::ptr_eq(&before.endpoints(host), &after.endpoints(host));
        assert!(kept || changes.endpoints.contains_key(host) || old.is_none() || new.is_none());
    }
    for rule in before.virtual_services().chain(after.virtual_services()) {
        let find = |snapshot: &MeshSnapshot| {
            let mut all = snapshot.virtual_services();
            all.find(|other| other.origin == rule.origin).cloned()
        };
        let (old, new) = (find(before), find(after));
        let same = matches!((&old, &new), (Some(old), Some(new)) if Arc::ptr_eq(old, new));
        assert!(
            same || changes.virtual_services.contains_key(&rule.origin),
            "{:?}",
            rule.origin
        );
    }
    for rule in before.destination_rules().chain(after.destination_rules()) {
        let key = rule.key();
        let find = |snapshot: &MeshSnapshot| {
            let mut all = snapshot.destination_rules();
            all.find(|other| other.key() == key).cloned()
        };
        let (old, new) = (find(before), find(after));
        let same = matches!((&old, &new), (Some(old), Some(new)) if Arc::ptr_eq(old, new));
        assert_eq!(
            !same,
            changes.destination_rules.contains_key(&key),
            "{key:?}"
        );
    }
    for namespace in NAMESPACES {
        let of = |snapshot: &MeshSnapshot| -> Vec<_> {
            let rules = snapshot.peer_authentications_in(namespace);
            rules.cloned().collect()
        };
        let changed = changes.peer_authentications.contains(namespace);
        assert!(changed || of(before) == of(after), "{namespace}");
    }
    let policies = |of: &MeshSnapshot| -> Vec<_> {
        let all = of.all_authorization_policies();
        all.cloned().collect()
    };
    assert!(changes.authorization_policies || policies(before) == policies(after));
    let of = |snapshot: &MeshSnapshot| -> Vec<_> {
        snapshot.all_request_authentications().cloned().collect()
    };
    assert!(changes.request_authentications || of(before) == of(after));
    let shape = |one: Option<&Arc<Workload>>| one.map(|w| (w.labels.clone(), w.ports.clone()));
    for workload in before.workloads().chain(after.workloads()) {
        let key = (workload.namespace.clone(), workload.name.clone());
        let (old, new) = (
            before.workload(&key.0, &key.1),
            after.workload(&key.0, &key.1),
        );
        assert!(
            shape(old) == shape(new) || changes.workloads.contains(&key),
            "{key:?}"
        );
    }
}

fn steps() -> impl Strategy<Value = Vec<Vec<Step>>> {
    let key = (0..KINDS.len(), 0..NAMESPACES.len(), 0..NAMES.len());
    let step = (key, prop::option::weighted(0.75, 0..40usize))
        .prop_map(|(key, variant)| Step { key, variant });
    prop::collection::vec(prop::collection::vec(step, 1..5), 1..25)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_updated_snapshot_is_one_that_is_built_anew(batches in steps()) {
        let mut objects = Objects::new();
        let mut snapshot = build(&objects, None);
        for batch in batches {
            let before = objects.clone();
            for step in &batch {
                match step.variant {
                    Some(variant) => objects.insert(step.key, object(step.key, variant)),
                    None => objects.remove(&step.key),
                };
            }
            let keys: std::collections::BTreeSet<_> = batch.iter().map(|step| step.key).collect();
            let changes: Vec<ObjectChange<'_>> = keys
                .iter()
                .map(|key| ObjectChange { before: before.get(key), after: objects.get(key) })
                .collect();
            let (next, differs) = snapshot.updated(&changes, 1).unwrap();
            prop_assert_eq!(content(&next), content(&build(&objects, None)));
            covers(&differs, &snapshot, &next);
            // A full build that may borrow identities borrows all of them.
            let rebuilt = build(&objects, Some(&next));
            let same = rebuilt.services().zip(next.services()).all(|(a, b)| Arc::ptr_eq(a, b));
            prop_assert!(same);
            snapshot = next;
        }
    }
}

#[test]
fn settings_are_not_updated_piecemeal() {
    let parsed = lateen_api::parse(
        "test.yaml",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\n\
         data: {mesh: 'accessLogFile: /dev/stdout'}\n",
        lateen_api::Mode::Strict,
    );
    let object = &parsed.objects[0].object;
    let snapshot = build(&Objects::new(), None);
    let change = ObjectChange {
        before: None,
        after: Some(object),
    };
    assert!(snapshot.updated(&[change], 2).is_none());
    let next = MeshSnapshot::build(
        [object],
        2,
        Arc::new(MeshSettings::default()),
        Some(&snapshot),
    );
    assert_eq!(
        next.settings.access_log_file.as_deref(),
        Some("/dev/stdout")
    );
}
