//! `lateen get`: objects as rows, documents or names, once or as they change.

use http::StatusCode;
use lateen_api::Kind;
use serde_json::Value;

use crate::apply::list_or_one;
use crate::failure::{Failure, Outcome};
use crate::output;
use crate::resource::{collection, dotted, escape, kinds, named, path};
use crate::rest::{Call, Server, ServerArgs};
use crate::table::{self, Table};

const AS_TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

/// List or show objects of the mesh
#[derive(Debug, clap::Args)]
pub struct Args {
    /// KIND[,KIND] [NAME...] or KIND/NAME; kinds as in kubectl: virtualservice, vs, dr, gw, se, we, svc, ns
    #[arg(required = true, value_name = "KIND")]
    pub what: Vec<String>,

    /// Namespace to look in
    #[arg(short = 'n', long, value_name = "NAMESPACE", default_value = "default")]
    pub namespace: String,

    /// Look in all namespaces
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,

    /// How to print
    #[arg(short = 'o', long, value_enum, default_value = "table")]
    pub output: Output,

    /// Only objects with these labels: a=b,c!=d,e in (f,g),!h
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    pub selector: Option<String>,

    /// Go on printing changes
    #[arg(short = 'w', long)]
    pub watch: bool,

    /// Leave out the line of column names
    #[arg(long)]
    pub no_headers: bool,

    #[command(flatten)]
    pub server: ServerArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    Table,
    /// With the columns of lesser interest
    Wide,
    Json,
    Yaml,
    /// kind/name
    Name,
}

pub fn run(args: Args) -> Outcome {
    let wanted = wanted(&args)?;
    if args.watch && wanted.len() != 1 {
        return Err(Failure::usage(
            "--watch follows one kind or one object; name just one",
        ));
    }
    let getting = Getting {
        server: args.server.connect()?,
        args: &args,
    };
    match args.output {
        Output::Table | Output::Wide => getting.tables(&wanted),
        Output::Json | Output::Yaml | Output::Name => getting.documents(&wanted),
    }
}

/// What to ask for: one kind, and one name of it or all.
struct Wanted {
    kind: Kind,
    name: Option<String>,
}

fn wanted(args: &Args) -> Result<Vec<Wanted>, Failure> {
    let is_list = args.what.len() == 1 && !args.what[0].contains('/');
    if is_list {
        let kinds = kinds(&args.what[0])?.into_iter();
        return Ok(kinds.map(|kind| Wanted { kind, name: None }).collect());
    }
    if args.all_namespaces {
        let text = "a name says one object, --all-namespaces all of them; use one or the other";
        return Err(Failure::usage(text));
    }
    let named = named(&args.what)?.into_iter();
    Ok(named
        .map(|(kind, name)| Wanted {
            kind,
            name: Some(name),
        })
        .collect())
}

struct Getting<'a> {
    server: Server,
    args: &'a Args,
}

impl Getting<'_> {
    fn tables(&self, wanted: &[Wanted]) -> Outcome {
        let mut shown = 0;
        let mut failed = false;
        let mut last: Option<(Table, Vec<bool>)> = None;
        let several = wanted.iter().any(|w| w.kind != wanted[0].kind);
        let mut tables: Vec<(Kind, Vec<Value>)> = Vec::new();
        for one in wanted {
            let answer = self
                .server
                .call(Call::get(&self.url(one)).header("accept", AS_TABLE))?;
            if answer.code == StatusCode::NOT_FOUND && one.name.is_some() {
                anstream::eprintln!("{}", answer.refusal());
                failed = true;
                continue;
            }
            let document = answer.good()?.json()?;
            match tables.last_mut() {
                Some((kind, documents)) if *kind == one.kind => documents.push(document),
                _ => tables.push((one.kind, vec![document])),
            }
        }
        let mut watch_from = "0".to_owned();
        for (kind, documents) in &tables {
            let prefix = several.then(|| dotted(*kind));
            let (table, columns) = self.table(*kind, documents, prefix.as_deref());
            // One object is a table without a version of its own.
            let versions = [
                "/metadata/resourceVersion",
                "/rows/0/object/metadata/resourceVersion",
            ];
            let mut versions = versions.iter().filter_map(|at| documents[0].pointer(at));
            if let Some(version) = versions.find_map(Value::as_str) {
                watch_from = version.to_owned();
            }
            if !table.is_empty() {
                if shown > 0 {
                    outln!();
                }
                self.print(&table);
                shown += table.len();
            }
            last = Some((table, columns));
        }
        if shown == 0 && !failed && !self.args.watch {
            match self.args.all_namespaces || !tables.iter().any(|(k, _)| k.info().namespaced) {
                true => anstream::eprintln!("No resources found"),
                false => {
                    anstream::eprintln!("No resources found in {} namespace.", self.args.namespace);
                }
            }
            if matches!(tables.as_slice(), [(Kind::Pod, _)]) {
                anstream::eprintln!(
                    "A mesh on this machine has processes instead of pods: `lateen get \
                     workloadentries` lists them, `lateen proxy-status` their sidecars."
                );
            }
        }
        if let (true, Some((table, columns)), false) = (self.args.watch, last, failed) {
            return self.follow(&wanted[0], &watch_from, &table, &columns);
        }
        if failed {
            Err(Failure::silent(1))
        } else {
            Ok(())
        }
    }

    fn print(&self, table: &Table) {
        let text = table.to_string();
        let skipped = if self.args.no_headers {
            text.find('\n').map_or(0, |at| at + 1)
        } else {
            0
        };
        out!("{}", &text[skipped..]);
    }

    /// The rows of all documents, and which of the server's columns are shown.
    fn table(&self, kind: Kind, documents: &[Value], prefix: Option<&str>) -> (Table, Vec<bool>) {
        let empty = Vec::new();
        let definitions = documents[0]["columnDefinitions"]
            .as_array()
            .unwrap_or(&empty);
        let wide = self.args.output == Output::Wide;
        let shown: Vec<bool> = definitions
            .iter()
            .map(|d| wide || d["priority"].as_u64() == Some(0))
            .collect();
        let names = definitions.iter().zip(&shown).filter(|(_, shown)| **shown);
        let names = names.map(|(d, _)| d["name"].as_str().unwrap_or_default().to_uppercase());
        let namespace = self.shows_namespace(kind).then(|| "NAMESPACE".to_owned());
        let mut table = Table::new(3, namespace.into_iter().chain(names));
        for row in documents
            .iter()
            .filter_map(|d| d["rows"].as_array())
            .flatten()
        {
            table.row(self.cells(kind, row, &shown, prefix));
        }
        (table, shown)
    }

    /// kubectl leaves the column out for kinds that are in no namespace.
    fn shows_namespace(&self, kind: Kind) -> bool {
        self.args.all_namespaces && kind.info().namespaced
    }

    fn cells(&self, kind: Kind, row: &Value, shown: &[bool], prefix: Option<&str>) -> Vec<String> {
        let text = |value: &Value| {
            value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned)
        };
        let empty = Vec::new();
        let cells = row["cells"].as_array().unwrap_or(&empty).iter().zip(shown);
        let mut cells: Vec<String> = cells
            .filter(|(_, shown)| **shown)
            .map(|(cell, _)| text(cell))
            .collect();
        if let (Some(prefix), Some(name)) = (prefix, cells.first_mut()) {
            *name = format!("{prefix}/{name}");
        }
        if self.shows_namespace(kind) {
            let namespace = row["object"]["metadata"]["namespace"]
                .as_str()
                .unwrap_or_default();
            cells.insert(0, namespace.to_owned());
        }
        cells
    }

    /// Prints a row per change until interrupted.
    fn follow(&self, wanted: &Wanted, from: &str, table: &Table, shown: &[bool]) -> Outcome {
        let mut query = vec!["watch=true".to_owned(), format!("resourceVersion={from}")];
        if let Some(name) = &wanted.name {
            query.push(format!("fieldSelector=metadata.name%3D{}", escape(name)));
        }
        query.extend(self.selector());
        let namespace = (!self.args.all_namespaces).then_some(&*self.args.namespace);
        let url = format!("{}?{}", collection(wanted.kind, namespace), query.join("&"));
        let widths = table.widths();
        self.server
            .lines(Call::get(&url).header("accept", AS_TABLE), |line| {
                let event: Value = serde_json::from_str(line).unwrap_or_default();
                if event["type"] == "ERROR" {
                    let message = event["object"]["message"]
                        .as_str()
                        .unwrap_or("the watch ended");
                    return Err(Failure::other(message));
                }
                let mut read = true;
                for row in event["object"]["rows"].as_array().into_iter().flatten() {
                    let line = table::line(&self.cells(wanted.kind, row, shown, None), &widths);
                    read &= output::write(format_args!("{line}\n"));
                }
                Ok(read)
            })
    }

    fn documents(&self, wanted: &[Wanted]) -> Outcome {
        let mut items: Vec<Value> = Vec::new();
        let (mut failed, mut is_list) = (false, false);
        for one in wanted {
            let answer = self.server.call(Call::get(&self.url(one)))?;
            if answer.code == StatusCode::NOT_FOUND && one.name.is_some() {
                anstream::eprintln!("{}", answer.refusal());
                failed = true;
                continue;
            }
            let mut document = answer.good()?.json()?;
            let version = document["apiVersion"].clone();
            match document.get_mut("items").and_then(Value::as_array_mut) {
                None => items.push(document),
                Some(listed) => {
                    is_list = true;
                    for mut item in listed.drain(..) {
                        item["apiVersion"] = version.clone();
                        items.push(item);
                    }
                }
            }
        }
        match self.args.output {
            Output::Name => items.iter().for_each(|item| outln!("{}", name_of(item))),
            form if !(failed && items.is_empty()) => {
                let document = match is_list && items.len() == 1 {
                    true => serde_json::json!({
                        "apiVersion": "v1", "items": items, "kind": "List", "metadata": {},
                    }),
                    false => list_or_one(items),
                };
                match form {
                    Output::Json => output::json(&document),
                    _ => output::yaml(&document),
                }
            }
            _ => {}
        }
        if failed {
            Err(Failure::silent(1))
        } else {
            Ok(())
        }
    }

    fn url(&self, wanted: &Wanted) -> String {
        match &wanted.name {
            Some(name) => path(wanted.kind, &self.args.namespace, name),
            None => {
                let namespace = (!self.args.all_namespaces).then_some(&*self.args.namespace);
                let query = self
                    .selector()
                    .map(|query| format!("?{query}"))
                    .unwrap_or_default();
                format!("{}{query}", collection(wanted.kind, namespace))
            }
        }
    }

    fn selector(&self) -> Option<String> {
        let selector = self.args.selector.as_deref()?;
        Some(format!("labelSelector={}", escape(selector)))
    }
}

fn name_of(item: &Value) -> String {
    let name = item["metadata"]["name"].as_str().unwrap_or_default();
    let kind = item["kind"].as_str().unwrap_or_default();
    match kind.parse::<Kind>() {
        Ok(kind) => format!("{}/{name}", dotted(kind)),
        Err(_) => format!("{}/{name}", kind.to_lowercase()),
    }
}
