//! The query parameters of the API, read once.

use std::collections::HashMap;

use axum::http::Uri;
use lateen_api::Mode;

use super::selector::Selector;
use super::status::ApiError;

#[derive(Debug)]
pub(crate) struct Query {
    pub selector: Selector,
    pub limit: Option<usize>,
    /// The key of the last object of the page before.
    pub resume: Option<String>,
    pub watch: bool,
    pub resource_version: Option<String>,
    pub timeout_seconds: Option<u64>,
    pub dry_run: bool,
    pub mode: Mode,
    /// `fieldValidation=Ignore`: unknown fields are not even warned about.
    pub silent: bool,
    pub field_manager: Option<String>,
}

impl Query {
    pub fn parse(uri: &Uri) -> Result<Self, ApiError> {
        let axum::extract::Query(values) =
            axum::extract::Query::<HashMap<String, String>>::try_from_uri(uri)
                .map_err(|error| ApiError::bad_request(error.to_string()))?;
        let text = |name: &str| {
            values
                .get(name)
                .map(String::as_str)
                .filter(|v| !v.is_empty())
        };
        let (labels, fields) = (text("labelSelector"), text("fieldSelector"));
        let selector = Selector::parse(labels.unwrap_or_default(), fields.unwrap_or_default())
            .map_err(ApiError::bad_request)?;
        let number = |name: &str| match text(name).map(str::parse::<u64>) {
            None => Ok(None),
            Some(Ok(number)) => Ok(Some(number)),
            Some(Err(_)) => Err(ApiError::bad_request(format!("{name} is not a number"))),
        };
        let dry_run = match text("dryRun") {
            None => false,
            Some("All") => true,
            Some(other) => {
                return Err(ApiError::bad_request(format!(
                    "dryRun is {other:?}; only All is known"
                )));
            }
        };
        let (mode, silent) = match text("fieldValidation") {
            None | Some("Strict") => (Mode::Strict, false),
            Some("Warn") => (Mode::AllowUnknown, false),
            Some("Ignore") => (Mode::AllowUnknown, true),
            Some(other) => {
                return Err(ApiError::bad_request(format!(
                    "fieldValidation is {other:?}; use Strict, Warn or Ignore"
                )));
            }
        };
        Ok(Self {
            selector,
            limit: number("limit")?.map(|n| n as usize).filter(|n| *n > 0),
            resume: text("continue").map(str::to_owned),
            watch: matches!(text("watch"), Some("true" | "1")),
            resource_version: text("resourceVersion").map(str::to_owned),
            timeout_seconds: number("timeoutSeconds")?,
            dry_run,
            mode,
            silent,
            field_manager: text("fieldManager").map(str::to_owned),
        })
    }
}
