//! The `lateen` command line: one binary for the control plane, the proxy and every verb.
fn main() {}
