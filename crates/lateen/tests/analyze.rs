//! `lateen analyze`: files alone, the mesh, and files laid over the mesh.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests stop at what is not as expected"
)]

mod support;

use std::path::Path;
use std::process::Output;

use serde_json::Value;
use support::{Mesh, lateen};

const BROKEN: &str = "\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: canary}
spec:
  hosts: [reviews]
  http:
  - route:
    - {destination: {host: reviews, subset: v9}, weight: 90}
    - {destination: {host: nosuch}, weight: 10}
";

fn text(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

/// Analyzes one document without a control plane.
fn offline(directory: &Path, yaml: &str, more: &[&str]) -> (Option<i32>, String, String) {
    let file = directory.join("rules.yaml");
    std::fs::write(&file, yaml).unwrap();
    let output = lateen()
        .current_dir(directory)
        .args(["analyze", "--use-kube=false", "rules.yaml"])
        .args(more)
        .output()
        .unwrap();
    let (out, err) = text(&output);
    (output.status.code(), out, err)
}

#[test]
fn files_alone_are_analyzed_with_istios_codes_lines_and_exit_code() {
    let directory = tempfile::tempdir().unwrap();
    let service = "---\napiVersion: v1\nkind: Service\nmetadata: {name: reviews}\n\
                   spec: {ports: [{name: web, port: 9080}]}\n";
    let yaml = format!("{BROKEN}{service}");
    let (code, out, err) = offline(directory.path(), &yaml, &[]);
    assert_eq!(
        out,
        "Error [IST0101] (VirtualService default/canary rules.yaml:8) Referenced host+subset in \
         destinationrule not found: \"reviews+v9\"\n\
         Error [IST0101] (VirtualService default/canary rules.yaml:9) Referenced host not found: \
         \"nosuch\"\n\
         Info [IST0118] (Service default/reviews rules.yaml:14) Port name web (port: 9080, \
         targetPort: 9080) doesn't follow the naming convention of Istio port.\n"
    );
    assert!(err.starts_with("Error: Analyzers found issues when analyzing namespace: default."));
    assert_eq!(code, Some(79));
    // Thresholds, suppression, machine-readable output.
    let (code, out, _) = offline(
        directory.path(),
        &yaml,
        &[
            "--output-threshold",
            "Error",
            "-S",
            "IST0101=VirtualService *.default",
        ],
    );
    assert_eq!((code, out.as_str()), (Some(0), ""));
    let (code, out, _) = offline(
        directory.path(),
        &yaml,
        &["-o", "json", "--failure-threshold=Info", "-S", "IST0101=*"],
    );
    let found: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(code, Some(79));
    assert_eq!(found[0]["code"], "IST0118");
    assert_eq!(found[0]["origin"], "Service default/reviews");
    assert_eq!(found[0]["reference"], "rules.yaml:14");
    assert_eq!(found[1], Value::Null);
}

#[test]
fn what_cannot_be_read_is_a_finding_at_its_line_and_the_rest_is_analyzed() {
    let directory = tempfile::tempdir().unwrap();
    let yaml = BROKEN.replace("  http:", "  httpp: 1\n  http:");
    let (code, out, _) = offline(directory.path(), &yaml, &[]);
    assert_eq!(code, Some(79));
    assert!(
        out.starts_with(
            "Error [IST0106] (rules.yaml:6) Schema validation error: spec.httpp: unknown field"
        ),
        "{out}"
    );
    let (code, _, err) = offline(directory.path(), "", &[]);
    assert_eq!(code, Some(0), "{err}");
    assert!(err.contains("No validation issues found"), "{err}");
    let nothing = lateen()
        .args(["analyze", "--use-kube=false"])
        .output()
        .unwrap();
    assert_eq!(nothing.status.code(), Some(64));
}

#[test]
fn the_mesh_is_analyzed_as_it_is_and_as_it_would_be_with_files() {
    let mesh = Mesh::demo(&[]);
    let clean = mesh.run(&["analyze", "-A"]);
    let (out, err) = text(&clean);
    assert_eq!(clean.status.code(), Some(0), "{out}{err}");
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("canary.yaml");
    std::fs::write(&file, BROKEN).unwrap();
    let path = file.to_str().unwrap();
    // As it would be: the service is in the mesh, the subset is nowhere. Nothing is changed.
    let would_be = mesh.run(&["analyze", path]);
    let (out, _) = text(&would_be);
    assert_eq!(would_be.status.code(), Some(79));
    assert!(
        out.contains("canary.yaml:8) Referenced host+subset"),
        "{out}"
    );
    assert!(
        out.contains("canary.yaml:9) Referenced host not found"),
        "{out}"
    );
    assert_eq!(text(&mesh.run(&["analyze"])).0, "");
    // As it is, once it is applied; there are no lines then.
    let (applied, said) = mesh.apply(BROKEN);
    assert!(applied && said.contains("[IST0101]"), "{said}");
    let (out, _) = text(&mesh.run(&["analyze"]));
    assert!(
        out.contains("Error [IST0101] (VirtualService default/canary) Referenced host not found"),
        "{out}"
    );
    let (out, _) = text(&mesh.run(&["analyze", "-n", "elsewhere"]));
    assert_eq!(out, "");
}
