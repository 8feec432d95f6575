//! The data plane: thread-per-core workers, HTTP/1.1, HTTP/2 and TCP proxying, admin.
//!
//! | module | what it is |
//! |---|---|
//! | [`worker`] | the threads that move bytes, and the handle by which the main thread steers them |
//! | `http` | the way of one request, whatever protocol it came in and goes out with |
//! | `http1`, `http2`, `tcp` | the protocols |
//! | `tls` | encryption towards clients and endpoints |
//! | `upstream` | clusters, balancing, connection pools |
//! | [`stats`], [`outcome`], `access_log` | what is known about traffic afterwards |
//!
//! Invariant: workers only move bytes. xDS, admin, DNS and rendering of metrics live on the main
//! thread; a push or a scrape never waits on, or slows, a request.

mod access_log;
mod admin;
pub mod dns;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod http;
mod http1;
mod http2;
mod io;
mod listener;
pub mod main_thread;
pub mod outcome;
mod rbac;
pub mod stats;
mod tcp;
mod tls;
mod unix;
mod upstream;
pub mod worker;
