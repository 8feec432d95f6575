//! `-o`: the forms in which a verb prints what it found.

use serde_json::Value;

/// Forms that every verb has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Columns for people
    #[value(alias = "short", alias = "summary")]
    Table,
    Json,
    Yaml,
}

/// Prints a document; false if the form is for people.
pub fn document(format: Format, document: &Value) -> bool {
    match format {
        Format::Table => return false,
        Format::Json => json(document),
        Format::Yaml => yaml(document),
    }
    true
}

/// Four spaces, as kubectl and istioctl indent.
pub fn json(document: &Value) {
    use serde::Serialize;
    let mut text = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, formatter);
    // Values have string keys and are written to memory; that cannot fail.
    let _ = document.serialize(&mut serializer);
    anstream::println!("{}", String::from_utf8_lossy(&text));
}

pub fn yaml(document: &Value) {
    anstream::print!("{}", lateen_api::to_yaml(document));
}
