//! Where a finished request or connection is written down, and how.

use crate::route::HeaderMatcher;
use lateen_telemetry::format::{Field, Format, Headers, Missing, Source, Value};
use std::path::PathBuf;
use std::sync::Arc;

/// One access log of a listener, connection manager or TCP proxy.
#[derive(Clone, Debug)]
pub struct AccessLog {
    pub sink: AccessLogSink,
    pub format: Arc<AccessLogFormat>,
    /// Which requests are written down; [`None`]: all.
    pub filter: Option<Arc<LogFilter>>,
}

impl AccessLog {
    /// Whether this request or connection is written down.
    pub fn wants(&self, source: &impl Source) -> bool {
        self.filter.as_ref().is_none_or(|f| f.allows(source))
    }
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
    /// Empty with `omit_empty_values`, otherwise `-`.
    pub missing: Missing,
    /// The media type, for bodies.
    pub content_type: Option<Box<str>>,
}

/// A condition on finished requests (`envoy.config.accesslog.v3.AccessLogFilter`).
#[derive(Clone, Debug)]
pub enum LogFilter {
    StatusCode(Comparison),
    /// Milliseconds.
    Duration(Comparison),
    /// Any of these flags; empty: any flag at all.
    ResponseFlags(Vec<Box<str>>),
    /// One of these gRPC status numbers, or with `exclude` none of them.
    GrpcStatus {
        statuses: Vec<u64>,
        exclude: bool,
    },
    RequestHeader(HeaderMatcher),
    And(Vec<LogFilter>),
    Or(Vec<LogFilter>),
}

/// A comparison with a fixed number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    Equal(u64),
    NotEqual(u64),
    AtLeast(u64),
    AtMost(u64),
}

impl Comparison {
    fn holds(self, n: u64) -> bool {
        match self {
            Comparison::Equal(m) => n == m,
            Comparison::NotEqual(m) => n != m,
            Comparison::AtLeast(m) => n >= m,
            Comparison::AtMost(m) => n <= m,
        }
    }
}

impl LogFilter {
    pub fn allows(&self, source: &impl Source) -> bool {
        let number = |field| match source.value(field) {
            Value::Number(n) => n,
            _ => 0,
        };
        match self {
            LogFilter::StatusCode(comparison) => comparison.holds(number(Field::ResponseCode)),
            LogFilter::Duration(comparison) => comparison.holds(number(Field::Duration)),
            LogFilter::ResponseFlags(wanted) => match source.value(Field::ResponseFlags) {
                Value::List(flags) => flags
                    .iter()
                    .any(|f| wanted.is_empty() || wanted.iter().any(|w| **w == **f)),
                _ => false,
            },
            LogFilter::GrpcStatus { statuses, exclude } => {
                statuses.contains(&number(Field::GrpcStatus)) != *exclude
            }
            LogFilter::RequestHeader(matcher) => {
                matcher.matches_value(source.header(Headers::Request, &matcher.name))
            }
            LogFilter::And(filters) => filters.iter().all(|f| f.allows(source)),
            LogFilter::Or(filters) => filters.iter().any(|f| f.allows(source)),
        }
    }
}
