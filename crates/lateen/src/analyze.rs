//! `lateen analyze`: what is wrong between objects, with Istio's message codes.
//!
//! Of the mesh as it is, of the mesh as it would be with some files applied, or of files alone.
//! Options, output and exit codes are istioctl's (79: something at or above the threshold).

use std::collections::BTreeMap;

use http::Method;
use lateen_api::{Diagnostic, Mode, parse};
use serde_json::{Value, json};

use crate::documents::{self, Source};
use crate::failure::{Failure, Outcome};
use crate::output;
use crate::rest::{Call, ServerArgs};

/// istioctl's code for "found something".
const FOUND: u8 = 79;
const REFERENCE: &str = "https://istio.io/latest/docs/reference/config/analysis";

/// Find what is wrong with the mesh, or with files before they are applied
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Files or directories, analyzed as if they were applied to the mesh
    #[arg(value_name = "FILE")]
    pub files: Vec<String>,

    /// The same as FILE, as apply takes it
    #[arg(short = 'f', long = "filename", value_name = "FILE")]
    pub more_files: Vec<String>,

    /// Namespace to report on, and of objects that name none
    #[arg(short = 'n', long, value_name = "NAMESPACE", default_value = "default")]
    pub namespace: String,

    /// Report on all namespaces
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,

    /// Look at the running mesh as well; false looks at the files alone
    #[arg(long, value_name = "BOOL", default_value = "true")]
    #[arg(num_args = 0..=1, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub use_kube: bool,

    /// Fail (exit code 79) at findings of this level or worse
    #[arg(long, value_enum, ignore_case = true, default_value = "error")]
    pub failure_threshold: Level,

    /// Print findings of this level or worse
    #[arg(long, value_enum, ignore_case = true, default_value = "info")]
    pub output_threshold: Level,

    /// Leave out a code for an object: "IST0118=Service legacy.default"; * stands for anything
    #[arg(short = 'S', long, value_name = "CODE=KIND NAME")]
    pub suppress: Vec<String>,

    /// Directories are always read with what is below them; accepted for istioctl's sake
    #[arg(short = 'R', long, hide = true)]
    pub recursive: bool,

    /// How to print
    #[arg(short = 'o', long, value_enum, default_value = "log")]
    pub output: Output,

    #[command(flatten)]
    pub server: ServerArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Level {
    Info,
    Warning,
    Error,
}

impl Level {
    fn parse(text: &str) -> Level {
        match text {
            "Info" => Level::Info,
            "Warning" => Level::Warning,
            _ => Level::Error,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Level::Info => "Info",
            Level::Warning => "Warning",
            Level::Error => "Error",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// A line for each finding
    #[value(alias = "table")]
    Log,
    Json,
    Yaml,
}

/// One line of the report.
struct Line {
    level: Level,
    code: String,
    kind: String,
    namespace: String,
    name: String,
    /// `file:line`, for what stands in a file.
    reference: Option<String>,
    message: String,
}

pub fn run(args: Args) -> Outcome {
    let suppressed = args
        .suppress
        .iter()
        .map(|text| Suppression::parse(text))
        .collect::<Result<Vec<_>, _>>()?;
    let files: Vec<String> = args.files.iter().chain(&args.more_files).cloned().collect();
    if files.is_empty() && !args.use_kube {
        return Err(Failure::usage(
            "nothing to analyze: name files, or leave out --use-kube=false to look at the mesh",
        ));
    }
    let proposed = Proposed::read(&files, &args.namespace)?;
    let found = if args.use_kube {
        let server = args.server.connect()?;
        let mut call =
            Call::new(Method::POST, "/debug/findings").header("content-type", "application/json");
        call.body = json!(proposed.documents()).to_string().into_bytes();
        server.call(call)?.good()?.json()?
    } else {
        json!(lateen_control::analyze::findings(
            &[],
            &proposed.documents()
        ))
    };
    let mut lines = proposed.lines;
    for finding in found.as_array().into_iter().flatten() {
        lines.push(line_of(finding, &proposed.objects));
    }
    lines.retain(|line| {
        let elsewhere = line.reference.is_none()
            && !line.namespace.is_empty()
            && line.namespace != args.namespace;
        (args.all_namespaces || !elsewhere) && !suppressed.iter().any(|one| one.covers(line))
    });
    lines.sort_by(|a, b| {
        let key = |line: &Line| {
            (
                std::cmp::Reverse(line.level),
                line.code.clone(),
                line.namespace.clone(),
                line.name.clone(),
            )
        };
        key(a).cmp(&key(b))
    });
    report(&args, &lines)
}

fn report(args: &Args, lines: &[Line]) -> Outcome {
    let shown = || {
        lines
            .iter()
            .filter(|line| line.level >= args.output_threshold)
    };
    let failing = lines
        .iter()
        .any(|line| line.level >= args.failure_threshold);
    let place = match args.all_namespaces {
        true => "all namespaces".to_owned(),
        false => format!("namespace: {}", args.namespace),
    };
    match args.output {
        Output::Log => shown().for_each(Line::print),
        Output::Json => output::json(&shown().map(Line::to_json).collect()),
        Output::Yaml => output::yaml(&shown().map(Line::to_json).collect()),
    }
    if failing {
        anstream::eprintln!(
            "Error: Analyzers found issues when analyzing {place}.\n\
             See {REFERENCE} for more information about causes and resolutions."
        );
        return Err(Failure::silent(FOUND));
    }
    if args.output == Output::Log && shown().next().is_none() {
        anstream::eprintln!("\u{2714} No validation issues found when analyzing {place}.");
    }
    Ok(())
}

/// Documents of files, with where each object stands.
struct Proposed {
    objects: BTreeMap<(String, String, String), lateen_api::ParsedObject>,
    /// What parsing has to say, at its lines.
    lines: Vec<Line>,
}

impl Proposed {
    fn read(files: &[String], namespace: &str) -> Result<Proposed, Failure> {
        let mut proposed = Proposed {
            objects: BTreeMap::new(),
            lines: Vec::new(),
        };
        for Source { name, text } in documents::read_sources(files)? {
            let parsed = parse(&name, &text, Mode::Strict);
            for diagnostic in parsed.diagnostics {
                proposed.lines.push(line_of_diagnostic(diagnostic));
            }
            for mut object in parsed.objects {
                let info = object.object.kind.info();
                if info.namespaced && object.object.meta.namespace.is_empty() {
                    object.object.meta.namespace = namespace.to_owned();
                }
                let meta = &object.object.meta;
                let key = (
                    info.name.to_owned(),
                    meta.namespace.clone(),
                    meta.name.clone(),
                );
                proposed.objects.insert(key, object);
            }
        }
        Ok(proposed)
    }

    fn documents(&self) -> Vec<Value> {
        let objects = self.objects.values();
        objects.map(|parsed| parsed.object.to_json()).collect()
    }
}

/// What a document says about itself. The object is named as far as it could be read.
fn line_of_diagnostic(said: Diagnostic) -> Line {
    let (level, code, kind) = match (said.code, said.is_error()) {
        (Some("IST0131"), _) => (Level::Info, "IST0131", ""),
        (Some(code), _) => (Level::Warning, code, ""),
        (None, true) => (Level::Error, "IST0106", "Schema validation error: "),
        (None, false) => (Level::Warning, "IST0133", "Schema validation warning: "),
    };
    let path = match said.path.is_empty() {
        true => String::new(),
        false => format!("{}: ", said.path),
    };
    let remedy = said.suggestion.map(|remedy| format!("; {remedy}"));
    Line {
        level,
        code: code.to_owned(),
        kind: String::new(),
        namespace: String::new(),
        name: String::new(),
        reference: Some(format!("{}:{}", said.file, said.line)),
        message: format!("{kind}{path}{}{}", said.message, remedy.unwrap_or_default()),
    }
}

fn line_of(
    finding: &Value,
    objects: &BTreeMap<(String, String, String), lateen_api::ParsedObject>,
) -> Line {
    let text = |pointer: &str| {
        let value = finding.pointer(pointer).and_then(Value::as_str);
        value.unwrap_or_default().to_owned()
    };
    let key = (
        text("/subject/kind"),
        text("/subject/namespace"),
        text("/subject/name"),
    );
    let reference = objects.get(&key).map(|parsed| {
        let at = parsed.locate(&documents::place(&text("/path")));
        format!("{}:{}", at.file, at.line)
    });
    let (kind, namespace, name) = key;
    Line {
        level: Level::parse(&text("/level")),
        code: text("/code"),
        kind,
        namespace,
        name,
        reference,
        message: text("/message"),
    }
}

impl Line {
    /// `VirtualService default/reviews`; empty for a document that could not be read.
    fn origin(&self) -> String {
        match (self.kind.is_empty(), self.namespace.is_empty()) {
            (true, _) => String::new(),
            (false, true) => format!("{} {}", self.kind, self.name),
            (false, false) => format!("{} {}/{}", self.kind, self.namespace, self.name),
        }
    }

    fn print(&self) {
        use anstyle::{AnsiColor, Style};
        let colour = match self.level {
            Level::Info => Style::new(),
            Level::Warning => Style::new().fg_color(Some(AnsiColor::Yellow.into())),
            Level::Error => Style::new().fg_color(Some(AnsiColor::Red.into())),
        };
        let (origin, reference) = (self.origin(), self.reference.as_deref());
        let space = if origin.is_empty() || reference.is_none() {
            ""
        } else {
            " "
        };
        outln!(
            "{colour}{}{colour:#} [{}] ({origin}{space}{}) {}",
            self.level.name(),
            self.code,
            reference.unwrap_or_default(),
            self.message
        );
    }

    fn to_json(&self) -> Value {
        let mut line = json!({
            "code": self.code,
            "documentationUrl": format!("{REFERENCE}/{}/", self.code.to_lowercase()),
            "level": self.level.name(),
            "message": self.message,
            "origin": self.origin(),
        });
        if let Some(reference) = &self.reference {
            line["reference"] = json!(reference);
        }
        line
    }
}

/// `CODE=KIND NAME[.NAMESPACE]`.
struct Suppression {
    code: String,
    resource: String,
}

impl Suppression {
    fn parse(text: &str) -> Result<Suppression, Failure> {
        match text.split_once('=') {
            Some((code, resource)) if !code.is_empty() && !resource.is_empty() => Ok(Suppression {
                code: code.to_owned(),
                resource: resource.to_owned(),
            }),
            _ => Err(Failure::usage(format!(
                "--suppress {text:?} is not CODE=KIND NAME, as in \"IST0118=Service legacy.default\""
            ))),
        }
    }

    fn covers(&self, line: &Line) -> bool {
        let full = format!("{} {}.{}", line.kind, line.name, line.namespace);
        let slashed = line.origin();
        self.code == line.code
            && (is_like(&self.resource, &full) || is_like(&self.resource, &slashed))
    }
}

/// Whether `text` is like `pattern`, in which `*` stands for any text.
fn is_like(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let mut last = None;
    for part in parts {
        last = Some(part);
        match rest.find(part) {
            Some(at) => rest = rest.get(at + part.len()..).unwrap_or_default(),
            None => return false,
        }
    }
    match last {
        None => rest.is_empty(),
        Some(part) => part.is_empty() || rest.is_empty() || text.ends_with(part),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_any_text() {
        let check = |pattern, text, expect| assert_eq!(is_like(pattern, text), expect, "{pattern}");
        check("Service a.b", "Service a.b", true);
        check("Service a.b", "Service a.bc", false);
        check("Service *.b", "Service a.b", true);
        check("Service *.b", "Service a.b.c", false);
        check("*", "anything", true);
        check("Service *", "Gateway a", false);
        check("*a*", "bab", true);
        check("*a*c", "bab", false);
    }

    #[test]
    fn a_suppression_needs_a_code_and_a_resource() {
        assert!(Suppression::parse("IST0118").is_err());
        assert!(Suppression::parse("IST0118=Service x").is_ok());
    }
}
