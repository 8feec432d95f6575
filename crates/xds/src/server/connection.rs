//! One ADS stream: reads requests, waits for pushes, and sends what the session answers.
//!
//! The order of what is sent is the session's; this file decides only *when*. A stream that does
//! not read blocks nobody but itself: pushes wait merged in its mailbox.

use std::collections::{BTreeMap, BTreeSet};
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{Notify, mpsc, oneshot, watch};
use tonic::Status;

use super::service::{Pieces, Requests};
use super::wire::Wire;
use super::{Caller, Inner, Source};
use crate::session::{Answer, Gate, Request, Response, Session, View};
use crate::status::Detail;
use crate::{Changed, Names, Node, Protocol, ProxyStatus, Push, type_url};

/// What the server knows of a stream; shared between its task, pushes and status.
pub(super) struct Connection<S> {
    pub(super) id: u64,
    pub(super) caller: Option<Caller>,
    protocol: Protocol,
    connected_at: SystemTime,
    node: OnceLock<Node>,
    session: Mutex<Session>,
    /// The newest push that this stream has not begun, merged with those it skipped.
    mailbox: Mutex<Option<Push<S>>>,
    /// The version of the push that the session stands at.
    version: Mutex<String>,
    wake: Notify,
}

impl<S> Connection<S> {
    pub(super) fn new(
        id: u64,
        caller: Option<Caller>,
        protocol: Protocol,
        limits: &super::Limits,
    ) -> Self {
        let session = Session::new(
            protocol,
            format!("{id}-"),
            limits.names,
            limits.outstanding.max(1),
        );
        Self {
            id,
            caller,
            protocol,
            connected_at: SystemTime::now(),
            node: OnceLock::new(),
            session: Mutex::new(session),
            mailbox: Mutex::new(None),
            version: Mutex::default(),
            wake: Notify::new(),
        }
    }

    pub(super) fn offer(&self, push: &Push<S>) {
        let mut mailbox = self.mailbox.lock().unwrap_or_else(PoisonError::into_inner);
        *mailbox = Some(match mailbox.take() {
            None => push.clone(),
            Some(waiting) => {
                let mut changed = waiting.changed;
                Arc::make_mut(&mut changed).merge((*push.changed).clone());
                Push {
                    changed,
                    since: waiting.since,
                    ..push.clone()
                }
            }
        });
        drop(mailbox);
        self.wake.notify_one();
    }

    fn take_push(&self) -> Option<Push<S>> {
        self.mailbox
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    fn has_push(&self) -> bool {
        self.mailbox
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_some()
    }

    fn session(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stands_at(&self, version: &str) {
        version.clone_into(&mut self.version.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// `None` before the first request.
    pub(super) fn status(&self, detail: Detail) -> Option<ProxyStatus> {
        let node = self.node.get()?.clone();
        // Before the session: it is at least as new as the version says.
        let version = self
            .version
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let mut types = self.session().status(detail);
        if self.has_push() {
            // Only types that still owe an answer hold the push up.
            for status in types.values_mut().filter(|status| status.outstanding > 0) {
                status.held_back = true;
            }
        }
        Some(ProxyStatus {
            connection: format!("{}-{}", node.short_id(), self.id),
            peer: match &self.caller {
                Some(caller) => caller.address.to_string(),
                None => String::new(),
            },
            protocol: self.protocol,
            connected_at: self.connected_at,
            version,
            types,
            node,
        })
    }
}

/// Why a stream ends by our decision.
type End = Status;

/// The task of one stream.
pub(super) struct Stream<S: Source, W: Wire> {
    pub(super) server: Arc<Inner<S>>,
    pub(super) connection: Arc<Connection<S::Snapshot>>,
    pub(super) outbound: mpsc::Sender<Pieces>,
    pub(super) wire: PhantomData<fn() -> W>,
    /// The push that requests are answered from.
    pub(super) current: Push<S::Snapshot>,
    pub(super) pace: Pace,
    /// When the change behind the push in work came.
    pub(super) pushing_since: Option<Instant>,
    /// When this client became known. What a push changes that began before may have been found out
    /// without it, and leave out what concerns nobody else.
    pub(super) known_since: Instant,
}

impl<S: Source, W: Wire> Stream<S, W> {
    /// Says at `end` how it ended, before the last response can be found to be the last.
    pub(super) async fn run(mut self, mut inbound: Requests<W>, end: oneshot::Sender<Status>) {
        let outcome = self.serve(&mut inbound).await;
        let status = outcome.err().unwrap_or_else(|| Status::ok(""));
        tracing::debug!(connection = self.connection.id, %status, "stream ended");
        // Nobody hears of it where the client is gone.
        let _ = end.send(status);
        self.server.close(self.connection.id);
        if let Some(node) = self.connection.node.get() {
            self.server.source.disconnect(node);
            tracing::info!(node = %node.id, connection = self.connection.id, "disconnected");
        }
    }

    async fn serve(&mut self, inbound: &mut Requests<W>) -> Result<(), End> {
        let mut shutdown = self.server.shutdown.subscribe();
        let until = self.connection.caller.as_ref();
        let mut expired = std::pin::pin!(passed(until.and_then(|caller| caller.until)));
        let patience = self.server.limits.first_request;
        let mut silent = std::pin::pin!(tokio::time::sleep(patience));
        loop {
            let due = self.advance().await?;
            tokio::select! {
                request = inbound.message() => match request? {
                    Some(request) => self.request(request).await?,
                    None => return Ok(()),
                },
                () = self.connection.wake.notified() => {}
                () = sleep_until(due) => {}
                () = self.outbound.closed() => return Ok(()),
                () = &mut expired => {
                    return Err(Status::unavailable(
                        "the client's certificate or token has expired; connect again with the \
                         one that followed it",
                    ));
                }
                () = &mut silent, if self.connection.node.get().is_none() => {
                    return Err(Status::deadline_exceeded(format!(
                        "no request has come in the first {patience:?} of the stream"
                    )));
                }
                () = stopping(&mut shutdown) => {
                    return Err(Status::unavailable("the control plane is stopping"));
                }
            }
        }
    }

    async fn request(&mut self, mut request: W::Request) -> Result<(), End> {
        self.pace.wait(self.server.limits.requests_per_second).await;
        match (W::take_node(&mut request), self.connection.node.get()) {
            // Only the first request must carry the node; later ones are not compared.
            (Some(node), None) => self.accept(Node::from_proto(&node)).await?,
            (None, None) => {
                return Err(Status::invalid_argument(
                    "the first request of a stream must carry the node",
                ));
            }
            _ => {}
        }
        let request = W::request(request);
        let url = match &request {
            Request::Delta(delta) => delta.type_url.clone(),
            Request::Sotw(sotw) => sotw.type_url.clone(),
        };
        let message = match &request {
            Request::Delta(delta) => delta.error_detail.as_ref(),
            Request::Sotw(sotw) => sotw.error_detail.as_ref(),
        }
        .map(crate::nack::text);
        let outcome = self.with_view(|session, view| session.request(request, view));
        let (answer, responses) =
            outcome.map_err(|refused| Status::resource_exhausted(refused.to_string()))?;
        self.note(answer, &url, message.as_deref().unwrap_or_default());
        self.send(responses).await
    }

    async fn accept(&mut self, mut node: Node) -> Result<(), End> {
        let caller = self.connection.caller.as_ref();
        node.identity = caller.and_then(|caller| caller.identity.clone());
        node.protocol = Some(W::PROTOCOL);
        node.stream = self.connection.id;
        if let Err(reason) = self.server.source.connect(&node) {
            tracing::warn!(node = %node.id, reason, "refused");
            return Err(Status::permission_denied(reason));
        }
        tracing::info!(
            node = %node.id, agent = %node.user_agent, connection = self.connection.id,
            protocol = ?W::PROTOCOL, "connected"
        );
        // From here on the stream ends with `disconnect`.
        let _ = self.connection.node.set(node);
        self.known_since = Instant::now();
        self.catch_up().await;
        self.connection.stands_at(&self.current.version);
        Ok(())
    }

    /// Takes the newest push, which has everything that was accepted by now.
    async fn catch_up(&mut self) {
        let mut shutdown = self.server.shutdown.subscribe();
        let source = &self.server.source;
        let accepted = source.accepted();
        let latest = Instant::now() + self.server.limits.catch_up;
        loop {
            // What came before the first request was made without it.
            if let Some(push) = self.connection.take_push() {
                self.current = push;
            }
            if source.has(&self.current.snapshot) >= accepted {
                return;
            }
            tokio::select! {
                () = self.connection.wake.notified() => {}
                () = self.outbound.closed() => return,
                () = stopping(&mut shutdown) => return,
                () = sleep_until(Some(latest)) => {
                    tracing::warn!(
                        connection = self.connection.id,
                        "served without the last changes, of which no push has come"
                    );
                    return;
                }
            }
        }
    }

    fn note(&self, answer: Answer, url: &str, message: &str) {
        let node = self
            .connection
            .node
            .get()
            .map(|node| node.id.as_str())
            .unwrap_or_default();
        match answer {
            Answer::None | Answer::Ack => {}
            Answer::Expired => self.server.metrics.expired_nonce(url),
            Answer::Nack => {
                self.server.metrics.rejected(url);
                tracing::warn!(node, kind = type_url::short(url), message, "rejected");
            }
        }
    }

    /// Takes the next steps of pushing that may be taken. Answers when to look again.
    async fn advance(&mut self) -> Result<Option<Instant>, End> {
        loop {
            let pushing = self.connection.session().is_pushing();
            if !pushing && let Some(since) = self.pushing_since.take() {
                self.server.metrics.converged(since.elapsed());
                self.connection.stands_at(&self.current.version);
            }
            if self.connection.node.get().is_none() || !(pushing || self.connection.has_push()) {
                return Ok(None);
            }
            let patience = self.server.limits.ack_patience;
            let gate = self.connection.session().gate(Instant::now(), patience);
            if let Gate::ClosedUntil(at) = gate {
                return Ok(Some(at));
            }
            if !pushing {
                let Some(push) = self.connection.take_push() else {
                    return Ok(None);
                };
                let changed = match push.since < self.known_since {
                    true => &Changed::All,
                    false => &*push.changed,
                };
                let better = self.changed_here(changed, &push.snapshot);
                self.connection.session().begin(changed, &better);
                self.pushing_since = Some(push.since);
                self.current = push;
            }
            let responses = self.with_view(|session, view| session.step(view));
            self.send(responses).await?;
        }
    }

    /// By type, what may differ for this client, where that is another than the push says.
    fn changed_here(&self, changed: &Changed, now: &S::Snapshot) -> BTreeMap<String, Names> {
        let mut better = BTreeMap::new();
        let Some(node) = self.connection.node.get() else {
            return better;
        };
        if let Changed::Types(types) = changed {
            let named = types.iter().filter(|(_, names)| **names != Names::All);
            for (url, names) in named {
                let own = |snapshot| self.server.source.own_names(snapshot, node, url);
                // What went is told, too.
                let mut all = own(&self.current.snapshot);
                all.merge(own(now));
                if all != Names::Some(BTreeSet::new()) {
                    all.merge(names.clone());
                    better.insert(url.clone(), all);
                }
            }
        }
        let hosts = self.changed_hosts(changed, now);
        better.extend(hosts.map(|names| (type_url::VIRTUAL_HOST.to_owned(), names)));
        better
    }

    /// The virtual hosts that differ between the push that this stream stands at and the next one,
    /// so that only they are looked at; `None` where the push says what changed well enough.
    fn changed_hosts(&self, changed: &Changed, now: &S::Snapshot) -> Option<Names> {
        if changed.of(type_url::VIRTUAL_HOST) != Some(&Names::All) {
            return None;
        }
        let node = self.connection.node.get()?;
        let tables = self.connection.session().host_tables()?;
        let (source, before) = (&self.server.source, &self.current.snapshot);
        let names = source.changed_hosts(before, now, node, &tables)?;
        Some(Names::Some(names))
    }

    /// Runs a step of the session against the current snapshot. Synchronous on purpose: nothing
    /// is awaited while the session is locked.
    fn with_view<T>(&self, step: impl FnOnce(&mut Session, &View<'_>) -> T) -> T {
        let empty = Node::default();
        let node = self.connection.node.get().unwrap_or(&empty);
        let generate = |url: &str, names: Option<&BTreeSet<String>>| {
            let started = Instant::now();
            let found = self
                .server
                .source
                .generate(&self.current.snapshot, node, url, names);
            self.server.metrics.generated(url, started.elapsed());
            found
        };
        let view = View {
            version: &self.current.version,
            now: Instant::now(),
            generate: &generate,
        };
        step(&mut self.connection.session(), &view)
    }

    async fn send(&self, responses: Vec<Response>) -> Result<(), End> {
        for response in responses {
            let started = Instant::now();
            let url = response.type_url.clone();
            let bytes = response.resources.iter().map(|r| r.value.len()).sum();
            tracing::debug!(
                connection = self.connection.id, kind = type_url::short(&url),
                resources = response.resources.len(), removed = response.removed.len(), bytes,
                nonce = %response.nonce, "push"
            );
            let message = W::encode(&response, &self.server.identifier);
            drop(response);
            let sent =
                tokio::time::timeout(self.server.limits.send_timeout, self.outbound.send(message));
            match sent.await {
                Ok(Ok(())) => self.server.metrics.pushed(&url, bytes, started.elapsed()),
                // The client is gone; the loop sees it next.
                Ok(Err(_)) => return Ok(()),
                Err(_) => {
                    self.server.metrics.write_timeout();
                    return Err(Status::deadline_exceeded(
                        "the client does not read its responses",
                    ));
                }
            }
        }
        Ok(())
    }
}

async fn stopping(shutdown: &mut watch::Receiver<bool>) {
    // An error means that the server is gone, which is an end as well.
    let _ = shutdown.wait_for(|stop| *stop).await;
}

/// Completes when this time has passed; the clock is looked at again every so often, since it may
/// be set.
pub async fn passed(until: Option<SystemTime>) {
    const LOOK: Duration = Duration::from_secs(60);
    let Some(until) = until else {
        return std::future::pending().await;
    };
    while let Ok(left) = until.duration_since(SystemTime::now())
        && !left.is_zero()
    {
        tokio::time::sleep(left.min(LOOK)).await;
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// Slows a client down that asks too fast. It is never cut off for it: a large mesh's first
/// requests come in a burst.
pub(super) struct Pace {
    second: Instant,
    seen: u32,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self {
            second: Instant::now(),
            seen: 0,
        }
    }

    async fn wait(&mut self, per_second: u32) {
        const SECOND: Duration = Duration::from_secs(1);
        if self.second.elapsed() >= SECOND {
            *self = Self::new();
        }
        self.seen += 1;
        if self.seen > per_second.max(1) {
            tokio::time::sleep_until((self.second + SECOND).into()).await;
            *self = Self {
                second: Instant::now(),
                seen: 1,
            };
        }
    }
}
