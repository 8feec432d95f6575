//! What a route decides about a request before its first try: cluster, path, authority.

use super::exchange::Exchange;
use super::headers::Known;
use super::request::Routed;
use crate::upstream::ActiveCluster;
use lateen_proxy_config::HeaderOps;
use lateen_proxy_config::route::{ClusterName, ClusterTarget, Forward, RouteAction};
use std::rc::Rc;

/// Whether the request asks for no tunnel, or for an upgrade (or CONNECT) that the route, or else the connection
/// manager, lets pass.
pub(super) fn upgrade_allowed(x: &Exchange, routed: Routed<'_>) -> bool {
    if !x.request.is_tunnel() {
        return true;
    }
    let kind = match x.request.upgrade {
        true => x.request.headers.get(Known::Upgrade).unwrap_or_default(),
        false => b"connect",
    };
    let kind = kind.to_ascii_lowercase();
    let Ok(kind) = std::str::from_utf8(&kind) else {
        return false;
    };
    let of_route = match &routed.route.action {
        RouteAction::Forward(to) => to.upgrades.get(kind),
        _ => None,
    };
    of_route
        .or_else(|| x.service.manager.upgrades.get(kind))
        .unwrap_or(false)
}

/// The cluster if there is one, and what a weighted cluster brings of its own.
pub(super) type Chosen<'a> = (
    Option<Rc<ActiveCluster>>,
    Option<&'a HeaderOps>,
    Option<&'a [u8]>,
);

pub(super) fn choose_cluster<'a>(x: &mut Exchange, to: &'a Forward) -> Chosen<'a> {
    let by_name = |name: &str| x.worker.clusters.get(&x.worker, name);
    let by_header = |name: &str| {
        let value = x.request.headers.get_name(name.as_bytes())?;
        by_name(std::str::from_utf8(value).ok()?)
    };
    match &to.cluster {
        ClusterTarget::One(name) => (by_name(name), None, None),
        ClusterTarget::Header(name) => (by_header(name), None, None),
        ClusterTarget::Weighted(weighted) => {
            let from_header = weighted.random_header.as_deref().and_then(|name| {
                let value = x.request.headers.get_name(name.as_bytes())?;
                std::str::from_utf8(value).ok()?.parse().ok()
            });
            let picked = weighted.pick(from_header.unwrap_or(x.random));
            let index = weighted
                .clusters
                .iter()
                .position(|c| std::ptr::eq(c, picked));
            let cluster = match &picked.target {
                ClusterName::Name(name) => by_name(name),
                ClusterName::Header(name) => by_header(name),
            };
            x.weighted = index.and_then(|index| u32::try_from(index).ok());
            (
                cluster,
                Some(&picked.headers),
                picked.host_rewrite.as_deref(),
            )
        }
    }
}

/// Path and authority as the upstream is to see them.
pub(super) fn rewrite(x: &mut Exchange, routed: Routed<'_>, to: &Forward, host: Option<&[u8]>) {
    let host = match host {
        Some(host) => Some(host.to_vec()),
        None => to
            .rewritten_host(&x.request)
            .map(std::borrow::Cow::into_owned),
    };
    if let Some(path) = routed.route.rewritten_path(to, x.request.path_bytes()) {
        if !x.service.router.suppress_envoy_headers {
            let original = x.request.path_bytes().to_vec();
            x.request.headers.set(Known::EnvoyOriginalPath, &original);
        }
        x.request.set_path(&path);
    }
    if let Some(host) = host {
        let before = x.request.authority_bytes().to_vec();
        if to.append_x_forwarded_host {
            x.request.headers.set(Known::XForwardedHost, &before);
        }
        if !x.service.router.suppress_envoy_headers {
            x.request.headers.set(Known::EnvoyOriginalHost, &before);
        }
        x.request.headers.set(Known::Host, &host);
    }
}
