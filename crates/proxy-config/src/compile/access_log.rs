//! Access logs: files and standard streams, their formats and filters.

use super::route_match::header_matchers;
use super::scope::{At, report};
use super::values::{any, decode, known, non_empty, required, structure};
use crate::{AccessLog, AccessLogFormat, AccessLogSink, Comparison, ConfigError, LogFilter};
use envoy_types::pb::envoy::config::accesslog::v3 as pb;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::access_loggers::file::v3 as file;
use envoy_types::pb::envoy::extensions::access_loggers::stream::v3 as stream;
use envoy_types::pb::google::protobuf::Struct;
use lateen_telemetry::format::{ENVOY_DEFAULT, Format, Missing};
use std::sync::Arc;

pub(crate) fn access_logs(
    messages: Vec<pb::AccessLog>,
    at: At<'_>,
) -> Result<Vec<AccessLog>, ConfigError> {
    let mut logs = Vec::with_capacity(messages.len());
    for (i, message) in messages.into_iter().enumerate() {
        logs.extend(access_log(message, at.item("access_log", i))?);
    }
    Ok(logs)
}

fn access_log(message: pb::AccessLog, at: At<'_>) -> Result<Option<AccessLog>, ConfigError> {
    let pb::AccessLog {
        name,
        filter,
        config_type,
    } = message;
    let pb::access_log::ConfigType::TypedConfig(config) =
        required(config_type, at.field("typed_config"))?;
    let filter = filter
        .map(|f| log_filter(f, at.field("filter")))
        .transpose()?
        .map(Arc::new);
    let config_at = at.field("typed_config");
    let (sink, format) = match any(&config) {
        ("envoy.extensions.access_loggers.file.v3.FileAccessLog", bytes) => {
            file_log(decode(bytes, config_at)?, config_at)?
        }
        ("envoy.extensions.access_loggers.stream.v3.StdoutAccessLog", bytes) => {
            let stream::StdoutAccessLog { access_log_format } = decode(bytes, config_at)?;
            let format = access_log_format
                .map(|stream::stdout_access_log::AccessLogFormat::LogFormat(format)| format);
            (AccessLogSink::Stdout, log_format(format, config_at)?)
        }
        ("envoy.extensions.access_loggers.stream.v3.StderrAccessLog", bytes) => {
            let stream::StderrAccessLog { access_log_format } = decode(bytes, config_at)?;
            let format = access_log_format
                .map(|stream::stderr_access_log::AccessLogFormat::LogFormat(format)| format);
            (AccessLogSink::Stderr, log_format(format, config_at)?)
        }
        (kind, _) => {
            at.notice(format!(
                "access log '{name}' ({kind}) is not supported; nothing is written"
            ));
            return Ok(None);
        }
    };
    Ok(Some(AccessLog {
        sink,
        format: Arc::new(format),
        filter,
    }))
}

fn file_log(
    message: file::FileAccessLog,
    at: At<'_>,
) -> Result<(AccessLogSink, AccessLogFormat), ConfigError> {
    use file::file_access_log::AccessLogFormat as Specifier;
    let file::FileAccessLog {
        path,
        access_log_format,
    } = message;
    let sink = match non_empty(path, at.field("path"))?.as_str() {
        "/dev/stdout" => AccessLogSink::Stdout,
        "/dev/stderr" => AccessLogSink::Stderr,
        path => AccessLogSink::File(path.into()),
    };
    let format = match access_log_format {
        Some(Specifier::Format(text)) if text.is_empty() => default_format(at)?,
        Some(Specifier::Format(text)) => plain(text_program(&text, at.field("format"))?),
        Some(Specifier::JsonFormat(json)) => {
            // The old form renders every value as a string; readers of JSON accept either.
            plain(json_program(json, at.field("json_format"))?)
        }
        Some(Specifier::TypedJsonFormat(json)) => {
            plain(json_program(json, at.field("typed_json_format"))?)
        }
        Some(Specifier::LogFormat(format)) => substitution(format, at.field("log_format"))?,
        None => default_format(at)?,
    };
    Ok((sink, format))
}

fn log_format(
    format: Option<core::SubstitutionFormatString>,
    at: At<'_>,
) -> Result<AccessLogFormat, ConfigError> {
    match format {
        Some(format) => substitution(format, at.field("log_format")),
        None => default_format(at),
    }
}

fn default_format(at: At<'_>) -> Result<AccessLogFormat, ConfigError> {
    Ok(plain(text_program(ENVOY_DEFAULT, at)?))
}

fn plain(program: Format) -> AccessLogFormat {
    AccessLogFormat {
        program,
        missing: Missing::Dash,
        content_type: None,
    }
}

/// `SubstitutionFormatString`: text or JSON.
pub(crate) fn substitution(
    message: core::SubstitutionFormatString,
    at: At<'_>,
) -> Result<AccessLogFormat, ConfigError> {
    use core::substitution_format_string::Format as Specifier;
    let core::SubstitutionFormatString {
        omit_empty_values,
        content_type,
        formatters,
        json_format_options,
        format,
    } = message;
    for (i, formatter) in formatters.iter().enumerate() {
        formatter_extension(formatter, at.item("formatters", i))?;
    }
    // Properties are sorted in any case: a protobuf map has no order.
    let _sorted =
        json_format_options.map(|core::JsonFormatOptions { sort_properties }| sort_properties);
    let program = match required(format, at.field("format"))? {
        Specifier::TextFormat(text) => text_program(&text, at.field("text_format"))?,
        Specifier::TextFormatSource(source) => {
            let at = at.field("text_format_source");
            let bytes = super::route::data_source(source, at)?;
            let text = std::str::from_utf8(&bytes).map_err(|_| at.error("must be UTF-8"))?;
            text_program(text, at)?
        }
        Specifier::JsonFormat(json) => json_program(json, at.field("json_format"))?,
    };
    let missing = if omit_empty_values {
        Missing::Empty
    } else {
        Missing::Dash
    };
    let content_type = (!content_type.is_empty()).then(|| content_type.into_boxed_str());
    Ok(AccessLogFormat {
        program,
        missing,
        content_type,
    })
}

/// Operators that Envoy has in extensions and we have built in.
fn formatter_extension(
    message: &core::TypedExtensionConfig,
    at: At<'_>,
) -> Result<(), ConfigError> {
    let core::TypedExtensionConfig { name, typed_config } = message;
    match typed_config.as_ref().map(|c| any(c).0) {
        Some("envoy.extensions.formatter.req_without_query.v3.ReqWithoutQuery") => Ok(()),
        Some("envoy.extensions.formatter.metadata.v3.Metadata") => Ok(()),
        _ => Err(at.error(format!("the formatter '{name}' is not supported"))),
    }
}

fn text_program(text: &str, at: At<'_>) -> Result<Format, ConfigError> {
    reported(Format::text(text).map_err(|e| at.error(e))?, at)
}

fn json_program(json: Struct, at: At<'_>) -> Result<Format, ConfigError> {
    reported(Format::json(&structure(json)).map_err(|e| at.error(e))?, at)
}

fn reported(format: Format, at: At<'_>) -> Result<Format, ConfigError> {
    for what in format.without_effect() {
        at.notice(what);
    }
    Ok(format)
}

fn log_filter(message: pb::AccessLogFilter, at: At<'_>) -> Result<LogFilter, ConfigError> {
    use pb::access_log_filter::FilterSpecifier as Specifier;
    let pb::AccessLogFilter { filter_specifier } = message;
    Ok(match required(filter_specifier, at)? {
        Specifier::StatusCodeFilter(pb::StatusCodeFilter { comparison: c }) => {
            LogFilter::StatusCode(comparison(c, at.field("status_code_filter"))?)
        }
        Specifier::DurationFilter(pb::DurationFilter { comparison: c }) => {
            LogFilter::Duration(comparison(c, at.field("duration_filter"))?)
        }
        Specifier::ResponseFlagFilter(pb::ResponseFlagFilter { flags }) => {
            LogFilter::ResponseFlags(flags.into_iter().map(String::into_boxed_str).collect())
        }
        Specifier::GrpcStatusFilter(pb::GrpcStatusFilter { statuses, exclude }) => {
            let statuses = statuses
                .into_iter()
                .filter_map(|s| u64::try_from(s).ok())
                .collect();
            LogFilter::GrpcStatus { statuses, exclude }
        }
        Specifier::HeaderFilter(pb::HeaderFilter { header }) => {
            let at = at.field("header_filter");
            let matchers = header_matchers(header.into_iter().collect(), "header", at)?;
            LogFilter::RequestHeader(required(matchers.into_iter().next(), at.field("header"))?)
        }
        Specifier::AndFilter(pb::AndFilter { filters }) => {
            LogFilter::And(log_filters(filters, at.field("and_filter"))?)
        }
        Specifier::OrFilter(pb::OrFilter { filters }) => {
            LogFilter::Or(log_filters(filters, at.field("or_filter"))?)
        }
        Specifier::NotHealthCheckFilter(_) => {
            return Err(at.field("not_health_check_filter").not_supported());
        }
        Specifier::TraceableFilter(_) => return Err(at.field("traceable_filter").not_supported()),
        Specifier::RuntimeFilter(_) => return Err(at.field("runtime_filter").not_supported()),
        Specifier::MetadataFilter(_) => return Err(at.field("metadata_filter").not_supported()),
        Specifier::LogTypeFilter(_) => return Err(at.field("log_type_filter").not_supported()),
        Specifier::ExtensionFilter(_) => return Err(at.field("extension_filter").not_supported()),
    })
}

fn log_filters(
    messages: Vec<pb::AccessLogFilter>,
    at: At<'_>,
) -> Result<Vec<LogFilter>, ConfigError> {
    if messages.len() < 2 {
        return Err(at.field("filters").error("needs at least two filters"));
    }
    messages
        .into_iter()
        .enumerate()
        .map(|(i, f)| log_filter(f, at.item("filters", i)))
        .collect()
}

fn comparison(
    message: Option<pb::ComparisonFilter>,
    at: At<'_>,
) -> Result<Comparison, ConfigError> {
    use pb::comparison_filter::Op;
    let at = at.field("comparison");
    let pb::ComparisonFilter { op, value } = required(message, at)?;
    let core::RuntimeUInt32 {
        default_value,
        runtime_key,
    } = required(value, at.field("value"))?;
    report!(at, "there is no runtime; the default value holds"; runtime_key);
    let value = u64::from(default_value);
    Ok(match known(op, at.field("op"))? {
        Op::Eq => Comparison::Equal(value),
        Op::Ne => Comparison::NotEqual(value),
        Op::Ge => Comparison::AtLeast(value),
        Op::Le => Comparison::AtMost(value),
    })
}
