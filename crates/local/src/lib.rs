//! The mesh on one machine: workloads, Bookinfo, process supervision.

pub mod bookinfo;
pub mod bootstrap;
pub mod capture;
pub mod demo;
pub mod http;
pub mod identity;
pub mod mesh;
mod objects;
mod parent;
pub mod plan;
pub mod rundir;
pub mod supervise;

pub use parent::exit_with_parent;
