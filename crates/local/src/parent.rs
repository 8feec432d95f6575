//! A child process's tie to its parent: when the parent dies, the child leaves.
//!
//! The parent holds the write end of the child's standard input and never writes to it. However
//! the parent ends, even by SIGKILL, the kernel closes that end and the child reads end of file.
//! This works alike on Linux and macOS; `prctl(PR_SET_PDEATHSIG)` would be Linux only, and fires
//! when the parent's *thread* ends.

use std::io::Read;

/// Ends this process when its standard input ends. Returns at once; a thread does the waiting.
pub fn exit_with_parent() {
    std::thread::Builder::new()
        .name("parent".into())
        .stack_size(64 * 1024)
        .spawn(|| {
            wait_for_parent_end();
            std::process::exit(0);
        })
        .map(drop)
        .unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot watch the parent process");
        });
}

/// Blocks until standard input ends, which it does when the parent is gone.
pub(crate) fn wait_for_parent_end() {
    let mut stdin = std::io::stdin().lock();
    let mut buffer = [0u8; 64];
    loop {
        match stdin.read(&mut buffer) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}
