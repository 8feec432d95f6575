//! Listener filters: what they find out before a filter chain is chosen.
//!
//! Bytes are looked at with `MSG_PEEK` and stay in the socket, so whoever serves the connection
//! reads it from its beginning; only a PROXY header is taken away. A connection whose filters need
//! no bytes does not wait for any, which is what lets protocols work in which the server speaks
//! first.

use super::sighting::Sighting;
use super::{Slot, client_hello, first_request, proxy_header};
use crate::stats::{HttpInspectorStat, ListenerStat, Page, Scope, TlsInspectorStat};
use crate::worker::state::Worker;
use crate::worker::timers::Deadline;
use lateen_proxy_config::{ListenerFilter, ListenerFilterKind, ListenerFilters, TlsInspector};
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, ready};
use tokio::io::{AsyncRead, Interest, ReadBuf};
use tokio::net::TcpStream;

/// How far is looked ahead. A PROXY header with its extensions is the longest of what is looked for.
const LOOK_AHEAD: usize = 80 * 1024;
/// A request line may be this long (Envoy's `MAX_INSPECT_SIZE`).
const REQUEST_LINE: usize = 64 * 1024;

/// What the inspectors of one listener generation count.
pub(super) struct Inspectors {
    tls: Arc<Page>,
    http: Arc<Page>,
}

impl Inspectors {
    /// [`None`] for a listener that has none.
    pub(super) fn new(worker: &Worker, filters: &ListenerFilters) -> Option<Inspectors> {
        let inspects = |filter: &ListenerFilter| {
            use ListenerFilterKind::{HttpInspector, TlsInspector};
            matches!(filter.kind, TlsInspector(_) | HttpInspector)
        };
        filters.filters.iter().any(inspects).then(|| Inspectors {
            tls: worker.page(Scope::TlsInspector),
            http: worker.page(Scope::HttpInspector),
        })
    }
}

/// One connection on its way through the listener filters.
pub(super) struct Inspection {
    pub tcp: TcpStream,
    pub sighting: Sighting,
    /// The filter that is next.
    at: usize,
}

/// What one look at the bytes leads to.
enum Step {
    Done,
    /// Look again when more has come.
    More,
    /// Take these bytes away and go on.
    Skip(usize),
    Close,
}

impl Inspection {
    pub(super) fn new(tcp: TcpStream, sighting: Sighting) -> Inspection {
        Inspection {
            tcp,
            sighting,
            at: 0,
        }
    }

    /// Runs the filters that need no bytes, up to the first that does; false if there is one.
    pub(super) fn ready(&mut self, filters: &ListenerFilters) -> bool {
        while let Some(kind) = self.filter(filters) {
            match kind {
                ListenerFilterKind::OriginalDst => self.sighting.ask_kernel(&self.tcp),
                ListenerFilterKind::HttpInspector if self.sighting.seen.tls => {}
                _ => return false,
            }
            self.at += 1;
        }
        true
    }

    /// The next filter that is not disabled for this connection.
    fn filter<'f>(&mut self, filters: &'f ListenerFilters) -> Option<&'f ListenerFilterKind> {
        let port = self.sighting.destination().port();
        let rest = filters.filters.get(self.at..)?;
        let enabled = |f: &ListenerFilter| f.disabled.as_ref().is_none_or(|d| !d.matches(port));
        let skipped = rest.iter().position(enabled)?;
        self.at += skipped;
        rest.get(skipped).map(|filter| &filter.kind)
    }

    /// Waits for the client until all filters know enough. [`None`]: the connection is closed.
    pub(super) async fn run(
        mut self,
        worker: &Rc<Worker>,
        slot: &Rc<Slot>,
        deadline: &Rc<Deadline>,
    ) -> Option<Inspection> {
        let generation = slot.current.borrow().clone();
        let filters = &generation.listener.filters;
        let limit = filters.timeout.map(|limit| limit.as_millis() as u64);
        worker
            .timers
            .set(deadline, limit.map(|limit| worker.timers.now() + limit));
        let mut begun = false;
        loop {
            let ready = {
                let mut ready = pin!(self.tcp.ready(Interest::READABLE));
                poll_fn(|cx| match ready.as_mut().poll(cx) {
                    Poll::Ready(ready) => Poll::Ready(Some(ready)),
                    Poll::Pending if slot.removed.get() => Poll::Ready(None),
                    Poll::Pending => worker.timers.poll(deadline, cx).map(|()| None),
                })
                .await
            };
            let Some(ready) = ready else {
                return self.timed_out(slot, filters, &generation.stats, begun);
            };
            let ended = ready.ok()?.is_read_closed();
            let inspectors = generation.inspectors.as_ref();
            match self.look(worker, filters, inspectors, ended).await.ok()? {
                Step::Done => return Some(self),
                Step::Close => return None,
                Step::Skip(length) => {
                    self.skip(worker, length).await.ok()?;
                    self.at += 1;
                    if self.ready(filters) {
                        return Some(self);
                    }
                }
                // What has come stays in the socket; the next event is about what comes after it.
                Step::More => {
                    // Who has said nothing may wait for the server to speak first.
                    if let (None, Some(limit), false) = (limit, filters.begun_timeout, begun) {
                        begun = true;
                        let due = worker.timers.now() + limit.as_millis() as u64;
                        worker.timers.set(deadline, Some(due));
                    }
                    let none = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
                    let _ = self.tcp.try_io(Interest::READABLE, none);
                }
            }
        }
    }

    fn timed_out(
        mut self,
        slot: &Slot,
        filters: &ListenerFilters,
        stats: &Page,
        begun: bool,
    ) -> Option<Inspection> {
        if slot.removed.get() {
            return None;
        }
        stats.inc(ListenerStat::DownstreamPreCxTimeout);
        // A hello without an end is nothing to go on with.
        let next = self.filter(filters);
        let hello = begun && matches!(next, Some(ListenerFilterKind::TlsInspector(_)));
        if hello || !filters.continue_on_timeout {
            return None;
        }
        // Bytes may be there that were looked at and waited behind; a socket that is registered
        // anew tells of them.
        self.tcp = TcpStream::from_std(self.tcp.into_std().ok()?).ok()?;
        Some(self)
    }

    /// Shows what has come to the filters.
    async fn look(
        &mut self,
        worker: &Worker,
        filters: &ListenerFilters,
        inspectors: Option<&Inspectors>,
        ended: bool,
    ) -> io::Result<Step> {
        poll_fn(|cx| {
            let mut scratch = worker.scratch.borrow_mut();
            let mut buf = ReadBuf::new(&mut scratch[..LOOK_AHEAD]);
            match self.tcp.poll_peek(cx, &mut buf) {
                Poll::Pending => return Poll::Ready(Ok(Step::More)),
                Poll::Ready(peeked) => peeked?,
            };
            let bytes = buf.filled();
            if bytes.is_empty() {
                return Poll::Ready(Ok(Step::Close));
            }
            Poll::Ready(Ok(self.show(bytes, filters, inspectors, ended)))
        })
        .await
    }

    fn show(
        &mut self,
        bytes: &[u8],
        filters: &ListenerFilters,
        inspectors: Option<&Inspectors>,
        ended: bool,
    ) -> Step {
        while !self.ready(filters) {
            let Some(kind) = self.filter(filters) else {
                break;
            };
            let step = match kind {
                ListenerFilterKind::OriginalDst => Step::Done,
                ListenerFilterKind::ProxyProtocol(config) => {
                    match proxy_header::look(bytes, config) {
                        proxy_header::Look::More if ended => Step::Close,
                        proxy_header::Look::More => Step::More,
                        proxy_header::Look::Bad => Step::Close,
                        proxy_header::Look::Absent => Step::Done,
                        proxy_header::Look::Header { length, addresses } => {
                            if let Some((source, destination)) = addresses {
                                self.sighting.believe(source, destination);
                            }
                            Step::Skip(length)
                        }
                    }
                }
                ListenerFilterKind::TlsInspector(config) => {
                    self.tls(bytes, config, inspectors, ended)
                }
                ListenerFilterKind::HttpInspector => self.http(bytes, inspectors, ended),
            };
            match step {
                Step::Done => self.at += 1,
                step => return step,
            }
        }
        Step::Done
    }

    fn tls(
        &mut self,
        bytes: &[u8],
        config: &TlsInspector,
        inspectors: Option<&Inspectors>,
        ended: bool,
    ) -> Step {
        use client_hello::Look;
        let count = |stat| {
            if let Some(inspectors) = inspectors {
                inspectors.tls.inc(stat);
            }
        };
        match client_hello::look(bytes, config.max_client_hello) {
            Look::More if !ended => return Step::More,
            Look::TooLarge => {
                count(TlsInspectorStat::ClientHelloTooLarge);
                return Step::Close;
            }
            Look::Broken if config.close_on_error => return Step::Close,
            Look::More | Look::Broken | Look::NotTls => count(TlsInspectorStat::TlsNotFound),
            Look::Hello(seen) => {
                count(TlsInspectorStat::TlsFound);
                count(match seen.protocols.is_empty() {
                    true => TlsInspectorStat::AlpnNotFound,
                    false => TlsInspectorStat::AlpnFound,
                });
                count(match seen.server_name.is_empty() {
                    true => TlsInspectorStat::SniNotFound,
                    false => TlsInspectorStat::SniFound,
                });
                self.sighting.seen = seen;
            }
        }
        Step::Done
    }

    fn http(&mut self, bytes: &[u8], inspectors: Option<&Inspectors>, ended: bool) -> Step {
        use first_request::Look;
        let count = |stat| {
            if let Some(inspectors) = inspectors {
                inspectors.http.inc(stat);
            }
        };
        // The names are those of ALPN (Envoy's `AlpnNames`).
        let (found, stat) = match first_request::look(bytes, REQUEST_LINE) {
            Look::More if !ended => return Step::More,
            Look::TooLarge => {
                count(HttpInspectorStat::ReadError);
                return Step::Close;
            }
            Look::More | Look::NotHttp => {
                count(HttpInspectorStat::HttpNotFound);
                return Step::Done;
            }
            Look::Http10 => ("http/1.0", HttpInspectorStat::Http10Found),
            Look::Http11 => ("http/1.1", HttpInspectorStat::Http11Found),
            Look::Http2 => ("h2c", HttpInspectorStat::Http2Found),
        };
        count(stat);
        self.sighting.seen.protocols = vec![found.into()];
        Step::Done
    }

    /// Takes bytes away that have come.
    async fn skip(&mut self, worker: &Worker, length: usize) -> io::Result<()> {
        let mut left = length;
        poll_fn(|cx| {
            let mut scratch = worker.scratch.borrow_mut();
            while left > 0 {
                let mut buf = ReadBuf::new(&mut scratch[..left]);
                ready!(pin!(&mut self.tcp).poll_read(cx, &mut buf))?;
                match buf.filled().len() {
                    0 => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                    n => left -= n,
                }
            }
            Poll::Ready(Ok(()))
        })
        .await
    }
}
