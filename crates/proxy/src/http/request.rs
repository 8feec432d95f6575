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
pub(super) enum Decision<'a> {
    Route(Routed<'a>),
    /// Answer with a redirect to this location.
    RedirectTo(u16, Vec<u8>),
    Refuse(Outcome),
}

impl<'a> Decision<'a> {
    /// The route, if there is one.
    pub(super) fn routed(&self) -> Option<Routed<'a>> {
        match self {
            Decision::Route(routed) => Some(*routed),
            Decision::RedirectTo(..) | Decision::Refuse(_) => None,
        }
    }
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
    let table = view.as_ref().map(|view| &*view.table);

    let refused = admit(&mut x);
    let admitted = refused.is_none();
    edit::request_from_client(&mut x);
    let mut decision = refused.unwrap_or_else(|| find_route(&x, table));

    let answered = match decision.routed() {
        Some(routed) if !upgrade_allowed(&x, routed) => {
            let routed = Some(routed);
            local::refuse_as(&mut x, down, routed, Outcome::UpgradeNotAllowed, 403).await;
            true
        }
        _ if admitted => {
            filters::request(&mut x, down, table, &mut decision).await == Flow::Answered
        }
        _ => false,
    };
    if !answered {
        finish_as(&mut x, down, &decision).await;
    }

    x.finish(decision.routed());
}

/// Does what was decided.
async fn finish_as<D: Downstream>(x: &mut Exchange, down: &mut D, decision: &Decision<'_>) {
    match decision {
        Decision::Refuse(outcome) => local::refuse(x, down, *outcome).await,
        Decision::RedirectTo(status, location) => {
            local::redirect(x, down, None, *status, location).await;
        }
        Decision::Route(routed) => act(x, down, *routed).await,
    }
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

/// Virtual host by authority, then the first route that matches what is known so far.
pub(super) fn find_route<'t>(x: &Exchange, table: Option<&'t RouteTable>) -> Decision<'t> {
    let Some(table) = table else {
        return Decision::Refuse(Outcome::NoRouteTable);
    };
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
    match host.route(&x.request, x.metadata.all(), x.random) {
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
