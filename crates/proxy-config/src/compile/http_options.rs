//! `Http1ProtocolOptions` and `Http2ProtocolOptions`, of either side.

use super::scope::{At, reject, report};
use super::values::{any, duration, flag, number, required};
use crate::{ConfigError, Http1Options, Http2Options};
use envoy_types::pb::envoy::config::core::v3 as core;
use std::time::Duration;

const PRESERVE_CASE: &str =
    "envoy.extensions.http.header_formatters.preserve_case.v3.PreserveCaseFormatterConfig";

pub(crate) fn http1_options(
    message: core::Http1ProtocolOptions,
    at: At<'_>,
) -> Result<Http1Options, ConfigError> {
    let core::Http1ProtocolOptions {
        allow_absolute_url,
        accept_http_10,
        default_host_for_http_10,
        header_key_format,
        enable_trailers,
        allow_chunked_length,
        override_stream_error_on_invalid_http_message,
        send_fully_qualified_url,
        use_balsa_parser,
        allow_custom_methods,
        ignore_http_11_upgrade,
    } = message;
    reject!(at; ignore_http_11_upgrade);
    report!(at, "there is one HTTP/1 parser"; use_balsa_parser);
    report!(at, "methods of any name are accepted"; allow_custom_methods);
    report!(at, "a broken message ends its connection"; override_stream_error_on_invalid_http_message);
    header_case(header_key_format, at.field("header_key_format"))?;
    Ok(Http1Options {
        allow_absolute_url: flag(allow_absolute_url, true),
        accept_http_10,
        default_host_for_http_10: default_host_for_http_10.into(),
        allow_chunked_length,
        send_fully_qualified_url,
        enable_trailers,
    })
}

/// Header names keep the case they came in, whatever is asked for.
fn header_case(
    message: Option<core::http1_protocol_options::HeaderKeyFormat>,
    at: At<'_>,
) -> Result<(), ConfigError> {
    use core::http1_protocol_options::header_key_format::HeaderFormat;
    let format = match message {
        None => return Ok(()),
        Some(core::http1_protocol_options::HeaderKeyFormat { header_format }) => header_format,
    };
    match required(format, at)? {
        HeaderFormat::ProperCaseWords(_) => {
            at.field("proper_case_words")
                .notice("header names keep the case they came in");
            Ok(())
        }
        HeaderFormat::StatefulFormatter(core::TypedExtensionConfig { name, typed_config }) => {
            let at = at.field("stateful_formatter");
            match typed_config.as_ref().map(any) {
                Some((PRESERVE_CASE, [])) => Ok(()),
                Some((PRESERVE_CASE, _)) => {
                    at.notice("only the case of header names is kept");
                    Ok(())
                }
                _ => Err(at.error(format!("the formatter '{name}' is not supported"))),
            }
        }
    }
}

pub(crate) fn http2_options(
    message: core::Http2ProtocolOptions,
    at: At<'_>,
) -> Result<Http2Options, ConfigError> {
    let core::Http2ProtocolOptions {
        hpack_table_size,
        max_concurrent_streams,
        initial_stream_window_size,
        initial_connection_window_size,
        allow_connect,
        allow_metadata,
        max_outbound_frames,
        max_outbound_control_frames,
        max_consecutive_inbound_frames_with_empty_payload,
        max_inbound_priority_frames_per_stream,
        max_inbound_window_update_frames_per_data_frame_sent,
        stream_error_on_invalid_http_messaging,
        override_stream_error_on_invalid_http_message,
        custom_settings_parameters,
        connection_keepalive,
        use_oghttp2_codec,
        max_metadata_size,
        enable_huffman_encoding,
        max_header_field_size_kb,
        disallow_obs_text,
        stream_reset_burst,
        stream_reset_rate,
    } = message;
    reject!(at; allow_metadata, custom_settings_parameters);
    report!(at, "the codec has limits of its own"; max_outbound_frames, max_outbound_control_frames,
        max_consecutive_inbound_frames_with_empty_payload, max_inbound_priority_frames_per_stream,
        max_inbound_window_update_frames_per_data_frame_sent, stream_reset_burst, stream_reset_rate);
    report!(at, "there is one HTTP/2 codec"; use_oghttp2_codec, enable_huffman_encoding);
    report!(at, "METADATA frames are ignored"; max_metadata_size);
    report!(at, "header tables have the protocol's default size"; hpack_table_size);
    report!(at, "headers are limited as a whole"; max_header_field_size_kb);
    report!(at, "a broken message ends its connection"; stream_error_on_invalid_http_messaging,
        override_stream_error_on_invalid_http_message);
    report!(at, "bytes above 0x7f are allowed in header values"; disallow_obs_text);
    let defaults = Http2Options::default();
    let window = 65_535..=2_147_483_647;
    let (keepalive_interval, keepalive_timeout) =
        keepalive(connection_keepalive, at.field("connection_keepalive"))?;
    Ok(Http2Options {
        max_concurrent_streams: number(
            max_concurrent_streams,
            1..=2_147_483_647,
            at.field("max_concurrent_streams"),
        )?
        .unwrap_or(defaults.max_concurrent_streams),
        initial_stream_window: number(
            initial_stream_window_size,
            window.clone(),
            at.field("initial_stream_window_size"),
        )?
        .unwrap_or(defaults.initial_stream_window),
        initial_connection_window: number(
            initial_connection_window_size,
            window,
            at.field("initial_connection_window_size"),
        )?
        .unwrap_or(defaults.initial_connection_window),
        keepalive_interval,
        keepalive_timeout,
        extended_connect: allow_connect,
    })
}

type Keepalive = (Option<Duration>, Option<Duration>);

fn keepalive(
    message: Option<core::KeepaliveSettings>,
    at: At<'_>,
) -> Result<Keepalive, ConfigError> {
    let Some(core::KeepaliveSettings {
        interval,
        timeout,
        interval_jitter,
        connection_idle_interval,
    }) = message
    else {
        return Ok((None, None));
    };
    report!(at, "PINGs are sent at the interval exactly"; interval_jitter);
    report!(at, "PINGs are only sent at the interval"; connection_idle_interval);
    let timeout = duration(timeout, at.field("timeout"))?;
    Ok((
        duration(interval, at.field("interval"))?,
        Some(required(timeout, at.field("timeout"))?),
    ))
}
