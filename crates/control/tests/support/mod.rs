//! A control plane on free ports and a client that shows whole responses.

use std::net::SocketAddr;
use std::path::PathBuf;

use lateen_control::{Control, Options};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub struct Bench {
    pub control: Control,
    pub api: SocketAddr,
    pub directory: tempfile::TempDir,
}

/// One response.
#[derive(Debug)]
pub struct Answer {
    pub code: u16,
    pub headers: String,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("no JSON: {}", self.body))
    }

    pub fn warnings(&self) -> Vec<&str> {
        self.headers
            .lines()
            .filter_map(|line| line.strip_prefix("warning: "))
            .collect()
    }
}

pub async fn bench() -> Bench {
    bench_in(tempfile::tempdir().unwrap(), None).await
}

pub async fn bench_in(directory: tempfile::TempDir, config: Option<PathBuf>) -> Bench {
    let options = Options {
        config,
        xds_port: 0,
        secure_port: 0,
        api_port: 0,
        monitoring_port: 0,
        debounce_after: std::time::Duration::from_millis(10),
        ..Options::new(directory.path().join("data"))
    };
    let control = Control::start(options).await.unwrap();
    let api = control.addresses().api;
    Bench {
        control,
        api,
        directory,
    }
}

impl Bench {
    pub async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], "").await
    }

    pub async fn post(&self, path: &str, body: &str) -> Answer {
        self.send("POST", path, &[("content-type", "application/yaml")], body)
            .await
    }

    pub async fn put(&self, path: &str, body: &str) -> Answer {
        self.send("PUT", path, &[("content-type", "application/json")], body)
            .await
    }

    pub async fn apply(&self, path: &str, body: &str) -> Answer {
        let kind = [("content-type", "application/apply-patch+yaml")];
        self.send("PATCH", path, &kind, body).await
    }

    pub async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Answer {
        send(self.api, method, path, headers, body).await
    }
}

pub async fn open(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> TcpStream {
    let mut head = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n");
    if !headers.iter().any(|(name, _)| *name == "host") {
        head.push_str(&format!("host: {address}\r\n"));
    }
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("content-length: {}\r\n\r\n", body.len()));
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    // The server may refuse a body that is too large while it is being sent.
    let _ = stream.write_all(body.as_bytes()).await;
    stream
}

pub async fn send(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Answer {
    let mut stream = open(address, method, path, headers, body).await;
    let mut text = Vec::new();
    let _ = stream.read_to_end(&mut text).await;
    let text = String::from_utf8(text).unwrap();
    let (headers, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let code = headers
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .unwrap_or(0);
    let mut body = body.to_owned();
    if headers.contains("transfer-encoding: chunked") {
        // Good enough for a test: every other line is a chunk size.
        body = body.split("\r\n").skip(1).step_by(2).collect();
    }
    Answer {
        code,
        headers: headers.to_owned(),
        body,
    }
}
