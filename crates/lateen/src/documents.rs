//! `-f`: files, directories and standard input, read and parsed with every error at once.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

use lateen_api::{Diagnostic, Lines, Mode, ParsedObject, Refused, parse};

use crate::failure::Failure;

/// Documents that were read and are right.
#[derive(Debug)]
pub struct Documents {
    pub sources: Vec<Source>,
    /// In the order of the sources, with the index of each object's source.
    pub objects: Vec<(usize, ParsedObject)>,
    /// Objects that are wrong and have a name.
    pub refused: Vec<Refused>,
    /// What is worth saying, by source.
    pub warnings: Vec<(usize, Diagnostic)>,
}

#[derive(Debug)]
pub struct Source {
    /// As messages name it.
    pub name: String,
    pub text: String,
}

/// Reads and parses all of `files`. If anything is wrong, prints every error with its line and
/// fails with `EX_DATAERR`; `consequence` says what that means ("nothing was applied").
pub fn read(files: &[String], mode: Mode, consequence: &str) -> Result<Documents, Failure> {
    let (documents, errors) = gather(files, mode)?;
    match errors.is_empty() {
        true => Ok(documents),
        false => Err(documents.refuse(&errors, consequence)),
    }
}

/// The same for who wants names only: what is wrong with the content of an object does not matter, and
/// objects of kinds that are not known are left out, an error for each.
pub fn read_names(
    files: &[String],
    mode: Mode,
    consequence: &str,
) -> Result<(Documents, Vec<(usize, Diagnostic)>), Failure> {
    let (documents, mut errors) = gather(files, mode)?;
    errors.retain(|(_, error)| error.unknown_kind || is_of_name(&error.path));
    match errors.iter().all(|(_, error)| error.unknown_kind) {
        true => Ok((documents, errors)),
        false => Err(documents.refuse(&errors, consequence)),
    }
}

/// The documents, and what is wrong with others, by source.
fn gather(files: &[String], mode: Mode) -> Result<(Documents, Vec<(usize, Diagnostic)>), Failure> {
    let sources = read_sources(files)?;
    let mut documents = Documents {
        sources,
        objects: Vec::new(),
        refused: Vec::new(),
        warnings: Vec::new(),
    };
    let mut errors = Vec::new();
    for (index, source) in documents.sources.iter().enumerate() {
        let parsed = parse(&source.name, &source.text, mode);
        for diagnostic in parsed.diagnostics {
            match diagnostic.is_error() {
                true => errors.push((index, diagnostic)),
                false => documents.warnings.push((index, diagnostic)),
            }
        }
        documents.refused.extend(parsed.refused);
        documents
            .objects
            .extend(parsed.objects.into_iter().map(|object| (index, object)));
    }
    Ok((documents, errors))
}

/// Whether a path is of what an object is called, or of a document as a whole.
fn is_of_name(path: &str) -> bool {
    let own = match path.strip_prefix("items[") {
        Some(rest) => rest
            .split_once(']')
            .map_or("", |(_, rest)| rest.trim_start_matches('.')),
        None => path,
    };
    let first = own.split(['.', '[']).next().unwrap_or_default();
    matches!(first, "" | "apiVersion" | "kind" | "items" | "metadata")
}

impl Documents {
    /// Warnings of parsing, with their lines.
    pub fn print_warnings(&self) {
        self.print(&self.warnings);
    }

    /// Findings with their lines.
    pub fn print(&self, findings: &[(usize, Diagnostic)]) {
        let mut of: Option<(usize, Lines<'_>)> = None;
        for (index, found) in findings {
            let lines = match of.take() {
                Some((at, lines)) if at == *index => lines,
                _ => Lines::of(&self.sources[*index].text),
            };
            anstream::eprint!("{}", found.render_in(&lines, colour()));
            of = Some((*index, lines));
        }
    }

    /// Prints everything that is wrong, and what follows from it.
    fn refuse(&self, errors: &[(usize, Diagnostic)], consequence: &str) -> Failure {
        self.print_warnings();
        self.print(errors);
        let mut report = plural(errors.len(), "error");
        if self.sources.len() > 1 {
            let files: BTreeSet<usize> = errors.iter().map(|(index, _)| *index).collect();
            let _ = write!(report, " in {}", plural(files.len(), "file"));
        }
        anstream::eprintln!("\n{report}; {consequence}");
        Failure::silent(65)
    }
}

/// A field path as messages write it, `spec.http[0].route`.
pub fn place(path: &str) -> lateen_api::Path {
    let parts = path.split(['.', '[', ']']).filter(|part| !part.is_empty());
    parts.fold(lateen_api::Path::root(), |place, part| match part.parse() {
        Ok(index) => place.index(index),
        Err(_) => place.key(part),
    })
}

/// `1 error`, `2 errors`.
pub fn plural(count: usize, noun: &str) -> String {
    let s = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{s}")
}

/// Whether stderr is a terminal that shows colour.
pub fn colour() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// Reads `files`, directories and `-`, without looking at what is in them.
pub fn read_sources(files: &[String]) -> Result<Vec<Source>, Failure> {
    let mut sources = Vec::new();
    for file in files {
        if file == "-" {
            let mut text = String::new();
            let read = std::io::stdin().read_to_string(&mut text);
            read.map_err(|e| Failure::other(format!("cannot read standard input: {e}")))?;
            sources.push(Source {
                name: "stdin".to_owned(),
                text,
            });
        } else if file.starts_with("http://") || file.starts_with("https://") {
            return Err(Failure::usage(format!(
                "URLs are not read; download it first: curl -sSLO {file}"
            )));
        } else {
            let path = Path::new(file);
            let metadata = std::fs::metadata(path).map_err(|e| unreadable(path, &e))?;
            let paths = match metadata.is_dir() {
                true => files_below(path)?,
                false => vec![path.to_owned()],
            };
            if paths.is_empty() {
                return Err(Failure::other(format!(
                    "the directory {file} holds no .yaml, .yml or .json files"
                )));
            }
            for path in paths {
                let text = std::fs::read_to_string(&path).map_err(|e| unreadable(&path, &e))?;
                sources.push(Source {
                    name: path.display().to_string(),
                    text,
                });
            }
        }
    }
    Ok(sources)
}

/// The documents below a directory, in the order of their names.
fn files_below(directory: &Path) -> Result<Vec<PathBuf>, Failure> {
    let mut found = Vec::new();
    let entries = std::fs::read_dir(directory).map_err(|e| unreadable(directory, &e))?;
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        let hidden = path
            .file_name()
            .is_some_and(|n| n.to_string_lossy().starts_with('.'));
        let extension = path.extension().and_then(|e| e.to_str());
        if hidden {
            continue;
        }
        if path.is_dir() {
            found.extend(files_below(&path)?);
        } else if matches!(extension, Some("yaml" | "yml" | "json")) {
            found.push(path);
        }
    }
    Ok(found)
}

fn unreadable(path: &Path, error: &std::io::Error) -> Failure {
    let hint = match error.kind() {
        std::io::ErrorKind::NotFound => "; check the path, or use - for standard input",
        std::io::ErrorKind::InvalidData => "; it is not text",
        _ => "",
    };
    Failure::other(format!("cannot read {}: {error}{hint}", path.display()))
}
