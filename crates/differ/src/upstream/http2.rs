//! An HTTP/2 upstream.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{Request, Response};
use serde_json::json;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::h2_words::{collect, map_of, pairs};
use super::{Upstream, body_of, fields_of, headers_of};
use crate::corpus::{Attempt, Respond, Step};
use crate::outcome;
use crate::world::Plane;

/// What a request asks of its whole connection.
enum Wish {
    Goaway,
    Close,
    Reset,
}

pub async fn serve(upstream: Arc<Upstream>, plane: Plane, stream: TcpStream) {
    let keep = socket2::SockRef::from(&stream).try_clone();
    let Ok(mut connection) = h2::server::handshake(stream).await else {
        return;
    };
    let (wishes, mut wished) = mpsc::channel(8);
    loop {
        tokio::select! {
            accepted = connection.accept() => match accepted {
                Some(Ok((request, respond))) => {
                    let wishes = wishes.clone();
                    tokio::spawn(request_of(upstream.clone(), plane, request, respond, wishes));
                }
                Some(Err(_)) | None => return,
            },
            Some(wish) = wished.recv() => match wish {
                Wish::Goaway => connection.graceful_shutdown(),
                Wish::Close => return,
                Wish::Reset => {
                    if let Ok(socket) = keep {
                        let _ = socket.set_linger(Some(Duration::ZERO));
                    }
                    return;
                }
            },
        }
    }
}

async fn request_of(
    upstream: Arc<Upstream>,
    plane: Plane,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    wishes: mpsc::Sender<Wish>,
) {
    let (head, mut body) = request.into_parts();
    let value = |name: &str| head.headers.get(name).and_then(|v| v.to_str().ok());
    let authority = head.uri.authority().map(|authority| authority.as_str());
    let case = upstream.shared.case_of(value("x-case"), authority);
    let attempt = upstream.next(plane, case.as_deref());
    if attempt.early {
        act(&upstream, &attempt, &head.method, &mut respond, &wishes).await;
    }
    let mut fields = vec![(
        ":authority".to_owned(),
        authority.unwrap_or_default().to_owned(),
    )];
    fields.extend(pairs(&head.headers));
    let (data, trailers, complete) = collect(&mut body).await;
    let seen = json!({
        "method": head.method.as_str(),
        "target": head.uri.path_and_query().map(ToString::to_string),
        "scheme": head.uri.scheme_str(),
        "version": "HTTP/2",
        "headers": outcome::headers(&fields),
        "names": outcome::names(&fields),
        "body": outcome::body(&data),
        "trailers": outcome::headers(&trailers),
        "complete": complete,
    });
    upstream.record(plane, case, seen);
    if !attempt.early {
        act(&upstream, &attempt, &head.method, &mut respond, &wishes).await;
    }
}

async fn act(
    upstream: &Upstream,
    attempt: &Attempt,
    method: &http::Method,
    respond: &mut SendResponse<Bytes>,
    wishes: &mpsc::Sender<Wish>,
) {
    for step in &attempt.steps {
        match step {
            Step::Wait(time) => tokio::time::sleep(*time).await,
            Step::Respond(with) => {
                let _ = answer(with, method, &upstream.name, respond).await;
            }
            Step::ResetStream(code) => respond.send_reset(Reason::from(*code)),
            Step::Goaway => drop(wishes.send(Wish::Goaway).await),
            Step::Close => drop(wishes.send(Wish::Close).await),
            Step::Reset => drop(wishes.send(Wish::Reset).await),
            Step::Hang => tokio::time::sleep(Duration::from_secs(30)).await,
            // Bare bytes are HTTP/1's.
            Step::Send(_) | Step::Echo | Step::Read(_) | Step::Shutdown => {}
        }
    }
}

async fn answer(
    with: &Respond,
    method: &http::Method,
    name: &str,
    respond: &mut SendResponse<Bytes>,
) -> Result<(), h2::Error> {
    tokio::time::sleep(Duration::from_millis(with.wait)).await;
    let mut response = Response::new(());
    *response.status_mut() = http::StatusCode::from_u16(with.status).unwrap_or_default();
    *response.headers_mut() = map_of(&headers_of(with, name));
    let trailers = fields_of(&with.trailers);
    let body = match with.status {
        204 | 304 => Vec::new(),
        _ if method == http::Method::HEAD => Vec::new(),
        _ => body_of(with, name),
    };
    let empty = body.is_empty() && trailers.is_empty();
    let mut stream = respond.send_response(response, empty)?;
    if empty {
        return Ok(());
    }
    tokio::time::sleep(Duration::from_millis(with.pause)).await;
    stream.send_data(body.into(), trailers.is_empty())?;
    match trailers.is_empty() {
        true => Ok(()),
        false => stream.send_trailers(map_of(&trailers)),
    }
}
