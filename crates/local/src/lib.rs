//! The mesh on one machine: workloads, Bookinfo, process supervision.
