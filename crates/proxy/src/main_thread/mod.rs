//! The main thread: reads the bootstrap, keeps the stream to the control plane, compiles what
//! comes, gives it to the workers in an order that never shows half a configuration, resolves
//! names, and ends the process in good order. It serves no request.
//!
//! | file | what it is |
//! |---|---|
//! | `bootstrap.rs`, `static_resources.rs` | the bootstrap file and the resources in it |
//! | `config.rs`, `config/` | every resource, what it waits for, and when it becomes active: a plain value |
//! | `run.rs` | the loop that connects the above with sockets, timers and signals |
//! | `secrets.rs` | the workload's own certificate, from the agent inside or from one beside us |
//! | `secure.rs` | TLS to the control plane |
//! | `names.rs` | the DNS server beside the workload, where the node asks for it |
//! | `dns.rs`, `drain.rs`, `logging.rs`, `memory.rs` | names, the end, logs, size |
//! | `state.rs` | what admin reads |

mod args;
mod bootstrap;
pub mod config;
mod dns;
mod drain;
mod logging;
mod memory;
mod names;
mod run;
mod secrets;
mod secure;
mod state;
mod static_resources;

pub use args::{Options, ProxyArgs};
pub use bootstrap::{Bootstrap, BootstrapError};
pub use logging::{LevelError, LogControl};
pub use names::run_dns;
pub use run::{RunError, run};
pub use state::{ControlPlane, Phase, ProxyState, Request};
