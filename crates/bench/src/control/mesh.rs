//! The objects of a mesh of some size: names, documents, and where the API has them.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::Kind;

/// Namespaces that services are spread over; clients are all in the first.
const NAMESPACES: usize = 50;
/// Objects per file.
const FILE: usize = 500;

/// A mesh, written as a directory of documents.
pub struct Mesh {
    directory: PathBuf,
}

impl Mesh {
    pub fn write(root: &Path, services: usize, kind: Kind) -> std::io::Result<Mesh> {
        let directory = root.join("config");
        std::fs::create_dir_all(&directory)?;
        // The directory source owns what it declares, so what is changed over the API is written
        // there and not here: rules and the first workload of each service.
        if kind == Kind::Gateway {
            std::fs::write(directory.join("gateway.yaml"), gateway().to_string())?;
        }
        for (index, chunk) in (0..services).collect::<Vec<_>>().chunks(FILE).enumerate() {
            let mut text = String::new();
            for service in chunk {
                for document in standing(*service, kind) {
                    // Writing into a String does not fail.
                    let _ = writeln!(text, "---\n{document}");
                }
            }
            std::fs::write(directory.join(format!("{index:03}.yaml")), text)?;
        }
        Ok(Mesh { directory })
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

/// What never changes: a service, its workloads, a DestinationRule and a VirtualService.
fn standing(service: usize, kind: Kind) -> Vec<Value> {
    let name = name(service);
    let protocol = match kind {
        Kind::Captured if service % 10 == 3 => "tcp",
        _ => "http",
    };
    vec![
        service_of(&name, protocol).1,
        workload_named(&name, "v1", "10.1.0.1").1,
        workload_named(&name, "v2", "10.1.0.2").1,
        json!({
            "apiVersion": "networking.istio.io/v1", "kind": "DestinationRule",
            "metadata": {"name": name, "namespace": namespace(service)},
            "spec": {
                "host": host(&name),
                "subsets": [{"name": "v1", "labels": {"version": "v1"}}],
            },
        }),
        json!({
            "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
            "metadata": {"name": name, "namespace": namespace(service)},
            "spec": {
                "hosts": [host(&name)],
                "http": [
                    {
                        "match": [{"headers": {"x-canary": {"exact": "true"}}}],
                        "route": [{"destination": {"host": host(&name), "subset": "v1"}}],
                    },
                    {"route": [{"destination": {"host": host(&name)}}]},
                ],
            },
        }),
    ]
}

/// `s17n17`: the namespace is part of the name, so that it is known from it.
pub fn name(service: usize) -> String {
    format!("s{service}n{}", service % NAMESPACES)
}

fn namespace(service: usize) -> String {
    format!("n{}", service % NAMESPACES)
}

fn namespace_of(name: &str) -> String {
    let number = name.rsplit_once('n').map_or("0", |(_, number)| number);
    match number.parse::<usize>() {
        Ok(_) if name.starts_with('s') => format!("n{number}"),
        _ => "n0".to_owned(),
    }
}

fn host(name: &str) -> String {
    format!("{name}.{}.svc.cluster.local", namespace_of(name))
}

/// The cluster of a service's port.
pub fn cluster(name: &str) -> String {
    format!("outbound|80||{}", host(name))
}

/// Any address of its own: FNV-1a of the name.
fn address(name: &str) -> String {
    let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    let [_, a, b, c] = hash.to_be_bytes();
    format!("10.{a}.{b}.{c}")
}

/// A Service that speaks HTTP.
pub fn service(name: &str) -> (String, Value) {
    service_of(name, "http")
}

fn service_of(name: &str, protocol: &str) -> (String, Value) {
    let namespace = namespace_of(name);
    let document = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "clusterIP": address(name),
            "selector": {"app": name},
            "ports": [{"name": protocol, "port": 80}],
        },
    });
    (
        format!("/api/v1/namespaces/{namespace}/services/{name}"),
        document,
    )
}

/// One more workload of a service, at an address.
pub fn workload(service: usize, replica: usize, address: &str) -> (String, Value) {
    workload_named(&name(service), &format!("extra{replica}"), address)
}

fn workload_named(app: &str, version: &str, address: &str) -> (String, Value) {
    let namespace = namespace_of(app);
    let name = format!("{app}-{version}");
    let document = json!({
        "apiVersion": "networking.istio.io/v1", "kind": "WorkloadEntry",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"address": address, "labels": {"app": app, "version": version}},
    });
    let path =
        format!("/apis/networking.istio.io/v1/namespaces/{namespace}/workloadentries/{name}");
    (path, document)
}

/// What clients that are gateways serve; nobody else cares.
fn gateway() -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "Gateway",
        "metadata": {"name": "bench", "namespace": "n0"},
        "spec": {
            "selector": {"bench": "gateway"},
            "servers": [{
                "port": {"number": 80, "name": "http", "protocol": "HTTP"},
                "hosts": ["*.example.com"],
            }],
        },
    })
}

/// A rule of the clients' own namespace for a name of its own, with a marker in it.
pub fn rule(service: usize, marker: &str, kind: Kind) -> (String, Value) {
    let name = format!("changing{service}");
    let document = json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": {"name": name, "namespace": "n0"},
        "spec": {
            "hosts": [format!("{name}.example.com")],
            "gateways": [if kind == Kind::Gateway { "bench" } else { "mesh" }],
            "http": [{
                "headers": {"request": {"set": {"x-marker": marker}}},
                "route": [{"destination": {"host": host(&self::name(service))}}],
            }],
        },
    });
    let path = format!("/apis/networking.istio.io/v1/namespaces/n0/virtualservices/{name}");
    (path, document)
}
