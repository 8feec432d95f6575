//! The process itself: readiness, version, log levels, drain, quit.

use super::query::Query;
use super::{Admin, bad_request, json};
use crate::main_thread::{Phase, ProxyState, Request};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The state as Envoy shows it: a server whose health check was made to fail is draining.
pub(super) fn phase(proxy: &ProxyState) -> Phase {
    match proxy.phase() {
        Phase::Live if proxy.workers.draining() => Phase::Draining,
        phase => phase,
    }
}

pub(super) fn ready(proxy: &ProxyState) -> Response {
    let phase = phase(proxy);
    let status = if phase == Phase::Live {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, format!("{}\n", phase.as_str())).into_response()
}

pub(super) fn init_dump(proxy: &ProxyState) -> Response {
    let waits: Vec<_> = proxy
        .config()
        .waits_for()
        .into_iter()
        .map(|target| json!({ "name": "init manager Server", "target_names": [target] }))
        .collect();
    json(&json!({ "unready_targets_dumps": waits }))
}

pub(super) fn server_info(proxy: &ProxyState) -> Response {
    let uptime = format!("{}s", proxy.started.elapsed().unwrap_or_default().as_secs());
    let node = &proxy.node;
    let options = &proxy.options;
    let build = if cfg!(debug_assertions) {
        "DEBUG"
    } else {
        "RELEASE"
    };
    let version = env!("CARGO_PKG_VERSION");
    json(&json!({
        // Envoy: revision/version/status/build type/TLS library.
        "version": format!("lateen/{version}/Clean/{build}/none"),
        "state": phase(proxy).as_str(),
        "uptime_current_epoch": uptime,
        "uptime_all_epochs": uptime,
        "hot_restart_version": "disabled",
        "command_line_options": {
            "base_id": "0",
            "concurrency": options.concurrency,
            "config_path": options.config_path,
            "log_level": options.log_level,
            "mode": "Serve",
            "drain_time": format!("{}s", options.max_drain.as_secs_f64()),
            "disable_hot_restart": true,
        },
        "node": {
            "id": node.id,
            "cluster": node.cluster,
            "metadata": node.metadata,
            "locality": {
                "region": node.region,
                "zone": node.zone,
                "sub_zone": node.sub_zone,
            },
            "user_agent_name": node.user_agent,
        },
    }))
}

const OK: &str = "OK\n";

pub(super) fn quit(proxy: &Arc<ProxyState>) -> Response {
    let proxy = proxy.clone();
    tokio::spawn(async move {
        // So that the answer still goes out.
        tokio::time::sleep(Duration::from_millis(50)).await;
        proxy.request(Request::Quit);
    });
    OK.into_response()
}

pub(super) fn drain_listeners(proxy: &ProxyState, query: &Query) -> Response {
    if query.has("inboundonly") {
        return bad_request("inboundonly is not supported yet; without it all listeners drain");
    }
    proxy.request(Request::DrainListeners {
        graceful: query.has("graceful"),
    });
    OK.into_response()
}

pub(super) fn healthcheck(proxy: &ProxyState, fail: bool) -> Response {
    proxy.request(Request::FailHealthcheck(fail));
    OK.into_response()
}

pub(super) fn reopen_logs(proxy: &ProxyState) -> Response {
    proxy.workers.reopen_access_logs();
    OK.into_response()
}

/// Envoy's names of loggers, and where in this program they are.
const LOGGERS: &[(&str, &str)] = &[
    ("admin", "lateen_proxy::admin"),
    ("client", "lateen_proxy::http1::client"),
    ("config", "lateen_xds"),
    ("conn_handler", "lateen_proxy::listener"),
    ("connection", "lateen_proxy::io"),
    ("dns", "lateen_proxy::main_thread::dns"),
    ("http", "lateen_proxy::http1"),
    ("http2", "lateen_proxy::http2"),
    ("main", "lateen_proxy::main_thread"),
    ("pool", "lateen_proxy::upstream::pool"),
    ("router", "lateen_proxy::http"),
    ("tcp_proxy", "lateen_proxy::tcp"),
    ("upstream", "lateen_proxy::upstream"),
];

const LEVELS: &[&str] = &[
    "trace", "debug", "info", "warning", "error", "critical", "off",
];

/// The levels as they are; they start with the command line's.
pub(crate) struct LogLevels(Mutex<Levels>);

#[derive(Clone)]
struct Levels {
    default: String,
    /// Loggers whose level differs from the default.
    own: BTreeMap<&'static str, String>,
}

impl LogLevels {
    pub(super) fn new(level: &str) -> Self {
        // The command line may hold filters per module; the word without one is the default.
        let word = level
            .split(',')
            .map(str::trim)
            .find(|part| !part.contains('='));
        let default = match word.unwrap_or("info") {
            "warn" => "warning",
            other => other,
        };
        Self(Mutex::new(Levels {
            default: default.to_owned(),
            own: BTreeMap::new(),
        }))
    }
}

impl Levels {
    fn set(&mut self, logger: &str, level: &str) -> Result<(), String> {
        if !LEVELS.contains(&level) {
            return Err(format!(
                "unknown logger level {level:?}; use {}",
                LEVELS.join(", ")
            ));
        }
        match LOGGERS.iter().find(|(name, _)| *name == logger) {
            Some((name, _)) => {
                self.own.insert(name, level.to_owned());
                Ok(())
            }
            None => Err(format!(
                "unknown logger {logger:?}; GET /logging lists them"
            )),
        }
    }

    /// As a filter of `tracing-subscriber`.
    fn filter(&self) -> String {
        let word = |level: &str| match level {
            "warning" => "warn".to_owned(),
            "critical" => "error".to_owned(),
            other => other.to_owned(),
        };
        let mut filter = word(&self.default);
        for (name, module) in LOGGERS {
            if let Some(level) = self.own.get(name) {
                // Writing to a string cannot fail.
                let _ = write!(filter, ",{module}={}", word(level));
            }
        }
        filter
    }

    fn text(&self) -> String {
        let mut out = "active loggers:\n".to_owned();
        for (name, _) in LOGGERS {
            let _ = writeln!(
                out,
                "  {name}: {}",
                self.own.get(name).unwrap_or(&self.default)
            );
        }
        out
    }
}

/// GET lists; POST changes all (`?level=`), one (`?http=debug`) or several (`?paths=http:debug,..`).
pub(super) fn logging(admin: &Admin, query: &Query, post: bool) -> Response {
    let mut levels = admin
        .levels
        .0
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    if query.iter().next().is_none() {
        return levels.text().into_response();
    }
    if !post {
        let message = "Method GET not allowed, POST required.";
        return (StatusCode::METHOD_NOT_ALLOWED, message).into_response();
    }
    let mut changed = levels.clone();
    for (name, value) in query.iter() {
        let result = match name {
            "level" if LEVELS.contains(&value) => {
                changed = Levels {
                    default: value.to_owned(),
                    own: BTreeMap::new(),
                };
                Ok(())
            }
            "level" => Err(format!(
                "unknown logger level {value:?}; use {}",
                LEVELS.join(", ")
            )),
            "paths" => value.split(',').try_for_each(|pair| {
                let (logger, level) = pair.split_once(':').unwrap_or((pair, ""));
                changed.set(logger, level)
            }),
            logger => changed.set(logger, value),
        };
        if let Err(message) = result {
            return bad_request(message);
        }
    }
    if let Err(error) = admin.proxy.log.set(&changed.filter()) {
        return (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response();
    }
    *levels = changed;
    levels.text().into_response()
}
