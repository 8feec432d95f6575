//! The mesh on one machine: workloads, Bookinfo, process supervision.

mod parent;

pub use parent::exit_with_parent;
