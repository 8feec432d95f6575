//! Asking about a connection (`envoy.filters.network.ext_authz`).

use super::{Decision, grpc};
use crate::http::filters::call;
use crate::http::metadata::DynamicMetadata;
use crate::listener::ConnInfo;
use crate::worker::state::Worker;
use lateen_proxy_config::NetworkAuthz;
use std::rc::Rc;

/// Under which the server's dynamic metadata is noted.
const NAMESPACE: &str = "envoy.filters.network.ext_authz";

/// What the server says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Allowed,
    Denied,
    /// There is no answer, or none that says anything.
    Failed,
}

/// Asks, and notes what the server says of the connection besides.
pub(crate) async fn check(
    worker: &Rc<Worker>,
    conn: &Rc<ConnInfo>,
    authz: &NetworkAuthz,
    notes: &mut DynamicMetadata,
) -> Answer {
    let question = grpc::connection_question(worker, conn, authz, notes);
    let calling = call::call(worker, conn, &authz.cluster, question);
    let reply = match authz.timeout {
        Some(limit) => tokio::time::timeout(limit, calling).await.ok().flatten(),
        None => calling.await,
    };
    let (answer, metadata) = match reply.map_or(Decision::Failed, grpc::answer) {
        Decision::Allowed(changes) => (Answer::Allowed, changes.metadata),
        Decision::Denied(denied) => (Answer::Denied, denied.metadata),
        Decision::Invalid => (Answer::Denied, None),
        Decision::Failed => (Answer::Failed, None),
    };
    if let Some(metadata) = metadata {
        notes.merge(NAMESPACE, metadata);
    }
    answer
}
