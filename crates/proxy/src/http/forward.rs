//! Tries: choose an endpoint, get a connection, send the request, wait for the response head.
//!
//! Invariant: nothing is sent to the client before a try has a response head that is to be kept,
//! so another try is always possible until then.

use super::edit;
use super::exchange::Exchange;
use super::hash;
use super::head::{BodyLength, ResponseHead};
use super::headers::Known;
use super::health;
use super::local;
use super::mirror::Copies;
use super::prepare::{choose_cluster, rewrite};
use super::progress::{Due, RequestBody, moment};
use super::relay;
use super::request::Routed;
use super::retry::{Failure, Retries};
use super::stream::{
    Broken, Data, Downstream, End, Piece, Sink, StreamError, UpstreamStream, poll_transfer,
};
use super::timeouts::{self, Limits};
use super::upstream::Upstream;
use crate::http1::encode::Decimal;
use crate::http2::client::Http2Stream;
use crate::outcome::Outcome;
use crate::stats::{ClusterStat, count_cluster_status};
use crate::upstream::health::Seen;
use crate::upstream::pool::{Acquired, Wanted};
use crate::upstream::ticket::{RequestTicket, RetryTicket};
use crate::upstream::{ActiveCluster, Host};
use crate::worker::state::{PIECE, Worker};
use lateen_proxy_config::ClusterKind;
use lateen_proxy_config::route::{Forward, HostRewrite};
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

/// Sends the request to the route's cluster and the response to the client.
pub(super) async fn forward<D: Downstream>(
    x: &mut Exchange,
    down: &mut D,
    routed: Routed<'_>,
    to: &Forward,
) {
    let chosen = choose_cluster(x, to);
    let (Some(cluster), ops, host_rewrite) = chosen else {
        let status = to.cluster_not_found_status;
        return local::refuse_as(x, down, Some(routed), Outcome::NoCluster, status).await;
    };
    x.cluster = Some(cluster.clone());
    let limits = timeouts::decide(x, routed, to);
    edit::request_to_upstream(x, routed, ops, limits.expected);
    rewrite(x, routed, to, host_rewrite);
    if !to.hash.is_empty() && cluster.config.lb.hashes() {
        let hashed = hash::of(x, to);
        (x.hash, x.set_cookies) = (hashed.hash, hashed.set_cookies);
    }
    let mut due = due(x, to, limits);
    let mut body = request_body(x, routed, to);
    expect_continue(x, down).await;
    match tries(x, down, routed, to, &cluster, &mut body, &mut due).await {
        Ok(answer) => relay::respond(x, down, routed, answer, body, due).await,
        Err(outcome) => {
            if let Some(stat) = outcome.row().cluster_stat {
                cluster.stats.inc(stat);
            }
            if outcome == Outcome::ClientGone {
                x.outcome = outcome;
                down.abort();
                return;
            }
            // As Envoy, the cluster answers for the statuses that are made in its name.
            count_cluster_status(&cluster.stats, outcome.row().status);
            if outcome == Outcome::StreamTooLong {
                // Boxed, since it is rare.
                return Box::pin(too_long(x, down, routed, body.done)).await;
            }
            local::refuse_as(x, down, Some(routed), outcome, outcome.row().status).await;
        }
    }
}

/// The body as it is to be sent: to the upstream, and to mirrors.
fn request_body(x: &Exchange, routed: Routed<'_>, to: &Forward) -> RequestBody {
    let limit = routed.route.request_body_buffer_limit;
    let mut body = RequestBody::new(x.request.body, x.request.is_tunnel(), limit);
    let counts_tries = routed.host.include_request_attempt_count;
    body.copies = Copies::begin(x, &to.mirrors, x.timeout, counts_tries);
    if body.done {
        body.copies.end();
    }
    body
}

/// Says who took too long: the upstream, or the client that has not sent all of its request.
async fn too_long<D: Downstream>(
    x: &mut Exchange,
    down: &mut D,
    routed: Routed<'_>,
    request_done: bool,
) {
    const DEADLINE_EXCEEDED: u32 = 4;
    let row = Outcome::StreamTooLong.row();
    x.outcome = Outcome::StreamTooLong;
    let status = if request_done { row.status } else { 408 };
    let head = local::head(x, status, None, row.body.len());
    let (body, grpc) = (row.body.as_bytes(), Some(DEADLINE_EXCEEDED));
    local::send_as(x, down, Some(routed), head, body, grpc).await;
}

/// Tries until one has a response that is to be kept, or none is left.
async fn tries<D: Downstream>(
    x: &mut Exchange,
    down: &mut D,
    routed: Routed<'_>,
    to: &Forward,
    cluster: &Rc<ActiveCluster>,
    body: &mut RequestBody,
    due: &mut Due,
) -> Result<Answer, Outcome> {
    let mut retries = Retries::new(routed.route.retry.as_deref(), &x.request);
    let mut retry_ticket: Option<RetryTicket> = None;
    let mut fresh = false;
    // As in Envoy, looking for an endpoint is part of a try.
    x.tries = 0;
    loop {
        x.tries += u32::from(!fresh);
        let reselections = retries.reselections();
        let host = select(
            x,
            cluster,
            reselections,
            &retries.other_priorities(),
            |host| retries.was_tried(host.address),
        )
        .ok_or(Outcome::NoHealthyUpstream)?;
        retries.note(&host);
        x.host = Some(host.clone());
        count_tries(x, routed, to);
        due.per_try = None;
        let wanted = Wanted {
            priority: to.priority,
            downstream_http2: x.request.version == super::head::Version::Http2,
            fresh,
            key: cluster.conn_key(&x.request, &x.conn),
        };
        let result = one_try(x, down, cluster, &host, &wanted, body, due, &retries).await;
        let retried = retry_ticket.is_some();
        let failure = match result {
            Ok(answer) => {
                let again = retries.wants_instead_of(&answer.head) && body.replayable();
                if !again {
                    if retried && answer.head.status < 500 {
                        cluster.stats.inc(ClusterStat::UpstreamRqRetrySuccess);
                    }
                    return Ok(answer);
                }
                match next_try(x, cluster, to, &mut retries, &mut retry_ticket) {
                    Some(wait) => {
                        discard(x, cluster, answer);
                        pause(x, down, wait, due).await?;
                        fresh = false;
                        continue;
                    }
                    None => return Ok(answer),
                }
            }
            Err(failure) => failure,
        };
        x.count_try(Some(failure.outcome));
        let lasts = failure.outcome == Outcome::ClientGone || !body.replayable();
        if !lasts && retries.replaces(&failure, &x.request) {
            fresh = true;
            continue;
        }
        health::failed(cluster, &host, failure.outcome);
        x.note_tls_failure(failure.outcome, &host);
        if lasts {
            return Err(failure.outcome);
        }
        if !retries.wants_after(&failure) {
            return Err(failure.outcome);
        }
        match next_try(x, cluster, to, &mut retries, &mut retry_ticket) {
            Some(wait) => pause(x, down, wait, due).await?,
            None => return Err(failure.outcome),
        }
        fresh = false;
    }
}

/// Takes a retry if there is one; how long to wait first.
fn next_try(
    x: &mut Exchange,
    cluster: &Rc<ActiveCluster>,
    to: &Forward,
    retries: &mut Retries<'_>,
    ticket: &mut Option<RetryTicket>,
) -> Option<Duration> {
    if !retries.spend() {
        x.retries_exhausted = true;
        cluster.stats.inc(ClusterStat::UpstreamRqRetryLimitExceeded);
        return None;
    }
    *ticket = None;
    *ticket = RetryTicket::take(cluster, to.priority);
    ticket.as_ref()?;
    Some(retries.backoff(x.worker.random()))
}

/// One try: connection, request, response head.
#[allow(
    clippy::too_many_arguments,
    reason = "the parts of one try; a struct would only name them"
)]
async fn one_try<D: Downstream>(
    x: &mut Exchange,
    down: &mut D,
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
    send(x, down, &mut upstream, body, retries)
        .await
        .map_err(|error| upstream.failure(error.before_response(), reused))?;
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
) -> Result<(), StreamError> {
    body.sent = false;
    body.refused = false;
    let worker = x.worker.clone();
    let keep = retries.armed() || x.request.method.is_idempotent();
    poll_fn(|cx| {
        let replayed = match &body.kept {
            Some(kept) if !kept.is_empty() => Some(kept.clone()),
            _ => None,
        };
        if let Some(bytes) = replayed {
            let end = if body.done { End::Done } else { End::More };
            let piece = Piece {
                data: Data::Slice(&bytes),
                end,
            };
            return Poll::Ready(upstream.send_head(cx, &worker, &x.request, piece));
        }
        if body.done || x.request.is_tunnel() {
            let piece = if body.done {
                Piece::DONE
            } else {
                Piece::NOTHING
            };
            return Poll::Ready(upstream.send_head(cx, &worker, &x.request, piece));
        }
        let mut scratch = worker.scratch.borrow_mut();
        let piece = match down.poll_piece(cx, &mut scratch[..PIECE]) {
            Poll::Ready(Ok(piece)) => piece,
            // A client that has gone is noticed while waiting for the response.
            Poll::Ready(Err(_)) | Poll::Pending => Piece::NOTHING,
        };
        let data = piece.data.as_slice();
        x.received += data.len() as u64;
        body.copies.feed(&piece);
        if keep {
            body.keep(data);
        } else if !data.is_empty() {
            body.forget();
        }
        body.done = piece.end.is_end();
        Poll::Ready(upstream.send_head(cx, &worker, &x.request, piece))
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
        if x.request.is_tunnel() && upstream.poll_ready(cx).is_ready() {
            // Only what the socket did not take at once had to be flushed.
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
    let mut tap = |piece: &Piece<'_>| {
        let bytes = piece.data.as_slice();
        *received += bytes.len() as u64;
        body.copies.feed(piece);
        if keep {
            body.keep(bytes);
        } else if !bytes.is_empty() {
            body.forget();
        }
    };
    let moved = poll_transfer(cx, &worker, down, upstream, &mut done, &mut tap);
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

fn due(x: &mut Exchange, to: &Forward, limits: Limits) -> Due {
    // A tunnel lives as long as its ends want.
    x.timeout = limits.route.filter(|_| !x.request.is_tunnel());
    let begun = x.worker.timers.millis(x.started);
    let idle = to
        .idle_timeout
        .unwrap_or(x.service.manager.timeouts.stream_idle);
    let mut due = Due {
        stream: limits
            .stream
            .and_then(|d| moment(begun.saturating_add(d.as_millis() as u64))),
        idle_for: idle.and_then(|d| moment(d.as_millis() as u64)),
        ..Due::default()
    };
    due.touch(&x.worker);
    due
}

/// Runs `future` unless a deadline passes or the client leaves first.
async fn until<F: Future>(
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
        if down.body_done() && down.poll_gone(cx, worker).is_ready() {
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

async fn pause<D: Downstream>(
    x: &Exchange,
    down: &mut D,
    wait: Duration,
    due: &mut Due,
) -> Result<(), Outcome> {
    due.per_try = None;
    due.arm(&x.worker, down);
    // Boxed, since it is rare and a timer is large.
    until(&x.worker, down, due, Box::pin(tokio::time::sleep(wait))).await
}

/// Gives up a response that is not wanted. Its connection is kept if the response was complete.
fn discard(x: &mut Exchange, cluster: &Rc<ActiveCluster>, answer: Answer) {
    count_cluster_status(&cluster.stats, answer.head.status);
    x.count_try(Some(Outcome::UpstreamReset));
    x.worker.recycle(answer.head.headers);
    if let Upstream::Http1(mut conn) = answer.upstream {
        conn.finish_if_complete(&mut x.worker.scratch.borrow_mut());
        cluster.release(&x.worker, conn);
    }
}

/// The endpoint of the next try.
fn select(
    x: &Exchange,
    cluster: &Rc<ActiveCluster>,
    reselections: u32,
    elsewhere: &[u32],
    avoid: impl FnMut(&Rc<Host>) -> bool,
) -> Option<Rc<Host>> {
    match &cluster.config.kind {
        ClusterKind::OriginalDst {
            header,
            port_override,
        } => {
            let named = header.as_deref().and_then(|name| {
                let value = x.request.headers.get_name(name.as_bytes())?;
                std::str::from_utf8(value).ok()?.parse().ok()
            });
            let mut address = named.or(x.conn.original_destination)?;
            if let Some(port) = port_override {
                address.set_port(*port);
            }
            Some(cluster.host_at(address))
        }
        _ => cluster.pick_outside(&x.worker, x.hash, elsewhere, reselections, avoid),
    }
}

fn count_tries(x: &mut Exchange, routed: Routed<'_>, to: &Forward) {
    if routed.host.include_request_attempt_count {
        let count = Decimal::new(u64::from(x.tries));
        x.request
            .headers
            .set(Known::EnvoyAttemptCount, count.as_bytes());
    }
    if let (HostRewrite::Auto, Some(host)) = (&to.host_rewrite, &x.host)
        && !host.hostname.is_empty()
    {
        x.request.headers.set(Known::Host, host.hostname.as_bytes());
    }
}

/// A client that waits for permission to send its body gets it from here, unless the upstream is
/// to be asked.
async fn expect_continue<D: Downstream>(x: &mut Exchange, down: &mut D) {
    if x.service.manager.proxy_100_continue || !x.request.headers.has(Known::Expect) {
        return;
    }
    let expect = x.request.headers.get(Known::Expect).unwrap_or_default();
    let wants = expect.eq_ignore_ascii_case(b"100-continue");
    if !wants {
        return;
    }
    x.request.headers.remove(Known::Expect);
    if x.request.body == BodyLength::None {
        return;
    }
    let head = ResponseHead::new(100, x.worker.block());
    let worker = x.worker.clone();
    // A client that is gone is noticed when its body is read.
    let _ = poll_fn(|cx| Poll::Ready(down.send_interim(cx, &head))).await;
    worker.recycle(head.headers);
}
