//! One configuration object: its name and its content.

use serde_json::Value as Json;

use crate::field::Field;
use crate::kind::Kind;
use crate::meta::ObjectMeta;

pub use crate::kind::SpecOf as Spec;

#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// As the document says it; all versions of a kind have the same form.
    pub api_version: String,
    pub kind: Kind,
    pub meta: ObjectMeta,
    pub spec: Spec,
    pub status: Option<Json>,
    /// It stands for one that cannot be read, see [`Object::closed_for`].
    pub closed: bool,
}

impl Object {
    /// An object in the kind's storage version, without status.
    pub fn new(meta: ObjectMeta, spec: impl Into<Spec>) -> Object {
        let spec = spec.into();
        let kind = spec.kind();
        Object {
            api_version: kind.api_version(),
            kind,
            meta,
            spec,
            status: None,
            closed: false,
        }
    }

    /// In the order that people write.
    pub fn to_json(&self) -> Json {
        let mut object = serde_json::Map::new();
        object.insert(
            "apiVersion".to_owned(),
            Json::from(self.api_version.as_str()),
        );
        object.insert("kind".to_owned(), Json::from(self.kind.info().name));
        object.insert("metadata".to_owned(), self.meta.encode());
        let spec = self.spec.encode();
        if self.kind.content_at_root() {
            object.extend(spec.as_object().cloned().unwrap_or_default());
        } else if spec.as_object().is_none_or(|spec| !spec.is_empty()) {
            object.insert("spec".to_owned(), spec);
        }
        if let Some(status) = &self.status {
            object.insert("status".to_owned(), status.clone());
        }
        Json::Object(object)
    }

    /// What is kept of an object: of a Secret, `stringData` has become part of `data`.
    pub fn to_stored_json(&self) -> Json {
        let Spec::Secret(secret) = &self.spec else {
            return self.to_json();
        };
        let spec = Spec::from(secret.joined());
        let stored = Object {
            spec,
            ..self.clone()
        };
        stored.to_json()
    }

    /// One YAML document that reads back as the same object; without `---`, ends with a line break.
    pub fn to_yaml(&self) -> String {
        crate::yaml::write(&self.to_json())
    }
}

impl serde::Serialize for Object {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_json().serialize(serializer)
    }
}
