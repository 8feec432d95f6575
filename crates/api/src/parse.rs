//! A source of documents to objects, with every error at once.

use std::ops::Range;

use crate::decode::{Decoder, Problem, What};
use crate::diagnostic::{Diagnostic, Lines, Severity};
use crate::field::Field;
use crate::kind::{Kind, Resolved};
use crate::meta::ObjectMeta;
use crate::node::{Entry, Node, Position, Value};
use crate::object::{Object, Spec};
use crate::path::Path;
use crate::yaml;
use crate::{suggest, validate};

/// What to do about a field that does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// An error, as with `kubectl apply` and `istioctl validate`.
    Strict,
    /// Ignore just that field, with a warning.
    AllowUnknown,
}

#[derive(Debug, Default)]
pub struct Parsed {
    /// The objects without errors, in the order of the source.
    pub objects: Vec<ParsedObject>,
    /// In the order of the source.
    pub diagnostics: Vec<Diagnostic>,
    /// Objects with errors that say all the same what they are called.
    pub refused: Vec<Refused>,
}

/// What an object is called that cannot be taken as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub kind: Kind,
    /// May be empty.
    pub namespace: String,
    pub name: String,
}

#[derive(Clone, Debug)]
pub struct ParsedObject {
    pub object: Object,
    pub location: Location,
    /// Bytes of the source that hold the object's document.
    pub text: Range<usize>,
    node: Node,
}

/// A place in a named source; see [`Position`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    pub file: String,
    pub line: u32,
    pub column: u32,
}

impl Parsed {
    pub fn has_errors(&self) -> bool {
        self.diagnostics.iter().any(Diagnostic::is_error)
    }

    /// All diagnostics with their source lines; `source` is the text that was parsed.
    pub fn render(&self, source: &str, color: bool) -> String {
        let lines = Lines::of(source);
        self.diagnostics
            .iter()
            .map(|diagnostic| diagnostic.render_in(&lines, color))
            .collect()
    }
}

impl ParsedObject {
    /// Where a field of the object was written, or the nearest thing around it.
    pub fn locate(&self, path: &Path) -> Location {
        let Position { line, column } = self.node.locate(path);
        Location {
            file: self.location.file.clone(),
            line,
            column,
        }
    }
}

/// Reads all documents of a source. `source_name` is what diagnostics call it.
pub fn parse(source_name: &str, text: &str, mode: Mode) -> Parsed {
    let mut parsed = Parsed::default();
    for document in yaml::read(text) {
        let mut reader = Reader {
            mode,
            problems: Vec::new(),
            prefix: Path::root(),
            refused: Vec::new(),
        };
        let mut objects = Vec::new();
        if !matches!(document.root.value, Value::Null) {
            reader.document(document.root, &mut objects);
        }
        let yaml_errors = document.errors.into_iter().map(Problem::from);
        let problems = bounded(yaml_errors.chain(reader.problems).collect());
        let confidential = may_be_secret(&text[document.text.clone()]);
        parsed
            .diagnostics
            .extend(problems.into_iter().map(|problem| {
                let mut diagnostic = problem.into_diagnostic(source_name);
                diagnostic.confidential = confidential;
                keep_within(&mut diagnostic, text);
                diagnostic
            }));
        if document.broken {
            continue;
        }
        parsed.refused.extend(reader.refused);
        parsed
            .objects
            .extend(objects.into_iter().map(|(object, node)| {
                let location = Location {
                    file: source_name.to_owned(),
                    line: node.at.line,
                    column: node.at.column,
                };
                ParsedObject {
                    object,
                    location,
                    text: document.text.clone(),
                    node,
                }
            }));
    }
    parsed
        .diagnostics
        .sort_by_key(|diagnostic| (diagnostic.line, diagnostic.column));
    parsed
}

/// Whether a document is a Secret, or would be one if it could be read. Its lines are not shown.
fn may_be_secret(document: &str) -> bool {
    document.contains("Secret") && document.contains("kind")
}

/// The findings of one document, at most so many that a person or a terminal can take them.
fn bounded(mut problems: Vec<Problem>) -> Vec<Problem> {
    const MOST: usize = 1000;
    if problems.len() > MOST {
        problems.sort_by_key(|problem| !problem.error);
        let rest = problems.split_off(MOST);
        if let (Some(first), Some(shown)) = (rest.first(), problems.last()) {
            let message = format!(
                "{} more findings in this document are not shown",
                rest.len()
            );
            let (error, at) = (first.error, shown.at);
            let (code, suggestion, what) = (None, None, What::Other);
            problems.push(Problem {
                error,
                code,
                path: Path::root(),
                at,
                message,
                suggestion,
                what,
            });
        }
    }
    problems
}

impl Object {
    /// From JSON as an API carries it; the diagnostics have paths and no lines.
    pub fn from_json(json: &serde_json::Value) -> Result<Object, Vec<Diagnostic>> {
        let (object, diagnostics) = Object::from_json_with(json, Mode::Strict);
        object.ok_or(diagnostics)
    }

    /// As `from_json`, with the mode to use and the warnings of an object that is good.
    pub fn from_json_with(
        json: &serde_json::Value,
        mode: Mode,
    ) -> (Option<Object>, Vec<Diagnostic>) {
        let mut reader = Reader {
            mode,
            problems: Vec::new(),
            prefix: Path::root(),
            refused: Vec::new(),
        };
        let object = reader.object(&Node::from_json(json));
        let problems = bounded(reader.problems).into_iter();
        let diagnostics = problems.map(|problem| problem.into_diagnostic(""));
        (object, diagnostics.collect())
    }
}

impl Refused {
    fn of(kind: Kind, root: &Node) -> Option<Refused> {
        let meta = root.get("metadata")?;
        let text = |field: &str| meta.get(field).and_then(Node::as_str);
        let name = text("name").filter(|name| !name.is_empty())?;
        Some(Refused {
            kind,
            namespace: text("namespace").unwrap_or_default().to_owned(),
            name: name.to_owned(),
        })
    }
}

/// Reads the objects of one document.
struct Reader {
    mode: Mode,
    problems: Vec<Problem>,
    /// `items[3]` inside a List.
    prefix: Path,
    refused: Vec<Refused>,
}

impl Reader {
    fn document(&mut self, root: Node, objects: &mut Vec<(Object, Node)>) {
        let is_list = root
            .get("kind")
            .and_then(Node::as_str)
            .is_some_and(|kind| kind.ends_with("List"));
        if !is_list || root.get("items").is_none() {
            objects.extend(self.object(&root).map(|object| (object, root)));
            return;
        }
        let Value::Mapping(entries) = root.value else {
            return;
        };
        for Entry { key, key_at, value } in entries {
            match (key.as_str(), value) {
                ("apiVersion" | "kind" | "metadata", _) => {}
                (
                    "items",
                    Node {
                        value: Value::Sequence(items),
                        ..
                    },
                ) => {
                    for (index, item) in items.into_iter().enumerate() {
                        self.prefix = Path::root().key("items").index(index);
                        objects.extend(self.object(&item).map(|object| (object, item)));
                    }
                    self.prefix = Path::root();
                }
                (
                    "items",
                    Node {
                        value: Value::Null, ..
                    },
                ) => {}
                ("items", node) => self.error(
                    Path::root().key("items"),
                    node.at,
                    "expected a list".to_owned(),
                    None,
                ),
                (key, _) => self.error(
                    Path::root().key(key),
                    key_at,
                    format!("unknown field {key:?}"),
                    None,
                ),
            }
        }
    }

    fn error(&mut self, path: Path, at: Position, message: String, suggestion: Option<String>) {
        self.problems.push(Problem {
            error: true,
            code: None,
            path,
            at,
            message,
            suggestion,
            what: What::Other,
        });
    }

    fn object(&mut self, root: &Node) -> Option<Object> {
        let Value::Mapping(entries) = &root.value else {
            let message = format!(
                "expected an object with apiVersion, kind, metadata and spec, found {}",
                root.describe()
            );
            self.error(self.prefix.clone(), root.at, message, None);
            return None;
        };
        let kind = self.kind(root)?;
        let allow_unknown = self.mode == Mode::AllowUnknown && !kind.is_security();
        let mut decoder = Decoder::new(self.prefix.clone(), allow_unknown);
        let object = decode_object(kind, root, entries, &mut decoder);
        let mut problems = decoder.problems;
        if let Some(object) = &object {
            let found = validate::object(object).into_iter().map(|mut problem| {
                problem.error &= !(allow_unknown && problem.what == What::UnknownField);
                problem.at = inside(root.locate(&problem.path), problem.at);
                problem.path = self.prefix.join(&problem.path);
                problem
            });
            let new: Vec<Problem> = found
                .filter(|problem| !follows_from(problem, &problems))
                .collect();
            problems.extend(new);
        }
        let good = !problems.iter().any(|problem| problem.error);
        self.problems.extend(problems);
        if !good {
            self.refused.extend(Refused::of(kind, root));
        }
        object.filter(|_| good)
    }

    /// Which kind the document is, by `apiVersion` and `kind`.
    fn kind(&mut self, root: &Node) -> Option<Kind> {
        let api_version = self.header(root, "apiVersion");
        let name = self.header(root, "kind");
        let name = name?;
        let Some(api_version) = api_version else {
            // The kind may be the only thing that says what to write.
            let kind = Kind::ALL.iter().find(|kind| kind.info().name == name);
            let absent = root.get("apiVersion").is_none();
            if let (Some(kind), Some(problem)) = (kind.filter(|_| absent), self.problems.last_mut())
            {
                let hint = || format!("add \"apiVersion: {}\"", kind.api_version());
                problem.suggestion.get_or_insert_with(hint);
            }
            return None;
        };
        let resolved = Kind::resolve(&api_version, &name);
        if let Resolved::Kind(kind) = resolved {
            return Some(kind);
        }
        let (key, message, suggestion) = explain_kind(&resolved, &api_version, &name);
        let at = root.get(key).map_or(root.at, |node| node.at);
        self.error(self.prefix.key(key), at, message, suggestion);
        if let Some(problem) = self.problems.last_mut() {
            problem.what = What::UnknownKind;
        }
        None
    }

    fn header(&mut self, root: &Node, key: &str) -> Option<String> {
        let path = self.prefix.key(key);
        match root.get(key).map(|node| (node, &node.value)) {
            Some((_, Value::String(text))) if !text.is_empty() => return Some(text.clone()),
            Some((node, Value::Null | Value::String(_))) => {
                self.error(path, node.at, format!("{key} is empty"), None)
            }
            Some((node, _)) => {
                self.error(
                    path,
                    node.at,
                    format!("expected a string, found {}", node.describe()),
                    None,
                );
            }
            None => {
                let near = misspelt_header(root, key);
                let suggestion = near.map(|entry| {
                    format!(
                        "did you mean this by {:?} at line {}?",
                        entry.key, entry.key_at.line
                    )
                });
                self.error(path, root.at, format!("{key} is missing"), suggestion);
            }
        }
        None
    }
}

/// Why there is no such kind: the header that is wrong, the message and what to do.
fn explain_kind(
    resolved: &Resolved,
    api_version: &str,
    name: &str,
) -> (&'static str, String, Option<String>) {
    match resolved {
        Resolved::Version(kind) => {
            let message = format!("{name} has no version {api_version:?}");
            let suggestion = format!("use one of {}", kind.api_versions().join(", "));
            ("apiVersion", message, Some(suggestion))
        }
        Resolved::Group(kind) => {
            let message = format!("there is no kind {name} in {api_version:?}");
            let suggestion = format!("did you mean {:?}?", kind.api_version());
            ("apiVersion", message, Some(suggestion))
        }
        Resolved::NotYet => {
            let message =
                format!("{name} ({api_version}) is not supported yet by this version of Lateen");
            let suggestion = "take the document out of the source; the others are not affected";
            ("kind", message, Some(suggestion.to_owned()))
        }
        Resolved::Kind(_) | Resolved::Unknown(None) => (
            "kind",
            format!("unknown kind {name:?} in {api_version:?}"),
            None,
        ),
        Resolved::Unknown(Some(near)) => {
            let message = format!("unknown kind {name:?} in {api_version:?}");
            ("kind", message, Some(format!("did you mean {near:?}?")))
        }
    }
}

/// A place within a text that is embedded in the document, as a place in the document. The text
/// begins on the line after its key, as a block does.
fn inside(key: Position, within: Position) -> Position {
    match (key.line, within.line) {
        (0, _) | (_, 0) => key,
        (line, further) => Position {
            line: line + further,
            column: key.column + within.column + 1,
        },
    }
}

/// A place in an embedded text is worked out for a block with the usual indentation; in a text that
/// is written in another way it may lie beyond its line.
fn keep_within(diagnostic: &mut Diagnostic, text: &str) {
    if !diagnostic.path.starts_with("data.") {
        return;
    }
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let lines: Vec<&str> = text.split('\n').collect();
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    diagnostic.line = diagnostic.line.min(number(lines.len()));
    let line = (diagnostic.line as usize).checked_sub(1);
    let width = line.and_then(|line| lines.get(line));
    let width = width.map_or(0, |line| line.chars().count());
    diagnostic.column = diagnostic.column.min(number(width).saturating_add(1));
}

fn misspelt_header<'a>(root: &'a Node, key: &str) -> Option<&'a Entry> {
    let Value::Mapping(entries) = &root.value else {
        return None;
    };
    entries.iter().find(|entry| {
        !PARTS.contains(&entry.key.as_str())
            && suggest::nearest(&entry.key, [key].into_iter()).is_some()
    })
}

const PARTS: [&str; 5] = ["apiVersion", "kind", "metadata", "spec", "status"];

fn decode_object(
    kind: Kind,
    root: &Node,
    entries: &[Entry],
    decoder: &mut Decoder,
) -> Option<Object> {
    let mut api_version = String::new();
    let mut meta = None;
    let mut spec = None;
    let mut status = None;
    let mut content = Vec::new();
    for entry in entries {
        let present = entry.value.value != Value::Null;
        match entry.key.as_str() {
            "apiVersion" => api_version = entry.value.as_str().unwrap_or_default().to_owned(),
            "kind" => {}
            "metadata" if present => meta = Some(decoder.value::<ObjectMeta>(entry)),
            key if kind.content_at_root() && !matches!(key, "metadata" | "status") => {
                content.push(entry.clone());
            }
            "spec" if present => {
                spec = Some(
                    decoder.inside(entry, |decoder| Spec::decode(kind, &entry.value, decoder)),
                );
            }
            "status" if present => status = serde_json::Value::decode(&entry.value, decoder),
            "metadata" | "spec" | "status" => {}
            _ => decoder.unknown_part(entry, unknown_part(kind, &entry.key)),
        }
    }
    // An absent part is for validation to judge; a wrong one has its error already.
    let meta = meta.unwrap_or_else(|| Some(ObjectMeta::default()))?;
    let content = Node {
        at: root.at,
        value: Value::Mapping(content),
    };
    let spec = spec.unwrap_or_else(|| Spec::decode(kind, &content, decoder))?;
    Some(Object {
        api_version,
        kind,
        meta,
        spec,
        status,
        closed: false,
    })
}

/// What to do about an unknown top-level key: perhaps it belongs into `spec`.
fn unknown_part(kind: Kind, key: &str) -> Option<String> {
    if kind
        .schema()
        .message()
        .is_some_and(|spec| spec.field(key).is_some())
    {
        return Some(format!(
            "did you mean \"spec.{key}\"? (indent it below spec)"
        ));
    }
    suggest::nearest(key, PARTS.into_iter()).map(|name| format!("did you mean {name:?}?"))
}

/// A missing `host` beside a misspelt `hots`, or a judgement on a value that did not decode, is the
/// same mistake twice. Warnings judge what an object does; that is not known while parts are missing.
fn follows_from(problem: &Problem, causes: &[Problem]) -> bool {
    causes
        .iter()
        .filter(|cause| cause.error)
        .any(|cause| match (cause.what, problem.what) {
            _ if !problem.error => true,
            (What::UnknownField, What::Missing) => cause.path.parent() == problem.path.parent(),
            (_, What::Missing) => problem.path.starts_with(&cause.path),
            _ => problem.path.starts_with(&cause.path) || cause.path.is_just_below(&problem.path),
        })
}

impl From<yaml::YamlError> for Problem {
    fn from(error: yaml::YamlError) -> Problem {
        let yaml::YamlError {
            at,
            path,
            message,
            suggestion,
        } = error;
        Problem {
            error: true,
            code: None,
            path,
            at,
            message,
            suggestion,
            what: What::Other,
        }
    }
}

impl Problem {
    pub(crate) fn into_diagnostic(self, file: &str) -> Diagnostic {
        Diagnostic {
            severity: if self.error {
                Severity::Error
            } else {
                Severity::Warning
            },
            code: self.code,
            message: shorten(self.message),
            file: file.to_owned(),
            line: self.at.line,
            column: self.at.column,
            path: shorten(self.path.to_string()),
            suggestion: self.suggestion.map(shorten),
            confidential: false,
            unknown_kind: self.what == What::UnknownKind,
        }
    }
}

/// A value of a megabyte is not repeated in the message about it.
fn shorten(text: String) -> String {
    const MOST: usize = 500;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
