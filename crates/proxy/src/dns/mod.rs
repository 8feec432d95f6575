//! The DNS server beside the workload (Istio's `pkg/dns/client`): names that the mesh knows are
//! answered from the table of the control plane, everything else is asked of the servers of
//! `/etc/resolv.conf`.
//!
//! | file | what it is |
//! |---|---|
//! | `table.rs` | names to addresses, with short names, wildcards and search domains: a plain value |
//! | `answer.rs` | a question's bytes to an answer's bytes, or to "somebody else knows" |
//! | `forward.rs` | asks the servers |
//! | `server.rs` | sockets, UDP and TCP |
//!
//! It lives on the main thread and never sees traffic. Invariants: whatever bytes come in, nothing
//! but an error answer comes of them; questions on their way to servers, connections and the table
//! are bounded in number.

mod answer;
mod forward;
mod server;
mod table;

pub use forward::servers_of;
pub use server::{Server, Settings};
pub use table::{Place, Table, TableError};
