//! Where in a message the compiler is, and the three states of a field.

use crate::{ConfigError, Notice};
use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt::{self, Display, Write};

/// A place in the message being compiled. Lives on the stack beside the recursion; the path is only
/// spelled out when something is to be said about it.
#[derive(Clone, Copy)]
pub(crate) struct At<'a> {
    parent: Option<&'a At<'a>>,
    segment: Segment<'a>,
    notices: &'a RefCell<Vec<Notice>>,
}

#[derive(Clone, Copy)]
enum Segment<'a> {
    Root,
    Field(&'a str),
    Index(&'a str, usize),
    Key(&'a str, &'a str),
}

impl<'a> At<'a> {
    pub(crate) fn root(notices: &'a RefCell<Vec<Notice>>) -> Self {
        At {
            parent: None,
            segment: Segment::Root,
            notices,
        }
    }

    /// The place of a field of this message.
    pub(crate) fn field<'b>(&'b self, name: &'b str) -> At<'b> {
        self.child(Segment::Field(name))
    }

    /// The place of one element of a repeated field.
    pub(crate) fn item<'b>(&'b self, name: &'b str, index: usize) -> At<'b> {
        self.child(Segment::Index(name, index))
    }

    /// The place of one entry of a map field.
    pub(crate) fn key<'b>(&'b self, name: &'b str, key: &'b str) -> At<'b> {
        self.child(Segment::Key(name, key))
    }

    fn child<'b>(&'b self, segment: Segment<'b>) -> At<'b> {
        At {
            parent: Some(self),
            segment,
            notices: self.notices,
        }
    }

    /// The error for this place.
    pub(crate) fn error(&self, reason: impl Display) -> ConfigError {
        ConfigError {
            path: self.to_string(),
            reason: reason.to_string(),
        }
    }

    /// The error for something this proxy has not got yet.
    pub(crate) fn not_supported(&self) -> ConfigError {
        self.error("not supported yet")
    }

    /// Reports that this field changes nothing.
    pub(crate) fn notice(&self, what: impl Display) {
        let notice = Notice {
            path: self.to_string(),
            what: what.to_string(),
        };
        self.notices.borrow_mut().push(notice);
    }
}

impl Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
            if !matches!(parent.segment, Segment::Root) {
                f.write_char('.')?;
            }
        }
        match self.segment {
            Segment::Root => Ok(()),
            // A raw identifier (`r#match`) stands for the proto field `match`.
            Segment::Field(name) => f.write_str(name.trim_start_matches("r#")),
            Segment::Index(name, index) => write!(f, "{}[{index}]", name.trim_start_matches("r#")),
            Segment::Key(name, key) => write!(f, "{name}[\"{key}\"]"),
        }
    }
}

/// Whether a proto field was given.
pub(crate) trait IsSet {
    fn is_set(&self) -> bool;
}

impl<T> IsSet for Option<T> {
    fn is_set(&self) -> bool {
        self.is_some()
    }
}

impl<T> IsSet for Vec<T> {
    fn is_set(&self) -> bool {
        !self.is_empty()
    }
}

impl<K, V> IsSet for HashMap<K, V> {
    fn is_set(&self) -> bool {
        !self.is_empty()
    }
}

impl IsSet for String {
    fn is_set(&self) -> bool {
        !self.is_empty()
    }
}

impl IsSet for bool {
    fn is_set(&self) -> bool {
        *self
    }
}

macro_rules! numbers_are_set_when_not_zero {
    ($($number:ty),*) => {$(
        impl IsSet for $number {
            fn is_set(&self) -> bool {
                *self != 0
            }
        }
    )*};
}
numbers_are_set_when_not_zero!(u32, i32, u64, i64);

/// Rejects each of these fields when it is given: leaving it out would change what the operator
/// relies on.
macro_rules! reject {
    ($at:expr; $($field:ident),+ $(,)?) => {$(
        if $crate::compile::scope::IsSet::is_set(&$field) {
            return Err($at.field(stringify!($field)).not_supported());
        }
    )+};
}

/// Accepts each of these fields without effect, and reports it when it is given.
macro_rules! report {
    ($at:expr, $what:literal; $($field:ident),+ $(,)?) => {$(
        if $crate::compile::scope::IsSet::is_set(&$field) {
            $at.field(stringify!($field)).notice($what);
        }
    )+};
}

pub(crate) use {reject, report};
