//! Where a finished request or connection is written down, and how.

use lateen_telemetry::format::Format;
use std::path::PathBuf;
use std::sync::Arc;

/// One access log of a listener, connection manager or TCP proxy.
#[derive(Clone, Debug)]
pub struct AccessLog {
    pub sink: AccessLogSink,
    pub format: Arc<AccessLogFormat>,
}

/// Where lines go. `/dev/stdout` and `/dev/stderr` are their own sinks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum AccessLogSink {
    Stdout,
    Stderr,
    File(PathBuf),
}

/// How a line looks. The line feed is part of the format.
#[derive(Clone, Debug)]
pub struct AccessLogFormat {
    pub program: Format,
    /// `omit_empty_values`: nothing rather than `-` for an absent value.
    pub omit_empty_values: bool,
}
