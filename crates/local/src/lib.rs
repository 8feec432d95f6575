//! The mesh on one machine: workloads, Bookinfo, process supervision.

pub mod bookinfo;
pub mod http;
mod parent;
pub mod rundir;
pub mod supervise;

pub use parent::exit_with_parent;
