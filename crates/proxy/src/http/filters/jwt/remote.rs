//! Keys that the proxy fetches itself (`remote_jwks`): when a token needs them, over the connections
//! of a cluster, and again when they are too old (Envoy, `authenticator.cc`, without `async_fetch`).
//!
//! Each worker has its own, shared by all listeners that name the same server and kept while one does:
//! an update of a listener loses no keys.
//!
//! Invariants: of one server no more than one fetch is under way, and none begins sooner than [`AGAIN`]
//! after one that failed, however many tokens want it. Without keys, or with such as are too old, no
//! token passes.

use super::place;
use crate::http::exchange::Exchange;
use crate::http::filters::call::{self, Question};
use crate::http::head::{Method, RequestHead};
use crate::http::headers::Known;
use crate::listener::ConnInfo;
use crate::worker::state::Worker;
use bytes::Bytes;
use lateen_proxy_config::jwt::{JwtAuthn, JwtProvider, KeySet, Keys, RemoteKeys, Token};
use smallvec::SmallVec;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::Notify;
use tokio::task::spawn_local;

/// How long after a failure the next fetch may begin.
const AGAIN: Duration = Duration::from_secs(1);

/// What a worker has fetched, by where from.
#[derive(Default)]
pub(crate) struct KeySets(RefCell<HashMap<Arc<RemoteKeys>, Weak<Fetched>>>);

impl KeySets {
    fn of(&self, source: &Arc<RemoteKeys>) -> Rc<Fetched> {
        let mut all = self.0.borrow_mut();
        if let Some(known) = all.get(source).and_then(Weak::upgrade) {
            return known;
        }
        all.retain(|_, fetched| fetched.strong_count() > 0);
        let fetched = Rc::new(Fetched {
            source: source.clone(),
            state: RefCell::default(),
            ended: Notify::new(),
        });
        all.insert(source.clone(), Rc::downgrade(&fetched));
        fetched
    }
}

/// Of one filter, by the index of the provider; empty when none is fetched.
pub(crate) struct FetchedKeys(Vec<Option<Rc<Fetched>>>);

impl FetchedKeys {
    pub(crate) fn new(worker: &Rc<Worker>, filter: &JwtAuthn) -> FetchedKeys {
        let fetched = |provider: &JwtProvider| match &provider.keys {
            Keys::Given(_) => None,
            Keys::Fetched(source) => Some(worker.key_sets.of(source)),
        };
        let all: Vec<_> = filter.providers.iter().map(fetched).collect();
        match all.iter().any(Option::is_some) {
            true => FetchedKeys(all),
            false => FetchedKeys(Vec::new()),
        }
    }

    /// The keys of a provider of the filter as they are now.
    pub(super) fn of(&self, filter: &JwtAuthn, provider: &JwtProvider) -> Option<Rc<KeySet>> {
        let mut pairs = filter.providers.iter().zip(&self.0);
        let (_, fetched) = pairs.find(|(one, _)| std::ptr::eq(*one, provider))?;
        fetched.as_ref()?.current()
    }
}

pub(in crate::http::filters) type Missing = SmallVec<[Rc<Fetched>; 2]>;

/// What has to be fetched before the tokens of a request can be checked: keys for tokens in which
/// nothing else is wrong, so that others cause no traffic.
pub(in crate::http::filters) fn missing(
    x: &Exchange,
    filter: &JwtAuthn,
    keys: Option<&FetchedKeys>,
) -> Missing {
    let mut missing = Missing::new();
    let now = || {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
    };
    for (provider, fetched) in filter
        .providers
        .iter()
        .zip(keys.iter().flat_map(|keys| &keys.0))
    {
        let Some(fetched) = fetched.as_ref().filter(|fetched| fetched.is_due()) else {
            continue;
        };
        let mut tokens = provider
            .locations
            .iter()
            .flat_map(|place| place::tokens(&x.request, place));
        let wanted = tokens.any(|found| {
            Token::parse(&found.token).is_ok_and(|token| {
                (provider.issuer.is_empty() || *provider.issuer == *token.issuer)
                    && token.check_time(now(), provider.clock_skew).is_ok()
                    && provider.audiences.admit(&token.audiences)
            })
        });
        if wanted {
            missing.push(fetched.clone());
        }
    }
    missing
}

/// Fetches, or waits for who is fetching.
pub(in crate::http::filters) async fn fetch(x: &Exchange, missing: Missing) {
    let (worker, conn) = (&x.worker, &x.conn);
    for one in &missing {
        one.begin(worker, conn);
    }
    for one in &missing {
        let ended = one.ended.notified();
        if one.state.borrow().under_way {
            ended.await;
        }
    }
}

/// The keys at one server.
pub(in crate::http::filters) struct Fetched {
    source: Arc<RemoteKeys>,
    state: RefCell<State>,
    /// A fetch has ended.
    ended: Notify,
}

#[derive(Default)]
struct State {
    /// And until when they count.
    keys: Option<(Rc<KeySet>, Instant)>,
    failed: Option<Instant>,
    under_way: bool,
}

impl Fetched {
    fn current(&self) -> Option<Rc<KeySet>> {
        let state = self.state.borrow();
        let (keys, until) = state.keys.as_ref()?;
        // A little longer than they are looked at for: they must not end between the two.
        (Instant::now() < *until + AGAIN).then(|| keys.clone())
    }

    /// Whether there are no keys that count, and it may be tried to get them.
    fn is_due(&self) -> bool {
        let state = self.state.borrow();
        let now = Instant::now();
        state.keys.as_ref().is_none_or(|(_, until)| now >= *until)
            && state.failed.is_none_or(|failed| now >= failed + AGAIN)
    }

    fn begin(self: &Rc<Self>, worker: &Rc<Worker>, conn: &Rc<ConnInfo>) {
        if std::mem::replace(&mut self.state.borrow_mut().under_way, true) {
            return;
        }
        let under_way = UnderWay(self.clone());
        let (worker, conn) = (worker.clone(), conn.clone());
        // Not a part of the request: a client that leaves takes nothing away from others.
        spawn_local(async move {
            let fetched = &under_way.0;
            let limit = fetched.source.timeout;
            let keys = tokio::time::timeout(limit, fetched.ask(&worker, &conn)).await;
            let keys = keys.ok().flatten();
            let mut state = fetched.state.borrow_mut();
            let now = Instant::now();
            match keys {
                Some(keys) => {
                    state.keys = Some((Rc::new(keys), now + fetched.source.cache));
                    state.failed = None;
                }
                None => state.failed = Some(now),
            }
        });
    }

    async fn ask(&self, worker: &Rc<Worker>, conn: &Rc<ConnInfo>) -> Option<KeySet> {
        let mut headers = worker.block();
        headers.set(Known::Host, self.source.authority.as_bytes());
        let mut head = RequestHead::new(headers);
        head.method = Method::Get;
        head.set_path(self.source.path.as_bytes());
        let question = Question {
            head,
            body: Bytes::new(),
        };
        let reply = call::call(worker, conn, &self.source.cluster, question).await?;
        if reply.head.status != 200 {
            return None;
        }
        let text = String::from_utf8(reply.body).ok()?;
        KeySet::parse(&text, |_, _| {}).ok()
    }
}

/// Ends a fetch, however it ends.
struct UnderWay(Rc<Fetched>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.state.borrow_mut().under_way = false;
        self.0.ended.notify_waiters();
    }
}
