//! Text that leaves a process about its traffic: access-log lines and metric expositions.
//!
//! Shared by both halves of the mesh. It holds no counters and opens no files: callers bring the
//! values and the buffer.
//!
//! - [`format`]: Envoy's access-log format strings, compiled once and rendered without allocation.
//!
//! Invariant: nothing here does I/O.

pub mod format;
