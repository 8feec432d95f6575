//! One try: a connection, the request out, the response's head.
//!
//! Invariant: nothing of the response goes to the client here but interim responses, so another try
//! is always possible.

use super::exchange::Exchange;
use super::head::ResponseHead;
use super::health;
use super::progress::{Due, RequestBody, moment};
use super::retry::{Failure, Retries};
use super::stream::{
    Broken, Data, Downstream, Piece, Sink, StreamError, UpstreamStream, poll_transfer,
};
use super::trailers::{Screen, Screened};
use super::upstream::Upstream;
use crate::http2::client::Http2Stream;
use crate::outcome::Outcome;
use crate::stats::RouteCounter;
use crate::upstream::health::Seen;
use crate::upstream::pool::{Acquired, Wanted};
use crate::upstream::ticket::RequestTicket;
use crate::upstream::{ActiveCluster, Host};
use crate::worker::state::{PIECE, Worker};
use lateen_proxy_config::route::Route;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

/// Interim responses to one request that are passed on; more help nobody.
const PASSED_INTERIMS: u32 = 64;
/// After so many no answer is expected any more.
const MAX_INTERIMS: u32 = 1000;

/// A try that has a response.
pub(super) struct Answer {
    pub upstream: Upstream,
    pub head: ResponseHead,
    /// Counts the request on its endpoint as long as the response is on its way.
    pub ticket: RequestTicket,
}

/// One try: connection, request, response head.
#[allow(
    clippy::too_many_arguments,
    reason = "the parts of one try; a struct would only name them"
)]
pub(super) async fn one_try<D: Downstream>(
    x: &mut Exchange,
    down: &mut D,
    route: &Route,
    cluster: &Rc<ActiveCluster>,
    host: &Rc<Host>,
    wanted: &Wanted,
    body: &mut RequestBody,
    due: &mut Due,
    retries: &Retries<'_>,
) -> Result<Answer, Failure> {
    let ticket = RequestTicket::take(cluster, host, wanted.priority)
        .ok_or(Failure::early(Outcome::Overflow))?;
    if body.done {
        request_complete(x, due, retries);
    }
    due.arm(&x.worker, down);
    let acquired = match cluster.take(host, wanted) {
        Some(acquired) => acquired,
        None => connect(x, down, cluster, host, wanted, due)
            .await
            .map_err(Failure::early)?,
    };
    host.note(cluster, Seen::Connected);
    let (mut upstream, reused) = match acquired {
        Acquired::Http1(conn) => {
            let reused = conn.requests > 0;
            (Upstream::Http1(conn), reused)
        }
        Acquired::Http2(conn) => (Upstream::Http2(Box::new(Http2Stream::new(conn))), false),
    };
    x.upstream_http2 = matches!(upstream, Upstream::Http2(_));
    x.worker
        .count_route(route, |page| page.inc(RouteCounter::UpstreamRqTotal));
    if x.request.upgrade
        && let Upstream::Http2(stream) = &upstream
    {
        // Boxed, since it is rare.
        let allowed = Box::pin(stream.takes_upgrades());
        match until(&x.worker, down, due, allowed).await {
            Ok(true) => {}
            Ok(false) => return Err(Failure::early(Outcome::UpstreamReset)),
            Err(outcome) => return Err(Failure::early(outcome)),
        }
    }
    send(x, down, &mut upstream, body, retries)
        .await
        .map_err(|outcome| upstream.failure(outcome, reused))?;
    match wait_for_head(x, down, &mut upstream, body, due, retries).await {
        Ok(head) => {
            health::answered(cluster, host, &x.request, &head);
            Ok(Answer {
                upstream,
                head,
                ticket,
            })
        }
        Err(outcome) => Err(upstream.failure(outcome, reused)),
    }
}

/// A connection when none is there. Boxed, since it is rare and its future is large.
async fn connect<D: Downstream>(
    x: &Exchange,
    down: &mut D,
    cluster: &Rc<ActiveCluster>,
    host: &Rc<Host>,
    wanted: &Wanted,
    due: &Due,
) -> Result<Acquired, Outcome> {
    let connecting = Box::pin(cluster.acquire(&x.worker, host, wanted));
    until(&x.worker, down, due, connecting).await?
}

/// Sends the head with as much of the body as is there.
async fn send<D: Downstream>(
    x: &mut Exchange,
    down: &mut D,
    upstream: &mut Upstream,
    body: &mut RequestBody,
    retries: &Retries<'_>,
) -> Result<(), Outcome> {
    body.sent = false;
    body.refused = false;
    let worker = x.worker.clone();
    let keep = retries.armed() || x.request.method.is_idempotent();
    poll_fn(|cx| {
        let again = body.kept.as_deref().unwrap_or_default();
        if !again.is_empty() || body.done || x.request.is_tunnel() {
            let piece = Piece {
                data: Data::Slice(again),
                end: body.end(),
            };
            let sent = upstream.send_head(cx, &worker, &x.request, piece);
            return Poll::Ready(sent.map_err(StreamError::before_response));
        }
        let mut scratch = worker.scratch.borrow_mut();
        let piece = match down.poll_piece(cx, &mut scratch[..PIECE]) {
            Poll::Ready(Ok(piece)) => Screen::of(x).piece(piece),
            // Nobody need hear of it.
            Poll::Ready(Err(StreamError::Protocol)) => {
                return Poll::Ready(Err(Outcome::BadRequest));
            }
            // A client that has gone is noticed while waiting for the response.
            Poll::Ready(Err(_)) | Poll::Pending => Piece::NOTHING,
        };
        let data = piece.data.as_slice();
        x.received += data.len() as u64;
        body.copies.feed(&piece);
        if keep {
            body.keep(&piece);
        } else {
            body.forget_if_any(&piece);
        }
        body.done = piece.end.is_end();
        let sent = upstream.send_head(cx, &worker, &x.request, piece);
        Poll::Ready(sent.map_err(StreamError::before_response))
    })
    .await
}

/// Sends the rest of the body and waits for the final response head.
async fn wait_for_head<D: Downstream>(
    x: &mut Exchange,
    down: &mut D,
    upstream: &mut Upstream,
    body: &mut RequestBody,
    due: &mut Due,
    retries: &Retries<'_>,
) -> Result<ResponseHead, Outcome> {
    let worker = x.worker.clone();
    let keep = retries.armed();
    let was_done = body.done;
    if was_done && due.route.is_none() && due.per_try.is_none() {
        request_complete(x, due, retries);
        due.arm(&worker, down);
    }
    let mut completed = was_done;
    let mut interims = 0u32;
    poll_fn(|cx| {
        if !body.sent && !body.refused && !x.request.is_tunnel() {
            poll_request_body(cx, x, down, upstream, body, keep)?;
        }
        if x.request.is_tunnel() {
            // What the socket did not take at once; an error comes with the head, too.
            let _ = upstream.poll_ready(cx);
        }
        if body.done && !completed {
            completed = true;
            request_complete(x, due, retries);
            due.arm(&worker, down);
        }
        loop {
            // No more of them is read than the client takes.
            if interims > 0
                && down
                    .poll_ready(cx)
                    .map_err(|_| Outcome::ClientGone)?
                    .is_pending()
            {
                break;
            }
            match upstream.poll_head(cx, &worker) {
                Poll::Ready(Ok(head)) if head.is_interim() => {
                    interims += 1;
                    if interims > MAX_INTERIMS {
                        return Poll::Ready(Err(Outcome::UpstreamProtocolError));
                    }
                    if interims <= PASSED_INTERIMS {
                        pass_interim(x, down, cx, &head)?;
                    }
                    worker.recycle(head.headers);
                }
                // Switching protocols without having been asked to.
                Poll::Ready(Ok(head)) if head.status == 101 && !x.request.upgrade => {
                    return Poll::Ready(Err(Outcome::UpstreamProtocolError));
                }
                Poll::Ready(Ok(head)) => return Poll::Ready(Ok(head)),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error.before_response())),
                Poll::Pending => break,
            }
        }
        if body.done && down.poll_gone(cx, &worker).is_ready() {
            return Poll::Ready(Err(Outcome::ClientGone));
        }
        if worker.timers.poll(down.deadline(), cx).is_ready()
            && let Some(outcome) = due.passed(worker.timers.now())
        {
            return Poll::Ready(Err(outcome));
        }
        Poll::Pending
    })
    .await
}

/// Moves what there is of the request body. An error is the end of the request.
pub(super) fn poll_request_body<D: Downstream>(
    cx: &mut Context<'_>,
    x: &mut Exchange,
    down: &mut D,
    upstream: &mut Upstream,
    body: &mut RequestBody,
    keep: bool,
) -> Result<(), Outcome> {
    let worker = x.worker.clone();
    let mut done = body.done;
    let received = &mut x.received;
    let mut source = Screened {
        source: down,
        screen: Screen::new(&x.request, &x.service.manager, x.marks.as_deref()),
    };
    let mut tap = |piece: &Piece<'_>| {
        let bytes = piece.data.as_slice();
        *received += bytes.len() as u64;
        body.copies.feed(piece);
        if keep {
            body.keep(piece);
        } else {
            body.forget_if_any(piece);
        }
    };
    let moved = poll_transfer(cx, &worker, &mut source, upstream, &mut done, &mut tap);
    body.done = done;
    match moved {
        Poll::Ready(Ok(())) => body.sent = true,
        Poll::Ready(Err(Broken::Source(StreamError::Protocol))) => return Err(Outcome::BadRequest),
        Poll::Ready(Err(Broken::Source(_))) => return Err(Outcome::ClientGone),
        // The upstream may have answered already and closed for that reason.
        Poll::Ready(Err(Broken::Sink(_))) => body.refused = true,
        Poll::Pending => {}
    }
    Ok(())
}

fn pass_interim<D: Downstream>(
    x: &Exchange,
    down: &mut D,
    cx: &mut Context<'_>,
    head: &ResponseHead,
) -> Result<(), Outcome> {
    // `100 Continue` was said by this proxy unless it is to be passed on.
    if head.status == 100 && !x.service.manager.proxy_100_continue {
        return Ok(());
    }
    down.send_interim(cx, head).map_err(|_| Outcome::ClientGone)
}

/// The route's timeout runs from the end of the request, and so does a try's.
fn request_complete(x: &Exchange, due: &mut Due, retries: &Retries<'_>) {
    let in_ms = |duration: Duration| {
        moment(
            x.worker
                .timers
                .now()
                .saturating_add(duration.as_millis() as u64),
        )
    };
    if due.route.is_none()
        && let Some(timeout) = x.timeout
    {
        due.route = in_ms(timeout);
    }
    if let Some(timeout) = retries.per_try_timeout() {
        due.per_try = in_ms(timeout);
    }
}

/// Runs `future` unless a deadline passes or the client leaves first.
pub(super) async fn until<F: Future>(
    worker: &Worker,
    down: &mut impl Downstream,
    due: &Due,
    future: F,
) -> Result<F::Output, Outcome> {
    let mut future = pin!(future);
    poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Ok(output));
        }
        if down.poll_gone(cx, worker).is_ready() {
            return Poll::Ready(Err(Outcome::ClientGone));
        }
        if worker.timers.poll(down.deadline(), cx).is_ready()
            && let Some(outcome) = due.passed(worker.timers.now())
        {
            return Poll::Ready(Err(outcome));
        }
        Poll::Pending
    })
    .await
}
