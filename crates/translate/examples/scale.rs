//! Prints what one change costs in meshes of growing size: snapshot, and the resources of one
//! sidecar that sees every service. `cargo run --release -p lateen-translate --example scale`.

use std::sync::Arc;
use std::time::Instant;

use lateen_api::Object;
use lateen_model::{MeshSettings, MeshSnapshot, ObjectChange, Proxy};
use lateen_translate::{Encoded, Translator, type_url};

fn main() {
    println!(
        "| services | first, ms | one rule changed: snapshot, ms | routes, ms | clusters, ms | endpoints, ms |"
    );
    println!("|---|---|---|---|---|---|");
    for services in [100, 1000, 5000] {
        row(services);
    }
}

fn row(services: usize) {
    let all = objects(services);
    let proxy = sidecar();
    let translator: Translator<Encoded> = Translator::new(|encoded| encoded);
    let settings = Arc::new(MeshSettings::default());
    let generate = |snapshot: &MeshSnapshot, url: &str| {
        let start = Instant::now();
        std::hint::black_box(translator.generate(snapshot, &proxy, url, None));
        millis(start)
    };

    let start = Instant::now();
    let first = MeshSnapshot::build(all.iter(), 1, settings, None);
    for url in [type_url::ROUTE, type_url::CLUSTER, type_url::ENDPOINT] {
        generate(&first, url);
    }
    let cold = millis(start);

    let added = parse(&rule(0, "x"));
    let changes: Vec<ObjectChange<'_>> = added
        .iter()
        .map(|object| ObjectChange {
            before: None,
            after: Some(object),
        })
        .collect();
    let start = Instant::now();
    let Some((next, changes)) = first.updated(&changes, 2) else {
        unreachable!("a rule is no setting")
    };
    std::hint::black_box(lateen_translate::affected(&next, &changes, |_| false));
    let snapshot = millis(start);
    let routes = generate(&next, type_url::ROUTE);
    let clusters = generate(&next, type_url::CLUSTER);
    let endpoints = generate(&next, type_url::ENDPOINT);
    println!(
        "| {services} | {cold:.1} | {snapshot:.2} | {routes:.2} | {clusters:.2} | {endpoints:.2} |"
    );
}

fn millis(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1000.0
}

fn objects(services: usize) -> Vec<Object> {
    let mut yaml = String::new();
    for i in 0..services {
        yaml += &format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: s{i}, namespace: n{}}}\n\
             spec: {{selector: {{app: s{i}}}, ports: [{{name: http, port: 80}}]}}\n---\n",
            i % 50
        );
        for replica in 0..2 {
            yaml += &format!(
                "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: s{i}-{replica}, namespace: n{}}}\n\
                 spec: {{address: 10.0.0.1, labels: {{app: s{i}}}}}\n---\n",
                i % 50
            );
        }
        yaml += &rule(i, "r");
    }
    parse(&yaml)
}

fn rule(service: usize, name: &str) -> String {
    let namespace = service % 50;
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}{service}, namespace: n{namespace}}}\n\
         spec: {{hosts: [s{service}], http: [{{match: [{{headers: {{a: {{exact: b}}}}}}], route: [{{destination: {{host: s{service}}}}}]}}, {{route: [{{destination: {{host: s{service}}}}}]}}]}}\n---\n"
    )
}

fn parse(yaml: &str) -> Vec<Object> {
    lateen_api::parse("scale.yaml", yaml, lateen_api::Mode::Strict)
        .objects
        .into_iter()
        .map(|p| p.object)
        .collect()
}

fn sidecar() -> Proxy {
    let metadata = serde_json::json!({"INTERCEPTION_MODE": "NONE", "HTTP_PROXY_PORT": 15101});
    match Proxy::from_node("sidecar~10.0.0.1~s0-0.n0~n0.svc.cluster.local", &metadata) {
        Ok(proxy) => proxy,
        Err(error) => unreachable!("{error}"),
    }
}
