//! The way of one request, from its head to its access-log line.
//!
//! [`serve`] reads from top to bottom like the request goes: take one view of the configuration,
//! check the head, find the route, act on it, count and log. The protocols are behind
//! [`Downstream`]; forwarding is in `forward.rs`.
//!
//! Invariant: the configuration a request sees is the one of its beginning, whatever arrives
//! meanwhile.

use super::edit;
use super::exchange::Exchange;
use super::filters::{self, Flow};
use super::forward;
use super::head::{RequestHead, Version};
use super::headers::Known;
use super::local;
use super::prepare::upgrade_allowed;
use super::service::HttpService;
use super::stream::Downstream;
use crate::listener::ConnInfo;
use crate::outcome::Outcome;
use crate::worker::state::Worker;
use lateen_proxy_config::path::Normalized;
use lateen_proxy_config::route::{
    DirectResponse, Redirect, RequireTls, Route, RouteAction, RouteTable, VirtualHost,
};
use std::rc::Rc;

/// The route a request takes, and where it stands.
#[derive(Clone, Copy)]
pub(crate) struct Routed<'a> {
    pub table: &'a RouteTable,
    pub host: &'a VirtualHost,
    pub route: &'a Route,
}

/// How a request leaves the part that decides what to do with it.
enum Decision<'a> {
    Route(Routed<'a>),
    /// Answer with a redirect to this location.
    RedirectTo(u16, Vec<u8>),
    Refuse(Outcome),
}

/// Serves one request to its end.
pub(crate) async fn serve<D: Downstream>(
    down: &mut D,
    head: RequestHead,
    service: &Rc<HttpService>,
    conn: &Rc<ConnInfo>,
    worker: &Rc<Worker>,
) {
    let mut x = Exchange::begin(worker, service, conn, head);
    let view = service.routes.get();

    let refused = admit(&mut x);
    let admitted = refused.is_none();
    edit::request_from_client(&mut x);
    let decision = match (refused, &view) {
        (Some(decision), _) => decision,
        (None, None) => Decision::Refuse(Outcome::NoRouteTable),
        (None, Some(view)) => find_route(&x, &view.table),
    };
    let routed = match &decision {
        Decision::Route(routed) => Some(*routed),
        _ => None,
    };

    match decision {
        Decision::Route(routed) if !upgrade_allowed(&x, routed) => {
            local::refuse_as(&mut x, down, Some(routed), Outcome::UpgradeNotAllowed, 403).await;
        }
        _ if admitted && filters::request(&mut x, down, routed).await == Flow::Answered => {}
        Decision::Refuse(outcome) => local::refuse(&mut x, down, outcome).await,
        Decision::RedirectTo(status, location) => {
            local::redirect(&mut x, down, None, status, &location).await;
        }
        Decision::Route(routed) => act(&mut x, down, routed).await,
    }

    x.finish(routed);
}

/// Checks and normalises the head. [`Some`]: it goes no further.
fn admit(x: &mut Exchange) -> Option<Decision<'static>> {
    let service = x.service.clone();
    let manager = &*service.manager;
    edit::clean_host(&mut x.request, manager, x.conn.local.port());
    if x.request.authority_bytes().is_empty() {
        return Some(Decision::Refuse(match x.request.version {
            Version::Http10 => Outcome::NoHost,
            _ => Outcome::BadRequest,
        }));
    }
    if !edit::check_underscores(&mut x.request.headers, manager.underscores) {
        return Some(Decision::Refuse(Outcome::BadRequest));
    }
    match manager.normalize(x.request.path_bytes()) {
        Normalized::Unchanged => None,
        Normalized::Changed(path) => {
            x.request.set_path(&path);
            None
        }
        Normalized::Redirect(path) => Some(Decision::RedirectTo(307, path)),
        Normalized::Reject => Some(Decision::Refuse(Outcome::PathRefused)),
    }
}

/// Virtual host by authority, then the first route that matches.
fn find_route<'t>(x: &Exchange, table: &'t RouteTable) -> Decision<'t> {
    let Some(host) = table.virtual_host(x.request.authority_bytes()) else {
        return Decision::Refuse(Outcome::NoRoute);
    };
    if host.require_tls != RequireTls::None && !x.request.https {
        let request = &x.request;
        let parts = [
            b"https://".as_slice(),
            request.authority_bytes(),
            request.path_bytes(),
        ];
        return Decision::RedirectTo(301, parts.concat());
    }
    match host.route(&x.request, x.random) {
        Some(route) => Decision::Route(Routed { table, host, route }),
        None => Decision::Refuse(Outcome::NoRoute),
    }
}

/// What the router does: forward, or answer.
async fn act<D: Downstream>(x: &mut Exchange, down: &mut D, routed: Routed<'_>) {
    match &routed.route.action {
        RouteAction::Forward(to) => forward::forward(x, down, routed, to).await,
        RouteAction::Redirect(to) => redirect(x, down, routed, to).await,
        RouteAction::DirectResponse(answer) => direct(x, down, routed, answer).await,
    }
}

async fn redirect<D: Downstream>(
    x: &mut Exchange,
    down: &mut D,
    routed: Routed<'_>,
    to: &Redirect,
) {
    let location = routed.route.redirect_location(to, &x.request);
    local::redirect(x, down, Some(routed), to.status, &location).await;
}

async fn direct<D: Downstream>(
    x: &mut Exchange,
    down: &mut D,
    routed: Routed<'_>,
    answer: &DirectResponse,
) {
    let mut rendered = Vec::new();
    let body = match &answer.format {
        None => &answer.body[..],
        Some(format) => {
            format.render(
                &x.facts(Some(routed)),
                lateen_telemetry::format::Missing::Empty,
                &mut rendered,
            );
            &rendered
        }
    };
    let content_type = answer.content_type.as_deref();
    let mut head = local::head(x, answer.status, content_type, body.len());
    if head.status == 201 || (300..400).contains(&head.status) {
        // Nothing to add: a direct response brings its own `location`, by header operations.
        head.headers.remove(Known::Location);
    }
    x.outcome = Outcome::DirectResponse;
    local::send(x, down, Some(routed), head, body).await;
}
