//! What a process prints, written to a file of bounded size.
//!
//! `NAME.log` grows to [`MAX_SIZE`], then becomes `NAME.log.1` (replacing the previous one) and a
//! new one begins: at most twice the bound per process.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;

const MAX_SIZE: u64 = 4 << 20;
/// Longest part of a line that is kept to show in a table.
const SHOWN: usize = 200;

/// The last line that a process printed and that was not blank.
#[derive(Debug, Clone, Default)]
pub struct LastLine(Arc<Mutex<String>>);

impl LastLine {
    pub fn get(&self) -> Option<String> {
        let line = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (!line.is_empty()).then(|| line.clone())
    }

    fn set(&self, line: &str) {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.clear();
        last.extend(
            line.chars()
                .filter(|character| !character.is_control())
                .take(SHOWN),
        );
    }
}

/// A log file that is renamed away when it is full.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: File,
    size: u64,
}

impl Log {
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let size = file.metadata()?.len();
        Ok(Self {
            path: path.to_owned(),
            file,
            size,
        })
    }

    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.size += bytes.len() as u64;
        // Between lines if possible; a process that prints no newline is cut anyway.
        let full = self.size >= MAX_SIZE && bytes.ends_with(b"\n");
        if full || self.size >= MAX_SIZE + MAX_SIZE / 4 {
            std::fs::rename(&self.path, self.path.with_extension("log.1"))?;
            self.file = File::create(&self.path)?;
            self.size = 0;
        }
        Ok(())
    }
}

/// Copies a process's output into its log until every writer of the pipe is gone. Reading goes on
/// when the disk is full: a process must not block because its log cannot be written.
pub async fn pump(mut output: Receiver, log: Arc<Mutex<Log>>, last: LastLine) {
    let mut buffer = vec![0; 8 * 1024];
    let mut partial: Vec<u8> = Vec::new();
    while let Ok(count) = output.read(&mut buffer).await {
        if count == 0 {
            break;
        }
        let chunk = buffer.get(..count).unwrap_or_default();
        if let Err(error) = log
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write(chunk)
        {
            tracing::warn!(%error, "cannot write a log file");
        }
        remember(&mut partial, chunk, &last);
    }
    show(&partial, &last);
}

/// Keeps the line that is not finished yet, and shows the last one that is.
fn remember(partial: &mut Vec<u8>, chunk: &[u8], last: &LastLine) {
    for piece in chunk.split_inclusive(|byte| *byte == b'\n') {
        let room = (4 * SHOWN).saturating_sub(partial.len());
        partial.extend_from_slice(piece.get(..room.min(piece.len())).unwrap_or_default());
        if piece.ends_with(b"\n") {
            show(partial, last);
            partial.clear();
        }
    }
}

fn show(line: &[u8], last: &LastLine) {
    let text = String::from_utf8_lossy(line);
    if !text.trim().is_empty() {
        last.set(text.trim());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_log_is_renamed_and_a_new_one_begins() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.log");
        let line = [b"x".repeat(1023), b"\n".to_vec()].concat();
        let mut log = Log::open(&path).unwrap();
        for _ in 0..3 * MAX_SIZE / 1024 {
            log.write(&line).unwrap();
        }
        assert!(std::fs::metadata(&path).unwrap().len() <= MAX_SIZE);
        assert_eq!(
            std::fs::metadata(dir.path().join("app.log.1"))
                .unwrap()
                .len(),
            MAX_SIZE
        );
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn the_last_line_survives_blank_lines_and_arbitrary_chunks() {
        let last = LastLine::default();
        let mut partial = Vec::new();
        for chunk in ["Traceback:\n  Value", "Error: bad port\n", "\n", "  \n"] {
            remember(&mut partial, chunk.as_bytes(), &last);
        }
        assert_eq!(last.get().as_deref(), Some("ValueError: bad port"));
    }
}
