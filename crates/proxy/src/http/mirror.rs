//! Copies of requests for other clusters: what they answer is read and forgotten.
//!
//! A copy is a task of its own, fed by the request it is of. It never holds that request up: a
//! copy that cannot keep up with the body is given up.
//!
//! Invariant: nothing that happens to a copy is seen by the client.

use super::exchange::Exchange;
use super::head::{RequestHead, Version};
use super::headers::{HeaderBlock, Known};
use super::stream::{Broken, Data, End, Piece, Source, StreamError, UpstreamStream, poll_transfer};
use super::upstream::Upstream;
use crate::http2::client::Http2Stream;
use crate::listener::ConnInfo;
use crate::stats::{ClusterStat, EndpointStat, count_cluster_status};
use crate::upstream::ActiveCluster;
use crate::upstream::pool::{Acquired, Wanted};
use crate::upstream::ticket::RequestTicket;
use crate::worker::state::{PIECE, Worker};
use bytes::{Bytes, BytesMut};
use lateen_proxy_config::Priority;
use lateen_proxy_config::route::{ClusterName, Mirror};
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;
use tokio::task::spawn_local;

/// What of a body a copy may lag behind: Envoy's default limit of a connection's buffer.
const BEHIND_BYTES: usize = 1024 * 1024;
/// Copies under way on one worker; further ones are not made, since a mirror that never answers
/// would hold ever more of them.
const MAX_COPIES: u32 = 4096;
/// Interim responses after which a copy is given up.
const MAX_INTERIMS: u32 = 1000;

/// The copies of one request, as the request feeds them. Nothing is allocated when there are none.
#[derive(Default)]
#[allow(
    clippy::box_collection,
    reason = "every waiting connection has the room for it, and hardly any has copies"
)]
pub(super) struct Copies(Option<Box<Vec<Rc<Feed>>>>);

impl Copies {
    /// Begins the copies of a request whose head is ready for its first try.
    pub(super) fn begin(
        x: &Exchange,
        mirrors: &[Mirror],
        timeout: Option<Duration>,
        counts_tries: bool,
    ) -> Copies {
        if mirrors.is_empty() || x.request.is_tunnel() {
            return Copies::default();
        }
        // One draw for all, as in Envoy: the same requests go to several mirrors of one share.
        let draw = x.worker.random();
        let drawn = mirrors
            .iter()
            .filter(|mirror| mirror.share.is_none_or(|share| share.includes(draw)));
        let feeds = drawn.filter_map(|mirror| start(x, mirror, timeout, counts_tries));
        Copies(Some(Box::new(feeds.collect())))
    }

    /// Shows a piece of the request's body.
    pub(super) fn feed(&self, piece: &Piece<'_>) {
        self.0
            .iter()
            .flat_map(|all| all.iter())
            .for_each(|feed| feed.push(piece));
    }

    /// The request has no (more) body.
    pub(super) fn end(&self) {
        self.feed(&Piece::DONE);
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        // A request that broke off in its body is not completed by its copies.
        self.0
            .iter()
            .flat_map(|all| all.iter())
            .for_each(|feed| feed.give_up());
    }
}

/// What a copy has still to send.
#[derive(Default)]
struct Feed {
    data: RefCell<BytesMut>,
    end: RefCell<Option<End>>,
    lost: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Feed {
    fn push(&self, piece: &Piece<'_>) {
        let bytes = piece.data.as_slice();
        let mut data = self.data.borrow_mut();
        if self.lost.get() || self.end.borrow().is_some() {
            return;
        }
        if data.len() + bytes.len() > BEHIND_BYTES {
            self.lost.set(true);
            *data = BytesMut::new();
        } else {
            data.extend_from_slice(bytes);
            *self.end.borrow_mut() = match &piece.end {
                End::More => None,
                End::Done => Some(End::Done),
                End::Trailers(trailers) => Some(End::Trailers(trailers.clone())),
            };
        }
        self.wake();
    }

    fn give_up(&self) {
        if self.end.borrow().is_none() {
            self.lost.set(true);
            self.wake();
        }
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

/// The feed as the body of the copy.
struct Fed(Rc<Feed>);

impl Source for Fed {
    fn poll_piece<'s>(
        &mut self,
        cx: &mut Context<'_>,
        _scratch: &'s mut [u8],
    ) -> Poll<Result<Piece<'s>, StreamError>> {
        let feed = &*self.0;
        if feed.lost.get() {
            return Poll::Ready(Err(StreamError::Closed));
        }
        let data: Bytes = feed.data.borrow_mut().split().freeze();
        let end = feed.end.borrow_mut().take();
        if data.is_empty() && end.is_none() {
            *feed.waker.borrow_mut() = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(Piece {
            data: Data::Shared(data),
            end: end.unwrap_or(End::More),
        }))
    }
}

fn start(
    x: &Exchange,
    mirror: &Mirror,
    timeout: Option<Duration>,
    counts_tries: bool,
) -> Option<Rc<Feed>> {
    let worker = &x.worker;
    let cluster = match &mirror.target {
        ClusterName::Name(name) => worker.clusters.get(worker, name),
        ClusterName::Header(name) => {
            let value = x.request.headers.get_name(name.as_bytes())?;
            let name = std::str::from_utf8(value).ok()?;
            worker.clusters.get(worker, name)
        }
    }?;
    let Some(counted) = Counted::take(worker) else {
        cluster.stats.inc(ClusterStat::UpstreamRqPendingOverflow);
        return None;
    };
    let feed = Rc::new(Feed::default());
    let copy = Copy {
        head: head(x, mirror, counts_tries),
        conn: x.conn.clone(),
        cluster,
        worker: worker.clone(),
        body: Fed(feed.clone()),
    };
    spawn_local(async move {
        match timeout {
            Some(limit) => drop(tokio::time::timeout(limit, copy.run()).await),
            None => drop(copy.run().await),
        }
        drop(counted);
    });
    Some(feed)
}

/// The head of the copy, with what Envoy's internal client adds to it.
fn head(x: &Exchange, mirror: &Mirror, counts_tries: bool) -> RequestHead {
    let mut head = x.request.clone();
    if let Some(host) = &mirror.host_rewrite {
        head.headers.set(Known::Host, host);
    } else if mirror.shadow_host {
        let host = shadow(head.authority_bytes());
        head.headers.set(Known::Host, &host);
    }
    if counts_tries {
        head.headers.set(Known::EnvoyAttemptCount, b"1");
    }
    head.headers.set(Known::EnvoyInternal, b"true");
    let local = x.conn.local.ip().to_canonical().to_string();
    append_forwarded_for(&mut head.headers, local.as_bytes());
    head
}

fn append_forwarded_for(headers: &mut HeaderBlock, address: &[u8]) {
    let have = headers.joined(Known::XForwardedFor.name().as_bytes());
    let value = match have {
        Some(have) => [have.as_ref(), b",", address].concat(),
        None => address.to_vec(),
    };
    headers.set(Known::XForwardedFor, &value);
}

/// `host:port` as `host-shadow:port`.
fn shadow(authority: &[u8]) -> Vec<u8> {
    let (host, port) = super::edit::split_port(authority);
    [host, b"-shadow", port].concat()
}

/// One copy under way.
struct Counted(Rc<Worker>);

impl Counted {
    fn take(worker: &Rc<Worker>) -> Option<Counted> {
        if worker.mirrored.get() >= MAX_COPIES {
            return None;
        }
        worker.mirrored.set(worker.mirrored.get() + 1);
        Some(Counted(worker.clone()))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.mirrored.set(self.0.mirrored.get().saturating_sub(1));
    }
}

/// A copy as its task has it.
struct Copy {
    worker: Rc<Worker>,
    cluster: Rc<ActiveCluster>,
    head: RequestHead,
    conn: Rc<ConnInfo>,
    body: Fed,
}

impl Copy {
    /// Sends it once and reads the answer. [`None`]: it came to nothing, which nobody asks about.
    async fn run(mut self) -> Option<()> {
        let (worker, cluster) = (self.worker.clone(), self.cluster.clone());
        let host = cluster.pick(&worker, None, 0, |_| false)?;
        let priority = Priority::Default;
        let _ticket = RequestTicket::take(&cluster, &host, priority)?;
        let wanted = Wanted {
            priority,
            downstream_http2: self.head.version == Version::Http2,
            fresh: false,
            raw: false,
            key: cluster.conn_key(&self.head, &self.conn),
        };
        let acquired = match cluster.take(&host, &wanted) {
            Some(acquired) => acquired,
            None => cluster.acquire(&worker, &host, &wanted).await.ok()?,
        };
        let mut upstream = match acquired {
            Acquired::Http1(conn) => Upstream::Http1(conn),
            Acquired::Http2(conn) => Upstream::Http2(Box::new(Http2Stream::new(conn))),
        };
        let status = self.exchange(&mut upstream).await.ok();
        host.stats(&cluster).inc(match status {
            Some(..500) => EndpointStat::RqSuccess,
            _ => EndpointStat::RqError,
        });
        count_cluster_status(&cluster.stats, status.unwrap_or(503));
        if let Upstream::Http1(conn) = upstream {
            cluster.release(&worker, conn);
        }
        status.map(|_| ())
    }

    /// Request out, response in, both at once; the status when all of it has come.
    async fn exchange(&mut self, upstream: &mut Upstream) -> Result<u16, StreamError> {
        let worker = self.worker.clone();
        // What of the body is there already leaves with the head.
        let first = poll_fn(|cx| Poll::Ready(self.body.poll_piece(cx, &mut []))).await;
        let first = match first {
            Poll::Ready(piece) => piece?,
            Poll::Pending => Piece::NOTHING,
        };
        let mut done = first.end.is_end();
        let mut first = Some(first);
        let (mut sent, mut status, mut interims) = (false, None, 0);
        poll_fn(|cx| {
            if let Some(first) = first.take() {
                upstream.send_head(cx, &worker, &self.head, first)?;
            }
            if !sent {
                let body = &mut self.body;
                match poll_transfer(cx, &worker, body, upstream, &mut done, &mut |_| {}) {
                    Poll::Ready(Err(Broken::Source(error))) => return Poll::Ready(Err(error)),
                    // What the upstream says about a body it does not take is still read.
                    Poll::Ready(_) => sent = true,
                    Poll::Pending => {}
                }
            }
            let status = loop {
                if let Some(status) = status {
                    break status;
                }
                let head = ready!(upstream.poll_head(cx, &worker))?;
                interims += 1;
                if head.status == 101 || interims > MAX_INTERIMS {
                    return Poll::Ready(Err(StreamError::Protocol));
                }
                status = (!head.is_interim()).then_some(head.status);
                worker.recycle(head.headers);
            };
            let mut scratch = worker.scratch.borrow_mut();
            while !ready!(upstream.poll_piece(cx, &mut scratch[..PIECE]))?
                .end
                .is_end()
            {}
            Poll::Ready(Ok(status))
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shadow_of_a_host_keeps_its_port() {
        for (host, expect) in [
            ("a.test", "a.test-shadow"),
            ("a.test:80", "a.test-shadow:80"),
            ("[::1]:80", "[::1]-shadow:80"),
        ] {
            assert_eq!(shadow(host.as_bytes()), expect.as_bytes());
        }
    }

    #[test]
    fn a_copy_that_falls_behind_is_given_up() {
        let feed = Rc::new(Feed::default());
        let piece = |len: usize| Piece {
            data: Data::Shared(Bytes::from(vec![0; len])),
            end: End::More,
        };
        feed.push(&piece(BEHIND_BYTES));
        assert!(!feed.lost.get());
        feed.push(&piece(1));
        assert!(feed.lost.get() && feed.data.borrow().is_empty());
    }
}
