//! A client's HTTP/1 connection: one request after the other, until either side has enough.

use super::exchange::Exchange;
use super::request;
use super::service::HttpService;
use crate::http::head::{RequestHead, ResponseHead};
use crate::http::headers::{HeaderBlock, Known};
use crate::http1::encode::{self, Encoding, Persistence};
use crate::http1::parse::{HeadError, Limits};
use crate::http1::server::{NoRequest, ServerConn};
use crate::io::Io;
use crate::listener::ConnInfo;
use crate::outcome::Outcome;
use crate::stats::{HttpStat, Page};
use crate::worker::state::{PIECE, Worker};
use crate::worker::timers::Deadline;
use lateen_proxy_config::Codec;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

/// How long a connection that should close may wait for a request that is on its way.
const DRAIN_GRACE: Duration = Duration::from_secs(5);
/// Between half-close and close when the configuration does not say.
const DELAYED_CLOSE: Duration = Duration::from_secs(1);

/// Why a connection ends.
enum End {
    /// The client closed, or broke off.
    Closed,
    Idle,
    Drained,
    /// The head did not come in time.
    HeadTimeout,
    Bad(HeadError),
    Http2,
}

/// Serves a connection to its end.
pub(crate) async fn serve(io: Io, info: Rc<ConnInfo>, worker: Rc<Worker>, deadline: Rc<Deadline>) {
    let Some(service) = info.http_service() else {
        return;
    };
    let counted = Counted::new(
        &service,
        HttpStat::DownstreamCxHttp1Total,
        HttpStat::DownstreamCxHttp1Active,
    );
    let mut conn = ServerConn::new(io, deadline);
    let mut requests = 0u32;
    let end = loop {
        let Some(service) = info.http_service() else {
            return;
        };
        match next_request(&mut conn, &service, &info, &worker, requests == 0).await {
            Ok(head) => {
                // The configuration may have changed while the connection was idle.
                let Some(service) = info.http_service() else {
                    return;
                };
                requests = requests.saturating_add(1);
                let enough = service
                    .manager
                    .max_requests_per_connection
                    .is_some_and(|m| requests >= m);
                if enough {
                    service.stats.inc(HttpStat::DownstreamCxDrainClose);
                    conn.close_after_response();
                }
                // Boxed, as what ends a connection is below: a connection waits most of its life, and
                // should not be as large meanwhile as a request (docs/decisions/0004).
                Box::pin(request::serve(&mut conn, head, &service, &info, &worker)).await;
                count_bytes(&mut conn, &service.stats);
                if !conn.reusable() {
                    break End::Drained;
                }
            }
            Err(end) => break end,
        }
    };
    drop(counted);
    match end {
        End::Http2 => {
            let deadline = crate::http::stream::Downstream::deadline(&conn).clone();
            let (io, first) = conn.into_parts();
            // Boxed: an HTTP/1 connection should not pay for the size of an HTTP/2 one.
            Box::pin(crate::http2::server::serve(
                io, first, info, worker, deadline,
            ))
            .await;
        }
        End::Closed => {}
        End::Idle => service.stats.inc(HttpStat::DownstreamCxIdleTimeout),
        End::Drained => Box::pin(close(conn, &service, &worker)).await,
        End::HeadTimeout => {
            let outcome = Outcome::RequestHeadersTimeout;
            Box::pin(refuse(conn, &service, &info, &worker, outcome)).await;
        }
        End::Bad(error) => {
            Box::pin(refuse(conn, &service, &info, &worker, outcome_of(error))).await;
        }
    }
}

fn outcome_of(error: HeadError) -> Outcome {
    match error {
        HeadError::TooLarge => Outcome::HeadTooLarge,
        HeadError::TooMany => Outcome::TooManyHeaders,
        HeadError::Characters => Outcome::BadCharacters,
        HeadError::Url => Outcome::BadUrl,
        HeadError::UnknownScheme => Outcome::SchemeUnknown,
        HeadError::Authority => Outcome::BadAuthority,
        HeadError::LengthAndEncoding => Outcome::LengthAndEncoding,
        HeadError::Http10 => Outcome::HttpVersionNotAccepted,
        HeadError::Scheme => Outcome::SchemeNotAccepted,
        HeadError::TransferEncoding => Outcome::TransferEncodingUnknown,
        _ => Outcome::BadRequest,
    }
}

/// Waits for the next request; while nothing of it has come, the connection is idle.
async fn next_request(
    conn: &mut ServerConn,
    service: &HttpService,
    info: &ConnInfo,
    worker: &Worker,
    first: bool,
) -> Result<RequestHead, End> {
    let manager = &service.manager;
    let limits = Limits {
        // The head has to fit into the worker's buffer.
        head_bytes: (manager.max_request_headers_bytes as usize).min(PIECE - 1),
        headers: manager.max_headers_count as usize,
        tls: info.tls().is_some(),
    };
    let agreed = info.tls().is_some_and(|tls| tls.agreed);
    let http2 = first && !agreed && manager.codec == Codec::Auto;
    let timeouts = &manager.timeouts;
    // The timers are set when the wait begins, so a request that is there already costs none.
    let mut waiting: Option<(bool, bool)> = None;
    poll_fn(|cx| {
        match conn.poll_request(cx, worker, limits, &manager.http1, http2) {
            Poll::Ready(Ok(head)) => return Poll::Ready(Ok(head)),
            Poll::Ready(Err(NoRequest::Closed)) => return Poll::Ready(Err(End::Closed)),
            Poll::Ready(Err(NoRequest::Bad(error))) => return Poll::Ready(Err(End::Bad(error))),
            Poll::Ready(Err(NoRequest::Http2Preface)) => return Poll::Ready(Err(End::Http2)),
            Poll::Pending => {}
        }
        let now = (conn.begun(), info.draining());
        if waiting != Some(now) {
            // A wait begins just after the connection was accepted or has finished a request, and
            // either has read the clock.
            let since = match waiting {
                None if now == (false, false) => worker.timers.recent(),
                _ => worker.timers.now(),
            };
            waiting = Some(now);
            let limit = match now {
                // A head that does not end is a stream that stands still.
                (true, _) => timeouts.request_headers.or(timeouts.stream_idle),
                (false, true) => Some(DRAIN_GRACE),
                (false, false) => timeouts.idle,
            };
            worker.timers.set(
                crate::http::stream::Downstream::deadline(conn),
                limit.map(|limit| since + limit.as_millis() as u64),
            );
        }
        let deadline = crate::http::stream::Downstream::deadline(conn);
        if worker.timers.poll(deadline, cx).is_pending() {
            return Poll::Pending;
        }
        Poll::Ready(Err(match now {
            (true, _) => End::HeadTimeout,
            (false, true) => End::Drained,
            (false, false) => End::Idle,
        }))
    })
    .await
}

/// Answers what is not a request, and closes. It is counted and logged like a request, of which
/// nothing but the answer is known.
async fn refuse(
    mut conn: ServerConn,
    service: &Rc<HttpService>,
    info: &Rc<ConnInfo>,
    worker: &Rc<Worker>,
    outcome: Outcome,
) {
    let row = outcome.row();
    let mut x = Exchange::begin(worker, service, info, RequestHead::new(worker.block()));
    x.outcome = outcome;
    x.status = row.status;
    x.sent = row.body.len() as u64;
    x.finish(None);
    let mut headers = HeaderBlock::default();
    encode::set_length(&mut headers, row.body.len() as u64);
    if !row.body.is_empty() {
        headers.push(Known::ContentType, b"text/plain");
    }
    worker.with_date(std::time::Instant::now(), |date| {
        headers.push(Known::Date, date)
    });
    headers.push(Known::Server, service.manager.server_name.as_bytes());
    let head = ResponseHead::new(row.status, headers);
    let mut out = Vec::with_capacity(256);
    let (version, persistence) = (conn.version(), Persistence::Close);
    encode::response_head(&mut out, &head, version, Encoding::Plain, persistence);
    out.extend_from_slice(row.body.as_bytes());
    poll_fn(|cx| {
        conn.write_last(cx, &out);
        Poll::Ready(())
    })
    .await;
    close(conn, service, worker).await;
}

/// Closes so that the client can still read what was sent.
async fn close(mut conn: ServerConn, service: &HttpService, worker: &Worker) {
    let limit = service
        .manager
        .timeouts
        .delayed_close
        .unwrap_or(DELAYED_CLOSE);
    let _ = tokio::time::timeout(limit, poll_fn(|cx| conn.poll_close(cx, worker))).await;
    count_bytes(&mut conn, &service.stats);
}

fn count_bytes(conn: &mut ServerConn, stats: &Page) {
    stats.add(
        HttpStat::DownstreamCxRxBytes,
        std::mem::take(&mut conn.received),
    );
    stats.add(
        HttpStat::DownstreamCxTxBytes,
        std::mem::take(&mut conn.sent),
    );
}

/// Counts a connection as long as it lives.
pub(crate) struct Counted {
    stats: Arc<Page>,
    active: HttpStat,
}

impl Counted {
    pub(crate) fn new(service: &HttpService, total: HttpStat, active: HttpStat) -> Counted {
        for stat in [
            HttpStat::DownstreamCxTotal,
            HttpStat::DownstreamCxActive,
            total,
            active,
        ] {
            service.stats.inc(stat);
        }
        Counted {
            stats: service.stats.clone(),
            active,
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.stats.dec(HttpStat::DownstreamCxActive);
        self.stats.dec(self.active);
        self.stats.inc(HttpStat::DownstreamCxDestroy);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn future_size<A, B, C, D, F>(_: fn(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }

    /// What a connection costs while it waits: its task, its entry in the listener, its deadline.
    #[test]
    fn an_idle_connection_is_small() {
        let size = future_size(serve) + size_of::<ConnInfo>() + size_of::<Deadline>();
        assert!(size <= 900, "{size} bytes");
    }
}
