//! Virtual hosts that are resources of their own: the same content as in whole tables, and after a
//! change of rules the same as if everything were made anew.

use std::collections::{BTreeMap, BTreeSet};

use lateen_api::Object;
use lateen_model::{MeshSnapshot, ObjectChange, Proxy};
use lateen_translate::{Encoded, Translator, type_url};

mod support;

/// Rules of every sort: for one service, for two, for a pattern, for nobody, for gateways, older and
/// younger, of another namespace, by the labels of the client, without routes of HTTP.
const RULES: [&str; 11] = [
    "{name: a, hosts: [reviews], http: HTTP}",
    "{name: b, hosts: [reviews, ratings], http: HTTP}",
    "{name: c, hosts: ['*.default.svc.cluster.local'], http: HTTP}",
    "{name: d, hosts: [ext.test], http: HTTP}",
    "{name: e, hosts: [app.test], gateways: [web], http: HTTP}",
    "{name: f, hosts: [ratings], exportTo: ['.'], http: HTTP}",
    "{name: g, hosts: [ratings.default.svc.cluster.local], namespace: other, http: HTTP}",
    "{name: h, hosts: [ratings], http: LABELLED}",
    "{name: i, hosts: [mysql], tcp: [{route: [{destination: {host: mysql}}]}]}",
    "{name: j, hosts: [late.test], http: [{route: [{destination: {host: late}}]}]}",
    "{name: k, hosts: [late, ext.test], http: HTTP}",
];

/// Services and what counts for them, two versions of each: that come with another port or name, that
/// want the name or the address of another, that stand behind the host of a rule, without an address,
/// seen by some.
const SERVICES: [(&str, &str, [&str; 2]); 10] = [
    (
        "v1/Service",
        "late",
        [
            "{clusterIP: 10.9.0.1, ports: [{name: http, port: 80}]}",
            "{clusterIP: 10.9.0.1, ports: [{name: http, port: 80}, {name: http-b, port: 9080}]}",
        ],
    ),
    (
        "v1/Service",
        "same-address",
        [
            "{clusterIP: 10.9.0.1, ports: [{name: http, port: 80}]}",
            "{clusterIP: 10.9.0.2, ports: [{name: http, port: 9080}]}",
        ],
    ),
    (
        "v1/Service",
        "headless",
        [
            "{clusterIP: None, ports: [{name: http, port: 80}]}",
            "{clusterIP: None, ports: [{name: tcp, port: 80}]}",
        ],
    ),
    (
        "v1/Service",
        "sniffed",
        [
            "{clusterIP: 10.9.0.3, ports: [{name: web, port: 9080}]}",
            "{clusterIP: 10.9.0.3, ports: [{name: http, port: 9080}]}",
        ],
    ),
    (
        "networking.istio.io/v1/ServiceEntry",
        "ext",
        [
            "{hosts: [ext.test], resolution: DNS, ports: [{name: http, number: 80, protocol: HTTP}]}",
            "{hosts: [ext.test], resolution: DNS, exportTo: [other], \
          ports: [{name: http, number: 8080, protocol: HTTP}]}",
        ],
    ),
    (
        "networking.istio.io/v1/ServiceEntry",
        "short",
        [
            "{hosts: [late.default], resolution: DNS, ports: [{name: http, number: 80, protocol: HTTP}]}",
            "{hosts: [late], resolution: DNS, ports: [{name: http, number: 80, protocol: HTTP}]}",
        ],
    ),
    (
        "networking.istio.io/v1/ServiceEntry",
        "wild",
        [
            "{hosts: ['*.test'], ports: [{name: http, number: 80, protocol: HTTP}]}",
            "{hosts: [late.test, two.test], resolution: DNS, \
          ports: [{name: http, number: 80, protocol: HTTP}]}",
        ],
    ),
    (
        "networking.istio.io/v1/DestinationRule",
        "plain",
        [
            "{host: late, subsets: [{name: a, labels: {a: b}}]}",
            "{host: late, trafficPolicy: {loadBalancer: {simple: RANDOM}}}",
        ],
    ),
    (
        "networking.istio.io/v1/DestinationRule",
        "hashing",
        [
            "{host: reviews, trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true}}}}",
            "{host: late, trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: a}}}}",
        ],
    ),
    (
        "networking.istio.io/v1/DestinationRule",
        "selecting",
        [
            "{host: late, workloadSelector: {matchLabels: {app: reviews}}}",
            "{host: late}",
        ],
    ),
];

/// One version of a rule or service.
fn object(which: usize, version: u32) -> Object {
    let Some((kind, name, specs)) = which.checked_sub(RULES.len()).map(|at| SERVICES[at]) else {
        return rule(which, version);
    };
    let (api, kind) = kind.rsplit_once('/').unwrap_or_default();
    let spec = specs[version as usize % 2];
    let yaml = format!(
        "apiVersion: {api}\nkind: {kind}\nmetadata: {{name: {name}, namespace: default, \
         creationTimestamp: '2026-02-0{}T00:00:00Z'}}\nspec: {spec}\n",
        which % 9 + 1
    );
    support::objects(&yaml).remove(0)
}

/// One version of a rule.
fn rule(which: usize, version: u32) -> Object {
    let timeout = format!("timeout: {}s", version + 1);
    let http = format!("[{{route: [{{destination: {{host: reviews}}}}], {timeout}}}]");
    let labelled = format!(
        "[{{match: [{{sourceLabels: {{app: reviews}}}}], \
         route: [{{destination: {{host: ratings, port: {{number: 9080}}}}}}], {timeout}}}]"
    );
    let text = RULES[which]
        .replace("HTTP", &http)
        .replace("LABELLED", &labelled);
    let after = RULES[which].trim_start_matches("{name: ");
    let name = after.split(',').next().unwrap_or_default();
    let namespace = match text.contains("namespace: other") {
        true => "other",
        false => "default",
    };
    let spec =
        text.replacen(&format!("name: {name}, "), "", 1)
            .replacen("namespace: other, ", "", 1);
    let created = format!("2026-01-{:02}T00:00:00Z", 20 - which);
    let yaml = format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\n\
         metadata: {{name: {name}, namespace: {namespace}, creationTimestamp: '{created}'}}\n\
         spec: {spec}\n"
    );
    support::objects(&yaml).remove(0)
}

/// Who looks: an explicit proxy, one of another namespace, a captured sidecar, a gateway; in both
/// forms.
fn proxies() -> Vec<Proxy> {
    let mut captured = support::sidecar();
    captured.interception = lateen_model::Interception::Redirect;
    let mut other = support::sidecar();
    other.namespace = "other".to_owned();
    other.dns_domain = "other.svc.cluster.local".to_owned();
    let whole = [support::sidecar(), other, captured, support::gateway()];
    let apart = whole.clone().map(|mut proxy| {
        proxy.virtual_hosts_by_name = true;
        proxy
    });
    whole.into_iter().chain(apart).collect()
}

type Made = BTreeMap<(&'static str, String), Vec<u8>>;

fn made(translator: &Translator<Encoded>, snapshot: &MeshSnapshot, proxy: &Proxy) -> Made {
    let types = [type_url::ROUTE, type_url::VIRTUAL_HOST];
    let all = types.into_iter().flat_map(|url| {
        let all = translator.generate(snapshot, proxy, url, None);
        all.into_iter()
            .map(move |one| ((url, one.name.clone()), one.bytes.clone()))
    });
    all.collect()
}

fn tables(made: &Made) -> BTreeSet<String> {
    let hosts = made
        .keys()
        .filter(|(url, _)| *url == type_url::VIRTUAL_HOST);
    hosts
        .filter_map(|(_, name)| Some(name.rsplit_once('/')?.0.to_owned()))
        .collect()
}

#[test]
fn after_any_change_of_rules_and_services_tables_are_what_they_would_be_made_anew() {
    let proxies = proxies();
    let translator = support::translator();
    let mut snapshot = support::snapshot("");
    let mut held: BTreeMap<usize, Object> = BTreeMap::new();
    let mut random: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut next = |bound: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % bound
    };
    for round in 0..400 {
        let before: Vec<Made> = proxies
            .iter()
            .map(|proxy| made(&translator, &snapshot, proxy))
            .collect();
        let which = next((RULES.len() + SERVICES.len()) as u64) as usize;
        let after = (next(4) > 0).then(|| object(which, round));
        let change = ObjectChange {
            before: held.get(&which),
            after: after.as_ref(),
        };
        let (now, changes) = snapshot.updated(&[change], u64::from(round) + 2).unwrap();
        translator.advance(&now, &changes);
        let anew = support::translator();
        for (proxy, before) in proxies.iter().zip(&before) {
            let (carried, fresh) = (made(&translator, &now, proxy), made(&anew, &now, proxy));
            let names: Vec<_> = fresh.keys().collect();
            assert_eq!(carried.keys().collect::<Vec<_>>(), names, "{round} {which}");
            let differs = fresh.iter().find(|(name, bytes)| carried[*name] != **bytes);
            let differs = differs.map(|(name, _)| name);
            assert!(differs.is_none(), "{round} {which} {differs:?}");

            // What is said to have changed is what did.
            let is_host = |(url, _): &&(&str, String)| *url == type_url::VIRTUAL_HOST;
            let all = before.keys().chain(fresh.keys()).filter(is_host);
            let differ: BTreeSet<String> = all
                .filter(|name| before.get(*name) != fresh.get(*name))
                .map(|(_, name)| name.clone())
                .collect();
            let told = translator.changed_virtual_hosts(&snapshot, &now, proxy, &tables(&fresh));
            assert_eq!(told, differ, "{round} {which}");
        }
        match after {
            Some(rule) => held.insert(which, rule),
            None => held.remove(&which),
        };
        snapshot = now;
    }
}

#[test]
fn a_table_by_name_and_a_whole_one_say_the_same() {
    use envoy_types::pb::envoy::config::route::v3::{RouteConfiguration, VirtualHost};
    use prost::Message;

    let snapshot = support::next("", None);
    let proxies = proxies();
    for (whole, apart) in proxies.iter().zip(&proxies[4..]) {
        let translator = support::translator();
        let of = |proxy: &Proxy| made(&translator, &snapshot, proxy);
        let (whole, apart) = (of(whole), of(apart));
        for ((_, name), bytes) in &whole {
            let table = RouteConfiguration::decode(&**bytes).unwrap();
            let divided = &apart[&(type_url::ROUTE, name.clone())];
            let divided = RouteConfiguration::decode(&**divided).unwrap();
            if name.contains(':') {
                // Of one service.
                assert_eq!(table, divided);
                continue;
            }
            assert!(
                divided.vhds.is_some() && divided.virtual_hosts.is_empty(),
                "{name}"
            );
            assert!(!table.virtual_hosts.is_empty(), "{name}");
            for mut host in table.virtual_hosts {
                host.name = format!("{name}/{}", host.name);
                let own = &apart[&(type_url::VIRTUAL_HOST, host.name.clone())];
                assert_eq!(VirtualHost::decode(&**own).unwrap(), host);
            }
        }
    }
}
