//! Reading a configuration directory once: which files there are and what each declares.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use lateen_api::Mode;
use serde_json::Value;

use crate::key::ObjectKey;

/// Far more than configuration needs; keeps a wrong `--config /` from reading the disk.
const MAX_FILES: usize = 10_000;
const MAX_FILE_BYTES: u64 = 8 << 20;
const MAX_DEPTH: usize = 16;

/// Identifies a state of a file without reading it: when it was written, its length, its inode (another
/// file may have come to its name with the first two alike).
pub(crate) type Signature = (Option<SystemTime>, u64, u64);

/// What one file declares. With errors it is not the whole of it: a document that is wrong declares
/// nothing, the good ones beside it count.
#[derive(Debug, Default)]
pub(crate) struct FileContent {
    pub objects: Vec<(ObjectKey, Value)>,
    pub errors: Vec<String>,
    pub warnings: Vec<String>,
}

/// The YAML and JSON files under `directory`, by path relative to it. Hidden files and directories
/// are left out (editors and Kubernetes' volumes keep their temporaries there); links are followed.
pub(crate) fn list(directory: &Path) -> io::Result<BTreeMap<String, Signature>> {
    let mut files = BTreeMap::new();
    let mut pending = vec![(directory.to_owned(), 0)];
    while let Some((path, depth)) = pending.pop() {
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if depth == 0 => return Err(error),
            // A directory that vanished between listing and reading.
            Err(_) => continue,
        };
        for entry in entries.flatten() {
            let path = entry.path();
            if entry.file_name().to_string_lossy().starts_with('.') {
                continue;
            }
            let Ok(metadata) = fs::metadata(&path) else {
                continue;
            };
            if metadata.is_dir() && depth < MAX_DEPTH {
                pending.push((path, depth + 1));
            } else if metadata.is_file() && is_document(&path) {
                let signature = (metadata.modified().ok(), metadata.len(), metadata.ino());
                files.insert(relative(directory, &path), signature);
            }
            if files.len() > MAX_FILES {
                return Err(io::Error::other(format!(
                    "it has more than {MAX_FILES} YAML files"
                )));
            }
        }
    }
    Ok(files)
}

/// Reads and parses one file. Unknown fields are warnings here: one typo must not take a running
/// mesh down.
pub(crate) fn read(directory: &Path, file: &str) -> FileContent {
    let path = directory.join(file);
    let bad = |error| FileContent {
        errors: vec![error],
        ..FileContent::default()
    };
    let text = match read_text(&path) {
        Ok(text) => text,
        Err(error) => return bad(format!("{file}: cannot be read: {error}")),
    };
    if text.is_empty() {
        return bad(format!(
            "{file}: is empty, as if half written; delete it to remove what it declared"
        ));
    }
    let parsed = lateen_api::parse(file, &text, Mode::AllowUnknown);
    let (errors, warnings): (Vec<_>, Vec<_>) =
        parsed.diagnostics.into_iter().partition(|d| d.is_error());
    let objects = parsed.objects.into_iter().map(|parsed| {
        let mut object = parsed.object;
        let key = ObjectKey::adopt(&mut object);
        (key, object.to_stored_json())
    });
    FileContent {
        objects: objects.collect(),
        errors: errors.iter().map(ToString::to_string).collect(),
        warnings: warnings.iter().map(ToString::to_string).collect(),
    }
}

fn read_text(path: &Path) -> io::Result<String> {
    if fs::metadata(path)?.len() > MAX_FILE_BYTES {
        return Err(io::Error::other(format!(
            "larger than {MAX_FILE_BYTES} bytes"
        )));
    }
    fs::read_to_string(path)
}

fn is_document(path: &Path) -> bool {
    let extension = path.extension().and_then(|e| e.to_str());
    matches!(extension, Some("yaml" | "yml" | "json"))
}

fn relative(directory: &Path, path: &Path) -> String {
    let relative: PathBuf = path.strip_prefix(directory).unwrap_or(path).to_owned();
    relative.to_string_lossy().into_owned()
}
