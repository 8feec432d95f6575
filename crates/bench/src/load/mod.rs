//! Load: `wrk` and `h2load` where the point is saturation, our own where it is exactness (a fixed
//! rate, a counted stream, connections that stay idle).

pub mod client;
pub mod h2load;
pub mod idle;
pub mod paced;
pub mod stream;
pub mod wrk;

/// What a load generator counted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// Answers with status 200.
    pub requests: u64,
    /// Requests per second.
    pub rate: f64,
    /// Microseconds; `None` where the generator does not say.
    pub p99: Option<f64>,
}
