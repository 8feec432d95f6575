//! HTTP/2 with prior knowledge.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Uri};
use serde_json::{Value, json};

use super::stream::Opened;
use super::{PATIENCE, Seen, open};
use crate::corpus::{Case, RequestSpec};
use crate::upstream::h2_words::{collect, map_of, pairs, said};
use crate::{Failure, Result, failed, outcome};

pub async fn requests(case: &Case, requests: &[RequestSpec], to: SocketAddr) -> Result<Seen> {
    let stream = match open(case, to).await? {
        Opened::Stream(stream) => stream,
        Opened::Refused(refused) => return Ok(refused),
    };
    let handshake = h2::client::handshake(stream).await;
    let (mut sender, connection) = handshake.map_err(failed("HTTP/2 handshake"))?;
    let driver = tokio::spawn(connection);
    let mut answers = Vec::new();
    for request in requests {
        let answer = tokio::time::timeout(PATIENCE, one(&mut sender, request)).await;
        answers.push(match answer {
            Ok(Ok(answer)) => answer,
            Ok(Err(Failed::Stream(error))) => said(&error),
            Ok(Err(Failed::Case(failure))) => return Err(failure),
            Err(_) => json!("no answer"),
        });
    }
    tokio::time::sleep(case.quiet.min(Duration::from_millis(300))).await;
    let end = match driver.is_finished() {
        false => json!("open"),
        true => match driver.await {
            Ok(Ok(())) => json!("closed"),
            Ok(Err(error)) => said(&error),
            Err(error) => return Err(Failure(error.to_string())),
        },
    };
    Ok(Seen {
        answers,
        connection: json!({"end": end}),
    })
}

enum Failed {
    Stream(h2::Error),
    Case(Failure),
}

impl From<h2::Error> for Failed {
    fn from(error: h2::Error) -> Self {
        Failed::Stream(error)
    }
}

async fn one(
    sender: &mut h2::client::SendRequest<Bytes>,
    spec: &RequestSpec,
) -> Result<Value, Failed> {
    let wrong = |what: String| Failed::Case(Failure(what));
    let uri = match spec.path.starts_with('/') {
        true => format!("http://{}{}", spec.host, spec.path),
        false => spec.path.clone(),
    };
    let uri: Uri = uri.parse().map_err(|e| wrong(format!("{uri}: {e}")))?;
    let mut request = Request::new(());
    *request.method_mut() = Method::from_bytes(spec.method.as_bytes())
        .map_err(|e| wrong(format!("{}: {e}", spec.method)))?;
    *request.uri_mut() = uri;
    *request.headers_mut() = map_of(&spec.headers);
    let empty = spec.body.is_none() && spec.trailers.is_empty();
    *sender = sender.clone().ready().await?;
    let (response, mut stream) = sender.send_request(request, empty)?;
    if !empty {
        let body = spec.body.clone().unwrap_or_default();
        // An answer may come before the body is taken.
        let _ = stream.send_data(body.into(), spec.trailers.is_empty());
        if !spec.trailers.is_empty() {
            let _ = stream.send_trailers(map_of(&spec.trailers));
        }
    }
    let (head, mut body) = response.await?.into_parts();
    let (data, trailers, complete) = collect(&mut body).await;
    let headers = pairs(&head.headers);
    Ok(json!({
        "status": head.status.as_u16(),
        "headers": outcome::headers(&headers),
        "names": outcome::names(&headers),
        "body": outcome::body(&data),
        "trailers": outcome::headers(&trailers),
        "complete": complete,
    }))
}
