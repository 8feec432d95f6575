//! What one change costs, by kind of proxy and size of the mesh: a table for people, run by hand.
//!
//! `cargo test -p lateen-translate --test cost -- --ignored --nocapture`, best with
//! `CARGO_PROFILE_DEV_OPT_LEVEL=1`. What a control plane does for one connected proxy is done here:
//! the snapshot, what may have changed, and of that all that the proxy follows.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests stop at what is not as expected"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::time::{Duration, Instant};

use lateen_api::Object;
use lateen_model::{Changes, Interception, MeshSnapshot, ObjectChange, Proxy};
use lateen_translate::{Encoded, Translator, own_names, type_url};

mod support;

const TYPES: [&str; 6] = [
    type_url::CLUSTER,
    type_url::ENDPOINT,
    type_url::LISTENER,
    type_url::ROUTE,
    type_url::VIRTUAL_HOST,
    type_url::NAME_TABLE,
];

/// Services that say HTTP, TCP or nothing, with rules; a tenth of the rules are for a gateway. Those
/// of the namespace `own` are ten whatever the size.
fn mesh(services: usize) -> String {
    let mut text = String::from(
        "---\n{apiVersion: networking.istio.io/v1, kind: Gateway, metadata: {name: web, namespace: \
         istio-system}, spec: {selector: {istio: ingressgateway}, servers: [{port: {number: 80, \
         name: http, protocol: HTTP}, hosts: ['*/*.example.com']}]}}\n",
    );
    for number in 0..services {
        let namespace = match number {
            0..10 => "own".to_owned(),
            _ => format!("n{}", number % 50),
        };
        let port = match number % 10 {
            3 => "{name: tcp-db, port: 3306}",
            7 => "{name: any, port: 7070}",
            _ => "{name: http, port: 80}",
        };
        let (bound, host) = match number % 10 {
            5 => (
                ", gateways: [istio-system/web]",
                format!("s{number}.example.com"),
            ),
            _ => ("", format!("s{number}")),
        };
        let (a, b) = (number / 200, number % 200 + 1);
        let _ = write!(
            text,
            "---\n{{apiVersion: v1, kind: Service, metadata: {{name: s{number}, namespace: \
             {namespace}}}, spec: {{clusterIP: 10.1.{a}.{b}, selector: {{app: s{number}}}, ports: \
             [{port}]}}}}\n---\n{{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, \
             metadata: {{name: s{number}-v1, namespace: {namespace}}}, spec: {{address: \
             10.2.{a}.{b}, labels: {{app: s{number}}}}}}}\n---\n{{apiVersion: \
             networking.istio.io/v1, kind: VirtualService, metadata: {{name: s{number}, namespace: \
             {namespace}}}, spec: {{hosts: [{host}]{bound}, http: [{{route: [{{destination: {{host: \
             s{number}}}}}]}}]}}}}\n---\n{{apiVersion: networking.istio.io/v1, kind: \
             DestinationRule, metadata: {{name: s{number}, namespace: {namespace}}}, spec: {{host: \
             s{number}, subsets: [{{name: v1, labels: {{app: s{number}}}}}]}}}}\n"
        );
    }
    text
}

const SIDECAR: &str = "---\n{apiVersion: networking.istio.io/v1, kind: Sidecar, metadata: {name: \
                       default, namespace: own}, spec: {egress: [{hosts: ['./*']}]}}\n";

fn proxies() -> [(&'static str, Proxy); 5] {
    let made = |namespace: &str, interception| {
        let id = format!("sidecar~10.2.0.1~s0-v1.{namespace}~{namespace}.svc.cluster.local");
        let metadata = serde_json::json!({
            "INTERCEPTION_MODE": "NONE", "HTTP_PROXY_PORT": "15101", "LABELS": {"app": "s0"},
        });
        let mut proxy = Proxy::from_node(&id, &metadata).unwrap();
        proxy.interception = interception;
        if interception == Interception::Redirect {
            proxy.http_proxy_port = None;
        }
        proxy.virtual_hosts_by_name = true;
        proxy
    };
    let mut gateway = support::gateway();
    gateway.virtual_hosts_by_name = true;
    [
        ("explicit", made("n1", Interception::None)),
        ("captured", made("n1", Interception::Redirect)),
        ("explicit, Sidecar", made("own", Interception::None)),
        ("captured, Sidecar", made("own", Interception::Redirect)),
        ("gateway", gateway),
    ]
}

/// What a proxy follows by name, beside all clusters and listeners.
struct Client {
    proxy: Proxy,
    tables: BTreeSet<String>,
    divided: BTreeSet<String>,
    clusters: BTreeSet<String>,
}

impl Client {
    fn connect(translator: &Translator<Encoded>, snapshot: &MeshSnapshot, proxy: &Proxy) -> Self {
        let names = |url| -> BTreeSet<String> {
            let all = translator.generate(snapshot, proxy, url, None);
            all.iter().map(|one| one.name.clone()).collect()
        };
        let clusters = names(type_url::CLUSTER);
        translator.generate(snapshot, proxy, type_url::LISTENER, None);
        translator.generate(snapshot, proxy, type_url::NAME_TABLE, None);
        translator.generate(snapshot, proxy, type_url::ENDPOINT, Some(&clusters));
        let hosts = names(type_url::VIRTUAL_HOST).into_iter();
        let tables = hosts.filter_map(|name| Some(name.rsplit_once('/')?.0.to_owned()));
        Client {
            proxy: proxy.clone(),
            tables: names(type_url::ROUTE),
            divided: tables.collect(),
            clusters,
        }
    }

    /// The work of a push, by type.
    fn push(
        &self,
        translator: &Translator<Encoded>,
        before: &MeshSnapshot,
        now: &MeshSnapshot,
        affected: &BTreeMap<&'static str, Option<BTreeSet<String>>>,
        times: &mut BTreeMap<&'static str, Duration>,
    ) {
        for url in TYPES {
            let Some(names) = affected.get(url) else {
                continue;
            };
            let started = Instant::now();
            let own = [before, now].map(|snapshot| own_names(snapshot, &self.proxy, url));
            let names = &own.into_iter().fold(names.clone(), |names, own| {
                Some(names?.into_iter().chain(own?).collect::<BTreeSet<_>>())
            });
            let all = names.is_none();
            let mine = |own: &BTreeSet<String>| match names {
                None => own.clone(),
                Some(names) => names.intersection(own).cloned().collect(),
            };
            let wanted = match url {
                type_url::ENDPOINT => Some(mine(&self.clusters)),
                type_url::ROUTE => Some(mine(&self.tables)),
                type_url::VIRTUAL_HOST if all => {
                    Some(translator.changed_virtual_hosts(before, now, &self.proxy, &self.divided))
                }
                _ => names.clone(),
            };
            if wanted.as_ref().is_none_or(|names| !names.is_empty()) {
                translator.generate(now, &self.proxy, url, wanted.as_ref());
            }
            *times.entry(url).or_default() += started.elapsed();
        }
    }
}

fn one(text: &str) -> Object {
    support::objects(text).remove(0)
}

/// A change by its name, in a round.
fn change(which: &str, round: u32) -> Object {
    match which {
        "rule" => one(&format!(
            "{{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {{name: \
             changing, namespace: own}}, spec: {{hosts: [s1], http: [{{route: [{{destination: \
             {{host: s1}}}}], timeout: {}s}}]}}}}",
            round + 1
        )),
        "gateway rule" => one(&format!(
            "{{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {{name: \
             changing, namespace: own}}, spec: {{hosts: [changing.example.com], gateways: \
             [istio-system/web], http: [{{route: [{{destination: {{host: s1}}}}], timeout: \
             {}s}}]}}}}",
            round + 1
        )),
        "service" => one(&format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: new{round}, namespace: n2}}, spec: \
             {{clusterIP: 10.9.0.{}, ports: [{{name: http, port: 80}}]}}}}",
            round + 1
        )),
        "tcp service" => one(&format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: newtcp{round}, namespace: n2}}, \
             spec: {{clusterIP: 10.9.1.{}, ports: [{{name: tcp, port: 5432}}]}}}}",
            round + 1
        )),
        "policy" => one(&format!(
            "{{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {{name: \
             changing, namespace: n3}}, spec: {{host: s3, trafficPolicy: {{connectionPool: {{http: \
             {{http1MaxPendingRequests: {}}}}}}}}}}}",
            round + 1
        )),
        _ => one(&format!(
            "{{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {{name: more, \
             namespace: own}}, spec: {{address: 10.8.0.{}, labels: {{app: s1}}}}}}",
            round + 1
        )),
    }
}

#[test]
#[ignore = "a measurement, see above"]
fn one_change_for_one_proxy() {
    const ROUNDS: u32 = 12;
    let sizes = std::env::var("SIZES").unwrap_or_else(|_| "100,1000,5000".to_owned());
    for with_sidecar in [false, true] {
        for size in sizes.split(',').map(|size| size.parse().unwrap()) {
            let text = mesh(size);
            let text = match with_sidecar {
                true => text + SIDECAR,
                false => text,
            };
            let first = support::snapshot(text.trim_start_matches("---\n"));
            for (kind, proxy) in proxies() {
                if kind.contains("Sidecar") && !with_sidecar {
                    continue;
                }
                let kind = match with_sidecar {
                    true => format!("{kind} (a Sidecar is there)"),
                    false => kind.to_owned(),
                };
                for which in [
                    "rule",
                    "gateway rule",
                    "service",
                    "tcp service",
                    "policy",
                    "endpoint",
                ] {
                    let (text, total) = measured(&first, &proxy, which, ROUNDS);
                    println!("{size:5} | {kind} | {which} | {total:7.0} |{text}");
                }
            }
        }
    }
}

/// The fastest of each part, in microseconds, and their sum.
fn measured(first: &MeshSnapshot, proxy: &Proxy, which: &str, rounds: u32) -> (String, f64) {
    let translator = support::translator();
    translator.advance(first, &Changes::everything());
    let client = Client::connect(&translator, first, proxy);
    let mut best: BTreeMap<&str, Duration> = BTreeMap::new();
    let mut snapshot = first.clone();
    let mut held: Option<Object> = None;
    for round in 0..rounds {
        let after = change(which, round);
        let change = ObjectChange {
            before: held
                .as_ref()
                .filter(|held| held.meta.name == after.meta.name),
            after: Some(&after),
        };
        let mut times = BTreeMap::new();
        let started = Instant::now();
        let (now, changes) = snapshot.updated(&[change], u64::from(round) + 2).unwrap();
        times.insert("model", started.elapsed());
        let started = Instant::now();
        translator.advance(&now, &changes);
        times.insert("advance", started.elapsed());
        let started = Instant::now();
        let affected = lateen_translate::affected(&now, &changes, |_| false).unwrap();
        times.insert("affected", started.elapsed());
        client.push(&translator, &snapshot, &now, &affected, &mut times);
        let started = Instant::now();
        translator.sweep();
        times.insert("sweep", started.elapsed());
        for (part, time) in times {
            let least = best.entry(part).or_insert(time);
            *least = time.min(*least);
        }
        held = Some(after);
        snapshot = now;
    }
    let micros = |time: &Duration| time.as_secs_f64() * 1e6;
    let parts = best.iter().map(|(part, time)| {
        let part = part.rsplit('.').next().unwrap_or(part);
        format!(" {part} {:.0}", micros(time))
    });
    (parts.collect(), best.values().map(micros).sum())
}
