//! Parser events to a tree: anchors, merge keys, duplicate keys and the bounds on depth and size.

use std::collections::HashMap;

use saphyr_parser::{Event, Marker, ScalarStyle, Span, Tag};

use super::{YamlError, scalar};
use crate::node::{Entry, Node, Position, Value};
use crate::path::Path;

/// Far deeper than any kind; what is deeper is an attack on the stack.
const MAX_DEPTH: usize = 64;
/// Nodes that aliases may add to one document ("billion laughs").
const MAX_ALIASED_NODES: usize = 20_000;

struct Frame {
    at: Position,
    anchor: usize,
    container: Container,
}

enum Container {
    Sequence(Vec<Node>),
    Mapping(Mapping),
}

#[derive(Default)]
struct Mapping {
    entries: Vec<Entry>,
    /// Key to its line, to name both lines of a duplicate.
    seen: HashMap<String, Position>,
    /// Entries of `<<`, which lose against the mapping's own.
    merged: Vec<Entry>,
    key: Option<Key>,
    /// What stood before a second `apiVersion` or `kind`: documents of their own.
    earlier: Vec<Vec<Entry>>,
}

struct Key {
    text: String,
    at: Position,
    merge: bool,
}

pub struct Builder {
    line_offset: u32,
    /// Where the text ends.
    end: Position,
    stack: Vec<Frame>,
    anchors: HashMap<usize, (Node, usize)>,
    aliased_nodes: usize,
    roots: Vec<Node>,
    errors: Vec<YamlError>,
}

impl Builder {
    /// For text that stands after `line_offset` lines of the source.
    pub fn new(text: &str, line_offset: u32) -> Builder {
        let (count, last) = super::lines(text).fold((0, ""), |(count, _), row| (count + 1, row));
        let column = last.trim_end().chars().count() as u32 + 1;
        let end = Position {
            line: line_offset + count.max(1),
            column,
        };
        Builder {
            line_offset,
            end,
            stack: Vec::new(),
            anchors: HashMap::new(),
            aliased_nodes: 0,
            roots: Vec::new(),
            errors: Vec::new(),
        }
    }

    /// The parser misses what is missing at the end on a line after the last; readers have no such
    /// line.
    pub fn position(&self, marker: Marker) -> Position {
        let line = marker.line().max(1) as u32 + self.line_offset;
        if line > self.end.line {
            return self.end;
        }
        Position {
            line,
            column: marker.col() as u32 + 1,
        }
    }

    /// The document's trees (one, or more when a `---` is missing) and what is wrong with them.
    pub fn finish_document(&mut self) -> (Vec<Node>, Vec<YamlError>) {
        self.anchors.clear();
        self.stack.clear();
        (
            std::mem::take(&mut self.roots),
            std::mem::take(&mut self.errors),
        )
    }

    pub fn event(&mut self, event: Event<'_>, span: Span) -> Result<(), YamlError> {
        let at = self.position(span.start);
        match event {
            Event::Scalar(text, ScalarStyle::Plain, ..) if text == "<<" && self.awaits_key() => {
                self.set_key(Key {
                    text: text.into_owned(),
                    at,
                    merge: true,
                });
                Ok(())
            }
            Event::Scalar(text, style, anchor, tag) => {
                let value = self.scalar(&text, style, tag.as_deref(), at)?;
                self.complete(Node { at, value }, anchor)
            }
            Event::SequenceStart(anchor, tag) => {
                self.check_tag(tag.as_deref(), &["seq"], at)?;
                self.push(at, anchor, Container::Sequence(Vec::new()))
            }
            Event::MappingStart(anchor, tag) => {
                self.check_tag(tag.as_deref(), &["map"], at)?;
                self.push(at, anchor, Container::Mapping(Mapping::default()))
            }
            Event::SequenceEnd | Event::MappingEnd => self.pop(),
            Event::Alias(anchor) => self.alias(anchor, at),
            _ => Ok(()),
        }
    }

    fn push(&mut self, at: Position, anchor: usize, container: Container) -> Result<(), YamlError> {
        if self.stack.len() >= MAX_DEPTH {
            return Err(YamlError::new(
                at,
                format!("nested deeper than {MAX_DEPTH} levels"),
            ));
        }
        self.stack.push(Frame {
            at,
            anchor,
            container,
        });
        Ok(())
    }

    fn pop(&mut self) -> Result<(), YamlError> {
        let Some(frame) = self.stack.pop() else {
            return Ok(());
        };
        let value = match frame.container {
            Container::Sequence(items) => Value::Sequence(items),
            Container::Mapping(mut mapping) => {
                for entry in std::mem::take(&mut mapping.merged) {
                    if !mapping.seen.contains_key(&entry.key) {
                        mapping.seen.insert(entry.key.clone(), entry.key_at);
                        mapping.entries.push(entry);
                    }
                }
                // The part after a missing `---` starts at its own first key.
                let root = |entries: Vec<Entry>| Node {
                    at: entries.first().map_or(frame.at, |entry| entry.key_at),
                    value: Value::Mapping(entries),
                };
                if !mapping.earlier.is_empty() {
                    self.roots.extend(mapping.earlier.into_iter().map(root));
                    return self.complete(root(mapping.entries), frame.anchor);
                }
                Value::Mapping(mapping.entries)
            }
        };
        self.complete(
            Node {
                at: frame.at,
                value,
            },
            frame.anchor,
        )
    }

    fn alias(&mut self, anchor: usize, at: Position) -> Result<(), YamlError> {
        let Some((node, size)) = self.anchors.get(&anchor) else {
            return Err(YamlError::new(
                at,
                "an alias inside the thing it stands for",
            ));
        };
        self.aliased_nodes += size;
        if self.aliased_nodes > MAX_ALIASED_NODES {
            let message =
                format!("aliases make this document larger than {MAX_ALIASED_NODES} nodes");
            return Err(YamlError::new(at, message).suggest("write the values out"));
        }
        let mut node = node.clone();
        node.at = at;
        if depth(&node) + self.stack.len() > MAX_DEPTH {
            return Err(YamlError::new(
                at,
                format!("nested deeper than {MAX_DEPTH} levels"),
            ));
        }
        self.complete(node, 0)
    }

    /// A node is whole: it becomes a key, a value, an element or a root.
    fn complete(&mut self, node: Node, anchor: usize) -> Result<(), YamlError> {
        if anchor != 0 {
            let size = count(&node);
            self.anchors.insert(anchor, (node.clone(), size));
        }
        let at_root = self.stack.len() == 1;
        let Some(frame) = self.stack.last_mut() else {
            self.roots.push(node);
            return Ok(());
        };
        let mapping = match &mut frame.container {
            Container::Sequence(items) => {
                items.push(node);
                return Ok(());
            }
            Container::Mapping(mapping) => mapping,
        };
        let Some(key) = mapping.key.take() else {
            let text = key_text(&node)?;
            mapping.key = Some(Key {
                merge: false,
                text,
                at: node.at,
            });
            return Ok(());
        };
        if key.merge {
            return merge(mapping, node);
        }
        if let Some(first) = mapping.seen.get(&key.text).copied() {
            let forgotten_separator = at_root && matches!(key.text.as_str(), "apiVersion" | "kind");
            if forgotten_separator {
                mapping.earlier.push(std::mem::take(&mut mapping.entries));
                mapping.seen.clear();
            }
            self.duplicate(&key, first, forgotten_separator);
            if !forgotten_separator {
                return Ok(());
            }
        }
        if let Some(Frame {
            container: Container::Mapping(mapping),
            ..
        }) = self.stack.last_mut()
        {
            mapping.seen.insert(key.text.clone(), key.at);
            mapping.entries.push(Entry {
                key: key.text,
                key_at: key.at,
                value: node,
            });
        }
        Ok(())
    }

    fn duplicate(&mut self, key: &Key, first: Position, forgotten_separator: bool) {
        let message = format!(
            "duplicate key {:?}: first at line {}, again at line {}",
            key.text, first.line, key.at.line
        );
        let mut error = YamlError::new(key.at, message);
        error.path = self.path().key(&key.text);
        self.errors.push(match forgotten_separator {
            true => error.suggest(format!(
                "a \"---\" line is probably missing before line {}",
                key.at.line
            )),
            false => error.suggest("remove one of them"),
        });
    }

    /// Path of the container on top of the stack.
    fn path(&self) -> Path {
        let mut path = Path::root();
        let below_top = self.stack.len().saturating_sub(1);
        for frame in &self.stack[..below_top] {
            match &frame.container {
                Container::Sequence(items) => path.push_index(items.len()),
                Container::Mapping(mapping) => {
                    path.push_key(mapping.key.as_ref().map_or("", |key| &key.text));
                }
            }
        }
        path
    }

    fn awaits_key(&self) -> bool {
        matches!(self.stack.last(), Some(Frame { container: Container::Mapping(mapping), .. }) if mapping.key.is_none())
    }

    fn set_key(&mut self, key: Key) {
        if let Some(Frame {
            container: Container::Mapping(mapping),
            ..
        }) = self.stack.last_mut()
        {
            mapping.key = Some(key);
        }
    }

    fn scalar(
        &mut self,
        text: &str,
        style: ScalarStyle,
        tag: Option<&Tag>,
        at: Position,
    ) -> Result<Value, YamlError> {
        self.check_tag(tag, &["str", "int", "float", "bool", "null"], at)?;
        // `1: x` and `on: x` have the keys "1" and "on", as labels and port maps need.
        if self.awaits_key() || tag.is_some_and(|tag| tag.suffix == "str" || tag.handle == "!") {
            return Ok(Value::String(text.to_owned()));
        }
        // `!!int "5"` asks for the meaning of the plain word.
        if style == ScalarStyle::Plain || tag.is_some() {
            return Ok(scalar::plain(text));
        }
        Ok(Value::String(text.to_owned()))
    }

    /// Only YAML's own tags, and `!` for "a string whatever it looks like".
    fn check_tag(
        &self,
        tag: Option<&Tag>,
        allowed: &[&str],
        at: Position,
    ) -> Result<(), YamlError> {
        let Some(Tag { handle, suffix }) = tag else {
            return Ok(());
        };
        let known = tag.is_some_and(Tag::is_yaml_core_schema) && allowed.contains(&suffix.as_str());
        if known || matches!((handle.as_str(), suffix.as_str()), ("!", "") | ("", "!")) {
            return Ok(());
        }
        let error = YamlError::new(at, format!("the tag {handle}{suffix} means nothing here"));
        Err(error.suggest("remove it"))
    }
}

fn key_text(node: &Node) -> Result<String, YamlError> {
    match &node.value {
        Value::String(text) => Ok(text.clone()),
        _ => Err(YamlError::new(
            node.at,
            format!("a key must be a word, found {}", node.describe()),
        )),
    }
}

fn merge(mapping: &mut Mapping, node: Node) -> Result<(), YamlError> {
    let wrong = |node: &Node| {
        YamlError::new(
            node.at,
            format!(
                "\"<<\" merges a mapping or a list of mappings, found {}",
                node.describe()
            ),
        )
    };
    match node.value {
        Value::Mapping(entries) => mapping.merged.extend(entries),
        Value::Sequence(items) => {
            for item in items {
                match item.value {
                    Value::Mapping(entries) => mapping.merged.extend(entries),
                    _ => return Err(wrong(&item)),
                }
            }
        }
        _ => return Err(wrong(&node)),
    }
    Ok(())
}

fn count(node: &Node) -> usize {
    1 + match &node.value {
        Value::Sequence(items) => items.iter().map(count).sum(),
        Value::Mapping(entries) => entries.iter().map(|entry| count(&entry.value)).sum(),
        _ => 0,
    }
}

fn depth(node: &Node) -> usize {
    1 + match &node.value {
        Value::Sequence(items) => items.iter().map(depth).max().unwrap_or(0),
        Value::Mapping(entries) => entries
            .iter()
            .map(|entry| depth(&entry.value))
            .max()
            .unwrap_or(0),
        _ => 0,
    }
}
