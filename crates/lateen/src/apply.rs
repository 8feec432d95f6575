//! `lateen apply`: documents to the control plane, all of them or none.
//!
//! Everything is parsed here first, where lines are known, then offered to the server as a dry run;
//! only if it takes every object are they written, in one request and one revision, so that no
//! request meets a half-applied set.

use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};

use http::{Method, StatusCode};
use lateen_api::{Diagnostic, Kind, Mode, ParsedObject, Severity};
use serde_json::{Value, json};

use crate::documents::{self, Documents, colour};
use crate::failure::{Failure, Outcome};
use crate::resource::dotted;
use crate::rest::{self, Call, Server, ServerArgs};
use crate::{output, resource};

/// Apply Istio or Kubernetes YAML to the mesh
#[derive(Debug, clap::Args)]
pub struct Args {
    /// File or directory of YAML or JSON, or - for standard input; may be repeated
    #[arg(short = 'f', long = "filename", value_name = "FILE", required = true)]
    pub files: Vec<String>,

    /// Namespace of objects that name none
    #[arg(short = 'n', long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,

    /// Check everything, also on the server, and change nothing
    #[arg(long)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "server")]
    pub dry_run: Option<DryRun>,

    /// Ignore unknown fields with a warning instead of refusing the document
    #[arg(long)]
    pub allow_unknown: bool,

    /// Print the objects as they stand afterwards
    #[arg(short = 'o', long, value_enum)]
    pub output: Option<Output>,

    #[command(flatten)]
    pub server: ServerArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum DryRun {
    None,
    #[value(alias = "client")]
    Server,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    Json,
    Yaml,
    /// kind/name
    Name,
}

pub fn run(args: Args) -> Outcome {
    let mode = if args.allow_unknown {
        Mode::AllowUnknown
    } else {
        Mode::Strict
    };
    let mut documents = documents::read(&args.files, mode, "nothing was applied")?;
    for (_, parsed) in &mut documents.objects {
        settle_namespace(parsed, args.namespace.as_deref())?;
    }
    if documents.objects.is_empty() {
        documents.print_warnings();
        return Err(Failure::other("no objects passed to apply"));
    }
    let server = args.server.connect()?;
    let mut order: Vec<usize> = (0..documents.objects.len()).collect();
    order.sort_by_key(|index| rank(documents.objects[*index].1.object.kind));

    let applying = Applying {
        server: &server,
        documents: &documents,
        change: change_id(),
    };
    let checked = applying.all(&order, true)?;
    documents.print_warnings();
    let dry_run = args.dry_run == Some(DryRun::Server);
    let answers = if dry_run {
        checked
    } else {
        applying.all(&order, false)?
    };
    applying.print_warnings(&answers);
    if !dry_run {
        applying.print_findings()?;
    }
    print(&documents, &answers, args.output, dry_run)
}

/// What the server says about one object: its item of the answer.
struct Answered(Value);

impl Answered {
    fn verdict(&self) -> &str {
        self.0["verdict"].as_str().unwrap_or("applied")
    }

    fn warnings(&self) -> impl Iterator<Item = &str> {
        let warnings = self.0["warnings"].as_array().into_iter().flatten();
        warnings.filter_map(Value::as_str)
    }

    fn object(&self) -> Value {
        self.0["object"].clone()
    }
}

struct Applying<'a> {
    server: &'a Server,
    documents: &'a Documents,
    change: String,
}

impl Applying<'_> {
    /// Sends all objects in one request, which writes them all or none; the answers are in the
    /// order of the documents.
    fn all(&self, order: &[usize], dry_run: bool) -> Result<Vec<Answered>, Failure> {
        let objects = order.iter().map(|index| &self.documents.objects[*index].1);
        let items: Vec<Value> = objects.map(|parsed| parsed.object.to_json()).collect();
        let path = match dry_run {
            true => "/lateen/v1/apply?dryRun=All",
            false => "/lateen/v1/apply",
        };
        let mut call = Call::new(Method::POST, path)
            .header("content-type", "application/json")
            .header("x-lateen-change", &self.change)
            .header("x-lateen-user", std::env::var("USER").unwrap_or_default());
        call.body = json!({ "items": items }).to_string().into_bytes();
        let answer = self.server.call(call)?;
        if !answer.is_good() && answer.code != StatusCode::UNPROCESSABLE_ENTITY {
            anstream::eprintln!("{}\nnothing was applied", answer.refusal());
            return Err(Failure::silent(1));
        }
        let mut answer = answer.json()?;
        let Some(Value::Array(items)) = answer.get_mut("items").map(Value::take) else {
            return Err(Failure::other("the answer has no items as expected"));
        };
        let mut answers: Vec<Option<Answered>> = order.iter().map(|_| None).collect();
        let mut refused = 0;
        for (index, item) in order.iter().zip(items) {
            if let Some(status) = item.get("status") {
                refused += 1;
                self.print_refusal(*index, &rest::refusal(status));
            }
            answers[*index] = Some(Answered(item));
        }
        if refused > 0 {
            anstream::eprintln!(
                "\n{} refused by the server; nothing was applied",
                documents::plural(refused, "object")
            );
            return Err(Failure::silent(1));
        }
        Ok(answers.into_iter().flatten().collect())
    }

    fn print_refusal(&self, index: usize, refusal: &str) {
        let location = &self.documents.objects[index].1.location;
        anstream::eprintln!("{}:{}: {refusal}", location.file, location.line);
    }

    /// The server's warnings that parsing has not given already, at the lines they are about.
    fn print_warnings(&self, answers: &[Answered]) {
        let known: Vec<String> = self
            .documents
            .warnings
            .iter()
            .map(|(_, w)| w.message.clone())
            .collect();
        for (answer, (source, parsed)) in answers.iter().zip(&self.documents.objects) {
            for text in answer.warnings() {
                if !known.iter().any(|message| text.contains(message.as_str())) {
                    let source = &self.documents.sources[*source].text;
                    anstream::eprint!("{}", located(text, parsed).render(source, colour()));
                }
            }
        }
    }

    /// How the applied objects fit the others, looked at when all of them are there.
    fn print_findings(&self) -> Outcome {
        let answer = self.server.call(Call::get("/debug/findings"))?;
        let found = if answer.is_good() {
            answer.json()?
        } else {
            Value::Null
        };
        let mut applied: HashMap<_, Vec<_>> = HashMap::new();
        for (source, parsed) in &self.documents.objects {
            let object = &parsed.object;
            let key = (
                object.kind.info().name,
                object.meta.namespace.as_str(),
                object.meta.name.as_str(),
            );
            applied.entry(key).or_default().push((*source, parsed));
        }
        for finding in found.as_array().into_iter().flatten() {
            let text = |pointer: &str| {
                let value = finding.pointer(pointer).and_then(Value::as_str);
                value.unwrap_or_default()
            };
            let key = (
                text("/subject/kind"),
                text("/subject/namespace"),
                text("/subject/name"),
            );
            let message = format!("[{}] {}", text("/code"), text("/message"));
            for (source, parsed) in applied.get(&key).into_iter().flatten() {
                let warning = at_path(text("/path"), &message, parsed);
                let source = &self.documents.sources[*source].text;
                anstream::eprint!("{}", warning.render(source, colour()));
            }
        }
        Ok(())
    }
}

/// A warning `path: message` of the server, with the line of its path.
fn located(text: &str, parsed: &ParsedObject) -> Diagnostic {
    match text.split_once(": ") {
        Some((path, message)) if !path.contains(char::is_whitespace) => {
            at_path(path, message, parsed)
        }
        _ => at_path("", text, parsed),
    }
}

/// A warning at the line where `path` is written.
fn at_path(path: &str, message: &str, parsed: &ParsedObject) -> Diagnostic {
    let at = parsed.locate(&documents::place(path));
    Diagnostic {
        severity: Severity::Warning,
        code: None,
        message: message.to_owned(),
        file: at.file,
        line: at.line,
        column: at.column,
        path: path.to_owned(),
        suggestion: None,
        confidential: parsed.object.kind == Kind::Secret,
        unknown_kind: false,
    }
}

fn settle_namespace(parsed: &mut ParsedObject, given: Option<&str>) -> Result<(), Failure> {
    let (object, location) = (&mut parsed.object, &parsed.location);
    if !object.kind.info().namespaced {
        return Ok(());
    }
    match given {
        Some(given) if object.meta.namespace.is_empty() => object.meta.namespace = given.to_owned(),
        None if object.meta.namespace.is_empty() => object.meta.namespace = "default".to_owned(),
        Some(given) if object.meta.namespace != given => {
            return Err(Failure::other(format!(
                "{}:{}: the namespace of {} {:?} is {:?}, not {given:?}; pass \
                 --namespace={} or none",
                location.file,
                location.line,
                object.kind,
                object.meta.name,
                object.meta.namespace,
                object.meta.namespace
            )));
        }
        _ => {}
    }
    Ok(())
}

/// What others refer to comes first.
pub fn rank(kind: Kind) -> usize {
    const ORDER: [&str; 8] = [
        "Namespace",
        "Role",
        "ClusterRole",
        "Service",
        "ServiceEntry",
        "WorkloadEntry",
        "Gateway",
        "DestinationRule",
    ];
    let name = kind.info().name;
    ORDER
        .iter()
        .position(|known| *known == name)
        .unwrap_or(ORDER.len())
}

/// Names this invocation in the history; unique enough on one machine.
pub fn change_id() -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    format!("{:x}-{:x}", now.as_micros(), std::process::id())
}

fn print(
    documents: &Documents,
    answers: &[Answered],
    form: Option<Output>,
    dry_run: bool,
) -> Outcome {
    let objects = documents.objects.iter().map(|(_, parsed)| &parsed.object);
    match form {
        None => {
            let note = if dry_run { " (dry run)" } else { "" };
            for (object, answer) in objects.zip(answers) {
                let verdict = answer.verdict();
                let kind = dotted(object.kind);
                outln!("{kind}/{} {verdict}{note}", object.meta.name);
            }
        }
        Some(Output::Name) => {
            for object in objects {
                outln!("{}/{}", resource::dotted(object.kind), object.meta.name);
            }
        }
        Some(form) => {
            let mut items = Vec::new();
            for answer in answers {
                items.push(answer.object());
            }
            let document = list_or_one(items);
            match form {
                Output::Json => output::json(&document),
                Output::Yaml | Output::Name => output::yaml(&document),
            }
        }
    }
    Ok(())
}

/// One object as it is, several as a List, as kubectl prints them.
pub fn list_or_one(mut items: Vec<Value>) -> Value {
    match items.len() {
        1 => items.remove(0),
        _ => json!({"apiVersion": "v1", "items": items, "kind": "List", "metadata": {}}),
    }
}
