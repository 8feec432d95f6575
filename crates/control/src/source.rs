//! The xDS server's questions, answered from snapshots by `translate`.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, PoisonError, RwLock};

use lateen_identity::SpiffeId;
use lateen_model::{Changes, Locality, MeshSnapshot, NamespacedName, Proxy};
use lateen_translate::{Encoded, Translator};
use lateen_xds::{
    Changed, Names, Node, Protocol, Resource, Source, VIRTUAL_HOSTS_BY_NAME, type_url,
};

use crate::mesh::Mesh;

/// Who is connected, and what each may have.
pub(crate) struct Discovery {
    translator: Translator<Resource>,
    mesh: Arc<Mesh>,
    /// Gateways that did not prove who they are get their certificates all the same.
    plaintext_credentials: bool,
    /// By stream: what somebody says of himself on one is not taken for what another one has proved,
    /// nor for what another one has said with the same proof.
    proxies: RwLock<HashMap<u64, Arc<Proxy>>>,
}

impl Discovery {
    /// Begins with this snapshot.
    pub fn new(mesh: Arc<Mesh>, first: &MeshSnapshot, plaintext_credentials: bool) -> Self {
        let wrap = |made: Encoded| Resource::from_bytes(made.name, made.type_url, made.bytes);
        let translator = Translator::new(wrap);
        translator.advance(first, &Changes::everything());
        Self {
            translator,
            mesh,
            plaintext_credentials,
            proxies: RwLock::default(),
        }
    }

    /// Forgets resources that recent snapshots did not use.
    pub fn sweep(&self) {
        self.translator.sweep();
    }

    /// What a push has to look at, and what it will look for is made ready.
    pub fn changed(&self, now: &MeshSnapshot, changes: &Changes) -> Changed {
        self.translator.advance(now, changes);
        let proxies = self.proxies.read().unwrap_or_else(PoisonError::into_inner);
        let is_connected = |(namespace, name): &NamespacedName| {
            let mut proxies = proxies.values();
            proxies.any(|proxy| proxy.name == *name && proxy.namespace == *namespace)
        };
        let Some(affected) = lateen_translate::affected(now, changes, is_connected) else {
            return Changed::All;
        };
        let mut changed = Changed::none();
        for (type_url, names) in affected {
            changed.add(type_url, names.map_or(Names::All, Names::Some));
        }
        changed
    }

    fn proxy(&self, node: &Node) -> Option<Arc<Proxy>> {
        let proxies = self.proxies.read().unwrap_or_else(PoisonError::into_inner);
        proxies.get(&node.stream).cloned()
    }
}

impl Source for Discovery {
    type Snapshot = MeshSnapshot;

    fn connect(&self, node: &Node) -> Result<(), String> {
        self.mesh.is_known()?;
        let mut proxy = Proxy::from_node(&node.id, &node.metadata).map_err(|e| e.to_string())?;
        if let Some(identity) = &node.identity {
            let proved = is_its_own(node, &proxy, identity)?;
            proxy.account = Some(proved.service_account().to_owned());
        }
        proxy.virtual_hosts_by_name = takes_virtual_hosts(node);
        proxy.locality = Locality {
            region: node.region.clone(),
            zone: node.zone.clone(),
            subzone: node.sub_zone.clone(),
        };
        let mut proxies = self.proxies.write().unwrap_or_else(PoisonError::into_inner);
        proxies.insert(node.stream, Arc::new(proxy));
        Ok(())
    }

    fn disconnect(&self, node: &Node) {
        let mut proxies = self.proxies.write().unwrap_or_else(PoisonError::into_inner);
        proxies.remove(&node.stream);
    }

    fn accepted(&self) -> u64 {
        self.mesh.store().revision()
    }

    fn has(&self, snapshot: &MeshSnapshot) -> u64 {
        snapshot.revision
    }

    fn generate(
        &self,
        snapshot: &MeshSnapshot,
        node: &Node,
        type_url: &str,
        names: Option<&BTreeSet<String>>,
    ) -> Vec<Arc<Resource>> {
        let may_have_secrets = node.identity.is_some() || self.plaintext_credentials;
        if type_url == type_url::SECRET && !may_have_secrets {
            return Vec::new();
        }
        // A stream's proxy is known from `connect` to `disconnect`.
        let Some(proxy) = self.proxy(node) else {
            return Vec::new();
        };
        self.translator.generate(snapshot, &proxy, type_url, names)
    }

    fn own_names(&self, snapshot: &MeshSnapshot, node: &Node, type_url: &str) -> Names {
        // A stream's proxy is known from `connect` to `disconnect`.
        let proxy = self.proxy(node);
        let own = proxy.map(|proxy| lateen_translate::own_names(snapshot, &proxy, type_url));
        own.map_or_else(
            || Names::Some(BTreeSet::new()),
            |names| names.map_or(Names::All, Names::Some),
        )
    }

    fn changed_hosts(
        &self,
        before: &MeshSnapshot,
        now: &MeshSnapshot,
        node: &Node,
        tables: &BTreeSet<String>,
    ) -> Option<BTreeSet<String>> {
        let proxy = self.proxy(node)?;
        let names = self
            .translator
            .changed_virtual_hosts(before, now, &proxy, tables);
        Some(names)
    }
}

/// The oldest Envoy that is known to take virtual hosts by name on its aggregated stream: the one we
/// test with. Older ones refuse a route table that wants them so ("only 'DELTA_GRPC' is supported").
const ENVOY: (u32, u32) = (1, 40);

/// Whether a client gets virtual hosts one by one (VHDS) rather than in whole route tables: one that
/// asks by delta, and is an Envoy new enough or says that it can (our proxy). This is the only place
/// that decides it; docs/decisions/0003.
fn takes_virtual_hosts(node: &Node) -> bool {
    let can = match node.user_agent.as_str() {
        "envoy" => version(&node.user_agent_version) >= Some(ENVOY),
        _ => node
            .client_features
            .iter()
            .any(|one| one == VIRTUAL_HOSTS_BY_NAME),
    };
    node.protocol == Some(Protocol::Delta) && can
}

/// Major and minor number.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Whether a node speaks for the identity that its connection has proved: the same namespace,
/// wherever it says one, and the same service account, if it says one (Istio's
/// `PILOT_ENABLE_XDS_IDENTITY_CHECK`). Gives that identity.
fn is_its_own(node: &Node, proxy: &Proxy, identity: &str) -> Result<SpiffeId, String> {
    let proved = SpiffeId::parse(identity).map_err(|error| error.to_string())?;
    let of_id = node.parsed.as_ref().map(|id| id.namespace.as_str());
    let account = node.metadata_str("SERVICE_ACCOUNT").unwrap_or_default();
    let is_own = proxy.namespace == proved.namespace()
        && of_id == Some(proved.namespace())
        && (account.is_empty() || account == proved.service_account());
    if is_own {
        return Ok(proved);
    }
    // What a node says of itself may be long.
    const SHOWN: usize = 200;
    let said = match account {
        "" => format!("the namespace {}", proxy.namespace),
        account => format!("{}/{account}", proxy.namespace),
    };
    let said: String = said.chars().take(SHOWN).collect();
    Err(format!(
        "authorization failed: this connection has proved to be {identity}, which does not match \
         the node {:?} of {said}; a proxy gets the configuration of its own workload only",
        node.id.chars().take(SHOWN).collect::<String>()
    ))
}
