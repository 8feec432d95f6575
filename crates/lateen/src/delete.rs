//! `lateen delete`: objects by name, by file, or all of a kind.

use http::{Method, StatusCode};
use lateen_api::{Diagnostic, Kind, Mode};
use serde_json::Value;

use crate::apply::{change_id, rank};
use crate::documents::{self, Documents};
use crate::failure::{Failure, Outcome};
use crate::resource::{collection, dotted, kinds, named, path};
use crate::rest::{Call, Server, ServerArgs};

/// Delete objects from the mesh
#[derive(Debug, clap::Args)]
pub struct Args {
    /// KIND NAME... or KIND/NAME...
    #[arg(
        value_name = "KIND",
        required_unless_present = "files",
        conflicts_with = "files"
    )]
    pub what: Vec<String>,

    /// Delete what these documents declare; - is standard input
    #[arg(short = 'f', long = "filename", value_name = "FILE")]
    pub files: Vec<String>,

    /// Namespace of the objects
    #[arg(short = 'n', long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,

    /// Delete all objects of the kind in the namespace
    #[arg(long)]
    pub all: bool,

    /// An object that is not there is no error
    #[arg(long)]
    pub ignore_not_found: bool,

    /// Only say what would be deleted
    #[arg(long)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "server")]
    pub dry_run: Option<crate::apply::DryRun>,

    #[command(flatten)]
    pub server: ServerArgs,
}

/// One object to delete.
struct Target {
    kind: Kind,
    namespace: String,
    name: String,
}

pub fn run(args: Args) -> Outcome {
    let mut from_files = match args.files.is_empty() {
        true => FromFiles::default(),
        false => FromFiles::read(&args)?,
    };
    let mut targets = std::mem::take(&mut from_files.targets);
    let server = args.server.connect()?;
    if args.files.is_empty() {
        targets = from_arguments(&args, &server)?;
    }
    // Who refers to others goes first, the reverse of applying.
    targets.sort_by_key(|target| std::cmp::Reverse(rank(target.kind)));
    let dry_run = args.dry_run == Some(crate::apply::DryRun::Server);
    let change = change_id();
    let mut failed = from_files.report();
    for target in &targets {
        let query = if dry_run { "?dryRun=All" } else { "" };
        let url = format!(
            "{}{query}",
            path(target.kind, &target.namespace, &target.name)
        );
        let call = Call::new(Method::DELETE, &url)
            .header("x-lateen-change", &change)
            .header("x-lateen-user", std::env::var("USER").unwrap_or_default());
        let answer = server.call(call)?;
        if answer.is_good() {
            let note = if dry_run { " (dry run)" } else { "" };
            outln!("{} {:?} deleted{note}", dotted(target.kind), target.name);
        } else if !(answer.code == StatusCode::NOT_FOUND && args.ignore_not_found) {
            anstream::eprintln!("{}", answer.refusal());
            failed = true;
        }
    }
    if failed {
        Err(Failure::silent(1))
    } else {
        Ok(())
    }
}

/// What documents declare.
#[derive(Default)]
struct FromFiles {
    targets: Vec<Target>,
    /// Objects of kinds that are not known here, so that nobody can have applied them: one error
    /// each, and the others are deleted all the same, as kubectl does.
    unknown: Option<(Documents, Vec<(usize, Diagnostic)>)>,
}

impl FromFiles {
    fn read(args: &Args) -> Result<FromFiles, Failure> {
        let mode = Mode::AllowUnknown;
        let (documents, unknown) = documents::read_names(&args.files, mode, "nothing was deleted")?;
        if documents.objects.is_empty() && documents.refused.is_empty() && unknown.is_empty() {
            return Err(Failure::other("no objects passed to delete"));
        }
        Ok(FromFiles {
            targets: targets(args, &documents),
            unknown: (!unknown.is_empty()).then_some((documents, unknown)),
        })
    }

    /// Says what could not be looked for; whether there is any.
    fn report(&self) -> bool {
        if let Some((documents, errors)) = &self.unknown {
            documents.print(errors);
        }
        self.unknown.is_some()
    }
}

fn targets(args: &Args, documents: &Documents) -> Vec<Target> {
    let fallback = args.namespace.as_deref().unwrap_or("default");
    let target = |kind: Kind, namespace: &str, name: &str| Target {
        kind,
        namespace: match namespace {
            "" => fallback.to_owned(),
            namespace => namespace.to_owned(),
        },
        name: name.to_owned(),
    };
    let objects = documents.objects.iter().map(|(_, parsed)| {
        let object = &parsed.object;
        target(object.kind, &object.meta.namespace, &object.meta.name)
    });
    // What is wrong with their content does not matter any more.
    let refused = documents.refused.iter();
    let refused = refused.map(|one| target(one.kind, &one.namespace, &one.name));
    objects.chain(refused).collect()
}

fn from_arguments(args: &Args, server: &Server) -> Result<Vec<Target>, Failure> {
    let namespace = args.namespace.as_deref().unwrap_or("default");
    if !args.all {
        let named = named(&args.what)?;
        if named.is_empty() {
            let text = "which one? Give a name after the kind, or --all";
            return Err(Failure::usage(text));
        }
        let target = |(kind, name)| Target {
            kind,
            namespace: namespace.to_owned(),
            name,
        };
        return Ok(named.into_iter().map(target).collect());
    }
    if args.what.len() != 1 {
        return Err(Failure::usage("--all takes a kind and no names"));
    }
    let mut targets = Vec::new();
    for kind in kinds(&args.what[0])? {
        let list = server.json(&collection(kind, Some(namespace)))?;
        for item in list["items"].as_array().into_iter().flatten() {
            let text = |field: &str| item["metadata"][field].as_str().unwrap_or_default();
            let (namespace, name) = (text("namespace").to_owned(), text("name").to_owned());
            targets.push(Target {
                kind,
                namespace,
                name,
            });
        }
    }
    if targets.is_empty() {
        anstream::eprintln!("No resources found");
    }
    Ok(targets)
}

/// The object of a `KIND NAME` argument pair, for verbs about one object.
pub fn exists(
    server: &Server,
    kind: Kind,
    namespace: &str,
    name: &str,
) -> Result<Option<Value>, Failure> {
    let answer = server.call(Call::get(&path(kind, namespace, name)))?;
    match answer.code {
        StatusCode::NOT_FOUND => Ok(None),
        _ => Ok(Some(answer.good()?.json()?)),
    }
}
