//! Access-log files: lines leave the workers in batches and are written on a thread of their own.
//!
//! Invariant: a slow disk never slows a request. Each file's queue is bounded; what does not fit
//! is dropped and counted.

use crate::worker::state::Worker;
use lateen_proxy_config::{AccessLog, AccessLogFormat, AccessLogSink, LogFilter};
use lateen_telemetry::format::Source;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::io::Write;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

/// Batches that may wait for the disk, per file. A batch is at most [`BATCH_BYTES`].
const QUEUED_BATCHES: usize = 32;

/// A worker hands lines over when it has collected this much, or after a short time.
pub(crate) const BATCH_BYTES: usize = 64 * 1024;

/// How long a line may wait in its worker.
const FLUSH_EVERY: Duration = Duration::from_millis(200);

/// One worker's lines that are not handed over yet, per sink.
#[derive(Default)]
pub(crate) struct LogBuffers {
    buffers: RefCell<HashMap<AccessLogSink, Rc<LogBuffer>>>,
    waker: RefCell<Option<Waker>>,
}

/// One worker's lines for one sink.
pub(crate) struct LogBuffer {
    file: Arc<LogFile>,
    bytes: RefCell<Vec<u8>>,
    lines: Cell<u64>,
}

/// One access log of a listener, as a worker writes it.
pub(crate) struct LogSink {
    format: Arc<AccessLogFormat>,
    filter: Option<Arc<LogFilter>>,
    buffer: Rc<LogBuffer>,
    worker: std::rc::Weak<Worker>,
}

impl LogSink {
    /// Adds one line, if the log wants it.
    pub(crate) fn write(&self, source: &impl Source) {
        if self.filter.as_ref().is_some_and(|f| !f.allows(source)) {
            return;
        }
        let mut bytes = self.buffer.bytes.borrow_mut();
        let first = bytes.is_empty();
        self.format
            .program
            .render(source, self.format.missing, &mut bytes);
        self.buffer.lines.set(self.buffer.lines.get() + 1);
        if bytes.len() >= BATCH_BYTES {
            drop(bytes);
            self.buffer.hand_over();
        } else if first
            && let Some(worker) = self.worker.upgrade()
            && let Some(waker) = worker.logs.waker.borrow().as_ref()
        {
            waker.wake_by_ref();
        }
    }
}

impl LogBuffer {
    fn hand_over(&self) {
        let mut bytes = self.bytes.borrow_mut();
        if !bytes.is_empty() {
            // A worker that logs keeps a buffer of the same size for what follows.
            let next = Vec::with_capacity(bytes.capacity().min(2 * BATCH_BYTES));
            self.file
                .write(std::mem::replace(&mut *bytes, next), self.lines.take());
        }
    }
}

impl LogBuffers {
    /// The sinks of some access logs.
    pub(crate) fn sinks(&self, worker: &Rc<Worker>, logs: &[AccessLog]) -> Vec<LogSink> {
        logs.iter()
            .map(|log| {
                let mut buffers = self.buffers.borrow_mut();
                let buffer = buffers.entry(log.sink.clone()).or_insert_with(|| {
                    Rc::new(LogBuffer {
                        file: worker.shared.access_logs.writer(&log.sink),
                        bytes: RefCell::default(),
                        lines: Cell::new(0),
                    })
                });
                let worker = Rc::downgrade(worker);
                LogSink {
                    format: log.format.clone(),
                    filter: log.filter.clone(),
                    buffer: buffer.clone(),
                    worker,
                }
            })
            .collect()
    }

    /// Hands everything over now.
    pub(crate) fn flush(&self) {
        self.buffers
            .borrow()
            .values()
            .for_each(|buffer| buffer.hand_over());
    }

    fn any(&self) -> bool {
        self.buffers
            .borrow()
            .values()
            .any(|buffer| !buffer.bytes.borrow().is_empty())
    }
}

/// Runs for the life of a worker; sleeps as long as there are no lines.
pub(crate) async fn flush_regularly(worker: Rc<Worker>) {
    loop {
        poll_fn(|cx| {
            if worker.logs.any() {
                return Poll::Ready(());
            }
            *worker.logs.waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
        tokio::time::sleep(FLUSH_EVERY).await;
        worker.logs.flush();
    }
}

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
