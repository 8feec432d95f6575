//! `-o`: the forms in which a verb prints what it found.

use std::io::{ErrorKind, Write};
use std::sync::OnceLock;

use serde_json::Value;

use crate::failure::{Failure, Outcome};

/// Prints like `print!`. A full disk does not stop the verb in the middle of its changes:
/// [`complete`] tells of it at the end. `lateen get vs | head -1` is no failure.
macro_rules! out {
    ($($text:tt)*) => {{
        $crate::output::write(format_args!($($text)*));
    }};
}

/// The same with the end of the line.
macro_rules! outln {
    () => { out!("\n") };
    ($($text:tt)*) => {{
        $crate::output::write(format_args!("{}\n", format_args!($($text)*)));
    }};
}

/// The first failure of standard output.
static BROKEN: OnceLock<std::io::Error> = OnceLock::new();

/// Whether anybody still reads it; a verb that would go on for ever ends when nobody does.
pub fn write(text: std::fmt::Arguments<'_>) -> bool {
    let mut stdout = anstream::stdout().lock();
    match stdout.write_fmt(text).and_then(|()| stdout.flush()) {
        Ok(()) => true,
        Err(error) => {
            let _ = BROKEN.set(error);
            false
        }
    }
}

/// What became of everything that was printed.
pub fn complete() -> Outcome {
    match BROKEN.get() {
        Some(error) if error.kind() != ErrorKind::BrokenPipe => Err(Failure::other(format!(
            "cannot write to standard output: {error}"
        ))),
        _ => Ok(()),
    }
}

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
    outln!("{}", String::from_utf8_lossy(&text));
}

pub fn yaml(document: &Value) {
    out!("{}", lateen_api::to_yaml(document));
}
