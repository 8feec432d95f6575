//! Header changes that routes, virtual hosts and weighted clusters ask for.

use bytes::Bytes;
use lateen_telemetry::format::Format;

/// The changes of one level, for both directions.
#[derive(Clone, Debug, Default)]
pub struct HeaderOps {
    pub request: HeaderMutations,
    pub response: HeaderMutations,
}

impl HeaderOps {
    /// Whether there is nothing to do in either direction.
    pub fn is_empty(&self) -> bool {
        self.request.is_empty() && self.response.is_empty()
    }
}

/// The changes of one level in one direction. First [`Self::remove`], then [`Self::add`] (Envoy,
/// `HeaderParser::evaluateHeaders`).
#[derive(Clone, Debug, Default)]
pub struct HeaderMutations {
    pub add: Vec<HeaderMutation>,
    /// Lower-case names.
    pub remove: Vec<Box<str>>,
}

impl HeaderMutations {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.add.is_empty() && self.remove.is_empty()
    }
}

/// One header to set or add.
#[derive(Clone, Debug)]
pub struct HeaderMutation {
    /// Lower case.
    pub name: Box<str>,
    pub value: HeaderTemplate,
    pub action: AppendAction,
    /// Otherwise a header whose value renders empty is not added.
    pub keep_empty_value: bool,
}

/// The value of a header to set.
#[derive(Clone, Debug)]
pub enum HeaderTemplate {
    /// No `%OPERATOR%` in it; `%%` is already one `%`.
    Literal(Bytes),
    /// Rendered per request, with [`lateen_telemetry::format::Missing::Empty`].
    Format(Box<Format>),
}

/// What to do when the header is already there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendAction {
    /// Add another value (Envoy's default).
    Append,
    /// Leave the existing one.
    AddIfAbsent,
    /// Replace all existing ones, or add.
    Overwrite,
    /// Replace all existing ones; do nothing when there is none.
    OverwriteIfExists,
}
