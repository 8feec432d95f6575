//! Configuration of the first start: Istio YAML from files, directories or our own text, applied
//! once. What a person changes or deletes later stays changed.

use std::path::{Path, PathBuf};

use lateen_api::{Mode, Object as ApiObject, parse};

use super::api::{Api, ApiError};
use crate::objects::Object;

/// One source of YAML, read and found correct.
#[derive(Debug)]
pub struct Seed {
    objects: Vec<ApiObject>,
}

/// Why a source cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SeedError {
    #[error("cannot read {path}: {source}; correct \"config\" in the mesh file")]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{0}")]
    Invalid(String),
}

impl Seed {
    /// Parses YAML. Warnings are returned beside it.
    pub fn from_text(name: &str, text: &str) -> Result<(Self, Vec<String>), SeedError> {
        let parsed = parse(name, text, Mode::Strict);
        if parsed.has_errors() {
            let rendered = parsed.render(text, false);
            return Err(SeedError::Invalid(rendered.trim_end().to_owned()));
        }
        let warnings = parsed.diagnostics.iter().map(ToString::to_string).collect();
        let objects = parsed
            .objects
            .into_iter()
            .map(|parsed| parsed.object)
            .collect();
        Ok((Self { objects }, warnings))
    }

    /// Reads a file, or every `.yaml` and `.yml` of a directory and those below it, in the order
    /// of their names.
    pub fn from_path(path: &Path) -> Result<Vec<(Self, Vec<String>)>, SeedError> {
        let fail = |source| SeedError::Read {
            path: path.to_owned(),
            source,
        };
        if !path.metadata().map_err(fail)?.is_dir() {
            let text = std::fs::read_to_string(path).map_err(fail)?;
            return Ok(vec![Self::from_text(&path.display().to_string(), &text)?]);
        }
        let mut entries: Vec<PathBuf> = std::fs::read_dir(path)
            .and_then(|entries| {
                entries
                    .map(|entry| entry.map(|entry| entry.path()))
                    .collect()
            })
            .map_err(fail)?;
        entries.sort();
        let mut seeds = Vec::new();
        for entry in entries {
            let is_yaml = entry
                .extension()
                .is_some_and(|ext| ext == "yaml" || ext == "yml");
            if is_yaml || entry.is_dir() {
                seeds.extend(Self::from_path(&entry)?);
            }
        }
        Ok(seeds)
    }
}

/// Applies every object of the seeds.
pub async fn apply(api: &Api, seeds: &[Seed]) -> Result<(), ApiError> {
    for object in seeds.iter().flat_map(|seed| &seed.objects) {
        api.apply(&Object {
            path: path_of(object),
            json: object.to_json(),
        })
        .await?;
    }
    Ok(())
}

fn path_of(object: &ApiObject) -> String {
    let info = object.kind.info();
    let root = match info.group {
        "" => "/api/v1".to_owned(),
        group => format!("/apis/{group}/{}", info.storage_version),
    };
    let name = &object.meta.name;
    if !info.namespaced {
        return format!("{root}/{}/{name}", info.plural);
    }
    let namespace = match object.meta.namespace.as_str() {
        "" => "default",
        namespace => namespace,
    };
    format!("{root}/namespaces/{namespace}/{}/{name}", info.plural)
}
