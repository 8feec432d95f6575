//! Answers of the proxy itself: refusals, redirects, direct responses.

use super::edit;
use super::exchange::Exchange;
use super::head::{BodyLength, Method, ResponseHead};
use super::headers::{HeaderBlock, Known};
use super::request::Routed;
use super::stream::{Data, Downstream, End, Piece};
use crate::http1::encode;
use crate::outcome::{Outcome, grpc_status};
use crate::worker::state::PIECE;
use std::future::poll_fn;
use std::task::Poll;

/// What of an unread request body is read and forgotten so that the connection can go on.
const DRAIN_BYTES: usize = 256 * 1024;

/// Answers with what the table of outcomes says.
pub(super) async fn refuse<D: Downstream>(x: &mut Exchange, down: &mut D, outcome: Outcome) {
    refuse_as(x, down, None, outcome, outcome.row().status).await;
}

/// The same with another status, for a request that has a route.
pub(super) async fn refuse_as<D: Downstream>(
    x: &mut Exchange,
    down: &mut D,
    routed: Option<Routed<'_>>,
    outcome: Outcome,
    status: u16,
) {
    x.outcome = outcome;
    let failure = x.tls_failure.clone();
    let mut body = std::borrow::Cow::Borrowed(match &failure {
        Some(failure) if outcome == Outcome::TlsFailure => &*failure.body,
        _ => outcome.row().body,
    });
    if outcome.before_response() && x.tries > 1 {
        body = body
            .replace("reset reason", "retried and the latest reset reason")
            .into();
    }
    let head = if body.is_empty() {
        head(x, status, None, 0)
    } else {
        head(x, status, Some("text/plain"), body.len())
    };
    send(x, down, routed, head, body.as_bytes()).await;
}

pub(super) async fn redirect<D: Downstream>(
    x: &mut Exchange,
    down: &mut D,
    routed: Option<Routed<'_>>,
    status: u16,
    location: &[u8],
) {
    x.outcome = Outcome::Redirected;
    let mut head = head(x, status, None, 0);
    if super::headers::is_value(location) {
        head.headers.set(Known::Location, location);
    }
    send(x, down, routed, head, b"").await;
}

/// The head of a local answer.
pub(super) fn head(
    x: &Exchange,
    status: u16,
    content_type: Option<&str>,
    length: usize,
) -> ResponseHead {
    let mut headers = x.worker.block();
    // Of an empty body HTTP/1 says so where it has to, and HTTP/2 never needs to.
    if length > 0 {
        encode::set_length(&mut headers, length as u64);
        headers.push(
            Known::ContentType,
            content_type.unwrap_or("text/plain").as_bytes(),
        );
    }
    let body = if length == 0 {
        BodyLength::None
    } else {
        BodyLength::Exactly(length as u64)
    };
    ResponseHead {
        body,
        ..ResponseHead::new(status, headers)
    }
}

/// Sends an answer; to a gRPC request as trailers only, its status mapped.
pub(super) async fn send<D: Downstream>(
    x: &mut Exchange,
    down: &mut D,
    routed: Option<Routed<'_>>,
    head: ResponseHead,
    body: &[u8],
) {
    send_as(x, down, routed, head, body, None).await;
}

/// The same with a `grpc-status` that does not follow from the HTTP status.
pub(super) async fn send_as<D: Downstream>(
    x: &mut Exchange,
    down: &mut D,
    routed: Option<Routed<'_>>,
    mut head: ResponseHead,
    body: &[u8],
    grpc: Option<u32>,
) {
    edit::response_to_client(x, routed, &mut head);
    let mut body = body;
    let as_it_is = x.outcome == Outcome::CorsPreflight;
    if x.request.is_grpc() && !as_it_is {
        as_grpc(&mut head, body, grpc);
        body = b"";
    }
    if x.request.method == Method::Head {
        body = b"";
    }
    drain(x, down).await;
    x.note_drain(down);
    x.status = head.status;
    let sent = poll_fn(|cx| {
        let piece = Piece {
            data: Data::Slice(body),
            end: End::Done,
        };
        Poll::Ready(down.send_head(cx, &x.worker, &head, piece))
    })
    .await;
    x.sent += body.len() as u64;
    x.response = Some(head);
    let flushed = match sent {
        Ok(()) => poll_fn(|cx| down.poll_ready(cx)).await,
        Err(error) => Err(error),
    };
    if flushed.is_err() {
        x.outcome = Outcome::ClientGone;
        down.abort();
    }
}

/// Reads what is there of the request body, without waiting for more.
async fn drain<D: Downstream>(x: &Exchange, down: &mut D) {
    let mut drained = 0;
    while !down.body_done() && drained < DRAIN_BYTES {
        let read = poll_fn(|cx| {
            let mut scratch = x.worker.scratch.borrow_mut();
            Poll::Ready(match down.poll_piece(cx, &mut scratch[..PIECE]) {
                Poll::Ready(Ok(piece)) => Some(piece.data.as_slice().len()),
                Poll::Ready(Err(_)) | Poll::Pending => None,
            })
        });
        match read.await {
            Some(n) => drained += n.max(1),
            None => return,
        }
    }
}

/// gRPC clients look at `grpc-status`, and only when the HTTP status is 200.
fn as_grpc(head: &mut ResponseHead, body: &[u8], status: Option<u32>) {
    let status = status.unwrap_or_else(|| grpc_status(head.status).into());
    let status = encode::Decimal::new(u64::from(status));
    head.status = 200;
    head.body = BodyLength::None;
    head.headers.remove(Known::ContentLength);
    head.headers.set(Known::ContentType, b"application/grpc");
    head.headers.push(Known::GrpcStatus, status.as_bytes());
    if !body.is_empty() {
        push_message(&mut head.headers, body);
    }
}

/// `grpc-message` is percent-encoded (gRPC over HTTP/2, "Responses").
fn push_message(headers: &mut HeaderBlock, text: &[u8]) {
    let mut out = Vec::with_capacity(text.len());
    for byte in text {
        if (0x20..0x7f).contains(byte) && *byte != b'%' {
            out.push(*byte);
        } else {
            out.extend_from_slice(format!("%{byte:02X}").as_bytes());
        }
    }
    headers.push(Known::GrpcMessage, &out);
}
