//! After any sequence of changes of anything, a client that is only told what may have changed holds
//! what it would be given anew: nothing that a change touches is left out, and nothing that is
//! carried over from one snapshot to the next is stale.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests stop at what is not as expected"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lateen_api::Object;
use lateen_model::{Interception, MeshSnapshot, NamespacedName, ObjectChange, Proxy};
use lateen_translate::{Encoded, Translator, own_names, type_url};

use crate::objects::{OBJECTS, object};

mod objects;
#[path = "../support/mod.rs"]
mod support;

const TYPES: [&str; 7] = [
    type_url::CLUSTER,
    type_url::ENDPOINT,
    type_url::LISTENER,
    type_url::ROUTE,
    type_url::VIRTUAL_HOST,
    type_url::NAME_TABLE,
    type_url::SECRET,
];

/// What gateways ask for, whether it is there or not.
const CREDENTIALS: [&str; 4] = [
    "kubernetes://web",
    "kubernetes://web-cacert",
    "kubernetes://clients-cacert",
    "kubernetes://other/web",
];

/// Explicit and captured sidecars, of two namespaces, one whose workload asks the mesh for names and
/// one that is behind the address of an endpoint, and gateways with and without a service account.
fn proxies() -> Vec<Proxy> {
    let captured = |namespace: &str, name: &str, address: &str| {
        let id = format!("sidecar~{address}~{name}.{namespace}~{namespace}.svc.cluster.local");
        let metadata = serde_json::json!({"LABELS": {"app": "reviews", "version": "v1"}});
        let mut proxy = Proxy::from_node(&id, &metadata).unwrap();
        proxy.interception = Interception::Redirect;
        proxy
    };
    let mut asking = captured("default", "reviews-v2", "10.7.0.1");
    asking.dns_capture = true;
    let mut with_account = support::gateway();
    with_account.account = Some("ingress".to_owned());
    let all = [
        support::sidecar(),
        captured("default", "reviews-v1", "10.7.0.2"),
        captured("other", "somebody", "10.2.0.1"),
        asking,
        support::gateway(),
        with_account,
    ];
    let by_name = |mut proxy: Proxy| {
        proxy.virtual_hosts_by_name = true;
        proxy
    };
    let mut whole = captured("default", "reviews-v3", "10.2.0.3");
    whole.labels.clear();
    all.into_iter().map(by_name).chain([whole]).collect()
}

/// What a client holds of a type, by name.
type Held = BTreeMap<String, Arc<Encoded>>;

fn everything(
    translator: &Translator<Encoded>,
    snapshot: &MeshSnapshot,
    proxy: &Proxy,
    url: &str,
) -> Held {
    let credentials = CREDENTIALS.map(str::to_owned).into();
    let names = (url == type_url::SECRET).then_some(&credentials);
    let all = translator.generate(snapshot, proxy, url, names);
    all.into_iter().map(|one| (one.name.clone(), one)).collect()
}

fn table_of(host: &str) -> Option<String> {
    Some(host.rsplit_once('/')?.0.to_owned())
}

/// One connected proxy, and what it holds of each type.
struct Client {
    proxy: Proxy,
    held: BTreeMap<&'static str, Held>,
}

impl Client {
    /// A push, as a session of delta xDS carries it out.
    fn push(
        &mut self,
        translator: &Translator<Encoded>,
        (before, now): (&MeshSnapshot, &MeshSnapshot),
        affected: Option<&lateen_translate::Affected>,
    ) {
        let proxy = &self.proxy;
        for url in TYPES {
            let names = match affected.map(|affected| affected.get(url)) {
                None => None,
                // Whoever gets a new cluster asks for its endpoints.
                Some(None) if url == type_url::ENDPOINT => Some(BTreeSet::new()),
                Some(None) => continue,
                Some(Some(names)) => names.clone(),
            };
            let own = [before, now].map(|snapshot| own_names(snapshot, proxy, url));
            let names = own.into_iter().fold(names, |names, own| {
                Some(names?.into_iter().chain(own?).collect())
            });
            let clusters = self.held.get(type_url::CLUSTER);
            let clusters: BTreeSet<String> = clusters
                .into_iter()
                .flat_map(|of| of.keys().cloned())
                .collect();
            let held = self.held.entry(url).or_default();
            if url == type_url::ENDPOINT {
                // Those of its clusters, and of new ones at once.
                held.retain(|name, _| clusters.contains(name));
                let names = clusters
                    .into_iter()
                    .filter(|name| {
                        let told = names.as_ref().is_none_or(|names| names.contains(name));
                        told || !held.contains_key(name)
                    })
                    .collect();
                take(
                    held,
                    &names,
                    translator.generate(now, proxy, url, Some(&names)),
                );
                continue;
            }
            if url == type_url::VIRTUAL_HOST && affected.is_some() {
                let all = everything(translator, now, proxy, url);
                let known: BTreeSet<_> = held.keys().filter_map(|name| table_of(name)).collect();
                let there: BTreeSet<_> = all.keys().filter_map(|name| table_of(name)).collect();
                let stay = there.intersection(&known).cloned().collect();
                let changed = translator.changed_virtual_hosts(before, now, proxy, &stay);
                held.retain(|name, _| table_of(name).is_some_and(|table| there.contains(&table)));
                let come =
                    |name: &String| table_of(name).is_some_and(|table| !known.contains(&table));
                let come = all.keys().filter(|name| come(name)).cloned();
                let names = changed.iter().cloned().chain(come).collect();
                take(
                    held,
                    &names,
                    translator.generate(now, proxy, url, Some(&names)),
                );
                continue;
            }
            match names {
                None => *held = everything(translator, now, proxy, url),
                Some(mut names) => {
                    if url == type_url::ROUTE {
                        // Tables are asked for by those who have a listener for them.
                        let listed = everything(translator, now, proxy, url);
                        names.retain(|name| held.contains_key(name) || listed.contains_key(name));
                        held.retain(|name, _| listed.contains_key(name));
                        names.retain(|name| listed.contains_key(name));
                    }
                    take(
                        held,
                        &names,
                        translator.generate(now, proxy, url, Some(&names)),
                    );
                }
            }
        }
    }
}

/// Of these names, what is there replaces what was held, and the rest goes.
fn take(held: &mut Held, names: &BTreeSet<String>, found: Vec<Arc<Encoded>>) {
    held.retain(|name, _| !names.contains(name));
    held.extend(found.into_iter().map(|one| (one.name.clone(), one)));
}

fn random(mut state: u64) -> impl FnMut(usize) -> usize {
    move |bound| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % bound as u64) as usize
    }
}

fn sequence(seed: u64, rounds: u64) {
    let translator = support::translator();
    let mut snapshot = support::snapshot("");
    translator.advance(&snapshot, &lateen_model::Changes::everything());
    let mut clients: Vec<Client> = proxies()
        .into_iter()
        .map(|proxy| Client {
            proxy,
            held: BTreeMap::new(),
        })
        .collect();
    for client in &mut clients {
        client.push(&translator, (&snapshot, &snapshot), None);
    }
    let mut held: BTreeMap<usize, Object> = BTreeMap::new();
    let mut next = random(seed);
    for round in 0..rounds {
        // Most often one change, at times two at once.
        let mut news: BTreeMap<usize, Option<Object>> = BTreeMap::new();
        for _ in 0..=usize::from(next(4) == 0) {
            let which = next(OBJECTS.len());
            let after = (next(3) > 0).then(|| object(&OBJECTS[which], next(6)));
            news.insert(which, after);
        }
        let changes: Vec<_> = news
            .iter()
            .map(|(which, after)| ObjectChange {
                before: held.get(which),
                after: after.as_ref(),
            })
            .collect();
        let (now, changes) = snapshot.updated(&changes, round + 2).unwrap();
        translator.advance(&now, &changes);
        let is_connected = |(namespace, name): &NamespacedName| {
            let mut proxies = clients.iter().map(|client| &client.proxy);
            proxies.any(|proxy| proxy.name == *name && proxy.namespace == *namespace)
        };
        let affected = lateen_translate::affected(&now, &changes, is_connected);
        let anew = support::translator();
        for (at, client) in clients.iter_mut().enumerate() {
            client.push(&translator, (&snapshot, &now), affected.as_ref());
            for url in TYPES {
                let mut fresh = everything(&anew, &now, &client.proxy, url);
                if url == type_url::ENDPOINT {
                    let clusters = client.held[type_url::CLUSTER].keys().cloned().collect();
                    let of = anew.generate(&now, &client.proxy, url, Some(&clusters));
                    fresh = of.into_iter().map(|one| (one.name.clone(), one)).collect();
                }
                let held = &client.held[url];
                let what = format!("seed {seed} round {round} proxy {at} {url} after {news:?}");
                let names = |of: &Held| of.keys().cloned().collect::<Vec<_>>();
                assert_eq!(names(held), names(&fresh), "{what}");
                let differs = fresh
                    .iter()
                    .find(|(name, one)| held[*name].bytes != one.bytes);
                assert!(
                    differs.is_none(),
                    "{:?} {what}",
                    differs.map(|(name, _)| name)
                );
            }
        }
        translator.sweep();
        for (which, after) in news {
            match after {
                Some(object) => held.insert(which, object),
                None => held.remove(&which),
            };
        }
        snapshot = now;
    }
}

#[test]
fn a_client_that_is_told_what_may_have_changed_holds_what_it_would_be_given_anew() {
    // More to look for what these do not find: SEEDS=100.
    let seeds = std::env::var("SEEDS").unwrap_or_else(|_| "2".to_owned());
    for seed in 1..=seeds.parse::<u64>().unwrap() {
        sequence(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15), 80);
    }
}
