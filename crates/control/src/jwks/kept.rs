//! Keys that were fetched, on disk: `keys.json` beside the store.
//!
//! A control plane that starts while an issuer cannot be reached has that issuer's last good keys all
//! the same. They are asked for again at once, and what comes takes their place.
//!
//! Bounded: what does not fit into [`MAX_BYTES`] is not kept, and has to be fetched after a restart.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lateen_api::request_authentication::check_key_set;
use lateen_model::{KeySets, KeySource};
use serde::{Deserialize, Serialize};

/// All key sets together; those of large issuers have some 10 KiB.
const MAX_BYTES: usize = 8 << 20;

pub(super) struct Kept {
    path: PathBuf,
    /// What is on disk.
    entries: Vec<Entry>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Entry {
    issuer: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    uri: String,
    keys: String,
}

impl Kept {
    pub fn in_(directory: &Path) -> Kept {
        Kept {
            path: directory.join("keys.json"),
            entries: Vec::new(),
        }
    }

    /// What was kept; nothing of it where it cannot be read.
    pub async fn load(&mut self) -> BTreeMap<KeySource, Arc<str>> {
        let path = self.path.clone();
        let reading = tokio::task::spawn_blocking(move || read(&path)).await;
        self.entries = match reading {
            Ok(Ok(entries)) => entries,
            Ok(Err(error)) => {
                let path = self.path.display();
                tracing::warn!(%path, %error, "the keys of before cannot be read; they are fetched");
                Vec::new()
            }
            Err(_) => Vec::new(),
        };
        let good = |entry: &&Entry| check_key_set(&entry.keys).is_ok();
        let entries = self.entries.iter().filter(good);
        entries
            .map(|entry| {
                let source = KeySource {
                    issuer: entry.issuer.clone(),
                    uri: entry.uri.clone(),
                };
                (source, Arc::from(entry.keys.as_str()))
            })
            .collect()
    }

    /// Keeps the keys of these sets, and no others.
    pub async fn save(&mut self, sets: &KeySets) {
        let entries = fitting(sets);
        if entries == self.entries {
            return;
        }
        let (path, written) = (self.path.clone(), entries.clone());
        let writing = tokio::task::spawn_blocking(move || write(&path, &written));
        match writing.await {
            Ok(Ok(())) => self.entries = entries,
            Ok(Err(error)) => {
                let path = self.path.display();
                tracing::warn!(%path, %error, "keys cannot be kept for the next start");
            }
            Err(_) => {}
        }
    }
}

fn fitting(sets: &KeySets) -> Vec<Entry> {
    let mut left = MAX_BYTES;
    let entries = sets.iter().filter_map(|(source, set)| {
        let keys = set.keys.clone()?;
        let size = keys.len() + source.issuer.len() + source.uri.len();
        left = left.checked_sub(size)?;
        Some(Entry {
            issuer: source.issuer.clone(),
            uri: source.uri.clone(),
            keys: keys.to_string(),
        })
    });
    entries.collect()
}

fn read(path: &Path) -> io::Result<Vec<Entry>> {
    match fs::read(path) {
        Ok(text) => Ok(serde_json::from_slice(&text)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Replaces the file as a whole: who is killed meanwhile leaves the one before.
fn write(path: &Path, entries: &[Entry]) -> io::Result<()> {
    let draft = path.with_extension("json.new");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&draft)?;
    file.write_all(&serde_json::to_vec(entries)?)?;
    file.sync_all()?;
    fs::rename(&draft, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lateen_model::KeySet;
    use lateen_testkit::tokens::Issuer;
    use std::os::unix::fs::PermissionsExt;

    fn sets(of: &[(&str, &str)]) -> KeySets {
        let set = |(issuer, keys): &(&str, &str)| {
            let source = KeySource {
                issuer: (*issuer).to_owned(),
                uri: String::new(),
            };
            let keys = Some(Arc::from(*keys));
            (source, KeySet { keys, error: None })
        };
        of.iter().map(set).collect()
    }

    #[tokio::test]
    async fn keys_are_kept_privately_and_only_while_they_are_wanted() {
        let directory = tempfile::tempdir().unwrap();
        let good = Issuer::new("a").jwks();
        let mut kept = Kept::in_(directory.path());
        assert_eq!(kept.load().await.len(), 0);
        kept.save(&sets(&[("a", &good), ("b", "{}")])).await;
        let mode = fs::metadata(&kept.path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        // What no proxy would take is left out.
        let mut again = Kept::in_(directory.path());
        let loaded = again.load().await;
        let found: Vec<_> = loaded.keys().map(|source| source.issuer.as_str()).collect();
        assert_eq!(found, ["a"]);
        again.save(&sets(&[])).await;
        assert_eq!(Kept::in_(directory.path()).load().await.len(), 0);
        fs::write(&kept.path, "{").unwrap();
        assert_eq!(Kept::in_(directory.path()).load().await.len(), 0);
    }

    #[test]
    fn what_does_not_fit_is_not_kept() {
        let large = " ".repeat(MAX_BYTES);
        let found = fitting(&sets(&[("a", "small"), ("b", &large), ("c", "small")]));
        let found: Vec<_> = found.iter().map(|entry| entry.issuer.as_str()).collect();
        assert_eq!(found, ["a", "c"]);
    }
}
