//! A resource as it came. What may hold a private key leaves nothing behind in memory.

use std::fmt;
use std::ops::{Deref, DerefMut};

use envoy_types::pb::google::protobuf::Any;
use zeroize::Zeroize;

use crate::type_url;

/// Bytes and their type.
#[derive(Clone, Default, PartialEq)]
pub struct Raw(Any);

impl From<Any> for Raw {
    fn from(any: Any) -> Self {
        Raw(any)
    }
}

impl Deref for Raw {
    type Target = Any;

    fn deref(&self) -> &Any {
        &self.0
    }
}

impl DerefMut for Raw {
    fn deref_mut(&mut self) -> &mut Any {
        &mut self.0
    }
}

impl fmt::Debug for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} bytes)", self.type_url, self.value.len())
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if self.0.type_url == type_url::SECRET {
            self.0.value.zeroize();
        }
    }
}
