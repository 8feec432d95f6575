//! How each proxy is started: one worker thread, one HTTP and one TCP port, no access log unless
//! the chain has one, idle connections kept, limits that the run does not meet.

pub mod haproxy;
pub mod nginx;
pub mod xds;
