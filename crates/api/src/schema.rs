//! One declaration per message: `message!` and `choice!` make the Rust type, its decoder, its encoder
//! and the table of its fields from the same lines, so that they cannot disagree.
//!
//! ```text
//! message! {
//!     pub struct HttpRetry {                                  // the doc comment goes above
//!         effective attempts: Option<i32>,                    // JSON name = Rust name
//!         effective per_try_timeout "perTryTimeout": Option<Duration>,
//!         pending   backoff: Option<Duration>,                // kept, reported, no effect yet
//!         pending   percent: Option<u32> => "use percentage", // deprecated, with what to use instead
//!     }
//! }
//! ```
//!
//! To make a field work, change `pending` to `effective` in its line; nothing else knows.

/// Whether setting a field changes anything in this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    Effective,
    /// Accepted and kept, but without effect; each use is reported as a warning.
    Pending,
}

pub struct FieldInfo {
    /// As written in documents (camelCase).
    pub name: &'static str,
    pub support: Support,
    /// What to use instead, for a deprecated field.
    pub deprecated: Option<&'static str>,
    pub schema: fn() -> Schema,
}

pub struct MessageInfo {
    pub name: &'static str,
    pub fields: &'static [FieldInfo],
}

impl MessageInfo {
    pub fn field(&self, name: &str) -> Option<&'static FieldInfo> {
        self.fields.iter().find(|field| field.name == name)
    }
}

pub struct Variant {
    pub name: &'static str,
    pub support: Support,
    pub deprecated: Option<&'static str>,
}

/// The form of a value, for suggestions and for schema output.
#[derive(Clone, Copy)]
pub enum Schema {
    String,
    Bool,
    Integer {
        min: i128,
        max: i128,
    },
    Number,
    Duration,
    Timestamp,
    IntOrString,
    Enum(&'static [Variant]),
    List(fn() -> Schema),
    Map(fn() -> Schema),
    Message(&'static MessageInfo),
    /// Anything; kept as it is.
    Any,
}

impl Schema {
    /// The message inside, looking through lists and maps.
    pub fn message(self) -> Option<&'static MessageInfo> {
        match self {
            Schema::Message(info) => Some(info),
            Schema::List(inner) | Schema::Map(inner) => inner().message(),
            _ => None,
        }
    }
}

/// An enum of a document: the names it may have.
pub trait Choice: Sized + Copy + 'static {
    const VARIANTS: &'static [Variant];
    /// As written in documents.
    fn as_str(self) -> &'static str;
    fn from_name(name: &str) -> Option<Self>;

    fn is_effective(self) -> bool {
        let variant = Self::VARIANTS
            .iter()
            .find(|variant| variant.name == self.as_str());
        variant.is_some_and(|variant| variant.support == Support::Effective)
    }
}

macro_rules! message {
    (
        $(#[$meta:meta])*
        pub struct $name:ident {
            $( $(#[$field_meta:meta])* $support:ident $field:ident $($json:literal)? : $ty:ty $(=> $deprecated:literal)? ),*
            $(,)?
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, Default, PartialEq)]
        pub struct $name {
            $( $(#[$field_meta])* pub $field: $ty, )*
        }

        impl $name {
            pub const INFO: $crate::schema::MessageInfo = $crate::schema::MessageInfo {
                name: stringify!($name),
                fields: &[ $( $crate::schema::FieldInfo {
                    name: $crate::schema::json_name!($field $($json)?),
                    support: $crate::schema::support!($support),
                    deprecated: $crate::schema::optional!($($deprecated)?),
                    schema: <$ty as $crate::field::Field>::schema,
                } ),* ],
            };
        }

        impl $crate::field::Field for $name {
            fn schema() -> $crate::schema::Schema {
                static INFO: $crate::schema::MessageInfo = $name::INFO;
                $crate::schema::Schema::Message(&INFO)
            }

            fn decode(node: &$crate::node::Node, decoder: &mut $crate::decode::Decoder) -> Option<Self> {
                let entries = decoder.mapping(node)?;
                #[allow(unused_mut, reason = "a message without fields fills none")]
                let mut message = Self::default();
                for entry in entries {
                    match entry.key.as_str() {
                        $( $crate::schema::json_name!($field $($json)?) => {
                            if let Some(value) = decoder.field(entry, &Self::INFO) {
                                message.$field = value;
                            }
                        } )*
                        _ => decoder.unknown_field(entry, &Self::INFO),
                    }
                }
                Some(message)
            }

            fn encode(&self) -> serde_json::Value {
                #[allow(unused_mut, reason = "a message without fields encodes as an empty object")]
                let mut object = serde_json::Map::new();
                $( if !$crate::field::Field::is_absent(&self.$field) {
                    object.insert(
                        $crate::schema::json_name!($field $($json)?).to_owned(),
                        $crate::field::Field::encode(&self.$field),
                    );
                } )*
                serde_json::Value::Object(object)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                $crate::field::Field::encode(self).serialize(serializer)
            }
        }
    };
}

macro_rules! choice {
    (
        $(#[$meta:meta])*
        pub enum $name:ident {
            $( $(#[$variant_meta:meta])* $support:ident $variant:ident = $text:literal $(=> $deprecated:literal)? ),*
            $(,)?
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $( $(#[$variant_meta])* $variant, )*
        }

        impl $crate::schema::Choice for $name {
            const VARIANTS: &'static [$crate::schema::Variant] = &[ $( $crate::schema::Variant {
                name: $text,
                support: $crate::schema::support!($support),
                deprecated: $crate::schema::optional!($($deprecated)?),
            } ),* ];

            fn as_str(self) -> &'static str {
                match self { $( $name::$variant => $text, )* }
            }

            fn from_name(name: &str) -> Option<Self> {
                match name { $( $text => Some($name::$variant), )* _ => None }
            }
        }

        impl $crate::field::Field for $name {
            fn schema() -> $crate::schema::Schema {
                $crate::schema::Schema::Enum(<$name as $crate::schema::Choice>::VARIANTS)
            }

            fn decode(node: &$crate::node::Node, decoder: &mut $crate::decode::Decoder) -> Option<Self> {
                decoder.choice(node)
            }

            fn encode(&self) -> serde_json::Value {
                $crate::schema::Choice::as_str(*self).into()
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str($crate::schema::Choice::as_str(*self))
            }
        }
    };
}

macro_rules! json_name {
    ($field:ident) => {
        stringify!($field)
    };
    ($field:ident $json:literal) => {
        $json
    };
}

macro_rules! support {
    (effective) => {
        $crate::schema::Support::Effective
    };
    (pending) => {
        $crate::schema::Support::Pending
    };
}

macro_rules! optional {
    () => {
        None
    };
    ($value:literal) => {
        Some($value)
    };
}

pub(crate) use {choice, json_name, message, optional, support};
