//! `lateen validate`: documents checked without a control plane, as strictly as `apply` does.

use lateen_api::Mode;
use serde_json::json;

use crate::documents;
use crate::failure::{Failure, Outcome};
use crate::output::{self, Format};
use crate::resource::dotted;

/// Check YAML offline; unknown fields are errors
#[derive(Debug, clap::Args)]
pub struct Args {
    /// File or directory of YAML or JSON, or - for standard input; may be repeated
    #[arg(short = 'f', long = "filename", value_name = "FILE", required = true)]
    pub files: Vec<String>,

    /// How to print the result
    #[arg(short = 'o', long, value_enum, default_value = "table")]
    pub output: Format,
}

pub fn run(args: Args) -> Outcome {
    let documents = documents::read(&args.files, Mode::Strict, "not valid")?;
    documents.print_warnings();
    if documents.objects.is_empty() {
        return Err(Failure::other("no objects to validate"));
    }
    let objects = documents.objects.iter().map(|(_, parsed)| {
        json!({
            "kind": parsed.object.kind.info().name,
            "name": parsed.object.meta.name,
            "namespace": parsed.object.meta.namespace,
            "file": parsed.location.file,
            "line": parsed.location.line,
        })
    });
    let warnings = documents
        .warnings
        .iter()
        .map(|(_, warning)| warning.to_string());
    let result = json!({
        "valid": true,
        "objects": objects.collect::<Vec<_>>(),
        "warnings": warnings.collect::<Vec<_>>(),
    });
    if !output::document(args.output, &result) {
        for (_, parsed) in &documents.objects {
            let at = &parsed.location;
            let name = format!("{}/{}", dotted(parsed.object.kind), parsed.object.meta.name);
            outln!("{}:{}: {name} is valid", at.file, at.line);
        }
    }
    Ok(())
}
