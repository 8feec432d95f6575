//! Text that leaves a process about its traffic: access-log lines and metric expositions.
//!
//! Shared by both halves of the mesh. It holds no counters and opens no files: callers bring the
//! values and the buffer.
//!
//! - [`format`]: Envoy's access-log format strings, compiled once and rendered without allocation.
//! - [`envoy_stats`]: Envoy's names for statistics, dotted and as Prometheus labels.
//! - [`prometheus`]: the Prometheus text format.
//!
//! Invariant: nothing here does I/O.

pub mod envoy_stats;
pub mod format;
pub mod prometheus;
