//! TLS contexts of the process: one slot per configuration, filled anew when a secret or a file
//! changes.
//!
//! The main thread builds; workers keep a slot per filter chain or cluster and look into it when a
//! handshake begins. A context that cannot be built leaves the last good one.

use super::context::{self, ClientContext, Secrets, ServerContext};
use super::listing::{self, Listing};
use super::material::TlsError;
use lateen_proxy_config::{
    CertificateSource, Cluster, CommonTls, DataSource, DownstreamTls, FilterChain, Listener,
    Secret, SecretKind, SecretRef, Transport, UpstreamTls, ValidationSource,
};
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::SystemTime;

/// Where the newest context of one configuration stands.
pub(crate) struct Slot<C, T> {
    pub(crate) tls: Arc<C>,
    context: RwLock<Option<Arc<T>>>,
}

/// Of a listener's filter chain.
pub(crate) type ServerSlot = Slot<DownstreamTls, ServerContext>;
/// Of a cluster.
pub(crate) type ClientSlot = Slot<UpstreamTls, ClientContext>;

impl<C, T> Slot<C, T> {
    /// The context for a handshake that begins now; [`None`]: a secret is missing.
    pub(crate) fn get(&self) -> Option<Arc<T>> {
        let context = self.context.read().unwrap_or_else(PoisonError::into_inner);
        context.clone()
    }

    fn set(&self, built: Result<T, TlsError>) {
        match built {
            Ok(built) => {
                let mut context = self.context.write().unwrap_or_else(PoisonError::into_inner);
                *context = Some(Arc::new(built));
            }
            Err(TlsError::Missing(_)) => {}
            Err(error) => {
                tracing::warn!(%error, "a TLS context cannot be built; the last one stays");
            }
        }
    }
}

/// All contexts.
#[derive(Default)]
pub(crate) struct TlsStore {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    secrets: Secrets,
    servers: HashMap<Arc<[u8]>, Weak<ServerSlot>>,
    clients: HashMap<(Arc<[u8]>, bool), Weak<ClientSlot>>,
    /// What listeners and clusters use, so that it is there when the workers look for it.
    held_servers: HashMap<Arc<str>, Vec<Arc<ServerSlot>>>,
    held_clients: HashMap<Arc<str>, Vec<Arc<ClientSlot>>>,
    stamps: HashMap<Arc<Path>, Option<Stamp>>,
}

/// What changes with a file.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    length: u64,
    inode: u64,
}

impl TlsStore {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The slot of a listener's context.
    pub(crate) fn server(&self, tls: &Arc<DownstreamTls>) -> Arc<ServerSlot> {
        self.lock().server(tls)
    }

    /// The slot of a cluster's context. `for_name`: certificates must be for the name asked for.
    pub(crate) fn client(&self, tls: &Arc<UpstreamTls>, for_name: bool) -> Arc<ClientSlot> {
        self.lock().client(tls, for_name)
    }

    /// Builds what a listener needs before the workers get it.
    pub(crate) fn prepare_listener(&self, listener: &Listener) {
        let mut inner = self.lock();
        let slots = contexts(listener).map(|tls| inner.server(tls)).collect();
        inner.held_servers.insert(listener.name.clone(), slots);
        inner.stamp();
    }

    pub(crate) fn forget_listener(&self, name: &str) {
        self.lock().held_servers.remove(name);
    }

    /// Builds what a cluster needs before the workers get it.
    pub(crate) fn prepare_cluster(&self, cluster: &Cluster) {
        let mut inner = self.lock();
        let for_name = cluster.http.auto_san_validation;
        let slots = cluster
            .tls()
            .map(|tls| inner.client(tls, for_name))
            .collect();
        inner.held_clients.insert(cluster.name.clone(), slots);
        inner.stamp();
    }

    pub(crate) fn forget_cluster(&self, name: &str) {
        self.lock().held_clients.remove(name);
    }

    /// A new or newer secret. Connections that are there keep what they have.
    pub(crate) fn set_secret(&self, whose: SecretRef, secret: Arc<Secret>) {
        let mut inner = self.lock();
        inner.secrets.insert(whose.clone(), secret);
        inner.rebuild(|common, _| common.secrets().any(|used| *used == whose));
        inner.stamp();
    }

    /// Looks whether files have changed, and builds anew what is read from them.
    pub(crate) fn reload(&self) {
        let mut inner = self.lock();
        let changed: Vec<Arc<Path>> = inner
            .stamps
            .iter()
            .filter(|(path, stamp)| **stamp != Stamp::of(path))
            .map(|(path, _)| path.clone())
            .collect();
        if changed.is_empty() {
            return;
        }
        tracing::info!(?changed, "certificate files have changed");
        inner.rebuild(|common, secrets| {
            let mut used = false;
            files(common, secrets, &mut |path| used |= changed.contains(path));
            used
        });
        for path in changed {
            let stamp = Stamp::of(&path);
            inner.stamps.insert(path, stamp);
        }
    }

    /// What is in the contexts that are used, those of listeners first.
    pub(crate) fn listings(&self) -> Vec<Listing> {
        let inner = self.lock();
        let servers = inner.servers.values().filter_map(Weak::upgrade);
        let servers = servers.map(|slot| listing::of(&slot.tls.common, &inner.secrets));
        let clients = inner.clients.values().filter_map(Weak::upgrade);
        let clients = clients.map(|slot| listing::of(&slot.tls.common, &inner.secrets));
        servers.chain(clients).collect()
    }

    /// Whether any context is read from files.
    pub(crate) fn watches(&self) -> bool {
        !self.lock().stamps.is_empty()
    }
}

/// Why a listener or cluster could not be served with the TLS it asks for. What waits for secrets
/// is not known to be wrong.
pub(crate) fn check<'t>(
    servers: impl Iterator<Item = &'t Arc<DownstreamTls>>,
    clients: impl Iterator<Item = &'t Arc<UpstreamTls>>,
) -> Result<(), TlsError> {
    let none = Secrets::new();
    let known = |outcome: Result<(), TlsError>| match outcome {
        Err(TlsError::Missing(_)) => Ok(()),
        other => other,
    };
    for tls in servers {
        known(context::server(tls, &none).map(drop))?;
    }
    for tls in clients {
        known(context::client(tls, false, &none).map(drop))?;
    }
    Ok(())
}

/// Why a secret cannot be used.
pub(crate) fn check_secret(secret: &Secret) -> Result<(), TlsError> {
    match &secret.kind {
        SecretKind::Certificate(certificate) => super::material::identity(certificate).map(drop),
        SecretKind::Validation(validation) => super::material::trusted(validation).map(drop),
    }
}

/// The TLS contexts of a listener.
pub(crate) fn contexts(listener: &Listener) -> impl Iterator<Item = &Arc<DownstreamTls>> {
    let chains = listener.filter_chains.iter();
    chains
        .chain(&listener.default_filter_chain)
        .filter_map(|chain: &Arc<FilterChain>| match &chain.transport {
            Transport::Tls(tls) => Some(tls),
            Transport::Plain => None,
        })
}

impl Inner {
    fn server(&mut self, tls: &Arc<DownstreamTls>) -> Arc<ServerSlot> {
        if let Some(slot) = self.servers.get(&tls.key).and_then(Weak::upgrade) {
            return slot;
        }
        let slot = Arc::new(Slot {
            tls: tls.clone(),
            context: RwLock::new(None),
        });
        slot.set(context::server(tls, &self.secrets));
        self.servers.retain(|_, slot| slot.strong_count() > 0);
        self.servers.insert(tls.key.clone(), Arc::downgrade(&slot));
        slot
    }

    fn client(&mut self, tls: &Arc<UpstreamTls>, for_name: bool) -> Arc<ClientSlot> {
        let key = (tls.key.clone(), for_name);
        if let Some(slot) = self.clients.get(&key).and_then(Weak::upgrade) {
            return slot;
        }
        let slot = Arc::new(Slot {
            tls: tls.clone(),
            context: RwLock::new(None),
        });
        slot.set(context::client(tls, for_name, &self.secrets));
        self.clients.retain(|_, slot| slot.strong_count() > 0);
        self.clients.insert(key, Arc::downgrade(&slot));
        slot
    }

    fn rebuild(&mut self, affected: impl Fn(&CommonTls, &Secrets) -> bool) {
        for slot in self.servers.values().filter_map(Weak::upgrade) {
            if affected(&slot.tls.common, &self.secrets) {
                slot.set(context::server(&slot.tls, &self.secrets));
            }
        }
        for ((_, for_name), slot) in &self.clients {
            if let Some(slot) = slot.upgrade()
                && affected(&slot.tls.common, &self.secrets)
            {
                slot.set(context::client(&slot.tls, *for_name, &self.secrets));
            }
        }
    }

    /// Remembers the files that are read now. One that is known keeps its stamp.
    fn stamp(&mut self) {
        let mut used = HashMap::new();
        let old = std::mem::take(&mut self.stamps);
        let mut note = |path: &Arc<Path>| {
            let stamp = old.get(path).copied();
            used.entry(path.clone())
                .or_insert_with(|| stamp.unwrap_or_else(|| Stamp::of(path)));
        };
        for slot in self.servers.values().filter_map(Weak::upgrade) {
            files(&slot.tls.common, &self.secrets, &mut note);
        }
        for slot in self.clients.values().filter_map(Weak::upgrade) {
            files(&slot.tls.common, &self.secrets, &mut note);
        }
        self.stamps = used;
    }
}

/// Every file a context is read from.
fn files(common: &CommonTls, secrets: &Secrets, f: &mut impl FnMut(&Arc<Path>)) {
    let mut note = |source: &DataSource| {
        if let DataSource::File(path) = source {
            f(path);
        }
    };
    let of_secret = |whose: &SecretRef, note: &mut dyn FnMut(&DataSource)| match secrets
        .get(whose)
        .map(|secret| &secret.kind)
    {
        Some(SecretKind::Certificate(certificate)) => certificate.sources().for_each(note),
        Some(SecretKind::Validation(validation)) => validation.sources().for_each(note),
        None => {}
    };
    for source in &common.certificates {
        match source {
            CertificateSource::Given(certificate) => certificate.sources().for_each(&mut note),
            CertificateSource::Secret(whose) => of_secret(whose, &mut note),
        }
    }
    match &common.validation {
        ValidationSource::None => {}
        ValidationSource::Given(given) => given.sources().for_each(&mut note),
        ValidationSource::Secret(whose) => of_secret(whose, &mut note),
        ValidationSource::Combined(given, whose) => {
            given.sources().for_each(&mut note);
            of_secret(whose, &mut note);
        }
    }
}

impl Stamp {
    fn of(path: &Path) -> Option<Stamp> {
        let metadata = std::fs::metadata(path).ok()?;
        #[cfg(unix)]
        let inode = std::os::unix::fs::MetadataExt::ino(&metadata);
        #[cfg(not(unix))]
        let inode = 0;
        Some(Stamp {
            modified: metadata.modified().ok(),
            length: metadata.len(),
            inode,
        })
    }
}
