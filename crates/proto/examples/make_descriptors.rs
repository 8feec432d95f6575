//! Makes `descriptors.bin.z` and `transport_sockets.bin.z` from the .proto files that the `envoy-types` crate brings along.
//!
//! Run in this crate's folder, after `envoy-types` changed its version:
//! `cargo run -p lateen-proto --example make_descriptors`. Only what a reader of configuration needs
//! stays: no comments, no annotations, no services.

use flate2::Compression;
use flate2::write::ZlibEncoder;
use prost::Message;
use prost_reflect::prost_types::{
    DescriptorProto, FieldOptions, FileDescriptorProto, FileDescriptorSet, MessageOptions,
};
use protox::Compiler;
use std::error::Error;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The messages that travel between control plane and proxy, or that the admin port shows. What they
/// import comes along.
const ROOTS: &[&str] = &[
    "envoy/admin/v3/clusters.proto",
    "envoy/admin/v3/config_dump.proto",
    "envoy/admin/v3/listeners.proto",
    "envoy/admin/v3/server_info.proto",
    "envoy/config/bootstrap/v3/bootstrap.proto",
    "envoy/config/cluster/v3/cluster.proto",
    "envoy/config/endpoint/v3/endpoint.proto",
    "envoy/config/listener/v3/listener.proto",
    "envoy/config/route/v3/route.proto",
    "envoy/extensions/access_loggers/file/v3/file.proto",
    "envoy/extensions/access_loggers/stream/v3/stream.proto",
    "envoy/extensions/filters/http/cors/v3/cors.proto",
    "envoy/extensions/filters/http/ext_authz/v3/ext_authz.proto",
    "envoy/extensions/filters/http/fault/v3/fault.proto",
    "envoy/extensions/filters/http/grpc_stats/v3/config.proto",
    "envoy/extensions/filters/http/jwt_authn/v3/config.proto",
    "envoy/extensions/filters/http/rbac/v3/rbac.proto",
    "envoy/extensions/filters/http/router/v3/router.proto",
    "envoy/extensions/filters/http/upstream_codec/v3/upstream_codec.proto",
    "envoy/extensions/filters/listener/http_inspector/v3/http_inspector.proto",
    "envoy/extensions/filters/listener/original_dst/v3/original_dst.proto",
    "envoy/extensions/filters/listener/proxy_protocol/v3/proxy_protocol.proto",
    "envoy/extensions/filters/listener/tls_inspector/v3/tls_inspector.proto",
    "envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.proto",
    "envoy/extensions/filters/network/rbac/v3/rbac.proto",
    "envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.proto",
    "envoy/extensions/http/header_formatters/preserve_case/v3/preserve_case.proto",
    "envoy/extensions/load_balancing_policies/least_request/v3/least_request.proto",
    "envoy/extensions/load_balancing_policies/random/v3/random.proto",
    "envoy/extensions/load_balancing_policies/round_robin/v3/round_robin.proto",
    "envoy/extensions/load_balancing_policies/wrr_locality/v3/wrr_locality.proto",
    "envoy/extensions/request_id/uuid/v3/uuid.proto",
    "envoy/extensions/retry/host/previous_hosts/v3/previous_hosts.proto",
    "envoy/extensions/retry/priority/previous_priorities/v3/previous_priorities_config.proto",
    "envoy/extensions/transport_sockets/proxy_protocol/v3/upstream_proxy_protocol.proto",
    "envoy/extensions/transport_sockets/raw_buffer/v3/raw_buffer.proto",
    "envoy/extensions/transport_sockets/tls/v3/tls.proto",
    "envoy/extensions/upstreams/http/v3/http_protocol_options.proto",
    "envoy/extensions/upstreams/tcp/v3/tcp_protocol_options.proto",
    "google/protobuf/any.proto",
    "google/protobuf/empty.proto",
    "google/protobuf/field_mask.proto",
    "udpa/type/v1/typed_struct.proto",
    "xds/type/v3/typed_struct.proto",
];

/// What a bootstrap says about TLS to the control plane, which every sidecar reads at its start.
const TRANSPORT_SOCKETS: &[&str] = &[
    "envoy/extensions/transport_sockets/raw_buffer/v3/raw_buffer.proto",
    "envoy/extensions/transport_sockets/tls/v3/tls.proto",
];

/// Files that only define annotations.
const ANNOTATIONS: &[&str] = &[
    "validate/validate.proto",
    "envoy/annotations/",
    "udpa/annotations/",
    "xds/annotations/",
    "google/api/annotations.proto",
    "google/api/http.proto",
    "google/protobuf/descriptor.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    let protos = envoy_types_folder()?.join("proto");
    write("descriptors.bin.z", ROOTS, &protos)?;
    write("transport_sockets.bin.z", TRANSPORT_SOCKETS, &protos)
}

/// Packs these files and what they import.
fn write(name: &str, roots: &[&str], protos: &Path) -> Result<(), Box<dyn Error>> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let includes = [
        "data-plane-api",
        "googleapis",
        "protoc-gen-validate",
        "xds",
        "client_model",
        "cel-spec/proto",
        "opentelemetry-proto",
    ]
    .map(|folder| protos.join(folder))
    .into_iter()
    .chain([here.join("protos")]);
    let mut compiler = Compiler::new(includes)?;
    compiler
        .include_imports(true)
        .include_source_info(false)
        .open_files(roots)?;
    let all = compiler.file_descriptor_set();
    let file: Vec<FileDescriptorProto> = all
        .file
        .into_iter()
        .filter(|f| !is_annotation(f.name()))
        .map(slim)
        .collect();
    let bytes = FileDescriptorSet { file }.encode_to_vec();
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(&bytes)?;
    let packed = encoder.finish()?;
    std::fs::write(here.join(name), &packed)?;
    println!("{name}: {} bytes, {} unpacked", packed.len(), bytes.len());
    Ok(())
}

fn is_annotation(name: &str) -> bool {
    ANNOTATIONS.iter().any(|a| name.starts_with(a))
}

fn slim(mut file: FileDescriptorProto) -> FileDescriptorProto {
    let kept = file
        .dependency
        .iter()
        .filter(|d| !is_annotation(d))
        .cloned()
        .collect();
    file.dependency = kept;
    file.public_dependency.clear();
    file.weak_dependency.clear();
    file.source_code_info = None;
    file.options = None;
    file.service.clear();
    file.extension.clear();
    file.message_type.iter_mut().for_each(slim_message);
    for kind in &mut file.enum_type {
        slim_enum(kind);
    }
    file
}

fn slim_message(message: &mut DescriptorProto) {
    message.options = message
        .options
        .as_ref()
        .and_then(|o| o.map_entry)
        .map(|map_entry| MessageOptions {
            map_entry: Some(map_entry),
            ..Default::default()
        });
    for field in &mut message.field {
        field.options = field
            .options
            .as_ref()
            .and_then(|o| o.packed)
            .map(|packed| FieldOptions {
                packed: Some(packed),
                ..Default::default()
            });
    }
    for oneof in &mut message.oneof_decl {
        oneof.options = None;
    }
    message.extension.clear();
    message.nested_type.iter_mut().for_each(slim_message);
    for kind in &mut message.enum_type {
        slim_enum(kind);
    }
}

fn slim_enum(kind: &mut prost_reflect::prost_types::EnumDescriptorProto) {
    if let Some(options) = &mut kind.options {
        options.deprecated = None;
        options.uninterpreted_option.clear();
    }
    for value in &mut kind.value {
        value.options = None;
    }
}

/// Where cargo unpacked `envoy-types`.
fn envoy_types_folder() -> Result<PathBuf, Box<dyn Error>> {
    let output = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()))
        .args(["metadata", "--format-version", "1", "--offline"])
        .output()?;
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"]
        .as_array()
        .ok_or("cargo metadata lists no packages")?;
    let manifest = packages
        .iter()
        .find(|p| p["name"] == "envoy-types")
        .and_then(|p| p["manifest_path"].as_str())
        .ok_or("envoy-types is not among the dependencies")?;
    Ok(Path::new(manifest)
        .parent()
        .ok_or("a manifest is in a folder")?
        .to_owned())
}
