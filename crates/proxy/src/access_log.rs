//! Access-log files: lines leave the workers in batches and are written on a thread of their own.
//!
//! Invariant: a slow disk never slows a request. Each file's queue is bounded; what does not fit
//! is dropped and counted.

use lateen_proxy_config::AccessLogSink;
use std::collections::HashMap;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

/// Batches that may wait for the disk, per file. A batch is at most [`BATCH_BYTES`].
const QUEUED_BATCHES: usize = 64;

/// A worker hands lines over when it has collected this much, or after a short time.
pub(crate) const BATCH_BYTES: usize = 16 * 1024;

/// The open log files of the process, by sink.
#[derive(Default)]
pub(crate) struct AccessLogWriters {
    open: Mutex<HashMap<AccessLogSink, Arc<LogFile>>>,
    dropped: Arc<AtomicU64>,
}

/// One log file (or standard stream).
pub(crate) struct LogFile {
    queue: SyncSender<Message>,
    dropped: Arc<AtomicU64>,
}

enum Message {
    Lines { bytes: Vec<u8>, count: u64 },
    Reopen,
    Flush(SyncSender<()>),
}

impl AccessLogWriters {
    /// The writer for a sink; its thread starts with the first use.
    pub(crate) fn writer(&self, sink: &AccessLogSink) -> Arc<LogFile> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = open.get(sink) {
            return file.clone();
        }
        let (queue, messages) = sync_channel(QUEUED_BATCHES);
        let dropped = self.dropped.clone();
        let of = sink.clone();
        let spawned = std::thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || write_all(&of, &messages, &dropped));
        if let Err(error) = spawned {
            // The queue's other end is gone, so every line counts as dropped.
            tracing::error!(%error, ?sink, "cannot start the access-log thread");
        }
        let file = Arc::new(LogFile {
            queue,
            dropped: self.dropped.clone(),
        });
        open.insert(sink.clone(), file.clone());
        file
    }

    pub(crate) fn reopen(&self) {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        for file in open.values() {
            // A full queue means the disk is slow; the next rotation will try again.
            let _ = file.queue.try_send(Message::Reopen);
        }
    }

    /// Waits until what was handed over is written, or the writer is gone.
    pub(crate) fn flush(&self) {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        for file in open.values() {
            let (done, wait) = sync_channel(1);
            if file.queue.try_send(Message::Flush(done)).is_ok() {
                let _ = wait.recv_timeout(std::time::Duration::from_secs(1));
            }
        }
    }

    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }
}

impl LogFile {
    /// Hands a batch over. Never waits.
    pub(crate) fn write(&self, bytes: Vec<u8>, count: u64) {
        match self.queue.try_send(Message::Lines { bytes, count }) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.dropped.fetch_add(count, Relaxed);
            }
        }
    }
}

fn write_all(sink: &AccessLogSink, messages: &Receiver<Message>, dropped: &AtomicU64) {
    let mut file = open(sink);
    while let Ok(message) = messages.recv() {
        match message {
            Message::Lines { bytes, count } => {
                let written = file
                    .as_mut()
                    .is_some_and(|file| file.write_all(&bytes).is_ok());
                if !written {
                    dropped.fetch_add(count, Relaxed);
                }
            }
            Message::Reopen => file = open(sink),
            Message::Flush(done) => {
                if let Some(file) = &mut file {
                    let _ = file.flush();
                }
                let _ = done.send(());
            }
        }
    }
}

fn open(sink: &AccessLogSink) -> Option<Box<dyn Write>> {
    match sink {
        AccessLogSink::Stdout => Some(Box::new(std::io::stdout())),
        AccessLogSink::Stderr => Some(Box::new(std::io::stderr())),
        AccessLogSink::File(path) => {
            match std::fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(path)
            {
                Ok(file) => Some(Box::new(file)),
                Err(error) => {
                    tracing::error!(%error, path = %path.display(), "cannot open the access log");
                    None
                }
            }
        }
    }
}
