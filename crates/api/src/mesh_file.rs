//! `mesh.yaml`: a mesh on one machine, as `lateen up -f` reads it. The fields are documented in
//! docs/mesh-file.md.
//!
//! It is not a Kubernetes object (no `apiVersion`, no `kind`): it says what to *run*. What the
//! services and workloads in it become in the mesh are Services and WorkloadEntries, which the
//! `local` crate makes from it; that crate also checks what the fields mean together.

use std::collections::BTreeMap;

use crate::decode::{Decoder, Problem};
use crate::diagnostic::{Diagnostic, Severity};
use crate::field::Field;
use crate::node::{Node, Value};
use crate::path::Path;
use crate::schema::{choice, message};
use crate::yaml;

message! {
    pub struct MeshFile {
        /// Names the mesh; part of the default run directory.
        effective name: String,
        /// Of every workload that names none.
        effective namespace: String,
        effective workloads: Vec<Workload>,
        effective gateways: Vec<MeshGateway>,
        /// Files or directories of Istio YAML, applied at the first start.
        effective config: Vec<String>,
    }
}

message! {
    pub struct Workload {
        effective name: String,
        /// The service it belongs to; its own name if not set.
        effective service: String,
        effective namespace: String,
        /// The label `version`.
        effective version: String,
        effective labels: BTreeMap<String, String>,
        effective service_account "serviceAccount": String,
        effective ports: Vec<WorkloadPort>,
        effective command: Vec<String>,
        effective env: BTreeMap<String, String>,
        /// Relative to the mesh file.
        effective working_dir "workingDir": String,
        /// Answers 200 when the application is ready.
        effective readiness_path "readinessPath": String,
        effective proxy: ProxyKind,
        /// `traffic.sidecar.istio.io/...` say what is captured with --transparent.
        effective annotations: BTreeMap<String, String>,
        /// `region/zone/subzone`: where it is said to run, for balancing by locality and by zone.
        effective locality: String,
        /// User (and group) of the application with --transparent.
        effective run_as_user "runAsUser": Option<u32>,
    }
}

message! {
    pub struct WorkloadPort {
        effective name: String,
        /// The service's port: what callers use.
        effective port: Option<u16>,
        effective protocol: String,
        /// Where the application listens, if it cannot be told.
        effective app_port "appPort": Option<u16>,
    }
}

message! {
    pub struct MeshGateway {
        effective name: String,
        effective namespace: String,
        effective port: Option<u16>,
        effective https_port "httpsPort": Option<u16>,
        /// Answers 200 through the gateway when the mesh is ready.
        effective readiness_path "readinessPath": String,
        effective proxy: ProxyKind,
    }
}

choice! {
    /// Who runs the proxy of a workload or gateway.
    pub enum ProxyKind {
        #[default]
        effective Lateen = "lateen",
        /// The person does, from the bootstrap that is written for it.
        effective External = "external",
    }
}

/// A mesh file as read, with the places of its fields.
#[derive(Clone, Debug)]
pub struct ParsedMeshFile {
    pub file: MeshFile,
    source_name: String,
    node: Node,
}

impl ParsedMeshFile {
    /// An error about a field, for findings that only a later check makes.
    pub fn error(&self, path: &Path, message: String, suggestion: Option<String>) -> Diagnostic {
        let at = self.node.locate(path);
        Diagnostic {
            severity: Severity::Error,
            code: None,
            message,
            file: self.source_name.clone(),
            line: at.line,
            column: at.column,
            path: path.to_string(),
            suggestion,
            confidential: false,
            unknown_kind: false,
        }
    }
}

/// Reads a mesh file; every error at once.
pub fn parse_mesh_file(source_name: &str, text: &str) -> Result<ParsedMeshFile, Vec<Diagnostic>> {
    let mut diagnostics = Vec::new();
    let mut roots = Vec::new();
    for document in yaml::read(text) {
        let errors = document.errors.into_iter().map(Problem::from);
        diagnostics.extend(errors.map(|problem| problem.into_diagnostic(source_name)));
        if !document.broken && document.root.value != Value::Null {
            roots.push(document.root);
        }
    }
    let mut roots = roots.into_iter();
    let (root, second) = (roots.next(), roots.next());
    let mut decoder = Decoder::new(Path::root(), false);
    let node = root.unwrap_or_else(Node::null);
    if let Some(second) = second {
        let message = "a mesh file is one document, this is a second one".to_owned();
        let remedy = "remove the line \"---\", or list files of Istio YAML under \"config\"";
        decoder.error(&second, message, Some(remedy.to_owned()));
    }
    let file = match (&node.value, node.get("apiVersion")) {
        (Value::Null, _) if diagnostics.is_empty() => {
            let message = "the mesh file is empty".to_owned();
            decoder.error(
                &node,
                message,
                Some("describe its \"workloads\"".to_owned()),
            );
            None
        }
        (Value::Null, _) => None,
        (_, Some(api_version)) => {
            let message = "this is a Kubernetes object, not a mesh file".to_owned();
            let remedy = "list its file under \"config\", or apply it with \"lateen apply -f\"";
            decoder.error(api_version, message, Some(remedy.to_owned()));
            None
        }
        _ => MeshFile::decode(&node, &mut decoder),
    };
    let found = decoder.problems.into_iter();
    diagnostics.extend(found.map(|problem| problem.into_diagnostic(source_name)));
    diagnostics.sort_by_key(|diagnostic| (diagnostic.line, diagnostic.column));
    match file {
        Some(file) if !diagnostics.iter().any(Diagnostic::is_error) => {
            let source_name = source_name.to_owned();
            Ok(ParsedMeshFile {
                file,
                source_name,
                node,
            })
        }
        _ => Err(diagnostics),
    }
}
