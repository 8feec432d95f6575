//! The control plane's configuration API, as far as a mesh on one machine needs it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use serde_json::Value;

use crate::http::{Client, ClientError};
use crate::objects::Object;

/// A write waits for the disk.
const PATIENCE: Duration = Duration::from_secs(5);
/// While the control plane starts.
const POLL: Duration = Duration::from_millis(10);

/// Why the control plane did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("{method} {path} answered {status}: {message}")]
    Refused {
        method: Method,
        path: String,
        status: StatusCode,
        message: String,
    },
}

impl ApiError {
    /// Whether the same request may succeed later.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Client(_) => true,
            Self::Refused { status, .. } => status.is_server_error(),
        }
    }
}

#[derive(Debug, Clone)]
pub struct Api {
    client: Arc<Client>,
    base: String,
}

impl Api {
    pub fn new(port: u16) -> Self {
        Self {
            client: Arc::default(),
            base: format!("http://127.0.0.1:{port}"),
        }
    }

    /// Waits until the API answers, at most for `limit`; the error is what it said last.
    pub async fn wait(&self, limit: Duration) -> Result<(), String> {
        let mut last = "it did not say anything".to_owned();
        let answers = async {
            while let Err(error) = self.call(Method::GET, "/version", None).await {
                last = error.to_string();
                tokio::time::sleep(POLL).await;
            }
        };
        let ended = tokio::time::timeout(limit, answers).await;
        ended.map_err(|_| last)
    }

    /// Creates or replaces an object.
    pub async fn apply(&self, object: &Object) -> Result<(), ApiError> {
        self.call(Method::PATCH, &object.path, Some(&object.json))
            .await
            .map(drop)
    }

    /// One object.
    pub async fn get(&self, path: &str) -> Result<Value, ApiError> {
        self.call(Method::GET, path, None).await
    }

    /// Has something made, and answers what was.
    pub async fn create(&self, path: &str, request: &Value) -> Result<Value, ApiError> {
        self.call(Method::POST, path, Some(request)).await
    }

    /// Deletes an object; one that does not exist is no error.
    pub async fn delete(&self, path: &str) -> Result<(), ApiError> {
        match self.call(Method::DELETE, path, None).await {
            Err(ApiError::Refused {
                status: StatusCode::NOT_FOUND,
                ..
            }) => Ok(()),
            result => result.map(drop),
        }
    }

    /// The objects of a collection.
    pub async fn list(&self, path: &str) -> Result<Vec<Value>, ApiError> {
        let mut list = self.call(Method::GET, path, None).await?;
        match list["items"].take() {
            Value::Array(items) => Ok(items),
            _ => Ok(Vec::new()),
        }
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, ApiError> {
        let mut headers = HeaderMap::new();
        let agent = HeaderValue::from_static(concat!("lateen-local/", env!("CARGO_PKG_VERSION")));
        headers.insert(header::USER_AGENT, agent);
        if body.is_some() {
            let kind = match method {
                Method::PATCH => "application/apply-patch+yaml",
                _ => "application/json",
            };
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        }
        // JSON is YAML.
        let body = body.map_or(Bytes::new(), |body| Bytes::from(body.to_string()));
        let url = format!("{}{path}", self.base);
        let response = self
            .client
            .send(method.clone(), &url, headers, body, PATIENCE)
            .await?;
        let status = response.status();
        let json: Value = serde_json::from_slice(response.body()).unwrap_or_default();
        if status.is_success() {
            return Ok(json);
        }
        let message = match json["message"].as_str() {
            Some(message) => message.to_owned(),
            None => String::from_utf8_lossy(response.body()).into_owned(),
        };
        Err(ApiError::Refused {
            method,
            path: path.to_owned(),
            status,
            message,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_never_answers_is_not_waited_for_without_end() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let api = Api::new(listener.local_addr().unwrap().port());
        // Connections are made, and nobody takes them.
        let limit = Duration::from_millis(100);
        let waited = tokio::time::timeout(Duration::from_secs(30), api.wait(limit)).await;
        assert!(waited.unwrap().is_err());

        // A port that nobody else can have, and on which nobody listens.
        let bound = tokio::net::TcpSocket::new_v4().unwrap();
        bound.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let api = Api::new(bound.local_addr().unwrap().port());
        let error = api.wait(Duration::from_secs(1)).await.unwrap_err();
        assert!(error.contains("cannot connect"), "{error}");
    }
}
