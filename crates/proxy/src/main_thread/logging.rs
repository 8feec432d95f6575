//! Logs to stderr, with a level that can be changed while the proxy runs (`/logging`).

use std::sync::Arc;

use thiserror::Error;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt};

/// Changes what is logged.
#[derive(Clone)]
pub struct LogControl {
    change: Arc<dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync>,
}

impl std::fmt::Debug for LogControl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LogControl")
    }
}

#[derive(Debug, Error, PartialEq, Eq)]
pub enum LevelError {
    #[error(
        "unknown log level {0:?}; use off, critical, error, warning, info, debug or trace, or \
         filters such as lateen_proxy=debug"
    )]
    Unknown(String),
    #[error("the log level cannot be changed: {0}")]
    Fixed(String),
}

impl LogControl {
    /// Starts logging. When the process logs already, that goes on and cannot be changed here.
    pub(super) fn start(level: &str) -> Result<Self, LevelError> {
        let (layer, handle) = reload::Layer::new(filter(level)?);
        let format = fmt::layer()
            .with_writer(std::io::stderr)
            .with_ansi(false)
            .with_target(true);
        let started = tracing_subscriber::registry()
            .with(layer)
            .with(format)
            .try_init();
        let change: Arc<dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync> = match started {
            Ok(()) => Arc::new(move |new| handle.reload(new).map_err(|e| e.to_string())),
            Err(_) => Arc::new(|_| Err("this process set up its logs elsewhere".to_owned())),
        };
        Ok(Self { change })
    }

    /// Sets the level: one of Envoy's words, or filters per module.
    pub fn set(&self, level: &str) -> Result<(), LevelError> {
        (self.change)(filter(level)?).map_err(LevelError::Fixed)
    }
}

fn filter(level: &str) -> Result<EnvFilter, LevelError> {
    // Envoy's words (`--log-level`) beside tracing's.
    let text = match level.trim() {
        "critical" => "error",
        "warning" => "warn",
        other => other,
    };
    let known = matches!(text, "off" | "error" | "warn" | "info" | "debug" | "trace");
    let filters = text.contains('=');
    if !known && !filters {
        return Err(LevelError::Unknown(level.to_owned()));
    }
    EnvFilter::try_new(text).map_err(|_| LevelError::Unknown(level.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn envoys_words_and_filters_are_levels_and_nonsense_is_not() {
        for level in [
            "warning",
            "critical",
            "trace",
            "off",
            "lateen_proxy=debug,info",
        ] {
            assert!(filter(level).is_ok(), "{level}");
        }
        for level in ["loud", "", "x=verbose"] {
            assert_eq!(
                filter(level).err(),
                Some(LevelError::Unknown(level.to_owned()))
            );
        }
    }
}
