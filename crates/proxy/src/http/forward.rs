//! Tries, until one has a response: choose an endpoint, try (`attempt.rs`), perhaps try again.
//!
//! Invariant: nothing is sent to the client before a try has a response head that is to be kept,
//! so another try is always possible until then.

use super::attempt::{Answer, one_try, until};
use super::edit;
use super::exchange::Exchange;
use super::hash;
use super::head::{BodyLength, Method, ResponseHead};
use super::headers::Known;
use super::health;
use super::local;
use super::mirror::Copies;
use super::prepare::{choose_cluster, rewrite};
use super::progress::{Due, RequestBody, moment};
use super::relay;
use super::request::Routed;
use super::retry::Retries;
use super::stream::Downstream;
use super::timeouts::{self, Limits};
use super::trailers::Screen;
use super::upstream::Upstream;
use crate::http1::encode::Decimal;
use crate::outcome::Outcome;
use crate::stats::{ClusterStat, RouteCounter, count_cluster_status, count_route_status};
use crate::upstream::pool::Wanted;
use crate::upstream::ticket::RetryTicket;
use crate::upstream::{ActiveCluster, Host};
use lateen_proxy_config::ClusterKind;
use lateen_proxy_config::route::{Forward, HostRewrite};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

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
            x.worker.count_route(routed.route, |page| {
                if outcome == Outcome::RouteTimeout {
                    page.inc(RouteCounter::UpstreamRqTimeout);
                }
                if outcome != Outcome::ClientGone {
                    count_route_status(page, outcome.row().status);
                }
            });
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
fn request_body(x: &mut Exchange, routed: Routed<'_>, to: &Forward) -> RequestBody {
    let limit = routed.route.request_body_buffer_limit;
    let mut body = RequestBody::new(x.request.body, x.request.is_tunnel(), limit);
    let counts_tries = routed.host.include_request_attempt_count;
    body.copies = Copies::begin(x, &to.mirrors, x.timeout, counts_tries);
    if let Some(mut held) = x.marks.as_mut().and_then(|marks| marks.held.take()) {
        let trailers = held.trailers.take();
        held.trailers = trailers.and_then(|trailers| Screen::of(x).trailers(trailers));
        body.resume(held);
        return body;
    }
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
        let host = match cluster.config.kind {
            // Boxed, since it is rare.
            ClusterKind::ByRequest { .. } => Box::pin(by_name(x, down, cluster, due)).await?,
            _ => select(
                x,
                cluster,
                reselections,
                &retries.other_priorities(),
                |host| retries.was_tried(host.address),
            )
            .ok_or(Outcome::NoHealthyUpstream)?,
        };
        retries.note(&host);
        x.host = Some(host.clone());
        count_tries(x, routed, to);
        due.per_try = None;
        let wanted = Wanted {
            priority: to.priority,
            downstream_http2: x.request.version == super::head::Version::Http2,
            fresh,
            raw: to.terminates_connect && x.request.method == Method::Connect,
            key: cluster.conn_key(&x.request, &x.conn),
        };
        let result = one_try(
            x,
            down,
            routed.route,
            cluster,
            &host,
            &wanted,
            body,
            due,
            &retries,
        )
        .await;
        let retried = retry_ticket.is_some();
        let failure = match result {
            Ok(answer) => {
                let again = retries.wants_instead_of(&answer.head) && body.replayable();
                if !again {
                    if retried && answer.head.status < 500 {
                        cluster.stats.inc(ClusterStat::UpstreamRqRetrySuccess);
                        let stat = RouteCounter::UpstreamRqRetrySuccess;
                        x.worker.count_route(routed.route, |page| page.inc(stat));
                    }
                    return Ok(answer);
                }
                match next_try(x, cluster, routed, to, &mut retries, &mut retry_ticket) {
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
        match next_try(x, cluster, routed, to, &mut retries, &mut retry_ticket) {
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
    routed: Routed<'_>,
    to: &Forward,
    retries: &mut Retries<'_>,
    ticket: &mut Option<RetryTicket>,
) -> Option<Duration> {
    let worker = x.worker.clone();
    let count = |stat: RouteCounter| worker.count_route(routed.route, |page| page.inc(stat));
    if !retries.spend() {
        x.retries_exhausted = true;
        cluster.stats.inc(ClusterStat::UpstreamRqRetryLimitExceeded);
        count(RouteCounter::UpstreamRqRetryLimitExceeded);
        return None;
    }
    *ticket = None;
    *ticket = RetryTicket::take(cluster, to.priority);
    count(match ticket {
        Some(_) => RouteCounter::UpstreamRqRetry,
        None => RouteCounter::UpstreamRqRetryOverflow,
    });
    ticket.as_ref()?;
    Some(retries.backoff(x.worker.random()))
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

/// The endpoint that the host of the request leads to.
async fn by_name<D: Downstream>(
    x: &Exchange,
    down: &mut D,
    cluster: &Rc<ActiveCluster>,
    due: &Due,
) -> Result<Rc<Host>, Outcome> {
    let found = cluster.host_by_name(x.request.authority_bytes());
    until(&x.worker, down, due, found)
        .await?
        .ok_or(Outcome::NameNotFound)
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
pub(super) async fn expect_continue<D: Downstream>(x: &mut Exchange, down: &mut D) {
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
