//! Text to located trees: documents, anchors, duplicate keys, and bounds on all of it.
//!
//! The grammar is `saphyr-parser`'s; what a plain word means is `scalar`'s (Kubernetes' YAML 1.1
//! rules); this module splits documents and guards. It knows nothing of kinds, except that a second
//! `apiVersion` or `kind` in one document is a forgotten `---`.
//!
//! Invariant: whatever the text, this ends, does not panic, and uses memory in proportion to the text.

mod build;
mod scalar;
mod write;

use std::ops::Range;

use saphyr_parser::{Event, Parser};

use crate::node::{Node, Position};
use crate::path::Path;
use build::Builder;

pub use write::write;

/// Kubernetes' API server takes requests of up to 3 MiB; no object can be larger.
const MAX_DOCUMENT_BYTES: usize = 3 << 20;

/// What is wrong with the text itself.
#[derive(Clone, Debug, PartialEq)]
pub struct YamlError {
    pub at: Position,
    pub path: Path,
    pub message: String,
    pub suggestion: Option<String>,
}

impl YamlError {
    fn new(at: Position, message: impl Into<String>) -> YamlError {
        YamlError {
            at,
            path: Path::root(),
            message: message.into(),
            suggestion: None,
        }
    }

    fn suggest(mut self, suggestion: impl Into<String>) -> YamlError {
        self.suggestion = Some(suggestion.into());
        self
    }
}

pub struct Document {
    pub root: Node,
    /// Bytes of the source between the document's separators.
    pub text: Range<usize>,
    pub errors: Vec<YamlError>,
    /// There are errors, here or in a document it was pasted together with.
    pub broken: bool,
}

/// All documents of a source. A document that cannot be read has a `Null` root and an error; the
/// others are not affected by it.
pub fn read(source: &str) -> Vec<Document> {
    chunks(source).into_iter().flat_map(read_chunk).collect()
}

struct Chunk<'a> {
    text: &'a str,
    start: usize,
    /// Number of the chunk's first line, from 1.
    line: u32,
}

/// Cut at every line that starts with `---`: nothing, not even a block of literal text, may contain
/// such a line (YAML 1.2.2, 9.1.2), so a broken document cannot swallow the next.
fn chunks(source: &str) -> Vec<Chunk<'_>> {
    let mut chunks = Vec::new();
    let text = source.strip_prefix('\u{feff}').unwrap_or(source);
    let (mut start, mut line, mut first_line) = (source.len() - text.len(), 1, 1);
    let mut at = start;
    for row in lines(text) {
        if is_separator(row) && at > start {
            chunks.push(Chunk {
                text: &source[start..at],
                start,
                line: first_line,
            });
            (start, first_line) = (at, line);
        }
        at += row.len();
        line += 1;
    }
    chunks.push(Chunk {
        text: &source[start..],
        start,
        line: first_line,
    });
    chunks
}

/// Lines with their ends; `\n`, `\r\n` and a lone `\r` end a line, as in YAML.
pub fn lines(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let end = rest.find(['\n', '\r']).map_or(rest.len(), |end| {
            end + if rest[end..].starts_with("\r\n") {
                2
            } else {
                1
            }
        });
        let (line, tail) = rest.split_at(end);
        rest = tail;
        Some(line)
    })
}

fn is_separator(line: &str) -> bool {
    line.strip_prefix("---")
        .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\n', '\r']))
}

fn read_chunk(chunk: Chunk<'_>) -> Vec<Document> {
    let text_start = match lines(chunk.text).next() {
        Some(first) if is_separator(first) && first.trim_end() == "---" => {
            chunk.start + first.len()
        }
        _ => chunk.start,
    };
    let range = text_start..chunk.start + chunk.text.len();
    if lines(chunk.text).all(says_nothing) {
        return Vec::new();
    }
    let document = |root, errors: Vec<_>, broken| Document {
        root,
        text: range.clone(),
        errors,
        broken,
    };
    let failed = |error| vec![document(Node::null(), vec![error], true)];
    if let Some(error) = refuse(&chunk) {
        return failed(error);
    }
    match parse_events(&chunk) {
        Ok(parsed) => parsed
            .into_iter()
            .flat_map(|(roots, errors)| {
                let (broken, mut errors) = (!errors.is_empty(), Some(errors));
                let documents = roots.into_iter();
                documents.map(move |root| (root, errors.take().unwrap_or_default(), broken))
            })
            .map(|(root, errors, broken)| document(root, errors, broken))
            .collect(),
        Err(error) => match json_fallback(&chunk) {
            Some(Ok(root)) => vec![document(root, Vec::new(), false)],
            Some(Err(error)) => failed(error),
            None => failed(error),
        },
    }
}

/// A blank line, a comment, a separator or a `%YAML` directive.
fn says_nothing(line: &str) -> bool {
    let line = line.trim();
    line.is_empty()
        || line.starts_with(['#', '%'])
        || line == "---"
        || line == "..."
        || line.starts_with("--- #")
}

fn refuse(chunk: &Chunk<'_>) -> Option<YamlError> {
    let start = Position {
        line: chunk.line,
        column: 1,
    };
    if chunk.text.len() > MAX_DOCUMENT_BYTES {
        let message = format!(
            "the document has {} bytes, at most {MAX_DOCUMENT_BYTES} are allowed",
            chunk.text.len()
        );
        return Some(YamlError::new(start, message).suggest("split it with \"---\""));
    }
    // The parser takes NUL for the end of the text.
    for (index, line) in lines(chunk.text).enumerate() {
        let bad = line
            .chars()
            .position(|c| c.is_ascii_control() && !matches!(c, '\t' | '\n' | '\r'));
        if let Some(column) = bad {
            let at = Position {
                line: chunk.line + index as u32,
                column: column as u32 + 1,
            };
            return Some(
                YamlError::new(at, "a control character is not allowed")
                    .suggest("is this a text file?"),
            );
        }
    }
    None
}

/// Per document its trees and what is wrong with them.
type Parsed = Vec<(Vec<Node>, Vec<YamlError>)>;

fn parse_events(chunk: &Chunk<'_>) -> Result<Parsed, YamlError> {
    let mut parser = Parser::new_from_str(chunk.text);
    let mut builder = Builder::new(chunk.text, chunk.line - 1);
    let mut documents = Vec::new();
    while let Some(event) = parser.next_event() {
        match event {
            Ok((Event::DocumentEnd, _)) => documents.push(builder.finish_document()),
            Ok((Event::StreamEnd, _)) => break,
            Ok((event, span)) => builder.event(event, span)?,
            Err(error) => {
                let at = builder.position(*error.marker());
                return Err(explain(at, error.info(), chunk));
            }
        }
    }
    Ok(documents)
}

/// The parser's message, with the usual cause where there is one.
fn explain(at: Position, info: &str, chunk: &Chunk<'_>) -> YamlError {
    let index = at.line.saturating_sub(chunk.line) as usize;
    let row = lines(chunk.text).nth(index).unwrap_or_default();
    // In an unreadable directive the parser counts bytes.
    let width = row.trim_end().chars().count() as u32;
    let at = Position {
        column: at.column.clamp(1, width + 1),
        ..at
    };
    let error = YamlError::new(at, format!("not valid YAML: {info}"));
    let indent = row.trim_start_matches(' ');
    if indent.starts_with('\t') {
        return error.suggest("indent with spaces; a tab is not allowed");
    }
    match row.trim_start_matches([' ', '-']).split_once(": ") {
        Some((_, value)) if value.starts_with(['@', '`', '%', '*', '&', '!']) => {
            error.suggest("quote the value")
        }
        Some((_, value)) if value.contains(": ") => {
            error.suggest("quote the value, or check the indentation")
        }
        _ => error.suggest("check indentation, quotes and brackets here and on the line before"),
    }
}

/// The place of a byte of the chunk.
fn place(chunk: &Chunk<'_>, byte: usize) -> Position {
    let mut at = Position {
        line: chunk.line,
        column: 1,
    };
    let mut start = 0;
    for row in lines(chunk.text) {
        let chars = row
            .char_indices()
            .take_while(|(index, _)| start + index < byte)
            .count();
        at.column = chars.min(row.trim_end().chars().count()) as u32 + 1;
        if start + row.len() > byte {
            break;
        }
        start += row.len();
        if start < chunk.text.len() {
            at.line += 1;
        }
    }
    at
}

/// JSON that is not YAML (tabs, surrogate pairs) is still JSON; it only loses its line numbers.
fn json_fallback(chunk: &Chunk<'_>) -> Option<Result<Node, YamlError>> {
    let body = chunk.text.strip_prefix("---").unwrap_or(chunk.text);
    if !body.trim_start().starts_with('{') {
        return None;
    }
    Some(match serde_json::from_str::<serde_json::Value>(body) {
        Ok(json) => {
            let mut root = Node::from_json(&json);
            root.at = Position {
                line: chunk.line,
                column: 1,
            };
            Ok(root)
        }
        Err(error) => {
            // Its lines end with `\n` only and its columns are bytes.
            let before = body
                .split_inclusive('\n')
                .take(error.line().saturating_sub(1));
            let byte = before.map(str::len).sum::<usize>() + error.column().saturating_sub(1);
            let at = place(chunk, chunk.text.len() - body.len() + byte);
            let text = error.to_string();
            let text = text.split(" at line ").next().unwrap_or_default();
            Err(YamlError::new(at, format!("not valid JSON: {text}")))
        }
    })
}
