//! The xDS server's questions, answered from snapshots by `translate`.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, PoisonError, RwLock};

use lateen_model::{Changes, Locality, MeshSnapshot, NamespacedName, Proxy};
use lateen_translate::{Encoded, Translator};
use lateen_xds::{Changed, Names, Node, Resource, Source};

/// Who is connected, and what each may have.
pub(crate) struct Discovery {
    translator: Translator<Resource>,
    /// By node id, with the number of streams.
    proxies: RwLock<HashMap<String, (Arc<Proxy>, usize)>>,
}

impl Discovery {
    pub fn new() -> Self {
        let wrap = |made: Encoded| Resource::from_bytes(made.name, made.type_url, made.bytes);
        Self {
            translator: Translator::new(wrap),
            proxies: RwLock::default(),
        }
    }

    /// Forgets resources that recent snapshots did not use.
    pub fn sweep(&self) {
        self.translator.sweep();
    }

    /// What a push has to look at.
    pub fn changed(&self, now: &MeshSnapshot, changes: &Changes) -> Changed {
        let proxies = self.proxies.read().unwrap_or_else(PoisonError::into_inner);
        let is_connected = |(namespace, name): &NamespacedName| {
            let mut proxies = proxies.values();
            proxies.any(|(proxy, _)| proxy.name == *name && proxy.namespace == *namespace)
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
        proxies.get(&node.id).map(|(proxy, _)| proxy.clone())
    }
}

impl Source for Discovery {
    type Snapshot = MeshSnapshot;

    fn connect(&self, node: &Node) -> Result<(), String> {
        let mut proxy = Proxy::from_node(&node.id, &node.metadata).map_err(|e| e.to_string())?;
        proxy.locality = Locality {
            region: node.region.clone(),
            zone: node.zone.clone(),
            subzone: node.sub_zone.clone(),
        };
        let mut proxies = self.proxies.write().unwrap_or_else(PoisonError::into_inner);
        let entry = proxies.entry(node.id.clone());
        // A proxy that connects anew may have changed; its metadata now is what counts.
        let (known, streams) = entry.or_insert_with(|| (Arc::new(proxy.clone()), 0));
        *known = Arc::new(proxy);
        *streams += 1;
        Ok(())
    }

    fn disconnect(&self, node: &Node) {
        let mut proxies = self.proxies.write().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, streams)) = proxies.get_mut(&node.id) {
            *streams = streams.saturating_sub(1);
            if *streams == 0 {
                proxies.remove(&node.id);
            }
        }
    }

    fn generate(
        &self,
        snapshot: &MeshSnapshot,
        node: &Node,
        type_url: &str,
        names: Option<&BTreeSet<String>>,
    ) -> Vec<Arc<Resource>> {
        // A stream's proxy is known from `connect` to `disconnect`.
        let Some(proxy) = self.proxy(node) else {
            return Vec::new();
        };
        self.translator.generate(snapshot, &proxy, type_url, names)
    }
}
