//! The response on its way to the client, and tunnels.
//!
//! Invariant: once the head has gone to the client, a failure can only be shown by ending the
//! stream wrongly: never by a body that looks complete.

use super::attempt::{Answer, poll_request_body};
use super::edit;
use super::exchange::Exchange;
use super::head::{BodyLength, Method, ResponseHead, Version};
use super::headers::Known;
use super::health;
use super::progress::{Due, RequestBody, moment};
use super::request::Routed;
use super::stream::{Broken, Downstream, End, Piece, Source, StreamError, poll_transfer};
use super::upstream::Upstream;
use crate::http1::encode::Decimal;
use crate::outcome::Outcome;
use crate::stats::{ClusterStat, HttpStat, RouteCounter, count_cluster_status, count_route_status};
use crate::worker::state::PIECE;
use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::Instant;

/// Sends a response to the client, to its end.
pub(super) async fn respond<D: Downstream>(
    x: &mut Exchange,
    down: &mut D,
    routed: Routed<'_>,
    answer: Answer,
    mut body: RequestBody,
    mut due: Due,
) {
    let Answer {
        mut upstream,
        mut head,
        ticket,
    } = answer;
    let now = Instant::now();
    x.answered = Some(now);
    x.status = head.status;
    due.per_try = None;
    // As Envoy, which begins to count where the request ends.
    if body.done {
        service_time(x, &mut head, now);
    }
    edit::response_to_client(x, Some(routed), &mut head);
    for cookie in &x.set_cookies {
        head.headers.push_name(b"set-cookie", cookie);
    }
    let tunnel = opens_tunnel(x, &head);
    if tunnel {
        down.become_tunnel();
        upstream.become_tunnel();
        x.service.stats.inc(HttpStat::DownstreamCxUpgradesTotal);
        x.service.stats.inc(HttpStat::DownstreamCxUpgradesActive);
    }

    if !tunnel && x.request.is_tunnel() {
        // The upstream declined: an ordinary response, to a request that has no body.
        body.done = true;
        body.sent = true;
    }

    let mut done = false;
    x.note_drain(down);
    let sent = send_head(x, down, &mut upstream, &head, &mut done, tunnel).await;
    x.response = Some(head);
    let ended = match sent {
        Err(broken) => Err(broken),
        Ok(()) => transfer(x, down, &mut upstream, &mut body, &mut due, done, tunnel).await,
    };
    if tunnel {
        x.service.stats.dec(HttpStat::DownstreamCxUpgradesActive);
    }
    finish(x, down, routed, upstream, ended);
    drop(ticket);
}

/// The head, with the first piece of the body if it has come with it.
async fn send_head<D: Downstream>(
    x: &mut Exchange,
    down: &mut D,
    upstream: &mut Upstream,
    head: &ResponseHead,
    done: &mut bool,
    tunnel: bool,
) -> Result<(), Outcome> {
    let worker = x.worker.clone();
    poll_fn(|cx| {
        let mut scratch = worker.scratch.borrow_mut();
        let first = if tunnel {
            Piece::NOTHING
        } else if head.body == BodyLength::None {
            Piece::DONE
        } else {
            match upstream.poll_piece(cx, &mut scratch[..PIECE]) {
                Poll::Ready(Ok(piece)) => piece,
                // Told apart below, when the body is read on.
                Poll::Ready(Err(_)) | Poll::Pending => Piece::NOTHING,
            }
        };
        x.sent += first.data.as_slice().len() as u64;
        *done = first.end.is_end();
        if let End::Trailers(trailers) = &first.end {
            x.trailers = Some(trailers.clone());
        }
        Poll::Ready(
            down.send_head(cx, &worker, head, first)
                .map_err(|_| Outcome::ClientGone),
        )
    })
    .await
}

/// Moves the rest of the response, and what is left of the request.
async fn transfer<D: Downstream>(
    x: &mut Exchange,
    down: &mut D,
    upstream: &mut Upstream,
    body: &mut RequestBody,
    due: &mut Due,
    mut done: bool,
    tunnel: bool,
) -> Result<(), Outcome> {
    let worker = x.worker.clone();
    let mut flushed = false;
    if !done {
        due.touch(&worker);
        due.arm(&worker, down);
    }
    poll_fn(|cx| {
        let before = (x.sent, x.received);
        if !flushed {
            let (sent, trailers) = (&mut x.sent, &mut x.trailers);
            let mut tap = |piece: &Piece<'_>| *sent += piece.data.as_slice().len() as u64;
            let mut source = Watch {
                upstream: &mut *upstream,
                trailers,
            };
            match poll_transfer(cx, &worker, &mut source, down, &mut done, &mut tap) {
                Poll::Ready(Ok(())) => flushed = true,
                Poll::Ready(Err(Broken::Sink(_))) => return Poll::Ready(Err(Outcome::ClientGone)),
                Poll::Ready(Err(Broken::Source(_))) => {
                    return Poll::Ready(Err(match source.upstream {
                        Upstream::Http1(_) => Outcome::UpstreamBrokenMidResponse,
                        Upstream::Http2(_) => Outcome::UpstreamClosedMidResponse,
                    }));
                }
                Poll::Pending => {}
            }
        }
        if !body.sent && !body.refused {
            // A client that fails in the middle of its request is gone, response or not.
            match poll_request_body(cx, x, down, upstream, body, false) {
                Err(outcome) if !flushed => return Poll::Ready(Err(outcome)),
                Err(_) => body.refused = true,
                Ok(()) => {}
            }
        }
        // As Envoy, an upgraded connection ends when the upstream ends it; of a CONNECT the other
        // direction may go on.
        if flushed && (!tunnel || x.request.upgrade || body.sent || body.refused) {
            return Poll::Ready(Ok(()));
        }
        if body.done && !tunnel && down.poll_gone(cx, &worker).is_ready() {
            return Poll::Ready(Err(Outcome::ClientGone));
        }
        if tunnel && drains(x, due) {
            due.arm(&worker, down);
        }
        if before != (x.sent, x.received) && due.idle_for.is_some() {
            due.touch(&worker);
            due.arm(&worker, down);
        }
        check_due(cx, x, down, due)
    })
    .await
}

/// Whether a tunnel has just learnt when it has to be gone. Other streams of an HTTP/2 connection
/// may have moved on to another chain, so that its tunnels end with the connection only.
fn drains(x: &Exchange, due: &mut Due) -> bool {
    if due.drained.is_some() || x.request.version == Version::Http2 {
        return false;
    }
    due.drained = x.conn.leaves_at().and_then(moment);
    due.drained.is_some()
}

fn check_due<D: Downstream>(
    cx: &mut Context<'_>,
    x: &Exchange,
    down: &D,
    due: &Due,
) -> Poll<Result<(), Outcome>> {
    if x.worker.timers.poll(down.deadline(), cx).is_pending() {
        return Poll::Pending;
    }
    match due.passed(x.worker.timers.now()) {
        Some(Outcome::RouteTimeout) => Poll::Ready(Err(Outcome::TimeoutMidResponse)),
        Some(outcome) => Poll::Ready(Err(outcome)),
        None => Poll::Pending,
    }
}

/// Remembers the trailers that pass, for the access log.
struct Watch<'a> {
    upstream: &'a mut Upstream,
    trailers: &'a mut Option<Box<super::headers::HeaderBlock>>,
}

impl Source for Watch<'_> {
    fn poll_piece<'s>(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &'s mut [u8],
    ) -> Poll<Result<Piece<'s>, StreamError>> {
        let polled = self.upstream.poll_piece(cx, scratch);
        if let Poll::Ready(Ok(Piece {
            end: End::Trailers(trailers),
            ..
        })) = &polled
        {
            *self.trailers = Some(trailers.clone());
        }
        polled
    }
}

fn finish<D: Downstream>(
    x: &mut Exchange,
    down: &mut D,
    routed: Routed<'_>,
    upstream: Upstream,
    ended: Result<(), Outcome>,
) {
    let now = x.worker.timers.read().0;
    x.ended = Some(now);
    let Some(cluster) = x.cluster.clone() else {
        return;
    };
    count_cluster_status(&cluster.stats, x.status);
    x.worker.count_route(routed.route, |page| {
        count_route_status(page, x.status);
        match ended {
            Ok(()) => page.latency((now - x.started).as_micros() as u64),
            Err(Outcome::TimeoutMidResponse) => page.inc(RouteCounter::UpstreamRqTimeout),
            Err(_) => {}
        }
    });
    if let Some(host) = &x.host {
        health::ended(&cluster, host, x, ended);
    }
    match ended {
        Ok(()) => {
            x.count_try((x.status >= 500).then_some(Outcome::Answered));
            cluster.stats.latency((now - x.started).as_micros() as u64);
        }
        Err(outcome) => {
            x.outcome = outcome;
            x.count_try(Some(outcome));
            if let Some(stat) = outcome.row().cluster_stat {
                cluster.stats.inc(stat);
            }
            down.abort();
        }
    }
    match upstream {
        Upstream::Http1(mut conn) => {
            conn.ticket.lost_with_request = x.outcome == Outcome::UpstreamBrokenMidResponse;
            cluster.stats.add(
                ClusterStat::UpstreamCxRxBytes,
                std::mem::take(&mut conn.received),
            );
            cluster.stats.add(
                ClusterStat::UpstreamCxTxBytes,
                std::mem::take(&mut conn.sent),
            );
            cluster.release(&x.worker, conn);
        }
        Upstream::Http2(stream) => drop(stream),
    }
}

fn service_time(x: &Exchange, head: &mut ResponseHead, now: Instant) {
    if x.service.router.suppress_envoy_headers {
        return;
    }
    let took = now.saturating_duration_since(x.started);
    let text = Decimal::new(took.as_millis() as u64);
    head.headers.set(Known::EnvoyServiceTime, text.as_bytes());
}

/// Whether the upstream agreed to turn the stream into a tunnel.
fn opens_tunnel(x: &Exchange, head: &ResponseHead) -> bool {
    match head.status {
        101 => x.request.upgrade,
        200..=299 => x.request.method == Method::Connect,
        _ => false,
    }
}
