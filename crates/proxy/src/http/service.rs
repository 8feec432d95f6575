//! A connection manager as one worker uses it: names resolved, once per listener generation.

use crate::access_log::LogSink;
use crate::http::filters::jwt::FetchedKeys;
use crate::rbac::Counts;
use crate::stats::{Page, RbacOwner, Scope};
use crate::worker::state::{RouteCell, Worker};
use lateen_proxy_config::{HttpConnectionManager, HttpFilter, RouteSource, RouterFilter};
use std::rc::Rc;
use std::sync::Arc;

/// One connection manager of one listener generation.
pub(crate) struct HttpService {
    pub manager: Arc<HttpConnectionManager>,
    pub routes: Rc<RouteCell>,
    pub stats: Arc<Page>,
    pub logs: Vec<LogSink>,
    pub router: RouterFilter,
    /// Of the authorization filters, in their order.
    pub rbac: Vec<Counts>,
    /// Of the filters for tokens, in their order.
    pub tokens: Vec<FetchedKeys>,
    /// May be empty.
    pub chain: Arc<str>,
}

impl HttpService {
    pub(crate) fn new(
        worker: &Rc<Worker>,
        chain: Arc<str>,
        manager: &Arc<HttpConnectionManager>,
    ) -> HttpService {
        let routes = match &manager.routes {
            RouteSource::Rds(name) => worker.route_cell(name),
            RouteSource::Inline(table) => RouteCell::of(table.clone()),
        };
        let router = manager.filters.iter().find_map(|filter| match filter {
            HttpFilter::Router(router) => Some(*router),
            _ => None,
        });
        let rbac = manager.filters.iter().filter_map(|filter| match filter {
            HttpFilter::Rbac(filter) => {
                let owner = RbacOwner::Http(manager.stat_prefix.clone());
                Some(Counts::new(worker, owner, filter))
            }
            _ => None,
        });
        let tokens = manager.filters.iter().filter_map(|filter| match filter {
            HttpFilter::JwtAuthn(filter) => Some(FetchedKeys::new(worker, filter)),
            _ => None,
        });
        HttpService {
            tokens: tokens.collect(),
            rbac: rbac.collect(),
            manager: manager.clone(),
            routes,
            stats: worker.page(Scope::Http(manager.stat_prefix.clone())),
            logs: worker.logs.sinks(worker, &manager.access_log),
            router: router.unwrap_or_default(),
            chain,
        }
    }
}
