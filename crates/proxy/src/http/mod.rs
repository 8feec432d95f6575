//! HTTP, whatever version it came in and goes out with.
//!
//! | file | holds |
//! |---|---|
//! | `request.rs` | **the way of one request, top to bottom: begin here** |
//! | `filters/` | the filters in front of the router: tokens, authorization, fault, CORS |
//! | `prepare.rs` | what the route decides: cluster, path, authority |
//! | `forward.rs` | tries: choose an endpoint, try, retry |
//! | `attempt.rs` | one try: a connection, the request out, the response's head |
//! | `timeouts.rs` | how long a request may take |
//! | `progress.rs` | how far the body has come, and the deadlines |
//! | `upstream.rs` | the upstream's side of a try, by protocol |
//! | `relay.rs` | the response on its way back, tunnels |
//! | `retry.rs` | whether and when to try again |
//! | `trailers.rs` | which trailers of a request go on |
//! | `mirror.rs` | copies of requests for other clusters |
//! | `edit.rs` | headers added, changed and removed on the way |
//! | `client_cert.rs` | `x-forwarded-client-cert` |
//! | `local.rs` | answers of the proxy itself |
//! | `exchange.rs` | what is known about a request; access log and counters at its end |
//! | `metadata.rs` | what filters have found out, for those after them |
//! | `stream.rs` | the interface between all this and the protocols |
//! | `head.rs`, `headers.rs` | request and response heads |
//! | `service.rs` | a connection manager as one worker uses it |
//! | `conn.rs` | a client's connection: which codec, one request after the other |

mod attempt;
mod client_cert;
pub(crate) mod conn;
pub(crate) mod edit;
pub(crate) mod exchange;
pub(crate) mod filters;
mod forward;
pub(crate) mod hash;
pub(crate) mod head;
pub(crate) mod headers;
mod health;
mod local;
pub(crate) mod metadata;
mod mirror;
mod prepare;
mod progress;
mod relay;
pub(crate) mod request;
mod retry;
pub(crate) mod service;
pub(crate) mod stream;
mod timeouts;
mod trailers;
pub(crate) mod upstream;
