//! Delta rules: names come and go one by one, resources carry versions, removals are told.

use std::collections::BTreeSet;
use std::sync::Arc;

use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;

use super::held::Known;
use super::{Answer, Response, Session, View, Watch};
use crate::type_url::{ROUTE, VIRTUAL_HOST, is_wildcard_by_default, tells_absence};
use crate::{Names, Resource};

const WILDCARD: &str = "*";

impl Session {
    pub(super) fn delta_request(
        &mut self,
        request: DeltaDiscoveryRequest,
        view: &View<'_>,
    ) -> (Answer, Vec<Response>) {
        let url = request.type_url.as_str();
        let first = !self.watches.contains_key(url);
        let watch = self.watches.entry(url.to_owned()).or_default();
        let answer = match request.response_nonce.as_str() {
            "" => Answer::None,
            nonce => watch.answer(nonce, request.error_detail.as_ref()),
        };
        // Subscriptions are changed whatever the nonce: unlike in state of the world, they are
        // not repeated in the next request.
        let asked = subscribe(watch, &request, first);
        if first {
            watch.adopt(request.initial_resource_versions);
            watch.prune();
        }
        if url == VIRTUAL_HOST {
            return (answer, self.host_request(&asked.names, first, view));
        }
        if url == ROUTE && !request.resource_names_unsubscribe.is_empty() {
            self.forget_tables();
        }
        let response = match (first, asked) {
            (true, _) => self.delta_first(url, view),
            (
                false,
                Asked {
                    names,
                    everything: true,
                },
            ) => self.delta_diff(url, &Names::All, names, view),
            (false, Asked { names, .. }) if !names.is_empty() => {
                self.delta_diff(url, &Names::Some(BTreeSet::new()), names, view)
            }
            _ => None,
        };
        let mut responses: Vec<Response> = response.into_iter().collect();
        if url == ROUTE {
            // Those of a table come after it, and at once.
            responses.extend(self.host_update(&Names::Some(BTreeSet::new()), view));
        }
        (answer, responses)
    }

    /// The first request of a type is answered with all that the client lacks. A client that asks
    /// for everything gets an answer even when that is nothing: it waits for one to be ready.
    fn delta_first(&mut self, url: &str, view: &View<'_>) -> Option<Response> {
        let watch = self.watches.get(url)?;
        let wildcard = watch.wildcard;
        // Names that the client holds are not forced: it has just said which version it has.
        let asked = watch
            .names
            .iter()
            .map(Known::name)
            .filter(|name| !watch.held.contains(name))
            .map(str::to_owned)
            .collect();
        match self.delta_diff(url, &Names::All, asked, view) {
            None if wildcard => self.send(url, Vec::new(), Vec::new(), view),
            response => response,
        }
    }

    pub(super) fn delta_update(
        &mut self,
        url: &str,
        names: &Names,
        view: &View<'_>,
    ) -> Option<Response> {
        self.delta_diff(url, names, BTreeSet::new(), view)
    }

    /// Sends what differs among `names`, and all of `asked`. What is gone is noted for later;
    /// only names just asked for are reported missing at once.
    fn delta_diff(
        &mut self,
        url: &str,
        names: &Names,
        asked: BTreeSet<String>,
        view: &View<'_>,
    ) -> Option<Response> {
        let mut force = self.forced(url);
        force.extend(asked.iter().cloned());
        let watch = self.watches.get_mut(url)?;
        let found = generate(watch, url, names, &force, view);
        let present: BTreeSet<&str> = found.iter().map(|r| r.name()).collect();
        let told = tells_absence(url);
        let missing: Vec<String> = asked
            .iter()
            .filter(|name| told && !present.contains(name.as_str()))
            .cloned()
            .collect();
        let is_gone = |name: &str| told && !present.contains(name);
        let gone: Vec<String> = match names {
            Names::All => {
                let held = watch.held.names();
                held.filter(|name| is_gone(name))
                    .map(str::to_owned)
                    .collect()
            }
            // However much the client holds, only these are looked at.
            Names::Some(some) => {
                let held = some.iter().filter(|name| watch.held.contains(name));
                held.filter(|name| is_gone(name)).cloned().collect()
            }
        };
        watch.pending_removals.extend(gone);
        let news: Vec<Arc<Resource>> = found
            .iter()
            .filter(|r| force.contains(r.name()) || !watch.held.has(r))
            .cloned()
            .collect();
        // Something that went and came back before the client was told.
        watch
            .pending_removals
            .retain(|name| !present.contains(name.as_str()));
        if url == ROUTE {
            let accepted = |name: &str| watch.held.has_accepted(name) && !asked.contains(name);
            self.tables.note(&found, accepted);
        }
        if news.is_empty() && missing.is_empty() {
            return None;
        }
        self.send(url, news, missing, view)
    }

    pub(super) fn delta_removals(&mut self, url: &str, view: &View<'_>) -> Option<Response> {
        let watch = self.watches.get_mut(url)?;
        let pending = std::mem::take(&mut watch.pending_removals);
        let back = (view.generate)(url, Some(&pending));
        let present: BTreeSet<&str> = back.iter().map(|r| r.name()).collect();
        let gone: Vec<String> = pending
            .iter()
            .filter(|name| watch.held.contains(name) && !present.contains(name.as_str()))
            .cloned()
            .collect();
        let news: Vec<_> = back.into_iter().filter(|r| !watch.held.has(r)).collect();
        if gone.is_empty() && news.is_empty() {
            return None;
        }
        self.send(url, news, gone, view)
    }
}

struct Asked {
    /// Every name in the subscribe list, known or not: the server must answer each (xDS protocol,
    /// "the client may have dropped them").
    names: BTreeSet<String>,
    /// `*` was asked for just now.
    everything: bool,
}

fn subscribe(watch: &mut Watch, request: &DeltaDiscoveryRequest, first: bool) -> Asked {
    let mut asked = Asked {
        names: BTreeSet::new(),
        everything: false,
    };
    for name in &request.resource_names_subscribe {
        if name == WILDCARD {
            asked.everything |= !watch.wildcard;
            watch.wildcard = true;
        } else {
            watch.names.insert(Known::named(name));
            asked.names.insert(name.clone());
        }
    }
    if first
        && request.resource_names_subscribe.is_empty()
        && is_wildcard_by_default(&request.type_url)
    {
        watch.wildcard = true;
    }
    for name in &request.resource_names_unsubscribe {
        if name == WILDCARD {
            watch.wildcard = false;
        } else if watch.names.remove(name.as_str()) && watch.wildcard {
            // Still watched through the wildcard; the client cannot know whether it exists there.
            asked.names.insert(name.clone());
        } else {
            asked.names.remove(name);
        }
    }
    if !request.resource_names_unsubscribe.is_empty() {
        watch.prune();
    }
    asked
}

/// Asks the source for what the client watches among `names`, and for `force`.
fn generate(
    watch: &Watch,
    url: &str,
    names: &Names,
    force: &BTreeSet<String>,
    view: &View<'_>,
) -> Vec<Arc<Resource>> {
    let mut wanted: BTreeSet<String> = match names {
        Names::All if watch.wildcard => {
            let mut found = (view.generate)(url, None);
            let seen: BTreeSet<&str> = found.iter().map(|r| r.name()).collect();
            let named = watch.names.iter().map(Known::name);
            let named = named.chain(force.iter().map(String::as_str));
            let beyond: BTreeSet<String> = named
                .filter(|name| !seen.contains(name))
                .map(str::to_owned)
                .collect();
            if !beyond.is_empty() {
                found.extend((view.generate)(url, Some(&beyond)));
            }
            return found;
        }
        Names::All => watch
            .names
            .iter()
            .map(|name| name.name().to_owned())
            .collect(),
        Names::Some(some) => some
            .iter()
            .filter(|name| watch.wants(name))
            .cloned()
            .collect(),
    };
    wanted.extend(force.iter().cloned());
    if wanted.is_empty() {
        return Vec::new();
    }
    (view.generate)(url, Some(&wanted))
}
