//! The table of host names for DNS.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests stop at what is not as expected"
)]

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;

use expect_test::{Expect, expect};
use lateen_model::{MeshSnapshot, Proxy};
use lateen_proto::nds::NameTable;
use lateen_translate::type_url;
use prost::Message;
use serde_json::json;
use support::{next, snapshot, translator};

fn proxy(dns_capture: &str) -> Proxy {
    Proxy::from_node(
        "sidecar~10.0.0.9~reviews-v1.default~default.svc.cluster.local",
        &json!({"DNS_CAPTURE": dns_capture}),
    )
    .unwrap()
}

fn check(snapshot: &MeshSnapshot, proxy: &Proxy, expect: Expect) {
    let made = translator().generate(snapshot, proxy, type_url::NAME_TABLE, None);
    assert_eq!(made.len(), 1);
    let table = NameTable::decode(made[0].bytes.as_slice()).unwrap().table;
    let lines = table.iter().map(|(host, info)| {
        let ips = info.ips.join(" ");
        let short = format!("{} {} {}", info.registry, info.shortname, info.namespace);
        format!("{host} = {ips} ({})\n", short.trim_end())
    });
    expect.assert_eq(&lines.collect::<String>());
}

const MORE: &str = "
apiVersion: v1
kind: Service
metadata: {name: vip, namespace: other}
spec: {clusterIP: 10.96.0.7, selector: {app: x}, ports: [{name: http, port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: fixed, namespace: default}
spec:
  hosts: ['*.fixed.test']
  addresses: [10.9.0.1, 10.10.0.0/16, 'fd00::9']
  resolution: STATIC
  endpoints: [{address: 10.1.1.1}]
  ports: [{number: 443, name: tls, protocol: TLS}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: auto, namespace: default}
spec:
  hosts: [auto.test]
  resolution: DNS
  ports: [{number: 443, name: tls, protocol: TLS}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: hidden, namespace: other}
spec:
  hosts: [hidden.test]
  exportTo: ['.']
  resolution: DNS
  ports: [{number: 443, name: tls, protocol: TLS}]
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: reviews-v3, namespace: default}
spec: {address: 10.0.0.3, ports: {http: 15122}, labels: {app: reviews, version: v3}}
status: {conditions: [{type: Healthy, status: 'False'}]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: reviews-v4, namespace: default}
spec: {address: 10.0.0.4, ports: {http: 15132}, labels: {app: reviews, version: v4}}
";

#[test]
fn names_are_virtual_addresses_ready_endpoints_and_allocated_ones() {
    let snapshot = snapshot(MORE);
    check(
        &snapshot,
        &proxy("true"),
        expect![[r#"
            *.fixed.test = 10.9.0.1 fd00::9 (External)
            auto.test = 240.240.205.100 (External)
            istio-ingressgateway.istio-ingressgateway.istio-system.svc.cluster.local = 127.0.0.1 (Kubernetes istio-ingressgateway.istio-ingressgateway istio-system)
            istio-ingressgateway.istio-system.svc.cluster.local = 127.0.0.1 (Kubernetes istio-ingressgateway istio-system)
            reviews-v1.reviews.default.svc.cluster.local = 127.0.0.1 (Kubernetes reviews-v1.reviews default)
            reviews-v2.reviews.default.svc.cluster.local = 127.0.0.1 (Kubernetes reviews-v2.reviews default)
            reviews-v4.reviews.default.svc.cluster.local = 10.0.0.4 (Kubernetes reviews-v4.reviews default)
            reviews.default.svc.cluster.local = 127.0.0.1 10.0.0.4 (Kubernetes reviews default)
            vip.other.svc.cluster.local = 10.96.0.7 (Kubernetes vip other)
        "#]],
    );
    check(
        &snapshot,
        &proxy("false"),
        expect![[r#"
            *.fixed.test = 10.9.0.1 fd00::9 (External)
            istio-ingressgateway.istio-ingressgateway.istio-system.svc.cluster.local = 127.0.0.1 (Kubernetes istio-ingressgateway.istio-ingressgateway istio-system)
            istio-ingressgateway.istio-system.svc.cluster.local = 127.0.0.1 (Kubernetes istio-ingressgateway istio-system)
            reviews-v1.reviews.default.svc.cluster.local = 127.0.0.1 (Kubernetes reviews-v1.reviews default)
            reviews-v2.reviews.default.svc.cluster.local = 127.0.0.1 (Kubernetes reviews-v2.reviews default)
            reviews-v4.reviews.default.svc.cluster.local = 10.0.0.4 (Kubernetes reviews-v4.reviews default)
            reviews.default.svc.cluster.local = 127.0.0.1 10.0.0.4 (Kubernetes reviews default)
            vip.other.svc.cluster.local = 10.96.0.7 (Kubernetes vip other)
        "#]],
    );
}

#[test]
fn a_change_that_touches_no_name_finds_the_table_again() {
    let translator = translator();
    let first = snapshot(MORE);
    let rule = "---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: rule, namespace: default}
spec: {hosts: [reviews], http: [{route: [{destination: {host: reviews}}]}]}
";
    let second = next(&format!("{MORE}{rule}"), Some(&first));
    let table =
        |snapshot| translator.generate(snapshot, &proxy("true"), type_url::NAME_TABLE, None);
    assert!(Arc::ptr_eq(&table(&first)[0], &table(&second)[0]));
    let other = BTreeSet::from(["other".to_owned()]);
    let named = translator.generate(&first, &proxy("true"), type_url::NAME_TABLE, Some(&other));
    assert!(named.is_empty());
}

#[test]
fn pods_are_named_as_they_say_below_the_service_they_say() {
    let pods = "---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: default}
spec: {clusterIP: None, selector: {app: db}, ports: [{name: tcp, port: 3306, targetPort: sql}]}
---
apiVersion: v1
kind: Pod
metadata: {name: db-0, namespace: default, labels: {app: db}}
spec: {hostname: db-0, subdomain: db, containers: [{ports: [{name: sql, containerPort: 1}]}]}
status: {podIP: 10.1.0.1, conditions: [{type: Ready, status: 'True'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: elsewhere, namespace: default, labels: {app: db}}
spec: {hostname: x, subdomain: other, containers: [{ports: [{name: sql, containerPort: 1}]}]}
status: {podIP: 10.1.0.2, conditions: [{type: Ready, status: 'True'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: twin, namespace: default, labels: {app: db}}
spec: {hostname: db-0, subdomain: db, containers: [{ports: [{name: sql, containerPort: 1}]}]}
status: {podIP: 10.1.0.3, conditions: [{type: Ready, status: 'True'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: late, namespace: default, labels: {app: db}}
spec: {hostname: late, subdomain: db, containers: [{ports: [{name: sql, containerPort: 1}]}]}
status: {podIP: 10.1.0.4}
";
    let made = translator().generate(&snapshot(pods), &proxy("true"), type_url::NAME_TABLE, None);
    let table = NameTable::decode(made[0].bytes.as_slice()).unwrap().table;
    let found = |name: &str| {
        let info = table.get(&format!("{name}.default.svc.cluster.local"));
        info.map(|info| info.ips.join(" "))
    };
    let is = |name: &str, expected: Option<&str>| {
        assert_eq!(found(name).as_deref(), expected, "{name}");
    };
    is("db", Some("10.1.0.1 10.1.0.2 10.1.0.3"));
    is("db-0.db", Some("10.1.0.1 10.1.0.3"));
    is("x.db", None);
    is("elsewhere.db", None);
    is("late.db", None);
}
