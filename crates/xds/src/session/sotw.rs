//! State-of-the-world rules: every request carries the whole list of names, every listener or
//! cluster response the whole set; other types are answered with what changed.

use std::collections::BTreeSet;
use std::sync::Arc;

use envoy_types::pb::envoy::service::discovery::v3::DiscoveryRequest;

use super::held::Known;
use super::{Answer, Response, Session, View, Watch};
use crate::type_url::{CLUSTER, is_full_state, is_wildcard_by_default};
use crate::{Names, Resource};

impl Session {
    pub(super) fn sotw_request(
        &mut self,
        request: DiscoveryRequest,
        view: &View<'_>,
    ) -> (Answer, Vec<Response>) {
        let url = request.type_url.as_str();
        let first = !self.watches.contains_key(url);
        let watch = self.watches.entry(url.to_owned()).or_default();
        let mut answer = Answer::None;
        // The first request of a stream may carry a nonce of an earlier stream; it means nothing.
        if !first && !request.response_nonce.is_empty() {
            let latest = watch.sent.as_ref().map(|sent| sent.nonce.as_str());
            let stale = latest != Some(request.response_nonce.as_str());
            answer = watch.answer(&request.response_nonce, request.error_detail.as_ref());
            if stale {
                // A newer response is on its way; the client's list comes again with its answer.
                return (answer, Vec::new());
            }
            if answer == Answer::Expired {
                // The latest response was answered before: only the list of names changes.
                answer = Answer::None;
            }
        }
        let added = replace_names(watch, &request);
        let response = if first {
            self.sotw_first(url, view)
        } else if added.is_empty() {
            None
        } else if is_full_state(url) {
            self.sotw_full(url, true, view)
        } else {
            self.sotw_some(url, &Names::Some(BTreeSet::new()), added, view)
        };
        (answer, response.into_iter().collect())
    }

    fn sotw_first(&mut self, url: &str, view: &View<'_>) -> Option<Response> {
        let watch = self.watches.get(url)?;
        if is_full_state(url) {
            return self.sotw_full(url, true, view);
        }
        let (wildcard, names) = (watch.wildcard, owned(&watch.names));
        match self.sotw_some(url, &Names::All, names, view) {
            None if wildcard => self.send(url, Vec::new(), Vec::new(), view),
            response => response,
        }
    }

    pub(super) fn sotw_update(
        &mut self,
        url: &str,
        names: &Names,
        view: &View<'_>,
    ) -> Option<Response> {
        if !is_full_state(url) {
            return self.sotw_some(url, names, BTreeSet::new(), view);
        }
        if let Names::Some(some) = names {
            let watch = self.watches.get(url)?;
            if !some.iter().any(|name| watch.wants(name)) {
                return None;
            }
        }
        self.sotw_full(url, false, view)
    }

    /// Listeners and clusters: the whole set if any of it changed. Clusters that are gone are
    /// repeated once more, so that no route loses its cluster before it is replaced itself.
    fn sotw_full(&mut self, url: &str, always: bool, view: &View<'_>) -> Option<Response> {
        let watch = self.watches.get_mut(url)?;
        let mut set = whole(watch, url, view);
        let present: BTreeSet<&str> = set.iter().map(|r| r.name()).collect();
        let gone: Vec<String> = watch
            .held
            .names()
            .filter(|name| !present.contains(name))
            .map(str::to_owned)
            .collect();
        watch
            .pending_removals
            .retain(|name| !present.contains(name.as_str()));
        let changed = set.iter().any(|r| !watch.held.has(r));
        if url != CLUSTER {
            if !changed && gone.is_empty() && !always {
                return None;
            }
            for name in &gone {
                watch.held.remove(name);
            }
            return self.send(url, set, Vec::new(), view);
        }
        watch.pending_removals.extend(gone.iter().cloned());
        if !changed && !always {
            return None;
        }
        set.extend(
            gone.iter()
                .filter_map(|name| watch.held.kept(name).cloned()),
        );
        self.send(url, set, Vec::new(), view)
    }

    /// Types that are asked for by name: what changed among `names`, and all of `asked`.
    fn sotw_some(
        &mut self,
        url: &str,
        names: &Names,
        asked: BTreeSet<String>,
        view: &View<'_>,
    ) -> Option<Response> {
        let mut force = self.forced(url);
        force.extend(asked);
        let watch = self.watches.get_mut(url)?;
        let found = match names {
            Names::All if watch.wildcard => (view.generate)(url, None),
            _ => {
                let mut wanted: BTreeSet<String> = match names {
                    Names::All => owned(&watch.names),
                    Names::Some(some) => some.iter().filter(|n| watch.wants(n)).cloned().collect(),
                };
                wanted.extend(force.iter().cloned());
                if wanted.is_empty() {
                    return None;
                }
                let found = (view.generate)(url, Some(&wanted));
                // Absence cannot be told; the name is sent again when it comes back.
                let present: BTreeSet<&str> = found.iter().map(|r| r.name()).collect();
                for name in wanted
                    .iter()
                    .filter(|name| !present.contains(name.as_str()))
                {
                    watch.held.remove(name);
                }
                found
            }
        };
        let news: Vec<_> = found
            .into_iter()
            .filter(|r| force.contains(r.name()) || !watch.held.has(r))
            .collect();
        if news.is_empty() {
            return None;
        }
        self.send(url, news, Vec::new(), view)
    }

    /// The whole set again, now without what is gone.
    pub(super) fn sotw_removals(&mut self, url: &str, view: &View<'_>) -> Option<Response> {
        let watch = self.watches.get_mut(url)?;
        let pending = std::mem::take(&mut watch.pending_removals);
        let set = whole(watch, url, view);
        let present: BTreeSet<&str> = set.iter().map(|r| r.name()).collect();
        let mut any = false;
        for name in pending
            .iter()
            .filter(|name| !present.contains(name.as_str()))
        {
            any |= watch.held.remove(name);
        }
        if !any {
            return None;
        }
        self.send(url, set, Vec::new(), view)
    }
}

/// All that the client watches of a type.
fn whole(watch: &Watch, url: &str, view: &View<'_>) -> Vec<Arc<Resource>> {
    if watch.wildcard {
        (view.generate)(url, None)
    } else if watch.names.is_empty() {
        Vec::new()
    } else {
        (view.generate)(url, Some(&owned(&watch.names)))
    }
}

fn owned(names: &BTreeSet<Known>) -> BTreeSet<String> {
    names.iter().map(|known| known.name().to_owned()).collect()
}

/// Takes the request's list as the new subscription; answers the names (or `*`) that are new.
fn replace_names(watch: &mut Watch, request: &DiscoveryRequest) -> BTreeSet<String> {
    let names = request.resource_names.iter().map(|name| {
        let known = watch.names.get(name.as_str());
        known.cloned().unwrap_or_else(|| Known::named(name))
    });
    let mut names: BTreeSet<Known> = names.collect();
    watch.ever_named |= !names.is_empty();
    let star = names.remove("*");
    let wildcard = star
        || (names.is_empty() && !watch.ever_named && is_wildcard_by_default(&request.type_url));
    let added = names.difference(&watch.names);
    let mut added: BTreeSet<String> = added.map(|known| known.name().to_owned()).collect();
    if wildcard && !watch.wildcard {
        added.insert("*".to_owned());
    }
    watch.wildcard = wildcard;
    watch.names = names;
    watch.prune();
    added
}
